//! Queries that run now: who asked what, how far each is, and how to stop it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use datafusion::{
    execution::memory_pool::MemoryPool,
    physical_plan::{ExecutionPlan, metrics::MetricValue},
};
use headworks_domain::Clock;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::{Caller, Error, access::Barrier, queue::Queue, shared::SharedExec};

/// A query's name for as long as anybody remembers it; sorts by the time of its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueryId(Uuid);

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for QueryId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What a query is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waits for a slot of its queue, or for the same query of somebody else.
    Waiting,
    /// Is read and planned.
    Planning,
    /// Makes rows, or waits for its reader.
    Running,
    /// Has given all its rows.
    Done,
    /// Ended with an error.
    Failed,
    /// Was stopped: on request, or because its reader went away.
    Cancelled,
}

impl Stage {
    /// The word for it in answers and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// True when nothing more comes.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How a query stands.
#[derive(Debug, Clone)]
pub struct QueryState {
    /// Its id.
    pub id: QueryId,
    /// The text.
    pub sql: Arc<str>,
    /// Who asked.
    pub user: String,
    /// What the client calls itself.
    pub application: Option<String>,
    /// The queue it runs in.
    pub queue: String,
    /// What it is at.
    pub stage: Stage,
    /// How many queries of its queue start before it, itself counted; only while it waits there.
    pub place: Option<usize>,
    /// When it was asked.
    pub started_at: DateTime<Utc>,
    /// How long it has waited.
    pub waited: Duration,
    /// How long since it was asked, or how long it took.
    pub took: Duration,
    /// Rows that it gave.
    pub rows: u64,
    /// Bytes of these rows in memory.
    pub bytes: u64,
    /// Rows read from tables.
    pub scanned_rows: u64,
    /// Bytes read from files.
    pub scanned_bytes: u64,
    /// True when grants hide a part of what it reads: how many bytes that were tells of hidden rows, and is not for the caller.
    pub is_guarded: bool,
    /// Bytes that its sorts, joins and groupings hold.
    pub memory_bytes: u64,
    /// Bytes that it has spilled.
    pub spilled_bytes: u64,
    /// True when its rows came from the cache.
    pub is_cached: bool,
    /// True when it had more rows than its caller wanted.
    pub is_truncated: bool,
}

/// Is told of each query that ended: the audit, the slow-query log.
pub trait QueryListener: Send + Sync + 'static {
    /// Called once for each query, on a thread of the engine: it must not block.
    fn ended(&self, state: &QueryState, error: Option<&Error>);
}

/// From when on what is planned may have computed much.
const PLANS_LONG: Duration = Duration::from_millis(50);

/// All queries that run.
pub(crate) struct Registry {
    clock: Arc<dyn Clock>,
    queries: Mutex<HashMap<QueryId, Arc<Live>>>,
    listener: Option<Arc<dyn QueryListener>>,
}

/// One query that runs.
pub(crate) struct Live {
    id: QueryId,
    sql: Arc<str>,
    caller: Caller,
    queue: Arc<Queue>,
    started: Instant,
    started_at: DateTime<Utc>,
    facts: Mutex<Facts>,
    stop: watch::Sender<bool>,
    /// Why, when it was not on request.
    stopped_for: Mutex<Option<Error>>,
}

struct Facts {
    stage: Stage,
    ticket: Option<u64>,
    waited: Option<Duration>,
    took: Option<Duration>,
    rows: u64,
    bytes: u64,
    running: Option<Running>,
    /// The last numbers of the plan, once it is over.
    read: Read,
    is_cached: bool,
    is_truncated: bool,
}

/// A plan at work.
pub(crate) struct Running {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) pool: Arc<dyn MemoryPool>,
    /// True when it makes values that the pool does not count.
    pub(crate) may_grow: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Read {
    rows: u64,
    bytes: u64,
    spilled: u64,
    /// Grants hide a part of it.
    is_guarded: bool,
}

/// Takes the query out of the registry and tells the listener, whatever way it ends.
pub(crate) struct Entered {
    registry: Arc<Registry>,
    live: Arc<Live>,
    is_over: bool,
}

impl Registry {
    pub(crate) fn new(clock: Arc<dyn Clock>, listener: Option<Arc<dyn QueryListener>>) -> Arc<Self> {
        Arc::new(Self { clock, queries: Mutex::default(), listener })
    }

    pub(crate) fn enter(self: &Arc<Self>, sql: &str, caller: Caller, queue: Arc<Queue>) -> Entered {
        let live = Arc::new(Live {
            id: QueryId(Uuid::now_v7()),
            sql: sql.into(),
            caller,
            queue,
            started: Instant::now(),
            started_at: self.clock.now(),
            facts: Mutex::new(Facts {
                stage: Stage::Waiting,
                ticket: None,
                waited: None,
                took: None,
                rows: 0,
                bytes: 0,
                running: None,
                read: Read::default(),
                is_cached: false,
                is_truncated: false,
            }),
            stop: watch::Sender::new(false),
            stopped_for: Mutex::default(),
        });
        self.queries().insert(live.id, Arc::clone(&live));
        Entered { registry: Arc::clone(self), live, is_over: false }
    }

    fn queries(&self) -> MutexGuard<'_, HashMap<QueryId, Arc<Live>>> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: QueryId) -> Option<Arc<Live>> {
        self.queries().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        self.queries().values().cloned().collect()
    }

    /// All of them, the oldest first.
    pub(crate) fn states(&self) -> Vec<QueryState> {
        let mut states: Vec<QueryState> = self.all().iter().map(|live| live.state()).collect();
        states.sort_by_key(|state| state.id);
        states
    }
}

