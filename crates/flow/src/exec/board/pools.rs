//! Who waits for a slot: a queue per pool, each in the order of its places.
//!
//! How many tasks a process has at work is its own business. The slots of named pools are shared by all processes of a project:
//! who stands first asks the store for them, and waits while others have them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use chrono::{DateTime, Utc};

use super::super::record::{SlotRequest, Slots};

/// A place in a queue: higher priority first, then the older interval, then the order asked.
pub(super) type Place = (Reverse<i32>, DateTime<Utc>, usize, usize);

/// A segment that holds slots, as (run, head, fence): after a fence two of one run may be there for a moment.
pub(super) type Holder = (usize, usize, i64);

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// This one has its slots.
    Start(Place),
    /// The store is to be asked for this one's slots. The answer goes to [`Pools::answered`].
    Ask { place: Place, number: i64, pool: String, slots: usize },
}

/// The slots of all pools, and the queues for them.
///
/// A segment takes some slots of its pool and one of all tasks'. Who stands first in a pool and needs more slots than are free
/// keeps them from those behind: many small ones never starve a large one.
#[derive(Default)]
pub(super) struct Pools {
    tasks_max: usize,
    /// Segments that run, and those that the store was asked for.
    running: usize,
    /// By name; the empty one is of the segments without a pool.
    pools: BTreeMap<String, Pool>,
    taken: HashMap<Holder, Taken>,
    /// What the store was asked for, by number.
    asked: BTreeMap<i64, Asked>,
    /// The last number that was given out.
    number: i64,
}

#[derive(Default)]
struct Pool {
    /// None for as many as there are tasks.
    slots: Option<usize>,
    /// Those that this process has or has asked for.
    used: usize,
    /// Who waits, and how many slots each needs.
    queue: BTreeMap<Place, usize>,
    /// The store is being asked: who comes now must not pass those who stood before it.
    asking: bool,
    /// Other processes have what the first in the queue needs.
    full: bool,
}

/// Slots that a segment holds.
struct Taken {
    pool: String,
    slots: usize,
    /// Under which number, when the pool is shared.
    number: Option<i64>,
}

/// Slots that the store was asked for.
struct Asked {
    place: Place,
    holder: Holder,
    pool: String,
    slots: usize,
}

impl Pool {
    /// The first in the queue, when its slots are free as far as this process knows.
    fn ready(&self) -> Option<(&Place, usize)> {
        if self.asking || self.full {
            return None;
        }
        let (place, wanted) = self.queue.first_key_value()?;
        let Some(slots) = self.slots else { return Some((place, *wanted)) };
        // Who wants more than there are takes them all: that is said when files are checked.
        let needed = (*wanted).min(slots);
        (self.used + needed <= slots).then_some((place, needed))
    }
}

impl Pools {
    pub(super) fn new(tasks_max: usize) -> Self {
        Self { tasks_max, ..Self::default() }
    }

    /// So many slots these pools have now.
    pub(super) fn resize(&mut self, slots: &BTreeMap<String, usize>) {
        for (name, slots) in slots {
            let slots = Some((*slots).max(1));
            match self.pools.get_mut(name) {
                Some(pool) if pool.slots == slots => {}
                Some(pool) => (pool.slots, pool.full) = (slots, false),
                None => drop(self.pools.insert(name.clone(), Pool { slots, ..Pool::default() })),
            }
        }
    }

    /// Lets a segment wait for its slots.
    pub(super) fn wait(&mut self, pool: Option<&str>, place: Place, slots: usize) {
        self.pools.entry(pool.unwrap_or_default().to_owned()).or_default().queue.insert(place, slots);
    }

    /// Takes places out of all queues. What the store gives to one of them is given back.
    pub(super) fn forget(&mut self, places: &BTreeSet<Place>) {
        for pool in self.pools.values_mut().filter(|pool| !pool.queue.is_empty()) {
            for place in places {
                pool.queue.remove(place);
            }
        }
        if !self.asked.is_empty() {
            self.forget_asked(|asked| places.contains(&asked.place));
        }
    }

