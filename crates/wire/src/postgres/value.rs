//! Values of Arrow columns in PostgreSQL's text and binary forms.

mod form;

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array,
        FixedSizeBinaryArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
        IntervalMonthDayNanoArray, LargeStringArray, ListArray, MapArray, StringArray, StringViewArray,
        Time64MicrosecondArray, TimestampMicrosecondArray, UnionArray,
    },
    buffer::NullBuffer,
    compute::{CastOptions, cast_with_options},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Decimal256Type, DurationMicrosecondType, Field, Float32Type, Float64Type,
        Int16Type, Int32Type, Int64Type, IntervalMonthDayNanoType, IntervalUnit, Time64MicrosecondType, TimeUnit,
        TimestampMicrosecondType,
    },
    error::ArrowError,
};
use bytes::{BufMut, BytesMut};
use headworks_engine::pg_type;

pub(super) use form::{EPOCH_DAYS, EPOCH_MICROS};

/// The form of a value on the wire; the numbers are the protocol's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text = 0,
    Binary = 1,
}

impl Format {
    pub(super) fn of(code: i16) -> Self {
        if code == 1 { Self::Binary } else { Self::Text }
    }
}

/// A column of one batch, ready to be written value by value.
pub(super) struct Column {
    values: Values,
    nulls: Option<NullBuffer>,
}

enum Values {
    Null,
    Bool(BooleanArray),
    Int16(Int16Array),
    Int32(Int32Array),
    Int64(Int64Array),
    Float32(Float32Array),
    Float64(Float64Array),
    Decimal(Decimal128Array, i8),
    LargeDecimal(Decimal256Array, i8),
    Text(StringArray),
    LargeText(LargeStringArray),
    TextView(StringViewArray),
    Bytes(BinaryArray),
    Uuid(FixedSizeBinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray, bool),
    Interval(IntervalMonthDayNanoArray),
    /// With the object id of its elements.
    Array(ListArray, Box<Column>, u32),
    /// Lists that are no arrays of PostgreSQL.
    List(ListArray, Box<Column>),
    Struct(Vec<(String, Column)>),
    Map(MapArray, Box<Column>, Box<Column>),
    Union(UnionArray, Vec<(i8, Column)>),
}

/// The type that a column is turned into first, so that few are left to write.
fn plain(data_type: &DataType) -> DataType {
    let list = |item: &Arc<Field>| DataType::List(Arc::new(Field::new("item", item.data_type().clone(), true)));
    match data_type {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::FixedSizeBinary(size) if *size != 16 => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Duration(_) => DataType::Duration(TimeUnit::Microsecond),
        DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => list(item),
        DataType::ListView(item) | DataType::LargeListView(item) => list(item),
        DataType::Dictionary(_, value) => plain(value),
        DataType::RunEndEncoded(_, value) => plain(value.data_type()),
        other => other.clone(),
    }
}

