//! A project whose tasks write down what they do, and what must hold of it once everything is done, whatever happened meanwhile.
//!
//! The ledger is a file outside of Headworks: each command appends a line when it begins and one when it ends, with its run, task
//! and fence. It is held against the rows of the metadata database and against the lake.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    time::Duration,
};

use headworks_store::{Row, Store, StoreOptions};

use crate::{
    crew::{Serving, days_ago, processes_in, until, until_within},
    project::Project,
};

/// How long everything may take.
const LONG: Duration = Duration::from_secs(300);

/// The last lines of each role's log, for who looks for a bug.
const LINES_SHOWN: usize = 40;

/// Hours that each job covers, from one day's start on.
const HOURS_PER_DAY: usize = 24;

/// The two commands of each run of `steps`.
pub(crate) const STEPS: [&str; 2] = ["first", "second"];

/// A project with two jobs of SQL, one of commands, and a ledger.
pub(crate) struct Site {
    pub(crate) project: Project,
    pub(crate) url: String,
    logs: tempfile::TempDir,
    days: u64,
    /// Those that cover every hour.
    jobs: Vec<&'static str>,
}

impl Drop for Site {
    /// Shows what the processes said last, when something did not hold.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for log in fs::read_dir(self.logs.path()).into_iter().flatten().flatten() {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            println!("--- {}\n{}", log.file_name().to_string_lossy(), end.join("\n"));
        }
    }
}

/// A command that appends to the ledger, and does something between.
pub(crate) fn command(work: &str) -> String {
    let line = |word| format!("echo \"{word} $HEADWORKS_RUN_ID $HEADWORKS_TASK $HEADWORKS_FENCE\" >> ledger");
    serde_json::to_string(&format!("{}; {work}; {}", line("begin"), line("end"))).unwrap()
}

/// A line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) ends: bool,
    pub(crate) run: String,
    pub(crate) task: String,
    pub(crate) fence: i64,
}

impl Site {
    /// A project over SQLite.
    pub(crate) fn on_sqlite(days: u64) -> Self {
        let project = Project::empty();
        let url = format!("sqlite:{}", project.path().join(".headworks/metadata.db").display());
        Self::new(project, url, days)
    }

    /// A project over the PostgreSQL at a URL.
    pub(crate) fn on_postgres(url: &str, days: u64) -> Self {
        let project = Project::empty();
        project.write("headworks.toml", &format!("[project]\nname = \"test\"\n\n[metadata]\nurl = \"{url}\"\n"));
        Self::new(project, url.to_owned(), days)
    }

    fn new(project: Project, url: String, days: u64) -> Self {
        let (start, end) = (days_ago(days + 1), days_ago(2));
        let span = format!("catchup: all\nstart: {start}\nend: {end}\n");
        let numbers = format!("/* job\nowner: tests\nschedule: '@hourly'\n{span}*/\nSELECT 1 AS n\n");
        let doubles = format!(
            "/* job\nowner: tests\nschedule: after waits\ngrain: hour\n{span}*/\nSELECT max(n) + 1 AS n FROM wait::numbers\n"
        );
        let [first, second] = STEPS;
        let work = command("sleep 0.02");
        let steps = format!(
            "owner: tests\nschedule: '@hourly'\n{span}tasks:\n  {first}: {{type: shell, command: {work}}}\n  \
             {second}: {{type: shell, command: {work}, after: [{first}]}}\n"
        );
        project.write("jobs/numbers.sql", &numbers);
        project.write("jobs/doubles.sql", &doubles);
        project.write("jobs/steps.yml", &steps);
        Self { project, url, logs: tempfile::tempdir().unwrap(), days, jobs: vec!["numbers", "doubles", "steps"] }
    }

    /// The same without the job of commands.
    pub(crate) fn without_steps(mut self) -> Self {
        fs::remove_file(self.project.path().join("jobs/steps.yml")).unwrap();
        self.jobs.retain(|job| *job != "steps");
        self
    }

    /// How many runs each job has in the end.
    pub(crate) fn hours(&self) -> usize {
        usize::try_from(self.days).unwrap() * HOURS_PER_DAY
    }

    /// Starts one of the processes that serve.
    pub(crate) fn serve(&self, role: &str, more: &[&str]) -> Serving {
        let args = [&[role, "--listen", "127.0.0.1:0"], more].concat();
        Serving::start_into(self.project.command(&args), &self.logs.path().join(role))
    }

