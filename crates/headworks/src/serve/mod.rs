//! A process that keeps a project running: its clocks, its runs, its files, its health.
//!
//! [`run`] wires the parts and lives until it is asked to stop. Each part is a task of its own: `clockwork` turns ticks into
//! demands, `desk` what people and backfills want, the executor carries them out, `reload` reads changed files, `health` answers
//! HTTP, `told` hears what became of runs.
//! They share the newest project ([`LiveProject`]) and nothing else. [`answer`] is the process that answers queries only.

mod answer;
mod asked;
mod cleaning;
mod clockwork;
mod definitions;
mod desk;
mod front;
mod health;
mod reload;
mod told;

use std::{process::ExitCode, sync::Arc, time::Duration};

use headworks_domain::nearest;
use headworks_flow::{
    Config,
    exec::{DEFAULT_POOL, Executor, Takes},
};
use headworks_meta::Role;
use headworks_store::Dialect;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

pub(crate) use self::{answer::answer, definitions::problems_of_others, desk::pieces_of, reload::Reloading};
use self::{clockwork::Clockwork, desk::Desk, front::Doors, health::Health, reload::Reload, told::Told};
use crate::{
    alert,
    app::App,
    execute::{Signals, executor_options},
    fail::{Carried, DONE, FAILED, Failure},
    live::LiveProject,
    planner::ProjectPlanner,
    runners,
};

/// How to serve.
pub(crate) struct Options {
    /// Where health checks and metrics are answered, instead of the setting.
    pub(crate) listen: Option<String>,
    /// Tasks at once, instead of the setting.
    pub(crate) tasks_max: Option<usize>,
    /// What the process is to the project.
    pub(crate) role: Role,
    /// Where it stands, instead of the setting.
    pub(crate) zone: Option<String>,
    /// The pools that it takes; all unless given.
    pub(crate) pools: Option<Vec<String>>,
}

/// Wishes that may wait for the executor before the clockwork waits too.
const INBOX_MAX: usize = 64;

/// What the process takes, by its flags and the settings. Errors: a pool that there is not.
fn takes(config: &Config, zone: Option<String>, pools: Option<Vec<String>>) -> Result<Takes, Failure> {
    let is_known = |pool: &&String| *pool == DEFAULT_POOL || config.pools.contains_key(*pool);
    if let Some(pool) = pools.iter().flatten().find(|pool| !is_known(pool)) {
        let names: Vec<&str> = config.pools.keys().map(String::as_str).chain([DEFAULT_POOL]).collect();
        let hint = match nearest(pool, names.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}; {DEFAULT_POOL} stands for tasks that name none", names.join(", ")),
        };
        return Err(Failure::usage(format!("there is no pool `{pool}` for --pools"), hint));
    }
    let zone = zone.or_else(|| config.execution.zone.clone());
    Ok(Takes { zone, pools: pools.map(|pools| pools.into_iter().collect()), ..Takes::default() })
}

