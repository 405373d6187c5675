//! Projects on disk: what is read, and what is told about what is wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]
#![allow(clippy::print_stdout, reason = "simulations say how much they saw")]

mod chance;
mod clock;
mod exec;
mod sim;

use std::{fs, path::Path, sync::Arc};

use headworks_domain::{Fault, Severity};
use headworks_flow::{Error, JobBody, Loaded, Overrides, Project};
use tempfile::TempDir;

/// Writes a project's files and loads it.
fn load(files: &[(&str, &str)]) -> (TempDir, Loaded) {
    let dir = write(files);
    let loaded = Project::load(dir.path());
    (dir, loaded)
}

fn write(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    if !files.iter().any(|(path, _)| *path == "headworks.toml") {
        fs::write(dir.path().join("headworks.toml"), "").unwrap();
    }
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// All problems as a person reads them.
fn problems(files: &[(&str, &str)]) -> String {
    let (_dir, loaded) = load(files);
    loaded.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

const FLIGHTS: &str = r#"description: Every flight out of New York
owner: data
schedule: "0 2 * * *"
start: 2013-01-01
import:
  connection: production
  table: flights
  by: time_hour
"#;

const CONFIG: &str = r#"[project]
timezone = "America/New_York"
[connections.production]
type = "sqlite"
path = "production.db"
"#;

#[test]
fn a_good_project_has_no_problems() {
    let (_dir, loaded) = load(&[
        ("headworks.toml", CONFIG),
        ("jobs/flights.yml", FLIGHTS),
        (
            "jobs/metrics/carrier-daily.sql",
            "/* job\ntable: carrier_daily\nkind: events\nstart: 2013-01-01\nwait: [self@-1]\n*/\nSELECT carrier, count(*) AS n FROM wait::flights WHERE ds = '{{ ds }}' GROUP BY carrier;\n",
        ),
        ("jobs/.hidden.sql", "nothing"),
        ("jobs/notes.txt", "nothing"),
    ]);
    assert_eq!(loaded.problems, vec![]);
    let project = loaded.project;
    let names: Vec<&str> = project.jobs.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["flights", "metrics/carrier-daily"]);
    for name in ["metrics/carrier-daily", "carrier_daily", "carrier-daily", "CARRIER_DAILY"] {
        assert_eq!(project.job(name).unwrap().table_name(), "carrier_daily", "{name}");
    }
    let error = project.job("carier_daily").unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.hint().unwrap().as_str()),
        ("there is no job or table `carier_daily`", "did you mean `carrier_daily`?")
    );
    let flights = project.job("flights").unwrap();
    assert!(matches!(&flights.body, JobBody::Import(import) if import.by.as_deref() == Some("time_hour")));
    assert_eq!(flights.zone.name(), "America/New_York");
    assert_eq!(flights.partition_columns(), ["ds"]);
    let all = flights.intervals("2012-12-01".parse().unwrap(), "2013-01-31".parse().unwrap());
    assert_eq!(all.len(), 31, "none before its start");
    let carrier = project.job("carrier_daily").unwrap();
    assert_eq!(project.upstream(carrier).len(), 1);
}

#[test]
fn an_earlier_text_of_a_job_is_read_only_when_it_is_another() {
    let (_dir, loaded) = load(&[("headworks.toml", CONFIG), ("jobs/flights.yml", FLIGHTS)]);
    let project = loaded.project;
    let flights = project.job("flights").unwrap();
    let same = project.earlier(flights, FLIGHTS.to_owned()).unwrap();
    assert!(Arc::ptr_eq(&same, flights));
    let other = project.earlier(flights, FLIGHTS.replace("0 2", "0 3")).unwrap();
    assert_ne!(other.version, flights.version);
    assert!(project.earlier(flights, "no: job".to_owned()).is_none());
}

#[test]
fn a_project_is_found_from_below() {
    let dir = write(&[("jobs/deep/x.sql", "/* job */ SELECT 1")]);
    let root = fs::canonicalize(dir.path()).unwrap();
    assert_eq!(Project::find(&dir.path().join("jobs/deep")).unwrap(), root);
    let nowhere = tempfile::tempdir().unwrap();
    let error = Project::find(nowhere.path()).unwrap_err();
    assert!(matches!(error, Error::NoProject { .. }));
    assert_eq!(error.hint().unwrap(), "start one with headworks init DIR, or name an existing one with -C DIR");
    let error = Project::find(&nowhere.path().join("missing")).unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error}");
}

