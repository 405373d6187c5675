use std::io::Write;

use arrow::{
    error::ArrowError,
    ipc::{
        CompressionType,
        writer::{IpcWriteOptions, StreamWriter},
    },
};
use futures::StreamExt;

use crate::{Error, QueryStream, Result};

/// Writes an Arrow IPC stream, its buffers compressed with LZ4. Returns the rows written.
pub async fn write_arrow(mut stream: QueryStream, out: &mut impl Write) -> Result<usize> {
    let options = IpcWriteOptions::default();
    let options = options.try_with_compression(Some(CompressionType::LZ4_FRAME)).map_err(failed)?;
    let mut writer = StreamWriter::try_new_with_options(&mut *out, &stream.schema(), options).map_err(failed)?;
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        writer.write(&batch).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    drop(writer);
    out.flush().map_err(Error::Output)?;
    Ok(rows)
}

fn failed(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, io) => Error::Output(io),
        other => Error::Internal { message: format!("the Arrow stream cannot be written: {other}") },
    }
}
