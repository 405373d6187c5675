//! YAML and TOML as one tree whose keys and values know their place.

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::{Number, Value};
use toml::de::{DeTable, DeValue};

use crate::source::{At, Source};

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) tree: Tree,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Tree {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) at: At,
}

/// Why a text is not YAML or TOML.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Malformed {
    pub(crate) at: At,
    pub(crate) message: String,
}

/// The most levels of a tree; the YAML parser itself has no limit worth the name.
const DEPTH_MAX: usize = 32;

impl Node {
    pub(crate) fn new(at: At, tree: Tree) -> Self {
        Self { at, tree }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, node)| node)
    }

    fn entry(&self, key: &str) -> Option<(&Key, &Node)> {
        match &self.tree {
            Tree::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(k, n)| (k, n)),
            _ => None,
        }
    }

    /// The place of the key at a path (numbers count list items), or of the nearest thing above it that is there.
    pub(crate) fn at(&self, path: &[&str]) -> At {
        let Some((first, rest)) = path.split_first() else { return self.at };
        let found = match &self.tree {
            Tree::Map(_) => self.entry(first).map(|(key, node)| (key.at, node)),
            Tree::List(items) => first.parse().ok().and_then(|n: usize| items.get(n)).map(|item| (item.at, item)),
            _ => None,
        };
        match found {
            None => self.at,
            Some((at, _)) if rest.is_empty() => at,
            Some((at, node)) => match &node.tree {
                // The last key found is a better place than the start of a value without that entry.
                Tree::Map(_) if node.entry(rest[0]).is_none() => at,
                _ => node.at(rest),
            },
        }
    }

    /// The value without places.
    pub(crate) fn to_json(&self) -> Value {
        match &self.tree {
            Tree::Null => Value::Null,
            Tree::Bool(b) => Value::Bool(*b),
            Tree::Int(n) => Value::from(*n),
            Tree::Float(n) => Number::from_f64(*n).map_or(Value::Null, Value::Number),
            Tree::Text(text) => Value::String(text.clone()),
            Tree::List(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Tree::Map(entries) => Value::Object(entries.iter().map(|(k, n)| (k.text.clone(), n.to_json())).collect()),
        }
    }

    /// What it is, for a person: `a list`, `the text \`x\``.
    pub(crate) fn describe(&self) -> String {
        match &self.tree {
            Tree::Null => "nothing".to_owned(),
            Tree::Bool(b) => format!("`{b}`"),
            Tree::Int(n) => format!("the number `{n}`"),
            Tree::Float(n) => format!("the number `{n}`"),
            Tree::Text(text) => format!("the text `{}`", shortened(text)),
            Tree::List(_) => "a list".to_owned(),
            Tree::Map(_) => "a map".to_owned(),
        }
    }
}

/// At most some forty characters of a text, on one line.
pub(crate) fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or("");
    if line.chars().count() > 40 || line.len() < text.trim_end().len() {
        format!("{}...", line.chars().take(40).collect::<String>())
    } else {
        line.to_owned()
    }
}

/// Reads YAML that stands in a file from line and column `first` on. An empty text is an empty map.
pub(crate) fn parse_yaml(text: &str, first: At) -> Result<Node, Malformed> {
    // A header may begin on the line of `/* job`: the blank before it is no indentation.
    let blank = text.len() - text.trim_start_matches([' ', '\t']).len();
    let text = &text[blank..];
    let first = (first.0, first.1 + blank);
    let shifted =
        |line: usize, column: usize| (line + first.0 - 1, if line == 1 { column + first.1 - 1 } else { column });
    let documents = MarkedYaml::load_from_str(text).map_err(|error| {
        let marker = error.marker();
        Malformed { at: shifted(marker.line().max(1), marker.col() + 1), message: error.info().to_owned() }
    })?;
    let place = |node: &MarkedYaml| shifted(node.span.start.line().max(1), node.span.start.col() + 1);
    match &documents[..] {
        [] => Ok(Node::new(first, Tree::Map(Vec::new()))),
        [document] if matches!(document.data, YamlData::BadValue | YamlData::Value(Scalar::Null)) => {
            Ok(Node::new(first, Tree::Map(Vec::new())))
        }
        [document] => from_yaml(document, &place, 0),
        [_, second, ..] => {
            Err(Malformed { at: place(second), message: "there is a second document in this file".to_owned() })
        }
    }
}

fn from_yaml(yaml: &MarkedYaml<'_>, place: &dyn Fn(&MarkedYaml) -> At, depth: usize) -> Result<Node, Malformed> {
    let at = place(yaml);
    let fail = |message: &str| Err(Malformed { at, message: message.to_owned() });
    if depth > DEPTH_MAX {
        return fail("it is nested deeper than 32 levels");
    }
    let tree = match &yaml.data {
        YamlData::Value(Scalar::Null) => Tree::Null,
        YamlData::Value(Scalar::Boolean(b)) => Tree::Bool(*b),
        YamlData::Value(Scalar::Integer(n)) => Tree::Int(*n),
        YamlData::Value(Scalar::FloatingPoint(n)) => Tree::Float(n.into_inner()),
        YamlData::Value(Scalar::String(text)) => Tree::Text(text.to_string()),
        YamlData::Sequence(items) => {
            Tree::List(items.iter().map(|item| from_yaml(item, place, depth + 1)).collect::<Result<_, _>>()?)
        }
        YamlData::Mapping(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let text = match &key.data {
                    YamlData::Value(Scalar::String(text)) => text.to_string(),
                    YamlData::Value(Scalar::Integer(n)) => n.to_string(),
                    YamlData::Value(Scalar::Boolean(b)) => b.to_string(),
                    _ => return Err(Malformed { at: place(key), message: "a key must be a plain text".to_owned() }),
                };
                map.push((Key { text, at: place(key) }, from_yaml(value, place, depth + 1)?));
            }
            Tree::Map(map)
        }
        YamlData::Tagged(..) => return fail("tags as `!this` are not used here"),
        YamlData::Alias(_) | YamlData::BadValue | YamlData::Representation(..) => {
            return fail("this value cannot be read");
        }
    };
    Ok(Node::new(at, tree))
}