    pub(crate) fn ledger(&self) -> Vec<Entry> {
        let text = fs::read_to_string(self.ledger_path()).unwrap_or_default();
        let entry = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let [word, run, task, fence] = words[..] else { panic!("`{line}` is torn") };
            Entry { ends: word == "end", run: run.to_owned(), task: task.to_owned(), fence: fence.parse().unwrap() }
        };
        text.lines().map(entry).collect()
    }

    fn ledger_path(&self) -> PathBuf {
        self.project.path().join("ledger")
    }

    /// How many commands have come to their end.
    pub(crate) fn ends(&self) -> usize {
        self.ledger().iter().filter(|entry| entry.ends).count()
    }

    /// Rows of the metadata database.
    pub(crate) fn rows(&self, sql: &str) -> Vec<Row> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::open(&StoreOptions::new(&self.url).read_only()).await.unwrap();
            let rows = store.rows(sql, &[]).await.unwrap();
            store.close().await;
            rows
        })
    }

    pub(crate) fn count(&self, sql: &str) -> usize {
        usize::try_from(self.rows(sql)[0].i64(0).unwrap()).unwrap()
    }

    /// Waits until every hour of every job has its success.
    pub(crate) fn until_done(&self) {
        let all = self.hours() * self.jobs.len();
        let jobs = self.jobs.join("', '");
        let done = format!("select count(*) from hw_run where state = 'success' and job in ('{jobs}')");
        until_within(LONG, "every hour's success", || (self.count(&done) >= all).then_some(()));
    }

    /// How many processes have a lease that runs.
    pub(crate) fn leases(&self) -> usize {
        let now = "cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)";
        self.count(&format!("select count(*) from hw_process where lease_until > {now} and role <> 'command'"))
    }

    /// Every attempt was the first and the only one of its task, and each run has had one owner.
    pub(crate) fn check_nothing_repeated(&self) {
        let bad = self
            .rows("select run_id, task, attempt, state, error_code, error from hw_attempt where state <> 'success'");
        assert_eq!(bad, [] as [Row; 0]);
        let tries = "select run_id, task, count(*) from hw_attempt group by run_id, task having count(*) > 1";
        assert_eq!(self.rows(tries), [] as [Row; 0]);
    }

    /// Holds the rows, the lake and the ledger against each other. All processes must have been stopped.
    pub(crate) fn check(&self) {
        let hours = self.hours();
        // Nothing lost, every interval once: an interval has one run, whoever has carried it out, and that has succeeded.
        for job in &self.jobs {
            let runs = self.rows(&format!(
                "select interval_start, min(state), max(state), count(*) from hw_run where job = '{job}' group by interval_start"
            ));
            assert_eq!(runs.len(), hours, "{job}");
            for run in &runs {
                let (least, most, count) = (run.text(1).unwrap(), run.text(2).unwrap(), run.i64(3).unwrap());
                assert_eq!((least.as_str(), most.as_str(), count), ("success", "success", 1), "{job}: {run:?}");
            }
        }
        assert_eq!(
            self.count("select count(*) from hw_attempt where finished_at is null"),
            0,
            "attempts without an end"
        );
        // Nothing published twice, in the registry's history and in the lake.
        let twice =
            "select table_id, partition, count(*) from hw_publish group by table_id, partition having count(*) > 1";
        assert_eq!(self.rows(twice), [] as [Row; 0]);
        for (table, value) in [("numbers", 1), ("doubles", 2)] {
            let sql =
                format!("select count(*) as n, count(distinct ds || ' ' || hour) as h, min(n), max(n) from {table}");
            let found = self.project.ok(&["sql", &sql, "--format", "csv"]);
            assert_eq!(found.lines().nth(1).unwrap(), format!("{hours},{hours},{value},{value}"), "{table}");
        }
        self.check_ledger();
        // Children end a moment after a process that was killed.
        let mut left = Vec::new();
        until("no process is left", || {
            left = processes_in(&self.project);
            left.is_empty().then_some(())
        });
    }

    fn check_ledger(&self) {
        let ledger = self.ledger();
        // A fenced attempt changed nothing: once a later owner has begun a command, no earlier one is heard of.
        let mut newest: HashMap<(&str, &str), i64> = HashMap::new();
        for entry in &ledger {
            let known = newest.entry((&entry.run, &entry.task)).or_insert(entry.fence);
            assert!(
                *known <= entry.fence,
                "{entry:?} came after fence {known}: {:#?}",
                Self::of_run(&ledger, &entry.run)
            );
            *known = entry.fence;
        }
        // The success is that of the last owner, who has carried out each command once.
        let mut ended: BTreeMap<(&str, i64, &str), usize> = BTreeMap::new();
        for entry in ledger.iter().filter(|entry| entry.ends) {
            *ended.entry((&entry.run, entry.fence, &entry.task)).or_default() += 1;
        }
        let runs = self.rows("select id, fence from hw_run where job = 'steps'");
        for run in &runs {
            let (id, fence) = (run.text(0).unwrap(), run.i64(1).unwrap());
            for step in STEPS {
                let times = ended.get(&(id.as_str(), fence, step)).copied().unwrap_or(0);
                assert_eq!(times, 1, "{step} of {id} under {fence}: {:#?}", Self::of_run(&ledger, &id));
            }
        }
    }

    fn of_run(ledger: &[Entry], run: &str) -> Vec<Entry> {
        ledger.iter().filter(|entry| entry.run == run).cloned().collect()
    }
}
