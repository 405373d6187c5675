use arrow::{
    compute::kernels::cast_utils::parse_decimal,
    datatypes::{DataType, Decimal128Type, DecimalType, TimeUnit},
};
use chrono::{Datelike, NaiveDate};
use datafusion::common::ScalarValue;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Reads a minimum or maximum from the catalog. `None` when it says nothing usable: another type's text, `nan`.
pub(crate) fn statistic(text: &str, data_type: &DataType) -> Option<ScalarValue> {
    match data_type {
        DataType::Binary => Some(ScalarValue::Binary(Some(unhex(text)?))),
        DataType::BinaryView => Some(ScalarValue::BinaryView(Some(unhex(text)?))),
        DataType::Float32 | DataType::Float64 if text.trim_start_matches(['-', '+']).eq_ignore_ascii_case("nan") => {
            None
        }
        _ => scalar(text, data_type),
    }
}

/// Writes a minimum or maximum as DuckDB does: `1`, `33.0`, `1e+300`, `2013-01-01 00:00:00.5+00`, blobs in hexadecimal.
///
/// `None` for null, for NaN (which goes to `contains_nan`), and for types without statistics.
pub(crate) fn statistic_text(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::Boolean(Some(v)) => Some(if *v { "1" } else { "0" }.to_owned()),
        ScalarValue::Binary(Some(v)) | ScalarValue::BinaryView(Some(v)) | ScalarValue::LargeBinary(Some(v)) => {
            Some(v.iter().map(|byte| format!("{byte:02X}")).collect())
        }
        ScalarValue::Float32(Some(v)) if v.is_nan() => None,
        ScalarValue::Float64(Some(v)) if v.is_nan() => None,
        other => partition_text(other),
    }
}

/// Writes a value as DuckDB casts it to text, which is how the catalog keeps partition values. `None` for null and for
/// nested values.
pub(crate) fn partition_text(value: &ScalarValue) -> Option<String> {
    Some(match value {
        ScalarValue::Boolean(v) => (*v)?.to_string(),
        ScalarValue::Int8(v) => (*v)?.to_string(),
        ScalarValue::Int16(v) => (*v)?.to_string(),
        ScalarValue::Int32(v) => (*v)?.to_string(),
        ScalarValue::Int64(v) => (*v)?.to_string(),
        ScalarValue::UInt8(v) => (*v)?.to_string(),
        ScalarValue::UInt16(v) => (*v)?.to_string(),
        ScalarValue::UInt32(v) => (*v)?.to_string(),
        ScalarValue::UInt64(v) => (*v)?.to_string(),
        ScalarValue::Float32(v) => float_text(&format!("{:e}", (*v)?)),
        ScalarValue::Float64(v) => float_text(&format!("{:e}", (*v)?)),
        ScalarValue::Decimal128(v, precision, scale) => Decimal128Type::format_decimal((*v)?, *precision, *scale),
        ScalarValue::Utf8(v) | ScalarValue::LargeUtf8(v) | ScalarValue::Utf8View(v) => v.clone()?,
        ScalarValue::Date32(v) => date_text((*v)?.into())?,
        ScalarValue::Time64Microsecond(v) => time_text((*v)?, 6),
        ScalarValue::TimestampSecond(v, None) => timestamp_text((*v)?, 0)?,
        ScalarValue::TimestampMillisecond(v, None) => timestamp_text((*v)?, 3)?,
        ScalarValue::TimestampMicrosecond(v, None) => timestamp_text((*v)?, 6)?,
        ScalarValue::TimestampNanosecond(v, None) => timestamp_text((*v)?, 9)?,
        ScalarValue::TimestampMicrosecond(v, Some(_)) => {
            let text = timestamp_text((*v)?, 6)?;
            if text.ends_with("infinity") { text } else { text + "+00" }
        }
        _ => return None,
    })
}

