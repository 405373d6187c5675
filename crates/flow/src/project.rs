//! A project folder: its settings and its jobs, with every problem of every file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono_tz::Tz;
use headworks_domain::{JobName, Place, Problem, Severity, nearest};

use crate::{
    check,
    config::{CONFIG_FILE, Config},
    error::Error,
    exec::job_pool,
    job::Job,
    jobfile::{self, JobFile},
    settings::{Overrides, Setting, load_config},
};

/// The most bytes of one job file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most folders below `jobs/`, one in the other.
const FOLDER_DEPTH_MAX: usize = 16;

/// A project's settings and jobs. Jobs with errors are left out.
#[derive(Debug, Clone, Default)]
pub struct Project {
    /// The project's folder.
    pub root: PathBuf,
    /// The settings.
    pub config: Config,
    /// Every setting with its origin.
    pub settings: Vec<Setting>,
    /// The jobs by name.
    pub jobs: BTreeMap<JobName, Arc<Job>>,
    /// Who makes which table; by the name in small letters, since other readers of the lake do not tell cases apart.
    makers: BTreeMap<String, JobName>,
}

/// A project as read, with everything that is wrong with it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The project: what could be read of it.
    pub project: Project,
    /// All problems in the order of their places.
    pub problems: Vec<Problem>,
}

impl Loaded {
    /// True when some file cannot be used.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|p| p.severity == Severity::Error)
    }

    /// The problems that stop files from being used.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|p| p.severity == Severity::Error)
    }
}

impl Project {
    /// Finds the project that a folder lies in: the nearest one upwards with a `headworks.toml`.
    ///
    /// Errors: `NoProject`; `Unreadable` when the folder is not there.
    pub fn find(dir: &Path) -> Result<PathBuf, Error> {
        let shown = || dir.display().to_string();
        let start = fs::canonicalize(dir).map_err(|source| Error::Unreadable { path: shown(), source })?;
        let found = start.ancestors().find(|folder| folder.join(CONFIG_FILE).is_file());
        found.map(Path::to_path_buf).ok_or_else(|| Error::NoProject { dir: shown() })
    }

    /// Reads a project without overrides; see [`Project::load_with`].
    pub fn load(root: &Path) -> Loaded {
        Self::load_with(root, &Overrides::default())
    }

    /// Reads a project. It never stops at a problem: what can be read is read, and all that is wrong is told.
    pub fn load_with(root: &Path, overrides: &Overrides) -> Loaded {
        let mut problems = Vec::new();
        let text = fs::read_to_string(root.join(CONFIG_FILE)).unwrap_or_else(|error| {
            problems.push(unreadable(CONFIG_FILE, &error));
            String::new()
        });
        let config = load_config(&text, overrides);
        problems.extend(config.problems);
        let zone = config.config.project.timezone.parse().unwrap_or(Tz::UTC);
        let files = read_jobs(root, zone, &mut problems);
        let mut project =
            Project { root: root.to_path_buf(), config: config.config, settings: config.settings, ..Self::default() };
        check::assemble(&mut project, files, &mut problems);
        problems.sort_by(|a, b| (&a.place, &a.message).cmp(&(&b.place, &b.message)));
        Loaded { project, problems }
    }

    /// The project's name: its own, or its folder's.
    pub fn name(&self) -> String {
        let folder = || self.root.file_name().map(|name| name.to_string_lossy().into_owned());
        self.config.project.name.clone().or_else(folder).unwrap_or_else(|| "project".to_owned())
    }

    /// Finds a job by its name, the last part of its name, or its table. Errors: `NoJob` with the nearest name.
    pub fn job(&self, name: &str) -> Result<&Arc<Job>, Error> {
        let exact = || self.jobs.iter().find(|(job, _)| job.as_str() == name).map(|(_, job)| job);
        let by_table = || self.makers.get(&name.to_lowercase()).and_then(|job| self.jobs.get(job));
        let by_end = || {
            let mut ends = self.jobs.iter().filter(|(job, _)| job.as_str().rsplit('/').next() == Some(name));
            ends.next().filter(|_| ends.next().is_none()).map(|(_, job)| job)
        };
        exact().or_else(by_table).or_else(by_end).ok_or_else(|| {
            let names = || {
                self.jobs
                    .keys()
                    .map(JobName::as_str)
                    .chain(self.jobs.values().filter_map(|j| Some(j.table.as_ref()?.as_str())))
            };
            let hint = match nearest(name, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if self.jobs.is_empty() => "this project has no jobs yet: write one below jobs/".to_owned(),
                None => "list them with headworks jobs list".to_owned(),
            };
            Error::NoJob { name: name.to_owned(), hint }
        })
    }

