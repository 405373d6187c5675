//! What the tests stand on: real servers that start in a second and vanish with the test, DuckDB as the second opinion on
//! every lake, and folders that hold a project for as long as a test runs.
//!
//! - [`TempPostgres`]: a PostgreSQL on a free loopback port; [`TempPostgres::shared`] gives one per test process and
//!   [`TempPostgres::create_database`] a fresh database per test.
//! - [`PgBouncer`]: a pooler before it, in transaction mode.
//! - [`Moto`]: an S3 server in memory.
//! - [`DuckDb`]: a DuckDB session with the DuckLake extensions, for reading what we wrote and writing what we must read.
//! - [`Relay`]: stands before a server and loses replies or cuts connections on order.
//! - [`HookInbox`], [`MailInbox`]: take webhooks and mail, and keep them.
//! - [`SmallDisk`]: a disk that a test can fill up.
//! - [`TempProject`]: a folder with files.
//! - [`python`]: runs a few lines of Python, for fixtures that another program should have written.
//!
//! Nothing here skips: a tool that is not there fails the test with a message that says `make setup`. Everything blocks; a
//! test on a single-threaded runtime calls it through `spawn_blocking` when its own tasks must go on meanwhile.
//!
//! It deliberately knows no other crate of the workspace but what a fixture needs, so that it compiles at once.
//!
//! ```no_run
//! use headworks_testkit::{Attach, DuckDb, TempProject};
//!
//! # fn main() -> anyhow::Result<()> {
//! let project = TempProject::new()?;
//! let mut duck = DuckDb::start()?;
//! duck.attach(&Attach::sqlite(project.path().join("metadata.db")).data_path(project.path().join("lake")))?;
//! duck.run("create table lake.t as select 1 as a")?;
//! assert_eq!(duck.query("select a from lake.t")?, [[serde_json::json!(1)]]);
//! # Ok(())
//! # }
//! ```

mod disk;
mod duckdb;
mod http;
mod inbox;
mod moto;
mod pgbouncer;
mod postgres;
mod project;
mod relay;
mod server;
mod tools;

pub use disk::SmallDisk;
pub use duckdb::{Attach, DuckDb, DuckError, DuckRows, DuckRun};
pub use http::http_get;
pub use inbox::{Hook, HookInbox, Letter, MailInbox};
pub use moto::Moto;
pub use pgbouncer::PgBouncer;
pub use postgres::{PostgresOptions, TempPostgres};
pub use project::TempProject;
pub use relay::Relay;
pub use tools::{jdbc_driver, python, python_path, workspace_root};
