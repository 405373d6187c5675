//! What is told of runs: records for the store, counts and progress for people, the summary.

use chrono::{DateTime, Utc};
use headworks_domain::RunId;

use super::{
    super::{
        progress::{Counts, FailedRun, Progress, RunProgress, Summary},
        record::RunRecord,
        shape::RunShape,
    },
    Board, Command,
    entry::Phase,
};
use crate::machine::State;

impl Board {
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The records of running runs whose tasks have moved since the last call, for other processes' eyes.
    pub(crate) fn take_dirty(&mut self) -> Vec<(usize, RunRecord)> {
        let mut records = Vec::new();
        for run in std::mem::take(&mut self.dirty) {
            if let Some(record) = self.record(run, None).filter(|_| self.runs[run].phase == Phase::Mine) {
                self.runs[run].keeping += 1;
                self.runs[run].attempts.clear();
                records.push((run, record));
            }
        }
        records
    }

    /// The record with which a segment begins.
    pub(crate) fn segment_record(&self, run: usize) -> Option<RunRecord> {
        self.record(run, None)
    }

    /// The places and names of a segment's tasks, and whether the run is over with them.
    pub(crate) fn segment(&self, run: usize, head: usize) -> (Vec<usize>, bool) {
        let machine = &self.runs[run].machine;
        (machine.segment(head), machine.ends_with(head))
    }

    /// How all runs ended. `log_of` finds the log of a run under a fence.
    pub(crate) fn summary(
        &self,
        cancelled: bool,
        log_of: impl Fn(&RunShape, &RunId, i64) -> std::path::PathBuf,
    ) -> Summary {
        let mut summary = Summary { counts: self.counts, cancelled, ..Summary::default() };
        for entry in self.runs.iter() {
            let failed = entry.counted == Some(State::Failed);
            let Some(failure) = entry.failure.clone().filter(|_| failed) else { continue };
            let log = match (&entry.shape, &entry.run_id) {
                (Some(shape), Some(id)) if entry.attempt > 0 => Some(log_of(shape, id, entry.claim.fence)),
                _ => None,
            };
            let run = FailedRun {
                run_id: entry.run_id.clone(),
                job: entry.request.job.clone(),
                interval: entry.request.interval,
                ds: entry.shape.as_ref().map(|s| s.ds),
                failure,
                log,
            };
            if entry.was_blocked { summary.blocked.push(run) } else { summary.failed.push(run) }
        }
        summary
    }

    pub(super) fn keep(&mut self, run: usize, finished_at: Option<DateTime<Utc>>) {
        let Some(record) = self.record(run, finished_at) else { return };
        let entry = &mut self.runs[run];
        entry.keeping += 1;
        entry.attempts.clear();
        self.dirty.remove(&run);
        self.commands.push(Command::Keep { run, record });
    }

    fn record(&self, run: usize, finished_at: Option<DateTime<Utc>>) -> Option<RunRecord> {
        let entry = &self.runs[run];
        Some(RunRecord {
            run_id: entry.run_id.clone()?,
            fence: entry.claim.fence,
            state: entry.machine.state(),
            attempt: if entry.machine.state() == State::Retry {
                entry.next_attempt
            } else {
                entry.attempt.max(entry.claim.attempt)
            },
            started_at: entry.started_at,
            finished_at,
            rows: entry.rows,
            bytes: entry.bytes,
            failure: entry.failure.clone().filter(|_| entry.machine.state() != State::Success),
            tasks: entry.machine.tasks().cloned().collect(),
            attempts: entry.attempts.iter().chain(entry.current.values()).cloned().collect(),
            pooled: entry.job_slot.is_some() || entry.shape.as_ref().is_some_and(|shape| shape.is_pooled()),
        })
    }

    /// Moves the run to another count.
    pub(super) fn recount(&mut self, run: usize, state: State) {
        let entry = &mut self.runs[run];
        let before = entry.counted.replace(state).unwrap_or(State::Waiting);
        let done_before = entry.done_before;
        let count = self.count_of(before, done_before);
        *count = count.saturating_sub(1);
        *self.count_of(state, done_before) += 1;
    }

    /// Counts the run no more: it is another process's.
    pub(super) fn uncount(&mut self, run: usize) {
        let entry = &self.runs[run];
        let count = self.count_of(entry.counted.unwrap_or(State::Waiting), entry.done_before);
        *count = count.saturating_sub(1);
        self.counts.total = self.counts.total.saturating_sub(1);
    }

    fn count_of(&mut self, state: State, done_before: bool) -> &mut usize {
        match state {
            State::Running => &mut self.counts.running,
            State::Retry => &mut self.counts.retry,
            State::Success if done_before => &mut self.counts.done_before,
            State::Success => &mut self.counts.success,
            State::Failed | State::UpstreamFailed => &mut self.counts.failed,
            State::Cancelled | State::Skipped => &mut self.counts.cancelled,
            State::Waiting | State::Ready | State::Queued => &mut self.counts.waiting,
        }
    }

    pub(super) fn tell(&mut self, run: usize, state: State) {
        let entry = &self.runs[run];
        let (Some(run_id), Some(shape)) = (entry.run_id.clone(), &entry.shape) else { return };
        let progress = RunProgress {
            run_id,
            trigger: entry.trigger,
            job: shape.job.clone(),
            interval: shape.interval,
            ds: shape.ds,
            state,
            attempt: entry.attempt,
            rows: entry.rows,
            took: entry.took.filter(|_| state != State::Running),
            failure: entry.failure.clone().filter(|_| state != State::Success && state != State::Running),
        };
        self.commands.push(Command::Tell(Progress::Run(progress, self.counts)));
    }
}
