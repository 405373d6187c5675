//! What commands work with, each part opened when it is first asked for: `sql 'select 1'` reads no job file.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use headworks_domain::{Clock, EnvironmentName, ErrorKind, Problem, Severity, SystemClock};
use headworks_engine::{CacheOptions, Engine, EngineOptions, Priority, QueryListener, QueueOptions};
use headworks_flow::{
    ByteSize, CONFIG_FILE, Config, Job, Loaded, LoadedConfig, Overrides, Project, QueueConfig, QueuePriority, Setting,
    Span, exec::Partitions, load_config,
};
use headworks_lake::{Lake, Storage, StorageOptions};
use headworks_meta::{Accounts, Runs, SystemProcesses};
use headworks_store::{Store, StoreOptions};
use tokio::sync::OnceCell;

use crate::{
    connections::Connections, fail::Failure, lakes::Lakes, output::Out, registry::Registry, runners::Children,
    serve::Reloading, settings::Environment,
};

/// One command's view of its project.
pub(crate) struct App {
    pub(crate) out: Out,
    pub(crate) clock: Arc<dyn Clock>,
    /// The processes of tasks.
    pub(crate) children: Children,
    environment: Environment,
    /// `-C`.
    dir: Option<PathBuf>,
    /// `--set`.
    flags: Vec<String>,
    root: OnceLock<PathBuf>,
    settings: OnceLock<LoadedConfig>,
    loaded: OnceLock<(Arc<Project>, Vec<Problem>)>,
    store: OnceCell<Store>,
    lake: OnceCell<Lake>,
    /// Production's lake, in another environment.
    production: OnceCell<Option<Lake>>,
    lakes: OnceCell<Lakes>,
    engine: OnceCell<Engine>,
    /// Who is told of queries, once the process serves those of others.
    listener: OnceLock<Arc<dyn QueryListener>>,
    runs: OnceCell<Arc<Runs>>,
    accounts: OnceCell<Accounts>,
}

/// The platform's own folder in a project.
const OWN_FOLDER: &str = ".headworks";

impl App {
    /// Remembers what the command line said; opens nothing.
    pub(crate) fn new(out: Out, environment: Environment, dir: Option<PathBuf>, flags: Vec<String>) -> Self {
        Self {
            out,
            clock: Arc::new(SystemClock),
            children: Children::default(),
            environment,
            dir,
            flags,
            root: OnceLock::new(),
            settings: OnceLock::new(),
            loaded: OnceLock::new(),
            store: OnceCell::new(),
            lake: OnceCell::new(),
            production: OnceCell::new(),
            lakes: OnceCell::new(),
            engine: OnceCell::new(),
            listener: OnceLock::new(),
            runs: OnceCell::new(),
            accounts: OnceCell::new(),
        }
    }

    /// The same command line for another project folder.
    pub(crate) fn in_folder(&self, dir: &Path) -> Self {
        Self::new(self.out, self.environment.clone(), Some(self.from_here(dir)), self.flags.clone())
    }

    /// A path as typed, relative to the folder in which the command was typed or that `-C` names.
    #[allow(clippy::wrong_self_convention, reason = "it is where the path begins, and makes no `App`")]
    pub(crate) fn from_here(&self, path: &Path) -> PathBuf {
        match &self.dir {
            Some(dir) if path.is_relative() => dir.join(path),
            _ => path.to_path_buf(),
        }
    }

