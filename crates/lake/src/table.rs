use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use headworks_store::{Dialect, Row, Store, Tx, Value, values};
use uuid::Uuid;

use crate::{Error, Result, types};

/// The key under which Parquet and Arrow carry a column's id.
pub const FIELD_ID: &str = "PARQUET:field_id";

/// A table as the catalog has it at one snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The table's id in the catalog.
    pub id: i64,
    /// The id that a rename keeps.
    pub uuid: Uuid,
    /// The name, in schema `main`.
    pub name: String,
    /// The table's folder below the data path, `main/deliveries/`.
    pub path: String,
    /// The columns in their order.
    pub columns: Vec<Column>,
    /// How the table is cut, if it is.
    pub partition: Option<Partition>,
    /// The table's description.
    pub comment: Option<String>,
    /// Changes with every change of the table's shape.
    pub schema_version: i64,
}

/// A column, or a part of a nested one.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The id that a rename keeps; also the field id inside Parquet files.
    pub id: i64,
    /// The name.
    pub name: String,
    /// The type in Arrow.
    pub data_type: DataType,
    /// The type in the catalog: `int64`, `decimal(12,2)`, `list`.
    pub ducklake_type: String,
    /// Whether it may be null.
    pub nullable: bool,
    /// The column's description.
    pub comment: Option<String>,
    /// What rows that are older than the column hold, as text; null when `None`.
    pub initial_default: Option<String>,
    /// The parts of a list, struct or map.
    pub children: Vec<Column>,
}

/// How a table is cut into partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The id that data files name.
    pub id: i64,
    /// The columns in the order of the keys.
    pub columns: Vec<PartitionColumn>,
}

/// One key of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionColumn {
    /// The column's id.
    pub column_id: i64,
    /// The column's name.
    pub name: String,
    /// `identity`, `year`, `month`, `day`, `hour` or `bucket(n)`.
    pub transform: String,
}

impl Table {
    /// The table's schema, without field ids.
    pub fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(Column::field).collect::<Vec<_>>()))
    }

    /// A column by name, in any case as DuckDB looks it up.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns
            .iter()
            .find(|c| c.name == name)
            .or_else(|| self.columns.iter().find(|c| c.name.eq_ignore_ascii_case(name)))
    }

    /// The names of the columns that cut the table as they are, in the order of the keys.
    pub fn partition_columns(&self) -> Vec<&str> {
        self.partition
            .iter()
            .flat_map(|p| &p.columns)
            .filter(|c| c.transform == "identity")
            .map(|c| c.name.as_str())
            .collect()
    }
}

impl Column {
    /// The column as an Arrow field, without its id.
    pub fn field(&self) -> Field {
        Field::new(&self.name, self.data_type.clone(), self.nullable)
    }
}

/// The schema that table names stand in.
const SCHEMA: &str = "main";

const LIVE: &str = "begin_snapshot <= $1 and (end_snapshot is null or end_snapshot > $1)";

/// Reads from the store's readers or inside a transaction.
pub(crate) enum From<'a> {
    Store(&'a Store),
    Tx(&'a mut Tx),
}

impl From<'_> {
    pub(crate) async fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        Ok(match self {
            Self::Store(store) => store.rows(sql, values).await?,
            Self::Tx(tx) => tx.rows(sql, values).await?,
        })
    }

    pub(crate) async fn row(&mut self, sql: &str, values: &[Value]) -> Result<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Store(store) => store.dialect(),
            Self::Tx(tx) => tx.dialect(),
        }
    }
}

/// Names and ids of all tables of schema `main` at a snapshot, sorted by name.
pub(crate) async fn names(from: &mut From<'_>, snapshot: i64) -> Result<Vec<(String, i64)>> {
    let sql = format!(
        "select t.table_name, t.table_id from ducklake_table t
         join ducklake_schema s on s.schema_id = t.schema_id and s.schema_name = '{SCHEMA}' and s.end_snapshot is null
         where t.begin_snapshot <= $1 and (t.end_snapshot is null or t.end_snapshot > $1) order by 1"
    );
    let rows = from.rows(&sql, &values![snapshot]).await?;
    rows.iter().map(|row| Ok((row.text(0)?, row.i64(1)?))).collect()
}

