//! The pure half of the executor: which run may start, who waits for which partition, what is stuck.
//!
//! Every fact comes in through a method with the time it happened; what follows comes out as [`Command`]s. Work is done per
//! fact, never per blocked task: a wait counts what it misses, a partition knows who waits for it, a job knows who is held
//! back by its limit.

mod entries;
mod entry;
mod items;
mod limits;
mod outside;
mod pools;
mod report;
mod waits;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use entries::Entries;
use entry::{Entry, Phase};
use headworks_domain::{JobName, RunId};
use limits::Limits;
use outside::Outside;
use pools::{Place, Pools, Turn};

use super::{
    placement::{Placement, Takes},
    progress::{Counts, Progress},
    record::{AttemptRecord, Claim, Kept, Partition, Release, RunRecord, SlotRequest, Slots, Trigger},
    segment::{Done, Moved, Stop},
    shape::{Request, RunShape},
};
use crate::{
    machine::{Action, Event, Failure, State},
    outside::Question,
};

/// What the loop around the board is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Start an attempt of a segment, under this number.
    Start { run: usize, head: usize, attempt: u32 },
    /// Give slots of named pools back by their numbers, then take others. The answer goes to [`Board::slots`].
    Slots { given: Vec<i64>, wanted: Vec<SlotRequest> },
    /// Keep the run's state; it is final or pauses before a retry. The answer goes to [`Board::kept`].
    Keep { run: usize, record: RunRecord },
    /// Drop the run's segments: it is somebody else's.
    Drop { run: usize },
    /// Find other processes' runs that will publish these. The answer goes to [`Board::sought`].
    Seek(Vec<Partition>),
    /// Give a run that has not begun to other processes.
    Release(Release),
    /// Ask the registry which of these are published. The answer goes to [`Board::looked`].
    Look(Vec<Partition>),
    /// Look whether something is there outside of the lake. The answer goes to [`Board::answered`].
    Inquire(Arc<Question>),
    /// Tell whoever watches.
    Tell(Progress),
}

/// All runs of one command, or all live ones of a process that serves.
///
/// A command knows all its runs and all that is published from the start, and fails runs whose inputs nobody will publish. A
/// board that serves gets runs as they come, asks the registry once a run waits, forgets runs when they are over, and lets them
/// wait as long as their job says.
#[derive(Default)]
pub(crate) struct Board {
    serves: bool,
    /// What this process carries out, when it serves.
    takes: Takes,
    runs: Entries,
    /// The live runs by what they cover; kept when serving.
    live: HashMap<Request, usize>,
    /// Runs that are over, to be removed.
    gone: Vec<usize>,
    /// Partitions that somebody waits for and the registry was not asked about yet.
    unasked: BTreeSet<Partition>,
    looking: bool,
    /// When waiting runs give up.
    wait_ends: BTreeSet<(DateTime<Utc>, usize)>,
    partitions: BTreeMap<Partition, Publication>,
    limits: Limits,
    pools: Pools,
    /// Numbers of slots to give back.
    given: Vec<i64>,
    /// Runs that are ready, and for other processes to carry out.
    misplaced: BTreeSet<usize>,
    due: BTreeSet<(DateTime<Utc>, usize, usize)>,
    unclaimed: usize,
    /// Runs that are not over.
    open: usize,
    /// Runs that miss something that nobody will publish, and since when that is known.
    blocked: BTreeMap<usize, DateTime<Utc>>,
    /// Partitions that somebody waits for and none of our runs will publish.
    doubtful: BTreeSet<Partition>,
    seeking: bool,
    /// Tasks that wait for partitions.
    waits: usize,
    outside: Outside,
    dirty: BTreeSet<usize>,
    counts: Counts,
    commands: Vec<Command>,
}

/// What is known of a partition that somebody waits for or publishes.
#[derive(Default)]
struct Publication {
    published: bool,
    /// Runs, ours or others', that are on the way to publish it.
    producers: usize,
    /// The run of ours that publishes it, if one does.
    by: Option<usize>,
    /// Tasks that wait for it, as (run, task).
    waiting: Vec<(usize, usize)>,
}

