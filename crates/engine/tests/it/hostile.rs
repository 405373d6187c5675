use std::time::Duration;

use headworks_domain::{ErrorKind, Fault};
use headworks_engine::{QueryOptions, QueueOptions, SqlLimits};

use crate::support::{bench, bench_with, lake};

/// Texts that end DataFusion's process when nobody looks at them first.
fn texts() -> Vec<(&'static str, String)> {
    let nested_with = (0..60).fold("select 1 as x".to_owned(), |q, i| format!("with w{i} as ({q}) select * from w{i}"));
    let doubling = {
        let mut text = "with c0 as (select 1 as x)".to_owned();
        for i in 1..40 {
            text.push_str(&format!(", c{i} as (select a.x from c{} a join c{} b on a.x = b.x)", i - 1, i - 1));
        }
        format!("{text} select * from c39")
    };
    vec![
        ("sum", format!("select {}1", "1+".repeat(12_000))),
        ("sum of columns", format!("select {}delay from flights", "delay+".repeat(12_000))),
        ("unions", format!("select 1 {}", "union all select 1 ".repeat(5_000))),
        ("ors", format!("select * from flights where {}false", "delay = 1 or ".repeat(10_000))),
        ("nots", format!("select {} true", "not ".repeat(10_000))),
        ("minus", format!("select {} 1", "- ".repeat(10_000))),
        ("parens", format!("select {}1{}", "(".repeat(5_000), ")".repeat(5_000))),
        ("calls", format!("select {}1{}", "abs(".repeat(5_000), ")".repeat(5_000))),
        ("cases", format!("select {}1{}", "case when true then ".repeat(3_000), " end".repeat(3_000))),
        ("subqueries", format!("select * from {}(select 1){}", "(select * from ".repeat(3_000), ")".repeat(3_000))),
        ("joins", format!("select 1 from flights {}", "cross join flights ".repeat(5_000))),
        ("commas", format!("select 1 from flights {}", ", flights".repeat(5_000))),
        ("casts", format!("select 1{}", "::bigint".repeat(10_000))),
        ("arrays", format!("select {}1{}", "[".repeat(5_000), "]".repeat(5_000))),
        ("array types", format!("select cast(null as int{})", "[]".repeat(10_000))),
        ("angle types", format!("select cast(null as {}int{})", "array<".repeat(5_000), ">".repeat(5_000))),
        ("intervals", format!("select {}'1 day'", "interval ".repeat(10_000))),
        ("is null", format!("select 1 {}", "is null ".repeat(10_000))),
        ("pipes", format!("from flights {}", "|> where delay > 0 ".repeat(5_000))),
        ("concatenation", format!("select {}'x'", "'x' || ".repeat(10_000))),
        ("in list", format!("select * from flights where delay in ({}1)", "1,".repeat(18_000))),
        ("columns", format!("select {}1", "1,".repeat(15_000))),
        ("values", format!("values (1){}", ",(1)".repeat(9_000))),
        ("nested with", nested_with),
        ("doubling with", doubling),
        ("comments", format!("select {}1", "/*".repeat(20_000))),
        ("quotes", "select '".repeat(10_000)),
        ("nothing", "\0".repeat(1_000)),
        ("words", "select ".repeat(20_000)),
    ]
}

#[tokio::test]
async fn large_texts_end_in_an_answer_or_an_error() {
    let bench = bench();
    for (name, sql) in texts() {
        let options = QueryOptions { timeout: Some(Duration::from_secs(20)), ..QueryOptions::default() };
        // Shown when the process ends instead of answering.
        eprintln!("{name}");
        match bench.engine.rows(&sql, options).await {
            Ok(_) => {}
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Exhausted | ErrorKind::Invalid) && !error.to_string().is_empty(),
                "{name}: {error}"
            ),
        }
    }
    assert_eq!(bench.value("select 1").await, "1");
}

#[tokio::test]
async fn raised_limits_do_not_end_the_process_either() {
    let bench = bench_with(lake(), |o| o.queues = vec![QueueOptions { slots: 4, ..QueueOptions::new("default") }]);
    for (name, sql) in texts() {
        let options = QueryOptions {
            timeout: Some(Duration::from_secs(2)),
            limits: SqlLimits::jobs(),
            ..QueryOptions::default()
        };
        eprintln!("{name}");
        if let Err(error) = bench.engine.rows(&sql, options).await {
            assert!(matches!(error.kind(), ErrorKind::Exhausted | ErrorKind::Invalid), "{name}: {error}");
        }
    }
}

#[tokio::test]
async fn no_file_is_named_by_sql() {
    let bench = bench();
    for sql in [
        "create external table x stored as csv location '/etc/passwd'",
        "copy flights to '/tmp/headworks-copy.parquet'",
        "explain analyze copy flights to '/tmp/headworks-copy.parquet'",
        "copy (select 1) to '/tmp/headworks-copy.csv'",
        "insert into flights select * from flights",
        "set datafusion.runtime.memory_limit = '100G'",
        "select * from '/etc/passwd'",
        "select * from \"/etc/passwd\"",
        "select * from parquet_metadata('/etc/passwd')",
        "select * from read_parquet('/etc/passwd')",
        "explain select * from flights; drop table flights",
        "with x as (delete from flights returning *) select * from x",
        "select * into y from flights",
        "prepare p as select 1",
        "execute p",
        "begin",
        "declare c cursor for select 1",
        "use other",
        "kill 1",
        "attach database 'x' as y",
        "load 'x'",
        "install x",
    ] {
        let error = bench.fails(sql).await;
        assert!(
            matches!(error.kind(), ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::NotFound),
            "{sql}: {:?} {error}",
            error.kind()
        );
    }
    assert!(!std::path::Path::new("/tmp/headworks-copy.parquet").exists());
}
