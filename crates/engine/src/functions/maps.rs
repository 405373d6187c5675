//! Maps made of what `array_agg` gathered.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, MapArray, StructArray, UInt32Array},
    buffer::{NullBuffer, OffsetBuffer},
    compute::take,
    datatypes::{DataType, Field, Fields},
    row::{OwnedRow, RowConverter, SortField},
};
use datafusion::{common::plan_err, error::Result, logical_expr::ScalarUDF};

use super::own::Own;

/// What `map_agg` and `histogram` end in.
pub(super) fn udfs() -> Vec<ScalarUDF> {
    vec![Own::udf("map_of_pairs", &[], pairs_types, of_pairs), Own::udf("map_of_counts", &[], counts_types, of_counts)]
}

fn map_type(key: &DataType, value: &DataType) -> DataType {
    let fields = Fields::from(vec![Field::new("key", key.clone(), false), Field::new("value", value.clone(), true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(fields), false)), false)
}

fn pairs_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    if let [DataType::List(item)] = given
        && let DataType::Struct(parts) = item.data_type()
        && let [key, value] = parts.iter().as_slice()
    {
        return Ok((given.to_vec(), map_type(key.data_type(), value.data_type())));
    }
    plan_err!("`{name}` takes a list of keys and values")
}

fn counts_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    match given {
        [DataType::List(item)] => Ok((given.to_vec(), map_type(item.data_type(), &DataType::Int64))),
        _ => plan_err!("`{name}` takes a list"),
    }
}

/// The different keys of each row's list: where each was last and how often it was there. Null is no key.
struct Distinct {
    last: Vec<u32>,
    counts: Vec<i64>,
    lengths: Vec<usize>,
}

fn distinct(lists: &ArrayRef, keys: &ArrayRef, rows: usize) -> Result<Distinct> {
    let offsets = lists.as_list::<i32>().value_offsets();
    let converter = RowConverter::new(vec![SortField::new(keys.data_type().clone())])?;
    let compared = converter.convert_columns(&[Arc::clone(keys)])?;
    let mut found = Distinct { last: Vec::new(), counts: Vec::new(), lengths: Vec::with_capacity(rows) };
    let nulls = keys.logical_nulls();
    let mut seen: HashMap<OwnedRow, usize> = HashMap::new();
    for row in 0..rows {
        let before = found.last.len();
        seen.clear();
        let items = if lists.is_valid(row) { offsets[row]..offsets[row + 1] } else { 0..0 };
        for item in items {
            #[allow(clippy::cast_sign_loss, reason = "offsets are not below zero")]
            let at = item as u32;
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(at as usize)) {
                continue;
            }
            let place = *seen.entry(compared.row(at as usize).owned()).or_insert(found.last.len());
            if place == found.last.len() {
                found.last.push(at);
                found.counts.push(1);
            } else {
                found.last[place] = at;
                found.counts[place] += 1;
            }
        }
        found.lengths.push(found.last.len() - before);
    }
    Ok(found)
}

fn map(lists: &ArrayRef, keys: ArrayRef, values: ArrayRef, lengths: Vec<usize>, gives: &DataType) -> Result<ArrayRef> {
    let DataType::Map(entries, is_sorted) = gives else { return plan_err!("a map was expected, not {gives}") };
    let DataType::Struct(fields) = entries.data_type() else { return plan_err!("a map has entries") };
    let pairs = StructArray::try_new(fields.clone(), vec![keys, values], None)?;
    let nulls = lists.nulls().map(|nulls| NullBuffer::new(nulls.inner().clone()));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(MapArray::try_new(Arc::clone(entries), offsets, pairs, nulls, *is_sorted)?))
}

fn of_pairs(args: &[ArrayRef], rows: usize, gives: &DataType) -> Result<ArrayRef> {
    let pairs = args[0].as_list::<i32>().values().as_struct();
    let found = distinct(&args[0], pairs.column(0), rows)?;
    let last = UInt32Array::from(found.last);
    let (keys, values) = (take(pairs.column(0), &last, None)?, take(pairs.column(1), &last, None)?);
    map(&args[0], keys, values, found.lengths, gives)
}

fn of_counts(args: &[ArrayRef], rows: usize, gives: &DataType) -> Result<ArrayRef> {
    let items = args[0].as_list::<i32>().values();
    let found = distinct(&args[0], items, rows)?;
    let keys = take(items, &UInt32Array::from(found.last), None)?;
    map(&args[0], keys, Arc::new(Int64Array::from(found.counts)), found.lengths, gives)
}
