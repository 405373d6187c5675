//! Sums and products: of integers that are seen to overflow, and of decimals at the speed of integers.

use std::{fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, Decimal128Array, RecordBatch},
    compute::kernels::{arity::try_binary, numeric},
    datatypes::{DataType, Decimal128Type, Schema},
    error::ArrowError,
};
use datafusion::{
    common::{
        ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    config::ConfigOptions,
    error::{DataFusionError, Result},
    logical_expr::{
        BinaryExpr as LogicalBinary, ColumnarValue, Expr, LogicalPlan, Operator,
        type_coercion::binary::BinaryTypeCoercer,
    },
    optimizer::AnalyzerRule,
    physical_expr::{
        LexOrdering, PhysicalExpr, PhysicalSortExpr,
        aggregate::AggregateFunctionExpr,
        expressions::{BinaryExpr, CaseExpr},
    },
    physical_expr_common::datum::apply,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateInputMode, PhysicalGroupBy},
        filter::{FilterExec, FilterExecBuilder},
        joins::{HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, SortMergeJoinExec, utils::JoinFilter},
        projection::{ProjectionExec, ProjectionExpr},
        sorts::sort::SortExec,
    },
};

/// Sums, differences and products that DataFusion would let wrap around fail when they do not fit. It comes before the rules
/// that move expressions to other nodes.
#[derive(Debug)]
pub(crate) struct Arithmetic;

impl PhysicalOptimizerRule for Arithmetic {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            let any: &dyn ExecutionPlan = node.as_ref();
            let changed = if let Some(projection) = any.downcast_ref::<ProjectionExec>() {
                projected(projection)?
            } else if let Some(filter) = any.downcast_ref::<FilterExec>() {
                filtered(filter)?
            } else if let Some(aggregate) = any.downcast_ref::<AggregateExec>() {
                grouped(aggregate)?
            } else if let Some(sort) = any.downcast_ref::<SortExec>() {
                sorted(sort)?
            } else if let Some(join) = any.downcast_ref::<HashJoinExec>() {
                let filter = joined_where(join.filter())?;
                let with = |filter| join.builder().with_filter(Some(filter)).build_exec();
                filter.map(with).transpose()?
            } else if let Some(join) = any.downcast_ref::<NestedLoopJoinExec>() {
                let filter = joined_where(join.filter())?;
                filter.map(|filter| looped(join, filter)).transpose()?
            } else if let Some(join) = any.downcast_ref::<SortMergeJoinExec>() {
                let filter = joined_where(join.filter().as_ref())?;
                filter.map(|filter| merged(join, filter)).transpose()?
            } else {
                None
            };
            Ok(changed.map_or_else(|| Transformed::no(node), Transformed::yes))
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "arithmetic"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

type Node = Option<Arc<dyn ExecutionPlan>>;

fn projected(projection: &ProjectionExec) -> Result<Node> {
    let input = projection.input();
    let exprs: Vec<_> = projection.expr().iter().map(|shown| Arc::clone(&shown.expr)).collect();
    let Some(exprs) = all_checked(&exprs, &input.schema())? else { return Ok(None) };
    let names = projection.expr().iter().map(|shown| shown.alias.clone());
    let exprs = exprs.into_iter().zip(names).map(|(expr, alias)| ProjectionExpr { expr, alias });
    Ok(Some(Arc::new(ProjectionExec::try_new(exprs, Arc::clone(input))?)))
}

fn filtered(filter: &FilterExec) -> Result<Node> {
    let predicate = checked(filter.predicate(), &filter.input().schema())?.expr;
    if Arc::ptr_eq(&predicate, filter.predicate()) {
        return Ok(None);
    }
    Ok(Some(Arc::new(FilterExecBuilder::from(filter).with_predicate(predicate).build()?)))
}

fn sorted(sort: &SortExec) -> Result<Node> {
    let input = sort.input();
    let keys: Vec<_> = sort.expr().iter().map(|key| Arc::clone(&key.expr)).collect();
    let Some(keys) = all_checked(&keys, &input.schema())? else { return Ok(None) };
    let options = sort.expr().iter().map(|key| key.options);
    let keys = keys.into_iter().zip(options).map(|(key, options)| PhysicalSortExpr::new(key, options));
    Ok(LexOrdering::new(keys).map(|order| {
        let sort = SortExec::new(order, Arc::clone(input))
            .with_preserve_partitioning(sort.preserve_partitioning())
            .with_fetch(sort.fetch());
        Arc::new(sort) as _
    }))
}

/// What rows of two sides are joined by besides equal keys: those are columns already. None when nothing changes.
///
/// A part of CASE stays as it is: DataFusion may calculate it for rows that are not wanted, to have it once for each row of a side.
fn joined_where(filter: Option<&JoinFilter>) -> Result<Option<JoinFilter>> {
    let Some(filter) = filter else { return Ok(None) };
    if filter.expression().exists(|part| Ok(part.is::<CaseExpr>()))? {
        return Ok(None);
    }
    let schema = filter.schema();
    let expr = checked(filter.expression(), schema)?.expr;
    let is_changed = !Arc::ptr_eq(&expr, filter.expression());
    Ok(is_changed.then(|| JoinFilter::new(expr, filter.column_indices().to_vec(), Arc::clone(schema))))
}

fn looped(join: &NestedLoopJoinExec, filter: JoinFilter) -> Result<Arc<dyn ExecutionPlan>> {
    let builder = NestedLoopJoinExecBuilder::new(Arc::clone(join.left()), Arc::clone(join.right()), *join.join_type());
    let projection = join.projection().as_ref().map(|shown| shown.to_vec());
    Ok(Arc::new(builder.with_projection(projection).with_filter(Some(filter)).build()?))
}

fn merged(join: &SortMergeJoinExec, filter: JoinFilter) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(Arc::new(SortMergeJoinExec::try_new(
        Arc::clone(join.left()),
        Arc::clone(join.right()),
        join.on().to_vec(),
        Some(filter),
        join.join_type(),
        join.sort_options().to_vec(),
        join.null_equality(),
    )?))
}

