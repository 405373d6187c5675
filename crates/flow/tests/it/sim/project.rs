//! The jobs of a simulation: real job texts, read by the real loader, in two versions of which the second is a change of files.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::{Arc, LazyLock, Mutex},
};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{ErrorKind, JobName, RunId};
use headworks_flow::{
    Failure, Project, RunContext, TaskKind, TaskOptions, TaskPlan,
    exec::{Given, Planner, Request, RunLimits, RunShape},
};

/// Instants near which simulations begin: changes of daylight saving time, the turn of a day, an ordinary hour.
const BASES: [(&str, &str); 6] = [
    ("2026-03-08T06:57:00Z", "America/New_York"),
    ("2026-11-01T05:56:30Z", "America/New_York"),
    ("2026-03-29T00:58:00Z", "Europe/Berlin"),
    ("2026-04-04T14:56:00Z", "Australia/Lord_Howe"),
    ("2026-06-10T23:57:30Z", "UTC"),
    ("2026-02-11T13:28:40Z", "Asia/Kolkata"),
];

/// The zone that some jobs name.
pub(super) const FAR: &str = "far";

pub(super) fn bases() -> usize {
    BASES.len()
}

/// Where a project begins, and how much of the past it has to catch up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) base: usize,
    pub(super) kind: usize,
    pub(super) days_back: i64,
}

pub(super) const KINDS: usize = 3;

/// Both versions of a project, and what was planned from them so far.
#[derive(Clone)]
pub(super) struct Projects {
    pub(super) versions: Versions,
    current: Arc<Mutex<usize>>,
    shapes: Shapes,
    /// False for a mutant: the limit of active runs is kept from the executor.
    pub(super) is_limited: bool,
}

type Versions = [Arc<Project>; 2];
type Shapes = Arc<Mutex<HashMap<(usize, Request), RunShape>>>;

/// Reading files and rendering SQL is the same for all seeds, and slow beside the rest.
static KNOWN: LazyLock<Mutex<HashMap<Plan, (Versions, Shapes)>>> = LazyLock::new(Mutex::default);

impl Plan {
    pub(super) fn instant(self) -> DateTime<Utc> {
        BASES[self.base].0.parse().unwrap()
    }

    pub(super) fn projects(self) -> Projects {
        let mut known = KNOWN.lock().unwrap();
        let (versions, shapes) =
            known.entry(self).or_insert_with(|| ([self.load(0), self.load(1)], Shapes::default())).clone();
        Projects { versions, current: Arc::default(), shapes, is_limited: true }
    }

    fn load(self, version: usize) -> Arc<Project> {
        let zone = BASES[self.base].1;
        let start = (self.instant() - TimeDelta::days(self.days_back)).date_naive();
        let dir = tempfile::tempdir().unwrap();
        let config = format!("[project]\nname = \"sim\"\ntimezone = \"{zone}\"\n[pools]\none = 1\ntwo = 2\n");
        fs::write(dir.path().join("headworks.toml"), config).unwrap();
        fs::create_dir(dir.path().join("jobs")).unwrap();
        for (name, header, sql) in jobs(self.kind, version) {
            let text = format!("/* job\n{}*/\n{sql}\n", header.replace("START", &start.to_string()));
            fs::write(dir.path().join(format!("jobs/{name}.sql")), text).unwrap();
        }
        let loaded = Project::load(dir.path());
        assert!(!loaded.has_errors(), "{:?}", loaded.problems);
        Arc::new(loaded.project)
    }
}

/// The jobs of a kind of project: name, header, SQL. The second version changes one and lacks another.
fn jobs(kind: usize, version: usize) -> Vec<(&'static str, &'static str, &'static str)> {
    let changed = if version == 0 { "SELECT 1 AS n" } else { "SELECT 2 AS n" };
    let mut jobs = match kind {
        // A chain without clocks behind one that has one, with a limit.
        0 => vec![
            ("clicks", "schedule: '@hourly'\ncatchup: all\nstart: START\nmax_active_runs: 2\n", changed),
            (
                "visits",
                "schedule: after waits\ngrain: hour\ncatchup: all\nstart: START\npriority: 5\npool: one\n",
                "SELECT n FROM wait::clicks WHERE ds = '{{ ds }}'",
            ),
            (
                "growing",
                "schedule: after waits\ngrain: hour\ncatchup: all\nstart: START\nwait: [self@-1]\nmax_active_runs: 1\n",
                "SELECT n FROM wait::visits WHERE ds = '{{ ds }}'",
            ),
        ],
        // Days in a zone of their own, above hours; one whose missed ticks are none of its business.
        1 => vec![
            ("orders", "schedule: '2 * * * *'\ngrain: hour\ncatchup: all\nstart: START\npool: two\n", changed),
            (
                "daily",
                "schedule: '0 2 * * *'\ncatchup: all\nstart: START\nmax_active_runs: 1\n",
                "SELECT n FROM wait::orders WHERE ds = '{{ ds }}'",
            ),
            ("newest", "schedule: every 30 minutes\ngrain: hour\npool: two\n", "SELECT 1 AS n"),
            ("lately", "schedule: '59 * * * *'\ngrain: hour\ncatchup: none\nzone: far\n", "SELECT 1 AS n"),
        ],
        // What happens when runs of a job meet; one that waits for files.
        _ => vec![
            (
                "base",
                "schedule: '58 * * * *'\ngrain: hour\ncatchup: all\nstart: START\nmax_active_runs: 3\nzone: far\nwait: [{file: 'in/{{ ts_hour }}', every: 5s}]\n",
                changed,
            ),
            (
                "skipper",
                "schedule: '@hourly'\ncatchup: all\nstart: START\noverlap: skip\n",
                "SELECT n FROM wait::base WHERE ds = '{{ ds }}'",
            ),
            (
                "hasty",
                "schedule: '59 * * * *'\ngrain: hour\ncatchup: all\nstart: START\noverlap: cancel_old\n",
                "SELECT n FROM wait::base WHERE ds = '{{ ds }}'",
            ),
        ],
    };
    jobs.push(("rare", "schedule: '@hourly'\ncatchup: latest\nstart: START\ntimeout: 20s\n", "SELECT 1 AS n"));
    if version == 1 {
        jobs.pop();
    }
    jobs
}

