//! `max_active_runs`: how many runs of a job are at work at once, over all processes.
//!
//! A run counts from its first segment that may begin until its end. Before that it is held, in the order of its places, until its
//! process knows of room and the store has given it one of the job's slots, which all processes share as they do those of pools.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use headworks_domain::JobName;

use super::{
    super::{
        placement::job_pool,
        record::{SlotRequest, Slots},
    },
    Board,
    entry::Phase,
    pools::Place,
};

/// The runs of each job that has a limit.
#[derive(Default)]
pub(super) struct Limits {
    jobs: HashMap<JobName, Queue>,
    /// Jobs with runs that are held.
    holding: BTreeSet<JobName>,
    /// What the store was asked for, by number.
    asked: BTreeMap<i64, (JobName, Vec<Place>)>,
}

#[derive(Default)]
struct Queue {
    /// Runs that count, those included that the store was asked for.
    active: usize,
    active_max: Option<usize>,
    held: BTreeSet<Place>,
    /// Other processes have what the first needs.
    full: bool,
}

impl Limits {
    /// The newest definition counts.
    pub(super) fn set(&mut self, job: &JobName, active_max: Option<usize>) {
        if active_max.is_none() && !self.jobs.contains_key(job) {
            return;
        }
        let queue = self.jobs.entry(job.clone()).or_default();
        if queue.active_max != active_max {
            (queue.active_max, queue.full) = (active_max, false);
        }
    }

    /// Holds a segment back whose run does not count yet; false when its job has no limit.
    pub(super) fn holds(&mut self, job: &JobName, place: Place) -> bool {
        let Some(queue) = self.jobs.get_mut(job).filter(|queue| queue.active_max.is_some()) else { return false };
        queue.held.insert(place);
        self.holding.insert(job.clone());
        true
    }

    /// Takes places out of a job's queue.
    pub(super) fn forget(&mut self, job: &JobName, places: &BTreeSet<Place>) {
        if let Some(queue) = self.jobs.get_mut(job) {
            queue.held.retain(|place| !places.contains(place));
        }
    }

    /// Empties all queues.
    pub(super) fn forget_all(&mut self) {
        self.jobs.values_mut().for_each(|queue| queue.held.clear());
    }

    /// True while somebody waits for what other processes have.
    pub(super) fn awaits_others(&self) -> bool {
        self.holding.iter().any(|job| self.jobs.get(job).is_some_and(|queue| queue.full && !queue.held.is_empty()))
    }

    /// Others may have given slots back.
    pub(super) fn ask_again(&mut self) {
        for job in &self.holding {
            if let Some(queue) = self.jobs.get_mut(job) {
                queue.full = false;
            }
        }
    }

    /// The store has answered: the job and the places that were asked for, if that was for a run of a job.
    pub(super) fn answered(&mut self, request: &SlotRequest, answer: Slots) -> Option<(JobName, Vec<Place>)> {
        let (job, places) = self.asked.remove(&request.number)?;
        if let Some(queue) = self.jobs.get_mut(&job).filter(|_| answer != Slots::Taken) {
            queue.active = queue.active.saturating_sub(1);
            queue.full |= answer == Slots::Full;
        }
        Some((job, places))
    }

    /// The next job with room for the first run that it holds, with that run's places: those after it wait until it has its turn.
    fn next(&mut self, asks: impl Fn(usize) -> bool) -> Option<(JobName, Option<usize>, Vec<Place>)> {
        self.holding.retain(|job| self.jobs.get(job).is_some_and(|queue| !queue.held.is_empty()));
        for job in &self.holding {
            let queue = self.jobs.get_mut(job)?;
            let has_room = queue.active_max.is_none_or(|max| queue.active < max) && !queue.full;
            let first = queue.held.iter().find(|(.., run, _)| !asks(*run)).filter(|_| has_room);
            if let Some((.., run, _)) = first.copied() {
                let places: Vec<Place> = queue.held.extract_if(.., |(.., other, _)| *other == run).collect();
                queue.active += 1;
                return Some((job.clone(), queue.active_max, places));
            }
        }
        None
    }

    /// A run does not count any more.
    fn end(&mut self, job: &JobName) {
        if let Some(queue) = self.jobs.get_mut(job) {
            queue.active = queue.active.saturating_sub(1);
            queue.full = false;
        }
    }

    /// Takes those of these places that are held.
    fn take_held(&mut self, job: &JobName, places: &BTreeSet<Place>) -> Vec<Place> {
        self.jobs
            .get_mut(job)
            .map_or_else(Vec::new, |queue| queue.held.extract_if(.., |place| places.contains(place)).collect())
    }
}

impl Board {
    /// Lets runs go on that their job's limit held back, as far as this process knows of room: asks for slots of the jobs' own.
    pub(super) fn admit_held(&mut self, now: DateTime<Utc>) -> Vec<SlotRequest> {
        let mut wanted = Vec::new();
        loop {
            let runs = &self.runs;
            let Some((job, active_max, places)) = self.limits.next(|run| runs[run].asks_job) else { return wanted };
            let Some((.., run, head)) = places.first().copied() else { continue };
            if active_max.is_none() {
                self.activate(run, places, None, now);
                continue;
            }
            let entry = &mut self.runs[run];
            let task = entry.machine.tasks().nth(head).map(|task| task.name.clone());
            let (Some(run_id), Some(task)) = (entry.run_id.clone(), task) else { continue };
            entry.asks_job = true;
            let (number, fence) = (self.pools.new_number(), entry.claim.fence);
            wanted.push(SlotRequest { number, pool: job_pool(&job), slots: 1, run_id, fence, task });
            self.limits.asked.insert(number, (job, places));
        }
    }

    /// The store was asked for a slot of a job's for these places. Gives the run when it turned out to be somebody else's.
    pub(super) fn job_slot(
        &mut self,
        request: &SlotRequest,
        answer: Slots,
        (job, places): (JobName, Vec<Place>),
        now: DateTime<Utc>,
    ) -> Option<usize> {
        let (.., run, _) = *places.first()?;
        let is_ours = self.runs.has(run)
            && self.runs[run].phase == Phase::Mine
            && self.runs[run].claim.fence == request.fence
            && self.runs[run].run_id.as_ref() == Some(&request.run_id);
        if is_ours {
            self.runs[run].asks_job = false;
        }
        match answer {
            Slots::Taken if is_ours => self.activate(run, places, Some(request.number), now),
            Slots::Taken => {
                // Nobody wants it any more.
                self.given.push(request.number);
                self.limits.end(&job);
            }
            Slots::Full if is_ours => {
                for place in places {
                    self.limits.holds(&job, place);
                }
            }
            Slots::Fenced if is_ours => {
                self.fenced(run, now);
                return Some(run);
            }
            Slots::Full | Slots::Fenced => {}
        }
        None
    }

    /// The run counts from now on: all its segments go that were held with the first.
    fn activate(&mut self, run: usize, places: Vec<Place>, slot: Option<i64>, now: DateTime<Utc>) {
        let entry = &mut self.runs[run];
        (entry.active, entry.job_slot) = (true, slot);
        let job = entry.request.job.clone();
        let more = self.places(run);
        let held = self.limits.take_held(&job, &more);
        for (.., head) in places.into_iter().chain(held) {
            self.admit(run, head, now);
        }
    }

    /// Gives the run's place under its job's limit to the next.
    pub(super) fn release(&mut self, run: usize) {
        let entry = &mut self.runs[run];
        entry.job_slot = None;
        if std::mem::take(&mut entry.active) {
            let job = entry.request.job.clone();
            self.limits.end(&job);
        }
    }
}
