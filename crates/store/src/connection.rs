use std::{str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use futures::{TryStreamExt, stream::BoxStream};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection as _, Executor, Row as _, TypeInfo, ValueRef,
    postgres::{PgArguments, PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions, PgRow, PgTypeInfo},
    query::Query,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
        SqliteRow, SqliteSynchronous,
    },
};
use uuid::Uuid;

use crate::{Error, Result, Row, StoreOptions, Value, value::time_text};

/// Which database it is, for the few statements that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// SQLite 3.
    Sqlite,
    /// PostgreSQL 14 or later.
    Postgres,
}

/// One connection, for the writer and for watching.
pub(crate) enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    /// To a pooler that lends a connection of its server to each transaction: nothing outlives one, neither a setting nor a
    /// prepared statement.
    Pooled(PgConnection, Settings),
}

/// What a session of PostgreSQL is set to; behind a pooler each transaction.
#[derive(Clone)]
pub(crate) struct Settings(Vec<(&'static str, String)>);

impl Settings {
    fn of(options: &StoreOptions) -> Self {
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let mut settings = vec![
            ("search_path", format!("\"{}\",\"{}\",public", options.schema, options.lake_schema())),
            ("lock_timeout", millis(options.lock_timeout)),
            ("idle_in_transaction_session_timeout", millis(options.stall_max)),
        ];
        if options.read_only {
            settings.push(("default_transaction_read_only", "on".to_owned()));
        }
        Self(settings)
    }

    /// The start of a transaction with these settings. It is one message: between two a pooler might change the server.
    fn begin(&self, begin: &str) -> String {
        let set = self.0.iter().map(|(name, value)| match *name {
            "search_path" => format!("; set local search_path = {value}"),
            // What a transaction is by default counts when it begins.
            "default_transaction_read_only" => "; set transaction read only".to_owned(),
            _ => format!("; set local {name} = '{value}'"),
        });
        [begin.to_owned()].into_iter().chain(set).collect()
    }
}

impl Connection {
    pub(crate) async fn open(options: &StoreOptions) -> Result<Self> {
        let failed = |source| Error::of_opening(options.shown(), source);
        match options.dialect()? {
            Dialect::Sqlite => {
                let mut to = sqlite_options(options);
                if !options.read_only {
                    if let Some(parent) = options.file().and_then(|f| f.parent()).filter(|p| !p.as_os_str().is_empty())
                    {
                        std::fs::create_dir_all(parent).map_err(|e| failed(sqlx::Error::Io(e)))?;
                    }
                    to = to.create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
                }
                let mut connection = connect_sqlite(&to, options.lock_timeout).await.map_err(failed)?;
                // A file that is no database shows itself only when it is read.
                sqlx::query("select count(*) from sqlite_master").fetch_one(&mut connection).await.map_err(failed)?;
                Ok(Self::Sqlite(connection))
            }
            Dialect::Postgres => {
                let settings = Settings::of(options);
                if let Some(direct) = connect_directly(options, &settings).await.map_err(failed)? {
                    return Ok(Self::Postgres(direct));
                }
                let pooled = async { pooled_options(options)?.connect().await };
                Ok(Self::Pooled(pooled.await.map_err(failed)?, settings))
            }
        }
    }

    /// Begins a transaction, by the statement that says how.
    pub(crate) async fn begin(&mut self, begin: &str) -> Result<()> {
        match self {
            Self::Sqlite(_) | Self::Postgres(_) => self.execute(begin, &[]).await.map(drop),
            Self::Pooled(c, settings) => {
                let begin = settings.begin(begin);
                c.execute(AssertSqlSafe(begin.as_str())).await.map(drop).map_err(|e| Error::of(&begin, e))
            }
        }
    }

    pub(crate) async fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64> {
        match self {
            Self::Sqlite(c) => bound_sqlite(sql, values).execute(c).await.map(|r| r.rows_affected()),
            Self::Postgres(c) => bound_postgres(sql, values).execute(c).await.map(|r| r.rows_affected()),
            // Without values it needs no statement to be prepared, and so one round trip less.
            Self::Pooled(c, _) if values.is_empty() => {
                Box::pin(c.execute(AssertSqlSafe(sql))).await.map(|r| r.rows_affected())
            }
            // Boxed, as all that is for poolers alone, so that everybody's futures stay as small as they were.
            Self::Pooled(c, _) => {
                let query = bound_postgres(sql, values).persistent(false);
                Box::pin(query.execute(c)).await.map(|r| r.rows_affected())
            }
        }
        .map_err(|e| Error::of(sql, e))
    }

    /// Reads rows, behind a pooler within a transaction only.
    pub(crate) async fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(c) => rows_sqlite(c, sql, values).await,
            Self::Postgres(c) => rows_postgres(c, bound_postgres(sql, values)).await,
            Self::Pooled(c, _) => Box::pin(rows_postgres(c, bound_postgres(sql, values).persistent(false))).await,
        }
        .map_err(|e| Error::of(sql, e))
    }

    /// Reads rows one after the other, for tables that do not fit into memory.
    pub(crate) fn stream<'c>(&'c mut self, sql: &'c str) -> RowStream<'c> {
        let rows: BoxStream<'c, sqlx::Result<Row>> = match self {
            Self::Sqlite(c) => {
                Box::pin(bound_sqlite(sql, &[]).fetch(c).and_then(|row| async move { row_sqlite(&row) }))
            }
            Self::Postgres(c) => {
                Box::pin(bound_postgres(sql, &[]).fetch(c).and_then(|row| async move { row_postgres(&row) }))
            }
            Self::Pooled(c, _) => {
                let query = bound_postgres(sql, &[]).persistent(false);
                Box::pin(query.fetch(c).and_then(|row| async move { row_postgres(&row) }))
            }
        };
        RowStream { sql, rows }
    }

    /// Runs several statements at once, without values.
    pub(crate) async fn script(&mut self, sql: &str) -> Result<()> {
        match self {
            Self::Sqlite(c) => c.execute(AssertSqlSafe(sql)).await.map(|_| ()),
            Self::Postgres(c) | Self::Pooled(c, _) => c.execute(AssertSqlSafe(sql)).await.map(|_| ()),
        }
        .map_err(|e| Error::of(sql, e))
    }

    pub(crate) async fn close(self) {
        // An error here changes nothing: everything that was acknowledged is durable already.
        let _ = match self {
            Self::Sqlite(c) => c.close().await,
            Self::Postgres(c) | Self::Pooled(c, _) => c.close().await,
        };
    }
}

