//! How each type of PostgreSQL is asked for, arrives and is kept.

use arrow::datatypes::{DataType, TimeUnit};

use crate::types::{self, ColumnType, DECIMAL_DEFAULT, DECIMAL_DIGITS_MAX, TIMESTAMP, timestamptz};

/// A column's type, domains resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PgType {
    pub(super) oid: u32,
    pub(super) name: String,
    /// `pg_type.typtype`: b(ase), c(omposite), e(num), r(ange), m(ultirange).
    pub(super) kind: String,
    pub(super) typmod: i32,
    /// The declared number of an array's dimensions; values may have others.
    pub(super) dimensions: i32,
    pub(super) element: Option<Element>,
}

/// An array's element type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) oid: u32,
    pub(super) kind: String,
    pub(super) name: String,
}

/// What a value looks like in binary COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wire {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    /// Text with blanks at its end that do not count.
    Padded,
    Bytes,
    Date,
    /// A time with or without a zone: the bytes are the same.
    Timestamp,
    Time,
    Uuid,
    /// An array of elements that have this look and OID.
    Array(Box<Wire>, u32),
}

/// How a column is read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// The expression in the query.
    pub(super) sql: String,
    pub(super) wire: Wire,
    pub(super) data_type: DataType,
    pub(super) json: bool,
}

impl Plan {
    fn new(sql: impl Into<String>, wire: Wire, data_type: DataType) -> Self {
        Self { sql: sql.into(), wire, data_type, json: false }
    }

    fn json(sql: String) -> Self {
        Self { json: true, ..Self::new(sql, Wire::Text, DataType::Utf8) }
    }
}

// OIDs of pg_type that never change: src/include/catalog/pg_type.dat
const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const NAME: u32 = 19;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const OID: u32 = 26;
const JSON: u32 = 114;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const MONEY: u32 = 790;
const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
pub(super) const DATE: u32 = 1082;
const TIME: u32 = 1083;
pub(super) const TIMESTAMP_OID: u32 = 1114;
pub(super) const TIMESTAMPTZ: u32 = 1184;
const NUMERIC: u32 = 1700;
const UUID: u32 = 2950;
const JSONB: u32 = 3802;

/// How a type arrives that is read as it comes; none for all others.
fn plain(oid: u32, typmod: i32) -> Option<(Wire, DataType)> {
    Some(match oid {
        BOOL => (Wire::Bool, DataType::Boolean),
        INT2 => (Wire::Int2, DataType::Int16),
        INT4 => (Wire::Int4, DataType::Int32),
        INT8 => (Wire::Int8, DataType::Int64),
        OID => (Wire::Oid, DataType::Int64),
        FLOAT4 => (Wire::Float4, DataType::Float32),
        FLOAT8 => (Wire::Float8, DataType::Float64),
        NUMERIC => (Wire::Numeric, numeric_type(typmod)?),
        TEXT | VARCHAR | NAME => (Wire::Text, DataType::Utf8),
        BPCHAR => (Wire::Padded, DataType::Utf8),
        BYTEA => (Wire::Bytes, DataType::Binary),
        DATE => (Wire::Date, DataType::Date32),
        TIMESTAMP_OID => (Wire::Timestamp, TIMESTAMP),
        TIMESTAMPTZ => (Wire::Timestamp, timestamptz()),
        TIME => (Wire::Time, DataType::Time64(TimeUnit::Microsecond)),
        UUID => (Wire::Uuid, DataType::Utf8),
        _ => return None,
    })
}

/// The decimal that holds every value of a numeric; none when 38 digits are too few.
fn numeric_type(typmod: i32) -> Option<DataType> {
    if typmod < 4 {
        return Some(DECIMAL_DEFAULT);
    }
    let packed = i64::from(typmod - 4);
    let digits = (packed >> 16) & 0xffff;
    // Eleven bits, the highest of which is the sign.
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    if scale < 0 {
        // numeric(4,-2) holds up to 999900.
        types::decimal(digits - scale, 0)
    } else {
        // numeric(3,5) holds up to 0.00999.
        types::decimal(digits.max(scale), scale)
    }
}

