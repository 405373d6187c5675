use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::{mpsc, oneshot};

use crate::{Dialect, Error, Result, Row, StoreOptions, Value, connection::Connection, watch, watch::Watch};

/// The most pieces of work that one commit carries: a bound for how long the first of them waits for the last.
const GROUP_MAX: usize = 128;

/// The most pieces of work that may wait for the writer before callers wait too.
const QUEUE_MAX: usize = 1024;

/// A transaction, as a piece of work sees it: everything done through it is kept whole or not at all.
pub struct Tx {
    connection: Connection,
    dialect: Dialect,
}

impl Tx {
    /// Says which database this is.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Runs a statement and counts the rows it touched.
    pub async fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64> {
        self.connection.execute(sql, values).await
    }

    /// Reads rows as the transaction sees them.
    pub async fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        self.connection.rows(sql, values).await
    }

    /// Reads the first row, if there is one.
    pub async fn row(&mut self, sql: &str, values: &[Value]) -> Result<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// The connection itself, for looking at the tables' shapes.
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Runs several statements at once, without values: for migrations.
    pub(crate) async fn script(&mut self, sql: &str) -> Result<()> {
        self.connection.script(sql).await
    }

    /// Opens a savepoint to which a piece of work can go back by itself. Savepoints of one name nest.
    pub async fn savepoint(&mut self) -> Result<()> {
        self.connection.execute("savepoint hw_inner", &[]).await.map(drop)
    }

    /// Keeps what was done since the last savepoint.
    pub async fn release(&mut self) -> Result<()> {
        self.connection.execute("release savepoint hw_inner", &[]).await.map(drop)
    }

    /// Undoes what was done since the last savepoint.
    pub async fn undo(&mut self) -> Result<()> {
        self.connection.execute("rollback to savepoint hw_inner", &[]).await?;
        self.release().await
    }
}

/// A piece of work with its way back to the caller. `run` answers whether to keep what was done; `finish` is told how the
/// commit went.
struct Work {
    run: Run,
    finish: Finish,
}

type Run = Box<dyn for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, bool> + Send>;
type Finish = Box<dyn FnOnce(Result<()>) + Send>;

/// Boxes a closure; as an argument its lifetimes are inferred as they must be.
fn run(work: impl for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, bool> + Send + 'static) -> Run {
    Box::new(work)
}

enum Message {
    Work(Work),
    Close(oneshot::Sender<()>),
}

/// The one task that writes; everybody hands it work through a bounded queue.
pub(crate) struct Writer {
    queue: mpsc::Sender<Message>,
    commits: Arc<AtomicU64>,
}

impl Writer {
    pub(crate) fn start(options: StoreOptions, connection: Connection, watch: Watch) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE_MAX);
        let commits = Arc::new(AtomicU64::new(0));
        tokio::spawn(write_loop(options, connection, inbox, watch, Arc::clone(&commits)));
        Self { queue, commits }
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(crate) async fn write<T, E, F>(&self, work: F) -> std::result::Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, std::result::Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let slot = Arc::new(std::sync::Mutex::new(None));
        let filled = Arc::clone(&slot);
        let run = run(move |tx| {
            let doing = work(tx);
            Box::pin(async move {
                let result = doing.await;
                let keep = result.is_ok();
                *slot.lock().expect("no holder of this lock can panic") = Some(result);
                keep
            })
        });
        let finish = Box::new(move |outcome: Result<()>| {
            let done = filled.lock().expect("no holder of this lock can panic").take();
            let result = match (done, outcome) {
                (Some(Ok(value)), Ok(())) => Ok(value),
                (Some(Err(error)), _) => Err(error),
                (_, Err(error)) => Err(error.into()),
                (None, Ok(())) => Err(Error::Panicked.into()),
            };
            // A caller that went away does not want the answer.
            let _ = answer.send(result);
        });
        self.queue.send(Message::Work(Work { run, finish })).await.map_err(|_| Error::Closed)?;
        answered.await.unwrap_or_else(|_| Err(Error::Closed.into()))
    }

    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

