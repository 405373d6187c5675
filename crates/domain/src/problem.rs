use std::fmt;

/// How bad a problem of a user's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a look; the file is used as it is.
    Warning,
    /// The file cannot be used.
    Error,
}

/// A place in a user's file; line and column count from 1, the column in characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's path relative to the project's folder, with `/` between its parts.
    pub file: String,
    /// The line; 0 when the whole file is meant.
    pub line: usize,
    /// The column; 0 when the whole line is meant.
    pub column: usize,
}

/// Something wrong in a user's file: where, what, and what to do. Checks collect them all instead of stopping at the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub place: Place,
    /// The offending line as it stands in the file, without its line end; empty when the whole file is meant.
    pub text: String,
    /// What is wrong: lowercase, no full stop, names in backticks.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    /// Writes `error: MESSAGE`, the place, the offending line with a caret, and the hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        writeln!(f, "{severity}: {}", self.message)?;
        match (self.place.line, self.place.column) {
            (0, _) => write!(f, "  --> {}", self.place.file)?,
            (line, 0) => write!(f, "  --> {}:{line}", self.place.file)?,
            (line, column) => write!(f, "  --> {}:{line}:{column}", self.place.file)?,
        }
        if self.place.line > 0 && !self.text.is_empty() {
            let number = self.place.line.to_string();
            let margin = " ".repeat(number.len());
            write!(f, "\n {margin} |\n {number} | {}", self.text)?;
            if self.place.column > 0 {
                // Tabs stay tabs, so that the caret stands under its character at any tab width.
                let before: String =
                    self.text.chars().take(self.place.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                write!(f, "\n {margin} | {before}^")?;
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}
