//! No-op tasks without end: four workers over one PostgreSQL that waits for its disk, beside what pgbench makes of the same.
//!
//! On a machine that others work on the CPU seconds tell more than the rate.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use headworks_testkit::{PostgresOptions, TempPostgres};

use super::served::Site;
use crate::measure::{cpu_of, cpu_of_family, load, pass, wait_until};

const WORKERS: usize = 4;
const DAYS: usize = 500;
const TASKS_PER_RUN: usize = 20;
const PGBENCH_SECS: u32 = 10;

pub(crate) fn run(scratch: &Path) -> Result<()> {
    let postgres = TempPostgres::start_with(PostgresOptions { fsync: true, ..PostgresOptions::default() })?;
    let reference = postgres.pgbench(WORKERS, PGBENCH_SECS)?;
    let url = postgres.create_database()?;
    let database = url.rsplit('/').next().unwrap_or_default().to_owned();
    let mut site = Site::new(scratch, "sustained", Some(&url))?;
    let mut text = "schedule: '@daily'\ncatchup: all\nstart: 2024-01-01\nend: 2025-05-14\ntasks:\n".to_owned();
    for n in 0..TASKS_PER_RUN {
        text += &format!("  t{n}: {{type: sql, sql: 'select 1 as n'}}\n");
    }
    let mut ours = Vec::new();
    for _ in 0..WORKERS {
        ours.push(site.serve(&["worker"])?);
    }
    site.job("noop.yml", &text)?;
    let server = server_of(&postgres)?;
    let (load_before, server_before) = (load(), cpu_of_family(server)?);
    ours.push(site.serve(&["scheduler"])?);
    let done = "select count(*) from hw_attempt a where a.state = 'success'".replace("hw_", "headworks.hw_");
    let tasks = DAYS * TASKS_PER_RUN;
    wait_until("all tasks end", || {
        // Seldom, for each look takes from what is measured.
        pass(Duration::from_millis(500));
        Ok((number(&postgres, &database, &done)? >= tasks as f64).then_some(()))
    })?;
    let cpu: Duration = ours.iter().map(|process| cpu_of(*process)).sum();
    let server_cpu = cpu_of_family(server)?.saturating_sub(server_before);
    let took = "select (max(finished_at) - min(started_at)) / 1e6 from headworks.hw_attempt";
    let secs = number(&postgres, &database, took)?;
    let workers = "select count(distinct owner) from headworks.hw_run";
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let rate = tasks as f64 / secs;
    println!(
        "{tasks} no-op tasks by {:.0} workers on PostgreSQL: {rate:.0} a second (goal: 1,000), {secs:.1} s",
        number(&postgres, &database, workers)?
    );
    println!(
        "CPU: {:.1} s of our {} processes, {:.1} s of PostgreSQL",
        cpu.as_secs_f64(),
        ours.len(),
        server_cpu.as_secs_f64()
    );
    println!("load: {load_before} before, {} after; pgbench: {reference:.0} transactions a second", load());
    Ok(())
}

/// The process of the server.
fn server_of(postgres: &TempPostgres) -> Result<u32> {
    let folder = postgres.psql("postgres", "show data_directory")?;
    let told = fs::read_to_string(Path::new(&folder).join("postmaster.pid")).context("read the server's process")?;
    told.lines().next().and_then(|pid| pid.parse().ok()).context("the server tells no process")
}

fn number(postgres: &TempPostgres, database: &str, sql: &str) -> Result<f64> {
    // The tables are there once the first process is.
    let there = postgres.psql(database, "select to_regclass('headworks.hw_attempt') is not null")?;
    if there != "t" {
        return Ok(0.0);
    }
    postgres.psql(database, sql)?.parse().with_context(|| format!("{sql} gave no number"))
}
