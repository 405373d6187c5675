use std::{process::ExitCode, str::FromStr};

use chrono::{DateTime, NaiveDateTime, NaiveTime, SecondsFormat, Utc};
use chrono_tz::Tz;
use headworks_domain::{Ds, Grain};
use headworks_flow::{Grid, Schedule, ScheduleError, Tick, zone};
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::{DONE, Failure},
    output::{Align, Table, count, shown},
};

/// List when a schedule ticks, and which interval each tick is for
///
/// Needs no job: it shows what a `schedule:` would do before you write it down.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks schedule '0 2 * * *' --tz America/New_York --from 2026-03-06 --to 2026-03-10
  headworks schedule '*/15 * * * *' --from 2026-11-01T04:00:00Z --to 2026-11-01T08:00:00Z --json
  headworks schedule @weekly --from 2026-01-01 --to 2026-12-31 --grain day

A tick is for all whole grains since the tick before it. One in which no grain ended is for nothing, and starts no run.")]
pub(crate) struct Args {
    /// Five cron fields, @daily and its like, or `every 15 minutes`
    schedule: String,
    /// The zone in which the clock is read and days are cut; the project's, or UTC where there is none
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// The first day, or the first instant as 2026-03-08T02:00:00Z; without Z or an offset it is read in the zone
    #[arg(long, value_name = "WHEN")]
    from: Bound,
    /// The last day, which is included, or the instant up to which ticks are listed
    #[arg(long, value_name = "WHEN")]
    to: Bound,
    /// The size of the partitions: hour, day, week or month; found from the schedule unless given
    #[arg(long)]
    grain: Option<Grain>,
}

/// The most ticks that are listed: ten weeks of every minute.
const TICKS_MAX: usize = 100_000;

/// An end of a stretch of time, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    Day(Ds),
    Instant(DateTime<Utc>),
    OnClock(NaiveDateTime),
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let on_clock = |format| NaiveDateTime::parse_from_str(text, format).map(Self::OnClock);
        text.parse()
            .map(Self::Day)
            .or_else(|_| DateTime::parse_from_rfc3339(text).map(|time| Self::Instant(time.to_utc())))
            .or_else(|_| on_clock("%Y-%m-%dT%H:%M:%S"))
            .or_else(|_| on_clock("%Y-%m-%dT%H:%M"))
            .map_err(|_| "write a day as 2026-03-08, or an instant as 2026-03-08T02:00:00Z".to_owned())
    }
}

impl Bound {
    /// The instant; a day's first one.
    pub(super) fn instant(self, grid: &Grid) -> DateTime<Utc> {
        self.ends(grid).0
    }

    /// The first instant of it, and the first one behind it; for instants both are the same.
    fn ends(self, grid: &Grid) -> (DateTime<Utc>, DateTime<Utc>) {
        let midnight = |ds: Ds| grid.instant_of(ds.date().and_time(NaiveTime::MIN));
        match self {
            Self::Day(ds) => (midnight(ds), midnight(ds.plus_days(1))),
            Self::Instant(time) => (time, time),
            Self::OnClock(local) => (grid.instant_of(local), grid.instant_of(local)),
        }
    }
}

pub(crate) fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let schedule = Schedule::parse(&args.schedule).map_err(wrong)?;
    if schedule.is_after_waits() {
        let hint = "its runs start when what they wait for is published; name a cron to see ticks";
        return Err(Failure::usage("`after waits` has no clock, and so no ticks", hint).into());
    }
    let zone = match &args.tz {
        Some(name) => zone(name).map_err(wrong)?,
        None => project_zone(app)?,
    };
    let grid = Grid { grain: args.grain.unwrap_or_else(|| schedule.grain()), zone };
    let ((from, _), (last, to)) = (args.from.ends(&grid), args.to.ends(&grid));
    if last < from {
        let (from, last) = (from.with_timezone(&zone), last.with_timezone(&zone));
        return Err(Failure::usage(format!("--to is before --from: {last} is before {from}"), "swap them").into());
    }
    let ticks: Vec<Tick> = schedule.runs(grid, from, to).take(TICKS_MAX + 1).collect();
    if ticks.len() > TICKS_MAX {
        let message = format!("`{schedule}` ticks more than {} times in that stretch", count(TICKS_MAX as u64));
        return Err(Failure::usage(message, "bring --from and --to closer together").into());
    }
    if app.out.json {
        app.out.document(&ticks.iter().map(|tick| tick_json(&grid, tick)).collect::<Vec<_>>())?;
    } else if ticks.is_empty() {
        app.note(format_args!("`{schedule}` does not tick between {} and {} UTC", shown(from), shown(to)));
    } else {
        app.out.table(&table(&grid, &ticks))?;
    }
    Ok(ExitCode::from(DONE))
}

