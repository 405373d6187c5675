//! What is told to people when something goes wrong, and in which words. It sends nothing.
//!
//! An [`Event`] is one thing that happened to one job's interval. Events of one target that come close together become one
//! [`Message`], which renders itself as a subject, plain text, Slack's blocks and JSON. Both carry ids that are made from what
//! they tell, so that a message sent twice can be known as one.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use headworks_domain::{Ds, Interval, JobName, PartitionKey, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    deadline::Deadline,
    job::Job,
    machine::{Failure, State},
};

mod text;

/// What can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A run failed for good.
    Failure,
    /// An interval that had failed is published.
    Recovery,
    /// A deadline has come, and its interval is not published.
    Deadline,
    /// An interval was published after its deadline.
    Late,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Failure, Self::Recovery, Self::Deadline, Self::Late];

    /// The kind as settings and the database write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Recovery => "recovery",
            Self::Deadline => "deadline",
            Self::Late => "late",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a run ended, as the process that saw it tells.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// Its job.
    pub job: JobName,
    /// What it covered.
    pub interval: Interval,
    /// The day that names its interval.
    pub ds: Ds,
    /// Its final state.
    pub state: State,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The run.
    pub run_id: RunId,
    /// The number of its last attempt.
    pub attempt: u32,
    /// When it was over.
    pub finished_at: DateTime<Utc>,
}

/// One thing that happened to one job's interval. Its JSON is what webhooks get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The job.
    pub job: JobName,
    /// The last partition of the interval.
    pub partition: PartitionKey,
    /// The interval's first instant.
    pub interval_start: DateTime<Utc>,
    /// The first instant after the interval.
    pub interval_end: DateTime<Utc>,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// Who answers for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The run that failed or published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The run's attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<EventFailure>,
    /// By when it was promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<DateTime<Utc>>,
    /// The zone of the job's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// What keeps it from being published, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<String>,
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFailure {
    /// A stable short name, as `LAKE_CONFLICT`.
    pub code: String,
    /// What stood in the way; the first 2,000 characters.
    pub message: String,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The most characters of an error's message that an event keeps.
const FAILURE_CHARS_MAX: usize = 2_000;

impl Event {
    /// A run that failed; none when it ended in another way. `job` is the job as it is now, if its file is still there.
    pub fn failure(end: &RunEnd, job: Option<&Job>) -> Option<Self> {
        if !matches!(end.state, State::Failed | State::UpstreamFailed) {
            return None;
        }
        let failure = end.failure.as_ref().map(|failure| EventFailure {
            code: failure.code.clone(),
            message: text::shortened(&failure.message, FAILURE_CHARS_MAX),
            hint: failure.hint.clone(),
        });
        let named = job.map_or_else(|| PartitionKey::day(end.ds), |job| job.grid().last_key(&end.interval));
        Some(Self {
            run_id: Some(end.run_id.clone()),
            attempt: Some(end.attempt),
            failure,
            ..Self::new(EventKind::Failure, end.job.clone(), named, end.interval, end.finished_at, job)
        })
    }

    /// An interval that had failed and is published now, by a run.
    pub fn recovery(job: &Job, interval: Interval, run_id: RunId, at: DateTime<Utc>) -> Self {
        Self { run_id: Some(run_id), ..Self::of_job(EventKind::Recovery, job, interval, at) }
    }

    /// A deadline that came while its interval was not published.
    pub fn missed(job: &Job, deadline: &Deadline, blocked_by: Vec<String>) -> Self {
        let event = Self::of_job(EventKind::Deadline, job, deadline.interval, deadline.due);
        Self { due: Some(deadline.due), blocked_by, ..event }
    }

    /// An interval that was published after its deadline.
    pub fn late(job: &Job, deadline: &Deadline, published_at: DateTime<Utc>) -> Self {
        Self { due: Some(deadline.due), ..Self::of_job(EventKind::Late, job, deadline.interval, published_at) }
    }

    fn of_job(kind: EventKind, job: &Job, interval: Interval, at: DateTime<Utc>) -> Self {
        Self::new(kind, job.name.clone(), job.grid().last_key(&interval), interval, at, Some(job))
    }

    fn new(
        kind: EventKind,
        name: JobName,
        partition: PartitionKey,
        interval: Interval,
        at: DateTime<Utc>,
        job: Option<&Job>,
    ) -> Self {
        Self {
            kind,
            job: name,
            partition,
            interval_start: interval.start(),
            interval_end: interval.end(),
            at,
            owner: job.and_then(|job| job.spec.owner.clone()),
            run_id: None,
            attempt: None,
            failure: None,
            due: None,
            timezone: job.map(|job| job.zone.name().to_owned()),
            blocked_by: Vec::new(),
        }
    }

    /// What makes the event one of its own: the same thing noticed twice has the same key.
    pub fn key(&self) -> String {
        let (start, end) = (self.interval_start.timestamp(), self.interval_end.timestamp());
        let mut key = format!("{}:{}:{start}-{end}", self.kind, self.job);
        if let (Some(run), EventKind::Failure | EventKind::Recovery) = (&self.run_id, self.kind) {
            key += &format!(":{run}");
        }
        if let Some(attempt) = self.attempt {
            key += &format!(":{attempt}");
        }
        key
    }

    fn zone(&self) -> Tz {
        self.timezone.as_deref().and_then(|name| name.parse().ok()).unwrap_or(Tz::UTC)
    }

    fn lateness(&self) -> TimeDelta {
        self.due.map_or(TimeDelta::zero(), |due| self.at - due)
    }
}

/// Events that go to one target together; without any it is a test.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Made from the target and the events: a message that is sent again has the same one.
    pub id: String,
    /// The project's name.
    pub project: String,
    /// What is told, in the order in which it was noticed.
    pub events: Vec<Event>,
}

/// The id of a message about these events: the first 16 hex digits of a SHA-256.
pub fn message_id<'k>(target: &'k str, keys: impl IntoIterator<Item = &'k str>) -> String {
    let mut hash = Sha256::new();
    for part in std::iter::once(target).chain(keys) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
