//! Finds and rewrites the tables of a query: `wait::t`, `wait::t@-1`, `latest::t` and plain ones.
//!
//! The text is cut into tokens as DataFusion does (its default dialect), so strings, comments and casts as `x::int` are never
//! mistaken. A prefix counts in table position only: after `FROM`, `JOIN`, or a comma of a `FROM` list.

use std::ops::Range;

use headworks_domain::nearest;
use sqlparser::{
    ast::{SetExpr, Statement},
    dialect::GenericDialect,
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Word},
};

use crate::{
    source::At,
    spec::{Reach, WaitRef},
};

/// The most tokens of a query; deep texts would end the parser's stack, and no person writes such.
const TOKENS_MAX: usize = 20_000;

/// What a query reads, and the query without prefixes.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Analysis {
    /// The text with plain table names in place of the prefixed ones, without a semicolon at its end.
    pub(crate) sql: String,
    /// What was replaced, by bytes of the text as given, in order.
    pub(crate) edits: Vec<(Range<usize>, String)>,
    pub(crate) waits: Vec<(At, WaitRef)>,
    pub(crate) latest: Vec<(At, String)>,
    pub(crate) plain: Vec<(At, String)>,
    pub(crate) problems: Vec<SqlProblem>,
}

/// Something wrong in a query; the place counts in the text as given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SqlProblem {
    pub(crate) at: At,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Reads a query. `own_table` stands for `self` and `this`.
pub(crate) fn analyse(text: &str, own_table: &str) -> Analysis {
    let mut analysis = Analysis { sql: text.to_owned(), ..Analysis::default() };
    let tokens = match Tokenizer::new(&GenericDialect {}, text).with_unescape(false).tokenize_with_location() {
        Ok(tokens) => tokens,
        Err(error) => {
            let at = (error.location.line as usize, error.location.column as usize);
            analysis.problem(
                at,
                format!("the SQL cannot be read: {}", lower_first(&error.message)),
                "close what was opened there",
            );
            return analysis;
        }
    };
    if tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).count() > TOKENS_MAX {
        analysis.problem((1, 1), format!("the SQL has more than {TOKENS_MAX} words"), "split the job in several");
        return analysis;
    }
    let offsets = Offsets::new(text);
    let mut finder =
        Finder { offsets: &offsets, own_table, analysis, frames: vec![Frame::default()], hidden: Vec::new() };
    let kept = finder.walk(&tokens);
    let mut analysis = finder.finish();
    if analysis.problems.is_empty() {
        analysis.parse(kept);
    }
    analysis.rewrite(text);
    analysis
}

impl Analysis {
    fn problem(&mut self, at: At, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(SqlProblem { at, message: message.into(), hint: hint.into() });
    }

    /// Sees that the tokens make one query and nothing else.
    fn parse(&mut self, tokens: Vec<TokenWithSpan>) {
        let place = |token: Option<&TokenWithSpan>| token.map_or((1, 1), |t| at(t.span.start));
        let second = second_statement(&tokens).map(|token| place(Some(token)));
        let first = place(tokens.iter().find(|t| !matches!(t.token, Token::Whitespace(_) | Token::SemiColon)));
        let statements = match Parser::new(&GenericDialect {}).with_tokens_with_locations(tokens).parse_statements() {
            Ok(statements) => statements,
            Err(error) => {
                let (message, at) = parser_message(&error);
                self.problem(at.unwrap_or(first), format!("the SQL does not parse: {message}"), "");
                return;
            }
        };
        let hint = "a job is one SELECT, with or without WITH; the platform writes its result to the table";
        match &statements[..] {
            [] => self.problem((0, 0), "there is no query below the header", hint),
            [Statement::Query(query)] if is_select(&query.body) => {}
            [_] => self.problem(first, "the SQL is not a query", hint),
            _ => self.problem(second.unwrap_or(first), "there is more than one statement", hint),
        }
    }

    fn rewrite(&mut self, text: &str) {
        let mut sql = String::with_capacity(text.len());
        let mut done = 0;
        for (range, new) in &self.edits {
            sql.push_str(&text[done..range.start]);
            sql.push_str(new);
            done = range.end;
        }
        sql.push_str(&text[done..]);
        self.sql = sql;
    }
}

fn is_select(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => select.into.is_none(),
        SetExpr::Query(query) => is_select(&query.body),
        SetExpr::SetOperation { left, right, .. } => is_select(left) && is_select(right),
        SetExpr::Values(_) => true,
        _ => false,
    }
}

