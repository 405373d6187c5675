//! What people want of a project, as rows: runs that are to be carried out, and which of them a backfill consists of.
//!
//! A demand is open until it is answered: by the claim of its run, in that claim's transaction, or because there is nothing to do.
//! So a crash loses none, and none is carried out twice however often it is asked for. Answered ones stay as the record of what
//! was asked for and which run came of it.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use headworks_domain::{Ds, JobName, RunId};
use headworks_flow::exec::{Claim, ClaimRequest, Reprocess, Request, Trigger};
use headworks_store::{Component, Home, Migration, Row, Tx, Value, values};
use serde_json::{Map, Value as Json};

use crate::{
    Error, Result, Runs,
    claim::next_numbers,
    row::{interval, params, params_text, parsed, time},
    runs::{places, rows_of_places},
};

pub(crate) const TABLES: Component = Component { name: "demands", home: Home::Platform, migrations: MIGRATIONS };

/// All steps; only ever add to the end.
pub(crate) const MIGRATIONS: &[Migration] =
    &[Migration { version: 1, sql: V1, postgres: None }, Migration { version: 2, sql: V2, postgres: None }];

const V2: &str = "
-- Parameters that stand in for those of the job's header, as a JSON object.
alter table hw_demand add column params TEXT;
";

const V1: &str = "
-- Runs that somebody wants; open while answered_at is null. Ids come from the counter of fences: they only go up.
create table hw_demand (
    id BIGINT NOT NULL PRIMARY KEY,
    -- The stored backfill that it is a piece of.
    backfill BIGINT,
    job TEXT NOT NULL,
    interval_start BIGINT NOT NULL,
    interval_end BIGINT NOT NULL,
    ds TEXT NOT NULL,
    cause TEXT NOT NULL,
    reprocess TEXT NOT NULL,
    made_at BIGINT NOT NULL,
    answered_at BIGINT,
    -- run: run_id carries it out; nothing: it was done already; cancelled.
    answer TEXT,
    run_id TEXT
);
create index hw_demand_open on hw_demand (backfill, id) where answered_at is null;
create index hw_demand_backfill on hw_demand (backfill, id);
create index hw_demand_job on hw_demand (job);

-- Stored backfills. state: running, paused, cancelled, done.
create table hw_backfill (
    id BIGINT NOT NULL PRIMARY KEY,
    jobs TEXT NOT NULL,
    first_ds TEXT NOT NULL,
    last_ds TEXT NOT NULL,
    reprocess TEXT NOT NULL,
    at_once BIGINT NOT NULL,
    state TEXT NOT NULL,
    made_at BIGINT NOT NULL,
    finished_at BIGINT,
    undone_at BIGINT
);

-- States of ended runs that a person has set, with the reason.
create table hw_mark (
    run_id TEXT NOT NULL,
    marked_at BIGINT NOT NULL,
    was TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    by_process TEXT NOT NULL,
    PRIMARY KEY (run_id, marked_at)
);
";

/// A run that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDemand {
    /// The run.
    pub request: Request,
    /// The day of its last partition.
    pub ds: Ds,
    /// What it is for.
    pub trigger: Trigger,
    /// Which ended runs are carried out again.
    pub reprocess: Reprocess,
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Json>,
}

/// An open demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemandRow {
    /// Its number.
    pub id: i64,
    /// The run that is wanted.
    pub request: Request,
    /// What it is for.
    pub trigger: Trigger,
    /// Which ended runs are carried out again.
    pub reprocess: Reprocess,
    /// Parameters that stand in for those of the job's header.
    pub params: Map<String, Json>,
    /// Since when it is wanted.
    pub made_at: DateTime<Utc>,
    /// The stored backfill that it is a piece of.
    pub backfill: Option<i64>,
}

const COLUMNS: &str = "id, job, interval_start, interval_end, cause, reprocess, made_at, backfill, params";

/// The most values in one statement.
const VALUES_MAX: usize = 400;

impl Runs {
    /// Keeps that runs are wanted; whoever looks after the project carries them out. Answers their numbers.
    pub async fn demand(&self, wanted: Vec<NewDemand>) -> Result<Vec<i64>> {
        let now = self.now().await?;
        self.store.write(move |tx| Box::pin(async move { insert(tx, now, None, &wanted).await })).await
    }

    /// Open demands that belong to no backfill, oldest first, at most so many.
    pub async fn open_demands(&self, limit: usize) -> Result<Vec<DemandRow>> {
        let sql = format!(
            "select {COLUMNS} from hw_demand where answered_at is null and backfill is null order by id limit $1"
        );
        self.store.rows(&sql, &values![limit]).await?.iter().map(demand_row).collect()
    }

    /// The open demand for a run, a backfill's included, if there is one.
    pub async fn open_demand(&self, request: &Request) -> Result<Option<DemandRow>> {
        let sql = format!(
            "select {COLUMNS} from hw_demand where job = $1 and interval_start = $2 and interval_end = $3
             and answered_at is null order by id limit 1"
        );
        let (start, end) = (request.interval.start().timestamp_micros(), request.interval.end().timestamp_micros());
        self.store.row(&sql, &values![request.job.as_str(), start, end]).await?.as_ref().map(demand_row).transpose()
    }

