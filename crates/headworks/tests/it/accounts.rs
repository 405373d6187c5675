//! Users, tokens and grants on the command line, and what a user reads with them.

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
