//! What goes by itself when its time is over: the one function behind `headworks gc` and every schedule of it.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::RunId;
use headworks_flow::exec::{RunFilter, RunRow, RunStore};
use headworks_lake::{Keep, Removal};
use headworks_meta::{AskedLog, Outdated};

use crate::{app::App, fail::Carried};

/// The most live runs that are looked at.
const LIVE_MAX: usize = 100_000;

/// What went, or would go.
#[derive(Debug)]
pub(crate) struct Report {
    /// Of the lake.
    pub(crate) removals: Vec<Removal>,
    /// Of the memory of runs.
    pub(crate) runs: Outdated,
    /// Log files, oldest first.
    pub(crate) logs: Vec<OldLog>,
}

impl Report {
    /// The bytes that it frees, as far as they are known.
    pub(crate) fn bytes(&self) -> u64 {
        self.removals.iter().map(|r| r.bytes).sum::<u64>() + self.logs.iter().map(|log| log.bytes).sum::<u64>()
    }

    /// How many things it is about.
    pub(crate) fn count(&self) -> u64 {
        (self.removals.len() + self.logs.len()) as u64 + self.runs.runs + self.runs.details
    }
}

/// A log that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OldLog {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// The setting that lets it go.
    pub(crate) why: &'static str,
}

/// Removes what retention and orphans allow; with `dry_run` it only says what.
///
/// Runs and logs come first, in small steps; a lake whose catalog may be behind its files is refused after that.
pub(crate) async fn run(app: &App, dry_run: bool) -> anyhow::Result<Report> {
    let retention = &app.config()?.retention;
    let now = app.clock.now();
    let live = Live::look(app).await?;
    let runs = app.run_store().await?;
    // Before anything is written: a lake of a newer version is not ours to clean.
    let lake = app.lake().await?;
    let before = now - days(retention.runs.duration());
    let outdated = if dry_run { runs.outdated(before).await? } else { runs.forget_before(before).await? };
    if !dry_run {
        AskedLog::open(app.store().await?.clone()).await?.forget_before(before).await?;
    }

    let folder = app.logs_dir()?;
    let ids: HashSet<&RunId> = live.runs.iter().map(|run| &run.id).collect();
    let before = now - days(retention.logs.duration());
    let found = logs(&folder)?.into_iter().filter(|log| !run_of(&log.path).is_some_and(|run| ids.contains(&run)));
    let logs = old_logs(found.collect(), before, retention.log_bytes_max.bytes());
    if !dry_run {
        remove_logs(&folder, &logs)?;
    }

    let keep = keep_for(app, &live)?;
    let removals = if dry_run { lake.removals(&keep).await? } else { lake.remove(&keep).await? };
    Ok(Report { removals, runs: outdated, logs })
}

/// What the settings keep, and what running attempts own.
pub(crate) async fn keep(app: &App) -> anyhow::Result<Keep> {
    keep_for(app, &Live::look(app).await?)
}

/// The runs that are at work.
struct Live {
    /// The newest attempt before they were read: one that is newer may be at work too.
    newest_attempt: i64,
    runs: Vec<RunRow>,
}

impl Live {
    async fn look(app: &App) -> anyhow::Result<Self> {
        let store = app.run_store().await?;
        let newest_attempt = store.newest_fence().await?;
        let filter = RunFilter { live: true, limit: LIVE_MAX, ..RunFilter::default() };
        Ok(Self { newest_attempt, runs: store.list(&filter).await.map_err(Carried::from)? })
    }
}

fn keep_for(app: &App, live: &Live) -> anyhow::Result<Keep> {
    let retention = &app.config()?.retention;
    Ok(Keep {
        versions: days(retention.versions.duration()),
        orphans: days(retention.orphans.duration()),
        forgotten: days(retention.backups.duration()),
        live_attempts: live.runs.iter().filter(|run| run.is_held()).map(|run| run.fence).collect(),
        newest_attempt: live.newest_attempt,
    })
}

fn days(span: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or(TimeDelta::MAX)
}

/// A log file as it is found.
#[derive(Debug, Clone)]
struct Log {
    path: PathBuf,
    bytes: u64,
    written: DateTime<Utc>,
}

/// All logs below a folder.
fn logs(folder: &Path) -> anyhow::Result<Vec<Log>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read the folder `{}`", folder.display())),
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read the folder `{}`", folder.display()))?;
            // A log that goes while we look needs no removing.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if let Ok(written) = meta.modified() {
                found.push(Log { path: entry.path(), bytes: meta.len(), written: written.into() });
            }
        }
    }
    Ok(found)
}

