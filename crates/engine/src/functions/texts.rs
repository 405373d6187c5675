//! PostgreSQL's functions that write SQL, and numbers of other bases.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, StringArray, StringBuilder},
    datatypes::{DataType, Int64Type},
};
use datafusion::{common::exec_err, error::Result, logical_expr::ScalarUDF};

use super::own::{Own, Texts, text_type, wrong_count};
use crate::guard::ValueLimits;

/// Words that PostgreSQL puts into quotes when they are names.
const RESERVED: &str = include_str!("texts/reserved.txt");

/// Functions that are none of DataFusion's.
pub(super) fn udfs(limits: ValueLimits) -> Vec<ScalarUDF> {
    vec![
        Own::limited("format", format_types, format, limits),
        Own::udf("quote_ident", &[], one_text, |a, n, _| of_text(a, n, quoted_name)),
        Own::udf("quote_literal", &[], one_any, |a, n, _| of_text(a, n, quoted_text)),
        Own::udf("quote_nullable", &[], one_any, |a, n, _| {
            let texts = Texts::of(&a[0])?;
            let quoted = (0..n).map(|row| Some(texts.get(row).map_or_else(|| "NULL".to_owned(), quoted_text)));
            Ok(Arc::new(quoted.collect::<StringArray>()))
        }),
        Own::udf("from_base", &["strtol"], from_types, |a, n, _| from_base(a, n)),
        Own::udf("to_base", &[], to_types, |a, n, _| to_base(a, n)),
    ]
}

fn one_text(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [text] = given else { return wrong_count(name, "a text") };
    Ok((vec![text_type(name, text)?], DataType::Utf8))
}

/// A text, or what is cast to one.
fn any_type(given: &DataType) -> DataType {
    if given.is_string() { given.clone() } else { DataType::Utf8 }
}

fn one_any(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [one] = given else { return wrong_count(name, "one value") };
    Ok((vec![any_type(one)], DataType::Utf8))
}

fn of_text(args: &[ArrayRef], rows: usize, of: fn(&str) -> String) -> Result<ArrayRef> {
    let texts = Texts::of(&args[0])?;
    Ok(Arc::new((0..rows).map(|row| texts.get(row).map(of)).collect::<StringArray>()))
}

fn quoted_name(name: &str) -> String {
    let is_plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    if is_plain && !RESERVED.split_whitespace().any(|word| word == name) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quoted_text(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    // Whatever the setting of the server that reads it.
    if text.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn format_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let Some((format, values)) = given.split_first() else { return wrong_count(name, "a format and values") };
    let types = std::iter::once(text_type(name, format)).chain(values.iter().map(|value| Ok(any_type(value))));
    Ok((types.collect::<Result<_>>()?, DataType::Utf8))
}

/// PostgreSQL's `format`: `%s`, `%I`, `%L`, `%%`, with positions and widths.
fn format(name: &str, args: &[ArrayRef], rows: usize, limits: ValueLimits) -> Result<ArrayRef> {
    let formats = Texts::of(&args[0])?;
    let values = args[1..].iter().map(Texts::of).collect::<Result<Vec<_>>>()?;
    let mut found = StringBuilder::new();
    let mut batch = 0;
    for row in 0..rows {
        let Some(format) = formats.get(row) else {
            found.append_null();
            continue;
        };
        let mut text = String::new();
        let mut rest = format;
        let mut next = 0;
        while let Some((before, after)) = rest.split_once('%') {
            limits.value(name, text.len() + before.len())?;
            text.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                text.push('%');
                rest = after;
                continue;
            }
            let (wish, after) = Wish::read(after)?;
            rest = after;
            let at = wish.position.unwrap_or(next);
            next = at + 1;
            let Some(value) = values.get(at) else { return exec_err!("`format` has too few values for '{format}'") };
            let value = match (wish.kind, value.get(row)) {
                ('s', value) => value.unwrap_or_default().to_owned(),
                ('I', Some(value)) => quoted_name(value),
                ('I', None) => return exec_err!("null cannot be formatted as a name"),
                ('L', value) => value.map_or_else(|| "NULL".to_owned(), quoted_text),
                (other, _) => return exec_err!("`%{other}` stands for nothing in '{format}': there are s, I, L and %"),
            };
            let spaces = wish.width.saturating_sub(value.chars().count());
            limits.value(name, text.len().saturating_add(spaces).saturating_add(value.len()))?;
            let spaces = " ".repeat(spaces);
            if wish.is_left { text.extend([value, spaces]) } else { text.extend([spaces, value]) }
        }
        limits.value(name, text.len() + rest.len())?;
        text.push_str(rest);
        batch += text.len();
        limits.batch(name, batch)?;
        found.append_value(text);
    }
    Ok(Arc::new(found.finish()))
}

