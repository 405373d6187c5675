//! What other programs committed to partitioned tables, out of the catalog. Everything here only reads.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use headworks_domain::PartitionKey;
use headworks_store::{Dialect, Error as StoreError, Row, Value, values};

use crate::{
    Action, PartitionInfo, PartitionVersion, Result, TableNote,
    table::{self, From, Table},
};

/// A partition that foreign commits changed, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub table_id: i64,
    pub table: String,
    pub key: PartitionKey,
    /// The last of the snapshots that changed it.
    pub version: i64,
    pub rows: i64,
    pub bytes: i64,
    pub files: i64,
}

impl Change {
    /// The partition as the registry would tell it.
    pub(crate) fn info(&self, seen_at: DateTime<Utc>) -> PartitionInfo {
        PartitionInfo {
            key: self.key.clone(),
            version: self.version,
            rows: self.rows,
            bytes: self.bytes,
            files: self.files,
            published_at: seen_at,
        }
    }

    /// The same as a version of the partition's history.
    pub(crate) fn version(&self, seen_at: DateTime<Utc>) -> PartitionVersion {
        PartitionVersion {
            info: self.info(seen_at),
            action: Action::Foreign.as_str().to_owned(),
            job: None,
            run_id: None,
            attempt: None,
            job_version: None,
            as_of_now: false,
        }
    }

    /// What is known of its table when the registry knows nothing.
    pub(crate) fn note(&self) -> TableNote {
        TableNote {
            table_id: self.table_id,
            name: self.table.clone(),
            kind: Action::Foreign.as_str().to_owned(),
            job: None,
            owner: None,
            retention_secs: None,
        }
    }
}

/// The last snapshot that the registry has seen, and the newest that there is. Cheap: two rows by key.
pub(crate) async fn behind(from: &mut From<'_>) -> Result<(i64, i64)> {
    let sql = "select coalesce((select cast(value as bigint) from hw_lake where key = 'seen'), 0),
        (select max(snapshot_id) from ducklake_snapshot)";
    let rows = from.rows(sql, &[]).await?;
    Ok(rows.first().map_or(Ok((0, 0)), |row| Ok::<_, StoreError>((row.i64(0)?, row.i64(1)?)))?)
}

/// The partitions that snapshots after `seen` and up to `newest` changed, table by table.
pub(crate) async fn changes(from: &mut From<'_>, seen: i64, newest: i64) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for (name, id) in table::names(from, newest).await? {
        let Ok(Some(table)) = table::load(from, &name, newest).await else { continue };
        if table.partition_columns().first() != Some(&"ds") {
            continue;
        }
        for (key, version) in touched(from, &table, seen, newest).await? {
            let (rows, bytes, files) = size(from, &table, &key).await?;
            changes.push(Change { table_id: id, table: name.clone(), key, version, rows, bytes, files });
        }
    }
    Ok(changes)
}

/// The partitions that snapshots after `seen` changed, each with the last of those snapshots.
async fn touched(from: &mut From<'_>, table: &Table, seen: i64, newest: i64) -> Result<BTreeMap<PartitionKey, i64>> {
    let mut keys: BTreeMap<PartitionKey, i64> = BTreeMap::new();
    let mut note = |key: Option<PartitionKey>, version: i64| {
        if let Some(key) = key {
            let last = keys.entry(key).or_insert(version);
            *last = version.max(*last);
        }
    };
    let rows = from
        .rows(
            "select f.data_file_id, case when f.end_snapshot > $2 and f.end_snapshot <= $3 then f.end_snapshot else f.begin_snapshot end
             from ducklake_data_file f where f.table_id = $1
               and ((f.begin_snapshot > $2 and f.begin_snapshot <= $3) or (f.end_snapshot > $2 and f.end_snapshot <= $3))
             union all select d.data_file_id, d.begin_snapshot from ducklake_delete_file d
             where d.table_id = $1 and d.begin_snapshot > $2 and d.begin_snapshot <= $3",
            &values![table.id, seen, newest],
        )
        .await?;
    for row in rows {
        note(file_key(from, table, row.i64(0)?).await?, row.i64(1)?);
    }
    for (inlined, columns) in inlined(from, table).await? {
        let rows = from
            .rows(
                &format!(
                    "select {columns}, max(case when end_snapshot > $1 then end_snapshot else begin_snapshot end) from \"{inlined}\"
                     where begin_snapshot > $1 or end_snapshot > $1 group by {columns}"
                ),
                &values![seen],
            )
            .await?;
        let count = table.partition_columns().len();
        for row in rows {
            note(row_key(table, &row)?, row.i64(count)?);
        }
    }
    let deletes = format!("ducklake_inlined_delete_{}", table.id);
    if exists(from, &deletes).await? {
        let rows = from
            .rows(
                &format!(
                    "select file_id, max(begin_snapshot) from {deletes} where begin_snapshot > $1 group by file_id"
                ),
                &values![seen],
            )
            .await?;
        for row in rows {
            note(file_key(from, table, row.i64(0)?).await?, row.i64(1)?);
        }
    }
    Ok(keys)
}

