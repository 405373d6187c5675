//! What a run store promises, on both databases.

use headworks_domain::{Clock, ErrorKind, RunId};
use headworks_flow::{
    exec::{
        AttemptRecord, Claim, ClaimRequest, Kept, Partition, Reprocess, Request, RunFilter, RunStore, Seen, Standing,
        Takes, Trigger,
    },
    machine::{Failure, State},
};
use headworks_meta::{
    Answer, BackfillState, Cancelled, Error, NewBackfill, NewDemand, NewPiece, Outdated, Progress, Role, Runs,
    finish_in,
};
use headworks_store::{Dialect, Store, values};
use serde_json::Map;

use crate::world::{World, claim_one, day, ds, record, wanted};

/// Runs each test on SQLite, on PostgreSQL, and on PostgreSQL behind a pooler.
#[macro_export]
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $test() { super::$test($crate::world::World::sqlite().await).await; })*
        }
        mod postgres {
            $(#[tokio::test] async fn $test() { super::$test($crate::world::World::postgres().await).await; })*
        }
        mod postgres_behind_pgbouncer {
            $(#[tokio::test] async fn $test() { super::$test($crate::world::World::pgbouncer().await).await; })*
        }
    };
}

on_both!(
    a_run_has_one_owner,
    a_lost_reply_to_a_claim_is_settled_by_asking_again,
    the_next_owner_of_a_dead_process_fences_it,
    an_owner_that_renewed_its_lease_meanwhile_keeps_its_runs,
    a_renewal_that_is_on_its_way_counts,
    a_renewal_passes_the_writer,
    who_is_seen_to_be_there_may_be_held_up_by_a_lock,
    a_process_learns_which_of_its_runs_it_lost,
    a_lease_that_ran_out_lets_others_in,
    states_are_kept_until_the_end_and_not_after,
    a_fenced_publish_is_undone_as_a_whole,
    a_success_is_repeated_as_a_new_run,
    producers_are_found_while_they_live,
    runs_are_listed_and_shown,
    forgetting_wipes_a_job_and_nothing_else,
    old_runs_go_but_not_that_their_intervals_are_done,
    a_restored_database_is_nobodys,
    versions_are_kept_once,
    parameters_go_with_the_wish_and_with_the_run,
    many_runs_are_claimed_at_once,
    a_demand_is_answered_by_the_claim_of_its_run_and_by_no_other,
    a_demand_for_what_is_done_is_answered_with_nothing,
    a_backfill_goes_from_piece_to_piece_to_its_end,
    a_cancelled_backfill_starts_nothing_more,
    live_runs_are_cancelled_by_their_owner_and_abandoned_ones_at_once,
    a_wish_outlives_the_owner_that_did_not_see_it,
    a_wish_is_not_lost_to_who_takes_the_run_over,
    ended_runs_are_marked_with_the_reason,
    the_newest_run_of_each_job_and_those_who_serve_are_found,
);

async fn a_process_learns_which_of_its_runs_it_lost(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let mut mine = Vec::new();
    for n in 0..3 {
        let (id, claim) = claim_one(&one, "flights", n).await;
        mine.push((id, claim));
    }
    let fences: Vec<(RunId, i64)> = mine.iter().map(|(id, claim)| (id.clone(), claim.fence)).collect();
    assert_eq!(one.lost(&fences).await.unwrap(), [] as [RunId; 0]);
    // One ends under its own fence, one is taken over, one is gone from the records.
    one.record(vec![record(&mine[0].0, mine[0].1, State::Success, world.clock.now())]).await.unwrap();
    world.machine.gone.lock().unwrap().insert(1);
    let seen = other.show(&mine[1].0).await.unwrap().map(|shown| Seen::from(&shown.run));
    let over = ClaimRequest { seen, ..wanted(&mine[1].0, "flights", 1) };
    assert!(other.claim(vec![over]).await.unwrap()[0].is_some());
    let gone = mine[2].0.clone();
    let deleted: Result<u64, headworks_store::Error> = world
        .store
        .write(move |tx| {
            Box::pin(async move { tx.execute("delete from hw_run where id = $1", &values![gone.as_str()]).await })
        })
        .await;
    assert_eq!(deleted.unwrap(), 1);
    assert_eq!(one.lost(&fences).await.unwrap(), [mine[1].0.clone(), mine[2].0.clone()]);
}

async fn a_run_has_one_owner(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, claim) = claim_one(&one, "flights", 0).await;
    assert_eq!(claim.attempt, 1);
    let second = other.new_run_ids(1).await.unwrap().remove(0);
    assert_ne!(id, second);
    assert_eq!(other.claim(vec![wanted(&second, "flights", 0)]).await.unwrap(), [None]);
    assert!(other.claim(vec![wanted(&second, "flights", 1)]).await.unwrap()[0].is_some(), "another interval");

    let found =
        other.find(&[("flights".parse().unwrap(), day(0)), ("flights".parse().unwrap(), day(5))]).await.unwrap();
    let run = found[0].as_ref().unwrap();
    assert_eq!((&run.id, run.state, run.is_held(), run.owner.as_str()), (&id, State::Waiting, true, "here:1"));
    assert_eq!(found[1], None);
    assert_eq!(other.standing(&[id, "nobody".parse().unwrap()]).await.unwrap(), [Standing::Held, Standing::Unknown]);
}

