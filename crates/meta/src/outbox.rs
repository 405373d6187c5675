//! Alerts on their way: an outbox that many processes may write to and send from.
//!
//! What is to be told is a row per event and target, written by the process that saw it. The event's key makes it one: seen
//! twice, by one process or two, it is told once. Rows of one target that are old enough are claimed together as a *parcel* with
//! an id that stays; a claim is a lease, so that the parcel of a sender that died goes to the next. So a message is sent at least
//! once, and one that comes twice has one id.
//!
//! Beside the outbox stand the memories that alerts need: intervals that failed (to tell their recovery), missed deadlines (to
//! tell a late publish), and since when each job's deadlines are watched.
//!
//! Times are those of the passed clock: whoever has another time sends a message twice at worst.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use headworks_domain::{Clock, Interval, JobName, RunId};
use headworks_flow::{
    TargetName,
    alert::{Event, message_id},
};
use headworks_store::{Component, Home, Migration, Row, Store, Tx, Value, values};

use crate::{
    Error, Result,
    row::{interval, opt_time, time},
    runs::{micros, places},
};

pub(crate) const TABLES: Component = Component { name: "alerts", home: Home::Platform, migrations: MIGRATIONS };

/// All steps; only ever add to the end.
const MIGRATIONS: &[Migration] = &[Migration { version: 1, sql: V1, postgres: None }];

const V1: &str = "
-- One event on its way to one target. A parcel is what has one message_id.
create table hw_alert (
    event_key TEXT NOT NULL,
    target TEXT NOT NULL,
    event TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    message_id TEXT,
    attempts BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    owner TEXT,
    lease_until BIGINT NOT NULL,
    sent_at BIGINT,
    error TEXT,
    PRIMARY KEY (event_key, target)
);
create index hw_alert_message on hw_alert (message_id);
create index hw_alert_pending on hw_alert (target, created_at) where state = 'pending';

-- Intervals whose failure was told, until a later run publishes them.
create table hw_alert_failing (
    job TEXT NOT NULL,
    interval_start BIGINT NOT NULL,
    interval_end BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    failed_at BIGINT NOT NULL,
    PRIMARY KEY (job, interval_start, interval_end)
);

-- Deadlines that came before their interval was published, until it is.
create table hw_alert_missed (
    job TEXT NOT NULL,
    interval_start BIGINT NOT NULL,
    interval_end BIGINT NOT NULL,
    due BIGINT NOT NULL,
    PRIMARY KEY (job, interval_start, interval_end)
);

-- Since when a job's deadlines are watched: earlier ones are nobody's fault.
create table hw_alert_watch (job TEXT NOT NULL PRIMARY KEY, since BIGINT NOT NULL);
";

/// The most events of one parcel.
const EVENTS_MAX: usize = 500;
/// The most parcels that one call claims.
const PARCELS_MAX: usize = 32;
/// The most memories that one call reads.
const MEMORIES_MAX: usize = 1_000;

/// How an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertState {
    /// It waits for its group, or for its next try.
    Pending,
    /// The target took it.
    Sent,
    /// Every try failed for too long.
    GivenUp,
}

impl AlertState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Sent, Self::GivenUp];

    /// The state as the database and the command line write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::GivenUp => "given_up",
        }
    }
}

/// An event, and who is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// The targets; nobody is told when there are none.
    pub targets: Vec<TargetName>,
}

/// Events that go to one target as one message, claimed by one sender for a while.
#[derive(Debug, Clone, PartialEq)]
pub struct Parcel {
    /// The message's id, the same at each try.
    pub message_id: String,
    /// Where it goes.
    pub target: TargetName,
    /// What it tells.
    pub events: Vec<Event>,
    /// The number of this try, from 1.
    pub attempt: u32,
    /// When its first event was noticed.
    pub since: DateTime<Utc>,
}

/// An alert as `headworks alerts list` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertRow {
    /// What it tells.
    pub event: Event,
    /// Where it goes.
    pub target: TargetName,
    /// How it stands.
    pub state: AlertState,
    /// When it was noticed.
    pub created_at: DateTime<Utc>,
    /// The message that it is part of, once there is one.
    pub message_id: Option<String>,
    /// Tries so far.
    pub attempts: u32,
    /// When the target took it.
    pub sent_at: Option<DateTime<Utc>>,
    /// Why the last try failed.
    pub error: Option<String>,
}

/// An interval whose failure was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Failing {
    /// Its job.
    pub job: JobName,
    /// The interval.
    pub interval: Interval,
    /// When it failed.
    pub failed_at: DateTime<Utc>,
}

/// A failing interval that a later run published.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// What had failed.
    pub failing: Failing,
    /// The run that published it.
    pub run_id: RunId,
    /// When it did.
    pub published_at: DateTime<Utc>,
}

