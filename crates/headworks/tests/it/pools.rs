//! Pools and zones over several processes.

use headworks_testkit::TempPostgres;

use crate::{
    crew::{Serving, days_ago, until},
    project::{Project, outcome},
    serving::{UP, successes},
};

/// Fails at once when another one of it is at work.
const ALONE: &str = "exec 9> alone.lock; flock -n 9 || exit 1; sleep 0.02";

fn job(header: &str, command: &str) -> String {
    let command = serde_json::to_string(command).unwrap();
    format!("{header}owner: tests\nretries: {{times: 0}}\ntasks:\n  t: {{type: shell, command: {command}}}\n")
}

fn hourly(more: &str) -> String {
    hourly_since(1, more)
}

fn hourly_since(days: u64, more: &str) -> String {
    job(&format!("schedule: '@hourly'\ncatchup: all\nstart: {}\n{more}", days_ago(days)), ALONE)
}

fn project(settings: &str) -> Project {
    Project::nothing().file("headworks.toml", &format!("[project]\nname = \"test\"\n{settings}"))
}

fn on_postgres(settings: &str) -> Project {
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    project(&format!("{settings}\n[metadata]\nurl = \"{url}\"\n"))
}

fn states(project: &Project, job: &str) -> Vec<String> {
    let runs = project.json(&["runs", "list", "--job", job, "--limit", "10000"]);
    runs["runs"].as_array().unwrap().iter().map(|run| run["state"].as_str().unwrap().to_owned()).collect()
}

fn worker(project: &Project, more: &[&str]) -> Serving {
    Serving::start(project.command(&[&["worker", "--tasks", "4", "--listen", "127.0.0.1:0"], more].concat()))
}

fn scheduler(project: &Project) -> Serving {
    Serving::start(project.command(&["scheduler", "--listen", "127.0.0.1:0"]))
}

#[test]
fn a_pool_of_one_holds_over_two_workers() {
    let project = on_postgres("[pools]\none = 1\n")
        .file("jobs/a.yml", &hourly_since(20, "pool: one\n"))
        .file("jobs/b.yml", &hourly_since(20, "pool: one\n"));
    let (first, second) = (worker(&project, &[]), worker(&project, &[]));
    let scheduler = scheduler(&project);
    // There is more to do than that: one process may be the quicker one for a while.
    until("a day of both, by both", || {
        let is_done = ["a", "b"].iter().all(|job| successes(&project, job) >= 24);
        (is_done && owners(&project) >= 2).then_some(())
    });
    for job in ["a", "b"] {
        assert!(!states(&project, job).contains(&"failed".to_owned()), "two tasks of a pool of one at once");
    }
    for served in [scheduler, first, second] {
        served.stop();
    }
}

fn owners(project: &Project) -> usize {
    let runs = project.json(&["runs", "list", "--limit", "10000"]);
    let mut owners: Vec<&str> = runs["runs"].as_array().unwrap().iter().filter_map(|r| r["process"].as_str()).collect();
    owners.sort_unstable();
    owners.dedup();
    owners.len()
}

#[test]
fn max_active_runs_holds_over_two_workers() {
    let project = on_postgres("").file("jobs/a.yml", &hourly_since(20, "max_active_runs: 1\n"));
    let (first, second) = (worker(&project, &[]), worker(&project, &[]));
    let scheduler = scheduler(&project);
    until("a day, by both", || (successes(&project, "a") >= 24 && owners(&project) >= 2).then_some(()));
    assert!(!states(&project, "a").contains(&"failed".to_owned()), "two runs of a job of one at once");
    for served in [scheduler, first, second] {
        served.stop();
    }
}

