mod steer;

use std::{collections::BTreeMap, fs, process::ExitCode};

use chrono::{DateTime, NaiveTime, TimeDelta, Utc};
use headworks_domain::{JobName, Problem, Severity};
use headworks_flow::{
    Job, Kind, Project, Tick,
    exec::{RunFilter, RunRow, RunStore},
    ticker::JobClock,
};
use headworks_meta::JobRow;
use serde_json::{Value, json};

pub(super) use self::steer::note_who;
use super::{
    runs::{run_json, run_table},
    schedule::{on_clock, tick_json},
};
use crate::{
    app::App,
    fail::{Carried, DONE, Failure},
    output::{Align, Style, Table, ago, bytes, count, counted, shown, styled},
    upkeep::{log_file, remove_log},
};

/// List, show, pause and trigger jobs
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Pause(steer::PauseArgs),
    Resume(steer::ResumeArgs),
    Trigger(steer::TriggerArgs),
    Reset(steer::ResetArgs),
    Forget(ForgetArgs),
}

/// List the jobs of the project
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {}

/// Show one job: what it makes, when, what it waits for, its last runs
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks jobs show company_metrics")]
pub(crate) struct ShowArgs {
    /// The job, by its name or by its table
    job: String,
}

/// Forget a job's runs and their logs; its table stays
///
/// Without --yes it only says what would go. What the job published stays, with its history; a job that runs again begins as if
/// it never had, so a backfill runs its days anew.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks jobs forget old_report --dry-run
  headworks jobs forget old_report --yes")]
pub(crate) struct ForgetArgs {
    /// The job's name; its file may be gone already
    job: JobName,
    /// Say what would go, and forget nothing; so it is without --yes, too
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it
    #[arg(short, long)]
    yes: bool,
}

/// The runs that `jobs show` lists.
const RUNS_SHOWN: usize = 5;
/// The coming ticks that `jobs show` lists.
const TICKS_SHOWN: usize = 5;

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(_) => list(app).await,
        Command::Show(args) => show(app, args).await,
        Command::Pause(args) => steer::pause(app, args).await,
        Command::Resume(args) => steer::resume(app, args).await,
        Command::Trigger(args) => steer::trigger(app, args).await,
        Command::Reset(args) => steer::reset(app, args).await,
        Command::Forget(args) => forget(app, args).await,
    }
}

/// What is known of a job beside its definition.
#[derive(Default)]
struct Known {
    row: Option<JobRow>,
    last: Option<RunRow>,
    /// The first error of its file.
    problem: Option<String>,
}

impl Known {
    fn paused_at(&self) -> Option<DateTime<Utc>> {
        self.row.as_ref().and_then(|row| row.paused_at)
    }

    /// The job's next tick, when it will start something.
    fn next_tick(&self, job: &Job, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let new = JobClock { first_seen: now, cursor: None, paused: false };
        job.next_tick(&self.row.as_ref().map_or(new, |row| row.clock), now)
    }

    fn add_to(&self, document: &mut Value, next_tick: Option<DateTime<Utc>>) {
        document["next_tick"] = json!(next_tick);
        document["paused_at"] = json!(self.paused_at());
        document["problem"] = json!(self.problem);
        document["last_run"] = self.last.as_ref().map(run_json).into();
    }
}

/// Everything known, by job; jobs whose file cannot be used are there too.
async fn known(app: &App) -> anyhow::Result<BTreeMap<JobName, Known>> {
    let (project, problems) = app.loaded()?;
    let runs = app.run_store().await?;
    let mut known: BTreeMap<JobName, Known> =
        project.jobs.values().map(|job| (job.name.clone(), Known::default())).collect();
    for job in project.jobs.values() {
        let problem = problems.iter().find(|p| p.severity == Severity::Error && p.place.file == job.file);
        known.entry(job.name.clone()).or_default().problem = problem.map(Problem::to_string);
    }
    for (job, problem) in crate::serve::problems_of_others(project, problems) {
        known.entry(job).or_default().problem = Some(problem);
    }
    for row in runs.jobs().await? {
        if let Some(job) = known.get_mut(&row.name) {
            job.row = Some(row);
        }
    }
    for run in runs.newest_runs().await? {
        if let Some(job) = known.get_mut(&run.job) {
            job.last = Some(run);
        }
    }
    Ok(known)
}