#[test]
fn an_unreadable_project_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = Project::load(dir.path());
    assert_eq!(
        loaded.problems[0].to_string(),
        "error: the file cannot be read: No such file or directory (os error 2)\n  --> headworks.toml\n  \
         hint: start a project with headworks init DIR, or name an existing one with -C DIR"
    );
    let dir = write(&[("jobs/a.sql", "/* job */ SELECT 1")]);
    fs::write(dir.path().join("jobs/latin.sql"), b"/* job */ SELECT '\xe9'").unwrap();
    fs::write(dir.path().join("jobs/big.sql"), "x".repeat(2 << 20)).unwrap();
    let loaded = Project::load(dir.path());
    let shown: Vec<String> = loaded.problems.iter().map(|p| format!("{}: {}", p.place.file, p.message)).collect();
    assert_eq!(
        shown,
        [
            "jobs/big.sql: the file is larger than 1 MiB",
            "jobs/latin.sql: the file cannot be read: stream did not contain valid UTF-8"
        ]
    );
    assert_eq!(loaded.project.jobs.len(), 1, "the others are read all the same");
}

#[test]
fn headers_are_checked_all_at_once() {
    insta::assert_snapshot!(problems(&[
        (
            "jobs/bad.sql",
            "/* job\nshcedule: \"@daily\"\nowner: 5\ncolumns:\n  country: {type: varchr, checks: [notnull]}\n*/\nSELECT 1\n"
        ),
        ("jobs/none.sql", "SELECT 1\n"),
        ("jobs/late.sql", "-- a comment\n/* job\n*/\nSELECT 1\n"),
        ("jobs/open.sql", "/* job\nowner: me\nSELECT 1\n"),
        ("jobs/cron.sql", "/* job\nschedule: \"*/15 * * * *\"\n*/\nSELECT 1\n"),
        ("jobs/yaml.sql", "/* job\nowner: me\n  table: x\n*/\nSELECT 1\n"),
        ("jobs/twice.sql", "/* job\nowner: me\nowner: you\n*/\nSELECT 1\n"),
        ("jobs/nothing.yml", "owner: me\n"),
        ("jobs/both.sql", "/* job\nimport: {connection: p, table: t}\n*/\nSELECT 1\n"),
        ("jobs/a b.sql", "/* job\n*/\nSELECT 1\n"),
        ("jobs/1st.sql", "/* job\nname: first\n*/\nSELECT 1\n"),
    ]));
}

#[test]
fn meanings_are_checked_all_at_once() {
    insta::assert_snapshot!(problems(&[
        ("jobs/ends.sql", "/* job\nstart: 2013-02-01\nend: 2013-01-01\nschedule: 0 0 30 2 *\n*/\nSELECT 1\n"),
        ("jobs/early.sql", "/* job\nstart: 2013-02-01\nend: 2013-01-01\ncatchup: none\n*/\nSELECT 1\n"),
        ("jobs/hw_run.sql", "/* job\n*/\nSELECT 1\n"),
        ("jobs/upsert.sql", "/* job\nkind: upsert\n*/\nSELECT 1\n"),
        ("jobs/key.sql", "/* job\nkind: upsert\nkey: [idd]\ncolumns: {id: {}, ID: {}}\n*/\nSELECT 1\n"),
        ("jobs/keyed.sql", "/* job\nkey: [id]\n*/\nSELECT 1\n"),
        (
            "jobs/view.sql",
            "/* job\nkind: view\nschedule: '@daily'\nwait: [upsert]\nchecks: [{name: a, sql: select true}]\ncolumns: {a: {checks: [unique]}}\n*/\nSELECT 1 FROM wait::upsert\n"
        ),
        ("jobs/parts.sql", "/* job\npartition_by: [ds, hour]\n*/\nSELECT 1\n"),
        ("jobs/hours.sql", "/* job\ngrain: hour\npartition_by: [hour]\n*/\nSELECT 1\n"),
        ("jobs/catchup.sql", "/* job\nschedule: '@daily'\ncatchup: all\n*/\nSELECT 1\n"),
        (
            "jobs/checks.sql",
            "/* job\ncolumns:\n  a: {checks: [{accepted_values: []}]}\nchecks:\n  - {name: x, sql: \"select coun(* from this\"}\n  - {name: x, row_count: {min: 5, max: 1}}\n  - {name: y, row_count: {}}\n  - {name: z, sql: \"select '{{ dss }}'\"}\n*/\nSELECT 1\n"
        ),
        ("jobs/import.yml", "import: {connection: prodution, table: t, columns: [a], types: {b: bigint}}\n"),
        ("headworks.toml", CONFIG),
    ]));
}

