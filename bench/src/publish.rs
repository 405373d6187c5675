//! One publish of a small partition, SQLite with full fsync, beside the fsyncs themselves.

use std::{path::Path, sync::Arc, time::Instant};

use arrow::{
    array::{Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use headworks_domain::{Ds, PartitionKey, SystemClock};
use headworks_lake::{Action, Lake, PublishInfo, StageRequest, Storage, StorageOptions, TableSpec, rows};
use headworks_store::{Store, StoreOptions};

use crate::measure::{self, ms, percentile};

const PUBLISHES: i64 = 200;

pub(crate) fn run(scratch: &Path) -> anyhow::Result<()> {
    let folder = scratch.join("publish");
    let mut ours = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(publishes(&folder))?;
    let mut floor = Vec::new();
    let bare = scratch.join("bare");
    std::fs::create_dir_all(&bare)?;
    let mut log = std::fs::File::create(bare.join("log"))?;
    for n in 0..PUBLISHES {
        let begun = Instant::now();
        measure::publish(&bare, usize::try_from(n)?, 4096)?;
        std::io::Write::write_all(&mut log, &[7; 32 << 10])?;
        log.sync_data()?;
        floor.push(begun.elapsed());
    }
    let (p50, p95) = (percentile(&mut ours, 0.5), percentile(&mut ours, 0.95));
    let (f50, f95) = (percentile(&mut floor, 0.5), percentile(&mut floor, 0.95));
    println!("stage + publish of 100 rows, one after the other: p50 {}, p95 {}", ms(p50), ms(p95));
    println!("the same fsyncs alone (file, its folder, the table's folder, the log): p50 {}, p95 {}", ms(f50), ms(f95));
    println!("above the disk: p50 {} (goal: at most 15 ms)", ms(p50.saturating_sub(f50)));
    Ok(())
}

async fn publishes(folder: &Path) -> anyhow::Result<Vec<std::time::Duration>> {
    let store = Store::open(&StoreOptions::new(format!("sqlite:{}", folder.join("metadata.db").display()))).await?;
    let storage =
        Storage::open(&StorageOptions { path: folder.join("lake").display().to_string(), ..Default::default() })?;
    let lake = Lake::open(store, storage, Arc::new(SystemClock)).await?;
    let schema =
        Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("s", DataType::Utf8, true)]));
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(Int64Array::from_iter_values(0..100)),
            Arc::new(StringArray::from_iter_values((0..100).map(|i| format!("value {i}")))),
        ],
    )?;
    let first: Ds = "2013-01-01".parse()?;
    let mut times = Vec::new();
    for day in 0..PUBLISHES {
        let spec = TableSpec {
            name: "small".parse()?,
            kind: "events".to_owned(),
            columns: Vec::new(),
            partition_by: vec!["ds".to_owned()],
            comment: None,
            owner: None,
            job: None,
            retention_secs: None,
        };
        let info = PublishInfo {
            job: "small".to_owned(),
            run_id: day.to_string(),
            attempt: day,
            job_version: "1".to_owned(),
            inputs: Vec::new(),
            as_of_now: false,
            action: Action::Publish,
        };
        let begun = Instant::now();
        let request = StageRequest { spec, keys: vec![PartitionKey::day(first.plus_days(day))], attempt: day };
        let batches = futures::stream::iter([Ok::<_, std::io::Error>(batch.clone())]);
        let staged = lake.stage(request, rows(Arc::clone(&schema), batches)).await?;
        let there = lake.clone();
        lake.store().write(move |tx| Box::pin(async move { there.publish(tx, &staged, &info).await })).await?;
        times.push(begun.elapsed());
    }
    lake.store().close().await;
    Ok(times)
}
