//! Values that clients bind to `$1`, `$2`: from PostgreSQL's forms to Arrow's.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ListArray},
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field, IntervalMonthDayNano, IntervalUnit, TimeUnit, i256},
};
use bytes::{Buf, Bytes};
use headworks_engine::{ScalarValue, array_items};

use super::{
    error::{PgError, state},
    frame::Body,
    value::{EPOCH_DAYS, EPOCH_MICROS, Format},
};

/// The type that the engine gets for an object id of PostgreSQL; `None` for 0 and unknown ones, whose values are texts.
pub(super) fn arrow_type(oid: u32) -> Option<DataType> {
    Some(match oid {
        16 => DataType::Boolean,
        17 => DataType::Binary,
        // "char", name, text, json, bpchar, varchar, jsonb
        18 | 19 | 25 | 114 | 1042 | 1043 | 3802 => DataType::Utf8,
        20 => DataType::Int64,
        21 => DataType::Int16,
        // int4, and the ids of objects
        23 | 24 | 26 | 2205 | 2206 | 4089 => DataType::Int32,
        700 => DataType::Float32,
        701 => DataType::Float64,
        1082 => DataType::Date32,
        1083 => DataType::Time64(TimeUnit::Microsecond),
        1114 => DataType::Timestamp(TimeUnit::Microsecond, None),
        1184 => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        1186 => DataType::Interval(IntervalUnit::MonthDayNano),
        // As wide as it gets before the value is known.
        1700 => DataType::Decimal128(38, 10),
        // A lake keeps a UUID as its text.
        2950 => DataType::Utf8,
        1000 => list(16)?,
        1001 => list(17)?,
        1005 => list(21)?,
        1007 | 1028 => list(23)?,
        1009 | 1015 | 1003 | 1002 | 199 => list(25)?,
        1016 => list(20)?,
        1021 => list(700)?,
        1022 => list(701)?,
        1115 => list(1114)?,
        1182 => list(1082)?,
        1185 => list(1184)?,
        1231 => list(1700)?,
        2951 => list(2950)?,
        _ => return None,
    })
}

/// The type by whose form a client writes a value: the engine's, except for a UUID, whose binary form is its sixteen bytes.
pub(super) fn written_type(oid: u32) -> Option<DataType> {
    match oid {
        2950 => Some(DataType::FixedSizeBinary(16)),
        2951 => Some(DataType::List(Arc::new(Field::new("item", DataType::FixedSizeBinary(16), true)))),
        other => arrow_type(other),
    }
}

fn list(element: u32) -> Option<DataType> {
    Some(DataType::List(Arc::new(Field::new("item", arrow_type(element)?, true))))
}

/// Reads one value. `number` counts from 1, for errors.
pub(super) fn value(
    bytes: Option<&Bytes>,
    format: Format,
    data_type: &DataType,
    number: usize,
) -> Result<ScalarValue, PgError> {
    let Some(bytes) = bytes else {
        return null(data_type).ok_or_else(|| unreadable(number, format, data_type));
    };
    let read = match format {
        Format::Text => std::str::from_utf8(bytes).ok().and_then(|text| of_text(text, data_type)),
        Format::Binary => of_binary(bytes, data_type),
    };
    read.ok_or_else(|| unreadable(number, format, data_type))
}

fn null(data_type: &DataType) -> Option<ScalarValue> {
    match data_type {
        DataType::FixedSizeBinary(16) => Some(ScalarValue::Utf8(None)),
        DataType::List(item) if *item.data_type() == DataType::FixedSizeBinary(16) => {
            ScalarValue::try_from(&list(25)?).ok()
        }
        other => ScalarValue::try_from(other).ok(),
    }
}

fn unreadable(number: usize, format: Format, data_type: &DataType) -> PgError {
    let state = match format {
        Format::Text if data_type.is_temporal() => state::TIME_FORM,
        Format::Text => state::TEXT_FORM,
        Format::Binary => state::BINARY_FORM,
    };
    PgError::new(
        state,
        format!("the value of ${number} is not readable as {}", headworks_engine::sql_type_name(data_type)),
    )
}

