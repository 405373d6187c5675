//! Carries out runs in the foreground: with progress, a clean stop at Ctrl-C, and a summary.

use std::{process::ExitCode, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use headworks_domain::JobName;
use headworks_flow::{
    Job, Project,
    exec::{Counts, Executor, ExecutorOptions, FailedRun, Progress, Reprocess, Request, Summary},
};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};

use crate::{
    app::App,
    cli::runs::failure_json,
    fail::{Carried, DONE, FAILED, Failure},
    live::LiveProject,
    output::{Style, bytes, count, counted, duration, styled},
    planner::ProjectPlanner,
    progress::{LOOK_EVERY, View},
    runners,
};

/// What a command wants carried out.
pub(crate) struct Wanted {
    /// The runs.
    pub(crate) requests: Vec<Request>,
    /// Which that ended before run again.
    pub(crate) reprocess: Reprocess,
    /// Parameters that replace those of the job files.
    pub(crate) params: Map<String, Value>,
    /// Whether imports of whole tables may fill past days.
    pub(crate) as_of_now: bool,
    /// How long to wait for partitions that nobody known will publish.
    pub(crate) wait: Option<Duration>,
    /// Tasks at once, instead of the setting.
    pub(crate) tasks_max: Option<usize>,
}

/// Carries out runs and tells the person how it went. The exit code is 0 when all that was asked for is published.
pub(crate) async fn foreground(app: &App, wanted: Wanted) -> anyhow::Result<ExitCode> {
    let started = app.clock.now();
    let summary = carry_out(app, wanted).await?;
    tell(app, &summary, started)?;
    Ok(ExitCode::from(if summary.is_success() { DONE } else { FAILED }))
}

/// Carries out runs, showing their progress.
pub(crate) async fn carry_out(app: &App, wanted: Wanted) -> anyhow::Result<Summary> {
    let project = app.project_as_it_is()?.clone();
    if !wanted.as_of_now {
        check_whole_imports(&project, &wanted.requests, app.clock.now(), "add --as-of-now")?;
    }
    check_zones(&project, &wanted.requests)?;
    let mut options = executor_options(app, wanted.tasks_max)?;
    options.reprocess = wanted.reprocess;
    options.params = wanted.params;
    options.wait = wanted.wait.unwrap_or(Duration::ZERO);
    // Runs name the version they were planned with; its text is kept, so that an old number can be explained.
    let planned: std::collections::BTreeSet<&JobName> = wanted.requests.iter().map(|r| &r.job).collect();
    let mut versions = Vec::new();
    for job in planned.into_iter().filter_map(|name| project.jobs.get(name)) {
        versions.push((job.name.clone(), job.version.clone(), job.text().to_owned()));
    }
    let runs = app.run_store().await?;
    runs.note_versions(versions).await?;
    runs.say_pools(&project.slots()).await?;
    let live = LiveProject::new(project);
    let executor = Executor {
        store: runs.clone(),
        partitions: app.partitions().await?,
        planner: Arc::new(ProjectPlanner { project: live.clone(), env: app.env_name()?.to_string() }),
        runner: runners::open(app, live, wanted.as_of_now).await?,
        clock: app.clock.clone(),
        options,
    };
    let (cancel, cancelled) = watch::channel(false);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut view = View::new(app.out, app.clock.now());
    let mut signals = Signals::new()?;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let work = executor.run(wanted.requests, cancelled, tell);
    tokio::pin!(work);
    let mut batch: Vec<Progress> = Vec::new();
    loop {
        tokio::select! {
            ended = &mut work => {
                while let Ok(progress) = told.try_recv() {
                    view.take(&progress);
                }
                return Ok(ended.map_err(Carried::from)?);
            }
            n = told.recv_many(&mut batch, 1000), if !told.is_closed() || !told.is_empty() => {
                for progress in batch.drain(..n) {
                    view.take(&progress);
                }
            }
            _ = looks.tick() => view.show(app.clock.now()),
            () = signals.next() => {
                if *cancel.borrow() {
                    view.say("stopped at once: the same command goes on from here");
                    drop(view);
                    std::process::exit(FAILED.into());
                }
                view.say("stopping cleanly: nothing new starts, what is not published is dropped; once more to stop at once");
                cancel.send_replace(true);
            }
        }
    }
}