/// A connection to PostgreSQL itself, with its settings; `None` when there is a pooler between, which refuses or ignores them.
/// A server's own connections begin with whatever they were left with.
async fn connect_directly(options: &StoreOptions, settings: &Settings) -> sqlx::Result<Option<PgConnection>> {
    let mut connection = match postgres_options(options, settings)?.connect().await {
        Err(error) if refuses_settings(&error) => return Ok(None),
        connected => connected?,
    };
    let asked =
        "select current_setting('search_path') = $1 and current_setting('lock_timeout')::interval = $2::interval";
    let wanted = |name| settings.0.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value.as_str());
    // One message each way: behind a pooler that ignores settings there is no second.
    let asked = asked.replace("$1", &literal(wanted("search_path"))).replace("$2", &literal(wanted("lock_timeout")));
    let row = sqlx::raw_sql(AssertSqlSafe(asked)).fetch_one(&mut connection).await?;
    if row.try_get::<bool, _>(0)? {
        return Ok(Some(connection));
    }
    connection.close().await?;
    Ok(None)
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// True when who answers does not take the settings of a session, as PgBouncer: `unsupported startup parameter: options`.
fn refuses_settings(error: &sqlx::Error) -> bool {
    const PROTOCOL_VIOLATION: &str = "08P01";
    let refusal = error.as_database_error().filter(|e| e.code().is_some_and(|code| code == PROTOCOL_VIOLATION));
    refusal.is_some_and(|e| e.message().contains("startup parameter"))
}

/// A connection to PostgreSQL itself that listens on a channel, and can be asked too.
pub(crate) async fn listener(options: &StoreOptions, channel: &str) -> Result<PgListener> {
    let failed = |source| Error::Open { url: options.shown(), source };
    let options = postgres_options(options, &Settings::of(options)).map_err(failed)?;
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
    listener.listen(channel).await.map_err(failed)?;
    Ok(listener)
}

pub(crate) async fn listener_rows(listener: &mut PgListener, sql: &str) -> Result<Vec<Row>> {
    rows_postgres(listener, bound_postgres(sql, &[])).await.map_err(|e| Error::of(sql, e))
}

/// Rows on their way.
pub(crate) struct RowStream<'c> {
    sql: &'c str,
    rows: BoxStream<'c, sqlx::Result<Row>>,
}

