use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use headworks_domain::{ErrorKind, Fault};
use headworks_store::{Component, Dialect, Dumped, Error, Loaded, Store, Value, values};
use serde_json::{Value as Json, json};

use crate::world::{BOTH, COMPONENTS, World, migrate};

async fn dump(store: &Store, path: &Path) -> Dumped {
    let mut snapshot = store.snapshot().await.unwrap();
    snapshot.check().await.unwrap();
    let dumped = snapshot.dump(path).await.unwrap();
    snapshot.close().await;
    dumped
}

async fn load(store: &Store, path: &Path, components: &[Component], replace: bool) -> Result<Loaded, Error> {
    store.load(path, components, replace, |_| Box::pin(async { Ok::<_, Error>(()) })).await
}

/// The rows of a dump by table, in an order of their own, with booleans as SQLite keeps them.
fn rows(path: &Path) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in fs::read_to_string(path).unwrap().lines().skip(1) {
        match serde_json::from_str::<Json>(line).unwrap() {
            Json::Array(cells) => {
                let plain = |cell: Json| cell.as_bool().map_or(cell, |b| json!(i64::from(b)));
                let row = Json::Array(cells.into_iter().map(plain).collect()).to_string();
                tables.get_mut(&table).unwrap().push(row);
            }
            Json::Object(map) => {
                if let Some(name) = map.get("table").and_then(Json::as_str) {
                    table = name.to_owned();
                    tables.insert(table.clone(), Vec::new());
                }
            }
            other => panic!("{other}"),
        }
    }
    tables.values_mut().for_each(|rows| rows.sort());
    tables
}

