//! One client's session: its messages one after the other, its transaction, its prepared statements and portals.

mod changes;
mod cursors;
mod extended;
mod rows;

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use headworks_engine::{Caller, Error, PgSession, Signed};
use pgwire::messages::{
    response::{EmptyQueryResponse, ReadyForQuery, TransactionStatus},
    startup::{BackendKeyData, ParameterStatus, SecretKey},
};
use tokio::sync::watch;

use super::{
    Seat, Shared, accounts,
    error::{PgError, state},
    frame::{Frontend, Target},
    lexer,
    link::{End, Link},
    portal::{self, Portal, Prepared},
    settings::{REPORTED, Settings},
    statement::{Query, Statement},
};

pub(super) struct Session<'a> {
    shared: &'a Shared,
    link: Link,
    signals: Signals,
    /// By what the accounts find it again.
    account: String,
    /// The name that the client signed in with.
    login: String,
    /// Who that is by now.
    caller: Caller,
    settings: Settings,
    /// What SQL may ask about the session; made anew when a parameter changes.
    known: Arc<PgSession>,
    transaction: Transaction,
    statements: HashMap<String, Prepared>,
    portals: HashMap<String, Portal>,
    /// True from an error in the extended protocol to the next Sync.
    skips_to_sync: bool,
    _seat: Seat,
}

/// What ends a statement from outside.
struct Signals {
    cancel: watch::Receiver<u64>,
    closing: watch::Receiver<bool>,
}

enum Transaction {
    None,
    Open(Open),
    /// A statement has failed: nothing is heard until it ends.
    Failed(Open),
}

/// What an open transaction goes back to.
struct Open {
    settings: Settings,
    savepoints: Vec<String>,
    /// Parameters of SET LOCAL, with their values before.
    local: Vec<(String, String)>,
}

/// Why a statement, or all of the session, ends.
enum Fail {
    Error(PgError),
    End(End),
}

impl From<PgError> for Fail {
    fn from(error: PgError) -> Self {
        Self::Error(error)
    }
}

