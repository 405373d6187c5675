use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use crate::{Dialect, StoreOptions, Value, connection::Connection};

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
    let (every, sql) = match dialect {
        Dialect::Sqlite => (SQLITE_POLL, "pragma data_version"),
        Dialect::Postgres => (POSTGRES_POLL, "select pg_current_wal_insert_lsn()::text"),
    };
    let mut connection = None;
    let mut seen: Option<Value> = None;
    loop {
        tokio::time::sleep(every).await;
        if watch.count.receiver_count() == 0 {
            watch.polling.store(false, Ordering::Release);
            // Somebody may have subscribed between the look and the store.
            if watch.count.receiver_count() == 0 || watch.polling.swap(true, Ordering::AcqRel) {
                break;
            }
        }
        if connection.is_none() {
            connection = Connection::open(&options).await.ok();
        }
        let Some(open) = &mut connection else { continue };
        match open.rows(sql, &[]).await {
            Ok(rows) => {
                let now = rows.first().map(|row| row.value(0).clone());
                if seen.is_some() && now != seen {
                    watch.bump();
                }
                seen = now;
            }
            Err(_) => connection = None,
        }
    }
    if let Some(open) = connection {
        open.close().await;
    }
}
