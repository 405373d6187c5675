//! The lake's epoch marker: a small file beside the data, never among it, that says which catalog the files belong to and how far
//! that catalog had come.
//!
//! A catalog that was restored from a backup knows nothing of the files that were published since; to it they look like orphans.
//! So clean-up asks first, and refuses when anything says that the catalog is behind. `Lake::take_over` is the way out: a new
//! *epoch* begins, in which this catalog is the only one.

use chrono::{DateTime, Utc};
use headworks_store::{Tx, values};
use object_store::{ObjectStoreExt, path::Path};
use serde::{Deserialize, Serialize};

use crate::{At, Error, Lake, Result, Storage};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Marker {
    format: u32,
    /// The lake's id.
    pub(crate) lake: String,
    /// The newest version that the lake has seen.
    version: i64,
    /// How often a catalog took the lake over.
    #[serde(default)]
    epoch: i64,
}

const MARKER: &str = "lake.json";
const FORMAT: u32 = 1;

/// The last backup that was made of this catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupNote {
    /// When it was begun.
    pub at: DateTime<Utc>,
    /// The lake's version in it.
    pub version: i64,
    /// Where it is.
    pub place: String,
}

/// Which backup a catalog came from that has not taken the lake over yet.
#[derive(Debug, Serialize, Deserialize)]
struct Restored {
    at: DateTime<Utc>,
    version: i64,
}

/// What a loaded backup becomes.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The data path of its new home, as [`Storage::data_path`] says it.
    pub data_path: String,
    /// When it is restored.
    pub at: DateTime<Utc>,
    /// The lake's version in it.
    pub version: i64,
}

/// Fits a catalog that was just loaded from a backup to its new home. Nothing is cleaned up until [`Lake::take_over`].
pub async fn restored(tx: &mut Tx, restore: &Restore) -> Result<()> {
    tx.execute("update ducklake_metadata set value = $1 where key = 'data_path'", &values![&restore.data_path]).await?;
    let fact = Restored { at: restore.at, version: restore.version };
    set(tx, "restored", &json(&fact)?).await?;
    // Tables of inlined rows that were empty are left out when the kind of database changes: DuckDB makes them anew.
    for row in tx.rows("select table_name from ducklake_inlined_data_tables", &[]).await? {
        let name = row.text(0)?;
        if !crate::foreign::exists(&mut crate::table::From::Tx(tx), &name).await? {
            tx.execute("delete from ducklake_inlined_data_tables where table_name = $1", &values![name]).await?;
        }
    }
    Ok(())
}

impl Lake {
    /// Says that the lake at this storage, new or known, belongs to this catalog.
    pub(crate) async fn write_marker(&self) -> Result<()> {
        let marker = Marker {
            format: FORMAT,
            lake: self.id().to_owned(),
            version: self.version(At::Now).await?,
            epoch: self.epoch().await?,
        };
        self.storage().write_root(MARKER, json(&marker)?.into_bytes()).await
    }

    /// Refuses when the catalog is not the one that the files belong to, or is older than they are. Errors: `Behind`, `Owned`.
    pub async fn refuse_when_behind(&self) -> Result<()> {
        let behind = |why: String| Err(Error::Behind { why });
        if let Some(text) = self.fact("restored").await? {
            let restored: Restored = parsed("restored", &text)?;
            let at = restored.at.format("%Y-%m-%d %H:%M:%S");
            let version = restored.version;
            return behind(format!("it was restored on {at} UTC from a backup of version {version}"));
        }
        let Some(marker) = read(self.storage()).await? else { return Ok(()) };
        if marker.lake != self.id() {
            return Err(Error::Owned { place: self.storage().data_path().to_owned() });
        }
        let (epoch, version) = (self.epoch().await?, self.version(At::Now).await?);
        if marker.epoch > epoch {
            let (theirs, ours) = (marker.epoch, epoch);
            behind(format!("another catalog took the lake over (its epoch is {theirs}, this one's {ours})"))
        } else if marker.epoch == epoch && version < marker.version {
            let lake = marker.version;
            behind(format!("it is at version {version}, the lake has seen version {lake}"))
        } else {
            Ok(())
        }
    }

