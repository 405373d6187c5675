//! A staged result as a table, so that checks can look at it before anybody else does.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{ColumnStatistics, Statistics, stats::Precision};
use object_store::path::Path;
use uuid::Uuid;

use super::{
    LakeTable, Past,
    files::{DataFile, Place},
};
use crate::{
    Error, Lake, Result, Staged, TableSpec, shape,
    table::{Column, Partition, PartitionColumn, Table},
    types,
    write::StagedFile,
};

impl Lake {
    /// A staged result as a table that queries can read: its files and no others.
    pub fn staged(&self, staged: &Staged) -> Result<Arc<LakeTable>> {
        let mut files = Vec::new();
        for partition in &staged.partitions {
            for file in &partition.files {
                let path = format!("{}{}", staged.path, file.path);
                let path =
                    Path::parse(&path).map_err(|e| Error::Corrupt { what: format!("`{path}` is no path: {e}") })?;
                files.push(DataFile {
                    // The catalog counts from 0: no file of it is meant.
                    id: -1 - i64::try_from(files.len()).unwrap_or(0),
                    place: Place::Lake(path),
                    rows: file.rows,
                    size: u64::try_from(file.bytes).unwrap_or(0),
                    footer: usize::try_from(file.footer_bytes).ok(),
                    keys: partition.key.values().into_iter().map(Some).collect(),
                    mapping_id: None,
                    partial_max: None,
                    deletes: None,
                });
            }
        }
        let table = self.unpublished(&staged.spec, &staged.path, staged.shape.columns.clone(), files);
        Ok(Arc::new(LakeTable { statistics: Some(statistics(staged)), ..table }))
    }

    /// The table that a job will make, before its first publish: its declared columns and no rows. A job that builds on its
    /// own past reads it on its first day.
    pub fn unmade(&self, spec: &TableSpec) -> Result<Arc<LakeTable>> {
        let declared = spec.columns.iter().filter(|c| !spec.partition_by.contains(&c.name));
        let fields = declared.map(|c| Field::new(&c.name, c.data_type.clone().unwrap_or(DataType::Utf8), true));
        let partition_by: Vec<&str> = spec.partition_by.iter().map(String::as_str).collect();
        let result = Schema::new(fields.collect::<Vec<_>>());
        let shape = shape::fit(spec.name.as_str(), None, &partition_by, &[], &result, 1)?;
        Ok(Arc::new(self.unpublished(spec, "main/", shape.columns, Vec::new())))
    }

    fn unpublished(&self, spec: &TableSpec, path: &str, columns: Vec<Column>, files: Vec<DataFile>) -> LakeTable {
        let keys = spec.partition_by.iter().filter_map(|name| columns.iter().find(|c| c.name == *name));
        let keys =
            keys.map(|c| PartitionColumn { column_id: c.id, name: c.name.clone(), transform: "identity".to_owned() });
        let table = Arc::new(Table {
            id: -1,
            uuid: Uuid::nil(),
            name: spec.name.to_string(),
            path: path.to_owned(),
            partition: Some(Partition { id: 0, columns: keys.collect() }),
            comment: None,
            schema_version: 0,
            columns,
        });
        let nan = table.columns.iter().filter(|c| c.data_type.is_floating()).map(|c| c.id).collect();
        let past = Past { nan, ..Past::default() };
        let schema = Arc::new(Schema::new(table.columns.iter().map(types::read_field).collect::<Vec<_>>()));
        let columns = table.columns.clone().into();
        let (store, storage) = (self.store().clone(), self.storage().clone());
        LakeTable {
            store,
            storage,
            table,
            snapshot: 0,
            schema,
            columns,
            past,
            staged: Some(files),
            statistics: None,
            only_extremes: false,
            selections: Arc::default(),
        }
    }
}

/// What writing has counted: all rows, and the nulls of columns that are not nested.
fn statistics(staged: &Staged) -> Statistics {
    let files = || staged.partitions.iter().flat_map(|p| &p.files);
    let exact = |n: i64| usize::try_from(n).map_or(Precision::Absent, Precision::Exact);
    let nulls = |column: &Column| {
        let one = |file: &StagedFile| file.stats.iter().find(|s| s.column_id == column.id).map(|s| s.null_count);
        files().map(one).sum::<Option<i64>>().filter(|_| column.children.is_empty()).map_or(Precision::Absent, exact)
    };
    let columns = staged.shape.columns.iter();
    let columns = columns.map(|c| ColumnStatistics { null_count: nulls(c), ..ColumnStatistics::new_unknown() });
    Statistics {
        num_rows: exact(staged.rows()),
        total_byte_size: Precision::Absent,
        column_statistics: columns.collect(),
    }
}
