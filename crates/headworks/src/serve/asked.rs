//! Who asked what: every query that ended goes into the metadata database, slow ones into the log too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headworks_domain::Fault;
use headworks_engine::{Error, QueryListener, QueryState, Stage};
use headworks_flow::JOBS_QUEUE;
use headworks_meta::{Asked, AskedLog};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// Queries that wait to be written down.
const WAITING_MAX: usize = 50_000;
/// How long they are gathered.
const GATHERED_FOR: Duration = Duration::from_millis(500);

/// Hears of queries on the engine's threads.
pub(super) struct Ears {
    sender: mpsc::Sender<Asked>,
    slow: Duration,
    lost: Arc<AtomicU64>,
}

/// Writes down what the ears heard.
pub(super) struct Pen {
    receiver: mpsc::Receiver<Asked>,
    log: AskedLog,
    lost: Arc<AtomicU64>,
}

/// A pen at work.
pub(super) struct Writing {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// How long the last queries may take to be written down.
const LAST_WITHIN: Duration = Duration::from_secs(2);

impl Writing {
    /// Writes down what was asked last. To be called when no queries end any more.
    pub(super) async fn finish(self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(LAST_WITHIN, self.task).await.is_err() {
            tracing::warn!("who asked the last queries could not be written down in time");
        }
    }
}

/// Both ends. Queries that take longer than `slow` are logged too.
pub(super) fn pair(log: AskedLog, slow: Duration) -> (Ears, Pen) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let lost = Arc::new(AtomicU64::new(0));
    (Ears { sender, slow, lost: Arc::clone(&lost) }, Pen { receiver, log, lost })
}

impl QueryListener for Ears {
    fn ended(&self, state: &QueryState, error: Option<&Error>) {
        // Of a job's queries its run tells.
        if state.queue == JOBS_QUEUE {
            return;
        }
        if state.took >= self.slow {
            tracing::warn!(
                query = %state.id, user = state.user, queue = state.queue, took_ms = millis(state.took),
                scanned_bytes = state.scanned_bytes, rows = state.rows, sql = %state.sql, "slow query"
            );
        }
        let asked = Asked {
            id: state.id.to_string(),
            user: state.user.clone(),
            application: state.application.clone(),
            queue: state.queue.clone(),
            sql: state.sql.to_string(),
            state: state.stage.as_str().to_owned(),
            error: error.filter(|_| state.stage == Stage::Failed).map(|error| error.code().to_owned()),
            started_at: state.started_at,
            waited_ms: millis(state.waited),
            took_ms: millis(state.took),
            rows: signed(state.rows),
            scanned_bytes: signed(state.scanned_bytes),
            is_cached: state.is_cached,
        };
        if self.sender.try_send(asked).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Pen {
    /// Begins to write.
    pub(super) fn start(self) -> Writing {
        let (stop, stopped) = watch::channel(false);
        Writing { stop, task: tokio::spawn(self.run(stopped)) }
    }

    /// Writes until `stop` turns true, and then what is left.
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut heard = Vec::new();
        loop {
            let is_over = tokio::select! {
                got = self.receiver.recv_many(&mut heard, WAITING_MAX) => got == 0,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            if !is_over {
                tokio::time::sleep(GATHERED_FOR).await;
            }
            while let Ok(asked) = self.receiver.try_recv() {
                heard.push(asked);
            }
            if !heard.is_empty()
                && let Err(error) = self.log.write(std::mem::take(&mut heard)).await
            {
                tracing::warn!(%error, "who asked what could not be written down");
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                tracing::warn!(queries = lost, "more queries ended than could be written down");
            }
            if is_over {
                return;
            }
        }
    }
}
