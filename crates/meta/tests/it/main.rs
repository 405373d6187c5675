//! One behaviour suite on SQLite and PostgreSQL, and the executor over the real records.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod accounts;
mod asked;
mod execute;
mod jobs;
mod outbox;
mod pools;
mod suite;
mod upgrade;
mod world;