impl RowStream<'_> {
    pub(crate) async fn next(&mut self) -> Result<Option<Row>> {
        self.rows.try_next().await.map_err(|e| Error::of(self.sql, e))
    }
}

/// Opens a SQLite file. Two processes that make one at the same time both switch it to its journal mode, and SQLite tells the
/// second at once that the file is locked, whatever its busy timeout says: that is waited for here.
async fn connect_sqlite(to: &SqliteConnectOptions, patience: Duration) -> sqlx::Result<SqliteConnection> {
    const PAUSE: Duration = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    loop {
        match to.connect().await {
            Err(error) if is_busy(&error) && waited < patience => {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
            }
            opened => return opened,
        }
    }
}

/// True when SQLite says that somebody else has the lock; the low byte of its code tells.
fn is_busy(error: &sqlx::Error) -> bool {
    const SQLITE_BUSY: u32 = 5;
    let code = error.as_database_error().and_then(|e| e.code()?.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == SQLITE_BUSY)
}

/// The connections that only read.
pub(crate) enum Readers {
    Sqlite(SqlitePool),
    Postgres(PgPool),
    Pooled(PgPool, Settings),
}

impl Readers {
    /// Opens them in the way of a connection that is open already.
    pub(crate) fn open(options: &StoreOptions, like: &Connection) -> Result<Self> {
        let failed = |source| Error::Open { url: options.shown(), source };
        let pool = || PgPoolOptions::new().max_connections(options.readers_max).acquire_timeout(options.lock_timeout);
        Ok(match like {
            Connection::Sqlite(_) => Self::Sqlite(
                SqlitePoolOptions::new()
                    .max_connections(options.readers_max)
                    .acquire_timeout(options.lock_timeout)
                    // A file does not go away; asking before each read costs as much as the read.
                    .test_before_acquire(false)
                    .connect_lazy_with(sqlite_options(options).pragma("query_only", "on")),
            ),
            Connection::Postgres(_) => {
                let to = postgres_options(options, &Settings::of(options)).map_err(failed)?;
                Self::Postgres(pool().connect_lazy_with(to))
            }
            Connection::Pooled(_, settings) => {
                let to = pooled_options(options).map_err(failed)?;
                Self::Pooled(pool().connect_lazy_with(to), settings.clone())
            }
        })
    }

    pub(crate) async fn rows(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(pool) => rows_sqlite(pool, sql, values).await,
            Self::Postgres(pool) => rows_postgres(pool, bound_postgres(sql, values)).await,
            Self::Pooled(pool, settings) => Box::pin(rows_pooled(pool, settings, sql, values)).await,
        }
        .map_err(|e| Error::of(sql, e))
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) | Self::Pooled(pool, _) => pool.close().await,
        }
    }
}

fn sqlite_options(options: &StoreOptions) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(options.file().unwrap_or_else(|| std::path::Path::new("")))
        .read_only(options.read_only)
        // In WAL mode only FULL makes a commit survive a power cut: NORMAL lost every acknowledged row in a trial.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(options.lock_timeout)
        .foreign_keys(false)
        .statement_cache_capacity(500)
        .row_buffer_size(1024)
        .pragma("cache_size", "-32768")
        .pragma("temp_store", "memory")
        // A checkpoint costs two fsyncs of its own: every 16 MiB instead of every 4.
        .pragma("wal_autocheckpoint", "4000")
}

/// How a server is reached, the settings of its session apart.
fn pooled_options(options: &StoreOptions) -> sqlx::Result<PgConnectOptions> {
    // From PostgreSQL 12 on all digits of a number come unasked, and PgBouncer refuses to be asked.
    Ok(PgConnectOptions::from_str(&options.url)?.application_name("headworks").extra_float_digits(None))
}

fn postgres_options(options: &StoreOptions, settings: &Settings) -> sqlx::Result<PgConnectOptions> {
    Ok(pooled_options(options)?.options(settings.0.iter().map(|(name, value)| (*name, value))))
}

type SqliteQuery<'q> = Query<'q, sqlx::Sqlite, SqliteArguments>;
type PostgresQuery<'q> = Query<'q, sqlx::Postgres, PgArguments>;

