//! The engine over a real lake on SQLite and a local folder.

use std::sync::Arc;

use arrow::util::display::array_value_to_string;
use headworks_domain::{ErrorKind, Fault, PartitionKey, SystemClock};
use headworks_engine::{
    At, Engine, EngineOptions, Error, Layered, QueryOptions,
    checks::{self, Check, CheckKind},
};
use headworks_lake::{Action, Lake, PublishInfo, StageRequest, Storage, StorageOptions, TableSpec};
use headworks_store::{Store, StoreOptions};
use tempfile::TempDir;

struct World {
    engine: Engine,
    lake: Lake,
    dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&StoreOptions::new(format!("sqlite:{}", dir.path().join("metadata.db").display())))
            .await
            .unwrap();
        let path = dir.path().join("lake").display().to_string();
        let storage = Storage::open(&StorageOptions { path, ..StorageOptions::default() }).unwrap();
        let lake = Lake::open(store, storage, Arc::new(SystemClock)).await.unwrap();
        let engine = Engine::new(Arc::new(lake.clone()), EngineOptions::new(dir.path().join("spill"), 2)).unwrap();
        Self { engine, lake, dir }
    }

    /// Publishes the result of a query as one partition.
    async fn publish(&self, table: &str, partition: &str, sql: &str) {
        let key: PartitionKey = partition.parse().unwrap();
        let spec = TableSpec {
            name: table.parse().unwrap(),
            kind: "cumulative".to_owned(),
            columns: Vec::new(),
            partition_by: key.columns().into_iter().map(str::to_owned).collect(),
            comment: None,
            owner: None,
            job: Some(table.to_owned()),
            retention_secs: None,
        };
        let rows = self.engine.query(sql, QueryOptions::default()).await.unwrap().into_sendable();
        let staged = self.lake.stage(StageRequest { spec, keys: vec![key], attempt: 1 }, rows).await.unwrap();
        let info = PublishInfo {
            job: table.to_owned(),
            run_id: "r".to_owned(),
            attempt: 1,
            job_version: "v".to_owned(),
            inputs: Vec::new(),
            as_of_now: false,
            action: Action::Publish,
        };
        let lake = self.lake.clone();
        self.lake
            .store()
            .write(move |tx| Box::pin(async move { lake.publish(tx, &staged, &info).await.map(drop) }))
            .await
            .unwrap();
    }

    async fn value(&self, sql: &str) -> String {
        let batches = self.engine.rows(sql, QueryOptions::default()).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        array_value_to_string(batches[0].column(0), 0).unwrap()
    }

    /// How a query would be run.
    async fn explained(&self, sql: &str) -> String {
        let rows = self.engine.rows(&format!("explain {sql}"), QueryOptions::default()).await.unwrap();
        let line = |n| array_value_to_string(rows[0].column(0), n).unwrap();
        (0..rows[0].num_rows()).map(line).collect::<Vec<_>>().join("\n")
    }

    async fn fails(&self, sql: &str) -> Error {
        self.engine.rows(sql, QueryOptions::default()).await.unwrap_err()
    }
}

async fn two_days() -> World {
    let world = World::new().await;
    for (day, rows) in [(1, 10), (2, 20)] {
        let sql = format!("select value as id, 'x' || value as name from generate_series(1, {rows})");
        world.publish("orders", &format!("ds=2013-01-0{day}"), &sql).await;
    }
    world
}

