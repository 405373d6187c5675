//! Who asked what: a row for each query that ended, kept as long as runs are.

use chrono::{DateTime, Utc};
use headworks_store::{Component, Home, Migration, Store, Tx, Value, values};

use crate::{Result, row::time, runs::rows_of_places};

pub(crate) const TABLES: Component = Component { name: "asked", home: Home::Platform, migrations: MIGRATIONS };

/// All steps; only ever add to the end.
const MIGRATIONS: &[Migration] = &[Migration { version: 1, sql: V1, postgres: None }];

const V1: &str = "
create table hw_query (
    id TEXT NOT NULL PRIMARY KEY,
    asked_by TEXT NOT NULL,
    application TEXT,
    queue TEXT NOT NULL,
    sql TEXT NOT NULL,
    state TEXT NOT NULL,
    error TEXT,
    started_at BIGINT NOT NULL,
    waited_ms BIGINT NOT NULL,
    took_ms BIGINT NOT NULL,
    given_rows BIGINT NOT NULL,
    scanned_bytes BIGINT NOT NULL,
    is_cached BOOLEAN NOT NULL
);
create index hw_query_started on hw_query (started_at);
";

/// The most characters of a statement that are kept.
const SQL_CHARS_MAX: usize = 10_000;

/// A query that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its id.
    pub id: String,
    /// The account; of a job's query `job` with its name.
    pub user: String,
    /// What the client calls itself.
    pub application: Option<String>,
    /// The queue.
    pub queue: String,
    /// The text, cut when it is very long.
    pub sql: String,
    /// `done`, `failed` or `cancelled`.
    pub state: String,
    /// The code of its error.
    pub error: Option<String>,
    /// When it was asked.
    pub started_at: DateTime<Utc>,
    /// Milliseconds in its queue.
    pub waited_ms: i64,
    /// Milliseconds in all.
    pub took_ms: i64,
    /// Rows that it gave.
    pub rows: i64,
    /// Bytes of files that it read.
    pub scanned_bytes: i64,
    /// True when it was answered from the cache.
    pub is_cached: bool,
}

/// Which queries to list.
#[derive(Debug, Clone, Default)]
pub struct AskedFilter {
    /// Of one account.
    pub user: Option<String>,
    /// Of one state.
    pub state: Option<String>,
    /// That took so many milliseconds or more.
    pub took_ms_min: i64,
    /// At most so many.
    pub limit: i64,
}

/// The record of queries; clones share the store.
#[derive(Clone)]
pub struct AskedLog {
    store: Store,
}

const COLUMNS: &str = "id, asked_by, application, queue, sql, state, error, started_at, waited_ms, took_ms, given_rows,
    scanned_bytes, is_cached";
const COLUMN_COUNT: usize = 13;
/// Rows of one insert. SQLite looks through the names of all values for each of them: the time of many grows by their square.
const ROWS_MAX: usize = 30;
/// Rows of one transaction, which nobody else may write beside on SQLite.
const WRITTEN_AT_ONCE: usize = 600;

impl AskedLog {
    /// Opens the record, making its table when there is none yet.
    pub async fn open(store: Store) -> Result<Self> {
        store.migrate(TABLES.name, TABLES.home, TABLES.migrations).await?;
        Ok(Self { store })
    }

    /// Writes queries down, once each however often it is called with them.
    pub async fn write(&self, asked: Vec<Asked>) -> Result<()> {
        for some in asked.chunks(WRITTEN_AT_ONCE) {
            let rows: Vec<Vec<Value>> = some.iter().map(row).collect();
            self.store.write(move |tx| Box::pin(insert(tx, rows))).await?;
        }
        Ok(())
    }

    /// Lists queries, the newest first.
    pub async fn list(&self, filter: &AskedFilter) -> Result<Vec<Asked>> {
        let sql = format!(
            "select {COLUMNS} from hw_query where ($1 = '' or asked_by = $1) and ($2 = '' or state = $2) and took_ms >= $3
             order by started_at desc, id desc limit $4"
        );
        let (user, state) = (filter.user.clone().unwrap_or_default(), filter.state.clone().unwrap_or_default());
        let rows = self.store.rows(&sql, &values![user, state, filter.took_ms_min, filter.limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(Asked {
                    id: row.text(0)?,
                    user: row.text(1)?,
                    application: row.opt_text(2)?,
                    queue: row.text(3)?,
                    sql: row.text(4)?,
                    state: row.text(5)?,
                    error: row.opt_text(6)?,
                    started_at: time("hw_query", row.i64(7)?)?,
                    waited_ms: row.i64(8)?,
                    took_ms: row.i64(9)?,
                    rows: row.i64(10)?,
                    scanned_bytes: row.i64(11)?,
                    is_cached: row.bool(12)?,
                })
            })
            .collect()
    }

    /// Forgets queries that were asked before an instant. Returns how many.
    pub async fn forget_before(&self, before: DateTime<Utc>) -> Result<u64> {
        let before = before.timestamp_micros();
        let sql = "delete from hw_query where started_at < $1";
        self.store.write(move |tx| Box::pin(async move { Ok(tx.execute(sql, &values![before]).await?) })).await
    }
}

async fn insert(tx: &mut Tx, rows: Vec<Vec<Value>>) -> Result<()> {
    for some in rows.chunks(ROWS_MAX) {
        let places = rows_of_places(some.len(), COLUMN_COUNT);
        let sql = format!("insert into hw_query ({COLUMNS}) values {places} on conflict (id) do nothing");
        tx.execute(&sql, &some.concat()).await?;
    }
    Ok(())
}

fn row(asked: &Asked) -> Vec<Value> {
    let sql = match asked.sql.char_indices().nth(SQL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &asked.sql[..end]),
        None => asked.sql.clone(),
    };
    // PostgreSQL keeps no zero characters in texts.
    let plain = |text: &str| text.replace('\0', "\u{fffd}");
    values![
        asked.id.as_str(),
        plain(&asked.user),
        asked.application.as_deref().map(plain),
        asked.queue.as_str(),
        plain(&sql),
        asked.state.as_str(),
        asked.error.clone(),
        asked.started_at.timestamp_micros(),
        asked.waited_ms,
        asked.took_ms,
        asked.rows,
        asked.scanned_bytes,
        asked.is_cached
    ]
    .to_vec()
}
