//! Five cron fields: what they mean and which dates and minutes they name.

use chrono::{Datelike, NaiveDate};

/// The minutes, hours, days of the month, months and days of the week that a cron text names, one bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cron {
    pub(crate) minutes: u64,
    pub(crate) hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// Cron's old rule: when both kinds of days are restricted, either is enough.
    either_day: bool,
}

/// Says why a text is not a schedule or not its zone, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleError {
    message: String,
    hint: String,
}

impl ScheduleError {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    /// The next step.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

struct Field {
    what: &'static str,
    first: u32,
    last: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { what: "minute", first: 0, last: 59, names: &[] },
    Field { what: "hour", first: 0, last: 23, names: &[] },
    Field { what: "day of the month", first: 1, last: 31, names: &[] },
    Field {
        what: "month",
        first: 1,
        last: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field { what: "day of the week", first: 0, last: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

const ALL_HOURS: u64 = (1 << 24) - 1;

impl Cron {
    /// Reads five fields. Errors: what is wrong with which field, or that the days named never come.
    pub(crate) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let texts: Vec<&str> = text.split_whitespace().collect();
        if texts.len() != FIELDS.len() {
            return Err(ScheduleError::new(
                format!("`{text}` has {} fields, a schedule has 5", texts.len()),
                "write minute, hour, day of the month, month, day of the week, as `0 2 * * *` for 02:00 each day",
            ));
        }
        let mut bits = [0; 5];
        for ((field, text), bits) in FIELDS.iter().zip(&texts).zip(&mut bits) {
            *bits = field.parse(text)?;
        }
        let [minutes, hours, days, months, weekdays] = bits;
        // Both 0 and 7 are Sunday.
        let weekdays = (weekdays | (weekdays >> 7)) & 0x7f;
        let either_day = !texts[2].starts_with('*') && !texts[4].starts_with('*');
        let cron = Self { minutes, hours, days, months, weekdays, either_day };
        if !either_day && !cron.has_a_date() {
            return Err(ScheduleError::new(
                format!("`{text}` never comes: no such month has such a day"),
                "choose a day of the month that its months have",
            ));
        }
        Ok(cron)
    }

    fn has_a_date(&self) -> bool {
        const LENGTHS: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        LENGTHS.iter().zip(1_u32..).any(|(length, month)| {
            self.months & (1 << month) != 0 && (1..=*length).any(|day| self.days & (1 << day) != 0)
        })
    }

    /// True when it names that date.
    pub(crate) fn matches_date(&self, date: NaiveDate) -> bool {
        let month = self.months & (1 << date.month()) != 0;
        let day = self.days & (1 << date.day()) != 0;
        let weekday = self.weekdays & (1 << date.weekday().num_days_from_sunday()) != 0;
        month && if self.either_day { day || weekday } else { day && weekday }
    }

    /// True when every hour of a day is named: then it follows elapsed time and not the clock's face.
    pub(crate) fn is_every_hour(&self) -> bool {
        self.hours == ALL_HOURS
    }

    /// True when it comes more than once on a day.
    pub(crate) fn is_within_days(&self) -> bool {
        (self.minutes.count_ones() * self.hours.count_ones()) > 1
    }

    /// True when it comes on Mondays and on no other day of the week, whatever the date.
    pub(crate) fn is_mondays(&self) -> bool {
        self.weekdays == 0b10 && self.days == bits(1..=31) && self.months == bits(1..=12)
    }

    /// True when it comes on the first of every month, whatever the day of the week.
    pub(crate) fn is_month_starts(&self) -> bool {
        self.days == 0b10 && self.weekdays == 0x7f && self.months == bits(1..=12)
    }
}

fn bits(range: std::ops::RangeInclusive<u32>) -> u64 {
    range.fold(0, |bits, n| bits | (1 << n))
}

impl Field {
    /// Reads a list of `*`, `5`, `1-5`, `*/15`, `10-40/10`, `mon-fri`.
    fn parse(&self, text: &str) -> Result<u64, ScheduleError> {
        let mut all = 0;
        for item in text.split(',') {
            let (range, step) = match item.split_once('/') {
                None => (item, 1),
                Some((range, step)) => {
                    let step: u32 =
                        step.parse().ok().filter(|s| (1..=self.last).contains(s)).ok_or_else(|| {
                            self.fail(text, format!("`/{step}` is not a step from 1 to {}", self.last))
                        })?;
                    (range, step)
                }
            };
            let (first, last) = match range.split_once('-') {
                _ if range == "*" => (self.first, if self.first == 0 && self.last == 7 { 6 } else { self.last }),
                Some((first, last)) => (self.value(text, first)?, self.value(text, last)?),
                // `5/10` means from 5 on.
                None if item.contains('/') => (self.value(text, range)?, self.last),
                None => (self.value(text, range)?, self.value(text, range)?),
            };
            if first > last {
                return Err(self.fail(text, format!("the range `{range}` runs backwards")));
            }
            all |= (first..=last).step_by(step as usize).fold(0, |bits, n| bits | (1 << n));
        }
        Ok(all)
    }

    fn value(&self, text: &str, word: &str) -> Result<u32, ScheduleError> {
        let lower = word.to_lowercase();
        if let Some(position) = self.names.iter().position(|name| *name == lower) {
            return Ok(position as u32 + self.first);
        }
        let number = word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse().ok()).flatten();
        number
            .filter(|n| (self.first..=self.last).contains(n))
            .ok_or_else(|| self.fail(text, format!("`{word}` is not one from {} to {}", self.first, self.last)))
    }

    fn fail(&self, text: &str, reason: String) -> ScheduleError {
        let names = match self.names {
            [] => String::new(),
            names => format!(", or names as {} and {}", names[0], names[1]),
        };
        ScheduleError::new(
            format!("`{text}` does not fit the {} field of a schedule: {reason}", self.what),
            format!(
                "write numbers from {} to {}{names}, lists `1,3`, ranges `1-5`, steps `*/2`",
                self.first, self.last
            ),
        )
    }
}
