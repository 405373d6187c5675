//! Where wishes come in: demands and stored backfills, kept as rows by other commands, become runs.
//!
//! It may ask for the same demand more than once: the claim of a demand's run answers the demand in one transaction, and claims
//! nothing when it was answered before.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use headworks_flow::{
    Project,
    backfill::{self, Piece},
    exec::{Ask, Demand, Given, Partition, Partitions, Planner, Reprocess, Request, RunShape, Trigger},
};
use headworks_meta::{Answer, BackfillRow, BackfillState, PieceRow, Runs};
use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::live::LiveProject;

/// The longest pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The shortest pause, however much is committed; looking takes a fifth of a core at most.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_FACTOR: u32 = 4;

/// All pieces of a backfill are read again after so many times the time that it took; in between, those that were asked for.
const READ_FACTOR: u32 = 50;

/// A demand that was asked for and is still open after so long is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The most demands asked for at once.
const DEMANDS_MAX: usize = 1_000;

/// The part that reads what people want.
pub(super) struct Desk {
    pub(super) runs: Arc<Runs>,
    pub(super) project: LiveProject,
    pub(super) planner: Arc<dyn Planner>,
    pub(super) partitions: Arc<dyn Partitions>,
    pub(super) ask: mpsc::Sender<Ask>,
}

/// What a piece makes and what it needs.
pub(crate) type Planned = (Arc<[Partition]>, Arc<[Partition]>);

/// What it has in mind.
#[derive(Default)]
struct Mind {
    /// When each open demand was asked for last.
    asked: HashMap<i64, Instant>,
    /// The backfills that are carried out.
    stored: HashMap<i64, Stored>,
    /// The pieces that were planned, with the project they were planned for.
    planned: HashMap<i64, Planned>,
    planned_for: Option<Arc<Project>>,
}

/// What is known of a backfill.
struct Stored {
    /// The pieces that are not over.
    pieces: BTreeMap<i64, PieceRow>,
    /// When all are read again.
    read_again: Instant,
    /// Inputs that were found published since all were read.
    published: HashSet<Partition>,
}

