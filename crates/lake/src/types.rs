//! DuckLake's types in Arrow, and its texts of values.
//!
//! | DuckLake | Arrow | in the files |
//! |---|---|---|
//! | `boolean` | Boolean | BOOLEAN |
//! | `int8` .. `int64`, `uint8` .. `uint64` | Int8 .. UInt64 | INT32, INT64 |
//! | `int128`, `uint128` | Decimal128(38, 0) | DOUBLE: DuckDB keeps 53 bits of them |
//! | `float32`, `float64` | Float32, Float64 | FLOAT, DOUBLE |
//! | `decimal(p,s)` | Decimal128(p, s) | INT32, INT64, FIXED |
//! | `varchar`, `json` | Utf8 | BYTE_ARRAY |
//! | `blob` | Binary | BYTE_ARRAY |
//! | `uuid` | Utf8, the usual text | FIXED(16) with logical type UUID |
//! | `date`, `time` | Date32, Time64(us) | INT32, INT64 |
//! | `timestamp`, `_s`, `_ms`, `_ns` | Timestamp(us, s, ms, ns) | INT64, us for all but `_ns` |
//! | `timestamptz` | Timestamp(us, "UTC") | INT64 |
//! | `list`, `struct`, `map` | List, Struct, Map | LIST, group, MAP |
//!
//! `interval`, `timetz`, `bit`, `variant` and `geometry` have no faithful reading in parquet-rs and are refused.

mod nested;
mod text;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit};

use crate::table::{Column, FIELD_ID};
pub(crate) use nested::{Node, array, node};
pub(crate) use text::{partition_text, scalar, statistic, statistic_text};

/// The Arrow type of a catalog type; `children` are the parts of a nested one. `None` when it is unknown or not supported.
pub(crate) fn data_type(ducklake_type: &str, children: &[Column]) -> Option<DataType> {
    let child = |name: &str| children.iter().find(|c| c.name == name).or(children.first());
    Some(match ducklake_type {
        "boolean" => DataType::Boolean,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "int128" | "uint128" => DataType::Decimal128(38, 0),
        "float32" => DataType::Float32,
        "float64" => DataType::Float64,
        "varchar" | "json" | "uuid" => DataType::Utf8,
        "blob" => DataType::Binary,
        "date" => DataType::Date32,
        "time" => DataType::Time64(TimeUnit::Microsecond),
        "timestamp" | "timestamp_us" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamp_s" => DataType::Timestamp(TimeUnit::Second, None),
        "timestamp_ms" => DataType::Timestamp(TimeUnit::Millisecond, None),
        "timestamp_ns" => DataType::Timestamp(TimeUnit::Nanosecond, None),
        "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        "list" => DataType::List(Arc::new(part_field(child("element")?))),
        "struct" if !children.is_empty() => DataType::Struct(children.iter().map(part_field).collect()),
        "map" if children.len() == 2 => map(children[0].data_type.clone(), part_field(&children[1])),
        other => decimal(other)?,
    })
}

/// A part of a nested column. It may always be null: DuckDB says otherwise of fields added to a struct, and then writes nulls.
fn part_field(column: &Column) -> Field {
    column.field().with_nullable(true)
}

fn decimal(text: &str) -> Option<DataType> {
    let (precision, scale) = text.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    ((1..=38).contains(&precision) && (0..=38).contains(&scale)).then_some(DataType::Decimal128(precision, scale))
}

fn map(key: DataType, value: Field) -> DataType {
    let fields = Fields::from(vec![Field::new("key", key, false), value.with_name("value")]);
    DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(fields), false)), false)
}

/// A type as the catalog writes it: its text, and the parts of a nested one, each a row of `ducklake_column` of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypeTree {
    /// `int64`, `decimal(12,2)`, `list`.
    pub ducklake_type: String,
    /// Name, nullability and type of each part: `element`; `key` and `value`; a struct's fields.
    pub children: Vec<(String, bool, TypeTree)>,
}

/// The catalog type that stores an Arrow type. `None` when there is none: intervals, unions, decimals of more than 38 digits.
pub(crate) fn tree(data_type: &DataType) -> Option<TypeTree> {
    let leaf = |text: &str| TypeTree { ducklake_type: text.to_owned(), children: Vec::new() };
    Some(match data_type {
        DataType::Boolean => leaf("boolean"),
        DataType::Int8 => leaf("int8"),
        DataType::Int16 => leaf("int16"),
        DataType::Int32 => leaf("int32"),
        DataType::Int64 => leaf("int64"),
        DataType::UInt8 => leaf("uint8"),
        DataType::UInt16 => leaf("uint16"),
        DataType::UInt32 => leaf("uint32"),
        DataType::UInt64 => leaf("uint64"),
        DataType::Float16 | DataType::Float32 => leaf("float32"),
        DataType::Float64 => leaf("float64"),
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s)
            if *p <= 38 && *s >= 0 =>
        {
            leaf(&format!("decimal({p},{s})"))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => leaf("varchar"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => leaf("blob"),
        DataType::Date32 | DataType::Date64 => leaf("date"),
        DataType::Time32(_) | DataType::Time64(_) => leaf("time"),
        DataType::Timestamp(_, Some(_)) => leaf("timestamptz"),
        DataType::Timestamp(TimeUnit::Second, None) => leaf("timestamp_s"),
        DataType::Timestamp(TimeUnit::Millisecond, None) => leaf("timestamp_ms"),
        DataType::Timestamp(TimeUnit::Microsecond, None) => leaf("timestamp"),
        DataType::Timestamp(TimeUnit::Nanosecond, None) => leaf("timestamp_ns"),
        DataType::Dictionary(_, values) => tree(values)?,
        DataType::RunEndEncoded(_, values) => tree(values.data_type())?,
        DataType::List(e)
        | DataType::LargeList(e)
        | DataType::ListView(e)
        | DataType::LargeListView(e)
        | DataType::FixedSizeList(e, _) => part("list", [("element".to_owned(), e)])?,
        DataType::Struct(fields) if !fields.is_empty() => part("struct", fields.iter().map(|f| (f.name().clone(), f)))?,
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) if kv.len() == 2 => {
                part("map", [("key".to_owned(), &kv[0]), ("value".to_owned(), &kv[1])])?
            }
            _ => return None,
        },
        _ => return None,
    })
}

