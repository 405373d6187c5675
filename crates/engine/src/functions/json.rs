//! JSON in columns of text. What is no JSON gives null, and so does what is not there.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, StringBuilder},
    datatypes::{DataType, Int64Type},
};
use datafusion::{common::plan_err, error::Result, logical_expr::ScalarUDF};
use jiter::{Jiter, Peek};

use super::own::{Memo, Own, Texts, text_type, wrong_count};

/// One step into a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    /// Below zero from the end.
    Index(i64),
    /// A text that means a key of objects and an index of arrays.
    Either(String),
}

/// All functions over JSON.
pub(super) fn udfs() -> Vec<ScalarUDF> {
    vec![
        Own::json("json_get", &["json_get_json"], keyed_text, |a, n, _| texts(a, n, strict, raw)),
        Own::udf("json_get_text", &["json_as_text", "json_get_str"], keyed_text, |a, n, _| texts(a, n, strict, text)),
        Own::json("json_extract_path", &["jsonb_extract_path"], keyed_text, |a, n, _| texts(a, n, loose, raw)),
        Own::udf(
            "json_extract_path_text",
            &["jsonb_extract_path_text", "json_extract_array_element_text"],
            keyed_text,
            |a, n, _| texts(a, n, loose, text),
        ),
        Own::json("json_get_path", &[], path_text, |a, n, _| texts(a, n, braces, raw)),
        Own::udf("json_get_path_text", &[], path_text, |a, n, _| texts(a, n, braces, text)),
        Own::json("json_extract", &["json_query", "jsonb_path_query_first"], path_text, |a, n, _| {
            texts(a, n, dollar, raw)
        }),
        Own::udf("json_extract_scalar", &["json_value"], path_text, |a, n, _| texts(a, n, dollar, scalar)),
        Own::udf("json_typeof", &["jsonb_typeof"], one_text, |a, n, _| texts(a, n, loose, kind)),
        Own::json("json_parse", &["json_format", "to_json_text"], one_text, |a, n, _| texts(a, n, loose, valid)),
        Own::udf("is_json", &["json_valid", "is_valid_json", "can_json_parse"], one_boolean, |a, n, _| {
            let json = Texts::of(&a[0])?;
            Ok(Arc::new((0..n).map(|row| json.get(row).map(is_valid)).collect::<BooleanArray>()))
        }),
        Own::udf("json_array_length", &["jsonb_array_length"], one_number, |a, n, _| {
            let json = Texts::of(&a[0])?;
            Ok(Arc::new((0..n).map(|row| array_length(json.get(row)?)).collect::<Int64Array>()))
        }),
        Own::udf("json_exists", &["json_contains"], keyed_boolean, |a, n, _| {
            let found = texts(a, n, strict, raw)?;
            let there = (0..n).map(|row| a[0].is_valid(row).then(|| found.is_valid(row)));
            Ok(Arc::new(there.collect::<BooleanArray>()))
        }),
        Own::udf("json_array_elements", &["jsonb_array_elements"], one_list, |a, n, _| elements(a, n, raw)),
        Own::udf("json_array_elements_text", &["jsonb_array_elements_text"], one_list, |a, n, _| elements(a, n, text)),
        Own::udf("json_object_keys", &["jsonb_object_keys"], one_list, |a, n, _| object_keys(a, n)),
    ]
}

fn keyed(name: &str, given: &[DataType]) -> Result<Vec<DataType>> {
    let [json, keys @ ..] = given else { return wrong_count(name, "JSON as text, and keys or indexes") };
    let mut types = vec![text_type(name, json)?];
    for key in keys {
        types.push(if key.is_integer() { DataType::Int64 } else { text_type(name, key)? });
    }
    Ok(types)
}

fn keyed_text(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    Ok((keyed(name, given)?, DataType::Utf8))
}

fn keyed_boolean(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    Ok((keyed(name, given)?, DataType::Boolean))
}

fn path_text(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [json, path] = given else { return wrong_count(name, "JSON as text, and a path") };
    let path = match path {
        DataType::List(item) => DataType::new_list(text_type(name, item.data_type())?, true),
        path => text_type(name, path)?,
    };
    Ok((vec![text_type(name, json)?, path], DataType::Utf8))
}

