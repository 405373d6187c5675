//! Column types by their names in job headers, and what Arrow calls them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use headworks_domain::nearest;

use crate::error::{Error, Result};

/// The names of types that a header may use.
pub const NAMES: &[&str] = &[
    "boolean",
    "tinyint",
    "smallint",
    "integer",
    "bigint",
    "float",
    "real",
    "double",
    "decimal",
    "varchar",
    "date",
    "timestamp",
    "timestamptz",
    "time",
    "blob",
    "json",
    "uuid",
];

/// The most digits of a decimal.
pub(crate) const DECIMAL_DIGITS_MAX: u8 = 38;

/// What a decimal without digits given is read as: 29 digits before the point and 9 after it.
pub(crate) const DECIMAL_DEFAULT: DataType = DataType::Decimal128(38, 9);

/// A column's type as a header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnType {
    /// What Arrow calls it. Times are microseconds; `timestamptz` has the zone `UTC`.
    pub data_type: DataType,
    /// True for `json`, which Arrow holds as text.
    pub json: bool,
}

impl ColumnType {
    fn plain(data_type: DataType) -> Self {
        Self { data_type, json: false }
    }
}

/// Reads a type as headers write it: `bigint`, `decimal(10,2)`, `varchar`, `bigint[]`, in any case.
///
/// Errors: `UnknownType`, with a near miss.
pub fn parse(name: &str) -> Result<ColumnType> {
    let text = name.trim().to_ascii_lowercase();
    if let Some(element) = text.strip_suffix("[]") {
        let element = parse(element)?;
        let field = Field::new_list_field(element.data_type, true);
        return Ok(ColumnType::plain(DataType::List(Arc::new(field))));
    }
    let unknown = || {
        let word = text.split('(').next().unwrap_or_default();
        Error::UnknownType { name: name.to_owned(), nearest: nearest(word, NAMES.iter().copied()).map(str::to_owned) }
    };
    let (word, digits) = split_digits(&text).ok_or_else(unknown)?;
    let data_type = match (word, digits.as_slice()) {
        ("boolean" | "bool", []) => DataType::Boolean,
        ("tinyint", []) => DataType::Int8,
        ("smallint", []) => DataType::Int16,
        ("integer" | "int", []) => DataType::Int32,
        ("bigint", []) => DataType::Int64,
        ("float" | "real", []) => DataType::Float32,
        ("double" | "double precision", []) => DataType::Float64,
        ("decimal" | "numeric", []) => DECIMAL_DEFAULT,
        ("decimal" | "numeric", [p]) => decimal(*p, 0).ok_or_else(unknown)?,
        ("decimal" | "numeric", [p, s]) => decimal(*p, *s).ok_or_else(unknown)?,
        ("varchar" | "text" | "string" | "uuid", []) | ("varchar", [_]) => DataType::Utf8,
        ("date", []) => DataType::Date32,
        ("timestamp", []) => TIMESTAMP,
        ("timestamptz" | "timestamp with time zone", []) => timestamptz(),
        ("time", []) => DataType::Time64(TimeUnit::Microsecond),
        ("blob" | "bytea" | "varbinary", []) => DataType::Binary,
        ("json", []) => return Ok(ColumnType { data_type: DataType::Utf8, json: true }),
        _ => return Err(unknown()),
    };
    Ok(ColumnType::plain(data_type))
}

/// Writes a type as headers write it.
pub fn name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 => "tinyint".to_owned(),
        DataType::Int16 => "smallint".to_owned(),
        DataType::Int32 => "integer".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Float32 => "real".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Decimal128(p, s) => format!("decimal({p},{s})"),
        DataType::Utf8 => "varchar".to_owned(),
        DataType::Binary => "blob".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Timestamp(_, None) => "timestamp".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".to_owned(),
        DataType::Time64(_) => "time".to_owned(),
        DataType::List(field) => format!("{}[]", name(field.data_type())),
        other => other.to_string(),
    }
}

/// Times without a zone.
pub(crate) const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// Instants.
pub(crate) fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// A list whose elements may be null.
pub(crate) fn list(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(element, true)))
}

/// A decimal of `digits` digits, `scale` of them after the point; none when Arrow's 128 bits cannot hold it.
pub(crate) fn decimal(digits: i64, scale: i64) -> Option<DataType> {
    let digits = u8::try_from(digits).ok().filter(|p| (1..=DECIMAL_DIGITS_MAX).contains(p))?;
    let scale = i8::try_from(scale).ok().filter(|s| *s >= 0 && i16::from(*s) <= i16::from(digits))?;
    Some(DataType::Decimal128(digits, scale))
}

/// Splits `decimal(10, 2)` into `decimal` and its numbers; none when the brackets or numbers are not right.
pub(crate) fn split_digits(text: &str) -> Option<(&str, Vec<i64>)> {
    let Some((word, rest)) = text.split_once('(') else { return Some((text.trim(), Vec::new())) };
    let inside = rest.trim_end().strip_suffix(')')?;
    let digits = inside.split(',').map(|n| n.trim().parse().ok()).collect::<Option<Vec<i64>>>()?;
    Some((word.trim(), digits))
}

#[cfg(test)]
mod tests {
    use headworks_domain::Fault;

    use super::*;

    #[test]
    fn names_are_types() {
        for (text, expected) in [
            ("bigint", DataType::Int64),
            (" Decimal(10, 2) ", DataType::Decimal128(10, 2)),
            ("decimal(5)", DataType::Decimal128(5, 0)),
            ("varchar(20)", DataType::Utf8),
            ("uuid", DataType::Utf8),
            ("timestamptz", timestamptz()),
            ("bigint[]", list(DataType::Int64)),
        ] {
            assert_eq!(parse(text).unwrap().data_type, expected, "{text}");
        }
        assert!(parse("json").unwrap().json);
        for bad in ["", "decimal(39,2)", "decimal(4,-2)", "decimal(4,5)", "decimal(", "decimal(x)", "bigint(3)", "[]"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("bigit").unwrap_err().hint().unwrap(), "did you mean `bigint`?");
    }

    #[test]
    fn names_round_trip() {
        for text in NAMES.iter().filter(|n| !["json", "uuid", "float", "decimal"].contains(n)) {
            assert_eq!(name(&parse(text).unwrap().data_type), **text);
        }
    }
}
