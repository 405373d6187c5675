//! Databases, processes that can die, and a clock that stands still until it is told to move.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{Clock, Ds, Interval, PartitionKey, RunId};
use headworks_flow::{
    exec::{AttemptRecord, Claim, ClaimRequest, Placement, RunRecord, RunStore, Trigger},
    machine::{State, TaskRecord},
};
use headworks_meta::{Life, ProcessInfo, Processes, Runs};
use headworks_store::{Store, StoreOptions};
use headworks_testkit::{PgBouncer, TempPostgres};

/// A database with what every process of a test shares.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) machine: Arc<Machine>,
    _dir: Option<tempfile::TempDir>,
}

impl World {
    pub(crate) async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("metadata.db").display());
        Self::open(&url, Some(dir)).await
    }

    pub(crate) async fn postgres() -> Self {
        let url =
            tokio::task::spawn_blocking(|| TempPostgres::shared().unwrap().create_database().unwrap()).await.unwrap();
        Self::open(&url, None).await
    }

    /// The same through PgBouncer in transaction mode.
    pub(crate) async fn pgbouncer() -> Self {
        let url = tokio::task::spawn_blocking(|| {
            let postgres = TempPostgres::shared().unwrap();
            PgBouncer::shared().unwrap().url_of(postgres, &postgres.create_database().unwrap())
        });
        Self::open(&url.await.unwrap(), None).await
    }

    async fn open(url: &str, dir: Option<tempfile::TempDir>) -> Self {
        let store = Store::open(&StoreOptions::new(url)).await.unwrap();
        Self { store, clock: Arc::default(), machine: Arc::default(), _dir: dir }
    }

    /// A process of number `pid` on this machine.
    pub(crate) async fn process(&self, pid: u32) -> Runs {
        let processes = Arc::new(OneOf { pid, machine: Arc::clone(&self.machine) });
        Runs::open(self.store.clone(), self.clock.clone(), processes).await.unwrap()
    }
}

/// Stands still; PostgreSQL's own clock decides leases there.
#[derive(Default)]
pub(crate) struct TestClock(AtomicI64);

impl TestClock {
    pub(crate) fn forward(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        "2026-11-21T00:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(self.0.load(Ordering::SeqCst))
    }
}

/// Knows which process numbers are gone, and which are those of another machine.
#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) gone: Mutex<HashSet<u32>>,
    pub(crate) elsewhere: Mutex<HashSet<u32>>,
}

struct OneOf {
    pid: u32,
    machine: Arc<Machine>,
}

impl Processes for OneOf {
    fn this(&self) -> ProcessInfo {
        ProcessInfo { host: "here".to_owned(), boot_id: "boot".to_owned(), pid: self.pid, pid_start: 7 }
    }

    fn life(&self, process: &ProcessInfo) -> Life {
        if self.machine.gone.lock().unwrap().contains(&process.pid) {
            Life::Gone
        } else if self.machine.elsewhere.lock().unwrap().contains(&process.pid) {
            Life::Unknown
        } else {
            Life::There
        }
    }
}

pub(crate) fn day(n: i64) -> Interval {
    let start = "2013-01-01T05:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::days(n);
    Interval::new(start, start + TimeDelta::days(1)).unwrap()
}

pub(crate) fn ds(n: i64) -> Ds {
    day(n).start().date_naive().into()
}

pub(crate) fn wanted(run_id: &RunId, job: &str, n: i64) -> ClaimRequest {
    ClaimRequest {
        trigger: Trigger::Manual,
        params: serde_json::Map::new(),
        tick: None,
        demand: None,
        placement: Placement::default(),
        yields: false,
        run_id: run_id.clone(),
        job: job.parse().unwrap(),
        job_version: "v1".to_owned(),
        table: Some(job.parse().unwrap()),
        interval: day(n),
        ds: ds(n),
        partitions: Some((PartitionKey::day(ds(n)), PartitionKey::day(ds(n)))),
        tasks: ["stage", "publish"].iter().map(|t| t.parse().unwrap()).collect(),
        seen: None,
    }
}

/// Claims one new run.
pub(crate) async fn claim_one(runs: &Runs, job: &str, n: i64) -> (RunId, Claim) {
    let id = runs.new_run_ids(1).await.unwrap().remove(0);
    let claim = runs.claim(vec![wanted(&id, job, n)]).await.unwrap().remove(0).expect("nobody else has it");
    (id, claim)
}

pub(crate) fn record(run_id: &RunId, claim: Claim, state: State, now: DateTime<Utc>) -> RunRecord {
    let over = state.is_final().then_some(now);
    RunRecord {
        run_id: run_id.clone(),
        fence: claim.fence,
        state,
        attempt: claim.attempt,
        started_at: Some(now),
        finished_at: over,
        rows: 3,
        bytes: 30,
        failure: None,
        pooled: false,
        tasks: ["stage", "publish"]
            .iter()
            .map(|t| TaskRecord { name: t.parse().unwrap(), state, started_at: Some(now), finished_at: over })
            .collect(),
        attempts: vec![AttemptRecord {
            attempt: claim.attempt,
            task: Some("stage".parse().unwrap()),
            state,
            started_at: now,
            finished_at: over,
            failure: None,
            log_path: format!("x/{run_id}-{}.log", claim.attempt),
            log_bytes: 12,
        }],
    }
}
