//! Formats of dates as PostgreSQL (`YYYY-MM-DD HH24:MI`), MySQL and Presto (`%Y-%m-%d %H:%i`) write them.

use std::fmt::Write;

use chrono::{
    Datelike, NaiveDate, NaiveDateTime, NaiveTime,
    format::{Item, Parsed, StrftimeItems, parse},
};
use datafusion::{common::exec_err, error::Result};

/// Whose letters they are. A format of PostgreSQL's style that has a `%` is read as `strftime` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Postgres,
    MySql,
}

/// A format that was taken apart.
#[derive(Debug)]
pub(super) struct Format {
    written: String,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// Shown and read by chrono.
    Items(Vec<Item<'static>>),
    /// The same, but padded to nine places as PostgreSQL does, and in the case of its pattern.
    Name {
        items: Vec<Item<'static>>,
        case: Case,
        is_padded: bool,
    },
    Quarter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Asis,
    Upper,
    Lower,
}

/// PostgreSQL's patterns, the longest of those with the same beginning first. `FM` before one takes its padding away.
const POSTGRES: &[(&str, &str, &str)] = &[
    ("HH24", "%H", "%-H"),
    ("HH12", "%I", "%-I"),
    ("YYYY", "%Y", "%-Y"),
    ("IYYY", "%G", "%-G"),
    ("HH", "%I", "%-I"),
    ("MI", "%M", "%-M"),
    ("SS", "%S", "%-S"),
    ("MS", "%3f", "%3f"),
    ("US", "%6f", "%6f"),
    ("MM", "%m", "%-m"),
    ("DDD", "%j", "%-j"),
    ("DD", "%d", "%-d"),
    ("YY", "%y", "%-y"),
    ("IW", "%V", "%-V"),
    ("ID", "%u", "%u"),
    ("AM", "%p", "%p"),
    ("PM", "%p", "%p"),
    ("am", "%P", "%P"),
    ("pm", "%P", "%P"),
];

/// MySQL's letters that chrono has under another one.
const MYSQL: &[(char, &str)] = &[
    ('a', "%a"),
    ('b', "%b"),
    ('c', "%-m"),
    ('d', "%d"),
    ('e', "%-d"),
    ('f', "%6f"),
    ('H', "%H"),
    ('h', "%I"),
    ('I', "%I"),
    ('i', "%M"),
    ('j', "%j"),
    ('k', "%-H"),
    ('l', "%-I"),
    ('M', "%B"),
    ('m', "%m"),
    ('p', "%p"),
    ('r', "%I:%M:%S %p"),
    ('S', "%S"),
    ('s', "%S"),
    ('T', "%H:%M:%S"),
    ('v', "%V"),
    ('W', "%A"),
    ('w', "%w"),
    ('x', "%G"),
    ('Y', "%Y"),
    ('y', "%y"),
    ('%', "%%"),
];

impl Format {
    /// Errors: for what stands for nothing.
    pub(super) fn new(written: &str, style: Style) -> Result<Self> {
        let mut making = Making { pieces: Vec::new(), strftime: String::new() };
        match style {
            Style::Postgres if written.contains('%') => making.strftime.push_str(written),
            Style::Postgres => making.postgres(written)?,
            Style::MySql => making.mysql(written)?,
        }
        making.flush()?;
        Ok(Self { written: written.to_owned(), pieces: making.pieces })
    }

