//! What a statement has more than once is computed once.

use crate::{
    running::gives_all_back,
    support::{bench, bench_with, ints, lake, table},
};

/// How often a text is in another.
fn count(of: &str, text: &str) -> usize {
    text.matches(of).count()
}

#[tokio::test]
async fn a_grouping_is_computed_once() {
    let bench = bench();
    let totals = "with totals as (select carrier, count(*) as n from flights group by carrier) \
                  select carrier from totals where n = (select max(n) from totals)";
    let plan = bench.shown(&format!("explain {totals}")).await;
    assert_eq!((count("Scan of", &plan), count("Shared 1", &plan), count("as above", &plan)), (1, 2, 1), "{plan}");
    let plan = bench.shown(&format!("explain analyze {totals}")).await;
    assert_eq!((count("Scan of", &plan), count("Shared 1", &plan)), (1, 2), "{plan}");
    assert_eq!(bench.value(totals).await, "UA");
    gives_all_back(&bench.engine).await;

    // One that is in another, and another grouping.
    let plan = bench
        .shown(
            "explain with days as (select ds, count(*) as n from flights group by ds), \
             most as (select max(n) as n from days), carriers as (select distinct carrier from flights) \
             select (select n from most) + (select n from most), (select sum(n) from days), \
             (select max(carrier) from carriers), count(*) from carriers",
        )
        .await;
    assert_eq!((count("Scan of", &plan), count("as above", &plan)), (2, 2), "{plan}");
}

#[tokio::test]
async fn versions_and_what_changes_are_computed_each() {
    let bench = bench();
    for sql in [
        "select (select count(*) from flights) as a, (select count(*) from flights at (version => 4)) as b",
        "select a.r, b.r as s from (select max(random()) as r from flights) a, (select max(random()) as r from flights) b",
        "select (select max(delay) from flights), (select min(delay) from flights)",
        "select count(*) from flights",
    ] {
        let plan = bench.shown(&format!("explain {sql}")).await;
        assert_eq!((count("Shared", &plan), count("error", &plan)), (0, 0), "{plan}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_computed_again() {
    let mut tables = lake();
    tables.tables.insert((1, "many"), table(vec![("k", ints((0..1_000_000).map(|n| n % 700_000)))]));
    let bench = bench_with(tables, |o| o.memory_bytes = 28 << 20);
    let sql = "with groups as (select k, count(*) as n, max(k) as m, min(k) as l from many group by k) \
               select (select max(n + m + l) from groups) * 1000000 + count(k + n + m + l) from groups";
    assert!(bench.shown(&format!("explain {sql}")).await.contains("Shared 1"));
    assert_eq!(bench.value(sql).await, "1399999700000");
    gives_all_back(&bench.engine).await;
}