#[test]
fn sql_is_checked_where_it_stands() {
    insta::assert_snapshot!(problems(&[
        ("jobs/parse.sql", "/* job\nowner: me\n*/\nSELECT a,\n       b c d\nFROM t\n"),
        ("jobs/empty.sql", "/* job\n*/\n"),
        ("jobs/two.sql", "/* job\n*/\nSELECT 1;\nSELECT 2;\n"),
        ("jobs/write.sql", "/* job\n*/\nINSERT INTO t SELECT 1\n"),
        ("jobs/prefix.sql", "/* job\n*/\nSELECT 1\nFROM wiat::t\n"),
        ("jobs/macro.sql", "/* job\n*/\nSELECT '{{ dss }}'\n"),
        ("jobs/method.sql", "/* job\n*/\nSELECT '{{ macros.ds_ad(ds, 1) }}'\n"),
        ("jobs/block.sql", "/* job\n*/\nSELECT 1\n{% if ds %}\n"),
        ("jobs/string.sql", "/* job\n*/\nSELECT 'abc\n"),
    ]));
}

#[test]
fn jobs_are_checked_against_each_other() {
    insta::assert_snapshot!(problems(&[
        ("jobs/a.sql", "/* job\n*/\nSELECT 1\nFROM wait::b\n"),
        ("jobs/b.sql", "/* job\nwait: [c]\n*/\nSELECT 1\n"),
        ("jobs/c.sql", "/* job\n*/\nSELECT 1 FROM latest::b, wait::a\n"),
        ("jobs/first.sql", "/* job\n*/\nSELECT 1\n"),
        ("jobs/second.sql", "/* job\ntable: First\n*/\nSELECT 1\n"),
        ("jobs/third.sql", "/* job\nname: first\n*/\nSELECT 1\n"),
        ("jobs/me.sql", "/* job\nwait: [self, {table: self, upto: ds}]\n*/\nSELECT 1 FROM wait::me, wait::this@-1\n"),
        (
            "jobs/plain.sql",
            "/* job\nwait: [first]\n*/\nSELECT 1 FROM first, plain, me, b JOIN b x USING (y), latest::frist, wait::frist\n"
        ),
        ("jobs/broken.sql", "/* job\nownr: me\n*/\nSELECT 1\n"),
        ("jobs/uses_broken.sql", "/* job\n*/\nSELECT 1 FROM wait::broken\n"),
        ("jobs/v.sql", "/* job\nkind: view\n*/\nSELECT 1 FROM first\n"),
        (
            "jobs/on_view.sql",
            "/* job\ncolumns: {a: {checks: [{relationships: {table: nobody, column: a}}]}}\n*/\nSELECT 1 FROM wait::v\n"
        ),
    ]));
}

#[test]
fn a_circle_through_earlier_partitions_is_none() {
    let (_dir, loaded) = load(&[
        ("jobs/a.sql", "/* job\n*/\nSELECT 1 FROM wait::b@-1\n"),
        ("jobs/b.sql", "/* job\n*/\nSELECT 1 FROM wait::a\n"),
    ]);
    assert_eq!(loaded.problems, vec![]);
    // Hours of my own day still lie in it.
    let (_dir, loaded) = load(&[
        ("jobs/a.sql", "/* job\n*/\nSELECT 1 FROM wait::b@-1\n"),
        ("jobs/b.sql", "/* job\ngrain: hour\n*/\nSELECT 1 FROM wait::a\n"),
    ]);
    assert_eq!(loaded.problems.len(), 1);
    assert!(loaded.project.jobs.is_empty());
}

