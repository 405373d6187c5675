//! Between rows and `flow`'s types.

use chrono::{DateTime, Utc};
use headworks_domain::{ErrorKind, Interval};
use headworks_flow::{
    exec::{AttemptRecord, RunRow},
    machine::{Failure, State, TaskRecord},
};
use headworks_store::{Row, Value};
use serde_json::{Map, Value as Json};

use crate::{Error, ProcessInfo, Result};

/// The columns of a run with its owner, in the order of [`run_row`].
pub(crate) const RUN_COLUMNS: &str = "r.id, r.job, r.job_version, r.table_name, r.interval_start, r.interval_end, r.ds, r.state,
    r.attempt, r.fence, r.owner, r.created_at, r.started_at, r.finished_at, r.row_count, r.bytes, r.error_kind, r.error_code,
    r.error, r.hint, r.cause, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until, r.params";

/// Where the columns of [`RUN_COLUMNS`] come from.
pub(crate) const RUN_FROM: &str = "hw_run r left join hw_process p on p.id = r.owner";

/// Reads a run. `lives` says whether an owner with this lease does.
pub(crate) fn run_row(row: &Row, lives: impl Fn(&ProcessInfo, i64) -> bool) -> Result<RunRow> {
    let finished_at = opt_time("hw_run", row, 13)?;
    let owner = owner(row, 21)?;
    Ok(RunRow {
        id: parsed(row, 0)?,
        job: parsed(row, 1)?,
        job_version: row.text(2)?,
        table: if row.text(3)?.is_empty() { None } else { Some(parsed(row, 3)?) },
        interval: interval("hw_run", row, 4)?,
        ds: parsed(row, 6)?,
        trigger: parsed(row, 20)?,
        params: params(row, 26)?,
        state: parsed(row, 7)?,
        attempt: u32::try_from(row.i64(8)?).unwrap_or(0),
        fence: row.i64(9)?,
        owner: match &owner {
            Some((process, _)) => format!("{}:{}", process.host, process.pid),
            None => row.text(10)?,
        },
        // One that never ends is beyond all times.
        lease_until: owner
            .as_ref()
            .map(|(_, lease)| DateTime::from_timestamp_micros(*lease).unwrap_or(DateTime::<Utc>::MAX_UTC)),
        owner_alive: finished_at.is_none() && owner.is_some_and(|(process, lease)| lives(&process, lease)),
        created_at: time("hw_run", row.i64(11)?)?,
        started_at: opt_time("hw_run", row, 12)?,
        finished_at,
        rows: u64::try_from(row.i64(14)?).unwrap_or(0),
        bytes: u64::try_from(row.i64(15)?).unwrap_or(0),
        failure: failure(row, 16)?,
    })
}

/// Reads `host, boot_id, pid, pid_start, lease_until` from a column on; `None` when the process is forgotten.
pub(crate) fn owner(row: &Row, first: usize) -> Result<Option<(ProcessInfo, i64)>> {
    let Some(host) = row.opt_text(first)? else { return Ok(None) };
    let process = ProcessInfo {
        host,
        boot_id: row.text(first + 1)?,
        pid: u32::try_from(row.i64(first + 2)?).unwrap_or(0),
        pid_start: u64::try_from(row.i64(first + 3)?).unwrap_or(0),
    };
    Ok(Some((process, row.i64(first + 4)?)))
}

/// Reads `name, state, started_at, finished_at`.
pub(crate) fn task_record(row: &Row) -> Result<TaskRecord> {
    Ok(TaskRecord {
        name: parsed(row, 0)?,
        state: parsed(row, 1)?,
        started_at: opt_time("hw_run", row, 2)?,
        finished_at: opt_time("hw_run", row, 3)?,
    })
}

