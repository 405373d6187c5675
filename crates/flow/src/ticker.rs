//! Which runs a job's clock asks for: a function of the job, of what the scheduler remembers of it, and of the time.
//!
//! The next tick is always computed from what is remembered and never from the tick before it, so that no lost message, no crash
//! and no clock set back can end or double a chain of ticks.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{Interval, JobName};
use serde_json::Map;

use crate::{
    exec::{Demand, Reprocess, Request, Trigger},
    job::Job,
    project::Project,
    spec::{Catchup, Kind},
};

/// A tick this young is not a missed one: `catchup: none` runs it, and `catchup: latest` runs it beside a later one.
pub const FRESH: TimeDelta = TimeDelta::seconds(60);

/// What a scheduler remembers of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobClock {
    /// When a scheduler first saw the job.
    pub first_seen: DateTime<Utc>,
    /// The last tick that was seen to; none before the first.
    pub cursor: Option<DateTime<Utc>>,
    /// Whether somebody has paused it.
    pub paused: bool,
}

/// A run that a tick asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueRun {
    /// The tick.
    pub tick: DateTime<Utc>,
    /// What the run covers.
    pub interval: Interval,
}

/// What a job's clock asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DueRuns {
    /// The runs, oldest first.
    pub runs: Vec<DueRun>,
    /// The last tick seen to by this, those included that ask for nothing; none when no tick was due.
    pub cursor: Option<DateTime<Utc>>,
}

/// The most runs of one job asked for at once; the rest is due right after.
const RUNS_AT_ONCE: usize = 200;

/// The clocks of a project's jobs, and when each is to be looked at next.
#[derive(Debug, Default)]
pub struct Clocks {
    clocks: BTreeMap<JobName, JobClock>,
    next: BTreeSet<(DateTime<Utc>, JobName)>,
}

impl Clocks {
    /// Takes up what is kept of the jobs, as after their files were read anew; those that the project lacks are left out.
    pub fn remember(&mut self, project: &Project, kept: impl IntoIterator<Item = (JobName, JobClock)>) {
        let before = std::mem::take(&mut self.clocks);
        for (job, mut clock) in kept.into_iter().filter(|(job, _)| project.jobs.contains_key(job)) {
            // What was asked for is seen to, even if its claim is still on its way.
            clock.cursor = clock.cursor.max(before.get(&job).and_then(|known| known.cursor));
            self.clocks.insert(job, clock);
        }
        self.next = self.clocks.keys().map(|job| (DateTime::<Utc>::MIN_UTC, job.clone())).collect();
    }

    /// Pauses these jobs and lets all others go on.
    pub fn pause(&mut self, paused: &HashSet<JobName>, now: DateTime<Utc>) {
        for (job, clock) in &mut self.clocks {
            let is_paused = paused.contains(job);
            if std::mem::replace(&mut clock.paused, is_paused) != is_paused {
                self.next.retain(|(_, known)| known != job);
                self.next.insert((now, job.clone()));
            }
        }
    }

    /// When a job is to be looked at next.
    pub fn next(&self) -> Option<DateTime<Utc>> {
        self.next.first().map(|(at, _)| *at)
    }

    /// What the next job that is to be looked at asks for, which may be nothing; `None` when none is by now.
    pub fn due(&mut self, project: &Project, now: DateTime<Utc>) -> Option<Vec<Demand>> {
        let (_, name) = self.next.first().filter(|(at, _)| *at <= now)?;
        let name = name.clone();
        self.next.pop_first();
        let (Some(job), Some(clock)) = (project.jobs.get(&name), self.clocks.get_mut(&name)) else {
            return Some(Vec::new());
        };
        let due = job.due_runs(clock, now, RUNS_AT_ONCE);
        clock.cursor = clock.cursor.max(due.cursor);
        let next = if due.runs.len() < RUNS_AT_ONCE { job.next_tick(clock, now) } else { Some(now) };
        self.next.extend(next.map(|at| (at, name.clone())));
        let demand = |run: DueRun| Demand {
            request: Request { job: name.clone(), interval: run.interval },
            trigger: Trigger::Schedule,
            params: Map::new(),
            tick: Some(run.tick),
            demand: None,
            reprocess: Reprocess::None,
            overlap: job.spec.overlap,
        };
        Some(due.runs.into_iter().map(demand).collect())
    }
}

