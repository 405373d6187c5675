use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use headworks_testkit::{Attach, DuckDb, python};
use insta::assert_snapshot;

use crate::project::{NUMBERS, Project, outcome};

/// A second job that counts what `numbers` has of the day.
const TOTAL: &str = r#"/* job
description: Numbers of the day
owner: tests
schedule: "@daily"
start: 2026-01-01
kind: cumulative
wait: [self@-1]
*/
SELECT count(*) AS numbers FROM wait::numbers WHERE ds = DATE '{{ ds }}'
"#;

fn two_jobs() -> Project {
    Project::numbers().file("jobs/metrics/total.sql", TOTAL)
}

#[test]
fn the_first_project_works_at_once() {
    let project = Project::nothing();
    project.ok(&["init", "shop"]);
    project.ok(&["-C", "shop", "run", "calendar", "--ds", "2026-01-03"]);
    let rows = project.ok(&["-C", "shop", "sql", "SELECT day, weekday, is_weekend, ds FROM calendar_latest"]);
    assert_eq!(rows, "day,weekday,is_weekend,ds\n2026-01-03,Saturday,true,2026-01-03\n");
}

#[test]
fn a_backfill_orders_itself_and_repeats_nothing() {
    let project = two_jobs();
    let range = ["--from", "2026-01-01", "--to", "2026-01-05"];
    assert_snapshot!("backfill_dry_run", project.seen(&[&["backfill", "--all", "--dry-run"][..], &range].concat()));
    let first = project.json(&[&["backfill", "total", "numbers"][..], &range].concat());
    assert_eq!((&first["success"], &first["failed"]), (&10.into(), &0.into()), "{first}");
    let again = project.json(&[&["backfill", "--all"][..], &range].concat());
    assert_eq!((&again["success"], &again["done_before"]), (&0.into(), &10.into()), "{again}");
    let replaced = project.json(&[&["backfill", "total", "--reprocess", "all"][..], &range].concat());
    assert_eq!(replaced["success"], 5, "{replaced}");
    assert_eq!(project.ok(&["sql", "SELECT ds, numbers FROM total_latest"]), "ds,numbers\n2026-01-05,3\n");
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n FROM numbers"]), "n\n15\n");
}

#[test]
fn parameters_reach_the_sql_and_the_checks() {
    let project = Project::empty().file(
        "jobs/words.sql",
        "/* job\nschedule: \"@daily\"\nstart: 2026-01-01\nparams: {rows: 2, word: a}\nchecks:\n  - name: all_there\n    \
         sql: \"select count(*) = {{ params.rows }} from this where word = '{{ params.word }}'\"\n*/\n\
         SELECT value AS n, '{{ params.word }}' AS word FROM generate_series(1, {{ params.rows }})\n",
    );
    let run = ["run", "words", "--ds", "2026-01-01", "--reprocess"];
    project.ok(&run);
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n, min(word) AS w FROM words"]), "n,w\n2,a\n");
    project.ok(&[&run[..], &["--param", "rows=3", "--param", "word=it"]].concat());
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n, min(word) AS w FROM words"]), "n,w\n3,it\n");
}

#[test]
fn lists_and_shows() {
    let project = two_jobs();
    // Day by day, so that versions come in the days' order.
    for day in ["2026-01-01", "2026-01-02"] {
        project.ok(&["backfill", "numbers", "--from", day, "--to", day, "-q"]);
    }
    project.ok(&["backfill", "--all", "--from", "2026-01-01", "--to", "2026-01-02", "-q"]);
    let mut all = String::new();
    for args in [
        &["tables", "list"][..],
        &["tables", "show", "numbers"],
        &["jobs", "list"],
        &["sql", "SELECT * FROM numbers ORDER BY ds, n", "--format", "table"],
        &["gc", "--dry-run"],
    ] {
        all += &project.seen_loosely(args);
        all += "\n";
    }
    assert_snapshot!(all);
    let runs = project.json(&["runs", "list", "--job", "numbers"]);
    let id = runs["runs"][0]["run_id"].as_str().unwrap().to_owned();
    let shown = project.json(&["runs", "show", &id]);
    assert_eq!(shown["state"], "success");
    assert!(project.ok(&["runs", "show", &id]).contains("publish"));
    assert!(!project.ok(&["runs", "logs", &id]).is_empty());
    assert!(project.ok(&["jobs", "show", "total"]).contains("numbers"));
    assert_eq!(project.json(&["jobs", "list"])["jobs"].as_array().unwrap().len(), 2);
    let doctor = project.run(&["doctor"]);
    assert_eq!(doctor.code, 0, "{doctor:?}");
}