impl Desk {
    /// Looks until `stop` turns true.
    pub(super) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.partitions.changes();
        let mut mind = Mind::default();
        loop {
            let started = Instant::now();
            match self.look(&mut mind).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "what people want could not be read"),
            }
            let earliest = Instant::now() + PAUSE.max(started.elapsed() * PAUSE_FACTOR).min(LOOK_EVERY);
            tokio::select! {
                () = sleep_until(started + LOOK_EVERY) => {}
                Ok(()) = changes.changed() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            tokio::select! {
                () = sleep_until(earliest) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// One look; false when the executor is gone.
    async fn look(&self, mind: &mut Mind) -> anyhow::Result<bool> {
        let now = Instant::now();
        mind.asked.retain(|_, asked| now - *asked < ASK_AGAIN);
        let mut demands: Vec<Demand> = Vec::new();
        for row in self.runs.open_demands(DEMANDS_MAX).await? {
            if let Entry::Vacant(entry) = mind.asked.entry(row.id) {
                entry.insert(now);
                demands.push(demand(row.id, row.request, row.trigger, row.reprocess, row.params));
            }
        }
        let backfills = self.runs.running_backfills().await?;
        mind.stored.retain(|id, _| backfills.iter().any(|backfill| backfill.id == *id));
        if backfills.is_empty() {
            mind.planned.clear();
        }
        for backfill in backfills {
            self.go_on(&backfill, mind, now, &mut demands).await?;
        }
        let pieces: usize = mind.stored.values().map(|stored| stored.pieces.len()).sum();
        if mind.planned.len() > pieces {
            let stored = &mind.stored;
            mind.planned.retain(|id, _| stored.values().any(|stored| stored.pieces.contains_key(id)));
        }
        Ok(demands.is_empty() || self.ask.send(Ask::Runs(demands)).await.is_ok())
    }

    /// Asks for the next pieces of a backfill, or ends it.
    async fn go_on(
        &self,
        backfill: &BackfillRow,
        mind: &mut Mind,
        now: Instant,
        demands: &mut Vec<Demand>,
    ) -> anyhow::Result<()> {
        let mut stored = match mind.stored.remove(&backfill.id) {
            Some(stored) if now < stored.read_again => self.refreshed(stored, mind).await?,
            _ => self.read(backfill.id).await?,
        };
        if stored.pieces.is_empty() {
            // As far as it was read; another process may know of more.
            if self.runs.pieces(backfill.id, true).await?.is_empty() {
                self.runs.move_backfill(backfill.id, &[BackfillState::Running], BackfillState::Done).await?;
                tracing::info!(backfill = backfill.id, "a backfill is done");
            }
            return Ok(());
        }
        let pieces = self.pieces(&stored.pieces, mind);
        let mut asked = backfill::questions(&pieces);
        asked.retain(|partition| !stored.published.contains(partition));
        let (published, _) = self.partitions.published(&asked).await.map_err(crate::fail::Carried::from)?;
        stored.published.extend(published);
        let next = backfill::next(&pieces, &stored.published, backfill.at_once);
        for id in next.ask {
            if let Some(row) = stored.pieces.get(&id) {
                mind.asked.insert(id, now);
                demands.push(demand(
                    id,
                    row.request.clone(),
                    Trigger::Backfill,
                    backfill.reprocess,
                    row.params.clone(),
                ));
            }
        }
        mind.stored.insert(backfill.id, stored);
        Ok(())
    }

    /// Reads all pieces that are not over.
    async fn read(&self, backfill: i64) -> anyhow::Result<Stored> {
        let started = Instant::now();
        let rows = self.runs.pieces(backfill, true).await?;
        let pause = (started.elapsed() * READ_FACTOR).max(LOOK_EVERY);
        Ok(Stored {
            pieces: rows.into_iter().map(|row| (row.id, row)).collect(),
            read_again: Instant::now() + pause,
            published: HashSet::new(),
        })
    }

    /// Reads the pieces again that were asked for.
    async fn refreshed(&self, mut stored: Stored, mind: &Mind) -> anyhow::Result<Stored> {
        let is_moving = |row: &&PieceRow| row.answer != Answer::Open || mind.asked.contains_key(&row.id);
        let moving: Vec<i64> = stored.pieces.values().filter(is_moving).map(|row| row.id).collect();
        for row in self.runs.pieces_by_id(&moving).await? {
            if row.answer.is_over() {
                stored.pieces.remove(&row.id);
            } else {
                stored.pieces.insert(row.id, row);
            }
        }
        Ok(stored)
    }

    /// The pieces as the decision sees them. One that was asked for just now counts as live.
    fn pieces(&self, rows: &BTreeMap<i64, PieceRow>, mind: &mut Mind) -> Vec<Piece> {
        let project = self.project.current();
        if mind.planned_for.as_ref().is_none_or(|planned| !Arc::ptr_eq(planned, &project)) {
            mind.planned.clear();
            mind.planned_for = Some(project);
        }
        let asked = &mind.asked;
        let is_live = |row: &PieceRow| row.answer != Answer::Open || asked.contains_key(&row.id);
        pieces_of(rows.values(), is_live, self.planner.as_ref(), &mut mind.planned)
    }
}

/// What pieces make and need, planned once each.
pub(crate) fn pieces_of<'r>(
    rows: impl Iterator<Item = &'r PieceRow>,
    is_live: impl Fn(&PieceRow) -> bool,
    planner: &dyn Planner,
    planned: &mut HashMap<i64, Planned>,
) -> Vec<Piece> {
    rows.map(|row| {
        let (makes, needs) = planned.entry(row.id).or_insert_with(|| plan(planner, row)).clone();
        Piece { id: row.id, live: is_live(row), makes, needs }
    })
    .collect()
}

/// What a run would make and need; one that cannot be planned says so when it is carried out.
fn plan(planner: &dyn Planner, row: &PieceRow) -> Planned {
    let id = "backfill".parse().expect("a plain word is an id");
    let given = Given { params: row.params.clone(), source: None };
    let Ok(shape) = planner.plan(&row.request, &id, &given) else { return (Arc::from([]), Arc::from([])) };
    let makes = shape.own_partitions().collect();
    let needs = shape.waits.iter().flat_map(RunShape::partitions_of).collect();
    (makes, needs)
}

fn demand(id: i64, request: Request, trigger: Trigger, reprocess: Reprocess, params: Map<String, Value>) -> Demand {
    // What a person wants queues behind other runs of the job, whatever its schedule does with overlaps.
    let overlap = headworks_flow::Overlap::Queue;
    Demand { request, trigger, params, tick: None, demand: Some(id), reprocess, overlap }
}
