//! One process's connection to the database: every call takes its time, and may be lost, doubled, or the process's last.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::TimeDelta;
use headworks_domain::{Clock, Interval, JobName, RunId};
use headworks_flow::{
    Failure,
    exec::{
        BoxFault, Claim, ClaimRequest, Kept, Partition, Partitions, Producer, Release, RunDetail, RunFilter, RunRecord,
        RunRow, RunStore, Segment, SlotRequest, Slots, Standing, Takes,
    },
    ticker::JobClock,
};
use tokio::{sync::watch, task::yield_now};

use super::{
    database::{Asker, Database},
    invariants::{Invariants, LEASE},
    mutants::Mutant,
    world::{AWAY, Away, Hands, Life},
};

pub(super) struct Handle {
    pub(super) life: Arc<Life>,
    ids: AtomicU64,
    /// What it takes of runs that others release; none for a process that only plans.
    takes: Option<Takes>,
    /// When the lease was renewed last, and until when others' leases are doubted.
    leases: Mutex<(Option<Duration>, Duration)>,
}

/// As `headworks_meta` has it.
const OUTAGE: Duration = Duration::from_secs(5);

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    LostRequest,
    LostReply,
    Doubled,
    DiesBefore,
    DiesAfter,
}

impl Handle {
    pub(super) fn new(life: Arc<Life>, takes: Option<Takes>) -> Arc<Self> {
        Arc::new(Self { life, ids: AtomicU64::new(1), takes, leases: Mutex::default() })
    }