/// A deadline that came before its interval was published.
#[derive(Debug, Clone, PartialEq)]
pub struct Missed {
    /// Its job.
    pub job: JobName,
    /// The interval.
    pub interval: Interval,
    /// By when it was promised.
    pub due: DateTime<Utc>,
}

/// The alerts of a project; clones share it.
#[derive(Clone)]
pub struct Outbox {
    store: Store,
    clock: Arc<dyn Clock>,
}

impl Outbox {
    /// Opens the outbox, making or migrating its tables.
    pub async fn open(store: Store, clock: Arc<dyn Clock>) -> Result<Self> {
        store.migrate(TABLES.name, TABLES.home, TABLES.migrations).await?;
        Ok(Self { store, clock })
    }

    fn now(&self) -> i64 {
        self.clock.now().timestamp_micros()
    }

    /// Puts events in. Those that are there already stay as they are; the answer counts the new rows.
    pub async fn add(&self, notices: Vec<Notice>) -> Result<u64> {
        let now = self.now();
        self.store.write(move |tx| Box::pin(async move { add(tx, &notices, now).await })).await
    }

    /// Tells a failure, and remembers it until a later run publishes the interval.
    pub async fn failed(&self, failing: Failing, run_id: RunId, notice: Notice) -> Result<()> {
        let now = self.now();
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute(
                        "insert into hw_alert_failing (job, interval_start, interval_end, run_id, failed_at) values ($1, $2, $3, $4, $5)
                         on conflict (job, interval_start, interval_end) do update
                             set run_id = excluded.run_id, failed_at = excluded.failed_at",
                        &values![
                            failing.job.as_str(),
                            failing.interval.start().timestamp_micros(),
                            failing.interval.end().timestamp_micros(),
                            run_id.as_str(),
                            failing.failed_at.timestamp_micros(),
                        ],
                    )
                    .await?;
                    add(tx, &[notice], now).await?;
                    Ok(())
                })
            })
            .await
    }

    /// The failing intervals whose end a later run published. A run over more than the interval counts too.
    pub async fn recoveries(&self) -> Result<Vec<Recovery>> {
        let sql = "select f.job, f.interval_start, f.interval_end, f.failed_at, r.id, r.finished_at
            from hw_alert_failing f join hw_run r on r.job = f.job and r.state = 'success' and r.finished_at > f.failed_at
                and r.interval_start < f.interval_end and r.interval_end >= f.interval_end
            order by f.job, f.interval_start, r.finished_at limit $1";
        let rows = self.store.rows(sql, &values![MEMORIES_MAX]).await?;
        let mut found: Vec<Recovery> = Vec::new();
        for row in &rows {
            let failing = Failing {
                job: name(row, 0)?,
                interval: interval("hw_alert", row, 1)?,
                failed_at: time("hw_alert", row.i64(3)?)?,
            };
            // The first of several runs.
            if found.last().is_none_or(|last| last.failing != failing) {
                found.push(Recovery { failing, run_id: name(row, 4)?, published_at: time("hw_alert", row.i64(5)?)? });
            }
        }
        Ok(found)
    }

    /// Forgets a failing interval and tells its recovery, unless another process did.
    pub async fn recovered(&self, failing: Failing, notice: Option<Notice>) -> Result<()> {
        self.settle("hw_alert_failing", failing.job, failing.interval, notice).await
    }

    /// Since when each of these jobs is watched; from now on where it was not yet.
    pub async fn watch(&self, jobs: Vec<JobName>) -> Result<HashMap<JobName, DateTime<Utc>>> {
        let now = self.now();
        let rows = self
            .store
            .write(move |tx| {
                Box::pin(async move {
                    for job in &jobs {
                        let sql = "insert into hw_alert_watch (job, since) values ($1, $2) on conflict do nothing";
                        tx.execute(sql, &values![job.as_str(), now]).await?;
                    }
                    Ok::<_, Error>(tx.rows("select job, since from hw_alert_watch", &[]).await?)
                })
            })
            .await?;
        rows.iter().map(|row| Ok((name(row, 0)?, time("hw_alert", row.i64(1)?)?))).collect()
    }

    /// Tells a missed deadline, once, and remembers it until the interval is published.
    pub async fn missed(&self, missed: Missed, notice: Notice) -> Result<()> {
        let now = self.now();
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute(
                        "insert into hw_alert_missed (job, interval_start, interval_end, due) values ($1, $2, $3, $4)
                         on conflict do nothing",
                        &values![
                            missed.job.as_str(),
                            missed.interval.start().timestamp_micros(),
                            missed.interval.end().timestamp_micros(),
                            missed.due.timestamp_micros(),
                        ],
                    )
                    .await?;
                    add(tx, &[notice], now).await?;
                    Ok(())
                })
            })
            .await
    }

    /// The missed deadlines whose interval was not published when last looked at, oldest first.
    pub async fn open_misses(&self) -> Result<Vec<Missed>> {
        let sql = "select job, interval_start, interval_end, due from hw_alert_missed order by due, job, interval_start limit $1";
        let rows = self.store.rows(sql, &values![MEMORIES_MAX]).await?;
        rows.iter()
            .map(|row| {
                Ok(Missed {
                    job: name(row, 0)?,
                    interval: interval("hw_alert", row, 1)?,
                    due: time("hw_alert", row.i64(3)?)?,
                })
            })
            .collect()
    }

    /// Forgets a missed deadline and tells the late publish, unless another process did.
    pub async fn published_late(&self, missed: Missed, notice: Option<Notice>) -> Result<()> {
        self.settle("hw_alert_missed", missed.job, missed.interval, notice).await
    }

    async fn settle(
        &self,
        table: &'static str,
        job: JobName,
        interval: Interval,
        notice: Option<Notice>,
    ) -> Result<()> {
        let now = self.now();
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    let sql =
                        format!("delete from {table} where job = $1 and interval_start = $2 and interval_end = $3");
                    let bound =
                        values![job.as_str(), interval.start().timestamp_micros(), interval.end().timestamp_micros()];
                    if tx.execute(&sql, &bound).await? > 0 {
                        add(tx, notice.as_slice(), now).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Claims what is to be sent now, for so long: parcels whose next try is due or whose sender is gone, and new ones of targets
    /// whose first event is older than `group_for`.
    pub async fn claim(&self, owner: &str, group_for: Duration, lease: Duration) -> Result<Vec<Parcel>> {
        let (now, owner) = (self.now(), owner.to_owned());
        let ripe = now - micros(group_for);
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    let mut parcels = claim_again(tx, &owner, now, now + micros(lease)).await?;
                    parcels.extend(claim_new(tx, &owner, now, now + micros(lease), ripe).await?);
                    Ok(parcels)
                })
            })
            .await
    }

    /// Keeps that the target took a parcel; whoever has claimed it meanwhile need not send it.
    pub async fn sent(&self, parcel: &Parcel) -> Result<()> {
        let (now, id) = (self.now(), parcel.message_id.clone());
        self.change(
            "update hw_alert set state = 'sent', sent_at = $2, error = null, owner = null where message_id = $1 and state = 'pending'",
            values![id, now].to_vec(),
        )
        .await
    }

    /// Keeps that a try failed. `next_at` is the next one; without it the parcel is given up.
    pub async fn not_sent(&self, parcel: &Parcel, error: &str, next_at: Option<DateTime<Utc>>) -> Result<()> {
        let state = if next_at.is_some() { AlertState::Pending } else { AlertState::GivenUp };
        let next = next_at.map_or(0, |time| time.timestamp_micros());
        self.change(
            "update hw_alert set state = $3, error = $4, next_at = $5, lease_until = 0, owner = null
             where message_id = $1 and attempts = $2 and state = 'pending'",
            values![&parcel.message_id, parcel.attempt, state.as_str(), error, next].to_vec(),
        )
        .await
    }

    async fn change(&self, sql: &'static str, bound: Vec<Value>) -> Result<()> {
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute(sql, &bound).await?;
                    Ok(())
                })
            })
            .await
    }

    /// When there is something to send next, with nothing new coming in.
    pub async fn next_due(&self, group_for: Duration) -> Result<Option<DateTime<Utc>>> {
        let sql = "select min(case when message_id is null then created_at + $1
                when next_at > lease_until then next_at else lease_until end)
            from hw_alert where state = 'pending'";
        let due = self.store.row(sql, &values![micros(group_for)]).await?;
        due.map_or(Ok(None), |row| opt_time("hw_alert", &row, 0))
    }

    /// Lists alerts, newest first.
    pub async fn list(&self, state: Option<AlertState>, limit: usize) -> Result<Vec<AlertRow>> {
        let sql = "select event, target, state, created_at, message_id, attempts, sent_at, error from hw_alert
            where $1 = '' or state = $1 order by created_at desc, event_key desc, target limit $2";
        let rows = self.store.rows(sql, &values![state.map_or("", AlertState::as_str), limit]).await?;
        rows.iter().map(alert_row).collect()
    }

    /// Removes what was told before an instant, and memories as old. Returns how many alerts went.
    pub async fn forget(&self, before: DateTime<Utc>) -> Result<u64> {
        let before = before.timestamp_micros();
        self.store
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute("delete from hw_alert_failing where failed_at < $1", &values![before]).await?;
                    tx.execute("delete from hw_alert_missed where due < $1", &values![before]).await?;
                    let sql = "delete from hw_alert where state <> 'pending' and created_at < $1";
                    Ok(tx.execute(sql, &values![before]).await?)
                })
            })
            .await
    }
}