fn one(name: &str, given: &[DataType], gives: DataType) -> Result<(Vec<DataType>, DataType)> {
    let [json] = given else { return wrong_count(name, "JSON as text") };
    Ok((vec![text_type(name, json)?], gives))
}

fn one_text(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    one(name, given, DataType::Utf8)
}

fn one_boolean(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    one(name, given, DataType::Boolean)
}

fn one_number(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    one(name, given, DataType::Int64)
}

fn one_list(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    one(name, given, DataType::new_list(DataType::Utf8, true))
}

/// Reads the steps of one row out of the arguments behind the JSON; `None` when one of them is null.
type Path = fn(&[ArrayRef], usize, &mut Memo<Option<Vec<Step>>>) -> Result<Option<Vec<Step>>>;
/// Gives a value's text; the value begins where the reader stands.
type Show = for<'j> fn(&'j str, &mut Jiter<'j>, Peek) -> Option<Shown<'j>>;

enum Shown<'j> {
    Part(&'j str),
    Made(String),
}

fn texts(args: &[ArrayRef], rows: usize, path: Path, show: Show) -> Result<ArrayRef> {
    let json = Texts::of(&args[0])?;
    let mut found = StringBuilder::new();
    let mut memo = Memo::new();
    for row in 0..rows {
        let shown = match (json.get(row), path(&args[1..], row, &mut memo)?) {
            (Some(json), Some(steps)) => at(json, &steps).and_then(|(mut reader, peek)| show(json, &mut reader, peek)),
            _ => None,
        };
        match shown {
            Some(Shown::Part(text)) => found.append_value(text),
            Some(Shown::Made(text)) => found.append_value(text),
            None => found.append_null(),
        }
    }
    Ok(Arc::new(found.finish()))
}

fn keys(args: &[ArrayRef], row: usize, of_text: fn(&str) -> Step) -> Result<Option<Vec<Step>>> {
    let mut steps = Vec::with_capacity(args.len());
    for arg in args {
        if arg.is_null(row) {
            return Ok(None);
        }
        steps.push(match arg.data_type() {
            DataType::Int64 => Step::Index(arg.as_primitive::<Int64Type>().value(row)),
            _ => of_text(Texts::of(arg)?.get(row).unwrap_or_default()),
        });
    }
    Ok(Some(steps))
}

/// A text is a key, a number an index.
fn strict(args: &[ArrayRef], row: usize, _: &mut Memo<Option<Vec<Step>>>) -> Result<Option<Vec<Step>>> {
    keys(args, row, |text| Step::Key(text.to_owned()))
}

/// A text may be an index.
fn loose(args: &[ArrayRef], row: usize, _: &mut Memo<Option<Vec<Step>>>) -> Result<Option<Vec<Step>>> {
    keys(args, row, |text| Step::Either(text.to_owned()))
}

/// `{a,0}` or an array of texts.
fn braces(args: &[ArrayRef], row: usize, memo: &mut Memo<Option<Vec<Step>>>) -> Result<Option<Vec<Step>>> {
    if args[0].is_null(row) {
        return Ok(None);
    }
    if let DataType::List(_) = args[0].data_type() {
        let list: &ListArray = args[0].as_list();
        let items = list.value(row);
        let texts = Texts::of(&items)?;
        return Ok((0..items.len()).map(|i| texts.get(i).map(|text| Step::Either(text.to_owned()))).collect());
    }
    let path = Texts::of(&args[0])?.get(row).unwrap_or_default();
    Ok(memo.get(path, |path| braced(path).map(Some))?.clone())
}

fn braced(path: &str) -> Result<Vec<Step>> {
    let Some(inside) = path.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
        return plan_err!("`{path}` is not a path as '{{a,0,b}}'");
    };
    if inside.is_empty() {
        return Ok(Vec::new());
    }
    Ok(inside.split(',').map(|part| Step::Either(part.trim().trim_matches('"').to_owned())).collect())
}

/// `$.a.b[0]["c"]`
fn dollar(args: &[ArrayRef], row: usize, memo: &mut Memo<Option<Vec<Step>>>) -> Result<Option<Vec<Step>>> {
    match Texts::of(&args[0])?.get(row) {
        None => Ok(None),
        Some(path) => Ok(memo.get(path, |path| dollared(path).map(Some))?.clone()),
    }
}

