//! Values as JSON text, in the two forms that PostgreSQL has.

use std::fmt::Write;

use arrow::{
    array::{Array, AsArray},
    compute::cast,
    datatypes::{
        DataType, Date32Type, Date64Type, Float16Type, Float32Type, Float64Type, IntervalMonthDayNanoType,
        IntervalUnit, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType,
    },
    util::display::{ArrayFormatter, FormatOptions, array_value_to_string},
};
use chrono::{NaiveDateTime, Offset, TimeZone, Timelike};
use datafusion::{common::exec_err, error::Result};
use jiter::{Jiter, JiterError, Peek};

use super::dates::{local, zone_of};
use crate::guard::ValueLimits;

/// How deep JSON may nest that is written anew.
const DEPTH_MAX: usize = 200;

/// What a pair of an object takes that is not written yet, beside its texts.
const PAIR_BYTES: usize = size_of::<(String, String)>();

/// Whose form a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// What PostgreSQL's `json` functions write.
    Json,
    /// `jsonb`: keys in its order, each once, and a space behind each comma and colon.
    Jsonb,
}

/// Writes one value after the other, none of them larger than is allowed.
pub(super) struct JsonText<'a> {
    function: &'a str,
    form: Form,
    limits: ValueLimits,
    text: String,
    /// Bytes of this value that are not in `text` yet: pairs, and what is written of them.
    aside: usize,
}

impl<'a> JsonText<'a> {
    pub(super) fn new(function: &'a str, form: Form, limits: ValueLimits) -> Self {
        Self { function, form, limits, text: String::new(), aside: 0 }
    }

    /// Gives what is written, and begins anew.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Errors: `ResourcesExhausted` before the value is too large.
    pub(super) fn push(&mut self, part: &str) -> Result<()> {
        self.limits.value(self.function, self.text.len() + self.aside + part.len())?;
        self.text.push_str(part);
        Ok(())
    }

    fn set_aside(&mut self, bytes: usize) -> Result<()> {
        self.aside = self.aside.saturating_add(bytes);
        self.limits.value(self.function, self.text.len() + self.aside)
    }

    /// A text in quotes, escaped as PostgreSQL does.
    pub(super) fn quoted(&mut self, text: &str) -> Result<()> {
        self.push("\"")?;
        let mut start = 0;
        for (at, byte) in text.bytes().enumerate() {
            let escape = match byte {
                b'"' => "\\\"",
                b'\\' => "\\\\",
                b'\n' => "\\n",
                b'\r' => "\\r",
                b'\t' => "\\t",
                0x08 => "\\b",
                0x0c => "\\f",
                0..0x20 => "",
                _ => continue,
            };
            self.push(&text[start..at])?;
            start = at + 1;
            if escape.is_empty() { self.push(&format!("\\u{byte:04x}"))? } else { self.push(escape)? }
        }
        self.push(&text[start..])?;
        self.push("\"")
    }

    /// `[a, b]`, with what stands between two items.
    pub(super) fn list(
        &mut self,
        count: usize,
        between: &str,
        mut item: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        self.push("[")?;
        for index in 0..count {
            if index > 0 {
                self.push(between)?;
            }
            item(self, index)?;
        }
        self.push("]")
    }

    /// `{"a":1}`. The marks stand at its ends, behind keys and between pairs; `jsonb` has its own.
    pub(super) fn object(
        &mut self,
        count: usize,
        [open, colon, comma, close]: [&str; 4],
        mut key: impl FnMut(usize) -> Result<String>,
        mut item: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        if self.form == Form::Jsonb {
            self.set_aside(count.saturating_mul(PAIR_BYTES))?;
            let mut pairs = Vec::with_capacity(count);
            for index in 0..count {
                let key = key(index)?;
                let value = self.apart(|this| item(this, index))?;
                self.set_aside(key.len())?;
                pairs.push((key, value));
            }
            return self.sorted(pairs);
        }
        self.push(open)?;
        for index in 0..count {
            if index > 0 {
                self.push(comma)?;
            }
            let key = key(index)?;
            self.quoted(&key)?;
            self.push(colon)?;
            item(self, index)?;
        }
        self.push(close)
    }

    fn apart(&mut self, write: impl FnOnce(&mut Self) -> Result<()>) -> Result<String> {
        let start = self.text.len();
        write(self)?;
        let value = self.text.split_off(start);
        self.aside += value.len();
        Ok(value)
    }

