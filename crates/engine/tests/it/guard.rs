use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::TryStreamExt;
use headworks_domain::{ErrorKind, Fault};
use headworks_engine::{Engine, QueryOptions, Stage};

use crate::support::{bench, bench_with, lake};

#[tokio::test]
async fn values_have_a_limit_before_they_are_made() {
    let bench = bench();
    for sql in [
        "select repeat('x', 2000000000)",
        "select lpad('x', 2000000000)",
        "select rpad('x', 100000000, 'ab')",
        "select replace(repeat('x', 1000000), 'x', repeat('y', 1000))",
        "select regexp_replace(repeat('x', 1000000), 'x', repeat('y', 1000), 'g')",
        "select array_repeat(1, 100000000)",
        "select range(0, 9000000000)",
        "select levenshtein(repeat('a', 100000), repeat('b', 100000))",
        "select generate_series(timestamp '1700-01-01', timestamp '2200-01-01', interval '1 second')",
        "select array_to_string(array_repeat('', 1000000), repeat('x', 1000))",
        "select repeat('x', 40000000) || repeat('y', 40000000)",
        "select concat(repeat('x', 40000000), repeat('y', 40000000))",
        "select [range(0, 5000000), range(0, 5000000)]",
        "select repeat('x', value) from generate_series(1, 1000000)",
        "select count(try(repeat('x', 100000 + 10 / (value % 2)))) from generate_series(1, 8192)",
        "select count(try(repeat('x', 100000 + cast(random() as int)))) from generate_series(1, 8192)",
        "select string_agg(repeat('x', 100000), ',') from generate_series(1, 1000)",
        "select array_agg(value) from generate_series(1, 100000000)",
        "select array_agg(value) over (order by value) from generate_series(1, 100000)",
        "with recursive t as (select 'x' as x union all select x || x from t) select max(length(x)) from t",
    ] {
        let error = bench.fails(sql).await;
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{sql}: {error}");
        assert!(error.hint().unwrap().contains("sql.value_bytes_max"), "{sql}: {error}");
    }
    assert_eq!(bench.value("select length(repeat('x', 16000000))").await, "16000000");
    // A row of a constant this large makes batches small.
    let rows =
        "select count(x) from (select repeat('x', 15000000) as x, value from generate_series(1, 100)) where value > 0";
    assert_eq!(bench.value(rows).await, "100");
}

#[tokio::test]
async fn long_chains_of_operators_are_planned_soon() {
    let bench = bench_with(lake(), |_| {});
    let check = async |sql: String, expected: &str| {
        let value = tokio::time::timeout(Duration::from_secs(30), bench.value(&sql)).await;
        assert_eq!(value.unwrap_or_else(|_| "nothing".to_owned()), expected, "{sql}");
    };
    check(format!("select length({}'x')", "'x' || ".repeat(199)), "200").await;
    check(format!("select length({}'x'{})", "upper('x' || ".repeat(60), ")".repeat(60)), "61").await;
    check(format!("select coalesce('{{}}'{}, 'none')", " -> 'a'".repeat(199)), "none").await;
}

#[tokio::test]
async fn a_pattern_has_an_end() {
    let bench = bench_with(lake(), |_| {});
    let long = "a".repeat(1_025);
    for sql in [
        format!("select regexp_like('x', '{long}')"),
        format!("select regexp_count(carrier, '{long}') from flights"),
        format!("select carrier ~ '{long}' from flights"),
        format!("select carrier !~* '{long}' from flights"),
        "select carrier ~ repeat('a', 1025) from flights".to_owned(),
        "select regexp_replace(carrier, repeat('a', 1020 + length(carrier) * 4), 'x') from flights".to_owned(),
    ] {
        let error = bench.fails(&sql).await;
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{sql}: {error}");
        assert!(error.to_string().contains("1024 are allowed"), "{sql}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("fixed")), "{sql}: {error}");
    }
    assert_eq!(bench.value(&format!("select '{0}' ~ '{0}'", &long[1..])).await, "true");
}

#[tokio::test]
async fn an_overflow_says_what_to_do() {
    let error = bench_with(lake(), |_| {}).fails("select n + 9223372036854775807 from hourly").await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("decimal(38, 0)")), "{error}");
}

