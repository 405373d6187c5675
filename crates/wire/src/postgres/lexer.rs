//! Words and signs of a text, as far as it takes to cut it into statements and to read those that the engine does not know.

/// One token and where it begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A word, in lowercase.
    Word(String),
    /// A name in double quotes.
    Quoted(String),
    /// A text in single quotes or dollar signs.
    Text(String),
    Number(String),
    Sign(char),
}

impl Token {
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(found) if found == word)
    }

    pub(super) fn is_sign(&self, sign: char) -> bool {
        self.kind == Kind::Sign(sign)
    }
}

/// Cuts a text into tokens. What is not closed ends with the text: the engine says so where it matters.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer { text, at: 0 };
    std::iter::from_fn(|| lexer.next()).collect()
}

/// Cuts a text into statements: their tokens, without the `;` between them, none of them empty.
pub(super) fn statements(tokens: &[Token]) -> impl Iterator<Item = &[Token]> {
    tokens.split(|token| token.is_sign(';')).filter(|statement| !statement.is_empty())
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_while(&mut self, mut is: impl FnMut(char) -> bool) {
        while let Some(next) = self.peek().filter(|next| is(*next)) {
            self.at += next.len_utf8();
        }
    }

    fn next(&mut self) -> Option<Token> {
        self.skip_blank();
        let start = self.at;
        let first = self.peek()?;
        let kind = match first {
            '\'' => Kind::Text(self.quoted('\'', false)),
            '"' => Kind::Quoted(self.quoted('"', false)),
            'e' | 'E' if self.rest()[1..].starts_with('\'') => {
                self.at += 1;
                Kind::Text(self.quoted('\'', true))
            }
            '$' => match self.dollar_quoted() {
                Some(text) => Kind::Text(text),
                None => {
                    self.at += 1;
                    Kind::Sign('$')
                }
            },
            c if c.is_alphabetic() || c == '_' => {
                self.skip_while(|c| c.is_alphanumeric() || c == '_' || c == '$');
                Kind::Word(self.text[start..self.at].to_lowercase())
            }
            c if c.is_ascii_digit() => {
                self.skip_while(|c| c.is_ascii_alphanumeric() || c == '.');
                Kind::Number(self.text[start..self.at].to_owned())
            }
            c => {
                self.at += c.len_utf8();
                Kind::Sign(c)
            }
        };
        Some(Token { kind, start, end: self.at })
    }

    /// Spaces and comments; block comments nest.
    fn skip_blank(&mut self) {
        loop {
            self.skip_while(char::is_whitespace);
            if self.rest().starts_with("--") {
                self.skip_while(|c| c != '\n');
            } else if self.rest().starts_with("/*") {
                let mut depth = 0;
                loop {
                    let rest = self.rest();
                    if rest.starts_with("/*") {
                        depth += 1;
                        self.at += 2;
                    } else if rest.starts_with("*/") {
                        depth -= 1;
                        self.at += 2;
                    } else if let Some(c) = self.peek() {
                        self.at += c.len_utf8();
                    } else {
                        return;
                    }
                    if depth == 0 {
                        break;
                    }
                }
            } else {
                return;
            }
        }
    }

    fn quoted(&mut self, quote: char, has_escapes: bool) -> String {
        let mut content = String::new();
        self.at += 1;
        while let Some(c) = self.peek() {
            self.at += c.len_utf8();
            if c == quote {
                if self.peek() != Some(quote) {
                    break;
                }
                self.at += 1;
            } else if has_escapes
                && c == '\\'
                && let Some(next) = self.peek()
            {
                self.at += next.len_utf8();
                content.push(match next {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    other => other,
                });
                continue;
            }
            content.push(c);
        }
        content
    }

    fn dollar_quoted(&mut self) -> Option<String> {
        let rest = &self.rest()[1..];
        let tag = rest.find('$')?;
        let is_tag = |(n, c): (usize, char)| c.is_alphabetic() || c == '_' || (n > 0 && c.is_alphanumeric());
        if !rest[..tag].char_indices().all(is_tag) {
            return None;
        }
        let mark = format!("${}$", &rest[..tag]);
        let body = self.at + mark.len();
        let end = self.text[body..].find(&mark).map_or(self.text.len(), |found| body + found);
        self.at = (end + mark.len()).min(self.text.len());
        Some(self.text[body..end].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_cut_where_they_end() {
        let check = |text: &str, expected: &[&str]| {
            let tokens = tokens(text);
            let found: Vec<&str> = statements(&tokens)
                .map(|statement| &text[statement[0].start..statement[statement.len() - 1].end])
                .collect();
            assert_eq!(found, expected, "{text}");
        };
        check("select 1; select 2;", &["select 1", "select 2"]);
        check(" ; ;-- x;\n /* ; /* ; */ ; */ ;", &[]);
        check(
            "select ';', \";\", $$;$$, $a$;$$;$a$, e'\\';'; x",
            &["select ';', \";\", $$;$$, $a$;$$;$a$, e'\\';'", "x"],
        );
        check("select 'it''s;'", &["select 'it''s;'"]);
        check("select $1; select $2", &["select $1", "select $2"]);
        check("select '; x", &["select '; x"]);
        check("select ü; ", &["select ü"]);
    }
}