/// Reads TOML, as much of it as can be read, with what is wrong.
pub(crate) fn parse_toml(source: &Source) -> (Node, Vec<Malformed>) {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let malformed = errors
        .iter()
        .map(|error| Malformed {
            at: error.span().map_or((0, 0), |span| source.at_byte(span.start)),
            message: error.message().lines().next().unwrap_or_default().to_owned(),
        })
        .collect();
    (Node::new((1, 1), from_table(source, table.get_ref())), malformed)
}

fn from_table(source: &Source, table: &DeTable<'_>) -> Tree {
    let entry = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
        let key = Key { text: key.get_ref().to_string(), at: source.at_byte(key.span().start) };
        let node = Node::new(source.at_byte(value.span().start), from_toml(source, value.get_ref()));
        (key, node)
    };
    Tree::Map(table.iter().map(entry).collect())
}

fn from_toml(source: &Source, value: &DeValue<'_>) -> Tree {
    match value {
        DeValue::String(text) => Tree::Text(text.to_string()),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Tree::Int(n),
            Err(_) => Tree::Text(n.to_string()),
        },
        DeValue::Float(n) => n.as_str().parse().map_or_else(|_| Tree::Text(n.as_str().to_owned()), Tree::Float),
        DeValue::Boolean(b) => Tree::Bool(*b),
        DeValue::Datetime(time) => Tree::Text(time.to_string()),
        DeValue::Array(items) => Tree::List(
            items
                .iter()
                .map(|item| Node::new(source.at_byte(item.span().start), from_toml(source, item.get_ref())))
                .collect(),
        ),
        DeValue::Table(table) => from_table(source, table),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_count_in_the_file() {
        let node = parse_yaml(" owner: me\nlist:\n  - a\n  - {b: [1, 2]}\ndeep:\n  x:\n    y: é\n", (3, 7)).unwrap();
        assert_eq!(node.at(&["owner"]), (3, 8), "the first line begins further right");
        assert_eq!(node.at(&["list", "1", "b"]), (6, 6));
        assert_eq!(node.at(&["deep", "x", "y"]), (9, 5));
        assert_eq!(node.at(&["deep", "x", "missing"]), (8, 3), "the nearest key above");
        assert_eq!(node.to_json().to_string(), r#"{"owner":"me","list":["a",{"b":[1,2]}],"deep":{"x":{"y":"é"}}}"#);
    }

    #[test]
    fn values_keep_their_kind() {
        let node = parse_yaml("{a: 07:00, b: 2013-01-01, c: \"5\", d: 5, e: 1.5, f: true, g: yes, h: ~, i: }", (1, 1))
            .unwrap();
        let json = r#"{"a":"07:00","b":"2013-01-01","c":"5","d":5,"e":1.5,"f":true,"g":"yes","h":null,"i":null}"#;
        assert_eq!(node.to_json().to_string(), json);
        for empty in ["", "\n", "# only a comment\n", "---\n"] {
            assert_eq!(parse_yaml(empty, (1, 1)).unwrap().tree, Tree::Map(Vec::new()), "{empty:?}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["a: [", "a: b: c", "a: 1\na: 2", "a: 1\n---\nb: 2", "a: !tag {x: 1}", "[1]: 2", "a: \"x"] {
            assert!(parse_yaml(bad, (1, 1)).is_err(), "{bad:?}");
        }
        assert!(parse_yaml(&"[".repeat(40), (1, 1)).is_err());
        assert!(parse_yaml(&format!("{}{}", "[".repeat(40), "]".repeat(40)), (1, 1)).is_err());
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
        assert!(parse_yaml(bomb, (1, 1)).is_err());
    }

    #[test]
    fn toml_has_places_too() {
        let source = Source::new("x.toml", "a = 1\n[b.c]\n\"d e\" = [true, 2013-01-01]\nf = 0x10\n");
        let (node, malformed) = parse_toml(&source);
        assert_eq!(malformed, vec![]);
        assert_eq!(node.to_json().to_string(), r#"{"a":1,"b":{"c":{"d e":[true,"2013-01-01"],"f":16}}}"#);
        assert_eq!(node.at(&["b", "c", "d e"]), (3, 1));
        assert_eq!(node.at(&["b", "c", "f"]), (4, 1));
    }

    proptest! {
        #[test]
        fn any_text_is_safe(text in "([a-c]|:|-| |\\n|\\[|\\]|\\{|\\}|\"|'|&a|\\*a|!|#|\\||>|é|%|---){0,30}") {
            let _ = parse_yaml(&text, (2, 5));
            let _ = parse_toml(&Source::new("x", text));
        }
    }
}
