//! Hears what becomes of runs: tells people and counts for the metrics.

use std::sync::Arc;

use headworks_domain::Clock;
use headworks_flow::{
    State,
    alert::RunEnd,
    exec::{Progress, RunProgress},
};
use serde_json::json;
use tokio::sync::mpsc;

use super::health::Health;
use crate::{
    alert,
    cli::runs::failure_json,
    output::{Out, Style, count, duration, styled},
};

pub(super) struct Told {
    out: Out,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    alerts: alert::Handle,
}

impl Told {
    pub(super) fn new(out: Out, clock: Arc<dyn Clock>, health: Arc<Health>, alerts: alert::Handle) -> Self {
        Self { out, clock, health, alerts }
    }

    /// Listens until the executor has nothing more to say.
    pub(super) async fn run(self, mut told: mpsc::UnboundedReceiver<Progress>) {
        while let Some(progress) = told.recv().await {
            if let Progress::Run(run, counts) = progress {
                self.health.run(&run, &counts);
                self.tell(&run);
                if run.state.is_final() {
                    self.alerts.note(self.end_of(run)).await;
                }
            }
        }
    }

    fn end_of(&self, run: RunProgress) -> RunEnd {
        RunEnd {
            job: run.job,
            interval: run.interval,
            ds: run.ds,
            state: run.state,
            failure: run.failure,
            run_id: run.run_id,
            attempt: run.attempt,
            finished_at: self.clock.now(),
        }
    }

    fn tell(&self, run: &RunProgress) {
        if self.out.json {
            let line = json!({
                "at": self.clock.now(), "run_id": run.run_id, "job": run.job, "ds": run.ds, "state": run.state.as_str(),
                "trigger": run.trigger.as_str(), "attempt": run.attempt, "rows": run.rows,
                "took_ms": run.took.map(|t| t.as_millis()), "failure": run.failure.as_ref().map(failure_json),
            });
            // Whoever read our lines may be gone; the work goes on.
            let _ = self.out.line(line);
            return;
        }
        let (word, style) = match run.state {
            State::Success => ("done", Style::Green),
            State::Failed => ("failed", Style::Red),
            State::Retry => ("retries", Style::Yellow),
            State::Cancelled => ("cancelled", Style::Yellow),
            _ => return,
        };
        let color = self.out.stderr_color;
        let time = self.clock.now().format("%H:%M:%S");
        let took = run.took.and_then(|t| chrono::TimeDelta::from_std(t).ok()).map(duration);
        let more = match (&run.failure, took) {
            (Some(failure), _) => format!(": {}", failure.message),
            (None, Some(took)) => format!(": {} rows in {took}", count(run.rows)),
            (None, None) => String::new(),
        };
        let word = styled(color, style, word);
        self.out.note(format_args!("{time} {word}: {} {}{more}", run.job, run.ds));
    }
}
