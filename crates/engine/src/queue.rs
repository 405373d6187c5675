//! Queues of queries: so many at once, each with its share of memory, the others wait their turn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headworks_domain::nearest;

use crate::{
    Caller, Error, QueueOptions, QueueState, Result,
    pool::Budget,
    turns::{Asked, Turn, Turns, Waiting},
};

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
    slots: Arc<Turns>,
    refused: AtomicU64,
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
            queue.slots.close();
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
        let slots = Turns::new(options.slots);
        Arc::new(Self { budget: Budget::new(memory_bytes), options, slots, refused: AtomicU64::new(0) })
    }

    /// Takes a slot, or a place in the line. Errors: `QueueFull`; `Cancelled` when the queue is closed.
    pub(crate) fn enter(&self, user: &str) -> Result<Result<Turn, Waiting>> {
        match self.slots.ask(user, self.options.waiting_max)? {
            Asked::Got(slot) => Ok(Ok(slot)),
            Asked::Wait(waiting) => Ok(Err(waiting)),
            Asked::Full(waiting) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(Error::QueueFull { queue: self.options.name.clone(), waiting })
            }
        }
    }

    /// How many queries go in before the one with this ticket, itself counted; `None` when it waits no more.
    pub(crate) fn place(&self, ticket: u64) -> Option<usize> {
        self.slots.place(ticket)
    }

    /// How it stands now.
    pub(crate) fn state(&self) -> QueueState {
        let slots = self.slots.state();
        QueueState {
            name: self.options.name.clone(),
            slots: slots.at_once,
            running: slots.inside,
            waiting: slots.waiting,
            memory_bytes: self.budget.limit(),
            memory_used_bytes: self.budget.used(),
            entered: slots.entered,
            refused: self.refused.load(Ordering::Relaxed),
        }
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
