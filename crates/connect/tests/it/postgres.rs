use std::sync::Arc;

use futures::StreamExt;
use headworks_connect::{
    ConnectionSpec, Error, Names, ReadRequest, Source, SourceOptions, Specials, open, open_with, types,
};
use headworks_domain::{ErrorKind, Fault, Secret};
use headworks_testkit::{PostgresOptions, TempPostgres};

use crate::{by, collect, column, read, request, shown};

const TYPES: &str = include_str!("../fixtures/types.sql");

struct Database {
    name: String,
    url: String,
}

impl Database {
    fn new(sql: &str) -> Self {
        let url = TempPostgres::shared().unwrap().create_database().unwrap();
        let database = Self { name: url.rsplit('/').next().unwrap().to_owned(), url };
        database.run(sql);
        database
    }

    fn run(&self, sql: &str) -> String {
        TempPostgres::shared().unwrap().psql(&self.name, sql).unwrap()
    }

    fn source(&self) -> Arc<dyn Source> {
        open("production", &ConnectionSpec::Postgres { url: Secret::new(&self.url) }).unwrap()
    }
}

async fn failure(source: &dyn Source, request: ReadRequest) -> Error {
    read(source, request).await.unwrap_err()
}

/// Types that must be read otherwise for a value's sake, and what the errors suggest for them.
fn ways_out() -> [(String, String); 2] {
    ["n", "clock_end"].map(|c| (c.to_owned(), "varchar".to_owned()))
}

