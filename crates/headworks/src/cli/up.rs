use std::process::ExitCode;

use crate::{app::App, serve};

/// Keep the project running: schedules, runs, changed files, health checks
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks up
  headworks jobs pause company_metrics        works beside it, as all commands do

It runs until Ctrl-C (or SIGTERM); then running attempts may end for half a minute. What did not end is taken up by the next start.
A job file that is saved counts within a second. One with errors keeps its last good version.")]
pub(crate) struct Args {
    /// Answer health checks and metrics here instead of server.listen; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// So many tasks at once instead of execution.tasks_max
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tasks: Option<u32>,
}

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    serve::run(app, serve::Options { listen: args.listen, tasks_max: args.tasks.map(|n| n as usize) }).await
}
