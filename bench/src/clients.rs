//! Ten million rows to clients: Flight SQL and the PostgreSQL protocol, beside PostgreSQL.

use std::{path::PathBuf, process::Command, sync::Arc};

use anyhow::ensure;
use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use headworks_testkit::{PostgresOptions, TempPostgres, python_path};
use serde_json::json;

use crate::{
    lake,
    served::{PASSWORD, Served, USER},
    tools, tpch,
};

const ROWS: i64 = 10_000_000;
const SCRIPT: &str = include_str!("clients.py");

pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let project = runtime.block_on(made())?;
    let served = Served::start(&project, &["engine.memory=4GiB"])?;
    let postgres = TempPostgres::start_with(PostgresOptions { fsync: true, ..PostgresOptions::default() })?;
    let asked = json!({
        "flight": format!("grpc://127.0.0.1:{}", served.http_port),
        "token": served.token,
        "ours": format!("host=127.0.0.1 port={} user={USER} password='{PASSWORD}' dbname=headworks", served.postgres_port),
        "theirs": postgres.create_database()?,
        "psql": postgres.program("psql"),
        "server": served.process(),
        "rows": ROWS,
    });
    let status = Command::new(python_path()?).args(["-u", "-c", SCRIPT, &asked.to_string()]).status()?;
    ensure!(status.success(), "the clients failed");
    Ok(())
}

/// A project with the table `wide`; made once and kept.
async fn made() -> anyhow::Result<PathBuf> {
    let folder = tools::kept("wide")?;
    let done = folder.join("done");
    if !done.exists() {
        println!("making {ROWS} rows in {}", folder.display());
        std::fs::write(folder.join("headworks.toml"), "[project]\nname = \"wide\"\n")?;
        let lake = tpch::open(&folder).await?;
        lake::publish(&lake, "wide", "2026-01-01".parse()?, 1, lake::made(ROWS, batch)?).await?;
        std::fs::write(done, "")?;
    }
    Ok(folder)
}

fn batch(ids: std::ops::Range<i64>) -> anyhow::Result<RecordBatch> {
    let word = |id: i64| ["alpha", "beta", "gamma", "delta", "epsilon"][(id % 5) as usize];
    let price = Decimal128Array::from_iter_values(ids.clone().map(|id| i128::from(id * 37 % 1_000_000)));
    let columns: [(&str, ArrayRef); 10] = [
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
        ("k1", Arc::new(Int32Array::from_iter_values(ids.clone().map(|id| (id * 7_919 % 100_000) as i32)))),
        ("k2", Arc::new(Int32Array::from_iter_values(ids.clone().map(|id| (id % 100) as i32)))),
        ("a", Arc::new(Float64Array::from_iter_values(ids.clone().map(|id| id as f64 / 7.0)))),
        ("b", Arc::new(Float64Array::from_iter_values(ids.clone().map(|id| (id % 1_000) as f64)))),
        ("price", Arc::new(price.with_precision_and_scale(12, 2)?)),
        ("happened", Arc::new(TimestampMicrosecondArray::from_iter_values(ids.clone().map(|id| id * 1_000_003)))),
        ("day", Arc::new(Date32Array::from_iter_values(ids.clone().map(|id| (id % 20_000) as i32)))),
        ("word", Arc::new(StringArray::from_iter_values(ids.clone().map(word)))),
        ("line", Arc::new(StringArray::from_iter_values(ids.map(|id| format!("line {id} of ten million"))))),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}
