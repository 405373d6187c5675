//! The tables. Times are microseconds since 1970, UTC; names are those of `headworks_flow`. An empty `table_name` is that of a
//! run that publishes to none.

use headworks_store::{Component, Home, Migration};

/// The tables of this crate, for making them anew from a backup.
pub const TABLES: [Component; 5] =
    [RUNS, crate::demands::TABLES, crate::outbox::TABLES, crate::accounts::TABLES, crate::asked::TABLES];

/// Of runs and jobs.
pub(crate) const RUNS: Component = Component { name: "meta", home: Home::Platform, migrations: MIGRATIONS };

/// All steps; only ever add to the end.
pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, sql: V1, postgres: None },
    Migration { version: 2, sql: V2, postgres: None },
    Migration { version: 3, sql: V3, postgres: None },
    Migration { version: 4, sql: V4, postgres: None },
];

const V2: &str = "
-- What the run was made for: manual, schedule, backfill.
alter table hw_run add column cause TEXT NOT NULL DEFAULT 'manual';
-- What somebody wants of a live run: cancel.
alter table hw_run add column wish TEXT;
create index hw_run_open on hw_run (owner) where finished_at is null;
create index hw_run_wished on hw_run (owner) where wish is not null and finished_at is null;

-- What the scheduler remembers of a job. cursor is the last tick that it has seen to.
create table hw_job (
    name TEXT NOT NULL PRIMARY KEY,
    first_seen BIGINT NOT NULL,
    cursor BIGINT,
    paused_at BIGINT,
    version TEXT,
    source TEXT,
    problem TEXT
);

-- Processes that keep a project running; one row on SQLite.
alter table hw_process add column role TEXT NOT NULL DEFAULT 'command';
";

/// The tables whose rows belong to a run by their `run_id` and go when its details do.
pub(crate) const OF_RUN: [&str; 3] = ["hw_task", "hw_attempt", "hw_slot"];

const V1: &str = "
-- The counter that fences come from; one row.
create table hw_fence (id BIGINT NOT NULL PRIMARY KEY, value BIGINT NOT NULL);
insert into hw_fence (id, value) values (1, 0);

-- Processes that own runs; alive while lease_until lies ahead.
create table hw_process (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    pid BIGINT NOT NULL,
    pid_start BIGINT NOT NULL,
    lease_until BIGINT NOT NULL,
    started_at BIGINT NOT NULL
);

-- Runs; live while finished_at is null. born is the fence under which the run was made, which orders runs by the database.
create table hw_run (
    id TEXT NOT NULL PRIMARY KEY,
    job TEXT NOT NULL,
    job_version TEXT NOT NULL,
    table_name TEXT NOT NULL,
    interval_start BIGINT NOT NULL,
    interval_end BIGINT NOT NULL,
    ds TEXT NOT NULL,
    first_partition TEXT,
    last_partition TEXT,
    born BIGINT NOT NULL,
    state TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    fence BIGINT NOT NULL,
    owner TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    row_count BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    error_kind TEXT,
    error_code TEXT,
    error TEXT,
    hint TEXT
);
create unique index hw_run_live on hw_run (job, interval_start, interval_end) where finished_at is null;
create index hw_run_interval on hw_run (job, interval_start);
create index hw_run_born on hw_run (born);
create index hw_run_producing on hw_run (table_name) where finished_at is null;

-- The tasks of a run, by their places in its plan.
create table hw_task (
    run_id TEXT NOT NULL,
    place BIGINT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    PRIMARY KEY (run_id, place)
);

-- The attempts of a run, each with its log.
create table hw_attempt (
    run_id TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    state TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    finished_at BIGINT,
    error_kind TEXT,
    error_code TEXT,
    error TEXT,
    hint TEXT,
    log_path TEXT NOT NULL,
    log_bytes BIGINT NOT NULL,
    PRIMARY KEY (run_id, attempt)
);

-- The text of every version of a job that was ever planned.
create table hw_job_version (
    job TEXT NOT NULL,
    version TEXT NOT NULL,
    source TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    PRIMARY KEY (job, version)
);
";

const V3: &str = "
-- The task that an attempt was made of, for tasks that are attempted by themselves.
alter table hw_attempt add column task TEXT;
";

const V4: &str = "
-- Parameters that stood in for those of the job's header, as a JSON object.
alter table hw_run add column params TEXT;

-- Whose runs these are: the name in the settings of the project; one row.
create table hw_project (id BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL);

-- Named pools, of the size that headworks.toml had when it was read last.
create table hw_pool (
    name TEXT NOT NULL PRIMARY KEY,
    slots BIGINT NOT NULL
);

-- Slots that a process has for a task at work, under a number of its own; free when its lease is over.
create table hw_slot (
    owner TEXT NOT NULL,
    number BIGINT NOT NULL,
    pool TEXT NOT NULL,
    slots BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    task TEXT NOT NULL,
    fence BIGINT NOT NULL,
    taken_at BIGINT NOT NULL,
    PRIMARY KEY (owner, number)
);
create index hw_slot_run on hw_slot (run_id);

-- Where a run may be carried out: its zone, or empty for any; the pools of its tasks as a JSON array, or empty when not known.
alter table hw_run add column zone TEXT NOT NULL DEFAULT '';
alter table hw_run add column pools TEXT NOT NULL DEFAULT '';
-- How urgent a run is that has no owner: higher is taken up first.
alter table hw_run add column priority BIGINT NOT NULL DEFAULT 0;
-- Where a process stands, and the pools that it takes, as a JSON array; null for all.
alter table hw_process add column zone TEXT NOT NULL DEFAULT '';
alter table hw_process add column pools TEXT;
";