    /// The project's folder. Errors: there is none.
    pub(crate) fn root(&self) -> anyhow::Result<&Path> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let here = || std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let here = self.dir.clone().unwrap_or_else(here);
        let root = Project::find(&here)?;
        Ok(self.root.get_or_init(|| root))
    }

    /// The settings; every problem with them is an error. Job files are not read.
    pub(crate) fn config(&self) -> anyhow::Result<&Config> {
        Ok(&self.loaded_config()?.config)
    }

    /// Every setting with its origin.
    pub(crate) fn settings(&self) -> anyhow::Result<&[Setting]> {
        Ok(&self.loaded_config()?.settings)
    }

    fn loaded_config(&self) -> anyhow::Result<&LoadedConfig> {
        if let Some(loaded) = self.settings.get() {
            return Ok(loaded);
        }
        let path = self.root()?.join(CONFIG_FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let loaded = load_config(&text, &self.overrides()?);
        let problems: Vec<Problem> =
            loaded.problems.iter().filter(|p| p.severity == Severity::Error).cloned().collect();
        if !problems.is_empty() {
            return Err(Failure::new(ErrorKind::Invalid, "CONFIG_INVALID", "the settings cannot be used")
                .hint("mend the lines, variables or flags named above")
                .problems(problems)
                .into());
        }
        Ok(self.settings.get_or_init(|| loaded))
    }

    fn overrides(&self) -> anyhow::Result<Overrides> {
        Ok(self.environment.overrides(&self.flags)?)
    }

    /// Looks an environment variable up, for secrets.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).map(str::to_owned)
    }

    /// The process's environment, for parts that outlive a command.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Where commands of tasks have folders of their own while they run.
    pub(crate) fn work_dir(&self) -> anyhow::Result<PathBuf> {
        Ok(self.root()?.join(OWN_FOLDER).join("work"))
    }

    /// The environment's name, as `{{ env }}` says it.
    pub(crate) fn env_name(&self) -> anyhow::Result<&EnvironmentName> {
        Ok(&self.config()?.project.environment)
    }

    /// A hint as it holds in this environment.
    pub(crate) fn hint(&self, hint: &str) -> String {
        match self.env_name() {
            Ok(name) if !name.is_production() => crate::cli::in_environment(hint, name),
            _ => hint.to_owned(),
        }
    }

    /// Tells people something on stderr; commands in it hold in this environment.
    pub(crate) fn note(&self, text: impl fmt::Display) {
        self.out.note(self.hint(&text.to_string()));
    }

    /// The platform's own folder for the environment: that of production holds the others'.
    fn own_folder(&self) -> anyhow::Result<PathBuf> {
        let folder = self.root()?.join(OWN_FOLDER);
        let name = self.env_name()?;
        Ok(if name.is_production() { folder } else { folder.join("environments").join(name.as_str()) })
    }

    /// The project with all that is wrong with its files.
    pub(crate) fn loaded(&self) -> anyhow::Result<(&Arc<Project>, &[Problem])> {
        if self.loaded.get().is_none() {
            let Loaded { project, problems } = Project::load_with(self.root()?, &self.overrides()?);
            let _ = self.loaded.set((Arc::new(project), problems));
        }
        let (project, problems) = self.loaded.get().expect("set above");
        Ok((project, problems))
    }

    /// The project. Errors: any of its files has one.
    pub(crate) fn project(&self) -> anyhow::Result<&Arc<Project>> {
        let (project, problems) = self.loaded()?;
        refuse(problems.iter(), "the project has errors")?;
        Ok(project)
    }

    /// The project's jobs that have no errors; those that have are mentioned and left out. Errors: those of the settings.
    pub(crate) fn project_as_it_is(&self) -> anyhow::Result<&Arc<Project>> {
        self.config()?;
        Ok(self.loaded()?.0)
    }

    /// Finds a job by its name or table. Errors in its own file are shown; those of other files don't matter.
    pub(crate) fn job(&self, name: &str) -> anyhow::Result<Arc<Job>> {
        let project = self.project_as_it_is()?;
        match project.job(name) {
            Ok(job) => Ok(job.clone()),
            Err(unknown) => {
                let (_, problems) = self.loaded()?;
                let own = problems.iter().filter(|p| is_file_of(&p.place.file, name));
                refuse(own, &format!("job `{name}` cannot be used"))?;
                Err(unknown.into())
            }
        }
    }

    /// The connections of the project, none of them open yet.
    pub(crate) fn connections(&self) -> anyhow::Result<Connections> {
        Ok(Connections::new(self.root()?.to_path_buf(), self.environment.clone()))
    }

    /// How the project's files are read again.
    pub(crate) fn reloading(&self) -> anyhow::Result<Reloading> {
        Ok(Reloading { root: self.root()?.to_path_buf(), overrides: self.overrides()? })
    }

    /// Where attempts write their logs.
    pub(crate) fn logs_dir(&self) -> anyhow::Result<PathBuf> {
        Ok(self.own_folder()?.join("logs"))
    }

    /// The metadata database.
    pub(crate) async fn store(&self) -> anyhow::Result<&Store> {
        self.store
            .get_or_try_init(|| async {
                let store = Store::open(&self.store_options(self.config()?)?).await?;
                headworks_lake::claim(&store, self.env_name()?).await?;
                Ok(store)
            })
            .await
    }

    pub(crate) fn store_options(&self, config: &Config) -> anyhow::Result<StoreOptions> {
        let url = config.metadata_url(self.root()?, &|name| self.variable(name))?;
        Ok(StoreOptions { schema: config.metadata.schema.clone(), ..StoreOptions::new(url.expose()) })
    }

    /// The lake's files, opened anew.
    pub(crate) fn storage(&self) -> anyhow::Result<Storage> {
        Ok(Storage::open(&self.storage_options(self.config()?)?)?)
    }

    fn storage_options(&self, config: &Config) -> anyhow::Result<StorageOptions> {
        let variable = |name: &str| self.variable(name);
        Ok(StorageOptions {
            path: config.storage_location(self.root()?),
            endpoint: config.storage.endpoint.clone(),
            region: config.storage.region.clone(),
            access_key_id: config.storage_key_id(&variable)?,
            secret_access_key: config.storage_secret(&variable)?,
            allow_http: config.storage.allow_http,
        })
    }

    /// The environment's own lake, the one that commands write.
    pub(crate) async fn lake(&self) -> anyhow::Result<&Lake> {
        self.lake
            .get_or_try_init(|| async {
                let (store, storage) = (self.store().await?.clone(), self.storage()?);
                self.refuse_shared_files(&storage)?;
                Ok(Lake::open(store, storage, self.clock.clone()).await?)
            })
            .await
    }

    /// Another environment's folder may be a link to production's, where clean-up would find files that it does not know.
    fn refuse_shared_files(&self, storage: &Storage) -> anyhow::Result<()> {
        let Some(production) = &self.loaded_config()?.production else { return Ok(()) };
        let theirs = Path::new(&production.storage_location(self.root()?)).join("data").canonicalize();
        let (Some(own), Ok(theirs)) = (storage.local(), theirs) else { return Ok(()) };
        if !own.starts_with(&theirs) && !theirs.starts_with(own) {
            return Ok(());
        }
        let message = format!(
            "environment `{}` would keep its files in `{}`, among production's",
            self.env_name()?,
            own.display()
        );
        Err(Failure::new(ErrorKind::Invalid, "ENVIRONMENT_SHARED", message)
            .hint("give it a storage.path of its own, without links into production's")
            .into())
    }

    /// The lakes that commands read: the environment's own, and production's for the tables that the first lacks.
    pub(crate) async fn lakes(&self) -> anyhow::Result<&Lakes> {
        self.lakes
            .get_or_try_init(|| async {
                let (own, production) = (self.lake().await?, self.production().await?);
                Ok(Lakes::new(own.clone(), production.cloned()))
            })
            .await
    }

    /// Production's lake for reading only; `None` in production itself, and while production has no lake.
    pub(crate) async fn production(&self) -> anyhow::Result<Option<&Lake>> {
        let open = || async {
            let Some(config) = &self.loaded_config()?.production else { return Ok(None) };
            self.open_production(config).await.with_context(|| {
                format!("cannot open production's lake, which environment `{}` reads", config.project.environment)
            })
        };
        Ok(self.production.get_or_try_init(open).await?.as_ref())
    }

    async fn open_production(&self, config: &Config) -> anyhow::Result<Option<Lake>> {
        let options = self.store_options(config)?.read_only();
        if options.file().is_some_and(|file| !file.exists()) {
            return Ok(None);
        }
        let Some(storage) = Storage::open_read_only(&self.storage_options(config)?)? else { return Ok(None) };
        let store = Store::open(&options).await?;
        Ok(Lake::open_read_only(store, storage, self.clock.clone()).await?)
    }

    /// Lets queues share out the engine's memory and tells somebody of each query; before the engine is asked for.
    pub(crate) fn serves_queries(&self, listener: Arc<dyn QueryListener>) {
        let _ = self.listener.set(listener);
    }

    /// A folder of this process's own for what does not fit into memory. Those of processes that were killed are removed.
    pub(crate) fn spill_dir(&self) -> anyhow::Result<PathBuf> {
        let all = self.own_folder()?.join("spill");
        // Containers may share the folder, and have processes of the same number.
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let process =
                name.to_str().and_then(|name| name.strip_prefix(&host)?.strip_prefix('-')?.parse::<u32>().ok());
            let is_gone = process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists());
            if is_gone && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(%error, folder = %entry.path().display(), "what a process that is gone set aside could not be removed");
            }
        }
        Ok(all.join(format!("{host}-{}", std::process::id())))
    }

    /// The SQL engine over the lake.
    pub(crate) async fn engine(&self) -> anyhow::Result<&Engine> {
        self.engine
            .get_or_try_init(|| async {
                let catalog = self.lakes().await?.catalog();
                let settings = &self.config()?.engine;
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let threads = settings.threads.map_or(cores, |n| n as usize);
                let mut options = EngineOptions::new(self.spill_dir()?, threads);
                options.memory_bytes = usize::try_from(settings.memory.bytes()).unwrap_or(usize::MAX);
                options.spill_bytes_max = settings.spill_bytes_max.bytes();
                options.cache = CacheOptions {
                    memory_bytes: settings.cache_bytes_max.bytes(),
                    disk_bytes: settings.cache_disk_bytes_max.bytes(),
                    entry_bytes_max: usize::try_from(settings.cache_result_bytes_max.bytes()).unwrap_or(usize::MAX),
                };
                options.value_bytes_max =
                    usize::try_from(self.config()?.sql.value_bytes_max.bytes()).unwrap_or(usize::MAX);
                options.clock = Arc::clone(&self.clock);
                options.listener = self.listener.get().cloned();
                let is_shared = options.listener.is_some();
                let queues = self.config()?.queues();
                options.queues = queues.iter().map(|(name, queue)| queue_options(name, queue, is_shared)).collect();
                options.allocated = Some(crate::memory::allocated_bytes);
                Ok(Engine::new(catalog, options)?)
            })
            .await
    }

    /// The records of runs.
    pub(crate) async fn run_store(&self) -> anyhow::Result<&Arc<Runs>> {
        self.runs
            .get_or_try_init(|| async {
                let runs = self.runs_of_anyone().await?;
                // Where no name is written it is the folder's, which may differ from machine to machine.
                if let Some(name) = &self.config()?.project.name {
                    runs.belong_to(name).await?;
                }
                Ok(Arc::new(runs))
            })
            .await
    }

    /// Who may sign in, and what they may read.
    pub(crate) async fn accounts(&self) -> anyhow::Result<&Accounts> {
        let open = || async { Ok(Accounts::open(self.store().await?.clone(), self.clock.clone()).await?) };
        self.accounts.get_or_try_init(open).await
    }

    /// Makes the first user of a project that has none, and shows the password, this once.
    pub(crate) async fn first_admin(&self) -> anyhow::Result<()> {
        if let Some((name, password)) = self.accounts().await?.first_admin().await? {
            // Whatever `--quiet` says: it is shown nowhere else.
            self.out.complain(format_args!(
                "the first user is `{name}` with the password {}, shown this once; another: headworks users passwd {name}",
                password.expose()
            ));
        }
        Ok(())
    }

    async fn runs_of_anyone(&self) -> anyhow::Result<Runs> {
        let store = self.store().await?.clone();
        Ok(Runs::open(store, self.clock.clone(), Arc::new(SystemProcesses)).await?)
    }

    /// Lets the database have the name that the project has now.
    pub(crate) async fn rename_project(&self) -> anyhow::Result<()> {
        let Some(name) = self.config()?.project.name.clone() else {
            let hint = "write it into headworks.toml: [project] name = \"...\"";
            return Err(Failure::usage("the project has no name", hint).into());
        };
        Ok(self.runs_of_anyone().await?.rename_project(&name).await?)
    }

    /// The registry of published partitions, as the executor asks it.
    pub(crate) async fn partitions(&self) -> anyhow::Result<Arc<dyn Partitions>> {
        Ok(Arc::new(Registry::new(self.lakes().await?.clone())))
    }
}

