use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};

use crate::{
    server::{Server, free_port},
    tools::{is_root, postgres_bin, workspace_root},
};

/// The owner of every database; it needs no password.
pub(crate) const OWNER: &str = "headworks";

/// How a temporary PostgreSQL is set up.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// Waits for the disk on commit. Off by default: a test that cuts no power gains nothing from it. A killed server keeps
    /// what it has committed either way.
    pub fsync: bool,
    /// More server settings, as `("wal_level", "logical")`.
    pub settings: Vec<(String, String)>,
}

/// A PostgreSQL server on a free loopback port, with its data in a temporary folder; ended and removed with the value, or
/// with the test process.
///
/// Under root the server runs as an unprivileged user, since PostgreSQL refuses to run as root.
#[derive(Debug)]
pub struct TempPostgres {
    bin: PathBuf,
    dir: PathBuf,
    options: PostgresOptions,
    user: Option<User>,
    port: u16,
    server: Option<Server>,
    databases: AtomicU32,
}

impl TempPostgres {
    /// Starts a server with default options. About a second.
    pub fn start() -> Result<Self> {
        Self::start_with(PostgresOptions::default())
    }

    /// Starts a server.
    pub fn start_with(options: PostgresOptions) -> Result<Self> {
        let bin = postgres_bin()?;
        let user = unprivileged_user()?;
        let dir = tempfile::Builder::new().prefix("headworks-pg-").tempdir().context("make a temporary folder")?.keep();
        let mut postgres = Self { bin, dir, options, user, port: 0, server: None, databases: AtomicU32::new(0) };
        postgres.initialise().and_then(|()| postgres.launch()).inspect_err(|_| {
            fs::remove_dir_all(&postgres.dir).ok();
        })?;
        Ok(postgres)
    }

