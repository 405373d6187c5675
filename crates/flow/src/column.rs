//! Column types as headers write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A column's type in the words of SQL; the runner maps it to Arrow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ColumnType {
    /// True or false.
    Boolean,
    /// 8 bits.
    TinyInt,
    /// 16 bits.
    SmallInt,
    /// 32 bits.
    Integer,
    /// 64 bits.
    BigInt,
    /// 8 bits without sign.
    UTinyInt,
    /// 16 bits without sign.
    USmallInt,
    /// 32 bits without sign.
    UInteger,
    /// 64 bits without sign.
    UBigInt,
    /// 32-bit floating point.
    Float,
    /// 64-bit floating point.
    Double,
    /// Exact numbers: digits in all (1 to 38), digits after the point.
    Decimal(u8, u8),
    /// Text of any length.
    Varchar,
    /// A day.
    Date,
    /// A moment of some wall clock, in microseconds.
    Timestamp,
    /// An instant, in microseconds.
    TimestampTz,
    /// A time of day, in microseconds.
    Time,
    /// Bytes.
    Blob,
    /// JSON text.
    Json,
    /// A UUID.
    Uuid,
    /// A list of values of one type.
    List(Box<ColumnType>),
}

/// Every name and what it means; the first name of a type is its own, the others are other databases' names for it.
const NAMES: [(&str, ColumnType); 42] = [
    ("boolean", ColumnType::Boolean),
    ("bool", ColumnType::Boolean),
    ("tinyint", ColumnType::TinyInt),
    ("int1", ColumnType::TinyInt),
    ("smallint", ColumnType::SmallInt),
    ("int2", ColumnType::SmallInt),
    ("integer", ColumnType::Integer),
    ("int", ColumnType::Integer),
    ("int4", ColumnType::Integer),
    ("bigint", ColumnType::BigInt),
    ("int8", ColumnType::BigInt),
    ("long", ColumnType::BigInt),
    ("utinyint", ColumnType::UTinyInt),
    ("usmallint", ColumnType::USmallInt),
    ("uinteger", ColumnType::UInteger),
    ("ubigint", ColumnType::UBigInt),
    ("float", ColumnType::Float),
    ("real", ColumnType::Float),
    ("float4", ColumnType::Float),
    ("double", ColumnType::Double),
    ("float8", ColumnType::Double),
    ("double precision", ColumnType::Double),
    ("decimal", ColumnType::Decimal(18, 3)),
    ("numeric", ColumnType::Decimal(18, 3)),
    ("varchar", ColumnType::Varchar),
    ("text", ColumnType::Varchar),
    ("string", ColumnType::Varchar),
    ("char", ColumnType::Varchar),
    ("date", ColumnType::Date),
    ("timestamp", ColumnType::Timestamp),
    ("datetime", ColumnType::Timestamp),
    ("timestamp without time zone", ColumnType::Timestamp),
    ("timestamptz", ColumnType::TimestampTz),
    ("timestamp with time zone", ColumnType::TimestampTz),
    ("time", ColumnType::Time),
    ("blob", ColumnType::Blob),
    ("bytea", ColumnType::Blob),
    ("binary", ColumnType::Blob),
    ("varbinary", ColumnType::Blob),
    ("json", ColumnType::Json),
    ("jsonb", ColumnType::Json),
    ("uuid", ColumnType::Uuid),
];

/// How deep lists may nest.
const LIST_DEPTH_MAX: usize = 8;

/// Says why a text is not a column type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnTypeError {
    /// No type has that name.
    #[error("`{0}` is not a column type")]
    Unknown(String),
    /// Digits out of range.
    #[error("`{0}` does not fit: a decimal has 1 to 38 digits, of which at most all stand after the point")]
    Digits(String),
    /// Lists of lists of lists...
    #[error("`{0}` nests more than 8 lists")]
    Depth(String),
}

