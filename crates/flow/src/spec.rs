//! The typed header of a job file, as written: every key, its type and its description for editors.

use std::{fmt, str::FromStr};

use headworks_domain::{ConnectionName, Ds, Grain, JobName, TableName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    column::ColumnType,
    machine::RetryPolicy,
    named::Named,
    outside::OutsideWait,
    target::JobAlerts,
    task::TaskSpec,
    units::{Span, TimeOfDay},
};

/// What a job is, when it runs and what it promises; the header of a SQL file or the whole of a YAML file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Headworks job")]
pub struct JobSpec {
    /// The job's name; the file's path below `jobs/` without its ending unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "job-name"))]
    pub name: Option<JobName>,
    /// The table that the job writes; the last part of the job's name unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "table-name"))]
    pub table: Option<TableName>,
    /// What the table holds, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Who answers for it: a team or an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When it runs: five cron fields, `@hourly`, `@daily`, `@weekly`, `@monthly`, `every 15 minutes`, or `after waits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "schedule"))]
    pub schedule: Option<String>,
    /// The zone in which the clock is read and days are cut, as `America/New_York`; the project's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "time-zone"))]
    pub timezone: Option<String>,
    /// The size of its partitions; found from the schedule unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<GrainSchema>")]
    pub grain: Option<Grain>,
    /// The first day that it fills, as `2013-01-01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "ds"))]
    pub start: Option<Ds>,
    /// The last day that it fills, as `2013-12-31`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "ds"))]
    pub end: Option<Ds>,
    /// Which missed intervals run when the scheduler comes back or the job is new.
    #[serde(default, skip_serializing_if = "is_default")]
    pub catchup: Catchup,
    /// What happens when a run is due while another one of this job is still at work.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overlap: Overlap,
    /// How many runs of this job may be at work at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_active_runs: Option<u32>,
    /// How the result becomes the table.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: Kind,
    /// The columns that name a row; for `kind: upsert`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    /// The partition columns; `[ds]`, or `[ds, hour]` for hourly tables, unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partition_by: Vec<PartitionColumn>,
    /// What must be there first, besides the `wait::` tables of the SQL: partitions, files, answers of SQL or HTTP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wait: Vec<WaitSpec>,
    /// The columns of the result: their types, descriptions and checks.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub columns: Named<ColumnSpec>,
    /// Checks of the whole result, made before it is published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<TableCheck>,
    /// The time of day, in the job's zone, by which a tick's interval should be published: the first such time after the tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<TimeOfDay>,
    /// Who is told about it: targets of `headworks.toml` as `[team]`, or `none`; those of the settings unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<JobAlerts>,
    /// How often and how soon a task that failed for a passing reason is tried again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retries: Retries,
    /// The longest that one attempt of a task may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// The longest that a run waits for its inputs before it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_timeout: Option<Span>,
    /// The pool whose slots its tasks take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Higher goes first.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Only processes of this zone carry it out, as `headworks worker --zone eu`; any unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "zone"))]
    pub zone: Option<String>,
    /// How long its partitions are kept; for ever unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
    /// Values for `{{ params.x }}`, which a manual run may replace.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, Value>,
    /// Brings a table of a connection into the lake; in YAML files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportSpec>,
    /// Steps of the job's own by name: commands, scripts, calls, queries; in YAML files.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub tasks: Named<TaskSpec>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Mirrors `Grain` for the schema: the domain crate knows no schemas.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(dead_code, reason = "it stands in the schema only")]
enum GrainSchema {
    /// An hour, named in UTC.
    Hour,
    /// A day in the job's zone.
    Day,
    /// Monday to Sunday, named by the Sunday.
    Week,
    /// A calendar month, named by its last day.
    Month,
}

/// Which missed intervals run when the scheduler comes back or the job is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Catchup {
    /// None: only ticks from now on.
    None,
    /// The latest one.
    #[default]
    Latest,
    /// Every one since `start`.
    All,
}

/// What happens when a run is due while another one of the job is still at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The new one waits its turn.
    #[default]
    Queue,
    /// The new one is skipped.
    Skip,
    /// The old one is cancelled.
    CancelOld,
}

