//! Queues, the cache, and queries that run by themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use futures::{TryStreamExt, future::join_all};
use headworks_domain::{ErrorKind, Fault, PartitionKey};
use headworks_engine::{
    At, Caller, Catalog, Engine, EngineOptions, Error, Found, KeptOptions, KeptQueries, Listed, Moment, Newest,
    Priority, QueryListener, QueryOptions, QueryState, QueueOptions, Result, Stage,
};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::support::{ints, table};

/// A table `t` whose one row is the version, so that every answer tells how fresh it is.
#[derive(Default)]
struct Counter {
    version: AtomicI64,
    scans: AtomicI64,
}

#[async_trait]
impl Catalog for Counter {
    async fn fix(&self, _at: At, _latest_of: &[&str]) -> Result<(Moment, Newest)> {
        let at = At::Version(self.version.load(Ordering::SeqCst));
        Ok((Moment { at, below: at, is_named: false }, Newest::new()))
    }

    async fn find(&self, name: &str, at: Moment) -> Result<Option<Found>> {
        let At::Version(version) = at.at else { panic!("not fixed") };
        self.scans.fetch_add(1, Ordering::SeqCst);
        Ok(match name {
            "t" => Some(Found::Table(table(vec![("n", ints([version]))]))),
            "clock" => Some(Found::View { sql: "select now() as at, n from t".to_owned(), columns: Vec::new() }),
            _ => None,
        })
    }

    async fn latest(&self, _name: &str, _at: Moment) -> Result<Option<PartitionKey>> {
        Ok(None)
    }

    async fn list(&self, _at: Moment) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }

    async fn has(&self, name: &str) -> Result<bool> {
        Ok(name == "t")
    }

    async fn stamp(&self, names: &[String], since: Option<Moment>) -> Result<Option<String>> {
        let version = self.version.load(Ordering::SeqCst);
        let is_since = since.is_none_or(|moment| moment.at == At::Version(version));
        Ok(is_since.then(|| if names.is_empty() { String::new() } else { version.to_string() }))
    }
}

/// Remembers what it was told.
#[derive(Default)]
struct Ended(Mutex<Vec<(String, Stage, bool)>>);

impl QueryListener for Ended {
    fn ended(&self, state: &QueryState, _error: Option<&Error>) {
        self.0.lock().unwrap().push((state.sql.to_string(), state.stage, state.is_cached));
    }
}

struct World {
    engine: Engine,
    lake: Arc<Counter>,
    ended: Arc<Ended>,
    dir: TempDir,
}

fn world(change: impl FnOnce(&mut EngineOptions)) -> World {
    let dir = TempDir::new().unwrap();
    let (lake, ended) = (Arc::new(Counter::default()), Arc::new(Ended::default()));
    let mut options = EngineOptions::new(dir.path().join("spill"), 2);
    options.listener = Some(ended.clone());
    change(&mut options);
    let engine = Engine::new(lake.clone(), options).unwrap();
    World { engine, lake, ended, dir }
}

impl World {
    async fn value(&self, sql: &str) -> (i64, bool) {
        let stream = self.engine.query(sql, QueryOptions::default()).await.unwrap();
        let is_cached = stream.state().is_cached;
        let rows: Vec<_> = stream.try_collect().await.unwrap();
        (rows[0].column(0).as_primitive::<Int64Type>().value(0), is_cached)
    }
}

fn queue(name: &str, slots: usize) -> QueueOptions {
    QueueOptions { slots, memory_percent: 50, ..QueueOptions::new(name) }
}

fn of(user: &str) -> QueryOptions {
    QueryOptions { caller: Caller::trusted(user), is_cached: false, ..QueryOptions::default() }
}

/// Keeps a thread busy until it is stopped.
const ENDLESS: &str =
    "select count(*) from generate_series(1, 10000000) a, generate_series(1, 10000000) b where a.value <> b.value";

#[tokio::test]
async fn the_cache_answers_until_a_table_changes() {
    let world = world(|_| {});
    assert_eq!(world.value("select n from t").await, (0, false));
    assert_eq!(world.value("SELECT n -- again\nFROM t").await, (0, true));
    world.lake.version.store(1, Ordering::SeqCst);
    assert_eq!(world.value("select n from t").await, (1, false));
    assert_eq!(world.value("select n from t").await, (1, true));
    assert_eq!((world.engine.cache().hits, world.engine.cache().entries), (2, 1));
}

