//! Steering a project that `headworks up` keeps running, and commands without one.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::project::{NUMBERS, Project, outcome};

/// Counts what `numbers` has of the day, and reads its own day before.
const TOTAL: &str = r#"/* job
description: Numbers so far
owner: tests
start: 2026-01-01
grain: day
kind: cumulative
wait: [self@-1]
*/
SELECT count(*) AS numbers FROM wait::numbers WHERE ds = DATE '{{ ds }}'
"#;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(60);

/// `headworks up`, and what it tells.
struct Up {
    child: Child,
    told: Receiver<Value>,
}

impl Up {
    fn start(project: &Project) -> Self {
        let mut child = project.command(&["up", "--listen", "127.0.0.1:0", "--json"]).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, told) = channel();
        thread::spawn(move || {
            for line in lines {
                // The test may have heard enough.
                let _ = tell.send(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        Self { child, told }
    }

    /// Listens until a run of this job and day is in this state.
    fn until(&self, job: &str, ds: &str, state: &str) {
        loop {
            let run = self.told.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{job} {ds} never was {state}: {e}"));
            if run["job"] == job && run["ds"] == ds && run["state"] == state {
                return;
            }
        }
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again until the answer is right.
fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ask() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
    }
}

fn two_jobs() -> Project {
    Project::numbers().file("jobs/total.sql", TOTAL)
}

fn count_of(project: &Project, table: &str) -> String {
    project.ok(&["sql", &format!("SELECT count(*) AS n FROM {table}")])
}

#[test]
fn people_steer_what_runs() {
    let project = two_jobs();
    // Before anybody keeps it running.
    let paused = project.json(&["jobs", "pause", "numbers"]);
    assert_eq!((&paused["jobs"][0]["paused"], &paused["jobs"][0]["was_paused"]), (&true.into(), &false.into()));
    let asked = project.run(&["jobs", "trigger", "numbers", "--ds", "2026-01-01"]);
    assert!(asked.code == 0 && asked.stderr.contains("headworks up"), "{asked:?}");
    let why = project.json(&["why", "numbers", "--ds", "2026-01-01"]);
    assert_eq!(why["reason"], "nobody_serves", "{why}");

    let up = Up::start(&project);
    up.until("numbers", "2026-01-01", "success");
    assert_eq!(project.json(&["why", "numbers", "--ds", "2026-01-01"])["reason"], "published");
    let list = project.json(&["jobs", "list"]);
    let numbers = &list["jobs"][0];
    assert!(numbers["paused_at"].is_string() && numbers["next_tick"].is_null(), "{list}");
    assert_eq!((&numbers["last_run"]["state"], &numbers["last_run"]["ds"]), (&"success".into(), &"2026-01-01".into()));
    let only = project.json(&["runs", "list", "--job", "numbers"]);
    assert_eq!(only["runs"].as_array().unwrap().len(), 1, "its schedule started nothing: {only}");

    // A run that waits is explained and cancelled.
    project.ok(&["jobs", "trigger", "total", "--ds", "2026-01-03"]);
    until("the waiting run", || {
        let why = project.json(&["why", "total", "--ds", "2026-01-03"]);
        why["reason"] == "waits" && why["because"].as_array().is_some_and(|because| because.len() == 2)
    });
    let why = project.ok(&["why", "total", "--ds", "2026-01-03"]);
    assert!(why.lines().last().is_some_and(|line| line.starts_with("next: headworks ")), "{why}");
    let dry = project.json(&["runs", "cancel", "--job", "total"]);
    assert_eq!((&dry["done"], dry["runs"].as_array().unwrap().len()), (&false.into(), 1), "{dry}");
    project.ok(&["runs", "cancel", "--job", "total", "--yes"]);
    up.until("total", "2026-01-03", "cancelled");

    // A stored backfill survives a restart, orders itself, and repeats nothing.
    let days = ["--from", "2026-01-01", "--to", "2026-01-04"];
    let stored = project.json(&[&["backfill", "--all", "--max-active", "2", "--detach"][..], &days].concat());
    assert_eq!((&stored["backfill"], &stored["pieces"]), (&1.into(), &8.into()));
    up.until("numbers", "2026-01-02", "success");
    up.stop();
    let up = Up::start(&project);
    let show = || project.json(&["backfills", "show", "1"]);
    until("the backfill's end", || show()["state"] == "done");
    let shown = show();
    assert_eq!(
        (&shown["success"], &shown["done_before"], &shown["failed"]),
        (&7.into(), &1.into(), &0.into()),
        "{shown}"
    );
    assert_eq!(count_of(&project, "total"), "n\n4\n");

    // A changed job, run again over what is there, and taken back.
    project.write("jobs/numbers.sql", &NUMBERS.replace("(3, 'Ünï')", "(30, 'thirty')"));
    let version = project.json(&["jobs", "show", "numbers"])["version"].clone();
    let again = ["--reprocess", "all", "--detach", "--from", "2026-01-01", "--to", "2026-01-02"];
    until("the new version", || {
        project.ok(&["jobs", "trigger", "numbers", "--ds", "2026-01-01", "--reprocess"]);
        up.until("numbers", "2026-01-01", "success");
        project.json(&["runs", "list", "--job", "numbers", "--limit", "1"])["runs"][0]["job_version"] == version
    });
    assert_eq!(project.json(&[&["backfill", "numbers"][..], &again].concat())["backfill"], 2);
    up.until("numbers", "2026-01-02", "success");
    until("the second backfill's end", || project.json(&["backfills", "show", "2"])["state"] == "done");
    let max = "SELECT max(n) AS n FROM numbers WHERE ds = DATE '2026-01-02'";
    assert_eq!(project.ok(&["sql", max]), "n\n30\n");
    let plan = project.json(&["backfills", "undo", "2"]);
    assert_eq!((plan["partitions"].as_array().unwrap().len(), &plan["done"]), (2, &false.into()), "{plan}");
    assert_eq!(project.ok(&["sql", max]), "n\n30\n", "that was a dry run");
    project.ok(&["backfills", "undo", "2", "--yes"]);
    assert_eq!(project.ok(&["sql", max]), "n\n3\n");
    assert!(project.json(&["backfills", "undo", "2"])["partitions"].as_array().unwrap().is_empty(), "it is undone");

    // The first backfill's are gone where they were new; what somebody has published since stays.
    let plan = project.json(&["backfills", "undo", "1", "--yes"]);
    assert_eq!(plan["done"], true, "{plan}");
    assert_eq!(count_of(&project, "total"), "n\n0\n");
    assert_eq!(project.ok(&["sql", "SELECT count(DISTINCT ds) AS n FROM numbers"]), "n\n1\n", "{plan}");

    // A job in a folder goes by its table's name too, as everywhere.
    project.write("jobs/in/folder/deep.sql", "/* job\nowner: tests\nstart: 2026-01-01\ngrain: day\n*/ SELECT 1 AS n\n");
    project.ok(&["run", "deep", "--ds", "2026-01-01", "-q"]);
    let deep = project.json(&["runs", "list", "--job", "deep"]);
    assert_eq!(deep["runs"][0]["job"], "in/folder/deep", "{deep}");

    // An ended run is carried out again, and marked.
    let run = project.json(&["runs", "list", "--job", "total", "--limit", "1"])["runs"][0]["run_id"].clone();
    let run = run.as_str().unwrap();
    project.ok(&["runs", "mark", "skipped", run, "--reason", "not needed"]);
    let marked = project.json(&["runs", "show", run]);
    assert_eq!(
        (&marked["state"], &marked["marks"][1]["reason"]),
        (&"skipped".into(), &"not needed".into()),
        "{marked}"
    );
    // Those of a job only with a word more; the rest are as they should be already.
    let bulk = ["runs", "mark", "skipped", "--job", "total", "--reason", "all of them"];
    let would = project.json(&bulk);
    assert!(would["done"] == false && would["runs"].as_array().is_some_and(|runs| !runs.is_empty()), "{would}");
    assert_eq!(project.json(&[&bulk[..], &["--yes"]].concat())["runs"], would["runs"]);
    assert_eq!(project.json(&bulk)["runs"], serde_json::json!([]));
    let first = project.json(&["runs", "list", "--job", "total", "--ds", "2026-01-01"])["runs"][0]["run_id"].clone();
    project.ok(&["runs", "clear", first.as_str().unwrap()]);
    up.until("total", "2026-01-01", "success");
    assert_eq!(count_of(&project, "total"), "n\n1\n");
    up.stop();
}

#[test]
fn a_command_in_the_foreground_hears_that_its_run_is_cancelled() {
    let project = two_jobs();
    let child = project.command(&["run", "total", "--ds", "2026-01-05", "--wait", "10m", "--json"]).spawn().unwrap();
    let run = || project.json(&["runs", "list", "--job", "total"])["runs"][0]["run_id"].clone();
    until("the run", || run().is_string());
    let id = run().as_str().unwrap().to_owned();
    let cancelled = project.json(&["runs", "cancel", &id]);
    assert_eq!(cancelled["runs"][0]["cancelled"], "asked", "{cancelled}");
    let ended = outcome(child);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap()["cancelled"], 1, "{ended:?}");

    // One whose process is gone is cancelled at once.
    let mut child =
        project.command(&["run", "total", "--ds", "2026-01-06", "--wait", "10m", "--json"]).spawn().unwrap();
    let run = || project.json(&["runs", "list", "--job", "total", "--ds", "2026-01-06"])["runs"][0]["run_id"].clone();
    until("the second run", || run().is_string());
    child.kill().unwrap();
    child.wait().unwrap();
    let id = run().as_str().unwrap().to_owned();
    assert_eq!(project.json(&["why", "total", "--ds", "2026-01-06"])["reason"], "abandoned");
    assert_eq!(project.json(&["runs", "cancel", &id])["runs"][0]["cancelled"], "now");
    assert_eq!(project.json(&["runs", "show", &id])["state"], "cancelled");
}

#[test]
fn what_cannot_be_is_refused_with_the_next_step() {
    let project = two_jobs();
    let refused = |args: &[&str], hint: &str| {
        let outcome = project.run(args);
        assert!(outcome.code == 2 && outcome.stderr.contains(hint), "{args:?}: {outcome:?}");
    };
    refused(&["jobs", "pause", "zzzzzz"], "headworks jobs list");
    refused(&["backfills", "show", "7"], "headworks backfills list");
    refused(&["runs", "cancel", "nobody"], "headworks runs list");
    refused(&["runs", "clear"], "<RUN>");
    refused(&["why", "numbers", "--ds", "2020-01-01"], "another --ds");
    let days = ["--from", "2026-01-01", "--to", "2026-01-02"];
    project.ok(&[&["backfill", "numbers", "--detach"][..], &days].concat());
    refused(&["backfills", "undo", "1"], "headworks backfills cancel 1 --yes");
    assert!(project.ok(&["backfills", "list"]).contains("running"));
    project.ok(&["backfills", "pause", "1"]);
    project.ok(&["backfills", "resume", "1"]);
    let dry = project.json(&["backfills", "cancel", "1"]);
    assert_eq!((&dry["open"], &dry["done"]), (&2.into(), &false.into()));
    project.ok(&["backfills", "cancel", "1", "--yes"]);
    refused(&["backfills", "resume", "1"], "headworks backfills list");
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
    let days = ["--from", "2026-01-01", "--to", "2026-01-31"];
    let clear = project.json(&[&["runs", "clear", "--job", "numbers"][..], &days].concat());
    assert_eq!((clear["runs"].as_array().unwrap().len(), &clear["done"]), (1, &false.into()), "{clear}");
    let failed = project.json(&[&["runs", "clear", "--job", "numbers", "--failed", "--yes"][..], &days].concat());
    assert_eq!((failed["runs"].as_array().unwrap().len(), &failed["done"]), (0, &false.into()), "{failed}");
    let stored = project.json(&[&["runs", "clear", "--job", "numbers", "--yes"][..], &days].concat());
    assert_eq!(stored["backfill"], 2, "{stored}");
    project.write("jobs/numbers.sql", "/* job\nowner: 7\nnope: 1\n*/\nSELECT 1 AS n\n");
    let why = project.json(&["why", "numbers"]);
    assert_eq!(why["reason"], "file_broken", "{why}");
    assert!(project.run(&["jobs", "list"]).stderr.contains("jobs/numbers.sql"));
}

#[test]
fn a_database_is_one_projects() {
    let project = two_jobs();
    project.ok(&["run", "numbers", "--ds", "2026-01-01", "-q"]);
    let database = format!("metadata.url=sqlite:{}", project.path().join(".headworks/metadata.db").display());
    let other = Project::nothing();
    other.write("headworks.toml", "[project]\nname = \"else\"\n");
    other.write("jobs/numbers.sql", crate::project::NUMBERS);
    let refused = other.run(&["runs", "list", "--set", &database]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("belongs to the project `test`, this one is `else`"), "{refused:?}");
    assert!(refused.stderr.contains("doctor --renamed"), "{refused:?}");
    // The same one under another name says so once.
    let text = std::fs::read_to_string(project.path().join("headworks.toml")).unwrap();
    project.write("headworks.toml", &text.replace("\"test\"", "\"new name\""));
    assert_eq!(project.run(&["runs", "list"]).code, 2);
    project.run(&["doctor", "--renamed"]);
    assert_eq!(project.json(&["runs", "list"])["runs"].as_array().unwrap().len(), 1);
}
