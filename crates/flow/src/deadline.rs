//! By when partitions are promised.

use chrono::{DateTime, Days, TimeDelta, Utc};
use headworks_domain::Interval;

use crate::{grid::first_instant, job::Job};

/// A promise: an interval, and the instant by which it should be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// What is promised.
    pub interval: Interval,
    /// By when.
    pub due: DateTime<Utc>,
}

/// How far back a tick may lie whose deadline is still to come: a day, which may be a long one, and some.
const TICK_BEFORE_DUE_MAX: TimeDelta = TimeDelta::hours(50);

/// How far ahead a deadline is looked for: over a year, for yearly schedules.
const AHEAD_MAX: TimeDelta = TimeDelta::days(400);

impl Job {
    /// The deadlines that come in `(after, until]`, in the order of their ticks; lazy. None for jobs without a deadline, and for
    /// those that only run by hand.
    ///
    /// A deadline is a time of day in the job's zone. For a tick's interval it is the first such time after the tick: `07:00`
    /// means this morning for a job that ticks at 02:00, and tomorrow morning for one that ticks at 22:00. Jobs without a clock
    /// (`after waits`) count from the end of each of their intervals. A time that the clock skips comes at the first instant
    /// after the gap, one that comes twice the first time.
    pub fn deadlines(&self, after: DateTime<Utc>, until: DateTime<Utc>) -> impl Iterator<Item = Deadline> {
        let from = after.checked_sub_signed(TICK_BEFORE_DUE_MAX).unwrap_or(after);
        let ticks: Box<dyn Iterator<Item = (DateTime<Utc>, Interval)>> = match (&self.schedule, self.spec.deadline) {
            (Some(schedule), Some(_)) if schedule.is_after_waits() => Box::new(self.ends(from, until)),
            (Some(schedule), Some(_)) => {
                let ticks = schedule.ticks(self.zone, from, until);
                Box::new(ticks.filter_map(|at| Some((at, self.interval_at(at)?))))
            }
            _ => Box::new(std::iter::empty()),
        };
        let last = self.spec.end.map(|end| self.grid().intervals(end, end)).and_then(|last| last.last().copied());
        ticks
            .take_while(move |(_, interval)| last.is_none_or(|last| interval.start() < last.end()))
            .filter(|(_, interval)| self.covers(interval))
            .filter_map(move |(tick, interval)| Some(Deadline { interval, due: self.time_after(tick)? }))
            .filter(move |deadline| deadline.due > after && deadline.due <= until)
    }

    /// The first deadline after an instant, within a year and a bit.
    pub fn next_deadline(&self, after: DateTime<Utc>) -> Option<Deadline> {
        self.deadlines(after, after.checked_add_signed(AHEAD_MAX)?).next()
    }

    /// By when an interval is promised, however it comes to be computed: with the first tick that covers its end.
    pub fn due_at(&self, interval: &Interval) -> Option<DateTime<Utc>> {
        let schedule = self.schedule.as_ref()?;
        let tick = if schedule.is_after_waits() {
            interval.end()
        } else {
            schedule.next_after(self.zone, interval.end() - TimeDelta::nanoseconds(1))?
        };
        self.time_after(tick)
    }

    /// The intervals that end in `[from, until)`, each with its end.
    fn ends(&self, from: DateTime<Utc>, until: DateTime<Utc>) -> impl Iterator<Item = (DateTime<Utc>, Interval)> {
        let grid = self.grid();
        let first = grid.number(from) - 1;
        (first..)
            .map_while(move |number| Some(number).filter(|n| grid.start(*n) < until))
            .filter_map(move |number| grid.interval(number))
            .map(|interval| (interval.end(), interval))
            .filter(move |(end, _)| *end >= from && *end < until)
    }

    /// The first time after a tick at which the job's clock shows its deadline.
    fn time_after(&self, tick: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let deadline = self.spec.deadline?;
        let date = tick.with_timezone(&self.zone).date_naive();
        (0..4)
            .filter_map(|days| date.checked_add_days(Days::new(days)))
            .filter_map(|date| date.and_hms_opt(deadline.hour.into(), deadline.minute.into(), 0))
            .map(|local| first_instant(local, self.zone))
            .find(|due| *due > tick)
    }
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;

    use super::*;