impl Job {
    /// The runs that are due at `now`, at most `max`; call again with the new cursor for more.
    ///
    /// Of ticks that were missed (the job is new, was paused, or nobody ran), `catchup` says which count. A clock that was set
    /// back gives nothing until it is past the cursor again.
    pub fn due_runs(&self, clock: &JobClock, now: DateTime<Utc>, max: usize) -> DueRuns {
        let mut due = DueRuns::default();
        if clock.paused {
            return due;
        }
        let mut from = self.seen_until(clock);
        // What a source held on days gone by cannot be read any more.
        let catchup = if self.knows_no_past() { Catchup::Latest } else { self.spec.catchup };
        if catchup != Catchup::All {
            // Ticks that don't count are not walked: there may be years of them.
            let fresh = now - FRESH;
            if from < fresh {
                from = match catchup {
                    Catchup::Latest => {
                        self.tick_before(fresh).map_or(from, |last| from.max(last - TimeDelta::nanoseconds(1)))
                    }
                    _ => from.max(fresh),
                };
            }
        }
        let mut tick = from;
        while due.runs.len() < max {
            let Some(next) = self.tick_after(tick).filter(|next| *next <= now) else { break };
            tick = next;
            due.cursor = Some(tick);
            let interval = self.interval_at(tick).filter(|interval| self.covers(interval));
            due.runs.extend(interval.map(|interval| DueRun { tick, interval }));
        }
        due
    }

    /// The job's next tick; none while it is paused, for a job without a schedule, and after its `end`.
    pub fn next_tick(&self, clock: &JobClock, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if clock.paused {
            return None;
        }
        let next = self.tick_after(self.seen_until(clock).max(now))?;
        let is_past_end = |interval: &Interval| self.spec.end.is_some_and(|end| self.ds(interval) > end);
        self.interval_at(next).is_none_or(|interval| !is_past_end(&interval)).then_some(next)
    }

    /// What the run of a tick covers: whole grains since the tick before. A job without a table has work at every tick: when no grain
    /// ended since the one before, the very time since then.
    pub fn interval_at(&self, tick: DateTime<Utc>) -> Option<Interval> {
        let schedule = self.schedule.as_ref()?;
        let grid = self.grid();
        if schedule.is_after_waits() {
            return Some(grid.last_complete(tick));
        }
        let whole = schedule.interval_at(&grid, tick);
        if whole.is_none() && self.table.is_none() {
            return Interval::new(schedule.last_before(self.zone, tick)?, tick).ok();
        }
        whole
    }

    /// What the scheduled run covers that makes a grain: all the grains of its tick. A job without a clock makes each by itself.
    pub fn scheduled_interval(&self, grain: Interval) -> Interval {
        let tick = self.schedule.as_ref().filter(|schedule| !schedule.is_after_waits()).and_then(|schedule| {
            // The first at the grain's end or after it.
            schedule.next_after(self.zone, grain.end() - TimeDelta::nanoseconds(1))
        });
        let covers = |run: &Interval| run.start() <= grain.start() && grain.end() <= run.end();
        tick.and_then(|tick| self.interval_at(tick)).filter(covers).unwrap_or(grain)
    }

    /// Ticks up to this one are seen to.
    fn seen_until(&self, clock: &JobClock) -> DateTime<Utc> {
        let start = self.spec.start.and_then(|ds| self.interval_of(ds, None)).map(|first| first.start());
        match (clock.cursor, self.spec.catchup) {
            (Some(cursor), _) => cursor,
            (None, Catchup::All) => start.unwrap_or(clock.first_seen),
            (None, Catchup::Latest) => {
                let last = self.tick_before(clock.first_seen + TimeDelta::nanoseconds(1));
                last.map_or(clock.first_seen, |last| last - TimeDelta::nanoseconds(1))
            }
            (None, Catchup::None) => clock.first_seen,
        }
    }

