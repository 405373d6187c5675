//! What people do to jobs: pause them, let them go on, ask for a run.

use std::process::ExitCode;

use headworks_domain::JobName;
use headworks_flow::{
    Job,
    exec::{Reprocess, Request, Trigger},
};
use headworks_meta::{NewDemand, Runs};
use serde_json::{Map, Value, json};

use super::super::when::WhenArgs;
use crate::{app::App, execute, fail::DONE, output::count};

/// Pause jobs: their schedules start nothing until they are resumed
///
/// Runs that have begun go on, and runs by hand are possible. A process that keeps the project running notices within a second.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks jobs pause company_metrics departures_hourly")]
pub(crate) struct PauseArgs {
    /// The jobs, by name or by table
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<String>,
}

/// Let paused jobs go on; `catchup` says which of the missed ticks run
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// The jobs, by name or by table
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<String>,
}

/// Ask for a run of a job, and do not wait for it
///
/// The wish is kept, and whoever keeps the project running (headworks up) carries it out, now or once it starts. It waits for
/// its inputs as every run does. Use headworks run to run a job here and now.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks jobs trigger company_metrics --ds 2018-03-01
  headworks jobs trigger company_metrics --ds 2018-03-01 --reprocess
  headworks jobs trigger clean_up --param limit=1000")]
pub(crate) struct TriggerArgs {
    /// The job, by its name or by its table
    job: String,
    #[command(flatten)]
    when: WhenArgs,
    /// Run even when the partition is published already, and replace it
    #[arg(long)]
    reprocess: bool,
}

pub(super) async fn pause(app: &App, args: PauseArgs) -> anyhow::Result<ExitCode> {
    set_paused(app, &args.jobs, true).await
}

pub(super) async fn resume(app: &App, args: ResumeArgs) -> anyhow::Result<ExitCode> {
    set_paused(app, &args.jobs, false).await
}

async fn set_paused(app: &App, names: &[String], paused: bool) -> anyhow::Result<ExitCode> {
    let runs = app.run_store().await?;
    let known = runs.jobs().await?;
    let mut jobs: Vec<JobName> = Vec::new();
    for name in names {
        // A job whose file has errors may be the very one to pause.
        let job = match app.job(name) {
            Ok(job) => job.name.clone(),
            Err(unknown) => match known.iter().find(|row| row.name.as_str() == name) {
                Some(row) => row.name.clone(),
                None => return Err(unknown),
            },
        };
        if !jobs.contains(&job) {
            jobs.push(job);
        }
    }
    let were: Vec<bool> =
        jobs.iter().map(|job| known.iter().any(|row| row.name == *job && row.paused_at.is_some())).collect();
    runs.pause(jobs.clone(), paused).await?;
    if app.out.json {
        let jobs: Vec<_> =
            jobs.iter().zip(&were).map(|(job, was)| json!({"job": job, "paused": paused, "was_paused": was})).collect();
        app.out.document(&json!({"jobs": jobs}))?;
        return Ok(ExitCode::from(DONE));
    }
    for (job, was) in jobs.iter().zip(were) {
        app.note(match (paused, was) {
            (true, false) => format!("{job} is paused: its schedule starts nothing until headworks jobs resume {job}"),
            (true, true) => format!("{job} was paused already"),
            (false, true) => format!("{job} goes on"),
            (false, false) => format!("{job} was not paused"),
        });
    }
    Ok(ExitCode::from(DONE))
}

pub(super) async fn trigger(app: &App, args: TriggerArgs) -> anyhow::Result<ExitCode> {
    let params = args.when.params()?;
    let job = app.job(&args.job)?;
    let intervals = args.when.intervals(&job, app.clock.now())?;
    let requests: Vec<Request> =
        intervals.into_iter().map(|interval| Request { job: job.name.clone(), interval }).collect();
    execute::check_whole_imports(app.project_as_it_is()?, &requests, app.clock.now(), execute::AS_OF_NOW_ELSEWHERE)?;
    let reprocess = if args.reprocess { Reprocess::All } else { Reprocess::Failed };
    let runs = app.run_store().await?;
    let wanted = requests.iter().map(|request| new_demand(&job, request, reprocess, &params)).collect();
    let ids = runs.demand(wanted).await?;
    let schedulers = runs.schedulers().await?;
    if app.out.json {
        let demands: Vec<_> = ids
            .iter()
            .zip(&requests)
            .map(|(id, request)| {
                json!({
                    "demand": id, "job": job.name, "ds": job.ds(&request.interval),
                    "interval_start": request.interval.start(), "interval_end": request.interval.end(),
                })
            })
            .collect();
        app.out.document(&json!({"demands": demands, "schedulers": schedulers}))?;
        return Ok(ExitCode::from(DONE));
    }
    let what = match &requests[..] {
        [one] => format!("{} {}", job.name, job.ds(&one.interval)),
        many => format!("{} runs of {}", count(many.len() as u64), job.name),
    };
    app.note(format_args!("asked for {what}; see headworks runs list --job {}", job.name));
    note_who(app, runs, &format!("headworks run {}", job.name)).await?;
    Ok(ExitCode::from(DONE))
}

fn new_demand(job: &Job, request: &Request, reprocess: Reprocess, params: &Map<String, Value>) -> NewDemand {
    let (request, ds) = (request.clone(), job.ds(&request.interval));
    NewDemand { request, ds, trigger: Trigger::Manual, reprocess, params: params.clone() }
}

/// Tells when nobody is there to carry out what was asked for.
pub(in crate::cli) async fn note_who(app: &App, runs: &Runs, instead: &str) -> anyhow::Result<()> {
    if runs.schedulers().await?.is_empty() {
        app.note(format_args!(
            "nobody keeps the project running now: start headworks up, or do it here and now with {instead}"
        ));
    }
    Ok(())
}