/// `is_shared`: the process serves the queries of others, so that memory is shared out and jobs go first; else all is for the
/// one command, which gives way to no other queue.
fn queue_options(name: &str, queue: &QueueConfig, is_shared: bool) -> QueueOptions {
    QueueOptions {
        name: name.to_owned(),
        slots: queue.slots as usize,
        memory_percent: if is_shared { queue.memory_percent } else { 100 },
        waiting_max: queue.waiting_max as usize,
        wait_max: queue.wait_max.map(Span::duration),
        timeout: queue.timeout.map(Span::duration),
        idle_max: queue.idle_max.duration(),
        scanned_bytes_max: queue.scanned_bytes_max.map(ByteSize::bytes),
        rows_max: queue.rows_max,
        spill_bytes_max: queue.spill_bytes_max.map(ByteSize::bytes),
        threads: queue.threads.map(|n| n as usize),
        priority: match queue.priority.unwrap_or_default() {
            QueuePriority::High if is_shared => Priority::High,
            QueuePriority::High | QueuePriority::Normal => Priority::Normal,
            QueuePriority::Low => Priority::Low,
        },
        roles: queue.roles.clone(),
        applications: queue.applications.clone(),
    }
}

/// Children that are not gone by then are left to their supervisors.
const CHILDREN_GONE_WITHIN: Duration = Duration::from_secs(30);