impl From<End> for Fail {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        seat: Seat,
        link: Link,
        (account, login, caller): (String, String, Caller),
        settings: Settings,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let known = Arc::new(PgSession { pid: seat.pid, settings: settings.all().clone(), cursors: Vec::new() });
        Self {
            shared,
            link,
            signals: Signals { cancel: seat.cancel.clone(), closing },
            account,
            login,
            caller,
            settings,
            known,
            transaction: Transaction::None,
            statements: HashMap::new(),
            portals: HashMap::new(),
            skips_to_sync: false,
            _seat: seat,
        }
    }

    /// Serves the client until one of both has enough.
    pub(super) async fn run(mut self) {
        let end = self.greet_and_serve().await;
        // The queries of open portals end with them; the client may take its time with the rest.
        self.portals.clear();
        self.link.close(end).await;
    }

    async fn greet_and_serve(&mut self) -> End {
        let served = async {
            self.greet().await?;
            loop {
                let message = self.next_message().await?;
                if self.handle(message).await? {
                    return Err::<std::convert::Infallible, End>(End::Gone);
                }
            }
        };
        match served.await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        for name in REPORTED {
            self.report(name)?;
        }
        let (pid, secret) = (self._seat.pid, i32::from_be_bytes(self._seat.secret));
        self.link.put(&BackendKeyData::new(pid, SecretKey::I32(secret)))?;
        self.ready().await
    }

    fn report(&mut self, name: &str) -> Result<(), End> {
        let value = self.settings.get(name).unwrap_or_default().to_owned();
        self.link.put(&ParameterStatus::new(name.to_owned(), value))
    }

    async fn ready(&mut self) -> Result<(), End> {
        let status = match self.transaction {
            Transaction::None => TransactionStatus::Idle,
            Transaction::Open(_) => TransactionStatus::Transaction,
            Transaction::Failed(_) => TransactionStatus::Error,
        };
        self.link.put(&ReadyForQuery::new(status))?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), End> {
        flush(&mut self.link, &mut self.signals).await
    }

    async fn next_message(&mut self) -> Result<Frontend, End> {
        let idle = async {
            match self.shared.options.idle_timeout {
                Some(idle) => tokio::time::sleep(idle).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.signals.closing.wait_for(|closing| *closing) => Err(End::Said(shutdown())),
            message = self.link.message(self.shared.options.message_bytes_max) => message,
            () = idle => Err(End::Said(PgError::new(state::IDLE, "the connection was closed after it was idle too long"))),
        }
    }

    /// Answers one message; true when the client says goodbye.
    async fn handle(&mut self, message: Frontend) -> Result<bool, End> {
        if self.skips_to_sync && !matches!(message, Frontend::Sync | Frontend::Terminate) {
            return Ok(false);
        }
        // A cancel that comes while nothing runs is not for what runs next.
        self.signals.cancel.mark_unchanged();
        let done = match message {
            Frontend::Terminate => return Ok(true),
            Frontend::Query(text) => {
                self.simple_query(&text).await?;
                return Ok(false);
            }
            Frontend::Malformed("Query") => {
                self.fail(&PgError::new(state::PROTOCOL, "the text of the query is not UTF-8, or not ended"))?;
                self.ready().await?;
                return Ok(false);
            }
            Frontend::Sync => {
                self.skips_to_sync = false;
                self.end_of_implicit_transaction();
                self.ready().await?;
                return Ok(false);
            }
            Frontend::Flush => return self.flush().await.map(|()| false),
            Frontend::Copy => return Ok(false),
            Frontend::Password(_) => {
                return Err(End::Said(PgError::new(state::PROTOCOL, "a password comes after the sign-in")));
            }
            Frontend::Malformed(what) => {
                Err(PgError::new(state::PROTOCOL, format!("a message {what} is not readable")).into())
            }
            Frontend::Parse { name, sql, types } => self.parse(name, sql, types),
            Frontend::Bind(bind) => self.bind(bind).await,
            Frontend::Describe(Target::Statement(name)) => self.describe_statement(&name).await,
            Frontend::Describe(Target::Portal(name)) => self.describe_portal(name).await,
            Frontend::Execute { portal, rows_max } => self.execute(portal, rows_max).await,
            Frontend::Close(target) => self.close(target),
        };
        match done {
            Ok(()) => {}
            Err(Fail::Error(error)) => {
                self.fail(&error)?;
                self.skips_to_sync = true;
                self.flush().await?;
            }
            Err(Fail::End(end)) => return Err(end),
        }
        Ok(false)
    }

    /// Tells an error, after which an open transaction has failed.
    fn fail(&mut self, error: &PgError) -> Result<(), End> {
        self.link.put(&error.response("ERROR"))?;
        self.transaction = match std::mem::replace(&mut self.transaction, Transaction::None) {
            Transaction::Open(open) => Transaction::Failed(open),
            other => other,
        };
        Ok(())
    }

    fn end_of_implicit_transaction(&mut self) {
        if matches!(self.transaction, Transaction::None) {
            self.portals.retain(|_, portal| portal.is_kept);
        }
    }

    async fn simple_query(&mut self, text: &str) -> Result<(), End> {
        match self.statements_of(text).await {
            Ok(()) => {}
            Err(Fail::Error(error)) => self.fail(&error)?,
            Err(Fail::End(end)) => return Err(end),
        }
        // It takes the place of the unnamed ones.
        self.statements.remove("");
        self.portals.remove("");
        self.end_of_implicit_transaction();
        self.ready().await
    }

    /// Looks who the client is by now; comes before all that asks the engine or gives rows. Other rights hold from here on, and
    /// what was begun or described with those before is forgotten. An account that may not sign in any more ends the session.
    async fn renew(&mut self) -> Result<(), Fail> {
        let asked = accounts::signed(self.shared.accounts.as_ref(), &self.account, &self.login);
        let Signed { caller, .. } = match guarded(&mut self.link, &mut self.signals, asked).await? {
            Err(error) if error.state == state::AUTHORIZATION => return Err(End::Said(error).into()),
            other => other?,
        };
        if caller.access != self.caller.access {
            self.portals.retain(|_, portal| portal.rows.is_none());
            self.statements.values_mut().for_each(|prepared| prepared.described = None);
        }
        self.caller = caller;
        Ok(())
    }

    async fn statements_of(&mut self, text: &str) -> Result<(), Fail> {
        let text: Arc<str> = text.into();
        self.check_length(&text)?;
        let tokens = lexer::tokens(&text);
        let mut is_empty = true;
        for statement in lexer::statements(&tokens) {
            is_empty = false;
            self.renew().await?;
            self.may_run(&text, statement)?;
            let statement = Statement::of(&text, statement)?;
            let mut portal = portal_of(Some(statement), &text);
            self.start(&mut portal).await?;
            self.put_columns(&portal)?;
            self.finish(&mut portal, 0).await?;
        }
        if is_empty {
            self.link.put(&EmptyQueryResponse::new())?;
        }
        Ok(())
    }

    /// Refuses a text before it is looked at.
    fn check_length(&self, text: &str) -> Result<(), PgError> {
        let limit = self.shared.options.limits.text_bytes_max;
        if text.len() <= limit {
            return Ok(());
        }
        Err(PgError::of(
            &Error::TooLarge { what: "a text", limit, setting: "sql.text_bytes_max", position: None },
            "",
            0,
        ))
    }

    /// In a transaction that has failed only its end is heard.
    fn may_run(&self, text: &str, tokens: &[lexer::Token]) -> Result<(), PgError> {
        let is_end = || Statement::of(text, tokens).is_ok_and(|statement| statement.ends_failure());
        if matches!(self.transaction, Transaction::Failed(_)) && !is_end() { Err(failed_transaction()) } else { Ok(()) }
    }

    /// The columns of a portal that has started; none when it has no rows for the client.
    fn columns(&self, portal: &Portal) -> Result<Option<SchemaRef>, PgError> {
        match (&portal.statement, &portal.rows) {
            (Some(Statement::Copy { .. }), _) => Ok(None),
            (_, Some(rows)) => Ok(Some(Arc::clone(&rows.schema))),
            (Some(Statement::Fetch { cursor, is_move: false, .. }), None) => Ok(Some(self.cursor_columns(cursor)?.0)),
            _ => Ok(None),
        }
    }

    /// Tells them; gives what was told.
    fn put_columns(&mut self, portal: &Portal) -> Result<Option<SchemaRef>, Fail> {
        let Some(schema) = self.columns(portal)? else { return Ok(None) };
        let formats = match &portal.statement {
            Some(Statement::Fetch { cursor, .. }) => self.cursor_columns(cursor)?.1,
            _ => portal::formats(&portal.formats, schema.fields().len())?,
        };
        self.link.put(&portal::row_description(&schema, &formats))?;
        Ok(Some(schema))
    }
}

