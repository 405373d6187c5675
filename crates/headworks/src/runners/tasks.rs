//! The tasks that a job file names itself: commands, scripts, calls and small queries.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::SecondsFormat;
use headworks_domain::ErrorKind;
use headworks_flow::{
    Command, Failure, ProcessSpec, PythonTask, RunPlan, SqlTask, TaskAction,
    exec::{Done, Segment, Stop},
};
use serde_json::Value;

use super::{
    Runner,
    output::Output,
    process::{self, Children, Outcome},
    sql::options,
};
use crate::{
    app::App,
    supervise::{Ended, Order, output_path, script_path},
};

/// The exit code by which a command says that it may succeed later (sysexits.h).
const EX_TEMPFAIL: i32 = 75;

/// Our own variables that every command gets.
const PASSED: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "LC_ALL", "TZ"];

/// Runs a script from a file as Python runs `-c`: modules are looked for in the working folder.
const PYTHON_START: &str = "import sys; sys.argv = sys.argv[1:]; sys.path[0] = ''; \
    exec(compile(open(sys.argv[0], encoding='utf-8').read(), sys.argv[0], 'exec'))";

/// Looks up variables of our own environment, for secrets.
type Variables = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What commands need to know of the project.
pub(super) struct Surroundings {
    root: PathBuf,
    work: PathBuf,
    env: String,
    passed: BTreeMap<String, String>,
    /// Everything of our own environment, for `${env:NAME}`.
    variables: Variables,
    python: String,
    kill_after: Duration,
    children: Children,
}

impl Surroundings {
    pub(super) fn new(app: &App) -> anyhow::Result<Self> {
        let execution = &app.config()?.execution;
        let more = execution.pass_env.iter().map(String::as_str).filter(|name| !name.starts_with("HEADWORKS__"));
        let passed = PASSED.into_iter().chain(more);
        let passed = passed.filter_map(|name| Some((name.to_owned(), app.variable(name)?))).collect();
        let environment = app.environment().clone();
        Ok(Self {
            root: app.root()?.to_owned(),
            work: app.work_dir()?,
            env: app.env_name()?.to_string(),
            passed,
            variables: Arc::new(move |name| environment.get(name).map(str::to_owned)),
            python: execution.python.clone(),
            kill_after: execution.kill_after.duration(),
            children: app.children.clone(),
        })
    }
}

