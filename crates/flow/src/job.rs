//! A job: its header, its body, and the grid of its table.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use headworks_domain::{Ds, Grain, Interval, JobName, PartitionKey, Problem, Severity, TableName};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    document::Node,
    grid::Grid,
    outside::OutsideWait,
    render::Rendered,
    schedule::Schedule,
    source::{At, Source},
    spec::{ImportSpec, JobSpec, Kind, PartitionColumn, WaitRef, WaitSpec},
};

/// What one job file defines.
#[derive(Debug, Clone)]
pub struct Job {
    /// The job's name: from its header, or its file's path below `jobs/` without the ending.
    pub name: JobName,
    /// The file's path relative to the project's folder, with `/` between its parts.
    pub file: String,
    /// The table that it writes; none for a job with `tasks:`.
    pub table: Option<TableName>,
    /// The header, as written.
    pub spec: JobSpec,
    /// What computes the result.
    pub body: JobBody,
    /// The first 16 hex digits of the SHA-256 of the header's meaning and the SQL: comments and layout of the header do not count.
    pub version: String,
    /// The size of its partitions: from the header, or from its schedule.
    pub grain: Grain,
    /// The zone in which its clock is read and its days are cut.
    pub zone: Tz,
    /// When it runs; none for jobs that run by hand only.
    pub schedule: Option<Schedule>,
    /// The tables that it waits for, from header and SQL, `self` for its own; the SQL's as found with a sample interval.
    pub waits: Vec<WaitRef>,
    /// The tables of which its SQL reads the newest partition.
    pub reads_latest: Vec<String>,
    /// The tables that its SQL reads by their plain names.
    pub reads_plain: Vec<String>,
    pub(crate) source: Arc<Source>,
    pub(crate) header: Arc<Node>,
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    names.map(str::to_owned).collect()
}

/// What computes a job's result.
#[derive(Debug, Clone, PartialEq)]
pub enum JobBody {
    /// One query over the lake.
    Sql(SqlBody),
    /// A table of a connection.
    Import(ImportSpec),
    /// No table at all: the header's `tasks:`.
    Tasks,
}

/// The text below the header of a SQL file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlBody {
    /// The text as it stands in the file, macros and prefixes included.
    pub text: String,
    /// The line of the file on which it begins.
    pub first_line: usize,
    /// The column of that line.
    pub first_column: usize,
}

impl Job {
    /// The grid of its table.
    pub fn grid(&self) -> Grid {
        Grid { grain: self.grain, zone: self.zone }
    }

