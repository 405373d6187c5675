//! The lake: tables of Parquet files under a DuckLake 1.0 catalog that lives in the metadata database.
//!
//! A result is *staged* (files under unique names, durable, known to nobody) and then *published*: one SQL transaction, which
//! the caller shares, points the catalog at the new files, retires the old ones, and tells the partition registry. DuckDB reads
//! and writes the same lake.
//!
//! It deliberately runs no SQL queries (that is `engine`), decides nothing about when (that is `flow`), and never overwrites a
//! file: a path belongs to one catalog row for ever.
//!
//! Main types: [`Lake`], [`Table`], [`StageRequest`] and [`Staged`], [`PublishInfo`] and [`Published`], [`Storage`], [`At`].
//!
//! Data path: `main/<table>/ds=2013-01-01/<uuid>-f<fence>.parquet`. Format: DuckLake 1.0, see [`catalog`] for its tables and
//! ours; a new version of ours is a new [`headworks_store::Migration`].

mod catalog;
mod error;
mod publish;
mod read;
mod registry;
mod restore;
mod rows;
mod shape;
mod stats;
mod storage;
mod table;
mod types;
mod upkeep;
mod view;
mod write;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use chrono::{DateTime, Utc};
use headworks_domain::{Clock, PartitionKey, nearest};
use headworks_store::{Store, Tx, Value, values};

pub use error::{Error, Result};
pub use publish::{Input, PublishInfo, Published};
pub use read::{LakeTable, error_in};
pub use registry::{Action, PartitionInfo, PartitionVersion, TableNote};
pub use rows::{Rows, rows};
pub use shape::ColumnSpec;
pub use storage::{Storage, StorageOptions};
use table::From;
pub use table::{Column, FIELD_ID, Partition, PartitionColumn, Table};
pub use upkeep::{Keep, Removal};
pub use view::View;
pub use write::{StageRequest, Staged, TableSpec};

/// Which state of the lake is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum At {
    /// The newest.
    #[default]
    Now,
    /// As it was after that snapshot.
    Version(i64),
    /// As it was at that instant.
    Time(DateTime<Utc>),
}

/// An open lake; clones share everything.
#[derive(Clone)]
pub struct Lake {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    store: Store,
    storage: Storage,
    clock: Arc<dyn Clock>,
    /// Tables by name, good while the catalog's schema version is the one they were read at.
    tables: Mutex<TableCache>,
}

/// Tables as they were read, for the newest schema version only: old versions are looked at rarely.
#[derive(Default)]
struct TableCache {
    schema_version: i64,
    tables: HashMap<String, Option<Arc<Table>>>,
}

impl TableCache {
    fn find(&self, schema_version: i64, name: &str) -> Option<Option<Arc<Table>>> {
        self.tables.get(name).filter(|_| self.schema_version == schema_version).cloned()
    }

    fn keep(&mut self, schema_version: i64, name: &str, table: Option<Arc<Table>>) {
        if schema_version > self.schema_version {
            *self = Self { schema_version, tables: HashMap::new() };
        }
        if schema_version == self.schema_version {
            self.tables.insert(name.to_owned(), table);
        }
    }
}