async fn a_lost_reply_to_a_claim_is_settled_by_asking_again(world: World) {
    let one = world.process(1).await;
    let (id, claim) = claim_one(&one, "flights", 0).await;
    assert_eq!(one.claim(vec![wanted(&id, "flights", 0)]).await.unwrap(), [Some(claim)]);
    let tasks = one.show(&id).await.unwrap().unwrap().tasks;
    assert_eq!(tasks.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["stage", "publish"]);
}

async fn the_next_owner_of_a_dead_process_fences_it(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, old) = claim_one(&one, "flights", 0).await;
    world.machine.gone.lock().unwrap().insert(1);
    assert_eq!(other.standing(std::slice::from_ref(&id)).await.unwrap(), [Standing::Abandoned]);
    let row = other.find(&[("flights".parse().unwrap(), day(0))]).await.unwrap().remove(0).unwrap();
    assert!(!row.is_held() && row.finished_at.is_none());

    let again = ClaimRequest {
        seen: Some(Seen::from(&row)),
        tasks: ["wait_a", "stage", "publish"].iter().map(|t| t.parse().unwrap()).collect(),
        job_version: "v2".to_owned(),
        ..wanted(&id, "flights", 0)
    };
    let new = other.claim(vec![again.clone()]).await.unwrap()[0].unwrap();
    assert!(new.fence > old.fence);
    assert_eq!(new.attempt, 2, "the number of an attempt that may have begun is not used again");
    let third = world.process(3).await;
    assert_eq!(third.claim(vec![again]).await.unwrap(), [None], "the row is not as it was seen");
    let shown = other.show(&id).await.unwrap().unwrap();
    assert_eq!((shown.tasks.len(), shown.run.job_version.as_str()), (3, "v2"), "the plan may have changed shape");

    // The old owner was only stopped for a while.
    let now = world.clock.now();
    let zombie = record(&id, old, State::Success, now);
    assert_eq!(one.record(vec![zombie.clone()]).await.unwrap(), [Kept::Fenced]);
    let published = world.store.write(move |tx| Box::pin(async move { finish_in(tx, &zombie).await })).await;
    assert!(matches!(published, Err(Error::Fenced { .. })), "{published:?}");
    assert_eq!(other.record(vec![record(&id, new, State::Success, now)]).await.unwrap(), [Kept::Yes]);
    assert_eq!(other.standing(&[id]).await.unwrap(), [Standing::Over(State::Success)]);
}

async fn an_owner_that_renewed_its_lease_meanwhile_keeps_its_runs(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, _) = claim_one(&one, "flights", 0).await;
    let (ended, claim) = claim_one(&one, "flights", 1).await;
    one.record(vec![record(&ended, claim, State::Failed, world.clock.now())]).await.unwrap();
    let gone = |is_gone: bool| {
        let mut gone = world.machine.gone.lock().unwrap();
        if is_gone { gone.insert(1) } else { gone.remove(&1) }
    };
    gone(true);
    let rows = other.find(&[("flights".parse().unwrap(), day(0)), ("flights".parse().unwrap(), day(1))]).await.unwrap();
    let seen: Vec<Option<Seen>> = rows.iter().map(|row| row.as_ref().map(Seen::from)).collect();
    // It only stood still.
    gone(false);
    world.clock.forward(1);
    one.heartbeat().await.unwrap();
    let late = ClaimRequest { seen: seen[0].clone(), ..wanted(&id, "flights", 0) };
    assert_eq!(other.claim(vec![late.clone()]).await.unwrap(), [None]);
    let over = ClaimRequest { seen: seen[1].clone(), ..wanted(&ended, "flights", 1) };
    assert!(other.claim(vec![over]).await.unwrap()[0].is_some(), "a run that is over is nobody's");
    gone(true);
    let seen = other.show(&id).await.unwrap().map(|shown| Seen::from(&shown.run));
    assert!(other.claim(vec![ClaimRequest { seen, ..late }]).await.unwrap()[0].is_some());
}

async fn a_renewal_that_is_on_its_way_counts(world: World) {
    if world.store.dialect() == Dialect::Sqlite {
        // One writes at a time there.
        return;
    }
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, _) = claim_one(&one, "flights", 0).await;
    world.machine.gone.lock().unwrap().insert(1);
    let seen = other.show(&id).await.unwrap().map(|shown| Seen::from(&shown.run));
    let (renewed, is_renewed) = tokio::sync::oneshot::channel();
    let (commit, may_commit) = tokio::sync::oneshot::channel::<()>();
    let elsewhere = Store::open(world.store.options()).await.unwrap();
    let renewal = tokio::spawn(async move {
        let work = elsewhere.write(move |tx| {
            Box::pin(async move {
                let changed =
                    tx.execute("update hw_process set lease_until = lease_until + 1 where pid = 1", &[]).await;
                renewed.send(()).unwrap();
                may_commit.await.unwrap();
                changed
            })
        });
        work.await
    });
    is_renewed.await.unwrap();
    let late = ClaimRequest { seen, ..wanted(&id, "flights", 0) };
    assert_eq!(other.claim(vec![late]).await.unwrap(), [None]);
    commit.send(()).unwrap();
    assert_eq!(renewal.await.unwrap().unwrap(), 1);
}

