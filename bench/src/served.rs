//! A project with the tables of TPC-H, served by the program, and a client that asks it over HTTP.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::measure;

/// The user that the workloads ask as, and its password.
pub(crate) const USER: &str = "bench";
pub(crate) const PASSWORD: &str = "correct horse battery";

/// `headworks up` in a project; ends with this.
pub(crate) struct Served {
    process: Child,
    root: PathBuf,
    pub(crate) http_port: u16,
    pub(crate) postgres_port: u16,
    pub(crate) token: String,
}

impl Served {
    /// Makes a user with a token and starts the server. `settings` are those of `--set`.
    pub(crate) fn start(root: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        let (http_port, postgres_port) = (free_port()?, free_port()?);
        // The user may be there from another run.
        let mut create = command(root, &["users", "create", USER, "--role", "admin", "--password-stdin"])?;
        let mut child = create.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::io::Write::write_all(&mut child.stdin.take().context("no stdin")?, PASSWORD.as_bytes())?;
        child.wait()?;
        let token = command(root, &["tokens", "create", "--user", USER, "--name", "bench"])?.output()?;
        ensure!(token.status.success(), "no token: {}", String::from_utf8_lossy(&token.stderr));
        let token = String::from_utf8(token.stdout)?.trim().to_owned();
        let mut up = command(root, &["up", "--listen", &format!("127.0.0.1:{http_port}")])?;
        up.args(["--set", &format!("server.postgres_listen=127.0.0.1:{postgres_port}")]);
        for setting in settings {
            up.args(["--set", setting]);
        }
        let log = root.join("up.log");
        let process = up.stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        let mut served = Self { process, root: root.to_owned(), http_port, postgres_port, token };
        measure::wait_until("the server answers", || {
            if let Some(status) = served.process.try_wait()? {
                bail!("the server ended with {status}: {}", std::fs::read_to_string(&log)?);
            }
            Ok(std::net::TcpStream::connect(("127.0.0.1", http_port)).ok())
        })?;
        Ok(served)
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// CPU time of the server until now.
    pub(crate) fn cpu(&self) -> Duration {
        measure::cpu_of(self.process())
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.http_port), self.token.clone())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        std::fs::remove_file(self.root.join("up.log")).ok();
    }
}

fn command(root: &Path, args: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(measure::headworks()?);
    command.arg("--project").arg(root).args(args);
    Ok(command)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Asks over HTTP and keeps its connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: String,
    token: String,
}

impl Client {
    pub(crate) fn new(address: String, token: String) -> Self {
        Self { http: reqwest::Client::new(), address, token }
    }

    /// Submits a query and waits until it is done. Returns the time that took. Errors: it fails.
    pub(crate) async fn ask(&self, sql: &str, queue: Option<&str>, is_cached: bool) -> anyhow::Result<Duration> {
        let body = json!({"sql": sql, "queue": queue, "wait_ms": 60_000, "use_cache": is_cached}).to_string();
        let begun = Instant::now();
        let request = self.http.post(format!("{}/api/v1/queries", self.address)).bearer_auth(&self.token);
        let mut answer = request.header("content-type", "application/json").body(body).send().await?;
        let mut text = answer.text().await?;
        loop {
            let body: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            match body["state"].as_str() {
                Some("done") => return Ok(begun.elapsed()),
                Some("waiting" | "planning" | "running") => {}
                _ => bail!("{sql}: {text}"),
            }
            let id = body["id"].as_str().context("no id")?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let address = format!("{}/api/v1/queries/{id}", self.address);
            answer = self.http.get(address).bearer_auth(&self.token).send().await?;
            text = answer.text().await?;
        }
    }

    /// The time that `/healthz` takes.
    pub(crate) async fn health(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let answer = self.http.get(format!("{}/healthz", self.address)).send().await?;
        ensure!(answer.status().is_success(), "/healthz says {}", answer.status());
        Ok(begun.elapsed())
    }
}
