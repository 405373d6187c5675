//! Environments: production's tables are read from staging, and nothing of production is touched.

use std::{collections::BTreeMap, path::PathBuf};

use headworks_testkit::{Attach, DuckDb, Moto, TempPostgres};
use insta::assert_snapshot;

use crate::project::{NUMBERS, Project};

const STAGING: &str = "[project]\nname = \"test\"\n\n[environments.staging]\n";

/// Counts the numbers of the day, on top of the day before.
const TOTAL: &str = r#"/* job
owner: tests
schedule: "@daily"
start: 2026-01-01
kind: cumulative
columns:
  total: {type: bigint}
  env: {type: varchar}
*/
SELECT count(*) + coalesce((SELECT max(total) FROM wait::self@-1 WHERE ds = DATE '{{ prev_ds }}'), 0) AS total,
  '{{ env }}' AS env
FROM wait::numbers WHERE ds = DATE '{{ ds }}'
"#;

fn project(config: &str) -> Project {
    Project::empty().file("headworks.toml", config).file("jobs/numbers.sql", NUMBERS).file("jobs/total.sql", TOTAL)
}

/// Everything of production that lies in the project's folder, but for the two files that SQLite needs beside a database that is
/// being read: the one is only shared memory, the other is empty.
fn production_files(project: &Project) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in project.files(".headworks").into_iter().chain(project.files("lake")) {
        let text = path.to_string_lossy();
        if text.contains("/environments/") || text.ends_with("-shm") {
            continue;
        }
        let content = std::fs::read(&path).unwrap();
        // A process that is gone may have left commits in it; an empty one is a reader's.
        if text.ends_with("-wal") && content.is_empty() {
            continue;
        }
        found.insert(path, content);
    }
    found
}

fn backfill(project: &Project, env: &[&str], jobs: &[&str], from: &str, to: &str) -> serde_json::Value {
    project.json(&[env, &["backfill"], jobs, &["--from", from, "--to", to]].concat())
}

const ENV: [&str; 2] = ["--env", "staging"];

#[test]
fn staging_reads_production_and_changes_nothing_of_it() {
    let project = project(STAGING);
    backfill(&project, &[], &["numbers", "total"], "2026-01-01", "2026-01-03");
    let before = production_files(&project);
    assert!(before.len() > 5, "{:?}", before.keys());

    // What staging lacks is read from production: by queries, by waits, and as a job's own past.
    let staged = |args: &[&str]| project.ok(&[&ENV, args].concat());
    assert_eq!(staged(&["sql", "SELECT ds, total, env FROM total_latest"]), "ds,total,env\n2026-01-03,9,production\n");
    let done = backfill(&project, &ENV, &["total"], "2026-01-03", "2026-01-03");
    assert_eq!((&done["success"], &done["failed"]), (&1.into(), &0.into()), "{done}");
    assert_eq!(staged(&["sql", "SELECT ds, total, env FROM total"]), "ds,total,env\n2026-01-03,9,staging\n");
    let listed = project.json(&[&ENV[..], &["tables", "list"]].concat());
    let from = |n: usize| {
        (listed["tables"][n]["table"].as_str().unwrap(), listed["tables"][n]["environment"].as_str().unwrap())
    };
    assert_eq!((from(0), from(1)), (("numbers", "production"), ("total", "staging")), "{listed}");
    assert_snapshot!("tables_of_staging", project.seen_loosely(&[&ENV[..], &["tables", "list"]].concat()));
    assert!(staged(&["tables", "show", "numbers"]).contains("production"));
    assert_eq!(
        project.json(&[&ENV[..], &["tables", "history", "numbers"]].concat())["versions"].as_array().unwrap().len(),
        3
    );
    let runs = project.json(&[&ENV[..], &["runs", "list"]].concat());
    assert_eq!(runs["runs"].as_array().unwrap().len(), 1, "staging has its own runs: {runs}");
    let id = runs["runs"][0]["run_id"].as_str().unwrap();
    assert!(staged(&["runs", "logs", id]).contains("reading `numbers` from production"));

    // A table that staging has is staging's alone, and a broken job there hurts nobody.
    let blocked = project.run(&[&ENV[..], &["run", "total", "--ds", "2026-01-02"]].concat());
    assert_eq!(blocked.code, 1, "{blocked:?}");
    assert!(blocked.stderr.contains("total` has no partition ds=2026-01-01"), "{blocked:?}");
    assert!(blocked.stderr.contains("headworks --env staging backfill total"), "{blocked:?}");
    project.write(
        "jobs/numbers.sql",
        &NUMBERS.replace("(3, 'Ünï')", "(3, 'three'), (4, 'four')").replace("= 3 from", "= 4 from"),
    );
    backfill(&project, &ENV, &["numbers"], "2026-01-04", "2026-01-04");
    assert_eq!(staged(&["sql", "SELECT ds, count(*) AS n FROM numbers GROUP BY ds"]), "ds,n\n2026-01-04,4\n");
    let restored =
        project.run(&[&ENV[..], &["tables", "restore", "numbers", "--ds", "2026-01-01", "--version", "1"]].concat());
    assert_ne!(restored.code, 0, "{restored:?}");
    assert!(staged(&["doctor"]).contains("production's lake: 2 tables at"));
    project.ok(&["--env", "staging", "gc"]);
    let forgotten = project.run(&[&ENV[..], &["jobs", "forget", "total", "--yes"]].concat());
    assert_eq!(forgotten.code, 0, "{forgotten:?}");

    let after = production_files(&project);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (path, content) in &before {
        assert!(after[path] == *content, "{} has changed", path.display());
    }
    assert_eq!(project.ok(&["sql", "SELECT count(*) AS n FROM numbers"]), "n\n9\n");
    let gc = project.json(&["gc", "--dry-run", "--set", "retention.orphans=0s"]);
    assert_eq!(gc["removals"].as_array().unwrap().len(), 0, "production sees nothing of staging: {gc}");

    // DuckDB reads both.
    for (folder, name, days) in [(".headworks", "production", 3), (".headworks/environments/staging", "staging", 1)] {
        let mut duck = DuckDb::start().unwrap();
        duck.attach(&Attach::sqlite(project.path().join(folder).join("metadata.db"))).unwrap();
        let found = duck.texts("select count(*), min(env) from lake.total").unwrap();
        assert_eq!(found, [[Some(days.to_string()), Some(name.to_owned())]], "{folder}");
    }
}

