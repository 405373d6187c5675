//! What a plan has several times is computed once: groupings, as those of a WITH that is read twice.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{Hash, Hasher},
    ptr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use arrow::array::{Array, ArrayData, RecordBatch};
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{
        DFSchemaRef, Statistics,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    execution::{
        SendableRecordBatchStream, SessionState, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    logical_expr::{
        Expr, Extension, LogicalPlan, TableSource, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::PhysicalExpr,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, RecordOutput},
        statistics::{StatisticsArgs, StatisticsContext},
        stream::RecordBatchStreamAdapter,
    },
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared},
    stream,
};
use tokio::sync::OnceCell;

use crate::plan::changes_by_itself;

/// Plans an optimised query, so that each grouping that it has several times is computed once.
///
/// Only groupings: they are small beside what they read, and their rows are held in memory until all who want them have them.
pub(crate) async fn plan_sharing(logical: &LogicalPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
    let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(OncePlanner)]);
    match Repeats::of(logical)? {
        Some(mut repeats) => planner.create_physical_plan(&repeats.marked(logical.clone())?, state).await,
        None => planner.create_physical_plan(logical, state).await,
    }
}

/// A part of a plan, equal to others that do the same with the same tables.
///
/// DataFusion compares scans by the names of their tables only: one name may stand for two versions of a table.
struct Part {
    plan: LogicalPlan,
    tables: Vec<Arc<dyn TableSource>>,
}

impl Part {
    /// None for what may not be shared: what gives other rows each time, or depends on the query around it.
    fn of(plan: &LogicalPlan) -> Result<Option<Self>> {
        let (mut tables, mut is_bound) = (Vec::new(), false);
        plan.apply_with_subqueries(|node| {
            match node {
                LogicalPlan::TableScan(scan) => tables.push(Arc::clone(&scan.source)),
                // It reads what it has made so far, by a name that another may have too.
                LogicalPlan::RecursiveQuery(_) => is_bound = true,
                _ => {}
            }
            node.apply_expressions(|expr| {
                expr.apply(|inner| {
                    is_bound |= matches!(inner, Expr::OuterReferenceColumn(..) | Expr::Placeholder(_));
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        })?;
        let is_fixed = !is_bound && !changes_by_itself(plan)?;
        Ok(is_fixed.then(|| Self { plan: plan.clone(), tables }))
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.tables.len() == other.tables.len()
            && self.tables.iter().zip(&other.tables).all(|(a, b)| ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)))
            && self.plan == other.plan
    }
}

impl Eq for Part {}

impl Hash for Part {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.plan.hash(state);
    }
}

/// The groupings of a plan, and how often each is there.
struct Repeats(HashMap<Part, Repeat>);

#[derive(Default)]
struct Repeat {
    count: usize,
    once: Option<Arc<Once>>,
}

impl Repeats {
    /// None where nothing is there twice.
    fn of(plan: &LogicalPlan) -> Result<Option<Self>> {
        let mut groupings: HashMap<Part, Repeat> = HashMap::new();
        plan.apply_with_subqueries(|node| {
            match node {
                LogicalPlan::RecursiveQuery(_) => return Ok(TreeNodeRecursion::Jump),
                LogicalPlan::Aggregate(_) => {}
                _ => return Ok(TreeNodeRecursion::Continue),
            }
            let Some(part) = Part::of(node)? else { return Ok(TreeNodeRecursion::Continue) };
            let repeat = groupings.entry(part).or_default();
            repeat.count += 1;
            // What is inside of the second is there once still.
            Ok(if repeat.count > 1 { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue })
        })?;
        groupings.retain(|_, repeat| repeat.count > 1);
        Ok((!groupings.is_empty()).then_some(Self(groupings)))
    }

