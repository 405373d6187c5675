//! What grants hide is not there, whichever way a statement asks for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use arrow::{
    array::{ArrayRef, Date32Array, Int64Array, RecordBatch, StringArray},
    datatypes::SchemaRef,
    util::display::{ArrayFormatter, FormatOptions},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::ExecutionPlan,
};
use headworks_domain::{Access, Columns, Days, Ds, ErrorKind, Fault, Grant, PartitionKey, TablePattern};
use headworks_engine::{Caller, Engine, EngineOptions, Error, QueryOptions, Result, ScalarValue};

use crate::support::{Bench, Tables, bench_with, ints, table, texts};

/// A row of `events`. Where `n` is 0 a division fails, and `text` is no number.
#[derive(Debug, Clone, Copy)]
struct Row {
    id: i64,
    ds: Option<&'static str>,
    event_type: Option<&'static str>,
    country: Option<&'static str>,
    n: i64,
    email: &'static str,
    text: &'static str,
}

const ROWS: [Row; 7] = [
    row(1, Some("2013-01-01"), Some("view"), Some("DE"), 4, "ann@x", "1"),
    row(2, Some("2013-01-01"), Some("buy"), Some("FR"), 0, "bob@x", "hidden two"),
    row(3, Some("2013-01-02"), Some("view"), Some("DE"), 7, "cat@x", "3"),
    row(4, Some("2013-01-02"), Some("buy"), None, 5, "ann@x", "4"),
    row(5, Some("2013-01-03"), Some("view"), Some("FR"), 0, "dan@x", "hidden five"),
    row(6, Some("2013-01-03"), None, Some("DE"), 2, "ann@x", "6"),
    row(7, None, Some("view"), Some("DE"), 0, "eve@x", "hidden seven"),
];

const COLUMNS: [&str; 7] = ["id", "ds", "event_type", "country", "n", "email", "text"];

const fn row(
    id: i64,
    ds: Option<&'static str>,
    event_type: Option<&'static str>,
    country: Option<&'static str>,
    n: i64,
    email: &'static str,
    text: &'static str,
) -> Row {
    Row { id, ds, event_type, country, n, email, text }
}

impl Row {
    fn cell(&self, column: &str) -> String {
        let or_null = |text: Option<&str>| text.unwrap_or("NULL").to_owned();
        match column {
            "id" => self.id.to_string(),
            "ds" => or_null(self.ds),
            "event_type" => or_null(self.event_type),
            "country" => or_null(self.country),
            "n" => self.n.to_string(),
            "email" => self.email.to_owned(),
            "text" => self.text.to_owned(),
            other => panic!("{other}"),
        }
    }
}

fn events(rows: &[Row]) -> Vec<(&'static str, ArrayRef)> {
    let day = |row: &Row| {
        let day: Ds = row.ds?.parse().unwrap();
        Some(i32::try_from((day.date() - "1970-01-01".parse::<Ds>().unwrap().date()).num_days()).unwrap())
    };
    let text = |of: fn(&Row) -> Option<&'static str>| Arc::new(StringArray::from_iter(rows.iter().map(of))) as ArrayRef;
    vec![
        ("id", ints(rows.iter().map(|row| row.id))),
        ("ds", Arc::new(Date32Array::from_iter(rows.iter().map(day)))),
        ("event_type", text(|row| row.event_type)),
        ("country", text(|row| row.country)),
        ("n", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.n)))),
        ("email", text(|row| Some(row.email))),
        ("text", text(|row| Some(row.text))),
    ]
}

/// `events`, `salaries` and `plain`, with views on each other.
fn lake() -> Tables {
    let mut lake = Tables::default();
    lake.tables.insert((1, "events"), table(events(&ROWS[..3])));
    lake.tables.insert((5, "events"), table(events(&ROWS)));
    lake.newest.insert("events", PartitionKey::day("2013-01-03".parse().unwrap()));
    lake.tables.insert((1, "salaries"), table(vec![("who", texts([Some("ann")])), ("pay", ints([100]))]));
    lake.tables.insert((1, "plain"), table(vec![("a", ints([1, 2]))]));
    let views = [
        ("all_events", "select * from events"),
        ("on_all_events", "select * from all_events where id > 0"),
        ("by_country", "select country, count(*) as n from on_all_events group by country"),
        ("pays", "select pay from salaries"),
        ("on_pays", "select * from pays"),
        ("clock", "select id, now() as at from events"),
    ];
    lake.views.extend(views.map(|(name, sql)| (name, (sql, Vec::new()))));
    lake.stamp = Some("one".to_owned());
    lake
}

