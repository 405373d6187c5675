//! Which files a scan reads, with what the catalog knows of each.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::filter_record_batch,
    datatypes::FieldRef,
};
use datafusion::{
    catalog::Session,
    common::{ColumnStatistics, ScalarValue, Statistics, stats::Precision},
    datasource::{listing::PartitionedFile, physical_plan::parquet::ParquetRowSelection},
    error::Result as QueryResult,
    logical_expr::Expr,
};

use super::{
    LakeTable, bounds,
    deletes::{self, Deleted},
    external,
    files::{DataFile, Place},
    keys::{self, Narrow},
    mapping::{self, Mapping, value_in_path},
    reader::Checked,
};

/// A file with the values of its partition keys.
type Keyed = (DataFile, Vec<ScalarValue>);

/// What a scan reads.
pub(super) struct Selection {
    /// Files of one shape each.
    pub groups: Vec<Group>,
    /// Rows out of the catalog that match the filters that nothing above the scan applies again.
    pub rows: Vec<RecordBatch>,
    pub mappings: HashMap<i64, Mapping>,
}

/// Files that share one scan.
pub(super) struct Group {
    pub shape: Shape,
    /// In the order of their paths.
    pub files: Vec<PartitionedFile>,
    pub total: Total,
}

impl Selection {
    /// Asks the catalog, and reads the delete files of what is left.
    pub(super) async fn find(lake: &LakeTable, state: &dyn Session, filters: &[Expr]) -> QueryResult<Self> {
        let narrow = Narrow::find(&lake.table, &lake.schema, &lake.past.days, filters);
        let contents = lake.contents(narrow.as_ref()).await.map_err(external)?;
        let keys = lake.key_columns();
        let (exact, inexact): (Vec<&Expr>, Vec<&Expr>) = filters.iter().partition(|filter| keys::is_on(filter, &keys));
        let inexact: Vec<Expr> = inexact.into_iter().cloned().collect();
        let files = bounds::prune(&lake.store, state, &lake.table, &lake.schema, &inexact, contents.files).await;
        let files = files.map_err(external)?;
        let mappings = mapping::load(&lake.store, &files).await.map_err(external)?;
        let mut shapes: Vec<(Shape, Vec<Keyed>)> = Vec::new();
        for file in files {
            let (shape, values) = Shape::of(lake, &file, &mappings);
            // There are few shapes, and neighbours have the same.
            match shapes.iter_mut().rev().find(|(of, _)| *of == shape) {
                Some((_, files)) => files.push((file, values)),
                None => shapes.push((shape, vec![(file, values)])),
            }
        }
        shapes.sort_by_key(|(_, files)| files.iter().map(|(file, _)| file.id).min());
        let mut deleted = contents.deleted;
        let mut groups = Vec::with_capacity(shapes.len());
        for (shape, files) in shapes {
            groups.extend(Group::find(lake, state, shape, files, &exact, &mut deleted).await?);
        }
        let mut rows = Vec::new();
        for batch in contents.rows {
            let batch = filter_record_batch(&batch, &keys::holding(state, &exact, &batch)?)?;
            if batch.num_rows() > 0 {
                rows.push(batch);
            }
        }
        Ok(Self { groups, rows, mappings })
    }

    /// The bytes of all the files.
    pub(super) fn bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.total.bytes).sum()
    }
}

impl Group {
    /// Finds out which files of one shape have wanted rows. `None` when none has.
    async fn find(
        lake: &LakeTable,
        state: &dyn Session,
        shape: Shape,
        files: Vec<Keyed>,
        exact: &[&Expr],
        deleted: &mut Deleted,
    ) -> QueryResult<Option<Self>> {
        let files = matching(lake, state, &shape, exact, files)?;
        let data = files.iter().map(|(file, _)| file);
        let checked = Checked::new(&lake.storage);
        deletes::add_files(&checked, data, lake.snapshot, deleted).await.map_err(external)?;
        deletes::settle(deleted);
        let mut total = Total::new(shape.keys.len());
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
        // Plans are the same whatever order the database has.
        scanned.sort_by(|a, b| a.path().cmp(b.path()));
        Ok((!scanned.is_empty()).then_some(Self { shape, files: scanned, total }))
    }
}

/// Keeps the files whose keys match the filters on them.
fn matching(
    lake: &LakeTable,
    state: &dyn Session,
    shape: &Shape,
    exact: &[&Expr],
    files: Vec<Keyed>,
) -> QueryResult<Vec<Keyed>> {
    let fields = shape.fields(lake);
    let names = fields.iter().map(|f| f.name().as_str()).collect();
    let filters: Vec<&Expr> = exact.iter().copied().filter(|filter| keys::is_on(filter, &names)).collect();
    if filters.is_empty() || files.is_empty() {
        return Ok(files);
    }
    let column = |i: usize| ScalarValue::iter_to_array(files.iter().map(|(_, values)| values[i].clone()));
    let columns = (0..fields.len()).map(column).collect::<QueryResult<Vec<ArrayRef>>>()?;
    let kept = keys::matching(state, &filters, &fields, columns, files.len())?;
    Ok(files.into_iter().zip(kept.values()).filter_map(|(file, kept)| kept.then_some(file)).collect())
}

/// What files must have in common to share one scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// The files are anywhere on this machine, not in the lake.
    pub machine: bool,
    /// How the files' columns are called, in files that others wrote.
    pub mapping_id: Option<i64>,
    /// Columns whose values stand beside each file, as places in the table.
    pub keys: Vec<usize>,
    /// The files also have rows that are newer than the snapshot.
    pub newer_rows: bool,
}

impl Shape {
    /// A file's shape, and the values of its key columns.
    pub(super) fn of(lake: &LakeTable, file: &DataFile, mappings: &HashMap<i64, Mapping>) -> (Self, Vec<ScalarValue>) {
        let mut texts: Vec<(i64, Option<Cow<'_, str>>)> = Vec::new();
        if let Some(partition) = lake.table.partition.as_ref().filter(|_| !file.keys.is_empty()) {
            let keys = partition.columns.iter().zip(&file.keys).filter(|(column, _)| column.transform == "identity");
            texts.extend(keys.map(|(column, text)| (column.column_id, text.as_deref().map(Cow::Borrowed))));
        }
        for (column, name) in file.mapping_id.and_then(|id| mappings.get(&id)).iter().flat_map(|m| &m.in_path) {
            if let Some(text) = value_in_path(file.place.path().as_ref(), name) {
                texts.push((*column, text.map(Cow::Owned)));
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

    /// The key columns as the table has them.
    pub(super) fn fields(&self, lake: &LakeTable) -> Vec<FieldRef> {
        self.keys.iter().map(|at| Arc::clone(&lake.schema.fields()[*at])).collect()
    }
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
pub(super) struct Total {
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

    /// `in_files`: what is known of the columns that stand in the files.
    pub(super) fn statistics(&self, in_files: Vec<ColumnStatistics>) -> Statistics {
        let count = |n: u64| Precision::Exact(usize::try_from(n).unwrap_or(usize::MAX));
        let bound = |value: &Option<ScalarValue>| value.clone().map_or(Precision::Absent, Precision::Exact);
        let mut columns = in_files;
        columns.extend(self.keys.iter().map(|key| ColumnStatistics {
            null_count: count(key.nulls),
            min_value: bound(&key.min),
            max_value: bound(&key.max),
            ..ColumnStatistics::new_unknown()
        }));
        Statistics {
            num_rows: count(self.rows),
            total_byte_size: count(self.bytes).to_inexact(),
            column_statistics: columns,
        }
    }
}