    /// The open demands for a job's runs of these days that belong to no backfill; takes them back, if wanted. Says how many.
    pub async fn withdraw(&self, job: &JobName, from: Option<Ds>, to: Option<Ds>, really: bool) -> Result<usize> {
        let mut bound = values![job.as_str()].to_vec();
        let mut which = "job = $1 and backfill is null and answered_at is null".to_owned();
        for (day, sign) in [(from, ">="), (to, "<=")] {
            if let Some(day) = day {
                bound.push(day.to_string().into());
                which.push_str(&format!(" and ds {sign} ${}", bound.len()));
            }
        }
        if !really {
            let row = self.store.row(&format!("select count(*) from hw_demand where {which}"), &bound).await?;
            return Ok(row.map_or(Ok(0), |row| row.i64(0)).map(|n| usize::try_from(n).unwrap_or(0))?);
        }
        bound.push(self.now().await?.into());
        let sql = format!("update hw_demand set answered_at = ${}, answer = 'cancelled' where {which}", bound.len());
        let changed: u64 = self
            .store
            .write(move |tx| Box::pin(async move { Ok::<_, Error>(tx.execute(&sql, &bound).await?) }))
            .await?;
        Ok(usize::try_from(changed).unwrap_or(0))
    }

    /// Forgets what was asked for and answered before an instant, backfills that were over, and marks of runs that are forgotten.
    pub(crate) async fn forget_answered(&self, before: i64) -> Result<()> {
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    for sql in [
                        "delete from hw_demand where answered_at < $1 and (backfill is null
                             or backfill in (select id from hw_backfill where finished_at < $1))",
                        "delete from hw_backfill where finished_at < $1",
                        "delete from hw_mark where marked_at < $1
                             and not exists (select 1 from hw_run r where r.id = hw_mark.run_id)",
                    ] {
                        tx.execute(sql, &values![before]).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    pub(crate) async fn answer_nothing(&self, demands: Vec<i64>) -> Result<()> {
        let now = self.now().await?;
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    for some in demands.chunks(VALUES_MAX) {
                        let sql = format!(
                            "update hw_demand set answered_at = $1, answer = 'nothing' where answered_at is null and id in ({})",
                            places(2, some.len())
                        );
                        let mut bound = vec![Value::from(now)];
                        bound.extend(some.iter().map(|id| Value::from(*id)));
                        tx.execute(&sql, &bound).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

/// Inserts demands, in their order.
pub(crate) async fn insert(tx: &mut Tx, now: i64, backfill: Option<i64>, wanted: &[NewDemand]) -> Result<Vec<i64>> {
    const COLUMNS: usize = 10;
    let count = i64::try_from(wanted.len()).unwrap_or(i64::MAX);
    let first = next_numbers(tx, count).await?;
    let ids: Vec<i64> = (first..first + count).collect();
    for (some, ids) in wanted.chunks(VALUES_MAX / COLUMNS).zip(ids.chunks(VALUES_MAX / COLUMNS)) {
        let bound: Vec<Value> = some
            .iter()
            .zip(ids)
            .flat_map(|(demand, id)| {
                values![
                    *id,
                    backfill,
                    demand.request.job.as_str(),
                    demand.request.interval.start().timestamp_micros(),
                    demand.request.interval.end().timestamp_micros(),
                    demand.ds.to_string(),
                    demand.trigger.as_str(),
                    demand.reprocess.as_str(),
                    now,
                    params_text(&demand.params),
                ]
            })
            .collect();
        let sql = format!(
            "insert into hw_demand (id, backfill, job, interval_start, interval_end, ds, cause, reprocess, made_at, params) values {}",
            rows_of_places(some.len(), COLUMNS)
        );
        tx.execute(&sql, &bound).await?;
    }
    Ok(ids)
}

/// Of the demands behind these claims, those that are still open.
pub(crate) async fn open_among(tx: &mut Tx, wanted: &[ClaimRequest]) -> Result<HashSet<i64>> {
    let asked: Vec<Value> = wanted.iter().filter_map(|w| w.demand).map(Value::from).collect();
    let mut open = HashSet::new();
    if asked.is_empty() {
        return Ok(open);
    }
    let sql = format!("select id from hw_demand where answered_at is null and id in ({})", places(1, asked.len()));
    for row in tx.rows(&sql, &asked).await? {
        open.insert(row.i64(0)?);
    }
    Ok(open)
}

/// Answers the demands of runs that were claimed, as part of the claim.
pub(crate) async fn answer_claimed(
    tx: &mut Tx,
    now: i64,
    claimed: impl Iterator<Item = (&ClaimRequest, &Option<Claim>)>,
) -> Result<()> {
    for (request, claim) in claimed {
        if let (Some(demand), Some(_)) = (request.demand, claim) {
            tx.execute(
                "update hw_demand set answered_at = $2, answer = 'run', run_id = $3 where id = $1",
                &values![demand, now, request.run_id.as_str()],
            )
            .await?;
        }
    }
    Ok(())
}

pub(crate) fn demand_row(row: &Row) -> Result<DemandRow> {
    Ok(DemandRow {
        id: row.i64(0)?,
        request: request(row, 1)?,
        trigger: parsed(row, 4)?,
        reprocess: parsed(row, 5)?,
        made_at: time("hw_demand", row.i64(6)?)?,
        backfill: row.opt_i64(7)?,
        params: params(row, 8)?,
    })
}

/// Reads `job, interval_start, interval_end` from a column on.
pub(crate) fn request(row: &Row, first: usize) -> Result<Request> {
    let job: JobName = parsed(row, first)?;
    Ok(Request { job, interval: interval("hw_demand", row, first + 1)? })
}

pub(crate) fn run_id(row: &Row, column: usize) -> Result<Option<RunId>> {
    row.opt_text(column)?.map_or(Ok(None), |_| parsed(row, column).map(Some))
}
