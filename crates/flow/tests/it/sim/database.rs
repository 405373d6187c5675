//! The metadata database: runs, leases, cursors, the registry of partitions, and the lake's files. Its rules are those of
//! `headworks_meta`, whose own suite holds the real ones; here each may be broken on purpose.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use chrono::{DateTime, Utc};
use headworks_domain::{Interval, JobName, RunId};
use headworks_flow::{
    exec::{
        Claim, ClaimRequest, JOB_POOLS, Kept, Partition, Producer, Release, RunRecord, RunRow, Seen, Segment,
        SlotRequest, Slots, Standing, Takes, passed_over,
    },
    machine::State,
    ticker::JobClock,
};

use super::{
    invariants::{Invariants, LEASE, Stamp},
    mutants::Mutant,
};

#[derive(Default)]
pub(super) struct Database {
    fence: i64,
    rows: Vec<Row>,
    by_id: HashMap<RunId, usize>,
    by_key: HashMap<(JobName, Interval), Vec<usize>>,
    /// Until when each process owns its runs.
    leases: HashMap<String, Duration>,
    /// The same by the clock on its own wall.
    wall_leases: HashMap<String, DateTime<Utc>>,
    /// Processes that take up released runs, and which.
    workers: BTreeMap<String, Takes>,
    /// Processes that are dead.
    pub(super) gone: BTreeSet<String>,
    pub(super) jobs: BTreeMap<JobName, JobClock>,
    /// The sizes of the pools.
    pub(super) pools: BTreeMap<String, usize>,
    /// Who has slots, under which number.
    slots: BTreeMap<(String, i64), SlotRequest>,
    registry: BTreeMap<Partition, i64>,
    position: i64,
    /// What the registry held at the last times that somebody changed it, for a cache that is old.
    history: Vec<(Duration, Partition)>,
    /// The files of each partition: who wrote them, and which of how many each is.
    pub(super) files: BTreeMap<Partition, Vec<(Stamp, usize)>>,
}

/// The owner of runs that were released.
const RELEASED: &str = "";

/// A partition has so many files.
pub(super) const FILES: usize = 2;

struct Row {
    request: ClaimRequest,
    owner: String,
    fence: i64,
    attempt: u32,
    state: State,
    created_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
    wish: bool,
    failure: Option<headworks_flow::Failure>,
    /// That it was released with.
    priority: i32,
}

/// Who asks, when, and what is wrong with the database.
pub(super) struct Asker<'a> {
    pub(super) process: &'a str,
    /// What it takes of runs that others release; none of a process that only plans.
    pub(super) takes: Option<&'a Takes>,
    pub(super) now: Duration,
    pub(super) wall: DateTime<Utc>,
    /// What a clock that is right says.
    pub(super) truth: DateTime<Utc>,
    /// Leases that ran out say nothing to it.
    pub(super) doubts: bool,
    pub(super) deaths_show: bool,
    pub(super) mutant: Option<Mutant>,
}

impl Asker<'_> {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

impl Database {
    fn lives(&self, process: &str, asker: &Asker<'_>) -> bool {
        if process == RELEASED {
            return false;
        }
        if asker.is(Mutant::AdoptionIgnoresLiveness) && process != asker.process {
            return false;
        }
        let is_leased = if asker.is(Mutant::LeaseByWallClock) {
            self.wall_leases.get(process).is_some_and(|until| *until > asker.wall)
        } else {
            self.leases.get(process).is_some_and(|until| *until > asker.now)
        };
        (is_leased || asker.doubts) && !(asker.deaths_show && self.gone.contains(process))
    }

    fn lease_until(&self, process: &str) -> Option<DateTime<Utc>> {
        let until = self.leases.get(process)?;
        Some(DateTime::UNIX_EPOCH + chrono::TimeDelta::from_std(*until).unwrap())
    }

    /// Registers a process with its lease, as its first call does.
    pub(super) fn register(&mut self, asker: &Asker<'_>) {
        if !self.leases.contains_key(asker.process) {
            self.renew(asker);
            if let Some(takes) = asker.takes {
                self.workers.insert(asker.process.to_owned(), takes.clone());
            }
        }
    }

