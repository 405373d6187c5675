//! `COPY ... TO STDOUT`: its options, and rows in its three formats.

use bytes::{BufMut, BytesMut};

use super::{
    lexer::{Kind, Token},
    value::{Column, Format},
};

/// How rows are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CopyOptions {
    pub(super) format: CopyFormat,
    pub(super) has_header: bool,
    delimiter: u8,
    null: String,
    quote: u8,
    escape: u8,
    /// CSV only: quotes around every value.
    quotes_all: bool,
    /// Numbers, times and the like stand as they are written, whichever they are.
    spares_plain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyFormat {
    Text,
    Csv,
    Binary,
}

/// What a binary copy begins with: its signature, no flags, no extension.
pub(super) const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// And what it ends with.
pub(super) const BINARY_TAIL: &[u8] = &[0xff, 0xff];

/// Reads the options, in parentheses or as PostgreSQL had them before; `None` when they cannot be read.
pub(super) fn options(tokens: &[Token]) -> Option<CopyOptions> {
    let mut given = Given::default();
    let tokens = match tokens {
        [with, rest @ ..] if with.is_word("with") => rest,
        all => all,
    };
    match tokens {
        [open, inside @ .., close] if open.is_sign('(') && close.is_sign(')') => {
            for option in inside.split(|token| token.is_sign(',')) {
                given.take(option)?;
            }
        }
        mut rest => {
            while let [first, behind @ ..] = rest {
                let behind = match behind {
                    [next, more @ ..] if next.is_word("as") => more,
                    other => other,
                };
                let has_value = ["delimiter", "null", "quote", "escape"].iter().any(|word| first.is_word(word));
                let forced = first.is_word("force");
                let (option, more) = match behind {
                    [value, more @ ..] if has_value => (vec![first.clone(), value.clone()], more),
                    [quote, star, more @ ..] if forced && quote.is_word("quote") => {
                        (vec![Token { kind: Kind::Word("force_quote".into()), ..first.clone() }, star.clone()], more)
                    }
                    more => (vec![first.clone()], more),
                };
                given.take(&option)?;
                rest = more;
            }
        }
    }
    given.checked()
}

#[derive(Default)]
struct Given {
    format: Option<CopyFormat>,
    has_header: bool,
    delimiter: Option<String>,
    null: Option<String>,
    quote: Option<String>,
    escape: Option<String>,
    quotes_all: bool,
}

impl Given {
    fn take(&mut self, option: &[Token]) -> Option<()> {
        let [name, value @ ..] = option else { return None };
        let Kind::Word(name) = &name.kind else { return None };
        let value = match value {
            [] => None,
            [Token { kind: Kind::Word(text) | Kind::Text(text) | Kind::Number(text) | Kind::Quoted(text), .. }] => {
                Some(text.clone())
            }
            [star] if star.is_sign('*') => Some("*".to_owned()),
            _ => return None,
        };
        let format = |text: &str| match text.to_lowercase().as_str() {
            "text" => Some(CopyFormat::Text),
            "csv" => Some(CopyFormat::Csv),
            "binary" => Some(CopyFormat::Binary),
            _ => None,
        };
        match (name.as_str(), value) {
            ("format", Some(text)) => self.format = Some(format(&text)?),
            ("csv" | "binary" | "text", None) => self.format = format(name),
            ("header", None) => self.has_header = true,
            ("header", Some(text)) => self.has_header = matches!(text.as_str(), "true" | "on" | "1"),
            ("delimiter", Some(text)) => self.delimiter = Some(text),
            ("null", Some(text)) => self.null = Some(text),
            ("quote", Some(text)) => self.quote = Some(text),
            ("escape", Some(text)) => self.escape = Some(text),
            ("force_quote", Some(text)) if text == "*" => self.quotes_all = true,
            ("encoding", Some(text)) if matches!(text.to_lowercase().as_str(), "utf8" | "utf-8") => {}
            _ => return None,
        }
        Some(())
    }

