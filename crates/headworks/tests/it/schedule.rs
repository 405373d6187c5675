//! `headworks schedule`, and the coming ticks of `jobs show`.

use insta::assert_snapshot;
use serde_json::json;

use crate::project::Project;

#[test]
fn ticks_are_listed_with_what_they_are_for() {
    let project = Project::nothing();
    let list = |args: &[&str]| project.ok(&[&["schedule"][..], args].concat());
    let mut all = String::new();
    for args in [
        // The day on which New York's clock skips two o'clock, and the day with 01:30 twice.
        &["30 2 * * *", "--tz", "America/New_York", "--from", "2026-03-06", "--to", "2026-03-09"][..],
        &["30 1 * * *", "--tz", "America/New_York", "--from", "2026-10-31", "--to", "2026-11-02"],
        &["0 * * * *", "--tz", "America/New_York", "--from", "2026-11-01T00:00", "--to", "2026-11-01T03:00"],
        // The second tick of a day covers nothing when partitions are days.
        &["0 2,14 * * *", "--from", "2026-03-06", "--to", "2026-03-07", "--grain", "day"],
        &["@monthly", "--from", "2026-01-01", "--to", "2026-03-31"],
        &["every 12 hours", "--from", "2026-03-06T06:00:00Z", "--to", "2026-03-07T12:00:00+00:00"],
    ] {
        all += &format!("$ headworks schedule {}\n{}\n", args.join(" "), list(args));
    }
    assert_snapshot!(all);
}

#[test]
fn ticks_are_documents() {
    let project = Project::nothing();
    let ticks = project.json(&[
        "schedule",
        "0 2,14 * * *",
        "--tz",
        "America/New_York",
        "--grain",
        "day",
        "--from",
        "2026-03-08",
        "--to",
        "2026-03-08",
    ]);
    assert_eq!(
        ticks,
        json!([
            {
                "tick": "2026-03-08T07:00:00Z",
                "tick_local": "2026-03-08T03:00:00-04:00",
                "interval_start": "2026-03-07T05:00:00Z",
                "interval_end": "2026-03-08T05:00:00Z",
                "ds": "2026-03-07",
            },
            {
                "tick": "2026-03-08T18:00:00Z",
                "tick_local": "2026-03-08T14:00:00-04:00",
                "interval_start": null,
                "interval_end": null,
                "ds": null,
            },
        ])
    );
    assert_eq!(project.json(&["schedule", "0 0 29 2 *", "--from", "2026-01-01", "--to", "2026-12-31"]), json!([]));
}

#[test]
fn the_zone_is_the_projects_unless_given() {
    let first = |project: &Project| {
        project.json(&["schedule", "@daily", "--from", "2026-01-01", "--to", "2026-01-01"])[0]["tick_local"].clone()
    };
    assert_eq!(first(&Project::nothing()), "2026-01-01T00:00:00+00:00");
    let kolkata = Project::nothing().file("headworks.toml", "[project]\ntimezone = \"Asia/Kolkata\"\n");
    assert_eq!(first(&kolkata), "2026-01-01T00:00:00+05:30");
}

#[test]
fn wrong_schedules_say_what_to_write() {
    let project = Project::nothing();
    let mut all = String::new();
    for args in [
        &["0 0 30 2 *", "--from", "2026-01-01", "--to", "2026-12-31"][..],
        &["0 2 * * *", "--from", "2026-01-02", "--to", "2026-01-01"],
        &["0 2 * * *", "--from", "2026-01-02T03:00:00Z", "--to", "2026-01-02T02:00:00Z"],
        &["0 2 * * *", "--tz", "America/New_Yrok", "--from", "2026-01-01", "--to", "2026-01-02"],
        &["0 2 * * *", "--tz", "kolkata", "--from", "2026-01-01", "--to", "2026-01-02"],
        &["0 2 * *", "--from", "2026-01-01", "--to", "2026-01-02"],
        &["@dayly", "--from", "2026-01-01", "--to", "2026-01-02"],
        &["after waits", "--from", "2026-01-01", "--to", "2026-01-02"],
        &["* * * * *", "--from", "2026-01-01", "--to", "2226-01-02"],
        &["0 2 * * *", "--from", "yesterday", "--to", "2026-01-02"],
        &["0 0 29 2 *", "--from", "2026-01-01", "--to", "2026-12-31"],
    ] {
        all += &project.seen(&[&["schedule"][..], args].concat());
        all += "\n";
    }
    assert_snapshot!(all);
    let never = Project::empty().file("jobs/never.sql", "/* job\nschedule: \"0 0 30 2 *\"\n*/\nSELECT 1 AS x\n");
    let outcome = never.run(&["validate"]);
    assert!(outcome.code == 1 && outcome.stdout.contains("`0 0 30 2 *` never comes"), "{outcome:?}");
}

#[test]
fn a_job_shows_its_next_five_ticks() {
    let project = Project::numbers();
    let shown = project.json(&["jobs", "show", "numbers"]);
    let ticks = shown["next"].as_array().unwrap();
    assert_eq!(ticks.len(), 5, "{shown}");
    for tick in ticks {
        // A daily tick at midnight UTC ends its own interval.
        assert_eq!(tick["tick"], tick["interval_end"], "{tick}");
    }
    let text = project.ok(&["jobs", "show", "numbers"]);
    let first = ticks[0]["tick"].as_str().unwrap();
    let utc = format!("{} 00:00 UTC = {} 00:00:00 UTC", &first[..10], &first[..10]);
    assert!(text.contains(&utc) && text.contains(&format!("for ds={}", ticks[0]["ds"].as_str().unwrap())), "{text}");
    // After its last day nothing comes.
    project.write(
        "jobs/over.sql",
        "/* job\nschedule: \"@daily\"\nstart: 2020-01-01\nend: 2020-12-31\n*/\nSELECT 1 AS x\n",
    );
    assert_eq!(project.json(&["jobs", "show", "over"])["next"], json!([]));
}
