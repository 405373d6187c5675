//! `headworks.toml`: what it may say.

use std::{collections::BTreeMap, sync::LazyLock};

use headworks_domain::{ConnectionName, EnvironmentName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    environments::ENVIRONMENTS,
    target::AlertsConfig,
    units::{ByteSize, Span},
};

/// Everything that `headworks.toml` may say of one environment; all of it may be left out. The file may have
/// `[environments.NAME]` besides, with the same keys; what is loaded are the settings of the one that was asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Headworks project")]
pub struct Config {
    /// The project itself.
    pub project: ProjectConfig,
    /// The metadata database: runs, tasks and the lake's catalog.
    pub metadata: MetadataConfig,
    /// Where the lake's files are.
    pub storage: StorageConfig,
    /// Outside systems by name.
    #[schemars(with = "BTreeMap<String, ConnectionConfig>", extend("propertyNames" = { "format": "connection-name" }))]
    pub connections: BTreeMap<ConnectionName, ConnectionConfig>,
    /// The SQL engine.
    pub engine: EngineConfig,
    /// What one statement may ask for.
    pub sql: SqlConfig,
    /// Workloads of queries by name; `default` takes what no rule sends elsewhere, `jobs` the SQL of jobs.
    #[schemars(extend("propertyNames" = { "format": "queue-name" }))]
    pub queues: BTreeMap<String, QueueConfig>,
    /// How runs are carried out.
    pub execution: ExecutionConfig,
    /// The process that keeps the project running.
    pub server: ServerConfig,
    /// How many slots the pools have that jobs name in `pool:`, as `etl = 4`.
    #[schemars(with = "BTreeMap<String, PoolSlots>", extend("propertyNames" = { "format": "pool-name" }))]
    pub pools: BTreeMap<String, u32>,
    /// How long things are kept.
    pub retention: RetentionConfig,
    /// Who is told when something goes wrong.
    pub alerts: AlertsConfig,
    /// Texts for `{{ var.x }}` in jobs.
    pub vars: BTreeMap<String, String>,
}

/// The project itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectConfig {
    /// The project's name; the folder's unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The zone of jobs that name none.
    #[schemars(extend("format" = "time-zone"))]
    pub timezone: String,
    /// The environment that commands work in unless `--env` or `HEADWORKS_ENV` names another.
    #[schemars(with = "String", extend("format" = "environment-name"))]
    pub environment: EnvironmentName,
}

impl Default for ProjectConfig {
    fn default() -> Self {
        Self { name: None, timezone: "UTC".to_owned(), environment: EnvironmentName::default() }
    }
}

/// The metadata database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetadataConfig {
    /// `sqlite:PATH` (relative to the project) or `postgres://user@host/database`; `${env:NAME}` stands for a variable.
    pub url: String,
    /// PostgreSQL: the schema of our tables; the lake's catalog is in the one with `_lake` behind it.
    #[schemars(extend("format" = "schema-name"))]
    pub schema: String,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self { url: "sqlite:.headworks/metadata.db".to_owned(), schema: "headworks".to_owned() }
    }
}

/// Where the lake's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// A folder (relative to the project) or `s3://bucket/prefix`.
    pub path: String,
    /// The address of an S3-compatible service; Amazon's unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket's region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The access key's id, as `${env:AWS_ACCESS_KEY_ID}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The secret access key, as `${env:AWS_SECRET_ACCESS_KEY}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<String>,
    /// True: plain HTTP may be used, for tests.
    pub allow_http: bool,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            path: "lake".to_owned(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            allow_http: false,
        }
    }
}

/// An outside system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConnectionConfig {
    /// A SQLite file.
    Sqlite {
        /// The file, relative to the project.
        path: String,
    },
    /// A PostgreSQL database.
    Postgres {
        /// `postgres://user@host:port/database`; `${env:NAME}` stands for a variable.
        url: String,
        /// The environment variable that holds the password.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password_env: Option<String>,
        /// The file that holds the password, relative to the project.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password_file: Option<String>,
    },
}

