//! What `up`, `scheduler` and `worker` take to notice things, and while there is nothing to do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use headworks_testkit::{PostgresOptions, TempPostgres};

use super::row;
use crate::measure::{self, ms, percentile, wait_until};

const TRIGGERS: u32 = 15;
const IDLE: Duration = Duration::from_secs(20);
const DEATHS: u32 = 3;
const BLOCKED: u32 = 10_000;

/// Writes down when it began, in nanoseconds since 1970.
const STAMP: &str = "date +%s%N >> begun";

pub(super) fn run(scratch: &Path) -> Result<()> {
    in_one_process(scratch)?;
    own_child(scratch)?;
    let postgres = TempPostgres::start_with(PostgresOptions { fsync: true, ..PostgresOptions::default() })?;
    through_postgres(scratch, &postgres)?;
    idle(scratch, &postgres)?;
    new_file(scratch)?;
    dead_worker(scratch, &postgres)?;
    blocked(scratch)
}

/// A project whose processes end with it.
pub(super) struct Site {
    root: PathBuf,
    processes: Vec<Child>,
}

impl Site {
    pub(super) fn new(scratch: &Path, name: &str, url: Option<&str>) -> Result<Self> {
        let root = scratch.join(name);
        let metadata = url.map(|url| format!("[metadata]\nurl = \"{url}\"\n")).unwrap_or_default();
        fs::create_dir_all(root.join("jobs"))?;
        fs::write(root.join("headworks.toml"), format!("[project]\nname = \"bench\"\n{metadata}"))?;
        Ok(Self { root, processes: Vec::new() })
    }