fn portal_of(statement: Option<Statement>, text: &Arc<str>) -> Portal {
    Portal {
        statement,
        text: Arc::clone(text),
        parameters: Vec::new(),
        formats: Vec::new(),
        rows: None,
        told: None,
        is_over: false,
        is_kept: false,
    }
}

/// Waits for the engine; gives up when the client cancels, hangs up, or the server stops. What was waited for ends with it.
async fn guarded<T>(link: &mut Link, signals: &mut Signals, work: impl Future<Output = T>) -> Result<T, Fail> {
    tokio::select! {
        biased;
        _ = signals.closing.wait_for(|closing| *closing) => Err(End::Said(shutdown()).into()),
        Ok(()) = signals.cancel.changed() => {
            Err(PgError::new(state::CANCELLED, "canceling statement due to user request").into())
        }
        done = work => Ok(done),
        end = link.hung_up() => Err(end.into()),
    }
}

/// Sends what waits, unless the server stops meanwhile: then the client hears nothing more.
async fn flush(link: &mut Link, signals: &mut Signals) -> Result<(), End> {
    tokio::select! {
        biased;
        done = link.flush() => done,
        _ = signals.closing.wait_for(|closing| *closing) => Err(End::Gone),
    }
}

fn of_engine(error: &Error, text: &str, query: &Query) -> PgError {
    match query.start {
        Some(start) => PgError::of(error, text, start),
        None => PgError { position: None, ..PgError::of(error, "", 0) },
    }
}

fn shutdown() -> PgError {
    PgError::new(state::SHUTDOWN, "terminating connection because the server stops")
}

fn failed_transaction() -> PgError {
    let message = "current transaction is aborted, commands ignored until end of transaction block";
    PgError::new(state::FAILED_TRANSACTION, message)
}

fn no_statement(name: &str) -> PgError {
    PgError::new(state::NO_STATEMENT, format!("prepared statement `{name}` does not exist"))
}

fn no_portal(name: &str) -> PgError {
    PgError::new(state::NO_CURSOR, format!("portal `{name}` does not exist"))
}
