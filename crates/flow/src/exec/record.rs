//! What is kept of runs, and the trait of the store that keeps it.

use std::{fmt, str::FromStr, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use headworks_domain::{Ds, ErrorKind, Fault, Interval, JobName, PartitionKey, RunId, TableName, TaskName};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::placement::{Placement, Takes};
use crate::machine::{Failure, State, TaskRecord};

/// An error of a store or of the registry of partitions, with its kind kept.
pub type BoxFault = Box<dyn Fault>;

/// A partition of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// The table.
    pub table: TableName,
    /// Which of its partitions.
    pub key: PartitionKey,
}

impl Partition {
    /// Names a partition.
    pub fn new(table: TableName, key: PartitionKey) -> Self {
        Self { table, key }
    }
}

/// What a run was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Trigger {
    /// A person's or a program's command.
    #[default]
    Manual,
    /// A tick of the job's schedule.
    Schedule,
    /// A stored backfill.
    Backfill,
}

impl Trigger {
    const ALL: [Self; 3] = [Self::Manual, Self::Schedule, Self::Backfill];

    /// Its word, as `schedule`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Schedule => "schedule",
            Self::Backfill => "backfill",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Trigger {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|t| t.as_str() == s).ok_or_else(|| format!("`{s}` is no trigger of a run"))
    }
}

/// A run as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// Its job.
    pub job: JobName,
    /// The version of the job that it was last planned with.
    pub job_version: String,
    /// The table it publishes to, if it does.
    pub table: Option<TableName>,
    /// What it covers.
    pub interval: Interval,
    /// The day of its last partition.
    pub ds: Ds,
    /// What it was made for.
    pub trigger: Trigger,
    /// Parameters that stood in for those of the job's header.
    pub params: Map<String, Value>,
    /// Its state.
    pub state: State,
    /// The number of its last attempt, from 1; of the next one before the first and between two.
    pub attempt: u32,
    /// The fence of whoever claimed it last.
    pub fence: i64,
    /// The process that claimed it last, as `host:pid`.
    pub owner: String,
    /// False when the run is not over and its owner is gone.
    pub owner_alive: bool,
    /// Until when that process's lease ran; `None` when nothing is known of it.
    pub lease_until: Option<DateTime<Utc>>,
    /// When it was first planned.
    pub created_at: DateTime<Utc>,
    /// When its first attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was over; `None` while it is live.
    pub finished_at: Option<DateTime<Utc>>,
    /// Rows published.
    pub rows: u64,
    /// Bytes published.
    pub bytes: u64,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl RunRow {
    /// True when it is not over and its owner is gone. One that was given away has no owner.
    pub fn is_abandoned(&self) -> bool {
        self.finished_at.is_none() && !self.owner_alive && !self.owner.is_empty()
    }

    /// True when it was skipped because another run of its job was live: nobody has begun it, and whoever asks for it may.
    pub fn was_passed_over(&self) -> bool {
        self.state == State::Skipped && self.failure.as_ref().is_some_and(|failure| failure.code == SKIPPED)
    }

    /// True while somebody is at work on it.
    pub fn is_held(&self) -> bool {
        self.finished_at.is_none() && self.owner_alive
    }
}

/// The code of runs that were skipped because another one was live.
const SKIPPED: &str = "FLOW_SKIPPED";

/// Why a run was skipped that came while another one of its job was live.
pub fn passed_over(run_id: &RunId, behind: &RunId, behind_ds: &str) -> Failure {
    let message = format!("run `{behind}` of ds={behind_ds} was not over yet, and the job says `overlap: skip`");
    Failure::new(ErrorKind::Cancelled, SKIPPED, message)
        .with_hint(format!("carry it out with `headworks runs clear {run_id}`, or let runs wait with `overlap: queue`"))
}

/// One attempt of a run, with its log.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRecord {
    /// Its number in the run, from 1.
    pub attempt: u32,
    /// The task that it was made of; `None` for one of a whole segment.
    pub task: Option<TaskName>,
    /// `Running`, or how it ended.
    pub state: State,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Why it ended without its result.
    pub failure: Option<Failure>,
    /// The path below the folder of logs of the file that holds its log, with those of others of the run.
    pub log_path: String,
    /// The size of its own log when this was recorded.
    pub log_bytes: u64,
}

/// The state of a run as its owner wants it kept. Stores keep it only while `fence` is the run's and the run is not over.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// The run.
    pub run_id: RunId,
    /// The owner's fence.
    pub fence: i64,
    /// Its state; a final one ends the run.
    pub state: State,
    /// The number of the attempt that runs or ran, or of the next one while the run waits for it.
    pub attempt: u32,
    /// When the first attempt of this claim began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was over; there exactly when `state` is final.
    pub finished_at: Option<DateTime<Utc>>,
    /// Rows published.
    pub rows: u64,
    /// Bytes published.
    pub bytes: u64,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// All tasks of the run.
    pub tasks: Vec<TaskRecord>,
    /// Attempts that began or ended since the last record.
    pub attempts: Vec<AttemptRecord>,
    /// True when it takes slots that all processes share: a record that ends it gives all of them back.
    pub pooled: bool,
}

