//! What the board knows of one run.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use headworks_domain::RunId;
use serde_json::{Map, Value};

use super::{
    super::{
        placement::Placement,
        record::{AttemptRecord, Claim, Partition, Trigger},
        shape::{Request, RunShape},
    },
    items::Items,
};
use crate::machine::{Failure, RetryPolicy, Run, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Planned; nobody owns it as far as we know.
    Unclaimed,
    /// Ours.
    Mine,
    /// Another process owns it.
    Theirs,
    /// Its end is being kept.
    Closing,
    /// Over.
    Over,
}

pub(super) struct Entry {
    pub(super) request: Request,
    pub(super) trigger: Trigger,
    pub(super) tick: Option<DateTime<Utc>>,
    pub(super) demand: Option<i64>,
    /// When the run was made, when that was not by this process just now.
    pub(super) made_at: Option<DateTime<Utc>>,
    /// Yields to other runs of its job when it is claimed.
    pub(super) yields: bool,
    /// Where it may be carried out.
    pub(super) placement: Placement,
    pub(super) run_id: Option<RunId>,
    pub(super) shape: Option<Arc<RunShape>>,
    pub(super) machine: Run,
    pub(super) phase: Phase,
    pub(super) claim: Claim,
    /// The number of the attempt that runs or ran last; 0 before the first of this claim.
    pub(super) attempt: u32,
    /// The number that the next one gets. It is kept before that one starts, so that none is used twice.
    pub(super) next_attempt: u32,
    /// How much each waiting task misses: partitions, or one thing outside of the lake.
    pub(super) missing: HashMap<usize, usize>,
    /// Is to be stopped once its claim is answered.
    pub(super) is_unwanted: bool,
    /// Counts against the job's limit.
    pub(super) active: bool,
    /// Under which number it has a slot of its job's.
    pub(super) job_slot: Option<i64>,
    /// The store is being asked for such a slot.
    pub(super) asks_job: bool,
    /// Counts as a producer of its partitions.
    pub(super) promised: bool,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) started_at: Option<DateTime<Utc>>,
    /// How many records of it are on their way to the store.
    pub(super) keeping: usize,
    /// The attempts that run, by the heads of their segments.
    pub(super) current: BTreeMap<usize, AttemptRecord>,
    /// Attempts that ended and are not kept yet.
    pub(super) attempts: Vec<AttemptRecord>,
    pub(super) took: Option<Duration>,
    /// What the run shows as its failure.
    pub(super) failure: Option<Failure>,
    /// Segments that failed last time.
    pub(super) failures: Vec<(usize, Failure)>,
    /// What tasks gave to later ones, by their names.
    pub(super) outputs: Arc<Map<String, Value>>,
    /// The items of tasks that run once for each.
    pub(super) items: HashMap<usize, Items>,
    pub(super) counted: Option<State>,
    pub(super) done_before: bool,
    pub(super) was_blocked: bool,
}

impl Entry {
    pub(super) fn new(request: Request, run_id: Option<RunId>, shape: Option<Arc<RunShape>>) -> Self {
        let mut entry = Self {
            request,
            trigger: Trigger::default(),
            tick: None,
            demand: None,
            made_at: None,
            yields: false,
            placement: shape.as_ref().map(|shape| shape.placement()).unwrap_or_default(),
            run_id,
            shape,
            machine: Run::new(Vec::new(), RetryPolicy::default(), 0),
            phase: Phase::Unclaimed,
            claim: Claim { fence: 0, attempt: 0 },
            attempt: 0,
            next_attempt: 0,
            missing: HashMap::new(),
            is_unwanted: false,
            active: false,
            job_slot: None,
            asks_job: false,
            promised: false,
            rows: 0,
            bytes: 0,
            started_at: None,
            keeping: 0,
            current: BTreeMap::new(),
            attempts: Vec::new(),
            took: None,
            failure: None,
            failures: Vec::new(),
            outputs: Arc::default(),
            items: HashMap::new(),
            counted: None,
            done_before: false,
            was_blocked: false,
        };
        let seed = entry.seed();
        if let Some(shape) = &entry.shape {
            entry.machine = shape.machine(seed);
        }
        entry
    }

    /// Differs from run to run, and is the same when a command is repeated.
    pub(super) fn seed(&self) -> u64 {
        let id = self.run_id.as_ref().map_or("", |id| id.as_str());
        id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    pub(super) fn own_partitions(&self) -> Vec<Partition> {
        self.shape.as_ref().map(|shape| shape.own_partitions().collect()).unwrap_or_default()
    }
}
