//! A store, a registry and a runner in memory, with faults, that write down every broken promise.

#![allow(clippy::disallowed_methods, reason = "the store in memory is the database, which has a clock of its own")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use headworks_domain::{Clock, ErrorKind, Fault, Interval, JobName, RunId, SystemClock};
use headworks_flow::{
    Answer, Question,
    exec::{
        BoxFault, Claim, ClaimRequest, Done, Given, Kept, Partition, Partitions, Planner, Producer, Release, Request,
        RunDetail, RunFilter, RunRecord, RunRow, RunShape, RunStore, Segment, Standing, Stop, Takes, TaskRunner,
    },
    machine::{Failure, State},
};
use tokio::sync::watch;

use crate::chance::Chance;

/// As `headworks_meta` has it.
const LEASE: Duration = Duration::from_secs(10);

/// What all processes share.
#[derive(Default)]
pub(super) struct Database {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    fence: i64,
    processes: usize,
    ids: u64,
    dead: HashSet<String>,
    /// Until when processes own their runs; who was taken for dead may renew its lease.
    leases: HashMap<String, DateTime<Utc>>,
    runs: Vec<Row>,
    published: BTreeMap<Partition, i64>,
    position: i64,
    /// Publishes per job and interval.
    successes: HashMap<(JobName, Interval), usize>,
    /// Attempts at work under the newest fence of their run, by job and interval.
    live: HashMap<(JobName, Interval), (i64, String)>,
    live_per_process: HashMap<String, usize>,
    live_per_job: HashMap<(String, JobName), usize>,
    attempts: HashSet<(RunId, u32)>,
    violations: Vec<String>,
    store_calls: u64,
}

struct Row {
    request: ClaimRequest,
    owner: String,
    fence: i64,
    attempt: u32,
    state: State,
    over: bool,
    record: Option<RunRecord>,
}

impl Database {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(super) fn successes(&self, request: &Request) -> usize {
        self.lock().successes.get(&(request.job.clone(), request.interval)).copied().unwrap_or(0)
    }

    pub(super) fn publishes(&self) -> usize {
        self.lock().successes.values().sum()
    }

    pub(super) fn states(&self) -> Vec<(RunId, State, bool)> {
        self.lock().runs.iter().map(|r| (r.request.run_id.clone(), r.state, r.over)).collect()
    }

    /// When a partition was published last, in the order of publishes.
    pub(super) fn position(&self, partition: &Partition) -> i64 {
        self.lock().published[partition]
    }

    pub(super) fn publish_foreign(&self, partition: Partition) {
        let mut inner = self.lock();
        inner.position += 1;
        let position = inner.position;
        inner.published.insert(partition, position);
        drop(inner);
        self.changed();
    }

    pub(super) fn kill(&self, process: &str) {
        self.lock().dead.insert(process.to_owned());
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}

/// One process's hold on the database.
pub(super) struct Handle {
    pub(super) database: Arc<Database>,
    pub(super) process: String,
    faults: Mutex<Chance>,
    /// One call in so many fails as if the database were away; 0 for none.
    pub(super) fails_one_in: u64,
}

impl Handle {
    pub(super) fn new(database: &Arc<Database>, seed: u64, fails_one_in: u64) -> Arc<Self> {
        let mut inner = database.lock();
        inner.processes += 1;
        let process = format!("p{}", inner.processes);
        drop(inner);
        Arc::new(Self { database: Arc::clone(database), process, faults: Mutex::new(Chance::new(seed)), fails_one_in })
    }

    async fn call(&self) -> Result<MutexGuard<'_, Inner>, BoxFault> {
        let (steps, fails) = {
            let mut chance = self.faults.lock().unwrap();
            (chance.below(4), self.fails_one_in > 0 && chance.one_in(self.fails_one_in))
        };
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        if fails {
            return Err(Box::new(Away));
        }
        let mut inner = self.database.lock();
        inner.store_calls += 1;
        Ok(inner)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the database is away")]
struct Away;

impl Fault for Away {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }

    fn code(&self) -> &'static str {
        "AWAY"
    }
}

impl Inner {
    fn row_of(&self, row: &Row) -> RunRow {
        let record = row.record.as_ref();
        RunRow {
            id: row.request.run_id.clone(),
            job: row.request.job.clone(),
            job_version: row.request.job_version.clone(),
            table: row.request.table.clone(),
            interval: row.request.interval,
            ds: row.request.ds,
            trigger: row.request.trigger,
            params: row.request.params.clone(),
            state: row.state,
            attempt: row.attempt,
            fence: row.fence,
            owner: row.owner.clone(),
            owner_alive: !row.over && !row.owner.is_empty() && !self.dead.contains(&row.owner),
            lease_until: self.leases.get(&row.owner).copied(),
            created_at: Utc::now(),
            started_at: None,
            finished_at: row.over.then(Utc::now),
            rows: record.map_or(0, |r| r.rows),
            bytes: 0,
            failure: record.and_then(|r| r.failure.clone()),
        }
    }

