use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation},
};

/// The memory that all queries of a queue hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }
}

/// The memory of one query: a fair share for each of its operators that can spill, under the budget of all queries.
///
/// Groups may take half of it: their tables double when they are full, and are counted when they have, so that the old and the
/// new one together are what they really take.
///
/// One pool per query, because a `FairSpillPool` divides by the number of consumers it sees: shared by all queries, a
/// wide one would starve the others.
#[derive(Debug)]
pub(crate) struct QueryPool {
    fair: FairSpillPool,
    budget: Arc<Budget>,
}

impl QueryPool {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { fair: FairSpillPool::new(budget.limit), budget }
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.fair.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.fair.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.budget.used.fetch_add(additional, Ordering::Relaxed);
        self.fair.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.fair.shrink(reservation, shrink);
        self.budget.used.fetch_sub(shrink, Ordering::Relaxed);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let name = reservation.consumer().name();
        let most = self.budget.limit / 2;
        if name.contains("Aggregate") && reservation.size() + additional > most {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{name} asked for {additional} bytes more, its groups hold {} of {most}",
                reservation.size()
            )));
        }
        if !self.budget.take(additional) {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{name} asked for {additional} bytes more, the queries of its queue hold {} of {}",
                self.budget.used(),
                self.budget.limit
            )));
        }
        self.fair.try_grow(reservation, additional).inspect_err(|_| {
            self.budget.used.fetch_sub(additional, Ordering::Relaxed);
        })
    }

    fn reserved(&self) -> usize {
        self.fair.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.budget.limit)
    }
}

impl fmt::Display for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query(limit: {} bytes)", self.budget.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_leave_room_to_double() {
        let budget = Budget::new(1_000);
        let pool: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(budget.clone()));
        let groups = MemoryConsumer::new("SingleHashAggregateStream[0]").with_can_spill(true).register(&pool);
        groups.try_grow(500).unwrap();
        let error = groups.try_grow(1).unwrap_err().to_string();
        assert!(error.contains("hold 500 of 500"), "{error}");
        assert_eq!(budget.used(), 500);
    }

    #[test]
    fn queries_share_one_budget_and_give_it_back() {
        let budget = Budget::new(1_000);
        let pools: [Arc<dyn MemoryPool>; 2] =
            [Arc::new(QueryPool::new(budget.clone())), Arc::new(QueryPool::new(budget.clone()))];
        let first = MemoryConsumer::new("sort").with_can_spill(true).register(&pools[0]);
        let second = MemoryConsumer::new("join").register(&pools[1]);
        first.try_grow(700).unwrap();
        let error = second.try_grow(400).unwrap_err().to_string();
        assert!(error.contains("join asked for 400 bytes more"), "{error}");
        second.try_grow(300).unwrap();
        assert_eq!(budget.used(), 1_000);
        drop(first);
        assert_eq!(budget.used(), 300);
        drop(second);
        assert_eq!(budget.used(), 0);
    }
}
