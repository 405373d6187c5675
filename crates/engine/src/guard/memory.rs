use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use crate::{
    Error, Priority, QueryId, Result,
    live::{Live, Registry},
};

/// How often the process's memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often while more than half of what the engine may have is held: a thread can fill five megabytes in a millisecond.
const LOOK_EVERY_WHEN_FULL: Duration = Duration::from_millis(5);
/// How long one that was stopped may take to let go of what it holds.
const LETTING_GO: Duration = Duration::from_millis(200);
/// How often while no query is there: the allocator's answer costs a fifth of a millisecond.
const IDLE_EVERY: Duration = Duration::from_secs(1);

/// Stops queries when the process holds more memory than the engine may have.
///
/// The pools count what operators say they hold; batches on their way, results of functions and what a library forgets
/// are in nobody's account. Here the allocator's own number decides.
pub(crate) struct Watch {
    allocated: fn() -> usize,
    memory_bytes: usize,
    registry: Arc<Registry>,
    /// What the process holds without any query, and when it was asked.
    idle: (usize, Instant),
    /// The newest query that was there at the last look.
    seen: Option<QueryId>,
    /// When a query was stopped last, and what was held then.
    let_go: Option<(Instant, usize)>,
    /// What the queries held at the last look.
    held: usize,
}

impl Watch {
    pub(crate) fn new(allocated: fn() -> usize, memory_bytes: usize, registry: Arc<Registry>) -> Self {
        Self {
            allocated,
            memory_bytes,
            registry,
            idle: (allocated(), Instant::now()),
            seen: None,
            let_go: None,
            held: 0,
        }
    }

    /// Starts a thread of its own, as the engine's may be busy for as long as it matters. It ends when what this gives is
    /// dropped. Errors: `Start`.
    pub(crate) fn start(mut self) -> Result<mpsc::Sender<()>> {
        let (alive, closed) = mpsc::channel();
        let look = move || {
            while closed.recv_timeout(self.pause()) == Err(mpsc::RecvTimeoutError::Timeout) {
                self.look();
            }
        };
        std::thread::Builder::new().name("headworks-memory".to_owned()).spawn(look).map_err(Error::Start)?;
        Ok(alive)
    }

    fn pause(&self) -> Duration {
        if self.held > self.memory_bytes / 2 { LOOK_EVERY_WHEN_FULL } else { LOOK_EVERY }
    }

    fn look(&mut self) {
        let queries = self.registry.all();
        if queries.is_empty() {
            self.held = 0;
            if self.idle.1.elapsed() >= IDLE_EVERY {
                self.idle = ((self.allocated)(), Instant::now());
            }
            return;
        }
        // What has come since the last look had no time to take much.
        let seen = std::mem::replace(&mut self.seen, queries.iter().map(|live| live.id()).max());
        if queries.iter().all(|live| Some(live.id()) > seen) {
            return;
        }
        let held = (self.allocated)().saturating_sub(self.idle.0);
        self.held = held;
        let limit = self.memory_bytes - self.memory_bytes / 10;
        // One that was stopped needs a moment: until then the next goes only when memory grows on.
        let most = match self.let_go {
            Some((at, held)) if at.elapsed() < LETTING_GO => held + self.memory_bytes / 10,
            _ => limit,
        };
        if held <= most.max(limit) {
            return;
        }
        let is_far_over = held > self.memory_bytes + self.memory_bytes / 5;
        if let Some(live) = victim(&queries, self.memory_bytes / 10, is_far_over) {
            tracing::warn!(query = %live.id(), bytes = held, "memory is used up, a query is stopped");
            self.let_go = Some((Instant::now(), held));
            live.stop_for(Error::Exhausted {
                message: format!(
                    "the server's queries hold {held} bytes of {}, and this one is taken to hold most of them",
                    self.memory_bytes
                ),
            });
        }
    }
}

/// Far over the limit the query that says it holds most, when that is much: what counts all it holds may fill its share. Else one
/// of the least eager queue: the newest of those that make large values, which nobody counts, as what grows so fast has not been
/// there for long; far over the limit the one that holds most.
fn victim(queries: &[Arc<Live>], much_bytes: usize, is_far_over: bool) -> Option<&Arc<Live>> {
    let at_work = || queries.iter().filter(|live| live.is_at_work() && !live.is_stopped());
    let holding = |bytes: usize| at_work().filter(move |live| is_far_over && live.memory_bytes() >= bytes);
    let patience = |live: &Arc<Live>| match live.queue().options.priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    };
    let largest = holding(much_bytes).max_by_key(|live| live.memory_bytes());
    let newest = || at_work().filter(|live| live.may_grow()).max_by_key(|live| (patience(live), live.id()));
    // Who holds next to nothing is left alone: others are on their way out.
    let last = || holding(much_bytes / 4).max_by_key(|live| (patience(live), live.memory_bytes()));
    largest.or_else(newest).or_else(last)
}