    /// The first tick after an instant. A job without a clock ticks at the end of each grain, and then waits. Views need no runs
    /// but the first.
    fn tick_after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let schedule = self.schedule.as_ref()?;
        if !schedule.is_after_waits() {
            return schedule.next_after(self.zone, time);
        }
        if self.spec.kind == Kind::View {
            return None;
        }
        let grid = self.grid();
        let number = grid.number(time);
        (number + 1..number + 4).map(|n| grid.start(n)).find(|start| *start > time)
    }

    /// The last tick before an instant.
    fn tick_before(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let schedule = self.schedule.as_ref()?;
        if !schedule.is_after_waits() {
            return schedule.last_before(self.zone, time);
        }
        Some(self.grid().floor(time - TimeDelta::nanoseconds(1)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::TimeZone;

    use super::*;
    use crate::{check, jobfile, project::Project};

    fn job(header: &str) -> Arc<Job> {
        let text = format!("/* job\n{header}\n*/ SELECT 1 AS n");
        let mut project = Project::default();
        let file = jobfile::read("jobs/a.sql".to_owned(), text, "a", chrono_tz::UTC);
        let mut problems = Vec::new();
        check::assemble(&mut project, vec![file], &mut problems);
        assert!(problems.iter().all(|p| p.severity != headworks_domain::Severity::Error), "{problems:?}");
        Arc::clone(project.job("a").unwrap())
    }

    fn at(text: &str) -> DateTime<Utc> {
        let parsed = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S");
        Utc.from_utc_datetime(
            &parsed
                .or_else(|_| chrono::NaiveDateTime::parse_from_str(&format!("{text}:00"), "%Y-%m-%d %H:%M:%S"))
                .unwrap(),
        )
    }

    fn clock(first_seen: &str, cursor: Option<&str>) -> JobClock {
        JobClock { first_seen: at(first_seen), cursor: cursor.map(at), paused: false }
    }

    /// Shows ticks with the `ds` of their runs.
    fn check(header: &str, clock: &JobClock, now: &str, expected: &[&str]) {
        let job = job(header);
        let due = job.due_runs(clock, at(now), 1000);
        let shown: Vec<String> = due
            .runs
            .iter()
            .map(|run| format!("{} ds={}", run.tick.format("%d %H:%M"), job.ds(&run.interval)))
            .collect();
        assert_eq!(shown, expected, "{header} at {now}");
    }

    const DAILY: &str = "schedule: '0 2 * * *'";

    #[test]
    fn a_new_job_runs_what_its_catchup_says() {
        let new = clock("2026-03-10 12:00", None);
        check(&format!("{DAILY}\ncatchup: none"), &new, "2026-03-10 12:00", &[]);
        check(&format!("{DAILY}\ncatchup: none"), &new, "2026-03-11 02:00", &["11 02:00 ds=2026-03-10"]);
        check(DAILY, &new, "2026-03-10 12:00", &["10 02:00 ds=2026-03-09"]);
        check(
            &format!("{DAILY}\ncatchup: all\nstart: 2026-03-07"),
            &new,
            "2026-03-10 12:00",
            &["08 02:00 ds=2026-03-07", "09 02:00 ds=2026-03-08", "10 02:00 ds=2026-03-09"],
        );
    }

    #[test]
    fn missed_ticks_follow_catchup_and_fresh_ones_always_run() {
        let down = clock("2026-01-01 00:00", Some("2026-03-07 02:00"));
        let late = "2026-03-10 12:00";
        check(&format!("{DAILY}\ncatchup: none"), &down, late, &[]);
        check(DAILY, &down, late, &["10 02:00 ds=2026-03-09"]);
        let three = ["08 02:00 ds=2026-03-07", "09 02:00 ds=2026-03-08", "10 02:00 ds=2026-03-09"];
        check(&format!("{DAILY}\ncatchup: all\nstart: 2026-01-01"), &down, late, &three);
        check(&format!("{DAILY}\ncatchup: none"), &down, "2026-03-08 02:00:59", &["08 02:00 ds=2026-03-07"]);
        check(&format!("{DAILY}\ncatchup: none"), &down, "2026-03-08 02:01:01", &[]);
    }

    #[test]
    fn nothing_runs_twice_or_while_paused_or_when_the_clock_went_back() {
        let seen = clock("2026-01-01 00:00", Some("2026-03-10 02:00"));
        check(DAILY, &seen, "2026-03-10 12:00", &[]);
        check(DAILY, &seen, "2026-03-10 00:30", &[]);
        check(DAILY, &JobClock { paused: true, ..seen }, "2026-03-12 12:00", &[]);
    }

    #[test]
    fn start_and_end_bound_the_runs() {
        let seen = clock("2026-01-01 00:00", Some("2026-03-07 02:00"));
        let header = format!("{DAILY}\ncatchup: all\nstart: 2026-03-08\nend: 2026-03-08");
        check(&header, &seen, "2026-03-12 12:00", &["09 02:00 ds=2026-03-08"]);
        let job = job(&header);
        assert_eq!(job.next_tick(&seen, at("2026-03-12 12:00")), None);
        assert_eq!(job.next_tick(&seen, at("2026-03-08 12:00")), Some(at("2026-03-09 02:00")));
    }

    #[test]
    fn a_job_without_a_clock_ticks_with_its_grain() {
        let seen = clock("2026-03-10 12:30", Some("2026-03-10 00:00"));
        let expected = ["11 00:00 ds=2026-03-10", "12 00:00 ds=2026-03-11"];
        check(
            "schedule: after waits\ncatchup: all\nstart: 2026-01-01\nwait: [t]",
            &seen,
            "2026-03-12 12:00",
            &expected,
        );
        let hourly = "schedule: after waits\ngrain: hour\ncatchup: all\nstart: 2026-01-01\nwait: [t]";
        check(
            hourly,
            &clock("2026-03-10 12:30", Some("2026-03-10 12:00")),
            "2026-03-10 13:10",
            &["10 13:00 ds=2026-03-10"],
        );
    }

    #[test]
    fn a_tick_that_completes_no_grain_asks_for_nothing_and_is_passed() {
        let job = job("schedule: every 15 minutes\ncatchup: all\nstart: 2026-01-01");
        let due = job.due_runs(&clock("2026-03-10 12:00", Some("2026-03-10 12:00")), at("2026-03-10 13:20"), 10);
        assert_eq!(due.runs.len(), 1);
        assert_eq!(due.runs[0].tick, at("2026-03-10 13:00"));
        assert_eq!(due.cursor, Some(at("2026-03-10 13:15")));
    }

    #[test]
    fn a_job_of_tasks_covers_grains_where_there_are_any_and_works_at_every_tick() {
        let job = |schedule: &str| {
            let text = format!("schedule: '{schedule}'\ntasks:\n  a: {{type: shell, command: 'true'}}\n");
            jobfile::read("jobs/a.yml".to_owned(), text, "a", chrono_tz::UTC).job.unwrap()
        };
        let covers = |schedule: &str, tick: &str| job(schedule).interval_at(at(tick)).unwrap().to_string();
        assert_eq!(covers("0 3 * * *", "2026-03-10 03:00"), "2026-03-09T00:00:00Z/2026-03-10T00:00:00Z");
        assert_eq!(covers("every 15 minutes", "2026-03-10 03:00"), "2026-03-10T02:00:00Z/2026-03-10T03:00:00Z");
        assert_eq!(covers("every 15 minutes", "2026-03-10 03:15"), "2026-03-10T03:00:00Z/2026-03-10T03:15:00Z");
    }

    #[test]
    fn a_long_past_comes_in_pieces() {
        let job = job(&format!("{DAILY}\ncatchup: all\nstart: 2020-01-01"));
        let mut clock = clock("2026-03-10 12:00", None);
        let mut days = Vec::new();
        loop {
            let due = job.due_runs(&clock, at("2026-03-10 12:00"), 500);
            let Some(cursor) = due.cursor else { break };
            clock.cursor = Some(cursor);
            days.extend(due.runs.into_iter().map(|run| job.ds(&run.interval)));
        }
        assert_eq!(days.len(), 2260);
        assert!(days.windows(2).all(|pair| pair[0].plus_days(1) == pair[1]));
    }
}
