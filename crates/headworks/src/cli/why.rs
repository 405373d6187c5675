use std::{collections::HashSet, process::ExitCode, sync::Arc, time::Duration};

use chrono::{TimeDelta, Utc};
use futures::future::BoxFuture;
use headworks_domain::{ErrorKind, Interval, JobName, PartitionKey, TaskName};
use headworks_flow::{
    Failure, Job, OutsideOn, Project, Span, State, TaskKind,
    exec::{
        Given, Partition, Partitions, Placement, Planner, Request, RunDetail, RunFilter, RunRow, RunShape, RunStore,
        Takes,
    },
};
use headworks_lake::{At, Lake};
use headworks_meta::{BackfillState, JobRow, PoolRow, ProcessRow, Role, Runs};
use serde_json::{Map, Value, json};

use super::when::WhenArgs;
use crate::{
    app::App,
    fail::{Carried, DONE},
    live::LiveProject,
    planner::ProjectPlanner,
    runners::Looker,
    why::{Due, Facts, Node, Reason, Sight, conclude},
};

/// Say why a run is not there: what it waits for, and what stands behind that
///
/// It follows the chain to its end: a partition that is missing leads to the job that makes it, and so on. The last line says
/// what to do.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks why company_metrics
  headworks why company_metrics --ds 2018-03-01 --json")]
pub(crate) struct Args {
    /// The job, by its name or by its table
    job: String,
    #[command(flatten)]
    when: WhenArgs,
}

/// The longest chain that is followed.
const DEPTH_MAX: usize = 10;

/// The most tables of one run that are followed, and the most things outside of the lake.
const TABLES_MAX: usize = 5;

/// How long a look at something outside of the lake may take: a person waits.
const LOOK_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let now = app.clock.now();
    let nodes = match app.job(&args.job) {
        Ok(job) => {
            let look = Look::new(app, args.when.params()?).await?;
            let mut nodes = Vec::new();
            let mut intervals = Vec::new();
            for grain in args.when.intervals(&job, now)? {
                intervals.push(look.covering(&job, grain).await?);
            }
            intervals.dedup();
            for interval in intervals {
                nodes.push(look.node(job.clone(), interval, 0, &mut HashSet::new()).await?);
            }
            nodes
        }
        Err(error) => match broken(app, &args.job)? {
            Some(node) => vec![node],
            None => return Err(error),
        },
    };
    if app.out.json {
        let mut documents: Vec<_> = nodes.iter().map(|node| node.json(now)).collect();
        // A day of a job by the hour has many runs.
        match documents.len() {
            1 => app.out.document(&documents.remove(0))?,
            _ => app.out.document(&json!({"runs": documents}))?,
        }
    } else {
        for node in nodes {
            app.out.data(node.text(now).as_bytes())?;
        }
    }
    Ok(ExitCode::from(DONE))
}

/// The reason of a job whose file cannot be used, when that is why it is not known.
fn broken(app: &App, name: &str) -> anyhow::Result<Option<Node>> {
    let (project, problems) = app.loaded()?;
    let others = crate::serve::problems_of_others(project, problems);
    let found =
        others.into_iter().find(|(job, _)| job.as_str() == name || job.as_str().rsplit('/').next() == Some(name));
    Ok(found.map(|(job, problem)| Node {
        name: job.to_string(),
        ds: String::new(),
        hour: None,
        reason: Reason::FileBroken { problem },
        because: Vec::new(),
    }))
}

/// What facts are read from.
struct Look<'a> {
    app: &'a App,
    project: Arc<Project>,
    planner: ProjectPlanner,
    given: Given,
    looker: Looker,
    runs: Arc<Runs>,
    lake: Lake,
    partitions: Arc<dyn Partitions>,
    jobs: Vec<JobRow>,
    schedulers: usize,
    /// What the living processes take that carry runs out.
    workers: Vec<Takes>,
}

