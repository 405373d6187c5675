//! Slots of named pools, on both databases.

use headworks_domain::{Clock, RunId};
use headworks_flow::{
    exec::{Claim, ClaimRequest, Kept, RunRecord, RunStore, Seen, SlotRequest, Slots},
    machine::State,
};
use headworks_meta::{Runs, finish_in};

use crate::{
    on_both,
    world::{World, claim_one, record, wanted},
};

on_both!(
    a_pool_is_shared_by_all_processes,
    a_wish_that_comes_twice_takes_its_slots_once,
    who_does_not_fit_keeps_the_small_behind_it,
    slots_come_back_with_the_end_of_a_run,
    a_dead_process_holds_no_slots,
    who_stood_still_past_its_lease_holds_what_it_had,
    only_the_owner_of_a_run_takes_slots_for_it,
    the_newest_size_counts,
    a_pool_is_full_for_whoever_races,
    who_has_the_slots_is_told,
);

fn request(number: i64, pool: &str, slots: usize, (run_id, claim): &(RunId, Claim)) -> SlotRequest {
    let (pool, run_id, task) = (pool.to_owned(), run_id.clone(), "stage".parse().unwrap());
    SlotRequest { number, pool, slots, run_id, fence: claim.fence, task }
}

async fn say(runs: &Runs, slots: u32) {
    runs.say_pools(&[("etl".to_owned(), slots), ("api".to_owned(), 1)].into()).await.unwrap();
}

/// Two processes, each with a run, and a pool of so many slots.
async fn two(world: &World, slots: u32) -> [(Runs, (RunId, Claim)); 2] {
    let (one, other) = (world.process(1).await, world.process(2).await);
    for runs in [&one, &other] {
        runs.heartbeat().await.unwrap();
    }
    say(&one, slots).await;
    let (first, second) = (claim_one(&one, "flights", 0).await, claim_one(&other, "weather", 0).await);
    [(one, first), (other, second)]
}

async fn take(runs: &Runs, given: &[i64], wanted: Vec<SlotRequest>) -> Vec<Slots> {
    runs.slots(given.to_vec(), wanted).await.unwrap()
}

fn over(run: &(RunId, Claim), world: &World) -> RunRecord {
    RunRecord { pooled: true, ..record(&run.0, run.1, State::Success, world.clock.now()) }
}

async fn a_pool_is_shared_by_all_processes(world: World) {
    let [(one, a), (other, b)] = two(&world, 1).await;
    assert_eq!(take(&one, &[], vec![request(1, "etl", 1, &a)]).await, [Slots::Taken]);
    assert_eq!(take(&other, &[], vec![request(1, "etl", 1, &b)]).await, [Slots::Full]);
    assert_eq!(take(&other, &[], vec![request(2, "api", 1, &b)]).await, [Slots::Taken], "another pool");
    assert_eq!(take(&one, &[1], Vec::new()).await, []);
    assert_eq!(take(&other, &[], vec![request(3, "etl", 1, &b)]).await, [Slots::Taken]);
    // Given back and taken in one go.
    assert_eq!(take(&other, &[3], vec![request(4, "etl", 1, &b)]).await, [Slots::Taken]);
    assert_eq!(take(&one, &[], vec![request(2, "etl", 1, &a)]).await, [Slots::Full]);
}

async fn a_wish_that_comes_twice_takes_its_slots_once(world: World) {
    let [(one, a), _] = two(&world, 2).await;
    for _ in 0..2 {
        assert_eq!(take(&one, &[], vec![request(1, "etl", 1, &a)]).await, [Slots::Taken]);
    }
    assert_eq!(take(&one, &[], vec![request(2, "etl", 1, &a)]).await, [Slots::Taken]);
    assert_eq!(
        take(&one, &[], vec![request(1, "etl", 1, &a), request(3, "etl", 1, &a)]).await[..],
        [Slots::Taken, Slots::Full]
    );
}

