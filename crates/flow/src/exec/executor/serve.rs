//! Serving: runs come through an inbox and from processes that are gone, for as long as this one lives.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use headworks_domain::{JobName, RunId};
use serde_json::Map;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    super::{
        options::Reprocess,
        placement::Takes,
        progress::Progress,
        record::{BoxFault, Partition, RunRow, Seen, Trigger},
        serve::{Ask, Demand},
        shape::{Given, Request},
    },
    Executor,
    session::{Reply, Session},
};
use crate::{machine::State, spec::Overlap};

/// Wishes that are taken in before others wait in the inbox.
const INTAKE_MAX: usize = 10_000;

/// The most runs of dead processes that one look takes over.
const ADOPT_MAX: usize = 1_000;

/// What a session has that goes on for ever.
pub(super) struct Serving {
    inbox: mpsc::Receiver<Ask>,
    /// True once nobody can ask any more.
    inbox_closed: bool,
    intake: VecDeque<Demand>,
    /// Ticks that wait until a run is over which was made before its interval was, and the later ticks of these jobs.
    later: Vec<Demand>,
    taking: bool,
    adopting: bool,
    /// What other processes take that take up released runs.
    workers: Vec<Takes>,
    /// When running attempts are dropped, by the timer, once the process is to stop.
    pub(super) drained_by: Option<Duration>,
    /// That time is over: what the store did not take in by then is the next owner's.
    is_drain_over: bool,
}

impl Serving {
    pub(super) async fn next_ask(&mut self) -> Option<Ask> {
        if self.inbox_closed || self.intake.len() >= INTAKE_MAX {
            std::future::pending::<()>().await;
        }
        let ask = self.inbox.recv().await;
        self.inbox_closed = ask.is_none();
        ask
    }
}

/// A run that is wanted, with what there is of it.
pub(super) struct Taken {
    demand: Demand,
    /// The newest run of its interval.
    row: Option<RunRow>,
    /// An id that no run has.
    id: RunId,
    given: Given,
}

impl Executor {
    /// Carries out what comes through the inbox, and the runs of processes that are gone, until `cancel` turns true.
    ///
    /// Then nothing starts any more; running attempts may go on for [`super::ExecutorOptions::drain`]. Runs that have not ended
    /// stay live, for whoever comes next. A store out of reach is waited for. Errors: the store refuses.
    pub async fn serve(
        &self,
        inbox: mpsc::Receiver<Ask>,
        cancel: watch::Receiver<bool>,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> Result<(), BoxFault> {
        let mut background = JoinSet::new();
        let lease = self.keep_lease(&mut background);
        let serving = Serving {
            inbox,
            inbox_closed: false,
            intake: VecDeque::new(),
            later: Vec::new(),
            taking: false,
            adopting: false,
            workers: Vec::new(),
            drained_by: None,
            is_drain_over: false,
        };
        let mut session = Session::new(self, progress, lease, Some(serving));
        let result = match session.begin().await {
            Ok(()) => session.drive(cancel).await,
            Err(error) => Err(error),
        };
        session.segments.shutdown().await;
        background.shutdown().await;
        let left = self.store.leave().await;
        result?;
        left
    }
}

impl Session<'_> {
    /// Learns from which publish on it must listen.
    async fn begin(&mut self) -> Result<(), BoxFault> {
        let (_, position) = self.executor.patience().ask(|| self.executor.partitions.published(&[])).await?;
        self.position = position;
        Ok(())
    }

