use std::io::Write;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use futures::StreamExt;

use super::cell;
use crate::{Error, QueryStream, Result};

/// How a table is laid out on a terminal.
#[derive(Debug, Clone, Copy)]
pub struct TableLayout {
    /// Rows that are shown; the others are counted.
    pub rows_max: usize,
    /// Characters of one value that are shown.
    pub cell_chars_max: usize,
}

impl Default for TableLayout {
    fn default() -> Self {
        Self { rows_max: 100, cell_chars_max: 60 }
    }
}

/// How much of a result was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Rows on the screen.
    pub shown: usize,
    /// Rows of the result.
    pub rows: usize,
}

/// Writes an aligned table and, below it, how many rows there are; runs the query to its end to know that.
pub async fn write_table(mut stream: QueryStream, out: &mut impl Write, layout: TableLayout) -> Result<Shown> {
    let schema = stream.schema();
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        rows += batch.num_rows();
        add_lines(&mut lines, &batch, layout)?;
    }
    let shown = lines.len();
    if !schema.fields().is_empty() {
        write_lines(out, &schema, &lines, layout).map_err(Error::Output)?;
    }
    let noun = if rows == 1 { "row" } else { "rows" };
    let count = match shown {
        _ if shown == rows => format!("{} {noun}", grouped(rows)),
        _ => format!("{} {noun}, {} shown", grouped(rows), grouped(shown)),
    };
    writeln!(out, "({count})").map_err(Error::Output)?;
    Ok(Shown { shown, rows })
}

fn add_lines(lines: &mut Vec<Vec<String>>, batch: &RecordBatch, layout: TableLayout) -> Result<()> {
    let missing = layout.rows_max.saturating_sub(lines.len()).min(batch.num_rows());
    if missing == 0 {
        return Ok(());
    }
    let options = cell::format("NULL");
    let formatters = cell::formatters(batch, &options).map_err(datafusion::error::DataFusionError::from)?;
    for row in 0..missing {
        lines.push(
            formatters
                .iter()
                .map(|f| cell::shortened(cell::printable(&f.value(row).to_string()), layout.cell_chars_max))
                .collect(),
        );
    }
    Ok(())
}

fn write_lines(
    out: &mut impl Write,
    schema: &SchemaRef,
    lines: &[Vec<String>],
    layout: TableLayout,
) -> std::io::Result<()> {
    let headers: Vec<String> =
        schema.fields().iter().map(|f| cell::shortened(cell::printable(f.name()), layout.cell_chars_max)).collect();
    let right: Vec<bool> = schema.fields().iter().map(|f| is_number(f.data_type())).collect();
    let mut widths: Vec<usize> = headers.iter().map(|h| width(h)).collect();
    for line in lines {
        for (widest, text) in widths.iter_mut().zip(line) {
            *widest = (*widest).max(width(text));
        }
    }
    write_line(out, &headers, &widths, &right)?;
    let rule: Vec<String> = widths.iter().map(|w| "─".repeat(w + 2)).collect();
    writeln!(out, "{}", rule.join("┼"))?;
    lines.iter().try_for_each(|line| write_line(out, line, &widths, &right))
}

fn write_line(out: &mut impl Write, line: &[String], widths: &[usize], right: &[bool]) -> std::io::Result<()> {
    let mut text = String::new();
    for (i, cell) in line.iter().enumerate() {
        let pad = " ".repeat(widths[i].saturating_sub(width(cell)));
        if i > 0 {
            text.push('│');
        }
        text.push(' ');
        if right[i] {
            text.push_str(&pad);
        }
        text.push_str(cell);
        if !right[i] {
            text.push_str(&pad);
        }
        text.push(' ');
    }
    writeln!(out, "{}", text.trim_end())
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric() || matches!(data_type, DataType::Dictionary(_, value) if value.is_numeric())
}

/// Columns of a terminal that a text takes: two for East Asian wide characters and emoji, none for combining marks. An
/// approximation by blocks, enough to keep tables straight.
fn width(text: &str) -> usize {
    text.chars()
        .map(|c| match u32::from(c) {
            0x300..=0x36F | 0x200B..=0x200F | 0xFE00..=0xFE0F => 0,
            0x1100..=0x115F
            | 0x2E80..=0xA4CF
            | 0xAC00..=0xD7A3
            | 0xF900..=0xFAFF
            | 0xFE30..=0xFE6F
            | 0xFF00..=0xFF60
            | 0xFFE0..=0xFFE6
            | 0x1F300..=0x1FAFF
            | 0x20000..=0x3FFFD => 2,
            _ => 1,
        })
        .sum()
}

/// Writes a count as `336,776`.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        for (n, expected) in [(0, "0"), (999, "999"), (1_000, "1,000"), (336_776, "336,776"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(n), expected);
        }
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(width("abc"), 3);
        assert_eq!(width("東京"), 4);
        assert_eq!(width("u\u{308}"), 1);
    }
}
