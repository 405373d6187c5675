//! What no compiler looks at.

use std::{fs, path::Path};

use headworks_testkit::workspace_root;

use crate::tree::texts;

/// The most lines of a Rust file that nobody generated.
const LINES_MAX: usize = 1_000;

/// Kinds of a changelog fragment, as `changelog.d/2.added.md`.
const KINDS: [&str; 5] = ["added", "changed", "fixed", "removed", "security"];

fn rust_files() -> Vec<(String, String)> {
    ["crates", "testkit", "bench"].iter().flat_map(|folder| texts(folder, &[".rs"])).collect()
}

/// Fails with all problems at once.
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n  {}", problems.join("\n  "));
}

/// Says what is wrong with a Rust file.
fn rust_problems(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let is_generated = text.lines().next().is_some_and(|line| line.contains("@generated"));
    let lines = text.lines().count();
    if lines > LINES_MAX && !is_generated {
        problems.push(format!("{name}: {lines} lines; split it by responsibility (most: {LINES_MAX})"));
    }
    // Put together here, so that this file does not hold them.
    let unwanted = [["FIX", "ME"].concat(), ["todo", "!("].concat(), ["dbg", "!("].concat(), "\t".to_owned()];
    for (number, line) in text.lines().enumerate() {
        let place = format!("{name}:{}", number + 1);
        for word in unwanted.iter().filter(|word| line.contains(word.as_str())) {
            problems.push(format!("{place}: {word:?} may not stand here"));
        }
        if line.ends_with(' ') {
            problems.push(format!("{place}: ends with a blank"));
        }
    }
    if name.ends_with("/lib.rs") && !text.starts_with("//!") {
        problems.push(format!("{name}: begins without the crate's doc"));
    }
    problems
}

#[test]
fn rust_files_are_short_and_finished() {
    let problems: Vec<String> = rust_files().iter().flat_map(|(name, text)| rust_problems(name, text)).collect();
    none(&problems);
}

#[test]
fn a_long_or_unfinished_file_is_found() {
    let unfinished = ["fn f() { todo", "!() }"].concat();
    assert_eq!(rust_problems("a.rs", &unfinished).len(), 1);
    assert_eq!(rust_problems("a.rs", &"x\n".repeat(1_001)).len(), 1);
    assert_eq!(rust_problems("a.rs", &format!("// @generated\n{}", "x\n".repeat(1_001))).len(), 0);
    assert_eq!(rust_problems("crates/x/src/lib.rs", "mod a;\n").len(), 1);
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let manifests = ["crates", "testkit", "bench"].iter().flat_map(|folder| texts(folder, &["Cargo.toml"]));
    let problems: Vec<String> = manifests
        .filter(|(_, text)| !text.contains("[lints]\nworkspace = true"))
        .map(|(name, _)| format!("{name}: has no `[lints] workspace = true`"))
        .collect();
    none(&problems);
}

/// Says what is wrong with a changelog fragment.
fn fragment_problems(file: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let parts: Vec<&str> = file.split('.').collect();
    match parts[..] {
        [issue, kind, "md"] if !issue.is_empty() && KINDS.contains(&kind) => {}
        _ => problems.push(format!("{file}: is not named ISSUE.KIND.md with a kind of {}", KINDS.join(", "))),
    }
    let mut is_inside = false;
    for line in text.lines() {
        let starts = line.starts_with("- ");
        if !(starts || is_inside && line.starts_with("  ")) {
            problems.push(format!("{file}: `{line}` is neither an item (`- Text.`) nor indented under one"));
        }
        is_inside |= starts;
    }
    if !text.ends_with(".\n") {
        problems.push(format!("{file}: does not end with a full stop and a new line"));
    }
    problems
}

#[test]
fn changelog_fragments_are_well_formed() {
    let fragments = texts("changelog.d", &[".md"]);
    let problems: Vec<String> = fragments
        .iter()
        .map(|(name, text)| (name.trim_start_matches("changelog.d/"), text))
        .filter(|(file, _)| *file != "README.md")
        .flat_map(|(file, text)| fragment_problems(file, text))
        .collect();
    none(&problems);
}

#[test]
fn a_bad_fragment_is_found() {
    let check = |file: &str, text: &str, count: usize| assert_eq!(fragment_problems(file, text).len(), count, "{file}");
    check("2.added.md", "- One thing.\n- Another,\n  in two lines.\n", 0);
    check("2.md", "- One thing.\n", 1);
    check("2.better.md", "One thing\n", 3);
}

/// The targets of the links `[text](target)` in a Markdown text, outside code fences.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](").filter(|_| !is_code) {
            let (target, tail) = after.split_once(')').unwrap_or((after, ""));
            found.push(target.to_owned());
            rest = tail;
        }
    }
    found
}

#[test]
fn links_between_papers_lead_somewhere() {
    let mut problems = Vec::new();
    for (name, text) in texts(".", &[".md"]) {
        let folder = workspace_root().join(Path::new(&name).parent().unwrap());
        for target in links(&text) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:") && !folder.join(path).exists()
            {
                problems.push(format!("{name}: the link `{target}` leads nowhere"));
            }
        }
    }
    none(&problems);
}

#[test]
fn every_error_page_is_of_an_error_that_there_is() {
    let sources: String = rust_files().into_iter().map(|(_, text)| text).collect();
    let index = fs::read_to_string(workspace_root().join("docs/errors/README.md")).expect("docs/errors/README.md");
    let mut problems = Vec::new();
    for (name, _) in texts("docs/errors", &[".md"]).iter().filter(|(name, _)| !name.ends_with("README.md")) {
        let code = name.trim_start_matches("docs/errors/").trim_end_matches(".md");
        if !sources.contains(&format!("\"{code}\"")) {
            problems.push(format!("{name}: no error has the code `{code}`"));
        }
        if !index.contains(&format!("({code}.md)")) {
            problems.push(format!("{name}: is not listed in docs/errors/README.md"));
        }
    }
    none(&problems);
}
