//! What keeps one statement from taking the process down: values that cannot grow without bound, and an eye on memory.
//!
//! Limits of the text itself are checked before planning (`parse`, `resolve`).

mod aggregates;
mod memory;
mod values;

use std::sync::Arc;

use datafusion::{
    common::{
        resources_err,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    error::Result,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{Expr, LogicalPlan, ScalarUDF},
};

use crate::{EngineOptions, functions, wanted};

pub(crate) use memory::Watch;
pub(crate) use values::{Pieces, check_pattern};

/// Rows of a batch, unless that is too much.
const BATCH_ROWS: usize = 8_192;

/// How large what a function gives may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ValueLimits {
    /// One value.
    pub(crate) value_bytes_max: usize,
    /// All values of one batch together: some threads have one each at the same time.
    pub(crate) batch_bytes_max: usize,
}

/// What a plan is like.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Nature {
    /// How many rows of a batch fit when each has the largest constant of the plan; none when all that are usual do.
    rows_per_batch: Option<usize>,
    /// True when it makes values that are in no operator's account.
    pub(crate) may_grow: bool,
}

impl Nature {
    /// Sets the rows of a batch to what the plan can bear.
    pub(crate) fn apply(self, state: &mut SessionState) {
        if let Some(rows) = self.rows_per_batch {
            *state.config_mut() = state.config().clone().with_batch_size(rows);
        }
    }
}

impl ValueLimits {
    /// The most that was asked for, and no more than what many queries may each have some copies of.
    pub(crate) fn of(options: &EngineOptions) -> Self {
        let value_bytes_max = options.value_bytes_max.min(options.memory_bytes / 64).max(1 << 20);
        Self { value_bytes_max, batch_bytes_max: value_bytes_max.saturating_mul(4) }
    }

    /// Looks at a plan for what may make it large.
    pub(crate) fn nature(self, plan: &LogicalPlan) -> Result<Nature> {
        let (mut largest, mut has_growing) = (0, false);
        plan.apply_with_subqueries(|node| {
            // Windows hold their rows, and no account knows of it.
            has_growing |= matches!(node, LogicalPlan::Unnest(_) | LogicalPlan::Window(_));
            node.apply_expressions(|expr| {
                expr.apply(|inner| {
                    match inner {
                        Expr::Literal(value, _) => largest = largest.max(value.size()),
                        Expr::ScalarFunction(call) => {
                            let function = wanted::unwatched(&call.func);
                            has_growing |= function.inner().is::<values::Bounded>() || functions::may_grow(function);
                        }
                        Expr::AggregateFunction(call) => has_growing |= call.func.inner().is::<aggregates::Bounded>(),
                        Expr::Unnest(_) => has_growing = true,
                        _ => {}
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        })?;
        let rows = self.batch_bytes_max / largest.max(1);
        let is_large = rows < BATCH_ROWS;
        Ok(Nature { rows_per_batch: is_large.then_some(rows.max(1)), may_grow: is_large || has_growing })
    }

    /// Errors: `ResourcesExhausted` when a value is too large.
    pub(crate) fn value(self, function: &str, bytes: usize) -> Result<()> {
        if bytes <= self.value_bytes_max {
            return Ok(());
        }
        resources_err!("`{function}` would make a value of {bytes} bytes, {}", limit(self.value_bytes_max))
    }

    /// Errors: `ResourcesExhausted` when the values of one batch are.
    pub(crate) fn batch(self, function: &str, bytes: usize) -> Result<()> {
        if bytes <= self.batch_bytes_max {
            return Ok(());
        }
        resources_err!("`{function}` would make {bytes} bytes at once, {}", limit(self.batch_bytes_max))
    }
}

/// Said so that the error's hint can be found: see `Error::hint`.
fn limit(bytes: usize) -> String {
    format!("{} {bytes}", crate::error::VALUE_LIMIT)
}

/// Holds a function to the limits that makes a list of a text's parts.
pub(crate) fn held_items(function: ScalarUDF, limits: ValueLimits) -> ScalarUDF {
    values::Bounded::udf(Arc::new(function), values::items_of_text, limits)
}

/// Holds the session's functions to the limits.
pub(crate) fn hold(state: &mut SessionState, limits: ValueLimits) -> Result<()> {
    for (name, grows) in values::GROWING {
        let function = values::Bounded::udf(state.udf(name)?, *grows, limits);
        state.register_udf(Arc::new(function))?;
    }
    for name in aggregates::GROWING {
        let function = aggregates::Bounded::udaf(state.udaf(name)?, limits);
        state.register_udaf(Arc::new(function))?;
    }
    Ok(())
}