/// A run that a process wants to own.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimRequest {
    /// The run's id: a new one, or the one in `seen`.
    pub run_id: RunId,
    /// The job.
    pub job: JobName,
    /// The job's version.
    pub job_version: String,
    /// The table it publishes to, if it does.
    pub table: Option<TableName>,
    /// What it covers.
    pub interval: Interval,
    /// The day of its last partition.
    pub ds: Ds,
    /// The first and the last partition it publishes, when it publishes any.
    pub partitions: Option<(PartitionKey, PartitionKey)>,
    /// Its tasks, in order.
    pub tasks: Vec<TaskName>,
    /// What it is made for; a run that is taken over keeps its own.
    pub trigger: Trigger,
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Value>,
    /// The tick that asked for it: the job's cursor, kept with the claim.
    pub tick: Option<DateTime<Utc>>,
    /// The kept demand that asked for it, which the claim answers; one that was answered before claims nothing.
    pub demand: Option<i64>,
    /// Where it may be carried out.
    pub placement: Placement,
    /// True for a new run that yields: while another run of the job is live, the store leaves a run in its place that was skipped
    /// ([`RunRow::was_passed_over`]), moves the cursor, and claims nothing.
    pub yields: bool,
    /// The newest run of the job and interval when it was looked at. It is taken over when it is this run, else a new run is
    /// made beside it; either way only while nobody else has changed it or made another. A live run is taken over only while its
    /// owner has not renewed its lease since.
    pub seen: Option<Seen>,
}

/// A run's row as somebody saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The run.
    pub run_id: RunId,
    /// Its fence then.
    pub fence: i64,
    /// Until when its owner's lease ran.
    pub lease_until: Option<DateTime<Utc>>,
}

impl From<&RunRow> for Seen {
    fn from(row: &RunRow) -> Self {
        Self { run_id: row.id.clone(), fence: row.fence, lease_until: row.lease_until }
    }
}

impl ClaimRequest {
    /// How the run's own row was seen; `None` for a run that is new.
    pub fn taken_over(&self) -> Option<&Seen> {
        self.seen.as_ref().filter(|seen| seen.run_id == self.run_id)
    }
}

/// A run that its owner gives away before it has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The run.
    pub run_id: RunId,
    /// The owner's fence.
    pub fence: i64,
    /// Higher is taken up first.
    pub priority: i32,
}

/// A run that now belongs to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Larger than every fence this run had before.
    pub fence: i64,
    /// The number of the next attempt; no attempt of this run that was kept had it before. Where several tasks of a run start
    /// at once, those of the last moment before a crash are not kept: then a new attempt has the number, but not the log, of a
    /// lost one.
    pub attempt: u32,
}

/// What became of a [`RunRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is kept.
    Yes,
    /// The run was over already, under the same fence: the publish recorded it.
    Over(State),
    /// The run has another owner: nothing was changed, and nothing may be.
    Fenced,
}

/// Slots of a named pool that a segment wants before it starts. All processes of a project share them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRequest {
    /// Under which number this process holds them; it has none twice.
    pub number: i64,
    /// The pool.
    pub pool: String,
    /// How many; who wants more than there are takes them all.
    pub slots: usize,
    /// The run.
    pub run_id: RunId,
    /// The owner's fence.
    pub fence: i64,
    /// The task that takes them, the first of its segment.
    pub task: TaskName,
}

/// What became of a [`SlotRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// They are this process's until it gives them back, or its lease is over.
    Taken,
    /// Others have them.
    Full,
    /// The run has another owner, or is over.
    Fenced,
}

/// A live run of another process that will publish some of the partitions asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    /// The run.
    pub run_id: RunId,
    /// The partitions of those asked for.
    pub partitions: Vec<Partition>,
}

/// How another process's run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its owner is at work on it.
    Held,
    /// Its owner is gone: anybody may take it over.
    Abandoned,
    /// It is over.
    Over(State),
    /// There is no such run (any more).
    Unknown,
}

/// Which runs to list; newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunFilter {
    /// Of this job only.
    pub job: Option<JobName>,
    /// In this state only.
    pub state: Option<State>,
    /// Of this day only.
    pub ds: Option<Ds>,
    /// Of this day and later ones only.
    pub from: Option<Ds>,
    /// Of this day and earlier ones only.
    pub to: Option<Ds>,
    /// Only those that are not over.
    pub live: bool,
    /// At most so many; 0 means 100.
    pub limit: usize,
}

/// A run with its tasks and attempts.
#[derive(Debug, Clone, PartialEq)]
pub struct RunDetail {
    /// The run.
    pub run: RunRow,
    /// Its tasks, in the plan's order.
    pub tasks: Vec<TaskRecord>,
    /// Its attempts, oldest first.
    pub attempts: Vec<AttemptRecord>,
}

