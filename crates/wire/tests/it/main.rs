//! The PostgreSQL server over an engine on tables in memory, asked by real clients and by a raw one.

#![allow(
    clippy::large_futures,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod clients;
mod fuzz;
mod protocol;
mod raw;
mod reference;
mod sign_in;
mod startup;
mod support;
