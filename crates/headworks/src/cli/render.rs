use std::process::ExitCode;

use headworks_flow::{
    ColumnCheck, Command, Each, Job, OutsideOn, Question, Rule, RunContext, RunPlan, Span, TableCheck, TaskAction,
    TaskPlan, WaitOn,
};
use serde_json::{Value, json};

use super::when::WhenArgs;
use crate::{
    app::App,
    fail::{DONE, Failure},
    output::{Style, styled},
};

/// Show the SQL and the tasks of a run, without running it
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks render flights_flat --ds 2013-01-01
  headworks render flights_flat --ds 2013-01-01 --sql | headworks sql")]
pub(crate) struct Args {
    /// The job, by its name or by its table
    job: String,
    #[command(flatten)]
    when: WhenArgs,
    /// Show the final SQL of the stage and nothing else
    #[arg(long)]
    sql: bool,
}

pub(crate) fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let project = app.project()?;
    let job = app.job(&args.job)?;
    let intervals = args.when.intervals(&job, app.clock.now())?;
    let interval = *intervals.first().expect("there is at least one");
    if intervals.len() > 1 {
        app.note(format_args!("the first of {} intervals of that day; --hour takes another", intervals.len()));
    }
    let context = RunContext {
        run_id: "render".parse().expect("a run's name"),
        env: app.env_name()?.to_string(),
        params: args.when.params()?,
    };
    let unfit = |problems| {
        Failure::usage(format!("job `{}` cannot be rendered for {interval}", job.name), format!("mend {}", job.file))
            .problems(problems)
    };
    let plan = job.plan_run(project, interval, &context).map_err(unfit)?;
    let checks = checks(&job, job.render_checks(project, interval, &context).map_err(unfit)?);
    if args.sql {
        let sql = plan.sql.as_ref().ok_or_else(|| {
            let what = if job.table.is_some() { "it is an import" } else { "it has tasks" };
            Failure::usage(format!("job `{}` has no SQL: {what}", job.name), "leave --sql out")
        })?;
        if app.out.json {
            app.out.document(&json!({"sql": sql.sql}))?;
        } else {
            app.out.line(sql.sql.trim_end())?;
        }
    } else if app.out.json {
        app.out.document(&plan_json(&plan, &checks)?)?;
    } else {
        show(app, &plan, &checks)?;
    }
    Ok(ExitCode::from(DONE))
}

