//! What is no death: a process that stands still, and a database that restarts, is out of reach, or stands behind a pooler.

use std::{fs, path::PathBuf, time::Duration};

use headworks_testkit::{PgBouncer, PostgresOptions, Relay, TempPostgres};
use rustix::process::Signal;

use crate::{
    crew::{Chance, Serving, family, lives, pass, until, until_within},
    kills::killed,
    ledger::{Entry, Site, command},
};

/// How long a process keeps its runs without a sign of life, as `headworks_meta` has it.
const LEASE: Duration = Duration::from_secs(10);

/// The pause between two records of running runs, as `headworks_flow` has it.
const FLUSH: Duration = Duration::from_secs(1);

/// The pause between two looks for runs whose process is gone, as `headworks_flow` has it.
const ADOPT: Duration = Duration::from_secs(5);

fn signal_all(serving: &Serving, signal: Signal) {
    for pid in family(serving.pid()) {
        // One that has ended meanwhile needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A worker stands still with its commands, as on a machine that is frozen, until another has done its work. Then it goes on.
#[test]
fn a_worker_that_stood_still_changes_nothing_and_stops_its_commands() {
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    let site = Site::on_postgres(&url, 3).without_steps();
    let hold = command("echo $$ > pid-$HEADWORKS_FENCE; while [ ! -e go-$HEADWORKS_FENCE ]; do sleep 0.05; done");
    site.project.write("jobs/hold.yml", &format!("tasks:\n  hold: {{type: shell, command: {hold}}}\n"));
    let scheduler = site.serve("scheduler", &[]);
    let first = site.serve("worker", &["--tasks", "3"]);
    site.project.ok(&["jobs", "trigger", "hold", "--ds", "2026-01-01"]);
    let begun = |count: usize| site.ledger().into_iter().filter(|entry| !entry.ends).nth(count - 1);
    let held: Entry = until("the command that holds", || begun(1));
    until("some publishes", || (site.count("select count(*) from hw_publish") >= 10).then_some(()));
    signal_all(&first, Signal::STOP);
    let second = site.serve("worker", &["--tasks", "3"]);
    site.until_done();
    let again = until("the command's second life", || begun(2));
    assert!(again.run == held.run && again.fence > held.fence, "{held:?} {again:?}");
    fs::write(site.project.path().join(format!("go-{}", again.fence)), "").unwrap();
    let done = "select count(*) from hw_run where job = 'hold' and state = 'success'";
    until("its success", || (site.count(done) == 1).then_some(()));
    let rows = || {
        let runs = site.rows("select id, state, attempt, fence, finished_at, row_count from hw_run order by id");
        (runs, site.rows("select run_id, attempt, state, finished_at, log_bytes from hw_attempt order by 1, 2"))
    };
    let (before, entries) = (rows(), site.ledger().len());
    signal_all(&first, Signal::CONT);
    let pid = site.project.path().join(format!("pid-{}", held.fence));
    let pid: u32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    until("the old command's end", || (!lives(pid)).then_some(()));
    until("a renewed lease", || (site.leases() == 3).then_some(()));
    // What it kept from before it would have written within a second.
    pass(FLUSH * 2);
    assert_eq!(rows(), before, "the worker that stood still has changed something");
    assert_eq!(site.ledger().len(), entries, "{:?}", site.ledger().last());
    for serving in [scheduler, first, second] {
        serving.stop();
    }
    site.check();
}

/// PostgreSQL restarts, in order and out of order, while everybody is at work.
#[test]
fn a_restart_of_postgres_costs_no_attempt() {
    let mut server = TempPostgres::start_with(PostgresOptions::default()).unwrap();
    let site = Site::on_postgres(&server.create_database().unwrap(), 3);
    let crew = [site.serve("up", &["--tasks", "4"]), site.serve("worker", &["--tasks", "4"])];
    let mut chance = Chance::new(1);
    let all = site.hours() * 2;
    for restart in 1..=4 {
        until("some more commands", || (site.ends() >= all * restart / 6).then_some(()));
        pass(Duration::from_millis(chance.below(100)));
        if restart % 2 == 0 { server.stop() } else { server.stop_at_once() }.unwrap();
        pass(Duration::from_millis(chance.below(1_000)));
        server.restart().unwrap();
    }
    site.until_done();
    crew.into_iter().for_each(|serving| drop(serving.stop()));
    site.check();
    site.check_nothing_repeated();
}

/// The database is out of reach for longer than a lease while commands run.
fn out_of_reach(tasks: usize, outage: Duration) {
    let server = TempPostgres::start_with(PostgresOptions::default()).unwrap();
    let relay = Relay::start(server.port()).unwrap();
    let direct = server.create_database().unwrap();
    let url = direct.replace(&format!(":{}/", server.port()), &format!(":{}/", relay.port()));
    let site = Site::on_postgres(&url, 2).without_steps();
    let half = (tasks / 2).to_string();
    // Opening a pipe waits for somebody at its other end, and takes nothing of the machine meanwhile.
    let gate = site.project.path().join("gate");
    assert!(std::process::Command::new("mkfifo").arg(&gate).status().unwrap().success());
    let hold = command(": < gate");
    site.project.write(
        "jobs/hold.yml",
        &format!("tasks:\n  hold: {{type: shell, command: {hold}, each: '{{{{ range({half}) | list }}}}'}}\n"),
    );
    // One process may get all of them, and some publishes beside.
    let room = (tasks + 4).to_string();
    let up = || site.serve("up", &["--tasks", &room]);
    let crew = [up(), up()];
    for ds in ["2026-01-01", "2026-01-02"] {
        site.project.ok(&["jobs", "trigger", "hold", "--ds", ds]);
    }
    let begun = || site.ledger().iter().filter(|entry| !entry.ends).count();
    until_within(outage.max(Duration::from_secs(60)), "all commands at work", || (begun() == tasks).then_some(()));
    // At most four of each process, however many tasks it has.
    let connections =
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let database = direct.rsplit('/').next().unwrap();
    let open: usize = server.psql(database, connections).unwrap().parse().unwrap();
    assert!((2..=4 * crew.len()).contains(&open), "{open} connections of {} processes", crew.len());
    let owners = || site.rows("select id, owner, fence from hw_run where job = 'hold' order by id");
    let before = owners();
    relay.go_away();
    pass(outage);
    relay.come_back();
    until("renewed leases", || (site.leases() == crew.len()).then_some(()));
    // Who would take them for dead has looked by then.
    pass(ADOPT + ADOPT / 5);
    assert_eq!(owners(), before, "somebody has taken runs from a process that was alive");
    let opened = fs::File::options().write(true).open(&gate).unwrap();
    let done = "select count(*) from hw_run where job = 'hold' and state = 'success'";
    until("their success", || (site.count(done) == 2).then_some(()));
    drop(opened);
    site.until_done();
    crew.into_iter().for_each(|serving| drop(serving.stop()));
    assert_eq!((begun(), site.ends()), (tasks, tasks));
    site.check();
    site.check_nothing_repeated();
}

#[test]
fn an_outage_longer_than_a_lease_costs_no_attempt_and_four_connections_are_enough() {
    out_of_reach(40, LEASE + LEASE / 5);
}

#[test]
#[ignore = "long: the database is out of reach for a minute while five hundred commands run"]
fn long_a_minute_s_outage_with_five_hundred_commands() {
    out_of_reach(500, Duration::from_secs(60));
}

/// Everything through PgBouncer in transaction mode, with kills.
#[test]
fn a_pooler_may_stand_before_postgres() {
    let server = TempPostgres::shared().unwrap();
    let url = PgBouncer::shared().unwrap().url_of(server, &server.create_database().unwrap());
    let site = Site::on_postgres(&url, 2);
    let scheduler = || site.serve("scheduler", &[]);
    let worker = || site.serve("worker", &["--tasks", "3"]);
    killed(3, 4, &site, &[&scheduler, &worker, &worker]);
    // Commands beside it, those that need a look at everything too.
    site.project.ok(&["doctor"]);
    let backup: PathBuf = site.project.path().join("backup");
    site.project.ok(&["backup", &backup.display().to_string()]);
}