#[tokio::test]
async fn what_may_differ_each_time_is_not_kept() {
    let world = world(|_| {});
    for sql in [
        "select n, now() from t",
        "select n, random() from t",
        "select n, current_date from t",
        "select n, at from clock",
        "select n from t order by random()",
        "select n from t where n in (select cast(random() * 0 as bigint) from t)",
        "select count(*) from information_schema.tables",
        "explain select n from t",
    ] {
        for _ in 0..2 {
            let stream = world.engine.query(sql, QueryOptions::default()).await.unwrap();
            assert!(!stream.state().is_cached, "{sql}");
            stream.try_collect::<Vec<_>>().await.unwrap();
        }
    }
    assert_eq!(world.engine.cache().entries, 0);
}

#[tokio::test]
async fn parameters_and_rights_are_part_of_the_key() {
    let world = world(|_| {});
    let ask = |n: i64| QueryOptions { parameters: vec![n.into()], ..QueryOptions::default() };
    for (n, expected) in [(1, false), (2, false), (1, true)] {
        let stream = world.engine.query("select n + $1 from t", ask(n)).await.unwrap();
        assert_eq!(stream.state().is_cached, expected, "{n}");
        let rows: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(rows[0].column(0).as_primitive::<Int64Type>().value(0), n);
    }
    let described = world.engine.describe("select n + $1 from t", QueryOptions::default()).await.unwrap();
    assert_eq!(described.parameters, [Some(arrow::datatypes::DataType::Int64)]);
    assert_eq!(described.schema.fields().len(), 1);
}

#[tokio::test]
async fn equal_queries_at_once_are_carried_out_once() {
    let world = world(|options| options.queues = vec![queue("default", 32)]);
    let sql = "select n, count(*) from t, generate_series(1, 3000000) s group by n";
    let answers = join_all((0..100).map(|_| world.value(sql))).await;
    assert_eq!(answers.iter().filter(|(_, is_cached)| !is_cached).count(), 1);
    assert_eq!(world.lake.scans.load(Ordering::SeqCst), 1);
    // Those whose result is not kept do not wait for each other.
    let ever = "select n + count(*), now() from t, generate_series(1, 100000) s group by n";
    world.value(ever).await;
    let answers = join_all((0..10).map(|_| world.value(ever))).await;
    assert!(answers.iter().all(|(n, is_cached)| *n == 100_000 && !is_cached));
}

#[tokio::test]
async fn a_result_made_while_its_table_changes_is_not_kept() {
    let world = world(|_| {});
    let slow = "select min(t.n) from t, generate_series(1, 4000000) s where s.value % 7 < 9";
    let mut stream = world.engine.query(slow, QueryOptions::default()).await.unwrap();
    world.lake.version.store(1, Ordering::SeqCst);
    let first = stream.try_next().await.unwrap().unwrap();
    assert_eq!(first.column(0).as_primitive::<Int64Type>().value(0), 0);
    drop(stream);
    assert_eq!(world.value(slow).await, (1, false));
}