    /// The one server of this test process, started by whoever asks first. It must not be stopped.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<TempPostgres, String>> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::start().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Makes a fresh, empty database and returns its URL.
    pub fn create_database(&self) -> Result<String> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("create database {name}"))?;
        Ok(self.url_of(&name))
    }

    /// The URL of the database `postgres`.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The port on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// One of PostgreSQL's own programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Runs SQL through psql and returns its bare output: one line per row, columns parted by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        self.psql_script(&self.url_of(database), sql)
    }

    /// The same at any URL, one statement after the other, each in a transaction of its own unless the script says otherwise.
    pub fn psql_script(&self, url: &str, script: &str) -> Result<String> {
        let mut child = Command::new(self.program("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start `psql`")?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that could not connect reads nothing, and says why.
            stdin.write_all(script.as_bytes()).ok();
        }
        let done = child.wait_with_output().context("wait for `psql`")?;
        if !done.status.success() {
            bail!("psql failed: {}", String::from_utf8_lossy(&done.stderr).trim_end());
        }
        Ok(String::from_utf8(done.stdout).context("psql printed something that is not UTF-8")?.trim_end().to_owned())
    }

    /// The transactions a second that pgbench makes of a database of its own, with so many clients: each updates a row, looks at
    /// it and writes another (`simple-update`).
    pub fn pgbench(&self, clients: usize, secs: u32) -> Result<f64> {
        let url = self.create_database()?;
        let run = |args: &[&str]| -> Result<String> {
            let done =
                Command::new(self.program("pgbench")).args(args).arg(&url).output().context("start `pgbench`")?;
            if !done.status.success() {
                bail!("pgbench failed: {}", String::from_utf8_lossy(&done.stderr).trim_end());
            }
            Ok(String::from_utf8_lossy(&done.stdout).into_owned())
        };
        run(&["-i", "-q", "-s", "10"])?;
        let said = run(&["-N", "-n", "-M", "prepared", "-c", &clients.to_string(), "-T", &secs.to_string()])?;
        let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.with_context(|| format!("pgbench told no rate:\n{said}"))
    }

    /// Ends the server in good order; clients are cut off. PostgreSQL calls it a fast shutdown.
    pub fn stop(&mut self) -> Result<()> {
        self.end("INT")
    }

    /// Ends the server at once, without order: the next start recovers as after a crash. PostgreSQL calls it an immediate
    /// shutdown.
    pub fn stop_at_once(&mut self) -> Result<()> {
        self.end("QUIT")
    }

    /// Ends the server as a crash would. Sessions end a moment later.
    pub fn kill(&mut self) -> Result<()> {
        self.end("KILL")
    }

    /// Starts a server that was stopped or killed, or stops and starts a running one; same port, same data.
    pub fn restart(&mut self) -> Result<()> {
        if self.server.is_some() {
            self.stop()?;
        }
        self.launch()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Server::log).unwrap_or_default()
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{OWNER}@127.0.0.1:{}/{database}", self.port)
    }

    fn end(&mut self, signal: &str) -> Result<()> {
        self.server.take().context("the server does not run")?.end(signal)
    }

    /// Makes the data folder: as a copy of the one that the first test of this machine made, which halves the start.
    fn initialise(&self) -> Result<()> {
        let data = self.data();
        if self.user.is_some() {
            fs::set_permissions(&self.dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let first = self.first_data()?;
        if first.is_dir() && copy(&first, &data).is_ok() {
            return Ok(());
        }
        fs::remove_dir_all(&data).ok();
        fs::create_dir(&data).context("make the data folder")?;
        if let Some(user) = &self.user {
            chown(&data, Some(user.uid), Some(user.gid)).context("give the data folder away")?;
        }
        let argv = self.as_user(&[
            self.program("initdb").into(),
            "-D".into(),
            data.clone().into(),
            "-U".into(),
            OWNER.into(),
            "--auth=trust".into(),
            "--encoding=UTF8".into(),
            "--locale=C".into(),
            "--no-sync".into(),
        ]);
        let done = Command::new(&argv[0]).args(&argv[1..]).current_dir("/").output().context("start `initdb`")?;
        if !done.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&done.stderr));
        }
        // Whoever renames first wins; a copy that can't be kept is none.
        let mine = first.with_extension(std::process::id().to_string());
        if copy(&data, &mine).and_then(|()| Ok(fs::rename(&mine, &first)?)).is_err() {
            fs::remove_dir_all(&mine).ok();
        }
        Ok(())
    }

    /// Where the first data folder of this server version and user is kept.
    fn first_data(&self) -> Result<PathBuf> {
        let kept = workspace_root().join("target/testkit");
        fs::create_dir_all(&kept).context("make `target/testkit`")?;
        let version = self.bin.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let user = self.user.as_ref().map_or(0, |user| user.uid);
        Ok(kept.join(format!("postgres{version}_{user}")))
    }

    /// Starts the server on its port, or on the first start on a free one: twice more if somebody took it meanwhile.
    fn launch(&mut self) -> Result<()> {
        let tries = if self.port == 0 { 3 } else { 1 };
        for last in (0..tries).rev() {
            let port = if self.port == 0 { free_port()? } else { self.port };
            match self.launch_on(port) {
                Ok(server) => {
                    self.port = port;
                    self.server = Some(server);
                    return Ok(());
                }
                Err(error) if last == 0 || !format!("{error:#}").contains("Address already in use") => {
                    return Err(error.context("start PostgreSQL"));
                }
                Err(_) => {}
            }
        }
        bail!("no port could be had for PostgreSQL")
    }

    fn launch_on(&self, port: u16) -> Result<Server> {
        let on_off = if self.options.fsync { "on" } else { "off" };
        let mut settings = vec![
            ("listen_addresses".to_owned(), "127.0.0.1".to_owned()),
            ("port".to_owned(), port.to_string()),
            ("unix_socket_directories".to_owned(), self.data().display().to_string()),
            ("fsync".to_owned(), on_off.to_owned()),
            ("full_page_writes".to_owned(), on_off.to_owned()),
            ("shared_buffers".to_owned(), "32MB".to_owned()),
            // Kept in the data folder, so that a killed server leaves nothing in /dev/shm.
            ("dynamic_shared_memory_type".to_owned(), "mmap".to_owned()),
            ("timezone".to_owned(), "UTC".to_owned()),
        ];
        settings.extend(self.options.settings.iter().cloned());
        let mut argv: Vec<OsString> = vec![self.program("postgres").into(), "-D".into(), self.data().into()];
        for (name, value) in settings {
            argv.push("-c".into());
            argv.push(format!("{name}={value}").into());
        }
        // A killed server's sessions hold its shared memory until they notice; the next start waits for them.
        for _ in 0..100 {
            fs::remove_file(self.dir.join("log")).ok();
            let server = Server::start(&self.dir, "QUIT", &self.as_user(&argv))?;
            let status = self.data().join("postmaster.pid");
            // The file's first line is the server's pid, which tells it from one that a killed server left.
            let ready = server.wait_ready(|| {
                let status = fs::read_to_string(&status).ok()?;
                let lines: Vec<&str> = status.lines().map(str::trim_end).collect();
                (lines.first().copied() == server.pid().as_deref() && lines.get(7) == Some(&"ready")).then_some(())
            });
            match ready {
                Err(error) if format!("{error:#}").contains("shared memory block") => server.let_go()?,
                Err(error) => {
                    server.let_go()?;
                    return Err(error);
                }
                Ok(()) => return Ok(server),
            }
        }
        bail!("the killed server's sessions do not end")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The command, run as the unprivileged user if we are root.
    fn as_user(&self, argv: &[OsString]) -> Vec<OsString> {
        let mut full = User::command(self.user.as_ref());
        full.extend_from_slice(argv);
        full
    }
}