impl<'a> Look<'a> {
    async fn new(app: &'a App, params: Map<String, Value>) -> anyhow::Result<Self> {
        let project = Arc::clone(app.project_as_it_is()?);
        let runs = Arc::clone(app.run_store().await?);
        let lake = app.lake().await?.clone();
        lake.catch_up().await?;
        let live = LiveProject::new(project.clone());
        let looker = Looker::new(app, live.clone())?;
        let planner = ProjectPlanner { project: live, env: app.env_name()?.to_string() };
        let (jobs, schedulers) = (runs.jobs().await?, runs.schedulers().await?.len());
        let works = |process: &ProcessRow| matches!(process.role, Role::Scheduler | Role::Worker);
        let workers = runs.processes().await?.into_iter().filter(works).map(|process| process.takes).collect();
        let partitions = app.partitions().await?;
        let given = Given { params, source: None };
        Ok(Self { app, project, planner, given, looker, runs, lake, partitions, jobs, schedulers, workers })
    }

    /// The reason of one run, with what stands behind it.
    fn node<'l>(
        &'l self,
        job: Arc<Job>,
        interval: Interval,
        depth: usize,
        seen: &'l mut HashSet<(JobName, Interval)>,
    ) -> BoxFuture<'l, anyhow::Result<Node>> {
        Box::pin(async move {
            let node = |reason, because| Node {
                name: job.name.to_string(),
                ds: job.ds(&interval).to_string(),
                hour: job.partitions(&interval).last().and_then(|key| key.hour),
                reason,
                because,
            };
            if depth >= DEPTH_MAX || !seen.insert((job.name.clone(), interval)) {
                return Ok(node(Reason::More, Vec::new()));
            }
            let (facts, missing) = self.facts(&job, interval).await?;
            let reason = conclude(&facts);
            let mut because = Vec::new();
            // What was never begun may lack its inputs as well, but that is not why it was not begun.
            if matches!(reason, Reason::Waits { .. } | Reason::Piece { paused: false, .. })
                || is_blocked(&reason, facts.run.as_ref())
            {
                for (partition, _) in missing.into_iter().take(TABLES_MAX) {
                    because.push(self.missing(partition, depth + 1, seen).await?);
                }
            }
            because.extend(facts.outside.iter().map(Sight::node));
            Ok(node(reason, because))
        })
    }

    /// The reason of a partition that is missing.
    async fn missing(
        &self,
        partition: Partition,
        depth: usize,
        seen: &mut HashSet<(JobName, Interval)>,
    ) -> anyhow::Result<Node> {
        let leaf = |name: String, reason| Node {
            name,
            ds: partition.key.to_string(),
            hour: None,
            reason,
            because: Vec::new(),
        };
        let Some(maker) = self.project.maker(partition.table.as_str()) else {
            let (project, problems) = self.app.loaded()?;
            let broken = crate::serve::problems_of_others(project, problems);
            let is_its = |job: &JobName| job.as_str().rsplit('/').next() == Some(partition.table.as_str());
            return Ok(match broken.into_iter().find(|(job, _)| is_its(job)) {
                Some((job, problem)) => leaf(job.to_string(), Reason::FileBroken { problem }),
                None => leaf(partition.table.to_string(), Reason::NoMaker),
            });
        };
        let Some(grain) = maker.interval_of(partition.key.ds, partition.key.hour) else {
            return Ok(leaf(partition.table.to_string(), Reason::NoMaker));
        };
        let interval = self.covering(maker, grain).await?;
        self.node(Arc::clone(maker), interval, depth, seen).await
    }

    /// What the run covers that made a grain, or is to make it.
    async fn covering(&self, job: &Job, grain: Interval) -> anyhow::Result<Interval> {
        let run = self.runs.covering(&job.name, &grain).await?;
        Ok(run.unwrap_or_else(|| job.scheduled_interval(grain)))
    }

    /// What is known of a run, and the first missing partition of each table that it waits for.
    async fn facts(&self, job: &Arc<Job>, interval: Interval) -> anyhow::Result<(Facts, Vec<(Partition, usize)>)> {
        let request = Request { job: job.name.clone(), interval };
        let row = self.runs.find(&[(job.name.clone(), interval)]).await.map_err(Carried::from)?.into_iter().next();
        let row = row.flatten();
        let detail = match &row {
            Some(row) => self.runs.show(&row.id).await.map_err(Carried::from)?,
            None => None,
        };
        let (missing, outside) = self.missing_inputs(&request).await?;
        let outside = if row.as_ref().is_some_and(looks_outside) { self.sights(outside).await } else { Vec::new() };
        let active = RunFilter {
            job: Some(job.name.clone()),
            state: Some(State::Running),
            live: true,
            limit: usize::MAX,
            ..RunFilter::default()
        };
        let active = self.runs.list(&active).await.map_err(Carried::from)?.len();
        let known = self.jobs.iter().find(|known| known.name == job.name);
        let wait_timeout = job.spec.wait_timeout.and_then(|t| TimeDelta::from_std(t.duration()).ok());
        let demand = self.runs.open_demand(&request).await?;
        let backfill = match demand.as_ref().and_then(|demand| demand.backfill) {
            Some(id) => self.runs.backfill(id).await?.map(|row| (id, row.state == BackfillState::Paused)),
            None => None,
        };
        let facts = Facts {
            now: self.app.clock.now(),
            due: due(job, &interval),
            paused_at: known.and_then(|known| known.paused_at),
            cursor: known.and_then(|known| known.clock.cursor),
            schedulers: self.schedulers,
            stores: job.table.is_some() && !job.is_view(),
            published: self.published(job, &interval).await?,
            asked_at: demand.map(|demand| demand.made_at),
            backfill,
            task: detail.as_ref().and_then(running_task),
            retry_at: detail.as_ref().and_then(|detail| retry_at(job, detail)),
            wait_until: row.as_ref().and_then(|row| wait_timeout.and_then(|t| row.created_at.checked_add_signed(t))),
            run: row,
            missing: missing.iter().map(|(partition, n)| (partition.table.to_string(), *n)).collect(),
            outside,
            active,
            active_max: job.spec.max_active_runs.map(|n| n as usize),
            placement: self.placement(&request),
            workers: self.workers.clone(),
            full_pool: self.full_pool(&request, detail.as_ref()).await?,
        };
        Ok((facts, missing))
    }

    /// Where a run may be carried out.
    fn placement(&self, request: &Request) -> Placement {
        let id = "why".parse().expect("a plain word is an id");
        self.planner.plan(request, &id, &self.given).map(|shape| shape.placement()).unwrap_or_default()
    }

    /// The pool that lacks the slots which a task of the run needs next.
    async fn full_pool(&self, request: &Request, detail: Option<&RunDetail>) -> anyhow::Result<Option<PoolRow>> {
        let Some(detail) = detail.filter(|detail| detail.run.finished_at.is_none()) else { return Ok(None) };
        let Ok(shape) = self.planner.plan(request, &detail.run.id, &self.given) else { return Ok(None) };
        let is_over = |name: &TaskName| detail.tasks.iter().any(|task| task.name == *name && task.state.is_final());
        let next =
            shape.tasks.iter().filter(|task| task.kind != TaskKind::Wait && !is_over(&task.name)).find_map(|task| {
                let options = &task.options;
                options.pool.as_ref().map(|pool| (pool, options.slots))
            });
        let Some((name, slots)) = next else { return Ok(None) };
        let lacks = |pool: &PoolRow| pool.name == *name && pool.taken() + slots.min(pool.slots) > pool.slots;
        Ok(self.runs.pools().await?.into_iter().find(lacks))
    }

    /// When a run's partitions were published, if all are; by which run.
    async fn published(
        &self,
        job: &Job,
        interval: &Interval,
    ) -> anyhow::Result<Option<(chrono::DateTime<Utc>, Option<String>)>> {
        let keys: Vec<PartitionKey> = job.partitions(interval);
        let Some(last) = keys.last().filter(|_| !job.is_view()) else { return Ok(None) };
        let Some(table) = self.lake.table(job.table_name(), At::Now).await? else { return Ok(None) };
        if self.lake.published(job.table_name(), &keys).await?.len() < keys.len() {
            return Ok(None);
        }
        let newest = self.lake.history(table.id, Some(last), 1).await?.into_iter().next();
        Ok(newest.map(|version| (version.info.published_at, version.run_id.filter(|run| !run.is_empty()))))
    }

    /// Looks at what is outside of the lake: what whoever has the run found last is kept nowhere. What is not there comes first.
    async fn sights(&self, outside: Vec<OutsideOn>) -> Vec<Sight> {
        let mut sights = Vec::new();
        for wait in outside.into_iter().take(TABLES_MAX) {
            let found = tokio::time::timeout(LOOK_WITHIN, self.looker.look(&wait.question)).await;
            let found = found.unwrap_or_else(|_| {
                let message = format!("there was no answer within {} s", LOOK_WITHIN.as_secs());
                Err(Failure::new(ErrorKind::Unavailable, "FLOW_LOOK_TIMEOUT", message))
            });
            let every = Span::from_secs(wait.every.as_secs());
            sights.push(Sight { what: wait.question.to_string(), found, every });
        }
        sights.sort_by_key(Sight::is_there);
        sights
    }

    /// The first partition of each table that a run waits for and nobody has published, with how many are missing; and what it
    /// waits for outside of the lake.
    async fn missing_inputs(&self, request: &Request) -> anyhow::Result<(Vec<(Partition, usize)>, Vec<OutsideOn>)> {
        let id = "why".parse().expect("a plain word is an id");
        let Ok(shape) = self.planner.plan(request, &id, &self.given) else { return Ok((Vec::new(), Vec::new())) };
        let mut missing = Vec::new();
        for wait in &shape.waits {
            let wanted: Vec<Partition> = RunShape::partitions_of(wait).collect();
            // In an environment another lake may have what this one lacks.
            let (published, _) = self.partitions.published(&wanted).await.map_err(Carried::from)?;
            let published: HashSet<Partition> = published.into_iter().collect();
            let mut lacks = wanted.into_iter().filter(|partition| !published.contains(partition));
            if let Some(first) = lacks.next() {
                missing.push((first, 1 + lacks.count()));
            }
        }
        Ok((missing, shape.outside))
    }
}

