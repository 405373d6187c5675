//! The program `headworks`: reads the command line, runs one command, and turns its outcome into an exit code.

mod adopted;
mod alert;
mod app;
mod backup;
mod buckets;
mod cli;
mod connections;
mod execute;
mod fail;
mod lakes;
mod live;
mod memory;
mod output;
mod planner;
mod progress;
mod registry;
mod runners;
mod serve;
mod settings;
mod supervise;
mod upkeep;
mod why;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
