//! The executor over a store, a registry and a runner in memory.

mod memory;
mod outside;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{TimeDelta, TimeZone, Utc};
use headworks_domain::{Ds, Interval, JobName, PartitionKey, TableName};
use headworks_flow::{
    TaskKind, TaskOptions, TaskPlan, WaitOn,
    exec::{
        Executor, ExecutorOptions, Partition, Planner, Progress, Reprocess, Request, RunLimits, RunShape, RunStore,
        Summary,
    },
    machine::{RetryPolicy, State},
};
use memory::{Database, Faults, Handle, Shapes, Worker, clock};
use tokio::sync::{mpsc, watch};

use crate::chance::Chance;

fn job(name: &str) -> JobName {
    name.parse().unwrap()
}

fn table(name: &str) -> TableName {
    name.parse().unwrap()
}

fn day(n: i64) -> Interval {
    let start = Utc.with_ymd_and_hms(2013, 1, 1, 0, 0, 0).unwrap() + TimeDelta::days(n);
    Interval::new(start, start + TimeDelta::days(1)).unwrap()
}

fn ds(n: i64) -> Ds {
    Ds::from(day(n).start().date_naive())
}

fn partition(table_name: &str, n: i64) -> Partition {
    Partition::new(table(table_name), PartitionKey::day(ds(n)))
}

/// A daily run of `name` that waits for days of other tables.
fn shape(name: &str, n: i64, waits: &[(&str, Vec<i64>)]) -> RunShape {
    let waits: Vec<WaitOn> = waits
        .iter()
        .map(|(on, days)| WaitOn {
            task: format!("wait_{on}").parse().unwrap(),
            table: table(on),
            partitions: days.iter().map(|d| PartitionKey::day(ds(*d))).collect(),
            upto: None,
        })
        .collect();
    let task = |name, kind, after| TaskPlan { name, kind, after, options: TaskOptions::default() };
    let mut tasks: Vec<TaskPlan> = waits.iter().map(|w| task(w.task.clone(), TaskKind::Wait, Vec::new())).collect();
    let mut after: Vec<_> = waits.iter().map(|w| w.task.clone()).collect();
    for (name, kind) in [
        ("stage", TaskKind::Stage),
        ("check", TaskKind::Check),
        ("publish", TaskKind::Publish),
        ("latest", TaskKind::Latest),
    ] {
        let name: headworks_domain::TaskName = name.parse().unwrap();
        tasks.push(task(name.clone(), kind, std::mem::replace(&mut after, vec![name])));
    }
    RunShape {
        job: job(name),
        job_version: "v1".to_owned(),
        table: Some(table(name)),
        interval: day(n),
        ds: ds(n),
        partitions: vec![PartitionKey::day(ds(n))],
        waits,
        outside: Vec::new(),
        tasks,
        params: serde_json::Map::new(),
        limits: RunLimits {
            retry: RetryPolicy {
                times: 50,
                delay: Duration::from_micros(200),
                factor: 1.0,
                max: Duration::from_millis(1),
            },
            ..RunLimits::default()
        },
        unplanned: None,
        plan: None,
    }
}

fn day_number(shape: &RunShape) -> i64 {
    (shape.interval.start() - day(0).start()).num_days()
}

fn request(shape: &RunShape) -> Request {
    Request { job: shape.job.clone(), interval: shape.interval }
}

struct Setup {
    database: Arc<Database>,
    shapes: Vec<RunShape>,
    faults: Faults,
    broken: BTreeSet<(JobName, Interval)>,
    options: ExecutorOptions,
    /// The sizes of the pools.
    pools: BTreeMap<String, usize>,
    logs: tempfile::TempDir,
    store_fails_one_in: u64,
}

impl Setup {
    fn new(shapes: Vec<RunShape>) -> Self {
        let logs = tempfile::tempdir().unwrap();
        let options = ExecutorOptions {
            tasks_max: 3,
            heartbeat: Duration::from_millis(5),
            flush: Duration::from_millis(3),
            poll: Duration::from_millis(2),
            listen: Duration::from_millis(1),
            claims_max: 7,
            ..ExecutorOptions::new(logs.path().to_owned())
        };
        Self {
            database: Arc::default(),
            shapes,
            faults: Faults::default(),
            broken: BTreeSet::new(),
            options,
            pools: BTreeMap::new(),
            logs,
            store_fails_one_in: 0,
        }
    }

