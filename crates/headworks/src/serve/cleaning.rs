//! Cleans up in the background: what retention and orphans allow, as `headworks gc` does.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

use crate::{
    app::App,
    fail,
    output::{bytes, counted},
    upkeep,
};

/// The first time comes soon after the start, for processes that are restarted each night; no start is slowed by it.
const FIRST_AFTER: Duration = Duration::from_secs(10 * 60);

const EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// Cleans up now and then until `stop` turns true. What fails is told and tried again the next time.
pub(super) async fn run(app: &App, mut stop: watch::Receiver<bool>) {
    let mut pause = FIRST_AFTER;
    loop {
        let is_stopped = tokio::select! {
            () = sleep(pause) => false,
            _ = stop.wait_for(|stop| *stop) => true,
        };
        if is_stopped {
            // Nothing is left to do; who waits for this waits for the process's end.
            return std::future::pending().await;
        }
        pause = EVERY;
        match upkeep::run(app, false).await {
            Ok(report) if report.count() == 0 => {}
            Ok(report) => {
                app.note(format_args!("cleaned up: {}, {}", counted(report.count(), "thing"), bytes(report.bytes())));
            }
            Err(error) => app.note(format_args!("could not clean up: {}", fail::message(&error))),
        }
    }
}