/// How the settings want runs carried out; `tasks_max` stands in for theirs.
pub(crate) fn executor_options(app: &App, tasks_max: Option<usize>) -> anyhow::Result<ExecutorOptions> {
    let config = app.config()?;
    let mut options = ExecutorOptions::new(app.logs_dir()?);
    options.tasks_max = tasks_max.unwrap_or(config.execution.tasks_max as usize);
    options.log_bytes_max = config.execution.log_bytes_max.bytes();
    Ok(options)
}

/// The wishes to stop: Ctrl-C, or the system's polite signal.
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub(crate) fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    #[cfg(not(unix))]
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {})
    }

    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How whoever has no `--as-of-now` may have the past filled.
pub(crate) const AS_OF_NOW_ELSEWHERE: &str =
    "use headworks run or backfill with --as-of-now here and now, or say as_of_now under import,";

/// Refuses to fill the past from tables that only know the present, unless the caller says so.
/// `way` is how this command's caller can say so.
pub(crate) fn check_whole_imports(
    project: &Project,
    requests: &[Request],
    now: DateTime<Utc>,
    way: &str,
) -> Result<(), Failure> {
    let mut refused: Vec<&Job> = Vec::new();
    for request in requests {
        let Some(job) = project.jobs.get(&request.job) else { continue };
        let is_past = request.interval.end() < job.last_complete(now).end();
        if job.knows_no_past() && is_past && refused.iter().rev().all(|r| r.name != job.name) {
            refused.push(job);
        }
    }
    let names: Vec<String> = refused.iter().map(|job| format!("`{}`", job.name)).collect();
    match names.len() {
        0 => Ok(()),
        1 => Err(Failure::usage(
            format!("job {} imports a whole table, which can't know what it held on past days", names[0]),
            format!("{way} to fill them with what it holds now, or name the column of time with import.by"),
        )),
        _ => Err(Failure::usage(
            format!("jobs {} import whole tables, which can't know what they held on past days", names.join(", ")),
            format!("{way} to fill them with what they hold now, or name the columns of time with import.by"),
        )),
    }
}

/// Refuses to carry out here what another zone's processes are to.
fn check_zones(project: &Project, requests: &[Request]) -> Result<(), Failure> {
    let here = project.config.execution.zone.as_ref();
    for job in requests.iter().filter_map(|request| project.jobs.get(&request.job)) {
        let Some(zone) = job.spec.zone.as_ref().filter(|zone| Some(*zone) != here) else { continue };
        let stands =
            here.map_or_else(|| "this machine stands in none".to_owned(), |zone| format!("this is zone `{zone}`"));
        let name = &job.name;
        return Err(Failure::usage(
            format!("job `{name}` is carried out in zone `{zone}` only, and {stands}"),
            format!(
                "headworks jobs trigger {name} or headworks backfill {name} --detach gives it to a worker there; on a machine of that zone \
                 set execution.zone (HEADWORKS__EXECUTION__ZONE={zone})"
            ),
        ));
    }
    Ok(())
}

/// The tables that a job reads, waiting or not.
pub(crate) fn reads(job: &Job) -> impl Iterator<Item = &str> {
    let waits = job.waits.iter().filter(|w| !w.is_self()).map(|w| w.table.as_str());
    waits.chain(job.reads_latest.iter().map(String::as_str)).chain(job.reads_plain.iter().map(String::as_str))
}

/// The most failures told one by one; the rest is counted.
const FAILURES_TOLD_MAX: usize = 10;

