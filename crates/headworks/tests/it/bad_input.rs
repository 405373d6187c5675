use headworks_testkit::python;
use insta::assert_snapshot;

use crate::project::{NUMBERS, Project};

/// Runs SQL on a SQLite file of the project, as another program does.
pub(crate) fn sqlite(project: &Project, file: &str, sql: &str) {
    let path = project.path().join(file).display().to_string();
    let code = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nc.executescript(sys.argv[2])\nc.commit()";
    python(code, &[&path, sql]).unwrap();
}

/// A project that imports `orders` from a SQLite file, by day.
fn shop(rows: &str) -> Project {
    let project = Project::nothing()
        .file("headworks.toml", "[connections.shop]\ntype = \"sqlite\"\npath = \"shop.db\"\n")
        .file(
            "jobs/orders.yml",
            "schedule: \"@daily\"\nstart: 2026-01-01\nkind: events\nimport: {connection: shop, table: orders, by: bought_at}\n",
        );
    sqlite(
        &project,
        "shop.db",
        &format!("create table orders (id integer, bought_at timestamp, \"order\" text); {rows}"),
    );
    project
}

const DAY: [&str; 4] = ["run", "orders", "--ds", "2026-01-01"];

#[test]
fn no_project() {
    let project = Project::nothing();
    let mut all = String::new();
    for args in [
        &["validate"][..],
        &["-C", "nowhere", "validate"],
        &["sql", "select 1"],
        &["run", "x", "--json"],
        &["bogus"],
        &["run", "--json"],
        &["run", "x", "--ds", "2018-2-3"],
        &["run", "x", "--hour", "3"],
        &["backfill", "--from", "2013-01-01", "--to", "2013-01-02"],
    ] {
        all += &project.seen(args);
        all += "\n";
    }
    assert_snapshot!(all);
}

#[test]
fn settings_that_are_wrong() {
    let project = Project::nothing();
    let mut all = String::new();
    for toml in [
        "[project\n",
        "[metadta]\nurl = \"x\"\n",
        "[engine]\nmemry = \"1GiB\"\nthreads = \"two\"\n",
        "[metadata]\nurl = \"mysql://x/y\"\n",
        "[connections.shop]\ntype = \"oracle\"\n",
        "[project]\ntimezone = \"Mars/Olympus\"\n",
    ] {
        project.write("headworks.toml", toml);
        all += &format!("{toml}---\n{}\n", project.seen(&["validate"]));
        all += &project.seen(&["sql", "select 1"]);
        all += "\n";
    }
    project.write("headworks.toml", "");
    for set in ["engine.memry=1", "engine.memory=lots", "nonsense"] {
        all += &project.seen(&["config", "show", "--set", set]);
    }
    assert_snapshot!(all);
}

#[test]
fn values_of_a_statement_have_the_limit_of_the_settings() {
    let project = Project::empty();
    let sql = ["sql", "select length(repeat('x', 2000000)) as n"];
    assert!(project.ok(&sql).contains("2000000"));
    let outcome = project.run(&[&sql[..], &["--set", "sql.value_bytes_max=1MiB"]].concat());
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("above the limit for values of 1048576"), "{outcome:?}");
    assert!(outcome.stderr.contains("raise `sql.value_bytes_max`"), "{outcome:?}");
}

#[test]
fn init_spares_what_is_there() {
    let project = Project::empty().file("full/data.csv", "a\n").file("file", "");
    let mut all = String::new();
    for dir in [".", "full", "file"] {
        all += &project.seen(&["init", dir]);
    }
    assert_snapshot!(all);
}

