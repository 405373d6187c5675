//! What must hold, whatever breaks. Written once: every scenario and every mutant is judged by this.
//!
//! It hears facts from the outside of the code under test: what the store was made to do, what workers began and published, what
//! readers saw. It keeps its own account and never asks the simulated store, which may be the liar.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use headworks_domain::{Interval, JobName, RunId};
use headworks_flow::{
    exec::{Claim, ClaimRequest, JOB_POOLS, Partition, RunRecord, Segment, Trigger, job_pool},
    machine::State,
};

/// How long a process keeps its runs after a sign of life.
pub(super) const LEASE: Duration = Duration::from_secs(10);

/// A job and what it covers.
pub(super) type Key = (JobName, Interval);

/// The account of one world.
#[derive(Default)]
pub(super) struct Invariants {
    broken: Vec<String>,
    runs: BTreeMap<RunId, Run>,
    live: HashMap<Key, RunId>,
    attempts: HashSet<(RunId, u32)>,
    /// Attempts that broke off because the store was out of reach, with their fences: they may go on.
    outages: HashSet<(RunId, u32, i64)>,
    at_work: BTreeMap<RunId, BTreeMap<u64, (i64, u32)>>,
    of_process: HashMap<String, usize>,
    /// What is at work in each pool, by its number.
    of_pool: BTreeMap<String, BTreeMap<u64, InPool>>,
    /// Since when each process's lease goes on without a gap, and when it was renewed last.
    leased: HashMap<String, (Duration, Duration)>,
    of_job: HashMap<(String, JobName), usize>,
    cursors: BTreeMap<JobName, DateTime<Utc>>,
    /// Since when each process renews its lease without a gap, and when it did last.
    alive: HashMap<String, (Duration, Duration)>,
    published: BTreeMap<Partition, Stamp>,
    /// Successes of each interval, and how many of them somebody asked for beyond the first.
    successes: BTreeMap<Key, usize>,
    asked_again: HashMap<Key, usize>,
    pub(super) publishes: usize,
    pub(super) takeovers: usize,
    pub(super) releases: usize,
    /// When the last outage of the store ends.
    away_until: Duration,
    /// Some machine's clock was wrong. A run that a person asked for may then look as if it had been made before its interval was
    /// over, and the tick's own run comes once more.
    pub(super) clocks_lied: bool,
    next: u64,
}

struct Run {
    key: Key,
    owner: String,
    fence: i64,
    trigger: Trigger,
    claimed_at: DateTime<Utc>,
    /// The same by the true time.
    taken_at: Duration,
    over: Option<State>,
    /// Its place among all runs.
    born: u64,
}

/// Who published a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) run_id: RunId,
    pub(super) fence: i64,
    pub(super) attempt: u32,
}

/// An attempt that is at work; to be given back when it is not.
pub(super) struct AtWork {
    run_id: RunId,
    number: u64,
    process: String,
    job: JobName,
    pools: Vec<String>,
}

/// An attempt at work in a pool.
struct InPool {
    process: String,
    run_id: RunId,
    fence: i64,
    since: Duration,
}

/// Who begins an attempt, when, and what bounds it.
pub(super) struct Beginner<'a> {
    pub(super) process: &'a str,
    pub(super) at: Duration,
    pub(super) tasks_max: usize,
    /// Of its job, in its process.
    pub(super) runs_max: Option<usize>,
    /// Its pool and how many slots that has, over all processes.
    pub(super) pool: Option<(String, usize)>,
}

impl Invariants {
    /// Writes down a broken promise.
    pub(super) fn breaks(&mut self, what: impl Into<String>) {
        self.broken.push(what.into());
    }

    pub(super) fn broken(&self) -> &[String] {
        &self.broken
    }

    /// A process renewed its lease, and knows it.
    pub(super) fn lives(&mut self, process: &str, at: Duration) {
        let known = self.alive.entry(process.to_owned()).or_insert((at, at));
        if at.saturating_sub(known.1) > LEASE {
            known.0 = at;
        }
        known.1 = known.1.max(at);
    }

