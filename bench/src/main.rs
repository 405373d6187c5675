//! Workloads beside their references, for anyone to run: `make bench`, or `make bench ARGS="publish plan"`.
//!
//! Each prints ours and the reference of the same run, with CPU seconds and the machine's load. None is a test: a slow machine
//! fails nothing.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod clients;
mod commands;
mod duckdb;
mod lake;
mod large;
mod measure;
mod plan;
mod publish;
mod served;
mod serving;
mod tasks;
mod tools;
mod tpch;
mod year;

use clap::Parser;

/// The program's own, so that what runs in this process runs as it does there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Workloads of Headworks beside their references
#[derive(Debug, Parser)]
struct Args {
    /// Which to run; all of them unless named
    #[arg(value_enum)]
    workloads: Vec<Workload>,
    /// Keep the demo's folder and use it again
    #[arg(long, value_name = "DIR")]
    demo: Option<std::path::PathBuf>,
    #[command(flatten)]
    tpch: tpch::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    /// One publish of a small partition beside the disk's own fsyncs
    Publish,
    /// Planning on 10,000 partitions of 20,000 files
    Plan,
    /// `sql 'select 1'` from cold, `validate` of 1,000 job files
    Commands,
    /// Steps of a job, as commands and in the process
    Tasks,
    /// No-op tasks without end, by four workers over PostgreSQL
    Sustained,
    /// The whole demo year beside the disk's fsync floor for it
    Year,
    /// Five queries over the demo's tables beside DuckDB
    Duckdb,
    /// The 22 queries of TPC-H beside two DuckDBs; not among those that run unnamed
    Tpch,
    /// A row of 100 million by its key, and a ten-way join over them; not among those that run unnamed
    Large,
    /// A hundred queries at once, dashboards beside heavy joins; not among those that run unnamed
    Serving,
    /// Answers from the cache over HTTP; not among those that run unnamed
    Cached,
    /// Ten million rows to clients beside PostgreSQL; not among those that run unnamed
    Clients,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let all = [
        Workload::Publish,
        Workload::Plan,
        Workload::Commands,
        Workload::Tasks,
        Workload::Sustained,
        Workload::Year,
        Workload::Duckdb,
    ];
    let wanted = if args.workloads.is_empty() { all.to_vec() } else { args.workloads };
    let scratch = tempfile::tempdir_in(headworks_testkit::workspace_root().join("target"))?;
    let demo = args.demo.unwrap_or_else(|| scratch.path().join("demo"));
    println!("{}", measure::machine());
    for workload in wanted {
        println!("\n== {workload:?} (load {})", measure::load());
        match workload {
            Workload::Publish => publish::run(scratch.path())?,
            Workload::Plan => plan::run(scratch.path())?,
            Workload::Commands => commands::run(scratch.path())?,
            Workload::Tasks => tasks::run(scratch.path())?,
            Workload::Sustained => tasks::sustained::run(scratch.path())?,
            Workload::Year => year::run(&demo)?,
            Workload::Duckdb => duckdb::run(&demo)?,
            Workload::Tpch => tpch::run(&args.tpch)?,
            Workload::Clients => clients::run()?,
            Workload::Large => large::run()?,
            Workload::Serving => serving::run(scratch.path())?,
            Workload::Cached => serving::run_cached()?,
        }
    }
    Ok(())
}
