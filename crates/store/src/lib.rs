//! The metadata database: one SQLite file by default, PostgreSQL when grown, through the same calls.
//!
//! Everything that Headworks must not lose or tear goes through [`Store::write`]: a closure that runs in a savepoint of a
//! *group commit*. Closures that arrive while a commit is being made durable share the next one, so that many publishes cost
//! one fsync, and each still succeeds or fails alone.
//!
//! SQL is written once for both databases: `$1` placeholders, `BIGINT`, `TEXT`, `BOOLEAN`, `DOUBLE PRECISION`; times of our
//! own tables are `BIGINT` microseconds since 1970 UTC. It deliberately has no query builder and knows no table but its own
//! list of migrations.
//!
//! [`Snapshot::dump`] writes everything to one portable file and [`Store::load`] reads it back, into either kind of database.
//!
//! Main types: [`Store`], [`Tx`], [`Snapshot`], [`Value`], [`Row`], [`Migration`].
//!
//! ```no_run
//! # async fn f() -> Result<(), headworks_store::Error> {
//! use headworks_store::{Store, StoreOptions, values};
//! let store = Store::open(&StoreOptions::new("sqlite:/tmp/metadata.db")).await?;
//! let n = store
//!     .write(|tx| Box::pin(async move { tx.execute("update t set a = $1 where b = $2", &values![1, "x"]).await }))
//!     .await?;
//! # Ok(()) }
//! ```

mod connection;
mod dump;
mod error;
mod group;
mod migrate;
mod options;
mod snapshot;
mod value;
mod watch;

use std::{path::Path, sync::Arc};

use futures::future::BoxFuture;
use tokio::sync::Mutex;

pub use connection::Dialect;
use connection::{Connection, Readers};
pub use dump::{Dumped, Loaded};
pub use error::{Error, Result};
pub use group::Tx;
use group::Writer;
pub use migrate::{Component, Home, Migration};
pub use options::StoreOptions;
pub use snapshot::Snapshot;
pub use value::{Row, Value};
pub use watch::Changes;
use watch::Watch;

/// An open metadata database; clones share its connections: one that writes and a few that read.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    options: StoreOptions,
    dialect: Dialect,
    readers: Readers,
    /// None when the database was opened for reading only: then nothing here can write.
    writer: Option<Writer>,
    watch: Watch,
    migrating: Mutex<()>,
}

impl Store {
    /// Opens the database, making a SQLite file (and its folder) that does not exist yet. With `read_only` nothing is made, and
    /// the store has no connection that could write.
    ///
    /// Errors: `Open` when the file is no database, is not writable (is not there, with `read_only`), or the server does not
    /// answer (retryable).
    pub async fn open(options: &StoreOptions) -> Result<Self> {
        let dialect = options.dialect()?;
        let first = Connection::open(options).await?;
        let readers = Readers::open(options, &first)?;
        let watch = Watch::default();
        let writer = if options.read_only {
            first.close().await;
            None
        } else {
            Some(Writer::start(options.clone(), first, watch.clone()))
        };
        Ok(Self {
            inner: Arc::new(Inner {
                options: options.clone(),
                dialect,
                readers,
                writer,
                watch,
                migrating: Mutex::new(()),
            }),
        })
    }

    /// Says which database this is.
    pub fn dialect(&self) -> Dialect {
        self.inner.dialect
    }

    /// How it was opened.
    pub fn options(&self) -> &StoreOptions {
        &self.inner.options
    }

    /// True when it was opened for reading only: every write fails with `ForReading`.
    pub fn is_read_only(&self) -> bool {
        self.inner.writer.is_none()
    }

    /// The SQLite file's path; `None` on PostgreSQL.
    pub fn file(&self) -> Option<&Path> {
        self.inner.options.file()
    }

    /// Reads rows outside any transaction; what was committed before the call is seen.
    pub async fn rows(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        self.inner.readers.rows(sql, values).await
    }

    /// Reads the first row, if there is one.
    pub async fn row(&self, sql: &str, values: &[Value]) -> Result<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Runs `work` in a savepoint of a group commit and returns once the commit is durable.
    ///
    /// An error of `work` undoes what it did and nothing else. The closure may touch the transaction only: whatever it waits
    /// for besides holds up the others of its group. Errors: `CommitUnknown` when the reply to COMMIT was lost, so that the
    /// caller must look whether its rows are there; `ForReading`.
    pub async fn write<T, E, F>(&self, work: F) -> std::result::Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, std::result::Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        match &self.inner.writer {
            Some(writer) => writer.write(work).await,
            None => Err(Error::ForReading { url: self.inner.options.shown() }.into()),
        }
    }

    /// Commits one statement by itself, apart from the group commits, so that nothing that waits for the writer holds it up: on
    /// PostgreSQL over one of the connections that read. On SQLite, where one writes at a time, it is a [`write`](Self::write).
    /// Other processes are not told of it.
    pub async fn write_aside(&self, sql: &'static str, values: Vec<Value>) -> Result<()> {
        match self.inner.dialect {
            Dialect::Postgres if !self.is_read_only() => self.rows(sql, &values).await.map(drop),
            _ => self.write(move |tx| Box::pin(async move { tx.execute(sql, &values).await.map(drop) })).await,
        }
    }

    /// Brings a component's tables to the newest version. Concurrent callers, in this process or others, are safe.
    ///
    /// Errors: `Newer` when the database was migrated by a later version of Headworks.
    pub async fn migrate(&self, component: &'static str, home: Home, migrations: &'static [Migration]) -> Result<()> {
        let _one = self.inner.migrating.lock().await;
        migrate::migrate(self, component, home, migrations).await
    }

    /// Looks how far a component's tables were migrated, 0 when there are none. What is there is left as it is.
    ///
    /// Errors: `Newer` as with [`migrate`](Self::migrate).
    pub async fn migrated(&self, component: &'static str, migrations: &'static [Migration]) -> Result<i64> {
        migrate::migrated(self, component, migrations).await
    }

    /// Watches for commits: our own at once, those of other processes within a tenth of a second (SQLite) or half a second.
    pub fn changes(&self) -> Changes {
        self.inner.watch.subscribe(&self.inner.options)
    }

    /// The count of durable commits of this process so far; a group counts once.
    pub fn commits(&self) -> u64 {
        self.inner.writer.as_ref().map_or(0, Writer::commits)
    }

    /// Finishes what was handed in and closes every connection; later writes fail with `Closed`.
    pub async fn close(&self) {
        if let Some(writer) = &self.inner.writer {
            writer.close().await;
        }
        self.inner.readers.close().await;
    }
}