#[test]
fn files_with_problems() {
    let project = Project::empty()
        .file("jobs/a.sql", "/* job\nschedule: \"@daily\"\nshcedule: 1\nstart: tomorrow\n*/\nSELECT 1 AS x\n")
        .file("jobs/b.sql", "/* job\nschedule: \"@daily\"\nname: twin\n*/\nSELECT 1 AS x FROM wait::c\n")
        .file("jobs/c.sql", "/* job\nschedule: \"@daily\"\n*/\nSELECT 1 AS x FROM wait::twin\n")
        .file("jobs/d.sql", "/* job\nschedule: \"@daily\"\nname: twin\n*/\nSELECT 1 AS x\n")
        .file("jobs/e.sql", "/* job\nschedule: \"@daily\"\ntable: shared\n*/\nSELEC 1 AS x\n")
        .file("jobs/f.sql", "/* job\nschedule: \"@daily\"\ntable: shared\n*/\nSELECT 1 AS x\n")
        .file("jobs/g.yml", "schedule: \"@daily\"\nimport: {connection: shop, table: orders}\n")
        .file("jobs/h.sql", "SELECT 1\n")
        .file("jobs/i.sql", "/* job\nschedule: \"@daily\"\n*/\nSELECT x FROM shared\n");
    assert_snapshot!(project.seen(&["validate"]));
    assert_snapshot!("files_with_problems_github", project.seen(&["validate", "--format", "github"]));
    assert_snapshot!("files_with_problems_run", project.seen(&["run", "a", "--ds", "2026-01-01"]));
    let json: serde_json::Value = serde_json::from_str(&project.run(&["validate", "--json"]).stdout).unwrap();
    assert!(json["errors"].as_u64().unwrap() > 5, "{json}");
}

#[test]
fn names_that_nobody_has() {
    let project = Project::numbers();
    let mut all = String::new();
    for args in [
        &["run", "numbrs", "--ds", "2026-01-01"][..],
        &["backfill", "nmbers", "--from", "2026-01-01", "--to", "2026-01-02"],
        &["backfill", "numbers", "--from", "2026-01-02", "--to", "2026-01-01"],
        &["render", "what", "--ds", "2026-01-01"],
        &["jobs", "show", "what"],
        &["tables", "show", "numbers"],
        &["tables", "history", "what"],
        &["runs", "show", "r1"],
        &["runs", "logs", "r1"],
        &["runs", "list", "--state", "broken"],
        &["sql", "SELECT * FROM numbrs"],
        &["sql", "SELECT 1 +"],
        &["sql", "DROP TABLE numbers"],
        &["sql", "-f", "missing.sql"],
        &["sql", ""],
        &["run", "numbers", "--ds", "2026-01-01", "--hour", "3"],
        &["run", "numbers", "--ds", "2025-01-01"],
    ] {
        all += &project.seen(args);
        all += "\n";
    }
    assert_snapshot!(all);
}

#[test]
fn a_failed_check_leaves_what_was_there() {
    let project = Project::numbers();
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
    project.write("jobs/numbers.sql", &NUMBERS.replace("(3, 'Ünï')", "(3, 'x'), (3, null)"));
    assert_snapshot!(project.seen(&["run", "numbers", "--ds", "2026-01-01", "--reprocess", "-q"]));
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n FROM numbers"]), "n\n3\n");
}

#[test]
fn sql_errors_are_shown_at_their_line() {
    let project = Project::numbers();
    project.write("jobs/numbers.sql", &NUMBERS.replace("SELECT n, name", "SELECT n,\n  nme AS name"));
    assert_snapshot!(project.seen(&["run", "numbers", "--ds", "2026-01-01", "-q"]));
    project.write("jobs/numbers.sql", &NUMBERS.replace("SELECT n, name", "SELECT 'x' AS n, name"));
    assert_snapshot!("column_of_another_type", project.seen(&["run", "numbers", "--ds", "2026-01-02", "-q"]));
    project.write("jobs/numbers.sql", &NUMBERS.replace("SELECT n, name", "SELECT n"));
    assert_snapshot!("column_missing", project.seen(&["run", "numbers", "--ds", "2026-01-03", "-q"]));
    assert!(project.files("lake/data").is_empty(), "{:?}", project.files("lake"));
}

#[test]
fn a_job_that_reads_itself_must_say_its_columns() {
    let project = Project::empty().file(
        "jobs/running.sql",
        "/* job\nschedule: \"@daily\"\nstart: 2026-01-01\nwait: [self@-1]\n*/\nSELECT n + 1 AS n FROM running WHERE ds = DATE '{{ prev_ds }}'\n",
    );
    assert_snapshot!(project.seen(&["run", "running", "--ds", "2026-01-01", "-q"]));
}

