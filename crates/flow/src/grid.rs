//! The grid of a table: time cut into grains without gap or overlap, each with its partition's name.

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use headworks_domain::{Ds, Grain, Interval, PartitionKey};

/// How a table's time is cut: the grain, and the zone whose days count (hours are always UTC's).
///
/// Grains are counted by whole numbers, so that "three earlier" is a subtraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// The size of its partitions.
    pub grain: Grain,
    /// The zone in which days begin.
    pub zone: Tz,
}

/// The number of a grain on its grid.
pub(crate) type GrainNumber = i64;

/// The most grains that one interval or range is cut into: two centuries of hours.
pub(crate) const GRAINS_MAX: i64 = 2_000_000;

impl Grid {
    /// The start of the grain that holds an instant.
    pub fn floor(&self, time: DateTime<Utc>) -> DateTime<Utc> {
        self.start(self.number(time))
    }

    /// The first instant at which the zone's clock shows a moment or, when it skips that moment, the first one after the gap.
    pub fn instant_of(&self, local: NaiveDateTime) -> DateTime<Utc> {
        first_instant(local, self.zone)
    }

    /// The last grain that ended by `now`.
    pub fn last_complete(&self, now: DateTime<Utc>) -> Interval {
        let mut number = self.number(now) - 1;
        loop {
            if let Some(interval) = self.interval(number) {
                return interval;
            }
            // A zone that jumped over the date line has a day of no length.
            number -= 1;
        }
    }

    /// The grain that a day (and, for hours, an hour of UTC) lies in; for hours without one, the day's first.
    pub fn interval_of(&self, ds: Ds, hour: Option<u8>) -> Option<Interval> {
        let number = match self.grain {
            Grain::Hour => day_number(ds.date()) * 24 + i64::from(hour.unwrap_or(0)),
            _ => self.number_of_date(ds.date()),
        };
        self.interval(number)
    }

    /// Every grain that lies at least partly in the days `from` to `to`, both included. Empty when `to` is before `from`.
    pub fn intervals(&self, from: Ds, to: Ds) -> Vec<Interval> {
        let (first, last) = match self.grain {
            Grain::Hour => (day_number(from.date()) * 24, day_number(to.date()) * 24 + 23),
            _ => (self.number_of_date(from.date()), self.number_of_date(to.date())),
        };
        if from > to {
            return Vec::new();
        }
        (first..=last.min(first.saturating_add(GRAINS_MAX))).filter_map(|n| self.interval(n)).collect()
    }

    /// The partitions that an interval touches, in their order.
    pub fn partitions(&self, interval: &Interval) -> Vec<PartitionKey> {
        self.touched(interval).filter(|n| self.interval(*n).is_some()).map(|n| self.key(n)).collect()
    }

    /// The last partition that an interval touches: the one whose `ds` names a run over it.
    pub fn last_key(&self, interval: &Interval) -> PartitionKey {
        self.key(*self.touched(interval).end())
    }

    /// True when the interval is made of whole grains.
    pub fn is_whole(&self, interval: &Interval) -> bool {
        self.floor(interval.start()) == interval.start() && self.floor(interval.end()) == interval.end()
    }

    /// The numbers of the grains that an interval touches.
    pub(crate) fn touched(&self, interval: &Interval) -> std::ops::RangeInclusive<GrainNumber> {
        let first = self.number(interval.start());
        let last = self.number(interval.end() - TimeDelta::microseconds(1));
        first..=last.min(first.saturating_add(GRAINS_MAX))
    }

    /// The number of the grain that holds an instant.
    pub(crate) fn number(&self, time: DateTime<Utc>) -> GrainNumber {
        if self.grain == Grain::Hour {
            return time.timestamp().div_euclid(3600);
        }
        let mut number = self.number_of_date(time.with_timezone(&self.zone).date_naive());
        // A clock set back over midnight shows yesterday's date again after today has begun. Few steps are enough, and
        // a bound keeps the calendar's end from being walked for ever.
        for _ in 0..3 {
            if self.start(number) > time {
                number -= 1;
            } else if self.start(number + 1) <= time {
                number += 1;
            }
        }
        number
    }