    fn job(header: &str) -> Job {
        let text = format!("/* job\n{header}*/\nSELECT 1 AS x FROM wait::other\n");
        let file = crate::jobfile::read("jobs/x.sql".to_owned(), text, "x", Tz::UTC);
        assert_eq!(file.problems, vec![], "{header}");
        file.job.unwrap()
    }

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// Shows deadlines as partition and local time.
    fn check(header: &str, after: &str, until: &str, expected: &[&str]) {
        let job = job(header);
        let shown: Vec<String> = job
            .deadlines(utc(after), utc(until))
            .map(|d| {
                assert_eq!(job.due_at(&d.interval), Some(d.due), "asked by the interval");
                let local = d.due.with_timezone(&job.zone).format("%Y-%m-%d %H:%M%:z");
                format!("{} by {local}", job.grid().last_key(&d.interval))
            })
            .collect();
        assert_eq!(shown, expected, "{header}");
    }

    #[test]
    fn a_deadline_is_the_first_such_time_after_the_tick() {
        check(
            "schedule: '0 2 * * *'\ndeadline: '07:00'\n",
            "2026-01-01T07:00:00Z",
            "2026-01-03T07:00:00Z",
            &["ds=2026-01-01 by 2026-01-02 07:00+00:00", "ds=2026-01-02 by 2026-01-03 07:00+00:00"],
        );
        // The tick is in the evening: the morning after.
        check(
            "schedule: '0 22 * * *'\ndeadline: '07:00'\n",
            "2026-01-01T12:00:00Z",
            "2026-01-02T12:00:00Z",
            &["ds=2025-12-31 by 2026-01-02 07:00+00:00"],
        );
        // At the tick nothing can be there yet.
        check(
            "schedule: '0 7 * * *'\ndeadline: '07:00'\n",
            "2026-01-01T12:00:00Z",
            "2026-01-02T12:00:00Z",
            &["ds=2025-12-31 by 2026-01-02 07:00+00:00"],
        );
        // A whole weekend with Monday's tick; its last day names it.
        check(
            "schedule: '0 2 * * 1-5'\ndeadline: '07:00'\n",
            "2026-01-02T12:00:00Z",
            "2026-01-05T12:00:00Z",
            &["ds=2026-01-04 by 2026-01-05 07:00+00:00"],
        );
    }

    #[test]
    fn hours_of_a_day_are_due_together() {
        check(
            "schedule: '@hourly'\ndeadline: '02:30'\n",
            "2026-01-01T02:30:00Z",
            "2026-01-02T02:30:00Z",
            &(2..26)
                .map(|n| format!("ds=2026-01-0{}/hour={:02} by 2026-01-02 02:30+00:00", 1 + n / 24, n % 24))
                .collect::<Vec<_>>()
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        );
    }

    #[test]
    fn deadlines_follow_the_zones_clock() {
        // New York skips 02:30 on the 8th of March: the first instant after the gap.
        check(
            "schedule: '0 1 * * *'\ntimezone: America/New_York\ndeadline: '02:30'\n",
            "2026-03-07T00:00:00Z",
            "2026-03-10T00:00:00Z",
            &[
                "ds=2026-03-06 by 2026-03-07 02:30-05:00",
                "ds=2026-03-07 by 2026-03-08 03:00-04:00",
                "ds=2026-03-08 by 2026-03-09 02:30-04:00",
            ],
        );
    }

    #[test]
    fn jobs_without_a_clock_count_from_their_intervals() {
        check(
            "schedule: after waits\ndeadline: '07:00'\n",
            "2026-01-01T12:00:00Z",
            "2026-01-03T12:00:00Z",
            &["ds=2026-01-01 by 2026-01-02 07:00+00:00", "ds=2026-01-02 by 2026-01-03 07:00+00:00"],
        );
        check("deadline: '07:00'\n", "2026-01-01T12:00:00Z", "2026-02-01T12:00:00Z", &[]);
        check("schedule: '@daily'\n", "2026-01-01T12:00:00Z", "2026-02-01T12:00:00Z", &[]);
    }

    #[test]
    fn nothing_is_promised_outside_the_jobs_days() {
        let header = "schedule: '@daily'\ndeadline: '07:00'\nstart: 2026-01-02\nend: 2026-01-03\n";
        check(
            header,
            "2025-01-01T00:00:00Z",
            "2027-01-01T00:00:00Z",
            &["ds=2026-01-02 by 2026-01-03 07:00+00:00", "ds=2026-01-03 by 2026-01-04 07:00+00:00"],
        );
        let job = job(header);
        assert_eq!(job.next_deadline(utc("2026-01-03T07:00:00Z")).map(|d| d.due), Some(utc("2026-01-04T07:00:00Z")));
        assert_eq!(job.next_deadline(utc("2026-01-04T07:00:00Z")), None);
    }
}
