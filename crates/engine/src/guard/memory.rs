use std::{
    cmp::Reverse,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use crate::{
    Error, Priority, QueryId, Result,
    live::{Live, Registry},
};

/// How often the process's memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
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
    /// The query that was stopped last, and what was held then.
    let_go: Option<(QueryId, usize)>,
}

impl Watch {
    pub(crate) fn new(allocated: fn() -> usize, memory_bytes: usize, registry: Arc<Registry>) -> Self {
        Self { allocated, memory_bytes, registry, idle: (allocated(), Instant::now()), seen: None, let_go: None }
    }

    /// Starts a thread of its own, as the engine's may be busy for as long as it matters. It ends when what this gives is
    /// dropped. Errors: `Start`.
    pub(crate) fn start(mut self) -> Result<mpsc::Sender<()>> {
        let (alive, closed) = mpsc::channel();
        let look = move || {
            while closed.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                self.look();
            }
        };
        std::thread::Builder::new().name("headworks-memory".to_owned()).spawn(look).map_err(Error::Start)?;
        Ok(alive)
    }

    fn look(&mut self) {
        let queries = self.registry.all();
        if queries.is_empty() {
            self.let_go = None;
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
        let limit = self.memory_bytes + self.memory_bytes / 5;
        // One that was stopped may need a moment: as long as it is there, the next goes only when memory grows on.
        let most = match self.let_go {
            Some((id, at)) if self.registry.get(id).is_some() => at + self.memory_bytes / 10,
            _ => limit,
        };
        if held <= most.max(limit) {
            return;
        }
        if let Some(live) = victim(&queries, self.memory_bytes / 10) {
            tracing::warn!(query = %live.id(), bytes = held, "memory is used up, a query is stopped");
            self.let_go = Some((live.id(), held));
            live.stop_for(Error::Exhausted {
                message: format!(
                    "the server's queries hold {held} bytes of {}, and this one is taken to hold most of them",
                    self.memory_bytes
                ),
            });
        }
    }
}

/// The query that says it holds most, when that is much; else of the least eager queue the newest of those that make
/// large values, which nobody counts: what grows so fast has not been there for long.
fn victim(queries: &[Arc<Live>], much_bytes: usize) -> Option<&Arc<Live>> {
    let at_work = || queries.iter().filter(|live| live.is_at_work() && !live.is_stopped());
    let largest = at_work().max_by_key(|live| live.memory_bytes())?;
    if largest.memory_bytes() >= much_bytes {
        return Some(largest);
    }
    let eagerness = |live: &Arc<Live>| match live.queue().options.priority {
        Priority::High => 2,
        Priority::Normal => 1,
        Priority::Low => 0,
    };
    let newest = at_work().filter(|live| live.may_grow()).max_by_key(|live| (Reverse(eagerness(live)), live.id()));
    // Who holds next to nothing and makes nothing large is left alone: others, or their planning, are on their way out.
    newest.or_else(|| (largest.memory_bytes() >= much_bytes / 4).then_some(largest))
}
