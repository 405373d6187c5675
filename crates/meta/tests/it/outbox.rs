//! What the outbox of alerts promises, on both databases.

use std::time::Duration;

use headworks_domain::{Clock, PartitionKey, RunId};
use headworks_flow::{
    TargetName,
    alert::{Event, EventKind},
    exec::{Claim, ClaimRequest, RunStore, Seen},
    machine::State,
};
use headworks_meta::{AlertState, Failing, Missed, Notice, Outbox, Parcel, Runs};

use crate::world::{World, claim_one, day, ds, record, wanted};

/// Runs each test on SQLite and on PostgreSQL.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $test() { super::$test(super::World::sqlite().await).await; })*
        }
        mod postgres {
            $(#[tokio::test] async fn $test() { super::$test(super::World::postgres().await).await; })*
        }
    };
}

on_both!(
    an_event_is_told_once,
    events_that_come_close_together_are_one_message,
    a_parcel_has_one_sender_at_a_time,
    a_try_that_failed_is_repeated_as_the_same_message,
    what_is_given_up_stays_in_the_list,
    many_senders_share_the_parcels,
    a_later_run_recovers_a_failing_interval,
    a_missed_deadline_is_told_once_and_remembered,
    old_alerts_are_forgotten,
);

const GROUP: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(60);

async fn outbox(world: &World) -> Outbox {
    world.process(1).await;
    Outbox::open(world.store.clone(), world.clock.clone()).await.unwrap()
}

fn event(kind: EventKind, job: &str, n: i64) -> Event {
    Event {
        kind,
        job: job.parse().unwrap(),
        partition: PartitionKey::day(ds(n)),
        interval_start: day(n).start(),
        interval_end: day(n).end(),
        at: day(n).end(),
        owner: None,
        run_id: None,
        attempt: None,
        failure: None,
        due: None,
        timezone: None,
        blocked_by: Vec::new(),
    }
}

fn targets(names: &[&str]) -> Vec<TargetName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn notice(job: &str, n: i64, to: &[&str]) -> Notice {
    Notice { event: event(EventKind::Failure, job, n), targets: targets(to) }
}

/// Parcels as `target: job job`.
fn shown(parcels: &[Parcel]) -> Vec<String> {
    let jobs = |parcel: &Parcel| parcel.events.iter().map(|e| e.job.to_string()).collect::<Vec<_>>().join(" ");
    parcels.iter().map(|parcel| format!("{}: {}", parcel.target, jobs(parcel))).collect()
}

async fn an_event_is_told_once(world: World) {
    let (one, other) = (outbox(&world).await, outbox(&world).await);
    assert_eq!(one.add(vec![notice("a", 0, &["team", "mail"])]).await.unwrap(), 2);
    assert_eq!(other.add(vec![notice("a", 0, &["team", "mail"])]).await.unwrap(), 0, "seen by another process too");
    assert_eq!(other.add(vec![notice("a", 0, &["pager"]), notice("a", 1, &[])]).await.unwrap(), 1);
    world.clock.forward(31);
    assert_eq!(shown(&one.claim("one", GROUP, LEASE).await.unwrap()), ["mail: a", "pager: a", "team: a"]);
    assert_eq!(one.add(vec![notice("a", 0, &["team"])]).await.unwrap(), 0, "nor when it is on its way");
}

async fn events_that_come_close_together_are_one_message(world: World) {
    let outbox = outbox(&world).await;
    assert_eq!(outbox.next_due(GROUP).await.unwrap(), None);
    outbox.add(vec![notice("b", 0, &["team"])]).await.unwrap();
    let due = world.clock.now() + GROUP;
    world.clock.forward(20);
    outbox.add(vec![notice("a", 0, &["team"]), notice("c", 0, &["mail"])]).await.unwrap();
    assert_eq!(outbox.next_due(GROUP).await.unwrap(), Some(due));
    assert_eq!(outbox.claim("me", GROUP, LEASE).await.unwrap(), [], "the first is 20 seconds old");
    world.clock.forward(10);
    let parcels = outbox.claim("me", GROUP, LEASE).await.unwrap();
    assert_eq!(shown(&parcels), ["team: b a"], "in the order in which they were noticed");
    outbox.sent(&parcels[0]).await.unwrap();
    outbox.add(vec![notice("d", 0, &["team"])]).await.unwrap();
    world.clock.forward(30);
    assert_eq!(shown(&outbox.claim("me", GROUP, LEASE).await.unwrap()), ["mail: c", "team: d"]);
}

