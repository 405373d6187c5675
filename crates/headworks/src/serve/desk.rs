//! Where wishes come in: demands and stored backfills, kept as rows by other commands, become runs.
//!
//! It may ask for the same demand more than once: the claim of a demand's run answers the demand in one transaction, and claims
//! nothing when it was answered before.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use headworks_flow::{
    Project,
    backfill::{self, Piece},
    exec::{Ask, Demand, Partition, Partitions, Planner, Reprocess, Request, RunShape, Trigger},
};
use headworks_meta::{Answer, BackfillRow, BackfillState, PieceRow, Runs};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::live::LiveProject;

/// The longest pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The shortest pause, however much is committed; at most a twentieth of a core goes into looking.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_FACTOR: u32 = 20;

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

/// What it has in mind.
#[derive(Default)]
struct Mind {
    /// When each open demand was asked for last.
    asked: HashMap<i64, Instant>,
    /// What pieces make and need, with the project they were planned for.
    planned: HashMap<i64, (Vec<Partition>, Vec<Partition>)>,
    planned_for: Option<Arc<Project>>,
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
            if mind.asked.insert(row.id, now).is_none() {
                demands.push(demand(row.id, row.request, row.trigger, row.reprocess));
            }
        }
        for backfill in self.runs.running_backfills().await? {
            self.go_on(&backfill, mind, now, &mut demands).await?;
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
        let rows = self.runs.pieces(backfill.id, true).await?;
        if rows.is_empty() {
            self.runs.move_backfill(backfill.id, &[BackfillState::Running], BackfillState::Done).await?;
            tracing::info!(backfill = backfill.id, "a backfill is done");
            return Ok(());
        }
        let pieces = self.pieces(&rows, mind);
        let asked = backfill::questions(&pieces);
        let (published, _) = self.partitions.published(&asked).await.map_err(crate::fail::Carried::from)?;
        let next = backfill::next(&pieces, &published.into_iter().collect::<HashSet<_>>(), backfill.at_once);
        let chosen: HashSet<i64> = next.ask.into_iter().collect();
        for row in rows.into_iter().filter(|row| chosen.contains(&row.id)) {
            mind.asked.insert(row.id, now);
            demands.push(demand(row.id, row.request, Trigger::Backfill, backfill.reprocess));
        }
        Ok(())
    }

    /// The pieces as the decision sees them. One that was asked for just now counts as live.
    fn pieces(&self, rows: &[PieceRow], mind: &mut Mind) -> Vec<Piece> {
        let project = self.project.current();
        if mind.planned_for.as_ref().is_none_or(|planned| !Arc::ptr_eq(planned, &project)) {
            mind.planned.clear();
            mind.planned_for = Some(project);
        }
        let ids: HashSet<i64> = rows.iter().map(|row| row.id).collect();
        if mind.planned.len() > ids.len() + backfill::WINDOW {
            mind.planned.retain(|id, _| ids.contains(id));
        }
        let asked = |row: &PieceRow| mind.asked.contains_key(&row.id);
        let live: Vec<bool> = rows.iter().map(|row| row.answer != Answer::Open || asked(row)).collect();
        pieces_of(rows, &live, self.planner.as_ref(), &mut mind.planned)
    }
}

/// What pieces make and need, planned once each.
pub(crate) fn pieces_of(
    rows: &[PieceRow],
    live: &[bool],
    planner: &dyn Planner,
    planned: &mut HashMap<i64, (Vec<Partition>, Vec<Partition>)>,
) -> Vec<Piece> {
    rows.iter()
        .zip(live)
        .map(|(row, live)| {
            let (makes, needs) = planned.entry(row.id).or_insert_with(|| plan(planner, &row.request)).clone();
            Piece { id: row.id, live: *live, makes, needs }
        })
        .collect()
}

/// What a run would make and need; one that cannot be planned says so when it is carried out.
fn plan(planner: &dyn Planner, request: &Request) -> (Vec<Partition>, Vec<Partition>) {
    let id = "backfill".parse().expect("a plain word is an id");
    let Ok(shape) = planner.plan(request, &id) else { return (Vec::new(), Vec::new()) };
    let makes = shape.partitions.iter().map(|key| Partition::new(shape.table.clone(), key.clone())).collect();
    let needs = shape.waits.iter().flat_map(RunShape::partitions_of).collect();
    (makes, needs)
}

fn demand(id: i64, request: Request, trigger: Trigger, reprocess: Reprocess) -> Demand {
    // What a person wants queues behind other runs of the job, whatever its schedule does with overlaps.
    Demand { request, trigger, tick: None, demand: Some(id), reprocess, overlap: headworks_flow::Overlap::Queue }
}
