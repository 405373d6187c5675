use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::postgres::PgListener;
use tokio::sync::watch;

use crate::{
    Dialect, Result, StoreOptions, Value,
    connection::{self, Connection},
};

/// The channel on which PostgreSQL tells of commits, and the statement that makes it do so.
const CHANNEL: &str = "headworks";
pub(crate) const NOTIFY: &str = "notify headworks";

/// How often another process's commits are looked for.
const SQLITE_POLL: Duration = Duration::from_millis(100);
const POSTGRES_POLL: Duration = Duration::from_millis(500);

/// Counts commits as they are noticed.
#[derive(Clone)]
pub(crate) struct Watch {
    count: Arc<watch::Sender<u64>>,
    polling: Arc<AtomicBool>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { count: Arc::new(watch::Sender::new(0)), polling: Arc::new(AtomicBool::new(false)) }
    }
}

impl Watch {
    pub(crate) fn bump(&self) {
        self.count.send_modify(|n| *n += 1);
    }

    /// Starts to look for others' commits with the first subscriber and stops after the last.
    pub(crate) fn subscribe(&self, options: &StoreOptions) -> Changes {
        let changes = Changes(self.count.subscribe());
        if !self.polling.swap(true, Ordering::AcqRel) {
            tokio::spawn(poll(self.clone(), options.clone()));
        }
        changes
    }
}

/// Tells of commits; several that came since the last look count as one.
pub struct Changes(watch::Receiver<u64>);

impl Changes {
    /// Waits for the next commit. Resolves at once when there was one since the last call.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The store is gone, and with it every change.
            std::future::pending::<()>().await;
        }
    }
}

async fn poll(watch: Watch, options: StoreOptions) {
    let Ok(dialect) = options.dialect() else { return };
    let every = match dialect {
        Dialect::Sqlite => SQLITE_POLL,
        Dialect::Postgres => POSTGRES_POLL,
    };
    let mut eye = None;
    let mut seen: Option<Value> = None;
    loop {
        let told = match &mut eye {
            Some(eye) => tokio::time::timeout(every, Eye::told(eye)).await.unwrap_or(false),
            None => {
                tokio::time::sleep(every).await;
                false
            }
        };
        if watch.count.receiver_count() == 0 {
            watch.polling.store(false, Ordering::Release);
            // Somebody may have subscribed between the look and the store.
            if watch.count.receiver_count() == 0 || watch.polling.swap(true, Ordering::AcqRel) {
                break;
            }
        }
        if told {
            watch.bump();
            continue;
        }
        if eye.is_none() {
            eye = Eye::open(&options).await.ok();
        }
        let Some(open) = &mut eye else { continue };
        match open.look().await {
            Ok(now) => {
                if seen.is_some() && now != seen {
                    watch.bump();
                }
                seen = now;
            }
            Err(_) => eye = None,
        }
    }
    if let Some(open) = eye {
        open.close().await;
    }
}

/// The connection that watches.
enum Eye {
    /// Only looks.
    Looks(Connection),
    /// Is told of commits, too.
    Listens(Box<PgListener>),
}

impl Eye {
    async fn open(options: &StoreOptions) -> Result<Self> {
        let open = Connection::open(options).await?;
        if !matches!(open, Connection::Postgres(_)) {
            return Ok(Self::Looks(open));
        }
        open.close().await;
        Ok(Self::Listens(Box::new(connection::listener(options, CHANNEL).await?)))
    }

    /// Waits until the database tells of a commit; SQLite and poolers never do. False when the connection was lost.
    async fn told(&mut self) -> bool {
        match self {
            Self::Looks(_) => std::future::pending().await,
            Self::Listens(listener) => {
                let told = listener.try_recv().await;
                while listener.next_buffered().is_some() {}
                matches!(told, Ok(Some(_)))
            }
        }
    }

    /// A value that is another one after each commit.
    async fn look(&mut self) -> Result<Option<Value>> {
        const WRITTEN: &str = "select pg_current_wal_insert_lsn()::text";
        let row = match self {
            Self::Looks(sqlite @ Connection::Sqlite(_)) => sqlite.rows("pragma data_version", &[]).await?,
            Self::Looks(pooled) => {
                pooled.begin("begin").await?;
                let row = pooled.rows(WRITTEN, &[]).await?;
                pooled.execute("commit", &[]).await?;
                row
            }
            Self::Listens(listener) => connection::listener_rows(listener, WRITTEN).await?,
        };
        Ok(row.first().map(|row| row.value(0).clone()))
    }

    async fn close(self) {
        if let Self::Looks(open) = self {
            open.close().await;
        }
    }
}
