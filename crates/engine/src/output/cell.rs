use arrow::{
    array::{Array, RecordBatch},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};

/// How values are written for people: times as `2018-02-20 12:00:00`, with an offset where they have a zone.
pub(super) fn format(null: &str) -> FormatOptions<'_> {
    FormatOptions::new()
        .with_null(null)
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"))
        .with_display_error(true)
}

/// One formatter per column.
pub(super) fn formatters<'a>(
    batch: &'a RecordBatch,
    options: &FormatOptions<'a>,
) -> Result<Vec<ArrayFormatter<'a>>, ArrowError> {
    batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), options)).collect()
}

/// Makes a value safe for a terminal: line ends and control characters are written as `\n`, `\u{1b}`.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Writes one row as `a=1, b=NULL`, at most so many characters long.
pub(crate) fn row_text(batch: &RecordBatch, row: usize, columns: usize, chars_max: usize) -> String {
    let options = format("NULL");
    let mut text = String::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()).take(columns) {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(field.name());
        text.push('=');
        match ArrayFormatter::try_new(column.as_ref(), &options) {
            Ok(formatter) if row < column.len() => text.push_str(&printable(&formatter.value(row).to_string())),
            _ => text.push('?'),
        }
    }
    shortened(text, chars_max)
}

/// Cuts a text that is too long and marks the cut.
pub(super) fn shortened(mut text: String, chars_max: usize) -> String {
    if let Some((cut, _)) = text.char_indices().nth(chars_max) {
        let end = text.char_indices().nth(chars_max.saturating_sub(1)).map_or(cut, |(at, _)| at);
        text.truncate(end);
        text.push('…');
    }
    text
}