async fn add(tx: &mut Tx, notices: &[Notice], now: i64) -> Result<u64> {
    let mut new = 0;
    for Notice { event, targets } in notices {
        let (key, text) = (event.key(), written(event)?);
        for target in targets {
            new += tx
                .execute(
                    "insert into hw_alert (event_key, target, event, state, created_at, attempts, next_at, lease_until)
                     values ($1, $2, $3, 'pending', $4, 0, 0, 0) on conflict do nothing",
                    &values![&key, target.as_str(), &text, now],
                )
                .await?;
        }
    }
    Ok(new)
}

const CLAIMED: &str = "returning message_id, target, event, attempts, created_at";

async fn claim_again(tx: &mut Tx, owner: &str, now: i64, until: i64) -> Result<Vec<Parcel>> {
    let free = "state = 'pending' and message_id is not null and next_at <= $1 and lease_until <= $1";
    let sql = format!("select distinct message_id from hw_alert where {free} order by message_id limit $2");
    let mut parcels = Vec::new();
    for row in tx.rows(&sql, &values![now, PARCELS_MAX]).await? {
        let sql = format!(
            "update hw_alert set owner = $3, lease_until = $4, attempts = attempts + 1 where message_id = $2 and {free} {CLAIMED}"
        );
        let claimed = tx.rows(&sql, &values![now, row.text(0)?, owner, until]).await?;
        parcels.extend(parcel(&claimed)?);
    }
    Ok(parcels)
}

