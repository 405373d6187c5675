//! Statements that are the session's own business: parameters, transactions, cursors, COPY. All others go to the engine.

use super::{
    copy::{self, CopyOptions},
    error::{PgError, is_writing, state},
    lexer::{Kind, Token},
};

/// One statement, and where it stands in the client's text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Statement {
    /// For the engine.
    Query(Query),
    Set {
        name: String,
        value: Option<String>,
        is_local: bool,
    },
    ResetAll,
    Show(String),
    ShowAll,
    Begin,
    Commit,
    Rollback,
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    DiscardAll,
    /// Forgets one prepared statement, or all.
    Deallocate(Option<String>),
    Declare {
        name: String,
        is_binary: bool,
        is_kept: bool,
        query: Query,
    },
    /// `rows: None` takes all that are left.
    Fetch {
        cursor: String,
        rows: Option<u64>,
        is_move: bool,
    },
    /// Closes one cursor, or all.
    Close(Option<String>),
    Copy {
        query: Query,
        options: CopyOptions,
    },
    /// Says so and does nothing: LISTEN, UNLISTEN.
    Nothing(&'static str),
}

/// A part of the client's text that the engine runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Query {
    /// The statement's own text.
    pub(super) sql: String,
    /// Where it begins in the client's; `None` for one that we wrote ourselves.
    pub(super) start: Option<usize>,
    /// The word that its end is told with: SELECT, EXPLAIN, SHOW.
    pub(super) tag: &'static str,
}

impl Statement {
    /// Reads one statement. Errors: what cannot be read, what is not for here.
    pub(super) fn of(text: &str, tokens: &[Token]) -> Result<Self, PgError> {
        let mut reader = Reader { text, tokens, at: 0 };
        let Some(Kind::Word(first)) = tokens.first().map(|token| token.kind.clone()) else {
            return Ok(Self::Query(reader.rest("SELECT")));
        };
        reader.at = 1;
        match first.as_str() {
            "set" => reader.set(),
            "reset" => reader.reset(),
            "show" if reader.peek_is("tables") => Ok(Self::Query(whole(text, tokens, "SHOW"))),
            "show" => reader.show(),
            "begin" | "start" => reader.begin(),
            "commit" | "end" => reader.done(Self::Commit),
            "rollback" | "abort" => reader.rollback(),
            "savepoint" => {
                let name = reader.name()?;
                reader.done(Self::Savepoint(name))
            }
            "release" => {
                reader.skip("savepoint");
                let name = reader.name()?;
                reader.done(Self::Release(name))
            }
            "discard" => reader.discard(),
            "deallocate" => {
                reader.skip("prepare");
                let name = if reader.skip("all") { None } else { Some(reader.name()?) };
                reader.done(Self::Deallocate(name))
            }
            "declare" => reader.declare(),
            "fetch" => reader.fetch(false),
            "move" => reader.fetch(true),
            "close" => {
                let name = if reader.skip("all") { None } else { Some(reader.name()?) };
                reader.done(Self::Close(name))
            }
            "copy" => reader.copy(),
            "listen" => Ok(Self::Nothing("LISTEN")),
            "unlisten" => Ok(Self::Nothing("UNLISTEN")),
            "explain" => Ok(Self::Query(whole(text, tokens, "EXPLAIN"))),
            word if is_writing(word) => Err(writes(word)),
            "prepare" | "execute" | "lock" | "notify" | "vacuum" | "analyze" | "cluster" | "checkpoint" | "load"
            | "do" | "call" | "import" | "security" | "reassign" => Err(refused(&first)),
            _ => Ok(Self::Query(whole(text, tokens, "SELECT"))),
        }
    }