/// A run that gave up waiting failed for what it missed.
fn is_blocked(reason: &Reason, run: Option<&RunRow>) -> bool {
    matches!(reason, Reason::Ended { .. }) && run.is_some_and(gave_up)
}

fn gave_up(run: &RunRow) -> bool {
    run.state == State::Failed && run.failure.as_ref().is_some_and(|failure| failure.code == "FLOW_BLOCKED")
}

/// True when what is outside of the lake may be why a run stands as it does: it waits, or gave up waiting.
fn looks_outside(run: &RunRow) -> bool {
    gave_up(run) || run.is_held() && !matches!(run.state, State::Running | State::Retry)
}

/// When the schedule asks for the run of an interval: at its first tick once the interval is over.
fn due(job: &Job, interval: &Interval) -> Due {
    let Some(schedule) = &job.schedule else { return Due::ByHand };
    if schedule.is_after_waits() {
        return Due::At(interval.end());
    }
    let tick = schedule.next_after(job.zone, interval.end() - TimeDelta::microseconds(1));
    tick.map_or(Due::NoTick, Due::At)
}

fn running_task(detail: &RunDetail) -> Option<String> {
    detail.tasks.iter().find(|task| task.state == State::Running).map(|task| task.name.to_string())
}

/// When a run that failed is tried again; the pause is up to a fifth longer or shorter.
fn retry_at(job: &Job, detail: &RunDetail) -> Option<chrono::DateTime<Utc>> {
    let policy = job.spec.retries.policy();
    let failures = detail.attempts.iter().rev().take_while(|a| a.state == State::Failed).count();
    let last = detail.attempts.last()?.finished_at?;
    let pause = policy.pause(u32::try_from(failures).unwrap_or(u32::MAX), 0)?;
    last.checked_add_signed(TimeDelta::from_std(pause).ok()?)
}