/// The first token after a semicolon that is not at the end.
fn second_statement(tokens: &[TokenWithSpan]) -> Option<&TokenWithSpan> {
    let after = tokens.iter().position(|t| t.token == Token::SemiColon)?;
    tokens[after..].iter().find(|t| !matches!(t.token, Token::Whitespace(_) | Token::SemiColon | Token::EOF))
}

/// A parser's message without the place at its end, and the place.
pub(crate) fn parser_message(error: &ParserError) -> (String, Option<At>) {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => return ("it is nested too deeply".to_owned(), None),
    };
    let (message, at) = split_place(text);
    (lower_first(message), at)
}

/// Splits ` at Line: 3, Column: 5` off a message of the parser.
pub(crate) fn split_place(text: &str) -> (&str, Option<At>) {
    let Some((message, place)) = text.rsplit_once(" at Line: ") else { return (text, None) };
    let numbers = place.split_once(", Column: ").map(|(line, column)| {
        let column: String = column.chars().take_while(char::is_ascii_digit).collect();
        (line.trim().parse::<usize>(), column.parse::<usize>())
    });
    match numbers {
        Some((Ok(line), Ok(column))) if line > 0 => (message, Some((line, column))),
        _ => (text, None),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
}

fn at(location: Location) -> At {
    (location.line as usize, location.column as usize)
}

/// Turns places of the tokenizer, which count characters, into bytes of the text.
struct Offsets<'a> {
    text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Offsets<'a> {
    fn new(text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(n, _)| n + 1)).collect();
        Self { text, lines }
    }

    fn byte(&self, location: Location) -> usize {
        let line = (location.line as usize).saturating_sub(1);
        let Some(start) = self.lines.get(line) else { return self.text.len() };
        let column = (location.column as usize).saturating_sub(1);
        self.text[*start..].char_indices().nth(column).map_or(self.text.len(), |(n, _)| start + n)
    }
}

/// What is open at one depth of parentheses.
#[derive(Debug, Default)]
struct Frame {
    /// A SELECT was seen: a FROM after it begins a list of tables. `extract(day from x)` has none.
    select: bool,
    /// Commas separate tables.
    in_from: bool,
    /// The next word names a table.
    expect: bool,
    /// Any token was seen.
    begun: bool,
    /// The WITH query whose body this is.
    with_query: Option<String>,
}

struct Finder<'a> {
    offsets: &'a Offsets<'a>,
    own_table: &'a str,
    analysis: Analysis,
    frames: Vec<Frame>,
    /// WITH queries that are defined by now: their names hide tables.
    hidden: Vec<String>,
}

