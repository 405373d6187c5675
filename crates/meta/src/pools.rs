//! Slots of named pools, which all processes of a project share.
//!
//! A process holds its slots by rows under numbers of its own. They count while its lease runs: who is gone holds none, and who
//! stood still and comes back holds what it had before anybody takes more. A row goes when its task is over, with the end of its
//! run, or when the run is taken over.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use headworks_domain::{Ds, JobName, RunId};
use headworks_flow::exec::{JOB_POOLS, SlotRequest, Slots};
use headworks_store::{Dialect, Row, Tx, Value, values};

use crate::{
    Result, Runs,
    process::Judge,
    row::{owner, parsed, time},
    runs::{LEASE, micros, places},
};

/// The most slots given back in one statement.
const GIVEN_AT_ONCE: usize = 400;

/// A named pool, over all processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow {
    /// Its name.
    pub name: String,
    /// How many slots it has.
    pub slots: usize,
    /// Who has them, oldest first.
    pub holders: Vec<Holder>,
}

impl PoolRow {
    /// How many slots are taken; more than there are for as long as it was made smaller under them.
    pub fn taken(&self) -> usize {
        self.holders.iter().map(|holder| holder.slots.min(self.slots)).sum()
    }
}

/// A task at work that has slots of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process, as `host:pid`.
    pub process: String,
    /// Its run.
    pub run_id: RunId,
    /// The run's job.
    pub job: JobName,
    /// The run's day.
    pub ds: Ds,
    /// The task, the first of its segment.
    pub task: String,
    /// How many slots it asked for.
    pub slots: usize,
    /// Since when.
    pub since: DateTime<Utc>,
}

