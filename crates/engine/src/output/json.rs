use std::{io::Write, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch},
    datatypes::Field,
    error::ArrowError,
    json::writer::{EncoderOptions, JsonArray, JsonFormat, LineDelimited, WriterBuilder, make_encoder},
};

use super::{failed, write_batches};
use crate::{Error, QueryStream, Result};

/// Writes one JSON object per line. Nulls are written; binary values are hex text, times ISO 8601. Returns the rows written.
pub async fn write_json_lines(stream: QueryStream, out: &mut impl Write) -> Result<usize> {
    write::<LineDelimited>(stream, out).await
}

/// Writes one JSON array of objects, as [`write_json_lines`] does its lines.
pub async fn write_json(stream: QueryStream, out: &mut impl Write) -> Result<usize> {
    let rows = write::<JsonArray>(stream, out).await?;
    out.write_all(b"\n").map_err(Error::Output)?;
    Ok(rows)
}

async fn write<F: JsonFormat>(stream: QueryStream, out: &mut impl Write) -> Result<usize> {
    let writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, F>(&mut *out);
    let rows = write_batches(stream, writer).await?;
    out.flush().map_err(Error::Output)?;
    Ok(rows)
}

/// The rows as a JSON array of arrays, one value per column; values as [`write_json_lines`] writes them.
pub fn json_rows(batches: &[RecordBatch]) -> Result<String> {
    let mut out = String::from("[");
    for batch in batches {
        let columns = batch.columns().iter().map(texts).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        for row in 0..batch.num_rows() {
            out.push_str(if out.len() > 1 { ",[" } else { "[" });
            for (index, column) in columns.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(column[row].as_deref().unwrap_or("null"));
            }
            out.push(']');
        }
    }
    out.push(']');
    Ok(out)
}

/// The JSON text of each value of a column; none for nulls.
pub(super) fn texts(column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let field = Arc::new(Field::new("value", column.data_type().clone(), true));
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let mut encoder = make_encoder(&field, column.as_ref(), &options)?;
    let mut texts = Vec::with_capacity(column.len());
    // A column of nothing but nulls has them only logically.
    let nulls = column.logical_nulls();
    for row in 0..column.len() {
        let mut bytes = Vec::new();
        if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            texts.push(None);
            continue;
        }
        encoder.encode(row, &mut bytes);
        texts.push(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(texts)
}
