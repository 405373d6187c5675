//! Publishing: one transaction swaps partitions. Readers see the old or the new, never half.
//!
//! Order inside the transaction: the caller has locked its task's row by its fence; then the catalog lock (an advisory lock on
//! PostgreSQL, `begin immediate` on SQLite); then the next snapshot id. On PostgreSQL a foreign writer may take the same id first and
//! make the insert fail on its key: we go back to a savepoint, look what it did, and try again.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::PartitionKey;
use headworks_store::{Dialect, Error as StoreError, Row, Tx, Value, values};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    Error, Result, Staged,
    registry::{self, Action},
    stats::{TableStats, widen},
    table::{self, Column, From, Table},
    types,
    write::{StagedFile, StagedPartition, TableSpec},
};

/// Who publishes, and from what: kept with the snapshot, so that a number can be traced years later.
#[derive(Debug, Clone, Serialize)]
pub struct PublishInfo {
    /// The job.
    pub job: String,
    /// The run.
    pub run_id: String,
    /// The attempt's fence.
    pub attempt: i64,
    /// The job's version.
    pub job_version: String,
    /// What was read.
    pub inputs: Vec<Input>,
    /// True when a past partition was filled with what the source holds now.
    pub as_of_now: bool,
    /// Why the partitions get a new version.
    pub action: Action,
}

/// A partition that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Input {
    /// The table.
    pub table: String,
    /// The partition.
    pub partition: PartitionKey,
    /// Its version at that time.
    pub version: i64,
    /// The environment whose lake it was read from; `None` for the lake of the publish itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
}

/// What a publish did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The table's id.
    pub table_id: i64,
    /// The lake's new version.
    pub version: i64,
    /// The partitions that were replaced.
    pub partitions: Vec<PartitionKey>,
}

/// How often a publish starts over because a foreign writer took the snapshot's id.
const FOREIGN_RETRIES: usize = 20;

/// The advisory lock that orders our own publishes on PostgreSQL, one for each schema: environments in one database don't wait
/// for each other.
const CATALOG_LOCK: i64 = 0x6865_6164_776f_726b;

/// The head of the catalog: what the next snapshot continues from.
pub(crate) struct Head {
    pub snapshot: i64,
    pub time: DateTime<Utc>,
    pub schema_version: i64,
    pub next_catalog_id: i64,
    pub next_file_id: i64,
}

impl Head {
    /// The head, once the registry knows all that others committed: a snapshot that is written says that it does.
    pub(crate) async fn caught_up(tx: &mut Tx, now: DateTime<Utc>) -> Result<Self> {
        registry::catch_up(tx, now).await?;
        Self::read(tx).await
    }

    async fn read(tx: &mut Tx) -> Result<Self> {
        let row = tx
            .row(
                "select snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id
                 from ducklake_snapshot order by snapshot_id desc limit 1",
                &[],
            )
            .await?
            .ok_or_else(|| Error::Corrupt { what: "the catalog has no snapshot".to_owned() })?;
        Self::of(&row)
    }

    fn of(row: &Row) -> Result<Self> {
        Ok(Self {
            snapshot: row.i64(0)?,
            time: row.time(1)?,
            schema_version: row.i64(2)?,
            next_catalog_id: row.i64(3)?,
            next_file_id: row.i64(4)?,
        })
    }

    /// Writes the head as a new snapshot. Errors: `Unique` when somebody else has taken the id.
    pub(crate) async fn write(
        &self,
        tx: &mut Tx,
        now: DateTime<Utc>,
        changes: &[String],
        message: Option<&str>,
        extra: Option<String>,
    ) -> Result<()> {
        // Clocks step back; the history's times must not.
        let time = now.max(self.time + TimeDelta::microseconds(1));
        tx.execute(
            "insert into ducklake_snapshot(snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id) values ($1, $2, $3, $4, $5)",
            &values![self.snapshot, time, self.schema_version, self.next_catalog_id, self.next_file_id],
        )
        .await?;
        tx.execute(
            "insert into ducklake_snapshot_changes(snapshot_id, changes_made, author, commit_message, commit_extra_info)
             values ($1, $2, 'headworks', $3, $4)",
            &values![self.snapshot, changes.join(","), message, extra],
        )
        .await?;
        tx.execute("update hw_lake set value = $1 where key = 'seen'", &values![self.snapshot.to_string()]).await?;
        Ok(())
    }
}

