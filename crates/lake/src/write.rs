//! Staging: a result becomes Parquet files of its partitions, durable and known to nobody yet.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array},
    compute::{CastOptions, cast_with_options, kernels::cmp, take},
    datatypes::{DataType, Date32Type, Float64Type, Int32Type, Schema, SchemaRef},
    util::display::FormatOptions,
};
use chrono::Datelike;
use datafusion::common::{
    ScalarValue,
    hash_utils::{RandomState, create_hashes},
};
use futures::StreamExt;
use headworks_domain::{Ds, PartitionKey, TableName};
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
    schema::types::ColumnPath,
};
use uuid::Uuid;

use crate::{
    Error, Lake, Result, Rows,
    shape::{self, ColumnSpec, Origin, Shape},
    stats::{self, ColumnStats},
    table::{Column, Table},
    types,
};

/// What a table is to be, as its job says.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// The table.
    pub name: TableName,
    /// `cumulative`, `events`, `upsert`, or `adopted`.
    pub kind: String,
    /// Columns that the job declares; others of the result are stored as they come.
    pub columns: Vec<ColumnSpec>,
    /// `ds`, then any of `hour` and `event_type`.
    pub partition_by: Vec<String>,
    /// The description.
    pub comment: Option<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The job that makes it; `None` for adopted tables.
    pub job: Option<String>,
    /// How long partitions are kept; `None` for ever.
    pub retention_secs: Option<i64>,
}

/// A request to stage the result of one run.
#[derive(Debug, Clone)]
pub struct StageRequest {
    /// The table.
    pub spec: TableSpec,
    /// The partitions that the run replaces, whole; those without rows become empty.
    pub keys: Vec<PartitionKey>,
    /// The attempt's fence: part of the files' names, so that clean-up knows whose they are.
    pub attempt: i64,
}

/// A staged result: durable files that no catalog names yet.
#[derive(Debug, Clone)]
pub struct Staged {
    pub(crate) spec: TableSpec,
    pub(crate) path: String,
    pub(crate) base: Option<Arc<Table>>,
    pub(crate) shape: Shape,
    /// What the publish replaces: the request's keys, each with every event type when it names none.
    pub(crate) replaced: Vec<PartitionKey>,
    pub(crate) partitions: Vec<StagedPartition>,
}

/// One partition of a staged result.
#[derive(Debug, Clone)]
pub(crate) struct StagedPartition {
    pub key: PartitionKey,
    /// The partition's version when staging began; `None` when it had none.
    pub seen: Option<i64>,
    pub files: Vec<StagedFile>,
}

/// One staged file.
#[derive(Debug, Clone)]
pub(crate) struct StagedFile {
    /// Below the table's folder.
    pub path: String,
    pub rows: i64,
    pub bytes: i64,
    pub footer_bytes: i64,
    pub stats: Vec<ColumnStats>,
}

impl Staged {
    /// The partitions, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &PartitionKey> {
        self.partitions.iter().map(|p| &p.key)
    }

    /// The rows of all partitions.
    pub fn rows(&self) -> i64 {
        self.partitions.iter().flat_map(|p| &p.files).map(|f| f.rows).sum()
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> i64 {
        self.partitions.iter().flat_map(|p| &p.files).map(|f| f.bytes).sum()
    }

    /// The files and their sizes in bytes, paths below the data path.
    pub fn files(&self) -> Vec<(String, u64)> {
        let files = self.partitions.iter().flat_map(|p| &p.files);
        files.map(|f| (format!("{}{}", self.path, f.path), u64::try_from(f.bytes).unwrap_or(0))).collect()
    }

    /// The columns that the table will have.
    pub fn columns(&self) -> &[Column] {
        &self.shape.columns
    }
}

/// A file ends after so many bytes: large enough to scan well, small enough to be rewritten.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Rows of one row group: what a scan skips at once.
const ROW_GROUP_ROWS: usize = 131_072;
/// Row groups of wide rows end earlier.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// zstd's own default: 57 MB where snappy took 148.
const ZSTD_LEVEL: i32 = 3;
/// How many values are looked at to choose an encoding.
const SAMPLE_ROWS: usize = 512;
/// The most open files of one staging: one for each partition that its rows fall into.
const OPEN_FILES_MAX: usize = 512;

