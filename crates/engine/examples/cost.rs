//! Prints what small queries cost: `cargo run -p headworks-engine --example cost`.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::{sync::Arc, time::Instant};

use arrow::array::{Date32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::catalog::MemTable;
use headworks_engine::{Engine, EngineOptions, NoTables, QueryOptions};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let dir = std::env::temp_dir().join(format!("headworks-cost-{}", std::process::id()));
    let started = Instant::now();
    let engine = Engine::new(Arc::new(NoTables), EngineOptions::new(&dir, 2)).unwrap();
    println!("engine started in {:?}", started.elapsed());
    let n = 1_000;
    let batch = RecordBatch::try_from_iter([
        ("ds", Arc::new(Date32Array::from_iter_values((0..n).map(|_| 15_706))) as arrow::array::ArrayRef),
        ("carrier", Arc::new(StringArray::from_iter_values((0..n).map(|i| format!("C{}", i % 16)))) as _),
        ("origin", Arc::new(StringArray::from_iter_values((0..n).map(|i| format!("O{}", i % 3)))) as _),
        ("delay", Arc::new(Float64Array::from_iter_values((0..n).map(f64::from))) as _),
        ("n", Arc::new(Int64Array::from_iter_values((0..n).map(i64::from))) as _),
    ])
    .unwrap();
    let table = Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap());
    let options = QueryOptions::default()
        .with_table("flights", table.clone())
        .with_table("airlines", table.clone())
        .with_table("planes", table.clone())
        .with_table("weather", table);
    let queries = [
        ("select 1", "select 1"),
        ("count", "select count(*) from flights where ds = '2013-01-01'"),
        (
            "group",
            "select carrier, count(*) as flights, avg(delay) as delay, sum(n) filter (where delay > 10) as late from flights where ds = '2013-01-01' group by carrier",
        ),
        (
            "checks",
            "select count(*), count(*) filter (where carrier is null), count(carrier) - count(distinct carrier), count(*) filter (where origin not in ('O1', 'O2', 'O3')) from flights",
        ),
        (
            "flat",
            "select f.ds, f.carrier, a.origin as airline, p.origin as model, w.delay as wind, f.delay, f.n from flights f left join airlines a on a.n = f.n left join planes p on p.n = f.n left join weather w on w.n = f.n and w.origin = f.origin where f.ds = '2013-01-01'",
        ),
        (
            "cumulative",
            "with today as (select carrier, count(*) as n from flights where ds = '2013-01-01' group by 1), before as (select carrier, n from airlines where ds = '2013-01-01') select coalesce(t.carrier, b.carrier) as carrier, coalesce(t.n, 0) + coalesce(b.n, 0) as n from today t full join before b on t.carrier = b.carrier",
        ),
        (
            "window",
            "select carrier, origin, avg(delay) as d, rank() over (partition by origin order by avg(delay) desc) as r from flights where ds between '2012-12-26' and '2013-01-01' group by 1, 2",
        ),
    ];
    for (name, sql) in queries {
        let first = Instant::now();
        engine.rows(sql, options.clone()).await.unwrap();
        let first = first.elapsed();
        let rounds = 200;
        let (cpu, started) = (cpu_micros(), Instant::now());
        for _ in 0..rounds {
            engine.rows(sql, options.clone()).await.unwrap();
        }
        let (cpu, wall) = (cpu_micros() - cpu, started.elapsed());
        println!(
            "{name:12} first {first:>10.1?}  then {:>9.1?} wall, {:>6} µs cpu",
            wall / rounds,
            cpu / u64::from(rounds)
        );
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// CPU time of this process so far, from the kernel's clock ticks of 10 ms.
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10_000
}