impl Board {
    pub(crate) fn new(tasks_max: usize, takes: &Takes, serves: bool) -> Self {
        let tasks_max = if serves { tasks_max } else { tasks_max.max(1) };
        Self { pools: Pools::new(tasks_max), takes: takes.clone(), serves, ..Self::default() }
    }

    /// So many slots the pools have now. One that is not named any more keeps what it had.
    pub(crate) fn resize(&mut self, pools: &BTreeMap<String, usize>) {
        self.pools.resize(pools);
    }

    /// Adds a run that was done before the command began.
    pub(crate) fn add_done(&mut self, request: Request, run_id: RunId) {
        let mut entry = Entry::new(request, Some(run_id), None);
        (entry.phase, entry.done_before) = (Phase::Over, true);
        self.runs.push(entry);
        self.counts.total += 1;
        self.counts.done_before += 1;
    }

    /// Adds a run that failed before, or could not be planned.
    pub(crate) fn add_failed(&mut self, request: Request, run_id: Option<RunId>, failure: Failure) {
        let mut entry = Entry::new(request, run_id, None);
        (entry.phase, entry.failure, entry.counted) = (Phase::Over, Some(failure), Some(State::Failed));
        self.runs.push(entry);
        self.counts.total += 1;
        self.counts.failed += 1;
    }

    /// Adds a run that is to be claimed.
    pub(crate) fn add(
        &mut self,
        request: Request,
        trigger: Trigger,
        tick: Option<DateTime<Utc>>,
        run_id: RunId,
        shape: RunShape,
    ) -> usize {
        let run = self.runs.next();
        self.limits.set(&shape.job, shape.limits.active_runs_max);
        if self.serves {
            self.live.insert(request.clone(), run);
        }
        let mut entry = Entry::new(request, Some(run_id), Some(Arc::new(shape)));
        (entry.trigger, entry.tick) = (trigger, tick);
        self.runs.push(entry);
        self.counts.total += 1;
        self.counts.waiting += 1;
        self.open += 1;
        self.unclaimed += 1;
        self.promise(run);
        run
    }

    /// The live run of a job and interval, if this board has it.
    pub(crate) fn live(&self, request: &Request) -> Option<usize> {
        self.live.get(request).copied()
    }

    /// The live runs of a job, oldest interval first.
    pub(crate) fn live_of(&self, job: &JobName) -> Vec<usize> {
        let mut live: Vec<_> = self.live.iter().filter(|(request, _)| request.job == *job).collect();
        live.sort_by_key(|(request, _)| request.interval.end());
        live.into_iter().map(|(_, run)| *run).collect()
    }

    /// The run with this id, if it is on the board.
    pub(crate) fn find(&self, run_id: &RunId) -> Option<usize> {
        self.runs.numbers().into_iter().find(|run| self.runs[*run].run_id.as_ref() == Some(run_id))
    }

    pub(crate) fn trigger(&self, run: usize) -> Trigger {
        self.runs[run].trigger
    }

    pub(crate) fn tick_of(&self, run: usize) -> Option<DateTime<Utc>> {
        self.runs[run].tick
    }

    /// The kept demand that asked for the run.
    pub(crate) fn demand_of(&self, run: usize) -> Option<i64> {
        self.runs[run].demand
    }

    /// The run was made before this process had it: its wait began then.
    pub(crate) fn made_at(&mut self, run: usize, at: DateTime<Utc>) {
        self.runs[run].made_at = Some(at);
    }

    /// The run's claim is to answer a kept demand.
    pub(crate) fn demanded(&mut self, run: usize, demand: Option<i64>) {
        self.runs[run].demand = demand;
    }

    /// While another run of the job is live, the run's claim is to leave it skipped.
    pub(crate) fn yields(&mut self, run: usize) {
        self.runs[run].yields = true;
    }

    pub(crate) fn does_yield(&self, run: usize) -> bool {
        self.runs[run].yields
    }