    /// The plan with a mark in each place of what is there more than once.
    fn marked(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let marked = plan.transform_down_with_subqueries(|node| {
            if matches!(node, LogicalPlan::RecursiveQuery(_)) {
                return Ok(Transformed::new(node, false, TreeNodeRecursion::Jump));
            }
            let part = match &node {
                LogicalPlan::Aggregate(_) => Part::of(&node)?,
                _ => None,
            };
            let Some(part) = part.filter(|part| self.0.contains_key(part)) else { return Ok(Transformed::no(node)) };
            let known = self.0.get(&part).and_then(|repeat| repeat.once.clone());
            let once = match known {
                Some(once) => once,
                None => {
                    // Without itself, for it would be found in itself.
                    let repeat = self.0.remove(&part).unwrap_or_default();
                    let once = Arc::new(Once::new(self.marked(node)?));
                    self.0.insert(part, Repeat { once: Some(Arc::clone(&once)), ..repeat });
                    once
                }
            };
            let mark = LogicalPlan::Extension(Extension { node: Arc::new(OnceNode(once)) });
            Ok(Transformed::new(mark, true, TreeNodeRecursion::Jump))
        })?;
        Ok(marked.data)
    }
}

/// What is computed once for all places of a plan that want it.
struct Once {
    logical: LogicalPlan,
    physical: OnceCell<Arc<dyn ExecutionPlan>>,
    /// The rows of each partition, when somebody has asked.
    rows: OnceLock<Vec<Mutex<Option<Rows>>>>,
}

/// The rows of a partition, for all who wait for them.
type Rows = Shared<BoxFuture<'static, Held>>;

/// Rows, and the account of the memory that they take.
type Held = std::result::Result<Arc<(Vec<RecordBatch>, MemoryReservation)>, Arc<DataFusionError>>;

impl Once {
    fn new(logical: LogicalPlan) -> Self {
        Self { logical, physical: OnceCell::new(), rows: OnceLock::new() }
    }

    fn rows(&self, plan: &Arc<dyn ExecutionPlan>, partition: usize, context: Arc<TaskContext>) -> Rows {
        let count = plan.output_partitioning().partition_count();
        let partitions = self.rows.get_or_init(|| (0..count).map(|_| Mutex::default()).collect());
        let mut begun = partitions[partition].lock().unwrap_or_else(PoisonError::into_inner);
        let begun = begun.get_or_insert_with(|| {
            let plan = Arc::clone(plan);
            async move { held(&plan, partition, context).await.map_err(Arc::new) }.boxed().shared()
        });
        begun.clone()
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("logical", &self.logical).finish_non_exhaustive()
    }
}

async fn held(
    plan: &Arc<dyn ExecutionPlan>,
    partition: usize,
    context: Arc<TaskContext>,
) -> Result<Arc<(Vec<RecordBatch>, MemoryReservation)>> {
    let memory = MemoryConsumer::new(format!("SharedExec[{partition}]")).register(context.memory_pool());
    let mut rows = plan.execute(partition, context)?;
    let (mut batches, mut counted) = (Vec::new(), HashSet::new());
    while let Some(batch) = rows.try_next().await? {
        let columns = batch.columns().iter();
        memory.try_grow(columns.map(|column| bytes(&column.to_data(), &mut counted)).sum())?;
        batches.push(batch);
    }
    Ok(Arc::new((batches, memory)))
}

/// Bytes of the buffers that were not counted yet: the batches of a grouping are slices of the same.
fn bytes(data: &ArrayData, counted: &mut HashSet<usize>) -> usize {
    let buffers = data.buffers().iter().chain(data.nulls().map(|nulls| nulls.buffer()));
    let own: usize =
        buffers.filter(|buffer| counted.insert(buffer.data_ptr().addr().get())).map(|b| b.capacity()).sum();
    own + data.child_data().iter().map(|child| bytes(child, counted)).sum::<usize>()
}

/// In a logical plan: what is computed once, as a leaf.
#[derive(Debug, Clone)]
struct OnceNode(Arc<Once>);

impl PartialEq for OnceNode {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OnceNode {}

impl Hash for OnceNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl PartialOrd for OnceNode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Arc::as_ptr(&self.0).partial_cmp(&Arc::as_ptr(&other.0))
    }
}

