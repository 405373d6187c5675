//! Queries that were asked to run by themselves: their results are kept for a while, to be looked at page by page.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use futures::{FutureExt, StreamExt};
use hashlink::LinkedHashMap;
use tokio::{sync::watch, time::Instant};

use crate::{
    Engine, Error, QueryId, QueryOptions, QueryState, QueryStream, Result, Started,
    live::Live,
    stored::{Collector, Rows, Stored},
};

/// How much is kept of the results that people come back for.
#[derive(Debug, Clone)]
pub struct KeptOptions {
    /// Folder for results that are not small; made when missing. Nobody else may write there.
    pub folder: PathBuf,
    /// Results up to so many bytes stay in memory.
    pub memory_bytes_max: usize,
    /// Bytes of all results; those that were there first go first.
    pub bytes_max: u64,
    /// Queries whose results are kept; those that ended first go first.
    pub queries_max: usize,
    /// How long a result is kept after its query has ended.
    pub keep: Duration,
}

impl KeptOptions {
    /// The defaults: an hour, 1,000 queries, 10 GiB, a mebibyte of each in memory.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            memory_bytes_max: 1 << 20,
            bytes_max: 10 << 30,
            queries_max: 1_000,
            keep: Duration::from_secs(3_600),
        }
    }
}

/// The queries whose results are kept. Cheap to clone.
#[derive(Clone)]
pub struct KeptQueries {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    options: KeptOptions,
    /// Queries at work have it too, and no engine, which would otherwise live as long as they.
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    /// The oldest first.
    queries: LinkedHashMap<QueryId, Arc<Kept>>,
    /// Ids by user and by the name that the user gave to the request.
    requests: HashMap<(String, String), QueryId>,
    /// Those of the queries that have ended and when, the one that did so first in front.
    over: LinkedHashMap<QueryId, Instant>,
    /// Bytes of the results of these.
    bytes: u64,
}

/// A query whose result is kept.
pub struct Kept {
    live: Arc<Live>,
    request: Option<(String, String)>,
    outcome: watch::Receiver<Option<Outcome>>,
}

type Outcome = Result<Arc<Stored>, Arc<Error>>;

impl KeptQueries {
    /// Errors: `Start` when the folder cannot be made.
    pub fn new(engine: Engine, options: KeptOptions) -> Result<Self> {
        std::fs::create_dir_all(&options.folder).map_err(Error::Start)?;
        Ok(Self { inner: Arc::new(Inner { engine, options, shelf: Arc::default() }) })
    }

    /// Starts a query. The same `request` of the same user gives the query that was started first, so that a client that had
    /// no answer may ask again.
    ///
    /// Errors: `UnknownQueue`; `RequestReused` when that request was for another text.
    pub fn submit(&self, sql: &str, options: QueryOptions, request: Option<String>) -> Result<Arc<Kept>> {
        let request = request.map(|request| (options.caller.user.clone(), request));
        if let Some(known) = self.tidy().known(request.as_ref(), sql)? {
            return Ok(known);
        }
        // Not under the lock: it may find the answer at once.
        let started = self.inner.engine.start(sql, options)?;
        let (live, (tell, outcome)) = (Arc::clone(started.live()), watch::channel(None));
        let mut shelf = self.tidy();
        if let Some(known) = shelf.known(request.as_ref(), sql)? {
            return Ok(known);
        }
        let id = started.id();
        let kept = Arc::new(Kept { live, request: request.clone(), outcome });
        shelf.queries.insert(id, Arc::clone(&kept));
        shelf.requests.extend(request.map(|request| (request, id)));
        drop(shelf);
        let (options, shelf) = (self.inner.options.clone(), Arc::clone(&self.inner.shelf));
        let mut collecting = Box::pin(async move {
            let outcome = collected(started, &options).await.map_err(Arc::new);
            let mut shelf = locked(&shelf);
            shelf.ended(id, &outcome);
            // Told while it is locked: whoever takes the query off the shelf knows its bytes.
            tell.send_replace(Some(outcome));
        });
        // What is there at once needs no thread of its own.
        if (&mut collecting).now_or_never().is_none() {
            self.inner.engine.spawn(collecting);
        }
        Ok(kept)
    }

    /// A query that was submitted; `None` when it is forgotten or never was.
    pub fn get(&self, id: QueryId) -> Option<Arc<Kept>> {
        self.tidy().queries.get(&id).cloned()
    }

    /// All that are kept, the oldest first.
    pub fn all(&self) -> Vec<Arc<Kept>> {
        self.tidy().queries.values().cloned().collect()
    }

    /// Stops a query if it runs, and forgets it with its result.
    pub fn forget(&self, id: QueryId) {
        if let Some(kept) = locked(&self.inner.shelf).take(&id) {
            kept.live.stop();
        }
    }

