//! What a backup says of itself.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;
use chrono::{DateTime, Utc};
use headworks_domain::ErrorKind;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::fail::Failure;

/// The version of the form of backups.
pub(super) const FORMAT: u32 = 1;
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const METADATA: &str = "metadata.jsonl";
pub(super) const FILES: &str = "files.jsonl";
pub(super) const PROJECT: &str = "project";
pub(super) const DATA: &str = "data";
/// What an unfinished backup's folder begins with.
pub(super) const PARTIAL: &str = ".partial-";

/// `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    /// The version of the program that made it.
    pub(crate) headworks: String,
    /// When it was begun.
    pub(crate) created_at: DateTime<Utc>,
    /// The lake's id.
    pub(crate) lake: String,
    /// The lake's newest version in it.
    pub(crate) lake_version: i64,
    /// Where the data files were.
    pub(crate) data_path: String,
    /// `sqlite` or `postgres`.
    pub(crate) database: String,
    /// The version of each component's tables.
    pub(crate) components: BTreeMap<String, i64>,
    pub(crate) metadata: MetadataFile,
    pub(crate) files: DataFiles,
}

/// The metadata database in the backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MetadataFile {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// The count of rows of each table.
    pub(crate) tables: BTreeMap<String, u64>,
}

/// The data files that the catalog names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DataFiles {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// The hash of the list.
    pub(crate) sha256: String,
    /// True when their copies lie in the backup's `data`.
    pub(crate) copied: bool,
}

/// A line of `files.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FileLine {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// Of the copy; `None` when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
}

/// A backup to restore from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Source {
    /// Opens a backup, or the newest of a folder of backups. Errors: there is none, or a newer version made it.
    pub(crate) fn open(place: &Path) -> anyhow::Result<Self> {
        let dir = if place.join(MANIFEST).is_file() { Some(place.to_path_buf()) } else { complete(place)?.pop() };
        let Some(dir) = dir else {
            return Err(Failure::not_found(
                format!("there is no backup in `{}`", place.display()),
                "name the folder that was given to headworks backup, or one of the folders in it",
            )
            .into());
        };
        let path = dir.join(MANIFEST);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let damaged = |what: String| damaged(format!("`{}`: {what}", path.display()));
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        let format = json["format"].as_u64().unwrap_or(0);
        if format > u64::from(FORMAT) {
            let message =
                format!("the backup `{}` has form {format}, this program knows forms up to {FORMAT}", dir.display());
            return Err(Failure::new(ErrorKind::Invalid, "BACKUP_NEWER", message)
                .hint("use the newer version of headworks that made it")
                .into());
        }
        let manifest = serde_json::from_value(json).map_err(|e| damaged(e.to_string()))?;
        Ok(Self { dir, manifest })
    }

    pub(super) fn metadata(&self) -> PathBuf {
        self.dir.join(METADATA)
    }

    /// The folder of the data files, which all backups of a place share.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.parent().unwrap_or(Path::new(".")).join(DATA)
    }

    /// Compares the hashes of what the manifest names. Errors: something is damaged. Cost: one read of the metadata file.
    pub(crate) fn verify(&self) -> anyhow::Result<()> {
        for (name, expected) in [(METADATA, &self.manifest.metadata.sha256), (FILES, &self.manifest.files.sha256)] {
            let path = self.dir.join(name);
            let (_, found) = hash(&path)?;
            if found != *expected {
                return Err(damaged(format!("`{}` is not what was written", path.display())).into());
            }
        }
        Ok(())
    }

    /// The data files that the catalog names.
    pub(crate) fn files(&self) -> anyhow::Result<Vec<FileLine>> {
        let path = self.dir.join(FILES);
        let file = File::open(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let mut files = Vec::new();
        for line in BufReader::new(file).lines() {
            let line = line.with_context(|| format!("cannot read `{}`", path.display()))?;
            let file: FileLine =
                serde_json::from_str(&line).map_err(|e| damaged(format!("`{}`: {e}", path.display())))?;
            if !is_below(&file.path) {
                return Err(damaged(format!("`{}` names `{}`, outside the lake", path.display(), file.path)).into());
            }
            files.push(file);
        }
        Ok(files)
    }

    /// The copies of data files that are not there, or not as long as they should be.
    pub(crate) fn lacking(&self) -> anyhow::Result<Vec<FileLine>> {
        if !self.manifest.files.copied {
            return Ok(Vec::new());
        }
        let data = self.data();
        let is_there = |f: &FileLine| fs::metadata(data.join(&f.path)).is_ok_and(|meta| meta.len() == f.bytes);
        Ok(self.files()?.into_iter().filter(|file| file.sha256.is_some() && !is_there(file)).collect())
    }
}

/// True when a path leads down from the folder that it is joined to, and nowhere else.
pub(super) fn is_below(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// The finished backups in a folder, oldest first.
pub(super) fn complete(place: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read the folder `{}`", place.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read the folder `{}`", place.display()))?;
        let is_partial = entry.file_name().to_string_lossy().starts_with(PARTIAL);
        if !is_partial && entry.path().join(MANIFEST).is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// A file's size and SHA-256.
pub(super) fn hash(path: &Path) -> anyhow::Result<(u64, String)> {
    use std::fmt::Write as _;
    let look = || {
        let mut file = File::open(path)?;
        let (mut bytes, mut hash, mut piece) = (0, Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut piece)? {
                0 => break,
                n => {
                    hash.update(&piece[..n]);
                    bytes += n as u64;
                }
            }
        }
        Ok::<_, std::io::Error>((bytes, hash.finalize()))
    };
    let (bytes, digest) = look().with_context(|| format!("cannot read `{}`", path.display()))?;
    let text = digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    Ok((bytes, text))
}

/// The backup's bytes are not what was written.
pub(super) fn damaged(what: String) -> Failure {
    Failure::new(ErrorKind::Corrupt, "BACKUP_DAMAGED", format!("the backup is damaged: {what}"))
        .hint("use another backup; headworks restore --dry-run looks one through")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_down() {
        for (path, expected) in
            [("main/t/a.parquet", true), ("", false), ("/etc/passwd", false), ("../x", false), ("a/../../x", false)]
        {
            assert_eq!(is_below(path), expected, "{path}");
        }
    }

    #[test]
    fn only_finished_backups_count_and_the_newest_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        for (name, manifest) in [("20260102T000000Z", true), ("20260101T000000Z", true), ("20260103T000000Z", false)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            if manifest {
                fs::write(dir.path().join(name).join(MANIFEST), "{\"format\": 99}").unwrap();
            }
        }
        let found = complete(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["20260101T000000Z", "20260102T000000Z"]);
        let error = Source::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("20260102T000000Z` has form 99"), "{error}");
        assert!(Source::open(&dir.path().join("none")).unwrap_err().to_string().starts_with("there is no backup"));
    }
}
