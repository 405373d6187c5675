//! What is remembered of jobs, and how processes that serve share runs, on both databases.

use std::collections::BTreeSet;

use chrono::{TimeDelta, Timelike};
use headworks_domain::{Clock, JobName, RunId};
use headworks_flow::{
    exec::{ClaimRequest, Kept, Placement, Release, RunFilter, RunStore, Seen, Takes, Trigger},
    machine::State,
};
use headworks_meta::{Definition, Error, Role, Runs};
use headworks_store::Dialect;

use crate::{
    on_both,
    world::{World, claim_one, day, record, wanted},
};

on_both!(
    a_run_that_yields_is_left_skipped_behind_a_live_one,
    released_runs_are_for_those_who_take_such,
    living_processes_are_told_with_what_they_take,
    jobs_are_remembered_from_the_first_sight_on,
    a_claim_moves_the_cursor_and_never_back,
    pauses_last_until_the_job_goes_on,
    runs_of_the_dead_are_abandoned_and_their_attempts_end,
    released_runs_belong_to_who_comes_first,
    released_runs_come_by_priority_then_by_age,
    ticks_come_by_the_clock_that_is_behind,
    a_cursor_is_set_back_and_never_on,
    a_wish_to_cancel_reaches_the_owner,
    one_scheduler_on_sqlite_and_many_on_postgres,
);

fn release(run_id: &RunId, fence: i64, priority: i32) -> Release {
    Release { run_id: run_id.clone(), fence, priority }
}

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
    assert_eq!(other.abandoned(10, 10, &Takes::default()).await.unwrap(), [], "its owner lives");
    world.machine.gone.lock().unwrap().insert(1);
    let found = other.abandoned(10, 10, &Takes::default()).await.unwrap();
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
    one.release(vec![release(&id, claim.fence, 0), release(&kept, -1, 0)]).await.unwrap();
    assert_eq!(other.abandoned(10, 0, &Takes::default()).await.unwrap(), [], "none is asked for");
    let found = other.abandoned(10, 10, &Takes::default()).await.unwrap();
    assert_eq!(found.iter().map(|row| (&row.id, row.state)).collect::<Vec<_>>(), [(&id, State::Ready)]);
    let ask = ClaimRequest { seen: Some(Seen::from(&found[0])), ..wanted(&id, "flights", 0) };
    let claims = (other.claim(vec![ask.clone()]).await.unwrap()[0], third.claim(vec![ask]).await.unwrap()[0]);
    assert!(claims.0.is_some() && claims.1.is_none(), "{claims:?}");
}

async fn released_runs_come_by_priority_then_by_age(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let mut released = Vec::new();
    for (n, priority) in [(0, -10_000), (1, 0), (2, 5), (3, 5), (4, 0)] {
        let (id, claim) = claim_one(&one, "flights", n).await;
        released.push(release(&id, claim.fence, priority));
    }
    one.release(released.clone()).await.unwrap();
    let found = other.abandoned(10, 4, &Takes::default()).await.unwrap();
    let expected = [2, 3, 1, 4].map(|n| &released[n].run_id);
    assert_eq!(found.iter().map(|row| &row.id).collect::<Vec<_>>(), expected);
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
    one.take_up(Role::Scheduler, &Takes::default()).await.unwrap();
    third.take_up(Role::Worker, &Takes::default()).await.unwrap();
    let second = other.take_up(Role::Scheduler, &Takes::default()).await;
    match world.store.dialect() {
        Dialect::Sqlite => {
            assert!(matches!(second, Err(Error::SecondScheduler { pid: 1, .. })), "{second:?}");
            world.machine.gone.lock().unwrap().insert(1);
            other.take_up(Role::Scheduler, &Takes::default()).await.unwrap();
            assert_eq!(other.workers().await.unwrap().len(), 1, "the worker");
        }
        Dialect::Postgres => {
            second.unwrap();
            assert_eq!(other.workers().await.unwrap().len(), 2);
        }
    }
}