/// Takes the lock that orders publishes among our own processes.
pub(crate) async fn lock(tx: &mut Tx) -> Result<()> {
    if tx.dialect() == Dialect::Postgres {
        tx.execute("select pg_advisory_xact_lock($1 + hashtext(current_schema()))", &values![CATALOG_LOCK]).await?;
    }
    Ok(())
}

/// Runs `step` in a savepoint, again and again while a foreign writer takes the snapshot's id first. On SQLite none can: the
/// transaction holds the lock from its beginning, and the caller's savepoint serves for errors.
macro_rules! against_foreign_writers {
    ($tx:ident, $step:expr) => {{
        if $tx.dialect() == headworks_store::Dialect::Sqlite {
            $step.await
        } else {
            $crate::publish::lock($tx).await?;
            let mut tries = 0;
            loop {
                $tx.savepoint().await?;
                match $step.await {
                    Ok(value) => {
                        $tx.release().await?;
                        break Ok(value);
                    }
                    Err($crate::Error::Store(headworks_store::Error::Unique { .. }))
                        if tries < $crate::publish::RETRIES =>
                    {
                        $tx.undo().await?;
                        tries += 1;
                    }
                    Err(error) => {
                        $tx.undo().await?;
                        break Err(error);
                    }
                }
            }
        }
    }};
}
pub(crate) use against_foreign_writers;
pub(crate) const RETRIES: usize = FOREIGN_RETRIES;

pub(crate) async fn publish(tx: &mut Tx, staged: &Staged, info: &PublishInfo, now: DateTime<Utc>) -> Result<Published> {
    against_foreign_writers!(tx, once(tx, staged, info, now))
}

/// What a publish has to know of the catalog before it changes anything, read in one statement.
struct Look {
    head: Head,
    /// The newest snapshot that the registry has seen.
    seen: i64,
    /// The table's schema version; `None` for a table that was dropped.
    table_version: Option<i64>,
    next_row_id: Option<i64>,
    /// The registry says of the table what the job says.
    is_described: bool,
}

impl Look {
    /// `table_id` may be that of no table.
    async fn at(tx: &mut Tx, table_id: i64, spec: &TableSpec) -> Result<Self> {
        let row = tx
            .row(
                "select snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id,
                     coalesce((select cast(value as bigint) from hw_lake where key = 'seen'), 0),
                     (select coalesce(max(v.schema_version), 0) from ducklake_schema_versions v where v.table_id = $1),
                     (select count(*) from ducklake_table where table_id = $1 and end_snapshot is not null),
                     (select max(coalesce(next_row_id, 0)) from ducklake_table_stats where table_id = $1),
                     (select count(*) from hw_table where table_id = $1 and name = $2 and kind = $3 and job is not distinct from $4
                         and owner is not distinct from $5 and retention_secs is not distinct from $6)
                 from ducklake_snapshot order by snapshot_id desc limit 1",
                &values![table_id, spec.name.as_str(), &spec.kind, &spec.job, &spec.owner, spec.retention_secs],
            )
            .await?
            .ok_or_else(|| Error::Corrupt { what: "the catalog has no snapshot".to_owned() })?;
        Ok(Self {
            head: Head::of(&row)?,
            seen: row.i64(5)?,
            table_version: Some(row.i64(6)?).filter(|_| row.i64(7).is_ok_and(|dropped| dropped == 0)),
            next_row_id: row.opt_i64(8)?,
            is_described: row.i64(9)? > 0,
        })
    }
}

