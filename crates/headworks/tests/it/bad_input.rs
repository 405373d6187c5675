use insta::assert_snapshot;

use crate::project::{NUMBERS, Project};

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
