//! Checks a tree against a JSON Schema and tells every problem with its place.
//!
//! The schema is generated from the Rust types that the tree is decoded into next, so editors, `validate` and the decoder
//! agree. Only what schemars makes of our types is understood: `$ref`, `type`, `enum`, `const`, `properties`, `required`,
//! `additionalProperties`, `propertyNames`, `items`, `minimum`, `maximum`, `anyOf`, `oneOf`, and our own `format`s.

use headworks_domain::nearest;
use serde_json::{Map, Value};

use crate::{
    document::{Node, Tree, shortened},
    formats,
    source::At,
};

/// Something wrong at a place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    pub(crate) at: At,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Checks a tree; the result is empty when it fits.
pub(crate) fn check(root: &Value, node: &Node) -> Vec<Finding> {
    check_part(root, root, node, "")
}

/// Checks a tree against a part of a schema; `path` names the tree's place in messages.
pub(crate) fn check_part(root: &Value, schema: &Value, node: &Node, path: &str) -> Vec<Finding> {
    let mut checker = Checker { root, findings: Vec::new() };
    checker.value(schema, node, path);
    checker.findings
}

/// The parts of a schema that a key of its objects may have; with unknown keys, near misses come from `keys`.
pub(crate) fn step<'a>(root: &'a Value, schemas: &[&'a Value], key: &str) -> Vec<&'a Value> {
    let found = schemas.iter().flat_map(|schema| alternatives(root, schema)).filter_map(|schema| {
        schema["properties"].get(key).or_else(|| schema.get("additionalProperties").filter(|s| s.is_object()))
    });
    found.collect()
}

/// All keys that objects of these schemas may have by name.
pub(crate) fn keys<'a>(root: &'a Value, schemas: &[&'a Value]) -> Vec<&'a str> {
    schemas.iter().flat_map(|schema| alternatives(root, schema)).flat_map(property_names).collect()
}

/// True when one of the schemas allows that type.
pub(crate) fn allows(root: &Value, schemas: &[&Value], kind: &str) -> bool {
    schemas.iter().flat_map(|schema| alternatives(root, schema)).any(|schema| has_type(schema, kind))
}

fn property_names(schema: &Value) -> impl Iterator<Item = &str> {
    schema["properties"].as_object().into_iter().flat_map(Map::keys).map(String::as_str)
}

/// True for one of several kinds of map that a word tells apart.
fn has_tag(schema: &Value) -> bool {
    schema["properties"].as_object().is_some_and(|keys| keys.values().any(|part| part.get("const").is_some()))
}

/// Follows `$ref` and lays `anyOf` and `oneOf` flat, without `null`.
fn alternatives<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    if let Some(target) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return alternatives(root, &root["$defs"][target]);
    }
    match schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
        Some(parts) => parts.iter().flat_map(|part| alternatives(root, part)).collect(),
        None if schema["type"] == "null" => Vec::new(),
        None => vec![schema],
    }
}

fn has_type(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::String(name) => name == kind,
        Value::Array(names) => names.iter().any(|name| name == kind),
        // A bare `const` or `enum` is of text; nothing at all allows everything.
        _ if schema.get("const").is_some() || schema.get("enum").is_some() => kind == "string",
        _ => schema.get("properties").is_none() || kind == "object",
    }
}

struct Checker<'a> {
    root: &'a Value,
    findings: Vec<Finding>,
}

impl<'a> Checker<'a> {
    fn find(&mut self, at: At, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(Finding { at, message: message.into(), hint: hint.into() });
    }

