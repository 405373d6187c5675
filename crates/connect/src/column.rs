//! Columns being built, value by value, each exactly or not at all.

#![allow(clippy::unit_arg, reason = "`Some(append)` reads as what it is: appended, or none")]

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder,
        Int8Builder, Int16Builder, Int32Builder, Int64Builder, ListArray, StringBuilder, Time64MicrosecondBuilder,
        TimestampMicrosecondBuilder,
    },
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, Field, TimeUnit},
    error::ArrowError,
};

use crate::{parse, types};

/// Says why a value does not fit its column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The value and what it is not, as "`abc`, which is not a bigint".
    pub(crate) reason: String,
    /// The type that would hold it.
    pub(crate) instead: &'static str,
}

/// The most characters of a value that an error shows.
const SHOWN_CHARS_MAX: usize = 60;

/// Cuts a value to what an error may show.
pub(crate) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &value[..at]),
        None => value.to_owned(),
    }
}

/// A column being built.
pub(crate) struct Column {
    pub(crate) values: Values,
    data_type: DataType,
    /// The bytes that its values take so far.
    pub(crate) bytes: usize,
}

/// Arrow's builders for the types that sources are read as.
pub(crate) enum Values {
    Boolean(BooleanBuilder),
    Int8(Int8Builder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Decimal(Decimal128Builder, u8, i8),
    Utf8(StringBuilder),
    Binary(BinaryBuilder),
    Date(Date32Builder),
    /// Microseconds; the flag tells instants (true) from times without a zone.
    Timestamp(TimestampMicrosecondBuilder, bool),
    Time(Time64MicrosecondBuilder),
    List(Box<List>),
}

/// A list column: where each list ends among the elements.
pub(crate) struct List {
    pub(crate) elements: Column,
    ends: Vec<i32>,
    valid: Vec<bool>,
}

impl Column {
    /// Starts a column. None for a type that no source is read as.
    pub(crate) fn new(data_type: &DataType) -> Option<Self> {
        let values = match data_type {
            DataType::Boolean => Values::Boolean(BooleanBuilder::new()),
            DataType::Int8 => Values::Int8(Int8Builder::new()),
            DataType::Int16 => Values::Int16(Int16Builder::new()),
            DataType::Int32 => Values::Int32(Int32Builder::new()),
            DataType::Int64 => Values::Int64(Int64Builder::new()),
            DataType::Float32 => Values::Float32(Float32Builder::new()),
            DataType::Float64 => Values::Float64(Float64Builder::new()),
            DataType::Decimal128(p, s) => {
                Values::Decimal(Decimal128Builder::new().with_data_type(data_type.clone()), *p, *s)
            }
            DataType::Utf8 => Values::Utf8(StringBuilder::new()),
            DataType::Binary => Values::Binary(BinaryBuilder::new()),
            DataType::Date32 => Values::Date(Date32Builder::new()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                Values::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(data_type.clone()), zone.is_some())
            }
            DataType::Time64(TimeUnit::Microsecond) => Values::Time(Time64MicrosecondBuilder::new()),
            DataType::List(field) => {
                let elements = Self::new(field.data_type())?;
                Values::List(Box::new(List { elements, ends: vec![0], valid: Vec::new() }))
            }
            _ => return None,
        };
        Some(Self { values, data_type: data_type.clone(), bytes: 0 })
    }

    /// Says that a value is not of the column's type.
    pub(crate) fn misfit(&self, value: impl std::fmt::Display, instead: &'static str) -> Misfit {
        let name = types::name(&self.data_type);
        Misfit { reason: format!("`{}`, which is not exactly a {name}", shown(&value.to_string())), instead }
    }

    /// Adds a null.
    pub(crate) fn null(&mut self) {
        match &mut self.values {
            Values::Boolean(b) => b.append_null(),
            Values::Int8(b) => b.append_null(),
            Values::Int16(b) => b.append_null(),
            Values::Int32(b) => b.append_null(),
            Values::Int64(b) => b.append_null(),
            Values::Float32(b) => b.append_null(),
            Values::Float64(b) => b.append_null(),
            Values::Decimal(b, ..) => b.append_null(),
            Values::Utf8(b) => b.append_null(),
            Values::Binary(b) => b.append_null(),
            Values::Date(b) => b.append_null(),
            Values::Timestamp(b, _) => b.append_null(),
            Values::Time(b) => b.append_null(),
            Values::List(list) => list.close(false),
        }
        self.bytes += 4;
    }

