//! A process that keeps the project running: an executor that serves, and the clockwork in front of it, over and over.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use headworks_domain::Clock;
use headworks_flow::{
    exec::{Ask, Demand, Executor, ExecutorOptions, Takes},
    ticker::Clocks,
};
use tokio::sync::{Mutex, mpsc, watch};

use super::{
    handle::Handle,
    mutants::Mutant,
    project::{FAR, Projects},
    worker::Worker,
    world::{Hands, Life, World},
};

/// One machine, on which one process runs at a time.
pub(super) struct Machine {
    pub(super) world: Arc<World>,
    pub(super) number: usize,
    pub(super) projects: Projects,
    pub(super) skew_ms: Arc<AtomicI64>,
    pub(super) tasks_max: usize,
    pub(super) claims_max: usize,
    pub(super) takes: Takes,
    lives: AtomicU64,
    now: Mutex<Option<Now>>,
}

/// The process of the moment.
struct Now {
    life: Arc<Life>,
    ask: mpsc::Sender<Ask>,
    stop: watch::Sender<bool>,
}

impl Machine {
    pub(super) fn new(
        world: &Arc<World>,
        number: usize,
        projects: &Projects,
        tasks_max: usize,
        claims_max: usize,
        takes: Takes,
    ) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            number,
            projects: projects.clone(),
            skew_ms: Arc::default(),
            tasks_max,
            claims_max,
            takes,
            lives: AtomicU64::new(0),
            now: Mutex::default(),
        })
    }

    /// Starts a process whenever the last one has ended; after a death it takes the machine some time.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let (life, work) = self.start().await;
            let mut died = life.died.subscribe();
            let abort = work.abort_handle();
            let ended = tokio::select! {
                biased;
                _ = died.wait_for(|died| *died) => None,
                ended = work => Some(ended),
            };
            match ended {
                None => abort.abort(),
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    let what = format!("{} broke: {error}", life.name);
                    self.world.lock().invariants.breaks(what);
                    life.die();
                }
            }
            *self.now.lock().await = None;
            let pause = {
                let mut inner = self.world.lock();
                inner.chance.between(200, 25_000)
            };
            self.world.time.sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn start(self: &Arc<Self>) -> (Arc<Life>, tokio::task::JoinHandle<()>) {
        let name = format!("m{}l{}", self.number, self.lives.fetch_add(1, Ordering::Relaxed));
        let life = Life::new(&self.world, name, &self.skew_ms);
        let takes = Some(self.takes.clone()).filter(|_| self.tasks_max > 0);
        let handle = Handle::new(Arc::clone(&life), takes);
        let hands = Hands(Arc::clone(&life));
        // Nothing is written to such a folder, and nothing has to be.
        let mut options = ExecutorOptions::new(PathBuf::from("/dev/null"));
        let extra = usize::from(self.world.is(Mutant::OneSlotTooMany));
        options.tasks_max = self.tasks_max + extra;
        options.claims_max = self.claims_max;
        options.takes = self.takes.clone();
        if self.world.is(Mutant::ZoneOfOthers) {
            options.takes.zone = Some(FAR.to_owned());
        }
        options.store_tries = u32::MAX;
        options.pull = self.world.pull;
        options.timer = Arc::new(hands.clone());
        let executor = Executor {
            store: handle.clone(),
            partitions: handle.clone(),
            planner: Arc::new(self.projects.clone()),
            runner: Arc::new(Worker {
                handle: handle.clone(),
                projects: self.projects.clone(),
                tasks_max: self.tasks_max,
                zone: self.takes.zone.clone(),
            }),
            clock: Arc::new(hands.clone()),
            options,
        };
        let (ask, inbox) = mpsc::channel(64);
        let (stop, stopped) = watch::channel(false);
        let clockwork = Clockwork { handle, hands, projects: self.projects.clone(), ask: ask.clone() };
        *self.now.lock().await = Some(Now { life: Arc::clone(&life), ask, stop });
        let (tell, _) = mpsc::unbounded_channel();
        let work = tokio::spawn(async move {
            let clock_stopped = stopped.clone();
            let serve = executor.serve(inbox, stopped, tell);
            tokio::pin!(serve);
            let ended = tokio::select! {
                biased;
                ended = &mut serve => ended,
                () = clockwork.run(clock_stopped) => serve.await,
            };
            // The lease could not be given back: it has to run out.
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_retryable()));
        });
        (life, work)
    }

    /// The process dies.
    pub(super) async fn kill(&self) {
        if let Some(now) = &*self.now.lock().await {
            now.life.die();
        }
    }

    /// The process stands still for a while.
    pub(super) async fn freeze(&self, pause: Duration) {
        if let Some(now) = &*self.now.lock().await {
            now.life.stop(self.world.time.now() + pause);
        }
    }

    /// The process is asked to end.
    pub(super) async fn stop(&self) {
        if let Some(now) = &*self.now.lock().await {
            self.world.tell(|| format!("{} is asked to stop", now.life.name));
            now.stop.send_replace(true);
        }
    }

    /// Somebody asks for runs; false when nobody listens.
    pub(super) async fn ask(&self, demands: Vec<Demand>) -> bool {
        match &*self.now.lock().await {
            Some(now) if !now.life.is_dead() && !*now.stop.borrow() => now.ask.try_send(Ask::Runs(demands)).is_ok(),
            _ => false,
        }
    }
}

/// Turns ticks into demands, as `headworks up` does.
struct Clockwork {
    handle: Arc<Handle>,
    hands: Hands,
    projects: Projects,
    ask: mpsc::Sender<Ask>,
}

impl Clockwork {
    async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut clocks = Clocks::default();
        let mut seen = None;
        loop {
            let project = self.projects.current();
            // Files that changed are noticed here; a real process is told.
            if seen == Some(project.jobs.len()) {
                self.wishes(&mut clocks).await;
            } else {
                // Also when the files are as before by the time that somebody answers.
                seen = self.remember(&mut clocks).await.then(|| project.jobs.len());
            }
            let now = self.hands.now();
            while let Some(demands) = clocks.due(&project, now) {
                if self.handle.life.world.is(Mutant::CursorBeforeClaim)
                    && let Some((job, tick)) = demands.last().and_then(|d| Some((d.request.job.clone(), d.tick?)))
                {
                    let keep = self
                        .handle
                        .call("cursor", |db, asker, invariants| db.move_cursor(&job, tick, asker, invariants));
                    let _ = keep.await;
                }
                if !demands.is_empty() && self.ask.send(Ask::Runs(demands)).await.is_err() {
                    return;
                }
            }
            let until = clocks.next().and_then(|at| (at - self.hands.now()).to_std().ok());
            let look_every = Duration::from_secs(1);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.hands.0.sleep(until.unwrap_or(look_every).min(look_every)) => {}
            }
        }
    }

    async fn remember(&self, clocks: &mut Clocks) -> bool {
        let Ok(rows) = self.handle.jobs().await else { return false };
        clocks.remember(&self.projects.current(), rows);
        true
    }

    async fn wishes(&self, clocks: &mut Clocks) {
        let Ok(rows) = self.handle.jobs().await else { return };
        let paused = rows.into_iter().filter(|(_, row)| row.paused).map(|(job, _)| job).collect();
        clocks.pause(&paused, self.hands.now());
        // What its owner did not live to stop is nobody's to go on with. Who cannot be asked now is asked again.
        let _ = self.handle.end_abandoned_wishes().await;
    }
}
