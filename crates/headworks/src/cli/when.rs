use chrono::{DateTime, Utc};
use headworks_domain::{Ds, Grain, Interval};
use headworks_flow::Job;
use serde_json::{Map, Value};

use crate::fail::Failure;

/// Which interval of a job, and with which parameters.
#[derive(Debug, clap::Args)]
pub(super) struct WhenArgs {
    /// The day of the interval, in the job's zone (with --hour: the UTC day); without it the last whole interval
    #[arg(long, value_name = "DAY")]
    ds: Option<Ds>,
    /// The hour of the interval, UTC; for jobs by the hour
    #[arg(long, requires = "ds", value_parser = clap::value_parser!(u8).range(0..24))]
    hour: Option<u8>,
    /// Give the job a parameter; may be repeated
    #[arg(long = "param", value_name = "KEY=VALUE")]
    params: Vec<String>,
}

impl WhenArgs {
    /// Finds the job's intervals that are meant: one, or a day's 24 when a job by the hour gets a day only.
    ///
    /// Errors: an hour for a job by the day, a day outside the job's `start` and `end`.
    pub(super) fn intervals(&self, job: &Job, now: DateTime<Utc>) -> Result<Vec<Interval>, Failure> {
        let Some(ds) = self.ds else {
            let interval = job.last_complete(now);
            return if job.covers(&interval) { Ok(vec![interval]) } else { Err(outside(job, job.ds(&interval))) };
        };
        if self.hour.is_some() && job.grain != Grain::Hour {
            let message = format!("job `{}` goes by the {}, not by the hour", job.name, job.grain);
            return Err(Failure::usage(message, "leave --hour out"));
        }
        let intervals = match self.hour {
            None if job.grain == Grain::Hour => job.intervals(ds, ds),
            _ => job.interval_of(ds, self.hour).into_iter().filter(|interval| job.covers(interval)).collect(),
        };
        if intervals.is_empty() { Err(outside(job, ds)) } else { Ok(intervals) }
    }

    /// The parameters. Values that are JSON are taken as such: numbers, booleans, lists; everything else is text.
    pub(super) fn params(&self) -> Result<Map<String, Value>, Failure> {
        let mut params = Map::new();
        for param in &self.params {
            let Some((key, value)) = param.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                return Err(Failure::usage(
                    format!("`--param {param}` is not a parameter"),
                    "write it as --param key=value",
                ));
            };
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            params.insert(key.to_owned(), value);
        }
        Ok(params)
    }
}

fn outside(job: &Job, ds: Ds) -> Failure {
    let limits = match (job.spec.start, job.spec.end) {
        (Some(start), Some(end)) => format!("it fills {start} to {end}"),
        (Some(start), None) => format!("it begins with {start}"),
        (None, Some(end)) => format!("it ends with {end}"),
        (None, None) => "its zone never had that day".to_owned(),
    };
    Failure::usage(
        format!("job `{}` has no interval for ds={ds}: {limits}", job.name),
        format!("name another --ds, or change start and end in {}", job.file),
    )
}
