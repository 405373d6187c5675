//! What retention and orphans allow to go, and why.
//!
//! First a plan, which changes nothing and says what would go; then the same plan carried out. A data file's bytes go in two
//! steps: the catalog forgets the file and notes it for deletion, and a day later, when no reader can be at it any more, it is
//! removed.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use headworks_domain::{Ds, PartitionKey};
use headworks_store::{Tx, Value, values};
use object_store::{ObjectStoreExt, path::Path};
use serde::Serialize;

use crate::{
    At, Error, Lake, Result, places,
    publish::{Cut, Head, against_foreign_writers, retire},
    registry::{self, Action},
    table::{self, From},
};

/// What may go.
#[derive(Debug, Clone)]
pub struct Keep {
    /// Versions older than that go; the newest always stays.
    pub versions: TimeDelta,
    /// Files that no catalog row names go after that.
    pub orphans: TimeDelta,
    /// Files that the catalog has forgotten go after that: readers of older versions may still be at them.
    pub forgotten: TimeDelta,
    /// Fences of attempts that still run: their staged files stay, whatever their age.
    pub live_attempts: HashSet<i64>,
    /// The largest fence that was ever given out. A file of a larger one was staged by runs that the catalog has forgotten.
    pub newest_attempt: i64,
}

/// Something that can go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// `partition`, `version`, `file` or `orphan`.
    pub what: &'static str,
    /// Which one: `deliveries ds=2018-02-20`, a path below the data path, a count of versions.
    pub name: String,
    /// Why it may go.
    pub why: String,
    /// The bytes that it frees, now or after the grace time.
    pub bytes: u64,
}

/// The most versions, partitions of a table, or paths that one commit of the clean-up is about: publishes wait for its lock, and on
/// SQLite everybody does.
const STEP: usize = 200;

/// Files that are younger say nothing about the catalog's age: a run may have begun since it was looked at.
const YOUNG: TimeDelta = TimeDelta::hours(1);

impl Lake {
    /// Says what would go. Changes nothing. Cost: one listing of all files.
    pub async fn removals(&self, keep: &Keep) -> Result<Vec<Removal>> {
        self.refuse_when_behind().await?;
        let orphans = self.orphans(keep).await?;
        let mut removals = Vec::new();
        for (table, key, why, bytes) in self.outdated_partitions().await? {
            removals.push(Removal { what: "partition", name: format!("{table} {key}"), why, bytes });
        }
        let horizon = self.horizon(keep).await?;
        let row = self
            .store()
            .row("select count(*) from ducklake_snapshot where snapshot_id < $1", &values![horizon])
            .await?;
        let versions = row.map_or(Ok(0), |row| row.i64(0))?;
        if versions > 0 {
            let row = self
                .store()
                .row(
                    "select cast(coalesce(sum(file_size_bytes), 0) as bigint) from ducklake_data_file where end_snapshot <= $1",
                    &values![horizon],
                )
                .await?;
            removals.push(Removal {
                what: "version",
                name: format!("{versions} versions before {horizon}"),
                why: format!("older than {}", days(keep.versions)),
                bytes: u64::try_from(row.map_or(Ok(0), |row| row.i64(0))?).unwrap_or(0),
            });
        }
        for (path, bytes) in self.due_files(keep).await? {
            let why = format!("replaced, and forgotten more than {} ago", days(keep.forgotten));
            removals.push(Removal { what: "file", name: path, why, bytes });
        }
        for (path, bytes) in orphans {
            let why = format!("no version names it, no running attempt owns it, older than {}", days(keep.orphans));
            removals.push(Removal { what: "orphan", name: path.to_string(), why, bytes });
        }
        Ok(removals)
    }

