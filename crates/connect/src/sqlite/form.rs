//! How a column of times is stored, and the bounds that compare with it.
//!
//! SQLite has no type for times: they are texts in some spelling, or seconds since 1970. A condition that an index can serve
//! must compare with the stored form itself, and that is right only when all rows have the same form. So it is taken from one
//! row and all others are held against it: once in full, later only those that were added since.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Timelike, Utc};
use sqlx::{AssertSqlSafe, Row, SqliteConnection, TypeInfo, ValueRef, sqlite::SqliteRow};

use crate::{
    column::shown,
    names::{literal, quote},
    parse,
    source::{By, Refused},
};

/// The form of a column's times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// Seconds since 1970, whole or not.
    EpochSecs,
    /// Days alone.
    Days,
    /// A day, a separator and a time of day, all with the same zone at their end, or all without.
    Times { separator: char, zone: Option<(String, i32)> },
}

/// 1973: smaller numbers are rather ids or counts, unless the column is declared to hold times.
const PLAUSIBLE_SECS_MIN: i64 = 100_000_000;

/// A column of times, and how SQL gets at its table's rows.
pub(super) struct TimeColumn<'a> {
    pub(super) table: &'a str,
    pub(super) column: &'a str,
    /// True when its declared type is one of times.
    pub(super) declared_time: bool,
    /// The name of the row's id, if the table has any.
    pub(super) rowid: Option<&'a str>,
}

/// What is known about a column's form.
#[derive(Debug, Clone)]
pub(super) struct KnownForm {
    form: Form,
    schema_version: i64,
    /// The greatest row id that was held against the form; none when the table has no row ids.
    checked_rowid: Option<i64>,
    /// How many rows have no time.
    pub(super) nulls: u64,
}

/// A bound to compare the stored values with.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bound {
    Secs(i64),
    Text(String),
}

impl Form {
    /// The form of one stored value.
    fn of(row: &SqliteRow) -> Result<Result<Option<Self>, Refused>, sqlx::Error> {
        let value = row.try_get_raw(0)?;
        if value.is_null() {
            return Ok(Ok(None));
        }
        let kind = value.type_info().name().to_owned();
        if kind == "INTEGER" || kind == "REAL" {
            return Ok(Ok(Some(Self::EpochSecs)));
        }
        let text = if kind == "TEXT" { row.try_get::<String, _>(0)? } else { "a blob".to_owned() };
        Ok(match Self::of_text(&text) {
            Some(form) => Ok(Some(form)),
            None => Err((
                format!("`{}` is not a time that can be read", shown(&text)),
                "times may be written as `2013-01-31T10:00:00Z`, `2013-01-31 10:00:00`, `2013-01-31` or in seconds since \
                 1970; make a view that writes them so, or import the whole table"
                    .to_owned(),
            )),
        })
    }

    fn of_text(text: &str) -> Option<Self> {
        let time = parse::timestamp(text)?;
        let Some(separator) = text[10..].chars().next() else { return Some(Self::Days) };
        let zone = time.offset_secs.map(|offset| {
            let at = text[11..].find(['Z', 'z', '+', '-']).map_or(text.len(), |n| n + 11);
            (text[at..].to_owned(), offset)
        });
        Some(Self::Times { separator, zone })
    }

    /// The condition that a stored value has this form. Numbers in a column that is not declared to hold times must look like
    /// times: ids do not.
    fn condition(&self, column: &str, declared_time: bool) -> String {
        const DAY: &str = "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]";
        match self {
            // Anything later than the year 9999 is most likely in milliseconds.
            Self::EpochSecs => {
                let least = if declared_time { -parse::EPOCH_SECS_MAX } else { PLAUSIBLE_SECS_MIN };
                format!(
                    "typeof({column}) IN ('integer', 'real') AND {column} BETWEEN {least} AND {}",
                    parse::EPOCH_SECS_MAX
                )
            }
            Self::Days => format!("typeof({column}) = 'text' AND {column} GLOB '{DAY}'"),
            Self::Times { separator, zone } => {
                let end = match zone {
                    Some((suffix, _)) => format!("GLOB {}", literal(&format!("*{suffix}"))),
                    None => "NOT GLOB '*[-+Zz]*'".to_owned(),
                };
                format!(
                    "typeof({column}) = 'text' AND {column} GLOB '{DAY}{separator}[0-2][0-9]:[0-5][0-9]*' \
                     AND substr({column}, 17) {end}"
                )
            }
        }
    }