/// The bytes of all logs.
pub(crate) fn logs_bytes(folder: &Path) -> anyhow::Result<u64> {
    Ok(logs(folder)?.iter().map(|log| log.bytes).sum())
}

/// The run that a log is of, by its name `20130101T050000Z-m1-7-42.log`: start, run and fence. The version before had the attempt
/// behind the fence, as `42.1`.
fn run_of(path: &Path) -> Option<RunId> {
    let name = path.file_name()?.to_str()?.strip_suffix(".log")?;
    name.rsplit_once('-')?.0.split_once('-')?.1.parse().ok()
}

/// The logs last written before an instant, and of the others the oldest, until the rest takes no more than `bytes_max`.
fn old_logs(mut logs: Vec<Log>, before: DateTime<Utc>, bytes_max: u64) -> Vec<OldLog> {
    logs.sort_by(|a, b| (a.written, &a.path).cmp(&(b.written, &b.path)));
    let mut rest: u64 = logs.iter().map(|log| log.bytes).sum();
    let mut old = Vec::new();
    for log in logs {
        let why = if log.written < before {
            "retention.logs"
        } else if rest > bytes_max {
            "retention.log_bytes_max"
        } else {
            break;
        };
        rest -= log.bytes;
        old.push(OldLog { path: log.path, bytes: log.bytes, why });
    }
    old
}

fn remove_logs(root: &Path, logs: &[OldLog]) -> anyhow::Result<()> {
    for log in logs {
        remove_log(root, &log.path)?;
    }
    Ok(())
}

/// The file of a log by its path below the folder of logs; `None` for a path that leads elsewhere.
pub(crate) fn log_file(root: &Path, relative: &str) -> Option<PathBuf> {
    let leads_down = Path::new(relative).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    leads_down.then(|| root.join(relative))
}

/// Removes a log, and its folders when nothing else is in them. One that is gone already is what we want.
pub(crate) fn remove_log(root: &Path, path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove the log `{}`", path.display()));
        }
        _ => {}
    }
    let mut folder = path.parent();
    // A folder that still holds something stays: then the removal fails, and that is that.
    while let Some(empty) = folder.filter(|f| *f != root && fs::remove_dir(f).is_ok()) {
        folder = empty.parent();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str, bytes: u64, written: i64) -> Log {
        Log { path: name.into(), bytes, written: DateTime::from_timestamp(written, 0).unwrap() }
    }

    #[test]
    fn old_logs_go_and_then_the_oldest_of_too_many() {
        let logs = || vec![log("c", 10, 300), log("a", 10, 100), log("b", 10, 200)];
        let check = |before: i64, bytes_max: u64, expected: &[(&str, &str)]| {
            let old = old_logs(logs(), DateTime::from_timestamp(before, 0).unwrap(), bytes_max);
            let shown: Vec<_> = old.iter().map(|log| (log.path.to_str().unwrap(), log.why)).collect();
            assert_eq!(shown, expected, "{before} {bytes_max}");
        };
        check(0, 30, &[]);
        check(150, 30, &[("a", "retention.logs")]);
        check(0, 20, &[("a", "retention.log_bytes_max")]);
        check(150, 10, &[("a", "retention.logs"), ("b", "retention.log_bytes_max")]);
        check(1_000, 30, &[("a", "retention.logs"), ("b", "retention.logs"), ("c", "retention.logs")]);
    }

    #[test]
    fn a_logs_name_tells_its_run() {
        let run = |name: &str| run_of(Path::new(name)).map(|id| id.to_string());
        assert_eq!(run("flights/2013-01/20130101T050000Z-hoduycsugc-7-42.log").as_deref(), Some("hoduycsugc-7"));
        assert_eq!(run("flights/2013-01/20130101T050000Z-hoduycsugc-7-42.1.log").as_deref(), Some("hoduycsugc-7"));
        assert_eq!(run("flights/2013-01/notes.txt"), None);
    }

    #[test]
    fn logs_go_with_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job/2013/r1-1.log");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "text").unwrap();
        assert_eq!(logs_bytes(dir.path()).unwrap(), 4);
        let old = old_logs(logs(dir.path()).unwrap(), DateTime::<Utc>::MAX_UTC, u64::MAX);
        assert_eq!(old, [OldLog { path, bytes: 4, why: "retention.logs" }]);
        remove_logs(dir.path(), &old).unwrap();
        assert!(dir.path().exists() && !dir.path().join("job").exists());
        assert_eq!(logs_bytes(&dir.path().join("none")).unwrap(), 0);
    }
}