async fn a_renewal_passes_the_writer(world: World) {
    if world.store.dialect() == Dialect::Sqlite {
        return;
    }
    let one = world.process(1).await;
    claim_one(&one, "flights", 0).await;
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (end, may_end) = tokio::sync::oneshot::channel::<()>();
    let store = world.store.clone();
    let publish = tokio::spawn(async move {
        let work = store.write(move |tx| {
            Box::pin(async move {
                let rows = tx.rows("select id from hw_process", &[]).await;
                begun.send(()).unwrap();
                may_end.await.unwrap();
                rows
            })
        });
        work.await
    });
    has_begun.await.unwrap();
    let lease = async || world.store.rows("select lease_until from hw_process", &[]).await.unwrap()[0].i64(0).unwrap();
    let before = lease().await;
    tokio::time::timeout(std::time::Duration::from_secs(5), one.heartbeat()).await.unwrap().unwrap();
    assert!(lease().await > before);
    end.send(()).unwrap();
    publish.await.unwrap().unwrap();
}

async fn who_is_seen_to_be_there_may_be_held_up_by_a_lock(world: World) {
    if world.store.dialect() == Dialect::Postgres {
        // A server renews leases whatever others do.
        return;
    }
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, _) = claim_one(&one, "flights", 0).await;
    let standing = || async { other.standing(std::slice::from_ref(&id)).await.unwrap().remove(0) };
    one.take_up(Role::Scheduler, &Takes::default()).await.unwrap();
    world.clock.forward(39);
    assert_eq!(standing().await, Standing::Held);
    let second = other.take_up(Role::Scheduler, &Takes::default()).await;
    assert!(matches!(second, Err(Error::SecondScheduler { .. })), "{second:?}");
    world.clock.forward(2);
    assert_eq!(standing().await, Standing::Abandoned, "nobody has a lock for so long");
    one.heartbeat().await.unwrap();
    assert_eq!(standing().await, Standing::Held);
    one.leave().await.unwrap();
    assert_eq!(standing().await, Standing::Abandoned, "it has said so itself");
}

async fn a_lease_that_ran_out_lets_others_in(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    world.machine.elsewhere.lock().unwrap().insert(1);
    let (id, _) = claim_one(&one, "flights", 0).await;
    let standing = || async { other.standing(std::slice::from_ref(&id)).await.unwrap().remove(0) };
    if world.store.dialect() == Dialect::Sqlite {
        world.clock.forward(9);
        one.heartbeat().await.unwrap();
        world.clock.forward(9);
        assert_eq!(standing().await, Standing::Held);
        world.clock.forward(2);
        assert_eq!(standing().await, Standing::Abandoned);
        one.heartbeat().await.unwrap();
    } else {
        // This machine's clock says nothing there.
        world.clock.forward(3600);
    }
    assert_eq!(standing().await, Standing::Held);
    one.leave().await.unwrap();
    assert_eq!(standing().await, Standing::Abandoned);
}

async fn states_are_kept_until_the_end_and_not_after(world: World) {
    let runs = world.process(1).await;
    let (id, claim) = claim_one(&runs, "flights", 0).await;
    let now = world.clock.now();
    assert_eq!(runs.record(vec![record(&id, claim, State::Running, now)]).await.unwrap(), [Kept::Yes]);
    let shown = runs.show(&id).await.unwrap().unwrap();
    assert_eq!((shown.run.state, shown.run.finished_at, shown.tasks[0].state), (State::Running, None, State::Running));

    let failure = Failure::new(ErrorKind::Unavailable, "S3_SLOW", "bucket `b` is slow").with_hint("wait a little");
    let mut broke = record(&id, claim, State::Retry, now);
    broke.failure = Some(failure.clone());
    broke.attempts[0].state = State::Failed;
    broke.attempts[0].failure = Some(failure.clone());
    let second = Claim { attempt: 2, ..claim };
    let done = record(&id, second, State::Success, now);
    assert_eq!(runs.record(vec![broke, done]).await.unwrap(), [Kept::Yes, Kept::Yes]);
    let shown = runs.show(&id).await.unwrap().unwrap();
    assert_eq!((shown.run.state, shown.run.finished_at, shown.run.rows), (State::Success, Some(now), 3));
    assert_eq!(shown.run.failure, None);
    let attempts: Vec<_> = shown.attempts.iter().map(|a| (a.attempt, a.state, a.failure.clone())).collect();
    assert_eq!(attempts, [(1, State::Failed, Some(failure)), (2, State::Success, None)]);

    let late = record(&id, second, State::Cancelled, now);
    let elsewhere = record(&id, Claim { fence: claim.fence + 1, attempt: 2 }, State::Failed, now);
    assert_eq!(runs.record(vec![late, elsewhere]).await.unwrap(), [Kept::Over(State::Success), Kept::Fenced]);
    assert_eq!(runs.show(&id).await.unwrap().unwrap().run.state, State::Success);
}

