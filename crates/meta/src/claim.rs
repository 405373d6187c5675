//! Making runs one's own.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use headworks_domain::TableName;
use headworks_flow::{
    Failure,
    exec::{Claim, ClaimRequest, Release, Seen, passed_over},
};
use headworks_store::{Dialect, Tx, Value, values};

use crate::{
    Result, Runs, demands,
    jobs::move_cursors,
    placement::{pools_text, zone_text},
    pools,
    read::spans,
    row::{failure_values, params_text, parsed},
    runs::{places, rows_of_places, texts},
};

/// The most values in one statement. SQLite would take 32,766, but binding looks each one's name up in a list.
const VALUES_MAX: usize = 400;

pub(crate) async fn claim(runs: &Runs, wanted: Vec<ClaimRequest>) -> Result<Vec<Option<Claim>>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let process = runs.process().await?.to_owned();
    let now = runs.clock.now().timestamp_micros();
    runs.store.write(move |tx| Box::pin(async move { claim_in(tx, &process, now, &wanted).await })).await
}

async fn claim_in(tx: &mut Tx, process: &str, now: i64, wanted: &[ClaimRequest]) -> Result<Vec<Option<Claim>>> {
    let fence = next_numbers(tx, 1).await?;
    let open = demands::open_among(tx, wanted).await?;
    let may_claim = |w: &ClaimRequest| w.demand.is_none_or(|demand| open.contains(&demand));
    let mut claims: Vec<Option<Claim>> = vec![None; wanted.len()];
    let place_of = |id: &str| wanted.iter().position(|w| w.run_id.as_str() == id);
    let made_by = Maker { process, now, fence };
    let new: Vec<&ClaimRequest> = wanted.iter().filter(|w| w.taken_over().is_none() && may_claim(w)).collect();
    let (yielding, others): (Vec<_>, Vec<_>) = new.into_iter().partition(|w| w.yields);
    let mut made = made_by.insert(tx, &others, None).await?;
    let mut skipped: Vec<&ClaimRequest> = Vec::new();
    for request in yielding {
        match live_beside(tx, request).await? {
            None => made.extend(made_by.insert(tx, &[request], None).await?),
            Some(reason) => {
                if !made_by.insert(tx, &[request], Some(&reason)).await?.is_empty() {
                    skipped.push(request);
                }
            }
        }
    }
    for id in made {
        if let Some(place) = place_of(&id) {
            claims[place] = Some(Claim { fence, attempt: 1 });
        }
    }
    for (place, request) in wanted.iter().enumerate() {
        if let Some(seen) = request.taken_over().filter(|_| may_claim(request)) {
            claims[place] = take_over(tx, process, fence, seen, request).await?;
        }
    }
    let taken: Vec<&ClaimRequest> =
        wanted.iter().zip(&claims).filter(|(w, c)| w.taken_over().is_some() && c.is_some()).map(|(w, _)| w).collect();
    if !taken.is_empty() {
        let sql = format!("delete from hw_task where run_id in ({})", places(1, taken.len()));
        tx.execute(&sql, &texts(taken.iter().map(|w| &w.run_id))).await?;
        pools::free_runs(tx, &taken.iter().map(|w| &w.run_id).collect::<Vec<_>>()).await?;
        // Whoever ran them is gone or fenced off: their attempts have no end of their own.
        let sql = format!(
            "update hw_attempt set state = 'cancelled', finished_at = ${0}, error_kind = 'cancelled', error_code = 'FLOW_LOST',
                 error = 'the process that ran it is gone' where finished_at is null and run_id in ({1})",
            taken.len() + 1,
            places(1, taken.len())
        );
        let mut bound = texts(taken.iter().map(|w| &w.run_id));
        bound.push(now.into());
        tx.execute(&sql, &bound).await?;
    }
    insert_tasks(tx, wanted.iter().zip(&claims).filter(|(_, c)| c.is_some()).map(|(w, _)| w)).await?;
    let mut ticks: HashMap<&str, DateTime<Utc>> = HashMap::new();
    let claimed = wanted.iter().zip(&claims).filter(|(_, claim)| claim.is_some()).map(|(request, _)| request);
    for request in claimed.chain(skipped) {
        if let Some(tick) = request.tick {
            let newest = ticks.entry(request.job.as_str()).or_insert(tick);
            *newest = tick.max(*newest);
        }
    }
    move_cursors(tx, ticks).await?;
    demands::answer_claimed(tx, now, wanted.iter().zip(&claims)).await?;
    // When the reply to an earlier try was lost its claims stand already.
    let lost: Vec<&ClaimRequest> = wanted.iter().zip(&claims).filter(|(_, c)| c.is_none()).map(|(w, _)| w).collect();
    if !lost.is_empty() {
        let sql = format!(
            "select id, fence, attempt from hw_run where owner = $1 and finished_at is null and id in ({})",
            places(2, lost.len())
        );
        let mut bound = vec![Value::from(process)];
        bound.extend(texts(lost.iter().map(|w| &w.run_id)));
        for row in tx.rows(&sql, &bound).await? {
            if let Some(place) = place_of(&row.text(0)?) {
                claims[place] = Some(Claim { fence: row.i64(1)?, attempt: u32::try_from(row.i64(2)?).unwrap_or(1) });
            }
        }
    }
    Ok(claims)
}

