//! Which files a catalog names, for backups: they never change, so copying them once is enough.

use std::collections::{BTreeMap, HashMap};

use futures::TryStreamExt;
use headworks_store::Snapshot;

use crate::{Error, Lake, Result, Storage};

/// A catalog and its files at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The lake's id.
    pub lake: String,
    /// The newest version.
    pub version: i64,
    /// Where the files are.
    pub data_path: String,
    /// The files, sorted by path.
    pub files: Vec<LakeFile>,
    /// The count of files that lie outside the data path, where another program put them.
    pub outside: usize,
}

/// A data file or delete file that some version of the lake names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LakeFile {
    /// Below the data path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The table that it is of.
    pub table: String,
    /// True when the newest version names it, not only older ones.
    pub is_current: bool,
}

/// Says what the lake holds. Cost: one read of the catalog's list of files.
pub async fn contents(snapshot: &mut Snapshot) -> Result<Contents> {
    let head = snapshot
        .row(
            "select (select value from hw_lake where key = 'id'), (select max(snapshot_id) from ducklake_snapshot),
                 (select value from ducklake_metadata where key = 'data_path' and scope is null)",
            &[],
        )
        .await?;
    let head = head.ok_or_else(|| Error::Corrupt { what: "the catalog has no version".to_owned() })?;
    let (lake, version, data_path) = (head.text(0)?, head.i64(1)?, head.text(2)?);
    let mut files: BTreeMap<String, LakeFile> = BTreeMap::new();
    let mut outside = 0;
    for list in ["ducklake_data_file", "ducklake_delete_file"] {
        // A table that was renamed has several rows with one path.
        let sql = format!(
            "select s.path, t.path, f.path, f.path_is_relative, f.file_size_bytes, f.end_snapshot, t.table_name from {list} f
             join ducklake_table t on t.table_id = f.table_id join ducklake_schema s on s.schema_id = t.schema_id"
        );
        for row in snapshot.rows(&sql, &[]).await? {
            let path = if row.opt_bool(3)?.unwrap_or(true) {
                format!("{}{}{}", row.text(0)?, row.text(1)?, row.text(2)?)
            } else {
                match row.text(2)?.strip_prefix(data_path.as_str()) {
                    Some(inside) => inside.to_owned(),
                    None => {
                        outside += 1;
                        continue;
                    }
                }
            };
            let bytes = u64::try_from(row.opt_i64(4)?.unwrap_or(0)).unwrap_or(0);
            let is_current = row.opt_i64(5)?.is_none();
            let file = LakeFile { path: path.clone(), bytes, table: row.text(6)?, is_current };
            files.entry(path).or_insert(file).is_current |= is_current;
        }
    }
    Ok(Contents { lake, version, data_path, files: files.into_values().collect(), outside })
}

impl Lake {
    /// Which of these files are not in the storage, or have another size. Cost: one listing of all files.
    pub async fn missing(&self, files: &[LakeFile]) -> Result<Vec<LakeFile>> {
        let there = self.storage().sizes().await?;
        Ok(files.iter().filter(|file| there.get(&file.path) != Some(&file.bytes)).cloned().collect())
    }
}

impl Storage {
    /// True where no data file is. Cost: one page of a listing.
    pub async fn is_vacant(&self) -> Result<bool> {
        let first = self.files().list(None).try_next().await;
        Ok(first.map_err(|source| Error::Storage { doing: "list", path: String::new(), source })?.is_none())
    }

    /// The size of every file below the data path.
    pub async fn sizes(&self) -> Result<HashMap<String, u64>> {
        let listed = self.files().list(None).map_ok(|file| (file.location.to_string(), file.size)).try_collect().await;
        listed.map_err(|source| Error::Storage { doing: "list", path: String::new(), source })
    }
}
