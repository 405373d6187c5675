use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    common::tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    config::ConfigOptions,
    error::{DataFusionError, Result},
    execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        execution_plan::replace_children_if_necessary,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec},
    },
};
use futures::Stream;

/// How long a query works before it lets others have the thread, and is seen to be stopped.
const PAUSE_EVERY: Duration = Duration::from_millis(10);

/// Rows at a time that a nested loop join compares with all rows of its other side, without a pause: with a million of those
/// some tenths of a second.
const LOOP_ROWS: usize = 64;

/// Makes what gives rows from memory, leaves and joins, give way now and then, so that queries can be stopped.
///
/// DataFusion counts batches, 128 of them, and only at leaves and exchanges: with a megabyte in each row these were minutes,
/// and a cross join under an aggregate never met one.
#[derive(Debug)]
pub(crate) struct Pauses;

impl PhysicalOptimizerRule for Pauses {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            let node_any: &dyn ExecutionPlan = node.as_ref();
            let makes_rows = node.children().is_empty()
                || node_any.is::<CrossJoinExec>()
                || node_any.is::<NestedLoopJoinExec>()
                || node_any.is::<HashJoinExec>()
                || node_any.is::<SortMergeJoinExec>();
            let node = if node_any.is::<NestedLoopJoinExec>() { in_small_steps(node)? } else { node };
            Ok(if makes_rows { Transformed::yes(Arc::new(PauseExec::new(node)) as _) } else { Transformed::no(node) })
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "pauses"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A nested loop join that gets its right side in small batches.
fn in_small_steps(join: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut children: Vec<_> = join.children().into_iter().cloned().collect();
    if let Some(right) = children.last_mut() {
        *right = Arc::new(PauseExec { rows_max: LOOP_ROWS, ..PauseExec::new(Arc::clone(right)) });
    }
    replace_children_if_necessary(join, children)
}

/// Hands its input on, with pauses.
#[derive(Debug)]
struct PauseExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    /// Rows of a batch.
    rows_max: usize,
}

impl PauseExec {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = Arc::clone(input.properties());
        Self { input, properties, rows_max: usize::MAX }
    }
}

impl DisplayAs for PauseExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PauseExec")
    }
}

impl ExecutionPlan for PauseExec {
    fn name(&self) -> &str {
        "PauseExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self { rows_max: self.rows_max, ..Self::new(input) })),
            Err(_) => Err(DataFusionError::Internal("a pause has one input".to_owned())),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        Ok(Box::pin(Pausing { input, since: Instant::now(), rows_max: self.rows_max, rest: None }))
    }
}

struct Pausing {
    input: SendableRecordBatchStream,
    /// When it paused last.
    since: Instant,
    rows_max: usize,
    /// What is left of a batch that was too long.
    rest: Option<RecordBatch>,
}

impl Pausing {
    fn shortened(&mut self, batch: RecordBatch) -> RecordBatch {
        let rows = batch.num_rows();
        if rows <= self.rows_max {
            return batch;
        }
        self.rest = Some(batch.slice(self.rows_max, rows - self.rows_max));
        batch.slice(0, self.rows_max)
    }
}

impl Stream for Pausing {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.since.elapsed() >= PAUSE_EVERY {
            self.since = Instant::now();
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(self.shortened(rest))));
        }
        let batch = self.input.as_mut().poll_next(context);
        batch.map(|batch| batch.map(|batch| batch.map(|batch| self.shortened(batch))))
    }
}

impl RecordBatchStream for Pausing {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}