/// Only where rows come in: what merges groups has columns only.
fn grouped(aggregate: &AggregateExec) -> Result<Node> {
    if aggregate.mode().input_mode() != AggregateInputMode::Raw {
        return Ok(None);
    }
    let schema = aggregate.input_schema();
    let group_by = aggregate.group_expr();
    let keys: Vec<_> = group_by.expr().iter().map(|(expr, _)| Arc::clone(expr)).collect();
    let checked_keys = all_checked(&keys, &schema)?;
    let functions = aggregate.aggr_expr().iter().map(|function| fed(function, &schema));
    let functions = functions.collect::<Result<Vec<_>>>()?;
    let filters = aggregate.filter_expr();
    let conditions: Vec<_> = filters.iter().flatten().cloned().collect();
    let checked_conditions = all_checked(&conditions, &schema)?;
    if checked_keys.is_none() && checked_conditions.is_none() && functions.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut conditions = checked_conditions.unwrap_or(conditions).into_iter();
    let filters = filters.iter().map(|filter| filter.as_ref().and_then(|_| conditions.next())).collect();
    let functions = functions.into_iter().zip(aggregate.aggr_expr());
    let functions: Vec<_> = functions.map(|(new, old)| new.unwrap_or_else(|| Arc::clone(old))).collect();
    let keys = checked_keys.unwrap_or(keys);
    let names = group_by.expr().iter().map(|(_, name)| name.clone());
    let group_by = PhysicalGroupBy::new(
        keys.into_iter().zip(names).collect(),
        group_by.null_expr().to_vec(),
        group_by.groups().to_vec(),
        group_by.has_grouping_set(),
    );
    let new =
        AggregateExec::try_new(*aggregate.mode(), group_by, functions, filters, Arc::clone(aggregate.input()), schema)?;
    Ok(Some(Arc::new(new)))
}

/// The same function of checked arguments; none when nothing changes.
fn fed(function: &AggregateFunctionExpr, schema: &Schema) -> Result<Option<Arc<AggregateFunctionExpr>>> {
    // Made anew it would forget that it is turned round.
    if function.is_reversed() {
        return Ok(None);
    }
    let args = function.expressions();
    let order: Vec<_> = function.order_bys().iter().map(|key| Arc::clone(&key.expr)).collect();
    match (all_checked(&args, schema)?, all_checked(&order, schema)?) {
        (None, None) => Ok(None),
        (new_args, new_order) => {
            Ok(function.with_new_expressions(new_args.unwrap_or(args), new_order.unwrap_or(order)).map(Arc::new))
        }
    }
}