/// Reads a value of a type that is not nested from DuckDB's text of it. `None` when the text is not of the type.
pub(crate) fn scalar(text: &str, data_type: &DataType) -> Option<ScalarValue> {
    Some(match data_type {
        DataType::Boolean => ScalarValue::Boolean(Some(match text {
            "1" | "true" | "t" => true,
            "0" | "false" | "f" => false,
            _ => return None,
        })),
        DataType::Int8 => ScalarValue::Int8(Some(text.parse().ok()?)),
        DataType::Int16 => ScalarValue::Int16(Some(text.parse().ok()?)),
        DataType::Int32 => ScalarValue::Int32(Some(text.parse().ok()?)),
        DataType::Int64 => ScalarValue::Int64(Some(text.parse().ok()?)),
        DataType::UInt8 => ScalarValue::UInt8(Some(text.parse().ok()?)),
        DataType::UInt16 => ScalarValue::UInt16(Some(text.parse().ok()?)),
        DataType::UInt32 => ScalarValue::UInt32(Some(text.parse().ok()?)),
        DataType::UInt64 => ScalarValue::UInt64(Some(text.parse().ok()?)),
        // Rust reads `inf`, `Infinity`, `nan` and `NaN` as the databases write them.
        DataType::Float32 => ScalarValue::Float32(Some(text.parse().ok()?)),
        DataType::Float64 => ScalarValue::Float64(Some(text.parse().ok()?)),
        DataType::Decimal128(precision, scale) => {
            let value = parse_decimal::<Decimal128Type>(text, *precision, *scale).ok()?;
            ScalarValue::Decimal128(Some(value), *precision, *scale)
        }
        DataType::Utf8 => ScalarValue::Utf8(Some(text.to_owned())),
        DataType::Utf8View => ScalarValue::Utf8View(Some(text.to_owned())),
        DataType::Binary => ScalarValue::Binary(Some(blob(text)?)),
        DataType::BinaryView => ScalarValue::BinaryView(Some(blob(text)?)),
        DataType::Date32 => ScalarValue::Date32(Some(match text {
            "infinity" => i32::MAX,
            "-infinity" => -i32::MAX,
            _ => i32::try_from(days(text)?).ok()?,
        })),
        DataType::Time64(TimeUnit::Microsecond) => {
            ScalarValue::Time64Microsecond(Some(i64::try_from(nanos_of_day(text)? / 1_000).ok()?))
        }
        DataType::Timestamp(unit, zone) => {
            let value = timestamp(text, *unit)?;
            match unit {
                TimeUnit::Second => ScalarValue::TimestampSecond(Some(value), zone.clone()),
                TimeUnit::Millisecond => ScalarValue::TimestampMillisecond(Some(value), zone.clone()),
                TimeUnit::Microsecond => ScalarValue::TimestampMicrosecond(Some(value), zone.clone()),
                TimeUnit::Nanosecond => ScalarValue::TimestampNanosecond(Some(value), zone.clone()),
            }
        }
        _ => return None,
    })
}

