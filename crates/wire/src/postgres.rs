//! The PostgreSQL protocol: version 3.0, read only.
//!
//! ```text
//! TcpListener -> startup (TLS, SCRAM) -> session (statements, portals) -> Engine -> value (rows as bytes)
//! ```
//!
//! Each connection is a task. Rows go out as the client takes them, so that a slow one holds its query back; a client that
//! goes away, cancels or waits too long ends it. [`Service`] is the server, [`Accounts`] knows who may sign in.

mod accounts;
mod copy;
mod error;
mod frame;
mod lexer;
mod link;
mod parameter;
mod portal;
mod scram;
mod session;
mod settings;
mod startup;
mod statement;
mod tls;
mod value;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use headworks_engine::{Engine, SqlLimits};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

pub use accounts::Accounts;
pub use scram::{NotAVerifier, ScramVerifier};
pub use tls::{Tls, TlsError};

use error::{PgError, state};
use link::End;
use startup::{Opened, SignedIn};

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Clients that are signed in at once.
    pub connections_max: usize,
    /// Of them those of one user.
    pub connections_per_user_max: usize,
    /// How long a client may take from its first byte to its password.
    pub sign_in_timeout: Duration,
    /// How long a client may be silent between two statements; `None` for ever.
    pub idle_timeout: Option<Duration>,
    /// How long a client may leave rows untouched that are sent to it.
    pub write_timeout: Duration,
    /// How often the network is asked whether a silent client is there still.
    pub keepalive: Duration,
    /// The most bytes of one message: a text, or the values bound to a statement.
    pub message_bytes_max: usize,
    /// Prepared statements of one client.
    pub statements_max: usize,
    /// Portals and cursors of one client.
    pub portals_max: usize,
    /// Limits of texts.
    pub limits: SqlLimits,
    /// The certificate; without one connections are not encrypted.
    pub tls: Option<Tls>,
    /// True when a client must encrypt.
    pub tls_required: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: 500,
            connections_per_user_max: 100,
            sign_in_timeout: Duration::from_secs(30),
            idle_timeout: None,
            write_timeout: Duration::from_secs(600),
            keepalive: Duration::from_secs(60),
            message_bytes_max: 16 << 20,
            statements_max: 1_000,
            portals_max: 100,
            limits: SqlLimits::default(),
            tls: None,
            tls_required: false,
        }
    }
}

/// A server that waits to be run.
pub struct Service {
    shared: Arc<Shared>,
}

/// Looks at a server that runs. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    accounts: Arc<dyn Accounts>,
    options: Options,
    sessions: Mutex<Sessions>,
    refused: AtomicU64,
    closing: watch::Sender<bool>,
}

#[derive(Default)]
struct Sessions {
    by_pid: HashMap<i32, Peer>,
    by_user: HashMap<String, usize>,
}

/// What others may do to a session.
struct Peer {
    secret: [u8; 4],
    cancel: watch::Sender<u64>,
}

/// Clients beyond those that may be signed in: they get a reason, or cancel something.
const AT_THE_DOOR_MAX: usize = 100;

/// How long clients may take to hear that the server stops.
const CLOSING_MAX: Duration = Duration::from_secs(5);

impl Service {
    /// Makes a server over an engine.
    pub fn new(engine: Engine, accounts: Arc<dyn Accounts>, options: Options) -> Self {
        let (sessions, refused, closing) = (Mutex::default(), AtomicU64::new(0), watch::Sender::new(false));
        Self { shared: Arc::new(Shared { engine, accounts, options, sessions, refused, closing }) }
    }

    /// Something to look at it with while it runs.
    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// Serves clients until `shutdown` resolves. Statements that run then are stopped, and all clients are told. Errors: the
    /// listener fails.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        let limit = self.shared.options.connections_max + AT_THE_DOOR_MAX;
        let ended = loop {
            tokio::select! {
                () = &mut shutdown => break Ok(()),
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                accepted = listener.accept() => match accepted {
                    Ok((tcp, from)) if tasks.len() < limit => {
                        tasks.spawn(serve(Arc::clone(&self.shared), tcp, from));
                    }
                    Ok(_) => _ = self.shared.refused.fetch_add(1, Ordering::Relaxed),
                    // One client's trouble, or too many files for a moment.
                    Err(error) if is_passing(&error) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(error) => break Err(error),
                },
            }
        };
        drop(listener);
        self.shared.closing.send_replace(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSING_MAX, all).await.is_err() {
            tasks.shutdown().await;
        }
        ended
    }
}

