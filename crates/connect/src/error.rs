use std::{io, path::PathBuf};

use headworks_domain::{Code, ErrorKind, Fault};

/// What this crate answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what went wrong at the edge, and at which connection, table, column or file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection's own settings are wrong.
    #[error("connection `{connection}`: {reason}")]
    Settings {
        /// The connection.
        connection: String,
        /// What is wrong with them; never shows a secret.
        reason: String,
    },
    /// The database's file is not there.
    #[error("connection `{connection}`: there is no file `{}`", path.display())]
    Missing {
        /// The connection.
        connection: String,
        /// Where the file was looked for.
        path: PathBuf,
    },
    /// The file is there but is something else.
    #[error("connection `{connection}`: `{}` is not a SQLite database", path.display())]
    NotADatabase {
        /// The connection.
        connection: String,
        /// The file.
        path: PathBuf,
    },
    /// The database answered with an error, or did not answer.
    #[error("connection `{connection}`: cannot {doing}: {reason}")]
    Database {
        /// The connection.
        connection: String,
        /// What was being done, as `read table flights`.
        doing: String,
        /// What the database said.
        reason: String,
        /// What a caller can do.
        kind: ErrorKind,
        /// The next step, if one is known.
        hint: Option<String>,
    },
    /// No table of that name.
    #[error("connection `{connection}` has no table `{table}`")]
    UnknownTable {
        /// The connection.
        connection: String,
        /// The name asked for.
        table: String,
        /// The name that was most likely meant.
        nearest: Option<String>,
        /// Some of the tables there are.
        tables: Vec<String>,
        /// How many more there are.
        more: usize,
    },
    /// No column of that name.
    #[error("connection `{connection}`: table `{table}` has no column `{column}`")]
    UnknownColumn {
        /// The connection.
        connection: String,
        /// The table.
        table: String,
        /// The name asked for.
        column: String,
        /// The name that was most likely meant.
        nearest: Option<String>,
        /// The columns there are.
        columns: Box<[String]>,
    },
    /// The column cannot be read as the type asked for.
    #[error("connection `{connection}`: column `{column}` of `{table}` {reason}")]
    Type {
        /// The connection.
        connection: String,
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// Why not.
        reason: String,
        /// The next step.
        hint: Box<str>,
    },
    /// A value does not fit the column's type exactly.
    #[error(transparent)]
    Value(Box<ValueError>),
    /// The column cannot cut an interval out of the table.
    #[error("connection `{connection}`: column `{column}` of `{table}` cannot cut the interval: {reason}")]
    By {
        /// The connection.
        connection: String,
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// Why not.
        reason: String,
        /// The next step.
        hint: Box<str>,
    },
    /// The table's definition changed while it was being read.
    #[error("connection `{connection}`: table `{table}` was altered while it was being read")]
    Changed {
        /// The connection.
        connection: String,
        /// The table.
        table: String,
    },
    /// The server sent bytes that are not what its protocol says.
    #[error("connection `{connection}`: the answer for table `{table}` is damaged: {reason}")]
    Malformed {
        /// The connection.
        connection: String,
        /// The table.
        table: String,
        /// What is wrong with them.
        reason: String,
    },
    /// A type's name in a header is not one.
    #[error("`{name}` is not a column type")]
    UnknownType {
        /// The name.
        name: String,
        /// The name that was most likely meant.
        nearest: Option<String>,
    },
    /// The file is not there.
    #[error("there is no file `{file}`")]
    FileMissing {
        /// The file.
        file: String,
    },
    /// The file cannot be read.
    #[error("cannot read `{file}`: {source}")]
    FileRead {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file's bytes are not what its format says.
    #[error("`{file}` is not a whole {format} file: {reason}")]
    FileCorrupt {
        /// The file.
        file: String,
        /// The format.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The file is sound but uses something that is not supported.
    #[error("`{file}` cannot be read: {reason}")]
    FileUnsupported {
        /// The file.
        file: String,
        /// What is not supported.
        reason: String,
        /// The next step.
        hint: String,
    },
    /// A table cannot be written.
    #[error("connection `{connection}`: cannot write table `{table}`: {reason}")]
    Fill {
        /// The connection.
        connection: String,
        /// The table.
        table: String,
        /// Why not.
        reason: String,
    },
    /// A bug of ours.
    #[error("connection `{connection}`: {reason}")]
    Internal {
        /// The connection.
        connection: String,
        /// What went wrong.
        reason: String,
    },
}

/// A value that does not fit its column's type exactly.
#[derive(Debug, thiserror::Error)]
#[error("connection `{connection}`: column `{column}` of `{table}` has {reason} in the row {row}")]
pub struct ValueError {
    /// The connection.
    pub connection: String,
    /// The table.
    pub table: String,
    /// The column, by its name in the source.
    pub column: String,
    /// The value and why it does not fit, as "`abc`, which is not a bigint".
    pub reason: String,
    /// Which row: its key, its rowid or its place in the answer.
    pub row: String,
    /// The type that the column may be read as instead, as `varchar`.
    pub instead: String,
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Settings { .. } | Self::NotADatabase { .. } | Self::Type { .. } | Self::Value(_) => {
                ErrorKind::Invalid
            }
            Self::By { .. } | Self::UnknownType { .. } | Self::FileUnsupported { .. } | Self::Fill { .. } => {
                ErrorKind::Invalid
            }
            Self::Missing { .. }
            | Self::UnknownTable { .. }
            | Self::UnknownColumn { .. }
            | Self::FileMissing { .. } => ErrorKind::NotFound,
            Self::Database { kind, .. } => *kind,
            Self::Changed { .. } => ErrorKind::Conflict,
            Self::Malformed { .. } | Self::FileCorrupt { .. } => ErrorKind::Corrupt,
            Self::FileRead { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                io::ErrorKind::IsADirectory => ErrorKind::Invalid,
                _ => ErrorKind::Unavailable,
            },
            Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Settings { .. } => "CONNECT_SETTINGS",
            Self::Missing { .. } => "CONNECT_MISSING",
            Self::NotADatabase { .. } => "CONNECT_NOT_A_DATABASE",
            Self::Database { kind: ErrorKind::Unavailable, .. } => "CONNECT_UNAVAILABLE",
            Self::Database { kind: ErrorKind::Denied, .. } => "CONNECT_DENIED",
            Self::Database { .. } => "CONNECT_REFUSED",
            Self::UnknownTable { .. } => "CONNECT_UNKNOWN_TABLE",
            Self::UnknownColumn { .. } => "CONNECT_UNKNOWN_COLUMN",
            Self::Type { .. } => "CONNECT_TYPE",
            Self::Value(_) => "CONNECT_VALUE",
            Self::By { .. } => "CONNECT_BY",
            Self::Changed { .. } => "CONNECT_CHANGED",
            Self::Malformed { .. } => "CONNECT_MALFORMED",
            Self::UnknownType { .. } => "CONNECT_UNKNOWN_TYPE",
            Self::FileMissing { .. } => "FILE_MISSING",
            Self::FileRead { .. } => "FILE_READ",
            Self::FileCorrupt { .. } => "FILE_CORRUPT",
            Self::FileUnsupported { .. } => "FILE_UNSUPPORTED",
            Self::Fill { .. } => "CONNECT_FILL",
            Self::Internal { .. } => "CONNECT_INTERNAL",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Settings { connection, .. } => {
                Some(format!("correct `[connections.{connection}]` in headworks.toml"))
            }
            Self::Missing { connection, .. } | Self::NotADatabase { connection, .. } => {
                Some(format!("correct `path` of `[connections.{connection}]`; it is relative to the project's folder"))
            }
            Self::Database { hint, .. } => hint.clone(),
            Self::UnknownTable { nearest, tables, more, .. } => Some(match nearest {
                Some(near) => format!("did you mean `{near}`?"),
                None if tables.is_empty() => "it has no tables that this user can see".to_owned(),
                None if *more == 0 => format!("it has {}", quoted_list(tables)),
                None => format!("it has {} and {more} more", quoted_list(tables)),
            }),
            Self::UnknownColumn { nearest, columns, .. } => Some(match nearest {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("it has {}", quoted_list(columns)),
            }),
            Self::Type { hint, .. } | Self::By { hint, .. } => Some(hint.to_string()),
            Self::FileUnsupported { hint, .. } => Some(hint.clone()),
            Self::Value(error) => {
                let (column, instead) = (&error.column, &error.instead);
                Some(format!(
                    "read the column as it is written: `types: {{\"{column}\": {instead}}}` in the job's import"
                ))
            }
            Self::Changed { .. } => Some("run it again".to_owned()),
            Self::Malformed { .. } => {
                Some("look at the server's log, and at what stands between it and here".to_owned())
            }
            Self::UnknownType { nearest, .. } => Some(match nearest {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("types are {}", quoted_list(crate::types::NAMES)),
            }),
            Self::FileMissing { .. } => Some("check the path".to_owned()),
            Self::FileRead { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Some("let this user read the file".to_owned()),
                io::ErrorKind::IsADirectory => Some("name a file, not a folder".to_owned()),
                _ => None,
            },
            Self::FileCorrupt { format: "CSV", .. } => {
                Some("mend that place of the file, or write it again with as many values in every line".to_owned())
            }
            Self::FileCorrupt { .. } => Some("copy the file again from where it was written".to_owned()),
            Self::Fill { .. } | Self::Internal { .. } => None,
        }
    }
}

