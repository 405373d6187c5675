//! Files that others left, as the rows of one table: which files, one schema for all of them, the partition of each row.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use arrow::{
    array::{Array, ArrayRef, AsArray, Date32Array, Int32Array, RecordBatch, new_null_array},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Date32Type, Field, Schema, SchemaRef},
};
use chrono::NaiveDate;
use headworks_connect::files::{self, FileFormat, FileInput, FileOptions};
use headworks_domain::{Ds, ErrorKind, PartitionKey};
use tokio::sync::mpsc;

use crate::fail::Failure;

/// Where to look, and what cuts the rows.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// A file or a folder.
    pub(crate) path: PathBuf,
    /// The path as typed.
    pub(crate) shown: PathBuf,
    /// The column whose days are the partitions, for files outside `ds=` folders.
    pub(crate) partition_by: String,
}

/// One file.
#[derive(Debug, Clone)]
pub(crate) struct OneFile {
    path: PathBuf,
    /// Its path as a person knows it.
    pub(crate) shown: String,
    /// Its format.
    pub(crate) format: &'static str,
    /// Its size.
    pub(crate) bytes: u64,
    /// The partition that its folders name.
    folder: Option<PartitionKey>,
}

/// What was found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    options: Options,
    /// The files, sorted by path.
    pub(crate) files: Vec<OneFile>,
    /// The columns of the table: `ds`, perhaps `hour`, then those of the files.
    pub(crate) schema: SchemaRef,
    /// The rows of each partition.
    pub(crate) partitions: BTreeMap<PartitionKey, u64>,
}

impl Found {
    /// The rows of all files.
    pub(crate) fn rows(&self) -> u64 {
        self.partitions.values().sum()
    }

    /// The bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// The partition columns that the table has.
    pub(crate) fn partition_columns(&self) -> Vec<&'static str> {
        self.partitions.keys().next().map_or_else(|| vec!["ds"], PartitionKey::columns)
    }

    /// Reads all files once more, row by row as they go into the table.
    pub(crate) fn rows_stream(&self) -> headworks_lake::Rows {
        let (tell, mut told) = mpsc::channel(2);
        let (options, files, schema) = (self.options.clone(), self.files.clone(), self.schema.clone());
        tokio::task::spawn_blocking(move || {
            for file in &files {
                let result = each_batch(file, &options, &schema, &mut |batch| {
                    tell.blocking_send(Ok(batch)).map_err(|_| anyhow::anyhow!("nobody takes the rows any more"))
                });
                if let Err(error) = result {
                    // The receiver is gone when it failed itself; then it knows why.
                    let _ = tell.blocking_send(Err(error));
                    return;
                }
            }
        });
        let stream = futures::stream::poll_fn(move |context| told.poll_recv(context));
        headworks_lake::rows(self.schema.clone(), stream)
    }
}

/// Finds the files, agrees on one schema, and counts the rows of each partition. Reads every file once.
///
/// Errors: no files, columns that do not agree, rows without a day.
pub(crate) async fn look(options: Options) -> anyhow::Result<Found> {
    tokio::task::spawn_blocking(move || look_now(options)).await.context("a file could not be read")?
}

fn look_now(options: Options) -> anyhow::Result<Found> {
    let mut files = list(&options)?;
    let mut columns: Vec<(Field, String)> = Vec::new();
    for file in &mut files {
        let reader = open(file)?;
        file.format = format_word(reader.format);
        for field in reader.schema.fields() {
            agree(&mut columns, field, &file.shown)?;
        }
    }
    let with_hour = files.iter().any(|f| f.folder.as_ref().is_some_and(|key| key.hour.is_some()));
    check_folders(&files, with_hour)?;
    let in_folders = files.iter().all(|f| f.folder.is_some());
    if !in_folders && !columns.iter().any(|(field, _)| *field.name() == options.partition_by) {
        return Err(no_partition_column(&options, &columns).into());
    }
    let mut fields = vec![Field::new("ds", DataType::Date32, false)];
    if with_hour {
        fields.push(Field::new("hour", DataType::Int32, false));
    }
    for (field, file) in columns {
        let is_key = field.name() == "ds" || (with_hour && field.name() == "hour");
        if is_key && !in_folders && options.partition_by != "ds" {
            return Err(Failure::new(
                ErrorKind::Invalid,
                "ADOPT_COLUMN",
                format!(
                    "`{file}` has a column `ds` of its own, and the partitions are to come from `{}`",
                    options.partition_by
                ),
            )
            .hint("leave --partition-by out, so that `ds` names the partitions, or rename the column in the files")
            .into());
        }
        if !is_key {
            fields.push(field.with_nullable(true));
        }
    }
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let mut partitions = BTreeMap::new();
    for file in &files {
        each_batch(file, &options, &schema, &mut |batch| {
            count(&batch, with_hour, &mut partitions);
            Ok(())
        })?;
    }
    if partitions.is_empty() {
        return Err(Failure::new(
            ErrorKind::Invalid,
            "ADOPT_EMPTY",
            format!("the files in `{}` have no rows", options.shown.display()),
        )
        .hint("name other files")
        .into());
    }
    Ok(Found { options, files, schema, partitions })
}

