//! Durations, sizes and times of day as people write them in files: `45m`, `64MiB`, `07:00`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Says why a text is not a duration, a size or a time of day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("`{0}` is not a duration: write it as `30s`, `45m`, `2h`, `7d`, or `1h30m`")]
    Duration(String),
    /// Not a size.
    #[error("`{0}` is not a size: write it as `512KiB`, `64MiB` or `1GiB`")]
    Size(String),
    /// Not a time of day.
    #[error("`{0}` is not a time of day: write it as `07:00`")]
    TimeOfDay(String),
}

/// A length of time, written `30s`, `45m`, `2h`, `200d`, `500ms` or a sum of these as `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl Span {
    /// Makes a span of whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// Makes a span of whole days of 24 hours.
    pub const fn from_days(days: u64) -> Self {
        Self::from_secs(days * 86_400)
    }

    /// The length.
    pub fn duration(self) -> Duration {
        self.0
    }
}

/// Units of a span and their milliseconds, longest first.
const SPAN_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let fail = || UnitError::Duration(s.to_owned());
        let mut rest = s;
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fail)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let (_, millis) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(fail)?;
            let number: u64 = number.parse().map_err(|_| fail())?;
            total = number.checked_mul(*millis).and_then(|n| total.checked_add(n)).ok_or_else(fail)?;
            rest = tail;
        }
        // A century and more is a slip of the keyboard, and would overflow where it is added to a time.
        if s.is_empty() || total > 200 * 365 * 86_400_000 {
            return Err(fail());
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        // Weeks are read but not written: `200d` stays `200d`.
        for (unit, size) in SPAN_UNITS.iter().skip(1) {
            let count = millis / size;
            millis %= size;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

/// A number of bytes, written `512KiB`, `64MiB`, `1GiB`, `10GB`, or as plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

impl ByteSize {
    /// Makes a size of whole mebibytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// Makes a size of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// Units of a size and their bytes, largest first.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let fail = || UnitError::Size(s.to_owned());
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let unit = unit.trim_start();
        let factor = if unit.is_empty() {
            1
        } else {
            SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(fail)?.1
        };
        let number: u64 = number.parse().map_err(|_| fail())?;
        number.checked_mul(factor).map(Self).ok_or_else(fail)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = SIZE_UNITS.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        let (unit, size) = whole.unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

/// A moment of the wall clock, written `07:00`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay {
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
}

impl FromStr for TimeOfDay {
    type Err = UnitError;

    fn from_str(s: &str) -> Result<Self, UnitError> {
        let fail = || UnitError::TimeOfDay(s.to_owned());
        let two = |t: &str, below: u8| {
            let digits = (1..=2).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
            t.parse().ok().filter(|n: &u8| digits && *n < below)
        };
        let (hour, minute) = s.split_once(':').ok_or_else(fail)?;
        if minute.len() != 2 {
            return Err(fail());
        }
        Ok(Self { hour: two(hour, 24).ok_or_else(fail)?, minute: two(minute, 60).ok_or_else(fail)? })
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

macro_rules! text_type {
    ($type:ident, $format:literal, $description:literal) => {
        impl TryFrom<String> for $type {
            type Error = UnitError;

            fn try_from(s: String) -> Result<Self, UnitError> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, "description": $description })
            }
        }
    };
}

text_type!(Span, "span", "a length of time as `30s`, `45m`, `2h`, `7d`");
text_type!(ByteSize, "byte-size", "a number of bytes as `64MiB`");
text_type!(TimeOfDay, "time-of-day", "a time of day as `07:00`");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, millis, shown) in [
            ("30s", 30_000, "30s"),
            ("45m", 2_700_000, "45m"),
            ("90m", 5_400_000, "1h30m"),
            ("2w", 14 * 86_400_000, "14d"),
            ("200d", 200 * 86_400_000, "200d"),
            ("500ms", 500, "500ms"),
            ("0s", 0, "0s"),
            ("1h30m", 5_400_000, "1h30m"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.duration().as_millis(), millis, "{text}");
            assert_eq!(span.to_string(), shown);
        }
        for bad in ["", "5", "m", "5 m", "-5m", "5x", "1.5h", "99999999999999999999d", "999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, shown) in
            [("64MiB", 64 << 20, "64MiB"), ("1gib", 1 << 30, "1GiB"), ("10 GB", 10_000_000_000, "10GB"), ("7", 7, "7B")]
        {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, shown));
        }
        for bad in ["", "MiB", "1.5GiB", "5 apples", "99999999999999TiB", "-1B"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_of_day_are_read() {
        assert_eq!("07:00".parse(), Ok(TimeOfDay { hour: 7, minute: 0 }));
        assert_eq!("7:05".parse::<TimeOfDay>().unwrap().to_string(), "07:05");
        for bad in ["24:00", "7", "7:5", "07:60", "+7:00", "07:00:00", ""] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
    }
}
