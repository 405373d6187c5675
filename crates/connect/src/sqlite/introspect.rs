//! What a SQLite file says about its tables.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use sqlx::{Row, SqliteConnection};

use crate::{
    error::Result,
    names,
    source::{SourceColumn, SourceTable, unknown_table},
    types,
};

/// A table, and what reading it needs besides.
#[derive(Debug)]
pub(super) struct KnownTable {
    pub(super) described: Arc<SourceTable>,
    pub(super) schema_version: i64,
    /// The name by which SQL gets at the row's id, if the table has any.
    pub(super) rowid: Option<&'static str>,
}

const TABLES: &str = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'view', 'virtual') \
                      AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";

/// Lists tables, views and virtual tables.
pub(super) async fn tables(db: &mut SqliteConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(TABLES).fetch_all(db).await
}

/// Describes a table. The outer error is the database's, the inner one `UnknownTable`.
pub(super) async fn table(
    connection: &str,
    db: &mut SqliteConnection,
    asked: &str,
    schema_version: i64,
) -> Result<Result<KnownTable>, sqlx::Error> {
    let mut names = vec![names::unquote(asked)];
    if let Some((schema, table)) = names::split_schema(asked)
        && schema.eq_ignore_ascii_case("main")
    {
        names.push(table);
    }
    let mut found = None;
    for name in names {
        // An exact name wins over one that differs in case only, which SQLite takes for the same.
        let row = sqlx::query(
            "SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name = $1 COLLATE NOCASE \
             AND type IN ('table', 'view', 'virtual') ORDER BY name <> $1 LIMIT 1",
        )
        .bind(name)
        .fetch_optional(&mut *db)
        .await?;
        found = found.or(row);
    }
    let Some(row) = found else { return Ok(Err(unknown_table(connection, asked, tables(db).await?))) };
    let (name, kind, without_rowid): (String, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);

    let rows = sqlx::query("SELECT name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo($1)")
        .bind(&name)
        .fetch_all(&mut *db)
        .await?;
    let mut columns = Vec::with_capacity(rows.len());
    let mut key = Vec::new();
    for row in rows {
        let (column, declared): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let declared = declared.unwrap_or_default();
        let (not_null, place, hidden): (i64, i64, i64) = (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        // 1 is a virtual table's hidden column; 2 and 3 are generated ones.
        if hidden == 1 {
            continue;
        }
        if place > 0 {
            key.push((place, column.clone()));
        }
        let (data_type, json) = declared_type(&declared);
        columns.push(SourceColumn {
            name: column,
            source_type: declared,
            data_type,
            json,
            nullable: not_null == 0,
            generated: hidden > 1,
            comment: None,
        });
    }
    key.sort();
    let rowid = (kind == "table" && without_rowid == 0)
        .then(|| {
            ["rowid", "_rowid_", "oid"].into_iter().find(|n| !columns.iter().any(|c| c.name.eq_ignore_ascii_case(n)))
        })
        .flatten();
    let described = SourceTable {
        schema: None,
        name,
        columns,
        primary_key: key.into_iter().map(|(_, name)| name).collect(),
        comment: None,
        rows_estimate: None,
    };
    Ok(Ok(KnownTable { described: Arc::new(described), schema_version, rowid }))
}

/// What a column of a declared type is read as, and whether it is JSON.
///
/// SQLite stores any value in any column; the declaration is what its users mean. The order follows SQLite's own rules of
/// affinity after the words that it does not know: <https://www.sqlite.org/datatype3.html#determination_of_column_affinity>
fn declared_type(declared: &str) -> (DataType, bool) {
    let text = declared.to_ascii_lowercase();
    let (word, digits) = types::split_digits(&text).unwrap_or((text.as_str(), Vec::new()));
    let data_type = match word {
        "bool" | "boolean" => DataType::Boolean,
        "date" => DataType::Date32,
        "time" => DataType::Time64(TimeUnit::Microsecond),
        "datetime" | "timestamp" | "timestamp without time zone" => types::TIMESTAMP,
        "timestamptz" | "timestamp with time zone" | "datetimeoffset" => types::timestamptz(),
        "json" => return (DataType::Utf8, true),
        "decimal" | "numeric" | "number" | "dec" => match digits.as_slice() {
            [digits] => types::decimal(*digits, 0),
            [digits, scale] => types::decimal((*digits).min(types::DECIMAL_DIGITS_MAX.into()), *scale),
            _ => None,
        }
        .unwrap_or(types::DECIMAL_DEFAULT),
        _ if text.contains("int") => DataType::Int64,
        _ if ["char", "clob", "text"].iter().any(|w| text.contains(w)) => DataType::Utf8,
        _ if text.contains("blob") => DataType::Binary,
        _ if ["real", "floa", "doub"].iter().any(|w| text.contains(w)) => DataType::Float64,
        _ => DataType::Utf8,
    };
    (data_type, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_are_read() {
        for (declared, expected) in [
            ("INTEGER", DataType::Int64),
            ("unsigned big int", DataType::Int64),
            ("VARCHAR(255)", DataType::Utf8),
            ("", DataType::Utf8),
            ("DOUBLE PRECISION", DataType::Float64),
            ("Decimal(10, 2)", DataType::Decimal128(10, 2)),
            ("NUMERIC", DataType::Decimal128(38, 9)),
            ("NUMERIC(60,3)", DataType::Decimal128(38, 3)),
            ("BOOLEAN", DataType::Boolean),
            ("DATETIME", types::TIMESTAMP),
            ("TIMESTAMP(6)", types::TIMESTAMP),
            ("timestamp with time zone", types::timestamptz()),
            ("BLOB", DataType::Binary),
        ] {
            assert_eq!(declared_type(declared).0, expected, "{declared}");
        }
    }
}
