//! From errors to what PostgreSQL's clients understand; the one place that knows SQLSTATEs.

use headworks_domain::{ErrorKind, Fault};
use headworks_engine::{Error, Position};
use pgwire::messages::response::ErrorResponse;

/// An error as it goes to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PgError {
    pub(super) state: &'static str,
    pub(super) message: String,
    pub(super) hint: Option<String>,
    /// Where in the text of the whole message, in characters from 1.
    pub(super) position: Option<usize>,
    /// The code that Headworks has for it.
    pub(super) code: Option<&'static str>,
}

/// SQLSTATEs that are used by name.
pub(super) mod state {
    pub(in super::super) const PROTOCOL: &str = "08P01";
    pub(in super::super) const NOT_SUPPORTED: &str = "0A000";
    pub(in super::super) const PARAMETER_VALUE: &str = "22023";
    pub(in super::super) const BINARY_FORM: &str = "22P03";
    pub(in super::super) const TEXT_FORM: &str = "22P02";
    pub(in super::super) const TIME_FORM: &str = "22007";
    pub(in super::super) const READ_ONLY: &str = "25006";
    pub(in super::super) const NO_TRANSACTION: &str = "25P01";
    pub(in super::super) const FAILED_TRANSACTION: &str = "25P02";
    pub(in super::super) const NO_STATEMENT: &str = "26000";
    pub(in super::super) const AUTHORIZATION: &str = "28000";
    pub(in super::super) const PASSWORD: &str = "28P01";
    pub(in super::super) const NO_SAVEPOINT: &str = "3B001";
    pub(in super::super) const NO_CURSOR: &str = "34000";
    pub(in super::super) const NO_DATABASE: &str = "3D000";
    pub(in super::super) const SYNTAX: &str = "42601";
    pub(in super::super) const UNKNOWN_OBJECT: &str = "42704";
    pub(in super::super) const DUPLICATE_CURSOR: &str = "42P03";
    pub(in super::super) const DUPLICATE_STATEMENT: &str = "42P05";
    pub(in super::super) const TOO_MANY_CONNECTIONS: &str = "53300";
    pub(in super::super) const LIMIT: &str = "54000";
    pub(in super::super) const CANCELLED: &str = "57014";
    pub(in super::super) const SHUTDOWN: &str = "57P01";
    pub(in super::super) const NOT_NOW: &str = "57P03";
    pub(in super::super) const IDLE: &str = "57P05";
    pub(in super::super) const INTERNAL: &str = "XX000";
}