fn of_text(text: &str, data_type: &DataType) -> Option<ScalarValue> {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            ScalarValue::Utf8(Some(text.to_owned())).cast_to(data_type).ok()
        }
        DataType::Boolean => match text.trim().to_lowercase().as_str() {
            "t" | "true" | "y" | "yes" | "on" | "1" => Some(ScalarValue::Boolean(Some(true))),
            "f" | "false" | "n" | "no" | "off" | "0" => Some(ScalarValue::Boolean(Some(false))),
            _ => None,
        },
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            let bytes = match text.strip_prefix("\\x") {
                Some(digits) => from_hex(digits)?,
                None => text.as_bytes().to_vec(),
            };
            ScalarValue::Binary(Some(bytes)).cast_to(data_type).ok()
        }
        DataType::FixedSizeBinary(16) => {
            uuid::Uuid::try_parse(text.trim()).ok().map(|uuid| ScalarValue::Utf8(Some(uuid.to_string())))
        }
        // Drivers send the zone with everything; a type without one takes no notice of it.
        DataType::Date32 => plain(moment(text.trim())?.0, data_type),
        DataType::Timestamp(_, None) => plain(&without_zone(text.trim())?, data_type),
        DataType::Decimal128(..) | DataType::Decimal256(..) => decimal(text.trim()),
        DataType::Interval(IntervalUnit::MonthDayNano) => interval(text),
        DataType::List(item) => {
            let items = array_items(text)?;
            let values: Option<Vec<ScalarValue>> = items
                .iter()
                .map(|text| match text {
                    Some(text) => of_text(text, item.data_type()),
                    None => null(item.data_type()),
                })
                .collect();
            of_items(values?, item)
        }
        other => plain(text.trim(), other),
    }
}

fn plain(text: &str, data_type: &DataType) -> Option<ScalarValue> {
    ScalarValue::Utf8(Some(text.to_owned())).cast_to(data_type).ok().filter(|value| !value.is_null())
}

/// The day and the time of `2018-02-20 12:34:56 +01`, of which the zone and the time may be missing; none for what is neither.
fn moment(text: &str) -> Option<(&str, &str)> {
    let (day, rest) = text.split_at(text.find([' ', 'T', '+', 'Z']).unwrap_or(text.len()));
    let behind = rest.strip_prefix('T');
    let rest = behind.unwrap_or(rest).trim_start();
    let (time, zone) = rest.split_at(rest.find(['+', '-', 'Z']).unwrap_or(rest.len()));
    let time = time.trim_end();
    let is_time = match time {
        "" => behind.is_none(),
        time => plain(time, &DataType::Time64(TimeUnit::Nanosecond)).is_some(),
    };
    (is_time && is_zone(zone)).then_some((day, time))
}

fn without_zone(text: &str) -> Option<String> {
    let (day, time) = moment(text)?;
    Some(if time.is_empty() { day.to_owned() } else { format!("{day} {time}") })
}

/// True for `+01`, `-05:30`, `+0530`, `+00:19:32`, `Z`, and for none.
fn is_zone(text: &str) -> bool {
    let Some(offset) = text.strip_prefix(['+', '-']) else { return matches!(text, "" | "Z") };
    let parts: Vec<&str> = match offset.split_at_checked(2) {
        Some((hours, minutes)) if offset.len() == 4 => vec![hours, minutes],
        _ => offset.split(':').collect(),
    };
    let is_part = |(n, part): (usize, &&str)| {
        let is_number = matches!(part.len(), 1 | 2) && part.bytes().all(|byte| byte.is_ascii_digit());
        is_number && part.parse::<u8>().is_ok_and(|part| part <= if n == 0 { 15 } else { 59 })
    };
    parts.len() <= 3 && parts.iter().enumerate().all(is_part)
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect())?
}

