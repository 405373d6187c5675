//! What the executor must know of a run to order it among others.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use headworks_domain::{Ds, Interval, JobName, PartitionKey, RunId, TableName, TaskName};
use serde_json::{Map, Value};

use super::{
    placement::{DEFAULT_POOL, Placement},
    record::Partition,
};
use crate::{
    machine::{Failure, RetryPolicy, Run, TaskShape},
    plan::{OutsideOn, RunPlan, TaskKind, TaskPlan, WaitOn},
    task,
};

/// One run that a command wants: a job over an interval of whole grains.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// The job.
    pub job: JobName,
    /// What the run covers.
    pub interval: Interval,
}

/// What a run is made with, beside its job and interval.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Value>,
    /// The text of the job that the run was planned with before, for one that is taken over; else the newest serves.
    pub source: Option<String>,
}

/// Plans runs. Called once for each run, before it is claimed.
pub trait Planner: Send + Sync + 'static {
    /// Plans a run under this id. Errors: what stands in the job file's way, for a person.
    fn plan(&self, request: &Request, run_id: &RunId, given: &Given) -> Result<RunShape, Failure>;

    /// The shape of a run that could not be planned, so that it can be kept as failed.
    fn unplanned(&self, request: &Request, failure: Failure) -> RunShape;

    /// How many slots the pools have that tasks name, as the newest settings say. Asked at every step.
    fn pools(&self) -> BTreeMap<String, usize> {
        BTreeMap::new()
    }
}

/// A planned run, as far as the executor looks into it.
#[derive(Debug, Clone)]
pub struct RunShape {
    /// The job.
    pub job: JobName,
    /// The version of the job that was planned.
    pub job_version: String,
    /// The table it publishes to; none for jobs of tasks.
    pub table: Option<TableName>,
    /// What it covers.
    pub interval: Interval,
    /// The day of its last partition.
    pub ds: Ds,
    /// The partitions it publishes, in order.
    pub partitions: Vec<PartitionKey>,
    /// What must be published first.
    pub waits: Vec<WaitOn>,
    /// What must be there first outside of the lake.
    pub outside: Vec<OutsideOn>,
    /// Its tasks; each stands after those it needs.
    pub tasks: Vec<TaskPlan>,
    /// What bounds it.
    pub limits: RunLimits,
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Value>,
    /// Why it could not be planned: then its first task fails with this.
    pub unplanned: Option<Failure>,
    /// Everything else, for the runner; tests of the executor have none.
    pub plan: Option<Arc<RunPlan>>,
}

/// What bounds a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunLimits {
    /// How transient failures are tried again.
    pub retry: RetryPolicy,
    /// The longest that one attempt may take.
    pub timeout: Option<Duration>,
    /// How many runs of the job may be at work at once.
    pub active_runs_max: Option<usize>,
    /// How long a run of the schedule waits for its inputs; for ever unless given.
    pub wait_timeout: Option<Duration>,
    /// Higher goes first.
    pub priority: i32,
    /// The zone in which it must be carried out.
    pub zone: Option<String>,
}

impl RunShape {
    /// The partitions that a wait names.
    pub fn partitions_of(wait: &WaitOn) -> impl Iterator<Item = Partition> + '_ {
        wait.partitions.iter().map(|key| Partition::new(wait.table.clone(), key.clone()))
    }

    /// The partitions that it publishes; none of a job without a table.
    pub fn own_partitions(&self) -> impl Iterator<Item = Partition> + '_ {
        let of = |table: &TableName| -> Vec<Partition> {
            self.partitions.iter().map(|key| Partition::new(table.clone(), key.clone())).collect()
        };
        self.table.as_ref().map(of).unwrap_or_default().into_iter()
    }

    /// Where it may be carried out. One that could not be planned fails wherever it is.
    pub fn placement(&self) -> Placement {
        if self.unplanned.is_some() {
            return Placement::default();
        }
        let pool = |task: &TaskPlan| task.options.pool.clone().unwrap_or_else(|| DEFAULT_POOL.to_owned());
        let pools = self.tasks.iter().filter(|task| task.kind != TaskKind::Wait).map(pool).collect();
        Placement { zone: self.limits.zone.clone(), pools }
    }

    /// True when tasks of it take slots of named pools.
    pub(crate) fn is_pooled(&self) -> bool {
        self.tasks.iter().any(|task| task.options.pool.is_some())
    }

    /// The run's tasks and waits for the state machine. `seed` decides the jitter of its retries.
    pub(crate) fn machine(&self, seed: u64) -> Run {
        let places: HashMap<&TaskName, usize> = self.tasks.iter().enumerate().map(|(n, t)| (&t.name, n)).collect();
        let shape = |task: &TaskPlan| TaskShape {
            name: task.name.clone(),
            waits: task.kind == TaskKind::Wait,
            after: task.after.iter().filter_map(|name| places.get(name).copied()).collect(),
            rule: task.options.rule,
            allow_failure: task.options.allow_failure,
            retry: task.options.retry,
            alone: task.options.alone,
            each: task.options.each.is_some(),
        };
        Run::new(self.tasks.iter().map(shape).collect(), self.limits.retry, seed)
    }

    /// The items of a task that runs once for each, by what the tasks before it gave.
    pub(crate) fn items(&self, task: usize, outputs: &Map<String, Value>) -> Result<Vec<Value>, Failure> {
        let plan = &self.tasks[task];
        let Some(each) = &plan.options.each else { return Ok(Vec::new()) };
        task::items(&plan.name, each, self.plan.as_ref().and_then(|plan| plan.macros.as_ref()), outputs)
    }

    /// The longest that one attempt of a task may take.
    pub(crate) fn timeout(&self, task: usize) -> Option<Duration> {
        self.tasks[task].options.timeout.or(self.limits.timeout)
    }

    /// The wait for partitions that a task stands for.
    pub(crate) fn wait_of(&self, task: usize) -> Option<&WaitOn> {
        let name = &self.tasks[task].name;
        self.waits.iter().find(|w| w.task == *name)
    }

    /// The wait for something outside of the lake that a task stands for.
    pub(crate) fn outside_of(&self, task: usize) -> Option<&OutsideOn> {
        let name = &self.tasks[task].name;
        self.outside.iter().find(|w| w.task == *name)
    }
}
