//! Formats of numbers as PostgreSQL's `to_char` has them: `FM999,990.00`.
//!
//! A port of PostgreSQL's own algorithm, with its names in plain words: what it gives for an odd format is what it happens
//! to do, and people compare. Locale `C`: `L` is a space, `D` a point, `G` a comma.

mod digits;

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    compute::cast,
    datatypes::{DataType, Float64Type},
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{common::exec_err, error::Result};

use self::digits::{Number, plain, roman, scientific};
use super::own::{Memo, Texts};

/// `to_char` of numbers and formats.
pub(super) fn show(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let (numbers, formats) = (&args[0], Texts::of(&args[1])?);
    let floats = match numbers.data_type() {
        DataType::Float16 | DataType::Float32 => Some((cast(numbers, &DataType::Float64)?, 6)),
        DataType::Float64 => Some((Arc::clone(numbers), 15)),
        _ => None,
    };
    let options = FormatOptions::new();
    let texts = ArrayFormatter::try_new(numbers, &options)?;
    let mut memo = Memo::new();
    let mut shown = Vec::with_capacity(rows);
    for row in 0..rows {
        shown.push(match formats.get(row).filter(|_| numbers.is_valid(row)) {
            None => None,
            Some(format) => {
                let number = match &floats {
                    Some((floats, digits)) => Number::Float(floats.as_primitive::<Float64Type>().value(row), *digits),
                    None => Number::Exact(texts.value(row).try_to_string()?),
                };
                Some(memo.get(format, NumberFormat::new)?.show(&number))
            }
        });
    }
    Ok(Arc::new(StringArray::from(shown)))
}

/// Digits that a format may ask for. Rust's own formats end at 65,535.
const PLACES_MAX: usize = 1_000;

/// One part of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nine,
    Zero,
    Point,
    Comma,
    Currency,
    Minus,
    Plus,
    Sign,
    Roman {
        is_lower: bool,
    },
    Ordinal {
        is_lower: bool,
    },
    /// Seen when the format is taken apart, and shows nothing by itself.
    Silent,
    Letter(char),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Anchor {
    #[default]
    None,
    Before,
    Behind,
}

/// What the parts of a format ask for.
#[derive(Debug, Clone, Default)]
struct Wanted {
    /// Places before and behind the point, and those that `V` shifts by.
    before: usize,
    behind: usize,
    shifted: usize,
    /// Where the first `0` stands, counted from one, and how many places end with the last.
    zero_start: usize,
    zero_end: usize,
    /// The anchored sign of `S`.
    anchor: Anchor,
    places_before_anchor: usize,
    has_point: bool,
    has_zero: bool,
    is_short: bool,
    has_anchor: bool,
    has_angles: bool,
    has_minus: bool,
    has_plus: bool,
    is_roman: bool,
    is_shifting: bool,
    has_exponent: bool,
    is_blank: bool,
}

/// A format that was taken apart.
#[derive(Debug)]
pub(super) struct NumberFormat {
    parts: Vec<Part>,
    wanted: Wanted,
}

/// The patterns, longest first where one begins another. Written in one case, all upper or all lower.
const PATTERNS: [&str; 19] =
    [",", ".", "0", "9", "EEEE", "FM", "MI", "PL", "PR", "RN", "SG", "SP", "TH", "B", "C", "D", "G", "L", "S"];

impl NumberFormat {
    /// Errors: for patterns that contradict each other, and too many digits.
    pub(super) fn new(written: &str) -> Result<Self> {
        let mut format = Self { parts: Vec::new(), wanted: Wanted::default() };
        let mut rest = written;
        while let Some(next) = rest.chars().next() {
            let found = PATTERNS.iter().chain(&["V"]).find(|name| {
                rest.strip_prefix(**name).is_some() || rest.strip_prefix(name.to_ascii_lowercase().as_str()).is_some()
            });
            if let Some(name) = found {
                let part = format.wanted.add(name, next.is_ascii_lowercase())?;
                format.parts.push(part);
                rest = &rest[name.len()..];
            } else if let Some(quoted) = rest.strip_prefix('"') {
                rest = format.quoted(quoted);
            } else {
                let is_escaped = rest.starts_with("\\\"");
                let letter = if is_escaped { '"' } else { next };
                rest = &rest[if is_escaped { 2 } else { next.len_utf8() }..];
                format.parts.push(Part::Letter(letter));
            }
        }
        let places = format.wanted.before + format.wanted.behind + format.wanted.shifted;
        if places > PLACES_MAX {
            return exec_err!("a format of a number has {places} digits, {PLACES_MAX} are allowed");
        }
        Ok(format)
    }