/// How a column is read when nobody says otherwise.
pub(super) fn natural(pg: &PgType, column: &str) -> Plan {
    if let Some((wire, data_type)) = plain(pg.oid, pg.typmod) {
        return Plan::new(column, wire, data_type);
    }
    match (pg.oid, pg.kind.as_str(), &pg.element) {
        // Its binary form counts the smallest unit of a currency that only the server knows.
        (MONEY, ..) => Plan::new(format!("{column}::numeric"), Wire::Numeric, DataType::Decimal128(19, 2)),
        (JSON | JSONB, ..) => Plan::json(format!("{column}::text")),
        (_, "c", _) => as_json(column),
        _ if pg.name == "hstore" => as_json(column),
        (_, _, Some(element)) => array(pg, element, column),
        (_, "e", _) => Plan::new(column, Wire::Text, DataType::Utf8),
        _ => as_text(column),
    }
}

fn as_text(column: &str) -> Plan {
    Plan::new(format!("{column}::text"), Wire::Text, DataType::Utf8)
}

fn as_json(column: &str) -> Plan {
    Plan::json(format!("to_json({column})::text"))
}

fn array(pg: &PgType, element: &Element, column: &str) -> Plan {
    if pg.dimensions > 1 || element.kind == "c" || [JSON, JSONB].contains(&element.oid) || element.name == "hstore" {
        return as_json(column);
    }
    match plain(element.oid, pg.typmod) {
        Some((wire, data_type)) => Plan::new(column, Wire::Array(Box::new(wire), element.oid), types::list(data_type)),
        None => text_array(column),
    }
}

fn text_array(column: &str) -> Plan {
    Plan::new(format!("{column}::text[]"), Wire::Array(Box::new(Wire::Text), TEXT), types::list(DataType::Utf8))
}