    /// Renews a process's lease.
    pub(super) fn renew(&mut self, asker: &Asker<'_>) {
        if asker.is(Mutant::HeartbeatRenewsNothing) && self.leases.contains_key(asker.process) {
            return;
        }
        self.leases.insert(asker.process.to_owned(), asker.now + LEASE);
        let wall = asker.wall + chrono::TimeDelta::from_std(LEASE).unwrap();
        self.wall_leases.insert(asker.process.to_owned(), wall);
    }

    /// Those of these runs that have another fence.
    pub(super) fn lost(&self, runs: &[(RunId, i64)]) -> Vec<RunId> {
        let is_lost =
            |(id, fence): &&(RunId, i64)| self.by_id.get(id).is_none_or(|row| self.rows[*row].fence != *fence);
        runs.iter().filter(is_lost).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn leave(&mut self, process: &str) {
        self.leases.insert(process.to_owned(), Duration::ZERO);
        self.wall_leases.remove(process);
    }

    fn run_row(&self, row: &Row, asker: &Asker<'_>) -> RunRow {
        RunRow {
            id: row.request.run_id.clone(),
            job: row.request.job.clone(),
            job_version: row.request.job_version.clone(),
            table: row.request.table.clone(),
            interval: row.request.interval,
            ds: row.request.ds,
            trigger: row.request.trigger,
            params: row.request.params.clone(),
            state: row.state,
            attempt: row.attempt,
            fence: row.fence,
            owner: row.owner.clone(),
            owner_alive: row.finished_at.is_none() && self.lives(&row.owner, asker),
            lease_until: self.lease_until(&row.owner),
            created_at: row.created_at,
            started_at: None,
            finished_at: row.finished_at,
            rows: 0,
            bytes: 0,
            failure: row.failure.clone(),
        }
    }

    pub(super) fn find(&self, key: &(JobName, Interval), asker: &Asker<'_>) -> Option<RunRow> {
        let newest = self.by_key.get(key)?.last()?;
        Some(self.run_row(&self.rows[*newest], asker))
    }

    /// The rules of `headworks_meta::claim`: new ones first, as they stood before; then those that are taken over; then those
    /// whose claim stands already.
    pub(super) fn claim(
        &mut self,
        wanted: &[ClaimRequest],
        asker: &Asker<'_>,
        invariants: &mut Invariants,
    ) -> Vec<Option<Claim>> {
        self.fence += 1;
        let fence = self.fence;
        let newest: Vec<Option<RunId>> = wanted
            .iter()
            .map(|w| {
                let of_key = self.by_key.get(&(w.job.clone(), w.interval));
                of_key.and_then(|runs| runs.last()).map(|run| self.rows[*run].request.run_id.clone())
            })
            .collect();
        let mut claims = vec![None; wanted.len()];
        for (place, request) in wanted.iter().enumerate().filter(|(_, w)| w.taken_over().is_none()) {
            let key = (request.job.clone(), request.interval);
            let has_live = self.by_key.get(&key).into_iter().flatten().any(|r| self.rows[*r].finished_at.is_none());
            let is_as_seen = newest[place] == request.seen.as_ref().map(|seen| seen.run_id.clone());
            let is_free = (is_as_seen && !has_live) || asker.is(Mutant::ClaimIgnoresLiveRun);
            if !is_free || self.by_id.contains_key(&request.run_id) {
                continue;
            }
            let others = self.rows.iter().filter(|row| row.request.job == request.job && row.finished_at.is_none());
            let behind = others.map(|row| (row.request.run_id.clone(), row.request.ds)).next();
            if let Some((behind, ds)) = behind.filter(|_| request.yields) {
                self.skip(request, fence, passed_over(&request.run_id, &behind, &ds.to_string()), asker, invariants);
                continue;
            }
            self.by_id.insert(request.run_id.clone(), self.rows.len());
            self.by_key.entry(key).or_default().push(self.rows.len());
            self.rows.push(Row {
                request: request.clone(),
                owner: asker.process.to_owned(),
                fence,
                attempt: 1,
                state: State::Waiting,
                created_at: asker.wall,
                finished_at: None,
                wish: false,
                failure: None,
                priority: 0,
            });
            claims[place] = Some(Claim { fence, attempt: 1 });
        }
        for (place, request) in wanted.iter().enumerate() {
            if let Some(seen) = request.taken_over() {
                claims[place] = self.take_over(request, seen, fence, asker);
            }
        }
        for (request, _) in wanted.iter().zip(&claims).filter(|(_, claim)| claim.is_some()) {
            if let Some(tick) = request.tick.filter(|_| !asker.is(Mutant::CursorNeverKept)) {
                self.move_cursor(&request.job, tick, asker, invariants);
            }
        }
        for (request, claim) in wanted.iter().zip(&claims) {
            if let Some(claim) = claim {
                invariants.claimed(asker.process, request, *claim, asker.wall.max(asker.truth), asker.now);
            }
        }
        for (request, claim) in wanted.iter().zip(&mut claims).filter(|(_, claim)| claim.is_none()) {
            let row = self.by_id.get(&request.run_id).map(|run| &self.rows[*run]);
            let mine = row.filter(|row| row.owner == asker.process && row.finished_at.is_none());
            *claim = mine
                .filter(|_| !asker.is(Mutant::LostClaimForgotten))
                .map(|row| Claim { fence: row.fence, attempt: row.attempt });
        }
        claims
    }

    /// Leaves a run that was skipped, and moves the cursor with it.
    fn skip(
        &mut self,
        request: &ClaimRequest,
        fence: i64,
        failure: headworks_flow::Failure,
        asker: &Asker<'_>,
        invariants: &mut Invariants,
    ) {
        if !asker.is(Mutant::SkipLeavesNothing) {
            self.by_id.insert(request.run_id.clone(), self.rows.len());
            self.by_key.entry((request.job.clone(), request.interval)).or_default().push(self.rows.len());
            self.rows.push(Row {
                request: request.clone(),
                owner: asker.process.to_owned(),
                fence,
                attempt: 0,
                state: State::Skipped,
                created_at: asker.wall,
                finished_at: Some(asker.wall),
                wish: false,
                failure: Some(failure),
                priority: 0,
            });
            invariants.skipped(asker.process, request, fence, asker.wall);
        }
        if let Some(tick) = request.tick.filter(|_| !asker.is(Mutant::CursorNeverKept)) {
            self.move_cursor(&request.job, tick, asker, invariants);
        }
    }

    fn take_over(&mut self, request: &ClaimRequest, seen: &Seen, fence: i64, asker: &Asker<'_>) -> Option<Claim> {
        let place = *self.by_id.get(&request.run_id)?;
        let key = (request.job.clone(), request.interval);
        let has_other = self.by_key[&key].iter().any(|r| *r != place && self.rows[*r].finished_at.is_none());
        let is_renewed = self.lease_until(&self.rows[place].owner) > seen.lease_until;
        let row = &mut self.rows[place];
        let is_given_up = row.finished_at.is_some() || !is_renewed;
        let is_as_seen = row.fence == seen.fence && is_given_up || asker.is(Mutant::TakeoverIgnoresWhatWasSeen);
        if !is_as_seen || row.state == State::Success || has_other {
            return None;
        }
        if !asker.is(Mutant::TakeoverKeepsFence) {
            row.fence = fence;
        }
        if !asker.is(Mutant::TakeoverKeepsAttempt) {
            row.attempt += 1;
        }
        self.slots.retain(|_, slots| slots.run_id != request.run_id);
        asker.process.clone_into(&mut row.owner);
        (row.state, row.finished_at, row.failure, row.wish) = (State::Waiting, None, None, false);
        row.request.job_version.clone_from(&request.job_version);
        row.request.partitions.clone_from(&request.partitions);
        row.request.placement = request.placement.clone();
        Some(Claim { fence: row.fence, attempt: row.attempt })
    }

    pub(super) fn move_cursor(
        &mut self,
        job: &JobName,
        tick: DateTime<Utc>,
        asker: &Asker<'_>,
        invariants: &mut Invariants,
    ) {
        let Some(clock) = self.jobs.get_mut(job) else { return };
        if clock.cursor.is_none_or(|cursor| cursor < tick) || asker.is(Mutant::CursorGoesBack) {
            clock.cursor = Some(tick);
            invariants.cursor(job, tick);
        }
    }

    pub(super) fn record(&mut self, record: &RunRecord, asker: &Asker<'_>, invariants: &mut Invariants) -> Kept {
        self.keep(record, asker.is(Mutant::RecordIgnoresFence), asker.is(Mutant::RecordAfterEnd), invariants)
    }

    fn keep(&mut self, record: &RunRecord, any_fence: bool, any_state: bool, invariants: &mut Invariants) -> Kept {
        let Some(&place) = self.by_id.get(&record.run_id) else { return Kept::Fenced };
        let row = &mut self.rows[place];
        if row.fence != record.fence && !any_fence {
            return Kept::Fenced;
        }
        if row.finished_at.is_some() && !any_state {
            return Kept::Over(row.state);
        }
        (row.state, row.attempt, row.finished_at) = (record.state, record.attempt, record.finished_at);
        row.failure.clone_from(&record.failure);
        if record.finished_at.is_some() && record.pooled {
            self.slots.retain(|_, slots| slots.run_id != record.run_id);
        }
        invariants.recorded(record);
        Kept::Yes
    }

    /// One transaction: the run's end, the files, the registry. False when the fence is not the run's, or the run is over.
    pub(super) fn publish(
        &mut self,
        segment: &Segment,
        record: &RunRecord,
        asker: &Asker<'_>,
        invariants: &mut Invariants,
    ) -> bool {
        let is_first = self.by_id.get(&record.run_id).is_none_or(|run| self.rows[*run].finished_at.is_none());
        let any_fence = asker.is(Mutant::PublishIgnoresFence);
        if is_first && self.keep(record, any_fence, false, invariants) != Kept::Yes {
            return false;
        }
        if !is_first && !asker.is(Mutant::BlindRetry) && !any_fence {
            return false;
        }
        self.publish_files(segment, asker, invariants);
        true
    }

    fn publish_files(&mut self, segment: &Segment, asker: &Asker<'_>, invariants: &mut Invariants) {
        let stamp = Stamp { run_id: segment.run_id().clone(), fence: segment.fence(), attempt: segment.attempt() };
        invariants.published(segment);
        let files = if asker.is(Mutant::PublishInHalves) { 1 } else { FILES };
        for partition in segment.shape.own_partitions() {
            self.files.insert(partition.clone(), (0..files).map(|n| (stamp.clone(), n)).collect());
            self.position += 1;
            if !(asker.is(Mutant::PublishWithoutRegistry) && self.position % 4 == 0) {
                self.registry.insert(partition.clone(), self.position);
                self.history.push((asker.now, partition));
            }
        }
    }

    /// Puts the missing files in place.
    pub(super) fn complete(&mut self, segment: &Segment) {
        for partition in segment.shape.own_partitions() {
            let Some(files) = self.files.get_mut(&partition) else { continue };
            if let Some((stamp, _)) = files.first().cloned().filter(|_| files.len() < FILES) {
                files.push((stamp, 1));
            }
        }
    }

    pub(super) fn published(&self, wanted: &[Partition], asker: &Asker<'_>) -> (Vec<Partition>, i64) {
        let old = Duration::from_secs(30);
        let is_published = |partition: &&Partition| {
            if asker.is(Mutant::RegistrySaysYes) {
                return true;
            }
            if asker.is(Mutant::StaleLook) {
                return self.history.iter().any(|(at, known)| *at + old < asker.now && known == *partition);
            }
            self.registry.contains_key(*partition)
        };
        (wanted.iter().filter(is_published).cloned().collect(), self.position)
    }

    pub(super) fn published_since(&self, position: i64, asker: &Asker<'_>) -> (Vec<Partition>, i64) {
        let mut later: Vec<(&Partition, i64)> =
            self.registry.iter().filter(|(_, at)| **at > position).map(|(p, at)| (p, *at)).collect();
        if asker.is(Mutant::FeedSkips) {
            later.retain(|(_, at)| at % 3 != 0);
        }
        (later.into_iter().map(|(partition, _)| partition.clone()).collect(), self.position)
    }

    pub(super) fn standing(&self, run: &RunId, asker: &Asker<'_>) -> Standing {
        match self.by_id.get(run).map(|run| &self.rows[*run]) {
            None => Standing::Unknown,
            Some(row) if row.finished_at.is_some() => Standing::Over(row.state),
            Some(row) if self.lives(&row.owner, asker) => Standing::Held,
            Some(_) => Standing::Abandoned,
        }
    }

    /// Live runs of processes that are gone, and some that were released; not those that somebody wants cancelled.
    pub(super) fn abandoned(&self, limit: usize, released_max: usize, takes: &Takes, asker: &Asker<'_>) -> Vec<RunRow> {
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| row.finished_at.is_none() && !row.wish).collect();
        rows.sort_by_key(|row| row.request.interval.end());
        let (released, owned): (Vec<&Row>, Vec<&Row>) = rows.into_iter().partition(|row| row.owner == RELEASED);
        let gone = owned.into_iter().filter(|row| row.owner != asker.process && !self.lives(&row.owner, asker));
        let released_max = if asker.is(Mutant::ReleasedForgotten) { 0 } else { released_max };
        let mut released: Vec<&Row> = released.into_iter().filter(|row| takes.may(&row.request.placement)).collect();
        released.sort_by_key(|row| Reverse(row.priority));
        let rows = gone.take(limit).chain(released.into_iter().take(released_max));
        rows.map(|row| self.run_row(row, asker)).collect()
    }

