//! PostgreSQL's binary numerics: groups of four decimal digits.
//!
//! Layout (src/backend/utils/adt/numeric.c, `numeric_send`): four big-endian 16-bit numbers, the count of groups, the first
//! group's weight (as a power of 10000), the sign and the number of digits shown after the point, then the groups.

use crate::parse;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const PLUS_INFINITY: u16 = 0xd000;
const MINUS_INFINITY: u16 = 0xf000;

/// A numeric as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numeric<'a> {
    Finite { negative: bool, weight: i16, digits_shown: u16, groups: &'a [u8] },
    NotANumber,
    Infinite { negative: bool },
}

impl<'a> Numeric<'a> {
    /// Reads one. None when the bytes are not one.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head, groups) = bytes.split_at_checked(8)?;
        let word = |n: usize| u16::from_be_bytes([head[n * 2], head[n * 2 + 1]]);
        match word(2) {
            NAN => return Some(Self::NotANumber),
            PLUS_INFINITY => return Some(Self::Infinite { negative: false }),
            MINUS_INFINITY => return Some(Self::Infinite { negative: true }),
            0 | NEGATIVE => {}
            _ => return None,
        }
        let whole = groups.len() == usize::from(word(0)) * 2;
        let small = groups.chunks_exact(2).all(|g| u16::from_be_bytes([g[0], g[1]]) < 10_000);
        (whole && small).then_some(Self::Finite {
            negative: word(2) == NEGATIVE,
            weight: word(1) as i16,
            digits_shown: word(3),
            groups,
        })
    }

    /// The number as a whole count of 10^-scale; none when that is not exact or has more digits than asked for.
    pub(crate) fn scaled(&self, digits_max: u8, scale: i8) -> Option<i128> {
        let Self::Finite { negative, weight, groups, .. } = *self else { return None };
        let mut value = 0_i128;
        for (n, group) in groups.chunks_exact(2).enumerate() {
            let group = i128::from(u16::from_be_bytes([group[0], group[1]]));
            if group == 0 {
                continue;
            }
            let power = (i32::from(weight) - n as i32) * 4 + i32::from(scale);
            let part = if power >= 0 {
                group.checked_mul(10_i128.checked_pow(power as u32)?)?
            } else {
                // Digits finer than the scale must be zeros.
                let finer = 10_i128.checked_pow(power.unsigned_abs())?;
                if group % finer != 0 {
                    return None;
                }
                group / finer
            };
            value = value.checked_add(part)?;
        }
        parse::fits(value, digits_max).then_some(if negative { -value } else { value })
    }

    /// Writes it for people: whole unless it is longer than an error can show anyway.
    pub(crate) fn text(&self) -> String {
        /// More groups than anybody reads.
        const GROUPS_MAX: i32 = 25;
        let Self::Finite { negative, weight, digits_shown, groups } = *self else {
            return match self {
                Self::Infinite { negative: true } => "-Infinity".to_owned(),
                Self::Infinite { .. } => "Infinity".to_owned(),
                _ => "NaN".to_owned(),
            };
        };
        let group = |place: i32| {
            let n = usize::try_from(i32::from(weight) - place).ok().map(|n| n * 2);
            n.and_then(|n| groups.get(n..n + 2)).map_or(0, |g| u16::from_be_bytes([g[0], g[1]]))
        };
        let first = i32::from(weight).max(0);
        let sign = if negative { "-" } else { "" };
        let whole: String = (0..=first).rev().take(GROUPS_MAX as usize).map(|p| format!("{:04}", group(p))).collect();
        let whole = whole.trim_start_matches('0');
        let mut text = format!("{sign}{}", if whole.is_empty() { "0" } else { whole });
        if first >= GROUPS_MAX {
            return format!("{text}...");
        }
        if digits_shown > 0 {
            let shown = i32::from(digits_shown).min(GROUPS_MAX * 4);
            let part: String = (1..=(shown + 3) / 4).map(|p| format!("{:04}", group(-p))).collect();
            text.push('.');
            text.push_str(&part[..shown as usize]);
        }
        text
    }
}

/// Writes a whole count of 10^-scale as a binary numeric.
pub(crate) fn write(value: i128, scale: i8, out: &mut Vec<u8>) {
    let scale_up = usize::from(scale.max(0).unsigned_abs());
    let mut digits = value.unsigned_abs().to_string();
    if scale < 0 && value != 0 {
        digits.push_str(&"0".repeat(usize::from(scale.unsigned_abs())));
    }
    // Whole groups on both sides of the point.
    let whole_len = digits.len().saturating_sub(scale_up);
    let mut padded = "0".repeat((4 - whole_len % 4) % 4);
    if digits.len() < scale_up {
        padded.push_str(&"0".repeat(scale_up - digits.len()));
        // No whole digits at all: the padding before the point is empty.
    }
    padded.push_str(&digits);
    padded.push_str(&"0".repeat((4 - scale_up % 4) % 4));
    let mut groups: Vec<u16> =
        padded.as_bytes().chunks(4).map(|g| g.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'))).collect();
    let mut weight = whole_len.div_ceil(4) as i16 - 1;
    let zeros = groups.iter().take_while(|g| **g == 0).count();
    groups.drain(..zeros);
    weight -= zeros as i16;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    let sign = if value < 0 { NEGATIVE } else { 0 };
    for word in [groups.len() as u16, weight as u16, sign, scale_up as u16].into_iter().chain(groups) {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    #[test]
    fn numerics_are_read_exactly() {
        // 12345.67 is 1 2345 . 6700
        let b = bytes(&[3, 1, 0, 2, 1, 2345, 6700]);
        let n = Numeric::read(&b).unwrap();
        assert_eq!(n.scaled(10, 2), Some(1_234_567));
        assert_eq!(n.scaled(10, 1), None);
        assert_eq!(n.scaled(6, 2), None);
        assert_eq!(n.text(), "12345.67");
        let huge = bytes(&[1, 125, 0, 0, 1]);
        assert_eq!(Numeric::read(&huge).unwrap().scaled(38, 0), None);
        assert!(Numeric::read(&huge).unwrap().text().ends_with("..."));
        let tiny = bytes(&[1, (-2_i16) as u16, NEGATIVE, 8, 5000]);
        assert_eq!(Numeric::read(&tiny).unwrap().text(), "-0.00005000");
        assert_eq!(Numeric::read(&tiny).unwrap().scaled(38, 5), Some(-5));
        assert_eq!(Numeric::read(&bytes(&[0, 0, NAN, 0])), Some(Numeric::NotANumber));
        for bad in [&[][..], &[1, 0, 0, 0], &[0, 0, 7, 0], &[1, 0, 0, 0, 10_000], &[0, 0, 0, 0, 1]] {
            assert_eq!(Numeric::read(&bytes(bad)), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn written_numerics_are_read_again(value in any::<i128>(), small in any::<i32>(), scale in 0_i8..=38) {
            for value in [value % 10_i128.pow(38), i128::from(small), 0] {
                let mut b = Vec::new();
                write(value, scale, &mut b);
                let n = Numeric::read(&b).unwrap();
                prop_assert_eq!(n.scaled(38, scale), Some(value));
                prop_assert_eq!(n.text(), parse::decimal_text(value, scale));
            }
        }

        #[test]
        fn no_bytes_panic(b in prop::collection::vec(any::<u8>(), 0..40), digits in 0_u8..=38, scale in -5_i8..=38) {
            if let Some(n) = Numeric::read(&b) {
                let _ = (n.scaled(digits, scale), n.text());
            }
        }
    }
}