    /// The number of the grain that holds a day of the zone; not for hours.
    pub(crate) fn number_of_date(&self, date: NaiveDate) -> GrainNumber {
        match self.grain {
            Grain::Hour => day_number(date) * 24,
            Grain::Day => day_number(date),
            // Day 0 was a Thursday.
            Grain::Week => (day_number(date) + 3).div_euclid(7),
            Grain::Month => i64::from(date.year()) * 12 + i64::from(date.month0()),
        }
    }

    /// The first instant of a grain.
    pub(crate) fn start(&self, number: GrainNumber) -> DateTime<Utc> {
        match self.grain {
            Grain::Hour => DateTime::from_timestamp(number.saturating_mul(3600), 0).unwrap_or_else(|| limit(number)),
            _ => day_start(self.first_date(number), self.zone),
        }
    }

    /// A grain's stretch of time; none for a day that its zone never had.
    pub(crate) fn interval(&self, number: GrainNumber) -> Option<Interval> {
        Interval::new(self.start(number), self.start(number + 1)).ok()
    }

    /// A grain's partition.
    pub(crate) fn key(&self, number: GrainNumber) -> PartitionKey {
        match self.grain {
            Grain::Hour => {
                let hour = u8::try_from(number.rem_euclid(24)).unwrap_or(0);
                PartitionKey::hour(date_of(number.div_euclid(24)).into(), hour)
            }
            _ => PartitionKey::day(Ds::from(self.first_date(number + 1)).plus_days(-1)),
        }
    }

    fn first_date(&self, number: GrainNumber) -> NaiveDate {
        match self.grain {
            Grain::Hour => date_of(number.div_euclid(24)),
            Grain::Day => date_of(number),
            Grain::Week => date_of(number.saturating_mul(7).saturating_sub(3)),
            Grain::Month => {
                let year = i32::try_from(number.div_euclid(12)).unwrap_or(i32::MAX);
                let month = u32::try_from(number.rem_euclid(12) + 1).unwrap_or(1);
                NaiveDate::from_ymd_opt(year, month, 1).unwrap_or(date_limit(number))
            }
        }
    }
}

/// Days since 1970-01-01.
fn day_number(date: NaiveDate) -> i64 {
    i64::from(date.num_days_from_ce()) - 719_163
}

fn date_of(day_number: i64) -> NaiveDate {
    i32::try_from(day_number.saturating_add(719_163))
        .ok()
        .and_then(NaiveDate::from_num_days_from_ce_opt)
        .unwrap_or(date_limit(day_number))
}

fn date_limit(number: i64) -> NaiveDate {
    if number < 0 { NaiveDate::MIN } else { NaiveDate::MAX }
}

fn limit(number: i64) -> DateTime<Utc> {
    if number < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC }
}

/// The first instant of a day in a zone.
fn day_start(date: NaiveDate, zone: Tz) -> DateTime<Utc> {
    first_instant(date.and_time(NaiveTime::MIN), zone)
}