#[test]
fn engine_errors_are_shown_in_the_file() {
    let (_dir, loaded) =
        load(&[("jobs/a.sql", "/* job\nowner: me\n*/\n\nSELECT x\nFROM wait::b y WHERE ds = '{{ ds }}'\n")]);
    let project = loaded.project;
    let job = project.job("a").unwrap();
    let context = headworks_flow::RunContext {
        run_id: "r".parse().unwrap(),
        env: "dev".to_owned(),
        params: serde_json::Map::new(),
    };
    let plan = job.plan_run(&project, job.interval_of("2013-01-01".parse().unwrap(), None).unwrap(), &context).unwrap();
    let sql = plan.sql.unwrap();
    assert_eq!(sql.sql, "SELECT x\nFROM b y WHERE ds = '2013-01-01'");
    let problem = job.sql_problem(&sql, 2, 8, "no such column", None);
    assert_eq!(
        problem.to_string(),
        "error: no such column\n  --> jobs/a.sql:6:14\n   |\n 6 | FROM wait::b y WHERE ds = '{{ ds }}'\n   |              ^"
    );
    let problem = job.header_problem(&["owner"], "nobody is called that", None);
    assert_eq!((problem.place.line, problem.place.column), (2, 1));
}

#[test]
fn settings_come_with_their_origin() {
    let dir = write(&[("headworks.toml", CONFIG)]);
    let overrides = Overrides {
        env: [("HEADWORKS__EXECUTION__TASKS_MAX".to_owned(), "3".to_owned())].into(),
        flags: vec![("storage.path".to_owned(), "/data".to_owned())],
    };
    let loaded = Project::load_with(dir.path(), &overrides);
    assert_eq!(loaded.problems, vec![]);
    insta::assert_snapshot!(
        loaded
            .project
            .settings
            .iter()
            .map(|s| format!("{} = {} ({:?})", s.path, s.value, s.origin))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

#[test]
fn a_thousand_files_are_read_fast() {
    let dir = write(&[("headworks.toml", CONFIG)]);
    let header = |n: usize| {
        format!(
            "/* job\nschedule: \"0 2 * * *\"\nowner: data\ndescription: Table {n}.\nstart: 2013-01-01\ncolumns:\n  country: {{type: varchar, \
             checks: [not_null]}}\n  orders: {{type: bigint, description: \"delivered orders\"}}\nchecks:\n  - {{name: not_empty, sql: \
             \"select count(*) > 0 from this\"}}\ndeadline: \"07:00\"\n*/\n"
        )
    };
    fs::create_dir_all(dir.path().join("jobs")).unwrap();
    for n in 0..1000 {
        let body = "SELECT d.country, count(*) AS orders, sum(p.price) AS price\nFROM wait::t0 d\nJOIN latest::t1 p ON p.id = d.id\n\
                    WHERE d.ds = '{{ ds }}' AND d.created BETWEEN '{{ data_interval_start }}' AND '{{ data_interval_end }}'\nGROUP BY d.country\n";
        let body = if n < 2 { "SELECT 'a' AS country, 1 AS orders" } else { body };
        fs::write(path(dir.path(), n), format!("{}{body}", header(n))).unwrap();
    }
    let started = std::time::Instant::now();
    let loaded = Project::load(dir.path());
    let took = started.elapsed();
    assert_eq!((loaded.problems.len(), loaded.project.jobs.len()), (0, 1000));
    println!("1,000 job files took {took:?}");
    // The goal is one second; a busy machine gets more.
    assert!(took.as_secs_f64() < 3.0, "{took:?}");
}

fn path(root: &Path, n: usize) -> std::path::PathBuf {
    root.join(format!("jobs/t{n}.sql"))
}

#[test]
fn schemas_describe_every_key() {
    for schema in [headworks_flow::job_schema(), headworks_flow::config_schema()] {
        let properties = schema["properties"].as_object().unwrap();
        assert!(!properties.is_empty());
        for (key, part) in properties {
            assert!(part["description"].is_string() || part["$ref"].is_string(), "{key} has no description");
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}

#[test]
fn warnings_leave_jobs_usable() {
    let (_dir, loaded) = load(&[("jobs/a.sql", "/* job\n*/\nSELECT 1 FROM wait::elsewhere\n")]);
    assert_eq!(loaded.problems.iter().map(|p| p.severity).collect::<Vec<_>>(), [Severity::Warning]);
    assert!(!loaded.has_errors());
    assert!(loaded.project.job("a").is_ok());
}
