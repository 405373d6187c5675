//! Reads `headworks.toml` and what overrides it, and tells where each value comes from.

use std::collections::BTreeMap;

use headworks_domain::{Place, Problem, Severity, nearest};
use serde::Serialize;
use serde_json::Value;

use crate::{
    config::{CONFIG_FILE, Config, ConnectionConfig, SCHEMA},
    document::{Key, Node, Tree, parse_toml},
    schema,
    source::Source,
    target,
};

/// Where a setting's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The value that holds when nobody says otherwise.
    Default,
    /// A line of `headworks.toml`.
    File {
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: String,
    },
    /// A flag of the command line.
    Flag,
}

/// A setting as `headworks config show` tells it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Its path, as `metadata.url`.
    pub path: String,
    /// Its value, without secrets.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
}

/// Values from outside the file, the later over the earlier: the environment, then flags.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Environment variables; those that begin with `HEADWORKS__` count, as `HEADWORKS__METADATA__URL`.
    pub env: BTreeMap<String, String>,
    /// Paths and values, as (`metadata.url`, `sqlite:other.db`).
    pub flags: Vec<(String, String)>,
}

/// The settings of a project with their origins.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoadedConfig {
    /// The settings; defaults where the file has problems.
    pub config: Config,
    /// Every setting with its origin, in the order of the schema.
    pub settings: Vec<Setting>,
    /// Everything wrong with the file and the overrides.
    pub problems: Vec<Problem>,
}

const ENV_PREFIX: &str = "HEADWORKS__";

/// Reads settings from the text of `headworks.toml`.
pub fn load_config(text: &str, overrides: &Overrides) -> LoadedConfig {
    let source = Source::new(CONFIG_FILE, text);
    let (mut tree, malformed) = parse_toml(&source);
    let hint = "see https://toml.io for how TOML is written";
    let mut problems: Vec<Problem> =
        malformed.iter().map(|m| source.error(m.at, format!("this is not TOML: {}", m.message), hint)).collect();
    if problems.is_empty() {
        let findings = schema::check(&SCHEMA, &tree);
        problems.extend(findings.into_iter().map(|f| source.error(f.at, f.message, f.hint)));
    }
    if !problems.is_empty() {
        // Overrides are checked all the same, over an empty file.
        tree = Node::new((1, 1), Tree::Map(Vec::new()));
    }
    let mut origins: BTreeMap<String, Origin> = BTreeMap::new();
    for (path, at) in leaves(&tree, "") {
        origins.insert(path, Origin::File { line: at.0 });
    }
    let env = overrides.env.iter().filter_map(|(name, value)| {
        let path = name.strip_prefix(ENV_PREFIX)?.to_lowercase().replace("__", ".");
        Some((path, value, Origin::Env { name: name.clone() }, name.clone()))
    });
    let flags =
        overrides.flags.iter().map(|(path, value)| (path.clone(), value, Origin::Flag, format!("--set {path}")));
    for (path, value, origin, shown) in env.chain(flags) {
        match override_value(&mut tree, &path, value) {
            Ok(()) => {
                origins.insert(path, origin);
            }
            Err((message, hint)) => problems.push(Problem {
                severity: Severity::Error,
                place: Place { file: shown, line: 0, column: 0 },
                text: String::new(),
                message,
                hint: Some(hint).filter(|h| !h.is_empty()),
            }),
        }
    }
    if problems.is_empty() && origins.values().any(|origin| !matches!(origin, Origin::File { .. })) {
        // Values from outside may have begun something that lacks its other half, as a connection without a type.
        problems.extend(schema::check(&SCHEMA, &tree).into_iter().map(|f| source.error(f.at, f.message, f.hint)));
    }
    let config: Config = match serde_json::from_value(tree.to_json()) {
        Ok(config) => config,
        Err(error) => {
            if problems.is_empty() {
                problems.push(source.error((0, 0), format!("the settings cannot be read: {error}"), ""));
            }
            Config::default()
        }
    };
    problems.extend(semantic_problems(&config, &source, &tree));
    let settings = settings(&config, &origins);
    LoadedConfig { config, settings, problems }
}

