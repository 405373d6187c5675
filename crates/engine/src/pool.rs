use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::datatypes::{DataType, Schema};
use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation},
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode},
    },
};

use crate::{access::Barrier, shared::SharedExec};

/// The groups that a thread holds of its own rows before it hands them on: some more than the 100,000 rows after which DataFusion
/// looks whether there are several rows to a group at all.
const OWN_GROUPS_MAX: usize = 128 << 10;

/// What a group takes besides its columns: two places in the hash table, which is at most so empty.
const GROUP_PLACE_BYTES: usize = 34;

/// What a text takes with its view; longer ones are handed on before DataFusion looks.
const TEXT_BYTES: usize = 128;

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
/// Those that a thread makes of its own rows, before rows of a key come together, are to stay within the processor's cache: the
/// thread hands on what it has then, and begins again. That loses little where rows of a key are near each other, and where
/// they are not the table would be slow.
///
/// One pool per query, because a `FairSpillPool` divides by the number of consumers it sees: shared by all queries, a
/// wide one would starve the others.
#[derive(Debug)]
pub(crate) struct QueryPool {
    fair: FairSpillPool,
    budget: Arc<Budget>,
    /// Bytes for the groups that a thread makes of its own rows.
    own_groups_max: usize,
}

impl QueryPool {
    /// The pool of one run of a plan.
    pub(crate) fn new(budget: Arc<Budget>, plan: &Arc<dyn ExecutionPlan>) -> Self {
        Self {
            fair: FairSpillPool::new(budget.limit),
            own_groups_max: own_groups_max(plan).unwrap_or(usize::MAX),
            budget,
        }
    }
}

/// The bytes that [`OWN_GROUPS_MAX`] groups of a plan take, of its widest ones. None where it has none, or where they may take any
/// number, as those of `approx_distinct`: a table of few such groups would be handed on after each batch.
fn own_groups_max(plan: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    let mut most = None;
    let mut nodes = vec![plan];
    let mut shared = HashSet::new();
    while let Some(node) = nodes.pop() {
        if let Some(reader) = node.downcast_ref::<SharedExec>() {
            nodes.extend(shared.insert(Arc::as_ptr(reader.inner())).then_some(reader.inner()));
        } else if let Some(barrier) = node.downcast_ref::<Barrier>() {
            nodes.push(barrier.inner());
        } else if let Some(groups) = node.downcast_ref::<AggregateExec>()
            && *groups.mode() == AggregateMode::Partial
            && groups.group_expr().is_single()
        {
            let bytes = group_bytes(&groups.schema(), groups.group_expr().expr().len())?;
            most = most.max(Some(OWN_GROUPS_MAX * bytes));
        }
        nodes.extend(node.children());
    }
    most
}

/// What a group takes about, with its key in the first columns and what is calculated of it in the others.
fn group_bytes(schema: &Schema, keys: usize) -> Option<usize> {
    let columns = schema.fields().iter().enumerate().map(|(index, field)| match field.data_type() {
        DataType::Boolean => Some(1),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View if index < keys => Some(TEXT_BYTES),
        other => other.primitive_width(),
    });
    columns.sum::<Option<usize>>().map(|columns| GROUP_PLACE_BYTES + columns)
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
        let most = match name.starts_with("PartialHashAggregateStream") {
            true => self.own_groups_max.min(self.budget.limit / 2),
            false => self.budget.limit / 2,
        };
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
    use arrow::datatypes::Field;
    use datafusion::{
        physical_plan::displayable,
        prelude::{SessionConfig, SessionContext},
    };

    use super::*;

    fn pool(budget: &Arc<Budget>, own_groups_max: usize) -> Arc<dyn MemoryPool> {
        Arc::new(QueryPool { fair: FairSpillPool::new(budget.limit), budget: Arc::clone(budget), own_groups_max })
    }

    #[test]
    fn groups_leave_room_to_double() {
        let budget = Budget::new(1_000);
        let pool = pool(&budget, usize::MAX);
        for name in ["SingleHashAggregateStream[0]", "PartialHashAggregateStream[1]"] {
            let groups = MemoryConsumer::new(name).with_can_spill(true).register(&pool);
            groups.try_grow(500).unwrap();
            let error = groups.try_grow(1).unwrap_err().to_string();
            assert!(error.contains("hold 500 of 500"), "{error}");
            assert_eq!(budget.used(), 500);
        }
    }

    #[test]
    fn groups_of_a_thread_s_own_rows_are_few() {
        let budget = Budget::new(1_000);
        let pool = pool(&budget, 100);
        let own = MemoryConsumer::new("PartialHashAggregateStream[0]").with_can_spill(true).register(&pool);
        let all = MemoryConsumer::new("FinalHashAggregateStream[0]").with_can_spill(true).register(&pool);
        own.try_grow(100).unwrap();
        let error = own.try_grow(1).unwrap_err().to_string();
        assert!(error.contains("hold 100 of 100"), "{error}");
        all.try_grow(101).unwrap();
    }

    /// Statements, and the bytes of a group of theirs; none where groups are not handed on early.
    #[tokio::test]
    async fn groups_are_handed_on_early_where_each_is_small() {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        for (sql, expected) in [
            ("select v % 3, sum(v) from range(9) t(v) group by 1", Some(GROUP_PLACE_BYTES + 8 + 8)),
            ("select v % 3, avg(v), max(v) from range(9) t(v) group by 1", Some(GROUP_PLACE_BYTES + 8 + 8 + 8 + 8)),
            (
                "select cast(v as varchar), sum(v) from range(9) t(v) group by 1",
                Some(GROUP_PLACE_BYTES + TEXT_BYTES + 8),
            ),
            (
                "select sum(a) from (select v % 3, sum(v) as a from range(9) t(v) group by 1)",
                Some(GROUP_PLACE_BYTES + 8 + 8),
            ),
            ("select v % 3, approx_distinct(v) from range(9) t(v) group by 1", None),
            ("select v % 3, array_agg(v) from range(9) t(v) group by 1", None),
            ("select [v % 3], sum(v) from range(9) t(v) group by 1", None),
            ("select sum(a) from (select v % 3, array_agg(v)[1] as a from range(9) t(v) group by 1)", None),
            ("select v from range(9) t(v)", None),
        ] {
            let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            let shown = displayable(plan.as_ref()).indent(false);
            let found = own_groups_max(&plan);
            assert_eq!(found, expected.map(|bytes| OWN_GROUPS_MAX * bytes), "{sql}\n{shown}");
        }
        assert_eq!(group_bytes(&Schema::new(vec![Field::new("t", DataType::Utf8, true)]), 0), None);
    }

    #[test]
    fn queries_share_one_budget_and_give_it_back() {
        let budget = Budget::new(1_000);
        let pools = [(); 2].map(|()| pool(&budget, usize::MAX));
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