    /// Where the run may be carried out.
    pub(crate) fn placement(&self, run: usize) -> &Placement {
        &self.runs[run].placement
    }

    pub(crate) fn run_id(&self, run: usize) -> Option<&RunId> {
        self.runs[run].run_id.as_ref()
    }

    pub(crate) fn request(&self, run: usize) -> &Request {
        &self.runs[run].request
    }

    pub(crate) fn shape(&self, run: usize) -> Option<&Arc<RunShape>> {
        self.runs[run].shape.as_ref()
    }

    /// Takes the commands that have come together, and removes runs that are over.
    pub(crate) fn take_commands(&mut self) -> Vec<Command> {
        self.sweep();
        if !self.given.is_empty() {
            let given = std::mem::take(&mut self.given);
            self.commands.push(Command::Slots { given, wanted: Vec::new() });
        }
        std::mem::take(&mut self.commands)
    }

    /// Removes runs that are over.
    fn sweep(&mut self) {
        for run in std::mem::take(&mut self.gone) {
            self.remove(run);
        }
    }

    /// True when every run is over and every end is kept.
    pub(crate) fn is_over(&self) -> bool {
        self.open == 0
    }

    /// When the next retry or look is due, or the next wait at its end.
    pub(crate) fn next_due(&self) -> Option<DateTime<Utc>> {
        let retry = self.due.first().map(|(at, ..)| *at);
        retry.into_iter().chain(self.wait_ends.first().map(|(at, _)| *at)).chain(self.outside.next_due()).min()
    }

    /// The run was claimed by this process.
    pub(crate) fn claimed(&mut self, run: usize, claim: Claim, now: DateTime<Utc>) {
        if !self.runs.has(run) {
            return;
        }
        let entry = &mut self.runs[run];
        if entry.phase != Phase::Unclaimed {
            return;
        }
        (entry.phase, entry.claim, entry.next_attempt) = (Phase::Mine, claim, claim.attempt);
        self.unclaimed -= 1;
        if let Some(timeout) = entry.shape.as_ref().filter(|_| self.serves).and_then(|s| s.limits.wait_timeout) {
            let timeout = TimeDelta::from_std(timeout).unwrap_or(TimeDelta::MAX);
            let since = entry.made_at.unwrap_or(now);
            self.wait_ends.extend(since.checked_add_signed(timeout).map(|at| (at, run)));
        }
        self.apply(run, &Event::Begun, now);
        if self.runs[run].is_unwanted {
            self.cancel_one(run, now);
        }
    }

    /// Stops a run whose claim is on its way: whoever owns it must end it in the store.
    pub(crate) fn cancel_once_claimed(&mut self, run: usize) {
        self.runs[run].is_unwanted = true;
    }

    /// True while the run is on the board and nobody is known to own it.
    pub(crate) fn is_unclaimed(&self, run: usize) -> bool {
        self.runs.has(run) && self.runs[run].phase == Phase::Unclaimed
    }

    /// Another process owns the run.
    pub(crate) fn theirs(&mut self, run: usize, now: DateTime<Utc>) {
        if !self.runs.has(run) || self.runs[run].phase != Phase::Unclaimed {
            return;
        }
        self.unclaimed -= 1;
        self.runs[run].phase = Phase::Theirs;
        if self.serves {
            self.left(run, now);
        }
    }

    /// Another process sees to the run: a board that serves has nothing to do with it any more.
    fn left(&mut self, run: usize, now: DateTime<Utc>) {
        self.runs[run].phase = Phase::Over;
        self.given.extend(self.runs[run].job_slot);
        self.open -= 1;
        self.stop_waiting(run);
        self.release(run);
        self.withdraw(run, now);
        self.uncount(run);
        self.gone.push(run);
    }

    /// The runs that this process owns, as far as it knows, each with its fence.
    pub(crate) fn mine(&self) -> Vec<(usize, RunId, i64)> {
        let mine = self.runs.numbers().into_iter().filter(|run| self.runs[*run].phase == Phase::Mine);
        mine.filter_map(|run| Some((run, self.runs[run].run_id.clone()?, self.runs[run].claim.fence))).collect()
    }

