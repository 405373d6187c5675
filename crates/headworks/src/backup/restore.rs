//! Making a project out of a backup.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use headworks_domain::{EnvironmentName, ErrorKind};
use headworks_flow::{
    CONFIG_FILE,
    exec::{RunFilter, RunStore},
};
use headworks_lake::{LakeFile, Restore, contents};
use headworks_store::{Store, Tx};
use object_store::ObjectStoreExt;

use super::{
    components,
    manifest::{FileLine, PROJECT, Source, damaged},
};
use crate::{
    app::App,
    fail::{Carried, Failure},
};

/// How many data files are copied at once.
const COPIES_MAX: usize = 8;
/// The most live runs that are looked at.
const LIVE_MAX: usize = 100_000;

/// What became of a backup.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The rows of the metadata database.
    pub(crate) rows: u64,
    /// The data files that were copied, and their bytes.
    pub(crate) copied: (u64, u64),
    /// Files that the catalog names and the storage lacks.
    pub(crate) missing: Vec<LakeFile>,
    /// Runs that were at work when the backup was made: whoever comes first goes on with them.
    pub(crate) left_behind: u64,
    /// True when the metadata came from the other kind of database.
    pub(crate) is_translated: bool,
    /// True when the lake is whole and at a place of its own; otherwise clean-up waits for `gc --take-over`.
    pub(crate) is_own: bool,
}

/// What a target holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct There {
    pub(crate) runs: u64,
    pub(crate) lake_version: i64,
}

/// Looks into a metadata database, whose tables may be of any version. Nothing there counts as empty, and so do tables in which
/// nothing ever happened.
pub(crate) async fn what_is_there(store: &Store) -> anyhow::Result<There> {
    let mut snapshot = store.snapshot().await?;
    let tables = snapshot.tables().await?;
    let mut there = There::default();
    let has = |name: &str| tables.iter().any(|table| table == name);
    if has("hw_run") {
        let row = snapshot.row("select count(*) from hw_run", &[]).await?;
        there.runs = u64::try_from(row.map_or(Ok(0), |row| row.i64(0))?).unwrap_or(0);
    }
    if has("ducklake_snapshot") {
        let row = snapshot.row("select coalesce(max(snapshot_id), 0) from ducklake_snapshot", &[]).await?;
        there.lake_version = row.map_or(Ok(0), |row| row.i64(0))?;
    }
    snapshot.close().await;
    Ok(there)
}

/// Gives a folder the files that people wrote, unless it is a project already. Errors: it is neither that nor empty.
///
/// `headworks.toml` comes last, so that a folder with it has them all; what a restore that was killed left is no hindrance.
pub(crate) fn prepare_folder(source: &Source, dir: &Path) -> anyhow::Result<bool> {
    if dir.join(CONFIG_FILE).is_file() {
        return Ok(false);
    }
    let project = source.dir.join(PROJECT);
    if !is_part_of(&project, dir).with_context(|| format!("cannot read the folder `{}`", dir.display()))? {
        return Err(Failure::new(
            ErrorKind::Invalid,
            "CLI_FOLDER_NOT_EMPTY",
            format!("`{}` is neither a project nor empty", dir.display()),
        )
        .hint("name a folder that is new or empty, or one with a headworks.toml")
        .into());
    }
    let jobs = project.join("jobs");
    if jobs.is_dir() {
        copy_folder(&jobs, &dir.join("jobs"))?;
    }
    copy_folder(&project, dir)?;
    Ok(true)
}

/// True when a folder has nothing but files of another, as they are there; also when it does not exist.
fn is_part_of(whole: &Path, part: &Path) -> std::io::Result<bool> {
    let entries = match fs::read_dir(part) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let there = whole.join(entry.file_name());
        let is_same = if entry.file_type()?.is_dir() {
            there.is_dir() && is_part_of(&there, &entry.path())?
        } else {
            // A copy that was cut off is the beginning of its file.
            fs::read(&there).is_ok_and(|text| fs::read(entry.path()).is_ok_and(|part| text.starts_with(&part)))
        };
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make the folder `{}`", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read the folder `{}`", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot write `{}`", target.display()))?;
        }
    }
    Ok(())
}

