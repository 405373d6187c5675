//! A process that answers queries and runs no jobs.

use std::{process::ExitCode, sync::Arc, time::Duration};

use headworks_flow::exec::{RunStore, Takes};
use headworks_meta::{Role, Runs};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{front::Doors, health::Health};
use crate::{
    app::App,
    execute::Signals,
    fail::{Carried, DONE, FAILED},
};

/// How long requests over HTTP may go on that are being answered when the process is asked to stop. Clients of PostgreSQL are told,
/// and their statements end.
const DRAIN: Duration = Duration::from_secs(30);

/// Answers queries until a signal, then lets requests end.
pub(crate) async fn answer(app: &App, listen: Option<String>) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let runs = Arc::clone(app.run_store().await?);
    runs.take_up(Role::Server, &Takes::default()).await?;
    app.first_admin().await?;
    let health = Arc::new(Health::new(app.clock.clone(), app.store().await?.clone(), runs.clone()));
    let doors = Doors::open(app, listen, &health).await?.with_queries(app, &health).await?;
    let (stop, stopped) = watch::channel(false);
    app.out.note(format_args!("answers queries and runs no jobs: {}; Ctrl-C stops it", doors.addresses()?));
    let mut parts = JoinSet::new();
    let record = doors.serve(&mut parts, &stopped);
    let alive = tokio::spawn(stays_known(Arc::clone(&runs)));
    tokio::select! {
        () = signals.next() => {}
        // None of them ends by itself.
        Some(ended) = parts.join_next() => {
            ended?;
            anyhow::bail!("a port was lost: start the process again");
        }
    }
    app.out.note("stopping: nothing new starts, requests over HTTP may end; once more to stop at once");
    stop.send_replace(true);
    let drained = async { while parts.join_next().await.is_some() {} };
    tokio::select! {
        _ = tokio::time::timeout(DRAIN, drained) => {}
        () = signals.next() => std::process::exit(FAILED.into()),
    }
    parts.shutdown().await;
    if let Some(record) = record {
        record.finish().await;
    }
    alive.abort();
    runs.leave().await.map_err(Carried::from)?;
    Ok(ExitCode::from(DONE))
}

/// Tells the others that this process lives, as often as those do that have runs.
async fn stays_known(runs: Arc<Runs>) {
    let mut every = interval(runs.lease() / 3);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if let Err(error) = runs.heartbeat().await {
            tracing::warn!(%error, "the metadata database does not know whether this process lives");
        }
    }
}