    fn described(&self) -> String {
        match self {
            Self::EpochSecs => "seconds since 1970".to_owned(),
            Self::Days => "days as `2013-01-31`".to_owned(),
            Self::Times { separator, zone } => {
                let suffix = zone.as_ref().map_or("", |(suffix, _)| suffix);
                format!("times as `2013-01-31{separator}10:00:00{suffix}`")
            }
        }
    }

    /// The bounds of an interval in this form.
    pub(super) fn bounds(&self, by: &By) -> Result<(Bound, Bound), Refused> {
        let (start, end) = (by.interval.start(), by.interval.end());
        Ok(match self {
            Self::EpochSecs => (Bound::Secs(secs(start)), Bound::Secs(secs(end))),
            Self::Days => {
                let (start, end) = by.days()?;
                (Bound::Text(start.to_string()), Bound::Text(end.to_string()))
            }
            Self::Times { separator, zone } => {
                let clock = |instant: DateTime<Utc>| match zone {
                    Some((_, offset)) => instant.naive_utc() + TimeDelta::seconds(i64::from(*offset)),
                    None => instant.with_timezone(&by.zone).naive_local(),
                };
                (Bound::Text(shortest(clock(start), *separator)), Bound::Text(shortest(clock(end), *separator)))
            }
        })
    }
}

/// Seconds since 1970, rounded up.
fn secs(instant: DateTime<Utc>) -> i64 {
    instant.timestamp() + i64::from(instant.timestamp_subsec_nanos() > 0)
}

/// Writes a time with nothing at its end that is zero.
///
/// Stored times compare as texts. Whatever follows such a beginning, seconds, fractions or a zone, the stored text of that very
/// time is not less than it, and that of any earlier time is.
fn shortest(time: NaiveDateTime, separator: char) -> String {
    let micros = time.and_utc().timestamp_micros();
    let Some(mut text) = parse::timestamp_text(micros, separator) else { return time.to_string() };
    if time.nanosecond() == 0 {
        for zero in [":00", ":00"] {
            match text.strip_suffix(zero) {
                Some(shorter) => text.truncate(shorter.len()),
                None => return text,
            }
        }
        if time.hour() == 0 {
            text.truncate(10);
        }
    }
    text
}

