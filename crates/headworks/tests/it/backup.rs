//! Backups made while others write, brought back elsewhere, and what is said when that cannot be.

use std::{
    fs::{self, File},
    path::Path,
    process::Child,
};

use headworks_domain::{Clock, SystemClock};
use headworks_testkit::{Attach, DuckDb, Moto, TempPostgres};
use serde_json::Value;

use crate::project::{NUMBERS, Project, outcome};

/// A project on either database.
fn on(postgres: bool) -> Project {
    let project = Project::nothing();
    let metadata = if postgres {
        let url = TempPostgres::shared().unwrap().create_database().unwrap();
        format!("[metadata]\nurl = \"{url}\"\n")
    } else {
        String::new()
    };
    project.write("shop/headworks.toml", &format!("[project]\nname = \"test\"\n{metadata}"));
    project.write("shop/jobs/numbers.sql", NUMBERS);
    project
}

fn backfill<'a>(project: &'a str, from: &'a str, to: &'a str) -> Vec<&'a str> {
    vec!["-C", project, "backfill", "numbers", "--from", from, "--to", to, "-q"]
}

/// What each day of `numbers` has, as our engine reads it.
fn days(project: &Project, place: &[&str]) -> Vec<(String, i64)> {
    let sql = "SELECT ds, count(*) AS n FROM numbers GROUP BY ds ORDER BY ds";
    let rows: Value = serde_json::from_str(&project.ok(&[place, &["sql", sql, "--json"]].concat())).unwrap();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| (row["ds"].as_str().unwrap().to_owned(), row["n"].as_i64().unwrap())).collect()
}

fn file_of(folder: &Path, name: &str) -> std::path::PathBuf {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap().to_string_lossy().ends_with(name) {
                return path;
            }
        }
    }
    panic!("there is no {name}")
}

#[test]
fn a_backup_becomes_the_same_project_elsewhere() {
    let project = on(false);
    project.ok(&backfill("shop", "2026-01-01", "2026-01-04"));
    project.ok(&["-C", "shop", "run", "numbers", "--ds", "2026-01-02", "--reprocess", "-q"]);
    let made = project.json(&["-C", "shop", "backup", "../backups", "--data"]);
    assert_eq!((&made["copied"]["files"], &made["missing"]), (&5.into(), &serde_json::json!([])), "{made}");
    assert_eq!(made["manifest"]["metadata"]["tables"]["hw_run"], 5, "{made}");
    let again = project.json(&["-C", "shop", "backup", "../backups", "--data", "--keep", "1"]);
    assert_eq!((&again["copied"]["files"], &again["removed"]["backups"]), (&0.into(), &1.into()), "{again}");

    let looked = project.json(&["restore", "backups", "--to", "copy", "--dry-run"]);
    assert_eq!((&looked["lacking"], project.path().join("copy").exists()), (&serde_json::json!([]), false), "{looked}");
    let restored = project.json(&["restore", "backups", "--to", "copy"]);
    assert_eq!(
        (&restored["missing"], &restored["take_over_needed"]),
        (&serde_json::json!([]), &false.into()),
        "{restored}"
    );
    for args in [
        &["sql", "SELECT * FROM numbers ORDER BY ds, n"][..],
        &["tables", "history", "numbers", "--json"],
        &["runs", "list", "--json"],
        &["jobs", "list", "--json"],
    ] {
        let of = |place: &'static str| project.ok(&[&["-C", place], args].concat());
        assert_eq!(of("copy"), of("shop"), "{args:?}");
    }
    let old = restored["lake_version"].as_i64().unwrap() - 1;
    let at = format!("SELECT count(*) AS n FROM numbers AT (VERSION => {old})");
    assert_eq!(project.ok(&["-C", "copy", "sql", &at]), "n\n12\n");
    // It goes on as the first did, and neither touches the other's files.
    let done = project.json(&["-C", "copy", "backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-05"]);
    assert_eq!((&done["success"], &done["done_before"]), (&1.into(), &4.into()), "{done}");
    project.ok(&["-C", "copy", "gc"]);
    let doctor = project.run(&["-C", "copy", "doctor"]);
    assert_eq!(doctor.code, 0, "{doctor:?}");
    assert_eq!(days(&project, &["-C", "shop"]).len(), 4);
    assert_eq!(days(&project, &["-C", "copy"]).len(), 5);
}

