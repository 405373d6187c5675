use std::sync::Arc;

use arrow::{compute::kernels::concat_elements::concat_elements_dyn, datatypes::DataType};
use datafusion::{
    common::{DFSchema, utils::list_ndims},
    error::{DataFusionError, Result},
    logical_expr::{
        Expr, ExprSchemable, ScalarUDF,
        binary::BinaryTypeCoercer,
        expr::{Alias, ScalarFunction},
        lit,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
    },
    sql::sqlparser::ast::BinaryOperator,
};

use super::own::{Own, wrong_count};
use crate::guard;

/// Plans operators and literals as calls of the session's functions: those over JSON, and those whose result is measured
/// before it is made, which DataFusion's planners know nothing of.
#[derive(Debug)]
pub(super) struct Operators {
    pub(super) functions: Vec<(BinaryOperator, Arc<ScalarUDF>)>,
    pub(super) array: Arc<ScalarUDF>,
    pub(super) array_concat: Arc<ScalarUDF>,
    /// `regexp_like`, for patterns that are no constants.
    pub(super) matches: Arc<ScalarUDF>,
    /// Of an interval and a number.
    pub(super) multiply: Arc<ScalarUDF>,
    pub(super) divide: Arc<ScalarUDF>,
    pub(super) row: Arc<ScalarUDF>,
    pub(super) named_row: Arc<ScalarUDF>,
}

impl Operators {
    /// What multiplies or divides an interval, which comes first then.
    fn of_interval(
        &self,
        mut raw: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<(RawBinaryExpr, Option<&Arc<ScalarUDF>>)> {
        let function = match raw.op {
            BinaryOperator::Multiply => &self.multiply,
            BinaryOperator::Divide => &self.divide,
            _ => return Ok((raw, None)),
        };
        let (left, right) = (raw.left.get_type(schema)?, raw.right.get_type(schema)?);
        let is_number = |given: &DataType| given.is_numeric() || *given == DataType::Null;
        if matches!(left, DataType::Interval(_)) && is_number(&right) {
            return Ok((raw, Some(function)));
        }
        if is_number(&left) && matches!(right, DataType::Interval(_)) && raw.op == BinaryOperator::Multiply {
            std::mem::swap(&mut raw.left, &mut raw.right);
            return Ok((raw, Some(function)));
        }
        Ok((raw, None))
    }
}

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if let Some((is_lenient, is_negated)) = matching(&raw.op) {
            if let Expr::Literal(pattern, _) = &raw.right {
                guard::check_pattern(pattern)?;
                return Ok(PlannerResult::Original(raw));
            }
            let mut args = vec![raw.left, raw.right];
            args.extend(is_lenient.then(|| lit("i")));
            let found = self.matches.call(args);
            return Ok(PlannerResult::Planned(if is_negated { !found } else { found }));
        }
        let raw = with_truth(raw, schema);
        let found = self.functions.iter().find(|(op, _)| *op == raw.op).map(|(_, function)| function);
        let (raw, function) = match found {
            Some(function) => (raw, function),
            None => match self.of_interval(raw, schema)? {
                (raw, Some(function)) => (raw, function),
                (raw, None) => return Ok(PlannerResult::Original(raw)),
            },
        };
        if raw.op == BinaryOperator::StringConcat {
            let depth = |expr: &Expr| Ok::<_, DataFusionError>(list_ndims(&expr.get_type(schema)?));
            match (depth(&raw.left)?, depth(&raw.right)?) {
                (0, 0) => {}
                (left, right) if left == right => {
                    return Ok(PlannerResult::Planned(self.array_concat.call(vec![raw.left, raw.right])));
                }
                _ => return Ok(PlannerResult::Original(raw)),
            }
        }
        let name = format!("{} {} {}", raw.left.schema_name(), raw.op, raw.right.schema_name());
        // DataFusion asks twice for the type of what has an alias: with one in the other, 2^n times.
        let args = [raw.left, raw.right].map(|arg| arg.unalias_nested().data);
        let call = ScalarFunction { func: Arc::clone(function), args: args.to_vec() };
        Ok(PlannerResult::Planned(Expr::Alias(Alias::new(Expr::ScalarFunction(call), None::<&str>, name))))
    }

    fn plan_array_literal(&self, items: Vec<Expr>, _: &DFSchema) -> Result<PlannerResult<Vec<Expr>>> {
        Ok(PlannerResult::Planned(self.array.call(items)))
    }

    fn plan_struct_literal(&self, parts: Vec<Expr>, is_named: bool) -> Result<PlannerResult<Vec<Expr>>> {
        let function = if is_named { &self.named_row } else { &self.row };
        Ok(PlannerResult::Planned(function.call(parts)))
    }
}

/// Reads a text beside a boolean as one, as PostgreSQL does: `flag = 'true'`. DataFusion compares no text with a boolean.
fn with_truth(mut raw: RawBinaryExpr, schema: &DFSchema) -> RawBinaryExpr {
    if matches!(raw.op, BinaryOperator::Eq | BinaryOperator::NotEq) {
        let is_boolean = |expr: &Expr| expr.get_type(schema).is_ok_and(|found| found == DataType::Boolean);
        if let Some(truth) = truth(&raw.right).filter(|_| is_boolean(&raw.left)) {
            raw.right = lit(truth);
        } else if let Some(truth) = truth(&raw.left).filter(|_| is_boolean(&raw.right)) {
            raw.left = lit(truth);
        }
    }
    raw
}

fn truth(expr: &Expr) -> Option<bool> {
    let Expr::Literal(value, _) = expr else { return None };
    match value.try_as_str()??.trim().to_ascii_lowercase().as_str() {
        "t" | "true" | "y" | "yes" | "on" | "1" => Some(true),
        "f" | "false" | "n" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Whether a match leaves the case of letters aside, and whether it is one that must not be.
fn matching(operator: &BinaryOperator) -> Option<(bool, bool)> {
    match operator {
        BinaryOperator::PGRegexMatch => Some((false, false)),
        BinaryOperator::PGRegexIMatch => Some((true, false)),
        BinaryOperator::PGRegexNotMatch => Some((false, true)),
        BinaryOperator::PGRegexNotIMatch => Some((true, true)),
        _ => None,
    }
}

/// `||` of two texts or two binaries; null when one is.
pub(super) fn concatenation() -> ScalarUDF {
    Own::udf("||", &[], concatenated, |args, _, _| Ok(concat_elements_dyn(args[0].as_ref(), args[1].as_ref())?))
}

fn concatenated(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [left, right] = given else { return wrong_count(name, "two values") };
    let operator = datafusion::logical_expr::Operator::StringConcat;
    let coercer = BinaryTypeCoercer::new(left, &operator, right);
    let (left, _) = coercer.get_input_types()?;
    let both = if left == DataType::Null { DataType::Utf8 } else { left };
    Ok((vec![both.clone(), both.clone()], both))
}