/// Lists data files; names that begin with `_` or `.` are other programs' notes.
fn list(options: &Options) -> anyhow::Result<Vec<OneFile>> {
    let shown = options.shown.display();
    let meta = match std::fs::metadata(&options.path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(
                Failure::not_found(format!("there is no `{shown}`"), "name a file or a folder with files").into()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read `{shown}`")),
    };
    if meta.is_file() {
        let file = OneFile {
            path: options.path.clone(),
            shown: shown.to_string(),
            format: "",
            bytes: meta.len(),
            folder: None,
        };
        return Ok(vec![file]);
    }
    let mut found = Vec::new();
    walk(&options.path, Path::new(""), options, &mut found)?;
    found.sort_by(|a: &OneFile, b| a.path.cmp(&b.path));
    if found.is_empty() {
        let hint = "files are told by their endings: .parquet, .orc, .csv";
        return Err(Failure::not_found(format!("`{shown}` holds no files to take in"), hint).into());
    }
    Ok(found)
}

fn walk(folder: &Path, below: &Path, options: &Options, found: &mut Vec<OneFile>) -> anyhow::Result<()> {
    let cannot = || format!("cannot read the folder `{}`", folder.display());
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(['_', '.']) {
            continue;
        }
        let (path, below) = (entry.path(), below.join(&name));
        let meta = std::fs::metadata(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        if meta.is_dir() {
            walk(&path, &below, options, found)?;
        } else if is_data(&name) {
            let shown = options.shown.join(&below).display().to_string();
            let folder = folder_key(&below, &shown)?;
            found.push(OneFile { path, shown, format: "", bytes: meta.len(), folder });
        }
    }
    Ok(())
}

fn is_data(name: &str) -> bool {
    let ending = name.rsplit('.').next().map(str::to_lowercase).unwrap_or_default();
    matches!(ending.as_str(), "parquet" | "parq" | "pq" | "orc" | "csv" | "tsv")
}

/// The partition that folders like `ds=2018-02-20/hour=05` name.
fn folder_key(below: &Path, shown: &str) -> Result<Option<PartitionKey>, Failure> {
    let parts: Vec<String> = below.parent().into_iter().flatten().map(|p| p.to_string_lossy().into_owned()).collect();
    let keys: Vec<&str> = ["ds=", "hour=", "event_type="]
        .iter()
        .filter_map(|prefix| parts.iter().find(|p| p.starts_with(prefix)).map(String::as_str))
        .collect();
    if !keys.first().is_some_and(|first| first.starts_with("ds=")) {
        return Ok(None);
    }
    keys.join("/").parse().map(Some).map_err(|error: headworks_domain::PartitionKeyError| {
        Failure::new(ErrorKind::Invalid, "ADOPT_FOLDER", format!("the folders of `{shown}` name no partition: {error}"))
            .hint("rename the folders, or take in each file by itself with --partition-by")
    })
}

fn check_folders(files: &[OneFile], with_hour: bool) -> Result<(), Failure> {
    let shape = |file: &OneFile| file.folder.as_ref().map(PartitionKey::columns);
    let Some(first) = files.first() else { return Ok(()) };
    if let Some(other) = files.iter().find(|f| (with_hour || shape(f).is_some()) && shape(f) != shape(first)) {
        return Err(Failure::new(
            ErrorKind::Invalid,
            "ADOPT_FOLDER",
            format!("`{}` and `{}` lie in folders of different shapes", first.shown, other.shown),
        )
        .hint("take them in one after the other"));
    }
    if shape(first).is_some_and(|columns| columns.contains(&"event_type")) {
        return Err(Failure::new(ErrorKind::Invalid, "ADOPT_FOLDER", "folders by event type can't be taken in yet")
            .hint("take in each type's folder by itself, into a table of its own"));
    }
    Ok(())
}

fn open(file: &OneFile) -> anyhow::Result<files::FileReader> {
    Ok(files::open(FileInput::Path(file.path.clone()), &FileOptions::default())?)
}

fn format_word(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Parquet => "parquet",
        FileFormat::Orc => "orc",
        FileFormat::Csv => "csv",
    }
}

