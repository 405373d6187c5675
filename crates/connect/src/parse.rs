//! Exact readings of values written as text, and the other way round. Each gives none rather than something near.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Timelike};

/// Seconds per day.
pub(crate) const DAY_SECS: i64 = 86_400;
/// Microseconds per second.
pub(crate) const MICROS: i64 = 1_000_000;
/// Microseconds per day.
pub(crate) const DAY_MICROS: i64 = DAY_SECS * MICROS;
/// 9999-12-31T23:59:59Z: later epoch seconds are most likely milliseconds.
pub(crate) const EPOCH_SECS_MAX: i64 = 253_402_300_799;

const EPOCH: NaiveDate = match NaiveDate::from_ymd_opt(1970, 1, 1) {
    Some(date) => date,
    None => unreachable!(),
};

/// A time as written: microseconds since 1970 by its own clock, and that clock's offset from UTC in seconds if it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrittenTime {
    pub(crate) micros: i64,
    pub(crate) offset_secs: Option<i32>,
}

/// Reads `2013-01-31` as days since 1970.
pub(crate) fn date(text: &str) -> Option<i32> {
    let b = text.as_bytes();
    if b.len() != 10 || b[4] != b'-' || b[7] != b'-' {
        return None;
    }
    let date = NaiveDate::from_ymd_opt(number(&b[..4])? as i32, number(&b[5..7])?, number(&b[8..])?)?;
    i32::try_from(date.signed_duration_since(EPOCH).num_days()).ok()
}

/// Reads `10:20`, `10:20:30` or `10:20:30.123456` as microseconds; never 24:00, which no time of day holds.
pub(crate) fn time(text: &str) -> Option<i64> {
    let (micros, rest) = time_prefix(text.as_bytes())?;
    rest.is_empty().then_some(micros)
}

/// Reads a day and a time with `T` or a space between them, with or without a zone at the end (`Z`, `+05`, `+05:30`, `+0530`).
/// A day alone is its midnight.
pub(crate) fn timestamp(text: &str) -> Option<WrittenTime> {
    let b = text.as_bytes();
    let days = i64::from(date(text.get(..10)?)?);
    if b.len() == 10 {
        return Some(WrittenTime { micros: days * DAY_MICROS, offset_secs: None });
    }
    if !matches!(b[10], b'T' | b' ' | b't') {
        return None;
    }
    let (micros, rest) = time_prefix(&b[11..])?;
    Some(WrittenTime { micros: days * DAY_MICROS + micros, offset_secs: offset(rest)? })
}

fn time_prefix(b: &[u8]) -> Option<(i64, &[u8])> {
    if b.len() < 5 || b[2] != b':' {
        return None;
    }
    let (hour, minute) = (number(&b[..2])?, number(&b[3..5])?);
    let (second, rest) = match &b[5..] {
        [b':', s1, s2, rest @ ..] => (number(&[*s1, *s2])?, rest),
        rest => (0, rest),
    };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (fraction, rest) = match rest {
        [b'.', digits @ ..] => {
            let n = digits.iter().take_while(|c| c.is_ascii_digit()).count();
            (fraction(&digits[..n])?, &digits[n..])
        }
        rest => (0, rest),
    };
    Some((i64::from(hour * 3600 + minute * 60 + second) * MICROS + fraction, rest))
}

/// Reads digits after the point as microseconds; none when there are none, or finer ones that are not zero.
fn fraction(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.iter().skip(6).any(|d| *d != b'0') {
        return None;
    }
    Some((0..6).fold(0, |sum, i| sum * 10 + i64::from(digits.get(i).map_or(0, |d| d - b'0'))))
}

fn offset(b: &[u8]) -> Option<Option<i32>> {
    let sign = match b {
        [] => return Some(None),
        [b'Z' | b'z'] => return Some(Some(0)),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    let (hours, minutes) = match &b[1..] {
        [h1, h2] => (number(&[*h1, *h2])?, 0),
        [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => (number(&[*h1, *h2])?, number(&[*m1, *m2])?),
        _ => return None,
    };
    (hours <= 15 && minutes <= 59).then_some(Some(sign * (hours * 3600 + minutes * 60) as i32))
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, d| d.is_ascii_digit().then(|| sum * 10 + u32::from(d - b'0')))
}

/// Reads a decimal, as `-12.50` or `1.5e3`, as a whole number of 10^-scale; none when it has finer digits or too many.
pub(crate) fn decimal(text: &str, digits_max: u8, scale: i8) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((m, e)) => (m, e.parse::<i32>().ok().filter(|e| e.abs() < 10_000)?),
        None => (text, 0),
    };
    let (negative, unsigned) = match mantissa.as_bytes().first()? {
        b'-' => (true, &mantissa[1..]),
        b'+' => (false, &mantissa[1..]),
        _ => (false, mantissa),
    };
    let (whole, part) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let mut value = 0_i128;
    let mut shift = i32::from(scale) + exponent - i32::try_from(part.len()).ok()?;
    // Zeros at the end go first, so that `1.50` fits one digit after the point.
    let all: Vec<u8> = whole.bytes().chain(part.bytes()).collect();
    let kept = all.len() - all.iter().rev().take_while(|d| **d == b'0').count();
    shift += i32::try_from(all.len() - kept).ok()?;
    for d in &all[..kept] {
        if !d.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(i128::from(d - b'0'))?;
    }
    if value != 0 {
        let factor = 10_i128.checked_pow(u32::try_from(shift).ok()?)?;
        value = value.checked_mul(factor)?;
    }
    fits(value, digits_max).then_some(if negative { -value } else { value })
}

