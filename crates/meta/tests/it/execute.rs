//! The executor over the real records, with a registry of one small table.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use headworks_domain::{PartitionKey, RunId, SystemClock, TaskName};
use headworks_flow::{
    Answer, Question, TaskKind, TaskOptions, TaskPlan, WaitOn,
    exec::{
        BoxFault, Done, Executor, ExecutorOptions, Given, Partition, Partitions, Planner, Request, RunFilter,
        RunLimits, RunShape, RunStore, Segment, Stop, Summary, TaskRunner,
    },
    machine::{Failure, State},
};
use headworks_meta::{Error, finish_in};
use headworks_store::{Store, values};
use tokio::sync::{mpsc, watch};

use crate::world::{World, day, ds};

/// Published partitions in a table of the test's own.
struct Registry {
    store: Store,
    changes: watch::Receiver<u64>,
}

impl Registry {
    async fn open(store: Store) -> Self {
        store
            .write(|tx| {
                Box::pin(async move {
                    let sql = "create table if not exists test_partition (
                        table_name TEXT, part TEXT, position BIGINT, PRIMARY KEY (table_name, part))";
                    tx.execute(sql, &[]).await?;
                    tx.execute("create index if not exists test_position on test_partition (position)", &[]).await
                })
            })
            .await
            .map_err(Error::from)
            .unwrap();
        let (sender, changes) = watch::channel(0);
        let mut commits = store.changes();
        tokio::spawn(async move {
            loop {
                commits.changed().await;
                sender.send_modify(|n| *n += 1);
                if sender.is_closed() {
                    break;
                }
            }
        });
        Self { store, changes }
    }

    async fn read(&self, after: i64) -> Result<(Vec<Partition>, i64), BoxFault> {
        let sql = "select table_name, part, position from test_partition where position > $1";
        let rows = self.store.rows(sql, &values![after]).await.map_err(|e| Box::new(e) as BoxFault)?;
        let mut newest = after;
        let mut partitions = Vec::new();
        for row in rows {
            newest = newest.max(row.i64(2).unwrap());
            partitions
                .push(Partition::new(row.text(0).unwrap().parse().unwrap(), row.text(1).unwrap().parse().unwrap()));
        }
        Ok((partitions, newest))
    }
}

#[async_trait]
impl Partitions for Registry {
    async fn published(&self, _: &[Partition]) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.read(0).await
    }

    async fn published_since(&self, position: i64) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.read(position).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

struct Publisher {
    store: Store,
}

#[async_trait]
impl TaskRunner for Publisher {
    async fn run(&self, segment: &mut Segment) -> Result<Done, Stop> {
        for task in segment.tasks.clone() {
            segment.begin(&task);
            if task.as_str() == "publish" {
                let record = segment.finished(1, 1);
                let table = segment.shape.table.as_ref().unwrap().to_string();
                let keys = segment.shape.partitions.clone();
                let published = self.store.write(move |tx| {
                    Box::pin(async move {
                        finish_in(tx, &record).await?;
                        for key in keys {
                            tx.execute(
                                "insert into test_partition values ($1, $2, (select coalesce(max(position), 0) + 1 from test_partition))",
                                &values![&table, key.to_string()],
                            )
                            .await?;
                        }
                        Ok::<_, Error>(())
                    })
                });
                match published.await {
                    Ok(()) => {}
                    Err(Error::Fenced { .. }) => return Err(Stop::Fenced),
                    Err(error) => return Err(Failure::of(&error).into()),
                }
            }
            segment.end(&task);
        }
        Ok(Done { rows: 1, bytes: 1, published: segment.shape.partitions.clone(), recorded: true, output: None })
    }

    async fn look(&self, question: &Question) -> Result<Answer, Failure> {
        panic!("nobody waits for {question} here")
    }
}

struct Shapes(HashMap<Request, RunShape>);

impl Planner for Shapes {
    fn plan(&self, request: &Request, _: &RunId, _: &Given) -> Result<RunShape, Failure> {
        Ok(self.0[request].clone())
    }

    fn unplanned(&self, request: &Request, failure: Failure) -> RunShape {
        RunShape { unplanned: Some(failure), ..self.0[request].clone() }
    }
}