async fn list(app: &App) -> anyhow::Result<ExitCode> {
    let project = app.project_as_it_is()?;
    let (known, now) = (known(app).await?, app.clock.now());
    if app.out.json {
        let document = |(name, known): (&JobName, &Known)| {
            let job = project.jobs.get(name);
            let mut document = job.map_or_else(|| json!({"job": name}), |job| job_json(job));
            known.add_to(&mut document, job.and_then(|job| known.next_tick(job, now)));
            document
        };
        let jobs: Vec<Value> = known.iter().map(document).collect();
        app.out.document(&json!({"jobs": jobs}))?;
        return Ok(ExitCode::from(DONE));
    }
    let mut table = Table::new([
        ("job", Align::Left),
        ("schedule", Align::Left),
        ("next", Align::Left),
        ("last run", Align::Left),
        ("makes", Align::Left),
        ("grain", Align::Left),
        ("owner", Align::Left),
        ("waits for", Align::Left),
    ]);
    for (name, known) in &known {
        let last = known.last.as_ref().map(|run| format!("{} {}", run.ds, run.state)).unwrap_or_default();
        let Some(job) = project.jobs.get(name) else {
            table.row([name.to_string(), String::new(), "its file has errors".to_owned(), last]);
            continue;
        };
        let next = match (known.paused_at(), known.next_tick(job, now)) {
            (Some(_), _) => "paused".to_owned(),
            (None, Some(tick)) => ago(tick, now),
            (None, None) => String::new(),
        };
        let kind = match &job.table {
            Some(table) if table.as_str() != name.as_str() => format!("{table} ({})", makes(job)),
            _ => makes(job),
        };
        table.row([
            name.to_string(),
            schedule(job),
            next,
            last,
            kind,
            job.grain.to_string(),
            job.spec.owner.clone().unwrap_or_default(),
            job.waits_in_words().join(", "),
        ]);
    }
    if table.is_empty() {
        app.note("the project has no jobs yet: write one in jobs/; headworks init DIR makes an example");
    } else {
        app.out.table(&table)?;
    }
    for problem in known.values().filter_map(|known| known.problem.as_ref()) {
        app.note(problem);
    }
    Ok(ExitCode::from(DONE))
}

async fn show(app: &App, args: ShowArgs) -> anyhow::Result<ExitCode> {
    let project = app.project_as_it_is()?;
    let job = &app.job(&args.job)?;
    let now = app.clock.now();
    let known = known(app).await?.remove(&job.name).unwrap_or_default();
    let filter = RunFilter { job: Some(job.name.clone()), limit: RUNS_SHOWN, ..RunFilter::default() };
    let runs = app.run_store().await?.list(&filter).await.map_err(Carried::from)?;
    let ticks = next_ticks(job, now);
    if app.out.json {
        let mut document = job_json(job);
        known.add_to(&mut document, known.next_tick(job, now));
        document["next"] = ticks.iter().map(|tick| tick_json(&job.grid(), tick)).collect::<Vec<_>>().into();
        document["readers"] = json!(readers(project, job));
        document["runs"] = runs.iter().map(run_json).collect::<Vec<_>>().into();
        app.out.document(&document)?;
        return Ok(ExitCode::from(DONE));
    }
    show_text(app, project, job, &known, &ticks, &runs)?;
    Ok(ExitCode::from(DONE))
}

