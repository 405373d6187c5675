//! The partition registry: which partitions are published, since which version, by whom.
//!
//! It stands beside the catalog and changes in the same transaction. It knows a published partition of zero rows, answers waits
//! and `_latest`, and feeds the pages. Foreign commits do not know it: `catch_up` adds what they did.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use headworks_domain::PartitionKey;
use headworks_store::{Row, Tx, Value, values};

use crate::{PublishInfo, Result, Staged, TableSpec, foreign, publish::Rows, table::From};

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

/// Adds what foreign commits did to partitioned tables since the last look.
pub(crate) async fn catch_up(tx: &mut Tx, now: DateTime<Utc>) -> Result<()> {
    let (seen, newest) = foreign::behind(&mut From::Tx(tx)).await?;
    if seen >= newest {
        return Ok(());
    }
    for change in foreign::changes(&mut From::Tx(tx), seen, newest).await? {
        tx.execute(
            "insert into hw_table(table_id, name, kind) values ($1, $2, 'foreign') on conflict (table_id) do nothing",
            &values![change.table_id, &change.table],
        )
        .await?;
        let entry = Entry {
            table_id: change.table_id,
            partition: &change.key,
            version: change.version,
            rows: change.rows,
            bytes: change.bytes,
            files: change.files,
            now,
        };
        record(tx, &[entry], Action::Foreign, None).await?;
    }
    tx.execute("update hw_lake set value = $1 where key = 'seen'", &values![newest.to_string()]).await?;
    Ok(())
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
