use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use serde_json::{Map, Value};

use super::{
    placement::Takes,
    timer::{SystemTimer, Timer},
};

/// Which of the runs that ended before are carried out again. Runs that were cancelled or whose process died always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reprocess {
    /// None: what failed stays failed.
    None,
    /// Those that failed.
    #[default]
    Failed,
    /// All, those that succeeded too: as new runs, whose publishes replace the partitions.
    All,
}

impl Reprocess {
    const ALL: [Self; 3] = [Self::None, Self::Failed, Self::All];

    /// Its word, as `failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Failed => "failed",
            Self::All => "all",
        }
    }
}

impl FromStr for Reprocess {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|r| r.as_str() == s).ok_or_else(|| format!("`{s}` does not say what runs again"))
    }
}

/// The most bytes of one attempt's log, unless somebody says otherwise.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How an [`Executor`](super::Executor) works.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// The most tasks at work at once. When serving, 0 means that ready runs are left to others.
    pub tasks_max: usize,
    /// When serving: which runs it carries out. Others it plans, and gives away once they are ready.
    pub takes: Takes,
    /// The most bytes of one attempt's log.
    pub log_bytes_max: u64,
    /// Which ended runs are carried out again.
    pub reprocess: Reprocess,
    /// Parameters that stand in for those of the jobs' headers.
    pub params: Map<String, Value>,
    /// How long a run waits for partitions that nobody known will publish; then it fails.
    pub wait: Duration,
    /// The folder of the logs.
    pub logs: PathBuf,
    /// The pause between two renewals of the lease.
    pub heartbeat: Duration,
    /// The pause between two records of running runs, for other processes' eyes.
    pub flush: Duration,
    /// The pause between two looks at runs that other processes own.
    pub poll: Duration,
    /// The pause between a publish by another process and the reading of the registry, so that many cost one reading.
    pub listen: Duration,
    /// The most runs claimed in one commit.
    pub claims_max: usize,
    /// How often a store that is out of reach is asked again before the executor gives up; 70 tries are about two minutes.
    pub store_tries: u32,
    /// When serving: the pause between two looks for runs whose process is gone.
    pub adopt: Duration,
    /// When serving: take up runs that others release as soon as they do, and not only with the next look.
    pub pull: bool,
    /// When serving: how long running attempts may go on after the wish to stop.
    pub drain: Duration,
    /// Lets time pass; a simulator has its own.
    pub timer: Arc<dyn Timer>,
}

impl ExecutorOptions {
    /// The defaults: eight tasks at once, failed runs again, no waiting.
    pub fn new(logs: PathBuf) -> Self {
        Self {
            tasks_max: 8,
            takes: Takes::default(),
            log_bytes_max: LOG_BYTES_MAX,
            reprocess: Reprocess::default(),
            params: Map::new(),
            wait: Duration::ZERO,
            logs,
            heartbeat: Duration::from_secs(3),
            flush: Duration::from_secs(1),
            poll: Duration::from_millis(200),
            listen: Duration::from_millis(50),
            claims_max: 200,
            store_tries: 70,
            adopt: Duration::from_secs(5),
            pull: false,
            drain: Duration::from_secs(30),
            timer: Arc::new(SystemTimer),
        }
    }
}
