use std::{str::FromStr, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, Date32Array, Int64Array, IntervalMonthDayNanoArray, PrimitiveArray, StringArray,
        timezone::Tz,
    },
    datatypes::{
        DataType, Date32Type, Int64Type, IntervalMonthDayNano, IntervalUnit, TimeUnit, TimestampMicrosecondType,
    },
};
use chrono::{DateTime, Datelike, Months, NaiveDateTime, Offset, TimeDelta, TimeZone};
use datafusion::{
    common::{exec_err, plan_err},
    error::{DataFusionError, Result},
    logical_expr::ScalarUDF,
};

use super::{
    formats::{Format, Style},
    numerals,
    own::{Memo, Own, Texts, text_type, time_type, wrong_count},
};

/// All functions over dates and times.
pub(super) fn udfs() -> Vec<ScalarUDF> {
    vec![
        Own::udf("date_add", &["dateadd"], add_types, add),
        Own::udf("date_diff", &[], difference_types, |a, n, _| differences(a, n, Unit::whole)),
        Own::udf("datediff", &[], difference_types, |a, n, _| differences(a, n, Unit::borders)),
        Own::udf("age", &[], age_types, ages),
        Own::udf("timezone", &[], zone_types, in_zone),
        Own::udf("to_char", &[], any_show_types, |a, n, _| {
            if a[0].data_type().is_numeric() { numerals::show(a, n) } else { show(a, n, Style::Postgres) }
        }),
        Own::udf("date_format", &[], show_types, |a, n, _| show(a, n, Style::MySql)),
        Own::udf("date_parse", &[], read_types, |a, n, _| read(a, n, Style::MySql)),
        Own::udf("to_timestamp_format", &[], read_types, |a, n, _| read(a, n, Style::Postgres)),
    ]
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Microsecond,
    Millisecond,
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

impl FromStr for Unit {
    type Err = DataFusionError;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.trim().to_ascii_lowercase();
        Ok(match lower.strip_suffix('s').filter(|one| one.len() > 2).unwrap_or(&lower) {
            "microsecond" | "us" => Self::Microsecond,
            "millisecond" | "ms" => Self::Millisecond,
            "second" | "sec" | "s" => Self::Second,
            "minute" | "min" | "mi" => Self::Minute,
            "hour" | "hr" | "h" => Self::Hour,
            "day" | "d" => Self::Day,
            "week" | "w" => Self::Week,
            "month" | "mon" => Self::Month,
            "quarter" | "qtr" => Self::Quarter,
            "year" | "yr" | "y" => Self::Year,
            _ => {
                return plan_err!(
                    "`{text}` is no unit of time: there are microsecond, millisecond, second, minute, hour, day, week, \
                     month, quarter, year"
                );
            }
        })
    }
}

impl Unit {
    /// Microseconds of a unit that always takes as long.
    fn micros(self) -> Option<i64> {
        Some(match self {
            Self::Microsecond => 1,
            Self::Millisecond => 1_000,
            Self::Second => 1_000_000,
            Self::Minute => 60_000_000,
            Self::Hour => 3_600_000_000,
            Self::Day => 86_400_000_000,
            Self::Week => 7 * 86_400_000_000,
            Self::Month | Self::Quarter | Self::Year => return None,
        })
    }

    /// Months of a unit that does not.
    fn months(self) -> i64 {
        match self {
            Self::Year => 12,
            Self::Quarter => 3,
            _ => 1,
        }
    }

    fn add(self, time: NaiveDateTime, count: i64) -> Option<NaiveDateTime> {
        match self.micros() {
            Some(micros) => time.checked_add_signed(TimeDelta::microseconds(micros.checked_mul(count)?)),
            None => add_months(time, count.checked_mul(self.months())?),
        }
    }

    /// How many whole units lie between two times.
    fn whole(self, from: NaiveDateTime, to: NaiveDateTime) -> Option<i64> {
        match self.micros() {
            Some(micros) => Some((to - from).num_microseconds()? / micros),
            None => Some(whole_months(from, to)? / self.months()),
        }
    }

    /// How often a unit begins between two times; weeks begin on Mondays.
    fn borders(self, from: NaiveDateTime, to: NaiveDateTime) -> Option<i64> {
        // The first of January 1970 was a Thursday.
        let shift = if self == Self::Week { 3 * 86_400_000_000 } else { 0 };
        let number = |time: NaiveDateTime| match self.micros() {
            Some(micros) => (time.and_utc().timestamp_micros() + shift).div_euclid(micros),
            None => month_number(time).div_euclid(self.months()),
        };
        Some(number(to) - number(from))
    }
}

