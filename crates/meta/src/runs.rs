use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use headworks_domain::{Clock, Interval, JobName, RunId};
use headworks_flow::Failure;
use headworks_flow::exec::{
    BoxFault, Claim, ClaimRequest, Kept, Partition, Producer, Release, RunDetail, RunFilter, RunRecord, RunRow,
    RunStore, SlotRequest, Slots, Standing, Takes,
};
use headworks_store::{Dialect, Store, Tx, Value, values};
use tokio::sync::OnceCell;

use crate::{
    Error, ProcessInfo, Processes, Result, claim, demands, pools, read, record,
    schema::{OF_RUN, RUNS},
};

/// How long a process owns its runs without a sign of life.
pub const LEASE: Duration = Duration::from_secs(10);

/// A process that could not renew its lease for so long takes the database to have been out of reach for others too. Half a lease:
/// an outage of seven seconds is enough for a lease that was three seconds old to run out before anybody can renew it.
const OUTAGE: Duration = Duration::from_secs(5);

/// Processes that were last heard of so long ago are forgotten.
const PROCESS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The runs of a project, and this process's share of them. One executor needs one handle; reading needs no lease.
pub struct Runs {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) processes: Arc<dyn Processes>,
    process: OnceCell<String>,
    run_number: AtomicU64,
    leases: Mutex<Leases>,
}

/// What this process knows about leases besides their rows.
#[derive(Default)]
pub(crate) struct Leases {
    renewed_at: Option<Instant>,
    /// The database was out of reach: until then others could not renew theirs either, and nobody is taken for gone by lease.
    doubted_until: Option<Instant>,
}

impl Leases {
    fn renewed(&mut self, now: Instant) {
        if self.renewed_at.replace(now).is_some_and(|before| now - before > OUTAGE) {
            self.doubted_until = Some(now + LEASE);
        }
    }

    /// Leases are doubted for their whole length after an outage, and before that: the first answer of a database that is back
    /// may be to a look at others' leases, when this process has not renewed its own yet.
    fn are_doubted(&self, now: Instant) -> bool {
        self.renewed_at.is_some_and(|at| now > at + OUTAGE) || self.doubted_until.is_some_and(|until| now < until)
    }
}

impl Runs {
    /// Opens the records, making or migrating their tables.
    pub async fn open(store: Store, clock: Arc<dyn Clock>, processes: Arc<dyn Processes>) -> Result<Self> {
        for tables in [RUNS, demands::TABLES] {
            store.migrate(tables.name, tables.home, tables.migrations).await?;
        }
        Ok(Self {
            store,
            clock,
            processes,
            process: OnceCell::new(),
            run_number: AtomicU64::new(1),
            leases: Mutex::default(),
        })
    }

    /// Sees that the runs are those of a project: a database that has none yet is its from now on. Errors: `OtherProject`.
    pub async fn belong_to(&self, project: &str) -> Result<()> {
        if self.project().await?.is_none() {
            self.set_project(project, "nothing").await?;
        }
        match self.project().await? {
            Some(found) if found != project => {
                let (url, asked) = (self.store.options().shown(), project.to_owned());
                Err(Error::OtherProject { url, found, asked })
            }
            _ => Ok(()),
        }
    }

    /// Lets the database have the new name of its project.
    pub async fn rename_project(&self, project: &str) -> Result<()> {
        self.set_project(project, "update set name = excluded.name").await
    }

    async fn set_project(&self, project: &str, on_conflict: &'static str) -> Result<()> {
        let bound = values![project];
        let sql = format!("insert into hw_project (id, name) values (1, $1) on conflict (id) do {on_conflict}");
        self.store.write(move |tx| Box::pin(async move { Ok(tx.execute(&sql, &bound).await.map(drop)?) })).await
    }

    async fn project(&self) -> Result<Option<String>> {
        let row = self.store.row("select name from hw_project", &[]).await?;
        Ok(row.map(|row| row.text(0)).transpose()?)
    }