/// Reads DuckDB's text of a blob: printable bytes as they are, others as `\x0A`.
fn blob(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = match tail.strip_prefix(b"x") {
            Some(hex) if *first == b'\\' => {
                bytes.extend(unhex(std::str::from_utf8(hex.get(..2)?).ok()?)?);
                &hex[2..]
            }
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    Some(bytes)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

/// Days since 1970 of `2013-01-01`, `12345-01-01` or `0045-03-15 (BC)`.
fn days(text: &str) -> Option<i64> {
    let (text, before_christ) = text.strip_suffix(" (BC)").map_or((text, false), |t| (t, true));
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || month.len() != 2 || day.len() != 2 {
        return None;
    }
    let year: i32 = year.parse().ok()?;
    let year = if before_christ { 1 - year } else { year };
    let date = NaiveDate::from_ymd_opt(year, month.parse().ok()?, day.parse().ok()?)?;
    Some(i64::from(date.to_epoch_days()))
}

/// Nanoseconds since midnight of `10:00:00.5`; `24:00:00` is the day's end.
fn nanos_of_day(text: &str) -> Option<i128> {
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = text.split(':').map(|p| p.parse::<i128>().ok().filter(|v| *v >= 0 && p.len() == 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    if parts.next().is_some() || hour > 24 || minute > 59 || second > 59 || fraction.len() > 9 {
        return None;
    }
    let nanos: i128 = if fraction.is_empty() { 0 } else { format!("{fraction:0<9}").parse().ok()? };
    Some((hour * 3_600 + minute * 60 + second) * 1_000_000_000 + nanos)
}

fn timestamp(text: &str, unit: TimeUnit) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(-i64::MAX),
        _ => {}
    }
    // A date has no colon, a time no space: the last space parts them, whatever `(BC)` stands before it.
    let (date, rest) = text.rsplit_once([' ', 'T'])?;
    let zone_at = rest.find(['+', '-', 'Z']).unwrap_or(rest.len());
    let (time, zone) = rest.split_at(zone_at);
    let offset = match zone {
        "" | "Z" => 0,
        zone => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let mut parts = zone[1..].split(':').map(|p| p.parse::<i128>().ok());
            let mut seconds = parts.next()?? * 3_600;
            seconds += parts.next().unwrap_or(Some(0))? * 60;
            seconds += parts.next().unwrap_or(Some(0))?;
            sign * seconds
        }
    };
    let nanos = i128::from(days(date)?) * 86_400_000_000_000 + nanos_of_day(time)? - offset * 1_000_000_000;
    let per_unit = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    i64::try_from(nanos.div_euclid(per_unit)).ok()
}

fn date_text(days: i64) -> Option<String> {
    match days {
        days if days == i64::from(i32::MAX) => return Some("infinity".to_owned()),
        days if days == -i64::from(i32::MAX) => return Some("-infinity".to_owned()),
        _ => {}
    }
    let date = NaiveDate::from_epoch_days(i32::try_from(days).ok()?)?;
    let (year, era) = if date.year() > 0 { (date.year(), "") } else { (1 - date.year(), " (BC)") };
    Some(format!("{year:04}-{:02}-{:02}{era}", date.month(), date.day()))
}

/// Writes a time of day given in units of 10^-digits seconds.
fn time_text(value: i64, digits: u32) -> String {
    let per_second = 10_i64.pow(digits);
    let (seconds, fraction) = (value.div_euclid(per_second), value.rem_euclid(per_second));
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let fraction = format!("{fraction:0width$}", width = digits as usize);
        text = format!("{text}.{}", fraction.trim_end_matches('0'));
    }
    text
}

fn timestamp_text(value: i64, digits: u32) -> Option<String> {
    match value {
        i64::MAX => return Some("infinity".to_owned()),
        value if value == -i64::MAX => return Some("-infinity".to_owned()),
        _ => {}
    }
    let per_day = MICROS_PER_DAY / 1_000_000 * 10_i64.pow(digits);
    Some(format!("{} {}", date_text(value.div_euclid(per_day))?, time_text(value.rem_euclid(per_day), digits)))
}

