//! From a text to one statement that only reads: limits first, then time travel, then the parser, then the allow-list.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use datafusion::sql::sqlparser::{
    ast::{DescribeAlias, Expr, Query, SetExpr, Statement},
    dialect::Dialect,
    keywords::Keyword,
    parser::Parser,
    tokenizer::{Token, TokenWithSpan, Tokenizer, Word},
};

use crate::{At, Error, Position, Result, SqlLimits, dialect::Sql};

/// One statement as the engine knows it.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) statement: Reading,
    /// What `AT (...)` said; a table's name that ends in `VERSION_MARK` and a number means the entry of that number.
    pub(crate) versions: Vec<AtClause>,
}

/// The statements that are allowed.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one a query, and it is taken apart at once")]
pub(crate) enum Reading {
    /// SELECT, WITH, VALUES.
    Query(Box<Query>),
    /// EXPLAIN [ANALYZE] of those, for people.
    Explain { query: Box<Query>, is_run: bool },
    /// EXPLAIN [ANALYZE] VERBOSE, as DataFusion shows it.
    ExplainVerbose { statement: Statement },
    /// DESCRIBE of a table or a query.
    Describe(Box<Query>),
}

/// `AT (VERSION => n)` or `AT (TIMESTAMP => '...')`.
#[derive(Debug, Clone)]
pub(crate) struct AtClause {
    pub(crate) at: At,
    /// How the clause is shown in plans: `version=3`.
    pub(crate) label: String,
    pub(crate) position: Option<Position>,
}

/// Stands between a table's name and the number of its `AT` clause. No text that was typed holds it.
pub(crate) const VERSION_MARK: char = '\u{1}';

/// Parses one statement. Errors: `TooLarge`, `Syntax`, `Refused`.
pub(crate) fn parse(sql: &str, limits: &SqlLimits) -> Result<Parsed> {
    parse_as(sql, limits, &Sql)
}

/// Cuts a text into tokens, spaces and comments left out. Errors: `TooLarge`, `Syntax`.
pub(crate) fn tokens(sql: &str, limits: &SqlLimits, dialect: &dyn Dialect) -> Result<Vec<TokenWithSpan>> {
    if sql.len() > limits.text_bytes_max {
        return Err(Error::TooLarge {
            what: "a text",
            limit: limits.text_bytes_max,
            setting: "sql.text_bytes_max",
            position: None,
        });
    }
    let mut tokens = Tokenizer::new(dialect, sql).tokenize_with_location().map_err(Error::from_tokenizer)?;
    tokens.retain(|t| !matches!(t.token, Token::Whitespace(_)));
    check_tokens(&tokens, limits)?;
    Ok(tokens)
}

/// Parses one statement of a dialect. Errors: `TooLarge`, `Syntax`, `Refused`.
pub(crate) fn parse_as(sql: &str, limits: &SqlLimits, dialect: &dyn Dialect) -> Result<Parsed> {
    let mut tokens = tokens(sql, limits, dialect)?;
    let versions = take_versions(&mut tokens)?;
    let end = tokens.last().map(|t| t.span.end);
    let mut statements = Parser::new(dialect)
        .with_recursion_limit(limits.depth_max)
        .with_tokens_with_locations(tokens)
        .parse_statements()
        .map_err(|error| match Error::from_parser(error, limits.depth_max) {
            // The parser has no place for the end of the text: show the last token's.
            Error::Syntax { message, position: None } => {
                Error::Syntax { message, position: end.and_then(Position::of) }
            }
            other => other,
        })?;
    let statement = match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => statement,
        (None, _) => return Err(Error::Syntax { message: "there is no statement in it".to_owned(), position: None }),
        (Some(_), false) => return Err(refused("more than one statement")),
    };
    Ok(Parsed { statement: allowed(statement)?, versions })
}

/// Parses one expression, and nothing behind it. Errors: `TooLarge`, `Syntax`.
pub(crate) fn expression(sql: &str, limits: &SqlLimits) -> Result<Expr> {
    let dialect = Sql;
    let mut tokens = Tokenizer::new(&dialect, sql).tokenize_with_location().map_err(Error::from_tokenizer)?;
    tokens.retain(|t| !matches!(t.token, Token::Whitespace(_)));
    check_tokens(&tokens, limits)?;
    let mut parser = Parser::new(&dialect).with_recursion_limit(limits.depth_max).with_tokens_with_locations(tokens);
    let parsed = parser.parse_expr().and_then(|parsed| parser.expect_token(&Token::EOF).map(|_| parsed));
    parsed.map_err(|error| Error::from_parser(error, limits.depth_max))
}