#[tokio::test]
async fn published_rows_are_read_and_pruned() {
    let world = two_days().await;
    assert_eq!(world.value("select count(*) from orders").await, "30");
    assert_eq!(world.value("select max(ds) from orders").await, "2013-01-02");
    for filter in
        ["ds = '2013-01-01'", "ds < '2013-01-02'", "ds in ('2013-01-01')", "ds between '2012-01-01' and '2013-01-01'"]
    {
        let sql = format!("select sum(id) from orders where {filter}");
        assert_eq!(world.value(&sql).await, "55", "{filter}");
        let plan = world.explained(&sql).await;
        assert!(plan.contains("Scan of main/orders: 1 file of "), "{filter}: {plan}");
        assert!(plan.contains("in ds=2013-01-01,") && !plan.contains("ds=2013-01-02"), "{filter}: {plan}");
    }
    let plan = world.explained("select * from orders_latest").await;
    assert!(plan.contains("ds=2013-01-02") && !plan.contains("ds=2013-01-01"), "{plan}");
    let plan = world.explained("select sum(id) from orders").await;
    assert!(
        plan.contains("2 files of ") && plan.contains("in 2 partitions from ds=2013-01-01 to ds=2013-01-02"),
        "{plan}"
    );
}

#[tokio::test]
async fn the_least_and_the_greatest_day_need_no_file() {
    let world = two_days().await;
    world.publish("orders", "ds=2013-01-03", "select 1 as id, 'x' as name").await;
    let before = world.lake.version(At::Now).await.unwrap();
    world.publish("orders", "ds=2013-01-04", "select 1 as id, 'x' as name where false").await;
    world.publish("orders", "ds=2013-01-01", "select 1 as id, 'x' as name where false").await;
    std::fs::remove_dir_all(world.dir.path().join("lake/data/main")).unwrap();
    for (sql, expected) in [
        ("max(ds) from orders", "2013-01-03"),
        ("min(ds) from orders", "2013-01-02"),
        ("max(o.ds) as newest from orders o", "2013-01-03"),
        ("cast(max(ds) as varchar) || '!' from orders", "2013-01-03!"),
        ("max(ds) - min(ds) from orders", "1"),
        ("max(ds) from orders where ds < '2013-01-03'", "2013-01-02"),
        ("max(day) from (select ds as day, id from orders) o where day <= '2013-01-02'", "2013-01-02"),
        ("max(ds) from orders where ds > '2020-01-01'", ""),
        ("max(ds) from orders_latest", ""),
        (&format!("min(ds) from orders at (version => {before})"), "2013-01-01"),
        ("count(*) from (select 1) one where date '2013-01-03' = (select max(ds) from orders)", "1"),
    ] {
        assert_eq!(world.value(&format!("select {sql}")).await, expected, "{sql}");
    }
    let plan = world.explained("select max(ds), min(ds) from orders").await;
    assert!(!plan.contains("Scan of main"), "{plan}");
}

#[tokio::test]
async fn nulls_of_a_staged_result_are_known() {
    let world = World::new().await;
    let key: PartitionKey = "ds=2013-01-01".parse().unwrap();
    let spec = TableSpec {
        name: "orders".parse().unwrap(),
        kind: "cumulative".to_owned(),
        columns: Vec::new(),
        partition_by: vec!["ds".to_owned()],
        comment: None,
        owner: None,
        job: None,
        retention_secs: None,
    };
    let sql = "select value as id, case when value > 3 then 'x' end as name, case when value < 5 then value / 0.5 end as half, \
               case when value = 1 then [value] end as list from generate_series(1, 5)";
    let rows = world.engine.query(sql, QueryOptions::default()).await.unwrap().into_sendable();
    let staged = world.lake.stage(StageRequest { spec, keys: vec![key], attempt: 1 }, rows).await.unwrap();
    let options = || QueryOptions::default().with_table("this", world.lake.staged(&staged).unwrap());
    let not_null = |column: &str| Check {
        name: column.to_owned(),
        kind: CheckKind::NotNull { column: column.to_owned() },
        block: true,
    };
    let few = Check { name: "few".to_owned(), kind: CheckKind::RowCount { min: Some(5), max: Some(5) }, block: true };
    let columns = ["id", "name", "half", "list", "ds"].map(not_null);
    let report = checks::run(&world.engine, &columns, &options()).await.unwrap();
    let bad: Vec<_> = report.outcomes.iter().map(|o| (o.bad_rows, o.examples.len())).collect();
    assert_eq!(bad, [(Some(0), 0), (Some(3), 3), (Some(1), 1), (Some(4), 4), (Some(0), 0)]);
    let error = checks::run(&world.engine, &[not_null("nmae")], &options()).await.unwrap_err();
    assert!(error.to_string().contains("nmae"), "{error}");
    // What holds needs no file.
    world.lake.discard(&staged).await.unwrap();
    let report = checks::run(&world.engine, &[not_null("id"), few, not_null("ds")], &options()).await.unwrap();
    assert_eq!((report.rows, report.is_publishable()), (5, true));
}

