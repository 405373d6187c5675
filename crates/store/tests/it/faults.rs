//! Each thing that can be wrong with the database has an error of its own, with the next step.

use std::{fs, time::Duration};

use headworks_domain::{ErrorKind, Fault};
use headworks_store::{Dialect, Error, Home, Migration, Store, StoreOptions, values};
use headworks_testkit::{PostgresOptions, Relay, TempPostgres};

use crate::world::{BOTH, World};

async fn execute(store: &Store, sql: &'static str) -> Result<u64, Error> {
    store.write(move |tx| Box::pin(async move { tx.execute(sql, &[]).await })).await
}

fn check(error: &Error, code: &str, kind: ErrorKind, words: &str) {
    let hint = error.hint().unwrap_or_default();
    assert_eq!((error.code(), error.kind()), (code, kind), "{error}");
    assert!(error.to_string().contains(words), "`{error}` lacks `{words}`");
    assert!(!hint.is_empty(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_database_is_refused_with_both_versions() {
    const STEPS: &[Migration] = &[
        Migration { version: 1, sql: "create table hw_x(n BIGINT)", postgres: None },
        Migration { version: 2, sql: "alter table hw_x add column m BIGINT", postgres: None },
    ];
    for dialect in BOTH {
        let world = World::new(dialect).await;
        world.store.migrate("x", Home::Platform, STEPS).await.unwrap();
        let error = world.store.migrate("x", Home::Platform, &STEPS[..1]).await.unwrap_err();
        check(&error, "STORE_NEWER", ErrorKind::Invalid, "x is at version 2, this program knows 1");
        // Nothing of it was touched.
        world.store.rows("select m from hw_x", &[]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_says_so() {
    for dialect in BOTH {
        let world = World::new(dialect).await;
        execute(&world.store, "create table hw_x(n BIGINT)").await.unwrap();
        let (read_only, writable) = match dialect {
            Dialect::Sqlite => ("pragma query_only = on", "pragma query_only = off"),
            Dialect::Postgres => ("set transaction read only", ""),
        };
        let error: Error = world
            .store
            .write(move |tx| {
                Box::pin(async move {
                    tx.execute(read_only, &[]).await?;
                    let written = tx.execute("insert into hw_x values (1)", &[]).await;
                    if !writable.is_empty() {
                        tx.execute(writable, &[]).await?;
                    }
                    written
                })
            })
            .await
            .unwrap_err();
        check(&error, "STORE_READ_ONLY", ErrorKind::Denied, "read-only");
        let rows = world.store.rows("select count(*) from hw_x", &[]).await.unwrap();
        assert_eq!(rows[0].i64(0).unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_says_so_and_writing_goes_on_when_there_is_room() {
    let world = World::new(Dialect::Sqlite).await;
    execute(&world.store, "create table hw_x(t TEXT)").await.unwrap();
    let pages = |n: &'static str| world.store.write(move |tx| Box::pin(async move { tx.rows(n, &[]).await.map(drop) }));
    let done: Result<(), Error> = pages("pragma max_page_count = 20").await;
    done.unwrap();
    let big = "x".repeat(200_000);
    let write = || {
        let big = big.clone();
        world
            .store
            .write(move |tx| Box::pin(async move { tx.execute("insert into hw_x values ($1)", &values![big]).await }))
    };
    let error: Error = write().await.unwrap_err();
    check(&error, "STORE_FULL", ErrorKind::Exhausted, "full");
    let done: Result<(), Error> = pages("pragma max_page_count = 100000").await;
    done.unwrap();
    write().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_held_for_long_says_so_and_is_waited_for() {
    for dialect in BOTH {
        let world = World::new(dialect).await;
        execute(&world.store, "create table hw_x(n BIGINT)").await.unwrap();
        let options = StoreOptions { lock_timeout: Duration::from_millis(200), ..world.store.options().clone() };
        let impatient = Store::open(&options).await.unwrap();
        let (locked, is_locked) = tokio::sync::oneshot::channel();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let holder = world.store.clone();
        let holding = tokio::spawn(async move {
            let held: Result<(), Error> = holder
                .write(move |tx| {
                    Box::pin(async move {
                        if tx.dialect() == Dialect::Postgres {
                            tx.execute("lock table hw_x", &[]).await?;
                        }
                        let _ = locked.send(());
                        let _ = released.await;
                        Ok(())
                    })
                })
                .await;
            held.unwrap();
        });
        is_locked.await.unwrap();
        let error = execute(&impatient, "insert into hw_x values (1)").await.unwrap_err();
        check(&error, "STORE_LOCKED", ErrorKind::Unavailable, "locked by another process");
        let other = world.another().await;
        let patient = tokio::spawn(async move { execute(&other, "insert into hw_x values (1)").await });
        let _ = release.send(());
        holding.await.unwrap();
        assert_eq!(patient.await.unwrap().unwrap(), 1, "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named_and_never_backed_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metadata.db");
    fs::write(&path, "this is no database, and long enough to be read as one ".repeat(100)).unwrap();
    let options = StoreOptions::new(format!("sqlite:{}", path.display()));
    let error = Store::open(&options).await.err().expect("it is no database");
    check(&error, "STORE_OPEN", ErrorKind::Invalid, "metadata.db");

    let world = World::new(Dialect::Sqlite).await;
    execute(&world.store, "create table hw_x(n BIGINT, t TEXT)").await.unwrap();
    execute(&world.store, "create index hw_x_n on hw_x(n)").await.unwrap();
    let filled: Result<(), Error> = world
        .store
        .write(|tx| {
            Box::pin(async move {
                for n in 0..2_000 {
                    tx.execute("insert into hw_x values ($1, $2)", &values![n, "some text to fill pages"]).await?;
                }
                Ok(())
            })
        })
        .await;
    filled.unwrap();
    world.store.close().await;
    let file = world.path("metadata.db");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xA5);
    fs::write(&file, bytes).unwrap();
    let store = Store::open(&StoreOptions::new(format!("sqlite:{}", file.display()))).await.unwrap();
    let mut snapshot = store.snapshot().await.unwrap();
    let error = snapshot.check().await.unwrap_err();
    check(&error, "STORE_CORRUPT", ErrorKind::Corrupt, "damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_away_and_comes_back() {
    let mut server =
        tokio::task::spawn_blocking(|| TempPostgres::start_with(PostgresOptions::default()).unwrap()).await.unwrap();
    let url = server.create_database().unwrap();
    let options = StoreOptions { lock_timeout: Duration::from_secs(2), ..StoreOptions::new(&url) };
    let store = Store::open(&options).await.unwrap();
    execute(&store, "create table hw_x(n BIGINT)").await.unwrap();
    server.kill().unwrap();
    let error = execute(&store, "insert into hw_x values (1)").await.unwrap_err();
    check(&error, "STORE_LOST", ErrorKind::Unavailable, "connection");
    let error = execute(&store, "insert into hw_x values (1)").await.unwrap_err();
    check(&error, "STORE_OPEN", ErrorKind::Unavailable, "cannot open");
    assert!(!error.to_string().contains("password"), "{error}");
    let error = store.snapshot().await.err().expect("nobody is there");
    check(&error, "STORE_OPEN", ErrorKind::Unavailable, "cannot open");
    server.restart().unwrap();
    assert_eq!(execute(&store, "insert into hw_x values (1)").await.unwrap(), 1);
}

/// Nothing of a session is left behind: each transaction may reach another connection of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_may_stand_before_postgres() {
    const STEPS: &[Migration] =
        &[Migration { version: 1, sql: "create table hw_x(n BIGINT PRIMARY KEY, t TEXT)", postgres: None }];
    let world = World::pooled().await;
    world.store.migrate("x", Home::Platform, STEPS).await.unwrap();
    let other = world.another().await;
    let mut changes = other.changes();
    let writers = (0..8).map(|n: i64| {
        let store = if n % 2 == 0 { world.store.clone() } else { other.clone() };
        tokio::spawn(async move {
            for m in 0..20 {
                let key = n * 100 + m;
                let done: Result<u64, Error> = store
                    .write(move |tx| {
                        Box::pin(async move {
                            tx.execute("insert into hw_x values ($1, $2)", &values![key, "Ünï 'x'"]).await
                        })
                    })
                    .await;
                assert_eq!(done.unwrap(), 1);
                let read = store.row("select t, $2::bigint from hw_x where n = $1", &values![key, key]).await.unwrap();
                assert_eq!(read.unwrap().text(0).unwrap(), "Ünï 'x'");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let counted = other.row("select count(*) from hw_x", &[]).await.unwrap().unwrap();
    assert_eq!(counted.i64(0).unwrap(), 160);
    // One that is refused leaves the next in peace, and a reader's mistake too.
    let again = execute(&world.store, "insert into hw_x values (1, 'twice')").await.unwrap_err();
    assert_eq!(again.code(), "STORE_UNIQUE");
    world.store.rows("select oops from hw_x", &[]).await.unwrap_err();
    assert_eq!(execute(&world.store, "update hw_x set t = 'all'").await.unwrap(), 160);
    changes.changed().await;
    // A look for reading only is one by the server's own means, and a consistent one a transaction.
    let reader = Store::open(&world.store.options().clone().read_only()).await.unwrap();
    assert_eq!(reader.rows("select n from hw_x where t = $1", &values!["all"]).await.unwrap().len(), 160);
    let error = reader.rows("delete from hw_x returning n", &[]).await.unwrap_err();
    check(&error, "STORE_READ_ONLY", ErrorKind::Denied, "read-only");
    let mut snapshot = world.store.snapshot().await.unwrap();
    execute(&world.store, "delete from hw_x where n < 100").await.unwrap();
    assert_eq!(snapshot.rows("select n from hw_x where n >= $1", &values![0]).await.unwrap().len(), 160);
    assert_eq!(snapshot.tables().await.unwrap(), ["hw_migration", "hw_x"]);
}

/// A proxy takes the connection, finds nobody behind it, and closes it without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_a_server_is_away() {
    let relay = tokio::task::spawn_blocking(|| {
        let relay = Relay::start(TempPostgres::shared().unwrap().port()).unwrap();
        relay.go_away();
        relay
    });
    let relay = relay.await.unwrap();
    for _ in 0..20 {
        let options = StoreOptions::new(format!("postgres://headworks@127.0.0.1:{}/postgres", relay.port()));
        let error = Store::open(&options).await.err().expect("nobody is there");
        check(&error, "STORE_OPEN", ErrorKind::Unavailable, "cannot open");
    }
}

/// While a server starts or stops it says so to whoever connects: that is waited for, and no mistake in the settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_no_room_is_away() {
    let options = PostgresOptions {
        settings: vec![("max_connections".into(), "4".into()), ("superuser_reserved_connections".into(), "0".into())],
        ..Default::default()
    };
    let server = tokio::task::spawn_blocking(|| TempPostgres::start_with(options).unwrap()).await.unwrap();
    let options = StoreOptions::new(server.url());
    let mut open = Vec::new();
    let error = loop {
        match Store::open(&options).await {
            Ok(store) => open.push(store),
            Err(error) => break error,
        }
        assert!(open.len() < 10);
    };
    check(&error, "STORE_OPEN", ErrorKind::Unavailable, "cannot open");
}

/// A process that stands still in the middle of a transaction holds nobody up for longer than they wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_locks_of_a_process_that_stands_still_are_taken_from_it() {
    for world in [World::new(Dialect::Postgres).await, World::pooled().await] {
        execute(&world.store, "create table hw_x(n BIGINT)").await.unwrap();
        let (locked, is_locked) = tokio::sync::oneshot::channel();
        let options = StoreOptions { stall_max: Duration::from_millis(500), ..world.store.options().clone() };
        let holder = Store::open(&options).await.unwrap();
        let (wake, woken) = tokio::sync::oneshot::channel::<()>();
        let asleep = holder.clone();
        let holding = tokio::spawn(async move {
            let held: Result<u64, Error> = asleep
                .write(move |tx| {
                    Box::pin(async move {
                        tx.execute("lock table hw_x", &[]).await?;
                        let _ = locked.send(());
                        let _ = woken.await;
                        tx.execute("insert into hw_x values (2)", &[]).await
                    })
                })
                .await;
            held
        });
        is_locked.await.unwrap();
        assert_eq!(execute(&world.another().await, "insert into hw_x values (1)").await.unwrap(), 1);
        // Awake again it has lost its connection, and nothing else.
        wake.send(()).unwrap();
        let lost = holding.await.unwrap().unwrap_err();
        assert!(lost.is_retryable() && lost.code() == "STORE_LOST", "{lost:?}");
        assert_eq!(execute(&holder, "insert into hw_x values (3)").await.unwrap(), 1);
    }
}
