//! Attempts: a segment gets its task and its log, and comes back with how it ended.

use std::{sync::Arc, time::Duration};

use headworks_domain::ErrorKind;
use tokio::task::{Id, JoinError};
use tracing::Instrument;

use super::{
    super::{
        log::AttemptLog,
        record::AttemptRecord,
        segment::{Segment, Stop},
        shape::RunShape,
        timer::timeout,
    },
    session::{Live, SegmentEnd, Session},
};
use crate::machine::{Failure, State};

impl Session<'_> {
    pub(super) fn start(&mut self, run: usize, head: usize) {
        let executor = self.executor;
        let (Some(shape), Some(record)) = (self.board.shape(run).cloned(), self.board.segment_record(run)) else {
            return;
        };
        let (places, ends_run) = self.board.segment(run, head);
        let path = AttemptLog::path_of(&shape.job, &shape.interval, &record.run_id, record.attempt);
        let log = AttemptLog::new(&executor.options.logs, path, Arc::clone(&executor.clock));
        let (run_id, attempt, fence, timeout_after) =
            (record.run_id.clone(), record.attempt, record.fence, shape.limits.timeout);
        log.line(format!(
            "job {} ds={} run {run_id} attempt {attempt} version {}",
            shape.job, shape.ds, shape.job_version
        ));
        let span = tracing::info_span!("attempt", job = %shape.job, %run_id, attempt, ds = %shape.ds);
        let mut segment = Segment {
            tasks: places.iter().map(|p| record.tasks[*p].name.clone()).collect(),
            shape,
            log: log.clone(),
            clock: Arc::clone(&executor.clock),
            record,
            places,
            run,
            ends_run,
            begun_at: executor.clock.now(),
            moves: self.moves.0.clone(),
        };
        let begun = segment.attempt_record(State::Running, None);
        self.board.began(run, AttemptRecord { finished_at: None, ..begun.clone() });
        let (runner, timer) = (Arc::clone(&executor.runner), Arc::clone(&executor.options.timer));
        let work = async move {
            let result = match (segment.shape.unplanned.clone(), timeout_after) {
                (Some(failure), _) => Err(Stop::Failed(failure)),
                (None, None) => runner.run(&mut segment).await,
                (None, Some(after)) => match timeout(timer.as_ref(), after, runner.run(&mut segment)).await {
                    Some(result) => result,
                    None => Err(Stop::Failed(timed_out(&segment.shape, after))),
                },
            };
            let (state, failure) = match &result {
                Ok(done) => {
                    segment.log.line(format!("done: {} rows, {} bytes", done.rows, done.bytes));
                    (State::Success, None)
                }
                Err(Stop::Failed(failure)) => {
                    segment.log.failure(failure);
                    (State::Failed, Some(failure.clone()))
                }
                Err(Stop::Fenced) => {
                    segment.log.line("stopped: another process owns this run now");
                    (State::Cancelled, None)
                }
            };
            // Written here, and not by the loop when it drops its own handle.
            segment.log.flush();
            SegmentEnd { result, attempt: segment.attempt_record(state, failure) }
        };
        let abort = self.segments.spawn(work.instrument(span));
        self.live.insert(abort.id(), Live { run, head, fence, log, begun, abort: abort.clone() });
    }

    pub(super) fn segment_ended(&mut self, ended: Result<(Id, SegmentEnd), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(live) = self.live.remove(&id) else { return };
        let now = self.now();
        let key = (live.run, live.head, live.fence);
        // The moves of its tasks came before its end.
        while let Ok(moved) = self.moves.1.try_recv() {
            self.board.moved(&moved);
        }
        match ended {
            Ok((_, end)) => {
                self.board.ended(key, end.result, end.attempt, now);
                self.watch(live.run);
            }
            Err(error) if error.is_panic() => {
                let failure = Failure::new(ErrorKind::Internal, "FLOW_PANIC", format!("the task panicked: {error}"))
                    .with_hint("this is a bug of Headworks: please report it with the run's log");
                live.log.failure(&failure);
                let attempt = AttemptRecord {
                    state: State::Failed,
                    finished_at: Some(now),
                    failure: Some(failure.clone()),
                    ..live.begun
                };
                self.board.ended(key, Err(Stop::Failed(failure)), attempt, now);
            }
            Err(_) => {
                live.log.line(if self.cancelled { "cancelled" } else { "stopped: another process owns this run now" });
                self.board.slot_freed();
            }
        }
    }
}

fn timed_out(shape: &RunShape, after: Duration) -> Failure {
    let message =
        format!("job `{}` took longer than its timeout of {} s for ds={}", shape.job, after.as_secs_f64(), shape.ds);
    Failure::new(ErrorKind::Exhausted, "FLOW_TIMEOUT", message)
        .with_hint("raise `timeout` in the job, or make its query smaller")
}