pub(crate) async fn stage(lake: &Lake, request: StageRequest, mut rows: Rows) -> Result<Staged> {
    let StageRequest { spec, keys, attempt } = request;
    let name = spec.name.as_str();
    let base = lake.table(name, crate::At::Now).await?;
    let result = rows.schema();
    let is_new = |table: &Table, name: &str| !table.columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
    let next_id = match &base {
        // Only a column that the table gains needs an id.
        Some(table) if result.fields().iter().any(|f| is_new(table, f.name())) => lake.next_column_id(table).await?,
        _ => 1,
    };
    let partition_by: Vec<&str> = spec.partition_by.iter().map(String::as_str).collect();
    if let Some(table) = &base
        && table.partition_columns() != partition_by
    {
        let reason =
            format!("it is cut by {}, the job by {}", table.partition_columns().join(", "), partition_by.join(", "));
        return Err(Error::Schema { table: name.to_owned(), reason });
    }
    let shape = shape::fit(name, base.as_deref(), &partition_by, &spec.columns, &result, next_id)?;
    let seen = match &base {
        Some(table) => lake.versions(table.id, &keys).await?,
        None => HashMap::new(),
    };
    let path = base.as_ref().map_or_else(|| format!("main/{}/", folder(name)), |t| t.path.clone());
    let file_schema = Arc::new(Schema::new(shape.columns.iter().map(types::file_field).collect::<Vec<_>>()));
    let mut sorter = Sorter {
        lake,
        table: name,
        path: &path,
        partition_by: &partition_by,
        attempt,
        shape: &shape,
        file_schema,
        keys: &keys,
        open: HashMap::new(),
        done: keys.iter().map(|k| (k.clone(), Vec::new())).collect(),
    };
    while let Some(batch) = rows.next().await {
        sorter.push(&batch?).await?;
    }
    let mut done = sorter.finish().await?;
    let mut partitions: Vec<StagedPartition> =
        done.drain().map(|(key, files)| StagedPartition { seen: seen.get(&key).copied(), key, files }).collect();
    partitions.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Staged { spec, path, base, shape, replaced: keys, partitions })
}

/// A folder's name for a table: its own, unless an object store might not take it.
fn folder(table: &str) -> String {
    if table.is_ascii() { table.to_owned() } else { format!("t-{}", Uuid::now_v7()) }
}

/// Sorts rows into the files of their partitions.
struct Sorter<'a> {
    lake: &'a Lake,
    table: &'a str,
    path: &'a str,
    partition_by: &'a [&'a str],
    attempt: i64,
    shape: &'a Shape,
    file_schema: SchemaRef,
    keys: &'a [PartitionKey],
    open: HashMap<PartitionKey, OpenFile>,
    done: HashMap<PartitionKey, Vec<StagedFile>>,
}