    fn keep(&mut self, record: &RunRecord) -> Kept {
        let Some(row) = self.runs.iter_mut().find(|r| r.request.run_id == record.run_id) else { return Kept::Fenced };
        if row.fence != record.fence {
            return Kept::Fenced;
        }
        if row.over {
            return Kept::Over(row.state);
        }
        row.state = record.state;
        row.attempt = record.attempt;
        row.over = record.state.is_final();
        if row.over != record.finished_at.is_some() {
            self.violations.push(format!("{}: {} with end {:?}", record.run_id, record.state, record.finished_at));
        }
        row.record = Some(record.clone());
        Kept::Yes
    }
}

#[async_trait]
impl RunStore for Handle {
    async fn new_run_ids(&self, count: usize) -> Result<Vec<RunId>, BoxFault> {
        let mut inner = self.call().await?;
        let first = inner.ids;
        inner.ids += count as u64;
        Ok((first..first + count as u64).map(|n| format!("r{n}").parse().unwrap()).collect())
    }

    async fn find(&self, wanted: &[(JobName, Interval)]) -> Result<Vec<Option<RunRow>>, BoxFault> {
        let inner = self.call().await?;
        let newest: HashMap<_, _> =
            inner.runs.iter().map(|r| ((r.request.job.clone(), r.request.interval), r)).collect();
        Ok(wanted.iter().map(|key| newest.get(key).map(|row| inner.row_of(row))).collect())
    }

    async fn claim(&self, wanted: Vec<ClaimRequest>) -> Result<Vec<Option<Claim>>, BoxFault> {
        let mut inner = self.call().await?;
        inner.fence += 1;
        let fence = inner.fence;
        let mut claims = Vec::new();
        for request in wanted {
            let same = |r: &&Row| r.request.job == request.job && r.request.interval == request.interval;
            let newest = inner.runs.iter().rfind(same).map(|r| r.request.run_id.clone());
            let claim = match request.taken_over() {
                None if newest != request.seen.as_ref().map(|s| s.run_id.clone()) => None,
                None if inner.runs.iter().any(|r| same(&r) && !r.over) => None,
                None => {
                    let owner = self.process.clone();
                    inner.runs.push(Row {
                        request,
                        owner,
                        fence,
                        attempt: 1,
                        state: State::Waiting,
                        over: false,
                        record: None,
                    });
                    Some(Claim { fence, attempt: 1 })
                }
                Some(seen) => {
                    let Inner { runs, leases, .. } = &mut *inner;
                    match runs.iter_mut().find(|r| r.request.run_id == request.run_id && r.fence == seen.fence) {
                        Some(row) if !row.over && leases.get(&row.owner) > seen.lease_until.as_ref() => None,
                        Some(row) if row.state == State::Success => None,
                        Some(row) => {
                            (row.fence, row.over, row.state) = (fence, false, State::Waiting);
                            row.owner = self.process.clone();
                            row.attempt += 1;
                            Some(Claim { fence, attempt: row.attempt })
                        }
                        None => None,
                    }
                }
            };
            claims.push(claim);
        }
        Ok(claims)
    }

    async fn record(&self, records: Vec<RunRecord>) -> Result<Vec<Kept>, BoxFault> {
        let mut inner = self.call().await?;
        Ok(records.iter().map(|r| inner.keep(r)).collect())
    }

    fn lease(&self) -> Duration {
        LEASE
    }

    async fn lost(&self, runs: &[(RunId, i64)]) -> Result<Vec<RunId>, BoxFault> {
        let inner = self.call().await?;
        let has =
            |(id, fence): &&(RunId, i64)| !inner.runs.iter().any(|r| r.request.run_id == *id && r.fence == *fence);
        Ok(runs.iter().filter(has).map(|(id, _)| id.clone()).collect())
    }

    /// A lease that ran out is taken up again: who was taken for dead may have slept.
    async fn heartbeat(&self) -> Result<(), BoxFault> {
        let mut inner = self.call().await?;
        inner.dead.remove(&self.process);
        inner.leases.insert(self.process.clone(), Utc::now() + LEASE);
        Ok(())
    }

    async fn leave(&self) -> Result<(), BoxFault> {
        let mut inner = self.database.lock();
        inner.dead.insert(self.process.clone());
        Ok(())
    }

    async fn abandoned(&self, limit: usize, released_max: usize, takes: &Takes) -> Result<Vec<RunRow>, BoxFault> {
        let inner = self.call().await?;
        let gone = |r: &&Row| !r.over && r.owner != self.process && inner.dead.contains(&r.owner);
        let released = |r: &&Row| !r.over && r.owner.is_empty() && takes.may(&r.request.placement);
        let gone = inner.runs.iter().filter(gone).take(limit);
        Ok(gone.chain(inner.runs.iter().filter(released).take(released_max)).map(|r| inner.row_of(r)).collect())
    }