    /// The job that makes a table.
    pub fn maker(&self, table: &str) -> Option<&Arc<Job>> {
        self.makers.get(&table.to_lowercase()).and_then(|job| self.jobs.get(job))
    }

    /// The jobs that a job reads from by waits, without itself.
    pub fn upstream(&self, job: &Job) -> BTreeSet<JobName> {
        let makers = job.waits.iter().filter(|w| !w.is_self()).filter_map(|w| self.maker(&w.table));
        makers.map(|maker| maker.name.clone()).filter(|name| *name != job.name).collect()
    }

    /// The jobs that wait for a job, directly or through others, in an order in which each stands after those it needs.
    pub fn downstream(&self, name: &JobName) -> Vec<JobName> {
        let mut reached: BTreeSet<JobName> = BTreeSet::from([name.clone()]);
        let mut order = Vec::new();
        // Each round adds the jobs that need something reached; as many rounds as the longest chain.
        loop {
            let next: Vec<JobName> = self
                .jobs
                .values()
                .filter(|job| !reached.contains(&job.name) && !self.upstream(job).is_disjoint(&reached))
                .map(|job| job.name.clone())
                .collect();
            if next.is_empty() {
                break;
            }
            reached.extend(next.iter().cloned());
        }
        // A job comes when all of its upstream among the reached has come; what waits in a circle comes last.
        let mut left: Vec<JobName> = reached.into_iter().filter(|job| job != name).collect();
        while !left.is_empty() {
            let ready: Vec<JobName> = left
                .iter()
                .filter(|job| {
                    self.jobs.get(*job).is_none_or(|job| self.upstream(job).iter().all(|up| !left.contains(up)))
                })
                .cloned()
                .collect();
            if ready.is_empty() {
                order.append(&mut left);
            } else {
                left.retain(|job| !ready.contains(job));
                order.extend(ready);
            }
        }
        order
    }

    /// Keeps jobs of an earlier state whose files have errors now, so that a slip of the pen stops no schedule. Says which.
    pub fn keep_last_good(&mut self, before: &Self, problems: &[Problem]) -> Vec<JobName> {
        let broken: BTreeSet<&str> =
            problems.iter().filter(|p| p.severity == Severity::Error).map(|p| p.place.file.as_str()).collect();
        let mut kept = Vec::new();
        for job in before.jobs.values() {
            if self.is_free(job) && broken.contains(job.file.as_str()) {
                self.add(Arc::clone(job));
                kept.push(job.name.clone());
            }
        }
        kept
    }

    /// Takes up an earlier text of a file that has errors now. False when that has errors too, or its name is taken.
    pub fn revive(&mut self, file: &str, text: String) -> bool {
        let zone = self.config.project.timezone.parse().unwrap_or(Tz::UTC);
        let read = jobfile::read(file.to_owned(), text, path_name(file), zone);
        if read.job.as_ref().is_none_or(|job| !self.is_free(job)) {
            return false;
        }
        let jobs = self.jobs.len();
        check::assemble(self, vec![read], &mut Vec::new());
        self.jobs.len() > jobs
    }

    /// A job of the project as an earlier text of its file has it. None when that cannot be used any more. Cost: nothing when the
    /// text is still the same, else a copy of the project.
    pub fn earlier(&self, job: &Arc<Job>, text: String) -> Option<Arc<Job>> {
        if text == job.text() {
            return Some(Arc::clone(job));
        }
        let mut others = self.clone();
        others.jobs.remove(&job.name);
        others.makers.retain(|_, maker| *maker != job.name);
        if others.revive(&job.file, text) { others.jobs.remove(&job.name) } else { None }
    }

