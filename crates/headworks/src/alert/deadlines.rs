//! Watches the deadlines of jobs: which have come, whether the interval is published, and what it waits for.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{Interval, JobName, PartitionKey};
use headworks_flow::{
    Deadline, Job, OutsideOn, Project, RunContext, State, WaitOn,
    alert::{Event, EventKind},
    exec::{RunRow, RunStore},
};
use headworks_lake::{At, Lake};
use headworks_meta::{Missed, Outbox, Runs};

use super::notice;
use crate::fail::Carried;

/// Deadlines that came while no process watched are told when they are not older.
const LOOK_BACK: TimeDelta = TimeDelta::hours(24);
/// The most links of the chain that a missed deadline names.
const CHAIN_MAX: usize = 5;
/// The most versions of a partition that are looked through for its first one.
const HISTORY_MAX: usize = 1_000;

/// What is known of each job's deadlines.
pub(super) struct Deadlines {
    runs: Arc<Runs>,
    lake: Lake,
    env: String,
    watched: HashMap<JobName, Watched>,
}

struct Watched {
    /// The job's version that `next_due` was found for.
    version: String,
    /// Every deadline up to here was looked at.
    looked_at: DateTime<Utc>,
    next_due: Option<DateTime<Utc>>,
}

impl Deadlines {
    pub(super) fn new(runs: Arc<Runs>, lake: Lake, env: String) -> Self {
        Self { runs, lake, env, watched: HashMap::new() }
    }

    /// The next deadline of any job.
    pub(super) fn next_due(&self) -> Option<DateTime<Utc>> {
        self.watched.values().filter_map(|watched| watched.next_due).min()
    }

    /// Tells the deadlines that came since the last look, and missed ones whose interval is published now.
    pub(super) async fn look(&mut self, outbox: &Outbox, project: &Project, now: DateTime<Utc>) -> anyhow::Result<()> {
        self.watched.retain(|name, _| project.jobs.get(name).is_some_and(|job| is_watched(project, job)));
        self.watch_new(outbox, project, now).await?;
        for job in project.jobs.values() {
            let Some(watched) = self.watched.get_mut(&job.name) else { continue };
            if watched.version != job.version {
                watched.version.clone_from(&job.version);
                watched.next_due = job.next_deadline(watched.looked_at).map(|deadline| deadline.due);
            }
            if watched.next_due.is_none_or(|due| due > now) {
                continue;
            }
            let due: Vec<Deadline> = job.deadlines(watched.looked_at, now).collect();
            for deadline in &due {
                self.came(outbox, project, job, deadline).await?;
            }
            let next_due = job.next_deadline(now).map(|deadline| deadline.due);
            self.watched.insert(job.name.clone(), Watched { version: job.version.clone(), looked_at: now, next_due });
        }
        self.late(outbox, project).await
    }

    /// Begins to watch jobs that are new to this process: from when the project began to, or from a day ago.
    async fn watch_new(&mut self, outbox: &Outbox, project: &Project, now: DateTime<Utc>) -> anyhow::Result<()> {
        let new: Vec<&Arc<Job>> = project
            .jobs
            .values()
            .filter(|job| is_watched(project, job) && !self.watched.contains_key(&job.name))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let since = outbox.watch(new.iter().map(|job| job.name.clone()).collect()).await?;
        for job in new {
            let looked_at = since.get(&job.name).copied().unwrap_or(now).max(now - LOOK_BACK);
            let next_due = job.next_deadline(looked_at).map(|deadline| deadline.due);
            self.watched.insert(job.name.clone(), Watched { version: job.version.clone(), looked_at, next_due });
        }
        Ok(())
    }

    /// A deadline has come.
    async fn came(
        &self,
        outbox: &Outbox,
        project: &Project,
        job: &Arc<Job>,
        deadline: &Deadline,
    ) -> anyhow::Result<()> {
        let missed = Missed { job: job.name.clone(), interval: deadline.interval, due: deadline.due };
        match self.published_at(job, &deadline.interval).await? {
            Some(at) if at <= deadline.due => {}
            // Nobody looked when it came; the interval is there meanwhile.
            Some(at) => {
                outbox.add(notice(project, Event::late(job, deadline, at)).into_iter().collect()).await.map(drop)?
            }
            None => {
                let chain = self.chain(project, job, deadline.interval).await?;
                let event = Event::missed(job, deadline, chain);
                let told = notice(project, event.clone());
                let nobody = headworks_meta::Notice { event, targets: Vec::new() };
                outbox.missed(missed, told.unwrap_or(nobody)).await?;
            }
        }
        Ok(())
    }

    /// Tells the missed deadlines whose interval is published now.
    async fn late(&self, outbox: &Outbox, project: &Project) -> anyhow::Result<()> {
        for missed in outbox.open_misses().await? {
            let Some(job) = project.jobs.get(&missed.job) else { continue };
            if let Some(at) = self.published_at(job, &missed.interval).await? {
                let deadline = Deadline { interval: missed.interval, due: missed.due };
                outbox.published_late(missed, notice(project, Event::late(job, &deadline, at))).await?;
            }
        }
        Ok(())
    }

