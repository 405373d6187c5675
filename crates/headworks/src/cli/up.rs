use std::process::ExitCode;

use headworks_meta::Role;

use crate::{app::App, serve};

/// Keep the project running: schedules, runs, changed files, health checks
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks up
  headworks jobs pause company_metrics        works beside it, as all commands do

It runs until Ctrl-C (or SIGTERM); then running attempts may end for half a minute. What did not end is taken up by the next start.
A job file that is saved counts within a second. One with errors keeps its last good version. Several may run over one PostgreSQL.
It carries out jobs without a zone and those of its --zone; other jobs it plans and leaves to workers of theirs.")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    tasks: Tasks,
    #[command(flatten)]
    zone: Zone,
    #[command(flatten)]
    pools: PoolsArg,
}

/// Look after the schedules only and leave the work to workers
#[derive(Debug, clap::Args)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    zone: Zone,
}

/// Work for schedulers that run elsewhere, over the same PostgreSQL
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks worker --tasks 16
  headworks worker --zone eu                  jobs with `zone: eu`, and those without a zone
  headworks worker --pools gpu                runs whose tasks all lie in pool gpu
  headworks worker --pools etl,default        ... in pool etl or in none")]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    tasks: Tasks,
    #[command(flatten)]
    zone: Zone,
    #[command(flatten)]
    pools: PoolsArg,
}

/// Answer queries only: SQL over HTTP, Arrow Flight SQL and PostgreSQL
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks server --listen 0.0.0.0:8470

It runs no jobs, so that heavy ones elsewhere leave its queries alone; any number may stand over one metadata database. What another
process publishes counts in the next query. `headworks up` answers queries too.")]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    listen: Listen,
}

#[derive(Debug, clap::Args)]
struct Zone {
    /// Where this process stands, instead of execution.zone: it carries out jobs of this zone and of none
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    zone: Option<String>,
}

#[derive(Debug, clap::Args)]
struct PoolsArg {
    /// Take only runs whose tasks all lie in these pools; `default` stands for tasks that name none
    #[arg(long, value_name = "POOL,...", value_delimiter = ',')]
    pools: Option<Vec<String>>,
}

fn zone(text: &str) -> Result<String, String> {
    headworks_flow::zone_name(text).map(|()| text.to_owned())
}

#[derive(Debug, clap::Args)]
struct Listen {
    /// Answer HTTP here instead of server.listen; port 0 takes any free one
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
    run(app, Role::Scheduler, args.listen, args.tasks, args.zone, args.pools).await
}

pub(crate) async fn scheduler(app: &App, args: SchedulerArgs) -> anyhow::Result<ExitCode> {
    run(app, Role::Planner, args.listen, Tasks { tasks: None }, args.zone, PoolsArg { pools: None }).await
}

pub(crate) async fn worker(app: &App, args: WorkerArgs) -> anyhow::Result<ExitCode> {
    run(app, Role::Worker, args.listen, args.tasks, args.zone, args.pools).await
}

pub(crate) async fn server(app: &App, args: ServerArgs) -> anyhow::Result<ExitCode> {
    serve::answer(app, args.listen.listen).await
}

async fn run(
    app: &App,
    role: Role,
    Listen { listen }: Listen,
    Tasks { tasks }: Tasks,
    Zone { zone }: Zone,
    PoolsArg { pools }: PoolsArg,
) -> anyhow::Result<ExitCode> {
    let tasks_max = tasks.map(|n| n as usize);
    serve::run(app, serve::Options { listen, tasks_max, role, zone, pools }).await
}
