//! The program `headworks`: reads the command line, runs one command, and turns its outcome into an exit code.

mod adopted;
mod app;
mod cli;
mod connections;
mod execute;
mod fail;
mod live;
mod output;
mod planner;
mod progress;
mod registry;
mod runners;
mod serve;
mod settings;
mod why;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