fn dollared(path: &str) -> Result<Vec<Step>> {
    let bad = || plan_err!("`{path}` is not a path as '$.a.b[0]'; wildcards and filters are not supported");
    let mut steps = Vec::new();
    let mut rest = path.trim();
    rest = rest.strip_prefix("lax ").unwrap_or(rest).trim_start();
    let Some(mut rest) = rest.strip_prefix('$') else { return bad() };
    while !rest.is_empty() {
        if let Some(key) = rest.strip_prefix('.') {
            let (key, after) = match key.strip_prefix('"') {
                Some(quoted) => match quoted.split_once('"') {
                    Some(parts) => parts,
                    None => return bad(),
                },
                None => key.split_at(key.find(['.', '[']).unwrap_or(key.len())),
            };
            if key.is_empty() || key == "*" || key.contains(['?', '(', '@', ' ']) {
                return bad();
            }
            steps.push(Step::Key(key.to_owned()));
            rest = after;
            continue;
        }
        let Some((inside, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return bad() };
        let quoted = |quote: char| inside.strip_prefix(quote).and_then(|inside| inside.strip_suffix(quote));
        steps.push(match (quoted('"').or_else(|| quoted('\'')), inside.parse()) {
            (Some(key), _) => Step::Key(key.to_owned()),
            (None, Ok(index)) => Step::Index(index),
            (None, Err(_)) => return bad(),
        });
        rest = after;
    }
    Ok(steps)
}

/// Goes to where the steps lead. Reads no further than that: what is broken behind it is not noticed.
fn at<'j>(json: &'j str, steps: &[Step]) -> Option<(Jiter<'j>, Peek)> {
    let mut reader = Jiter::new(json.as_bytes());
    let mut peek = reader.peek().ok()?;
    for step in steps {
        peek = match (peek, step) {
            (Peek::Object, Step::Key(key) | Step::Either(key)) => enter_key(&mut reader, key)?,
            (Peek::Array, Step::Index(index)) => enter_index(json, &mut reader, *index)?,
            (Peek::Array, Step::Either(index)) => enter_index(json, &mut reader, index.parse().ok()?)?,
            _ => return None,
        };
    }
    Some((reader, peek))
}

/// The last of equal keys counts in PostgreSQL's jsonb, the first in its json; the first is found sooner.
fn enter_key(reader: &mut Jiter<'_>, wanted: &str) -> Option<Peek> {
    let mut is_it = reader.known_object().ok()?? == wanted;
    while !is_it {
        reader.next_skip().ok()?;
        is_it = reader.next_key().ok()?? == wanted;
    }
    reader.peek().ok()
}

fn enter_index(json: &str, reader: &mut Jiter<'_>, index: i64) -> Option<Peek> {
    let index = if index < 0 { index.checked_add(array_length(json.get(reader.current_index()..)?)?)? } else { index };
    let mut left = u64::try_from(index).ok()?;
    let mut peek = reader.known_array().ok()??;
    while left > 0 {
        reader.known_skip(peek).ok()?;
        peek = reader.array_step().ok()??;
        left -= 1;
    }
    Some(peek)
}

/// Counts the items of the array that begins here.
fn length(reader: &mut Jiter<'_>) -> Option<i64> {
    let mut count = 0;
    let mut peek = reader.known_array().ok()?;
    while let Some(item) = peek {
        reader.known_skip(item).ok()?;
        count += 1;
        peek = reader.array_step().ok()?;
    }
    Some(count)
}

fn array_length(json: &str) -> Option<i64> {
    let mut reader = Jiter::new(json.as_bytes());
    if reader.peek().ok()? == Peek::Array { length(&mut reader) } else { None }
}

pub(super) fn is_valid(json: &str) -> bool {
    let mut reader = Jiter::new(json.as_bytes());
    reader.next_skip().and_then(|()| reader.finish()).is_ok()
}

/// The value as it is written.
fn raw<'j>(json: &'j str, reader: &mut Jiter<'j>, peek: Peek) -> Option<Shown<'j>> {
    let start = reader.current_index();
    reader.known_skip(peek).ok()?;
    json.get(start..reader.current_index()).map(|text| Shown::Part(text.trim()))
}

/// A text without its quotes, null as SQL's null, all else as it is written.
fn text<'j>(json: &'j str, reader: &mut Jiter<'j>, peek: Peek) -> Option<Shown<'j>> {
    match peek {
        Peek::Null => None,
        Peek::String => reader.known_str().ok().map(|text| Shown::Made(text.to_owned())),
        _ => raw(json, reader, peek),
    }
}

