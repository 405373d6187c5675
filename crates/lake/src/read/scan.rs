//! From a list of files to a plan.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, Field, FieldRef, Schema},
};
use datafusion::{
    catalog::Session,
    common::{ColumnStatistics, DFSchema, ScalarValue, Statistics, config::TableParquetOptions, stats::Precision},
    datasource::{
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource, parquet::ParquetRowSelection},
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
    deletes::{self, Deleted, ROW_SNAPSHOT},
    external,
    files::{DataFile, Place},
    keys,
    mapping::{Mapping, value_in_path},
    reader::Checked,
};
use crate::table::Column;

/// What files must have in common to share one scan.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// The files are anywhere on this machine, not in the lake.
    machine: bool,
    /// How the files' columns are called, in files that others wrote.
    mapping_id: Option<i64>,
    /// Columns whose values stand beside each file, as places in the table.
    keys: Vec<usize>,
    /// The files also have rows that are newer than the snapshot.
    newer_rows: bool,
}

impl Shape {
    /// A file's shape, and the values of its key columns.
    pub(super) fn of(lake: &LakeTable, file: &DataFile, mappings: &HashMap<i64, Mapping>) -> (Self, Vec<ScalarValue>) {
        let mut texts: Vec<(i64, Option<String>)> = Vec::new();
        if let Some(partition) = lake.table.partition.as_ref().filter(|_| !file.keys.is_empty()) {
            let keys = partition.columns.iter().zip(&file.keys).filter(|(column, _)| column.transform == "identity");
            texts.extend(keys.map(|(column, text)| (column.column_id, text.clone())));
        }
        for (column, name) in file.mapping_id.and_then(|id| mappings.get(&id)).iter().flat_map(|m| &m.in_path) {
            if let Some(text) = value_in_path(file.place.path().as_ref(), name) {
                texts.push((*column, text));
            }
        }
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (id, text) in texts {
            let Some(at) = lake.columns.iter().position(|c| c.id == id) else { continue };
            // A text that is not of the type leaves the column to the file, where it stands as well.
            if let Some(value) =
                keys::value(text.as_deref(), lake.schema.field(at).data_type()).filter(|_| !keys.contains(&at))
            {
                keys.push(at);
                values.push(value);
            }
        }
        let newer_rows = file.partial_max.is_some_and(|newest| newest > lake.snapshot);
        let machine = matches!(file.place, Place::Machine(_));
        (Self { machine, mapping_id: file.mapping_id, keys, newer_rows }, values)
    }
}

/// Plans the files of one query, shape by shape.
pub(super) struct Scan<'a> {
    pub lake: &'a LakeTable,
    pub state: &'a dyn Session,
    pub checked: Checked,
    pub mappings: HashMap<i64, Mapping>,
    /// The columns asked for, as places in the table.
    pub projection: Vec<usize>,
    /// Filters that nothing above the scan will apply again.
    pub exact: &'a [&'a Expr],
    pub limit: Option<usize>,
}

