//! Stored backfills: a plan's pieces are demands, carried out a few at once by whoever looks after the project.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use headworks_domain::{Ds, JobName, RunId};
use headworks_flow::{
    State,
    exec::{Reprocess, Request, Trigger},
};
use headworks_store::{Row, Value, values};
use serde_json::{Map, Value as Json};

use crate::{
    Error, Result, Runs,
    demands::{self, NewDemand, request, run_id},
    row::{opt_time, params, parsed, state, time},
    runs::places,
};

/// How a stored backfill stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackfillState {
    /// It is carried out.
    Running,
    /// No further run of it starts.
    Paused,
    /// It was stopped for good.
    Cancelled,
    /// Every piece was carried out.
    Done,
}

impl BackfillState {
    const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Cancelled, Self::Done];

    /// Its word, as `paused`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }

    /// True when nothing of it will run any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Cancelled | Self::Done)
    }
}

impl fmt::Display for BackfillState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for BackfillState {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| format!("`{s}` is no state of a backfill"))
    }
}

/// A run of a backfill that is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPiece {
    /// The run.
    pub request: Request,
    /// The day of its last partition.
    pub ds: Ds,
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Json>,
}

/// A backfill that is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackfill {
    /// Its jobs.
    pub jobs: Vec<JobName>,
    /// Its first day.
    pub first: Ds,
    /// Its last day, included.
    pub last: Ds,
    /// Which ended runs are carried out again.
    pub reprocess: Reprocess,
    /// So many of its runs are live at once, at most.
    pub at_once: usize,
    /// Its runs, in the order in which they are best begun.
    pub pieces: Vec<NewPiece>,
}

/// A stored backfill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackfillRow {
    /// Its number, from 1.
    pub id: i64,
    /// Its jobs.
    pub jobs: Vec<JobName>,
    /// Its first day.
    pub first: Ds,
    /// Its last day, included.
    pub last: Ds,
    /// Which ended runs are carried out again.
    pub reprocess: Reprocess,
    /// So many of its runs are live at once, at most.
    pub at_once: usize,
    /// How it stands.
    pub state: BackfillState,
    /// When it was made.
    pub made_at: DateTime<Utc>,
    /// When its last piece was over.
    pub finished_at: Option<DateTime<Utc>>,
    /// When what it published was taken back.
    pub undone_at: Option<DateTime<Utc>>,
}

/// What became of a piece so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is still to be asked for.
    Open,
    /// This run carries it out, or did.
    Run {
        /// The run.
        run_id: RunId,
        /// Its state; `None` when its job's memory was wiped.
        state: Option<State>,
        /// Whether it is over.
        over: bool,
    },
    /// It was done already.
    Nothing,
    /// The backfill was cancelled first.
    Cancelled,
}

impl Answer {
    /// True when nothing of the piece will change any more by itself.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Open => false,
            Self::Run { over, .. } => *over,
            Self::Nothing | Self::Cancelled => true,
        }
    }
}

/// A run of a stored backfill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceRow {
    /// The number of its demand.
    pub id: i64,
    /// The run that is wanted.
    pub request: Request,
    /// Its day.
    pub ds: Ds,
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Json>,
    /// What became of it.
    pub answer: Answer,
}

/// How many pieces of a backfill stand where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// All pieces.
    pub total: usize,
    /// Not begun.
    pub open: usize,
    /// With a run that is not over.
    pub live: usize,
    /// Done before.
    pub nothing: usize,
    /// Published.
    pub success: usize,
    /// Failed.
    pub failed: usize,
    /// Stopped, skipped, or never begun because the backfill was cancelled.
    pub cancelled: usize,
}

impl Progress {
    fn add(&mut self, answer: &Answer, count: usize) {
        self.total += count;
        *match answer {
            Answer::Open => &mut self.open,
            Answer::Nothing => &mut self.nothing,
            Answer::Run { over: false, .. } => &mut self.live,
            Answer::Run { state: Some(State::Success), .. } => &mut self.success,
            Answer::Run { state: Some(State::Failed | State::UpstreamFailed), .. } => &mut self.failed,
            Answer::Run { .. } | Answer::Cancelled => &mut self.cancelled,
        } += count;
    }
}

