use insta::assert_snapshot;

use crate::project::Project;

#[test]
fn help_of_every_command() {
    let project = Project::nothing();
    let mut all = String::new();
    for args in [
        &["--help"][..],
        &["-h"],
        &["init", "--help"],
        &["validate", "--help"],
        &["render", "--help"],
        &["run", "--help"],
        &["backfill", "--help"],
        &["sql", "--help"],
        &["tables", "--help"],
        &["tables", "adopt", "--help"],
        &["tables", "restore", "--help"],
        &["gc", "--help"],
        &["backup", "--help"],
        &["restore", "--help"],
        &["jobs", "forget", "--help"],
        &["doctor", "--help"],
        &["jobs", "--help"],
        &["runs", "--help"],
        &["jobs", "trigger", "--help"],
        &["jobs", "reset", "--help"],
        &["runs", "list", "--help"],
        &["schedule", "--help"],
        &["alerts", "--help"],
        &["alerts", "test", "--help"],
        &["runs", "cancel", "--help"],
        &["runs", "clear", "--help"],
        &["runs", "mark", "--help"],
        &["backfills", "--help"],
        &["backfills", "undo", "--help"],
        &["why", "--help"],
        &["config", "--help"],
        &["schema", "--help"],
        &["demo", "--help"],
    ] {
        all += &project.seen(args);
        all += "\n";
    }
    assert_snapshot!(all);
}

#[test]
fn init_makes_a_project_and_says_what_comes_next() {
    let project = Project::nothing();
    assert_snapshot!(project.seen(&["init", "shop"]));
    let shop = ["-C", "shop"];
    assert_snapshot!("init_validate", project.seen(&[&shop[..], &["validate"]].concat()));
}

#[test]
fn config_shows_values_and_origins() {
    let project = Project::empty();
    project.write(
        "headworks.toml",
        "[project]\nname = \"test\"\n\n[engine]\nmemory = \"512MiB\"\n\n[connections.shop]\ntype = \"postgres\"\n\
         url = \"postgres://reader:secret@db/shop\"\n",
    );
    let mut command = project.command(&["config", "show", "--set", "execution.tasks_max=3"]);
    command.env("HEADWORKS__METADATA__URL", "postgres://me:hidden@host/meta").env("HEADWORKS__ENGINE__THREADS", "2");
    let outcome = crate::project::outcome(command.spawn().unwrap());
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(!outcome.stdout.contains("hidden") && !outcome.stdout.contains("secret@"), "{}", outcome.stdout);
    assert_snapshot!(project.filtered(&outcome.stdout));
}

#[test]
fn render_shows_sql_tasks_and_waits() {
    let project = Project::numbers().file(
        "jobs/metrics/total.sql",
        "/* job\nowner: tests\nschedule: \"@daily\"\nstart: 2026-01-02\nwait: [self@-1]\nchecks:\n  - {name: some, sql: \"select count(*) > 0 from this\"}\n*/\n\
         SELECT count(*) AS days, '{{ ds }}' AS day FROM wait::numbers@-1 WHERE ds < DATE '{{ ds }}'\n",
    );
    assert_snapshot!(project.seen(&["render", "total", "--ds", "2026-01-05"]));
    assert_snapshot!("render_sql", project.seen(&["render", "metrics/total", "--ds", "2026-01-05", "--sql"]));
    assert_snapshot!("render_json", project.seen(&["render", "total", "--ds", "2026-01-05", "--json"]));
}

#[test]
fn schema_is_a_json_schema() {
    let project = Project::nothing();
    let schema: serde_json::Value = serde_json::from_str(&project.ok(&["schema"])).unwrap();
    assert!(schema["properties"]["schedule"]["description"].is_string(), "{schema}");
}