    async fn release(&self, runs: Vec<Release>) -> Result<(), BoxFault> {
        let mut inner = self.call().await?;
        for Release { run_id: run, fence, .. } in runs {
            if let Some(row) = inner.runs.iter_mut().find(|r| r.request.run_id == run && r.fence == fence && !r.over) {
                (row.owner, row.state) = (String::new(), State::Ready);
            }
        }
        drop(inner);
        self.database.changed();
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<Takes>, BoxFault> {
        let inner = self.call().await?;
        let lives = |process: &String| *process != self.process && !inner.dead.contains(process);
        Ok((1..=inner.processes).map(|n| format!("p{n}")).filter(lives).map(|_| Takes::default()).collect())
    }

    async fn standing(&self, runs: &[RunId]) -> Result<Vec<Standing>, BoxFault> {
        let inner = self.call().await?;
        let standing = |id: &RunId| match inner.runs.iter().find(|r| r.request.run_id == *id) {
            None => Standing::Unknown,
            Some(row) if row.over => Standing::Over(row.state),
            Some(row) if inner.dead.contains(&row.owner) => Standing::Abandoned,
            Some(_) => Standing::Held,
        };
        Ok(runs.iter().map(standing).collect())
    }

    async fn producers(&self, wanted: &[Partition]) -> Result<Vec<Producer>, BoxFault> {
        let inner = self.call().await?;
        let mut producers = Vec::new();
        for row in inner.runs.iter().filter(|r| !r.over && r.owner != self.process && !inner.dead.contains(&r.owner)) {
            let (first, last) = row.request.partitions.clone().unwrap();
            let partitions: Vec<_> = wanted
                .iter()
                .filter(|p| Some(&p.table) == row.request.table.as_ref() && first <= p.key && p.key <= last)
                .cloned()
                .collect();
            if !partitions.is_empty() {
                producers.push(Producer { run_id: row.request.run_id.clone(), partitions });
            }
        }
        Ok(producers)
    }

    fn is_outage(&self, failure: &Failure) -> bool {
        failure.code == "AWAY"
    }

    async fn list(&self, _: &RunFilter) -> Result<Vec<RunRow>, BoxFault> {
        let inner = self.call().await?;
        Ok(inner.runs.iter().map(|r| inner.row_of(r)).collect())
    }

    async fn show(&self, _: &RunId) -> Result<Option<RunDetail>, BoxFault> {
        Ok(None)
    }
}

#[async_trait]
impl Partitions for Handle {
    async fn published(&self, wanted: &[Partition]) -> Result<(Vec<Partition>, i64), BoxFault> {
        let inner = self.call().await?;
        Ok((wanted.iter().filter(|p| inner.published.contains_key(p)).cloned().collect(), inner.position))
    }

    async fn published_since(&self, position: i64) -> Result<(Vec<Partition>, i64), BoxFault> {
        let inner = self.call().await?;
        let later = inner.published.iter().filter(|(_, at)| **at > position).map(|(p, _)| p.clone()).collect();
        Ok((later, inner.position))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.database.changes.subscribe()
    }
}

/// Hands out prepared shapes, and the sizes of pools.
pub(super) struct Shapes(pub(super) HashMap<Request, RunShape>, pub(super) BTreeMap<String, usize>);

impl Planner for Shapes {
    fn plan(&self, request: &Request, _: &RunId, _: &Given) -> Result<RunShape, Failure> {
        self.0.get(request).cloned().ok_or_else(|| {
            Failure::new(ErrorKind::Invalid, "TEST_PLAN", format!("job `{}` cannot be planned", request.job))
        })
    }

    fn unplanned(&self, request: &Request, failure: Failure) -> RunShape {
        RunShape { unplanned: Some(failure), ..super::shape(request.job.as_str(), 0, &[]) }
    }

    fn pools(&self) -> BTreeMap<String, usize> {
        self.1.clone()
    }
}

/// How often things go wrong: one in so many, 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) transient: u64,
    pub(super) panics: u64,
    /// The reply to a publish is lost: it happened, and the runner calls it a transient failure.
    pub(super) lost_replies: u64,
    /// Steps of up to so many milliseconds instead of mere yields.
    pub(super) slow_ms: u64,
}

/// Publishes, sometimes, and checks what the executor promised.
pub(super) struct Worker {
    pub(super) handle: Arc<Handle>,
    pub(super) tasks_max: usize,
    pub(super) chance: Mutex<Chance>,
    pub(super) faults: Faults,
    /// These fail for good.
    pub(super) broken: BTreeSet<(JobName, Interval)>,
}

