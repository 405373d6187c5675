//! The state machine of one run: a state, an event and the time give the next state and what is to be done.
//!
//! It does no IO and holds no clock, so that the executor, a scheduler and a simulator can drive the same code. A run is a
//! DAG of tasks. Tasks that wait for partitions take no slot; all others are carried out in *segments*: a segment is a
//! linear chain of tasks (`stage -> check -> publish -> latest`) that one worker does in one go, and that is retried from its
//! first task, because what a broken attempt has staged is never used. The tasks that a job file names itself are segments of
//! one task each.

mod run;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use headworks_domain::{ErrorKind, Fault, TaskName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use run::Run;

/// The state of a run or of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Something that comes before it is not there yet: a partition or a task.
    Waiting,
    /// Nothing is missing, but the limit of its job is reached.
    Ready,
    /// It is in the queue for a slot.
    Queued,
    /// It runs.
    Running,
    /// It failed, and will run again after a pause.
    Retry,
    /// It is done.
    Success,
    /// It failed for good.
    Failed,
    /// Something that comes before it failed.
    UpstreamFailed,
    /// It was not needed.
    Skipped,
    /// It was stopped on request.
    Cancelled,
}

impl State {
    /// True when it will not change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::UpstreamFailed | Self::Skipped | Self::Cancelled)
    }

    /// The state as the database and the command line write it, `upstream_failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retry => "retry",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::UpstreamFailed => "upstream_failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// All states in the order in which a run usually passes them.
    pub const ALL: [Self; 10] = [
        Self::Waiting,
        Self::Ready,
        Self::Queued,
        Self::Running,
        Self::Retry,
        Self::Success,
        Self::Failed,
        Self::UpstreamFailed,
        Self::Skipped,
        Self::Cancelled,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Says that a text is not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a state: write waiting, ready, queued, running, retry, success, failed, upstream_failed, skipped or cancelled"
)]
pub struct StateError(String);

impl FromStr for State {
    type Err = StateError;

    fn from_str(s: &str) -> Result<Self, StateError> {
        Self::ALL.into_iter().find(|state| state.as_str() == s).ok_or_else(|| StateError(s.to_owned()))
    }
}

/// Why an attempt ended without its result: what a user reads, and whether trying again can help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// A stable short name, as `LAKE_CONFLICT`.
    pub code: String,
    /// What was being done, to which named thing, what stood in the way.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
    /// True when the same attempt may succeed later without anybody's help.
    pub retryable: bool,
    /// The shortest pause before the next attempt, when whoever failed asked for one.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Takes an error of any crate, with the messages of its sources behind its own.
    pub fn of(error: &dyn Fault) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors say their source's text in their own.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self {
            kind: error.kind(),
            code: error.code().to_owned(),
            message,
            hint: error.hint(),
            retryable: error.is_retryable(),
            retry_after: None,
        }
    }

    /// Makes a failure that is retried when its kind says so.
    pub fn new(kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        let retryable = matches!(kind, ErrorKind::Conflict | ErrorKind::Unavailable);
        Self { kind, code: code.to_owned(), message: message.into(), hint: None, retryable, retry_after: None }
    }

    /// Says whether trying again can help, whatever its kind.
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// Adds the next step.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// How often and how patiently transient failures are tried again. Permanent ones (bad SQL, bad input) never are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// The most attempts after the first.
    pub times: u32,
    /// The pause before the first retry.
    pub delay: Duration,
    /// What each further pause is multiplied by.
    pub factor: f64,
    /// The longest pause.
    pub max: Duration,
}

impl Default for RetryPolicy {
    /// Four retries after about 1, 4, 16 and 64 seconds.
    fn default() -> Self {
        Self { times: 4, delay: Duration::from_secs(1), factor: 4.0, max: Duration::from_secs(30 * 60) }
    }
}

impl RetryPolicy {
    /// The pause after the so-many-th failure (from 1), or `None` when it was the last one allowed.
    ///
    /// A fifth is added or taken away by `seed`, so that runs that failed together do not come back together.
    pub fn pause(&self, failures: u32, seed: u64) -> Option<Duration> {
        if failures == 0 || failures > self.times {
            return None;
        }
        let grown =
            self.delay.as_secs_f64() * self.factor.max(1.0).powi(i32::try_from(failures - 1).unwrap_or(i32::MAX));
        #[allow(clippy::cast_precision_loss, reason = "ten bits fit")]
        let jitter = 0.8 + 0.4 * (mix(seed ^ u64::from(failures)) & 1023) as f64 / 1023.0;
        let max = self.max.as_secs_f64();
        Some(Duration::from_secs_f64((grown * jitter).clamp(0.0, max)))
    }
}

