//! Who waits for a slot: a queue per pool, each in the order of its places.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use chrono::{DateTime, Utc};

/// A place in a queue: higher priority first, then the older interval, then the order asked.
pub(super) type Place = (Reverse<i32>, DateTime<Utc>, usize, usize);

/// A segment that holds slots, as (run, head, fence): after a fence two of one run may be there for a moment.
pub(super) type Holder = (usize, usize, i64);

/// The slots of all pools, and the queues for them.
///
/// A segment takes some slots of its pool and one of all tasks'. Who stands first in a pool and needs more slots than are free
/// keeps them from those behind: many small ones never starve a large one.
#[derive(Default)]
pub(super) struct Pools {
    tasks_max: usize,
    running: usize,
    /// By name; the empty one is of the segments without a pool.
    pools: BTreeMap<String, Pool>,
    taken: HashMap<Holder, (String, usize)>,
}

#[derive(Default)]
struct Pool {
    /// None for as many as there are tasks.
    slots: Option<usize>,
    used: usize,
    /// Who waits, and how many slots each needs.
    queue: BTreeMap<Place, usize>,
}

impl Pool {
    /// The first in the queue, when its slots are free.
    fn ready(&self) -> Option<(&Place, usize)> {
        let (place, wanted) = self.queue.first_key_value()?;
        let Some(slots) = self.slots else { return Some((place, *wanted)) };
        // Who wants more than there are takes them all: that is said when files are checked.
        let needed = (*wanted).min(slots);
        (self.used + needed <= slots).then_some((place, needed))
    }
}

impl Pools {
    pub(super) fn new(tasks_max: usize, slots: &BTreeMap<String, usize>) -> Self {
        let pools = slots
            .iter()
            .map(|(name, slots)| (name.clone(), Pool { slots: Some((*slots).max(1)), ..Pool::default() }))
            .collect();
        Self { tasks_max, running: 0, pools, taken: HashMap::new() }
    }

    /// Lets a segment wait for its slots.
    pub(super) fn wait(&mut self, pool: Option<&str>, place: Place, slots: usize) {
        self.pools.entry(pool.unwrap_or_default().to_owned()).or_default().queue.insert(place, slots);
    }

    /// Takes places out of all queues.
    pub(super) fn forget(&mut self, places: &BTreeSet<Place>) {
        for pool in self.pools.values_mut().filter(|pool| !pool.queue.is_empty()) {
            for place in places {
                pool.queue.remove(place);
            }
        }
    }

    /// Gives the first of those whose slots are free its slots; `holder` names it for the time it has them.
    pub(super) fn next(&mut self, holder: impl Fn(&Place) -> Holder) -> Option<Place> {
        if self.running >= self.tasks_max {
            return None;
        }
        let ready = self.pools.iter().filter_map(|(name, pool)| Some((*pool.ready()?.0, name.clone())));
        let (place, name) = ready.min()?;
        let pool = self.pools.get_mut(&name)?;
        let (_, slots) = pool.ready()?;
        pool.queue.remove(&place);
        pool.used += slots;
        self.running += 1;
        self.taken.insert(holder(&place), (name, slots));
        Some(place)
    }

    /// Takes the slots back.
    pub(super) fn free(&mut self, holder: Holder) {
        let Some((name, slots)) = self.taken.remove(&holder) else { return };
        self.running = self.running.saturating_sub(1);
        if let Some(pool) = self.pools.get_mut(&name) {
            pool.used = pool.used.saturating_sub(slots);
        }
    }

    /// How many more segments could run now, if their pools have slots.
    pub(super) fn room(&self) -> usize {
        self.tasks_max.saturating_sub(self.running + self.waiting())
    }

    /// The last place whose turn would come after a full round of others, of the runs that `may` go.
    pub(super) fn beyond_a_round(&self, may: impl Fn(usize) -> bool) -> Option<Place> {
        if self.waiting() <= self.tasks_max {
            return None;
        }
        self.pools.values().flat_map(|pool| pool.queue.keys().rev()).filter(|(.., run, _)| may(*run)).max().copied()
    }

    fn waiting(&self) -> usize {
        self.pools.values().map(|pool| pool.queue.len()).sum()
    }

    /// Empties all queues.
    pub(super) fn forget_all(&mut self) {
        for pool in self.pools.values_mut() {
            pool.queue.clear();
        }
    }