    /// Shorter keys first, and of equal keys the last.
    fn sorted(&mut self, mut pairs: Vec<(String, String)>) -> Result<()> {
        self.aside -= pairs.iter().map(|(key, value)| key.len() + value.len() + PAIR_BYTES).sum::<usize>();
        pairs.sort_by(|(a, _), (b, _)| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
        pairs.reverse();
        pairs.dedup_by(|(earlier, _), (later, _)| earlier == later);
        self.push("{")?;
        for (index, (key, value)) in pairs.iter().rev().enumerate() {
            if index > 0 {
                self.push(", ")?;
            }
            self.quoted(key)?;
            self.push(": ")?;
            self.push(value)?;
        }
        self.push("}")
    }

    /// Any value; with `is_json` a text is JSON already.
    pub(super) fn value(&mut self, values: &dyn Array, row: usize, is_json: bool) -> Result<()> {
        if is_null(values, row) {
            return self.push("null");
        }
        let between = if self.form == Form::Json { "," } else { ", " };
        match values.data_type() {
            DataType::Boolean => self.push(if values.as_boolean().value(row) { "true" } else { "false" }),
            DataType::Float16 => self.float(f64::from(values.as_primitive::<Float16Type>().value(row)), 6),
            DataType::Float32 => {
                let value = values.as_primitive::<Float32Type>().value(row);
                // Not as a double, which would show digits that the value does not have.
                self.number(value.is_finite(), &format!("{value}"), &format!("{value:e}"), 6)
            }
            DataType::Float64 => self.float(values.as_primitive::<Float64Type>().value(row), 15),
            number if number.is_numeric() => self.push(&array_value_to_string(values, row)?),
            DataType::Utf8 => self.text_or_json(values.as_string::<i32>().value(row), is_json),
            DataType::LargeUtf8 => self.text_or_json(values.as_string::<i64>().value(row), is_json),
            DataType::Utf8View => self.text_or_json(values.as_string_view().value(row), is_json),
            DataType::List(_) => {
                let items = values.as_list::<i32>().value(row);
                self.list(items.len(), between, |this, index| this.value(&items, index, is_json))
            }
            DataType::LargeList(_) => {
                let items = values.as_list::<i64>().value(row);
                self.list(items.len(), between, |this, index| this.value(&items, index, is_json))
            }
            DataType::FixedSizeList(..) => {
                let items = values.as_fixed_size_list().value(row);
                self.list(items.len(), between, |this, index| this.value(&items, index, is_json))
            }
            DataType::Struct(fields) => {
                let parts = values.as_struct();
                self.object(
                    fields.len(),
                    ["{", ":", ",", "}"],
                    |index| Ok(fields[index].name().clone()),
                    |this, index| this.value(parts.column(index), row, false),
                )
            }
            DataType::Map(..) => {
                let entries = values.as_map().value(row);
                let (keys, items) = (entries.column(0), entries.column(1));
                self.object(
                    entries.len(),
                    ["{", ":", ",", "}"],
                    |index| key(keys, index),
                    |this, index| this.value(items, index, false),
                )
            }
            DataType::Dictionary(_, inner) => self.value(&cast(&values.slice(row, 1), inner)?, 0, is_json),
            _ => self.quoted(&shown(values, row)?),
        }
    }

    fn text_or_json(&mut self, text: &str, is_json: bool) -> Result<()> {
        match (is_json, self.form) {
            (false, _) => self.quoted(text),
            (true, Form::Json) => self.push(text),
            (true, Form::Jsonb) => {
                let mut reader = Jiter::new(text.as_bytes());
                match reader.peek() {
                    Ok(peek) => self.anew(text, &mut reader, peek, 0),
                    Err(error) => broken(&error),
                }
            }
        }
    }

    /// JSON as `jsonb` writes it.
    fn anew(&mut self, json: &str, reader: &mut Jiter<'_>, peek: Peek, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return exec_err!("JSON that nests deeper than {DEPTH_MAX} cannot be made into another form");
        }
        match peek {
            Peek::String => match reader.known_str() {
                Ok(text) => {
                    let text = text.to_owned();
                    self.quoted(&text)
                }
                Err(error) => broken(&error),
            },
            Peek::Array => {
                self.push("[")?;
                let mut next = reader.known_array().or_else(|error| broken(&error))?;
                let mut is_first = true;
                while let Some(peek) = next {
                    if !std::mem::take(&mut is_first) {
                        self.push(", ")?;
                    }
                    self.anew(json, reader, peek, depth + 1)?;
                    next = reader.array_step().or_else(|error| broken(&error))?;
                }
                self.push("]")
            }
            Peek::Object => {
                let mut pairs = Vec::new();
                let mut next =
                    reader.known_object().map(|key| key.map(str::to_owned)).or_else(|error| broken(&error))?;
                while let Some(key) = next {
                    let peek = reader.peek().or_else(|error| broken(&error))?;
                    let value = self.apart(|this| this.anew(json, reader, peek, depth + 1))?;
                    self.set_aside(key.len() + PAIR_BYTES)?;
                    pairs.push((key, value));
                    next = reader.next_key().map(|key| key.map(str::to_owned)).or_else(|error| broken(&error))?;
                }
                self.sorted(pairs)
            }
            _ => {
                let start = reader.current_index();
                reader.known_skip(peek).or_else(|error| broken(&error))?;
                self.push(json.get(start..reader.current_index()).unwrap_or_default().trim())
            }
        }
    }

    fn float(&mut self, value: f64, digits: i32) -> Result<()> {
        self.number(value.is_finite(), &format!("{value}"), &format!("{value:e}"), digits)
    }