impl Drop for TempPostgres {
    fn drop(&mut self) {
        self.server.take();
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// Copies a folder with owners and modes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-a").args([from, to]).output().context("start `cp`")?;
    if !done.status.success() {
        bail!("cp failed: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

/// Whom servers run as that refuse to run as root.
#[derive(Debug)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// What comes before a command that this user is to run.
    pub(crate) fn command(user: Option<&Self>) -> Vec<OsString> {
        let Some(user) = user else { return Vec::new() };
        let ids = [format!("--reuid={}", user.uid), format!("--regid={}", user.gid)];
        ["setpriv".to_owned()].into_iter().chain(ids).chain(["--clear-groups".to_owned()]).map(OsString::from).collect()
    }
}

/// Whom such a server runs as: nobody special unless we are root, else the user `postgres` or `nobody`.
pub(crate) fn unprivileged_user() -> Result<Option<User>> {
    if !is_root()? {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").context("read `/etc/passwd`")?;
    let find = |name: &str| {
        let fields: Vec<&str> = users.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f[0] == name)?;
        Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
    };
    if !Path::new("/usr/bin/setpriv").exists() && !Path::new("/bin/setpriv").exists() {
        bail!("`setpriv` is missing, and PostgreSQL does not run as root\nhint: run `make setup`");
    }
    find("postgres").or_else(|| find("nobody")).map(Some).context("there is neither a user `postgres` nor `nobody`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_fresh_and_survive_a_crash_and_a_restart() {
        let options = PostgresOptions { settings: vec![("wal_level".into(), "logical".into())], ..Default::default() };
        let mut postgres = TempPostgres::start_with(options).unwrap();
        let (one, two) = (postgres.create_database().unwrap(), postgres.create_database().unwrap());
        assert_ne!(one, two);
        postgres.psql("test_0", "create table t (a int); insert into t values (7)").unwrap();
        assert!(postgres.psql("test_1", "select a from t").is_err());
        assert_eq!(postgres.psql("test_1", "show wal_level").unwrap(), "logical");

        postgres.kill().unwrap();
        assert!(postgres.psql("test_0", "select a from t").is_err());
        postgres.restart().unwrap();
        assert_eq!(postgres.psql("test_0", "select a from t").unwrap(), "7");
        postgres.restart().unwrap();
        assert_eq!(postgres.psql("test_0", "select a from t").unwrap(), "7");

        let dir = postgres.dir.clone();
        drop(postgres);
        assert!(!dir.exists());
    }

    #[test]
    fn the_shared_server_is_one() {
        let one = TempPostgres::shared().unwrap();
        assert_eq!(one.port(), TempPostgres::shared().unwrap().port());
        assert_ne!(one.create_database().unwrap(), one.create_database().unwrap());
    }
}
