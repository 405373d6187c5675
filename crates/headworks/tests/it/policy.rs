//! Who may read what: each role over each protocol, by each way in.

use headworks_testkit::{python, workspace_root};

use crate::{
    crew::{Serving, until},
    project::Project,
};

const PASSWORD: &str = "correct horse 9";

const SECRET: &str =
    "/* job\ndescription: Nobody's business\nowner: tests\nstart: 2026-01-01\n*/\nselect 1 as code, 'x' as word\n";

/// What a client is told on its command line: the address, that of PostgreSQL, the package's folder, the users' password and
/// a token of each, and one of ann's for jobs only.
const MATRIX: &str = r#"
import os, sys
address, postgres, package, password, *tokens = sys.argv[1:]
tokens = dict(zip(("root", "amy", "ann", "vic", "jobs"), tokens))
sys.path.insert(0, package)
os.environ["HEADWORKS_URL"] = f"http://{address}"
import headworks, psycopg
from adbc_driver_flightsql import dbapi

host, port = postgres.split(":")


class Http:
    def __init__(self, user, secret):
        self.client = headworks.Client(token=secret)

    def rows(self, sql):
        return [tuple(row.values()) for row in self.client.sql(sql).arrow().to_pylist()]


class Flight:
    def __init__(self, user, secret):
        self.db = dbapi.connect(f"grpc://{address}", db_kwargs={"username": user, "password": secret})

    def rows(self, sql):
        with self.db.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()


class Postgres:
    def __init__(self, user, secret):
        login = "token_" + secret.split("_")[1] if secret.startswith("hw_") else user
        self.db = psycopg.connect(host=host, port=port, user=login, password=secret, dbname="headworks", autocommit=True)

    def rows(self, sql):
        # One statement in the simple protocol: no parameters, no preparing.
        with psycopg.ClientCursor(self.db) as cursor:
            return cursor.execute(sql).fetchall()


class Extended(Postgres):
    def rows(self, sql):
        return self.db.execute(sql, prepare=True, binary=True).fetchall()


class Portal(Postgres):
    def rows(self, sql):
        with self.db.transaction(), self.db.cursor(name="portal") as cursor:
            return cursor.execute(sql).fetchall()


class Copy(Postgres):
    def rows(self, sql):
        with self.db.cursor().copy(f"copy ({sql}) to stdout (format csv)") as copy:
            text = b"".join(bytes(data) for data in copy).decode()
        return [tuple(line.split(",")) for line in text.splitlines()]


def plain(rows):
    return [tuple(str(value) for value in row) for row in rows]


PROTOCOLS = [Http, Flight, Postgres, Extended, Portal, Copy]
# Each way in to `numbers`: its columns, days and rows are what the grants say.
WAYS = [
    ("select {c} from numbers order by ds, n", lambda rows: rows),
    ("select {c} from (select * from numbers) s order by ds, n", lambda rows: rows),
    ("with c as (select * from numbers) select {c} from c order by ds, n", lambda rows: rows),
    ("select {c} from numbers where n in (select n from numbers) order by ds, n", lambda rows: rows),
    ("select {c} from numbers union all select {c} from numbers where false order by ds, n", lambda rows: rows),
    ("select count(*) as k from numbers", lambda rows: [(str(len(rows)),)]),
    ("select max(n) as k from numbers", lambda rows: [(max(row[1] for row in rows),)]),
    ("select min(ds) as k from numbers", lambda rows: [(min(row[0] for row in rows),)]),
    ("select distinct n from numbers_latest order by n", lambda rows: [(n,) for n in sorted({r[1] for r in rows if r[0] == "2026-01-02"})]),
]
ALL = [(f"2026-01-0{day}", n, name) for day in (1, 2) for n, name in (("1", "one"), ("2", "two"), ("3", "Ünï"))]
SOME = [("2026-01-02", "1"), ("2026-01-02", "2")]


def fails(ask, *words):
    try:
        rows = ask()
    except Exception as error:
        assert any(word in str(error) for word in words), f"{error!r} has none of {words}"
    else:
        raise SystemExit(f"it should fail and gives {rows}")


def reads(asker, who, columns, expected, sees_all):
    for sql, shape in WAYS:
        text = sql.format(c=columns)
        rows = plain(asker.rows(text))
        want = shape(expected)
        assert rows == want, f"{who}: {text}: {rows}, not {want}"
    tables = "select table_name from information_schema.tables where table_name in ('numbers', 'secret') order by 1"
    shown = [("numbers",), ("secret",)] if sees_all else [("numbers",)]
    assert plain(asker.rows(tables)) == shown, (who, asker.rows(tables))
    names = "select column_name from information_schema.columns where table_name = 'numbers' order by 1"
    shown = [("ds",), ("n",), ("name",)] if sees_all else [("ds",), ("n",)]
    assert plain(asker.rows(names)) == shown, (who, asker.rows(names))
    hidden = [
        "select code from secret",
        "select n from numbers where n in (select code from secret)",
        "with s as (select code from secret) select code from s",
        "select name from numbers",
        "select n from numbers where name = 'one'",
        "select n from numbers order by name",
        "select count(*) as k from numbers group by name",
    ]
    for sql in hidden:
        if sees_all:
            asker.rows(sql)
        else:
            fails(lambda: asker.rows(sql), "does not exist")