fn on(table: &str) -> Grant {
    Grant::of(TablePattern::new(table))
}

fn names(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn only(columns: &[&str]) -> Columns {
    Columns::Only(names(columns))
}

fn days(from: Option<&str>, to: Option<&str>) -> Days {
    let day = |text: &str| text.parse().unwrap();
    Days { from: from.map(day), to: to.map(day) }
}

fn rows(filter: &str) -> Grant {
    Grant { rows: Some(filter.to_owned()), ..on("events") }
}

fn user(name: &str, grants: Vec<Grant>) -> QueryOptions {
    let access = Arc::new(Access::granted(&name.parse().unwrap(), grants));
    QueryOptions {
        caller: Caller { access, role: Some("analyst".to_owned()), ..Caller::trusted(name) },
        ..QueryOptions::default()
    }
}

/// All rows as lines of their values, sorted.
async fn lines(engine: &Engine, sql: &str, options: QueryOptions) -> Result<Vec<String>> {
    let batches = engine.rows(sql, options).await?;
    let shown = FormatOptions::new().with_null("NULL");
    let mut lines = Vec::new();
    for batch in &batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &shown).unwrap()).collect();
        for row in 0..batch.num_rows() {
            lines.push(columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | "));
        }
    }
    lines.sort();
    Ok(lines)
}