/// The expressions with their arithmetic checked; none when there is none.
fn all_checked(exprs: &[Arc<dyn PhysicalExpr>], schema: &Schema) -> Result<Option<Vec<Arc<dyn PhysicalExpr>>>> {
    let checked = exprs.iter().map(|expr| checked(expr, schema)).collect::<Result<Vec<_>>>()?;
    let changed = checked.iter().zip(exprs).any(|(new, old)| !Arc::ptr_eq(&new.expr, old));
    Ok(changed.then(|| checked.into_iter().map(|new| new.expr).collect()))
}

/// An expression and, where it is cheap to tell, its type.
struct Typed {
    expr: Arc<dyn PhysicalExpr>,
    data_type: Option<DataType>,
}

/// Each type is found once, from those below: asked of each expression anew a long sum takes the square of its length.
fn checked(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Typed> {
    let children = expr.children();
    let parts = children.iter().map(|child| checked(child, schema)).collect::<Result<Vec<_>>>()?;
    let changed = parts.iter().zip(&children).any(|(new, old)| !Arc::ptr_eq(&new.expr, old));
    let renewed = || match changed {
        true => Arc::clone(expr).with_new_children(parts.iter().map(|part| Arc::clone(&part.expr)).collect()),
        false => Ok(Arc::clone(expr)),
    };
    let (Some(binary), [left, right]) = (expr.downcast_ref::<BinaryExpr>(), &parts[..]) else {
        return Ok(Typed { expr: renewed()?, data_type: None });
    };
    let op = *binary.op();
    if !matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply) {
        return Ok(Typed { expr: renewed()?, data_type: None });
    }
    let type_of = |part: &Typed| match &part.data_type {
        Some(known) => Ok(known.clone()),
        None => part.expr.data_type(schema),
    };
    let (left_type, right_type) = (type_of(left)?, type_of(right)?);
    let data_type = BinaryTypeCoercer::new(&left_type, &op, &right_type).get_result_type()?;
    let plain = || BinaryExpr::new(Arc::clone(&left.expr), op, Arc::clone(&right.expr));
    let expr: Arc<dyn PhysicalExpr> = match (&left_type, &right_type) {
        (left, right) if left.is_signed_integer() && right.is_signed_integer() => {
            Arc::new(plain().with_fail_on_overflow(true))
        }
        (DataType::Decimal128(_, left), DataType::Decimal128(_, right)) => {
            match Decimals::new(op, *left, *right, &data_type) {
                Some(decimals) => Arc::new(DecimalExpr { plain: plain(), decimals }),
                None => renewed()?,
            }
        }
        _ => renewed()?,
    };
    Ok(Typed { expr, data_type: Some(data_type) })
}

/// How two decimals become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Decimals {
    op: Operator,
    /// What the sides are multiplied by before they are added: powers of ten.
    left: i64,
    right: i64,
    precision: u8,
    scale: i8,
}

impl Decimals {
    /// None where the scales are too far apart, or the result is no decimal of 128 bits.
    fn new(op: Operator, left: i8, right: i8, result: &DataType) -> Option<Self> {
        let DataType::Decimal128(precision, scale) = *result else { return None };
        let factor = |of: i8| 10_i64.checked_pow(u32::try_from(scale.checked_sub(of)?).ok()?);
        let (left, right) = match op {
            Operator::Multiply if left.checked_add(right) == Some(scale) => (1, 1),
            Operator::Multiply => return None,
            _ => (factor(left)?, factor(right)?),
        };
        Some(Self { op, left, right, precision, scale })
    }