    /// Removes what `removals` names and answers what went.
    pub async fn remove(&self, keep: &Keep) -> Result<Vec<Removal>> {
        let removals = self.removals(keep).await?;
        let mut by_table: std::collections::BTreeMap<String, Vec<PartitionKey>> = std::collections::BTreeMap::new();
        for (table, key, _, _) in self.outdated_partitions().await? {
            by_table.entry(table).or_default().push(key);
        }
        for (table, keys) in by_table {
            for some in keys.chunks(STEP) {
                self.drop_partitions(&table, some.to_vec()).await?;
            }
        }
        self.expire(self.horizon(keep).await?).await?;
        let due = self.due_files(keep).await?;
        for (path, _) in &due {
            self.delete_file(&Path::parse(path).map_err(|e| Error::Corrupt { what: e.to_string() })?).await?;
        }
        for some in due.chunks(STEP) {
            let gone: Vec<Value> = some.iter().map(|(path, _)| Value::from(path)).collect();
            let sql = format!("delete from ducklake_files_scheduled_for_deletion where path in ({})", places(1, &gone));
            self.store()
                .write(move |tx| Box::pin(async move { Ok::<_, Error>(tx.execute(&sql, &gone).await.map(drop)?) }))
                .await?;
        }
        for (path, _) in self.orphans(keep).await? {
            self.delete_file(&path).await?;
        }
        self.remove_empty_folders().await?;
        self.write_marker().await?;
        Ok(removals)
    }

    /// Drops partitions of a table in one version. Their bytes go when that version's predecessors do.
    pub async fn drop_partitions(&self, name: &str, keys: Vec<PartitionKey>) -> Result<i64> {
        let table = self.expect_table(name, At::Now).await?;
        let now = self.now();
        self.store()
            .write(move |tx| {
                Box::pin(async move { against_foreign_writers!(tx, drop_once(tx, &table.name, &keys, now)) })
            })
            .await
    }

    /// Partitions past their table's retention, by their `ds`: table, key, why, bytes.
    async fn outdated_partitions(&self) -> Result<Vec<(String, PartitionKey, String, u64)>> {
        let today = Ds::from(self.now().date_naive());
        let mut outdated = Vec::new();
        for note in self.notes().await? {
            let Some(secs) = note.retention_secs else { continue };
            let oldest = today.plus_days(-(secs / 86_400));
            for partition in self.partitions(note.table_id).await? {
                if partition.key.ds < oldest {
                    let why = format!("older than the table's retention of {} days", secs / 86_400);
                    outdated.push((note.name.clone(), partition.key, why, u64::try_from(partition.bytes).unwrap_or(0)));
                }
            }
        }
        Ok(outdated)
    }

