//! A disk that a test can fill up.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::tools::is_root;

/// Mounts the disk and holds its namespace until its input closes.
const HOLDER: &str = r#"mount -t tmpfs -o "size=$2" tmpfs "$1" && echo mounted && read -r _"#;

/// A disk of a few megabytes, so that a test can run out of room: a tmpfs in a mount namespace of its own, which only
/// [`SmallDisk::command`]s see. It goes with the value, and with the test process however that ends.
///
/// Needs a root that may mount, or a system where everybody may make user namespaces.
#[derive(Debug)]
pub struct SmallDisk {
    holder: Child,
    leash: Option<ChildStdin>,
    dir: PathBuf,
    own_user: bool,
}

/// What is written at once when the disk is filled: a page, of which tmpfs keeps whole ones.
const PAGE: usize = 4096;

impl SmallDisk {
    /// Puts a disk of `bytes` at an absolute folder that is there.
    pub fn mount(dir: &Path, bytes: u64) -> Result<Self> {
        let own_user = !is_root()?;
        let mut unshare = Command::new("unshare");
        unshare.arg("--mount");
        if own_user {
            unshare.args(["--user", "--map-root-user"]);
        }
        let mut holder = unshare
            .args(["sh", "-c", HOLDER, "holder"])
            .arg(dir)
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start `unshare`\nhint: run `make setup`")?;
        let leash = holder.stdin.take();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().context("take the output")?).read_line(&mut said)?;
        if said.trim_end() != "mounted" {
            let mut why = String::new();
            holder.stderr.take().context("take the errors")?.read_to_string(&mut why).ok();
            holder.wait().ok();
            bail!(
                "no small disk could be mounted: {}\nhint: run the tests as a root that may mount (in a container: \
                 --cap-add SYS_ADMIN), or where user namespaces are allowed",
                why.trim_end()
            );
        }
        Ok(Self { holder, leash, dir: dir.to_owned(), own_user })
    }

    /// A command that sees the disk. It starts in the root folder.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount"]);
        if self.own_user {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program);
        command
    }

    /// The disk's folder, as the test itself sees it.
    pub fn path(&self) -> PathBuf {
        let below_root = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(below_root)
    }

    /// Fills the disk up with a file, but for so many bytes: whole pages, so at most 4 KiB less than that.
    pub fn fill(&self, bytes_left: u64) -> Result<()> {
        let mut ballast = File::create(self.ballast()).context("make the ballast")?;
        let mut written = 0;
        loop {
            match ballast.write_all(&[7; PAGE]) {
                Ok(()) => written += PAGE as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("write the ballast"),
            }
        }
        let page = PAGE as u64;
        ballast.set_len(written.saturating_sub(bytes_left / page * page)).context("shorten the ballast")
    }

    /// Makes the room again that [`fill`](Self::fill) took.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("remove the ballast")
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.leash.take());
        self.holder.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_full_and_has_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(dir.path(), 1 << 20).unwrap();
        let write = |bytes: usize| {
            let file = dir.path().join("file");
            let script = format!("head -c {bytes} /dev/zero > {}", file.display());
            disk.command("sh").args(["-c", &script]).output().unwrap().status.success()
        };
        assert!(write(100_000));
        disk.fill(8192).unwrap();
        assert!(!write(200_000));
        disk.free().unwrap();
        assert!(write(200_000));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "only its own commands see it");
    }
}