    fn checked(self) -> Option<CopyOptions> {
        let format = self.format.unwrap_or(CopyFormat::Text);
        let is_csv = format == CopyFormat::Csv;
        let one = |text: Option<String>, default: u8| match text {
            None => Some(default),
            Some(text) => match text.as_bytes() {
                [one] if one.is_ascii() && !matches!(one, b'\n' | b'\r' | 0) => Some(*one),
                _ => None,
            },
        };
        if !is_csv && (self.quote.is_some() || self.escape.is_some() || self.quotes_all) {
            return None;
        }
        let has_texts = self.has_header || self.delimiter.is_some() || self.null.is_some();
        if format == CopyFormat::Binary && has_texts {
            return None;
        }
        let quote = one(self.quote, b'"')?;
        let delimiter = one(self.delimiter, if is_csv { b',' } else { b'\t' })?;
        let null = self.null.unwrap_or_else(|| if is_csv { String::new() } else { "\\N".to_owned() });
        let in_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.: ".contains(byte);
        let has_plain_null = !null.is_empty() && null.bytes().all(|byte| in_plain(&byte));
        Some(CopyOptions {
            format,
            has_header: self.has_header,
            quote,
            escape: one(self.escape, quote)?,
            quotes_all: self.quotes_all,
            spares_plain: !(self.quotes_all || has_plain_null || in_plain(&delimiter) || in_plain(&quote)),
            delimiter,
            null,
        })
    }
}

impl CopyOptions {
    /// The form of single values.
    pub(super) fn values(&self) -> Format {
        if self.format == CopyFormat::Binary { Format::Binary } else { Format::Text }
    }

