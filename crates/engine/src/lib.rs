//! SQL over the lake: one statement in, Arrow batches out.
//!
//! It plans and runs SELECTs with DataFusion on threads of its own, away from those that serve requests; holds queries to
//! limits of text, memory, spill space, time and number; reads all tables of a statement at one version of the lake; and
//! knows `t_latest`, `t AT (VERSION => n)`, `information_schema`. Whatever a caller's grants hide is not there, whichever way a
//! statement asks for it. It also writes results as a table, CSV, JSON or Parquet
//! ([`output`]) and runs the checks of a job on a staged result ([`checks`]).
//!
//! It deliberately does not write to the lake, names no file from SQL, and knows nothing of jobs and runs.
//!
//! [`Engine`] is the way in, [`QueryOptions`] say how one statement is run, [`QueryStream`] is its result, [`Catalog`] is
//! what it needs to know of a lake.
//!
//! ```
//! use std::sync::Arc;
//! use arrow::array::AsArray;
//! use headworks_engine::{Engine, EngineOptions, NoTables, QueryOptions};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("headworks-doc-{}", std::process::id()));
//! let engine = Engine::new(Arc::new(NoTables), EngineOptions::new(&dir, 2))?;
//! let rows = futures::executor::block_on(engine.rows("select 40 + 2 as answer", QueryOptions::default()))?;
//! assert_eq!(rows[0]["answer"].as_primitive::<arrow::datatypes::Int64Type>().value(0), 42);
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok(())
//! # }
//! ```

mod caller;
mod catalog;
mod engine;
mod error;
mod kept;
mod live;
mod options;
mod stored;

pub mod checks;
pub mod output;

mod access;
mod arithmetic;
mod cache;
mod conjunctions;
mod coop;
mod dialect;
mod early_filters;
mod early_groups;
mod explain;
mod extremes;
mod filters_first;
mod functions;
mod guard;
mod information;
mod lake;
mod layered;
mod listing;
mod parse;
mod pg_catalog;
mod plan;
mod pool;
mod queue;
mod resolve;
mod semi_joins;
mod shared;
mod turns;
mod types;
mod wanted;
mod window_columns;

pub use access::GrantCheck;
pub use arrow::datatypes::{Field, SchemaRef};
pub use caller::{Caller, Credentials, SignIn, SignInError, Signed};
pub use catalog::{Catalog, Found, Listed, Moment, Newest, NoTables};
pub use datafusion::scalar::ScalarValue;
pub use engine::{Described, Engine, QueryStream, Started};
pub use error::{Error, Position, Result};
pub use headworks_lake::At;
pub use kept::{Kept, KeptOptions, KeptQueries};
pub use layered::Layered;
pub use live::{QueryId, QueryListener, QueryState, Stage};
pub use options::{
    CacheOptions, CacheState, EngineOptions, Priority, QueryOptions, QueueOptions, QueueState, SqlLimits,
};
pub use pg_catalog::{PG_VERSION, PgSession, PgType, array_items, pg_type};
pub use queue::DEFAULT_QUEUE;
pub use stored::Stored;
pub use types::sql_type_name;