    /// Another process has taken a run over that was this one's under `fence`.
    pub(crate) fn lost(&mut self, run: usize, fence: i64, now: DateTime<Utc>) {
        if self.runs.has(run) && self.runs[run].phase == Phase::Mine && self.runs[run].claim.fence == fence {
            self.fenced(run, now);
        }
    }

    /// True while another process owns the run.
    pub(crate) fn is_theirs(&self, run: usize) -> bool {
        self.runs.has(run) && self.runs[run].phase == Phase::Theirs
    }

    /// The run's owner is gone: it is to be claimed, under the id that it has.
    pub(crate) fn reclaim(&mut self, run: usize, run_id: RunId, shape: RunShape) {
        let entry = &mut self.runs[run];
        if entry.phase == Phase::Theirs {
            let mut fresh = Entry::new(entry.request.clone(), Some(run_id), Some(Arc::new(shape)));
            (fresh.promised, fresh.counted) = (entry.promised, entry.counted);
            fresh.trigger = entry.trigger;
            *entry = fresh;
            self.unclaimed += 1;
        }
    }

    /// Another process owns the interval under this id.
    pub(crate) fn renamed(&mut self, run: usize, run_id: RunId) {
        self.runs[run].run_id = Some(run_id);
    }

    /// Another process ended the run.
    pub(crate) fn ended_elsewhere(&mut self, run: usize, failure: Option<Failure>, now: DateTime<Utc>) {
        if self.runs[run].phase != Phase::Theirs {
            return;
        }
        match failure {
            None => {
                let entry = &mut self.runs[run];
                entry.done_before = true;
                let partitions = entry.own_partitions();
                self.published(partitions, now);
                self.over(run, State::Success, now);
            }
            Some(failure) => {
                self.runs[run].failure = Some(failure);
                self.over(run, State::Failed, now);
            }
        }
    }

    /// A task of a running segment began or ended.
    pub(crate) fn moved(&mut self, moved: &Moved) {
        if !self.runs.has(moved.run) {
            return;
        }
        let entry = &mut self.runs[moved.run];
        if entry.phase != Phase::Mine || entry.claim.fence != moved.fence {
            return;
        }
        entry.machine.apply(&Event::Moved { task: moved.task, state: moved.state, at: moved.at }, moved.at);
        self.dirty.insert(moved.run);
        if let (Some(run_id), Some(task)) = (entry.run_id.clone(), entry.machine.tasks().nth(moved.task)) {
            let (task, job) = (task.name.clone(), entry.request.job.clone());
            self.commands.push(Command::Tell(Progress::Task { run_id, job, task, state: moved.state }));
        }
    }

    /// An attempt of a segment began, with this record.
    pub(crate) fn began(&mut self, run: usize, head: usize, attempt: AttemptRecord) {
        self.runs[run].current.insert(head, attempt);
    }

    /// A segment that ran under `fence` ended. `attempt` says how, for the record.
    pub(crate) fn ended(
        &mut self,
        (run, head, fence): (usize, usize, i64),
        result: Result<Done, Stop>,
        attempt: AttemptRecord,
        now: DateTime<Utc>,
    ) {
        let number = self.pools.free((run, head, fence));
        if !self.runs.has(run) || self.runs[run].phase != Phase::Mine || self.runs[run].claim.fence != fence {
            self.given.extend(number);
            return;
        }
        let entry = &mut self.runs[run];
        // A record that ended the run has given all its slots back.
        let is_over = matches!(&result, Ok(done) if done.recorded) && entry.machine.ends_with(head);
        self.given.extend(number.filter(|_| !is_over));
        entry.current.remove(&head);
        entry.took = attempt.finished_at.and_then(|end| (end - attempt.started_at).to_std().ok());
        match result {
            Ok(done) => self.done(run, head, done, attempt, now),
            Err(Stop::Failed(failure)) => {
                entry.note_failure(head, failure.clone());
                entry.attempts.push(attempt);
                entry.note_output(head, None);
                self.dirty.insert(run);
                self.apply(run, &Event::Broke { head, retryable: failure.retryable, after: failure.retry_after }, now);
            }
            Err(Stop::Fenced) => self.fenced(run, now),
        }
    }

