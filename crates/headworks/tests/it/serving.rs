//! `headworks up`, `scheduler` and `worker` as processes: ticks, changed files, kills, several at once.

use headworks_testkit::TempPostgres;

use crate::{
    bad_input::sqlite,
    crew::{Serving, days_ago, until},
    project::{NUMBERS, Project},
};

/// The runs of a job by their state.
fn runs(project: &Project, job: &str) -> Vec<(String, String, u64)> {
    let runs = project.json(&["runs", "list", "--job", job, "--limit", "10000"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let rows = runs["runs"].as_array().unwrap().iter();
    rows.map(|run| (text(&run["interval_start"]), text(&run["state"]), run["attempt"].as_u64().unwrap())).collect()
}

pub(crate) fn successes(project: &Project, job: &str) -> usize {
    runs(project, job).iter().filter(|(_, state, _)| state == "success").count()
}

pub(crate) const UP: [&str; 3] = ["up", "--listen", "127.0.0.1:0"];

fn hourly(start: &str) -> String {
    format!("/* job\nowner: tests\nschedule: '@hourly'\ncatchup: all\nstart: {start}\n*/\nSELECT 1 AS n\n")
}

#[test]
fn ticks_that_were_missed_run_and_each_once() {
    let start = days_ago(1);
    let waiting = "/* job\nowner: tests\nschedule: after waits\ngrain: hour\ncatchup: all\n";
    let project = Project::empty()
        .file("jobs/hourly.sql", &hourly(&start))
        .file("jobs/after.sql", &format!("{waiting}start: {start}\n*/\nSELECT max(n) + 1 AS m FROM wait::hourly\n"));
    let up = Serving::start(project.command(&UP));
    until("a day of hours", || (successes(&project, "after") >= 24).then_some(()));
    let (mut first, mut second) = (runs(&project, "hourly"), runs(&project, "after"));
    // Another start finds nothing to do.
    up.stop();
    let up = Serving::start(project.command(&UP));
    project.write("jobs/marker.sql", NUMBERS);
    until("the marker", || (successes(&project, "marker") == 1).then_some(()));
    up.stop();
    for (job, before) in [("hourly", &mut first), ("after", &mut second)] {
        let mut now = runs(&project, job);
        now.retain(|run| before.iter().any(|known| known.0 == run.0));
        assert_eq!(now.len(), before.len(), "{job} ran twice");
        before.sort();
        before.dedup_by(|a, b| a.0 == b.0);
        assert_eq!(now.len(), before.len(), "{job} has two runs of one hour");
    }
}

#[test]
fn a_saved_file_counts_and_a_broken_one_keeps_its_last_good_version() {
    let project = Project::numbers().file("jobs/sound.sql", NUMBERS);
    let up = Serving::start(project.command(&UP));
    until("the first runs", || (successes(&project, "numbers") == 1).then_some(()));
    project.write("jobs/numbers.sql", "/* job\nschedule: '@daily'\n*/\nSELEC oops");
    project.write("jobs/late.sql", NUMBERS);
    until("the new job", || (successes(&project, "late") == 1).then_some(()));
    let said = up.stop();
    assert!(said.contains("numbers: its last version without errors goes on"), "{said}");
    assert!(said.contains("late: new"), "{said}");
    // After a restart too.
    let up = Serving::start(project.command(&UP));
    project.write("jobs/later.sql", NUMBERS);
    until("the newer job", || (successes(&project, "later") == 1).then_some(()));
    let said = up.stop();
    assert!(said.contains("4 jobs with a schedule"), "{said}");
}

#[test]
fn a_schedule_is_set_back_once_nobody_goes_by_it() {
    let start = days_ago(1);
    let project = Project::empty().file("jobs/hourly.sql", &hourly(&start));
    let up = Serving::start(project.command(&UP));
    until("a day of hours", || (successes(&project, "hourly") >= 24).then_some(()));
    let refused = project.run(&["jobs", "reset", "hourly", "--to", &start, "--yes"]);
    assert!(refused.code == 2 && refused.stderr.contains("looks after the schedules"), "{refused:?}");
    up.stop();
    let all = successes(&project, "hourly");
    // A clock was a year ahead, and a tick has no run.
    let wrong = "update hw_job set cursor = cursor + 31536000000000;
        delete from hw_run where interval_start = (select max(interval_start) from hw_run)";
    sqlite(&project, ".headworks/metadata.db", wrong);
    let reset = |more: &[&str]| project.json(&[&["jobs", "reset", "hourly", "--to", &start][..], more].concat());
    let told = reset(&["--dry-run"]);
    assert!(told["reset"] == false && told["ticks"].as_u64() >= Some(24) && told["runs"] == 1, "{told}");
    assert_eq!(reset(&["--yes"])["reset"], true);
    let on = project.run(&["jobs", "reset", "hourly", "--to", "2099-01-01"]);
    assert!(on.code == 2 && on.stderr.contains("is not before"), "{on:?}");
    let up = Serving::start(project.command(&UP));
    until("the tick's own run", || (successes(&project, "hourly") >= all).then_some(()));
    up.stop();
}

#[test]
fn commands_work_beside_it_and_a_second_one_is_refused() {
    let project = Project::numbers();
    let up = Serving::start(project.command(&UP));
    until("the first run", || (successes(&project, "numbers") == 1).then_some(()));
    project.ok(&["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-05"]);
    assert_eq!(project.ok(&["sql", "select count(*) as n from numbers_latest", "--format", "csv"]), "n\n3\n");
    let second = project.run(&UP);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains("PostgreSQL"), "{second:?}");
    up.stop();
}

#[test]
fn health_and_metrics_are_answered() {
    let project = Project::numbers();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let up = Serving::start(project.command(&["up", "--listen", &format!("127.0.0.1:{port}")]));
    let get = |path: &str| headworks_testkit::http_get(port, path).ok();
    until("the first run", || (successes(&project, "numbers") == 1).then_some(()));
    let ready = until("an answer", || get("/readyz"));
    assert_eq!(ready, (200, "ready\n".to_owned()));
    let metrics = until("the run's count", || {
        get("/metrics")
            .map(|(_, text)| text)
            .filter(|text| text.contains("headworks_flow_runs_ended_total{state=\"success\"} 1"))
    });
    assert!(metrics.contains("# HELP headworks_flow_attempt_seconds"), "{metrics}");
    up.stop();
}

#[test]
fn a_limit_that_was_raised_counts_for_runs_that_were_held_back() {
    let job = |max: u32| {
        format!(
            "max_active_runs: {max}\ngrain: day\ntasks:\n  t: {{type: shell, command: \"echo $HEADWORKS_DS >> told; while [ ! -e \
             done-$HEADWORKS_DS ]; do sleep 0.05; done\"}}\n"
        )
    };
    let project = Project::empty().file("jobs/slow.yml", &job(1));
    let told = || project.read("told").unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    let up = Serving::start_into(project.command(&UP), &project.path().join("up.log"));
    let range = ["--from", "2026-01-01", "--to", "2026-01-05", "--detach", "--max-active", "4"];
    project.ok(&[&["backfill", "slow"][..], &range].concat());
    until("the first run", || (told().len() == 1).then_some(()));
    until("the others", || (runs(&project, "slow").len() == 4).then_some(()));
    project.write("jobs/slow.yml", &job(4));
    let is_read = || project.read("up.log").unwrap_or_default().contains("slow: changed");
    until("the new limit", || is_read().then_some(()));
    project.write(&format!("done-{}", told()[0]), "");
    until("all others at once", || (told().len() == 5).then_some(()));
    up.kill();
}

/// Writes what it is and what it was given, and never ends unless `done` is there.
fn writes(word: &str) -> String {
    format!(
        "params: {{who: nobody}}\ntasks:\n  say:\n    type: shell\n    command: |\n      echo \"{word} {{{{ params.who }}}}\" >> told\n      \
         while [ ! -e done ]; do sleep 0.05; done\n"
    )
}

#[test]
fn a_run_that_is_taken_over_keeps_its_version_and_its_parameters() {
    let project = Project::empty().file("jobs/say.yml", &writes("first"));
    let told = || project.read("told").unwrap_or_default();
    let up = Serving::start(project.command(&UP));
    project.ok(&["jobs", "trigger", "say", "--param", "who=\"a b\""]);
    until("the first attempt", || (told() == "first a b\n").then_some(()));
    up.kill();
    project.write("jobs/say.yml", &writes("second"));
    let up = Serving::start(project.command(&UP));
    until("the second attempt", || (told() == "first a b\nfirst a b\n").then_some(()));
    project.write("done", "");
    until("its end", || (successes(&project, "say") == 1).then_some(()));
    let shown = project.json(&["runs", "list", "--job", "say"]);
    assert_eq!(shown["runs"][0]["params"], serde_json::json!({"who": "a b"}));
    let shown = project.json(&["runs", "show", shown["runs"][0]["run_id"].as_str().unwrap()]);
    assert_eq!(shown["changed_since"], serde_json::json!(["tasks"]));
    // A new run is one of the newest version, and a wish says its own parameters; a run that is cleared has its own again.
    project.ok(&["jobs", "trigger", "say", "--reprocess"]);
    until("a new run", || told().ends_with("second nobody\n").then_some(()));
    until("its end", || (successes(&project, "say") == 2).then_some(()));
    let first = shown["run_id"].as_str().unwrap();
    project.ok(&["runs", "clear", first]);
    until("the cleared run", || told().ends_with("second a b\n").then_some(()));
    up.stop();
}

/// A scheduler and workers over one PostgreSQL; a worker dies on the way.
#[test]
fn workers_over_postgres_share_the_runs_and_one_may_die() {
    let project = Project::empty();
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    project.write("headworks.toml", &format!("[project]\nname = \"test\"\n\n[metadata]\nurl = \"{url}\"\n"));
    project.write("jobs/hourly.sql", &hourly(&days_ago(4)));
    let worker = || Serving::start(project.command(&["worker", "--tasks", "2", "--listen", "127.0.0.1:0"]));
    let (first, second) = (worker(), worker());
    let scheduler = Serving::start(project.command(&["scheduler", "--listen", "127.0.0.1:0"]));
    until("some runs", || (successes(&project, "hourly") >= 10).then_some(()));
    first.kill();
    until("four days of hours", || (successes(&project, "hourly") >= 96).then_some(()));
    let runs = project.json(&["runs", "list", "--job", "hourly", "--limit", "10000"]);
    let mut owners: Vec<&str> =
        runs["runs"].as_array().unwrap().iter().filter_map(|run| run["process"].as_str()).collect();
    owners.sort_unstable();
    owners.dedup();
    assert!(owners.len() >= 2, "one process did all: {owners:?}");
    scheduler.stop();
    second.stop();
    let found = project.ok(&[
        "sql",
        "select count(*) as n, count(distinct ds || ' ' || hour) as h from hourly",
        "--format",
        "csv",
    ]);
    let counts: Vec<&str> = found.lines().nth(1).unwrap().split(',').collect();
    assert_eq!(counts[0], counts[1], "an hour is doubled");
}
