//! The list of all tables, kept in memory until tables or columns change.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Catalog, Listed, Result};

/// The last list, and what the catalog said before it was made.
#[derive(Default)]
pub(crate) struct Listing(Mutex<Option<(String, Arc<[Listed]>)>>);

impl Listing {
    /// The list that was kept, when it is good still; else the stamp for a new one.
    pub(crate) async fn look(&self, catalog: &dyn Catalog) -> Result<Result<Arc<[Listed]>, Option<String>>> {
        // The stamp of no tables is another one whenever the list may be.
        let stamp = catalog.stamp(&[], None).await?;
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match (&*kept, stamp) {
            (Some((then, listed)), Some(now)) if *then == now => Ok(Arc::clone(listed)),
            (_, stamp) => Err(stamp),
        })
    }

    /// Keeps a list that was fetched after the stamp.
    pub(crate) fn keep(&self, stamp: Option<String>, listed: &Arc<[Listed]>) {
        if let Some(stamp) = stamp {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, Arc::clone(listed)));
        }
    }
}
