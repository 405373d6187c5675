use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    error::DataFusionError,
    execution::{
        SendableRecordBatchStream, TaskContext,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    physical_plan::{execute_stream, stream::RecordBatchStreamAdapter},
};
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::{
    runtime::{Handle, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use crate::{
    Catalog, EngineOptions, Error, QueryOptions, Result,
    plan::{Planned, Planner, Runnable},
    pool::{Budget, QueryPool},
};

/// Runs SQL over a lake, on threads of its own.
///
/// Cheap to clone. The last clone that goes stops what still runs, without waiting for it; [`Engine::shut_down`] waits.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    /// Taken out on the way down: a runtime may not be dropped where futures run.
    runtime: Option<Runtime>,
    handle: Handle,
    shared: Arc<Shared>,
}

/// What running queries need; no reference back to the runtime, which could otherwise be dropped on its own thread.
struct Shared {
    planner: Planner,
    base: Arc<RuntimeEnv>,
    budget: Arc<Budget>,
    slots: Arc<Semaphore>,
    slots_max: u32,
    batches_ahead: usize,
    closing: watch::Sender<bool>,
}

impl Engine {
    /// Starts the engine's threads. Errors: `Start` when the spill folder cannot be made or threads cannot be started.
    pub fn new(catalog: Arc<dyn Catalog>, options: EngineOptions) -> Result<Self> {
        std::fs::create_dir_all(&options.spill_dir).map_err(Error::Start)?;
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![options.spill_dir.clone()]))
            .with_max_temp_directory_size(options.spill_bytes_max);
        let base = RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc()?;
        catalog.register(&base);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .thread_name("headworks-sql")
            // Planning recurses as deep as a statement nests, and so does dropping it: blocking threads have this stack too.
            .thread_stack_size(options.stack_bytes)
            .max_blocking_threads(options.queries_max.max(4) * 2)
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let slots_max = u32::try_from(options.queries_max.max(1)).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            planner: Planner::new(catalog, base.clone(), options.threads.max(1), options.parallel_bytes_min),
            base,
            budget: Budget::new(options.memory_bytes),
            slots: Arc::new(Semaphore::new(options.queries_max.max(1))),
            slots_max,
            batches_ahead: options.batches_ahead.max(1),
            closing: watch::Sender::new(false),
        });
        let handle = runtime.handle().clone();
        Ok(Self { inner: Arc::new(Inner { runtime: Some(runtime), handle, shared }) })
    }

    /// Plans one statement and starts it. Batches come as they are made; the query waits when its reader is slow and is
    /// stopped when the stream is dropped, or this future.
    ///
    /// Errors: those of [`Error`]; what fails while rows are made comes as the stream's last item.
    pub async fn query(&self, sql: &str, options: QueryOptions) -> Result<QueryStream> {
        let shared = self.inner.shared.clone();
        let sql = sql.to_owned();
        Stopping::of(self.inner.handle.spawn(start(shared, sql, options))).joined().await
    }

    /// Runs one statement and keeps its whole result in memory: for results that are known to be small.
    pub async fn rows(&self, sql: &str, options: QueryOptions) -> Result<Vec<RecordBatch>> {
        self.query(sql, options).await?.try_collect().await
    }

    /// Bytes that sorts, joins and groupings of all running queries hold now.
    pub fn memory_used_bytes(&self) -> usize {
        self.inner.shared.budget.used()
    }

    /// Stops all queries and waits until they have let go of memory and files, at most so long.
    pub async fn shut_down(&self, wait: Duration) {
        let shared = self.inner.shared.clone();
        shared.closing.send_replace(true);
        let all = async move {
            // All slots free means that no query runs; closed for good, so that none starts.
            let done = shared.slots.acquire_many(shared.slots_max).await.is_ok();
            shared.slots.close();
            done
        };
        let waited = self.inner.handle.spawn(async move { tokio::time::timeout(wait, all).await });
        if !matches!(waited.await, Ok(Ok(true))) {
            tracing::warn!(wait_secs = wait.as_secs(), "queries still run after the engine was stopped");
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
        self.shared.closing.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The batches of one query, as they are made elsewhere.
pub struct QueryStream {
    schema: SchemaRef,
    batches: mpsc::Receiver<Result<RecordBatch>>,
    driver: AbortHandle,
}

impl QueryStream {
    /// The columns of all batches.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
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
        self.batches.poll_recv(ctx)
    }
}

impl Drop for QueryStream {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl fmt::Debug for QueryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryStream").field("schema", &self.schema).finish_non_exhaustive()
    }
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

fn not_joined(error: tokio::task::JoinError) -> Error {
    if error.is_cancelled() { Error::Cancelled } else { Error::Internal { message: error.to_string() } }
}

/// When a query has to be done.
#[derive(Clone, Copy)]
struct Deadline {
    at: Option<Instant>,
    seconds: u64,
}

impl Deadline {
    fn of(timeout: Option<Duration>) -> Self {
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

/// Waits for a slot, plans, and lets the query run on by itself.
async fn start(shared: Arc<Shared>, sql: String, options: QueryOptions) -> Result<QueryStream> {
    let deadline = Deadline::of(options.timeout);
    let mut closing = shared.closing.subscribe();
    let planned = deadline.limit(async {
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(Error::Cancelled),
            planned = planned(shared.clone(), sql, options) => planned,
        }
    });
    let (planned, slot) = planned.await?;
    let schema = planned.schema();
    let (sender, batches) = mpsc::channel(shared.batches_ahead);
    let driver = tokio::spawn(drive(shared, planned, slot, deadline, sender)).abort_handle();
    Ok(QueryStream { schema, batches, driver })
}

/// Plans on a thread that may block: planning does not give way, and a large statement takes a while.
///
/// When time is up the caller goes on and the thread finishes by itself; its slot stays taken until then.
async fn planned(shared: Arc<Shared>, sql: String, options: QueryOptions) -> Result<(Planned, OwnedSemaphorePermit)> {
    let slot = shared.slots.clone().acquire_owned().await.map_err(|_| Error::Cancelled)?;
    let handle = Handle::current();
    let task = tokio::task::spawn_blocking(move || {
        let planned = handle.block_on(shared.planner.plan(&sql, &options))?;
        Ok((planned, slot))
    });
    task.await.map_err(not_joined)?
}

/// Runs a plan to its end, its reader's end, its deadline, or the engine's.
async fn drive(
    shared: Arc<Shared>,
    planned: Planned,
    slot: OwnedSemaphorePermit,
    deadline: Deadline,
    sender: mpsc::Sender<Result<RecordBatch>>,
) {
    let mut closing = shared.closing.subscribe();
    let run = async {
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => Err(Error::Cancelled),
            done = run(&shared, planned, &sender) => done,
        }
    };
    let done = Box::pin(deadline.limit(run)).await;
    // The error waits for a slow reader; the slot does not.
    drop(slot);
    if let Err(error) = done {
        let _ = sender.send(Err(error)).await;
    }
}

async fn run(shared: &Shared, planned: Planned, sender: &mpsc::Sender<Result<RecordBatch>>) -> Result<()> {
    let plan = match planned {
        Planned::Rows(batch) => {
            let _ = sender.send(Ok(batch)).await;
            return Ok(());
        }
        Planned::Plan(plan) => plan,
    };
    match attempt(shared, &plan, sender).await {
        Err((Error::Exhausted { message }, false)) => match shared.planner.plan_spilling(&plan).await? {
            None => Err(Error::Exhausted { message }),
            Some(again) => {
                tracing::info!(error = message, "query ran out of memory, tried again with joins that spill");
                drop(plan);
                attempt(shared, &again, sender).await.map_err(|(error, _)| error)
            }
        },
        other => other.map_err(|(error, _)| error),
    }
}

/// Runs a plan once. Errors come with whether rows had gone out before.
async fn attempt(
    shared: &Shared,
    plan: &Runnable,
    sender: &mpsc::Sender<Result<RecordBatch>>,
) -> Result<(), (Error, bool)> {
    let mut sent = false;
    let mut stream = batches(shared, plan).map_err(|e| (e, sent))?;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(|e| (Error::from(e), sent))?;
        if batch.num_rows() == 0 {
            continue;
        }
        sent = true;
        if sender.send(Ok(batch)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn batches(shared: &Shared, plan: &Runnable) -> Result<SendableRecordBatchStream> {
    let pool = Arc::new(QueryPool::new(shared.budget.clone()));
    let runtime = RuntimeEnvBuilder::from_runtime_env(&shared.base).with_memory_pool(pool).build_arc()?;
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
    Ok(execute_stream(plan.physical.clone(), Arc::new(context))?)
}
