use std::fmt;

use datafusion::{
    common::{Column, SchemaError},
    error::DataFusionError,
    sql::sqlparser::{
        parser::ParserError,
        tokenizer::{Location, TokenizerError},
    },
};
use headworks_domain::{Code, ErrorKind, Fault, nearest};

/// A place in an SQL text; line and column count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl Position {
    pub(crate) fn of(at: Location) -> Option<Self> {
        let line = usize::try_from(at.line).ok().filter(|l| *l > 0)?;
        Some(Self { line, column: usize::try_from(at.column).ok()?.max(1) })
    }
}

/// What can go wrong between an SQL text and its rows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not SQL.
    #[error("the SQL cannot be read: {message}")]
    Syntax {
        /// What the parser expected.
        message: String,
        /// Where it stopped.
        position: Option<Position>,
    },
    /// The text is SQL but not for these tables: a column, a function, a type does not fit.
    #[error("{message}")]
    Plan {
        /// What does not fit.
        message: String,
        /// Where, when known.
        position: Option<Position>,
        /// What to do about it, when known.
        hint: Option<String>,
    },
    /// No table or view has this name.
    #[error("table `{name}` does not exist")]
    UnknownTable {
        /// The name as written.
        name: String,
        /// Where it stands.
        position: Option<Position>,
        /// The name that was most likely meant.
        near: Option<String>,
    },
    /// A statement or clause that is not for reading.
    #[error("{what} is not allowed here: only SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES and DESCRIBE are")]
    Refused {
        /// The statement or clause.
        what: String,
        /// Where it stands, when known.
        position: Option<Position>,
    },
    /// The text is larger than a named limit allows.
    #[error("the SQL has {what} above the limit of {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// The limit's name: a field of [`SqlLimits`](crate::SqlLimits) behind `sql.`.
        setting: &'static str,
        /// Where the limit was crossed, when known.
        position: Option<Position>,
    },
    /// The statement's time is over.
    #[error("the query was stopped after {seconds} s, its time limit")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// No queue has this name, or not for this caller.
    #[error("there is no queue `{name}` for this query")]
    UnknownQueue {
        /// The name.
        name: String,
        /// The name that was most likely meant.
        near: Option<String>,
    },
    /// Too many queries wait already.
    #[error("queue `{queue}` is full: {waiting} queries wait in it")]
    QueueFull {
        /// The queue.
        queue: String,
        /// How many wait.
        waiting: usize,
    },
    /// The query waited for its turn as long as it may.
    #[error("the query waited {seconds} s for a slot of queue `{queue}` and was still number {place} in line")]
    QueueWait {
        /// The queue.
        queue: String,
        /// The limit.
        seconds: u64,
        /// How many would have come first, itself counted.
        place: usize,
    },
    /// The query gives more rows than its queue allows.
    #[error("the query gives more than {limit} rows, the limit of queue `{queue}`")]
    TooManyRows {
        /// The limit.
        limit: u64,
        /// The queue.
        queue: String,
    },
    /// The query reads more than its queue allows.
    #[error("the query has read more than {limit_bytes} bytes of files, the limit of queue `{queue}`")]
    TooMuchRead {
        /// The limit.
        limit_bytes: u64,
        /// The queue.
        queue: String,
    },
    /// The reader of the result took nothing for too long.
    #[error("nobody took the query's rows for {seconds} s, so it was ended")]
    SlowReader {
        /// The limit.
        seconds: u64,
    },
    /// The same request id came with another statement.
    #[error("request `{request}` was for another statement")]
    RequestReused {
        /// The request id.
        request: String,
    },
    /// A result could not be kept in a file, or read from there.
    #[error("the result cannot be kept on disk: {0}")]
    Spool(#[source] std::io::Error),
    /// Memory or spill space is used up, also after a second try with joins that spill.
    #[error("the query needs more memory or spill space than it has: {message}")]
    Exhausted {
        /// Which part of the query asked for how much.
        message: String,
    },
    /// A value, a pattern or the constants are larger than is allowed, whatever memory there is.
    #[error("{message}")]
    AboveLimit {
        /// What is too large, and the limit.
        message: String,
    },
    /// The disk to which sorts, joins and groups are spilled is full.
    #[error("the disk has no room for what the query sets aside: {message}")]
    DiskFull {
        /// What the system said.
        message: String,
    },
    /// The values do not allow what the query asks: a division by zero, a cast of text that is no number.
    #[error("{message}")]
    Data {
        /// What went wrong.
        message: String,
    },
    /// A file of a table is damaged.
    #[error("a file of the lake cannot be read: {message}")]
    Corrupt {
        /// Which file, and what is wrong with it.
        message: String,
    },
    /// Files or object store are out of reach.
    #[error("the lake's files cannot be read: {message}")]
    Storage {
        /// What the store said.
        message: String,
        /// True when the same read may succeed later.
        transient: bool,
    },
    /// The catalog failed.
    #[error("{0}")]
    Catalog(Box<dyn Fault>),
    /// The query of a check failed; the check has neither passed nor failed.
    #[error("check `{name}` cannot run: {source}")]
    Check {
        /// The check's name.
        name: String,
        /// What went wrong; its position is one in the check's own text.
        #[source]
        source: Box<Error>,
    },
    /// Stopped on request: its reader went away or the engine shuts down.
    #[error("the query was stopped")]
    Cancelled,
    /// The result could not be written to where it should go.
    #[error("the result cannot be written: {0}")]
    Output(#[source] std::io::Error),
    /// The engine could not be started.
    #[error("the SQL engine cannot start: {0}")]
    Start(#[source] std::io::Error),
    /// A bug of ours or of DataFusion.
    #[error("the query failed inside the engine: {message}")]
    Internal {
        /// What DataFusion said.
        message: String,
    },
}

/// Stands in the message of a function whose values would be too large.
pub(crate) const VALUE_LIMIT: &str = "above the limit for values of";

/// And of one that no setting changes.
pub(crate) const FIXED_LIMIT: &str = "are allowed";

/// What the engine's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Where in the SQL text it went wrong, so that a caller can show the line of the file that holds the text.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Syntax { position, .. }
            | Self::Plan { position, .. }
            | Self::UnknownTable { position, .. }
            | Self::Refused { position, .. }
            | Self::TooLarge { position, .. } => *position,
            Self::Check { source, .. } => source.position(),
            _ => None,
        }
    }

    pub(crate) fn plan(message: impl Into<String>, position: Option<Position>) -> Self {
        Self::Plan { message: message.into(), position, hint: None }
    }

    pub(crate) fn from_tokenizer(error: TokenizerError) -> Self {
        Self::Syntax { message: lowercase_first(&error.message), position: Position::of(error.location) }
    }

    pub(crate) fn from_parser(error: ParserError, depth_max: usize) -> Self {
        match error {
            ParserError::RecursionLimitExceeded => Self::TooLarge {
                what: "nested expressions",
                limit: depth_max,
                setting: "sql.depth_max",
                position: None,
            },
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
                let (message, position) = split_location(&message);
                Self::Syntax { message: lowercase_first(message), position }
            }
        }
    }

    /// Gives what DataFusion reports a kind, a short message and a position.
    pub(crate) fn from_datafusion(error: DataFusionError) -> Self {
        let position = error
            .diagnostic()
            .and_then(|d| d.span)
            .and_then(|s| Position::of(Location { line: s.start.line, column: s.start.column }));
        Self::classified(error, position)
    }

    fn classified(error: DataFusionError, position: Option<Position>) -> Self {
        match error {
            DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => {
                Self::classified(*inner, position)
            }
            DataFusionError::Shared(inner) => match std::sync::Arc::try_unwrap(inner) {
                Ok(inner) => Self::classified(inner, position),
                Err(shared) => Self::of_shared(&shared, position),
            },
            DataFusionError::Collection(mut all) if !all.is_empty() => Self::classified(all.swap_remove(0), position),
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(inner) => match inner.downcast::<DataFusionError>() {
                    Ok(inner) => Self::classified(*inner, position),
                    Err(inner) if inner.to_string().starts_with("regex parse error") => {
                        Self::Data { message: "a regular expression cannot be read, or is too large".to_owned() }
                    }
                    Err(inner) => crate::lake::external(inner),
                },
            },
            DataFusionError::SQL(error, _) => Self::from_parser(*error, 0),
            DataFusionError::SchemaError(error, _) => schema_error(&error, position),
            DataFusionError::ArrowError(error, _) => match *error {
                arrow::error::ArrowError::ExternalError(inner) => {
                    Self::classified(DataFusionError::External(inner), position)
                }
                arrow::error::ArrowError::IoError(_, io) => Self::classified(DataFusionError::IoError(io), position),
                other => Self::Data { message: short(&other.to_string()) },
            },
            DataFusionError::ParquetError(error) => match *error {
                datafusion::parquet::errors::ParquetError::External(inner) => {
                    Self::classified(DataFusionError::External(inner), position)
                }
                other => Self::Corrupt { message: short(&other.to_string()) },
            },
            DataFusionError::ObjectStore(error) => {
                let transient = !matches!(
                    *error,
                    datafusion::object_store::Error::NotFound { .. }
                        | datafusion::object_store::Error::PermissionDenied { .. }
                        | datafusion::object_store::Error::Unauthenticated { .. }
                );
                Self::Storage { message: short(&error.to_string()), transient }
            }
            DataFusionError::IoError(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                Self::DiskFull { message: error.to_string() }
            }
            DataFusionError::IoError(error) => Self::Storage { message: error.to_string(), transient: false },
            DataFusionError::ResourcesExhausted(message) => Self::exhausted(short(&message)),
            DataFusionError::NotImplemented(message) => Self::plan(short(&message), position),
            DataFusionError::Plan(message) | DataFusionError::Configuration(message) => plan_error(&message, position),
            DataFusionError::Execution(message) => Self::Data { message: short(&message) },
            DataFusionError::ExecutionJoin(error) if error.is_cancelled() => Self::Cancelled,
            other => Self::Internal { message: other.strip_backtrace() },
        }
    }

    fn exhausted(message: String) -> Self {
        match [VALUE_LIMIT, FIXED_LIMIT].iter().any(|limit| message.contains(limit)) {
            true => Self::AboveLimit { message },
            false => Self::Exhausted { message },
        }
    }

    /// The same for an error that other parts of the plan hold as well, so that it can only be looked at.
    fn of_shared(error: &DataFusionError, position: Option<Position>) -> Self {
        let message = short(&error.message());
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Self::exhausted(message),
            DataFusionError::ParquetError(_) => Self::Corrupt { message },
            DataFusionError::IoError(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                Self::DiskFull { message }
            }
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => Self::Storage { message, transient: true },
            DataFusionError::SchemaError(error, _) => schema_error(error, position),
            DataFusionError::Plan(_) | DataFusionError::NotImplemented(_) => plan_error(&message, position),
            DataFusionError::Execution(_) | DataFusionError::ArrowError(..) => Self::Data { message },
            _ => Self::Internal { message },
        }
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Self::from_datafusion(error)
    }
}

