//! The query service as clients meet it: HTTP with the Python package, Flight SQL with ADBC, and who asked what.

use headworks_testkit::{python, workspace_root};

use crate::{
    crew::{Serving, until},
    project::Project,
};

/// What a client is told on its command line: the address, a token, a user's name and password, the package's folder.
const CLIENTS: &str = r#"
import os, sys, signal, threading, time, urllib.request, urllib.error
address, token, user, password, package, postgres = sys.argv[1:7]
sys.path.insert(0, package)
os.environ["HEADWORKS_URL"] = f"http://{address}"
os.environ["HEADWORKS_TOKEN"] = token
import headworks
from adbc_driver_flightsql import dbapi

# The package.
rows = headworks.sql("select ds, n, name from numbers where n > $1 order by n, ds", [2])
assert len(rows) == 2 and not rows.is_cached, rows
assert rows.arrow().column_names == ["ds", "n", "name"]
frame = rows.pandas()
assert list(frame["n"]) == [3, 3], frame
assert headworks.sql("select ds, n, name from numbers where n > $1 order by n, ds", [2]).is_cached
assert headworks.sql("select count(*) as n from numbers").polars()["n"].to_list() == [6]
# Decimals stay exact, and none is a Python object unless asked for.
decimals = headworks.sql("select cast(n * 1.1 as decimal(12, 2)) as d from (values (1), (2), (3)) as t(n)")
assert str(decimals.pandas()["d"].dtype) == "decimal128(12, 2)[pyarrow]", decimals.pandas().dtypes
assert str(decimals.pandas()["d"].sum()) == str(sum(decimals.pandas(types_mapper=None)["d"])) == "6.60", decimals.pandas()
large = headworks.sql("select value, 'x' || value as t from generate_series(1, 300000)")
assert large.arrow().num_rows == 300_000
try:
    headworks.sql("select nothing from numbers")
    raise SystemExit("it should fail")
except headworks.HeadworksError as error:
    assert error.code == "SQL_PLAN" and "line 1, column 8" in str(error), error
try:
    headworks.Client(token="hw_wrong").sql("select 1")
    raise SystemExit("it should fail")
except headworks.HeadworksError as error:
    assert error.code == "AUTH_REQUIRED", error
# An interrupt stops the query on the server.
threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
endless = "select count(*) from generate_series(1, 10000000) a, generate_series(1, 10000000) b where a.value <> b.value"
try:
    headworks.sql(endless, progress=True)
    raise SystemExit("it should be interrupted")
except KeyboardInterrupt:
    pass

# Flight SQL, with a password and with a token as one.
for secret in [(user, password), (user, token)]:
    with dbapi.connect(f"grpc://{address}", db_kwargs={"username": secret[0], "password": secret[1]}) as db:
        with db.cursor() as cursor:
            cursor.execute("select n, name, cast(null as date) as d, 1.50::decimal(5,2) as m from numbers order by n, ds limit 2")
            table = cursor.fetch_arrow_table()
            assert table.column("n").to_pylist() == [1, 1], table
            assert str(table.column("m").to_pylist()[0]) == "1.50", table
            cursor.execute("select count(*) as c from numbers where n = $1", parameters=(2,))
            assert cursor.fetchall() == [(2,)]
            cursor.execute("select value, value * 2 as twice from generate_series(1, 500000)")
            assert cursor.fetch_df().shape == (500_000, 2)
            try:
                cursor.execute("select * from nothing")
                raise SystemExit("it should fail")
            except Exception as error:
                assert "nothing" in str(error) and "NOT_FOUND" in str(error).upper(), error
        objects = db.adbc_get_objects(depth="tables").read_all().to_pylist()
        names = [t["table_name"] for c in objects for s in c["catalog_db_schemas"] for t in s["db_schema_tables"] or []]
        assert "numbers" in names, names
        assert "n" in db.adbc_get_table_schema("numbers").names
try:
    with dbapi.connect(f"grpc://{address}", db_kwargs={"username": user, "password": "wrong-password"}) as db:
        with db.cursor() as cursor:
            cursor.execute("select 1")
    raise SystemExit("it should fail")
except Exception as error:
    assert "UNAUTHENTICATED" in str(error).upper(), error
# PostgreSQL, with a password and with a token's own user name.
import psycopg
host, port = postgres.split(":")
with psycopg.connect(host=host, port=port, user=user, password=password, dbname="headworks") as db:
    assert db.execute("select n, name from numbers where n = %s order by ds", (2,)).fetchall()[0][0] == 2
    assert ("numbers",) in db.execute("select relname from pg_class where relkind = 'r'").fetchall()
try:
    psycopg.connect(host=host, port=port, user=user, password="wrong-password", dbname="headworks")
    raise SystemExit("it should fail")