/// How a column is read as the type that a job wants. None when that would lose something, or makes no sense.
///
/// The server casts only where it does so exactly or fails itself; decimals and narrow integers are checked here, since
/// PostgreSQL rounds.
pub(super) fn wanted(pg: &PgType, column: &str, wanted: &ColumnType) -> Option<Plan> {
    if wanted.json {
        let text = [TEXT, VARCHAR, JSON, JSONB].contains(&pg.oid);
        return Some(if text { Plan::json(format!("{column}::text")) } else { as_json(column) });
    }
    let target = &wanted.data_type;
    let from = natural(pg, column);
    if from.data_type == *target && !from.json {
        return Some(from);
    }
    let cast = |to: &str| format!("{column}::{to}");
    let text = [TEXT, VARCHAR, BPCHAR, NAME].contains(&pg.oid);
    let integer = [INT2, INT4, INT8, OID].contains(&pg.oid);
    let float = [FLOAT4, FLOAT8].contains(&pg.oid);
    let decimal = [NUMERIC, MONEY].contains(&pg.oid);
    let (sql, wire) = match target {
        DataType::Utf8 => return Some(as_text(column)),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 if integer || text => {
            (cast("int8"), Wire::Int8)
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 if decimal => {
            (cast("numeric"), Wire::Numeric)
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 if pg.oid == BOOL => {
            (cast("int4"), Wire::Int4)
        }
        DataType::Float32 | DataType::Float64 if integer => (cast("int8"), Wire::Int8),
        // To want a double where there are decimals is to want it rounded.
        DataType::Float32 if decimal || text => (cast("float4"), Wire::Float4),
        DataType::Float64 if decimal || text => (cast("float8"), Wire::Float8),
        DataType::Float32 | DataType::Float64 if float => (cast("float8"), Wire::Float8),
        // A float's shortest text is what its writer meant.
        DataType::Decimal128(..) if float => (cast("text::numeric"), Wire::Numeric),
        DataType::Decimal128(..) if integer || decimal || text => (cast("numeric"), Wire::Numeric),
        DataType::Boolean if text => (cast("bool"), Wire::Bool),
        DataType::Boolean if integer => (cast("int8"), Wire::Int8),
        DataType::Date32 if text => (cast("date"), Wire::Date),
        DataType::Timestamp(_, None) if text || pg.oid == DATE => (cast("timestamp"), Wire::Timestamp),
        DataType::Timestamp(_, None) if pg.oid == TIMESTAMPTZ => {
            (format!("({column} AT TIME ZONE 'UTC')"), Wire::Timestamp)
        }
        DataType::Timestamp(_, Some(_)) if text => (cast("timestamptz"), Wire::Timestamp),
        DataType::Timestamp(_, Some(_)) if pg.oid == TIMESTAMP_OID => {
            (format!("({column} AT TIME ZONE 'UTC')"), Wire::Timestamp)
        }
        DataType::Time64(_) if text => (cast("time"), Wire::Time),
        DataType::Binary if text => (format!("convert_to({column}, 'UTF8')"), Wire::Bytes),
        DataType::List(field) if pg.element.is_some() => match (field.data_type(), &pg.element) {
            (DataType::Utf8, _) => return Some(text_array(column)),
            (DataType::Decimal128(..), Some(element)) if element.oid == NUMERIC => {
                (column.to_owned(), Wire::Array(Box::new(Wire::Numeric), NUMERIC))
            }
            (inner, Some(element)) => {
                let (wire, natural) = plain(element.oid, pg.typmod)?;
                if natural != *inner {
                    return None;
                }
                (column.to_owned(), Wire::Array(Box::new(wire), element.oid))
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(Plan::new(sql, wire, target.clone()))
}

const _: () = assert!(DECIMAL_DIGITS_MAX == 38);

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, typmod: i32) -> PgType {
        PgType { oid, name: "t".into(), kind: "b".into(), typmod, dimensions: 0, element: None }
    }

    fn typmod(digits: i32, scale: i32) -> i32 {
        ((digits << 16) | (scale & 0x7ff)) + 4
    }

    #[test]
    fn numerics_become_decimals_that_hold_them() {
        for (digits, scale, expected) in [
            (10, 2, Some(DataType::Decimal128(10, 2))),
            (38, 10, Some(DataType::Decimal128(38, 10))),
            (4, -2, Some(DataType::Decimal128(6, 0))),
            (3, 5, Some(DataType::Decimal128(5, 5))),
            (1000, 2, None),
            (38, -1, None),
        ] {
            assert_eq!(numeric_type(typmod(digits, scale)), expected, "numeric({digits},{scale})");
        }
        assert_eq!(numeric_type(-1), Some(DECIMAL_DEFAULT));
        assert_eq!(natural(&base(NUMERIC, typmod(1000, 2)), "\"n\"").sql, "\"n\"::text");
    }

    #[test]
    fn wanted_types_lose_nothing() {
        let want = |oid, name: &str| wanted(&base(oid, -1), "c", &types::parse(name).unwrap()).map(|p| p.sql);
        assert_eq!(want(TIMESTAMPTZ, "date"), None);
        assert_eq!(want(TIMESTAMP_OID, "date"), None);
        assert_eq!(want(NUMERIC, "decimal(10,2)").as_deref(), Some("c::numeric"));
        assert_eq!(want(FLOAT8, "decimal(10,2)").as_deref(), Some("c::text::numeric"));
        assert_eq!(want(869, "varchar").as_deref(), Some("c::text"));
        assert_eq!(want(869, "json").as_deref(), Some("to_json(c)::text"));
        assert_eq!(want(INT4, "integer").as_deref(), Some("c"));
        assert_eq!(want(INT4, "blob"), None);
    }
}
