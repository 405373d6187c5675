use std::error::Error;

/// Says what a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The input is wrong: fix it. Never retried.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Somebody else changed the same thing first: look again, then retry.
    Conflict,
    /// An outside system is away, slow or locked: retry with backoff.
    Unavailable,
    /// A limit with a name was reached: memory, disk, time, rows.
    Exhausted,
    /// Not allowed for this caller.
    Denied,
    /// Stored bytes are not what was written. Never retried, never skipped.
    Corrupt,
    /// Stopped on request.
    Cancelled,
    /// A bug of ours.
    Internal,
}

/// A stable short name for an error, as `LAKE_CONFLICT`; errors that users meet often have a page in `docs/errors/`.
pub type Code = &'static str;

/// What every error of Headworks answers.
pub trait Fault: Error + Send + Sync + 'static {
    /// Says what a caller can do about it.
    fn kind(&self) -> ErrorKind;

    /// A stable short name.
    fn code(&self) -> Code;

    /// The next step, as a command or a setting where there is one.
    fn hint(&self) -> Option<String> {
        None
    }

    /// True when the same call may succeed later without anybody's help.
    fn is_retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Conflict | ErrorKind::Unavailable)
    }
}
