//! Files that others left, as Arrow batches: Parquet, ORC and CSV.
//!
//! ```no_run
//! use headworks_connect::files::{FileInput, FileOptions, open};
//! let reader = open(FileInput::Path("export/2013-01-01.parquet".into()), &FileOptions::default())?;
//! let schema = reader.schema.clone();
//! for batch in reader {
//!     assert_eq!(batch?.schema(), schema);
//! }
//! # Ok::<(), headworks_connect::Error>(())
//! ```

mod conform;
mod csv;
mod find;
mod guard;
mod orc;

use std::{
    fs::File,
    io::{self, Cursor, Read},
    path::PathBuf,
    sync::Arc,
};

use arrow::{
    array::{RecordBatch, RecordBatchReader},
    datatypes::SchemaRef,
};
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::{
    arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    file::reader::ChunkReader,
};

use self::guard::{Guarded, guarded};
use crate::error::{Error, Result};

pub(crate) use conform::conform_batch;
pub use find::{find, find_object};

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub enum FileInput {
    /// On this machine.
    Path(PathBuf),
    /// In memory.
    Bytes {
        /// What errors call it, as `s3://bucket/export.orc`.
        name: String,
        /// All of them.
        bytes: Bytes,
    },
}

/// The formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Apache Parquet.
    Parquet,
    /// Apache ORC.
    Orc,
    /// Values parted by a comma or another sign, one row a line (RFC 4180).
    Csv,
}

/// How a file is read.
#[derive(Debug, Clone)]
pub struct FileOptions {
    /// Its format; told from its first bytes, else from its name, when none.
    pub format: Option<FileFormat>,
    /// How many rows a batch has at most.
    pub batch_rows_max: usize,
    /// How CSV is read.
    pub csv: CsvOptions,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { format: None, batch_rows_max: 16_384, csv: CsvOptions::default() }
    }
}

/// How CSV is read.
#[derive(Debug, Clone)]
pub struct CsvOptions {
    /// What parts the values; told from the first line when none: the most frequent of comma, tab, semicolon and bar.
    pub delimiter: Option<u8>,
    /// What stands around values that hold delimiters or line ends.
    pub quote: u8,
    /// True when the first line names the columns; else they are called `column_1` and so on.
    pub header: bool,
    /// True when all columns are text; else each gets the narrowest type that holds all its values exactly, found by reading
    /// the whole file before the first batch.
    pub all_text: bool,
    /// What is written for a value that is missing.
    pub nulls: Vec<String>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { delimiter: None, quote: b'"', header: true, all_text: false, nulls: vec![String::new()] }
    }
}

/// A file's batches.
///
/// Types are those of the lake: text, blobs and lists with 32-bit offsets, times in microseconds, no dictionaries. A value
/// that cannot be kept so exactly is an error.
pub struct FileReader {
    /// The schema of every batch.
    pub schema: SchemaRef,
    /// The format it turned out to have.
    pub format: FileFormat,
    batches: Box<dyn Iterator<Item = Result<RecordBatch>> + Send>,
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").field("schema", &self.schema).field("format", &self.format).finish_non_exhaustive()
    }
}

impl Iterator for FileReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batches.next()
    }
}

/// Opens a file. Reading is blocking work: keep it off a runtime's threads.
///
/// Errors: `FileMissing`, `FileRead`; `FileCorrupt` for files that are empty, cut short or of another format, here or out of
/// the iterator; `FileUnsupported`.
pub fn open(input: FileInput, options: &FileOptions) -> Result<FileReader> {
    let name = input.name();
    let format = match options.format {
        Some(format) => format,
        None => detect(&input, &name)?,
    };
    let rows_max = options.batch_rows_max.max(1);
    let (schema, batches) = match format {
        FileFormat::Parquet => open_parquet(&input, &name, rows_max)?,
        FileFormat::Orc => orc::open(&input, &name, rows_max)?,
        FileFormat::Csv => return csv::open(input, name, rows_max, &options.csv),
    };
    let lake_schema = Arc::new(conform::conform_schema(&schema, &name)?);
    let target = lake_schema.clone();
    let batches = batches.map(move |batch| conform_batch(batch?, &target).map_err(|e| corrupt_or_lossy(&name, e)));
    Ok(FileReader { schema: lake_schema, format, batches: Box::new(batches) })
}