/// Loads a table by name as it was at a snapshot. Names match as they are written, else without regard to case.
pub(crate) async fn load(from: &mut From<'_>, name: &str, snapshot: i64) -> Result<Option<Table>> {
    let sql = format!(
        "select t.table_id, t.table_uuid, t.table_name, t.path, t.path_is_relative, s.path, s.path_is_relative
         from ducklake_table t
         join ducklake_schema s on s.schema_id = t.schema_id and s.schema_name = '{SCHEMA}' and s.end_snapshot is null
         where lower(t.table_name) = lower($2) and t.begin_snapshot <= $1 and (t.end_snapshot is null or t.end_snapshot > $1)"
    );
    let rows = from.rows(&sql, &values![snapshot, name]).await?;
    let mut best: Option<&Row> = None;
    for row in &rows {
        if best.is_none() || row.text(2)? == name {
            best = Some(row);
        }
    }
    let Some(row) = best else { return Ok(None) };
    let id = row.i64(0)?;
    let uuid = row.text(1)?;
    let name = row.text(2)?;
    let own = row.opt_text(3)?.unwrap_or_default();
    let path = match (row.opt_bool(4)?.unwrap_or(true), row.opt_bool(6)?.unwrap_or(true)) {
        (true, true) => format!("{}{own}", row.opt_text(5)?.unwrap_or_default()),
        _ => return Err(Error::Unsupported { what: format!("table `{name}` stands outside the lake's data path") }),
    };
    let columns = columns(from, &name, id, snapshot).await?;
    let partition = partition(from, id, snapshot, &columns).await?;
    let comment = from
        .rows(
            &format!("select value from ducklake_tag where object_id = $2 and key = 'comment' and {LIVE}"),
            &values![snapshot, id],
        )
        .await?
        .first()
        .map_or(Ok(None), |row| row.opt_text(0))?;
    let schema_version = from
        .rows(
            "select max(schema_version) from ducklake_schema_versions where (table_id = $2 or table_id is null) and begin_snapshot <= $1",
            &values![snapshot, id],
        )
        .await?
        .first()
        .map_or(Ok(None), |row| row.opt_i64(0))?
        .unwrap_or(0);
    let uuid = uuid.parse().unwrap_or(Uuid::nil());
    Ok(Some(Table { id, uuid, name, path, columns, partition, comment, schema_version }))
}

async fn columns(from: &mut From<'_>, table: &str, id: i64, snapshot: i64) -> Result<Vec<Column>> {
    let tags = from
        .rows(
            &format!(
                "select column_id, value from ducklake_column_tag where table_id = $2 and key = 'comment' and {LIVE}"
            ),
            &values![snapshot, id],
        )
        .await?;
    let mut comments = HashMap::new();
    for row in &tags {
        comments.insert(row.i64(0)?, row.opt_text(1)?);
    }
    let rows = from
        .rows(
            &format!(
                "select column_id, column_name, column_type, initial_default, nulls_allowed, parent_column
                 from ducklake_column where table_id = $2 and {LIVE} order by column_order, column_id"
            ),
            &values![snapshot, id],
        )
        .await?;
    let mut by_parent: HashMap<Option<i64>, Vec<&Row>> = HashMap::new();
    for row in &rows {
        by_parent.entry(row.opt_i64(5)?).or_default().push(row);
    }
    build(table, None, &by_parent, &comments)
}

fn build(
    table: &str,
    parent: Option<i64>,
    by_parent: &HashMap<Option<i64>, Vec<&Row>>,
    comments: &HashMap<i64, Option<String>>,
) -> Result<Vec<Column>> {
    by_parent
        .get(&parent)
        .into_iter()
        .flatten()
        .map(|row| {
            let id = row.i64(0)?;
            let name = row.text(1)?;
            let ducklake_type = row.text(2)?;
            let children = build(table, Some(id), by_parent, comments)?;
            let data_type = types::data_type(&ducklake_type, &children).ok_or_else(|| Error::Unsupported {
                what: format!("column `{name}` of table `{table}` has type `{ducklake_type}`"),
            })?;
            Ok(Column {
                id,
                data_type,
                ducklake_type,
                nullable: row.opt_bool(4)?.unwrap_or(true),
                comment: comments.get(&id).cloned().flatten(),
                initial_default: row.opt_text(3)?,
                children,
                name,
            })
        })
        .collect()
}

async fn partition(from: &mut From<'_>, id: i64, snapshot: i64, columns: &[Column]) -> Result<Option<Partition>> {
    let rows = from
        .rows(
            "select p.partition_id, c.column_id, c.transform from ducklake_partition_info p
             join ducklake_partition_column c on c.partition_id = p.partition_id
             where p.table_id = $2 and p.begin_snapshot <= $1 and (p.end_snapshot is null or p.end_snapshot > $1)
             order by c.partition_key_index",
            &values![snapshot, id],
        )
        .await?;
    let mut partition: Option<Partition> = None;
    for row in &rows {
        let column_id = row.i64(1)?;
        let name = columns.iter().find(|c| c.id == column_id).map(|c| c.name.clone()).unwrap_or_default();
        partition.get_or_insert(Partition { id: row.i64(0)?, columns: Vec::new() }).columns.push(PartitionColumn {
            column_id,
            name,
            transform: row.text(2)?,
        });
    }
    Ok(partition)
}