    /// Takes what stands in quotes, and gives what stands behind them.
    fn quoted<'a>(&mut self, text: &'a str) -> &'a str {
        let mut letters = text.char_indices();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '"' => return &text[at + 1..],
                '\\' => self.parts.push(Part::Letter(letters.next().map_or('\\', |(_, escaped)| escaped))),
                letter => self.parts.push(Part::Letter(letter)),
            }
        }
        ""
    }

    pub(super) fn show(&self, number: &Number) -> String {
        let mut wanted = self.wanted.clone();
        if wanted.has_exponent {
            return scientific(number, &wanted);
        }
        let (is_negative, digits) = if wanted.is_roman {
            wanted = Wanted { is_roman: true, is_short: wanted.is_short, ..Wanted::default() };
            (false, roman(number))
        } else {
            wanted.before += wanted.shifted;
            plain(number, &mut wanted)
        };
        let places = digits.find('.').unwrap_or(digits.len());
        let mut spaces = 0;
        let digits = if wanted.is_roman || places == wanted.before {
            digits
        } else if places < wanted.before {
            spaces = wanted.before - places;
            digits
        } else {
            format!("{}.{}", "#".repeat(wanted.before), "#".repeat(wanted.behind))
        };
        let digits: Vec<char> = digits.chars().collect();
        Showing::new(wanted, is_negative, &digits, spaces).all(&self.parts)
    }
}

impl Wanted {
    fn add(&mut self, pattern: &str, is_lower: bool) -> Result<Part> {
        if self.has_exponent {
            return match pattern {
                "EEEE" => exec_err!("a format cannot have `EEEE` twice"),
                _ => exec_err!("`EEEE` is the last pattern of a format"),
            };
        }
        if matches!(pattern, "MI" | "PL" | "SG" | "PR") && self.has_anchor
            || pattern == "S" && (self.has_plus || self.has_minus || self.has_angles)
            || pattern == "PR" && (self.has_plus || self.has_minus)
        {
            return exec_err!("a format cannot have more than one of `S`, `PR`, and `PL`, `MI`, `SG`");
        }
        Ok(match pattern {
            "9" | "0" if self.has_angles => return exec_err!("`{pattern}` stands before `PR`"),
            "9" => {
                match (self.is_shifting, self.has_point) {
                    (true, _) => self.shifted += 1,
                    (false, true) => self.behind += 1,
                    (false, false) => self.before += 1,
                }
                Part::Nine
            }
            "0" => {
                if !self.has_zero && !self.has_point {
                    self.has_zero = true;
                    self.zero_start = self.before + 1;
                }
                if self.has_point {
                    self.behind += 1
                } else {
                    self.before += 1
                }
                self.zero_end = self.before + self.behind;
                Part::Zero
            }
            "." | "D" => {
                if self.has_point {
                    return exec_err!("a format has one decimal point");
                }
                if self.is_shifting {
                    return exec_err!("a format cannot have `V` and a decimal point");
                }
                self.has_point = true;
                Part::Point
            }
            "V" => {
                if self.has_point {
                    return exec_err!("a format cannot have `V` and a decimal point");
                }
                self.is_shifting = true;
                Part::Silent
            }
            "S" => {
                if self.has_anchor {
                    return exec_err!("a format cannot have `S` twice");
                }
                self.has_anchor = true;
                self.anchor = if self.has_point { Anchor::Behind } else { Anchor::Before };
                self.places_before_anchor = self.before;
                Part::Silent
            }
            "MI" => {
                self.has_minus = true;
                Part::Minus
            }
            "PL" => {
                self.has_plus = true;
                Part::Plus
            }
            "SG" => {
                (self.has_minus, self.has_plus) = (true, true);
                Part::Sign
            }
            "PR" => {
                self.has_angles = true;
                Part::Silent
            }
            "FM" => {
                self.is_short = true;
                Part::Silent
            }
            "RN" => {
                self.is_roman = true;
                Part::Roman { is_lower }
            }
            "EEEE" => {
                let others = [self.is_short, self.has_anchor, self.has_angles, self.has_minus, self.has_plus];
                if others.contains(&true) || self.is_roman || self.is_shifting || self.is_blank {
                    return exec_err!("`EEEE` goes with digits and a decimal point only");
                }
                self.has_exponent = true;
                Part::Silent
            }
            "B" => {
                self.is_blank |= self.before == 0 && self.behind == 0 && !self.has_zero;
                Part::Silent
            }
            "," | "G" => Part::Comma,
            "L" => Part::Currency,
            "TH" => Part::Ordinal { is_lower },
            _ => Part::Silent,
        })
    }
}