/// Eight processes publish while backups are made; each backup, brought back, has whole days only, and the runs that were at
/// work in it are taken up and finished.
fn backups_under_eight_writers(postgres: bool) {
    const MONTHS: usize = 8;
    let project = on(postgres);
    project.ok(&backfill("shop", "2026-01-01", "2026-01-01"));
    let begin = |month: usize| -> Child {
        let (from, to) = (format!("2026-{month:02}-01"), format!("2026-{month:02}-25"));
        project.command(&backfill("shop", &from, &to)).spawn().unwrap()
    };
    let writers: Vec<Child> = (1..=MONTHS).map(begin).collect();
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(project.json(&["-C", "shop", "backup", "../backups", "--data"]));
    }
    for writer in writers {
        let outcome = outcome(writer);
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
    let all = days(&project, &["-C", "shop"]);
    assert_eq!((all.len(), all.iter().all(|(_, n)| *n == 3)), (25 * MONTHS, true));
    let mut days_in_backups = Vec::new();
    for (n, backup) in made.iter().enumerate() {
        assert_eq!(backup["missing"], serde_json::json!([]), "{backup}");
        let place = format!("copy{n}");
        let source = backup["backup"].as_str().unwrap();
        let source = project.path().join("backups").join(Path::new(source).file_name().unwrap());
        // Into SQLite, whatever it came from.
        let to = ["--set", "metadata.url=sqlite:.headworks/metadata.db"];
        let restored = project.json(&[&["restore", source.to_str().unwrap(), "--to", &place][..], &to].concat());
        assert_eq!(restored["missing"], serde_json::json!([]), "{restored}");
        assert_eq!(restored["translated"], postgres, "{restored}");
        let here = [&["-C", place.as_str()][..], &to].concat();
        let found = days(&project, &here);
        assert!(found.iter().all(|(_, n)| *n == 3), "{n}: {found:?}");
        let published = backup["manifest"]["metadata"]["tables"]["hw_partition"].as_u64().unwrap();
        assert_eq!(found.len() as u64, published, "{n}");
        days_in_backups.push(found.len());
        let mut duck = DuckDb::start().unwrap();
        duck.attach(&Attach::sqlite(project.path().join(&place).join(".headworks/metadata.db"))).unwrap();
        let counted = duck.query("select count(*), count(distinct ds), sum(n) from lake.numbers").unwrap();
        let rows = found.len() * 3;
        assert_eq!(counted, [[rows, found.len(), found.len() * 6].map(Value::from)], "{n}");
        if n == 0 {
            let args = ["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-08-25", "-q", "--json"];
            let done: Value = serde_json::from_str(&project.ok(&[&here[..], &args].concat())).unwrap();
            assert_eq!(done["failed"], 0, "{done}");
            let rest = project.json(&[&here[..], &["runs", "list", "--state", "running"]].concat());
            assert_eq!(rest["runs"], serde_json::json!([]), "{rest}");
            assert!(days(&project, &here).len() > found.len());
        }
    }
    assert!(days_in_backups.is_sorted() && days_in_backups[0] < all.len(), "{days_in_backups:?}");
}

#[test]
fn backups_under_eight_writers_on_sqlite() {
    backups_under_eight_writers(false);
}

#[test]
fn backups_under_eight_writers_on_postgres() {
    backups_under_eight_writers(true);
}

#[test]
fn a_project_grows_from_sqlite_to_postgres_and_comes_back() {
    let project = on(false);
    project.ok(&backfill("shop", "2026-01-01", "2026-01-03"));
    project.ok(&["-C", "shop", "backup", "../backups"]);
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    let set = format!("metadata.url={url}");
    let grown = ["-C", "shop", "--set", &set];
    let restored = project.json(&[&grown[..], &["restore", "../backups"]].concat());
    assert_eq!((&restored["missing"], &restored["translated"]), (&serde_json::json!([]), &true.into()), "{restored}");
    assert_eq!(days(&project, &grown), days(&project, &["-C", "shop"]));
    project.ok(&[&grown[..], &["gc", "--take-over"]].concat());
    project.ok(&[&grown[..], &["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-05", "-q"]].concat());
    project.ok(&[&grown[..], &["gc"]].concat());
    // The database that it grew out of says who has the lake now.
    let old = project.run(&["-C", "shop", "gc", "--json"]);
    assert!(old.code != 0 && old.stderr.contains("LAKE_BEHIND"), "{old:?}");

    project.ok(&[&grown[..], &["backup", "../later", "--data"]].concat());
    project.ok(&["restore", "later", "--to", "small"]);
    assert_eq!(days(&project, &["-C", "small"]).len(), 5);
    project.ok(&["-C", "small", "run", "numbers", "--ds", "2026-01-06", "-q"]);
}

