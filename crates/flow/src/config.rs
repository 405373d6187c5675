//! `headworks.toml`: what it may say.

use std::{collections::BTreeMap, sync::LazyLock};

use headworks_domain::ConnectionName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    target::AlertsConfig,
    units::{ByteSize, Span},
};

/// Everything that `headworks.toml` may say; all of it may be left out.
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
}

impl Default for ProjectConfig {
    fn default() -> Self {
        Self { name: None, timezone: "UTC".to_owned() }
    }
}

/// The metadata database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetadataConfig {
    /// `sqlite:PATH` (relative to the project) or `postgres://user@host/database`; `${env:NAME}` stands for a variable.
    pub url: String,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self { url: "sqlite:.headworks/metadata.db".to_owned() }
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

/// How runs are carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecutionConfig {
    /// The most tasks at work at once.
    #[schemars(range(min = 1, max = 10_000))]
    pub tasks_max: u32,
}

impl Default for ExecutionConfig {
    fn default() -> Self {
        Self { tasks_max: 8 }
    }
}

/// How long things are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Old versions of tables.
    pub versions: Span,
    /// Logs of runs.
    pub logs: Span,
    /// Files that no version knows, before they are removed.
    pub orphans: Span,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self { versions: Span::from_days(200), logs: Span::from_days(60), orphans: Span::from_days(2) }
    }
}

/// The file's name in the project's folder.
pub const CONFIG_FILE: &str = "headworks.toml";

pub(crate) static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(Config).to_value());

/// The JSON Schema of `headworks.toml`.
pub fn config_schema() -> Value {
    SCHEMA.clone()
}
