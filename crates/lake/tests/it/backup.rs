//! A lake in another database or at another place: what a backup takes along, and which catalog the files belong to.

use std::{
    fs::{self, File},
    sync::Arc,
    time::SystemTime,
};

use chrono::TimeDelta;
use headworks_domain::{Clock, Fault, Secret, SystemClock};
use headworks_lake::{At, BackupNote, Error, Lake, Restore, Storage, StorageOptions, TABLES, contents, restored};
use headworks_store::{Store, StoreOptions};
use headworks_testkit::{DuckDb, Moto, TempProject};

use crate::{
    catalog::{BOTH, Catalog},
    publish::{World, everything, keep, numbers, spec},
};

fn folder(project: &TempProject) -> StorageOptions {
    StorageOptions { path: project.join("lake").display().to_string(), ..Default::default() }
}

fn two_hours_ago() -> SystemTime {
    (SystemClock.now() - TimeDelta::hours(2)).into()
}

/// Loads a world's metadata into another database, for files at `storage`.
async fn load(world: &World, store: &Store, storage: &Storage) {
    let path = world.project.join(format!("{}.jsonl", uuid::Uuid::new_v4()));
    let mut snapshot = world.lake.store().snapshot().await.unwrap();
    let version = contents(&mut snapshot).await.unwrap().version;
    snapshot.dump(&path).await.unwrap();
    snapshot.close().await;
    let restore = Restore { data_path: storage.data_path().to_owned(), at: SystemClock.now(), version };
    store
        .load(&path, &TABLES, true, move |tx| Box::pin(async move { restored(tx, &restore).await }))
        .await
        .unwrap_or_else(|error: Error| panic!("{error}"));
}

