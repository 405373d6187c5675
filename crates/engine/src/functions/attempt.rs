//! `try(...)`: null where an expression fails.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, NullArray, new_null_array},
    compute::concat,
    datatypes::{DataType, Field, FieldRef},
    error::ArrowError,
};
use datafusion::{
    common::{ScalarValue, plan_err, tree_node::TreeNode},
    error::{DataFusionError, Result},
    logical_expr::{
        ColumnarValue, Expr, HigherOrderFunctionArgs, HigherOrderReturnFieldArgs, HigherOrderSignature, HigherOrderUDF,
        HigherOrderUDFImpl, LambdaArgument, LambdaParametersProgress, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
        ScalarUDFImpl, Signature, ValueOrLambda, Volatility,
        simplify::{ExprSimplifyResult, SimplifyContext},
    },
};

use super::own::wrong_count;

/// The parameter of the lambda that an attempt is; nothing that was typed has this name.
pub(super) const PARAMETER: &str = "\u{1}row";
/// Evaluates its lambda, and gives null in the rows where that fails.
pub(super) const ATTEMPT: &str = "try";
/// Stands around an attempt, gives what that gives, and sees what is tried in it.
pub(super) const APART: &str = "try_apart";

/// The function that takes an expression as a lambda.
pub(super) fn attempt() -> HigherOrderUDF {
    HigherOrderUDF::from(Attempt::new(false))
}

/// The function around it.
pub(super) fn apart() -> ScalarUDF {
    ScalarUDF::from(Apart { signature: Signature::any(1, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Attempt {
    /// True for what gives something else each time: it is evaluated row by row from the start, and in no row twice. So is
    /// what has attempts in it, where halves of halves would take more time with each.
    is_once: bool,
    signature: HigherOrderSignature,
}

impl Attempt {
    fn new(is_once: bool) -> Self {
        let takes = vec![ValueOrLambda::Lambda(())];
        Self { is_once, signature: HigherOrderSignature::exact(takes, Volatility::Immutable) }
    }
}

impl HigherOrderUDFImpl for Attempt {
    fn name(&self) -> &str {
        ATTEMPT
    }

    fn signature(&self) -> &HigherOrderSignature {
        &self.signature
    }

    fn coerce_value_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.to_vec())
    }

    fn lambda_parameters(
        &self,
        _: usize,
        _: &[ValueOrLambda<FieldRef, Option<FieldRef>>],
    ) -> Result<LambdaParametersProgress> {
        let row = Arc::new(Field::new(PARAMETER, DataType::Null, true));
        Ok(LambdaParametersProgress::Complete(vec![vec![row]]))
    }

    /// No optimizer rule evaluates parts of it outside of it.
    fn short_circuits(&self) -> bool {
        true
    }

    fn return_field_from_args(&self, args: HigherOrderReturnFieldArgs<'_>) -> Result<FieldRef> {
        match args.arg_fields {
            [ValueOrLambda::Lambda(body)] => Ok(Arc::new(body.as_ref().clone().with_nullable(true))),
            _ => wrong_count(ATTEMPT, "one value"),
        }
    }

    fn invoke_with_args(&self, args: HigherOrderFunctionArgs) -> Result<ColumnarValue> {
        let [ValueOrLambda::Lambda(body)] = args.args.as_slice() else { return wrong_count(ATTEMPT, "one value") };
        let attempt = Rows { body, gives: args.return_field.data_type() };
        if self.is_once {
            let rows = (0..args.number_rows).map(|row| attempt.halved(row..row + 1)).collect::<Result<Vec<_>>>()?;
            return attempt.together(&rows);
        }
        match attempt.evaluated(0..args.number_rows) {
            Err(error) if is_of_a_value(&error) => Ok(ColumnarValue::Array(attempt.halved(0..args.number_rows)?)),
            other => other,
        }
    }
}

/// The rows of a batch, and what is tried in each.
struct Rows<'a> {
    body: &'a LambdaArgument,
    gives: &'a DataType,
}

impl Rows<'_> {
    fn evaluated(&self, rows: Range<usize>) -> Result<ColumnarValue> {
        let parameter = || Ok(Arc::new(NullArray::new(rows.len())) as ArrayRef);
        self.body.evaluate(&[&parameter], |columns| {
            Ok(columns.iter().map(|column| column.slice(rows.start, rows.len())).collect())
        })
    }

    /// Looks in halves for the rows that fail.
    fn halved(&self, rows: Range<usize>) -> Result<ArrayRef> {
        let count = rows.len();
        match self.evaluated(rows.clone()) {
            Ok(values) => values.into_array(count),
            Err(error) if !is_of_a_value(&error) => Err(error),
            Err(_) if count <= 1 => Ok(new_null_array(self.gives, count)),
            Err(_) => {
                let middle = rows.start + count / 2;
                let halves = [self.halved(rows.start..middle)?, self.halved(middle..rows.end)?];
                Ok(concat(&[halves[0].as_ref(), halves[1].as_ref()])?)
            }
        }
    }

    fn together(&self, rows: &[ArrayRef]) -> Result<ColumnarValue> {
        if rows.is_empty() {
            return Ok(ColumnarValue::Array(new_null_array(self.gives, 0)));
        }
        let rows: Vec<&dyn Array> = rows.iter().map(AsRef::as_ref).collect();
        Ok(ColumnarValue::Array(concat(&rows)?))
    }
}

/// Whether an error says something about a value. Limits, memory, stops and faults of the engine do not.
fn is_of_a_value(error: &DataFusionError) -> bool {
    match error {
        DataFusionError::ArrowError(error, _) => matches!(
            error.as_ref(),
            ArrowError::CastError(_)
                | ArrowError::ParseError(_)
                | ArrowError::ComputeError(_)
                | ArrowError::DivideByZero
                | ArrowError::ArithmeticOverflow(_)
                | ArrowError::InvalidArgumentError(_)
        ),
        DataFusionError::Execution(_) | DataFusionError::Plan(_) => true,
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => is_of_a_value(inner),
        DataFusionError::Shared(inner) => is_of_a_value(inner),
        DataFusionError::Collection(all) => all.iter().all(is_of_a_value),
        _ => false,
    }
}

fn has_attempt(body: &Expr) -> bool {
    body.exists(|inner| Ok(matches!(inner, Expr::HigherOrderFunction(_)))).unwrap_or(true)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Apart {
    signature: Signature,
}

impl ScalarUDFImpl for Apart {
    fn name(&self) -> &str {
        APART
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [one] => Ok(one.clone()),
            _ => plan_err!("`{APART}` takes one value"),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        match args.arg_fields {
            [one] => Ok(Arc::clone(one)),
            _ => plan_err!("`{APART}` takes one value"),
        }
    }

    fn simplify(&self, mut args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        if let [Expr::HigherOrderFunction(attempt)] = args.as_mut_slice()
            && *attempt.func == self::attempt()
            && attempt.args.iter().any(|body| body.is_volatile() || has_attempt(body))
        {
            attempt.func = Arc::new(HigherOrderUDF::from(Attempt::new(true)));
            return Ok(ExprSimplifyResult::Simplified(apart().call(args)));
        }
        Ok(ExprSimplifyResult::Original(args))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.pop().unwrap_or(ColumnarValue::Scalar(ScalarValue::Null)))
    }
}