/// The same text for statements that differ in spaces, comments and the case of words only; `None` when it cannot be read.
pub(crate) fn canonical(sql: &str, limits: &SqlLimits) -> Option<String> {
    if sql.len() > limits.text_bytes_max {
        return None;
    }
    let tokens = Tokenizer::new(&Sql, sql).tokenize().ok()?;
    let mut text = String::with_capacity(sql.len());
    for token in tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        match token {
            Token::Word(word) if word.quote_style.is_none() => text.push_str(&word.value.to_ascii_lowercase()),
            // Not as SQL: `'a'' b ''c'` would be written as `'a' b 'c'`.
            other => text.push_str(&format!("{other:?}")),
        }
        text.push(' ');
    }
    Some(text)
}

fn refused(what: impl Into<String>) -> Error {
    Error::Refused { what: what.into(), position: None }
}

/// Refuses what would send the parser too deep: it counts its own recursion, but not that of types, and builds some
/// nestings in loops that only dropping them would meet.
fn check_tokens(tokens: &[TokenWithSpan], limits: &SqlLimits) -> Result<()> {
    let too_large = |what, limit, setting, token: &TokenWithSpan| {
        Err(Error::TooLarge { what, limit, setting, position: Position::of(token.span.start) })
    };
    if tokens.len() > limits.tokens_max {
        return too_large("tokens", limits.tokens_max, "sql.tokens_max", &tokens[limits.tokens_max]);
    }
    let (mut types, mut brackets, mut intervals) = (0, 0, 0);
    for (index, token) in tokens.iter().enumerate() {
        let before = |back: usize| index.checked_sub(back).map(|i| &tokens[i].token);
        match &token.token {
            Token::Lt if matches!(before(1), Some(Token::Word(w)) if w.keyword != Keyword::NoKeyword) => types += 1,
            Token::RBracket if before(1) == Some(&Token::LBracket) => {
                brackets = if before(2) == Some(&Token::RBracket) { brackets + 1 } else { 1 };
            }
            // `interval interval ...`: the one prefix that the parser follows without counting.
            token if is_keyword(token, Keyword::INTERVAL) => {
                intervals = if before(1).is_some_and(|t| is_keyword(t, Keyword::INTERVAL)) { intervals + 1 } else { 0 };
            }
            _ => {}
        }
        if types.max(brackets).max(intervals) > limits.depth_max {
            return too_large("nested types or intervals", limits.depth_max, "sql.depth_max", token);
        }
    }
    Ok(())
}

/// Takes each `AT (VERSION => n)` and `AT (TIMESTAMP => '...')` out of the tokens and marks the name before it: DataFusion's
/// parser has no such clause.
fn take_versions(tokens: &mut Vec<TokenWithSpan>) -> Result<Vec<AtClause>> {
    let mut versions = Vec::new();
    if !tokens.windows(2).any(|w| is_keyword(&w[0].token, Keyword::AT) && w[1].token == Token::LParen) {
        return Ok(versions);
    }
    let mut kept: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    let mut rest = std::mem::take(tokens).into_iter().peekable();
    while let Some(token) = rest.next() {
        let is_at = is_keyword(&token.token, Keyword::AT) && rest.peek().is_some_and(|t| t.token == Token::LParen);
        if !is_at {
            kept.push(token);
            continue;
        }
        let position = Position::of(token.span.start);
        rest.next();
        let mut inside = Vec::new();
        loop {
            match rest.next().map(|t| t.token) {
                Some(Token::RParen) => break,
                Some(other) if inside.len() < 4 => inside.push(other),
                _ => return Err(bad_version(position)),
            }
        }
        let (at, label) = version(&inside).ok_or_else(|| bad_version(position))?;
        let name = match kept.last_mut().map(|t| &mut t.token) {
            Some(Token::Word(word)) => word,
            _ => return Err(misplaced_version(position)),
        };
        let value = if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() };
        *name = Word {
            value: format!("{value}{VERSION_MARK}{}", versions.len()),
            quote_style: Some('"'),
            keyword: Keyword::NoKeyword,
        };
        versions.push(AtClause { at, label, position });
    }
    *tokens = kept;
    Ok(versions)
}

fn is_keyword(token: &Token, keyword: Keyword) -> bool {
    matches!(token, Token::Word(w) if w.keyword == keyword && w.quote_style.is_none())
}

fn bad_version(position: Option<Position>) -> Error {
    Error::Plan {
        message: "the version of a table is not readable".to_owned(),
        position,
        hint: Some(
            "write `t AT (VERSION => 12)` or `t AT (TIMESTAMP => '2018-02-20 12:00:00')`, the time in UTC".to_owned(),
        ),
    }
}

pub(crate) fn misplaced_version(position: Option<Position>) -> Error {
    Error::Plan {
        message: "`AT (...)` does not stand behind the name of a table".to_owned(),
        position,
        hint: Some("write `from t AT (VERSION => 12) AS a`".to_owned()),
    }
}

