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
mod contents;
mod copy;
mod environment;
mod error;
mod foreign;
mod marker;
mod publish;
mod read;
mod registry;
mod restore;
mod rows;
mod shape;
mod stamp;
mod stats;
mod storage;
mod table;
mod types;
mod upkeep;
mod view;
mod write;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::{DateTime, Utc};
use headworks_domain::{Clock, PartitionKey, nearest};
use headworks_store::{Row, Store, Tx, Value, values};

pub use catalog::TABLES;
pub use contents::{Contents, LakeFile, contents};
pub use copy::Copied;
pub use environment::{claim, environment_of};
pub use error::{Error, Result};
pub use marker::{BackupNote, Restore, restored};
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
    /// Of a lake that is only read: what the registry has not seen of other programs' commits.
    unseen: tokio::sync::Mutex<Unseen>,
    /// Held while the newest commits are looked for, so that those who wait for it need not look again.
    touched: tokio::sync::Mutex<Stamps>,
    /// Counts those who asked for a stamp.
    asked: AtomicU64,
}

/// The last commits of tables, and how many had asked for a stamp when they were looked for.
#[derive(Default)]
struct Stamps {
    touched: stamp::Touched,
    asked: u64,
}

/// Changes of foreign commits after one version and up to another.
#[derive(Default)]
struct Unseen {
    seen: i64,
    newest: i64,
    changes: Arc<Vec<foreign::Change>>,
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
    /// Errors: `Newer`, `Elsewhere`, `Owned` when a new catalog would come to files of another, and what the storage and the
    /// database say.
    pub async fn open(store: Store, storage: Storage, clock: Arc<dyn Clock>) -> Result<Self> {
        let found = catalog::find(&store, storage.data_path()).await?;
        let is_new = found.is_none();
        let owned = || Error::Owned { place: storage.data_path().to_owned() };
        let id = match found {
            Some(id) if marker::is_of_another(&storage, &id).await => return Err(owned()),
            Some(id) => id,
            // To a new catalog all files would be orphans.
            None if marker::read(&storage).await?.is_some() && !storage.is_vacant().await? => {
                // Another process may have made the catalog just now.
                catalog::find(&store, storage.data_path()).await?.ok_or_else(owned)?
            }
            None => catalog::create(&store, storage.data_path(), clock.now()).await?,
        };
        let lake = Self::new(id, store, storage, clock);
        if is_new {
            lake.write_marker().await?;
        }
        Ok(lake)
    }

    /// Opens a lake that this process only reads: nothing is made, migrated or caught up, and what other programs committed is
    /// found anew each time. `None` when there is no lake yet. Store and storage must be opened for reading only as well.
    ///
    /// Errors: as with [`open`](Self::open).
    pub async fn open_read_only(store: Store, storage: Storage, clock: Arc<dyn Clock>) -> Result<Option<Self>> {
        let id = catalog::look(&store, storage.data_path()).await?;
        Ok(id.map(|id| Self::new(id, store, storage, clock)))
    }

