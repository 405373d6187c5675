//! Writes the rows of a query: for people, for scripts, for other tools. All of it streams, in bounded memory.

mod arrow;
mod cell;
mod csv;
mod json;
mod parquet;
mod table;

use ::arrow::{error::ArrowError, record_batch::RecordBatchWriter};
use datafusion::error::DataFusionError;
use futures::StreamExt;

use crate::{Error, QueryStream, Result};

pub use self::arrow::write_arrow;
pub use csv::write_csv;
pub use json::{json_rows, write_json, write_json_lines};
pub use parquet::write_parquet;
pub use table::{Shown, TableLayout, write_table};

pub(crate) use cell::row_text;

/// Writes all rows with one of Arrow's writers. Returns the rows written.
async fn write_batches(mut stream: QueryStream, mut writer: impl RecordBatchWriter) -> Result<usize> {
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        writer.write(&batch).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(rows)
}

fn failed(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, io) => Error::Output(io),
        other => Error::from(DataFusionError::from(other)),
    }
}
