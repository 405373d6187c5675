//! Does what a task does: it takes its time, fails, publishes.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use headworks_domain::ErrorKind;
use headworks_flow::{
    Answer, Failure, Question,
    exec::{BoxFault, Done, Segment, Stop, TaskRunner},
};

use super::{
    handle::Handle,
    invariants::{AtWork, Beginner},
    mutants::Mutant,
    project::Projects,
    world::{Life, World},
};

pub(super) struct Worker {
    pub(super) handle: Arc<Handle>,
    pub(super) projects: Projects,
    pub(super) tasks_max: usize,
    /// The zone that it stands in.
    pub(super) zone: Option<String>,
}

/// Counts as at work until it is dropped.
struct Busy(AtWork, Arc<World>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.1.lock().invariants.ends(&self.0);
    }
}

/// What becomes of one task.
enum Fate {
    Good,
    Transient,
    Permanent,
    Panic,
}

fn away() -> Failure {
    Failure::new(ErrorKind::Unavailable, "SIM_SOURCE", "the source is away")
}

impl Worker {
    fn life(&self) -> &Life {
        &self.handle.life
    }

    async fn work(&self) -> Fate {
        let (pause, fate) = {
            let mut inner = self.life().world.lock();
            let rates = inner.rates;
            let mut pause = inner.pause();
            if inner.chance.one_in(4) {
                pause += Duration::from_millis(inner.chance.between(100, 4_000));
            }
            if inner.chance.one_in(rates.long) {
                pause += Duration::from_secs(inner.chance.between(5, 40));
            }
            let fates =
                [(rates.transient, Fate::Transient), (rates.permanent, Fate::Permanent), (rates.panics, Fate::Panic)];
            let fate = fates.into_iter().find(|(rate, _)| inner.chance.one_in(*rate));
            (pause, fate.map_or(Fate::Good, |(_, fate)| fate))
        };
        self.life().sleep(pause).await;
        fate
    }

    async fn publish(&self, segment: &Segment) -> Result<(), Stop> {
        let world = &self.life().world;
        let record = segment.finished(1, 10);
        let mut answer = self.handle.publish(segment, &record).await;
        let is_lost = {
            let mut inner = world.lock();
            let rate = inner.rates.lost_publishes;
            inner.chance.one_in(rate)
        };
        if is_lost {
            answer = Err(Box::new(super::world::Away) as BoxFault);
        }
        if world.is(Mutant::BlindRetry) && answer.is_err() {
            answer = self.handle.publish(segment, &record).await;
        }
        if world.is(Mutant::PublishInHalves) {
            self.life().sleep(Duration::from_millis(300)).await;
            world.lock().database.complete(segment);
        }
        match answer {
            Ok(true) => Ok(()),
            Ok(false) => Err(Stop::Fenced),
            Err(error) => {
                world.lock().invariants.hits_an_outage(segment);
                Err(Stop::Failed(Failure::of(error.as_ref())))
            }
        }
    }
}

#[async_trait]
impl TaskRunner for Worker {
    async fn run(&self, segment: &mut Segment) -> Result<Done, Stop> {
        self.life().gate().await;
        let world = Arc::clone(&self.life().world);
        let who = self.life().name.clone();
        let (attempt, fence) = (segment.attempt(), segment.fence());
        world.tell(|| format!("{who} begins {} attempt {attempt} under {fence}", segment.run_id()));
        let job = &segment.shape.job;
        let beginner = Beginner {
            process: &who,
            at: world.time.now(),
            tasks_max: self.tasks_max,
            runs_max: self.projects.limit(job),
            pool: self.projects.pool(job),
        };
        let zone = self.projects.zone(job);
        if zone.is_some() && zone != self.zone {
            world.lock().invariants.breaks(format!("{who} in zone {:?} began {job}, which is for {zone:?}", self.zone));
        }
        let busy = world.lock().invariants.begins(segment, beginner);
        let _busy = Busy(busy, Arc::clone(&world));
        for wait in &segment.shape.outside {
            if !world.has_come(&wait.question) {
                let what = format!("{} began before {} was there", segment.run_id(), wait.question);
                world.lock().invariants.breaks(what);
            }
        }
        for task in segment.tasks.clone() {
            segment.begin(&task);
            match self.work().await {
                Fate::Good => {}
                // What the view of the newest partition needs is never a reason to fail.
                _ if task.as_str() == "latest" => {}
                Fate::Transient => return Err(away().into()),
                Fate::Permanent => {
                    return Err(Failure::new(ErrorKind::Invalid, "SIM_CHECK", "check `not_empty` failed").into());
                }
                Fate::Panic => std::panic::resume_unwind(Box::new("a bug in a task")),
            }
            if task.as_str() == "publish" {
                self.publish(segment).await?;
            }
            segment.end(&task);
        }
        Ok(Done { rows: 1, bytes: 10, published: segment.shape.partitions.clone(), recorded: true, output: None })
    }

    /// Finds files once they are there. It may be slow, beyond its limit too, or fail.
    async fn look(&self, question: &Question) -> Result<Answer, Failure> {
        self.life().gate().await;
        let world = Arc::clone(&self.life().world);
        let (pause, fails) = {
            let mut inner = world.lock();
            let rates = inner.rates;
            let mut pause = inner.pause();
            if inner.chance.one_in(rates.long) {
                pause += Duration::from_secs(inner.chance.between(5, 40));
            }
            (pause, inner.chance.one_in(rates.transient))
        };
        self.life().sleep(pause).await;
        if fails {
            return Err(away());
        }
        let is_there = world.is(Mutant::LookSaysYes) || world.has_come(question);
        Ok(if is_there { Answer::yes("it is there") } else { Answer::not_yet("it is not there") })
    }
}
