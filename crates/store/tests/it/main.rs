//! The metadata database on SQLite and PostgreSQL: its portable form, and what it answers when something is wrong with it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod dump;
mod faults;
mod world;
