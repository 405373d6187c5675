use std::{path::Path, sync::Arc};

use futures::{StreamExt, TryStreamExt};
use headworks_connect::{ConnectionSpec, Error, Names, ReadRequest, Source, open};
use headworks_domain::{ErrorKind, Fault};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use crate::{by, collect, column, read, request, shown};

async fn run(path: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut db = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

fn source(path: &Path) -> Arc<dyn Source> {
    open("production", &ConnectionSpec::Sqlite { path: path.into() }).unwrap()
}

async fn database(sql: &'static str) -> (TempDir, Arc<dyn Source>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("production.db");
    run(&path, sql).await;
    let source = source(&path);
    (dir, source)
}

async fn failure(source: &dyn Source, request: ReadRequest) -> Error {
    read(source, request).await.unwrap_err()
}

#[tokio::test]
async fn wrong_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let spec = |name: &str| ConnectionSpec::Sqlite { path: dir.path().join(name) };
    let missing = open("production", &spec("none.db")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(shown(&missing).contains("connection `production`: there is no file"), "{}", shown(&missing));
    std::fs::write(dir.path().join("text.db"), "id,name\n1,this is not a database\n").unwrap();
    assert_eq!(open("production", &spec("text.db")).unwrap_err().code(), "CONNECT_NOT_A_DATABASE");
    assert_eq!(open("production", &spec("")).unwrap_err().code(), "CONNECT_NOT_A_DATABASE");
    // A good beginning and rubbish after it.
    std::fs::write(dir.path().join("cut.db"), [b"SQLite format 3\0".as_slice(), &[7; 5000]].concat()).unwrap();
    let cut = source(&dir.path().join("cut.db")).check().await.unwrap_err();
    assert!(["CONNECT_NOT_A_DATABASE", "CONNECT_REFUSED"].contains(&cut.code()), "{cut:?}");
    let empty = dir.path().join("empty.db");
    std::fs::write(&empty, "").unwrap();
    assert!(source(&empty).tables().await.unwrap().is_empty());
    let gone = source(&empty);
    std::fs::remove_file(&empty).unwrap();
    assert_eq!(gone.check().await.unwrap_err().code(), "CONNECT_MISSING");
}

#[tokio::test]
async fn unknown_names_have_near_misses() {
    let (_dir, db) =
        database("CREATE TABLE flights(a INTEGER, \"b c\" TEXT); CREATE VIEW airlines AS SELECT 1 AS x").await;
    assert_eq!(db.tables().await.unwrap(), ["airlines", "flights"]);
    let error = failure(&*db, request("flihgts")).await;
    assert_eq!(shown(&error), "connection `production` has no table `flihgts`\nhint: did you mean `flights`?");
    let error = failure(&*db, request("zzz")).await;
    assert_eq!(shown(&error), "connection `production` has no table `zzz`\nhint: it has `airlines`, `flights`");
    let error = failure(&*db, ReadRequest { columns: vec!["b_c".into()], ..request("flights") }).await;
    assert_eq!(
        shown(&error),
        "connection `production`: table `flights` has no column `b_c`\nhint: did you mean `b c`?"
    );
    let error = failure(&*db, ReadRequest { filter: Some("nope = 1".into()), ..request("flights") }).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("no such column: nope"), "{error}");
    // A comment does not swallow the bracket, and a second statement is not run.
    read(&*db, ReadRequest { filter: Some("a = 1 -- only one".into()), ..request("flights") }).await.unwrap();
    failure(&*db, ReadRequest { filter: Some("1); DROP TABLE flights; --".into()), ..request("flights") }).await;
}

