use std::{fs, path::Path, path::PathBuf, process::ExitCode};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use headworks_flow::exec::{RunFilter, RunStore};
use headworks_lake::{Keep, Removal};
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::{Carried, DONE},
    output::{Align, Table, bytes, count},
};

/// Remove what retention and orphans allow
///
/// Partitions beyond their table's retention, old versions, files that nothing refers to, logs of long ago. What a running
/// task writes stays, and so do files that a reader may still be at.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks gc --dry-run
  headworks gc --json

Settings: retention.versions, retention.orphans, retention.logs; a job's own retention: drops its partitions.")]
pub(crate) struct Args {
    /// Say what would go and why, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// Files that the catalog has forgotten stay so long: a reader of an older version may still be at them.
const FORGOTTEN_DAYS: i64 = 1;
/// The most live runs that are looked at.
const LIVE_MAX: usize = 100_000;
/// The most removals told one by one on a terminal.
const TOLD_MAX: usize = 200;

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let keep = keep(app).await?;
    let lake = app.lake().await?;
    let removals = if args.dry_run { lake.removals(&keep).await? } else { lake.remove(&keep).await? };
    let logs_kept = TimeDelta::from_std(app.config()?.retention.logs.duration()).unwrap_or(TimeDelta::MAX);
    let logs = old_logs(&app.logs_dir()?, app.clock.now() - logs_kept)?;
    if !args.dry_run {
        remove_logs(&app.logs_dir()?, &logs)?;
    }
    tell(app, &removals, &logs, args.dry_run)?;
    Ok(ExitCode::from(DONE))
}

/// What the settings keep, and what running attempts own.
pub(super) async fn keep(app: &App) -> anyhow::Result<Keep> {
    let retention = &app.config()?.retention;
    let days = |span: std::time::Duration| TimeDelta::from_std(span).unwrap_or(TimeDelta::MAX);
    let store = app.run_store().await?;
    let filter = RunFilter { live: true, limit: LIVE_MAX, ..RunFilter::default() };
    let runs = store.list(&filter).await.map_err(Carried::from)?;
    let live_attempts = runs.iter().filter(|run| run.is_held()).map(|run| run.fence).collect();
    Ok(Keep {
        versions: days(retention.versions.duration()),
        orphans: days(retention.orphans.duration()),
        forgotten: TimeDelta::days(FORGOTTEN_DAYS),
        live_attempts,
    })
}

fn tell(app: &App, removals: &[Removal], logs: &[(PathBuf, u64)], dry_run: bool) -> anyhow::Result<()> {
    let freed: u64 = removals.iter().map(|r| r.bytes).sum::<u64>() + logs.iter().map(|(_, bytes)| bytes).sum::<u64>();
    if app.out.json {
        let logs: Vec<Value> = logs.iter().map(|(path, bytes)| json!({"log": path, "bytes": bytes})).collect();
        return app.out.document(&json!({"dry_run": dry_run, "bytes": freed, "removals": removals, "logs": logs}));
    }
    let mut table =
        Table::new([("what", Align::Left), ("which", Align::Left), ("bytes", Align::Right), ("why", Align::Left)]);
    for removal in removals.iter().take(TOLD_MAX) {
        table.row([removal.what.to_owned(), removal.name.clone(), bytes(removal.bytes), removal.why.clone()]);
    }
    if !logs.is_empty() {
        let size = logs.iter().map(|(_, bytes)| bytes).sum();
        let which = format!("{} files", count(logs.len() as u64));
        table.row(["log".to_owned(), which, bytes(size), "older than retention.logs".to_owned()]);
    }
    if !table.is_empty() {
        app.out.table(&table)?;
    }
    if removals.len() > TOLD_MAX {
        app.out.note(format_args!("and {} more; --json lists them all", count((removals.len() - TOLD_MAX) as u64)));
    }
    let n = count((removals.len() + logs.len()) as u64);
    app.out.note(match (removals.is_empty() && logs.is_empty(), dry_run) {
        (true, _) => "nothing to remove".to_owned(),
        (false, true) => format!("{n} things of {} would go; nothing was removed (--dry-run)", bytes(freed)),
        (false, false) => format!("{n} things removed, {} freed now or after a day", bytes(freed)),
    });
    Ok(())
}

/// Log files last written before an instant.
fn old_logs(folder: &Path, before: DateTime<Utc>) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read the folder `{}`", folder.display())),
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read the folder `{}`", folder.display()))?;
            // A log that goes while we look needs no removing.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.modified().is_ok_and(|at| DateTime::<Utc>::from(at) < before) {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn remove_logs(root: &Path, logs: &[(PathBuf, u64)]) -> anyhow::Result<()> {
    for (path, _) in logs {
        fs::remove_file(path).with_context(|| format!("cannot remove the log `{}`", path.display()))?;
        let mut folder = path.parent();
        // A folder that still holds something stays: then the removal fails, and that is that.
        while let Some(empty) = folder.filter(|f| *f != root && fs::remove_dir(f).is_ok()) {
            folder = empty.parent();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_go_with_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("job/2013/r1-1.log");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(&log, "text").unwrap();
        let written: DateTime<Utc> = fs::metadata(&log).unwrap().modified().unwrap().into();
        assert!(old_logs(dir.path(), written).unwrap().is_empty());
        let old = old_logs(dir.path(), written + TimeDelta::seconds(1)).unwrap();
        assert_eq!(old, [(log, 4)]);
        remove_logs(dir.path(), &old).unwrap();
        assert!(dir.path().exists() && !dir.path().join("job").exists());
        assert!(old_logs(&dir.path().join("none"), written).unwrap().is_empty());
    }
}