async fn a_run_that_yields_is_left_skipped_behind_a_live_one(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    define(&one, "flights", Some("v1"), None).await;
    let ask = |id: &RunId, n: i64| ClaimRequest {
        tick: Some(day(n).end()),
        trigger: Trigger::Schedule,
        yields: true,
        ..wanted(id, "flights", n)
    };
    let ids = one.new_run_ids(3).await.unwrap();
    let claims = one.claim(vec![ask(&ids[0], 0), ask(&ids[1], 1)]).await.unwrap();
    assert!(claims[0].is_some() && claims[1].is_none(), "{claims:?}");
    assert_eq!(one.jobs().await.unwrap()[0].clock.cursor, Some(day(1).end()), "the tick is seen to");
    let row = one.find(&[(job("flights"), day(1))]).await.unwrap().remove(0).unwrap();
    assert!(row.was_passed_over() && row.finished_at.is_some(), "{row:?}");
    let message = row.failure.unwrap().message;
    assert_eq!(
        message,
        format!("run `{}` of ds=2013-01-01 was not over yet, and the job says `overlap: skip`", ids[0])
    );
    // Asked again, as when the reply was lost, nothing changes; another process skips as well.
    let again = one.claim(vec![ask(&ids[0], 0), ask(&ids[1], 1)]).await.unwrap();
    assert_eq!(again, claims);
    let id = other.new_run_ids(1).await.unwrap().remove(0);
    assert_eq!(other.claim(vec![ask(&id, 2)]).await.unwrap(), [None]);
    let listed = one.list(&RunFilter { state: Some(State::Skipped), ..RunFilter::default() }).await.unwrap();
    assert_eq!(listed.iter().map(|row| &row.id).collect::<Vec<_>>(), [&id, &ids[1]]);
    // The live one's end lets the next begin, and the skipped one can be taken up under its id.
    one.record(vec![record(&ids[0], claims[0].unwrap(), State::Success, world.clock.now())]).await.unwrap();
    let claimed = one.claim(vec![ask(&ids[2], 3)]).await.unwrap();
    assert!(claimed[0].is_some());
    let seen = one.find(&[(job("flights"), day(1))]).await.unwrap().remove(0).map(|row| Seen::from(&row));
    let claim = other.claim(vec![ClaimRequest { seen, ..wanted(&ids[1], "flights", 1) }]).await.unwrap()[0].unwrap();
    assert_eq!(claim.attempt, 1);
    let row = one.find(&[(job("flights"), day(1))]).await.unwrap().remove(0).unwrap();
    assert_eq!((row.state, row.failure, row.trigger), (State::Waiting, None, Trigger::Schedule));
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn takes(zone: &str, pools: Option<&[&str]>) -> Takes {
    Takes { zone: Some(zone.to_owned()).filter(|zone| !zone.is_empty()), pools: pools.map(set), ..Takes::default() }
}

async fn released_runs_are_for_those_who_take_such(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let ids = one.new_run_ids(4).await.unwrap();
    let places = [("", &[][..]), ("eu", &["default"][..]), ("", &["etl"][..]), ("eu", &["etl", "o'Üml\"aut"][..])];
    let ask = |n: usize| {
        let placement = Placement { zone: takes(places[n].0, None).zone, pools: set(places[n].1) };
        ClaimRequest { placement, ..wanted(&ids[n], "flights", i64::try_from(n).unwrap()) }
    };
    let claims = one.claim((0..4).map(ask).collect()).await.unwrap();
    let released = ids.iter().zip(&claims).map(|(id, claim)| release(id, claim.unwrap().fence, 0)).collect();
    one.release(released).await.unwrap();
    let mut found: Vec<Vec<usize>> = Vec::new();
    let of = |rows: Vec<headworks_flow::exec::RunRow>| -> Vec<usize> {
        rows.iter().map(|row| ids.iter().position(|id| *id == row.id).unwrap()).collect()
    };
    for takes in [
        takes("", None),
        takes("eu", None),
        takes("us", None),
        takes("eu", Some(&["default"])),
        takes("", Some(&["etl"])),
        takes("eu", Some(&["etl", "o'Üml\"aut"])),
        takes("", Some(&[])),
    ] {
        found.push(of(other.abandoned(10, 10, &takes).await.unwrap()));
    }
    let expected: [&[usize]; 7] = [&[0, 2], &[0, 1, 2, 3], &[0, 2], &[0, 1], &[0, 2], &[0, 2, 3], &[0]];
    assert_eq!(found, expected);
    // However few are asked for, those of others don't stand before them.
    assert_eq!(of(other.abandoned(10, 1, &takes("eu", Some(&["default"]))).await.unwrap()), [0]);
    // Who takes one up says anew where it belongs; the dead one's runs are anybody's.
    let row = other.find(&[(job("flights"), day(2))]).await.unwrap().remove(0).unwrap();
    let moved = Placement { zone: Some("us".to_owned()), pools: set(&["etl"]) };
    let ask = ClaimRequest { seen: Some(Seen::from(&row)), placement: moved, ..wanted(&ids[2], "flights", 2) };
    let claim = other.claim(vec![ask]).await.unwrap()[0].unwrap();
    other.release(vec![release(&ids[2], claim.fence, 0)]).await.unwrap();
    assert_eq!(of(one.abandoned(10, 10, &takes("us", None)).await.unwrap()), [0, 2]);
    assert_eq!(of(one.abandoned(10, 10, &takes("", None)).await.unwrap()), [0]);
}

async fn living_processes_are_told_with_what_they_take(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    one.take_up(Role::Scheduler, &Takes::default()).await.unwrap();
    other.take_up(Role::Worker, &takes("eu", Some(&["etl", "default"]))).await.unwrap();
    let told = one.processes().await.unwrap();
    let told: Vec<String> =
        told.iter().map(|process| format!("{} {:?} {}", process.name, process.role, process.takes)).collect();
    assert_eq!(told, ["here:1 Scheduler ", "here:2 Worker zone eu for pools default, etl"]);
    assert_eq!(one.workers().await.unwrap(), [takes("eu", Some(&["etl", "default"]))]);
    assert_eq!(other.workers().await.unwrap(), [Takes::default()]);
    world.machine.gone.lock().unwrap().insert(2);
    assert_eq!(one.processes().await.unwrap().len(), 1);
    assert_eq!(one.workers().await.unwrap(), []);
}

async fn ticks_come_by_the_clock_that_is_behind(world: World) {
    let runs = world.process(1).await;
    world.clock.forward(-10 * 365 * 86_400);
    assert_eq!(runs.tick_time().await.unwrap(), world.clock.now());
    world.clock.forward(20 * 365 * 86_400);
    let time = runs.tick_time().await.unwrap();
    assert_eq!(time < world.clock.now(), world.store.dialect() == Dialect::Postgres, "{time}");
}

async fn a_cursor_is_set_back_and_never_on(world: World) {
    let runs = world.process(1).await;
    define(&runs, "flights", Some("v1"), None).await;
    let tick = day(9).end();
    assert!(!runs.set_back(&job("flights"), tick).await.unwrap(), "no tick was seen to");
    let id = runs.new_run_ids(1).await.unwrap().remove(0);
    let ask = ClaimRequest { tick: Some(tick), trigger: Trigger::Schedule, ..wanted(&id, "flights", 9) };
    runs.claim(vec![ask]).await.unwrap();
    let cursor = async || runs.jobs().await.unwrap()[0].clock.cursor;
    assert!(!runs.set_back(&job("flights"), tick + TimeDelta::days(1)).await.unwrap());
    assert_eq!(cursor().await, Some(tick));
    assert!(runs.set_back(&job("flights"), tick - TimeDelta::days(3)).await.unwrap());
    assert_eq!(cursor().await, Some(tick - TimeDelta::days(3)));
    assert!(!runs.set_back(&job("weather"), tick).await.unwrap(), "it is not known");
}
