//! Bringing an older version of a partition back, as a publish of its own.

use datafusion::{
    execution::config::SessionConfig,
    prelude::{SessionContext, col, lit},
};
use headworks_domain::PartitionKey;

use crate::{Action, At, Error, Lake, PublishInfo, Result, StageRequest, TableSpec, write::key_value};

impl Lake {
    /// Publishes a partition once more as it was at `version`, and answers the new version. Copies its rows: a path belongs to
    /// one catalog row for ever.
    ///
    /// Errors: `NoVersion`, `NoPartition` when it was not there then, `Schema` when it no longer fits the table, `Conflict`.
    pub async fn restore(&self, name: &str, key: &PartitionKey, version: i64) -> Result<i64> {
        let then = self.provider(name, At::Version(version)).await?;
        let missing = || Error::NoPartition { table: name.to_owned(), partition: key.clone() };
        let was = self.history(then.table().id, Some(key), usize::from(u16::MAX)).await?;
        let was = was.into_iter().find(|v| v.info.version <= version).ok_or_else(missing)?;
        if was.action == Action::Drop.as_str() {
            return Err(missing());
        }
        let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        self.storage().register(&session.runtime_env());
        let mut rows = session.read_table(then.clone())?;
        for column in then.table().partition_columns() {
            rows = rows.filter(col(format!("\"{column}\"")).eq(lit(key_value(key, column))))?;
        }
        let rows = rows.execute_stream().await?;
        let now = self.expect_table(name, At::Now).await?;
        let note = self.notes().await?.into_iter().find(|n| n.table_id == now.id);
        let spec = TableSpec {
            name: now.name.parse().map_err(|e| Error::Unsupported { what: format!("{e}") })?,
            kind: note.as_ref().map_or_else(|| "foreign".to_owned(), |n| n.kind.clone()),
            columns: Vec::new(),
            partition_by: now.partition_columns().into_iter().map(str::to_owned).collect(),
            comment: now.comment.clone(),
            owner: note.as_ref().and_then(|n| n.owner.clone()),
            job: note.as_ref().and_then(|n| n.job.clone()),
            retention_secs: note.and_then(|n| n.retention_secs),
        };
        // Fence 0 belongs to no attempt; the files are published at once.
        let staged = self.stage(StageRequest { spec, keys: vec![key.clone()], attempt: 0 }, rows).await?;
        let info = PublishInfo {
            job: was.job.unwrap_or_default(),
            run_id: was.run_id.unwrap_or_default(),
            attempt: was.attempt.unwrap_or_default(),
            job_version: was.job_version.unwrap_or_default(),
            inputs: Vec::new(),
            as_of_now: was.as_of_now,
            action: Action::Restore,
        };
        let lake = self.clone();
        let published =
            self.store().write(move |tx| Box::pin(async move { lake.publish(tx, &staged, &info).await })).await?;
        Ok(published.version)
    }
}
