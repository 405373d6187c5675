use std::sync::Arc;

use datafusion::{
    common::tree_node::{Transformed, TreeNode},
    config::ConfigOptions,
    error::Result,
    physical_expr::{
        Partitioning,
        expressions::{Column, Literal},
        utils::collect_columns,
    },
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        execution_plan::replace_children_if_necessary,
        filter::{FilterExec, FilterExecBuilder},
        projection::{ProjectionExec, update_expr},
        repartition::RepartitionExec,
    },
};

/// Calculates of the rows that a filter leaves, where DataFusion put the calculation below the filter to have fewer columns there:
/// `select a / b from t where b <> 0` failed for the rows with zero.
#[derive(Debug)]
pub(crate) struct FiltersFirst;

impl PhysicalOptimizerRule for FiltersFirst {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_down(|node| {
            Ok(match swapped(&node)? {
                Some(swapped) => Transformed::yes(swapped),
                None => Transformed::no(node),
            })
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "filters_first"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A filter above a projection, or above exchanges above one, turned round; none where the filter needs what is calculated.
fn swapped(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(filter) = node.downcast_ref::<FilterExec>() else { return Ok(None) };
    let mut exchanges = Vec::new();
    let mut below = filter.input();
    while let Some(exchange) = below.downcast_ref::<RepartitionExec>()
        && matches!(exchange.partitioning(), Partitioning::RoundRobinBatch(_))
    {
        exchanges.push(Arc::clone(below));
        below = exchange.input();
    }
    let Some(projection) = below.downcast_ref::<ProjectionExec>() else { return Ok(None) };
    let shown = projection.expr();
    let is_column = |at: usize| shown.get(at).is_some_and(|one| one.expr.is::<Column>());
    let calculates = shown.iter().any(|one| !one.expr.is::<Column>() && !one.expr.is::<Literal>());
    if !calculates || !collect_columns(filter.predicate()).iter().all(|column| is_column(column.index())) {
        return Ok(None);
    }
    let Some(predicate) = update_expr(filter.predicate(), shown, true)? else { return Ok(None) };
    let mut input = Arc::clone(projection.input());
    for exchange in exchanges.into_iter().rev() {
        input = replace_children_if_necessary(exchange, vec![input])?;
    }
    let builder = FilterExecBuilder::from(filter).with_input(input).with_predicate(predicate);
    let below = Arc::new(builder.apply_projection(None)?.build()?);
    let shown = match filter.projection() {
        Some(wanted) => wanted.iter().map(|at| shown[*at].clone()).collect(),
        None => shown.to_vec(),
    };
    Ok(Some(Arc::new(ProjectionExec::try_new(shown, below)?)))
}