    /// Its partition columns in their order: `ds`, then any of `hour`, `event_type`. Without a table there are none.
    pub fn partition_columns(&self) -> Vec<&'static str> {
        if self.table.is_none() {
            return Vec::new();
        }
        let declared = |column| self.spec.partition_by.contains(&column);
        let mut columns = vec!["ds"];
        if self.grain == Grain::Hour {
            columns.push("hour");
        }
        if declared(PartitionColumn::EventType) {
            columns.push("event_type");
        }
        columns
    }

    /// The text of its file, from which its version was reckoned.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// What differs from an earlier version of the job, in a few words each: tasks, columns and waits that were added or removed,
    /// and which other parts are not as they were.
    pub fn changes_since(&self, earlier: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let tasks = |job: &Self| names(job.spec.tasks.iter().map(|(name, _)| name));
        let columns = |job: &Self| names(job.spec.columns.iter().map(|(name, _)| name));
        let waits = |job: &Self| names(job.waits.iter().map(|wait| wait.table.as_str()));
        for (what, was, is) in [
            ("task", tasks(earlier), tasks(self)),
            ("column", columns(earlier), columns(self)),
            ("wait", waits(earlier), waits(self)),
        ] {
            changes.extend(is.difference(&was).map(|name| format!("{what} {name} added")));
            changes.extend(was.difference(&is).map(|name| format!("{what} {name} removed")));
        }
        let header = |job: &Self| serde_json::to_value(&job.spec).unwrap_or_default();
        let (was, is) = (header(earlier), header(self));
        let keys: BTreeSet<&String> =
            [&was, &is].into_iter().filter_map(Value::as_object).flat_map(Map::keys).collect();
        changes.extend(keys.into_iter().filter(|key| was.get(*key) != is.get(*key)).cloned());
        let text = |job: &Self| match &job.body {
            JobBody::Sql(sql) => Some(sql.text.clone()),
            JobBody::Import(_) | JobBody::Tasks => None,
        };
        if text(earlier) != text(self) {
            changes.push("SQL".to_owned());
        }
        changes
    }

    /// One interval per grain that lies at least partly in the days `from` to `to`, both included and limited by the job's
    /// own `start` and `end`. Days of hourly jobs are UTC's.
    pub fn intervals(&self, from: Ds, to: Ds) -> Vec<Interval> {
        let from = self.spec.start.map_or(from, |start| start.max(from));
        let to = self.spec.end.map_or(to, |end| end.min(to));
        self.grid().intervals(from, to)
    }

    /// The grain that a day lies in; for hourly jobs the hour of that UTC day, its first one unless given.
    ///
    /// None for a day that the job's zone never had.
    pub fn interval_of(&self, ds: Ds, hour: Option<u8>) -> Option<Interval> {
        self.grid().interval_of(ds, hour)
    }

    /// The last grain that ended by `now`: what a run without a date covers. It may lie outside `start` and `end`.
    pub fn last_complete(&self, now: DateTime<Utc>) -> Interval {
        self.grid().last_complete(now)
    }

    /// The partitions that a run over an interval writes, in their order. Of a job with `event_type`, their days.
    pub fn partitions(&self, interval: &Interval) -> Vec<PartitionKey> {
        if self.table.is_none() { Vec::new() } else { self.grid().partitions(interval) }
    }

    /// The table's name; empty for a job that has none.
    pub fn table_name(&self) -> &str {
        self.table.as_ref().map_or("", TableName::as_str)
    }

    /// The `ds` of a run: the day that names the last grain of its interval.
    pub fn ds(&self, interval: &Interval) -> Ds {
        self.grid().last_key(interval).ds
    }

    /// True when an interval lies within the job's `start` and `end`.
    pub fn covers(&self, interval: &Interval) -> bool {
        let grid = self.grid();
        let touched = grid.touched(interval);
        let last_of = |ds: Ds| grid.number_of_date(ds.date()) + if self.grain == Grain::Hour { 23 } else { 0 };
        self.spec.start.is_none_or(|start| *touched.start() >= grid.number_of_date(start.date()))
            && self.spec.end.is_none_or(|end| *touched.end() <= last_of(end))
    }

    /// True when the result is checked before it is published.
    pub fn has_checks(&self) -> bool {
        !self.spec.checks.is_empty() || self.spec.columns.iter().any(|(_, column)| !column.checks.is_empty())
    }

    /// True when nothing is stored and the SQL is computed when it is read.
    pub fn is_view(&self) -> bool {
        self.spec.kind == Kind::View
    }

    /// True for imports that take what a table holds at the time, whatever the interval.
    pub fn knows_no_past(&self) -> bool {
        self.import().is_some_and(|import| import.by.is_none() && !import.as_of_now)
    }

    /// The connection it reads from, for imports.
    pub fn import(&self) -> Option<&ImportSpec> {
        match &self.body {
            JobBody::Import(import) => Some(import),
            JobBody::Sql(_) | JobBody::Tasks => None,
        }
    }

    /// Tells a problem that the engine found in the rendered SQL at the line of the job file.
    ///
    /// Line and column count from 1 in the rendered text; 0 means unknown.
    pub fn sql_problem(
        &self,
        rendered: &Rendered,
        line: usize,
        column: usize,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Problem {
        self.source.problem(Severity::Error, rendered.place(line, column), message.into(), hint)
    }

    /// Tells a problem of a header's key, as `["columns", "origin", "type"]`, at its line of the job file.
    pub fn header_problem(&self, path: &[&str], message: impl Into<String>, hint: Option<String>) -> Problem {
        self.source.problem(Severity::Error, self.at(path), message.into(), hint)
    }

    /// Where a key of the header stands, or the nearest one above it.
    pub(crate) fn at(&self, path: &[&str]) -> At {
        self.header.at(path)
    }

    /// The partitions that the header waits for, without those of the SQL.
    pub(crate) fn header_waits(&self) -> Vec<WaitRef> {
        self.spec.wait.iter().filter_map(|wait| wait.wait_ref().ok().flatten()).collect()
    }

    /// What it waits for outside of the lake, with the places in the header's `wait:`. Macros stand as written.
    pub fn outside_waits(&self) -> impl Iterator<Item = (usize, &OutsideWait)> {
        self.spec.wait.iter().enumerate().filter_map(|(n, wait)| match wait {
            WaitSpec::Outside(wait) => Some((n, wait)),
            WaitSpec::Text(_) | WaitSpec::Table(_) => None,
        })
    }

    /// All that it waits for, in words: tables as the files name them, then what is outside of the lake.
    pub fn waits_in_words(&self) -> Vec<String> {
        let outside = self.outside_waits().map(|(_, wait)| wait.question.to_string());
        self.waits.iter().map(ToString::to_string).chain(outside).collect()
    }
}

/// Hashes what a job means.
pub(crate) fn version(name: &JobName, table: &str, grain: Grain, zone: Tz, spec: &JobSpec, sql: &str) -> String {
    let header = serde_json::to_string(spec).expect("headers are plain data");
    let sql: String = sql.trim().lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    let mut hash = Sha256::new();
    for part in [name.as_str(), table, &grain.to_string(), zone.name(), &header, &sql] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, jobfile, project::Project};

    fn job(header: &str, sql: &str) -> Arc<Job> {
        let mut project = Project::default();
        let file = jobfile::read("jobs/a.sql".to_owned(), format!("/* job\n{header}\n*/ {sql}"), "a", Tz::UTC);
        let mut problems = Vec::new();
        check::assemble(&mut project, vec![file], &mut problems);
        Arc::clone(project.job("a").unwrap_or_else(|_| panic!("{problems:?}")))
    }

    #[test]
    fn changes_are_named() {
        let columns = "columns:\n  n: {type: bigint}\n";
        let before = job(&format!("{columns}wait: [b, c]\nowner: me"), "SELECT 1 AS n");
        assert_eq!(before.changes_since(&before), Vec::<String>::new());
        let after =
            job(&format!("{columns}  m: {{type: bigint}}\nwait: [c, d]\nschedule: '@daily'"), "SELECT 1 AS n, 2 AS m");
        assert_eq!(
            after.changes_since(&before),
            ["column m added", "wait d added", "wait b removed", "columns", "owner", "schedule", "wait", "SQL"]
        );
    }
}
