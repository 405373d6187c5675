//! Five queries over the demo's lake, by us and by DuckDB on the same catalog and files.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use headworks_engine::{Engine, EngineOptions, QueryOptions};
use headworks_testkit::{Attach, DuckDb};

use crate::{
    lake,
    measure::{self, ms, percentile},
};

const LOOKS: usize = 5;

const QUERIES: [(&str, &str); 5] = [
    ("filter", "select count(*), sum(distance) from {t}flights where ds between date '2013-06-01' and date '2013-06-30' and origin = 'JFK'"),
    ("group", "select carrier, count(*) as n, avg(dep_delay) as late from {t}flights group by carrier order by carrier"),
    (
        "join",
        "select a.name, count(*) as n from {t}flights f join {t}airports a on a.faa = f.dest and a.ds = f.ds group by a.name order by n desc, a.name limit 20",
    ),
    (
        "window",
        "select carrier, max(rolling) as worst from (select carrier, sum(dep_delay) over (partition by carrier order by time_hour, flight, tailnum
         rows between 99 preceding and current row) as rolling from {t}flights) x group by carrier order by carrier",
    ),
    ("_latest", "select carrier, flights_total, late_total from {t}company_metrics_latest order by carrier"),
];

pub(crate) fn run(demo: &Path) -> anyhow::Result<()> {
    ensure!(demo.join("headworks.toml").exists(), "there is no demo at {}: run `year` first", demo.display());
    let metadata = demo.join(".headworks/metadata.db");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let engine = runtime.block_on(open(demo, &metadata))?;
    let mut duck = DuckDb::start()?;
    duck.attach(&Attach::sqlite(&metadata))?;
    println!("DuckDB {}; best of {LOOKS}, both with everything open", duck.version());
    for (name, sql) in QUERIES {
        let (ours_sql, duck_sql) = (sql.replace("{t}", ""), sql.replace("{t}", "lake."));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut our_rows, mut their_rows) = (0, 0);
        let cpu = measure::own_cpu();
        for _ in 0..LOOKS {
            let begun = Instant::now();
            our_rows =
                runtime.block_on(engine.rows(&ours_sql, QueryOptions::default()))?.iter().map(|b| b.num_rows()).sum();
            ours.push(begun.elapsed());
        }
        let cpu = (measure::own_cpu() - cpu) / u32::try_from(LOOKS)?;
        for _ in 0..LOOKS {
            let begun = Instant::now();
            their_rows = duck.query(&duck_sql)?.len();
            theirs.push(begun.elapsed());
        }
        ensure!(our_rows == their_rows, "{name}: we have {our_rows} rows, DuckDB {their_rows}");
        let (a, b) = (percentile(&mut ours, 0.0), percentile(&mut theirs, 0.0));
        println!(
            "{name:<8} ours {:>10} (CPU {:>10})  DuckDB {:>10}  ratio {:.2}",
            ms(a),
            ms(cpu),
            ms(b),
            a.as_secs_f64() / b.as_secs_f64().max(1e-9)
        );
    }
    runtime.block_on(engine.shut_down(Duration::from_secs(1)));
    Ok(())
}

async fn open(demo: &Path, metadata: &Path) -> anyhow::Result<Engine> {
    let lake = lake::open(metadata, &demo.join("lake")).await?;
    Ok(Engine::new(Arc::new(lake), EngineOptions::new(demo.join(".headworks/spill"), 2))?)
}