/// Adds a file's column to those known, widening its type where nothing is lost.
fn agree(columns: &mut Vec<(Field, String)>, field: &Field, file: &str) -> Result<(), Failure> {
    let Some((known, first)) = columns.iter_mut().find(|(known, _)| known.name() == field.name()) else {
        columns.push((field.clone(), file.to_owned()));
        return Ok(());
    };
    match common(known.data_type(), field.data_type()) {
        Some(data_type) => {
            *known = known.clone().with_data_type(data_type);
            Ok(())
        }
        None => Err(Failure::new(
            ErrorKind::Invalid,
            "ADOPT_TYPES",
            format!(
                "column `{}` is {} in `{first}` and {} in `{file}`",
                field.name(),
                known.data_type(),
                field.data_type()
            ),
        )
        .hint("take in the files that agree first, and convert the others")),
    }
}

/// The narrowest type that holds the values of both exactly.
fn common(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Boolean, Float32, Float64, Int8, Int16, Int32, Int64, Null, Utf8};
    let rank = |t: &DataType| [Int8, Int16, Int32, Int64].iter().position(|i| i == t);
    if a == b {
        return Some(a.clone());
    }
    match (a, b) {
        (Null, other) | (other, Null) => Some(other.clone()),
        (Float32, Float64) | (Float64, Float32) => Some(Float64),
        (Int8 | Int16 | Int32, Float64) | (Float64, Int8 | Int16 | Int32) => Some(Float64),
        (Utf8, Boolean) | (Boolean, Utf8) => None,
        _ => match (rank(a)?, rank(b)?) {
            (x, y) if x > y => Some(a.clone()),
            _ => Some(b.clone()),
        },
    }
}

fn no_partition_column(options: &Options, columns: &[(Field, String)]) -> Failure {
    let names: Vec<&str> = columns.iter().map(|(f, _)| f.name().as_str()).collect();
    let dated: Vec<&str> =
        columns.iter().filter(|(f, _)| f.data_type().is_temporal()).map(|(f, _)| f.name().as_str()).collect();
    let message = format!("the files in `{}` have no column `{}`", options.shown.display(), options.partition_by);
    let near = headworks_domain::nearest(&options.partition_by, names.iter().copied());
    let hint = match (near, dated.first()) {
        (Some(near), _) => format!("did you mean --partition-by {near}?"),
        (None, Some(dated)) => format!("name a column of days or times, as --partition-by {dated}"),
        (None, None) => format!("name one of {} with --partition-by", names.join(", ")),
    };
    Failure::new(ErrorKind::Invalid, "ADOPT_COLUMN", message).hint(hint)
}