/// Keeps runs, and sees to it that a run has one owner at a time.
///
/// Each process that claims runs has a lease; [`RunStore::heartbeat`] renews it. Of the live runs (those that are not over)
/// there is at most one per job and interval, whoever asks.
#[async_trait]
pub trait RunStore: Send + Sync + 'static {
    /// Makes an id that no run has or will have.
    async fn new_run_ids(&self, count: usize) -> Result<Vec<RunId>, BoxFault>;

    /// Finds the newest run of each job and interval, in the order asked.
    async fn find(&self, wanted: &[(JobName, Interval)]) -> Result<Vec<Option<RunRow>>, BoxFault>;

    /// Makes runs (or takes over ended and abandoned ones) for this process, durably; `None` where somebody else was first.
    async fn claim(&self, wanted: Vec<ClaimRequest>) -> Result<Vec<Option<Claim>>, BoxFault>;

    /// Keeps the states of runs, in order, and says for each what became of it. Final states are durable on return.
    async fn record(&self, records: Vec<RunRecord>) -> Result<Vec<Kept>, BoxFault>;

    /// How long this process owns its runs after a heartbeat.
    fn lease(&self) -> Duration;

    /// Renews this process's lease.
    async fn heartbeat(&self) -> Result<(), BoxFault>;

    /// Those of these runs, each with the fence under which this process had it, that have another fence now.
    async fn lost(&self, runs: &[(RunId, i64)]) -> Result<Vec<RunId>, BoxFault>;

    /// Ends this process's lease, when it has no live run any more.
    async fn leave(&self) -> Result<(), BoxFault>;

    /// Lists live runs that nobody is at work on: at most `limit` whose process is gone, and `released_max` of those that were
    /// released for such a process to take. The oldest interval comes first; of those released, the highest priority.
    async fn abandoned(&self, limit: usize, released_max: usize, takes: &Takes) -> Result<Vec<RunRow>, BoxFault>;

    /// Gives runs of this process that have not begun to whoever comes first; those whose fence is another one stay.
    async fn release(&self, runs: Vec<Release>) -> Result<(), BoxFault>;

    /// What the other living processes take that take up released runs.
    async fn workers(&self) -> Result<Vec<Takes>, BoxFault>;

    /// Gives slots back by their numbers, then takes others, durably; says what became of each, in the order asked.
    ///
    /// Of one pool the first that does not fit keeps those behind it waiting. Slots of processes whose lease is over are free. A
    /// store that only its process writes to has slots for all who ask: an executor asks for no more than it knows of.
    async fn slots(&self, _given: Vec<i64>, wanted: Vec<SlotRequest>) -> Result<Vec<Slots>, BoxFault> {
        Ok(vec![Slots::Taken; wanted.len()])
    }

    /// This process's live runs that somebody wants cancelled. A store that only its process writes to has none.
    async fn cancel_wishes(&self) -> Result<Vec<RunId>, BoxFault> {
        Ok(Vec::new())
    }

    /// Keeps that these demands ask for nothing: what they want is done. A store without demands has none to answer.
    async fn answered(&self, _demands: Vec<i64>) -> Result<(), BoxFault> {
        Ok(())
    }

    /// Says how runs stand, in the order asked.
    async fn standing(&self, runs: &[RunId]) -> Result<Vec<Standing>, BoxFault>;

    /// Finds the live runs of other living processes that will publish any of these.
    async fn producers(&self, wanted: &[Partition]) -> Result<Vec<Producer>, BoxFault>;

    /// True when a task failed because this very store was out of reach or held by others, and not by anything of its own.
    fn is_outage(&self, failure: &Failure) -> bool;

    /// The text of a version of a job that was planned before. A store that keeps none has the newest serve.
    async fn source(&self, _job: &JobName, _version: &str) -> Result<Option<String>, BoxFault> {
        Ok(None)
    }

    /// Lists runs, newest first.
    async fn list(&self, filter: &RunFilter) -> Result<Vec<RunRow>, BoxFault>;

    /// Finds a run with its tasks and attempts.
    async fn show(&self, run: &RunId) -> Result<Option<RunDetail>, BoxFault>;
}

/// The registry of published partitions, as the executor needs it.
///
/// A *position* is a place in the order of publishes: whatever is published later has a larger one.
#[async_trait]
pub trait Partitions: Send + Sync + 'static {
    /// Says which of these are published, and at which position that was so.
    async fn published(&self, wanted: &[Partition]) -> Result<(Vec<Partition>, i64), BoxFault>;

    /// Lists what was published after a position, and the new position. More may be listed than was published, never less.
    async fn published_since(&self, position: i64) -> Result<(Vec<Partition>, i64), BoxFault>;

    /// Changes after every publish, by this process or another; more often does no harm.
    fn changes(&self) -> watch::Receiver<u64>;
}
