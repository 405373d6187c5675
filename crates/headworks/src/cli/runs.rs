mod follow;
mod log_file;
mod steer;

use std::{
    collections::hash_map::{Entry, HashMap},
    process::ExitCode,
};

use anyhow::Context;
use chrono::{DateTime, Utc};
use headworks_domain::RunId;
use headworks_flow::exec::{AttemptRecord, RunDetail, RunFilter, RunRow, RunStore};
use headworks_flow::{Failure as TaskFailure, State};
use headworks_meta::Mark;
use log_file::LogFile;
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::{Carried, DONE, Failure},
    output::{Align, Style, Table, ago, bytes, count, counted, duration, shown, styled},
};

/// List and show runs and their logs; cancel, clear and mark runs
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Logs(LogsArgs),
    Cancel(steer::CancelArgs),
    Clear(steer::ClearArgs),
    Mark(steer::MarkArgs),
}

/// List runs, newest first
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks runs list --state failed
  headworks runs list --job company_metrics --limit 5 --json")]
pub(crate) struct ListArgs {
    /// Runs of this job only, by its name or by its table
    #[arg(long)]
    job: Option<String>,
    /// Runs in this state only, as failed
    #[arg(long)]
    state: Option<State>,
    /// Runs of this day only
    #[arg(long, value_name = "DAY")]
    ds: Option<headworks_domain::Ds>,
    /// List at most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = limit)]
    limit: usize,
}

/// Show one run: its tasks, how long each took, its attempts, errors with their hints
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The run's id, as `runs list` shows it
    run: RunId,
}

/// Print the log of a run
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks runs logs m1-7
  headworks runs logs m1-7 --task load
  headworks runs logs m1-7 --attempt 2
  headworks runs logs m1-7 --follow")]
pub(crate) struct LogsArgs {
    /// The run's id, as `runs list` shows it
    run: RunId,
    /// The attempt; without it the last, of a run of tasks the last of each task
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
    /// The last attempt of this task, or of its items
    #[arg(long, value_name = "TASK", conflicts_with = "attempt")]
    task: Option<String>,
    /// Go on as the logs grow, until the run is over
    #[arg(long, short)]
    follow: bool,
}

/// Reads a number from 1.
pub(super) fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "it is a number from 1".to_owned())
}

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(args) => list(app, args).await,
        Command::Show(args) => show(app, args).await,
        Command::Logs(args) => logs(app, args).await,
        Command::Cancel(args) => steer::cancel(app, args).await,
        Command::Clear(args) => steer::clear(app, args).await,
        Command::Mark(args) => steer::mark(app, args).await,
    }
}