#[test]
fn a_lost_database_is_noticed_and_brought_back() {
    let project = on(false);
    project.ok(&backfill("shop", "2026-01-01", "2026-01-02"));
    project.ok(&["-C", "shop", "backup", "../backups"]);
    // Published after the backup, and then the database is gone.
    project.ok(&["-C", "shop", "run", "numbers", "--ds", "2026-01-03", "-q"]);
    fs::remove_dir_all(project.path().join("shop/.headworks")).unwrap();
    let lost = project.run(&["-C", "shop", "sql", "SELECT * FROM numbers", "--json"]);
    assert!(
        lost.code == 2 && lost.stderr.contains("LAKE_OWNED") && lost.stderr.contains("headworks restore"),
        "{lost:?}"
    );
    project.ok(&["-C", "shop", "restore", "../backups"]);
    assert_eq!(days(&project, &["-C", "shop"]).len(), 2);
    let gc = project.run(&["-C", "shop", "gc", "--json"]);
    assert!(gc.code == 2 && gc.stderr.contains("LAKE_BEHIND") && gc.stderr.contains("--take-over"), "{gc:?}");
    assert_ne!(project.run(&["-C", "shop", "doctor"]).code, 0);
    project.ok(&["-C", "shop", "gc", "--take-over"]);
    let dry = project.json(&["-C", "shop", "gc", "--dry-run", "--set", "retention.orphans=0s"]);
    let orphans = dry["removals"].as_array().unwrap().iter().filter(|r| r["what"] == "orphan").count();
    assert_eq!(orphans, 1, "the day that the backup does not know: {dry}");
    let again = project.json(&["-C", "shop", "backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-03"]);
    assert_eq!((&again["success"], &again["done_before"]), (&1.into(), &2.into()), "{again}");
    assert_eq!(project.run(&["-C", "shop", "doctor"]).code, 0);
}

#[test]
fn what_cannot_be_restored_is_refused_with_the_reason() {
    let project = on(false);
    project.ok(&backfill("shop", "2026-01-01", "2026-01-02"));
    project.ok(&["-C", "shop", "backup", "../backups", "--data"]);
    let refused = |args: &[&str], code: &str, words: &str| {
        let outcome = project.run(&[args, &["--json"]].concat());
        assert_ne!(outcome.code, 0, "{args:?} {outcome:?}");
        assert!(outcome.stderr.contains(code) && outcome.stderr.contains(words), "{args:?} {outcome:?}");
        assert!(outcome.stderr.contains("\"hint\":\""), "{args:?} {outcome:?}");
    };
    refused(&["restore", "nowhere", "--to", "copy"], "CLI_NOT_FOUND", "no backup");
    refused(&["-C", "shop", "restore", "../backups"], "RESTORE_NOT_EMPTY", "2 runs");
    refused(&["-C", "shop", "restore", "../backups", "--dry-run"], "RESTORE_NOT_EMPTY", "2 runs");
    // The files of another lake, and another environment's database.
    project.ok(&["init", "else"]);
    project.write("else/jobs/numbers.sql", NUMBERS);
    project.ok(&backfill("else", "2026-01-01", "2026-01-01"));
    let before = project.files("else/lake");
    let lake = format!("storage.path={}", project.path().join("else/lake").display());
    refused(&["restore", "backups", "--to", "mixed", "--set", &lake], "LAKE_OWNED", "another");
    assert_eq!(project.files("else/lake"), before);
    project.write("staged/headworks.toml", "[project]\nname = \"test\"\n[environments.staging]\n");
    refused(&["-C", "staged", "--env", "staging", "restore", "../backups"], "RESTORE_ENVIRONMENT", "production");
    refused(&["restore", "backups", "--to", "shop/jobs"], "CLI_FOLDER_NOT_EMPTY", "neither");
    refused(&["-C", "shop", "backup", "lake/data/backups"], "CLI_USAGE", "clean-up");
    fs::remove_dir_all(project.path().join("shop/lake/data/backups")).unwrap();

    // A bit of a data file, then of the metadata.
    let file = file_of(&project.path().join("backups/data"), ".parquet");
    let mut bytes = fs::read(&file).unwrap();
    bytes[10] ^= 1;
    fs::write(&file, &bytes).unwrap();
    refused(&["restore", "backups", "--to", "copy"], "BACKUP_DAMAGED", ".parquet");
    fs::remove_file(&file).unwrap();
    let looked = project.json(&["restore", "backups", "--to", "other", "--dry-run"]);
    assert_eq!(looked["lacking"].as_array().unwrap().len(), 1, "{looked}");
    // The next backup brings it anew, and the restore that was refused goes on.
    let made = project.json(&["-C", "shop", "backup", "../backups", "--data"]);
    assert_eq!(made["copied"]["files"], 1, "{made}");
    project.ok(&["restore", "backups", "--to", "copy"]);
    assert_eq!(days(&project, &["-C", "copy"]).len(), 2);

    let metadata = file_of(&project.path().join("backups"), "metadata.jsonl");
    let folder = metadata.parent().unwrap().to_str().unwrap().to_owned();
    let text = fs::read_to_string(&metadata).unwrap();
    fs::write(&metadata, text.replacen("success", "failure", 1)).unwrap();
    refused(&["restore", &folder, "--to", "third"], "BACKUP_DAMAGED", "metadata.jsonl");

    // A file of the lake that is gone: the backup says so, and holds the rest.
    fs::remove_file(file_of(&project.path().join("shop/lake/data"), ".parquet")).unwrap();
    let made = project.run(&["-C", "shop", "backup", "../fresh", "--data"]);
    assert!(made.code == 1 && made.stderr.contains("1 data file that the lake names"), "{made:?}");
    let restored = project.json(&["restore", "fresh", "--to", "fourth"]);
    assert_eq!(restored["missing"][0]["table"], "numbers", "{restored}");
    assert_eq!(restored["missing"].as_array().unwrap().len(), 1, "{restored}");
    let doctor = project.json_of_any(&["-C", "fourth", "doctor"]);
    let files = doctor["findings"].as_array().unwrap().iter().find(|f| f["check"] == "files").unwrap();
    assert_eq!(files["state"], "fail", "{doctor}");
}

