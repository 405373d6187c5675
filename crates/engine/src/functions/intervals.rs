//! Intervals: making, multiplying, putting right.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, IntervalMonthDayNanoArray},
    datatypes::{DataType, Float64Type, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit},
};
use datafusion::{common::exec_err, error::Result, logical_expr::ScalarUDF};

use super::own::{Own, wrong_count};

/// What multiplies and divides intervals.
pub(super) const MULTIPLY: &str = "interval_multiply";
pub(super) const DIVIDE: &str = "interval_divide";
/// The arguments of `make_interval`, in their order.
pub(super) const MAKE_PARTS: [&str; 7] = ["years", "months", "weeks", "days", "hours", "mins", "secs"];

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const DAYS_PER_MONTH: i64 = 30;
const NANOS_PER_DAY: i64 = 86_400_000_000_000;
const SECONDS_PER_DAY: f64 = 86_400.0;

/// PostgreSQL's functions over intervals.
pub(super) fn udfs() -> Vec<ScalarUDF> {
    vec![
        Own::udf("make_interval", &[], make_types, |a, n, _| make(a, n)),
        Own::udf("justify_hours", &[], one, |a, n, _| each(a, n, hours)),
        Own::udf("justify_days", &[], one, |a, n, _| each(a, n, days)),
        Own::udf("justify_interval", &[], one, |a, n, _| each(a, n, both)),
        Own::udf(MULTIPLY, &[], with_number, |a, n, _| scaled(a, n, |part, number| part * number)),
        Own::udf(DIVIDE, &[], with_number, |a, n, _| divided(a, n)),
    ]
}

fn make_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    if given.is_empty() || given.len() > MAKE_PARTS.len() {
        return wrong_count(name, "years, months, weeks, days, hours, mins and secs");
    }
    let types = MAKE_PARTS[..given.len()].iter();
    Ok((types.map(|part| if *part == "secs" { DataType::Float64 } else { DataType::Int64 }).collect(), INTERVAL))
}

fn one(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    if given.len() == 1 { Ok((vec![INTERVAL], INTERVAL)) } else { wrong_count(name, "an interval") }
}

fn with_number(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    if given.len() == 2 {
        Ok((vec![INTERVAL, DataType::Float64], INTERVAL))
    } else {
        wrong_count(name, "an interval and a number")
    }
}

fn out_of_range<T>() -> Result<T> {
    exec_err!("an interval is out of range")
}

/// Errors: when a part is too large.
fn interval(months: Option<i64>, days: Option<i64>, nanos: Option<i64>) -> Result<IntervalMonthDayNano> {
    let small = |part: Option<i64>| part.and_then(|part| i32::try_from(part).ok());
    match (small(months), small(days), nanos) {
        (Some(months), Some(days), Some(nanos)) => Ok(IntervalMonthDayNano::new(months, days, nanos)),
        _ => out_of_range(),
    }
}

fn make(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let mut made = IntervalMonthDayNanoArray::builder(rows);
    for row in 0..rows {
        if args.iter().any(|arg| arg.is_null(row)) {
            made.append_null();
            continue;
        }
        let whole = |index: usize| args.get(index).map_or(0, |arg| arg.as_primitive::<Int64Type>().value(row));
        let seconds = args.get(6).map_or(0.0, |arg| arg.as_primitive::<Float64Type>().value(row));
        let months = whole(0).checked_mul(12).and_then(|months| months.checked_add(whole(1)));
        let days = whole(2).checked_mul(7).and_then(|days| days.checked_add(whole(3)));
        let minutes = whole(4).checked_mul(60).and_then(|minutes| minutes.checked_add(whole(5)));
        let nanos = minutes.and_then(|minutes| minutes.checked_mul(60_000_000_000));
        let nanos =
            nanos.zip(rounded(seconds * 1e6)).and_then(|(nanos, micros)| nanos.checked_add(micros.checked_mul(1_000)?));
        made.append_value(interval(months, days, nanos)?);
    }
    Ok(Arc::new(made.finish()))
}

#[allow(clippy::cast_possible_truncation, reason = "it is looked at first")]
fn rounded(number: f64) -> Option<i64> {
    (number.abs() < 9.2e18).then(|| number.round_ties_even() as i64)
}

type Justify = fn(IntervalMonthDayNano) -> Result<IntervalMonthDayNano>;

