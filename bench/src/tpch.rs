//! The 22 queries of TPC-H, by us and by DuckDB on the same files: those of a lake of ours.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use futures::{StreamExt, TryStreamExt};
use headworks_engine::{Engine, EngineOptions, QueryOptions};
use headworks_lake::{Lake, rows};
use headworks_testkit::DuckDb;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use serde_json::Value;

use crate::{
    lake,
    measure::{self, ms, percentile},
    tools,
};

/// Of three looks the best counts, for each.
const LOOKS: usize = 3;

pub(crate) const TABLES: [&str; 8] =
    ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];

const QUERIES: [&str; 22] = [
    include_str!("../tpch/q01.sql"),
    include_str!("../tpch/q02.sql"),
    include_str!("../tpch/q03.sql"),
    include_str!("../tpch/q04.sql"),
    include_str!("../tpch/q05.sql"),
    include_str!("../tpch/q06.sql"),
    include_str!("../tpch/q07.sql"),
    include_str!("../tpch/q08.sql"),
    include_str!("../tpch/q09.sql"),
    include_str!("../tpch/q10.sql"),
    include_str!("../tpch/q11.sql"),
    include_str!("../tpch/q12.sql"),
    include_str!("../tpch/q13.sql"),
    include_str!("../tpch/q14.sql"),
    include_str!("../tpch/q15.sql"),
    include_str!("../tpch/q16.sql"),
    include_str!("../tpch/q17.sql"),
    include_str!("../tpch/q18.sql"),
    include_str!("../tpch/q19.sql"),
    include_str!("../tpch/q20.sql"),
    include_str!("../tpch/q21.sql"),
    include_str!("../tpch/q22.sql"),
];

/// How it is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// TPC-H's scale factor: about so many GB as text
    #[arg(long, default_value_t = 1)]
    scale: u32,
    /// Memory of our engine, in MiB; DuckDB has the same limit when it is given
    #[arg(long)]
    memory_mib: Option<usize>,
    /// The queries to run, by number; all unless named
    #[arg(long, value_delimiter = ',')]
    only: Vec<usize>,
}

/// What one query took.
struct Run {
    rows: usize,
    wall: Duration,
    cpu: Duration,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let folder = runtime.block_on(made(options.scale))?;
    let lake = runtime.block_on(open(&folder))?;
    let mut engine_options = EngineOptions::new(folder.join("spill"), 2);
    engine_options.memory_bytes = options.memory_mib.unwrap_or(8 << 10) << 20;
    let engine = Engine::new(Arc::new(lake), engine_options)?;
    let mut ducks = [DuckDb::start()?, DuckDb::plain(&tools::program("python")?)?];
    for duck in &mut ducks {
        prepare(duck, &folder, options)?;
    }
    let [old, new] = &mut ducks;
    println!("scale {}, memory {:?} MiB; best of {LOOKS}", options.scale, options.memory_mib);
    println!(
        "{:<4} {:>9} {:>11} {:>11} {:>12} {:>11} {:>6} {:>12} {:>11} {:>6}",
        "",
        "rows",
        "ours",
        "CPU",
        old.version(),
        "CPU",
        "ratio",
        new.version(),
        "CPU",
        "ratio"
    );
    let mut totals = [Duration::ZERO; 6];
    for (number, sql) in (1..).zip(QUERIES) {
        if !options.only.is_empty() && !options.only.contains(&number) {
            continue;
        }
        let sql = sql.replace("{fraction}", &format!("{:.10}", 0.0001 / f64::from(options.scale)));
        let ours = match runtime.block_on(ask(&engine, &sql)) {
            Ok(ours) => ours,
            Err(error) => {
                println!("q{number:02}  fails: {error}");
                continue;
            }
        };
        let theirs = [measured(old, &sql)?, measured(new, &sql)?];
        compare(&runtime.block_on(answers(&engine, &sql))?, old, &sql).with_context(|| format!("query {number}"))?;
        let [a, b] = &theirs;
        for (total, part) in totals.iter_mut().zip([ours.wall, ours.cpu, a.wall, a.cpu, b.wall, b.cpu]) {
            *total += part;
        }
        println!("q{number:02}  {:>9} {}", ours.rows, line(&[ours.wall, ours.cpu, a.wall, a.cpu, b.wall, b.cpu]));
    }
    println!("all  {:>9} {}", "", line(&totals));
    runtime.block_on(engine.shut_down(Duration::from_secs(1)));
    Ok(())
}

fn line(times: &[Duration; 6]) -> String {
    let [wall, cpu, old, old_cpu, new, new_cpu] = times;
    let ratio = |theirs: &Duration| wall.as_secs_f64() / theirs.as_secs_f64().max(1e-9);
    format!(
        "{:>11} {:>11} {:>12} {:>11} {:>6.2} {:>12} {:>11} {:>6.2}",
        ms(*wall),
        ms(*cpu),
        ms(*old),
        ms(*old_cpu),
        ratio(old),
        ms(*new),
        ms(*new_cpu),
        ratio(new)
    )
}

