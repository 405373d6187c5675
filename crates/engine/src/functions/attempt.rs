//! `try(...)`: null where an expression fails.

use std::{collections::HashSet, ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayData, ArrayRef, AsArray, NullArray, new_null_array},
    buffer::Buffer,
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
use crate::{
    guard::{self, ValueLimits},
    wanted,
};

/// The parameter of the lambda that an attempt is; nothing that was typed has this name.
pub(super) const PARAMETER: &str = "\u{1}row";
/// Evaluates its lambda, and gives null in the rows where that fails.
pub(super) const ATTEMPT: &str = "try";
/// Stands around an attempt, gives what that gives, and sees what is tried in it.
pub(super) const APART: &str = "try_apart";

/// The function that takes an expression as a lambda.
pub(super) fn attempt(limits: ValueLimits) -> HigherOrderUDF {
    HigherOrderUDF::from(Attempt::new(false, limits))
}

/// The function around it.
pub(super) fn apart(limits: ValueLimits) -> ScalarUDF {
    ScalarUDF::from(Apart { limits, signature: Signature::any(1, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Attempt {
    /// True for what gives something else each time: it is evaluated row by row from the start, and in no row twice. So is
    /// what has attempts in it, where halves of halves would take more time with each.
    is_once: bool,
    limits: ValueLimits,
    signature: HigherOrderSignature,
}

impl Attempt {
    fn new(is_once: bool, limits: ValueLimits) -> Self {
        let takes = vec![ValueOrLambda::Lambda(())];
        Self { is_once, limits, signature: HigherOrderSignature::exact(takes, Volatility::Immutable) }
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
        wanted::look()?;
        match args.arg_fields {
            [ValueOrLambda::Lambda(body)] => Ok(Arc::new(body.as_ref().clone().with_nullable(true))),
            _ => wrong_count(ATTEMPT, "one value"),
        }
    }

    fn invoke_with_args(&self, args: HigherOrderFunctionArgs) -> Result<ColumnarValue> {
        let [ValueOrLambda::Lambda(body)] = args.args.as_slice() else { return wrong_count(ATTEMPT, "one value") };
        let _pieces = guard::Pieces::begin();
        let mut attempt = Rows {
            body,
            gives: args.return_field.data_type(),
            is_once: self.is_once,
            limits: self.limits,
            given: None,
            held: 0,
        };
        if !self.is_once {
            match attempt.evaluated(0..args.number_rows) {
                Err(error) if is_of_a_value(&error) => {}
                other => return other,
            }
        }
        Ok(ColumnarValue::Array(attempt.halved(0..args.number_rows)?.values))
    }
}

/// The rows of a batch, and what is tried in each.
struct Rows<'a> {
    body: &'a LambdaArgument,
    gives: &'a DataType,
    is_once: bool,
    limits: ValueLimits,
    /// Addresses of the columns' own memory, which values may share; known once something was evaluated.
    given: Option<HashSet<usize>>,
    /// Bytes of all pieces that there are.
    held: usize,
}

/// The values of some rows.
struct Piece {
    values: ArrayRef,
    bytes: usize,
}

impl Rows<'_> {
    fn evaluated(&mut self, rows: Range<usize>) -> Result<ColumnarValue> {
        let parameter = || Ok(Arc::new(NullArray::new(rows.len())) as ArrayRef);
        let given = &mut self.given;
        self.body.evaluate(&[&parameter], |columns| {
            given.get_or_insert_with(|| {
                let mut addresses = HashSet::new();
                columns.iter().for_each(|column| {
                    each_buffer(&column.to_data(), &mut |buffer| {
                        addresses.insert(address(buffer));
                    })
                });
                addresses
            });
            Ok(columns.iter().map(|column| column.slice(rows.start, rows.len())).collect())
        })
    }

    /// Looks in halves for the rows that fail. Errors: `ResourcesExhausted` when the halves are too large together, though
    /// each of them keeps to the limits.
    fn halved(&mut self, rows: Range<usize>) -> Result<Piece> {
        wanted::look()?;
        let count = rows.len();
        if count <= 1 || !self.is_once {
            match self.evaluated(rows.clone()) {
                Ok(ColumnarValue::Scalar(value)) => {
                    self.limits.batch("try", value.size().saturating_mul(count))?;
                    return self.piece(value.to_array_of_size(count)?);
                }
                Ok(ColumnarValue::Array(values)) => return self.piece(values),
                Err(error) if !is_of_a_value(&error) => return Err(error),
                Err(_) if count <= 1 => return self.piece(new_null_array(self.gives, count)),
                Err(_) => {}
            }
        }
        let middle = rows.start + count / 2;
        let halves = [self.halved(rows.start..middle)?, self.halved(middle..rows.end)?];
        let both = concat(&[halves[0].values.as_ref(), halves[1].values.as_ref()])?;
        self.held -= halves[0].bytes + halves[1].bytes;
        self.piece(both)
    }

    fn piece(&mut self, values: ArrayRef) -> Result<Piece> {
        // One short text may keep the long one in memory that it is a part of.
        let values: ArrayRef = match values.data_type() {
            DataType::Utf8View => Arc::new(values.as_string_view().gc()),
            DataType::BinaryView => Arc::new(values.as_binary_view().gc()),
            _ => values,
        };
        let (mut bytes, mut seen) = (0, HashSet::new());
        each_buffer(&values.to_data(), &mut |buffer| {
            let is_given = self.given.as_ref().is_some_and(|given| given.contains(&address(buffer)));
            if !is_given && seen.insert(address(buffer)) {
                bytes += buffer.capacity();
            }
        });
        self.held += bytes;
        self.limits.batch("try", self.held)?;
        Ok(Piece { values, bytes })
    }
}

fn address(buffer: &Buffer) -> usize {
    buffer.data_ptr().addr().get()
}

/// Goes through the memory of an array and of its parts.
fn each_buffer(data: &ArrayData, see: &mut impl FnMut(&Buffer)) {
    data.buffers().iter().for_each(&mut *see);
    if let Some(nulls) = data.nulls() {
        see(nulls.buffer());
    }
    for part in data.child_data() {
        each_buffer(part, see);
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
    limits: ValueLimits,
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
            && *attempt.func == self::attempt(self.limits)
            && attempt.args.iter().any(|body| body.is_volatile() || has_attempt(body))
        {
            attempt.func = Arc::new(HigherOrderUDF::from(Attempt::new(true, self.limits)));
            return Ok(ExprSimplifyResult::Simplified(apart(self.limits).call(args)));
        }
        Ok(ExprSimplifyResult::Original(args))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(args.args.pop().unwrap_or(ColumnarValue::Scalar(ScalarValue::Null)))
    }
}
