//! Looking at runs. No lease is needed for it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::TimeDelta;
use headworks_domain::{Interval, JobName, PartitionKey, RunId, TableName};
use headworks_flow::exec::{Partition, Producer, RunDetail, RunFilter, RunRow, Standing, Takes};
use headworks_store::{Dialect, Row, Value, values};

use crate::{
    Error, ProcessInfo, Result, Runs,
    placement::placement,
    process::Judge,
    row::{RUN_COLUMNS, RUN_FROM, attempt_record, interval, owner, parsed, run_row, state, task_record},
    runs::{micros, places, texts},
};

/// How many ids one statement names.
const IDS_MAX: usize = 500;

/// The longest run that is looked for by a grain in it: a year of grains and a day.
const RUN_SPAN_MAX: TimeDelta = TimeDelta::days(367);

/// How many runs are listed unless more are asked for.
const LIST_DEFAULT: usize = 100;

impl Runs {
    /// Who tells which processes live now.
    pub(crate) fn judge(&self, now: i64) -> Judge {
        let held_up = match self.store.dialect() {
            // Whoever holds the file's lock holds all up; with a server a lease needs the process alone.
            Dialect::Sqlite => micros(self.store.options().lock_timeout),
            Dialect::Postgres => 0,
        };
        Judge { now, doubts: self.doubts_leases(), held_up, processes: Arc::clone(&self.processes) }
    }

    /// Remembers the answer about each process: thousands of runs have one owner, and each look reads `/proc`.
    fn lives_at(&self, now: i64) -> impl Fn(&ProcessInfo, i64) -> bool + use<> {
        let judge = self.judge(now);
        let known: std::cell::RefCell<HashMap<(u32, u64, i64), bool>> = std::cell::RefCell::default();
        move |process, lease_until| {
            let key = (process.pid, process.pid_start, lease_until);
            *known.borrow_mut().entry(key).or_insert_with(|| judge.lives(process, lease_until))
        }
    }
}

impl Runs {
    /// What the newest run covers that covers a grain: a run over a week makes seven days.
    pub async fn covering(&self, job: &JobName, grain: &Interval) -> Result<Option<Interval>> {
        let (start, end) = (grain.start().timestamp_micros(), grain.end().timestamp_micros());
        let sql = "select interval_start, interval_end from hw_run
            where job = $1 and interval_start >= $2 and interval_start <= $3 and interval_end >= $4
            order by born desc, id desc limit 1";
        let earliest = start - RUN_SPAN_MAX.num_microseconds().unwrap_or(0);
        let row = self.store.row(sql, &values![job.as_str(), earliest, start, end]).await?;
        row.map(|row| interval("hw_run", &row, 0)).transpose()
    }
}

pub(crate) async fn find(runs: &Runs, wanted: &[(JobName, Interval)]) -> Result<Vec<Option<RunRow>>> {
    let now = runs.now().await?;
    let mut found: HashMap<(JobName, Interval), RunRow> = HashMap::new();
    for (job, first, last) in spans(wanted.iter().map(|(job, interval)| (job, interval))) {
        let sql = format!(
            "select {RUN_COLUMNS} from {RUN_FROM} where r.job = $1 and r.interval_start >= $2 and r.interval_start <= $3
             order by r.born, r.id"
        );
        let rows = runs.store.rows(&sql, &values![job.as_str(), first, last]).await?;
        let lives = runs.lives_at(now);
        for row in &rows {
            let run = run_row(row, &lives)?;
            // The newest comes last.
            found.insert((run.job.clone(), run.interval), run);
        }
    }
    Ok(wanted.iter().map(|key| found.get(key).cloned()).collect())
}

/// A span goes on over a gap of so many intervals: reading as many rows for nothing costs less than another statement.
const GAP: i64 = 100;

/// The first and the last start, in microseconds, of stretches of each job's intervals that hold all that are wanted and, for a
/// backfill's odd day years back, not all between.
pub(crate) fn spans<'w>(wanted: impl Iterator<Item = (&'w JobName, &'w Interval)>) -> Vec<(&'w JobName, i64, i64)> {
    let mut by_job: BTreeMap<&JobName, Vec<&Interval>> = BTreeMap::new();
    for (job, interval) in wanted {
        by_job.entry(job).or_default().push(interval);
    }
    let mut spans: Vec<(&JobName, i64, i64)> = Vec::new();
    for (job, mut intervals) in by_job {
        intervals.sort();
        for interval in intervals {
            let start = interval.start().timestamp_micros();
            let gap = (interval.end().timestamp_micros() - start).saturating_mul(GAP);
            match spans.last_mut().filter(|(known, _, last)| *known == job && start - *last <= gap) {
                Some((_, _, last)) => *last = start,
                None => spans.push((job, start, start)),
            }
        }
    }
    spans
}