    /// Leaves a run without an owner, for whoever claims it first.
    pub(super) fn release(&mut self, release: &Release, asker: &Asker<'_>, invariants: &mut Invariants) {
        let Some(&place) = self.by_id.get(&release.run_id) else { return };
        let row = &mut self.rows[place];
        if row.finished_at.is_none() && (row.fence == release.fence || asker.is(Mutant::ReleaseIgnoresFence)) {
            RELEASED.clone_into(&mut row.owner);
            (row.state, row.priority) = (State::Ready, release.priority);
            invariants.released(asker.process, &release.run_id, release.fence);
        }
    }

    /// Gives slots back, and takes others: of one pool in the order asked, and none after one that does not fit.
    pub(super) fn take_slots(
        &mut self,
        given: &[i64],
        wanted: &[SlotRequest],
        asker: &Asker<'_>,
        invariants: &mut Invariants,
    ) -> Vec<Slots> {
        if !asker.is(Mutant::SlotsNotGivenBack) {
            for number in given {
                self.slots.remove(&(asker.process.to_owned(), *number));
            }
        }
        let is_young = self.leases.get(asker.process).is_some_and(|until| *until >= asker.now + LEASE / 2);
        if !wanted.is_empty() && !is_young {
            // Who takes slots is alive: its own count again.
            self.renew(asker);
            invariants.renews(asker.process, asker.now);
        }
        let mut full = BTreeSet::new();
        let mut answers = Vec::new();
        for request in wanted {
            let key = (asker.process.to_owned(), request.number);
            let row = self.by_id.get(&request.run_id).map(|run| &self.rows[*run]);
            let is_mine = row.is_some_and(|row| {
                row.fence == request.fence && row.finished_at.is_none() && row.owner == asker.process
            });
            if !is_mine {
                answers.push(Slots::Fenced);
                continue;
            }
            let size = self.pools[&request.pool];
            let ignores_others = asker.is(Mutant::SlotsPerProcess)
                || asker.is(Mutant::RunsLimitedPerProcess) && request.pool.starts_with(JOB_POOLS);
            let counts = |(process, _): &(String, i64)| {
                process == asker.process || !ignores_others && self.lives(process, asker)
            };
            let of_pool = self.slots.iter().filter(|(key, held)| held.pool == request.pool && counts(key));
            let used: usize = of_pool.map(|(_, held)| held.slots.min(size)).sum();
            let has = self.slots.contains_key(&key);
            if has && asker.is(Mutant::SlotsTakenTwice) {
                // Of no run, so that no run's end gives them back.
                let more = SlotRequest { run_id: "nobody".parse().unwrap(), ..request.clone() };
                self.slots.insert((asker.process.to_owned(), -request.number), more);
            }
            if !has && (full.contains(&request.pool) || used + request.slots.min(size) > size) {
                full.insert(request.pool.clone());
                answers.push(Slots::Full);
                continue;
            }
            self.slots.insert(key, request.clone());
            answers.push(Slots::Taken);
        }
        answers
    }