fn month_number(time: NaiveDateTime) -> i64 {
    i64::from(time.year()) * 12 + i64::from(time.month0())
}

/// The last day of the month when it has no such day.
fn add_months(time: NaiveDateTime, count: i64) -> Option<NaiveDateTime> {
    let months = Months::new(u32::try_from(count.unsigned_abs()).ok()?);
    if count < 0 { time.checked_sub_months(months) } else { time.checked_add_months(months) }
}

fn whole_months(from: NaiveDateTime, to: NaiveDateTime) -> Option<i64> {
    let months = month_number(to) - month_number(from);
    let reached = add_months(from, months)?;
    if months > 0 && reached > to {
        return Some(months - 1);
    }
    Some(if months < 0 && reached < to { months + 1 } else { months })
}

fn add_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [unit, _, time] = given else { return wrong_count(name, "a unit, a number and a date or timestamp") };
    let time = if *time == DataType::Date32 { DataType::Date32 } else { time_type(name, time)? };
    Ok((vec![text_type(name, unit)?, DataType::Int64, time.clone()], time))
}

fn add(args: &[ArrayRef], rows: usize, returns: &DataType) -> Result<ArrayRef> {
    let (units, counts) = (Texts::of(&args[0])?, args[1].as_primitive::<Int64Type>());
    let mut memo = Memo::new();
    let mut sum = |row: usize, time: NaiveDateTime| -> Result<Option<NaiveDateTime>> {
        let Some(unit) = units.get(row) else { return Ok(None) };
        let unit = *memo.get(unit, str::parse::<Unit>)?;
        if args[1].is_null(row) {
            return Ok(None);
        }
        let is_small = unit.micros().is_some_and(|micros| micros < 86_400_000_000);
        if is_small && *returns == DataType::Date32 {
            return plan_err!("a date has no time of day to add to; cast it to timestamp");
        }
        match unit.add(time, counts.value(row)) {
            Some(sum) => Ok(Some(sum)),
            None => exec_err!("`date_add` leads out of the range of dates"),
        }
    };
    if *returns == DataType::Date32 {
        let days = args[2].as_primitive::<Date32Type>();
        let mut sums = Date32Array::builder(rows);
        for row in 0..rows {
            let time = if days.is_valid(row) { Date32Type::to_naive_date_opt(days.value(row)) } else { None };
            let sum = time.map(|day| sum(row, day.into())).transpose()?.flatten();
            sums.append_option(sum.map(|sum| Date32Type::from_naive_date(sum.date())));
        }
        return Ok(Arc::new(sums.finish()));
    }
    let times = args[2].as_primitive::<TimestampMicrosecondType>();
    let mut sums = PrimitiveArray::<TimestampMicrosecondType>::builder(rows);
    for row in 0..rows {
        let sum = time(times, row).map(|time| sum(row, time)).transpose()?.flatten();
        sums.append_option(sum.map(micros));
    }
    Ok(Arc::new(sums.finish().with_data_type(returns.clone())))
}

fn time(times: &PrimitiveArray<TimestampMicrosecondType>, row: usize) -> Option<NaiveDateTime> {
    if times.is_null(row) {
        return None;
    }
    DateTime::from_timestamp_micros(times.value(row)).map(|time| time.naive_utc())
}

fn micros(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp_micros()
}

fn difference_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [unit, from, to] = given else { return wrong_count(name, "a unit and two dates or timestamps") };
    Ok((vec![text_type(name, unit)?, plain_time(name, from)?, plain_time(name, to)?], DataType::Int64))
}

fn plain_time(name: &str, given: &DataType) -> Result<DataType> {
    time_type(name, given)?;
    Ok(DataType::Timestamp(TimeUnit::Microsecond, None))
}

type Between = fn(Unit, NaiveDateTime, NaiveDateTime) -> Option<i64>;

fn differences(args: &[ArrayRef], rows: usize, between: Between) -> Result<ArrayRef> {
    let units = Texts::of(&args[0])?;
    let (from, to) =
        (args[1].as_primitive::<TimestampMicrosecondType>(), args[2].as_primitive::<TimestampMicrosecondType>());
    let mut found = Int64Array::builder(rows);
    let mut memo = Memo::new();
    for row in 0..rows {
        found.append_option(match (units.get(row), time(from, row), time(to, row)) {
            (Some(unit), Some(from), Some(to)) => between(*memo.get(unit, str::parse)?, from, to),
            _ => None,
        });
    }
    Ok(Arc::new(found.finish()))
}

