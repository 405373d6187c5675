use std::{
    collections::{HashMap, HashSet},
    process::ExitCode,
    sync::Arc,
};

use chrono::{DateTime, Utc};
use headworks_domain::RunId;
use headworks_flow::backfill;
use headworks_meta::{Answer, BackfillRow, BackfillState, PieceRow, Progress, Runs};
use serde_json::{Value, json};

use super::jobs::note_who;
use crate::{
    app::App,
    fail::{Carried, DONE, Failure},
    live::LiveProject,
    output::{Align, Style, Table, ago, count, counted, shown, styled},
    planner::ProjectPlanner,
    serve::pieces_of,
};

mod undo;

/// List, show, pause, cancel and undo stored backfills
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
    Cancel(CancelArgs),
    Undo(undo::Args),
}

/// List the stored backfills, newest first
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {}

/// Show one: how far it is, what failed, what it waits for
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Its number, as backfills list shows it
    #[arg(value_name = "ID")]
    id: i64,
}

/// Start no further run of it; those that have begun go on
#[derive(Debug, clap::Args)]
pub(crate) struct PauseArgs {
    /// Its number, as backfills list shows it
    #[arg(value_name = "ID")]
    id: i64,
}

/// Let a paused one go on
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// Its number, as backfills list shows it
    #[arg(value_name = "ID")]
    id: i64,
}

/// Stop it for good, with its live runs; what it published stays
#[derive(Debug, clap::Args)]
pub(crate) struct CancelArgs {
    /// Its number, as backfills list shows it
    #[arg(value_name = "ID")]
    id: i64,
    /// Do it; without this it only says what would be stopped
    #[arg(short, long)]
    yes: bool,
}

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(_) => list(app).await,
        Command::Show(args) => show(app, args.id).await,
        Command::Pause(args) => turn(app, args.id, BackfillState::Running, BackfillState::Paused).await,
        Command::Resume(args) => turn(app, args.id, BackfillState::Paused, BackfillState::Running).await,
        Command::Cancel(args) => cancel(app, args).await,
        Command::Undo(args) => undo::run(app, args).await,
    }
}

/// The backfill of this number.
async fn expect(runs: &Runs, id: i64) -> anyhow::Result<BackfillRow> {
    let found = runs.backfill(id).await?;
    Ok(found.ok_or_else(|| {
        Failure::not_found(format!("there is no backfill {id}"), "headworks backfills list lists them")
    })?)
}

async fn list(app: &App) -> anyhow::Result<ExitCode> {
    let (runs, now) = (app.run_store().await?, app.clock.now());
    let mut table = Table::new([
        ("backfill", Align::Right),
        ("state", Align::Left),
        ("jobs", Align::Left),
        ("from", Align::Left),
        ("to", Align::Left),
        ("runs", Align::Right),
        ("over", Align::Right),
        ("failed", Align::Right),
        ("made", Align::Left),
    ]);
    let mut documents = Vec::new();
    for row in runs.backfills().await? {
        let progress = runs.progress(row.id).await?;
        documents.push(backfill_json(&row, &progress));
        let over = progress.total - progress.open - progress.live;
        table.row([
            row.id.to_string(),
            state_words(&row),
            jobs_words(&row),
            row.first.to_string(),
            row.last.to_string(),
            count(progress.total as u64),
            count(over as u64),
            count(progress.failed as u64),
            ago(row.made_at, now),
        ]);
    }
    if app.out.json {
        app.out.document(&json!({"backfills": documents}))?;
    } else if table.is_empty() {
        app.note("no stored backfills yet: headworks backfill JOB --from DAY --to DAY --detach makes one");
    } else {
        app.out.table(&table)?;
    }
    Ok(ExitCode::from(DONE))
}

fn state_words(row: &BackfillRow) -> String {
    if row.undone_at.is_some() { format!("{}, undone", row.state) } else { row.state.to_string() }
}