impl Lake {
    /// Opens the lake, creating its catalog when there is none.
    ///
    /// Errors: `Newer`, `Elsewhere`, and what the storage and the database say.
    pub async fn open(store: Store, storage: Storage, clock: Arc<dyn Clock>) -> Result<Self> {
        let id = catalog::open(&store, storage.data_path(), clock.now()).await?;
        let tables = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { id, store, storage, clock, tables }) })
    }

    /// The lake's own id, for ever the same.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The database that holds the catalog.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The files.
    pub fn storage(&self) -> &Storage {
        &self.inner.storage
    }

    /// The present instant by the lake's clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.inner.clock.now()
    }

    /// The version that `at` means. Errors: `NoVersion` for what is not there any more or not yet.
    pub async fn version(&self, at: At) -> Result<i64> {
        // Two questions: SQLite answers a lone min or max from the key, both together by reading every row.
        let bounds =
            "select (select min(snapshot_id) from ducklake_snapshot), (select max(snapshot_id) from ducklake_snapshot)";
        let bounds = self.store().row(bounds, &[]).await?;
        let (oldest, newest) = match bounds {
            Some(row) => (row.i64(0)?, row.i64(1)?),
            None => (0, 0),
        };
        match at {
            At::Now => Ok(newest),
            At::Version(version) if (oldest..=newest).contains(&version) => Ok(version),
            At::Version(version) => Err(Error::NoVersion { asked: version.to_string(), oldest, newest }),
            At::Time(time) => {
                // Times are compared as the database keeps them; on SQLite as text, which sorts as time does.
                let row = self
                    .store()
                    .row("select max(snapshot_id) from ducklake_snapshot where snapshot_time <= $1", &values![time])
                    .await?;
                let version = row.map_or(Ok(None), |row| row.opt_i64(0))?;
                version.ok_or_else(|| Error::NoVersion { asked: time.to_rfc3339(), oldest, newest })
            }
        }
    }

    /// A table by name, or `None`. Names match as written, else without regard to case.
    pub async fn table(&self, name: &str, at: At) -> Result<Option<Arc<Table>>> {
        let version = self.version(at).await?;
        let row = self
            .store()
            .row("select schema_version from ducklake_snapshot where snapshot_id = $1", &values![version])
            .await?;
        let schema_version = row.map_or(Ok(0), |row| row.i64(0))?;
        if let Some(found) = self.cache().find(schema_version, name) {
            return Ok(found);
        }
        let loaded = table::load(&mut From::Store(self.store()), name, version).await?.map(Arc::new);
        self.cache().keep(schema_version, name, loaded.clone());
        Ok(loaded)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, TableCache> {
        self.inner.tables.lock().expect("nothing panics while it holds this lock")
    }

    /// A table that must be there. Errors: `NoTable` with the name that was meant, most likely.
    pub async fn expect_table(&self, name: &str, at: At) -> Result<Arc<Table>> {
        match self.table(name, at).await? {
            Some(table) => Ok(table),
            None => {
                let names = self.table_names(at).await?;
                let near = nearest(name, names.iter().map(String::as_str)).map(str::to_owned);
                Err(Error::NoTable { name: name.to_owned(), near })
            }
        }
    }

    /// The names of all tables, sorted.
    pub async fn table_names(&self, at: At) -> Result<Vec<String>> {
        let version = self.version(at).await?;
        let names = table::names(&mut From::Store(self.store()), version).await?;
        Ok(names.into_iter().map(|(name, _)| name).collect())
    }

    /// What is known of every table besides its catalog rows, sorted by name.
    pub async fn notes(&self) -> Result<Vec<TableNote>> {
        let rows = self
            .store()
            .rows(
                "select n.table_id, t.table_name, n.kind, n.job, n.owner, n.retention_secs from hw_table n
                 join ducklake_table t on t.table_id = n.table_id and t.end_snapshot is null order by 2",
                &[],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(TableNote {
                    table_id: row.i64(0)?,
                    name: row.text(1)?,
                    kind: row.text(2)?,
                    job: row.opt_text(3)?,
                    owner: row.opt_text(4)?,
                    retention_secs: row.opt_i64(5)?,
                })
            })
            .collect()
    }

    /// The published partitions of a table, oldest first.
    pub async fn partitions(&self, table_id: i64) -> Result<Vec<PartitionInfo>> {
        let rows = self
            .store()
            .rows(
                "select partition, version, row_count, bytes, files, published_at from hw_partition where table_id = $1 order by partition",
                &values![table_id],
            )
            .await?;
        rows.iter().map(registry::partition_info).collect()
    }

    /// The newest published partition of a table, also when it has no rows. At an older version, the newest of that time.
    pub async fn latest_partition(&self, name: &str, at: At) -> Result<Option<PartitionKey>> {
        let Some(table) = self.table(name, at).await? else { return Ok(None) };
        let row = match at {
            At::Now => {
                self.store()
                    .row("select max(partition) from hw_partition where table_id = $1", &values![table.id])
                    .await?
            }
            _ => {
                let version = self.version(at).await?;
                self.store()
                    .row(
                        "select max(p.partition) from hw_publish p where p.table_id = $1 and p.version <= $2 and not exists (
                             select 1 from hw_publish d where d.table_id = p.table_id and d.partition = p.partition
                               and d.version > p.version and d.version <= $2 and d.action = 'drop') and p.action <> 'drop'",
                        &values![table.id, version],
                    )
                    .await?
            }
        };
        Ok(row.map_or(Ok(None), |row| row.opt_text(0))?.and_then(|text| text.parse().ok()))
    }

    /// The current versions of those partitions that are published; empty for a table that is not there.
    pub async fn published(&self, name: &str, keys: &[PartitionKey]) -> Result<HashMap<PartitionKey, i64>> {
        match self.table(name, At::Now).await? {
            Some(table) => self.versions(table.id, keys).await,
            None => Ok(HashMap::new()),
        }
    }

    pub(crate) async fn versions(&self, table_id: i64, keys: &[PartitionKey]) -> Result<HashMap<PartitionKey, i64>> {
        registry::versions(&mut From::Store(self.store()), table_id, keys.iter()).await
    }

    /// The versions of a table's partitions, newest first; of one partition when `key` is given. At most `limit`.
    pub async fn history(
        &self,
        table_id: i64,
        key: Option<&PartitionKey>,
        limit: usize,
    ) -> Result<Vec<PartitionVersion>> {
        let rows = self
            .store()
            .rows(
                "select partition, version, row_count, bytes, files, published_at, action, job, run_id, attempt, job_version, as_of_now
                 from hw_publish where table_id = $1 and ($2 = '' or partition = $2) order by version desc, partition desc limit $3",
                &values![table_id, key.map(ToString::to_string).unwrap_or_default(), limit],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(PartitionVersion {
                    info: registry::partition_info(row)?,
                    action: row.text(6)?,
                    job: row.opt_text(7)?,
                    run_id: row.opt_text(8)?,
                    attempt: row.opt_i64(9)?,
                    job_version: row.opt_text(10)?,
                    as_of_now: row.bool(11)?,
                })
            })
            .collect()
    }

    /// The partitions that got a new version after `position`, as table and key, and the newest version.
    pub async fn published_since(&self, position: i64) -> Result<(Vec<(String, PartitionKey)>, i64)> {
        let newest = self.version(At::Now).await?;
        if newest <= position {
            return Ok((Vec::new(), newest));
        }
        let rows = self
            .store()
            .rows(
                "select t.table_name, p.partition from hw_publish p
                 join ducklake_table t on t.table_id = p.table_id and t.end_snapshot is null
                 where p.version > $1 and p.action <> 'drop'",
                &values![position],
            )
            .await?;
        let mut published = Vec::with_capacity(rows.len());
        for row in rows {
            if let Ok(key) = row.text(1)?.parse() {
                published.push((row.text(0)?, key));
            }
        }
        Ok((published, newest))
    }

    /// Adds what other programs committed to the registry. Cheap when there was nothing; answers whether there was.
    pub async fn catch_up(&self) -> Result<bool> {
        if !registry::is_behind(&mut From::Store(self.store())).await? {
            return Ok(false);
        }
        let now = self.now();
        self.store()
            .write(move |tx| {
                Box::pin(async move {
                    publish::lock(tx).await?;
                    registry::catch_up(tx, now).await
                })
            })
            .await?;
        Ok(true)
    }

    /// The first column id that a table never used.
    pub(crate) async fn next_column_id(&self, table: &Table) -> Result<i64> {
        let row = self
            .store()
            .row("select max(column_id) from ducklake_column where table_id = $1", &values![table.id])
            .await?;
        Ok(row.map_or(Ok(None), |row| row.opt_i64(0))?.unwrap_or(0) + 1)
    }

    /// Writes a result as the files of its partitions. Nobody sees them until they are published.
    ///
    /// Batches: any order, any size; partition columns may be left out, and are then the request's own. Files and folders are
    /// durable when it returns. Errors: `Schema` when the result does not fit the table, `OutsidePartition` for stray rows,
    /// `Io` or `Storage` (a full disk, a lost server), and what the stream itself fails with.
    pub async fn stage(&self, request: StageRequest, rows: Rows) -> Result<Staged> {
        write::stage(self, request, rows).await
    }

    /// Removes the files of a staged result that will not be published.
    pub async fn discard(&self, staged: &Staged) -> Result<()> {
        for (path, _) in staged.files() {
            let path = object_store::path::Path::parse(&path).map_err(|e| Error::Corrupt { what: e.to_string() })?;
            self.delete_file(&path).await?;
        }
        Ok(())
    }

    /// Swaps the staged partitions in, inside the caller's transaction.
    ///
    /// Errors: `Conflict` (retryable: stage again) when a partition was published since it was staged, `Reshaped` (likewise)
    /// when the table's columns changed, `Spans` when a foreign file holds rows of several partitions.
    pub async fn publish(&self, tx: &mut Tx, staged: &Staged, info: &PublishInfo) -> Result<Published> {
        publish::publish(tx, staged, info, self.now()).await
    }
}

/// A list of placeholders, `$2, $3, ...`, and room for their values.
pub(crate) fn places(from: usize, values: &[Value]) -> String {
    (from..from + values.len()).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ")
}
