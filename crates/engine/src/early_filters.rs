use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::BatchCoalescer,
    datatypes::SchemaRef,
};
use datafusion::{
    common::tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    config::ConfigOptions,
    datasource::{physical_plan::FileScanConfig, source::DataSourceExec},
    error::{DataFusionError, Result},
    execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext},
    physical_expr::{
        PhysicalExpr, conjunction,
        expressions::{Column, DynamicFilterTracking},
        split_conjunction,
    },
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        filter::FilterExec,
        metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet},
    },
};
use futures::{Stream, StreamExt};

/// Leaves rows out, as soon as they are read, that a join further up is known not to want.
///
/// A join tells the scans of its larger side which keys the smaller one has, and DataFusion uses that to skip files and row
/// groups only. Whatever is between the scan and the join, an exchange or a grouping, is spared the other rows here.
#[derive(Debug)]
pub(crate) struct EarlyFilters;

impl PhysicalOptimizerRule for EarlyFilters {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_down(|node| {
            Ok(match filtered(&node) {
                Some(filtered) => Transformed::new(filtered, true, TreeNodeRecursion::Jump),
                None => Transformed::no(node),
            })
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "early_filters"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A scan, or a filter right above one, with what joins say of its rows.
fn filtered(node: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let any: &dyn ExecutionPlan = node.as_ref();
    let (predicate, columns) = match any.downcast_ref::<FilterExec>() {
        Some(filter) => {
            let (predicate, columns) = told(filter.input())?;
            let shown = match filter.projection().as_ref() {
                Some(shown) => shown.iter().enumerate().map(|(new, old)| (*old, new)).collect(),
                None => (0..filter.input().schema().fields().len()).map(|at| (at, at)).collect::<HashMap<_, _>>(),
            };
            let columns = columns.into_iter().filter_map(|(of_table, at)| Some((of_table, *shown.get(&at)?)));
            (predicate, columns.collect())
        }
        None => told(node)?,
    };
    let schema = node.schema();
    let parts = split_conjunction(&predicate).into_iter().filter_map(|part| {
        let is_dynamic = DynamicFilterTracking::classify(part).contains_dynamic_filter();
        is_dynamic.then(|| moved(part, &columns, &schema)).flatten()
    });
    let parts: Vec<_> = parts.collect();
    if parts.is_empty() {
        return None;
    }
    Some(Arc::new(EarlyFilterExec::new(Arc::clone(node), conjunction(parts))))
}

/// What a scan of files knows of its rows, in columns of the table, and where it shows those.
fn told(node: &Arc<dyn ExecutionPlan>) -> Option<(Arc<dyn PhysicalExpr>, HashMap<usize, usize>)> {
    let any: &dyn ExecutionPlan = node.as_ref();
    let scan = any.downcast_ref::<DataSourceExec>()?;
    let config = scan.data_source().downcast_ref::<FileScanConfig>()?;
    if config.limit.is_some() {
        return None;
    }
    let predicate = config.file_source().filter()?;
    let columns = match config.file_source().projection() {
        Some(projection) => {
            let shown = projection.iter().enumerate();
            shown.filter_map(|(at, shown)| Some((shown.expr.downcast_ref::<Column>()?.index(), at))).collect()
        }
        None => (0..node.schema().fields().len()).map(|at| (at, at)).collect(),
    };
    Some((predicate, columns))
}

/// The same expression in other columns; `None` when it needs one that is not there.
fn moved(
    expr: &Arc<dyn PhysicalExpr>,
    columns: &HashMap<usize, usize>,
    schema: &SchemaRef,
) -> Option<Arc<dyn PhysicalExpr>> {
    let missing = |name: &str| DataFusionError::Internal(format!("`{name}` is not shown"));
    let moved = Arc::clone(expr).transform_down(|part| {
        let Some(column) = part.downcast_ref::<Column>() else { return Ok(Transformed::no(part)) };
        let at = *columns.get(&column.index()).ok_or_else(|| missing(column.name()))?;
        Ok(Transformed::yes(Arc::new(Column::new(schema.field(at).name(), at)) as _))
    });
    moved.ok().map(|moved| moved.data)
}

/// Hands on the rows that a dynamic filter lets pass, as long as it keeps enough of them back to be worth asking.
#[derive(Debug)]
struct EarlyFilterExec {
    input: Arc<dyn ExecutionPlan>,
    predicate: Arc<dyn PhysicalExpr>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl EarlyFilterExec {
    fn new(input: Arc<dyn ExecutionPlan>, predicate: Arc<dyn PhysicalExpr>) -> Self {
        let properties = Arc::clone(input.properties());
        Self { input, predicate, properties, metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for EarlyFilterExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match kind {
            DisplayFormatType::TreeRender => Ok(()),
            _ => f.write_str("EarlyFilterExec"),
        }
    }
}

impl ExecutionPlan for EarlyFilterExec {
    fn name(&self) -> &str {
        "EarlyFilterExec"
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
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        visit(&self.predicate)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self::new(input, Arc::clone(&self.predicate)))),
            Err(_) => Err(DataFusionError::Internal("an early filter has one input".to_owned())),
        }
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch_rows = context.session_config().batch_size();
        Ok(Box::pin(Filtering {
            input: self.input.execute(partition, context)?,
            predicate: Arc::clone(&self.predicate),
            tracking: DynamicFilterTracking::classify(&self.predicate),
            worth: Worth::default(),
            kept: BatchCoalescer::new(self.input.schema(), batch_rows),
            is_over: false,
            baseline: BaselineMetrics::new(&self.metrics, partition),
            left_out: MetricBuilder::new(&self.metrics).counter("rows_left_out", partition),
        }))
    }
}

/// Whether a filter has been worth its cost.
#[derive(Debug, Default)]
struct Worth {
    asked: usize,
    passed: usize,
}

impl Worth {
    /// Rows after which it is judged.
    const SAMPLE_ROWS: usize = 64 << 10;

    /// False when more than three rows of four pass.
    fn is_there(&self) -> bool {
        self.asked < Self::SAMPLE_ROWS || self.passed / 3 < self.asked / 4
    }
}

struct Filtering {
    input: SendableRecordBatchStream,
    predicate: Arc<dyn PhysicalExpr>,
    tracking: DynamicFilterTracking,
    worth: Worth,
    kept: BatchCoalescer,
    is_over: bool,
    baseline: BaselineMetrics,
    left_out: Count,
}

impl Filtering {
    /// Takes in a batch.
    fn take(&mut self, batch: RecordBatch) -> Result<()> {
        // A filter that has changed is judged anew.
        if self.tracking.watcher().is_some_and(|watcher| watcher.changed()) {
            self.worth = Worth::default();
        }
        if !self.worth.is_there() {
            return Ok(self.kept.push_batch(batch)?);
        }
        let rows = batch.num_rows();
        let passes = self.predicate.evaluate(&batch)?.into_array(rows)?;
        let passes: &BooleanArray = passes
            .as_boolean_opt()
            .ok_or_else(|| DataFusionError::Internal("a filter does not say true or false".to_owned()))?;
        let passed = passes.true_count();
        self.worth.asked += rows;
        self.worth.passed += passed;
        self.left_out.add(rows - passed);
        match passed {
            0 => Ok(()),
            passed if passed == rows => Ok(self.kept.push_batch(batch)?),
            _ => Ok(self.kept.push_batch_with_filter(batch, passes)?),
        }
    }

    fn step(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        loop {
            if let Some(batch) = self.kept.next_completed_batch() {
                return Poll::Ready(Some(Ok(batch)));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let taken = match ready!(self.input.poll_next_unpin(context)) {
                Some(Ok(batch)) => {
                    let elapsed = self.baseline.elapsed_compute().clone();
                    let _timer = elapsed.timer();
                    self.take(batch)
                }
                Some(Err(error)) => Err(error),
                None => {
                    self.is_over = true;
                    self.kept.finish_buffered_batch().map_err(Into::into)
                }
            };
            if let Err(error) = taken {
                self.is_over = true;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl Stream for Filtering {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.step(context);
        self.baseline.record_poll(next)
    }
}

impl RecordBatchStream for Filtering {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Int64Array},
        datatypes::Int64Type,
    };
    use datafusion::{
        datasource::memory::MemorySourceConfig,
        logical_expr::Operator,
        physical_expr::expressions::{BinaryExpr, DynamicFilterPhysicalExpr, lit},
    };

    use super::*;

    fn numbers(range: std::ops::Range<i64>) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(range));
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    /// The numbers that come through, of which there are as many as are judged in a batch.
    async fn passed(until: i64) -> usize {
        let rows = i64::try_from(Worth::SAMPLE_ROWS).unwrap();
        let batches = vec![numbers(0..rows), numbers(0..rows)];
        let scan = MemorySourceConfig::try_new_exec(&[batches], numbers(0..0).schema(), None).unwrap();
        let n: Arc<dyn PhysicalExpr> = Arc::new(Column::new("n", 0));
        let filter = Arc::new(DynamicFilterPhysicalExpr::new(vec![Arc::clone(&n)], lit(true)));
        let exec = EarlyFilterExec::new(scan, Arc::clone(&filter) as _);
        let mut batches = exec.execute(0, Arc::default()).unwrap();
        filter.update(Arc::new(BinaryExpr::new(n, Operator::Lt, lit(until)))).unwrap();
        let mut sum = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch.unwrap();
            sum += batch.column(0).as_primitive::<Int64Type>().len();
        }
        sum
    }

    #[tokio::test]
    async fn rows_are_left_out_as_long_as_they_are_many() {
        assert_eq!(passed(10).await, 20);
        assert_eq!(passed(0).await, 0);
        // Nearly all of the first batch pass, and so the second is not asked.
        let rows = Worth::SAMPLE_ROWS;
        assert_eq!(passed(i64::try_from(rows).unwrap() - 10).await, 2 * rows - 10);
    }
}
