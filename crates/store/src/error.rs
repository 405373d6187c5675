use headworks_domain::{Code, ErrorKind, Fault};

/// What the metadata database can answer with besides rows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL is of no database we know.
    #[error("`{url}` is not the URL of a metadata database")]
    Url {
        /// The URL without its password.
        url: String,
    },
    /// The database could not be opened.
    #[error("cannot open the metadata database {url}")]
    Open {
        /// The URL without its password.
        url: String,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("the metadata database refused a statement: {source} [{sql}]")]
    Statement {
        /// The statement's first words.
        sql: String,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// A row with the same key is there already.
    #[error("the metadata database holds such a row already: {message}")]
    Unique {
        /// What the driver said.
        message: String,
    },
    /// Another process holds the lock.
    #[error("the metadata database is locked by another process: {message}")]
    Locked {
        /// What the driver said.
        message: String,
    },
    /// The disk is full.
    #[error("the disk of the metadata database is full: {message}")]
    Full {
        /// What the driver said.
        message: String,
    },
    /// The database may not be written to.
    #[error("the metadata database is read-only: {message}")]
    ReadOnly {
        /// What the driver said.
        message: String,
    },
    /// What the database has stored is not what was written.
    #[error("the metadata database is damaged: {message}")]
    Corrupt {
        /// What the driver or the check said.
        message: String,
    },
    /// A dump or the file that it goes to failed.
    #[error("cannot {doing} `{path}`: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is no dump, or not a whole one.
    #[error("the dump of the metadata database cannot be read: {reason}")]
    Dump {
        /// What is wrong.
        reason: String,
    },
    /// A dump may only go into an empty database.
    #[error("the metadata database is not empty: it has {tables} tables of Headworks")]
    NotEmpty {
        /// How many.
        tables: usize,
    },
    /// A table of the dump has a form that only the other kind of database knows.
    #[error("table `{table}` holds rows in a form of the other kind of database")]
    Foreign {
        /// The table.
        table: String,
    },
    /// The connection broke before the work was committed: nothing of it was kept.
    #[error("the connection to the metadata database broke: {message}")]
    Lost {
        /// What the driver said.
        message: String,
    },
    /// The connection broke while COMMIT was on its way: look whether the rows are there.
    #[error("the reply to a commit was lost: {message}")]
    CommitUnknown {
        /// What the driver said.
        message: String,
    },
    /// The store was opened for reading only.
    #[error("the metadata database {url} was opened for reading only")]
    ForReading {
        /// The URL without its password.
        url: String,
    },
    /// A later version of Headworks has migrated the database.
    #[error(
        "the metadata database was written by a newer Headworks: {component} is at version {found}, this program knows {known}"
    )]
    Newer {
        /// The component whose tables these are.
        component: String,
        /// The version found.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// A column has another type than the code expects.
    #[error("column {column} holds {found}, not {wanted}")]
    Type {
        /// The column's place, from 0.
        column: usize,
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The store was closed.
    #[error("the metadata database was closed")]
    Closed,
    /// A piece of work panicked; it was undone.
    #[error("a piece of work on the metadata database panicked")]
    Panicked,
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Sorts a driver's error by what the caller can do.
    pub(crate) fn of(sql: &str, source: sqlx::Error) -> Self {
        match &source {
            sqlx::Error::Database(db) => {
                let message = db.message().to_owned();
                let code = db.code().unwrap_or_default().into_owned();
                // SQLite's extended codes keep the primary code in the low byte.
                let sqlite =
                    code.parse::<i64>().ok().filter(|_| !code.starts_with("57") && code.len() < 5).map(|c| c & 0xff);
                if db.is_unique_violation() {
                    Self::Unique { message }
                } else if matches!(sqlite, Some(5 | 6)) || matches!(code.as_str(), "55P03" | "40P01" | "40001") {
                    Self::Locked { message }
                } else if is_full(&source) {
                    Self::Full { message }
                } else if sqlite == Some(8) || code == "25006" {
                    Self::ReadOnly { message }
                } else if matches!(sqlite, Some(11 | 26)) || matches!(code.as_str(), "XX001" | "XX002") {
                    Self::Corrupt { message }
                } else if matches!(sqlite, Some(10 | 14)) {
                    // The disk or the folder failed, not the statement.
                    Self::Lost { message }
                } else if code.starts_with("57P")
                    || code.starts_with("08")
                    || matches!(code.as_str(), "25P03" | "25P04")
                {
                    // The last two: who stood still in a transaction for too long has lost the connection with it.
                    Self::Lost { message }
                } else {
                    Self::Statement { sql: sql.chars().take(200).collect(), source }
                }
            }
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => {
                Self::Lost { message: source.to_string() }
            }
            sqlx::Error::PoolClosed => Self::Closed,
            _ => Self::Statement { sql: sql.chars().take(200).collect(), source },
        }
    }

    /// Says why the database cannot be opened.
    pub(crate) fn of_opening(url: String, source: sqlx::Error) -> Self {
        if !is_full(&source) {
            return Self::Open { url, source };
        }
        let message = source.as_database_error().map_or_else(|| source.to_string(), |db| db.message().to_owned());
        Self::Full { message }
    }

    /// True when the connection can be used no more.
    pub(crate) fn breaks_connection(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// True when there is no room left. SQLite has a code of its own for its shared memory, a file too, that cannot grow.
fn is_full(source: &sqlx::Error) -> bool {
    const SQLITE_FULL: &str = "13";
    const SQLITE_IOERR_SHMSIZE: &str = "4874";
    const POSTGRES_DISK_FULL: &str = "53100";
    match source {
        sqlx::Error::Database(db) => {
            matches!(db.code().as_deref(), Some(SQLITE_FULL | SQLITE_IOERR_SHMSIZE | POSTGRES_DISK_FULL))
        }
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::StorageFull,
        _ => false,
    }
}

/// True when the server cannot be reached for now: it starts, stops or has too many guests, or a pooler finds none behind it.
fn is_away(source: &sqlx::Error) -> bool {
    const TOO_MANY_CONNECTIONS: &str = "53300";
    match source {
        // A proxy that closes the connection at once, for the server behind it is away, answers the first question with nothing.
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(db) => {
            let code = db.code().unwrap_or_default();
            code.starts_with("57P") || code.starts_with("08") || code == TOO_MANY_CONNECTIONS
        }
        _ => false,
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. } | Self::Newer { .. } | Self::NotEmpty { .. } | Self::Foreign { .. } => ErrorKind::Invalid,
            Self::ReadOnly { .. } => ErrorKind::Denied,
            Self::Corrupt { .. } | Self::Dump { .. } => ErrorKind::Corrupt,
            Self::File { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Unavailable,
            },
            Self::Open { source, .. } if is_away(source) => ErrorKind::Unavailable,
            Self::Open { .. } => ErrorKind::Invalid,
            Self::Locked { .. } | Self::Lost { .. } | Self::CommitUnknown { .. } => ErrorKind::Unavailable,
            Self::Unique { .. } => ErrorKind::Conflict,
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::ForReading { .. } => ErrorKind::Denied,
            Self::Closed => ErrorKind::Cancelled,
            Self::Statement { .. } | Self::Type { .. } | Self::Panicked => ErrorKind::Internal,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Url { .. } => "STORE_URL",
            Self::Open { .. } => "STORE_OPEN",
            Self::Statement { .. } => "STORE_STATEMENT",
            Self::Unique { .. } => "STORE_UNIQUE",
            Self::Locked { .. } => "STORE_LOCKED",
            Self::Full { .. } => "STORE_FULL",
            Self::ReadOnly { .. } => "STORE_READ_ONLY",
            Self::Corrupt { .. } => "STORE_CORRUPT",
            Self::File { .. } => "STORE_FILE",
            Self::Dump { .. } => "STORE_DUMP",
            Self::NotEmpty { .. } => "STORE_NOT_EMPTY",
            Self::Foreign { .. } => "STORE_FOREIGN",
            Self::Lost { .. } => "STORE_LOST",
            Self::CommitUnknown { .. } => "STORE_COMMIT_UNKNOWN",
            Self::ForReading { .. } => "STORE_FOR_READING",
            Self::Newer { .. } => "STORE_NEWER",
            Self::Type { .. } => "STORE_TYPE",
            Self::Closed => "STORE_CLOSED",
            Self::Panicked => "STORE_PANICKED",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Url { .. } => "write metadata.url as sqlite:PATH or postgres://USER@HOST/DATABASE".to_owned(),
            Self::Open { .. } => "see metadata.url in headworks.toml, and try headworks doctor".to_owned(),
            Self::Locked { .. } => {
                "see which other program holds the database open, then run the command again".to_owned()
            }
            Self::Full { .. } => "free space on that disk; headworks gc shows what can go".to_owned(),
            Self::Lost { .. } => {
                "see that the database server runs and can be reached, then run the command again".to_owned()
            }
            Self::Newer { .. } => "use that newer version of headworks".to_owned(),
            Self::ReadOnly { .. } => {
                "give this user the right to write there; a PostgreSQL replica only reads: name the primary in metadata.url"
                    .to_owned()
            }
            Self::Corrupt { .. } => {
                "stop every headworks process and bring back a backup with headworks restore".to_owned()
            }
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free space on that disk".to_owned()
            }
            Self::Dump { .. } => "use another backup: this one is damaged".to_owned(),
            Self::NotEmpty { .. } => {
                "name an empty database in metadata.url, or add --force to replace what is there".to_owned()
            }
            Self::Foreign { .. } => {
                "let DuckDB write them to files first, CALL ducklake_flush_inlined_data('lake'), and back up again".to_owned()
            }
            _ => return None,
        })
    }
}