async fn once(tx: &mut Tx, staged: &Staged, info: &PublishInfo, now: DateTime<Utc>) -> Result<Published> {
    let spec = &staged.spec;
    let name = spec.name.as_str();
    let base = staged.base.as_ref().map_or(-1, |base| base.id);
    let mut look = Look::at(tx, base, spec).await?;
    if look.seen < look.head.snapshot {
        registry::catch_up(tx, now).await?;
        look = Look::at(tx, base, spec).await?;
    }
    let mut changes = Vec::new();
    let current = match &staged.base {
        // No shape of any table changed since staging: the common case needs no look.
        Some(base) if look.table_version == Some(base.schema_version) => Some(Arc::clone(base)),
        _ => table::load(&mut From::Tx(tx), name, look.head.snapshot).await?.map(Arc::new),
    };
    if let Some(table) = current.as_ref().filter(|table| table.id != base) {
        look = Look::at(tx, table.id, spec).await?;
    }
    let Look { mut head, next_row_id, is_described, .. } = look;
    // A table that is made here has its row of statistics at once, and nothing is known of it yet.
    let (next_row_id, is_described) = match &current {
        Some(_) => (next_row_id, is_described),
        None => (Some(0), false),
    };
    head.snapshot += 1;
    let table_id = match &current {
        None => create(tx, staged, &mut head, &mut changes).await?,
        Some(table) => {
            evolve(tx, staged, table, &mut head, &mut changes).await?;
            table.id
        }
    };
    let partition_id = match &current {
        Some(table) => table.partition.as_ref().map(|p| p.id),
        None => Some(table_id + 1),
    };
    if current.is_some() {
        refuse_conflicts(tx, staged, table_id).await?;
        let target = Cut {
            table: name,
            table_id,
            partition_id,
            columns: spec
                .partition_by
                .iter()
                .filter_map(|k| staged.shape.columns.iter().find(|c| c.name == *k))
                .collect(),
        };
        let retired = retire(tx, &target, &staged.replaced, head.snapshot).await?;
        if retired > 0 {
            changes.push(format!("deleted_from_table:{table_id}"));
        }
    }
    let files: Vec<(&StagedPartition, &StagedFile)> =
        staged.partitions.iter().flat_map(|p| p.files.iter().map(move |f| (p, f))).collect();
    if !files.is_empty() {
        add_files(tx, &files, table_id, partition_id, next_row_id, &mut head).await?;
        widen_stats(tx, staged, &files, table_id).await?;
        changes.push(format!("inserted_into_table:{table_id}"));
    }
    let message =
        format!("{} {}", info.job, staged.replaced.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let extra = serde_json::json!({
        "job": info.job, "run": info.run_id, "attempt": info.attempt, "job_version": info.job_version,
        "as_of_now": info.as_of_now, "inputs": info.inputs, "table": name,
        "partitions": staged.partitions.iter().map(|p| serde_json::json!({
            "partition": p.key, "rows": p.files.iter().map(|f| f.rows).sum::<i64>(),
        })).collect::<Vec<_>>(),
    });
    head.write(tx, now, &changes, Some(&message), Some(extra.to_string())).await?;
    if !is_described {
        registry::describe(tx, table_id, spec).await?;
    }
    registry::forget_replaced(tx, table_id, staged, head.snapshot, now).await?;
    let entries: Vec<registry::Entry<'_>> = staged
        .partitions
        .iter()
        .map(|partition| registry::Entry {
            table_id,
            partition: &partition.key,
            version: head.snapshot,
            rows: partition.files.iter().map(|f| f.rows).sum(),
            bytes: partition.files.iter().map(|f| f.bytes).sum(),
            files: i64::try_from(partition.files.len()).unwrap_or(i64::MAX),
            now,
        })
        .collect();
    registry::record(tx, &entries, info.action, Some(info)).await?;
    let partitions = staged.partitions.iter().map(|p| p.key.clone()).collect();
    Ok(Published { table_id, version: head.snapshot, partitions })
}

/// Two runs of one partition: the second must not win unseen. Errors: `Conflict`.
async fn refuse_conflicts(tx: &mut Tx, staged: &Staged, table_id: i64) -> Result<()> {
    let found = registry::versions(&mut From::Tx(tx), table_id, staged.partitions.iter().map(|p| &p.key)).await?;
    for partition in &staged.partitions {
        let now = found.get(&partition.key).copied();
        if now != partition.seen {
            let shown = |v: Option<i64>| v.map_or_else(|| "none".to_owned(), |v| v.to_string());
            return Err(Error::Conflict {
                table: staged.spec.name.to_string(),
                partition: partition.key.clone(),
                seen: shown(partition.seen),
                found: shown(now),
            });
        }
    }
    Ok(())
}

/// Makes the table, its partitioning, its description and the view of its newest partition.
async fn create(tx: &mut Tx, staged: &Staged, head: &mut Head, changes: &mut Vec<String>) -> Result<i64> {
    let name = staged.spec.name.as_str();
    let table_id = head.next_catalog_id;
    let (partition_id, view_id) = (table_id + 1, table_id + 2);
    head.next_catalog_id += 3;
    head.schema_version += 1;
    let snapshot = head.snapshot;
    let own = staged.path.strip_prefix("main/").unwrap_or(&staged.path);
    tx.execute(
        "insert into ducklake_table(table_id, table_uuid, begin_snapshot, schema_id, table_name, path, path_is_relative)
         values ($1, $2, $3, 0, $4, $5, $6)",
        &values![table_id, Uuid::now_v7(), snapshot, name, own, true],
    )
    .await?;
    for column in &staged.shape.columns {
        add_column(tx, table_id, column, None, snapshot).await?;
    }
    tx.execute(
        "insert into ducklake_partition_info(partition_id, table_id, begin_snapshot) values ($1, $2, $3)",
        &values![partition_id, table_id, snapshot],
    )
    .await?;
    for (index, key) in staged.spec.partition_by.iter().enumerate() {
        let column = staged.shape.columns.iter().find(|c| c.name == *key).map_or(0, |c| c.id);
        tx.execute(
            "insert into ducklake_partition_column values ($1, $2, $3, $4, 'identity')",
            &values![partition_id, table_id, index, column],
        )
        .await?;
    }
    tag(tx, table_id, staged.spec.comment.as_deref(), snapshot).await?;
    tx.execute(
        "insert into ducklake_schema_versions(begin_snapshot, schema_version, table_id) values ($1, $2, $3)",
        &values![snapshot, head.schema_version, table_id],
    )
    .await?;
    tx.execute("insert into ducklake_table_stats values ($1, 0, 0, 0)", &values![table_id]).await?;
    changes.push(format!("created_table:\"main\".\"{name}\""));
    if create_latest_view(tx, staged, view_id, snapshot).await? {
        changes.push(format!("created_view:\"main\".\"{}\"", staged.spec.name.latest()));
    }
    Ok(table_id)
}

/// The newest partition for readers that come by DuckDB; our own engine asks the registry, which also knows empty partitions.
async fn create_latest_view(tx: &mut Tx, staged: &Staged, view_id: i64, snapshot: i64) -> Result<bool> {
    let name = staged.spec.name.as_str();
    let taken = tx
        .row(
            "select 1 from ducklake_view where view_name = $1 and end_snapshot is null
             union all select 1 from ducklake_table where table_name = $1 and end_snapshot is null",
            &values![staged.spec.name.latest()],
        )
        .await?;
    if taken.is_some() {
        return Ok(false);
    }
    let newest = format!("(ds = (SELECT max(ds) FROM main.\"{name}\"))");
    let filter = if staged.spec.partition_by.iter().any(|c| c == "hour") {
        format!("({newest} AND (\"hour\" = (SELECT max(\"hour\") FROM main.\"{name}\" WHERE {newest})))")
    } else {
        newest
    };
    tx.execute(
        "insert into ducklake_view(view_id, view_uuid, begin_snapshot, schema_id, view_name, dialect, sql, column_aliases)
         values ($1, $2, $3, 0, $4, 'duckdb', $5, '')",
        &values![view_id, Uuid::now_v7(), snapshot, staged.spec.name.latest(), format!("SELECT * FROM main.\"{name}\" WHERE {filter}")],
    )
    .await?;
    Ok(true)
}

async fn tag(tx: &mut Tx, table_id: i64, comment: Option<&str>, snapshot: i64) -> Result<()> {
    if let Some(comment) = comment {
        tx.execute(
            "insert into ducklake_tag(object_id, begin_snapshot, key, value) values ($1, $2, 'comment', $3)",
            &values![table_id, snapshot, comment],
        )
        .await?;
    }
    Ok(())
}

async fn add_column(tx: &mut Tx, table_id: i64, column: &Column, parent: Option<i64>, snapshot: i64) -> Result<()> {
    let nested = !column.children.is_empty();
    tx.execute(
        "insert into ducklake_column(column_id, begin_snapshot, table_id, column_order, column_name, column_type,
             default_value, nulls_allowed, parent_column, default_value_type, default_value_dialect)
         values ($1, $2, $3, $1, $4, $5, 'NULL', $6, $7, $8, 'duckdb')",
        &values![
            column.id,
            snapshot,
            table_id,
            &column.name,
            &column.ducklake_type,
            column.nullable,
            parent,
            if nested { "" } else { "literal" }
        ],
    )
    .await?;
    if let Some(comment) = &column.comment {
        tx.execute(
            "insert into ducklake_column_tag(table_id, column_id, begin_snapshot, key, value) values ($1, $2, $3, 'comment', $4)",
            &values![table_id, column.id, snapshot, comment],
        )
        .await?;
    }
    for child in &column.children {
        Box::pin(add_column(tx, table_id, child, Some(column.id), snapshot)).await?;
    }
    Ok(())
}

