//! A lake to measure on.

use std::{ops::Range, path::Path, sync::Arc};

use arrow::array::RecordBatch;
use headworks_domain::{Ds, PartitionKey, SystemClock};
use headworks_lake::{Action, Lake, PublishInfo, Published, Rows, StageRequest, Storage, StorageOptions, TableSpec};
use headworks_store::{Store, StoreOptions};

/// Opens, or makes, a lake on local files with its catalog in SQLite.
pub(crate) async fn open(metadata: &Path, data: &Path) -> anyhow::Result<Lake> {
    let store = Store::open(&StoreOptions::new(format!("sqlite:{}", metadata.display()))).await?;
    let storage = Storage::open(&StorageOptions { path: data.display().to_string(), ..Default::default() })?;
    Ok(Lake::open(store, storage, Arc::new(SystemClock)).await?)
}

/// Stages and publishes one day of a table, as attempt `attempt`.
pub(crate) async fn publish(lake: &Lake, table: &str, ds: Ds, attempt: i64, rows: Rows) -> anyhow::Result<Published> {
    let spec = TableSpec {
        name: table.parse()?,
        kind: "events".to_owned(),
        columns: Vec::new(),
        partition_by: vec!["ds".to_owned()],
        comment: None,
        owner: None,
        job: None,
        retention_secs: None,
    };
    let info = PublishInfo {
        job: table.to_owned(),
        run_id: attempt.to_string(),
        attempt,
        job_version: "1".to_owned(),
        inputs: Vec::new(),
        as_of_now: false,
        action: Action::Publish,
    };
    let request = StageRequest { spec, keys: vec![PartitionKey::day(ds)], attempt };
    let staged = lake.stage(request, rows).await?;
    let there = lake.clone();
    Ok(lake.store().write(move |tx| Box::pin(async move { there.publish(tx, &staged, &info).await })).await?)
}

/// Rows that are there already.
pub(crate) fn one(batch: RecordBatch) -> Rows {
    headworks_lake::rows(batch.schema(), futures::stream::iter([Ok::<_, std::io::Error>(batch)]))
}

const BATCH_ROWS: i64 = 65_536;

/// Rows that are made as they are taken, by their numbers.
pub(crate) fn made(count: i64, make: fn(Range<i64>) -> anyhow::Result<RecordBatch>) -> anyhow::Result<Rows> {
    let schema = make(0..0)?.schema();
    let starts = (0..count).step_by(usize::try_from(BATCH_ROWS)?);
    let batches = starts.map(move |start| make(start..(start + BATCH_ROWS).min(count)).map_err(std::io::Error::other));
    Ok(headworks_lake::rows(schema, futures::stream::iter(batches)))
}