async fn a_parcel_has_one_sender_at_a_time(world: World) {
    let (one, other) = (outbox(&world).await, outbox(&world).await);
    one.add(vec![notice("a", 0, &["team"])]).await.unwrap();
    world.clock.forward(30);
    let first = one.claim("one", GROUP, LEASE).await.unwrap();
    assert_eq!(shown(&first), ["team: a"]);
    assert_eq!(other.claim("other", GROUP, LEASE).await.unwrap(), []);
    assert_eq!(other.next_due(GROUP).await.unwrap(), Some(world.clock.now() + LEASE));
    // The first sender is gone: the next one sends the same message.
    world.clock.forward(60);
    let second = other.claim("other", GROUP, LEASE).await.unwrap();
    assert_eq!((second[0].attempt, &second[0].message_id), (2, &first[0].message_id));
    // It was not gone, only slow: its failure is no longer heard, its success is.
    one.not_sent(&first[0], "too slow", Some(world.clock.now())).await.unwrap();
    assert_eq!(one.claim("one", GROUP, LEASE).await.unwrap(), []);
    one.sent(&first[0]).await.unwrap();
    other.not_sent(&second[0], "refused", Some(world.clock.now())).await.unwrap();
    assert_eq!(one.list(None, 10).await.unwrap()[0].state, AlertState::Sent);
    assert_eq!(one.next_due(GROUP).await.unwrap(), None);
}

async fn a_try_that_failed_is_repeated_as_the_same_message(world: World) {
    let outbox = outbox(&world).await;
    outbox.add(vec![notice("a", 0, &["team"])]).await.unwrap();
    world.clock.forward(30);
    let first = outbox.claim("me", GROUP, LEASE).await.unwrap().remove(0);
    let later = world.clock.now() + Duration::from_secs(10);
    outbox.not_sent(&first, "the server is away", Some(later)).await.unwrap();
    // What is noticed meanwhile does not change a message that may have arrived.
    outbox.add(vec![notice("b", 0, &["team"])]).await.unwrap();
    assert_eq!(outbox.next_due(GROUP).await.unwrap(), Some(later));
    assert_eq!(outbox.claim("me", GROUP, LEASE).await.unwrap(), []);
    world.clock.forward(10);
    let again = outbox.claim("me", GROUP, LEASE).await.unwrap();
    assert_eq!(shown(&again), ["team: a"]);
    assert_eq!((&again[0].message_id, again[0].attempt, again[0].since), (&first.message_id, 2, first.since));
    let row = outbox.list(Some(AlertState::Pending), 10).await.unwrap().remove(1);
    assert_eq!(
        (row.error.as_deref(), row.attempts, row.message_id),
        (Some("the server is away"), 2, Some(first.message_id))
    );
}

async fn what_is_given_up_stays_in_the_list(world: World) {
    let outbox = outbox(&world).await;
    outbox.add(vec![notice("a", 0, &["team"])]).await.unwrap();
    world.clock.forward(30);
    let parcel = outbox.claim("me", GROUP, LEASE).await.unwrap().remove(0);
    outbox.not_sent(&parcel, "no such channel", None).await.unwrap();
    world.clock.forward(100_000);
    assert_eq!(outbox.claim("me", GROUP, LEASE).await.unwrap(), []);
    let listed = outbox.list(Some(AlertState::GivenUp), 10).await.unwrap();
    assert_eq!((listed.len(), listed[0].error.as_deref()), (1, Some("no such channel")));
    assert_eq!(outbox.list(Some(AlertState::Sent), 10).await.unwrap(), []);
}

async fn many_senders_share_the_parcels(world: World) {
    let outbox = outbox(&world).await;
    let names: Vec<String> = (0..10).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // More than one parcel holds.
    let notices = (0..600).map(|n| notice("a", n, &names[..if n < 20 { 10 } else { 1 }])).collect();
    assert_eq!(outbox.add(notices).await.unwrap(), 20 * 10 + 580);
    world.clock.forward(30);
    let senders = (0..8).map(|n| {
        let outbox = outbox.clone();
        async move {
            let mut sent = 0;
            loop {
                let parcels = outbox.claim(&format!("s{n}"), GROUP, LEASE).await.unwrap();
                if parcels.is_empty() {
                    return sent;
                }
                for parcel in parcels {
                    sent += parcel.events.len();
                    outbox.sent(&parcel).await.unwrap();
                }
            }
        }
    });
    let sent: usize = futures::future::join_all(senders).await.into_iter().sum();
    assert_eq!(sent, 780, "each event once");
    assert_eq!(outbox.list(Some(AlertState::Sent), 1_000).await.unwrap().len(), 780);
}