    /// What a client hears at the end of a statement without rows.
    pub(super) fn tag(&self) -> &'static str {
        match self {
            Self::Query(query) => query.tag,
            Self::Set { value: None, .. } | Self::ResetAll => "RESET",
            Self::Set { .. } => "SET",
            Self::Show(_) | Self::ShowAll => "SHOW",
            Self::Begin => "BEGIN",
            Self::Commit => "COMMIT",
            Self::Rollback | Self::RollbackTo(_) => "ROLLBACK",
            Self::Savepoint(_) => "SAVEPOINT",
            Self::Release(_) => "RELEASE",
            Self::DiscardAll => "DISCARD ALL",
            Self::Deallocate(None) => "DEALLOCATE ALL",
            Self::Deallocate(_) => "DEALLOCATE",
            Self::Declare { .. } => "DECLARE CURSOR",
            Self::Fetch { is_move: false, .. } => "FETCH",
            Self::Fetch { is_move: true, .. } => "MOVE",
            Self::Close(_) => "CLOSE CURSOR",
            Self::Copy { .. } => "COPY",
            Self::Nothing(tag) => tag,
        }
    }

    /// The query inside, of those that have one.
    pub(super) fn query(&self) -> Option<&Query> {
        match self {
            Self::Query(query) | Self::Copy { query, .. } | Self::Declare { query, .. } => Some(query),
            _ => None,
        }
    }

    /// True for what is still heard once a statement of the transaction has failed.
    pub(super) fn ends_failure(&self) -> bool {
        matches!(self, Self::Commit | Self::Rollback | Self::RollbackTo(_))
    }
}

fn whole(text: &str, tokens: &[Token], tag: &'static str) -> Query {
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else {
        return Query { sql: String::new(), start: None, tag };
    };
    Query { sql: text[first.start..last.end].to_owned(), start: Some(first.start), tag }
}

fn writes(word: &str) -> PgError {
    let word = word.to_uppercase();
    PgError::new(state::READ_ONLY, format!("cannot execute {word} in a read-only transaction"))
        .with_hint("tables are made and filled by jobs: write one, or ask somebody who may")
}

fn refused(word: &str) -> PgError {
    PgError::new(state::NOT_SUPPORTED, format!("{} is not supported here", word.to_uppercase()))
}

/// What a transaction may be asked to be isolated by; all of them are one here.
const LEVELS: [&str; 4] = ["read uncommitted", "read committed", "repeatable read", "serializable"];

