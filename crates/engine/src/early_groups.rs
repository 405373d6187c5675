use std::sync::Arc;

use datafusion::{
    common::{
        Column, JoinType, NullEquality,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    logical_expr::{Expr, Join, LogicalPlan, LogicalPlanBuilder},
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

/// Groups only the keys that a join has on its other side, where that side filters the table that has them.
///
/// `where cost = (select min(cost) from offers where offers.part = parts.part)` becomes a join by part and cost with the
/// least costs of all parts. A join by keys alone tells the grouping's scans what it wants (see
/// [`EarlyFilters`](crate::early_filters::EarlyFilters)); one by what is computed cannot.
#[derive(Debug)]
pub(crate) struct EarlyGroups;

/// What the keys' names begin with.
const KEYS: &str = "__keys";

impl OptimizerRule for EarlyGroups {
    fn name(&self) -> &str {
        "early_groups"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Join(join) = &plan else { return Ok(Transformed::no(plan)) };
        if !matches!(join.join_type, JoinType::Inner | JoinType::LeftSemi)
            || join.null_equality != NullEquality::NullEqualsNothing
        {
            return Ok(Transformed::no(plan));
        }
        let Some(right) = narrowed(join, config)? else { return Ok(Transformed::no(plan)) };
        let mut join = join.clone();
        join.right = Arc::new(right);
        Ok(Transformed::yes(LogicalPlan::Join(join)))
    }
}

/// The right side, grouping less; `None` where it groups nothing, is joined by its keys alone or the left side leaves out
/// none of them.
fn narrowed(join: &Join, config: &dyn OptimizerConfig) -> Result<Option<LogicalPlan>> {
    let (mut keys, mut has_others) = (Vec::new(), false);
    for (left, right) in &join.on {
        let (Expr::Column(left), Expr::Column(right)) = (left, right) else { return Ok(None) };
        match grouped_by(&join.right, right) {
            Grouped::Key(key) => keys.extend(picked(&join.left, left).map(|(plan, column)| (key, plan, column))),
            Grouped::Computed => has_others = true,
            Grouped::Not => return Ok(None),
        }
    }
    if keys.is_empty() || !has_others {
        return Ok(None);
    }
    let narrowed = join.right.as_ref().clone().transform_down(|node| {
        let LogicalPlan::Aggregate(aggregate) = &node else { return Ok(Transformed::no(node)) };
        let is_narrow = aggregate.input.exists(|inner| {
            Ok(matches!(inner, LogicalPlan::SubqueryAlias(alias) if alias.alias.table().starts_with(KEYS)))
        })?;
        if is_narrow {
            return Ok(Transformed::complete(node));
        }
        let mut input = LogicalPlanBuilder::from(Arc::clone(&aggregate.input));
        for (key, plan, column) in &keys {
            let name = config.alias_generator().next(KEYS);
            let shown = LogicalPlanBuilder::from(Arc::clone(plan)).project([Expr::Column(column.clone())])?;
            let wanted = Column::new(Some(name.as_str()), &column.name);
            input = input.join(
                shown.alias(name.as_str())?.build()?,
                JoinType::LeftSemi,
                (vec![key.clone()], vec![wanted]),
                None,
            )?;
        }
        let mut aggregate = aggregate.clone();
        aggregate.input = Arc::new(input.build()?);
        Ok(Transformed::new(LogicalPlan::Aggregate(aggregate), true, TreeNodeRecursion::Stop))
    })?;
    Ok(narrowed.transformed.then_some(narrowed.data))
}

/// What a column of a plan is.
enum Grouped {
    /// A plain column by which it groups.
    Key(Column),
    /// Something else that the grouping gives.
    Computed,
    /// Not out of a grouping that only has names above it.
    Not,
}

fn grouped_by(plan: &LogicalPlan, column: &Column) -> Grouped {
    let Some(at) = plan.schema().maybe_index_of_column(column) else { return Grouped::Not };
    match plan {
        LogicalPlan::SubqueryAlias(alias) => grouped_by(&alias.input, &alias.input.schema().columns()[at]),
        LogicalPlan::Projection(projection) => match projection.expr[at].clone().unalias() {
            Expr::Column(column) => grouped_by(&projection.input, &column),
            _ => Grouped::Computed,
        },
        LogicalPlan::Aggregate(aggregate) => match aggregate.group_expr.get(at) {
            Some(Expr::Column(column)) => Grouped::Key(column.clone()),
            Some(Expr::GroupingSet(_)) => Grouped::Not,
            _ => Grouped::Computed,
        },
        _ => Grouped::Not,
    }
}

/// The filtered table that a column comes from, or that has what is joined to be equal to it.
fn picked(plan: &Arc<LogicalPlan>, column: &Column) -> Option<(Arc<LogicalPlan>, Column)> {
    let at = plan.schema().maybe_index_of_column(column)?;
    match plan.as_ref() {
        // It is asked twice then, and has to leave the same rows.
        LogicalPlan::Filter(filter) if !filter.predicate.is_volatile() => {
            matches!(filter.input.as_ref(), LogicalPlan::TableScan(_)).then(|| (Arc::clone(plan), column.clone()))
        }
        LogicalPlan::SubqueryAlias(alias) => picked(&alias.input, &alias.input.schema().columns()[at]),
        LogicalPlan::Projection(projection) => match projection.expr[at].clone().unalias() {
            Expr::Column(column) => picked(&projection.input, &column),
            _ => None,
        },
        LogicalPlan::Join(join) if join.join_type == JoinType::LeftSemi => picked(&join.left, column),
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
            let of_side = |column: &Column| {
                [&join.left, &join.right]
                    .into_iter()
                    .find_map(|side| side.schema().has_column(column).then(|| picked(side, column)).flatten())
            };
            of_side(column).or_else(|| {
                join.on.iter().find_map(|pair| match pair {
                    (Expr::Column(left), Expr::Column(right)) if left == column => of_side(right),
                    (Expr::Column(left), Expr::Column(right)) if right == column => of_side(left),
                    _ => None,
                })
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::datatypes::{DataType, Field, Schema},
        functions::expr_fn::random,
        functions_aggregate::expr_fn::min,
        logical_expr::{col, lit, table_scan},
        optimizer::{Optimizer, OptimizerContext},
    };

    use super::*;

    fn scan(name: &str) -> LogicalPlanBuilder {
        let schema = Schema::new(vec![Field::new("k", DataType::Int64, true), Field::new("v", DataType::Int64, true)]);
        table_scan(Some(name), &schema, None).unwrap()
    }

    /// `a` joined with the least values of `b` by key, and by the value when it is wanted.
    fn joined(a: LogicalPlanBuilder, keys: (Vec<&str>, Vec<&str>)) -> String {
        let least = scan("b").aggregate([col("b.k")], [min(col("b.v")).alias("least")]).unwrap();
        let least = least.project([col("least"), col("b.k")]).unwrap().alias("s").unwrap().build().unwrap();
        let plan = a.join(least, JoinType::Inner, keys, None).unwrap().build().unwrap();
        let optimizer = Optimizer::with_rules(vec![Arc::new(EarlyGroups)]);
        let context = OptimizerContext::new().with_max_passes(3);
        optimizer.optimize(plan, &context, |_, _| {}).unwrap().display_indent().to_string()
    }

    fn some() -> LogicalPlanBuilder {
        scan("a").filter(col("a.v").gt(lit(1_i64))).unwrap()
    }

    const NARROW: &str = "
      Aggregate: groupBy=[[b.k]], aggr=[[min(b.v) AS least]]
        LeftSemi Join: b.k = __keys_1.k
          TableScan: b
          SubqueryAlias: __keys_1
            Projection: a.k
              Filter: a.v > Int64(1)
                TableScan: a";

    #[test]
    fn what_is_joined_by_its_values_is_grouped_for_the_keys_that_are_left() {
        let by_both = || (vec!["a.k", "a.v"], vec!["s.k", "s.least"]);
        let plan = joined(some(), by_both());
        assert!(plan.contains(NARROW), "{plan}");
        // Through a join, and from the column that it makes equal.
        let both = some().join(scan("c").build().unwrap(), JoinType::Inner, (vec!["a.k"], vec!["c.k"]), None).unwrap();
        let plan = joined(both, (vec!["c.k", "c.v"], vec!["s.k", "s.least"]));
        assert!(plan.contains(NARROW), "{plan}");
        // All keys are there, or others each time.
        assert!(!joined(scan("a"), by_both()).contains(KEYS));
        let some_by_chance = scan("a").filter(random().gt(lit(0.5))).unwrap();
        assert!(!joined(some_by_chance, by_both()).contains(KEYS));
    }

    #[test]
    fn what_is_joined_by_keys_alone_is_told_them_by_the_join() {
        assert!(!joined(some(), (vec!["a.k"], vec!["s.k"])).contains(KEYS));
    }
}
