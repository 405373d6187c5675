//! Results that are kept: in memory while small, in a file when larger.

use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    error::ArrowError,
    ipc::{
        CompressionType,
        reader::FileReader,
        writer::{FileWriter, IpcWriteOptions},
    },
};

use crate::{Error, Result};

/// A whole result. Reading it blocks while it comes from a file.
#[derive(Debug)]
pub struct Stored {
    schema: SchemaRef,
    /// Rows of each batch.
    counts: Vec<usize>,
    bytes: u64,
    body: Body,
}

/// The size up to which a result is small.
const SMALL_BYTES: u64 = 64 << 10;

#[derive(Debug)]
enum Body {
    Memory(Vec<RecordBatch>),
    File(OwnFile),
}

/// A file that goes with its owner.
#[derive(Debug)]
struct OwnFile(PathBuf);

impl Drop for OwnFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Stored {
    /// Keeps batches in memory.
    pub(crate) fn in_memory(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let counts = batches.iter().map(RecordBatch::num_rows).collect();
        let bytes = batches.iter().map(|b| bytes_of(b) as u64).sum();
        Self { schema, counts, bytes, body: Body::Memory(batches) }
    }

    /// The columns of all batches.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Rows in all.
    pub fn rows(&self) -> u64 {
        self.counts.iter().map(|n| *n as u64).sum()
    }

    /// Bytes that it takes, in memory or on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True when it lies in a file.
    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.body, Body::File(_))
    }

    /// True when its rows are read and written in less than a millisecond.
    pub(crate) fn is_small(&self) -> bool {
        !self.is_on_disk() && self.bytes <= SMALL_BYTES
    }

    /// Reads one batch; `None` behind the last. Errors: `Spool` when its file cannot be read.
    fn batch(&self, index: usize) -> Result<Option<RecordBatch>> {
        match &self.body {
            Body::Memory(batches) => Ok(batches.get(index).cloned()),
            Body::File(_) if index >= self.counts.len() => Ok(None),
            Body::File(OwnFile(path)) => {
                let mut reader = open(path)?;
                reader.set_index(index).map_err(spool)?;
                reader.next().transpose().map_err(spool)
            }
        }
    }
}

/// Rows of a result from one on, batch by batch. Reading them blocks while they come from a file.
pub(crate) struct Rows {
    stored: Arc<Stored>,
    next: usize,
    skip: u64,
    left: u64,
}

impl Rows {
    /// At most `left` rows, the first `skip` left out.
    pub(crate) fn new(stored: Arc<Stored>, skip: u64, left: u64) -> Self {
        Self { stored, next: 0, skip, left }
    }

    /// The result, when these are all of its rows and none was taken.
    pub(crate) fn whole(&self) -> Option<Arc<Stored>> {
        let is_whole = self.next == 0 && self.skip == 0 && self.left >= self.stored.rows();
        is_whole.then(|| Arc::clone(&self.stored))
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rows) = self.stored.counts.get(self.next).map(|rows| *rows as u64).filter(|n| *n <= self.skip) {
            self.skip -= rows;
            self.next += 1;
        }
        if self.left == 0 {
            return None;
        }
        let batch = self.stored.batch(self.next).transpose();
        self.next += 1;
        let from = usize::try_from(std::mem::take(&mut self.skip)).unwrap_or(usize::MAX);
        let part = |batch: RecordBatch| first_rows(batch.slice(from, batch.num_rows() - from), &mut self.left);
        batch.map(|batch| batch.map(part))
    }
}

/// The rows of a batch that are still wanted.
pub(crate) fn first_rows(batch: RecordBatch, left: &mut u64) -> RecordBatch {
    let rows = batch.num_rows().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= rows as u64;
    if rows == batch.num_rows() { batch } else { batch.slice(0, rows) }
}

fn open(path: &Path) -> Result<FileReader<BufReader<File>>> {
    let file = File::open(path).map_err(Error::Spool)?;
    FileReader::try_new(BufReader::new(file), None).map_err(spool)
}

fn spool(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => Error::Spool(error),
        other => Error::Spool(std::io::Error::other(other)),
    }
}

