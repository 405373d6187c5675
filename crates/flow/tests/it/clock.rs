//! Ticks where clocks are set, beside a plain second opinion: `testkit/schedule_oracle.py` walks every minute of real time.

use std::{collections::BTreeSet, process::Command};

use chrono::{DateTime, Utc};
use chrono_tz::{IANA_TZDB_VERSION, Tz};
use headworks_domain::Grain;
use headworks_flow::{Grid, Schedule, Tick};
use headworks_testkit::{python_path, workspace_root};
use serde_json::{Value, json};

/// Both hemispheres, gaps of half an hour and of two hours, skipped midnights, zones that gave their switches up, Ramadan, and
/// some that never had any.
const ZONES: [&str; 30] = [
    "America/Asuncion",
    "America/Havana",
    "America/Los_Angeles",
    "America/Miquelon",
    "America/New_York",
    "America/Nuuk",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Antarctica/Troll",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Asia/Almaty",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Jerusalem",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Tokyo",
    "Atlantic/Azores",
    "Australia/Adelaide",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/Chisinau",
    "Europe/Dublin",
    "Europe/London",
    "Pacific/Apia",
    "Pacific/Auckland",
    "Pacific/Chatham",
    "UTC",
];

const SCHEDULES: [(&str, Grain); 11] = [
    ("30 2 * * *", Grain::Day),
    ("0 0 * * *", Grain::Day),
    ("*/20 1-3 * * *", Grain::Day),
    ("15,45 0-3,23 * * *", Grain::Hour),
    ("0 */6 * * *", Grain::Day),
    ("59 23 * * 6,0", Grain::Day),
    ("30 1 1-7 * sun", Grain::Day),
    ("0 * * * *", Grain::Hour),
    ("*/15 * * * *", Grain::Hour),
    ("5 * * * sun", Grain::Day),
    ("every 45 minutes", Grain::Hour),
];

/// Switches of other years that have no equal since: days skipped at the date line, half hours, a clock set back over midnight.
const EXTRA: [(&str, &str); 8] = [
    ("America/Caracas", "2016-05-01"),
    ("America/Sao_Paulo", "2018-11-04"),
    ("America/St_Johns", "2009-11-01"),
    ("Antarctica/Vostok", "2023-12-18"),
    ("Asia/Pyongyang", "2018-05-04"),
    ("Pacific/Apia", "2011-12-30"),
    ("Pacific/Kiritimati", "1994-12-31"),
    ("Pacific/Kwajalein", "1993-08-21"),
];

/// Asks the oracle; one answer per zone and switch.
fn answers(first_year: i32, last_year: i32) -> Vec<Value> {
    let schedules: Vec<Value> = SCHEDULES.iter().map(|(text, grain)| json!([text, grain])).collect();
    let question = json!({
        "tzdb": IANA_TZDB_VERSION, "zones": ZONES, "schedules": schedules, "years": [first_year, last_year], "extra": EXTRA,
    });
    let done = Command::new(python_path().unwrap())
        .arg(workspace_root().join("testkit/schedule_oracle.py"))
        .arg(question.to_string())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn instant(minutes: &Value) -> DateTime<Utc> {
    DateTime::from_timestamp(minutes.as_i64().unwrap() * 60, 0).unwrap()
}

/// A tick as the oracle writes it.
fn written(grid: &Grid, tick: &Tick) -> Value {
    let minutes = |time: DateTime<Utc>| time.timestamp() / 60;
    match &tick.interval {
        None => json!([minutes(tick.at), null, null, null, null]),
        Some(interval) => {
            let key = grid.last_key(interval);
            json!([minutes(tick.at), minutes(interval.start()), minutes(interval.end()), key.ds, key.hour])
        }
    }
}

/// Compares every tick and every interval around every switch; tells how many there were.
fn compare(first_year: i32, last_year: i32) {
    let answers = answers(first_year, last_year);
    let (mut ticks, mut intervals) = (0, 0);
    let mut differences = Vec::new();
    for answer in &answers {
        let name = answer["zone"].as_str().unwrap();
        let zone: Tz = name.parse().unwrap();
        let (from, to) = (instant(&answer["from"]), instant(&answer["to"]));
        for ((text, grain), expected) in SCHEDULES.iter().zip(answer["ticks"].as_array().unwrap()) {
            let schedule = Schedule::parse(text).unwrap();
            let grid = Grid { grain: *grain, zone };
            let mut found: Vec<Value> = schedule.runs(grid, from, to).map(|tick| written(&grid, &tick)).collect();
            let expected = expected.as_array().unwrap();
            ticks += expected.len();
            for (found, expected) in found.iter_mut().zip(expected) {
                // What lies before the window the oracle has not seen.
                if expected[1] == json!(false) {
                    *found = json!([found[0], false, false, false, false]);
                } else {
                    intervals += 1;
                    // The scheduler asks for one tick at a time.
                    let at = instant(&found[0]);
                    let alone = Tick { at, interval: schedule.interval_at(&grid, at) };
                    assert_eq!(written(&grid, &alone), *found, "`{text}` in {name} at {at}, asked alone");
                }
            }
            if found != *expected {
                let place =
                    found.iter().zip(expected).position(|(f, e)| f != e).unwrap_or(found.len().min(expected.len()));
                let (found, expected) = (found.get(place), expected.get(place));
                let at = instant(&answer["at"]);
                differences.push(format!("`{text}` in {name} around {at}: found {found:?}, the oracle {expected:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    let zones: BTreeSet<&str> = answers.iter().map(|a| a["zone"].as_str().unwrap()).collect();
    assert!(ZONES.iter().all(|zone| zones.contains(zone)), "every zone has its windows");
    let switches = answers.iter().filter(|a| a["before"] != a["after"]).count();
    println!(
        "{} windows around {switches} switches of {} zones: {ticks} ticks and {intervals} intervals agree",
        answers.len(),
        zones.len()
    );
    assert!(switches > 40 && ticks > 50_000 && intervals > ticks / 2, "it looked at enough");
}

#[test]
fn ticks_of_a_year_agree_with_a_walk_through_every_minute() {
    compare(2025, 2025);
}

#[test]
#[ignore = "long: every minute around every switch of three years, in Python"]
fn ticks_of_three_years_agree_with_a_walk_through_every_minute() {
    compare(2024, 2026);
}
