//! Which type of PostgreSQL stands for which of ours; the wire sends values so, and `pg_attribute` says so.

use arrow::datatypes::{DataType, Field, IntervalUnit};
use datafusion_pg_catalog::pg_catalog::oid_field::OID_ALIAS_KEY;

/// A type of PostgreSQL as a client is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PgType {
    /// Its object id.
    pub oid: u32,
    /// Of an array the object id of its elements, else 0.
    pub element: u32,
    /// Bytes of a value; -1 where they differ.
    pub size: i16,
    /// Precision and scale of a `numeric`; -1 for none.
    pub modifier: i32,
    /// Its name as `format_type` writes it, without a modifier.
    pub name: &'static str,
}

const fn plain(oid: u32, size: i16, name: &'static str) -> PgType {
    PgType { oid, element: 0, size, modifier: -1, name }
}

pub(crate) const TEXT: PgType = plain(25, -1, "text");
const JSON: PgType = plain(114, -1, "json");

/// The type of a column. Lists of plain values are arrays; other lists, structs and maps are `json`.
pub fn pg_type(field: &Field) -> PgType {
    if *field.data_type() == DataType::Int32 {
        match field.metadata().get(OID_ALIAS_KEY).map(String::as_str) {
            Some("oid") => return plain(26, 4, "oid"),
            Some("regproc") => return plain(24, 4, "regproc"),
            Some("regclass") => return plain(2205, 4, "regclass"),
            Some("regtype") => return plain(2206, 4, "regtype"),
            Some("regnamespace") => return plain(4089, 4, "regnamespace"),
            _ => {}
        }
    }
    of(field.data_type())
}

fn of(data_type: &DataType) -> PgType {
    match data_type {
        DataType::Boolean => plain(16, 1, "boolean"),
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => plain(21, 2, "smallint"),
        DataType::Int32 | DataType::UInt16 => plain(23, 4, "integer"),
        DataType::Int64 | DataType::UInt32 => plain(20, 8, "bigint"),
        DataType::UInt64 => numeric(20, 0),
        DataType::Float16 | DataType::Float32 => plain(700, 4, "real"),
        DataType::Float64 => plain(701, 8, "double precision"),
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => numeric(*p, *s),
        DataType::FixedSizeBinary(16) => plain(2950, 16, "uuid"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            plain(17, -1, "bytea")
        }
        DataType::Date32 | DataType::Date64 => plain(1082, 4, "date"),
        DataType::Time32(_) | DataType::Time64(_) => plain(1083, 8, "time without time zone"),
        DataType::Timestamp(_, None) => plain(1114, 8, "timestamp without time zone"),
        DataType::Timestamp(_, Some(_)) => plain(1184, 8, "timestamp with time zone"),
        DataType::Interval(IntervalUnit::YearMonth | IntervalUnit::DayTime | IntervalUnit::MonthDayNano)
        | DataType::Duration(_) => plain(1186, 16, "interval"),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => array_of(pg_type(item)),
        DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => JSON,
        DataType::Dictionary(_, value) => of(value),
        DataType::RunEndEncoded(_, value) => of(value.data_type()),
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => TEXT,
    }
}

fn numeric(precision: u8, scale: i8) -> PgType {
    // A scale below zero is a number without digits behind the point.
    let modifier = (i32::from(precision) << 16 | i32::from(scale.max(0))) + 4;
    PgType { modifier, ..plain(1700, -1, "numeric") }
}

fn array_of(element: PgType) -> PgType {
    let (oid, name) = match element.oid {
        16 => (1000, "boolean[]"),
        17 => (1001, "bytea[]"),
        20 => (1016, "bigint[]"),
        21 => (1005, "smallint[]"),
        23 => (1007, "integer[]"),
        25 => (1009, "text[]"),
        26 => (1028, "oid[]"),
        700 => (1021, "real[]"),
        701 => (1022, "double precision[]"),
        1082 => (1182, "date[]"),
        1083 => (1183, "time without time zone[]"),
        1114 => (1115, "timestamp without time zone[]"),
        1184 => (1185, "timestamp with time zone[]"),
        1186 => (1187, "interval[]"),
        1700 => (1231, "numeric[]"),
        2950 => (2951, "uuid[]"),
        // Arrays of arrays would have to be rectangular.
        _ => return JSON,
    };
    PgType { oid, element: element.oid, size: -1, modifier: element.modifier, name }
}