/// The SQL engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Memory for queries and jobs together.
    pub memory: ByteSize,
    /// Threads for queries; as many as there are cores unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<u32>,
    /// The most that all queries together may set aside on disk.
    pub spill_bytes_max: ByteSize,
    /// Results kept in memory for whoever asks the same again; `0B` keeps none.
    pub cache_bytes_max: ByteSize,
    /// Results kept on disk that memory has no room for.
    pub cache_disk_bytes_max: ByteSize,
    /// The largest result that is kept.
    pub cache_result_bytes_max: ByteSize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            memory: ByteSize::from_mib(1024),
            threads: None,
            spill_bytes_max: ByteSize::from_mib(20 * 1024),
            cache_bytes_max: ByteSize::from_mib(64),
            cache_disk_bytes_max: ByteSize::from_mib(1024),
            cache_result_bytes_max: ByteSize::from_mib(4),
        }
    }
}

/// What one statement may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SqlConfig {
    /// The most bytes of one value that a function makes, as `repeat('x', n)`; a 64th of `engine.memory` when that is less.
    pub value_bytes_max: ByteSize,
}

impl Default for SqlConfig {
    fn default() -> Self {
        Self { value_bytes_max: ByteSize::from_mib(64) }
    }
}

/// A workload of queries: how many of them run at once, with how much, for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Queries that run at once.
    #[schemars(range(min = 1, max = 10_000))]
    pub slots: u32,
    /// Its part of `engine.memory`, of a hundred. A process that serves queries shares it out so; one that runs a command has
    /// all for that.
    #[schemars(range(min = 1, max = 100))]
    pub memory_percent: u8,
    /// Queries that may wait for a slot; more are refused.
    pub waiting_max: u32,
    /// How long a query may wait for a slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_max: Option<Span>,
    /// How long a query may take, its wait included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// How long a query waits for a reader that takes no rows.
    pub idle_max: Span,
    /// Bytes of files that one query may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scanned_bytes_max: Option<ByteSize>,
    /// Rows that one query may give.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_max: Option<u64>,
    /// Bytes that its queries together may set aside on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spill_bytes_max: Option<ByteSize>,
    /// The most parts that one query is cut into; `engine.threads` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<u32>,
    /// Who gives way to whom on a busy machine: `low` to `normal`, and that to `high`. Unless given, `jobs` is `high` and other
    /// queues are `normal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<QueuePriority>,
    /// Roles whose queries come here, and that may ask for it by name; without any, all may ask.
    pub roles: Vec<String>,
    /// Clients whose queries come here, by what they call themselves; `*` stands for anything.
    pub applications: Vec<String>,
}

/// The queue of queries that no rule sends elsewhere.
pub const DEFAULT_QUEUE: &str = "default";

/// The queue of jobs' SQL.
pub const JOBS_QUEUE: &str = "jobs";

impl Config {
    /// All queues with what they say or what holds unless they do: `default` and `jobs` are always among them. These two share
    /// the memory that the others leave, when they say nothing themselves.
    pub fn queues(&self) -> BTreeMap<String, QueueConfig> {
        let mut queues = self.queues.clone();
        let named: u32 = queues.values().map(|queue| u32::from(queue.memory_percent)).sum();
        let missing: Vec<&str> =
            [DEFAULT_QUEUE, JOBS_QUEUE].into_iter().filter(|name| !queues.contains_key(*name)).collect();
        let share = 100_u32.saturating_sub(named) / u32::try_from(missing.len().max(1)).unwrap_or(1);
        let memory_percent = u8::try_from(share.max(1)).unwrap_or(100);
        for name in missing {
            // Jobs have slots of their own: their tasks.
            let slots = if name == JOBS_QUEUE { 10_000 } else { QueueConfig::default().slots };
            queues.insert(name.to_owned(), QueueConfig { slots, memory_percent, ..QueueConfig::default() });
        }
        for (name, queue) in &mut queues {
            queue.priority.get_or_insert(if name == JOBS_QUEUE { QueuePriority::High } else { QueuePriority::Normal });
        }
        queues
    }
}

/// How eagerly the queries of a queue get the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueuePriority {
    /// Before all others.
    High,
    /// When nobody above wants it, and about a tenth of the time when somebody does.
    #[default]
    Normal,
    /// The same below `normal`.
    Low,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            slots: 16,
            memory_percent: 50,
            waiting_max: 1_000,
            wait_max: None,
            timeout: None,
            idle_max: Span::from_secs(600),
            scanned_bytes_max: None,
            rows_max: None,
            spill_bytes_max: None,
            threads: None,
            priority: None,
            roles: Vec::new(),
            applications: Vec::new(),
        }
    }
}

