//! Rows that DuckDB keeps in the catalog instead of in a file.

use std::collections::HashMap;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::common::ScalarValue;
use headworks_store::{Dialect, Row, Store, Value, values};

use super::columns::default;
use crate::{
    Error, Result,
    table::{Column, Table},
    types::{self, Node},
};

/// A table of the catalog that holds rows in the shape that their table had at one schema version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inlined {
    pub name: String,
    pub schema_version: i64,
}

/// Reads the rows that are valid at a snapshot, in the table's columns. `schema` has the types to read them in.
pub(super) async fn read(
    store: &Store,
    table: &Table,
    from: &Inlined,
    schema: &SchemaRef,
    snapshot: i64,
) -> Result<Option<RecordBatch>> {
    let live = "begin_snapshot <= $1 and (end_snapshot is null or end_snapshot > $1)";
    let name = quoted(&from.name);
    // Most of these tables are empty; what their columns were called is asked only when they are not.
    if store.row(&format!("select 1 from {name} where {live} limit 1"), &values![snapshot]).await?.is_none() {
        return Ok(None);
    }
    let names = names(store, table, from).await?;
    let stored: Vec<(usize, String)> = table
        .columns
        .iter()
        .enumerate()
        .filter_map(|(i, column)| Some((i, expression(store.dialect(), column, names.get(&column.id)?))))
        .collect();
    // A table may have lost all the columns that these rows have.
    let list = if stored.is_empty() {
        "1".to_owned()
    } else {
        stored.iter().map(|(_, e)| e.as_str()).collect::<Vec<_>>().join(", ")
    };
    let rows =
        store.rows(&format!("select {list} from {name} where {live} order by row_id"), &values![snapshot]).await?;
    let mut arrays = Vec::with_capacity(table.columns.len());
    for (i, (column, field)) in table.columns.iter().zip(schema.fields()).enumerate() {
        let array = match stored.iter().position(|(column, _)| *column == i) {
            Some(at) => {
                let nodes =
                    rows.iter().map(|row| node(row, at, column, field.data_type())).collect::<Result<Vec<_>>>()?;
                types::array(nodes, field.data_type()).ok_or_else(|| unreadable(column, "a value of another type"))?
            }
            None => default(column, field.data_type())?.to_array_of_size(rows.len())?,
        };
        arrays.push(array);
    }
    Ok(Some(RecordBatch::try_new(SchemaRef::clone(schema), arrays)?))
}

/// The columns' names by id as they were when the inlined table was made.
async fn names(store: &Store, table: &Table, from: &Inlined) -> Result<HashMap<i64, String>> {
    let gone = || Error::Unsupported {
        what: format!(
            "table `{}` has rows in the catalog in a shape that the catalog has forgotten (`{}`)",
            table.name, from.name
        ),
    };
    let row = store
        .row(
            // Making the table of inlined rows raises the catalog's schema version without a row of its own: the shape is that of
            // the table's newest version up to it.
            "select max(begin_snapshot) from ducklake_schema_versions where schema_version <= $2 and (table_id = $1 or table_id is null)",
            &values![table.id, from.schema_version],
        )
        .await?;
    let since = row.map_or(Ok(None), |row| row.opt_i64(0))?.ok_or_else(gone)?;
    let rows = store
        .rows(
            "select column_id, column_name from ducklake_column where table_id = $1 and parent_column is null
             and begin_snapshot <= $2 and (end_snapshot is null or end_snapshot > $2)",
            &values![table.id, since],
        )
        .await?;
    if rows.is_empty() {
        return Err(gone());
    }
    rows.iter().map(|row| Ok((row.i64(0)?, row.text(1)?))).collect()
}

/// Texts and blobs come as they are: PostgreSQL keeps both as bytes. All else comes as text.
fn expression(dialect: Dialect, column: &Column, name: &str) -> String {
    let name = quoted(name);
    match (column.ducklake_type.as_str(), dialect) {
        ("varchar" | "json" | "blob", _) => name,
        (_, Dialect::Sqlite) => format!("cast({name} as text)"),
        (_, Dialect::Postgres) => format!("{name}::text"),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn node(row: &Row, at: usize, column: &Column, data_type: &arrow::datatypes::DataType) -> Result<Option<Node>> {
    let raw = matches!(column.ducklake_type.as_str(), "varchar" | "json" | "blob");
    let text = match row.value(at) {
        Value::Null => return Ok(None),
        Value::Bytes(bytes) if column.ducklake_type == "blob" => {
            return Ok(Some(Node::Scalar(ScalarValue::BinaryView(Some(bytes.clone())))));
        }
        Value::Bytes(bytes) if raw => {
            String::from_utf8(bytes.clone()).map_err(|_| unreadable(column, "bytes that are no text"))?
        }
        Value::Int(value) if raw => value.to_string(),
        _ => row.text(at)?,
    };
    if raw && column.ducklake_type != "blob" {
        return Ok(Some(Node::Scalar(ScalarValue::Utf8View(Some(text)))));
    }
    types::node(&text, data_type).map(Some).ok_or_else(|| unreadable(column, &format!("`{text}`")))
}

fn unreadable(column: &Column, what: &str) -> Error {
    Error::Unsupported {
        what: format!(
            "column `{}` of type `{}` holds {what} among the rows kept in the catalog",
            column.name, column.ducklake_type
        ),
    }
}
