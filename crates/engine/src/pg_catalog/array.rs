//! Arrays as PostgreSQL writes them in a text: `{1,NULL,"a b"}`.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{AsArray, ListBuilder, StringBuilder},
        compute::cast,
        datatypes::{DataType, Field},
    },
    common::exec_err,
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

/// The name of the function that reads one; PostgreSQL's own has it too.
pub(super) const ARRAY_IN: &str = "array_in";

/// The elements of `{1,NULL,"a b"}`, `None` for null; none at all for what is no array, and for arrays of arrays.
pub fn array_items(text: &str) -> Option<Vec<Option<String>>> {
    let mut items = Vec::new();
    each_item(text, |item| items.push(item.map(str::to_owned)))?;
    Some(items)
}

/// Gives each element away as it is found; `None` when the text turns out to be no array.
fn each_item(text: &str, mut give: impl FnMut(Option<&str>)) -> Option<()> {
    let inside = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut chars = inside.chars().peekable();
    if inside.trim().is_empty() {
        return Some(());
    }
    let mut item = String::new();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        item.clear();
        let is_quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.next() {
                Some('\\') => item.push(chars.next()?),
                Some('"') if is_quoted => break,
                Some(c) if is_quoted => item.push(c),
                Some('{' | '}' | '"') => return None,
                Some(c) => item.push(c),
                None if is_quoted => return None,
                None => break,
            }
            if !is_quoted && chars.peek() == Some(&',') {
                break;
            }
        }
        let is_null = !is_quoted && item.trim().eq_ignore_ascii_case("null");
        give((!is_null).then_some(if is_quoted { &item } else { item.trim() }));
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.next() {
            None => return Some(()),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

/// `array_in('{a,b}')`: an array of texts.
pub(super) fn array_in() -> ScalarUDF {
    ScalarUDF::from(ArrayIn { signature: Signature::string(1, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ArrayIn {
    signature: Signature,
}

impl ScalarUDFImpl for ArrayIn {
    fn name(&self) -> &str {
        ARRAY_IN
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let texts = cast(&columns[0], &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let mut arrays = ListBuilder::new(StringBuilder::new());
        for text in texts {
            let Some(text) = text else {
                arrays.append_null();
                continue;
            };
            if each_item(text, |item| arrays.values().append_option(item)).is_none() {
                return exec_err!("the array `{text}` cannot be parsed; write `{{1,2}}` or `{{\"a b\",c}}`");
            }
            arrays.append(true);
        }
        Ok(ColumnarValue::Array(Arc::new(arrays.finish())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_read_as_postgresql_writes_them() {
        let check = |text: &str, expected: Option<&[Option<&str>]>| {
            let items = array_items(text);
            let items = items.as_ref().map(|items| items.iter().map(Option::as_deref).collect::<Vec<_>>());
            assert_eq!(items.as_deref(), expected, "{text}");
        };
        check("{}", Some(&[]));
        check("{1,2}", Some(&[Some("1"), Some("2")]));
        check(" { a , null, NULL } ", Some(&[Some("a"), None, None]));
        check(r#"{"a b","NULL","","x\"y"}"#, Some(&[Some("a b"), Some("NULL"), Some(""), Some("x\"y")]));
        check("{a,b", None);
        check("1,2", None);
        check("{{1},{2}}", None);
        check("{\"a}", None);
    }
}
