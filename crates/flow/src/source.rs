//! A user's file as text, from which problems quote their line.

use headworks_domain::{Place, Problem, Severity};

/// A file's path and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Relative to the project's folder, with `/` between its parts.
    pub(crate) file: String,
    pub(crate) text: String,
}

/// A place within a file: line and column, both from 1; a line of 0 means the whole file, a column of 0 the whole line.
pub(crate) type At = (usize, usize);

impl Source {
    pub(crate) fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: file.into(), text: text.into() }
    }

    /// The text of a line, without its end.
    pub(crate) fn line(&self, line: usize) -> &str {
        line.checked_sub(1).and_then(|n| self.text.lines().nth(n)).unwrap_or("")
    }

    pub(crate) fn error(&self, at: At, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        self.problem(Severity::Error, at, message.into(), Some(hint.into()))
    }

    pub(crate) fn warning(&self, at: At, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        self.problem(Severity::Warning, at, message.into(), Some(hint.into()))
    }

    pub(crate) fn problem(&self, severity: Severity, at: At, message: String, hint: Option<String>) -> Problem {
        let (line, column) = at;
        Problem {
            severity,
            place: Place { file: self.file.clone(), line, column },
            text: self.line(line).to_owned(),
            message,
            hint: hint.filter(|h| !h.is_empty()),
        }
    }

    /// The line and column of a byte of the text.
    pub(crate) fn at_byte(&self, byte: usize) -> At {
        let mut end = byte.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line_start = before.rfind('\n').map_or(0, |n| n + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}