impl App {
    /// Closes what was opened, so that a SQLite database is left as one file and no process of a task outlives the command.
    pub(crate) async fn close(&self) {
        self.children.gone(CHILDREN_GONE_WITHIN).await;
        if self.engine.get().is_some()
            && let Ok(own) = self.spill_dir()
        {
            // Queries that still run write there no more: the process ends.
            let _ = fs::remove_dir_all(own);
        }
        if let Some(store) = self.store.get() {
            store.close().await;
        }
        if let Some(Some(production)) = self.production.get() {
            production.store().close().await;
        }
    }
}

/// Errors with these problems, if any of them is an error.
fn refuse<'p>(problems: impl Iterator<Item = &'p Problem>, what: &str) -> anyhow::Result<()> {
    let errors: Vec<Problem> = problems.filter(|p| p.severity == Severity::Error).cloned().collect();
    match errors.len() {
        0 => Ok(()),
        n => Err(Failure::new(
            ErrorKind::Invalid,
            "PROJECT_INVALID",
            format!("{what}: {n} problem{} above", if n == 1 { "" } else { "s" }),
        )
        .hint("mend the files; headworks validate checks them all")
        .problems(errors)
        .into()),
    }
}

/// True when a file is likely the one that a person means by a job's name.
fn is_file_of(file: &str, name: &str) -> bool {
    let stem = file.strip_prefix("jobs/").unwrap_or(file);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    stem == name || stem.rsplit('/').next() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_names() {
        for (file, name, expected) in [
            ("jobs/a.sql", "a", true),
            ("jobs/metrics/a.yml", "a", true),
            ("jobs/metrics/a.yml", "metrics/a", true),
            ("jobs/ab.sql", "a", false),
            ("headworks.toml", "a", false),
        ] {
            assert_eq!(is_file_of(file, name), expected, "{file} {name}");
        }
    }
}