/// Daily jobs in a row, each waiting for the one before and for its own last day.
fn chain(jobs: usize, days: i64) -> HashMap<Request, RunShape> {
    let mut shapes = HashMap::new();
    for job in 0..jobs {
        for n in 0..days {
            let name = format!("t{job}");
            let mut on = Vec::new();
            if job > 0 {
                on.push((format!("t{}", job - 1), n));
            }
            if n > 0 {
                on.push((name.clone(), n - 1));
            }
            let waits: Vec<WaitOn> = on
                .into_iter()
                .map(|(table, n)| WaitOn {
                    task: format!("wait_{table}").parse().unwrap(),
                    table: table.parse().unwrap(),
                    partitions: vec![PartitionKey::day(ds(n))],
                    upto: None,
                })
                .collect();
            let task = |name: &str, kind, after| TaskPlan {
                name: name.parse().unwrap(),
                kind,
                after,
                options: TaskOptions::default(),
            };
            let mut tasks: Vec<TaskPlan> =
                waits.iter().map(|w| task(w.task.as_str(), TaskKind::Wait, Vec::new())).collect();
            let before: Vec<TaskName> = waits.iter().map(|w| w.task.clone()).collect();
            tasks.push(task("stage", TaskKind::Stage, before));
            tasks.push(task("check", TaskKind::Check, vec!["stage".parse().unwrap()]));
            tasks.push(task("publish", TaskKind::Publish, vec!["check".parse().unwrap()]));
            tasks.push(task("latest", TaskKind::Latest, vec!["publish".parse().unwrap()]));
            let shape = RunShape {
                job: name.parse().unwrap(),
                job_version: "v1".to_owned(),
                table: Some(name.parse().unwrap()),
                interval: day(n),
                ds: ds(n),
                partitions: vec![PartitionKey::day(ds(n))],
                waits,
                outside: Vec::new(),
                tasks,
                limits: RunLimits::default(),
                params: serde_json::Map::new(),
                unplanned: None,
                plan: None,
            };
            shapes.insert(Request { job: shape.job.clone(), interval: shape.interval }, shape);
        }
    }
    shapes
}

async fn execute(world: &World, pid: u32, shapes: &HashMap<Request, RunShape>, logs: &std::path::Path) -> Summary {
    let executor = Executor {
        store: Arc::new(world.process(pid).await),
        partitions: Arc::new(Registry::open(world.store.clone()).await),
        planner: Arc::new(Shapes(shapes.clone())),
        runner: Arc::new(Publisher { store: world.store.clone() }),
        clock: Arc::new(SystemClock),
        options: ExecutorOptions { poll: Duration::from_millis(20), ..ExecutorOptions::new(logs.to_owned()) },
    };
    let (_keep, cancel) = watch::channel(false);
    let (progress, _) = mpsc::unbounded_channel();
    executor
        .run(shapes.keys().cloned().collect(), cancel, progress)
        .await
        .unwrap_or_else(|e| panic!("{e} {:?}", e.hint()))
}

async fn two_executors_share_one_database(world: World) {
    let logs = tempfile::tempdir().unwrap();
    let shapes = chain(4, 15);
    let (one, other) = tokio::join!(execute(&world, 1, &shapes, logs.path()), execute(&world, 2, &shapes, logs.path()));
    assert!(one.is_success() && other.is_success(), "{one:?} {other:?}");
    assert_eq!(one.counts.success + other.counts.success, 60, "{one:?} {other:?}");
    let runs = world.process(3).await;
    let listed = runs.list(&RunFilter { limit: 1000, ..RunFilter::default() }).await.unwrap();
    assert_eq!(listed.len(), 60);
    for run in listed {
        assert_eq!((run.state, run.rows, run.is_held()), (State::Success, 1, false));
        let shown = runs.show(&run.id).await.unwrap().unwrap();
        assert!(shown.tasks.iter().all(|t| t.state == State::Success && t.finished_at.is_some()), "{shown:?}");
        let log = std::fs::metadata(logs.path().join(&shown.attempts.last().unwrap().log_path)).unwrap();
        assert!(log.len() > 0);
    }
    assert_eq!(execute(&world, 4, &shapes, logs.path()).await.counts.done_before, 60);
}

#[tokio::test]
async fn two_executors_share_one_sqlite_file() {
    Box::pin(two_executors_share_one_database(World::sqlite().await)).await;
}

#[tokio::test]
async fn two_executors_share_one_postgres() {
    Box::pin(two_executors_share_one_database(World::postgres().await)).await;
}

/// Prints what the executor and the store cost by themselves; no time is asserted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_thousand_runs_cost_little() {
    let world = World::sqlite().await;
    let logs = tempfile::tempdir().unwrap();
    let shapes = chain(10, 410);
    let (started, cpu) = (Instant::now(), cpu_time());
    let summary = execute(&world, 1, &shapes, logs.path()).await;
    let (took, cpu) = (started.elapsed(), cpu_time() - cpu);
    assert_eq!(summary.counts.success, 4100);
    let tasks: usize = shapes.values().map(|s| s.tasks.len()).sum();
    println!(
        "4,100 runs, {tasks} tasks: {:.1} s, {:.1} CPU-s, {:.2} ms CPU a run, {} commits",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        cpu.as_secs_f64() * 1000.0 / 4100.0,
        world.store.commits()
    );
}

/// User and system time of this process (proc(5), fields 14 and 15 of `stat`, in hundredths).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    Duration::from_millis((fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10)
}