#[tokio::test]
async fn awkward_names_are_quoted_and_mapped() {
    let (_dir, db) = database(
        "CREATE TABLE \"order\"(\"select\" INTEGER PRIMARY KEY, ds DATE, \"Ünï\" TEXT, \"with space\" TEXT, \"a\"\"b\" TEXT, rowid TEXT, \
         len INTEGER GENERATED ALWAYS AS (length(\"Ünï\")) VIRTUAL); \
         INSERT INTO \"order\" VALUES (1, '2013-01-01', 'x', 'y', 'z', 'r')",
    )
    .await;
    let table = db.table("main.order").await.unwrap();
    assert_eq!(table.primary_key, ["select"]);
    assert!(table.columns.last().unwrap().generated);
    let reader = db.read(request("order")).await.unwrap();
    let names: Vec<_> = reader.columns.iter().map(|c| (c.source_name.as_str(), c.name.as_str())).collect();
    assert_eq!(names[1], ("ds", "src_ds"));
    assert_eq!(names[4], ("a\"b", "a\"b"));
    let (batch, report) = collect(reader).await.unwrap();
    assert_eq!(report.rows, 1);
    assert_eq!(column(&batch, "src_ds"), ["2013-01-01"]);
    assert_eq!(column(&batch, "rowid"), ["r"]);
    assert_eq!(column(&batch, "len"), ["1"]);
    let safe = db.read(ReadRequest { names: Names::Safe, ..request("order") }).await.unwrap();
    let names: Vec<_> = safe.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["select", "src_ds", "_n_", "with_space", "a_b", "rowid", "len"]);
}

#[tokio::test]
async fn declared_types_hold_exactly_or_say_where_not() {
    let (_dir, db) = database(
        "CREATE TABLE good(b BOOLEAN, i INTEGER, r REAL, d DECIMAL(10,2), t TEXT, x BLOB, day DATE, ts DATETIME, tz TIMESTAMPTZ, c TIME, j JSON, u); \
         INSERT INTO good VALUES (1, -9223372036854775808, 0.1, 12.34, 'Ünï', x'00ff', '2013-01-31', '2013-01-31 10:00:00.5', \
           '2013-01-31T10:00:00+05:30', '23:59', '{\"a\":1,\"a\":2}', 1.5); \
         INSERT INTO good VALUES ('false', 7, 3, '5', '', x'', '2013-01-31T00:00:00', 1357016400, '2013-01-31 10:00:00Z', '00:00:00.000001', '[]', 'text'); \
         INSERT INTO good(b) VALUES (NULL)",
    )
    .await;
    let (batch, report) = read(&*db, request("good")).await.unwrap();
    assert!(report.warnings.is_empty());
    for (name, expected) in [
        ("b", ["true", "false", "∅"]),
        ("i", ["-9223372036854775808", "7", "∅"]),
        ("r", ["0.1", "3.0", "∅"]),
        ("d", ["12.34", "5.00", "∅"]),
        ("t", ["Ünï", "", "∅"]),
        ("x", ["00ff", "", "∅"]),
        ("day", ["2013-01-31", "2013-01-31", "∅"]),
        ("ts", ["2013-01-31T10:00:00.500", "2013-01-01T05:00:00", "∅"]),
        ("tz", ["2013-01-31T04:30:00Z", "2013-01-31T10:00:00Z", "∅"]),
        ("c", ["23:59:00", "00:00:00.000001", "∅"]),
        ("j", ["{\"a\":1,\"a\":2}", "[]", "∅"]),
        ("u", ["1.5", "text", "∅"]),
    ] {
        assert_eq!(column(&batch, name), expected, "{name}");
    }
    // Text is always a way out.
    let types = ["i", "r", "d", "day", "ts", "b"].map(|c| (c.to_owned(), "varchar".to_owned()));
    let (texts, _) = read(&*db, ReadRequest { types: types.into(), ..request("good") }).await.unwrap();
    assert_eq!(column(&texts, "ts"), ["2013-01-31 10:00:00.5", "1357016400", "∅"]);
}