/// Spreads the bits of a number (splitmix64, Steele et al. 2014).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// When a task runs, by the ends of the tasks before it.
///
/// All but two look once all tasks before it are final. A failure that is allowed ([`TaskShape::allow_failure`]) stops nobody:
/// `all_success` and `none_failed` pass it over, `one_failed` sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// When all before it succeeded; one skipped skips it too.
    #[default]
    AllSuccess,
    /// When all before it are over, however they ended.
    AllDone,
    /// When all before it are over and none failed; skipped ones don't count.
    NoneFailed,
    /// As soon as one before it failed; skipped when none does.
    OneFailed,
    /// At once, whatever those before it do.
    Always,
}

impl Rule {
    /// The rule as job files write it, `all_success`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllSuccess => "all_success",
            Self::AllDone => "all_done",
            Self::NoneFailed => "none_failed",
            Self::OneFailed => "one_failed",
            Self::Always => "always",
        }
    }
}

/// One task of a run as it was planned.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskShape {
    /// Its name, unique in the run.
    pub name: TaskName,
    /// True when it only waits for what must be there first.
    pub waits: bool,
    /// The places of the tasks before it; each is smaller than its own place.
    pub after: Vec<usize>,
    /// When it runs.
    pub rule: Rule,
    /// True when its failure fails neither the run nor what comes after it.
    pub allow_failure: bool,
    /// How it is tried again; as the run says unless given.
    pub retry: Option<RetryPolicy>,
    /// True when it is a segment of its own, never one with its neighbours.
    pub alone: bool,
    /// True when it runs once for each item of a list that is known when its turn comes.
    pub each: bool,
}

impl TaskShape {
    /// A task that runs when all before it succeeded.
    pub fn new(name: TaskName, after: Vec<usize>) -> Self {
        Self {
            name,
            waits: false,
            after,
            rule: Rule::default(),
            allow_failure: false,
            retry: None,
            alone: false,
            each: false,
        }
    }
}

/// A task's name, state and times, as they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRecord {
    /// Its name.
    pub name: TaskName,
    /// Its state.
    pub state: State,
    /// When the last attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached its final state.
    pub finished_at: Option<DateTime<Utc>>,
}

/// What happened to a run. Tasks are named by their places; a segment by its first task, the head.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// This process has claimed the run.
    Begun,
    /// What a task waited for is there.
    WaitMet {
        /// The task that waited.
        task: usize,
    },
    /// What a task waits for will not come.
    WaitFailed {
        /// The task that waited.
        task: usize,
    },
    /// A segment has passed its job's limit and stands in the queue.
    Queued {
        /// The segment.
        head: usize,
    },
    /// A segment got its slot.
    Started {
        /// The segment.
        head: usize,
    },
    /// A task of a running segment began or ended.
    Moved {
        /// The task.
        task: usize,
        /// `Running` or `Success`.
        state: State,
        /// When.
        at: DateTime<Utc>,
    },
    /// A segment did all its tasks.
    Done {
        /// The segment.
        head: usize,
    },
    /// A segment broke off.
    Broke {
        /// The segment.
        head: usize,
        /// Whether trying again can help.
        retryable: bool,
        /// The shortest pause before that; the longest is the retry policy's.
        after: Option<Duration>,
    },
    /// The list of a task that runs once per item is known. Item `n` of `load` becomes a task `load.n` of its own.
    Expanded {
        /// The task.
        task: usize,
        /// How many items there are.
        items: usize,
    },
    /// The list of a task that runs once per item cannot be had.
    ExpandFailed {
        /// The task.
        task: usize,
    },
    /// The pause before a retry is over.
    RetryDue {
        /// The segment.
        head: usize,
    },
    /// Somebody wants the run stopped.
    Cancelled,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell the run when what this task waits for is there.
    Await {
        /// The task that waits.
        task: usize,
    },
    /// Find the items of a task that runs once for each.
    Expand {
        /// The task.
        task: usize,
    },
    /// Find a slot for a segment.
    Enqueue {
        /// The segment.
        head: usize,
    },
    /// Tell the run when the pause is over.
    RetryAt {
        /// The segment.
        head: usize,
        /// The end of the pause.
        at: DateTime<Utc>,
    },
    /// The run reached this final state.
    Finish(State),
}
