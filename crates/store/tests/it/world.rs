use std::{path::PathBuf, time::Duration};

use headworks_store::{Component, Dialect, Home, Migration, Store, StoreOptions};
use headworks_testkit::{PgBouncer, TempPostgres};
use tempfile::TempDir;

pub(crate) const BOTH: [Dialect; 2] = [Dialect::Sqlite, Dialect::Postgres];

/// A database that goes with the test.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) dir: TempDir,
}

impl World {
    pub(crate) async fn new(dialect: Dialect) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = match dialect {
            Dialect::Sqlite => format!("sqlite:{}", dir.path().join("metadata.db").display()),
            Dialect::Postgres => {
                let made = tokio::task::spawn_blocking(|| TempPostgres::shared().unwrap().create_database().unwrap());
                made.await.unwrap()
            }
        };
        Self { store: open(&url).await, dir }
    }

    /// A PostgreSQL behind PgBouncer in transaction mode.
    pub(crate) async fn pooled() -> Self {
        let made = tokio::task::spawn_blocking(|| {
            let postgres = TempPostgres::shared().unwrap();
            PgBouncer::shared().unwrap().url_of(postgres, &postgres.create_database().unwrap())
        });
        Self { store: open(&made.await.unwrap()).await, dir: tempfile::tempdir().unwrap() }
    }

    /// One with the tables of [`COMPONENTS`].
    pub(crate) async fn with_tables(dialect: Dialect) -> Self {
        let world = Self::new(dialect).await;
        migrate(&world.store).await;
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn another(&self) -> Store {
        open(&self.store.options().url).await
    }
}

async fn open(url: &str) -> Store {
    let options = StoreOptions { lock_timeout: Duration::from_secs(20), ..StoreOptions::new(url) };
    Store::open(&options).await.unwrap()
}

pub(crate) async fn migrate(store: &Store) {
    for component in COMPONENTS {
        store.migrate(component.name, component.home, component.migrations).await.unwrap();
    }
}

/// Two components as ours are: one the same on both databases, one whose types differ.
pub(crate) const COMPONENTS: [Component; 2] = [
    Component {
        name: "accounts",
        home: Home::Platform,
        migrations: &[
            Migration {
                version: 1,
                sql: "create table hw_account(id BIGINT PRIMARY KEY, amount BIGINT NOT NULL);
                    insert into hw_account values (1, 500), (2, 500);
                    create table hw_debit(id TEXT PRIMARY KEY);
                    create table hw_credit(id TEXT PRIMARY KEY)",
                postgres: None,
            },
            Migration { version: 2, sql: "alter table hw_debit add column note TEXT", postgres: None },
        ],
    },
    Component {
        name: "catalog",
        home: Home::Lake,
        migrations: &[Migration {
            version: 1,
            sql: "create table ducklake_kinds(id BIGINT, t VARCHAR, b BIGINT, u VARCHAR, at VARCHAR, r DOUBLE PRECISION, raw BLOB)",
            postgres: Some(
                "create table ducklake_kinds(id BIGINT, t VARCHAR, b BOOLEAN, u UUID, at TIMESTAMPTZ, r DOUBLE PRECISION, raw BYTEA)",
            ),
        }],
    },
];
