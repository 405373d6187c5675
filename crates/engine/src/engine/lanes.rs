//! Threads of queries, by how eager they are, and turns to plan on them.

use std::sync::Arc;

use tokio::runtime::{Handle, Runtime};

use super::not_joined;
use crate::{
    EngineOptions, Error, Priority, Result,
    queue::Queues,
    turns::{Turn, Turns},
    wanted::Asker,
};

/// The threads of each priority that a queue has.
pub(super) struct Lanes {
    pub(super) high: Option<Lane>,
    pub(super) normal: Lane,
    pub(super) low: Option<Lane>,
    /// For what takes no time, on normal threads: nobody's planning delays it but its own.
    pub(super) quick: Lane,
}

/// Threads of one priority.
pub(super) struct Lane {
    pub(super) threads: Handle,
    /// Who plans on them now: as many at once as there are threads, and a guest when these are all one user's. Planning does not
    /// give way, so that more would hold back each other and everybody else.
    pub(super) planning: Arc<Turns>,
}

impl Lanes {
    /// Starts threads for the priorities of these queues, the most eager ones as they come, the next less eager.
    pub(super) fn start(queues: &Queues, options: &EngineOptions) -> Result<(Self, Vec<Runtime>)> {
        let queries_max: usize = queues.all().iter().map(|queue| queue.options.slots).sum();
        let own_nice = rustix::process::getpriority_process(None).unwrap_or_default();
        let mut runtimes = Vec::new();
        let mut lane = |priority, name| {
            if priority != Priority::Normal && queues.all().iter().all(|queue| queue.options.priority != priority) {
                return Ok(None);
            }
            let more = NICE.get(runtimes.len()).filter(|more| **more > 0);
            let nice = more.map(|more| NICE_MAX.min(own_nice + more));
            runtimes.push(runtime(options, queries_max, name, nice)?);
            let threads = runtimes[runtimes.len() - 1].handle().clone();
            Ok::<_, Error>(Some(Lane { threads, planning: Turns::with_guest(options.threads) }))
        };
        let high = lane(Priority::High, "headworks-high")?;
        let normal = lane(Priority::Normal, "headworks-sql")?;
        let low = lane(Priority::Low, "headworks-low")?;
        let normal =
            normal.ok_or_else(|| Error::Internal { message: "there are no threads for queries".to_owned() })?;
        let quick = Lane { threads: normal.threads.clone(), planning: Turns::with_guest(options.threads) };
        Ok((Self { high, normal, low, quick }, runtimes))
    }

    fn all(&self) -> impl Iterator<Item = &Lane> {
        self.high.iter().chain([&self.normal, &self.quick]).chain(&self.low)
    }

    pub(super) fn close(&self) {
        self.all().for_each(|lane| lane.planning.close());
    }
}

/// How much less eager the threads of each next priority are: on Linux, who is ten behind runs a tenth of the time when both
/// want to. Ten each, as far as it goes.
const NICE: [i32; 3] = [0, 10, 19];
const NICE_MAX: i32 = 19;

pub(super) fn runtime(options: &EngineOptions, queries_max: usize, name: &str, nice: Option<i32>) -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(options.threads.max(1))
        .thread_name(name)
        // Planning recurses as deep as a statement nests, and so does dropping it: blocking threads have this stack too.
        .thread_stack_size(options.stack_bytes)
        .max_blocking_threads(queries_max.max(4) * 2)
        // Queries give way every ten milliseconds: so timers, which end them, are late by no more than eight of these.
        .event_interval(8)
        .enable_all();
    if let Some(nice) = nice {
        builder.on_thread_start(move || {
            let thread = Some(rustix::thread::gettid());
            if let Err(error) = rustix::process::setpriority_process(thread, nice) {
                tracing::warn!(%error, "threads of queries that give way run as eagerly as others");
            }
        });
    }
    builder.build().map_err(Error::Start)
}

impl Lane {
    /// Plans on a thread that may block: planning does not give way, and a large statement takes a while.
    ///
    /// When the caller goes, as when its time is up, the thread ends at its next step; its turn is taken until then.
    pub(super) async fn plan<T: Send + 'static>(
        &self,
        turn: Turn,
        planning: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (asker, threads) = (Asker::of_plan(), self.threads.clone());
        let planning = asker.waits_for(planning);
        let task = self.threads.spawn_blocking(move || {
            let _turn = turn;
            threads.block_on(planning)
        });
        task.await.map_err(not_joined)?
    }
}
