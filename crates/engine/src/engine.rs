mod lanes;
mod running;
mod stream;

use std::{collections::HashMap, fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use datafusion::execution::{
    disk_manager::{DiskManagerBuilder, DiskManagerMode},
    runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
};
use futures::{FutureExt, TryStreamExt};
use headworks_domain::Grant;
use tokio::{
    runtime::{Handle, Runtime},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};

pub use self::stream::QueryStream;
use self::{
    lanes::{Lane, Lanes, runtime},
    running::{Deadline, start},
};
use crate::{
    CacheState, Catalog, EngineOptions, Error, GrantCheck, Priority, QueryId, QueryOptions, QueryState, QueueState,
    Result,
    cache::Cache,
    guard::{ValueLimits, Watch},
    live::{Live, Registry},
    pg_catalog,
    plan::Planner,
    queue::{Queue, Queues},
};

/// Runs SQL over a lake, on threads of its own: the one way in for everybody who asks the lake.
///
/// Cheap to clone. The last clone that goes stops what still runs, without waiting for it; [`Engine::shut_down`] waits.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    /// Taken out on the way down: a runtime may not be dropped where futures run.
    runtimes: Vec<Runtime>,
    shared: Arc<Shared>,
    /// Ends the thread that watches memory by going away.
    _watch: Option<std::sync::mpsc::Sender<()>>,
}

/// What running queries need; no reference back to the runtimes, which could otherwise be dropped on their own threads.
struct Shared {
    planner: Planner,
    catalog: Arc<dyn Catalog>,
    queues: Queues,
    spill: HashMap<String, Arc<RuntimeEnv>>,
    cache: Arc<Cache>,
    registry: Arc<Registry>,
    /// A thread that is never busy: there time limits are kept.
    control: Handle,
    lanes: Lanes,
    batches_ahead: usize,
    closing: watch::Sender<bool>,
}

impl Shared {
    fn lane(&self, queue: &Arc<Queue>) -> &Lane {
        let own = match queue.options.priority {
            _ if Arc::ptr_eq(queue, self.queues.quick()) => Some(&self.lanes.quick),
            Priority::High => self.lanes.high.as_ref(),
            Priority::Normal => None,
            Priority::Low => self.lanes.low.as_ref(),
        };
        own.unwrap_or(&self.lanes.normal)
    }

    /// The queue of a statement, or the one for what takes no time. Errors: `UnknownQueue`.
    async fn queue(&self, sql: &str, options: &QueryOptions) -> Result<Arc<Queue>> {
        if is_quick(self, sql, options).await? {
            return Ok(Arc::clone(self.queues.quick()));
        }
        self.queues.of(options.queue.as_deref(), &options.caller).cloned()
    }

    /// Lets no query in any more and stops those that wait or run.
    fn close(&self) {
        self.queues.close();
        self.lanes.close();
        self.closing.send_replace(true);
    }
}

/// What a statement gives, before it is run.
#[derive(Debug, Clone)]
pub struct Described {
    /// The type of each parameter, `$1` first; `None` where the statement does not say.
    pub parameters: Vec<Option<DataType>>,
    /// The columns of its rows.
    pub schema: SchemaRef,
}

