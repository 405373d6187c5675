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
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { memory: ByteSize::from_mib(1024), threads: None }
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
    /// Where health checks and metrics are answered, as `127.0.0.1:8470`.
    pub listen: String,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8470".to_owned() }
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
