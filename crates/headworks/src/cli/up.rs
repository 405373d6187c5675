use std::process::ExitCode;

use headworks_meta::Role;

use crate::{app::App, serve};

/// Keep the project running: schedules, runs, changed files, health checks
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks up
  headworks jobs pause company_metrics        works beside it, as all commands do

It runs until Ctrl-C (or SIGTERM); then running attempts may end for half a minute. What did not end is taken up by the next start.
A job file that is saved counts within a second. One with errors keeps its last good version. Several may run over one PostgreSQL.")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    tasks: Tasks,
}

/// Look after the schedules only and leave the work to workers
#[derive(Debug, clap::Args)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    listen: Listen,
}

/// Work for schedulers that run elsewhere, over the same PostgreSQL
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    tasks: Tasks,
}

#[derive(Debug, clap::Args)]
struct Listen {
    /// Answer health checks and metrics here instead of server.listen; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Tasks {
    /// So many tasks at once instead of execution.tasks_max
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tasks: Option<u32>,
}

pub(crate) async fn up(app: &App, args: UpArgs) -> anyhow::Result<ExitCode> {
    run(app, Role::Scheduler, args.listen, args.tasks).await
}

pub(crate) async fn scheduler(app: &App, args: SchedulerArgs) -> anyhow::Result<ExitCode> {
    run(app, Role::Planner, args.listen, Tasks { tasks: None }).await
}

pub(crate) async fn worker(app: &App, args: WorkerArgs) -> anyhow::Result<ExitCode> {
    run(app, Role::Worker, args.listen, args.tasks).await
}

async fn run(app: &App, role: Role, listen: Listen, tasks: Tasks) -> anyhow::Result<ExitCode> {
    let tasks_max = tasks.tasks.map(|n| n as usize);
    serve::run(app, serve::Options { listen: listen.listen, tasks_max, role }).await
}
