//! Reads Parquet files and tells a damaged one by name.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use datafusion::{
    datasource::{
        listing::PartitionedFile,
        physical_plan::{ParquetFileReaderFactory, parquet::CachedParquetFileReaderFactory},
    },
    execution::runtime_env::RuntimeEnv,
    physical_plan::metrics::ExecutionPlanMetricsSet,
};
use futures::{FutureExt as _, future::BoxFuture};
use object_store::{ObjectStore, ObjectStoreExt as _, local::LocalFileSystem, path::Path};
use parquet::{
    arrow::{arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader},
    errors::{ParquetError, Result as ParquetResult},
    file::metadata::ParquetMetaData,
};

use super::files::Place;
use crate::{Error, storage::Storage};

/// Gives readers that look closer when something fails: a file that is missing, or has not the size that the catalog has, or
/// does not parse is damage and never mistaken for anything else.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    lake: Arc<dyn ObjectStore>,
    machine: Arc<dyn ObjectStore>,
}

impl Checked {
    pub(super) fn new(storage: &Storage) -> Self {
        Self { lake: Arc::clone(storage.files()), machine: Arc::new(LocalFileSystem::new()) }
    }

    pub(super) fn store(&self, place: &Place) -> Arc<dyn ObjectStore> {
        match place {
            Place::Lake(_) => Arc::clone(&self.lake),
            Place::Machine(_) => Arc::clone(&self.machine),
        }
    }

    /// Makes readers for one of the stores; footers are kept in the session's cache.
    pub(super) fn factory(&self, runtime: &RuntimeEnv, machine: bool) -> Arc<dyn ParquetFileReaderFactory> {
        let store = if machine { Arc::clone(&self.machine) } else { Arc::clone(&self.lake) };
        let cache = runtime.cache_manager.get_file_metadata_cache();
        let inner = Arc::new(CachedParquetFileReaderFactory::new(Arc::clone(&store), cache));
        Arc::new(Factory { checked: self.clone(), store, inner })
    }

    /// Finds out what is wrong with a file that could not be read.
    pub(super) async fn diagnose(
        &self,
        store: &Arc<dyn ObjectStore>,
        path: &Path,
        size: u64,
        error: ParquetError,
    ) -> Error {
        let what = match store.head(path).await {
            Ok(meta) if meta.size != size => format!("file `{path}` has {} bytes instead of {size}", meta.size),
            Ok(_) if matches!(error, ParquetError::External(_)) => {
                return match error {
                    ParquetError::External(source) => match source.downcast::<object_store::Error>() {
                        Ok(source) => Error::Storage { doing: "read", path: path.to_string(), source: *source },
                        Err(source) => Error::Corrupt { what: format!("file `{path}` cannot be read: {source}") },
                    },
                    other => Error::Corrupt { what: format!("file `{path}` cannot be read: {other}") },
                };
            }
            Ok(_) => format!("file `{path}` is no valid Parquet: {error}"),
            Err(object_store::Error::NotFound { .. }) => format!("file `{path}` is missing"),
            Err(source) => return Error::Storage { doing: "read", path: path.to_string(), source },
        };
        Error::Corrupt { what }
    }
}

#[derive(Debug)]
struct Factory {
    checked: Checked,
    store: Arc<dyn ObjectStore>,
    inner: Arc<dyn ParquetFileReaderFactory>,
}

impl ParquetFileReaderFactory for Factory {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> datafusion::error::Result<Box<dyn AsyncFileReader + Send>> {
        let (path, size) = (file.object_meta.location.clone(), file.object_meta.size);
        let inner = self.inner.create_reader(partition_index, file, metadata_size_hint, metrics)?;
        let file = Watched { checked: self.checked.clone(), store: Arc::clone(&self.store), path, size };
        Ok(Box::new(Reader { file, inner }))
    }
}

struct Reader {
    file: Watched,
    inner: Box<dyn AsyncFileReader + Send>,
}

struct Watched {
    checked: Checked,
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

impl Watched {
    async fn explained<T>(&self, error: ParquetError) -> ParquetResult<T> {
        let error = self.checked.diagnose(&self.store, &self.path, self.size, error).await;
        Err(ParquetError::External(Box::new(error)))
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move {
            match self.inner.get_bytes(range).await {
                Err(error) => self.file.explained(error).await,
                ok => ok,
            }
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move {
            match self.inner.get_byte_ranges(ranges).await {
                Err(error) => self.file.explained(error).await,
                ok => ok,
            }
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            match self.inner.get_metadata(options).await {
                Err(error) => self.file.explained(error).await,
                ok => ok,
            }
        }
        .boxed()
    }
}
