//! What all processes of a simulation share: time, chance, the faults of the moment, the database, the account of the invariants.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use headworks_domain::{Clock, Code, ErrorKind, Fault};
use headworks_flow::{Question, exec::Timer};
use tokio::sync::watch;

use super::{database::Database, invariants::Invariants, mutants::Mutant, time::Time};
use crate::chance::Chance;

/// All files that runs wait for come within so long.
const FILES_COME_WITHIN_SECS: u64 = 120;

/// How often things go wrong: one in so many; 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rates {
    /// A call is never carried out, and its caller gets an error.
    pub(super) lost_requests: u64,
    /// A call is carried out, and its caller gets an error.
    pub(super) lost_replies: u64,
    /// A call is carried out twice.
    pub(super) duplicates: u64,
    /// A call takes seconds.
    pub(super) slow: u64,
    /// The process dies before or after a call.
    pub(super) crashes: u64,
    /// A task fails for a passing reason.
    pub(super) transient: u64,
    /// A task fails for good.
    pub(super) permanent: u64,
    /// A task takes half a minute.
    pub(super) long: u64,
    /// The reply to a publish is lost.
    pub(super) lost_publishes: u64,
    /// A task panics.
    pub(super) panics: u64,
}

pub(super) struct World {
    inner: Mutex<Inner>,
    pub(super) time: Time,
    /// The time on the wall when the simulation begins.
    pub(super) base: DateTime<Utc>,
    pub(super) mutant: Option<Mutant>,
    /// A dead process is known to be so at once, as on one machine.
    pub(super) deaths_show: bool,
    /// Released runs are taken up as soon as somebody releases them.
    pub(super) pull: bool,
}

pub(super) struct Inner {
    pub(super) chance: Chance,
    pub(super) rates: Rates,
    pub(super) away_until: Duration,
    pub(super) database: Database,
    pub(super) invariants: Invariants,
    /// Who hears of publishes. One channel each: those who wait on one are woken in an order of its own.
    listeners: Vec<watch::Sender<u64>>,
    trace: u64,
    told: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, base: DateTime<Utc>, mutant: Option<Mutant>, tells: bool) -> Arc<Self> {
        let mut chance = Chance::new(seed);
        let (deaths_show, pull) = (chance.one_in(2), chance.one_in(2));
        let inner = Inner {
            chance,
            rates: Rates::default(),
            away_until: Duration::ZERO,
            database: Database::default(),
            invariants: Invariants::default(),
            listeners: Vec::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            told: tells.then(Vec::new),
        };
        let time = Time::default();
        Arc::new(Self { inner: Mutex::new(inner), time, base, mutant, deaths_show, pull })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Adds to the story that must be the same for the same seed.
    pub(super) fn tell(&self, text: impl FnOnce() -> String) {
        let now = self.time.now();
        self.lock().tell(now, text);
    }

    /// What happened so far, as one number and, when it was wanted, as text.
    pub(super) fn story(&self) -> (u64, Vec<String>) {
        let inner = self.lock();
        (inner.trace, inner.told.clone().unwrap_or_default())
    }

    /// True once a file is there that runs wait for: each comes at a time of its own, and stays.
    pub(super) fn has_come(&self, question: &Question) -> bool {
        let hash =
            question.to_string().bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        self.time.now() >= Duration::from_secs(hash % FILES_COME_WITHIN_SECS)
    }

    pub(super) fn is_away(&self) -> bool {
        self.lock().away_until > self.time.now()
    }

    pub(super) fn changed(&self) {
        if !self.is(Mutant::ChangeNotTold) {
            let mut inner = self.lock();
            inner.listeners.retain(|listener| !listener.is_closed());
            let listeners = inner.listeners.clone();
            drop(inner);
            listeners.iter().for_each(|listener| listener.send_modify(|n| *n += 1));
        }
    }

    pub(super) fn listen(&self) -> watch::Receiver<u64> {
        let (listener, changes) = watch::channel(0);
        self.lock().listeners.push(listener);
        changes
    }
}