#[tokio::test]
async fn misfits_name_table_column_value_and_row() {
    for (declared, value, expected) in [
        ("INTEGER", "'abc'", "`abc`, which is not exactly a bigint"),
        ("INTEGER", "1.5", "`1.5`, which is not exactly a bigint"),
        ("REAL", "9007199254740993 || ''", "not exactly a double"),
        ("DECIMAL(5,2)", "1.005", "`1.005`, which is not exactly a decimal(5,2)"),
        ("DECIMAL(5,2)", "1000", "`1000`, which is not exactly a decimal(5,2)"),
        ("BOOLEAN", "2", "`2`, which is not exactly a boolean"),
        ("DATE", "'01/02/2013'", "not exactly a date"),
        ("TIMESTAMP", "'2013-01-01T00:00:00Z'", "not exactly a timestamp"),
        ("TIMESTAMP", "1357016400000", "not exactly a timestamp"),
        ("TIMESTAMPTZ", "'2013-01-01 00:00:00'", "not exactly a timestamptz"),
        ("TEXT", "x'ff'", "`x'ff'`, which is not exactly a varchar"),
        ("TEXT", "CAST(x'ff' AS TEXT)", "not UTF-8"),
        ("BLOB", "'text'", "`text`, which is not exactly a blob"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut db = SqliteConnection::connect_with(&options).await.unwrap();
        let sql = format!("CREATE TABLE t(c {declared}); INSERT INTO t(rowid, c) VALUES (42, {value})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut db).await.unwrap();
        let result = read(&*source(&path), request("t")).await;
        if declared == "REAL" {
            // SQLite itself has rounded this one.
            result.unwrap();
            continue;
        }
        let text = shown(&result.unwrap_err());
        assert!(text.starts_with("connection `production`: column `c` of `t` has "), "{text}");
        assert!(
            text.contains(expected) && text.contains("with rowid 42") && text.contains("hint: "),
            "{declared} {value}: {text}"
        );
        assert!(text.contains("types: {\"c\": "), "{text}");
    }
}

const TIMES: &str = "CREATE TABLE z(id INTEGER PRIMARY KEY, at TIMESTAMPTZ); CREATE INDEX z_at ON z(at); \
    INSERT INTO z(at) VALUES ('2013-01-01T04:59:59.999Z'), ('2013-01-01T05:00:00Z'), ('2013-01-02T04:59:59Z'), ('2013-01-02T05:00:00Z'), (NULL); \
    CREATE TABLE local(id INTEGER PRIMARY KEY, at DATETIME); \
    INSERT INTO local(at) VALUES ('2012-12-31 23:59:59'), ('2013-01-01 00:00'), ('2013-01-01 23:59:59.9'), ('2013-01-02 00:00:00'); \
    CREATE TABLE epoch(id INTEGER PRIMARY KEY, at TIMESTAMP); \
    INSERT INTO epoch(at) VALUES (1357016399.5), (1357016400), (1357102799), (1357102800); \
    CREATE TABLE days(id INTEGER PRIMARY KEY, at DATE); \
    INSERT INTO days(at) VALUES ('2012-12-31'), ('2013-01-01'), ('2013-01-02'); \
    CREATE TABLE offset(id INTEGER PRIMARY KEY, at TEXT); \
    INSERT INTO offset(at) VALUES ('2013-01-01 06:59:59+02:00'), ('2013-01-01 07:00:00+02:00'), ('2013-01-02 06:59:00+02:00'), ('2013-01-02 07:00:00+02:00'); \
    CREATE TABLE empty(id INTEGER PRIMARY KEY, at TIMESTAMPTZ); INSERT INTO empty(at) VALUES (NULL); \
    CREATE VIEW v AS SELECT id, at FROM z WHERE at IS NOT NULL";

#[tokio::test]
async fn intervals_are_cut_in_every_stored_form() {
    let (_dir, db) = database(TIMES).await;
    let day = by("at", "2013-01-01T05:00:00Z", "2013-01-02T05:00:00Z", "America/New_York");
    for (table, expected) in [
        ("z", vec!["2", "3"]),
        ("v", vec!["2", "3"]),
        ("local", vec!["2", "3"]),
        ("epoch", vec!["2", "3"]),
        ("days", vec!["2"]),
        ("offset", vec!["2", "3"]),
        ("empty", vec![]),
    ] {
        let (batch, report) = read(&*db, ReadRequest { by: day.clone(), ..request(table) }).await.unwrap();
        assert_eq!(column(&batch, "id"), expected, "{table}");
        assert_eq!(report.warnings.len(), usize::from(table == "z"), "{table}: {report:?}");
    }
    let hour = by("at", "2013-01-01T05:00:00Z", "2013-01-01T06:00:00Z", "America/New_York");
    let error = failure(&*db, ReadRequest { by: hour, ..request("days") }).await;
    assert!(error.to_string().contains("does not begin and end with a day in America/New_York"), "{error}");
    let column = by("when", "2013-01-01T05:00:00Z", "2013-01-02T05:00:00Z", "UTC");
    assert_eq!(failure(&*db, ReadRequest { by: column, ..request("z") }).await.code(), "CONNECT_UNKNOWN_COLUMN");
}

#[tokio::test]
async fn mixed_forms_are_refused_also_when_they_come_later() {
    for (first, second) in [
        ("'2013-01-01T05:00:00Z'", "'2013-01-01 05:00:00Z'"),
        ("'2013-01-01T05:00:00Z'", "'2013-01-01T05:00:00+00:00'"),
        ("'2013-01-01T05:00:00Z'", "'2013-01-01T05:00:00'"),
        ("'2013-01-01T05:00:00'", "'2013-01-01T05:00:00-05:00'"),
        ("'2013-01-01'", "'2013-01-01T05:00:00'"),
        ("1357016400", "'2013-01-01T05:00:00Z'"),
        ("1357016400", "1357016400000"),
        ("'2013-01-01T05:00:00Z'", "'yesterday'"),
        ("'yesterday'", "NULL"),
        // Ids are no times.
        ("1", "2"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut db = SqliteConnection::connect_with(&options).await.unwrap();
        let sql = format!("CREATE TABLE t(at); INSERT INTO t VALUES ({first})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut db).await.unwrap();
        let source = source(&path);
        let day =
            || ReadRequest { by: by("at", "2013-01-01T00:00:00Z", "2013-01-02T00:00:00Z", "UTC"), ..request("t") };
        let before = read(&*source, day()).await;
        let insert = format!("INSERT INTO t VALUES ({second})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&mut db).await.unwrap();
        let error = match before {
            Ok(_) => failure(&*source, day()).await,
            Err(error) => error,
        };
        assert_eq!(error.code(), "CONNECT_BY", "{first} {second}");
        assert!(error.hint().is_some(), "{error}");
    }
}

#[tokio::test]
async fn an_index_on_the_column_is_used() {
    let (dir, db) = database(TIMES).await;
    let path = dir.path().join("production.db");
    let day = by("at", "2013-01-01T05:00:00Z", "2013-01-02T05:00:00Z", "UTC");
    read(&*db, ReadRequest { by: day, ..request("z") }).await.unwrap();
    let mut raw = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path)).await.unwrap();
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(
        "EXPLAIN QUERY PLAN SELECT \"z\".\"id\", \"z\".rowid FROM \"z\" WHERE \"z\".\"at\" >= '2013-01-01T05' AND \"z\".\"at\" < '2013-01-02T05'",
    )
    .fetch_all(&mut raw)
    .await
    .unwrap();
    assert!(plan[0].3.contains("USING COVERING INDEX z_at"), "{plan:?}");
}

#[tokio::test]
async fn an_altered_table_is_seen_anew() {
    let (dir, db) = database("CREATE TABLE t(a INTEGER); INSERT INTO t VALUES (1)").await;
    let (batch, _) = read(&*db, request("t")).await.unwrap();
    assert_eq!(batch.num_columns(), 1);
    run(&dir.path().join("production.db"), "ALTER TABLE t ADD COLUMN b TEXT DEFAULT 'x'").await;
    let (batch, _) = read(&*db, request("t")).await.unwrap();
    assert_eq!(column(&batch, "b"), ["x"]);
    run(&dir.path().join("production.db"), "DROP TABLE t").await;
    assert_eq!(failure(&*db, request("t")).await.code(), "CONNECT_UNKNOWN_TABLE");
}

#[tokio::test]
async fn batches_are_bounded_and_readers_may_leave() {
    let (_dir, db) = database(
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); \
         WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 40000) INSERT INTO t SELECT x, 'row ' || x FROM n",
    )
    .await;
    let mut rows = 0;
    let mut reader = db.read(request("t")).await.unwrap();
    while let Some(batch) = reader.stream.try_next().await.unwrap() {
        assert!(batch.num_rows() <= 16_384);
        rows += batch.num_rows();
    }
    assert_eq!((rows, reader.report.get().rows), (40_000, 40_000));
    // More readers than connections, each left after its first batch.
    for _ in 0..20 {
        let mut reader = db.read(request("t")).await.unwrap();
        reader.stream.next().await.unwrap().unwrap();
    }
    let (batch, _) = read(&*db, request("t")).await.unwrap();
    assert_eq!(batch.num_rows(), 40_000);
}

#[tokio::test]
async fn a_snapshot_sees_one_moment() {
    let (dir, db) = database("PRAGMA journal_mode = wal; CREATE TABLE a(x INTEGER); CREATE TABLE b(x INTEGER); INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)").await;
    let snapshot = db.snapshot().await.unwrap();
    let (before, _) = collect(snapshot.read(request("a")).await.unwrap()).await.unwrap();
    run(&dir.path().join("production.db"), "INSERT INTO a VALUES (2); INSERT INTO b VALUES (2)").await;
    let (after, _) = collect(snapshot.read(request("b")).await.unwrap()).await.unwrap();
    assert_eq!((before.num_rows(), after.num_rows()), (1, 1));
    let (now, _) = read(&*db, request("b")).await.unwrap();
    assert_eq!(now.num_rows(), 2);
}

#[tokio::test]
async fn a_writer_that_holds_the_lock_is_waited_for_and_then_reported() {
    let (dir, db) = database("CREATE TABLE t(a INTEGER)").await;
    let options = SqliteConnectOptions::new().filename(dir.path().join("production.db"));
    let mut writer = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("BEGIN EXCLUSIVE").execute(&mut writer).await.unwrap();
    let waiting = tokio::spawn(async move { read(&*db, request("t")).await });
    tokio::task::yield_now().await;
    sqlx::raw_sql("COMMIT").execute(&mut writer).await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_first_value_of_a_query_is_true_or_not() {
    let (_dir, db) =
        database("CREATE TABLE loads(day TEXT, ok BOOLEAN); INSERT INTO loads VALUES ('2026-01-01', 1), ('x', 0)")
            .await;
    crate::first_values(
        &*db,
        &[("select ok from loads where day = 'x'", false, "0"), ("select x'00ff'", true, "2 bytes")],
    )
    .await;
    let within = std::time::Duration::from_secs(30);
    let error = db.first_value("select a from nowhere", within).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Invalid, false));
    assert!(
        shown(&error).contains("connection `production`: cannot run the query: no such table: nowhere"),
        "{}",
        shown(&error)
    );
    assert_eq!(db.first_value("delete from loads returning 1", within).await.unwrap_err().kind(), ErrorKind::Denied);
    // A query without an end is ended, and keeps nobody from anything.
    let endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n";
    let error = db.first_value(endless, std::time::Duration::from_millis(100)).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true), "{}", shown(&error));
}
