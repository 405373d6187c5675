//! What one run will do: its partitions, waits, SQL and tasks. Made once, before the run starts; it does nothing by itself.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use headworks_domain::{Ds, Interval, PartitionKey, Problem, RunId, TableName, TaskName};
use serde_json::Value;

use crate::{
    job::{Job, JobBody},
    machine::{RetryPolicy, Rule},
    outside::{self, Question},
    project::Project,
    render::Rendered,
    spec::Kind,
    task::{TaskAction, TaskSpec},
    waits,
};

/// What the caller knows about a run and the job file does not.
#[derive(Debug, Clone)]
pub struct RunContext {
    /// The run's id, for `{{ run_id }}`.
    pub run_id: RunId,
    /// The environment's name, for `{{ env }}`.
    pub env: String,
    /// Values that replace those of the header's `params`.
    pub params: serde_json::Map<String, Value>,
}

/// Everything that a run of a job over one interval does.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// The job as it was when the run was planned.
    pub job: Arc<Job>,
    /// The stretch of time that the run covers: whole grains of the job.
    pub interval: Interval,
    /// The partitions that the run writes, in their order: one for usual runs. Of a job with `event_type`, their days.
    pub partitions: Vec<PartitionKey>,
    /// What must be published first; at most one entry per table.
    pub waits: Vec<WaitOn>,
    /// What must be there first outside of the lake.
    pub outside: Vec<OutsideOn>,
    /// Tables of which the SQL reads the newest partition, without waiting.
    pub reads_latest: Vec<TableName>,
    /// The final SQL; none for imports and jobs with `tasks:`.
    pub sql: Option<Rendered>,
    /// The steps; each stands after those it depends on.
    pub tasks: Vec<TaskPlan>,
    /// What the texts of `tasks:` may name; only such jobs have them.
    pub(crate) macros: Option<minijinja::Value>,
    /// What the caller gave instead of the header's `params`: checks are rendered when they run, with the same values.
    pub params: serde_json::Map<String, Value>,
}

/// A run's wait for partitions of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitOn {
    /// The task that stands for it, `wait_<table>`.
    pub task: TaskName,
    /// The table.
    pub table: TableName,
    /// Each of these must be published, in their order. May be empty: then it is satisfied unless `upto` says more.
    pub partitions: Vec<PartitionKey>,
    /// Every partition of the table from its first published one up to and including this `ds` is read: the days between
    /// must be published too. Set only when the table's first day is not known from its job's `start`.
    pub upto: Option<Ds>,
}

/// A run's wait for something outside of the lake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideOn {
    /// The task that stands for it, as `wait_file`.
    pub task: TaskName,
    /// What is asked, with its macros filled in; it holds no secrets.
    pub question: Arc<Question>,
    /// The least pause between two looks.
    pub every: Duration,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPlan {
    /// Its name, unique in the run.
    pub name: TaskName,
    /// What it does.
    pub kind: TaskKind,
    /// The steps before it, by whose ends its rule decides.
    pub after: Vec<TaskName>,
    /// When it runs, and what bounds it.
    pub options: TaskOptions,
}

/// When a step runs, and what bounds it. Where nothing is given, the run's own limits hold.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskOptions {
    /// When it runs, by the ends of the steps before it.
    pub rule: Rule,
    /// True when its failure fails neither the run nor what comes after it.
    pub allow_failure: bool,
    /// How it is tried again.
    pub retry: Option<RetryPolicy>,
    /// The longest that one attempt may take.
    pub timeout: Option<Duration>,
    /// The pool whose slots it takes.
    pub pool: Option<String>,
    /// How many of them.
    pub slots: usize,
    /// Higher goes first.
    pub priority: Option<i32>,
    /// True for the tasks of a job file: each is attempted and logged by itself, and its runner minds its timeout.
    pub alone: bool,
    /// The list that it goes through, once for each item.
    pub each: Option<Each>,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self {
            rule: Rule::default(),
            allow_failure: false,
            retry: None,
            timeout: None,
            pool: None,
            slots: 1,
            priority: None,
            alone: false,
            each: None,
        }
    }
}

