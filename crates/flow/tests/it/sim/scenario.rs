//! One simulation: everything that happens in it follows from its seed.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chrono::TimeDelta;
use headworks_domain::{Clock, Grain};
use headworks_flow::{
    Catchup, Overlap,
    exec::{Demand, Given, Partition, Planner, Reprocess, Request, Takes, Trigger},
    ticker::JobClock,
};
use serde_json::Map;
use tokio::task::JoinSet;

use super::{
    invariants::Key,
    mutants::Mutant,
    process::Machine,
    project::{FAR, KINDS, Plan, Projects, bases},
    world::{Hands, Life, Rates, World},
};
use crate::chance::Chance;

/// The longest that it may take to come to rest once nothing breaks any more.
const REST_SECS: u64 = 15 * 60;

/// How a simulation went.
pub(super) struct Outcome {
    pub(super) broken: Vec<String>,
    /// The same number for the same seed.
    pub(super) trace: u64,
    /// What happened, when that was wanted.
    pub(super) story: Vec<String>,
    pub(super) publishes: usize,
    pub(super) takeovers: usize,
    pub(super) releases: usize,
}

/// Carries out a simulation on this thread.
pub(super) fn simulate(seed: u64, mutant: Option<Mutant>, tells: bool) -> Outcome {
    let mut chance = Chance::new(seed ^ 0x5eed);
    let plan = Plan {
        base: usize::try_from(chance.below(bases() as u64)).unwrap(),
        kind: usize::try_from(chance.below(KINDS as u64)).unwrap(),
        days_back: i64::from(chance.one_in(6)),
    };
    let world = World::new(seed, plan.instant(), mutant, tells);
    let runtime = runtime(&world);
    let machines = chance.between(1, 3);
    let (tasks_max, claims_max) = (chance.between(1, 4), chance.between(1, 12));
    // Such a machine plans, and leaves the work to others.
    let has_planner = machines > 1 && chance.one_in(4);
    let scenario = Scenario::new(world, plan, chance, machines, has_planner, (tasks_max, claims_max));
    runtime.block_on(async move { tokio::spawn(scenario.run()).await.unwrap() })
}

/// Carries out a simulation in which nothing happens but what `script` says. Gives what was broken.
pub(super) fn direct(plan: Plan, machines: u64, script: impl AsyncFnOnce(&mut Scenario)) -> Vec<String> {
    let world = World::new(1, plan.instant(), None, false);
    let runtime = runtime(&world);
    let mut scenario = Scenario::new(world, plan, Chance::new(1), machines, false, (4, 4));
    let outcome = runtime.block_on(async move {
        let lives = scenario.begin();
        script(&mut scenario).await;
        scenario.end(lives).await
    });
    outcome.broken
}

fn runtime(world: &World) -> tokio::runtime::Runtime {
    let time = world.time.clone();
    tokio::runtime::Builder::new_current_thread().on_thread_park(move || time.advance()).build().unwrap()
}

pub(super) struct Scenario {
    world: Arc<World>,
    projects: Projects,
    machines: Vec<Arc<Machine>>,
    chance: Chance,
    /// For looking at the clock that is right.
    hands: Hands,
    is_on_time: bool,
}

impl Scenario {
    fn new(
        world: Arc<World>,
        plan: Plan,
        chance: Chance,
        machines: u64,
        has_planner: bool,
        (tasks_max, claims_max): (u64, u64),
    ) -> Self {
        let mut projects = plan.projects();
        projects.is_limited = !world.is(Mutant::RunsNotLimited);
        {
            let mut inner = world.lock();
            inner.database.pools = projects.slots();
            for job in projects.current().jobs.keys() {
                let clock = JobClock { first_seen: world.base, cursor: None, paused: false };
                inner.database.jobs.insert(job.clone(), clock);
            }
        }
        let machine = |n| {
            let max = |n: u64| usize::try_from(n).unwrap();
            let tasks_max = if has_planner && n == 0 { 0 } else { max(tasks_max) };
            // The last one stands where jobs of that zone belong; so does the first, where it is alone.
            let zone = (n + 1 == machines).then(|| FAR.to_owned());
            Machine::new(&world, max(n), &projects, tasks_max, max(claims_max), Takes { zone, ..Takes::default() })
        };
        let machines = (0..machines).map(machine).collect();
        let hands = Hands(Life::new(&world, "nobody".to_owned(), &Arc::default()));
        Self { world, projects, machines, chance, hands, is_on_time: true }
    }