    pub(super) fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Runs(demands) => {
                if let Some(serving) = &mut self.serving {
                    serving.intake.extend(demands);
                }
            }
        }
    }

    /// Stops those of these runs that are ours.
    pub(super) fn cancel_runs(&mut self, ids: &[RunId]) {
        for id in ids {
            if let Some(run) = self.board.find(id) {
                self.cancel_run(run);
            }
        }
    }

    /// Stops one run of ours.
    fn cancel_run(&mut self, run: usize) {
        let before = self.to_claim.len();
        self.to_claim.retain(|(waiting, _)| *waiting != run);
        if self.board.is_unclaimed(run) && self.to_claim.len() == before {
            // Dropped now, it would stay live in the store for as long as this process lives.
            return self.board.cancel_once_claimed(run);
        }
        for live in self.live.values_mut().filter(|l| l.run == run && !l.cancelled) {
            live.cancelled = true;
            live.log.line("cancelled");
            live.abort.abort();
        }
        let now = self.now();
        self.board.cancel_one(run, now);
    }

    /// Looks what there is of the runs that are wanted.
    pub(super) fn take_in(&mut self) {
        let max = self.executor.options.claims_max;
        let board = &self.board;
        let Some(serving) = self.serving.as_mut().filter(|s| !s.taking && !s.intake.is_empty()) else { return };
        let demands: Vec<Demand> = serving.intake.drain(..serving.intake.len().min(max)).collect();
        // A live run is all that is wanted, but for a tick when it is not the tick's own: that one may not see all of its interval.
        let is_open = |d: &Demand| {
            board.live(&d.request).is_none_or(|run| d.is_tick() && board.trigger(run) != Trigger::Schedule)
        };
        let demands: Vec<Demand> = demands.into_iter().filter(is_open).collect();
        if demands.is_empty() {
            return;
        }
        serving.taking = true;
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        self.replies.spawn(async move {
            let wanted: Vec<_> = demands.iter().map(|d| (d.request.job.clone(), d.request.interval)).collect();
            let rows = patience.ask(|| store.find(&wanted)).await?;
            let ids = patience.ask(|| store.new_run_ids(demands.len())).await?;
            let mut sources: HashMap<(JobName, String), Option<String>> = HashMap::new();
            let mut taken = Vec::with_capacity(demands.len());
            for ((demand, row), id) in demands.into_iter().zip(rows).zip(ids) {
                let mut given = Given { params: demand.params.clone(), source: None };
                if let Some(row) = row.as_ref().filter(|row| row.finished_at.is_none() && !row.owner_alive) {
                    if given.params.is_empty() {
                        given.params = row.params.clone();
                    }
                    // Whoever asks for it anew means the job as it is now.
                    if demand.demand.is_none() {
                        given.source = match sources.entry((row.job.clone(), row.job_version.clone())) {
                            Entry::Occupied(known) => known.get().clone(),
                            Entry::Vacant(new) => {
                                let source = patience.ask(|| store.source(&row.job, &row.job_version)).await?;
                                new.insert(source).clone()
                            }
                        };
                    }
                }
                taken.push(Taken { demand, row, id, given });
            }
            Ok(Reply::Taken(taken))
        });
    }

    pub(super) fn taken(&mut self, taken: Vec<Taken>) {
        if let Some(serving) = &mut self.serving {
            serving.taking = false;
        }
        let mut answered: Vec<i64> = Vec::new();
        let now = self.now();
        for Taken { demand, row, id: fresh, given } in taken {
            if self.has_to_wait(&demand, row.as_ref(), now) {
                self.serving.iter_mut().for_each(|s| s.later.push(demand.clone()));
                continue;
            }
            if self.board.live(&demand.request).is_some() {
                continue;
            }
            let Some((run_id, seen)) = wanted_run(&demand, row.as_ref(), fresh) else {
                // A run that is still live decides later.
                answered.extend(demand.demand.filter(|_| row.is_some_and(|row| row.finished_at.is_some())));
                continue;
            };
            if demand.overlap == Overlap::CancelOld {
                for run in self.board.live_of(&demand.request.job) {
                    self.cancel_run(run);
                }
            }
            let planner = &self.executor.planner;
            let shape = planner
                .plan(&demand.request, &run_id, &given)
                .unwrap_or_else(|failure| planner.unplanned(&demand.request, failure));
            let run = self.board.add(demand.request, demand.trigger, demand.tick, run_id, shape);
            self.board.demanded(run, demand.demand);
            if demand.overlap == Overlap::Skip {
                self.board.yields(run);
            }
            if let Some(row) = row.filter(|row| row.finished_at.is_none()) {
                self.board.made_at(run, row.created_at);
            }
            self.to_claim.push_back((run, seen));
        }
        if !answered.is_empty() {
            let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
            self.replies.spawn(async move {
                patience.ask(|| store.answered(answered.clone())).await?;
                Ok(Reply::Answered)
            });
        }
    }

    /// True for a tick behind a live run that was made before the interval was over, for one that has not come, because the clock was
    /// set back since, and for every later tick of the job: the job's cursor must not pass a tick that has no run of its own yet.
    fn has_to_wait(&self, demand: &Demand, row: Option<&RunRow>, now: DateTime<Utc>) -> bool {
        let Some(serving) = self.serving.as_ref().filter(|_| demand.is_tick()) else { return false };
        if demand.tick.is_some_and(|tick| tick > now) {
            return true;
        }
        if serving.later.iter().any(|other| other.request.job == demand.request.job) {
            return true;
        }
        let live = self.board.live(&demand.request);
        if live.is_some_and(|run| self.board.trigger(run) == Trigger::Schedule) {
            return false;
        }
        match row.filter(|row| row.finished_at.is_none()) {
            Some(row) => (live.is_some() || row.owner_alive) && is_early(demand, row),
            // It is not claimed yet: when it was made is known later.
            None => live.is_some(),
        }
    }

    /// Somebody else was first to claim a tick's run. Whether theirs is the tick's own, another look tells.
    pub(super) fn look_at_tick_again(&mut self, run: usize) {
        if !self.board.is_unclaimed(run) || self.board.trigger(run) != Trigger::Schedule {
            return;
        }
        let (request, tick) = (self.board.request(run).clone(), self.board.tick_of(run));
        if let Some(serving) = self.serving.as_mut().filter(|_| tick.is_some()) {
            let (trigger, reprocess, overlap) = (Trigger::Schedule, Reprocess::None, Overlap::Queue);
            serving.intake.push_front(Demand {
                request,
                trigger,
                params: Map::new(),
                tick,
                demand: None,
                reprocess,
                overlap,
            });
        }
    }

    /// Looks for runs that nobody is at work on.
    pub(super) fn adopt(&mut self) {
        // Not while later ticks of the same jobs are being looked at: they would pass by.
        if let Some(serving) = self.serving.as_mut().filter(|s| !s.taking) {
            for demand in std::mem::take(&mut serving.later).into_iter().rev() {
                serving.intake.push_front(demand);
            }
        }
        let free = self.board.free();
        let Some(serving) = self.serving.as_mut().filter(|s| !s.adopting) else { return };
        serving.adopting = true;
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        // One that waits for a full pool is enough: more of them would keep the room from runs that could go on.
        let takes = Takes { full: self.board.full_pools(), ..self.executor.options.takes.clone() };
        self.replies.spawn(async move {
            let rows = patience.ask(|| store.abandoned(ADOPT_MAX, free, &takes)).await?;
            let workers = patience.ask(|| store.workers()).await?;
            Ok(Reply::Abandoned { rows, workers })
        });
    }

    /// True while released runs of others could be taken up at once.
    pub(super) fn takes_released(&self) -> bool {
        let is_free = |s: &Serving| !s.adopting && !s.taking && s.intake.is_empty();
        self.executor.options.pull
            && self.serving.as_ref().is_some_and(is_free)
            && !self.claiming
            && self.to_claim.is_empty()
            && self.board.free() > 0
    }

    /// Something was committed: what was published is read, released runs are looked for, and full pools asked again.
    pub(super) fn changed(&mut self) {
        if self.board.awaits_slots() {
            let now = self.elapsed();
            self.slots_again.get_or_insert(self.slots_after.max(now));
        }
        if self.takes_released() {
            self.adopt();
        }
        self.follow();
    }

    /// Reads what was published, when somebody waits for any of it: at once, or after the reading that is on its way.
    pub(super) fn follow(&mut self) {
        self.behind = self.feeding;
        if self.board.awaits_partitions() && !self.feeding {
            self.read_feed(self.executor.options.listen);
        }
    }

    /// Gives away what others are to do, or would do sooner.
    pub(super) fn share(&mut self, now: DateTime<Utc>) {
        if let Some(serving) = &self.serving {
            self.board.share(&serving.workers, now);
        }
    }

    pub(super) fn release(&mut self) {
        if self.to_release.is_empty() {
            return;
        }
        let runs = std::mem::take(&mut self.to_release);
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        self.replies.spawn(async move {
            patience.ask(|| store.release(runs.clone())).await?;
            Ok(Reply::Released)
        });
    }

    pub(super) fn abandoned(&mut self, rows: Vec<RunRow>, workers: Vec<Takes>) {
        let Some(serving) = &mut self.serving else { return };
        (serving.adopting, serving.workers) = (false, workers);
        serving.intake.extend(rows.into_iter().map(|row| Demand {
            request: Request { job: row.job, interval: row.interval },
            trigger: row.trigger,
            params: Map::new(),
            tick: None,
            demand: None,
            reprocess: Reprocess::None,
            overlap: Overlap::Queue,
        }));
    }

    /// Asks the registry which of these are published.
    pub(super) fn look(&mut self, asked: Vec<Partition>) {
        let (registry, patience) = (Arc::clone(&self.executor.partitions), self.executor.patience());
        self.replies.spawn(async move {
            let (published, _) = patience.ask(|| registry.published(&asked)).await?;
            Ok(Reply::Looked(published))
        });
    }

    /// True when the process is to stop and nothing of it is at work.
    pub(super) fn is_drained(&self) -> bool {
        let is_kept = || !self.claiming && !self.keeping && self.to_keep.is_empty() && !self.board.is_closing();
        let is_drain_over = self.serving.as_ref().is_some_and(|serving| serving.is_drain_over);
        self.cancelled && self.segments.is_empty() && (is_drain_over || is_kept())
    }

    /// Drops what still runs: its time is over.
    pub(super) fn end_drain(&mut self) {
        if let Some(serving) = &mut self.serving {
            (serving.drained_by, serving.is_drain_over) = (None, true);
        }
        self.segments.abort_all();
    }
}