/// Memory that a batch holds; slices count whole.
pub(crate) fn bytes_of(batch: &RecordBatch) -> usize {
    batch.get_array_memory_size()
}

/// Collects a result's batches.
pub(crate) struct Collector {
    schema: SchemaRef,
    folder: PathBuf,
    memory_max: usize,
    counts: Vec<usize>,
    bytes: usize,
    memory: Vec<RecordBatch>,
    file: Option<(OwnFile, FileWriter<BufWriter<File>>)>,
}

impl Collector {
    /// Results above `memory_max` bytes go to a file in `folder`.
    pub(crate) fn new(schema: SchemaRef, folder: &Path, memory_max: usize) -> Self {
        Self {
            schema,
            folder: folder.to_owned(),
            memory_max,
            counts: Vec::new(),
            bytes: 0,
            memory: Vec::new(),
            file: None,
        }
    }

    /// Adds a batch. Errors: `Spool` when the disk does not take it.
    pub(crate) fn push(&mut self, batch: RecordBatch) -> Result<()> {
        self.counts.push(batch.num_rows());
        self.bytes += bytes_of(&batch);
        if let Some((_, writer)) = &mut self.file {
            return writer.write(&batch).map_err(spool);
        }
        self.memory.push(batch);
        if self.bytes > self.memory_max {
            let (file, mut writer) = create(&self.folder, &self.schema)?;
            for batch in self.memory.drain(..) {
                writer.write(&batch).map_err(spool)?;
            }
            self.file = Some((file, writer));
        }
        Ok(())
    }

    /// The whole result. Errors: as of [`push`](Self::push).
    pub(crate) fn finish(self) -> Result<Stored> {
        let Self { schema, counts, bytes, memory, file, .. } = self;
        let Some((file, mut writer)) = file else {
            return Ok(Stored { schema, counts, bytes: bytes as u64, body: Body::Memory(memory) });
        };
        writer.finish().map_err(spool)?;
        let bytes = std::fs::metadata(&file.0).map_err(Error::Spool)?.len();
        Ok(Stored { schema, counts, bytes, body: Body::File(file) })
    }
}

/// The same result in a file. Errors: `Spool`.
pub(crate) fn to_file(stored: &Arc<Stored>, folder: &Path) -> Result<Stored> {
    let mut collector = Collector::new(stored.schema(), folder, 0);
    for batch in Rows::new(Arc::clone(stored), 0, u64::MAX) {
        collector.push(batch?)?;
    }
    collector.finish()
}

fn create(folder: &Path, schema: &SchemaRef) -> Result<(OwnFile, FileWriter<BufWriter<File>>)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("{}-{number}.arrow", std::process::id()));
    let file = File::create(&path).map_err(Error::Spool)?;
    let file = (OwnFile(path), BufWriter::new(file));
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).map_err(spool)?;
    let writer = FileWriter::try_new_with_options(file.1, schema, options).map_err(spool)?;
    Ok((file.0, writer))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn pages_are_the_same_from_memory_and_file() {
        let dir = tempfile::TempDir::new().unwrap();
        let batch = |values: std::ops::Range<i64>| {
            let values: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
            RecordBatch::try_from_iter([("n", values)]).unwrap()
        };
        for memory_max in [0, 1 << 20] {
            let mut collector = Collector::new(batch(0..0).schema(), dir.path(), memory_max);
            for batch in [batch(0..3), batch(3..3), batch(3..10)] {
                collector.push(batch).unwrap();
            }
            let stored = Arc::new(collector.finish().unwrap());
            assert_eq!((stored.rows(), stored.counts.len(), stored.is_on_disk()), (10, 3, memory_max == 0));
            let check = |offset: u64, limit: u64, expected: &[i64]| {
                let page: Vec<RecordBatch> =
                    Rows::new(Arc::clone(&stored), offset, limit).collect::<Result<_>>().unwrap();
                let values: Vec<i64> =
                    page.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
                assert_eq!(values, expected, "{offset} {limit}");
            };
            check(0, 2, &[0, 1]);
            check(2, 3, &[2, 3, 4]);
            check(9, 5, &[9]);
            check(10, 5, &[]);
            check(0, 0, &[]);
            assert!(stored.batch(3).unwrap().is_none());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "files go with their results");
    }
}
