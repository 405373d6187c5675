//! Functions that make JSON. Its text is marked in the field of its column, so that JSON inside JSON is not taken for text.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, StringBuilder},
    datatypes::{DataType, Field, FieldRef},
};
use datafusion::{
    common::plan_err,
    error::Result,
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
        Volatility,
    },
};

use super::{
    json_text::{Form, JsonText, is_null, key},
    own::{by_rows, wrong_count},
};
use crate::guard::ValueLimits;

/// Says in the metadata of a field that its texts are JSON.
const MARK: &str = "headworks.json";

/// A field of texts that are JSON.
pub(crate) fn marked(field: Field) -> Field {
    field.with_metadata(HashMap::from([(MARK.to_owned(), String::new())]))
}

/// Whether the texts of a field are JSON.
pub(crate) fn is_marked(field: &Field) -> bool {
    field.metadata().contains_key(MARK)
}

/// All functions that make JSON.
pub(super) fn udfs(limits: ValueLimits) -> Vec<ScalarUDF> {
    let made = |name, aliases: &[&str], form, what| {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        let signature = match what {
            What::Array | What::Object => {
                Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::UserDefined], Volatility::Immutable)
            }
            _ => Signature::user_defined(Volatility::Immutable),
        };
        ScalarUDF::from(Making { name, aliases, form, what, limits, signature })
    };
    vec![
        made("to_json", &["row_to_json", "array_to_json"], Form::Json, What::Value),
        made("to_jsonb", &[], Form::Jsonb, What::Value),
        made("json_build_array", &[], Form::Json, What::Array),
        made("jsonb_build_array", &[], Form::Jsonb, What::Array),
        made("json_build_object", &[], Form::Json, What::Object),
        made("jsonb_build_object", &[], Form::Jsonb, What::Object),
        made("json_of_items", &[], Form::Json, What::Items),
        made("jsonb_of_items", &[], Form::Jsonb, What::Items),
        made("json_of_pairs", &[], Form::Json, What::Pairs),
        made("jsonb_of_pairs", &[], Form::Jsonb, What::Pairs),
        made("json_marked", &[], Form::Json, What::Marked),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Of one value: its JSON.
    Value,
    /// Of all arguments: an array.
    Array,
    /// Of a key, a value, a key, a value: an object.
    Object,
    /// Of a list that `array_agg` made: an array as `json_agg` writes it.
    Items,
    /// Of a list of structs of a key and JSON: an object as `json_object_agg` writes it.
    Pairs,
    /// Of JSON that is not known to be: the same.
    Marked,
}

/// A function that makes JSON, no value of it above the limit.
#[derive(Debug)]
pub(crate) struct Making {
    name: &'static str,
    aliases: Vec<String>,
    form: Form,
    what: What,
    limits: ValueLimits,
    signature: Signature,
}

// One name is one function.
impl PartialEq for Making {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.limits == other.limits
    }
}

impl Eq for Making {}

impl Hash for Making {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.name, self.limits).hash(state);
    }
}

impl ScalarUDFImpl for Making {
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
        match self.what {
            What::Marked => return Ok(vec![DataType::Utf8; types.len()]),
            What::Array => {}
            What::Object if types.len().is_multiple_of(2) => {}
            What::Object => return wrong_count(self.name, "as many values as keys"),
            _ if types.len() != 1 => return wrong_count(self.name, "one value"),
            What::Value => {}
            What::Items => match &types[0] {
                DataType::List(_) | DataType::Null => {}
                _ => return plan_err!("`{}` takes a list", self.name),
            },
            What::Pairs => match &types[0] {
                DataType::List(item) if is_pair(item.data_type()) => {}
                DataType::Null => {}
                _ => return plan_err!("`{}` takes a list of keys and values", self.name),
            },
        }
        Ok(types.to_vec())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        Ok(Arc::new(marked(Field::new(self.name, DataType::Utf8, true))))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if self.what == What::Marked {
            return args.args.pop().map_or_else(|| wrong_count(self.name, "one value"), Ok);
        }
        let is_json: Vec<bool> = args.arg_fields.iter().map(|field| is_marked(field)).collect();
        by_rows(&args, |arrays, rows| {
            let mut writer = JsonText::new(self.name, self.form, self.limits);
            let mut found = StringBuilder::new();
            let mut batch = 0;
            for row in 0..rows {
                if self.row(&mut writer, arrays, &is_json, row)? {
                    let text = writer.take();
                    batch += text.len();
                    self.limits.batch(self.name, batch)?;
                    found.append_value(text);
                } else {
                    found.append_null();
                }
            }
            Ok(Arc::new(found.finish()))
        })
    }
}

fn is_pair(item: &DataType) -> bool {
    matches!(item, DataType::Struct(parts) if parts.len() == 2)
}

impl Making {
    /// Writes one row; false when it is null.
    fn row(&self, writer: &mut JsonText<'_>, args: &[ArrayRef], is_json: &[bool], row: usize) -> Result<bool> {
        match (self.what, args) {
            (What::Array, _) => {
                writer.list(args.len(), ", ", |writer, index| writer.value(&args[index], row, is_json[index]))?;
            }
            (What::Object, _) => writer.object(
                args.len() / 2,
                ["{", " : ", ", ", "}"],
                |index| key(&args[2 * index], row),
                |writer, index| writer.value(&args[2 * index + 1], row, is_json[2 * index + 1]),
            )?,
            (_, [arg]) if is_null(arg, row) => return Ok(false),
            (What::Value, [arg]) => writer.value(arg, row, is_json[0])?,
            (What::Items, [arg]) => {
                let items = arg.as_list::<i32>().value(row);
                let is_composite = items.data_type().is_nested() && self.form == Form::Json;
                let between = if is_composite { ", \n " } else { ", " };
                writer.list(items.len(), between, |writer, index| writer.value(&items, index, is_json[0]))?;
            }
            (What::Pairs, [arg]) => {
                let pairs = arg.as_list::<i32>().value(row);
                let pairs = pairs.as_struct();
                writer.object(
                    pairs.len(),
                    ["{ ", " : ", ", ", " }"],
                    |index| key(pairs.column(0), index),
                    |writer, index| writer.value(pairs.column(1), index, true),
                )?;
            }
            _ => return plan_err!("`{}` takes one value", self.name),
        }
        Ok(true)
    }
}
