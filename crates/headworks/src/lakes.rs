//! The lake that a command writes, and the one that it may only read.
//!
//! A name is read from one of them whole. Partition by partition (the own one where there is one, else production's) would mix
//! the columns of two versions of a job in one table, and a number could not say which of them it was made by.

use std::sync::Arc;

use headworks_engine::{Catalog, Layered};
use headworks_lake::{At, Lake, Result};

/// The environment's own lake; below it, in environments besides production, production's for the tables that the first lacks.
#[derive(Clone)]
pub(crate) struct Lakes {
    own: Lake,
    production: Option<Lake>,
}

impl Lakes {
    /// `production` must have been opened for reading only.
    pub(crate) fn new(own: Lake, production: Option<Lake>) -> Self {
        Self { own, production }
    }

    /// The lake that is written.
    pub(crate) fn own(&self) -> &Lake {
        &self.own
    }

    /// Production's, when that is another.
    pub(crate) fn production(&self) -> Option<&Lake> {
        self.production.as_ref()
    }

    /// The lake that a table is read from: the own one when it has the table, with whatever partitions it has there; else
    /// production's. Queries and waits go by the same rule.
    pub(crate) async fn reading(&self, table: &str) -> Result<&Lake> {
        let Some(production) = &self.production else { return Ok(&self.own) };
        if self.own.table(table, At::Now).await?.is_some() || production.table(table, At::Now).await?.is_none() {
            return Ok(&self.own);
        }
        Ok(production)
    }

    /// Both as the SQL engine finds tables.
    pub(crate) fn catalog(&self) -> Arc<dyn Catalog> {
        let own = Arc::new(self.own.clone());
        match &self.production {
            Some(production) => Arc::new(Layered::new(own, Arc::new(production.clone()))),
            None => own,
        }
    }
}
