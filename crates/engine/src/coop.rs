use std::sync::Arc;

use datafusion::{
    common::tree_node::{Transformed, TreeNode},
    config::ConfigOptions,
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        coop::CooperativeExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec},
    },
};

/// Makes joins give way now and then, so that they can be stopped.
///
/// DataFusion makes leaves and exchanges cooperative only: a cross join under an aggregate produces from memory for ever
/// without meeting one, and was measured to run on for more than 30 s after its reader had gone.
#[derive(Debug)]
pub(crate) struct CooperativeJoins;

impl PhysicalOptimizerRule for CooperativeJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            let node_any: &dyn ExecutionPlan = node.as_ref();
            let is_join = node_any.is::<CrossJoinExec>()
                || node_any.is::<NestedLoopJoinExec>()
                || node_any.is::<HashJoinExec>()
                || node_any.is::<SortMergeJoinExec>();
            Ok(if is_join {
                Transformed::yes(Arc::new(CooperativeExec::new(node)) as _)
            } else {
                Transformed::no(node)
            })
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "cooperative_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
