//! Programs from PyPI that the query workloads need.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

/// A program of the benches' own Python, made at the first call; `python` is one.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let root = headworks_testkit::workspace_root();
    let (venv, wanted) = (root.join("target/bench/python"), root.join("bench/requirements.txt"));
    let installed = venv.join("requirements.txt");
    if std::fs::read(&installed).ok() != Some(std::fs::read(&wanted)?) {
        println!("installing {} into {}", wanted.display(), venv.display());
        command(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        command(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "--requirement"]).arg(&wanted))?;
        std::fs::copy(&wanted, &installed)?;
    }
    Ok(venv.join("bin").join(name))
}

/// Runs a command to its end. Errors: with what it said.
pub(crate) fn command(command: &mut Command) -> anyhow::Result<()> {
    let done = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A folder for data that is worth keeping between runs.
pub(crate) fn kept(name: &str) -> anyhow::Result<PathBuf> {
    let folder: PathBuf = Path::new(headworks_testkit::workspace_root()).join("target/bench").join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
