use chrono::{DateTime, NaiveDateTime, Utc};
use uuid::Uuid;

use crate::{Error, Result};

/// A value on its way into a statement or out of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// True or false; 0 or 1 on SQLite.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating point number.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A UUID; text on SQLite.
    Uuid(Uuid),
    /// An instant in a column of type TIMESTAMPTZ; text as DuckLake writes it on SQLite, `2013-01-01 05:00:00.123456+00`.
    /// Our own tables use `Int` microseconds.
    Time(DateTime<Utc>),
}

/// Makes a `[Value; n]` out of anything that a value can be made from.
#[macro_export]
macro_rules! values {
    ($($value:expr),* $(,)?) => { [$($crate::Value::from($value)),*] };
}

macro_rules! from {
    ($($type:ty => $make:expr),* $(,)?) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                let make: fn($type) -> Value = $make;
                make(value)
            }
        })*
    };
}

from! {
    bool => Value::Bool,
    i64 => Value::Int,
    i32 => |v| Value::Int(v.into()),
    u32 => |v| Value::Int(v.into()),
    u8 => |v| Value::Int(v.into()),
    u64 => |v| Value::Int(i64::try_from(v).unwrap_or(i64::MAX)),
    usize => |v| Value::Int(i64::try_from(v).unwrap_or(i64::MAX)),
    f64 => Value::Real,
    String => Value::Text,
    Vec<u8> => Value::Bytes,
    Uuid => Value::Uuid,
    DateTime<Utc> => Value::Time,
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<&Option<String>> for Value {
    fn from(value: &Option<String>) -> Self {
        value.clone().into()
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One row of an answer; columns count from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Row(pub(crate) Vec<Value>);

impl Row {
    /// The value of a column; `Null` beyond the last one.
    pub fn value(&self, column: usize) -> &Value {
        self.0.get(column).unwrap_or(&Value::Null)
    }

    fn wrong<T>(&self, column: usize, wanted: &'static str) -> Result<T> {
        let found = match self.value(column) {
            Value::Null => "null".to_owned(),
            other => format!("{other:?}").chars().take(60).collect(),
        };
        Err(Error::Type { column, found, wanted })
    }

    /// A whole number. Errors: `Type`.
    pub fn i64(&self, column: usize) -> Result<i64> {
        self.opt_i64(column)?.map_or_else(|| self.wrong(column, "a whole number"), Ok)
    }

    /// A whole number or null. Errors: `Type`.
    pub fn opt_i64(&self, column: usize) -> Result<Option<i64>> {
        match self.value(column) {
            Value::Null => Ok(None),
            Value::Int(v) => Ok(Some(*v)),
            Value::Bool(v) => Ok(Some(i64::from(*v))),
            _ => self.wrong(column, "a whole number"),
        }
    }

    /// A number. Errors: `Type`.
    pub fn f64(&self, column: usize) -> Result<f64> {
        match self.value(column) {
            Value::Real(v) => Ok(*v),
            #[allow(clippy::cast_precision_loss, reason = "the caller asked for a float")]
            Value::Int(v) => Ok(*v as f64),
            _ => self.wrong(column, "a number"),
        }
    }

    /// True or false. Errors: `Type`.
    pub fn bool(&self, column: usize) -> Result<bool> {
        self.opt_bool(column)?.map_or_else(|| self.wrong(column, "true or false"), Ok)
    }

    /// True, false or null. Errors: `Type`.
    pub fn opt_bool(&self, column: usize) -> Result<Option<bool>> {
        match self.value(column) {
            Value::Null => Ok(None),
            Value::Bool(v) => Ok(Some(*v)),
            Value::Int(v) => Ok(Some(*v != 0)),
            _ => self.wrong(column, "true or false"),
        }
    }

    /// Text. Errors: `Type`.
    pub fn text(&self, column: usize) -> Result<String> {
        self.opt_text(column)?.map_or_else(|| self.wrong(column, "text"), Ok)
    }

    /// Text or null; a UUID as its text. Errors: `Type`.
    pub fn opt_text(&self, column: usize) -> Result<Option<String>> {
        match self.value(column) {
            Value::Null => Ok(None),
            Value::Text(v) => Ok(Some(v.clone())),
            Value::Uuid(v) => Ok(Some(v.to_string())),
            _ => self.wrong(column, "text"),
        }
    }

    /// Bytes or null. Errors: `Type`.
    pub fn opt_bytes(&self, column: usize) -> Result<Option<&[u8]>> {
        match self.value(column) {
            Value::Null => Ok(None),
            Value::Bytes(v) => Ok(Some(v)),
            Value::Text(v) => Ok(Some(v.as_bytes())),
            _ => self.wrong(column, "bytes"),
        }
    }

    /// An instant from a TIMESTAMPTZ column, or from the text that DuckLake keeps on SQLite. Errors: `Type`.
    pub fn time(&self, column: usize) -> Result<DateTime<Utc>> {
        match self.value(column) {
            Value::Time(v) => Ok(*v),
            Value::Text(v) => parse_time(v).map_or_else(|| self.wrong(column, "a time"), Ok),
            _ => self.wrong(column, "a time"),
        }
    }
}

/// Writes an instant as DuckDB casts TIMESTAMPTZ to text in UTC.
pub(crate) fn time_text(time: DateTime<Utc>) -> String {
    let mut text = time.format("%Y-%m-%d %H:%M:%S").to_string();
    let micros = time.timestamp_subsec_micros();
    if micros != 0 {
        text.push('.');
        text.push_str(format!("{micros:06}").trim_end_matches('0'));
    }
    text.push_str("+00");
    text
}

pub(crate) fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z")
        .map(|t| t.with_timezone(&Utc))
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").map(|t| t.and_utc()))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_as_ducklake_writes_them() {
        for text in ["2026-11-21 23:47:21.243412+00", "2026-11-21 23:47:21+00", "2026-11-21 23:47:21.5+00"] {
            let time = parse_time(text).expect(text);
            assert_eq!(time_text(time), text);
        }
        assert_eq!(parse_time("2026-11-21 23:47:21+02"), parse_time("2026-11-21 21:47:21+00"));
    }
}