/// The list that a step goes through.
#[derive(Debug, Clone, PartialEq)]
pub enum Each {
    /// These items.
    Items(Vec<Value>),
    /// What this expression over the outputs of earlier steps gives.
    Later(String),
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// Waits for partitions of another table, for earlier ones of its own, or for something outside of the lake.
    Wait,
    /// Computes or imports the result and writes it aside.
    Stage,
    /// Checks the staged result.
    Check,
    /// Puts the staged result in place of the partitions.
    Publish,
    /// Sees that the view of the newest partition is there.
    Latest,
    /// Runs a command.
    Shell,
    /// Runs a Python script.
    Python,
    /// Calls an HTTP address.
    Http,
    /// Runs a query for its few rows.
    Sql,
}

impl TaskKind {
    /// A short word for it, as `stage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Stage => "stage",
            Self::Check => "check",
            Self::Publish => "publish",
            Self::Latest => "latest",
            Self::Shell => "shell",
            Self::Python => "python",
            Self::Http => "http",
            Self::Sql => "sql",
        }
    }
}

impl Job {
    /// Plans a run over `interval`, which must be made of whole grains (as [`Job::intervals`] gives them).
    ///
    /// Errors: problems of the SQL or of waits that this interval or these parameters bring out, each at its line of the job file.
    pub fn plan_run(
        self: &Arc<Self>,
        project: &Project,
        interval: Interval,
        context: &RunContext,
    ) -> Result<RunPlan, Vec<Problem>> {
        let (sql, refs, reads_latest) = match &self.body {
            JobBody::Import(_) | JobBody::Tasks => (None, self.header_waits(), Vec::new()),
            JobBody::Sql(body) => {
                let rendered = self.render(project, body, interval, context)?;
                let mut refs = self.header_waits();
                refs.extend(rendered.waits.iter().cloned());
                (Some(rendered.rendered), refs, rendered.latest)
            }
        };
        let waits = waits::resolve(self, project, &refs, interval);
        let macros = || self.macros(&project.config.vars, interval, context);
        let outside = match self.outside_waits().next() {
            None => Vec::new(),
            Some(_) => outside::resolve(self, &waits, &macros())?,
        };
        let names: Vec<TaskName> =
            waits.iter().map(|w| &w.task).chain(outside.iter().map(|w| &w.task)).cloned().collect();
        let macros = (self.body == JobBody::Tasks).then(macros);
        let tasks = match &macros {
            None => table_tasks(self, names),
            Some(macros) => own_tasks(self, &names, macros)?,
        };
        Ok(RunPlan {
            job: Arc::clone(self),
            interval,
            partitions: self.partitions(&interval),
            tasks,
            waits,
            outside,
            reads_latest,
            sql,
            macros,
            params: context.params.clone(),
        })
    }
}

/// Lays out the steps: waits, then stage, check, publish, latest. A view has nothing to stage or check.
fn table_tasks(job: &Job, waits: Vec<TaskName>) -> Vec<TaskPlan> {
    let mut tasks = wait_tasks(&waits);
    let mut after = waits;
    let steps: &[TaskKind] = match (job.spec.kind, job.has_checks()) {
        (Kind::View, _) => &[TaskKind::Publish],
        (_, true) => &[TaskKind::Stage, TaskKind::Check, TaskKind::Publish, TaskKind::Latest],
        (_, false) => &[TaskKind::Stage, TaskKind::Publish, TaskKind::Latest],
    };
    for kind in steps {
        let name: TaskName = kind.as_str().parse().expect("step names are names");
        let options = TaskOptions { pool: job.spec.pool.clone(), ..TaskOptions::default() };
        let after = std::mem::replace(&mut after, vec![name.clone()]);
        tasks.push(TaskPlan { name, kind: *kind, after, options });
    }
    tasks
}