/// How a job's result becomes its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Each partition is a whole picture as of its day; a run replaces it.
    #[default]
    Cumulative,
    /// Each partition holds what happened in it; a run replaces it.
    Events,
    /// Rows replace those with the same `key`.
    Upsert,
    /// Nothing is stored: the SQL is computed when it is read.
    View,
}

/// A partition column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PartitionColumn {
    /// The day.
    Ds,
    /// The hour of the day, UTC.
    Hour,
    /// The type of event.
    EventType,
}

impl PartitionColumn {
    /// The column's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ds => "ds",
            Self::Hour => "hour",
            Self::EventType => "event_type",
        }
    }
}

/// One entry of `wait:`: a text as `flights`, `flights@-1`, `self@-1`, or a map: of a table, or of something outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum WaitSpec {
    /// `flights`, or `flights@-1` for as many partitions earlier; `self` is this job's own table.
    Text(#[schemars(extend("format" = "wait"))] String),
    /// A table with an offset or a stretch of time.
    Table(WaitTable),
    /// Something outside of the lake.
    Outside(OutsideWait),
}

/// A wait written as a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct WaitTable {
    /// The table; `self` is this job's own.
    #[schemars(extend("format" = "table"))]
    pub table: String,
    /// So many of the table's partitions earlier: 0 or below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -100_000, max = 0))]
    pub offset: Option<i64>,
    /// Every partition of the table from its first up to this interval's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upto: Option<Upto>,
}

/// How far a wait over all partitions goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Upto {
    /// Up to and including the run's own interval.
    Ds,
}

/// A column of the result.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColumnSpec {
    /// Its type, as `bigint`, `varchar`, `decimal(12,2)`, `timestamp`, `bigint[]`; a result of another type stops the run.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "column-type"))]
    pub column_type: Option<ColumnType>,
    /// What it holds, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Checks of its values, made before the result is published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<ColumnCheck>,
}

/// A check of one column's values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ColumnCheck {
    /// No value is null.
    NotNull,
    /// No value comes twice in the result.
    Unique,
    /// Every value is one of these, or null.
    AcceptedValues(Vec<Value>),
    /// Every value stands in a column of another table, or is null.
    Relationships(Relationship),
}

/// The column that a value must stand in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Relationship {
    /// The other table.
    #[schemars(extend("format" = "table"))]
    pub table: String,
    /// Its column.
    pub column: String,
}

/// A check of the whole result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TableCheck {
    /// SQL of one row and one boolean column: true passes.
    Sql(SqlCheck),
    /// Bounds of the number of rows.
    RowCount(RowCountCheck),
}

impl TableCheck {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Sql(check) => &check.name,
            Self::RowCount(check) => &check.name,
        }
    }

    /// What happens when it fails.
    pub fn on_fail(&self) -> OnFail {
        match self {
            Self::Sql(check) => check.on_fail,
            Self::RowCount(check) => check.on_fail,
        }
    }
}

/// A check by SQL over `this`, the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlCheck {
    /// A short name, shown when it fails.
    pub name: String,
    /// As `select count(*) > 0 from this`: one row, one boolean, true passes.
    pub sql: String,
    /// What happens when it fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_fail: OnFail,
}

/// A check of the number of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowCountCheck {
    /// A short name, shown when it fails.
    pub name: String,
    /// The bounds.
    pub row_count: RowCount,
    /// What happens when it fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_fail: OnFail,
}

/// Bounds of the number of rows, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct RowCount {
    /// The fewest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    /// The most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
}

/// What a failed check does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFail {
    /// The result is not published and the run fails.
    #[default]
    Block,
    /// The result is published and the run shows a warning.
    Warn,
}

/// How often and how soon a task is tried again that failed for a passing reason.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// Tries after the first one.
    #[schemars(range(min = 0, max = 100))]
    pub times: u32,
    /// The pause before the first retry.
    pub delay: Span,
    /// Each pause is so many times the one before.
    #[schemars(range(min = 1, max = 100))]
    pub factor: f64,
    /// The longest pause.
    pub max: Span,
}

