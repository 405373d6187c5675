//! Arrow's many types into the few of the lake, exactly or not at all.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, RecordBatchOptions, new_null_array},
    compute::{CastOptions, cast_with_options},
    datatypes::{
        DataType, Date64Type, Field, Schema, SchemaRef, Time64NanosecondType, TimeUnit, TimestampNanosecondType,
    },
};

use crate::{
    error::{Error, Result},
    parse, types,
};

/// The schema that batches of this one are brought to. Errors: `FileUnsupported` for a type that the lake has no place for.
pub(super) fn conform_schema(schema: &Schema, file: &str) -> Result<Schema> {
    let fields = schema
        .fields()
        .iter()
        .map(|field| match conform_type(field.data_type()) {
            Some(data_type) => Ok(Field::new(field.name(), data_type, true)),
            None => Err(Error::FileUnsupported {
                file: file.to_owned(),
                reason: format!(
                    "column `{}` has the type {}, which no table can hold",
                    field.name(),
                    field.data_type()
                ),
                hint: "write the file without it, or with another type".to_owned(),
            }),
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Schema::new(fields))
}

/// The lake's type that holds every value of a type, or nearly every one and then fails on the others.
fn conform_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Null | DataType::LargeUtf8 | DataType::Utf8View | DataType::Utf8 => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Decimal128(..) => match data_type {
            DataType::Decimal128(digits, scale) if *scale < 0 => {
                types::decimal(i64::from(*digits) - i64::from(*scale), 0)?
            }
            other => other.clone(),
        },
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => conform_type(&DataType::Decimal128(*p, *s))?,
        DataType::Decimal256(_, scale) => {
            DataType::Decimal128(types::DECIMAL_DIGITS_MAX, (0..=38).contains(scale).then_some(*scale)?)
        }
        DataType::Timestamp(_, None) => types::TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => types::timestamptz(),
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Dictionary(_, values) => conform_type(values)?,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _) => types::list(conform_type(field.data_type())?),
        DataType::Struct(_) | DataType::Map(..) => data_type.clone(),
        _ => return None,
    })
}

/// Brings a batch to the lake's types. Errors: the reason, naming the column.
pub(crate) fn conform_batch(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, String> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    if batch.num_columns() != schema.fields().len() {
        return Err(format!("a batch has {} columns instead of {}", batch.num_columns(), schema.fields().len()));
    }
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(array, field)| conform(array, field.data_type()).map_err(|e| format!("column `{}`: {e}", field.name())))
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(|e| e.to_string())
}

fn conform(array: &ArrayRef, target: &DataType) -> Result<ArrayRef, String> {
    if array.data_type() == target {
        return Ok(array.clone());
    }
    // Arrow's cast cuts these off in silence.
    let cut = match array.data_type() {
        DataType::Null => return Ok(new_null_array(target, array.len())),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => array
            .as_primitive::<TimestampNanosecondType>()
            .iter()
            .flatten()
            .any(|v| v % 1000 != 0)
            .then_some("a time finer than microseconds"),
        DataType::Time64(TimeUnit::Nanosecond) => array
            .as_primitive::<Time64NanosecondType>()
            .iter()
            .flatten()
            .any(|v| v % 1000 != 0)
            .then_some("a time finer than microseconds"),
        DataType::Date64 => array
            .as_primitive::<Date64Type>()
            .iter()
            .flatten()
            .any(|v| v % (parse::DAY_SECS * 1000) != 0)
            .then_some("a day with a time in it"),
        _ => None,
    };
    if let Some(cut) = cut {
        return Err(format!("it has {cut}"));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let cast = |array: &ArrayRef, to: &DataType| cast_with_options(array, to, &options).map_err(|e| e.to_string());
    if let DataType::List(field) = target {
        // The elements are looked at too, one type after the other: list first, then what is in it.
        let inner = match array.data_type() {
            DataType::List(f)
            | DataType::LargeList(f)
            | DataType::ListView(f)
            | DataType::LargeListView(f)
            | DataType::FixedSizeList(f, _) => f.data_type().clone(),
            other => return Err(format!("{other} is not a list")),
        };
        let list = cast(array, &types::list(inner))?;
        let list: &ListArray = list.as_list();
        let values = conform(list.values(), field.data_type())?;
        let list = ListArray::try_new(field.clone(), list.offsets().clone(), values, list.nulls().cloned());
        return Ok(Arc::new(list.map_err(|e| e.to_string())?));
    }
    if let DataType::Dictionary(_, values) = array.data_type() {
        return conform(&cast(array, values)?, target);
    }
    cast(array, target)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Date64Array, DictionaryArray, Int32Array, LargeListArray, StringArray, TimestampNanosecondArray, UInt64Array,
    };
    use arrow::datatypes::{Int32Type, UInt32Type};

    use super::*;

    fn check(array: impl Array + 'static, expected: Option<DataType>) {
        let array: ArrayRef = Arc::new(array);
        let target = conform_type(array.data_type()).unwrap();
        let got = conform(&array, &target).ok();
        assert_eq!(got.as_ref().map(|a| a.data_type().clone()), expected, "{}", array.data_type());
        assert!(got.is_none_or(|a| a.len() == array.len()));
    }

    #[test]
    fn types_of_the_lake_hold_others_exactly() {
        check(UInt64Array::from(vec![Some(u64::MAX), None]), Some(DataType::Decimal128(20, 0)));
        check(TimestampNanosecondArray::from(vec![1000, 2000]), Some(types::TIMESTAMP));
        check(TimestampNanosecondArray::from(vec![1001]), None);
        check(TimestampNanosecondArray::from(vec![0]).with_timezone("+05:00"), Some(types::timestamptz()));
        check(Date64Array::from(vec![86_400_000]), Some(DataType::Date32));
        check(Date64Array::from(vec![86_400_001]), None);
        check(vec!["a", "b"].into_iter().collect::<DictionaryArray<Int32Type>>(), Some(DataType::Utf8));
        check(
            LargeListArray::from_iter_primitive::<UInt32Type, _, _>([Some(vec![Some(1), None]), None]),
            Some(types::list(DataType::Int64)),
        );
        check(StringArray::from(vec!["x"]), Some(DataType::Utf8));
        check(Int32Array::from(vec![1]), Some(DataType::Int32));
        assert_eq!(conform_type(&DataType::Duration(TimeUnit::Second)), None);
    }
}
