use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::{
    error::Result,
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        type_coercion::functions::fields_with_udf,
    },
};

/// One name for two functions: one of arrays, one of everything else.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ByType {
    name: &'static str,
    signature: Signature,
    of_list: Arc<ScalarUDF>,
    other: Arc<ScalarUDF>,
}

impl ByType {
    pub(super) fn udf(name: &'static str, of_list: Arc<ScalarUDF>, other: Arc<ScalarUDF>) -> ScalarUDF {
        let signature = Signature::user_defined(Volatility::Immutable);
        ScalarUDF::from(Self { name, signature, of_list, other })
    }

    fn function<'a>(&self, mut types: impl Iterator<Item = &'a DataType>) -> &Arc<ScalarUDF> {
        let is_list = matches!(
            types.next(),
            Some(DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::ListView(_))
        );
        if is_list { &self.of_list } else { &self.other }
    }
}

impl ScalarUDFImpl for ByType {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let fields: Vec<FieldRef> =
            types.iter().map(|t| Arc::new(arrow::datatypes::Field::new("", t.clone(), true))).collect();
        let fields = fields_with_udf(&fields, self.function(types.iter()).as_ref())?;
        Ok(fields.iter().map(|field| field.data_type().clone()).collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.function(types.iter()).return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.function(args.arg_fields.iter().map(|field| field.data_type())).return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let function = Arc::clone(self.function(args.arg_fields.iter().map(|field| field.data_type())));
        function.invoke_with_args(args)
    }
}
