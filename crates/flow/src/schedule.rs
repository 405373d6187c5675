//! When a job runs: ticks in real time, by the rules for clocks that are set forward and back.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, Offset, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use headworks_domain::{Grain, Interval};

pub use crate::cron::ScheduleError;
use crate::{
    cron::Cron,
    grid::{Grid, first_instant},
};

/// When a job runs.
///
/// A cron with named hours means moments of the wall clock: one that the clock skips runs at the first instant after the gap
/// (once, however many are skipped), one that comes twice runs the first time only. A cron whose hours are `*`, and `every`,
/// follow elapsed time: every real hour of a repeated stretch ticks, and a skipped one makes up nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    text: String,
    when: When,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    Cron(Cron),
    /// Counted from the start of 1970 in UTC.
    EveryMinutes(i64),
    AfterWaits,
}

/// A moment at which a schedule comes, and what its run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// The moment.
    pub at: DateTime<Utc>,
    /// All whole grains since the tick before; none when no grain ended in between, and nothing runs then.
    pub interval: Option<Interval>,
}

const SHORTHANDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    // Weeks begin on Monday here, so that a week's run covers the week that just ended.
    ("@weekly", "0 0 * * 1"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// The longest `every`: a day.
const EVERY_MINUTES_MAX: i64 = 24 * 60;

impl Schedule {
    /// Reads a schedule. Errors: what is wrong, with what to write instead.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let trimmed = text.trim();
        let when = if trimmed.starts_with('@') {
            let found = SHORTHANDS.iter().find(|(name, _)| *name == trimmed);
            let (_, cron) = found.ok_or_else(|| unknown_shorthand(trimmed))?;
            When::Cron(Cron::parse(cron)?)
        } else if trimmed == "after waits" {
            When::AfterWaits
        } else if let Some(rest) = trimmed.strip_prefix("every ") {
            When::EveryMinutes(every(trimmed, rest)?)
        } else {
            When::Cron(Cron::parse(trimmed)?)
        };
        Ok(Self { text: trimmed.to_owned(), when })
    }

    /// True for a job without a clock, which runs when what it waits for is there.
    pub fn is_after_waits(&self) -> bool {
        self.when == When::AfterWaits
    }

    /// The grain that goes with it: hours when it comes more than once a day, weeks on Mondays, months on the first, else days.
    pub fn grain(&self) -> Grain {
        match &self.when {
            When::AfterWaits => Grain::Day,
            When::EveryMinutes(minutes) if *minutes == EVERY_MINUTES_MAX => Grain::Day,
            When::EveryMinutes(_) => Grain::Hour,
            When::Cron(cron) if cron.is_within_days() => Grain::Hour,
            When::Cron(cron) if cron.is_mondays() => Grain::Week,
            When::Cron(cron) if cron.is_month_starts() => Grain::Month,
            When::Cron(_) => Grain::Day,
        }
    }

    /// The ticks in `[from, to)`, in order, without doubles; lazy, so that a long stretch costs nothing until it is walked.
    pub fn ticks(&self, zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> {
        let before = from.checked_sub_signed(TimeDelta::nanoseconds(1)).unwrap_or(from);
        let mut last = before;
        std::iter::from_fn(move || {
            last = self.next_after(zone, last)?;
            (last < to).then_some(last)
        })
        .fuse()
    }

    /// The ticks in `[from, to)`, each with the interval that its run covers; lazy. The intervals of ticks in a row have neither
    /// gap nor overlap.
    pub fn runs(&self, grid: Grid, from: DateTime<Utc>, to: DateTime<Utc>) -> impl Iterator<Item = Tick> {
        let mut before = None;
        self.ticks(grid.zone, from, to).map(move |at| {
            let previous = before.replace(at).or_else(|| self.last_before(grid.zone, at));
            Tick { at, interval: previous.and_then(|previous| covered(&grid, previous, at)) }
        })
    }

    /// The first tick after an instant; none for jobs without a clock.
    pub fn next_after(&self, zone: Tz, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Near the ends of the calendar the arithmetic of zones would overflow; no job runs there.
        if !(-9000..9000).contains(&time.year()) {
            return None;
        }
        match &self.when {
            When::AfterWaits => None,
            When::EveryMinutes(minutes) => {
                let step = minutes * 60;
                DateTime::from_timestamp((time.timestamp().div_euclid(step) + 1) * step, 0)
            }
            When::Cron(cron) if cron.is_every_hour() => next_elapsed(cron, zone, time),
            When::Cron(cron) => next_on_clock(cron, zone, time),
        }
    }

    /// The last tick before an instant; none for jobs without a clock.
    pub fn last_before(&self, zone: Tz, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Look back twice as far each time: a tick is found near, unless the schedule is a rare one.
        let mut back = TimeDelta::hours(2);
        loop {
            let from = time.checked_sub_signed(back)?;
            if let Some(tick) = self.ticks(zone, from, time).last() {
                return Some(tick);
            }
            if back > TimeDelta::days(366 * i64::from(YEARS_MAX)) {
                return None;
            }
            back = back * 2;
        }
    }

    /// The interval that a tick's run covers: all whole grains since the previous tick. None when no grain ended in between.
    pub fn interval_at(&self, grid: &Grid, tick: DateTime<Utc>) -> Option<Interval> {
        covered(grid, self.last_before(grid.zone, tick)?, tick)
    }
}

/// The whole grains that ended after one tick and by the next.
fn covered(grid: &Grid, previous: DateTime<Utc>, tick: DateTime<Utc>) -> Option<Interval> {
    Interval::new(grid.floor(previous), grid.floor(tick)).ok()
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn unknown_shorthand(text: &str) -> ScheduleError {
    let names = SHORTHANDS.iter().map(|(name, _)| *name);
    let hint = match headworks_domain::nearest(text, names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "write @hourly, @daily, @weekly, @monthly, or five fields as `0 2 * * *`".to_owned(),
    };
    ScheduleError::new(format!("`{text}` is not a schedule"), hint)
}

fn every(text: &str, rest: &str) -> Result<i64, ScheduleError> {
    let fail = || {
        ScheduleError::new(
            format!("`{text}` is not a schedule"),
            "write `every 15 minutes` or `every 2 hours`, up to 24 hours; for certain hours five fields as `0 2 * * *`",
        )
    };
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (number, unit) = match words[..] {
        [unit] => (1, unit),
        [number, unit] => (number.parse::<i64>().map_err(|_| fail())?, unit),
        _ => return Err(fail()),
    };
    let minutes = match unit {
        "minute" | "minutes" | "min" => number,
        "hour" | "hours" => number.checked_mul(60).ok_or_else(fail)?,
        _ => return Err(fail()),
    };
    if (1..=EVERY_MINUTES_MAX).contains(&minutes) { Ok(minutes) } else { Err(fail()) }
}

/// The farthest that a tick is looked for: from one 29th of February that is a Sunday to the next it is 28 years, around 2100 forty.
const YEARS_MAX: i32 = 41;

/// Walks wall-clock moments: each named one becomes its first instant, and moments of one gap become one.
fn next_on_clock(cron: &Cron, zone: Tz, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    // What the clock shows now or showed before has had its first instant: only later moments can come.
    let shown = after.with_timezone(&zone).naive_local();
    let mut date = shown.date();
    let last_year = date.year().checked_add(YEARS_MAX)?;
    while date.year() <= last_year {
        if cron.matches_date(date) {
            let mut later = moments(cron).map(|time| date.and_time(time)).filter(|local| *local > shown);
            let tick = later.find_map(|local| Some(first_instant(local, zone)).filter(|time| *time > after));
            if tick.is_some() {
                return tick;
            }
        }
        date = date.succ_opt()?;
    }
    None
}

/// The moments of a day that a cron names, in order.
fn moments(cron: &Cron) -> impl Iterator<Item = NaiveTime> {
    let minutes = cron.minutes;
    set_bits(cron.hours)
        .flat_map(move |hour| set_bits(minutes).filter_map(move |m| NaiveTime::from_hms_opt(hour, m, 0)))
}

fn set_bits(bits: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |n| bits & (1 << n) != 0)
}

/// Walks real minutes, and takes those whose date and minute on the clock are named.
fn next_elapsed(cron: &Cron, zone: Tz, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut time = after + TimeDelta::nanoseconds(1);
    let last_year = time.year().checked_add(YEARS_MAX)?;
    while time.year() <= last_year {
        let local = zone.from_utc_datetime(&time.naive_utc());
        let past = i64::from(local.second()) * 1_000_000_000 + i64::from(local.nanosecond() % 1_000_000_000);
        if past > 0 {
            time = next_minute(time, past);
            continue;
        }
        let date = local.date_naive();
        let due = cron.matches_date(date);
        if due && cron.minutes & (1 << local.minute()) != 0 {
            return Some(time);
        }
        // When yesterday is not named either, no clock set back over midnight can bring a tick before the next named date.
        if !due && date.pred_opt().is_none_or(|yesterday| !cron.matches_date(yesterday)) {
            let start = first_instant(next_date(cron, date, last_year)?.and_time(NaiveTime::MIN), zone);
            if start > time {
                time = start;
                continue;
            }
        }
        let to_next_hour = 60 - local.minute();
        let next = set_bits(cron.minutes).find(|m| due && *m > local.minute());
        let step = TimeDelta::minutes(i64::from(next.map_or(to_next_hour, |m| m - local.minute())));
        let landed = zone.from_utc_datetime(&(time + step).naive_utc());
        // The clock was set within this step: walk it minute by minute, so that no tick is jumped over.
        time += if landed.offset().fix() == local.offset().fix() { step } else { TimeDelta::minutes(1) };
    }
    None
}

/// The first date after another that a cron names, up to the end of a year.
fn next_date(cron: &Cron, after: NaiveDate, last_year: i32) -> Option<NaiveDate> {
    after.iter_days().skip(1).take_while(|date| date.year() <= last_year).find(|date| cron.matches_date(*date))
}

fn next_minute(time: DateTime<Utc>, past_nanos: i64) -> DateTime<Utc> {
    time + (TimeDelta::minutes(1) - TimeDelta::nanoseconds(past_nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// Shows the ticks between two instants as local times.
    fn check(schedule: &str, zone: &str, from: &str, to: &str, expected: &[&str]) {
        let schedule = Schedule::parse(schedule).unwrap();
        let zone: Tz = zone.parse().unwrap();
        let shown: Vec<String> = schedule
            .ticks(zone, utc(from), utc(to))
            .map(|t| t.with_timezone(&zone).format("%Y-%m-%d %H:%M%:z").to_string())
            .collect();
        assert_eq!(shown, expected, "{schedule} in {zone}");
    }

    #[test]
    fn fields_are_read() {
        check(
            "0 2 * * *",
            "UTC",
            "2013-01-01T00:00:00Z",
            "2013-01-03T02:00:00Z",
            &["2013-01-01 02:00+00:00", "2013-01-02 02:00+00:00"],
        );
        check(
            "30 6,18 1-2 jan *",
            "UTC",
            "2013-01-01T07:00:00Z",
            "2013-01-03T00:00:00Z",
            &["2013-01-01 18:30+00:00", "2013-01-02 06:30+00:00", "2013-01-02 18:30+00:00"],
        );
        check(
            "0 9 * * mon-fri",
            "UTC",
            "2013-01-04T00:00:00Z",
            "2013-01-08T00:00:00Z",
            &["2013-01-04 09:00+00:00", "2013-01-07 09:00+00:00"],
        );
        check("0 9 * * 7", "UTC", "2013-01-04T00:00:00Z", "2013-01-08T00:00:00Z", &["2013-01-06 09:00+00:00"]);
        // Both kinds of days: either is enough.
        check(
            "0 0 13 * fri",
            "UTC",
            "2013-09-06T00:00:00Z",
            "2013-09-14T00:00:00Z",
            &["2013-09-06 00:00+00:00", "2013-09-13 00:00+00:00"],
        );
        check(
            "5/20 0 * * *",
            "UTC",
            "2013-01-01T00:00:00Z",
            "2013-01-01T01:00:00Z",
            &["2013-01-01 00:05+00:00", "2013-01-01 00:25+00:00", "2013-01-01 00:45+00:00"],
        );
        check("@weekly", "UTC", "2013-01-01T00:00:00Z", "2013-01-10T00:00:00Z", &["2013-01-07 00:00+00:00"]);
        check(
            "every 45 minutes",
            "UTC",
            "2013-01-01T00:00:00Z",
            "2013-01-01T02:00:00Z",
            &["2013-01-01 00:00+00:00", "2013-01-01 00:45+00:00", "2013-01-01 01:30+00:00"],
        );
        check("after waits", "UTC", "2013-01-01T00:00:00Z", "2014-01-01T00:00:00Z", &[]);
    }

    #[test]
    fn leap_days_come() {
        check(
            "0 0 29 2 *",
            "UTC",
            "2013-01-01T00:00:00Z",
            "2020-12-31T00:00:00Z",
            &["2016-02-29 00:00+00:00", "2020-02-29 00:00+00:00"],
        );
        check("0 0 29 2 *", "UTC", "1896-03-01T00:00:00Z", "1905-01-01T00:00:00Z", &["1904-02-29 00:00+00:00"]);
        check(
            "*/30 * 29 2 *",
            "UTC",
            "2013-03-01T00:00:00Z",
            "2016-02-29T01:00:00Z",
            &["2016-02-29 00:00+00:00", "2016-02-29 00:30+00:00"],
        );
    }

    #[test]
    fn rare_dates_come() {
        // The 29th of February on Sundays only: `*/7` are the weekdays from Sunday on, and both kinds of days must fit.
        for hours in ["0", "*"] {
            check(
                &format!("0 {hours} 29 2 */7"),
                "UTC",
                "2004-03-01T00:00:00Z",
                "2032-02-29T01:00:00Z",
                &["2032-02-29 00:00+00:00"],
            );
        }
        check("0 0 29 2 */7", "UTC", "2088-03-01T00:00:00Z", "2128-12-31T00:00:00Z", &["2128-02-29 00:00+00:00"]);
        check("0 0 1 1 */7", "UTC", "2023-01-02T00:00:00Z", "2035-01-01T00:00:00Z", &["2034-01-01 00:00+00:00"]);
        let rare = Schedule::parse("0 0 29 2 */7").unwrap();
        assert_eq!(rare.last_before(Tz::UTC, utc("2128-02-29T00:00:00Z")), Some(utc("2088-02-29T00:00:00Z")));
    }

    #[test]
    fn a_clock_set_back_over_midnight_brings_every_real_hour() {
        // St John's went back from 00:01 on Sunday to 23:01 on Saturday.
        check(
            "*/30 * * * sat",
            "America/St_Johns",
            "2009-11-01T01:45:00Z",
            "2009-11-07T02:45:00Z",
            &["2009-10-31 23:30-02:30", "2009-10-31 23:30-03:30"],
        );
    }

    #[test]
    fn runs_carry_what_their_ticks_cover() {
        let grid = Grid { grain: Grain::Day, zone: "America/New_York".parse().unwrap() };
        let shown: Vec<String> = Schedule::parse("30 2,14 * * *")
            .unwrap()
            .runs(grid, utc("2026-03-07T12:00:00Z"), utc("2026-03-09T12:00:00Z"))
            .map(|tick| format!("{} {}", tick.at, tick.interval.map_or("nothing".to_owned(), |i| i.to_string())))
            .collect();
        assert_eq!(
            shown,
            [
                "2026-03-07 19:30:00 UTC nothing",
                "2026-03-08 07:00:00 UTC 2026-03-07T05:00:00Z/2026-03-08T05:00:00Z",
                "2026-03-08 18:30:00 UTC nothing",
                "2026-03-09 06:30:00 UTC 2026-03-08T05:00:00Z/2026-03-09T04:00:00Z",
            ]
        );
    }

    #[test]
    fn named_hours_in_a_gap_run_once_after_it() {
        // New York, 2013-03-10: 02:00 to 03:00 is skipped.
        check(
            "30 2 * * *",
            "America/New_York",
            "2013-03-09T12:00:00Z",
            "2013-03-11T12:00:00Z",
            &["2013-03-10 03:00-04:00", "2013-03-11 02:30-04:00"],
        );
        check(
            "*/20 2 * * *",
            "America/New_York",
            "2013-03-09T12:00:00Z",
            "2013-03-10T12:00:00Z",
            &["2013-03-10 03:00-04:00"],
        );
        check(
            "0,30 2,3 * * *",
            "America/New_York",
            "2013-03-10T00:00:00Z",
            "2013-03-10T12:00:00Z",
            &["2013-03-10 03:00-04:00", "2013-03-10 03:30-04:00"],
        );
        // Lord Howe skips half an hour.
        check(
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2023-09-30T00:00:00Z",
            "2023-10-01T12:00:00Z",
            &["2023-10-01 02:30+11:00"],
        );
        check(
            "45 2 * * *",
            "Australia/Lord_Howe",
            "2023-09-30T00:00:00Z",
            "2023-10-01T12:00:00Z",
            &["2023-10-01 02:45+11:00"],
        );
        // Samoa skipped a day.
        check(
            "0 12 * * *",
            "Pacific/Apia",
            "2011-12-29T20:00:00Z",
            "2011-12-31T12:00:00Z",
            &["2011-12-29 12:00-10:00", "2011-12-31 00:00+14:00", "2011-12-31 12:00+14:00"],
        );
    }

    #[test]
    fn named_hours_in_an_overlap_run_the_first_time() {
        // New York, 2013-11-03: 01:00 to 02:00 comes twice.
        check(
            "30 1 * * *",
            "America/New_York",
            "2013-11-02T12:00:00Z",
            "2013-11-04T12:00:00Z",
            &["2013-11-03 01:30-04:00", "2013-11-04 01:30-05:00"],
        );
        check(
            "0 1,2 * * *",
            "America/New_York",
            "2013-11-03T00:00:00Z",
            "2013-11-03T12:00:00Z",
            &["2013-11-03 01:00-04:00", "2013-11-03 02:00-05:00"],
        );
        // Casablanca leaves +01 for Ramadan.
        check(
            "30 2 * * *",
            "Africa/Casablanca",
            "2023-03-18T12:00:00Z",
            "2023-03-19T12:00:00Z",
            &["2023-03-19 02:30+01:00"],
        );
        check(
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2023-04-01T00:00:00Z",
            "2023-04-02T12:00:00Z",
            &["2023-04-02 01:45+11:00"],
        );
    }

    #[test]
    fn every_hour_follows_elapsed_time() {
        check(
            "0 * * * *",
            "America/New_York",
            "2013-11-03T04:00:00Z",
            "2013-11-03T08:00:00Z",
            &["2013-11-03 00:00-04:00", "2013-11-03 01:00-04:00", "2013-11-03 01:00-05:00", "2013-11-03 02:00-05:00"],
        );
        check(
            "0 * * * *",
            "America/New_York",
            "2013-03-10T06:00:00Z",
            "2013-03-10T09:00:00Z",
            &["2013-03-10 01:00-05:00", "2013-03-10 03:00-04:00", "2013-03-10 04:00-04:00"],
        );
        check(
            "*/30 * * * *",
            "Asia/Kolkata",
            "2013-01-01T00:00:00Z",
            "2013-01-01T01:00:00Z",
            &["2013-01-01 05:30+05:30", "2013-01-01 06:00+05:30"],
        );
        check(
            "45 * * * *",
            "Australia/Lord_Howe",
            "2023-04-01T14:00:00Z",
            "2023-04-01T17:00:00Z",
            &["2023-04-02 01:45+11:00", "2023-04-02 01:45+10:30", "2023-04-02 02:45+10:30"],
        );
    }

    #[test]
    fn wrong_schedules_say_what_to_write() {
        for (text, message) in [
            ("0 2 * *", "`0 2 * *` has 4 fields, a schedule has 5"),
            ("61 2 * * *", "`61` does not fit the minute field of a schedule: `61` is not one from 0 to 59"),
            ("0 2 * * mno", "`mno` does not fit the day of the week field of a schedule: `mno` is not one from 0 to 7"),
            ("0 2 30 2 *", "`0 2 30 2 *` never comes: no such month has such a day"),
            ("0 5-2 * * *", "`5-2` does not fit the hour field of a schedule: the range `5-2` runs backwards"),
            ("*/0 * * * *", "`*/0` does not fit the minute field of a schedule: `/0` is not a step from 1 to 59"),
            ("@dayly", "`@dayly` is not a schedule"),
            ("every 3 days", "`every 3 days` is not a schedule"),
            ("", "`` has 0 fields, a schedule has 5"),
            ("0 0 L * *", "`L` does not fit the day of the month field of a schedule: `L` is not one from 1 to 31"),
        ] {
            assert_eq!(Schedule::parse(text).unwrap_err().to_string(), message);
        }
        assert_eq!(Schedule::parse("@dayly").unwrap_err().hint(), "did you mean `@daily`?");
    }

    #[test]
    fn grains_follow_schedules() {
        for (text, grain) in [
            ("@hourly", Grain::Hour),
            ("every 15 minutes", Grain::Hour),
            ("*/10 * * * *", Grain::Hour),
            ("0 6,18 * * *", Grain::Hour),
            ("0 2 * * *", Grain::Day),
            ("0 2 * * 1-5", Grain::Day),
            ("0 2 * * wed", Grain::Day),
            ("0 6 * * mon", Grain::Week),
            ("@weekly", Grain::Week),
            ("@monthly", Grain::Month),
            ("0 3 15 * *", Grain::Day),
            ("after waits", Grain::Day),
        ] {
            assert_eq!(Schedule::parse(text).unwrap().grain(), grain, "{text}");
        }
    }

    #[test]
    fn a_tick_covers_the_whole_grains_since_the_one_before() {
        let check = |schedule: &str, grain, tick: &str, expected: &str| {
            let grid = Grid { grain, zone: Tz::UTC };
            let interval = Schedule::parse(schedule).unwrap().interval_at(&grid, utc(tick));
            assert_eq!(interval.map_or("none".to_owned(), |i| i.to_string()), expected);
        };
        check("0 2 * * *", Grain::Day, "2013-01-21T02:00:00Z", "2013-01-20T00:00:00Z/2013-01-21T00:00:00Z");
        check("0 2 * * wed", Grain::Day, "2013-01-23T02:00:00Z", "2013-01-16T00:00:00Z/2013-01-23T00:00:00Z");
        check("0 2 * * 1-5", Grain::Day, "2013-01-21T02:00:00Z", "2013-01-18T00:00:00Z/2013-01-21T00:00:00Z");
        check("every 15 minutes", Grain::Hour, "2013-01-21T02:00:00Z", "2013-01-21T01:00:00Z/2013-01-21T02:00:00Z");
        check("every 15 minutes", Grain::Hour, "2013-01-21T02:15:00Z", "none");
        check("@monthly", Grain::Month, "2013-03-01T00:00:00Z", "2013-02-01T00:00:00Z/2013-03-01T00:00:00Z");
    }

    fn any_cron() -> impl Strategy<Value = String> {
        let minute =
            prop_oneof!["[0-9]", "[1-5][0-9]", Just("*/15".to_owned()), Just("0,30".to_owned()), Just("*".to_owned())];
        let hour = prop_oneof![Just("*".to_owned()), "[0-9]", Just("1-3".to_owned()), Just("*/6".to_owned())];
        let day = prop_oneof![4 => Just("*".to_owned()), 1 => "[1-9]", 1 => Just("28-31".to_owned())];
        let weekday = prop_oneof![3 => Just("*".to_owned()), 1 => "[0-7]", 1 => Just("mon-fri".to_owned())];
        (minute, hour, day, weekday).prop_map(|(m, h, d, w)| format!("{m} {h} {d} * {w}"))
    }

    fn any_zone() -> impl Strategy<Value = Tz> {
        let zones = [
            "UTC",
            "America/New_York",
            "Asia/Kolkata",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
            "America/St_Johns",
            "Pacific/Apia",
        ];
        proptest::sample::select(zones.to_vec()).prop_map(|zone| zone.parse().unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn ticks_rise_and_split_anywhere(cron in any_cron(), zone in any_zone(), secs in 1_200_000_000_i64..1_700_000_000, hours in 1_i64..200) {
            let schedule = Schedule::parse(&cron).unwrap();
            let from = DateTime::from_timestamp(secs, 0).unwrap();
            let middle = from + TimeDelta::hours(hours);
            let to = from + TimeDelta::hours(200);
            let all: Vec<_> = schedule.ticks(zone, from, to).collect();
            prop_assert!(all.windows(2).all(|w| w[0] < w[1]), "{cron} {zone}: {all:?}");
            let parts: Vec<_> = schedule.ticks(zone, from, middle).chain(schedule.ticks(zone, middle, to)).collect();
            prop_assert_eq!(&all, &parts);
            if let Some(last) = all.last() {
                prop_assert_eq!(schedule.last_before(zone, to), Some(*last));
            }
        }

        #[test]
        fn any_text_is_safe(text in ".{0,40}") {
            let _ = Schedule::parse(&text);
        }
    }
}
