//! Carries out runs.
//!
//! [`Executor::run`] takes jobs and intervals and returns when each is done, failed or cancelled. It plans every run, claims
//! it from the [`RunStore`] in batches, starts it once the partitions it waits for are published, and learns of publishes at
//! once when they are its own and through [`Partitions`] when they are others'. The work itself is a [`TaskRunner`]'s.
//!
//! What is durable: the claim (run and task rows, with owner and fence) and the end of a run, which a publish records in its
//! own transaction ([`Segment::finished`]). What happens in between is written once a second, for other processes' eyes. A
//! process that dies before its publish has published nothing; who comes next takes its runs over under higher fences. The slots
//! of a named pool are taken in the store before a segment starts, and come back with the end of its run or right after it.
//!
//! The decisions are pure: `board` orders runs, [`crate::machine`] knows one run. The loop in `executor` carries them out. A
//! run's way: `executor/session` plans and claims it, `board` finds its waits met and starts it, `executor/attempts` hands its
//! segment to the runner, `board` takes the end and wakes who waits. `executor/others` watches what other processes own.

mod board;
mod error;
mod executor;
mod log;
mod options;
mod placement;
mod progress;
mod record;
mod segment;
mod serve;
mod shape;
mod timer;

pub use error::Error;
pub use executor::Executor;
pub use log::{AttemptLog, whose};
pub use options::{ExecutorOptions, Reprocess};
pub use placement::{DEFAULT_POOL, JOB_POOLS, Placement, Takes, job_pool};
pub use progress::{Counts, FailedRun, Progress, RunProgress, Summary};
pub use record::{
    AttemptRecord, BoxFault, Claim, ClaimRequest, Kept, Partition, Partitions, Producer, Release, RunDetail, RunFilter,
    RunRecord, RunRow, RunStore, Seen, SlotRequest, Slots, Standing, Trigger, passed_over,
};
pub use segment::{Done, LOOK_WITHIN, Segment, Stop, TaskInput, TaskRunner};
pub use serve::{Ask, Demand};
pub use shape::{Given, Planner, Request, RunLimits, RunShape};
pub use timer::{SystemTimer, Timer};
