//! Leaves out files whose statistics in the catalog rule a filter out.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, BooleanArray, UInt64Array},
    datatypes::SchemaRef,
};
use datafusion::{
    catalog::Session,
    common::{Column as ColumnName, DFSchema, ScalarValue, pruning::PruningStatistics},
    logical_expr::{Expr, utils::conjunction},
    physical_optimizer::pruning::PruningPredicateBuilder,
};
use headworks_store::{Row, Store, Value};

use super::files::DataFile;
use crate::{Result, table::Table, types};

/// Shorter lists are left to the Parquet footers: asking the catalog costs about as much as opening them.
const FILES_MIN: usize = 16;

/// Up to this many, files are named in the question; beyond it, asking for all of the table's files is quicker.
const NAMED_MAX: usize = 500;

/// Keeps the files that may hold a matching row.
pub(super) async fn prune(
    store: &Store,
    state: &dyn Session,
    table: &Table,
    schema: &SchemaRef,
    filters: &[Expr],
    files: Vec<DataFile>,
) -> Result<Vec<DataFile>> {
    let Some(filter) = conjunction(filters.iter().cloned()).filter(|_| files.len() >= FILES_MIN) else {
        return Ok(files);
    };
    let names: HashSet<&str> = filter.column_refs().into_iter().map(|c| c.name.as_str()).collect();
    // Renamed columns keep their id; DuckDB's doubles for wide integers have no statistics anyway.
    let columns: Vec<_> =
        table.columns.iter().filter(|c| names.contains(c.name.as_str()) && !c.data_type.is_nested()).collect();
    if columns.is_empty() {
        return Ok(files);
    }
    let Ok(expr) = state.create_physical_expr(filter.clone(), &DFSchema::try_from(Arc::clone(schema))?) else {
        return Ok(files);
    };
    let Ok(predicate) = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).try_build(expr) else {
        return Ok(files);
    };
    if predicate.always_true() {
        return Ok(files);
    }

    let at: HashMap<i64, usize> = files.iter().enumerate().map(|(i, f)| (f.id, i)).collect();
    let ids: Vec<String> = columns.iter().map(|c| c.id.to_string()).collect();
    let named = if files.len() <= NAMED_MAX {
        format!(" and data_file_id in ({})", files.iter().map(|f| f.id.to_string()).collect::<Vec<_>>().join(", "))
    } else {
        String::new()
    };
    let rows = store
        .rows(
            &format!(
                "select data_file_id, column_id, min_value, max_value, null_count, value_count, contains_nan
                 from ducklake_file_column_stats where table_id = $1 and column_id in ({}){named}",
                ids.join(", ")
            ),
            &[Value::from(table.id)],
        )
        .await?;
    let mut bounds =
        Bounds { rows: files.iter().map(|f| u64::try_from(f.rows).ok()).collect(), columns: HashMap::new() };
    for column in &columns {
        let Ok(field) = schema.field_with_name(&column.name) else { continue };
        let null = ScalarValue::try_from(field.data_type())?;
        let mut one = Bound {
            min: vec![null.clone(); files.len()],
            max: vec![null; files.len()],
            nulls: vec![None; files.len()],
        };
        for row in &rows {
            if row.i64(1)? != column.id {
                continue;
            }
            let Some(at) = at.get(&row.i64(0)?) else { continue };
            one.fill(*at, row, field.data_type())?;
        }
        let columns = (
            ScalarValue::iter_to_array(one.min)?,
            ScalarValue::iter_to_array(one.max)?,
            Arc::new(UInt64Array::from(one.nulls)) as _,
        );
        bounds.columns.insert(column.name.clone(), columns);
    }
    let Ok(kept) = predicate.prune(&bounds) else { return Ok(files) };
    Ok(files.into_iter().zip(kept).filter_map(|(file, kept)| kept.then_some(file)).collect())
}

struct Bound {
    min: Vec<ScalarValue>,
    max: Vec<ScalarValue>,
    nulls: Vec<Option<u64>>,
}

impl Bound {
    fn fill(&mut self, at: usize, row: &Row, data_type: &arrow::datatypes::DataType) -> Result<()> {
        let known = |text: Option<String>| text.and_then(|t| types::statistic(&t, data_type));
        // NaN is above all numbers and below none: the minimum still holds, the maximum does not.
        let nan = data_type.is_floating() && row.opt_bool(6)?.unwrap_or(true);
        if let Some(min) = known(row.opt_text(2)?) {
            self.min[at] = min;
        }
        if let Some(max) = known(row.opt_text(3)?).filter(|_| !nan) {
            self.max[at] = max;
        }
        self.nulls[at] = row.opt_i64(4)?.and_then(|n| u64::try_from(n).ok());
        Ok(())
    }
}

struct Bounds {
    rows: UInt64Array,
    columns: HashMap<String, (ArrayRef, ArrayRef, ArrayRef)>,
}

impl PruningStatistics for Bounds {
    fn min_values(&self, column: &ColumnName) -> Option<ArrayRef> {
        self.columns.get(&column.name).map(|c| Arc::clone(&c.0))
    }

    fn max_values(&self, column: &ColumnName) -> Option<ArrayRef> {
        self.columns.get(&column.name).map(|c| Arc::clone(&c.1))
    }

    fn num_containers(&self) -> usize {
        self.rows.len()
    }

    fn null_counts(&self, column: &ColumnName) -> Option<ArrayRef> {
        self.columns.get(&column.name).map(|c| Arc::clone(&c.2))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.rows.clone()))
    }

    fn contained(&self, _: &ColumnName, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
