//! What people do to runs: cancel live ones, carry ended ones out again, set their states.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use headworks_domain::{Ds, JobName, RunId};
use headworks_flow::{
    Project, State,
    exec::{Reprocess, Request, RunFilter, RunRow, RunStore, Trigger},
};
use headworks_meta::{Cancelled, NewBackfill, NewDemand, NewPiece};
use serde_json::{Value, json};

use super::{detail, run_json, run_table};
use crate::{
    app::App,
    cli::{backfill::add_readers, jobs::note_who},
    execute,
    fail::{Carried, DONE, Failure},
    output::counted,
};

/// Which runs: some by their ids, or all of a job.
#[derive(Debug, clap::Args)]
struct Which {
    /// The runs, as runs list shows them
    #[arg(value_name = "RUN", required_unless_present = "job")]
    runs: Vec<RunId>,
    /// Runs of this job, by its name or by its table
    #[arg(long, conflicts_with = "runs")]
    job: Option<String>,
    /// Runs of this day only
    #[arg(long, value_name = "DAY", requires = "job", conflicts_with_all = ["from", "to"])]
    ds: Option<Ds>,
    /// Runs of this day and later ones only
    #[arg(long, value_name = "DAY", requires = "job")]
    from: Option<Ds>,
    /// Runs of this day and earlier ones only
    #[arg(long, value_name = "DAY", requires = "job")]
    to: Option<Ds>,
}

/// Stop live runs; what they have not published is dropped
///
/// Whoever carries a run out notices within a second or two, headworks run and headworks backfill too. A run whose process is
/// gone is cancelled at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks runs cancel hoduycsugc-1
  headworks runs cancel --job company_metrics --from 2018-03-01 --to 2018-03-31 --yes")]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    which: Which,
    /// With --job: do it; without this it only says which runs would be cancelled
    #[arg(short, long)]
    yes: bool,
}

/// Carry ended runs out again, replacing what they published
///
/// Whoever keeps the project running (headworks up) does it, now or once it starts. Many runs become a stored backfill, which
/// sees to it that readers run after what they read.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks runs clear hoduycsugc-1
  headworks runs clear --job flights --from 2018-03-01 --to 2018-03-03 --downstream
  headworks runs clear --job flights --from 2018-03-01 --to 2018-03-03 --failed --yes")]
pub(crate) struct ClearArgs {
    #[command(flatten)]
    which: Which,
    /// Only runs that did not succeed
    #[arg(long)]
    failed: bool,
    /// Take the runs of the same days of the jobs that read these jobs' tables too, and so on
    #[arg(long)]
    downstream: bool,
    /// With --job or --downstream: do it; without this it only says which runs would be carried out again
    #[arg(short, long)]
    yes: bool,
}

/// Set the state of ended runs, with the reason
///
/// It publishes nothing and takes nothing back: who waits for the run's partitions goes on waiting if they are not there.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks runs mark skipped hoduycsugc-1 --reason 'the shop was closed'
  headworks runs mark success --job flights --from 2018-03-01 --to 2018-03-31 --failed --reason 'loaded by hand' --yes")]
pub(crate) struct MarkArgs {
    /// The state
    #[arg(value_enum)]
    state: MarkArg,
    #[command(flatten)]
    which: Which,
    /// Only runs that did not succeed
    #[arg(long)]
    failed: bool,
    /// With --job: do it; without this it only says which runs would be marked
    #[arg(short, long)]
    yes: bool,
    /// Why; kept with the run
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// What a person can say of an ended run.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum MarkArg {
    /// It is as good as done: no backfill repeats it
    Success,
    /// It is not done: the next backfill repeats it
    Failed,
    /// It was not needed
    Skipped,
}

impl From<MarkArg> for State {
    fn from(arg: MarkArg) -> Self {
        match arg {
            MarkArg::Success => Self::Success,
            MarkArg::Failed => Self::Failed,
            MarkArg::Skipped => Self::Skipped,
        }
    }
}

impl Which {
    fn filter(&self, job: JobName) -> RunFilter {
        RunFilter {
            job: Some(job),
            from: self.ds.or(self.from),
            to: self.ds.or(self.to),
            limit: usize::MAX,
            ..RunFilter::default()
        }
    }
}

/// The job's name: a job whose file is gone may still have runs.
pub(super) fn job_name(app: &App, name: &str) -> anyhow::Result<JobName> {
    match app.project_as_it_is()?.job(name) {
        Ok(job) => Ok(job.name.clone()),
        Err(unknown) => name.parse().map_err(|_| unknown.into()),
    }
}