#[test]
fn a_publish_in_production_ends_a_wait_in_staging() {
    let project = project(STAGING);
    backfill(&project, &[], &["numbers", "total"], "2026-01-01", "2026-01-01");
    // The database stays open in staging while production works.
    let waiting =
        project.command(&["--env", "staging", "run", "total", "--ds", "2026-01-02", "--wait", "5m"]).spawn().unwrap();
    project.ok(&["run", "numbers", "--ds", "2026-01-02"]);
    let outcome = crate::project::outcome(waiting);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(project.ok(&["--env", "staging", "sql", "SELECT ds, total FROM total"]), "ds,total\n2026-01-02,6\n");
}

#[test]
fn a_wait_that_production_met_does_not_make_a_run_read_an_empty_day() {
    let reader = "/* job\nowner: tests\nschedule: \"@daily\"\nstart: 2026-01-01\n*/\n\
        SELECT count(*) AS n FROM wait::numbers WHERE ds = DATE '{{ ds }}'\n";
    let project = project(STAGING).file("jobs/reader.sql", reader);
    backfill(&project, &[], &["numbers"], "2026-01-01", "2026-01-02");
    // Staging gets the first day only, and with it a table of its own, after both waits were met.
    project.write("jobs/numbers.sql", &NUMBERS.replace("start: 2026-01-01", "start: 2026-01-01\nend: 2026-01-01"));
    let days = ["--from", "2026-01-01", "--to", "2026-01-02", "--max-active", "1"];
    let outcome = project.run(&[&ENV[..], &["backfill", "numbers", "reader"], &days].concat());
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let lacks = "environment `staging` has a table `numbers` of its own, without ds=2026-01-02";
    assert!(outcome.stderr.contains(lacks), "{outcome:?}");
    assert_eq!(project.ok(&[&ENV[..], &["sql", "SELECT ds, n FROM reader"]].concat()), "ds,n\n2026-01-01,3\n");
}

#[test]
fn foreign_commits_are_found_without_a_word_in_production() {
    let project = project(STAGING);
    backfill(&project, &[], &["numbers"], "2026-01-01", "2026-01-01");
    let mut duck = DuckDb::start().unwrap();
    duck.attach(&Attach::sqlite(project.path().join(".headworks/metadata.db")).inlined_rows_max(0)).unwrap();
    duck.run("insert into lake.numbers select date '2026-01-02', range, 'x' from range(50)").unwrap();
    drop(duck);
    let before = production_files(&project);
    // From this start on there is no day before to wait for.
    project.write("jobs/total.sql", &TOTAL.replace("start: 2026-01-01", "start: 2026-01-02"));
    project.ok(&["--env", "staging", "run", "total", "--ds", "2026-01-02"]);
    assert_eq!(project.ok(&["--env", "staging", "sql", "SELECT total FROM total"]), "total\n50\n");
    assert_eq!(
        project.ok(&["--env", "staging", "sql", "SELECT max(ds) AS ds FROM numbers_latest"]),
        "ds\n2026-01-02\n"
    );
    assert!(production_files(&project) == before, "production's registry is caught up by production");
}

