//! From ticks to demands.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use headworks_domain::{Clock, JobName};
use headworks_flow::{
    exec::{Ask, Demand, Reprocess, Request, Trigger},
    ticker::JobClock,
};
use headworks_meta::Runs;
use tokio::sync::{mpsc, watch};

use crate::live::LiveProject;

/// The longest sleep: wishes of other processes (pauses, cancels) and clocks set anew are noticed after it at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The most runs of one job asked for at once; the rest follows when the executor has taken them.
const RUNS_AT_ONCE: usize = 200;

/// The part that knows the schedules.
pub(super) struct Clockwork {
    pub(super) runs: Arc<Runs>,
    pub(super) project: LiveProject,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ask: mpsc::Sender<Ask>,
    pub(super) reloads: watch::Receiver<u64>,
}

/// What it has in mind.
#[derive(Default)]
struct Mind {
    clocks: HashMap<JobName, JobClock>,
    /// When each job is to be looked at next.
    next: BTreeSet<(DateTime<Utc>, JobName)>,
}

impl Clockwork {
    /// Asks for the runs of ticks until `stop` turns true.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut mind = Mind::default();
        let mut is_new = true;
        loop {
            if is_new {
                is_new = !self.remember(&mut mind).await;
            } else {
                self.wishes(&mut mind).await;
            }
            let now = self.clock.now();
            while let Some((at, job)) = mind.next.first().cloned().filter(|(at, _)| *at <= now) {
                mind.next.remove(&(at, job.clone()));
                if self.tick(&mut mind, job, now).await.is_err() {
                    return;
                }
            }
            let until = mind.next.first().and_then(|(at, _)| (*at - self.clock.now()).to_std().ok());
            let pause = until.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.reloads.changed() => is_new |= changed.is_ok(),
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Reads what is remembered of all jobs; false when the database does not answer.
    async fn remember(&self, mind: &mut Mind) -> bool {
        let rows = match self.runs.jobs().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "the jobs' clocks could not be read");
                return false;
            }
        };
        let project = self.project.current();
        let mut clocks = HashMap::new();
        for row in rows {
            if project.jobs.contains_key(&row.name) {
                let mut clock = row.clock;
                // What was asked for is seen to, even if its claim is still on its way.
                let asked = mind.clocks.get(&row.name).and_then(|known| known.cursor);
                clock.cursor = clock.cursor.max(asked);
                clocks.insert(row.name, clock);
            }
        }
        mind.clocks = clocks;
        mind.next = mind.clocks.keys().map(|job| (DateTime::<Utc>::MIN_UTC, job.clone())).collect();
        true
    }

    /// Takes up what other processes want: pauses, and the ends of runs whose owner is gone.
    async fn wishes(&self, mind: &mut Mind) {
        match self.runs.paused().await {
            Ok(paused) => {
                let now = self.clock.now();
                for (job, clock) in &mut mind.clocks {
                    let is_paused = paused.contains(job);
                    if std::mem::replace(&mut clock.paused, is_paused) != is_paused {
                        mind.next.retain(|(_, known)| known != job);
                        mind.next.insert((now, job.clone()));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "pauses could not be read"),
        }
        // What its owner did not live to stop is nobody's to go on with.
        match self.runs.end_abandoned_wishes().await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "runs whose process is gone were cancelled as wished"),
            Err(error) => tracing::warn!(%error, "wishes for abandoned runs could not be seen to"),
        }
    }

    /// Asks for what a job's clock wants now. Errors: the executor is gone.
    async fn tick(&self, mind: &mut Mind, name: JobName, now: DateTime<Utc>) -> Result<(), ()> {
        let project = self.project.current();
        let (Some(job), Some(clock)) = (project.jobs.get(&name), mind.clocks.get_mut(&name)) else { return Ok(()) };
        let due = job.due_runs(clock, now, RUNS_AT_ONCE);
        let is_all = due.runs.len() < RUNS_AT_ONCE;
        if !due.runs.is_empty() {
            tracing::debug!(job = %name, runs = due.runs.len(), "runs are due");
            let demands = due.runs.into_iter().map(|run| Demand {
                request: Request { job: name.clone(), interval: run.interval },
                trigger: Trigger::Schedule,
                tick: Some(run.tick),
                demand: None,
                reprocess: Reprocess::None,
                overlap: job.spec.overlap,
            });
            self.ask.send(Ask::Runs(demands.collect())).await.map_err(|_| ())?;
        }
        clock.cursor = clock.cursor.max(due.cursor);
        let next = if is_all { job.next_tick(clock, now) } else { Some(now) };
        mind.next.extend(next.map(|at| (at, name)));
        Ok(())
    }
}
