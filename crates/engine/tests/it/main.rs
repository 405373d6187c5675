//! The engine on tables in memory: what SQL may say, what it answers, how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod access;
mod checks;
mod hostile;
mod lake;
mod names;
mod output;
mod queues;
mod running;
mod slt;
mod support;