impl Scan<'_> {
    /// Plans the files of one shape, each with the values of its keys. `None` when no row of them is wanted.
    pub(super) async fn plan(
        &self,
        shape: &Shape,
        files: Vec<(DataFile, Vec<ScalarValue>)>,
        deleted: &mut Deleted,
    ) -> QueryResult<Option<Arc<dyn ExecutionPlan>>> {
        let fields: Vec<FieldRef> = shape.keys.iter().map(|at| Arc::clone(&self.lake.schema.fields()[*at])).collect();
        let names: HashSet<&str> = fields.iter().map(|f| f.name().as_str()).collect();
        let (by_key, by_row): (Vec<&Expr>, Vec<&Expr>) =
            self.exact.iter().copied().partition(|filter| keys::is_on(filter, &names));

        let files = self.matching(&by_key, &fields, files)?;
        let data = files.iter().map(|(file, _)| file);
        deletes::add_files(&self.checked, data, self.lake.snapshot, deleted).await.map_err(external)?;
        deletes::settle(deleted);
        let mut total = Total::new(fields.len());
        let mut scanned = Vec::with_capacity(files.len());
        for (file, values) in files {
            let rows = u64::try_from(file.rows).unwrap_or(0);
            let gone = deleted.get(&file.id).map_or(&[][..], Vec::as_slice);
            let gone = &gone[..gone.partition_point(|position| *position < rows)];
            let left = rows - gone.len() as u64;
            if left > 0 {
                total.add(left, file.size, &values);
                scanned.push(partitioned(file, values, gone, rows));
            }
        }
        if scanned.is_empty() {
            return Ok(None);
        }
        self.scan(shape, fields, &by_row, scanned, total).map(Some)
    }

    /// Keeps the files whose keys match the filters on them.
    fn matching(
        &self,
        filters: &[&Expr],
        fields: &[FieldRef],
        files: Vec<(DataFile, Vec<ScalarValue>)>,
    ) -> QueryResult<Vec<(DataFile, Vec<ScalarValue>)>> {
        if filters.is_empty() || files.is_empty() {
            return Ok(files);
        }
        let column = |i: usize| ScalarValue::iter_to_array(files.iter().map(|(_, values)| values[i].clone()));
        let columns = (0..fields.len()).map(column).collect::<QueryResult<Vec<ArrayRef>>>()?;
        let kept = keys::matching(self.state, filters, fields, columns, files.len())?;
        Ok(files.into_iter().zip(kept.values()).filter_map(|(file, kept)| kept.then_some(file)).collect())
    }

    fn scan(
        &self,
        shape: &Shape,
        key_fields: Vec<FieldRef>,
        by_row: &[&Expr],
        files: Vec<PartitionedFile>,
        total: Total,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
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
        for filter in by_row {
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
        let statistics = total.statistics(in_files);
        let source = ParquetSource::new(table_schema)
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(self.checked.factory(self.state.runtime_env(), shape.machine));
        let url = if shape.machine { ObjectStoreUrl::local_filesystem() } else { self.lake.storage.url() };
        let groups = FileGroup::new(files).split_files(config.execution.target_partitions.max(1));
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(Some(places))?
            .with_limit(self.limit.filter(|_| !is_filtered))
            .with_expr_adapter(self.adapter(shape))
            .build();
        let scan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(config);
        if is_filtered { self.filtered(shape, by_row, scan) } else { Ok(scan) }
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
        let names = shape.mapping_id.and_then(|id| self.mappings.get(&id)).map(|m| Arc::clone(&m.names));
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

fn partitioned(file: DataFile, values: Vec<ScalarValue>, gone: &[u64], rows: u64) -> PartitionedFile {
    let mut scanned = PartitionedFile::new("", file.size).with_partition_values(values);
    scanned.object_meta.location = file.place.path().clone();
    if let Some(footer) = file.footer {
        // The footer's own length and the magic number stand behind it.
        scanned = scanned.with_metadata_size_hint(footer + 8);
    }
    if gone.is_empty() {
        scanned
    } else {
        scanned.with_extension(ParquetRowSelection::new(deletes::selection(gone, rows)))
    }
}

/// What is known of all the files together.
struct Total {
    rows: u64,
    bytes: u64,
    keys: Vec<Key>,
}

/// One key column over all the files.
struct Key {
    min: Option<ScalarValue>,
    max: Option<ScalarValue>,
    nulls: u64,
}

impl Total {
    fn new(keys: usize) -> Self {
        Self { rows: 0, bytes: 0, keys: (0..keys).map(|_| Key { min: None, max: None, nulls: 0 }).collect() }
    }

    fn add(&mut self, rows: u64, bytes: u64, values: &[ScalarValue]) {
        self.rows += rows;
        self.bytes += bytes;
        for (key, value) in self.keys.iter_mut().zip(values) {
            if value.is_null() {
                key.nulls += rows;
                continue;
            }
            if key.min.as_ref().is_none_or(|min| value < min) {
                key.min = Some(value.clone());
            }
            if key.max.as_ref().is_none_or(|max| value > max) {
                key.max = Some(value.clone());
            }
        }
    }

    /// `in_files`: how many columns stand in the files, of which nothing is said.
    fn statistics(self, in_files: usize) -> Statistics {
        let count = |n: u64| Precision::Exact(usize::try_from(n).unwrap_or(usize::MAX));
        let bound = |value: Option<ScalarValue>| value.map_or(Precision::Absent, Precision::Exact);
        let mut columns = vec![ColumnStatistics::new_unknown(); in_files];
        columns.extend(self.keys.into_iter().map(|key| ColumnStatistics {
            null_count: count(key.nulls),
            min_value: bound(key.min),
            max_value: bound(key.max),
            ..ColumnStatistics::new_unknown()
        }));
        Statistics {
            num_rows: count(self.rows),
            total_byte_size: count(self.bytes).to_inexact(),
            column_statistics: columns,
        }
    }
}