impl Sorter<'_> {
    async fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        for (key, rows) in self.split(batch)? {
            let part = match rows {
                Some(rows) => take_rows(batch, &rows)?,
                None => batch.clone(),
            };
            let part = self.shaped(&part, &key)?;
            self.write(key, &part).await?;
        }
        Ok(())
    }

    /// Which rows of a batch go to which partition; `None` for all of them.
    fn split(&self, batch: &RecordBatch) -> Result<Vec<(PartitionKey, Option<UInt32Array>)>> {
        let from_result: Vec<(usize, &Column)> = self
            .shape
            .columns
            .iter()
            .zip(&self.shape.origins)
            .filter_map(|(c, o)| match o {
                Origin::Result(i) if self.partition_by.contains(&c.name.as_str()) => Some((*i, c)),
                _ => None,
            })
            .collect();
        if from_result.is_empty() {
            return match self.keys {
                [only] => Ok(vec![(only.clone(), None)]),
                _ => Err(Error::OutsidePartition {
                    table: self.table.to_owned(),
                    expected: self.expected(),
                    found: "the result has no partition column to tell which rows go where".to_owned(),
                }),
            };
        }
        let arrays: Vec<(&Column, ArrayRef)> =
            from_result.iter().map(|(i, c)| Ok((*c, self.cast(batch.column(*i), c)?))).collect::<Result<_>>()?;
        let mut rows_of: HashMap<PartitionKey, Vec<u32>> = HashMap::new();
        let first = self.keys.first();
        let mut last: Option<(Vec<ScalarKey>, PartitionKey)> = None;
        for row in 0..batch.num_rows() {
            let values: Vec<ScalarKey> = arrays.iter().map(|(c, a)| ScalarKey::at(c, a, row)).collect();
            let key = match &last {
                Some((same, key)) if *same == values => key.clone(),
                _ => self.key_of(&values, first)?,
            };
            rows_of.entry(key.clone()).or_default().push(u32::try_from(row).unwrap_or(u32::MAX));
            last = Some((values, key));
        }
        if rows_of.len() == 1 {
            return Ok(rows_of.into_keys().map(|key| (key, None)).collect());
        }
        Ok(rows_of.into_iter().map(|(key, rows)| (key, Some(UInt32Array::from(rows)))).collect())
    }

    /// The partition that key values name. Errors: `OutsidePartition`.
    fn key_of(&self, values: &[ScalarKey], first: Option<&PartitionKey>) -> Result<PartitionKey> {
        let outside =
            |found: String| Error::OutsidePartition { table: self.table.to_owned(), expected: self.expected(), found };
        let mut key = first.cloned().unwrap_or_else(|| PartitionKey::day(Ds::default()));
        for value in values {
            match value {
                ScalarKey::Ds(Some(ds)) => key.ds = *ds,
                ScalarKey::Hour(Some(hour)) if (0..24).contains(hour) => key.hour = u8::try_from(*hour).ok(),
                ScalarKey::EventType(Some(event)) => key.event_type = Some(event.clone()),
                other => return Err(outside(format!("a row with {other}"))),
            }
        }
        // Event types are not known before; days and hours are the run's own.
        let covered =
            self.keys.iter().any(|k| k.ds == key.ds && k.hour == key.hour && (k.event_type.is_none() || *k == key));
        if covered { Ok(key) } else { Err(outside(key.to_string())) }
    }

    fn expected(&self) -> String {
        match self.keys {
            [] => "no partition".to_owned(),
            [only] => only.to_string(),
            [first, .., last] => format!("{first} to {last}"),
        }
    }

    fn cast(&self, array: &ArrayRef, column: &Column) -> Result<ArrayRef> {
        if *array.data_type() == column.data_type {
            return Ok(Arc::clone(array));
        }
        let options = CastOptions { safe: false, format_options: FormatOptions::default() };
        cast_with_options(array, &column.data_type, &options).map_err(|e| Error::Schema {
            table: self.table.to_owned(),
            reason: format!("a value of column `{}` is no {}: {e}", column.name, shape::sql_name(&column.data_type)),
        })
    }

    /// Brings a batch to the table's columns.
    fn shaped(&self, batch: &RecordBatch, key: &PartitionKey) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let arrays = self
            .shape
            .columns
            .iter()
            .zip(&self.shape.origins)
            .zip(self.file_schema.fields())
            .map(|((column, origin), field)| {
                let array = match origin {
                    Origin::Result(i) => self.cast(batch.column(*i), column)?,
                    Origin::Key => key_value(key, &column.name).to_array_of_size(rows)?,
                    Origin::Nothing => new_null_array(&column.data_type, rows),
                };
                // Parts of nested columns carry ids in the file's schema, which the cast puts on.
                if array.data_type() == field.data_type() {
                    Ok(array)
                } else {
                    Ok(arrow::array::make_array(
                        array.to_data().into_builder().data_type(field.data_type().clone()).build()?,
                    ))
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.file_schema), arrays, &options)?)
    }

    async fn write(&mut self, key: PartitionKey, batch: &RecordBatch) -> Result<()> {
        if !self.open.contains_key(&key) {
            if self.open.len() == OPEN_FILES_MAX {
                return Err(Error::OutsidePartition {
                    table: self.table.to_owned(),
                    expected: format!("{OPEN_FILES_MAX} partitions at once"),
                    found: "more event types than that".to_owned(),
                });
            }
            let name = format!("{key}/{}-f{}.parquet", Uuid::now_v7(), self.attempt);
            let file = OpenFile::create(self.lake, self.table, self.path, name, &self.file_schema, batch)?;
            self.open.insert(key.clone(), file);
        }
        let Some(file) = self.open.get_mut(&key) else { return Ok(()) };
        file.push(batch, &self.shape.columns).await?;
        if file.bytes() >= FILE_BYTES_MAX
            && let Some(full) = self.open.remove(&key)
        {
            let staged = full.finish(&self.shape.columns).await?;
            self.done.entry(key).or_default().push(staged);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<HashMap<PartitionKey, Vec<StagedFile>>> {
        for (key, file) in std::mem::take(&mut self.open) {
            let staged = file.finish(&self.shape.columns).await?;
            self.done.entry(key).or_default().push(staged);
        }
        // A key without event type stands for all that came; without rows there is none to publish.
        if self.partition_by.contains(&"event_type") && self.keys.iter().all(|k| k.event_type.is_none()) {
            self.done.retain(|key, _| key.event_type.is_some());
        }
        Ok(self.done)
    }
}

#[derive(Debug, PartialEq)]
enum ScalarKey {
    Ds(Option<Ds>),
    Hour(Option<i32>),
    EventType(Option<String>),
}

impl ScalarKey {
    fn at(column: &Column, array: &ArrayRef, row: usize) -> Self {
        let there = array.is_valid(row);
        match column.name.as_str() {
            "ds" => Self::Ds(
                there
                    .then(|| Date32Type::to_naive_date_opt(array.as_primitive::<Date32Type>().value(row)))
                    .flatten()
                    .map(Ds::from),
            ),
            "hour" => Self::Hour(there.then(|| array.as_primitive::<Int32Type>().value(row))),
            _ => Self::EventType(there.then(|| array.as_string::<i32>().value(row).to_owned())),
        }
    }
}

impl std::fmt::Display for ScalarKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ds(None) => f.write_str("ds null"),
            Self::Hour(None) => f.write_str("hour null"),
            Self::EventType(None) => f.write_str("event_type null"),
            Self::Ds(Some(ds)) => write!(f, "ds={ds}"),
            Self::Hour(Some(hour)) => write!(f, "hour={hour}"),
            Self::EventType(Some(event)) => write!(f, "event_type={event}"),
        }
    }
}