    /// What the other processes take that take up released runs.
    pub(super) fn other_workers(&self, asker: &Asker<'_>) -> Vec<Takes> {
        let others = self.workers.iter().filter(|(process, _)| *process != asker.process);
        others.filter(|(process, _)| self.lives(process, asker)).map(|(_, takes)| takes.clone()).collect()
    }

    pub(super) fn producers(&self, wanted: &[Partition], asker: &Asker<'_>) -> Vec<Producer> {
        let others = self
            .rows
            .iter()
            .filter(|row| row.finished_at.is_none() && row.owner != asker.process && self.lives(&row.owner, asker));
        let made = |row: &Row| -> Vec<Partition> {
            let Some((first, last)) = &row.request.partitions else { return Vec::new() };
            let is_made =
                |p: &&Partition| Some(&p.table) == row.request.table.as_ref() && *first <= p.key && p.key <= *last;
            wanted.iter().filter(is_made).cloned().collect()
        };
        let producers = others.map(|row| Producer { run_id: row.request.run_id.clone(), partitions: made(row) });
        producers.filter(|producer| !producer.partitions.is_empty()).collect()
    }

    /// Wants the nth live run cancelled, wrapping around.
    pub(super) fn wish(&mut self, nth: u64) {
        let mut live: Vec<&mut Row> = self.rows.iter_mut().filter(|row| row.finished_at.is_none()).collect();
        if !live.is_empty() {
            let nth = usize::try_from(nth).unwrap() % live.len();
            live[nth].wish = true;
        }
    }

