//! Single values as PostgreSQL writes them with `DateStyle = ISO`, `IntervalStyle = postgres`, `bytea_output = hex`.

use std::fmt::Write as _;

use arrow::datatypes::IntervalMonthDayNano;
use bytes::{BufMut, BytesMut};

/// 2000-01-01, from which PostgreSQL counts, in days since 1970.
pub(in super::super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(in super::super) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * DAY_MICROS;

const SECOND_MICROS: i64 = 1_000_000;
const DAY_MICROS: i64 = 86_400 * SECOND_MICROS;

/// Writing into memory does not fail.
macro_rules! put {
    ($out:expr, $($form:tt)*) => {{
        let _ = write!($out, $($form)*);
    }};
}

pub(super) fn integer(value: i64, out: &mut BytesMut) {
    out.put_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Writes digits into all of that place, with zeros before them; those for which there is no room are left out.
fn pad(place: &mut [u8], value: u64) {
    let mut rest = value;
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

pub(super) fn float32(value: f32, out: &mut BytesMut) {
    match value {
        _ if !value.is_finite() => not_finite(value.into(), out),
        // PostgreSQL writes an exponent from seven digits on.
        _ if value == 0.0 || (1e-4..1e6).contains(&value.abs()) => plain(ryu::Buffer::new().format_finite(value), out),
        _ => {
            let more = |places: usize| format!("{value:.places$e}");
            scientific(ryu::Buffer::new().format_finite(value), more, |text| text.parse() == Ok(value), out);
        }
    }
}

pub(super) fn float64(value: f64, out: &mut BytesMut) {
    match value {
        _ if !value.is_finite() => not_finite(value, out),
        // And here from sixteen.
        _ if value == 0.0 || (1e-4..1e15).contains(&value.abs()) => plain(ryu::Buffer::new().format_finite(value), out),
        _ => {
            let more = |places: usize| format!("{value:.places$e}");
            scientific(ryu::Buffer::new().format_finite(value), more, |text| text.parse() == Ok(value), out);
        }
    }
}

fn not_finite(value: f64, out: &mut BytesMut) {
    out.put_slice(match value {
        f64::INFINITY => b"Infinity",
        f64::NEG_INFINITY => b"-Infinity",
        _ => b"NaN",
    });
}

/// The shortest digits that give the same number again, without a point behind whole numbers.
fn plain(digits: &str, out: &mut BytesMut) {
    out.put_slice(digits.strip_suffix(".0").unwrap_or(digits).as_bytes());
}

/// The same with one digit before the point, and a sign and two digits at least in the exponent. As PostgreSQL does it, more digits
/// are written where the shortest ones are half way to the next number. `more` gives the number with so many places.
fn scientific(shortest: &str, more: impl Fn(usize) -> String, is_same: impl Fn(&str) -> bool, out: &mut BytesMut) {
    let longer = is_half_way(shortest, &is_same)
        .then(|| (0..17).map(&more).find(|text| is_same(text) && !is_half_way(text, &is_same)))
        .flatten();
    let (digits, exponent) = longer.as_deref().unwrap_or(shortest).split_once('e').unwrap_or((shortest, "0"));
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let (whole, behind) = digits.split_once('.').unwrap_or((digits, ""));
    let all = [whole, behind].concat();
    let first = all.find(|digit| digit != '0').unwrap_or(0);
    let (mantissa, rest) = all[first..].trim_end_matches('0').split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    let exponent = exponent.parse().unwrap_or(0) + whole.len() as i32 - first as i32 - 1;
    let exponent_sign = if exponent < 0 { '-' } else { '+' };
    put!(out, "{sign}{mantissa}{point}{rest}e{exponent_sign}{:02}", exponent.unsigned_abs());
}

/// True when a little more, or a little less, is another number. Only whole numbers can be so near to the middle of two in so few
/// digits.
fn is_half_way(text: &str, is_same: impl Fn(&str) -> bool) -> bool {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    if exponent.starts_with('-') || digits.trim_start_matches('-').starts_with('0') {
        return false;
    }
    let point = if digits.contains('.') { "" } else { "." };
    let mut less = digits.as_bytes().to_vec();
    for digit in less.iter_mut().rev().filter(|byte| byte.is_ascii_digit()) {
        if *digit > b'0' {
            *digit -= 1;
            break;
        }
        *digit = b'9';
    }
    let less = String::from_utf8_lossy(&less);
    !is_same(&format!("{digits}{point}{:0>40}e{exponent}", 1))
        || !is_same(&format!("{less}{point}{:9>40}e{exponent}", 9))
}

/// The most places behind the point for which [`decimal64`] and [`numeric64`] have room.
pub(super) const SCALE64_MAX: i8 = 15;

/// A number without its point; the scale is 0 to [`SCALE64_MAX`].
pub(super) fn decimal64(value: i64, scale: u32, out: &mut BytesMut) {
    if value < 0 {
        out.put_u8(b'-');
    }
    let unit = 10_u64.pow(scale);
    out.put_slice(itoa::Buffer::new().format(value.unsigned_abs() / unit).as_bytes());
    if scale > 0 {
        let mut fraction = [b'.'; 1 + SCALE64_MAX as usize];
        let fraction = &mut fraction[..=scale as usize];
        pad(&mut fraction[1..], value.unsigned_abs() % unit);
        out.put_slice(fraction);
    }
}

/// A number from its digits without a point.
pub(super) fn decimal(digits: &str, scale: i8, out: &mut BytesMut) {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    out.put_slice(sign.as_bytes());
    match usize::try_from(scale) {
        Ok(0) => out.put_slice(digits.as_bytes()),
        Ok(scale) if digits.len() > scale => {
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            put!(out, "{whole}.{fraction}");
        }
        Ok(scale) => put!(out, "0.{digits:0>scale$}"),
        Err(_) if digits == "0" => out.put_u8(b'0'),
        Err(_) => put!(out, "{digits}{:0<zeros$}", "", zeros = usize::from(scale.unsigned_abs())),
    }
}

/// The binary form of such a number: digits of base 10,000 around the point.
pub(super) fn numeric(digits: &str, scale: i8, out: &mut BytesMut) {
    let (is_negative, digits) = digits.strip_prefix('-').map_or((false, digits), |digits| (true, digits));
    let fraction = usize::try_from(scale).unwrap_or(0);
    let zeros = if scale < 0 { usize::from(scale.unsigned_abs()) } else { 0 };
    // Filled up so that the point stands between two groups of four.
    let whole_digits = digits.len().saturating_sub(fraction) + zeros;
    let left = (4 - whole_digits % 4) % 4;
    let right = (4 - fraction % 4) % 4;
    let leading = fraction.saturating_sub(digits.len());
    let filled = format!("{}{digits}{}", "0".repeat(left + leading), "0".repeat(zeros + right));
    let groups: Vec<i16> = filled
        .as_bytes()
        .chunks(4)
        .map(|group| group.iter().fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0')))
        .collect();
    let weight = (whole_digits + left) / 4;
    let first = groups.iter().position(|group| *group != 0).unwrap_or(groups.len());
    let last = groups.iter().rposition(|group| *group != 0).map_or(first, |last| last + 1);
    let groups = &groups[first..last];
    let weight = i64::try_from(weight).unwrap_or(0) - i64::try_from(first).unwrap_or(0) - 1;
    out.put_i16(i16::try_from(groups.len()).unwrap_or(0));
    out.put_i16(if groups.is_empty() { 0 } else { i16::try_from(weight).unwrap_or(0) });
    out.put_u16(if is_negative && !groups.is_empty() { 0x4000 } else { 0 });
    out.put_u16(u16::try_from(fraction).unwrap_or(0));
    for group in groups {
        out.put_i16(*group);
    }
}

/// The same of a number without its point; the scale is 0 to [`SCALE64_MAX`].
pub(super) fn numeric64(value: i64, scale: u32, out: &mut BytesMut) {
    const BASE: u64 = 10_000;
    let unit = 10_u64.pow(scale);
    let behind = scale.div_ceil(4);
    let (mut whole, fraction) = (value.unsigned_abs() / unit, value.unsigned_abs() % unit);
    let mut fraction = fraction * 10_u64.pow(4 * behind - scale);
    // Five before the point and four behind it.
    let mut groups = [0_i16; 9];
    let point = groups.len() - behind as usize;
    for group in groups[point..].iter_mut().rev() {
        *group = i16::try_from(fraction % BASE).unwrap_or(0);
        fraction /= BASE;
    }
    for group in groups[..point].iter_mut().rev() {
        *group = i16::try_from(whole % BASE).unwrap_or(0);
        whole /= BASE;
    }
    let first = groups.iter().position(|group| *group != 0).unwrap_or(groups.len());
    let last = groups.iter().rposition(|group| *group != 0).map_or(first, |last| last + 1);
    let weight = point as i16 - first as i16 - 1;
    let groups = &groups[first..last];
    out.put_i16(groups.len() as i16);
    out.put_i16(if groups.is_empty() { 0 } else { weight });
    out.put_u16(if value < 0 { 0x4000 } else { 0 });
    out.put_u16(scale as u16);
    groups.iter().for_each(|group| out.put_i16(*group));
}

pub(super) fn hex(bytes: &[u8], out: &mut BytesMut) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.put_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

pub(super) fn uuid(bytes: &[u8], out: &mut BytesMut) {
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.put_u8(b'-');
        }
        hex(&[*byte], out);
    }
}

/// Year, month and day of a day since 1970, in the calendar that PostgreSQL goes on with into the past.
fn civil(days: i64) -> (i64, i64, i64) {
    // Counted in eras of 400 years from a first of March: leap days come last then.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Writes the day; true when it is before the year one, which comes behind the time.
fn day(days: i64, out: &mut BytesMut) -> bool {
    let (year, month, day) = civil(days);
    let shown = if year > 0 { year } else { 1 - year }.unsigned_abs();
    let mut text = *b"0000-00-00";
    if shown > 9_999 {
        out.put_slice(itoa::Buffer::new().format(shown / 10_000).as_bytes());
    }
    pad(&mut text[..4], shown);
    pad(&mut text[5..7], month.unsigned_abs());
    pad(&mut text[8..], day.unsigned_abs());
    out.put_slice(&text);
    year <= 0
}

pub(super) fn date(days: i64, out: &mut BytesMut) {
    if day(days, out) {
        out.put_slice(b" BC");
    }
}

pub(super) fn time(micros: i64, out: &mut BytesMut) {
    let seconds = (micros / SECOND_MICROS).unsigned_abs();
    let fraction = (micros % SECOND_MICROS).unsigned_abs();
    let mut text = *b"00:00:00.000000";
    if seconds >= 360_000 {
        out.put_slice(itoa::Buffer::new().format(seconds / 360_000).as_bytes());
    }
    pad(&mut text[..2], seconds / 3_600);
    pad(&mut text[3..5], seconds / 60 % 60);
    pad(&mut text[6..8], seconds % 60);
    pad(&mut text[9..], fraction);
    let zeros = text.iter().rev().take_while(|byte| **byte == b'0').count();
    let length = if fraction == 0 { 8 } else { text.len() - zeros };
    out.put_slice(&text[..length]);
}

pub(super) fn timestamp(micros: i64, has_zone: bool, out: &mut BytesMut) {
    let is_before = day(micros.div_euclid(DAY_MICROS), out);
    out.put_u8(b' ');
    time(micros.rem_euclid(DAY_MICROS), out);
    if has_zone {
        out.put_slice(b"+00");
    }
    if is_before {
        out.put_slice(b" BC");
    }
}

pub(super) fn interval(value: IntervalMonthDayNano, out: &mut BytesMut) {
    let (years, months) = (value.months / 12, value.months % 12);
    let mut is_first = true;
    let mut was_negative = false;
    for (count, unit) in [(years, "year"), (months, "mon"), (value.days, "day")] {
        if count == 0 {
            continue;
        }
        let space = if is_first { "" } else { " " };
        let sign = if was_negative && count > 0 { "+" } else { "" };
        let plural = if count == 1 { "" } else { "s" };
        put!(out, "{space}{sign}{count} {unit}{plural}");
        (is_first, was_negative) = (false, count < 0);
    }
    let micros = value.nanoseconds.div_euclid(1_000);
    if micros != 0 || is_first {
        if !is_first {
            out.put_u8(b' ');
        }
        if micros < 0 {
            out.put_u8(b'-');
        } else if was_negative {
            out.put_u8(b'+');
        }
        time(micros.checked_abs().unwrap_or(i64::MAX), out);
    }
}

pub(super) fn json_text(text: &str, out: &mut BytesMut) {
    out.put_u8(b'"');
    for c in text.chars() {
        match c {
            '"' => out.put_slice(b"\\\""),
            '\\' => out.put_slice(b"\\\\"),
            '\n' => out.put_slice(b"\\n"),
            '\r' => out.put_slice(b"\\r"),
            '\t' => out.put_slice(b"\\t"),
            c if c < ' ' => put!(out, "\\u{:04x}", u32::from(c)),
            c => put!(out, "{c}"),
        }
    }
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn numbers_are_written_as_postgresql_does() {
        for value in [0, 7, -7, 1_000, i64::MAX, i64::MIN] {
            assert_eq!(text(|out| integer(value, out)), value.to_string());
        }
        let check = |value: f64, expected: &str| assert_eq!(text(|out| float64(value, out)), expected);
        check(0.0, "0");
        check(-0.0, "-0");
        check(1.5, "1.5");
        check(-12.25, "-12.25");
        check(0.1, "0.1");
        check(0.0001, "0.0001");
        check(0.00001, "1e-05");
        check(100_000_000_000_000.0, "100000000000000");
        check(1e15, "1e+15");
        check(999_999_999_999_999.9, "999999999999999.9");
        check(1.25e-300, "1.25e-300");
        check(-1e300, "-1e+300");
        check(-4_040_000_000_000_001.0 / 4.0, "-1.0100000000000002e+15");
        check(1_234_567_890_123_456.8, "1.2345678901234568e+15");
        check(0.000_012_3, "1.23e-05");
        check(f64::from_bits(1), "5e-324");
        // As PostgreSQL says.
        check(5.45039e20, "5.4503900000000003e+20");
        check(6.40882e20, "6.408819999999999e+20");
        check(-2.003_485_544_858_745e16, "-2.0034855448587448e+16");
        check(1e22, "1e+22");
        check(123_456.789, "123456.789");
        check(f64::NEG_INFINITY, "-Infinity");
        check(f64::NAN, "NaN");
        assert_eq!(text(|out| float32(1_000_000.0, out)), "1e+06");
        assert_eq!(text(|out| float32(16_777_216.0, out)), "1.6777216e+07");
        assert_eq!(text(|out| float32(9e9, out)), "8.999999e+09");
        assert_eq!(text(|out| float32(84_300_300.0, out)), "8.4300304e+07");
        assert_eq!(text(|out| float32(-999_999.94, out)), "-999999.94");
        assert_eq!(text(|out| float32(0.1, out)), "0.1");
        assert_eq!(text(|out| float32(0.000_1, out)), "0.0001");
        assert_eq!(text(|out| float32(-0.000_099, out)), "-9.9e-05");
        let check = |digits: &str, scale: i8, expected: &str| {
            assert_eq!(text(|out| decimal(digits, scale, out)), expected);
        };
        check("12345", 2, "123.45");
        check("-5", 2, "-0.05");
        check("-5", 0, "-5");
        check("12", -2, "1200");
        check("0", 3, "0.000");
    }

    #[test]
    fn floats_have_the_shortest_digits() {
        let mut bits: u64 = 7;
        let mut count = 0;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Exponents around zero: others are seldom without one.
            let value = f64::from_bits(bits & !(0x7ff << 52) | (1_010 + (bits >> 52) % 64) << 52);
            let [mut long, mut short] = [(); 2].map(|()| BytesMut::new());
            float64(value, &mut long);
            float32(value as f32, &mut short);
            let [long, short] = [long, short].map(|out| String::from_utf8(out.to_vec()).unwrap());
            if !long.contains('e') {
                // Of two that are equally near `to_string` may have the other one.
                assert_eq!(long.len(), value.to_string().len(), "{long}");
                count += 1;
            }
            assert_eq!(long.parse(), Ok(value));
            assert_eq!(short.parse(), Ok(value as f32));
        }
        assert!(count > 15_000, "{count}");
    }

    #[test]
    fn numerics_have_groups_of_four_digits() {
        let check = |digits: &str, scale: i8, expected: &[i16]| {
            let mut out = BytesMut::new();
            numeric(digits, scale, &mut out);
            let found: Vec<i16> = out.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect();
            assert_eq!(found, expected, "{digits} {scale}");
        };
        // Count, weight, sign, scale, groups.
        check("0", 2, &[0, 0, 0, 2]);
        check("1", 0, &[1, 0, 0, 0, 1]);
        check("-12345678", 2, &[3, 1, 0x4000, 2, 12, 3456, 7800]);
        check("1", 4, &[1, -1, 0, 4, 1]);
        check("1", 6, &[1, -2, 0, 6, 100]);
        check("10000", 0, &[1, 1, 0, 0, 1]);
        check("5", -3, &[1, 0, 0, 0, 5000]);
    }

    #[test]
    fn short_numbers_are_written_as_long_ones_are() {
        let mut values = vec![0, 1, -1, 9_999, 10_000, -10_001, 123_456_789_012_345_678, i64::MAX, i64::MIN];
        let mut value: i64 = 7;
        for _ in 0..500 {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            values.extend([value, value >> 20, value >> 40, value / 10_000 * 10_000]);
        }
        for value in values {
            for scale in 0..=SCALE64_MAX {
                let digits = value.to_string();
                let places = u32::try_from(scale).unwrap();
                assert_eq!(text(|out| decimal64(value, places, out)), text(|out| decimal(&digits, scale, out)));
                let [mut short, mut long] = [(); 2].map(|()| BytesMut::new());
                numeric64(value, places, &mut short);
                numeric(&digits, scale, &mut long);
                assert_eq!(short, long, "{value} {scale}");
            }
        }
    }

    #[test]
    fn days_and_times_are_those_of_the_calendar() {
        let check = |micros: i64, expected: &str| assert_eq!(text(|out| timestamp(micros, false, out)), expected);
        check(0, "1970-01-01 00:00:00");
        check(EPOCH_MICROS, "2000-01-01 00:00:00");
        check(-1, "1969-12-31 23:59:59.999999");
        check(951_782_400_000_000 + 500_000, "2000-02-29 00:00:00.5");
        check(-62_135_596_800_000_000, "0001-01-01 00:00:00");
        check(-62_135_596_800_000_001, "0001-12-31 23:59:59.999999 BC");
        check(253_402_300_800_000_000, "10000-01-01 00:00:00");
        check(3_093_527_980_800_000_000 + 10, "100000-01-01 00:00:00.00001");
        assert_eq!(text(|out| timestamp(0, true, out)), "1970-01-01 00:00:00+00");
        assert_eq!(text(|out| date(-719_528, out)), "0001-01-01 BC");
    }

    #[test]
    fn intervals_have_units_and_signs() {
        let check = |months, days, nanoseconds, expected: &str| {
            let value = IntervalMonthDayNano { months, days, nanoseconds };
            assert_eq!(text(|out| interval(value, out)), expected);
        };
        check(0, 0, 0, "00:00:00");
        check(14, 3, 3_661_500_000_000, "1 year 2 mons 3 days 01:01:01.5");
        check(-1, 1, 0, "-1 mons +1 day");
        check(0, -2, 1_000_000_000, "-2 days +00:00:01");
        check(0, 0, 86_400_000_000_000 * 1_000 + 20_000, "24000:00:00.00002");
        check(0, 0, -1_000_000_000, "-00:00:01");
        check(1, 0, 0, "1 mon");
    }
}
