//! PostgreSQL tables, filled by binary COPY.

use arrow::datatypes::DataType;
use futures::TryStreamExt;
use headworks_domain::Secret;
use sqlx::{AssertSqlSafe, Connection, PgConnection, raw_sql};

use super::{
    Existing, FillRequest, no_place, refused,
    values::{Cell, Cells},
};
use crate::{
    error::{Result, database},
    names::{quote, split_schema, unquote},
    parse,
    postgres::{EPOCH_DAYS, EPOCH_MICROS, connect_options, numeric},
    source::BatchStream,
};

/// How many bytes go to the server at once.
const SEND_BYTES: usize = 1 << 20;

pub(super) async fn fill(name: &str, url: &Secret, request: &FillRequest, mut batches: BatchStream) -> Result<u64> {
    let failed = |e: sqlx::Error| database(name, format!("write table `{}`", request.table), &e);
    let table = match split_schema(&request.table) {
        Some((schema, table)) => format!("{}.{}", quote(&schema), quote(&table)),
        None => quote(&unquote(&request.table)),
    };
    let mut db = PgConnection::connect_with(&connect_options(name, url)?).await.map_err(failed)?;
    let drop = match request.existing {
        Existing::Drop => format!("DROP TABLE IF EXISTS {table};"),
        Existing::Refuse => String::new(),
    };
    let begin = format!("BEGIN; {drop} {}", create_sql(name, &table, request)?);
    raw_sql(AssertSqlSafe(begin)).execute(&mut db).await.map_err(failed)?;

    let mut copy = db.copy_in_raw(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await.map_err(failed)?;
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    while let Some(batch) = batches.try_next().await? {
        let cells = batch.columns().iter().zip(request.schema.fields());
        let cells = cells
            .map(|(array, field)| {
                Cells::new(array).ok_or_else(|| no_place(name, request, field.name(), field.data_type()))
            })
            .collect::<Result<Vec<_>>>()?;
        for row in 0..batch.num_rows() {
            out.extend_from_slice(&(cells.len() as i16).to_be_bytes());
            for (column, field) in cells.iter().zip(request.schema.fields()) {
                write(&mut out, &column.get(row), field.data_type())
                    .map_err(|reason| refused(name, request, reason))?;
            }
            if out.len() >= SEND_BYTES {
                copy.send(out.as_slice()).await.map_err(failed)?;
                out.clear();
            }
        }
    }
    out.extend_from_slice(&(-1_i16).to_be_bytes());
    copy.send(out.as_slice()).await.map_err(failed)?;
    let rows = copy.finish().await.map_err(failed)?;

    let mut end = String::new();
    for columns in &request.indexes {
        end.push_str(&format!("CREATE INDEX ON {table} ({}); ", quoted(columns)));
    }
    end.push_str("COMMIT");
    raw_sql(AssertSqlSafe(end)).execute(&mut db).await.map_err(failed)?;
    // Without it the planner knows nothing of the new rows until autovacuum comes by.
    raw_sql(AssertSqlSafe(format!("ANALYZE {table}"))).execute(&mut db).await.map_err(failed)?;
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
    Ok(format!("CREATE TABLE {table} ({})", parts.join(", ")))
}

fn declared(data_type: &DataType) -> Option<String> {
    Some(match data_type {
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 | DataType::Int16 => "smallint".to_owned(),
        DataType::Int32 => "integer".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Float32 => "real".to_owned(),
        DataType::Float64 => "double precision".to_owned(),
        DataType::Decimal128(digits, scale) => format!("numeric({digits},{scale})"),
        DataType::Utf8 => "text".to_owned(),
        DataType::Binary => "bytea".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Timestamp(_, None) => "timestamp".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".to_owned(),
        DataType::Time64(_) => "time".to_owned(),
        DataType::List(field) => match field.data_type() {
            DataType::List(_) => return None,
            element => format!("{}[]", declared(element)?),
        },
        _ => return None,
    })
}

/// The OID of a list's element type, which its bytes must name.
fn element_oid(data_type: &DataType) -> u32 {
    match data_type {
        DataType::Boolean => 16,
        DataType::Binary => 17,
        DataType::Int64 => 20,
        DataType::Int8 | DataType::Int16 => 21,
        DataType::Int32 => 23,
        DataType::Float32 => 700,
        DataType::Float64 => 701,
        DataType::Date32 => 1082,
        DataType::Time64(_) => 1083,
        DataType::Timestamp(_, None) => 1114,
        DataType::Timestamp(_, Some(_)) => 1184,
        DataType::Decimal128(..) => 1700,
        _ => 25,
    }
}

/// Writes a field: its length and its bytes.
fn write(out: &mut Vec<u8>, cell: &Cell<'_>, data_type: &DataType) -> Result<(), String> {
    let at = out.len();
    out.extend_from_slice(&(-1_i32).to_be_bytes());
    let far = || "it has a time that PostgreSQL cannot keep".to_owned();
    match cell {
        Cell::Null => return Ok(()),
        Cell::Boolean(v) => out.push(u8::from(*v)),
        Cell::Integer(v) => match data_type {
            DataType::Int8 | DataType::Int16 => out.extend_from_slice(&(*v as i16).to_be_bytes()),
            DataType::Int32 => out.extend_from_slice(&(*v as i32).to_be_bytes()),
            _ => out.extend_from_slice(&v.to_be_bytes()),
        },
        Cell::Float32(v) => out.extend_from_slice(&v.to_be_bytes()),
        Cell::Float64(v) => out.extend_from_slice(&v.to_be_bytes()),
        Cell::Decimal(v, scale) => numeric::write(*v, *scale, out),
        Cell::Text(v) => out.extend_from_slice(v.as_bytes()),
        Cell::Bytes(v) => out.extend_from_slice(v),
        Cell::Date(v) => out.extend_from_slice(&v.checked_sub(EPOCH_DAYS).ok_or_else(far)?.to_be_bytes()),
        Cell::Timestamp(v, _) => out.extend_from_slice(&v.checked_sub(EPOCH_MICROS).ok_or_else(far)?.to_be_bytes()),
        Cell::Time(v) if (0..parse::DAY_MICROS).contains(v) => out.extend_from_slice(&v.to_be_bytes()),
        Cell::Time(_) => return Err(far()),
        Cell::List(values) => {
            let DataType::List(field) = data_type else { return Err("a list in a column of others".to_owned()) };
            let cells = Cells::new(values).ok_or("a list of something that has no place in an array")?;
            let count = i32::try_from(values.len()).map_err(|_| "a list is too long")?;
            let dimensions = i32::from(count > 0);
            let nulls = i32::from(values.null_count() > 0);
            for word in [dimensions, nulls, element_oid(field.data_type()) as i32] {
                out.extend_from_slice(&word.to_be_bytes());
            }
            if count > 0 {
                out.extend_from_slice(&count.to_be_bytes());
                out.extend_from_slice(&1_i32.to_be_bytes());
            }
            for n in 0..values.len() {
                write(out, &cells.get(n), field.data_type())?;
            }
        }
    }
    let length = i32::try_from(out.len() - at - 4).map_err(|_| "it has a value of more than 2 GiB")?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}