async fn list(app: &App, args: ListArgs) -> anyhow::Result<ExitCode> {
    let job = args.job.map(|name| steer::job_name(app, &name)).transpose()?;
    let filter = RunFilter { job, state: args.state, ds: args.ds, limit: args.limit, ..RunFilter::default() };
    let runs = app.run_store().await?.list(&filter).await.map_err(Carried::from)?;
    if app.out.json {
        app.out.document(&json!({"runs": runs.iter().map(run_json).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::from(DONE));
    }
    if runs.is_empty() {
        app.note("no such runs");
    } else {
        app.out.table(&run_table(&runs, app.clock.now()))?;
    }
    Ok(ExitCode::from(DONE))
}

/// The table of runs that `runs list` and `jobs show` print.
pub(crate) fn run_table(runs: &[RunRow], now: DateTime<Utc>) -> Table {
    let mut table = Table::new([
        ("run", Align::Left),
        ("job", Align::Left),
        ("ds", Align::Left),
        ("state", Align::Left),
        ("attempt", Align::Right),
        ("took", Align::Right),
        ("rows", Align::Right),
        ("started", Align::Left),
    ]);
    for run in runs {
        table.row([
            run.id.to_string(),
            run.job.to_string(),
            run.ds.to_string(),
            state_words(run),
            run.attempt.to_string(),
            took(run.started_at, run.finished_at, now),
            if run.state == State::Success { count(run.rows) } else { String::new() },
            run.started_at.map(|t| ago(t, now)).unwrap_or_default(),
        ]);
    }
    table
}

/// The state, and whether the process behind it is gone.
fn state_words(run: &RunRow) -> String {
    if run.is_abandoned() { format!("{} (abandoned)", run.state) } else { run.state.to_string() }
}

fn took(started: Option<DateTime<Utc>>, finished: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    started.map(|start| duration(finished.unwrap_or(now) - start)).unwrap_or_default()
}

async fn detail(app: &App, run: &RunId) -> anyhow::Result<RunDetail> {
    let detail = app.run_store().await?.show(run).await.map_err(Carried::from)?;
    Ok(detail
        .ok_or_else(|| Failure::not_found(format!("there is no run `{run}`"), "headworks runs list shows them"))?)
}

/// How the job differs now from the version that a run was planned with; empty when nothing does or one of them is not known.
async fn changes_since(app: &App, run: &RunRow) -> anyhow::Result<Vec<String>> {
    let (project, _) = app.loaded()?;
    let Some(job) = project.jobs.get(&run.job).filter(|job| job.version != run.job_version) else {
        return Ok(Vec::new());
    };
    let source = app.run_store().await?.version_source(&run.job, &run.job_version).await?;
    let earlier = source.and_then(|source| project.earlier(job, source));
    Ok(earlier.map(|earlier| job.changes_since(&earlier)).unwrap_or_default())
}

async fn show(app: &App, args: ShowArgs) -> anyhow::Result<ExitCode> {
    let detail = detail(app, &args.run).await?;
    let now = app.clock.now();
    let run = &detail.run;
    let marks = app.run_store().await?.marks(&run.id).await?;
    let changes = changes_since(app, run).await?;
    if app.out.json {
        let tasks: Vec<Value> = detail
            .tasks
            .iter()
            .map(|t| json!({"task": t.name, "state": t.state.as_str(), "started_at": t.started_at, "finished_at": t.finished_at}))
            .collect();
        let mut document = run_json(run);
        document["tasks"] = tasks.into();
        document["attempts"] = detail.attempts.iter().map(attempt_json).collect::<Vec<_>>().into();
        document["marks"] = marks.iter().map(mark_json).collect::<Vec<_>>().into();
        document["changed_since"] = changes.into();
        app.out.document(&document)?;
        return Ok(ExitCode::from(DONE));
    }
    let mut lines = vec![
        ("run", run.id.to_string()),
        ("job", format!("{} (version {})", run.job, run.job_version)),
        ("interval", run.interval.to_string()),
        ("ds", run.ds.to_string()),
        ("state", state_words(run)),
        ("planned", format!("{} UTC, {}", shown(run.created_at), ago(run.created_at, now))),
    ];
    if let Some(table) = &run.table {
        lines.insert(2, ("table", table.to_string()));
    }
    if !changes.is_empty() {
        lines.push(("changed since", changes.join(", ")));
    }
    if !run.params.is_empty() {
        lines.push(("params", Value::Object(run.params.clone()).to_string()));
    }
    if let Some(started) = run.started_at {
        lines.push(("took", took(Some(started), run.finished_at, now)));
    }
    if run.state == State::Success && run.table.is_some() {
        lines.push(("published", format!("{}, {}", counted(run.rows, "row"), bytes(run.bytes))));
    }
    lines.push(("process", run.owner.clone()));
    for mark in &marks {
        let text = format!(
            "{} instead of {}, {} UTC by {}: {}",
            mark.state,
            mark.was,
            shown(mark.marked_at),
            mark.by,
            mark.reason
        );
        lines.push(("marked", text));
    }
    for (name, value) in lines {
        app.out.line(format_args!("{} {value}", styled(app.out.stdout_color, Style::Bold, &format!("{name:9}"))))?;
    }
    app.out.line("")?;
    let mut tasks = Table::new([("task", Align::Left), ("state", Align::Left), ("took", Align::Right)]);
    for task in &detail.tasks {
        tasks.row([task.name.to_string(), task.state.to_string(), took(task.started_at, task.finished_at, now)]);
    }
    app.out.table(&tasks)?;
    if !detail.attempts.is_empty() {
        app.out.line("")?;
        app.out.table(&attempt_table(&detail.attempts, now))?;
    }
    let last = detail.attempts.iter().rev().find_map(|a| a.failure.as_ref());
    if let Some(failure) = run.failure.as_ref().or(last) {
        app.out.line("")?;
        for line in failure_lines(failure, app.out.stdout_color) {
            app.out.line(line)?;
        }
    }
    Ok(ExitCode::from(DONE))
}

/// The attempts of a run, with their tasks where these are attempted by themselves.
fn attempt_table(attempts: &[AttemptRecord], now: DateTime<Utc>) -> Table {
    let of_tasks = attempts.iter().any(|attempt| attempt.task.is_some());
    let task_column = of_tasks.then_some(("task", Align::Left));
    let columns = [("attempt", Align::Right)].into_iter().chain(task_column);
    let columns = columns.chain([("state", Align::Left), ("started", Align::Left), ("took", Align::Right)]);
    let mut table = Table::new(columns);
    for attempt in attempts {
        let task = attempt.task.as_ref().map(ToString::to_string).unwrap_or_default();
        let cells = [attempt.attempt.to_string()].into_iter().chain(of_tasks.then_some(task));
        table.row(cells.chain([
            attempt.state.to_string(),
            format!("{} UTC", shown(attempt.started_at)),
            took(Some(attempt.started_at), attempt.finished_at, now),
        ]));
    }
    table
}

/// A run's failure as `error:` and `hint:` lines.
pub(crate) fn failure_lines(failure: &TaskFailure, color: bool) -> Vec<String> {
    let mut lines = vec![format!("{} {}", styled(color, Style::Red, "error:"), failure.message)];
    lines.extend(failure.hint.as_ref().map(|hint| format!("{} {hint}", styled(color, Style::Cyan, "hint:"))));
    lines
}

async fn logs(app: &App, args: LogsArgs) -> anyhow::Result<ExitCode> {
    if args.follow {
        return follow::follow(app, &args).await;
    }
    let detail = detail(app, &args.run).await?;
    let chosen = chosen_attempts(&detail, &args)?;
    let [attempt] = chosen[..] else {
        return logs_of_tasks(app, &args.run, &chosen);
    };
    let text = Logs::default().of(app, &args.run, attempt)?;
    if app.out.json {
        app.out.document(&log_json(&args.run, attempt, &text))?;
    } else {
        app.out.data(&text)?;
    }
    Ok(ExitCode::from(DONE))
}

/// The logs of several tasks, each under a heading.
fn logs_of_tasks(app: &App, run: &RunId, attempts: &[&AttemptRecord]) -> anyhow::Result<ExitCode> {
    let (mut logs, mut documents) = (Logs::default(), Vec::new());
    for (n, attempt) in attempts.iter().enumerate() {
        let text = logs.of(app, run, attempt)?;
        if app.out.json {
            documents.push(log_json(run, attempt, &text));
            continue;
        }
        if n > 0 {
            app.out.line("")?;
        }
        app.out.line(heading(app, attempt))?;
        app.out.data(&text)?;
    }
    if app.out.json {
        app.out.document(&json!({"run_id": run, "attempts": documents}))?;
    }
    Ok(ExitCode::from(DONE))
}

/// What stands above the log of an attempt when there are several.
fn heading(app: &App, attempt: &AttemptRecord) -> String {
    let task = attempt.task.as_ref().map(|task| format!("{task}, ")).unwrap_or_default();
    let heading = format!("==> {task}attempt {}: {} <==", attempt.attempt, attempt.state);
    styled(app.out.stdout_color, Style::Bold, &heading)
}

/// True for an attempt of the number or the task that was asked for, when one was.
fn is_meant(attempt: &AttemptRecord, args: &LogsArgs) -> bool {
    let task = attempt.task.as_ref().map_or("", |task| task.as_str());
    let item_of = |wanted: &str| task == wanted || task.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'));
    args.attempt.is_none_or(|n| attempt.attempt == n) && args.task.as_deref().is_none_or(item_of)
}

/// The attempts whose logs are meant: one, or of a run of tasks the last of each.
fn chosen_attempts<'a>(detail: &'a RunDetail, args: &LogsArgs) -> Result<Vec<&'a AttemptRecord>, Failure> {
    let run = &args.run;
    let attempts = &detail.attempts;
    let numbers = || attempts.iter().map(|a| a.attempt.to_string()).collect::<Vec<_>>().join(", ");
    let mut chosen: Vec<&AttemptRecord> = Vec::new();
    for attempt in attempts.iter().filter(|attempt| is_meant(attempt, args)) {
        // The last one of each task.
        chosen.retain(|earlier| earlier.task != attempt.task);
        chosen.push(attempt);
    }
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    Err(match (args.attempt, &args.task) {
        (Some(n), _) if !attempts.is_empty() => {
            Failure::not_found(format!("run `{run}` has no attempt {n}"), format!("it has {}", numbers()))
        }
        (_, Some(task)) if !attempts.is_empty() => {
            let known = detail.tasks.iter().any(|t| t.name.as_str() == task);
            let what = if known { "did not run in" } else { "is no task of" };
            Failure::not_found(
                format!("`{task}` {what} run `{run}`"),
                format!("headworks runs show {run} lists its tasks"),
            )
        }
        _ => {
            Failure::not_found(format!("run `{run}` has not begun yet"), format!("headworks runs show {run} says why"))
        }
    })
}

