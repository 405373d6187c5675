//! What the crate promises, on real databases and files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod backup;
mod catalog;
mod publish;
mod read;
mod read_only;
mod upgrade;
