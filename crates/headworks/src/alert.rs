//! Tells people: the part of an always-on process that watches deadlines, notices recoveries, and sends what the outbox holds.
//!
//! [`Handle::note`] takes the end of a run; [`Service::run`] does everything else. What is told, and in which words, is
//! `headworks_flow::alert`'s; that it is told once, and not lost, is the outbox's (`headworks_meta::Outbox`).

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use headworks_domain::{Clock, Fault};
use headworks_flow::{
    Project, State, Target, TargetName,
    alert::{Event, EventKind, Message, RunEnd},
};
use headworks_meta::{Failing, Notice, Outbox, Parcel};
use tokio::sync::{Notify, watch};

use crate::{app::App, live::LiveProject, settings::Environment};

mod deadlines;
mod egress;
mod email;
mod slack;
#[cfg(test)]
mod tests;
mod webhook;

use deadlines::Deadlines;

/// How long a sender owns what it sends; longer than any send takes.
const LEASE: Duration = Duration::from_secs(60);
/// The longest that a send may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(40);
/// The pause after the first failed try; each is twice the one before.
const RETRY_FIRST: Duration = Duration::from_secs(10);
/// The longest pause between tries.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// Tries go on for so long.
const GIVE_UP_AFTER: TimeDelta = TimeDelta::hours(24);
/// Alerts that were told are listed for so long.
const KEPT: TimeDelta = TimeDelta::days(30);
/// The longest that the service sleeps: what other processes did is noticed then at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Ends of runs that come so close together make one pass.
const PASS_PAUSE: Duration = Duration::from_millis(200);
/// How often old alerts are removed.
const FORGET_EVERY: TimeDelta = TimeDelta::hours(1);
/// The most ends of runs that wait for a database that is away; the oldest go first.
const BACKLOG_MAX: usize = 10_000;

/// Why a message did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotSent {
    /// The reason, without secrets.
    pub(crate) reason: String,
    /// When the target wants to be asked again.
    pub(crate) retry_after: Option<Duration>,
}

impl NotSent {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: None }
    }
}

/// Sends a message to a target, within a bound of time.
pub(crate) async fn send(target: &Target, message: &Message, now: DateTime<Utc>) -> Result<(), NotSent> {
    let sending = async {
        match target {
            Target::Slack { url, allow_private } => slack::send(url, *allow_private, message).await,
            Target::Webhook { url, token, allow_private } => {
                webhook::send(url, token.as_ref(), *allow_private, message).await
            }
            Target::Email(mail) => email::send(mail, message, now).await,
        }
    };
    let late = || NotSent::new(format!("no answer within {} s", SEND_TIMEOUT.as_secs()));
    tokio::time::timeout(SEND_TIMEOUT, sending).await.unwrap_or_else(|_| Err(late()))
}

/// Watches deadlines and sends alerts, for as long as an always-on process lives.
pub(crate) struct Service {
    shared: Arc<Shared>,
    deadlines: Deadlines,
    /// Whose name stands at what this process claims.
    owner: String,
    root: PathBuf,
    environment: Environment,
    forgot_at: DateTime<Utc>,
}

/// Tells the service what happened; cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Shared>);

struct Shared {
    outbox: Outbox,
    clock: Arc<dyn Clock>,
    project: LiveProject,
    /// Ends of runs that could not be written down yet.
    backlog: Mutex<VecDeque<RunEnd>>,
    bell: Notify,
}

impl Service {
    /// Opens the outbox of the app's project, whose jobs, deadlines and settings hold as they are read anew.
    pub(crate) async fn open(app: &App, project: LiveProject) -> anyhow::Result<Self> {
        let outbox = outbox(app).await?;
        let shared =
            Shared { outbox, clock: app.clock.clone(), project, backlog: Mutex::default(), bell: Notify::new() };
        Ok(Self {
            shared: Arc::new(shared),
            deadlines: Deadlines::new(
                app.run_store().await?.clone(),
                app.lake().await?.clone(),
                app.env_name()?.to_string(),
            ),
            owner: format!("process {}", std::process::id()),
            root: app.root()?.to_path_buf(),
            environment: app.environment().clone(),
            forgot_at: DateTime::<Utc>::MIN_UTC,
        })
    }