#[test]
fn a_pool_of_one_holds_over_up_and_a_command_beside_it() {
    let project = project("[pools]\none = 1\n")
        .file("jobs/a.yml", &hourly("pool: one\n"))
        .file("jobs/b.yml", &job("pool: one\n", ALONE));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let up = Serving::start(project.command(&["up", "--listen", &format!("127.0.0.1:{port}")]));
    until("it is at work", || (successes(&project, "a") >= 1).then_some(()));
    until("the metrics of the pool", || {
        let (_, text) = headworks_testkit::http_get(port, "/metrics").ok()?;
        let has = |metric: &str| text.contains(&format!("headworks_flow_pool_slots{metric}"));
        (has("{pool=\"one\"} 1") && has("_taken{pool=\"one\",process=\"")).then_some(())
    });
    project.ok(&["backfill", "b", "--from", "2026-01-01", "--to", "2026-01-12"]);
    until("a day of hours", || (successes(&project, "a") >= 24).then_some(()));
    up.stop();
    assert_eq!(states(&project, "b"), ["success"; 12]);
    assert!(!states(&project, "a").contains(&"failed".to_owned()));
}

#[test]
fn why_names_who_has_the_slots_and_a_killed_process_has_none() {
    let project = project("[pools]\none = 1\n")
        .file("jobs/long.yml", &job("pool: one\n", "echo $$ > pid; exec sleep 1000"))
        .file("jobs/late.yml", &job("pool: one\n", "true"));
    let run = |job: &str| project.command(&["run", job, "--ds", "2026-01-01", "-q"]).spawn().unwrap();
    let mut long = run("long");
    until("it is at work", || project.path().join("pid").exists().then_some(()));
    let late = run("late");
    let why = until("the pool is full", || {
        let why = project.json(&["why", "late", "--ds", "2026-01-01"]);
        (why["reason"] == "pool").then_some(why)
    });
    let text = why["text"].as_str().unwrap();
    assert!(
        text.starts_with("has all it needs, and waits for pool one: of its 1 slot 1 is taken by long 2026-01-01 (run "),
        "{text}"
    );
    assert!(why["next"].as_str().unwrap().contains("[pools]"), "{why}");
    long.kill().unwrap();
    long.wait().unwrap();
    let late = outcome(late);
    assert_eq!(late.code, 0, "{late:?}");
}

#[test]
fn a_pool_grows_with_its_file() {
    // Each ends when the other is at work.
    let meets = |own: &str, other: &str| {
        let command = format!("touch {own}; while [ ! -e {other} ]; do sleep 0.05; done");
        job(&format!("schedule: '@daily'\nstart: {}\npool: one\n", days_ago(1)), &command)
    };
    let project =
        project("[pools]\none = 1\n").file("jobs/a.yml", &meets("a", "b")).file("jobs/b.yml", &meets("b", "a"));
    let up = Serving::start(project.command(&UP));
    let is_there = |name: &str| project.path().join(name).exists();
    until("one is at work", || (is_there("a") || is_there("b")).then_some(()));
    let waits = if is_there("a") { "b" } else { "a" };
    until("the other waits", || (project.json(&["why", waits])["reason"] == "pool").then_some(()));
    project.write("headworks.toml", "[project]\nname = \"test\"\n[pools]\none = 2\n");
    until("both", || (successes(&project, "a") + successes(&project, "b") == 2).then_some(()));
    up.stop();
}

