//! Users, tokens and grants on the command line, and what a user reads with them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use headworks_testkit::python_path;

use crate::{
    crew::{Serving, until},
    project::{Outcome, Project},
    serving::UP,
};

/// Numbers of two days, and a grant-free viewer and analyst.
fn project() -> Project {
    let project = Project::numbers();
    project.ok(&["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-02"]);
    project.ok(&["users", "create", "ann", "--role", "analyst"]);
    project
}

/// The error of a command that must fail: its code, message and hint.
fn refused(outcome: &Outcome) -> (String, String, String) {
    assert_ne!(outcome.code, 0, "{outcome:?}");
    let error: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    let text = |key: &str| error["error"][key].as_str().or_else(|| error[key].as_str()).unwrap_or_default().to_owned();
    (text("code"), text("message"), text("hint"))
}

#[test]
fn grants_say_what_a_user_reads() {
    let project = project();
    let reads = |sql: &str| project.run(&["sql", "--as", "ann", sql]);
    assert_eq!(reads("select count(*) as n from numbers").stdout, "n\n6\n", "everything, to begin with");
    let first = project.json(&["grants", "list"]);
    assert_eq!(first["grants"].as_array().unwrap().len(), 2, "{first}");
    for grant in first["grants"].as_array().unwrap() {
        project.ok(&["grants", "remove", &grant["id"].to_string()]);
    }
    let hidden = reads("select count(*) as n from numbers");
    assert!(hidden.code == 2 && hidden.stderr.contains("table `numbers` does not exist"), "{hidden:?}");
    project.ok(&[
        "grants",
        "add",
        "--to",
        "ann",
        "--table",
        "num*",
        "--columns",
        "n,ds",
        "--from",
        "2026-01-02",
        "--rows",
        "n < 3",
    ]);
    assert_eq!(reads("select * from numbers order by n").stdout, "ds,n\n2026-01-02,1\n2026-01-02,2\n");
    assert_eq!(reads("select count(*) as n from numbers_latest").stdout, "n\n2\n");
    assert_eq!(
        reads("select max(ds) as ds, min(n) as n from numbers where 1 / (n - 3) < 0").stdout,
        "ds,n\n2026-01-02,2\n"
    );
    let column = reads("select name from numbers");
    assert!(
        column.stderr.contains("column `name` does not exist") && !column.stderr.contains("`ds`, `name`"),
        "{column:?}"
    );
    let id = project.json(&["grants", "list", "--to", "ann"])["grants"][0]["id"].to_string();
    project.ok(&["grants", "remove", &id]);
    assert_eq!(reads("select 1 from numbers").code, 2);
    project.ok(&["users", "role", "ann", "author"]);
    assert_eq!(reads("select count(*) as n from numbers").stdout, "n\n6\n", "authors read everything");
    assert_eq!(project.run(&["sql", "--as", "nobody", "select 1"]).code, 2);
}

#[test]
fn grants_that_do_not_fit_are_refused_at_once() {
    let project = project();
    let add = |args: &[&str]| project.run(&[&["--json", "grants", "add"][..], args].concat());
    let check = |args: &[&str], message: &str, hint: &str| {
        let (_, found, advice) = refused(&add(&[&["--to", "ann"][..], args].concat()));
        assert!(found.contains(message) && advice.contains(hint), "{args:?}: {found} | {advice}");
    };
    check(&["--table", "numbers", "--rows", "n >"], "the SQL cannot be read", "");
    check(&["--table", "numbers", "--rows", "m > 1"], "column `m` does not exist", "");
    check(&["--table", "later", "--rows", "n in (select 1)"], "cannot have a subquery", "");
    check(&["--table", "numbers", "--rows", "n + 1"], "true or false", "");
    check(&["--table", "numbers", "--rows", " "], "the value of --rows is empty", "--help");
    check(&["--table", "numbers", "--columns", "nmae"], "there is no column `nmae`", "`name`");
    check(&["--table", "numbers", "--event-types", "view"], "no column `event_type`", "");
    check(&["--table", "numbers", "--from", "2026-02-01", "--to-ds", "2026-01-01"], "there is no day", "round");
    check(&["--table", "numbers_latest"], "is a part of `numbers`", "grant `numbers`");
    check(&["--table", ""], "the value of --table is empty", "");
    let (code, message, hint) = refused(&add(&["--to", "anne", "--table", "numbers"]));
    assert_eq!((code.as_str(), hint.as_str()), ("ACCOUNT_UNKNOWN_USER", "did you mean `ann`?"), "{message}");
    assert_eq!(add(&["--to", "role:root", "--table", "numbers"]).code, 2);
    assert_eq!(project.json(&["grants", "list", "--to", "ann"])["grants"].as_array().unwrap().len(), 0);

    let noted = project.run(&["grants", "add", "--to", "ann", "--table", "nubmers"]);
    assert!(noted.code == 0 && noted.stderr.contains("there is no table `nubmers` yet"), "{noted:?}");
    assert!(noted.stderr.contains("it restricts nothing yet") && noted.stderr.contains("grants remove 1"), "{noted:?}");
    assert_eq!(noted.stdout, "");
}