impl Projects {
    pub(super) fn current(&self) -> Arc<Project> {
        Arc::clone(&self.versions[*self.current.lock().unwrap()])
    }

    /// The files change.
    pub(super) fn set(&self, version: usize) {
        *self.current.lock().unwrap() = version;
    }

    /// The pool of a job's tasks, with its size.
    pub(super) fn pool(&self, job: &JobName) -> Option<(String, usize)> {
        let pool = self.versions[0].jobs.get(job)?.spec.pool.clone()?;
        let size = self.versions[0].config.pools[&pool];
        Some((pool, size as usize))
    }

    /// The zone in which a job's tasks must be at work.
    pub(super) fn zone(&self, job: &JobName) -> Option<String> {
        self.versions[0].jobs.get(job)?.spec.zone.clone()
    }

    /// The slots that all processes share.
    pub(super) fn slots(&self) -> BTreeMap<String, usize> {
        self.versions[0].slots().into_iter().map(|(name, slots)| (name, slots as usize)).collect()
    }

    /// How many runs of a job may be at work at once; not known while its file may be of either version.
    pub(super) fn limit(&self, job: &JobName) -> Option<usize> {
        self.versions[0].jobs.get(job).and_then(|job| job.spec.max_active_runs).map(|max| max as usize)
    }
}

impl Planner for Projects {
    fn plan(&self, request: &Request, run_id: &RunId, _: &Given) -> Result<RunShape, Failure> {
        let version = *self.current.lock().unwrap();
        let project = &self.versions[version];
        let Some(job) = project.jobs.get(&request.job) else {
            return Err(Failure::new(
                ErrorKind::NotFound,
                "JOB_NOT_FOUND",
                format!("there is no job `{}`", request.job),
            ));
        };
        let mut shapes = self.shapes.lock().unwrap();
        let key = (version, request.clone());
        if let Some(shape) = shapes.get(&key) {
            let mut shape = shape.clone();
            shape.limits.active_runs_max = shape.limits.active_runs_max.filter(|_| self.is_limited);
            return Ok(shape);
        }
        let context = RunContext { run_id: run_id.clone(), env: "sim".to_owned(), params: serde_json::Map::new() };
        let plan = job.plan_run(project, request.interval, &context).unwrap();
        let shape = RunShape {
            job: job.name.clone(),
            job_version: job.version.clone(),
            table: job.table.clone(),
            interval: plan.interval,
            ds: job.ds(&plan.interval),
            partitions: plan.partitions.clone(),
            waits: plan.waits.clone(),
            outside: plan.outside.clone(),
            tasks: plan.tasks.clone(),
            limits: RunLimits {
                retry: job.spec.retries.policy(),
                timeout: job.spec.timeout.map(|t| t.duration()),
                active_runs_max: job.spec.max_active_runs.map(|n| n as usize),
                wait_timeout: job.spec.wait_timeout.map(|t| t.duration()),
                priority: job.spec.priority,
                zone: job.spec.zone.clone(),
            },
            params: serde_json::Map::new(),
            unplanned: None,
            plan: None,
        };
        shapes.insert(key, shape.clone());
        drop(shapes);
        self.plan(request, run_id, &Given::default())
    }

    fn pools(&self) -> BTreeMap<String, usize> {
        self.versions[0].config.pools.iter().map(|(name, slots)| (name.clone(), *slots as usize)).collect()
    }

    fn unplanned(&self, request: &Request, failure: Failure) -> RunShape {
        RunShape {
            job: request.job.clone(),
            job_version: String::new(),
            table: request.job.as_str().parse().ok(),
            interval: request.interval,
            ds: request.interval.start().date_naive().into(),
            partitions: Vec::new(),
            waits: Vec::new(),
            outside: Vec::new(),
            tasks: vec![TaskPlan {
                name: "stage".parse().unwrap(),
                kind: TaskKind::Stage,
                after: Vec::new(),
                options: TaskOptions::default(),
            }],
            limits: RunLimits::default(),
            params: serde_json::Map::new(),
            unplanned: Some(failure),
            plan: None,
        }
    }
}
