//! The one place that turns errors into words and exit codes.

use std::process::ExitCode;

use headworks_domain::{Code, ErrorKind, Fault, Problem, Severity};

use crate::output::{Out, StdoutClosed, Style, json_error, styled};

/// The command did what was asked.
pub(crate) const DONE: u8 = 0;
/// The command failed.
pub(crate) const FAILED: u8 = 1;
/// The command was asked wrongly, or its input is wrong.
pub(crate) const USAGE: u8 = 2;

/// An error of the command line itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    kind: ErrorKind,
    code: Code,
    message: String,
    hint: Option<String>,
    problems: Vec<Problem>,
}

impl Failure {
    /// Says that the command was asked wrongly.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, "CLI_USAGE", message).hint(hint)
    }

    /// Says that a named thing is not there.
    pub(crate) fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, "CLI_NOT_FOUND", message).hint(hint)
    }

    /// Makes an error of any kind.
    pub(crate) fn new(kind: ErrorKind, code: Code, message: impl Into<String>) -> Self {
        Self { kind, code, message: message.into(), hint: None, problems: Vec::new() }
    }

    /// Adds the next step.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the problems of files that stand behind the error.
    pub(crate) fn problems(mut self, problems: Vec<Problem>) -> Self {
        self.problems = problems;
        self
    }
}

impl Fault for Failure {
    fn kind(&self) -> ErrorKind {
        self.kind
    }

    fn code(&self) -> Code {
        self.code
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// An error whose type the caller does not know, with its kind, code and hint.
#[derive(Debug)]
pub(crate) struct Carried(Box<dyn Fault>);

impl std::fmt::Display for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Carried {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl From<Box<dyn Fault>> for Carried {
    fn from(fault: Box<dyn Fault>) -> Self {
        Self(fault)
    }
}

impl Fault for Carried {
    fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    fn code(&self) -> Code {
        self.0.code()
    }

    fn hint(&self) -> Option<String> {
        self.0.hint()
    }
}

/// Finds the error of ours in a chain: it knows kind, code and hint.
pub(crate) fn fault(error: &anyhow::Error) -> Option<&dyn Fault> {
    error.chain().find_map(|cause| {
        macro_rules! first {
            ($($type:ty),* $(,)?) => {
                $(if let Some(fault) = cause.downcast_ref::<$type>() {
                    return Some(fault as &dyn Fault);
                })*
            };
        }
        first!(
            Failure,
            Carried,
            headworks_store::Error,
            headworks_lake::Error,
            headworks_engine::Error,
            headworks_connect::Error,
            headworks_meta::Error,
            headworks_flow::Error,
        );
        None
    })
}

/// Writes the error to stderr, as text or JSON, and gives the exit code.
pub(crate) fn report(out: Out, error: &anyhow::Error) -> ExitCode {
    report_with(out, error, |hint| hint)
}

/// The same, with what the command line knows of hints.
pub(crate) fn report_with(out: Out, error: &anyhow::Error, adapted: impl Fn(String) -> String) -> ExitCode {
    if error.chain().any(is_closed_stdout) {
        return ExitCode::from(DONE);
    }
    let fault = fault(error);
    let problems = error.downcast_ref::<Failure>().map_or(&[][..], |f| &f.problems);
    let message = message(error);
    let hint = fault.and_then(Fault::hint).map(adapted);
    if out.json {
        let code = fault.map_or("CLI_FAILED", Fault::code);
        out.complain(json_error(code, &message, hint.as_deref(), problems));
    } else {
        for problem in problems {
            out.complain(shown_problem(problem, out.stderr_color));
            out.complain("");
        }
        out.complain(format_args!("{} {message}", styled(out.stderr_color, Style::Red, "error:")));
        if let Some(hint) = hint {
            out.complain(format_args!("{} {hint}", styled(out.stderr_color, Style::Cyan, "hint:")));
        }
    }
    ExitCode::from(fault.map_or(FAILED, |fault| exit_code(fault.kind())))
}

/// True when whoever read our stdout went away.
fn is_closed_stdout(cause: &(dyn std::error::Error + 'static)) -> bool {
    let closed = |io: &std::io::Error| io.kind() == std::io::ErrorKind::BrokenPipe;
    cause.is::<StdoutClosed>()
        || matches!(cause.downcast_ref(), Some(headworks_engine::Error::Output(io)) if closed(io))
}

/// What the input's author can mend is 2, everything else 1.
fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Invalid | ErrorKind::NotFound => USAGE,
        ErrorKind::Conflict
        | ErrorKind::Unavailable
        | ErrorKind::Exhausted
        | ErrorKind::Denied
        | ErrorKind::Corrupt
        | ErrorKind::Cancelled
        | ErrorKind::Internal => FAILED,
    }
}

/// Joins the chain with `: `, without saying twice what an outer error already repeats of its source.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if message.is_empty() {
            message = text;
        } else if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
    }
    message
}

/// A problem as text, its first word and hint coloured when the terminal has colours.
pub(crate) fn shown_problem(problem: &Problem, color: bool) -> String {
    let text = problem.to_string();
    if !color {
        return text;
    }
    let (word, style) = match problem.severity {
        Severity::Error => ("error:", Style::Red),
        Severity::Warning => ("warning:", Style::Yellow),
    };
    let rest = text.strip_prefix(word).unwrap_or(&text);
    format!(
        "{}{}",
        styled(true, style, word),
        rest.replace("\n  hint:", &format!("\n  {}", styled(true, Style::Cyan, "hint:")))
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_a_source_says_is_said_once() {
        let error =
            Err::<(), _>(Failure::usage("disk `x` is full", "make room")).context("cannot write `y`").unwrap_err();
        assert_eq!(message(&error), "cannot write `y`: disk `x` is full");
        assert_eq!(fault(&error).and_then(Fault::hint), Some("make room".to_owned()));
        let outer = anyhow::anyhow!("disk `x` is full").context("cannot go on: disk `x` is full");
        assert_eq!(message(&outer), "cannot go on: disk `x` is full");
    }
}