/// A number with just the precision that it has.
fn decimal(text: &str) -> Option<ScalarValue> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => ("-", mantissa),
        None => ("", mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
    if scale < 0 {
        digits.push_str(&"0".repeat(usize::try_from(-scale).ok().filter(|zeros| *zeros <= 76)?));
        scale = 0;
    }
    let significant = digits.trim_start_matches('0');
    let scale = i8::try_from(scale).ok()?;
    let precision = u8::try_from(significant.len().max(usize::try_from(scale).ok()?).max(1)).ok()?;
    let number = format!("{sign}{}", if significant.is_empty() { "0" } else { significant });
    match precision {
        ..=38 => Some(ScalarValue::Decimal128(Some(number.parse().ok()?), precision, scale)),
        39..=76 => Some(ScalarValue::Decimal256(Some(i256::from_string(&number)?), precision, scale)),
        _ => None,
    }
}

/// `1 year 2 mons -3 days 04:05:06.789`, in any order, with commas or without.
fn interval(text: &str) -> Option<ScalarValue> {
    let (mut months, mut days, mut nanoseconds) = (0_i32, 0_i32, 0_i64);
    let text = text.replace(',', " ");
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        if word.contains(':') {
            nanoseconds = nanoseconds.checked_add(clock(word)?)?;
            continue;
        }
        let number: i32 = word.parse().ok()?;
        let unit = words.next()?.to_lowercase();
        match unit.trim_end_matches('s') {
            "year" | "yr" => months = months.checked_add(number.checked_mul(12)?)?,
            "mon" | "month" => months = months.checked_add(number)?,
            "week" => days = days.checked_add(number.checked_mul(7)?)?,
            "day" => days = days.checked_add(number)?,
            "hour" => nanoseconds = nanoseconds.checked_add(i64::from(number) * 3_600_000_000_000)?,
            "minute" | "min" => nanoseconds = nanoseconds.checked_add(i64::from(number) * 60_000_000_000)?,
            "second" | "sec" => nanoseconds = nanoseconds.checked_add(i64::from(number) * 1_000_000_000)?,
            _ => return None,
        }
    }
    Some(ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano { months, days, nanoseconds })))
}

