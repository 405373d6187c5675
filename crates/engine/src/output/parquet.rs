use std::io::Write;

use datafusion::{
    error::DataFusionError,
    parquet::{
        arrow::ArrowWriter,
        basic::{Compression, ZstdLevel},
        errors::ParquetError,
        file::properties::WriterProperties,
    },
};
use futures::StreamExt;

use crate::{Error, QueryStream, Result};

/// Bytes of encoded rows that are held before a row group is written.
const ROW_GROUP_BYTES_MAX: usize = 64 << 20;

/// Writes one Parquet file, compressed with zstd. Returns the rows written.
pub async fn write_parquet(mut stream: QueryStream, out: &mut (impl Write + Send)) -> Result<usize> {
    let level = ZstdLevel::try_new(3).map_err(failed)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    let mut writer = ArrowWriter::try_new(&mut *out, stream.schema(), Some(properties)).map_err(failed)?;
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        writer.write(&batch).map_err(failed)?;
        if writer.in_progress_size() > ROW_GROUP_BYTES_MAX {
            writer.flush().map_err(failed)?;
        }
    }
    writer.close().map_err(failed)?;
    out.flush().map_err(Error::Output)?;
    Ok(rows)
}

fn failed(error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => Error::Output(*io),
            Err(inner) => Error::from(DataFusionError::External(inner)),
        },
        other => Error::Internal { message: format!("the Parquet file cannot be written: {other}") },
    }
}
