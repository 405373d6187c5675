//! Virtual time: it stands still while anybody has something to do, and then goes to the next instant that somebody waits for.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// The time of one world. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Time(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    now: Duration,
    next: u64,
    /// Who waits, by instant and by who came first.
    waiting: BTreeMap<(Duration, u64), Waker>,
}

impl Time {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(super) fn now(&self) -> Duration {
        self.lock().now
    }

    /// Goes to the next instant that somebody waits for. Called when nobody has anything to do.
    pub(super) fn advance(&self) {
        let mut inner = self.lock();
        let Some((&(at, _), _)) = inner.waiting.first_key_value() else { return };
        inner.now = inner.now.max(at);
        let mut due = Vec::new();
        while let Some(entry) = inner.waiting.first_entry().filter(|entry| entry.key().0 == at) {
            due.push(entry.remove());
        }
        drop(inner);
        due.into_iter().for_each(Waker::wake);
    }

    pub(super) fn sleep_until(&self, at: Duration) -> Sleep {
        Sleep { time: self.clone(), at, key: None }
    }

    pub(super) fn sleep(&self, pause: Duration) -> Sleep {
        self.sleep_until(self.now() + pause)
    }
}

pub(super) struct Sleep {
    time: Time,
    at: Duration,
    key: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        let time = self.time.clone();
        let mut inner = time.lock();
        if inner.now >= at {
            return Poll::Ready(());
        }
        let key = *self.key.get_or_insert_with(|| {
            inner.next += 1;
            (at, inner.next)
        });
        // Dropped after the lock is gone: a waker may be the last that holds a task with sleeps of its own.
        let before = inner.waiting.insert(key, cx.waker().clone());
        drop(inner);
        drop(before);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.time.lock().waiting.remove(&key);
            drop(waker);
        }
    }
}