async fn a_fenced_publish_is_undone_as_a_whole(world: World) {
    let runs = world.process(1).await;
    let (id, claim) = claim_one(&runs, "flights", 0).await;
    world
        .store
        .write(|tx| Box::pin(async move { tx.execute("create table published (run TEXT)", &[]).await }))
        .await
        .map_err(Error::from)
        .unwrap();
    let publish = |claim: Claim| {
        let record = record(&id, claim, State::Success, world.clock.now());
        world.store.write(move |tx| {
            Box::pin(async move {
                tx.execute("insert into published values ($1)", &values![record.run_id.as_str()]).await?;
                finish_in(tx, &record).await
            })
        })
    };
    let stale = Claim { fence: claim.fence - 1, ..claim };
    let (refused, kept) = tokio::join!(publish(stale), publish(claim));
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    kept.unwrap();
    let again = publish(claim).await;
    assert!(matches!(again, Err(Error::Fenced { .. })), "a run ends once: {again:?}");
    let rows = world.store.rows("select count(*) from published", &[]).await.unwrap();
    assert_eq!(rows[0].i64(0).unwrap(), 1);
}

async fn a_success_is_repeated_as_a_new_run(world: World) {
    let runs = world.process(1).await;
    let (first, claim) = claim_one(&runs, "flights", 0).await;
    runs.record(vec![record(&first, claim, State::Success, world.clock.now())]).await.unwrap();
    let seen = Some(Seen { run_id: first.clone(), fence: claim.fence, lease_until: None });
    let over = ClaimRequest { seen: seen.clone(), ..wanted(&first, "flights", 0) };
    assert_eq!(runs.claim(vec![over]).await.unwrap(), [None], "a success is never taken over");
    let second = runs.new_run_ids(1).await.unwrap().remove(0);
    let unseen = wanted(&second, "flights", 0);
    assert_eq!(runs.claim(vec![unseen.clone()]).await.unwrap(), [None], "somebody else has done it since we looked");
    let claim = runs.claim(vec![ClaimRequest { seen, ..unseen }]).await.unwrap()[0].unwrap();
    let found = runs.find(&[("flights".parse().unwrap(), day(0))]).await.unwrap().remove(0).unwrap();
    assert_eq!(found.id, second, "the newest counts");

    // A failed run goes on under its id.
    runs.record(vec![record(&second, claim, State::Failed, world.clock.now())]).await.unwrap();
    let seen = Some(Seen { run_id: second.clone(), fence: claim.fence, lease_until: None });
    let failed = ClaimRequest { seen, ..wanted(&second, "flights", 0) };
    let again = runs.claim(vec![failed]).await.unwrap()[0].unwrap();
    assert_eq!(again.attempt, 2);
    let run = runs.show(&second).await.unwrap().unwrap().run;
    assert_eq!((run.state, run.finished_at, run.failure), (State::Waiting, None, None));
}

async fn producers_are_found_while_they_live(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, claim) = claim_one(&one, "flights", 3).await;
    let partition = |n| Partition::new("flights".parse().unwrap(), headworks_domain::PartitionKey::day(ds(n)));
    let asked = [partition(2), partition(3), partition(4)];
    assert_eq!(one.producers(&asked).await.unwrap(), [], "the own runs are known");
    let found = other.producers(&asked).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].run_id, &found[0].partitions), (&id, &vec![partition(3)]));
    one.record(vec![record(&id, claim, State::Failed, world.clock.now())]).await.unwrap();
    assert_eq!(other.producers(&asked).await.unwrap(), []);
    claim_one(&one, "flights", 4).await;
    world.machine.gone.lock().unwrap().insert(1);
    assert_eq!(other.producers(&asked).await.unwrap(), [], "a dead process publishes nothing");
}