#[test]
fn production_may_not_exist_yet() {
    let project = project(STAGING);
    let staged = backfill(&project, &ENV, &["numbers", "total"], "2026-01-01", "2026-01-02");
    assert_eq!(staged["success"], 4, "{staged}");
    assert!(production_files(&project).is_empty(), "{:?}", production_files(&project).keys());
    assert!(!project.path().join("lake").exists());
    let unknown = project.run(&["--env", "stagin", "sql", "SELECT 1"]);
    assert_eq!(unknown.code, 2);
    assert!(
        unknown.stderr.contains("there is no environment `stagin`")
            && unknown.stderr.contains("did you mean `staging`"),
        "{unknown:?}"
    );
}

#[test]
fn environments_are_not_mixed_up() {
    // What the words of the settings hide, the database itself and the folder tell.
    let project =
        project("[storage]\npath = \"lake\"\n[environments.staging]\nstorage.path = \"link\"\n[environments.other]\n");
    project.ok(&["run", "numbers", "--ds", "2026-01-01"]);
    std::os::unix::fs::symlink(project.path().join("lake"), project.path().join("link")).unwrap();
    let shared = project.run(&["--env", "staging", "gc"]);
    assert_eq!(shared.code, 2, "{shared:?}");
    assert!(shared.stderr.contains("among production's"), "{shared:?}");
    project.ok(&["--env", "other", "run", "numbers", "--ds", "2026-01-01"]);
    project.write(
        "headworks.toml",
        "[environments.new]\nmetadata.url = \"sqlite:.headworks/environments/other/metadata.db\"\n",
    );
    let taken = project.run(&["--env", "new", "runs", "list"]);
    assert_eq!(taken.code, 2, "{taken:?}");
    assert!(taken.stderr.contains("belongs to environment `other`, not to `new`"), "{taken:?}");
    project.write("headworks.toml", "[project]\nname = \"test\"\n");
    let swapped =
        project.run(&["--set", "metadata.url=sqlite:.headworks/environments/other/metadata.db", "runs", "list"]);
    assert!(swapped.stderr.contains("belongs to environment `other`, not to `production`"), "{swapped:?}");
}

#[test]
fn config_show_tells_an_environments_origins() {
    let project = Project::empty();
    project.write(
        "headworks.toml",
        "[project]\nname = \"test\"\n\n[metadata]\nurl = \"postgres://me@db/prod\"\n\n[environments.staging]\n\
         storage.path = \"s3://lake/staging\"\nengine.memory = \"256MiB\"\n",
    );
    assert_snapshot!(project.seen(&["--env", "staging", "config", "show"]));
}

/// PostgreSQL with a schema per environment, and one bucket with a prefix per environment.
#[test]
fn the_same_on_postgres_and_s3() {
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let moto = Moto::start().unwrap();
    moto.create_bucket("lake").unwrap();
    let config = format!(
        "[metadata]\nurl = \"{url}\"\n[storage]\npath = \"s3://lake/production\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
         access_key_id = \"test\"\nsecret_access_key = \"test\"\nallow_http = true\n\
         [environments.staging]\nmetadata.schema = \"staging\"\nstorage.path = \"s3://lake/staging\"\n",
        moto.endpoint()
    );
    let project = project(&config);
    backfill(&project, &[], &["numbers", "total"], "2026-01-01", "2026-01-02");
    let rows = "select string_agg(table_schema || '.' || table_name || ' ' || md5(query_to_xml(
        format('select * from %I.%I t order by t::text', table_schema, table_name), true, true, '')::text), ',' order by 1)
        from information_schema.tables where table_schema in ('headworks', 'headworks_lake')";
    let seen = || {
        let keys = moto.keys("lake", "production").unwrap();
        let files: Vec<_> = keys.iter().map(|key| moto.get("lake", key).unwrap()).collect();
        (TempPostgres::shared().unwrap().psql(&database, rows).unwrap(), keys, files)
    };
    let before = seen();
    let done = backfill(&project, &ENV, &["total"], "2026-01-02", "2026-01-02");
    assert_eq!(done["success"], 1, "{done}");
    let both = "SELECT t.env, count(*) AS n FROM total t JOIN numbers n ON n.ds = t.ds GROUP BY t.env";
    assert_eq!(project.ok(&[&ENV[..], &["sql", both]].concat()), "env,n\nstaging,3\n");
    project.ok(&["--env", "staging", "gc"]);
    assert!(before == seen(), "production has changed");
    assert!(!moto.keys("lake", "staging").unwrap().is_empty());
    assert_eq!(project.ok(&["sql", both]), "env,n\nproduction,6\n");
}
