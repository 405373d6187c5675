use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// A folder that holds a project for as long as a test runs.
#[derive(Debug)]
pub struct TempProject {
    dir: TempDir,
}

impl TempProject {
    /// An empty folder.
    pub fn new() -> Result<Self> {
        Ok(Self { dir: tempfile::Builder::new().prefix("headworks-").tempdir().context("make a temporary folder")? })
    }

    /// A folder with these files, as `[("jobs/t.sql", "...")]`.
    pub fn with(files: &[(&str, &str)]) -> Result<Self> {
        let project = Self::new()?;
        for (name, text) in files {
            project.write(name, text)?;
        }
        Ok(project)
    }

    /// A folder that starts as a copy of another, as `examples/flights`.
    pub fn copy_of(source: impl AsRef<Path>) -> Result<Self> {
        let project = Self::new()?;
        copy_folder(source.as_ref(), project.path())?;
        Ok(project)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file, and the folders it needs; returns its path.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("make folder `{}`", folder.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("write `{}`", path.display()))?;
        Ok(path)
    }

    /// Reads a file as text.
    pub fn read(&self, name: impl AsRef<Path>) -> Result<String> {
        let path = self.join(name);
        fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))
    }

    /// All files below a folder of the project, sorted, relative to that folder; none if it isn't there.
    pub fn files(&self, below: impl AsRef<Path>) -> Result<Vec<String>> {
        let root = self.join(below);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            if !folder.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&folder).with_context(|| format!("list `{}`", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&root)?.to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Keeps the folder after the test, to look at it, and says where it is.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("list `{}`", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("copy `{}`", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_holds_files_and_can_be_copied() {
        let project = TempProject::with(&[("jobs/a/t.sql", "select 1"), ("headworks.toml", "")]).unwrap();
        assert_eq!(project.read("jobs/a/t.sql").unwrap(), "select 1");
        assert_eq!(project.files(".").unwrap(), ["headworks.toml", "jobs/a/t.sql"]);
        let copy = TempProject::copy_of(project.path()).unwrap();
        assert_eq!(copy.files("jobs").unwrap(), ["a/t.sql"]);
        assert!(copy.files("lake").unwrap().is_empty());
    }
}
