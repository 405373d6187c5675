//! The program `headworks`: reads the command line, runs one command, and turns its outcome into an exit code.

mod adopted;
#[allow(dead_code, reason = "the always-on process starts the service")]
mod alert;
mod app;
mod cli;
mod execute;
mod fail;
mod output;
mod planner;
mod progress;
mod registry;
mod runners;
mod settings;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
