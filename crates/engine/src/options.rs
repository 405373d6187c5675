use std::{collections::HashMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use arrow::datatypes::DataType;
use datafusion::{catalog::TableProvider, scalar::ScalarValue};
use headworks_domain::{Clock, SystemClock};

use crate::{At, Caller, PgSession, QueryListener};

/// How large an engine may grow; all queries of one process together.
#[derive(Clone)]
pub struct EngineOptions {
    /// Memory that sorts, joins and groupings of all queries may hold together, in bytes. The process needs some 100 to
    /// 400 MB above it. Below 200 MB per running query, large sorts fail instead of spilling.
    pub memory_bytes: usize,
    /// Threads of the engine's own runtime, and the parts a large query is cut into.
    pub threads: usize,
    /// Folder for what does not fit into memory; made when missing. It is this engine's alone and not in the lake's data path.
    pub spill_dir: PathBuf,
    /// The most that all queries together may spill, in bytes.
    pub spill_bytes_max: u64,
    /// The queues; one named `default` is added when there is none, with the memory that the others leave.
    pub queues: Vec<QueueOptions>,
    /// What is kept of results.
    pub cache: CacheOptions,
    /// Scans that read fewer bytes of files than this run in one part: cutting them up costs more than it wins.
    pub parallel_bytes_min: u64,
    /// Record batches that wait between a query and its reader.
    pub batches_ahead: usize,
    /// The most that one value which a function makes may have, in bytes; a 64th of the memory when that is less.
    pub value_bytes_max: usize,
    /// Tells how many bytes the process has allocated, for an engine that watches it: queries are stopped when they hold
    /// more than `memory_bytes` and a fifth. Called fifty times a second.
    pub allocated: Option<fn() -> usize>,
    /// Stack of each of the engine's threads, in bytes. Address space only: untouched pages cost nothing.
    pub stack_bytes: usize,
    /// Tells when queries were asked.
    pub clock: Arc<dyn Clock>,
    /// Is told of every query that ended.
    pub listener: Option<Arc<dyn QueryListener>>,
}

impl fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineOptions").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// A workload: how many of its queries run at once, with how much, for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueOptions {
    /// Its name.
    pub name: String,
    /// Queries that run at once.
    pub slots: usize,
    /// Its part of the engine's memory, of a hundred. All queues together should have no more than a hundred.
    pub memory_percent: u8,
    /// Queries that may wait for a slot; more are refused.
    pub waiting_max: usize,
    /// How long a query may wait for a slot.
    pub wait_max: Option<Duration>,
    /// Time of a query for waiting, planning and running, until its last batch is taken. A query may ask for less.
    pub timeout: Option<Duration>,
    /// How long a query waits for its reader to take a batch before it is ended.
    pub idle_max: Duration,
    /// Bytes of files that one query may read.
    pub scanned_bytes_max: Option<u64>,
    /// Rows that one query may give.
    pub rows_max: Option<u64>,
    /// Bytes that its queries together may spill; else what all queues may.
    pub spill_bytes_max: Option<u64>,
    /// The most parts that a query is cut into; else the engine's threads.
    pub threads: Option<usize>,
    /// How eagerly its queries get the processor.
    pub priority: Priority,
    /// Roles whose queries come here, and that may ask for it by name; when empty, all may ask.
    pub roles: Vec<String>,
    /// Clients whose queries come here, by what they call themselves; `*` stands for anything.
    pub applications: Vec<String>,
}

/// How eagerly the queries of a queue get the processor.
///
/// Each step gives way to the one above: its threads plan and run when nobody there wants to, and about a tenth of the time
/// when somebody does. On a quiet machine all are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Jobs, which whatever people ask must not hold up. As eager as the rest of the process.
    High,
    /// People wait for it. As eager as the rest of the process where no queue is high.
    #[default]
    Normal,
    /// Nobody waits for it.
    Low,
}

impl QueueOptions {
    /// The defaults: 16 slots, all memory, 1,000 may wait, no limits but ten minutes for a reader that takes nothing.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            slots: 16,
            memory_percent: 100,
            waiting_max: 1_000,
            wait_max: None,
            timeout: None,
            idle_max: Duration::from_secs(600),
            scanned_bytes_max: None,
            rows_max: None,
            spill_bytes_max: None,
            threads: None,
            priority: Priority::Normal,
            roles: Vec::new(),
            applications: Vec::new(),
        }
    }
}