    /// Empties all queues and takes all slots back.
    pub(super) fn clear(&mut self) {
        self.running = 0;
        self.taken.clear();
        for pool in self.pools.values_mut() {
            pool.used = 0;
            pool.queue.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(priority: i32, run: usize) -> Place {
        (Reverse(priority), DateTime::UNIX_EPOCH, run, 0)
    }

    fn holder(place: &Place) -> Holder {
        (place.2, place.3, 1)
    }

    /// Waits with (pool, priority, slots), run by its place in the list; `|` stands for the end of a run.
    fn check(tasks_max: usize, waiting: &[(&str, i32, usize)], ends: &[usize], expected: &str) {
        let slots = [("etl".to_owned(), 4), ("api".to_owned(), 1)].into();
        let mut pools = Pools::new(tasks_max, &slots);
        for (run, (pool, priority, slots)) in waiting.iter().enumerate() {
            pools.wait(Some(*pool).filter(|p| !p.is_empty()), place(*priority, run), *slots);
        }
        let mut seen = Vec::new();
        let mut go = |pools: &mut Pools| {
            let started: Vec<String> =
                std::iter::from_fn(|| pools.next(holder)).map(|place| place.2.to_string()).collect();
            seen.push(started.join(" "));
        };
        go(&mut pools);
        for run in ends {
            pools.free((*run, 0, 1));
            go(&mut pools);
        }
        assert_eq!(seen.join(" | "), expected, "{waiting:?}");
    }

    #[test]
    fn each_pool_has_its_queue() {
        check(10, &[("etl", 0, 1), ("api", 0, 1), ("api", 0, 1), ("", 0, 1)], &[1], "0 1 3 | 2");
        check(2, &[("etl", 0, 1), ("", 5, 1), ("api", 1, 1)], &[2], "1 2 | 0");
        check(1, &[("etl", 0, 1), ("", 5, 1)], &[1, 0], "1 | 0 | ");
    }

    #[test]
    fn one_that_needs_many_slots_keeps_them_from_the_small() {
        check(10, &[("etl", 2, 3), ("etl", 1, 4), ("etl", 0, 1), ("", 0, 1)], &[0, 1], "0 3 | 1 | 2");
        check(10, &[("etl", 0, 9), ("etl", 0, 1)], &[0], "0 | 1");
    }

    #[test]
    fn slots_come_back_once() {
        let mut pools = Pools::new(1, &BTreeMap::new());
        pools.wait(None, place(0, 0), 1);
        pools.wait(None, place(0, 1), 1);
        pools.wait(None, place(0, 2), 1);
        assert!(pools.next(holder).is_some());
        pools.free((0, 0, 7));
        assert!(pools.next(holder).is_none(), "another fence holds nothing");
        pools.free((0, 0, 1));
        pools.free((0, 0, 1));
        assert!(pools.next(holder).is_some());
        assert!(pools.next(holder).is_none());
        pools.forget(&[place(0, 2)].into());
        pools.free((1, 0, 1));
        assert!(pools.next(holder).is_none(), "forgotten");
    }

    proptest! {
        /// Slots are never given out twice, and everybody gets theirs in the end.
        #[test]
        fn no_pool_is_over_and_none_starves(
            wishes in proptest::collection::vec((0..3usize, -2..3i32, 1..6usize), 1..40),
            ends in proptest::collection::vec(any::<u8>(), 200),
        ) {
            let names = ["", "etl", "api"];
            let slots = [("etl".to_owned(), 4), ("api".to_owned(), 1)].into();
            let mut pools = Pools::new(5, &slots);
            let mut wishes = wishes.into_iter().enumerate();
            let mut running: Vec<usize> = Vec::new();
            let (mut asked, mut served) = (0, 0);
            for end in ends {
                if let Some((run, (pool, priority, slots))) = wishes.next() {
                    pools.wait(Some(names[pool]).filter(|name| !name.is_empty()), place(priority, run), slots);
                    asked += 1;
                }
                while let Some(place) = pools.next(holder) {
                    running.push(place.2);
                    served += 1;
                }
                prop_assert!(running.len() <= 5);
                for pool in pools.pools.values() {
                    prop_assert!(pool.used <= pool.slots.unwrap_or(usize::MAX));
                }
                if !running.is_empty() {
                    let run = running.swap_remove(end as usize % running.len());
                    pools.free((run, 0, 1));
                }
            }
            prop_assert_eq!(asked, served);
            prop_assert!(pools.taken.is_empty() && pools.running == 0);
        }
    }
}