/// The first instant at which a zone's clock shows a moment or, when it skips that moment, the first one after the gap.
pub(crate) fn first_instant(local: NaiveDateTime, zone: Tz) -> DateTime<Utc> {
    // Near the calendar's ends zones have no rules, and adding an offset would overflow.
    let near_end =
        local.date().checked_sub_days(Days::new(3)).is_none() || local.date().checked_add_days(Days::new(3)).is_none();
    if near_end {
        return local.and_utc();
    }
    if let Some(time) = zone.from_local_datetime(&local).earliest() {
        return time.with_timezone(&Utc);
    }
    // In a gap: zones lie within 15 hours of UTC, and between these bounds only the gap itself changes the clock.
    let middle = local.and_utc().timestamp();
    let (mut before, mut after) = (middle - 16 * 3600, middle + 16 * 3600);
    let shown = |secs: i64| zone.timestamp_opt(secs, 0).single().map(|t| t.naive_local());
    while after - before > 1 {
        let half = before + (after - before) / 2;
        if shown(half).is_some_and(|t| t >= local) {
            after = half;
        } else {
            before = half;
        }
    }
    DateTime::from_timestamp(after, 0).unwrap_or_else(|| local.and_utc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grid(grain: Grain, zone: &str) -> Grid {
        Grid { grain, zone: zone.parse().unwrap() }
    }

    fn ds(text: &str) -> Ds {
        text.parse().unwrap()
    }

    fn check(grain: Grain, zone: &str, day: &str, expected: &str) {
        let grid = grid(grain, zone);
        let interval = grid.interval_of(ds(day), None);
        let shown = interval.map_or("none".to_owned(), |i| {
            let hours = (i.end() - i.start()).as_seconds_f64() / 3600.0;
            format!(
                "{i} {hours} h, {}",
                grid.partitions(&i).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            )
        });
        assert_eq!(shown, expected, "{grain} of {day} in {zone}");
    }

    #[test]
    fn days_are_cut_in_the_zone() {
        check(Grain::Day, "UTC", "2013-01-01", "2013-01-01T00:00:00Z/2013-01-02T00:00:00Z 24 h, ds=2013-01-01");
        check(
            Grain::Day,
            "America/New_York",
            "2013-01-01",
            "2013-01-01T05:00:00Z/2013-01-02T05:00:00Z 24 h, ds=2013-01-01",
        );
        check(
            Grain::Day,
            "America/New_York",
            "2013-03-10",
            "2013-03-10T05:00:00Z/2013-03-11T04:00:00Z 23 h, ds=2013-03-10",
        );
        check(
            Grain::Day,
            "America/New_York",
            "2013-11-03",
            "2013-11-03T04:00:00Z/2013-11-04T05:00:00Z 25 h, ds=2013-11-03",
        );
        check(
            Grain::Day,
            "Asia/Kolkata",
            "2013-01-01",
            "2012-12-31T18:30:00Z/2013-01-01T18:30:00Z 24 h, ds=2013-01-01",
        );
        check(
            Grain::Day,
            "Australia/Lord_Howe",
            "2023-10-01",
            "2023-09-30T13:30:00Z/2023-10-01T13:00:00Z 23.5 h, ds=2023-10-01",
        );
        check(
            Grain::Day,
            "Australia/Lord_Howe",
            "2023-04-02",
            "2023-04-01T13:00:00Z/2023-04-02T13:30:00Z 24.5 h, ds=2023-04-02",
        );
        // Casablanca leaves its usual +01 for Ramadan.
        check(
            Grain::Day,
            "Africa/Casablanca",
            "2023-03-19",
            "2023-03-18T23:00:00Z/2023-03-20T00:00:00Z 25 h, ds=2023-03-19",
        );
        check(
            Grain::Day,
            "Africa/Casablanca",
            "2023-04-23",
            "2023-04-23T00:00:00Z/2023-04-23T23:00:00Z 23 h, ds=2023-04-23",
        );
        // Sao Paulo had its gap at midnight: the day begins at 01:00.
        check(
            Grain::Day,
            "America/Sao_Paulo",
            "2018-11-04",
            "2018-11-04T03:00:00Z/2018-11-05T02:00:00Z 23 h, ds=2018-11-04",
        );
        // St John's went back from 00:01 to 23:01 of the day before.
        check(
            Grain::Day,
            "America/St_Johns",
            "2009-11-01",
            "2009-11-01T02:30:00Z/2009-11-02T03:30:00Z 25 h, ds=2009-11-01",
        );
        // Samoa had no 30th of December in 2011.
        check(Grain::Day, "Pacific/Apia", "2011-12-30", "none");
        check(
            Grain::Day,
            "Pacific/Apia",
            "2011-12-31",
            "2011-12-30T10:00:00Z/2011-12-31T10:00:00Z 24 h, ds=2011-12-31",
        );
    }

    #[test]
    fn weeks_and_months_are_named_by_their_last_day() {
        check(Grain::Week, "UTC", "2013-01-01", "2012-12-31T00:00:00Z/2013-01-07T00:00:00Z 168 h, ds=2013-01-06");
        check(Grain::Week, "UTC", "2013-01-06", "2012-12-31T00:00:00Z/2013-01-07T00:00:00Z 168 h, ds=2013-01-06");
        check(
            Grain::Week,
            "America/New_York",
            "2013-03-10",
            "2013-03-04T05:00:00Z/2013-03-11T04:00:00Z 167 h, ds=2013-03-10",
        );
        check(Grain::Month, "UTC", "2012-02-10", "2012-02-01T00:00:00Z/2012-03-01T00:00:00Z 696 h, ds=2012-02-29");
        check(Grain::Month, "UTC", "1900-02-10", "1900-02-01T00:00:00Z/1900-03-01T00:00:00Z 672 h, ds=1900-02-28");
        check(Grain::Month, "UTC", "2013-12-31", "2013-12-01T00:00:00Z/2014-01-01T00:00:00Z 744 h, ds=2013-12-31");
    }

    #[test]
    fn hours_are_utc() {
        check(
            Grain::Hour,
            "Asia/Kolkata",
            "2013-01-01",
            "2013-01-01T00:00:00Z/2013-01-01T01:00:00Z 1 h, ds=2013-01-01/hour=00",
        );
        let hours = grid(Grain::Hour, "America/New_York");
        assert_eq!(hours.intervals(ds("2013-01-01"), ds("2013-01-02")).len(), 48);
        let day = |d: &str| grid(Grain::Day, "America/New_York").interval_of(ds(d), None).unwrap();
        assert_eq!(hours.partitions(&day("2013-03-10")).len(), 23);
        assert_eq!(hours.partitions(&day("2013-11-03")).len(), 25);
        let kolkata = grid(Grain::Day, "Asia/Kolkata").interval_of(ds("2013-01-01"), None).unwrap();
        let touched = grid(Grain::Hour, "UTC").partitions(&kolkata);
        assert_eq!(touched.len(), 25, "half hours at both ends");
        assert_eq!(touched[0].to_string(), "ds=2012-12-31/hour=18");
    }

    #[test]
    fn a_range_takes_every_grain_it_touches() {
        let months = grid(Grain::Month, "UTC").intervals(ds("2013-01-15"), ds("2013-03-01"));
        assert_eq!(months.len(), 3);
        assert_eq!(grid(Grain::Day, "UTC").intervals(ds("2013-01-01"), ds("2013-12-31")).len(), 365);
        assert!(grid(Grain::Day, "UTC").intervals(ds("2013-01-02"), ds("2013-01-01")).is_empty());
        assert_eq!(grid(Grain::Day, "Pacific/Apia").intervals(ds("2011-12-29"), ds("2011-12-31")).len(), 2);
    }

    #[test]
    fn the_last_complete_grain_has_ended() {
        let now = "2013-01-21T02:00:00Z".parse().unwrap();
        let last =
            |grain| grid(grain, "UTC").key(grid(grain, "UTC").number(grid(grain, "UTC").last_complete(now).start()));
        assert_eq!(last(Grain::Hour).to_string(), "ds=2013-01-21/hour=01");
        assert_eq!(last(Grain::Day).to_string(), "ds=2013-01-20");
        assert_eq!(last(Grain::Week).to_string(), "ds=2013-01-20");
        assert_eq!(last(Grain::Month).to_string(), "ds=2012-12-31");
    }

    fn any_grid() -> impl Strategy<Value = Grid> {
        let zones = [
            "UTC",
            "America/New_York",
            "Asia/Kolkata",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
            "America/St_Johns",
            "Pacific/Apia",
            "America/Sao_Paulo",
            "Pacific/Kiritimati",
        ];
        let grains = [Grain::Hour, Grain::Day, Grain::Week, Grain::Month];
        (proptest::sample::select(zones.to_vec()), proptest::sample::select(grains.to_vec()))
            .prop_map(|(zone, grain)| grid(grain, zone))
    }

    proptest! {
        #[test]
        fn grains_tile_the_line(grid in any_grid(), secs in -2_000_000_000_i64..4_000_000_000) {
            let time = DateTime::from_timestamp(secs, 0).unwrap();
            let number = grid.number(time);
            let interval = grid.interval(number).unwrap();
            prop_assert!(interval.start() <= time && time < interval.end());
            prop_assert_eq!(grid.start(number + 1), interval.end(), "no gap, no overlap");
            prop_assert_eq!(grid.floor(time), interval.start());
            prop_assert_eq!(grid.partitions(&interval), vec![grid.key(number)]);
            let key = grid.key(number);
            prop_assert_eq!(grid.interval_of(key.ds, key.hour), Some(interval));
            prop_assert!(grid.last_complete(time).end() <= time);
        }

        #[test]
        fn any_day_is_safe(grid in any_grid(), days in -120_000_000_i64..120_000_000) {
            let day = Ds::default().plus_days(days);
            let _ = grid.interval_of(day, None);
            let _ = grid.intervals(day, day.plus_days(1));
        }
    }
}
