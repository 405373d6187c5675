//! How much of the past is remembered.

use chrono::{DateTime, Utc};
use headworks_domain::JobName;
use headworks_store::{Value, values};

use crate::{Error, Result, Runs, runs::places, schema::OF_RUN};

/// What is known of a job's past.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// Its runs by state, sorted.
    pub runs: Vec<(String, u64)>,
    /// The first and the last day that its runs are of.
    pub days: Option<(String, String)>,
    /// The tasks of its runs.
    pub tasks: u64,
    /// The attempts of its runs.
    pub attempts: u64,
    /// The versions of its text that were planned.
    pub versions: u64,
    /// The paths of its log files, below the folder of logs.
    pub logs: Vec<String>,
}

impl Memory {
    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.versions == 0
    }
}

/// Runs that are remembered no longer than need be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outdated {
    /// Runs that a later run of the same interval has replaced: they go.
    pub runs: u64,
    /// Runs of which only the fact that they were stays: their tasks and attempts go.
    pub details: u64,
}

/// The most runs that one transaction is about: a bound for how long it holds up others.
const BATCH_RUNS: usize = 400;

/// The most runs that one call looks at; the next one goes on.
const RUNS_MAX: usize = 200_000;

/// Runs that ended before `$1`, and for each whether a later one makes it dispensable. The newest run of an interval stays, for
/// it says that the interval is done; so does its newest success.
const ENDED: &str = "select r.id as id, exists (
        select 1 from hw_run n where n.job = r.job and n.interval_start = r.interval_start and n.interval_end = r.interval_end
            and n.born > r.born and (r.state <> 'success' or n.state = 'success')) as gone
    from hw_run r where r.finished_at < $1";

impl Runs {
    /// Says what [`Runs::forget`] would wipe.
    pub async fn memory(&self, job: &JobName) -> Result<Memory> {
        let of_job = values![job.as_str()];
        let mut memory = Memory::default();
        let rows = "select state, count(*) from hw_run where job = $1 group by state order by state";
        for row in self.store.rows(rows, &of_job).await? {
            memory.runs.push((row.text(0)?, unsigned(row.i64(1)?)));
        }
        if let Some(row) = self.store.row("select min(ds), max(ds) from hw_run where job = $1", &of_job).await? {
            memory.days = row.opt_text(0)?.zip(row.opt_text(1)?);
        }
        memory.tasks = self
            .count("select count(*) from hw_task where run_id in (select id from hw_run where job = $1)", &of_job)
            .await?;
        memory.versions = self.count("select count(*) from hw_job_version where job = $1", &of_job).await?;
        let attempts = "from hw_attempt where run_id in (select id from hw_run where job = $1)";
        memory.attempts = self.count(&format!("select count(*) {attempts}"), &of_job).await?;
        let logs = format!("select distinct log_path {attempts} order by 1");
        for row in self.store.rows(&logs, &of_job).await? {
            memory.logs.push(row.text(0)?);
        }
        Ok(memory)
    }

    /// Says what [`Runs::forget_before`] would forget.
    pub async fn outdated(&self, before: DateTime<Utc>) -> Result<Outdated> {
        let before = values![before.timestamp_micros()];
        let runs = self.count(&format!("select count(*) from ({ENDED}) as ended where gone"), &before).await?;
        let sql = format!("select count(*) from ({ENDED}) as ended where not gone and {}", any_detail("ended.id"));
        Ok(Outdated { runs, details: self.count(&sql, &before).await? })
    }

    /// Forgets runs that ended before an instant, in small transactions.
    ///
    /// A run stays as one row, without its tasks and attempts, while it is the newest of its interval or the newest that
    /// succeeded: it says that the interval is done. Live runs are left alone. Logs are the caller's to remove.
    pub async fn forget_before(&self, before: DateTime<Utc>) -> Result<Outdated> {
        let mut went = Outdated::default();
        let before = before.timestamp_micros();
        for (gone, filter) in [(true, "gone".to_owned()), (false, format!("not gone and {}", any_detail("ended.id")))] {
            let sql = format!("select id from ({ENDED}) as ended where {filter} limit {RUNS_MAX}");
            let rows = self.store.rows(&sql, &values![before]).await?;
            let ids: Vec<Value> = rows.iter().map(|row| Ok(Value::from(row.text(0)?))).collect::<Result<_>>()?;
            for some in ids.chunks(BATCH_RUNS) {
                let some = some.to_vec();
                let count = self
                    .store
                    .write(move |tx| {
                        Box::pin(async move {
                            // One that somebody took over since it was looked at lives again.
                            let sql = format!(
                                "select id from hw_run where finished_at is not null and id in ({})",
                                places(1, some.len())
                            );
                            let rows = tx.rows(&sql, &some).await?;
                            let ended: Vec<Value> = rows.iter().map(|row| row.value(0).clone()).collect();
                            if ended.is_empty() {
                                return Ok(0);
                            }
                            let list = places(1, ended.len());
                            for table in OF_RUN {
                                tx.execute(&format!("delete from {table} where run_id in ({list})"), &ended).await?;
                            }
                            if gone {
                                tx.execute(&format!("delete from hw_run where id in ({list})"), &ended).await?;
                            }
                            Ok::<_, Error>(ended.len() as u64)
                        })
                    })
                    .await?;
                *if gone { &mut went.runs } else { &mut went.details } += count;
            }
        }
        self.forget_answered(before).await?;
        Ok(went)
    }

    async fn count(&self, sql: &str, bound: &[Value]) -> Result<u64> {
        Ok(unsigned(self.store.row(sql, bound).await?.map_or(Ok(0), |row| row.i64(0))?))
    }

    /// The newest fence that was given out: no attempt has a larger one.
    pub async fn newest_fence(&self) -> Result<i64> {
        let row = self.store.row("select value from hw_fence where id = 1", &[]).await?;
        Ok(row.map_or(Ok(0), |row| row.i64(0))?)
    }
}

/// True where a run has tasks or attempts left.
fn any_detail(id: &str) -> String {
    let of: Vec<String> =
        OF_RUN.iter().map(|table| format!("exists (select 1 from {table} d where d.run_id = {id})")).collect();
    format!("({})", of.join(" or "))
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