/// Brings a table to the staged shape. Errors: `Reshaped` when somebody else has changed it otherwise meanwhile.
async fn evolve(tx: &mut Tx, staged: &Staged, table: &Table, head: &mut Head, changes: &mut Vec<String>) -> Result<()> {
    let shape = &staged.shape;
    let same = |a: &[Column], b: &[Column]| {
        a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| {
                a.id == b.id && a.name == b.name && a.ducklake_type == b.ducklake_type && a.children == b.children
            })
    };
    let mut altered = false;
    if !same(&table.columns, &shape.columns) {
        let fits = staged
            .base
            .as_ref()
            .is_some_and(|base| same(&base.columns, &table.columns) && base.partition == table.partition);
        if !fits {
            return Err(Error::Reshaped { table: table.name.clone() });
        }
        for column in shape.columns.iter().filter(|c| shape.added.contains(&c.id)) {
            add_column(tx, table.id, column, None, head.snapshot).await?;
        }
        for column in shape.columns.iter().filter(|c| shape.widened.contains(&c.id)) {
            tx.execute(
                "insert into ducklake_column(column_id, begin_snapshot, table_id, column_order, column_name, column_type, initial_default,
                     default_value, nulls_allowed, parent_column, default_value_type, default_value_dialect)
                 select column_id, $1, table_id, column_order, column_name, $2, initial_default,
                     default_value, nulls_allowed, parent_column, default_value_type, default_value_dialect
                 from ducklake_column where table_id = $3 and column_id = $4 and end_snapshot is null",
                &values![head.snapshot, &column.ducklake_type, table.id, column.id],
            )
            .await?;
            tx.execute(
                "update ducklake_column set end_snapshot = $1 where table_id = $2 and column_id = $3 and end_snapshot is null and begin_snapshot < $1",
                &values![head.snapshot, table.id, column.id],
            )
            .await?;
        }
        altered = true;
    }
    if table.comment != staged.spec.comment && staged.spec.comment.is_some() {
        tx.execute(
            "update ducklake_tag set end_snapshot = $1 where object_id = $2 and key = 'comment' and end_snapshot is null",
            &values![head.snapshot, table.id],
        )
        .await?;
        tag(tx, table.id, staged.spec.comment.as_deref(), head.snapshot).await?;
        altered = true;
    }
    for (column, before) in shape.columns.iter().filter_map(|c| Some((c, table.columns.iter().find(|b| b.id == c.id)?)))
    {
        if column.comment.is_some() && column.comment != before.comment {
            tx.execute(
                "update ducklake_column_tag set end_snapshot = $1 where table_id = $2 and column_id = $3 and key = 'comment' and end_snapshot is null",
                &values![head.snapshot, table.id, column.id],
            )
            .await?;
            tx.execute(
                "insert into ducklake_column_tag(table_id, column_id, begin_snapshot, key, value) values ($1, $2, $3, 'comment', $4)",
                &values![table.id, column.id, head.snapshot, &column.comment],
            )
            .await?;
            altered = true;
        }
    }
    if altered {
        head.schema_version += 1;
        tx.execute(
            "insert into ducklake_schema_versions(begin_snapshot, schema_version, table_id) values ($1, $2, $3)",
            &values![head.snapshot, head.schema_version, table.id],
        )
        .await?;
        changes.push(format!("altered_table:{}", table.id));
    }
    Ok(())
}

