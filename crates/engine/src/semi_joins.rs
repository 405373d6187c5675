use std::{collections::HashSet, sync::Arc};

use datafusion::{
    common::{Column, JoinType, tree_node::Transformed, tree_node::TreeNode},
    error::Result,
    logical_expr::{Expr, Join, LogicalPlan, Projection},
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

/// Picks the rows that a subquery names, as `x in (select ...)` does, before they are joined with others and not after.
///
/// Only for subqueries that leave something out: those of a whole table pick little, and a join may leave out more.
#[derive(Debug)]
pub(crate) struct EarlySemiJoins;

impl OptimizerRule for EarlySemiJoins {
    fn name(&self) -> &str {
        "early_semi_joins"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Join(semi) = &plan else { return Ok(Transformed::no(plan)) };
        if semi.join_type != JoinType::LeftSemi || !leaves_out(&semi.right)? {
            return Ok(Transformed::no(plan));
        }
        Ok(match below(semi)? {
            Some(lowered) => Transformed::yes(lowered),
            None => Transformed::no(plan),
        })
    }
}

fn leaves_out(subquery: &LogicalPlan) -> Result<bool> {
    subquery.exists(|node| {
        Ok(match node {
            LogicalPlan::Filter(_) | LogicalPlan::Limit(_) => true,
            LogicalPlan::TableScan(scan) => !scan.filters.is_empty(),
            _ => false,
        })
    })
}

/// The join on the other side of what is under it; `None` where that is something else or needs both of its sides.
fn below(semi: &Join) -> Result<Option<LogicalPlan>> {
    let on = |input: &Arc<LogicalPlan>| -> Result<Arc<LogicalPlan>> {
        let picked = Join::try_new(
            Arc::clone(input),
            Arc::clone(&semi.right),
            semi.on.clone(),
            semi.filter.clone(),
            semi.join_type,
            semi.join_constraint,
            semi.null_equality,
            semi.null_aware,
        )?;
        Ok(Arc::new(LogicalPlan::Join(picked)))
    };
    match semi.left.as_ref() {
        LogicalPlan::Projection(projection) if projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_))) => {
            if !leads_to_join(&projection.input) {
                return Ok(None);
            }
            let lowered = Projection::try_new(projection.expr.clone(), on(&projection.input)?)?;
            Ok(Some(LogicalPlan::Projection(lowered)))
        }
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
            let mut asked = HashSet::new();
            for expr in semi.on.iter().map(|(left, _)| left).chain(&semi.filter) {
                asked.extend(expr.column_refs().into_iter().filter(|column| semi.left.schema().has_column(column)));
            }
            let mut lowered = join.clone();
            if has_all(&join.left, &asked) {
                lowered.left = on(&join.left)?;
            } else if has_all(&join.right, &asked) {
                lowered.right = on(&join.right)?;
            } else {
                return Ok(None);
            }
            Ok(Some(LogicalPlan::Join(lowered)))
        }
        _ => Ok(None),
    }
}

/// True when lowering through plain columns comes to something that it gains from.
fn leads_to_join(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Join(join) if join.join_type == JoinType::Inner)
}

fn has_all(side: &LogicalPlan, columns: &HashSet<&Column>) -> bool {
    !columns.is_empty() && columns.iter().all(|column| side.schema().has_column(column))
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::datatypes::{DataType, Field, Schema},
        logical_expr::{LogicalPlanBuilder, col, lit, table_scan},
        optimizer::{Optimizer, OptimizerContext},
    };

    use super::*;

    fn scan(name: &str) -> LogicalPlan {
        let schema = Schema::new(vec![Field::new("k", DataType::Int64, true), Field::new("v", DataType::Int64, true)]);
        table_scan(Some(name), &schema, None).unwrap().build().unwrap()
    }

    /// `a` and `b` joined, of which `c` picks by `key`.
    fn picked(key: &str, picks: LogicalPlan) -> String {
        let joined = LogicalPlanBuilder::from(scan("a"))
            .join(scan("b"), JoinType::Inner, (vec!["a.k"], vec!["b.k"]), None)
            .unwrap();
        let semi = joined.join(picks, JoinType::LeftSemi, (vec![key], vec!["c.k"]), None).unwrap().build().unwrap();
        let optimizer = Optimizer::with_rules(vec![Arc::new(EarlySemiJoins)]);
        let plan = optimizer.optimize(semi, &OptimizerContext::new(), |_, _| {}).unwrap();
        plan.display_indent().to_string()
    }

    #[test]
    fn a_subquery_that_leaves_something_out_picks_first() {
        let some = |sql: &str| {
            let plan = LogicalPlanBuilder::from(scan("c")).filter(col("c.v").gt(lit(1_i64))).unwrap();
            picked(sql, plan.build().unwrap())
        };
        let expected = "Inner Join: a.k = b.k\n  LeftSemi Join: a.v = c.k\n    TableScan: a\n    Filter: c.v > Int64(1)\n      TableScan: c\n  TableScan: b";
        assert_eq!(some("a.v"), expected);
        let expected = "Inner Join: a.k = b.k\n  TableScan: a\n  LeftSemi Join: b.v = c.k\n    TableScan: b\n    Filter: c.v > Int64(1)\n      TableScan: c";
        assert_eq!(some("b.v"), expected);
    }

    #[test]
    fn a_whole_table_picks_last() {
        assert!(picked("a.v", scan("c")).starts_with("LeftSemi Join"));
    }
}
