use std::io::Write;

use arrow::ipc::{
    CompressionType,
    writer::{IpcWriteOptions, StreamWriter},
};

use super::{failed, write_batches};
use crate::{Error, QueryStream, Result};

/// Writes an Arrow IPC stream, its buffers compressed with LZ4. Returns the rows written.
pub async fn write_arrow(stream: QueryStream, out: &mut impl Write) -> Result<usize> {
    let options = IpcWriteOptions::default();
    let options = options.try_with_compression(Some(CompressionType::LZ4_FRAME)).map_err(failed)?;
    let writer = StreamWriter::try_new_with_options(&mut *out, &stream.schema(), options).map_err(failed)?;
    let rows = write_batches(stream, writer).await?;
    out.flush().map_err(Error::Output)?;
    Ok(rows)
}