#[test]
fn users_have_names_passwords_and_roles() {
    let project = Project::empty();
    let made = project.run(&["users", "create", "ann", "--role", "analyst"]);
    assert_eq!((made.code, made.stdout.trim().len()), (0, 24), "{made:?}");
    assert!(made.stderr.contains("ann is there, as analyst") && !made.stderr.contains(made.stdout.trim()), "{made:?}");
    let again = project.run(&["--json", "users", "create", "ann", "--role", "admin"]);
    assert_eq!(refused(&again).0, "ACCOUNT_USER_EXISTS");
    for name in ["Ann", "a b", "", "token_x", "1", "x'y", &"a".repeat(64)] {
        assert_eq!(project.run(&["users", "create", name, "--role", "viewer"]).code, 2, "{name}");
    }
    let weak = project
        .run_with_input(&["--json", "users", "create", "bob", "--role", "viewer", "--password-stdin"], "short\n");
    assert_eq!(refused(&weak).0, "ACCOUNT_WEAK_PASSWORD");
    let typed = project.run_with_input(
        &["users", "create", "bob", "--role", "viewer", "--password-stdin"],
        "long enough for bob\nx\n",
    );
    assert_eq!((typed.code, typed.stdout.as_str()), (0, ""), "{typed:?}");
    assert!(!typed.stderr.contains("long enough"), "{typed:?}");
    assert_eq!(project.run(&["users", "passwd", "bob", "--password-stdin"]).code, 2, "nothing on stdin");
    assert_eq!(project.json(&["users", "passwd", "bob"])["password"].as_str().unwrap().len(), 24);
    project.ok(&["users", "create", "boss", "--role", "admin", "--no-password"]);
    let last = project.run(&["--json", "users", "disable", "boss"]);
    assert_eq!(refused(&last).0, "ACCOUNT_LAST_ADMIN");
    project.ok(&["users", "disable", "ann"]);
    assert_eq!(project.run(&["sql", "--as", "ann", "select 1"]).code, 2);
    project.ok(&["users", "enable", "ann"]);
    project.ok(&["sql", "--as", "ann", "select 1"]);
    let listed = project.json(&["users", "list"]);
    let users: Vec<(&str, &str, bool)> = listed["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| {
            (user["user"].as_str().unwrap(), user["role"].as_str().unwrap(), user["has_password"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(users, [("ann", "analyst", true), ("bob", "viewer", true), ("boss", "admin", false)]);
    assert!(project.ok(&["users", "list"]).contains("tokens only"));
}

#[test]
fn tokens_are_shown_once() {
    let project = Project::empty();
    project.ok(&["users", "create", "ann", "--role", "analyst"]);
    let made = project.run(&["tokens", "create", "--user", "ann", "--name", "notebook"]);
    let token = made.stdout.trim();
    assert!(made.code == 0 && token.starts_with("hw_") && token.len() == 70, "{made:?}");
    assert!(!made.stderr.contains(token) && made.stderr.contains("user name: token_"), "{made:?}");
    let listed = project.run(&["tokens", "list"]);
    assert!(listed.stdout.contains("notebook") && !listed.stdout.contains(&token[14..]), "{listed:?}");
    let json = project.json(&[
        "tokens",
        "create",
        "--user",
        "ann",
        "--scope",
        "jobs",
        "--scope",
        "query",
        "--expires",
        "never",
    ]);
    assert_eq!(
        (&json["scopes"], &json["expires_at"]),
        (&serde_json::json!(["query", "jobs"]), &serde_json::Value::Null)
    );
    assert!(json["token"].as_str().unwrap().starts_with(&format!("hw_{}_", json["id"].as_str().unwrap())));
    for bad in [
        ["--user", "ann", "--scope", "everything"],
        ["--user", "ann", "--expires", "soon"],
        ["--user", "ann", "--expires", "0s"],
        ["--user", "ann", "--name", "two\nlines"],
        ["--user", "nobody", "--name", "x"],
    ] {
        assert_eq!(project.run(&[&["tokens", "create"][..], &bad].concat()).code, 2, "{bad:?}");
    }
    project.ok(&["tokens", "revoke", json["id"].as_str().unwrap()]);
    assert_eq!(project.run(&["tokens", "revoke", json["id"].as_str().unwrap()]).code, 2);
    assert_eq!(project.json(&["tokens", "list", "--user", "ann"])["tokens"].as_array().unwrap().len(), 1);
}

#[test]
fn the_first_start_makes_an_admin_once() {
    let project = Project::empty();
    let admins = || project.json(&["users", "list"])["users"].as_array().unwrap().len();
    assert_eq!(admins(), 0);
    let up = Serving::start(project.command(&UP));
    until("the first admin", || (admins() == 1).then_some(()));
    let said = up.stop();
    let (_, rest) = said.split_once("the first user is `admin` with the password ").unwrap_or_else(|| panic!("{said}"));
    assert_eq!(rest.find(','), Some(24), "{said}");
    let up = Serving::start(project.command(&UP));
    until("its schedules", || project.json(&["doctor"]).is_object().then_some(()));
    assert!(!up.stop().contains("the first user"));
    assert_eq!(admins(), 1);
}

/// Connections to PostgreSQL's port that stay open: a line `NAME SQL` is answered with the first value or the error's state,
/// and with `closed` when the connection is.
const CONNECTIONS: &str = r#"
import sys, psycopg
port, *logins = sys.argv[1:]
open = {}
for login in logins:
    name, user, password = login.split(":")
    open[name] = psycopg.connect(host="127.0.0.1", port=port, user=user, password=password, dbname="headworks", autocommit=True)
print("open", flush=True)
for line in sys.stdin:
    name, sql = line.strip().split(" ", 1)
    try:
        said = open[name].execute(sql).fetchone()[0]
    except psycopg.Error as error:
        said = error.sqlstate
    print(said, "closed" if open[name].closed else "", flush=True)
"#;

struct Connections {
    python: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Connections {
    fn open(port: &str, logins: &[String]) -> Self {
        let mut python = Command::new(python_path().unwrap())
            .args(["-c", CONNECTIONS, port])
            .args(logins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, answers) = (python.stdin.take().unwrap(), BufReader::new(python.stdout.take().unwrap()));
        let mut this = Self { python, ask, answers };
        assert_eq!(this.answer(), "open");
        this
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, name: &str, sql: &str) -> String {
        writeln!(self.ask, "{name} {sql}").unwrap();
        self.answer()
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}

#[test]
fn open_connections_of_postgresql_obey_what_an_admin_has_changed() {
    let project = project();
    // Its schedule would add a day of its own.
    project.ok(&["jobs", "pause", "numbers"]);
    let create = |user: &str| {
        let args = ["users", "create", user, "--role", "analyst", "--password-stdin"];
        assert_eq!(project.run_with_input(&args, "correct horse 9\n").code, 0);
    };
    create("bob");
    create("eve");
    let token =
        |expires: &str| project.json(&["tokens", "create", "--user", "bob", "--name", "tests", "--expires", expires]);
    let (revoked, ended) = (token("1d"), token("15s"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut command = project.command(&UP);
    command.env("HEADWORKS__SERVER__POSTGRES_LISTEN", format!("127.0.0.1:{port}"));
    let up = Serving::start(command);
    until("the port", || std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok());
    let of_token = |name: &str, token: &serde_json::Value| {
        format!("{name}:token_{}:{}", token["id"].as_str().unwrap(), token["token"].as_str().unwrap())
    };
    let of_user = |user: &str| format!("{user}:{user}:correct horse 9");
    let logins = [of_token("revoked", &revoked), of_token("ended", &ended), of_user("bob"), of_user("eve")];
    let mut open = Connections::open(&port, &logins);
    let count = "select count(*) from numbers";
    for name in ["revoked", "ended", "bob", "eve"] {
        assert_eq!(open.ask(name, count), "6", "{name}");
    }
    // Another process has made the change: it counts within a second.
    let mut comes = |name: &str, sql: &str, expected: &str| {
        until(&format!("{expected} of {name}"), || (open.ask(name, sql) == expected).then_some(()));
    };
    project.ok(&["tokens", "revoke", revoked["id"].as_str().unwrap()]);
    comes("revoked", count, "28000 closed");
    comes("ended", count, "28000 closed");
    for grant in project.json(&["grants", "list"])["grants"].as_array().unwrap() {
        project.ok(&["grants", "remove", &grant["id"].to_string()]);
    }
    comes("bob", count, "42P01");
    project.ok(&["grants", "add", "--to", "bob", "--table", "numbers", "--rows", "n < 3"]);
    comes("bob", count, "4");
    comes("eve", count, "42P01");
    project.ok(&["users", "role", "eve", "author"]);
    comes("eve", count, "6");
    project.ok(&["users", "role", "eve", "viewer"]);
    comes("eve", "show timezone", "28000 closed");
    project.ok(&["users", "disable", "bob"]);
    comes("bob", "select 1", "28000 closed");
    up.stop();
}