    /// Adds a whole number.
    pub(crate) fn integer(&mut self, value: i64) -> Result<(), Misfit> {
        let fits = match &mut self.values {
            Values::Boolean(b) => (value == 0 || value == 1).then(|| b.append_value(value == 1)),
            Values::Int8(b) => i8::try_from(value).ok().map(|v| b.append_value(v)),
            Values::Int16(b) => i16::try_from(value).ok().map(|v| b.append_value(v)),
            Values::Int32(b) => i32::try_from(value).ok().map(|v| b.append_value(v)),
            Values::Int64(b) => Some(b.append_value(value)),
            // Beyond 24 or 53 bits a float skips whole numbers.
            Values::Float32(b) => (value.unsigned_abs() <= 1 << 24).then(|| b.append_value(value as f32)),
            Values::Float64(b) => (value.unsigned_abs() <= 1 << 53).then(|| b.append_value(value as f64)),
            Values::Decimal(b, digits, scale) => scaled(value, *digits, *scale).map(|v| b.append_value(v)),
            Values::Utf8(b) => Some(b.append_value(value.to_string())),
            Values::Timestamp(b, _) => {
                (value.abs() <= parse::EPOCH_SECS_MAX).then(|| b.append_value(value * parse::MICROS))
            }
            Values::Binary(_) | Values::Date(_) | Values::Time(_) | Values::List(_) => None,
        };
        self.bytes += 8;
        let instead =
            if matches!(self.values, Values::Boolean(_) | Values::Timestamp(..)) { "bigint" } else { "varchar" };
        fits.ok_or_else(|| self.misfit(value, instead))
    }

    /// Adds a floating-point number.
    pub(crate) fn real(&mut self, value: f64) -> Result<(), Misfit> {
        let fits = match &mut self.values {
            Values::Float64(b) => Some(b.append_value(value)),
            Values::Float32(b) => {
                let narrow = value as f32;
                (f64::from(narrow) == value || value.is_nan()).then(|| b.append_value(narrow))
            }
            Values::Utf8(b) => Some(b.append_value(format!("{value:?}"))),
            // The shortest text that reads back as this float is what its writer meant: 0.1, not 0.1000000000000000055.
            Values::Decimal(b, digits, scale) => {
                parse::decimal(&format!("{value:?}"), *digits, *scale).map(|v| b.append_value(v))
            }
            Values::Timestamp(b, _) => parse::decimal(&format!("{value:?}"), 18, 6)
                .and_then(|v| i64::try_from(v).ok())
                .filter(|v| v.abs() <= parse::EPOCH_SECS_MAX * parse::MICROS)
                .map(|v| b.append_value(v)),
            _ if value.fract() == 0.0 && value.abs() <= (1_i64 << 53) as f64 => return self.integer(value as i64),
            _ => None,
        };
        self.bytes += 8;
        fits.ok_or_else(|| self.misfit(format!("{value:?}"), "double"))
    }

    /// Adds a value written as text.
    pub(crate) fn text(&mut self, value: &str) -> Result<(), Misfit> {
        self.bytes += 8 + value.len();
        let mut instead = "varchar";
        let fits = match &mut self.values {
            Values::Utf8(b) => Some(b.append_value(value)),
            Values::Boolean(b) => parse::boolean(value).map(|v| b.append_value(v)),
            Values::Int8(_) | Values::Int16(_) | Values::Int32(_) | Values::Int64(_) => {
                return match value.parse() {
                    Ok(number) => self.integer(number),
                    Err(_) => Err(self.misfit(value, instead)),
                };
            }
            Values::Float64(b) => parse::float(value).map(|v| b.append_value(v)),
            Values::Float32(b) => value.parse().ok().map(|v| b.append_value(v)),
            Values::Decimal(b, digits, scale) => parse::decimal(value, *digits, *scale).map(|v| b.append_value(v)),
            Values::Date(b) => match parse::timestamp(value) {
                // A day that was written as its midnight is still that day.
                Some(t) if t.offset_secs.is_none() && t.micros % parse::DAY_MICROS == 0 => {
                    Some(b.append_value((t.micros / parse::DAY_MICROS) as i32))
                }
                _ => {
                    instead = "timestamp";
                    None
                }
            },
            Values::Timestamp(b, instants) => match (parse::timestamp(value), *instants) {
                (Some(t), true) => match t.offset_secs {
                    Some(offset) => Some(b.append_value(t.micros - i64::from(offset) * parse::MICROS)),
                    None => {
                        instead = "timestamp";
                        None
                    }
                },
                (Some(t), false) if t.offset_secs.is_none() => Some(b.append_value(t.micros)),
                (Some(_), false) => {
                    instead = "timestamptz";
                    None
                }
                (None, _) => None,
            },
            Values::Time(b) => parse::time(value).map(|v| b.append_value(v)),
            Values::Binary(_) => {
                instead = "varchar";
                None
            }
            Values::List(_) => None,
        };
        fits.ok_or_else(|| self.misfit(value, instead))
    }

    /// Adds bytes.
    pub(crate) fn blob(&mut self, value: &[u8]) -> Result<(), Misfit> {
        self.bytes += 8 + value.len();
        match &mut self.values {
            Values::Binary(b) => {
                b.append_value(value);
                Ok(())
            }
            _ => {
                let start: String = value.iter().take(SHOWN_CHARS_MAX / 2).map(|b| format!("{b:02x}")).collect();
                Err(self.misfit(format!("x'{start}'"), "blob"))
            }
        }
    }