/// Each level has what is in it twice: nothing of it is made.
#[tokio::test]
async fn what_doubles_with_each_level_is_refused() {
    let bench = bench();
    let nested = |before: &str, inner: &str, after: &str, count: usize| {
        format!("select {}{inner}{} from flights limit 1", before.repeat(count), after.repeat(count))
    };
    let ctes = |made: &str| {
        let more: String = (1..40).map(|n| format!(", c{n} as (select {made} as x from c{})", n - 1)).collect();
        format!("with c0 as (select 1 as x){more} select * from c39")
    };
    for (sql, expected) in [
        (ctes("struct(x, x)"), "`struct` would make a type of more than 10000 parts"),
        (ctes("named_struct('a', x, 'b', x)"), "would make a type of more than 10000 parts"),
        (ctes("map([x], [x])"), "would make a type of more than 10000 parts"),
        (nested("coalesce(", "delay", " + 1, 2)", 40), "has more than 100000 parts once all in it is written out"),
        (
            "select regexp_match(repeat('a', 1000000), repeat('(a*)', 100))".to_owned(),
            "`regexp_match` would look for 100 groups of a pattern of 400 bytes in a text of 1000000 bytes",
        ),
    ] {
        let error = bench.fails(&sql).await.to_string();
        assert!(error.contains(expected), "{sql}: {error}");
    }
    // By its alias a function is what it is by its name, and the texts of nested ones do not double.
    let sql = nested("ifnull(", "delay", ", 1)", 12);
    let plan = bench.engine.rows(&sql, QueryOptions::default()).await.unwrap();
    let name = plan[0].schema().field(0).name().clone();
    assert!(name.starts_with("ifnull(ifnull(") && name.len() < 400, "{name}");
}

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

async fn count(engine: Engine, sql: &str) -> headworks_engine::Result<usize> {
    let stream = engine.query(sql, QueryOptions::default()).await?;
    Ok(stream.try_collect::<Vec<_>>().await?.len())
}

#[tokio::test]
async fn the_query_that_takes_the_memory_is_stopped_and_no_other() {
    let bench = bench_with(lake(), |options| {
        options.memory_bytes = 100 << 20;
        options.allocated = Some(|| ALLOCATED.load(Ordering::Relaxed));
    });
    let large = "select count(distinct repeat('x', value % 10)) from generate_series(1, 100000000000)";
    let small = "select count(*) from generate_series(1, 100000000000)";
    let large = tokio::spawn(count(bench.engine.clone(), large));
    let small = tokio::spawn(count(bench.engine.clone(), small));
    let run = || bench.engine.queries().iter().filter(|query| query.stage == Stage::Running).count();
    while run() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What makes values that nobody counts is borne up to a tenth below the limit.
    ALLOCATED.store(89 << 20, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(run(), 2);
    ALLOCATED.store(91 << 20, Ordering::Relaxed);
    let error = tokio::time::timeout(Duration::from_secs(5), large).await.unwrap().unwrap().unwrap_err();
    assert!(error.kind() == ErrorKind::Exhausted && error.to_string().contains("is taken to hold most"), "{error}");
    // What holds next to nothing is left alone, however much there is.
    ALLOCATED.store(200 << 20, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(run(), 1);
    small.abort();
}

#[tokio::test]
async fn heavy_rows_do_not_keep_a_query_from_being_stopped() {
    let bench = bench();
    for sql in [
        "select count(*) from (select distinct repeat('x', 1000000) || value from generate_series(1, 1000000))",
        "select sum(length(x || x)) from (select repeat('x', 1000000) || value as x from generate_series(1, 1000000))",
        "select count(*) from (select unnest(range(0, 10000)) from generate_series(1, 100000000))",
        "with recursive t as (select 1 as n union all select n + 1 from t) select count(*) from t",
        "select sum(value) over (order by value rows between 1000 preceding and current row) from generate_series(1, 1000000000)",
    ] {
        let options = QueryOptions { timeout: Some(Duration::from_millis(500)), ..QueryOptions::default() };
        let asked = std::time::Instant::now();
        let ended = bench.engine.rows(sql, options).await;
        assert!(asked.elapsed() < Duration::from_millis(1_500), "{sql}: {:?}", asked.elapsed());
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Exhausted, "{sql}");
    }
}