    /// The store renewed a process's lease, whether the process knows or not.
    pub(super) fn renews(&mut self, process: &str, at: Duration) {
        let known = self.leased.entry(process.to_owned()).or_insert((at, at));
        if at.saturating_sub(known.1) >= LEASE {
            known.0 = at;
        }
        known.1 = known.1.max(at);
    }

    /// A process is gone, or stands still.
    pub(super) fn stops(&mut self, process: &str) {
        self.alive.remove(process);
    }

    /// A process is gone for good. Its tasks are dropped within the same moment, in which others may have its slots already.
    pub(super) fn dies(&mut self, process: &str) {
        self.stops(process);
        self.leased.remove(process);
    }

    /// Nobody can renew a lease until then: that costs nobody a run. A claim whose look came before it may come right after it.
    pub(super) fn store_is_away(&mut self, now: Duration, until: Duration) {
        self.away_until = self.away_until.max(until);
        for (since, last) in self.alive.values_mut() {
            (*since, *last) = (*since + until.saturating_sub(now), (*last).max(until));
        }
    }

    /// The store gave a run away.
    pub(super) fn claimed(
        &mut self,
        process: &str,
        request: &ClaimRequest,
        claim: Claim,
        wall: DateTime<Utc>,
        at: Duration,
    ) {
        let key = (request.job.clone(), request.interval);
        let run_id = &request.run_id;
        if let Some(other) = self.live.get(&key).filter(|other| *other != run_id).cloned() {
            self.breaks(format!("two live runs of {} {}: {other} and {run_id}", key.0, key.1.end()));
        }
        if let Some(run) = self.runs.get(run_id) {
            let (owner, fence, over) = (run.owner.clone(), run.fence, run.over);
            if claim.fence <= fence && owner != process {
                self.breaks(format!("{process} took {run_id} from {owner} under fence {} after {fence}", claim.fence));
            }
            if over == Some(State::Success) {
                self.breaks(format!("{run_id} was taken over after its success"));
            }
            self.takeovers += 1;
            // Signs of life that are young may have come between the look and the claim, and who has just begun knows of no outage.
            let has_lived = |name: &str| {
                let lives = self.alive.get(name);
                lives.is_some_and(|(since, last)| {
                    at.saturating_sub(*since) > LEASE * 4 && at.saturating_sub(*last) < LEASE / 3
                })
            };
            if over.is_none() && owner != process && has_lived(&owner) && has_lived(process) {
                self.breaks(format!("{process} took {run_id} from {owner}, which has been alive all the time"));
            }
        }
        self.live.insert(key.clone(), run_id.clone());
        let trigger = self.runs.get(run_id).map_or(request.trigger, |run| run.trigger);
        // Who takes a run over begins it anew, and the clock of whoever had it may have been ahead.
        let claimed_at = self.runs.get(run_id).map_or(wall, |run| run.claimed_at.max(wall));
        self.next += 1;
        let born = self.runs.get(run_id).map_or(self.next, |run| run.born);
        let run = Run {
            key,
            owner: process.to_owned(),
            fence: claim.fence,
            trigger,
            claimed_at,
            taken_at: at,
            over: None,
            born,
        };
        self.runs.insert(run_id.clone(), run);
        if let Some(tick) = request.tick
            && self.cursors.get(&request.job).is_none_or(|cursor| *cursor < tick)
        {
            // A tick counts as seen to from its claim on, and not a moment earlier or later.
            self.breaks(format!("the tick {tick} of {} was claimed and not kept", request.job));
        }
    }

    /// The store left a run that was skipped.
    pub(super) fn skipped(&mut self, process: &str, request: &ClaimRequest, fence: i64, wall: DateTime<Utc>) {
        self.next += 1;
        let run = Run {
            key: (request.job.clone(), request.interval),
            owner: process.to_owned(),
            fence,
            trigger: request.trigger,
            claimed_at: wall,
            taken_at: Duration::ZERO,
            over: Some(State::Skipped),
            born: self.next,
        };
        if self.runs.insert(request.run_id.clone(), run).is_some() {
            self.breaks(format!("{} was skipped when it had been claimed", request.run_id));
        }
    }

