//! A few connections to one server, kept for the next reader.
//!
//! sqlx has a pool too, but it takes a refused connection for a server that is starting and tries on until its timeout; here
//! that is an answer, and retries are the orchestrator's.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// How long a connection may lie unused; firewalls forget them sooner or later.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// How long a connection is taken to be alive after its last use; later a round trip makes sure.
const FRESH_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Pool {
    options: PgConnectOptions,
    slots: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<(Instant, PgConnection)>>>,
    timeout: Duration,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("free", &self.slots.available_permits()).finish_non_exhaustive()
    }
}

/// A connection that is lent out. Unless it is released, it is closed: what it was doing need not have ended.
pub(crate) struct Lease {
    connection: PgConnection,
    idle: Arc<Mutex<Vec<(Instant, PgConnection)>>>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(options: PgConnectOptions, connections_max: u32, timeout: Duration) -> Self {
        let slots = Arc::new(Semaphore::new(connections_max.max(1) as usize));
        Self { options, slots, idle: Arc::default(), timeout }
    }

    /// Waits for a free slot and gives a connection, a kept one if there is any. Errors: `PoolTimedOut`, and those of connecting.
    pub(crate) async fn acquire(&self) -> Result<Lease, sqlx::Error> {
        let permit = self.permit().await?;
        self.connect(permit).await
    }

    /// Gives a connection if a slot is free now. None also when the server has no more of them.
    pub(crate) async fn try_acquire(&self) -> Option<Lease> {
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        self.connect(permit).await.ok()
    }

    async fn connect(&self, permit: OwnedSemaphorePermit) -> Result<Lease, sqlx::Error> {
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|(since, _)| since.elapsed() < IDLE_MAX);
            idle.pop()
        };
        if let Some((since, mut connection)) = kept
            && (since.elapsed() < FRESH_MAX || matches!(timeout(self.timeout, connection.ping()).await, Ok(Ok(()))))
        {
            return Ok(Lease { connection, idle: self.idle.clone(), _permit: permit });
        }
        let connecting = PgConnection::connect_with(&self.options);
        let connection = timeout(self.timeout, connecting).await.map_err(|_| {
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the server does not answer"))
        })??;
        Ok(Lease { connection, idle: self.idle.clone(), _permit: permit })
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, sqlx::Error> {
        match timeout(self.timeout, self.slots.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(sqlx::Error::PoolClosed),
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }
}

impl Lease {
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Gives the connection back; nothing may be under way on it.
    pub(crate) fn release(self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), self.connection));
    }
}
