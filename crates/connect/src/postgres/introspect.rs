//! What `pg_catalog` says about tables.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::plan::{self, PgType};
use crate::{
    error::Result,
    names::{literal, quote, split_schema, unquote},
    source::{SourceColumn, SourceTable, unknown_table},
};

/// A table, and what reading it needs besides.
#[derive(Debug)]
pub(super) struct KnownTable {
    pub(super) described: Arc<SourceTable>,
    /// The types behind the columns, in the same order.
    pub(super) types: Vec<PgType>,
    /// `"schema"."table"`
    pub(super) quoted: String,
    /// True when `LOCK TABLE` works on it: it is a table of this server, and all of it may be read.
    pub(super) lockable: bool,
    /// True when its pages can be read in stretches: it is a heap without children, on PostgreSQL 14 or newer.
    pub(super) splittable: bool,
    /// What [`fingerprint_sql`] answered when it was described.
    pub(super) fingerprint: String,
}

const TABLES: &str = "SELECT CASE WHEN pg_table_is_visible(c.oid) THEN c.relname ELSE n.nspname || '.' || c.relname END::text \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
    AND n.nspname NOT LIKE 'pg\\_temp\\_%' AND n.nspname NOT LIKE 'pg\\_toast\\_temp\\_%' AND NOT c.relispartition \
    AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT') \
    ORDER BY NOT pg_table_is_visible(c.oid), 1";

const FIND: &str = "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.reltuples::float8, \
    obj_description(c.oid, 'pg_class'), c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, 'SELECT'), \
    c.relkind = 'r' AND NOT c.relhassubclass AND current_setting('server_version_num')::int4 >= 140000 \
      AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap') \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') \
    AND ((c.relname = $1 AND pg_table_is_visible(c.oid)) OR (n.nspname = $2 AND c.relname = $3)) \
    ORDER BY c.relname = $1 DESC LIMIT 1";

/// Columns with their types; domains are resolved to what they stand on.
const COLUMNS: &str = "WITH RECURSIVE base(attnum, typ, typmod, ndims) AS ( \
      SELECT attnum, atttypid, atttypmod, attndims::int4 FROM pg_attribute \
      WHERE attrelid = $1::int8::oid AND attnum > 0 AND NOT attisdropped \
      UNION ALL \
      SELECT b.attnum, t.typbasetype, CASE WHEN t.typtypmod <> -1 THEN t.typtypmod ELSE b.typmod END, \
        greatest(b.ndims, t.typndims::int4) \
      FROM base b JOIN pg_type t ON t.oid = b.typ WHERE t.typtype = 'd') \
    SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '', \
      col_description(a.attrelid, a.attnum), t.oid::int8, t.typname::text, t.typtype::text, b.typmod, b.ndims, \
      e.oid::int8, e.typtype::text, e.typname::text \
    FROM pg_attribute a JOIN base b ON b.attnum = a.attnum JOIN pg_type t ON t.oid = b.typ AND t.typtype <> 'd' \
    LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' \
    WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

const KEY: &str = "SELECT a.attname::text FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
    WHERE i.indrelid = $1::int8::oid AND i.indisprimary ORDER BY k.place";

/// Lists tables and views; those outside of the search path as `schema.table`.
pub(super) async fn tables(db: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(TABLES).fetch_all(db).await
}

/// The query whose answer changes when a table's definition does.
pub(super) fn fingerprint_sql(quoted: &str) -> String {
    // The file's number by the snapshot and by now differ when the table was rewritten in between, and then the snapshot would
    // see it empty.
    format!(
        "SELECT concat_ws(';', c.oid, nullif(c.relfilenode, 0) IS NOT DISTINCT FROM pg_relation_filenode(c.oid), \
         (SELECT string_agg(concat_ws(':', attnum, attname, atttypid, atttypmod, attndims, attisdropped), ',' ORDER BY attnum) \
         FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)) FROM pg_class c WHERE c.oid = {}::regclass",
        literal(quoted)
    )
}

/// Describes a table. The outer error is the database's, the inner one `UnknownTable`.
pub(super) async fn table(
    connection: &str,
    db: &mut PgConnection,
    asked: &str,
) -> Result<Result<KnownTable>, sqlx::Error> {
    let (schema, qualified) = split_schema(asked).unzip();
    let found = sqlx::query(FIND).bind(unquote(asked)).bind(schema).bind(qualified).fetch_optional(&mut *db).await?;
    let Some(found) = found else { return Ok(Err(unknown_table(connection, asked, tables(db).await?))) };
    let (oid, schema, name): (i64, String, String) = (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?);
    let rows: f64 = found.try_get(3)?;

    let mut columns = Vec::new();
    let mut column_types = Vec::new();
    for row in sqlx::query(COLUMNS).bind(oid).fetch_all(&mut *db).await? {
        let element = match row.try_get::<Option<i64>, _>(10)? {
            Some(oid) => Some(plan::Element {
                oid: u32::try_from(oid).unwrap_or(0),
                kind: row.try_get(11)?,
                name: row.try_get(12)?,
            }),
            None => None,
        };
        let pg_type = PgType {
            oid: u32::try_from(row.try_get::<i64, _>(5)?).unwrap_or(0),
            name: row.try_get(6)?,
            kind: row.try_get(7)?,
            typmod: row.try_get(8)?,
            dimensions: row.try_get(9)?,
            element,
        };
        let plan = plan::natural(&pg_type, "");
        columns.push(SourceColumn {
            name: row.try_get(0)?,
            source_type: row.try_get(1)?,
            data_type: plan.data_type,
            json: plan.json,
            nullable: !row.try_get::<bool, _>(2)?,
            generated: row.try_get(3)?,
            comment: row.try_get(4)?,
        });
        column_types.push(pg_type);
    }
    let quoted = format!("{}.{}", quote(&schema), quote(&name));
    let fingerprint = sqlx::query_scalar(AssertSqlSafe(fingerprint_sql(&quoted))).fetch_one(&mut *db).await?;
    let described = SourceTable {
        schema: Some(schema),
        name,
        columns,
        primary_key: sqlx::query_scalar(KEY).bind(oid).fetch_all(&mut *db).await?,
        comment: found.try_get(4)?,
        // Below zero it was never counted.
        rows_estimate: (rows >= 0.0).then_some(rows as u64),
    };
    Ok(Ok(KnownTable {
        described: Arc::new(described),
        types: column_types,
        quoted,
        lockable: found.try_get(5)?,
        splittable: found.try_get(6)?,
        fingerprint,
    }))
}