impl PgError {
    pub(super) fn new(state: &'static str, message: impl Into<String>) -> Self {
        Self { state, message: message.into(), hint: None, position: None, code: None }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// From an error of the engine about a text that begins at `start` of the client's.
    pub(super) fn of(error: &Error, text: &str, start: usize) -> Self {
        Self {
            state: sqlstate(error),
            message: error.to_string(),
            hint: error.hint(),
            position: error.position().and_then(|at| Some(text[..start].chars().count() + offset(&text[start..], at)?)),
            code: Some(error.code()),
        }
    }

    /// The message for it.
    pub(super) fn response(&self, severity: &str) -> ErrorResponse {
        let mut fields = vec![
            (b'S', severity.to_owned()),
            (b'V', severity.to_owned()),
            (b'C', self.state.to_owned()),
            (b'M', without_zero(&self.message)),
        ];
        fields.extend(self.code.map(|code| (b'D', format!("code: {code}"))));
        fields.extend(self.hint.as_ref().map(|hint| (b'H', without_zero(hint))));
        fields.extend(self.position.map(|position| (b'P', position.to_string())));
        ErrorResponse::new(fields)
    }
}

fn without_zero(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The place in characters from 1.
fn offset(text: &str, at: Position) -> Option<usize> {
    let mut start = 0;
    for _ in 1..at.line {
        start += text[start..].find('\n')? + 1;
    }
    Some(text[..start].chars().count() + at.column)
}

fn sqlstate(error: &Error) -> &'static str {
    match error {
        Error::Syntax { .. } => state::SYNTAX,
        Error::UnknownTable { .. } => "42P01",
        Error::Plan { message, .. } => plan(message),
        Error::Refused { what, .. } if is_writing(what) => state::READ_ONLY,
        Error::Refused { .. } => state::NOT_SUPPORTED,
        Error::TooLarge { .. } => "54001",
        Error::Timeout { .. } | Error::Cancelled => state::CANCELLED,
        Error::UnknownQueue { .. } => state::UNKNOWN_OBJECT,
        Error::QueueFull { .. } | Error::QueueWait { .. } => "53000",
        Error::TooManyRows { .. } | Error::TooMuchRead { .. } | Error::AboveLimit { .. } => state::LIMIT,
        Error::Exhausted { .. } => "53200",
        Error::DiskFull { .. } => "53100",
        Error::Data { message } => data(message),
        Error::Storage { .. } => "58030",
        other => match other.kind() {
            ErrorKind::Invalid => state::PARAMETER_VALUE,
            ErrorKind::NotFound => state::UNKNOWN_OBJECT,
            ErrorKind::Conflict => "40001",
            ErrorKind::Unavailable => "58000",
            ErrorKind::Exhausted => "53000",
            ErrorKind::Denied => "42501",
            ErrorKind::Corrupt => "XX001",
            ErrorKind::Cancelled => state::CANCELLED,
            ErrorKind::Internal => state::INTERNAL,
        },
    }
}

/// True for `DROP` and the like, which PostgreSQL refuses in a transaction that only reads.
pub(super) fn is_writing(what: &str) -> bool {
    const WORDS: [&str; 14] = [
        "INSERT",
        "UPDATE",
        "DELETE",
        "MERGE",
        "TRUNCATE",
        "CREATE",
        "DROP",
        "ALTER",
        "GRANT",
        "REVOKE",
        "COMMENT",
        "REFRESH",
        "REINDEX",
        "SELECT INTO",
    ];
    let what = what.trim_matches('`');
    WORDS.iter().any(|word| what.eq_ignore_ascii_case(word))
}

/// The engine tells these apart by words only.
fn plan(message: &str) -> &'static str {
    if message.starts_with("column `") && message.contains("more than one") {
        "42702"
    } else if message.starts_with("column `") || message.contains("there is no column") {
        "42703"
    } else if message.contains("function") {
        "42883"
    } else {
        "42000"
    }
}

fn data(message: &str) -> &'static str {
    let message = message.to_ascii_lowercase();
    if message.contains("divide by zero") {
        "22012"
    } else if message.contains("overflow") || message.contains("out of range") {
        "22003"
    } else if message.contains("cast") || message.contains("pars") {
        state::TEXT_FORM
    } else {
        "22000"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_of_the_whole_message() {
        let check = |text: &str, start: usize, line: usize, column: usize, expected: Option<usize>| {
            let position = Some(Position { line, column });
            let error = Error::Syntax { message: String::new(), position };
            assert_eq!(PgError::of(&error, text, start).position, expected, "{text}");
        };
        check("select x", 0, 1, 8, Some(8));
        check("select 'ü',\n x", 0, 2, 2, Some(14));
        check("begin; select x", 6, 1, 9, Some(15));
        check("select x", 0, 3, 1, None);
    }

    #[test]
    fn errors_have_the_states_of_postgresql() {
        let check = |error: Error, expected: &str| assert_eq!(sqlstate(&error), expected, "{error}");
        check(Error::Cancelled, "57014");
        check(Error::Timeout { seconds: 1 }, "57014");
        check(Error::Refused { what: "`DROP`".into(), position: None }, "25006");
        check(Error::Refused { what: "`TABLESAMPLE`".into(), position: None }, "0A000");
        check(Error::Data { message: "Divide by zero error".into() }, "22012");
        check(Error::UnknownTable { name: "t".into(), position: None, near: None }, "42P01");
        check(Error::Exhausted { message: String::new() }, "53200");
        check(Error::AboveLimit { message: String::new() }, "54000");
        check(Error::Internal { message: String::new() }, "XX000");
    }
}