/// What types cannot say.
fn semantic_problems(config: &Config, source: &Source, tree: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    let url = &config.metadata.url;
    if !["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme))
        && !url.starts_with("${env:")
    {
        let hint = "write `sqlite:.headworks/metadata.db` or `postgres://user@host/database`";
        problems.push(source.error(
            tree.at(&["metadata", "url"]),
            "`metadata.url` is not the address of a database",
            hint,
        ));
    }
    for (name, connection) in &config.connections {
        let path = |key| ["connections", name.as_str(), key];
        if let ConnectionConfig::Postgres { url, password_env, password_file } = connection {
            if password_env.is_some() && password_file.is_some() {
                let at = tree.at(&path("password_file"));
                let message = format!("connection `{name}` has both `password_env` and `password_file`");
                problems.push(source.error(at, message, "keep one of them"));
            }
            let known = ["postgres://", "postgresql://", "${env:"].iter().any(|scheme| url.starts_with(scheme));
            if !known {
                let message = format!("the `url` of connection `{name}` is not the address of a database");
                problems.push(source.error(
                    tree.at(&path("url")),
                    message,
                    "write `postgres://user@host:5432/database`",
                ));
            }
        }
    }
    problems.extend(target::problems(&config.alerts, source, tree));
    problems
}

/// Sets one value in the tree. Errors: what is wrong, and the hint.
fn override_value(tree: &mut Node, path: &str, text: &str) -> Result<(), (String, String)> {
    let mut schemas: Vec<&Value> = vec![&SCHEMA];
    for part in path.split('.') {
        let next = schema::step(&SCHEMA, &schemas, part);
        if next.is_empty() {
            let keys = schema::keys(&SCHEMA, &schemas);
            let hint = match nearest(part, keys.iter().copied()) {
                Some(near) => format!("did you mean `{}`?", path.replacen(part, near, 1)),
                None if keys.is_empty() => "it is a value and has no keys".to_owned(),
                None => format!("the keys are {}", schema::listed(keys)),
            };
            return Err((format!("there is no setting `{path}`"), hint));
        }
        schemas = next;
    }
    let allows = |kind| schema::allows(&SCHEMA, &schemas, kind);
    let value = match (text, text.parse::<i64>(), text.parse::<f64>()) {
        _ if allows("string") => Tree::Text(text.to_owned()),
        ("true" | "false", ..) if allows("boolean") => Tree::Bool(text == "true"),
        (_, Ok(n), _) if allows("integer") => Tree::Int(n),
        (_, _, Ok(n)) if allows("number") => Tree::Float(n),
        _ => Tree::Text(text.to_owned()),
    };
    let node = Node::new((0, 0), value);
    // Several kinds of connections may have such a key: it has to fit one of them.
    let mut findings: Vec<_> = schemas.iter().map(|part| schema::check_part(&SCHEMA, part, &node, path)).collect();
    findings.sort_by_key(Vec::len);
    if let Some(finding) = findings.into_iter().next().and_then(|first| first.into_iter().next()) {
        return Err((finding.message, finding.hint));
    }
    set(tree, path, node);
    Ok(())
}

fn set(tree: &mut Node, path: &str, value: Node) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    if !matches!(tree.tree, Tree::Map(_)) {
        tree.tree = Tree::Map(Vec::new());
    }
    let Tree::Map(entries) = &mut tree.tree else { return };
    let index = entries.iter().position(|(key, _)| key.text == first).unwrap_or_else(|| {
        let key = Key { text: first.to_owned(), at: (0, 0) };
        entries.push((key, Node::new((0, 0), Tree::Map(Vec::new()))));
        entries.len() - 1
    });
    match rest {
        None => entries[index].1 = value,
        Some(rest) => set(&mut entries[index].1, rest, value),
    }
}

/// Every value that is no map, with its path and place.
fn leaves(node: &Node, path: &str) -> Vec<(String, (usize, usize))> {
    match &node.tree {
        Tree::Map(entries) => {
            let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            entries.iter().flat_map(|(key, value)| leaves(value, &join(&key.text))).collect()
        }
        _ => vec![(path.to_owned(), node.at)],
    }
}