/// True when a run was not made by a tick, and before its interval was over.
fn is_early(demand: &Demand, row: &RunRow) -> bool {
    row.trigger != Trigger::Schedule && row.created_at < demand.request.interval.end()
}

/// Under which id a run is to be carried out, given the newest one of its interval; `None` when there is nothing to do.
fn wanted_run(demand: &Demand, row: Option<&RunRow>, fresh: RunId) -> Option<(RunId, Option<Seen>)> {
    let Some(row) = row else { return Some((fresh, None)) };
    let seen = Some(Seen::from(row));
    let Some(_) = row.finished_at else { return (!row.owner_alive).then(|| (row.id.clone(), seen)) };
    if row.was_passed_over() && demand.trigger != Trigger::Schedule {
        return Some((row.id.clone(), seen));
    }
    match (demand.trigger, demand.reprocess) {
        // One that began before its interval was over has not seen all of it: the tick's own run comes after it.
        (Trigger::Schedule, _) => is_early(demand, row).then_some((fresh, seen)),
        (_, Reprocess::None) => (row.state == State::Cancelled).then(|| (row.id.clone(), seen)),
        (_, Reprocess::Failed) => (row.state != State::Success).then(|| (row.id.clone(), seen)),
        (_, Reprocess::All) if row.state == State::Success => Some((fresh, seen)),
        (_, Reprocess::All) => Some((row.id.clone(), seen)),
    }
}