impl Live {
    pub(crate) fn id(&self) -> QueryId {
        self.id
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Asks the query to stop.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// The same, with an error that tells its reader why.
    pub(crate) fn stop_for(&self, error: Error) {
        self.stopped_for.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Bytes that its operators say they hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.facts().running.as_ref().map_or(0, |running| running.pool.reserved())
    }

    /// True when it is planned or runs.
    pub(crate) fn is_at_work(&self) -> bool {
        matches!(self.facts().stage, Stage::Planning | Stage::Running)
    }

    /// True when it may hold more than its operators say: constants are computed while it is planned, unless that has only begun.
    pub(crate) fn may_grow(&self) -> bool {
        let facts = self.facts();
        match &facts.running {
            Some(running) => running.may_grow,
            None => {
                let begun = facts.waited.unwrap_or_default();
                facts.stage == Stage::Planning && self.started.elapsed() > begun + PLANS_LONG
            }
        }
    }

    /// Waits until somebody asked it to stop; gives why.
    pub(crate) async fn stopped(&self) -> Error {
        let mut stop = self.stop.subscribe();
        // The sender lives as long as we do.
        let _ = stop.wait_for(|stop| *stop).await;
        self.stopped_for.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(Error::Cancelled)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waits(&self, ticket: u64) {
        self.facts().ticket = Some(ticket);
    }

    pub(crate) fn plans(&self) {
        let waited = self.started.elapsed();
        let mut facts = self.facts();
        facts.ticket = None;
        facts.waited = Some(waited);
        facts.stage = Stage::Planning;
    }

    pub(crate) fn runs(&self, running: Option<Running>) {
        let mut facts = self.facts();
        facts.stage = Stage::Running;
        facts.running = running;
    }

    pub(crate) fn is_cached(&self) {
        self.facts().is_cached = true;
    }

    pub(crate) fn is_truncated(&self) {
        self.facts().is_truncated = true;
    }

    /// Counts rows on their way to the reader.
    pub(crate) fn gave(&self, rows: usize, bytes: usize) {
        let mut facts = self.facts();
        facts.rows += rows as u64;
        facts.bytes += bytes as u64;
    }

    /// Bytes read from files so far.
    pub(crate) fn scanned_bytes(&self) -> u64 {
        let plan = self.facts().running.as_ref().map(|running| Arc::clone(&running.plan));
        plan.map_or(0, |plan| read(&plan).bytes)
    }

    pub(crate) fn state(&self) -> QueryState {
        let facts = self.facts();
        let now = facts.running.as_ref().map_or(facts.read, |running| read(&running.plan));
        let took = facts.took.unwrap_or_else(|| self.started.elapsed());
        QueryState {
            id: self.id,
            sql: Arc::clone(&self.sql),
            user: self.caller.user.clone(),
            application: self.caller.application.clone(),
            queue: self.queue.options.name.clone(),
            stage: facts.stage,
            place: facts.ticket.and_then(|ticket| self.queue.place(ticket)),
            started_at: self.started_at,
            waited: facts.waited.unwrap_or(took),
            took,
            rows: facts.rows,
            bytes: facts.bytes,
            scanned_rows: now.rows,
            scanned_bytes: now.bytes,
            is_guarded: now.is_guarded,
            memory_bytes: facts.running.as_ref().map_or(0, |running| running.pool.reserved() as u64),
            spilled_bytes: now.spilled,
            is_cached: facts.is_cached,
            is_truncated: facts.is_truncated,
        }
    }

    fn end(&self, stage: Stage) {
        let took = self.started.elapsed();
        let mut facts = self.facts();
        facts.ticket = None;
        facts.stage = stage;
        facts.took = Some(took);
        if let Some(running) = facts.running.take() {
            facts.read = read(&running.plan);
        }
    }
}

/// What a plan has read and spilled so far, by its metrics.
fn read(plan: &Arc<dyn ExecutionPlan>) -> Read {
    let mut sum = Read::default();
    let mut nodes = vec![plan];
    let mut shared = HashSet::new();
    while let Some(node) = nodes.pop() {
        if let Some(reader) = node.downcast_ref::<SharedExec>() {
            nodes.extend(shared.insert(Arc::as_ptr(reader.inner())).then_some(reader.inner()));
            continue;
        }
        let children = node.children();
        if let Some(metrics) = node.metrics() {
            if children.is_empty() {
                sum.rows += metrics.output_rows().unwrap_or(0) as u64;
            }
            for metric in metrics.iter() {
                match metric.value() {
                    MetricValue::Count { name, count } if name == "bytes_scanned" => sum.bytes += count.value() as u64,
                    MetricValue::SpilledBytes(count) => sum.spilled += count.value() as u64,
                    _ => {}
                }
            }
        }
        // Of rows behind a barrier only those count that come through; of files what is read.
        if let Some(barrier) = node.downcast_ref::<Barrier>() {
            let behind = read(barrier.inner());
            sum.is_guarded = true;
            sum.bytes += behind.bytes;
            sum.spilled += behind.spilled;
        }
        nodes.extend(children);
    }
    sum
}

impl Entered {
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The query is over.
    pub(crate) fn end(mut self, error: Option<&Error>) {
        self.over(error);
    }

    fn over(&mut self, error: Option<&Error>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        self.live.end(match error {
            None => Stage::Done,
            Some(Error::Cancelled) => Stage::Cancelled,
            Some(_) => Stage::Failed,
        });
        self.registry.queries().remove(&self.live.id);
        if let Some(listener) = &self.registry.listener {
            listener.ended(&self.live.state(), error);
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.over(Some(&Error::Cancelled));
    }
}
