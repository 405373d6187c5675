//! The allocator, and how much it has given out: by that the SQL engine stops queries that take too much.

use tikv_jemalloc_ctl::{epoch, stats};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Bytes that the process has allocated now; 0 when the allocator does not tell.
pub(crate) fn allocated_bytes() -> usize {
    match epoch::advance() {
        Ok(_) => stats::allocated::read().unwrap_or(0),
        Err(_) => 0,
    }
}