    pub(super) fn job(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.root.join("jobs").join(name), text)?)
    }

    /// A job of one command that nothing starts by itself.
    fn command(&self, name: &str, command: &str, more: &str) -> Result<()> {
        self.job(
            &format!("{name}.yml"),
            &format!("{more}tasks:\n  t: {{type: shell, command: '{command}', retries: {{times: 0}}}}\n"),
        )
    }

    pub(super) fn headworks(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(measure::headworks()?);
        command.current_dir(&self.root).args(args).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }

    fn done(&self, args: &[&str]) -> Result<()> {
        if !self.headworks(args)?.status()?.success() {
            bail!("headworks {args:?} failed");
        }
        Ok(())
    }

    /// Starts a process that serves; the id of its process.
    pub(super) fn serve(&mut self, args: &[&str]) -> Result<u32> {
        let args = [args, &["--listen", "127.0.0.1:0"]].concat();
        self.processes.push(self.headworks(&args)?.spawn()?);
        Ok(self.processes.last().map_or(0, Child::id))
    }

    /// When the commands of a file began, in nanoseconds.
    fn begun(&self) -> Vec<u128> {
        let text = fs::read_to_string(self.root.join("begun")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Waits until so many commands have begun; when the last of them did.
    fn wait_begun(&self, count: usize) -> Result<u128> {
        wait_until("a command begins", || Ok(self.begun().get(count - 1).copied()))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for process in &mut self.processes {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a benchmark reads the clock, and commands read the same one")]
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

fn since(from: u128, to: u128) -> Duration {
    Duration::from_nanos(u64::try_from(to.saturating_sub(from)).unwrap_or(u64::MAX))
}

fn day(n: u32) -> String {
    format!("2026-{:02}-{:02}", 1 + n / 28, 1 + n % 28)
}

/// `headworks run` in a process that is started for it.
fn in_one_process(scratch: &Path) -> Result<()> {
    let site = Site::new(scratch, "trigger", None)?;
    site.command("t", STAMP, "")?;
    let mut waits = Vec::new();
    for n in 0..TRIGGERS {
        let asked = now();
        site.done(&["run", "t", "--ds", &day(n)])?;
        waits.push(since(asked, site.wait_begun(n as usize + 1)?));
    }
    let what = "trigger to first task running, in one process (`run`, from its start)";
    row(what, &format!("p50 {}", ms(percentile(&mut waits, 0.5))), "50 ms", "0.67 s quiet, 1 s busy");
    Ok(())
}

/// `headworks jobs trigger` in one process, the work in another.
fn through_postgres(scratch: &Path, postgres: &TempPostgres) -> Result<()> {
    let mut site = Site::new(scratch, "away", Some(&postgres.create_database()?))?;
    site.command("t", STAMP, "")?;
    site.serve(&["up"])?;
    let mut waits = Vec::new();
    for n in 0..TRIGGERS {
        let asked = now();
        site.done(&["jobs", "trigger", "t", "--ds", &day(n)])?;
        waits.push(since(asked, site.wait_begun(n as usize + 1)?));
    }
    // The first is asked for while the server starts.
    let mut waits = waits.split_off(1);
    let what = "trigger to first task running, through PostgreSQL to another process (from the command's start)";
    row(what, &format!("p50 {}", ms(percentile(&mut waits, 0.5))), "150 ms", "0.67 s quiet, 1 s busy");
    Ok(())
}

/// A command that kills itself, until Headworks has written its end down and has ended itself.
fn own_child(scratch: &Path) -> Result<()> {
    let site = Site::new(scratch, "child", None)?;
    site.command("t", &format!("{STAMP}; kill -9 $$"), "")?;
    let mut waits = Vec::new();
    for n in 0..TRIGGERS {
        let failed = site.headworks(&["run", "t", "--ds", &day(n)])?.status()?;
        let ended = now();
        if failed.success() {
            bail!("a command that killed itself counts as a success");
        }
        waits.push(since(site.wait_begun(n as usize + 1)?, ended));
    }
    row("own child's death noticed, run ended", &format!("p50 {}", ms(percentile(&mut waits, 0.5))), "1 s", "-");
    Ok(())
}

/// Nothing to do, over both kinds of database.
fn idle(scratch: &Path, postgres: &TempPostgres) -> Result<()> {
    let url = postgres.create_database()?;
    for (what, url) in [("SQLite", None), ("PostgreSQL", Some(url.as_str()))] {
        let mut site = Site::new(scratch, &format!("idle-{what}"), url)?;
        site.command("t", STAMP, "schedule: '@hourly'\n")?;
        let up = site.serve(&["up"])?;
        site.wait_begun(1)?;
        measure::pass(IDLE / 4);
        let cpu = measure::cpu_of(up);
        measure::pass(IDLE);
        let share = (measure::cpu_of(up) - cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        let mut ours = format!("{} MiB, {share:.2} % of a core", measure::pss(up)? >> 20);
        if let Some(url) = url {
            let database = url.rsplit('/').next().unwrap_or_default();
            let open =
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
            ours += &format!(", {} connections", postgres.psql(database, open)?);
        }
        let goal = "100 MiB, 1 %, 4 connections";
        row(&format!("idle, {what}"), &ours, goal, "930-1,880 MiB, 6-10 % of a core, 4-8 connections");
    }
    Ok(())
}

/// A file is saved: until the first run of its schedule has begun.
fn new_file(scratch: &Path) -> Result<()> {
    let mut site = Site::new(scratch, "file", None)?;
    site.serve(&["up"])?;
    let mut waits = Vec::new();
    measure::pass(Duration::from_secs(2));
    for n in 0..5 {
        let saved = now();
        site.command(&format!("t{n}"), STAMP, "schedule: '@daily'\n")?;
        waits.push(since(saved, site.wait_begun(n + 1)?));
    }
    let ours = format!("p50 {}", ms(percentile(&mut waits, 0.5)));
    row("new file listed, and its first run at work", &ours, "1 s", "188-265 s");
    Ok(())
}

/// A worker is killed with its command: until another has begun it again.
fn dead_worker(scratch: &Path, postgres: &TempPostgres) -> Result<()> {
    // A process number space of its own makes it a worker of another machine: only its lease tells.
    let elsewhere = ["unshare", "--pid", "--fork", "--kill-child"];
    let can_be_elsewhere = Command::new(elsewhere[0]).args(&elsewhere[1..]).arg("true").status()?.success();
    for (what, away) in [("on the same machine", false), ("on another machine, by its lease", true)] {
        if away && !can_be_elsewhere {
            row(&format!("dead worker noticed, {what}"), "not measured: unshare needs root", "15 s", "302 s");
            continue;
        }
        let mut waits = Vec::new();
        for n in 0..DEATHS {
            let mut site = Site::new(scratch, &format!("dead-{away}-{n}"), Some(&postgres.create_database()?))?;
            site.command("t", &format!("{STAMP}; sleep 300"), "")?;
            site.serve(&["scheduler"])?;
            let mut worker = site.headworks(&["worker", "--listen", "127.0.0.1:0"])?;
            let mut first = if away {
                let mut command = Command::new(elsewhere[0]);
                command.current_dir(&site.root).args(&elsewhere[1..]).arg(worker.get_program()).args(worker.get_args());
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?
            } else {
                worker.spawn()?
            };
            site.done(&["jobs", "trigger", "t", "--ds", "2026-01-01"])?;
            site.wait_begun(1)?;
            site.serve(&["worker"])?;
            // Anywhere between two renewals.
            measure::pass(Duration::from_millis(2_000 + u64::from(n) * 1_000));
            let killed = now();
            first.kill()?;
            first.wait()?;
            waits.push(since(killed, site.wait_begun(2)?));
        }
        let (middle, most) = (percentile(&mut waits, 0.5), percentile(&mut waits, 1.0));
        let ours = format!("p50 {:.1} s, at most {:.1} s", middle.as_secs_f64(), most.as_secs_f64());
        row(&format!("dead worker noticed, {what}"), &ours, "15 s", "302 s");
    }
    Ok(())
}

/// Ten thousand runs that wait for what does not come.
fn blocked(scratch: &Path) -> Result<()> {
    let mut site = Site::new(scratch, "blocked", None)?;
    site.job("never.sql", "/* job\nowner: bench\ngrain: hour\nstart: 2024-01-01\n*/\nSELECT 1 AS n\n")?;
    let waits = "schedule: '@hourly'\ncatchup: all\nstart: 2024-01-01\nend: 2025-02-19\n";
    site.job("waits.sql", &format!("/* job\nowner: bench\n{waits}*/\nSELECT max(n) AS n FROM wait::never\n"))?;
    let up = site.serve(&["up"])?;
    let list = || -> Result<usize> {
        let output = site_json(&site, &["runs", "list", "--job", "waits", "--limit", "20000"])?;
        Ok(output["runs"].as_array().map_or(0, Vec::len))
    };
    wait_until("ten thousand runs wait", || Ok((list()? >= BLOCKED as usize - 48).then_some(())))?;
    measure::pass(IDLE / 2);
    let cpu = measure::cpu_of(up);
    measure::pass(IDLE);
    let share = (measure::cpu_of(up) - cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let ours = format!("{share:.2} % of a core, {} MiB", measure::pss(up)? >> 20);
    row(&format!("{BLOCKED} blocked tasks: work while nothing happens"), &ours, "nothing per tick", "every loop");
    Ok(())
}

fn site_json(site: &Site, args: &[&str]) -> Result<serde_json::Value> {
    let output = site.headworks(&[args, &["--json"]].concat())?.stdout(Stdio::piped()).output()?;
    serde_json::from_slice(&output.stdout).context("headworks printed something that is not JSON")
}