/// Gets an object's bytes. A table's files are read one by one, each whole: they must fit into memory.
///
/// Errors: `FileMissing`, `FileRead`.
pub async fn fetch(store: &dyn ObjectStore, path: &object_store::path::Path) -> Result<FileInput> {
    let name = path.to_string();
    let failed = |e: object_store::Error| match e {
        object_store::Error::NotFound { .. } => Error::FileMissing { file: name.clone() },
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Error::FileRead {
            file: name.clone(),
            source: io::Error::new(io::ErrorKind::PermissionDenied, e.to_string()),
        },
        other => Error::FileRead { file: name.clone(), source: io::Error::other(other.to_string()) },
    };
    let bytes = store.get(path).await.map_err(&failed)?.bytes().await.map_err(&failed)?;
    Ok(FileInput::Bytes { name, bytes })
}

impl FileInput {
    fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Bytes { name, .. } => name.clone(),
        }
    }

    fn file(path: &PathBuf) -> Result<File> {
        let file = path.display().to_string();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::FileMissing { file: file.clone() },
            _ => Error::FileRead { file: file.clone(), source },
        };
        let opened = File::open(path).map_err(failed)?;
        if opened.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        Ok(opened)
    }

    /// The bytes from the beginning on.
    fn reader(&self) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Path(path) => Box::new(Self::file(path)?),
            Self::Bytes { bytes, .. } => Box::new(Cursor::new(bytes.clone())),
        })
    }
}

fn detect(input: &FileInput, name: &str) -> Result<FileFormat> {
    let mut start = Vec::new();
    let read = input.reader()?.take(4).read_to_end(&mut start);
    read.map_err(|source| Error::FileRead { file: name.to_owned(), source })?;
    let by_name = match name.rsplit('.').next().map(str::to_ascii_lowercase).as_deref() {
        Some("parquet" | "parq" | "pq") => Some(FileFormat::Parquet),
        Some("orc") => Some(FileFormat::Orc),
        Some("csv" | "tsv" | "txt") => Some(FileFormat::Csv),
        _ => None,
    };
    match start.as_slice() {
        b"PAR1" => Ok(FileFormat::Parquet),
        [b'O', b'R', b'C', ..] if by_name != Some(FileFormat::Csv) => Ok(FileFormat::Orc),
        _ => by_name.ok_or_else(|| Error::FileUnsupported {
            file: name.to_owned(),
            reason: "its name and its first bytes tell no format".to_owned(),
            hint: "name it `.parquet`, `.orc` or `.csv`, or say which of them it is".to_owned(),
        }),
    }
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

fn open_parquet(input: &FileInput, name: &str, rows_max: usize) -> Result<(SchemaRef, Batches)> {
    fn build<R: ChunkReader + 'static>(from: R, rows_max: usize) -> Result<ParquetRecordBatchReader, String> {
        guarded(|| ParquetRecordBatchReaderBuilder::try_new(from)?.with_batch_size(rows_max).build())
    }
    let reader = match input {
        FileInput::Path(path) => build(FileInput::file(path)?, rows_max),
        FileInput::Bytes { bytes, .. } => build(bytes.clone(), rows_max),
    };
    let corrupt = corrupt(name, "Parquet");
    let reader = reader.map_err(&corrupt)?;
    Ok((reader.schema(), Box::new(Guarded::new(reader, corrupt))))
}

fn corrupt(name: &str, format: &'static str) -> impl Fn(String) -> Error + Send + use<> {
    let file = name.to_owned();
    move |reason| Error::FileCorrupt { file: file.clone(), format, reason }
}

fn corrupt_or_lossy(name: &str, reason: String) -> Error {
    Error::FileUnsupported {
        file: name.to_owned(),
        reason,
        hint: "write the file with times in microseconds and numbers within 38 digits".to_owned(),
    }
}