fn show_text(
    app: &App,
    project: &Project,
    job: &Job,
    known: &Known,
    ticks: &[Tick],
    runs: &[RunRow],
) -> anyhow::Result<()> {
    let out = app.out;
    let now = app.clock.now();
    let line = |name: &str, value: String| {
        out.line(format_args!("{} {value}", styled(out.stdout_color, Style::Bold, &format!("{name:11}"))))
    };
    line("job", format!("{} (version {})", job.name, job.version))?;
    line("file", job.file.clone())?;
    if let Some(description) = &job.spec.description {
        line("description", description.clone())?;
    }
    line("owner", job.spec.owner.clone().unwrap_or_else(|| "nobody".to_owned()))?;
    if let Some(table) = &job.table {
        line("table", format!("{table}, by {}", job.partition_columns().join(", ")))?;
    }
    line("makes", makes(job))?;
    line("schedule", format!("{}, in {}", schedule(job), job.zone))?;
    if let Some(paused) = known.paused_at() {
        line(
            "paused",
            format!(
                "since {} UTC, {}: headworks jobs resume {} lets it go on",
                shown(paused),
                ago(paused, now),
                job.name
            ),
        )?;
    }
    line("grain", job.grain.to_string())?;
    let days = match (job.spec.start, job.spec.end) {
        (None, None) => "no limits".to_owned(),
        (Some(start), None) => format!("from {start}"),
        (None, Some(end)) => format!("to {end}"),
        (Some(start), Some(end)) => format!("{start} to {end}"),
    };
    line("days", days)?;
    let or_nothing = |list: Vec<String>| if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
    line("waits for", or_nothing(job.waits_in_words()))?;
    line("read by", or_nothing(readers(project, job)))?;
    for (i, tick) in ticks.iter().enumerate() {
        let name = if i == 0 { "next" } else { "" };
        let what = match &tick.interval {
            Some(interval) => format!("for {}", job.grid().last_key(interval)),
            None => "for nothing".to_owned(),
        };
        let (local, utc) = (on_clock(job.zone, tick.at), shown(tick.at));
        line(name, format!("{local} = {utc} UTC, {}, {what}", ago(tick.at, now)))?;
    }
    if let Some(problem) = &known.problem {
        line("problem", problem.clone())?;
    }
    out.line("")?;
    if runs.is_empty() {
        out.note(format_args!("no runs yet: start one with headworks run {}", job.name));
        return Ok(());
    }
    out.table(&run_table(runs, now))
}

/// What kind of table it makes and from what, or how many tasks it does instead.
fn makes(job: &Job) -> String {
    if job.table.is_none() {
        return counted(job.spec.tasks.len() as u64, "task");
    }
    let kind = kind(job);
    match job.import() {
        Some(import) => format!("{kind}, import of {}.{}", import.connection, import.table),
        None => kind.to_owned(),
    }
}

fn kind(job: &Job) -> &'static str {
    match job.spec.kind {
        Kind::Cumulative => "cumulative",
        Kind::Events => "events",
        Kind::Upsert => "upsert",
        Kind::View => "view",
    }
}

fn schedule(job: &Job) -> String {
    job.schedule.as_ref().map_or_else(|| "by hand".to_owned(), ToString::to_string)
}

/// The jobs that read a job's table, waiting or not.
fn readers(project: &Project, job: &Job) -> Vec<String> {
    let Some(table) = job.table.as_ref() else { return Vec::new() };
    let table = table.as_str();
    project
        .jobs
        .values()
        .filter(|reader| reader.name != job.name)
        .filter(|reader| {
            reader.waits.iter().any(|w| w.table == table)
                || reader.reads_latest.iter().chain(&reader.reads_plain).any(|t| t == table)
        })
        .map(|reader| reader.name.to_string())
        .collect()
}

