use headworks_domain::{Code, ErrorKind, Fault, PartitionKey};

/// What can go wrong with the lake.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The catalog's database failed.
    #[error(transparent)]
    Store(#[from] headworks_store::Error),
    /// The storage failed.
    #[error("cannot {doing} `{path}` in the lake: {source}")]
    Storage {
        /// What was being done: `write`, `read`.
        doing: &'static str,
        /// The file, below the lake's data path.
        path: String,
        /// What the storage said.
        #[source]
        source: object_store::Error,
    },
    /// A local file could not be written or read.
    #[error("cannot {doing} `{path}`: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The storage's URL or settings are wrong.
    #[error("`{url}` is no place for a lake: {reason}")]
    Place {
        /// The URL.
        url: String,
        /// Why.
        reason: String,
    },
    /// There is no such table.
    #[error("there is no table `{name}` in the lake")]
    NoTable {
        /// The name asked for.
        name: String,
        /// The name that was meant, most likely.
        near: Option<String>,
    },
    /// There is no such version.
    #[error("the lake has no version {asked}: it keeps {oldest} to {newest}")]
    NoVersion {
        /// The version or time asked for.
        asked: String,
        /// The oldest version kept.
        oldest: i64,
        /// The newest version.
        newest: i64,
    },
    /// The partition is not published.
    #[error("table `{table}` has no partition {partition}")]
    NoPartition {
        /// The table.
        table: String,
        /// The partition asked for.
        partition: PartitionKey,
    },
    /// Another publish replaced the same partition since this one looked.
    #[error(
        "partition {partition} of table `{table}` was published by somebody else meanwhile (version {found}, was {seen})"
    )]
    Conflict {
        /// The table.
        table: String,
        /// The partition.
        partition: PartitionKey,
        /// The version that the writer had seen; `none` when there was none.
        seen: String,
        /// The version that is there now.
        found: String,
    },
    /// The table changed its shape while files for it were being written.
    #[error("table `{table}` changed its columns while its files were being written")]
    Reshaped {
        /// The table.
        table: String,
    },
    /// The new columns do not fit the table's.
    #[error("the result does not fit table `{table}`: {reason}")]
    Schema {
        /// The table.
        table: String,
        /// Which column and why.
        reason: String,
    },
    /// A row lies outside the partitions that the run may write.
    #[error("the result for table `{table}` has rows outside {expected}: {found}")]
    OutsidePartition {
        /// The table.
        table: String,
        /// The partitions that the run covers.
        expected: String,
        /// The first stray value.
        found: String,
    },
    /// A foreign file holds rows of several partitions.
    #[error("file `{path}` of table `{table}`, written by another program, holds rows of {partition} and of others")]
    Spans {
        /// The table.
        table: String,
        /// The file, below the data path.
        path: String,
        /// The partition to be replaced.
        partition: PartitionKey,
    },
    /// Stored bytes are not what was written.
    #[error("the lake is damaged: {what}")]
    Corrupt {
        /// Which file or row, and how.
        what: String,
    },
    /// The catalog has a format that this program does not know.
    #[error("the lake's catalog has format {found}, this program knows {}", crate::catalog::FORMAT)]
    Newer {
        /// The format found.
        found: String,
    },
    /// The catalog belongs to files at another place.
    #[error("the catalog belongs to a lake at `{catalog}`, but storage.path names `{configured}`")]
    Elsewhere {
        /// Where the catalog's files are.
        catalog: String,
        /// Where the configuration looks.
        configured: String,
    },
    /// The database belongs to another environment.
    #[error("the metadata database {url} belongs to environment `{found}`, not to `{asked}`")]
    Environment {
        /// The database, without its password.
        url: String,
        /// Whose it is.
        found: String,
        /// Who opened it.
        asked: String,
    },
    /// The catalog is older than the lake: a restored backup.
    #[error("the catalog may not know all of the lake's files: {why}")]
    Behind {
        /// What says so.
        why: String,
    },
    /// The files belong to the catalog of another metadata database.
    #[error("the files at `{place}` belong to the lake of another metadata database")]
    Owned {
        /// Where the files are.
        place: String,
    },
    /// The lake was opened for reading only.
    #[error("`{path}` cannot be written: its lake was opened for reading only")]
    ReadOnly {
        /// The file.
        path: String,
    },
    /// Something that DuckLake knows and we do not read or write.
    #[error("{what}, which headworks cannot use")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// Reading or writing Parquet failed.
    #[error("cannot {doing} Parquet data of table `{table}`: {source}")]
    Parquet {
        /// What was being done.
        doing: &'static str,
        /// The table.
        table: String,
        /// What the library said.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// What gave the rows to be written failed: a source, a query.
    #[error("{0}")]
    Source(Box<dyn Fault>),
    /// A query's stream failed while its rows were being written.
    #[error(transparent)]
    Query(datafusion::error::DataFusionError),
    /// Arrow data could not be converted.
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<datafusion::error::DataFusionError> for Error {
    /// Takes our own error out again when it only came through a query's stream.
    fn from(error: datafusion::error::DataFusionError) -> Self {
        match error {
            datafusion::error::DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => Self::Query(datafusion::error::DataFusionError::External(other)),
            },
            other => Self::Query(other),
        }
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Storage { source, .. } => match source {
                object_store::Error::NotFound { .. } => ErrorKind::Corrupt,
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    ErrorKind::Denied
                }
                _ => ErrorKind::Unavailable,
            },
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Unavailable,
            },
            Self::NoTable { .. } | Self::NoVersion { .. } | Self::NoPartition { .. } => ErrorKind::NotFound,
            Self::Conflict { .. } | Self::Reshaped { .. } => ErrorKind::Conflict,
            Self::Place { .. }
            | Self::Schema { .. }
            | Self::OutsidePartition { .. }
            | Self::Spans { .. }
            | Self::Newer { .. }
            | Self::Elsewhere { .. }
            | Self::Environment { .. }
            | Self::Behind { .. }
            | Self::Owned { .. }
            | Self::Unsupported { .. } => ErrorKind::Invalid,
            Self::ReadOnly { .. } => ErrorKind::Denied,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Parquet { .. } | Self::Arrow(_) => ErrorKind::Internal,
            Self::Source(error) => error.kind(),
            Self::Query(error) => query_kind(error),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Store(error) => error.code(),
            Self::Storage { .. } => "LAKE_STORAGE",
            Self::Io { .. } => "LAKE_IO",
            Self::Place { .. } => "LAKE_PLACE",
            Self::NoTable { .. } => "LAKE_NO_TABLE",
            Self::NoVersion { .. } => "LAKE_NO_VERSION",
            Self::NoPartition { .. } => "LAKE_NO_PARTITION",
            Self::Conflict { .. } => "LAKE_CONFLICT",
            Self::Reshaped { .. } => "LAKE_RESHAPED",
            Self::Schema { .. } => "LAKE_SCHEMA",
            Self::OutsidePartition { .. } => "LAKE_OUTSIDE_PARTITION",
            Self::Spans { .. } => "LAKE_SPANS",
            Self::Corrupt { .. } => "LAKE_CORRUPT",
            Self::Newer { .. } => "LAKE_NEWER",
            Self::Elsewhere { .. } => "LAKE_ELSEWHERE",
            Self::Environment { .. } => "LAKE_ENVIRONMENT",
            Self::Behind { .. } => "LAKE_BEHIND",
            Self::ReadOnly { .. } => "LAKE_READ_ONLY",
            Self::Owned { .. } => "LAKE_OWNED",
            Self::Unsupported { .. } => "LAKE_UNSUPPORTED",
            Self::Parquet { .. } => "LAKE_PARQUET",
            Self::Source(error) => error.code(),
            Self::Query(_) => "LAKE_QUERY",
            Self::Arrow(_) => "LAKE_ARROW",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store(error) => return error.hint(),
            Self::Source(error) => return error.hint(),
            Self::Storage { .. } | Self::Place { .. } => {
                "see [storage] in headworks.toml, and try headworks doctor".to_owned()
            }
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => "free space on that disk; headworks gc shows what can go".to_owned(),
                std::io::ErrorKind::PermissionDenied => "see who owns that folder".to_owned(),
                _ => return None,
            },
            Self::NoTable { near: Some(near), .. } => {
                format!("did you mean `{near}`? headworks tables list shows them all")
            }
            Self::NoTable { .. } => "headworks tables list shows all tables".to_owned(),
            Self::NoVersion { .. } => "older versions go after retention.versions".to_owned(),
            Self::NoPartition { table, partition } => {
                format!(
                    "headworks tables show {table} lists what there is; if a job makes the table, headworks backfill {table} \
                     --from {0} --to {0} makes that one",
                    partition.ds
                )
            }
            Self::Conflict { .. } | Self::Reshaped { .. } => {
                "run it again: it starts from what is there now".to_owned()
            }
            Self::Schema { table, .. } => {
                format!(
                    "cast the column in the job, or write to a new table; headworks tables show {table} has its columns"
                )
            }
            Self::OutsidePartition { .. } => {
                "leave the partition columns out of the SELECT, or filter them to the run's own".to_owned()
            }
            Self::Spans { table, .. } => {
                format!(
                    "rewrite that file by partition first, in DuckDB: CALL ducklake_rewrite_data_files('lake', '{table}')"
                )
            }
            Self::Newer { .. } => "use a newer version of headworks".to_owned(),
            Self::Elsewhere { .. } => {
                "set storage.path back, or give this project a database of its own in metadata.url; headworks backup and restore copy a project"
                    .to_owned()
            }
            Self::Environment { asked, .. } => {
                format!(
                    "give each environment a database of its own: headworks --env {asked} config show tells where metadata.url comes from"
                )
            }
            Self::Behind { .. } => {
                "nothing is removed until that is settled: headworks doctor shows more, and headworks gc --take-over makes this catalog the lake's own, so that files it does not know can go"
                    .to_owned()
            }
            Self::Owned { .. } => {
                "name that database in metadata.url, or another folder or bucket in storage.path; a lost database comes back with headworks restore"
                    .to_owned()
            }
            Self::Corrupt { .. } => {
                "restore that partition: headworks tables history TABLE shows its versions, or run its job again"
                    .to_owned()
            }
            Self::ReadOnly { .. }
            | Self::Unsupported { .. }
            | Self::Parquet { .. }
            | Self::Query(_)
            | Self::Arrow(_) => return None,
        })
    }
}

/// What a caller can do about an error that came up through a query.
fn query_kind(error: &datafusion::error::DataFusionError) -> ErrorKind {
    use datafusion::error::DataFusionError as E;
    if let Some(own) = crate::error_in(error) {
        return own.kind();
    }
    match error.find_root() {
        E::ResourcesExhausted(_) => ErrorKind::Exhausted,
        E::ObjectStore(_) | E::IoError(_) => ErrorKind::Unavailable,
        E::ParquetError(_) => ErrorKind::Corrupt,
        E::Internal(_) => ErrorKind::Internal,
        _ => ErrorKind::Invalid,
    }
}
