//! The command line: arguments as typed, one file per group of commands.
//!
//! Arguments pass two stages: the structs here hold what was typed, and each command first resolves them against the project
//! (names exist, days make an interval) before it does anything.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use headworks_domain::EnvironmentName;
use tracing_subscriber::EnvFilter;

use crate::{app::App, fail, output::Out, settings::Environment};

mod adopt;
mod alerts;
mod backfill;
mod backfills;
mod backup;
mod config;
mod demo;
mod doctor;
mod gc;
mod grants;
mod init;
mod jobs;
mod queries;
mod render;
mod restore;
mod run;
pub(crate) mod runs;
mod schedule;
mod schema;
mod sql;
mod tables;
mod tokens;
mod up;
mod users;
mod validate;
mod when;
mod why;

/// Run a data platform from one folder: imports, SQL jobs, a lake, queries
#[derive(Debug, Parser)]
#[command(
    name = "headworks",
    version,
    max_term_width = 110,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or bad input. Data goes to stdout, everything else to stderr.",
    after_long_help = EXAMPLES
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  headworks demo                               a year of real flights, imported and computed
  headworks init shop && cd shop               start a project
  headworks validate                           check all its files
  headworks run calendar --ds 2026-01-01       run one job for one day
  headworks sql 'SELECT * FROM calendar_latest'

Exit codes: 0 done, 1 failed, 2 wrong usage or bad input. Data goes to stdout, everything else to stderr.
Settings: headworks.toml, then variables like HEADWORKS__METADATA__URL, then --set metadata.url=...; the later win.";

#[derive(Debug, clap::Args)]
struct GlobalArgs {
    /// Work in this project folder instead of the one around the current folder
    #[arg(short = 'C', long = "project", value_name = "DIR", global = true, help_heading = "Global options")]
    project: Option<PathBuf>,
    /// Answer with one JSON document (JSON lines where answers stream); errors too, on stderr
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Log to stderr what happens inside; twice for more
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = "Global options")]
    verbose: u8,
    /// Work in this environment of headworks.toml instead of production; HEADWORKS_ENV says the same
    #[arg(long, value_name = "NAME", global = true, help_heading = "Global options")]
    env: Option<String>,
    /// Set a setting for this command, as `--set engine.memory=2GiB`
    #[arg(long = "set", value_name = "KEY=VALUE", global = true, help_heading = "Global options")]
    settings: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Up(up::UpArgs),
    Scheduler(up::SchedulerArgs),
    Worker(up::WorkerArgs),
    Server(up::ServerArgs),
    Init(init::Args),
    Validate(validate::Args),
    Render(render::Args),
    Run(run::Args),
    Backfill(backfill::Args),
    #[command(subcommand)]
    Backfills(backfills::Command),
    Why(why::Args),
    Sql(sql::Args),
    #[command(subcommand)]
    Tables(tables::Command),
    #[command(subcommand)]
    Jobs(jobs::Command),
    #[command(subcommand)]
    Runs(runs::Command),
    Schedule(schedule::Args),
    #[command(subcommand)]
    Alerts(alerts::Command),
    #[command(subcommand)]
    Queries(queries::Command),
    #[command(subcommand)]
    Users(users::Command),
    #[command(subcommand)]
    Tokens(tokens::Command),
    #[command(subcommand)]
    Grants(grants::Command),
    Gc(gc::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Doctor(doctor::Args),
    #[command(subcommand)]
    Config(config::Command),
    Schema(schema::Args),
}

/// Reads the command line, runs the command, reports its error, and gives the exit code.
pub(crate) fn main() -> ExitCode {
    let environment = Environment::of_process();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // For ourselves only, and started for each command of a task: without the runtime, the log and the help.
    if arguments.get(1).is_some_and(|argument| argument == "supervise") {
        return crate::supervise::main();
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments, &environment),
    };
    log_to_stderr(cli.global.verbose, &environment);
    let out = Out::new(cli.global.json, cli.global.quiet, environment.no_color(), environment.dumb_terminal());
    let mut settings = cli.global.settings;
    settings.extend(cli.global.env.map(|name| format!("project.environment={name}")));
    let app = App::new(out, environment, cli.global.project, settings);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail::report(out, &anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let result = runtime.block_on(async {
        let result = run(&app, cli.command).await;
        app.close().await;
        result
    });
    // Whatever still runs on blocking threads has nothing to say any more.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => fail::report_with(out, &error, |hint| app.hint(&hint)),
    }
}

