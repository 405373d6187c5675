//! The loop around the board: it claims runs, starts segments, keeps states, listens to publishes.

mod attempts;
mod lease;
mod others;
mod outside;
mod serve;
mod session;

use std::{future::Future, sync::Arc, time::Duration};

use chrono::TimeDelta;
use headworks_domain::{Clock, RunId};
use lease::{Lease, Renewal};
use session::Session;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    log::AttemptLog,
    options::ExecutorOptions,
    progress::{Progress, Summary},
    record::{BoxFault, Partitions, RunStore},
    segment::TaskRunner,
    shape::{Planner, Request, RunShape},
    timer::{Ticks, Timer, sleep},
};

/// Carries out runs to their end: in parallel, in the order that their waits ask for, each once.
///
/// A store hands out runs per process, so an executor needs a store handle of its own.
pub struct Executor {
    /// Keeps the runs.
    pub store: Arc<dyn RunStore>,
    /// Knows what is published.
    pub partitions: Arc<dyn Partitions>,
    /// Plans the runs.
    pub planner: Arc<dyn Planner>,
    /// Does the work.
    pub runner: Arc<dyn TaskRunner>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// How to work.
    pub options: ExecutorOptions,
}

/// The longest pause after a renewal of the lease that failed.
const HEARTBEAT_AGAIN: Duration = Duration::from_millis(500);

/// The longest that a run may wait for what nobody will publish.
const WAIT_MAX: TimeDelta = TimeDelta::days(36_500);

impl Executor {
    /// Renews the lease in the background, and tells of it.
    fn keep_lease(&self, background: &mut JoinSet<()>) -> Lease {
        let timer = Arc::clone(&self.options.timer);
        let (tell, renewals) = watch::channel(Renewal::first(timer.elapsed()));
        let ticks = Ticks::new(&timer, self.options.heartbeat);
        background.spawn(heartbeats(Arc::clone(&self.store), timer, ticks, tell));
        Lease::new(renewals, self.store.lease())
    }

    fn patience(&self) -> Patience {
        Patience { tries_max: self.options.store_tries, timer: Arc::clone(&self.options.timer) }
    }

    /// Carries out all requests and says how they ended. Failed runs are no error: the summary has them.
    ///
    /// Once `cancel` turns true nothing starts any more, running attempts are dropped, and open runs are recorded as cancelled.
    /// Nobody needs to read `progress`. Errors: the store or the registry is out of reach for two minutes, or refuses; runs
    /// that are open then stay so, and the next command takes them over.
    pub async fn run(
        &self,
        requests: Vec<Request>,
        cancel: watch::Receiver<bool>,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> Result<Summary, BoxFault> {
        let mut background = JoinSet::new();
        let lease = self.keep_lease(&mut background);
        let mut session = Session::new(self, progress, lease, None);
        let result = match session.plan(requests).await {
            Ok(()) => session.drive(cancel).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            session.segments.shutdown().await;
        }
        background.shutdown().await;
        let left = self.store.leave().await;
        let cancelled = result?;
        left?;
        let log_of = |shape: &RunShape, run_id: &RunId, fence| {
            self.options.logs.join(AttemptLog::path_of(&shape.job, &shape.interval, run_id, fence))
        };
        Ok(session.board.summary(cancelled, log_of))
    }
}

/// Renews the lease for as long as it is polled. A store out of reach costs nothing yet: the fence keeps others' work safe.
async fn heartbeats(
    store: Arc<dyn RunStore>,
    timer: Arc<dyn Timer>,
    mut ticks: Ticks,
    renewals: watch::Sender<Renewal>,
) {
    loop {
        ticks.tick().await;
        let at = timer.elapsed();
        match store.heartbeat().await {
            Ok(()) => renewals.send_modify(|last| *last = last.followed(at, timer.elapsed(), store.lease())),
            Err(error) => {
                tracing::warn!(%error, "the lease could not be renewed");
                // A lease that was not renewed for a while may end right after the store is back.
                ticks.hurry(HEARTBEAT_AGAIN);
            }
        }
    }
}

/// Asks again while the store is out of reach.
#[derive(Clone)]
struct Patience {
    tries_max: u32,
    timer: Arc<dyn Timer>,
}

impl Patience {
    async fn ask<T, F>(&self, mut ask: impl FnMut() -> F) -> Result<T, BoxFault>
    where
        F: Future<Output = Result<T, BoxFault>>,
    {
        let mut tries = 0;
        loop {
            match ask().await {
                Err(error) if error.is_retryable() && tries < self.tries_max => {
                    tries += 1;
                    tracing::warn!(%error, tries, "the store did not answer");
                    let pause = Duration::from_millis(10 << tries.min(8)).min(Duration::from_secs(2));
                    sleep(self.timer.as_ref(), pause).await;
                }
                answer => return answer,
            }
        }
    }
}
