//! What is remembered of jobs, and how processes that serve share runs, on both databases.

use chrono::{TimeDelta, Timelike};
use headworks_domain::{Clock, JobName};
use headworks_flow::{
    exec::{ClaimRequest, Kept, RunStore, Seen, Trigger},
    machine::State,
};
use headworks_meta::{Definition, Error, Role, Runs};
use headworks_store::Dialect;

use crate::{
    on_both,
    world::{World, claim_one, day, record, wanted},
};

on_both!(
    jobs_are_remembered_from_the_first_sight_on,
    a_claim_moves_the_cursor_and_never_back,
    pauses_last_until_the_job_goes_on,
    runs_of_the_dead_are_abandoned_and_their_attempts_end,
    released_runs_belong_to_who_comes_first,
    a_wish_to_cancel_reaches_the_owner,
    one_scheduler_on_sqlite_and_many_on_postgres,
);

fn job(name: &str) -> JobName {
    name.parse().unwrap()
}

async fn define(runs: &Runs, name: &str, version: Option<&str>, problem: Option<&str>) {
    let definition =
        Definition { job: job(name), version: version.map(str::to_owned), problem: problem.map(str::to_owned) };
    runs.define(vec![definition]).await.unwrap();
}

async fn jobs_are_remembered_from_the_first_sight_on(world: World) {
    let runs = world.process(1).await;
    define(&runs, "flights", Some("v1"), None).await;
    let first = runs.jobs().await.unwrap().remove(0);
    assert_eq!((first.clock.cursor, first.clock.paused, first.version.as_deref()), (None, false, Some("v1")));
    world.clock.forward(60);
    define(&runs, "flights", Some("v2"), None).await;
    // A file with errors and no version of its own keeps the one that ran.
    define(&runs, "flights", None, Some("no such column")).await;
    let later = runs.jobs().await.unwrap().remove(0);
    assert_eq!(later.clock.first_seen, first.clock.first_seen);
    assert_eq!((later.version.as_deref(), later.problem.as_deref()), (Some("v2"), Some("no such column")));
}

async fn a_claim_moves_the_cursor_and_never_back(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    define(&one, "flights", Some("v1"), None).await;
    let tick = day(3).end().with_nanosecond(0).unwrap();
    let ask = |id, n, tick| ClaimRequest { tick: Some(tick), trigger: Trigger::Schedule, ..wanted(id, "flights", n) };
    let ids = one.new_run_ids(2).await.unwrap();
    let later = tick + TimeDelta::days(1);
    one.claim(vec![ask(&ids[0], 3, tick), ask(&ids[1], 4, later)]).await.unwrap();
    assert_eq!(one.jobs().await.unwrap()[0].clock.cursor, Some(later));
    // Who comes late gets nothing, and moves nothing.
    let id = other.new_run_ids(1).await.unwrap().remove(0);
    assert_eq!(other.claim(vec![ask(&id, 4, later + TimeDelta::days(9))]).await.unwrap(), [None]);
    assert_eq!(one.jobs().await.unwrap()[0].clock.cursor, Some(later));
    let id = one.new_run_ids(1).await.unwrap().remove(0);
    assert!(one.claim(vec![ask(&id, 1, tick - TimeDelta::days(2))]).await.unwrap()[0].is_some());
    assert_eq!(one.jobs().await.unwrap()[0].clock.cursor, Some(later));
    let row = one.find(&[(job("flights"), day(4))]).await.unwrap().remove(0).unwrap();
    assert_eq!(row.trigger, Trigger::Schedule);
}

async fn pauses_last_until_the_job_goes_on(world: World) {
    let runs = world.process(1).await;
    runs.pause(vec![job("flights"), job("weather")], true).await.unwrap();
    let since = runs.jobs().await.unwrap()[0].paused_at;
    assert!(since.is_some());
    world.clock.forward(5);
    runs.pause(vec![job("flights")], true).await.unwrap();
    assert_eq!(runs.jobs().await.unwrap()[0].paused_at, since, "the first pause counts");
    runs.pause(vec![job("weather")], false).await.unwrap();
    assert_eq!(runs.paused().await.unwrap(), [job("flights")].into());
}