/// A project with the tables of a scale factor; made once and kept.
pub(crate) async fn made(scale: u32) -> anyhow::Result<PathBuf> {
    let folder = tools::kept(&format!("tpch-{scale}"))?;
    let done = folder.join("done");
    if done.exists() {
        return Ok(folder);
    }
    let source = folder.join("source");
    println!("making TPC-H data of scale {scale} in {}", folder.display());
    tools::command(
        Command::new(tools::program("tpchgen-cli")?)
            .args(["parquet", "--scale-factor", &scale.to_string(), "--output-dir"])
            .arg(&source),
    )?;
    std::fs::write(folder.join("headworks.toml"), "[project]\nname = \"tpch\"\n")?;
    let lake = open(&folder).await?;
    for table in TABLES {
        let begun = Instant::now();
        let file = tokio::fs::File::open(source.join(format!("{table}.parquet"))).await?;
        let builder = ParquetRecordBatchStreamBuilder::new(file).await?.with_batch_size(8_192);
        let builder = builder.with_projection(ProjectionMask::all());
        let schema = Arc::clone(builder.schema());
        lake::publish(&lake, table, "2026-01-01".parse()?, 1, rows(schema, builder.build()?)).await?;
        println!("  {table}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    std::fs::remove_dir_all(source)?;
    std::fs::write(done, "")?;
    Ok(folder)
}

/// Opens, or makes, the lake of a project.
pub(crate) async fn open(folder: &Path) -> anyhow::Result<Lake> {
    std::fs::create_dir_all(folder.join(".headworks"))?;
    lake::open(&folder.join(".headworks/metadata.db"), &folder.join("lake")).await
}

/// Gives DuckDB a view on each table's files.
fn prepare(duck: &mut DuckDb, folder: &Path, options: &Options) -> anyhow::Result<()> {
    for table in TABLES {
        let files = folder.join(format!("lake/data/main/{table}/**/*.parquet"));
        duck.run(&format!(
            "create view {table} as from read_parquet('{}', hive_partitioning = false)",
            files.display()
        ))?;
    }
    if let Some(mib) = options.memory_mib {
        duck.run(&format!("set memory_limit = '{mib}MiB'; set temp_directory = '{}'", folder.join("duck").display()))?;
    }
    Ok(())
}

/// Runs a query some times and counts its rows as they come.
async fn ask(engine: &Engine, sql: &str) -> anyhow::Result<Run> {
    let (mut walls, mut cpus, mut count) = (Vec::new(), Vec::new(), 0);
    for _ in 0..LOOKS {
        let (begun, cpu) = (Instant::now(), measure::own_cpu());
        let mut batches = engine.query(sql, QueryOptions { is_cached: false, ..QueryOptions::default() }).await?;
        count = 0;
        while let Some(batch) = batches.next().await {
            count += batch?.num_rows();
        }
        walls.push(begun.elapsed());
        cpus.push(measure::own_cpu() - cpu);
    }
    Ok(Run { rows: count, wall: percentile(&mut walls, 0.0), cpu: percentile(&mut cpus, 0.0) })
}

fn measured(duck: &mut DuckDb, sql: &str) -> anyhow::Result<Run> {
    let (mut walls, mut cpus, mut count) = (Vec::new(), Vec::new(), 0);
    for _ in 0..LOOKS {
        let run = duck.measure(sql)?;
        count = run.rows;
        walls.push(run.wall);
        cpus.push(run.cpu);
    }
    Ok(Run { rows: count, wall: percentile(&mut walls, 0.0), cpu: percentile(&mut cpus, 0.0) })
}

async fn answers(engine: &Engine, sql: &str) -> anyhow::Result<Vec<RecordBatch>> {
    Ok(engine.query(sql, QueryOptions { is_cached: false, ..QueryOptions::default() }).await?.try_collect().await?)
}

/// Holds our rows against DuckDB's: numbers to two places, in any order where the query leaves it open.
fn compare(ours: &[RecordBatch], duck: &mut DuckDb, sql: &str) -> anyhow::Result<()> {
    let format = FormatOptions::default();
    let mut mine = Vec::new();
    for batch in ours {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &format)).collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            mine.push(columns.iter().map(|column| rounded(&column.value(row).to_string())).collect::<Vec<_>>());
        }
    }
    let cell = |value: &Value| match value {
        Value::String(text) => rounded(text),
        other => rounded(&other.to_string()),
    };
    let mut theirs: Vec<Vec<String>> = duck.query(sql)?.iter().map(|row| row.iter().map(cell).collect()).collect();
    mine.sort_unstable();
    theirs.sort_unstable();
    ensure!(mine.len() == theirs.len(), "we have {} rows, DuckDB {}", mine.len(), theirs.len());
    if let Some((a, b)) = mine.iter().zip(&theirs).find(|(a, b)| a != b) {
        anyhow::bail!("we say {a:?}, DuckDB {b:?}");
    }
    Ok(())
}

fn rounded(text: &str) -> String {
    text.parse::<f64>().map_or_else(|_| text.to_owned(), |number| format!("{number:.2}"))
}