/// Lays out the steps of a job with `tasks:`: waits, then the tasks, each after those it names, or after the waits.
fn own_tasks(job: &Job, waits: &[TaskName], macros: &minijinja::Value) -> Result<Vec<TaskPlan>, Vec<Problem>> {
    let mut tasks = wait_tasks(waits);
    let mut problems = Vec::new();
    for (name, task) in in_order(job) {
        let each = task.each.as_ref().map(|each| each.planned(macros)).transpose().unwrap_or_else(|(message, hint)| {
            problems.push(job.header_problem(&["tasks", name, "each"], message, Some(hint)));
            None
        });
        let own_name = |name: &str| -> TaskName { name.parse().expect("the names of tasks were checked") };
        let after = if task.after.is_empty() {
            waits.to_vec()
        } else {
            task.after.iter().map(|parent| own_name(parent)).collect()
        };
        let options = TaskOptions {
            rule: task.rule,
            allow_failure: task.allow_failure,
            retry: task.retries.map(|retries| retries.policy()),
            timeout: task.timeout.map(|timeout| timeout.duration()),
            pool: task.pool.clone().or_else(|| job.spec.pool.clone()),
            slots: task.slots.map_or(1, |slots| slots as usize),
            priority: task.priority,
            alone: true,
            each,
        };
        let kind = match &task.action {
            TaskAction::Shell(_) => TaskKind::Shell,
            TaskAction::Python(_) => TaskKind::Python,
            TaskAction::Http(_) => TaskKind::Http,
            TaskAction::Sql(_) => TaskKind::Sql,
        };
        tasks.push(TaskPlan { name: own_name(name), kind, after, options });
    }
    if problems.is_empty() { Ok(tasks) } else { Err(problems) }
}

fn wait_tasks(waits: &[TaskName]) -> Vec<TaskPlan> {
    let wait = |name: &TaskName| TaskPlan {
        name: name.clone(),
        kind: TaskKind::Wait,
        after: Vec::new(),
        options: TaskOptions::default(),
    };
    waits.iter().map(wait).collect()
}

/// The tasks of a job file, each after those it names and else as in the file. They stand in no circle.
fn in_order(job: &Job) -> Vec<(&str, &TaskSpec)> {
    let mut left: Vec<(&str, &TaskSpec)> = job.spec.tasks.iter().collect();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let (ready, waiting): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|(_, task)| task.after.iter().all(|parent| placed.contains(parent.as_str())));
        left = if ready.is_empty() { Vec::new() } else { waiting };
        placed.extend(ready.iter().map(|(name, _)| *name));
        order.extend(ready);
    }
    order
}

#[cfg(test)]
mod tests {
    use headworks_domain::Severity;

    use crate::{check, jobfile};

    use super::*;