impl Fault for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Syntax { .. } | Self::Plan { .. } | Self::Data { .. } => ErrorKind::Invalid,
            Self::UnknownTable { .. } | Self::UnknownQueue { .. } => ErrorKind::NotFound,
            Self::QueueFull { .. } | Self::QueueWait { .. } => ErrorKind::Unavailable,
            Self::RequestReused { .. } => ErrorKind::Invalid,
            Self::TooManyRows { .. } | Self::TooMuchRead { .. } | Self::SlowReader { .. } => ErrorKind::Exhausted,
            Self::Spool(error) if error.kind() == std::io::ErrorKind::StorageFull => ErrorKind::Exhausted,
            Self::Spool(_) => ErrorKind::Internal,
            Self::Refused { .. } => ErrorKind::Denied,
            Self::TooLarge { .. }
            | Self::Timeout { .. }
            | Self::Exhausted { .. }
            | Self::AboveLimit { .. }
            | Self::DiskFull { .. } => ErrorKind::Exhausted,
            Self::Output(error) if error.kind() == std::io::ErrorKind::StorageFull => ErrorKind::Exhausted,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Storage { .. } | Self::Output(_) => ErrorKind::Unavailable,
            Self::Catalog(fault) => fault.kind(),
            Self::Check { source, .. } => source.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Start(_) | Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Syntax { .. } => "SQL_SYNTAX",
            Self::Plan { .. } => "SQL_PLAN",
            Self::UnknownTable { .. } => "SQL_UNKNOWN_TABLE",
            Self::Refused { .. } => "SQL_REFUSED",
            Self::TooLarge { .. } => "SQL_TOO_LARGE",
            Self::UnknownQueue { .. } => "SQL_UNKNOWN_QUEUE",
            Self::QueueFull { .. } => "SQL_QUEUE_FULL",
            Self::QueueWait { .. } => "SQL_QUEUE_WAIT",
            Self::TooManyRows { .. } => "SQL_TOO_MANY_ROWS",
            Self::TooMuchRead { .. } => "SQL_TOO_MUCH_READ",
            Self::SlowReader { .. } => "SQL_SLOW_READER",
            Self::RequestReused { .. } => "SQL_REQUEST_REUSED",
            Self::Spool(_) => "SQL_SPOOL",
            Self::Timeout { .. } => "SQL_TIMEOUT",
            Self::Exhausted { .. } | Self::AboveLimit { .. } => "SQL_EXHAUSTED",
            Self::DiskFull { .. } => "SQL_DISK_FULL",
            Self::Data { .. } => "SQL_DATA",
            Self::Corrupt { .. } => "LAKE_CORRUPT",
            Self::Storage { .. } => "LAKE_STORAGE",
            Self::Catalog(fault) => fault.code(),
            Self::Check { source, .. } => source.code(),
            Self::Cancelled => "SQL_CANCELLED",
            Self::Output(_) => "SQL_OUTPUT",
            Self::Start(_) | Self::Internal { .. } => "SQL_INTERNAL",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Plan { hint, .. } => hint.clone(),
            Self::UnknownTable { near: Some(near), .. } => {
                Some(format!("did you mean `{near}`? `headworks tables list` shows all tables"))
            }
            Self::UnknownTable { .. } => Some("`headworks tables list` shows all tables".to_owned()),
            Self::TooLarge { setting: "sql.depth_max", .. } => {
                Some("write long OR chains as `IN (...)`, and long sums as a table of values".to_owned())
            }
            Self::TooLarge { .. } => {
                Some("shorten it: long lists of values belong into a table that the query joins".to_owned())
            }
            Self::UnknownQueue { near: Some(near), .. } => Some(format!("did you mean `{near}`?")),
            Self::UnknownQueue { .. } => Some("queues are in headworks.toml: [queues.<name>]".to_owned()),
            Self::QueueFull { queue, .. } => Some(format!("try again later, or raise `queues.{queue}.waiting_max`")),
            Self::QueueWait { queue, .. } => Some(format!("try again later, or raise `queues.{queue}.slots`")),
            Self::TooManyRows { queue, .. } => {
                Some(format!("add LIMIT or count before you list, or raise `queues.{queue}.rows_max`"))
            }
            Self::TooMuchRead { queue, .. } => Some(format!(
                "read fewer partitions (`where ds = ...`) or columns, or raise `queues.{queue}.scanned_bytes_max`"
            )),
            Self::Timeout { .. } => Some("read fewer partitions (`where ds = ...`), or raise the timeout".to_owned()),
            Self::AboveLimit { message } if message.contains(VALUE_LIMIT) => Some(
                "make smaller values, or raise `sql.value_bytes_max` and `engine.memory` in headworks.toml".to_owned(),
            ),
            Self::AboveLimit { .. } => Some("make texts and patterns shorter: this limit is fixed".to_owned()),
            Self::Exhausted { .. } => {
                Some("read fewer partitions or columns, or raise `engine.memory` in headworks.toml".to_owned())
            }
            Self::Data { message } if message.contains("cannot cast") => {
                Some("`try_cast` gives null for values that do not fit".to_owned())
            }
            Self::Data { message }
                if ["divide by zero", "division by zero"].iter().any(|zero| message.contains(zero)) =>
            {
                Some("`x / nullif(y, 0)` gives null instead".to_owned())
            }
            Self::Data { message } if message.contains("Overflow happened") => {
                Some("cast to `decimal(38, 0)` or `double` before you calculate".to_owned())
            }
            Self::DiskFull { .. } => {
                Some("free space on that disk, or let the query spill less: raise `engine.memory`".to_owned())
            }
            Self::Output(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                Some("free space on that disk, or write to another".to_owned())
            }
            Self::Catalog(fault) => fault.hint(),
            Self::Check { source, .. } => source.hint(),
            _ => None,
        }
    }

    fn is_retryable(&self) -> bool {
        match self {
            Self::Storage { transient, .. } => *transient,
            Self::Output(_) => false,
            Self::Catalog(fault) => fault.is_retryable(),
            Self::QueueFull { .. } | Self::QueueWait { .. } => true,
            Self::Check { source, .. } => source.is_retryable(),
            _ => false,
        }
    }
}