    /// The shelf without what is too old or too much.
    fn tidy(&self) -> MutexGuard<'_, Shelf> {
        let mut shelf = locked(&self.inner.shelf);
        shelf.tidy(&self.inner.options);
        shelf
    }
}

fn locked(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of a result; an error has none.
fn bytes(outcome: &Outcome) -> u64 {
    outcome.as_ref().map_or(0, |stored| stored.bytes())
}

impl Shelf {
    /// The query that a request has started before. Errors: `RequestReused`.
    fn known(&self, request: Option<&(String, String)>, sql: &str) -> Result<Option<Arc<Kept>>> {
        let known = request.and_then(|request| self.queries.get(self.requests.get(request)?));
        match (known, request) {
            (Some(known), Some((_, request))) if &*known.live.state().sql != sql => {
                Err(Error::RequestReused { request: request.clone() })
            }
            (known, _) => Ok(known.cloned()),
        }
    }

    fn take(&mut self, id: &QueryId) -> Option<Arc<Kept>> {
        let kept = self.queries.remove(id)?;
        if let Some(request) = &kept.request {
            self.requests.remove(request);
        }
        if self.over.remove(id).is_some() {
            self.bytes -= kept.outcome.borrow().as_ref().map_or(0, bytes);
        }
        Some(kept)
    }

    /// A query has ended, unless it was taken off before.
    fn ended(&mut self, id: QueryId, outcome: &Outcome) {
        if self.queries.contains_key(&id) {
            self.over.insert(id, Instant::now());
            self.bytes += bytes(outcome);
        }
    }

    /// Forgets what is too old or too much, those first that ended first; queries that run stay.
    fn tidy(&mut self, options: &KeptOptions) {
        while let Some((id, at)) = self.over.front().map(|(id, at)| (*id, *at)) {
            let is_too_much = self.bytes > options.bytes_max || self.queries.len() > options.queries_max;
            if !is_too_much && at.elapsed() <= options.keep {
                return;
            }
            self.take(&id);
        }
    }
}

async fn collected(started: Started, options: &KeptOptions) -> Result<Arc<Stored>> {
    let mut rows = started.rows().await?;
    if let Some(stored) = rows.stored() {
        return Ok(stored);
    }
    let mut collector = Collector::new(rows.schema(), &options.folder, options.memory_bytes_max);
    while let Some(batch) = rows.next().await {
        collector.push(batch?)?;
    }
    Ok(Arc::new(collector.finish()?))
}

impl Kept {
    /// The query's id.
    pub fn id(&self) -> QueryId {
        self.live.id()
    }

    /// Whose it is.
    pub fn user(&self) -> &str {
        &self.live.caller().user
    }

    /// How the query stands.
    pub fn state(&self) -> QueryState {
        self.live.state()
    }

    /// Asks it to stop; what it has given is lost.
    pub fn stop(&self) {
        self.live.stop();
    }

    /// True when its result, or its error, is there.
    pub fn is_over(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Waits at most so long for the result; true when it is there.
    pub async fn over_within(&self, wait: Duration) -> bool {
        let mut outcome = self.outcome.clone();
        matches!(tokio::time::timeout(wait, outcome.wait_for(Option::is_some)).await, Ok(Ok(_)))
    }

    /// The error that it ended with.
    pub fn error(&self) -> Option<Arc<Error>> {
        self.outcome.borrow().as_ref()?.as_ref().err().cloned()
    }

    /// The columns, once it has ended well.
    pub fn schema(&self) -> Option<SchemaRef> {
        Some(self.stored()?.schema())
    }

    /// Rows in all, once it has ended well.
    pub fn rows(&self) -> Option<u64> {
        Some(self.stored()?.rows())
    }

    /// True when its rows are there and so few that reading and writing them holds nobody up.
    pub fn is_small(&self) -> bool {
        self.stored().is_some_and(|stored| stored.is_small())
    }

    /// At most `limit` rows from the row `offset` on, once it has ended well. Reads a file when it is large.
    pub fn page(&self, offset: u64, limit: u64) -> Result<Option<Vec<RecordBatch>>> {
        self.stored().map(|stored| Rows::new(stored, offset, limit).collect()).transpose()
    }

    /// The rows from `offset` on, at most `limit`, once it has ended well. Polling it reads a file when the result is large.
    pub fn stream(&self, offset: u64, limit: u64) -> Option<QueryStream> {
        Some(QueryStream::of_stored(Arc::clone(&self.live), self.stored()?, offset, limit))
    }

    fn stored(&self) -> Option<Arc<Stored>> {
        self.outcome.borrow().as_ref()?.as_ref().ok().cloned()
    }
}
