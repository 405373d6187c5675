use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// Says why a text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not a day.
    #[error("`{0}` is not a day: write it as 2018-02-20")]
    Ds(String),
    /// Not a grain.
    #[error("`{0}` is not a grain: write hour, day, week or month")]
    Grain(String),
    /// The interval is empty or turned round.
    #[error("an interval from {0} to {1} holds nothing")]
    Empty(DateTime<Utc>, DateTime<Utc>),
}

/// A partition's day, in the job's zone, as `2018-02-20`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ds(NaiveDate);

impl Ds {
    /// The day as a calendar date.
    pub fn date(self) -> NaiveDate {
        self.0
    }

    /// The day so many days later (earlier when negative); the calendar's first or last day when that is out of range.
    pub fn plus_days(self, days: i64) -> Self {
        let limit = if days < 0 { NaiveDate::MIN } else { NaiveDate::MAX };
        Self(TimeDelta::try_days(days).and_then(|d| self.0.checked_add_signed(d)).unwrap_or(limit))
    }
}

impl From<NaiveDate> for Ds {
    fn from(date: NaiveDate) -> Self {
        Self(date)
    }
}

impl FromStr for Ds {
    type Err = TimeError;

    fn from_str(s: &str) -> Result<Self, TimeError> {
        let date = NaiveDate::parse_from_str(s, "%Y-%m-%d").map_err(|_| TimeError::Ds(s.to_owned()))?;
        // Only the canonical spelling is a day: `2018-2-3` would name another folder.
        let ds = Self(date);
        if ds.to_string() == s { Ok(ds) } else { Err(TimeError::Ds(s.to_owned())) }
    }
}

impl TryFrom<String> for Ds {
    type Error = TimeError;

    fn try_from(s: String) -> Result<Self, TimeError> {
        s.parse()
    }
}

impl From<Ds> for String {
    fn from(ds: Ds) -> String {
        ds.to_string()
    }
}

impl fmt::Display for Ds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if (0..=9999).contains(&self.0.year()) {
            write!(f, "{:04}-{:02}-{:02}", self.0.year(), self.0.month(), self.0.day())
        } else {
            write!(f, "{:+05}-{:02}-{:02}", self.0.year(), self.0.month(), self.0.day())
        }
    }
}

impl fmt::Debug for Ds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The size of a table's partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grain {
    /// An hour, named in UTC.
    Hour,
    /// A day in the job's zone.
    Day,
    /// Monday to Sunday, named by the Sunday.
    Week,
    /// A calendar month, named by its last day.
    Month,
}

impl fmt::Display for Grain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        })
    }
}

impl FromStr for Grain {
    type Err = TimeError;

    fn from_str(s: &str) -> Result<Self, TimeError> {
        match s {
            "hour" => Ok(Self::Hour),
            "day" => Ok(Self::Day),
            "week" => Ok(Self::Week),
            "month" => Ok(Self::Month),
            other => Err(TimeError::Grain(other.to_owned())),
        }
    }
}

/// A half-open stretch of time, `[start, end)`, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interval {
    start: DateTime<Utc>,
    end: DateTime<Utc>,
}

impl Interval {
    /// Makes an interval. Errors: `Empty` when `end` is not after `start`.
    pub fn new(start: DateTime<Utc>, end: DateTime<Utc>) -> Result<Self, TimeError> {
        if start < end { Ok(Self { start, end }) } else { Err(TimeError::Empty(start, end)) }
    }

    /// The first instant.
    pub fn start(&self) -> DateTime<Utc> {
        self.start
    }

    /// The first instant after it.
    pub fn end(&self) -> DateTime<Utc> {
        self.end
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.start.format("%Y-%m-%dT%H:%M:%SZ"), self.end.format("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Tells the time; passed in, so that tests and the simulator can hold it.
pub trait Clock: Send + Sync {
    /// The present instant.
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock's one home")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_day_is_one() {
        assert_eq!("2018-02-20".parse::<Ds>().unwrap().to_string(), "2018-02-20");
        for bad in ["2018-2-20", "2018-02-30", "20180220", "", "2018-02-20 ", "x"] {
            assert!(bad.parse::<Ds>().is_err(), "{bad}");
        }
    }
}
