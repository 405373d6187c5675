//! One value of one query.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Row, TypeInfo, ValueRef, postgres::PgRow, raw_sql};

use super::{
    Inner,
    session::{begin, finish},
};
use crate::{error::Result, source::FirstValue};

/// Runs a query in a transaction that may only read.
pub(super) async fn first_value(inner: &Inner, sql: &str, within: Duration) -> Result<FirstValue> {
    let failed = |error| inner.error("run the query", &error);
    let mut db = begin(inner).await?;
    // A server goes on with a query whose client is gone.
    let limit = format!("SET LOCAL statement_timeout = {}", within.as_millis().max(1));
    raw_sql(AssertSqlSafe(limit)).execute(db.connection()).await.map_err(failed)?;
    // A cursor takes one query and nothing else, and gives one row of a million. On lines of its own, for a comment may end the text.
    let cursor = format!("DECLARE headworks_first NO SCROLL CURSOR FOR\n{}\n", sql.trim().trim_end_matches(';'));
    sqlx::query(AssertSqlSafe(cursor)).persistent(false).execute(db.connection()).await.map_err(failed)?;
    // Asked for as text, since there are more types than anybody can decode.
    let row = raw_sql("FETCH 1 FROM headworks_first").fetch_optional(db.connection()).await.map_err(failed)?;
    let value = match row {
        None => FirstValue::NoRow,
        Some(row) => of_row(&row).map_err(failed)?,
    };
    finish(db).await;
    Ok(value)
}

fn of_row(row: &PgRow) -> Result<FirstValue, sqlx::Error> {
    let value = row.try_get_raw(0)?;
    if value.is_null() {
        return Ok(FirstValue::Null);
    }
    let text = value.as_str().map_err(sqlx::Error::Decode)?.to_owned();
    Ok(match value.type_info().name() {
        "BOOL" => {
            FirstValue::Value { is_true: text == "t", text: if text == "t" { "true" } else { "false" }.to_owned() }
        }
        "INT2" | "INT4" | "INT8" | "FLOAT4" | "FLOAT8" | "NUMERIC" => {
            FirstValue::Value { is_true: !text.chars().all(|c| matches!(c, '0' | '.' | '-')), text }
        }
        _ => FirstValue::of_text(text),
    })
}