    /// The store moved a job's cursor. Told before the claims that came with it.
    pub(super) fn cursor(&mut self, job: &JobName, to: DateTime<Utc>) {
        if let Some(before) = self.cursors.insert(job.clone(), to)
            && to < before
        {
            self.breaks(format!("the cursor of {job} went back from {before} to {to}"));
        }
    }

    /// The store took a run from its owner, who had asked for that.
    pub(super) fn released(&mut self, process: &str, run_id: &RunId, fence: i64) {
        let Some(run) = self.runs.get_mut(run_id) else {
            return self.breaks(format!("{process} released {run_id}, which nobody has claimed"));
        };
        run.owner.clear();
        let newest = run.fence;
        if newest != fence {
            self.breaks(format!("{process} released {run_id} under fence {fence} after {newest}"));
        }
        if self.at_work.get(run_id).is_some_and(|live| live.values().any(|(other, _)| *other == fence)) {
            self.breaks(format!("{process} released {run_id} while it was at work"));
        }
        self.releases += 1;
    }

    /// The store ended a run that somebody wanted cancelled and whose owner was gone.
    pub(super) fn cancelled(&mut self, run_id: &RunId, fence: i64) {
        if let Some(run) = self.runs.get_mut(run_id) {
            (run.over, run.fence) = (Some(State::Cancelled), fence);
            self.live.remove(&run.key);
        }
    }

    /// The store kept a record.
    pub(super) fn recorded(&mut self, record: &RunRecord) {
        let Some(run) = self.runs.get(&record.run_id) else {
            return self.breaks(format!("a record of {}, which nobody has claimed", record.run_id));
        };
        let key = run.key.clone();
        let (fence, over) = (run.fence, run.over);
        if record.fence != fence {
            self.breaks(format!("a record of {} under fence {} had effect after {fence}", record.run_id, record.fence));
        }
        if let Some(over) = over {
            self.breaks(format!("a record of {} had effect after its end as {over}", record.run_id));
        }
        if record.state.is_final() != record.finished_at.is_some() {
            self.breaks(format!("{}: {} with end {:?}", record.run_id, record.state, record.finished_at));
        }
        if record.state.is_final() {
            self.live.remove(&key);
            if let Some(run) = self.runs.get_mut(&record.run_id) {
                run.over = Some(record.state);
            }
        }
    }

