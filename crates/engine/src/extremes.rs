use std::sync::Arc;

use datafusion::{
    common::tree_node::Transformed,
    error::Result,
    logical_expr::{Expr, LogicalPlan},
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use crate::lake;

/// Tells a table of the lake when a query wants nothing but the least and the greatest values of it, as `select max(ds)` does:
/// the catalog then finds them without listing the table's files.
#[derive(Debug)]
pub(crate) struct Extremes;

impl OptimizerRule for Extremes {
    fn name(&self) -> &str {
        "extremes"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Aggregate(aggregate) = &plan else { return Ok(Transformed::no(plan)) };
        if !aggregate.group_expr.is_empty() || !aggregate.aggr_expr.iter().all(is_extreme) {
            return Ok(Transformed::no(plan));
        }
        let Some(input) = told(&aggregate.input) else { return Ok(Transformed::no(plan)) };
        let mut aggregate = aggregate.clone();
        aggregate.input = Arc::new(input);
        Ok(Transformed::yes(LogicalPlan::Aggregate(aggregate)))
    }
}

/// `min` or `max` of a column: any of its rows may be missing but those with the least and the greatest value.
fn is_extreme(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_extreme(&alias.expr),
        Expr::AggregateFunction(call) => {
            matches!(call.func.name(), "min" | "max")
                && matches!(call.params.args.as_slice(), [Expr::Column(_)])
                && call.params.filter.is_none()
        }
        _ => false,
    }
}

/// The same plan over a table that was told; `None` when something but names stands between, or there is nothing to tell.
fn told(plan: &LogicalPlan) -> Option<LogicalPlan> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => {
            let mut alias = alias.clone();
            alias.input = Arc::new(told(&alias.input)?);
            Some(LogicalPlan::SubqueryAlias(alias))
        }
        LogicalPlan::Projection(projection) if projection.expr.iter().all(is_column) => {
            let mut projection = projection.clone();
            projection.input = Arc::new(told(&projection.input)?);
            Some(LogicalPlan::Projection(projection))
        }
        LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {
            let mut scan = scan.clone();
            scan.source = lake::for_extremes(&scan.source)?;
            Some(LogicalPlan::TableScan(scan))
        }
        _ => None,
    }
}

fn is_column(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_column(&alias.expr),
        expr => matches!(expr, Expr::Column(_)),
    }
}