#[test]
fn missing_inputs_say_what_to_start() {
    let project = Project::numbers().file(
        "jobs/total.sql",
        "/* job\nschedule: \"@daily\"\nstart: 2026-01-01\n*/\nSELECT count(*) AS n FROM wait::numbers\n",
    );
    assert_snapshot!(project.seen(&["run", "total", "--ds", "2026-01-05", "-q"]));
}

#[test]
fn awkward_columns_survive() {
    let project = Project::empty().file(
        "jobs/awkward.sql",
        "/* job\nschedule: \"@daily\"\nstart: 2026-01-01\n*/\nSELECT 1 AS \"order\", 2 AS \"Ünï\", 3 AS \"with space\", DATE '{{ ds }}' AS ds\n",
    );
    project.ok(&["run", "awkward", "--ds", "2026-01-05"]);
    assert_eq!(
        project.ok(&["sql", "SELECT \"order\", \"Ünï\", \"with space\", ds FROM awkward"]),
        "order,Ünï,with space,ds\n1,2,3,2026-01-05\n"
    );
}

#[test]
fn a_broken_file_of_the_lake_is_named() {
    let project = Project::numbers();
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
    let file = project.files("lake").into_iter().find(|f| f.extension().is_some_and(|e| e == "parquet")).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let outcome = project.run(&["sql", "SELECT * FROM numbers"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(outcome.stderr.contains(&name) && outcome.stderr.contains("hint:"), "{outcome:?}");
}

#[test]
fn a_metadata_database_that_is_none() {
    let project = Project::empty().file(".headworks/metadata.db", "this is no database at all, but it is long enough");
    assert_snapshot!(project.seen(&["tables", "list"]));
}

#[test]
fn files_that_cannot_be_read() {
    let project = Project::nothing();
    std::fs::create_dir(project.path().join("headworks.toml")).unwrap();
    let mut all = project.seen(&["validate"]);
    let project = Project::numbers();
    std::fs::write(project.path().join("jobs/bytes.sql"), b"/* job\nowner: m\xfcller\n*/ SELECT 1 AS x").unwrap();
    std::os::unix::fs::symlink("nowhere", project.path().join("jobs/gone.sql")).unwrap();
    all += &project.seen(&["validate"]);
    all += &project.seen(&["run", "bytes", "--ds", "2026-01-01"]);
    assert_snapshot!(all);
    // The others are none the worse for it.
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
}

#[test]
fn a_source_that_is_not_what_it_was() {
    let project = shop("insert into orders values (1, '2026-01-01 10:00:00', 'x')");
    project.ok(&DAY);
    let day = ["run", "orders", "--ds", "2026-01-02", "-q"];
    let mut all = String::new();
    for (change, undo) in [
        ("alter table orders rename to ordres", "alter table ordres rename to orders"),
        (
            "alter table orders rename column bought_at to sold_at",
            "alter table orders rename column sold_at to bought_at",
        ),
        ("drop table orders", ""),
    ] {
        sqlite(&project, "shop.db", change);
        all += &format!("-- {change}\n{}\n", project.seen(&day));
        sqlite(&project, "shop.db", undo);
    }
    std::fs::remove_file(project.path().join("shop.db")).unwrap();
    all += &format!("-- no file\n{}\n", project.seen(&day));
    project.write("shop.db", "this is no database at all, but it is long enough");
    all += &format!("-- no database\n{}", project.seen(&day));
    assert_snapshot!(all);
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n, max(ds) AS ds FROM orders"]), "n,ds\n1,2026-01-01\n");
}

#[test]
fn sources_with_awkward_columns_are_imported() {
    let project = shop(
        "drop table orders;
         create table orders (\"Ünï\" text, \"with space\" integer, ds text, \"a\"\"b\" real, bought_at timestamp);
         insert into orders values ('ß', 1, 'mine', 0.5, '2026-01-01 10:00:00')",
    );
    project.ok(&DAY);
    // The source's own `ds` makes way for the partition's.
    assert_eq!(
        project.ok(&["sql", "SELECT * FROM orders"]),
        "ds,Ünï,with space,src_ds,\"a\"\"b\",bought_at\n2026-01-01,ß,1,mine,0.5,2026-01-01 10:00:00\n"
    );
}

#[test]
fn empty_sources_publish_empty_partitions() {
    let project = shop("").file(
        "jobs/total.sql",
        "/* job\nschedule: \"@daily\"\nstart: 2026-01-01\n*/\nSELECT id FROM wait::orders WHERE ds = DATE '{{ ds }}'\n",
    );
    let range = ["--from", "2026-01-01", "--to", "2026-01-02"];
    let done = project.json(&[&["backfill", "--all"][..], &range].concat());
    assert_eq!((&done["success"], &done["rows"]), (&4.into(), &0.into()), "{done}");
    for table in ["orders", "orders_latest", "total", "total_latest"] {
        assert_eq!(project.ok(&["sql", &format!("SELECT count(*) AS n FROM {table}")]), "n\n0\n", "{table}");
    }
    let tables = project.json(&["tables", "list"]);
    assert_eq!(tables["tables"][0]["newest"], "ds=2026-01-02", "{tables}");
    // A source that comes to life fills the day, and an emptied one empties it.
    sqlite(&project, "shop.db", "insert into orders values (1, '2026-01-02 10:00:00', 'x')");
    let again = [&["backfill", "orders", "total", "--reprocess", "all"][..], &range].concat();
    assert_eq!(project.json(&again)["rows"], 2);
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n FROM total_latest"]), "n\n1\n");
    sqlite(&project, "shop.db", "delete from orders");
    assert_eq!(project.json(&again)["rows"], 0);
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n FROM total_latest"]), "n\n0\n");
}

#[test]
fn a_lake_of_a_newer_version_is_left_alone() {
    let project = Project::numbers();
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
    let database = project.path().join(".headworks/metadata.db");
    let mut all = String::new();
    for newer in [
        "update ducklake_metadata set value = '9.5' where key = 'version'",
        "update hw_migration set version = 9000 where component = 'meta' and version = 1",
    ] {
        // All of it in the one file that is compared.
        let whole = "pragma wal_checkpoint(truncate)";
        sqlite(&project, ".headworks/metadata.db", whole);
        let before = std::fs::read(&database).unwrap();
        sqlite(&project, ".headworks/metadata.db", &format!("{newer}; {whole}"));
        let changed = std::fs::read(&database).unwrap();
        for args in [
            &["run", "numbers", "--ds", "2026-01-02"][..],
            &["sql", "SELECT * FROM numbers"],
            &["gc"],
            &["tables", "list"],
        ] {
            all += &project.seen(args);
            all += "\n";
        }
        assert_eq!(std::fs::read(&database).unwrap(), changed, "{newer}");
        std::fs::write(&database, before).unwrap();
    }
    assert_snapshot!(all);
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n FROM numbers"]), "n\n3\n");
}

#[test]
fn files_to_adopt_that_are_none() {
    let project = Project::empty()
        .file("old/cut.parquet", "PAR1 and then nothing of use")
        .file("old/cut.orc", "ORC and then nothing of use")
        .file("old/two.csv", "day,n\n2026-01-01,1\n2026-01-02\n")
        .file("old/empty.csv", "")
        .file("old/head.csv", "day,n\n")
        .file("old/nodate.csv", "day,n\nyesterday,1\n")
        .file("none/readme.txt", "x");
    let mut all = String::new();
    for path in [
        "old/cut.parquet",
        "old/cut.orc",
        "old/two.csv",
        "old/empty.csv",
        "old/head.csv",
        "old/nodate.csv",
        "none",
        "nowhere",
    ] {
        all += &project.seen(&["tables", "adopt", path, "--table", "t", "--partition-by", "day", "--yes"]);
        all += "\n";
    }
    assert_snapshot!(all);
    let files = project.files("lake");
    // The lake's marker is there from the first command on, beside the data.
    assert!(files.iter().all(|file| file.ends_with("lake/lake.json")), "{files:?}");
}