    /// Keeps the text of job versions that were not seen before.
    pub async fn note_versions(&self, versions: Vec<(JobName, String, String)>) -> Result<()> {
        let now = self.clock.now().timestamp_micros();
        let known = self.store.rows("select job, version from hw_job_version", &[]).await?;
        let known: std::collections::HashSet<(String, String)> =
            known.iter().map(|row| Ok((row.text(0)?, row.text(1)?))).collect::<Result<_>>()?;
        let new: Vec<_> = versions
            .into_iter()
            .filter(|(job, version, _)| !known.contains(&(job.to_string(), version.clone())))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    for (job, version, source) in new {
                        tx.execute(
                            "insert into hw_job_version (job, version, source, first_seen) values ($1, $2, $3, $4)
                             on conflict do nothing",
                            &values![job.as_str(), version, source, now],
                        )
                        .await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// The text of a version of a job, if it was ever planned.
    pub async fn version_source(&self, job: &JobName, version: &str) -> Result<Option<String>> {
        let sql = "select source from hw_job_version where job = $1 and version = $2";
        let row = self.store.row(sql, &values![job.as_str(), version]).await?;
        Ok(row.map(|row| row.text(0)).transpose()?)
    }

    /// Wipes a job's memory: its runs, tasks, attempts and versions; what it published stays. Returns the paths of its
    /// log files, which are the caller's to delete. Errors: `Busy` while a run of it is at work.
    pub async fn forget(&self, job: &JobName) -> Result<Vec<String>> {
        let filter = RunFilter { job: Some(job.clone()), live: true, limit: usize::MAX, ..RunFilter::default() };
        if let Some(run) = read::list(self, &filter).await?.into_iter().find(RunRow::is_held) {
            return Err(Error::Busy { job: job.clone(), run_id: run.id });
        }
        let job = job.to_string();
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    let of_job = "run_id in (select id from hw_run where job = $1)";
                    let logs = format!("select distinct log_path from hw_attempt where {of_job}");
                    let logs = tx.rows(&logs, &values![&job]).await?;
                    for table in OF_RUN {
                        tx.execute(&format!("delete from {table} where {of_job}"), &values![&job]).await?;
                    }
                    tx.execute(&format!("delete from hw_mark where {of_job}"), &values![&job]).await?;
                    tx.execute("delete from hw_demand where job = $1 and backfill is null", &values![&job]).await?;
                    tx.execute("delete from hw_run where job = $1", &values![&job]).await?;
                    tx.execute("delete from hw_job_version where job = $1", &values![&job]).await?;
                    Ok(logs.iter().map(|row| row.text(0)).collect::<Result<_, _>>()?)
                })
            })
            .await
    }

    /// This process's id, registered with its lease on the first call.
    pub(crate) async fn process(&self) -> Result<&str> {
        Ok(self.process.get_or_try_init(|| self.register()).await?)
    }

    /// The database's time in microseconds: on SQLite this machine's.
    pub(crate) async fn now(&self) -> Result<i64> {
        match self.store.dialect() {
            Dialect::Sqlite => Ok(self.clock.now().timestamp_micros()),
            Dialect::Postgres => {
                let row = self.store.row(POSTGRES_NOW, &[]).await?;
                row.map_or(Ok(0), |row| row.i64(0)).map_err(Error::from)
            }
        }
    }

    async fn register(&self) -> Result<String> {
        let info = self.processes.this();
        let now = self.now().await?;
        self.store.write(move |tx| Box::pin(async move { register(tx, &info, now).await })).await
    }

    async fn renew(&self) -> Result<()> {
        let process = self.process().await?.to_owned();
        match self.store.dialect() {
            Dialect::Sqlite => self.set_lease(process, self.now().await? + micros(LEASE)).await?,
            // By the database's time, and past the publishes and the clean-up that wait for the writer.
            Dialect::Postgres => {
                const RENEW: &str = "update hw_process
                    set lease_until = cast(extract(epoch from clock_timestamp()) * 1000000 as bigint) + $2 where id = $1";
                self.store.write_aside(RENEW, values![process, micros(LEASE)].to_vec()).await?;
            }
        }
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).renewed(Instant::now());
        Ok(())
    }

    /// True while leases that ran out say nothing.
    pub(crate) fn doubts_leases(&self) -> bool {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).are_doubted(Instant::now())
    }

    async fn set_lease(&self, process: String, until: i64) -> Result<()> {
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute("update hw_process set lease_until = $2 where id = $1", &values![process, until])
                        .await?;
                    Ok(())
                })
            })
            .await
    }
}

const POSTGRES_NOW: &str = "select cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)";

/// Gives the process an id that no other has: its start in base 36, and the next free number when that is taken.
async fn register(tx: &mut Tx, info: &ProcessInfo, now: i64) -> Result<String> {
    tx.execute("delete from hw_process where lease_until < $1", &values![now - micros(PROCESS_KEPT)]).await?;
    for number in now.. {
        let id = base36(number.unsigned_abs());
        let values = values![
            &id,
            &info.host,
            &info.boot_id,
            i64::from(info.pid),
            i64::try_from(info.pid_start).unwrap_or(i64::MAX),
            now + micros(LEASE),
            now
        ];
        let made = tx
            .execute(
                "insert into hw_process (id, host, boot_id, pid, pid_start, lease_until, started_at)
                 values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
                &values,
            )
            .await?;
        if made == 1 {
            return Ok(id);
        }
    }
    Err(Error::Row { table: "hw_process", reason: "every id is taken".to_owned() })
}

pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(u32::try_from(number % 36).unwrap_or(0), 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

/// `$1, $2, ...`, so many from `first` on.
pub(crate) fn places(first: usize, count: usize) -> String {
    (first..first + count).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ")
}

/// `($1, $2), ($3, $4), ...`: places for so many rows of so many columns.
pub(crate) fn rows_of_places(rows: usize, columns: usize) -> String {
    (0..rows).map(|row| format!("({})", places(row * columns + 1, columns))).collect::<Vec<_>>().join(", ")
}

pub(crate) fn texts<'a>(texts: impl IntoIterator<Item = &'a RunId>) -> Vec<Value> {
    texts.into_iter().map(|id| Value::from(id.as_str())).collect()
}

