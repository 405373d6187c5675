//! `sum` of whole numbers: it fails where it does not fit into 64 bits, and DataFusion's wraps around.

use std::{
    fmt::Debug,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use arrow::{
    array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowNumericType, AsArray, BooleanArray},
    datatypes::{DataType, FieldRef, Int64Type, UInt64Type},
    error::ArrowError,
};
use datafusion::{
    common::ScalarValue,
    error::Result,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, Expr, GroupsAccumulator, Operator,
        ReversedUDAF, SetMonotonicity, Signature, StatisticsArgs,
        expr::AggregateFunction,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

/// Lets the session's `sum` fail on overflow.
pub(super) fn register(state: &mut SessionState) -> Result<()> {
    let sum = Sum(state.udaf("sum")?);
    state.register_udaf(Arc::new(AggregateUDF::from(sum)))?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sum(Arc<AggregateUDF>);

impl Sum {
    fn total(&self, args: AccumulatorArgs<'_>, is_sliding: bool) -> Result<Box<dyn Accumulator>> {
        let plain = |args: AccumulatorArgs<'_>| match is_sliding {
            true => self.0.create_sliding_accumulator(args),
            false => self.0.accumulator(args),
        };
        let data_type = args.return_field.data_type().clone();
        Ok(match (data_type, args.is_distinct) {
            (DataType::Int64, false) => Box::new(Total::<Int64Type>::new()),
            (DataType::UInt64, false) => Box::new(Total::<UInt64Type>::new()),
            (DataType::Int64, true) if !is_sliding => Box::new(Distinct::<Int64Type>::new(plain(args)?)),
            (DataType::UInt64, true) if !is_sliding => Box::new(Distinct::<UInt64Type>::new(plain(args)?)),
            _ => plain(args)?,
        })
    }
}

/// All but how whole numbers are added is DataFusion's.
impl AggregateUDFImpl for Sum {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn aliases(&self) -> &[String] {
        self.0.aliases()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.0.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.0.return_type(types)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.0.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.total(args, false)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.total(args, true)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.0.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match args.return_field.data_type() {
            DataType::Int64 => Ok(Box::new(Groups::of::<Int64Type>())),
            DataType::UInt64 => Ok(Box::new(Groups::of::<UInt64Type>())),
            _ => self.0.create_groups_accumulator(args),
        }
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.0.inner().set_monotonicity(data_type)
    }

    fn simplify_expr_op_literal(
        &self,
        call: &AggregateFunction,
        arg: &Expr,
        op: Operator,
        literal: &Expr,
        is_left: bool,
    ) -> Result<Option<Expr>> {
        self.0.inner().simplify_expr_op_literal(call, arg, op, literal, is_left)
    }

    fn value_from_stats(&self, args: &StatisticsArgs<'_>) -> Option<ScalarValue> {
        self.0.inner().value_from_stats(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

fn overflow() -> ArrowError {
    ArrowError::ArithmeticOverflow("Overflow happened on: sum".to_owned())
}

/// The sum of all values, or of those in a window's frame.
#[derive(Debug)]
struct Total<T: ArrowNumericType> {
    sum: i128,
    /// How many values it is of.
    count: u64,
    of: PhantomData<fn() -> T>,
}

impl<T: ArrowNumericType> Total<T> {
    fn new() -> Self {
        Self { sum: 0, count: 0, of: PhantomData }
    }
}

/// How many values there are, and their sum.
fn totals<T>(values: &dyn Array) -> (u64, i128)
where
    T: ArrowNumericType,
    T::Native: Into<i128>,
{
    let values = values.as_primitive::<T>();
    let sum = match values.null_count() {
        0 => values.values().iter().map(|value| (*value).into()).sum(),
        _ => values.iter().flatten().map(Into::into).sum(),
    };
    ((values.len() - values.null_count()) as u64, sum)
}

impl<T> Accumulator for Total<T>
where
    T: ArrowNumericType + Debug,
    T::Native: Into<i128> + TryFrom<i128>,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (count, sum) = totals::<T>(&values[0]);
        (self.count, self.sum) = (self.count + count, self.sum + sum);
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (count, sum) = totals::<T>(&values[0]);
        (self.count, self.sum) = (self.count - count, self.sum - sum);
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = match self.count {
            0 => None,
            _ => Some(T::Native::try_from(self.sum).map_err(|_| overflow())?),
        };
        ScalarValue::new_primitive::<T>(sum, &T::DATA_TYPE)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// The sum of different values, which DataFusion finds.
#[derive(Debug)]
struct Distinct<T> {
    values: Box<dyn Accumulator>,
    of: PhantomData<fn() -> T>,
}

impl<T> Distinct<T> {
    fn new(values: Box<dyn Accumulator>) -> Self {
        Self { values, of: PhantomData }
    }
}

impl<T> Accumulator for Distinct<T>
where
    T: ArrowNumericType + Debug,
    T::Native: Into<i128> + TryFrom<i128>,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values.update_batch(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.values.merge_batch(states)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        // A window asks for each row, and more values come in between.
        let mut total = Total::<T>::new();
        for state in self.values.state()? {
            if let ScalarValue::List(list) = state {
                total.update_batch(&[Arc::clone(list.values())])?;
            }
        }
        total.evaluate()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.values.state()
    }

    fn size(&self) -> usize {
        self.values.size()
    }
}

/// The sums of groups. DataFusion adds the values and cannot fail where it does: one that does not fit is told after.
struct Groups<S> {
    sums: S,
    has_overflowed: Arc<AtomicBool>,
}

impl Groups<()> {
    fn of<T>() -> Groups<impl GroupsAccumulator>
    where
        T: ArrowNumericType + Send,
        T::Native: ArrowNativeTypeOp,
    {
        let has_overflowed = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&has_overflowed);
        let sums =
            PrimitiveGroupsAccumulator::<T, _>::new(&T::DATA_TYPE, move |sum, value| match sum.add_checked(value) {
                Ok(larger) => *sum = larger,
                Err(_) => told.store(true, Relaxed),
            });
        Groups { sums, has_overflowed }
    }
}

impl<S> Groups<S> {
    fn checked(&self) -> Result<()> {
        match self.has_overflowed.load(Relaxed) {
            true => Err(overflow().into()),
            false => Ok(()),
        }
    }
}

impl<S: GroupsAccumulator> GroupsAccumulator for Groups<S> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        self.sums.update_batch(values, groups, filter, count)?;
        self.checked()
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.sums.merge_batch(states, groups, count)?;
        self.checked()
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.sums.convert_to_state(values, filter)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.sums.evaluate(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.sums.state(emit_to)
    }

    fn size(&self) -> usize {
        self.sums.size()
    }
}
