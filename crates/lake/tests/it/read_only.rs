//! A lake that is only read: everything in it is seen, and nothing of it is changed. And whose a database is.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use datafusion::prelude::SessionContext;
use headworks_domain::{EnvironmentName, ErrorKind, Fault, Secret, SystemClock};
use headworks_lake::{At, Error, Lake, StageRequest, Staged, Storage, StorageOptions, claim, rows};
use headworks_store::{Store, StoreOptions};
use headworks_testkit::{Moto, TempPostgres, TempProject};
use object_store::{ObjectStoreExt, path::Path as Key};

use crate::{
    catalog::{BOTH, Catalog},
    publish::{World, info, keep, key, numbers, publish, spec},
};

/// Every row of every table of a PostgreSQL database.
const ALL_ROWS: &str = "select string_agg(table_schema || '.' || table_name || ' ' || md5(query_to_xml(
    format('select * from %I.%I t order by t::text', table_schema, table_name), true, true, '')::text), ',' order by 1)
    from information_schema.tables where table_schema not in ('pg_catalog', 'information_schema')";

/// All that a database holds.
fn content(store: &Store) -> Vec<u8> {
    match store.file() {
        Some(file) => std::fs::read(file).unwrap(),
        None => {
            let url = &store.options().url;
            let database = url.rsplit('/').next().unwrap();
            TempPostgres::shared().unwrap().psql(database, ALL_ROWS).unwrap().into_bytes()
        }
    }
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path);
            }
        }
    }
    files
}

async fn open(store: &Store, storage: &StorageOptions) -> Lake {
    let store = Store::open(&store.options().clone().read_only()).await.unwrap();
    let storage = Storage::open_read_only(storage).unwrap().unwrap();
    Lake::open_read_only(store, storage, Arc::new(SystemClock)).await.unwrap().unwrap()
}

async fn value(lake: &Lake, table: &str, sql: &str) -> String {
    let context = SessionContext::new();
    lake.storage().register(&context.runtime_env());
    context.register_table("t", lake.provider(table, At::Now).await.unwrap()).unwrap();
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    arrow::util::display::array_value_to_string(batches[0].column(0), 0).unwrap()
}

async fn reads_all_and_changes_nothing(catalog: Catalog, world: &World, storage: &StorageOptions) {
    world.put("t", "2013-01-01", &numbers(0..10)).await;
    world.put("t", "2013-01-02", &numbers(0..20)).await;
    let position = world.lake.version(At::Now).await.unwrap();
    // Of these commits the registry knows nothing: one in the catalog itself, one in a file, one in a table of its own.
    let mut duck = world.duck();
    duck.run("insert into lake.t values ('2013-01-03', 5)").unwrap();
    duck.run("insert into lake.t select '2013-01-02'::date, range from range(100)").unwrap();
    duck.run("create table lake.u(ds date, n bigint)").unwrap();
    duck.run("alter table lake.u set partitioned by (ds)").unwrap();
    duck.run("insert into lake.u select '2013-02-01'::date, range from range(7)").unwrap();
    drop(duck);
    world.lake.store().close().await;
    let before = content(world.lake.store());

    let lake = open(world.lake.store(), storage).await;
    assert!(lake.is_read_only() && lake.id() == world.lake.id(), "{catalog:?}");
    assert!(!lake.catch_up().await.unwrap());
    assert_eq!(value(&lake, "t", "select count(*) from t").await, "131", "{catalog:?}");
    assert_eq!(lake.latest_partition("t", At::Now).await.unwrap(), Some(key("2013-01-03")), "{catalog:?}");
    assert_eq!(lake.latest_partition("t", At::Version(position)).await.unwrap(), Some(key("2013-01-02")));
    let wanted = [key("2013-01-01"), key("2013-01-03"), key("2013-01-04")];
    let mut published: Vec<_> = lake.published("t", &wanted).await.unwrap().into_keys().collect();
    published.sort();
    assert_eq!(published, wanted[..2], "{catalog:?}");
    let table = lake.expect_table("t", At::Now).await.unwrap();
    let partitions = lake.partitions(table.id).await.unwrap();
    let sizes: Vec<_> = partitions.iter().map(|p| (p.key.ds.to_string(), p.rows)).collect();
    let expected = [("2013-01-01", 10), ("2013-01-02", 120), ("2013-01-03", 1)].map(|(ds, n)| (ds.to_owned(), n));
    assert_eq!(sizes, expected, "{catalog:?}");
    let (news, _) = lake.published_since(position).await.unwrap();
    let mut news: Vec<_> = news.iter().map(|(table, key)| format!("{table} {key}")).collect();
    news.sort();
    assert_eq!(news, ["t ds=2013-01-02", "t ds=2013-01-03", "u ds=2013-02-01"], "{catalog:?}");
    let kinds: Vec<_> = lake.notes().await.unwrap().into_iter().map(|n| (n.name, n.kind)).collect();
    assert_eq!(kinds, [("t", "events"), ("u", "foreign")].map(|(t, k)| (t.to_owned(), k.to_owned())), "{catalog:?}");
    let history = lake.history(table.id, Some(&key("2013-01-02")), 10).await.unwrap();
    let actions: Vec<_> = history.iter().map(|v| v.action.as_str()).collect();
    assert_eq!(actions, ["foreign", "publish"], "{catalog:?}");

    for refused in refusals(&lake).await {
        assert_eq!(refused.kind(), ErrorKind::Denied, "{catalog:?} {refused}");
    }
    // Past all of our own code the database itself refuses.
    let smuggled = lake.store().rows("insert into hw_lake values ('x', 'y') returning key", &[]).await;
    assert!(smuggled.is_err(), "{catalog:?}");
    lake.store().close().await;
    assert!(content(world.lake.store()) == before, "{catalog:?}: the database has changed");
}

