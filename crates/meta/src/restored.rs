use headworks_store::{Tx, values};

use crate::{Error, Result, Runs};

/// How far the counter of fences leaps: farther than any project counts between a backup and the day it is needed.
const FENCES_LEAPT: i64 = 1_000_000;

/// Makes a database that was just loaded from a backup nobody's: each run that was live when the backup was made counts as
/// abandoned, so that whoever comes first takes it over, under a fence above all that the lost database gave out.
pub async fn restored(tx: &mut Tx) -> Result<()> {
    tx.execute("update hw_process set lease_until = 0", &[]).await?;
    // It may be restored as another project, to try something out.
    tx.execute("delete from hw_project", &[]).await?;
    leap(tx).await
}

impl Runs {
    /// Raises the counter of fences above all that a lost database may have given out.
    pub async fn leap_fences(&self) -> Result<()> {
        self.store.write(|tx| Box::pin(async move { leap(tx).await })).await
    }
}

async fn leap(tx: &mut Tx) -> Result<(), Error> {
    tx.execute("update hw_fence set value = value + $1", &values![FENCES_LEAPT]).await?;
    Ok(())
}
