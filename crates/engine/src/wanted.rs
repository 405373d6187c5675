//! Planning ends at its next step once nobody waits for it: a step of DataFusion's planner cannot be stopped in between.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use datafusion::{
    common::tree_node::Transformed,
    config::ConfigOptions,
    error::{DataFusionError, Result},
    execution::{SessionState, SessionStateBuilder},
    logical_expr::LogicalPlan,
    optimizer::{AnalyzerRule, ApplyOrder, OptimizerConfig, OptimizerRule},
    physical_optimizer::{PhysicalOptimizerContext, PhysicalOptimizerRule},
    physical_plan::ExecutionPlan,
};
use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    /// Gone when nobody waits any more.
    static ASKER: Weak<()>;
}

/// Whoever waits for a plan, until dropped.
pub(crate) struct Asker(Arc<()>);

impl Asker {
    pub(crate) fn new() -> Self {
        Self(Arc::new(()))
    }

    /// The planning that is done for it, to be run elsewhere.
    pub(crate) fn waits_for<F: Future>(&self, planning: F) -> TaskLocalFuture<Weak<()>, F> {
        ASKER.scope(Arc::downgrade(&self.0), planning)
    }
}

/// Errors: when nobody waits for what is planned here. Costs next to nothing.
pub(crate) fn look() -> Result<()> {
    match ASKER.try_with(|asker| asker.strong_count() == 0) {
        Ok(true) => Err(DataFusionError::Execution("nobody waits for this plan any more".to_owned())),
        _ => Ok(()),
    }
}

/// Lets all rules look before each of their steps.
pub(crate) fn watch(state: SessionState) -> SessionState {
    let mut builder = SessionStateBuilder::new_from_existing(state);
    for rule in builder.analyzer().iter_mut().flat_map(|analyzer| &mut analyzer.rules) {
        *rule = Arc::new(Looks(Arc::clone(rule)));
    }
    for rule in builder.optimizer().iter_mut().flat_map(|optimizer| &mut optimizer.rules) {
        *rule = Arc::new(Looks(Arc::clone(rule)));
    }
    for rule in builder.physical_optimizers().iter_mut().flat_map(|optimizer| &mut optimizer.rules) {
        *rule = Arc::new(Looks(Arc::clone(rule)));
    }
    builder.build()
}

/// A rule that looks first.
struct Looks<R: ?Sized>(Arc<R>);

impl<R: fmt::Debug + ?Sized> fmt::Debug for Looks<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AnalyzerRule for Looks<dyn AnalyzerRule + Send + Sync> {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        look()?;
        self.0.analyze(plan, config)
    }

    fn name(&self) -> &str {
        self.0.name()
    }
}

impl OptimizerRule for Looks<dyn OptimizerRule + Send + Sync> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.0.apply_order()
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        look()?;
        self.0.rewrite(plan, config)
    }
}

impl PhysicalOptimizerRule for Looks<dyn PhysicalOptimizerRule + Send + Sync> {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        look()?;
        self.0.optimize(plan, config)
    }

    fn optimize_with_context(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        context: &dyn PhysicalOptimizerContext,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        look()?;
        self.0.optimize_with_context(plan, context)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{LogicalPlanBuilder, lit};

    use super::*;

    #[tokio::test]
    async fn planning_that_nobody_waits_for_ends_at_its_next_step() {
        let state = watch(SessionStateBuilder::new().with_default_features().build());
        let plan = LogicalPlanBuilder::values(vec![vec![lit(1)]]).unwrap().build().unwrap();
        let asker = Asker::new();
        let is_over = |ended: Result<()>| ended.is_err_and(|error| error.to_string().contains("nobody waits"));
        let physical = async || state.query_planner().create_physical_plan(&plan, &state).await.map(drop);
        assert!(asker.waits_for(async { state.optimize(&plan) }).await.is_ok());
        assert!(asker.waits_for(physical()).await.is_ok());
        let (optimized, planned) = (asker.waits_for(async { state.optimize(&plan) }), asker.waits_for(physical()));
        drop(asker);
        assert!(is_over(optimized.await.map(drop)));
        assert!(is_over(planned.await));
        assert!(state.optimize(&plan).is_ok(), "what nobody is named for is wanted");
    }
}
