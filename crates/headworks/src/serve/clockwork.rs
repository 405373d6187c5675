//! From ticks to demands.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use headworks_flow::{exec::Ask, ticker::Clocks};
use headworks_meta::Runs;
use tokio::sync::{mpsc, watch};

use crate::live::LiveProject;

/// The longest sleep: wishes of other processes (pauses, cancels) and clocks set anew are noticed after it at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The part that knows the schedules.
pub(super) struct Clockwork {
    pub(super) runs: Arc<Runs>,
    pub(super) project: LiveProject,
    pub(super) ask: mpsc::Sender<Ask>,
    pub(super) reloads: watch::Receiver<u64>,
}

impl Clockwork {
    /// Asks for the runs of ticks until `stop` turns true.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut clocks = Clocks::default();
        let mut is_new = true;
        loop {
            let mut pause = LOOK_EVERY;
            if let Some(now) = self.time().await {
                if is_new {
                    is_new = !self.remember(&mut clocks).await;
                } else {
                    self.wishes(&mut clocks, now).await;
                }
                let project = self.project.current();
                while let Some(demands) = clocks.due(&project, now) {
                    // The executor is gone when nobody takes them.
                    if !demands.is_empty() && self.ask.send(Ask::Runs(demands)).await.is_err() {
                        return;
                    }
                }
                let until = clocks.next().and_then(|at| (at - now).to_std().ok());
                pause = until.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.reloads.changed() => is_new |= changed.is_ok(),
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// The time up to which ticks have come; `None` when the database does not answer.
    async fn time(&self) -> Option<DateTime<Utc>> {
        let time = self.runs.tick_time().await;
        time.inspect_err(|error| tracing::warn!(%error, "the database's clock could not be read")).ok()
    }

    /// Reads what is remembered of all jobs; false when the database does not answer.
    async fn remember(&self, clocks: &mut Clocks) -> bool {
        match self.runs.jobs().await {
            Ok(rows) => {
                clocks.remember(&self.project.current(), rows.into_iter().map(|row| (row.name, row.clock)));
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the jobs' clocks could not be read");
                false
            }
        }
    }

    /// Takes up what other processes want: pauses, and the ends of runs whose owner is gone.
    async fn wishes(&self, clocks: &mut Clocks, now: DateTime<Utc>) {
        match self.runs.paused().await {
            Ok(paused) => clocks.pause(&paused, now),
            Err(error) => tracing::warn!(%error, "pauses could not be read"),
        }
        // What its owner did not live to stop is nobody's to go on with.
        match self.runs.end_abandoned_wishes().await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "runs whose process is gone were cancelled as wished"),
            Err(error) => tracing::warn!(%error, "wishes for abandoned runs could not be seen to"),
        }
    }
}