    /// A worker begins an attempt.
    pub(super) fn begins(&mut self, segment: &Segment, beginner: Beginner<'_>) -> AtWork {
        let Beginner { process, at, tasks_max, runs_max, pool } = beginner;
        let (run_id, fence, attempt) = (segment.run_id().clone(), segment.fence(), segment.attempt());
        let who = format!("{run_id} {} attempt {attempt} by {process}", segment.shape.ds);
        let goes_on = self.outages.remove(&(run_id.clone(), attempt, fence));
        if !self.attempts.insert((run_id.clone(), attempt)) && !goes_on {
            self.breaks(format!("an attempt's number was used twice: {who}"));
        }
        // Who has been fenced may not know it yet: it has no effect, and does not count.
        if self.runs.get(&run_id).is_some_and(|run| run.fence == fence) {
            let live = self.at_work.get(&run_id);
            if live.is_some_and(|live| live.values().any(|(other, _)| *other >= fence)) {
                self.breaks(format!("two attempts at once: {who} beside {live:?}", live = self.at_work[&run_id]));
            }
        } else if self.runs.get(&run_id).is_none_or(|run| run.fence < fence) {
            self.breaks(format!("{who} runs under a fence that nobody has claimed"));
        } else if !goes_on && self.alive.get(process).is_some_and(|(since, _)| at > self.away_until.max(*since) + LEASE)
        {
            // Who saw its lease when that was over may claim a moment after it was renewed.
            self.breaks(format!("{who} begins under an old fence"));
        }
        for wait in &segment.shape.waits {
            for key in &wait.partitions {
                if !self.published.contains_key(&Partition::new(wait.table.clone(), key.clone())) {
                    self.broken.push(format!("{who} began before {} {key} was published", wait.table));
                }
            }
        }
        self.next += 1;
        self.at_work.entry(run_id.clone()).or_default().insert(self.next, (fence, attempt));
        let job = segment.shape.job.clone();
        let busy = self.of_process.entry(process.to_owned()).or_default();
        *busy += 1;
        if *busy > tasks_max {
            let busy = *busy;
            self.breaks(format!("{process} has {busy} tasks at work and room for {tasks_max}"));
        }
        let busy = self.of_job.entry((process.to_owned(), job.clone())).or_default();
        *busy += 1;
        if let Some(max) = runs_max.filter(|max| *busy > *max) {
            self.breaks(format!("{process} has more than {max} runs of {job} at work"));
        }
        // One that goes on after an outage has no slots any more when its lease was over, or when its publish came through and the
        // reply was lost.
        let is_open = !goes_on && self.runs.get(&run_id).is_some_and(|run| run.fence == fence && run.over.is_none());
        // A run has its job's slot for longer than any of its tasks is at work: since its claim at most.
        let taken_at = self.runs.get(&run_id).map_or(at, |run| run.taken_at);
        let of_job = runs_max.map(|max| (job_pool(&job), max, taken_at));
        let pools: Vec<_> = pool.map(|(pool, size)| (pool, size, at)).into_iter().chain(of_job).collect();
        for (pool, size, since) in pools.iter().filter(|_| is_open) {
            let work = InPool { process: process.to_owned(), run_id: run_id.clone(), fence, since: *since };
            self.fills(pool, *size, work, at, &who);
        }
        let pools = pools.into_iter().map(|(pool, ..)| pool).collect();
        AtWork { run_id, number: self.next, process: process.to_owned(), job, pools }
    }

    /// An attempt begins in a pool. Those count whose run is not over and still theirs (the slots come back with its end), and whose
    /// process has had its lease all the time since they began: of others the slots may be somebody else's by right. Of a job's pool
    /// all tasks of a run have one slot together.
    fn fills(&mut self, pool: &str, size: usize, work: InPool, at: Duration, who: &str) {
        let (of_job, run_id) = (pool.starts_with(JOB_POOLS), work.run_id.clone());
        let (leased, runs) = (&self.leased, &self.runs);
        let holds = |work: &&InPool| {
            let is_its = runs.get(&work.run_id).is_some_and(|run| run.fence == work.fence && run.over.is_none());
            let lease = leased.get(&work.process);
            is_its && lease.is_some_and(|(from, last)| *from <= work.since && at.saturating_sub(*last) < LEASE)
        };
        let of_pool = self.of_pool.entry(pool.to_owned()).or_default();
        let is_sound = holds(&&work);
        let others = of_pool.values().filter(holds).filter(|other| !of_job || other.run_id != run_id);
        let mut others: Vec<(RunId, String)> = others.map(|work| (work.run_id.clone(), work.process.clone())).collect();
        if of_job {
            others.sort();
            others.dedup();
        }
        of_pool.insert(self.next, work);
        if others.len() >= size && (is_sound || !of_job) {
            self.breaks(format!("{who} began in pool {pool} of {size}, which is full of tasks of {others:?}"));
        }
    }

    /// The attempt is not at work any more, or its process is not.
    pub(super) fn ends(&mut self, work: &AtWork) {
        if let Some(live) = self.at_work.get_mut(&work.run_id) {
            live.remove(&work.number);
        }
        for pool in &work.pools {
            if let Some(pool) = self.of_pool.get_mut(pool) {
                pool.remove(&work.number);
            }
        }
        *self.of_process.entry(work.process.clone()).or_default() -= 1;
        *self.of_job.entry((work.process.clone(), work.job.clone())).or_default() -= 1;
    }

    /// An attempt breaks off because the store is out of reach.
    pub(super) fn hits_an_outage(&mut self, segment: &Segment) {
        self.outages.insert((segment.run_id().clone(), segment.attempt(), segment.fence()));
    }