/// Reads `attempt, state, started_at, finished_at, error_kind, error_code, error, hint, log_path, log_bytes, task`.
pub(crate) fn attempt_record(row: &Row) -> Result<AttemptRecord> {
    Ok(AttemptRecord {
        attempt: u32::try_from(row.i64(0)?).unwrap_or(0),
        state: parsed(row, 1)?,
        started_at: time("hw_attempt", row.i64(2)?)?,
        finished_at: opt_time("hw_run", row, 3)?,
        failure: failure(row, 4)?,
        log_path: row.text(8)?,
        log_bytes: u64::try_from(row.i64(9)?).unwrap_or(0),
        task: row.opt_text(10)?.is_some().then(|| parsed(row, 10)).transpose()?,
    })
}

/// The four columns of a failure: kind, code, message, hint.
pub(crate) fn failure_values(failure: Option<&Failure>) -> [Value; 4] {
    [
        failure.map(|f| kind_text(f.kind)).into(),
        failure.map(|f| f.code.clone()).into(),
        failure.map(|f| f.message.clone()).into(),
        failure.and_then(|f| f.hint.clone()).into(),
    ]
}

fn failure(row: &Row, first: usize) -> Result<Option<Failure>> {
    let Some(message) = row.opt_text(first + 2)? else { return Ok(None) };
    let kind = row.opt_text(first)?.unwrap_or_default();
    let kind = KINDS.iter().find(|(_, text)| *text == kind).map_or(ErrorKind::Internal, |(kind, _)| *kind);
    let mut failure = Failure::new(kind, &row.opt_text(first + 1)?.unwrap_or_default(), message);
    failure.hint = row.opt_text(first + 3)?;
    Ok(Some(failure))
}

const KINDS: [(ErrorKind, &str); 9] = [
    (ErrorKind::Invalid, "invalid"),
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::Conflict, "conflict"),
    (ErrorKind::Unavailable, "unavailable"),
    (ErrorKind::Exhausted, "exhausted"),
    (ErrorKind::Denied, "denied"),
    (ErrorKind::Corrupt, "corrupt"),
    (ErrorKind::Cancelled, "cancelled"),
    (ErrorKind::Internal, "internal"),
];

fn kind_text(kind: ErrorKind) -> &'static str {
    KINDS.iter().find(|(k, _)| *k == kind).map_or("internal", |(_, text)| text)
}

pub(crate) fn state(row: &Row, column: usize) -> Result<State> {
    parsed(row, column)
}

pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(row: &Row, column: usize) -> Result<T> {
    let text = row.text(column)?;
    text.parse().map_err(|e: T::Err| Error::Row { table: "hw_run", reason: e.to_string() })
}

pub(crate) fn micros_of(time: Option<DateTime<Utc>>) -> Value {
    time.map(|t| t.timestamp_micros()).into()
}

/// Reads parameters, kept as a JSON object.
pub(crate) fn params(row: &Row, column: usize) -> Result<Map<String, Json>> {
    let text = row.opt_text(column)?;
    let read = |text: String| {
        serde_json::from_str(&text).map_err(|error| Error::Row { table: "hw_run", reason: error.to_string() })
    };
    text.map_or_else(|| Ok(Map::new()), read)
}

/// How parameters are kept; none when there are none.
pub(crate) fn params_text(params: &Map<String, Json>) -> Option<String> {
    (!params.is_empty()).then(|| Json::Object(params.clone()).to_string())
}

/// Reads the interval whose start and end stand from a column of `table` on.
pub(crate) fn interval(table: &'static str, row: &Row, first: usize) -> Result<Interval> {
    let (start, end) = (time(table, row.i64(first)?)?, time(table, row.i64(first + 1)?)?);
    Interval::new(start, end).map_err(|error| Error::Row { table, reason: error.to_string() })
}

/// Reads an instant out of a column of `table`.
pub(crate) fn time(table: &'static str, micros: i64) -> Result<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| Error::Row { table, reason: format!("{micros} microseconds are no time") })
}

/// Reads an instant that may be missing.
pub(crate) fn opt_time(table: &'static str, row: &Row, column: usize) -> Result<Option<DateTime<Utc>>> {
    row.opt_i64(column)?.map(|micros| time(table, micros)).transpose()
}
