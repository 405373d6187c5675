//! The edges of Headworks: databases and files to Arrow, and Arrow into a database's table.
//!
//! It reads tables of SQLite and PostgreSQL ([`open`], [`Source`]) and files of Parquet, ORC and CSV ([`files::open`]) as
//! Arrow record batches, and fills tables from batches ([`fill::fill`]). Values are read exactly or not at all: what a type
//! of the lake cannot hold ends the read with the column, the row and a way out, or is counted in the read's report.
//!
//! It deliberately does not know the lake, jobs or schedules, keeps no cursor or state of its own, never writes to a source
//! that it reads, and never guesses: a mixed or ambiguous column is an error.
//!
//! ```no_run
//! use futures::TryStreamExt;
//! use headworks_connect::{ConnectionSpec, ReadRequest, open};
//! # async fn example() -> headworks_connect::Result<()> {
//! let production = open("production", &ConnectionSpec::Sqlite { path: "production.db".into() })?;
//! let mut reader = production.read(ReadRequest { table: "airlines".into(), ..Default::default() }).await?;
//! while let Some(batch) = reader.stream.try_next().await? {
//!     assert!(batch.num_rows() > 0);
//! }
//! # Ok(())
//! # }
//! ```

mod assemble;
mod column;
mod error;
mod names;
mod parse;
mod source;

pub mod files;
pub mod fill;
mod postgres;
mod sqlite;
pub mod types;

pub use error::{Error, Result, ValueError};
pub use names::{Names, lake_names};
pub use source::{
    BatchReader, BatchStream, By, ConnectionSpec, FirstValue, ReadColumn, ReadReport, ReadRequest, ReadWarning,
    ReportHandle, Snapshot, Source, SourceColumn, SourceOptions, SourceTable, Specials, open, open_with,
};
