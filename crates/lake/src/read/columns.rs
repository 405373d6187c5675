//! Finds a table's columns in a file that was written when the table looked otherwise.
//!
//! Files carry column ids as Parquet field ids, so a file's own footer says which of its columns is which, whatever they were
//! called when it was written. The catalog's history would not do: a rewritten file keeps old names under a new snapshot.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::{
    common::{
        DataFusionError, Result, ScalarValue,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    physical_expr::{
        PhysicalExpr,
        expressions::{CastExpr, Column as ColumnExpr, lit},
    },
    physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory},
};

use super::reshape::{Reshape, ReshapeExpr};
use crate::{
    table::{Column, FIELD_ID},
    types,
};

/// Adapts expressions over a table's columns to the columns of one file.
#[derive(Debug)]
pub(super) struct ByFieldId {
    pub columns: Arc<[Column]>,
    /// For files without field ids, which others wrote and DuckLake took in: what each column is called there.
    pub names: Option<Arc<HashMap<i64, String>>>,
    /// Columns that may hold NaN, by id. Parquet's statistics leave NaN out while every comparison puts it above all numbers, so
    /// row groups must not be skipped by them.
    pub nan: Arc<[i64]>,
}

impl PhysicalExprAdapterFactory for ByFieldId {
    fn create(&self, logical_file_schema: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let mut found = HashMap::new();
        for field in logical_file_schema.fields() {
            // Only columns of our own making are not the table's, and those keep their name.
            let target = match self.columns.iter().find(|c| c.name == *field.name()) {
                Some(column) => self.target(column, field, &file)?,
                None => Target::At(file.index_of(field.name())?),
            };
            found.insert(field.name().clone(), (target, Arc::clone(field)));
        }
        Ok(Arc::new(Adapter { found, file }))
    }
}

/// Where a column's values come from.
#[derive(Debug)]
enum Target {
    At(usize),
    Cast(usize),
    Reshape(usize, Reshape),
    Literal(ScalarValue),
}

impl ByFieldId {
    fn target(&self, column: &Column, field: &Field, file: &Schema) -> Result<Target> {
        let at = match &self.names {
            Some(names) => names.get(&column.id).and_then(|name| file.index_of(name).ok()),
            None => file.fields().iter().position(|f| field_id(f) == Some(column.id)),
        };
        let Some(at) = at else { return Ok(Target::Literal(default(column, field.data_type())?)) };
        let stored = file.field(at);
        if self.nan.contains(&column.id) {
            return Ok(Target::Reshape(at, Reshape::Cast(field.data_type().clone())));
        }
        if stored.data_type() == field.data_type() {
            return Ok(Target::At(at));
        }
        Ok(match Reshape::plan(stored, column, field.data_type(), self.names.as_deref())? {
            Reshape::Same => Target::At(at),
            Reshape::Cast(_) if !stored.data_type().is_nested() => Target::Cast(at),
            reshape => Target::Reshape(at, reshape),
        })
    }
}

/// The id that a Parquet file gives a column.
pub(super) fn field_id(field: &Field) -> Option<i64> {
    field.metadata().get(FIELD_ID)?.parse().ok()
}

/// What rows hold that are older than the column.
pub(super) fn default(column: &Column, data_type: &DataType) -> Result<ScalarValue> {
    let Some(text) = &column.initial_default else { return ScalarValue::try_from(data_type) };
    types::node(text, data_type)
        .and_then(|node| types::array(vec![Some(node)], data_type))
        .map(|array| ScalarValue::try_from_array(&array, 0))
        .unwrap_or_else(|| {
            Err(DataFusionError::External(Box::new(crate::Error::Unsupported {
                what: format!("column `{}` has the default `{text}` for rows older than it", column.name),
            })))
        })
}

#[derive(Debug)]
struct Adapter {
    found: HashMap<String, (Target, FieldRef)>,
    file: SchemaRef,
}

impl PhysicalExprAdapter for Adapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        expr.transform(|expr| {
            let Some(column) = expr.downcast_ref::<ColumnExpr>() else { return Ok(Transformed::no(expr)) };
            let Some((target, field)) = self.found.get(column.name()) else { return Ok(Transformed::no(expr)) };
            let stored =
                |at: usize| -> Arc<dyn PhysicalExpr> { Arc::new(ColumnExpr::new(self.file.field(at).name(), at)) };
            Ok(Transformed::yes(match target {
                Target::At(at) => stored(*at),
                Target::Cast(at) => Arc::new(CastExpr::new(stored(*at), field.data_type().clone(), None)),
                Target::Reshape(at, reshape) => {
                    Arc::new(ReshapeExpr::new(stored(*at), reshape.clone(), Arc::clone(field)))
                }
                Target::Literal(value) => lit(value.clone()),
            }))
        })
        .data()
    }
}