    fn done(&mut self, run: usize, head: usize, done: Done, attempt: AttemptRecord, now: DateTime<Utc>) {
        let entry = &mut self.runs[run];
        entry.rows += done.rows;
        entry.bytes += done.bytes;
        self.counts.rows += done.rows;
        self.counts.bytes += done.bytes;
        let is_kept = done.recorded && entry.machine.ends_with(head);
        entry.mend_failure(head);
        entry.note_output(head, done.output);
        if let Some(table) = entry.shape.as_ref().and_then(|shape| shape.table.clone()) {
            self.published(done.published.into_iter().map(|key| Partition::new(table.clone(), key)), now);
        }
        let entry = &mut self.runs[run];
        if is_kept {
            entry.machine.apply(&Event::Done { head }, now);
            self.over(run, State::Success, now);
        } else {
            entry.attempts.push(attempt);
            self.dirty.insert(run);
            self.apply(run, &Event::Done { head }, now);
        }
    }

    /// A record made under `fence` was kept, or not.
    pub(crate) fn kept(&mut self, run: usize, fence: i64, kept: Kept, now: DateTime<Utc>) {
        if !self.runs.has(run) {
            return;
        }
        let entry = &mut self.runs[run];
        if entry.claim.fence != fence {
            return;
        }
        entry.keeping = entry.keeping.saturating_sub(1);
        match (kept, entry.phase) {
            (Kept::Yes, Phase::Closing) if entry.keeping == 0 => {
                let state = entry.machine.state();
                self.over(run, state, now);
            }
            // While a segment runs its own end will tell: it may just have been kept by the publish.
            (Kept::Over(_), Phase::Mine) if entry.machine.holds_slot() => {}
            (Kept::Over(State::Success), Phase::Mine | Phase::Closing) => {
                self.forget_queued(run);
                self.published(self.runs[run].own_partitions(), now);
                self.over(run, State::Success, now);
            }
            (Kept::Over(state), Phase::Mine | Phase::Closing) => {
                self.forget_queued(run);
                self.over(run, state, now);
            }
            (Kept::Fenced, Phase::Mine | Phase::Closing) => self.fenced(run, now),
            _ => {}
        }
    }

    /// Lets retries that are due go on, has looked at what is due, and fills free slots.
    pub(crate) fn tick(&mut self, now: DateTime<Utc>) {
        self.sweep();
        while let Some(&(at, run, head)) = self.due.first().filter(|(at, ..)| *at <= now) {
            self.due.remove(&(at, run, head));
            if self.runs[run].keeping > 0 {
                // The next attempt must not begin before the end of this one is kept: their numbers would clash after a crash.
                self.due.insert((now + chrono::TimeDelta::milliseconds(20), run, head));
                continue;
            }
            self.apply(run, &Event::RetryDue { head }, now);
        }
        while let Some(&(at, run)) = self.wait_ends.first().filter(|(at, _)| *at <= now) {
            self.wait_ends.remove(&(at, run));
            if !self.runs[run].missing.is_empty() {
                self.close(run, at, now);
            }
        }
        self.inquire(now);
        self.dispatch(now);
    }

    /// The clock was set forward or back by so much. Pauses and waits that were reckoned with it keep their length.
    pub(crate) fn clock_set(&mut self, by: TimeDelta) {
        let moved = |at: DateTime<Utc>| at.checked_add_signed(by).unwrap_or(at);
        self.due = std::mem::take(&mut self.due).into_iter().map(|(at, run, head)| (moved(at), run, head)).collect();
        self.wait_ends = std::mem::take(&mut self.wait_ends).into_iter().map(|(at, run)| (moved(at), run)).collect();
        self.blocked.values_mut().for_each(|since| *since = moved(*since));
        self.outside.clock_set(moved);
    }

