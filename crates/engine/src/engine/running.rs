//! One query from its text to its last row: the cache, its turn, its plan, its batches.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext, memory_pool::MemoryPool, runtime_env::RuntimeEnvBuilder},
    physical_plan::execute_stream,
};
use futures::StreamExt;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    time::Instant,
};

use super::{
    Shared, Stopping, not_joined,
    stream::{Batches, Made, QueryStream},
};
use crate::{
    Error, QueryOptions, Result,
    cache::{Flight, Looked},
    live::{Entered, Live, Running},
    parse,
    plan::{Planned, Runnable},
    pool::QueryPool,
    queue::Queue,
    stored::{Stored, bytes_of, first_rows},
    turns::Turn,
    wanted::Asker,
};

/// When a query has to be done.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Option<Instant>,
    seconds: u64,
}

impl Deadline {
    /// A query's own, or that of its queue when it is sooner.
    pub(super) fn of(own: Option<Duration>, queue: &Queue) -> Self {
        let timeout = match (own, queue.options.timeout) {
            (Some(own), Some(most)) => Some(own.min(most)),
            (own, most) => own.or(most),
        };
        let at = timeout.and_then(|t| Instant::now().checked_add(t));
        Self { at, seconds: timeout.map_or(0, |t| t.as_secs().max(1)) }
    }

    pub(super) async fn limit<T>(self, work: impl Future<Output = Result<T>>) -> Result<T> {
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
pub(super) async fn start(
    shared: Arc<Shared>,
    sql: String,
    options: QueryOptions,
    entered: Entered,
) -> Result<QueryStream> {
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
        let asker = Asker::of_rows();
        let work = threads.spawn(asker.waits_for(async move {
            let _slot = slot;
            let done = self.run(planned).await;
            done.map(|()| self)
        }));
        let work = Stopping::of(work);
        let run = async move {
            let _asker = asker;
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
        let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(Arc::clone(&self.live.queue().budget), &plan.physical));
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