except psycopg.OperationalError as error:
    assert "password authentication failed" in str(error), error
login = "token_" + token.split("_")[1]
with psycopg.connect(host=host, port=port, user=login, password=token, dbname="headworks", autocommit=True) as db:
    assert db.execute("select current_user").fetchone() == (user,), db.execute("select current_user").fetchone()
print("fine")
"#;

#[test]
fn clients_ask_over_http_and_flight_and_it_is_written_down() {
    let project = Project::numbers();
    project.ok(&["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-02"]);
    // Its schedule would add a day of its own.
    project.ok(&["jobs", "pause", "numbers"]);
    let made = project
        .run_with_input(&["users", "create", "ann", "--role", "analyst", "--password-stdin"], "correct horse 9\n");
    assert_eq!(made.code, 0, "{made:?}");
    let token = project.ok(&["tokens", "create", "--user", "ann", "--name", "tests"]).trim().to_owned();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let postgres = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = project.command(&["up", "--listen", &address]);
    command.env("HEADWORKS__SERVER__POSTGRES_LISTEN", &postgres);
    let up = Serving::start(command);
    until("the port", || std::net::TcpStream::connect(&address).ok());
    let package = workspace_root().join("python/src").display().to_string();
    let said = python(CLIENTS, &[&address, &token, "ann", "correct horse 9", &package, &postgres]).unwrap();
    assert_eq!(said.trim(), "fine");
    let asked =
        || project.json(&["queries", "list", "--user", "ann", "--limit", "100"])["queries"].as_array().unwrap().clone();
    let asked = until("the record", || Some(asked()).filter(|asked| asked.iter().any(|q| q["state"] == "cancelled")));
    let of = |key: &str, value: serde_json::Value| asked.iter().filter(|q| q[key] == value).count();
    // What Flight SQL only asked the plan of was never a query.
    assert!(of("state", "failed".into()) >= 1 && of("is_cached", true.into()) >= 1, "{asked:?}");
    assert!(asked.iter().any(|q| q["application"].as_str().unwrap_or_default().starts_with("headworks-python")));
    up.stop();
}

/// Asks a PostgreSQL port as the admin; prints the answer.
const PSYCOPG: &str = r#"
import sys, psycopg
host, port = sys.argv[1].split(":")
with psycopg.connect(host=host, port=port, user="ann", password="correct horse 9", dbname="headworks", autocommit=True) as db:
    print(db.execute(sys.argv[2]).fetchone()[0])
"#;

#[test]
fn a_server_answers_beside_whoever_runs_the_jobs_and_runs_none_itself() {
    let project = Project::numbers();
    project.ok(&["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-01"]);
    let made = project
        .run_with_input(&["users", "create", "ann", "--role", "analyst", "--password-stdin"], "correct horse 9\n");
    assert_eq!(made.code, 0, "{made:?}");
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = |role: &str| {
        let (address, postgres) = (port(), port());
        let mut command = project.command(&[role, "--listen", &address]);
        command.env("HEADWORKS__SERVER__POSTGRES_LISTEN", &postgres);
        let serving = Serving::start(command);
        until("the port", || std::net::TcpStream::connect(&address).ok());
        (serving, postgres)
    };
    let ask = |postgres: &str, sql: &str| python(PSYCOPG, &[postgres, sql]).unwrap().trim().to_owned();
    let count = "select count(*) from numbers";

    let (server, postgres) = start("server");
    let rows: u32 = ask(&postgres, count).parse().unwrap();
    assert!(rows > 0);
    // It plans and carries out nothing, though a run is wanted.
    project.ok(&["jobs", "trigger", "numbers", "--ds", "2026-01-02"]);
    let doctor = project.ok(&["doctor"]);
    assert!(doctor.contains(" server"), "{doctor}");
    assert!(!doctor.contains(" up"), "{doctor}");
    assert_eq!(ask(&postgres, count), rows.to_string());

    // Who does is welcome, on SQLite too, and what it publishes counts in the next query.
    let (up, _) = start("up");
    until("another day", || ask(&postgres, count).parse::<u32>().ok().filter(|now| *now > rows));
    let asked = project.json(&["queries", "list", "--user", "ann", "--limit", "100"]);
    assert!(!asked["queries"].as_array().unwrap().is_empty());
    let (another, its_postgres) = start("server");
    assert_eq!(ask(&its_postgres, "select 1"), "1");
    another.stop();
    let said = server.stop();
    assert!(said.contains("answers queries and runs no jobs: health on http://127.0.0.1:"), "{said}");
    assert!(said.contains("and postgres://127.0.0.1:"), "{said}");
    up.stop();
}