/// A partition column's value as the table stores it.
pub(crate) fn key_value(key: &PartitionKey, column: &str) -> ScalarValue {
    match column {
        "ds" => ScalarValue::Date32(Some(days(key.ds))),
        "hour" => ScalarValue::Int32(key.hour.map(i32::from)),
        _ => ScalarValue::Utf8(key.event_type.clone()),
    }
}

/// Days since 1970-01-01.
pub(crate) fn days(ds: Ds) -> i32 {
    const EPOCH: i32 = 719_163;
    ds.date().num_days_from_ce() - EPOCH
}

fn take_rows(batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|c| take(c, rows, None)).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// A Parquet file being written.
struct OpenFile {
    table: String,
    name: String,
    writer: ArrowWriter<Vec<u8>>,
    file: crate::storage::NewFile,
    written: u64,
    rows: i64,
    /// Of each floating point column, by its id.
    floats: HashMap<i64, Floats>,
}

impl OpenFile {
    fn create(
        lake: &Lake,
        table: &str,
        path: &str,
        name: String,
        schema: &SchemaRef,
        first: &RecordBatch,
    ) -> Result<Self> {
        let file = lake.storage().create(&format!("{path}{name}"))?;
        // The catalog names types; Arrow's own note of them would only speak to readers that know Arrow.
        let options =
            ArrowWriterOptions::new().with_properties(properties(schema, first)).with_skip_arrow_metadata(true);
        let failed = |source| Error::Parquet { doing: "write", table: table.to_owned(), source };
        let writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(schema), options).map_err(failed)?;
        Ok(Self { table: table.to_owned(), name, writer, file, written: 0, rows: 0, floats: HashMap::new() })
    }

    fn bytes(&self) -> u64 {
        self.written + self.writer.in_progress_size() as u64
    }

    async fn push(&mut self, batch: &RecordBatch, columns: &[Column]) -> Result<()> {
        for (array, column) in batch.columns().iter().zip(columns) {
            if column.data_type.is_floating() {
                self.floats.entry(column.id).or_default().see(array)?;
            }
        }
        self.rows += i64::try_from(batch.num_rows()).unwrap_or(0);
        self.writer.write(batch).map_err(|source| self.failed(source))?;
        if self.writer.in_progress_size() >= ROW_GROUP_BYTES {
            self.writer.flush().map_err(|source| self.failed(source))?;
        }
        // Finished row groups leave memory.
        if self.writer.inner().len() > 1 << 20 {
            let bytes = std::mem::take(self.writer.inner_mut());
            self.written += bytes.len() as u64;
            self.file.write(bytes).await?;
        }
        Ok(())
    }

    async fn finish(mut self, columns: &[Column]) -> Result<StagedFile> {
        let metadata = self.writer.finish().map_err(|source| self.failed(source))?;
        let rest = std::mem::take(self.writer.inner_mut());
        // The file ends with the footer's length and `PAR1`.
        let tail = rest
            .len()
            .checked_sub(8)
            .and_then(|at| rest.get(at..at + 4)?.try_into().ok())
            .map_or(0, u32::from_le_bytes);
        let stats = stats::of_file(&metadata, columns, &self.floats)?;
        let bytes = self.file.finish(rest).await?;
        Ok(StagedFile {
            path: self.name,
            rows: self.rows,
            bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            footer_bytes: tail.into(),
            stats,
        })
    }

    fn failed(&self, source: parquet::errors::ParquetError) -> Error {
        Error::Parquet { doing: "write", table: self.table.clone(), source }
    }
}

