//! Connections inside a transaction that sees one moment.

use sqlx::{PgConnection, raw_sql};
use tokio::sync::OwnedMutexGuard;

use super::{Inner, pool::Lease};
use crate::error::{Error, Result};

/// Starts a transaction that sees one moment, in which every type has one text only.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL datestyle = 'ISO'; \
    SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL timezone = 'UTC'; SET LOCAL extra_float_digits = 3; \
    SET LOCAL bytea_output = 'hex'; SET LOCAL standard_conforming_strings = on; SET LOCAL lock_timeout = '30s';";

/// A connection inside such a transaction: of this read alone, or shared by the reads of a snapshot.
pub(super) enum Held {
    Own(Lease),
    Shared(OwnedMutexGuard<Option<Lease>>),
}

impl Held {
    pub(super) fn connection(&mut self, name: &str) -> Result<&mut PgConnection> {
        match self {
            Self::Own(lease) => Ok(lease.connection()),
            Self::Shared(lease) => lease.as_mut().map(Lease::connection).ok_or_else(|| Error::Database {
                connection: name.to_owned(),
                doing: "go on reading its snapshot".to_owned(),
                reason: "a read before this one was broken off, and the snapshot ended with it".to_owned(),
                kind: headworks_domain::ErrorKind::Unavailable,
                hint: Some("take a new snapshot and read all of its tables again".to_owned()),
            }),
        }
    }

    /// Leaves the connection as the next reader needs it.
    pub(super) async fn done(self) {
        if let Self::Own(lease) = self {
            finish(lease).await;
        }
    }

    /// Closes the connection, in the middle of whatever it does.
    pub(super) fn broken(self) {
        match self {
            Self::Own(lease) => drop(lease),
            Self::Shared(mut lease) => *lease = None,
        }
    }
}

pub(super) async fn begin(inner: &Inner) -> Result<Lease> {
    let mut db = inner.pool.acquire().await.map_err(|e| inner.error("connect", &e))?;
    raw_sql(BEGIN).execute(db.connection()).await.map_err(|e| inner.error("begin a transaction", &e))?;
    Ok(db)
}

/// Ends the transaction and gives the connection back.
pub(super) async fn finish(mut db: Lease) {
    // A connection that cannot do even this is closed, not kept.
    if raw_sql("COMMIT").execute(db.connection()).await.is_ok() {
        db.release();
    }
}
