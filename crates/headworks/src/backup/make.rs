//! Making a backup.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use headworks_domain::ErrorKind;
use headworks_flow::CONFIG_FILE;
use headworks_lake::{BackupNote, Contents, Lake, LakeFile, contents};
use headworks_store::Dialect;

use super::{
    components,
    manifest::{
        DATA, DataFiles, FILES, FORMAT, FileLine, MANIFEST, METADATA, Manifest, MetadataFile, PARTIAL, PROJECT, Source,
        complete, hash, is_below,
    },
};
use crate::{app::App, fail::Failure};

/// How many data files are copied at once.
const COPIES_MAX: usize = 8;
/// What is younger may be of a backup that is being made.
const YOUNG: TimeDelta = TimeDelta::days(1);

/// A backup that was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    /// The count and bytes of the data files that were copied; the others were there from earlier backups.
    pub(crate) copied: (u64, u64),
    /// Files that the catalog names and the storage lacks.
    pub(crate) missing: Vec<LakeFile>,
    /// The count of files that lie outside the data path, which no backup holds.
    pub(crate) outside: usize,
}

/// Backs the project up into a new folder in `dest`, while other processes go on.
///
/// The metadata is one consistent look at the database. Data files never change, and those that the look names stay at least
/// for `retention.backups`, so they can be copied after it. Nothing counts as a backup until it is whole and durable.
pub(crate) async fn make(app: &App, dest: &Path, with_data: bool) -> anyhow::Result<Made> {
    let lake = app.lake().await?;
    // Its tables belong into a backup of a new project too.
    app.run_store().await?;
    fs::create_dir_all(dest).with_context(|| format!("cannot make the folder `{}`", dest.display()))?;
    let dest = &dest.canonicalize().with_context(|| format!("cannot read the folder `{}`", dest.display()))?;
    refuse_inside(lake, dest)?;
    let created_at = app.clock.now();
    remove_remains(dest, created_at)?;
    let dir = free_name(dest, &created_at.format("%Y%m%dT%H%M%SZ").to_string());
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = dest.join(format!("{PARTIAL}{name}-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&partial).with_context(|| format!("cannot make the folder `{}`", partial.display()))?;
    let made = fill(app, lake, dest, &partial, with_data, created_at).await;
    let made = made.and_then(|made| {
        fs::rename(&partial, &dir).with_context(|| format!("cannot rename `{}`", partial.display()))?;
        File::open(dest).and_then(|folder| folder.sync_all())?;
        Ok(made)
    });
    match made {
        Ok((manifest, copied, missing, outside)) => {
            let place = dir.display().to_string();
            lake.note_backup(&BackupNote { at: created_at, version: manifest.lake_version, place }).await?;
            Ok(Made { dir, manifest, copied, missing, outside })
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&partial);
            Err(error)
        }
    }
}

type Filled = (Manifest, (u64, u64), Vec<LakeFile>, usize);

async fn fill(
    app: &App,
    lake: &Lake,
    dest: &Path,
    dir: &Path,
    with_data: bool,
    created_at: DateTime<Utc>,
) -> anyhow::Result<Filled> {
    let mut snapshot = app.store().await?.snapshot().await?;
    snapshot.check().await?;
    let contents: Contents = contents(&mut snapshot).await?;
    let dumped = snapshot.dump(&dir.join(METADATA)).await?;
    snapshot.close().await;
    let known = components();
    if let Some(unknown) = dumped.components.keys().find(|name| !known.iter().any(|c| c.name == name.as_str())) {
        let message = format!("tables of `{unknown}` cannot be backed up: this program does not know them");
        return Err(Failure::new(ErrorKind::Internal, "BACKUP_COMPONENT", message)
            .hint("use the version of headworks that made them")
            .into());
    }
    copy_project(app.root()?, &dir.join(PROJECT))?;
    let mut lines: Vec<FileLine> =
        contents.files.iter().map(|f| FileLine { path: f.path.clone(), bytes: f.bytes, sha256: None }).collect();
    let (mut copied, mut missing) = ((0, 0), Vec::new());
    if with_data {
        (copied, missing) = copy_data(lake, dest, &contents.files, &mut lines).await?;
    }
    let files = dir.join(FILES);
    let write = || {
        let mut out = std::io::BufWriter::new(File::create_new(&files)?);
        for line in &lines {
            writeln!(out, "{}", serde_json::to_string(line)?)?;
        }
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().with_context(|| format!("cannot write `{}`", files.display()))?;
    let manifest = Manifest {
        format: FORMAT,
        headworks: env!("CARGO_PKG_VERSION").to_owned(),
        created_at,
        lake: contents.lake,
        lake_version: contents.version,
        data_path: contents.data_path,
        database: match app.store().await?.dialect() {
            Dialect::Sqlite => "sqlite".to_owned(),
            Dialect::Postgres => "postgres".to_owned(),
        },
        components: dumped.components,
        metadata: MetadataFile { bytes: dumped.bytes, sha256: dumped.sha256, tables: dumped.tables },
        files: DataFiles {
            count: lines.len() as u64,
            bytes: lines.iter().map(|line| line.bytes).sum(),
            sha256: hash(&files)?.1,
            copied: with_data,
        },
    };
    let path = dir.join(MANIFEST);
    let write = || {
        let mut file = File::create_new(&path)?;
        file.write_all((serde_json::to_string_pretty(&manifest)? + "\n").as_bytes())?;
        file.sync_all()?;
        // The names of all that was written here.
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok((manifest, copied, missing, contents.outside))
}

/// Clean-up removes what it does not know below the data path, DuckDB's no less than ours.
fn refuse_inside(lake: &Lake, dest: &Path) -> anyhow::Result<()> {
    match lake.storage().local() {
        Some(data) if dest.starts_with(data) => Err(Failure::usage(
            format!("`{}` lies among the lake's data files, where clean-up would remove it", dest.display()),
            "name a folder outside the lake, best on another disk",
        )
        .into()),
        _ => Ok(()),
    }
}

fn free_name(dest: &Path, name: &str) -> PathBuf {
    let named = |n: u32| dest.join(if n == 1 { name.to_owned() } else { format!("{name}-{n}") });
    (1..).map(named).find(|dir| !dir.exists()).unwrap_or_else(|| dest.join(name))
}

fn remove_remains(dest: &Path, now: DateTime<Utc>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dest).with_context(|| format!("cannot read the folder `{}`", dest.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) && is_old(&entry.path(), now) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove `{}`", entry.path().display()))?;
        }
    }
    Ok(())
}

fn is_old(path: &Path, now: DateTime<Utc>) -> bool {
    let written = fs::metadata(path).and_then(|meta| meta.modified());
    written.is_ok_and(|written| DateTime::<Utc>::from(written) < now - YOUNG)
}

/// Copies the files that people wrote; they usually lie in git too.
fn copy_project(root: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot make the folder `{}`", to.display()))?;
    let mut folders = vec![PathBuf::from("jobs")];
    let mut files = vec![PathBuf::from(CONFIG_FILE)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read the folder `{}`", folder.display()))?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    for file in files {
        let (from, to) = (root.join(&file), to.join(&file));
        let copy = || {
            fs::create_dir_all(to.parent().unwrap_or(Path::new(".")))?;
            fs::copy(&from, &to)?;
            File::open(&to)?.sync_all()
        };
        copy().with_context(|| format!("cannot copy `{}`", from.display()))?;
    }
    Ok(())
}

/// Copies the data files that no earlier backup brought here, and fills the hashes of all in.
async fn copy_data(
    lake: &Lake,
    dest: &Path,
    files: &[LakeFile],
    lines: &mut [FileLine],
) -> anyhow::Result<((u64, u64), Vec<LakeFile>)> {
    let data = dest.join(DATA);
    fs::create_dir_all(&data).with_context(|| format!("cannot make the folder `{}`", data.display()))?;
    let earlier = copied_before(dest)?;
    let mut to_copy = Vec::new();
    for (place, line) in lines.iter_mut().enumerate() {
        let is_there = || fs::metadata(data.join(&line.path)).is_ok_and(|meta| meta.len() == line.bytes);
        match earlier.get(&line.path) {
            Some((bytes, sha256)) if *bytes == line.bytes && is_there() => line.sha256 = Some(sha256.clone()),
            _ if is_below(&line.path) => to_copy.push(place),
            // Nothing that we or DuckDB write has such a name.
            _ => {}
        }
    }
    let (data, storage) = (&data, lake.storage());
    let mut copies = stream::iter(to_copy)
        .map(|place| {
            let path = &files[place].path;
            async move { (place, storage.copy_out(path, &data.join(path)).await) }
        })
        .buffer_unordered(COPIES_MAX);
    let (mut copied, mut missing) = ((0, 0), Vec::new());
    while let Some((place, done)) = copies.next().await {
        let file = &files[place];
        match done {
            Ok((bytes, sha256)) if bytes == file.bytes => {
                lines[place].sha256 = Some(sha256);
                copied = (copied.0 + 1, copied.1 + bytes);
            }
            // A file that was cut off is as good as none; the rest of the lake is still worth a backup.
            Ok(_) | Err(headworks_lake::Error::Storage { source: object_store::Error::NotFound { .. }, .. }) => {
                missing.push(file.clone());
            }
            Err(error) => return Err(error.into()),
        }
    }
    missing.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((copied, missing))
}

/// What earlier backups are known to have brought here, by path: size and hash.
fn copied_before(dest: &Path) -> anyhow::Result<HashMap<String, (u64, String)>> {
    for dir in complete(dest)?.into_iter().rev() {
        let source = Source::open(&dir)?;
        if source.manifest.files.copied {
            let lines = source.files()?.into_iter();
            return Ok(lines.filter_map(|line| Some((line.path, (line.bytes, line.sha256?)))).collect());
        }
    }
    Ok(HashMap::new())
}

/// Removes all but the newest `keep` backups of a folder, and data files that none of these names. Answers how many backups and
/// data files went.
pub(crate) fn prune(dest: &Path, keep: usize, now: DateTime<Utc>) -> anyhow::Result<(u64, u64)> {
    let mut backups = complete(dest)?;
    let kept = backups.split_off(backups.len().saturating_sub(keep));
    for dir in &backups {
        // Without its manifest it is a backup no more, whatever happens next.
        fs::remove_file(dir.join(MANIFEST)).with_context(|| format!("cannot remove `{}`", dir.display()))?;
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    let data = dest.join(DATA);
    let mut named: HashSet<PathBuf> = HashSet::new();
    for dir in &kept {
        named.extend(Source::open(dir)?.files()?.into_iter().map(|line| data.join(line.path)));
    }
    let mut removed = 0;
    let mut folders = vec![data.clone()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read the folder `{}`", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if !named.contains(&path) && is_old(&path, now) {
                fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
                removed += 1;
            }
        }
    }
    Ok((backups.len() as u64, removed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_taken_get_a_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free_name(dir.path(), "a"), dir.path().join("a"));
        fs::create_dir(dir.path().join("a")).unwrap();
        assert_eq!(free_name(dir.path(), "a"), dir.path().join("a-2"));
    }

    fn backup(dest: &Path, name: &str, files: &[&str]) {
        let dir = dest.join(name);
        fs::create_dir_all(&dir).unwrap();
        let manifest = serde_json::json!({
            "format": FORMAT, "headworks": "0", "created_at": "2026-01-01T00:00:00Z", "lake": "x", "lake_version": 1,
            "data_path": "/x/", "database": "sqlite", "components": {},
            "metadata": {"bytes": 0, "sha256": "", "tables": {}},
            "files": {"count": files.len(), "bytes": 0, "sha256": "", "copied": true},
        });
        fs::write(dir.join(MANIFEST), manifest.to_string()).unwrap();
        let lines = files.iter().map(|path| format!("{{\"path\": \"{path}\", \"bytes\": 1, \"sha256\": \"a\"}}\n"));
        fs::write(dir.join(FILES), lines.collect::<String>()).unwrap();
        for path in files {
            let path = dest.join(DATA).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "1").unwrap();
        }
    }

    #[test]
    fn older_backups_go_with_the_data_that_only_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path();
        backup(dest, "20260101T000000Z", &["main/t/a", "main/t/b"]);
        backup(dest, "20260102T000000Z", &["main/t/b", "main/t/c"]);
        backup(dest, "20260103T000000Z", &["main/t/c"]);
        let now: DateTime<Utc> = fs::metadata(dest.join("data/main/t/a")).unwrap().modified().unwrap().into();
        let there = |name: &str| dest.join("data/main/t").join(name).exists();
        assert_eq!(prune(dest, 5, now + YOUNG * 2).unwrap(), (0, 0));
        assert_eq!(prune(dest, 2, now).unwrap(), (1, 0), "a backup that is being made may need it");
        assert_eq!(prune(dest, 2, now + YOUNG * 2).unwrap(), (0, 1));
        assert_eq!((there("a"), there("b"), there("c")), (false, true, true));
        assert_eq!(prune(dest, 1, now + YOUNG * 2).unwrap(), (1, 1));
        assert_eq!((there("b"), there("c")), (false, true));
        assert_eq!(copied_before(dest).unwrap().into_keys().collect::<Vec<_>>(), ["main/t/c"]);
    }
}
