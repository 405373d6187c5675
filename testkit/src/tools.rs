//! Where the tools are that `make setup` installs.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The workspace's folder: the one with the root `Cargo.toml`.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the testkit lies in the workspace's folder")
}

/// The Python of the project's own `.venv`, with the packages of `testkit/requirements.txt`.
pub fn python_path() -> Result<PathBuf> {
    let python = workspace_root().join(".venv/bin/python");
    if !python.is_file() {
        bail!("`{}` is missing\nhint: run `make setup` in `{}`", python.display(), workspace_root().display());
    }
    Ok(python)
}

/// Runs Python code in the project's `.venv` and returns what it printed.
///
/// For fixtures that another program should have written, as an ORC file by pyarrow. The arguments are `sys.argv[1:]`.
pub fn python(code: &str, args: &[&str]) -> Result<String> {
    let done = Command::new(python_path()?).arg("-c").arg(code).args(args).output().context("start Python")?;
    if !done.status.success() {
        bail!("python failed ({}): {}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    String::from_utf8(done.stdout).context("Python printed something that is not UTF-8")
}

/// PostgreSQL's driver for Java, as Debian installs it. Errors: it is missing.
pub fn jdbc_driver() -> Result<&'static Path> {
    let jar = Path::new("/usr/share/java/postgresql.jar");
    if !jar.is_file() {
        bail!("`{}` is missing\nhint: run `make setup`", jar.display());
    }
    Ok(jar)
}

/// True when the test runs as root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self").context("look at the own process")?.uid() == 0)
}

/// A program installed by pip in the project's `.venv`.
pub(crate) fn venv_program(name: &str) -> Result<PathBuf> {
    let program = python_path()?.with_file_name(name);
    if !program.is_file() {
        bail!("`{}` is missing\nhint: run `make setup`", program.display());
    }
    Ok(program)
}

/// True for a file that may be run.
pub(crate) fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
}

/// The newest folder of PostgreSQL's server programs: Debian keeps them out of `PATH`.
pub(crate) fn postgres_bin() -> Result<PathBuf> {
    let has_server = |dir: &Path| ["initdb", "postgres", "psql"].iter().all(|name| dir.join(name).is_file());
    let mut installed: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
        .filter(|(_, bin)| has_server(bin))
        .collect();
    installed.sort();
    if let Some((_, bin)) = installed.pop() {
        return Ok(bin);
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&on_path)
        .find(|dir| has_server(dir))
        .context("no PostgreSQL server found in `/usr/lib/postgresql/*/bin` or `PATH`\nhint: run `make setup`")
}