    /// Ends the batch: gives the values and starts anew.
    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        self.bytes = 0;
        Ok(match &mut self.values {
            Values::Boolean(b) => Arc::new(b.finish()),
            Values::Int8(b) => Arc::new(b.finish()),
            Values::Int16(b) => Arc::new(b.finish()),
            Values::Int32(b) => Arc::new(b.finish()),
            Values::Int64(b) => Arc::new(b.finish()),
            Values::Float32(b) => Arc::new(b.finish()),
            Values::Float64(b) => Arc::new(b.finish()),
            Values::Decimal(b, ..) => Arc::new(b.finish()),
            Values::Utf8(b) => Arc::new(b.finish()),
            Values::Binary(b) => Arc::new(b.finish()),
            Values::Date(b) => Arc::new(b.finish()),
            Values::Timestamp(b, _) => Arc::new(b.finish()),
            Values::Time(b) => Arc::new(b.finish()),
            Values::List(list) => Arc::new(list.finish()?),
        })
    }

    fn len(&self) -> usize {
        use arrow::array::ArrayBuilder;
        match &self.values {
            Values::Boolean(b) => b.len(),
            Values::Int8(b) => b.len(),
            Values::Int16(b) => b.len(),
            Values::Int32(b) => b.len(),
            Values::Int64(b) => b.len(),
            Values::Float32(b) => b.len(),
            Values::Float64(b) => b.len(),
            Values::Decimal(b, ..) => b.len(),
            Values::Utf8(b) => b.len(),
            Values::Binary(b) => b.len(),
            Values::Date(b) => b.len(),
            Values::Timestamp(b, _) => b.len(),
            Values::Time(b) => b.len(),
            Values::List(list) => list.valid.len(),
        }
    }
}

impl List {
    /// Ends a list: its elements are what was added since the last one.
    pub(crate) fn close(&mut self, valid: bool) {
        self.ends.push(self.elements.len() as i32);
        self.valid.push(valid);
    }

    fn finish(&mut self) -> Result<ListArray, ArrowError> {
        let ends = std::mem::replace(&mut self.ends, vec![0]);
        let valid = std::mem::take(&mut self.valid);
        let field = Arc::new(Field::new_list_field(self.elements.data_type.clone(), true));
        let values = self.elements.finish()?;
        ListArray::try_new(field, OffsetBuffer::new(ends.into()), values, Some(NullBuffer::from(valid)))
    }
}

fn scaled(value: i64, digits: u8, scale: i8) -> Option<i128> {
    let factor = 10_i128.checked_pow(u32::try_from(scale).ok()?)?;
    i128::from(value).checked_mul(factor).filter(|v| parse::fits(*v, digits))
}

#[cfg(test)]
mod tests {
    use arrow::{array::AsArray, datatypes::Decimal128Type};

    use super::*;

    fn column(name: &str) -> Column {
        Column::new(&types::parse(name).unwrap().data_type).unwrap()
    }

    #[test]
    fn values_fit_exactly_or_not_at_all() {
        for (kind, good, bad) in [
            ("boolean", vec!["0", "true", "F"], vec!["2", "yes", ""]),
            ("bigint", vec!["-5", "9223372036854775807"], vec!["9223372036854775808", "1.5", "abc", " 1"]),
            ("double", vec!["1.5", "1e300"], vec!["1e999", "one"]),
            ("decimal(5,2)", vec!["999.99", "1.500"], vec!["1000", "1.005"]),
            ("date", vec!["2013-01-01", "2013-01-01 00:00:00"], vec!["2013-01-01T01:00", "01/02/2013"]),
            ("timestamp", vec!["2013-01-01T01:00", "2013-01-01"], vec!["2013-01-01T01:00Z", "now"]),
            ("timestamptz", vec!["2013-01-01T01:00Z", "2013-01-01 01:00+02"], vec!["2013-01-01T01:00"]),
            ("time", vec!["23:59"], vec!["24:00"]),
        ] {
            for text in good {
                assert_eq!(column(kind).text(text), Ok(()), "{kind} {text}");
            }
            for text in bad {
                assert!(column(kind).text(text).is_err(), "{kind} {text}");
            }
        }
    }

    #[test]
    fn numbers_keep_their_value() {
        let mut money = column("decimal(10,2)");
        money.real(12.34).unwrap();
        money.integer(-5).unwrap();
        assert!(money.real(0.125).is_err());
        let array = money.finish().unwrap();
        assert_eq!(array.as_primitive::<Decimal128Type>().values(), &[1234, -500]);
        assert!(column("double").integer((1 << 53) + 1).is_err());
        assert!(column("integer").integer(1 << 40).is_err());
        assert!(column("bigint").real(0.5).is_err());
        assert_eq!(column("bigint").real(3.0), Ok(()));
        // Milliseconds where seconds are expected would be a day in the year 44970.
        assert_eq!(column("timestamp").integer(1_357_016_400_000).unwrap_err().instead, "bigint");
    }
}