#[test]
fn versions_can_be_read_and_restored() {
    let project = Project::numbers();
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
    project.write("jobs/numbers.sql", &NUMBERS.replace("(3, 'Ünï')", "(4, 'four')"));
    project.ok(&["run", "numbers", "--ds", "2026-01-01", "--reprocess"]);
    let history = project.json(&["tables", "history", "numbers", "--ds", "2026-01-01"]);
    let versions = history["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 2, "{history}");
    let old = versions[1]["version"].to_string();
    assert_eq!(project.ok(&["sql", "SELECT max(n) AS n FROM numbers"]), "n\n4\n");
    let at = format!("SELECT max(n) AS n FROM numbers AT (VERSION => {old})");
    assert_eq!(project.ok(&["sql", &at]), "n\n3\n");
    project.ok(&["tables", "restore", "numbers", "--ds", "2026-01-01", "--version", &old]);
    assert_eq!(project.ok(&["sql", "SELECT max(n) AS n FROM numbers"]), "n\n3\n");
    assert_eq!(project.json(&["tables", "history", "numbers"])["versions"].as_array().unwrap().len(), 3);
}

#[test]
fn adopt_shows_first_and_then_takes() {
    let project = Project::empty()
        .file("old/prices.csv", "day,sku,price\n2026-01-01,a,1.5\n2026-01-01,b,2.5\n2026-01-02,a,1.75\n");
    let args = ["tables", "adopt", "old/prices.csv", "--table", "prices", "--partition-by", "day"];
    assert_snapshot!("adopt_dry_run", project.seen(&args));
    assert!(project.json(&["tables", "list"])["tables"].as_array().unwrap().is_empty());
    project.ok(&[&args[..], &["--yes"]].concat());
    assert_eq!(
        project.ok(&["sql", "SELECT ds, count(*) AS n FROM prices GROUP BY ds ORDER BY ds"]),
        "ds,n\n2026-01-01,2\n2026-01-02,1\n"
    );
}

#[test]
fn adopt_takes_in_what_other_programs_wrote() {
    let project = Project::empty().file("old files/tabs.tsv", "day\tsku\n2026-01-01\t\"a,b\"\n").file(
        "old files/Verkäufe 2026.csv",
        "\u{feff}Tag;Größe in cm;Preis\r\n2026-01-01;12;\"1,50\"\r\n2026-01-02;;3\r\n",
    );
    let parquet = project.path().join("old files/parted");
    python(
        "import sys, os, datetime, pyarrow as pa, pyarrow.parquet as pq, pyarrow.orc as orc
for day in ('2026-01-01', '2026-01-02'):
    os.makedirs(f'{sys.argv[1]}/ds={day}')
    table = pa.table({'id': [1, 2], 'Größe in cm': [1.5, None], 'order': ['a', 'ß'], 'when': [datetime.datetime(2026, 1, 5)] * 2})
    pq.write_table(table, f'{sys.argv[1]}/ds={day}/part 0.parquet')
orc.write_table(table, f'{sys.argv[1]}/../Ünï.orc')",
        &[&parquet.display().to_string()],
    )
    .unwrap();
    for (path, table, by, rows) in [
        ("old files/tabs.tsv", "tabs", "day", "ds,day,sku\n2026-01-01,2026-01-01,\"a,b\"\n"),
        (
            "old files/Verkäufe 2026.csv",
            "Verkäufe",
            "Tag",
            "ds,Tag,Größe in cm,Preis\n2026-01-01,2026-01-01,12,\"1,50\"\n2026-01-02,2026-01-02,,3\n",
        ),
        (
            "old files/Ünï.orc",
            "uni",
            "when",
            "ds,id,Größe in cm,order,when\n2026-01-05,1,1.5,a,2026-01-05 00:00:00\n2026-01-05,2,,ß,2026-01-05 00:00:00\n",
        ),
    ] {
        project.ok(&["tables", "adopt", path, "--table", table, "--partition-by", by, "--yes"]);
        assert_eq!(project.ok(&["sql", &format!("SELECT * FROM \"{table}\"")]), rows, "{path}");
    }
    // Folders name the days, and taking the same in again replaces them.
    for version in [4, 5] {
        let taken = project.json(&["tables", "adopt", "old files/parted", "--table", "parted", "--yes"]);
        assert_eq!(taken["version"], version, "{taken}");
        assert_eq!(
            project.ok(&["sql", "SELECT count(*) AS n, count(DISTINCT ds) AS days FROM parted"]),
            "n,days\n4,2\n"
        );
    }
    project.ok(&["tables", "restore", "parted", "--ds", "2026-01-02", "--version", "4"]);
    let history = project.json(&["tables", "history", "parted", "--ds", "2026-01-02"]);
    assert_eq!(history["versions"][0]["action"], "restore", "{history}");
    assert_eq!(project.json(&["gc", "--dry-run", "--set", "retention.orphans=0s"])["removals"], serde_json::json!([]));
}

#[test]
fn views_that_duckdb_makes_are_read() {
    let project = Project::numbers();
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
    let mut duck = DuckDb::start().unwrap();
    duck.attach(&Attach::sqlite(project.path().join(".headworks/metadata.db"))).unwrap();
    duck.run("create view lake.small(\"the number\", word) as select n, name from lake.numbers where n < 3").unwrap();
    duck.run("create view lake.main.one as select a.n from lake.main.numbers a join lake.small b on b.\"the number\" = a.n where n = 1")
        .unwrap();
    assert_eq!(
        project.ok(&["sql", "SELECT \"the number\", word FROM small ORDER BY 1"]),
        "the number,word\n1,one\n2,two\n"
    );
    assert_eq!(project.ok(&["sql", "SELECT * FROM one"]), "n\n1\n");
}

#[test]
fn sql_takes_its_text_from_anywhere_and_writes_every_format() {
    let project = Project::empty().file("q.sql", "SELECT 1 AS a, 'x' AS b");
    assert_eq!(project.ok(&["sql", "-f", "q.sql"]), "a,b\n1,x\n");
    assert_eq!(project.run_with_input(&["sql"], "SELECT 2 AS a").stdout, "a\n2\n");
    assert_eq!(project.ok(&["sql", "-f", "q.sql", "--json"]), "[{\"a\":1,\"b\":\"x\"}]\n");
    assert_eq!(project.ok(&["sql", "-f", "q.sql", "--format", "jsonl"]), "{\"a\":1,\"b\":\"x\"}\n");
    assert_eq!(project.ok(&["sql", "-f", "q.sql", "--format", "table"]), " a │ b\n───┼───\n 1 │ x\n(1 row)\n");
    project.ok(&["sql", "-f", "q.sql", "-o", "out.parquet"]);
    assert!(std::fs::read(project.path().join("out.parquet")).unwrap().starts_with(b"PAR1"));
    assert_eq!(project.ok(&["sql", "SELECT NULL AS a, '' AS b, 'x;y' AS c"]), "a,b,c\n,\"\",x;y\n");
    for (args, message) in [
        (&["sql", "SELECT 1", "-o", "out.xlsx"][..], "`.xlsx` is no format"),
        (&["sql", "SELECT 1", "-o", "nowhere/out.csv"], "there is no folder `nowhere`"),
        (&["sql", "SELECT 1 AS a, 2 AS a"], "two columns of the result have the same name: `a`"),
    ] {
        let refused = project.run(args);
        assert!(
            refused.code == 2 && refused.stderr.contains(message) && refused.stderr.contains("hint:"),
            "{refused:?}"
        );
    }
    let failed = project.run(&["sql", "SELECT * FROM nothing", "-o", "never.csv"]);
    assert_ne!(failed.code, 0);
    assert!(project.files(".").iter().all(|f| !f.to_string_lossy().contains("never")));
}

#[test]
fn a_closed_pipe_is_the_end_and_no_error() {
    let project = Project::empty();
    let sql = "SELECT value FROM generate_series(1, 2000000)";
    for format in ["csv", "jsonl", "json"] {
        let mut child = project.command(&["sql", sql, "--format", format]).spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{format}");
        let outcome = outcome(child);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{format}");
    }
}

#[test]
fn two_commands_on_one_project_both_end_right() {
    let project = two_jobs();
    let args = ["backfill", "--all", "--from", "2026-01-01", "--to", "2026-01-10", "--json"];
    let children: Vec<_> = (0..2).map(|_| project.command(&args).stdin(Stdio::null()).spawn().unwrap()).collect();
    for child in children {
        let outcome = outcome(child);
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n FROM numbers"]), "n\n30\n");
    let history = project.json(&["tables", "history", "numbers", "--limit", "100"]);
    assert_eq!(history["versions"].as_array().unwrap().len(), 10, "{history}");
}