    fn new(id: String, store: Store, storage: Storage, clock: Arc<dyn Clock>) -> Self {
        let (tables, unseen, touched) =
            (Mutex::default(), tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let asked = AtomicU64::new(0);
        Self { inner: Arc::new(Inner { id, store, storage, clock, tables, unseen, touched, asked }) }
    }

    /// The lake's own id, for ever the same.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// True when it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.store().is_read_only()
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

    /// A text that is another one whenever a commit that was done before this call may have changed one of these tables and
    /// views: their rows, their columns, whether they are there. `None` when that was after the version `since`.
    ///
    /// Cost: one row of the database; callers that come while one is looking share the next look.
    pub async fn stamp(&self, names: &[String], since: Option<i64>) -> Result<Option<String>> {
        let ticket = self.inner.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut stamps = self.inner.touched.lock().await;
        if stamps.asked < ticket {
            let asked = self.inner.asked.load(Ordering::Acquire);
            stamps.touched.catch_up(self.store()).await?;
            stamps.asked = asked;
        }
        Ok(stamps.touched.stamp(names, since))
    }

    /// The version that `at` means. Errors: `NoVersion` for what is not there any more or not yet.
    pub async fn version(&self, at: At) -> Result<i64> {
        Ok(self.resolve(at).await?.0)
    }

    /// The version that `at` means, and the catalog's schema version then, in one statement.
    async fn resolve(&self, at: At) -> Result<(i64, i64)> {
        const HEAD: &str = "select snapshot_id, schema_version from ducklake_snapshot";
        const NEWEST: &str = "order by snapshot_id desc limit 1";
        let store = self.store();
        let row = match at {
            At::Now => store.row(&format!("{HEAD} {NEWEST}"), &[]).await?,
            At::Version(version) => {
                store.row(&format!("{HEAD} where snapshot_id <= $1 {NEWEST}"), &values![version]).await?
            }
            // Times are compared as the database keeps them; on SQLite as text, which sorts as time does.
            At::Time(time) => store.row(&format!("{HEAD} where snapshot_time <= $1 {NEWEST}"), &values![time]).await?,
        };
        let found = row.map(|row| Ok::<_, Error>((row.i64(0)?, row.i64(1)?))).transpose()?;
        let asked = match (at, found) {
            (At::Now, found) => return Ok(found.unwrap_or_default()),
            (At::Time(_), Some(found)) => return Ok(found),
            (At::Time(time), None) => time.to_rfc3339(),
            (At::Version(version), Some(found)) if found.0 == version => return Ok(found),
            (At::Version(version), _) => version.to_string(),
        };
        // Two questions: SQLite answers a lone min or max from the key, both together by reading every row.
        let bounds =
            "select (select min(snapshot_id) from ducklake_snapshot), (select max(snapshot_id) from ducklake_snapshot)";
        let (oldest, newest) = match store.row(bounds, &[]).await? {
            Some(row) => (row.i64(0)?, row.i64(1)?),
            None => (0, 0),
        };
        match (at, found) {
            // One of several versions that another program forgot.
            (At::Version(version), Some((_, schema_version))) if version < newest => Ok((version, schema_version)),
            _ => Err(Error::NoVersion { asked, oldest, newest }),
        }
    }

    /// A table by name, or `None`. Names match as written, else without regard to case.
    pub async fn table(&self, name: &str, at: At) -> Result<Option<Arc<Table>>> {
        let (version, schema_version) = self.resolve(at).await?;
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
        let unseen = self.unseen().await?;
        let rows = self
            .store()
            .rows(
                "select n.table_id, t.table_name, n.kind, n.job, n.owner, n.retention_secs from hw_table n
                 join ducklake_table t on t.table_id = n.table_id and t.end_snapshot is null order by 2",
                &[],
            )
            .await?;
        let note = |row: &Row| {
            Ok(TableNote {
                table_id: row.i64(0)?,
                name: row.text(1)?,
                kind: row.text(2)?,
                job: row.opt_text(3)?,
                owner: row.opt_text(4)?,
                retention_secs: row.opt_i64(5)?,
            })
        };
        let mut notes: Vec<TableNote> = rows.iter().map(note).collect::<Result<_>>()?;
        for change in unseen.iter() {
            if notes.iter().all(|n| n.table_id != change.table_id) {
                notes.push(change.note());
                notes.sort_by(|a, b| a.name.cmp(&b.name));
            }
        }
        Ok(notes)
    }

    /// The published partitions of a table, oldest first.
    pub async fn partitions(&self, table_id: i64) -> Result<Vec<PartitionInfo>> {
        let unseen = self.unseen().await?;
        let rows = self
            .store()
            .rows(
                "select partition, version, row_count, bytes, files, published_at from hw_partition where table_id = $1 order by partition",
                &values![table_id],
            )
            .await?;
        let known: Vec<PartitionInfo> = rows.iter().map(registry::partition_info).collect::<Result<_>>()?;
        if unseen.iter().all(|c| c.table_id != table_id) {
            return Ok(known);
        }
        let mut by_key: BTreeMap<String, PartitionInfo> =
            known.into_iter().map(|info| (info.key.to_string(), info)).collect();
        for change in unseen.iter().filter(|c| c.table_id == table_id) {
            let info = change.info(self.now());
            let newest = by_key.entry(change.key.to_string()).or_insert_with(|| info.clone());
            if newest.version < info.version {
                *newest = info;
            }
        }
        Ok(by_key.into_values().collect())
    }

    /// The newest published partition of a table, also when it has no rows. At an older version, the newest of that time.
    pub async fn latest_partition(&self, name: &str, at: At) -> Result<Option<PartitionKey>> {
        let Some(table) = self.table(name, at).await? else { return Ok(None) };
        let unseen = self.unseen().await?;
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
        let known = row.map_or(Ok(None), |row| row.opt_text(0))?;
        let up_to = if at == At::Now || unseen.is_empty() { i64::MAX } else { self.version(at).await? };
        let unseen = unseen.iter().filter(|c| c.table_id == table.id && c.version <= up_to).map(|c| c.key.to_string());
        Ok(known.into_iter().chain(unseen).max().and_then(|text| text.parse().ok()))
    }

    /// The current versions of those partitions that are published; empty for a table that is not there.
    pub async fn published(&self, name: &str, keys: &[PartitionKey]) -> Result<HashMap<PartitionKey, i64>> {
        match self.table(name, At::Now).await? {
            Some(table) => self.versions(table.id, keys).await,
            None => Ok(HashMap::new()),
        }
    }

    pub(crate) async fn versions(&self, table_id: i64, keys: &[PartitionKey]) -> Result<HashMap<PartitionKey, i64>> {
        let unseen = self.unseen().await?;
        let mut versions = registry::versions(&mut From::Store(self.store()), table_id, keys.iter()).await?;
        for change in unseen.iter().filter(|c| c.table_id == table_id && keys.contains(&c.key)) {
            let version = versions.entry(change.key.clone()).or_insert(change.version);
            *version = change.version.max(*version);
        }
        Ok(versions)
    }

    /// What other programs committed and the registry does not know: nothing, but for a lake that is only read.
    ///
    /// Ask before the registry: what its owner catches up with in between is then told twice, and never missed.
    async fn unseen(&self) -> Result<Arc<Vec<foreign::Change>>> {
        if !self.is_read_only() {
            return Ok(Arc::default());
        }
        let from = &mut From::Store(self.store());
        let (seen, newest) = foreign::behind(from).await?;
        let mut known = self.inner.unseen.lock().await;
        if (known.seen, known.newest) != (seen, newest) {
            let changes = if seen < newest { foreign::changes(from, seen, newest).await? } else { Vec::new() };
            *known = Unseen { seen, newest, changes: Arc::new(changes) };
        }
        Ok(Arc::clone(&known.changes))
    }

    /// The versions of a table's partitions, newest first; of one partition when `key` is given. At most `limit`.
    pub async fn history(
        &self,
        table_id: i64,
        key: Option<&PartitionKey>,
        limit: usize,
    ) -> Result<Vec<PartitionVersion>> {
        let unseen = self.unseen().await?;
        let rows = self
            .store()
            .rows(
                "select partition, version, row_count, bytes, files, published_at, action, job, run_id, attempt, job_version, as_of_now
                 from hw_publish where table_id = $1 and ($2 = '' or partition = $2) order by version desc, partition desc limit $3",
                &values![table_id, key.map(ToString::to_string).unwrap_or_default(), limit],
            )
            .await?;
        let version = |row: &Row| {
            Ok(PartitionVersion {
                info: registry::partition_info(row)?,
                action: row.text(6)?,
                job: row.opt_text(7)?,
                run_id: row.opt_text(8)?,
                attempt: row.opt_i64(9)?,
                job_version: row.opt_text(10)?,
                as_of_now: row.bool(11)?,
            })
        };
        let mut versions: Vec<PartitionVersion> = rows.iter().map(version).collect::<Result<_>>()?;
        let unseen = unseen.iter().filter(|c| c.table_id == table_id && key.is_none_or(|key| *key == c.key));
        versions.extend(unseen.map(|change| change.version(self.now())));
        versions.sort_by_key(|v| std::cmp::Reverse(v.info.version));
        versions.truncate(limit);
        Ok(versions)
    }

    /// The partitions that got a new version after `position`, as table and key, and the newest version.
    pub async fn published_since(&self, position: i64) -> Result<(Vec<(String, PartitionKey)>, i64)> {
        let newest = self.version(At::Now).await?;
        if newest <= position {
            return Ok((Vec::new(), newest));
        }
        // Asked first: what comes to the registry meanwhile is in both answers, and never in none.
        let unseen = self.unseen().await?;
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
        published.extend(unseen.iter().filter(|c| c.version > position).map(|c| (c.table.clone(), c.key.clone())));
        Ok((published, newest))
    }

    /// Adds what other programs committed to the registry. Cheap when there was nothing; answers whether there was. A lake that
    /// is only read stays as it is: its answers count such commits in.
    pub async fn catch_up(&self) -> Result<bool> {
        let (seen, newest) = foreign::behind(&mut From::Store(self.store())).await?;
        if seen >= newest || self.is_read_only() {
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
    /// when the table's columns changed, `Spans` when a foreign file holds rows of several partitions. After an error the
    /// caller's piece of work must fail too: on SQLite what was written before it is undone with that.
    pub async fn publish(&self, tx: &mut Tx, staged: &Staged, info: &PublishInfo) -> Result<Published> {
        publish::publish(tx, staged, info, self.now()).await
    }
}

/// A list of placeholders, `$2, $3, ...`, and room for their values.
pub(crate) fn places(from: usize, values: &[Value]) -> String {
    (from..from + values.len()).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ")
}
