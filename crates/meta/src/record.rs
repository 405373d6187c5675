//! Keeping the states of runs, under their fences.

use headworks_flow::{
    exec::{Kept, RunRecord},
    machine::TaskRecord,
};
use headworks_store::{Dialect, Tx, Value, values};

use crate::{
    Error, Result, Runs, pools,
    row::{failure_values, micros_of, state},
    runs::rows_of_places,
};

/// The most tasks in one statement: a run whose tasks go through lists has thousands.
const TASKS_AT_ONCE: usize = 64;

/// Keeps a run's state as part of another transaction, as the one that publishes its partitions.
///
/// It should come first in that transaction: the run's row is what orders two owners. Errors: `Fenced` when the run has another
/// owner or is over; then the transaction must be undone.
///
/// On PostgreSQL it locks the counter of fences first, as a claim does. A group of work holds claims and publishes in any order:
/// with the lake's lock taken after the counter by all, two processes never wait for each other.
pub async fn finish_in(tx: &mut Tx, record: &RunRecord) -> Result<()> {
    if tx.dialect() == Dialect::Postgres {
        tx.execute("select value from hw_fence where id = 1 for update", &[]).await?;
    }
    if keep(tx, record).await? { Ok(()) } else { Err(Error::Fenced { run_id: record.run_id.clone() }) }
}

pub(crate) async fn record(runs: &Runs, records: Vec<RunRecord>) -> Result<Vec<Kept>> {
    runs.store
        .write(move |tx| {
            Box::pin(async move {
                let mut kept = Vec::with_capacity(records.len());
                for record in &records {
                    kept.push(if keep(tx, record).await? { Kept::Yes } else { why_not(tx, record).await? });
                }
                Ok(kept)
            })
        })
        .await
}

/// Writes a run, its tasks and its attempts; false when the fence is not the run's or the run is over.
async fn keep(tx: &mut Tx, record: &RunRecord) -> Result<bool> {
    let mut bound = values![
        record.run_id.as_str(),
        record.fence,
        record.state.as_str(),
        record.attempt,
        micros_of(record.started_at),
        micros_of(record.finished_at),
        record.rows,
        record.bytes
    ]
    .to_vec();
    bound.extend(failure_values(record.failure.as_ref()));
    let changed = tx
        .execute(
            "update hw_run set state = $3, attempt = $4, started_at = coalesce(started_at, $5), finished_at = $6, row_count = $7,
                 bytes = $8, error_kind = $9, error_code = $10, error = $11, hint = $12
             where id = $1 and fence = $2 and finished_at is null",
            &bound,
        )
        .await?;
    if changed == 0 {
        return Ok(false);
    }
    keep_tasks(tx, record).await?;
    keep_attempts(tx, record).await?;
    if record.pooled && record.finished_at.is_some() {
        pools::free_runs(tx, &[&record.run_id]).await?;
    }
    Ok(true)
}

async fn keep_tasks(tx: &mut Tx, record: &RunRecord) -> Result<()> {
    let tasks: Vec<(usize, &TaskRecord)> = record.tasks.iter().enumerate().collect();
    for some in tasks.chunks(TASKS_AT_ONCE) {
        let sql = format!(
            "insert into hw_task (run_id, place, name, state, started_at, finished_at) values {}
             on conflict (run_id, place) do update set state = excluded.state, started_at = excluded.started_at,
                 finished_at = excluded.finished_at",
            rows_of_places(some.len(), 6)
        );
        let bound: Vec<Value> = some
            .iter()
            .flat_map(|(place, task)| {
                values![
                    record.run_id.as_str(),
                    *place,
                    task.name.as_str(),
                    task.state.as_str(),
                    micros_of(task.started_at),
                    micros_of(task.finished_at)
                ]
            })
            .collect();
        tx.execute(&sql, &bound).await?;
    }
    Ok(())
}

async fn keep_attempts(tx: &mut Tx, record: &RunRecord) -> Result<()> {
    for attempt in &record.attempts {
        let mut bound = values![
            record.run_id.as_str(),
            attempt.attempt,
            attempt.state.as_str(),
            attempt.started_at.timestamp_micros(),
            micros_of(attempt.finished_at),
            &attempt.log_path,
            attempt.log_bytes,
            attempt.task.as_ref().map(|task| task.to_string())
        ]
        .to_vec();
        bound.extend(failure_values(attempt.failure.as_ref()));
        tx.execute(
            "insert into hw_attempt (run_id, attempt, state, started_at, finished_at, log_path, log_bytes, task, error_kind,
                 error_code, error, hint)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             on conflict (run_id, attempt) do update set state = excluded.state, finished_at = excluded.finished_at,
                 log_bytes = excluded.log_bytes, error_kind = excluded.error_kind, error_code = excluded.error_code,
                 error = excluded.error, hint = excluded.hint",
            &bound,
        )
        .await?;
    }
    Ok(())
}

async fn why_not(tx: &mut Tx, record: &RunRecord) -> Result<Kept> {
    let sql = "select state, fence from hw_run where id = $1 and finished_at is not null";
    Ok(match tx.row(sql, &values![record.run_id.as_str()]).await? {
        Some(row) if row.i64(1)? == record.fence => Kept::Over(state(&row, 0)?),
        _ => Kept::Fenced,
    })
}