    /// Errors: for what a time without a zone does not have.
    pub(super) fn show(&self, time: NaiveDateTime) -> Result<String> {
        let mut shown = String::new();
        let written = self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Items(items) => write!(shown, "{}", time.format_with_items(items.iter())),
            Piece::Quarter => write!(shown, "{}", time.month0() / 3 + 1),
            Piece::Name { items, case, is_padded } => {
                let mut name = String::new();
                write!(name, "{}", time.format_with_items(items.iter()))?;
                let name = match case {
                    Case::Asis => name,
                    Case::Upper => name.to_uppercase(),
                    Case::Lower => name.to_lowercase(),
                };
                if *is_padded { write!(shown, "{name:<9}") } else { write!(shown, "{name}") }
            }
        });
        match written {
            Ok(()) => Ok(shown),
            Err(_) => exec_err!("`{}` asks for what a timestamp does not have", self.written),
        }
    }

    /// Reads a text. What the format does not name is the first: of January, of the month, midnight.
    pub(super) fn read(&self, text: &str) -> Result<NaiveDateTime> {
        let items: Vec<&Item<'_>> = self
            .pieces
            .iter()
            .flat_map(|piece| match piece {
                Piece::Items(items) | Piece::Name { items, .. } => items.as_slice(),
                Piece::Quarter => &[],
            })
            .collect();
        let mut parsed = Parsed::new();
        let found = match parse(&mut parsed, text.trim(), items.into_iter()) {
            Ok(()) => moment(parsed),
            Err(_) => None,
        };
        match found {
            Some(time) => Ok(time),
            None => exec_err!("cannot read '{text}' as a time of the format '{}'", self.written),
        }
    }
}

fn moment(mut parsed: Parsed) -> Option<NaiveDateTime> {
    if let Ok(time) = parsed.to_datetime() {
        return Some(time.naive_utc());
    }
    let has_day = parsed.ordinal().is_some() || parsed.isoweek().is_some();
    if parsed.month().is_none() && !has_day {
        parsed.set_month(1).ok()?;
    }
    if parsed.day().is_none() && !has_day {
        parsed.set_day(1).ok()?;
    }
    let day: NaiveDate = parsed.to_naive_date().ok()?;
    if parsed.hour_mod_12().is_none() {
        return Some(day.and_time(NaiveTime::MIN));
    }
    if parsed.hour_div_12().is_none() {
        parsed.set_ampm(false).ok()?;
    }
    if parsed.minute().is_none() {
        parsed.set_minute(0).ok()?;
    }
    Some(day.and_time(parsed.to_naive_time().ok()?))
}

struct Making {
    pieces: Vec<Piece>,
    strftime: String,
}

impl Making {
    fn flush(&mut self) -> Result<()> {
        if !self.strftime.is_empty() {
            let items = items(&self.strftime)?;
            self.pieces.push(Piece::Items(items));
            self.strftime.clear();
        }
        Ok(())
    }

    fn literal(&mut self, text: char) {
        if text == '%' {
            self.strftime.push('%');
        }
        self.strftime.push(text);
    }

    fn name(&mut self, strftime: &str, case: Case, is_padded: bool) -> Result<()> {
        self.flush()?;
        self.pieces.push(Piece::Name { items: items(strftime)?, case, is_padded });
        Ok(())
    }

    fn postgres(&mut self, written: &str) -> Result<()> {
        let mut rest = written;
        while let Some(next) = rest.chars().next() {
            if let Some((quoted, after)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                quoted.chars().for_each(|letter| self.literal(letter));
                rest = after;
                continue;
            }
            let is_short = rest.starts_with("FM");
            let pattern = if is_short { &rest[2..] } else { rest };
            if let Some(after) = self.postgres_name(pattern, is_short)? {
                rest = after;
                continue;
            }
            let found = POSTGRES.iter().find(|(name, ..)| {
                pattern.get(..name.len()).is_some_and(|start| {
                    if name.ends_with(['M', 'm']) && name.len() == 2 && *name != "MM" {
                        start == *name
                    } else {
                        start.eq_ignore_ascii_case(name)
                    }
                })
            });
            match found {
                Some((name, padded, short)) => {
                    self.strftime.push_str(if is_short { short } else { padded });
                    rest = &pattern[name.len()..];
                }
                None if pattern.starts_with(['Q', 'q']) => {
                    self.flush()?;
                    self.pieces.push(Piece::Quarter);
                    rest = &pattern[1..];
                }
                None => {
                    self.literal(next);
                    rest = &rest[next.len_utf8()..];
                }
            }
        }
        Ok(())
    }