impl Finder<'_> {
    /// Goes through all tokens; gives those of the query without prefixes.
    fn walk(&mut self, tokens: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
        let words: Vec<&TokenWithSpan> =
            tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_) | Token::EOF)).collect();
        let mut kept: Vec<TokenWithSpan> = Vec::with_capacity(words.len());
        let mut next = 0;
        while let [token, after @ ..] = &words[next..] {
            if self.frame().expect {
                if let Some((used, token)) = self.prefixed(&words[next..]) {
                    self.frame().expect = false;
                    kept.push(token);
                    next += used;
                    continue;
                }
                if let Token::Word(word) = &token.token
                    && !is_table_keyword(word)
                {
                    self.frame().expect = false;
                    self.plain(word, &words[next..]);
                    kept.push((*token).clone());
                    next += 1;
                    continue;
                }
            }
            self.track(token, after, &words[..next]);
            kept.push((*token).clone());
            next += 1;
        }
        self.cut_semicolons(&words);
        kept
    }

    fn finish(mut self) -> Analysis {
        // A WITH query may be read before it is known to be one: inside itself, when it is recursive.
        let hidden = self.hidden;
        self.analysis.plain.retain(|(_, name)| !hidden.contains(name));
        self.analysis
    }

    fn frame(&mut self) -> &mut Frame {
        if self.frames.is_empty() {
            self.frames.push(Frame::default());
        }
        self.frames.last_mut().expect("there is one")
    }

    /// Follows the query's clauses.
    fn track(&mut self, token: &TokenWithSpan, after: &[&TokenWithSpan], before: &[&TokenWithSpan]) {
        let frame = self.frame();
        let first = !std::mem::replace(&mut frame.begun, true);
        match &token.token {
            Token::LParen => {
                let list = frame.expect;
                frame.expect = false;
                let with_query = with_query_name(before);
                self.frames.push(Frame { in_from: list, expect: list, with_query, ..Frame::default() });
            }
            Token::RParen => {
                if let Some(frame) = self.frames.pop() {
                    self.hidden.extend(frame.with_query);
                }
                self.frame();
            }
            Token::Comma if frame.in_from => frame.expect = true,
            Token::SemiColon => *frame = Frame::default(),
            Token::Word(word) => match word.keyword {
                Keyword::SELECT => {
                    *frame =
                        Frame { select: true, begun: true, with_query: frame.with_query.take(), ..Frame::default() }
                }
                // `IS DISTINCT FROM` compares.
                Keyword::FROM if is_distinct_from(before) => {}
                Keyword::FROM if frame.select || first => {
                    frame.in_from = true;
                    frame.expect = true;
                }
                Keyword::JOIN => frame.expect = true,
                Keyword::WHERE
                | Keyword::GROUP
                | Keyword::HAVING
                | Keyword::ORDER
                | Keyword::LIMIT
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::WINDOW
                | Keyword::QUALIFY
                | Keyword::OFFSET
                | Keyword::FETCH
                | Keyword::VALUES
                | Keyword::WITH => {
                    frame.in_from = false;
                    frame.expect = false;
                }
                _ => {
                    let misplaced = matches!(word.value.as_str(), "wait" | "latest")
                        && word.quote_style.is_none()
                        && self.is_misplaced(token, after);
                    if misplaced {
                        let name = format!("{}::", word.value);
                        self.analysis.problem(
                            at(token.span.start),
                            format!("`{name}` stands where no table can be"),
                            format!("write `{name}t` after FROM or JOIN"),
                        );
                    }
                }
            },
            _ => {}
        }
    }

    /// `wait::t@-1` outside a table's place cannot be a cast of a column `wait`; `wait::int` can.
    fn is_misplaced(&self, token: &TokenWithSpan, after: &[&TokenWithSpan]) -> bool {
        match after {
            [colons, name, ..] => {
                colons.token == Token::DoubleColon
                    && colons.span.start == token.span.end
                    && matches!(&name.token, Token::Word(w) if w.quote_style.is_none() && w.value.ends_with('@'))
            }
            _ => false,
        }
    }

    /// Reads `wait::t`, `wait::t@-1`, `latest::t` at the start of a window: how many tokens it takes, and the table's.
    fn prefixed(&mut self, window: &[&TokenWithSpan]) -> Option<(usize, TokenWithSpan)> {
        let [prefix, colons, name, rest @ ..] = window else { return None };
        let (Token::Word(prefix_word), Token::DoubleColon, Token::Word(word)) =
            (&prefix.token, &colons.token, &name.token)
        else {
            return None;
        };
        if prefix.span.end != colons.span.start || colons.span.end != name.span.start {
            return None;
        }
        let place = at(prefix.span.start);
        let (table, marked) = match word.quote_style {
            // The dialect takes `@` as a letter, so `t@-1` is the word `t@`, a minus and a number.
            None => match word.value.split_once('@') {
                None => (word.value.to_ascii_lowercase(), None),
                Some((table, tail)) => (table.to_ascii_lowercase(), Some(tail)),
            },
            Some(_) => (word.value.clone(), None),
        };
        let adjacent = |token: &TokenWithSpan, end: Location| token.span.start == end;
        let in_range = |n: i64| (1..=100_000).contains(&n).then_some(-n);
        // How many more tokens the offset takes, where it ends, and what it is if it can be read.
        let offset = match (marked, rest) {
            (Some(""), [minus, number, ..])
                if minus.token == Token::Minus
                    && adjacent(minus, name.span.end)
                    && adjacent(number, minus.span.end) =>
            {
                let digits = if let Token::Number(digits, _) = &number.token { digits.parse().ok() } else { None };
                Some((2, number.span.end, digits.and_then(in_range)))
            }
            (Some(_), _) => Some((0, name.span.end, None)),
            // After a quoted name the dialect takes `@-1` as one word.
            (None, [mark, ..]) if word.quote_style.is_some() && adjacent(mark, name.span.end) => match &mark.token {
                Token::Word(mark_word) if mark_word.value.starts_with('@') => {
                    let digits = mark_word.value.strip_prefix("@-").and_then(|digits| digits.parse().ok());
                    Some((1, mark.span.end, digits.and_then(in_range)))
                }
                Token::AtSign => Some((1, mark.span.end, None)),
                _ => None,
            },
            (None, _) => None,
        };
        let (used, end, offset) = match offset {
            None => (3, name.span.end, 0),
            Some((more, end, Some(offset))) => (3 + more, end, offset),
            Some((more, _, None)) => {
                let hint = format!("write `wait::{table}@-1` for the partition before");
                self.analysis.problem(place, format!("the offset of `{table}` cannot be read"), hint);
                return Some((3 + more, (*name).clone()));
            }
        };
        let prefix_name = prefix_word.value.to_ascii_lowercase();
        let own = matches!(table.as_str(), "self" | "this");
        let read = if own { self.own_table.to_owned() } else { table.clone() };
        let new_name = match prefix_name.as_str() {
            "wait" => {
                if self.hidden.contains(&read) {
                    let hint = format!("give the WITH query `{read}` another name");
                    self.analysis.problem(place, format!("`wait::{table}` would read the WITH query `{read}`"), hint);
                }
                self.analysis.waits.push((place, WaitRef { table, reach: Reach::Offset(offset) }));
                read
            }
            "latest" => {
                if offset != 0 {
                    self.analysis.problem(
                        place,
                        format!("`latest::{table}` takes no offset"),
                        format!("write `latest::{table}`, or `wait::{table}@{offset}`"),
                    );
                }
                self.analysis.latest.push((place, read.clone()));
                format!("{read}_latest")
            }
            other => {
                let hint = match nearest(other, ["wait", "latest"]) {
                    Some(near) => format!("did you mean `{near}::{table}`?"),
                    None => "the prefixes are `wait::` and `latest::`".to_owned(),
                };
                self.analysis.problem(place, format!("`{other}::` is not a prefix of tables"), hint);
                return Some((used, (*name).clone()));
            }
        };
        let quote = word.quote_style.or((own && !is_plain_name(&new_name)).then_some('"'));
        let shown = match quote {
            None => new_name.clone(),
            Some(quote) => format!("{quote}{new_name}{quote}"),
        };
        let range = self.offsets.byte(prefix.span.start)..self.offsets.byte(end);
        self.analysis.edits.push((range, shown));
        let token = TokenWithSpan { token: Token::make_word(&new_name, quote), span: prefix.span };
        Some((used, token))
    }

    /// Notes a table that is read by its plain name.
    fn plain(&mut self, word: &Word, window: &[&TokenWithSpan]) {
        let called = matches!(window, [_, open, ..] if open.token == Token::LParen);
        if called {
            return;
        }
        let mut name = word;
        let mut n = 0;
        // `main.t` is `t`.
        while let [_, dot, next, ..] = &window[n..]
            && dot.token == Token::Period
            && let Token::Word(next) = &next.token
        {
            name = next;
            n += 2;
        }
        let name = if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() };
        self.analysis.plain.push((at(window[0].span.start), name));
    }

    /// Takes semicolons off the end: the engine gets a query, not a script.
    fn cut_semicolons(&mut self, words: &[&TokenWithSpan]) {
        let count = words.iter().rev().take_while(|t| t.token == Token::SemiColon).count();
        for token in &words[words.len() - count..] {
            let start = self.offsets.byte(token.span.start);
            self.analysis.edits.push((start..start + 1, String::new()));
        }
    }
}

