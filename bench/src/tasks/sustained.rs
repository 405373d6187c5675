//! No-op tasks without end: four workers over one PostgreSQL that waits for its disk, beside what pgbench makes of the same.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use headworks_testkit::{PostgresOptions, TempPostgres};

use super::{row, served::Site};
use crate::measure::{pass, wait_until};

const WORKERS: usize = 4;
const DAYS: usize = 500;
const TASKS_PER_RUN: usize = 20;
const PGBENCH_SECS: u32 = 10;

pub(super) fn run(scratch: &Path) -> Result<()> {
    let postgres = TempPostgres::start_with(PostgresOptions { fsync: true, ..PostgresOptions::default() })?;
    let reference = postgres.pgbench(WORKERS, PGBENCH_SECS)?;
    let url = postgres.create_database()?;
    let database = url.rsplit('/').next().unwrap_or_default().to_owned();
    let mut site = Site::new(scratch, "sustained", Some(&url))?;
    let mut text = "schedule: '@daily'\ncatchup: all\nstart: 2024-01-01\nend: 2025-05-14\ntasks:\n".to_owned();
    for n in 0..TASKS_PER_RUN {
        text += &format!("  t{n}: {{type: sql, sql: 'select 1 as n'}}\n");
    }
    for _ in 0..WORKERS {
        site.serve(&["worker"])?;
    }
    site.job("noop.yml", &text)?;
    site.serve(&["scheduler"])?;
    let done = "select count(*) from hw_attempt a where a.state = 'success'".replace("hw_", "headworks.hw_");
    let tasks = DAYS * TASKS_PER_RUN;
    wait_until("all tasks end", || {
        // Seldom, for each look takes from what is measured.
        pass(Duration::from_millis(500));
        Ok((number(&postgres, &database, &done)? >= tasks as f64).then_some(()))
    })?;
    let took = "select (max(finished_at) - min(started_at)) / 1e6 from headworks.hw_attempt";
    let secs = number(&postgres, &database, took)?;
    let workers = "select count(distinct owner) from headworks.hw_run";
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let rate = tasks as f64 / secs;
    let ours = format!(
        "{rate:.0} a second ({tasks} tasks by {:.0} processes in {secs:.1} s); pgbench: {reference:.0} transactions a second",
        number(&postgres, &database, workers)?
    );
    row("sustained no-op tasks, 4 workers on PostgreSQL", &ours, "1,000 a second", "-");
    Ok(())
}

fn number(postgres: &TempPostgres, database: &str, sql: &str) -> Result<f64> {
    // The tables are there once the first process is.
    let there = postgres.psql(database, "select to_regclass('headworks.hw_attempt') is not null")?;
    if there != "t" {
        return Ok(0.0);
    }
    postgres.psql(database, sql)?.parse().with_context(|| format!("{sql} gave no number"))
}