    /// The slots that all processes share: of the named pools, and of jobs that say `max_active_runs`, by [`job_pool`].
    pub fn slots(&self) -> BTreeMap<String, u32> {
        let of_job = |job: &Arc<Job>| Some((job_pool(&job.name), job.spec.max_active_runs?));
        self.config.pools.clone().into_iter().chain(self.jobs.values().filter_map(of_job)).collect()
    }

    /// True when no job has this one's name or makes its table.
    fn is_free(&self, job: &Job) -> bool {
        !self.jobs.contains_key(&job.name)
            && job.table.as_ref().is_none_or(|table| self.maker(table.as_str()).is_none())
    }

    /// Adds a job, which then makes its table if it has one.
    pub(crate) fn add(&mut self, job: Arc<Job>) {
        if let Some(table) = &job.table {
            self.makers.insert(table.as_str().to_lowercase(), job.name.clone());
        }
        self.jobs.insert(job.name.clone(), job);
    }
}

fn unreadable(file: &str, error: &io::Error) -> Problem {
    let hint = match error.kind() {
        io::ErrorKind::NotFound if file == CONFIG_FILE => {
            "start a project with headworks init DIR, or name an existing one with -C DIR"
        }
        io::ErrorKind::NotFound => "put back what the link leads to, or remove the link",
        io::ErrorKind::PermissionDenied => "check its permissions",
        io::ErrorKind::InvalidData => "save it as UTF-8",
        _ => "check the path and the disk",
    };
    file_problem(file, format!("the file cannot be read: {error}"), hint)
}

fn file_problem(file: &str, message: String, hint: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        place: Place { file: file.to_owned(), line: 0, column: 0 },
        text: String::new(),
        message,
        hint: Some(hint.to_owned()),
    }
}

/// Reads every job file, in the order of their paths.
fn read_jobs(root: &Path, zone: Tz, problems: &mut Vec<Problem>) -> Vec<JobFile> {
    let mut paths = Vec::new();
    collect(root, "jobs", 0, &mut paths, problems);
    paths.sort();
    let mut files = Vec::with_capacity(paths.len());
    for file in paths {
        let path = root.join(&file);
        let too_big = fs::metadata(&path).is_ok_and(|m| m.len() > FILE_BYTES_MAX);
        if too_big {
            problems.push(file_problem(&file, "the file is larger than 1 MiB".to_owned(), "split the job in several"));
            continue;
        }
        match fs::read_to_string(&path) {
            Ok(text) => {
                let name = path_name(&file).to_owned();
                files.push(jobfile::read(file, text, &name, zone));
            }
            Err(error) => problems.push(unreadable(&file, &error)),
        }
    }
    files
}

/// A file's path below `jobs/` without its ending: the job's name unless its header has one.
fn path_name(file: &str) -> &str {
    let below = file.strip_prefix("jobs/").unwrap_or(file);
    below.rsplit_once('.').map_or(below, |(name, _)| name)
}

fn collect(root: &Path, folder: &str, depth: usize, paths: &mut Vec<String>, problems: &mut Vec<Problem>) {
    let entries = match fs::read_dir(root.join(folder)) {
        Ok(entries) => entries,
        // A project without jobs is a new one.
        Err(error) if error.kind() == io::ErrorKind::NotFound && depth == 0 => return,
        Err(error) => {
            problems.push(unreadable(folder, &error));
            return;
        }
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            let shown = format!("{folder}/{}", name.to_string_lossy());
            problems.push(file_problem(&shown, "the file's name is not UTF-8".to_owned(), "rename the file"));
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        let path = format!("{folder}/{name}");
        // Links are followed, so the depth is what ends a folder that links to itself.
        if root.join(&path).is_dir() {
            if depth < FOLDER_DEPTH_MAX {
                collect(root, &path, depth + 1, paths, problems);
            } else {
                problems.push(file_problem(
                    &path,
                    "the folders are nested too deeply".to_owned(),
                    "move it further up",
                ));
            }
        } else if [".sql", ".yml", ".yaml"].iter().any(|end| name.ends_with(end)) {
            paths.push(path);
        }
    }
}