async fn runs_are_listed_and_shown(world: World) {
    let runs = world.process(1).await;
    let mut ids: Vec<RunId> = Vec::new();
    for (job, n) in [("flights", 0), ("flights", 1), ("weather", 1)] {
        let (id, claim) = claim_one(&runs, job, n).await;
        if n == 1 {
            runs.record(vec![record(&id, claim, State::Success, world.clock.now())]).await.unwrap();
        }
        ids.push(id);
    }
    let check = async |filter: RunFilter, expected: &[&RunId]| {
        let listed: Vec<RunId> = runs.list(&filter).await.unwrap().into_iter().map(|r| r.id).collect();
        assert_eq!(listed.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    };
    check(RunFilter::default(), &[&ids[2], &ids[1], &ids[0]]).await;
    check(RunFilter { job: Some("flights".parse().unwrap()), ..RunFilter::default() }, &[&ids[1], &ids[0]]).await;
    check(RunFilter { state: Some(State::Success), ..RunFilter::default() }, &[&ids[2], &ids[1]]).await;
    check(RunFilter { ds: Some(ds(0)), ..RunFilter::default() }, &[&ids[0]]).await;
    check(RunFilter { live: true, ..RunFilter::default() }, &[&ids[0]]).await;
    check(RunFilter { limit: 1, ..RunFilter::default() }, &[&ids[2]]).await;
    assert!(runs.show(&"nobody".parse().unwrap()).await.unwrap().is_none());
}

async fn forgetting_wipes_a_job_and_nothing_else(world: World) {
    let runs = world.process(1).await;
    let flights = "flights".parse().unwrap();
    let (id, claim) = claim_one(&runs, "flights", 0).await;
    let (kept, _) = claim_one(&runs, "weather", 0).await;
    let busy = runs.forget(&flights).await;
    assert!(matches!(&busy, Err(Error::Busy { run_id, .. }) if *run_id == id), "{busy:?}");
    let mut ended = record(&id, claim, State::Success, world.clock.now());
    // Attempts share a log file.
    ended.attempts.push(AttemptRecord { attempt: 2, ..ended.attempts[0].clone() });
    runs.record(vec![ended]).await.unwrap();
    let logs = [format!("x/{id}-1.log")];
    let memory = runs.memory(&flights).await.unwrap();
    assert_eq!((memory.runs, memory.tasks, memory.attempts), (vec![("success".to_owned(), 1)], 2, 2));
    assert_eq!((memory.days, &memory.logs[..]), (Some((ds(0).to_string(), ds(0).to_string())), &logs[..]));
    assert_eq!(runs.forget(&flights).await.unwrap(), logs);
    assert!(runs.memory(&flights).await.unwrap().is_empty());
    assert!(runs.show(&id).await.unwrap().is_none());
    assert_eq!(runs.show(&kept).await.unwrap().unwrap().tasks.len(), 2);
    for table in ["hw_task", "hw_attempt"] {
        let rows =
            world.store.rows(&format!("select count(*) from {table} where run_id = $1"), &values![id.as_str()]).await;
        assert_eq!(rows.unwrap()[0].i64(0).unwrap(), 0, "{table}");
    }
}

async fn old_runs_go_but_not_that_their_intervals_are_done(world: World) {
    let runs = world.process(1).await;
    let old = world.clock.now();
    let again = async |before: &RunId, n: i64, state: State| {
        let id = runs.new_run_ids(1).await.unwrap().remove(0);
        let fence = runs.show(before).await.unwrap().unwrap().run.fence;
        let seen = Some(Seen { run_id: before.clone(), fence, lease_until: None });
        let claim = runs.claim(vec![ClaimRequest { seen, ..wanted(&id, "flights", n) }]).await.unwrap()[0].unwrap();
        runs.record(vec![record(&id, claim, state, old)]).await.unwrap();
        id
    };
    let first = async |n: i64, state: State| {
        let (id, claim) = claim_one(&runs, "flights", n).await;
        runs.record(vec![record(&id, claim, state, old)]).await.unwrap();
        id
    };
    let replaced = first(0, State::Success).await;
    let newest = again(&replaced, 0, State::Success).await;
    let success = first(1, State::Success).await;
    let failed_since = again(&success, 1, State::Failed).await;
    let failed = first(2, State::Failed).await;
    let mended = again(&failed, 2, State::Success).await;
    let (live, _) = claim_one(&runs, "flights", 3).await;
    world.clock.forward(100);
    let (young, claim) = claim_one(&runs, "flights", 4).await;
    runs.record(vec![record(&young, claim, State::Success, world.clock.now())]).await.unwrap();

    let before = old + chrono::TimeDelta::seconds(50);
    assert_eq!(runs.outdated(old).await.unwrap(), Outdated::default(), "nothing ended before that");
    let expected = Outdated { runs: 2, details: 4 };
    assert_eq!(runs.outdated(before).await.unwrap(), expected);
    assert_eq!(runs.forget_before(before).await.unwrap(), expected);
    assert_eq!(runs.forget_before(before).await.unwrap(), Outdated::default());
    for gone in [&replaced, &failed] {
        assert!(runs.show(gone).await.unwrap().is_none());
    }
    for known in [&newest, &success, &failed_since, &mended] {
        let shown = runs.show(known).await.unwrap().unwrap();
        assert_eq!((shown.tasks.len(), shown.attempts.len()), (0, 0));
    }
    for whole in [&live, &young] {
        assert_eq!(runs.show(whole).await.unwrap().unwrap().tasks.len(), 2);
    }
    let keys: Vec<_> = (0..3).map(|n| ("flights".parse().unwrap(), day(n))).collect();
    let found: Vec<RunId> = runs.find(&keys).await.unwrap().into_iter().map(|run| run.unwrap().id).collect();
    assert_eq!(found, [newest, failed_since.clone(), mended]);
    // A failed run without its details is taken up as any other.
    let fence = runs.show(&failed_since).await.unwrap().unwrap().run.fence;
    let seen = Some(Seen { run_id: failed_since.clone(), fence, lease_until: None });
    let claim = runs.claim(vec![ClaimRequest { seen, ..wanted(&failed_since, "flights", 1) }]).await.unwrap()[0];
    assert_eq!(claim.unwrap().attempt, 2);
}

async fn a_restored_database_is_nobodys(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, claim) = claim_one(&one, "flights", 0).await;
    let given_out = one.newest_fence().await.unwrap();
    let ids = [id.clone()];
    assert_eq!((claim.fence, other.standing(&ids).await.unwrap()), (given_out, vec![Standing::Held]));
    world.store.write(|tx| Box::pin(async move { headworks_meta::restored(tx).await })).await.unwrap();
    assert_eq!(other.standing(&ids).await.unwrap(), [Standing::Abandoned]);
    // A process is named by when it begins, and this one begins with its claim.
    world.clock.forward(1);
    let seen = Some(Seen { run_id: id.clone(), fence: claim.fence, lease_until: None });
    let taken = other.claim(vec![ClaimRequest { seen, ..wanted(&id, "flights", 0) }]).await.unwrap()[0].unwrap();
    assert!(taken.fence > given_out + 900_000, "above whatever the lost database gave out: {}", taken.fence);
    assert_eq!(one.record(vec![record(&id, claim, State::Success, world.clock.now())]).await.unwrap(), [Kept::Fenced]);
}