impl Runner {
    /// Does one task of a job file, or one item of it.
    pub(super) async fn task(&self, segment: &mut Segment, plan: &RunPlan) -> Result<Done, Stop> {
        let (Some(name), Some(task)) = (segment.tasks.first().cloned(), plan.tasks.get(segment.input.place)) else {
            return Err(super::internal("the segment has no task"));
        };
        segment.begin(&name);
        let item = segment.input.item.as_ref().map(|(item, _)| item);
        let outputs = Arc::clone(&segment.input.outputs);
        let action = plan.action(&task.name, item, &outputs, &*self.surroundings.variables)?;
        if let Some(item) = item {
            segment.log.line(format!("item {item}"));
        }
        let work = match &action {
            TaskAction::Shell(shell) => {
                let argv = match &shell.command {
                    Command::Text(text) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()],
                    Command::Words(words) => words.clone(),
                };
                self.command(segment, plan, &shell.process, argv, None).await
            }
            TaskAction::Python(python) => self.python(segment, plan, python).await,
            TaskAction::Http(http) => limited(segment.timeout(), self.looker.http.call(segment, http)).await,
            TaskAction::Sql(sql) => limited(segment.timeout(), self.query(segment, plan, sql)).await,
        };
        let output = work.map_err(|failure| {
            let message = format!("task `{name}` {}", failure.message);
            Stop::Failed(Failure { message, ..failure })
        })?;
        if let Some(output) = &output {
            segment.log.last_words(format!("output: {}", shortened(output)));
        }
        segment.end(&name);
        Ok(Done { output, ..Done::default() })
    }

    async fn python(&self, segment: &Segment, plan: &RunPlan, python: &PythonTask) -> Result<Option<Value>, Failure> {
        let interpreter = python.interpreter.as_ref().unwrap_or(&self.surroundings.python);
        let interpreter = if interpreter.contains('/') {
            self.surroundings.root.join(interpreter).display().to_string()
        } else {
            interpreter.clone()
        };
        let mut argv = vec![interpreter, "-u".to_owned()];
        match (&python.script, &python.file) {
            (Some(_), _) => argv.extend([
                "-c".to_owned(),
                PYTHON_START.to_owned(),
                script_path(&self.work(segment)).display().to_string(),
            ]),
            (None, Some(file)) => argv.push(self.surroundings.root.join(file).display().to_string()),
            (None, None) => return Err(Failure::new(ErrorKind::Invalid, "TASK_NOT_STARTED", "has nothing to run")),
        }
        argv.extend(python.args.iter().cloned());
        self.command(segment, plan, &python.process, argv, python.script.clone()).await
    }

    async fn command(
        &self,
        segment: &Segment,
        plan: &RunPlan,
        spec: &ProcessSpec,
        argv: Vec<String>,
        script: Option<String>,
    ) -> Result<Option<Value>, Failure> {
        let around = &self.surroundings;
        let work = self.work(segment);
        let dir = spec.dir.as_ref().map_or_else(|| around.root.clone(), |dir| around.root.join(dir));
        if !dir.is_dir() {
            let message = format!("cannot start: its folder `{}` is not there", dir.display());
            return Err(Failure::new(ErrorKind::Invalid, "TASK_NOT_STARTED", message)
                .with_hint("make it, or name another one in `dir:`"));
        }
        let mut env = around.passed.clone();
        env.extend(spec.env.clone());
        env.extend(self.facts(segment, plan, &work));
        let order = Order {
            argv,
            env,
            dir,
            work,
            script,
            kill_after_ms: u64::try_from(around.kill_after.as_millis()).unwrap_or(u64::MAX),
            memory_max: spec.memory_max.map(|max| max.bytes()),
            output_bytes_max: segment.output_bytes_max(),
        };
        let mut output = Output::new(segment.log.clone());
        let limit = segment.timeout();
        match process::run(&order, limit, &mut output, &around.children).await {
            Ok(Outcome::Ended(ended)) => {
                if ended.left > 0 {
                    segment.log.last_words(format!(
                        "warning: it left {} running, which was stopped: a task's processes end with it",
                        if ended.left == 1 { "a process".to_owned() } else { format!("{} processes", ended.left) }
                    ));
                }
                result_of(&order, ended).map_err(|failure| with_last_lines(failure, &output))
            }
            Ok(Outcome::TimedOut) => Err(with_last_lines(timed_out(limit), &output)),
            Err(failure) => Err(Failure { message: format!("cannot run: {}", failure.message), ..failure }),
        }
    }

    /// The facts of the run, as environment variables.
    fn facts(&self, segment: &Segment, plan: &RunPlan, work: &Path) -> BTreeMap<String, String> {
        let time = |time: chrono::DateTime<chrono::Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, false);
        let task = plan.tasks.get(segment.input.place).map(|task| task.name.to_string());
        let mut facts = vec![
            ("HEADWORKS_JOB", plan.job.name.to_string()),
            ("HEADWORKS_TASK", task.unwrap_or_default()),
            ("HEADWORKS_RUN_ID", segment.run_id().to_string()),
            ("HEADWORKS_ATTEMPT", segment.input.tries.to_string()),
            ("HEADWORKS_FENCE", segment.fence().to_string()),
            ("HEADWORKS_DS", segment.shape.ds.to_string()),
            ("HEADWORKS_INTERVAL_START", time(plan.interval.start())),
            ("HEADWORKS_INTERVAL_END", time(plan.interval.end())),
            ("HEADWORKS_PARAMS", plan.params().to_string()),
            ("HEADWORKS_ENV", self.surroundings.env.clone()),
            ("HEADWORKS_PROJECT", self.surroundings.root.display().to_string()),
            ("HEADWORKS_OUTPUT", output_path(work).display().to_string()),
        ];
        facts.extend(segment.input.item.as_ref().map(|(item, _)| ("HEADWORKS_ITEM", item.to_string())));
        facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// A folder of the attempt's own.
    fn work(&self, segment: &Segment) -> PathBuf {
        self.surroundings.work.join(format!("{}-{}-{}", segment.run_id(), segment.fence(), segment.attempt()))
    }

    async fn query(&self, segment: &Segment, plan: &RunPlan, sql: &SqlTask) -> Result<Option<Value>, Failure> {
        segment.log.line(format!("running SQL:\n{}", sql.sql));
        let stream =
            self.engine.query(&sql.sql, options(&plan.job.name)).await.map_err(|error| query_failure(&error))?;
        let max = segment.output_bytes_max();
        let mut rows = Bounded { bytes: Vec::new(), max };
        match headworks_engine::output::write_json(stream, &mut rows).await {
            Ok(_) => {}
            Err(headworks_engine::Error::Output(_)) => {
                let message = format!("gave rows of more than {} as JSON", crate::output::bytes(max as u64));
                return Err(Failure::new(ErrorKind::Exhausted, "TASK_OUTPUT", message)
                    .with_hint("an output is small: count, limit, or make a table of it with a SQL job"));
            }
            Err(error) => return Err(query_failure(&error)),
        }
        serde_json::from_slice(&rows.bytes).map(Some).map_err(|error| {
            Failure::new(ErrorKind::Internal, "TASK_OUTPUT", format!("gave rows that are not JSON: {error}"))
        })
    }
}

