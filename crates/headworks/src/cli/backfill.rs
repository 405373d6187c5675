use std::{collections::BTreeSet, process::ExitCode, sync::Arc};

use headworks_domain::{Ds, Interval, JobName};
use headworks_flow::{
    Job, Project, Span, State,
    exec::{Reprocess, Request, RunRow, RunStore},
};
use headworks_meta::{NewBackfill, NewPiece};
use serde_json::{Value, json};

use super::jobs::note_who;
use crate::{
    app::App,
    execute::{self, Wanted},
    fail::{Carried, DONE, Failure},
    output::{Align, Table, count},
};

/// Run jobs for every interval of a range of days
///
/// Runs start as soon as the partitions they read are published, so a backfill of many jobs orders itself. Running the same
/// command again goes on where it stopped and repeats nothing that is published. With --detach it is stored as a plan that
/// survives restarts: see headworks backfills.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks backfill flights_flat --from 2013-01-01 --to 2013-01-31 --dry-run
  headworks backfill --all --from 2013-01-01 --to 2013-12-31 --as-of-now
  headworks backfill flights --from 2013-02-01 --to 2013-02-03 --downstream --reprocess all
  headworks backfill --all --from 2013-01-01 --to 2013-12-31 --max-active 4 --detach")]
pub(crate) struct Args {
    /// The jobs, by name or by table
    #[arg(value_name = "JOB", required_unless_present = "all", conflicts_with = "all")]
    jobs: Vec<String>,
    /// Take every job of the project
    #[arg(long)]
    all: bool,
    /// The first day
    #[arg(long, value_name = "DAY")]
    from: Ds,
    /// The last day, included
    #[arg(long, value_name = "DAY")]
    to: Ds,
    /// Take the jobs that read these jobs' tables too, and so on
    #[arg(long)]
    downstream: bool,
    /// Which intervals that ran before to run again
    #[arg(long, value_enum, default_value = "failed")]
    reprocess: ReprocessArg,
    /// List what would run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Run at most so many tasks at once; with --detach, so many runs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_active: Option<u32>,
    /// Let imports of whole tables fill past days with what the tables hold now
    #[arg(long)]
    as_of_now: bool,
    /// Wait at most so long for inputs that others make, as 10m: partitions, files and the like; 0s by default
    #[arg(long, value_name = "DURATION", conflicts_with = "detach")]
    wait: Option<Span>,
    /// Store the plan for headworks up to carry out, below other runs, and do not wait for it
    #[arg(long, conflicts_with = "as_of_now")]
    detach: bool,
}

/// Which intervals run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ReprocessArg {
    /// None: neither what is published nor what failed
    None,
    /// Those that failed or were stopped
    Failed,
    /// All, replacing what is published
    All,
}

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let jobs = select(app, &args)?;
    let reprocess = match args.reprocess {
        ReprocessArg::None => Reprocess::None,
        ReprocessArg::Failed => Reprocess::Failed,
        ReprocessArg::All => Reprocess::All,
    };
    let requests = requests(&jobs, args.from, args.to);
    if requests.is_empty() {
        app.note("nothing to run: no job has an interval in these days");
    }
    if args.dry_run {
        return dry_run(app, &jobs, &args, reprocess).await;
    }
    if args.detach {
        return detach(app, &jobs, &args, requests, reprocess).await;
    }
    let wanted = Wanted {
        requests,
        reprocess,
        params: serde_json::Map::new(),
        as_of_now: args.as_of_now,
        wait: args.wait.map(Span::duration),
        tasks_max: args.max_active.map(|n| n as usize),
    };
    execute::foreground(app, wanted).await
}

/// The most runs of one stored backfill.
const PIECES_MAX: usize = 100_000;

/// Errors: a stored backfill of so many runs would be too large.
pub(super) fn refuse_too_many(runs: usize) -> Result<(), Failure> {
    if runs <= PIECES_MAX {
        return Ok(());
    }
    let (runs, most) = (count(runs as u64), count(PIECES_MAX as u64));
    Err(Failure::usage(
        format!("{runs} runs are too many for one stored backfill: it takes {most}"),
        "store several, each with a part of the days",
    ))
}

/// Stores the backfill instead of carrying it out.
async fn detach(
    app: &App,
    jobs: &[Arc<Job>],
    args: &Args,
    requests: Vec<Request>,
    reprocess: Reprocess,
) -> anyhow::Result<ExitCode> {
    let project = app.project_as_it_is()?;
    execute::check_whole_imports(project, &requests, app.clock.now(), execute::AS_OF_NOW_ELSEWHERE)?;
    if requests.is_empty() {
        return Ok(ExitCode::from(DONE));
    }
    refuse_too_many(requests.len())?;
    let with_day = |request: Request| {
        let ds = project.jobs.get(&request.job).map(|job| job.ds(&request.interval)).unwrap_or(args.to);
        NewPiece { request, ds, params: serde_json::Map::new() }
    };
    let new = NewBackfill {
        jobs: jobs.iter().map(|job| job.name.clone()).collect(),
        first: args.from,
        last: args.to,
        reprocess,
        at_once: args.max_active.unwrap_or(app.config()?.execution.tasks_max) as usize,
        pieces: requests.into_iter().map(with_day).collect(),
    };
    let (pieces, runs) = (new.pieces.len(), app.run_store().await?);
    let id = runs.store_backfill(new).await?;
    if app.out.json {
        let schedulers = runs.schedulers().await?;
        app.out.document(&json!({"backfill": id, "pieces": pieces, "schedulers": schedulers}))?;
        return Ok(ExitCode::from(DONE));
    }
    app.note(format_args!("backfill {id} is stored, {} runs: headworks backfills show {id}", count(pieces as u64)));
    note_who(app, runs, "the same command without --detach").await?;
    Ok(ExitCode::from(DONE))
}