    /// Gives the first of those whose slots are free its turn; `holder` names it for the time it has them.
    pub(super) fn next(&mut self, holder: impl Fn(&Place) -> Holder) -> Option<Turn> {
        if self.running >= self.tasks_max {
            return None;
        }
        let ready = self.pools.iter().filter_map(|(name, pool)| Some((*pool.ready()?.0, name.clone())));
        let (place, name) = ready.min()?;
        let pool = self.pools.get_mut(&name)?;
        let (_, slots) = pool.ready()?;
        let wanted = pool.queue.remove(&place)?;
        pool.used += slots;
        self.running += 1;
        let holder = holder(&place);
        if pool.slots.is_none() {
            self.taken.insert(holder, Taken { pool: name, slots, number: None });
            return Some(Turn::Start(place));
        }
        let number = self.new_number();
        self.asked.insert(number, Asked { place, holder, pool: name.clone(), slots });
        Some(Turn::Ask { place, number, pool: name, slots: wanted })
    }

    /// A number for slots that this process has not used yet.
    pub(super) fn new_number(&mut self) -> i64 {
        self.number += 1;
        self.number
    }

    /// What was asked for goes to the store now: nobody is asked for in these pools until it has answered.
    pub(super) fn close_asked(&mut self) {
        for asked in self.asked.values() {
            if let Some(pool) = self.pools.get_mut(&asked.pool) {
                pool.asking = true;
            }
        }
    }

    /// The store has answered. Gives the place that was asked for, unless nobody wants its slots any more; without slots it stands
    /// in the queue again.
    pub(super) fn answered(&mut self, request: &SlotRequest, answer: Slots) -> Option<Place> {
        if let Some(pool) = self.pools.get_mut(&request.pool) {
            pool.asking = false;
        }
        let asked = self.asked.remove(&request.number)?;
        if answer == Slots::Taken {
            let taken = Taken { pool: asked.pool, slots: asked.slots, number: Some(request.number) };
            self.taken.insert(asked.holder, taken);
            return Some(asked.place);
        }
        self.give_up(&asked);
        if let Some(pool) = self.pools.get_mut(&asked.pool).filter(|_| answer == Slots::Full) {
            pool.full = true;
            pool.queue.insert(asked.place, request.slots);
        }
        Some(asked.place)
    }

    /// What was asked for is not taken.
    fn give_up(&mut self, asked: &Asked) {
        self.running = self.running.saturating_sub(1);
        if let Some(pool) = self.pools.get_mut(&asked.pool) {
            pool.used = pool.used.saturating_sub(asked.slots);
        }
    }

    /// True while somebody waits for slots that other processes have.
    pub(super) fn awaits_others(&self) -> bool {
        self.pools.values().any(|pool| pool.full && !pool.queue.is_empty())
    }

    /// Others may have given slots back.
    pub(super) fn ask_again(&mut self) {
        self.pools.values_mut().for_each(|pool| pool.full = false);
    }

    /// Takes the slots back. Gives the number under which the store knows them.
    pub(super) fn free(&mut self, holder: Holder) -> Option<i64> {
        let taken = self.taken.remove(&holder)?;
        self.running = self.running.saturating_sub(1);
        if let Some(pool) = self.pools.get_mut(&taken.pool) {
            pool.used = pool.used.saturating_sub(taken.slots);
            pool.full = false;
        }
        taken.number
    }

    /// True when nothing ever runs here.
    pub(super) fn has_none(&self) -> bool {
        self.tasks_max == 0
    }

    /// How many more segments could run now, if their pools have slots. Those that wait for a full pool keep no room from others.
    pub(super) fn room(&self) -> usize {
        let waiting: usize =
            self.pools.values().filter(|pool| pool.ready().is_some()).map(|pool| pool.queue.len()).sum();
        self.tasks_max.saturating_sub(self.running + waiting)
    }