/// Takes so many numbers from the counter of fences, and answers the first.
pub(crate) async fn next_numbers(tx: &mut Tx, count: i64) -> Result<i64> {
    let sql = "update hw_fence set value = value + $1 where id = 1 returning value";
    let row = tx.row(sql, &values![count]).await?;
    Ok(row.map_or(Ok(0), |row| row.i64(0))? - count + 1)
}

/// Who makes runs, when, and under which fence.
struct Maker<'p> {
    process: &'p str,
    now: i64,
    fence: i64,
}

impl Maker<'_> {
    /// Inserts new runs, or such that were skipped for a reason, and returns the ids of those that are as they were seen and had no
    /// live run yet.
    async fn insert(&self, tx: &mut Tx, wanted: &[&ClaimRequest], skipped: Option<&Failure>) -> Result<Vec<String>> {
        const COLUMNS: usize = 26;
        let newest = newest_runs(tx, wanted).await?;
        let is_new = |w: &&&ClaimRequest| {
            let newest = newest.get(&(
                w.job.as_str(),
                w.interval.start().timestamp_micros(),
                w.interval.end().timestamp_micros(),
            ));
            newest.map(String::as_str) == w.seen.as_ref().map(|seen| seen.run_id.as_str())
        };
        let new: Vec<&ClaimRequest> = wanted.iter().filter(is_new).copied().collect();
        let mut made = Vec::new();
        for some in new.chunks(VALUES_MAX / COLUMNS) {
            let mut bound: Vec<Value> = Vec::with_capacity(some.len() * COLUMNS);
            for request in some {
                bound.extend(values![
                    request.run_id.as_str(),
                    request.job.as_str(),
                    &request.job_version,
                    request.table.as_ref().map_or("", TableName::as_str),
                    request.interval.start().timestamp_micros(),
                    request.interval.end().timestamp_micros(),
                    request.ds.to_string(),
                    request.partitions.as_ref().map(|(first, _)| first.to_string()),
                    request.partitions.as_ref().map(|(_, last)| last.to_string()),
                    self.fence,
                    if skipped.is_some() { "skipped" } else { "waiting" },
                    i64::from(skipped.is_none()),
                    self.fence,
                    self.process,
                    self.now,
                    0,
                    0,
                    skipped.map(|_| self.now),
                    request.trigger.as_str(),
                    zone_text(request.placement.zone.as_ref()),
                    pools_text(&request.placement.pools),
                    params_text(&request.params),
                ]);
                bound.extend(failure_values(skipped));
            }
            let sql = format!(
                "insert into hw_run (id, job, job_version, table_name, interval_start, interval_end, ds, first_partition,
                     last_partition, born, state, attempt, fence, owner, created_at, row_count, bytes, finished_at, cause,
                     zone, pools, params, error_kind, error_code, error, hint)
                 values {} on conflict do nothing returning id",
                rows_of_places(some.len(), COLUMNS)
            );
            for row in tx.rows(&sql, &bound).await? {
                made.push(row.text(0)?);
            }
        }
        Ok(made)
    }
}

/// Why a run that yields is skipped: another run of its job, over another interval, is live.
async fn live_beside(tx: &mut Tx, request: &ClaimRequest) -> Result<Option<Failure>> {
    let sql = "select id, ds from hw_run where job = $1 and finished_at is null and not (interval_start = $2 and interval_end = $3)
        order by interval_end, id limit 1";
    let (start, end) = (request.interval.start().timestamp_micros(), request.interval.end().timestamp_micros());
    let row = tx.row(sql, &values![request.job.as_str(), start, end]).await?;
    row.map(|row| Ok(passed_over(&request.run_id, &parsed(&row, 0)?, &row.text(1)?))).transpose()
}