#[test]
fn a_lake_in_a_bucket_is_backed_up_into_a_folder() {
    let moto = Moto::start().unwrap();
    moto.create_bucket("lake").unwrap();
    let project = on(false);
    let folder = fs::read_to_string(project.path().join("shop/headworks.toml")).unwrap();
    let bucket = format!(
        "{folder}[storage]\npath = \"s3://lake/shop\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"test\"\n\
         secret_access_key = \"test\"\nallow_http = true\n",
        moto.endpoint()
    );
    project.write("shop/headworks.toml", &bucket);
    project.ok(&backfill("shop", "2026-01-01", "2026-01-03"));
    let made = project.json(&["-C", "shop", "backup", "../backups", "--data"]);
    assert_eq!(made["copied"]["files"], 3, "{made}");
    // Back into a folder, and into another place of the bucket.
    for place in ["lake", "s3://lake/again"] {
        let set = format!("storage.path={place}");
        let name = place.rsplit('/').next().unwrap();
        let restored = project.json(&["restore", "backups", "--to", name, "--set", &set]);
        assert_eq!(
            (&restored["missing"], &restored["copied"]["files"]),
            (&serde_json::json!([]), &3.into()),
            "{restored}"
        );
        assert_eq!(days(&project, &["-C", name, "--set", &set]), days(&project, &["-C", "shop"]), "{place}");
        project.ok(&["-C", name, "--set", &set, "gc"]);
    }
    assert_eq!(moto.keys("lake", "again/data/").unwrap().len(), 3);
    assert_eq!(moto.keys("lake", "shop/data/").unwrap().len(), 3);
}

#[test]
fn force_replaces_what_is_there() {
    let project = on(false);
    project.ok(&backfill("shop", "2026-01-01", "2026-01-01"));
    project.ok(&["-C", "shop", "backup", "../backups"]);
    project.ok(&["-C", "shop", "run", "numbers", "--ds", "2026-01-02", "-q"]);
    assert_eq!(days(&project, &["-C", "shop"]).len(), 2);
    project.ok(&["-C", "shop", "restore", "../backups", "--force"]);
    assert_eq!(days(&project, &["-C", "shop"]).len(), 1);
}