/// The project's zone; UTC outside of projects. Errors: those of the project's settings.
fn project_zone(app: &App) -> anyhow::Result<Tz> {
    match app.config() {
        Ok(config) => Ok(zone(&config.project.timezone).map_err(wrong)?),
        Err(error) if matches!(error.downcast_ref(), Some(headworks_flow::Error::NoProject { .. })) => Ok(Tz::UTC),
        Err(error) => Err(error),
    }
}

fn wrong(error: ScheduleError) -> Failure {
    Failure::usage(error.to_string(), error.hint())
}

/// A tick as a document: in UTC, but for the time on the zone's clock.
pub(super) fn tick_json(grid: &Grid, tick: &Tick) -> Value {
    json!({
        "tick": tick.at,
        "tick_local": tick.at.with_timezone(&grid.zone).to_rfc3339_opts(SecondsFormat::Secs, false),
        "interval_start": tick.interval.map(|interval| interval.start()),
        "interval_end": tick.interval.map(|interval| interval.end()),
        "ds": tick.interval.map(|interval| grid.last_key(&interval).ds),
    })
}

/// A moment on the zone's clock, as `2026-03-08 03:00 EDT`.
pub(super) fn on_clock(zone: Tz, time: DateTime<Utc>) -> String {
    time.with_timezone(&zone).format("%Y-%m-%d %H:%M %Z").to_string()
}

fn table(grid: &Grid, ticks: &[Tick]) -> Table {
    let mut table = Table::new([
        (format!("tick in {}", grid.zone.name()), Align::Left),
        ("tick in UTC".to_owned(), Align::Left),
        ("interval from, UTC".to_owned(), Align::Left),
        ("to".to_owned(), Align::Left),
        ("partition".to_owned(), Align::Left),
    ]);
    for tick in ticks {
        let [start, end, partition] = match &tick.interval {
            Some(interval) => [shown(interval.start()), shown(interval.end()), grid.last_key(interval).to_string()],
            None => ["nothing", "", ""].map(str::to_owned),
        };
        table.row([on_clock(grid.zone, tick.at), shown(tick.at), start, end, partition]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_days_or_instants() {
        let grid = Grid { grain: Grain::Hour, zone: "America/New_York".parse().unwrap() };
        let check = |text: &str, first: &str, behind: &str| {
            let (start, end) = text.parse::<Bound>().unwrap().ends(&grid);
            let written = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
            assert_eq!((written(start).as_str(), written(end).as_str()), (first, behind), "{text}");
        };
        check("2026-03-08", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z");
        check("2026-03-08T05:30:00Z", "2026-03-08T05:30:00Z", "2026-03-08T05:30:00Z");
        check("2026-03-08T05:30:00+02:00", "2026-03-08T03:30:00Z", "2026-03-08T03:30:00Z");
        check("2026-03-08T01:30", "2026-03-08T06:30:00Z", "2026-03-08T06:30:00Z");
        // The clock skips it.
        check("2026-03-08T02:30:00", "2026-03-08T07:00:00Z", "2026-03-08T07:00:00Z");
        for bad in ["", "tomorrow", "2026-3-8", "2026-02-30", "08.03.2026", "2026-03-08T25:00"] {
            assert!(bad.parse::<Bound>().is_err(), "{bad}");
        }
    }
}
