//! Two versions of the program side by side: a newer one migrates the database, and the older one goes on.

use headworks_flow::{
    exec::{RunFilter, RunStore},
    machine::State,
};
use headworks_store::{Home, Migration, Store, Value, values};

use crate::world::{World, day, ds, record};

/// What the first version of the program made of an empty database.
const V1: &[Migration] = &[Migration { version: 1, sql: include_str!("fixtures/v1.sql"), postgres: None }];

/// The statements of the first version, as it still sends them after another process has migrated. Never change these; a
/// version that is no longer supported takes its fixtures with it.
mod v1 {
    pub(super) const REGISTER: &str =
        "insert into hw_process (id, host, boot_id, pid, pid_start, lease_until, started_at)
        values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing";
    pub(super) const RENEW: &str = "update hw_process set lease_until = $2 where id = $1";
    pub(super) const FENCE: &str = "update hw_fence set value = value + 1 where id = 1 returning value";
    pub(super) const CLAIM: &str =
        "insert into hw_run (id, job, job_version, table_name, interval_start, interval_end, ds, first_partition,
             last_partition, born, state, attempt, fence, owner, created_at, row_count, bytes, finished_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
         on conflict do nothing returning id";
    pub(super) const TAKE_OVER: &str =
        "update hw_run set fence = $3, owner = $4, job_version = $5, table_name = $6, first_partition = $7, last_partition = $8,
             state = 'waiting', attempt = attempt + 1, finished_at = null, row_count = 0, bytes = 0,
             error_kind = null, error_code = null, error = null, hint = null
         where id = $1 and fence = $2 and (finished_at is null or state <> 'success')
             and not exists (select 1 from hw_run other where other.job = hw_run.job and other.id <> hw_run.id
                 and other.interval_start = hw_run.interval_start and other.interval_end = hw_run.interval_end
                 and other.finished_at is null)
         returning attempt";
    pub(super) const TASKS: &str = "insert into hw_task (run_id, place, name, state) values ($1, $2, $3, $4)";
    pub(super) const KEEP: &str =
        "update hw_run set state = $3, attempt = $4, started_at = coalesce(started_at, $5), finished_at = $6, row_count = $7,
             bytes = $8, error_kind = $9, error_code = $10, error = $11, hint = $12
         where id = $1 and fence = $2 and finished_at is null";
    pub(super) const KEEP_TASK: &str =
        "insert into hw_task (run_id, place, name, state, started_at, finished_at) values ($1, $2, $3, $4, $5, $6)
         on conflict (run_id, place) do update set state = excluded.state, started_at = excluded.started_at,
             finished_at = excluded.finished_at";
    pub(super) const KEEP_ATTEMPT: &str =
        "insert into hw_attempt (run_id, attempt, state, started_at, finished_at, log_path, log_bytes, error_kind, error_code,
             error, hint)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         on conflict (run_id, attempt) do update set state = excluded.state, finished_at = excluded.finished_at,
             log_bytes = excluded.log_bytes, error_kind = excluded.error_kind, error_code = excluded.error_code,
             error = excluded.error, hint = excluded.hint";
    pub(super) const LIST: &str =
        "select r.id, r.job, r.job_version, r.table_name, r.interval_start, r.interval_end, r.ds, r.state,
             r.attempt, r.fence, r.owner, r.created_at, r.started_at, r.finished_at, r.row_count, r.bytes, r.error_kind, r.error_code,
             r.error, r.hint, p.host, p.boot_id, p.pid, p.pid_start, p.lease_until
         from hw_run r left join hw_process p on p.id = r.owner where r.id = $1 and r.state = $2";
    pub(super) const VERSION: &str =
        "insert into hw_job_version (job, version, source, first_seen) values ($1, $2, $3, $4) on conflict do nothing";
    pub(super) const FORGET: [&str; 4] = [
        "delete from hw_task where run_id in (select id from hw_run where job = $1)",
        "delete from hw_attempt where run_id in (select id from hw_run where job = $1)",
        "delete from hw_run where job = $1",
        "delete from hw_job_version where job = $1",
    ];
}

/// Sends one statement of the old program and answers the rows that it touched or gave.
async fn send(store: &Store, sql: &'static str, values: &[Value]) -> usize {
    let values = values.to_vec();
    let sent: headworks_store::Result<usize> = store
        .write(move |tx| {
            Box::pin(async move {
                if sql.contains("returning") || sql.starts_with("select") {
                    return Ok(tx.rows(sql, &values).await?.len());
                }
                Ok(usize::try_from(tx.execute(sql, &values).await?).unwrap())
            })
        })
        .await;
    sent.unwrap_or_else(|error| panic!("{error}: {sql}"))
}