#[tokio::test]
async fn a_full_memory_sends_results_to_disk() {
    let world = world(|options| {
        options.cache.memory_bytes = 200 << 10;
        options.cache.entry_bytes_max = 150 << 10;
    });
    let sql = |k: usize| format!("select value + n from t, generate_series({k}, {k} + 9999)");
    for k in 0..5 {
        world.value(&sql(k)).await;
    }
    // One that is on its way to disk is in neither place.
    let all_there = async || {
        for _ in 0..200 {
            if world.engine.cache().entries == 5 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    all_there().await;
    let state = world.engine.cache();
    assert!(state.memory_bytes <= 200 << 10 && state.disk_bytes > 0, "{state:?}");
    for k in 0..5 {
        all_there().await;
        assert_eq!(world.value(&sql(k)).await, (k as i64, true));
    }
    // Too large for an entry.
    let large = "select value + n from t, generate_series(1, 100000)";
    world.value(large).await;
    assert!(!world.value(large).await.1);
}

#[tokio::test]
async fn queues_do_not_wait_for_each_other() {
    let world = world(|options| {
        options.queues = vec![queue("default", 1), QueueOptions { priority: Priority::Low, ..queue("heavy", 1) }];
    });
    let heavy = |user: &str| QueryOptions { queue: Some("heavy".to_owned()), ..of(user) };
    let running = world.engine.query(ENDLESS, heavy("a")).await.unwrap();
    let waiting = world.engine.start(ENDLESS, heavy("b")).unwrap();
    for _ in 0..200 {
        if world.engine.queues()[1].waiting == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let state = world.engine.state(waiting.id()).unwrap();
    assert_eq!((state.stage, state.place, state.queue.as_str()), (Stage::Waiting, Some(1), "heavy"));
    // The other queue has its slot.
    assert_eq!(world.value("select n from t").await, (0, false));
    assert_eq!(world.engine.queries().len(), 2);
    // Stopping one lets the next in, and takes no longer than a moment.
    assert!(world.engine.cancel(running.id()));
    let error = running.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    let running = tokio::time::timeout(Duration::from_secs(5), waiting.rows()).await.unwrap().unwrap();
    drop(running);
    for _ in 0..500 {
        if world.engine.queries().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended: Vec<Stage> = world.ended.0.lock().unwrap().iter().map(|(_, stage, _)| *stage).collect();
    assert_eq!(ended, [Stage::Done, Stage::Cancelled, Stage::Cancelled]);
}

#[tokio::test]
async fn limits_of_queues_have_names() {
    let world = world(|options| {
        options.queues = vec![
            QueueOptions {
                rows_max: Some(10),
                timeout: Some(Duration::from_secs(1)),
                waiting_max: 1,
                wait_max: Some(Duration::from_millis(100)),
                ..queue("default", 1)
            },
            QueueOptions { idle_max: Duration::from_millis(100), ..queue("slow", 1) },
        ];
    });
    let check = |error: Error, code: &str, kind: ErrorKind, hint: &str| {
        assert_eq!((error.code(), error.kind()), (code, kind), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
    };
    let rows = world.engine.rows("select * from generate_series(1, 11)", of("a")).await;
    check(rows.unwrap_err(), "SQL_TOO_MANY_ROWS", ErrorKind::Exhausted, "queues.default.rows_max");
    assert_eq!(world.engine.rows("select * from generate_series(1, 10)", of("a")).await.unwrap()[0].num_rows(), 10);
    let running = world.engine.query(ENDLESS, of("a")).await.unwrap();
    let waiting = world.engine.start("select 1", of("b")).unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    let full = world.engine.rows("select 1", of("c")).await;
    check(full.unwrap_err(), "SQL_QUEUE_FULL", ErrorKind::Unavailable, "queues.default.waiting_max");
    let waited = waiting.rows().await;
    check(waited.unwrap_err(), "SQL_QUEUE_WAIT", ErrorKind::Unavailable, "queues.default.slots");
    let timeout = running.try_collect::<Vec<_>>().await;
    check(timeout.unwrap_err(), "SQL_TIMEOUT", ErrorKind::Exhausted, "timeout");
    let unknown = QueryOptions { queue: Some("slo".to_owned()), ..of("a") };
    check(world.engine.rows("select 1", unknown).await.unwrap_err(), "SQL_UNKNOWN_QUEUE", ErrorKind::NotFound, "slow");
    // A reader that takes nothing.
    let slow = QueryOptions { queue: Some("slow".to_owned()), ..of("a") };
    let stream = world.engine.query("select * from generate_series(1, 100000000)", slow).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let slow = stream.try_collect::<Vec<_>>().await;
    check(slow.unwrap_err(), "SQL_SLOW_READER", ErrorKind::Exhausted, "");
    assert_eq!(world.engine.queues()[1].running, 0);
}

#[tokio::test]
async fn rows_beyond_those_wanted_are_cut_off() {
    let world = world(|_| {});
    let ask = |rows_max| QueryOptions { rows_max: Some(rows_max), ..QueryOptions::default() };
    for (wanted, is_truncated) in [(3, true), (5, false), (9, false)] {
        let mut stream = world.engine.query("select * from generate_series(1, 5)", ask(wanted)).await.unwrap();
        let mut rows = 0;
        while let Some(batch) = stream.try_next().await.unwrap() {
            rows += batch.num_rows() as u64;
        }
        assert_eq!((rows, stream.state().is_truncated), (wanted.min(5), is_truncated), "{wanted}");
    }
}

#[tokio::test]
async fn submitted_queries_keep_their_result_for_a_while() {
    let world = world(|_| {});
    let folder = world.dir.path().join("kept");
    let options = KeptOptions { memory_bytes_max: 1_000, queries_max: 3, ..KeptOptions::new(&folder) };
    let kept = KeptQueries::new(world.engine.clone(), options).unwrap();
    let sql = "select value from generate_series(1, 20000)";
    let query = kept.submit(sql, of("a"), Some("r1".to_owned())).unwrap();
    assert!(query.over_within(Duration::from_secs(20)).await);
    assert_eq!((query.rows(), query.state().stage, query.user()), (Some(20_000), Stage::Done, "a"));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "it is not small");
    let page = query.page(19_998, 5).unwrap().unwrap();
    assert_eq!(page[0].column(0).as_primitive::<Int64Type>().values(), &[19_999, 20_000]);
    let rest: Vec<_> = query.stream(19_000, 10).unwrap().try_collect().await.unwrap();
    assert_eq!(rest.iter().map(|b| b.num_rows()).sum::<usize>(), 10);
    // The same request again is the same query; another text is not.
    assert_eq!(kept.submit(sql, of("a"), Some("r1".to_owned())).unwrap().id(), query.id());
    assert!(matches!(kept.submit("select 2", of("a"), Some("r1".to_owned())), Err(Error::RequestReused { .. })));
    assert_ne!(kept.submit("select 2", of("b"), Some("r1".to_owned())).unwrap().id(), query.id());
    let failed = kept.submit("select nothing", of("a"), None).unwrap();
    assert!(failed.over_within(Duration::from_secs(20)).await);
    assert_eq!((failed.error().unwrap().code(), failed.state().stage), ("SQL_PLAN", Stage::Failed));
    // The oldest makes room, and its file goes.
    let (id, stopped) = (query.id(), kept.submit(ENDLESS, of("a"), None).unwrap());
    drop(query);
    assert_eq!(kept.all().len(), 3);
    assert!(kept.get(id).is_none());
    // Once the thread that has read the ten rows lets go of it.
    let files = || std::fs::read_dir(&folder).unwrap().count();
    for _ in 0..500 {
        if files() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(files(), 0);
    kept.forget(stopped.id());
    assert!(stopped.over_within(Duration::from_secs(20)).await);
    assert_eq!(stopped.state().stage, Stage::Cancelled);
}

#[tokio::test]
async fn results_are_kept_as_long_as_there_is_room() {
    let world = world(|_| {});
    // Each result is some 8 KB: two have room.
    let options = KeptOptions { bytes_max: 20_000, ..KeptOptions::new(world.dir.path().join("kept")) };
    let kept = KeptQueries::new(world.engine.clone(), options).unwrap();
    let mut ids = Vec::new();
    for k in 0..4 {
        let query = kept.submit(&format!("select value + {k} from generate_series(1, 1000)"), of("a"), None).unwrap();
        assert!(query.over_within(Duration::from_secs(20)).await);
        ids.push(query.id());
        // What is forgotten counts no more, once or twice.
        if k == 1 {
            kept.forget(query.id());
            kept.forget(query.id());
        }
    }
    let there: Vec<_> = kept.all().iter().map(|query| query.id()).collect();
    assert_eq!(there, [ids[2], ids[3]]);
}

/// Tables `t`, and `slow`, which is looked up for as long as nobody opens it.
struct Gated {
    open: Semaphore,
    inside: AtomicI64,
    most_inside: AtomicI64,
}

#[async_trait]
impl Catalog for Gated {
    async fn fix(&self, _at: At, _latest_of: &[&str]) -> Result<(Moment, Newest)> {
        let at = At::Version(1);
        Ok((Moment { at, below: at, is_named: false }, Newest::new()))
    }

    async fn find(&self, name: &str, _at: Moment) -> Result<Option<Found>> {
        if name == "slow" {
            let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_inside.fetch_max(inside, Ordering::SeqCst);
            self.open.acquire().await.unwrap().forget();
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(Some(Found::Table(table(vec![("n", ints([1]))]))))
    }

    async fn latest(&self, _name: &str, _at: Moment) -> Result<Option<PartitionKey>> {
        Ok(None)
    }

    async fn list(&self, _at: Moment) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }

    async fn has(&self, _name: &str) -> Result<bool> {
        Ok(true)
    }

    async fn stamp(&self, _names: &[String], _since: Option<Moment>) -> Result<Option<String>> {
        Ok(Some(String::new()))
    }
}

#[tokio::test]
async fn statements_take_turns_to_be_planned_and_jobs_and_quick_ones_do_not_wait_for_them() {
    let dir = TempDir::new().unwrap();
    let lake = Arc::new(Gated { open: Semaphore::new(0), inside: AtomicI64::new(0), most_inside: AtomicI64::new(0) });
    let mut options = EngineOptions::new(dir.path().join("spill"), 1);
    options.queues = vec![queue("default", 10), QueueOptions { priority: Priority::High, ..queue("jobs", 10) }];
    let engine = Engine::new(lake.clone(), options).unwrap();
    engine.rows("select n from t", QueryOptions::default()).await.unwrap();
    // One has the turn, another user is the guest beside it.
    let slow = ["a", "b", "b"].map(|user| engine.start("select n from slow", of(user)).unwrap());
    while engine.state(slow[0].id()).unwrap().stage != Stage::Planning || lake.inside.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Who waits for the turn does so within the time limit, and holds no thread.
    let soon = || QueryOptions { timeout: Some(Duration::from_millis(100)), ..of("c") };
    let error = engine.query("select n + 1 from t", soon()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let error = engine.describe("select n + 1 from t", soon()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(engine.state(slow[2].id()).unwrap().stage, Stage::Waiting);
    // Answers that are there, what clients ask the server, and jobs.
    let cached = engine.query("select n from t", QueryOptions::default()).await.unwrap();
    assert!(cached.state().is_cached);
    let postgres = || QueryOptions { postgres: Some(Arc::default()), ..of("c") };
    engine.rows("select oid from pg_catalog.pg_class", postgres()).await.unwrap();
    engine.describe("select oid from pg_catalog.pg_class", postgres()).await.unwrap();
    let job = QueryOptions { queue: Some("jobs".to_owned()), ..of("job x") };
    assert_eq!(engine.rows("select n from t", job).await.unwrap().len(), 1);
    lake.open.add_permits(slow.len());
    for started in slow {
        assert_eq!(started.rows().await.unwrap().try_collect::<Vec<_>>().await.unwrap().len(), 1);
    }
    assert_eq!(lake.most_inside.load(Ordering::SeqCst), 2);
    // A closed engine leaves nobody in a line.
    engine.shut_down(Duration::from_secs(5)).await;
    assert!(matches!(engine.describe("select n from t", of("a")).await, Err(Error::Cancelled)));
}

#[tokio::test]
async fn threads_are_as_eager_as_their_queue() {
    let world = world(|options| {
        options.queues = vec![
            QueueOptions { priority: Priority::Low, ..queue("heavy", 1) },
            queue("default", 1),
            QueueOptions { priority: Priority::High, ..queue("jobs", 1) },
        ];
    });
    for queue in ["heavy", "default", "jobs"] {
        let options = QueryOptions { queue: Some(queue.to_owned()), ..of("a") };
        world.engine.rows("select n from t", options).await.unwrap();
    }
    // The name, and the niceness: the seventeenth number behind it.
    let mut found = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
        let nice: i32 = rest.split(' ').nth(16).unwrap().parse().unwrap();
        found.entry(name.to_owned()).or_insert_with(BTreeSet::new).insert(nice);
    }
    let own = found["headworks-high"].first().copied().unwrap();
    let check = |name: &str, more: i32| assert_eq!(found[name], BTreeSet::from([19.min(own + more)]), "{name}");
    check("headworks-high", 0);
    check("headworks-sql", 10);
    check("headworks-low", 19);
    check("headworks-contr", 0);
}