fn version(tokens: &[Token]) -> Option<(At, String)> {
    let (key, value) = match tokens {
        [key, Token::RArrow, value] => (key, value),
        // `TIMESTAMP => TIMESTAMP '...'`
        [key, Token::RArrow, kind, value]
            if is_keyword(kind, Keyword::TIMESTAMP) || is_keyword(kind, Keyword::DATE) =>
        {
            (key, value)
        }
        _ => return None,
    };
    match value {
        Token::Number(n, _) if is_keyword(key, Keyword::VERSION) => {
            let version = n.parse().ok()?;
            Some((At::Version(version), format!("version={version}")))
        }
        Token::SingleQuotedString(text) if is_keyword(key, Keyword::TIMESTAMP) => {
            let time = time(text)?;
            Some((At::Time(time), format!("time={}", time.format("%Y-%m-%dT%H:%M:%S%.fZ"))))
        }
        _ => None,
    }
}

/// Reads a day, a time without a zone (then it is UTC) or one with an offset.
fn time(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"] {
        if let Ok(time) = DateTime::parse_from_str(text, format) {
            return Some(time.to_utc());
        }
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            return Some(time.and_utc());
        }
    }
    Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)?.and_utc())
}

/// Lets pass what only reads. What a clause inside a query may not say is checked where names are resolved.
pub(crate) fn allowed(statement: Statement) -> Result<Reading> {
    match statement {
        Statement::Query(query) => Ok(Reading::Query(query)),
        Statement::Explain { describe_alias, analyze, verbose, query_plan, estimate, statement, format, options } => {
            if query_plan || estimate || options.is_some() {
                return Err(refused("this form of EXPLAIN"));
            }
            let query = match *statement {
                Statement::Query(query) => query,
                other => return Err(refused(format!("EXPLAIN of {}", first_word(&other)))),
            };
            if describe_alias != DescribeAlias::Explain {
                return Ok(Reading::Describe(query));
            }
            if !verbose && format.is_none() {
                return Ok(Reading::Explain { query, is_run: analyze });
            }
            Ok(Reading::ExplainVerbose {
                statement: Statement::Explain {
                    describe_alias,
                    analyze,
                    verbose,
                    query_plan,
                    estimate,
                    statement: Box::new(Statement::Query(query)),
                    format,
                    options: None,
                },
            })
        }
        Statement::ExplainTable { describe_alias, hive_format: None, table_name, .. }
            if describe_alias != DescribeAlias::Explain =>
        {
            Ok(Reading::Describe(generated(&format!("select * from {table_name}"))?))
        }
        Statement::ShowTables {
            terse: false,
            history: false,
            extended: false,
            full: false,
            external: false,
            show_options,
        } if show_options.to_string().trim().is_empty() => Ok(Reading::Query(generated(
            "select table_name, table_type from information_schema.tables where table_schema = 'main' order by 1",
        )?)),
        other => Err(refused(first_word(&other))),
    }
}

/// Parses a query that we wrote ourselves.
pub(crate) fn generated(sql: &str) -> Result<Box<Query>> {
    let statement = Parser::parse_sql(&Sql, sql).map_err(|e| Error::from_parser(e, 0))?.pop();
    match statement {
        Some(Statement::Query(query)) => Ok(query),
        _ => Err(Error::Internal { message: format!("`{sql}` is not a query") }),
    }
}

/// The statement's first word as it is shown to people, as `DROP`.
fn first_word(statement: &Statement) -> String {
    let text = statement.to_string();
    format!("`{}`", text.split([' ', '(']).next().unwrap_or_default().to_uppercase())
}

/// Finds a part of a query's body that does more than read, or has no meaning to DataFusion, which would skip it silently.
pub(crate) fn refused_in_query(query: &Query) -> Option<String> {
    let clause = if !query.locks.is_empty() {
        "`FOR UPDATE`"
    } else if query.for_clause.is_some() {
        "`FOR XML/JSON/BROWSE`"
    } else if query.settings.is_some() {
        "`SETTINGS`"
    } else if query.format_clause.is_some() {
        "`FORMAT`"
    } else {
        return None;
    };
    Some(clause.to_owned())
}

