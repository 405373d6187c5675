use std::process::ExitCode;

use headworks_flow::{Origin, Setting};
use serde_json::{Value, json};

use crate::{
    app::App,
    fail::DONE,
    output::{Align, Table},
};

/// Show settings and where each comes from
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Show(ShowArgs),
}

/// Show each setting, its value and where it comes from; secrets stay hidden
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks config show
  headworks config show --env staging
  HEADWORKS__ENGINE__MEMORY=2GiB headworks config show --json")]
pub(crate) struct ShowArgs {}

pub(crate) fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(_) => show(app),
    }
}

fn show(app: &App) -> anyhow::Result<ExitCode> {
    let settings = app.settings()?;
    if app.out.json {
        let settings: Vec<Value> =
            settings.iter().map(|s| json!({"setting": s.path, "value": s.value, "origin": origin_words(s)})).collect();
        app.out.document(&json!({"project": app.root()?, "settings": settings}))?;
        return Ok(ExitCode::from(DONE));
    }
    let mut table = Table::new([("setting", Align::Left), ("value", Align::Left), ("from", Align::Left)]);
    for setting in settings {
        table.row([setting.path.clone(), value_words(setting), origin_words(setting)]);
    }
    app.out.table(&table)?;
    Ok(ExitCode::from(DONE))
}

fn value_words(setting: &Setting) -> String {
    match &setting.value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn origin_words(setting: &Setting) -> String {
    match &setting.origin {
        Origin::Default => "default".to_owned(),
        Origin::File { line } => format!("headworks.toml:{line}"),
        Origin::Env { name } => name.clone(),
        Origin::Flag if setting.path == "project.environment" => "--env".to_owned(),
        Origin::Flag => "--set".to_owned(),
    }
}
