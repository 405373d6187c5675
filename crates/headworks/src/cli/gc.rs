use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    app::App,
    fail::DONE,
    output::{Align, Table, bytes, count},
    upkeep::{self, Report},
};

/// Remove what retention and orphans allow
///
/// Partitions beyond their table's retention, old versions, files that nothing refers to, runs and logs of long ago. What a
/// running task writes stays, and so do files that a reader or a backup may still need.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks gc --dry-run
  headworks gc --json

Settings: retention.versions, runs, logs, log_bytes_max, orphans, backups; a job's own retention: drops its partitions.

A metadata database that was brought back from a backup does not know what was published since, and those files would look like
orphans: then nothing of the lake is removed until gc --take-over says that this database is the one to go on with.")]
pub(crate) struct Args {
    /// Say what would go and why, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// After a restore: make this metadata database the lake's own, and remove nothing yet
    #[arg(long, conflicts_with = "dry_run")]
    take_over: bool,
}

/// The most removals told one by one on a terminal.
const TOLD_MAX: usize = 200;

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    if args.take_over {
        return take_over(app).await;
    }
    let report = upkeep::run(app, args.dry_run).await?;
    tell(app, &report, args.dry_run)?;
    Ok(ExitCode::from(DONE))
}

async fn take_over(app: &App) -> anyhow::Result<ExitCode> {
    let lake = app.lake().await?;
    app.run_store().await?.leap_fences().await?;
    let epoch = lake.take_over().await?;
    if app.out.json {
        app.out.document(&json!({"epoch": epoch, "data_path": lake.storage().data_path()}))?;
    }
    app.note(format_args!(
        "the lake at {} belongs to this metadata database from now on (epoch {epoch}); headworks gc --dry-run lists what can go",
        lake.storage().data_path()
    ));
    Ok(ExitCode::from(DONE))
}

fn tell(app: &App, report: &Report, dry_run: bool) -> anyhow::Result<()> {
    let Report { removals, runs, logs } = report;
    if app.out.json {
        let logs: Vec<Value> =
            logs.iter().map(|log| json!({"log": log.path, "bytes": log.bytes, "why": log.why})).collect();
        return app.out.document(&json!({
            "dry_run": dry_run,
            "bytes": report.bytes(),
            "removals": removals,
            "runs": {"forgotten": runs.runs, "details": runs.details},
            "logs": logs,
        }));
    }
    let mut table =
        Table::new([("what", Align::Left), ("which", Align::Left), ("bytes", Align::Right), ("why", Align::Left)]);
    for removal in removals.iter().take(TOLD_MAX) {
        table.row([removal.what.to_owned(), removal.name.clone(), bytes(removal.bytes), removal.why.clone()]);
    }
    for (n, which, why) in [
        (runs.runs, "runs", "older than retention.runs, and their interval was run again since"),
        (runs.details, "runs' tasks and attempts", "older than retention.runs; that they were stays known"),
    ] {
        if n > 0 {
            table.row(["run".to_owned(), format!("{} {which}", count(n)), String::new(), why.to_owned()]);
        }
    }
    for (setting, why) in [
        ("retention.logs", "older than retention.logs"),
        ("retention.log_bytes_max", "the oldest of more than retention.log_bytes_max"),
    ] {
        let of: Vec<u64> = logs.iter().filter(|log| log.why == setting).map(|log| log.bytes).collect();
        if !of.is_empty() {
            let which = format!("{} files", count(of.len() as u64));
            table.row(["log".to_owned(), which, bytes(of.iter().sum()), why.to_owned()]);
        }
    }
    if !table.is_empty() {
        app.out.table(&table)?;
    }
    if removals.len() > TOLD_MAX {
        app.note(format_args!("and {} more; --json lists them all", count((removals.len() - TOLD_MAX) as u64)));
    }
    let (n, freed) = (report.count(), bytes(report.bytes()));
    app.note(match (n, dry_run) {
        (0, _) => "nothing to remove".to_owned(),
        (n, true) => format!("{} things of {freed} would go; nothing was removed (--dry-run)", count(n)),
        (n, false) => {
            format!("{} things removed, {freed} freed now or after retention.backups", count(n))
        }
    });
    Ok(())
}