/// The log files that were opened, by their paths.
#[derive(Default)]
struct Logs(HashMap<String, LogFile>);

impl Logs {
    /// The log of an attempt.
    fn of(&mut self, app: &App, run: &RunId, attempt: &AttemptRecord) -> anyhow::Result<Vec<u8>> {
        let path = app.logs_dir()?.join(&attempt.log_path);
        let file = match self.0.entry(attempt.log_path.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => LogFile::open(&path).map(|file| place.insert(file)),
        };
        match file.and_then(|file| file.of(attempt.attempt)) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::not_found(
                format!("the log of run `{run}` is not here: there is no `{}`", path.display()),
                "logs are kept for `retention.logs`, on the machine that ran the task",
            )
            .into()),
            Err(error) => Err(error).with_context(|| format!("cannot read the log `{}`", path.display())),
        }
    }
}

fn log_json(run: &RunId, attempt: &AttemptRecord, text: &[u8]) -> Value {
    let mut document = attempt_json(attempt);
    document["run_id"] = json!(run);
    document["log"] = String::from_utf8_lossy(text).into();
    document
}

/// A run as `--json` shows it.
pub(crate) fn run_json(run: &RunRow) -> Value {
    json!({
        "run_id": run.id,
        "job": run.job,
        "job_version": run.job_version,
        "table": run.table,
        "ds": run.ds,
        "interval_start": run.interval.start(),
        "interval_end": run.interval.end(),
        "trigger": run.trigger.as_str(),
        "params": run.params,
        "state": run.state.as_str(),
        "abandoned": run.is_abandoned(),
        "attempt": run.attempt,
        "process": run.owner,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "rows": run.rows,
        "bytes": run.bytes,
        "failure": run.failure.as_ref().map(failure_json),
    })
}

fn mark_json(mark: &Mark) -> Value {
    json!({
        "state": mark.state.as_str(), "was": mark.was.as_str(), "reason": mark.reason, "marked_at": mark.marked_at,
        "process": mark.by,
    })
}

fn attempt_json(attempt: &AttemptRecord) -> Value {
    json!({
        "attempt": attempt.attempt,
        "task": attempt.task,
        "state": attempt.state.as_str(),
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "failure": attempt.failure.as_ref().map(failure_json),
    })
}

/// A failure as `--json` shows it.
pub(crate) fn failure_json(failure: &TaskFailure) -> Value {
    json!({"code": failure.code, "message": failure.message, "hint": failure.hint, "retryable": failure.retryable})
}
