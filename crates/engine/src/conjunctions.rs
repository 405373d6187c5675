use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::{
    common::tree_node::{Transformed, TreeNode},
    config::ConfigOptions,
    error::Result,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr, ScalarFunctionExpr,
        expressions::{BinaryExpr, CaseExpr, CastExpr, Column, Literal, lit},
        split_conjunction,
    },
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        filter::{FilterExec, FilterExecBuilder},
    },
};

use crate::arithmetic::DecimalExpr;

/// Has a filter compare numbers and times first, all of them, and the rest only of the rows that are left; what can fail is a filter by
/// itself above: `b <> 0 and a / b > 1` does not fail for a row with zero.
///
/// DataFusion goes from left to right, and takes the rows that are left out of all columns before each comparison as soon as they are
/// few: that costs more than to compare some thousand numbers. As long as they are many it compares all rows.
#[derive(Debug)]
pub(crate) struct Conjunctions;

impl PhysicalOptimizerRule for Conjunctions {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            let any: &dyn ExecutionPlan = node.as_ref();
            let Some(filter) = any.downcast_ref::<FilterExec>() else { return Ok(Transformed::no(node)) };
            let schema = filter.input().schema();
            let (risky, safe) = parted(filter.predicate(), &schema)?;
            let safe = safe.map(|safe| ordered(&safe, &schema).unwrap_or(safe));
            let builder = || FilterExecBuilder::from(filter);
            let filter = match (safe, risky) {
                (Some(safe), Some(risky)) => {
                    let below = builder().with_predicate(safe).apply_projection(None)?.with_fetch(None).build()?;
                    builder().with_predicate(risky).with_input(Arc::new(below))
                }
                (Some(one), None) | (None, Some(one)) if !Arc::ptr_eq(&one, filter.predicate()) => {
                    builder().with_predicate(one)
                }
                _ => return Ok(Transformed::no(node)),
            };
            Ok(Transformed::yes(Arc::new(filter.build()?) as _))
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "conjunctions"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A predicate's parts that can fail, and the others.
type Parted = (Option<Arc<dyn PhysicalExpr>>, Option<Arc<dyn PhysicalExpr>>);

fn parted(predicate: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Parted> {
    let (mut risky, mut safe) = (Vec::new(), Vec::new());
    for part in split_conjunction(predicate) {
        let can_fail = part.exists(|inner| can_fail(inner, schema))?;
        if can_fail { &mut risky } else { &mut safe }.push(Arc::clone(part));
    }
    match risky.is_empty() {
        true => Ok((None, Some(Arc::clone(predicate)))),
        false => Ok((in_turn(risky)?, all(safe))),
    }
}

/// Each only of the rows that those before it leave.
fn in_turn(mut parts: Vec<Arc<dyn PhysicalExpr>>) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let Some(last) = parts.pop() else { return Ok(None) };
    if parts.is_empty() {
        return Ok(Some(last));
    }
    let is_not = |part| Arc::new(BinaryExpr::new(part, Operator::IsDistinctFrom, lit(true))) as Arc<dyn PhysicalExpr>;
    let left_out = parts.into_iter().map(|part| (is_not(part), lit(false))).collect();
    Ok(Some(Arc::new(CaseExpr::try_new(None, left_out, Some(last))?)))
}

/// Sums and the like, functions, and casts to numbers or of texts.
fn can_fail(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<bool> {
    if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        let (from, to) = (cast.expr().data_type(schema)?, cast.cast_type());
        return Ok(to.is_integer() || to.is_decimal() || !(from.is_numeric() || from.is_temporal()));
    }
    let is_sum = expr.downcast_ref::<BinaryExpr>().is_some_and(|binary| binary.op().is_numerical_operators());
    Ok(is_sum || expr.is::<DecimalExpr>() || expr.is::<ScalarFunctionExpr>())
}

/// None where no two of its parts are cheap.
fn ordered(predicate: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<Arc<dyn PhysicalExpr>> {
    let (cheap, rest): (Vec<_>, Vec<_>) =
        split_conjunction(predicate).into_iter().cloned().partition(|part| is_cheap(part, schema));
    if cheap.len() < 2 {
        return None;
    }
    match (all(cheap), all(rest)) {
        (Some(cheap), Some(rest)) => Some(and(cheap, rest)),
        (one, other) => one.or(other),
    }
}

/// Each beside all that follow.
fn all(parts: Vec<Arc<dyn PhysicalExpr>>) -> Option<Arc<dyn PhysicalExpr>> {
    parts.into_iter().rev().reduce(|behind, part| and(part, behind))
}

fn and(left: Arc<dyn PhysicalExpr>, right: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, Operator::And, right))
}

/// A comparison of numbers or times as they are, which cannot fail.
fn is_cheap(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    let Some(binary) = expr.downcast_ref::<BinaryExpr>() else { return false };
    let is_plain = |side: &Arc<dyn PhysicalExpr>| {
        let is_there = side.is::<Column>() || side.is::<Literal>();
        is_there && side.data_type(schema).is_ok_and(|data_type| data_type.is_primitive())
    };
    let compares = matches!(
        binary.op(),
        Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
    );
    compares && is_plain(binary.left()) && is_plain(binary.right())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};
    use datafusion::physical_expr::expressions::{col, lit};

    use super::*;

    #[test]
    fn numbers_come_first_and_all_together() {
        let fields = [("a", DataType::Int64), ("b", DataType::Int64), ("t", DataType::Utf8)];
        let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec());
        let of = |name: &str| col(name, &schema).unwrap();
        let is = |left, op, right| Arc::new(BinaryExpr::new(left, op, right)) as Arc<dyn PhysicalExpr>;
        let text = is(of("t"), Operator::Eq, lit("x"));
        let divided = is(is(lit(1_i64), Operator::Divide, of("a")), Operator::Gt, of("b"));
        let (low, high) = (is(of("a"), Operator::Gt, lit(1_i64)), is(of("a"), Operator::Lt, of("b")));
        let predicate = and(and(and(Arc::clone(&text), low.clone()), Arc::clone(&divided)), high.clone());
        let expected = and(and(low.clone(), high), and(text.clone(), divided));
        assert_eq!(ordered(&predicate, &schema), Some(expected));
        assert!(ordered(&and(text, low), &schema).is_none());
    }
}
