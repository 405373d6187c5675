use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Dialect, Error, Result};

/// Where the metadata database is and how patiently to use it.
#[derive(Clone)]
pub struct StoreOptions {
    /// `sqlite:PATH`, or `postgres://user:password@host:port/database`.
    pub url: String,
    /// How long to wait for a lock that another process holds.
    pub lock_timeout: Duration,
    /// PostgreSQL: how long the server keeps a transaction, and its locks, whose process stands still in the middle of it. Shorter
    /// than [`lock_timeout`](Self::lock_timeout), so that it is over before others give up.
    pub stall_max: Duration,
    /// The most connections that only read.
    pub readers_max: u32,
    /// PostgreSQL: the schema of our own tables; the lake's catalog stands in `<schema>_lake`.
    pub schema: String,
    /// Opens what is there for reading: nothing is made, migrated or written, by the database's own means.
    pub read_only: bool,
}

impl StoreOptions {
    /// The defaults for a database: wait 30 s for locks, and 10 for whoever stands still; at most three readers of a SQLite file, and two of a PostgreSQL, so that
    /// a process has four connections with the one that writes and the one that watches.
    pub fn new(url: impl Into<String>) -> Self {
        let url = url.into();
        let readers_max = if url.starts_with("sqlite:") { 3 } else { 2 };
        Self {
            url,
            lock_timeout: Duration::from_secs(30),
            stall_max: Duration::from_secs(10),
            readers_max,
            schema: "headworks".to_owned(),
            read_only: false,
        }
    }

    /// The same database, for reading only.
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// The dialect that the URL names. Errors: `Url`.
    pub(crate) fn dialect(&self) -> Result<Dialect> {
        if self.url.starts_with("sqlite:") {
            Ok(Dialect::Sqlite)
        } else if self.url.starts_with("postgres://") || self.url.starts_with("postgresql://") {
            Ok(Dialect::Postgres)
        } else {
            Err(Error::Url { url: self.shown() })
        }
    }

    /// The SQLite file's path, if it is one.
    pub fn file(&self) -> Option<&Path> {
        self.url.strip_prefix("sqlite:").map(|rest| Path::new(rest.strip_prefix("//").unwrap_or(rest)))
    }

    /// PostgreSQL: the schema that holds the lake's catalog, which DuckDB attaches as its metadata schema.
    pub fn lake_schema(&self) -> String {
        format!("{}_lake", self.schema)
    }

    /// The URL without its password, for messages.
    pub fn shown(&self) -> String {
        if let Some(file) = self.file() {
            return format!("sqlite:{}", PathBuf::from(file).display());
        }
        match (self.url.split_once("://"), self.url.rfind('@')) {
            (Some((scheme, rest)), Some(_)) => {
                let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
                let user = user.split(':').next().unwrap_or_default();
                format!("{scheme}://{user}@{host}")
            }
            _ => self.url.clone(),
        }
    }
}