/// True when the number has at most so many digits.
pub(crate) fn fits(value: i128, digits_max: u8) -> bool {
    match 10_i128.checked_pow(u32::from(digits_max)) {
        Some(limit) => value > -limit && value < limit,
        None => true,
    }
}

/// Reads a truth value as SQLite's users write it.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Some(true),
        "false" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a float; the words that Rust takes for infinity are not numbers here, except `inf`, `-inf` and `nan` themselves.
pub(crate) fn float(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    // `1e999` would become infinity in silence.
    (value.is_finite() || !text.bytes().any(|c| c.is_ascii_digit())).then_some(value)
}

/// Writes a day, as `2013-01-31`; years outside of 0 to 9999 have a sign.
pub(crate) fn date_text(days: i32) -> Option<String> {
    let date = EPOCH.checked_add_signed(chrono::TimeDelta::try_days(i64::from(days))?)?;
    Some(date.format("%Y-%m-%d").to_string())
}

/// Writes a time, as `2013-01-31T10:00:00` with as many digits of the second as it has.
pub(crate) fn timestamp_text(micros: i64, separator: char) -> Option<String> {
    let time: NaiveDateTime = DateTime::from_timestamp_micros(micros)?.naive_utc();
    Some(format!("{}{separator}{}", time.format("%Y-%m-%d"), clock_text(time.num_seconds_from_midnight(), micros)))
}

/// Writes a time of day, as `10:00:00`.
pub(crate) fn time_text(micros: i64) -> Option<String> {
    (0..DAY_MICROS).contains(&micros).then(|| clock_text((micros / MICROS) as u32, micros))
}

fn clock_text(seconds: u32, micros: i64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match micros.rem_euclid(MICROS) {
        0 => format!("{h:02}:{m:02}:{s:02}"),
        fraction => format!("{h:02}:{m:02}:{s:02}.{fraction:06}").trim_end_matches('0').to_owned(),
    }
}

/// Writes a decimal given as a whole number of 10^-scale.
pub(crate) fn decimal_text(value: i128, scale: i8) -> String {
    let digits = value.unsigned_abs().to_string();
    let sign = if value < 0 { "-" } else { "" };
    match usize::try_from(scale) {
        Ok(0) => format!("{sign}{digits}"),
        Ok(scale) => {
            let padded = format!("{digits:0>width$}", width = scale + 1);
            let (whole, part) = padded.split_at(padded.len() - scale);
            format!("{sign}{whole}.{part}")
        }
        Err(_) if value == 0 => "0".to_owned(),
        Err(_) => format!("{sign}{digits}{}", "0".repeat(usize::from(scale.unsigned_abs()))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_exactly() {
        let at = |s| timestamp(s).map(|t| (t.micros, t.offset_secs));
        for (text, expected) in [
            ("1970-01-01", Some((0, None))),
            ("1970-01-01 00:01", Some((60 * MICROS, None))),
            ("1970-01-01T00:00:01Z", Some((MICROS, Some(0)))),
            ("1970-01-01T00:00:00.000001+05:30", Some((1, Some(19_800)))),
            ("1970-01-01 00:00:00.5-0800", Some((500_000, Some(-28_800)))),
            ("1970-01-01T00:00:00.1000000000", Some((100_000, None))),
            ("1970-01-01T00:00:00.1234567", None),
            ("1970-01-01T24:00:00", None),
            ("1970-01-01T00:00:60", None),
            ("1970-01-01T00:00:00.", None),
            ("1970-01-01T00:00:00 UTC", None),
            ("1970-02-30", None),
            ("1970-1-1", None),
            ("1970-01-01é", None),
            ("", None),
        ] {
            assert_eq!(at(text), expected, "{text}");
        }
        assert_eq!(time("24:00"), None);
        assert_eq!(time("23:59:59.999999"), Some(DAY_MICROS - 1));
    }

    #[test]
    fn decimals_are_read_exactly() {
        for (text, expected) in [
            ("12.34", Some(1234)),
            ("-0.10", Some(-10)),
            ("1.500000", Some(150)),
            ("1e2", Some(10_000)),
            ("1.5e-1", Some(15)),
            (".5", Some(50)),
            ("0e9999", Some(0)),
            ("1.234", None),
            ("123456789", None),
            ("1e40", None),
            ("", None),
            ("-", None),
            ("1.2.3", None),
            ("NaN", None),
        ] {
            assert_eq!(decimal(text, 8, 2), expected, "{text}");
        }
        assert_eq!(decimal_text(-5, 2), "-0.05");
        assert_eq!(decimal_text(i128::MIN, 38).len(), 41);
        assert_eq!(decimal_text(12, -2), "1200");
        assert_eq!(float("1e999"), None);
    }

    proptest! {
        #[test]
        fn written_times_are_read_again(micros in -60_000_000_000_000_000_i64..250_000_000_000_000_000) {
            let text = timestamp_text(micros, 'T').unwrap();
            prop_assert_eq!(timestamp(&text).map(|t| t.micros), Some(micros));
            let day = micros.rem_euclid(DAY_MICROS);
            prop_assert_eq!(time(&time_text(day).unwrap()), Some(day));
        }

        #[test]
        fn written_decimals_are_read_again(value in any::<i128>(), scale in 0_i8..=38) {
            let value = value % 10_i128.pow(38);
            prop_assert_eq!(decimal(&decimal_text(value, scale), 38, scale), Some(value));
        }

        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = (date(&text), time(&text), timestamp(&text), decimal(&text, 38, 9), boolean(&text), float(&text));
        }
    }
}
