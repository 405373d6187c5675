//! Reads the project's files again when they change.
//!
//! It looks at names, sizes and times twice a second rather than asking the system to tell: that works on every file system, those
//! of networks and containers too, and costs a fraction of a percent of a core for a thousand files.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use headworks_domain::Severity;
use headworks_flow::{CONFIG_FILE, Loaded, Overrides, Project};
use headworks_meta::Runs;
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use super::definitions;
use crate::{live::LiveProject, output::Out};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Folders in folders are followed so far, as the project's reader does.
const DEPTH_MAX: usize = 16;

/// Where a project is read from.
#[derive(Clone)]
pub(crate) struct Reloading {
    pub(crate) root: PathBuf,
    pub(crate) overrides: Overrides,
}

/// The part that watches the files.
pub(super) struct Reload {
    from: Reloading,
    /// What the files were like when they were read last.
    seen: u64,
    project: LiveProject,
    runs: Arc<Runs>,
    told: watch::Sender<u64>,
}

impl Reload {
    pub(super) fn new(
        from: Reloading,
        seen: u64,
        project: LiveProject,
        runs: Arc<Runs>,
        told: watch::Sender<u64>,
    ) -> Self {
        Self { from, seen, project, runs, told }
    }

    /// Looks until `stop` turns true.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>, out: Out) {
        loop {
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let now = self.fingerprint().await;
            if now != self.seen {
                self.seen = now;
                self.reload(out).await;
            }
        }
    }

    async fn fingerprint(&self) -> u64 {
        let root = self.from.root.clone();
        spawn_blocking(move || fingerprint(&root)).await.unwrap_or(0)
    }

    async fn reload(&self, out: Out) {
        let from = self.from.clone();
        let read = spawn_blocking(move || Project::load_with(&from.root, &from.overrides)).await;
        let Ok(Loaded { mut project, problems }) = read else { return };
        let before = self.project.current();
        let of_settings = |file: &str| file == CONFIG_FILE || !file.starts_with("jobs/");
        if let Some(problem) = problems.iter().find(|p| p.severity == Severity::Error && of_settings(&p.place.file)) {
            out.note(format_args!("the settings have errors, what was read before goes on:\n{problem}"));
            return;
        }
        let kept = project.keep_last_good(&before, &problems);
        for problem in problems.iter().filter(|p| p.severity == Severity::Error) {
            out.note(problem);
        }
        for job in &kept {
            out.note(format_args!("{job}: its last version without errors goes on"));
        }
        tell_changes(out, &before, &project);
        let definitions = definitions::of(&project, &problems);
        let project = Arc::new(project);
        // Whoever is asked for slots by a run of the new files must know how many there are.
        while let Err(error) = self.runs.say_pools(&project.slots()).await {
            tracing::warn!(%error, "the sizes of pools could not be kept");
            sleep(LOOK_EVERY).await;
        }
        self.project.replace(Arc::clone(&project));
        // The clocks come from the database: a job must be known there before it is looked for.
        while let Err(error) = definitions::keep(&self.runs, &project, definitions.clone()).await {
            tracing::warn!(%error, "the jobs' definitions could not be kept");
            sleep(LOOK_EVERY).await;
        }
        self.told.send_modify(|n| *n += 1);
    }
}

fn tell_changes(out: Out, before: &Project, now: &Project) {
    for (name, job) in &now.jobs {
        match before.jobs.get(name) {
            None => out.note(format_args!("{name}: new")),
            Some(old) if old.version != job.version => {
                out.note(format_args!(
                    "{name}: changed, version {}: {}",
                    job.version,
                    job.changes_since(old).join(", ")
                ));
            }
            Some(_) => {}
        }
    }
    for name in before.jobs.keys().filter(|name| !now.jobs.contains_key(*name)) {
        out.note(format_args!("{name}: its file is gone; what it published stays"));
    }
}

/// A number that changes with the names, sizes, times and identities of the project's files.
pub(super) fn fingerprint(root: &Path) -> u64 {
    let mut hash = DefaultHasher::new();
    note(&root.join(CONFIG_FILE), &mut hash);
    walk(&root.join("jobs"), 0, &mut hash);
    hash.finish()
}

fn walk(folder: &Path, depth: usize, hash: &mut DefaultHasher) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if note(&path, hash) && depth < DEPTH_MAX {
            walk(&path, depth + 1, hash);
        }
    }
}

/// Hashes one file's marks; true for a folder.
fn note(path: &Path, hash: &mut DefaultHasher) -> bool {
    path.hash(hash);
    let Ok(meta) = fs::metadata(path) else { return false };
    if meta.is_dir() {
        return true;
    }
    (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()).hash(hash);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut seen = vec![fingerprint(root)];
        let mut step = |what: &dyn Fn()| {
            what();
            let now = fingerprint(root);
            assert!(!seen.contains(&now));
            assert_eq!(now, fingerprint(root));
            seen.push(now);
        };
        step(&|| fs::write(root.join(CONFIG_FILE), "").unwrap());
        step(&|| fs::create_dir_all(root.join("jobs/deep")).unwrap());
        step(&|| fs::write(root.join("jobs/deep/a.sql"), "x").unwrap());
        step(&|| fs::write(root.join("jobs/deep/a.sql"), "xy").unwrap());
        step(&|| fs::rename(root.join("jobs/deep/a.sql"), root.join("jobs/b.sql")).unwrap());
        fs::write(root.join("notes.txt"), "not a job").unwrap();
        assert_eq!(fingerprint(root), *seen.last().unwrap());
    }
}