/// The partition of a file: by its partition values, else by statistics that leave one value only.
async fn file_key(from: &mut From<'_>, table: &Table, file: i64) -> Result<Option<PartitionKey>> {
    let rows = from
        .rows(
            "select partition_value from ducklake_file_partition_value where data_file_id = $1 order by partition_key_index",
            &values![file],
        )
        .await?;
    let columns = table.partition_columns();
    let mut texts: Vec<Option<String>> = rows.iter().map(|r| r.opt_text(0)).collect::<Result<_, _>>()?;
    if texts.len() != columns.len() {
        texts.clear();
        for column in columns.iter().filter_map(|c| table.column(c)) {
            let row = from
                .row(
                    "select min_value from ducklake_file_column_stats where data_file_id = $1 and column_id = $2 and min_value = max_value",
                    &values![file, column.id],
                )
                .await?;
            texts.push(row.map_or(Ok(None), |r| r.opt_text(0))?);
        }
    }
    Ok(key_of(&columns, texts))
}

fn row_key(table: &Table, row: &Row) -> Result<Option<PartitionKey>> {
    let columns = table.partition_columns();
    let texts = (0..columns.len()).map(|i| row.opt_text(i)).collect::<Result<Vec<_>, _>>()?;
    Ok(key_of(&columns, texts))
}

fn key_of(columns: &[&str], texts: Vec<Option<String>>) -> Option<PartitionKey> {
    let mut key: Option<PartitionKey> = None;
    for (column, text) in columns.iter().zip(texts) {
        let text = text?;
        match (*column, &mut key) {
            ("ds", none) => *none = Some(PartitionKey::day(text.parse().ok()?)),
            ("hour", Some(key)) => key.hour = Some(text.parse().ok().filter(|h| *h < 24)?),
            ("event_type", Some(key)) => key.event_type = Some(text),
            _ => return None,
        }
    }
    key
}

/// The tables of a table's inlined rows, each with its partition columns as text.
async fn inlined(from: &mut From<'_>, table: &Table) -> Result<Vec<(String, String)>> {
    let columns =
        table.partition_columns().iter().map(|c| format!("cast(\"{c}\" as varchar)")).collect::<Vec<_>>().join(", ");
    let rows = from
        .rows("select table_name from ducklake_inlined_data_tables where table_id = $1", &values![table.id])
        .await?;
    rows.iter().map(|row| Ok((row.text(0)?, columns.clone()))).collect()
}

pub(crate) async fn exists(from: &mut From<'_>, name: &str) -> Result<bool> {
    let sql = match from.dialect() {
        Dialect::Sqlite => "select 1 from sqlite_master where name = $1",
        Dialect::Postgres => "select 1 from pg_class where oid = to_regclass($1)",
    };
    Ok(from.row(sql, &values![name]).await?.is_some())
}

/// Rows, bytes and files of a partition as the catalog has it now.
async fn size(from: &mut From<'_>, table: &Table, key: &PartitionKey) -> Result<(i64, i64, i64)> {
    let mut joins = String::new();
    let mut bound = values![table.id].to_vec();
    for (index, value) in key.values().into_iter().enumerate() {
        bound.push(value.into());
        joins.push_str(&format!(
            " join ducklake_file_partition_value v{index} on v{index}.data_file_id = f.data_file_id and v{index}.table_id = $1
               and v{index}.partition_key_index = {index} and v{index}.partition_value = ${}",
            index + 2
        ));
    }
    let sql = format!(
        "select cast(coalesce(sum(f.record_count - coalesce((select max(d.delete_count) from ducklake_delete_file d
             where d.data_file_id = f.data_file_id and d.end_snapshot is null), 0)), 0) as bigint),
             cast(coalesce(sum(f.file_size_bytes), 0) as bigint), count(*)
         from ducklake_data_file f {joins} where f.table_id = $1 and f.end_snapshot is null"
    );
    let row = from.row(&sql, &bound).await?;
    let (mut rows, bytes, files) = match row {
        Some(row) => (row.i64(0)?, row.i64(1)?, row.i64(2)?),
        None => (0, 0, 0),
    };
    let columns = table.partition_columns();
    for (name, _) in inlined(from, table).await? {
        let mut sql = format!("select count(*) from \"{name}\" where end_snapshot is null");
        let mut bound = Vec::new();
        for (column, value) in columns.iter().zip(key.values()) {
            bound.push(Value::from(value));
            sql.push_str(&format!(" and cast(\"{column}\" as varchar) = ${}", bound.len()));
        }
        rows += from.row(&sql, &bound).await?.map_or(Ok(0), |row| row.i64(0))?;
    }
    Ok((rows, bytes, files))
}
