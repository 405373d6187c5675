//! `information_schema`: what tables there are, told as tables.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use datafusion::{
    catalog::{MemTable, TableProvider},
    error::Result,
};

use crate::{
    Listed,
    resolve::{CATALOG, INFORMATION_SCHEMA, SCHEMA},
    types::sql_type_name,
};

const TABLES: [&str; 4] = ["tables", "columns", "schemata", "views"];

/// True when the list of all tables is needed for it.
pub(crate) fn is_table(name: &str) -> bool {
    TABLES.contains(&name)
}

/// The names, for a hint.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    TABLES.into_iter()
}

/// Makes one table of `information_schema`; none when there is no such table.
pub(crate) fn table(name: &str, listed: &[Listed]) -> Result<Option<Arc<dyn TableProvider>>> {
    let batch = match name {
        "tables" => tables(listed)?,
        "columns" => columns(listed)?,
        "schemata" => schemata()?,
        "views" => views(listed)?,
        _ => return Ok(None),
    };
    Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
}

/// One row per column of a query's result.
pub(crate) fn description(schema: &SchemaRef) -> Result<RecordBatch> {
    let fields = schema.fields();
    Ok(RecordBatch::try_from_iter([
        ("column_name", text(fields.iter().map(|f| f.name().clone()))),
        ("data_type", text(fields.iter().map(|f| sql_type_name(f.data_type())))),
        ("is_nullable", text(fields.iter().map(|f| yes(f.is_nullable())))),
    ])?)
}

fn tables(listed: &[Listed]) -> Result<RecordBatch> {
    let mut rows: Vec<(String, &str)> = Vec::new();
    for table in listed {
        rows.push((table.name.clone(), if table.definition.is_some() { "VIEW" } else { "BASE TABLE" }));
        if table.has_latest {
            rows.push((latest(table), "VIEW"));
        }
    }
    rows.extend(names().map(|n| (n.to_owned(), "VIEW")));
    let own = rows.len() - TABLES.len();
    Ok(RecordBatch::try_from_iter([
        ("table_catalog", text(rows.iter().map(|_| CATALOG.to_owned()))),
        ("table_schema", text((0..rows.len()).map(|i| if i < own { SCHEMA } else { INFORMATION_SCHEMA }.to_owned()))),
        ("table_name", text(rows.iter().map(|(name, _)| name.clone()))),
        ("table_type", text(rows.iter().map(|(_, kind)| (*kind).to_owned()))),
    ])?)
}

fn columns(listed: &[Listed]) -> Result<RecordBatch> {
    let mut table_names = Vec::new();
    let mut column_names = Vec::new();
    let mut positions = Vec::new();
    let mut nullable = Vec::new();
    let mut types = Vec::new();
    let named =
        listed.iter().flat_map(|t| [Some(t.name.clone()), t.has_latest.then(|| latest(t))].map(|name| (t, name)));
    for (table, name) in named {
        let (Some(name), Some(schema)) = (name, &table.schema) else { continue };
        for (position, field) in (1..).zip(schema.fields()) {
            table_names.push(name.clone());
            column_names.push(field.name().clone());
            positions.push(position);
            nullable.push(yes(field.is_nullable()));
            types.push(sql_type_name(field.data_type()));
        }
    }
    let rows = positions.len();
    Ok(RecordBatch::try_from_iter([
        ("table_catalog", text((0..rows).map(|_| CATALOG.to_owned()))),
        ("table_schema", text((0..rows).map(|_| SCHEMA.to_owned()))),
        ("table_name", text(table_names)),
        ("column_name", text(column_names)),
        ("ordinal_position", Arc::new(Int64Array::from(positions)) as ArrayRef),
        ("is_nullable", text(nullable)),
        ("data_type", text(types)),
    ])?)
}

fn schemata() -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter([
        ("catalog_name", text([CATALOG.to_owned(), CATALOG.to_owned()])),
        ("schema_name", text([SCHEMA.to_owned(), INFORMATION_SCHEMA.to_owned()])),
    ])?)
}

fn views(listed: &[Listed]) -> Result<RecordBatch> {
    let mut rows: Vec<(String, Option<String>)> = Vec::new();
    for table in listed {
        if let Some(definition) = &table.definition {
            rows.push((table.name.clone(), Some(definition.clone())));
        }
        if table.has_latest {
            rows.push((latest(table), None));
        }
    }
    Ok(RecordBatch::try_from_iter([
        ("table_catalog", text(rows.iter().map(|_| CATALOG.to_owned()))),
        ("table_schema", text(rows.iter().map(|_| SCHEMA.to_owned()))),
        ("table_name", text(rows.iter().map(|(name, _)| name.clone()))),
        ("view_definition", Arc::new(StringArray::from_iter(rows.into_iter().map(|(_, text)| text))) as ArrayRef),
    ])?)
}

fn latest(table: &Listed) -> String {
    format!("{}_latest", table.name)
}

fn text(values: impl IntoIterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn yes(is: bool) -> String {
    if is { "YES" } else { "NO" }.to_owned()
}
