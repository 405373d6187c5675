use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

use super::{Style, styled};

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Columns under headings, aligned by what a terminal shows of each character.
///
/// Cells are made harmless first: a line end or an escape sequence out of somebody's data can't move the cursor.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes an empty table.
    pub(crate) fn new(headings: impl IntoIterator<Item = (impl Into<String>, Align)>) -> Self {
        let headings = headings.into_iter().map(|(text, align)| (harmless(&text.into()), align)).collect();
        Self { headings, rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| harmless(&cell.into())).collect();
        cells.resize(self.headings.len(), String::new());
        self.rows.push(cells);
    }

    /// True when there are no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The whole table, each line ended.
    pub(crate) fn text(&self, color: bool) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|(text, _)| text.width()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let mut text = String::new();
        let headings: Vec<&str> = self.headings.iter().map(|(text, _)| text.as_str()).collect();
        let heading = self.line(&headings, &widths);
        let _ = writeln!(text, "{}", styled(color, Style::Bold, &heading));
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            let _ = writeln!(text, "{}", self.line(&cells, &widths));
        }
        text
    }

    fn line(&self, cells: &[&str], widths: &[usize]) -> String {
        let mut line = String::new();
        for (i, ((cell, width), (_, align))) in cells.iter().zip(widths).zip(&self.headings).enumerate() {
            if i > 0 {
                line.push_str("  ");
            }
            let room = " ".repeat(width - cell.width());
            match align {
                Align::Left => {
                    line.push_str(cell);
                    line.push_str(&room);
                }
                Align::Right => {
                    line.push_str(&room);
                    line.push_str(cell);
                }
            }
        }
        line.truncate(line.trim_end_matches(' ').len());
        line
    }
}

/// Writes control characters out, as `\n` or `\u{1b}`.
fn harmless(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_what_the_terminal_shows() {
        let mut table = Table::new([("name", Align::Left), ("rows", Align::Right), ("note", Align::Left)]);
        table.row(["Ünï", "7", "x"]);
        table.row(["日本", "12,345", ""]);
        assert_eq!(table.text(false), "name    rows  note\nÜnï        7  x\n日本  12,345\n");
    }

    #[test]
    fn cells_cannot_move_the_cursor() {
        let mut table = Table::new([("a", Align::Left)]);
        table.row(["\x1b[2J"]);
        table.row(["a\nb"]);
        assert_eq!(table.text(false), "a\n\\u{1b}[2J\na\\nb\n");
    }
}