/// `[-]H:MM[:SS[.ffffff]]` in nanoseconds.
fn clock(text: &str) -> Option<i64> {
    let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let mut parts = text.trim_start_matches('+').split(':');
    let (hours, minutes): (i64, i64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (seconds, fraction) = match parts.next() {
        None => (0, 0),
        Some(seconds) => {
            let (seconds, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
            (seconds.parse::<i64>().ok()?, format!("{fraction:0<9}").get(..9)?.parse::<i64>().ok()?)
        }
    };
    let seconds = hours.checked_mul(3_600)?.checked_add(minutes.checked_mul(60)?)?.checked_add(seconds)?;
    let nanoseconds = seconds.checked_mul(1_000_000_000)?.checked_add(fraction)?;
    Some(if is_negative { -nanoseconds } else { nanoseconds })
}

fn of_items(values: Vec<ScalarValue>, item: &Arc<Field>) -> Option<ScalarValue> {
    let texts = Arc::new(Field::new("item", DataType::Utf8, true));
    let item = if *item.data_type() == DataType::FixedSizeBinary(16) { &texts } else { item };
    let items: ArrayRef = if values.is_empty() {
        arrow::array::new_empty_array(item.data_type())
    } else {
        // Numbers of different scales become those of one.
        let values: Option<Vec<ScalarValue>> =
            values.into_iter().map(|value| value.cast_to(item.data_type()).ok()).collect();
        cast(&ScalarValue::iter_to_array(values?).ok()?, item.data_type()).ok()?
    };
    let offsets = OffsetBuffer::from_lengths([items.len()]);
    Some(ScalarValue::List(Arc::new(ListArray::try_new(Arc::clone(item), offsets, items, None).ok()?)))
}

fn of_binary(bytes: &Bytes, data_type: &DataType) -> Option<ScalarValue> {
    let bytes = bytes.clone();
    let value = match data_type {
        DataType::Boolean => ScalarValue::Boolean(Some(array::<1>(&bytes)? != [0])),
        DataType::Int16 => ScalarValue::Int16(Some(i16::from_be_bytes(array(&bytes)?))),
        DataType::Int32 => ScalarValue::Int32(Some(i32::from_be_bytes(array(&bytes)?))),
        DataType::Int64 => ScalarValue::Int64(Some(i64::from_be_bytes(array(&bytes)?))),
        DataType::Float32 => ScalarValue::Float32(Some(f32::from_be_bytes(array(&bytes)?))),
        DataType::Float64 => ScalarValue::Float64(Some(f64::from_be_bytes(array(&bytes)?))),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            return ScalarValue::Utf8(Some(String::from_utf8(bytes.into()).ok()?)).cast_to(data_type).ok();
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            return ScalarValue::Binary(Some(bytes.into())).cast_to(data_type).ok();
        }
        DataType::FixedSizeBinary(16) => ScalarValue::Utf8(Some(uuid::Uuid::from_bytes(array(&bytes)?).to_string())),
        DataType::Date32 => ScalarValue::Date32(Some(i32::from_be_bytes(array(&bytes)?).checked_add(EPOCH_DAYS)?)),
        DataType::Time64(TimeUnit::Microsecond) => {
            ScalarValue::Time64Microsecond(Some(i64::from_be_bytes(array(&bytes)?)))
        }
        DataType::Timestamp(_, zone) => {
            let micros = i64::from_be_bytes(array(&bytes)?).checked_add(EPOCH_MICROS)?;
            return ScalarValue::TimestampMicrosecond(Some(micros), zone.clone()).cast_to(data_type).ok();
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let bytes = array::<16>(&bytes)?;
            let mut rest = &bytes[..];
            let (micros, days, months) = (rest.get_i64(), rest.get_i32(), rest.get_i32());
            let nanoseconds = micros.checked_mul(1_000)?;
            ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano { months, days, nanoseconds }))
        }
        DataType::Decimal128(..) | DataType::Decimal256(..) => numeric(bytes)?,
        DataType::List(item) => return of_items(binary_items(bytes, item.data_type())?, item),
        // Types that no client names: small integers and the like, by way of the next larger ones.
        DataType::Int8 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            let number = match bytes.len() {
                2 => i64::from(i16::from_be_bytes(array(&bytes)?)),
                4 => i64::from(i32::from_be_bytes(array(&bytes)?)),
                8 => i64::from_be_bytes(array(&bytes)?),
                _ => return None,
            };
            return ScalarValue::Int64(Some(number)).cast_to(data_type).ok();
        }
        _ => return None,
    };
    Some(value)
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn numeric(bytes: Bytes) -> Option<ScalarValue> {
    if bytes.len() < 8 {
        return None;
    }
    let mut rest = bytes;
    let (count, weight) = (usize::from(rest.get_u16()), i32::from(rest.get_i16()));
    let (sign, scale) = (rest.get_u16(), usize::from(rest.get_u16()));
    // NaN and the infinities have no decimal.
    if rest.len() != count * 2 || !matches!(sign, 0 | 0x4000) || scale > 76 || !(-20..=20).contains(&weight) {
        return None;
    }
    let groups: Vec<u16> = (0..count).map(|_| rest.get_u16()).collect();
    if groups.iter().any(|group| *group > 9_999) {
        return None;
    }
    let group = |index: i32| usize::try_from(weight - index).ok().and_then(|at| groups.get(at)).copied().unwrap_or(0);
    let whole: String = (0..=weight.max(0)).rev().map(|index| format!("{:04}", group(index))).collect();
    let fraction: String = (1..=20).map(|index: i32| format!("{:04}", group(-index))).collect();
    let sign = if sign == 0 { "" } else { "-" };
    decimal(&format!("{sign}{whole}.{}", fraction.get(..scale)?))
}