impl Inner {
    pub(super) fn tell(&mut self, now: Duration, text: impl FnOnce() -> String) {
        let text = text();
        let millis = u64::try_from(now.as_millis()).unwrap();
        for byte in millis.to_le_bytes().into_iter().chain(text.bytes()) {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(told) = &mut self.told {
            told.push(format!("{:9.3} {text}", now.as_secs_f64()));
        }
    }

    /// A pause of a call or a task: mostly none or milliseconds.
    pub(super) fn pause(&mut self) -> Duration {
        match self.chance.below(8) {
            0..=2 => Duration::ZERO,
            3..=6 => Duration::from_millis(self.chance.between(1, 8)),
            _ => Duration::from_millis(self.chance.between(10, 300)),
        }
    }
}

/// One life of a process: from its start to its end, its death or its crash.
pub(super) struct Life {
    pub(super) world: Arc<World>,
    pub(super) name: String,
    /// How far its clock on the wall is off, in milliseconds; the machine's, and so kept over deaths.
    pub(super) skew_ms: Arc<AtomicI64>,
    state: Mutex<(bool, Duration)>,
    pub(super) died: watch::Sender<bool>,
}

impl Life {
    pub(super) fn new(world: &Arc<World>, name: String, skew_ms: &Arc<AtomicI64>) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            name,
            skew_ms: Arc::clone(skew_ms),
            state: Mutex::default(),
            died: watch::Sender::default(),
        })
    }

    /// Dies at once: nothing of it goes on.
    pub(super) fn die(&self) {
        self.state.lock().unwrap().0 = true;
        let mut inner = self.world.lock();
        inner.tell(self.world.time.now(), || format!("{} dies", self.name));
        inner.invariants.dies(&self.name);
        inner.database.gone.insert(self.name.clone());
        drop(inner);
        self.died.send_replace(true);
    }

    /// Stands still for a while, as after SIGSTOP.
    pub(super) fn stop(&self, until: Duration) {
        self.state.lock().unwrap().1 = until;
        self.world.lock().invariants.stops(&self.name);
        self.world.tell(|| format!("{} stands still until {}", self.name, until.as_secs()));
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state.lock().unwrap().0
    }

    /// Passes once the process runs: not while it stands still, and never after its death.
    pub(super) async fn gate(&self) {
        loop {
            let (is_dead, stopped_until) = *self.state.lock().unwrap();
            if is_dead {
                std::future::pending::<()>().await;
            }
            if stopped_until <= self.world.time.now() {
                return;
            }
            self.world.time.sleep_until(stopped_until).await;
        }
    }

    pub(super) async fn sleep(&self, pause: Duration) {
        self.world.time.sleep(pause).await;
        self.gate().await;
    }
}

/// The process's clock on the wall, and its timer.
#[derive(Clone)]
pub(super) struct Hands(pub(super) Arc<Life>);

impl Clock for Hands {
    fn now(&self) -> DateTime<Utc> {
        let elapsed = TimeDelta::from_std(self.0.world.time.now()).unwrap();
        self.0.world.base + elapsed + TimeDelta::milliseconds(self.0.skew_ms.load(Ordering::Relaxed))
    }
}

impl std::fmt::Debug for Hands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl Timer for Hands {
    fn elapsed(&self) -> Duration {
        self.0.world.time.now()
    }

    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        let life = Arc::clone(&self.0);
        Box::pin(async move {
            life.world.time.sleep_until(at).await;
            life.gate().await;
        })
    }
}

/// The code of what failed because of the database.
pub(super) const AWAY: &str = "SIM_AWAY";

/// The database is out of reach, or its answer was lost.
#[derive(Debug, thiserror::Error)]
#[error("the database is away")]
pub(super) struct Away;

impl Fault for Away {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }

    fn code(&self) -> Code {
        AWAY
    }
}