async fn versions_are_kept_once(world: World) {
    let runs = world.process(1).await;
    let version = |v: &str, text: &str| ("flights".parse().unwrap(), v.to_owned(), text.to_owned());
    runs.note_versions(vec![version("v1", "select 1")]).await.unwrap();
    runs.note_versions(vec![version("v1", "never"), version("v2", "select 2")]).await.unwrap();
    let job = "flights".parse().unwrap();
    assert_eq!(runs.version_source(&job, "v1").await.unwrap().as_deref(), Some("select 1"));
    assert_eq!(runs.version_source(&job, "v2").await.unwrap().as_deref(), Some("select 2"));
    assert_eq!(runs.version_source(&job, "v3").await.unwrap(), None);
}

async fn parameters_go_with_the_wish_and_with_the_run(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let params: Map<_, _> = [("who".to_owned(), "Ünï \"x\"".into()), ("n".to_owned(), 3.into())].into_iter().collect();
    let new = NewDemand {
        request: request("flights", 0),
        ds: ds(0),
        trigger: Trigger::Manual,
        reprocess: Reprocess::All,
        params: params.clone(),
    };
    one.demand(vec![new]).await.unwrap();
    demand(&one, "flights", 1).await;
    let open = one.open_demands(10).await.unwrap();
    assert_eq!((&open[0].params, open[1].params.is_empty()), (&params, true));

    let id = one.new_run_ids(1).await.unwrap().remove(0);
    one.claim(vec![ClaimRequest { params: params.clone(), ..wanted(&id, "flights", 0) }]).await.unwrap();
    let find = || async { other.find(&[("flights".parse().unwrap(), day(0))]).await.unwrap().remove(0).unwrap() };
    let row = find().await;
    assert_eq!(row.params, params);
    world.machine.gone.lock().unwrap().insert(1);
    let again = ClaimRequest { seen: Some(Seen::from(&row)), params: Map::new(), ..wanted(&id, "flights", 0) };
    other.claim(vec![again]).await.unwrap()[0].unwrap();
    assert!(find().await.params.is_empty(), "whoever takes it over says with which");
}

async fn many_runs_are_claimed_at_once(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let ids = one.new_run_ids(600).await.unwrap();
    let batch: Vec<_> = ids.iter().zip(0..).map(|(id, n)| wanted(id, "flights", n)).collect();
    let others = other.new_run_ids(600).await.unwrap();
    let rival: Vec<_> = others.iter().zip(0..).map(|(id, n)| wanted(id, "flights", n)).collect();
    let (mine, theirs) = tokio::join!(one.claim(batch), other.claim(rival));
    let won = |claims: Vec<Option<Claim>>| claims.iter().flatten().count();
    assert_eq!(won(mine.unwrap()) + won(theirs.unwrap()), 600, "each interval has one owner");
}

fn request(job: &str, n: i64) -> Request {
    Request { job: job.parse().unwrap(), interval: day(n) }
}

async fn demand(runs: &Runs, job: &str, n: i64) -> i64 {
    let new = NewDemand {
        request: request(job, n),
        ds: ds(n),
        trigger: Trigger::Manual,
        reprocess: Reprocess::All,
        params: Map::new(),
    };
    runs.demand(vec![new]).await.unwrap().remove(0)
}

async fn claim_for(runs: &Runs, demand: i64, job: &str, n: i64) -> Option<(RunId, Claim)> {
    let id = runs.new_run_ids(1).await.unwrap().remove(0);
    let seen = runs.find(&[(job.parse().unwrap(), day(n))]).await.unwrap().remove(0).map(|row| Seen::from(&row));
    let wanted = ClaimRequest { demand: Some(demand), seen, ..wanted(&id, job, n) };
    runs.claim(vec![wanted]).await.unwrap().remove(0).map(|claim| (id, claim))
}

async fn a_demand_is_answered_by_the_claim_of_its_run_and_by_no_other(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let first = demand(&one, "flights", 0).await;
    let second = demand(&one, "flights", 1).await;
    let open = other.open_demands(10).await.unwrap();
    assert_eq!(open.iter().map(|d| d.id).collect::<Vec<_>>(), [first, second]);
    assert_eq!((&open[0].request, open[0].reprocess), (&request("flights", 0), Reprocess::All));
    assert_eq!(other.open_demand(&request("flights", 1)).await.unwrap().map(|d| d.id), Some(second));

    let (id, claim) = claim_for(&one, first, "flights", 0).await.expect("the demand is open");
    assert_eq!(other.open_demands(10).await.unwrap().len(), 1);
    let wanted_again = ClaimRequest { demand: Some(first), ..wanted(&id, "flights", 0) };
    assert_eq!(one.claim(vec![wanted_again]).await.unwrap(), [Some(claim)], "the reply was lost, the claim was not");

    // Whoever asks for it once more, as after a crash or from a second process, gets nothing: it would run twice.
    one.record(vec![record(&id, claim, State::Success, world.clock.now())]).await.unwrap();
    assert_eq!(claim_for(&other, first, "flights", 0).await, None);
    assert!(claim_for(&other, second, "flights", 1).await.is_some());
    assert_eq!(other.open_demands(10).await.unwrap(), []);
}