impl Column {
    /// Prepares a column. Errors: values that PostgreSQL has no room for, as a time in the year 300,000.
    pub(super) fn of(array: &ArrayRef) -> Result<Self, ArrowError> {
        let wanted = plain(array.data_type());
        let array = if wanted == *array.data_type() {
            Arc::clone(array)
        } else {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, &wanted, &options)?
        };
        let mut nulls = array.nulls().cloned();
        let values = match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Bool(array.as_boolean().clone()),
            DataType::Int16 => Values::Int16(array.as_primitive::<Int16Type>().clone()),
            DataType::Int32 => Values::Int32(array.as_primitive::<Int32Type>().clone()),
            DataType::Int64 => Values::Int64(array.as_primitive::<Int64Type>().clone()),
            DataType::Float32 => Values::Float32(array.as_primitive::<Float32Type>().clone()),
            DataType::Float64 => Values::Float64(array.as_primitive::<Float64Type>().clone()),
            DataType::Decimal128(_, scale) => Values::Decimal(array.as_primitive::<Decimal128Type>().clone(), *scale),
            DataType::Decimal256(_, scale) => {
                Values::LargeDecimal(array.as_primitive::<Decimal256Type>().clone(), *scale)
            }
            DataType::Utf8 => Values::Text(array.as_string().clone()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string().clone()),
            DataType::Utf8View => Values::TextView(array.as_string_view().clone()),
            DataType::Binary => Values::Bytes(array.as_binary().clone()),
            DataType::FixedSizeBinary(_) => Values::Uuid(array.as_fixed_size_binary().clone()),
            DataType::Date32 => Values::Date(array.as_primitive::<Date32Type>().clone()),
            DataType::Time64(_) => Values::Time(array.as_primitive::<Time64MicrosecondType>().clone()),
            DataType::Timestamp(_, zone) => {
                Values::Timestamp(array.as_primitive::<TimestampMicrosecondType>().clone(), zone.is_some())
            }
            DataType::Interval(_) => Values::Interval(array.as_primitive::<IntervalMonthDayNanoType>().clone()),
            DataType::Duration(_) => {
                let micros = array.as_primitive::<DurationMicrosecondType>();
                let nanos = |n: i64| n.checked_mul(1_000).map(|n| IntervalMonthDayNanoType::make_value(0, 0, n));
                let intervals: IntervalMonthDayNanoArray = micros.iter().map(|n| n.and_then(nanos)).collect();
                // Those that are too long for an interval were left out.
                nulls = intervals.nulls().cloned();
                Values::Interval(intervals)
            }
            DataType::List(item) => {
                let list = array.as_list::<i32>().clone();
                let items = Box::new(Self::of(list.values())?);
                let pg = pg_type(&Field::new("", array.data_type().clone(), true));
                debug_assert!(item.data_type() == list.values().data_type());
                if pg.element == 0 { Values::List(list, items) } else { Values::Array(list, items, pg.element) }
            }
            DataType::Struct(fields) => {
                let columns = fields.iter().zip(array.as_struct().columns());
                let columns: Result<Vec<_>, ArrowError> =
                    columns.map(|(field, column)| Ok((field.name().clone(), Self::of(column)?))).collect();
                Values::Struct(columns?)
            }
            DataType::Map(..) => {
                let map = array.as_map().clone();
                let (keys, values) = (Self::of(map.keys())?, Self::of(map.values())?);
                Values::Map(map, Box::new(keys), Box::new(values))
            }
            DataType::Union(fields, _) => {
                let union = array.as_union().clone();
                let children: Result<Vec<_>, ArrowError> =
                    fields.iter().map(|(id, _)| Ok((id, Self::of(union.child(id))?))).collect();
                Values::Union(union, children?)
            }
            other => return Err(ArrowError::NotYetImplemented(format!("values of type {other} have no form here"))),
        };
        Ok(Self { values, nulls })
    }

    /// True when its values as text are made of letters, digits, spaces and `+-.:` only, whichever they are.
    pub(super) fn is_plain(&self) -> bool {
        matches!(
            self.values,
            Values::Bool(_)
                | Values::Int16(_)
                | Values::Int32(_)
                | Values::Int64(_)
                | Values::Float32(_)
                | Values::Float64(_)
                | Values::Decimal(..)
                | Values::LargeDecimal(..)
                | Values::Uuid(_)
                | Values::Date(_)
                | Values::Time(_)
                | Values::Timestamp(..)
        )
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        match &self.values {
            Values::Null => true,
            // A union has no nulls of its own.
            Values::Union(union, children) => match child(union, children, row) {
                Some((column, row)) => column.is_null(row),
                None => true,
            },
            _ => self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)),
        }
    }

    /// Writes a value behind its length, as in a row.
    pub(super) fn put(&self, row: usize, format: Format, out: &mut BytesMut) {
        if self.is_null(row) {
            out.put_i32(-1);
            return;
        }
        let start = out.len();
        out.put_i32(0);
        self.write(row, format, out);
        let length = i32::try_from(out.len() - start - 4).unwrap_or(i32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Writes a value that is not null.
    pub(super) fn write(&self, row: usize, format: Format, out: &mut BytesMut) {
        match format {
            Format::Text => self.text(row, out),
            Format::Binary => self.binary(row, out),
        }
    }

    fn text(&self, row: usize, out: &mut BytesMut) {
        match &self.values {
            Values::Null => {}
            Values::Bool(array) => out.put_u8(if array.value(row) { b't' } else { b'f' }),
            Values::Int16(array) => form::integer(array.value(row).into(), out),
            Values::Int32(array) => form::integer(array.value(row).into(), out),
            Values::Int64(array) => form::integer(array.value(row), out),
            Values::Float32(array) => form::float32(array.value(row), out),
            Values::Float64(array) => form::float64(array.value(row), out),
            Values::Decimal(array, scale) => match short(array.value(row), *scale) {
                Some((value, scale)) => form::decimal64(value, scale, out),
                None => form::decimal(&array.value(row).to_string(), *scale, out),
            },
            Values::LargeDecimal(array, scale) => form::decimal(&array.value(row).to_string(), *scale, out),
            Values::Text(array) => put_text(array.value(row), out),
            Values::LargeText(array) => put_text(array.value(row), out),
            Values::TextView(array) => put_text(array.value(row), out),
            Values::Bytes(array) => {
                out.put_slice(b"\\x");
                form::hex(array.value(row), out);
            }
            Values::Uuid(array) => form::uuid(array.value(row), out),
            Values::Date(array) => form::date(array.value(row).into(), out),
            Values::Time(array) => form::time(array.value(row), out),
            Values::Timestamp(array, has_zone) => form::timestamp(array.value(row), *has_zone, out),
            Values::Interval(array) => form::interval(array.value(row), out),
            Values::Array(list, items, _) => array_text(list, items, row, out),
            Values::List(..) | Values::Struct(..) | Values::Map(..) | Values::Union(..) => self.json(row, out),
        }
    }

    fn binary(&self, row: usize, out: &mut BytesMut) {
        match &self.values {
            Values::Bool(array) => out.put_u8(array.value(row).into()),
            Values::Int16(array) => out.put_i16(array.value(row)),
            Values::Int32(array) => out.put_i32(array.value(row)),
            Values::Int64(array) => out.put_i64(array.value(row)),
            Values::Float32(array) => out.put_f32(array.value(row)),
            Values::Float64(array) => out.put_f64(array.value(row)),
            Values::Decimal(array, scale) => match short(array.value(row), *scale) {
                Some((value, scale)) => form::numeric64(value, scale, out),
                None => form::numeric(&array.value(row).to_string(), *scale, out),
            },
            Values::LargeDecimal(array, scale) => form::numeric(&array.value(row).to_string(), *scale, out),
            Values::Bytes(array) => out.put_slice(array.value(row)),
            Values::Uuid(array) => out.put_slice(array.value(row)),
            Values::Date(array) => out.put_i32(array.value(row).saturating_sub(form::EPOCH_DAYS)),
            Values::Time(array) => out.put_i64(array.value(row)),
            Values::Timestamp(array, _) => out.put_i64(array.value(row).saturating_sub(form::EPOCH_MICROS)),
            Values::Interval(array) => {
                let value = array.value(row);
                out.put_i64(value.nanoseconds.div_euclid(1_000));
                out.put_i32(value.days);
                out.put_i32(value.months);
            }
            Values::Array(list, items, element) => array_binary(list, items, *element, row, out),
            // Texts and JSON are the same in both.
            Values::Null
            | Values::Text(_)
            | Values::LargeText(_)
            | Values::TextView(_)
            | Values::List(..)
            | Values::Struct(..)
            | Values::Map(..)
            | Values::Union(..) => self.text(row, out),
        }
    }

    fn json(&self, row: usize, out: &mut BytesMut) {
        if self.is_null(row) {
            out.put_slice(b"null");
            return;
        }
        let elements = |list: &dyn Fn() -> (usize, usize), items: &Self, out: &mut BytesMut| {
            let (start, end) = list();
            out.put_u8(b'[');
            for item in start..end {
                if item > start {
                    out.put_u8(b',');
                }
                items.json(item, out);
            }
            out.put_u8(b']');
        };
        match &self.values {
            Values::Bool(array) => out.put_slice(if array.value(row) { b"true" } else { b"false" }),
            Values::Int16(_) | Values::Int32(_) | Values::Int64(_) | Values::Decimal(..) | Values::LargeDecimal(..) => {
                self.text(row, out)
            }
            Values::Float32(array) if array.value(row).is_finite() => self.text(row, out),
            Values::Float64(array) if array.value(row).is_finite() => self.text(row, out),
            Values::Array(list, items, _) | Values::List(list, items) => {
                elements(&|| range(list.value_offsets(), row), items, out);
            }
            Values::Struct(columns) => {
                out.put_u8(b'{');
                for (index, (name, column)) in columns.iter().enumerate() {
                    if index > 0 {
                        out.put_u8(b',');
                    }
                    form::json_text(name, out);
                    out.put_u8(b':');
                    column.json(row, out);
                }
                out.put_u8(b'}');
            }
            Values::Map(map, keys, values) => {
                let (start, end) = range(map.value_offsets(), row);
                out.put_u8(b'{');
                for entry in start..end {
                    if entry > start {
                        out.put_u8(b',');
                    }
                    keys.json_key(entry, out);
                    out.put_u8(b':');
                    values.json(entry, out);
                }
                out.put_u8(b'}');
            }
            Values::Union(union, children) => match child(union, children, row) {
                Some((column, row)) => column.json(row, out),
                None => out.put_slice(b"null"),
            },
            _ => self.json_key(row, out),
        }
    }

    /// A value in quotes.
    fn json_key(&self, row: usize, out: &mut BytesMut) {
        let mut text = BytesMut::new();
        self.text(row, &mut text);
        form::json_text(&String::from_utf8_lossy(&text), out);
    }
}

/// A decimal number that is short enough to be written without a detour.
fn short(value: i128, scale: i8) -> Option<(i64, u32)> {
    let scale = u32::try_from(scale).ok().filter(|_| scale <= form::SCALE64_MAX)?;
    Some((i64::try_from(value).ok()?, scale))
}

fn put_text(text: &str, out: &mut BytesMut) {
    out.put_slice(text.as_bytes());
}

fn range(offsets: &[i32], row: usize) -> (usize, usize) {
    // Offsets of Arrow are never below zero.
    let at = |index: usize| usize::try_from(offsets[index]).unwrap_or(0);
    (at(row), at(row + 1))
}

fn child<'a>(union: &UnionArray, children: &'a [(i8, Column)], row: usize) -> Option<(&'a Column, usize)> {
    let id = union.type_id(row);
    let (_, column) = children.iter().find(|(child, _)| *child == id)?;
    Some((column, union.value_offset(row)))
}

