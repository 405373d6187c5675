//! Statistics of a written file, as the catalog keeps them.

use std::collections::HashMap;

use arrow::datatypes::Schema;
use datafusion::common::ScalarValue;
use parquet::{
    arrow::{arrow_reader::statistics::StatisticsConverter, parquet_to_arrow_schema},
    file::metadata::ParquetMetaData,
};

use crate::{Result, table::Column, types, write::Floats};

/// What the catalog keeps of one column of one file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ColumnStats {
    pub column_id: i64,
    pub size_bytes: i64,
    pub value_count: i64,
    pub null_count: i64,
    pub min: Option<ScalarValue>,
    pub max: Option<ScalarValue>,
    /// `None` for columns that cannot hold NaN.
    pub contains_nan: Option<bool>,
}

/// Reads the statistics of a file's columns out of its metadata; the parts of nested columns get sizes and counts only.
///
/// `floats` has what was seen of floating point columns, for which files have no statistics.
pub(crate) fn of_file(
    metadata: &ParquetMetaData,
    columns: &[Column],
    floats: &HashMap<i64, Floats>,
) -> Result<Vec<ColumnStats>> {
    let parquet = metadata.file_metadata().schema_descr();
    let arrow: Schema = parquet_to_arrow_schema(parquet, None).map_err(|source| crate::Error::Parquet {
        doing: "read statistics of",
        table: String::new(),
        source,
    })?;
    let mut stats = Vec::with_capacity(parquet.num_columns());
    let leaves: Vec<&Column> = columns.iter().flat_map(leaves).collect();
    for (i, column) in leaves.iter().enumerate() {
        let mut one = ColumnStats {
            column_id: column.id,
            size_bytes: 0,
            value_count: 0,
            null_count: 0,
            min: None,
            max: None,
            contains_nan: floats.get(&column.id).map(|seen| seen.nan),
        };
        for group in metadata.row_groups() {
            let chunk = group.column(i);
            one.size_bytes += chunk.compressed_size();
            one.value_count += chunk.num_values();
            one.null_count +=
                chunk.statistics().and_then(|s| s.null_count_opt()).map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX));
        }
        if columns.iter().any(|c| c.id == column.id)
            && let Ok(converter) = StatisticsConverter::try_new(&column.name, &arrow, parquet)
            && let (Ok(mins), Ok(maxes)) =
                (converter.row_group_mins(metadata.row_groups()), converter.row_group_maxes(metadata.row_groups()))
        {
            one.min = extreme(&mins, std::cmp::Ordering::Less);
            one.max = extreme(&maxes, std::cmp::Ordering::Greater);
        }
        if let Some(seen) = floats.get(&column.id) {
            one.null_count = seen.nulls;
            one.min.clone_from(&seen.min);
            one.max.clone_from(&seen.max);
        }
        stats.push(one);
    }
    Ok(stats)
}

/// The least or the greatest of the values, unless one of the row groups has rows and no statistics.
fn extreme(values: &dyn arrow::array::Array, wanted: std::cmp::Ordering) -> Option<ScalarValue> {
    let mut best: Option<ScalarValue> = None;
    for i in 0..values.len() {
        let value = ScalarValue::try_from_array(values, i).ok().filter(|v| !v.is_null())?;
        if best.as_ref().is_none_or(|b| value.partial_cmp(b) == Some(wanted)) {
            best = Some(value);
        }
    }
    best
}

fn leaves(column: &Column) -> Vec<&Column> {
    if column.children.is_empty() { vec![column] } else { column.children.iter().flat_map(leaves).collect() }
}

/// The statistics of a table's column over all its files, as the catalog has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableStats {
    pub contains_null: Option<bool>,
    pub contains_nan: Option<bool>,
    pub min: Option<String>,
    pub max: Option<String>,
}

/// Widens a table's statistics by a file's. DuckDB prunes by them: too narrow and it silently drops rows.
///
/// `before` is `None` for a column without any file yet. An unknown bound stays unknown.
pub(crate) fn widen(before: Option<&TableStats>, file: &ColumnStats, column: &Column) -> TableStats {
    let all_null = file.null_count == file.value_count;
    let file_min = file.min.as_ref().and_then(types::statistic_text);
    let file_max = file.max.as_ref().and_then(types::statistic_text);
    let Some(before) = before else {
        return TableStats {
            contains_null: Some(file.null_count > 0),
            contains_nan: file.contains_nan,
            min: file_min,
            max: file_max,
        };
    };
    let bound = |old: &Option<String>, new: Option<String>, value: &Option<ScalarValue>, wanted| {
        if all_null {
            return old.clone();
        }
        let (Some(old_text), Some(new), Some(value)) = (old, new, value) else { return None };
        let known = types::statistic(old_text, &column.data_type)?;
        let value = value.cast_to(&known.data_type()).ok()?;
        Some(if value.partial_cmp(&known)? == wanted { new } else { old_text.clone() })
    };
    // A column that had only nulls so far has no bounds, which is not the same as unknown ones.
    let was_empty = before.min.is_none()
        && before.max.is_none()
        && before.contains_null == Some(true)
        && before.contains_nan != Some(true);
    TableStats {
        contains_null: before.contains_null.map(|b| b || file.null_count > 0),
        contains_nan: match (before.contains_nan, file.contains_nan) {
            (Some(a), Some(b)) => Some(a || b),
            (a, b) => a.or(b),
        },
        min: if was_empty && !all_null {
            None
        } else {
            bound(&before.min, file_min, &file.min, std::cmp::Ordering::Less)
        },
        max: if was_empty && !all_null {
            None
        } else {
            bound(&before.max, file_max, &file.max, std::cmp::Ordering::Greater)
        },
    }
}