    /// What the rest of the process talks to.
    pub(crate) fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Works until `shutdown` becomes true; what is not sent by then stays in the outbox.
    pub(crate) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let shared = Arc::clone(&self.shared);
        loop {
            let pause = self.pass().await;
            // A sender that is gone means the end, too.
            let stop = async { shutdown.wait_for(|stop| *stop).await.map(drop) };
            tokio::select! {
                _ = stop => return,
                () = shared.bell.notified() => tokio::time::sleep(PASS_PAUSE).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does all that is due, and says how long nothing will be. What fails is tried again in the next pass.
    async fn pass(&mut self) -> Duration {
        let project = self.shared.project.current();
        for (what, done) in [
            ("alerts of runs", self.shared.empty_backlog(&project).await),
            ("deadlines", self.deadlines.look(&self.shared.outbox, &project, self.shared.clock.now()).await),
            ("recoveries", self.tell_recoveries(&project).await),
            ("alerts", self.send_due(&project).await),
        ] {
            if let Err(error) = done {
                tracing::warn!(error = %crate::fail::message(&error), what, "alerts are behind, and are tried again");
            }
        }
        let now = self.shared.clock.now();
        if now - self.forgot_at > FORGET_EVERY && self.shared.outbox.forget(now - KEPT).await.is_ok() {
            self.forgot_at = now;
        }
        let group_for = project.config.alerts.group_for.duration();
        let to_send = self.shared.outbox.next_due(group_for).await.ok().flatten();
        let next = [to_send, self.deadlines.next_due()].into_iter().flatten().min();
        next.map_or(LOOK_EVERY, |next| (next - now).to_std().unwrap_or(RETRY_FIRST / 10).min(LOOK_EVERY))
    }

    async fn tell_recoveries(&self, project: &Project) -> anyhow::Result<()> {
        for recovery in self.shared.outbox.recoveries().await? {
            let failing = recovery.failing;
            let notice = project.jobs.get(&failing.job).and_then(|job| {
                let event = Event::recovery(job, failing.interval, recovery.run_id, recovery.published_at);
                notice(project, event)
            });
            self.shared.outbox.recovered(failing, notice).await?;
        }
        Ok(())
    }

    async fn send_due(&self, project: &Project) -> anyhow::Result<()> {
        let group_for = project.config.alerts.group_for.duration();
        // Looking costs no transaction.
        let due = self.shared.outbox.next_due(group_for).await?;
        if due.is_none_or(|due| due > self.shared.clock.now()) {
            return Ok(());
        }
        let parcels = self.shared.outbox.claim(&self.owner, group_for, LEASE).await?;
        for settled in join_all(parcels.iter().map(|parcel| self.send_one(project, parcel))).await {
            settled?;
        }
        Ok(())
    }

    async fn send_one(&self, project: &Project, parcel: &Parcel) -> anyhow::Result<()> {
        let (outbox, clock) = (&self.shared.outbox, &self.shared.clock);
        let message = Message { id: parcel.message_id.clone(), project: project.name(), events: parcel.events.clone() };
        let sent = match resolve(project, &self.root, &self.environment, &parcel.target) {
            Ok(target) => send(&target, &message, clock.now()).await,
            Err(reason) => Err(NotSent::new(reason)),
        };
        let Err(failed) = sent else {
            let events = parcel.events.len();
            tracing::info!(to = %parcel.target, message_id = parcel.message_id, events, "alert sent");
            return Ok(outbox.sent(parcel).await?);
        };
        let now = clock.now();
        let next = now + failed.retry_after.unwrap_or_else(|| pause_after(parcel.attempt));
        let next = Some(next).filter(|next| *next - parcel.since < GIVE_UP_AFTER);
        let error = &failed.reason;
        match next {
            Some(_) => {
                tracing::info!(to = %parcel.target, message_id = parcel.message_id, attempt = parcel.attempt, error, "alert not sent yet");
            }
            None => {
                tracing::warn!(to = %parcel.target, message_id = parcel.message_id, attempt = parcel.attempt, error, "alert given up");
            }
        }
        Ok(outbox.not_sent(parcel, error, next).await?)
    }
}

impl Handle {
    /// Takes the end of a run: a failure is told, a success may be a recovery or late. Durable on return; when the database is
    /// away it is kept and written down later.
    pub(crate) async fn note(&self, end: RunEnd) {
        let project = self.0.project.current();
        if let Err(error) = self.0.write_down(&project, &end).await {
            tracing::warn!(error = %crate::fail::message(&error), job = %end.job, run_id = %end.run_id, "alert kept for later");
            let mut backlog = self.0.backlog();
            if backlog.len() >= BACKLOG_MAX {
                backlog.pop_front();
            }
            backlog.push_back(end);
        }
        self.0.bell.notify_one();
    }
}

impl Shared {
    fn backlog(&self) -> MutexGuard<'_, VecDeque<RunEnd>> {
        self.backlog.lock().expect("no holder of this lock can panic")
    }

    async fn empty_backlog(&self, project: &Project) -> anyhow::Result<()> {
        loop {
            let Some(end) = self.backlog().front().cloned() else { return Ok(()) };
            self.write_down(project, &end).await?;
            let mut backlog = self.backlog();
            // It may have been pushed out meanwhile.
            if backlog.front() == Some(&end) {
                backlog.pop_front();
            }
        }
    }

    /// Writes a failure into the outbox. A success is found by the service itself, whoever's run it was.
    async fn write_down(&self, project: &Project, end: &RunEnd) -> anyhow::Result<()> {
        if !matches!(end.state, State::Failed | State::UpstreamFailed) {
            return Ok(());
        }
        let job = project.jobs.get(&end.job);
        let Some(event) = Event::failure(end, job.map(AsRef::as_ref)) else { return Ok(()) };
        let targets = project.config.alerts.targets_of(job.and_then(|job| job.spec.alerts.as_ref()));
        let told = |kind| project.config.alerts.on.contains(&kind);
        if targets.is_empty() || !(told(EventKind::Failure) || told(EventKind::Recovery)) {
            return Ok(());
        }
        let failing = Failing { job: end.job.clone(), interval: end.interval, failed_at: end.finished_at };
        let targets = if told(EventKind::Failure) { targets } else { Vec::new() };
        Ok(self.outbox.failed(failing, end.run_id.clone(), Notice { event, targets }).await?)
    }
}

/// An event with its targets; none when nobody is to be told.
fn notice(project: &Project, event: Event) -> Option<Notice> {
    let alerts = &project.config.alerts;
    let job = project.jobs.get(&event.job);
    let targets = alerts.targets_of(job.and_then(|job| job.spec.alerts.as_ref()));
    (alerts.on.contains(&event.kind) && !targets.is_empty()).then_some(Notice { event, targets })
}

/// A target with its secrets, as the settings have it now. Errors: the reason, for a person.
fn resolve(project: &Project, root: &Path, environment: &Environment, name: &TargetName) -> Result<Target, String> {
    let env = |variable: &str| environment.get(variable).map(str::to_owned);
    let target = project.config.alerts.target(name).and_then(|target| target.resolve(name, root, &env));
    target.map_err(|error| match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    })
}

/// The pause after a failed try.
fn pause_after(attempt: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(RETRY_MAX)
}

/// The outbox of the app's project.
pub(crate) async fn outbox(app: &App) -> anyhow::Result<Outbox> {
    // Recoveries are found among the runs: their tables must be there.
    app.run_store().await?;
    Ok(Outbox::open(app.store().await?.clone(), app.clock.clone()).await?)
}
