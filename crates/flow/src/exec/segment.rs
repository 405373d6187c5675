//! The work of one worker: a chain of tasks of one run under one fence.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use headworks_domain::{Clock, Fault, PartitionKey, RunId, TaskName};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{
    log::AttemptLog,
    record::{AttemptRecord, RunRecord},
    shape::RunShape,
};
use crate::{
    machine::{Failure, State},
    outside::{Answer, Question},
};

/// Carries out segments. One segment is called once per attempt, several at the same time.
#[async_trait]
pub trait TaskRunner: Send + Sync + 'static {
    /// Does the segment's tasks in order, telling [`Segment::begin`] and [`Segment::end`] of each.
    ///
    /// A publish should record the run's end in its own transaction: [`Segment::finished`] is that record, and
    /// [`Done::recorded`] says that it was kept. Dropping the future cancels the attempt at its next await.
    async fn run(&self, segment: &mut Segment) -> Result<Done, Stop>;

    /// Looks once whether something is there that runs wait for outside of the lake.
    ///
    /// Dropping the future ends the look; one that takes longer than [`LOOK_WITHIN`] is dropped. Errors: one that is retryable
    /// is asked again, after a pause that grows; any other fails the runs that wait.
    async fn look(&self, question: &Question) -> Result<Answer, Failure>;
}

/// The longest that one look at the outside world may take.
pub const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// What a segment that did all its tasks has to show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Done {
    /// Rows published.
    pub rows: u64,
    /// Bytes published.
    pub bytes: u64,
    /// The partitions published, which may have others waiting for them.
    pub published: Vec<PartitionKey>,
    /// True when [`Segment::finished`] was kept in the publish's transaction.
    pub recorded: bool,
    /// What the tasks after it may read, when there is anything; at most [`Segment::output_bytes_max`] of JSON.
    pub output: Option<Value>,
}

/// Why a segment broke off.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// It failed.
    Failed(Failure),
    /// Another process owns the run now: nothing was changed, and nothing may be.
    Fenced,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl<E: Fault> From<&E> for Stop {
    fn from(error: &E) -> Self {
        Self::Failed(Failure::of(error))
    }
}

/// A task of a running segment began or ended.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) run: usize,
    pub(crate) fence: i64,
    pub(crate) task: usize,
    pub(crate) state: State,
    pub(crate) at: DateTime<Utc>,
}

/// What a task of a job file gets when it starts.
#[derive(Debug, Clone, Default)]
pub struct TaskInput {
    /// The place of the task in [`RunShape::tasks`]; of an item, its task's.
    pub place: usize,
    /// Which try of this task it is, from 1.
    pub tries: u32,
    /// The item, for a task that runs once for each, with how many there are.
    pub item: Option<(Value, usize)>,
    /// What the tasks gave that ended before it, by their names.
    pub outputs: Arc<Map<String, Value>>,
}

/// The most bytes of JSON that a task may give to later ones.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The most bytes that all items of one task may give together.
const OUTPUTS_OF_ITEMS_BYTES_MAX: usize = 1024 * 1024;

/// A chain of tasks of one run, with what its runner needs.
pub struct Segment {
    /// The run, as planned.
    pub shape: Arc<RunShape>,
    /// The names of the tasks to do, in order.
    pub tasks: Vec<TaskName>,
    /// The attempt's log.
    pub log: AttemptLog,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// What the task gets, where the segment is one of a job file's own.
    pub input: TaskInput,
    /// The run's record as it was when the segment began, with the moves of its tasks since.
    pub(crate) record: RunRecord,
    /// The places of `tasks` in the run.
    pub(crate) places: Vec<usize>,
    /// The run's place on the board.
    pub(crate) run: usize,
    pub(crate) ends_run: bool,
    pub(crate) begun_at: DateTime<Utc>,
    pub(crate) moves: mpsc::UnboundedSender<Moved>,
}

impl Segment {
    /// The run.
    pub fn run_id(&self) -> &RunId {
        &self.record.run_id
    }

    /// The number of this attempt, from 1; unique in the run.
    pub fn attempt(&self) -> u32 {
        self.record.attempt
    }

    /// The fence under which everything is written.
    pub fn fence(&self) -> i64 {
        self.record.fence
    }

    /// The longest that the attempt may take. The executor minds it itself, but for tasks of a job file.
    pub fn timeout(&self) -> Option<Duration> {
        self.shape.timeout(self.input.place)
    }

    /// The most bytes of JSON that the task may give to later ones: 64 KiB, or its share of 1 MiB as one of many items.
    pub fn output_bytes_max(&self) -> usize {
        let items = self.input.item.as_ref().map_or(1, |(_, items)| *items);
        OUTPUT_BYTES_MAX.min(OUTPUTS_OF_ITEMS_BYTES_MAX / items.max(1))
    }

    /// Says that a task of the segment begins.
    pub fn begin(&mut self, task: &TaskName) {
        self.moved(task, State::Running);
    }

    /// Says that a task of the segment is done.
    pub fn end(&mut self, task: &TaskName) {
        self.moved(task, State::Success);
    }

    /// The record to keep in the publish's transaction: all tasks of the segment done, and the run over when these were its
    /// last ones.
    pub fn finished(&self, rows: u64, bytes: u64) -> RunRecord {
        let now = self.clock.now();
        let mut record = self.record.clone();
        for &place in &self.places {
            let task = &mut record.tasks[place];
            if task.state != State::Success {
                task.state = State::Success;
                task.started_at.get_or_insert(now);
                task.finished_at = Some(now);
            }
        }
        (record.rows, record.bytes) = (rows, bytes);
        if self.ends_run {
            record.state = State::Success;
            record.finished_at = Some(now);
        }
        record.attempts = vec![self.attempt_record(State::Success, None)];
        record
    }

    /// The record of this attempt as it ended.
    pub(crate) fn attempt_record(&self, state: State, failure: Option<Failure>) -> AttemptRecord {
        AttemptRecord {
            attempt: self.record.attempt,
            task: self.tasks.first().filter(|_| self.is_alone()).cloned(),
            state,
            started_at: self.begun_at,
            finished_at: Some(self.clock.now()),
            failure,
            log_path: self.log.relative_path(),
            log_bytes: self.log.bytes(),
        }
    }

    /// True for a task of a job file, which is a segment by itself.
    pub(crate) fn is_alone(&self) -> bool {
        self.shape.tasks.get(self.input.place).is_some_and(|task| task.options.alone)
    }

    fn moved(&mut self, task: &TaskName, state: State) {
        let Some(&place) = self.places.iter().find(|p| self.record.tasks[**p].name == *task) else {
            return;
        };
        let at = self.clock.now();
        let record = &mut self.record.tasks[place];
        record.state = state;
        match state {
            State::Running => record.started_at = Some(at),
            _ => record.finished_at = Some(at),
        }
        // The executor may be gone; then nobody looks.
        let _ = self.moves.send(Moved { run: self.run, fence: self.record.fence, task: place, state, at });
    }
}
