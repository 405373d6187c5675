use std::io::{self, Write};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, StringArray},
    error::ArrowError,
};
use datafusion::error::DataFusionError;
use futures::StreamExt;

use super::{cell, json};
use crate::{Error, QueryStream, Result};

/// Writes CSV after RFC 4180 with a header: nulls are empty, empty texts `""`, nested values JSON. Returns the rows written.
pub async fn write_csv(mut stream: QueryStream, out: &mut impl Write) -> Result<usize> {
    let schema = stream.schema();
    let mut names = Some(schema.fields().iter().map(|f| Some(f.name().as_str())));
    let mut rows = 0;
    loop {
        let batch = stream.next().await.transpose()?;
        // The header comes with the first rows: a query that fails before them writes nothing.
        if let Some(names) = names.take() {
            write_record(out, names).map_err(Error::Output)?;
        }
        let Some(batch) = batch else { break };
        rows += batch.num_rows();
        write_batch(out, &batch)?;
    }
    out.flush().map_err(Error::Output)?;
    Ok(rows)
}

fn write_batch(out: &mut impl Write, batch: &RecordBatch) -> Result<()> {
    let columns = batch.columns().iter().map(flat).collect::<Result<Vec<_>, _>>().map_err(DataFusionError::from)?;
    let flat = RecordBatch::try_from_iter(columns.into_iter().enumerate().map(|(i, c)| (i.to_string(), c)))
        .map_err(DataFusionError::from)?;
    let options = cell::format("");
    let formatters = cell::formatters(&flat, &options).map_err(DataFusionError::from)?;
    // What a column of nothing but nulls has only logically.
    let nulls: Vec<_> = flat.columns().iter().map(Array::logical_nulls).collect();
    let mut values = Vec::with_capacity(formatters.len());
    for row in 0..flat.num_rows() {
        values.clear();
        for (formatter, nulls) in formatters.iter().zip(&nulls) {
            let is_null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
            values.push((!is_null).then(|| formatter.value(row).to_string()));
        }
        write_record(out, values.iter().map(|v| v.as_deref())).map_err(Error::Output)?;
    }
    Ok(())
}

/// Turns nested values into their JSON text.
fn flat(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !column.data_type().is_nested() {
        return Ok(column.clone());
    }
    let texts = json::texts(column)?;
    Ok(std::sync::Arc::new(StringArray::from_iter(texts)))
}

fn write_record<'a>(out: &mut impl Write, values: impl Iterator<Item = Option<&'a str>>) -> io::Result<()> {
    for (i, value) in values.enumerate() {
        if i > 0 {
            out.write_all(b",")?;
        }
        match value {
            None => {}
            Some(text) if text.is_empty() || text.contains(['"', ',', '\n', '\r']) => {
                write!(out, "\"{}\"", text.replace('"', "\"\""))?;
            }
            Some(text) => out.write_all(text.as_bytes())?,
        }
    }
    out.write_all(b"\n")
}
