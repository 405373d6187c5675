use std::{process::ExitCode, time::Duration};

use headworks_flow::Span;
use headworks_meta::{Asked, AskedFilter, AskedLog};
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::DONE,
    output::{Align, Table, duration, shown},
};

/// See who asked the server what
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(ListArgs),
}

/// List queries that ended, newest first
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks queries list
  headworks queries list --user ada --slower-than 10s
  headworks queries list --state failed --json

Queries of jobs are not among them: headworks runs show tells of those. They are kept as long as runs are (retention.runs).")]
pub(crate) struct ListArgs {
    /// Of this account only
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// In this state only: done, failed or cancelled
    #[arg(long, value_parser = ["done", "failed", "cancelled"])]
    state: Option<String>,
    /// That took at least so long, as 500ms or 10s
    #[arg(long, value_name = "TIME")]
    slower_than: Option<Span>,
    /// List at most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = super::runs::limit)]
    limit: usize,
}

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    let Command::List(args) = command;
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let filter = AskedFilter {
        user: args.user,
        state: args.state,
        took_ms_min: args.slower_than.map_or(0, |time| millis(time.duration())),
        limit: i64::try_from(args.limit).unwrap_or(i64::MAX),
    };
    let asked = AskedLog::open(app.store().await?.clone()).await?.list(&filter).await?;
    if app.out.json {
        let queries: Vec<Value> = asked.iter().map(as_json).collect();
        app.out.document(&json!({"queries": queries}))?;
    } else if asked.is_empty() {
        app.note("no such queries");
    } else {
        app.out.table(&table(&asked))?;
    }
    Ok(ExitCode::from(DONE))
}

fn as_json(asked: &Asked) -> Value {
    json!({
        "id": asked.id,
        "user": asked.user,
        "application": asked.application,
        "queue": asked.queue,
        "sql": asked.sql,
        "state": asked.state,
        "error": asked.error,
        "started_at": asked.started_at,
        "waited_ms": asked.waited_ms,
        "took_ms": asked.took_ms,
        "rows": asked.rows,
        "scanned_bytes": asked.scanned_bytes,
        "is_cached": asked.is_cached,
    })
}

/// The most characters of a statement in the table.
const SQL_CHARS: usize = 80;

fn table(asked: &[Asked]) -> Table {
    let mut table = Table::new([
        ("asked (UTC)", Align::Left),
        ("user", Align::Left),
        ("queue", Align::Left),
        ("state", Align::Left),
        ("took", Align::Right),
        ("rows", Align::Right),
        ("query", Align::Left),
    ]);
    for query in asked {
        let text: String = query.sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let short = if text.chars().count() > SQL_CHARS {
            text.chars().take(SQL_CHARS - 1).chain(['…']).collect()
        } else {
            text
        };
        let state = match (&query.error, query.is_cached) {
            (Some(code), _) => code.clone(),
            (None, true) => "cached".to_owned(),
            (None, false) => query.state.clone(),
        };
        table.row([
            shown(query.started_at),
            query.user.clone(),
            query.queue.clone(),
            state,
            duration(chrono::TimeDelta::milliseconds(query.took_ms)),
            query.rows.to_string(),
            short,
        ]);
    }
    table
}