#[tokio::test]
async fn latest_and_versions_follow_publishes() {
    let world = two_days().await;
    assert_eq!(world.value("select count(*) from orders_latest").await, "20");
    let before = world.lake.version(At::Now).await.unwrap();
    world.publish("orders", "ds=2013-01-02", "select 7 as id, 'seven' as name").await;
    world.publish("orders", "ds=2013-01-03", "select 7 as id, 'seven' as name where false").await;
    assert_eq!(world.value("select count(*) from orders").await, "11");
    assert_eq!(world.value("select count(*) from orders_latest").await, "0");
    assert_eq!(world.value(&format!("select count(*) from orders at (version => {before})")).await, "30");
    let joined =
        format!("select count(*) from orders at (version => {before}) o join orders n on n.ds = o.ds and n.id = o.id");
    assert_eq!(world.value(&joined).await, "11");
    let then = QueryOptions { at: At::Version(before), ..QueryOptions::default() };
    let rows = world.engine.rows("select count(*) from orders_latest", then).await.unwrap();
    assert_eq!(array_value_to_string(rows[0].column(0), 0).unwrap(), "20");
    let error = world.fails("select * from orders at (version => 1000)").await;
    assert!(error.to_string().contains("no version 1000"), "{error}");
}

#[tokio::test]
async fn names_are_told() {
    let world = two_days().await;
    let shown = world.value("select string_agg(table_name || ' ' || table_type, ', ' order by table_name) from information_schema.tables where table_schema = 'main'").await;
    assert_eq!(shown, "orders BASE TABLE, orders_latest VIEW");
    let columns = world.value("select string_agg(column_name || ' ' || data_type, ', ' order by ordinal_position) from information_schema.columns where table_name = 'orders'").await;
    assert_eq!(columns, "ds date, id bigint, name varchar");
    // `order` may name a table, and is a near miss here.
    for name in ["order", "ordres"] {
        let error = world.fails(&format!("select * from {name}")).await;
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}");
        assert_eq!(error.hint().as_deref(), Some("did you mean `orders`? `headworks tables list` shows all tables"));
    }
}

#[tokio::test]
async fn lost_files_are_named() {
    let world = two_days().await;
    let folder = world.dir.path().join("lake/data/main/orders/ds=2013-01-01");
    let folder = if folder.exists() { folder } else { world.dir.path().join("lake/main/orders/ds=2013-01-01") };
    for file in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let error = world.fails("select sum(id) from orders").await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("orders"), "{error}");
    assert_eq!(world.value("select sum(id) from orders where ds = '2013-01-02'").await, "210");
}

/// A lake that is only read, and a new one over it.
async fn layered() -> (World, World, Engine) {
    let lower = two_days().await;
    lower.lake.store().close().await;
    let store = Store::open(&lower.lake.store().options().clone().read_only()).await.unwrap();
    let path = lower.dir.path().join("lake").display().to_string();
    let storage = Storage::open_read_only(&StorageOptions { path, ..StorageOptions::default() }).unwrap().unwrap();
    let below = Lake::open_read_only(store, storage, Arc::new(SystemClock)).await.unwrap().unwrap();
    let upper = World::new().await;
    let both = Layered::new(Arc::new(upper.lake.clone()), Arc::new(below));
    let engine = Engine::new(Arc::new(both), EngineOptions::new(upper.dir.path().join("spill"), 2)).unwrap();
    (lower, upper, engine)
}

