//! The lake's law, the other way: what we publish DuckDB reads the same, on both catalogs, locally and on S3; and what a publish
//! promises: whole partitions or nothing, one winner, nothing lost of what others did elsewhere.

use std::{collections::HashSet, sync::Arc, time::Duration};

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
        ListArray, RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Int32Type, Schema},
};
use chrono::TimeDelta;
use datafusion::prelude::{SessionConfig, SessionContext};
use headworks_domain::{Ds, ErrorKind, Fault, PartitionKey, Secret, SystemClock};
use headworks_lake::{
    Action, At, ColumnSpec, Error, Keep, Lake, PublishInfo, Published, StageRequest, Staged, Storage, StorageOptions,
    TableSpec, rows,
};
use headworks_store::{Store, StoreOptions};
use headworks_testkit::{Attach, DuckDb, Moto, TempProject};

use crate::catalog::{BOTH, Catalog};

pub(crate) struct World {
    pub(crate) project: TempProject,
    pub(crate) lake: Lake,
    pub(crate) attach: Attach,
}

impl World {
    pub(crate) async fn new(catalog: Catalog) -> Self {
        let project = TempProject::new().unwrap();
        let options = StorageOptions { path: project.join("lake").display().to_string(), ..Default::default() };
        Self::with(catalog, project, &options).await
    }

    pub(crate) async fn with(catalog: Catalog, project: TempProject, storage: &StorageOptions) -> Self {
        let (store, attach) = catalog.open(&project).await;
        let lake = Lake::open(store, Storage::open(storage).unwrap(), Arc::new(SystemClock)).await.unwrap();
        Self { project, lake, attach }
    }

    pub(crate) fn duck(&self) -> DuckDb {
        let mut duck = DuckDb::start().unwrap();
        duck.attach(&self.attach).unwrap();
        duck
    }

    pub(crate) async fn stage(&self, spec: &TableSpec, ds: &str, batch: &RecordBatch) -> Result<Staged, Error> {
        let request = StageRequest { spec: spec.clone(), keys: vec![key(ds)], attempt: 7 };
        let batches = futures::stream::iter([Ok::<_, std::io::Error>(batch.clone())]);
        self.lake.stage(request, rows(batch.schema(), batches)).await
    }

    async fn publish(&self, staged: Staged) -> Result<Published, Error> {
        publish(&self.lake, staged).await
    }

    pub(crate) async fn put(&self, table: &str, ds: &str, batch: &RecordBatch) -> Published {
        let staged = self.stage(&spec(table), ds, batch).await.unwrap();
        self.publish(staged).await.unwrap()
    }

    pub(crate) async fn ours(&self, sql: &str, table: &str, at: At) -> Vec<String> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        self.lake.storage().register(&context.runtime_env());
        context.register_table("t", self.lake.provider(table, at).await.unwrap()).unwrap();
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
        text.lines().skip(3).filter(|l| !l.starts_with('+')).map(|l| l.trim_matches(['|', ' ']).to_owned()).collect()
    }
}

pub(crate) async fn publish(lake: &Lake, staged: Staged) -> Result<Published, Error> {
    let there = lake.clone();
    lake.store().write(move |tx| Box::pin(async move { there.publish(tx, &staged, &info()).await })).await
}

pub(crate) fn key(ds: &str) -> PartitionKey {
    PartitionKey::day(ds.parse().unwrap())
}

pub(crate) fn spec(table: &str) -> TableSpec {
    TableSpec {
        name: table.parse().unwrap(),
        kind: "events".to_owned(),
        columns: Vec::new(),
        partition_by: vec!["ds".to_owned()],
        comment: Some("what it's about".to_owned()),
        owner: Some("data".to_owned()),
        job: Some("a/job".to_owned()),
        retention_secs: None,
    }
}

pub(crate) fn info() -> PublishInfo {
    PublishInfo {
        job: "a/job".to_owned(),
        run_id: "run-1".to_owned(),
        attempt: 7,
        job_version: "abc".to_owned(),
        inputs: Vec::new(),
        as_of_now: false,
        action: Action::Publish,
    }
}

