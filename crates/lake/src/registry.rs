//! The partition registry: which partitions are published, since which version, by whom.
//!
//! It stands beside the catalog and changes in the same transaction. It knows a published partition of zero rows, answers waits
//! and `_latest`, and feeds the pages. Foreign commits do not know it: `catch_up` adds what they did.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use headworks_domain::PartitionKey;
use headworks_store::{Row, Tx, Value, values};

use crate::{
    PublishInfo, Result, Staged, TableSpec,
    publish::Rows,
    table::{self, From, Table},
};

/// Why a partition has a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A run published it.
    Publish,
    /// Another program changed it.
    Foreign,
    /// An older version was brought back.
    Restore,
    /// Files that others had left were taken in.
    Adopt,
    /// It was dropped: its time was over.
    Drop,
}

impl Action {
    /// The action as the registry stores it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Foreign => "foreign",
            Self::Restore => "restore",
            Self::Adopt => "adopt",
            Self::Drop => "drop",
        }
    }
}

/// A published partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The partition.
    pub key: PartitionKey,
    /// The lake's version since which it is as it is.
    pub version: i64,
    /// Its rows.
    pub rows: i64,
    /// The bytes of its files.
    pub bytes: i64,
    /// The count of its files.
    pub files: i64,
    /// When it was published.
    pub published_at: DateTime<Utc>,
}

/// One version of one partition, current or past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionVersion {
    /// The partition and its size then.
    pub info: PartitionInfo,
    /// `publish`, `foreign`, `restore`, `adopt` or `drop`.
    pub action: String,
    /// The job that made it.
    pub job: Option<String>,
    /// The run that made it.
    pub run_id: Option<String>,
    /// The attempt's fence.
    pub attempt: Option<i64>,
    /// The job's version.
    pub job_version: Option<String>,
    /// True when a past partition was filled with what the source held at that time.
    pub as_of_now: bool,
}

/// What is known of a table besides its catalog rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableNote {
    /// The table's id.
    pub table_id: i64,
    /// The name.
    pub name: String,
    /// `cumulative`, `events`, `upsert`, `adopted` or `foreign`.
    pub kind: String,
    /// The job that makes it.
    pub job: Option<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// How long its partitions are kept, in seconds; `None` for ever.
    pub retention_secs: Option<i64>,
}

pub(crate) struct Entry<'a> {
    pub table_id: i64,
    pub partition: &'a PartitionKey,
    pub version: i64,
    pub rows: i64,
    pub bytes: i64,
    pub files: i64,
    pub now: DateTime<Utc>,
}

/// How many keys one query names.
const KEYS_MAX: usize = 200;

/// The current versions of those partitions that are published.
pub(crate) async fn versions<'k>(
    from: &mut From<'_>,
    table_id: i64,
    keys: impl Iterator<Item = &'k PartitionKey>,
) -> Result<HashMap<PartitionKey, i64>> {
    let keys: Vec<String> = keys.map(ToString::to_string).collect();
    let mut found = HashMap::new();
    for some in keys.chunks(KEYS_MAX) {
        let mut bound = values![table_id].to_vec();
        bound.extend(some.iter().map(Value::from));
        let places = (2..=bound.len()).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
        let sql =
            format!("select partition, version from hw_partition where table_id = $1 and partition in ({places})");
        for row in from.rows(&sql, &bound).await? {
            if let Ok(key) = row.text(0)?.parse() {
                found.insert(key, row.i64(1)?);
            }
        }
    }
    Ok(found)
}

