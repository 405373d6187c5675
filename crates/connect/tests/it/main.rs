//! What the crate promises, on real databases and files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod files;
mod fill;
mod postgres;
mod sqlite;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::concat_batches,
    util::display::{ArrayFormatter, FormatOptions},
};
use futures::TryStreamExt;
use headworks_connect::{BatchReader, By, Error, FirstValue, ReadReport, ReadRequest, Source};
use headworks_domain::{Fault, Interval};

/// Reads all of a reader.
async fn collect(reader: BatchReader) -> Result<(RecordBatch, ReadReport), Error> {
    let BatchReader { schema, stream, report, .. } = reader;
    let batches: Vec<RecordBatch> = stream.try_collect().await?;
    assert!(batches.iter().all(|b| b.num_rows() > 0));
    Ok((concat_batches(&schema, &batches).unwrap(), report.get()))
}

async fn read(source: &dyn Source, request: ReadRequest) -> Result<(RecordBatch, ReadReport), Error> {
    collect(source.read(request).await?).await
}

fn request(table: &str) -> ReadRequest {
    ReadRequest { table: table.into(), keys: vec!["ds".into(), "hour".into()], ..ReadRequest::default() }
}

fn by(column: &str, start: &str, end: &str, zone: &str) -> Option<By> {
    let interval = Interval::new(start.parse().unwrap(), end.parse().unwrap()).unwrap();
    Some(By { column: column.into(), interval, zone: zone.parse().unwrap() })
}

/// A cell as text; `∅` for null.
fn cell(array: &ArrayRef, row: usize) -> String {
    let options = FormatOptions::default().with_null("∅");
    ArrayFormatter::try_new(array, &options).unwrap().value(row).to_string()
}

/// A column's cells as texts.
fn column(batch: &RecordBatch, name: &str) -> Vec<String> {
    let array = batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name} in {:?}", batch.schema()));
    (0..array.len()).map(|row| cell(array, row)).collect()
}

/// An error as a person sees it.
fn shown(error: &Error) -> String {
    format!("{error}\nhint: {}", error.hint().unwrap_or_default())
}

/// Checks what counts as true, with what every database answers to the same text.
async fn first_values(source: &dyn Source, own: &[(&str, bool, &str)]) {
    let common = [
        ("select 1", true, "1"),
        ("select 0", false, "0"),
        ("select -2", true, "-2"),
        ("select 0.5", true, "0.5"),
        ("select ''", false, ""),
        ("select 'ü'", true, "ü"),
        ("select '0'", false, "0"),
        ("select 'False'", false, "False"),
        ("select count(*) from loads where 1 = 2", false, "0"),
    ];
    let within = std::time::Duration::from_secs(30);
    for (sql, is_true, text) in common.iter().chain(own) {
        let value = source.first_value(sql, within).await.unwrap_or_else(|error| panic!("{sql}: {}", shown(&error)));
        assert_eq!(value, FirstValue::Value { text: (*text).to_owned(), is_true: *is_true }, "{sql}");
        assert_eq!(value.is_true(), *is_true);
    }
    assert_eq!(source.first_value("select null", within).await.unwrap(), FirstValue::Null);
    assert_eq!(source.first_value("select day from loads where 1 = 2", within).await.unwrap(), FirstValue::NoRow);
    assert!(!FirstValue::Null.is_true() && !FirstValue::NoRow.is_true());
}
