use std::{
    ffi::OsString,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    postgres::{OWNER, TempPostgres, User, unprivileged_user},
    server::{Server, free_port},
    tools::is_program,
};

/// So many connections to the server all clients of a database share: few, so that each client meets all of them.
const POOL_SIZE: u32 = 4;

/// PgBouncer before a [`TempPostgres`], in transaction mode and with Debian's settings otherwise; ended with the value.
///
/// Each transaction gets the server's connection that was idle longest, so that whatever a client leaves on one is missed by it
/// and found by another.
#[derive(Debug)]
pub struct PgBouncer {
    // Held for its drop.
    _server: Server,
    port: u16,
}

impl PgBouncer {
    /// Starts one before a server.
    pub fn before(postgres: &TempPostgres) -> Result<Self> {
        let program = program()?;
        let user = unprivileged_user()?;
        let dir =
            tempfile::Builder::new().prefix("headworks-pgbouncer-").tempdir().context("make a temporary folder")?;
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let dir = dir.keep();
        let started = start(&program, &dir, user.as_ref(), postgres.port());
        let (server, port) = started.inspect_err(|_| {
            fs::remove_dir_all(&dir).ok();
        })?;
        Ok(Self { _server: server, port })
    }

    /// The one of this test process, before [`TempPostgres::shared`].
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<PgBouncer, String>> = OnceLock::new();
        SHARED
            .get_or_init(|| TempPostgres::shared().and_then(Self::before).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The way through it to a database of the server.
    pub fn url_of(&self, postgres: &TempPostgres, url: &str) -> String {
        url.replace(&format!(":{}/", postgres.port()), &format!(":{}/", self.port))
    }
}

/// Starts it on a free port: twice more if somebody took that meanwhile.
fn start(program: &Path, dir: &Path, user: Option<&User>, target: u16) -> Result<(Server, u16)> {
    fs::write(dir.join("users"), format!("\"{OWNER}\" \"\"\n"))?;
    for last in (0..3).rev() {
        let port = free_port()?;
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = {POOL_SIZE}\nserver_round_robin = 1\nserver_login_retry = 1\n",
            dir.join("users").display()
        );
        fs::write(dir.join("pgbouncer.ini"), settings)?;
        let mut argv: Vec<OsString> = User::command(user);
        argv.extend([program.into(), dir.join("pgbouncer.ini").into()]);
        let server = Server::start(dir, "KILL", &argv)?;
        match server.wait_ready(|| TcpStream::connect(("127.0.0.1", port)).ok()) {
            Ok(_) => return Ok((server, port)),
            Err(error) if last == 0 => return Err(error.context("start PgBouncer")),
            Err(_) => server.let_go()?,
        }
    }
    bail!("no port could be had for PgBouncer")
}

/// Debian keeps it out of an ordinary user's `PATH`.
fn program() -> Result<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&on_path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join("pgbouncer"))
        .find(|path| is_program(path))
        .context("`pgbouncer` is missing\nhint: run `make setup`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_does_not_outlive_its_transaction_and_some_are_refused() {
        let postgres = TempPostgres::shared().unwrap();
        let bouncer = PgBouncer::shared().unwrap();
        let url = bouncer.url_of(postgres, &postgres.create_database().unwrap());
        let mark = "begin;\nset local lock_timeout = '7s';\nshow lock_timeout;\ncommit;\nshow lock_timeout;\n";
        assert_eq!(postgres.psql_script(&url, mark).unwrap(), "7s\n0");
        let refused = postgres.psql_script(&format!("{url}?options=-c%20lock_timeout%3D7s"), "select 1").unwrap_err();
        assert!(refused.to_string().contains("unsupported startup parameter"), "{refused}");
    }
}