fn binary_items(bytes: Bytes, item: &DataType) -> Option<Vec<ScalarValue>> {
    let mut body = Body(bytes);
    let (dimensions, _has_nulls, _element) = (body.i32()?, body.i32()?, body.i32()?);
    if dimensions == 0 {
        return Some(Vec::new());
    }
    if dimensions != 1 {
        return None;
    }
    let (count, _first) = (body.i32()?, body.i32()?);
    (0..count)
        .map(|_| match body.value()? {
            Some(value) => of_binary(&value, item),
            None => null(item),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, oid: u32) -> Option<String> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        value(Some(&bytes), Format::Text, &written_type(oid).unwrap(), 1).ok().map(|value| value.to_string())
    }

    #[test]
    fn texts_become_values_of_their_type() {
        let check = |text: &str, oid: u32, expected: Option<&str>| {
            assert_eq!(read(text, oid).as_deref(), expected, "{text} {oid}");
        };
        check("t", 16, Some("true"));
        check("maybe", 16, None);
        check("-7", 23, Some("-7"));
        check("x", 23, None);
        check("99999999999", 23, None);
        check("1.5", 701, Some("1.5"));
        check("2018-02-20", 1082, Some("2018-02-20"));
        check("2018-02-20 +01", 1082, Some("2018-02-20"));
        check("2018-02-20 12:34:56", 1082, Some("2018-02-20"));
        check("2018-02-20 12:34:56 +01", 1082, Some("2018-02-20"));
        check("2018-02-20T12:34:56.5-05:30", 1082, Some("2018-02-20"));
        check("2018-02-20+0530", 1082, Some("2018-02-20"));
        check("2018-02-20Z", 1082, Some("2018-02-20"));
        for rubbish in
            [" hello", " 12:34:56 hello", "T", " 25:00", "+", "+99", "+01:60", "+01 hello", "Zulu", " 12:34 BC"]
        {
            let text = format!("2018-02-20{rubbish}");
            let read = |oid| {
                let bytes = Bytes::from(text.clone());
                value(Some(&bytes), Format::Text, &written_type(oid).unwrap(), 1).map_err(|error| error.state)
            };
            assert_eq!((read(1082), read(1114)), (Err("22007"), Err("22007")), "{text}");
        }
        check("2018-02-20 23:59:59.5+01", 1114, Some("1519171199500000"));
        check("2018-02-20T23:59:59.5-05:30", 1114, Some("1519171199500000"));
        check("2018-02-20", 1114, Some("1519084800000000"));
        check("2018-02-20 23:59:59.5+01", 1184, Some("1519167599500000"));
        check("C0FFEE00-1234-5678-9abc-def012345678", 2950, Some("c0ffee00-1234-5678-9abc-def012345678"));
        check("c0ffee00", 2950, None);
        check("{c0ffee00-1234-5678-9abc-def012345678,NULL}", 2951, Some("[c0ffee00-1234-5678-9abc-def012345678, ]"));
        check("0.05", 1700, Some("0.05"));
        check("-12.50", 1700, Some("-12.50"));
        check("1e3", 1700, Some("1000"));
        check("1 day, 0:00:03", 1186, Some("IntervalMonthDayNano { months: 0, days: 1, nanoseconds: 3000000000 }"));
        check(
            "-1 mons 04:05:06.5",
            1186,
            Some("IntervalMonthDayNano { months: -1, days: 0, nanoseconds: 14706500000000 }"),
        );
        check("soon", 1186, None);
        check(".", 1700, None);
        check("{1,NULL,3}", 1016, Some("[1, , 3]"));
        check("{\"a b\",\"NULL\",NULL}", 1009, Some("[a b, NULL, ]"));
        check("{}", 1009, Some("[]"));
        check("{{1}}", 1016, None);
    }

    #[test]
    fn binary_values_are_as_long_as_their_type() {
        for oid in [16, 17, 20, 21, 23, 25, 700, 701, 1082, 1083, 1114, 1184, 1186, 1700, 2950, 1016, 1009, 1231] {
            let data_type = written_type(oid).unwrap();
            for length in 0..40 {
                for fill in [0_u8, 1, 0x7f, 0xff] {
                    // It may not be readable; it must not panic or take memory.
                    let _ = value(Some(&Bytes::from(vec![fill; length])), Format::Binary, &data_type, 1);
                }
            }
        }
        let uuid = value(Some(&Bytes::from(vec![0xab; 16])), Format::Binary, &written_type(2950).unwrap(), 1).unwrap();
        assert_eq!(uuid.to_string(), "abababab-abab-abab-abab-abababababab");
        let numeric = Bytes::from_static(b"\0\x03\0\x01\x40\0\0\x02\0\x0c\x0d\x80\x1e\x78");
        let read = value(Some(&numeric), Format::Binary, &arrow_type(1700).unwrap(), 1).unwrap();
        assert_eq!(read.to_string(), "-123456.78");
    }
}