    /// `Month`, `MON`, `day` and their like.
    fn postgres_name<'a>(&mut self, pattern: &'a str, is_short: bool) -> Result<Option<&'a str>> {
        for (name, strftime, is_padded) in [("month", "%B", true), ("mon", "%b", false), ("day", "%A", true)] {
            if let Some(start) = pattern.get(..name.len()).filter(|start| start.eq_ignore_ascii_case(name)) {
                let case = match start.as_bytes() {
                    [first, second, ..] if first.is_ascii_uppercase() && second.is_ascii_uppercase() => Case::Upper,
                    [first, ..] if first.is_ascii_lowercase() => Case::Lower,
                    _ => Case::Asis,
                };
                self.name(strftime, case, is_padded && !is_short)?;
                return Ok(Some(&pattern[name.len()..]));
            }
        }
        for (name, case) in [("Dy", Case::Asis), ("DY", Case::Upper), ("dy", Case::Lower)] {
            if let Some(after) = pattern.strip_prefix(name) {
                self.name("%a", case, false)?;
                return Ok(Some(after));
            }
        }
        Ok(None)
    }

    fn mysql(&mut self, written: &str) -> Result<()> {
        let mut letters = written.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                self.literal(letter);
                continue;
            }
            let Some(letter) = letters.next() else { return exec_err!("the format '{written}' ends in a `%`") };
            match MYSQL.iter().find(|(known, _)| *known == letter) {
                Some((_, strftime)) => self.strftime.push_str(strftime),
                None => return exec_err!("`%{letter}` stands for nothing in the format '{written}'"),
            }
        }
        Ok(())
    }
}

fn items(strftime: &str) -> Result<Vec<Item<'static>>> {
    StrftimeItems::new(strftime).parse_to_owned().or_else(|_| exec_err!("`{strftime}` is not a format for dates"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_show_and_read() {
        let time: NaiveDateTime = "2020-02-03T04:05:06.789".parse().unwrap();
        let check = |style, format: &str, expected: &str| {
            assert_eq!(Format::new(format, style).unwrap().show(time).unwrap(), expected, "{format}");
        };
        check(Style::Postgres, "YYYY-MM-DD HH24:MI:SS.MS", "2020-02-03 04:05:06.789");
        check(Style::Postgres, "Mon DD, YYYY", "Feb 03, 2020");
        check(Style::Postgres, "Month|FMMonth|MONTH", "February |February|FEBRUARY ");
        check(Style::Postgres, "FMDD.FMMM.YY HH12 AM \"YYYY\"", "3.2.20 04 AM YYYY");
        check(Style::Postgres, "IYYY-IW Q DDD Dy", "2020-06 1 034 Mon");
        check(Style::Postgres, "yyyy-mm-dd\"T\"hh24:mi", "2020-02-03T04:05");
        check(Style::Postgres, "%Y/%m", "2020/02");
        check(Style::MySql, "%Y-%m-%d %H:%i:%s.%f", "2020-02-03 04:05:06.789000");
        check(Style::MySql, "%W %M %e %l%p 100%%", "Monday February 3 4AM 100%");
        assert!(Format::new("%Q", Style::MySql).is_err());
        assert!(Format::new("%", Style::MySql).is_err());
        let read = |style, format: &str, text: &str| {
            Format::new(format, style).unwrap().read(text).map(|time| time.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(read(Style::Postgres, "DD/MM/YYYY", "02/01/2020").unwrap(), "2020-01-02 00:00:00");
        assert_eq!(
            read(Style::Postgres, "DD Mon YYYY HH12:MI PM", "02 Jan 2020 03:04 PM").unwrap(),
            "2020-01-02 15:04:00"
        );
        assert_eq!(read(Style::MySql, "%Y-%m", "2020-07").unwrap(), "2020-07-01 00:00:00");
        assert_eq!(read(Style::MySql, "%Y-%m-%d %H", "2020-07-08 23").unwrap(), "2020-07-08 23:00:00");
        assert_eq!(
            read(Style::Postgres, "%Y-%m-%d %H:%M %z", "2020-07-08 02:00 +0200").unwrap(),
            "2020-07-08 00:00:00"
        );
        assert!(read(Style::MySql, "%Y-%m-%d", "yesterday").unwrap_err().contains("cannot read 'yesterday'"));
    }
}