fn jobs_words(row: &BackfillRow) -> String {
    const SHOWN: usize = 3;
    let mut words: Vec<String> = row.jobs.iter().take(SHOWN).map(ToString::to_string).collect();
    if row.jobs.len() > SHOWN {
        words.push(format!("{} more", row.jobs.len() - SHOWN));
    }
    words.join(", ")
}

fn backfill_json(row: &BackfillRow, progress: &Progress) -> Value {
    json!({
        "backfill": row.id,
        "state": row.state.as_str(),
        "jobs": row.jobs,
        "from": row.first,
        "to": row.last,
        "reprocess": row.reprocess.as_str(),
        "max_active": row.at_once,
        "made_at": row.made_at,
        "finished_at": row.finished_at,
        "undone_at": row.undone_at,
        "runs": progress.total,
        "open": progress.open,
        "live": progress.live,
        "done_before": progress.nothing,
        "success": progress.success,
        "failed": progress.failed,
        "cancelled": progress.cancelled,
    })
}

/// The most failed and blocked runs that `show` names.
const NAMED_MAX: usize = 10;

async fn show(app: &App, id: i64) -> anyhow::Result<ExitCode> {
    let (runs, out, now) = (app.run_store().await?, app.out, app.clock.now());
    let row = expect(runs, id).await?;
    let pieces = runs.pieces(id, false).await?;
    let progress = runs.progress(id).await?;
    let failed: Vec<(&PieceRow, &RunId)> = pieces
        .iter()
        .filter_map(|piece| match &piece.answer {
            Answer::Run { run_id, state: Some(state), over: true } if *state != headworks_flow::State::Success => {
                Some((piece, run_id))
            }
            _ => None,
        })
        .collect();
    let blocked = if row.state.is_over() { Vec::new() } else { blocked(app, &row).await? };
    if out.json {
        let mut document = backfill_json(&row, &progress);
        document["not_succeeded"] = failed
            .iter()
            .map(|(piece, run)| json!({"job": piece.request.job, "ds": piece.ds, "run_id": run}))
            .collect::<Vec<_>>()
            .into();
        document["blocked"] = blocked
            .iter()
            .map(|(piece, missing)| json!({"job": piece.request.job, "ds": piece.ds, "missing": missing}))
            .collect::<Vec<_>>()
            .into();
        out.document(&document)?;
        return Ok(ExitCode::from(DONE));
    }
    let line = |name: &str, value: String| {
        out.line(format_args!("{} {value}", styled(out.stdout_color, Style::Bold, &format!("{name:9}"))))
    };
    line("backfill", row.id.to_string())?;
    line("state", state_words(&row))?;
    line("jobs", row.jobs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))?;
    line("days", format!("{} to {}", row.first, row.last))?;
    line("reprocess", row.reprocess.as_str().to_owned())?;
    line("at once", row.at_once.to_string())?;
    line("made", when(row.made_at, now))?;
    if let Some(finished) = row.finished_at {
        line("finished", when(finished, now))?;
    }
    if let Some(undone) = row.undone_at {
        line("undone", when(undone, now))?;
    }
    line("progress", progress_words(&progress))?;
    for (piece, run) in failed.iter().take(NAMED_MAX) {
        line("", format!("{} {} did not succeed: headworks runs show {run}", piece.request.job, piece.ds))?;
    }
    for (piece, missing) in blocked.iter().take(NAMED_MAX) {
        let (job, ds) = (&piece.request.job, piece.ds);
        line("", format!("{job} {ds} waits for {missing}: headworks why {job} --ds {ds}"))?;
    }
    let more = failed.len().saturating_sub(NAMED_MAX) + blocked.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        line("", format!("and {} more", count(more as u64)))?;
    }
    if row.state == BackfillState::Running {
        note_who(app, runs, "headworks backfill without --detach").await?;
    }
    Ok(ExitCode::from(DONE))
}

fn when(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} UTC, {}", shown(time), ago(time, now))
}