/// How a queue stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// Its name.
    pub name: String,
    /// Queries that may run at once.
    pub slots: usize,
    /// Queries that run.
    pub running: usize,
    /// Queries that wait.
    pub waiting: usize,
    /// Its share of memory.
    pub memory_bytes: usize,
    /// What its queries hold of it.
    pub memory_used_bytes: usize,
    /// Queries that got a slot since the start.
    pub entered: u64,
    /// Queries that were refused because too many waited.
    pub refused: u64,
}

/// What is kept of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of results in memory; 0 keeps none at all.
    pub memory_bytes: u64,
    /// Bytes of results on disk, for those that memory has no room for.
    pub disk_bytes: u64,
    /// The largest result that is kept.
    pub entry_bytes_max: usize,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { memory_bytes: 64 << 20, disk_bytes: 1 << 30, entry_bytes_max: 4 << 20 }
    }
}

/// How the cache stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheState {
    /// Queries answered from it since the start.
    pub hits: u64,
    /// Queries that were not in it.
    pub misses: u64,
    /// Results in it.
    pub entries: usize,
    /// Their bytes in memory.
    pub memory_bytes: u64,
    /// Their bytes on disk.
    pub disk_bytes: u64,
}

impl EngineOptions {
    /// The defaults for a machine with so many cores: 1 GiB of memory, 20 GiB of spill space.
    pub fn new(spill_dir: impl Into<PathBuf>, threads: usize) -> Self {
        Self {
            memory_bytes: 1 << 30,
            threads: threads.max(1),
            spill_dir: spill_dir.into(),
            spill_bytes_max: 20 << 30,
            queues: vec![QueueOptions { slots: 64, ..QueueOptions::new("default") }],
            cache: CacheOptions::default(),
            parallel_bytes_min: 8 << 20,
            batches_ahead: 4,
            value_bytes_max: 64 << 20,
            allocated: None,
            stack_bytes: 64 << 20,
            clock: Arc::new(SystemClock),
            listener: None,
        }
    }
}

/// What one statement may ask for before it is planned.
///
/// The defaults are for people's queries. Jobs, whose text is reviewed, may have [`SqlLimits::jobs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlLimits {
    /// Bytes of text.
    pub text_bytes_max: usize,
    /// Tokens, comments and spaces not counted.
    pub tokens_max: usize,
    /// How deep expressions, subqueries, set operations and types may nest; `a or b or c` counts two.
    pub depth_max: usize,
    /// Expressions, subqueries and table references, each `WITH` counted as often as it is used.
    pub nodes_max: usize,
}

impl SqlLimits {
    /// Limits for the reviewed SQL of jobs.
    pub fn jobs() -> Self {
        Self { text_bytes_max: 2 << 20, tokens_max: 200_000, depth_max: 512, nodes_max: 100_000 }
    }
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self { text_bytes_max: 256 << 10, tokens_max: 40_000, depth_max: 256, nodes_max: 20_000 }
    }
}

/// How one statement is run.
#[derive(Clone)]
pub struct QueryOptions {
    /// The version of the lake that all tables are read at. `Now` is fixed once per statement.
    pub at: At,
    /// Tables beside those of the lake, found first and by their bare name: a staged result as `this`.
    pub tables: HashMap<String, Arc<dyn TableProvider>>,
    /// Limits of the text.
    pub limits: SqlLimits,
    /// Time for waiting, planning and running, until the last batch is taken.
    pub timeout: Option<Duration>,
    /// The most parts the query is cut into, instead of its queue's number.
    pub threads: Option<usize>,
    /// Who asks.
    pub caller: Caller,
    /// The queue, instead of the one that the caller's application and role lead to.
    pub queue: Option<String>,
    /// Values of `$1`, `$2` and so on.
    pub parameters: Vec<ScalarValue>,
    /// For `describe`, the types of `$1`, `$2` and so on that are known before.
    pub parameter_types: Vec<Option<DataType>>,
    /// The session of the PostgreSQL protocol that asks; changes how the text is read.
    pub postgres: Option<Arc<PgSession>>,
    /// Rows that are wanted; the rest is cut off and the query's state says so.
    pub rows_max: Option<u64>,
    /// False to read the tables whatever the cache has.
    pub is_cached: bool,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            at: At::Now,
            tables: HashMap::new(),
            limits: SqlLimits::default(),
            timeout: None,
            threads: None,
            caller: Caller::default(),
            queue: None,
            parameters: Vec::new(),
            parameter_types: Vec::new(),
            postgres: None,
            rows_max: None,
            is_cached: true,
        }
    }
}

impl QueryOptions {
    /// Adds a table that the statement can read by this name.
    pub fn with_table(mut self, name: impl Into<String>, table: Arc<dyn TableProvider>) -> Self {
        self.tables.insert(name.into(), table);
        self
    }
}
