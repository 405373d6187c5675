//! What a command shows while runs are carried out, and what it says at the end.

use std::{path::PathBuf, time::Duration};

use headworks_domain::{Ds, Interval, JobName, RunId, TaskName};

use super::record::Trigger;
use crate::machine::{Failure, State};

/// How many runs stand where. A run is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All runs that were asked for.
    pub total: usize,
    /// Were done before the command began, or by another process meanwhile.
    pub done_before: usize,
    /// Wait for a partition, a slot or another process.
    pub waiting: usize,
    /// At work.
    pub running: usize,
    /// Pause before another attempt.
    pub retry: usize,
    /// Succeeded.
    pub success: usize,
    /// Failed, those included whose inputs are missing.
    pub failed: usize,
    /// Stopped on request.
    pub cancelled: usize,
    /// Rows published so far.
    pub rows: u64,
    /// Bytes published so far.
    pub bytes: u64,
}

/// One step of progress, for a terminal to draw. Sent without waiting: nothing depends on anybody's listening.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "nearly all that is sent are the large ones")]
pub enum Progress {
    /// All runs are planned; work begins.
    Planned(Counts),
    /// A run's state changed.
    Run(RunProgress, Counts),
    /// A task of a running run began or ended.
    Task {
        /// The run.
        run_id: RunId,
        /// Its job.
        job: JobName,
        /// The task.
        task: TaskName,
        /// Its state.
        state: State,
    },
}

/// A run's new state.
#[derive(Debug, Clone)]
pub struct RunProgress {
    /// The run.
    pub run_id: RunId,
    /// What it was made for.
    pub trigger: Trigger,
    /// Its job.
    pub job: JobName,
    /// What it covers.
    pub interval: Interval,
    /// The day of its last partition.
    pub ds: Ds,
    /// `Running`, `Retry` or a final state.
    pub state: State,
    /// The attempt it speaks of.
    pub attempt: u32,
    /// Rows published by it.
    pub rows: u64,
    /// How long the attempt took, once it ended.
    pub took: Option<Duration>,
    /// Why it failed, or fails for now.
    pub failure: Option<Failure>,
}

/// A run that did not succeed.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedRun {
    /// The run; `None` when it could not even be planned.
    pub run_id: Option<RunId>,
    /// Its job.
    pub job: JobName,
    /// What it covers.
    pub interval: Interval,
    /// The day of its last partition.
    pub ds: Option<Ds>,
    /// Why.
    pub failure: Failure,
    /// The log of its last attempts, if there was one.
    pub log: Option<PathBuf>,
}

/// How a command's runs ended.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many stand where.
    pub counts: Counts,
    /// Those that failed by themselves, in the order asked.
    pub failed: Vec<FailedRun>,
    /// Those whose inputs nobody publishes, in the order asked; counted as failed too.
    pub blocked: Vec<FailedRun>,
    /// True when the command was asked to stop.
    pub cancelled: bool,
}

impl Summary {
    /// True when every run that was asked for is done.
    pub fn is_success(&self) -> bool {
        !self.cancelled && self.counts.success + self.counts.done_before == self.counts.total
    }
}