fn each(args: &[ArrayRef], rows: usize, justify: Justify) -> Result<ArrayRef> {
    let intervals = args[0].as_primitive::<IntervalMonthDayNanoType>();
    let justified = (0..rows).map(|row| intervals.is_valid(row).then(|| justify(intervals.value(row))).transpose());
    Ok(Arc::new(justified.collect::<Result<IntervalMonthDayNanoArray>>()?))
}

/// Whole ones taken out of the rest, and both of one sign.
fn carried(larger: i64, smaller: i64, size: i64) -> (i64, i64) {
    let (larger, smaller) = (larger + smaller / size, smaller % size);
    if larger > 0 && smaller < 0 {
        (larger - 1, smaller + size)
    } else if larger < 0 && smaller > 0 {
        (larger + 1, smaller - size)
    } else {
        (larger, smaller)
    }
}

fn hours(given: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let (days, nanos) = carried(given.days.into(), given.nanoseconds, NANOS_PER_DAY);
    interval(Some(given.months.into()), Some(days), Some(nanos))
}

fn days(given: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let (months, days) = carried(given.months.into(), given.days.into(), DAYS_PER_MONTH);
    interval(Some(months), Some(days), Some(given.nanoseconds))
}

fn both(given: IntervalMonthDayNano) -> Result<IntervalMonthDayNano> {
    let (mut months, mut days) = (i64::from(given.months), i64::from(given.days));
    let nanos = given.nanoseconds % NANOS_PER_DAY;
    days += given.nanoseconds / NANOS_PER_DAY;
    months += days / DAYS_PER_MONTH;
    days %= DAYS_PER_MONTH;
    if months > 0 && (days < 0 || days == 0 && nanos < 0) {
        (months, days) = (months - 1, days + DAYS_PER_MONTH);
    } else if months < 0 && (days > 0 || days == 0 && nanos > 0) {
        (months, days) = (months + 1, days - DAYS_PER_MONTH);
    }
    let (days, nanos) = carried(days, nanos, NANOS_PER_DAY);
    interval(Some(months), Some(days), Some(nanos))
}

/// A part of an interval and a number.
type Scale = fn(f64, f64) -> f64;

/// Errors: for a division by zero.
fn divided(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let numbers = args[1].as_primitive::<Float64Type>();
    if (0..rows).any(|row| args[0].is_valid(row) && numbers.is_valid(row) && numbers.value(row) == 0.0) {
        return exec_err!("division by zero");
    }
    // Not by one through the number, which is not exact.
    scaled(args, rows, |part, number| part / number)
}

fn scaled(args: &[ArrayRef], rows: usize, scale: Scale) -> Result<ArrayRef> {
    let (intervals, numbers) =
        (args[0].as_primitive::<IntervalMonthDayNanoType>(), args[1].as_primitive::<Float64Type>());
    let mut found = IntervalMonthDayNanoArray::builder(rows);
    for row in 0..rows {
        found.append_option(if intervals.is_valid(row) && numbers.is_valid(row) {
            Some(times(intervals.value(row), |part| scale(part, numbers.value(row)))?)
        } else {
            None
        });
    }
    Ok(Arc::new(found.finish()))
}

/// As PostgreSQL: parts of months become days of thirty, parts of days become time.
fn times(given: IntervalMonthDayNano, scaled: impl Fn(f64) -> f64) -> Result<IntervalMonthDayNano> {
    let micro = |number: f64| (number * 1e6).round_ties_even() / 1e6;
    let (months, days) = (scaled(given.months.into()), scaled(given.days.into()));
    let rest_days = micro((months - months.trunc()) * 30.0);
    let mut seconds = micro((days - days.trunc() + rest_days - rest_days.trunc()) * SECONDS_PER_DAY);
    let more_days = (seconds / SECONDS_PER_DAY).trunc();
    seconds -= more_days * SECONDS_PER_DAY;
    #[allow(clippy::cast_precision_loss, reason = "PostgreSQL computes with doubles too")]
    let micros = rounded(scaled(given.nanoseconds as f64 / 1e3) + seconds * 1e6);
    let days = rounded(days.trunc() + rest_days.trunc() + more_days);
    interval(rounded(months.trunc()), days, micros.and_then(|micros| micros.checked_mul(1_000)))
}
