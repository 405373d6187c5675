//! The orchestrator's records in the metadata database: runs, tasks, attempts, leases, job versions.
//!
//! [`Runs`] is a [`RunStore`](headworks_flow::exec::RunStore) on [`headworks_store`], the same on SQLite and PostgreSQL. It
//! decides nothing: which run goes next is `flow`'s business. What it promises is ownership. A run belongs to a process and a
//! *fence*, a number from one counter of the database; every write names the fence, and a write whose fence is no longer the
//! run's changes nothing. [`finish_in`] brings that promise into the lake's publish transaction.
//!
//! A process holds its runs by a lease of ten seconds that it renews every three. Who finds a live run whose owner's lease is
//! over, or whose owner ran on this machine and is gone, may claim it under a higher fence.
//!
//! [`Outbox`] keeps alerts until they are sent. [`Accounts`] knows who may sign in and what they may read.
//!
//! ```no_run
//! # async fn f(store: headworks_store::Store, record: headworks_flow::exec::RunRecord) -> Result<(), headworks_meta::Error> {
//! use std::sync::Arc;
//! use headworks_domain::SystemClock;
//! use headworks_meta::{Runs, SystemProcesses};
//! let runs = Runs::open(store.clone(), Arc::new(SystemClock), Arc::new(SystemProcesses)).await?;
//! store.write(|tx| Box::pin(async move { headworks_meta::finish_in(tx, &record).await })).await?;
//! # Ok(()) }
//! ```

mod accounts;
mod asked;
mod backfills;
mod claim;
mod demands;
mod error;
mod jobs;
mod keep;
mod outbox;
mod placement;
mod pools;
mod process;
mod read;
mod record;
mod restored;
mod row;
mod runs;
mod schema;
mod steer;

pub use accounts::{
    Account, Accounts, GRANTS_MAX, GrantRow, Grantee, NewToken, PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, ScramVerifier,
    TOKENS_MAX, TokenRow, USERS_MAX, UserRow,
};
pub use asked::{Asked, AskedFilter, AskedLog};
pub use backfills::{Answer, BackfillRow, BackfillState, NewBackfill, NewPiece, PieceRow, Progress};
pub use demands::{DemandRow, NewDemand};
pub use error::{Error, Result};
pub use jobs::{Definition, JobRow, Role};
pub use keep::{Memory, Outdated};
pub use outbox::{AlertRow, AlertState, Failing, Missed, Notice, Outbox, Parcel, Recovery};
pub use placement::ProcessRow;
pub use pools::{Holder, PoolRow};
pub use process::{Life, ProcessInfo, Processes, SystemProcesses};
pub use record::finish_in;
pub use restored::restored;
pub use runs::{LEASE, Runs};
pub use schema::TABLES;
pub use steer::{Cancelled, Mark};