/// Does what the old program does for one run, from its claim to `state`.
async fn old_program_runs(store: &Store, id: &str, n: i64, state: &str) {
    let (start, end) = (day(n).start().timestamp_micros(), day(n).end().timestamp_micros());
    let process = values!["old", "there", "boot", 9, 7, i64::MAX, 0];
    send(store, v1::REGISTER, &process).await;
    assert_eq!(send(store, v1::RENEW, &values!["old", i64::MAX]).await, 1);
    assert_eq!(send(store, v1::FENCE, &[]).await, 1);
    let claim = values![
        id,
        "flights",
        "v1",
        "flights",
        start,
        end,
        ds(n).to_string(),
        ds(n).to_string(),
        ds(n).to_string(),
        n,
        "waiting",
        1,
        100 + n,
        "old",
        5,
        0,
        0,
        Value::Null
    ];
    assert_eq!(send(store, v1::CLAIM, &claim).await, 1);
    assert_eq!(send(store, v1::CLAIM, &claim).await, 0, "one live run per interval");
    assert_eq!(send(store, v1::TASKS, &values![id, 0, "stage", "waiting"]).await, 1);
    let over: Value = (state != "running").then_some(60_i64).into();
    let none = || Value::Null;
    let kept = values![id, 100 + n, state, 1, 50, over.clone(), 3, 30, none(), none(), none(), none()];
    assert_eq!(send(store, v1::KEEP, &kept).await, 1);
    assert_eq!(send(store, v1::KEEP_TASK, &values![id, 0, "stage", state, 50, over.clone()]).await, 1);
    let attempt = values![id, 1, state, 50, over, "x.log", 12, "unavailable", "S3_SLOW", "slow", "wait"];
    assert_eq!(send(store, v1::KEEP_ATTEMPT, &attempt).await, 1);
    assert_eq!(send(store, v1::LIST, &values![id, state]).await, 1);
    send(store, v1::VERSION, &values!["flights", "v1", "select 1", 5]).await;
}

async fn side_by_side(world: World) {
    let store = world.store.clone();
    store.migrate("meta", Home::Platform, V1).await.unwrap();
    old_program_runs(&store, "before-1", 0, "success").await;
    old_program_runs(&store, "before-2", 1, "failed").await;
    old_program_runs(&store, "before-3", 2, "running").await;

    let runs = world.process(1).await;
    let state = async |id: &str| runs.show(&id.parse().unwrap()).await.unwrap().map(|shown| shown.run.state);
    assert_eq!(state("before-1").await, Some(State::Success));
    assert_eq!(state("before-3").await, Some(State::Running));

    // The old program goes on, and each sees what the other did.
    old_program_runs(&store, "after-1", 3, "success").await;
    old_program_runs(&store, "after-2", 4, "failed").await;
    assert_eq!(state("after-1").await, Some(State::Success));
    let shown = runs.show(&"after-2".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((shown.tasks.len(), shown.attempts[0].failure.as_ref().unwrap().code.as_str()), (1, "S3_SLOW"));
    let taken = values!["after-2", 104, 500, "old", "v1", "flights", Value::Null, Value::Null];
    assert_eq!(send(&store, v1::TAKE_OVER, &taken).await, 1);

    let (mine, claim) = crate::world::claim_one(&runs, "weather", 0).await;
    assert_eq!(send(&store, v1::LIST, &values![mine.as_str(), "waiting"]).await, 1);
    runs.record(vec![record(&mine, claim, State::Success, headworks_domain::Clock::now(&*world.clock))]).await.unwrap();
    assert_eq!(send(&store, v1::LIST, &values![mine.as_str(), "success"]).await, 1);

    for sql in v1::FORGET {
        assert!(send(&store, sql, &values!["flights"]).await > 0, "{sql}");
    }
    let left = runs.list(&RunFilter::default()).await.unwrap();
    assert_eq!(left.into_iter().map(|run| run.id).collect::<Vec<_>>(), [mine]);
}

#[tokio::test]
async fn the_older_program_goes_on_beside_the_newer_on_sqlite() {
    Box::pin(side_by_side(World::sqlite().await)).await;
}

#[tokio::test]
async fn the_older_program_goes_on_beside_the_newer_on_postgres() {
    Box::pin(side_by_side(World::postgres().await)).await;
}