    /// Stops everything: nothing starts any more, and open runs end as cancelled. Running segments must be dropped before.
    pub(crate) fn cancel(&mut self, now: DateTime<Utc>) {
        self.pools.clear();
        self.due.clear();
        self.blocked.clear();
        self.doubtful.clear();
        self.outside = Outside::default();
        self.limits.forget_all();
        for run in self.runs.numbers() {
            self.cancel_one(run, now);
        }
    }

    /// Stops one run: nothing of it starts any more, and it ends as cancelled. Its running segments must be dropped before.
    pub(crate) fn cancel_one(&mut self, run: usize, now: DateTime<Utc>) {
        match self.runs[run].phase {
            Phase::Mine => {
                self.forget_queued(run);
                for attempt in std::mem::take(&mut self.runs[run].current).into_values() {
                    let ended = AttemptRecord { state: State::Cancelled, finished_at: Some(now), ..attempt };
                    self.runs[run].attempts.push(ended);
                }
                self.apply(run, &Event::Cancelled, now);
            }
            Phase::Unclaimed | Phase::Theirs => self.over(run, State::Cancelled, now),
            Phase::Closing | Phase::Over => {}
        }
    }

    /// Stops a board that serves: nothing starts any more. Runs that have not ended stay live, for whoever comes next.
    pub(crate) fn stop(&mut self) {
        self.pools.forget_all();
        self.due.clear();
        self.wait_ends.clear();
        self.outside = Outside::default();
        self.limits.forget_all();
    }

    /// True while the end of some run is on its way to the store.
    pub(crate) fn is_closing(&self) -> bool {
        self.runs.iter().any(|entry| entry.phase == Phase::Closing)
    }

    fn apply(&mut self, run: usize, event: &Event, now: DateTime<Utc>) {
        for action in self.runs[run].machine.apply(event, now) {
            match action {
                Action::Await { task } => self.wait(run, task, now),
                Action::Expand { task } => self.expand(run, task, now),
                Action::Enqueue { head } => self.admit(run, head, now),
                Action::RetryAt { head, at } => {
                    self.due.insert((at, run, head));
                    self.recount(run, State::Retry);
                    self.keep(run, None);
                    self.tell(run, State::Retry);
                }
                Action::Finish(state) => self.finish(run, state, now),
            }
        }
    }

    /// Puts a segment into the queue of its pool, or holds it back while its job is at its limit.
    fn admit(&mut self, run: usize, head: usize, now: DateTime<Utc>) {
        let entry = &self.runs[run];
        let Some(shape) = entry.shape.clone() else { return };
        if self.serves && !self.takes.may(&entry.placement) {
            self.misplaced.insert(run);
            return;
        }
        let place = place(entry, &shape, run, head);
        let options = &shape.tasks[entry.planned(head)].options;
        // Who has no slots gives the run to others, who see to the limit.
        if !entry.active && !self.pools.has_none() && self.limits.holds(&shape.job, place) {
            return;
        }
        self.pools.wait(options.pool.as_deref(), place, options.slots);
        self.apply(run, &Event::Queued { head }, now);
    }

    /// Starts what fits into the free slots, or asks for those that all processes share.
    fn dispatch(&mut self, now: DateTime<Utc>) {
        let mut wanted = self.admit_held(now);
        loop {
            let runs = &self.runs;
            match self.pools.next(|(.., run, head)| (*run, *head, runs[*run].claim.fence)) {
                None => break,
                Some(Turn::Start(place)) => self.start(place, now),
                Some(Turn::Ask { place: (.., run, head), number, pool, slots }) => {
                    let entry = &self.runs[run];
                    let task = entry.machine.tasks().nth(head).map(|task| task.name.clone());
                    if let (Some(run_id), Some(task)) = (entry.run_id.clone(), task) {
                        let fence = entry.claim.fence;
                        wanted.push(SlotRequest { number, pool, slots, run_id, fence, task });
                    }
                }
            }
        }
        if !wanted.is_empty() {
            self.pools.close_asked();
            self.commands.push(Command::Slots { given: std::mem::take(&mut self.given), wanted });
        }
    }

