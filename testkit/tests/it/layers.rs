//! The arrows between the crates, as the table in ARCHITECTURE.md has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use headworks_testkit::{python_path, workspace_root};
use serde_json::Value;

/// What a row of the table allows a crate.
#[derive(Debug, Default, PartialEq)]
struct Allowed {
    /// Crates of ours.
    uses: BTreeSet<String>,
    /// Libraries that only named crates may name; `*` for all.
    names: BTreeSet<String>,
}

/// What a crate's manifest says.
#[derive(Debug, Default)]
struct Actual {
    ours: BTreeSet<String>,
    theirs: BTreeSet<String>,
}

/// Reads the rows `| `crate` | what for | uses | names |`; a cell with `-` is empty.
fn table(text: &str) -> BTreeMap<String, Allowed> {
    let words = |cell: &str| -> BTreeSet<String> {
        let parts = cell.split(',').map(|part| part.trim().trim_matches('`').to_owned());
        parts.filter(|part| !part.is_empty() && part != "-").collect()
    };
    let mut rows = BTreeMap::new();
    let mut is_inside = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        match cells[..] {
            ["crate", _, "uses", "names"] => is_inside = true,
            [name, _, uses, names] if is_inside && name.starts_with('`') => {
                rows.insert(name.trim_matches('`').to_owned(), Allowed { uses: words(uses), names: words(names) });
            }
            [_, _, _, _] if is_inside => {}
            _ => is_inside = false,
        }
    }
    rows
}

/// Reads the normal dependencies of every member; those of tests are free.
fn members() -> BTreeMap<String, Actual> {
    let done = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(workspace_root())
        .output()
        .expect("start cargo");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let metadata: Value = serde_json::from_slice(&done.stdout).expect("cargo prints JSON");
    let mut members = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let mut actual = Actual::default();
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let name = dependency["name"].as_str().expect("a name");
            if dependency["kind"] == "dev" {
                continue;
            }
            match dependency["path"] {
                Value::String(_) => actual.ours.insert(short(name)),
                _ => actual.theirs.insert(name.to_owned()),
            };
        }
        members.insert(short(package["name"].as_str().expect("a name")), actual);
    }
    members
}

fn short(package: &str) -> String {
    package.strip_prefix("headworks-").unwrap_or(package).to_owned()
}

/// Says every arrow and every name that the table does not have.
fn violations(table: &BTreeMap<String, Allowed>, members: &BTreeMap<String, Actual>) -> Vec<String> {
    let fenced: BTreeSet<&String> = table.values().flat_map(|row| &row.names).filter(|name| *name != "*").collect();
    let mut said = Vec::new();
    for name in members.keys().filter(|name| !table.contains_key(*name)) {
        said.push(format!("crate `{name}` has no row"));
    }
    for (name, allowed) in table {
        let Some(actual) = members.get(name) else {
            said.push(format!("the row of `{name}` has no crate"));
            continue;
        };
        for used in actual.ours.difference(&allowed.uses) {
            said.push(format!("`{name}` uses `{used}`"));
        }
        for library in actual.theirs.iter().filter(|library| fenced.contains(library)) {
            if !allowed.names.contains(library) && !allowed.names.contains("*") {
                said.push(format!("`{name}` names `{library}`"));
            }
        }
    }
    said
}

#[test]
fn the_crates_keep_to_the_table_in_architecture_md() {
    let text = fs::read_to_string(workspace_root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let said = violations(&table(&text), &members());
    assert!(said.is_empty(), "the table in ARCHITECTURE.md does not have:\n  {}", said.join("\n  "));
}

#[test]
fn a_forbidden_arrow_is_found() {
    let table = table(
        "| crate | what | uses | names |\n|---|---|---|---|\n| `domain` | nouns | - | - |\n\
         | `lake` | files | `domain` | `datafusion` |\n| `gone` | x | - | - |\n\nother text",
    );
    let actual = |ours: &[&str], theirs: &[&str]| Actual {
        ours: ours.iter().map(|name| (*name).to_owned()).collect(),
        theirs: theirs.iter().map(|name| (*name).to_owned()).collect(),
    };
    let members = BTreeMap::from([
        ("domain".to_owned(), actual(&["lake"], &["datafusion", "serde"])),
        ("lake".to_owned(), actual(&["domain"], &["datafusion"])),
        ("new".to_owned(), actual(&[], &[])),
    ]);
    assert_eq!(
        violations(&table, &members),
        [
            "crate `new` has no row",
            "`domain` uses `lake`",
            "`domain` names `datafusion`",
            "the row of `gone` has no crate"
        ]
    );
}

#[test]
fn each_crate_alone_builds_the_same_heavy_dependencies_as_the_workspace() {
    let done = Command::new(python_path().unwrap())
        .arg(workspace_root().join("testkit/features.py"))
        .arg("--check")
        .output()
        .expect("start Python");
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}
