//! Reads `headworks.toml` and what overrides it, and tells where each value comes from.

use std::collections::BTreeMap;

use headworks_domain::{EnvironmentName, Place, Problem, Severity, nearest};
use serde::Serialize;
use serde_json::Value;

use crate::{
    config::{CONFIG_FILE, Config, ConnectionConfig, SCHEMA},
    document::{Key, Node, Tree, parse_toml},
    environments, schema,
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
    /// Environment variables; those that begin with `HEADWORKS__` count, as `HEADWORKS__METADATA__URL`, and `HEADWORKS_ENV`.
    pub env: BTreeMap<String, String>,
    /// Paths and values, as (`metadata.url`, `sqlite:other.db`).
    pub flags: Vec<(String, String)>,
}

/// The settings of a project with their origins.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoadedConfig {
    /// The settings; defaults where the file has problems.
    pub config: Config,
    /// The settings of production, when these are of another environment: it may read production's lake.
    pub production: Option<Config>,
    /// Every setting with its origin, in the order of the schema.
    pub settings: Vec<Setting>,
    /// Everything wrong with the file and the overrides.
    pub problems: Vec<Problem>,
}

const ENV_PREFIX: &str = "HEADWORKS__";

/// The variable that names the environment, short for `HEADWORKS__PROJECT__ENVIRONMENT`.
pub const ENVIRONMENT_VARIABLE: &str = "HEADWORKS_ENV";

/// The setting that names the environment.
const ENVIRONMENT: &str = "project.environment";

/// Reads settings from the text of `headworks.toml`, for the environment that flags, variables or the file name.
///
/// An environment's own value wins over one for all, wherever they stand; a flag holds for the environment of its command.
pub fn load_config(text: &str, overrides: &Overrides) -> LoadedConfig {
    let source = Source::new(CONFIG_FILE, text);
    let (mut tree, malformed) = parse_toml(&source);
    let hint = "see https://toml.io for how TOML is written";
    let mut problems: Vec<Problem> =
        malformed.iter().map(|m| source.error(m.at, format!("this is not TOML: {}", m.message), hint)).collect();
    if problems.is_empty() {
        problems.extend(misfits(&source, &tree));
    }
    if !problems.is_empty() {
        // Overrides are checked all the same, over an empty file.
        tree = Node::new((1, 1), Tree::Map(Vec::new()));
    }
    let mut origins: BTreeMap<String, Origin> = BTreeMap::new();
    for (path, at) in leaves(&tree, "") {
        origins.insert(path, Origin::File { line: at.0 });
    }
    let (for_all, for_one) = outside(overrides);
    let is_changed = !for_all.is_empty();
    problems.extend(for_all.into_iter().filter_map(|value| value.put(&mut tree, &mut origins)));
    if problems.is_empty() && is_changed {
        // Values from outside may have begun something that lacks its other half, as a connection without a type.
        problems.extend(misfits(&source, &tree));
    }
    let name = tree.get("project").and_then(|p| p.get("environment")).and_then(|node| match &node.tree {
        Tree::Text(name) => name.parse::<EnvironmentName>().ok(),
        _ => None,
    });
    let name = name.unwrap_or_default();
    let mut base = tree.clone();
    let environments = environments::take(&mut base);
    if problems.is_empty() {
        problems.extend(unknown(&name, &environments, &source, &tree, &origins));
    }
    environments::put(&mut base, "project", "environment", EnvironmentName::PRODUCTION);
    let own = environments.iter().find(|(known, _)| *known == name);
    let mut effective = own.map_or_else(|| base.clone(), |(_, own)| laid_over(&base, &name, own, &mut origins));
    let is_changed = !for_one.is_empty();
    problems.extend(for_one.into_iter().filter_map(|value| value.put(&mut effective, &mut origins)));
    if problems.is_empty() && is_changed {
        problems.extend(misfits(&source, &effective));
    }
    let config = match decoded(&effective) {
        Ok(config) => config,
        Err(error) => {
            if problems.is_empty() {
                problems.push(source.error((0, 0), format!("the settings cannot be read: {error}"), ""));
            }
            Config::default()
        }
    };
    let production = decoded(&base).unwrap_or_default();
    problems.extend(semantic_problems(&config, &source, &effective));
    if problems.is_empty() {
        // All environments, so that `validate` tells of a clash before anybody works in one.
        let mut all = vec![(EnvironmentName::default(), production.clone())];
        for (other, own) in &environments {
            let laid = environments::laid_over(&base, other, own).0;
            all.push((other.clone(), decoded(&laid).unwrap_or_default()));
        }
        // Flags are in the settings of the one that was asked for.
        for (_, known) in all.iter_mut().filter(|(other, _)| *other == name) {
            *known = config.clone();
        }
        problems.extend(environments::clashes(&source, &tree, &all));
    }
    let settings = settings(&config, &origins);
    LoadedConfig { config, production: own.map(|_| production), settings, problems }
}

