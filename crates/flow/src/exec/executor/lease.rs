//! What this process knows of its own lease. The store's fences keep others' work safe whatever happens here; but a task may act
//! on the world outside, and so none begins that is another process's by now.

use std::{sync::Arc, time::Duration};

use headworks_domain::RunId;
use tokio::sync::watch;

use super::session::{Reply, Session};

/// How the renewals of the lease have gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    /// When the last one began that succeeded, by the timer.
    pub(super) at: Duration,
    /// How many came when the lease may have been over.
    pub(super) late: u64,
    /// When the last of these had succeeded: until then others may have seen the lease when it was over.
    pub(super) late_at: Duration,
}

impl Renewal {
    /// The first, which comes with the process's registration.
    pub(super) fn first(at: Duration) -> Self {
        Self { at, late: 0, late_at: Duration::ZERO }
    }

    /// What a renewal makes of it that began and succeeded at these times.
    pub(super) fn followed(self, began: Duration, succeeded: Duration, lease: Duration) -> Self {
        let is_late = succeeded > self.at + lease;
        Self {
            at: began,
            late: self.late + u64::from(is_late),
            late_at: if is_late { succeeded } else { self.late_at },
        }
    }
}

/// The lease, as its process knows it.
pub(super) struct Lease {
    renewals: watch::Receiver<Renewal>,
    lasts: Duration,
    /// Up to which late renewal it is known which runs were lost.
    known: u64,
    /// Which renewal was the newest at the last look for runs that were lost.
    looked_at: Duration,
    looking: bool,
}

impl Lease {
    pub(super) fn new(renewals: watch::Receiver<Renewal>, lasts: Duration) -> Self {
        Self { renewals, lasts, known: 0, looked_at: Duration::ZERO, looking: false }
    }

    /// Waits for the next renewal; for ever, when there will be none.
    pub(super) async fn renewed(&mut self) {
        if self.renewals.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Session<'_> {
    /// True while nobody else can have taken our runs over without our knowing: the lease runs, and after a renewal that came late
    /// the store was asked. Until then nothing begins; what runs goes on, for the store may have been out of reach for all.
    pub(super) fn holds_lease(&mut self) -> bool {
        let renewal = *self.lease.renewals.borrow_and_update();
        if self.elapsed() >= renewal.at + self.lease.lasts {
            return false;
        }
        let is_known = renewal.late == self.lease.known;
        // Who saw the lease when it was over may claim a moment after it was renewed: one look is not enough.
        let is_young = renewal.late > 0 && renewal.at < renewal.late_at + self.lease.lasts;
        let is_due = !is_known || is_young && renewal.at > self.lease.looked_at;
        // A claim of ours whose answer is on its way may be of before.
        if is_due && !self.lease.looking && !self.claiming {
            if !is_known {
                tracing::warn!("the lease was over: looking which runs others have taken over");
            }
            self.look_for_lost(renewal);
        }
        is_known
    }

    fn look_for_lost(&mut self, renewal: Renewal) {
        (self.lease.looking, self.lease.looked_at) = (true, renewal.at);
        let (mine, late) = (self.board.mine(), renewal.late);
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        self.replies.spawn(async move {
            let asked: Vec<(RunId, i64)> = mine.iter().map(|(_, id, fence)| (id.clone(), *fence)).collect();
            let lost = patience.ask(|| store.lost(&asked)).await?;
            let lost = mine.into_iter().filter(|(_, id, _)| lost.contains(id)).map(|(run, _, fence)| (run, fence));
            Ok(Reply::Lost { late, lost: lost.collect() })
        });
    }

    /// Stops what others have taken over.
    pub(super) fn lost(&mut self, late: u64, lost: Vec<(usize, i64)>) {
        (self.lease.looking, self.lease.known) = (false, late);
        let now = self.now();
        for (run, fence) in lost {
            self.board.lost(run, fence, now);
            self.watch(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_is_late_when_the_lease_may_have_been_over() {
        let (secs, lease) = (Duration::from_secs, Duration::from_secs(10));
        let renewal = Renewal::first(secs(1));
        assert_eq!(renewal.followed(secs(4), secs(5), lease).late, 0);
        assert_eq!(renewal.followed(secs(4), secs(11), lease).late, 0);
        let slow = renewal.followed(secs(4), secs(12), lease);
        assert_eq!((slow.late, slow.late_at), (1, secs(12)), "its answer came after the end");
        let late = renewal.followed(secs(60), secs(60), lease);
        assert_eq!((late.late, late.late_at), (1, secs(60)));
        let next = late.followed(secs(63), secs(64), lease);
        assert_eq!((next.late, next.late_at, next.at), (1, secs(60), secs(63)));
    }
}
