use crate::{Dialect, Error, Result, Store, Tx, values};

/// One step of a component's tables, in the SQL that both databases understand.
///
/// Steps only expand: version N and N-1 of the program run side by side. What is no longer used goes one release later.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3, ... without gaps.
    pub version: i64,
    /// Statements divided by `;`.
    pub sql: &'static str,
    /// What PostgreSQL gets instead, where the types differ.
    pub postgres: Option<&'static str>,
}

/// Which schema a component's tables stand in on PostgreSQL; SQLite has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// Our own schema.
    Platform,
    /// The lake's catalog, which foreign clients may attach.
    Lake,
}

/// A part of the program that has tables of its own.
#[derive(Debug, Clone, Copy)]
pub struct Component {
    /// The name under which its steps are counted.
    pub name: &'static str,
    /// Where its tables stand.
    pub home: Home,
    /// All steps that this program knows.
    pub migrations: &'static [Migration],
}

const LEDGER: &str = "create table if not exists hw_migration (
    component TEXT NOT NULL, version BIGINT NOT NULL, PRIMARY KEY (component, version))";

pub(crate) async fn migrate(
    store: &Store,
    component: &'static str,
    home: Home,
    migrations: &'static [Migration],
) -> Result<()> {
    if migrated(store, component, migrations).await? == newest(migrations) {
        return Ok(());
    }
    let schemas = [store.options().schema.clone(), store.options().lake_schema()];
    store
        .write(move |tx| {
            Box::pin(async move {
                prepare(tx, &schemas).await?;
                let found = tx
                    .row("select coalesce(max(version), 0) from hw_migration where component = $1", &values![component])
                    .await?
                    .map_or(Ok(0), |row| row.i64(0))?;
                for migration in migrations.iter().filter(|m| m.version > found) {
                    apply(tx, &schemas, component, home, migration).await?;
                }
                Ok::<_, Error>(())
            })
        })
        .await
}

/// How far a component is, when this program knows that version.
pub(crate) async fn migrated(store: &Store, component: &'static str, migrations: &'static [Migration]) -> Result<i64> {
    let (found, known) = (version(store, component).await?, newest(migrations));
    if found > known { Err(Error::Newer { component: component.to_owned(), found, known }) } else { Ok(found) }
}

fn newest(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |m| m.version)
}

/// Makes the schemas and the ledger, one process at a time.
pub(crate) async fn prepare(tx: &mut Tx, schemas: &[String; 2]) -> Result<()> {
    if tx.dialect() == Dialect::Postgres {
        // Two processes that start together must not both create.
        tx.execute("select pg_advisory_xact_lock(hashtext('headworks migrate ' || $1))", &values![&schemas[0]]).await?;
        for schema in schemas {
            tx.script(&format!("create schema if not exists \"{schema}\"")).await?;
        }
    }
    tx.script(LEDGER).await
}

/// Takes one step and notes it.
pub(crate) async fn apply(
    tx: &mut Tx,
    schemas: &[String; 2],
    component: &str,
    home: Home,
    migration: &Migration,
) -> Result<()> {
    match tx.dialect() {
        Dialect::Sqlite => tx.script(migration.sql).await?,
        Dialect::Postgres => {
            let sql = migration.postgres.unwrap_or(migration.sql);
            let own = if home == Home::Lake { &schemas[1] } else { &schemas[0] };
            tx.script(&format!("set local search_path = \"{own}\"")).await?;
            tx.script(sql).await?;
            let both = format!("set local search_path = \"{}\", \"{}\", public", schemas[0], schemas[1]);
            tx.script(&both).await?;
        }
    }
    tx.execute("insert into hw_migration values ($1, $2)", &values![component, migration.version]).await.map(drop)
}

/// The version found; 0 when the ledger does not exist yet.
async fn version(store: &Store, component: &str) -> Result<i64> {
    let there = match store.dialect() {
        Dialect::Sqlite => "select count(*) from sqlite_master where name = 'hw_migration'",
        Dialect::Postgres => "select (to_regclass('hw_migration') is not null)::int::bigint",
    };
    if store.row(there, &[]).await?.map_or(Ok(0), |row| row.i64(0))? == 0 {
        return Ok(0);
    }
    store
        .row("select coalesce(max(version), 0) from hw_migration where component = $1", &values![component])
        .await?
        .map_or(Ok(0), |row| row.i64(0))
}
