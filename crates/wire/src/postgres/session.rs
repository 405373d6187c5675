//! One client's session: its messages one after the other, its transaction, its prepared statements and portals.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use bytes::BytesMut;
use futures::StreamExt;
use headworks_engine::{Caller, Described, Error, PgSession, QueryOptions, ScalarValue};
use pgwire::messages::{
    copy::{CopyDone, CopyOutResponse},
    data::{NoData, ParameterDescription},
    extendedquery::{BindComplete, CloseComplete, ParseComplete, PortalSuspended},
    response::{CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus},
    startup::{BackendKeyData, ParameterStatus, SecretKey},
};
use tokio::sync::watch;

use super::{
    Seat, Shared,
    copy::{BINARY_HEAD, BINARY_TAIL, CopyFormat, CopyOptions},
    error::{PgError, state},
    frame::{Bind, Frontend, Target},
    lexer,
    link::{End, Link},
    parameter,
    portal::{self, Batch, Portal, Prepared, Rows},
    settings::{REPORTED, Settings},
    statement::{Query, Statement},
    value::Format,
};

pub(super) struct Session<'a> {
    shared: &'a Shared,
    link: Link,
    signals: Signals,
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

/// The most savepoints of a transaction.
const SAVEPOINTS_MAX: usize = 1_000;

