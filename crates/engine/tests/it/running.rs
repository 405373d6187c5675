use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use headworks_domain::{ErrorKind, Fault};
use headworks_engine::{Error, QueryOptions, QueueOptions};

use crate::support::{bench, bench_with, ints, lake, table};

/// Rows that would keep two cores busy for hours.
const ENDLESS: &str =
    "select count(*) from generate_series(1, 10000000) a, generate_series(1, 10000000) b where a.value <> b.value";

fn within(seconds: u64) -> QueryOptions {
    QueryOptions { timeout: Some(Duration::from_secs(seconds)), ..QueryOptions::default() }
}

#[tokio::test]
async fn time_limits_hold() {
    let bench = bench();
    let error = bench.engine.rows(ENDLESS, within(1)).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { seconds: 1 }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    gives_all_back(&bench.engine).await;
}

#[tokio::test]
async fn dropped_streams_stop_their_query() {
    let bench = bench_with(lake(), |o| o.queues = vec![QueueOptions { slots: 1, ..QueueOptions::new("default") }]);
    let mut stream = bench
        .engine
        .query("select * from generate_series(1, 100000000000) order by value % 7, value", QueryOptions::default())
        .await
        .unwrap();
    // Polled once, so that it runs.
    let first = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
    assert!(first.is_err());
    drop(stream);
    // The one slot is free again only when the first query has gone.
    assert_eq!(bench.value("select 1").await, "1");
    gives_all_back(&bench.engine).await;
}

#[tokio::test]
async fn joins_can_be_stopped() {
    let bench = bench_with(lake(), |o| o.queues = vec![QueueOptions { slots: 1, ..QueueOptions::new("default") }]);
    let stream = bench.engine.query(ENDLESS, QueryOptions::default()).await.unwrap();
    tokio::time::timeout(Duration::from_millis(200), stream.try_collect::<Vec<_>>()).await.unwrap_err();
    let next = tokio::time::timeout(Duration::from_secs(5), bench.value("select 1")).await;
    assert_eq!(next.unwrap(), "1");
    gives_all_back(&bench.engine).await;
}

#[tokio::test]
async fn shutting_down_ends_queries() {
    let bench = bench();
    let stream = bench.engine.query(ENDLESS, QueryOptions::default()).await.unwrap();
    bench.engine.shut_down(Duration::from_secs(5)).await;
    let error = stream.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(bench.fails("select 1").await.kind(), ErrorKind::Cancelled);
    gives_all_back(&bench.engine).await;
}

#[tokio::test]
async fn slow_readers_hold_queries_back() {
    let bench = bench();
    let mut stream =
        bench.engine.query("select * from generate_series(1, 100000000000)", QueryOptions::default()).await.unwrap();
    for _ in 0..3 {
        assert!(stream.next().await.unwrap().unwrap().num_rows() > 0);
    }
    assert!(bench.engine.memory_used_bytes() < 64 << 20);
}

#[tokio::test]
async fn sorts_spill_and_joins_try_again() {
    let bench = bench_with(lake(), |o| o.memory_bytes = 48 << 20);
    let sorted = "select count(*) from (select row_number() over (order by value % 1000, t) as n from (select value, repeat('x', 40) as t from generate_series(1, 1500000))) where n > 0";
    assert_eq!(bench.value(sorted).await, "1500000");
    // The build side of a hash join cannot spill: 2 million rows of some 60 bytes do not fit.
    let joined = "with a as (select value as k, repeat('y', 40) as t from generate_series(1, 2000000)), \
                  b as (select value as k, repeat('z', 40) as t from generate_series(1, 2000000)) \
                  select count(*) from a join b on a.k = b.k where a.t < b.t";
    assert_eq!(bench.value(joined).await, "2000000");
    gives_all_back(&bench.engine).await;
}

#[tokio::test]
async fn too_little_memory_is_an_error() {
    let bench = bench_with(lake(), |o| o.memory_bytes = 1 << 20);
    // A sort sets more than that aside for its merge.
    let error = bench.fails("select value from generate_series(1, 3000000) order by value % 7, value").await;
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert!(error.hint().unwrap().contains("engine.memory"), "{error}");
    assert_eq!(bench.value("select 1").await, "1");
    gives_all_back(&bench.engine).await;
}

#[tokio::test]
async fn empty_results_have_their_columns() {
    let bench = bench();
    let stream =
        bench.engine.query("select ds, delay from flights where false", QueryOptions::default()).await.unwrap();
    assert_eq!(stream.schema().fields().len(), 2);
    assert!(stream.try_collect::<Vec<_>>().await.unwrap().is_empty());
}

#[tokio::test]
async fn errors_come_whole_through_datafusion_streams() {
    let bench = bench();
    let stream = bench.engine.query(ENDLESS, within(1)).await.unwrap().into_sendable();
    let error = Error::from(stream.try_collect::<Vec<_>>().await.unwrap_err());
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

/// Waits until all reservations are returned; tasks that were stopped end a moment later.
pub(crate) async fn gives_all_back(engine: &headworks_engine::Engine) {
    for _ in 0..500 {
        if engine.memory_used_bytes() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} bytes are still held", engine.memory_used_bytes());
}

/// Each thread hands its groups on several times, and each group comes together again.
#[tokio::test]
async fn groups_that_are_handed_on_early_are_whole() {
    let mut tables = lake();
    tables.tables.insert((1, "many"), table(vec![("k", ints((0..1_000_000).map(|n| n % 300_000)))]));
    let bench = bench_with(tables, |o| o.parallel_bytes_min = 0);
    for key in ["k", "'key ' || k", "k % 2, k"] {
        let groups = format!("select count(*) as c, sum(k) as s, avg(k) as a, min(k) as l from many group by {key}");
        let plan = bench.shown(&format!("explain verbose {groups}")).await;
        assert!(plan.contains("mode=Partial"), "{plan}");
        let sql = format!("select concat(count(*), ' ', sum(c), ' ', sum(s), ' ', sum((a = l)::int)) from ({groups})");
        assert_eq!(bench.value(&sql).await, "300000 1000000 139999500000 300000", "{key}");
    }
}