fn is_passing(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    ) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

impl Handle {
    /// Clients that are signed in.
    pub fn connections(&self) -> usize {
        self.shared.sessions().by_pid.len()
    }

    /// Clients that were turned away since the start because there were too many.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

/// A session's entry among all; taken out when dropped.
struct Seat {
    shared: Arc<Shared>,
    user: String,
    pid: i32,
    secret: [u8; 4],
    cancel: watch::Receiver<u64>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sessions = self.shared.sessions();
        sessions.by_pid.remove(&self.pid);
        if let Some(count) = sessions.by_user.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                sessions.by_user.remove(&self.user);
            }
        }
    }
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Nothing that holds the lock can leave half a change behind.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client in. Errors: there are too many, in all or of this user.
    fn seat(self: &Arc<Self>, user: &str) -> Result<Seat, PgError> {
        let mut sessions = self.sessions();
        let of_user = sessions.by_user.get(user).copied().unwrap_or(0);
        let (what, limit) = if sessions.by_pid.len() >= self.options.connections_max {
            ("too many clients are connected", self.options.connections_max)
        } else if of_user >= self.options.connections_per_user_max {
            ("too many clients of this user are connected", self.options.connections_per_user_max)
        } else {
            let random = SystemRandom::new();
            let bytes = || {
                let mut bytes = [0; 4];
                let filled = random.fill(&mut bytes).map(|()| bytes);
                filled.map_err(|_| PgError::new(state::INTERNAL, "there is no randomness"))
            };
            let mut pid = 0;
            while pid == 0 || sessions.by_pid.contains_key(&pid) {
                pid = i32::from_be_bytes(bytes()?) & i32::MAX;
            }
            let secret = bytes()?;
            let (sender, cancel) = watch::channel(0);
            sessions.by_pid.insert(pid, Peer { secret, cancel: sender });
            sessions.by_user.insert(user.to_owned(), of_user + 1);
            return Ok(Seat { shared: Arc::clone(self), user: user.to_owned(), pid, secret, cancel });
        };
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(PgError::new(state::TOO_MANY_CONNECTIONS, format!("{what}, the limit is {limit}"))
            .with_hint("close connections that are not used, or use a pool of them"))
    }

    /// Stops what a session is at, when the secret is the one it was given.
    fn cancel(&self, pid: i32, secret: &Bytes) {
        if let Some(peer) = self.sessions().by_pid.get(&pid)
            && scram::same(&peer.secret, secret)
        {
            peer.cancel.send_modify(|asked| *asked += 1);
        }
    }
}

/// One connection from its first byte to its last.
async fn serve(shared: Arc<Shared>, tcp: TcpStream, from: SocketAddr) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(shared.options.keepalive)
        .with_interval(shared.options.keepalive.min(Duration::from_secs(10)));
    // Only a comfort: without them a connection works all the same.
    let _ = socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    let _ = tcp.set_nodelay(true);
    let mut closing = shared.closing.subscribe();
    let opened = tokio::select! {
        _ = closing.wait_for(|closing| *closing) => return,
        opened = tokio::time::timeout(shared.options.sign_in_timeout, startup::open(&shared, tcp, from)) => opened,
    };
    let signed_in = match opened {
        // Without a word, as PostgreSQL does: a half-done sign-in has no place for one.
        Err(_) => return,
        Ok(Ok(Opened::Cancel { pid, secret })) => return shared.cancel(pid, &secret),
        Ok(Ok(Opened::Session(signed_in))) => signed_in,
        Ok(Err((Some(link), end))) => return link.close(end).await,
        Ok(Err((None, _))) => return,
    };
    let SignedIn { link, account, login, caller, settings } = *signed_in;
    let seat = match shared.seat(&caller.user) {
        Ok(seat) => seat,
        Err(error) => return link.close(End::Said(error)).await,
    };
    tracing::debug!(user = caller.user, %from, "client signed in");
    session::Session::new(&shared, seat, link, (account, login, caller), settings, closing).run().await;
}