fn bound_sqlite<'q>(sql: &str, values: &'q [Value]) -> SqliteQuery<'q> {
    values.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Null => query.bind(None::<String>),
        Value::Bool(v) => query.bind(*v),
        Value::Int(v) => query.bind(*v),
        Value::Real(v) => query.bind(*v),
        Value::Text(v) => query.bind(v.clone()),
        Value::Bytes(v) => query.bind(v.clone()),
        Value::Uuid(v) => query.bind(v.to_string()),
        Value::Time(v) => query.bind(time_text(*v)),
    })
}

fn bound_postgres<'q>(sql: &str, values: &'q [Value]) -> PostgresQuery<'q> {
    values.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Null => query.bind(Untyped),
        Value::Bool(v) => query.bind(*v),
        Value::Int(v) => query.bind(*v),
        Value::Real(v) => query.bind(*v),
        Value::Text(v) => query.bind(v.clone()),
        Value::Bytes(v) => query.bind(v.clone()),
        Value::Uuid(v) => query.bind(*v),
        Value::Time(v) => query.bind(*v),
    })
}

/// A null whose type the server infers: a null of type TEXT could not go into a BIGINT column.
struct Untyped;

impl sqlx::Type<sqlx::Postgres> for Untyped {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(sqlx::postgres::types::Oid(0))
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for Untyped {
    fn encode_by_ref(
        &self,
        _: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> std::result::Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        Ok(sqlx::encode::IsNull::Yes)
    }
}

async fn rows_sqlite<'e>(
    on: impl Executor<'e, Database = sqlx::Sqlite>,
    sql: &str,
    values: &[Value],
) -> sqlx::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut stream = bound_sqlite(sql, values).fetch(on);
    while let Some(row) = stream.try_next().await? {
        rows.push(row_sqlite(&row)?);
    }
    Ok(rows)
}

async fn rows_postgres<'e>(
    on: impl Executor<'e, Database = sqlx::Postgres>,
    query: PostgresQuery<'_>,
) -> sqlx::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut stream = query.fetch(on);
    while let Some(row) = stream.try_next().await? {
        rows.push(row_postgres(&row)?);
    }
    Ok(rows)
}

/// Reads in a transaction of its own, so that all messages reach one server.
async fn rows_pooled(pool: &PgPool, settings: &Settings, sql: &str, values: &[Value]) -> sqlx::Result<Vec<Row>> {
    let mut transaction = pool.begin_with(AssertSqlSafe(settings.begin("begin"))).await?;
    let rows = rows_postgres(&mut *transaction, bound_postgres(sql, values).persistent(false)).await?;
    transaction.commit().await?;
    Ok(rows)
}

fn row_sqlite(row: &SqliteRow) -> sqlx::Result<Row> {
    let mut values = Vec::with_capacity(row.len());
    for column in 0..row.len() {
        let raw = row.try_get_raw(column)?;
        values.push(if raw.is_null() {
            Value::Null
        } else {
            // The value's own type, not the column's: SQLite keeps what it was given.
            match raw.type_info().name() {
                "INTEGER" => Value::Int(row.try_get_unchecked(column)?),
                "REAL" => Value::Real(row.try_get_unchecked(column)?),
                "BLOB" => Value::Bytes(row.try_get_unchecked(column)?),
                _ => Value::Text(row.try_get_unchecked(column)?),
            }
        });
    }
    Ok(Row(values))
}

fn row_postgres(row: &PgRow) -> sqlx::Result<Row> {
    let mut values = Vec::with_capacity(row.len());
    for column in 0..row.len() {
        let info = row.column(column).type_info();
        values.push(match info.name() {
            "BOOL" => row.try_get::<Option<bool>, _>(column)?.into(),
            "INT8" => row.try_get::<Option<i64>, _>(column)?.into(),
            "INT4" => row.try_get::<Option<i32>, _>(column)?.into(),
            "INT2" => row.try_get::<Option<i16>, _>(column)?.map(i32::from).into(),
            "FLOAT8" => row.try_get::<Option<f64>, _>(column)?.into(),
            "FLOAT4" => row.try_get::<Option<f32>, _>(column)?.map(f64::from).into(),
            "BYTEA" => row.try_get::<Option<Vec<u8>>, _>(column)?.into(),
            "UUID" => row.try_get::<Option<Uuid>, _>(column)?.into(),
            "TIMESTAMPTZ" => row.try_get::<Option<DateTime<Utc>>, _>(column)?.into(),
            _ => row.try_get_unchecked::<Option<String>, _>(column)?.into(),
        });
    }
    Ok(Row(values))
}