    /// The oldest version that stays.
    async fn horizon(&self, keep: &Keep) -> Result<i64> {
        let before = self.now() - keep.versions;
        let row = self
            .store()
            .row(
                "select coalesce((select max(snapshot_id) from ducklake_snapshot where snapshot_time <= $1),
                     (select min(snapshot_id) from ducklake_snapshot))",
                &values![before],
            )
            .await?;
        Ok(row.map_or(Ok(0), |row| row.i64(0))?)
    }

    /// Forgets versions before `horizon` and what only they could see, the oldest first: after each commit a version is there with
    /// all its files, or not at all.
    async fn expire(&self, horizon: i64) -> Result<()> {
        loop {
            let oldest_to_stay = "select max(snapshot_id) from (select snapshot_id from ducklake_snapshot
                where snapshot_id <= $1 order by snapshot_id limit $2) as oldest";
            let row = self.store().row(oldest_to_stay, &values![horizon, STEP + 1]).await?;
            let step = row.map(|row| row.opt_i64(0)).transpose()?.flatten().unwrap_or(horizon);
            let now = self.now();
            self.store()
                .write(move |tx| {
                    Box::pin(async move {
                        crate::publish::lock(tx).await?;
                        expire(tx, step, now).await
                    })
                })
                .await?;
            if step >= horizon {
                return Ok(());
            }
        }
    }

    /// Files that the catalog has forgotten long enough ago, with their sizes as far as they are known.
    async fn due_files(&self, keep: &Keep) -> Result<Vec<(String, u64)>> {
        let rows = self
            .store()
            .rows(
                "select path, path_is_relative from ducklake_files_scheduled_for_deletion where schedule_start <= $1",
                &values![self.now() - keep.forgotten],
            )
            .await?;
        let mut due = Vec::new();
        for row in rows {
            if row.opt_bool(1)?.unwrap_or(true) {
                let path = row.text(0)?;
                let location = Path::parse(&path).map_err(|e| Error::Corrupt { what: e.to_string() })?;
                let bytes = self.storage().files().head(&location).await.map_or(0, |meta| meta.size);
                due.push((path, bytes));
            }
        }
        Ok(due)
    }

    /// Files below the data path that no catalog row names, old enough, and of no running attempt. Errors: `Behind` when one is of
    /// an attempt that the database has never heard of.
    async fn orphans(&self, keep: &Keep) -> Result<Vec<(Path, u64)>> {
        // Listed first: a file that is published between the two looks is then known.
        let before = self.now() - keep.orphans;
        let files = self.storage().files();
        let listed: Vec<_> = files.list(None).try_collect().await.map_err(|source| Error::Storage {
            doing: "list",
            path: String::new(),
            source,
        })?;
        let rows = self
            .store()
            .rows(
                "select s.path, t.path, f.path from ducklake_data_file f
                     join ducklake_table t on t.table_id = f.table_id join ducklake_schema s on s.schema_id = t.schema_id where f.path_is_relative
                 union all select s.path, t.path, d.path from ducklake_delete_file d
                     join ducklake_table t on t.table_id = d.table_id join ducklake_schema s on s.schema_id = t.schema_id where d.path_is_relative
                 union all select '', '', path from ducklake_files_scheduled_for_deletion where path_is_relative",
                &[],
            )
            .await?;
        let mut known = HashSet::with_capacity(rows.len());
        for row in rows {
            known.insert(format!("{}{}{}", row.text(0)?, row.text(1)?, row.text(2)?));
        }
        let absolute = self
            .store()
            .rows("select path from ducklake_data_file where not path_is_relative union all select path from ducklake_delete_file where not path_is_relative", &[])
            .await?;
        for row in absolute {
            if let Some(inside) = row.text(0)?.strip_prefix(self.storage().data_path()) {
                known.insert(inside.to_owned());
            }
        }
        let unknown: Vec<_> = listed.into_iter().filter(|file| !known.contains(file.location.as_ref())).collect();
        let old = self.now() - YOUNG;
        let newest = unknown.iter().filter(|f| f.last_modified <= old).filter_map(|f| attempt_of(&f.location)).max();
        if let Some(attempt) = newest.filter(|attempt| *attempt > keep.newest_attempt) {
            let known = keep.newest_attempt;
            let why = format!("there are files of attempt {attempt}, and it knows attempts up to {known}");
            return Err(Error::Behind { why });
        }
        Ok(unknown
            .into_iter()
            .filter(|file| file.last_modified <= before)
            .filter(|file| match attempt_of(&file.location) {
                // What a command stages without a run has nobody to ask: while it is young it stays.
                Some(0) => file.last_modified <= old,
                // One that was claimed after the look at what lives is at work.
                Some(fence) => fence <= keep.newest_attempt && !keep.live_attempts.contains(&fence),
                None => true,
            })
            .map(|file| (file.location, file.size))
            .collect())
    }

    pub(crate) async fn delete_file(&self, path: &Path) -> Result<()> {
        match self.storage().files().delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(Error::Storage { doing: "remove", path: path.to_string(), source }),
        }
    }

    /// Local lakes only: a partition's folder goes with its last file.
    async fn remove_empty_folders(&self) -> Result<()> {
        let root = self.storage().local().filter(|_| !self.storage().is_read_only());
        let Some(root) = root.map(std::path::Path::to_path_buf) else { return Ok(()) };
        fn sweep(folder: &std::path::Path, is_root: bool) -> std::io::Result<()> {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    sweep(&entry.path(), false)?;
                }
            }
            if !is_root {
                // Fails on a folder that is not empty, which is what we want.
                let _ = std::fs::remove_dir(folder);
            }
            Ok(())
        }
        let shown = root.display().to_string();
        tokio::task::spawn_blocking(move || sweep(&root, true))
            .await
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(|source| Error::Io { doing: "sweep", path: shown, source })
    }
}