/// Turns the shortest digits that Rust finds (`1.5e-7`) into DuckDB's spelling: `33.0`, `0.0001`, `1e-05`, `1e+300`.
fn float_text(scientific: &str) -> String {
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific.to_lowercase();
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |d| ("-", d));
    let digits = digits.replace('.', "");
    let point = exponent + 1;
    let text = match usize::try_from(point) {
        Ok(point) if point >= 1 && digits.len() > point => format!("{}.{}", &digits[..point], &digits[point..]),
        Ok(point) if point >= 1 => format!("{digits:0<point$}.0"),
        _ => format!("0.{}{digits}", "0".repeat(usize::try_from(-point).unwrap_or(0))),
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts as DuckDB 1.5.5 wrote them into a catalog.
    #[test]
    fn statistics_read_and_write_as_duckdb_does() {
        let tz = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let ts = |unit| DataType::Timestamp(unit, None);
        for (data_type, texts) in [
            (DataType::Boolean, vec!["0", "1"]),
            (DataType::Int8, vec!["-128", "127"]),
            (DataType::UInt64, vec!["18446744073709551615"]),
            (DataType::Float32, vec!["0.1", "1.5", "-1e+30", "inf", "123456790.0", "16777216.0", "3.4e+38"]),
            (
                DataType::Float64,
                vec![
                    "0.0",
                    "33.0",
                    "0.3333333333333333",
                    "1e+300",
                    "-inf",
                    "0.0001",
                    "1e-05",
                    "1000000000000000.0",
                    "1e+16",
                ],
            ),
            (DataType::Float64, vec!["1.2345678901234568e+17", "-0.0", "5e-324", "1.7976931348623157e+308"]),
            (DataType::Decimal128(18, 4), vec!["-12345678901234.5678", "1.5000", "0.0000", "-0.0001"]),
            (DataType::Decimal128(38, 10), vec!["1234567890123456789012345678.0123456789"]),
            (DataType::Utf8, vec!["", "Ünï ☃ \n x"]),
            (DataType::Binary, vec!["", "80", "6162"]),
            (
                DataType::Date32,
                vec!["0001-01-01", "2013-01-01", "12345-01-01", "0045-03-15 (BC)", "infinity", "-infinity"],
            ),
            (DataType::Time64(TimeUnit::Microsecond), vec!["00:00:00", "10:00:00.5", "24:00:00"]),
            (
                ts(TimeUnit::Microsecond),
                vec![
                    "2013-01-01 00:00:00.123456",
                    "infinity",
                    "1969-12-31 23:59:59.999999",
                    "0045-03-15 (BC) 01:02:03",
                ],
            ),
            (ts(TimeUnit::Second), vec!["1969-12-31 23:59:59"]),
            (ts(TimeUnit::Millisecond), vec!["1969-12-31 23:59:59.999"]),
            (ts(TimeUnit::Nanosecond), vec!["2013-01-01 00:00:00.123456789", "2262-01-01 00:00:00"]),
            (tz, vec!["2012-12-31 19:00:00+00", "2013-01-01 10:11:12.5+00", "-infinity"]),
        ] {
            for text in texts {
                let value = statistic(text, &data_type).unwrap_or_else(|| panic!("{text} as {data_type}"));
                assert_eq!(statistic_text(&value).as_deref(), Some(text), "{data_type}");
            }
        }
    }

    #[test]
    fn what_says_nothing_is_no_statistic() {
        for (text, data_type) in [
            ("nan", DataType::Float64),
            ("-nan", DataType::Float32),
            ("x", DataType::Int32),
            ("256", DataType::UInt8),
            ("2013-1-1", DataType::Date32),
            ("2013-02-30", DataType::Date32),
            ("25:00:00", DataType::Time64(TimeUnit::Microsecond)),
            ("6", DataType::Binary),
            ("zz", DataType::Binary),
            ("maybe", DataType::Boolean),
            ("170141183460469231731687303715884105727", DataType::Decimal128(38, 0)),
        ] {
            assert_eq!(statistic(text, &data_type), None, "{text} as {data_type}");
        }
        assert_eq!(statistic_text(&ScalarValue::Float64(Some(f64::NAN))), None);
        assert_eq!(statistic_text(&ScalarValue::Int32(None)), None);
    }

    #[test]
    fn zones_and_blobs_are_read() {
        let tz = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        for same in
            ["2013-01-01 05:30:00+05:30", "2012-12-31 19:00:00-05", "2013-01-01 00:00:00", "2013-01-01T00:00:00Z"]
        {
            assert_eq!(scalar(same, &tz), scalar("2013-01-01 00:00:00+00", &tz), "{same}");
        }
        assert_eq!(blob(r"\x00ab\xFF\x5C"), Some(vec![0, b'a', b'b', 255, b'\\']));
        assert_eq!(blob(r"\x0"), None);
    }

    proptest! {
        #[test]
        fn floats_keep_every_bit(value in any::<f64>().prop_filter("nan has no text", |v| !v.is_nan()), small in any::<f32>().prop_filter("nan has no text", |v| !v.is_nan())) {
            let text = statistic_text(&ScalarValue::Float64(Some(value))).unwrap();
            prop_assert_eq!(statistic(&text, &DataType::Float64), Some(ScalarValue::Float64(Some(value))));
            let text = statistic_text(&ScalarValue::Float32(Some(small))).unwrap();
            prop_assert_eq!(statistic(&text, &DataType::Float32), Some(ScalarValue::Float32(Some(small))));
        }

        #[test]
        fn instants_keep_every_microsecond(micros in -60_000_000_000_000_000_i64..250_000_000_000_000_000) {
            let value = ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()));
            let text = statistic_text(&value).unwrap();
            prop_assert_eq!(statistic(&text, &value.data_type()), Some(value));
        }
    }
}