/// The settings of an environment over production's; `origins` tells then where these come from.
fn laid_over(base: &Node, name: &EnvironmentName, own: &Node, origins: &mut BTreeMap<String, Origin>) -> Node {
    let (mut laid, defaults) = environments::laid_over(base, name, own);
    for (path, _) in leaves(own, "") {
        let origin = origins.get(&format!("{}.{name}.{path}", environments::ENVIRONMENTS)).cloned();
        origins.insert(path, origin.unwrap_or(Origin::Default));
    }
    for path in defaults {
        origins.remove(path);
    }
    environments::put(&mut laid, "project", "environment", name.as_str());
    laid
}

fn decoded(tree: &Node) -> Result<Config, serde_json::Error> {
    serde_json::from_value(tree.to_json())
}

fn misfits(source: &Source, tree: &Node) -> Vec<Problem> {
    schema::check(&SCHEMA, tree).into_iter().map(|f| source.error(f.at, f.message, f.hint)).collect()
}

/// A value from a variable or a flag.
struct Outside<'a> {
    path: String,
    value: &'a str,
    origin: Origin,
    /// How it is named in a problem.
    shown: String,
}

impl Outside<'_> {
    /// Puts the value into the tree, or tells what is wrong with it.
    fn put(self, tree: &mut Node, origins: &mut BTreeMap<String, Origin>) -> Option<Problem> {
        match override_value(tree, &self.path, self.value) {
            Ok(()) => {
                origins.insert(self.path, self.origin);
                None
            }
            Err((message, hint)) => Some(outside_problem(self.shown, message, hint)),
        }
    }
}

fn outside_problem(shown: String, message: String, hint: String) -> Problem {
    Problem {
        severity: Severity::Error,
        place: Place { file: shown, line: 0, column: 0 },
        text: String::new(),
        message,
        hint: Some(hint).filter(|h| !h.is_empty()),
    }
}

/// The values from outside: those that the file could say, and those for the environment of the command.
fn outside(overrides: &Overrides) -> (Vec<Outside<'_>>, Vec<Outside<'_>>) {
    let mut for_all = Vec::new();
    for (name, value) in &overrides.env {
        let path = match name.strip_prefix(ENV_PREFIX) {
            Some(path) => path.to_lowercase().replace("__", "."),
            None if name == ENVIRONMENT_VARIABLE => ENVIRONMENT.to_owned(),
            None => continue,
        };
        let origin = Origin::Env { name: name.clone() };
        for_all.push(Outside { path, value, origin, shown: name.clone() });
    }
    let mut for_one = Vec::new();
    for (path, value) in &overrides.flags {
        let value = Outside { path: path.clone(), value, origin: Origin::Flag, shown: format!("--set {path}") };
        if path == ENVIRONMENT || path.starts_with(&format!("{}.", environments::ENVIRONMENTS)) {
            for_all.push(value);
        } else {
            for_one.push(value);
        }
    }
    (for_all, for_one)
}

