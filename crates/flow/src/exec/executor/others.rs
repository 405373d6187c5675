//! Other processes: the runs they own, what they publish, and whether they are gone.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use headworks_domain::RunId;

use super::{
    super::{
        record::{Partition, RunRow, Seen, Standing},
        timer::sleep,
    },
    session::{Reply, Session, failure_of},
};
use crate::machine::State;

impl Session<'_> {
    pub(super) fn poll(&mut self) {
        let store = Arc::clone(&self.executor.store);
        let entries: Vec<(usize, RunId)> =
            self.theirs.iter().filter_map(|run| Some((*run, self.board.run_id(*run)?.clone()))).collect();
        let producers: Vec<RunId> = self.producers.keys().cloned().collect();
        let (patience, timer) = (self.executor.patience(), Arc::clone(&self.executor.options.timer));
        self.polling = true;
        self.replies.spawn(async move {
            let started = timer.elapsed();
            let ids: Vec<RunId> = entries.iter().map(|(_, id)| id.clone()).chain(producers.iter().cloned()).collect();
            let mut standing = patience.ask(|| store.standing(&ids)).await?;
            let of_producers = standing.split_off(entries.len());
            Ok(Reply::Standing {
                entries: entries.into_iter().map(|(run, _)| run).zip(standing).collect(),
                producers: producers.into_iter().zip(of_producers).collect(),
                took: timer.elapsed().saturating_sub(started),
            })
        });
    }

    /// Watches a run if another process owns it.
    pub(super) fn watch(&mut self, run: usize) {
        if self.board.is_theirs(run) && !self.theirs.contains(&run) {
            self.theirs.push(run);
        }
    }

    pub(super) fn standing(
        &mut self,
        entries: Vec<(usize, Standing)>,
        producers: Vec<(RunId, Standing)>,
        took: Duration,
    ) {
        self.polling = false;
        // A look at thousands of runs takes its time: at most a twentieth of a core goes into it.
        self.poll_after = self.elapsed() + self.executor.options.poll.max(took * 20);
        let ended: Vec<usize> = entries.into_iter().filter(|(_, s)| *s != Standing::Held).map(|(run, _)| run).collect();
        if !ended.is_empty() {
            self.theirs.retain(|run| !ended.contains(run));
            let wanted: Vec<_> =
                ended.iter().map(|run| self.board.request(*run)).map(|r| (r.job.clone(), r.interval)).collect();
            let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
            self.replies.spawn(async move {
                let rows = patience.ask(|| store.find(&wanted)).await?;
                Ok(Reply::Found(ended.into_iter().zip(rows).collect()))
            });
        }
        let gone: Vec<RunId> = producers.into_iter().filter(|(_, s)| *s != Standing::Held).map(|(id, _)| id).collect();
        if !gone.is_empty() {
            let (registry, position) = (Arc::clone(&self.executor.partitions), self.position);
            let patience = self.executor.patience();
            self.replies.spawn(async move {
                // What they published counts before their end does.
                let (published, position) = patience.ask(|| registry.published_since(position)).await?;
                Ok(Reply::ProducersGone { published, position, gone })
            });
        }
    }

    /// Decides about a run that another process owned, by the newest row of its interval.
    pub(super) fn look_again(&mut self, run: usize, row: Option<RunRow>, now: DateTime<Utc>) {
        if !self.board.is_theirs(run) {
            return;
        }
        let given = self.given(row.as_ref());
        let (run_id, seen) = match row {
            Some(row) if row.is_held() => {
                self.board.renamed(run, row.id);
                return self.watch(run);
            }
            Some(row) if row.finished_at.is_some() && row.state == State::Success => {
                return self.board.ended_elsewhere(run, None, now);
            }
            Some(row) if row.finished_at.is_some() && row.state == State::Failed => {
                return self.board.ended_elsewhere(run, Some(failure_of(&row)), now);
            }
            Some(row) => (row.id.clone(), Some(Seen::from(&row))),
            None => match self.board.run_id(run) {
                Some(id) => (id.clone(), None),
                None => return,
            },
        };
        let request = self.board.request(run).clone();
        match self.executor.planner.plan(&request, &run_id, &given) {
            Ok(shape) => {
                self.board.reclaim(run, run_id, shape);
                self.to_claim.push_back((run, seen));
            }
            Err(failure) => self.board.ended_elsewhere(run, Some(failure), now),
        }
    }

    pub(super) fn seek(&mut self, asked: Vec<Partition>) {
        let (store, patience) = (Arc::clone(&self.executor.store), self.executor.patience());
        self.replies.spawn(async move {
            let found = patience.ask(|| store.producers(&asked)).await?;
            Ok(Reply::Sought { asked, found })
        });
    }

    pub(super) fn read_feed(&mut self, pause: Duration) {
        let (registry, position) = (Arc::clone(&self.executor.partitions), self.position);
        let (clock, patience) = (Arc::clone(&self.executor.clock), self.executor.patience());
        self.feeding = true;
        self.replies.spawn(async move {
            sleep(patience.timer.as_ref(), pause).await;
            let read_at = clock.now();
            let (published, position) = patience.ask(|| registry.published_since(position)).await?;
            Ok(Reply::Feed { published, position, read_at })
        });
    }

    /// Fails the runs that have missed something for too long, after one more look at the registry.
    pub(super) fn close_blocked(&mut self, now: DateTime<Utc>) {
        let by = now - self.wait();
        if self.board.blocked_since().is_some_and(|since| since <= by) {
            if self.board.blocked_since().is_some_and(|since| since <= self.read_at) {
                self.board.close_blocked(by.min(self.read_at), self.wait(), now);
            } else if !self.feeding {
                self.read_feed(Duration::ZERO);
            }
        }
    }
}