    /// A publish had effect. Its record is told on its own.
    pub(super) fn published(&mut self, segment: &Segment) {
        let (run_id, fence, attempt) = (segment.run_id().clone(), segment.fence(), segment.attempt());
        self.publishes += 1;
        let newest = self.runs.get(&run_id).map(|run| run.fence);
        if newest != Some(fence) {
            self.breaks(format!("{run_id} was published under fence {fence} after {newest:?}"));
        }
        let key = (segment.shape.job.clone(), segment.shape.interval);
        let successes = self.successes.entry(key.clone()).or_default();
        *successes += 1;
        let asked = self.asked_again.get(&key).copied().unwrap_or(0);
        let allowed = 1 + if self.clocks_lied { asked * 2 } else { asked };
        if *successes > allowed {
            let successes = *successes;
            self.breaks(format!("{} {} was published {successes} times", key.0, key.1.end()));
        }
        for partition in segment.shape.own_partitions() {
            self.published.insert(partition, Stamp { run_id: run_id.clone(), fence, attempt });
        }
    }

    /// Somebody wants this interval once more than usual.
    pub(super) fn asked_again(&mut self, key: Key) {
        *self.asked_again.entry(key).or_default() += 1;
    }

    /// A reader saw these files in a partition.
    pub(super) fn read(&mut self, partition: &Partition, files: &[(Stamp, usize)], of: usize) {
        let is_whole =
            files.len() == of && files.iter().enumerate().all(|(n, file)| file.1 == n && file.0 == files[0].0);
        if !is_whole {
            self.breaks(format!("a reader saw {} {} in halves: {files:?}", partition.table, partition.key));
        } else if self.published.get(partition) != files.first().map(|(stamp, _)| stamp) {
            self.breaks(format!("a reader saw an old {} {}", partition.table, partition.key));
        }
    }

    /// The intervals with a run, and the runs of each, the newest last.
    fn by_interval(&self) -> BTreeMap<&Key, Vec<&Run>> {
        let mut ended: BTreeMap<&Key, Vec<&Run>> = BTreeMap::new();
        for run in self.runs.values() {
            ended.entry(&run.key).or_default().push(run);
        }
        ended.values_mut().for_each(|runs| runs.sort_by_key(|run| run.born));
        ended
    }

    /// The intervals whose newest run has not succeeded, and whether one is live, for somebody to ask for them again.
    pub(super) fn unsuccessful(&self) -> Vec<(Key, bool)> {
        let is_open = |runs: &Vec<&Run>| runs.last().is_none_or(|run| run.over != Some(State::Success));
        let open = self.by_interval().into_iter().filter(|(_, runs)| is_open(runs));
        open.map(|(key, runs)| (key.clone(), runs.iter().any(|run| run.over.is_none()))).collect()
    }

    /// True when there is a run of it.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.runs.values().any(|run| run.key == *key)
    }

    pub(super) fn is_published(&self, partition: &Partition) -> bool {
        self.published.contains_key(partition)
    }

    /// What is not as it must be once nothing breaks any more and time has gone on; empty when all is well. `ticks` are the
    /// intervals that the schedules ask for.
    pub(super) fn open(&self, ticks: &BTreeSet<Key>) -> Vec<String> {
        let mut open = Vec::new();
        for (run_id, run) in self.runs.iter().filter(|(_, run)| run.over.is_none()) {
            open.push(format!("{run_id} of {} {} never ends", run.key.0, run.key.1.end()));
        }
        let ended = self.by_interval();
        for key in ticks {
            // A run that a person made before its interval was over has not seen all of it.
            let counts = |run: &&&Run| run.trigger == Trigger::Schedule || run.claimed_at >= key.1.end();
            let runs: Vec<_> = ended.get(key).into_iter().flatten().filter(counts).collect();
            if runs.is_empty() {
                open.push(format!("the tick of {} {} is lost", key.0, key.1.end()));
            } else if !runs.iter().any(|run| run.over == Some(State::Success)) {
                open.push(format!("{} {} has no success", key.0, key.1.end()));
            }
        }
        open
    }
}
