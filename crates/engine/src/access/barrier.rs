use std::{fmt, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        execution_plan::reset_plan_states,
        metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, RecordOutput},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;

use crate::Error;

/// The plan of a guarded table as a leaf of a query's: no rule of an optimiser moves anything of the query below it, and
/// EXPLAIN shows neither what lies there nor how many rows it saw.
#[derive(Debug)]
pub(crate) struct Barrier {
    table: String,
    inner: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl Barrier {
    /// Schema: that of `inner`, but for what the policy says of nulls.
    pub(super) fn new(table: String, inner: Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Self {
        let partitions = inner.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            inner.pipeline_behavior(),
            inner.boundedness(),
        );
        Self { table, inner, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }

    /// The plan behind it.
    pub(crate) fn inner(&self) -> &Arc<dyn ExecutionPlan> {
        &self.inner
    }
}

impl DisplayAs for Barrier {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match kind {
            DisplayFormatType::TreeRender => write!(f, "table={}", self.table),
            _ => write!(f, "GrantedExec: table={}", self.table),
        }
    }
}

impl ExecutionPlan for Barrier {
    fn name(&self) -> &'static str {
        "GrantedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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

    /// A recursive query runs it again and again.
    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        let inner = reset_plan_states(Arc::clone(&self.inner))?;
        Ok(Arc::new(Self::new(self.table.clone(), inner, self.schema())))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let (schema, table) = (self.schema(), self.table.clone());
        let own = Arc::clone(&schema);
        let batches = self.inner.execute(partition, context).map_err(|error| told(&self.table, error))?;
        let batches = batches.map(move |batch| {
            let batch = batch.map_err(|error| told(&table, error))?;
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&own), batch.columns().to_vec(), &options)?;
            Ok(batch.record_output(&metrics))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// An error from behind the barrier. What only a row filter of a grant can have caused may have a hidden value in its text.
pub(super) fn told(table: &str, error: DataFusionError) -> DataFusionError {
    let own = match Error::from_datafusion(error) {
        Error::Data { .. } | Error::Plan { .. } | Error::Internal { .. } => {
            tracing::warn!(table, "a row filter of a grant fails");
            Error::Plan {
                message: format!("what is granted of `{table}` cannot be read: the row filter of a grant fails"),
                position: None,
                hint: Some("an admin finds it with `headworks grants list`".to_owned()),
            }
        }
        other => other,
    };
    DataFusionError::External(Box::new(own))
}
