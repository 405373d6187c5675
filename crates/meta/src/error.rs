use headworks_domain::{Code, ErrorKind, Fault, JobName, RunId};

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
            Self::Row { .. } => {
                Some("try `headworks doctor`, or bring back a backup of the metadata database".to_owned())
            }
        }
    }
}