/// The same for texts, numbers and booleans only.
fn scalar<'j>(json: &'j str, reader: &mut Jiter<'j>, peek: Peek) -> Option<Shown<'j>> {
    if matches!(peek, Peek::Object | Peek::Array) { None } else { text(json, reader, peek) }
}

fn kind<'j>(json: &'j str, reader: &mut Jiter<'j>, peek: Peek) -> Option<Shown<'j>> {
    raw(json, reader, peek)?;
    Some(Shown::Part(match peek {
        Peek::Object => "object",
        Peek::Array => "array",
        Peek::String => "string",
        Peek::True | Peek::False => "boolean",
        Peek::Null => "null",
        _ => "number",
    }))
}

fn valid<'j>(json: &'j str, _: &mut Jiter<'j>, _: Peek) -> Option<Shown<'j>> {
    is_valid(json).then_some(Shown::Part(json))
}

/// The items of an array, each as it is shown.
fn elements(args: &[ArrayRef], rows: usize, show: Show) -> Result<ArrayRef> {
    let json = Texts::of(&args[0])?;
    let mut lists = arrow::array::ListBuilder::new(StringBuilder::new());
    for row in 0..rows {
        let found = json.get(row).and_then(|json| elements_of(json, show));
        let is_there = found.is_some();
        for item in found.unwrap_or_default() {
            match item {
                Some(Shown::Part(text)) => lists.values().append_value(text),
                Some(Shown::Made(text)) => lists.values().append_value(text),
                None => lists.values().append_null(),
            }
        }
        lists.append(is_there);
    }
    Ok(Arc::new(lists.finish()))
}

fn elements_of(json: &str, show: Show) -> Option<Vec<Option<Shown<'_>>>> {
    if !is_valid(json) {
        return None;
    }
    let mut reader = Jiter::new(json.as_bytes());
    if reader.peek().ok()? != Peek::Array {
        return None;
    }
    let mut found = Vec::new();
    let mut next = reader.known_array().ok()?;
    while let Some(peek) = next {
        if peek == Peek::Null {
            reader.known_null().ok()?;
            found.push(show("null", &mut Jiter::new(b"null"), peek));
        } else {
            found.push(show(json, &mut reader, peek));
        }
        next = reader.array_step().ok()?;
    }
    Some(found)
}

fn object_keys(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let json = Texts::of(&args[0])?;
    let mut lists = arrow::array::ListBuilder::new(StringBuilder::new());
    for row in 0..rows {
        let found = json.get(row).and_then(keys_of);
        let is_there = found.is_some();
        for key in found.unwrap_or_default() {
            lists.values().append_value(key);
        }
        lists.append(is_there);
    }
    Ok(Arc::new(lists.finish()))
}

fn keys_of(json: &str) -> Option<Vec<String>> {
    let mut reader = Jiter::new(json.as_bytes());
    if reader.peek().ok()? != Peek::Object {
        return None;
    }
    let mut found = Vec::new();
    let mut key = reader.known_object().ok()?.map(str::to_owned);
    while let Some(name) = key {
        found.push(name);
        reader.next_skip().ok()?;
        key = reader.next_key().ok()?.map(str::to_owned);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_presto_and_postgres_write_them() {
        let key = |text: &str| Step::Key(text.to_owned());
        assert_eq!(dollared("$").unwrap(), []);
        assert_eq!(dollared("$.a.b[0]").unwrap(), [key("a"), key("b"), Step::Index(0)]);
        assert_eq!(dollared("$[\"a b\"]['c'].\"d.e\"").unwrap(), [key("a b"), key("c"), key("d.e")]);
        for bad in ["", "a", "$.", "$.*", "$..a", "$[x]", "$.a[?(@.b)]", "$a", "$.\"a"] {
            assert!(dollared(bad).is_err(), "{bad}");
        }
        assert_eq!(braced("{}").unwrap(), []);
        assert_eq!(braced("{a, \"b c\",1}").unwrap().len(), 3);
        assert!(braced("a,b").is_err());
    }

    #[test]
    fn deep_json_ends_in_null() {
        let deep = "[".repeat(100_000);
        assert!(!is_valid(&deep));
        assert!(array_length(&deep).is_none());
    }
}
