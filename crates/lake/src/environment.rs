//! Whose database it is: production's, or another environment's. A database remembers it, so that a mistyped setting can't make
//! one environment write into another's.

use headworks_domain::EnvironmentName;
use headworks_store::{Dialect, Home, Store, Tx, values};

use crate::{Error, Result, catalog::REGISTRY};

/// Sees that a database belongs to an environment; a fresh one belongs to who comes first. Call it before anything is written.
///
/// A database without a note is production's. Errors: `Environment`.
pub async fn claim(store: &Store, environment: &EnvironmentName) -> Result<()> {
    let found = owner(store).await?;
    if found.is_none() && !environment.is_production() {
        store.migrate("lake_registry", Home::Platform, REGISTRY).await?;
        let name = environment.to_string();
        store
            .write(move |tx| {
                Box::pin(async move {
                    let sql = "insert into hw_lake values ('environment', $1) on conflict do nothing";
                    tx.execute(sql, &values![name]).await.map(drop)
                })
            })
            .await?;
        // Another process may have been quicker.
        return check(store, environment, owner(store).await?);
    }
    check(store, environment, found)
}

fn check(store: &Store, environment: &EnvironmentName, found: Option<String>) -> Result<()> {
    match found {
        Some(found) if found != environment.as_str() => {
            Err(Error::Environment { url: store.options().shown(), found, asked: environment.to_string() })
        }
        _ => Ok(()),
    }
}

/// The environment whose catalog was loaded into a database from a backup.
pub async fn environment_of(tx: &mut Tx) -> Result<String> {
    let noted = tx.row("select value from hw_lake where key = 'environment'", &[]).await?;
    Ok(noted.map_or_else(|| Ok(EnvironmentName::PRODUCTION.to_owned()), |row| row.text(0))?)
}

/// The environment that a database belongs to; `None` for one that holds nothing yet.
async fn owner(store: &Store) -> Result<Option<String>> {
    let there = match store.dialect() {
        Dialect::Sqlite => "select count(*) from sqlite_master where name in ('hw_migration', 'hw_lake')",
        Dialect::Postgres => {
            "select count(*) from pg_class where oid in (to_regclass('hw_migration'), to_regclass('hw_lake'))"
        }
    };
    let tables = store.row(there, &[]).await?.map_or(Ok(0), |row| row.i64(0))?;
    if tables == 0 {
        return Ok(None);
    }
    if tables == 2 {
        let noted = store.row("select value from hw_lake where key = 'environment'", &[]).await?;
        if let Some(row) = noted {
            return Ok(Some(row.text(0)?));
        }
        // Between the migration and the note of `claim` a process may have died.
        let used = "select 1 from hw_migration where component <> 'lake_registry' union all select 1 from hw_lake";
        if store.row(used, &[]).await?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(EnvironmentName::PRODUCTION.to_owned()))
}