/// The newest run of each job and interval. Nobody can make another before this transaction ends: they all need the counter.
async fn newest_runs<'w>(tx: &mut Tx, wanted: &[&'w ClaimRequest]) -> Result<HashMap<(&'w str, i64, i64), String>> {
    let mut newest = HashMap::new();
    for (job, first, last) in spans(wanted.iter().map(|request| (&request.job, &request.interval))) {
        let job = job.as_str();
        let sql = "select interval_start, interval_end, id from hw_run
            where job = $1 and interval_start >= $2 and interval_start <= $3 order by born, id";
        for row in tx.rows(sql, &values![job, first, last]).await? {
            newest.insert((job, row.i64(0)?, row.i64(1)?), row.text(2)?);
        }
    }
    Ok(newest)
}

/// Takes a run whose row still is as it was seen, and whose owner has given no sign of life since.
async fn take_over(
    tx: &mut Tx,
    process: &str,
    fence: i64,
    seen: &Seen,
    request: &ClaimRequest,
) -> Result<Option<Claim>> {
    // An owner that stood still and renews its lease asks after it which runs it lost: its renewal must not fall between this look at
    // the lease and the commit. One that is on its way counts as made, for who waited for it here could wait for ever.
    let held = match tx.dialect() {
        Dialect::Postgres => "for share skip locked",
        Dialect::Sqlite => "",
    };
    let sql = format!(
            "update hw_run set fence = $3, owner = $4, job_version = $5, table_name = $6, first_partition = $7, last_partition = $8, params = $9,
                 state = 'waiting', attempt = attempt + 1, finished_at = null, row_count = 0, bytes = 0,
                 error_kind = null, error_code = null, error = null, hint = null,
                 wish = case when finished_at is null then wish end, zone = $10, pools = $11
             where id = $1 and fence = $2 and (finished_at is null or state <> 'success')
                 and not exists (select 1 from hw_run other where other.job = hw_run.job and other.id <> hw_run.id
                     and other.interval_start = hw_run.interval_start and other.interval_end = hw_run.interval_end
                     and other.finished_at is null)
                 and (finished_at is not null or not exists (select 1 from hw_process p where p.id = hw_run.owner)
                     or exists (select 1 from hw_process p where p.id = hw_run.owner and p.lease_until <= $12 {held}))
             returning attempt");
    let row = tx
        .row(
            &sql,
            &values![
                request.run_id.as_str(),
                seen.fence,
                fence,
                process,
                &request.job_version,
                request.table.as_ref().map_or("", TableName::as_str),
                request.partitions.as_ref().map(|(first, _)| first.to_string()),
                request.partitions.as_ref().map(|(_, last)| last.to_string()),
                params_text(&request.params),
                zone_text(request.placement.zone.as_ref()),
                pools_text(&request.placement.pools),
                seen.lease_until.map_or(0, |until| until.timestamp_micros()),
            ],
        )
        .await?;
    row.map(|row| Ok(Claim { fence, attempt: u32::try_from(row.i64(0)?).unwrap_or(1) })).transpose()
}

/// Leaves runs without an owner, for whoever claims them first.
pub(crate) async fn release(runs: &Runs, released: Vec<Release>) -> Result<()> {
    runs.store
        .write(move |tx| {
            Box::pin(async move {
                for Release { run_id, fence, priority } in released {
                    let sql = "update hw_run set owner = '', state = 'ready', priority = $3
                        where id = $1 and fence = $2 and finished_at is null";
                    tx.execute(sql, &values![run_id.as_str(), fence, i64::from(priority)]).await?;
                }
                Ok(())
            })
        })
        .await
}

async fn insert_tasks<'a>(tx: &mut Tx, claimed: impl Iterator<Item = &'a ClaimRequest>) -> Result<()> {
    let rows: Vec<(&str, usize, &str)> = claimed
        .flat_map(|w| w.tasks.iter().enumerate().map(|(place, name)| (w.run_id.as_str(), place, name.as_str())))
        .collect();
    for some in rows.chunks(VALUES_MAX / 4) {
        let sql = format!("insert into hw_task (run_id, place, name, state) values {}", rows_of_places(some.len(), 4));
        let bound: Vec<Value> =
            some.iter().flat_map(|(run, place, name)| values![*run, *place, *name, "waiting"]).collect();
        tx.execute(&sql, &bound).await?;
    }
    Ok(())
}