/// The slots of a pool, for the schema.
#[derive(Serialize, JsonSchema)]
#[schemars(inline)]
struct PoolSlots(#[schemars(range(min = 1, max = 10_000))] u32);

/// How runs are carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecutionConfig {
    /// The most tasks at work at once.
    #[schemars(range(min = 1, max = 10_000))]
    pub tasks_max: u32,
    /// The zone that processes on this machine stand in: they carry out jobs of this `zone` and of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "zone"))]
    pub zone: Option<String>,
    /// The most bytes of one attempt's log; what its command writes beyond that is left out.
    pub log_bytes_max: ByteSize,
    /// How long a command may take to end after it was asked to, before it is killed.
    pub kill_after: Span,
    /// The Python of tasks that name none: a program of the search path, or a path from the project's folder.
    pub python: String,
    /// Environment variables that commands get, besides PATH, HOME, USER, LOGNAME, SHELL, TMPDIR, LANG, LC_ALL and TZ.
    pub pass_env: Vec<String>,
}

impl Default for ExecutionConfig {
    fn default() -> Self {
        Self {
            tasks_max: 8,
            zone: None,
            log_bytes_max: ByteSize::from_mib(64),
            kill_after: Span::from_secs(10),
            python: "python3".to_owned(),
            pass_env: Vec::new(),
        }
    }
}

/// The process that keeps the project running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where the HTTP API, Flight SQL, health checks and metrics are answered, as `127.0.0.1:8470`.
    pub listen: String,
    /// Where PostgreSQL clients connect; empty for nowhere.
    pub postgres_listen: String,
    /// The server's certificate with its chain, a PEM file relative to the project. With it, HTTP is HTTPS, and PostgreSQL and
    /// Flight SQL clients may ask for TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<String>,
    /// The certificate's key, a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
    /// Queries that take longer are written to the log.
    pub slow_query: Span,
    /// How long the result of a query that was submitted over HTTP is kept.
    pub results_keep: Span,
    /// The most that these results may take on disk; the oldest go first.
    pub results_bytes_max: ByteSize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8470".to_owned(),
            postgres_listen: "127.0.0.1:8471".to_owned(),
            tls_certificate: None,
            tls_key: None,
            slow_query: Span::from_secs(60),
            results_keep: Span::from_secs(3_600),
            results_bytes_max: ByteSize::from_mib(10 * 1024),
        }
    }
}

/// How long things are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Old versions of tables.
    pub versions: Span,
    /// Runs; of older ones only the newest of each interval stays, without its tasks and attempts.
    pub runs: Span,
    /// Logs of runs.
    pub logs: Span,
    /// The most that all logs together may take; the oldest go first.
    pub log_bytes_max: ByteSize,
    /// Files that no version knows, before they are removed.
    pub orphans: Span,
    /// Files that the catalog has forgotten, before they are removed: as long as a backup of the metadata database is of use.
    pub backups: Span,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            versions: Span::from_days(200),
            runs: Span::from_days(90),
            logs: Span::from_days(60),
            log_bytes_max: ByteSize::from_mib(5 * 1024),
            orphans: Span::from_days(2),
            backups: Span::from_days(7),
        }
    }
}

/// The file's name in the project's folder.
pub const CONFIG_FILE: &str = "headworks.toml";

pub(crate) static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Config).to_value();
    // An environment has the keys of the whole file, whatever is added to them.
    let environment = json!({
        "type": "object",
        "description": "Settings of one environment: what differs from production.",
        "properties": schema["properties"],
        "additionalProperties": false,
    });
    schema["$defs"]["EnvironmentConfig"] = environment;
    schema["properties"][ENVIRONMENTS] = json!({
        "description": "Places besides production to run the project in, by name.",
        "type": "object",
        "propertyNames": { "format": "environment-name" },
        "additionalProperties": { "$ref": "#/$defs/EnvironmentConfig" },
    });
    schema
});

/// The JSON Schema of `headworks.toml`.
pub fn config_schema() -> Value {
    SCHEMA.clone()
}