/// A table with the columns that cut it.
pub(crate) struct Cut<'a> {
    pub table: &'a str,
    pub table_id: i64,
    pub partition_id: Option<i64>,
    pub columns: Vec<&'a Column>,
}

/// Ends the life of every file, delete file and inlined row of partitions and counts the rows that go.
///
/// Errors: `Spans` when a foreign file holds rows of such a partition and of others.
pub(crate) async fn retire(tx: &mut Tx, cut: &Cut<'_>, keys: &[PartitionKey], snapshot: i64) -> Result<i64> {
    let mut rows = 0;
    let mut bytes = 0;
    for keys in keys.chunks(KEYS_MAX) {
        let found = InTheWay::find(tx, cut, keys).await?;
        let mut gone = found.cut;
        for key in keys {
            gone.extend(only_of(tx, cut, key, &found.uncut).await?);
            for (inlined, schema_version) in &found.inlined {
                rows += retire_inlined(tx, cut, key, inlined, *schema_version, snapshot).await?;
            }
        }
        if gone.is_empty() {
            continue;
        }
        let mut bound = values![snapshot].to_vec();
        bound.extend(gone.iter().map(|file| Value::from(file.id)));
        let files = crate::places(2, &bound[1..]);
        tx.execute(&format!("update ducklake_data_file set end_snapshot = $1 where data_file_id in ({files})"), &bound)
            .await?;
        tx.execute(
            &format!(
                "update ducklake_delete_file set end_snapshot = $1 where data_file_id in ({files}) and end_snapshot is null"
            ),
            &bound,
        )
        .await?;
        rows += gone.iter().map(|file| file.rows).sum::<i64>();
        bytes += gone.iter().map(|file| file.bytes).sum::<i64>();
    }
    if rows > 0 || bytes > 0 {
        tx.execute(
            "update ducklake_table_stats set record_count = record_count - $1, file_size_bytes = file_size_bytes - $2 where table_id = $3",
            &values![rows, bytes, cut.table_id],
        )
        .await?;
    }
    Ok(rows)
}