fn settings(config: &Config, origins: &BTreeMap<String, Origin>) -> Vec<Setting> {
    fn walk(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(value, &path, found);
                }
            }
            leaf => found.push((path.to_owned(), leaf.clone())),
        }
    }
    let mut found = Vec::new();
    walk(&serde_json::to_value(config).unwrap_or_default(), "", &mut found);
    found
        .into_iter()
        .map(|(path, value)| {
            let origin = origins.get(&path).cloned().unwrap_or(Origin::Default);
            Setting { value: without_secret(&path, value), origin, path }
        })
        .collect()
}

/// Hides passwords that were written into the file all the same.
fn without_secret(path: &str, value: Value) -> Value {
    let Value::String(text) = &value else { return value };
    if path.ends_with("secret_access_key") && !is_reference(text) {
        return Value::from("[secret]");
    }
    if path.starts_with("alerts.targets.") && path.ends_with(".url") && !is_reference(text) {
        return Value::from(target::shown_url(text));
    }
    if path.ends_with("url") {
        return Value::from(url_without_password(text));
    }
    value
}

/// True when the whole text is `${env:NAME}`.
fn is_reference(text: &str) -> bool {
    text.starts_with("${env:") && text.find('}') == Some(text.len() - 1)
}

/// An address without its password, fit for logs and messages.
pub fn url_without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let hidden = match authority.rsplit_once('@').map(|(user, host)| (user.split_once(':'), host)) {
        Some((Some((user, password)), host)) if !is_reference(password) => {
            format!("{scheme}://{user}:***@{host}{}", &rest[authority.len()..])
        }
        _ => url.to_owned(),
    };
    match hidden.find("password=") {
        Some(start) => {
            let start = start + "password=".len();
            let end = hidden[start..].find('&').map_or(hidden.len(), |n| start + n);
            format!("{}***{}", &hidden[..start], &hidden[end..])
        }
        None => hidden,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use headworks_domain::ConnectionName;

    use crate::{connection::Connection, units::Span};

    use super::*;

    fn load(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> LoadedConfig {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        load_config(text, &Overrides { env: env.iter().map(own).collect(), flags: flags.iter().map(own).collect() })
    }

    fn check(text: &str, expected: &[&str]) {
        let shown: Vec<String> = load(text, &[], &[])
            .problems
            .iter()
            .map(|p| format!("{}:{} {} ({})", p.place.line, p.place.column, p.message, p.hint.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn nothing_is_needed() {
        let loaded = load("", &[], &[]);
        assert_eq!((loaded.config, loaded.problems), (Config::default(), vec![]));
        assert!(loaded.settings.iter().all(|s| s.origin == Origin::Default));
    }

    #[test]
    fn everything_is_read() {
        let text = r#"
            [project]
            name = "flights"
            timezone = "America/New_York"
            [metadata]
            url = "postgres://me@db/meta"
            [storage]
            path = "s3://bucket/prefix"
            secret_access_key = "${env:KEY}"
            allow_http = true
            [connections.production]
            type = "sqlite"
            path = "production.db"
            [connections.other]
            type = "postgres"
            url = "postgres://me@${env:HOST}/db"
            password_env = "PW"
            [engine]
            memory = "512MiB"
            threads = 2
            [execution]
            tasks_max = 3
            [retention]
            versions = "10d"
            [vars]
            country = "AE"
        "#;
        let loaded = load(text, &[], &[]);
        assert_eq!(loaded.problems, vec![]);
        let config = loaded.config;
        assert_eq!(config.engine.memory.bytes(), 512 << 20);
        assert_eq!(config.retention.logs, Span::from_days(60));
        assert_eq!(config.vars["country"], "AE");
        let env = |name: &str| match name {
            "PW" => Some("p@ss/word".to_owned()),
            "HOST" => Some("db1".to_owned()),
            _ => None,
        };
        let root = Path::new("/p");
        let name = |text: &str| text.parse::<ConnectionName>().unwrap();
        let resolved = |text: &str| config.connection(&name(text)).unwrap().resolve(&name(text), root, &env);
        assert_eq!(resolved("production").unwrap(), Connection::Sqlite { path: "/p/production.db".into() });
        let Connection::Postgres { url } = resolved("other").unwrap() else { panic!("it is a PostgreSQL") };
        assert_eq!(url.expose(), "postgres://me:p%40ss%2Fword@db1/db");
        let error = config.storage_secret(&env).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`storage.secret_access_key` cannot be had: the environment variable `KEY` is not set"
        );
        let error = config.connection(&name("prodution")).unwrap_err();
        assert_eq!(headworks_domain::Fault::hint(&error).unwrap(), "did you mean `production`?");
    }

    #[test]
    fn problems_are_told_at_once() {
        check(
            "[project]\ntimezon = \"UTC\"\n[engine]\nmemory = 5\nthreads = 0\n[execution]\ntasks_max = \"8\"\n[retentoin]\nlogs = \"60d\"\n",
            &[
                "2:1 unknown key `timezon` in `project` (did you mean `timezone`?)",
                "4:10 `engine.memory` must be a text, not the number `5` (write it as `64MiB`)",
                "5:11 `engine.threads` cannot be 0 (write a number from 1 to 1024)",
                "7:13 `execution.tasks_max` must be a whole number, not the text `8` ()",
                "8:2 unknown key `retentoin` (did you mean `retention`?)",
            ],
        );
        check(
            "[project]\ntimezone = \"Kolkata\"\n[retention]\nlogs = \"60 days\"\n",
            &[
                "2:12 `Kolkata` is not a time zone (did you mean `Asia/Kolkata`?)",
                "4:8 `60 days` is not a duration: write it as `30s`, `45m`, `2h`, `7d`, or `1h30m` ()",
            ],
        );
        check(
            "[connections.a]\ntype = \"sqlit\"\n[connections.b]\nurl = \"x\"\n[connections.c]\ntype = \"postgres\"\nurl = \"mysql://x\"\n",
            &[
                "2:8 `connections.a.type` cannot be the text `sqlit` (did you mean `sqlite`?)",
                "3:1 `connections.b` lacks the key `type` (it is one of `sqlite`, `postgres`)",
            ],
        );
        check(
            "[connections.c]\ntype = \"postgres\"\nurl = \"mysql://x\"\n",
            &[
                "3:1 the `url` of connection `c` is not the address of a database (write `postgres://user@host:5432/database`)",
            ],
        );
        check(
            "[project\n",
            &["1:9 this is not TOML: unclosed table, expected `]` (see https://toml.io for how TOML is written)"],
        );
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file() {
        let text = "[execution]\ntasks_max = 1\n[metadata]\nurl = \"postgres://me:secret@db/x?password=also&a=1\"\n";
        let env = [("HEADWORKS__EXECUTION__TASKS_MAX", "2"), ("HEADWORKS__VARS__CITY", "7"), ("PATH", "/bin")];
        let loaded = load(text, &env, &[("execution.tasks_max", "3")]);
        assert_eq!(loaded.problems, vec![]);
        assert_eq!((loaded.config.execution.tasks_max, loaded.config.vars["city"].as_str()), (3, "7"));
        let setting = |path: &str| loaded.settings.iter().find(|s| s.path == path).unwrap();
        assert_eq!(setting("execution.tasks_max").origin, Origin::Flag);
        assert_eq!(setting("vars.city").origin, Origin::Env { name: "HEADWORKS__VARS__CITY".to_owned() });
        assert_eq!(setting("metadata.url").origin, Origin::File { line: 4 });
        assert_eq!(setting("metadata.url").value, "postgres://me:***@db/x?password=***&a=1");
    }

    #[test]
    fn wrong_overrides_name_their_variable() {
        let env = [
            ("HEADWORKS__EXECUTION__TASKS", "2"),
            ("HEADWORKS__ENGINE__THREADS", "many"),
            ("HEADWORKS__CONNECTIONS__P__PATH", "x.db"),
        ];
        let shown: Vec<String> = load("", &env, &[])
            .problems
            .iter()
            .map(|p| format!("{}: {} ({})", p.place.file, p.message, p.hint.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(
            shown,
            [
                "HEADWORKS__ENGINE__THREADS: `engine.threads` must be a whole number, not the text `many` ()",
                "HEADWORKS__EXECUTION__TASKS: there is no setting `execution.tasks` (the keys are `tasks_max`)",
            ]
        );
        let env = [("HEADWORKS__CONNECTIONS__P__PATH", "x.db"), ("HEADWORKS__CONNECTIONS__P__TYPE", "sqlite")];
        let loaded = load("", &env, &[]);
        assert_eq!((loaded.problems, loaded.config.connections.len()), (vec![], 1));
    }
}