/// The runs of jobs over the days `from` to `to`, both included, day by day.
pub(super) fn requests<'j>(jobs: impl IntoIterator<Item = &'j Arc<Job>>, from: Ds, to: Ds) -> Vec<Request> {
    let each = |job: &'j Arc<Job>| {
        intervals(job, from, to).into_iter().map(|interval| Request { job: job.name.clone(), interval })
    };
    // Day by day rather than job by job, so that days become whole early; the executor orders what waits anyway.
    let mut requests: Vec<Request> = jobs.into_iter().flat_map(each).collect();
    requests.sort_by_key(|r| r.interval.end());
    requests
}

/// A job's intervals in these days; a view has no partitions, so that one run puts it there for all days.
fn intervals(job: &Job, from: Ds, to: Ds) -> Vec<Interval> {
    let mut intervals = job.intervals(from, to);
    if job.is_view() { intervals.pop().into_iter().collect() } else { intervals }
}

/// The jobs that are meant, by name.
fn select(app: &App, args: &Args) -> anyhow::Result<Vec<Arc<Job>>> {
    if args.from > args.to {
        return Err(Failure::usage(
            format!("the days from {} to {} hold nothing", args.from, args.to),
            "put the earlier day into --from",
        )
        .into());
    }
    let project = if args.all { app.project()? } else { app.project_as_it_is()? };
    let mut names: BTreeSet<JobName> = BTreeSet::new();
    if args.all {
        names.extend(project.jobs.keys().cloned());
    }
    for name in &args.jobs {
        names.insert(app.job(name)?.name.clone());
    }
    if args.downstream {
        add_readers(project, &mut names);
    }
    Ok(project.jobs.values().filter(|job| names.contains(&job.name)).cloned().collect())
}

/// Adds the jobs that read the tables of these, directly or through others.
pub(super) fn add_readers(project: &Project, names: &mut BTreeSet<JobName>) {
    loop {
        let tables: BTreeSet<&str> = project
            .jobs
            .values()
            .filter(|j| names.contains(&j.name))
            .filter_map(|j| Some(j.table.as_ref()?.as_str()))
            .collect();
        let readers: Vec<JobName> = project
            .jobs
            .values()
            .filter(|j| !names.contains(&j.name) && execute::reads(j).any(|t| tables.contains(t)))
            .map(|j| j.name.clone())
            .collect();
        if readers.is_empty() {
            return;
        }
        names.extend(readers);
    }
}

async fn dry_run(app: &App, jobs: &[Arc<Job>], args: &Args, reprocess: Reprocess) -> anyhow::Result<ExitCode> {
    let store = app.run_store().await?;
    let mut table = Table::new([
        ("job", Align::Left),
        ("from", Align::Left),
        ("to", Align::Left),
        ("intervals", Align::Right),
        ("published", Align::Right),
        ("failed", Align::Right),
        ("would run", Align::Right),
    ]);
    let mut documents: Vec<Value> = Vec::new();
    let mut total = 0;
    for job in jobs {
        let intervals = intervals(job, args.from, args.to);
        let wanted: Vec<_> = intervals.iter().map(|i| (job.name.clone(), *i)).collect();
        let found = store.find(&wanted).await.map_err(Carried::from)?;
        let is_done = |row: &Option<RunRow>| row.as_ref().is_some_and(|r| r.state == State::Success);
        let is_failed =
            |row: &Option<RunRow>| row.as_ref().is_some_and(|r| r.state.is_final() && r.state != State::Success);
        let runs = |row: &Option<RunRow>| match reprocess {
            Reprocess::All => true,
            Reprocess::Failed => !is_done(row),
            Reprocess::None => !is_done(row) && !is_failed(row),
        };
        let would_run: Vec<&Interval> =
            intervals.iter().zip(&found).filter(|(_, row)| runs(row)).map(|(i, _)| i).collect();
        total += would_run.len();
        let ds = |interval: Option<&Interval>| interval.map(|i| job.ds(i).to_string()).unwrap_or_default();
        table.row([
            job.name.to_string(),
            ds(intervals.first()),
            ds(intervals.last()),
            count(intervals.len() as u64),
            count(found.iter().filter(|r| is_done(r)).count() as u64),
            count(found.iter().filter(|r| is_failed(r)).count() as u64),
            count(would_run.len() as u64),
        ]);
        documents.extend(
            would_run.into_iter().map(
                |i| json!({"job": job.name, "ds": job.ds(i), "interval_start": i.start(), "interval_end": i.end()}),
            ),
        );
    }
    if app.out.json {
        app.out.document(&json!({"would_run": documents}))?;
        return Ok(ExitCode::from(DONE));
    }
    app.out.table(&table)?;
    app.note(format_args!("{} runs; nothing was run (--dry-run)", count(total as u64)));
    Ok(ExitCode::from(DONE))
}