/// Writes partitions' new versions down: the current ones and the history.
pub(crate) async fn record(
    tx: &mut Tx,
    entries: &[Entry<'_>],
    action: Action,
    info: Option<&PublishInfo>,
) -> Result<()> {
    let mut current = Rows::with_end(
        "insert into hw_partition(table_id, partition, version, row_count, bytes, files, published_at) values ",
        " on conflict (table_id, partition) do update set version = excluded.version, row_count = excluded.row_count,
             bytes = excluded.bytes, files = excluded.files, published_at = excluded.published_at",
    );
    let mut history = Rows::with_end(
        "insert into hw_publish(version, table_id, partition, action, row_count, bytes, files, published_at, job, run_id, attempt,
             job_version, as_of_now, inputs) values ",
        " on conflict (table_id, partition, version) do nothing",
    );
    let inputs = info.filter(|i| !i.inputs.is_empty()).and_then(|i| serde_json::to_string(&i.inputs).ok());
    for entry in entries {
        let key = entry.partition.to_string();
        let now = entry.now.timestamp_micros();
        if action == Action::Drop {
            let sql = "delete from hw_partition where table_id = $1 and partition = $2";
            tx.execute(sql, &values![entry.table_id, &key]).await?;
        } else {
            let row = values![entry.table_id, &key, entry.version, entry.rows, entry.bytes, entry.files, now];
            current.push(tx, row).await?;
        }
        let row = values![
            entry.version,
            entry.table_id,
            &key,
            action.as_str(),
            entry.rows,
            entry.bytes,
            entry.files,
            now,
            info.map(|i| i.job.clone()),
            info.map(|i| i.run_id.clone()),
            info.map(|i| i.attempt),
            info.map(|i| i.job_version.clone()),
            info.is_some_and(|i| i.as_of_now),
            &inputs
        ];
        history.push(tx, row).await?;
    }
    current.run(tx).await?;
    Ok(history.run(tx).await?)
}

/// Keeps what the job says of its table; writes only what changed.
pub(crate) async fn describe(tx: &mut Tx, table_id: i64, spec: &TableSpec) -> Result<()> {
    tx.execute(
        "insert into hw_table(table_id, name, kind, job, owner, retention_secs) values ($1, $2, $3, $4, $5, $6)
         on conflict (table_id) do update set name = excluded.name, kind = excluded.kind, job = excluded.job, owner = excluded.owner,
             retention_secs = excluded.retention_secs
         where hw_table.name <> excluded.name or hw_table.kind <> excluded.kind or hw_table.job is distinct from excluded.job
             or hw_table.owner is distinct from excluded.owner or hw_table.retention_secs is distinct from excluded.retention_secs",
        &values![table_id, spec.name.as_str(), &spec.kind, &spec.job, &spec.owner, spec.retention_secs],
    )
    .await?;
    Ok(())
}

/// A run that replaces a day whole replaces every event type of it: those that came no more are gone.
pub(crate) async fn forget_replaced(
    tx: &mut Tx,
    table_id: i64,
    staged: &Staged,
    version: i64,
    now: DateTime<Utc>,
) -> Result<()> {
    if !staged.spec.partition_by.iter().any(|c| c == "event_type") {
        return Ok(());
    }
    let kept: HashSet<&PartitionKey> = staged.keys().collect();
    for prefix in staged.replaced.iter().filter(|k| k.event_type.is_none()) {
        let rows = tx
            .rows(
                "select partition from hw_partition where table_id = $1 and partition >= $2 and partition < $3",
                &values![table_id, format!("{prefix}/event_type="), format!("{prefix}/event_type>")],
            )
            .await?;
        for row in rows {
            let Ok(key) = row.text(0)?.parse::<PartitionKey>() else { continue };
            if !kept.contains(&key) {
                let entry = Entry { table_id, partition: &key, version, rows: 0, bytes: 0, files: 0, now };
                record(tx, &[entry], Action::Drop, None).await?;
            }
        }
    }
    Ok(())
}

/// True when foreign commits came that the registry has not seen. Cheap: two rows by key.
pub(crate) async fn is_behind(from: &mut From<'_>) -> Result<bool> {
    let rows = from.rows(BEHIND, &[]).await?;
    Ok(rows.first().map_or(Ok(false), |row| Ok::<_, headworks_store::Error>(row.i64(0)? < row.i64(1)?))?)
}

const BEHIND: &str = "select coalesce((select cast(value as bigint) from hw_lake where key = 'seen'), 0),
    (select max(snapshot_id) from ducklake_snapshot)";

/// Adds what foreign commits did to partitioned tables since the last look.
pub(crate) async fn catch_up(tx: &mut Tx, now: DateTime<Utc>) -> Result<()> {
    let Some(row) = tx.row(BEHIND, &[]).await? else { return Ok(()) };
    let (seen, newest) = (row.i64(0)?, row.i64(1)?);
    if seen >= newest {
        return Ok(());
    }
    for (name, id) in table::names(&mut From::Tx(tx), newest).await? {
        let Ok(Some(table)) = table::load(&mut From::Tx(tx), &name, newest).await else { continue };
        if table.partition_columns().first() != Some(&"ds") {
            continue;
        }
        let touched = touched(tx, &table, seen, newest).await?;
        if touched.is_empty() {
            continue;
        }
        tx.execute(
            "insert into hw_table(table_id, name, kind) values ($1, $2, 'foreign') on conflict (table_id) do nothing",
            &values![id, &name],
        )
        .await?;
        for (key, version) in touched {
            let (rows, bytes, files) = size(tx, &table, &key).await?;
            let entry = Entry { table_id: id, partition: &key, version, rows, bytes, files, now };
            record(tx, &[entry], Action::Foreign, None).await?;
        }
    }
    tx.execute("update hw_lake set value = $1 where key = 'seen'", &values![newest.to_string()]).await?;
    Ok(())
}