    pub(super) async fn call<T: Send>(
        &self,
        what: &'static str,
        mut apply: impl FnMut(&mut Database, &Asker<'_>, &mut Invariants) -> T + Send,
    ) -> Result<T, BoxFault> {
        let (life, world) = (&self.life, &self.life.world);
        life.gate().await;
        let (before, after, steps, fate) = {
            let mut inner = world.lock();
            let rates = inner.rates;
            let mut before = inner.pause();
            if inner.chance.one_in(rates.slow) {
                before += Duration::from_millis(inner.chance.between(500, 9_000));
            }
            let fates = [
                (rates.crashes, Fate::DiesBefore),
                (rates.crashes, Fate::DiesAfter),
                (rates.lost_requests, Fate::LostRequest),
                (rates.lost_replies, Fate::LostReply),
                (rates.duplicates, Fate::Doubled),
            ];
            let fate =
                fates.into_iter().find(|(rate, _)| inner.chance.one_in(*rate)).map_or(Fate::Good, |(_, fate)| fate);
            (before, inner.pause(), inner.chance.below(3), fate)
        };
        for _ in 0..steps {
            yield_now().await;
        }
        world.time.sleep(before).await;
        life.gate().await;
        if world.is_away() {
            life.sleep(Duration::from_millis(50)).await;
            return Err(Box::new(Away));
        }
        match fate {
            Fate::DiesBefore => {
                life.die();
                std::future::pending::<()>().await;
            }
            Fate::LostRequest => return Err(Box::new(Away)),
            _ => {}
        }
        let answer = self.apply(what, fate, &mut apply);
        if matches!(what, "publish" | "release" | "give slots") {
            world.changed();
        }
        if fate == Fate::DiesAfter {
            life.die();
            std::future::pending::<()>().await;
        }
        world.time.sleep(after).await;
        life.gate().await;
        if fate == Fate::LostReply { Err(Box::new(Away)) } else { Ok(answer) }
    }

    fn apply<T>(
        &self,
        what: &'static str,
        fate: Fate,
        apply: &mut impl FnMut(&mut Database, &Asker<'_>, &mut Invariants) -> T,
    ) -> T {
        let world = &self.life.world;
        let now = world.time.now();
        let asker = Asker {
            process: &self.life.name,
            takes: self.takes.as_ref(),
            now,
            wall: Hands(Arc::clone(&self.life)).now(),
            truth: world.base + TimeDelta::from_std(now).unwrap(),
            doubts: self.doubts(now),
            deaths_show: world.deaths_show,
            mutant: world.mutant,
        };
        let mut inner = world.lock();
        inner.tell(now, || format!("{} {what} {fate:?}", self.life.name));
        let inner = &mut *inner;
        inner.database.register(&asker);
        let answer = apply(&mut inner.database, &asker, &mut inner.invariants);
        if fate == Fate::Doubled { apply(&mut inner.database, &asker, &mut inner.invariants) } else { answer }
    }

    /// The rule of `headworks_meta`: after a time in which this process could not renew its lease, nobody else could either.
    fn doubts(&self, now: Duration) -> bool {
        let (renewed_at, until) = *self.leases.lock().unwrap();
        let is_late = renewed_at.is_some_and(|at| now > at + OUTAGE);
        (now < until || is_late) && !self.life.world.is(Mutant::NoDoubtAfterOutage)
    }

    pub(super) async fn jobs(&self) -> Result<Vec<(JobName, JobClock)>, BoxFault> {
        self.call("jobs", |db, _, _| db.jobs.iter().map(|(job, clock)| (job.clone(), *clock)).collect()).await
    }

    /// Ends the runs that somebody wants cancelled and whose owner is gone.
    pub(super) async fn end_abandoned_wishes(&self) -> Result<(), BoxFault> {
        self.call("end wishes", |db, asker, invariants| db.end_abandoned_wishes(asker, invariants)).await
    }

    /// Publishes a segment's result; false when its fence is old.
    pub(super) async fn publish(&self, segment: &Segment, record: &RunRecord) -> Result<bool, BoxFault> {
        self.call("publish", |db, asker, invariants| db.publish(segment, record, asker, invariants)).await
    }
}

#[async_trait]
impl RunStore for Handle {
    async fn new_run_ids(&self, count: usize) -> Result<Vec<RunId>, BoxFault> {
        let first = self.ids.fetch_add(count as u64, Ordering::Relaxed);
        Ok((first..first + count as u64).map(|n| format!("{}-{n}", self.life.name).parse().unwrap()).collect())
    }

    async fn find(&self, wanted: &[(JobName, Interval)]) -> Result<Vec<Option<RunRow>>, BoxFault> {
        self.call("find", |db, asker, _| wanted.iter().map(|key| db.find(key, asker)).collect()).await
    }

    async fn claim(&self, wanted: Vec<ClaimRequest>) -> Result<Vec<Option<Claim>>, BoxFault> {
        let claims = self.call("claim", |db, asker, invariants| db.claim(&wanted, asker, invariants)).await?;
        self.life.world.tell(|| {
            let mine =
                wanted.iter().zip(&claims).filter_map(|(w, claim)| Some((w.run_id.as_str(), claim.as_ref()?.fence)));
            format!("{} has {:?}", self.life.name, mine.collect::<Vec<_>>())
        });
        Ok(claims)
    }

    async fn record(&self, records: Vec<RunRecord>) -> Result<Vec<Kept>, BoxFault> {
        self.call("record", |db, asker, invariants| {
            records.iter().map(|record| db.record(record, asker, invariants)).collect()
        })
        .await
    }

    fn lease(&self) -> Duration {
        LEASE
    }

    async fn lost(&self, runs: &[(RunId, i64)]) -> Result<Vec<RunId>, BoxFault> {
        self.call("lost", |db, _, _| db.lost(runs)).await
    }

    async fn heartbeat(&self) -> Result<(), BoxFault> {
        self.call("heartbeat", |db, asker, invariants| {
            db.renew(asker);
            invariants.lives(asker.process, asker.now);
            invariants.renews(asker.process, asker.now);
        })
        .await?;
        let now = self.life.world.time.now();
        let mut leases = self.leases.lock().unwrap();
        if leases.0.replace(now).is_some_and(|before| now - before > OUTAGE) {
            leases.1 = now + LEASE;
        }
        Ok(())
    }

    async fn leave(&self) -> Result<(), BoxFault> {
        let name = self.life.name.clone();
        self.call("leave", |db, _, invariants| {
            db.leave(&name);
            invariants.stops(&name);
        })
        .await
    }

    async fn abandoned(&self, limit: usize, released_max: usize, takes: &Takes) -> Result<Vec<RunRow>, BoxFault> {
        self.call("abandoned", |db, asker, _| db.abandoned(limit, released_max, takes, asker)).await
    }

    async fn release(&self, runs: Vec<Release>) -> Result<(), BoxFault> {
        let shown = |run: &Release| (run.run_id.to_string(), run.fence, run.priority);
        self.life
            .world
            .tell(|| format!("{} gives away {:?}", self.life.name, runs.iter().map(shown).collect::<Vec<_>>()));
        self.call("release", |db, asker, invariants| {
            runs.iter().for_each(|run| db.release(run, asker, invariants));
        })
        .await
    }

    async fn workers(&self) -> Result<Vec<Takes>, BoxFault> {
        self.call("workers", |db, asker, _| db.other_workers(asker)).await
    }

    async fn slots(&self, given: Vec<i64>, wanted: Vec<SlotRequest>) -> Result<Vec<Slots>, BoxFault> {
        // Who finds a pool full has changed nothing, and rings for nobody.
        let what = if given.is_empty() { "take slots" } else { "give slots" };
        self.call(what, |db, asker, invariants| db.take_slots(&given, &wanted, asker, invariants)).await
    }

    async fn cancel_wishes(&self) -> Result<Vec<RunId>, BoxFault> {
        self.call("wishes", |db, asker, _| db.wishes(asker.process)).await
    }

    async fn standing(&self, runs: &[RunId]) -> Result<Vec<Standing>, BoxFault> {
        self.call("standing", |db, asker, _| runs.iter().map(|run| db.standing(run, asker)).collect()).await
    }

    async fn producers(&self, wanted: &[Partition]) -> Result<Vec<Producer>, BoxFault> {
        self.call("producers", |db, asker, _| db.producers(wanted, asker)).await
    }

    fn is_outage(&self, failure: &Failure) -> bool {
        failure.code == AWAY
    }

    async fn list(&self, _: &RunFilter) -> Result<Vec<RunRow>, BoxFault> {
        Ok(Vec::new())
    }

    async fn show(&self, _: &RunId) -> Result<Option<RunDetail>, BoxFault> {
        Ok(None)
    }
}

#[async_trait]
impl Partitions for Handle {
    async fn published(&self, wanted: &[Partition]) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.call("look", |db, asker, _| db.published(wanted, asker)).await
    }

    async fn published_since(&self, position: i64) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.call("feed", |db, asker, _| db.published_since(position, asker)).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.life.world.listen()
    }
}