pub(super) async fn cancel(app: &App, args: CancelArgs) -> anyhow::Result<ExitCode> {
    let store = app.run_store().await?;
    let does = args.yes || args.which.job.is_none();
    let mut withdrawn = 0;
    let rows: Vec<RunRow> = match &args.which.job {
        None => named(app, &args.which.runs).await?,
        Some(name) => {
            let job = job_name(app, name)?;
            let filter = RunFilter { live: true, ..args.which.filter(job.clone()) };
            // First what was asked for and not begun, or it begins meanwhile.
            withdrawn = store.withdraw(&job, filter.from, filter.to, does).await?;
            store.list(&filter).await.map_err(Carried::from)?
        }
    };
    let ids: Vec<RunId> = rows.iter().map(|row| row.id.clone()).collect();
    let outcomes = if does { store.cancel(&ids).await? } else { Vec::new() };
    if app.out.json {
        let runs: Vec<Value> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| {
                let mut document = run_json(row);
                document["cancelled"] = outcomes.get(i).map(|outcome| outcome_word(*outcome)).into();
                document
            })
            .collect();
        app.out.document(&json!({"runs": runs, "not_begun": withdrawn, "done": does}))?;
        return Ok(ExitCode::from(DONE));
    }
    if withdrawn > 0 {
        let what = counted(withdrawn as u64, "run");
        let word = if does { "is" } else { "would be" };
        app.note(format_args!("{what} that was asked for and not begun {word} taken back"));
    }
    if rows.is_empty() {
        app.note("no such live runs");
    } else if !does {
        app.out.table(&run_table(&rows, app.clock.now()))?;
        app.note(format_args!("{} would be cancelled; --yes does it", counted(rows.len() as u64, "run")));
    }
    for (row, outcome) in rows.iter().zip(outcomes) {
        app.note(match outcome {
            Cancelled::Asked => format!("{}: asked {} to stop it", row.id, row.owner),
            Cancelled::Now => format!("{}: cancelled; nobody was at work on it", row.id),
            Cancelled::Over => format!("{}: it is over already", row.id),
        });
    }
    Ok(ExitCode::from(DONE))
}

fn outcome_word(outcome: Cancelled) -> &'static str {
    match outcome {
        Cancelled::Asked => "asked",
        Cancelled::Now => "now",
        Cancelled::Over => "over",
    }
}

/// The runs that are named by their ids.
async fn named(app: &App, runs: &[RunId]) -> anyhow::Result<Vec<RunRow>> {
    let mut rows = Vec::with_capacity(runs.len());
    for run in runs {
        rows.push(detail(app, run).await?.run);
    }
    Ok(rows)
}

/// The runs that are named, or those of a job.
async fn meant(app: &App, which: &Which) -> anyhow::Result<Vec<RunRow>> {
    let Some(job) = &which.job else { return named(app, &which.runs).await };
    let filter = which.filter(job_name(app, job)?);
    Ok(app.run_store().await?.list(&filter).await.map_err(Carried::from)?)
}

pub(super) async fn clear(app: &App, args: ClearArgs) -> anyhow::Result<ExitCode> {
    let store = app.run_store().await?;
    let project = app.project_as_it_is()?;
    let mut rows = meant(app, &args.which).await?;
    if args.downstream {
        let more = downstream(app, project, &rows).await?;
        rows.extend(more);
    }
    let rows = newest(rows);
    if let Some(live) =
        rows.iter().find(|row| row.finished_at.is_none() && args.which.job.is_none() && !args.downstream)
    {
        return Err(Failure::usage(
            format!("run `{}` is not over", live.id),
            format!("cancel it first: headworks runs cancel {}", live.id),
        )
        .into());
    }
    let rows: Vec<RunRow> = rows
        .into_iter()
        .filter(|row| row.finished_at.is_some() && (!args.failed || row.state != State::Success))
        .collect();
    let requests: Vec<Request> =
        rows.iter().map(|row| Request { job: row.job.clone(), interval: row.interval }).collect();
    execute::check_whole_imports(project, &requests, app.clock.now(), execute::AS_OF_NOW_ELSEWHERE)?;
    let is_bulk = args.which.job.is_some() || args.downstream;
    let does = (args.yes || !is_bulk) && !rows.is_empty();
    let mut backfill = None;
    if does && is_bulk {
        super::super::backfill::refuse_too_many(rows.len())?;
        backfill = Some(store.store_backfill(plan(&rows, app.config()?.execution.tasks_max as usize)).await?);
    } else if does {
        let wanted = rows.iter().zip(&requests).map(|(row, request)| NewDemand {
            request: request.clone(),
            ds: row.ds,
            trigger: Trigger::Manual,
            reprocess: Reprocess::All,
            params: row.params.clone(),
        });
        store.demand(wanted.collect()).await?;
    }
    if app.out.json {
        let runs: Vec<Value> = rows.iter().map(run_json).collect();
        app.out.document(&json!({"runs": runs, "done": does, "backfill": backfill}))?;
        return Ok(ExitCode::from(DONE));
    }
    let counted = counted(rows.len() as u64, "run");
    if rows.is_empty() {
        app.note("no such ended runs");
    } else if !does {
        app.out.table(&run_table(&rows, app.clock.now()))?;
        app.note(format_args!("{counted} would be carried out again; --yes does it"));
    } else {
        app.note(match backfill {
            Some(id) => format!("{counted} will be carried out again, as backfill {id}: headworks backfills show {id}"),
            None => format!("{counted} will be carried out again: headworks runs list shows them"),
        });
        let first = &rows[0];
        let instead = format!("headworks run {} --ds {} --reprocess", first.job, first.ds);
        note_who(app, store, &instead).await?;
    }
    Ok(ExitCode::from(DONE))
}