impl Runs {
    /// Keeps the sizes of pools as `headworks.toml` has them, and of those of jobs as their files do, for all processes: who has read the file last is right. A pool that the
    /// file does not name any more keeps its size, for the tasks that were planned with it.
    pub async fn say_pools(&self, sizes: &BTreeMap<String, u32>) -> Result<()> {
        let rows = self.store.rows("select name, slots from hw_pool", &[]).await?;
        let known: HashMap<String, i64> =
            rows.iter().map(|row| Ok((row.text(0)?, row.i64(1)?))).collect::<Result<_>>()?;
        let changed: Vec<(String, i64)> = sizes
            .iter()
            .map(|(name, slots)| (name.clone(), i64::from(*slots)))
            .filter(|(name, slots)| known.get(name) != Some(slots))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    for (name, slots) in changed {
                        let sql = "insert into hw_pool (name, slots) values ($1, $2)
                            on conflict (name) do update set slots = excluded.slots";
                        tx.execute(sql, &values![name, slots]).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// All named pools that were ever said, with who has their slots.
    pub async fn pools(&self) -> Result<Vec<PoolRow>> {
        let judge = self.judge(self.now().await?);
        let mut pools: BTreeMap<String, PoolRow> = BTreeMap::new();
        for row in self.store.rows("select name, slots from hw_pool", &[]).await? {
            let (name, slots) = (row.text(0)?, count(row.i64(1)?));
            if name.starts_with(JOB_POOLS) {
                continue;
            }
            pools.insert(name.clone(), PoolRow { name, slots, holders: Vec::new() });
        }
        let sql = "select s.pool, s.run_id, r.job, r.ds, s.task, s.slots, s.taken_at, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until
            from hw_slot s join hw_run r on r.id = s.run_id join hw_process p on p.id = s.owner order by s.taken_at, s.number";
        for row in self.store.rows(sql, &[]).await? {
            let Some((process, lease)) = owner(&row, 7)? else { continue };
            let Some(pool) = pools.get_mut(&row.text(0)?).filter(|_| judge.lives(&process, lease)) else {
                continue;
            };
            pool.holders.push(Holder {
                process: format!("{}:{}", process.host, process.pid),
                run_id: parsed(&row, 1)?,
                job: parsed(&row, 2)?,
                ds: parsed(&row, 3)?,
                task: row.text(4)?,
                slots: count(row.i64(5)?),
                since: time("hw_slot", row.i64(6)?)?,
            });
        }
        Ok(pools.into_values().collect())
    }
}

/// Who looks at slots.
struct Looker {
    process: String,
    judge: Judge,
}

pub(crate) async fn take(runs: &Runs, given: Vec<i64>, wanted: Vec<SlotRequest>) -> Result<Vec<Slots>> {
    let process = runs.process().await?.to_owned();
    let looker = Looker { process, judge: runs.judge(runs.now().await?) };
    // A commit wakes all who wait for slots: one that would change nothing must not be.
    if given.is_empty() && !has_room(runs, &looker, &wanted).await? {
        return Ok(vec![Slots::Full; wanted.len()]);
    }
    runs.store.write(move |tx| Box::pin(async move { take_in(tx, &looker, &given, &wanted).await })).await
}

/// False when nothing that is wanted fits into any pool.
async fn has_room(runs: &Runs, looker: &Looker, wanted: &[SlotRequest]) -> Result<bool> {
    let used = Used::read(&runs.store.rows(USED, &[]).await?, looker)?;
    let mut seen = BTreeSet::new();
    for request in wanted.iter().filter(|request| seen.insert(&request.pool)) {
        let size = runs.store.row(SIZE, &values![&request.pool]).await?;
        let size = size.map(|row| row.i64(0)).transpose()?.map(count);
        if size.is_none_or(|size| used.fits(request, size)) {
            return Ok(true);
        }
    }
    Ok(false)
}

const SIZE: &str = "select slots from hw_pool where name = $1";

const USED: &str = "select s.owner, s.number, s.pool, s.slots, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until
    from hw_slot s left join hw_process p on p.id = s.owner";

/// The slots that are taken.
struct Used {
    /// By pool, as many as each task asked for.
    by_pool: HashMap<String, Vec<usize>>,
    /// The numbers under which this process has some.
    own: BTreeSet<i64>,
}

impl Used {
    fn read(rows: &[Row], looker: &Looker) -> Result<Self> {
        let mut used = Self { by_pool: HashMap::new(), own: BTreeSet::new() };
        for row in rows {
            let is_own = row.text(0)? == looker.process;
            let holds = is_own || owner(row, 4)?.is_some_and(|(process, lease)| looker.judge.lives(&process, lease));
            if is_own {
                used.own.insert(row.i64(1)?);
            }
            if holds {
                used.by_pool.entry(row.text(2)?).or_default().push(count(row.i64(3)?));
            }
        }
        Ok(used)
    }

    fn fits(&self, request: &SlotRequest, size: usize) -> bool {
        let used: usize = self.by_pool.get(&request.pool).into_iter().flatten().map(|slots| *slots.min(&size)).sum();
        self.own.contains(&request.number) || used + request.slots.min(size) <= size
    }
}

/// How a pool stands in a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// It has so many slots, and nobody else takes any before this transaction ends.
    Of(usize),
    /// Another process is taking or giving back slots just now, and its commit wakes us.
    Busy,
    /// Nobody said how many it has.
    Unbounded,
}

async fn take_in(tx: &mut Tx, looker: &Looker, given: &[i64], wanted: &[SlotRequest]) -> Result<Vec<Slots>> {
    for some in given.chunks(GIVEN_AT_ONCE) {
        let sql = format!("delete from hw_slot where owner = $1 and number in ({})", places(2, some.len()));
        let mut bound = vec![Value::from(looker.process.as_str())];
        bound.extend(some.iter().map(|number| Value::from(*number)));
        tx.execute(&sql, &bound).await?;
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    // Who takes slots is alive. Should its lease have run out while it stood still, what it holds counts again before it takes more.
    // A lease that was renewed lately is left alone: its next renewal would wait for this commit.
    let sql = "update hw_process set lease_until = $2 where id = $1 and lease_until < $3";
    let now = looker.judge.now;
    tx.execute(sql, &values![&looker.process, now + micros(LEASE), now + micros(LEASE / 2)]).await?;
    let mut pools: BTreeMap<&str, Pool> = BTreeMap::new();
    for request in wanted {
        if !pools.contains_key(request.pool.as_str()) {
            pools.insert(&request.pool, lock(tx, &request.pool).await?);
        }
    }
    let mut used = Used::read(&tx.rows(USED, &[]).await?, looker)?;
    let mut answers = Vec::with_capacity(wanted.len());
    for request in wanted {
        let fits = match pools.get(request.pool.as_str()) {
            Some(Pool::Of(size)) => used.fits(request, *size),
            Some(Pool::Unbounded) => true,
            Some(Pool::Busy) | None => false,
        };
        answers.push(if !fits {
            // Nobody behind it passes.
            pools.insert(&request.pool, Pool::Busy);
            Slots::Full
        } else if used.own.contains(&request.number) || insert(tx, looker, request).await? {
            if used.own.insert(request.number) {
                used.by_pool.entry(request.pool.clone()).or_default().push(request.slots);
            }
            Slots::Taken
        } else {
            Slots::Fenced
        });
    }
    Ok(answers)
}

/// Keeps others from taking slots of the pool, unless one of them does the same to us just now: who waited here with other locks in
/// hand could wait for ever.
async fn lock(tx: &mut Tx, pool: &str) -> Result<Pool> {
    let of = |row: &Row| Ok(Pool::Of(count(row.i64(0)?)));
    if tx.dialect() == Dialect::Postgres
        && let Some(row) = tx.row(&format!("{SIZE} for update skip locked"), &values![pool]).await?
    {
        return of(&row);
    }
    match tx.row(SIZE, &values![pool]).await? {
        None => Ok(Pool::Unbounded),
        Some(_) if tx.dialect() == Dialect::Postgres => Ok(Pool::Busy),
        Some(row) => of(&row),
    }
}

/// Takes slots for a run of ours; false when it has another owner or is over.
async fn insert(tx: &mut Tx, looker: &Looker, request: &SlotRequest) -> Result<bool> {
    let sql = "insert into hw_slot (owner, number, pool, slots, run_id, task, fence, taken_at)
        select r.owner, $3, $4, $5, r.id, $6, r.fence, $7 from hw_run r
        where r.id = $1 and r.fence = $2 and r.owner = $8 and r.finished_at is null";
    let bound = values![
        request.run_id.as_str(),
        request.fence,
        request.number,
        &request.pool,
        request.slots,
        request.task.as_str(),
        looker.judge.now,
        &looker.process
    ];
    Ok(tx.execute(sql, &bound).await? == 1)
}

/// Frees all slots of runs that are over, or somebody else's now.
pub(crate) async fn free_runs(tx: &mut Tx, runs: &[&RunId]) -> Result<()> {
    let sql = format!("delete from hw_slot where run_id in ({})", places(1, runs.len()));
    tx.execute(&sql, &crate::runs::texts(runs.iter().copied())).await?;
    Ok(())
}

fn count(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}