    /// A number that is not whole, given plainly and with an exponent; the shortest text that is read as the same number.
    fn number(&mut self, is_finite: bool, plain: &str, with_exponent: &str, digits: i32) -> Result<()> {
        if !is_finite {
            let name = match plain {
                "inf" => "Infinity",
                "-inf" => "-Infinity",
                other => other,
            };
            return self.quoted(name);
        }
        if self.form == Form::Jsonb {
            return self.push(if plain == "-0" { "0" } else { plain });
        }
        let Some((mantissa, exponent)) = with_exponent.split_once('e') else { return self.push(plain) };
        let exponent: i32 = exponent.parse().unwrap_or_default();
        if (-4..digits).contains(&exponent) {
            return self.push(plain);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        self.push(&format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs()))
    }
}

fn broken<T>(error: &JiterError) -> Result<T> {
    exec_err!("this is no JSON: {}", error.error_type)
}

/// Whether there is no value. `is_null` does not know of columns that are nothing but null.
pub(super) fn is_null(values: &dyn Array, row: usize) -> bool {
    values.is_null(row) || *values.data_type() == DataType::Null
}

/// A value as the key of an object. Errors: for null, and for what is no single value.
pub(super) fn key(values: &dyn Array, row: usize) -> Result<String> {
    if is_null(values, row) {
        return exec_err!("the key of a JSON object cannot be null");
    }
    match values.data_type() {
        DataType::Utf8 => Ok(values.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Ok(values.as_string::<i64>().value(row).to_owned()),
        DataType::Utf8View => Ok(values.as_string_view().value(row).to_owned()),
        nested if nested.is_nested() => {
            exec_err!("the key of a JSON object is a single value, no array, struct or map")
        }
        DataType::Dictionary(_, inner) => key(&cast(&values.slice(row, 1), inner)?, 0),
        _ => shown(values, row),
    }
}

/// A value that JSON has no form for, as text.
fn shown(values: &dyn Array, row: usize) -> Result<String> {
    let time = match values.data_type() {
        DataType::Boolean => return Ok(values.as_boolean().value(row).to_string()),
        DataType::Date32 => values.as_primitive::<Date32Type>().value_as_datetime(row),
        DataType::Date64 => values.as_primitive::<Date64Type>().value_as_datetime(row),
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => values.as_primitive::<TimestampSecondType>().value_as_datetime(row),
            TimeUnit::Millisecond => values.as_primitive::<TimestampMillisecondType>().value_as_datetime(row),
            TimeUnit::Microsecond => values.as_primitive::<TimestampMicrosecondType>().value_as_datetime(row),
            TimeUnit::Nanosecond => values.as_primitive::<TimestampNanosecondType>().value_as_datetime(row),
        },
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let interval = values.as_primitive::<IntervalMonthDayNanoType>().value(row);
            return Ok(span(interval.months, interval.days, interval.nanoseconds));
        }
        DataType::Binary => return Ok(hex(values.as_binary::<i32>().value(row))),
        DataType::LargeBinary => return Ok(hex(values.as_binary::<i64>().value(row))),
        DataType::BinaryView => return Ok(hex(values.as_binary_view().value(row))),
        _ => None,
    };
    match (time, values.data_type()) {
        (Some(time), DataType::Timestamp(_, Some(zone))) => {
            let zone = zone_of(zone)?;
            let offset = zone.offset_from_utc_datetime(&time).fix();
            Ok(format!("{}{offset}", moment(local(zone, time)?)))
        }
        (Some(time), DataType::Timestamp(..)) => Ok(moment(time)),
        (Some(time), _) => Ok(time.date().to_string()),
        (None, _) => Ok(ArrayFormatter::try_new(values, &FormatOptions::new())?.value(row).try_to_string()?),
    }
}

fn moment(time: NaiveDateTime) -> String {
    format!("{}{}", time.format("%Y-%m-%dT%H:%M:%S"), fraction(time.nanosecond().into()))
}

/// `.5` of so many nanoseconds of a second, nothing of none.
fn fraction(nanos: u64) -> String {
    let digits = format!(".{nanos:09}");
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// An interval as PostgreSQL shows it: `1 year 2 mons -3 days +04:05:06.7`.
fn span(months: i32, days: i32, nanos: i64) -> String {
    let mut text = String::new();
    let mut is_before = false;
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count != 0 {
            let space = if text.is_empty() { "" } else { " " };
            let sign = if is_before && count > 0 { "+" } else { "" };
            let _ = write!(text, "{space}{sign}{count} {unit}{}", if count == 1 { "" } else { "s" });
            is_before = count < 0;
        }
    }
    if nanos != 0 || text.is_empty() {
        let space = if text.is_empty() { "" } else { " " };
        let sign = if nanos < 0 {
            "-"
        } else if is_before {
            "+"
        } else {
            ""
        };
        let all = nanos.unsigned_abs();
        let seconds = all / 1_000_000_000;
        let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        let fraction = fraction(all % 1_000_000_000);
        let _ = write!(text, "{space}{sign}{hours:02}:{minutes:02}:{seconds:02}{fraction}");
    }
    text
}