    async fn run(mut self) -> Outcome {
        self.world.lock().rates = self.rates();
        let lives = self.begin();
        let end = Duration::from_secs(self.chance.between(60, 400));
        while self.world.time.now() < end && !self.is_broken() {
            let pause = self.chance.between(100, 25_000);
            self.world.time.sleep(Duration::from_millis(pause)).await;
            self.happen().await;
        }
        self.end(lives).await
    }

    fn begin(&self) -> JoinSet<()> {
        let mut lives = JoinSet::new();
        for machine in &self.machines {
            lives.spawn(Arc::clone(machine).run());
        }
        lives.spawn(read(Arc::clone(&self.world)));
        lives
    }

    /// Nothing breaks any more; then everything must come to rest.
    async fn end(mut self, mut lives: JoinSet<()>) -> Outcome {
        // An outage takes its time: what it excuses goes by how long it is.
        let left = self.world.lock().away_until.saturating_sub(self.world.time.now());
        self.world.time.sleep(left).await;
        self.mend();
        let mut open = Vec::new();
        let by = self.world.time.now() + Duration::from_secs(REST_SECS);
        while self.world.time.now() < by && !self.is_broken() {
            self.world.time.sleep(Duration::from_secs(5)).await;
            open = self.world.lock().invariants.open(&self.ticks());
            if open.is_empty() {
                break;
            }
            self.help().await;
        }
        if self.world.time.now() >= by {
            let told = self.world.lock().database.told();
            open.extend(told);
            self.world.lock().invariants.breaks(format!("it does not come to rest: {open:#?}"));
        }
        lives.shutdown().await;
        let (trace, story) = self.world.story();
        let inner = self.world.lock();
        Outcome {
            broken: inner.invariants.broken().to_vec(),
            trace,
            story,
            publishes: inner.invariants.publishes,
            takeovers: inner.invariants.takeovers,
            releases: inner.invariants.releases,
        }
    }

    /// Lets time pass.
    pub(super) async fn pass(&self, secs: u64) {
        self.world.time.sleep(Duration::from_secs(secs)).await;
    }

    pub(super) fn set_rates(&self, rates: Rates) {
        self.world.lock().rates = rates;
    }

    /// Sets all clocks so many hours off.
    pub(super) fn set_clocks(&mut self, hours: i64) {
        for machine in &self.machines {
            machine.skew_ms.store(hours * 3_600_000, Ordering::Relaxed);
        }
        self.is_on_time &= hours == 0;
        self.world.lock().invariants.clocks_lied |= hours != 0;
    }

    /// The database is out of reach for a while from now on.
    pub(super) fn set_away(&self, secs: u64) {
        let now = self.world.time.now();
        let until = now + Duration::from_secs(secs);
        let mut inner = self.world.lock();
        inner.away_until = inner.away_until.max(until);
        inner.invariants.store_is_away(now, until);
        inner.tell(now, || format!("the database is away until {}", until.as_secs()));
    }

    /// A person wants the interval of a job that is not over yet.
    pub(super) async fn ask_early(&self, job: &str) {
        let job = Arc::clone(self.projects.versions[0].job(job).unwrap());
        let interval = job.last_complete(self.hands.now() + TimeDelta::hours(1));
        let request = Request { job: job.name.clone(), interval };
        let (trigger, reprocess, overlap) = (Trigger::Manual, Reprocess::None, Overlap::Queue);
        self.world.lock().invariants.asked_again((job.name.clone(), interval));
        assert!(
            self.machines[0]
                .ask(vec![Demand {
                    request,
                    trigger,
                    params: Map::new(),
                    tick: None,
                    demand: None,
                    reprocess,
                    overlap
                }])
                .await
        );
    }

