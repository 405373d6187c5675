//! The tasks that a job file names itself, as written under `tasks:`.

mod check;
mod fill;

use std::collections::BTreeMap;

pub(crate) use check::task_problems;
pub(crate) use fill::{Unfilled, fill, items};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    machine::Rule,
    spec::Retries,
    units::{ByteSize, Span},
};

/// One task of a job: what it does, after which others, and what bounds it.
///
/// Every text of what it does may hold macros, and `{{ outputs.task.key }}` for what a task before it gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = keys_of_every_type)]
pub struct TaskSpec {
    /// What it does, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The tasks before it; without any it runs once the job's waits are met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// When it runs, by the ends of the tasks before it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rule: Rule,
    /// True: its failure fails neither the run nor the tasks after it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_failure: bool,
    /// Run once for each item of a list, as `[a, b]` or `"{{ outputs.list.files }}"`; the item is `{{ item }}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<EachSpec>,
    /// How often and how soon it is tried again; as the job says unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// The longest that one attempt may take; as the job says unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// The pool whose slots it takes; the job's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How many slots of its pool it takes; 1 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub slots: Option<u32>,
    /// Higher goes first; the job's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: Option<i32>,
    /// What it does.
    #[serde(flatten)]
    pub action: TaskAction,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Gives every kind of map the keys that all have, so that each is one map whose unknown keys can be told.
pub(crate) fn keys_of_every_type(schema: &mut Schema) {
    let common = schema.remove("properties");
    let Some(Value::Object(common)) = common else { return };
    let kinds = if schema.get("oneOf").is_some() { "oneOf" } else { "anyOf" };
    let kinds = schema.get_mut(kinds).and_then(Value::as_array_mut);
    for one in kinds.into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(properties) = one.get_mut("properties").and_then(Value::as_object_mut) {
            properties.extend(common.clone());
        }
        one.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// The list that a task goes through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EachSpec {
    /// The items themselves.
    Items(Vec<Value>),
    /// An expression that gives a list, as `{{ outputs.list.files }}`.
    Expression(String),
}

/// What a task does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TaskAction {
    /// Runs a command.
    Shell(ShellTask),
    /// Runs a Python script.
    Python(PythonTask),
    /// Calls an HTTP address.
    Http(HttpTask),
    /// Runs a query over the lake, whose few rows are its output.
    Sql(SqlTask),
}

impl TaskAction {
    /// The word of its `type`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Shell(_) => "shell",
            Self::Python(_) => "python",
            Self::Http(_) => "http",
            Self::Sql(_) => "sql",
        }
    }

    /// How its process runs, for those that are one.
    pub fn process(&self) -> Option<&ProcessSpec> {
        match self {
            Self::Shell(task) => Some(&task.process),
            Self::Python(task) => Some(&task.process),
            Self::Http(_) | Self::Sql(_) => None,
        }
    }
}

/// How the process of a task runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ProcessSpec {
    /// More environment variables; `${env:NAME}` stands for one of Headworks' own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The folder that it runs in, relative to the project's; the project's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// The most memory that its processes may take together; it is stopped when they take more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<ByteSize>,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct ShellTask {
    /// A text for `/bin/sh -c`, or a list of a program and its arguments.
    pub command: Command,
    /// How its process runs.
    #[serde(flatten)]
    pub process: ProcessSpec,
}

/// What a shell task runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum Command {
    /// A text for `/bin/sh -c`.
    Text(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

/// A Python script.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct PythonTask {
    /// The script's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The script's file in the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The script's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The Python that runs it, as `.venv/bin/python`; that of `execution.python` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// How its process runs.
    #[serde(flatten)]
    pub process: ProcessSpec,
}

/// An HTTP call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct HttpTask {
    /// The address, `http://` or `https://`.
    pub url: String,
    /// The method; `GET` unless given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub method: Method,
    /// Headers; `${env:NAME}` stands for an environment variable.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The body: a text, or a map or list that is sent as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// The statuses that are a success; 200 to 299 unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<Status>,
    /// The most bytes of an answer; 1MiB unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_max: Option<ByteSize>,
}

/// An HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
#[allow(missing_docs)]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// The method's name, `GET`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// The status of an HTTP answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Status(#[schemars(range(min = 100, max = 599))] pub u16);

/// A query over the lake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct SqlTask {
    /// One query; its rows are the output, a list of maps.
    pub sql: String,
}