/// Restores a backup into a project whose settings say where its database and its files are.
///
/// Data files come first and then, in one transaction, the metadata: a kill in between leaves an empty database, and the same
/// command goes on. Errors: the database is not empty and `force` is not given, processes are at work in it, the backup is damaged.
pub(crate) async fn restore(app: &App, source: &Source, force: bool) -> anyhow::Result<Restored> {
    let store = app.store().await?;
    refuse_what_is_there(app, store, force).await?;
    let storage = app.storage()?;
    storage.refuse_another(&source.manifest.lake).await?;
    let is_vacant = storage.is_vacant().await?;
    if is_vacant {
        storage.forget_marker().await?;
    }
    let mut copied = (0, 0);
    if source.manifest.files.copied {
        copied = copy_data(&storage, source).await?;
    }
    let restore = Restore {
        data_path: storage.data_path().to_owned(),
        at: app.clock.now(),
        version: source.manifest.lake_version,
    };
    let environment = app.env_name()?.clone();
    let loaded = store
        .load(&source.metadata(), &components(), true, move |tx| {
            Box::pin(async move {
                refuse_another_environment(tx, &environment).await?;
                headworks_lake::restored(tx, &restore).await?;
                headworks_meta::restored(tx).await?;
                Ok::<_, anyhow::Error>(())
            })
        })
        .await?;
    let found = (&loaded.tables, &source.manifest.metadata.tables);
    if found.0 != found.1 {
        return Err(damaged("the metadata has other rows than the manifest counts".to_owned()).into());
    }
    // Who opened the database before has seen to the tables that were there, not to those that came.
    for part in components() {
        store.migrate(part.name, part.home, part.migrations).await?;
    }
    let lake = app.lake().await?;
    let is_own = is_vacant && source.manifest.files.copied;
    if is_own {
        lake.take_over().await?;
    }
    let mut snapshot = store.snapshot().await?;
    let contents = contents(&mut snapshot).await?;
    snapshot.close().await;
    let filter = RunFilter { live: true, limit: LIVE_MAX, ..RunFilter::default() };
    let left = app.run_store().await?.list(&filter).await.map_err(Carried::from)?;
    Ok(Restored {
        rows: loaded.tables.values().sum(),
        copied,
        missing: lake.missing(&contents.files).await?,
        left_behind: left.len() as u64,
        is_translated: loaded.is_translated,
        is_own,
    })
}

/// A backup of one environment does not become another: its database would be production's from then on, or production's a test's.
async fn refuse_another_environment(tx: &mut Tx, asked: &EnvironmentName) -> anyhow::Result<()> {
    let found = headworks_lake::environment_of(tx).await?;
    if found == asked.as_str() {
        return Ok(());
    }
    let message = format!("the backup is one of environment `{found}`, not of `{asked}`");
    Err(Failure::new(ErrorKind::Invalid, "RESTORE_ENVIRONMENT", message)
        .hint(format!("say headworks --env {found} restore, in a project that has this environment"))
        .into())
}

async fn refuse_what_is_there(app: &App, store: &Store, force: bool) -> anyhow::Result<()> {
    let there = what_is_there(store).await?;
    if there == There::default() {
        return Ok(());
    }
    if !force {
        return Err(not_empty(&store.options().shown(), there).into());
    }
    let filter = RunFilter { live: true, limit: LIVE_MAX, ..RunFilter::default() };
    let live = app.run_store().await?.list(&filter).await.map_err(Carried::from)?;
    match live.iter().find(|run| run.is_held()) {
        None => Ok(()),
        Some(run) => Err(Failure::new(
            ErrorKind::Denied,
            "RESTORE_BUSY",
            format!("the metadata database is in use: {} is at work on run `{}`", run.owner, run.id),
        )
        .hint("stop every headworks process of this project first")
        .into()),
    }
}

/// The database holds something.
pub(crate) fn not_empty(shown: &str, there: There) -> Failure {
    let There { runs, lake_version } = there;
    Failure::new(
        ErrorKind::Invalid,
        "RESTORE_NOT_EMPTY",
        format!("the metadata database {shown} is not empty: it has {runs} runs and a lake at version {lake_version}"),
    )
    .hint("restore into another folder with --to DIR, or name another database with --set metadata.url=...; --force replaces it, and what it holds is lost")
}

/// Copies the data files that are not there, each compared with its hash.
async fn copy_data(storage: &headworks_lake::Storage, source: &Source) -> anyhow::Result<(u64, u64)> {
    let there = storage.sizes().await?;
    let data = source.data();
    let files: Vec<FileLine> = source
        .files()?
        .into_iter()
        .filter(|file| file.sha256.is_some() && there.get(&file.path) != Some(&file.bytes))
        .collect();
    let copies = stream::iter(files.iter().map(|file| {
        let (there, data) = (&there, &data);
        async move {
            if there.contains_key(&file.path) {
                // A restore that was killed left a part of it; nothing else writes under that name.
                let path = object_store::path::Path::parse(&file.path)?;
                storage.files().delete(&path).await?;
            }
            let from: PathBuf = data.join(&file.path);
            let (bytes, sha256) = storage.copy_in(&file.path, &from).await?;
            if bytes != file.bytes || Some(&sha256) != file.sha256.as_ref() {
                let path = object_store::path::Path::parse(&file.path)?;
                storage.files().delete(&path).await?;
                return Err(damaged(format!("`{}` is not what was written", from.display())).into());
            }
            anyhow::Ok(bytes)
        }
    }));
    let sizes: Vec<u64> = copies.buffer_unordered(COPIES_MAX).try_collect().await?;
    Ok((sizes.len() as u64, sizes.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_project_may_be_completed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let write = |path: &str, text: &str| {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), text).unwrap();
        };
        write("whole/jobs/a/t.sql", "select 1");
        write("whole/headworks.toml", "");
        let check = |expected: bool| assert_eq!(is_part_of(&at("whole"), &at("part")).unwrap(), expected);
        check(true);
        write("part/jobs/a/t.sql", "sel");
        check(true);
        write("part/jobs/b.sql", "select 2");
        check(false);
        fs::remove_file(at("part/jobs/b.sql")).unwrap();
        write("part/jobs/a/t.sql", "select 2");
        check(false);
    }
}