async fn a_demand_for_what_is_done_is_answered_with_nothing(world: World) {
    let runs = world.process(1).await;
    let ids = [demand(&runs, "flights", 0).await, demand(&runs, "flights", 1).await];
    runs.answered(vec![ids[0]]).await.unwrap();
    let open = async || runs.open_demands(10).await.unwrap().iter().map(|d| d.id).collect::<Vec<i64>>();
    assert_eq!(open().await, [ids[1]]);

    let third = demand(&runs, "flights", 2).await;
    let flights = "flights".parse().unwrap();
    assert_eq!(runs.withdraw(&flights, Some(ds(1)), None, false).await.unwrap(), 2);
    assert_eq!(open().await, [ids[1], third], "that only counted");
    assert_eq!(runs.withdraw(&flights, Some(ds(2)), Some(ds(9)), true).await.unwrap(), 1);
    assert_eq!(open().await, [ids[1]]);
}

async fn store_backfill(runs: &Runs, days: i64) -> i64 {
    let new = NewBackfill {
        jobs: vec!["flights".parse().unwrap(), "weather".parse().unwrap()],
        first: ds(0),
        last: ds(days - 1),
        reprocess: Reprocess::Failed,
        at_once: 2,
        pieces: (0..days).map(|n| NewPiece { request: request("flights", n), ds: ds(n), params: Map::new() }).collect(),
    };
    runs.store_backfill(new).await.unwrap()
}

async fn a_backfill_goes_from_piece_to_piece_to_its_end(world: World) {
    let runs = world.process(1).await;
    let id = store_backfill(&runs, 300).await;
    assert_eq!(store_backfill(&runs, 1).await, id + 1);
    let row = runs.backfill(id).await.unwrap().unwrap();
    assert_eq!((row.state, row.at_once, row.jobs.len()), (BackfillState::Running, 2, 2));
    assert_eq!(runs.open_demands(10).await.unwrap(), [], "its pieces are no demands of their own");
    let pieces = runs.pieces(id, true).await.unwrap();
    assert_eq!(pieces.len(), 300);
    assert!(pieces.iter().zip(0..).all(|(piece, n)| piece.request == request("flights", n)), "in their order");

    let (run, claim) = claim_for(&runs, pieces[0].id, "flights", 0).await.unwrap();
    claim_for(&runs, pieces[1].id, "flights", 1).await.unwrap();
    runs.answered(vec![pieces[2].id]).await.unwrap();
    runs.record(vec![record(&run, claim, State::Failed, world.clock.now())]).await.unwrap();
    let expected = Progress { total: 300, open: 297, live: 1, nothing: 1, failed: 1, ..Progress::default() };
    assert_eq!(runs.progress(id).await.unwrap(), expected);
    let all = runs.pieces(id, false).await.unwrap();
    assert_eq!(runs.pieces_by_id(&[pieces[0].id]).await.unwrap(), all[..1]);
    assert_eq!(all[0].answer, Answer::Run { run_id: run, state: Some(State::Failed), over: true });
    let unfinished: Vec<i64> = runs.pieces(id, true).await.unwrap().iter().map(|p| p.id).take(2).collect();
    assert_eq!(unfinished, [pieces[1].id, pieces[3].id]);

    let to = |from, to| runs.move_backfill(id, from, to);
    assert!(to(&[BackfillState::Running], BackfillState::Paused).await.unwrap());
    assert!(!to(&[BackfillState::Running], BackfillState::Done).await.unwrap(), "it is paused");
    let running: Vec<i64> = runs.running_backfills().await.unwrap().iter().map(|b| b.id).collect();
    assert_eq!(running, [id + 1]);
    assert_eq!(runs.backfills().await.unwrap().len(), 2);
}

async fn a_cancelled_backfill_starts_nothing_more(world: World) {
    let runs = world.process(1).await;
    let id = store_backfill(&runs, 3).await;
    let pieces = runs.pieces(id, true).await.unwrap();
    claim_for(&runs, pieces[0].id, "flights", 0).await.unwrap();
    runs.move_backfill(id, &[BackfillState::Running], BackfillState::Cancelled).await.unwrap();
    assert_eq!(claim_for(&runs, pieces[1].id, "flights", 1).await, None, "one that was on its way to be claimed");
    let progress = runs.progress(id).await.unwrap();
    assert_eq!(progress, Progress { total: 3, live: 1, cancelled: 2, ..Progress::default() });
    assert!(runs.backfill(id).await.unwrap().unwrap().finished_at.is_some());
}

async fn live_runs_are_cancelled_by_their_owner_and_abandoned_ones_at_once(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, claim) = claim_one(&one, "flights", 0).await;
    let nobody: RunId = "nobody".parse().unwrap();
    assert_eq!(other.cancel(&[id.clone(), nobody]).await.unwrap(), [Cancelled::Asked, Cancelled::Over]);
    assert_eq!(RunStore::cancel_wishes(&one).await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(RunStore::cancel_wishes(&other).await.unwrap(), [], "it is not its run");
    one.record(vec![record(&id, claim, State::Cancelled, world.clock.now())]).await.unwrap();
    assert_eq!(RunStore::cancel_wishes(&one).await.unwrap(), []);
    assert_eq!(other.cancel(std::slice::from_ref(&id)).await.unwrap(), [Cancelled::Over]);

    let (id, claim) = claim_one(&one, "flights", 1).await;
    one.record(vec![record(&id, claim, State::Running, world.clock.now())]).await.unwrap();
    world.machine.gone.lock().unwrap().insert(1);
    assert_eq!(other.cancel(std::slice::from_ref(&id)).await.unwrap(), [Cancelled::Now]);
    let shown = other.show(&id).await.unwrap().unwrap();
    assert_eq!((shown.run.state, shown.tasks[0].state), (State::Cancelled, State::Cancelled));
    assert_eq!(shown.attempts[0].state, State::Cancelled);
    assert_eq!(
        one.record(vec![record(&id, claim, State::Success, world.clock.now())]).await.unwrap(),
        [Kept::Fenced],
        "an owner that comes back publishes nothing"
    );
}

