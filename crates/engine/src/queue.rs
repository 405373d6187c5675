//! Queues of queries: so many at once, each with its share of memory, the others wait their turn.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headworks_domain::nearest;
use tokio::sync::oneshot;

use crate::{Caller, Error, QueueOptions, QueueState, Result, pool::Budget};

/// The queue of queries that no rule sends elsewhere.
pub const DEFAULT_QUEUE: &str = "default";

/// All queues of an engine.
pub(crate) struct Queues {
    queues: Vec<Arc<Queue>>,
    /// For what takes no time: questions of clients about the server and its tables. Nobody asks for it by name.
    quick: Arc<Queue>,
}

/// The queue of such questions.
const QUICK_QUEUE: &str = "catalog";
const QUICK_SLOTS: usize = 8;
const QUICK_TIMEOUT: Duration = Duration::from_secs(60);
const QUICK_MEMORY_BYTES_MAX: usize = 256 << 20;

/// A named workload with slots and memory of its own.
pub(crate) struct Queue {
    pub(crate) options: QueueOptions,
    pub(crate) budget: Arc<Budget>,
    gate: Mutex<Gate>,
    entered: AtomicU64,
    refused: AtomicU64,
}

/// Who may go in. Waiters of one user stand in a line of their own, and the lines take turns: somebody with a thousand queries
/// delays nobody else by more than one.
#[derive(Default)]
struct Gate {
    free: usize,
    waiting: usize,
    /// Never an empty line.
    lines: VecDeque<(String, VecDeque<Waiter>)>,
    tickets: u64,
    closed: bool,
}

struct Waiter {
    ticket: u64,
    wake: oneshot::Sender<Slot>,
}

/// A place in the queue, given back when dropped.
pub(crate) struct Slot {
    queue: Arc<Queue>,
}

/// A query that waits; leaves the line when dropped.
pub(crate) struct Waiting {
    queue: Arc<Queue>,
    ticket: u64,
    slot: oneshot::Receiver<Slot>,
}

impl Queues {
    /// Makes the queues; one named `default` is added when none is. Memory is shared out by their parts of a hundred.
    pub(crate) fn new(options: &[QueueOptions], memory_bytes: usize) -> Self {
        let mut options = options.to_vec();
        if options.iter().all(|queue| queue.name != DEFAULT_QUEUE) {
            let used: u32 = options.iter().map(|queue| u32::from(queue.memory_percent)).sum();
            let left = u8::try_from(100_u32.saturating_sub(used).max(1)).unwrap_or(100);
            options.push(QueueOptions { memory_percent: left, ..QueueOptions::new(DEFAULT_QUEUE) });
        }
        let queue = |options: QueueOptions| {
            let share = memory_bytes / 100 * usize::from(options.memory_percent);
            Queue::new(options.clone(), if options.memory_percent >= 100 { memory_bytes } else { share })
        };
        let quick = QueueOptions { slots: QUICK_SLOTS, timeout: Some(QUICK_TIMEOUT), ..QueueOptions::new(QUICK_QUEUE) };
        let quick = Queue::new(quick, QUICK_MEMORY_BYTES_MAX.min(memory_bytes));
        Self { queues: options.into_iter().map(queue).collect(), quick }
    }

    /// The queue for what takes no time.
    pub(crate) fn quick(&self) -> &Arc<Queue> {
        &self.quick
    }

    /// Finds the queue of a query: the one it asks for, else the first that takes its application, else its role, else `default`.
    ///
    /// Errors: `UnknownQueue`, also for a queue that the caller's role may not ask for.
    pub(crate) fn of(&self, asked: Option<&str>, caller: &Caller) -> Result<&Arc<Queue>> {
        let may = |queue: &Queue| match &caller.role {
            Some(role) => queue.options.roles.is_empty() || queue.options.roles.contains(role),
            None => true,
        };
        let by_application = |queue: &&Arc<Queue>| {
            let application = caller.application.as_deref().unwrap_or_default();
            queue.options.applications.iter().any(|pattern| matches(pattern, application)) && may(queue)
        };
        let by_role = |queue: &&Arc<Queue>| caller.role.as_ref().is_some_and(|role| queue.options.roles.contains(role));
        let found = match asked {
            Some(name) => self.queues.iter().find(|queue| queue.options.name == name && may(queue)),
            None => {
                let routed = self.queues.iter().find(by_application).or_else(|| self.queues.iter().find(by_role));
                routed.or_else(|| self.queues.iter().find(|queue| queue.options.name == DEFAULT_QUEUE))
            }
        };
        found.ok_or_else(|| {
            let name = asked.unwrap_or(DEFAULT_QUEUE).to_owned();
            let names = self.queues.iter().filter(|queue| may(queue)).map(|queue| queue.options.name.as_str());
            Error::UnknownQueue { near: nearest(&name, names).map(str::to_owned), name }
        })
    }