async fn value(engine: &Engine, sql: &str) -> String {
    let batches = engine.rows(sql, QueryOptions::default()).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    array_value_to_string(batches[0].column(0), 0).unwrap()
}

#[tokio::test]
async fn names_that_a_lake_lacks_are_found_in_the_one_below() {
    let (_lower, upper, engine) = layered().await;
    upper.publish("mine", "ds=2013-05-01", "select 3 as id").await;
    assert_eq!(value(&engine, "select count(*) from orders").await, "30");
    assert_eq!(value(&engine, "select count(*) from orders_latest").await, "20");
    let both = "select o.name from mine m join orders_latest o on o.id = m.id";
    assert_eq!(value(&engine, both).await, "x3");
    // Its versions are counted where the table is: the upper lake has no version 2.
    assert_eq!(value(&engine, "select count(*) from orders at (version => 1)").await, "10");
    let names = "select string_agg(table_name, ' ' order by table_name) from information_schema.tables where table_schema = 'main'";
    assert_eq!(value(&engine, names).await, "mine mine_latest orders orders_latest");
    let error = engine.rows("select * from ordres", QueryOptions::default()).await.unwrap_err();
    assert!(error.hint().unwrap().contains("`orders`"), "{error}");

    // From now on it is the upper lake's, whole: the days that it lacks are not filled up from below.
    upper.publish("orders", "ds=2013-01-01", "select 7 as id, 'seven' as name").await;
    assert_eq!(value(&engine, "select count(*) from orders").await, "1");
    assert_eq!(value(&engine, "select max(ds) from orders_latest").await, "2013-01-01");
    assert_eq!(value(&engine, "select count(*) from orders at (version => 2)").await, "1");
    let error = engine.rows("select * from orders at (version => 1)", QueryOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn cached_results_live_until_one_of_their_tables_is_published() {
    let world = two_days().await;
    world.publish("other", "ds=2013-01-01", "select 1 as n").await;
    let ask = async |sql: &str| {
        let stream = world.engine.query(sql, QueryOptions::default()).await.unwrap();
        let is_cached = stream.state().is_cached;
        let batches: Vec<_> = futures::TryStreamExt::try_collect(stream).await.unwrap();
        (array_value_to_string(batches[0].column(0), 0).unwrap(), is_cached)
    };
    let answer = |value: &str, is_cached: bool| (value.to_owned(), is_cached);
    let (all, latest) = ("select count(*) from orders", "select count(*) from orders_latest");
    for (sql, rows) in [(all, "30"), (latest, "20")] {
        assert_eq!(ask(sql).await, answer(rows, false));
        assert_eq!(ask(sql).await, answer(rows, true));
    }
    // Another table's commit is no reason to read again.
    world.publish("other", "ds=2013-01-02", "select 2 as n").await;
    assert_eq!(ask(all).await, answer("30", true));
    // A partition without rows changes which one is the newest, and no file.
    world.publish("orders", "ds=2013-01-03", "select 1 as id, 'x' as name where false").await;
    assert_eq!(ask(all).await, answer("30", false));
    assert_eq!(ask(latest).await, answer("0", false));
    world.publish("orders", "ds=2013-01-03", "select 1 as id, 'x' as name").await;
    assert_eq!(ask(all).await, answer("31", false));
    assert_eq!(ask(latest).await, answer("1", false));
    assert!(!ask("select count(*) from orders AT (VERSION => 3)").await.1);
    assert!(ask("select count(*) from orders AT (VERSION => 3)").await.1);
    // What was not there is there.
    assert!(world.fails("select count(*) from later").await.to_string().contains("later"));
    world.publish("later", "ds=2013-01-03", "select 1 as id").await;
    assert_eq!(ask("select count(*) from later").await, answer("1", false));
}