    /// Ends the runs that somebody wants cancelled and whose owner is gone.
    pub(super) fn end_abandoned_wishes(&mut self, asker: &Asker<'_>, invariants: &mut Invariants) {
        let is_gone = |row: &Row| row.owner != asker.process && !self.lives(&row.owner, asker);
        let wished = |row: &Row| row.wish && row.finished_at.is_none() && is_gone(row);
        let ended: Vec<usize> = (0..self.rows.len()).filter(|run| wished(&self.rows[*run])).collect();
        for run in ended {
            self.fence += 1;
            let row = &mut self.rows[run];
            (row.state, row.finished_at, row.fence) = (State::Cancelled, Some(asker.wall), self.fence);
            self.slots.retain(|_, slots| slots.run_id != row.request.run_id);
            invariants.cancelled(&row.request.run_id, self.fence);
        }
    }

    pub(super) fn wishes(&self, process: &str) -> Vec<RunId> {
        let wished = self.rows.iter().filter(|row| row.wish && row.finished_at.is_none() && row.owner == process);
        wished.map(|row| row.request.run_id.clone()).collect()
    }

    /// How every run stands, for a person who looks for a bug.
    pub(super) fn told(&self) -> Vec<String> {
        let row = |row: &Row| {
            format!(
                "{} {} {} {:?} {} attempt {} fence {} of {}",
                row.request.run_id,
                row.request.job,
                row.request.interval.end(),
                row.request.trigger,
                row.state,
                row.attempt,
                row.fence,
                row.owner
            )
        };
        self.rows.iter().map(row).collect()
    }
}
