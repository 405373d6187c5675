//! Fields of binary COPY into Arrow's builders.

use super::{numeric::Numeric, plan::Wire};
use crate::{
    column::{Column, Misfit, Values, shown},
    parse,
    source::Specials,
};

/// Days from 1970 to 2000, where PostgreSQL counts from.
pub(crate) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(crate) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * parse::DAY_MICROS;

/// Why a field was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// The value does not fit the column.
    Misfit(Misfit),
    /// The bytes are not a value of the type.
    Broken,
}

impl From<Misfit> for Refused {
    fn from(misfit: Misfit) -> Self {
        Self::Misfit(misfit)
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Refused> {
    bytes.try_into().map_err(|_| Refused::Broken)
}

/// Reads text, which only a database without an encoding (`SQL_ASCII`) sends as anything but UTF-8.
fn utf8<'a>(bytes: &'a [u8], column: &Column) -> Result<&'a str, Refused> {
    std::str::from_utf8(bytes)
        .map_err(|e| Refused::Misfit(column.misfit(format!("text that is not UTF-8: {e}"), "blob")))
}

/// Adds a field to a column. Answers how many values became null for want of a place for them.
pub(super) fn field(wire: &Wire, bytes: &[u8], column: &mut Column, specials: Specials) -> Result<u64, Refused> {
    match wire {
        Wire::Bool => match (bytes, &mut column.values) {
            ([flag @ (0 | 1)], Values::Boolean(b)) => {
                b.append_value(*flag == 1);
                column.bytes += 1;
            }
            _ => return Err(Refused::Broken),
        },
        Wire::Int2 => column.integer(i16::from_be_bytes(fixed(bytes)?).into())?,
        Wire::Int4 => column.integer(i32::from_be_bytes(fixed(bytes)?).into())?,
        Wire::Int8 => column.integer(i64::from_be_bytes(fixed(bytes)?))?,
        Wire::Oid => column.integer(u32::from_be_bytes(fixed(bytes)?).into())?,
        Wire::Float4 => column.real(f32::from_be_bytes(fixed(bytes)?).into())?,
        Wire::Float8 => column.real(f64::from_be_bytes(fixed(bytes)?))?,
        Wire::Numeric => return numeric(bytes, column, specials),
        Wire::Text => column.text(utf8(bytes, column)?)?,
        Wire::Padded => column.text(utf8(bytes, column)?.trim_end_matches(' '))?,
        Wire::Bytes => column.blob(bytes)?,
        Wire::Date => return date(i32::from_be_bytes(fixed(bytes)?), column, specials),
        Wire::Timestamp => return timestamp(i64::from_be_bytes(fixed(bytes)?), column, specials),
        Wire::Time => {
            let micros = i64::from_be_bytes(fixed(bytes)?);
            match &mut column.values {
                Values::Time(b) if (0..parse::DAY_MICROS).contains(&micros) => b.append_value(micros),
                _ if micros == parse::DAY_MICROS => return Err(column.misfit("24:00:00", "varchar").into()),
                _ => return Err(Refused::Broken),
            }
            column.bytes += 8;
        }
        Wire::Uuid => column.text(&uuid(fixed(bytes)?))?,
        Wire::Array(element, oid) => return array(element, *oid, bytes, column, specials),
    }
    Ok(0)
}

/// Takes a value that no lake type holds.
fn special(shown: &str, column: &mut Column, specials: Specials) -> Result<u64, Refused> {
    match specials {
        Specials::Null => {
            column.null();
            Ok(1)
        }
        Specials::Fail => Err(column.misfit(shown, "varchar").into()),
    }
}

fn numeric(bytes: &[u8], column: &mut Column, specials: Specials) -> Result<u64, Refused> {
    let number = Numeric::read(bytes).ok_or(Refused::Broken)?;
    if !matches!(number, Numeric::Finite { .. }) {
        return special(&number.text(), column, specials);
    }
    if let Values::Decimal(b, digits, scale) = &mut column.values {
        return match number.scaled(*digits, *scale) {
            Some(value) => {
                b.append_value(value);
                column.bytes += 16;
                Ok(0)
            }
            None => Err(column.misfit(number.text(), "varchar").into()),
        };
    }
    match number.scaled(19, 0).and_then(|v| i64::try_from(v).ok()) {
        Some(value) => column.integer(value)?,
        None => return Err(column.misfit(number.text(), "varchar").into()),
    }
    Ok(0)
}