impl Bench {
    async fn sees(&self, sql: &str, grants: &[Grant]) -> Vec<String> {
        let mut grants = grants.to_vec();
        grants.extend(["all_events", "on_all_events"].map(on));
        lines(&self.engine, sql, user("ann", grants)).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn refuses(&self, sql: &str, grants: &[Grant]) -> Error {
        match lines(&self.engine, sql, user("ann", grants.to_vec())).await {
            Ok(lines) => panic!("{sql} gives {lines:?}"),
            Err(error) => error,
        }
    }
}

fn access_bench() -> Bench {
    bench_with(lake(), |_| {})
}

/// A grant on `events` with what it means, said once more in Rust.
struct Case {
    grant: Grant,
    shows: fn(&Row) -> bool,
}

fn case(grant: Grant, shows: fn(&Row) -> bool) -> Case {
    Case { grant, shows }
}

/// Every kind of grant, and some of them together.
fn cases() -> Vec<(&'static str, Vec<Case>)> {
    let from_second = || Grant { days: days(Some("2013-01-02"), None), ..on("events") };
    let is_from_second = |row: &Row| row.ds.is_some_and(|ds| ds >= "2013-01-02");
    let views = || Grant { event_types: Some(names(&["view", "o'clock"])), ..on("events") };
    let german = || rows("country = 'DE'");
    let safe = only(&["id", "ds", "n"]);
    vec![
        ("all", vec![case(on("events"), |_| true)]),
        ("a pattern", vec![case(on("ev*ts"), |_| true)]),
        ("some columns", vec![case(Grant { columns: safe.clone(), ..on("*") }, |_| true)]),
        ("all but some", vec![case(Grant { columns: Columns::Except(names(&["email"])), ..on("events") }, |_| true)]),
        ("from a day", vec![case(from_second(), is_from_second)]),
        (
            "to a day",
            vec![case(Grant { days: days(None, Some("2013-01-01")), ..on("events") }, |row| {
                row.ds.is_some_and(|ds| ds <= "2013-01-01")
            })],
        ),
        (
            "one day",
            vec![case(Grant { days: days(Some("2013-01-02"), Some("2013-01-02")), ..on("events") }, |row| {
                row.ds == Some("2013-01-02")
            })],
        ),
        ("event types", vec![case(views(), |row| row.event_type == Some("view"))]),
        ("no event type", vec![case(Grant { event_types: Some(names(&[])), ..on("events") }, |_| false)]),
        ("a filter", vec![case(german(), |row| row.country == Some("DE"))]),
        ("a filter on the user", vec![case(rows("email = current_user || '@x'"), |row| row.email == "ann@x")]),
        (
            "a filter on a hidden column",
            vec![case(Grant { columns: safe.clone(), ..rows("email like 'a%' and n > 2") }, |row| {
                row.email == "ann@x" && row.n > 2
            })],
        ),
        (
            "all conditions",
            vec![case(
                Grant {
                    columns: Columns::Except(names(&["text", "country"])),
                    days: days(Some("2013-01-01"), Some("2013-01-02")),
                    event_types: Some(names(&["view"])),
                    ..rows("country = 'DE'")
                },
                |row| {
                    row.ds.is_some_and(|ds| ds <= "2013-01-02")
                        && row.event_type == Some("view")
                        && row.country == Some("DE")
                },
            )],
        ),
        (
            "two sets of rows",
            vec![case(from_second(), is_from_second), case(german(), |row| row.country == Some("DE"))],
        ),
        (
            "few columns of all rows and all of some",
            vec![
                case(Grant { columns: safe.clone(), ..on("events") }, |_| true),
                case(german(), |row| row.country == Some("DE")),
            ],
        ),
        (
            "two sets of rows with columns of their own",
            vec![
                case(Grant { columns: only(&["id", "email", "n"]), ..from_second() }, is_from_second),
                case(Grant { columns: only(&["id", "country", "n"]), ..views() }, |row| row.event_type == Some("view")),
                case(Grant { columns: only(&["id", "country", "ds"]), ..german() }, |row| row.country == Some("DE")),
            ],
        ),
        (
            "one that does not fit beside one that does",
            vec![case(rows("no_such_column = 1"), |_| false), case(german(), |row| row.country == Some("DE"))],
        ),
    ]
}

/// The columns that grants show, and the lines of the rows that they show, from the definition.
fn expected(cases: &[Case], rows: &[Row]) -> (Vec<&'static str>, Vec<String>) {
    let fits = |case: &&Case| case.grant.rows.as_deref() != Some("no_such_column = 1");
    let fitting: Vec<&Case> = cases.iter().filter(fits).collect();
    let columns = COLUMNS.into_iter().filter(|column| fitting.iter().any(|case| case.grant.columns.has(column)));
    let columns: Vec<&str> = columns.collect();
    let mut lines = Vec::new();
    for row in rows {
        let showing: Vec<&&Case> = fitting.iter().filter(|case| (case.shows)(row)).collect();
        if showing.is_empty() {
            continue;
        }
        let cell = |column: &&str| {
            let is_shown = showing.iter().any(|case| case.grant.columns.has(column));
            if is_shown { row.cell(column) } else { "NULL".to_owned() }
        };
        lines.push(columns.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
    lines.sort();
    (columns, lines)
}

/// Ways to all rows of `events`, each giving `{}` of them.
const WAYS: [&str; 37] = [
    "select {} from events",
    "select {} from events as e",
    "select {} from main.events",
    "select {} from headworks.main.events",
    "select {} from EVENTS",
    "select {} from \"events\"",
    "from events select {}",
    "table_of as (select * from events) select {} from table_of",
    "x as (select * from events), y as (select {} from x) select * from y",
    "recursive r as (select *, 0 as depth from events union all select * from r where false) select {} from r",
    "select {} from all_events",
    "select {} from on_all_events",
    "select {} from main.on_all_events where id < 100",
    "select {} from (select * from events) s",
    "select {} from (select * from (select * from events) s) s",
    "select {} from events where id in (select id from events)",
    "select {} from events where id in (select id from on_all_events)",
    "select {} from events e where exists (select 1 from events f where f.id = e.id)",
    "select {} from events where id <= (select max(id) from events)",
    "select {} from events join (select id as other from events) b on id = other",
    "select {} from events left join (select id as other from all_events) b on id = other",
    "select {} from (select 1 as one) s cross join events",
    "select {} from (select id as other from events) b right join events on id = other",
    "select {} from events union select {} from events",
    "select {} from events union all select {} from all_events where false",
    "select {} from events intersect select {} from events",
    "select {} from (select *, row_number() over (order by id) as r from events) s where r >= 1",
    "select {} from (select *, count(*) over () as c from events) s where c > 0",
    "select distinct {} from events",
    "select {} from events order by id limit 100",
    "select {} from events order by id desc offset 0",
    "select {} from events where id = id",
    "select {} from events where id between 1 and 7 and id in (1, 2, 3, 4, 5, 6, 7)",
    "select {} from events where cast(id as varchar) <> 'x'",
    "select {} from events at (version => 7)",
    "select {} from events at (timestamp => '2030-01-01')",
    "select {} from events at (version => 5) as events",
];

fn way(way: &str, columns: &str) -> String {
    let sql = way.replace("{}", columns);
    if sql.starts_with("select") || sql.starts_with("from") { sql } else { format!("with {sql}") }
}

#[tokio::test]
async fn every_grant_holds_on_every_way() {
    let bench = access_bench();
    for (kind, cases) in cases() {
        let grants: Vec<Grant> = cases.iter().map(|case| case.grant.clone()).collect();
        let (columns, all) = expected(&cases, &ROWS);
        for form in WAYS {
            let sql = way(form, &columns.join(", "));
            assert_eq!(bench.sees(&sql, &grants).await, all, "{kind}: {sql}");
        }
        assert_eq!(bench.sees("select * from events", &grants).await, all, "{kind}");
        assert_eq!(bench.sees("select * from on_all_events", &grants).await, all, "{kind}");
        let (_, old) = expected(&cases, &ROWS[..3]);
        assert_eq!(bench.sees("select * from events at (version => 1)", &grants).await, old, "{kind}: version 1");
        let newest: Vec<Row> = ROWS.into_iter().filter(|row| row.ds == Some("2013-01-03")).collect();
        let (_, newest) = expected(&cases, &newest);
        assert_eq!(bench.sees("select * from events_latest", &grants).await, newest, "{kind}: latest");
        assert_eq!(bench.sees("select * from main.events_latest as l", &grants).await, newest, "{kind}: latest");

        let count = [all.len().to_string()];
        for sql in [
            "select count(*) from events",
            "select count(1) from all_events",
            "select count(*) from (select 1 from events) s",
            "select sum(one) from (select 1 as one from events union all select 0) s",
            "select count(*) filter (where true) from events",
        ] {
            assert_eq!(bench.sees(sql, &grants).await, count, "{kind}: {sql}");
        }
        assert_eq!(
            bench.sees("select count(*) from events a cross join events b", &grants).await,
            [(all.len() * all.len()).to_string()],
            "{kind}"
        );
        for sql in ["describe events", "describe select * from events", "describe on_all_events"] {
            let described = bench.sees(sql, &grants).await;
            let described: BTreeSet<&str> = described.iter().map(|line| line.split(' ').next().unwrap()).collect();
            assert_eq!(described, columns.iter().copied().collect(), "{kind}: {sql}");
        }
        for name in ["events", "events_latest"] {
            let sql = format!("select column_name from information_schema.columns where table_name = '{name}'");
            let mut sorted = columns.clone();
            sorted.sort_unstable();
            assert_eq!(bench.sees(&sql, &grants).await, sorted, "{kind}: {sql}");
        }
        for column in COLUMNS.into_iter().filter(|column| !columns.contains(column)) {
            for from in ["events", "events_latest", "all_events", "events at (version => 1)"] {
                let mut grants = grants.clone();
                grants.push(on("all_events"));
                let error = bench.refuses(&format!("select {column} from {from}"), &grants).await;
                assert_eq!(error.to_string(), format!("column `{column}` does not exist"), "{kind}");
                let hint = error.hint().unwrap_or_default();
                assert!(!hint.contains(&format!("`{column}`")), "{kind}: {hint}");
            }
        }
        for explain in ["explain", "explain verbose", "explain analyze"] {
            let shown =
                bench.sees(&format!("{explain} select * from on_all_events where n > 0"), &grants).await.join("\n");
            let hidden = ROWS.iter().filter(|row| !all.iter().any(|line| line.starts_with(&row.id.to_string())));
            for row in hidden.filter(|row| row.text.starts_with("hidden")) {
                assert!(!shown.contains(row.text), "{kind}: {shown}");
            }
        }
    }
}

#[tokio::test]
async fn least_and_greatest_values_are_those_of_visible_rows() {
    let bench = access_bench();
    for (kind, cases) in cases() {
        let grants: Vec<Grant> = cases.iter().map(|case| case.grant.clone()).collect();
        let (columns, all) = expected(&cases, &ROWS);
        let Some(at) = columns.iter().position(|column| *column == "ds") else { continue };
        let days = all.iter().map(|line| line.split(" | ").nth(at).unwrap()).filter(|day| *day != "NULL");
        let days: BTreeSet<&str> = days.collect();
        let (least, most) = (days.first().unwrap_or(&"NULL"), days.last().unwrap_or(&"NULL"));
        for sql in ["select min(ds), max(ds) from events", "select min(e.ds), max(e.ds) from all_events as e"] {
            assert_eq!(bench.sees(sql, &grants).await, [format!("{least} | {most}")], "{kind}: {sql}");
        }
    }
}

#[tokio::test]
async fn values_that_are_hidden_are_in_no_error() {
    let bench = access_bench();
    // Each fails for a row that has 0 or a text that is no number, and such rows are hidden.
    let grants = [rows("n > 0"), on("all_events"), on("on_all_events")];
    for sql in [
        "select id from events where 10 / n > 0",
        "select id from events where cast(text as int) > 0",
        "select id from events where n > 0 and cast(text as int) > 0",
        "select id from events where cast(text as int) > 0 or n > 0",
        "select id from events where not cast(text as int) = 0",
        "select id from events where case when cast(text as int) > 0 then true else 10 / n > 0 end",
        "select id from events where cast(text as int) in (1, 3, 4, 6)",
        "select id from events where cast(text as int) between 1 and 7",
        "select id from events where ds >= '2013-01-01' and arrow_cast(text, 'Int8') > 0",
        "select id from (select id, cast(text as int) as t from events) s where t > 0",
        "select id from (select id, 10 / n as t from events order by id limit 5) s",
        "select id from all_events where 10 / n > 0",
        "select id from on_all_events where cast(text as int) > 0",
        "with x as (select * from events where 10 / n > 0) select id from x",
        "select a.id from events a join events b on a.id = b.id and cast(a.text as int) = cast(b.text as int)",
        "select a.id from events a left join events b on 10 / b.n > 0 and a.id = b.id",
        "select id from events where exists (select 1 from events f where 10 / f.n > 0)",
        "select id from events where id in (select cast(text as int) from events)",
        "select id from events group by id, n having 10 / n > 0",
        "select id from events group by id, 10 / n",
        "select id from events order by 10 / n limit 10",
        "select id from (select id, sum(10 / n) over (order by id) from events) s",
        "select id from (select id, max(cast(text as int)) filter (where 10 / n > 0) as m from events group by id) s",
        "select id from events where 10 / n > 0 union select id from events where 10 / n > 0",
        "select id from events where split_part(text, ' ', cast(text as int)) is not null",
        "select id from events where coalesce(10 / nullif(n, 5), 1) > 0",
    ] {
        assert_eq!(bench.sees(sql, &grants).await, ["1", "3", "4", "6"], "{sql}");
    }
    for sql in [
        "select max(10 / n) from events",
        "select count(*) from events where cast(text as int) > 0",
        "explain analyze select id from events where 10 / n > 0",
    ] {
        bench.sees(sql, &grants).await;
    }
    for value in [ScalarValue::from(0_i64), ScalarValue::from("x")] {
        let mut options = user("ann", grants.to_vec());
        options.parameters = vec![value];
        let sql = "select id from events where 10 / n > 0 and cast(text as varchar) <> cast($1 as varchar)";
        assert_eq!(lines(&bench.engine, sql, options).await.unwrap(), ["1", "3", "4", "6"]);
    }
    // In rows that are visible it is the caller's own error.
    let error = bench.refuses("select id from events where 10 / (n - 7) > 0", &grants).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // A cell that is hidden in a visible row is null before anything is computed of it.
    let masked = [Grant { columns: only(&["id", "country"]), ..on("events") }, rows("n > 0")];
    for sql in [
        "select count(10 / n) from events",
        "select count(cast(text as int)) from events where 10 / n is null or n > 0",
    ] {
        assert_eq!(bench.sees(sql, &masked).await, ["4"], "{sql}");
    }
    assert_eq!(bench.sees("select id from events where n = 0", &masked).await, [""; 0]);
    assert_eq!(bench.sees("select id from events where n is null", &masked).await, ["2", "5", "7"]);
}

#[tokio::test]
async fn a_filter_of_a_grant_that_fails_tells_no_value() {
    let bench = access_bench();
    for filter in ["10 / n > 1", "cast(text as int) > 0", "cast(text as int) > 0 and n >= 0"] {
        let error = bench.refuses("select id from events", &[rows(filter)]).await;
        assert_eq!(
            error.to_string(),
            "what is granted of `events` cannot be read: the row filter of a grant fails",
            "{filter}"
        );
    }
}

#[tokio::test]
async fn plans_show_nothing_behind_the_barrier() {
    let bench = access_bench();
    let grants = [rows("email = 'ann@x' and n > 2")];
    for explain in ["explain", "explain verbose", "explain analyze", "explain analyze verbose"] {
        let shown = bench.sees(&format!("{explain} select count(*) from events where n > 3"), &grants).await.join("\n");
        let granted = if explain.contains("verbose") { "GrantedExec: table=events" } else { "Granted: table=events" };
        assert!(shown.contains(granted), "{shown}");
        for hidden in
            ["ann@x", "email", "DataSource", "Scan of", "FilterExec", "output_rows=7", "output_rows=3", "rows=7"]
        {
            assert!(!shown.contains(hidden), "{explain} shows {hidden}: {shown}");
        }
    }
    let open = bench.sees("explain analyze select id from events", &[on("events")]).await.join("\n");
    assert!(
        open.contains("Scan of memory") && !open.contains("Granted"),
        "nothing stands before what is all granted: {open}"
    );
}

#[tokio::test]
async fn what_is_not_granted_is_not_there() {
    let bench = access_bench();
    let none = "table `salaries` does not exist";
    let granted = [on("events"), on("pays"), on("on_pays"), on("salariez")];
    for sql in [
        "select * from salaries",
        "select * from main.salaries",
        "select * from headworks.main.salaries",
        "select 1 from salaries",
        "select * from salaries at (version => 1)",
        "describe salaries",
        "explain select * from salaries",
        "explain analyze select * from salaries",
        "select * from events where exists (select 1 from salaries)",
        "with x as (select * from salaries) select 1",
        "select * from events union select * from salaries",
    ] {
        let error = bench.refuses(sql, &granted).await;
        assert_eq!((error.to_string().as_str(), error.kind()), (none, ErrorKind::NotFound), "{sql}");
        assert_eq!(error.hint().as_deref(), Some("`headworks tables list` shows all tables"), "{sql}");
    }
    // It looks like one that there is not.
    let error = bench.refuses("select * from nonsense", &granted).await;
    assert_eq!(error.hint().as_deref(), Some("`headworks tables list` shows all tables"));
    // A near miss is told only of what is visible.
    assert!(bench.refuses("select * from event", &granted).await.hint().unwrap().contains("`events`"));
    assert!(!bench.refuses("select * from event", &[on("plain")]).await.hint().unwrap().contains("`events`"));
    assert!(
        !bench.refuses("select * from events_lates", &[on("plain")]).await.hint().unwrap().contains("events_latest")
    );
    assert_eq!(bench.refuses("select * from events_latest", &[on("plain")]).await.kind(), ErrorKind::NotFound);
    let at_a_version = bench.refuses("select * from events_latest at (version => 1)", &[on("plain")]).await;
    assert_eq!(at_a_version.kind(), ErrorKind::NotFound, "{at_a_version}");
    // Views read with the caller's rights, however many stand on each other.
    for sql in ["select * from pays", "select * from on_pays"] {
        let error = bench.refuses(sql, &granted).await.to_string();
        assert!(error.contains(none), "{sql}: {error}");
    }
    let of_view_only = bench.refuses("select * from on_all_events", &[on("events"), on("on_all_events")]).await;
    assert!(of_view_only.to_string().contains("table `all_events` does not exist"), "{of_view_only}");
    assert_eq!(bench.refuses("select * from all_events", &[on("events")]).await.kind(), ErrorKind::NotFound);
    // Without a grant nothing is there.
    for name in ["events", "plain", "pays", "events_latest"] {
        assert_eq!(bench.refuses(&format!("select 1 from {name}"), &[]).await.kind(), ErrorKind::NotFound);
    }
    assert_eq!(lines(&bench.engine, "select 1", user("ann", Vec::new())).await.unwrap(), ["1"]);
    assert_eq!(lines(&bench.engine, "select count(*) from salaries", QueryOptions::default()).await.unwrap(), ["1"]);
}

#[tokio::test]
async fn grants_on_views_hold_above_those_on_their_tables() {
    let bench = access_bench();
    let few = Grant { columns: only(&["id", "n"]), rows: Some("n > 2".to_owned()), ..on("on_all_events") };
    let grants = || {
        vec![rows("country = 'DE'"), on("all_events"), few.clone(), Grant { columns: only(&["n"]), ..on("by_country") }]
    };
    let sees = async |sql: &str| lines(&bench.engine, sql, user("bob", grants())).await.unwrap();
    assert_eq!(sees("select * from on_all_events").await, ["1 | 4", "3 | 7"]);
    assert_eq!(sees("select id from on_all_events where 10 / n > 0").await, ["1", "3"]);
    // A view that reads it sees no more of it than whoever asks.
    let error = lines(&bench.engine, "select * from by_country", user("bob", grants())).await.unwrap_err();
    assert!(error.to_string().contains("column `country` does not exist"), "{error}");
    let all = vec![on("*")];
    assert_eq!(
        lines(&bench.engine, "select * from by_country", user("bob", all)).await.unwrap(),
        ["DE | 4", "FR | 2", "NULL | 1"]
    );
    // Of a table with columns that its grant lacks, others are still there.
    let grants = vec![Grant { columns: only(&["id"]), ..on("all_events") }, on("events")];
    assert_eq!(lines(&bench.engine, "select * from all_events", user("bob", grants)).await.unwrap().len(), 7);
}

#[tokio::test]
async fn lists_show_what_is_granted() {
    let bench = access_bench();
    let grants = [
        on("ev*"),
        Grant { columns: only(&["who"]), ..on("salaries") },
        on("pays"),
        Grant { columns: only(&["zzz"]), ..on("plain") },
    ];
    let sees = async |sql: &str| lines(&bench.engine, sql, user("bob", grants.to_vec())).await.unwrap();
    let own = "select table_name from information_schema.tables where table_schema = 'main'";
    assert_eq!(sees(own).await, ["events", "events_latest", "pays", "salaries"]);
    assert_eq!(
        sees("show tables").await,
        ["events | BASE TABLE", "events_latest | VIEW", "pays | VIEW", "salaries | BASE TABLE"]
    );
    assert_eq!(sees("select column_name from information_schema.columns where table_name = 'salaries'").await, ["who"]);
    assert_eq!(
        sees("select distinct table_name from information_schema.columns").await,
        ["events", "events_latest", "pays", "salaries"]
    );
    let views = "select table_name, view_definition from information_schema.views";
    assert_eq!(sees(views).await, ["events_latest | NULL", "pays | select pay from salaries"]);
    let nothing = lines(&bench.engine, own, user("bob", Vec::new())).await.unwrap();
    assert_eq!(nothing, [""; 0]);
}

#[tokio::test]
async fn answers_are_shared_by_those_with_the_same_rights_only() {
    let bench = access_bench();
    let asks = async |name: &str, grants: Vec<Grant>| {
        let stream = bench.engine.query("select id from events", user(name, grants)).await.unwrap();
        let is_cached = stream.state().is_cached;
        let rows = futures::TryStreamExt::try_collect::<Vec<RecordBatch>>(stream).await.unwrap();
        (rows.iter().map(RecordBatch::num_rows).sum::<usize>(), is_cached)
    };
    let german = || vec![rows("country = 'DE'")];
    let own = || vec![rows("email = current_user || '@x'")];
    assert_eq!(asks("ann", vec![on("*")]).await, (7, false));
    assert_eq!(asks("bob", vec![on("*")]).await, (7, true));
    assert_eq!(asks("ann", german()).await, (4, false));
    assert_eq!(asks("bob", german()).await, (4, true), "others with the same grants");
    assert_eq!(asks("ann", own()).await, (3, false));
    assert_eq!(asks("bob", own()).await, (1, false), "a filter that names the user");
    assert_eq!(asks("bob", own()).await, (1, true));
    assert_eq!(asks("ann", vec![Grant { columns: only(&["id"]), ..on("events") }]).await, (7, false));
    // What a filter says of the time is not kept.
    let timely = || vec![rows("now() > timestamp '2020-01-01'")];
    assert_eq!(asks("ann", timely()).await, (7, false));
    assert_eq!(asks("ann", timely()).await, (7, false));
    let nobody = lines(&bench.engine, "select id from events", user("eve", Vec::new())).await;
    assert!(matches!(nobody, Err(Error::UnknownTable { .. })));
}

#[tokio::test]
async fn filters_are_read_as_conditions_on_one_row() {
    let bench = access_bench();
    let check = async |filter: &str| bench.engine.check_grant(rows(filter)).await;
    for good in [
        "country = 'DE'",
        "n > 0 -- with a comment",
        "email = CURRENT_USER",
        "ds >= '2013-01-01' and event_type in ('view', 'buy')",
        "lower(country) like 'd%' or country is null",
        "true",
    ] {
        let checked = check(good).await.unwrap_or_else(|error| panic!("{good}: {error}"));
        assert!(checked.unfitting.is_empty() && checked.fitting == names(&["events"]), "{good}: {checked:?}");
    }
    for unreadable in
        ["", "n >", "n > 0; drop table events", "n > 0) or (true", "n > 0, true", "'x", "select true", "true as x"]
    {
        assert!(check(unreadable).await.is_err(), "{unreadable}");
    }
    let subquery = check("id in (select id from salaries)").await.unwrap_err();
    assert_eq!(subquery.to_string(), "a row filter cannot have a subquery in it");
    for (unfit, reason) in [
        ("cuontry = 'DE'", "column `cuontry` does not exist"),
        ("n", "a row filter is true or false for a row, and this one gives bigint"),
        ("count(*) > 1", "a row filter cannot have a function over many rows in it"),
        ("row_number() over () = 1", "a row filter cannot have a function over many rows in it"),
        ("n = $1", "a row filter cannot have a parameter in it"),
        ("random() > 0.5", "a row filter cannot have a function that gives something else each time in it"),
        ("nonsense(n)", "invalid function `nonsense`"),
        ("n and true", "cannot"),
    ] {
        let checked = check(unfit).await.unwrap_or_else(|error| panic!("{unfit}: {error}"));
        let [(name, error)] = checked.unfitting.as_slice() else { panic!("{unfit}: {checked:?}") };
        assert!(name == "events" && error.to_string().to_lowercase().contains(reason), "{unfit}: {error}");
        assert!(checked.fitting.is_empty());
        assert_eq!(bench.refuses("select id from events", &[rows(unfit)]).await.kind(), ErrorKind::NotFound, "{unfit}");
    }
    let check = async |grant: Grant| bench.engine.check_grant(grant).await.unwrap();
    let mixed = check(Grant { days: days(Some("2013-01-01"), None), ..on("*") }).await;
    assert!(mixed.fitting.contains("events") && mixed.fitting.contains("all_events"), "{mixed:?}");
    let unfit: BTreeMap<&str, String> =
        mixed.unfitting.iter().map(|(name, error)| (name.as_str(), error.to_string())).collect();
    assert_eq!(unfit["plain"], "it has no column `ds` of days");
    let typo = check(Grant { columns: only(&["id", "emial"]), ..on("events") }).await;
    assert_eq!(typo.unfitting[0].1.to_string(), "there is no column `emial`");
    assert_eq!(typo.unfitting[0].1.hint().as_deref(), Some("did you mean `email`?"));
    assert!(check(on("nothing_*")).await.fitting.is_empty());
    // A name is a text, whatever is in it.
    let tricky = lines(&bench.engine, "select id from events", {
        let access = Access::granted(&"o-brien".parse().unwrap(), vec![rows("email = current_user")]);
        let mut options = user("ann", Vec::new());
        options.caller.access = Arc::new(access);
        options
    });
    assert_eq!(tricky.await.unwrap(), [""; 0]);
}

/// A table that remembers the filters of its scans.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn TableProvider>,
    filters: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl TableProvider for Watched {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> datafusion::error::Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        self.filters.lock().unwrap().extend(filters.iter().map(ToString::to_string));
        self.inner.scan(state, projection, &[], None).await
    }
}

#[tokio::test]
async fn harmless_filters_and_granted_days_reach_the_table() {
    let filters = Arc::<Mutex<Vec<String>>>::default();
    let mut lake = lake();
    let watched = Watched { inner: table(events(&ROWS)), filters: filters.clone() };
    lake.tables.insert((6, "events"), Arc::new(watched));
    let bench = bench_with(lake, |_| {});
    let grants = [Grant { days: days(Some("2013-01-01"), Some("2013-01-03")), ..on("events") }];
    let pushed = async |sql: &str, grants: &[Grant]| {
        filters.lock().unwrap().clear();
        bench.sees(sql, grants).await;
        filters.lock().unwrap().join(", ")
    };
    let sql =
        "select id from events where ds = '2013-01-02' and country = 'DE' and 10 / n > 0 and cast(text as int) > 0";
    let found = pushed(sql, &grants).await;
    for wanted in
        ["ds = Date32(\"2013-01-02\")", "country = ", "ds >= Date32(\"2013-01-01\")", "ds <= Date32(\"2013-01-03\")"]
    {
        assert!(found.contains(wanted), "{found}");
    }
    assert!(!found.contains(" / ") && !found.contains("CAST"), "{found}");
    let latest = pushed("select id from events_latest", &grants).await;
    assert!(latest.contains("ds = Date32(\"2013-01-03\")"), "{latest}");
    // Nobody learns of a day that is newer than all of theirs.
    let old = [Grant { days: days(None, Some("2013-01-02")), ..on("events") }];
    assert_eq!(pushed("select id from events_latest", &old).await, "");
    let shown = bench.sees("explain verbose select id from events_latest", &old).await.join("\n");
    assert!(!shown.contains("2013-01-03"), "{shown}");
    let hidden_ds = [Grant { columns: only(&["id"]), ..on("events") }];
    assert_eq!(bench.sees("select id from events_latest", &hidden_ds).await, ["5", "6"]);
}

#[tokio::test]
async fn queries_that_are_cut_up_obey_as_well() {
    let dir = tempfile::TempDir::new().unwrap();
    let options = EngineOptions { parallel_bytes_min: 0, ..EngineOptions::new(dir.path().join("spill"), 4) };
    let engine = Engine::new(Arc::new(lake()), options).unwrap();
    for (kind, cases) in cases() {
        let mut grants: Vec<Grant> = cases.iter().map(|case| case.grant.clone()).collect();
        grants.extend(["all_events", "on_all_events"].map(on));
        let (columns, all) = expected(&cases, &ROWS);
        for form in WAYS {
            let sql = way(form, &columns.join(", "));
            let options = QueryOptions { is_cached: false, ..user("ann", grants.clone()) };
            assert_eq!(lines(&engine, &sql, options).await.unwrap(), all, "{kind}: {sql}");
        }
    }
}