/// Reads a file and hands on its batches in the table's schema.
fn each_batch(
    file: &OneFile,
    options: &Options,
    schema: &SchemaRef,
    take: &mut dyn FnMut(RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut row = 0;
    for batch in open(file)? {
        let batch = batch?;
        if batch.num_rows() > 0 {
            take(conformed(&batch, file, options, schema, row)?)?;
        }
        row += batch.num_rows();
    }
    Ok(())
}

fn conformed(
    batch: &RecordBatch,
    file: &OneFile,
    options: &Options,
    schema: &SchemaRef,
    first_row: usize,
) -> anyhow::Result<RecordBatch> {
    let rows = batch.num_rows();
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (i, field) in schema.fields().iter().enumerate() {
        let column = match (i, field.name().as_str(), &file.folder) {
            (0, _, Some(key)) => Arc::new(Date32Array::from_value(days(key.ds), rows)) as ArrayRef,
            (0, _, None) => days_of(batch, file, options, first_row)?,
            (1, "hour", Some(PartitionKey { hour: Some(hour), .. })) => {
                Arc::new(Int32Array::from_value(i32::from(*hour), rows)) as ArrayRef
            }
            (_, name, _) => match batch.column_by_name(name) {
                None => new_null_array(field.data_type(), rows),
                Some(column) => cast_with_options(column, field.data_type(), &strict)
                    .with_context(|| format!("column `{name}` of `{}` does not fit", file.shown))?,
            },
        };
        columns.push(column);
    }
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

/// The days of the partition column. Errors: a value that is no day, or none.
fn days_of(batch: &RecordBatch, file: &OneFile, options: &Options, first_row: usize) -> anyhow::Result<ArrayRef> {
    let name = &options.partition_by;
    let column = batch.column_by_name(name).with_context(|| format!("`{}` has no column `{name}`", file.shown))?;
    // An instant's day is UTC's.
    let cast = cast_with_options(column, &DataType::Date32, &CastOptions { safe: true, ..CastOptions::default() })
        .map_err(|_| not_days(file, name, column.data_type()))?;
    match (0..cast.len()).find(|row| cast.is_null(*row)) {
        None => Ok(cast),
        Some(row) => Err(Failure::new(
            ErrorKind::Invalid,
            "ADOPT_NO_DAY",
            format!("row {} of `{}` has no day in column `{name}`", first_row + row + 1, file.shown),
        )
        .hint("days are written 2018-02-20; give every row one, or partition by another column")
        .into()),
    }
}

fn not_days(file: &OneFile, column: &str, data_type: &DataType) -> Failure {
    let message = format!("column `{column}` of `{}` is {data_type}, which has no days", file.shown);
    Failure::new(ErrorKind::Invalid, "ADOPT_NO_DAY", message).hint("partition by a column of days or times")
}

fn days(ds: Ds) -> i32 {
    let since = ds.date().signed_duration_since(NaiveDate::default()).num_days();
    i32::try_from(since).expect("the calendar's days fit into 32 bits")
}

fn count(batch: &RecordBatch, with_hour: bool, partitions: &mut BTreeMap<PartitionKey, u64>) {
    let ds = batch.column(0).as_primitive::<Date32Type>();
    let hours = with_hour.then(|| batch.column(1).as_primitive::<arrow::datatypes::Int32Type>());
    let mut row = 0;
    while row < ds.len() {
        // Rows of one day mostly stand together.
        let day = ds.value(row);
        let hour = hours.map(|h| h.value(row));
        let mut end = row + 1;
        while end < ds.len() && ds.value(end) == day && hours.map(|h| h.value(end)) == hour {
            end += 1;
        }
        let date = NaiveDate::default() + chrono::TimeDelta::days(day.into());
        let key = PartitionKey { ds: date.into(), hour: hour.and_then(|h| u8::try_from(h).ok()), event_type: None };
        *partitions.entry(key).or_default() += (end - row) as u64;
        row = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_at(files: &[(&str, &str)], partition_by: &str) -> anyhow::Result<Found> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join("old").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        look_now(Options { path: dir.path().join("old"), shown: "old".into(), partition_by: partition_by.to_owned() })
    }

    fn check(files: &[(&str, &str)], partition_by: &str, expected: &str) {
        let shown = match look_at(files, partition_by) {
            Ok(found) => {
                let columns: Vec<String> =
                    found.schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
                let partitions: Vec<String> = found.partitions.iter().map(|(k, n)| format!("{k}: {n}")).collect();
                format!("{}; {}", columns.join(", "), partitions.join(", "))
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn columns_or_folders_cut_partitions() {
        check(
            &[("a.csv", "day,n\n2018-02-20,1\n2018-02-21,2\n2018-02-21,3\n"), ("_notes.csv", "x\n")],
            "day",
            "ds Date32, day Date32, n Int64; ds=2018-02-20: 1, ds=2018-02-21: 2",
        );
        check(
            &[("ds=2018-02-20/a.csv", "n\n1\n"), ("ds=2018-02-21/a.csv", "n,x\n2,0.5\n")],
            "ds",
            "ds Date32, n Int64, x Float64; ds=2018-02-20: 1, ds=2018-02-21: 1",
        );
        check(
            &[("ds=2018-02-20/hour=05/a.csv", "n\n1\n")],
            "ds",
            "ds Date32, hour Int32, n Int64; ds=2018-02-20/hour=05: 1",
        );
        check(&[("a.csv", "ds,n\n2018-02-20,1\n")], "ds", "ds Date32, n Int64; ds=2018-02-20: 1");
    }

    #[test]
    fn what_does_not_fit_is_told() {
        check(&[("a.csv", "day,n\n2018-02-20,1\n")], "dya", "the files in `old` have no column `dya`");
        check(&[("a.csv", "day,n\n2018-02-20,1\n,2\n")], "day", "row 2 of `old/a.csv` has no day in column `day`");
        check(
            &[("a.csv", "day,n\n2018-02-20,1\n"), ("b.csv", "day,n\n2018-02-20,x\n")],
            "day",
            "column `n` is Int64 in `old/a.csv` and Utf8 in `old/b.csv`",
        );
        check(
            &[("ds=2018-2-1/a.csv", "n\n1\n")],
            "ds",
            "the folders of `old/ds=2018-2-1/a.csv` name no partition: `2018-2-1` is not a day: write it as 2018-02-20",
        );
        check(&[("notes.txt", "")], "ds", "`old` holds no files to take in");
        check(&[("a.csv", "day,n\n")], "day", "the files in `old` have no rows");
    }
}
