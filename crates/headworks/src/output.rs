//! What people and scripts see: data on stdout, everything else on stderr.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

mod format;
mod table;

pub(crate) use format::{ago, duration, json_error, json_problem, shown};
pub(crate) use headworks_domain::{bytes, count, counted};
pub(crate) use table::{Align, Table};

/// How the caller wants its answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// One JSON document (or JSON lines for streams) instead of text.
    pub(crate) json: bool,
    /// No notes and no progress on stderr, errors only.
    pub(crate) quiet: bool,
    /// Stdout is a terminal.
    pub(crate) stdout_tty: bool,
    /// Stderr is a terminal that draws (`TERM` is not `dumb`).
    pub(crate) stderr_tty: bool,
    /// Stdout may have colours: a terminal, and `NO_COLOR` is not set.
    pub(crate) stdout_color: bool,
    /// Stderr may have colours.
    pub(crate) stderr_color: bool,
}

/// Whoever read our stdout went away, as `head` does: no failure, just the end.
#[derive(Debug, thiserror::Error)]
#[error("stdout was closed")]
pub(crate) struct StdoutClosed;

impl Out {
    /// Looks at the terminal. `no_color` and `dumb` come from the environment.
    pub(crate) fn new(json: bool, quiet: bool, no_color: bool, dumb: bool) -> Self {
        let stdout_tty = io::stdout().is_terminal();
        let stderr_tty = io::stderr().is_terminal() && !dumb;
        let color = !no_color && !dumb;
        Self {
            json,
            quiet,
            stdout_tty,
            stderr_tty,
            stdout_color: stdout_tty && color && !json,
            stderr_color: stderr_tty && color,
        }
    }

    /// Writes a line of data to stdout.
    pub(crate) fn line(&self, text: impl fmt::Display) -> anyhow::Result<()> {
        written(writeln!(io::stdout().lock(), "{text}"))
    }

    /// Writes bytes of data to stdout.
    pub(crate) fn data(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Writes the command's one JSON document to stdout.
    pub(crate) fn document(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        self.data(&text)
    }

    /// Writes a table of data to stdout.
    pub(crate) fn table(&self, table: &Table) -> anyhow::Result<()> {
        written(write!(io::stdout().lock(), "{}", table.text(self.stdout_color)))
    }

    /// Tells the person at the terminal something that is not data: on stderr, unless `--quiet`.
    pub(crate) fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Writes an error's text to stderr, `--quiet` or not.
    pub(crate) fn complain(&self, text: impl fmt::Display) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Turns a closed pipe on stdout into `StdoutClosed`, so that no other broken pipe is taken for it.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to stdout")),
    }
}

/// Wraps text in an ANSI style when `on`.
pub(crate) fn styled(on: bool, style: Style, text: &str) -> String {
    if on { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
}

/// The few styles we use; never the only sign of anything.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    /// Headings.
    Bold,
    /// Things of less weight.
    Dim,
    /// Errors and failures.
    Red,
    /// Warnings.
    Yellow,
    /// Successes.
    Green,
    /// Hints.
    Cyan,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "1;31",
            Self::Yellow => "1;33",
            Self::Green => "32",
            Self::Cyan => "36",
        }
    }
}
