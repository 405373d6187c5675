//! What an executor that serves is asked for.

use chrono::{DateTime, Utc};

use serde_json::{Map, Value};

use super::{options::Reprocess, record::Trigger, shape::Request};
use crate::spec::Overlap;

/// A wish to an executor that serves, sent through its inbox.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Carry these out, each unless it was carried out before or is at work.
    Runs(Vec<Demand>),
}

/// A run that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The run.
    pub request: Request,
    /// What it is for.
    pub trigger: Trigger,
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Value>,
    /// The tick that asks for it, which counts as seen to once the run is claimed.
    pub tick: Option<DateTime<Utc>>,
    /// The kept demand behind it, which the claim of its run answers.
    pub demand: Option<i64>,
    /// Which of the runs that ended before are carried out again; a tick of the schedule never repeats one.
    pub reprocess: Reprocess,
    /// What happens when another run of the job is live.
    pub overlap: Overlap,
}

impl Demand {
    /// True when a tick of the schedule asks, and not somebody who takes over a tick's run.
    pub(crate) fn is_tick(&self) -> bool {
        self.trigger == Trigger::Schedule && self.tick.is_some()
    }
}
