//! Functions that count: DataFusion gives numbers without a sign, whose differences go round; here they give `bigint`, as
//! PostgreSQL's do.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray},
    compute::{SortOptions, cast},
    datatypes::{DataType, Field, FieldRef},
};
use datafusion::{
    common::ScalarValue,
    error::Result,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, Documentation, EmitTo, GroupsAccumulator,
        LimitEffect, PartitionEvaluator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, WindowUDF,
        WindowUDFImpl,
        function::{AccumulatorArgs, ExpressionArgs, PartitionEvaluatorArgs, StateFieldsArgs, WindowUDFFieldArgs},
    },
    physical_expr::PhysicalExpr,
};

const SCALARS: [&str; 6] =
    ["array_dims", "array_length", "array_ndims", "array_position", "array_positions", "cardinality"];
const AGGREGATES: [&str; 2] = ["approx_distinct", "regr_count"];
const WINDOWS: [&str; 4] = ["dense_rank", "ntile", "rank", "row_number"];

/// Lets the session's functions that count give `bigint`.
pub(super) fn register(state: &mut SessionState) -> Result<()> {
    for name in SCALARS {
        let function = Counting(state.udf(name)?);
        state.register_udf(Arc::new(ScalarUDF::from(function)))?;
    }
    for name in AGGREGATES {
        let function = Counting(state.udaf(name)?);
        state.register_udaf(Arc::new(AggregateUDF::from(function)))?;
    }
    for name in WINDOWS {
        let function = Counting(state.udwf(name)?);
        state.register_udwf(Arc::new(WindowUDF::from(function)))?;
    }
    Ok(())
}

/// What a count has for a type here; lists of counts too.
fn signed(data_type: &DataType) -> DataType {
    match data_type {
        DataType::UInt64 => DataType::Int64,
        DataType::List(field) => {
            DataType::List(Arc::new(field.as_ref().clone().with_data_type(signed(field.data_type()))))
        }
        other => other.clone(),
    }
}

fn signed_array(counts: &ArrayRef) -> Result<ArrayRef> {
    Ok(cast(counts, &signed(counts.data_type()))?)
}

fn signed_value(count: &ScalarValue) -> Result<ScalarValue> {
    count.cast_to(&signed(&count.data_type()))
}

fn signed_field(field: &Field) -> FieldRef {
    Arc::new(field.clone().with_data_type(signed(field.data_type())))
}

/// A function, or what computes one, whose counts become signed.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Counting<T>(T);

impl ScalarUDFImpl for Counting<Arc<ScalarUDF>> {
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
        Ok(signed(&self.0.return_type(types)?))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(match self.0.invoke_with_args(args)? {
            ColumnarValue::Array(counts) => ColumnarValue::Array(signed_array(&counts)?),
            ColumnarValue::Scalar(count) => ColumnarValue::Scalar(signed_value(&count)?),
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

impl AggregateUDFImpl for Counting<Arc<AggregateUDF>> {
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
        Ok(signed(&self.0.return_type(types)?))
    }

    fn is_nullable(&self) -> bool {
        self.0.is_nullable()
    }

    fn default_value(&self, _: &DataType) -> Result<ScalarValue> {
        signed_value(&self.0.default_value(&DataType::UInt64)?)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.0.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Counting(self.0.accumulator(args)?)))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Counting(self.0.create_sliding_accumulator(args)?)))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.0.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Counting(self.0.create_groups_accumulator(args)?)))
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

impl Accumulator for Counting<Box<dyn Accumulator>> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.0.supports_retract_batch()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        signed_value(&self.0.evaluate()?)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.state()
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

impl GroupsAccumulator for Counting<Box<dyn GroupsAccumulator>> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        self.0.update_batch(values, groups, filter, count)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.0.merge_batch(states, groups, count)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.0.convert_to_state(values, filter)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        signed_array(&self.0.evaluate(emit_to)?)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.0.state(emit_to)
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

impl WindowUDFImpl for Counting<Arc<WindowUDF>> {
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

    fn expressions(&self, args: ExpressionArgs<'_>) -> Vec<Arc<dyn PhysicalExpr>> {
        self.0.expressions(args)
    }

    fn field(&self, args: WindowUDFFieldArgs<'_>) -> Result<FieldRef> {
        Ok(signed_field(self.0.field(args)?.as_ref()))
    }

    fn partition_evaluator(&self, args: PartitionEvaluatorArgs<'_>) -> Result<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(Counting(self.0.partition_evaluator_factory(args)?)))
    }

    fn sort_options(&self) -> Option<SortOptions> {
        self.0.sort_options()
    }

    fn limit_effect(&self, args: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        self.0.inner().limit_effect(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

impl PartitionEvaluator for Counting<Box<dyn PartitionEvaluator>> {
    fn get_range(&self, row: usize, rows: usize) -> Result<Range<usize>> {
        self.0.get_range(row, rows)
    }

    fn is_causal(&self) -> bool {
        self.0.is_causal()
    }

    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        signed_array(&self.0.evaluate_all(values, rows)?)
    }

    fn evaluate(&mut self, values: &[ArrayRef], range: &Range<usize>) -> Result<ScalarValue> {
        signed_value(&self.0.evaluate(values, range)?)
    }

    fn evaluate_all_with_rank(&self, rows: usize, ranks: &[Range<usize>]) -> Result<ArrayRef> {
        signed_array(&self.0.evaluate_all_with_rank(rows, ranks)?)
    }

    fn supports_bounded_execution(&self) -> bool {
        self.0.supports_bounded_execution()
    }

    fn uses_window_frame(&self) -> bool {
        self.0.uses_window_frame()
    }

    fn include_rank(&self) -> bool {
        self.0.include_rank()
    }
}