/// Problems with the environments' names.
fn unknown(
    name: &EnvironmentName,
    environments: &[(EnvironmentName, Node)],
    source: &Source,
    tree: &Node,
    origins: &BTreeMap<String, Origin>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if environments.iter().any(|(known, _)| known.is_production()) {
        let at = tree.at(&[environments::ENVIRONMENTS, EnvironmentName::PRODUCTION]);
        let message = "`production` is no environment besides production";
        problems.push(source.error(at, message, "its settings are those outside of `[environments]`: move them there"));
    }
    if name.is_production() || environments.iter().any(|(known, _)| known == name) {
        return problems;
    }
    let names = environments.iter().map(|(known, _)| known.as_str());
    let message = format!("there is no environment `{name}`");
    let hint = match nearest(name.as_str(), names.clone().chain([EnvironmentName::PRODUCTION])) {
        Some(near) => format!("did you mean `{near}`?"),
        None if environments.is_empty() => format!("add `[environments.{name}]` to headworks.toml to have one"),
        None => format!("there are {}", schema::listed([EnvironmentName::PRODUCTION].into_iter().chain(names))),
    };
    problems.push(match origins.get(ENVIRONMENT) {
        Some(Origin::Env { name }) => outside_problem(name.clone(), message, hint),
        Some(Origin::Flag) => outside_problem(format!("--env {name}"), message, hint),
        _ => source.error(tree.at(&["project", "environment"]), message, hint),
    });
    problems
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
    let shares: u32 = config.queues().values().map(|queue| u32::from(queue.memory_percent)).sum();
    if shares > 100 {
        let parts = config.queues();
        let parts = parts.iter().map(|(name, queue)| format!("{name} {}", queue.memory_percent));
        let message = format!("the queues have {shares} of 100 parts of memory together");
        let hint = format!("lower their `memory_percent`: {}", parts.collect::<Vec<_>>().join(", "));
        problems.push(source.error(tree.at(&["queues"]), message, hint));
    }
    let server = &config.server;
    let halves = [("tls_certificate", &server.tls_certificate), ("tls_key", &server.tls_key)];
    if let [(here, Some(_)), (lacks, None)] | [(lacks, None), (here, Some(_))] = halves {
        let message = format!("`server.{here}` is of no use without `server.{lacks}`");
        problems.push(source.error(tree.at(&["server", here]), message, "give both, or none"));
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

    use crate::{config::QueuePriority, connection::Connection, units::Span};

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
            [sql]
            value_bytes_max = "8MiB"
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
        assert_eq!(config.sql.value_bytes_max.bytes(), 8 << 20);
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
    fn queues_share_the_memory() {
        let shares = |text: &str| -> Vec<(String, u8)> {
            let loaded = load(text, &[], &[]);
            assert_eq!(loaded.problems, vec![], "{text}");
            loaded.config.queues().into_iter().map(|(name, queue)| (name, queue.memory_percent)).collect()
        };
        let named = |pairs: &[(&str, u8)]| pairs.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect::<Vec<_>>();
        assert_eq!(shares(""), named(&[("default", 50), ("jobs", 50)]));
        assert_eq!(
            shares("[queues.dashboards]\nslots = 10\nmemory_percent = 30\n"),
            named(&[("dashboards", 30), ("default", 35), ("jobs", 35)])
        );
        assert_eq!(shares("[queues.default]\nmemory_percent = 70\n"), named(&[("default", 70), ("jobs", 30)]));
        check(
            "[queues.default]\nmemory_percent = 70\n[queues.a]\nmemory_percent = 40\n",
            &[
                "1:2 the queues have 111 of 100 parts of memory together (lower their `memory_percent`: a 40, default 70, jobs 1)",
            ],
        );
        let priorities = |text: &str| -> Vec<Option<QueuePriority>> {
            load(text, &[], &[]).config.queues().into_values().map(|queue| queue.priority).collect()
        };
        let (high, normal, low) = (Some(QueuePriority::High), Some(QueuePriority::Normal), Some(QueuePriority::Low));
        assert_eq!(
            priorities("[queues.heavy]\nslots = 1\nmemory_percent = 1\npriority = \"low\""),
            [normal, low, high]
        );
        assert_eq!(priorities("[queues.jobs]\nslots = 1"), [normal, high], "jobs that say nothing of it");
        assert_eq!(priorities("[queues.jobs]\npriority = \"normal\""), [normal, normal]);
        check(
            "[queues.\"a b\"]\nslots = 0\npriority = \"highest\"\n[server]\ntls_key = \"k.pem\"\n",
            &[
                "1:9 `a b` is not the name of a queue (use at most 64 bytes of letters, digits, `_`, `-` and `.`, as `dashboards`)",
                "2:9 `queues.a b.slots` cannot be 0 (write a number from 1 to 10000)",
                "3:12 `queues.a b.priority` cannot be `highest` (write one of `high`, `normal`, `low`)",
            ],
        );
        check(
            "[server]\ntls_key = \"k.pem\"\n",
            &["2:1 `server.tls_key` is of no use without `server.tls_certificate` (give both, or none)"],
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
                "HEADWORKS__EXECUTION__TASKS: there is no setting `execution.tasks` (the keys are `tasks_max`, `zone`, `log_bytes_max`, `kill_after`, `python`, `pass_env`)",
            ]
        );
        let env = [("HEADWORKS__CONNECTIONS__P__PATH", "x.db"), ("HEADWORKS__CONNECTIONS__P__TYPE", "sqlite")];
        let loaded = load("", &env, &[]);
        assert_eq!((loaded.problems, loaded.config.connections.len()), (vec![], 1));
    }

    const STAGED: &str = "[metadata]\nurl = \"postgres://me@db/prod\"\n[storage]\npath = \"s3://lake/prod\"\nregion = \"eu\"\n\
        [engine]\nmemory = \"2GiB\"\n[connections.shop]\ntype = \"postgres\"\nurl = \"postgres://me@shop/db\"\npassword_env = \"PW\"\n\
        [environments.staging]\nstorage.path = \"s3://lake/staging\"\nmetadata.url = \"postgres://me@db/staging\"\n\
        [environments.staging.connections.shop]\ntype = \"sqlite\"\npath = \"shop.db\"\n[environments.local]\n";

    #[test]
    fn an_environment_lies_over_production() {
        let loaded = load(STAGED, &[], &[("project.environment", "staging")]);
        assert_eq!(loaded.problems, vec![]);
        let config = &loaded.config;
        assert_eq!(config.project.environment.as_str(), "staging");
        assert_eq!(
            (config.metadata.url.as_str(), config.storage.path.as_str()),
            ("postgres://me@db/staging", "s3://lake/staging")
        );
        assert_eq!(config.storage.region.as_deref(), Some("eu"), "what it leaves out is production's");
        assert_eq!(config.engine.memory.bytes(), 2 << 30);
        let shop = config.connection(&"shop".parse().unwrap()).unwrap();
        assert_eq!(*shop, ConnectionConfig::Sqlite { path: "shop.db".to_owned() }, "a connection is taken whole");
        let setting = |path: &str| loaded.settings.iter().find(|s| s.path == path).unwrap();
        assert_eq!(setting("metadata.url").origin, Origin::File { line: 14 });
        assert_eq!(setting("storage.region").origin, Origin::File { line: 5 });
        assert_eq!(setting("project.environment").origin, Origin::Flag);
        let production = loaded.production.unwrap();
        assert_eq!(
            (production.metadata.url.as_str(), production.project.environment.as_str()),
            ("postgres://me@db/prod", "production")
        );
        assert_eq!(load(STAGED, &[], &[]).production, None);
        assert_eq!(load(STAGED, &[], &[]).config, production);
    }

    #[test]
    fn an_environment_that_names_no_places_has_its_own() {
        let loaded = load(STAGED, &[("HEADWORKS_ENV", "local")], &[]);
        assert_eq!(loaded.problems, vec![]);
        assert_eq!(loaded.config.metadata.url, "sqlite:.headworks/environments/local/metadata.db");
        assert_eq!(loaded.config.storage.path, ".headworks/environments/local/lake");
        let origin = |path: &str| loaded.settings.iter().find(|s| s.path == path).unwrap().origin.clone();
        assert_eq!(origin("metadata.url"), Origin::Default);
        assert_eq!(origin("project.environment"), Origin::Env { name: "HEADWORKS_ENV".to_owned() });
        // A schema alone is another place in production's database.
        let text = "[metadata]\nurl = \"postgres://me@db/x\"\n[environments.dev]\nmetadata.schema = \"dev\"\n";
        let loaded = load(text, &[], &[("project.environment", "dev")]);
        assert_eq!((loaded.problems, loaded.config.metadata.url.as_str()), (vec![], "postgres://me@db/x"));
    }

    #[test]
    fn an_environments_own_value_wins_and_a_flag_over_it() {
        let env = [
            ("HEADWORKS__METADATA__URL", "postgres://me@db/elsewhere"),
            ("HEADWORKS__ENGINE__MEMORY", "3GiB"),
            ("HEADWORKS__ENVIRONMENTS__STAGING__ENGINE__THREADS", "5"),
            ("HEADWORKS__PROJECT__ENVIRONMENT", "staging"),
        ];
        let loaded = load(STAGED, &env, &[("storage.path", "s3://lake/mine")]);
        assert_eq!(loaded.problems, vec![]);
        assert_eq!(
            loaded.config.metadata.url, "postgres://me@db/staging",
            "the variable is for all, the line for staging"
        );
        assert_eq!((loaded.config.engine.memory.bytes(), loaded.config.engine.threads), (3 << 30, Some(5)));
        assert_eq!(loaded.config.storage.path, "s3://lake/mine");
        let production = loaded.production.unwrap();
        assert_eq!(production.metadata.url, "postgres://me@db/elsewhere");
        assert_eq!(production.storage.path, "s3://lake/prod", "the flag is for the command's environment");
    }

    #[test]
    fn wrong_environments_are_told() {
        check(
            "[environments.staging]\nmetadata.ulr = \"x\"\n[environments.\"a b\"]\n[environments.x]\nengien.memory = \"1GiB\"\n",
            &[
                "2:10 unknown key `ulr` in `environments.staging.metadata` (did you mean `url`?)",
                "3:15 `a b` is not a environment name: it may have letters, digits and `_` only (use letters, digits, `_`, `-`)",
                "5:1 unknown key `engien` in `environments.x` (did you mean `engine`?)",
            ],
        );
        check(
            "[project]\nenvironment = \"stagin\"\n[environments.staging]\n[environments.production]\n",
            &[
                "4:15 `production` is no environment besides production (its settings are those outside of `[environments]`: move them there)",
                "2:1 there is no environment `stagin` (did you mean `staging`?)",
            ],
        );
        check(
            "[metadata]\nurl = \"sqlite:a.db\"\n[environments.one]\nmetadata.url = \"sqlite:./a.db\"\nstorage.path = \"x\"\n\
             [environments.two]\nstorage.path = \"x/data/y\"\n",
            &[
                "4:10 environment `one` has the metadata database of `production`: `sqlite:./a.db` (give it a `metadata.url` of its own, or none: it is then `sqlite:.headworks/environments/one/metadata.db`)",
                "7:9 environment `two` has its files where `one` has them: `x/data/y` (give it a `storage.path` of its own, or none: it is then `.headworks/environments/two/lake`)",
            ],
        );
        let shown = |flags: &[(&str, &str)], env: &[(&str, &str)], text: &str| -> Vec<String> {
            let problems = load(text, env, flags).problems;
            problems
                .iter()
                .map(|p| format!("{}: {} ({})", p.place.file, p.message, p.hint.as_deref().unwrap_or("")))
                .collect()
        };
        assert_eq!(
            shown(&[("project.environment", "dev")], &[], ""),
            ["--env dev: there is no environment `dev` (add `[environments.dev]` to headworks.toml to have one)"]
        );
        assert_eq!(
            shown(&[], &[("HEADWORKS_ENV", "unknown")], "[environments.a]\n[environments.b]\n"),
            ["HEADWORKS_ENV: there is no environment `unknown` (there are `production`, `a`, `b`)"]
        );
        assert_eq!(
            shown(&[("project.environment", "../x")], &[], ""),
            [
                "--set project.environment: `../x` is not a environment name: it must begin with a letter or `_` (use letters, digits, `_`, `-`)"
            ]
        );
        assert_eq!(shown(&[("metadata.schema", "a b")], &[], "").len(), 1);
        let clash = shown(
            &[("project.environment", "a"), ("metadata.url", "sqlite:.headworks/metadata.db")],
            &[],
            "[environments.a]\n",
        );
        assert!(
            clash.len() == 1 && clash[0].contains("environment `a` has the metadata database of `production`"),
            "{clash:?}"
        );
    }
}