impl Engine {
    /// Starts the engine's threads. Errors: `Start` when its folders cannot be made or threads cannot be started.
    pub fn new(catalog: Arc<dyn Catalog>, options: EngineOptions) -> Result<Self> {
        let results = options.spill_dir.join("results");
        std::fs::create_dir_all(&results).map_err(Error::Start)?;
        let disk = |bytes_max| {
            DiskManagerBuilder::default()
                .with_mode(DiskManagerMode::Directories(vec![options.spill_dir.clone()]))
                .with_max_temp_directory_size(bytes_max)
        };
        let base = RuntimeEnvBuilder::new().with_disk_manager_builder(disk(options.spill_bytes_max)).build_arc()?;
        catalog.register(&base);
        let queues = Queues::new(&options.queues, options.memory_bytes);
        let mut spill = HashMap::new();
        spill.insert(queues.quick().options.name.clone(), Arc::clone(&base));
        for queue in queues.all() {
            let own = match queue.options.spill_bytes_max {
                None => Arc::clone(&base),
                Some(bytes_max) => {
                    RuntimeEnvBuilder::from_runtime_env(&base).with_disk_manager_builder(disk(bytes_max)).build_arc()?
                }
            };
            spill.insert(queue.options.name.clone(), own);
        }
        let (lanes, mut runtimes) = Lanes::start(&queues, &options)?;
        let control = runtime(&EngineOptions { threads: 1, ..options.clone() }, 1, "headworks-control", None)?;
        let control_handle = control.handle().clone();
        runtimes.push(control);
        let limits = ValueLimits::of(&options);
        let registry = Registry::new(options.clock, options.listener);
        let watch = match options.allocated {
            Some(allocated) => Some(Watch::new(allocated, options.memory_bytes, Arc::clone(&registry)).start()?),
            None => None,
        };
        let shared = Arc::new(Shared {
            planner: Planner::new(
                Arc::clone(&catalog),
                base,
                options.threads.max(1),
                options.parallel_bytes_min,
                limits,
            )?,
            catalog,
            queues,
            spill,
            cache: Cache::new(options.cache, results),
            registry,
            control: control_handle,
            lanes,
            batches_ahead: options.batches_ahead.max(1),
            closing: watch::Sender::new(false),
        });
        Ok(Self { inner: Arc::new(Inner { runtimes, shared, _watch: watch }) })
    }

    /// Plans one statement and starts it, or finds its result in the cache. Batches come as they are made; the query waits
    /// when its reader is slow and is stopped when the stream is dropped, or this future.
    ///
    /// Errors: those of [`Error`]; what fails while rows are made comes as the stream's last item.
    pub async fn query(&self, sql: &str, options: QueryOptions) -> Result<QueryStream> {
        let queue = self.inner.shared.queue(sql, &options).await?;
        self.start_in(queue, sql, options).rows().await
    }

    /// Starts one statement and does not wait for its turn. Errors: `UnknownQueue`.
    pub fn start(&self, sql: &str, options: QueryOptions) -> Result<Started> {
        let queue = Arc::clone(self.inner.shared.queues.of(options.queue.as_deref(), &options.caller)?);
        Ok(self.start_in(queue, sql, options))
    }

    fn start_in(&self, queue: Arc<Queue>, sql: &str, options: QueryOptions) -> Started {
        let shared = Arc::clone(&self.inner.shared);
        let entered = shared.registry.enter(sql, options.caller.clone(), queue);
        let (live, sql) = (Arc::clone(entered.live()), sql.to_owned());
        let control = shared.control.clone();
        // A panic is this query's, whose ever the thread is.
        let starting = AssertUnwindSafe(start(shared, sql, options, entered)).catch_unwind();
        let mut starting = Box::pin(starting.map(|done| done.unwrap_or_else(|_| Err(panicked()))));
        // An answer that is in the cache is given by whoever asks: going to another thread and back is most of what it costs.
        let context = control.enter();
        let at_once = (&mut starting).now_or_never();
        drop(context);
        let outcome = match at_once {
            Some(outcome) => Outcome::There(outcome),
            None => Outcome::Comes(Stopping::of(control.spawn(starting))),
        };
        Started { live, outcome }
    }

    /// Runs one statement and keeps its whole result in memory: for results that are known to be small.
    pub async fn rows(&self, sql: &str, options: QueryOptions) -> Result<Vec<RecordBatch>> {
        self.query(sql, options).await?.try_collect().await
    }

    /// Plans one statement and tells what it takes and gives. Waits for its turn to be planned, but for no slot.
    ///
    /// Errors: `UnknownQueue`, `Timeout`, those of planning.
    pub async fn describe(&self, sql: &str, options: QueryOptions) -> Result<Described> {
        let shared = Arc::clone(&self.inner.shared);
        let queue = shared.queue(sql, &options).await?;
        let described = async {
            let lane = shared.lane(&queue);
            let turn = lane.planning.turn(&options.caller.user).await?;
            let (shared, sql, options) = (Arc::clone(&shared), sql.to_owned(), options.clone());
            lane.plan(turn, async move { Box::pin(shared.planner.describe(&sql, &options)).await }).await
        };
        Deadline::of(options.timeout, &queue).limit(described).await
    }