/// What stands behind a `%`.
struct Wish {
    /// The value's place when one is named, from nought.
    position: Option<usize>,
    is_left: bool,
    width: usize,
    kind: char,
}

impl Wish {
    fn read(text: &str) -> Result<(Self, &str)> {
        let number = |text: &str| {
            let end = text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len());
            (text[..end].parse::<usize>().ok(), end)
        };
        let (position, rest) = match number(text) {
            (Some(position), end) if text[end..].starts_with('$') => match position.checked_sub(1) {
                Some(position) => (Some(position), &text[end + 1..]),
                None => return exec_err!("the values of `format` are counted from 1"),
            },
            _ => (None, text),
        };
        let dashless = rest.trim_start_matches('-');
        let is_left = dashless.len() < rest.len();
        let (width, end) = number(dashless);
        if width.is_none() && end > 0 {
            return exec_err!("a width of `format` is too large");
        }
        let mut letters = dashless[end..].chars();
        match letters.next() {
            Some(kind) => Ok((Self { position, is_left, width: width.unwrap_or(0), kind }, letters.as_str())),
            None => exec_err!("a format ends in `%`; write `%%` for one"),
        }
    }
}

fn from_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [text, _] = given else { return wrong_count(name, "a text and a base") };
    Ok((vec![text_type(name, text)?, DataType::Int64], DataType::Int64))
}

fn to_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    if given.len() != 2 {
        return wrong_count(name, "a number and a base");
    }
    Ok((vec![DataType::Int64; 2], DataType::Utf8))
}

/// The base of a row. Errors: when there is no such base.
fn base(bases: &ArrayRef, row: usize) -> Result<Option<u32>> {
    if bases.is_null(row) {
        return Ok(None);
    }
    let base = bases.as_primitive::<Int64Type>().value(row);
    match u32::try_from(base).ok().filter(|base| (2..=36).contains(base)) {
        Some(base) => Ok(Some(base)),
        None => exec_err!("there is no base {base}, only 2 to 36"),
    }
}

fn from_base(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let texts = Texts::of(&args[0])?;
    let mut found = Int64Array::builder(rows);
    for row in 0..rows {
        let (Some(text), Some(base)) = (texts.get(row), base(&args[1], row)?) else {
            found.append_null();
            continue;
        };
        match i64::from_str_radix(text.trim(), base) {
            Ok(number) => found.append_value(number),
            Err(_) => return exec_err!("'{text}' is no number of base {base}"),
        }
    }
    Ok(Arc::new(found.finish()))
}

fn to_base(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let mut found = StringBuilder::new();
    for row in 0..rows {
        let Some(base) = base(&args[1], row)?.filter(|_| args[0].is_valid(row)) else {
            found.append_null();
            continue;
        };
        let number = args[0].as_primitive::<Int64Type>().value(row);
        let mut rest = number.unsigned_abs();
        let mut digits = Vec::new();
        while rest > 0 || digits.is_empty() {
            digits.push(u32::try_from(rest % u64::from(base)).ok().and_then(|digit| char::from_digit(digit, base)));
            rest /= u64::from(base);
        }
        digits.extend((number < 0).then_some(Some('-')));
        found.append_value(digits.into_iter().rev().flatten().collect::<String>());
    }
    Ok(Arc::new(found.finish()))
}