/// The same for one operand of a set operation.
pub(crate) fn refused_in_body(body: &SetExpr) -> Option<String> {
    match body {
        SetExpr::Insert(_) => Some("`INSERT`".to_owned()),
        SetExpr::Update(_) => Some("`UPDATE`".to_owned()),
        SetExpr::Delete(_) => Some("`DELETE`".to_owned()),
        SetExpr::Merge(_) => Some("`MERGE`".to_owned()),
        SetExpr::Select(select) => {
            if select.into.is_some() {
                Some("`SELECT INTO`".to_owned())
            } else if select.prewhere.is_some() {
                Some("`PREWHERE`".to_owned())
            } else if !select.connect_by.is_empty() {
                Some("`CONNECT BY`".to_owned())
            } else if select.value_table_mode.is_some() {
                Some("`SELECT AS`".to_owned())
            } else if select.select_modifiers.is_some() {
                Some("a modifier of SELECT".to_owned())
            } else {
                None
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_is_allowed() {
        let check = |sql: &str, expected: &str| {
            let found = match parse(sql, &SqlLimits::default()) {
                Ok(_) => "ok".to_owned(),
                Err(Error::Refused { what, .. }) => what,
                Err(other) => other.to_string(),
            };
            assert_eq!(found, expected, "{sql}");
        };
        check("select 1", "ok");
        check("with a as (select 1) select * from a;", "ok");
        check("values (1), (2)", "ok");
        check("explain analyze select 1", "ok");
        check("explain verbose select 1", "ok");
        check("describe t", "ok");
        check("describe select 1", "ok");
        check("show tables", "ok");
        check("show all", "`SHOW`");
        check("select 1; select 2", "more than one statement");
        check("", "the SQL cannot be read: there is no statement in it");
        check("-- nothing", "the SQL cannot be read: there is no statement in it");
        for bad in [
            "insert into t values (1)",
            "update t set a = 1",
            "delete from t",
            "drop table t",
            "create table t (a int)",
            "create view v as select 1",
            "create external table t stored as csv location '/etc/passwd'",
            "copy t to '/tmp/x'",
            "set datafusion.runtime.memory_limit = '100G'",
            "explain insert into t values (1)",
            "explain analyze copy t to '/tmp/x'",
            "attach 'x' as y",
            "call f()",
            "truncate table t",
            "begin",
            "prepare p as select 1",
            "merge into t using s on t.a = s.a when matched then delete",
            "pragma x",
            "use x",
        ] {
            assert!(parse(bad, &SqlLimits::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn canonical_texts_keep_what_matters() {
        let same = |a: &str, b: &str| canonical(a, &SqlLimits::default()) == canonical(b, &SqlLimits::default());
        assert!(same("select  A /* x */ from t -- y", "SELECT a\nFROM T"));
        for (a, b) in [
            ("select 'a'", "select 'A'"),
            ("select \"a\" from t", "select a from t"),
            ("select 'a  b'", "select 'a b'"),
            ("select a b", "select ab"),
            ("select e'\\n'", "select '\\n'"),
            ("select 1.0", "select 1"),
            ("select x'41'", "select 'x41'"),
            ("select 'it''s'", "select 'it' 's'"),
            ("select 'a'' b ''c'", "select 'a' b 'c'"),
            ("select $1", "select $2"),
        ] {
            assert!(!same(a, b), "{a} | {b}");
        }
        assert_eq!(canonical("select 'x", &SqlLimits::default()), None);
    }

    #[test]
    fn versions_are_taken_from_the_tokens() {
        let check = |sql: &str, expected: &[&str]| {
            let parsed = parse(sql, &SqlLimits::default()).unwrap();
            assert_eq!(parsed.versions.iter().map(|v| v.label.as_str()).collect::<Vec<_>>(), expected, "{sql}");
        };
        check("select * from t AT (VERSION => 3) a join main.u at (version=>4) b on true", &["version=3", "version=4"]);
        check("select * from t at (timestamp => '2018-02-20')", &["time=2018-02-20T00:00:00Z"]);
        check("select * from t at (timestamp => timestamp '2018-02-20 12:30:00+01')", &["time=2018-02-20T11:30:00Z"]);
        check("select x at time zone 'UTC' from t at", &[]);
        for bad in [
            "select * from t at (version => 'x')",
            "select * from t at (version => 1 + 1)",
            "select 1 at (version => 1)",
        ] {
            assert!(matches!(parse(bad, &SqlLimits::default()), Err(Error::Plan { .. })), "{bad}");
        }
    }

    #[test]
    fn large_texts_are_refused_by_name() {
        let check = |sql: &str, expected: &str| match parse(sql, &SqlLimits::default()) {
            Err(Error::TooLarge { setting, .. }) => assert_eq!(setting, expected),
            other => panic!("{other:?}"),
        };
        check(&"x".repeat(300_000), "sql.text_bytes_max");
        check(&format!("select {}", "1,".repeat(30_000)), "sql.tokens_max");
        check(&format!("select {}1{}", "(".repeat(1_000), ")".repeat(1_000)), "sql.depth_max");
        check(&format!("select cast(1 as {}int{})", "array<".repeat(5_000), ">".repeat(5_000)), "sql.depth_max");
        check(&format!("select cast(1 as int{})", "[]".repeat(10_000)), "sql.depth_max");
        check(&format!("select {}'1 day'", "interval ".repeat(10_000)), "sql.depth_max");
    }
}