    /// Runs a future on the engine's threads.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.inner.shared.lanes.normal.threads.spawn(work);
    }

    /// Holds a grant against the tables that there are now. Errors: `Syntax`, `Plan` when its row filter cannot be read at all.
    pub async fn check_grant(&self, grant: Grant) -> Result<GrantCheck> {
        let shared = Arc::clone(&self.inner.shared);
        let handle = shared.lanes.normal.threads.clone();
        let task = handle.clone().spawn_blocking(move || handle.block_on(shared.planner.check_grant(&grant)));
        task.await.map_err(not_joined)?
    }

    /// The queries that wait or run now, the oldest first.
    pub fn queries(&self) -> Vec<QueryState> {
        self.inner.shared.registry.states()
    }

    /// How a query stands that waits or runs now.
    pub fn state(&self, id: QueryId) -> Option<QueryState> {
        Some(self.inner.shared.registry.get(id)?.state())
    }

    /// Stops a query; its reader gets `Cancelled`. False when no such query waits or runs.
    pub fn cancel(&self, id: QueryId) -> bool {
        self.inner.shared.registry.get(id).map(|live| live.stop()).is_some()
    }

    /// How each queue stands.
    pub fn queues(&self) -> Vec<QueueState> {
        self.inner.shared.queues.all().iter().map(|queue| queue.state()).collect()
    }

    /// How the cache stands.
    pub fn cache(&self) -> CacheState {
        self.inner.shared.cache.state()
    }

    /// Bytes that sorts, joins and groupings of all running queries hold now.
    pub fn memory_used_bytes(&self) -> usize {
        self.inner.shared.queues.all().iter().map(|queue| queue.budget.used()).sum()
    }

    /// Stops all queries and waits until they have let go of memory and files, at most so long.
    pub async fn shut_down(&self, wait: Duration) {
        let shared = Arc::clone(&self.inner.shared);
        shared.close();
        let is_idle = || shared.queues.all().iter().all(|queue| queue.state().running == 0);
        let until = Instant::now() + wait;
        while !is_idle() {
            if Instant::now() >= until {
                tracing::warn!(wait_secs = wait.as_secs(), "queries still run after the engine was stopped");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
        for runtime in self.runtimes.drain(..) {
            runtime.shutdown_background();
        }
    }
}

/// A query that was started; stopped when dropped.
pub struct Started {
    live: Arc<Live>,
    outcome: Outcome,
}

/// Rows, or why there are none.
#[allow(clippy::large_enum_variant, reason = "there is one a query")]
enum Outcome {
    There(Result<QueryStream>),
    Comes(Stopping<Result<QueryStream>>),
}

impl Started {
    /// Its id.
    pub fn id(&self) -> QueryId {
        self.live.id()
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Waits until it runs. Errors: as of [`Engine::query`].
    pub async fn rows(self) -> Result<QueryStream> {
        match self.outcome {
            Outcome::There(outcome) => outcome,
            Outcome::Comes(task) => task.joined().await,
        }
    }
}

/// True for what clients of PostgreSQL ask the server about itself and its tables: it does not wait behind queries.
async fn is_quick(shared: &Shared, sql: &str, options: &QueryOptions) -> Result<bool> {
    if options.postgres.is_none() || sql.len() > options.limits.text_bytes_max {
        return Ok(false);
    }
    if pg_catalog::reads_nothing(sql) {
        return Ok(true);
    }
    if !pg_catalog::names_catalog(sql) {
        return Ok(false);
    }
    let (sql, limits) = (sql.to_owned(), options.limits);
    let asked = shared.lanes.normal.threads.spawn_blocking(move || pg_catalog::reads_catalog_alone(&sql, &limits));
    asked.await.map_err(not_joined)
}

/// A spawned task that ends with whoever waits for it.
struct Stopping<T>(JoinHandle<T>);

impl<T> Stopping<T> {
    fn of(task: JoinHandle<T>) -> Self {
        Self(task)
    }
}

impl<T> Stopping<Result<T>> {
    async fn joined(mut self) -> Result<T> {
        match (&mut self.0).await {
            Ok(result) => result,
            Err(error) => Err(not_joined(error)),
        }
    }
}

impl<T> Drop for Stopping<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn panicked() -> Error {
    Error::Internal { message: "the query panicked: this is a bug".to_owned() }
}

pub(crate) fn not_joined(error: tokio::task::JoinError) -> Error {
    if error.is_cancelled() { Error::Cancelled } else { Error::Internal { message: error.to_string() } }
}