/// What is known of a floating point column. Parquet's own statistics leave NaN out, and readers to which NaN is the greatest
/// number (DuckDB, and SQL with it) would skip rows by them: so the files have none for such columns, and the catalog has ours,
/// which say whether there is NaN.
#[derive(Debug, Default, Clone)]
pub(crate) struct Floats {
    pub nan: bool,
    pub nulls: i64,
    pub min: Option<ScalarValue>,
    pub max: Option<ScalarValue>,
}

impl Floats {
    fn see(&mut self, array: &ArrayRef) -> Result<()> {
        self.nulls += i64::try_from(array.null_count()).unwrap_or(0);
        let wide = arrow::compute::cast(array, &DataType::Float64)?;
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        let mut some = false;
        for value in wide.as_primitive::<Float64Type>().iter().flatten() {
            if value.is_nan() {
                self.nan = true;
            } else {
                (low, high, some) = (low.min(value), high.max(value), true);
            }
        }
        if some {
            let bound = |value: f64| ScalarValue::Float64(Some(value)).cast_to(array.data_type());
            let (low, high) = (bound(low)?, bound(high)?);
            if self.min.as_ref().is_none_or(|min| low < *min) {
                self.min = Some(low);
            }
            if self.max.as_ref().is_none_or(|max| high > *max) {
                self.max = Some(high);
            }
        }
        Ok(())
    }
}

/// zstd everywhere; dictionaries for columns whose values recur, DELTA encodings for the others.
fn properties(schema: &Schema, first: &RecordBatch) -> WriterProperties {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default();
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_created_by(concat!("headworks ", env!("CARGO_PKG_VERSION")).to_owned());
    for (field, array) in schema.fields().iter().zip(first.columns()) {
        let path = ColumnPath::from(field.name().as_str());
        properties = encoded(properties, path, array);
    }
    properties.build()
}