/// Finds the form of a column and holds all rows against it that were not before.
///
/// The outer error is the database's. None when no row has a time, and then no row is in any interval.
pub(super) async fn find(
    db: &mut SqliteConnection,
    of: TimeColumn<'_>,
    schema_version: i64,
    known: Option<KnownForm>,
) -> Result<Result<Option<KnownForm>, Refused>, sqlx::Error> {
    let (table, name) = (quote(of.table), format!("{}.{}", quote(of.table), quote(of.column)));
    let rowid = of.rowid;
    let mut known = match known.filter(|k| k.schema_version == schema_version) {
        Some(known) if known.checked_rowid.is_none() => return Ok(Ok(Some(known))),
        Some(known) => known,
        None => {
            let sample = format!("SELECT {name} FROM {table} WHERE {name} IS NOT NULL LIMIT 1");
            let Some(row) = sqlx::query(AssertSqlSafe(sample)).fetch_optional(&mut *db).await? else {
                return Ok(Ok(None));
            };
            match Form::of(&row)? {
                Ok(Some(form)) => KnownForm { form, schema_version, checked_rowid: None, nulls: 0 },
                Ok(None) => return Ok(Ok(None)),
                Err(refused) => return Ok(Err(refused)),
            }
        }
    };
    let condition = known.form.condition(&name, of.declared_time);
    let last = rowid.map_or("NULL".to_owned(), |rowid| format!("max({table}.{rowid})"));
    let newer = match (rowid, known.checked_rowid) {
        (Some(rowid), Some(checked)) => format!(" WHERE {table}.{rowid} > {checked}"),
        _ => String::new(),
    };
    let check = format!(
        "SELECT count(*) FILTER (WHERE {name} IS NULL), \
         min(CASE WHEN {name} IS NOT NULL AND NOT ({condition}) THEN CAST({name} AS TEXT) END), {last} FROM {table}{newer}"
    );
    let row = sqlx::query(AssertSqlSafe(check)).fetch_one(&mut *db).await?;
    let (nulls, other, last): (i64, Option<String>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if let Some(other) = other {
        return Ok(Err((
            format!(
                "most of it holds {}, but some row has `{}`, and the two do not compare",
                known.form.described(),
                shown(&other)
            ),
            "write all rows in one form, or make a view that does, or import the whole table".to_owned(),
        )));
    }
    known.nulls += u64::try_from(nulls).unwrap_or(0);
    known.checked_rowid = last.or(known.checked_rowid);
    Ok(Ok(Some(known)))
}

impl KnownForm {
    pub(super) fn form(&self) -> &Form {
        &self.form
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use chrono_tz::{America::New_York, Tz};
    use headworks_domain::Interval;
    use proptest::prelude::*;

    use super::*;

    fn by(start: &str, end: &str, zone: Tz) -> By {
        let at = |s: &str| s.parse::<DateTime<Utc>>().unwrap();
        By { column: "c".into(), interval: Interval::new(at(start), at(end)).unwrap(), zone }
    }

    fn check(stored: &str, by: &By, expected: Option<(&str, &str)>) {
        let bounds = Form::of_text(stored).unwrap().bounds(by).ok();
        let expected = expected.map(|(a, b)| (Bound::Text(a.into()), Bound::Text(b.into())));
        assert_eq!(bounds, expected, "{stored}");
    }

    #[test]
    fn bounds_have_the_stored_form() {
        let day = by("2013-01-01T05:00:00Z", "2013-01-02T05:00:00Z", New_York);
        check("2013-06-01T00:00:00Z", &day, Some(("2013-01-01T05", "2013-01-02T05")));
        check("2013-06-01 00:00:00+00:00", &day, Some(("2013-01-01 05", "2013-01-02 05")));
        check("2013-06-01 00:00:00+05:30", &day, Some(("2013-01-01 10:30", "2013-01-02 10:30")));
        check("2013-06-01 00:00:00", &day, Some(("2013-01-01", "2013-01-02")));
        check("2013-06-01", &day, Some(("2013-01-01", "2013-01-02")));
        let hour = by("2013-01-01T05:00:00Z", "2013-01-01T06:00:00Z", New_York);
        check("2013-06-01T00:00", &hour, Some(("2013-01-01", "2013-01-01T01")));
        check("2013-06-01", &hour, None);
        assert_eq!(Form::EpochSecs.bounds(&hour).unwrap().0, Bound::Secs(1_357_016_400));
    }

    #[test]
    fn a_day_without_midnight_is_a_day() {
        let zone: Tz = "America/Sao_Paulo".parse().unwrap();
        let start = Utc.with_ymd_and_hms(2013, 10, 20, 3, 0, 0).unwrap();
        let end = Utc.with_ymd_and_hms(2013, 10, 21, 2, 0, 0).unwrap();
        let (first, last) =
            By { column: "c".into(), interval: Interval::new(start, end).unwrap(), zone }.days().unwrap();
        assert_eq!((first.to_string(), last.to_string()), ("2013-10-20".into(), "2013-10-21".into()));
    }

    proptest! {
        /// Texts compare with the bounds as their times do with the interval.
        #[test]
        fn texts_are_cut_as_times_are(
            start in 1_357_000_000_i64..1_357_200_000, length in 1_i64..100_000, time in 1_356_990_000_i64..1_357_310_000,
            step in prop::sample::select(vec![1_i64, 60, 3600]), fraction in 0_i64..2, style in 0_usize..5,
        ) {
            let (start, end) = (start / step * step, (start / step + length.div_euclid(step) + 1) * step);
            let at = |s| DateTime::from_timestamp(s, 0).unwrap();
            let by = By { column: "c".into(), interval: Interval::new(at(start), at(end)).unwrap(), zone: Tz::UTC };
            let offset = if style == 3 { -12_600 } else { 0 };
            let micros = (time + offset) * parse::MICROS + fraction * 500_000;
            let mut text = parse::timestamp_text(micros, if style == 1 { ' ' } else { 'T' }).unwrap();
            text.push_str(["Z", "", "+00:00", "-03:30", "+00"][style]);
            let form = Form::of_text(&text).unwrap();
            let (Bound::Text(low), Bound::Text(high)) = form.bounds(&by).unwrap() else { unreachable!() };
            prop_assert_eq!(text >= low && text < high, time >= start && time < end, "{} {} {}", text, low, high);
        }
    }
}