/// Partitions that one statement looks for.
const KEYS_MAX: usize = 30;

/// A live file.
struct LiveFile {
    id: i64,
    rows: i64,
    bytes: i64,
    path: String,
}

/// What may hold rows of partitions that are replaced.
struct InTheWay {
    /// Files whose partition values are those of one of the keys.
    cut: Vec<LiveFile>,
    /// Files without this table's partition values.
    uncut: Vec<LiveFile>,
    /// Tables of rows that a foreign client has put into the catalog itself, with their schema version.
    inlined: Vec<(String, i64)>,
}

impl InTheWay {
    /// Finds them in one statement.
    async fn find(tx: &mut Tx, cut: &Cut<'_>, keys: &[PartitionKey]) -> Result<Self> {
        let files = |kind: i32, from: &str, other: &str| {
            format!(
                "select {kind}, f.data_file_id, coalesce(f.record_count, 0), coalesce(f.file_size_bytes, 0), f.path from {from}
                 where f.table_id = $1 and f.end_snapshot is null and {other}"
            )
        };
        // Three ranges of one index: an OR would read every file of the table.
        let mut branches: Vec<String> = ["f.partition_id is null", "f.partition_id < $2", "f.partition_id > $2"]
            .map(|other| files(1, "ducklake_data_file f", other))
            .to_vec();
        branches.push(
            "select 2, schema_version, 0, 0, table_name from ducklake_inlined_data_tables where table_id = $1"
                .to_owned(),
        );
        let mut bound = values![cut.table_id, cut.partition_id.unwrap_or(-1)].to_vec();
        for key in keys {
            let mut from = "ducklake_data_file f".to_owned();
            for (index, value) in key.values().into_iter().enumerate() {
                bound.push(value.into());
                from.push_str(&format!(
                    " join ducklake_file_partition_value v{index} on v{index}.data_file_id = f.data_file_id
                       and v{index}.table_id = $1 and v{index}.partition_key_index = {index} and v{index}.partition_value = ${}",
                    bound.len()
                ));
            }
            branches.push(files(3, &from, "f.partition_id = $2"));
        }
        let mut found = Self { cut: Vec::new(), uncut: Vec::new(), inlined: Vec::new() };
        for row in tx.rows(&branches.join(" union all "), &bound).await? {
            let (id, name) = (row.i64(1)?, row.text(4)?);
            if row.i64(0)? == 2 {
                found.inlined.push((name, id));
                continue;
            }
            let file = LiveFile { id, rows: row.i64(2)?, bytes: row.i64(3)?, path: name };
            if row.i64(0)? == 1 { found.uncut.push(file) } else { found.cut.push(file) }
        }
        Ok(found)
    }
}

