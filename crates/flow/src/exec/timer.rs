//! Letting time pass. The executor sleeps through this, so that a simulator can hold its hand on the hours.

use std::{
    fmt,
    future::Future,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::Instant;

/// Time that passes evenly, whatever happens to the clock on the wall.
pub trait Timer: fmt::Debug + Send + Sync + 'static {
    /// How much has passed since some fixed instant. Never less than before.
    fn elapsed(&self) -> Duration;

    /// Resolves once so much has passed since that instant.
    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()>;
}

/// The time of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemTimer;

/// What [`SystemTimer`] counts from.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Timer for SystemTimer {
    fn elapsed(&self) -> Duration {
        BEGUN.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(*BEGUN + at))
    }
}

/// Resolves after a while.
pub(crate) async fn sleep(timer: &dyn Timer, pause: Duration) {
    timer.sleep_until(timer.elapsed().saturating_add(pause)).await;
}

/// Resolves at an instant; never, when there is none.
pub(crate) async fn sleep_until(timer: &dyn Timer, at: Option<Duration>) {
    match at {
        Some(at) => timer.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What the future gives, or `None` when it takes longer.
pub(crate) async fn timeout<F: Future>(timer: &dyn Timer, after: Duration, work: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = work => Some(output),
        () = sleep(timer, after) => None,
    }
}

/// Ticks at once and then at even pauses; one that comes late moves all that follow.
pub(crate) struct Ticks {
    timer: Arc<dyn Timer>,
    every: Duration,
    next: Duration,
}

impl Ticks {
    pub(crate) fn new(timer: &Arc<dyn Timer>, every: Duration) -> Self {
        Self { timer: Arc::clone(timer), every, next: timer.elapsed() }
    }

    /// Dropping the future loses no tick.
    pub(crate) async fn tick(&mut self) {
        self.timer.sleep_until(self.next).await;
        self.next = self.timer.elapsed() + self.every;
    }

    /// The next tick comes after so much at the latest.
    pub(crate) fn hurry(&mut self, pause: Duration) {
        self.next = self.next.min(self.timer.elapsed() + pause);
    }
}
