//! What every source answers, and how it is asked.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use async_trait::async_trait;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;
use futures::stream::BoxStream;
use headworks_domain::{Interval, Secret};

use crate::{
    error::{Error, Result},
    names::Names,
};

/// Where a connection leads.
#[derive(Debug, Clone)]
pub enum ConnectionSpec {
    /// A SQLite file, opened for reading only.
    Sqlite {
        /// The file; a relative path is relative to the process's folder, so resolve it first.
        path: PathBuf,
    },
    /// A PostgreSQL server.
    Postgres {
        /// `postgres://user:password@host:5432/database?sslmode=require`
        url: Secret,
    },
}

/// How a source is used.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// How many connections to it may be open at once; further readers wait for one.
    pub connections_max: u32,
    /// How long a reader waits for a free connection, or for the server to answer, before it gives up.
    pub acquire_timeout_secs: u64,
    /// How many rows a batch has at most.
    pub batch_rows_max: usize,
    /// How many bytes a batch has at most, unless a single row is bigger.
    pub batch_bytes_max: usize,
    /// A PostgreSQL table bigger than this is read whole in parts of about this size, by several connections at once.
    pub part_bytes: u64,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            connections_max: 8,
            acquire_timeout_secs: 30,
            batch_rows_max: 16_384,
            batch_bytes_max: 16 << 20,
            part_bytes: 256 << 20,
        }
    }
}

/// An outside database that tables are read from. Cheap to share; it opens connections as they are needed and keeps them.
#[async_trait]
pub trait Source: Send + Sync + fmt::Debug {
    /// Checks that it answers. Errors: `Database`, `NotADatabase`.
    async fn check(&self) -> Result<()>;

    /// Lists the tables and views that this user may name, in order.
    async fn tables(&self) -> Result<Vec<String>>;

    /// Describes a table or view, by its name or as `schema.table`. Errors: `UnknownTable`, with near misses.
    async fn table(&self, name: &str) -> Result<Arc<SourceTable>>;

    /// Starts to read a table.
    ///
    /// The rows are those of one moment. A batch is read ahead while the consumer works on the one before it, and no more;
    /// dropping the reader ends the query. Errors of single values come out of the stream, and end it.
    async fn read(&self, request: ReadRequest) -> Result<BatchReader>;

    /// Runs one query, which changes nothing, and gives the first column of its first row. Further rows are not fetched.
    ///
    /// A query that takes longer than `within` is ended. Errors: `Database`.
    async fn first_value(&self, sql: &str, within: Duration) -> Result<FirstValue>;

    /// Holds one moment of the whole database, so that several reads agree with each other.
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>>;
}

/// The first column of a query's first row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstValue {
    /// There was no row.
    NoRow,
    /// It is null.
    Null,
    /// It is this.
    Value {
        /// As text.
        text: String,
        /// False for `false`, zero and the empty text; for texts that say `false` or `0`, too.
        is_true: bool,
    },
}

impl FirstValue {
    /// A value that the source has as text.
    pub(crate) fn of_text(text: String) -> Self {
        let is_true = !(text.is_empty() || text == "0" || text.eq_ignore_ascii_case("false"));
        Self::Value { text, is_true }
    }

    /// True when it is a value that is neither false, zero nor empty.
    pub fn is_true(&self) -> bool {
        matches!(self, Self::Value { is_true: true, .. })
    }
}

/// One moment of a database. It keeps a transaction of the source open: read what is needed, then drop it.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// Reads as [`Source::read`] does, one read after the other: the next one begins when the reader before it has come to its
    /// end. A reader that is dropped before its end takes the snapshot with it, and the next read fails with `Unavailable`.
    async fn read(&self, request: ReadRequest) -> Result<BatchReader>;
}

/// A table as its source describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceTable {
    /// Its schema, where the source has them.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
    /// Its columns in order, hidden and dropped ones left out.
    pub columns: Vec<SourceColumn>,
    /// The columns of its primary key in the key's order; empty when it has none.
    pub primary_key: Vec<String>,
    /// Its comment.
    pub comment: Option<String>,
    /// How many rows it has about, where the source knows.
    pub rows_estimate: Option<u64>,
}