    /// Starts a segment that has its slots.
    fn start(&mut self, (.., run, head): Place, now: DateTime<Utc>) {
        let entry = &mut self.runs[run];
        entry.attempt = entry.next_attempt;
        entry.next_attempt += 1;
        entry.started_at.get_or_insert(now);
        let attempt = entry.attempt;
        self.apply(run, &Event::Started { head }, now);
        self.dirty.insert(run);
        self.recount(run, State::Running);
        self.tell(run, State::Running);
        self.commands.push(Command::Start { run, head, attempt });
    }

    /// The store was asked for these slots. Gives the runs that turned out to be somebody else's.
    pub(crate) fn slots(&mut self, answers: Vec<(SlotRequest, Slots)>, now: DateTime<Utc>) -> Vec<usize> {
        let mut fenced = Vec::new();
        for (request, answer) in answers {
            if let Some(asked) = self.limits.answered(&request, answer) {
                fenced.extend(self.job_slot(&request, answer, asked, now));
                continue;
            }
            match (answer, self.pools.answered(&request, answer)) {
                (Slots::Taken, Some(place)) => self.start(place, now),
                // Nobody wants them any more.
                (Slots::Taken, None) => self.given.push(request.number),
                (Slots::Fenced, Some((.., run, _))) if self.runs.has(run) && self.runs[run].phase == Phase::Mine => {
                    self.fenced(run, now);
                    fenced.push(run);
                }
                (Slots::Fenced | Slots::Full, _) => {}
            }
        }
        fenced
    }

    /// Slots that the store has given are not wanted now.
    pub(crate) fn give_back(&mut self, number: i64) {
        self.given.push(number);
    }

    /// True while somebody waits for slots that other processes have.
    pub(crate) fn awaits_slots(&self) -> bool {
        self.pools.awaits_others() || self.limits.awaits_others()
    }

    /// Others may have given slots back: full pools are asked again.
    pub(crate) fn ask_again(&mut self) {
        self.pools.ask_again();
        self.limits.ask_again();
    }

    /// The pools in which somebody waits for slots.
    pub(crate) fn full_pools(&self) -> BTreeSet<String> {
        self.pools.full()
    }

    /// How many more segments could run now.
    pub(crate) fn free(&self) -> usize {
        self.pools.room()
    }

    /// Gives runs away that are ready and have not begun: those that this process does not carry out, and those that would wait
    /// behind more than a full round of others, when one of `others` may take them. Who has no slots gives all away.
    pub(crate) fn share(&mut self, others: &[Takes], now: DateTime<Utc>) {
        for run in std::mem::take(&mut self.misplaced) {
            if self.runs.has(run) && self.runs[run].phase == Phase::Mine {
                self.give_away(run, now);
            }
        }
        let has_no_slots = self.pools.has_none();
        if others.is_empty() && !has_no_slots {
            return;
        }
        let may_go = |entry: &Entry| {
            entry.started_at.is_none() && (has_no_slots || others.iter().any(|other| other.may(&entry.placement)))
        };
        while let Some((.., run, _)) = self.pools.beyond_a_round(|run| may_go(&self.runs[run])) {
            self.give_away(run, now);
        }
    }

    fn give_away(&mut self, run: usize, now: DateTime<Utc>) {
        let entry = &self.runs[run];
        if let Some(run_id) = entry.run_id.clone() {
            let fence = entry.claim.fence;
            // That of the segment that goes first.
            let priority = self.places(run).first().map_or(0, |(priority, ..)| priority.0);
            self.commands.push(Command::Release(Release { run_id, fence, priority }));
        }
        self.forget_queued(run);
        self.dirty.remove(&run);
        self.left(run, now);
    }