pub(crate) async fn standing(runs: &Runs, ids: &[RunId]) -> Result<Vec<Standing>> {
    let now = runs.now().await?;
    let mut found: HashMap<String, Standing> = HashMap::new();
    for some in ids.chunks(IDS_MAX) {
        let sql = format!(
            "select r.id, r.state, r.finished_at, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until
             from {RUN_FROM} where r.id in ({})",
            places(1, some.len())
        );
        let rows = runs.store.rows(&sql, &texts(some)).await?;
        let lives = runs.lives_at(now);
        for row in &rows {
            let standing = if row.opt_i64(2)?.is_some() {
                Standing::Over(state(row, 1)?)
            } else if owner(row, 3)?.is_some_and(|(process, lease)| lives(&process, lease)) {
                Standing::Held
            } else {
                Standing::Abandoned
            };
            found.insert(row.text(0)?, standing);
        }
    }
    Ok(ids.iter().map(|id| found.get(id.as_str()).copied().unwrap_or(Standing::Unknown)).collect())
}

/// Those of these runs that have another fence by now; one that is gone from the records has none.
pub(crate) async fn lost(runs: &Runs, mine: &[(RunId, i64)]) -> Result<Vec<RunId>> {
    let mut fences: HashMap<String, i64> = HashMap::new();
    for some in mine.chunks(IDS_MAX) {
        let sql = format!("select id, fence from hw_run where id in ({})", places(1, some.len()));
        for row in runs.store.rows(&sql, &texts(some.iter().map(|(id, _)| id))).await? {
            fences.insert(row.text(0)?, row.i64(1)?);
        }
    }
    let is_lost = |(id, fence): &&(RunId, i64)| fences.get(id.as_str()) != Some(fence);
    Ok(mine.iter().filter(is_lost).map(|(id, _)| id.clone()).collect())
}

pub(crate) async fn producers(runs: &Runs, wanted: &[Partition]) -> Result<Vec<Producer>> {
    let mut by_table: BTreeMap<&TableName, Vec<&Partition>> = BTreeMap::new();
    for partition in wanted {
        by_table.entry(&partition.table).or_default().push(partition);
    }
    let now = runs.now().await?;
    let this = runs.process().await?;
    let mut producers = Vec::new();
    for (table, partitions) in by_table {
        let sql = format!(
            "select r.id, r.first_partition, r.last_partition, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until
             from {RUN_FROM} where r.finished_at is null and r.table_name = $1 and r.owner <> $2 and r.first_partition is not null"
        );
        let rows = runs.store.rows(&sql, &values![table.as_str(), this]).await?;
        let lives = runs.lives_at(now);
        for row in &rows {
            let (first, last): (PartitionKey, PartitionKey) = (parsed(row, 1)?, parsed(row, 2)?);
            let made: Vec<Partition> =
                partitions.iter().filter(|p| first <= p.key && p.key <= last).map(|p| (*p).clone()).collect();
            if !made.is_empty() && owner(row, 3)?.is_some_and(|(process, lease)| lives(&process, lease)) {
                producers.push(Producer { run_id: parsed(row, 0)?, partitions: made });
            }
        }
    }
    Ok(producers)
}

pub(crate) async fn list(runs: &Runs, filter: &RunFilter) -> Result<Vec<RunRow>> {
    let mut bound: Vec<Value> = Vec::new();
    let mut conditions = vec!["1 = 1".to_owned()];
    let texts = [
        ("r.job", filter.job.as_ref().map(ToString::to_string)),
        ("r.state", filter.state.map(|s| s.to_string())),
        ("r.ds", filter.ds.map(|ds| ds.to_string())),
    ];
    for (column, text) in texts {
        if let Some(text) = text {
            bound.push(text.into());
            conditions.push(format!("{column} = ${}", bound.len()));
        }
    }
    for (bound_day, sign) in [(filter.from, ">="), (filter.to, "<=")] {
        if let Some(ds) = bound_day {
            bound.push(ds.to_string().into());
            conditions.push(format!("r.ds {sign} ${}", bound.len()));
        }
    }
    if filter.live {
        conditions.push("r.finished_at is null".to_owned());
    }
    let limit = if filter.limit == 0 { LIST_DEFAULT } else { filter.limit };
    bound.push(limit.into());
    let sql = format!(
        "select {RUN_COLUMNS} from {RUN_FROM} where {} order by r.born desc, r.interval_start desc, r.id desc limit ${}",
        conditions.join(" and "),
        bound.len()
    );
    run_rows(runs, &runs.store.rows(&sql, &bound).await?).await
}

/// The most kinds of placement that one look takes released runs of; the others' turn comes with the next.
const PLACEMENTS_MAX: usize = 200;