impl<'a> Session<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        seat: Seat,
        link: Link,
        caller: Caller,
        settings: Settings,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let known = Arc::new(PgSession { pid: seat.pid, settings: settings.all().clone() });
        Self {
            shared,
            link,
            signals: Signals { cancel: seat.cancel.clone(), closing },
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

    // The simple protocol.

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

    async fn statements_of(&mut self, text: &str) -> Result<(), Fail> {
        let text: Arc<str> = text.into();
        self.check_length(&text)?;
        let tokens = lexer::tokens(&text);
        let mut is_empty = true;
        for statement in lexer::statements(&tokens) {
            is_empty = false;
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

    fn put_columns(&mut self, portal: &Portal) -> Result<(), Fail> {
        let is_copy = matches!(portal.statement, Some(Statement::Copy { .. }));
        if let Some(rows) = portal.rows.as_ref().filter(|_| !is_copy) {
            let formats = portal::formats(&portal.formats, rows.schema.fields().len())?;
            self.link.put(&portal::row_description(&rows.schema, &formats))?;
        } else if let Some(Statement::Fetch { cursor, is_move: false, .. }) = &portal.statement {
            let (schema, formats) = self.cursor_columns(cursor)?;
            self.link.put(&portal::row_description(&schema, &formats))?;
        }
        Ok(())
    }

    // The extended protocol.

    fn parse(&mut self, name: String, sql: String, oids: Vec<u32>) -> Result<(), Fail> {
        self.check_length(&sql)?;
        if !name.is_empty() && self.statements.contains_key(&name) {
            let message = format!("prepared statement `{name}` exists already");
            return Err(PgError::new(state::DUPLICATE_STATEMENT, message).into());
        }
        if self.statements.len() >= self.shared.options.statements_max {
            let limit = self.shared.options.statements_max;
            return Err(PgError::new(state::LIMIT, format!("a client may prepare {limit} statements"))
                .with_hint("close those that are not used: `DEALLOCATE ALL`")
                .into());
        }
        let tokens = lexer::tokens(&sql);
        let mut all = lexer::statements(&tokens);
        let statement = match (all.next(), all.next()) {
            (_, Some(_)) => {
                let message = "cannot insert multiple commands into a prepared statement";
                return Err(PgError::new(state::SYNTAX, message).into());
            }
            (Some(tokens), None) => {
                self.may_run(&sql, tokens)?;
                Some(Statement::of(&sql, tokens)?)
            }
            (None, None) => None,
        };
        let parameters = portal::count_parameters(&tokens)?.max(oids.len());
        let prepared = Prepared { statement, text: sql.into(), oids, parameters, described: None };
        self.statements.insert(name, prepared);
        self.link.put(&ParseComplete::new())?;
        Ok(())
    }

    /// Asks the engine about a prepared statement, once.
    async fn described(&mut self, name: &str) -> Result<&Prepared, Fail> {
        let prepared = self.statements.get(name).ok_or_else(|| no_statement(name))?;
        let query = prepared.statement.as_ref().and_then(Statement::query).cloned();
        let Some(query) = query.filter(|_| prepared.described.is_none()) else {
            return self.statements.get(name).ok_or_else(|| no_statement(name).into());
        };
        let (text, named) = (Arc::clone(&prepared.text), prepared.named_types());
        let described = match self.ask(&query, &text, named.clone()).await {
            // As PostgreSQL does, what has no type is taken for a text.
            Err(Fail::Error(_)) if named.iter().any(Option::is_none) => {
                let texts = named.into_iter().map(|named| named.or(Some(DataType::Utf8))).collect();
                self.ask(&query, &text, texts).await?
            }
            other => other?,
        };
        let prepared = self.statements.get_mut(name).ok_or_else(|| no_statement(name))?;
        prepared.described = Some(described);
        Ok(prepared)
    }

    async fn ask(&mut self, query: &Query, text: &str, types: Vec<Option<DataType>>) -> Result<Described, Fail> {
        let options = QueryOptions { parameter_types: types, ..self.options(Vec::new()) };
        let asked = self.shared.engine.describe(&query.sql, options);
        let described = guarded(&mut self.link, &mut self.signals, asked).await?;
        Ok(described.map_err(|error| of_engine(&error, text, query))?)
    }

    async fn bind(&mut self, bind: Bind) -> Result<(), Fail> {
        let prepared = self.statements.get(&bind.statement).ok_or_else(|| no_statement(&bind.statement))?;
        if matches!(self.transaction, Transaction::Failed(_))
            && !prepared.statement.as_ref().is_some_and(Statement::ends_failure)
        {
            return Err(failed_transaction().into());
        }
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            let message = format!("portal `{}` exists already", bind.portal);
            return Err(PgError::new(state::DUPLICATE_CURSOR, message).into());
        }
        self.has_room_for_portal()?;
        let prepared = if prepared.named_types().iter().any(Option::is_none) {
            self.described(&bind.statement).await?
        } else {
            prepared
        };
        let (given, wanted) = (bind.parameters.len(), prepared.parameters);
        if given != wanted {
            let message = format!("the client gives {given} parameters, and the statement has {wanted}");
            return Err(PgError::new(state::PROTOCOL, message).into());
        }
        let formats = portal::formats(&bind.parameter_formats, given)?;
        let values = bind.parameters.iter().zip(formats).zip(prepared.types()).enumerate();
        let parameters: Result<Vec<ScalarValue>, PgError> = values
            .map(|(n, ((bytes, format), data_type))| parameter::value(bytes.as_ref(), format, &data_type, n + 1))
            .collect();
        let portal = Portal {
            parameters: parameters?,
            formats: bind.result_formats,
            ..portal_of(prepared.statement.clone(), &prepared.text)
        };
        self.portals.insert(bind.portal, portal);
        self.link.put(&BindComplete::new())?;
        Ok(())
    }

    fn has_room_for_portal(&self) -> Result<(), PgError> {
        let limit = self.shared.options.portals_max;
        if self.portals.len() < limit {
            return Ok(());
        }
        Err(PgError::new(state::LIMIT, format!("a client may have {limit} portals and cursors"))
            .with_hint("close some"))
    }

    async fn describe_statement(&mut self, name: &str) -> Result<(), Fail> {
        let prepared = self.described(name).await?;
        let types = prepared.type_oids();
        let described = prepared.described.as_ref().map(|described| Arc::clone(&described.schema));
        let schema = match prepared.statement.clone() {
            Some(Statement::Query(_)) => described,
            Some(Statement::Show(name)) => Some(show_schema(&name)),
            Some(Statement::ShowAll) => Some(show_all_schema()),
            Some(Statement::Fetch { cursor, is_move: false, .. }) => Some(self.cursor_columns(&cursor)?.0),
            _ => None,
        };
        self.link.put(&ParameterDescription::new(types))?;
        match schema {
            None => self.link.put(&NoData::new())?,
            Some(schema) => {
                let formats = vec![Format::Text; schema.fields().len()];
                self.link.put(&portal::row_description(&schema, &formats))?;
            }
        }
        Ok(())
    }

    /// Starts the portal's query: it has its columns then, and is not planned twice.
    async fn describe_portal(&mut self, name: String) -> Result<(), Fail> {
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        let has_rows = portal.statement.as_ref().is_some_and(|statement| {
            matches!(statement, Statement::Query(_) | Statement::Show(_) | Statement::ShowAll | Statement::Fetch { .. })
        });
        if has_rows {
            self.start(&mut portal).await?;
            self.put_columns(&portal)?;
        } else {
            self.link.put(&NoData::new())?;
        }
        self.portals.insert(name, portal);
        Ok(())
    }

    async fn execute(&mut self, name: String, rows_max: u32) -> Result<(), Fail> {
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        if matches!(self.transaction, Transaction::Failed(_))
            && !portal.statement.as_ref().is_some_and(Statement::ends_failure)
        {
            return Err(failed_transaction().into());
        }
        if portal.statement.is_none() {
            self.link.put(&EmptyQueryResponse::new())?;
        } else {
            self.start(&mut portal).await?;
            self.finish(&mut portal, u64::from(rows_max)).await?;
        }
        self.portals.insert(name, portal);
        Ok(())
    }

    fn close(&mut self, target: Target) -> Result<(), Fail> {
        match target {
            Target::Statement(name) => drop(self.statements.remove(&name)),
            Target::Portal(name) => drop(self.portals.remove(&name)),
        }
        self.link.put(&CloseComplete::new())?;
        Ok(())
    }

    // Statements, whichever protocol they came by.

    /// Gives a portal its rows, if it is to have some.
    async fn start(&mut self, portal: &mut Portal) -> Result<(), Fail> {
        if portal.rows.is_some() || portal.is_over {
            return Ok(());
        }
        let rows = match &portal.statement {
            Some(Statement::Query(query) | Statement::Copy { query, .. }) => {
                Some(self.query(query, &portal.text, portal.parameters.clone()).await?)
            }
            Some(Statement::Show(name)) => {
                let value = self.settings.get(name)?;
                Some(texts(show_schema(name), vec![vec![value.to_owned()]])?)
            }
            Some(Statement::ShowAll) => {
                let mut all: Vec<(&String, &String)> = self.settings.all().iter().collect();
                all.sort();
                let (names, values): (Vec<String>, Vec<String>) =
                    all.into_iter().map(|(name, value)| (name.clone(), value.clone())).unzip();
                let nothing = vec![String::new(); names.len()];
                Some(texts(show_all_schema(), vec![names, values, nothing])?)
            }
            _ => None,
        };
        portal.rows = rows;
        Ok(())
    }

    fn options(&self, parameters: Vec<ScalarValue>) -> QueryOptions {
        let application = self.settings.application().map(str::to_owned);
        QueryOptions {
            caller: Caller { application, ..self.caller.clone() },
            queue: self.settings.queue().map(str::to_owned),
            timeout: self.settings.statement_timeout(),
            limits: self.shared.options.limits,
            postgres: Some(Arc::clone(&self.known)),
            parameters,
            ..QueryOptions::default()
        }
    }

    async fn query(&mut self, query: &Query, text: &str, parameters: Vec<ScalarValue>) -> Result<Rows, Fail> {
        let asked = self.shared.engine.query(&query.sql, self.options(parameters));
        let stream = guarded(&mut self.link, &mut self.signals, asked).await?;
        let stream = stream.map_err(|error| of_engine(&error, text, query))?;
        Ok(Rows { schema: stream.schema(), stream: Box::pin(stream), batch: None, given: 0 })
    }

    /// Carries a started portal out, at most so many rows of it; 0 for all.
    async fn finish(&mut self, portal: &mut Portal, rows_max: u64) -> Result<(), Fail> {
        let Some(statement) = portal.statement.clone() else { return Ok(()) };
        match &statement {
            Statement::Copy { options, .. } => {
                let Some(rows) = &mut portal.rows else { return Ok(()) };
                let given = self.copy(rows, options).await?;
                portal.is_over = true;
                portal.rows = None;
                self.complete(&format!("COPY {given}"))?;
            }
            Statement::Fetch { cursor, rows, is_move } => {
                let given = self.fetch(cursor, *rows, *is_move).await?;
                self.complete(&format!("{} {given}", statement.tag()))?;
            }
            Statement::Declare { name, is_binary, is_kept, query } => {
                let cursor = Portal {
                    parameters: portal.parameters.clone(),
                    formats: vec![i16::from(*is_binary)],
                    is_kept: *is_kept,
                    ..portal_of(Some(Statement::Query(query.clone())), &portal.text)
                };
                self.declare(name, cursor).await?;
                self.complete(statement.tag())?;
            }
            _ => match &mut portal.rows {
                Some(rows) => {
                    let formats = portal::formats(&portal.formats, rows.schema.fields().len())?;
                    let before = rows.given;
                    if self.send(rows, &formats, rows_max).await? {
                        // Of a portal that was fetched in parts, the last part is told.
                        let given = rows.given - before;
                        (portal.is_over, portal.rows) = (true, None);
                        let tag = statement.tag();
                        self.complete(&if tag == "SELECT" { format!("SELECT {given}") } else { tag.to_owned() })?;
                    } else {
                        self.link.put(&PortalSuspended::new())?;
                    }
                }
                None if portal.is_over => self.complete(&format!("{} 0", statement.tag()))?,
                None => {
                    let tag = self.apply(statement)?;
                    portal.is_over = true;
                    self.complete(tag)?;
                }
            },
        }
        Ok(())
    }

    fn complete(&mut self, tag: &str) -> Result<(), End> {
        self.link.put(&CommandComplete::new(tag.to_owned()))
    }

    /// Sends rows as the client takes them, at most so many; true when there are no more.
    async fn send(&mut self, rows: &mut Rows, formats: &[Format], rows_max: u64) -> Result<bool, Fail> {
        let mut left = if rows_max == 0 { u64::MAX } else { rows_max };
        loop {
            let Some(batch) = self.next_batch(rows).await? else { return Ok(true) };
            let columns = i16::try_from(batch.columns.len()).unwrap_or(i16::MAX);
            let before = batch.next;
            while batch.next < batch.rows && left > 0 {
                let out = &mut self.link.output;
                let start = out.len();
                out.extend_from_slice(&[b'D', 0, 0, 0, 0]);
                out.extend_from_slice(&columns.to_be_bytes());
                for (column, format) in batch.columns.iter().zip(formats) {
                    column.put(batch.next, *format, out);
                }
                end_message(out, start);
                batch.next += 1;
                left -= 1;
                if self.link.is_full() {
                    flush(&mut self.link, &mut self.signals).await?;
                }
            }
            let given = batch.next - before;
            rows.given += given as u64;
            if left == 0 {
                return Ok(false);
            }
        }
    }

    /// The batch with rows that were not given yet; none at the end.
    async fn next_batch<'r>(&mut self, rows: &'r mut Rows) -> Result<Option<&'r mut Batch>, Fail> {
        while rows.batch.as_ref().is_none_or(|batch| batch.next == batch.rows) {
            rows.batch = None;
            match guarded(&mut self.link, &mut self.signals, rows.stream.next()).await? {
                None => return Ok(None),
                Some(Ok(batch)) => rows.batch = Some(Batch::of(&batch)?),
                Some(Err(error)) => return Err(PgError::of(&error, "", 0).into()),
            }
        }
        Ok(rows.batch.as_mut())
    }

    /// Sends all rows in a copy's format; gives their number.
    async fn copy(&mut self, rows: &mut Rows, options: &CopyOptions) -> Result<u64, Fail> {
        let columns = rows.schema.fields().len();
        let count = i16::try_from(columns).unwrap_or(i16::MAX);
        let format = options.values() as i16;
        let formats = vec![format; columns];
        self.link.put(&CopyOutResponse::new(i8::from(options.format == CopyFormat::Binary), count, formats))?;
        // What comes before the first row goes with it: clients take each message for a row.
        let mut head: &[u8] = if options.format == CopyFormat::Binary { BINARY_HEAD } else { b"" };
        let mut scratch = BytesMut::new();
        if options.has_header {
            let out = &mut self.link.output;
            let start = begin_copy(out, b"");
            options.header(rows.schema.fields().iter().map(|field| field.name().as_str()), out);
            end_message(out, start);
        }
        while let Some(batch) = self.next_batch(rows).await? {
            while batch.next < batch.rows {
                let out = &mut self.link.output;
                let start = begin_copy(out, std::mem::take(&mut head));
                options.row(&batch.columns, batch.next, out, &mut scratch);
                end_message(out, start);
                batch.next += 1;
                if self.link.is_full() {
                    flush(&mut self.link, &mut self.signals).await?;
                }
            }
            let given = batch.rows as u64;
            rows.given += given;
        }
        if options.format == CopyFormat::Binary {
            let out = &mut self.link.output;
            let start = begin_copy(out, head);
            out.extend_from_slice(BINARY_TAIL);
            end_message(out, start);
        }
        self.link.put(&CopyDone::new())?;
        Ok(rows.given)
    }

    // Cursors.

    async fn declare(&mut self, name: &str, mut cursor: Portal) -> Result<(), Fail> {
        if !cursor.is_kept && matches!(self.transaction, Transaction::None) {
            return Err(PgError::new(state::NO_TRANSACTION, "DECLARE CURSOR can only be used in transaction blocks")
                .with_hint("begin one, or declare the cursor WITH HOLD")
                .into());
        }
        if self.portals.contains_key(name) {
            return Err(PgError::new(state::DUPLICATE_CURSOR, format!("cursor `{name}` exists already")).into());
        }
        self.has_room_for_portal()?;
        self.start(&mut cursor).await?;
        self.portals.insert(name.to_owned(), cursor);
        Ok(())
    }

    fn cursor_columns(&self, name: &str) -> Result<(SchemaRef, Vec<Format>), PgError> {
        let none = || PgError::new(state::NO_CURSOR, format!("cursor `{name}` does not exist"));
        let cursor = self.portals.get(name).ok_or_else(none)?;
        let rows = cursor.rows.as_ref().ok_or_else(none)?;
        let formats = portal::formats(&cursor.formats, rows.schema.fields().len())?;
        Ok((Arc::clone(&rows.schema), formats))
    }

    /// Sends the next rows of a cursor, or passes over them; gives their number.
    async fn fetch(&mut self, name: &str, rows_max: Option<u64>, is_move: bool) -> Result<u64, Fail> {
        let (_, formats) = self.cursor_columns(name)?;
        let mut cursor = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        let Some(rows) = &mut cursor.rows else { return Err(no_portal(name).into()) };
        let before = rows.given;
        match (rows_max, is_move) {
            (Some(0), _) => {}
            (wanted, false) => _ = self.send(rows, &formats, wanted.unwrap_or(0)).await?,
            (wanted, true) => {
                let mut left = wanted.unwrap_or(u64::MAX);
                while left > 0 {
                    let Some(batch) = self.next_batch(rows).await? else { break };
                    let step = (batch.rows - batch.next).min(usize::try_from(left).unwrap_or(usize::MAX));
                    batch.next += step;
                    left -= step as u64;
                    rows.given += step as u64;
                }
            }
        }
        let given = rows.given - before;
        self.portals.insert(name.to_owned(), cursor);
        Ok(given)
    }

    // What changes the session.

    /// Carries a statement without rows out; gives the words that its end is told with.
    fn apply(&mut self, statement: Statement) -> Result<&'static str, Fail> {
        let mut tag = statement.tag();
        match statement {
            Statement::Set { name, value, is_local } => self.set(&name, value.as_deref(), is_local)?,
            Statement::ResetAll => {
                self.settings.reset();
                self.settings_changed(None)?;
            }
            Statement::Begin => {
                if matches!(self.transaction, Transaction::None) {
                    self.transaction = Transaction::Open(Open {
                        settings: self.settings.clone(),
                        savepoints: Vec::new(),
                        local: Vec::new(),
                    });
                }
            }
            Statement::Commit | Statement::Rollback => {
                let is_commit = statement == Statement::Commit;
                match std::mem::replace(&mut self.transaction, Transaction::None) {
                    Transaction::None => {}
                    Transaction::Open(open) if is_commit => {
                        for (name, value) in open.local {
                            self.settings.set(&name, Some(&value))?;
                        }
                    }
                    Transaction::Open(open) | Transaction::Failed(open) => {
                        self.settings = open.settings;
                        tag = "ROLLBACK";
                    }
                }
                self.settings_changed(None)?;
                self.portals.retain(|_, portal| portal.is_kept);
            }
            Statement::Savepoint(name) => {
                let open = self.open_transaction("SAVEPOINT")?;
                if open.savepoints.len() >= SAVEPOINTS_MAX {
                    return Err(PgError::new(state::LIMIT, "there are too many savepoints").into());
                }
                open.savepoints.push(name);
            }
            Statement::Release(name) => {
                let open = self.open_transaction("RELEASE SAVEPOINT")?;
                let at = savepoint(open, &name)?;
                open.savepoints.truncate(at);
            }
            Statement::RollbackTo(name) => {
                let open = self.open_transaction("ROLLBACK TO SAVEPOINT")?;
                let at = savepoint(open, &name)?;
                open.savepoints.truncate(at + 1);
                self.transaction = match std::mem::replace(&mut self.transaction, Transaction::None) {
                    Transaction::Failed(open) => Transaction::Open(open),
                    other => other,
                };
            }
            Statement::DiscardAll => {
                self.settings.reset();
                self.settings_changed(None)?;
                self.statements.clear();
                self.portals.clear();
            }
            Statement::Deallocate(None) => self.statements.clear(),
            Statement::Deallocate(Some(name)) => {
                self.statements.remove(&name).ok_or_else(|| no_statement(&name))?;
            }
            Statement::Close(None) => self.portals.clear(),
            Statement::Close(Some(name)) => {
                let closed = self.portals.remove(&name);
                closed.ok_or_else(|| PgError::new(state::NO_CURSOR, format!("cursor `{name}` does not exist")))?;
            }
            Statement::Nothing(_) => {}
            Statement::Query(_)
            | Statement::Show(_)
            | Statement::ShowAll
            | Statement::Declare { .. }
            | Statement::Fetch { .. }
            | Statement::Copy { .. } => {
                return Err(PgError::new(state::INTERNAL, "a statement with rows was not started").into());
            }
        }
        Ok(tag)
    }

    fn open_transaction(&mut self, what: &str) -> Result<&mut Open, PgError> {
        match &mut self.transaction {
            Transaction::Open(open) | Transaction::Failed(open) => Ok(open),
            Transaction::None => {
                Err(PgError::new(state::NO_TRANSACTION, format!("{what} can only be used in transaction blocks")))
            }
        }
    }

    fn set(&mut self, name: &str, value: Option<&str>, is_local: bool) -> Result<(), Fail> {
        if is_local {
            // Outside of a transaction it lasts for no time at all.
            let before = self.settings.get(name)?.to_owned();
            match &mut self.transaction {
                Transaction::Open(open) => open.local.insert(0, (name.to_owned(), before)),
                _ => return Ok(()),
            }
        }
        self.settings.set(name, value)?;
        self.settings_changed(Some(name))?;
        Ok(())
    }

    /// Tells the client of new values of one parameter, or of all.
    fn settings_changed(&mut self, name: Option<&str>) -> Result<(), End> {
        let before = std::mem::take(&mut self.known);
        self.known = Arc::new(PgSession { pid: before.pid, settings: self.settings.all().clone() });
        for reported in REPORTED {
            let is_it = name.is_none_or(|name| name.eq_ignore_ascii_case(reported));
            let lower = reported.to_lowercase();
            if is_it && before.settings.get(&lower) != self.known.settings.get(&lower) {
                self.report(reported)?;
            }
        }
        Ok(())
    }
}