fn quoted_list<S: AsRef<str>>(names: &[S]) -> String {
    names.iter().map(|n| format!("`{}`", n.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Sorts what sqlx answers by what a caller can do about it. No message of a driver shows a password.
pub(crate) fn database(connection: &str, doing: impl Into<String>, error: &sqlx::Error) -> Error {
    let (kind, hint) = match error {
        sqlx::Error::Database(db) => match db.code() {
            Some(code) if code.len() == 5 => postgres_kind(connection, &code),
            Some(code) => sqlite_kind(&code),
            None => (ErrorKind::Invalid, None),
        },
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => (
            ErrorKind::Unavailable,
            Some(format!(
                "check that the server of `[connections.{connection}]` runs and that it can be reached from here"
            )),
        ),
        sqlx::Error::PoolTimedOut => (
            ErrorKind::Unavailable,
            Some(
                "all connections to it are busy, or it does not answer: lower `tasks_max`, or look at the server"
                    .to_owned(),
            ),
        ),
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, None),
        sqlx::Error::Configuration(_) => (ErrorKind::Invalid, None),
        sqlx::Error::Protocol(_) => (ErrorKind::Unavailable, None),
        _ => (ErrorKind::Internal, None),
    };
    let reason = match error {
        sqlx::Error::Database(db) => db.message().to_owned(),
        other => other.to_string(),
    };
    Error::Database { connection: connection.to_owned(), doing: doing.into(), reason, kind, hint }
}

/// Reads a SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn postgres_kind(connection: &str, code: &str) -> (ErrorKind, Option<String>) {
    match code {
        "42501" => (ErrorKind::Denied, Some("grant SELECT on it to the connection's user".to_owned())),
        "3D000" => {
            (ErrorKind::NotFound, Some(format!("correct the database's name in `url` of `[connections.{connection}]`")))
        }
        "57014" => {
            (ErrorKind::Unavailable, Some("the server cancelled the query: look at its `statement_timeout`".to_owned()))
        }
        "55P03" | "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => (ErrorKind::Unavailable, None),
        _ => match &code[..2] {
            "08" | "40" | "53" | "58" => (ErrorKind::Unavailable, None),
            "28" => (ErrorKind::Denied, Some(format!("correct user and password of `[connections.{connection}]`"))),
            "22" => (
                ErrorKind::Invalid,
                Some("a value does not fit the type that `types` in the job's import asks for".to_owned()),
            ),
            "XX" => (ErrorKind::Corrupt, None),
            _ => (ErrorKind::Invalid, None),
        },
    }
}

/// Reads a result code, whose low byte is the kind: <https://www.sqlite.org/rescode.html>
fn sqlite_kind(code: &str) -> (ErrorKind, Option<String>) {
    let code = code.parse::<u32>().unwrap_or(1);
    match code & 0xff {
        // SQLITE_READONLY_RECOVERY and SQLITE_READONLY_ROLLBACK.
        _ if code == 264 || code == 776 => (
            ErrorKind::Unavailable,
            Some("its writer was interrupted: open it once with a program that may write to it".to_owned()),
        ),
        5 | 6 => (ErrorKind::Unavailable, Some("another program holds the database's lock".to_owned())),
        // SQLITE_INTERRUPT: nothing but a time limit of ours ends a query.
        9 => (ErrorKind::Unavailable, Some("it takes too long: give its table an index, or ask for less".to_owned())),
        3 | 8 | 23 => (ErrorKind::Denied, Some("let this user read the file".to_owned())),
        14 => (
            ErrorKind::Denied,
            Some(
                "let this user read the file; a database in WAL mode also needs its `-wal` and `-shm` files beside it"
                    .to_owned(),
            ),
        ),
        10 => (ErrorKind::Unavailable, None),
        13 => (ErrorKind::Exhausted, Some("free some disk space".to_owned())),
        11 => (ErrorKind::Corrupt, Some("run `PRAGMA integrity_check` on it".to_owned())),
        _ => (ErrorKind::Invalid, None),
    }
}

// Every result of this crate is as big as its error.
const _: () = assert!(size_of::<Error>() <= 120);
