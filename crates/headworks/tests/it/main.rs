//! Runs the real binary on small projects. What people read is kept as snapshots: look at each changed one before taking it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]
#![allow(clippy::print_stdout, reason = "kills say their seed")]

mod accounts;
mod alerts;
mod backup;
mod bad_input;
mod control;
mod crew;
mod daily_use;
mod demo;
mod environments;
mod full_disk;
mod grown;
mod kills;
mod ledger;
mod outages;
mod outside;
mod policy;
mod pools;
mod processes;
mod project;
mod queries;
mod schedule;
mod serving;
mod tasks;
mod words;