    fn value(&mut self, schema: &'a Value, node: &Node, path: &str) {
        if node.tree == Tree::Null {
            self.find(node.at, format!("`{path}` has no value"), "give it one, or remove the key");
            return;
        }
        let all = alternatives(self.root, schema);
        let kind = match &node.tree {
            Tree::Null => "null",
            Tree::Bool(_) => "boolean",
            Tree::Int(_) => "integer",
            Tree::Float(_) => "number",
            Tree::Text(_) => "string",
            Tree::List(_) => "array",
            Tree::Map(_) => "object",
        };
        let fitting: Vec<&Value> =
            all.iter().copied().filter(|s| has_type(s, kind) || (kind == "integer" && has_type(s, "number"))).collect();
        if fitting.is_empty() {
            self.mismatch(&all, node, path);
            return;
        }
        match &node.tree {
            Tree::Text(text) => self.text(&all, &fitting, text, node, path),
            Tree::Int(n) => self.number(fitting[0], *n as f64, node, path),
            Tree::Float(n) => self.number(fitting[0], *n, node, path),
            Tree::List(items) => {
                if let Some(item_schema) = fitting[0].get("items") {
                    for (n, item) in items.iter().enumerate() {
                        self.value(item_schema, item, &format!("{path}[{n}]"));
                    }
                }
            }
            Tree::Map(_) => self.map(&fitting, node, path),
            Tree::Null | Tree::Bool(_) => {}
        }
    }

    fn mismatch(&mut self, all: &[&Value], node: &Node, path: &str) {
        let mut wanted: Vec<&str> = Vec::new();
        for (kind, words) in [
            ("string", "a text"),
            ("integer", "a whole number"),
            ("number", "a number"),
            ("boolean", "`true` or `false`"),
            ("array", "a list"),
            ("object", "a map"),
        ] {
            if all.iter().any(|s| has_type(s, kind)) {
                wanted.push(words);
            }
        }
        let scalar = matches!(node.tree, Tree::Bool(_) | Tree::Int(_) | Tree::Float(_));
        let hint = match all.iter().find_map(|s| s["format"].as_str()).map(formats::example) {
            Some(Some(example)) => format!("write it as {example}"),
            _ if scalar && wanted == ["a text"] => "put it in quotes".to_owned(),
            _ if wanted == ["a list"] => format!("write it as `[{}]`", sample(node)),
            _ => String::new(),
        };
        self.find(node.at, format!("`{path}` must be {}, not {}", wanted.join(" or "), node.describe()), hint);
    }