fn boxed(error: Error) -> BoxFault {
    Box::new(error)
}

#[async_trait]
impl RunStore for Runs {
    async fn new_run_ids(&self, count: usize) -> Result<Vec<RunId>, BoxFault> {
        let process = self.process().await.map_err(boxed)?;
        let first = self.run_number.fetch_add(count as u64, Ordering::Relaxed);
        let id = |number| format!("{process}-{number}").parse().expect("digits, letters and a dash are an id");
        Ok((first..first + count as u64).map(id).collect())
    }

    async fn find(&self, wanted: &[(JobName, Interval)]) -> Result<Vec<Option<RunRow>>, BoxFault> {
        read::find(self, wanted).await.map_err(boxed)
    }

    async fn claim(&self, wanted: Vec<ClaimRequest>) -> Result<Vec<Option<Claim>>, BoxFault> {
        claim::claim(self, wanted).await.map_err(boxed)
    }

    async fn source(&self, job: &JobName, version: &str) -> Result<Option<String>, BoxFault> {
        self.version_source(job, version).await.map_err(boxed)
    }

    async fn record(&self, records: Vec<RunRecord>) -> Result<Vec<Kept>, BoxFault> {
        record::record(self, records).await.map_err(boxed)
    }

    fn lease(&self) -> Duration {
        LEASE
    }

    async fn heartbeat(&self) -> Result<(), BoxFault> {
        self.renew().await.map_err(boxed)
    }

    async fn lost(&self, runs: &[(RunId, i64)]) -> Result<Vec<RunId>, BoxFault> {
        read::lost(self, runs).await.map_err(boxed)
    }

    async fn leave(&self) -> Result<(), BoxFault> {
        match self.process.get() {
            Some(process) => self.set_lease(process.clone(), 0).await.map_err(boxed),
            None => Ok(()),
        }
    }

    async fn abandoned(&self, limit: usize, released_max: usize, takes: &Takes) -> Result<Vec<RunRow>, BoxFault> {
        read::abandoned(self, limit, released_max, takes).await.map_err(boxed)
    }

    async fn release(&self, runs: Vec<Release>) -> Result<(), BoxFault> {
        claim::release(self, runs).await.map_err(boxed)
    }

    async fn workers(&self) -> Result<Vec<Takes>, BoxFault> {
        self.other_workers().await.map_err(boxed)
    }

    async fn slots(&self, given: Vec<i64>, wanted: Vec<SlotRequest>) -> Result<Vec<Slots>, BoxFault> {
        pools::take(self, given, wanted).await.map_err(boxed)
    }

    async fn cancel_wishes(&self) -> Result<Vec<RunId>, BoxFault> {
        Self::cancel_wishes(self).await.map_err(boxed)
    }

    async fn answered(&self, demands: Vec<i64>) -> Result<(), BoxFault> {
        self.answer_nothing(demands).await.map_err(boxed)
    }

    async fn standing(&self, runs: &[RunId]) -> Result<Vec<Standing>, BoxFault> {
        read::standing(self, runs).await.map_err(boxed)
    }

    async fn producers(&self, wanted: &[Partition]) -> Result<Vec<Producer>, BoxFault> {
        read::producers(self, wanted).await.map_err(boxed)
    }

    fn is_outage(&self, failure: &Failure) -> bool {
        const OUTAGES: [&str; 4] = ["STORE_OPEN", "STORE_LOST", "STORE_COMMIT_UNKNOWN", "STORE_LOCKED"];
        OUTAGES.contains(&failure.code.as_str()) && failure.retryable
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<RunRow>, BoxFault> {
        read::list(self, filter).await.map_err(boxed)
    }

    async fn show(&self, run: &RunId) -> Result<Option<RunDetail>, BoxFault> {
        read::show(self, run).await.map_err(boxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_makes_leases_doubtful_before_and_after_the_own_one_is_renewed() {
        let (mut leases, begun) = (Leases::default(), Instant::now());
        let after = |secs| begun + Duration::from_secs(secs);
        assert!(!leases.are_doubted(begun), "a command that never renews takes leases as they are");
        leases.renewed(begun);
        leases.renewed(after(3));
        assert!(!leases.are_doubted(after(8)));
        assert!(leases.are_doubted(after(10)), "an outage of seven seconds");
        assert!(leases.are_doubted(after(63)), "an outage of a minute");
        leases.renewed(after(64));
        assert!(leases.are_doubted(after(65)));
        for second in [67, 70, 73] {
            leases.renewed(after(second));
            assert!(leases.are_doubted(after(second)), "for a whole lease");
        }
        leases.renewed(after(76));
        assert!(!leases.are_doubted(after(77)));
    }

    #[test]
    fn ids_and_places_are_written_out() {
        assert_eq!(base36(0), "0");
        assert_eq!(base36(36 * 36 + 35), "10z");
        assert_eq!(places(3, 2), "$3, $4");
        assert_eq!(rows_of_places(2, 2), "($1, $2), ($3, $4)");
    }
}