async fn runs_of_the_dead_are_abandoned_and_their_attempts_end(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, claim) = claim_one(&one, "flights", 0).await;
    let (over, ended) = claim_one(&one, "flights", 1).await;
    let now = world.clock.now();
    let states = [record(&id, claim, State::Running, now), record(&over, ended, State::Success, now)];
    assert_eq!(one.record(states.to_vec()).await.unwrap(), [Kept::Yes, Kept::Yes]);
    assert_eq!(other.abandoned(10, 10).await.unwrap(), [], "its owner lives");
    world.machine.gone.lock().unwrap().insert(1);
    let found = other.abandoned(10, 10).await.unwrap();
    assert_eq!(found.iter().map(|row| &row.id).collect::<Vec<_>>(), [&id]);
    let taken = ClaimRequest { seen: Some(Seen::from(&found[0])), ..wanted(&id, "flights", 0) };
    assert!(other.claim(vec![taken]).await.unwrap()[0].is_some());
    let attempts = other.show(&id).await.unwrap().unwrap().attempts;
    assert_eq!(attempts[0].state, State::Cancelled);
    assert!(attempts[0].finished_at.is_some());
    assert_eq!(one.record(vec![record(&id, claim, State::Success, now)]).await.unwrap(), [Kept::Fenced]);
}

async fn released_runs_belong_to_who_comes_first(world: World) {
    let (one, other, third) = (world.process(1).await, world.process(2).await, world.process(3).await);
    let (id, claim) = claim_one(&one, "flights", 0).await;
    let (kept, _) = claim_one(&one, "flights", 1).await;
    one.release(vec![(id.clone(), claim.fence), (kept.clone(), -1)]).await.unwrap();
    assert_eq!(other.abandoned(10, 0).await.unwrap(), [], "none is asked for");
    let found = other.abandoned(10, 10).await.unwrap();
    assert_eq!(found.iter().map(|row| (&row.id, row.state)).collect::<Vec<_>>(), [(&id, State::Ready)]);
    let ask = ClaimRequest { seen: Some(Seen::from(&found[0])), ..wanted(&id, "flights", 0) };
    let claims = (other.claim(vec![ask.clone()]).await.unwrap()[0], third.claim(vec![ask]).await.unwrap()[0]);
    assert!(claims.0.is_some() && claims.1.is_none(), "{claims:?}");
}

async fn a_wish_to_cancel_reaches_the_owner(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, claim) = claim_one(&one, "flights", 0).await;
    let unknown = "nobody-1".parse().unwrap();
    assert_eq!(other.wish_cancelled(vec![id.clone(), unknown]).await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(one.cancel_wishes().await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(other.cancel_wishes().await.unwrap(), []);
    one.record(vec![record(&id, claim, State::Cancelled, world.clock.now())]).await.unwrap();
    assert_eq!(one.cancel_wishes().await.unwrap(), []);
}

async fn one_scheduler_on_sqlite_and_many_on_postgres(world: World) {
    let (one, other, third) = (world.process(1).await, world.process(2).await, world.process(3).await);
    one.take_up(Role::Scheduler).await.unwrap();
    third.take_up(Role::Worker).await.unwrap();
    let second = other.take_up(Role::Scheduler).await;
    match world.store.dialect() {
        Dialect::Sqlite => {
            assert!(matches!(second, Err(Error::SecondScheduler { pid: 1, .. })), "{second:?}");
            world.machine.gone.lock().unwrap().insert(1);
            other.take_up(Role::Scheduler).await.unwrap();
            assert_eq!(other.workers().await.unwrap(), 1, "the worker");
        }
        Dialect::Postgres => {
            second.unwrap();
            assert_eq!(other.workers().await.unwrap(), 2);
        }
    }
}