async fn a_wish_outlives_the_owner_that_did_not_see_it(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (id, _) = claim_one(&one, "flights", 0).await;
    let (kept, _) = claim_one(&one, "flights", 1).await;
    other.cancel(std::slice::from_ref(&id)).await.unwrap();
    assert_eq!(other.end_abandoned_wishes().await.unwrap(), 0, "its owner is there");
    world.machine.gone.lock().unwrap().insert(1);
    let abandoned: Vec<RunId> =
        other.abandoned(10, 10, &Takes::default()).await.unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(abandoned, [kept], "nobody goes on with what is to be cancelled");
    assert_eq!(other.end_abandoned_wishes().await.unwrap(), 1);
    assert_eq!(other.show(&id).await.unwrap().unwrap().run.state, State::Cancelled);
}

async fn a_wish_is_not_lost_to_who_takes_the_run_over(world: World) {
    let (one, other, third) = (world.process(1).await, world.process(2).await, world.process(3).await);
    let (id, _) = claim_one(&one, "flights", 0).await;
    world.machine.gone.lock().unwrap().insert(1);
    let row = other.find(&[("flights".parse().unwrap(), day(0))]).await.unwrap().remove(0).unwrap();
    // The wish comes between the look and the claim.
    third.wish_cancelled(vec![id.clone()]).await.unwrap();
    let again = ClaimRequest { seen: Some(Seen::from(&row)), ..wanted(&id, "flights", 0) };
    other.claim(vec![again]).await.unwrap()[0].unwrap();
    assert_eq!(RunStore::cancel_wishes(&other).await.unwrap(), std::slice::from_ref(&id));
    // A run that is carried out again later is not meant.
    let (ended, claim) = claim_one(&third, "flights", 1).await;
    third.wish_cancelled(vec![ended.clone()]).await.unwrap();
    third.record(vec![record(&ended, claim, State::Cancelled, world.clock.now())]).await.unwrap();
    let seen = Some(Seen { run_id: ended.clone(), fence: claim.fence, lease_until: None });
    third.claim(vec![ClaimRequest { seen, ..wanted(&ended, "flights", 1) }]).await.unwrap()[0].unwrap();
    assert_eq!(RunStore::cancel_wishes(&third).await.unwrap(), []);
}

async fn ended_runs_are_marked_with_the_reason(world: World) {
    let runs = world.process(1).await;
    let (id, claim) = claim_one(&runs, "flights", 0).await;
    let live = runs.mark(&id, State::Skipped, "no".to_owned()).await;
    assert!(matches!(live, Err(Error::Live { .. })), "{live:?}");
    runs.record(vec![record(&id, claim, State::Failed, world.clock.now())]).await.unwrap();
    runs.mark(&id, State::Skipped, "the shop was closed".to_owned()).await.unwrap();
    world.clock.forward(1);
    runs.mark(&id, State::Success, "done by hand".to_owned()).await.unwrap();
    assert_eq!(runs.show(&id).await.unwrap().unwrap().run.state, State::Success);
    let marks: Vec<_> = runs.marks(&id).await.unwrap().into_iter().map(|m| (m.was, m.state, m.reason, m.by)).collect();
    let by = || "here:1".to_owned();
    assert_eq!(
        marks,
        [
            (State::Failed, State::Skipped, "the shop was closed".to_owned(), by()),
            (State::Skipped, State::Success, "done by hand".to_owned(), by()),
        ]
    );
}

async fn the_newest_run_of_each_job_and_those_who_serve_are_found(world: World) {
    let (one, other) = (world.process(1).await, world.process(2).await);
    let (old, claim) = claim_one(&one, "flights", 5).await;
    one.record(vec![record(&old, claim, State::Failed, world.clock.now())]).await.unwrap();
    let ids = one.new_run_ids(3).await.unwrap();
    let together = vec![wanted(&ids[0], "flights", 1), wanted(&ids[1], "flights", 2), wanted(&ids[2], "weather", 1)];
    one.claim(together).await.unwrap();
    let newest: Vec<RunId> = other.newest_runs().await.unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(newest, [ids[1].clone(), ids[2].clone()]);
    assert_eq!(other.schedulers().await.unwrap(), Vec::<String>::new());
    one.take_up(Role::Scheduler, &Takes::default()).await.unwrap();
    assert_eq!(other.schedulers().await.unwrap(), ["here:1"]);
    world.machine.gone.lock().unwrap().insert(1);
    assert_eq!(other.schedulers().await.unwrap(), Vec::<String>::new());
}