struct AtWork {
    database: Arc<Database>,
    key: (JobName, Interval),
    process: String,
    fence: i64,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut inner = self.database.lock();
        if inner.live.get(&self.key).is_some_and(|(fence, _)| *fence == self.fence) {
            inner.live.remove(&self.key);
        }
        *inner.live_per_process.get_mut(&self.process).unwrap() -= 1;
        *inner.live_per_job.get_mut(&(self.process.clone(), self.key.0.clone())).unwrap() -= 1;
    }
}

impl Worker {
    fn check_in(&self, segment: &Segment) -> AtWork {
        let key = (segment.shape.job.clone(), segment.shape.interval);
        let process = self.handle.process.clone();
        let mut guard = self.handle.database.lock();
        let inner = &mut *guard;
        let who = format!("{} {} attempt {}", segment.run_id(), segment.shape.ds, segment.attempt());
        // Who has been fenced may not know it yet: it has no effect, and does not count.
        let fence = segment.fence();
        if inner.runs.iter().any(|r| r.request.run_id == *segment.run_id() && r.fence == fence) {
            let other = inner.live.insert(key.clone(), (fence, who.clone()));
            if let Some((_, other)) = other.filter(|(other, _)| *other >= fence) {
                inner.violations.push(format!("two live attempts: {who} beside {other}"));
            }
        }
        if !inner.attempts.insert((segment.run_id().clone(), segment.attempt())) {
            inner.violations.push(format!("attempt numbered twice: {who}"));
        }
        let of_process = inner.live_per_process.entry(process.clone()).or_default();
        *of_process += 1;
        if *of_process > self.tasks_max {
            inner.violations.push(format!("{of_process} tasks at once, at most {}", self.tasks_max));
        }
        let of_job = inner.live_per_job.entry((process.clone(), key.0.clone())).or_default();
        *of_job += 1;
        if segment.shape.limits.active_runs_max.is_some_and(|max| *of_job > max) {
            inner.violations.push(format!("{of_job} runs of {} at once", key.0));
        }
        for wait in &segment.shape.waits {
            for key in &wait.partitions {
                if !inner.published.contains_key(&Partition::new(wait.table.clone(), key.clone())) {
                    inner.violations.push(format!("{who} started before {} {key}", wait.table));
                }
            }
        }
        AtWork { database: Arc::clone(&self.handle.database), key, process, fence }
    }

    fn hit(&self, one_in: u64) -> bool {
        one_in > 0 && self.chance.lock().unwrap().one_in(one_in)
    }

    async fn pause(&self) {
        let (steps, ms) = {
            let mut chance = self.chance.lock().unwrap();
            (chance.below(5), if self.faults.slow_ms > 0 { chance.below(self.faults.slow_ms + 1) } else { 0 })
        };
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }
}

#[async_trait]
impl TaskRunner for Worker {
    async fn run(&self, segment: &mut Segment) -> Result<Done, Stop> {
        let at_work = self.check_in(segment);
        let key = at_work.key.clone();
        let mut published = false;
        for task in segment.tasks.clone() {
            segment.begin(&task);
            self.pause().await;
            let transient = || Failure::new(ErrorKind::Unavailable, "TEST_AWAY", "the source is away");
            if !published && self.hit(self.faults.transient) {
                return Err(transient().into());
            }
            if !published && self.hit(self.faults.panics) {
                panic!("a bug in a task");
            }
            if task.as_str() == "check" && self.broken.contains(&key) {
                return Err(Failure::new(ErrorKind::Invalid, "TEST_CHECK", "check `not_empty` failed").into());
            }
            if task.as_str() == "publish" {
                let record = segment.finished(1, 10);
                let mut inner = self.handle.database.lock();
                if inner.keep(&record) != Kept::Yes {
                    return Err(Stop::Fenced);
                }
                if inner.runs.iter().any(|r| r.request.run_id == *segment.run_id() && r.fence != segment.fence()) {
                    inner.violations.push(format!("{} published under an old fence", segment.run_id()));
                }
                *inner.successes.entry(key.clone()).or_default() += 1;
                for partition in &segment.shape.partitions {
                    inner.position += 1;
                    let position = inner.position;
                    inner
                        .published
                        .insert(Partition::new(segment.shape.table.clone().unwrap(), partition.clone()), position);
                }
                drop(inner);
                self.handle.database.changed();
                published = true;
                if self.hit(self.faults.lost_replies) {
                    return Err(transient().into());
                }
            }
            segment.end(&task);
        }
        drop(at_work);
        Ok(Done { rows: 1, bytes: 10, published: segment.shape.partitions.clone(), recorded: true, output: None })
    }

    async fn look(&self, question: &Question) -> Result<Answer, Failure> {
        panic!("nobody waits for {question} here")
    }
}

pub(super) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}