fn part<'a>(text: &str, fields: impl IntoIterator<Item = (String, &'a FieldRef)>) -> Option<TypeTree> {
    let children = fields.into_iter().map(|(name, f)| Some((name, f.is_nullable(), tree(f.data_type())?)));
    Some(TypeTree { ducklake_type: text.to_owned(), children: children.collect::<Option<_>>()? })
}

/// The one Arrow type in which the lake keeps an Arrow type: `Utf8View` as `Utf8`, any list as `List` of `element`, times in
/// microseconds, zones as UTC. `None` as for [`tree`].
pub(crate) fn normal(data_type: &DataType) -> Option<DataType> {
    let tree = tree(data_type)?;
    Some(tree.data_type())
}

impl TypeTree {
    fn data_type(&self) -> DataType {
        let columns = self.children.iter().map(|(name, nullable, tree)| Column {
            id: 0,
            name: name.clone(),
            data_type: tree.data_type(),
            ducklake_type: tree.ducklake_type.clone(),
            nullable: *nullable,
            comment: None,
            initial_default: None,
            children: Vec::new(),
        });
        data_type(&self.ducklake_type, &columns.collect::<Vec<_>>())
            .expect("`tree` writes types that `data_type` knows")
    }
}

/// A column as a field of the Parquet files to write: with field ids on it and on all its parts.
pub(crate) fn file_field(column: &Column) -> Field {
    let id = [(FIELD_ID.to_owned(), column.id.to_string())].into();
    let part = |c: &Column| Arc::new(file_field(c).with_nullable(true));
    let data_type = match (&column.data_type, column.children.as_slice()) {
        (DataType::List(_), [element]) => DataType::List(part(element)),
        (DataType::Struct(_), fields) => DataType::Struct(fields.iter().map(part).collect()),
        (DataType::Map(entries, sorted), [key, value]) => {
            let fields = Fields::from(vec![Arc::new(file_field(key).with_nullable(false)), part(value)]);
            DataType::Map(Arc::new(entries.as_ref().clone().with_data_type(DataType::Struct(fields))), *sorted)
        }
        (other, _) => other.clone(),
    };
    Field::new(&column.name, data_type, column.nullable).with_metadata(id)
}

/// The type in which queries read a column: as stored, but whole texts and blobs as views, which Parquet gives without a copy,
/// and nullable, since a file may hold what the catalog rules out.
pub(crate) fn read_field(column: &Column) -> Field {
    let field = column.field().with_nullable(true);
    match field.data_type() {
        DataType::Utf8 => field.with_data_type(DataType::Utf8View),
        DataType::Binary => field.with_data_type(DataType::BinaryView),
        _ => field,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_type_comes_back_the_same() {
        let list = |t| DataType::List(Arc::new(Field::new("element", t, true)));
        let object = DataType::Struct(Fields::from(vec![
            Field::new("a", DataType::Int32, true),
            Field::new("b c", list(DataType::Utf8), true),
        ]));
        for stored in [
            DataType::Boolean,
            DataType::Int8,
            DataType::UInt64,
            DataType::Float32,
            DataType::Decimal128(12, 2),
            DataType::Utf8,
            DataType::Binary,
            DataType::Date32,
            DataType::Time64(TimeUnit::Microsecond),
            DataType::Timestamp(TimeUnit::Second, None),
            DataType::Timestamp(TimeUnit::Millisecond, None),
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Timestamp(TimeUnit::Nanosecond, None),
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            list(list(DataType::Int64)),
            object.clone(),
            map(DataType::Utf8, Field::new("value", object, true)),
        ] {
            assert_eq!(normal(&stored).as_ref(), Some(&stored));
        }
    }

    #[test]
    fn other_types_have_a_normal_form_or_none() {
        let check = |given: DataType, expected: Option<DataType>| assert_eq!(normal(&given), expected, "{given}");
        check(DataType::Utf8View, Some(DataType::Utf8));
        check(DataType::FixedSizeBinary(16), Some(DataType::Binary));
        check(DataType::Date64, Some(DataType::Date32));
        check(DataType::Time32(TimeUnit::Second), Some(DataType::Time64(TimeUnit::Microsecond)));
        check(
            DataType::Timestamp(TimeUnit::Nanosecond, Some("+02:00".into())),
            Some(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        );
        check(DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)), Some(DataType::Utf8));
        check(DataType::Null, None);
        check(DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano), None);
        check(DataType::Decimal256(50, 2), None);
    }

    #[test]
    fn catalog_types_without_a_faithful_reading_are_refused() {
        for text in ["interval", "timetz", "bit", "variant", "geometry", "decimal(39,2)", "decimal(1)", "struct", ""] {
            assert_eq!(data_type(text, &[]), None, "{text}");
        }
    }
}
