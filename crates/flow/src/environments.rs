//! Environments: places besides production to run a project in, each with its own database and data path.
//!
//! `[environments.NAME]` may hold any setting; what it leaves out is production's, but for the two places, which are never
//! shared: without them they are folders of the environment's own.

use std::path::{Component, Path, PathBuf};

use headworks_domain::{EnvironmentName, Problem};

use crate::{
    config::Config,
    document::{Key, Node, Tree},
    source::Source,
};

/// The key of `headworks.toml` that environments stand under.
pub(crate) const ENVIRONMENTS: &str = "environments";

/// Takes the environments out of the tree, and gives them.
pub(crate) fn take(tree: &mut Node) -> Vec<(EnvironmentName, Node)> {
    let Tree::Map(entries) = &mut tree.tree else { return Vec::new() };
    let Some(at) = entries.iter().position(|(key, _)| key.text == ENVIRONMENTS) else { return Vec::new() };
    let Tree::Map(environments) = entries.remove(at).1.tree else { return Vec::new() };
    environments.into_iter().filter_map(|(key, node)| Some((key.text.parse().ok()?, node))).collect()
}

/// The settings of an environment: production's, under its own. Answers them with the paths of the defaults among them.
pub(crate) fn laid_over(base: &Node, name: &EnvironmentName, own: &Node) -> (Node, Vec<&'static str>) {
    let mut tree = base.clone();
    let mut defaults = Vec::new();
    let has = |section: &str, key: &str| own.get(section).is_some_and(|section| section.get(key).is_some());
    // A schema alone names another place in the same database.
    if !has("metadata", "url") && !has("metadata", "schema") {
        put(&mut tree, "metadata", "url", &format!("sqlite:{}/metadata.db", own_folder(name)));
        defaults.push("metadata.url");
    }
    if !has("storage", "path") {
        put(&mut tree, "storage", "path", &format!("{}/lake", own_folder(name)));
        defaults.push("storage.path");
    }
    merge(&mut tree, own);
    (tree, defaults)
}

/// The folder of an environment in a project, for what is written there without a setting of its own.
pub(crate) fn own_folder(name: &EnvironmentName) -> String {
    format!(".headworks/environments/{name}")
}

/// Sets `section.key` in a tree.
pub(crate) fn put(tree: &mut Node, section: &str, key: &str, value: &str) {
    let leaf = Node::new((0, 0), Tree::Text(value.to_owned()));
    let entry = |text: &str, node| (Key { text: text.to_owned(), at: (0, 0) }, node);
    let section =
        Node::new((0, 0), Tree::Map(vec![entry(section, Node::new((0, 0), Tree::Map(vec![entry(key, leaf)])))]));
    merge(tree, &section);
}

/// Lays sections over sections. What stands in a section is taken whole: half a connection from here and half from there
/// would be neither.
fn merge(into: &mut Node, from: &Node) {
    let (Tree::Map(into), Tree::Map(from)) = (&mut into.tree, &from.tree) else { return };
    for (key, section) in from {
        match into.iter_mut().find(|(known, _)| known.text == key.text) {
            Some((_, Node { tree: Tree::Map(there), .. })) => {
                let Tree::Map(own) = &section.tree else { continue };
                for (key, value) in own {
                    there.retain(|(known, _)| known.text != key.text);
                    there.push((key.clone(), value.clone()));
                }
            }
            Some(_) => {}
            None => into.push((key.clone(), section.clone())),
        }
    }
}

/// Problems of environments that share a place with production or with each other: one would destroy the other's work.
///
/// `tree` is the whole file. Places are compared as they are written; what variables stand for is not known here.
pub(crate) fn clashes(source: &Source, tree: &Node, environments: &[(EnvironmentName, Config)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (n, (name, config)) in environments.iter().enumerate() {
        for (other, theirs) in &environments[..n] {
            let place = |section, key| tree.at(&[ENVIRONMENTS, name.as_str(), section, key]);
            if is_same_database(config, theirs) {
                let url = crate::url_without_password(&config.metadata.url);
                let message = format!("environment `{name}` has the metadata database of `{other}`: `{url}`");
                let hint = format!(
                    "give it a `metadata.url` of its own, or none: it is then `sqlite:{}/metadata.db`",
                    own_folder(name)
                );
                problems.push(source.error(place("metadata", "url"), message, hint));
            }
            if is_same_data(config, theirs) {
                let path = &config.storage.path;
                let message = format!("environment `{name}` has its files where `{other}` has them: `{path}`");
                let hint =
                    format!("give it a `storage.path` of its own, or none: it is then `{}/lake`", own_folder(name));
                problems.push(source.error(place("storage", "path"), message, hint));
            }
        }
    }
    problems
}

fn is_same_database(a: &Config, b: &Config) -> bool {
    let schemas = |config: &Config| [config.metadata.schema.clone(), format!("{}_lake", config.metadata.schema)];
    match (database(&a.metadata.url), database(&b.metadata.url)) {
        (Database::File(a), Database::File(b)) => a == b,
        (Database::Server(there), Database::Server(here)) => {
            there == here && schemas(a).iter().any(|schema| schemas(b).contains(schema))
        }
        _ => false,
    }
}

enum Database {
    File(PathBuf),
    Server(String),
}

fn database(url: &str) -> Database {
    if let Some(path) = url.strip_prefix("sqlite:") {
        return Database::File(plain_path(path.trim_start_matches("//")));
    }
    // User and password say who asks, not where: `HOST:PORT/DATABASE` is left.
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let host = host.to_lowercase();
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
        _ => (host.as_str(), "5432"),
    };
    let host = if matches!(host, "" | "127.0.0.1" | "[::1]") { "localhost" } else { host };
    let name = path.trim_start_matches('/').split('?').next().unwrap_or_default();
    let name = if name.is_empty() { user.split(':').next().unwrap_or_default() } else { name };
    Database::Server(format!("{host}:{port}/{name}"))
}