async fn write_loop(
    options: StoreOptions,
    connection: Connection,
    mut inbox: mpsc::Receiver<Message>,
    watch: Watch,
    commits: Arc<AtomicU64>,
) {
    let Ok(dialect) = options.dialect() else { return };
    let mut open = Some(Tx { connection, dialect });
    while let Some(message) = inbox.recv().await {
        let work = match message {
            Message::Work(work) => work,
            Message::Close(done) => {
                if let Some(tx) = open {
                    tx.connection.close().await;
                }
                let _ = done.send(());
                return;
            }
        };
        let mut tx = match open.take() {
            Some(tx) => tx,
            None => match Connection::open(&options).await {
                Ok(connection) => Tx { connection, dialect },
                Err(error) => {
                    (work.finish)(Err(error));
                    continue;
                }
            },
        };
        if commit_group(&mut tx, work, &mut inbox, &commits).await {
            open = Some(tx);
        }
        watch.bump();
    }
}

/// Carries out a group and answers whether the connection can be used again.
async fn commit_group(tx: &mut Tx, first: Work, inbox: &mut mpsc::Receiver<Message>, commits: &AtomicU64) -> bool {
    let begin = match tx.dialect {
        Dialect::Sqlite => "begin immediate",
        Dialect::Postgres => "begin",
    };
    if let Err(error) = tx.connection.begin(begin).await {
        let usable = !error.breaks_connection();
        (first.finish)(Err(error));
        return usable;
    }
    let mut next = Some(first);
    let mut kept: Vec<Finish> = Vec::new();
    let mut undone: Vec<Finish> = Vec::new();
    let mut broken: Option<String> = None;
    let mut close = None;
    while let Some(work) = next.take() {
        match run_one(tx, work.run).await {
            Ok(true) => kept.push(work.finish),
            Ok(false) => undone.push(work.finish),
            Err(error) => {
                kept.push(work.finish);
                broken = Some(error.to_string());
                break;
            }
        }
        if kept.len() + undone.len() < GROUP_MAX {
            match inbox.try_recv() {
                Ok(Message::Work(work)) => next = Some(work),
                Ok(Message::Close(done)) => close = Some(done),
                Err(_) => {}
            }
        }
    }
    // Told on commit, to every process that listens. A transaction that could not say so would commit nothing.
    if broken.is_none()
        && !kept.is_empty()
        && tx.dialect == Dialect::Postgres
        && let Err(error) = tx.connection.execute(watch::NOTIFY, &[]).await
    {
        broken = Some(error.to_string());
    }
    if let Some(message) = broken {
        // The server undoes what it never saw committed.
        let _ = tokio::time::timeout(Duration::from_secs(1), tx.connection.execute("rollback", &[])).await;
        for finish in kept.into_iter().chain(undone) {
            finish(Err(Error::Lost { message: message.clone() }));
        }
        return false;
    }
    let outcome = tx.connection.execute("commit", &[]).await;
    let usable = match &outcome {
        Ok(_) => {
            commits.fetch_add(1, Ordering::Relaxed);
            true
        }
        Err(_) => {
            // A refused commit (a full disk) leaves the transaction open on SQLite.
            let _ = tx.connection.execute("rollback", &[]).await;
            false
        }
    };
    for finish in kept {
        finish(match &outcome {
            Ok(_) => Ok(()),
            Err(Error::Lost { message }) => Err(Error::CommitUnknown { message: message.clone() }),
            Err(Error::Full { message }) => Err(Error::Full { message: message.clone() }),
            Err(Error::Locked { message }) => Err(Error::Locked { message: message.clone() }),
            Err(other) => Err(Error::CommitUnknown { message: other.to_string() }),
        });
    }
    for finish in undone {
        finish(Ok(()));
    }
    if let Some(done) = close {
        let _ = done.send(());
        inbox.close();
    }
    usable
}

/// Runs one piece of work in its savepoint. Errors mean that the connection is gone.
async fn run_one(tx: &mut Tx, run: Run) -> Result<bool> {
    tx.connection.execute("savepoint hw_work", &[]).await?;
    let keep = AssertUnwindSafe(run(tx)).catch_unwind().await.unwrap_or(false);
    if !keep {
        tx.connection.execute("rollback to savepoint hw_work", &[]).await?;
    }
    tx.connection.execute("release savepoint hw_work", &[]).await?;
    Ok(keep)
}