async fn drop_once(tx: &mut Tx, name: &str, keys: &[PartitionKey], now: DateTime<Utc>) -> Result<i64> {
    let mut head = Head::caught_up(tx, now).await?;
    let Some(table) = table::load(&mut From::Tx(tx), name, head.snapshot).await? else {
        return Err(Error::NoTable { name: name.to_owned(), near: None });
    };
    head.snapshot += 1;
    let cut = Cut {
        table: name,
        table_id: table.id,
        partition_id: table.partition.as_ref().map(|p| p.id),
        columns: table.partition_columns().into_iter().filter_map(|c| table.column(c)).collect(),
    };
    retire(tx, &cut, keys, head.snapshot).await?;
    let changes = [format!("deleted_from_table:{}", table.id)];
    head.write(tx, now, &changes, Some(&format!("retention of {name}")), None).await?;
    let entries: Vec<registry::Entry<'_>> = keys
        .iter()
        .map(|partition| registry::Entry {
            table_id: table.id,
            partition,
            version: head.snapshot,
            rows: 0,
            bytes: 0,
            files: 0,
            now,
        })
        .collect();
    registry::record(tx, &entries, Action::Drop, None).await?;
    Ok(head.snapshot)
}

/// Forgets versions before `horizon` and everything that only they could see.
async fn expire(tx: &mut Tx, horizon: i64, now: DateTime<Utc>) -> Result<()> {
    for (from, id) in [("ducklake_data_file", "data_file_id"), ("ducklake_delete_file", "delete_file_id")] {
        tx.execute(
            &format!(
                "insert into ducklake_files_scheduled_for_deletion(data_file_id, path, path_is_relative, schedule_start)
                 select f.{id}, case when f.path_is_relative then s.path || t.path || f.path else f.path end, f.path_is_relative, $2
                 from {from} f join ducklake_table t on t.table_id = f.table_id join ducklake_schema s on s.schema_id = t.schema_id
                 where f.end_snapshot <= $1"
            ),
            &values![horizon, now],
        )
        .await?;
    }
    for of_file in ["ducklake_file_column_stats", "ducklake_file_partition_value", "ducklake_file_variant_stats"] {
        tx.execute(
            &format!("delete from {of_file} where data_file_id in (select data_file_id from ducklake_data_file where end_snapshot <= $1)"),
            &values![horizon],
        )
        .await?;
    }
    for row in tx.rows("select table_name from ducklake_inlined_data_tables", &[]).await? {
        tx.execute(&format!("delete from \"{}\" where end_snapshot <= $1", row.text(0)?), &values![horizon]).await?;
    }
    for ended in [
        "ducklake_data_file",
        "ducklake_delete_file",
        "ducklake_column",
        "ducklake_tag",
        "ducklake_column_tag",
        "ducklake_view",
        "ducklake_partition_info",
    ] {
        tx.execute(&format!("delete from {ended} where end_snapshot <= $1"), &values![horizon]).await?;
    }
    for of_snapshot in ["ducklake_snapshot_changes", "ducklake_snapshot"] {
        tx.execute(&format!("delete from {of_snapshot} where snapshot_id < $1"), &values![horizon]).await?;
    }
    // The registry's history ends with the versions; what is current stays.
    tx.execute(
        "delete from hw_publish where version < $1 and not exists (
             select 1 from hw_partition p where p.table_id = hw_publish.table_id and p.partition = hw_publish.partition
               and p.version = hw_publish.version)",
        &values![horizon],
    )
    .await?;
    Ok(())
}

/// The fence in a staged file's name, `.../<uuid>-f42.parquet`.
fn attempt_of(path: &Path) -> Option<i64> {
    path.filename()?.strip_suffix(".parquet")?.rsplit_once("-f")?.1.parse().ok()
}

fn days(delta: TimeDelta) -> String {
    match (delta.num_days(), delta.num_hours(), delta.num_seconds()) {
        (days, _, _) if days > 0 => format!("{days} days"),
        (_, hours, _) if hours > 0 => format!("{hours} hours"),
        (_, _, secs) => format!("{secs} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_tells_its_attempt() {
        let path = Path::from("main/t/ds=2013-01-01/01a20081-e244-76b3-82b9-c2a8f8f2abe8-f42.parquet");
        assert_eq!(attempt_of(&path), Some(42));
        assert_eq!(attempt_of(&Path::from("main/t/ducklake-01a20081-e244-76b3-82b9-c2a8f8f2abe8.parquet")), None);
    }
}
