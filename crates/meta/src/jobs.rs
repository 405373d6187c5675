//! What is remembered of jobs: when they were first seen, up to which tick they ran, whether they are paused; and wishes for runs.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use headworks_domain::{JobName, RunId};
use headworks_flow::{exec::Takes, ticker::JobClock};
use headworks_store::{Dialect, Tx, Value, values};
use serde_json::json;

use crate::{
    Error, Life, Result, Runs,
    placement::{takes, zone_text},
    process::Judge,
    row::{opt_time, owner, parsed, time},
    runs::rows_of_places,
};

/// What a process is to a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One command; it ends.
    Command,
    /// Looks after the schedules and works.
    Scheduler,
    /// Looks after the schedules and leaves the work to others.
    Planner,
    /// Works.
    Worker,
    /// Answers queries, and has nothing to do with runs.
    Server,
}

impl Role {
    const ALL: [Self; 5] = [Self::Command, Self::Scheduler, Self::Planner, Self::Worker, Self::Server];

    /// The role with this word; one of a newer program, which this one does not know, is a command's.
    pub(crate) fn read(word: &str) -> Self {
        Self::ALL.into_iter().find(|role| role.as_str() == word).unwrap_or(Self::Command)
    }

    /// Its word in the database.
    fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Scheduler => "scheduler",
            Self::Planner => "planner",
            Self::Worker => "worker",
            Self::Server => "server",
        }
    }

    /// True when it looks after the schedules.
    pub(crate) fn schedules(self) -> bool {
        matches!(self, Self::Scheduler | Self::Planner)
    }
}

/// What is known of a job besides its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// The job.
    pub name: JobName,
    /// Its clock.
    pub clock: JobClock,
    /// Since when it is paused.
    pub paused_at: Option<DateTime<Utc>>,
    /// The version that runs: the newest without errors.
    pub version: Option<String>,
    /// What is wrong with its file now; the version goes on.
    pub problem: Option<String>,
}

/// A job's definition, as a scheduler has taken it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The job.
    pub job: JobName,
    /// The version that runs; `None` for a job that never had one without errors.
    pub version: Option<String>,
    /// What is wrong with its file.
    pub problem: Option<String>,
}

const NAMES_MAX: usize = 100;

impl Runs {
    /// Tells what is remembered of jobs, those without a file included.
    pub async fn jobs(&self) -> Result<Vec<JobRow>> {
        let sql = "select name, first_seen, cursor, paused_at, version, problem from hw_job order by name";
        let rows = self.store.rows(sql, &[]).await?;
        rows.iter()
            .map(|row| {
                let paused_at = opt_time("hw_job", row, 3)?;
                Ok(JobRow {
                    name: parsed(row, 0)?,
                    clock: JobClock {
                        first_seen: time("hw_job", row.i64(1)?)?,
                        cursor: opt_time("hw_job", row, 2)?,
                        paused: paused_at.is_some(),
                    },
                    paused_at,
                    version: row.opt_text(4)?,
                    problem: row.opt_text(5)?,
                })
            })
            .collect()
    }

