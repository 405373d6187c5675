//! Attempts: a segment gets its task and its log, and comes back with how it ended.

use std::{sync::Arc, time::Duration};

use headworks_domain::ErrorKind;
use tokio::task::{Id, JoinError};
use tracing::Instrument;

use super::{
    super::{
        log::AttemptLog,
        record::{AttemptRecord, RunStore},
        segment::{Done, Segment, Stop, TaskRunner},
        shape::RunShape,
        timer::timeout,
    },
    Patience,
    session::{Live, SegmentEnd, Session},
};
use crate::machine::{Failure, State};

/// How many outages of the store one attempt lives through: a statement that itself ends the connection must end too.
const OUTAGES_MAX: u32 = 10;

impl Session<'_> {
    pub(super) fn start(&mut self, run: usize, head: usize, attempt: u32) {
        let executor = self.executor;
        let (Some(shape), Some(mut record)) = (self.board.shape(run).cloned(), self.board.segment_record(run)) else {
            return;
        };
        let (places, ends_run) = self.board.segment(run, head);
        // Segments of one run that start together have numbers of their own.
        record.attempt = attempt;
        let input = self.board.input(run, head);
        let path = AttemptLog::path_of(&shape.job, &shape.interval, &record.run_id, record.fence);
        let (folder, bytes_max) = (&executor.options.logs, executor.options.log_bytes_max);
        let log = AttemptLog::new(folder, path, attempt, bytes_max, Arc::clone(&executor.clock));
        let (run_id, fence) = (record.run_id.clone(), record.fence);
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
            input,
            record,
            places,
            run,
            ends_run,
            begun_at: executor.clock.now(),
            moves: self.moves.0.clone(),
        };
        if segment.is_alone() {
            let name = segment.tasks.first().map(ToString::to_string).unwrap_or_default();
            log.line(format!("task {name}, try {}", segment.input.tries));
        }
        // The runner of such a task ends its processes itself before it says that the time is over.
        let timeout_after = segment.timeout().filter(|_| !segment.is_alone());
        let begun = segment.attempt_record(State::Running, None);
        self.board.began(run, head, AttemptRecord { finished_at: None, ..begun.clone() });
        let (runner, store) = (Arc::clone(&executor.runner), Arc::clone(&executor.store));
        let (patience, timer) = (executor.patience(), Arc::clone(&executor.options.timer));
        let work = async move {
            let work = carry_out(runner.as_ref(), &mut segment, store.as_ref(), &patience);
            let result = match timeout_after {
                None => work.await,
                Some(after) => match timeout(timer.as_ref(), after, work).await {
                    Some(result) => result,
                    None => Err(Stop::Failed(timed_out(&segment.shape, after))),
                },
            };
            let (state, failure) = match &result {
                Ok(done) => {
                    let rows = if segment.is_alone() {
                        "done".to_owned()
                    } else {
                        format!("done: {} rows, {} bytes", done.rows, done.bytes)
                    };
                    segment.log.last_words(rows);
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
        self.live.insert(abort.id(), Live { run, head, fence, log, begun, abort: abort.clone(), cancelled: false });
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
                if !live.cancelled {
                    live.log.line(if self.cancelled {
                        "cancelled"
                    } else {
                        "stopped: another process owns this run now"
                    });
                }
                self.board.slot_freed(key);
            }
        }
    }
}

/// Does the segment's work. While the store is out of reach it waits: nothing was published, so that costs no attempt.
async fn carry_out(
    runner: &dyn TaskRunner,
    segment: &mut Segment,
    store: &dyn RunStore,
    patience: &Patience,
) -> Result<Done, Stop> {
    if let Some(failure) = segment.shape.unplanned.clone() {
        return Err(Stop::Failed(failure));
    }
    let mut outages = 0;
    loop {
        let result = runner.run(segment).await;
        match &result {
            Err(Stop::Failed(failure)) if outages < OUTAGES_MAX && store.is_outage(failure) => {
                segment.log.line(format!("the store is out of reach, the attempt waits for it: {}", failure.message));
                outages += 1;
                if patience.ask(|| store.heartbeat()).await.is_err() {
                    return result;
                }
            }
            _ => return result,
        }
    }
}

fn timed_out(shape: &RunShape, after: Duration) -> Failure {
    let message =
        format!("job `{}` took longer than its timeout of {} s for ds={}", shape.job, after.as_secs_f64(), shape.ds);
    Failure::new(ErrorKind::Exhausted, "FLOW_TIMEOUT", message)
        .with_hint("raise `timeout` in the job, or make its query smaller")
}
