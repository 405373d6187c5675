//! From a list of files to a plan.

use std::{collections::HashSet, sync::Arc};

use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::{
    catalog::Session,
    common::{ColumnStatistics, DFSchema, config::TableParquetOptions, stats::Precision},
    datasource::{
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
        source::DataSourceExec,
        table_schema::TableSchema,
    },
    error::Result as QueryResult,
    execution::object_store::ObjectStoreUrl,
    logical_expr::{Expr, Operator, utils::conjunction},
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, Column as ColumnExpr, lit},
    },
    physical_expr_adapter::PhysicalExprAdapterFactory,
    physical_plan::{ExecutionPlan, filter::FilterExec, projection::ProjectionExec},
};

use super::{
    LakeTable,
    columns::ByFieldId,
    deletes::ROW_SNAPSHOT,
    keys,
    reader::Checked,
    select::{Group, Selection, Shape},
};
use crate::table::Column;

/// Plans the files of one query, group by group.
pub(super) struct Scan<'a> {
    pub lake: &'a LakeTable,
    pub state: &'a dyn Session,
    pub checked: Checked,
    pub selection: &'a Selection,
    /// The columns asked for, as places in the table.
    pub projection: Vec<usize>,
    /// Filters that nothing above the scan will apply again.
    pub exact: &'a [&'a Expr],
    pub limit: Option<usize>,
}

impl Scan<'_> {
    /// Plans the files of one group.
    pub(super) fn plan(&self, group: &Group) -> QueryResult<Arc<dyn ExecutionPlan>> {
        let shape = &group.shape;
        let key_fields = shape.fields(self.lake);
        let names: HashSet<&str> = key_fields.iter().map(|f| f.name().as_str()).collect();
        let by_row: Vec<&Expr> = self.exact.iter().copied().filter(|filter| !keys::is_on(filter, &names)).collect();
        // DataFusion puts the columns that stand beside the files behind those inside them.
        let schema = &self.lake.schema;
        let inside: Vec<usize> = (0..schema.fields().len()).filter(|at| !shape.keys.contains(at)).collect();
        let mut file_fields: Vec<FieldRef> = inside.iter().map(|at| Arc::clone(&schema.fields()[*at])).collect();
        if shape.newer_rows {
            file_fields.push(Arc::new(Field::new(ROW_SNAPSHOT, DataType::Int64, true)));
        }
        let in_files = file_fields.len();
        let place = |at: usize| {
            let key = shape.keys.iter().position(|key| *key == at).map(|i| in_files + i);
            key.or_else(|| inside.iter().position(|i| *i == at)).expect("a column is in the file or beside it")
        };

        // Columns that only a filter needs come behind those asked for and are dropped again.
        let mut wanted = self.projection.clone();
        for filter in &by_row {
            for column in filter.column_refs() {
                let at = schema.index_of(&column.name)?;
                if !wanted.contains(&at) {
                    wanted.push(at);
                }
            }
        }
        let mut places: Vec<usize> = wanted.into_iter().map(place).collect();
        if shape.newer_rows {
            places.push(in_files - 1);
        }
        let is_filtered = shape.newer_rows || !by_row.is_empty();

        let config = self.state.config_options();
        let options = TableParquetOptions { global: config.execution.parquet.clone(), ..Default::default() };
        let table_schema =
            TableSchema::builder(Arc::new(Schema::new(file_fields))).with_table_partition_cols(key_fields).build();
        // Of the whole table, so that joins can tell how many keys there are.
        let known = inside.iter().map(|at| match self.lake.past.bounds.get(&self.lake.columns[*at].id) {
            Some((min, max)) => ColumnStatistics {
                min_value: Precision::Inexact(min.clone()),
                max_value: Precision::Inexact(max.clone()),
                ..ColumnStatistics::new_unknown()
            },
            None => ColumnStatistics::new_unknown(),
        });
        let mut known: Vec<_> = known.collect();
        known.resize(in_files, ColumnStatistics::new_unknown());
        let statistics = group.total.statistics(known);
        let source = ParquetSource::new(table_schema)
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(self.checked.factory(self.state.runtime_env(), shape.machine));
        let url = if shape.machine { ObjectStoreUrl::local_filesystem() } else { self.lake.storage.url() };
        let each = group.files.len().div_ceil(config.execution.target_partitions.max(1)).max(1);
        let groups = group.files.chunks(each).map(|files| FileGroup::new(files.to_vec())).collect();
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(Some(places))?
            .with_limit(self.limit.filter(|_| !is_filtered))
            .with_expr_adapter(self.adapter(shape))
            .build();
        let scan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config);
        if is_filtered { self.filtered(shape, &by_row, scan) } else { Ok(scan) }
    }

    /// Applies what the scan alone cannot, and drops the columns that only this needed.
    fn filtered(
        &self,
        shape: &Shape,
        by_row: &[&Expr],
        scan: Arc<dyn ExecutionPlan>,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
        let schema = scan.schema();
        let mut predicates: Vec<Arc<dyn PhysicalExpr>> = Vec::new();
        if shape.newer_rows {
            let own: Arc<dyn PhysicalExpr> = Arc::new(ColumnExpr::new_with_schema(ROW_SNAPSHOT, &schema)?);
            predicates.push(Arc::new(BinaryExpr::new(own, Operator::LtEq, lit(self.lake.snapshot))));
        }
        if let Some(filter) = conjunction(by_row.iter().copied().cloned()) {
            predicates.push(self.state.create_physical_expr(filter, &DFSchema::try_from(Arc::clone(&schema))?)?);
        }
        let both = |a, b| Arc::new(BinaryExpr::new(a, Operator::And, b)) as Arc<dyn PhysicalExpr>;
        let Some(predicate) = predicates.into_iter().reduce(both) else { return Ok(scan) };
        let kept = (0..self.projection.len()).map(|at| {
            let name = schema.field(at).name().clone();
            (Arc::new(ColumnExpr::new(&name, at)) as Arc<dyn PhysicalExpr>, name)
        });
        let kept: Vec<_> = kept.collect();
        Ok(Arc::new(ProjectionExec::try_new(kept, Arc::new(FilterExec::try_new(predicate, scan)?))?))
    }

    /// What a plain scan, which goes by the columns' names, would get wrong; `None` when that is nothing.
    fn adapter(&self, shape: &Shape) -> Option<Arc<dyn PhysicalExprAdapterFactory>> {
        let names = shape.mapping_id.and_then(|id| self.selection.mappings.get(&id)).map(|m| Arc::clone(&m.names));
        let past = &self.lake.past;
        let is_plain = names.is_none()
            && !past.reshaped
            && past.nan.is_empty()
            && !self.lake.columns.iter().any(is_stored_otherwise);
        (!is_plain).then(|| {
            Arc::new(ByFieldId { columns: Arc::clone(&self.lake.columns), names, nan: Arc::clone(&past.nan) }) as _
        })
    }
}

/// True for types that a cast does not bring from the file's form into ours.
fn is_stored_otherwise(column: &Column) -> bool {
    column.ducklake_type == "uuid" || column.children.iter().any(is_stored_otherwise)
}