fn is_same_data(a: &Config, b: &Config) -> bool {
    let place = |config: &Config| {
        let path = config.storage.path.trim_end_matches('/');
        // The data files are in a folder of that name; one lake must not lie in the files of another either.
        match path.split_once("://") {
            Some((scheme, rest)) => (config.storage.endpoint.clone(), PathBuf::from(format!("{scheme}/{rest}/data"))),
            None => (None, plain_path(path).join("data")),
        }
    };
    let ((a_at, a), (b_at, b)) = (place(a), place(b));
    a_at == b_at && (a.starts_with(&b) || b.starts_with(&a))
}

/// A path without `.` and `..`, as far as its text tells.
fn plain_path(text: &str) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some_and(|name| name != "..") => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str, schema: &str, path: &str) -> Config {
        let mut config = Config::default();
        (config.metadata.url, config.metadata.schema, config.storage.path) =
            (url.to_owned(), schema.to_owned(), path.to_owned());
        config
    }

    #[test]
    fn databases_are_told_apart() {
        let same = |a: (&str, &str), b: (&str, &str)| is_same_database(&config(a.0, a.1, "a"), &config(b.0, b.1, "b"));
        for (a, b, expected) in [
            (("sqlite:a.db", "h"), ("sqlite:./x/../a.db", "other"), true),
            (("sqlite:a.db", "h"), ("sqlite:b.db", "h"), false),
            (("sqlite:../a.db", "h"), ("sqlite:a.db", "h"), false),
            (("postgres://me:pw@DB/x", "h"), ("postgresql://you@db:5432/x?sslmode=require", "h"), true),
            (("postgres://me@localhost/x", "h"), ("postgres://me@127.0.0.1/x", "h"), true),
            (("postgres://x@db", "h"), ("postgres://me@db/x", "h"), true),
            (("postgres://me@db/x", "h"), ("postgres://me@db/x", "staging"), false),
            (("postgres://me@db/x", "h"), ("postgres://me@db/x", "h_lake"), true),
            (("postgres://me@db/x", "h"), ("postgres://me@db/y", "h"), false),
            (("postgres://me@db:1/x", "h"), ("postgres://me@db:2/x", "h"), false),
            (("postgres://me@${env:HOST}/x", "h"), ("postgres://me@${env:HOST}/x", "h"), true),
            (("sqlite:x", "h"), ("postgres://x", "h"), false),
        ] {
            assert_eq!(same(a, b), expected, "{a:?} {b:?}");
        }
    }

    #[test]
    fn data_paths_are_told_apart() {
        let same = |a: &str, b: &str| is_same_data(&config("sqlite:a", "h", a), &config("sqlite:b", "h", b));
        for (a, b, expected) in [
            ("lake", "lake/", true),
            ("lake", "./lake", true),
            ("lake", "lake2", false),
            ("lake", "lake/data/inside", true),
            ("lake", "lake/beside", false),
            ("s3://b/x", "s3://b/x/", true),
            ("s3://b/x", "s3://b/xy", false),
            ("s3://b/x", "s3://c/x", false),
            ("s3://b", "s3://b/data/x", true),
        ] {
            assert_eq!((same(a, b), same(b, a)), (expected, expected), "{a} {b}");
        }
        let mut elsewhere = config("sqlite:b", "h", "s3://b/x");
        elsewhere.storage.endpoint = Some("http://other".to_owned());
        assert!(!is_same_data(&config("sqlite:a", "h", "s3://b/x"), &elsewhere));
    }
}