fn portal_of(statement: Option<Statement>, text: &Arc<str>) -> Portal {
    Portal {
        statement,
        text: Arc::clone(text),
        parameters: Vec::new(),
        formats: Vec::new(),
        rows: None,
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

/// Begins a message of a copy; gives where.
fn begin_copy(out: &mut BytesMut, head: &[u8]) -> usize {
    let start = out.len();
    out.extend_from_slice(&[b'd', 0, 0, 0, 0]);
    out.extend_from_slice(head);
    start
}

/// Fills in the length of a message that began there.
fn end_message(out: &mut BytesMut, start: usize) {
    let length = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
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

fn savepoint(open: &Open, name: &str) -> Result<usize, PgError> {
    let found = open.savepoints.iter().rposition(|savepoint| savepoint == name);
    found.ok_or_else(|| PgError::new(state::NO_SAVEPOINT, format!("savepoint `{name}` does not exist")))
}

fn text_columns(names: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect::<Vec<_>>()))
}

fn show_schema(name: &str) -> SchemaRef {
    text_columns(&[name])
}

fn show_all_schema() -> SchemaRef {
    text_columns(&["name", "setting", "description"])
}

/// Rows of texts, column by column.
fn texts(schema: SchemaRef, columns: Vec<Vec<String>>) -> Result<Rows, PgError> {
    let arrays = columns.into_iter().map(|column| Arc::new(StringArray::from(column)) as _).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)
        .map_err(|error| PgError::new(state::INTERNAL, error.to_string()))?;
    let stream = Box::pin(futures::stream::iter([Ok(batch)]));
    Ok(Rows { schema, stream, batch: None, given: 0 })
}
