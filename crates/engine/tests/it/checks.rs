use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use headworks_engine::{
    QueryOptions,
    checks::{Check, CheckKind, Outcome, run},
};

use crate::support::{bench, bench_with, ints, lake, table, texts};

fn options() -> QueryOptions {
    let this = table(vec![
        ("id", ints([1, 2, 2, 2, 5])),
        ("carrier", texts([Some("UA"), Some("AA"), None, Some("ZZ"), Some("ZZ")])),
        ("order", Arc::new(Int64Array::from(vec![Some(1), None, Some(1), Some(1), Some(2)])) as ArrayRef),
    ]);
    QueryOptions::default().with_table("this", this)
}

fn check(kind: CheckKind) -> Check {
    Check { name: "c".to_owned(), kind, block: true }
}

async fn outcome(kind: CheckKind) -> Outcome {
    let report = run(&bench().engine, &[check(kind)], &options()).await.unwrap();
    assert_eq!(report.rows, 5);
    assert_eq!(report.is_publishable(), report.outcomes[0].passed);
    report.outcomes.into_iter().next().unwrap()
}

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|c| (*c).to_owned()).collect()
}

#[tokio::test]
async fn each_kind_passes_and_fails() {
    let expect = async |kind: CheckKind, bad_rows: Option<u64>, message: &str, examples: &[&str]| {
        let found = outcome(kind).await;
        let passed = message == "holds";
        assert_eq!((found.passed, found.bad_rows, found.message.as_str()), (passed, bad_rows, message));
        assert_eq!(found.examples, examples);
    };
    let column = |c: &str| c.to_owned();
    expect(CheckKind::NotNull { column: column("id") }, Some(0), "holds", &[]).await;
    expect(
        CheckKind::NotNull { column: column("order") },
        Some(1),
        "`order` is null in 1 row of 5",
        &["id=2, carrier=AA, order=NULL"],
    )
    .await;
    expect(CheckKind::Unique { columns: names(&["id"]) }, Some(2), "`id` repeats in 2 rows of 5", &["id=2 (3 rows)"])
        .await;
    expect(
        CheckKind::Unique { columns: names(&["id", "order"]) },
        Some(1),
        "`id`, `order` repeats in 1 row of 5",
        &["id=2, order=1 (2 rows)"],
    )
    .await;
    expect(CheckKind::Unique { columns: names(&["id", "carrier"]) }, Some(0), "holds", &[]).await;
    let accepted = |values: Vec<serde_json::Value>| CheckKind::AcceptedValues { column: "carrier".to_owned(), values };
    expect(accepted(vec!["UA".into(), "AA".into(), "ZZ".into()]), Some(0), "holds", &[]).await;
    expect(
        accepted(vec!["UA".into()]),
        Some(3),
        "`carrier` has other values in 3 rows of 5",
        &["carrier=ZZ (2 rows)", "carrier=AA (1 row)"],
    )
    .await;
    let relation = |table: &str| CheckKind::Relationships {
        column: "carrier".to_owned(),
        table: table.to_owned(),
        to: "carrier".to_owned(),
    };
    expect(
        relation("airlines"),
        Some(2),
        "`carrier` is not in `airlines.carrier` in 2 rows of 5",
        &["carrier=ZZ (2 rows)"],
    )
    .await;
    expect(CheckKind::Sql("select count(*) > 3 from this".to_owned()), None, "holds", &[]).await;
    expect(CheckKind::Sql("select count(*) > 30 from this".to_owned()), None, "is false", &[]).await;
    expect(CheckKind::Sql("select max(id) > null from this".to_owned()), None, "is null", &[]).await;
    let found = outcome(CheckKind::RowCount { min: Some(6), max: None }).await;
    assert_eq!((found.passed, found.message.as_str()), (false, "5 rows, at least 6 wanted"));
    assert!(outcome(CheckKind::RowCount { min: Some(5), max: Some(5) }).await.passed);
}

#[tokio::test]
async fn warnings_do_not_block_and_order_stays() {
    let kinds = [
        CheckKind::NotNull { column: "order".to_owned() },
        CheckKind::Sql("select true".to_owned()),
        CheckKind::Unique { columns: names(&["id"]) },
        CheckKind::RowCount { min: None, max: Some(10) },
        CheckKind::NotNull { column: "id".to_owned() },
    ];
    let checks: Vec<Check> =
        kinds.into_iter().enumerate().map(|(i, kind)| Check { name: i.to_string(), kind, block: false }).collect();
    let report = run(&bench().engine, &checks, &options()).await.unwrap();
    assert!(report.is_publishable());
    let passed: Vec<(&str, bool)> = report.outcomes.iter().map(|o| (o.name.as_str(), o.passed)).collect();
    assert_eq!(passed, [("0", false), ("1", true), ("2", false), ("3", true), ("4", true)]);
}

#[tokio::test]
async fn checks_that_cannot_run_are_named() {
    let bench = bench();
    let fails = async |kind: CheckKind, message: &str| {
        let good = Check { name: "good".to_owned(), kind: CheckKind::NotNull { column: "id".to_owned() }, block: true };
        let error = run(&bench.engine, &[good, check(kind)], &options()).await.unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    fails(CheckKind::NotNull { column: "nope".to_owned() }, "check `c` cannot run: column `nope` does not exist").await;
    fails(
        CheckKind::Sql("select id from this".to_owned()),
        "check `c` cannot run: it gives a bigint where one boolean is needed",
    )
    .await;
    fails(
        CheckKind::Sql("select id > 0 from this".to_owned()),
        "check `c` cannot run: it gives more than one row where one boolean is needed",
    )
    .await;
    fails(
        CheckKind::Sql("select true where false".to_owned()),
        "check `c` cannot run: it gives no row where one boolean is needed",
    )
    .await;
    fails(
        CheckKind::Sql("select true as a, true as b".to_owned()),
        "check `c` cannot run: it gives 2 columns where one boolean is needed",
    )
    .await;
    fails(CheckKind::Sql("drop table this".to_owned()), "check `c` cannot run: `DROP` is not allowed here: only SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES and DESCRIBE are").await;
}

#[tokio::test]
async fn many_distinct_values_are_counted_in_little_memory() {
    let bench = bench_with(lake(), |o| o.memory_bytes = 32 << 20);
    let n = 1_000_000_i64;
    let this = table(vec![("id", ints((0..n).map(|i| if i == 7 { 6 } else { i })))]);
    let options = QueryOptions::default().with_table("this", this);
    let report = run(&bench.engine, &[check(CheckKind::Unique { columns: names(&["id"]) })], &options).await.unwrap();
    assert_eq!(report.outcomes[0].bad_rows, Some(1));
    assert_eq!(report.outcomes[0].examples, ["id=6 (2 rows)"]);
}