    /// Errors: `ArithmeticOverflow`, as arrow's kernels.
    #[inline]
    fn one(self, a: i128, b: i128) -> std::result::Result<i128, ArrowError> {
        // Two numbers of 64 bits have a product of at most 126 and a sign, and the sum of two of those fits as well.
        let (small_a, small_b) = (a as i64, b as i64);
        let result = if i128::from(small_a) == a && i128::from(small_b) == b {
            let (left, right) = (i128::from(self.left), i128::from(self.right));
            Some(match self.op {
                Operator::Plus => i128::from(small_a) * left + i128::from(small_b) * right,
                Operator::Minus => i128::from(small_a) * left - i128::from(small_b) * right,
                _ => i128::from(small_a) * i128::from(small_b),
            })
        } else {
            self.large(a, b)
        };
        result.ok_or_else(|| ArrowError::ArithmeticOverflow(format!("Overflow happened on: {a} {} {b}", self.op)))
    }

    #[cold]
    fn large(self, a: i128, b: i128) -> Option<i128> {
        let (left, right) = (a.checked_mul(self.left.into())?, b.checked_mul(self.right.into())?);
        match self.op {
            Operator::Plus => left.checked_add(right),
            Operator::Minus => left.checked_sub(right),
            _ => left.checked_mul(right),
        }
    }

    fn finish(self, values: Decimal128Array) -> Result<ColumnarValue> {
        let values = values.with_precision_and_scale(self.precision, self.scale)?;
        Ok(ColumnarValue::Array(Arc::new(values) as ArrayRef))
    }
}

/// A sum, difference or product of decimals. Arrow's multiplies 128 bits with a check for each value, also by one where the
/// scales are equal; most values have 64.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct DecimalExpr {
    plain: BinaryExpr,
    decimals: Decimals,
}

impl fmt::Display for DecimalExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plain.fmt(f)
    }
}

impl PhysicalExpr for DecimalExpr {
    fn data_type(&self, _input_schema: &Schema) -> Result<DataType> {
        Ok(DataType::Decimal128(self.decimals.precision, self.decimals.scale))
    }

    fn nullable(&self, input_schema: &Schema) -> Result<bool> {
        self.plain.nullable(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let (left, right) = (self.plain.left().evaluate(batch)?, self.plain.right().evaluate(batch)?);
        let decimals = self.decimals;
        match (&left, &right) {
            (ColumnarValue::Array(left), ColumnarValue::Array(right)) => {
                let (left, right) = (left.as_primitive::<Decimal128Type>(), right.as_primitive::<Decimal128Type>());
                decimals.finish(try_binary(left, right, |a, b| decimals.one(a, b))?)
            }
            (ColumnarValue::Array(left), ColumnarValue::Scalar(ScalarValue::Decimal128(Some(b), ..))) => {
                let left = left.as_primitive::<Decimal128Type>();
                decimals.finish(left.try_unary(|a| decimals.one(a, *b))?)
            }
            (ColumnarValue::Scalar(ScalarValue::Decimal128(Some(a), ..)), ColumnarValue::Array(right)) => {
                let right = right.as_primitive::<Decimal128Type>();
                decimals.finish(right.try_unary(|b| decimals.one(*a, b))?)
            }
            _ => match decimals.op {
                Operator::Plus => apply(&left, &right, numeric::add),
                Operator::Minus => apply(&left, &right, numeric::sub),
                _ => apply(&left, &right, numeric::mul),
            },
        }
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.plain.children()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match <[_; 2]>::try_from(children) {
            Ok([left, right]) => {
                Ok(Arc::new(Self { plain: BinaryExpr::new(left, *self.plain.op(), right), decimals: self.decimals }))
            }
            Err(_) => Err(DataFusionError::Internal("a sum has two sides".to_owned())),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plain.fmt_sql(f)
    }
}

/// Refuses sums and products of numbers that stand in the statement and do not fit: DataFusion computes them while it plans,
/// and lets them wrap around.
#[derive(Debug)]
pub(crate) struct Constants;

impl AnalyzerRule for Constants {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                expr.apply(|inner| {
                    Ok(match constant(inner)? {
                        Some(_) => TreeNodeRecursion::Jump,
                        None => TreeNodeRecursion::Continue,
                    })
                })
            })
        })?;
        Ok(plan)
    }

    fn name(&self) -> &str {
        "constants"
    }
}

