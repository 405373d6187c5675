//! What people do to jobs: pause them, let them go on, ask for a run.

use std::process::ExitCode;

use headworks_domain::JobName;
use headworks_flow::{
    Job,
    exec::{Reprocess, Request, RunStore, Trigger},
    ticker::JobClock,
};
use headworks_meta::{NewDemand, Runs};
use serde_json::{Map, Value, json};

use super::super::{schedule::Bound, when::WhenArgs};
use crate::{
    app::App,
    execute,
    fail::{Carried, DONE, Failure},
    output::{count, shown},
};

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

/// Let a job's schedule go on from an earlier time
///
/// For a machine whose clock was far ahead: ticks that had not come count as seen to, and the schedule starts nothing until the clock
/// has passed them. After a reset the ticks behind the time given are looked at once more; `catchup` says which of them count, and
/// those with a run are left alone. Without --yes it only says what it would do. Nobody may keep the project running meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks jobs reset company_metrics --to 2026-03-01
  headworks jobs reset company_metrics --to 2026-03-01T02:00:00Z --yes")]
pub(crate) struct ResetArgs {
    /// The job, by its name or by its table
    job: String,
    /// A day, or an instant as 2026-03-08T02:00:00Z; without Z or an offset it is read in the job's zone
    #[arg(long, value_name = "WHEN")]
    to: Bound,
    /// Say what would happen, and change nothing; so it is without --yes, too
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it
    #[arg(short, long)]
    yes: bool,
}

/// The most ticks that a reset looks at to say what follows.
const RESET_TICKS_MAX: usize = 10_000;

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

pub(super) async fn reset(app: &App, args: ResetArgs) -> anyhow::Result<ExitCode> {
    let job = app.job(&args.job)?;
    let runs = app.run_store().await?;
    let row = runs.jobs().await?.into_iter().find(|row| row.name == job.name);
    let Some((clock, cursor)) = row.and_then(|row| Some((row.clock, row.clock.cursor?))) else {
        let message = format!("the schedule of `{}` has not started anything yet", job.name);
        return Err(Failure::not_found(message, format!("headworks jobs show {} says when it ticks", job.name)).into());
    };
    let to = args.to.instant(&job.grid());
    if to >= cursor {
        let message = format!("{} UTC is not before {} UTC, the last tick that was seen to", shown(to), shown(cursor));
        return Err(Failure::usage(message, "name an earlier time: a schedule goes on by itself").into());
    }
    let again = JobClock { cursor: Some(to), paused: false, ..clock };
    let due = job.due_runs(&again, app.clock.now(), RESET_TICKS_MAX).runs;
    let wanted: Vec<_> = due.iter().map(|run| (job.name.clone(), run.interval)).collect();
    let found = runs.find(&wanted).await.map_err(Carried::from)?;
    let missing: Vec<_> = due.iter().zip(&found).filter(|(_, row)| row.is_none()).map(|(run, _)| run).collect();
    if args.yes {
        if let Some(scheduler) = runs.schedulers().await?.first() {
            let message = format!("{scheduler} looks after the schedules, and goes by what it remembers");
            let hint = "stop headworks up (or scheduler) everywhere, reset the job, and start it again";
            return Err(Failure::usage(message, hint).into());
        }
        runs.set_back(&job.name, to).await?;
    }
    if app.out.json {
        app.out.document(&json!({
            "job": job.name, "reset": args.yes, "was": cursor, "to": to, "ticks": due.len(), "runs": missing.len(),
            "first_ds": missing.first().map(|run| job.ds(&run.interval)),
            "last_ds": missing.last().map(|run| job.ds(&run.interval)),
        }))?;
        return Ok(ExitCode::from(DONE));
    }
    let days = match (missing.first(), missing.last()) {
        (Some(first), Some(last)) => format!(", ds {} to {}", job.ds(&first.interval), job.ds(&last.interval)),
        _ => String::new(),
    };
    app.note(format_args!(
        "{} goes on from {} UTC instead of {} UTC: {} ticks are due by now, {} of them without a run{days}",
        job.name,
        shown(to),
        shown(cursor),
        count(due.len() as u64),
        count(missing.len() as u64),
    ));
    if !args.yes {
        app.note("nothing was changed: --yes does it");
    }
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