pub(crate) fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(values))]).unwrap()
}

/// Two rows of every type that we store, nulls included, in a column whose name needs quotes.
pub(crate) fn everything() -> RecordBatch {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None, Some(3)]), None]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("int", Arc::new(Int32Array::from(vec![Some(-5), None]))),
        ("big", Arc::new(Int64Array::from(vec![Some(i64::MAX), Some(i64::MIN)]))),
        ("real", Arc::new(Float64Array::from(vec![Some(1.5), Some(f64::NAN)]))),
        ("price", Arc::new(Decimal128Array::from(vec![Some(12_345), None]).with_precision_and_scale(12, 2).unwrap())),
        ("Ünï code", Arc::new(StringArray::from(vec![Some("it's \"ü\""), None]))),
        ("order", Arc::new(StringArray::from(vec![Some(""), Some("x")]))),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
        ("day", Arc::new(Date32Array::from(vec![Some(15_706), None]))),
        ("clock", Arc::new(Time64MicrosecondArray::from(vec![Some(36_000_000_001), None]))),
        ("local", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_357_000_000_123_456), None]))),
        (
            "instant",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_357_000_000_000_000), None]).with_timezone("UTC")),
        ),
        ("list", Arc::new(list)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn duckdb_reads_every_type_as_we_published_it() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("all_types", "2013-01-01", &everything()).await;
        let mut duck = world.duck();
        let found = duck.texts("select * from lake.all_types order by \"big\" desc").unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            found[0],
            [
                some("2013-01-01"),
                some("true"),
                some("-5"),
                some("9223372036854775807"),
                some("1.5"),
                some("123.45"),
                some("it's \"ü\""),
                some(""),
                some("\\x00\\xFF"),
                some("2013-01-01"),
                some("10:00:00.000001"),
                some("2013-01-01 00:26:40.123456"),
                some("2013-01-01 00:26:40+00"),
                some("[1, NULL, 3]"),
            ],
            "{catalog:?}"
        );
        assert_eq!(found[1][4], some("nan"));
        assert_eq!(found[1].iter().filter(|v| v.is_none()).count(), 10, "{catalog:?} {:?}", found[1]);
        // NaN is greater than every number to DuckDB: statistics that forgot it would prune the row away.
        assert_eq!(duck.texts("select count(*) from lake.all_types where \"real\" > 100").unwrap(), [[some("1")]]);
        let comment = duck.texts("select comment from duckdb_tables() where table_name = 'all_types'").unwrap();
        assert_eq!(comment, [[some("what it's about")]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_replaces_its_partition_and_nothing_else() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        let first = world.put("t", "2013-01-01", &numbers(0..10)).await;
        world.put("t", "2013-01-02", &numbers(100..105)).await;
        world.put("t", "2013-01-01", &numbers([1_000_000])).await;
        let mut duck = world.duck();
        let all = "select ds, count(*), sum(n) from lake.t group by ds order by ds";
        let expect =
            |rows: &[[&str; 3]]| rows.iter().map(|r| r.map(|v| Some(v.to_owned())).to_vec()).collect::<Vec<_>>();
        assert_eq!(duck.texts(all).unwrap(), expect(&[["2013-01-01", "1", "1000000"], ["2013-01-02", "5", "510"]]));
        // Statistics were widened, or DuckDB would prune the new rows away silently.
        assert_eq!(duck.texts("select count(*) from lake.t where n > 500000").unwrap(), [[Some("1".to_owned())]]);
        let then = format!("select count(*), sum(n) from lake.t at (version => {})", first.version);
        assert_eq!(duck.texts(&then).unwrap(), [[Some("10".to_owned()), Some("45".to_owned())]]);
        assert_eq!(duck.texts("select distinct ds from lake.t_latest").unwrap(), [[Some("2013-01-02".to_owned())]]);

        assert_eq!(world.ours("select sum(n) from t", "t", At::Now).await, ["1000510"]);
        assert_eq!(world.ours("select sum(n) from t", "t", At::Version(first.version)).await, ["45"]);
        let table = world.lake.expect_table("t", At::Now).await.unwrap();
        let history = world.lake.history(table.id, Some(&key("2013-01-01")), 10).await.unwrap();
        assert_eq!(history.iter().map(|v| v.info.rows).collect::<Vec<_>>(), [1, 10]);
        assert_eq!(history[0].run_id.as_deref(), Some("run-1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_of_no_rows_is_published_all_the_same() {
    let world = World::new(Catalog::Sqlite).await;
    world.put("t", "2013-01-01", &numbers([1])).await;
    world.put("t", "2013-01-02", &numbers([])).await;
    assert_eq!(world.lake.latest_partition("t", At::Now).await.unwrap(), Some(key("2013-01-02")));
    assert_eq!(world.lake.published("t", &[key("2013-01-02"), key("2013-01-03")]).await.unwrap().len(), 1);
    assert_eq!(world.duck().texts("select count(*) from lake.t").unwrap(), [[Some("1".to_owned())]]);
    // A table may begin with an empty day.
    world.put("empty", "2013-01-01", &numbers([])).await;
    assert_eq!(world.duck().texts("select count(*) from lake.empty").unwrap(), [[Some("0".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_publishes_of_one_partition_one_wins() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers([1])).await;
        let a = world.stage(&spec("t"), "2013-01-01", &numbers([2])).await.unwrap();
        let b = world.stage(&spec("t"), "2013-01-01", &numbers([3])).await.unwrap();
        let other = world.stage(&spec("t"), "2013-01-02", &numbers([4])).await.unwrap();
        world.publish(a).await.unwrap();
        let error = world.publish(b).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error}");
        assert!(error.is_retryable());
        world.publish(other).await.unwrap();
        assert_eq!(world.ours("select n from t order by n", "t", At::Now).await, ["2", "4"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compatible_changes_evolve_and_others_stop() {
    let world = World::new(Catalog::Sqlite).await;
    let small = RecordBatch::try_from_iter([("a", Arc::new(Int32Array::from(vec![1])) as ArrayRef)]).unwrap();
    world.put("t", "2013-01-01", &small).await;
    let grown = RecordBatch::try_from_iter([
        ("a", Arc::new(Int64Array::from(vec![5_000_000_000])) as ArrayRef),
        ("b", Arc::new(StringArray::from(vec!["new"])) as ArrayRef),
    ])
    .unwrap();
    world.put("t", "2013-01-02", &grown).await;
    world.put("t", "2013-01-03", &small).await;
    let mut duck = world.duck();
    let rows = duck.texts("select a, b from lake.t order by ds").unwrap();
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(rows, [[text("1"), None], [text("5000000000"), text("new")], [text("1"), None]]);
    assert_eq!(world.ours("select a, b from t where a > 1", "t", At::Now).await.len(), 1);

    let wrong = RecordBatch::try_from_iter([("a", Arc::new(StringArray::from(vec!["x"])) as ArrayRef)]).unwrap();
    let error = world.stage(&spec("t"), "2013-01-04", &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(
        error.to_string(),
        "the result does not fit table `t`: column `a` is bigint in the table and varchar in the result"
    );
    let strict = TableSpec {
        columns: vec![ColumnSpec { name: "a".to_owned(), data_type: Some(DataType::Int16), comment: None }],
        ..spec("u")
    };
    let error = world.stage(&strict, "2013-01-01", &grown).await.unwrap_err();
    assert!(error.to_string().contains("a value of column `a` is no smallint"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_outside_the_runs_partitions_are_refused() {
    let world = World::new(Catalog::Sqlite).await;
    let stray =
        RecordBatch::try_from_iter([("ds", Arc::new(StringArray::from(vec!["2013-01-01", "2013-01-02"])) as ArrayRef)])
            .unwrap();
    let error = world.stage(&spec("t"), "2013-01-01", &stray).await.unwrap_err();
    assert_eq!(error.to_string(), "the result for table `t` has rows outside ds=2013-01-01: ds=2013-01-02");
    // A run of two days sorts its rows by itself.
    let request = StageRequest { spec: spec("t"), keys: vec![key("2013-01-01"), key("2013-01-02")], attempt: 1 };
    let batches = futures::stream::iter([Ok::<_, std::io::Error>(stray.clone())]);
    let staged = world.lake.stage(request, rows(stray.schema(), batches)).await.unwrap();
    assert_eq!(staged.files().len(), 2);
    world.publish(staged).await.unwrap();
    assert_eq!(world.ours("select count(*) from t where ds = '2013-01-02'", "t", At::Now).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_hides_no_foreign_commit_from_the_registry() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers([1])).await;
        world.duck().run("insert into lake.t values ('2013-01-02', 777)").unwrap();
        let lake = world.lake.clone();
        let view = "few".parse().unwrap();
        let publish = world
            .lake
            .store()
            .write(move |tx| Box::pin(async move { lake.publish_view(tx, &view, "select 1", None).await }));
        publish.await.unwrap();
        let id = world.lake.table("t", At::Now).await.unwrap().unwrap().id;
        let known: Vec<_> = world.lake.partitions(id).await.unwrap().iter().map(|p| p.key.to_string()).collect();
        assert_eq!(known.len(), 2, "{catalog:?} {known:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_did_to_a_partition_goes_with_it() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers(0..100)).await;
        world.put("t", "2013-01-02", &numbers(0..10)).await;
        let mut duck = world.duck();
        duck.run("insert into lake.t values ('2013-01-01', 777)").unwrap();
        duck.run("insert into lake.t select '2013-01-01'::date, 1000 + range from range(50)").unwrap();
        duck.run("delete from lake.t where ds = '2013-01-01' and n = 5").unwrap();
        duck.run("insert into lake.t values ('2013-01-02', 888)").unwrap();
        assert_eq!(
            world.ours("select count(*) from t where ds = '2013-01-01'", "t", At::Now).await,
            ["150"],
            "{catalog:?}"
        );
        // Staged before the registry knew of the foreign commits: somebody else was first.
        let late = world.stage(&spec("t"), "2013-01-01", &numbers([9])).await.unwrap();
        let error = world.publish(late).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{catalog:?} {error}");
        world.lake.catch_up().await.unwrap();
        world.put("t", "2013-01-01", &numbers([1, 2])).await;
        let mut fresh = world.duck();
        let all = fresh.texts("select ds, count(*), sum(n) from lake.t group by ds order by ds").unwrap();
        let text = |t: &str| Some(t.to_owned());
        assert_eq!(
            all,
            [[text("2013-01-01"), text("2"), text("3")], [text("2013-01-02"), text("11"), text("933")]],
            "{catalog:?}"
        );
        assert_eq!(world.ours("select count(*) from t", "t", At::Now).await, ["13"]);
        let table = world.lake.expect_table("t", At::Now).await.unwrap();
        let partitions = world.lake.partitions(table.id).await.unwrap();
        assert_eq!(partitions.iter().map(|p| p.rows).collect::<Vec<_>>(), [2, 11], "{catalog:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_file_of_several_partitions_is_not_torn() {
    let world = World::new(Catalog::Sqlite).await;
    let mut duck = world.duck();
    duck.run("create table lake.t(ds date, n bigint)").unwrap();
    duck.run("insert into lake.t select '2013-01-01'::date + (range % 3)::int, range from range(300)").unwrap();
    duck.run("alter table lake.t set partitioned by (ds)").unwrap();
    drop(duck);
    let staged = world.stage(&spec("t"), "2013-01-02", &numbers([1])).await.unwrap();
    let error = world.publish(staged).await.unwrap_err();
    assert!(matches!(error, Error::Spans { .. }), "{error}");
    assert_eq!(world.ours("select count(*) from t", "t", At::Now).await, ["300"]);
    // A day that no such file holds is free.
    world.put("t", "2014-01-01", &numbers([1])).await;
    assert_eq!(world.duck().texts("select count(*) from lake.t").unwrap(), [[Some("301".to_owned())]]);
}

/// Eight writers of ours and DuckDB at once: every intent succeeds once or fails with a typed error.
async fn crowd(catalog: Catalog, for_each: usize) {
    let world = World::new(catalog).await;
    world.put("t", "2012-12-31", &numbers([0])).await;
    let attach = world.attach.clone();
    let foreign = tokio::task::spawn_blocking(move || {
        let mut duck = DuckDb::start().unwrap();
        duck.attach(&attach).unwrap();
        let mut done = 0;
        for n in 0..for_each {
            match duck.run(&format!("insert into lake.t values ('2011-01-01', {n})")) {
                Ok(()) => done += 1,
                // DuckDB gives up on a busy SQLite catalog or after its own retries; it says so.
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        done
    });
    let first: Ds = "2013-01-01".parse().unwrap();
    let writers = (0..8).map(|writer| {
        let lake = world.lake.clone();
        tokio::spawn(async move {
            let (mut wins, mut conflicts) = (0, 0);
            for n in 0..for_each {
                // Two writers share each partition, so that some intents collide.
                let ds = first.plus_days(i64::try_from(n * 4 + writer / 2).unwrap());
                loop {
                    let request = StageRequest { spec: spec("t"), keys: vec![PartitionKey::day(ds)], attempt: 1 };
                    let batch = numbers([1]);
                    let batches = futures::stream::iter([Ok::<_, std::io::Error>(batch.clone())]);
                    let staged = lake.stage(request, rows(batch.schema(), batches)).await.unwrap();
                    match publish(&lake, staged).await {
                        Ok(_) => wins += 1,
                        Err(Error::Conflict { .. }) => conflicts += 1,
                        // DuckDB locks rows in an order of its own: PostgreSQL ends one of two that wait for each other.
                        Err(error) if error.code() == "STORE_LOCKED" && error.is_retryable() => continue,
                        Err(other) => panic!("{other}"),
                    }
                    break;
                }
            }
            (wins, conflicts)
        })
    });
    let mut wins = 0;
    let mut intents = 0;
    for writer in writers.collect::<Vec<_>>() {
        let (won, lost) = writer.await.unwrap();
        wins += won;
        intents += won + lost;
    }
    let foreign = foreign.await.unwrap();
    assert_eq!(intents, 8 * for_each);
    assert!(wins >= 4 * for_each);
    let days = "select count(*), count(distinct ds) from t where ds >= '2013-01-01'";
    let ours = world.ours(days, "t", At::Now).await;
    let expected = 4 * for_each;
    assert_eq!(
        ours[0].split('|').map(|v| v.trim().parse::<usize>().unwrap()).collect::<Vec<_>>(),
        [expected, expected],
        "{catalog:?}"
    );
    assert_eq!(
        world.ours("select count(*) from t where ds = '2011-01-01'", "t", At::Now).await,
        [foreign.to_string()],
        "{catalog:?}"
    );
    let mut duck = world.duck();
    let theirs = duck.texts("select count(*) from lake.t where ds >= '2013-01-01'").unwrap();
    assert_eq!(theirs, [[Some(expected.to_string())]], "{catalog:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_writers_on_sqlite() {
    crowd(Catalog::Sqlite, 12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_writers_on_postgres() {
    crowd(Catalog::Postgres, 12).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a minute a catalog"]
async fn long_a_crowd_of_writers() {
    for catalog in BOTH {
        crowd(catalog, 600).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn undone_work_leaves_the_lake_as_it_was() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers([1])).await;
        let before = world.lake.version(At::Now).await.unwrap();
        let staged = world.stage(&spec("t"), "2013-01-01", &numbers([2])).await.unwrap();
        let lake = world.lake.clone();
        // The task's own row turns out to be another's: the publish in the same transaction goes with it.
        let outcome: Result<(), Error> = world
            .lake
            .store()
            .write(move |tx| {
                Box::pin(async move {
                    lake.publish(tx, &staged, &info()).await?;
                    Err(Error::Unsupported { what: "fenced".to_owned() })
                })
            })
            .await;
        outcome.unwrap_err();
        assert_eq!(world.lake.version(At::Now).await.unwrap(), before);
        assert_eq!(world.ours("select n from t", "t", At::Now).await, ["1"]);
        assert_eq!(world.duck().texts("select n from lake.t").unwrap(), [[Some("1".to_owned())]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_comes_back() {
    let world = World::new(Catalog::Sqlite).await;
    let first = world.put("t", "2013-01-01", &numbers(0..10)).await;
    world.put("t", "2013-01-02", &numbers([5])).await;
    world.put("t", "2013-01-01", &numbers([99])).await;
    let version = world.lake.restore("t", &key("2013-01-01"), first.version).await.unwrap();
    assert!(version > first.version);
    assert_eq!(world.ours("select sum(n) from t where ds = '2013-01-01'", "t", At::Now).await, ["45"]);
    assert_eq!(world.duck().texts("select sum(n) from lake.t").unwrap(), [[Some("50".to_owned())]]);
    let error = world.lake.restore("t", &key("2013-01-03"), first.version).await.unwrap_err();
    assert!(matches!(error, Error::NoPartition { .. }), "{error}");
    let error = world.lake.restore("t", &key("2013-01-01"), 1_000).await.unwrap_err();
    assert!(error.to_string().starts_with("the lake has no version 1000"), "{error}");
}

pub(crate) fn keep(secs: i64) -> Keep {
    let delta = TimeDelta::seconds(secs);
    Keep { versions: delta, orphans: delta, forgotten: delta, live_attempts: HashSet::new(), newest_attempt: 7 }
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_up_removes_what_may_go_and_nothing_else() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers(0..10)).await;
        world.put("t", "2013-01-01", &numbers([1])).await;
        let short = TableSpec { retention_secs: Some(86_400), ..spec("short") };
        let staged = world.stage(&short, "2013-01-01", &numbers([1])).await.unwrap();
        world.publish(staged).await.unwrap();
        // Staged and never published, by a live attempt and by a dead one.
        world.stage(&spec("t"), "2013-01-02", &numbers([1])).await.unwrap();
        let count = || world.project.files("lake/data").unwrap().len();
        assert_eq!(count(), 4);

        let generous = world.lake.removals(&keep(1_000_000)).await.unwrap();
        assert_eq!(generous.iter().map(|r| r.what).collect::<Vec<_>>(), ["partition"], "{generous:?}");
        let live = Keep { live_attempts: HashSet::from([7]), ..keep(0) };
        assert!(!world.lake.removals(&live).await.unwrap().iter().any(|r| r.what == "orphan"));
        assert_eq!(count(), 4);

        world.lake.remove(&keep(0)).await.unwrap();
        // What the first pass has forgotten goes in the second, when its versions do.
        world.lake.remove(&keep(0)).await.unwrap();
        assert_eq!(
            world.project.files("lake/data").unwrap().len(),
            1,
            "{catalog:?} {:?}",
            world.project.files("lake/data")
        );
        assert_eq!(world.ours("select n from t", "t", At::Now).await, ["1"]);
        assert_eq!(world.duck().texts("select n from lake.t").unwrap(), [[Some("1".to_owned())]]);
        assert_eq!(world.duck().texts("select count(*) from lake.short").unwrap(), [[Some("0".to_owned())]]);
        assert!(world.lake.version(At::Version(1)).await.is_err());
        assert_eq!(world.lake.removals(&keep(0)).await.unwrap(), []);
    }
}

/// Each commit lets go of the lock that publishes wait for.
#[tokio::test(flavor = "multi_thread")]
async fn clean_up_of_many_versions_is_many_commits() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers(0..10)).await;
        world.put("t", "2013-01-01", &numbers([1])).await;
        let store = world.lake.store();
        let old = "insert into ducklake_snapshot (snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id)
            with recursive n (i) as (select 1 union all select i + 1 from n where i < 1000)
            select -i, snapshot_time, schema_version, next_catalog_id, next_file_id from n, ducklake_snapshot where snapshot_id = 0";
        let made: Result<u64, Error> =
            store.write(move |tx| Box::pin(async move { Ok(tx.execute(old, &[]).await?) })).await;
        assert_eq!(made.unwrap(), 1000);
        let commits = async || {
            let before = store.commits();
            world.lake.remove(&keep(0)).await.unwrap();
            store.commits() - before
        };
        let (many, few) = (commits().await, commits().await);
        assert!(many >= few + 4, "{catalog:?}: {many} commits, {few} when there is nothing to do");
        let versions = store.rows("select snapshot_id from ducklake_snapshot", &[]).await.unwrap();
        assert_eq!((versions.len(), versions[0].i64(0).unwrap()), (1, 2));
        assert_eq!(world.ours("select n from t", "t", At::Now).await, ["1"]);
        assert_eq!(world.duck().texts("select n from lake.t").unwrap(), [[Some("1".to_owned())]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_catalog_removes_nothing() {
    let world = World::new(Catalog::Sqlite).await;
    world.put("t", "2013-01-01", &numbers([1])).await;
    let backup = world.project.join("backup.db");
    // Nobody writes: the file and its log are a whole backup.
    for ending in ["", "-wal"] {
        std::fs::copy(world.project.join(format!("metadata.db{ending}")), format!("{}{ending}", backup.display()))
            .unwrap();
    }
    world.put("t", "2013-01-02", &numbers([2])).await;
    world.lake.remove(&keep(0)).await.unwrap();
    let store = Store::open(&StoreOptions::new(format!("sqlite:{}", backup.display()))).await.unwrap();
    let storage =
        Storage::open(&StorageOptions { path: world.project.join("lake").display().to_string(), ..Default::default() })
            .unwrap();
    let old = Lake::open(store, storage, Arc::new(SystemClock)).await.unwrap();
    let error = old.remove(&keep(0)).await.unwrap_err();
    assert!(matches!(error, Error::Behind { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_on_s3() {
    let moto = tokio::task::spawn_blocking(|| Moto::start().unwrap()).await.unwrap();
    moto.create_bucket("lake").unwrap();
    let storage = StorageOptions {
        path: "s3://lake/some prefix".to_owned(),
        endpoint: Some(moto.endpoint()),
        region: Some("us-east-1".to_owned()),
        access_key_id: Some("test".to_owned()),
        secret_access_key: Some(Secret::new("test")),
        allow_http: true,
    };
    for catalog in BOTH {
        let world = World::with(catalog, TempProject::new().unwrap(), &storage).await;
        world.put("t", "2013-01-01", &numbers(0..10)).await;
        world.put("t", "2013-01-01", &numbers(0..20)).await;
        world.put("t", "2013-01-02", &everything()).await;
        assert_eq!(world.ours("select count(*), sum(n) from t", "t", At::Now).await, ["22       | 190"]);
        world.lake.remove(&keep(0)).await.unwrap();
        world.lake.remove(&keep(0)).await.unwrap();
        assert_eq!(moto.keys("lake", "some prefix/data/").unwrap().len(), 2, "{catalog:?}");
        assert_eq!(world.ours("select count(*) from t", "t", At::Now).await, ["22"]);
        for key in moto.keys("lake", "some prefix/").unwrap() {
            moto.delete("lake", &key).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_grouped() {
    let world = World::new(Catalog::Sqlite).await;
    world.put("t", "2012-12-31", &numbers([0])).await;
    let mut staged = Vec::new();
    for day in 1..=20 {
        staged.push(world.stage(&spec("t"), &format!("2013-01-{day:02}"), &numbers([day])).await.unwrap());
    }
    let before = world.lake.store().commits();
    let all = staged.into_iter().map(|s| world.publish(s));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    let commits = world.lake.store().commits() - before;
    assert!(commits < 10, "{commits} commits for 20 publishes");
    assert_eq!(world.ours("select count(*) from t", "t", At::Now).await, ["21"]);
    tokio::time::timeout(Duration::from_secs(5), world.lake.store().close()).await.unwrap();
}