    /// Writes the line with the columns' names.
    pub(super) fn header<'a>(&self, names: impl Iterator<Item = &'a str>, out: &mut BytesMut) {
        for (index, name) in names.enumerate() {
            if index > 0 {
                out.put_u8(self.delimiter);
            }
            self.text(name.as_bytes(), out);
        }
        out.put_u8(b'\n');
    }

    /// Writes one row. `scratch` is any buffer: values that are to be escaped are held there.
    pub(super) fn row(&self, columns: &[Column], row: usize, out: &mut BytesMut, scratch: &mut BytesMut) {
        if self.format == CopyFormat::Binary {
            out.put_i16(i16::try_from(columns.len()).unwrap_or(i16::MAX));
            for column in columns {
                column.put(row, Format::Binary, out);
            }
            return;
        }
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                out.put_u8(self.delimiter);
            }
            if column.is_null(row) {
                out.put_slice(self.null.as_bytes());
                continue;
            }
            // Most values stand as they are written.
            let start = out.len();
            column.write(row, Format::Text, out);
            if !(self.spares_plain && column.is_plain()) && self.is_special(&out[start..]) {
                scratch.clear();
                scratch.put_slice(&out[start..]);
                out.truncate(start);
                self.text(scratch, out);
            }
        }
        out.put_u8(b'\n');
    }

    /// True when a value must not stand as it is. Looks at all of it without an early end, which the processor does many bytes at
    /// a time.
    fn is_special(&self, value: &[u8]) -> bool {
        let (delimiter, quote) = (self.delimiter, self.quote);
        if self.format == CopyFormat::Csv {
            let is_special = |byte: u8| (byte == b'\n') | (byte == b'\r') | (byte == delimiter) | (byte == quote);
            // A line of its own that is `\.` ends a copy for some readers.
            return self.quotes_all
                || value == self.null.as_bytes()
                || value == b"\\."
                || value.iter().fold(false, |found, byte| found | is_special(*byte));
        }
        let is_special = |byte: u8| ((8..=13).contains(&byte)) | (byte == b'\\') | (byte == delimiter);
        value.iter().fold(false, |found, byte| found | is_special(*byte))
    }

    fn text(&self, value: &[u8], out: &mut BytesMut) {
        if !self.is_special(value) {
            out.put_slice(value);
            return;
        }
        if self.format == CopyFormat::Csv {
            out.put_u8(self.quote);
            for byte in value {
                if *byte == self.quote || *byte == self.escape {
                    out.put_u8(self.escape);
                }
                out.put_u8(*byte);
            }
            out.put_u8(self.quote);
            return;
        }
        for byte in value {
            let escaped = match byte {
                b'\\' => b'\\',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                8 => b'b',
                12 => b'f',
                11 => b'v',
                byte if *byte == self.delimiter => self.delimiter,
                byte => {
                    out.put_u8(*byte);
                    continue;
                }
            };
            out.put_slice(&[b'\\', escaped]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};

    use super::{super::lexer, *};

    fn of(text: &str) -> Option<CopyOptions> {
        options(&lexer::tokens(text))
    }

    #[test]
    fn numbers_and_times_are_escaped_where_they_must_be() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(-10), None]));
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, 0]));
        let columns = [Column::of(&numbers).unwrap(), Column::of(&times).unwrap()];
        for (options, expected) in [
            ("", "-10\t1970-01-01 00:00:00\n\\N\t1970-01-01 00:00:00\n"),
            ("(delimiter '1')", "-\\101\\1970-0\\1-0\\1 00:00:00\n\\N1\\1970-0\\1-0\\1 00:00:00\n"),
            ("csv", "-10,1970-01-01 00:00:00\n,1970-01-01 00:00:00\n"),
            ("csv delimiter ':'", "-10:\"1970-01-01 00:00:00\"\n:\"1970-01-01 00:00:00\"\n"),
            ("csv null '-10'", "\"-10\",1970-01-01 00:00:00\n-10,1970-01-01 00:00:00\n"),
            ("csv quote '-'", "---10-,-1970--01--01 00:00:00-\n,-1970--01--01 00:00:00-\n"),
            ("csv force quote *", "\"-10\",\"1970-01-01 00:00:00\"\n,\"1970-01-01 00:00:00\"\n"),
        ] {
            let (mut out, mut scratch) = (BytesMut::new(), BytesMut::new());
            for row in 0..2 {
                of(options).unwrap().row(&columns, row, &mut out, &mut scratch);
            }
            assert_eq!(String::from_utf8_lossy(&out), expected, "{options}");
        }
    }

    #[test]
    fn options_are_read_in_both_forms() {
        let csv = of("(format csv, header)").unwrap();
        assert_eq!(csv.format, CopyFormat::Csv);
        assert!(csv.has_header);
        assert_eq!(of("with csv header"), Some(csv.clone()));
        assert_eq!(of("csv header delimiter as ',' quote '\"' null ''"), Some(csv));
        assert_eq!(of("").unwrap().format, CopyFormat::Text);
        assert_eq!(of("WITH (FORMAT 'binary')").unwrap().format, CopyFormat::Binary);
        assert_eq!(of("binary").unwrap().format, CopyFormat::Binary);
        assert!(of("csv force quote *").unwrap().quotes_all);
        for bad in ["(format xml)", "(format binary, header)", "(delimiter ',,')", "(quote 'x')", "(", "nonsense", "()"]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_are_escaped_as_their_format_says() {
        let check = |options: &str, value: &str, expected: &str| {
            let mut out = BytesMut::new();
            of(options).unwrap().text(value.as_bytes(), &mut out);
            assert_eq!(out, expected.as_bytes(), "{options} {value}");
        };
        check("", "a\tb\\c\nd", "a\\tb\\\\c\\nd");
        check("(delimiter '|')", "a|b", "a\\|b");
        check("csv", "plain", "plain");
        check("csv", "a,b", "\"a,b\"");
        check("csv", "say \"hi\"", "\"say \"\"hi\"\"\"");
        check("csv", "", "\"\"");
        check("csv", "a\tb", "a\tb");
        check("csv", "\\.", "\"\\.\"");
        check("csv escape '\\'", "a\"b\\,", "\"a\\\"b\\\\,\"");
        check("csv force quote *", "x", "\"x\"");
    }
}
