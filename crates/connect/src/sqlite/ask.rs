//! One value of one query.

use std::time::{Duration, Instant};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Decode, Row, Sqlite, TypeInfo, ValueRef,
    sqlite::{SqliteRow, SqliteValueRef},
};

use super::Inner;
use crate::{error::Result, source::FirstValue};

/// So many steps of SQLite's machine pass between two looks at the time: some tenths of a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// Runs a query that may only read, on a connection of its own: one that lasts must not keep the pool's from imports.
pub(super) async fn first_value(inner: &Inner, sql: &str, within: Duration) -> Result<FirstValue> {
    let failed = |error| inner.error("run the query", &error);
    let mut db = inner.pool.connect_options().connect().await.map_err(|e| inner.error("open it", &e))?;
    let started = Instant::now();
    // The thread of a query that nobody waits for any more goes on by itself.
    let goes_on = move || started.elapsed() < within;
    db.lock_handle().await.map_err(failed)?.set_progress_handler(STEPS_BETWEEN_LOOKS, goes_on);
    let row =
        sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false).fetch_optional(&mut db).await.map_err(failed)?;
    let value = row.map_or(Ok(FirstValue::NoRow), |row| of_row(&row)).map_err(failed)?;
    // What it read is read, however the connection ends.
    let _ = db.close().await;
    Ok(value)
}

fn of_row(row: &SqliteRow) -> Result<FirstValue, sqlx::Error> {
    let value: SqliteValueRef<'_> = row.try_get_raw(0)?;
    if value.is_null() {
        return Ok(FirstValue::Null);
    }
    let class = value.type_info().name().as_bytes().first().copied();
    let decoded = match class {
        Some(b'I' | b'B') if value.type_info().name() != "BLOB" => <i64 as Decode<Sqlite>>::decode(value)
            .map(|number| FirstValue::Value { text: number.to_string(), is_true: number != 0 }),
        Some(b'R') => <f64 as Decode<Sqlite>>::decode(value)
            .map(|number| FirstValue::Value { text: number.to_string(), is_true: number != 0.0 }),
        Some(b'T') => <&str as Decode<Sqlite>>::decode(value).map(|text| FirstValue::of_text(text.to_owned())),
        _ => <&[u8] as Decode<Sqlite>>::decode(value)
            .map(|blob| FirstValue::Value { text: format!("{} bytes", blob.len()), is_true: !blob.is_empty() }),
    };
    decoded.map_err(sqlx::Error::Decode)
}