fn encoded(properties: WriterPropertiesBuilder, path: ColumnPath, array: &ArrayRef) -> WriterPropertiesBuilder {
    if array.data_type().is_floating() {
        return properties.set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    let encoding = match array.data_type() {
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Date32
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        // In Parquet these are integers of 32 or 64 bits.
        | DataType::Decimal128(..=18, _) => Encoding::DELTA_BINARY_PACKED,
        DataType::Utf8 | DataType::Binary => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        _ => return properties,
    };
    let sample = array.slice(0, array.len().min(SAMPLE_ROWS));
    // Integers in order are smaller by their differences than by any dictionary.
    let rises = encoding == Encoding::DELTA_BINARY_PACKED && rises(&sample);
    if recurs(&sample) && !rises {
        properties
    } else {
        properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding)
    }
}

/// True when no value is below the one before it, and at least one of sixteen is above.
fn rises(sample: &ArrayRef) -> bool {
    let Some(steps) = sample.len().checked_sub(1) else { return false };
    let (before, after) = (sample.slice(0, steps), sample.slice(1, steps));
    let falls = cmp::lt(&after, &before).is_ok_and(|lower| lower.has_true());
    !falls && cmp::gt(&after, &before).is_ok_and(|higher| higher.true_count() * 16 >= steps)
}

/// True when at most half of the values are distinct.
fn recurs(sample: &ArrayRef) -> bool {
    let mut hashes = vec![0; sample.len()];
    if create_hashes([sample], &RandomState::default(), &mut hashes).is_err() {
        return true;
    }
    let mut hashes: Vec<u64> =
        hashes.into_iter().enumerate().filter(|(i, _)| sample.is_valid(*i)).map(|(_, h)| h).collect();
    let values = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    hashes.len() * 2 <= values
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray};

    use super::*;

    /// The encoding that a column is written with; none for a dictionary.
    fn encoding(array: ArrayRef) -> Option<Encoding> {
        let path = ColumnPath::from("c");
        let properties = encoded(WriterProperties::builder(), path.clone(), &array).build();
        properties.encoding(&path).filter(|_| !properties.dictionary_enabled(&path))
    }

    #[test]
    fn values_are_encoded_as_they_come() {
        let ints = |values: &mut dyn Iterator<Item = i64>| encoding(Arc::new(Int64Array::from_iter_values(values)));
        let mixed = |n: i64| n * 7_919 % 1_000;
        let delta = Some(Encoding::DELTA_BINARY_PACKED);
        assert_eq!(ints(&mut (0..500).map(mixed)), delta);
        assert_eq!(ints(&mut (0..500).map(|n| mixed(n) % 10)), None);
        // Each four times, in order and not; nearly all the same, in order.
        assert_eq!(ints(&mut (0..500).map(|n| n / 4)), delta);
        assert_eq!(ints(&mut (0..500).map(|n| mixed(n) / 4 * 4 % 100)), None);
        assert_eq!(ints(&mut (0..500).map(|n| n / 200)), None);
        assert_eq!(ints(&mut std::iter::repeat_n(7, 500)), None);
        assert_eq!(ints(&mut (0..1)), delta);
        assert_eq!(ints(&mut (0..0)), None);

        assert_eq!(encoding(Arc::new(Date32Array::from_iter_values(0..500))), delta);
        let prices = || Decimal128Array::from_iter_values((0..500).map(|n| i128::from(mixed(n))));
        assert_eq!(encoding(Arc::new(prices().with_precision_and_scale(15, 2).unwrap())), delta);
        assert_eq!(encoding(Arc::new(prices().with_precision_and_scale(19, 2).unwrap())), None);
        let texts = StringArray::from_iter_values((0..500).map(|n| n.to_string()));
        assert_eq!(encoding(Arc::new(texts)), Some(Encoding::DELTA_LENGTH_BYTE_ARRAY));
        assert_eq!(encoding(Arc::new(Float64Array::from_iter_values([1.5, 2.5]))), None);
    }
}