/// One number that is being shown.
struct Showing<'a> {
    wanted: Wanted,
    is_negative: bool,
    is_sign_written: bool,
    digits: &'a [char],
    /// The digit that is next.
    at: usize,
    /// The last digit that is worth showing in a short form, when the number has a point.
    last: Option<usize>,
    /// Places before the number's first digit.
    spaces: usize,
    /// Places, as far as the end is concerned.
    count: usize,
    place: usize,
    is_inside: bool,
    text: String,
}

impl<'a> Showing<'a> {
    fn new(mut wanted: Wanted, is_negative: bool, digits: &'a [char], spaces: usize) -> Self {
        wanted.zero_start = wanted.zero_start.saturating_sub(1);
        let is_sign_written = if wanted.has_plus || wanted.has_minus {
            wanted.has_minus
        } else {
            if !is_negative && wanted.is_short {
                wanted.has_angles = false;
            }
            if wanted.anchor == Anchor::Before && wanted.before == wanted.places_before_anchor {
                wanted.anchor = Anchor::Behind;
            }
            !is_negative && wanted.is_short && !wanted.has_anchor
        };
        let mut last = None;
        if wanted.is_short && wanted.has_point {
            last = digits
                .iter()
                .position(|digit| *digit == '.')
                .map(|point| digits.iter().rposition(|digit| *digit != '0').map_or(point, |digit| digit.max(point)));
            if wanted.zero_end > spaces {
                let zero = (wanted.zero_end - spaces).min(digits.len().saturating_sub(1));
                last = last.map(|last| last.max(zero));
            }
        }
        let mut count = (wanted.behind + wanted.before).saturating_sub(1);
        if !is_sign_written && spaces == 0 {
            count += 1;
        }
        Self {
            wanted,
            is_negative,
            is_sign_written,
            digits,
            at: 0,
            last,
            spaces,
            count,
            place: 0,
            is_inside: false,
            text: String::new(),
        }
    }

    fn all(mut self, parts: &[Part]) -> String {
        for part in parts {
            self.part(*part);
        }
        self.text
    }

