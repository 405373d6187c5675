//! A table of 100 million rows: a row looked up by its key, and a join with nine others.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use futures::StreamExt;
use headworks_engine::{Engine, EngineOptions, QueryOptions};

use crate::{
    lake,
    measure::{self, ms, percentile},
    tools, tpch,
};

const ROWS: i64 = 100_000_000;
const LOOKS: i64 = 200;
const DIMENSIONS: i64 = 9;
const MEMORY_BYTES: usize = 1 << 30;

pub(crate) fn run() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(large())
}

async fn large() -> anyhow::Result<()> {
    let folder = made().await?;
    let mut options = EngineOptions::new(folder.join("spill"), 2);
    options.memory_bytes = MEMORY_BYTES;
    let engine = Engine::new(Arc::new(tpch::open(&folder).await?), options)?;
    look_up(&engine).await?;
    join(&engine).await?;
    engine.shut_down(Duration::from_secs(1)).await;
    Ok(())
}

/// Keys all over the table, in no order; the first look, which opens files, is one of them.
async fn look_up(engine: &Engine) -> anyhow::Result<()> {
    let mut took = Vec::new();
    let cpu = measure::own_cpu();
    for look in 0..LOOKS {
        let key = (look * 7_919 * 6_007) % ROWS;
        let begun = Instant::now();
        let found = count(engine, &format!("select * from facts where id = {key}")).await?;
        took.push(begun.elapsed());
        anyhow::ensure!(found == 1, "{found} rows have the key {key}");
    }
    let cpu = (measure::own_cpu() - cpu) / u32::try_from(LOOKS)?;
    println!(
        "a row of 100 million by its key: p50 {}, p95 {}, first {}, CPU {} (goal p50 30 ms)",
        ms(percentile(&mut took.clone(), 0.5)),
        ms(percentile(&mut took.clone(), 0.95)),
        ms(took.first().copied().unwrap_or_default()),
        ms(cpu)
    );
    Ok(())
}

async fn join(engine: &Engine) -> anyhow::Result<()> {
    let (mut joins, mut names) = (String::new(), Vec::new());
    for n in 1..=DIMENSIONS {
        joins.push_str(&format!(" join d{n} on d{n}.id = f.k{n}"));
        names.push(format!("d{n}.weight"));
    }
    let sql =
        format!("select d1.name, count(*), sum(f.value * ({})) from facts f{joins} group by 1", names.join(" + "));
    let (begun, cpu) = (Instant::now(), measure::own_cpu());
    let groups = count(engine, &sql).await;
    let took = (begun.elapsed(), measure::own_cpu() - cpu);
    match groups {
        Ok(groups) => println!(
            "ten-way join over 100 million rows within {} MiB: {} s, {} CPU-s, {groups} groups",
            MEMORY_BYTES >> 20,
            took.0.as_secs(),
            took.1.as_secs()
        ),
        Err(error) => println!("ten-way join over 100 million rows fails: {error}"),
    }
    Ok(())
}

async fn count(engine: &Engine, sql: &str) -> anyhow::Result<usize> {
    let mut batches = engine.query(sql, QueryOptions { is_cached: false, ..QueryOptions::default() }).await?;
    let mut count = 0;
    while let Some(batch) = batches.next().await {
        count += batch?.num_rows();
    }
    Ok(count)
}

/// `facts`, sorted by `id`, with a key into each of `d1` to `d9`; the larger the number, the larger the table.
async fn made() -> anyhow::Result<PathBuf> {
    let folder = tools::kept("large")?;
    let done = folder.join("done");
    if done.exists() {
        return Ok(folder);
    }
    println!("making 100 million rows in {}", folder.display());
    fill(&folder).await?;
    std::fs::write(done, "")?;
    Ok(folder)
}

async fn fill(folder: &Path) -> anyhow::Result<()> {
    let lake = tpch::open(folder).await?;
    let day = "2026-01-01".parse()?;
    let begun = Instant::now();
    lake::publish(&lake, "facts", day, 1, lake::made(ROWS, facts)?).await?;
    println!("  facts: {:.1} s", begun.elapsed().as_secs_f64());
    for n in 1..=DIMENSIONS {
        lake::publish(&lake, &format!("d{n}"), day, 1, lake::made(dimension_rows(n), dimension)?).await?;
    }
    Ok(())
}

fn dimension_rows(n: i64) -> i64 {
    match n {
        1 => 100,
        2..=5 => 10_000,
        6..=8 => 100_000,
        _ => 1_000_000,
    }
}

/// Spreads numbers over a range without an order that anybody could use.
fn spread(value: i64, seed: i64) -> i64 {
    let mixed = (value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed)) >> 17;
    mixed.rem_euclid(1 << 40)
}

fn facts(ids: std::ops::Range<i64>) -> anyhow::Result<RecordBatch> {
    let mut columns: Vec<(String, ArrayRef)> =
        vec![("id".to_owned(), Arc::new(Int64Array::from_iter_values(ids.clone())))];
    for n in 1..=DIMENSIONS {
        let keys = ids.clone().map(|id| (spread(id, n) % dimension_rows(n)) as i32);
        columns.push((format!("k{n}"), Arc::new(Int32Array::from_iter_values(keys))));
    }
    let values = ids.map(|id| (spread(id, 99) % 10_000) as f64 / 100.0);
    columns.push(("value".to_owned(), Arc::new(Float64Array::from_iter_values(values))));
    Ok(RecordBatch::try_from_iter(columns)?)
}

fn dimension(ids: std::ops::Range<i64>) -> anyhow::Result<RecordBatch> {
    let names = StringArray::from_iter_values(ids.clone().map(|id| format!("name {id}")));
    let weights = Float64Array::from_iter_values(ids.clone().map(|id| (id % 7) as f64));
    let id = Int32Array::from_iter_values(ids.map(|id| id as i32));
    Ok(RecordBatch::try_from_iter([
        ("id", Arc::new(id) as ArrayRef),
        ("name", Arc::new(names) as ArrayRef),
        ("weight", Arc::new(weights) as ArrayRef),
    ])?)
}
