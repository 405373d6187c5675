//! The files of the work tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use headworks_testkit::workspace_root;

/// Folders that nobody wrote by hand.
const SKIPPED: [&str; 7] = [".git", ".venv", "target", "node_modules", "headworks-demo", "__pycache__", "lake"];

/// All files below a folder of the workspace that end in one of these, sorted: path relative to the workspace, and text.
pub(crate) fn texts(below: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(&workspace_root().join(below), &mut |path| {
        let name = path.strip_prefix(workspace_root()).unwrap().to_string_lossy().into_owned();
        if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push((name, fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))));
        }
    });
    found.sort();
    found
}

fn walk(path: &Path, visit: &mut dyn FnMut(&Path)) {
    if path.is_file() {
        return visit(path);
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for entry in entries {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A nested `lake` is a folder of data only at a project's root; the crate of that name lies in `crates`.
        let is_skipped = SKIPPED.contains(&name.as_str()) && !path.ends_with("crates") && !path.ends_with("src");
        if !is_skipped && !entry.is_symlink() {
            walk(&entry, visit);
        }
    }
}
