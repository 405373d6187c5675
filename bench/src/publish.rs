//! One publish of a small partition, SQLite with full fsync, beside the fsyncs themselves.

use std::{path::Path, sync::Arc, time::Instant};

use arrow::{
    array::{Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use headworks_domain::Ds;

use crate::{
    lake,
    measure::{self, ms, percentile},
};

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
    let lake = lake::open(&folder.join("metadata.db"), &folder.join("lake")).await?;
    let schema =
        Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("s", DataType::Utf8, true)]));
    let batch = RecordBatch::try_new(
        schema,
        vec![
            Arc::new(Int64Array::from_iter_values(0..100)),
            Arc::new(StringArray::from_iter_values((0..100).map(|i| format!("value {i}")))),
        ],
    )?;
    let first: Ds = "2013-01-01".parse()?;
    let mut times = Vec::new();
    for day in 0..PUBLISHES {
        let begun = Instant::now();
        lake::publish(&lake, "small", first.plus_days(day), day, lake::one(batch.clone())).await?;
        times.push(begun.elapsed());
    }
    lake.store().close().await;
    Ok(times)
}