/// Tells the failures and the summary of runs, as text or as the command's document.
pub(crate) fn tell(app: &App, summary: &Summary, started: DateTime<Utc>) -> anyhow::Result<()> {
    let took = app.clock.now() - started;
    if app.out.json {
        return app.out.document(&summary_json(summary, took.num_milliseconds()));
    }
    let color = app.out.stderr_color;
    for (word, runs) in [("failed", &summary.failed), ("blocked", &summary.blocked)] {
        for run in runs.iter().take(FAILURES_TOLD_MAX) {
            app.out.complain(failed_text(app, word, run, color));
        }
        if runs.len() > FAILURES_TOLD_MAX {
            let more = count((runs.len() - FAILURES_TOLD_MAX) as u64);
            app.out
                .complain(format_args!("and {more} more that {word}: headworks runs list --state failed lists them"));
        }
    }
    app.note(summary_text(&summary.counts, &duration(took)));
    if summary.counts.total > 0 && summary.counts.done_before == summary.counts.total {
        app.note("nothing to do: it is published already; --reprocess replaces it");
    }
    if summary.cancelled {
        app.note("stopped before the end: the same command goes on from here");
    }
    Ok(())
}

fn failed_text(app: &App, word: &str, run: &FailedRun, color: bool) -> String {
    let ds = run.ds.map(|ds| format!(" for ds={ds}")).unwrap_or_default();
    let message = &run.failure.message;
    let mut text = format!("{} ", styled(color, Style::Red, "error:"));
    // A blocked run's message names the run already.
    if !message.starts_with("job `") {
        text += &format!("job `{}` {word}{ds}: ", run.job);
    }
    text += message;
    // Problems of the job's file bring their own hints.
    if let Some(hint) = run.failure.hint.as_ref().filter(|hint| !message.contains(hint.as_str())) {
        text += &format!("\n{} {}", styled(color, Style::Cyan, "hint:"), app.hint(hint));
    }
    if let Some(id) = run.run_id.as_ref().filter(|_| run.log.is_some()) {
        let log = app.hint(&format!("headworks runs logs {id}"));
        text += &format!("\n{} {log}", styled(color, Style::Dim, "log:"));
    }
    text
}

fn summary_text(counts: &Counts, took: &str) -> String {
    let mut parts = Vec::new();
    // Jobs of tasks publish nothing, and are done all the same.
    let published = counts.rows > 0 || counts.bytes > 0;
    for (n, word) in [
        (counts.success, if published { "published" } else { "done" }),
        (counts.done_before, "published before"),
        (counts.failed, "failed"),
        (counts.cancelled, "stopped"),
    ] {
        if n > 0 {
            parts.push(format!("{} {word}", count(n as u64)));
        }
    }
    let runs = counted(counts.total as u64, "run");
    let sizes = if counts.success > 0 && published {
        format!(": {}, {}", counted(counts.rows, "row"), bytes(counts.bytes))
    } else {
        String::new()
    };
    let what = if parts.is_empty() { "nothing done".to_owned() } else { parts.join(", ") };
    format!("{runs}, {what} in {took}{sizes}")
}

/// The document of `run` and `backfill` with `--json`.
pub(crate) fn summary_json(summary: &Summary, took_ms: i64) -> Value {
    let c = &summary.counts;
    let failures = |runs: &[FailedRun]| -> Vec<Value> {
        runs.iter()
            .map(|run| {
                json!({
                    "run_id": run.run_id,
                    "job": run.job,
                    "ds": run.ds,
                    "interval_start": run.interval.start(),
                    "interval_end": run.interval.end(),
                    "failure": failure_json(&run.failure),
                    "log": run.log,
                })
            })
            .collect()
    };
    json!({
        "runs": c.total,
        "success": c.success,
        "done_before": c.done_before,
        "failed": c.failed,
        "cancelled": c.cancelled,
        "rows": c.rows,
        "bytes": c.bytes,
        "took_ms": took_ms,
        "stopped": summary.cancelled,
        "failures": failures(&summary.failed),
        "blocked": failures(&summary.blocked),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_happened() {
        let counts =
            Counts { total: 3, success: 1, done_before: 1, failed: 1, rows: 1234, bytes: 2048, ..Counts::default() };
        assert_eq!(
            summary_text(&counts, "1.0 s"),
            "3 runs, 1 published, 1 published before, 1 failed in 1.0 s: 1,234 rows, 2.0 KiB"
        );
        let one = Counts { total: 1, done_before: 1, ..Counts::default() };
        assert_eq!(summary_text(&one, "2 ms"), "1 run, 1 published before in 2 ms");
    }
}