/// How many ids one statement names.
const IDS_MAX: usize = 200;

const PIECES: &str =
    "select d.id, d.job, d.interval_start, d.interval_end, d.ds, d.answer, d.run_id, r.state, r.finished_at, d.params
    from hw_demand d left join hw_run r on r.id = d.run_id";

const UNFINISHED: &str = " and (d.answered_at is null or d.answer = 'run' and r.finished_at is null)";

const COLUMNS: &str = "id, jobs, first_ds, last_ds, reprocess, at_once, state, made_at, finished_at, undone_at";

impl Runs {
    /// Stores a backfill; whoever looks after the project carries it out. Answers its number.
    pub async fn store_backfill(&self, new: NewBackfill) -> Result<i64> {
        let now = self.now().await?;
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    let demands: Vec<NewDemand> = new
                        .pieces
                        .into_iter()
                        .map(|piece| NewDemand {
                            request: piece.request,
                            ds: piece.ds,
                            trigger: Trigger::Backfill,
                            reprocess: new.reprocess,
                            params: piece.params,
                        })
                        .collect();
                    // The counter's row is ours from here to the end of the transaction: nobody takes the same number.
                    crate::claim::next_numbers(tx, 1).await?;
                    let row = tx.row("select coalesce(max(id), 0) + 1 from hw_backfill", &[]).await?;
                    let id = row.map_or(Ok(1), |row| row.i64(0))?;
                    let jobs: Vec<&str> = new.jobs.iter().map(JobName::as_str).collect();
                    tx.execute(
                        "insert into hw_backfill (id, jobs, first_ds, last_ds, reprocess, at_once, state, made_at)
                         values ($1, $2, $3, $4, $5, $6, 'running', $7)",
                        &values![
                            id,
                            jobs.join(" "),
                            new.first.to_string(),
                            new.last.to_string(),
                            new.reprocess.as_str(),
                            new.at_once,
                            now
                        ],
                    )
                    .await?;
                    demands::insert(tx, now, Some(id), &demands).await?;
                    Ok(id)
                })
            })
            .await
    }

    /// The stored backfills, newest first.
    pub async fn backfills(&self) -> Result<Vec<BackfillRow>> {
        let sql = format!("select {COLUMNS} from hw_backfill order by id desc");
        self.store.rows(&sql, &[]).await?.iter().map(backfill_row).collect()
    }

    /// Those that are carried out now, oldest first.
    pub async fn running_backfills(&self) -> Result<Vec<BackfillRow>> {
        let sql = format!("select {COLUMNS} from hw_backfill where state = 'running' order by id");
        self.store.rows(&sql, &[]).await?.iter().map(backfill_row).collect()
    }

    /// One of them.
    pub async fn backfill(&self, id: i64) -> Result<Option<BackfillRow>> {
        let sql = format!("select {COLUMNS} from hw_backfill where id = $1");
        self.store.row(&sql, &values![id]).await?.as_ref().map(backfill_row).transpose()
    }

    /// The pieces of a backfill in their order; only those that are not over, if wanted.
    pub async fn pieces(&self, backfill: i64, unfinished: bool) -> Result<Vec<PieceRow>> {
        let condition = if unfinished { UNFINISHED } else { "" };
        let sql = format!("{PIECES} where d.backfill = $1{condition} order by d.id");
        let rows = self.store.rows(&sql, &values![backfill]).await?;
        let pieces: Vec<PieceRow> = rows.iter().map(piece_row).collect::<Result<_>>()?;
        Ok(pieces.into_iter().filter(|piece| !unfinished || !piece.answer.is_over()).collect())
    }

    /// How many pieces of a backfill stand where.
    pub async fn progress(&self, backfill: i64) -> Result<Progress> {
        let sql = "select d.answer, min(d.run_id), r.state, max(r.finished_at), count(*) from hw_demand d
            left join hw_run r on r.id = d.run_id where d.backfill = $1
            group by d.answer, r.state, r.finished_at is null";
        let mut progress = Progress::default();
        for row in self.store.rows(sql, &values![backfill]).await? {
            progress.add(&answer(&row, 0)?, usize::try_from(row.i64(4)?).unwrap_or(0));
        }
        Ok(progress)
    }

    /// These pieces, as they stand now.
    pub async fn pieces_by_id(&self, ids: &[i64]) -> Result<Vec<PieceRow>> {
        let mut pieces = Vec::with_capacity(ids.len());
        for some in ids.chunks(IDS_MAX) {
            let sql = format!("{PIECES} where d.id in ({})", places(1, some.len()));
            let bound: Vec<Value> = some.iter().map(|id| Value::from(*id)).collect();
            for row in self.store.rows(&sql, &bound).await? {
                pieces.push(piece_row(&row)?);
            }
        }
        Ok(pieces)
    }

    /// Moves a backfill from some states to another; false when it stands in none of them.
    ///
    /// Cancelling answers its open pieces. Its live runs are the caller's to cancel.
    pub async fn move_backfill(&self, id: i64, from: &'static [BackfillState], to: BackfillState) -> Result<bool> {
        let now = self.now().await?;
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    let from: Vec<String> = from.iter().map(|state| format!("'{state}'")).collect();
                    let sql = format!(
                        "update hw_backfill set state = $2, finished_at = $3 where id = $1 and state in ({})",
                        from.join(", ")
                    );
                    let finished = to.is_over().then_some(now);
                    if tx.execute(&sql, &values![id, to.as_str(), finished]).await? == 0 {
                        return Ok(false);
                    }
                    if to == BackfillState::Cancelled {
                        tx.execute(
                            "update hw_demand set answered_at = $2, answer = 'cancelled' where backfill = $1 and answered_at is null",
                            &values![id, now],
                        )
                        .await?;
                    }
                    Ok(true)
                })
            })
            .await
    }

    /// Keeps that what a backfill published was taken back.
    pub async fn note_undone(&self, id: i64) -> Result<()> {
        let now = self.now().await?;
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute("update hw_backfill set undone_at = $2 where id = $1", &values![id, now]).await?;
                    Ok(())
                })
            })
            .await
    }
}

