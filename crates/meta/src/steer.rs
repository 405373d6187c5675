//! What people do to runs: cancel live ones, mark ended ones.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use headworks_domain::RunId;
use headworks_flow::{
    State,
    exec::{RunRow, Standing},
};
use headworks_store::{Tx, values};

use crate::{
    Error, Result, Runs,
    claim::next_numbers,
    pools, read,
    row::{RUN_COLUMNS, RUN_FROM, owner, parsed, time},
};

/// What became of the wish to cancel a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// Its owner was asked to stop it, and does within a second or two.
    Asked,
    /// Nobody was at work on it: it is cancelled.
    Now,
    /// It is over, or there is no such run.
    Over,
}

/// A state that a person has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub marked_at: DateTime<Utc>,
    /// The state before.
    pub was: State,
    /// The state that was set.
    pub state: State,
    /// Why, in the person's words.
    pub reason: String,
    /// The process that did it, as `host:pid`.
    pub by: String,
}

impl Runs {
    /// Cancels runs: asks the owners of those that somebody is at work on, and ends the others.
    pub async fn cancel(&self, runs: &[RunId]) -> Result<Vec<Cancelled>> {
        // The wish first: whoever dies after it leaves a run that is not gone on with.
        let live: HashSet<RunId> = self.wish_cancelled(runs.to_vec()).await?.into_iter().collect();
        let standing = read::standing(self, runs).await?;
        let mut outcomes = Vec::with_capacity(runs.len());
        for (run, standing) in runs.iter().zip(standing) {
            outcomes.push(match standing {
                _ if !live.contains(run) => Cancelled::Over,
                Standing::Abandoned => self.end_abandoned(run).await?,
                _ => Cancelled::Asked,
            });
        }
        Ok(outcomes)
    }

    async fn end_abandoned(&self, run: &RunId) -> Result<Cancelled> {
        let Some(row) = read::show(self, run).await?.map(|detail| detail.run) else { return Ok(Cancelled::Over) };
        let now = self.now().await?;
        if self.store.write(move |tx| Box::pin(async move { end(tx, &row, now).await })).await? {
            return Ok(Cancelled::Now);
        }
        // Somebody has taken it over since we looked: that one is asked.
        let asked = self.wish_cancelled(vec![run.clone()]).await?;
        Ok(if asked.is_empty() { Cancelled::Over } else { Cancelled::Asked })
    }

    /// Ends the runs that were to be cancelled and whose owner is gone before it could.
    pub async fn end_abandoned_wishes(&self) -> Result<usize> {
        let this = self.process().await?;
        let sql = "select r.id, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until from hw_run r
            left join hw_process p on p.id = r.owner where r.finished_at is null and r.wish is not null and r.owner <> $1";
        let judge = self.judge(self.now().await?);
        let mut gone: Vec<RunId> = Vec::new();
        for row in self.store.rows(sql, &values![this]).await? {
            let held = owner(&row, 1)?.is_some_and(|(process, lease)| judge.lives(&process, lease));
            if !held {
                gone.push(parsed(&row, 0)?);
            }
        }
        let outcomes = self.cancel(&gone).await?;
        Ok(outcomes.into_iter().filter(|outcome| *outcome == Cancelled::Now).count())
    }

    /// Sets the state of a run that is over, and keeps who did it and why. Publishes and takes back nothing.
    ///
    /// Errors: `Live` while the run is not over; `Fenced` when it changed meanwhile or there is none.
    pub async fn mark(&self, run: &RunId, state: State, reason: String) -> Result<()> {
        let fenced = || Error::Fenced { run_id: run.clone() };
        let detail = read::show(self, run).await?.ok_or_else(fenced)?;
        if detail.run.finished_at.is_none() {
            return Err(Error::Live { run_id: run.clone() });
        }
        let (now, row, this) = (self.now().await?, detail.run, self.processes.this());
        let by = format!("{}:{}", this.host, this.pid);
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    let fence = next_numbers(tx, 1).await?;
                    let changed = tx
                        .execute(
                            "update hw_run set state = $3, fence = $4 where id = $1 and fence = $2 and finished_at is not null",
                            &values![row.id.as_str(), row.fence, state.as_str(), fence],
                        )
                        .await?;
                    if changed == 0 {
                        return Err(Error::Fenced { run_id: row.id.clone() });
                    }
                    tx.execute(
                        "insert into hw_mark (run_id, marked_at, was, state, reason, by_process) values ($1, $2, $3, $4, $5, $6)
                         on conflict (run_id, marked_at) do update set state = excluded.state, reason = excluded.reason",
                        &values![row.id.as_str(), now, row.state.as_str(), state.as_str(), &reason, &by],
                    )
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// The states that people have set for a run, oldest first.
    pub async fn marks(&self, run: &RunId) -> Result<Vec<Mark>> {
        let sql = "select marked_at, was, state, reason, by_process from hw_mark where run_id = $1 order by marked_at";
        let mark = |row: &headworks_store::Row| {
            Ok(Mark {
                marked_at: time("hw_mark", row.i64(0)?)?,
                was: parsed(row, 1)?,
                state: parsed(row, 2)?,
                reason: row.text(3)?,
                by: row.text(4)?,
            })
        };
        self.store.rows(sql, &values![run.as_str()]).await?.iter().map(mark).collect()
    }

    /// The newest run of every job, by job.
    pub async fn newest_runs(&self) -> Result<Vec<RunRow>> {
        let sql = format!(
            "select {RUN_COLUMNS} from {RUN_FROM} join (select job as newest_job, max(born) as newest_born from hw_run group by job) n
             on n.newest_job = r.job and n.newest_born = r.born order by r.job, r.interval_start desc, r.id"
        );
        let rows = self.store.rows(&sql, &[]).await?;
        let mut runs = read::run_rows(self, &rows).await?;
        // One claim makes many runs; the last interval counts.
        runs.dedup_by(|later, first| later.job == first.job);
        Ok(runs)
    }

    /// The processes that look after the schedules now, as `host:pid`.
    pub async fn schedulers(&self) -> Result<Vec<String>> {
        let alive = self.processes().await?.into_iter();
        Ok(alive.filter(|process| process.role.schedules()).map(|process| process.name).collect())
    }
}

/// Ends a run that nobody is at work on, if it is as it was seen.
async fn end(tx: &mut Tx, row: &RunRow, now: i64) -> Result<bool> {
    let fence = next_numbers(tx, 1).await?;
    let changed = tx
        .execute(
            "update hw_run set state = 'cancelled', fence = $3, finished_at = $4 where id = $1 and fence = $2 and finished_at is null",
            &values![row.id.as_str(), row.fence, fence, now],
        )
        .await?;
    if changed == 0 {
        return Ok(false);
    }
    tx.execute(
        "update hw_task set state = 'cancelled', finished_at = $2 where run_id = $1 and finished_at is null",
        &values![row.id.as_str(), now],
    )
    .await?;
    tx.execute(
        "update hw_attempt set state = 'cancelled', finished_at = $2, error_kind = 'cancelled', error_code = 'FLOW_LOST',
             error = 'the process that ran it is gone' where run_id = $1 and finished_at is null",
        &values![row.id.as_str(), now],
    )
    .await?;
    pools::free_runs(tx, &[&row.id]).await?;
    Ok(true)
}