    /// Makes this catalog the lake's own from now on, and answers the epoch that begins. Whatever other catalog was at home
    /// here cleans up no more, and files that this one does not know go as orphans.
    ///
    /// Errors: `Owned` when the files are those of another lake.
    pub async fn take_over(&self) -> Result<i64> {
        self.storage().refuse_another(self.id()).await?;
        let marker = read(self.storage()).await?;
        let epoch = marker.map_or(0, |m| m.epoch).max(self.epoch().await?) + 1;
        self.store()
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute("delete from hw_lake where key = 'restored'", &[]).await?;
                    set(tx, "epoch", &epoch.to_string()).await
                })
            })
            .await?;
        self.write_marker().await?;
        Ok(epoch)
    }

    /// Remembers a backup, and lets the marker say how far the lake has come.
    pub async fn note_backup(&self, note: &BackupNote) -> Result<()> {
        let text = json(note)?;
        self.store().write(move |tx| Box::pin(async move { set(tx, "backup", &text).await })).await?;
        match self.refuse_when_behind().await {
            Ok(()) => self.write_marker().await,
            // A catalog that is behind may be backed up, but says nothing about the lake.
            Err(Error::Behind { .. } | Error::Owned { .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// The last backup of this catalog, if there was one.
    pub async fn last_backup(&self) -> Result<Option<BackupNote>> {
        self.fact("backup").await?.map(|text| parsed("backup", &text)).transpose()
    }

    async fn epoch(&self) -> Result<i64> {
        Ok(self.fact("epoch").await?.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    async fn fact(&self, key: &str) -> Result<Option<String>> {
        let row = self.store().row("select value from hw_lake where key = $1", &values![key]).await?;
        Ok(row.map(|row| row.text(0)).transpose()?)
    }
}

/// Reads the marker; `None` at a place where no lake was ever.
pub(crate) async fn read(storage: &Storage) -> Result<Option<Marker>> {
    let bytes = match storage.root().get(&Path::from(MARKER)).await {
        Ok(found) => found.bytes().await,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(other) => Err(other),
    }
    .map_err(|source| Error::Storage { doing: "read", path: MARKER.to_owned(), source })?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::Corrupt { what: format!("`{MARKER}`: {e}") })
}

/// True when a folder's files are surely those of another lake. Buckets are not asked at every start: that costs a request, and
/// minutes when the bucket is out of reach; their turn comes when something is to be removed.
pub(crate) async fn is_of_another(storage: &Storage, id: &str) -> bool {
    let is_foreign = storage.local().is_some() && matches!(read(storage).await, Ok(Some(marker)) if marker.lake != id);
    is_foreign && matches!(storage.is_vacant().await, Ok(false))
}

impl Storage {
    /// Errors: `Owned` when there are files here, and they are those of another lake than this one.
    pub async fn refuse_another(&self, lake: &str) -> Result<()> {
        let is_foreign = read(self).await?.is_some_and(|marker| marker.lake != lake);
        if is_foreign && !self.is_vacant().await? {
            return Err(Error::Owned { place: self.data_path().to_owned() });
        }
        Ok(())
    }

    /// Removes the marker of a lake that has no files: it protects nothing. For the place where a backup is to be restored.
    pub async fn forget_marker(&self) -> Result<()> {
        match self.root().delete(&Path::from(MARKER)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(Error::Storage { doing: "remove", path: MARKER.to_owned(), source }),
        }
    }
}

async fn set(tx: &mut Tx, key: &str, value: &str) -> Result<()> {
    let sql = "insert into hw_lake(key, value) values ($1, $2) on conflict (key) do update set value = excluded.value";
    tx.execute(sql, &values![key, value]).await?;
    Ok(())
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Corrupt { what: e.to_string() })
}

fn parsed<T: serde::de::DeserializeOwned>(key: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::Corrupt { what: format!("the fact `{key}` of the lake: {e}") })
}