fn date(days: i32, column: &mut Column, specials: Specials) -> Result<u64, Refused> {
    match days {
        i32::MAX => return special("infinity", column, specials),
        i32::MIN => return special("-infinity", column, specials),
        _ => {}
    }
    match (&mut column.values, days.checked_add(EPOCH_DAYS)) {
        (Values::Date(b), Some(days)) => b.append_value(days),
        _ => return Err(column.misfit(format!("day {days} after 2000-01-01"), "varchar").into()),
    }
    column.bytes += 4;
    Ok(0)
}

fn timestamp(micros: i64, column: &mut Column, specials: Specials) -> Result<u64, Refused> {
    match micros {
        i64::MAX => return special("infinity", column, specials),
        i64::MIN => return special("-infinity", column, specials),
        _ => {}
    }
    match (&mut column.values, micros.checked_add(EPOCH_MICROS)) {
        (Values::Timestamp(b, _), Some(micros)) => b.append_value(micros),
        _ => return Err(column.misfit(format!("{micros} microseconds after 2000-01-01"), "varchar").into()),
    }
    column.bytes += 8;
    Ok(0)
}

fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (n, byte) in bytes.into_iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text
}

/// Reads an array: dimensions, a flag for nulls, the element's OID, a length and a lower bound per dimension, the elements.
fn array(element: &Wire, oid: u32, bytes: &[u8], column: &mut Column, specials: Specials) -> Result<u64, Refused> {
    let mut at = 0;
    let mut word = || {
        let word = bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| i32::from_be_bytes(*b));
        at += 4;
        word.ok_or(Refused::Broken)
    };
    let (dimensions, flags, sent) = (word()?, word()?, word()?);
    if !(0..=6).contains(&dimensions) || !(0..=1).contains(&flags) || sent as u32 != oid {
        return Err(Refused::Broken);
    }
    if dimensions > 1 {
        let shown = format!("an array of {dimensions} dimensions");
        return Err(Misfit { reason: format!("{shown}, which is not a list"), instead: "json" }.into());
    }
    let mut count = 0;
    if dimensions == 1 {
        count = word()?;
        let _lower_bound = word()?;
    }
    let Values::List(list) = &mut column.values else { return Err(Refused::Broken) };
    let mut nulled = 0;
    for _ in 0..count {
        let length = bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| i32::from_be_bytes(*b));
        at += 4;
        match length.ok_or(Refused::Broken)? {
            -1 => list.elements.null(),
            length => {
                let end = usize::try_from(length).ok().and_then(|l| at.checked_add(l)).ok_or(Refused::Broken)?;
                let value = bytes.get(at..end).ok_or(Refused::Broken)?;
                nulled += field(element, value, &mut list.elements, specials)?;
                at = end;
            }
        }
    }
    if count < 0 || at != bytes.len() {
        return Err(Refused::Broken);
    }
    list.close(true);
    column.bytes += 8 + bytes.len();
    Ok(nulled)
}