/// The most characters of a foreign message that are shown.
const MESSAGE_CHARS_MAX: usize = 1_000;

/// The most forms of a function that are listed.
const FORMS_SHOWN_MAX: usize = 4;

/// The most columns listed when a name is unknown.
const COLUMNS_SHOWN_MAX: usize = 12;

fn schema_error(error: &SchemaError, position: Option<Position>) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => unknown_column(field, valid_fields, position),
        SchemaError::AmbiguousReference { field } => Error::Plan {
            message: format!("column `{}` is in more than one table", field.name),
            position: position.or_else(|| span_of(field)),
            hint: Some(format!("write the table before it, as `t.{}`", field.name)),
        },
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            Error::Plan {
                message: format!("two columns are named `{name}`"),
                position,
                hint: Some("give one of them another name with `AS`".to_owned()),
            }
        }
    }
}

fn unknown_column(field: &Column, valid: &[Column], position: Option<Position>) -> Error {
    let mut names: Vec<&str> = Vec::new();
    for column in valid {
        if !names.contains(&column.name.as_str()) {
            names.push(&column.name);
        }
    }
    let written = match &field.relation {
        Some(relation) => format!("{relation}.{}", field.name),
        None => field.name.clone(),
    };
    let hint = match nearest(&field.name, names.iter().copied()) {
        Some(near) if near == field.name => {
            let owners: Vec<String> = valid
                .iter()
                .filter(|c| c.name == near)
                .filter_map(|c| c.relation.as_ref().map(|r| r.to_string()))
                .collect();
            format!("`{near}` is a column of `{}`", owners.join("`, `"))
        }
        Some(near) if near.to_lowercase() == field.name.to_lowercase() => {
            format!("names in capitals need quotes: write `\"{near}\"`")
        }
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => "there are no columns here".to_owned(),
        None => {
            let more = names.len().saturating_sub(COLUMNS_SHOWN_MAX);
            names.truncate(COLUMNS_SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("there are `{}`{more}", names.join("`, `"))
        }
    };
    Error::Plan {
        message: format!("column `{written}` does not exist"),
        position: position.or_else(|| span_of(field)),
        hint: Some(hint),
    }
}

fn span_of(column: &Column) -> Option<Position> {
    let span = column.spans.first()?;
    Position::of(Location { line: span.start.line, column: span.start.column })
}

fn plan_error(message: &str, position: Option<Position>) -> Error {
    // Its end tells the most, and would be cut off.
    if let Some(error) = misused(&in_sql_words(message), position) {
        return error;
    }
    let message = short(message);
    if message.starts_with("projections require unique expression names") {
        return Error::Plan {
            message: format!("two columns of the result have the same name{}", doubled(&message)),
            position,
            hint: Some("give one of them another name with `AS`".to_owned()),
        };
    }
    if let Some(error) = ungrouped(&message, position) {
        return error;
    }
    // `Invalid function 'cuont'. Did you mean 'count'?` and coercion errors end with advice on its own: it becomes the hint.
    if let Some((first, near)) = message.split_once("did you mean ").or_else(|| message.split_once("Did you mean ")) {
        return Error::Plan {
            message: first.trim_end().trim_end_matches(['.', '\n']).replace('\'', "`"),
            position,
            hint: Some(format!("did you mean {}", near.trim().replace('\'', "`"))),
        };
    }
    Error::Plan { message, position, hint: None }
}

/// A column that is neither grouped by nor aggregated.
fn ungrouped(message: &str, position: Option<Position>) -> Option<Error> {
    let (before, _) = message.split_once("\" must appear in the GROUP BY clause")?;
    let (_, column) = before.rsplit_once('"')?;
    Some(Error::Plan {
        message: format!("column `{column}` is neither in GROUP BY nor in an aggregate function"),
        position,
        hint: Some(format!("add it to GROUP BY, or take one of its values, as `max({column})`")),
    })
}

/// A function that does not take such arguments. DataFusion tells every form that it tried and asks for a bug report.
fn misused(message: &str, position: Option<Position>) -> Option<Error> {
    let (_, call) = message.split_once("No function matches the given name and argument types '")?;
    let (call, rest) = call.split_once("'.")?;
    let forms: Vec<String> = rest
        .split_once("Candidate functions:")
        .map_or("", |(_, forms)| forms)
        .lines()
        .map(str::trim)
        .filter(|form| form.ends_with(')'))
        .map(|form| format!("`{form}`"))
        .take(FORMS_SHOWN_MAX)
        .collect();
    let hint = if forms.is_empty() { "cast its arguments".to_owned() } else { format!("it is {}", forms.join(" or ")) };
    Some(Error::Plan { message: format!("no function is called as `{call}`"), position, hint: Some(hint) })
}

/// The name that DataFusion's message about doubled columns ends its expressions with, as `: `n``.
fn doubled(message: &str) -> String {
    let name = message.split("\" at position").next().and_then(|first| first.rsplit(" AS ").next());
    name.filter(|name| !name.contains('"')).map_or(String::new(), |name| format!(": `{name}`"))
}

/// Cuts DataFusion's prefixes, advice to report bugs and length.
fn short(message: &str) -> String {
    let mut message = message;
    for prefix in [
        "Error during planning: ",
        "Execution error: ",
        "Arrow error: ",
        "Cast error: ",
        "External error: ",
        "This feature is not implemented: ",
    ] {
        message = message.strip_prefix(prefix).unwrap_or(message);
    }
    let message = message.split("\n\nbacktrace:").next().unwrap_or(message).trim().trim_end_matches('.');
    let mut text = in_sql_words(&lowercase_first(message));
    if let Some((cut, _)) = text.char_indices().nth(MESSAGE_CHARS_MAX) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// Calls types as SQL does where Arrow's names stand by themselves; `Int64(1)` is a value, and stays.
fn in_sql_words(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let is_alone = !tail.starts_with('(') && !tail.starts_with('"') && !out.ends_with(['"', '\'', '.', '`']);
        out.push_str(match word {
            "Utf8" | "Utf8View" | "LargeUtf8" if is_alone => "varchar",
            "Int8" if is_alone => "tinyint",
            "Int16" if is_alone => "smallint",
            "Int32" if is_alone => "integer",
            "Int64" if is_alone => "bigint",
            "Float32" if is_alone => "real",
            "Float64" if is_alone => "double",
            "Date32" if is_alone => "date",
            "Boolean" if is_alone => "boolean",
            "Binary" | "BinaryView" if is_alone => "blob",
            other => other,
        });
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn lowercase_first(message: &str) -> String {
    let mut chars = message.chars();
    match (chars.next(), chars.next()) {
        // `SELECT ...`, `UNION ...` and other words in capitals stay.
        (Some(first), Some(second)) if first.is_uppercase() && !second.is_uppercase() => {
            first.to_lowercase().chain(message.chars().skip(1)).collect()
        }
        _ => message.trim_end_matches('.').to_owned(),
    }
}

/// Takes ` at Line: 1, Column: 8` off a parser's message.
fn split_location(message: &str) -> (&str, Option<Position>) {
    let Some((head, tail)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let position = tail.split_once(", Column: ").and_then(|(line, column)| {
        Some(Position { line: line.trim().parse().ok()?, column: column.trim().parse().ok()? })
    });
    (head, position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_messages_lose_their_place() {
        let error = Error::from_parser(
            ParserError::ParserError("Expected: an expression, found: FROM at Line: 2, Column: 8".to_owned()),
            0,
        );
        assert_eq!(error.to_string(), "the SQL cannot be read: expected: an expression, found: FROM");
        assert_eq!(error.position(), Some(Position { line: 2, column: 8 }));
    }

    #[test]
    fn what_does_not_fit_is_told_in_words_of_sql() {
        let check = |message: &str, expected: &str, hint: Option<&str>| {
            let error = plan_error(message, None);
            assert_eq!(error.to_string(), expected, "{message}");
            assert_eq!(error.hint().as_deref(), hint, "{message}");
        };
        check(
            "Column in SELECT must be in GROUP BY or an aggregate function: While expanding wildcard, column \"t.a\" must appear in \
             the GROUP BY clause or must be part of an aggregate function, currently only \"count(Int64(1))\" appears in the SELECT \
             clause satisfies this requirement",
            "column `t.a` is neither in GROUP BY nor in an aggregate function",
            Some("add it to GROUP BY, or take one of its values, as `max(t.a)`"),
        );
        check(
            "Internal error: Function 'f' failed. Please help us. No function matches the given name and argument types \
             'f(Utf8, Int64)'. You might need to add explicit type casts.\n\tCandidate functions:\n\tf(str: String)\n\tf(Int64, Int64)",
            "no function is called as `f(varchar, bigint)`",
            Some("it is `f(str: String)` or `f(bigint, bigint)`"),
        );
        check(
            "Cannot coerce arithmetic expression Date32 + Utf8 to valid types",
            "cannot coerce arithmetic expression date + varchar to valid types",
            None,
        );
        check("no 'Utf8(\"a\")' or \"Int64\" here", "no 'Utf8(\"a\")' or \"Int64\" here", None);
        check(
            "Projections require unique expression names but the expression \"Int64(1) AS a\" at position 0 and \"Int64(2) AS a\" at \
             position 1 have the same name. Consider aliasing (\"AS\") one of them.",
            "two columns of the result have the same name: `a`",
            Some("give one of them another name with `AS`"),
        );
    }

    #[test]
    fn unknown_columns_name_the_nearest() {
        let valid = [Column::new(Some("t"), "carrier"), Column::new(Some("t"), "Dest"), Column::new(Some("t"), "ds")];
        let check = |name: &str, hint: &str| {
            let error = unknown_column(&Column::new_unqualified(name), &valid, None);
            assert_eq!(error.to_string(), format!("column `{name}` does not exist"));
            assert_eq!(error.hint().as_deref(), Some(hint));
        };
        check("carier", "did you mean `carrier`?");
        check("dest", "names in capitals need quotes: write `\"Dest\"`");
        check("something", "there are `carrier`, `Dest`, `ds`");
    }
}