fn progress_words(progress: &Progress) -> String {
    let parts = [
        (progress.success, "published"),
        (progress.nothing, "published before"),
        (progress.failed, "failed"),
        (progress.cancelled, "stopped"),
        (progress.live, "live"),
        (progress.open, "to come"),
    ];
    let parts = parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{} {word}", count(*n as u64)));
    let parts: Vec<String> = std::iter::once(counted(progress.total as u64, "run")).chain(parts).collect();
    parts.join(", ")
}

/// The pieces that lack something that no piece will publish, with what that is.
async fn blocked(app: &App, row: &BackfillRow) -> anyhow::Result<Vec<(PieceRow, String)>> {
    let rows = app.run_store().await?.pieces(row.id, true).await?;
    let project = LiveProject::new(Arc::clone(app.project_as_it_is()?));
    let planner = ProjectPlanner { project, env: app.env_name()?.to_string() };
    let is_live = |row: &PieceRow| row.answer != Answer::Open;
    let pieces = pieces_of(rows.iter(), is_live, &planner, &mut HashMap::new());
    let (published, _) =
        app.partitions().await?.published(&backfill::questions(&pieces)).await.map_err(Carried::from)?;
    let next = backfill::next(&pieces, &published.into_iter().collect::<HashSet<_>>(), row.at_once);
    let of = |(id, missing): (i64, headworks_flow::exec::Partition)| {
        let piece = rows.iter().find(|row| row.id == id)?;
        Some((piece.clone(), format!("{} {}", missing.table, missing.key)))
    };
    Ok(next.blocked.into_iter().filter_map(of).collect())
}

/// Pauses one or lets it go on.
async fn turn(app: &App, id: i64, from: BackfillState, to: BackfillState) -> anyhow::Result<ExitCode> {
    let runs = app.run_store().await?;
    let row = expect(runs, id).await?;
    let from: &'static [BackfillState] =
        if from == BackfillState::Running { &[BackfillState::Running] } else { &[BackfillState::Paused] };
    let moved = runs.move_backfill(id, from, to).await?;
    if !moved && row.state.is_over() {
        let hint = "headworks backfills list shows how each stands";
        return Err(Failure::usage(format!("backfill {id} is {} already", row.state), hint).into());
    }
    if app.out.json {
        app.out.document(&json!({"backfill": id, "state": to.as_str(), "was": row.state.as_str()}))?;
    } else if moved {
        app.note(format_args!("backfill {id} is {to}"));
    } else {
        app.note(format_args!("backfill {id} was {to} already"));
    }
    Ok(ExitCode::from(DONE))
}

async fn cancel(app: &App, args: CancelArgs) -> anyhow::Result<ExitCode> {
    const FROM: &[BackfillState] = &[BackfillState::Running, BackfillState::Paused];
    let (id, runs) = (args.id, app.run_store().await?);
    let row = expect(runs, id).await?;
    if row.state.is_over() {
        let hint = "headworks backfills undo takes back what it published";
        return Err(Failure::usage(format!("backfill {id} is {} already", row.state), hint).into());
    }
    let progress = runs.progress(id).await?;
    if args.yes {
        runs.move_backfill(id, FROM, BackfillState::Cancelled).await?;
        // After the move nothing of it is claimed any more.
        runs.cancel(&live_runs(&runs.pieces(id, true).await?)).await?;
    }
    if app.out.json {
        let document = json!({"backfill": id, "live": progress.live, "open": progress.open, "done": args.yes});
        app.out.document(&document)?;
        return Ok(ExitCode::from(DONE));
    }
    let (live, open) = (counted(progress.live as u64, "live run"), count(progress.open as u64));
    app.note(if args.yes {
        format!("backfill {id} is cancelled: {live} stopped, {open} to come dropped; what it published stays")
    } else {
        format!("backfill {id} would be cancelled: {live} stopped, {open} to come dropped; --yes does it")
    });
    Ok(ExitCode::from(DONE))
}

fn live_runs(pieces: &[PieceRow]) -> Vec<RunId> {
    let live = pieces.iter().filter_map(|piece| match &piece.answer {
        Answer::Run { run_id, over: false, .. } => Some(run_id.clone()),
        _ => None,
    });
    live.collect()
}