/// Those files whose statistics say that they hold the partition and nothing else.
async fn only_of(tx: &mut Tx, cut: &Cut<'_>, key: &PartitionKey, uncut: &[LiveFile]) -> Result<Vec<LiveFile>> {
    let mut found = Vec::new();
    for file in uncut {
        let mut holds = true;
        let mut only = true;
        for (column, value) in cut.columns.iter().zip(key.values()) {
            let stats = tx
                .row(
                    "select min_value, max_value, null_count from ducklake_file_column_stats where data_file_id = $1 and column_id = $2",
                    &values![file.id, column.id],
                )
                .await?;
            let bound = |text: Option<String>| types::statistic(&text?, &column.data_type);
            let (low, high, nulls) = match &stats {
                Some(s) => (bound(s.opt_text(0)?), bound(s.opt_text(1)?), s.opt_i64(2)?.unwrap_or(1)),
                None => (None, None, 1),
            };
            if let (Some(low), Some(high), Some(wanted)) = (&low, &high, &bound(Some(value))) {
                holds &= low <= wanted && wanted <= high;
                only &= low == wanted && high == wanted && nulls == 0;
            } else {
                only = false;
            }
        }
        if holds && !only {
            return Err(Error::Spans { table: cut.table.to_owned(), path: file.path.clone(), partition: key.clone() });
        }
        if holds {
            found.push(LiveFile { id: file.id, rows: file.rows, bytes: file.bytes, path: file.path.clone() });
        }
    }
    Ok(found)
}

/// Ends rows that a foreign client has put into the catalog itself.
async fn retire_inlined(
    tx: &mut Tx,
    cut: &Cut<'_>,
    key: &PartitionKey,
    inlined: &str,
    schema_version: i64,
    snapshot: i64,
) -> Result<i64> {
    let mut sql = format!("update \"{inlined}\" set end_snapshot = $1 where end_snapshot is null");
    let mut bound = values![snapshot].to_vec();
    for (column, value) in cut.columns.iter().zip(key.values()) {
        // The column may have had another name when those rows came.
        let then = tx
            .row(
                "select column_name from ducklake_column c where table_id = $1 and column_id = $2 and begin_snapshot <= coalesce(
                     (select max(begin_snapshot) from ducklake_schema_versions where table_id = $1 and schema_version <= $3), 0)
                 order by begin_snapshot desc limit 1",
                &values![cut.table_id, column.id, schema_version],
            )
            .await?
            .map_or_else(|| Ok(column.name.clone()), |row| row.text(0))?;
        bound.push(value.into());
        sql.push_str(&format!(" and cast(\"{}\" as varchar) = ${}", then.replace('"', "\"\""), bound.len()));
    }
    Ok(i64::try_from(tx.execute(&sql, &bound).await?).unwrap_or(0))
}

/// Names the staged files in the catalog, with their statistics and partition values.
async fn add_files(
    tx: &mut Tx,
    files: &[(&StagedPartition, &StagedFile)],
    table_id: i64,
    partition_id: Option<i64>,
    next_row_id: Option<i64>,
    head: &mut Head,
) -> Result<()> {
    let rows: i64 = files.iter().map(|(_, f)| f.rows).sum();
    let bytes: i64 = files.iter().map(|(_, f)| f.bytes).sum();
    let mut row_id = match next_row_id {
        Some(next) => next,
        None => {
            tx.execute("insert into ducklake_table_stats values ($1, 0, 0, 0)", &values![table_id]).await?;
            0
        }
    };
    tx.execute(
        "update ducklake_table_stats set record_count = record_count + $1, next_row_id = $2, file_size_bytes = file_size_bytes + $3
         where table_id = $4",
        &values![rows, row_id + rows, bytes, table_id],
    )
    .await?;
    let mut named = Rows::new(
        "insert into ducklake_data_file(data_file_id, table_id, begin_snapshot, path, path_is_relative, file_format, record_count,
             file_size_bytes, footer_size, row_id_start, partition_id) values ",
    );
    let mut values = Rows::new("insert into ducklake_file_partition_value values ");
    let mut stats = Rows::new("insert into ducklake_file_column_stats values ");
    for (partition, file) in files {
        let id = head.next_file_id;
        head.next_file_id += 1;
        named
            .push(
                tx,
                values![
                    id,
                    table_id,
                    head.snapshot,
                    &file.path,
                    true,
                    "parquet",
                    file.rows,
                    file.bytes,
                    file.footer_bytes,
                    row_id,
                    partition_id
                ],
            )
            .await?;
        row_id += file.rows;
        for (index, value) in partition.key.values().into_iter().enumerate() {
            values.push(tx, values![id, table_id, index, value]).await?;
        }
        for s in &file.stats {
            let (min, max) =
                (s.min.as_ref().and_then(types::statistic_text), s.max.as_ref().and_then(types::statistic_text));
            stats
                .push(
                    tx,
                    values![
                        id,
                        table_id,
                        s.column_id,
                        s.size_bytes,
                        s.value_count,
                        s.null_count,
                        min,
                        max,
                        s.contains_nan,
                        Value::Null
                    ],
                )
                .await?;
        }
    }
    named.run(tx).await?;
    values.run(tx).await?;
    Ok(stats.run(tx).await?)
}