/// The partitions that snapshots after `seen` changed, each with the last of those snapshots.
async fn touched(tx: &mut Tx, table: &Table, seen: i64, newest: i64) -> Result<BTreeMap<PartitionKey, i64>> {
    let mut keys: BTreeMap<PartitionKey, i64> = BTreeMap::new();
    let mut note = |key: Option<PartitionKey>, version: i64| {
        if let Some(key) = key {
            let last = keys.entry(key).or_insert(version);
            *last = version.max(*last);
        }
    };
    let rows = tx
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
        note(file_key(tx, table, row.i64(0)?).await?, row.i64(1)?);
    }
    for (inlined, columns) in inlined(tx, table).await? {
        let rows = tx
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
    if exists(tx, &deletes).await? {
        let rows = tx
            .rows(
                &format!(
                    "select file_id, max(begin_snapshot) from {deletes} where begin_snapshot > $1 group by file_id"
                ),
                &values![seen],
            )
            .await?;
        for row in rows {
            note(file_key(tx, table, row.i64(0)?).await?, row.i64(1)?);
        }
    }
    Ok(keys)
}

/// The partition of a file: by its partition values, else by statistics that leave one value only.
async fn file_key(tx: &mut Tx, table: &Table, file: i64) -> Result<Option<PartitionKey>> {
    let rows = tx
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
            let row = tx
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
async fn inlined(tx: &mut Tx, table: &Table) -> Result<Vec<(String, String)>> {
    let columns =
        table.partition_columns().iter().map(|c| format!("cast(\"{c}\" as varchar)")).collect::<Vec<_>>().join(", ");
    let rows =
        tx.rows("select table_name from ducklake_inlined_data_tables where table_id = $1", &values![table.id]).await?;
    rows.iter().map(|row| Ok((row.text(0)?, columns.clone()))).collect()
}

pub(crate) async fn exists(tx: &mut Tx, name: &str) -> Result<bool> {
    let sql = match tx.dialect() {
        headworks_store::Dialect::Sqlite => "select 1 from sqlite_master where name = $1",
        headworks_store::Dialect::Postgres => "select 1 from pg_class where oid = to_regclass($1)",
    };
    Ok(tx.row(sql, &values![name]).await?.is_some())
}

/// Rows, bytes and files of a partition as the catalog has it now.
async fn size(tx: &mut Tx, table: &Table, key: &PartitionKey) -> Result<(i64, i64, i64)> {
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
    let row = tx.row(&sql, &bound).await?;
    let (mut rows, bytes, files) = match row {
        Some(row) => (row.i64(0)?, row.i64(1)?, row.i64(2)?),
        None => (0, 0, 0),
    };
    let columns = table.partition_columns();
    for (name, _) in inlined(tx, table).await? {
        let mut sql = format!("select count(*) from \"{name}\" where end_snapshot is null");
        let mut bound = Vec::new();
        for (column, value) in columns.iter().zip(key.values()) {
            bound.push(Value::from(value));
            sql.push_str(&format!(" and cast(\"{column}\" as varchar) = ${}", bound.len()));
        }
        rows += tx.row(&sql, &bound).await?.map_or(Ok(0), |row| row.i64(0))?;
    }
    Ok((rows, bytes, files))
}

pub(crate) fn partition_info(row: &Row) -> Result<PartitionInfo> {
    Ok(PartitionInfo {
        key: row
            .text(0)?
            .parse()
            .map_err(|_| crate::Error::Corrupt { what: "the registry names no partition".to_owned() })?,
        version: row.i64(1)?,
        rows: row.opt_i64(2)?.unwrap_or(0),
        bytes: row.opt_i64(3)?.unwrap_or(0),
        files: row.opt_i64(4)?.unwrap_or(0),
        published_at: DateTime::from_timestamp_micros(row.i64(5)?).unwrap_or_default(),
    })
}