/// A column as its source describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceColumn {
    /// Its name in the source.
    pub name: String,
    /// Its type in the source's words.
    pub source_type: String,
    /// What it is read as, unless the request says otherwise.
    pub data_type: DataType,
    /// True when its text is JSON.
    pub json: bool,
    /// False when the source forbids nulls.
    pub nullable: bool,
    /// True when the source computes it.
    pub generated: bool,
    /// Its comment.
    pub comment: Option<String>,
}

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct ReadRequest {
    /// The table, by its name or as `schema.table`.
    pub table: String,
    /// The columns in order; all when empty.
    pub columns: Vec<String>,
    /// The interval to cut out; all rows when none.
    pub by: Option<By>,
    /// A condition in the source's SQL that rows must meet besides.
    pub filter: Option<String>,
    /// Types that replace the table's own, by column, in the words of job headers (see [`types::parse`](crate::types::parse)).
    pub types: BTreeMap<String, String>,
    /// How the lake names the columns.
    pub names: Names,
    /// The columns that the lake adds to cut its table; a source's column of that name gets `src_` in front.
    pub keys: Vec<String>,
    /// What becomes of values that no lake type holds.
    pub specials: Specials,
}

/// An interval cut out of a table: rows whose `column` lies in `[start, end)`.
#[derive(Debug, Clone)]
pub struct By {
    /// The column: an instant, a time without a zone, a day, or (SQLite) such a thing as text or as epoch seconds.
    pub column: String,
    /// From its start up to, but without, its end. A column of days is cut at the days of `zone`.
    pub interval: Interval,
    /// The zone whose clock the column's times show when they carry none themselves.
    pub zone: Tz,
}

/// Says why a column cannot cut the interval: the reason and a hint.
pub(crate) type Refused = (String, String);

impl By {
    /// The days of the interval in its zone: from the first up to, but without, the last. Errors: it cuts a day.
    pub(crate) fn days(&self) -> Result<(NaiveDate, NaiveDate), Refused> {
        let day = |instant: DateTime<Utc>| {
            let local = instant.with_timezone(&self.zone).naive_local();
            let before = (instant - TimeDelta::microseconds(1)).with_timezone(&self.zone).naive_local();
            // The first instant of a day need not be its midnight, which some zones skip in spring.
            (before.date() < local.date()).then_some(local.date())
        };
        match (day(self.interval.start()), day(self.interval.end())) {
            (Some(start), Some(end)) => Ok((start, end)),
            _ => Err((
                format!(
                    "it holds days, and the interval {} does not begin and end with a day in {}",
                    self.interval, self.zone
                ),
                "cut by a column that holds times, or make the job's grain day".to_owned(),
            )),
        }
    }
}

/// What becomes of `NaN` and infinity in decimals, and of infinite days and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Specials {
    /// They become null and are counted in the report.
    #[default]
    Null,
    /// They end the read.
    Fail,
}

/// Batches on their way.
pub type BatchStream = BoxStream<'static, Result<RecordBatch>>;

/// A read that has begun.
pub struct BatchReader {
    /// The schema of every batch: names of the lake, every column nullable, no metadata.
    pub schema: SchemaRef,
    /// Where each of the schema's columns comes from, in order.
    pub columns: Vec<ReadColumn>,
    /// The batches, each of at least one row.
    pub stream: BatchStream,
    /// What is worth knowing about the read; whole once the stream has ended.
    pub report: ReportHandle,
}

impl fmt::Debug for BatchReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchReader").field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// Where a column of a batch comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadColumn {
    /// Its name in the lake.
    pub name: String,
    /// Its name in the source.
    pub source_name: String,
    /// Its type in the source's words.
    pub source_type: String,
    /// What it is read as.
    pub data_type: DataType,
    /// True when its text is JSON.
    pub json: bool,
    /// Its comment.
    pub comment: Option<String>,
}

/// What is worth knowing about a read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Rows read.
    pub rows: u64,
    /// What a person should know, at most one line per column and kind.
    pub warnings: Vec<ReadWarning>,
}