    /// Remembers jobs and how their files stand; those not seen before are first seen now.
    pub async fn define(&self, definitions: Vec<Definition>) -> Result<()> {
        let now = self.now().await?;
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    for some in definitions.chunks(NAMES_MAX) {
                        let bound: Vec<Value> = some
                            .iter()
                            .flat_map(|d| values![d.job.as_str(), now, d.version.clone(), d.problem.clone()])
                            .collect();
                        let sql = format!(
                            "insert into hw_job (name, first_seen, version, problem) values {}
                             on conflict (name) do update set version = coalesce(excluded.version, hw_job.version),
                                 problem = excluded.problem",
                            rows_of_places(some.len(), 4)
                        );
                        tx.execute(&sql, &bound).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Pauses jobs, or lets them go on: then `catchup` says which missed ticks run.
    pub async fn pause(&self, jobs: Vec<JobName>, paused: bool) -> Result<()> {
        let now = self.now().await?;
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    for job in jobs {
                        tx.execute(
                            "insert into hw_job (name, first_seen, paused_at) values ($1, $2, $3)
                             on conflict (name) do update set paused_at =
                                 case when excluded.paused_at is null then null else coalesce(hw_job.paused_at, excluded.paused_at) end",
                            &values![job.as_str(), now, paused.then_some(now)],
                        )
                        .await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Lets a job's schedule go on from an earlier time: the ticks after it are looked at once more, and those without a run get one.
    /// False when the job is not known, or no later tick was seen to.
    pub async fn set_back(&self, job: &JobName, to: DateTime<Utc>) -> Result<bool> {
        let bound = values![job.as_str(), to.timestamp_micros()];
        let sql = "update hw_job set cursor = $2 where name = $1 and cursor > $2";
        self.store.write(move |tx| Box::pin(async move { Ok(tx.execute(sql, &bound).await? == 1) })).await
    }

    /// The time up to which ticks have come: by this machine's clock, and on PostgreSQL by the server's when that is behind. A tick that
    /// is seen to before its time is lost once the clock is right again.
    pub async fn tick_time(&self) -> Result<DateTime<Utc>> {
        let now = self.clock.now();
        match self.store.dialect() {
            Dialect::Sqlite => Ok(now),
            Dialect::Postgres => Ok(now.min(time("hw_job", self.now().await?)?)),
        }
    }

    /// The jobs that are paused.
    pub async fn paused(&self) -> Result<HashSet<JobName>> {
        let rows = self.store.rows("select name from hw_job where paused_at is not null", &[]).await?;
        rows.iter().map(|row| parsed(row, 0)).collect()
    }

    /// Asks the owners of live runs to stop them; says which of them were live.
    pub async fn wish_cancelled(&self, runs: Vec<RunId>) -> Result<Vec<RunId>> {
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    let mut live = Vec::new();
                    for run in runs {
                        let sql = "update hw_run set wish = 'cancel' where id = $1 and finished_at is null";
                        if tx.execute(sql, &values![run.as_str()]).await? == 1 {
                            live.push(run);
                        }
                    }
                    Ok(live)
                })
            })
            .await
    }

    /// This process's live runs that somebody wants cancelled.
    pub async fn cancel_wishes(&self) -> Result<Vec<RunId>> {
        let this = self.process().await?;
        let sql = "select id from hw_run where finished_at is null and owner = $1 and wish = 'cancel'";
        self.store.rows(sql, &values![this]).await?.iter().map(|row| parsed(row, 0)).collect()
    }

    /// Takes up a role, and says what the process takes. Errors: `SecondScheduler` when another process looks after this SQLite project already.
    pub async fn take_up(&self, role: Role, takes: &Takes) -> Result<()> {
        let (this, takes) = (self.process().await?.to_owned(), takes.clone());
        let judge = self.judge(self.now().await?);
        self.store.write(move |tx| Box::pin(async move { take_up(tx, &this, role, &takes, &judge).await })).await
    }
}

impl Runs {
    /// What the other living processes take that take up released runs.
    pub(crate) async fn other_workers(&self) -> Result<Vec<Takes>> {
        let this = self.process().await?;
        let now = self.now().await?;
        let sql = "select host, boot_id, pid, pid_start, lease_until, zone, pools from hw_process
            where role in ('scheduler', 'worker') and id <> $1 and lease_until > $2";
        let rows = self.store.rows(sql, &values![this, now]).await?;
        let mut living = Vec::new();
        for row in &rows {
            if owner(row, 0)?.is_some_and(|(process, _)| self.processes.life(&process) != Life::Gone) {
                living.push(takes(row, 5)?);
            }
        }
        Ok(living)
    }
}

async fn take_up(tx: &mut Tx, this: &str, role: Role, takes: &Takes, judge: &Judge) -> Result<()> {
    if tx.dialect() == Dialect::Sqlite && role.schedules() {
        let sql = "select host, boot_id, pid, pid_start, lease_until from hw_process
            where role in ('scheduler', 'planner') and id <> $1";
        for row in tx.rows(sql, &values![this]).await? {
            let Some((process, lease)) = owner(&row, 0)? else { continue };
            if judge.lives(&process, lease) {
                return Err(Error::SecondScheduler { host: process.host, pid: process.pid });
            }
        }
    }
    let sql = "update hw_process set role = $2, zone = $3, pools = $4 where id = $1";
    // No pools at all are not the same as all.
    let pools = takes.pools.as_ref().map(|pools| json!(pools).to_string());
    tx.execute(sql, &values![this, role.as_str(), zone_text(takes.zone.as_ref()), pools]).await?;
    Ok(())
}

/// Moves the cursors of jobs to ticks whose runs were claimed; never back.
pub(crate) async fn move_cursors(tx: &mut Tx, ticks: HashMap<&str, DateTime<Utc>>) -> Result<()> {
    for (job, tick) in ticks {
        tx.execute(
            "update hw_job set cursor = $2 where name = $1 and (cursor is null or cursor < $2)",
            &values![job, tick.timestamp_micros()],
        )
        .await?;
    }
    Ok(())
}