fn array_text(list: &ListArray, items: &Column, row: usize, out: &mut BytesMut) {
    let (start, end) = range(list.value_offsets(), row);
    let mut text = BytesMut::new();
    out.put_u8(b'{');
    for item in start..end {
        if item > start {
            out.put_u8(b',');
        }
        if items.is_null(item) {
            out.put_slice(b"NULL");
            continue;
        }
        text.clear();
        items.text(item, &mut text);
        let is_special =
            |byte: &u8| matches!(byte, b'{' | b'}' | b',' | b'"' | b'\\' | b' ' | b'\t' | b'\n' | b'\r' | 11 | 12);
        if !text.is_empty() && !text.eq_ignore_ascii_case(b"null") && !text.iter().any(is_special) {
            out.put_slice(&text);
            continue;
        }
        out.put_u8(b'"');
        for byte in &text {
            if matches!(byte, b'"' | b'\\') {
                out.put_u8(b'\\');
            }
            out.put_u8(*byte);
        }
        out.put_u8(b'"');
    }
    out.put_u8(b'}');
}

fn array_binary(list: &ListArray, items: &Column, element: u32, row: usize, out: &mut BytesMut) {
    let (start, end) = range(list.value_offsets(), row);
    let has_nulls = (start..end).any(|item| items.is_null(item));
    out.put_i32(i32::from(start < end));
    out.put_i32(i32::from(has_nulls));
    out.put_u32(element);
    if start < end {
        out.put_i32(i32::try_from(end - start).unwrap_or(i32::MAX));
        out.put_i32(1);
    }
    for item in start..end {
        items.put(item, Format::Binary, out);
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{DictionaryArray, DurationSecondArray, StructArray, UInt64Array},
        datatypes::{Int8Type, i256},
    };

    use super::*;

    fn text(array: ArrayRef) -> Vec<String> {
        let column = Column::of(&array).unwrap();
        (0..array.len())
            .map(|row| {
                let mut out = BytesMut::new();
                if column.is_null(row) {
                    return "null".to_owned();
                }
                column.write(row, Format::Text, &mut out);
                String::from_utf8(out.to_vec()).unwrap()
            })
            .collect()
    }

    #[test]
    fn types_without_a_counterpart_are_turned_into_one() {
        assert_eq!(text(Arc::new(UInt64Array::from(vec![u64::MAX, 0]))), ["18446744073709551615", "0"]);
        let words: DictionaryArray<Int8Type> = vec![Some("a"), None, Some("a")].into_iter().collect();
        assert_eq!(text(Arc::new(words)), ["a", "null", "a"]);
        assert_eq!(text(Arc::new(DurationSecondArray::from(vec![3_661, -1]))), ["01:01:01", "-00:00:01"]);
        let large =
            Decimal256Array::from(vec![i256::from_string("-123456789012345678901234567890123456789012").unwrap()])
                .with_precision_and_scale(50, 3)
                .unwrap();
        assert_eq!(text(Arc::new(large)), ["-123456789012345678901234567890123456789.012"]);
    }

    #[test]
    fn nested_values_are_json() {
        let fields =
            vec![Arc::new(Field::new("a", DataType::Int64, true)), Arc::new(Field::new("b", DataType::Utf8, true))];
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from(vec![Some(1), None])), Arc::new(StringArray::from(vec!["x\"\n", ""]))];
        let rows: ArrayRef = Arc::new(StructArray::new(fields.into(), columns, None));
        assert_eq!(text(rows), [r#"{"a":1,"b":"x\"\n"}"#, r#"{"a":null,"b":""}"#]);
        let inner = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
        assert_eq!(text(Arc::new(inner.clone())), ["{1,NULL}", "null"]);
        let offsets = arrow::buffer::OffsetBuffer::new(vec![0, 2].into());
        let item = Arc::new(Field::new("item", inner.data_type().clone(), true));
        let outer = ListArray::new(item, offsets, Arc::new(inner), None);
        assert_eq!(text(Arc::new(outer)), ["[[1,null],null]"]);
    }
}
