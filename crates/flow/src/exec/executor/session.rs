//! One command's loop: facts go to the board, what the board commands is done.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{ErrorKind, Fault, RunId};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, Id, JoinError, JoinSet, yield_now},
};

use super::{
    super::{
        Error,
        board::{Board, Command},
        log::AttemptLog,
        options::Reprocess,
        placement::Takes,
        progress::Progress,
        record::{
            AttemptRecord, BoxFault, Claim, ClaimRequest, Kept, Partition, Producer, Release, RunRecord, RunRow, Seen,
            SlotRequest, Slots, Standing, Trigger,
        },
        segment::{Done, Moved, Stop},
        serve::Ask,
        shape::{Given, Request},
        timer::{Ticks, sleep_until},
    },
    Executor, WAIT_MAX,
    lease::Lease,
    outside::Looked,
    serve::{Serving, Taken},
};
use crate::machine::{Failure, State};

/// So many runs are planned before others on the same thread, as the progress, get their turn.
const PLANS_AT_ONCE: usize = 64;

/// A clock that is off by more than this from what has passed was set anew.
const CLOCK_STEP: TimeDelta = TimeDelta::seconds(1);

/// The most records kept in one commit.
const RECORDS_MAX: usize = 500;

/// What a piece of input or output came back with.
pub(super) enum Reply {
    Claimed(Vec<(usize, Option<Claim>)>),
    /// Runs, the fences of their records, and what became of these.
    Kept(Vec<(usize, i64, Kept)>),
    /// What became of wishes for slots, and when they were made, by the timer.
    Slots {
        answers: Vec<(SlotRequest, Slots)>,
        asked_at: Duration,
    },
    Sought {
        asked: Vec<Partition>,
        found: Vec<Producer>,
    },
    Feed {
        published: Vec<Partition>,
        position: i64,
        read_at: DateTime<Utc>,
    },
    Standing {
        entries: Vec<(usize, Standing)>,
        producers: Vec<(RunId, Standing)>,
        took: Duration,
    },
    Found(Vec<(usize, Option<RunRow>)>),
    /// These of what was asked are published.
    Looked(Vec<Partition>),
    /// What was asked for, each with the newest run of its interval and an id for a new one.
    Taken(Vec<Taken>),
    /// Runs that nobody is at work on, and what other processes would take up of ours.
    Abandoned {
        rows: Vec<RunRow>,
        workers: Vec<Takes>,
    },
    Released,
    /// Runs of ours, with their fences, that others have taken over, as seen after so many late renewals of the lease.
    Lost {
        late: u64,
        lost: Vec<(usize, i64)>,
    },
    /// Runs of ours that somebody wants cancelled.
    Wished(Vec<RunId>),
    /// It is kept that some demands ask for nothing.
    Answered,
    ProducersGone {
        published: Vec<Partition>,
        position: i64,
        gone: Vec<RunId>,
    },
}

/// What a segment's task gives back.
pub(super) struct SegmentEnd {
    pub(super) result: Result<Done, Stop>,
    pub(super) attempt: AttemptRecord,
}

/// A segment that runs.
pub(super) struct Live {
    pub(super) run: usize,
    pub(super) head: usize,
    pub(super) fence: i64,
    pub(super) log: AttemptLog,
    pub(super) begun: AttemptRecord,
    pub(super) abort: AbortHandle,
    /// It was stopped by a wish, and its log says so.
    pub(super) cancelled: bool,
}

/// How a run stood when it was asked for.
pub(super) enum Before {
    /// Another process is at work on it.
    Held,
    /// Nobody is; the newest run of its interval, if there was one.
    Free(Option<Seen>),
}

