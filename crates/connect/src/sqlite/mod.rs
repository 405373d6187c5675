//! SQLite files as sources.

mod ask;
mod form;
mod introspect;
mod read;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use headworks_domain::ErrorKind;
use sqlx::{
    SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use self::{form::KnownForm, introspect::KnownTable, read::Held};
use crate::{
    error::{Error, Result, database},
    source::{BatchReader, FirstValue, ReadRequest, Snapshot, Source, SourceOptions, SourceTable},
};

/// What every SQLite file begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// How long a reader waits for a writer's lock.
const BUSY_TIMEOUT_SECS: u64 = 10;

/// How many rows the driver may hold ready: few would switch threads for nearly every row.
const ROW_BUFFER: usize = 512;

/// A SQLite file, opened for reading only.
#[derive(Debug, Clone)]
pub(crate) struct SqliteSource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    pool: SqlitePool,
    options: SourceOptions,
    /// What was learnt about tables, by the name asked for; good while SQLite's schema version is the same.
    tables: Mutex<HashMap<String, Arc<KnownTable>>>,
    /// What was learnt about the values of columns that cut intervals, by table and column.
    forms: Mutex<HashMap<(String, String), KnownForm>>,
}

impl SqliteSource {
    pub(crate) fn open(name: &str, path: &Path, options: SourceOptions) -> Result<Self> {
        check_file(name, path)?;
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(Duration::from_secs(BUSY_TIMEOUT_SECS))
            .row_buffer_size(ROW_BUFFER);
        let pool = SqlitePoolOptions::new()
            .max_connections(options.connections_max.max(1))
            .acquire_timeout(Duration::from_secs(options.acquire_timeout_secs))
            .test_before_acquire(false)
            .connect_lazy_with(connect);
        let inner = Inner {
            name: name.to_owned(),
            path: path.to_owned(),
            pool,
            options,
            tables: Mutex::default(),
            forms: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// Checks that there is a SQLite file: SQLite itself would find out only at the first query, and say less.
fn check_file(name: &str, path: &Path) -> Result<()> {
    let denied = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Error::Missing { connection: name.to_owned(), path: path.to_owned() },
        kind => Error::Database {
            connection: name.to_owned(),
            doing: format!("open `{}`", path.display()),
            reason: error.to_string(),
            kind: if kind == io::ErrorKind::PermissionDenied { ErrorKind::Denied } else { ErrorKind::Unavailable },
            hint: Some("let this user read the file".to_owned()),
        },
    };
    let not_one = || Error::NotADatabase { connection: name.to_owned(), path: path.to_owned() };
    if std::fs::metadata(path).map_err(denied)?.is_dir() {
        return Err(not_one());
    }
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(16).read_to_end(&mut start)).map_err(denied)?;
    // An empty file is a database without tables.
    if start.is_empty() || start == MAGIC { Ok(()) } else { Err(not_one()) }
}

impl Inner {
    fn error(&self, doing: &str, error: &sqlx::Error) -> Error {
        let code = error.as_database_error().and_then(|e| e.code());
        if code.as_deref() == Some("26") {
            return Error::NotADatabase { connection: self.name.clone(), path: self.path.clone() };
        }
        if code.as_deref() == Some("14") && !self.path.exists() {
            return Error::Missing { connection: self.name.clone(), path: self.path.clone() };
        }
        database(&self.name, doing, error)
    }

    /// Starts a transaction that sees one moment.
    async fn begin(self: &Arc<Self>) -> Result<Held> {
        let tx = self.pool.begin().await.map_err(|e| self.error("open it", &e))?;
        Ok(Held::Own(tx))
    }

    /// Describes a table as this connection sees it.
    async fn known_table(&self, db: &mut SqliteConnection, name: &str) -> Result<Arc<KnownTable>> {
        let version: i64 = sqlx::query_scalar("PRAGMA schema_version")
            .fetch_one(&mut *db)
            .await
            .map_err(|e| self.error("read its schema", &e))?;
        let known = self.tables.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(known) = known.filter(|t| t.schema_version == version) {
            return Ok(known);
        }
        let found = introspect::table(&self.name, db, name, version)
            .await
            .map_err(|e| self.error(&format!("describe table `{name}`"), &e))??;
        let found = Arc::new(found);
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), found.clone());
        Ok(found)
    }
}

#[async_trait]
impl Source for SqliteSource {
    async fn check(&self) -> Result<()> {
        self.tables().await.map(drop)
    }

    async fn tables(&self) -> Result<Vec<String>> {
        let mut db = self.inner.begin().await?;
        introspect::tables(&mut db).await.map_err(|e| self.inner.error("list its tables", &e))
    }

    async fn table(&self, name: &str) -> Result<Arc<SourceTable>> {
        let mut db = self.inner.begin().await?;
        Ok(self.inner.known_table(&mut db, name).await?.described.clone())
    }

    async fn read(&self, request: ReadRequest) -> Result<BatchReader> {
        let held = self.inner.begin().await?;
        read::start(self.inner.clone(), held, request).await
    }

    async fn first_value(&self, sql: &str, within: Duration) -> Result<FirstValue> {
        ask::first_value(&self.inner, sql, within).await
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        read::snapshot(self.inner.clone()).await
    }
}