/// The ended runs, on the days of these, of the jobs that read their tables.
async fn downstream(app: &App, project: &Project, rows: &[RunRow]) -> anyhow::Result<Vec<RunRow>> {
    let store = app.run_store().await?;
    let own: BTreeSet<JobName> = rows.iter().map(|row| row.job.clone()).collect();
    let mut all = own.clone();
    add_readers(project, &mut all);
    let days = || rows.iter().map(|row| row.ds);
    let mut more = Vec::new();
    for job in all.difference(&own) {
        let filter = RunFilter {
            job: Some(job.clone()),
            from: days().min(),
            to: days().max(),
            limit: usize::MAX,
            ..RunFilter::default()
        };
        more.extend(store.list(&filter).await.map_err(Carried::from)?);
    }
    Ok(more)
}

/// The newest run of each job and interval, oldest interval first. They come newest first.
fn newest(rows: Vec<RunRow>) -> Vec<RunRow> {
    let mut newest: BTreeMap<_, RunRow> = BTreeMap::new();
    for row in rows {
        newest.entry((row.interval.end(), row.job.clone(), row.interval.start())).or_insert(row);
    }
    newest.into_values().collect()
}

/// The stored backfill that carries these runs out again.
fn plan(rows: &[RunRow], at_once: usize) -> NewBackfill {
    let days = || rows.iter().map(|row| row.ds);
    NewBackfill {
        jobs: rows.iter().map(|row| row.job.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
        first: days().min().unwrap_or_default(),
        last: days().max().unwrap_or_default(),
        reprocess: Reprocess::All,
        at_once,
        pieces: rows.iter().map(piece).collect(),
    }
}

/// The same run again, with the same parameters.
fn piece(row: &RunRow) -> NewPiece {
    let request = Request { job: row.job.clone(), interval: row.interval };
    NewPiece { request, ds: row.ds, params: row.params.clone() }
}

pub(super) async fn mark(app: &App, args: MarkArgs) -> anyhow::Result<ExitCode> {
    if args.reason.trim().is_empty() {
        return Err(Failure::usage("the reason is empty", "say why, for whoever reads it next: --reason 'TEXT'").into());
    }
    let (store, state, is_bulk) = (app.run_store().await?, State::from(args.state), args.which.job.is_some());
    let mut rows = meant(app, &args.which).await?;
    if is_bulk {
        rows = newest(rows);
        rows.retain(|row| row.finished_at.is_some() && row.state != state);
    }
    rows.retain(|row| !args.failed || row.state != State::Success);
    let does = args.yes || !is_bulk;
    if does {
        for row in &rows {
            store.mark(&row.id, state, args.reason.clone()).await?;
        }
    }
    if app.out.json {
        let was = |row: &RunRow| json!({"run_id": row.id, "was": row.state.as_str(), "state": state.as_str()});
        let runs: Vec<Value> = rows.iter().map(was).collect();
        app.out.document(&json!({"runs": runs, "reason": args.reason, "done": does}))?;
        return Ok(ExitCode::from(DONE));
    }
    if rows.is_empty() {
        app.note("no such ended runs");
    } else if !does {
        app.out.table(&run_table(&rows, app.clock.now()))?;
        app.note(format_args!("{} would be marked as {state}; --yes does it", counted(rows.len() as u64, "run")));
    } else {
        for row in &rows {
            app.note(format_args!("{} is {state} now, was {}; what is published did not change", row.id, row.state));
        }
    }
    Ok(ExitCode::from(DONE))
}
