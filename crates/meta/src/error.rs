use headworks_domain::{Code, ErrorKind, Fault, JobName, RunId, UserName};

use crate::accounts::PASSWORD_CHARS_MIN;

/// What the orchestrator's records can answer with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The metadata database failed.
    #[error(transparent)]
    Store(#[from] headworks_store::Error),
    /// The run has another owner or is over: nothing was written.
    #[error("run `{run_id}` belongs to another process now, or is over: nothing was published")]
    Fenced {
        /// The run.
        run_id: RunId,
    },
    /// The job has a run at work.
    #[error("job `{job}` cannot be forgotten: run `{run_id}` is at work")]
    Busy {
        /// The job.
        job: JobName,
        /// Its run.
        run_id: RunId,
    },
    /// The run is not over.
    #[error("run `{run_id}` is not over, so that its state is not for people to set")]
    Live {
        /// The run.
        run_id: RunId,
    },
    /// The database is another project's.
    #[error("the metadata database {url} belongs to the project `{found}`, this one is `{asked}`")]
    OtherProject {
        /// The database, without its password.
        url: String,
        /// Whose it is.
        found: String,
        /// Who asked.
        asked: String,
    },
    /// Another process looks after this project's schedules.
    #[error("process {pid} on `{host}` keeps this project running already, and SQLite has room for one")]
    SecondScheduler {
        /// Its machine.
        host: String,
        /// Its number.
        pid: u32,
    },
    /// The name or the password is wrong, or the account may not sign in; it does not say which.
    #[error("the user name, password or token is wrong")]
    SignIn,
    /// Too many of those by one name from one address.
    #[error("too many wrong passwords: the next try is in {seconds} s")]
    Slowed {
        /// The wait.
        seconds: u64,
    },
    /// Too many sign in at once.
    #[error("too many sign in at this moment")]
    Crowded,
    /// A user has the name.
    #[error("there is a user `{name}` already")]
    UserExists {
        /// The name.
        name: UserName,
    },
    /// No user has the name.
    #[error("there is no user `{name}`")]
    UnknownUser {
        /// The name.
        name: UserName,
        /// The name that was most likely meant.
        near: Option<String>,
    },
    /// No token has the id.
    #[error("there is no token `{id}`")]
    UnknownToken {
        /// The id.
        id: String,
    },
    /// No grant has the number.
    #[error("there is no grant {id}")]
    UnknownGrant {
        /// The number.
        id: i64,
    },
    /// The password is guessed too easily.
    #[error("the password cannot be used: {reason}")]
    WeakPassword {
        /// Why.
        reason: String,
    },
    /// Nobody could look after accounts any more.
    #[error("`{name}` is the last admin who can sign in")]
    LastAdmin {
        /// The user.
        name: UserName,
    },
    /// A limit of what is kept of accounts.
    #[error("there are {limit} {what} already, and no more fit")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// A row holds what this program never writes.
    #[error("table `{table}` of the metadata database has a row that makes no sense: {reason}")]
    Row {
        /// The table.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            // Trying the same again cannot help: whoever has the run now does it.
            Self::Fenced { .. } => ErrorKind::Cancelled,
            Self::Busy { .. } | Self::Live { .. } | Self::SecondScheduler { .. } => ErrorKind::Denied,
            Self::OtherProject { .. } => ErrorKind::Invalid,
            Self::SignIn | Self::LastAdmin { .. } => ErrorKind::Denied,
            Self::Slowed { .. } | Self::Crowded => ErrorKind::Unavailable,
            Self::UserExists { .. } | Self::WeakPassword { .. } => ErrorKind::Invalid,
            Self::UnknownUser { .. } | Self::UnknownToken { .. } | Self::UnknownGrant { .. } => ErrorKind::NotFound,
            Self::TooMany { .. } => ErrorKind::Exhausted,
            Self::NoRandomness => ErrorKind::Internal,
            Self::Row { .. } => ErrorKind::Corrupt,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Store(error) => error.code(),
            Self::Fenced { .. } => "META_FENCED",
            Self::Busy { .. } => "META_BUSY",
            Self::Live { .. } => "META_LIVE",
            Self::OtherProject { .. } => "META_OTHER_PROJECT",
            Self::SecondScheduler { .. } => "META_SECOND_SCHEDULER",
            Self::SignIn => "ACCOUNT_SIGN_IN",
            Self::Slowed { .. } => "ACCOUNT_SLOWED",
            Self::Crowded => "ACCOUNT_CROWDED",
            Self::UserExists { .. } => "ACCOUNT_USER_EXISTS",
            Self::UnknownUser { .. } => "ACCOUNT_UNKNOWN_USER",
            Self::UnknownToken { .. } => "ACCOUNT_UNKNOWN_TOKEN",
            Self::UnknownGrant { .. } => "ACCOUNT_UNKNOWN_GRANT",
            Self::WeakPassword { .. } => "ACCOUNT_WEAK_PASSWORD",
            Self::LastAdmin { .. } => "ACCOUNT_LAST_ADMIN",
            Self::TooMany { .. } => "ACCOUNT_TOO_MANY",
            Self::NoRandomness => "ACCOUNT_NO_RANDOMNESS",
            Self::Row { .. } => "META_ROW",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Fenced { run_id } => Some(format!("see who has it with `headworks runs show {run_id}`")),
            Self::Busy { .. } => Some("stop it with Ctrl-C where it runs, or wait for its end".to_owned()),
            Self::Live { run_id } => Some(format!("cancel it first: headworks runs cancel {run_id}")),
            Self::OtherProject { found, .. } => Some(format!(
                "give each project a database of its own with metadata.url, or a metadata.schema; if this is `{found}` under a new name, say so once: headworks doctor --renamed"
            )),
            Self::SecondScheduler { .. } => Some(
                "stop that one first; to keep a project running with several processes set metadata.url to a PostgreSQL"
                    .to_owned(),
            ),
            Self::SignIn => Some(
                "an admin sets a new password with `headworks users passwd`, and sees in `headworks users list` who may sign in"
                    .to_owned(),
            ),
            Self::Slowed { .. } | Self::NoRandomness => None,
            Self::Crowded => Some("try again in a few seconds".to_owned()),
            Self::UserExists { name } => Some(format!(
                "change it with `headworks users role {name} ROLE` or `headworks users passwd {name}`"
            )),
            Self::UnknownUser { near: Some(near), .. } => Some(format!("did you mean `{near}`?")),
            Self::UnknownUser { near: None, .. } => Some("`headworks users list` shows all users".to_owned()),
            Self::UnknownToken { .. } => Some("`headworks tokens list` shows all tokens".to_owned()),
            Self::UnknownGrant { .. } => Some("`headworks grants list` shows all grants".to_owned()),
            Self::WeakPassword { .. } => Some(format!(
                "take {PASSWORD_CHARS_MIN} characters or more that others don't guess, or leave the password to us"
            )),
            Self::LastAdmin { .. } => Some("make another first: headworks users create NAME --role admin".to_owned()),
            Self::TooMany { .. } => Some("remove what nobody needs any more first".to_owned()),
            Self::Row { .. } => {
                Some("try `headworks doctor`, or bring back a backup of the metadata database".to_owned())
            }
        }
    }
}