/// Copies a world's files out to a folder and in at another place.
async fn copy_files(world: &World, to: &Storage) {
    let mut snapshot = world.lake.store().snapshot().await.unwrap();
    let there = contents(&mut snapshot).await.unwrap();
    snapshot.close().await;
    for file in &there.files {
        let out = world.project.join("copies").join(&file.path);
        let copied = world.lake.storage().copy_out(&file.path, &out).await.unwrap();
        assert_eq!(copied.0, file.bytes);
        assert_eq!(to.copy_in(&file.path, &out).await.unwrap(), copied);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_moves_to_the_other_database_and_duckdb_reads_the_same() {
    for from in BOTH {
        for to in BOTH {
            let world = World::new(from).await;
            world.put("t", "2013-01-01", &everything()).await;
            world.put("t", "2013-01-01", &numbers(0..5)).await;
            world.put("t", "2013-01-02", &everything()).await;
            let project = TempProject::new().unwrap();
            let (store, attach) = to.open(&project).await;
            let storage = Storage::open(&folder(&project)).unwrap();
            copy_files(&world, &storage).await;
            load(&world, &store, &storage).await;
            let lake = Lake::open(store, storage, Arc::new(SystemClock)).await.unwrap();
            assert_eq!(lake.id(), world.lake.id());
            let moved = World { project, lake, attach };
            let all = "select * from t order by ds, big, n";
            assert_eq!(moved.ours(all, "t", At::Now).await, world.ours(all, "t", At::Now).await, "{from:?} {to:?}");
            let (then, before) = ("select * from t order by big", At::Version(1));
            assert_eq!(moved.ours(then, "t", before).await, world.ours(then, "t", before).await, "{from:?} {to:?}");
            let law = "select * from lake.t order by ds, big, n";
            assert_eq!(moved.duck().texts(law).unwrap(), world.duck().texts(law).unwrap(), "{from:?} {to:?}");
            let table = world.lake.expect_table("t", At::Now).await.unwrap();
            let history = world.lake.history(table.id, None, 100).await.unwrap();
            assert_eq!(moved.lake.history(table.id, None, 100).await.unwrap(), history, "{from:?} {to:?}");
            // It is a lake as any other: it can be written to, by us and by DuckDB.
            moved.lake.take_over().await.unwrap();
            moved.put("t", "2013-01-03", &numbers([7])).await;
            moved.duck().run("insert into lake.t(n, ds) values (8, date '2013-01-03')").unwrap();
            assert_eq!(moved.ours("select sum(n) from t where ds = date '2013-01-03'", "t", At::Now).await, ["15"]);
            moved.lake.remove(&keep(0)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_duckdb_keeps_in_the_catalog_come_along() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers(0..5)).await;
        let mut duck = DuckDb::start().unwrap();
        duck.attach(&world.attach.clone().inlined_rows_max(100)).unwrap();
        duck.run("insert into lake.t(n, ds) values (40, date '2013-01-02')").unwrap();
        duck.run("delete from lake.t where n = 1").unwrap();
        drop(duck);
        let project = TempProject::new().unwrap();
        let (store, attach) = catalog.open(&project).await;
        let storage = Storage::open(&folder(&project)).unwrap();
        copy_files(&world, &storage).await;
        load(&world, &store, &storage).await;
        let lake = Lake::open(store, storage, Arc::new(SystemClock)).await.unwrap();
        let moved = World { project, lake, attach };
        assert_eq!(moved.ours("select count(*), sum(n) from t", "t", At::Now).await, ["5        | 49"], "{catalog:?}");
        let counted = moved.duck().texts("select count(*), sum(n) from lake.t").unwrap();
        assert_eq!(counted, [[Some("5".to_owned()), Some("49".to_owned())]], "{catalog:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_out_of_a_bucket_and_into_one() {
    let moto = tokio::task::spawn_blocking(|| Moto::start().unwrap()).await.unwrap();
    moto.create_bucket("lake").unwrap();
    let bucket = |prefix: &str| StorageOptions {
        path: format!("s3://lake/{prefix}"),
        endpoint: Some(moto.endpoint()),
        region: Some("us-east-1".to_owned()),
        access_key_id: Some("test".to_owned()),
        secret_access_key: Some(Secret::new("test")),
        allow_http: true,
    };
    let world = World::with(Catalog::Sqlite, TempProject::new().unwrap(), &bucket("a")).await;
    world.put("t", "2013-01-01", &everything()).await;
    let to = Storage::open(&bucket("b")).unwrap();
    assert!(to.is_vacant().await.unwrap());
    copy_files(&world, &to).await;
    assert!(!to.is_vacant().await.unwrap());
    assert_eq!(to.sizes().await.unwrap(), world.lake.storage().sizes().await.unwrap());
    let path = to.sizes().await.unwrap().into_keys().next().unwrap();
    assert_eq!(
        moto.get("lake", &format!("a/data/{path}")).unwrap(),
        moto.get("lake", &format!("b/data/{path}")).unwrap()
    );
    let gone = world.lake.storage().copy_out("main/t/none.parquet", &world.project.join("copies/none")).await;
    assert!(gone.is_err());
    assert!(world.project.files("copies").unwrap().iter().all(|file| !file.contains("part") && !file.contains("none")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_catalog_cleans_up_nothing_until_it_takes_over() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers([1])).await;
        let project = TempProject::new().unwrap();
        let (store, _) = catalog.open(&project).await;
        load(&world, &store, world.lake.storage()).await;
        // Published after the backup: to the restored catalog an orphan.
        world.put("t", "2013-01-02", &numbers([2])).await;
        let again = || Storage::open(&folder(&world.project)).unwrap();
        let old = Lake::open(store, again(), Arc::new(SystemClock)).await.unwrap();
        let count = || world.project.files("lake/data").unwrap().len();
        let error = old.remove(&keep(0)).await.unwrap_err();
        assert!(matches!(error, Error::Behind { .. }) && error.to_string().contains("backup of version 1"), "{error}");
        assert!(error.hint().unwrap().contains("gc --take-over"), "{error:?}");
        assert_eq!(count(), 2);
        // The one that is at home goes on.
        world.lake.remove(&keep(1_000)).await.unwrap();

        assert_eq!(old.take_over().await.unwrap(), 1, "{catalog:?}");
        let error = world.lake.remove(&keep(0)).await.unwrap_err();
        assert!(matches!(error, Error::Behind { .. }) && error.to_string().contains("took the lake over"), "{error}");
        assert_eq!(count(), 2);
        old.remove(&keep(0)).await.unwrap();
        assert_eq!(count(), 1, "{catalog:?}");
        assert_eq!(old.missing(&[]).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_runs_that_the_database_never_knew_stop_clean_up() {
    let world = World::new(Catalog::Sqlite).await;
    world.put("t", "2013-01-01", &numbers([1])).await;
    // Staged under attempt 7, by a run that a file copied back has forgotten.
    world.stage(&spec("t"), "2013-01-02", &numbers([1])).await.unwrap();
    let known = |newest_attempt| headworks_lake::Keep { newest_attempt, ..keep(0) };
    assert!(world.lake.removals(&known(6)).await.is_ok(), "it may be of a run that began just now");
    for file in world.project.files("lake/data").unwrap() {
        let file = File::options().append(true).open(world.project.join("lake/data").join(file)).unwrap();
        file.set_modified(two_hours_ago()).unwrap();
    }
    let error = world.lake.remove(&known(6)).await.unwrap_err();
    assert!(matches!(error, Error::Behind { .. }) && error.to_string().contains("attempt 7"), "{error}");
    assert_eq!(world.project.files("lake/data").unwrap().len(), 2);
    world.lake.remove(&known(7)).await.unwrap();
    assert_eq!(world.project.files("lake/data").unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_catalog_does_not_come_to_files_of_another() {
    let world = World::new(Catalog::Sqlite).await;
    let open = async |name: &str| {
        let url = format!("sqlite:{}", world.project.join(name).display());
        let store = Store::open(&StoreOptions::new(url)).await.unwrap();
        Lake::open(store, Storage::open(&folder(&world.project)).unwrap(), Arc::new(SystemClock)).await
    };
    open("early.db").await.expect("an empty lake has nothing to lose");
    world.put("t", "2013-01-01", &numbers([1])).await;
    let error = open("late.db").await.err().expect("to a new catalog all files are orphans");
    assert!(matches!(error, Error::Owned { .. }), "{error}");
    assert!(error.hint().unwrap().contains("metadata.url"), "{error:?}");
    // Two databases on one place are noticed by whoever is not at home there.
    let error = open("metadata.db").await.err().expect("the early one is at home");
    assert!(matches!(error, Error::Owned { .. }), "{error}");
    // And the one that is finds files of attempts that it never made.
    let file = world.project.files("lake/data").unwrap().remove(0);
    let file = File::options().append(true).open(world.project.join("lake/data").join(file)).unwrap();
    file.set_modified(two_hours_ago()).unwrap();
    let none = headworks_lake::Keep { newest_attempt: 0, ..keep(0) };
    let error = open("early.db").await.unwrap().remove(&none).await.unwrap_err();
    assert!(matches!(error, Error::Behind { .. }), "{error}");
    assert_eq!(world.project.files("lake/data").unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projects_on_one_database_are_told_apart() {
    for catalog in BOTH {
        let world = World::new(catalog).await;
        world.put("t", "2013-01-01", &numbers([1])).await;
        let second = TempProject::new().unwrap();
        let store = Store::open(world.lake.store().options()).await.unwrap();
        let error = Lake::open(store, Storage::open(&folder(&second)).unwrap(), Arc::new(SystemClock)).await.err();
        let error = error.expect("the database belongs to the first");
        let first = world.lake.storage().data_path();
        assert!(matches!(error, Error::Elsewhere { .. }) && error.to_string().contains(first), "{error}");
        assert!(error.hint().unwrap().contains("metadata.url"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_backup_is_remembered() {
    let world = World::new(Catalog::Sqlite).await;
    assert_eq!(world.lake.last_backup().await.unwrap(), None);
    let note = BackupNote { at: SystemClock.now(), version: 3, place: "/backups/x".to_owned() };
    world.lake.note_backup(&note).await.unwrap();
    assert_eq!(world.lake.last_backup().await.unwrap(), Some(note));
    let marker = fs::read_to_string(world.project.join("lake/lake.json")).unwrap();
    assert!(marker.contains(world.lake.id()), "{marker}");
}