/// The name that `name (columns) AS (` gives to a WITH query, from the tokens before the parenthesis.
fn with_query_name(before: &[&TokenWithSpan]) -> Option<String> {
    let keyword =
        |token: &Token, keyword| matches!(token, Token::Word(w) if w.keyword == keyword && w.quote_style.is_none());
    let mut before = before.iter().rev().map(|t| &t.token).peekable();
    if before.next_if(|t| keyword(t, Keyword::MATERIALIZED)).is_some() {
        before.next_if(|t| keyword(t, Keyword::NOT));
    }
    before.next_if(|t| keyword(t, Keyword::AS))?;
    if before.next_if(|t| **t == Token::RParen).is_some() {
        before.by_ref().find(|t| **t == Token::LParen)?;
    }
    match before.next()? {
        Token::Word(word) if word.quote_style.is_some() => Some(word.value.clone()),
        Token::Word(word) => Some(word.value.to_ascii_lowercase()),
        _ => None,
    }
}

fn is_distinct_from(before: &[&TokenWithSpan]) -> bool {
    let keyword = |n: usize, keyword| {
        let token = before.len().checked_sub(n).and_then(|n| before.get(n)).map(|t| &t.token);
        matches!(token, Some(Token::Word(w)) if w.keyword == keyword)
    };
    keyword(1, Keyword::DISTINCT) && (keyword(2, Keyword::IS) || (keyword(2, Keyword::NOT) && keyword(3, Keyword::IS)))
}

/// Words that may stand before a table's name.
fn is_table_keyword(word: &Word) -> bool {
    word.quote_style.is_none()
        && matches!(word.keyword, Keyword::LATERAL | Keyword::SELECT | Keyword::WITH | Keyword::VALUES)
}

/// True when a name reads the same without quotes.
fn is_plain_name(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let word = matches!(Token::make_word(name, None), Token::Word(w) if w.keyword == Keyword::NoKeyword);
    plain && word && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
}

#[cfg(test)]
mod tests;