#[test]
fn old_runs_and_logs_go_and_a_job_is_forgotten() {
    let project = on(false);
    let shop = ["-C", "shop"];
    project.ok(&backfill("shop", "2026-01-01", "2026-01-03"));
    project.ok(&["-C", "shop", "run", "numbers", "--ds", "2026-01-02", "--reprocess", "-q"]);
    let young = project.json(&[&shop[..], &["gc", "--dry-run"]].concat());
    assert_eq!((&young["runs"]["forgotten"], &young["logs"]), (&0.into(), &serde_json::json!([])), "{young}");
    let no_time = ["--set", "retention.runs=0s"];
    let dry = project.json(&[&shop[..], &["gc", "--dry-run"], &no_time].concat());
    assert_eq!((&dry["runs"]["forgotten"], &dry["runs"]["details"]), (&1.into(), &3.into()), "{dry}");
    let text = project.ok(&[&shop[..], &["gc", "--dry-run"], &no_time].concat());
    assert!(text.contains("1 runs") && text.contains("retention.runs"), "{text}");
    project.ok(&[&shop[..], &["gc"], &no_time].concat());
    assert_eq!(project.json(&[&shop[..], &["runs", "list"]].concat())["runs"].as_array().unwrap().len(), 3);
    // What is done stays done.
    let again =
        project.json(&[&shop[..], &["backfill", "numbers", "--from", "2026-01-01", "--to", "2026-01-03"]].concat());
    assert_eq!((&again["success"], &again["done_before"]), (&0.into(), &3.into()), "{again}");

    let logs = || project.files("shop/.headworks/logs");
    assert_eq!(logs().len(), 4);
    for (n, log) in logs().iter().enumerate() {
        let age = chrono::TimeDelta::seconds(100 * (i64::try_from(n).unwrap() + 1));
        let written = (SystemClock.now() - age).into();
        File::options().append(true).open(log).unwrap().set_modified(written).unwrap();
    }
    let oldest = logs().pop().unwrap();
    let bytes: u64 = logs().iter().map(|log| fs::metadata(log).unwrap().len()).sum();
    let max = format!("retention.log_bytes_max={}KiB", (bytes - 1) / 1024);
    project.ok(&["-C", "shop", "gc", "--set", &max]);
    assert!(!oldest.exists() && !logs().is_empty(), "{oldest:?}");

    let dry = project.json(&[&shop[..], &["jobs", "forget", "numbers", "--dry-run"]].concat());
    assert_eq!(
        (&dry["forgotten"], &dry["runs"], &dry["states"]["success"]),
        (&false.into(), &3.into(), &3.into()),
        "{dry}"
    );
    assert!(project.run(&["-C", "shop", "jobs", "forget", "numbers"]).stderr.contains("--yes does it"));
    project.ok(&[&shop[..], &["run", "numbers", "--ds", "2026-01-04", "-q"]].concat());
    let log = logs();
    let done = project.json(&[&shop[..], &["jobs", "forget", "numbers", "--yes"]].concat());
    assert_eq!((&done["forgotten"], &done["logs"]["files"]), (&true.into(), &1.into()), "{done}");
    assert_eq!(logs().len(), log.len() - 1, "the logs that it knew went along");
    assert_eq!(days(&project, &shop).len(), 4, "what it published stays");
    let unknown = project.run(&["-C", "shop", "jobs", "forget", "numbers"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("no runs of a job"), "{unknown:?}");
}

#[test]
fn doctor_tells_of_backups_logs_and_files() {
    let project = on(false);
    let finding = |check: &str| {
        let doctor = project.json_of_any(&["-C", "shop", "doctor"]);
        let found = doctor["findings"].as_array().unwrap().iter().find(|f| f["check"] == check).cloned();
        let found = found.unwrap_or_else(|| panic!("{check}: {doctor}"));
        (found["state"].as_str().unwrap().to_owned(), found["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(finding("backup"), ("ok".to_owned(), "nothing is published yet".to_owned()));
    project.ok(&backfill("shop", "2026-01-01", "2026-01-01"));
    assert_eq!(finding("backup").0, "warn");
    project.ok(&["-C", "shop", "backup", "../backups"]);
    assert_eq!(finding("backup").0, "ok", "{:?}", finding("backup"));
    assert!(finding("logs").1.contains("at most 5.0 GiB"), "{:?}", finding("logs"));
    assert_eq!(finding("files"), ("ok".to_owned(), "1 file looked for, all there".to_owned()));
    fs::write(file_of(&project.path().join("shop/lake/data"), ".parquet"), "cut").unwrap();
    assert_eq!(finding("files").0, "fail");
}
