//! The demo against its source, by SQL that was written apart from it, and killed at random moments.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use headworks_testkit::{TempPostgres, TempProject, python_path, workspace_root};

fn demo(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headworks"));
    command
        .args(["--quiet", "demo", "--no-serve", "--dir"])
        .arg(dir)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every table of the lake, read by DuckDB, against the production database. `clean` also wants no file that nothing names.
fn verify(dir: &Path, to: &str, clean: bool) {
    let mut check = Command::new(python_path().unwrap());
    check.arg(workspace_root().join("testkit/verify_demo.py")).arg(dir).args(["--to", to]);
    if clean {
        check.arg("--clean");
    }
    let output = check.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Kills the demo so often, at moments that a counter spreads, then lets it end and looks at what there is.
fn killed(to: &str, kills: u64, wait_max: Duration) {
    let project = TempProject::new().unwrap();
    let dir = project.join("demo");
    // The folder and the production database first: they are not what is tested.
    finish(demo(&dir, &["--to", "2013-01-01"]));
    let mut cut_short = 0;
    for kill in 0..kills {
        let mut child: Child = demo(&dir, &["--to", to]).spawn().unwrap();
        // Spread over the whole time by the golden ratio: no two near each other.
        let share = (kill * 618) % 1000;
        std::thread::park_timeout(Duration::from_millis(150) + wait_max * u32::try_from(share).unwrap() / 1000);
        cut_short += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(cut_short > 0, "every demo ended before its kill");
    finish(demo(&dir, &["--to", to]));
    let mut gc = Command::new(env!("CARGO_BIN_EXE_headworks"));
    finish({
        gc.arg("-C").arg(&dir).arg("gc").env("HEADWORKS__RETENTION__ORPHANS", "0s");
        gc
    });
    verify(&dir, to, true);
}

#[test]
fn the_first_days_are_what_the_source_says() {
    let project = TempProject::new().unwrap();
    let dir = project.join("a demo");
    finish(demo(&dir, &["--to", "2013-01-03"]));
    verify(&dir, "2013-01-03", true);
    // Once more: everything is published, and nothing runs.
    let mut again = Command::new(env!("CARGO_BIN_EXE_headworks"));
    let again = again.args(["--json", "demo", "--to", "2013-01-03", "--dir"]).arg(&dir).output().unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(summary["success"], 0, "{summary}");
}

#[test]
fn production_may_be_postgres() {
    let project = TempProject::new().unwrap();
    let dir = project.join("demo");
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    finish(demo(&dir, &["--to", "2013-01-02", "--postgres", &url]));
    verify(&dir, "2013-01-02", false);
}

#[test]
fn kills_lose_and_double_nothing() {
    killed("2013-01-04", 4, Duration::from_secs(3));
}

#[test]
#[ignore = "long: runs the whole year, killed twenty times"]
fn long_twenty_kills_of_the_year() {
    killed("2013-12-31", 20, Duration::from_secs(20));
}
