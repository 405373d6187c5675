//! The digits of a number, as a format asks for them.

use super::Wanted;

/// A number, as it comes.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Number {
    /// With its digits as text: a whole number or one of fixed point.
    Exact(String),
    /// With how many digits its type has for sure.
    Float(f64, usize),
}

const ROMANS: [(u32, &str); 13] = [
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
];

/// Digits with the wanted number behind the point, and whether they are below zero.
pub(super) fn plain(number: &Number, wanted: &mut Wanted) -> (bool, String) {
    let signed = match number {
        Number::Exact(digits) => rounded(digits, wanted.shifted, wanted.behind),
        Number::Float(value, sure) => {
            let value = if wanted.is_shifting {
                value * 10_f64.powi(i32::try_from(wanted.shifted).unwrap_or(i32::MAX))
            } else {
                *value
            };
            if value.is_finite() {
                let places = format!("{:.0}", value.abs()).len();
                wanted.behind = wanted.behind.min(sure.saturating_sub(places));
                format!("{value:.*}", wanted.behind)
            } else {
                let name = if value.is_nan() { "NaN" } else { "Infinity" };
                wanted.behind = wanted.behind.min(sure.saturating_sub(name.len()));
                if value < 0.0 { format!("-{name}") } else { name.to_owned() }
            }
        }
    };
    match signed.strip_prefix('-') {
        Some(digits) => (true, digits.to_owned()),
        None => (false, signed),
    }
}

/// A number of fixed point times a power of ten, rounded away from zero in the middle.
fn rounded(number: &str, shifted: usize, behind: usize) -> String {
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", number),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let mut places: Vec<u8> = [whole, part].concat().into_bytes();
    let point = whole.len() + shifted;
    let wanted = point + behind;
    let is_up = places.get(wanted).is_some_and(|next| *next >= b'5');
    places.resize(wanted, b'0');
    if is_up {
        raise(&mut places);
    }
    let point = places.len() - behind;
    let text = String::from_utf8(places).unwrap_or_default();
    let (whole, part) = text.split_at(point);
    let whole = whole.trim_start_matches('0');
    let sign = if text.bytes().all(|digit| digit == b'0') { "" } else { sign };
    let whole = if whole.is_empty() { "0" } else { whole };
    if behind == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") }
}

/// Adds one to the last digit.
fn raise(digits: &mut Vec<u8>) {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
    digits.insert(0, b'1');
}

pub(super) fn roman(number: &Number) -> String {
    let whole = match number {
        Number::Exact(digits) => rounded(digits, 0, 0).parse().ok(),
        Number::Float(value, _) => Some(value.round_ties_even()),
    };
    let Some(whole) = whole.filter(|whole| (1.0..=3999.0).contains(whole)) else { return "#".repeat(15) };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 1 and 3999")]
    let mut rest = whole as u32;
    let mut text = String::new();
    for (value, letters) in ROMANS {
        while rest >= value {
            text.push_str(letters);
            rest -= value;
        }
    }
    text
}

pub(super) fn scientific(number: &Number, wanted: &Wanted) -> String {
    let (mantissa, exponent) = match number {
        Number::Float(value, _) if !value.is_finite() => {
            return format!(" {}.{}", "#".repeat(wanted.before), "#".repeat(wanted.behind + 4));
        }
        Number::Float(value, _) => {
            let text = format!("{value:.*e}", wanted.behind);
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            (mantissa.to_owned(), exponent.parse().unwrap_or(0))
        }
        Number::Exact(digits) => exact_mantissa(digits, wanted.behind),
    };
    let space = if mantissa.starts_with('-') { "" } else { " " };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{space}{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

fn exact_mantissa(number: &str, behind: usize) -> (String, i32) {
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |digits| ("-", digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all = [whole, part].concat();
    let first = all.find(|digit| digit != '0');
    let Some(first) = first else {
        return (rounded("0", 0, behind), 0);
    };
    let exponent = i32::try_from(whole.len()).unwrap_or(0) - i32::try_from(first).unwrap_or(0) - 1;
    let mantissa = format!("{sign}{}.{}", &all[first..=first], &all[first + 1..]);
    let mantissa = rounded(&mantissa, 0, behind);
    // 9.99 became 10.0.
    match mantissa.trim_start_matches('-').strip_prefix("10") {
        None => (mantissa, exponent),
        Some(_) => (rounded(&format!("{sign}1"), 0, behind), exponent + 1),
    }
}
