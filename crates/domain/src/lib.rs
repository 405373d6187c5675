//! The nouns of Headworks, shared by every crate: days and intervals, names, partitions, secrets, the clock, error kinds.
//!
//! It deliberately does no IO and knows neither tokio nor Arrow: what stands here can be used by a pure state machine as well
//! as by a server.
//!
//! ```
//! use headworks_domain::{Ds, Grain, Interval, TableName};
//! let ds: Ds = "2013-01-01".parse().unwrap();
//! assert_eq!(ds.plus_days(-1).to_string(), "2012-12-31");
//! assert!("company_metrics".parse::<TableName>().is_ok());
//! assert!("company_metrics_latest".parse::<TableName>().is_err());
//! assert_eq!(Grain::Hour.to_string(), "hour");
//! ```

mod access;
mod account;
mod error;
mod figures;
mod name;
mod partition;
mod problem;
mod secret;
mod time;

pub use access::{Access, Columns, Days, Grant, TablePattern};
pub use account::{AccountRole, Right, Scope, WordError};
pub use error::{Code, ErrorKind, Fault};
pub use figures::{bytes, count, counted};
pub use name::{ConnectionName, EnvironmentName, JobName, NameError, RunId, TableName, TaskName, UserName, nearest};
pub use partition::{PartitionKey, PartitionKeyError};
pub use problem::{Place, Problem, Severity};
pub use secret::Secret;
pub use time::{Clock, Ds, Grain, Interval, SystemClock, TimeError};
