//! What holds for the workspace as a whole: its layers, its features, its files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod layers;
mod tidy;
mod tree;