impl ColumnTypeError {
    /// The type that was most likely meant, or the list of all.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown(text) => {
                let base = text.trim_end_matches("[]").split('(').next().unwrap_or_default().trim();
                match headworks_domain::nearest(base, NAMES.iter().map(|(name, _)| *name)) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => "the types are boolean, tinyint, smallint, integer, bigint, float, double, decimal(p,s), varchar, date, \
                             timestamp, timestamptz, time, blob, json, uuid, unsigned ones as ubigint, and lists as bigint[]"
                        .to_owned(),
                }
            }
            Self::Digits(_) => "write it as `decimal(12,2)`: 12 digits, 2 of them after the point".to_owned(),
            Self::Depth(_) => "keep such a value as `json`".to_owned(),
        }
    }
}

impl FromStr for ColumnType {
    type Err = ColumnTypeError;

    fn from_str(s: &str) -> Result<Self, ColumnTypeError> {
        let mut base = s.trim();
        let mut depth = 0;
        while let Some(item) = base.strip_suffix("[]") {
            base = item.trim_end();
            depth += 1;
        }
        if depth > LIST_DEPTH_MAX {
            return Err(ColumnTypeError::Depth(s.to_owned()));
        }
        let unknown = || ColumnTypeError::Unknown(s.to_owned());
        let lower = base.to_lowercase();
        let (name, arguments) = match lower.split_once('(') {
            None => (lower.as_str(), None),
            Some((name, rest)) => (name.trim_end(), Some(rest.strip_suffix(')').ok_or_else(unknown)?)),
        };
        let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
        let plain = NAMES.iter().find(|(n, _)| *n == name).map(|(_, t)| t.clone()).ok_or_else(unknown)?;
        let item = match (plain, arguments) {
            (plain, None) => plain,
            (Self::Decimal(..), Some(arguments)) => {
                let digits = || ColumnTypeError::Digits(s.to_owned());
                let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
                let precision: u8 = precision.trim().parse().map_err(|_| digits())?;
                let scale: u8 = scale.trim().parse().map_err(|_| digits())?;
                if !(1..=38).contains(&precision) || scale > precision {
                    return Err(digits());
                }
                Self::Decimal(precision, scale)
            }
            // The length of a text is not kept: the lake's texts have none.
            (Self::Varchar, Some(length)) if length.trim().parse::<u32>().is_ok() => Self::Varchar,
            _ => return Err(unknown()),
        };
        Ok((0..depth).fold(item, |t, _| Self::List(Box::new(t))))
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decimal(precision, scale) => write!(f, "decimal({precision},{scale})"),
            Self::List(item) => write!(f, "{item}[]"),
            other => f.write_str(NAMES.iter().find(|(_, t)| t == other).map_or("unknown", |(name, _)| name)),
        }
    }
}

impl TryFrom<String> for ColumnType {
    type Error = ColumnTypeError;

    fn try_from(s: String) -> Result<Self, ColumnTypeError> {
        s.parse()
    }
}

impl From<ColumnType> for String {
    fn from(value: ColumnType) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = match text.parse::<ColumnType>() {
            Ok(column_type) => {
                assert_eq!(column_type.to_string().parse(), Ok(column_type.clone()));
                column_type.to_string()
            }
            Err(error) => format!("{error}; {}", error.hint()),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn types_are_read() {
        check("BIGINT", "bigint");
        check("int8[]", "bigint[]");
        check("text[][]", "varchar[][]");
        check("varchar(20)", "varchar");
        check("Decimal( 12 , 2 )", "decimal(12,2)");
        check("numeric(10)", "decimal(10,0)");
        check("timestamp  with time zone", "timestamptz");
        check("double precision", "double");
    }

    #[test]
    fn others_are_refused() {
        check("bigin", "`bigin` is not a column type; did you mean `bigint`?");
        check("varchra", "`varchra` is not a column type; did you mean `varchar`?");
        check("bigint(4)", "`bigint(4)` is not a column type; did you mean `bigint`?");
        assert!("decimal(39,2)".parse::<ColumnType>().is_err());
        assert!("decimal(2,3)".parse::<ColumnType>().is_err());
        assert!("decimal(12".parse::<ColumnType>().is_err());
        assert!("int[][][][][][][][][]".parse::<ColumnType>().is_err());
        assert!("".parse::<ColumnType>().is_err());
    }
}
