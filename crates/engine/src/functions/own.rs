use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, LargeStringArray, StringArray, StringViewArray},
    datatypes::{DataType, Field, FieldRef, TimeUnit},
};
use datafusion::{
    common::{ScalarValue, exec_err, plan_err},
    error::Result,
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};

use super::json_make::marked;
use crate::guard::ValueLimits;

/// Gives the types that arguments are cast to, and the result's.
pub(super) type Types = fn(&str, &[DataType]) -> Result<(Vec<DataType>, DataType)>;
/// Computes all rows; every argument is an array of so many rows.
pub(super) type Call = fn(&[ArrayRef], usize, &DataType) -> Result<ArrayRef>;

/// The same for what may grow: it measures a value before it makes it.
pub(super) type LimitedCall = fn(&str, &[ArrayRef], usize, ValueLimits) -> Result<ArrayRef>;

#[derive(Debug)]
enum Called {
    Plain(Call),
    Limited(LimitedCall, ValueLimits),
}

/// A function of ours.
#[derive(Debug)]
pub(crate) struct Own {
    name: &'static str,
    aliases: Vec<String>,
    signature: Signature,
    types: Types,
    call: Called,
    gives_json: bool,
}

impl Own {
    /// Makes a function with its other names.
    pub(super) fn udf(name: &'static str, aliases: &[&str], types: Types, call: Call) -> ScalarUDF {
        ScalarUDF::from(Self::new(name, aliases, types, Called::Plain(call)))
    }

    /// Makes a function whose texts are JSON.
    pub(super) fn json(name: &'static str, aliases: &[&str], types: Types, call: Call) -> ScalarUDF {
        ScalarUDF::from(Self { gives_json: true, ..Self::new(name, aliases, types, Called::Plain(call)) })
    }

    /// Makes a function that keeps to the limits by itself.
    pub(super) fn limited(name: &'static str, types: Types, call: LimitedCall, limits: ValueLimits) -> ScalarUDF {
        ScalarUDF::from(Self::new(name, &[], types, Called::Limited(call, limits)))
    }

    fn new(name: &'static str, aliases: &[&str], types: Types, call: Called) -> Self {
        Self {
            name,
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            signature: Signature::user_defined(Volatility::Immutable),
            types,
            call,
            gives_json: false,
        }
    }

    /// True when its values may be much larger than what they are made from.
    pub(crate) fn may_grow(&self) -> bool {
        matches!(self.call, Called::Limited(..))
    }
}

// One name is one function.
impl PartialEq for Own {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Own {}

impl Hash for Own {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Own {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok((self.types)(self.name, types)?.0)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok((self.types)(self.name, types)?.1)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let field = Field::new(self.name, self.return_type(&types)?, true);
        Ok(Arc::new(if self.gives_json { marked(field) } else { field }))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        by_rows(&args, |arrays, rows| match self.call {
            Called::Plain(call) => call(arrays, rows, args.return_field.data_type()),
            Called::Limited(call, limits) => call(self.name, arrays, rows, limits),
        })
    }
}

/// Computes all rows, or one when every argument is a constant.
pub(super) fn by_rows(
    args: &ScalarFunctionArgs,
    compute: impl FnOnce(&[ArrayRef], usize) -> Result<ArrayRef>,
) -> Result<ColumnarValue> {
    let is_constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    let rows = if is_constant { 1 } else { args.number_rows };
    let arrays = args.args.iter().map(|arg| arg.to_array(rows)).collect::<Result<Vec<_>>>()?;
    let result = compute(&arrays, rows)?;
    Ok(if is_constant {
        ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
    } else {
        ColumnarValue::Array(result)
    })
}

/// A column of text, whichever way it is laid out.
pub(super) enum Texts<'a> {
    Small(&'a StringArray),
    Large(&'a LargeStringArray),
    View(&'a StringViewArray),
}

impl<'a> Texts<'a> {
    pub(super) fn of(array: &'a ArrayRef) -> Result<Self> {
        match array.data_type() {
            DataType::Utf8 => Ok(Self::Small(array.as_string())),
            DataType::LargeUtf8 => Ok(Self::Large(array.as_string())),
            DataType::Utf8View => Ok(Self::View(array.as_string_view())),
            other => exec_err!("text was expected, not {other}"),
        }
    }

    pub(super) fn get(&self, row: usize) -> Option<&'a str> {
        match self {
            Self::Small(texts) => texts.is_valid(row).then(|| texts.value(row)),
            Self::Large(texts) => texts.is_valid(row).then(|| texts.value(row)),
            Self::View(texts) => texts.is_valid(row).then(|| texts.value(row)),
        }
    }
}

/// What was made from the last text; formats and paths are the same in every row.
pub(super) struct Memo<T> {
    last: Option<(String, T)>,
}

impl<T> Memo<T> {
    pub(super) fn new() -> Self {
        Self { last: None }
    }

    pub(super) fn get(&mut self, text: &str, make: impl FnOnce(&str) -> Result<T>) -> Result<&T> {
        let last = match self.last.take() {
            Some(last) if last.0 == text => last,
            _ => (text.to_owned(), make(text)?),
        };
        Ok(&self.last.insert(last).1)
    }
}

/// The type to which a text argument is cast.
pub(super) fn text_type(function: &str, given: &DataType) -> Result<DataType> {
    match given {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(given.clone()),
        DataType::Null => Ok(DataType::Utf8),
        DataType::Dictionary(_, value) => text_type(function, value),
        other => plan_err!("`{function}` takes text, not {}; cast it first", crate::sql_type_name(other)),
    }
}

/// The type to which a point in time is cast: microseconds, in its own zone.
pub(super) fn time_type(function: &str, given: &DataType) -> Result<DataType> {
    match given {
        DataType::Timestamp(_, zone) => Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        DataType::Date32 | DataType::Date64 | DataType::Null => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Ok(DataType::Timestamp(TimeUnit::Microsecond, None))
        }
        other => plan_err!("`{function}` takes a date or timestamp, not {}", crate::sql_type_name(other)),
    }
}

/// The error for a call with the wrong number of arguments.
pub(super) fn wrong_count<T>(function: &str, takes: &str) -> Result<T> {
    plan_err!("`{function}` takes {takes}")
}