async fn claim_new(tx: &mut Tx, owner: &str, now: i64, until: i64, ripe: i64) -> Result<Vec<Parcel>> {
    let sql = "select target from hw_alert where state = 'pending' and message_id is null and next_at <= $1
        group by target having min(created_at) <= $2 order by target limit $3";
    let mut parcels = Vec::new();
    for row in tx.rows(sql, &values![now, ripe, PARCELS_MAX]).await? {
        let target = row.text(0)?;
        let sql = "select event_key from hw_alert where state = 'pending' and message_id is null and target = $1
            order by created_at, event_key limit $2";
        let rows = tx.rows(sql, &values![&target, EVENTS_MAX]).await?;
        let keys: Vec<String> = rows.iter().map(|row| row.text(0)).collect::<Result<_, _>>()?;
        let sql = format!(
            "update hw_alert set message_id = $1, owner = $2, lease_until = $3, attempts = attempts + 1
             where target = $4 and state = 'pending' and message_id is null and event_key in ({}) {CLAIMED}",
            places(5, keys.len())
        );
        let id = message_id(&target, keys.iter().map(String::as_str));
        let mut bound = values![id, owner, until, &target].to_vec();
        bound.extend(keys.iter().map(Value::from));
        // Another process may have taken some or all of them first.
        parcels.extend(parcel(&tx.rows(&sql, &bound).await?)?);
    }
    Ok(parcels)
}

/// Puts claimed rows together; none when there are none.
fn parcel(rows: &[Row]) -> Result<Option<Parcel>> {
    let Some(first) = rows.first() else { return Ok(None) };
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        events.push((row.i64(4)?, read(&row.text(2)?)?));
    }
    // RETURNING promises no order.
    events.sort_by_cached_key(|(created, event)| (*created, event.key()));
    Ok(Some(Parcel {
        message_id: first.text(0)?,
        target: name(first, 1)?,
        attempt: u32::try_from(first.i64(3)?).unwrap_or(u32::MAX),
        since: time("hw_alert", events.first().map_or(0, |(created, _)| *created))?,
        events: events.into_iter().map(|(_, event)| event).collect(),
    }))
}

fn alert_row(row: &Row) -> Result<AlertRow> {
    let state = row.text(2)?;
    let known = AlertState::ALL.into_iter().find(|s| s.as_str() == state);
    Ok(AlertRow {
        event: read(&row.text(0)?)?,
        target: name(row, 1)?,
        state: known.ok_or_else(|| senseless(format!("`{state}` is no state")))?,
        created_at: time("hw_alert", row.i64(3)?)?,
        message_id: row.opt_text(4)?,
        attempts: u32::try_from(row.i64(5)?).unwrap_or(u32::MAX),
        sent_at: opt_time("hw_alert", row, 6)?,
        error: row.opt_text(7)?,
    })
}

fn written(event: &Event) -> Result<String> {
    serde_json::to_string(event).map_err(|error| senseless(error.to_string()))
}

fn read(text: &str) -> Result<Event> {
    serde_json::from_str(text).map_err(|error| senseless(error.to_string()))
}

fn name<T: std::str::FromStr<Err: std::fmt::Display>>(row: &Row, column: usize) -> Result<T> {
    row.text(column)?.parse().map_err(|error: T::Err| senseless(error.to_string()))
}

fn senseless(reason: String) -> Error {
    Error::Row { table: "hw_alert", reason }
}