/// Takes bytes up to a bound.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        // The line's end that closes the text is no part of the output.
        if self.bytes.len() + piece.len() > self.max + 1 {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn query_failure(error: &headworks_engine::Error) -> Failure {
    let failure = Failure::of(error);
    Failure { message: format!("has SQL that does not run: {}", failure.message), ..failure }
}

/// Bounds the time of work that ends when it is dropped.
async fn limited<T>(limit: Option<Duration>, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match limit {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(timed_out(Some(limit)))),
    }
}

fn timed_out(limit: Option<Duration>) -> Failure {
    let secs = limit.unwrap_or_default().as_secs_f64();
    Failure::new(ErrorKind::Exhausted, "FLOW_TIMEOUT", format!("took longer than its timeout of {secs} s"))
        .with_hint("raise its `timeout`, or see why it hangs")
        .with_retryable(true)
}

/// What a command that ended leaves: its output, or why it failed.
fn result_of(order: &Order, ended: Ended) -> Result<Option<Value>, Failure> {
    let size = crate::output::bytes;
    if let (Some(taken), Some(max)) = (ended.memory, order.memory_max) {
        let message =
            format!("took {} of memory, more than its `memory_max` of {}, and was killed", size(taken), size(max));
        return Err(Failure::new(ErrorKind::Exhausted, "TASK_MEMORY", message));
    }
    if let Some(signal) = ended.signal {
        let mut failure = Failure::new(
            ErrorKind::Exhausted,
            "TASK_SIGNAL",
            format!("was ended by signal {signal}{}", signal_words(signal)),
        );
        failure.retryable = true;
        return Err(failure);
    }
    match ended.exit {
        Some(0) => {}
        Some(EX_TEMPFAIL) => {
            let message = "ended with exit code 75: for now it cannot do its work";
            return Err(Failure::new(ErrorKind::Unavailable, "TASK_TEMPFAIL", message));
        }
        code => {
            let code = code.map_or("an unknown exit code".to_owned(), |code| format!("exit code {code}"));
            // Nobody can tell from outside whether that passes.
            return Err(
                Failure::new(ErrorKind::Invalid, "TASK_EXIT", format!("ended with {code}")).with_retryable(true)
            );
        }
    }
    if let Some(bytes) = ended.output_too_large {
        let max = size(order.output_bytes_max as u64);
        let message = format!("wrote an output of {}, and {max} is the most", size(bytes));
        return Err(Failure::new(ErrorKind::Invalid, "TASK_OUTPUT", message)
            .with_hint("put data into files or tables, and their names into $HEADWORKS_OUTPUT"));
    }
    let Some(text) = ended.output.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::new(ErrorKind::Invalid, "TASK_OUTPUT", format!("wrote an output that is not JSON: {error}"))
            .with_hint("write one JSON value to $HEADWORKS_OUTPUT, as {\"rows\": 5}")
    })
}

fn signal_words(signal: i32) -> &'static str {
    match signal {
        9 => " (SIGKILL), which Headworks did not send: the system may have run out of memory",
        11 => " (SIGSEGV)",
        6 => " (SIGABRT)",
        15 => " (SIGTERM), which Headworks did not send",
        _ => "",
    }
}

fn with_last_lines(mut failure: Failure, output: &Output) -> Failure {
    let lines = output.last_lines();
    if !lines.is_empty() {
        let before = failure.hint.map(|hint| format!("{hint}; ")).unwrap_or_default();
        failure.hint = Some(format!("{before}its last lines were\n  {}", lines.join("\n  ")));
    }
    failure
}

/// The most letters of an output that the log shows.
const SHOWN_MAX: usize = 500;

fn shortened(output: &Value) -> String {
    let text = output.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}
