//! The orchestrator: project files, plans, the state machine and its loops.
//!
//! One half reads what people write. [`Project::load`] reads `headworks.toml` and `jobs/**` and tells *all* problems of all
//! files at once, each with its line; [`Job::plan_run`] turns a job and an interval into a [`RunPlan`]: the partitions it
//! writes, what it waits for, the final SQL, the tasks. Reading files is all the IO of this half; time, environment and
//! secrets are passed in.
//!
//! The other half carries plans out: [`machine`] decides (pure), [`exec`] acts, through traits that other crates implement.
//!
//! It knows neither Arrow nor SQL engines: it cuts SQL into tokens to find the tables that a query waits for, and no more.
//!
//! ```
//! use headworks_flow::{Grid, Schedule};
//! use headworks_domain::Grain;
//!
//! let zone = "America/New_York".parse().unwrap();
//! let daily = Schedule::parse("30 2 * * *").unwrap();
//! // 02:30 does not exist on the day the clocks go forward: it runs at 03:00, the first instant after the gap.
//! let tick = daily.next_after(zone, "2013-03-10T05:00:00Z".parse().unwrap()).unwrap();
//! assert_eq!(tick.to_string(), "2013-03-10 07:00:00 UTC");
//! // Its run covers the day before.
//! let grid = Grid { grain: Grain::Day, zone };
//! let interval = daily.interval_at(&grid, tick).unwrap();
//! assert_eq!(grid.partitions(&interval)[0].to_string(), "ds=2013-03-09");
//! ```

pub mod alert;
pub mod backfill;
mod check;
mod column;
mod config;
mod connection;
mod cron;
mod deadline;
mod document;
mod environments;
mod error;
pub mod exec;
mod formats;
mod grid;
mod job;
mod jobfile;
pub mod machine;
mod named;
mod outside;
mod plan;
mod project;
mod render;
mod schedule;
mod schema;
mod settings;
mod source;
mod spec;
mod sql;
mod target;
mod task;
mod template;
pub mod ticker;
mod units;
mod waits;

pub use column::{ColumnType, ColumnTypeError};
pub use config::{
    CONFIG_FILE, Config, ConnectionConfig, DEFAULT_QUEUE, EngineConfig, ExecutionConfig, JOBS_QUEUE, MetadataConfig,
    ProjectConfig, QueueConfig, QueuePriority, RetentionConfig, ServerConfig, SqlConfig, StorageConfig, config_schema,
};
pub use connection::Connection;
pub use deadline::Deadline;
pub use error::Error;
pub use formats::{zone, zone_name};
pub use grid::Grid;
pub use job::{Job, JobBody, SqlBody};
pub use jobfile::job_schema;
pub use machine::{Failure, RetryPolicy, Rule, State};
pub use named::Named;
pub use outside::{Answer, OutsideWait, Question};
pub use plan::{Each, OutsideOn, RunContext, RunPlan, TaskKind, TaskOptions, TaskPlan, WaitOn};
pub use project::{Loaded, Project};
pub use render::Rendered;
pub use schedule::{Schedule, ScheduleError, Tick};
pub use settings::{ENVIRONMENT_VARIABLE, LoadedConfig, Origin, Overrides, Setting, load_config, url_without_password};
pub use spec::{
    Catchup, ColumnCheck, ColumnNames, ColumnSpec, ImportSpec, JobSpec, Kind, OnFail, Overlap, PartitionColumn, Reach,
    Relationship, Retries, RowCount, RowCountCheck, SqlCheck, TableCheck, Upto, WaitRef, WaitSpec, WaitTable,
};
pub use target::{AlertsConfig, JobAlerts, Mail, MailSecurity, Target, TargetConfig, TargetName, TargetNameError};
pub use task::{
    Command, EachSpec, HttpTask, Method, ProcessSpec, PythonTask, ShellTask, SqlTask, Status, TaskAction, TaskSpec,
};
pub use units::{ByteSize, Span, TimeOfDay, UnitError};