/// Everything that would change a lake, and fails.
async fn refusals(lake: &Lake) -> Vec<Error> {
    let batch = numbers([1]);
    let request = StageRequest { spec: spec("t"), keys: vec![key("2013-01-01")], attempt: 1 };
    let batches = futures::stream::iter([Ok::<_, std::io::Error>(batch.clone())]);
    let staged = lake.stage(request, rows(batch.schema(), batches)).await.unwrap_err();
    let written = lake.store().write(|_| Box::pin(async { Ok::<_, Error>(()) })).await.unwrap_err();
    let removed = lake.remove(&keep(0)).await.unwrap_err();
    let dropped = lake.drop_partitions("t", vec![key("2013-01-01")]).await.unwrap_err();
    let newest = lake.version(At::Now).await.unwrap();
    let restored = lake.restore("t", &key("2013-01-01"), newest).await.unwrap_err();
    let mut refused = vec![staged, written, removed, dropped, restored];
    let (one, two) = (Key::from("main/x"), Key::from("main/y"));
    for files in [lake.storage().files(), lake.storage().root()] {
        let put = files.put(&one, "x".into()).await.unwrap_err();
        let parts = files.put_multipart(&one).await.unwrap_err();
        let gone = files.delete(&one).await.unwrap_err();
        let (copied, moved) = (files.copy(&one, &two).await.unwrap_err(), files.rename(&one, &two).await.unwrap_err());
        refused.extend([put, parts, gone, copied, moved].map(|source| Error::Storage {
            doing: "change",
            path: String::new(),
            source,
        }));
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_only_read_is_seen_whole_and_stays_as_it_is() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        let folder = world.project.join("lake");
        let storage = StorageOptions { path: folder.display().to_string(), ..Default::default() };
        world.put("t", "2012-12-31", &numbers([1])).await;
        world.lake.drop_partitions("t", vec![key("2012-12-31")]).await.unwrap();
        reads_all_and_changes_nothing(catalog, &world, &storage).await;
        // Three of ours, one of DuckDB's and the lake's marker: nothing that the reader made, nothing gone.
        let after = files(&folder);
        assert_eq!(after.len(), 5, "{catalog:?} {after:?}");
        let again = Store::open(world.lake.store().options()).await.unwrap();
        let lake = Lake::open(again, Storage::open(&storage).unwrap(), Arc::new(SystemClock)).await.unwrap();
        assert!(lake.catch_up().await.unwrap(), "{catalog:?}: the registry was left to its owner");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_on_s3_is_only_read_as_well() {
    let moto = tokio::task::spawn_blocking(|| Moto::start().unwrap()).await.unwrap();
    moto.create_bucket("lake").unwrap();
    let storage = StorageOptions {
        path: "s3://lake/prefix".to_owned(),
        endpoint: Some(moto.endpoint()),
        region: Some("us-east-1".to_owned()),
        access_key_id: Some("test".to_owned()),
        secret_access_key: Some(Secret::new("test")),
        allow_http: true,
    };
    let world = World::with(Catalog::Postgres, TempProject::new().unwrap(), &storage).await;
    world.put("t", "2013-01-01", &numbers(0..10)).await;
    world.lake.store().close().await;
    let before = moto.keys("lake", "").unwrap();
    let lake = open(world.lake.store(), &storage).await;
    assert_eq!(value(&lake, "t", "select count(*) from t").await, "10");
    for refused in refusals(&lake).await {
        assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    }
    assert_eq!(moto.keys("lake", "").unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_not_there_is_not_made() {
    let project = TempProject::new().unwrap();
    let nowhere = StorageOptions { path: project.join("lake").display().to_string(), ..Default::default() };
    assert!(Storage::open_read_only(&nowhere).unwrap().is_none());
    let missing = StoreOptions::new(format!("sqlite:{}", project.join("metadata.db").display())).read_only();
    assert!(Store::open(&missing).await.is_err());
    assert_eq!(std::fs::read_dir(project.path()).unwrap().count(), 0);
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    let store = Store::open(&StoreOptions::new(url).read_only()).await.unwrap();
    let storage = Storage::open(&nowhere).unwrap();
    assert!(Lake::open_read_only(store.clone(), storage, Arc::new(SystemClock)).await.unwrap().is_none());
    assert_eq!(content(&store), b"", "no table was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_remembers_its_environment() {
    let [production, staging, other] =
        ["production", "staging", "other"].map(|name| name.parse::<EnvironmentName>().unwrap());
    for catalog in BOTH {
        let world = World::new(catalog).await;
        claim(world.lake.store(), &production).await.unwrap();
        let error = claim(world.lake.store(), &staging).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("LAKE_ENVIRONMENT", ErrorKind::Invalid), "{catalog:?} {error}");

        let url = match catalog {
            Catalog::Sqlite => format!("sqlite:{}", world.project.join("staging.db").display()),
            Catalog::Postgres => TempPostgres::shared().unwrap().create_database().unwrap(),
        };
        let store = Store::open(&StoreOptions::new(url)).await.unwrap();
        claim(&store, &production).await.unwrap();
        claim(&store, &staging).await.unwrap();
        claim(&store, &staging).await.unwrap();
        for wrong in [&production, &other] {
            let error = claim(&store, wrong).await.unwrap_err().to_string();
            assert!(error.contains("belongs to environment `staging`"), "{catalog:?} {error}");
        }
        let path = world.project.join("staging").display().to_string();
        let storage = Storage::open(&StorageOptions { path, ..Default::default() }).unwrap();
        Lake::open(store.clone(), storage, Arc::new(SystemClock)).await.unwrap();
        claim(&store, &staging).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_one_database_are_lakes_apart() {
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    let project = TempProject::new().unwrap();
    let mut lakes = Vec::new();
    for schema in ["headworks", "headworks_staging"] {
        let options = StoreOptions { schema: schema.to_owned(), ..StoreOptions::new(&url) };
        let path = project.join(schema).display().to_string();
        let storage = Storage::open(&StorageOptions { path, ..Default::default() }).unwrap();
        let store = Store::open(&options).await.unwrap();
        lakes.push(Lake::open(store, storage, Arc::new(SystemClock)).await.unwrap());
    }
    assert_ne!(lakes[0].id(), lakes[1].id());
    // A publish of one does not wait for one of the other.
    let (begun, hold) = (tokio::sync::oneshot::channel::<()>(), tokio::sync::oneshot::channel::<()>());
    let (lake, staged) = (lakes[0].clone(), staged(&lakes[0]).await);
    let holder = tokio::spawn(async move {
        let inside = lake.clone();
        lake.store()
            .write(move |tx| {
                Box::pin(async move {
                    inside.publish(tx, &staged, &info()).await?;
                    begun.0.send(()).unwrap();
                    hold.1.await.unwrap();
                    Ok::<_, Error>(())
                })
            })
            .await
    });
    begun.1.await.unwrap();
    publish(&lakes[1], self::staged(&lakes[1]).await).await.unwrap();
    assert!(lakes[0].table("t", At::Now).await.unwrap().is_none(), "it is not committed yet");
    hold.0.send(()).unwrap();
    holder.await.unwrap().unwrap();
    assert!(lakes[0].table("t", At::Now).await.unwrap().is_some());
}

async fn staged(lake: &Lake) -> Staged {
    let batch = numbers([1]);
    let request = StageRequest { spec: spec("t"), keys: vec![key("2013-01-01")], attempt: 1 };
    let batches = futures::stream::iter([Ok::<_, std::io::Error>(batch.clone())]);
    lake.stage(request, rows(batch.schema(), batches)).await.unwrap()
}