    fn requests(&self) -> Vec<Request> {
        self.shapes.iter().map(request).collect()
    }

    fn executor(&self, seed: u64) -> (Executor, Arc<Handle>) {
        let handle = Handle::new(&self.database, seed, self.store_fails_one_in);
        let shapes: HashMap<Request, RunShape> = self.shapes.iter().map(|s| (request(s), s.clone())).collect();
        let planner: Arc<dyn Planner> = Arc::new(Shapes(shapes, self.pools.clone()));
        let executor = Executor {
            store: handle.clone(),
            partitions: handle.clone(),
            planner,
            runner: Arc::new(Worker {
                handle: handle.clone(),
                tasks_max: self.options.tasks_max,
                chance: Mutex::new(Chance::new(seed ^ 0xabc)),
                faults: self.faults,
                broken: self.broken.clone(),
            }),
            clock: clock(),
            options: self.options.clone(),
        };
        (executor, handle)
    }

    /// Carries all requests out with a fresh process.
    async fn run(&self, seed: u64) -> Summary {
        let (executor, _) = self.executor(seed);
        run(&executor, self.requests()).await
    }

    fn log_text(&self, path: &Path) -> String {
        assert!(path.starts_with(self.logs.path()));
        std::fs::read_to_string(path).unwrap()
    }
}

async fn run(executor: &Executor, requests: Vec<Request>) -> Summary {
    let (_keep, cancel) = watch::channel(false);
    let (progress, _) = mpsc::unbounded_channel();
    executor.run(requests, cancel, progress).await.unwrap()
}

/// `flights` and `weather` by day, `flat` on both, `metrics` on `flat` and its own day before.
fn demo(days: i64) -> Vec<RunShape> {
    let mut shapes = Vec::new();
    for n in (0..days).rev() {
        let own = if n > 0 { vec![n - 1] } else { Vec::new() };
        shapes.push(shape("metrics", n, &[("flat", vec![n]), ("metrics", own)]));
        shapes.push(shape("flat", n, &[("flights", vec![n]), ("weather", vec![n])]));
        shapes.push(shape("weather", n, &[]));
        shapes.push(shape("flights", n, &[]));
    }
    shapes
}

#[tokio::test]
async fn a_backfill_of_all_jobs_orders_itself() {
    let setup = Setup::new(demo(20));
    let (executor, _) = setup.executor(1);
    let (_keep, cancel) = watch::channel(false);
    let (progress, mut seen) = mpsc::unbounded_channel();
    let summary = executor.run(setup.requests(), cancel, progress).await.unwrap();
    assert!(summary.is_success(), "{summary:?}");
    assert_eq!((summary.counts.success, summary.counts.rows, summary.counts.bytes), (80, 80, 800));
    assert_eq!(setup.database.violations(), [] as [String; 0]);
    let mut ends = 0;
    let mut last = None;
    while let Ok(progress) = seen.try_recv() {
        if let Progress::Run(run, counts) = progress {
            ends += usize::from(run.state == State::Success);
            last = Some(counts);
        }
    }
    assert_eq!((ends, last), (80, Some(summary.counts)));

    let again = setup.run(2).await;
    assert_eq!((again.counts.done_before, again.counts.success), (80, 0), "repeats nothing that is published");
    assert_eq!(setup.database.publishes(), 80);
}

