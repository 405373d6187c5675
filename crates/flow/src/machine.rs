//! The state machine of one run: a state, an event and the time give the next state and what is to be done.
//!
//! It does no IO and holds no clock, so that the executor, a scheduler and a simulator can drive the same code. A run is a
//! DAG of tasks. Tasks that wait for partitions take no slot; all others are carried out in *segments*: a segment is a
//! linear chain of tasks (`stage -> check -> publish -> latest`) that one worker does in one go, and that is retried from its
//! first task, because what a broken attempt has staged is never used.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{ErrorKind, Fault, TaskName};

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
        }
    }

    /// Makes a failure that is retried when its kind says so.
    pub fn new(kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        let retryable = matches!(kind, ErrorKind::Conflict | ErrorKind::Unavailable);
        Self { kind, code: code.to_owned(), message: message.into(), hint: None, retryable }
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

/// One task of a run as it was planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskShape {
    /// Its name, unique in the run.
    pub name: TaskName,
    /// True when it only waits for partitions.
    pub waits: bool,
    /// The places of the tasks before it; each is smaller than its own place.
    pub after: Vec<usize>,
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

/// A run's tasks with their states.
///
/// A task runs once all tasks before it are successful; when all are final and one of them is not, it ends as
/// `upstream_failed` (or `skipped`, when nothing failed). The run fails when any task failed.
#[derive(Debug, Clone)]
pub struct Run {
    tasks: Vec<Task>,
    /// Tasks that are not closed.
    open: usize,
    retry: RetryPolicy,
    failures: u32,
    seed: u64,
    cancelled: bool,
}

#[derive(Debug, Clone)]
struct Task {
    record: TaskRecord,
    waits: bool,
    parents: Vec<usize>,
    children: Vec<usize>,
    /// The tasks before it that are not closed yet.
    unmet: usize,
    /// True when its state is final and those after it know. A task of a running segment may say `success` before that.
    closed: bool,
    /// True for the head of a segment that holds a slot.
    holds_slot: bool,
}

impl Run {
    /// A run that nobody has claimed. `seed` decides the jitter of its retries.
    pub fn new(shapes: Vec<TaskShape>, retry: RetryPolicy, seed: u64) -> Self {
        let mut tasks: Vec<Task> = Vec::with_capacity(shapes.len());
        for (place, shape) in shapes.into_iter().enumerate() {
            for &parent in &shape.after {
                debug_assert!(parent < place, "tasks stand after what they need");
                tasks[parent].children.push(place);
            }
            tasks.push(Task {
                record: TaskRecord { name: shape.name, state: State::Waiting, started_at: None, finished_at: None },
                waits: shape.waits,
                unmet: shape.after.len(),
                parents: shape.after,
                children: Vec::new(),
                closed: false,
                holds_slot: false,
            });
        }
        Self { open: tasks.len(), tasks, retry, failures: 0, seed, cancelled: false }
    }

    /// The run's state, which follows from its tasks.
    pub fn state(&self) -> State {
        let any = |state| self.tasks.iter().any(|t| t.record.state == state);
        if self.open > 0 {
            let busy = [State::Running, State::Queued, State::Ready, State::Retry];
            return if self.holds_slot() {
                State::Running
            } else {
                busy.into_iter().find(|state| any(*state)).unwrap_or(State::Waiting)
            };
        }
        if self.cancelled {
            State::Cancelled
        } else if any(State::Failed) || any(State::UpstreamFailed) {
            State::Failed
        } else {
            State::Success
        }
    }

    /// The tasks with their states, in the plan's order.
    pub fn tasks(&self) -> impl ExactSizeIterator<Item = &TaskRecord> {
        self.tasks.iter().map(|t| &t.record)
    }

    /// The places of a segment's tasks: from the head on, as long as each has one task after it that needs nothing else.
    pub fn segment(&self, head: usize) -> Vec<usize> {
        let mut chain = vec![head];
        let mut last = head;
        while let [next] = self.tasks[last].children[..] {
            if self.tasks[next].waits || self.tasks[next].parents.len() != 1 {
                break;
            }
            chain.push(next);
            last = next;
        }
        chain
    }

    /// True while a segment of the run holds a slot.
    pub fn holds_slot(&self) -> bool {
        self.tasks.iter().any(|t| t.holds_slot)
    }

    /// True when the run is over once this segment has done its work.
    pub fn ends_with(&self, head: usize) -> bool {
        self.segment(head).len() == self.open
    }

    /// Takes an event and answers what to do. Events that do not fit the state (a late reply of a cancelled task) are ignored.
    pub fn apply(&mut self, event: &Event, now: DateTime<Utc>) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.open == 0 {
            return actions;
        }
        match *event {
            Event::Begun => {
                for place in 0..self.tasks.len() {
                    if self.tasks[place].unmet == 0 {
                        self.admit(place, now, &mut actions);
                    }
                }
            }
            Event::WaitMet { task } => self.end_wait(task, State::Success, now, &mut actions),
            Event::WaitFailed { task } => self.end_wait(task, State::Failed, now, &mut actions),
            Event::Queued { head } => {
                if self.tasks[head].record.state == State::Ready {
                    self.tasks[head].record.state = State::Queued;
                }
            }
            Event::Started { head } => {
                if self.tasks[head].record.state == State::Queued {
                    self.tasks[head].holds_slot = true;
                    self.set(head, State::Running, now);
                }
            }
            Event::Moved { task, state, at } => {
                let fits = matches!(state, State::Running | State::Success);
                if fits && !self.tasks[task].closed && self.holds_slot() {
                    self.set(task, state, at);
                }
            }
            Event::Done { head } => {
                if self.tasks[head].holds_slot {
                    self.tasks[head].holds_slot = false;
                    let chain = self.segment(head);
                    for &place in &chain {
                        if self.tasks[place].record.state != State::Success {
                            self.set(place, State::Success, now);
                        }
                        self.tasks[place].closed = true;
                    }
                    self.open -= chain.len();
                    self.tell_children(chain[chain.len() - 1], now, &mut actions);
                }
            }
            Event::Broke { head, retryable } => {
                if self.tasks[head].holds_slot {
                    self.tasks[head].holds_slot = false;
                    self.break_off(head, retryable, now, &mut actions);
                }
            }
            Event::RetryDue { head } => {
                if self.tasks[head].record.state == State::Retry {
                    self.tasks[head].record.state = State::Ready;
                    actions.push(Action::Enqueue { head });
                }
            }
            Event::Cancelled => {
                self.cancelled = true;
                self.open = 0;
                for place in 0..self.tasks.len() {
                    if !self.tasks[place].closed {
                        self.set(place, State::Cancelled, now);
                        self.tasks[place].closed = true;
                        self.tasks[place].holds_slot = false;
                    }
                }
            }
        }
        if self.open == 0 {
            actions.push(Action::Finish(self.state()));
        }
        actions
    }

    /// Lets a task go whose parents are all successful.
    fn admit(&mut self, place: usize, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        if self.tasks[place].closed {
            return;
        }
        if self.tasks[place].waits {
            self.set(place, State::Waiting, now);
            self.tasks[place].record.started_at = Some(now);
            actions.push(Action::Await { task: place });
        } else {
            self.tasks[place].record.state = State::Ready;
            actions.push(Action::Enqueue { head: place });
        }
    }

    fn end_wait(&mut self, place: usize, state: State, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        if self.tasks[place].waits && !self.tasks[place].closed {
            self.close(place, state, now, actions);
        }
    }

    fn break_off(&mut self, head: usize, retryable: bool, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        let chain = self.segment(head);
        let pause = if retryable { self.retry.pause(self.failures + 1, self.seed) } else { None };
        if let Some(pause) = pause {
            self.failures += 1;
            for place in chain {
                self.set(place, State::Waiting, now);
                self.tasks[place].record.started_at = None;
            }
            self.tasks[head].record.state = State::Retry;
            let pause = TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX);
            actions
                .push(Action::RetryAt { head, at: now.checked_add_signed(pause).unwrap_or(DateTime::<Utc>::MAX_UTC) });
            return;
        }
        let done = chain.iter().take_while(|p| self.tasks[**p].record.state == State::Success).count();
        // All tasks may say success and the segment still be lost: then it is the last whose word does not count.
        let failed = chain[done.min(chain.len() - 1)];
        for &place in chain.iter().take_while(|p| **p != failed) {
            self.tasks[place].closed = true;
            self.open -= 1;
            for child in self.tasks[place].children.clone() {
                self.tasks[child].unmet -= 1;
            }
        }
        self.close(failed, State::Failed, now, actions);
    }

    /// Makes a task's state final and tells those after it.
    fn close(&mut self, place: usize, state: State, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        self.set(place, state, now);
        self.tasks[place].closed = true;
        self.open -= 1;
        self.tell_children(place, now, actions);
    }

    fn tell_children(&mut self, place: usize, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        for child in self.tasks[place].children.clone() {
            self.tasks[child].unmet -= 1;
            if self.tasks[child].unmet > 0 || self.tasks[child].closed {
                continue;
            }
            let parents = &self.tasks[child].parents;
            let any = |states: &[State]| parents.iter().any(|p| states.contains(&self.tasks[*p].record.state));
            if any(&[State::Failed, State::UpstreamFailed]) {
                self.close(child, State::UpstreamFailed, now, actions);
            } else if any(&[State::Skipped]) {
                self.close(child, State::Skipped, now, actions);
            } else {
                self.admit(child, now, actions);
            }
        }
    }

    fn set(&mut self, place: usize, state: State, at: DateTime<Utc>) {
        let record = &mut self.tasks[place].record;
        record.state = state;
        match state {
            State::Running => (record.started_at, record.finished_at) = (Some(at), None),
            state if state.is_final() => record.finished_at = Some(at),
            _ => record.finished_at = None,
        }
    }
}

#[cfg(test)]
mod tests;