struct Reader<'a> {
    text: &'a str,
    tokens: &'a [Token],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn peek_is(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| token.is_word(word))
    }

    /// Takes the word when it comes next.
    fn skip(&mut self, word: &str) -> bool {
        let is = self.peek_is(word);
        self.at += usize::from(is);
        is
    }

    fn skip_sign(&mut self, sign: char) -> bool {
        let is = self.peek().is_some_and(|token| token.is_sign(sign));
        self.at += usize::from(is);
        is
    }

    fn unexpected(&self) -> PgError {
        let error = match self.peek() {
            Some(token) => {
                let near = &self.text[token.start..token.end];
                PgError::new(state::SYNTAX, format!("the SQL cannot be read: unexpected `{near}`"))
            }
            None => PgError::new(state::SYNTAX, "the SQL cannot be read: it ends too early"),
        };
        let at = self.peek().map_or(self.text.len(), |token| token.start);
        PgError { position: Some(self.text[..at].chars().count() + 1), ..error }
    }

    fn expect(&mut self, word: &str) -> Result<(), PgError> {
        if self.skip(word) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn name(&mut self) -> Result<String, PgError> {
        match self.peek().map(|token| token.kind.clone()) {
            Some(Kind::Word(name) | Kind::Quoted(name)) => {
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn done(&self, statement: Statement) -> Result<Statement, PgError> {
        if self.at == self.tokens.len() { Ok(statement) } else { Err(self.unexpected()) }
    }

    /// What is left of the statement.
    fn rest(&self, tag: &'static str) -> Query {
        whole(self.text, &self.tokens[self.at..], tag)
    }

    fn set(&mut self) -> Result<Statement, PgError> {
        let is_local = self.skip("local");
        if self.peek_is("session") && self.tokens.get(self.at + 1).is_some_and(|next| next.is_word("characteristics")) {
            self.at += 2;
            self.expect("as")?;
            self.expect("transaction")?;
            let isolation = self.transaction_modes()?;
            return self.done(match isolation {
                Some(level) => Statement::Set {
                    name: "default_transaction_isolation".to_owned(),
                    value: Some(level),
                    is_local: false,
                },
                // READ ONLY: every transaction is.
                None => Statement::Nothing("SET"),
            });
        }
        if self.peek_is("session") && self.tokens.get(self.at + 1).is_some_and(|next| next.is_word("authorization")) {
            return Err(refused("set session authorization"));
        }
        self.skip("session");
        if self.skip("transaction") {
            self.transaction_modes()?;
            return self.done(Statement::Nothing("SET"));
        }
        if self.peek_is("role") || self.peek_is("constraints") {
            return Err(refused("set role"));
        }
        if self.skip("time") {
            self.expect("zone")?;
            let value = self.value()?;
            return self.done(Statement::Set { name: "timezone".to_owned(), value: Some(value), is_local });
        }
        if self.skip("names") {
            let value = self.value()?;
            return self.done(Statement::Set { name: "client_encoding".to_owned(), value: Some(value), is_local });
        }
        let name = self.dotted_name()?;
        if !self.skip_sign('=') && !self.skip("to") {
            return Err(self.unexpected());
        }
        if self.skip("default") {
            return self.done(Statement::Set { name, value: None, is_local });
        }
        let mut value = self.value()?;
        while self.skip_sign(',') {
            value = format!("{value}, {}", self.value()?);
        }
        self.done(Statement::Set { name, value: Some(value), is_local })
    }

    fn dotted_name(&mut self) -> Result<String, PgError> {
        let mut name = self.name()?;
        while self.skip_sign('.') {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name.to_lowercase())
    }

    /// A value of a parameter: a text, a word, a number with its sign.
    fn value(&mut self) -> Result<String, PgError> {
        let sign = if self.skip_sign('-') {
            "-"
        } else if self.skip_sign('+') {
            "+"
        } else {
            ""
        };
        match self.peek().map(|token| token.kind.clone()) {
            Some(Kind::Word(value) | Kind::Text(value) | Kind::Number(value)) => {
                self.at += 1;
                Ok(format!("{sign}{value}"))
            }
            // Names in a search path stay quoted, so that they come out as they went in.
            Some(Kind::Quoted(value)) => {
                self.at += 1;
                Ok(if value == "$user" { format!("\"{value}\"") } else { value })
            }
            _ => Err(self.unexpected()),
        }
    }

    fn reset(&mut self) -> Result<Statement, PgError> {
        if self.skip("all") {
            return self.done(Statement::ResetAll);
        }
        let name = if self.skip("time") {
            self.expect("zone")?;
            "timezone".to_owned()
        } else {
            self.dotted_name()?
        };
        self.done(Statement::Set { name, value: None, is_local: false })
    }

    fn show(&mut self) -> Result<Statement, PgError> {
        if self.skip("all") {
            return self.done(Statement::ShowAll);
        }
        let name = if self.skip("transaction") {
            self.expect("isolation")?;
            self.expect("level")?;
            "transaction_isolation".to_owned()
        } else if self.skip("time") {
            self.expect("zone")?;
            "TimeZone".to_owned()
        } else if self.skip("session") {
            self.expect("authorization")?;
            "session_authorization".to_owned()
        } else {
            self.dotted_name()?
        };
        self.done(Statement::Show(name))
    }

    /// Takes what a transaction is asked to be; gives the level of isolation, if it is named.
    fn transaction_modes(&mut self) -> Result<Option<String>, PgError> {
        let mut isolation = None;
        while let Some(token) = self.peek() {
            let words = ["isolation", "level", "read", "only", "not", "deferrable", "snapshot"];
            let is_mode = match &token.kind {
                // psycopg and others ask for READ WRITE by default and then read.
                Kind::Word(word) => words.contains(&word.as_str()) || word == "write",
                Kind::Sign(',') | Kind::Text(_) => true,
                _ => false,
            };
            if !is_mode {
                return Err(self.unexpected());
            }
            let is_level = token.is_word("level");
            self.at += 1;
            if is_level {
                let first = self.name()?;
                let level = if first == "serializable" { first } else { format!("{first} {}", self.name()?) };
                if !LEVELS.contains(&level.as_str()) {
                    return Err(PgError::new(state::SYNTAX, format!("`{level}` is no level of isolation")));
                }
                isolation = Some(level);
            }
        }
        Ok(isolation)
    }

    fn begin(&mut self) -> Result<Statement, PgError> {
        if !self.skip("transaction") {
            self.skip("work");
        }
        self.transaction_modes()?;
        self.done(Statement::Begin)
    }

    fn rollback(&mut self) -> Result<Statement, PgError> {
        if !self.skip("transaction") {
            self.skip("work");
        }
        if self.skip("to") {
            self.skip("savepoint");
            let name = self.name()?;
            return self.done(Statement::RollbackTo(name));
        }
        self.done(Statement::Rollback)
    }

    fn discard(&mut self) -> Result<Statement, PgError> {
        if self.skip("all") {
            return self.done(Statement::DiscardAll);
        }
        // TEMP, PLANS, SEQUENCES: there are none.
        self.name()?;
        self.done(Statement::Nothing("DISCARD"))
    }

    fn declare(&mut self) -> Result<Statement, PgError> {
        let name = self.name()?;
        let mut is_binary = false;
        loop {
            if self.skip("binary") {
                is_binary = true;
            } else if self.skip("no") {
                self.expect("scroll")?;
            } else if self.skip("scroll") {
                return Err(
                    PgError::new(state::NOT_SUPPORTED, "cursors go forward only").with_hint("leave SCROLL away")
                );
            } else if !self.skip("insensitive") && !self.skip("asensitive") {
                break;
            }
        }
        self.expect("cursor")?;
        let is_kept = self.skip("with");
        if is_kept || self.skip("without") {
            self.expect("hold")?;
        }
        self.expect("for")?;
        let query = self.rest("SELECT");
        Ok(Statement::Declare { name, is_binary, is_kept, query })
    }

    fn fetch(&mut self, is_move: bool) -> Result<Statement, PgError> {
        const BACKWARD: [&str; 6] = ["backward", "prior", "first", "last", "absolute", "relative"];
        if self.peek().is_some_and(|token| BACKWARD.iter().any(|word| token.is_word(word)))
            || self.peek().is_some_and(|token| token.is_sign('-'))
        {
            return Err(PgError::new(state::NOT_SUPPORTED, "cursors go forward only"));
        }
        let is_forward = self.skip("forward");
        let rows = match self.peek().map(|token| token.kind.clone()) {
            Some(Kind::Number(number)) => {
                self.at += 1;
                Some(
                    number
                        .parse()
                        .map_err(|_| PgError::new(state::SYNTAX, format!("`{number}` is no number of rows")))?,
                )
            }
            Some(Kind::Word(word)) if word == "all" => {
                self.at += 1;
                None
            }
            Some(Kind::Word(word)) if word == "next" && !is_forward => {
                self.at += 1;
                Some(1)
            }
            _ => Some(1),
        };
        if !self.skip("from") {
            self.skip("in");
        }
        let cursor = self.name()?;
        self.done(Statement::Fetch { cursor, rows, is_move })
    }

    /// `COPY (query) TO STDOUT` or `COPY table [(columns)] TO STDOUT`, with options in either form.
    fn copy(&mut self) -> Result<Statement, PgError> {
        let query = if self.peek().is_some_and(|token| token.is_sign('(')) {
            let inside = self.parentheses()?;
            whole(self.text, inside, "SELECT")
        } else {
            let start = self.at;
            self.name()?;
            while self.skip_sign('.') {
                self.name()?;
            }
            let table = whole(self.text, &self.tokens[start..self.at], "").sql;
            let columns = if self.peek().is_some_and(|token| token.is_sign('(')) {
                whole(self.text, self.parentheses()?, "").sql
            } else {
                "*".to_owned()
            };
            Query { sql: format!("select {columns} from {table}"), start: None, tag: "SELECT" }
        };
        if self.skip("from") {
            return Err(writes("copy from"));
        }
        self.expect("to")?;
        if !self.skip("stdout") {
            return Err(PgError::new(state::NOT_SUPPORTED, "COPY goes to the client only")
                .with_hint("write `TO STDOUT`; psql's `\\copy` puts it into a file"));
        }
        let options = copy::options(&self.tokens[self.at..]).ok_or_else(|| {
            PgError::new(state::SYNTAX, "the options of COPY cannot be read")
                .with_hint("write `WITH (FORMAT csv, HEADER, DELIMITER ';', NULL '', QUOTE '\"')`, or `FORMAT binary`")
        })?;
        Ok(Statement::Copy { query, options })
    }

    /// What stands between a parenthesis and its partner.
    fn parentheses(&mut self) -> Result<&'a [Token], PgError> {
        let start = self.at + 1;
        let mut depth = 0_usize;
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            match token.kind {
                Kind::Sign('(') => depth += 1,
                Kind::Sign(')') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(&self.tokens[start..self.at - 1]);
            }
        }
        Err(self.unexpected())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::lexer, *};

    fn of(text: &str) -> Result<Statement, PgError> {
        Statement::of(text, &lexer::tokens(text))
    }

    #[test]
    fn statements_of_the_session_are_read() {
        let check = |text: &str, expected: Statement| assert_eq!(of(text), Ok(expected), "{text}");
        let set = |name: &str, value: Option<&str>, is_local| Statement::Set {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            is_local,
        };
        check("SET application_name = 'x y'", set("application_name", Some("x y"), false));
        check("set session DateStyle to ISO, MDY", set("datestyle", Some("iso, mdy"), false));
        check("SET search_path = \"public\"", set("search_path", Some("public"), false));
        check("set local statement_timeout = -1", set("statement_timeout", Some("-1"), true));
        check("set time zone 'UTC'", set("timezone", Some("UTC"), false));
        check("set headworks.queue to dashboards", set("headworks.queue", Some("dashboards"), false));
        check("set x to default", set("x", None, false));
        check("reset all", Statement::ResetAll);
        check("show transaction isolation level", Statement::Show("transaction_isolation".into()));
        check("BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY", Statement::Begin);
        check("start transaction read write", Statement::Begin);
        check("set session characteristics as transaction read only", Statement::Nothing("SET"));
        check(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            set("default_transaction_isolation", Some("repeatable read"), false),
        );
        check("commit", Statement::Commit);
        check("rollback to savepoint a", Statement::RollbackTo("a".into()));
        check("RELEASE SAVEPOINT \"_pg3_1\"", Statement::Release("_pg3_1".into()));
        check(
            "fetch forward 20 from \"c_1\"",
            Statement::Fetch { cursor: "c_1".into(), rows: Some(20), is_move: false },
        );
        check("fetch c", Statement::Fetch { cursor: "c".into(), rows: Some(1), is_move: false });
        check("fetch all in c", Statement::Fetch { cursor: "c".into(), rows: None, is_move: false });
        check("close all", Statement::Close(None));
        check("deallocate prepare x", Statement::Deallocate(Some("x".into())));
        check("discard all", Statement::DiscardAll);
        let query = Query { sql: "select 1".into(), start: Some(38), tag: "SELECT" };
        let declare = Statement::Declare { name: "c".into(), is_binary: true, is_kept: true, query };
        check("declare c binary cursor with hold for select 1", declare);
        assert!(matches!(of("select set"), Ok(Statement::Query(_))));
        assert!(matches!(of("with a as (select 1) select * from a"), Ok(Statement::Query(_))));
        assert!(matches!(of("show tables"), Ok(Statement::Query(Query { tag: "SHOW", .. }))));
    }

    #[test]
    fn what_writes_is_refused_with_its_state() {
        let check = |text: &str, expected: &str| assert_eq!(of(text).unwrap_err().state, expected, "{text}");
        check("insert into t values (1)", "25006");
        check("DROP TABLE t", "25006");
        check("create temp table t (a int)", "25006");
        check("copy t from stdin", "25006");
        check("copy t to '/tmp/x'", "0A000");
        check("copy (select 1 to stdout", "42601");
        check("vacuum", "0A000");
        check("set x", "42601");
        check("fetch backward 1 from c", "0A000");
        check("commit and chain", "42601");
        check("begin nonsense", "42601");
        check("begin isolation level read", "42601");
        check("begin isolation level read backwards", "42601");
        check("set transaction isolation level repeatable", "42601");
    }

    #[test]
    fn copies_name_a_query_or_a_table() {
        let check = |text: &str, expected: &str| match of(text) {
            Ok(Statement::Copy { query, .. }) => assert_eq!(query.sql, expected, "{text}"),
            other => panic!("{text}: {other:?}"),
        };
        check("copy (select ')' from (select 1)) to stdout", "select ')' from (select 1)");
        check("COPY public.t (a, b) TO STDOUT (FORMAT binary)", "select a, b from public.t");
        check("copy t to stdout with csv header", "select * from t");
    }
}
