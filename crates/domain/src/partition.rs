use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Ds, time::TimeError};

/// Says why a text is not a partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionKeyError {
    /// The day is not one.
    #[error(transparent)]
    Ds(#[from] TimeError),
    /// The text has another shape.
    #[error(
        "`{0}` is not a partition: it reads `ds=2018-02-20`, `ds=2018-02-20/hour=05`, and `/event_type=...` may follow"
    )]
    Shape(String),
}

/// One partition of a table: a `ds`, then an hour or an event type or both.
///
/// Its text is the folder's name, `ds=2018-02-20/hour=05/event_type=click`, and sorts as time does. A week's partition is
/// named by its last day, a month's likewise. Hours are UTC, and so is the `ds` beside an hour: no two real hours share a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartitionKey {
    /// The day: in the job's zone, or UTC's when `hour` is there.
    pub ds: Ds,
    /// The hour of the day, 0 to 23, UTC.
    pub hour: Option<u8>,
    /// The event type.
    pub event_type: Option<String>,
}

impl PartitionKey {
    /// A whole day's partition.
    pub fn day(ds: Ds) -> Self {
        Self { ds, hour: None, event_type: None }
    }

    /// An hour's partition.
    pub fn hour(ds: Ds, hour: u8) -> Self {
        Self { ds, hour: Some(hour), event_type: None }
    }

    /// The partition columns that this key has, in their order: `ds`, `hour`, `event_type`.
    pub fn columns(&self) -> Vec<&'static str> {
        let mut columns = vec!["ds"];
        columns.extend(self.hour.map(|_| "hour"));
        columns.extend(self.event_type.as_ref().map(|_| "event_type"));
        columns
    }

    /// The values in the order of `columns`, as the catalog stores them: `2018-02-20`, `5`, `click`.
    pub fn values(&self) -> Vec<String> {
        let mut values = vec![self.ds.to_string()];
        values.extend(self.hour.map(|h| h.to_string()));
        values.extend(self.event_type.clone());
        values
    }
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ds={}", self.ds)?;
        if let Some(hour) = self.hour {
            write!(f, "/hour={hour:02}")?;
        }
        if let Some(event_type) = &self.event_type {
            f.write_str("/event_type=")?;
            for byte in event_type.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => write!(f, "{}", byte as char)?,
                    other => write!(f, "%{other:02X}")?,
                }
            }
        }
        Ok(())
    }
}

impl FromStr for PartitionKey {
    type Err = PartitionKeyError;

    fn from_str(s: &str) -> Result<Self, PartitionKeyError> {
        let shape = || PartitionKeyError::Shape(s.to_owned());
        let mut parts = s.split('/').peekable();
        let ds = parts.next().and_then(|p| p.strip_prefix("ds=")).ok_or_else(shape)?.parse()?;
        let mut key = Self::day(ds);
        if let Some(hour) = parts.peek().and_then(|p| p.strip_prefix("hour=")) {
            key.hour = Some(hour.parse().ok().filter(|h| *h < 24).ok_or_else(shape)?);
            parts.next();
        }
        if let Some(event_type) = parts.peek().and_then(|p| p.strip_prefix("event_type=")) {
            key.event_type = Some(percent_decoded(event_type).ok_or_else(shape)?);
            parts.next();
        }
        if parts.next().is_some() { Err(shape()) } else { Ok(key) }
    }
}

fn percent_decoded(s: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(s.len());
    let mut rest = s.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

impl TryFrom<String> for PartitionKey {
    type Error = PartitionKeyError;

    fn try_from(s: String) -> Result<Self, PartitionKeyError> {
        s.parse()
    }
}

impl From<PartitionKey> for String {
    fn from(key: PartitionKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_round_trips(days in -100_000_i64..100_000, hour in proptest::option::of(0_u8..24), event in proptest::option::of(".{0,20}")) {
            let key = PartitionKey { ds: Ds::default().plus_days(days), hour, event_type: event };
            prop_assert_eq!(key.to_string().parse::<PartitionKey>().ok(), Some(key));
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in [
            "",
            "ds=",
            "ds=2018-13-01",
            "ds=2018-01-01/hour=24",
            "ds=2018-01-01/x=1",
            "hour=1",
            "ds=2018-01-01/event_type=%zz",
        ] {
            assert!(bad.parse::<PartitionKey>().is_err(), "{bad}");
        }
    }
}