    fn is_broken(&self) -> bool {
        !self.world.lock().invariants.broken().is_empty()
    }

    /// Each kind of fault is there or not, so that some seeds are quiet but for one.
    fn rates(&mut self) -> Rates {
        let mut rate = |rates: &[u64]| if self.chance.one_in(2) { *self.chance.pick(rates) } else { 0 };
        Rates {
            lost_requests: rate(&[15, 60]),
            lost_replies: rate(&[15, 60]),
            duplicates: rate(&[20, 60]),
            slow: rate(&[20, 100]),
            crashes: rate(&[150, 600]),
            transient: rate(&[6, 20]),
            permanent: rate(&[25, 60]),
            long: rate(&[10, 40]),
            lost_publishes: rate(&[6, 20]),
            panics: rate(&[40]),
        }
    }

    /// Something happens to a machine, the database, the files; or a person wants something.
    async fn happen(&mut self) {
        let machine = Arc::clone(self.chance.pick(&self.machines));
        match self.chance.below(12) {
            0 => machine.kill().await,
            1 => {
                let pause = Duration::from_millis(self.chance.between(500, 45_000));
                machine.freeze(pause).await;
            }
            2 => {
                let hours = *self.chance.pick(&[2, -2, 1, 0, 0]);
                self.is_on_time &= hours == 0;
                self.world.lock().invariants.clocks_lied |= hours != 0;
                machine.skew_ms.store(hours * 3_600_000, Ordering::Relaxed);
                self.world.tell(|| format!("the clock of machine {} is {hours} h off", machine.number));
            }
            3 => {
                let secs = self.chance.between(1, 60);
                self.set_away(secs);
            }
            4 => {
                let version = usize::try_from(self.chance.below(2)).unwrap();
                self.projects.set(version);
                self.world.tell(|| format!("the files are of version {version}"));
            }
            5 => self.pause_one(),
            6 => machine.stop().await,
            7 => {
                let nth = self.chance.below(100);
                self.world.lock().database.wish(nth);
                self.world.tell(|| "a run is wanted cancelled".to_owned());
            }
            8 | 9 => self.ask(&machine).await,
            10 => self.world.lock().rates = self.rates(),
            _ => {}
        }
    }

    /// Pauses a job, or lets it go on.
    fn pause_one(&mut self) {
        let jobs: Vec<_> = self.projects.versions[0].jobs.keys().cloned().collect();
        let job = self.chance.pick(&jobs).clone();
        let mut inner = self.world.lock();
        if let Some(clock) = inner.database.jobs.get_mut(&job) {
            clock.paused = !clock.paused;
            let is_paused = clock.paused;
            inner.tell(self.world.time.now(), || format!("{job} is paused: {is_paused}"));
        }
    }

    /// A person wants an interval of some job: the present one, the last, or an older one; once more, perhaps.
    async fn ask(&mut self, machine: &Machine) {
        let jobs: Vec<_> = self.projects.versions[0].jobs.values().cloned().collect();
        let job = Arc::clone(self.chance.pick(&jobs));
        let back = i32::try_from(self.chance.below(3)).unwrap();
        let grain = if job.grain == Grain::Hour { TimeDelta::hours(1) } else { TimeDelta::days(1) };
        let interval = job.last_complete(self.hands.now() + grain * (1 - back));
        if !job.covers(&interval) {
            return;
        }
        let reprocess = *self.chance.pick(&[Reprocess::None, Reprocess::Failed, Reprocess::All]);
        let request = Request { job: job.name.clone(), interval };
        let (trigger, overlap) = (Trigger::Manual, Overlap::Queue);
        let demand = Demand { request, trigger, params: Map::new(), tick: None, demand: None, reprocess, overlap };
        if machine.ask(vec![demand]).await {
            let mut inner = self.world.lock();
            inner.invariants.asked_again((job.name.clone(), interval));
            drop(inner);
            self.world.tell(|| format!("somebody asks for {} {} again: {reprocess:?}", job.name, interval.end()));
        }
    }