async fn a_later_run_recovers_a_failing_interval(world: World) {
    let (outbox, runs) = (outbox(&world).await, world.process(1).await);
    let (id, claim) = claim_one(&runs, "a", 0).await;
    world.clock.forward(10);
    runs.record(vec![record(&id, claim, State::Failed, world.clock.now())]).await.unwrap();
    let failing = Failing { job: "a".parse().unwrap(), interval: day(0), failed_at: world.clock.now() };
    outbox.failed(failing.clone(), id, notice("a", 0, &["team"])).await.unwrap();
    assert_eq!(outbox.recoveries().await.unwrap(), []);
    // Another day of the job is no recovery of this one.
    let (other, claim) = claim_one(&runs, "a", 1).await;
    world.clock.forward(10);
    runs.record(vec![record(&other, claim, State::Success, world.clock.now())]).await.unwrap();
    assert_eq!(outbox.recoveries().await.unwrap(), []);

    let (again, claim) = claim_again(&runs, "a", 0).await;
    world.clock.forward(10);
    runs.record(vec![record(&again, claim, State::Success, world.clock.now())]).await.unwrap();
    let found = outbox.recoveries().await.unwrap();
    assert_eq!((found.len(), &found[0].failing, &found[0].run_id), (1, &failing, &again));
    assert_eq!(found[0].published_at, world.clock.now());
    let told = Notice { event: event(EventKind::Recovery, "a", 0), targets: targets(&["team"]) };
    outbox.recovered(failing.clone(), Some(told.clone())).await.unwrap();
    // Another process noticed it too.
    let late = Notice { event: event(EventKind::Recovery, "b", 0), ..told };
    outbox.recovered(failing, Some(late)).await.unwrap();
    assert_eq!(outbox.recoveries().await.unwrap(), []);
    assert_eq!(outbox.list(None, 10).await.unwrap().len(), 2, "the failure and one recovery");
}

/// Takes a run over that ended.
async fn claim_again(runs: &Runs, job: &str, n: i64) -> (RunId, Claim) {
    let row = runs.find(&[(job.parse().unwrap(), day(n))]).await.unwrap().remove(0).unwrap();
    let request = ClaimRequest { seen: Some(Seen::from(&row)), ..wanted(&row.id, job, n) };
    let claim = runs.claim(vec![request]).await.unwrap().remove(0);
    (row.id, claim.expect("a run that failed can be claimed"))
}

async fn a_missed_deadline_is_told_once_and_remembered(world: World) {
    let outbox = outbox(&world).await;
    let since = outbox.watch(vec!["a".parse().unwrap()]).await.unwrap();
    world.clock.forward(100);
    let again = outbox.watch(vec!["a".parse().unwrap(), "b".parse().unwrap()]).await.unwrap();
    assert_eq!(again[&"a".parse().unwrap()], since[&"a".parse().unwrap()], "since it was seen first");
    assert_eq!(again[&"b".parse().unwrap()], world.clock.now());

    let missed = Missed { job: "a".parse().unwrap(), interval: day(0), due: world.clock.now() };
    let told = Notice { event: event(EventKind::Deadline, "a", 0), targets: targets(&["team"]) };
    for _ in 0..2 {
        outbox.missed(missed.clone(), told.clone()).await.unwrap();
    }
    assert_eq!(outbox.open_misses().await.unwrap(), std::slice::from_ref(&missed));
    let late = Notice { event: event(EventKind::Late, "a", 0), targets: targets(&["team"]) };
    for _ in 0..2 {
        outbox.published_late(missed.clone(), Some(late.clone())).await.unwrap();
    }
    assert_eq!(outbox.open_misses().await.unwrap(), []);
    let kinds: Vec<EventKind> = outbox.list(None, 10).await.unwrap().iter().map(|row| row.event.kind).collect();
    assert_eq!(kinds.len(), 2, "{kinds:?}");
}

async fn old_alerts_are_forgotten(world: World) {
    let outbox = outbox(&world).await;
    outbox.add(vec![notice("a", 0, &["team"])]).await.unwrap();
    world.clock.forward(30);
    let parcel = outbox.claim("me", GROUP, LEASE).await.unwrap().remove(0);
    outbox.sent(&parcel).await.unwrap();
    outbox.add(vec![notice("b", 0, &["team"])]).await.unwrap();
    assert_eq!(outbox.forget(world.clock.now() - Duration::from_secs(31)).await.unwrap(), 0);
    world.clock.forward(1_000);
    assert_eq!(outbox.forget(world.clock.now()).await.unwrap(), 1, "one on its way is kept");
    assert_eq!(outbox.list(None, 10).await.unwrap().len(), 1);
}