fn backfill_row(row: &Row) -> Result<BackfillRow> {
    let jobs = row.text(1)?;
    let job =
        |name: &str| name.parse().map_err(|error| Error::Row { table: "hw_backfill", reason: format!("{error}") });
    Ok(BackfillRow {
        id: row.i64(0)?,
        jobs: jobs.split(' ').filter(|name| !name.is_empty()).map(job).collect::<Result<_>>()?,
        first: parsed(row, 2)?,
        last: parsed(row, 3)?,
        reprocess: parsed(row, 4)?,
        at_once: usize::try_from(row.i64(5)?).unwrap_or(1),
        state: parsed(row, 6)?,
        made_at: time("hw_backfill", row.i64(7)?)?,
        finished_at: opt_time("hw_backfill", row, 8)?,
        undone_at: opt_time("hw_backfill", row, 9)?,
    })
}

fn piece_row(row: &Row) -> Result<PieceRow> {
    Ok(PieceRow {
        id: row.i64(0)?,
        request: request(row, 1)?,
        ds: parsed(row, 4)?,
        answer: answer(row, 5)?,
        params: params(row, 9)?,
    })
}

/// Reads `answer, run_id`, and the run's `state, finished_at`, from a column on.
fn answer(row: &Row, first: usize) -> Result<Answer> {
    Ok(match (row.opt_text(first)?.as_deref(), run_id(row, first + 1)?) {
        (None, _) => Answer::Open,
        (Some("run"), Some(run_id)) => {
            let known = row.opt_text(first + 2)?.map(|_| state(row, first + 2)).transpose()?;
            // A run that was forgotten has no end of its own, but it is over.
            Answer::Run { run_id, state: known, over: known.is_none() || row.opt_i64(first + 3)?.is_some() }
        }
        (Some("nothing"), _) => Answer::Nothing,
        _ => Answer::Cancelled,
    })
}