#[test]
fn a_run_of_a_zone_waits_for_a_worker_there() {
    let far = job("zone: eu\n", "true");
    let project = on_postgres("")
        .file("jobs/far.yml", &far)
        .file("jobs/near.yml", &job("", "true"))
        .file("jobs/here.yml", &job("zone: us\n", "true"));
    let (scheduler, us) = (scheduler(&project), worker(&project, &["--zone", "us"]));
    for job in ["far", "near", "here"] {
        project.ok(&["jobs", "trigger", job, "--ds", "2026-01-01"]);
    }
    until("the others", || (successes(&project, "near") == 1 && successes(&project, "here") == 1).then_some(()));
    let why = until("it is ready", || {
        let why = project.json(&["why", "far", "--ds", "2026-01-01"]);
        (why["reason"] == "no_worker").then_some(why)
    });
    assert_eq!(why["text"], "has all it needs, and there is no live worker of zone eu for pool default");
    assert_eq!(why["next"], "headworks worker --zone eu, without --pools or with all pools of its tasks");
    let doctor = project.json_of_any(&["doctor"]);
    let processes = doctor["findings"].as_array().unwrap().iter().find(|f| f["check"] == "processes").unwrap();
    assert!(processes["message"].as_str().unwrap().contains(" worker in zone us"), "{processes}");
    // A command goes by the setting.
    let refused = project.run(&["run", "far", "--ds", "2026-01-01"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("job `far` is carried out in zone `eu` only"), "{refused:?}");
    let eu = worker(&project, &["--zone", "eu"]);
    until("it is done there", || (successes(&project, "far") == 1).then_some(()));
    for served in [scheduler, us, eu] {
        served.stop();
    }
    let mut there = project.command(&["run", "far", "--ds", "2026-01-02", "-q"]);
    let there = outcome(there.env("HEADWORKS__EXECUTION__ZONE", "eu").spawn().unwrap());
    assert_eq!(there.code, 0, "{there:?}");
}

#[test]
fn a_worker_takes_runs_of_its_pools_only() {
    let two = "owner: tests\ntasks:\n  a: {type: shell, command: 'true', pool: etl}\n  b: {type: shell, command: 'true', pool: gpu}\n";
    let project = on_postgres("[pools]\netl = 1\ngpu = 1\n")
        .file("jobs/plain.yml", &job("", "true"))
        .file("jobs/etl.yml", &job("pool: etl\n", "true"))
        .file("jobs/two.yml", two);
    let scheduler = scheduler(&project);
    let wrong = project.run(&["worker", "--pools", "elt"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.stderr.contains("did you mean etl?"), "{wrong:?}");
    let first = worker(&project, &["--pools", "etl"]);
    for job in ["plain", "two", "etl"] {
        project.ok(&["jobs", "trigger", job, "--ds", "2026-01-01"]);
    }
    until("the run of its pool", || (successes(&project, "etl") == 1).then_some(()));
    for job in ["plain", "two"] {
        until("it is ready", || {
            (project.json(&["why", job, "--ds", "2026-01-01"])["reason"] == "no_worker").then_some(())
        });
    }
    let second = worker(&project, &["--pools", "default,gpu,etl"]);
    until("the others", || (successes(&project, "plain") == 1 && successes(&project, "two") == 1).then_some(()));
    for served in [scheduler, first, second] {
        served.stop();
    }
}

#[test]
fn a_skipped_tick_stays_skipped_and_can_be_run() {
    let wait = "while [ ! -e go ]; do sleep 0.05; done";
    let start = days_ago(1);
    let skipping = job(&format!("schedule: '@hourly'\ncatchup: all\noverlap: skip\nstart: {start}\n"), wait);
    let project = project("").file("jobs/skipping.yml", &skipping);
    let skipped = |project: &Project| states(project, "skipping").iter().filter(|state| *state == "skipped").count();
    let up = Serving::start(project.command(&UP));
    until("the ticks behind the first", || (skipped(&project) >= 23).then_some(()));
    project.write("go", "");
    until("the first", || (successes(&project, "skipping") == 1).then_some(()));
    let said = up.stop();
    assert!(!said.contains("failed") && !said.contains("skipped"), "{said}");
    let before = project.json(&["runs", "list", "--state", "skipped", "--limit", "1000"]);
    let run = &before["runs"].as_array().unwrap()[0];
    let message = run["failure"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("of ds={start} was not over yet")), "{message}");
    // A restart asks about no tick again.
    let up = Serving::start(project.command(&UP));
    project.write("jobs/marker.yml", &job("schedule: '@daily'\n", "true"));
    until("the marker", || (successes(&project, "marker") == 1).then_some(()));
    let after = project.json(&["runs", "list", "--state", "skipped", "--limit", "1000"]);
    let ids = |runs: &serde_json::Value| -> Vec<String> {
        runs["runs"].as_array().unwrap().iter().map(|run| run["run_id"].to_string()).collect()
    };
    assert_eq!(ids(&before), ids(&after));
    project.ok(&["runs", "clear", run["run_id"].as_str().unwrap()]);
    until("the skipped one", || (successes(&project, "skipping") >= 2).then_some(()));
    up.stop();
    project.ok(&["backfill", "skipping", "--from", &start, "--to", &start]);
    let of_day = project.json(&["runs", "list", "--job", "skipping", "--ds", &start, "--limit", "1000"]);
    assert!(of_day["runs"].as_array().unwrap().iter().all(|run| run["state"] == "success"), "{of_day}");
}