impl UserDefinedLogicalNodeCore for OnceNode {
    fn name(&self) -> &str {
        "Shared"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        Vec::new()
    }

    fn schema(&self) -> &DFSchemaRef {
        self.0.logical.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Shared: {}", self.0.logical.display())
    }

    fn with_exprs_and_inputs(&self, _exprs: Vec<Expr>, _inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(self.clone())
    }
}

#[derive(Debug)]
struct OncePlanner;

#[async_trait]
impl ExtensionPlanner for OncePlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        _physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        _context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(OnceNode(once)) = node.as_any().downcast_ref::<OnceNode>() else { return Ok(None) };
        let plan = once.physical.get_or_try_init(|| planner.create_physical_plan(&once.logical, session)).await?;
        Ok(Some(Arc::new(SharedExec::new(Arc::clone(once), Arc::clone(plan)))))
    }
}

/// The rows of a plan that others read too. The plan is planned whole, and a leaf here: no rule moves anything of one reader
/// into it.
#[derive(Debug)]
pub(crate) struct SharedExec {
    once: Arc<Once>,
    inner: Arc<dyn ExecutionPlan>,
    metrics: ExecutionPlanMetricsSet,
}

impl SharedExec {
    fn new(once: Arc<Once>, inner: Arc<dyn ExecutionPlan>) -> Self {
        Self { once, inner, metrics: ExecutionPlanMetricsSet::new() }
    }

    /// The plan that is run once; the same for all readers.
    pub(crate) fn inner(&self) -> &Arc<dyn ExecutionPlan> {
        &self.inner
    }
}

impl DisplayAs for SharedExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match kind {
            DisplayFormatType::TreeRender => Ok(()),
            _ => f.write_str("SharedExec"),
        }
    }
}

impl ExecutionPlan for SharedExec {
    fn name(&self) -> &'static str {
        "SharedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = self.once.rows(&self.inner, partition, context);
        let batches = stream::once(rows).map(|held| held.map_err(DataFusionError::Shared));
        let batches = batches.map_ok(|held| {
            let count = held.0.len();
            stream::iter(0..count).map(move |at| Ok(held.0[at].clone()))
        });
        let batches = batches.try_flatten().inspect_ok(move |batch: &RecordBatch| {
            batch.record_output(&metrics);
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }

    fn statistics_from_inputs(&self, _inputs: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        StatisticsContext::new().compute(self.inner.as_ref(), args)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::datatypes::{DataType, Field, Schema},
        datasource::{empty::EmptyTable, provider_as_source},
        logical_expr::{LogicalPlanBuilder, col},
    };

    use super::*;

    fn table() -> Arc<dyn TableSource> {
        let schema = Schema::new(vec![Field::new("k", DataType::Int64, true)]);
        provider_as_source(Arc::new(EmptyTable::new(Arc::new(schema))))
    }

    /// The keys of two tables of the same name, each once.
    fn keys_of(left: Arc<dyn TableSource>, right: Arc<dyn TableSource>) -> LogicalPlan {
        let keys = |source| {
            let scan = LogicalPlanBuilder::scan("t", source, None).unwrap();
            scan.aggregate(vec![col("k")], Vec::<Expr>::new()).unwrap()
        };
        keys(left).union(keys(right).build().unwrap()).unwrap().build().unwrap()
    }

    #[test]
    fn one_name_may_stand_for_two_tables() {
        let (one, other) = (table(), table());
        assert!(Repeats::of(&keys_of(Arc::clone(&one), Arc::clone(&one))).unwrap().is_some());
        assert!(Repeats::of(&keys_of(one, other)).unwrap().is_none());
    }
}