#[tokio::test]
async fn a_missing_input_fails_the_run_at_once_with_the_next_step() {
    let setup = Setup::new(vec![shape("company_metrics", 59, &[("deliveries", vec![59])])]);
    let summary = setup.run(1).await;
    let failure = &summary.blocked[0].failure;
    assert_eq!(
        format!("error: {failure}\nhint: {}", failure.hint.as_deref().unwrap()),
        "error: job `company_metrics` cannot run for ds=2013-03-01: table `deliveries` has no such partition\n\
         hint: start it with `headworks backfill deliveries --from 2013-03-01 --to 2013-03-01`, or wait for it with `--wait 10m`"
    );
    assert_eq!((summary.counts.failed, summary.is_success()), (1, false));
    assert_eq!(setup.database.states().iter().map(|s| s.1).collect::<Vec<_>>(), [State::Failed]);
    // Once it is there the same command goes on, under the same run.
    setup.database.publish_foreign(partition("deliveries", 59));
    assert!(setup.run(2).await.is_success());
    assert_eq!(setup.database.states().len(), 1);
}

#[tokio::test]
async fn what_others_publish_wakes_a_wait() {
    let mut setup = Setup::new(vec![shape("metrics", 1, &[("deliveries", vec![0, 1])]), shape("other", 1, &[])]);
    setup.options.wait = Duration::from_secs(60);
    let publishing = async {
        // The other job's run shows that the executor is at work.
        while setup.database.publishes() == 0 {
            tokio::task::yield_now().await;
        }
        setup.database.publish_foreign(partition("deliveries", 0));
        setup.database.publish_foreign(partition("deliveries", 1));
    };
    let (summary, ()) = tokio::join!(setup.run(1), publishing);
    assert!(summary.is_success(), "{summary:?}");
    assert_eq!(setup.database.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn a_failed_run_blocks_what_waits_for_it_and_nothing_else() {
    let mut setup = Setup::new(demo(5));
    setup.broken.insert((job("flat"), day(2)));
    let summary = setup.run(1).await;
    let names = |runs: &[headworks_flow::exec::FailedRun]| -> Vec<String> {
        runs.iter().map(|r| format!("{} {}", r.job, r.ds.unwrap())).collect()
    };
    assert_eq!(names(&summary.failed), ["flat 2013-01-03"]);
    assert_eq!(names(&summary.blocked), ["metrics 2013-01-05", "metrics 2013-01-04", "metrics 2013-01-03"]);
    assert_eq!((summary.counts.success, summary.counts.failed), (16, 4));
    let failed = &summary.failed[0];
    let log = setup.log_text(failed.log.as_ref().unwrap());
    assert!(log.contains("error: check `not_empty` failed [TEST_CHECK]"), "{log}");
    let hint = summary.blocked[2].failure.hint.clone().unwrap();
    assert_eq!(
        hint,
        format!("see why with `headworks runs logs {}`, and run this command again", failed.run_id.as_ref().unwrap())
    );

    setup.broken.clear();
    setup.options.reprocess = Reprocess::None;
    let untouched = setup.run(2).await;
    assert_eq!((untouched.counts.done_before, untouched.counts.failed), (16, 4), "what failed stays failed");
    setup.options.reprocess = Reprocess::Failed;
    let repaired = setup.run(3).await;
    assert_eq!((repaired.counts.done_before, repaired.counts.success), (16, 4));
    setup.options.reprocess = Reprocess::All;
    assert_eq!(setup.run(4).await.counts.success, 20, "all once more");
    for shape in &setup.shapes {
        let own = setup.database.position(&partition(shape.table.as_ref().unwrap().as_str(), day_number(shape)));
        for wait in &shape.waits {
            for key in &wait.partitions {
                let input = setup.database.position(&Partition::new(wait.table.clone(), key.clone()));
                assert!(input < own, "{} {} was computed from an old `{}`", shape.job, shape.ds, wait.table);
            }
        }
    }
    assert_eq!(setup.database.publishes(), 40);
    assert_eq!(setup.database.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn a_run_that_cannot_be_planned_stops_nothing_else() {
    let setup = Setup::new(demo(2));
    let (executor, _) = setup.executor(1);
    let mut requests = setup.requests();
    requests.push(Request { job: job("nobody"), interval: day(0) });
    let summary = run(&executor, requests).await;
    assert_eq!((summary.counts.success, summary.counts.failed), (8, 1));
    assert_eq!(summary.failed[0].failure.message, "job `nobody` cannot be planned");
}

#[tokio::test]
async fn limits_of_a_job_hold() {
    let mut shapes = demo(12);
    for shape in &mut shapes {
        shape.limits.active_runs_max = Some(1);
    }
    let mut setup = Setup::new(shapes);
    setup.faults = Faults { transient: 6, ..Faults::default() };
    let summary = setup.run(5).await;
    assert!(summary.is_success(), "{summary:?}");
    assert_eq!(setup.database.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn cancelling_stops_promptly_and_the_next_command_goes_on() {
    let mut setup = Setup::new(demo(30));
    setup.faults.slow_ms = 1;
    let (executor, _) = setup.executor(1);
    let (stop, cancel) = watch::channel(false);
    let (progress, _) = mpsc::unbounded_channel();
    let stopping = async {
        while setup.database.publishes() < 20 {
            tokio::task::yield_now().await;
        }
        stop.send(true).unwrap();
    };
    let (summary, ()) = tokio::join!(executor.run(setup.requests(), cancel, progress), stopping);
    let summary = summary.unwrap();
    assert!(summary.cancelled && !summary.is_success());
    let counts = summary.counts;
    assert_eq!(counts.success + counts.cancelled, 120, "{counts:?}");
    assert_eq!(counts.success, setup.database.publishes());
    assert!(
        setup
            .database
            .states()
            .iter()
            .all(|(_, state, over)| *over && matches!(state, State::Success | State::Cancelled))
    );
    assert!(setup.run(2).await.is_success());
    assert_eq!(setup.database.publishes(), 120);
    assert_eq!(setup.database.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn two_commands_at_once_share_the_work() {
    let mut setup = Setup::new(demo(15));
    setup.faults.slow_ms = 1;
    let (one, other) = tokio::join!(setup.run(1), setup.run(2));
    assert!(one.is_success() && other.is_success(), "{one:?} {other:?}");
    assert_eq!(one.counts.success + other.counts.success, 60);
    for shape in &setup.shapes {
        assert_eq!(setup.database.successes(&request(shape)), 1);
    }
    assert_eq!(setup.database.violations(), [] as [String; 0]);
}

#[tokio::test]
async fn a_wait_for_another_command_is_no_reason_to_fail() {
    let mut setup = Setup::new(vec![shape("slow", 0, &[])]);
    setup.faults.slow_ms = 30;
    let second = Setup {
        shapes: vec![shape("after", 0, &[("slow", vec![0])])],
        database: Arc::clone(&setup.database),
        ..Setup::new(Vec::new())
    };
    let waiting = async {
        while setup.database.states().is_empty() {
            tokio::task::yield_now().await;
        }
        second.run(2).await
    };
    let (one, other) = tokio::join!(setup.run(1), waiting);
    assert!(one.is_success() && other.is_success(), "{one:?} {other:?}");
}

/// Invariants under chance: whatever breaks, each interval is published exactly once, in order, within limits.
#[test]
fn every_interval_succeeds_exactly_once_whatever_breaks() {
    const SEEDS: u64 = 160;
    const THREADS: u64 = 8;
    // Most of a case's time is waiting, so that several share a core.
    let broken: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|n| scope.spawn(move || (n..SEEDS).step_by(8).find(|seed| breaks(*seed)))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(broken, [] as [u64; 0], "call `chaos(seed)` to see one again");
}

fn breaks(seed: u64) -> bool {
    std::panic::catch_unwind(|| {
        let case = async { tokio::time::timeout(Duration::from_secs(60), chaos(seed)).await.expect("it hangs") };
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(case);
    })
    .is_err()
}

async fn chaos(seed: u64) {
    let mut chance = Chance::new(seed);
    let jobs = 2 + chance.below(5) as usize;
    let days = 1 + chance.below(8) as i64;
    let names: Vec<String> = (0..jobs).map(|j| format!("t{j}")).collect();
    let mut shapes = Vec::new();
    for (j, name) in names.iter().enumerate() {
        let reaches_back = chance.one_in(2);
        let limit = chance.one_in(3).then(|| 1 + chance.below(2) as usize);
        #[allow(clippy::filter_map_bool_then, reason = "the order of draws is the seed's meaning")]
        let upstream: Vec<(usize, i64)> =
            (0..j).filter_map(|other| chance.one_in(2).then(|| (other, 1 + chance.below(3) as i64))).collect();
        for n in 0..days {
            let mut waits: Vec<(&str, Vec<i64>)> = upstream
                .iter()
                .map(|(other, reach)| (names[*other].as_str(), ((n - reach + 1).max(0)..=n).collect()))
                .collect();
            if reaches_back && n > 0 {
                waits.push((name, vec![n - 1]));
            }
            let mut one = shape(name, n, &waits);
            one.limits.active_runs_max = limit;
            one.limits.priority = i32::try_from(chance.below(3)).unwrap();
            shapes.push(one);
        }
    }
    for i in (1..shapes.len()).rev() {
        shapes.swap(i, chance.below(i as u64 + 1) as usize);
    }
    let mut setup = Setup::new(shapes);
    setup.options.tasks_max = 1 + chance.below(4) as usize;
    setup.options.claims_max = 1 + chance.below(10) as usize;
    setup.store_fails_one_in = if chance.one_in(3) { 40 } else { 0 };
    setup.faults = Faults {
        transient: [0, 10, 30][chance.below(3) as usize],
        panics: [0, 0, 60][chance.below(3) as usize],
        lost_replies: [0, 15][chance.below(2) as usize],
        slow_ms: chance.below(2),
    };
    for round in 0.. {
        assert!(round < 100, "it does not come to an end: {:?}", setup.database.states());
        let processes = 1 + chance.below(2);
        let crash_after = chance.one_in(2).then(|| setup.database.publishes() + chance.below(12) as usize);
        let mut all = Vec::new();
        for process in 0..processes {
            let (executor, handle) = setup.executor(seed * 1000 + round * 10 + process);
            let (setup, stop_at) = (&setup, crash_after.filter(|_| process == 0));
            let patience = chance.below(40);
            let sleeps_at = chance.one_in(3).then(|| setup.database.publishes() + chance.below(12) as usize);
            all.push(async move {
                let crash = async {
                    let Some(publishes) = stop_at else { return std::future::pending().await };
                    while setup.database.publishes() < publishes {
                        tokio::time::sleep(Duration::from_micros(300)).await;
                    }
                    for _ in 0..patience {
                        tokio::task::yield_now().await;
                    }
                };
                // Taken for dead while it goes on: others take its runs over, and nothing that it does counts any more.
                let sleep = async {
                    let Some(publishes) = sleeps_at else { return std::future::pending::<()>().await };
                    while setup.database.publishes() < publishes {
                        tokio::time::sleep(Duration::from_micros(300)).await;
                    }
                    setup.database.kill(&handle.process);
                    std::future::pending().await
                };
                let (_keep, cancel) = watch::channel(false);
                let (progress, _) = mpsc::unbounded_channel();
                tokio::select! {
                    () = sleep => None,
                    summary = executor.run(setup.requests(), cancel, progress) => Some(summary.unwrap()),
                    () = crash => None,
                }
                .or_else(|| {
                    // Dropped in the middle: the process is gone, and its runs with it.
                    setup.database.kill(&handle.process);
                    None
                })
            });
        }
        let ends = futures::future::join_all(all).await;
        assert_eq!(setup.database.violations(), [] as [String; 0], "seed {seed}");
        if ends.iter().flatten().any(Summary::is_success) {
            break;
        }
        for summary in ends.iter().flatten() {
            assert!(!summary.failed.is_empty(), "seed {seed}: no reason for {summary:?}");
        }
    }
    for shape in &setup.shapes {
        assert_eq!(setup.database.successes(&request(shape)), 1, "seed {seed}: {} {}", shape.job, shape.ds);
    }
    let (_, handle) = setup.executor(0);
    assert!(
        handle.list(&Default::default()).await.unwrap().iter().all(|run| run.state == State::Success),
        "seed {seed}"
    );
}