    fn text(&mut self, all: &[&'a Value], fitting: &[&Value], text: &str, node: &Node, path: &str) {
        let words: Vec<&str> = fitting
            .iter()
            .flat_map(|s| s["enum"].as_array().into_iter().flatten().chain(s.get("const")))
            .filter_map(Value::as_str)
            .collect();
        if words.contains(&text) {
            return;
        }
        let free = fitting.iter().find(|s| s.get("enum").is_none() && s.get("const").is_none());
        if let Some(schema) = free {
            if let Some(Err(wrong)) = schema["format"].as_str().map(|format| formats::check(format, text)) {
                self.find(node.at, wrong.message, wrong.hint);
            }
            return;
        }
        let maps: Vec<&str> = all.iter().flat_map(|s| property_names(s)).collect();
        let hint = if maps.contains(&text) {
            format!("`{text}` needs a value: write `{{{text}: ...}}`")
        } else if let Some(near) = nearest(text, words.iter().chain(&maps).copied()) {
            format!("did you mean `{near}`?")
        } else {
            format!("write one of {}", listed(words.iter().chain(&maps).copied()))
        };
        self.find(node.at, format!("`{path}` cannot be `{}`", shortened(text)), hint);
    }

    fn number(&mut self, schema: &Value, n: f64, node: &Node, path: &str) {
        let (min, max) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
        if min.is_none_or(|min| n >= min) && max.is_none_or(|max| n <= max) && n.is_finite() {
            return;
        }
        let hint = match (min, max) {
            (Some(min), Some(max)) => format!("write a number from {min} to {max}"),
            (Some(min), None) => format!("write a number of at least {min}"),
            (None, Some(max)) => format!("write a number of at most {max}"),
            (None, None) => "write a finite number".to_owned(),
        };
        self.find(node.at, format!("`{path}` cannot be {n}"), hint);
    }

    fn map(&mut self, fitting: &[&'a Value], node: &Node, path: &str) {
        let Tree::Map(entries) = &node.tree else { return };
        let Some(schema) = self.choose(fitting, node, path) else { return };
        let properties = schema["properties"].as_object();
        let additional = schema.get("additionalProperties");
        let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        for (n, (key, value)) in entries.iter().enumerate() {
            if entries[..n].iter().any(|(other, _)| other.text == key.text) {
                self.find(key.at, format!("`{}` is there twice", join(&key.text)), "keep one of them");
            }
            if let Some(Err(wrong)) =
                schema["propertyNames"]["format"].as_str().map(|format| formats::check(format, &key.text))
            {
                self.find(key.at, wrong.message, wrong.hint);
            }
            match (properties.and_then(|p| p.get(&key.text)), additional) {
                (Some(part), _) => self.value(part, value, &join(&key.text)),
                (None, Some(Value::Bool(false))) => {
                    // Where a word chose the kind of map, the keys of the others are no help.
                    let kinds: &[&Value] = if has_tag(schema) { &[schema] } else { fitting };
                    let known = kinds.iter().flat_map(|s| property_names(s));
                    let unused: Vec<&str> =
                        known.filter(|name| !entries.iter().any(|(k, _)| k.text == *name)).collect();
                    self.unknown_key(&key.text, key.at, &unused, path);
                }
                (None, Some(part)) if part.is_object() => self.value(part, value, &join(&key.text)),
                (None, _) => {}
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !entries.iter().any(|(key, _)| key.text == name) {
                let whole = if path.is_empty() { "the file".to_owned() } else { format!("`{path}`") };
                let hint = schema["properties"][name]["description"].as_str().map(first_sentence).unwrap_or_default();
                self.find(node.at, format!("{whole} lacks the key `{name}`"), hint);
            }
        }
    }

    fn unknown_key(&mut self, key: &str, at: At, known: &[&str], path: &str) {
        let hint = match nearest(key, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => "remove it".to_owned(),
            None => format!("the keys are {}", listed(known.iter().copied())),
        };
        let place = if path.is_empty() { String::new() } else { format!(" in `{path}`") };
        self.find(at, format!("unknown key `{key}`{place}"), hint);
    }

    /// Of several kinds of map the one that is meant: by the word of its `type`, else by the keys that are there.
    fn choose(&mut self, fitting: &[&'a Value], node: &Node, path: &str) -> Option<&'a Value> {
        if let [only] = fitting {
            return Some(only);
        }
        let tag = fitting.iter().find_map(|s| {
            let properties = s["properties"].as_object()?;
            properties.iter().find(|(_, part)| part.get("const").is_some()).map(|(name, _)| name.as_str())
        });
        if let Some(tag) = tag {
            let words: Vec<&str> = fitting.iter().filter_map(|s| s["properties"][tag]["const"].as_str()).collect();
            let Some(value) = node.get(tag) else {
                self.find(
                    node.at,
                    format!("`{path}` lacks the key `{tag}`"),
                    format!("it is one of {}", listed(words)),
                );
                return None;
            };
            let chosen = fitting.iter().find(|s| {
                let word = s["properties"][tag]["const"].as_str();
                word.is_some_and(|word| value.tree == Tree::Text(word.to_owned()))
            });
            if chosen.is_none() {
                let hint = match &value.tree {
                    Tree::Text(text) => nearest(text, words.iter().copied()).map(|w| format!("did you mean `{w}`?")),
                    _ => None,
                };
                let hint = hint.unwrap_or_else(|| format!("write one of {}", listed(words)));
                self.find(value.at, format!("`{path}.{tag}` cannot be {}", value.describe()), hint);
            }
            return chosen.copied();
        }
        let Tree::Map(entries) = &node.tree else { return None };
        let score = |s: &Value| entries.iter().filter(|(k, _)| s["properties"].get(&k.text).is_some()).count();
        let best = fitting.iter().map(|s| score(s)).max().unwrap_or(0);
        let mut leading = fitting.iter().filter(|s| score(s) == best);
        let first = leading.next().copied();
        if leading.next().is_none() || entries.is_empty() {
            return first;
        }
        // No key tells which one is meant: tell the unknown keys, and what would decide.
        let known: Vec<&str> = fitting.iter().flat_map(|s| property_names(s)).collect();
        let unknown: Vec<_> = entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())).collect();
        for (key, _) in &unknown {
            self.unknown_key(&key.text, key.at, &known, path);
        }
        if unknown.is_empty() {
            let decides = |name: &&str| fitting.iter().any(|s| s["properties"].get(*name).is_none());
            let needed = fitting.iter().flat_map(|s| s["required"].as_array()).flatten().filter_map(Value::as_str);
            let deciding: Vec<&str> = needed.filter(decides).collect();
            let given = entries.iter().map(|(key, _)| key.text.as_str()).filter(|key| deciding.contains(key));
            let given: Vec<&str> = given.collect();
            let (message, hint) = if given.is_empty() {
                ("says too little".to_owned(), format!("it needs one of {}", listed(deciding)))
            } else {
                (format!("cannot have {} together", listed(given)), "keep one of them".to_owned())
            };
            self.find(node.at, format!("`{path}` {message}"), hint);
        }
        None
    }
}

/// A value as it would stand in a list.
fn sample(node: &Node) -> String {
    match &node.tree {
        Tree::Text(text) => shortened(text),
        Tree::Bool(b) => b.to_string(),
        Tree::Int(n) => n.to_string(),
        Tree::Float(n) => n.to_string(),
        _ => "...".to_owned(),
    }
}

fn first_sentence(text: &str) -> String {
    // `headworks.toml` ends no sentence.
    let end =
        text.match_indices(['.', ';']).map(|(n, _)| n).find(|n| !text[n + 1..].starts_with(char::is_alphanumeric));
    text[..end.unwrap_or(text.len())].replace('\n', " ").trim().to_owned()
}

/// Names in backticks with commas between, each once.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut shown: Vec<&str> = Vec::new();
    for name in names {
        if !shown.contains(&name) {
            shown.push(name);
        }
    }
    shown.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use crate::{document::parse_yaml, jobfile::job_schema};

    /// Shows every problem of a header.
    fn check(yaml: &str, expected: &[&str]) {
        let node = parse_yaml(yaml, (1, 1)).unwrap();
        let shown: Vec<String> = super::check(&job_schema(), &node)
            .iter()
            .map(|f| format!("{}:{} {} ({})", f.at.0, f.at.1, f.message, f.hint))
            .collect();
        assert_eq!(shown, expected, "{yaml}");
    }

    #[test]
    fn a_full_header_fits() {
        check(
            r#"
name: metrics/company_metrics
table: company_metrics
description: How each company does.
owner: data
schedule: "0 2 * * *"
timezone: America/New_York
grain: day
start: 2013-01-01
end: 2013-12-31
catchup: all
overlap: cancel_old
max_active_runs: 4
kind: upsert
key: [company]
partition_by: [ds]
wait: [self@-1, flights, "weather@-1", {table: fx, upto: ds}, {table: fx, offset: -2}]
columns:
  company: {type: varchar, description: "the company", checks: [not_null, unique]}
  n: {type: "decimal(12,2)"}
  kind: {checks: [{accepted_values: [a, b, 1]}, {relationships: {table: kinds, column: name}}]}
  plain: {}
checks:
  - {name: not_empty, sql: "select count(*) > 0 from this"}
  - {name: size, row_count: {min: 1, max: 100}, on_fail: warn}
deadline: "07:00"
retries: {times: 2, delay: 1m, factor: 1.5, max: 30m}
timeout: 45m
wait_timeout: 1d
pool: etl
priority: -3
zone: eu-west
retention: 400d
params: {a: 1, b: [x, {c: true}]}
import:
  connection: production
  table: public.companies
  by: time_hour
  columns: [a, b]
  where: "a > 1"
  names: safe
  types: {a: bigint}
  as_of_now: true
"#,
            &[],
        );
        check("", &[]);
    }

    #[test]
    fn every_problem_is_told() {
        check(
            "shcedule: \"@daily\"\nowner: 5\nkind: cumulatve\n",
            &[
                "1:1 unknown key `shcedule` (did you mean `schedule`?)",
                "2:8 `owner` must be a text, not the number `5` (put it in quotes)",
                "3:7 `kind` cannot be `cumulatve` (did you mean `cumulative`?)",
            ],
        );
        check(
            "owner:\nkey: id\ncolumns: [a]\nmax_active_runs: 0\n",
            &[
                "1:6 `owner` has no value (give it one, or remove the key)",
                "2:6 `key` must be a list, not the text `id` (write it as `[id]`)",
                "3:10 `columns` must be a map, not a list ()",
                "4:18 `max_active_runs` cannot be 0 (write a number from 1 to 1000)",
            ],
        );
        check(
            "schedule: 0 2 * *\ntimezone: new york\nstart: 2013-1-1\ntimeout: 45\ndeadline: 7am\n",
            &[
                "1:11 `0 2 * *` has 4 fields, a schedule has 5 (write minute, hour, day of the month, month, day of the week, as `0 2 * * *` for 02:00 each day)",
                "2:11 `new york` is not a time zone (did you mean `America/New_York`?)",
                "3:8 `2013-1-1` is not a day: write it as 2018-02-20 ()",
                "4:10 `timeout` must be a text, not the number `45` (write it as `45m`)",
                "5:11 `7am` is not a time of day: write it as `07:00` ()",
            ],
        );
        check(
            "table: my_latest\nname: \"a b\"\nwait: [t@1, {tabel: x}, {table: t, upto: now}, {offset: -1}]\n",
            &[
                "1:8 `my_latest` is not a table name: names ending in `_latest` belong to the views of the newest partition (use letters, digits and `_`)",
                "2:7 `a b` is not a job name: it may have letters, digits and `_` only (use letters, digits, `_`, `-`, with `/` between parts)",
                "3:8 `@1` is not an offset: write `t@-1` for the partition before (write a table, `table@-1` for the partition before, or `self@-1` for the job's own)",
                "3:14 unknown key `tabel` in `wait[1]` (did you mean `table`?)",
                "3:42 `wait[2].upto` cannot be `now` (write one of `ds`)",
                "3:48 `wait[3]` lacks the key `table` (The table)",
            ],
        );
    }

    #[test]
    fn checks_are_told_apart() {
        check(
            "columns:\n  a: {type: bigin, checks: [notnull, accepted_values, {acepted_values: [1]}, {relationships: {table: t}}]}\n",
            &[
                "2:13 `bigin` is not a column type (did you mean `bigint`?)",
                "2:29 `columns.a.checks[0]` cannot be `notnull` (did you mean `not_null`?)",
                "2:38 `columns.a.checks[1]` cannot be `accepted_values` (`accepted_values` needs a value: write `{accepted_values: ...}`)",
                "2:56 unknown key `acepted_values` in `columns.a.checks[2]` (did you mean `accepted_values`?)",
                "2:94 `columns.a.checks[3].relationships` lacks the key `column` (Its column)",
            ],
        );
        check(
            "checks:\n  - {name: a}\n  - {name: b, sql: x, row_count: {min: -1}}\n  - {sql: x}\n  - {name: c, row_cuont: {}}\n",
            &[
                "2:5 `checks[0]` says too little (it needs one of `sql`, `row_count`)",
                "3:5 `checks[1]` cannot have `sql`, `row_count` together (keep one of them)",
                "4:5 `checks[2]` lacks the key `name` (A short name, shown when it fails)",
                "5:15 unknown key `row_cuont` in `checks[3]` (did you mean `row_count`?)",
            ],
        );
    }
}
