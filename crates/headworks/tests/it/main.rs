//! Runs the real binary on small projects. What people read is kept as snapshots: look at each changed one before taking it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod bad_input;
mod daily_use;
mod demo;
mod full_disk;
mod grown;
mod project;
mod words;