async fn who_does_not_fit_keeps_the_small_behind_it(world: World) {
    let [(one, a), (other, b)] = two(&world, 4).await;
    assert_eq!(take(&other, &[], vec![request(1, "etl", 2, &b)]).await, [Slots::Taken]);
    let wanted = vec![request(1, "etl", 3, &a), request(2, "etl", 1, &a), request(3, "api", 9, &a)];
    assert_eq!(take(&one, &[], wanted.clone()).await, [Slots::Full, Slots::Full, Slots::Taken]);
    assert_eq!(take(&other, &[1], Vec::new()).await, []);
    assert_eq!(take(&one, &[], wanted[..2].to_vec()).await, [Slots::Taken, Slots::Taken]);
}

async fn slots_come_back_with_the_end_of_a_run(world: World) {
    let [(one, a), (other, b)] = two(&world, 1).await;
    assert_eq!(take(&one, &[], vec![request(1, "etl", 1, &a)]).await, [Slots::Taken]);
    let running = RunRecord { pooled: true, ..record(&a.0, a.1, State::Running, world.clock.now()) };
    one.record(vec![running]).await.unwrap();
    assert_eq!(take(&other, &[], vec![request(1, "etl", 1, &b)]).await, [Slots::Full], "it runs");
    // In the transaction of the publish, or of the record.
    let record = over(&a, &world);
    world.store.write(move |tx| Box::pin(async move { finish_in(tx, &record).await })).await.unwrap();
    assert_eq!(take(&other, &[], vec![request(1, "etl", 1, &b)]).await, [Slots::Taken]);
    assert_eq!(other.record(vec![over(&b, &world)]).await.unwrap(), [Kept::Yes]);
    let c = claim_one(&one, "flights", 1).await;
    assert_eq!(take(&one, &[], vec![request(2, "etl", 1, &c)]).await, [Slots::Taken]);
}

async fn a_dead_process_holds_no_slots(world: World) {
    let [(one, a), (other, b)] = two(&world, 1).await;
    assert_eq!(take(&one, &[], vec![request(1, "etl", 1, &a)]).await, [Slots::Taken]);
    assert_eq!(take(&other, &[], vec![request(1, "etl", 1, &b)]).await, [Slots::Full]);
    world.machine.gone.lock().unwrap().insert(1);
    assert_eq!(take(&other, &[], vec![request(1, "etl", 1, &b)]).await, [Slots::Taken]);
    assert_eq!(take(&other, &[1], Vec::new()).await, []);
    // Whoever takes its run over starts with none.
    let row = other.show(&a.0).await.unwrap().unwrap().run;
    let ask = ClaimRequest { seen: Some(Seen::from(&row)), ..wanted(&a.0, "flights", 0) };
    let claim = other.claim(vec![ask]).await.unwrap()[0].unwrap();
    world.machine.gone.lock().unwrap().clear();
    assert_eq!(take(&other, &[], vec![request(2, "etl", 1, &(a.0, claim))]).await, [Slots::Taken]);
}

/// The lease of the first runs out by being set so, for PostgreSQL's clock is its own.
async fn who_stood_still_past_its_lease_holds_what_it_had(world: World) {
    let [(one, a), (other, b)] = two(&world, 2).await;
    assert_eq!(take(&one, &[], vec![request(1, "etl", 2, &a)]).await, [Slots::Taken]);
    one.leave().await.unwrap();
    assert_eq!(take(&other, &[], vec![request(1, "etl", 1, &b)]).await, [Slots::Taken], "it seems gone");
    // It is back, and has its two besides the one of the other: nobody gets more.
    assert_eq!(take(&one, &[], vec![request(2, "etl", 1, &a)]).await, [Slots::Full]);
    one.heartbeat().await.unwrap();
    assert_eq!(take(&other, &[1], vec![request(2, "etl", 1, &b)]).await, [Slots::Full]);
    assert_eq!(take(&one, &[1], vec![request(3, "etl", 1, &a)]).await, [Slots::Taken]);
    assert_eq!(take(&other, &[], vec![request(3, "etl", 1, &b)]).await, [Slots::Taken]);
}

