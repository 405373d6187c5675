//! Plans the runs that a command asks for, from the project's job files.

use std::sync::Arc;

use headworks_domain::{ErrorKind, JobName, Problem, RunId};
use headworks_flow::{
    Failure, Job, Project, RunContext,
    exec::{Planner, Request, RunLimits, RunShape},
};
use serde_json::{Map, Value};

/// Plans runs of one project with the parameters of one command.
pub(crate) struct ProjectPlanner {
    pub(crate) project: Arc<Project>,
    pub(crate) env: String,
    pub(crate) params: Map<String, Value>,
}

impl Planner for ProjectPlanner {
    fn plan(&self, request: &Request, run_id: &RunId) -> Result<RunShape, Failure> {
        let job = self.project.jobs.get(&request.job).ok_or_else(|| unknown(&request.job))?;
        let context = RunContext { run_id: run_id.clone(), env: self.env.clone(), params: self.params.clone() };
        let plan = job
            .plan_run(&self.project, request.interval, &context)
            .map_err(|problems: Vec<Problem>| failure(&problems, &format!("job `{}` cannot be planned", job.name)))?;
        Ok(RunShape {
            job: job.name.clone(),
            job_version: job.version.clone(),
            table: job.table.clone(),
            interval: plan.interval,
            ds: job.ds(&plan.interval),
            partitions: plan.partitions.clone(),
            waits: plan.waits.clone(),
            tasks: plan.tasks.clone(),
            limits: limits(job),
            plan: Some(Arc::new(plan)),
        })
    }
}

fn limits(job: &Job) -> RunLimits {
    RunLimits {
        retry: job.spec.retries.policy(),
        timeout: job.spec.timeout.map(|t| t.duration()),
        active_runs_max: job.spec.max_active_runs.map(|n| n as usize),
        priority: job.spec.priority,
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
