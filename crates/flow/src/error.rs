use headworks_domain::{Code, ErrorKind, Fault};

/// Errors of finding a project and its jobs; what is wrong *inside* files are `Problem`s.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No folder up from here is a project.
    #[error("`{dir}` is not in a project: there is no `headworks.toml` in it or above it")]
    NoProject {
        /// Where the search began.
        dir: String,
    },
    /// The folder or its `headworks.toml` cannot be read.
    #[error("the project at `{path}` cannot be read: {source}")]
    Unreadable {
        /// The file or folder.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// No job or table has that name.
    #[error("there is no job or table `{name}`")]
    NoJob {
        /// The name that was asked for.
        name: String,
        /// The nearest name, or some that there are.
        hint: String,
    },
    /// A connection that `headworks.toml` does not have.
    #[error("there is no connection `{name}`")]
    NoConnection {
        /// The name that was asked for.
        name: String,
        /// The nearest name, or those that there are.
        hint: String,
    },
    /// A target of alerts that `headworks.toml` does not have.
    #[error("there is no target `{name}` for alerts")]
    NoTarget {
        /// The name that was asked for.
        name: String,
        /// The nearest name, or those that there are.
        hint: String,
    },
    /// A setting's secret cannot be had.
    #[error("`{setting}` cannot be had: {reason}")]
    Secret {
        /// The setting, as `connections.production.password_env`.
        setting: String,
        /// Why, without the secret.
        reason: String,
    },
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoProject { .. } | Self::NoJob { .. } | Self::NoConnection { .. } | Self::NoTarget { .. } => {
                ErrorKind::NotFound
            }
            Self::Unreadable { .. } | Self::Secret { .. } => ErrorKind::Invalid,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoProject { .. } => "PROJECT_NOT_FOUND",
            Self::Unreadable { .. } => "PROJECT_UNREADABLE",
            Self::NoJob { .. } => "JOB_NOT_FOUND",
            Self::NoConnection { .. } => "CONNECTION_NOT_FOUND",
            Self::NoTarget { .. } => "ALERT_TARGET_NOT_FOUND",
            Self::Secret { .. } => "SECRET_MISSING",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoProject { .. } => {
                Some("start one with headworks init DIR, or name an existing one with -C DIR".to_owned())
            }
            Self::Unreadable { .. } => {
                Some("check the path and its permissions, or start a project with headworks init DIR".to_owned())
            }
            Self::NoJob { hint, .. } | Self::NoConnection { hint, .. } | Self::NoTarget { hint, .. } => {
                Some(hint.clone())
            }
            Self::Secret { .. } => Some("set the variable or the file that the setting names".to_owned()),
        }
    }
}
