//! The engine on tables in memory: what SQL may say, what it answers, how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod access;
mod checks;
mod guard;
mod hostile;
mod lake;
mod names;
mod output;
mod queues;
mod running;
mod shared;
mod slt;
mod support;

/// The allocator of the program, so that memory can be watched as it is there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Bytes that this process has allocated now.
fn allocated_bytes() -> usize {
    match tikv_jemalloc_ctl::epoch::advance() {
        Ok(_) => tikv_jemalloc_ctl::stats::allocated::read().unwrap_or(0),
        Err(_) => 0,
    }
}
