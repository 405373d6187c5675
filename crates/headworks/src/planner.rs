//! Plans the runs that a command asks for, from the project's job files.

use std::{collections::BTreeMap, sync::Arc};

use headworks_domain::{ErrorKind, JobName, Problem, RunId, TaskName};
use headworks_flow::{
    Failure, Job, RunContext, TaskKind, TaskOptions, TaskPlan,
    exec::{Given, Planner, Request, RunLimits, RunShape},
};
use serde_json::Map;

use crate::live::LiveProject;

/// Plans runs of one project.
pub(crate) struct ProjectPlanner {
    pub(crate) project: LiveProject,
    pub(crate) env: String,
}

impl Planner for ProjectPlanner {
    fn plan(&self, request: &Request, run_id: &RunId, given: &Given) -> Result<RunShape, Failure> {
        let project = self.project.current();
        let job = project.jobs.get(&request.job).ok_or_else(|| unknown(&request.job))?;
        let earlier = given.source.as_ref().and_then(|source| project.earlier(job, source.clone()));
        let job = earlier.as_ref().unwrap_or(job);
        let context = RunContext { run_id: run_id.clone(), env: self.env.clone(), params: given.params.clone() };
        let plan = job
            .plan_run(&project, request.interval, &context)
            .map_err(|problems: Vec<Problem>| failure(&problems, &format!("job `{}` cannot be planned", job.name)))?;
        Ok(RunShape {
            job: job.name.clone(),
            job_version: job.version.clone(),
            table: job.table.clone(),
            interval: plan.interval,
            ds: job.ds(&plan.interval),
            partitions: plan.partitions.clone(),
            waits: plan.waits.clone(),
            outside: plan.outside.clone(),
            tasks: plan.tasks.clone(),
            limits: limits(job),
            params: given.params.clone(),
            unplanned: None,
            plan: Some(Arc::new(plan)),
        })
    }

    fn pools(&self) -> BTreeMap<String, usize> {
        let project = self.project.current();
        project.config.pools.iter().map(|(name, slots)| (name.clone(), *slots as usize)).collect()
    }

    fn unplanned(&self, request: &Request, failure: Failure) -> RunShape {
        let project = self.project.current();
        let job = project.jobs.get(&request.job);
        let stage: TaskName = "stage".parse().expect("a plain word is a name");
        RunShape {
            job: request.job.clone(),
            job_version: job.map(|job| job.version.clone()).unwrap_or_default(),
            table: job.and_then(|job| job.table.clone()),
            interval: request.interval,
            ds: job.map_or_else(|| request.interval.start().date_naive().into(), |job| job.ds(&request.interval)),
            partitions: Vec::new(),
            waits: Vec::new(),
            outside: Vec::new(),
            tasks: vec![TaskPlan {
                name: stage,
                kind: TaskKind::Stage,
                after: Vec::new(),
                options: TaskOptions::default(),
            }],
            limits: job.map(|job| limits(job)).unwrap_or_default(),
            params: Map::new(),
            unplanned: Some(failure),
            plan: None,
        }
    }
}

fn limits(job: &Job) -> RunLimits {
    RunLimits {
        retry: job.spec.retries.policy(),
        timeout: job.spec.timeout.map(|t| t.duration()),
        active_runs_max: job.spec.max_active_runs.map(|n| n as usize),
        wait_timeout: job.spec.wait_timeout.map(|t| t.duration()),
        priority: job.spec.priority,
        zone: job.spec.zone.clone(),
    }
}

fn unknown(job: &JobName) -> Failure {
    Failure::new(ErrorKind::NotFound, "JOB_NOT_FOUND", format!("there is no job `{job}`"))
        .with_hint("its file is gone or has errors: see headworks validate")
}

/// Tells the problems of a job file as one failure, each with its place and line.
pub(crate) fn failure(problems: &[Problem], what: &str) -> Failure {
    let mut message = what.to_owned();
    for problem in problems {
        let text = problem.to_string();
        message.push('\n');
        message.push_str(&text);
    }
    Failure::new(ErrorKind::Invalid, "JOB_INVALID", message)
        .with_hint("mend the file; headworks validate shows all problems")
}