    /// The run reached its end by our doing: it is to be kept.
    fn finish(&mut self, run: usize, state: State, now: DateTime<Utc>) {
        self.runs[run].phase = Phase::Closing;
        self.blocked.remove(&run);
        if self.runs[run].job_slot.is_none() {
            self.release(run);
        }
        if state != State::Success {
            self.withdraw(run, now);
        }
        self.keep(run, Some(now));
    }

    /// The run is over and kept.
    fn over(&mut self, run: usize, state: State, now: DateTime<Utc>) {
        if self.runs[run].phase == Phase::Over {
            return;
        }
        if self.runs[run].phase == Phase::Unclaimed {
            self.unclaimed -= 1;
        }
        self.runs[run].phase = Phase::Over;
        self.open -= 1;
        self.runs[run].forget_outputs();
        self.blocked.remove(&run);
        self.dirty.remove(&run);
        self.stop_waiting(run);
        self.release(run);
        self.withdraw(run, now);
        self.recount(run, state);
        self.tell(run, state);
        if self.serves {
            self.gone.push(run);
        }
    }

    /// Forgets a run that is over.
    fn remove(&mut self, run: usize) {
        if !self.runs.has(run) {
            return;
        }
        self.forget_queued(run);
        self.wait_ends.retain(|(_, waiting)| *waiting != run);
        let request = self.runs[run].request.clone();
        if self.live.get(&request) == Some(&run) {
            self.live.remove(&request);
        }
        for partition in self.runs[run].own_partitions() {
            if let Some(known) = self.partitions.get_mut(&partition).filter(|known| known.by == Some(run)) {
                known.by = None;
            }
            self.forget_partition(&partition);
        }
        if let Some(shape) = self.runs[run].shape.clone() {
            for partition in shape.waits.iter().flat_map(RunShape::partitions_of) {
                self.forget_partition(&partition);
            }
        }
        self.runs.remove(run);
    }

    /// Another process has taken the run over: this one forgets what it did and watches.
    fn fenced(&mut self, run: usize, now: DateTime<Utc>) {
        if self.runs[run].machine.holds_slot() {
            self.commands.push(Command::Drop { run });
        }
        self.forget_queued(run);
        self.stop_waiting(run);
        if self.blocked.remove(&run).is_some() {
            self.promise(run);
        }
        self.dirty.remove(&run);
        self.release(run);
        let entry = &mut self.runs[run];
        let mut fresh = Entry::new(entry.request.clone(), entry.run_id.clone(), entry.shape.clone());
        (fresh.phase, fresh.promised, fresh.counted) = (Phase::Theirs, entry.promised, entry.counted);
        fresh.trigger = entry.trigger;
        *entry = fresh;
        self.recount(run, State::Waiting);
        if self.serves {
            self.left(run, now);
        }
    }

    /// A dropped segment's slots are free again.
    pub(crate) fn slot_freed(&mut self, holder: (usize, usize, i64)) {
        self.given.extend(self.pools.free(holder));
    }

    /// The places of all segments of a run.
    fn places(&self, run: usize) -> BTreeSet<Place> {
        let entry = &self.runs[run];
        let Some(shape) = &entry.shape else { return BTreeSet::new() };
        (0..entry.machine.tasks().len()).map(|head| place(entry, shape, run, head)).collect()
    }

    /// Takes the run's segments out of all queues.
    fn forget_queued(&mut self, run: usize) {
        let places = self.places(run);
        self.pools.forget(&places);
        self.limits.forget(&self.runs[run].request.job, &places);
        self.due.retain(|due| due.1 != run);
    }
}

/// Runs of stored backfills come after all others: so much is taken from their priority, which a job sets within 1,000.
const BACKFILL_BELOW: i32 = 10_000;

/// A segment's place in a queue.
fn place(entry: &Entry, shape: &RunShape, run: usize, head: usize) -> Place {
    let own = shape.tasks.get(entry.planned(head)).and_then(|task| task.options.priority);
    let below = if entry.trigger == Trigger::Backfill { BACKFILL_BELOW } else { 0 };
    (Reverse(own.unwrap_or(shape.limits.priority) - below), shape.interval.end(), run, head)
}