fn show(app: &App, plan: &RunPlan, checks: &[Check]) -> anyhow::Result<()> {
    let out = app.out;
    let heading = |text: &str| out.line(styled(out.stdout_color, Style::Bold, text));
    heading(&format!("-- run of {} over {}", plan.job.name, plan.interval))?;
    if let Some(table) = &plan.job.table {
        out.line(format_args!("-- writes {table} {}", shown_list(plan.partitions.iter().map(ToString::to_string))))?;
    }
    for task in &plan.tasks {
        let after = if task.after.is_empty() {
            String::new()
        } else {
            format!(" after {}", task.after.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        };
        let wait = plan.waits.iter().find(|w| w.task == task.name).map(wait_words);
        let wait = wait.or_else(|| plan.outside.iter().find(|w| w.task == task.name).map(outside_words));
        let wait = wait.map(|words| format!(": {words}")).unwrap_or_default();
        out.line(format_args!("-- task {}{after}{}{wait}", task.name, option_words(task)))?;
    }
    for table in &plan.reads_latest {
        out.line(format_args!("-- reads the newest partition of {table}, without waiting"))?;
    }
    if let Some(import) = plan.job.import() {
        out.line("")?;
        heading("-- stage: import")?;
        out.line(format_args!("-- from {}.{}{}", import.connection, import.table, cut_words(plan)))?;
    }
    if let Some(sql) = &plan.sql {
        out.line("")?;
        heading("-- stage")?;
        out.line(sql.sql.trim_end())?;
    }
    for wait in &plan.outside {
        if let Question::Sql { sql, connection } = wait.question.as_ref() {
            out.line("")?;
            heading(&format!("-- {}: sql on {connection}", wait.task))?;
            out.line(sql.trim_end())?;
        }
    }
    for task in plan.tasks.iter().filter(|task| task.options.alone) {
        out.line("")?;
        heading(&format!("-- {}: {}", task.name, task.kind.as_str()))?;
        out.line(action_text(&foreseen(plan, task)?))?;
    }
    for check in checks {
        out.line("")?;
        heading(&format!("-- check {}", check.name))?;
        match &check.sql {
            Some(sql) => out.line(sql.trim())?,
            None => out.line(format_args!("-- {}", check.what))?,
        }
    }
    Ok(())
}

/// What a task does, as far as it can be told before its run.
fn foreseen(plan: &RunPlan, task: &TaskPlan) -> Result<TaskAction, Failure> {
    plan.action_foreseen(&task.name).map_err(|failure| {
        let hint = failure.hint.clone().unwrap_or_default();
        Failure::usage(failure.message, hint)
    })
}

/// When a task runs and what it takes, where that is not the usual.
fn option_words(task: &TaskPlan) -> String {
    let options = &task.options;
    let mut words = String::new();
    if options.rule != Rule::default() {
        words += &format!(", rule {}", options.rule.as_str());
    }
    if options.allow_failure {
        words += ", may fail";
    }
    match &options.each {
        Some(Each::Items(items)) => words += &format!(", {} items", items.len()),
        Some(Each::Later(expression)) => words += &format!(", for each of {expression}"),
        None => {}
    }
    if let Some(pool) = &options.pool {
        words += &format!(", pool {pool}");
    }
    words
}

/// What a task does, as its command, script, call or query.
fn action_text(action: &TaskAction) -> String {
    match action {
        TaskAction::Shell(shell) => match &shell.command {
            Command::Text(text) => text.trim_end().to_owned(),
            Command::Words(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" "),
        },
        TaskAction::Python(python) => match (&python.script, &python.file) {
            (Some(script), _) => script.trim_end().to_owned(),
            (None, file) => {
                let words = file.iter().chain(&python.args).map(String::as_str);
                words.collect::<Vec<_>>().join(" ")
            }
        },
        TaskAction::Http(http) => {
            let body = match &http.body {
                None => String::new(),
                Some(Value::String(text)) => format!("\n{}", text.trim_end()),
                Some(json) => format!("\n{json}"),
            };
            format!("{} {}{body}", http.method.as_str(), http.url)
        }
        TaskAction::Sql(sql) => sql.sql.trim_end().to_owned(),
    }
}

/// A check of the staged result, in words and as SQL where it is one.
struct Check {
    name: String,
    what: String,
    sql: Option<String>,
}

fn checks(job: &Job, of_table: Vec<TableCheck>) -> Vec<Check> {
    let mut checks = Vec::new();
    for (column, spec) in job.spec.columns.iter() {
        for check in &spec.checks {
            let (word, what) = match check {
                ColumnCheck::NotNull => ("not_null", format!("{column} is never null")),
                ColumnCheck::Unique => ("unique", format!("no value of {column} comes twice")),
                ColumnCheck::AcceptedValues(values) => {
                    let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                    ("accepted_values", format!("{column} is one of {}", values.join(", ")))
                }
                ColumnCheck::Relationships(to) => {
                    ("relationships", format!("{column} stands in {}.{}", to.table, to.column))
                }
            };
            checks.push(Check { name: format!("{column}: {word}"), what, sql: None });
        }
    }
    for check in of_table {
        let name = check.name().to_owned();
        checks.push(match check {
            TableCheck::Sql(check) => Check { name, what: "the query gives true".to_owned(), sql: Some(check.sql) },
            TableCheck::RowCount(check) => {
                let what = match (check.row_count.min, check.row_count.max) {
                    (Some(min), Some(max)) => format!("{min} to {max} rows"),
                    (Some(min), None) => format!("at least {min} rows"),
                    (None, Some(max)) => format!("at most {max} rows"),
                    (None, None) => "any number of rows".to_owned(),
                };
                Check { name, what, sql: None }
            }
        });
    }
    checks
}

fn cut_words(plan: &RunPlan) -> String {
    match plan.job.import().and_then(|i| i.by.as_ref()) {
        Some(by) => format!(", {by} in [{}, {})", plan.interval.start().to_rfc3339(), plan.interval.end().to_rfc3339()),
        None => ", the whole table".to_owned(),
    }
}

fn wait_words(wait: &WaitOn) -> String {
    let mut words = format!("{} {}", wait.table, shown_list(wait.partitions.iter().map(ToString::to_string)));
    if let Some(upto) = wait.upto {
        words += &format!(", everything up to ds={upto}");
    }
    words
}

/// What is looked at outside of the lake, and how often.
fn outside_words(wait: &OutsideOn) -> String {
    let what = match wait.question.as_ref() {
        Question::File { file } => format!("file {file}"),
        Question::Sql { connection, .. } => format!("sql on {connection}, as below"),
        Question::Http { http, expect, .. } if expect.is_empty() => format!("http {http}"),
        Question::Http { http, expect, .. } => {
            let expect: Vec<String> = expect.iter().map(|status| status.0.to_string()).collect();
            format!("http {http} with status {}", expect.join(" or "))
        }
    };
    format!("{what}, looked at every {}", Span::from_secs(wait.every.as_secs()))
}

/// The most partitions named one by one.
const NAMED_MAX: usize = 4;

fn shown_list(items: impl ExactSizeIterator<Item = String>) -> String {
    let n = items.len();
    let items: Vec<String> = items.collect();
    if n <= NAMED_MAX {
        return if n == 0 { "(nothing)".to_owned() } else { items.join(", ") };
    }
    format!("{} ... {} ({n} partitions)", items[0], items[n - 1])
}

fn plan_json(plan: &RunPlan, checks: &[Check]) -> Result<Value, Failure> {
    let mut tasks: Vec<Value> = Vec::with_capacity(plan.tasks.len());
    for task in &plan.tasks {
        let mut shown = json!({"task": task.name, "kind": task.kind.as_str(), "after": task.after});
        if task.options.alone {
            shown["rule"] = task.options.rule.as_str().into();
            shown["allow_failure"] = task.options.allow_failure.into();
            shown["each"] = match &task.options.each {
                Some(Each::Items(items)) => items.clone().into(),
                Some(Each::Later(expression)) => expression.as_str().into(),
                None => Value::Null,
            };
            shown["action"] = serde_json::to_value(foreseen(plan, task)?).unwrap_or_default();
        }
        tasks.push(shown);
    }
    let waits: Vec<Value> = plan
        .waits
        .iter()
        .map(|w| json!({"task": w.task, "table": w.table, "partitions": w.partitions, "upto": w.upto}))
        .collect();
    let outside: Vec<Value> = plan
        .outside
        .iter()
        .map(|w| {
            let mut shown = json!({"task": w.task, "kind": w.question.kind(), "every_secs": w.every.as_secs_f64()});
            let question = serde_json::to_value(w.question.as_ref()).unwrap_or_default();
            if let (Some(shown), Value::Object(question)) = (shown.as_object_mut(), question) {
                shown.extend(question);
            }
            shown
        })
        .collect();
    let checks: Vec<Value> = checks.iter().map(|c| json!({"check": c.name, "what": c.what, "sql": c.sql})).collect();
    Ok(json!({
        "job": plan.job.name,
        "job_version": plan.job.version,
        "table": plan.job.table,
        "interval_start": plan.interval.start(),
        "interval_end": plan.interval.end(),
        "partitions": plan.partitions,
        "tasks": tasks,
        "waits": waits,
        "outside": outside,
        "reads_latest": plan.reads_latest,
        "sql": plan.sql.as_ref().map(|s| &s.sql),
        "checks": checks,
    }))
}
