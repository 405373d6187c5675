//! Planning ends at its next step once nobody waits for it, and so does what a plan's own task computes: neither can be stopped
//! in between.
//!
//! Steps are the rules of the optimizers, each call of a function, and each time that one is asked what it gives: the types of
//! nested calls are asked for again and again, of some nestings 2^n times.

mod functions;

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use datafusion::{
    common::{resources_err, tree_node::Transformed},
    config::ConfigOptions,
    error::{DataFusionError, Result},
    execution::{SessionState, SessionStateBuilder},
    logical_expr::{ColumnarValue, LogicalPlan},
    optimizer::{AnalyzerRule, ApplyOrder, OptimizerConfig, OptimizerRule},
    physical_optimizer::{PhysicalOptimizerContext, PhysicalOptimizerRule},
    physical_plan::ExecutionPlan,
};
use tokio::task::futures::TaskLocalFuture;

use crate::error::FIXED_LIMIT;

pub(crate) use functions::{unwatched, watch_functions};

tokio::task_local! {
    /// Gone when nobody waits any more.
    static ASKER: Weak<Budget>;
}

/// Whoever waits for a plan or its rows, until dropped.
pub(crate) struct Asker(Arc<Budget>);

/// What the work for an asker may still use.
pub(crate) struct Budget {
    /// Bytes that constants of the plan may still take; none where no plan is made.
    constant_bytes_left: Option<AtomicUsize>,
}

/// The most bytes of all constants of a plan that functions make: more are made when the plan runs, each when it is needed.
const CONSTANT_BYTES_MAX: usize = 16 << 20;

/// Constants below this are not counted: there are no more of them than a statement has parts.
const SMALL_BYTES: usize = 1 << 10;

impl Asker {
    /// Waits for a plan.
    pub(crate) fn of_plan() -> Self {
        Self(Arc::new(Budget { constant_bytes_left: Some(AtomicUsize::new(CONSTANT_BYTES_MAX)) }))
    }

    /// Waits for a plan's rows.
    pub(crate) fn of_rows() -> Self {
        Self(Arc::new(Budget { constant_bytes_left: None }))
    }

    /// The work that is done for it, to be run elsewhere.
    pub(crate) fn waits_for<F: Future>(&self, work: F) -> TaskLocalFuture<Weak<Budget>, F> {
        ASKER.scope(Arc::downgrade(&self.0), work)
    }
}

/// Errors: `External` when nobody waits for what is done here. Costs next to nothing.
pub(crate) fn look() -> Result<()> {
    match ASKER.try_with(|asker| asker.strong_count() == 0) {
        Ok(true) => Err(DataFusionError::External("nobody waits for this any more".into())),
        _ => Ok(()),
    }
}

/// Errors: `ResourcesExhausted` when the constants of the plan take too much, `External` when nobody waits for it.
fn count_constant(value: &ColumnarValue) -> Result<()> {
    let ColumnarValue::Scalar(value) = value else { return Ok(()) };
    let bytes = value.size();
    if bytes < SMALL_BYTES {
        return Ok(());
    }
    let Ok(asker) = ASKER.try_with(Weak::upgrade) else { return Ok(()) };
    let Some(budget) = asker else { return look() };
    let Some(left) = &budget.constant_bytes_left else { return Ok(()) };
    match left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)) {
        Ok(_) => Ok(()),
        Err(_) => resources_err!(
            "constants of the statement are larger than the {CONSTANT_BYTES_MAX} bytes that {FIXED_LIMIT}"
        ),
    }
}

/// Lets all rules look before each of their steps.
pub(crate) fn watch_rules(state: SessionState) -> SessionState {
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
        let state = watch_rules(SessionStateBuilder::new().with_default_features().build());
        let plan = LogicalPlanBuilder::values(vec![vec![lit(1)]]).unwrap().build().unwrap();
        let asker = Asker::of_plan();
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
