//! Cells of Arrow's arrays, one after the other.

use arrow::{
    array::{
        Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
        Int8Array, Int16Array, Int32Array, Int64Array, ListArray, StringArray, Time64MicrosecondArray,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, TimeUnit},
};

/// A column's cells. Times are microseconds.
pub(super) enum Cells<'a> {
    Boolean(&'a BooleanArray),
    Int8(&'a Int8Array),
    Int16(&'a Int16Array),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
    Decimal(&'a Decimal128Array, i8),
    Utf8(&'a StringArray),
    Binary(&'a BinaryArray),
    Date(&'a Date32Array),
    Timestamp(&'a TimestampMicrosecondArray, bool),
    Time(&'a Time64MicrosecondArray),
    List(&'a ListArray),
}

/// One cell.
pub(super) enum Cell<'a> {
    Null,
    Boolean(bool),
    Integer(i64),
    Float32(f32),
    Float64(f64),
    Decimal(i128, i8),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Days since 1970.
    Date(i32),
    /// Microseconds since 1970; the flag tells instants from times without a zone.
    Timestamp(i64, bool),
    /// Microseconds since midnight.
    Time(i64),
    List(ArrayRef),
}

impl<'a> Cells<'a> {
    /// Looks at a column. None for a type that no table is filled with.
    pub(super) fn new(array: &'a ArrayRef) -> Option<Self> {
        let any = array.as_any();
        Some(match array.data_type() {
            DataType::Boolean => Self::Boolean(any.downcast_ref()?),
            DataType::Int8 => Self::Int8(any.downcast_ref()?),
            DataType::Int16 => Self::Int16(any.downcast_ref()?),
            DataType::Int32 => Self::Int32(any.downcast_ref()?),
            DataType::Int64 => Self::Int64(any.downcast_ref()?),
            DataType::Float32 => Self::Float32(any.downcast_ref()?),
            DataType::Float64 => Self::Float64(any.downcast_ref()?),
            DataType::Decimal128(_, scale) => Self::Decimal(any.downcast_ref()?, *scale),
            DataType::Utf8 => Self::Utf8(any.downcast_ref()?),
            DataType::Binary => Self::Binary(any.downcast_ref()?),
            DataType::Date32 => Self::Date(any.downcast_ref()?),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => Self::Timestamp(any.downcast_ref()?, zone.is_some()),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(any.downcast_ref()?),
            DataType::List(_) => Self::List(any.downcast_ref()?),
            _ => return None,
        })
    }

    /// The cell of a row.
    pub(super) fn get(&self, row: usize) -> Cell<'a> {
        macro_rules! cell {
            ($array:expr, $make:expr) => {
                if $array.is_null(row) { Cell::Null } else { $make($array.value(row)) }
            };
        }
        match self {
            Self::Boolean(a) => cell!(a, Cell::Boolean),
            Self::Int8(a) => cell!(a, |v| Cell::Integer(i64::from(v))),
            Self::Int16(a) => cell!(a, |v| Cell::Integer(i64::from(v))),
            Self::Int32(a) => cell!(a, |v| Cell::Integer(i64::from(v))),
            Self::Int64(a) => cell!(a, Cell::Integer),
            Self::Float32(a) => cell!(a, Cell::Float32),
            Self::Float64(a) => cell!(a, Cell::Float64),
            Self::Decimal(a, scale) => cell!(a, |v| Cell::Decimal(v, *scale)),
            Self::Utf8(a) => cell!(a, Cell::Text),
            Self::Binary(a) => cell!(a, Cell::Bytes),
            Self::Date(a) => cell!(a, Cell::Date),
            Self::Timestamp(a, instants) => cell!(a, |v| Cell::Timestamp(v, *instants)),
            Self::Time(a) => cell!(a, Cell::Time),
            Self::List(a) => cell!(a, Cell::List),
        }
    }
}