    /// The pools in which somebody waits for slots.
    pub(super) fn full(&self) -> BTreeSet<String> {
        let is_full = |pool: &Pool| !pool.queue.is_empty() && pool.ready().is_none();
        self.pools.iter().filter(|(_, pool)| is_full(pool)).map(|(name, _)| name.clone()).collect()
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
        self.pools.values_mut().for_each(|pool| pool.queue.clear());
        self.forget_asked(|_| true);
    }

    /// Empties all queues and takes all slots back.
    pub(super) fn clear(&mut self) {
        self.running = 0;
        self.taken.clear();
        self.asked.clear();
        for pool in self.pools.values_mut() {
            pool.used = 0;
            pool.queue.clear();
        }
    }

    fn forget_asked(&mut self, is_meant: impl Fn(&Asked) -> bool) {
        let meant: Vec<i64> = self.asked.iter().filter(|(_, asked)| is_meant(asked)).map(|(n, _)| *n).collect();
        for asked in meant.into_iter().filter_map(|number| self.asked.remove(&number)).collect::<Vec<_>>() {
            self.give_up(&asked);
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

    fn sized(tasks_max: usize, slots: &[(&str, usize)]) -> Pools {
        let mut pools = Pools::new(tasks_max);
        pools.resize(&slots.iter().map(|(name, slots)| ((*name).to_owned(), *slots)).collect());
        pools
    }

    fn request(number: i64, pool: &str, slots: usize) -> SlotRequest {
        let run_id = "run-1".parse().unwrap();
        SlotRequest { number, pool: pool.to_owned(), slots, run_id, fence: 1, task: "t".parse().unwrap() }
    }

    /// Asks a store for all whose turn has come. It has `free` slots of each pool; those of whom it lacks some wait.
    fn go(pools: &mut Pools, free: &mut dyn FnMut(&str, usize) -> bool) -> Vec<Place> {
        let (mut started, mut asked) = (Vec::new(), Vec::new());
        while let Some(turn) = pools.next(holder) {
            match turn {
                Turn::Start(place) => started.push(place),
                Turn::Ask { number, pool, slots, .. } => asked.push(request(number, &pool, slots)),
            }
        }
        pools.close_asked();
        let mut full: Vec<String> = Vec::new();
        for request in asked {
            let is_taken = !full.contains(&request.pool) && free(&request.pool, request.slots);
            let answer = if is_taken { Slots::Taken } else { Slots::Full };
            full.extend((!is_taken).then(|| request.pool.clone()));
            started.extend(pools.answered(&request, answer).filter(|_| is_taken));
        }
        started
    }

    /// Waits with (pool, priority, slots), run by its place in the list; `|` stands for the end of a run.
    fn check(tasks_max: usize, waiting: &[(&str, i32, usize)], ends: &[usize], expected: &str) {
        let mut pools = sized(tasks_max, &[("etl", 4), ("api", 1)]);
        for (run, (pool, priority, slots)) in waiting.iter().enumerate() {
            pools.wait(Some(*pool).filter(|p| !p.is_empty()), place(*priority, run), *slots);
        }
        let mut seen = Vec::new();
        let mut go = |pools: &mut Pools| {
            let mut started = self::go(pools, &mut |_, _| true);
            started.sort();
            seen.push(started.iter().map(|place| place.2.to_string()).collect::<Vec<_>>().join(" "));
        };
        go(&mut pools);
        for run in ends {
            assert_eq!(pools.free((*run, 0, 1)).is_some(), !waiting[*run].0.is_empty(), "shared ones have a number");
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
        let mut pools = Pools::new(1);
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

    #[test]
    fn who_finds_a_pool_full_waits_at_its_head_until_it_is_asked_again() {
        let mut pools = sized(10, &[("etl", 4)]);
        pools.wait(Some("etl"), place(1, 0), 3);
        let mut none = |_: &str, _: usize| false;
        assert_eq!(go(&mut pools, &mut none), []);
        assert!(pools.awaits_others());
        assert_eq!((pools.room(), pools.full()), (10, ["etl".to_owned()].into()), "it keeps no room from others");
        // A small one that comes later does not pass, however often it is looked; one without a pool does.
        pools.wait(Some("etl"), place(0, 1), 1);
        pools.wait(None, place(0, 2), 1);
        let mut one = |_: &str, slots: usize| slots <= 1;
        assert_eq!(go(&mut pools, &mut one), [place(0, 2)]);
        pools.ask_again();
        assert_eq!(go(&mut pools, &mut one), []);
        pools.ask_again();
        let mut all = |_: &str, _: usize| true;
        assert_eq!(go(&mut pools, &mut all), [place(1, 0), place(0, 1)]);
        assert!(!pools.awaits_others());
        assert_eq!((pools.room(), pools.full()), (7, BTreeSet::new()));
    }

    #[test]
    fn nobody_passes_while_the_store_is_asked() {
        let mut pools = sized(10, &[("etl", 4)]);
        pools.wait(Some("etl"), place(0, 0), 3);
        let Some(Turn::Ask { number, .. }) = pools.next(holder) else { panic!("the pool is shared") };
        pools.close_asked();
        pools.wait(Some("etl"), place(9, 1), 1);
        assert_eq!(pools.next(holder), None);
        // What was forgotten meanwhile is nobody's, and the next has its turn.
        pools.forget(&[place(0, 0)].into());
        assert_eq!(pools.answered(&request(number, "etl", 3), Slots::Taken), None);
        assert_eq!(go(&mut pools, &mut |_, _| true), [place(9, 1)]);
        assert_eq!(pools.running, 1);
    }

    #[test]
    fn the_newest_size_counts() {
        let mut pools = sized(10, &[("etl", 1)]);
        let size = |n| [("etl".to_owned(), n)].into();
        for run in 0..4 {
            pools.wait(Some("etl"), place(0, run), 1);
        }
        let mut all = |_: &str, _: usize| true;
        assert_eq!(go(&mut pools, &mut all).len(), 1);
        pools.resize(&size(3));
        assert_eq!(go(&mut pools, &mut all).len(), 2);
        pools.resize(&size(2));
        pools.free((0, 0, 1));
        assert_eq!(go(&mut pools, &mut all), [], "three held, two are left");
        pools.free((1, 0, 1));
        assert_eq!(go(&mut pools, &mut all).len(), 1);
    }

    proptest! {
        /// Slots are never given out twice, and everybody gets theirs in the end.
        #[test]
        fn no_pool_is_over_and_none_starves(
            wishes in proptest::collection::vec((0..3usize, -2..3i32, 1..6usize), 1..40),
            ends in proptest::collection::vec(any::<u8>(), 600),
        ) {
            let names = ["", "etl", "api"];
            let mut pools = sized(5, &[("etl", 4), ("api", 1)]);
            // Others have slots now and then.
            let mut others = 0_usize;
            let mut wishes = wishes.into_iter().enumerate();
            let mut running: Vec<usize> = Vec::new();
            let (mut asked, mut served) = (0, 0);
            for end in ends {
                if let Some((run, (pool, priority, slots))) = wishes.next() {
                    pools.wait(Some(names[pool]).filter(|name| !name.is_empty()), place(priority, run), slots);
                    asked += 1;
                }
                others = (others + usize::from(end)) % 3;
                pools.ask_again();
                let begun = go(&mut pools, &mut |_, _| others == 0);
                served += begun.len();
                running.extend(begun.iter().map(|place| place.2));
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
            prop_assert!(pools.taken.is_empty() && pools.asked.is_empty() && pools.running == 0);
        }
    }
}
