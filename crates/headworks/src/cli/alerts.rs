use std::process::ExitCode;

use chrono::{DateTime, Utc};
use headworks_domain::Fault;
use headworks_flow::{
    TargetName,
    alert::{Message, message_id},
};
use headworks_meta::{AlertRow, AlertState};
use serde_json::{Value, json};

use crate::{
    alert,
    app::App,
    fail::{DONE, FAILED, Failure},
    output::{Align, Style, Table, ago, duration, shown, styled},
};

/// Test the targets of alerts, and list what was told
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Test(TestArgs),
    List(ListArgs),
}

/// Send a test message, and say how it went
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks alerts test
  headworks alerts test team

Exit codes: 0 every target took it, 1 one did not, 2 there is no such target.")]
pub(crate) struct TestArgs {
    /// The target, as [alerts.targets.NAME] names it; all of them unless given
    target: Option<TargetName>,
}

/// List alerts, newest first: those on their way, sent, and given up
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks alerts list
  headworks alerts list --state given_up --json")]
pub(crate) struct ListArgs {
    /// Alerts in this state only: pending, sent or given_up
    #[arg(long, value_parser = state)]
    state: Option<AlertState>,
    /// List at most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = super::runs::limit)]
    limit: usize,
}

fn state(text: &str) -> Result<AlertState, String> {
    let known = AlertState::ALL.into_iter().find(|state| state.as_str() == text);
    known.ok_or_else(|| "write pending, sent or given_up".to_owned())
}

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Test(args) => test(app, args).await,
        Command::List(args) => list(app, args).await,
    }
}

/// How a target took its test.
struct Tested {
    target: TargetName,
    kind: &'static str,
    took_ms: i64,
    error: Option<String>,
}

async fn test(app: &App, args: TestArgs) -> anyhow::Result<ExitCode> {
    let project = app.project_as_it_is()?;
    let targets = &project.config.alerts.targets;
    if targets.is_empty() {
        let hint = "add an [alerts.targets.NAME] to headworks.toml, with type = \"slack\", \"email\" or \"webhook\"";
        return Err(Failure::not_found("the project has no targets for alerts", hint).into());
    }
    let chosen: Vec<&TargetName> = match &args.target {
        Some(name) => {
            project.config.alerts.target(name)?;
            vec![name]
        }
        None => targets.keys().collect(),
    };
    let mut tested = Vec::new();
    for name in chosen {
        tested.push(test_one(app, name).await?);
    }
    let code = if tested.iter().all(|t| t.error.is_none()) { DONE } else { FAILED };
    if app.out.json {
        let targets: Vec<Value> = tested
            .iter()
            .map(|t| json!({"target": t.target, "type": t.kind, "sent": t.error.is_none(), "took_ms": t.took_ms, "error": t.error}))
            .collect();
        app.out.document(&json!({"targets": targets}))?;
        return Ok(ExitCode::from(code));
    }
    for Tested { target, kind, took_ms, error } in &tested {
        let took = duration(chrono::TimeDelta::milliseconds(*took_ms));
        let color = app.out.stdout_color;
        match error {
            None => app
                .out
                .line(format_args!("{} {target} ({kind}) took it in {took}", styled(color, Style::Green, "sent")))?,
            Some(error) => {
                app.out.line(format_args!("{} {target} ({kind}): {error}", styled(color, Style::Red, "failed")))?;
            }
        }
    }
    Ok(ExitCode::from(code))
}

async fn test_one(app: &App, name: &TargetName) -> anyhow::Result<Tested> {
    let project = app.project_as_it_is()?;
    let target = project.config.alerts.target(name)?;
    let started = app.clock.now();
    let key = format!("test:{}", started.timestamp_micros());
    let message =
        Message { id: message_id(name.as_str(), [key.as_str()]), project: project.name(), events: Vec::new() };
    let error = match target.resolve(name, app.root()?, &|variable| app.variable(variable)) {
        Ok(resolved) => alert::send(&resolved, &message, started).await.err().map(|failed| failed.reason),
        Err(error) => Some(match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        }),
    };
    let took_ms = (app.clock.now() - started).num_milliseconds();
    Ok(Tested { target: name.clone(), kind: target.kind(), took_ms, error })
}

async fn list(app: &App, args: ListArgs) -> anyhow::Result<ExitCode> {
    let alerts = alert::outbox(app).await?.list(args.state, args.limit).await?;
    if app.out.json {
        let alerts: Vec<Value> = alerts.iter().map(alert_json).collect();
        app.out.document(&json!({"alerts": alerts}))?;
    } else if alerts.is_empty() {
        app.note("no such alerts");
    } else {
        app.out.table(&table(&alerts, app.clock.now()))?;
    }
    Ok(ExitCode::from(DONE))
}

fn alert_json(alert: &AlertRow) -> Value {
    json!({
        "target": alert.target,
        "state": alert.state.as_str(),
        "created_at": alert.created_at,
        "message_id": alert.message_id,
        "attempts": alert.attempts,
        "sent_at": alert.sent_at,
        "error": alert.error,
        "event": alert.event,
    })
}

fn table(alerts: &[AlertRow], now: DateTime<Utc>) -> Table {
    let mut table = Table::new([
        ("noticed (UTC)", Align::Left),
        ("alert", Align::Left),
        ("target", Align::Left),
        ("state", Align::Left),
        ("tries", Align::Right),
        ("what became of it", Align::Left),
    ]);
    for alert in alerts {
        let outcome = match (&alert.error, alert.sent_at) {
            (Some(error), _) => error.clone(),
            (None, Some(sent_at)) => ago(sent_at, now),
            (None, None) => String::new(),
        };
        table.row([
            shown(alert.created_at),
            alert.event.headline(),
            alert.target.to_string(),
            alert.state.as_str().to_owned(),
            alert.attempts.to_string(),
            outcome,
        ]);
    }
    table
}