fn next_ticks(job: &Job, now: DateTime<Utc>) -> Vec<Tick> {
    let Some(schedule) = &job.schedule else { return Vec::new() };
    let grid = job.grid();
    let start = job.spec.start.map(|ds| grid.instant_of(ds.date().and_time(NaiveTime::MIN)));
    // A tick at this very moment has come already.
    let after = start.map_or(now, |start| start.max(now)) + TimeDelta::nanoseconds(1);
    let ticks = schedule.runs(grid, after, DateTime::<Utc>::MAX_UTC).take(TICKS_SHOWN);
    ticks.filter(|tick| tick.interval.is_none_or(|interval| job.covers(&interval))).collect()
}

fn job_json(job: &Job) -> Value {
    json!({
        "job": job.name,
        "version": job.version,
        "file": job.file,
        "table": job.table,
        "kind": job.table.as_ref().map(|_| kind(job)),
        "tasks": job.spec.tasks.iter().map(|(name, task)| json!({"task": name, "type": task.action.as_str(), "after": task.after})).collect::<Vec<_>>(),
        "import": job.import().map(|i| json!({"connection": i.connection, "table": i.table})),
        "description": job.spec.description,
        "owner": job.spec.owner,
        "schedule": job.schedule.as_ref().map(ToString::to_string),
        "timezone": job.zone.name(),
        "grain": job.grain.to_string(),
        "start": job.spec.start,
        "end": job.spec.end,
        "partition_by": job.partition_columns(),
        "waits": job.waits_in_words(),
        "reads_latest": job.reads_latest,
    })
}

async fn forget(app: &App, args: ForgetArgs) -> anyhow::Result<ExitCode> {
    let store = app.run_store().await?;
    let memory = store.memory(&args.job).await?;
    if memory.is_empty() {
        let hint = "headworks runs list shows which jobs ran";
        return Err(Failure::not_found(format!("no runs of a job `{}` are known", args.job), hint).into());
    }
    let logs = app.logs_dir()?;
    let files = memory.logs.iter().filter_map(|log| log_file(&logs, log));
    let size: u64 = files.filter_map(|file| fs::metadata(file).ok()).map(|meta| meta.len()).sum();
    if args.yes {
        let forgotten = store.forget(&args.job).await?;
        for file in forgotten.iter().filter_map(|log| log_file(&logs, log)) {
            remove_log(&logs, &file)?;
        }
    }
    let runs: u64 = memory.runs.iter().map(|(_, count)| count).sum();
    if app.out.json {
        let states: serde_json::Map<String, Value> = memory.runs.iter().map(|(s, n)| (s.clone(), json!(n))).collect();
        app.out.document(&json!({
            "job": args.job,
            "forgotten": args.yes,
            "runs": runs,
            "states": states,
            "first_ds": memory.days.as_ref().map(|(first, _)| first),
            "last_ds": memory.days.as_ref().map(|(_, last)| last),
            "tasks": memory.tasks,
            "attempts": memory.attempts,
            "versions": memory.versions,
            "logs": {"files": memory.logs.len(), "bytes": size},
        }))?;
        return Ok(ExitCode::from(DONE));
    }
    let mut table = Table::new([("what", Align::Left), ("count", Align::Right), ("which", Align::Left)]);
    let states = memory.runs.iter().map(|(state, n)| format!("{} {state}", count(*n))).collect::<Vec<_>>().join(", ");
    let days = memory.days.map(|(first, last)| format!(", {first} to {last}")).unwrap_or_default();
    for (what, n, which) in [
        ("runs", runs, format!("{states}{days}")),
        ("tasks", memory.tasks, String::new()),
        ("attempts", memory.attempts, String::new()),
        ("versions", memory.versions, "of the job's text".to_owned()),
        ("logs", memory.logs.len() as u64, bytes(size)),
    ] {
        table.row([what.to_owned(), count(n), which]);
    }
    app.out.table(&table)?;
    app.note(if args.yes {
        format!("forgotten; what {} published stays", args.job)
    } else {
        format!("nothing was forgotten: --yes does it; what {} published stays in any case", args.job)
    });
    Ok(ExitCode::from(DONE))
}