#[tokio::test]
async fn every_type_is_exact_or_reported() {
    let database = Database::new(TYPES);
    let db = database.source();
    let mut wanted = request("Odd Types");
    let mut refused = Vec::new();
    let (batch, report) = loop {
        match read(&*db, wanted.clone()).await {
            Ok(done) => break done,
            Err(Error::Value(error)) => {
                assert_eq!(error.row, "with id = `1`");
                wanted.types.insert(error.column.clone(), error.instead.clone());
                refused.push((error.column.clone(), error.instead.clone()));
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(refused, ways_out());
    let warned: Vec<_> = report.warnings.iter().map(|w| (w.column.as_str(), w.count)).collect();
    assert_eq!(warned, [("n_nan", 1), ("n_inf", 1), ("tz_inf", 1), ("day_inf", 1)]);
    for (name, kind, value) in [
        ("id", "integer", "1"),
        ("select", "varchar", "a"),
        ("Order", "integer", "2"),
        ("a.b", "varchar", "b"),
        ("with space", "decimal(38,9)", "1.500000000"),
        ("ümlaut", "varchar", "ü"),
        ("1st", "integer", "3"),
        ("col-dash", "varchar", "c"),
        ("quo\"te", "varchar", "d"),
        ("src_ds", "date", "2020-02-02"),
        ("twice", "integer", "4"),
        ("n", "varchar", "123456789012345678901234567890.123456789"),
        ("n38", "decimal(38,10)", "1.5000000000"),
        ("n_left", "decimal(6,0)", "12300"),
        ("n_right", "decimal(5,5)", "0.00123"),
        ("n_nan", "decimal(38,9)", "∅"),
        ("n_inf", "decimal(38,9)", "∅"),
        ("i2", "smallint", "-32768"),
        ("i8", "bigint", "9223372036854775807"),
        ("f4", "real", "NaN"),
        ("f8", "double", "1e308"),
        ("ok", "boolean", "true"),
        ("cash", "decimal(19,2)", "1234.50"),
        ("big_oid", "bigint", "4294967295"),
        ("ts", "timestamp", "-0043-03-15T01:02:03.000001"),
        ("tz", "timestamptz", "2019-12-31T18:30:00.123456Z"),
        ("tz_inf", "timestamptz", "∅"),
        ("day", "date", "9999-12-31"),
        ("day_inf", "date", "∅"),
        ("clock", "time", "23:59:59.999999"),
        ("clock_end", "varchar", "24:00:00"),
        ("clock_zone", "varchar", "10:00:00+02"),
        ("span", "varchar", "P1Y2M3DT4H5M6.789S"),
        ("id_u", "varchar", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("raw", "blob", "deadbeef"),
        ("js", "varchar", "{\"a\":1,\"a\":2}"),
        ("tags", "varchar[]", "[a,b, c\"d, ∅]"),
        ("nums", "integer[]", "[1, ∅, 3]"),
        ("grid", "varchar", "[[1,2],[3,4]]"),
        ("prices", "decimal(10,2)[]", "[1.25, -3.00]"),
        ("hosts", "varchar[]", "[10.0.0.1/32]"),
        ("jsons", "varchar", "[{\"x\": 1}]"),
        ("host", "varchar", "10.0.0.1/24"),
        ("net", "varchar", "10.0.0.0/8"),
        ("mac", "varchar", "08:00:2b:01:02:03"),
        ("spot", "varchar", "(1,2)"),
        ("during", "varchar", "[\"2020-01-01 00:00:00+00\",)"),
        ("bits", "varchar", "10101"),
        ("var_bits", "varchar", "101"),
        ("doc", "varchar", "<a/>"),
        ("words", "varchar", "'a' 'b'"),
        ("padded", "varchar", "ab"),
        ("label", "varchar", "a name"),
        ("narrow", "varchar", "abc"),
        ("one", "varchar", "x"),
        ("feeling", "varchar", "happy ever after"),
        ("feelings", "varchar[]", "[sad]"),
        ("duo", "varchar", "{\"low\":1,\"high\":\"a b\"}"),
        ("duos", "varchar", "[{\"low\":2,\"high\":\"c\"}]"),
        ("price", "decimal(12,2)", "9999999999.99"),
        ("at", "timestamptz", "2020-06-01T12:00:00Z"),
        ("collated", "varchar", "z"),
    ] {
        assert_eq!(column(&batch, name)[0], value, "{name}");
        assert_eq!(types::name(batch.column_by_name(name).unwrap().data_type()), kind, "{name}");
        assert!(name == "id" || column(&batch, name)[1] == "∅", "{name}");
    }
    assert_eq!(column(&batch, "n1000")[0], format!("1{}.00", "0".repeat(500)));
    // The server writes a number of 400 zeros, and it stays one.
    assert_eq!(column(&batch, "jb")[0], format!("{{\"a\": 1, \"n\": 1{}}}", "0".repeat(400)));
    assert!(batch.column_by_name("gone").is_none());
    let strict = ReadRequest { specials: Specials::Fail, types: ways_out().into(), ..request("Odd Types") };
    assert!(failure(&*db, strict).await.to_string().contains("`NaN`"));
}

#[tokio::test]
async fn tables_are_described() {
    let database = Database::new(TYPES);
    let table = database.source().table("public.Odd Types").await.unwrap();
    assert_eq!((table.schema.as_deref(), table.name.as_str()), (Some("public"), "Odd Types"));
    assert_eq!(table.primary_key, ["id"]);
    assert_eq!(table.comment.as_deref(), Some("a table of odd types"));
    let of = |name: &str| table.columns.iter().find(|c| c.name == name).unwrap().clone();
    assert_eq!(of("Order").comment.as_deref(), Some("how many"));
    assert!(of("twice").generated && !of("Order").generated);
    assert!(!of("id").nullable && of("Order").nullable);
    assert_eq!(of("price").source_type, "amount");
    assert_eq!(of("n38").source_type, "numeric(38,10)");
    assert!(of("js").json && of("grid").json && !of("tags").json);
    assert!(table.columns.iter().all(|c| !c.name.contains("dropped")));
    let safe = ReadRequest { names: Names::Safe, types: ways_out().into(), ..request("Odd Types") };
    let reader = database.source().read(safe).await.unwrap();
    let names: Vec<_> = reader.columns.iter().map(|c| c.name.as_str()).take(10).collect();
    assert_eq!(names, ["id", "select", "order", "a_b", "with_space", "_mlaut", "_1st", "col_dash", "quo_te", "src_ds"]);
}

#[tokio::test]
async fn types_are_read_as_wanted_or_refused() {
    let database = Database::new(
        "create table t(id int primary key, n numeric, s text, f float8, z timestamptz, a int[]); \
         insert into t values (7, 1.005, '2020-01-01', 0.1, '2020-01-01 00:00+00', '{{1,2}}')",
    );
    let db = database.source();
    let want = |column: &str, kind: &str| ReadRequest {
        columns: vec!["id".into(), column.into()],
        types: [(column.to_owned(), kind.to_owned())].into(),
        ..request("t")
    };
    for (name, kind, expected) in [
        ("n", "double", "1.005"),
        ("n", "decimal(10,3)", "1.005"),
        ("n", "varchar", "1.005"),
        ("s", "date", "2020-01-01"),
        ("s", "timestamp", "2020-01-01T00:00:00"),
        ("s", "json", "2020-01-01"),
        ("f", "decimal(5,2)", "0.10"),
        ("z", "timestamp", "2020-01-01T00:00:00"),
        ("a", "json", "[[1,2]]"),
    ] {
        let (batch, _) = read(&*db, want(name, kind)).await.unwrap();
        assert_eq!(column(&batch, name), [expected], "{name} {kind}");
    }
    let error = failure(&*db, want("n", "decimal(10,2)")).await;
    assert_eq!(
        shown(&error),
        "connection `production`: column `n` of `t` has `1.005`, which is not exactly a decimal(10,2) in the row with id = `7`\n\
         hint: read the column as it is written: `types: {\"n\": varchar}` in the job's import"
    );
    assert_eq!(failure(&*db, want("n", "bigint")).await.code(), "CONNECT_VALUE");
    assert_eq!(failure(&*db, want("z", "date")).await.code(), "CONNECT_TYPE");
    assert_eq!(failure(&*db, want("n", "bigit")).await.code(), "CONNECT_UNKNOWN_TYPE");
    let error = failure(&*db, want("a", "integer[]")).await;
    assert!(shown(&error).contains("an array of 2 dimensions") && shown(&error).contains("{\"a\": json}"), "{error}");
    let error = failure(&*db, want("s", "bigint")).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn intervals_are_cut_by_the_columns_own_type() {
    let database = Database::new(
        "create table t(id int, tz timestamptz, ts timestamp, d date, n int); \
         insert into t select i, t, t at time zone 'America/New_York', (t at time zone 'America/New_York')::date, i \
         from generate_series(0, 71) i, lateral (select '2013-01-01 00:00+00'::timestamptz + i * interval '1 hour' t) x",
    );
    let db = database.source();
    let day = |column: &str| ReadRequest {
        by: by(column, "2013-01-02T05:00:00Z", "2013-01-03T05:00:00Z", "America/New_York"),
        filter: Some("id % 2 = 0 or true -- all".into()),
        ..request("t")
    };
    for name in ["tz", "ts", "d"] {
        let (batch, _) = read(&*db, day(name)).await.unwrap();
        let ids: Vec<i64> = column(&batch, "id").iter().map(|i| i.parse().unwrap()).collect();
        assert_eq!(ids, (29..53).collect::<Vec<_>>(), "{name}");
    }
    let error = failure(&*db, day("n")).await;
    assert!(error.to_string().contains("cannot cut the interval: it is integer"), "{error}");
    let hour = by("d", "2013-01-02T06:00:00Z", "2013-01-02T07:00:00Z", "America/New_York");
    assert_eq!(failure(&*db, ReadRequest { by: hour, ..request("t") }).await.code(), "CONNECT_BY");
}

#[tokio::test]
async fn unknown_names_have_near_misses() {
    let database = Database::new(
        "create schema sales; create table flights(a int); create table sales.orders(a int); create view v as select 1 as x; \
         create materialized view m as select 1 as y; create table parted(a int) partition by list (a); \
         create table part1 partition of parted for values in (1); insert into parted values (1); create table \"a.b\"(c int)",
    );
    let db = database.source();
    assert_eq!(db.tables().await.unwrap(), ["a.b", "flights", "m", "parted", "v", "sales.orders"]);
    for (table, rows) in
        [("v", 1), ("m", 1), ("parted", 1), ("sales.orders", 0), ("\"sales\".\"orders\"", 0), ("a.b", 0)]
    {
        assert_eq!(read(&*db, request(table)).await.unwrap().0.num_rows(), rows, "{table}");
    }
    assert_eq!(
        shown(&failure(&*db, request("flihgts")).await),
        "connection `production` has no table `flihgts`\nhint: did you mean `flights`?"
    );
    assert!(shown(&failure(&*db, request("orders")).await).contains("did you mean `sales.orders`?"));
    assert!(shown(&failure(&*db, request("zzz")).await).contains("it has `a.b`, `flights`"));
    let error = failure(&*db, ReadRequest { filter: Some("nope = 1".into()), ..request("flights") }).await;
    assert!(error.to_string().contains("cannot read table `flights`: column \"nope\" does not exist"), "{error}");
    // The connection that failed is not used again, and the source goes on.
    read(&*db, request("flights")).await.unwrap();
}

#[tokio::test]
async fn servers_that_refuse_say_why() {
    let unreachable = ConnectionSpec::Postgres { url: Secret::new("postgres://u:geheim@127.0.0.1:1/d") };
    let error = open("production", &unreachable).unwrap().check().await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true), "{error}");
    assert!(!format!("{error:?}").contains("geheim"));
    let database = Database::new(
        "create table secret(a int); drop role if exists guest; create role guest login; create table open(a int, b int); grant select (a) on open to guest",
    );
    let elsewhere = database.url.replace(&database.name, "nowhere");
    let error = open("production", &ConnectionSpec::Postgres { url: Secret::new(elsewhere) }).unwrap().check().await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    let (start, rest) = database.url.split_once("://").unwrap();
    let host = rest.split_once('@').unwrap().1;
    let guest = ConnectionSpec::Postgres { url: Secret::new(format!("{start}://guest@{host}")) };
    let guest = open("production", &guest).unwrap();
    let error = failure(&*guest, request("secret")).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(shown(&error).contains("grant SELECT"), "{error}");
    // Some columns may be enough.
    read(&*guest, ReadRequest { columns: vec!["a".into()], ..request("open") }).await.unwrap();
}

#[tokio::test]
async fn an_altered_table_is_seen_anew() {
    let database = Database::new("create table t(a int4); insert into t values (1)");
    let db = database.source();
    assert_eq!(column(&read(&*db, request("t")).await.unwrap().0, "a"), ["1"]);
    // The same width on the wire, so that only the definition tells.
    database.run("alter table t alter a type real using 1.5");
    assert_eq!(column(&read(&*db, request("t")).await.unwrap().0, "a"), ["1.5"]);
    database.run("drop table t; create table t(b text)");
    assert_eq!(read(&*db, request("t")).await.unwrap().0.schema().field(0).name(), "b");
    database.run("drop table t");
    assert_eq!(failure(&*db, request("t")).await.code(), "CONNECT_UNKNOWN_TABLE");
}

#[tokio::test]
async fn a_snapshot_sees_one_moment_or_fails() {
    let database = Database::new(
        "create table a(x int); create table b(x int); create table c(x int); \
         insert into a values (1); insert into b values (1); insert into c values (1)",
    );
    let db = database.source();
    let snapshot = db.snapshot().await.unwrap();
    database.run("insert into a values (2); insert into b values (2)");
    for table in ["a", "b"] {
        let (batch, _) = collect(snapshot.read(request(table)).await.unwrap()).await.unwrap();
        assert_eq!(batch.num_rows(), 1, "{table}");
    }
    // PostgreSQL would show the snapshot an empty table.
    database.run("alter table c alter x type real");
    assert_eq!(snapshot.read(request("c")).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(snapshot.read(request("a")).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_server_that_dies_is_no_end_of_the_table() {
    let mut server = TempPostgres::start().unwrap();
    server
        .psql("postgres", "create table t as select i as a, repeat('x', 1000) as b from generate_series(1, 200000) i")
        .unwrap();
    let db = open("production", &ConnectionSpec::Postgres { url: Secret::new(server.url()) }).unwrap();
    let mut reader = db.read(request("t")).await.unwrap();
    reader.stream.next().await.unwrap().unwrap();
    server.kill().unwrap();
    let error = loop {
        match reader.stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it came to an end"),
        }
    };
    assert!(error.is_retryable(), "{error:?}");
    server.restart().unwrap();
    let (batch, _) = read(&*db, request("t")).await.unwrap();
    assert_eq!(batch.num_rows(), 200_000);
}

#[tokio::test]
async fn big_tables_are_read_in_parts_of_one_moment() {
    let settings = vec![("log_statement".to_owned(), "all".to_owned())];
    let server = TempPostgres::start_with(PostgresOptions { settings, ..PostgresOptions::default() }).unwrap();
    server
        .psql("postgres", "create table t as select i as a, repeat('x', 200) as b, 'NaN'::numeric as n from generate_series(1, 50000) i")
        .unwrap();
    let spec = ConnectionSpec::Postgres { url: Secret::new(server.url()) };
    let options = SourceOptions { part_bytes: 1 << 20, connections_max: 3, ..SourceOptions::default() };
    let db = open_with("production", &spec, options.clone()).unwrap();
    let reader = db.read(request("t")).await.unwrap();
    // The parts that are not begun yet do not see this.
    server.psql("postgres", "update t set a = -a where a % 3 = 0; delete from t where a % 5 = 0").unwrap();
    let (batch, report) = collect(reader).await.unwrap();
    let mut ids: Vec<i64> = column(&batch, "a").iter().map(|i| i.parse().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=50_000).collect::<Vec<_>>());
    assert_eq!(report.warnings[0].count, 50_000);
    let log = server.log();
    assert!(log.matches("ctid >= ").count() > 5, "{log}");
    assert_eq!(log.matches("SET TRANSACTION SNAPSHOT").count(), 2, "{log}");
    // A value that does not fit ends all of them, and so does a reader that leaves; the source goes on.
    let strict = ReadRequest { specials: Specials::Fail, ..request("t") };
    assert_eq!(failure(&*db, strict).await.code(), "CONNECT_VALUE");
    db.read(request("t")).await.unwrap().stream.next().await.unwrap().unwrap();
    assert_eq!(read(&*db, request("t")).await.unwrap().0.num_rows(), 40_000);
}

#[tokio::test]
async fn readers_may_leave() {
    let database =
        Database::new("create table t as select i as a, repeat('x', 100) as b from generate_series(1, 100000) i");
    let options = SourceOptions { connections_max: 2, batch_bytes_max: 1 << 20, ..SourceOptions::default() };
    let db = open_with("production", &ConnectionSpec::Postgres { url: Secret::new(&database.url) }, options).unwrap();
    for _ in 0..6 {
        let mut reader = db.read(request("t")).await.unwrap();
        let batch = reader.stream.next().await.unwrap().unwrap();
        assert!(batch.num_rows() <= 16_384);
    }
    let (batch, report) = read(&*db, request("t")).await.unwrap();
    assert_eq!((batch.num_rows(), report.rows), (100_000, 100_000));
}

#[tokio::test]
async fn the_first_value_of_a_query_is_true_or_not() {
    let database =
        Database::new("CREATE TABLE loads(day date, ok boolean); INSERT INTO loads VALUES ('2026-01-01', true)");
    let db = database.source();
    let own = [
        ("select ok from loads where day = '2026-01-01'", true, "true"),
        ("select 1 = 2", false, "false"),
        ("select 0.00::numeric", false, "0.00"),
        ("select 'NaN'::float8", true, "NaN"),
        ("select 1e-300::float8", true, "1e-300"),
        ("select array[]::int[]", true, "{}"),
        ("select generate_series(1, 100000000)", true, "1"),
        ("with x as (select 7 as n) select n from x; -- a comment", true, "7"),
    ];
    crate::first_values(&*db, &own).await;
    let within = std::time::Duration::from_secs(30);
    for wrong in ["select a from nowhere", "selec 1", "delete from loads returning 1", "select 1; select 2", ""] {
        let error = db.first_value(wrong, within).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Invalid, false), "{wrong}: {}", shown(&error));
    }
    // What a function does counts too.
    database.run("CREATE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM loads RETURNING 1'");
    assert!(db.first_value("select wipe()", within).await.unwrap_err().to_string().contains("read-only"));
    let error = db.first_value("select pg_sleep(60)", std::time::Duration::from_millis(100)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true), "{}", shown(&error));
    assert_eq!(database.run("SELECT count(*) FROM loads").trim(), "1");
}