    pub(crate) fn all(&self) -> &[Arc<Queue>] {
        &self.queues
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        for queue in self.queues.iter().chain([&self.quick]) {
            let mut gate = queue.gate();
            gate.closed = true;
            gate.waiting = 0;
            gate.lines.clear();
        }
    }
}

/// True when a name fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

impl Queue {
    fn new(options: QueueOptions, memory_bytes: usize) -> Arc<Self> {
        let gate = Gate { free: options.slots.max(1), ..Gate::default() };
        Arc::new(Self {
            budget: Budget::new(memory_bytes),
            options,
            gate: Mutex::new(gate),
            entered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Nothing that holds the lock can leave half a change behind.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot, or a place in the line. Errors: `QueueFull`; `Cancelled` when the queue is closed.
    pub(crate) fn enter(self: &Arc<Self>, user: &str) -> Result<Result<Slot, Waiting>> {
        let mut gate = self.gate();
        if gate.closed {
            return Err(Error::Cancelled);
        }
        if gate.free > 0 {
            gate.free -= 1;
            self.entered.fetch_add(1, Ordering::Relaxed);
            return Ok(Ok(Slot { queue: Arc::clone(self) }));
        }
        if gate.waiting >= self.options.waiting_max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Error::QueueFull { queue: self.options.name.clone(), waiting: gate.waiting });
        }
        gate.tickets += 1;
        gate.waiting += 1;
        let ticket = gate.tickets;
        let (wake, slot) = oneshot::channel();
        let waiter = Waiter { ticket, wake };
        match gate.lines.iter_mut().find(|(name, _)| name == user) {
            Some((_, line)) => line.push_back(waiter),
            None => gate.lines.push_back((user.to_owned(), VecDeque::from([waiter]))),
        }
        Ok(Err(Waiting { queue: Arc::clone(self), ticket, slot }))
    }

    /// How many queries go in before the one with this ticket, itself counted; `None` when it waits no more.
    pub(crate) fn place(&self, ticket: u64) -> Option<usize> {
        let gate = self.gate();
        let (line, at) = gate
            .lines
            .iter()
            .enumerate()
            .find_map(|(n, (_, line))| Some((n, line.iter().position(|waiter| waiter.ticket == ticket)?)))?;
        // Each round takes one of every line, those before ours once more than those behind it.
        let before = |n: usize, len: usize| len.min(if n < line { at + 1 } else { at });
        let others = gate.lines.iter().enumerate().filter(|(n, _)| *n != line);
        Some(at + 1 + others.map(|(n, (_, line))| before(n, line.len())).sum::<usize>())
    }

    /// How it stands now.
    pub(crate) fn state(&self) -> QueueState {
        let gate = self.gate();
        QueueState {
            name: self.options.name.clone(),
            slots: self.options.slots.max(1),
            running: self.options.slots.max(1) - gate.free,
            waiting: gate.waiting,
            memory_bytes: self.budget.limit(),
            memory_used_bytes: self.budget.used(),
            entered: self.entered.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn give_back(self: &Arc<Self>) {
        let waiter = {
            let mut gate = self.gate();
            let Some((user, mut line)) = gate.lines.pop_front() else {
                gate.free += 1;
                return;
            };
            let waiter = line.pop_front();
            if !line.is_empty() {
                gate.lines.push_back((user, line));
            }
            gate.waiting -= 1;
            waiter
        };
        self.entered.fetch_add(1, Ordering::Relaxed);
        // One that has gone meanwhile drops the slot, which comes here again.
        let slot = Slot { queue: Arc::clone(self) };
        if let Some(waiter) = waiter {
            let _ = waiter.wake.send(slot);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.queue.give_back();
    }
}

impl Waiting {
    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Waits for the turn. Errors: `Cancelled` when the queue is closed.
    pub(crate) async fn turn(mut self) -> Result<Slot> {
        (&mut self.slot).await.map_err(|_| Error::Cancelled)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut gate = self.queue.gate();
        let Gate { lines, waiting, .. } = &mut *gate;
        for (_, line) in lines.iter_mut() {
            let before = line.len();
            line.retain(|waiter| waiter.ticket != self.ticket);
            *waiting -= before - line.len();
        }
        lines.retain(|(_, line)| !line.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(slots: usize, waiting_max: usize) -> Queues {
        let dashboards = QueueOptions {
            slots: 10,
            memory_percent: 30,
            applications: vec!["Grafana*".to_owned()],
            roles: vec!["viewer".to_owned()],
            ..QueueOptions::new("dashboards")
        };
        let default = QueueOptions { slots, waiting_max, memory_percent: 70, ..QueueOptions::new(DEFAULT_QUEUE) };
        Queues::new(&[dashboards, default], 1_000)
    }

    fn caller(role: Option<&str>, application: &str) -> Caller {
        Caller {
            role: role.map(str::to_owned),
            application: Some(application.to_owned()),
            ..Caller::trusted("somebody")
        }
    }

    #[test]
    fn queries_find_their_queue() {
        let queues = queues(1, 1);
        let check = |asked: Option<&str>, role: Option<&str>, application: &str, expected: &str| {
            let found = match queues.of(asked, &caller(role, application)) {
                Ok(queue) => queue.options.name.clone(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{asked:?} {role:?} {application}");
        };
        check(None, None, "psql", "default");
        check(None, None, "Grafana 12", "dashboards");
        check(None, Some("viewer"), "psql", "dashboards");
        check(None, Some("analyst"), "psql", "default");
        check(None, Some("analyst"), "Grafana", "default");
        check(Some("dashboards"), None, "", "dashboards");
        check(Some("dashboards"), Some("analyst"), "", "there is no queue `dashboards` for this query");
        check(Some("x"), None, "", "there is no queue `x` for this query");
    }

    #[test]
    fn patterns_have_stars() {
        for (pattern, name, expected) in [
            ("psql", "psql", true),
            ("psql", "psql2", false),
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*bc", "abc", true),
            ("ab*bc", "abc", false),
            ("*b*", "abc", true),
            ("a*b*c", "axbyc", true),
            ("a*b*c", "axyc", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn memory_is_shared_out() {
        let queues = queues(1, 1);
        let shares: Vec<(String, usize)> =
            queues.all().iter().map(|q| (q.options.name.clone(), q.budget.limit())).collect();
        assert_eq!(shares, [("dashboards".to_owned(), 300), ("default".to_owned(), 700)]);
        let alone = Queues::new(&[], 1_234);
        assert_eq!((alone.all().len(), alone.all()[0].budget.limit()), (1, 1_234));
    }

    #[tokio::test]
    async fn lines_of_users_take_turns_and_tell_their_place() {
        let queues = queues(1, 10);
        let queue = queues.of(None, &Caller::default()).unwrap();
        let running = queue.enter("a").unwrap().ok().unwrap();
        let waiting: Vec<(&str, Waiting)> =
            ["a", "a", "a", "b", "c", "b"].map(|user| (user, queue.enter(user).unwrap().err().unwrap())).into();
        let places: Vec<usize> = waiting.iter().map(|(_, w)| queue.place(w.ticket()).unwrap()).collect();
        assert_eq!(places, [1, 4, 6, 2, 3, 5]);
        let (gone, order) = (waiting.len(), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = Vec::new();
        for (n, (user, waiting)) in waiting.into_iter().enumerate() {
            if n == 1 {
                drop(waiting);
                continue;
            }
            let order = Arc::clone(&order);
            tasks.push(tokio::spawn(async move {
                let slot = waiting.turn().await.unwrap();
                order.lock().unwrap().push(user);
                drop(slot);
            }));
        }
        assert_eq!(queue.state().waiting, gone - 1);
        drop(running);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a", "b", "c", "a", "b"]);
        let state = queue.state();
        assert_eq!((state.running, state.waiting, state.entered), (0, 0, 6));
    }

    #[tokio::test]
    async fn full_and_closed_queues_let_nobody_in() {
        let queues = queues(1, 1);
        let queue = queues.of(None, &Caller::default()).unwrap();
        let running = queue.enter("a").unwrap().ok().unwrap();
        let waiting = queue.enter("b").unwrap().err().unwrap();
        assert!(matches!(queue.enter("c"), Err(Error::QueueFull { waiting: 1, .. })));
        assert_eq!(queue.state().refused, 1);
        queues.close();
        assert!(matches!(waiting.turn().await, Err(Error::Cancelled)));
        drop(running);
        assert!(matches!(queue.enter("a"), Err(Error::Cancelled)));
        assert_eq!(queue.state().running, 0);
    }
}
