use std::process::ExitCode;

use headworks_flow::{
    Span,
    exec::{Reprocess, Request},
};

use super::when::WhenArgs;
use crate::{
    app::App,
    execute::{self, Wanted},
};

/// Run one job for one interval, here and now
///
/// The run goes the same way as a scheduled one: it waits for its inputs, computes aside, checks, and only then publishes.
/// Without `--ds` it takes the last whole interval; a job by the hour takes all hours of a day without `--hour`. A partition
/// that is published already stays unless `--reprocess`. The first Ctrl-C stops cleanly, the second at once; the same command
/// again goes on.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks run company_metrics --ds 2018-03-01
  headworks run departures_hourly --ds 2018-03-01 --hour 5 --wait 10m
  headworks run airlines --as-of-now --param region=eu")]
pub(crate) struct Args {
    /// The job, by its name or by its table
    job: String,
    #[command(flatten)]
    when: WhenArgs,
    /// Let an import of a whole table fill a past day with what the table holds now
    #[arg(long)]
    as_of_now: bool,
    /// Wait at most so long for inputs that others make, as 10m: partitions, files and the like; 0s by default
    #[arg(long, value_name = "DURATION")]
    wait: Option<Span>,
    /// Run even when the partition is published already, and replace it
    #[arg(long)]
    reprocess: bool,
}

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let job = app.job(&args.job)?;
    let intervals = args.when.intervals(&job, app.clock.now())?;
    let wanted = Wanted {
        requests: intervals.into_iter().map(|interval| Request { job: job.name.clone(), interval }).collect(),
        reprocess: if args.reprocess { Reprocess::All } else { Reprocess::Failed },
        params: args.when.params()?,
        as_of_now: args.as_of_now,
        wait: args.wait.map(Span::duration),
        tasks_max: None,
    };
    execute::foreground(app, wanted).await
}