/// The value of what is made of whole numbers only.
fn constant(expr: &Expr) -> Result<Option<i64>> {
    match expr {
        Expr::Literal(ScalarValue::Int64(value), _) => Ok(*value),
        Expr::Alias(alias) => constant(&alias.expr),
        Expr::BinaryExpr(LogicalBinary { left, op, right }) => {
            let checked = match op {
                Operator::Plus => i64::checked_add,
                Operator::Minus => i64::checked_sub,
                Operator::Multiply => i64::checked_mul,
                _ => return Ok(None),
            };
            let Some(a) = constant(left)? else { return Ok(None) };
            let Some(b) = constant(right)? else { return Ok(None) };
            let overflow = || ArrowError::ArithmeticOverflow(format!("Overflow happened on: {a} {op} {b}"));
            Ok(Some(checked(a, b).ok_or_else(overflow)?))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::datatypes::Field,
        physical_expr::expressions::{col, lit},
    };

    use super::*;

    fn decimals(values: &[Option<i128>], precision: u8, scale: i8) -> ArrayRef {
        let values = Decimal128Array::from(values.to_vec());
        Arc::new(values.with_precision_and_scale(precision, scale).unwrap())
    }

    /// What an expression gives; an overflow is told without the numbers that it was seen at.
    fn given(expr: &dyn PhysicalExpr, batch: &RecordBatch) -> std::result::Result<ArrayRef, String> {
        let given = expr.evaluate(batch).and_then(|value| value.into_array(batch.num_rows()));
        given.map_err(|error| error.to_string().split("on:").next().unwrap_or_default().to_owned())
    }

    #[test]
    fn decimals_are_those_of_arrow() {
        let most = 10_i128.pow(37);
        let values = [
            0,
            1,
            -1,
            1_250,
            -99_999,
            i128::from(i64::MAX),
            i128::from(i64::MIN),
            i128::from(i64::MAX) + 1,
            most,
            -most,
        ];
        let (mut left, mut right) = (vec![None], vec![Some(7)]);
        for a in values {
            left.extend(values.map(|_| Some(a)));
            right.extend(values.map(Some));
        }
        left.push(Some(3));
        right.push(None);
        let mut seen = 0;
        for (left_scale, right_scale) in [(2, 2), (0, 2), (4, 1), (15, 0)] {
            for op in [Operator::Plus, Operator::Minus, Operator::Multiply] {
                // Each pair by itself, and each value beside a constant: one that overflows would hide the others.
                for (a, b) in left.iter().zip(&right) {
                    let columns = [("a", decimals(&[*a], 38, left_scale)), ("b", decimals(&[*b], 38, right_scale))];
                    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap();
                    let schema = batch.schema();
                    let constant = |value: Option<i128>, scale| lit(ScalarValue::Decimal128(value, 38, scale));
                    for (x, y) in [
                        (col("a", &schema).unwrap(), col("b", &schema).unwrap()),
                        (constant(*a, left_scale), col("b", &schema).unwrap()),
                        (col("a", &schema).unwrap(), constant(*b, right_scale)),
                        (constant(*a, left_scale), constant(*b, right_scale)),
                    ] {
                        let plain: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(x, op, y));
                        let ours = checked(&plain, &schema).unwrap().expr;
                        assert!(ours.downcast_ref::<DecimalExpr>().is_some());
                        let (ours, arrows) = (given(ours.as_ref(), &batch), given(plain.as_ref(), &batch));
                        assert_eq!(ours, arrows, "{a:?} {op} {b:?} at {left_scale} and {right_scale}");
                        seen += usize::from(arrows.is_err());
                    }
                }
            }
        }
        assert!(seen > 0, "none overflows");
    }

    #[test]
    fn what_has_no_arithmetic_stays_as_it_is() {
        let schema =
            Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("f", DataType::Float64, true)]);
        let of = |name: &str| col(name, &schema).unwrap();
        for (left, op, right) in [(of("a"), Operator::Lt, of("a")), (of("f"), Operator::Plus, of("f"))] {
            let expr: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(left, op, right));
            assert!(all_checked(&[expr], &schema).unwrap().is_none());
        }
        let expr: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(of("a"), Operator::Plus, of("a")));
        assert!(all_checked(&[expr], &schema).unwrap().is_some());
    }
}
