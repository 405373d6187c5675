use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use datafusion::{
    error::Result,
    logical_expr::planner::TypePlanner,
    sql::sqlparser::ast::{DataType as SqlType, TimezoneInfo},
};

/// The name that a type has in SQL, as `bigint`, `timestamptz`, `bigint[]`; the same words that job headers use.
pub fn sql_type_name(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Null => "null",
        DataType::Boolean => "boolean",
        DataType::Int8 => "tinyint",
        DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        DataType::UInt8 => "utinyint",
        DataType::UInt16 => "usmallint",
        DataType::UInt32 => "uinteger",
        DataType::UInt64 => "ubigint",
        DataType::Float16 | DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "varchar",
        DataType::FixedSizeBinary(16) => "uuid",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => "blob",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Timestamp(unit, None) => match unit {
            TimeUnit::Second => "timestamp_s",
            TimeUnit::Millisecond => "timestamp_ms",
            TimeUnit::Microsecond => "timestamp",
            TimeUnit::Nanosecond => "timestamp_ns",
        },
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        DataType::Interval(IntervalUnit::YearMonth | IntervalUnit::DayTime | IntervalUnit::MonthDayNano) => "interval",
        DataType::Duration(_) => "interval",
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => {
            return format!("decimal({p},{s})");
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => return format!("{}[]", sql_type_name(item.data_type())),
        DataType::Struct(fields) => {
            let parts: Vec<String> = fields
                .iter()
                .map(|f| format!("\"{}\" {}", f.name().replace('"', "\"\""), sql_type_name(f.data_type())))
                .collect();
            return format!("struct({})", parts.join(", "));
        }
        DataType::Map(entries, _) => {
            return match entries.data_type() {
                DataType::Struct(fields) if fields.len() == 2 => {
                    format!("map({}, {})", sql_type_name(fields[0].data_type()), sql_type_name(fields[1].data_type()))
                }
                _ => "map".to_owned(),
            };
        }
        DataType::Dictionary(_, value) => return sql_type_name(value),
        DataType::RunEndEncoded(_, value) => return sql_type_name(value.data_type()),
        other => return other.to_string().to_lowercase(),
    };
    name.to_owned()
}

/// `time` as lakes keep it, in microseconds; DataFusion's own has nanoseconds, and compares with no other.
#[derive(Debug)]
pub(crate) struct Times;

impl TypePlanner for Times {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        Ok(match sql_type {
            SqlType::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
                Some(Arc::new(Field::new("", DataType::Time64(TimeUnit::Microsecond), true)))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn types_have_sql_names() {
        let check = |data_type: DataType, expected: &str| assert_eq!(sql_type_name(&data_type), expected);
        check(DataType::Int64, "bigint");
        check(DataType::Decimal128(12, 2), "decimal(12,2)");
        check(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), "timestamptz");
        check(DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true))), "varchar[]");
        check(DataType::Struct(vec![Field::new("a", DataType::Date32, true)].into()), "struct(\"a\" date)");
    }
}
