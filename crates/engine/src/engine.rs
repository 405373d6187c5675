use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use datafusion::{
    error::DataFusionError,
    execution::{
        SendableRecordBatchStream, TaskContext,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::MemoryPool,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    physical_plan::{execute_stream, stream::RecordBatchStreamAdapter},
};
use futures::{Stream, StreamExt, TryStreamExt};
use headworks_domain::Grant;
use tokio::{
    runtime::{Handle, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use crate::{
    CacheState, Catalog, EngineOptions, Error, GrantCheck, Priority, QueryId, QueryOptions, QueryState, QueueState,
    Result,
    cache::{Cache, Flight, Looked},
    guard::{ValueLimits, Watch},
    live::{Entered, Live, Registry, Running},
    parse, pg_catalog,
    plan::{Planned, Planner, Runnable},
    pool::QueryPool,
    queue::{Queue, Queues},
    stored::{Rows, Stored, bytes_of, first_rows},
    turns::{Turn, Turns},
    wanted::Asker,
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

/// The threads of each priority that a queue has.
struct Lanes {
    high: Option<Lane>,
    normal: Lane,
    low: Option<Lane>,
    /// For what takes no time, on normal threads: nobody's planning delays it but its own.
    quick: Lane,
}

/// Threads of one priority.
struct Lane {
    threads: Handle,
    /// Who plans on them now: as many at once as there are threads. Planning does not give way, so that more would hold back
    /// each other and everybody else.
    planning: Arc<Turns>,
}

impl Lanes {
    /// Starts threads for the priorities of these queues, the most eager ones as they come, the next less eager.
    fn start(queues: &Queues, options: &EngineOptions) -> Result<(Self, Vec<Runtime>)> {
        let queries_max: usize = queues.all().iter().map(|queue| queue.options.slots).sum();
        let own_nice = rustix::process::getpriority_process(None).unwrap_or_default();
        let mut runtimes = Vec::new();
        let mut lane = |priority, name| {
            if priority != Priority::Normal && queues.all().iter().all(|queue| queue.options.priority != priority) {
                return Ok(None);
            }
            let more = NICE.get(runtimes.len()).filter(|more| **more > 0);
            let nice = more.map(|more| NICE_MAX.min(own_nice + more));
            runtimes.push(runtime(options, queries_max, name, nice)?);
            let threads = runtimes[runtimes.len() - 1].handle().clone();
            Ok::<_, Error>(Some(Lane { threads, planning: Turns::new(options.threads) }))
        };
        let high = lane(Priority::High, "headworks-high")?;
        let normal = lane(Priority::Normal, "headworks-sql")?;
        let low = lane(Priority::Low, "headworks-low")?;
        let normal =
            normal.ok_or_else(|| Error::Internal { message: "there are no threads for queries".to_owned() })?;
        let quick = Lane { threads: normal.threads.clone(), planning: Turns::new(options.threads) };
        Ok((Self { high, normal, low, quick }, runtimes))
    }

    fn all(&self) -> impl Iterator<Item = &Lane> {
        self.high.iter().chain([&self.normal, &self.quick]).chain(&self.low)
    }

    fn close(&self) {
        self.all().for_each(|lane| lane.planning.close());
    }
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
        let task = Stopping::of(shared.control.clone().spawn(start(shared, sql, options, entered)));
        Started { live, task }
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

/// How much less eager the threads of each next priority are: on Linux, who is ten behind runs a tenth of the time when both
/// want to. Ten each, as far as it goes.
const NICE: [i32; 3] = [0, 10, 19];
const NICE_MAX: i32 = 19;

fn runtime(options: &EngineOptions, queries_max: usize, name: &str, nice: Option<i32>) -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(options.threads.max(1))
        .thread_name(name)
        // Planning recurses as deep as a statement nests, and so does dropping it: blocking threads have this stack too.
        .thread_stack_size(options.stack_bytes)
        .max_blocking_threads(queries_max.max(4) * 2)
        // Queries give way every ten milliseconds: so timers, which end them, are late by no more than eight of these.
        .event_interval(8)
        .enable_all();
    if let Some(nice) = nice {
        builder.on_thread_start(move || {
            let thread = Some(rustix::thread::gettid());
            if let Err(error) = rustix::process::setpriority_process(thread, nice) {
                tracing::warn!(%error, "threads of queries that give way run as eagerly as others");
            }
        });
    }
    builder.build().map_err(Error::Start)
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
    task: Stopping<Result<QueryStream>>,
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
        self.task.joined().await
    }
}

/// The batches of one query, as they are made elsewhere or were before.
pub struct QueryStream {
    live: Arc<Live>,
    schema: SchemaRef,
    batches: Batches,
}

enum Batches {
    /// From a query that runs; batches beyond those that are kept have a permit, so that it does not run ahead.
    Made { batches: mpsc::Receiver<Made>, driver: AbortHandle },
    /// From the cache, or from a result that was kept on request.
    Kept(Rows),
}

struct Made {
    batch: Result<RecordBatch>,
    _ahead: Option<OwnedSemaphorePermit>,
}

impl QueryStream {
    /// The query's id.
    pub fn id(&self) -> QueryId {
        self.live.id()
    }

    /// How the query stands, also after its end.
    pub fn state(&self) -> QueryState {
        self.live.state()
    }

    /// Rows of a result that is kept. Reading blocks while they come from a file.
    pub(crate) fn of_stored(live: Arc<Live>, stored: Arc<Stored>, skip: u64, left: u64) -> Self {
        Self { live, schema: stored.schema(), batches: Batches::Kept(Rows::new(stored, skip, left)) }
    }

    /// The whole result, when it is there already and nobody took any of it.
    pub(crate) fn stored(&self) -> Option<Arc<Stored>> {
        match &self.batches {
            Batches::Kept(rows) => rows.whole(),
            Batches::Made { .. } => None,
        }
    }

    /// The columns of all batches.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The same as DataFusion's type; errors travel inside it and come out whole through [`Error::from`].
    pub fn into_sendable(self) -> SendableRecordBatchStream {
        let schema = self.schema();
        Box::pin(RecordBatchStreamAdapter::new(schema, self.map_err(|e| DataFusionError::External(Box::new(e)))))
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.batches {
            Batches::Made { batches, .. } => batches.poll_recv(ctx).map(|made| Some(made?.batch)),
            Batches::Kept(rows) => Poll::Ready(rows.next()),
        }
    }
}

impl Drop for QueryStream {
    fn drop(&mut self) {
        if let Batches::Made { driver, .. } = &self.batches {
            driver.abort();
        }
    }
}

impl fmt::Debug for QueryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryStream").field("schema", &self.schema).finish_non_exhaustive()
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

pub(crate) fn not_joined(error: tokio::task::JoinError) -> Error {
    if error.is_cancelled() { Error::Cancelled } else { Error::Internal { message: error.to_string() } }
}

/// When a query has to be done.
#[derive(Clone, Copy)]
struct Deadline {
    at: Option<Instant>,
    seconds: u64,
}

impl Deadline {
    /// A query's own, or that of its queue when it is sooner.
    fn of(own: Option<Duration>, queue: &Queue) -> Self {
        let timeout = match (own, queue.options.timeout) {
            (Some(own), Some(most)) => Some(own.min(most)),
            (own, most) => own.or(most),
        };
        let at = timeout.and_then(|t| Instant::now().checked_add(t));
        Self { at, seconds: timeout.map_or(0, |t| t.as_secs().max(1)) }
    }

    async fn limit<T>(self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.at {
            None => work.await,
            Some(at) => match tokio::time::timeout_at(at, work).await {
                Ok(result) => result,
                Err(_) => Err(Error::Timeout { seconds: self.seconds }),
            },
        }
    }
}

/// Looks into the cache; else waits for a slot, plans, and lets the query run on by itself.
async fn start(shared: Arc<Shared>, sql: String, options: QueryOptions, entered: Entered) -> Result<QueryStream> {
    let live = Arc::clone(entered.live());
    let deadline = Deadline::of(options.timeout, live.queue());
    let rows_wanted = options.rows_max.unwrap_or(u64::MAX);
    let mut closing = shared.closing.subscribe();
    let prepared = deadline.limit(async {
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(Error::Cancelled),
            error = live.stopped() => Err(error),
            prepared = prepare(&shared, sql, options, &live) => prepared,
        }
    });
    let prepared = match Box::pin(prepared).await {
        Ok(prepared) => prepared,
        Err(error) => {
            entered.end(Some(&error));
            return Err(error);
        }
    };
    let (planned, slot, keeping) = match prepared {
        Prepared::Kept(stored) => {
            live.is_cached();
            live.gave(usize::try_from(stored.rows().min(rows_wanted)).unwrap_or(usize::MAX), 0);
            if stored.rows() > rows_wanted {
                live.is_truncated();
            }
            entered.end(None);
            return Ok(QueryStream::of_stored(live, stored, 0, rows_wanted));
        }
        Prepared::Planned(planned, slot, keeping) => (planned, slot, keeping),
    };
    let schema = planned.schema();
    // Bounded by permits; only what may be kept goes without, which is bounded by its bytes.
    let (sender, batches) = mpsc::channel(CHANNEL_BATCHES_MAX);
    let driver = Driver {
        sender,
        ahead: Arc::new(Semaphore::new(shared.batches_ahead)),
        keeping,
        schema: Arc::clone(&schema),
        rows_left: rows_wanted,
        rows: 0,
        shared: Arc::clone(&shared),
        live: Arc::clone(&live),
    };
    let threads = shared.lane(live.queue()).threads.clone();
    let driver = driver.drive(planned, slot, deadline, entered, threads);
    let driver = shared.control.spawn(driver).abort_handle();
    Ok(QueryStream { live, schema, batches: Batches::Made { batches, driver } })
}

/// The most batches of a result that is kept; a larger one is not.
const CHANNEL_BATCHES_MAX: usize = 4_096;

/// What comes before the first row.
#[allow(clippy::large_enum_variant, reason = "there is one a query")]
enum Prepared {
    Kept(Arc<Stored>),
    Planned(Planned, Turn, Option<Keeping>),
}

/// A result on its way into the cache.
struct Keeping {
    key: Arc<str>,
    tables: Arc<[String]>,
    stamp: String,
    batches: Vec<RecordBatch>,
    bytes: usize,
    /// Others wait for it while this is here.
    _flight: Option<Flight>,
}

async fn prepare(shared: &Arc<Shared>, sql: String, options: QueryOptions, live: &Arc<Live>) -> Result<Prepared> {
    let key = if shared.cache.is_off() { None } else { key(shared, &sql, &options, live).await? };
    let mut flight = None;
    while let Some(key) = &key {
        match shared.cache.look(key, shared.catalog.as_ref()).await? {
            Looked::Hit(stored) => return Ok(Prepared::Kept(stored)),
            // It ends by going away.
            Looked::Flying(mut other) => while other.changed().await.is_ok() {},
            Looked::Lead(own) => {
                flight = Some(own);
                break;
            }
            Looked::Alone => break,
        }
    }
    let slot = enter(live).await?;
    let threads = options.threads.or(live.queue().options.threads);
    let (planned, slot) = planned(Arc::clone(shared), sql, QueryOptions { threads, ..options }, live, slot).await?;
    let keeping = match (key, planned.reads()) {
        (Some(key), Some(reads)) => {
            let stamp = shared.catalog.stamp(&reads.tables, Some(reads.moment)).await?;
            stamp.map(|stamp| Keeping {
                key,
                tables: reads.tables.clone().into(),
                stamp,
                batches: Vec::new(),
                bytes: 0,
                _flight: flight,
            })
        }
        (Some(key), None) => {
            shared.cache.does_not_keep(&key);
            None
        }
        (None, _) => None,
    };
    Ok(Prepared::Planned(planned, slot, keeping))
}

/// Texts up to so many bytes are read at once, in less than a millisecond; others where queries are, as the thread that keeps
/// time limits must not be held up.
const SHORT_BYTES: usize = 8 << 10;

/// What must be the same for two queries to have the same rows on the same data; `None` when nothing can be kept.
async fn key(shared: &Shared, sql: &str, options: &QueryOptions, live: &Live) -> Result<Option<Arc<str>>> {
    if !options.is_cached || !options.tables.is_empty() || options.at != crate::At::Now || options.rows_max.is_some() {
        return Ok(None);
    }
    let text = if sql.len() <= SHORT_BYTES {
        parse::canonical(sql, &options.limits)
    } else {
        let (sql, limits) = (sql.to_owned(), options.limits);
        let reading = shared.lane(live.queue()).threads.spawn_blocking(move || parse::canonical(&sql, &limits));
        reading.await.map_err(not_joined)?
    };
    let dialect = if options.postgres.is_some() { "postgres" } else { "" };
    let rights = options.caller.access.fingerprint();
    Ok(text.map(|text| format!("{rights}\0{:?}\0{dialect}\0{text}", options.parameters).into()))
}

/// Waits for a slot in the query's queue. Errors: `QueueFull`, `QueueWait`.
async fn enter(live: &Live) -> Result<Turn> {
    let queue: &Arc<Queue> = live.queue();
    let waiting = match queue.enter(&live.caller().user)? {
        Ok(slot) => return Ok(slot),
        Err(waiting) => waiting,
    };
    live.waits(waiting.ticket());
    let ticket = waiting.ticket();
    let Some(most) = queue.options.wait_max else { return waiting.turn().await };
    let mut turn = std::pin::pin!(waiting.turn());
    match tokio::time::timeout(most, &mut turn).await {
        Ok(slot) => slot,
        Err(_) => Err(Error::QueueWait {
            queue: queue.options.name.clone(),
            seconds: most.as_secs().max(1),
            place: queue.place(ticket).unwrap_or(1),
        }),
    }
}

impl Lane {
    /// Plans on a thread that may block: planning does not give way, and a large statement takes a while.
    ///
    /// When the caller goes, as when its time is up, the thread ends at its next step; its turn is taken until then.
    async fn plan<T: Send + 'static>(
        &self,
        turn: Turn,
        planning: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (asker, threads) = (Asker::new(), self.threads.clone());
        let planning = asker.waits_for(planning);
        let task = self.threads.spawn_blocking(move || {
            let _turn = turn;
            threads.block_on(planning)
        });
        task.await.map_err(not_joined)?
    }
}

/// Plans once it is the query's turn. Its slot is taken until planning has ended, also when nobody waits any more.
async fn planned(
    shared: Arc<Shared>,
    sql: String,
    options: QueryOptions,
    live: &Live,
    slot: Turn,
) -> Result<(Planned, Turn)> {
    let lane = shared.lane(live.queue());
    let turn = lane.planning.turn(&live.caller().user).await?;
    live.plans();
    let shared = Arc::clone(&shared);
    lane.plan(turn, async move { Ok((Box::pin(shared.planner.plan(&sql, &options)).await?, slot)) }).await
}

/// Runs a plan and hands its batches on.
struct Driver {
    shared: Arc<Shared>,
    live: Arc<Live>,
    sender: mpsc::Sender<Made>,
    /// Batches that the reader has not taken yet.
    ahead: Arc<Semaphore>,
    keeping: Option<Keeping>,
    schema: SchemaRef,
    rows_left: u64,
    rows: u64,
}

/// How often a running query is held against its limit of bytes.
const SCAN_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a driver goes on no further.
enum Halt {
    /// Its reader went away or has all it wants.
    Enough,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Driver {
    /// Runs a plan to its end, its reader's end, its deadline, or the engine's.
    ///
    /// The plan itself is at work elsewhere, where a step may take long: who waits for its end is told in time. The slot is
    /// taken until the plan has let go.
    async fn drive(mut self, planned: Planned, slot: Turn, deadline: Deadline, entered: Entered, threads: Handle) {
        let (shared, live, sender) = (Arc::clone(&self.shared), Arc::clone(&self.live), self.sender.clone());
        let mut closing = shared.closing.subscribe();
        let work = threads.spawn(async move {
            let _slot = slot;
            let done = self.run(planned).await;
            done.map(|()| self)
        });
        let work = Stopping::of(work);
        let run = async {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => Err(Error::Cancelled),
                error = live.stopped() => Err(error),
                error = scans_too_much(&live) => Err(error),
                done = work.joined() => done,
            }
        };
        let done = Box::pin(deadline.limit(run)).await;
        match done {
            Ok(mut driver) => {
                driver.keep();
                entered.end(None);
            }
            Err(error) => {
                entered.end(Some(&error));
                // It waits for a slow reader; the plan was stopped.
                let _ = sender.send(Made { batch: Err(error), _ahead: None }).await;
            }
        }
    }

    fn keep(&mut self) {
        if let Some(Keeping { key, tables, stamp, batches, .. }) = self.keeping.take() {
            self.shared.cache.keep(&key, tables, stamp, Arc::clone(&self.schema), batches);
        }
    }

    async fn run(&mut self, planned: Planned) -> Result<()> {
        let plan = match planned {
            Planned::Rows(batch) => {
                self.live.runs(None);
                return match self.give(batch).await {
                    Err(Halt::Failed(error)) => Err(error),
                    _ => Ok(()),
                };
            }
            Planned::Plan(plan) => plan,
        };
        match self.attempt(&plan).await {
            Err(Error::Exhausted { message }) if self.rows == 0 => {
                match self.shared.planner.plan_spilling(&plan).await? {
                    None => Err(Error::Exhausted { message }),
                    Some(again) => {
                        tracing::info!(error = message, "query ran out of memory, tried again with joins that spill");
                        drop(plan);
                        self.attempt(&again).await
                    }
                }
            }
            other => other,
        }
    }

    /// Runs a plan once.
    async fn attempt(&mut self, plan: &Runnable) -> Result<()> {
        let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(Arc::clone(&self.live.queue().budget)));
        self.live.runs(Some(Running {
            plan: Arc::clone(&plan.physical),
            pool: Arc::clone(&pool),
            may_grow: plan.nature.may_grow,
        }));
        let mut stream = self.batches(plan, pool)?;
        while let Some(batch) = stream.next().await {
            match self.give(batch?).await {
                Ok(()) => {}
                Err(Halt::Enough) => break,
                Err(Halt::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Hands a batch to the reader, and to the cache while there is room.
    async fn give(&mut self, batch: RecordBatch) -> Result<(), Halt> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let had = batch.num_rows();
        let batch = first_rows(batch, &mut self.rows_left);
        if batch.num_rows() < had {
            self.live.is_truncated();
        }
        if batch.num_rows() == 0 {
            return Err(Halt::Enough);
        }
        self.rows += batch.num_rows() as u64;
        let batch = match batch.schema().fields() == self.schema.fields() {
            true => batch,
            false => RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec())
                .map_err(|error| Error::from(DataFusionError::from(error)))?,
        };
        let queue = self.live.queue();
        if let Some(limit) = queue.options.rows_max.filter(|limit| self.rows > *limit) {
            return Err(Error::TooManyRows { limit, queue: queue.options.name.clone() }.into());
        }
        let bytes = bytes_of(&batch);
        self.live.gave(batch.num_rows(), bytes);
        let is_kept = match &mut self.keeping {
            None => false,
            Some(keeping) => {
                keeping.bytes += bytes;
                keeping.batches.push(batch.clone());
                let has_room = keeping.bytes <= self.shared.cache.entry_bytes_max()
                    && keeping.batches.len() < CHANNEL_BATCHES_MAX - self.shared.batches_ahead;
                if !has_room {
                    self.shared.cache.does_not_keep(&keeping.key);
                }
                has_room
            }
        };
        let ahead = if is_kept {
            None
        } else {
            self.keeping = None;
            let permit = Arc::clone(&self.ahead).acquire_owned();
            let Ok(permit) = tokio::time::timeout(queue.options.idle_max, permit).await else {
                return Err(Error::SlowReader { seconds: queue.options.idle_max.as_secs().max(1) }.into());
            };
            permit.ok()
        };
        let sent = self.sender.send(Made { batch: Ok(batch), _ahead: ahead }).await;
        sent.map_err(|_| Halt::Enough)
    }

    fn batches(&self, plan: &Runnable, pool: Arc<dyn MemoryPool>) -> Result<SendableRecordBatchStream> {
        let base = &self.shared.spill[&self.live.queue().options.name];
        let runtime = RuntimeEnvBuilder::from_runtime_env(base).with_memory_pool(pool).build_arc()?;
        let state = &plan.state;
        let context = TaskContext::new(
            None,
            state.session_id().to_owned(),
            state.config().clone(),
            // A plan has its functions with it; only plans that come from elsewhere look them up by name.
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            runtime,
        );
        Ok(execute_stream(Arc::clone(&plan.physical), Arc::new(context))?)
    }
}

/// Watches how much a query reads, when its queue has a limit; resolves once it is too much.
async fn scans_too_much(live: &Live) -> Error {
    let queue = &live.queue().options;
    let Some(limit_bytes) = queue.scanned_bytes_max else { return std::future::pending().await };
    loop {
        tokio::time::sleep(SCAN_LOOK_EVERY).await;
        if live.scanned_bytes() > limit_bytes {
            return Error::TooMuchRead { limit_bytes, queue: queue.name.clone() };
        }
    }
}