/// Live runs of other processes that are gone, and some that were released for a process that takes such; those that are to be
/// cancelled are nobody's to go on with.
pub(crate) async fn abandoned(runs: &Runs, limit: usize, released_max: usize, takes: &Takes) -> Result<Vec<RunRow>> {
    let mut found = Vec::new();
    // Whose owners are gone is asked first: a living process may have ten thousand runs.
    let gone = gone_owners(runs).await?;
    for some in gone.chunks(IDS_MAX) {
        let sql = format!(
            "select {RUN_COLUMNS} from {RUN_FROM} where r.finished_at is null and r.wish is null and r.owner in ({}) order by r.interval_end, r.id
             limit ${}",
            places(1, some.len()),
            some.len() + 1
        );
        let mut bound: Vec<Value> = some.iter().map(|id| id.as_str().into()).collect();
        bound.push(limit.into());
        found.extend(run_rows(runs, &runs.store.rows(&sql, &bound).await?).await?);
    }
    if released_max > 0 {
        // There are few kinds, and thousands of runs of other zones may stand before the first that may be taken.
        let sql = "select distinct zone, pools from hw_run where finished_at is null and wish is null and owner = ''";
        let mut bound = values![released_max].to_vec();
        let mut kinds = Vec::new();
        for row in runs.store.rows(sql, &[]).await? {
            if takes.may(&placement(&row, 0)?) && kinds.len() < PLACEMENTS_MAX {
                bound.extend(values![row.text(0)?, row.text(1)?]);
                kinds.push(format!("r.zone = ${} and r.pools = ${}", bound.len() - 1, bound.len()));
            }
        }
        if !kinds.is_empty() {
            let sql = format!(
                "select {RUN_COLUMNS} from {RUN_FROM} where r.finished_at is null and r.wish is null and r.owner = '' and ({})
                 order by r.priority desc, r.interval_end, r.born, r.id limit $1",
                kinds.join(" or ")
            );
            found.extend(run_rows(runs, &runs.store.rows(&sql, &bound).await?).await?);
        }
    }
    Ok(found)
}

/// The owners of live runs, ours excepted, that are gone.
async fn gone_owners(runs: &Runs) -> Result<Vec<String>> {
    let this = runs.process().await?;
    let sql = "select o.owner, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until
        from (select distinct owner from hw_run where finished_at is null and owner <> $1 and owner <> '') o
        left join hw_process p on p.id = o.owner";
    let now = runs.now().await?;
    let lives = runs.lives_at(now);
    let mut gone = Vec::new();
    for row in &runs.store.rows(sql, &values![this]).await? {
        if owner(row, 1)?.is_none_or(|(process, lease)| !lives(&process, lease)) {
            gone.push(row.text(0)?);
        }
    }
    Ok(gone)
}

pub(crate) async fn show(runs: &Runs, id: &RunId) -> Result<Option<RunDetail>> {
    let id = values![id.as_str()];
    let rows = runs.store.rows(&format!("select {RUN_COLUMNS} from {RUN_FROM} where r.id = $1"), &id).await?;
    let Some(run) = run_rows(runs, &rows).await?.into_iter().next() else { return Ok(None) };
    let tasks = "select name, state, started_at, finished_at from hw_task where run_id = $1 order by place";
    let attempts =
        "select attempt, state, started_at, finished_at, error_kind, error_code, error, hint, log_path, log_bytes,
            task
        from hw_attempt where run_id = $1 order by attempt";
    Ok(Some(RunDetail {
        run,
        tasks: runs.store.rows(tasks, &id).await?.iter().map(task_record).collect::<Result<_>>()?,
        attempts: runs.store.rows(attempts, &id).await?.iter().map(attempt_record).collect::<Result<_>>()?,
    }))
}

pub(crate) async fn run_rows(runs: &Runs, rows: &[Row]) -> Result<Vec<RunRow>> {
    let now = runs.now().await?;
    let lives = runs.lives_at(now);
    rows.iter().map(|row| run_row(row, &lives)).collect::<Result<_, Error>>()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn a_span_ends_before_a_long_gap() {
        let hour = |n: i64| {
            let start = DateTime::UNIX_EPOCH + TimeDelta::hours(n);
            Interval::new(start, start + TimeDelta::hours(1)).unwrap()
        };
        let (a, b): (JobName, JobName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let wanted = [(&a, 300), (&b, 5), (&a, 0), (&a, 100), (&a, 1), (&a, 202)].map(|(job, n)| (job, hour(n)));
        let found = spans(wanted.iter().map(|(job, interval)| (*job, interval)));
        let hours: Vec<_> =
            found.iter().map(|(job, first, last)| (*job, first / 3_600_000_000, last / 3_600_000_000)).collect();
        assert_eq!(hours, [(&a, 0, 100), (&a, 202, 300), (&b, 5, 5)]);
    }
}