    /// Nothing breaks any more.
    fn mend(&self) {
        self.projects.set(0);
        for machine in &self.machines {
            machine.skew_ms.store(0, Ordering::Relaxed);
        }
        let mut inner = self.world.lock();
        inner.rates = Rates::default();
        inner.database.jobs.values_mut().for_each(|clock| clock.paused = false);
        inner.tell(self.world.time.now(), || "nothing breaks any more".to_owned());
    }

    /// Somebody looks through what failed or was cancelled, and asks for it once more; and for what others wait for that no
    /// schedule has asked for yet.
    async fn help(&mut self) {
        let unsuccessful = self.world.lock().invariants.unsuccessful();
        let mut wanted = BTreeSet::new();
        for (key, is_live) in unsuccessful {
            if is_live {
                wanted.extend(self.missing(&key));
            } else {
                wanted.insert(key);
            }
        }
        let demand = |(job, interval)| Demand {
            request: Request { job, interval },
            trigger: Trigger::Manual,
            params: Map::new(),
            tick: None,
            demand: None,
            reprocess: Reprocess::Failed,
            overlap: Overlap::Queue,
        };
        let demands: Vec<Demand> = wanted.into_iter().map(demand).collect();
        if !demands.is_empty() {
            let machine = Arc::clone(self.chance.pick(&self.machines));
            machine.ask(demands).await;
        }
    }

    /// What a run waits for and nobody has asked for; its ticks come later.
    fn missing(&self, key: &Key) -> Vec<Key> {
        let project = &self.projects.versions[0];
        let request = Request { job: key.0.clone(), interval: key.1 };
        let Ok(shape) = self.projects.plan(&request, &"nobody".parse().unwrap(), &Given::default()) else {
            return Vec::new();
        };
        let mut inner = self.world.lock();
        let mut missing = Vec::new();
        for wait in &shape.waits {
            let Some(maker) = project.maker(wait.table.as_str()) else { continue };
            for partition in &wait.partitions {
                let interval = maker.interval_of(partition.ds, partition.hour);
                let is_missing = !inner.invariants.is_published(&Partition::new(wait.table.clone(), partition.clone()));
                if let Some(key) = interval.filter(|_| is_missing).map(|interval| (maker.name.clone(), interval))
                    && !inner.invariants.knows(&key)
                {
                    inner.invariants.asked_again(key.clone());
                    missing.push(key);
                }
            }
        }
        missing
    }

    /// What the schedules have asked for by now.
    fn ticks(&self) -> BTreeSet<Key> {
        // What is due this very moment may still be on its way.
        let now = self.hands.now() - TimeDelta::seconds(3);
        let mut ticks = BTreeSet::new();
        for job in self.projects.versions[0].jobs.values().filter(|job| job.spec.overlap != Overlap::CancelOld) {
            let clock = JobClock { first_seen: self.world.base, cursor: None, paused: false };
            let key = |run: &headworks_flow::ticker::DueRun| (job.name.clone(), run.interval);
            let due = job.due_runs(&clock, now, 10_000).runs;
            match job.spec.catchup {
                Catchup::All => ticks.extend(due.iter().map(key)),
                // Which was the latest depends on the clocks.
                Catchup::Latest if self.is_on_time => ticks.extend(due.last().map(key)),
                _ => {}
            }
        }
        ticks
    }
}

/// Reads partitions over and over.
async fn read(world: Arc<World>) {
    loop {
        let pause = world.lock().chance.between(300, 2_000);
        world.time.sleep(Duration::from_millis(pause)).await;
        let mut inner = world.lock();
        let inner = &mut *inner;
        for (partition, files) in &inner.database.files {
            inner.invariants.read(partition, files, super::database::FILES);
        }
    }
}