/// Something about a column's values that a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadWarning {
    /// The column, by its name in the source.
    pub column: String,
    /// What it is, as "`NaN` or infinity became null".
    pub what: String,
    /// How many values.
    pub count: u64,
}

/// Gives the report of a read, during it and after it.
#[derive(Debug, Clone, Default)]
pub struct ReportHandle(Arc<Mutex<ReadReport>>);

impl ReportHandle {
    /// The report so far.
    pub fn get(&self) -> ReadReport {
        self.lock().clone()
    }

    pub(crate) fn count_rows(&self, rows: usize) {
        self.lock().rows += rows as u64;
    }

    pub(crate) fn warn(&self, column: &str, what: &str, count: u64) {
        let mut report = self.lock();
        match report.warnings.iter_mut().find(|w| w.column == column && w.what == what) {
            Some(warning) => warning.count += count,
            None => report.warnings.push(ReadWarning { column: column.to_owned(), what: what.to_owned(), count }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ReadReport> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Opens a connection by its spec, inside a tokio runtime. Nothing is connected yet, but what is wrong with the spec shows here.
///
/// Errors: `Settings`, `Missing`, `NotADatabase`.
pub fn open(name: &str, spec: &ConnectionSpec) -> Result<Arc<dyn Source>> {
    open_with(name, spec, SourceOptions::default())
}

/// Opens a connection as [`open`] does, with options.
pub fn open_with(name: &str, spec: &ConnectionSpec, options: SourceOptions) -> Result<Arc<dyn Source>> {
    if tokio::runtime::Handle::try_current().is_err() {
        let reason = "connections are opened inside a tokio runtime only".to_owned();
        return Err(Error::Internal { connection: name.to_owned(), reason });
    }
    Ok(match spec {
        ConnectionSpec::Sqlite { path } => Arc::new(crate::sqlite::SqliteSource::open(name, path, options)?),
        ConnectionSpec::Postgres { url } => Arc::new(crate::postgres::PostgresSource::open(name, url, options)?),
    })
}

/// Finds the columns that a request names, in its order, as places in the table. Errors: `UnknownColumn`.
pub(crate) fn chosen_columns(connection: &str, table: &SourceTable, request: &ReadRequest) -> Result<Vec<usize>> {
    let place = |name: &str| {
        table.columns.iter().position(|c| c.name == name).ok_or_else(|| unknown_column(connection, table, name))
    };
    for name in request.types.keys() {
        place(name)?;
    }
    if request.columns.is_empty() {
        return Ok((0..table.columns.len()).collect());
    }
    let mut chosen = Vec::new();
    for name in &request.columns {
        let place = place(name)?;
        // Named twice, it is still one column.
        if !chosen.contains(&place) {
            chosen.push(place);
        }
    }
    Ok(chosen)
}

pub(crate) fn unknown_column(connection: &str, table: &SourceTable, name: &str) -> Error {
    let columns: Vec<String> = table.columns.iter().map(|c| c.name.clone()).collect();
    Error::UnknownColumn {
        connection: connection.to_owned(),
        table: table.name.clone(),
        column: name.to_owned(),
        nearest: headworks_domain::nearest(name, columns.iter().map(String::as_str)).map(str::to_owned),
        columns: columns.into(),
    }
}

/// How many tables an error lists.
const TABLES_SHOWN_MAX: usize = 10;

pub(crate) fn unknown_table(connection: &str, name: &str, mut tables: Vec<String>) -> Error {
    // `flights` is near to `public.flights`, and to `sales.flights`.
    let bare = |t: &str| t.rsplit('.').next().unwrap_or(t).to_owned();
    let nearest = headworks_domain::nearest(name, tables.iter().map(String::as_str))
        .or_else(|| tables.iter().find(|t| bare(t).eq_ignore_ascii_case(&bare(name))).map(String::as_str))
        .map(str::to_owned);
    let more = tables.len().saturating_sub(TABLES_SHOWN_MAX);
    tables.truncate(TABLES_SHOWN_MAX);
    Error::UnknownTable { connection: connection.to_owned(), table: name.to_owned(), nearest, tables, more }
}
