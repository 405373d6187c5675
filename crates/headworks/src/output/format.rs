use chrono::{DateTime, Utc};
use headworks_domain::{Problem, Severity};
use serde_json::{Value, json};

/// A stretch of time: `340 ms`, `12.3 s`, `4 min 05 s`, `3 h 20 min`, `12 days`.
pub(crate) fn duration(time: chrono::TimeDelta) -> String {
    let ms = time.num_milliseconds().max(0);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..100_000 => format!("{:.1} s", ms as f64 / 1000.0),
        100_000..3_600_000 => format!("{} min {:02} s", ms / 60_000, ms / 1000 % 60),
        3_600_000..172_800_000 => format!("{} h {:02} min", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// How long ago: `5.0 s ago`; `in 3 h 00 min` when it is still to come.
pub(crate) fn ago(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    if then > now { format!("in {}", duration(then - now)) } else { format!("{} ago", duration(now - then)) }
}

/// An instant as people read it, UTC: `2026-11-21 23:57:22`.
pub(crate) fn shown(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// The document that `--json` writes to stderr for an error.
pub(crate) fn json_error(code: &str, message: &str, hint: Option<&str>, problems: &[Problem]) -> Value {
    let problems: Vec<Value> = problems.iter().map(json_problem).collect();
    json!({"error": {"code": code, "message": message, "hint": hint, "problems": problems}})
}

/// A problem of a file, as `--json` shows it.
pub(crate) fn json_problem(problem: &Problem) -> Value {
    json!({
        "severity": match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        },
        "file": problem.place.file,
        "line": (problem.place.line > 0).then_some(problem.place.line),
        "column": (problem.place.column > 0).then_some(problem.place.column),
        "text": problem.text,
        "message": problem.message,
        "hint": problem.hint,
    })
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn stretches_of_time_read_well() {
        for (ms, expected) in [
            (-5, "0 ms"),
            (340, "340 ms"),
            (12_345, "12.3 s"),
            (245_000, "4 min 05 s"),
            (12_000_000, "3 h 20 min"),
            (1_036_800_000, "12 days"),
        ] {
            assert_eq!(duration(TimeDelta::milliseconds(ms)), expected);
        }
    }
}