/// Puts the environment's name behind each `headworks COMMAND` of a hint: copied as it stands the command would work in production.
pub(crate) fn in_environment(hint: &str, name: &EnvironmentName) -> String {
    let mut hint = hint.to_owned();
    for command in Cli::command().get_subcommands().map(clap::Command::get_name) {
        hint = hint.replace(&format!("headworks {command}"), &format!("headworks --env {name} {command}"));
    }
    hint
}

async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(app, args).await,
        Command::Up(args) => up::up(app, args).await,
        Command::Scheduler(args) => up::scheduler(app, args).await,
        Command::Worker(args) => up::worker(app, args).await,
        Command::Server(args) => up::server(app, args).await,
        Command::Init(args) => init::run(app, args),
        Command::Validate(args) => validate::run(app, args),
        Command::Render(args) => render::run(app, args),
        Command::Run(args) => run::run(app, args).await,
        Command::Backfill(args) => backfill::run(app, args).await,
        Command::Backfills(command) => backfills::run(app, command).await,
        Command::Why(args) => why::run(app, args).await,
        Command::Sql(args) => sql::run(app, args).await,
        Command::Tables(command) => tables::run(app, command).await,
        Command::Jobs(command) => jobs::run(app, command).await,
        Command::Runs(command) => runs::run(app, command).await,
        Command::Schedule(args) => schedule::run(app, args),
        Command::Alerts(command) => alerts::run(app, command).await,
        Command::Queries(command) => queries::run(app, command).await,
        Command::Users(command) => users::run(app, command).await,
        Command::Tokens(command) => tokens::run(app, command).await,
        Command::Grants(command) => grants::run(app, command).await,
        Command::Gc(args) => gc::run(app, args).await,
        Command::Backup(args) => backup::run(app, args).await,
        Command::Restore(args) => restore::run(app, args).await,
        Command::Doctor(args) => doctor::run(app, args).await,
        Command::Config(command) => config::run(app, command),
        Command::Schema(args) => schema::run(app, args),
    }
}

/// Help and version go to stdout; a usage error goes to stderr, as JSON when `--json` stands anywhere.
fn usage(error: &clap::Error, arguments: &[OsString], environment: &Environment) -> ExitCode {
    let json = arguments.iter().any(|a| a == "--json");
    if json && error.use_stderr() {
        let out = Out::new(true, false, environment.no_color(), environment.dumb_terminal());
        let text = error.render().to_string();
        // The first paragraph says what is wrong; usage and tips follow.
        let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        return fail::report(out, &fail::Failure::usage(message, "see --help").into());
    }
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { fail::USAGE } else { fail::DONE })
}

fn log_to_stderr(verbose: u8, environment: &Environment) {
    let level = match verbose {
        0 => "off,headworks=error",
        1 => "warn,headworks=info",
        2 => "info,headworks=debug",
        _ => "debug,headworks=trace",
    };
    let filter = match environment.log_filter() {
        Some(filter) if verbose == 0 => EnvFilter::new(filter),
        _ => EnvFilter::new(level),
    };
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!environment.no_color() && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_the_environment() {
        let name = "staging".parse().unwrap();
        for (hint, expected) in [
            ("see headworks runs logs r1", "see headworks --env staging runs logs r1"),
            (
                "`headworks backfill t`, or headworks run t",
                "`headworks --env staging backfill t`, or headworks --env staging run t",
            ),
            ("see metadata.url in headworks.toml", "see metadata.url in headworks.toml"),
            ("use a newer version of headworks", "use a newer version of headworks"),
        ] {
            assert_eq!(in_environment(hint, &name), expected);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_short_imperative_line() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands() {
                let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
                assert!(!about.is_empty() && !about.ends_with('.') && about.len() <= 90, "{}: {about}", sub.get_name());
                check(sub);
            }
        }
        check(&Cli::command());
    }
}