    /// When an interval was published first, whole; none while it is not.
    async fn published_at(&self, job: &Job, interval: &Interval) -> anyhow::Result<Option<DateTime<Utc>>> {
        if let Some(run) = self.run_of(job, *interval).await?
            && run.state == State::Success
        {
            // A later run over what was there already is not when it was published first.
            let before = self.first_version(job, interval).await?;
            return Ok(before.into_iter().chain(run.finished_at).min());
        }
        self.first_version(job, interval).await
    }

    /// When the last of an interval's partitions got its first version; none unless all are published.
    async fn first_version(&self, job: &Job, interval: &Interval) -> anyhow::Result<Option<DateTime<Utc>>> {
        // What other programs published, too.
        self.lake.catch_up().await?;
        // A job of tasks has no table: only its runs tell.
        let Some(name) = &job.table else { return Ok(None) };
        let Some(table) = self.lake.table(name.as_str(), At::Now).await? else { return Ok(None) };
        let keys = job.partitions(interval);
        if self.lake.published(name.as_str(), &keys).await?.len() < keys.len() {
            return Ok(None);
        }
        let mut last = None;
        for key in &keys {
            let versions = self.lake.history(table.id, Some(key), HISTORY_MAX).await?;
            last = last.max(versions.last().map(|version| version.info.published_at));
        }
        Ok(last)
    }

    async fn run_of(&self, job: &Job, interval: Interval) -> anyhow::Result<Option<RunRow>> {
        let found = self.runs.find(&[(job.name.clone(), interval)]).await.map_err(Carried::from)?;
        Ok(found.into_iter().next().flatten())
    }

    /// Says what keeps an interval from being published: how its run stands, then the first partition that it waits for and how
    /// that one's run stands, and so on.
    async fn chain(&self, project: &Project, job: &Arc<Job>, interval: Interval) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        let (mut job, mut interval) = (Arc::clone(job), interval);
        for _ in 0..CHAIN_MAX {
            let run = self.run_of(&job, interval).await?;
            let is_waiting = run.as_ref().is_some_and(|run| run.state == State::Waiting);
            lines.push(match run {
                None => format!("{} has no run for it yet", job.name),
                Some(run) => match &run.failure {
                    Some(failure) => format!("{} run {} {}: {}", job.name, run.id, run.state, failure.message),
                    None => format!("{} run {} is {}", job.name, run.id, run.state),
                },
            });
            let (missing, outside) = self.first_missing(project, &job, interval).await?;
            let Some((wait, key)) = missing else {
                // Nobody looks for the sake of a message: which of them is there already is not told.
                let waits = outside.iter().filter(|_| is_waiting);
                lines.extend(waits.map(|wait| format!("{} waits for {}", job.name, wait.question)));
                break;
            };
            lines.push(format!("{} waits for {} {key}", job.name, wait.table));
            let Some(maker) = project.maker(wait.table.as_str()) else {
                lines.push(format!("no job of this project makes {}", wait.table));
                break;
            };
            let Some(grain) = maker.interval_of(key.ds, key.hour) else { break };
            let made = self.runs.covering(&maker.name, &grain).await?;
            (job, interval) = (Arc::clone(maker), made.unwrap_or_else(|| maker.scheduled_interval(grain)));
        }
        Ok(lines)
    }

    /// The first partition that a run over an interval waits for and that is not published; and what it waits for outside.
    async fn first_missing(
        &self,
        project: &Project,
        job: &Arc<Job>,
        interval: Interval,
    ) -> anyhow::Result<(Option<(WaitOn, PartitionKey)>, Vec<OutsideOn>)> {
        let context = RunContext {
            run_id: "deadline".parse().expect("a plain word is an id"),
            env: self.env.clone(),
            params: serde_json::Map::new(),
        };
        // A job that cannot be planned says so in its run.
        let Ok(plan) = job.plan_run(project, interval, &context) else { return Ok((None, Vec::new())) };
        for wait in plan.waits {
            let published = self.lake.published(wait.table.as_str(), &wait.partitions).await?;
            if let Some(key) = wait.partitions.iter().find(|key| !published.contains_key(*key)).cloned() {
                return Ok((Some((wait, key)), plan.outside));
            }
        }
        Ok((None, plan.outside))
    }
}

/// True when somebody wants to know of a job's deadlines.
fn is_watched(project: &Project, job: &Job) -> bool {
    let alerts = &project.config.alerts;
    let told = alerts.on.contains(&EventKind::Deadline) || alerts.on.contains(&EventKind::Late);
    told && job.spec.deadline.is_some()
        && job.schedule.is_some()
        && !alerts.targets_of(job.spec.alerts.as_ref()).is_empty()
}
