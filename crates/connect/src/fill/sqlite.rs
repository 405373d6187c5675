//! SQLite tables, filled by statements of many rows.

use std::path::Path;

use arrow::{array::RecordBatch, datatypes::DataType};
use futures::TryStreamExt;
use sqlx::{
    Arguments, AssertSqlSafe, ConnectOptions, Connection, SqliteConnection,
    sqlite::{SqliteArguments, SqliteConnectOptions},
};

use super::{
    Existing, FillRequest, no_place, refused,
    values::{Cell, Cells},
};
use crate::{
    error::{Result, database},
    names::{quote, unquote},
    parse,
    source::BatchStream,
};

/// SQLite's limit of bound values per statement is 32766; beyond some thousands nothing gets faster.
const BOUND_MAX: usize = 4_000;

/// The most digits that SQLite keeps of a decimal: it stores one as a double.
const EXACT_DIGITS: u8 = 15;

const NAN: &str = "it has a NaN, which SQLite cannot keep";

pub(super) async fn fill(name: &str, path: &Path, request: &FillRequest, mut batches: BatchStream) -> Result<u64> {
    let failed = |e: sqlx::Error| database(name, format!("write table `{}`", request.table), &e);
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut db = options.connect().await.map_err(failed)?;
    let mut tx = db.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let table = unquote(&request.table);
    if request.existing == Existing::Drop {
        let drop = format!("DROP TABLE IF EXISTS {}", quote(&table));
        sqlx::query(AssertSqlSafe(drop)).execute(&mut *tx).await.map_err(failed)?;
    }
    let create = create_sql(name, &table, request)?;
    sqlx::query(AssertSqlSafe(create)).execute(&mut *tx).await.map_err(failed)?;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        insert(name, &mut tx, &table, request, &batch).await?;
        rows += batch.num_rows() as u64;
    }
    for (number, columns) in request.indexes.iter().enumerate() {
        let index = quote(&format!("{table}_{}_{number}", columns.join("_")));
        let create = format!("CREATE INDEX {index} ON {} ({})", quote(&table), quoted(columns));
        sqlx::query(AssertSqlSafe(create)).execute(&mut *tx).await.map_err(failed)?;
    }
    tx.commit().await.map_err(failed)?;
    db.close().await.map_err(failed)?;
    Ok(rows)
}

fn quoted(columns: &[String]) -> String {
    columns.iter().map(|c| quote(c)).collect::<Vec<_>>().join(", ")
}

fn create_sql(name: &str, table: &str, request: &FillRequest) -> Result<String> {
    let mut parts = Vec::new();
    for field in request.schema.fields() {
        let declared =
            declared(field.data_type()).ok_or_else(|| no_place(name, request, field.name(), field.data_type()))?;
        let not_null = if field.is_nullable() { "" } else { " NOT NULL" };
        parts.push(format!("{} {declared}{not_null}", quote(field.name())));
    }
    if !request.primary_key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", quoted(&request.primary_key)));
    }
    Ok(format!("CREATE TABLE {} ({})", quote(table), parts.join(", ")))
}

fn declared(data_type: &DataType) -> Option<String> {
    Some(match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => "INTEGER".to_owned(),
        DataType::Float32 | DataType::Float64 => "REAL".to_owned(),
        DataType::Decimal128(digits, scale) if *digits <= EXACT_DIGITS => format!("DECIMAL({digits},{scale})"),
        DataType::Decimal128(..) | DataType::Utf8 => "TEXT".to_owned(),
        DataType::Binary => "BLOB".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(_, None) => "TIMESTAMP".to_owned(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ".to_owned(),
        DataType::Time64(_) => "TIME".to_owned(),
        _ => return None,
    })
}

async fn insert(
    name: &str,
    db: &mut SqliteConnection,
    table: &str,
    request: &FillRequest,
    batch: &RecordBatch,
) -> Result<()> {
    let failed = |e: sqlx::Error| database(name, format!("write table `{}`", request.table), &e);
    let cells = cells(name, request, batch)?;
    let rows_max = (BOUND_MAX / cells.len().max(1)).max(1);
    let mut from = 0;
    while from < batch.num_rows() {
        let rows = rows_max.min(batch.num_rows() - from);
        // The driver keeps the prepared statement, so that all but the last of a batch are compiled once.
        let row = format!("({})", vec!["?"; cells.len()].join(","));
        let sql = format!("INSERT INTO {} VALUES {}", quote(table), vec![row.as_str(); rows].join(","));
        let mut arguments = SqliteArguments::default();
        arguments.reserve(rows * cells.len(), 0);
        for row in from..from + rows {
            for column in &cells {
                bind(&mut arguments, column.get(row)).map_err(|reason| refused(name, request, reason))?;
            }
        }
        sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *db).await.map_err(failed)?;
        from += rows;
    }
    Ok(())
}

fn cells<'a>(name: &str, request: &FillRequest, batch: &'a RecordBatch) -> Result<Vec<Cells<'a>>> {
    batch
        .columns()
        .iter()
        .zip(request.schema.fields())
        .map(|(array, field)| Cells::new(array).ok_or_else(|| no_place(name, request, field.name(), field.data_type())))
        .collect()
}

fn bind(arguments: &mut SqliteArguments, cell: Cell<'_>) -> Result<(), String> {
    let far = || "it has a time that no text can hold".to_owned();
    let added = match cell {
        Cell::Null | Cell::List(_) => arguments.add(None::<i64>),
        Cell::Boolean(v) => arguments.add(i64::from(v)),
        Cell::Integer(v) => arguments.add(v),
        // SQLite would store it as null.
        Cell::Float32(v) if v.is_nan() => return Err(NAN.to_owned()),
        Cell::Float64(v) if v.is_nan() => return Err(NAN.to_owned()),
        Cell::Float32(v) => arguments.add(f64::from(v)),
        Cell::Float64(v) => arguments.add(v),
        Cell::Decimal(v, scale) => arguments.add(parse::decimal_text(v, scale)),
        Cell::Text(v) => arguments.add(v.to_owned()),
        Cell::Bytes(v) => arguments.add(v.to_vec()),
        Cell::Date(v) => arguments.add(parse::date_text(v).filter(|t| t.len() == 10).ok_or_else(far)?),
        Cell::Timestamp(v, instant) => {
            let mut text = parse::timestamp_text(v, 'T').filter(|t| !t.starts_with(['+', '-'])).ok_or_else(far)?;
            if instant {
                text.push('Z');
            }
            arguments.add(text)
        }
        Cell::Time(v) => arguments.add(parse::time_text(v).ok_or_else(far)?),
    };
    added.map_err(|e| e.to_string())
}