async fn only_the_owner_of_a_run_takes_slots_for_it(world: World) {
    let [(one, a), (other, b)] = two(&world, 1).await;
    assert_eq!(take(&other, &[], vec![request(1, "etl", 1, &a)]).await, [Slots::Fenced], "another's run");
    let old = (a.0.clone(), Claim { fence: a.1.fence - 1, attempt: 1 });
    assert_eq!(take(&one, &[], vec![request(1, "etl", 1, &old)]).await, [Slots::Fenced]);
    one.record(vec![over(&a, &world)]).await.unwrap();
    let asked = vec![request(1, "etl", 1, &a)];
    assert_eq!(take(&one, &[], asked).await, [Slots::Fenced], "it is over");
    assert_eq!(take(&other, &[], vec![request(2, "etl", 1, &b)]).await, [Slots::Taken], "they hold nothing");
}

async fn the_newest_size_counts(world: World) {
    let [(one, a), (other, b)] = two(&world, 1).await;
    assert_eq!(take(&one, &[], vec![request(1, "etl", 1, &a)]).await, [Slots::Taken]);
    say(&other, 3).await;
    assert_eq!(take(&other, &[], vec![request(1, "etl", 9, &b)]).await, [Slots::Full], "all there are");
    assert_eq!(take(&other, &[], vec![request(1, "etl", 2, &b)]).await, [Slots::Taken]);
    say(&one, 2).await;
    assert_eq!(take(&one, &[1], vec![request(2, "etl", 1, &a)]).await, [Slots::Full], "two are taken");
    // One that nobody has said bounds nothing.
    assert_eq!(take(&one, &[], vec![request(3, "never", 7, &a)]).await, [Slots::Taken]);
}

async fn a_pool_is_full_for_whoever_races(world: World) {
    let [(one, a), (other, b)] = two(&world, 3).await;
    for round in 0..20_i64 {
        let five = |run| (1..=5).map(|n| request(round * 10 + n, "etl", 1, run)).collect::<Vec<_>>();
        let (mine, theirs) = tokio::join!(take(&one, &[], five(&a)), take(&other, &[], five(&b)));
        let taken = mine.iter().chain(&theirs).filter(|slots| **slots == Slots::Taken).count();
        assert_eq!(taken, 3, "{mine:?} {theirs:?}");
        let numbers: Vec<i64> = (1..=5).map(|n| round * 10 + n).collect();
        take(&one, &numbers, Vec::new()).await;
        take(&other, &numbers, Vec::new()).await;
    }
}

async fn who_has_the_slots_is_told(world: World) {
    let [(one, a), (other, b)] = two(&world, 4).await;
    take(&one, &[], vec![request(1, "etl", 3, &a)]).await;
    take(&other, &[], vec![request(1, "etl", 1, &b), request(2, "api", 1, &b)]).await;
    let told = |pools: Vec<headworks_meta::PoolRow>| -> Vec<(String, usize, usize, Vec<String>)> {
        let holder =
            |h: &headworks_meta::Holder| format!("{} {} {} of {} by {}", h.slots, h.task, h.ds, h.job, h.process);
        let pool =
            |p: headworks_meta::PoolRow| (p.name.clone(), p.slots, p.taken(), p.holders.iter().map(holder).collect());
        pools.into_iter().map(pool).collect()
    };
    let weather = "1 stage 2013-01-01 of weather by here:2".to_owned();
    let flights = "3 stage 2013-01-01 of flights by here:1".to_owned();
    assert_eq!(
        told(one.pools().await.unwrap()),
        [("api".to_owned(), 1, 1, vec![weather.clone()]), ("etl".to_owned(), 4, 4, vec![flights, weather.clone()])]
    );
    world.machine.gone.lock().unwrap().insert(1);
    assert_eq!(told(other.pools().await.unwrap())[1], ("etl".to_owned(), 4, 1, vec![weather]));
}
