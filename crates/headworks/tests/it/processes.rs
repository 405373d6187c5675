//! Commands that misbehave: none of them may cost memory, fill the disk, or outlive its task.

use std::{
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use crate::{
    crew::lives,
    project::{Outcome, Project, outcome},
};

/// A project with one job of one shell task.
fn shell(command: &str, more: &str) -> Project {
    let command = serde_json::to_string(command).unwrap();
    let text = format!("retries: {{times: 0}}\ntasks:\n  t: {{type: shell, command: {command}{more}}}\n");
    Project::empty().file("jobs/j.yml", &text)
}

fn start(project: &Project, settings: &[(&str, &str)]) -> Child {
    let mut command = project.command(&["run", "j", "--ds", "2026-01-01", "-q"]);
    command.envs(settings.iter().copied()).spawn().unwrap()
}

fn run(project: &Project, settings: &[(&str, &str)]) -> Outcome {
    outcome(start(project, settings))
}

/// The run's log as `runs logs` prints it.
fn log(project: &Project) -> String {
    let runs = project.json(&["runs", "list"]);
    project.ok(&["runs", "logs", runs["runs"][0]["run_id"].as_str().unwrap()])
}

fn state(project: &Project) -> String {
    project.json(&["runs", "list"])["runs"][0]["state"].as_str().unwrap().to_owned()
}

/// Waits until something is so; a test that waits too long fails.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The number that a command wrote into a file.
fn pid_in(path: &Path) -> u32 {
    let mut pid = None;
    until("the command wrote its number", || {
        pid = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        pid.is_some()
    });
    pid.unwrap()
}

#[test]
fn a_gigabyte_of_output_costs_neither_memory_nor_disk() {
    let project = shell("head -c 1000000000 /dev/zero | tr '\\0' 'x' | fold -w 100; echo; echo the end", "");
    let mut child = start(&project, &[("HEADWORKS__EXECUTION__LOG_BYTES_MAX", "1MiB")]);
    let mut peak_kib = 0;
    let status = format!("/proc/{}/status", child.id());
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("RssAnon")).unwrap_or("0 0 kB");
        peak_kib = peak_kib.max(line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let outcome = outcome(child);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(peak_kib < 200 << 10, "{peak_kib} KiB");
    let logs: u64 = project.files(".headworks/logs").iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(logs < 2 << 20, "{logs} bytes");
    let log = log(&project);
    assert!(log.contains("--- cut: the log has reached its 1MiB"), "{}", &log[..500]);
    let end = &log[log.len() - 500..];
    assert!(end.contains("the end") && end.contains(" bytes were left out ---"), "{end}");
}

#[test]
fn a_command_that_ignores_the_signal_is_killed() {
    let command = "trap '' TERM; echo $$ > pid; echo started; while :; do sleep 0.1; done";
    let project = shell(command, ", timeout: 500ms");
    let begun = Instant::now();
    let outcome = run(&project, &[("HEADWORKS__EXECUTION__KILL_AFTER", "500ms")]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("task `t` took longer than its timeout of 0.5 s"), "{outcome:?}");
    assert!(outcome.stderr.contains("its last lines were\n  started"), "{outcome:?}");
    assert!(!lives(pid_in(&project.path().join("pid"))));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    // In a session of its own, with its output elsewhere: neither the group nor the pipe leads to it.
    let daemon = "setsid sh -c 'echo $$ > pid; exec sleep 1000' > /dev/null 2>&1 < /dev/null &";
    let project = shell(&format!("{daemon} while [ ! -s pid ]; do sleep 0.05; done; echo done"), "");
    let outcome = run(&project, &[]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!lives(pid_in(&project.path().join("pid"))));
    assert!(log(&project).contains("warning: it left a process running, which was stopped"), "{}", log(&project));
}

#[test]
fn too_much_memory_is_told_with_its_numbers() {
    let script = "import time\nb = bytearray(400_000_000)\nfor n in range(0, len(b), 4096): b[n] = 1\ntime.sleep(60)\n";
    let script = serde_json::to_string(script).unwrap();
    let project = Project::empty().file(
        "jobs/j.yml",
        &format!("tasks:\n  t: {{type: python, memory_max: 100MiB, script: {script}, retries: {{times: 0}}}}\n"),
    );
    let outcome = run(&project, &[]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("more than its `memory_max` of 100 MiB, and was killed"), "{outcome:?}");
}

#[test]
fn a_killed_headworks_leaves_no_process() {
    let command = "trap '' TERM; (trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > daemon; while :; do sleep 0.1; done' &); \
        echo $$ > pid; while :; do sleep 0.1; done";
    let project = shell(command, "");
    let mut child = start(&project, &[]);
    let pids = [pid_in(&project.path().join("pid")), pid_in(&project.path().join("daemon"))];
    assert!(pids.iter().all(|pid| lives(*pid)));
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    until("the command is gone", || !pids.iter().any(|pid| lives(*pid)));
    assert!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    until("its folder is gone", || project.files(".headworks/work").is_empty());
    // The next command takes the run over.
    project.write("jobs/j.yml", "tasks:\n  t: {type: shell, command: 'true'}\n");
    assert_eq!(run(&project, &[]).code, 0);
    assert_eq!(state(&project), "success");
}

#[test]
fn a_clean_stop_ends_the_command_first() {
    let project = shell("trap 'echo bye > bye; exit 0' TERM; echo $$ > pid; while :; do sleep 0.1; done", "");
    let child = start(&project, &[]);
    let pid = pid_in(&project.path().join("pid"));
    let terminated = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(terminated.success());
    let outcome = outcome(child);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(!lives(pid), "headworks waits for its children");
    assert!(project.path().join("bye").exists(), "it was asked politely");
    assert_eq!(state(&project), "cancelled");
}

#[test]
fn secrets_of_our_environment_stay_with_us() {
    let project = shell("env | sort; pwd", ", env: {MINE: 'a ${env:TOKEN}', DAY: '{{ ds }}'}").file(
        "headworks.toml",
        "[project]\nname = \"test\"\n[execution]\npass_env = [\"PASSED\", \"HEADWORKS__VARS__X\"]\n",
    );
    let settings =
        [("TOKEN", "t0p"), ("SECRET", "s3cret"), ("PASSED", "yes"), ("HEADWORKS__VARS__X", "1"), ("TZ", "UTC")];
    let outcome = run(&project, &settings);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let log = log(&project);
    let lines: Vec<&str> = log.lines().filter_map(|line| Some(line.split_once("Z ")?.1)).collect();
    for expected in [
        "MINE=a t0p",
        "DAY=2026-01-01",
        "PASSED=yes",
        "TZ=UTC",
        "HEADWORKS_DS=2026-01-01",
        "HEADWORKS_JOB=j",
        "HEADWORKS_TASK=t",
        "HEADWORKS_ATTEMPT=1",
        "HEADWORKS_PARAMS={}",
        "HEADWORKS_INTERVAL_START=2026-01-01T00:00:00+00:00",
        "HEADWORKS_INTERVAL_END=2026-01-02T00:00:00+00:00",
    ] {
        assert!(lines.contains(&expected), "{expected}: {log}");
    }
    for secret in ["SECRET", "TOKEN=", "HEADWORKS__"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    assert_eq!(lines[lines.len() - 2], project.path().canonicalize().unwrap().display().to_string(), "{log}");
}