fn age_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [to, from] = given else { return wrong_count(name, "one or two timestamps") };
    Ok((vec![plain_time(name, to)?, plain_time(name, from)?], DataType::Interval(IntervalUnit::MonthDayNano)))
}

fn ages(args: &[ArrayRef], rows: usize, _: &DataType) -> Result<ArrayRef> {
    let (to, from) =
        (args[0].as_primitive::<TimestampMicrosecondType>(), args[1].as_primitive::<TimestampMicrosecondType>());
    let age = |row| age(time(to, row)?, time(from, row)?);
    Ok(Arc::new((0..rows).map(age).collect::<IntervalMonthDayNanoArray>()))
}

/// Months first, then days, then time, as PostgreSQL counts.
fn age(to: NaiveDateTime, from: NaiveDateTime) -> Option<IntervalMonthDayNano> {
    let months = whole_months(from, to)?;
    let rest = to - add_months(from, months)?;
    let days = rest.num_days();
    let nanos = (rest - TimeDelta::days(days)).num_nanoseconds()?;
    Some(IntervalMonthDayNano::new(i32::try_from(months).ok()?, i32::try_from(days).ok()?, nanos))
}

fn zone_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [zone, time] = given else { return wrong_count(name, "a time zone and a timestamp") };
    let time = time_type(name, time)?;
    let zone_after = match &time {
        DataType::Timestamp(_, Some(_)) => None,
        _ => Some("UTC".into()),
    };
    Ok((vec![text_type(name, zone)?, time], DataType::Timestamp(TimeUnit::Microsecond, zone_after)))
}

/// What the clocks of a zone show at a time, or the time at which they show it.
fn in_zone(args: &[ArrayRef], rows: usize, returns: &DataType) -> Result<ArrayRef> {
    let (zones, times) = (Texts::of(&args[0])?, args[1].as_primitive::<TimestampMicrosecondType>());
    let is_absolute = matches!(args[1].data_type(), DataType::Timestamp(_, Some(_)));
    let mut memo = Memo::new();
    let mut found = PrimitiveArray::<TimestampMicrosecondType>::builder(rows);
    for row in 0..rows {
        let moved = match (zones.get(row), time(times, row)) {
            (Some(zone), Some(time)) => {
                let zone = *memo.get(zone, zone_of)?;
                Some(if is_absolute { local(zone, time)? } else { absolute(zone, time)? })
            }
            _ => None,
        };
        found.append_option(moved.map(micros));
    }
    Ok(Arc::new(found.finish().with_data_type(returns.clone())))
}

pub(super) fn zone_of(name: &str) -> Result<Tz> {
    name.parse().or_else(|_| exec_err!("`{name}` is no time zone; write one as 'Europe/Berlin' or '+02:00'"))
}

/// Errors: for a time so near the end of all that there is none in the zone.
pub(super) fn local(zone: Tz, time: NaiveDateTime) -> Result<NaiveDateTime> {
    let offset = zone.offset_from_utc_datetime(&time).fix();
    time.checked_add_offset(offset).map_or_else(out_of_range, Ok)
}

/// The first of two times when clocks were set back; in an hour that was left out, as if they had not been set.
/// Errors: as of `local`.
fn absolute(zone: Tz, time: NaiveDateTime) -> Result<NaiveDateTime> {
    if let Some(found) = zone.from_local_datetime(&time).earliest() {
        return Ok(found.naive_utc());
    }
    let day_before = time.checked_sub_signed(TimeDelta::days(1));
    let before = day_before.map(|day| zone.offset_from_utc_datetime(&day).fix());
    before.and_then(|before| time.checked_sub_offset(before)).map_or_else(out_of_range, Ok)
}

fn out_of_range<T>() -> Result<T> {
    exec_err!("a time is out of range in its zone")
}

fn any_show_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    match given {
        [number, format] if number.is_numeric() => Ok((vec![number.clone(), text_type(name, format)?], DataType::Utf8)),
        _ => show_types(name, given),
    }
}

