//! PostgreSQL servers as sources.
//!
//! Tables are read by `COPY (SELECT ...) TO STDOUT (FORMAT binary)`, decoded straight into Arrow's builders. Each read is one
//! transaction, REPEATABLE READ and READ ONLY, that locks the table against changes of its definition before it looks.

mod ask;
mod copy;
mod decode;
mod introspect;
pub(crate) mod numeric;
mod parts;
mod plan;
pub(crate) mod pool;
mod read;
mod session;
mod task;

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use headworks_domain::Secret;
use sqlx::postgres::PgConnectOptions;

pub(crate) use self::decode::{EPOCH_DAYS, EPOCH_MICROS};
use self::{introspect::KnownTable, pool::Pool};
use crate::{
    error::{Error, Result, database},
    source::{BatchReader, FirstValue, ReadRequest, Snapshot, Source, SourceOptions, SourceTable},
};

/// A PostgreSQL server.
#[derive(Debug, Clone)]
pub(crate) struct PostgresSource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    pool: Pool,
    options: SourceOptions,
    /// What was learnt about tables, by the name asked for; each read checks that it still holds.
    tables: Mutex<HashMap<String, Arc<KnownTable>>>,
}

impl PostgresSource {
    pub(crate) fn open(name: &str, url: &Secret, options: SourceOptions) -> Result<Self> {
        let connect = connect_options(name, url)?;
        let timeout = Duration::from_secs(options.acquire_timeout_secs);
        let pool = Pool::new(connect, options.connections_max, timeout);
        Ok(Self { inner: Arc::new(Inner { name: name.to_owned(), pool, options, tables: Mutex::default() }) })
    }
}

/// What may stand after the `?` of a connection's URL.
const PARAMETERS: [&str; 12] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Reads a connection's URL. Its text may hold a password, so it is in no error.
pub(crate) fn connect_options(name: &str, url: &Secret) -> Result<PgConnectOptions> {
    let wrong = |reason: &str| Error::Settings { connection: name.to_owned(), reason: reason.to_owned() };
    let url = url.expose();
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(wrong("its `url` does not begin with `postgres://`"));
    }
    // sqlx would log an unknown parameter with its value, which may be a mistyped password.
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for key in query.split('&').filter_map(|pair| pair.split('=').next()).filter(|key| !key.is_empty()) {
        if !PARAMETERS.contains(&key) {
            return Err(wrong(&format!("its `url` has the parameter `{key}`, which is not known")));
        }
    }
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| wrong("its `url` is not of the form `postgres://user:password@host:5432/database`"))?;
    Ok(options.application_name("headworks"))
}

impl Inner {
    fn error(&self, doing: &str, error: &sqlx::Error) -> Error {
        database(&self.name, doing, error)
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn check(&self) -> Result<()> {
        let inner = &self.inner;
        let mut db = inner.pool.acquire().await.map_err(|e| inner.error("connect", &e))?;
        sqlx::query("SELECT 1").execute(db.connection()).await.map_err(|e| inner.error("connect", &e))?;
        db.release();
        Ok(())
    }

    async fn tables(&self) -> Result<Vec<String>> {
        let inner = &self.inner;
        let mut db = inner.pool.acquire().await.map_err(|e| inner.error("connect", &e))?;
        let tables = introspect::tables(db.connection()).await.map_err(|e| inner.error("list its tables", &e))?;
        db.release();
        Ok(tables)
    }

    async fn table(&self, name: &str) -> Result<Arc<SourceTable>> {
        let mut db = session::begin(&self.inner).await?;
        let known = read::describe(&self.inner, db.connection(), name).await?;
        session::finish(db).await;
        Ok(known.described.clone())
    }

    async fn read(&self, request: ReadRequest) -> Result<BatchReader> {
        read::read(self.inner.clone(), request).await
    }

    async fn first_value(&self, sql: &str, within: Duration) -> Result<FirstValue> {
        ask::first_value(&self.inner, sql, within).await
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        read::snapshot(self.inner.clone()).await
    }
}

#[cfg(test)]
mod tests {
    use headworks_domain::Fault;

    use super::*;

    #[test]
    fn a_wrong_url_does_not_show_its_password() {
        for url in [
            "mysql://u:geheim@h/d",
            "postgres://u:geheim@h:notaport/d",
            "postgres://u:geheim@h/d?sslmode=geheim",
            "postgres://u@h/d?passwort=geheim",
            "",
        ] {
            let error = connect_options("production", &Secret::new(url)).unwrap_err();
            let text = format!("{error} {error:?} {:?}", error.hint());
            assert!(!text.contains("geheim"), "{text}");
            assert!(text.contains("production"), "{text}");
        }
    }
}
