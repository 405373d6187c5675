use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use datafusion::catalog::TableProvider;

use crate::At;

/// How large an engine may grow; all queries of one process together.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Memory that sorts, joins and groupings of all queries may hold together, in bytes. The process needs some 100 to
    /// 400 MB above it. Below 200 MB per running query, large sorts fail instead of spilling.
    pub memory_bytes: usize,
    /// Threads of the engine's own runtime, and the parts a large query is cut into.
    pub threads: usize,
    /// Folder for what does not fit into memory; made when missing. It must not lie in the lake's data path.
    pub spill_dir: PathBuf,
    /// The most that all queries together may spill, in bytes.
    pub spill_bytes_max: u64,
    /// Queries that run at once; others wait their turn within their time limit.
    pub queries_max: usize,
    /// Scans that read fewer bytes of files than this run in one part: cutting them up costs more than it wins.
    pub parallel_bytes_min: u64,
    /// Record batches that wait between a query and its reader.
    pub batches_ahead: usize,
    /// Stack of each of the engine's threads, in bytes. Address space only: untouched pages cost nothing.
    pub stack_bytes: usize,
}

impl EngineOptions {
    /// The defaults for a machine with so many cores: 1 GiB of memory, 20 GiB of spill space.
    pub fn new(spill_dir: impl Into<PathBuf>, threads: usize) -> Self {
        Self {
            memory_bytes: 1 << 30,
            threads: threads.max(1),
            spill_dir: spill_dir.into(),
            spill_bytes_max: 20 << 30,
            queries_max: 64,
            parallel_bytes_min: 8 << 20,
            batches_ahead: 4,
            stack_bytes: 64 << 20,
        }
    }
}

/// What one statement may ask for before it is planned; the names are those of the `[sql]` settings.
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
    /// The most parts the query is cut into, instead of the engine's number of threads.
    pub threads: Option<usize>,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self { at: At::Now, tables: HashMap::new(), limits: SqlLimits::default(), timeout: None, threads: None }
    }
}

impl QueryOptions {
    /// Adds a table that the statement can read by this name.
    pub fn with_table(mut self, name: impl Into<String>, table: Arc<dyn TableProvider>) -> Self {
        self.tables.insert(name.into(), table);
        self
    }
}