    /// A project of jobs given by their names and texts.
    fn project(jobs: &[(&str, &str)]) -> Project {
        let mut project = Project::default();
        let read = |(name, text): &(&str, &str)| {
            jobfile::read(format!("jobs/{name}.sql"), (*text).to_owned(), name, chrono_tz::UTC)
        };
        let mut problems = Vec::new();
        check::assemble(&mut project, jobs.iter().map(read).collect(), &mut problems);
        let errors: Vec<_> =
            problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string).collect();
        assert_eq!(errors, Vec::<String>::new());
        project
    }

    fn plan(project: &Project, job: &str, day: &str, hour: Option<u8>) -> RunPlan {
        let job = project.job(job).unwrap();
        let interval = job.interval_of(day.parse().unwrap(), hour).unwrap();
        let context =
            RunContext { run_id: "r".parse().unwrap(), env: "dev".to_owned(), params: serde_json::Map::new() };
        job.plan_run(project, interval, &context).unwrap()
    }

    /// Shows what a run waits for: the first and last partition of each table and how many there are.
    fn check(project: &Project, job: &str, day: &str, hour: Option<u8>, expected: &[&str]) {
        let shown: Vec<String> = plan(project, job, day, hour)
            .waits
            .iter()
            .map(|w| {
                let ends = match &w.partitions[..] {
                    [] => "none".to_owned(),
                    [only] => only.to_string(),
                    [first, .., last] => format!("{first} to {last} ({})", w.partitions.len()),
                };
                let upto = w.upto.map_or(String::new(), |ds| format!(", all up to {ds}"));
                format!("{}: {ends}{upto}", w.task)
            })
            .collect();
        assert_eq!(shown, expected, "{job} on {day}");
    }

    #[test]
    fn a_run_over_several_days_does_not_wait_for_itself() {
        let project = project(&[("d", "/* job\nschedule: '0 2 * * 1-5'\nwait: [self@-1]\n*/ SELECT 1")]);
        let job = project.job("d").unwrap();
        let day = |text: &str| job.interval_of(text.parse().unwrap(), None).unwrap();
        // Friday to Sunday, as Monday's tick has it.
        let interval = Interval::new(day("2026-01-02").start(), day("2026-01-04").end()).unwrap();
        let context =
            RunContext { run_id: "r".parse().unwrap(), env: "dev".to_owned(), params: serde_json::Map::new() };
        let plan = job.plan_run(&project, interval, &context).unwrap();
        let keys: Vec<String> = plan.waits[0].partitions.iter().map(ToString::to_string).collect();
        assert_eq!((plan.partitions.len(), keys), (3, vec!["ds=2026-01-01".to_owned()]));
    }

    #[test]
    fn a_run_waits_for_the_partitions_it_touches() {
        let project = project(&[
            ("hourly", "/* job\nschedule: '@hourly'\nstart: 2013-01-01\n*/ SELECT 1"),
            (
                "daily",
                "/* job\ntimezone: America/New_York\nstart: 2013-01-01\nwait: [self@-1]\n*/ SELECT 1 FROM wait::hourly",
            ),
            ("utc", "/* job\n*/ SELECT 1 FROM wait::daily, wait::foreign"),
            (
                "byhour",
                "/* job\ngrain: hour\n*/ SELECT 1 FROM wait::utc a JOIN wait::utc@-1 b ON true JOIN wait::hourly@-1 c ON true",
            ),
            ("weekly", "/* job\ngrain: week\n*/ SELECT 1 FROM wait::utc"),
            (
                "seven",
                "/* job\nwait: [daily@-1, daily@-2, daily@-3, daily@-4, daily@-5, daily@-6]\ntimezone: America/New_York\n*/ SELECT 1 FROM wait::daily",
            ),
            (
                "all",
                "/* job\nwait: [{table: daily, upto: ds}, {table: utc, upto: ds}]\ntimezone: America/New_York\n*/ SELECT 1 FROM daily, utc",
            ),
        ]);
        check(
            &project,
            "daily",
            "2013-02-01",
            None,
            &["wait_daily: ds=2013-01-31", "wait_hourly: ds=2013-02-01/hour=05 to ds=2013-02-02/hour=04 (24)"],
        );
        check(
            &project,
            "daily",
            "2013-03-10",
            None,
            &["wait_daily: ds=2013-03-09", "wait_hourly: ds=2013-03-10/hour=05 to ds=2013-03-11/hour=03 (23)"],
        );
        check(
            &project,
            "daily",
            "2013-11-03",
            None,
            &["wait_daily: ds=2013-11-02", "wait_hourly: ds=2013-11-03/hour=04 to ds=2013-11-04/hour=04 (25)"],
        );
        check(
            &project,
            "daily",
            "2013-01-01",
            None,
            &["wait_daily: none", "wait_hourly: ds=2013-01-01/hour=05 to ds=2013-01-02/hour=04 (24)"],
        );
        // A day of UTC lies in two days of New York.
        check(
            &project,
            "utc",
            "2013-02-01",
            None,
            &["wait_daily: ds=2013-01-31 to ds=2013-02-01 (2)", "wait_foreign: ds=2013-02-01"],
        );
        check(
            &project,
            "byhour",
            "2013-02-01",
            Some(5),
            &["wait_utc: ds=2013-01-31 to ds=2013-02-01 (2)", "wait_hourly: ds=2013-02-01/hour=04"],
        );
        check(&project, "weekly", "2013-02-01", None, &["wait_utc: ds=2013-01-28 to ds=2013-02-03 (7)"]);
        check(&project, "seven", "2013-02-01", None, &["wait_daily: ds=2013-01-26 to ds=2013-02-01 (7)"]);
        check(&project, "seven", "2013-01-02", None, &["wait_daily: ds=2013-01-01 to ds=2013-01-02 (2)"]);
        check(
            &project,
            "all",
            "2013-01-10",
            None,
            &[
                "wait_daily: ds=2013-01-01 to ds=2013-01-10 (10)",
                "wait_utc: ds=2013-01-10 to ds=2013-01-11 (2), all up to 2013-01-11",
            ],
        );
    }

    #[test]
    fn the_steps_stand_in_a_line() {
        let steps = |project: &Project, job: &str| {
            let plan = plan(project, job, "2013-01-01", None);
            let shown = plan.tasks.iter().map(|t| {
                let after: Vec<&str> = t.after.iter().map(TaskName::as_str).collect();
                format!("{}<-{}", t.name, after.join(","))
            });
            shown.collect::<Vec<_>>().join(" ")
        };
        let project = project(&[
            ("a", "/* job\nchecks: [{name: full, row_count: {min: 1}}]\n*/ SELECT 1 FROM wait::x, wait::y, latest::z"),
            ("b", "/* job\n*/ SELECT 1"),
            ("v", "/* job\nkind: view\n*/ SELECT 1 FROM a"),
        ]);
        assert_eq!(
            steps(&project, "a"),
            "wait_x<- wait_y<- stage<-wait_x,wait_y check<-stage publish<-check latest<-publish"
        );
        assert_eq!(steps(&project, "b"), "stage<- publish<-stage latest<-publish");
        assert_eq!(steps(&project, "v"), "publish<-");
        let plan = plan(&project, "a", "2013-01-01", None);
        assert_eq!(plan.reads_latest, ["z".parse().unwrap()]);
        assert_eq!(plan.partitions.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ds=2013-01-01"]);
    }

    #[test]
    fn versions_follow_meaning() {
        let version = |text: &str| project(&[("a", text)]).job("a").unwrap().version.clone();
        let first = version("/* job\nowner: me # a comment\ndescription: x\n*/ SELECT 1");
        assert_eq!(first.len(), 16);
        assert_eq!(first, version("/* job\ndescription:   x\nowner: \"me\"\n*/\n\nSELECT 1  \n"));
        assert_ne!(first, version("/* job\nowner: me\ndescription: x\n*/ SELECT 2"));
        assert_ne!(first, version("/* job\nowner: you\ndescription: x\n*/ SELECT 1"));
    }

    #[test]
    fn downstream_comes_in_order() {
        let project = project(&[
            ("d", "/* job\n*/ SELECT 1 FROM wait::b, wait::c"),
            ("c", "/* job\n*/ SELECT 1 FROM wait::b"),
            ("b", "/* job\n*/ SELECT 1 FROM wait::a"),
            ("a", "/* job\nwait: [self@-1]\n*/ SELECT 1"),
            ("x", "/* job\n*/ SELECT 1"),
        ]);
        let shown: Vec<String> = project.downstream(&"a".parse().unwrap()).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["b", "c", "d"]);
    }
}