impl Default for Retries {
    fn default() -> Self {
        Self { times: 4, delay: Span::from_secs(10), factor: 2.0, max: Span::from_secs(600) }
    }
}

impl Retries {
    /// The same as the state machine takes it.
    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy { times: self.times, delay: self.delay.duration(), factor: self.factor, max: self.max.duration() }
    }
}

/// What an import reads, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportSpec {
    /// The connection of `headworks.toml` to read from.
    #[schemars(with = "String", extend("format" = "connection-name"))]
    pub connection: ConnectionName,
    /// The source's table, as `flights` or `public.flights`.
    pub table: String,
    /// The column of time that cuts the interval; without it the whole table is read each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The columns to take; all unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// SQL that a source row must satisfy, in the source's own dialect.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub where_sql: Option<String>,
    /// Whether columns keep their names or get safe ones (small letters, digits, `_`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub names: ColumnNames,
    /// Types for columns whose own type says too little, as `{price: "decimal(12,2)"}`.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    #[schemars(with = "Named<ColumnTypeText>")]
    pub types: Named<ColumnType>,
    /// True: days of the past may be filled with the source's present state.
    #[serde(default, skip_serializing_if = "is_default")]
    pub as_of_now: bool,
}

/// A column's type as text, for the schema.
#[derive(Serialize, JsonSchema)]
#[schemars(inline)]
struct ColumnTypeText(#[schemars(extend("format" = "column-type"))] String);

/// How an import names its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ColumnNames {
    /// As the source does.
    #[default]
    Keep,
    /// Small letters, digits and `_`.
    Safe,
}

/// A wait as read: the table's name as written, and which of its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitRef {
    /// The table; `self` and `this` mean the job's own.
    pub table: String,
    /// Which partitions.
    pub reach: Reach,
}

/// Which partitions of a table a wait means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// Those that the run's interval touches, so many partitions earlier (0 or below).
    Offset(i64),
    /// Every one from the table's first up to those that the run's interval touches.
    Upto,
}

impl WaitRef {
    /// True when it means the job's own table.
    pub fn is_self(&self) -> bool {
        matches!(self.table.as_str(), "self" | "this")
    }
}

impl FromStr for WaitRef {
    type Err = String;

    /// Reads `flights`, `flights@-1`, `self@-1`.
    fn from_str(s: &str) -> Result<Self, String> {
        let (table, offset) = match s.split_once('@') {
            None => (s, 0),
            Some((table, offset)) => (
                table,
                offset.parse().ok().filter(|n: &i64| (-100_000..=0).contains(n)).ok_or_else(|| {
                    format!("`@{offset}` is not an offset: write `{table}@-1` for the partition before")
                })?,
            ),
        };
        table.parse::<TableName>().map_err(|error| error.to_string())?;
        Ok(Self { table: table.to_owned(), reach: Reach::Offset(offset) })
    }
}

impl fmt::Display for WaitRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reach {
            Reach::Offset(0) => f.write_str(&self.table),
            Reach::Offset(offset) => write!(f, "{}@{offset}", self.table),
            Reach::Upto => write!(f, "{} up to ds", self.table),
        }
    }
}

impl WaitSpec {
    /// The partitions that the entry means; none for something outside of the lake. Errors: the reason, for a person.
    pub fn wait_ref(&self) -> Result<Option<WaitRef>, String> {
        match self {
            Self::Outside(_) => Ok(None),
            Self::Text(text) => text.parse().map(Some),
            Self::Table(WaitTable { offset: Some(_), upto: Some(_), .. }) => {
                Err("a wait has an `offset` or `upto`, not both".to_owned())
            }
            Self::Table(WaitTable { table, upto: Some(Upto::Ds), .. }) => {
                Ok(Some(WaitRef { table: table.clone(), reach: Reach::Upto }))
            }
            Self::Table(WaitTable { table, offset, .. }) => {
                Ok(Some(WaitRef { table: table.clone(), reach: Reach::Offset(offset.unwrap_or(0)) }))
            }
        }
    }
}