/// Writes a field for an error that names a row by its key.
pub(super) fn text(wire: &Wire, bytes: &[u8]) -> String {
    let number = match (wire, bytes) {
        (Wire::Text | Wire::Padded, _) => return shown(&String::from_utf8_lossy(bytes)),
        (Wire::Numeric, _) => return Numeric::read(bytes).map_or_else(|| "?".to_owned(), |n| n.text()),
        (Wire::Int2 | Wire::Int4 | Wire::Int8, [first, ..]) if bytes.len() <= 8 => {
            let mut wide = if *first > 127 { [0xff; 8] } else { [0; 8] };
            wide[8 - bytes.len()..].copy_from_slice(bytes);
            Some(i64::from_be_bytes(wide).to_string())
        }
        (Wire::Oid, _) => bytes.try_into().ok().map(|b| u32::from_be_bytes(b).to_string()),
        (Wire::Uuid, _) => bytes.try_into().ok().map(uuid),
        (Wire::Date, _) => {
            let days = bytes.try_into().ok().map(i32::from_be_bytes);
            days.and_then(|d| parse::date_text(d.checked_add(EPOCH_DAYS)?))
        }
        (Wire::Timestamp, _) => {
            let micros = bytes.try_into().ok().map(i64::from_be_bytes);
            micros.and_then(|m| parse::timestamp_text(m.checked_add(EPOCH_MICROS)?, ' '))
        }
        _ => None,
    };
    number.unwrap_or_else(|| bytes.iter().take(30).map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types;

    fn column(name: &str) -> Column {
        Column::new(&types::parse(name).unwrap().data_type).unwrap()
    }

    fn words(words: &[i32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    #[test]
    fn specials_become_null_or_fail() {
        for (wire, kind, bytes) in [
            (Wire::Timestamp, "timestamptz", i64::MAX.to_be_bytes().to_vec()),
            (Wire::Timestamp, "timestamp", i64::MIN.to_be_bytes().to_vec()),
            (Wire::Date, "date", i32::MIN.to_be_bytes().to_vec()),
            (Wire::Numeric, "decimal(5,2)", vec![0, 0, 0, 0, 0xc0, 0, 0, 0]),
            (Wire::Numeric, "bigint", vec![0, 0, 0, 0, 0xd0, 0, 0, 0]),
        ] {
            assert_eq!(field(&wire, &bytes, &mut column(kind), Specials::Null), Ok(1), "{kind}");
            let failed = field(&wire, &bytes, &mut column(kind), Specials::Fail);
            assert!(matches!(failed, Err(Refused::Misfit(_))), "{kind}");
        }
    }

    #[test]
    fn the_end_of_the_day_is_not_its_beginning() {
        let refused = field(&Wire::Time, &parse::DAY_MICROS.to_be_bytes(), &mut column("time"), Specials::Null);
        assert!(matches!(refused, Err(Refused::Misfit(m)) if m.reason.contains("24:00")));
    }

    #[test]
    fn arrays_of_one_dimension_are_lists() {
        let wire = Wire::Array(Box::new(Wire::Int4), 23);
        let check = |bytes: &[i32]| field(&wire, &words(bytes), &mut column("integer[]"), Specials::Null);
        assert_eq!(check(&[0, 0, 23]), Ok(0));
        assert_eq!(check(&[1, 1, 23, 2, 1, 4, 7, -1]), Ok(0));
        assert!(matches!(check(&[2, 0, 23, 1, 1, 1, 1, 4, 7]), Err(Refused::Misfit(_))));
        for broken in
            [&[][..], &[1, 0, 23], &[1, 0, 20, 1, 1, 4, 7], &[1, 0, 23, 1, 1, 400], &[1, 0, 23, -1, 1], &[0, 0, 23, 9]]
        {
            assert_eq!(check(broken), Err(Refused::Broken), "{broken:?}");
        }
    }

    #[test]
    fn keys_are_shown() {
        assert_eq!(text(&Wire::Int4, &(-5_i32).to_be_bytes()), "-5");
        assert_eq!(text(&Wire::Uuid, &[0xab; 16]), "abababab-abab-abab-abab-abababababab");
        assert_eq!(text(&Wire::Date, &0_i32.to_be_bytes()), "2000-01-01");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), oid in 0_u8..30) {
            let wires = [
                (Wire::Bool, "boolean"), (Wire::Int2, "smallint"), (Wire::Int4, "tinyint"), (Wire::Int8, "decimal(5,2)"),
                (Wire::Oid, "bigint"), (Wire::Float4, "real"), (Wire::Float8, "real"), (Wire::Numeric, "decimal(9,3)"),
                (Wire::Numeric, "integer"), (Wire::Text, "varchar"), (Wire::Padded, "varchar"), (Wire::Bytes, "blob"),
                (Wire::Date, "date"), (Wire::Timestamp, "timestamp"), (Wire::Time, "time"), (Wire::Uuid, "uuid"),
                (Wire::Array(Box::new(Wire::Int4), u32::from(oid)), "integer[]"),
            ];
            for (wire, kind) in wires {
                let _ = field(&wire, &bytes, &mut column(kind), Specials::Null);
                let _ = text(&wire, &bytes);
            }
        }
    }
}