/// Keeps the project running until a signal, then lets running attempts end.
pub(crate) async fn run(app: &App, options: Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let config = app.config()?.clone();
    let runs = Arc::clone(app.run_store().await?);
    let takes = takes(&config, options.zone, options.pools)?;
    runs.take_up(options.role, &takes).await?;
    if options.role != Role::Worker {
        app.first_admin().await?;
    }
    // Before the files are read: what is saved while this process starts is read again.
    let files = reload::fingerprint(app.root()?);
    let (project, problems) = app.loaded()?;
    let mut project = project.as_ref().clone();
    let definitions = definitions::at_start(&runs, &mut project, problems).await?;
    let live = LiveProject::new(Arc::new(project));
    definitions::keep(&runs, &live.current(), definitions).await?;
    runs.say_pools(&live.current().slots()).await?;

    let health = Arc::new(Health::new(app.clock.clone(), app.store().await?.clone(), runs.clone()));
    let mut doors = Doors::open(app, options.listen, &health).await?;
    if options.role == Role::Scheduler {
        doors = doors.with_queries(app, &health).await?;
    }

    let alerts = alert::Service::open(app, live.clone()).await?;

    let (ask, inbox) = mpsc::channel(INBOX_MAX);
    let (stop, stopped) = watch::channel(false);
    let (tell, told) = mpsc::unbounded_channel();
    let (reloaded, reloads) = watch::channel(0);
    let tasks_max = if options.role == Role::Planner { Some(0) } else { options.tasks_max };
    let mut settings = executor_options(app, tasks_max)?;
    settings.store_tries = u32::MAX;
    settings.takes = takes.clone();
    // Over one SQLite file there is one scheduler, which does its own work.
    settings.pull = options.role == Role::Worker || app.store().await?.dialect() == Dialect::Postgres;
    let env = app.env_name()?.to_string();
    let planner = Arc::new(ProjectPlanner { project: live.clone(), env });
    let partitions = app.partitions().await?;
    let desk = Desk {
        runs: runs.clone(),
        project: live.clone(),
        planner: planner.clone(),
        partitions: partitions.clone(),
        ask: ask.clone(),
    };
    let executor = Executor {
        store: runs.clone(),
        partitions,
        planner,
        runner: runners::open(app, live.clone(), false).await?,
        clock: app.clock.clone(),
        options: settings,
    };
    let clockwork = Clockwork { runs: runs.clone(), project: live.clone(), ask, reloads };
    let reload = Reload::new(app.reloading()?, files, live.clone(), runs.clone(), reloaded);
    let listener = Told::new(app.out, app.clock.clone(), Arc::clone(&health), alerts.handle());

    let out = app.out;
    let schedules = live.current().jobs.values().filter(|job| job.schedule.is_some()).count();
    out.note(format_args!(
        "{} keeps running{}: {schedules} jobs with a schedule, {}; Ctrl-C stops it",
        live.current().name(),
        Some(takes.to_string())
            .filter(|takes| !takes.is_empty())
            .map(|takes| format!(" in {takes}"))
            .unwrap_or_default(),
        doors.addresses()?
    ));
    let mut parts = JoinSet::new();
    let record = doors.serve(&mut parts, &stopped);
    parts.spawn(reload.run(stopped.clone(), out));
    parts.spawn(alerts.run(stopped.clone()));
    parts.spawn(listener.run(told));
    if options.role != Role::Worker {
        parts.spawn(clockwork.run(stopped.clone()));
        parts.spawn(desk.run(stopped.clone()));
    }
    let mut cleaning = std::pin::pin!(cleaning::run(app, stopped.clone()));
    let is_cleaner = options.role != Role::Worker;
    let mut work = tokio::spawn(async move { executor.serve(inbox, stopped, tell).await });
    let mut broken = None;
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended?,
            Some(part) = parts.join_next() => {
                // Without its schedules or its alerts the process would look healthy and do half of its work.
                if let Err(error) = part {
                    tracing::error!(%error, "a part of the process broke; it stops");
                    broken = Some(error);
                    stop.send_replace(true);
                }
            }
            () = &mut cleaning, if is_cleaner => {}
            () = signals.next() => {
                if *stop.borrow() {
                    out.note("stopped at once: what was running is taken up again by the next start");
                    std::process::exit(FAILED.into());
                }
                out.note("stopping: nothing new starts, running attempts may end; once more to stop at once");
                stop.send_replace(true);
            }
        }
    };
    stop.send_replace(true);
    // The parts have nothing durable of their own; a second is more than they need.
    let _ = tokio::time::timeout(Duration::from_secs(1), async { while parts.join_next().await.is_some() {} }).await;
    parts.shutdown().await;
    if let Some(record) = record {
        record.finish().await;
    }
    ended.map_err(Carried::from)?;
    match broken {
        Some(error) => Err(anyhow::Error::new(error).context("a part of the process broke: start it again")),
        None => Ok(ExitCode::from(DONE)),
    }
}