def catalog(asker, who, sees_all):
    shown = [("numbers",), ("secret",)] if sees_all else [("numbers",)]
    sql = "select relname from pg_class where relname in ('numbers', 'secret') order by 1"
    assert plain(asker.rows(sql)) == shown, (who, asker.rows(sql))
    sql = ("select attname from pg_attribute a join pg_class c on a.attrelid = c.oid "
           "where c.relname = 'numbers' and a.attnum > 0 order by 1")
    shown = [("ds",), ("n",), ("name",)] if sees_all else [("ds",), ("n",)]
    assert plain(asker.rows(sql)) == shown, (who, asker.rows(sql))


for Protocol in PROTOCOLS:
    # A password is nothing to the HTTP API's routes of queries.
    secrets = (lambda user: [tokens[user]]) if Protocol is Http else (lambda user: [password, tokens[user]])
    # Those who see all ask first, so that what they were told lies in the cache when others ask.
    for user in ("root", "amy"):
        for secret in secrets(user):
            asker, who = Protocol(user, secret), f"{Protocol.__name__} {user}"
            reads(asker, who, "cast(ds as text) as ds, n, name", ALL, True)
            reads(asker, who, "cast(ds as text) as ds, n", [row[:2] for row in ALL], True)
            if issubclass(Protocol, Postgres):
                catalog(asker, who, True)
    for secret in secrets("ann"):
        asker, who = Protocol("ann", secret), f"{Protocol.__name__} ann"
        reads(asker, who, "cast(ds as text) as ds, n", SOME, False)
        if issubclass(Protocol, Postgres):
            catalog(asker, who, False)
        if Protocol not in (Copy, Portal):
            fails(lambda: asker.rows("explain select name from numbers"), "does not exist")
            plan = str(asker.rows("explain select n from numbers where n > 1"))
            assert not any(word in plan for word in ("secret", "name", "n < 3", "2026-01-02")), plan
            # Files that statistics leave out tell of rows that are hidden.
            plan = str(asker.rows("explain analyze select count(*) as c from numbers where n > 1"))
            assert "Granted: table=numbers" in plan and "read 0 B" in plan, plan
    # Who looks at dashboards only may not ask, nor may a token for jobs.
    refused = ("may not", "denied", "DENIED", "authentication failed")
    for secret in secrets("vic"):
        fails(lambda: Protocol("vic", secret).rows("select 1 as one"), *refused)
    fails(lambda: Protocol("ann", tokens["jobs"]).rows("select 1 as one"), *refused)
print("fine")
"#;

#[test]
fn every_role_reads_what_it_may_over_every_protocol() {
    let project = Project::numbers().file("jobs/secret.sql", SECRET);
    for (user, role) in [("root", "admin"), ("amy", "author"), ("ann", "analyst"), ("vic", "viewer")] {
        let made = ["users", "create", user, "--role", role, "--password-stdin"];
        assert_eq!(project.run_with_input(&made, &format!("{PASSWORD}\n")).code, 0);
    }
    project.ok(&["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-02"]);
    project.ok(&["jobs", "pause", "numbers"]);
    project.ok(&["run", "secret", "--ds", "2026-01-01"]);
    for grant in project.json(&["grants", "list"])["grants"].as_array().unwrap() {
        project.ok(&["grants", "remove", &grant["id"].to_string()]);
    }
    let only = ["--columns", "n,ds", "--from", "2026-01-02", "--rows", "n < 3"];
    project.ok(&[&["grants", "add", "--to", "ann", "--table", "numbers"], &only[..]].concat());
    let token = |user: &str, scope: &str| {
        let made = project.ok(&["tokens", "create", "--user", user, "--name", scope, "--scope", scope]);
        made.trim().to_owned()
    };
    let tokens = ["root", "amy", "ann", "vic"].map(|user| token(user, "query"));
    let jobs = token("ann", "jobs");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (address, postgres) = (free(), free());
    let mut command = project.command(&["up", "--listen", &address]);
    command.env("HEADWORKS__SERVER__POSTGRES_LISTEN", &postgres);
    let up = Serving::start(command);
    until("the port", || std::net::TcpStream::connect(&address).ok());
    let package = workspace_root().join("python/src").display().to_string();
    let mut args = vec![address.as_str(), &postgres, &package, PASSWORD];
    args.extend(tokens.iter().chain([&jobs]).map(String::as_str));
    let said = python(MATRIX, &args).unwrap();
    assert_eq!(said.trim(), "fine");
    up.stop();
}