async fn fill(store: &Store) {
    let many = 1_234;
    store
        .write(move |tx| {
            Box::pin(async move {
                let sql = "insert into ducklake_kinds values ($1, $2, $3, $4, $5, $6, $7)";
                let uuid = uuid::Uuid::from_u128(0x01a2_0081_e244_76b3_82b9_c2a8_f8f2_abe8);
                let time: chrono::DateTime<chrono::Utc> = "2013-01-01T05:00:00.123456Z".parse().unwrap();
                tx.execute(sql, &values![1, "Ünï \"q\"\n\\", true, uuid, time, 0.1, vec![0_u8, 1, 255]]).await?;
                tx.execute(sql, &values![2, "", false, uuid, time, f64::MAX, Vec::<u8>::new()]).await?;
                let mut nulls = vec![Value::Int(3)];
                nulls.resize(7, Value::Null);
                tx.execute(sql, &nulls).await?;
                for n in 0..many {
                    tx.execute("insert into hw_credit values ($1)", &values![format!("c{n}")]).await?;
                }
                tx.execute("update hw_account set amount = $1 where id = 1", &values![i64::MAX]).await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_becomes_the_same_database_of_either_kind() {
    for from in BOTH {
        let source = World::with_tables(from).await;
        fill(&source.store).await;
        let first = source.path("first.jsonl");
        let dumped = dump(&source.store, &first).await;
        assert_eq!(dumped.components, BTreeMap::from([("accounts".to_owned(), 2), ("catalog".to_owned(), 1)]));
        assert_eq!((dumped.tables["hw_credit"], dumped.tables["ducklake_kinds"]), (1_234, 3));
        assert_eq!(dumped.bytes, fs::metadata(&first).unwrap().len());
        for to in BOTH {
            let target = World::new(to).await;
            let loaded = load(&target.store, &first, &COMPONENTS, false).await.unwrap();
            assert_eq!((&loaded.tables, loaded.is_translated), (&dumped.tables, from != to), "{from:?} {to:?}");
            let second = target.path("second.jsonl");
            dump(&target.store, &second).await;
            assert_eq!(rows(&first), rows(&second), "{from:?} {to:?}");
            // The tables are as migrations make them: nothing is left to do, and keys are kept.
            migrate(&target.store).await;
            let twice: Result<(), Error> = target
                .store
                .write(|tx| {
                    Box::pin(async move { tx.execute("insert into hw_credit values ('c1')", &[]).await.map(drop) })
                })
                .await;
            assert!(matches!(twice, Err(Error::Unique { .. })), "{from:?} {to:?} {twice:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_dump_is_brought_forward_and_a_newer_one_refused() {
    for dialect in BOTH {
        let old = World::new(dialect).await;
        let first = &COMPONENTS[0];
        old.store.migrate(first.name, first.home, &first.migrations[..1]).await.unwrap();
        let path = old.path("old.jsonl");
        dump(&old.store, &path).await;
        let target = World::new(dialect).await;
        load(&target.store, &path, &COMPONENTS, false).await.unwrap();
        migrate(&target.store).await;
        let rows = target.store.rows("select id, amount from hw_account order by id", &[]).await.unwrap();
        assert_eq!(rows.len(), 2, "what migrations put in comes once");
        target.store.rows("select note from hw_debit", &[]).await.unwrap();

        let new = World::with_tables(dialect).await;
        let path = new.path("new.jsonl");
        dump(&new.store, &path).await;
        let known = [Component { migrations: &first.migrations[..1], ..*first }, COMPONENTS[1]];
        for (components, expected) in [(&known[..], (2, 1)), (&COMPONENTS[1..], (2, 0))] {
            let target = World::new(dialect).await;
            let error = load(&target.store, &path, components, false).await.unwrap_err();
            assert!(
                matches!(&error, Error::Newer { component, found, known } if component == "accounts" && (*found, *known) == expected),
                "{error}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_replaced_only_when_told_and_wholly() {
    for dialect in BOTH {
        let world = World::with_tables(dialect).await;
        fill(&world.store).await;
        let path = world.path("a.jsonl");
        dump(&world.store, &path).await;
        let target = World::with_tables(dialect).await;
        let count = async || {
            let rows = target.store.rows("select count(*) from hw_credit", &[]).await.unwrap();
            rows[0].i64(0).unwrap()
        };
        let error = load(&target.store, &path, &COMPONENTS, false).await.unwrap_err();
        assert!(matches!(error, Error::NotEmpty { .. }) && error.hint().unwrap().contains("--force"), "{error}");

        // A file that was cut off, at any line, changes nothing.
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for keep in [1, 2, lines.len() / 2, lines.len() - 1] {
            let cut = world.path("cut.jsonl");
            fs::write(&cut, lines[..keep].join("\n")).unwrap();
            let error = load(&target.store, &cut, &COMPONENTS, true).await.unwrap_err();
            assert!(matches!(error, Error::Dump { .. }) && error.kind() == ErrorKind::Corrupt, "{keep}: {error}");
            assert_eq!(count().await, 0, "{keep}");
        }
        for wrong in ["", "{}", "[1]", "{\"headworks\": \"metadata\", \"format\": 1}"] {
            let bad = world.path("bad.jsonl");
            fs::write(&bad, wrong).unwrap();
            let error = load(&target.store, &bad, &COMPONENTS, true).await.unwrap_err();
            assert!(matches!(error, Error::Dump { .. }), "{wrong}: {error}");
        }
        let refused: Result<Loaded, Error> =
            target.store.load(&path, &COMPONENTS, true, |_| Box::pin(async { Err(Error::Closed) })).await;
        assert!(refused.is_err());
        assert_eq!(count().await, 0, "what comes after the rows belongs to them");

        load(&target.store, &path, &COMPONENTS, true).await.unwrap();
        assert_eq!(count().await, 1_234, "{dialect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_others_made_go_along_but_not_across() {
    for dialect in BOTH {
        let world = World::with_tables(dialect).await;
        let home = if dialect == Dialect::Postgres { "headworks_lake." } else { "" };
        let make = format!("create table {home}ducklake_inlined_data_1_1(row_id BIGINT, day DATE, n DECIMAL(10,2))");
        let fill = "insert into ducklake_inlined_data_1_1 values (1, '2013-01-02', '1.50')";
        let foreign = "create table other(n BIGINT)";
        for sql in [make.as_str(), foreign] {
            let sql = sql.to_owned();
            let made: Result<(), Error> =
                world.store.write(move |tx| Box::pin(async move { tx.execute(&sql, &[]).await.map(drop) })).await;
            made.unwrap();
        }
        let other = if dialect == Dialect::Sqlite { Dialect::Postgres } else { Dialect::Sqlite };
        let empty = world.path("empty.jsonl");
        let dumped = dump(&world.store, &empty).await;
        assert!(!dumped.tables.contains_key("other"), "what is not ours is left alone");
        load(&World::new(other).await.store, &empty, &COMPONENTS, false).await.unwrap();

        let filled: Result<(), Error> =
            world.store.write(move |tx| Box::pin(async move { tx.execute(fill, &[]).await.map(drop) })).await;
        filled.unwrap();
        let full = world.path("full.jsonl");
        dump(&world.store, &full).await;
        let error = load(&World::new(other).await.store, &full, &COMPONENTS, false).await.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }) && error.hint().is_some(), "{error}");
        let target = World::new(dialect).await;
        load(&target.store, &full, &COMPONENTS, false).await.unwrap();
        let sql = "select cast(day as varchar), cast(n as varchar) from ducklake_inlined_data_1_1";
        let row = target.store.row(sql, &[]).await.unwrap().unwrap();
        assert_eq!(row.text(0).unwrap(), "2013-01-02", "{dialect:?}");
        assert!(row.text(1).unwrap().starts_with("1.5"), "{dialect:?}");
    }
}

/// Eight writers move amounts between two accounts and note each move twice; a dump sees whole moves only.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_under_writers_is_one_instant() {
    for dialect in BOTH {
        let world = World::with_tables(dialect).await;
        let (stop, moves) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writers = Vec::new();
        for writer in 0..8 {
            // PostgreSQL has connections for a few; the others share one.
            let store = if writer < 3 { world.another().await } else { world.store.clone() };
            let (stop, moves) = (Arc::clone(&stop), Arc::clone(&moves));
            writers.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("{writer}-{}", moves.fetch_add(1, Ordering::Relaxed));
                    let moved: Result<(), Error> = store
                        .write(move |tx| {
                            Box::pin(async move {
                                tx.execute("update hw_account set amount = amount - 1 where id = 1", &[]).await?;
                                tx.execute("insert into hw_debit values ($1, null)", &values![&id]).await?;
                                tx.execute("update hw_account set amount = amount + 1 where id = 2", &[]).await?;
                                tx.execute("insert into hw_credit values ($1)", &values![&id]).await.map(drop)
                            })
                        })
                        .await;
                    moved.unwrap();
                }
            }));
        }
        let mut counts = Vec::new();
        for n in 0..12 {
            let path = world.path(&format!("{n}.jsonl"));
            dump(&world.store, &path).await;
            let tables = rows(&path);
            let amounts: Vec<Vec<i64>> =
                tables["hw_account"].iter().map(|row| serde_json::from_str(row).unwrap()).collect();
            let sum: i64 = amounts.iter().map(|row| row[1]).sum();
            let (debits, credits) = (tables["hw_debit"].len(), tables["hw_credit"].len());
            assert_eq!((sum, debits), (1_000, credits), "{dialect:?} {n}");
            assert_eq!(amounts[0][1], 500 - i64::try_from(debits).unwrap(), "{dialect:?} {n}");
            counts.push(debits);
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        assert!(counts.windows(2).all(|two| two[0] <= two[1]) && counts[0] < counts[11], "{dialect:?} {counts:?}");
    }
}