    fn part(&mut self, part: Part) {
        let is_short = self.wanted.is_short;
        let sign = if self.is_negative { '-' } else { '+' };
        match part {
            Part::Nine | Part::Zero | Part::Point if self.wanted.is_roman => {}
            Part::Nine | Part::Zero | Part::Point => self.digit(part == Part::Zero),
            Part::Comma if self.is_inside => self.text.push(','),
            Part::Comma if is_short => {}
            Part::Comma | Part::Currency => self.text.push(' '),
            Part::Minus if self.is_negative => self.text.push('-'),
            Part::Plus if !self.is_negative => self.text.push('+'),
            Part::Minus | Part::Plus if is_short => {}
            Part::Minus | Part::Plus => self.text.push(' '),
            Part::Sign => self.text.push(sign),
            Part::Roman { is_lower } => {
                let roman: String = self.digits.iter().collect();
                let roman = if is_lower { roman.to_ascii_lowercase() } else { roman };
                let width = if is_short { 0 } else { 15 };
                self.text.push_str(&format!("{roman:>width$}"));
            }
            Part::Ordinal { is_lower } => {
                let is_without = self.wanted.is_roman || self.is_negative || self.wanted.has_point;
                if !is_without && self.digits.first() != Some(&'#') {
                    let ending = ordinal(self.digits);
                    self.text.push_str(if is_lower { ending.1 } else { ending.0 });
                }
            }
            Part::Silent => {}
            Part::Letter(letter) => self.text.push(letter),
        }
    }

    /// True where `9.9` shows `.1`.
    fn is_bare_zero(&self) -> bool {
        !self.wanted.has_zero && self.at == 0 && self.digits.first() == Some(&'0') && self.wanted.behind != 0
    }

    fn ends_at_point(&self) -> bool {
        self.last.is_some_and(|last| self.digits[last] == '.')
    }

    fn sign(&mut self) {
        let (is_short, is_negative) = (self.wanted.is_short, self.is_negative);
        if self.wanted.has_anchor {
            if self.wanted.anchor != Anchor::Before {
                return;
            }
            self.text.push(if is_negative { '-' } else { '+' });
        } else if self.wanted.has_angles {
            self.text.push(if is_negative { '<' } else { ' ' });
        } else if is_negative {
            self.text.push('-');
        } else if !is_short {
            self.text.push(' ');
        }
        self.is_sign_written = true;
    }

    fn digit(&mut self, is_zero: bool) {
        self.is_inside = false;
        let is_short = self.wanted.is_short;
        let is_padding = self.place < self.spaces;
        let begins_zeros = self.wanted.has_zero && self.wanted.zero_start == self.place;
        if !self.is_sign_written && (!is_padding || begins_zeros) && (!self.is_bare_zero() || self.ends_at_point()) {
            self.sign();
        }
        if is_padding && (self.wanted.zero_start > self.place || !self.wanted.has_zero) {
            if !is_short {
                self.text.push(' ');
            }
        } else if is_padding {
            self.text.push('0');
            self.is_inside = true;
        } else {
            self.real_digit(is_zero);
            self.at = (self.at + 1).min(self.digits.len());
        }
        let mut end = self.count + usize::from(self.spaces > 0) + usize::from(self.wanted.has_point);
        if self.last == Some(self.at) {
            end = self.place;
        }
        if self.place + 1 == end {
            if self.is_sign_written && self.wanted.has_angles {
                self.text.push(if self.is_negative { '>' } else { ' ' });
            } else if self.wanted.has_anchor && self.wanted.anchor == Anchor::Behind {
                self.text.push(if self.is_negative { '-' } else { '+' });
            }
        }
        self.place += 1;
    }

    fn real_digit(&mut self, is_zero: bool) {
        let is_short = self.wanted.is_short;
        match self.digits.get(self.at) {
            Some('.') => self.text.push('.'),
            _ if self.last.is_some_and(|last| self.at > last) && !is_zero => {}
            _ if self.is_bare_zero() => {
                if !is_short {
                    self.text.push(' ');
                } else if self.ends_at_point() {
                    self.text.push('0');
                }
            }
            Some(digit) => {
                self.text.push(*digit);
                self.is_inside = true;
            }
            // A double has no more digits.
            None => self.is_inside = true,
        }
    }
}

/// `st` and its like, for what ends in these digits; in capital letters first.
fn ordinal(digits: &[char]) -> (&'static str, &'static str) {
    let is_teen = digits.len() > 1 && digits[digits.len() - 2] == '1';
    match digits.last() {
        Some('1') if !is_teen => ("ST", "st"),
        Some('2') if !is_teen => ("ND", "nd"),
        Some('3') if !is_teen => ("RD", "rd"),
        _ => ("TH", "th"),
    }
}
