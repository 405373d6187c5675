use std::collections::HashMap;

use arrow::datatypes::DataType;
use headworks_domain::{ErrorKind, Fault};
use headworks_engine::{At, Position, QueryOptions};

use crate::support::{bench, ints, table};

#[tokio::test]
async fn tables_have_three_names() {
    let bench = bench();
    for name in ["flights", "main.flights", "headworks.main.flights", "FLIGHTS", "\"flights\""] {
        assert_eq!(bench.value(&format!("select count(*) from {name}")).await, "5", "{name}");
    }
    assert_eq!(bench.value("select main.flights.carrier from main.flights where flights.delay > 10").await, "DL");
    assert_eq!(bench.value("select \"order\" + \"two words\" + \"Big\" from \"Ünï\"").await, "6");
}

#[tokio::test]
async fn latest_is_the_newest_published_partition() {
    let bench = bench();
    assert_eq!(bench.value("select count(*) from flights_latest").await, "3");
    assert_eq!(bench.value("select sum(n) from main.hourly_latest").await, "3");
    // Published without rows, and never published: both are empty, and the second newest is not shown instead.
    assert_eq!(bench.value("select count(*) from empty_latest").await, "0");
    assert_eq!(bench.value("select count(*) from unpublished_latest").await, "0");
    assert_eq!(bench.value("select count(*) from flights_latest a join main.flights_latest b using (ds)").await, "9");
    let plan = bench.shown("explain select * from hourly_latest").await;
    assert!(plan.contains("ds = 2013-01-02 AND hour = 5"), "{plan}");
    // A table without days has no newest one.
    assert_eq!(bench.fails("select * from airlines_latest").await.kind(), ErrorKind::NotFound);
    assert_eq!(bench.fails("select * from flights_latest at (version => 3)").await.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn older_versions_are_read_per_table() {
    let bench = bench();
    let check = async |sql: &str, expected: &str| assert_eq!(bench.value(sql).await, expected, "{sql}");
    check("select count(*) from flights AT (VERSION => 4)", "4").await;
    check("select count(*) from flights at (timestamp => '2013-01-01')", "4").await;
    check("select count(*) from flights at (timestamp => timestamp '2033-01-01 10:00:00+02')", "5").await;
    check("select count(*) from main.flights at (version => 4) as old right join flights using (ds, carrier, delay) where old.ds is null", "3").await;
    check("select count(flights.carrier) from flights at (version => 4) where flights.ds = '2013-01-01'", "2").await;
    let plan = bench.shown("explain select * from flights at (version => 4)").await;
    assert!(plan.contains("flights@version=4"), "{plan}");

    let options = QueryOptions { at: At::Version(4), ..QueryOptions::default() };
    let rows = bench.engine.rows("select * from flights", options).await.unwrap();
    assert_eq!(rows.iter().map(|b| b.num_rows()).sum::<usize>(), 4);
}

#[tokio::test]
async fn one_statement_reads_one_version_and_looks_up_what_it_names() {
    let bench = bench();
    bench
        .rows("with airlines as (select 1) select * from flights f, hourly, airlines, (select * from flights) g")
        .await
        .unwrap();
    let asked = bench.lake.asked.lock().unwrap().clone();
    assert_eq!(asked, ["flights@7", "hourly@7"]);
}

#[tokio::test]
async fn with_queries_hide_tables() {
    let bench = bench();
    let check = async |sql: &str, expected: &str| assert_eq!(bench.value(sql).await, expected, "{sql}");
    check("with flights as (select 1 as one) select * from flights", "1").await;
    check("with flights as (select * from flights where carrier = 'UA') select count(*) from flights", "2").await;
    check("with x as (select 1 as one), y as (select one + 1 as two from x) select two from y", "2").await;
    check("with recursive n as (select 1 as i union all select i + 1 from n where i < 5) select sum(i) from n", "15")
        .await;
    check("with flights as (select 1) select count(*) from main.flights", "5").await;
}

#[tokio::test]
async fn own_tables_come_first_by_their_bare_name() {
    let bench = bench();
    let options = || QueryOptions {
        tables: HashMap::from([
            ("this".to_owned(), table(vec![("n", ints([1, 2, 3]))])),
            ("airlines".to_owned(), table(vec![("n", ints([9]))])),
        ]),
        ..QueryOptions::default()
    };
    let count = async |sql: &str| {
        let rows = bench.engine.rows(sql, options()).await.unwrap();
        arrow::util::display::array_value_to_string(rows[0].column(0), 0).unwrap()
    };
    assert_eq!(count("select count(*) from this").await, "3");
    assert_eq!(count("select max(n) from airlines").await, "9");
    assert_eq!(count("select count(*) from main.airlines").await, "2");
    assert_eq!(count("select count(*) from this, flights").await, "15");
}

#[tokio::test]
async fn views_of_others_are_read() {
    let bench = bench();
    assert_eq!(bench.value("select max(most) from delays where day = '2013-01-02'").await, "12.25");
    let error = bench.fails("select * from broken").await;
    assert!(error.to_string().starts_with("view `broken` cannot be read: "), "{error}");
    assert_eq!(bench.fails("select * from circle").await.kind(), ErrorKind::Exhausted);
}

#[tokio::test]
async fn unknown_names_get_near_misses_and_places() {
    let bench = bench();
    let check = async |sql: &str, message: &str, hint: &str, place: (usize, usize)| {
        let error = bench.fails(sql).await;
        assert_eq!(error.to_string(), message, "{sql}");
        assert_eq!(error.hint().as_deref(), Some(hint), "{sql}");
        assert_eq!(error.position(), Some(Position { line: place.0, column: place.1 }), "{sql}");
    };
    check(
        "select *\n  from flihgts",
        "table `flihgts` does not exist",
        "did you mean `flights`? `headworks tables list` shows all tables",
        (2, 8),
    )
    .await;
    check("select 1 from zzz", "table `zzz` does not exist", "`headworks tables list` shows all tables", (1, 15)).await;
    check(
        "select 1 from other.flights",
        "table `other.flights` does not exist",
        "did you mean `flights`? `headworks tables list` shows all tables",
        (1, 15),
    )
    .await;
    check("select\n carier from flights", "column `carier` does not exist", "did you mean `carrier`?", (2, 2)).await;
    check(
        "select f.nope from flights f",
        "column `f.nope` does not exist",
        "there are `ds`, `carrier`, `delay`",
        (1, 8),
    )
    .await;
    check(
        "select big from \"Ünï\"",
        "column `big` does not exist",
        "names in capitals need quotes: write `\"Big\"`",
        (1, 8),
    )
    .await;
}

#[tokio::test]
async fn sql_errors_have_places_and_kinds() {
    let bench = bench();
    let check = async |sql: &str, message: &str, place: Option<(usize, usize)>, kind: ErrorKind| {
        let error = bench.fails(sql).await;
        assert!(error.to_string().contains(message), "{sql}: {error}");
        assert_eq!(error.position(), place.map(|(line, column)| Position { line, column }), "{sql}: {error}");
        assert_eq!(error.kind(), kind, "{sql}: {error}");
    };
    check("select\n1 from", "expected", Some((2, 7)), ErrorKind::Invalid).await;
    check("select 'abc", "unterminated string", Some((1, 8)), ErrorKind::Invalid).await;
    check("select (1", "expected", Some((1, 10)), ErrorKind::Invalid).await;
    check("select cuont(*) from flights", "invalid function `cuont`", Some((1, 8)), ErrorKind::Invalid).await;
    check("select carrier, count(*) from flights", "`flights.carrier` is neither", Some((1, 8)), ErrorKind::Invalid)
        .await;
    check(
        "select delay\nfrom flights group by carrier",
        "`flights.delay` is neither",
        Some((1, 8)),
        ErrorKind::Invalid,
    )
    .await;
    check("select substr('a', 'b')", "no function is called as `substr(varchar, varchar)`", None, ErrorKind::Invalid)
        .await;
    check("select 1/0", "divide by zero", None, ErrorKind::Invalid).await;
    check("select cast('x' as int)", "cannot cast string 'x' to value of integer", None, ErrorKind::Invalid).await;
    check("select * from flights where ds = 'yesterday'", "'yesterday' to value of date", None, ErrorKind::Invalid)
        .await;
    check(
        "select * from read_csv('/etc/passwd')",
        "table function `read_csv` does not exist",
        None,
        ErrorKind::Invalid,
    )
    .await;
    check("select * from '/etc/passwd'", "table `/etc/passwd` does not exist", None, ErrorKind::NotFound).await;
    check("select\nfrom where", "table `where` does not exist", Some((2, 6)), ErrorKind::NotFound).await;
    check("drop table flights", "`DROP` is not allowed", None, ErrorKind::Denied).await;
}

#[tokio::test]
async fn long_lists_have_limits() {
    let bench = bench();
    let numbers = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let within = |n: usize| format!("select count(*) from flights where delay in ({})", numbers(n));
    assert_eq!(bench.value(&within(15_000)).await, "1");
    let tables = |n: usize| format!("select count(*) from (select 1 as x) t{}", ", (select 1) u".repeat(n));
    for (sql, message) in [
        (within(25_000), "the SQL has tokens above the limit of 40000"),
        (tables(300), "the SQL has nested expressions, joins or set operations above the limit of 256"),
    ] {
        let error = bench.fails(&sql).await;
        assert_eq!((error.to_string().as_str(), error.kind()), (message, ErrorKind::Exhausted));
        assert!(error.hint().is_some());
    }
}

#[tokio::test]
async fn text_compared_with_days_becomes_a_day() {
    let bench = bench();
    for filter in [
        "ds = '2013-01-01'",
        "ds >= '2013-01-01' and ds < '2013-01-02'",
        "ds in ('2013-01-01', '2012-12-31')",
        "ds between '2012-01-01' and '2013-01-01'",
        "'2013-01-01' = ds",
        "ds = date '2013-01-01'",
    ] {
        let sql = format!("select count(*) from flights where {filter}");
        assert_eq!(bench.value(&sql).await, "2", "{filter}");
        let plan = bench.shown(&format!("explain {sql}")).await;
        assert!(plan.contains("2013-01-01"), "{filter}: {plan}");
        assert!(!plan.to_lowercase().contains("cast("), "{filter}: {plan}");
    }
}

#[tokio::test]
async fn tables_describe_themselves() {
    let bench = bench();
    let shown = bench.shown("show tables").await;
    for name in ["flights ", "flights_latest", "delays", "Ünï"] {
        assert!(shown.contains(name), "{shown}");
    }
    assert!(!shown.contains("airlines_latest") && !shown.contains("schemata"), "{shown}");
    let check = async |sql: &str, expected: &str| assert_eq!(bench.value(sql).await, expected, "{sql}");
    check("select table_type from information_schema.tables where table_name = 'delays'", "VIEW").await;
    check("select string_agg(column_name || ' ' || data_type, ',' order by ordinal_position) from information_schema.columns where table_name = 'flights'", "ds date,carrier varchar,delay double").await;
    check("select count(*) from information_schema.columns where table_name = 'flights_latest'", "3").await;
    check("select count(*) from information_schema.schemata", "2").await;
    check("select view_definition like 'SELECT%' from information_schema.views where table_name = 'delays'", "true")
        .await;
    let described = bench.rows("describe flights").await.unwrap();
    assert_eq!(described[0].num_rows(), 3);
    assert_eq!(described[0].schema().field(0).data_type(), &DataType::Utf8);
    assert_eq!(bench.rows("describe select 1 as one, 'x' as two").await.unwrap()[0].num_rows(), 2);
    let error = bench.fails("select * from information_schema.table").await;
    assert!(error.hint().unwrap().contains("`information_schema.tables`"), "{error}");
}

#[tokio::test]
async fn plans_are_explained() {
    let bench = bench();
    let plan = bench
        .shown("explain select carrier, count(*) as n from flights where delay > 0 group by carrier order by n limit 3")
        .await;
    for line in [
        "QUERY PLAN",
        "| Projection: carrier, n=count(*)",
        "-> Sort: count(*)@1 ASC NULLS LAST, limit=3",
        "   -> Aggregate: group_by=carrier, aggr=count(*)",
        "      -> Filter: delay > 0",
        "         -> Scan of memory: 5 rows, columns carrier delay",
        "| Reads flights.",
    ] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    assert!(!plan.contains("Pause") && !plan.contains("Repartition"), "{plan}");
    assert!(bench.shown("explain select 1").await.contains("| Reads no table."));
    let named = bench.shown("explain select delay + 1 as rows, delay as mode from flights").await;
    assert!(named.contains("Projection: rows=") && named.contains(", mode="), "{named}");
    let analyzed = bench.shown("explain analyze select count(*) from flights where delay > 0").await;
    let filter = analyzed.lines().find(|line| line.contains("-> Filter: delay > 0")).unwrap();
    let fields: Vec<&str> = filter.split_whitespace().collect();
    assert_eq!((fields[1], fields[3]), ("2", "ms"), "{analyzed}");
    assert!(analyzed.contains("| Reads flights.") && analyzed.contains("| Planned in "), "{analyzed}");
    for explain in ["explain", "explain analyze"] {
        let described = bench.engine.describe(&format!("{explain} select 1"), QueryOptions::default()).await.unwrap();
        assert_eq!(described.schema, bench.rows(&format!("{explain} select 1")).await.unwrap()[0].schema());
    }
    assert!(bench.shown("explain verbose select 1").await.contains("initial_logical_plan"));
}