/// Values that one INSERT carries at most: the databases take 32,766 and 65,535.
const VALUES_MAX: usize = 5_000;

/// Many rows for few INSERTs.
pub(crate) struct Rows {
    insert: &'static str,
    end: &'static str,
    sql: String,
    values: Vec<Value>,
}

impl Rows {
    pub(crate) fn new(insert: &'static str) -> Self {
        Self::with_end(insert, "")
    }

    /// `end` stands behind the values, as `on conflict ...`.
    pub(crate) fn with_end(insert: &'static str, end: &'static str) -> Self {
        Self { insert, end, sql: String::new(), values: Vec::new() }
    }

    pub(crate) async fn push<const N: usize>(&mut self, tx: &mut Tx, row: [Value; N]) -> Result<(), StoreError> {
        if self.values.len() + N > VALUES_MAX {
            self.run(tx).await?;
        }
        self.sql.push_str(if self.values.is_empty() { self.insert } else { ", " });
        for (i, value) in row.into_iter().enumerate() {
            self.values.push(value);
            self.sql.push_str(if i == 0 { "($" } else { ", $" });
            self.sql.push_str(&self.values.len().to_string());
        }
        self.sql.push(')');
        Ok(())
    }

    pub(crate) async fn run(&mut self, tx: &mut Tx) -> Result<(), StoreError> {
        if self.values.is_empty() {
            return Ok(());
        }
        self.sql.push_str(self.end);
        tx.execute(&self.sql, &self.values).await?;
        self.sql.clear();
        self.values.clear();
        Ok(())
    }
}

/// Widens the table's statistics to cover the new files.
async fn widen_stats(
    tx: &mut Tx,
    staged: &Staged,
    files: &[(&StagedPartition, &StagedFile)],
    table_id: i64,
) -> Result<()> {
    let mut known: HashMap<i64, TableStats> = HashMap::new();
    let mut extra: HashMap<i64, String> = HashMap::new();
    for row in tx
        .rows(
            "select column_id, contains_null, contains_nan, min_value, max_value, extra_stats from ducklake_table_column_stats where table_id = $1",
            &values![table_id],
        )
        .await?
    {
        let stats = TableStats {
            contains_null: row.opt_bool(1)?,
            contains_nan: row.opt_bool(2)?,
            min: row.opt_text(3)?,
            max: row.opt_text(4)?,
        };
        known.insert(row.i64(0)?, stats);
        if let Some(text) = row.opt_text(5)? {
            extra.insert(row.i64(0)?, text);
        }
    }
    fn all<'a>(columns: &'a [Column], into: &mut HashMap<i64, &'a Column>) {
        for column in columns {
            into.insert(column.id, column);
            all(&column.children, into);
        }
    }
    let mut columns = HashMap::new();
    all(&staged.shape.columns, &mut columns);
    let mut after = known.clone();
    for (_, file) in files {
        for stats in &file.stats {
            let Some(column) = columns.get(&stats.column_id) else { continue };
            let wider = widen(after.get(&stats.column_id), stats, column);
            after.insert(stats.column_id, wider);
        }
    }
    after.retain(|id, stats| known.get(id) != Some(&*stats));
    let stale: Vec<Value> = after.keys().filter(|id| known.contains_key(id)).map(|id| Value::from(*id)).collect();
    if !stale.is_empty() {
        let sql = format!(
            "delete from ducklake_table_column_stats where table_id = $1 and column_id in ({})",
            crate::places(2, &stale)
        );
        let bound: Vec<Value> = [Value::from(table_id)].into_iter().chain(stale).collect();
        tx.execute(&sql, &bound).await?;
    }
    let mut rows = Rows::new(
        "insert into ducklake_table_column_stats(table_id, column_id, contains_null, contains_nan, min_value, max_value, extra_stats)
         values ",
    );
    for (id, stats) in after {
        let kept = extra.remove(&id);
        rows.push(tx, values![table_id, id, stats.contains_null, stats.contains_nan, &stats.min, &stats.max, kept])
            .await?;
    }
    Ok(rows.run(tx).await?)
}
