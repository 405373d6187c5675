//! Functions that people know from Presto, Redshift and PostgreSQL and DataFusion does not have, or has otherwise.
//!
//! What only has another name is rewritten in the parsed text ([`spelling`]); the rest is computed here.

mod attempt;
mod by_type;
mod counts;
mod dates;
mod formats;
mod intervals;
mod json;
mod json_make;
mod json_text;
mod maps;
mod numerals;
mod operators;
mod own;
mod regexes;
mod spelling;
mod sums;
mod texts;
mod urls;

use std::sync::Arc;

use arrow::{array::StringArray, datatypes::DataType};
use datafusion::{
    common::{ScalarValue, exec_err},
    error::Result,
    execution::{FunctionRegistry, SessionState},
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, planner::ExprPlanner,
    },
    sql::sqlparser::ast::BinaryOperator,
};
use uuid::Uuid;

pub(crate) use json_make::{is_marked, marked};
pub(crate) use spelling::{rewrite, written};

use self::own::{Own, Texts, text_type, wrong_count};
use crate::guard::ValueLimits;

/// Gives a session our functions.
pub(crate) fn register(state: &mut SessionState, limits: ValueLimits) -> Result<()> {
    let own = [
        json::udfs(),
        json_make::udfs(limits),
        dates::udfs(),
        intervals::udfs(),
        maps::udfs(),
        regexes::udfs(),
        texts::udfs(limits),
        urls::udfs(),
        vec![type_name(), version(), uuid(), operators::concatenation(), attempt::apart(limits)],
    ];
    counts::register(state)?;
    sums::register(state)?;
    state.register_higher_order_function(Arc::new(attempt::attempt(limits)))?;
    for function in own.into_iter().flatten() {
        state.register_udf(Arc::new(function))?;
    }
    for (name, of_list) in [("contains", "array_has"), ("reverse", "array_reverse")] {
        let function = by_type::ByType::udf(name, state.udf(of_list)?, state.udf(name)?);
        state.register_udf(Arc::new(function))?;
    }
    Ok(())
}

/// True for a function of ours that measures its values by itself, as they may grow.
pub(crate) fn may_grow(function: &ScalarUDF) -> bool {
    let inner = function.inner();
    inner.is::<json_make::Making>() || inner.downcast_ref::<Own>().is_some_and(Own::may_grow)
}

/// Plans the operators that are functions of ours; asked before DataFusion's planners.
pub(crate) fn operators(state: &SessionState) -> Result<Arc<dyn ExprPlanner>> {
    let functions = [
        (BinaryOperator::Arrow, "json_get"),
        (BinaryOperator::LongArrow, "json_get_text"),
        (BinaryOperator::HashArrow, "json_get_path"),
        (BinaryOperator::HashLongArrow, "json_get_path_text"),
        (BinaryOperator::StringConcat, "||"),
        (BinaryOperator::PGOverlap, "array_has_any"),
        (BinaryOperator::PGStartsWith, "starts_with"),
    ];
    let functions = functions.into_iter().map(|(op, name)| Ok((op, state.udf(name)?))).collect::<Result<_>>()?;
    Ok(Arc::new(operators::Operators {
        functions,
        array: state.udf("make_array")?,
        array_concat: state.udf("array_concat")?,
        matches: state.udf("regexp_like")?,
        multiply: state.udf(intervals::MULTIPLY)?,
        divide: state.udf(intervals::DIVIDE)?,
        row: state.udf("struct")?,
        named_row: state.udf("named_struct")?,
    }))
}

/// The SQL name of a value's type.
fn type_name() -> ScalarUDF {
    Own::udf(
        "typeof",
        &["pg_typeof"],
        |name, given| match given {
            [given] => Ok((vec![given.clone()], DataType::Utf8)),
            _ => wrong_count(name, "one value"),
        },
        |args, rows, _| {
            let name = crate::sql_type_name(args[0].data_type());
            Ok(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(name, rows))))
        },
    )
}

/// `x::uuid`: the usual text of a UUID, as which the lake keeps it.
fn uuid() -> ScalarUDF {
    Own::udf(
        "to_uuid",
        &[],
        |name, given| match given {
            [given] => Ok((vec![text_type(name, given)?], DataType::Utf8)),
            _ => wrong_count(name, "one text"),
        },
        |args, rows, _| {
            let texts = Texts::of(&args[0])?;
            let read = |text: &str| match Uuid::try_parse(text.trim()) {
                Ok(uuid) => Ok(uuid.to_string()),
                Err(_) => exec_err!("`{text}` cannot be parsed as a UUID"),
            };
            let uuids = (0..rows).map(|row| texts.get(row).map(read).transpose());
            Ok(Arc::new(uuids.collect::<Result<StringArray>>()?))
        },
    )
}

/// `current_user` of one caller. Not immutable: what depends on it is not kept for others.
pub(crate) fn current_user(user: &str) -> ScalarUDF {
    Constant::udf("current_user", user, Volatility::Stable)
}

/// What answers here. Clients that speak PostgreSQL are told one of its versions instead.
fn version() -> ScalarUDF {
    Constant::udf("version", concat!("Headworks ", env!("CARGO_PKG_VERSION")), Volatility::Immutable)
}

/// A function without arguments that gives one text.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    value: String,
    signature: Signature,
}

impl Constant {
    fn udf(name: &'static str, value: &str, volatility: Volatility) -> ScalarUDF {
        ScalarUDF::from(Self { name, value: value.to_owned(), signature: Signature::nullary(volatility) })
    }
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(self.value.clone()))))
    }
}
