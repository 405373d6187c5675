use std::process::ExitCode;

use crate::{app::App, fail::DONE};

/// Print the JSON Schema of job files, for editors
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks schema > job.schema.json

An editor with a YAML language server then checks a file that begins with
  # yaml-language-server: $schema=../job.schema.json")]
pub(crate) struct Args {}

pub(crate) fn run(app: &App, _: Args) -> anyhow::Result<ExitCode> {
    app.out.document(&headworks_flow::job_schema())?;
    Ok(ExitCode::from(DONE))
}
