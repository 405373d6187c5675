//! A server process that ends with its test, whatever ends the test.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Runs the server and waits on its own standard input, whose other end the test holds. When that closes, because the value
/// was dropped or the test process died in any way (statics are never dropped), it ends the server and removes its folder.
/// `keep` as a last word leaves the folder for the next start.
const WATCHER: &str = r#"
trap '' INT TERM HUP
dir=$1 signal=$2
shift 2
(
    sh -c 'echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"' "$dir/pid" "$@" >>"$dir/log" 2>&1 </dev/null
    echo $? >"$dir/ended"
) >/dev/null 2>&1 &
read -r word
# A server that has just been started may not listen to signals yet, so each is said again; after 10 s there is only KILL.
tries=0
while [ ! -e "$dir/ended" ]; do
    [ "$tries" -lt 200 ] || signal=KILL
    [ ! -e "$dir/pid" ] || kill -s "$signal" "$(cat "$dir/pid")" 2>/dev/null
    tries=$((tries + 1))
    sleep 0.05
done
wait
[ "$word" = keep ] || rm -rf "$dir"
"#;

/// How long a server may take to start or to end: far more than it needs, since a test machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server with a folder of its own (`log`, and what the server keeps there).
#[derive(Debug)]
pub(crate) struct Server {
    dir: PathBuf,
    watcher: Child,
    leash: Option<ChildStdin>,
}

impl Server {
    /// Starts a program; `signal` ends it when the test does.
    pub(crate) fn start(dir: &Path, signal: &str, argv: &[OsString]) -> Result<Self> {
        for file in ["pid", "ended"] {
            fs::remove_file(dir.join(file)).or_else(absent_is_fine)?;
        }
        let mut watcher = Command::new("sh")
            .args(["-c", WATCHER, "watcher"])
            .arg(dir)
            .arg(signal)
            .args(argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start `sh`")?;
        let leash = watcher.stdin.take();
        Ok(Self { dir: dir.to_owned(), watcher, leash })
    }

    /// Waits until `is_ready` answers something; fails with the end of the log when the server ends first.
    pub(crate) fn wait_ready<T>(&self, mut is_ready: impl FnMut() -> Option<T>) -> Result<T> {
        let mut ready = None;
        let waited = wait_until(|| {
            ready = is_ready();
            ready.is_some() || self.dir.join("ended").exists()
        });
        match (ready, waited) {
            (Some(ready), _) => Ok(ready),
            (None, true) => bail!("the server ended at once; its log ends with:\n{}", self.log_end()),
            (None, false) => {
                bail!("the server is not ready after {PATIENCE:?}; its log ends with:\n{}", self.log_end())
            }
        }
    }

    /// Ends the server with a signal, waits until it has gone, and keeps its folder.
    pub(crate) fn end(self, signal: &str) -> Result<()> {
        let pid = self.pid().context("the server has no pid")?;
        send(signal, &pid)?;
        if !wait_until(|| self.dir.join("ended").exists()) {
            bail!("the server did not end after signal {signal}");
        }
        self.let_go()
    }

    /// Lets go of a server that ended by itself, and keeps its folder.
    pub(crate) fn let_go(mut self) -> Result<()> {
        if let Some(mut leash) = self.leash.take() {
            leash.write_all(b"keep\n").context("tell the watcher to keep the folder")?;
        }
        self.watcher.wait().context("wait for the watcher")?;
        Ok(())
    }

    /// The server's process id, once it has one.
    pub(crate) fn pid(&self) -> Option<String> {
        Some(fs::read_to_string(self.dir.join("pid")).ok()?.trim().to_owned())
    }

    /// What the server has printed.
    pub(crate) fn log(&self) -> String {
        fs::read(self.dir.join("log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.leash.take());
        self.watcher.wait().ok();
    }
}

/// A port that nobody listened on a moment ago. Another process may take it first: whoever uses it tries again.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?.port())
}

/// Sends a signal by name, as `KILL`.
pub(crate) fn send(signal: &str, pid: &str) -> Result<()> {
    let done = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", signal, pid]).output().context("start `sh`")?;
    if !done.status.success() {
        bail!("signal {signal} to process {pid}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

/// Looks every few milliseconds until `done` holds; false when it never did.
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
        #[allow(clippy::disallowed_methods, reason = "a foreign process tells nobody when it is ready")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn absent_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