pub(super) struct Session<'a> {
    pub(super) executor: &'a Executor,
    pub(super) board: Board,
    pub(super) progress: mpsc::UnboundedSender<Progress>,
    pub(super) lease: Lease,
    pub(super) segments: JoinSet<SegmentEnd>,
    pub(super) live: HashMap<Id, Live>,
    pub(super) replies: JoinSet<Result<Reply, BoxFault>>,
    /// Looks at the outside world that are under way.
    pub(super) looks: JoinSet<Looked>,
    pub(super) moves: (mpsc::UnboundedSender<Moved>, mpsc::UnboundedReceiver<Moved>),
    /// Runs to claim, with the newest run of their interval.
    pub(super) to_claim: VecDeque<(usize, Option<Seen>)>,
    pub(super) claiming: bool,
    pub(super) to_keep: VecDeque<(usize, RunRecord)>,
    pub(super) keeping: bool,
    /// Runs to give to other processes.
    pub(super) to_release: Vec<Release>,
    /// When full pools are asked again, by the timer: something was committed.
    pub(super) slots_again: Option<Duration>,
    /// Not before, so that many commits cost one asking.
    pub(super) slots_after: Duration,
    pub(super) feeding: bool,
    /// Something was committed since the reading of the registry began that is on its way.
    pub(super) behind: bool,
    pub(super) position: i64,
    /// Our runs that other processes own.
    pub(super) theirs: Vec<usize>,
    /// Other processes' runs that publish what ours wait for.
    pub(super) producers: HashMap<RunId, Vec<Partition>>,
    pub(super) polling: bool,
    /// The clock and the timer as they were last seen together.
    pub(super) clock_seen: (DateTime<Utc>, Duration),
    pub(super) poll_after: Duration,
    /// When the reading of the registry began that ended last.
    pub(super) read_at: DateTime<Utc>,
    pub(super) cancelled: bool,
    pub(super) cancel_told: bool,
    /// A look at the wishes for our runs is on its way.
    pub(super) wishing: bool,
    /// What a session has that goes on for ever.
    pub(super) serving: Option<Serving>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        executor: &'a Executor,
        progress: mpsc::UnboundedSender<Progress>,
        lease: Lease,
        serving: Option<Serving>,
    ) -> Self {
        Self {
            board: Board::new(executor.options.tasks_max, &executor.options.takes, serving.is_some()),
            serving,
            executor,
            progress,
            lease,
            segments: JoinSet::new(),
            live: HashMap::new(),
            replies: JoinSet::new(),
            looks: JoinSet::new(),
            moves: mpsc::unbounded_channel(),
            to_claim: VecDeque::new(),
            claiming: false,
            to_keep: VecDeque::new(),
            keeping: false,
            to_release: Vec::new(),
            slots_again: None,
            slots_after: Duration::ZERO,
            feeding: false,
            behind: false,
            position: 0,
            theirs: Vec::new(),
            producers: HashMap::new(),
            polling: false,
            clock_seen: (executor.clock.now(), executor.options.timer.elapsed()),
            poll_after: Duration::ZERO,
            read_at: DateTime::<Utc>::MIN_UTC,
            cancelled: false,
            cancel_told: false,
            wishing: false,
        }
    }

    /// The time on the clock. Notices one that was set, before anything is reckoned with it: a pause of a second must not become
    /// one of two hours.
    pub(super) fn now(&mut self) -> DateTime<Utc> {
        let (now, elapsed) = (self.executor.clock.now(), self.elapsed());
        let (then, before) = std::mem::replace(&mut self.clock_seen, (now, elapsed));
        let off = now - then - TimeDelta::from_std(elapsed.saturating_sub(before)).unwrap_or_default();
        if off.abs() > CLOCK_STEP {
            tracing::warn!(seconds = off.num_seconds(), "the clock was set");
            self.board.clock_set(off);
            self.read_at = self.read_at.checked_add_signed(off).unwrap_or(self.read_at);
        }
        now
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.executor.options.timer.elapsed()
    }

    /// The bound of waiting; a century at most, so that it can be added to a time.
    pub(super) fn wait(&self) -> TimeDelta {
        TimeDelta::from_std(self.executor.options.wait).map_or(WAIT_MAX, |wait| wait.min(WAIT_MAX))
    }

    /// Looks what there is of each run, plans those that are to be carried out, and reads what is published.
    pub(super) async fn plan(&mut self, requests: Vec<Request>) -> Result<(), BoxFault> {
        let executor = self.executor;
        let (store, patience) = (&executor.store, executor.patience());
        let wanted: Vec<_> = requests.iter().map(|r| (r.job.clone(), r.interval)).collect();
        let rows = patience.ask(|| store.find(&wanted)).await?;
        let mut ids = patience.ask(|| store.new_run_ids(requests.len())).await?.into_iter();
        for (n, (request, row)) in requests.into_iter().zip(rows).enumerate() {
            if n % PLANS_AT_ONCE == 0 {
                yield_now().await;
            }
            let fresh = ids.next();
            let seen = row.as_ref().map(Seen::from);
            let ended = row.as_ref().filter(|r| r.finished_at.is_some()).map(|r| r.state);
            let given = self.given(row.as_ref());
            match (row, ended, executor.options.reprocess) {
                (Some(row), Some(State::Failed), Reprocess::None) => {
                    self.board.add_failed(request, Some(row.id.clone()), failure_of(&row));
                }
                (Some(row), Some(State::Success), Reprocess::None | Reprocess::Failed) => {
                    self.board.add_done(request, row.id);
                }
                (None, ..) | (_, Some(State::Success), _) => {
                    if let Some(id) = fresh {
                        self.plan_one(request, id, &given, Before::Free(seen));
                    }
                }
                (Some(row), ..) if row.is_held() => self.plan_one(request, row.id, &given, Before::Held),
                (Some(row), ..) => self.plan_one(request, row.id, &given, Before::Free(seen)),
            }
        }
        // What can start first is claimed first.
        let board = &self.board;
        self.to_claim.make_contiguous().sort_by_key(|(run, _)| board.request(*run).interval.end());
        let awaited = self.board.awaited();
        let registry = &executor.partitions;
        let (published, position) = patience.ask(|| registry.published(&awaited)).await?;
        self.position = position;
        let now = self.now();
        self.board.published(published, now);
        self.tell(Progress::Planned(self.board.counts()));
        Ok(())
    }

    /// What a run of a command is planned with: the newest version of its job, and the command's parameters or, when it has none
    /// and goes on with a run, that run's own.
    pub(super) fn given(&self, row: Option<&RunRow>) -> Given {
        let own = row.filter(|row| row.finished_at.is_none()).map(|row| &row.params);
        let params = Some(&self.executor.options.params).filter(|params| !params.is_empty()).or(own);
        Given { params: params.cloned().unwrap_or_default(), source: None }
    }

    fn plan_one(&mut self, request: Request, run_id: RunId, given: &Given, before: Before) {
        match self.executor.planner.plan(&request, &run_id, given) {
            Err(failure) => self.board.add_failed(request, None, failure),
            Ok(shape) => {
                let run = self.board.add(request, Trigger::Manual, None, run_id, shape);
                match before {
                    Before::Free(seen) => self.to_claim.push_back((run, seen)),
                    Before::Held => {
                        let now = self.now();
                        self.board.theirs(run, now);
                        self.theirs.push(run);
                    }
                }
            }
        }
    }

    /// Goes on until every run is over; true when it was cancelled.
    pub(super) async fn drive(&mut self, cancel: watch::Receiver<bool>) -> Result<bool, BoxFault> {
        let options = &self.executor.options;
        let stop = asked_to_stop(cancel);
        tokio::pin!(stop);
        let mut changes = self.executor.partitions.changes();
        let mut changes_end = false;
        let timer = options.timer.as_ref();
        let mut adopt = Ticks::new(&options.timer, options.adopt);
        let mut flush = Ticks::new(&options.timer, options.flush);
        loop {
            let holds_lease = self.step();
            let is_over = match &self.serving {
                None => self.board.is_over() && !self.claiming && !self.keeping,
                Some(_) => self.is_drained(),
            };
            if is_over {
                return Ok(self.cancelled);
            }
            let now = self.now();
            let close = self
                .board
                .blocked_since()
                .filter(|_| !self.feeding && !self.cancelled)
                .map(|since| since + self.wait());
            let due = self.board.next_due().filter(|_| holds_lease).into_iter().chain(close).min();
            let due = due.map(|at| self.elapsed() + (at - now).to_std().unwrap_or_default());
            let listens = (self.board.awaits_partitions() && !self.feeding
                || self.takes_released()
                || self.board.awaits_slots() && self.slots_again.is_none())
                && !changes_end
                && !self.cancelled;
            let watches = !self.polling && !self.cancelled && (!self.theirs.is_empty() || !self.producers.is_empty());
            let drained_by = self.serving.as_ref().and_then(|s| s.drained_by);
            // In this order, so that what happens next depends on what happened and on nothing else. Ends of work come before new
            // work; nothing of it comes so often that the last would starve.
            tokio::select! {
                biased;
                () = &mut stop, if !self.cancelled => self.cancel(),
                () = sleep_until(timer, drained_by), if drained_by.is_some() => self.end_drain(),
                Some(ended) = self.segments.join_next_with_id(), if !self.segments.is_empty() => self.segment_ended(ended),
                Some(reply) = self.replies.join_next(), if !self.replies.is_empty() => self.reply(joined(reply)?)?,
                Some(looked) = self.looks.join_next(), if !self.looks.is_empty() => self.looked(looked),
                Some(moved) = self.moves.1.recv() => {
                    self.board.moved(&moved);
                    while let Ok(moved) = self.moves.1.try_recv() {
                        self.board.moved(&moved);
                    }
                }
                changed = changes.changed(), if listens => match changed {
                    Ok(()) => self.changed(),
                    Err(_) => changes_end = true,
                },
                () = self.lease.renewed(), if !holds_lease => {}
                () = sleep_until(timer, Some(self.poll_after)), if watches => self.poll(),
                () = sleep_until(timer, self.slots_again), if self.slots_again.is_some() => self.ask_again(),
                () = sleep_until(timer, due), if due.is_some() => {}
                () = flush.tick() => self.flush(),
                () = adopt.tick(), if self.serving.is_some() && !self.cancelled => self.adopt(),
                Some(ask) = next_ask(&mut self.serving), if !self.cancelled => self.asked(ask),
            }
        }
    }

    /// Does what can be done without waiting for anything; true while our runs are ours, so that some of it may begin.
    fn step(&mut self) -> bool {
        let now = self.now();
        let holds_lease = self.holds_lease();
        if self.cancelled && self.serving.is_some() {
            self.board.stop();
        } else if self.cancelled {
            if !self.cancel_told && self.segments.is_empty() && !self.claiming {
                self.cancel_told = true;
                self.board.cancel(now);
            }
        } else {
            self.board.resize(&self.executor.planner.pools());
            if holds_lease {
                self.board.tick(now);
                self.share(now);
            }
            self.take_in();
            if holds_lease {
                self.claim();
            }
            self.board.look();
            self.board.seek();
            self.close_blocked(now);
        }
        for command in self.board.take_commands() {
            match command {
                Command::Start { run, head, attempt } => self.start(run, head, attempt),
                Command::Slots { given, wanted } => self.slots(given, wanted),
                Command::Keep { run, record } => self.to_keep.push_back((run, record)),
                Command::Drop { run } => {
                    self.watch(run);
                    self.live.values().filter(|l| l.run == run).for_each(|l| l.abort.abort());
                }
                Command::Seek(asked) => self.seek(asked),
                Command::Look(asked) => self.look(asked),
                Command::Inquire(question) => self.inquire(question),
                Command::Release(release) => self.to_release.push(release),
                Command::Tell(progress) => self.tell(progress),
            }
        }
        self.keep();
        self.release();
        holds_lease
    }

    fn tell(&self, progress: Progress) {
        if let Progress::Run(run, _) = &progress {
            let (state, attempt) = (run.state, run.attempt);
            tracing::debug!(job = %run.job, run_id = %run.run_id, ds = %run.ds, attempt, rows = run.rows, %state, "run changed");
        }
        // Nobody has to listen.
        let _ = self.progress.send(progress);
    }

    fn claim(&mut self) {
        if self.claiming || self.to_claim.is_empty() {
            return;
        }
        let batch: Vec<_> = self.to_claim.drain(..self.to_claim.len().min(self.executor.options.claims_max)).collect();
        let (runs, wanted): (Vec<usize>, Vec<ClaimRequest>) =
            batch.into_iter().filter_map(|(run, seen)| Some((run, self.claim_request(run, seen)?))).unzip();
        self.claiming = true;
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        self.replies.spawn(async move {
            let claims = patience.ask(|| store.claim(wanted.clone())).await?;
            Ok(Reply::Claimed(runs.into_iter().zip(claims).collect()))
        });
    }

    fn claim_request(&self, run: usize, seen: Option<Seen>) -> Option<ClaimRequest> {
        let shape = self.board.shape(run)?;
        Some(ClaimRequest {
            run_id: self.board.run_id(run)?.clone(),
            job: shape.job.clone(),
            job_version: shape.job_version.clone(),
            table: shape.table.clone(),
            interval: shape.interval,
            ds: shape.ds,
            partitions: shape.partitions.first().cloned().zip(shape.partitions.last().cloned()),
            tasks: shape.tasks.iter().map(|t| t.name.clone()).collect(),
            trigger: self.board.trigger(run),
            params: shape.params.clone(),
            tick: self.board.tick_of(run),
            demand: self.board.demand_of(run),
            placement: self.board.placement(run).clone(),
            yields: self.board.does_yield(run),
            seen,
        })
    }

    /// Keeps what is to be kept, one commit at a time, so that what comes meanwhile shares the next.
    fn keep(&mut self) {
        if self.keeping || self.to_keep.is_empty() {
            return;
        }
        let (runs, records): (Vec<usize>, Vec<RunRecord>) =
            self.to_keep.drain(..self.to_keep.len().min(RECORDS_MAX)).unzip();
        self.keeping = true;
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        self.replies.spawn(async move {
            let kept = patience.ask(|| store.record(records.clone())).await?;
            let fences = records.iter().map(|r| r.fence);
            Ok(Reply::Kept(
                runs.into_iter().zip(fences).zip(kept).map(|((run, fence), kept)| (run, fence, kept)).collect(),
            ))
        });
    }

    fn slots(&mut self, given: Vec<i64>, wanted: Vec<SlotRequest>) {
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        let asked_at = self.elapsed();
        self.replies.spawn(async move {
            let answers = patience.ask(|| store.slots(given.clone(), wanted.clone())).await?;
            Ok(Reply::Slots { answers: wanted.into_iter().zip(answers).collect(), asked_at })
        });
    }

    /// An answer that comes late may be older than the lease, as when this process stood still: then others have the slots by right.
    /// And nothing begins while the runs may be others' by now.
    fn slots_answered(&mut self, mut answers: Vec<(SlotRequest, Slots)>, asked_at: Duration) {
        let (now, elapsed) = (self.now(), self.elapsed());
        let is_late = elapsed.saturating_sub(asked_at) > self.executor.options.heartbeat;
        if is_late || !self.holds_lease() {
            for (request, answer) in answers.iter_mut().filter(|(_, answer)| *answer == Slots::Taken) {
                self.board.give_back(request.number);
                *answer = Slots::Full;
            }
        }
        self.slots_after = elapsed + self.executor.options.listen;
        for run in self.board.slots(answers, now) {
            self.watch(run);
        }
    }

    fn ask_again(&mut self) {
        self.slots_again = None;
        self.board.ask_again();
    }

    fn flush(&mut self) {
        if !self.cancelled {
            self.to_keep.extend(self.board.take_dirty());
        }
        // The lease of a process that is gone ends without a commit.
        self.ask_again();
        self.live.values().for_each(|l| l.log.flush());
        self.look_for_wishes();
    }

    /// Looks whether somebody wants runs of ours cancelled.
    fn look_for_wishes(&mut self) {
        if self.wishing || self.cancelled {
            return;
        }
        self.wishing = true;
        let store = Arc::clone(&self.executor.store);
        self.replies.spawn(async move {
            let wished = store.cancel_wishes().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "wishes for runs could not be read");
                Vec::new()
            });
            Ok(Reply::Wished(wished))
        });
    }

    fn reply(&mut self, reply: Reply) -> Result<(), BoxFault> {
        let now = self.now();
        match reply {
            Reply::Claimed(claims) => {
                self.claiming = false;
                for (run, claim) in claims {
                    match claim {
                        Some(claim) => self.board.claimed(run, claim, now),
                        None => {
                            self.look_at_tick_again(run);
                            self.board.theirs(run, now);
                            self.watch(run);
                        }
                    }
                }
            }
            Reply::Kept(kept) => {
                self.keeping = false;
                for (run, fence, kept) in kept {
                    self.board.kept(run, fence, kept, now);
                    if kept == Kept::Fenced {
                        self.watch(run);
                    }
                }
            }
            Reply::Slots { answers, asked_at } => self.slots_answered(answers, asked_at),
            Reply::Sought { asked, found } => {
                let partitions: Vec<Partition> = found.iter().flat_map(|p| p.partitions.clone()).collect();
                for producer in found {
                    self.producers.entry(producer.run_id).or_default().extend(producer.partitions);
                }
                self.board.sought(asked, &partitions, now);
            }
            Reply::Feed { published, position, read_at } => {
                self.feeding = false;
                self.position = self.position.max(position);
                self.read_at = read_at;
                self.board.published(published, now);
                if std::mem::take(&mut self.behind) {
                    self.follow();
                }
            }
            Reply::Standing { entries, producers, took } => self.standing(entries, producers, took),
            Reply::Found(found) => {
                for (run, row) in found {
                    self.look_again(run, row, now);
                }
            }
            Reply::Looked(published) => self.board.looked(published, now),
            Reply::Taken(taken) => self.taken(taken),
            Reply::Abandoned { rows, workers } => self.abandoned(rows, workers),
            Reply::Wished(runs) => {
                self.wishing = false;
                self.cancel_runs(&runs);
            }
            Reply::Lost { late, lost } => self.lost(late, lost),
            Reply::Released | Reply::Answered => {}
            Reply::ProducersGone { published, position, gone } => {
                self.position = self.position.max(position);
                self.board.published(published, now);
                for run_id in gone {
                    if let Some(partitions) = self.producers.remove(&run_id) {
                        self.board.producer_gone(&partitions, now);
                    }
                }
            }
        }
        Ok(())
    }

    fn cancel(&mut self) {
        self.cancelled = true;
        self.to_claim.clear();
        self.looks.abort_all();
        let by = self.elapsed() + self.executor.options.drain;
        match &mut self.serving {
            None => self.segments.abort_all(),
            Some(serving) => serving.drained_by = Some(by),
        }
    }
}

/// The next wish; never, when this session does not serve or nobody can ask any more.
async fn next_ask(serving: &mut Option<Serving>) -> Option<Ask> {
    match serving {
        Some(serving) => serving.next_ask().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the command is asked to stop; never, when nobody can ask any more.
async fn asked_to_stop(mut cancel: watch::Receiver<bool>) {
    if cancel.wait_for(|asked| *asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The reply of a task that does not panic and is not aborted while its session lives.
fn joined(reply: Result<Result<Reply, BoxFault>, JoinError>) -> Result<Reply, BoxFault> {
    reply.unwrap_or_else(|error| Err(Box::new(Error::Broken(error.to_string())) as Box<dyn Fault>))
}

pub(super) fn failure_of(row: &RunRow) -> Failure {
    row.failure.clone().unwrap_or_else(|| {
        Failure::new(ErrorKind::Internal, "FLOW_FAILED", format!("run `{}` of job `{}` failed", row.id, row.job))
    })
}
