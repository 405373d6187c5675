use headworks_domain::{Code, ErrorKind, Fault};

/// What can go wrong with an executor itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of it broke.
    #[error("a part of the executor broke: {0}")]
    Broken(String),
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }

    fn code(&self) -> Code {
        "FLOW_BROKEN"
    }
}