fn show_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [time, format] = given else { return wrong_count(name, "a date or timestamp, and a format") };
    if time.is_numeric() {
        return plan_err!("`{name}` shows dates and timestamps; for numbers use `to_char`");
    }
    Ok((vec![time_type(name, time)?, text_type(name, format)?], DataType::Utf8))
}

fn show(args: &[ArrayRef], rows: usize, style: Style) -> Result<ArrayRef> {
    let (times, formats) = (args[0].as_primitive::<TimestampMicrosecondType>(), Texts::of(&args[1])?);
    let zone = match args[0].data_type() {
        DataType::Timestamp(_, Some(zone)) => Some(zone_of(zone)?),
        _ => None,
    };
    let mut memo = Memo::new();
    let mut shown = Vec::with_capacity(rows);
    for row in 0..rows {
        shown.push(match (time(times, row), formats.get(row)) {
            (Some(time), Some(format)) => {
                let format = memo.get(format, |format| Format::new(format, style))?;
                let time = zone.map_or(Ok(time), |zone| local(zone, time))?;
                Some(format.show(time)?)
            }
            _ => None,
        });
    }
    Ok(Arc::new(StringArray::from(shown)))
}

fn read_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [text, format] = given else { return wrong_count(name, "a text and a format") };
    let types = vec![text_type(name, text)?, text_type(name, format)?];
    Ok((types, DataType::Timestamp(TimeUnit::Microsecond, None)))
}

fn read(args: &[ArrayRef], rows: usize, style: Style) -> Result<ArrayRef> {
    let (texts, formats) = (Texts::of(&args[0])?, Texts::of(&args[1])?);
    let mut memo = Memo::new();
    let mut found = PrimitiveArray::<TimestampMicrosecondType>::builder(rows);
    for row in 0..rows {
        found.append_option(match (texts.get(row), formats.get(row)) {
            (Some(text), Some(format)) => {
                Some(micros(memo.get(format, |format| Format::new(format, style))?.read(text)?))
            }
            _ => None,
        });
    }
    Ok(Arc::new(found.finish()))
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        match text.parse::<NaiveDate>() {
            Ok(day) => day.into(),
            Err(_) => text.parse().unwrap(),
        }
    }

    #[test]
    fn differences_count_whole_units_or_borders() {
        let check = |unit: &str, from: &str, to: &str, whole: i64, borders: i64| {
            let unit: Unit = unit.parse().unwrap();
            assert_eq!(unit.whole(at(from), at(to)), Some(whole), "{from} {to}");
            assert_eq!(unit.borders(at(from), at(to)), Some(borders), "{from} {to}");
        };
        check("day", "2020-01-01T23:00:00", "2020-01-02T01:00:00", 0, 1);
        check("day", "2020-01-02", "2020-01-01", -1, -1);
        check("month", "2020-01-31", "2020-02-29", 1, 1);
        check("month", "2020-01-15", "2020-02-14", 0, 1);
        check("month", "2020-02-14", "2020-01-15", 0, -1);
        check("years", "2019-12-31", "2020-01-01", 0, 1);
        // A Sunday and the Monday after it.
        check("week", "2020-01-05", "2020-01-06", 0, 1);
        check("quarter", "2020-01-01", "2020-07-01", 2, 2);
    }

    #[test]
    fn months_keep_within_their_end() {
        let add = |unit: &str, day: &str, n| unit.parse::<Unit>().unwrap().add(at(day), n);
        assert_eq!(add("month", "2020-01-31", 1), Some(at("2020-02-29")));
        assert_eq!(add("year", "2020-02-29", -1), Some(at("2019-02-28")));
        assert_eq!(add("day", "2020-02-29", i64::MAX), None);
        assert_eq!(add("year", "2020-02-29", i64::MAX), None);
    }

    #[test]
    fn clocks_that_are_set_are_followed() {
        let berlin = zone_of("Europe/Berlin").unwrap();
        assert_eq!(local(berlin, at("2020-07-01T10:00:00")).unwrap(), at("2020-07-01T12:00:00"));
        assert_eq!(absolute(berlin, at("2020-01-01T12:00:00")).unwrap(), at("2020-01-01T11:00:00"));
        // From two to three nothing was shown, and from two to three everything twice.
        assert_eq!(absolute(berlin, at("2020-03-29T02:30:00")).unwrap(), at("2020-03-29T01:30:00"));
        assert_eq!(absolute(berlin, at("2020-10-25T02:30:00")).unwrap(), at("2020-10-25T00:30:00"));
    }
}
