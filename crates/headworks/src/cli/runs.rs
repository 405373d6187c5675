mod steer;

use std::{fs, process::ExitCode};

use anyhow::Context;
use chrono::{DateTime, Utc};
use headworks_domain::{JobName, RunId};
use headworks_flow::exec::{AttemptRecord, RunDetail, RunFilter, RunRow, RunStore};
use headworks_flow::{Failure as TaskFailure, State};
use headworks_meta::Mark;
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
    /// Runs of this job only
    #[arg(long)]
    job: Option<JobName>,
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
pub(crate) struct LogsArgs {
    /// The run's id, as `runs list` shows it
    run: RunId,
    /// The attempt; without it the last
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
}

fn limit(text: &str) -> Result<usize, String> {
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
    let filter = RunFilter { job: args.job, state: args.state, ds: args.ds, limit: args.limit, ..RunFilter::default() };
    let runs = app.run_store().await?.list(&filter).await.map_err(Carried::from)?;
    if app.out.json {
        app.out.document(&json!({"runs": runs.iter().map(run_json).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::from(DONE));
    }
    if runs.is_empty() {
        app.out.note("no such runs");
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
    if run.finished_at.is_none() && !run.owner_alive {
        format!("{} (abandoned)", run.state)
    } else {
        run.state.to_string()
    }
}

fn took(started: Option<DateTime<Utc>>, finished: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    started.map(|start| duration(finished.unwrap_or(now) - start)).unwrap_or_default()
}

async fn detail(app: &App, run: &RunId) -> anyhow::Result<RunDetail> {
    let detail = app.run_store().await?.show(run).await.map_err(Carried::from)?;
    Ok(detail
        .ok_or_else(|| Failure::not_found(format!("there is no run `{run}`"), "headworks runs list shows them"))?)
}

async fn show(app: &App, args: ShowArgs) -> anyhow::Result<ExitCode> {
    let detail = detail(app, &args.run).await?;
    let now = app.clock.now();
    let run = &detail.run;
    let marks = app.run_store().await?.marks(&run.id).await?;
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
        app.out.document(&document)?;
        return Ok(ExitCode::from(DONE));
    }
    let mut lines = vec![
        ("run", run.id.to_string()),
        ("job", format!("{} (version {})", run.job, run.job_version)),
        ("table", run.table.to_string()),
        ("interval", run.interval.to_string()),
        ("ds", run.ds.to_string()),
        ("state", state_words(run)),
        ("planned", format!("{} UTC, {}", shown(run.created_at), ago(run.created_at, now))),
    ];
    if let Some(started) = run.started_at {
        lines.push(("took", took(Some(started), run.finished_at, now)));
    }
    if run.state == State::Success {
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
        let mut attempts = Table::new([
            ("attempt", Align::Right),
            ("state", Align::Left),
            ("started", Align::Left),
            ("took", Align::Right),
        ]);
        for attempt in &detail.attempts {
            attempts.row([
                attempt.attempt.to_string(),
                attempt.state.to_string(),
                format!("{} UTC", shown(attempt.started_at)),
                took(Some(attempt.started_at), attempt.finished_at, now),
            ]);
        }
        app.out.table(&attempts)?;
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

/// A run's failure as `error:` and `hint:` lines.
pub(crate) fn failure_lines(failure: &TaskFailure, color: bool) -> Vec<String> {
    let mut lines = vec![format!("{} {}", styled(color, Style::Red, "error:"), failure.message)];
    lines.extend(failure.hint.as_ref().map(|hint| format!("{} {hint}", styled(color, Style::Cyan, "hint:"))));
    lines
}

async fn logs(app: &App, args: LogsArgs) -> anyhow::Result<ExitCode> {
    let detail = detail(app, &args.run).await?;
    let numbers = || detail.attempts.iter().map(|a| a.attempt.to_string()).collect::<Vec<_>>().join(", ");
    let attempt = match args.attempt {
        None => detail.attempts.last(),
        Some(n) => detail.attempts.iter().find(|a| a.attempt == n),
    };
    let Some(attempt) = attempt else {
        let run = &args.run;
        return Err(match args.attempt {
            Some(n) if !detail.attempts.is_empty() => {
                Failure::not_found(format!("run `{run}` has no attempt {n}"), format!("it has {}", numbers()))
            }
            _ => Failure::not_found(
                format!("run `{run}` has not begun yet"),
                format!("headworks runs show {run} says why"),
            ),
        }
        .into());
    };
    let path = app.logs_dir()?.join(&attempt.log_path);
    match fs::read(&path) {
        Ok(text) if app.out.json => {
            let mut document = attempt_json(attempt);
            document["run_id"] = json!(args.run);
            document["log"] = String::from_utf8_lossy(&text).into();
            app.out.document(&document)?;
        }
        Ok(text) => app.out.data(&text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::not_found(
                format!("the log of run `{}` is not here: there is no `{}`", args.run, path.display()),
                "logs are kept for `retention.logs`, on the machine that ran the task",
            )
            .into());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read the log `{}`", path.display())),
    }
    Ok(ExitCode::from(DONE))
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
        "state": run.state.as_str(),
        "abandoned": run.finished_at.is_none() && !run.owner_alive,
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
