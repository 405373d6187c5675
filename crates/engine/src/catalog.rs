use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{catalog::TableProvider, execution::runtime_env::RuntimeEnv};
use headworks_domain::PartitionKey;

use crate::{At, Result};

/// Where the engine finds tables: the lake, or something smaller in a test.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    /// Tells the engine where the tables' files are. Called once, when the engine starts.
    fn register(&self, _runtime: &RuntimeEnv) {}

    /// Fixes a moment, so that all tables of a statement are read at one version, and finds the newest published partition of
    /// each of `latest_of` that there was: none for a table of which nothing is published.
    async fn fix(&self, at: At, latest_of: &[&str]) -> Result<(Moment, Newest)>;

    /// Finds a table or view by its exact name.
    async fn find(&self, name: &str, at: Moment) -> Result<Option<Found>>;

    /// Finds the newest published partition of a table, also when it has no rows; none when nothing is published.
    async fn latest(&self, name: &str, at: Moment) -> Result<Option<PartitionKey>>;

    /// Lists all tables and views, sorted by name.
    async fn list(&self, at: Moment) -> Result<Vec<Listed>>;

    /// True when it has a table or view of that name now.
    async fn has(&self, name: &str) -> Result<bool>;

    /// A text that is another one whenever what a query reads of these tables and views may be other than it was: rows,
    /// columns, which of them are there. `None` when they have changed since `since`, or when nobody can tell.
    ///
    /// It is asked for each answer from the cache, so it must be cheap; and it must know every commit that was done before.
    async fn stamp(&self, _names: &[String], _since: Option<Moment>) -> Result<Option<String>> {
        Ok(None)
    }
}

/// The newest partitions of tables by name.
pub type Newest = HashMap<String, Option<PartitionKey>>;

/// When a statement reads: a version of each lake that it may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The version of the lake.
    pub at: At,
    /// The version of the lake below it, which has the tables that the first lacks; the same for a catalog of one lake.
    pub below: At,
    /// True when the statement names the moment: a version then counts in the lake that has the table today.
    pub is_named: bool,
}

impl Moment {
    /// The same moment for the lake below.
    pub(crate) fn below(self) -> Self {
        Self { at: self.below, ..self }
    }
}

impl From<At> for Moment {
    fn from(at: At) -> Self {
        Self { at, below: at, is_named: at != At::Now }
    }
}

/// What stands behind a name.
pub enum Found {
    /// A table whose rows can be scanned.
    Table(Arc<dyn TableProvider>),
    /// A view that somebody made.
    View {
        /// Its SELECT.
        sql: String,
        /// Its columns' names where they differ from the SELECT's; empty when they do not.
        columns: Vec<String>,
    },
}

/// A table or view as `information_schema` shows it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// The columns; none for a view, whose columns are known only when it is planned.
    pub schema: Option<SchemaRef>,
    /// True when the table is cut by `ds`, so that `<name>_latest` shows its newest partition.
    pub has_latest: bool,
    /// The text of a view.
    pub definition: Option<String>,
}

/// A catalog without tables, for statements that bring their own.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTables;

#[async_trait]
impl Catalog for NoTables {
    async fn fix(&self, at: At, _latest_of: &[&str]) -> Result<(Moment, Newest)> {
        Ok((at.into(), Newest::new()))
    }

    async fn find(&self, _name: &str, _at: Moment) -> Result<Option<Found>> {
        Ok(None)
    }

    async fn latest(&self, _name: &str, _at: Moment) -> Result<Option<PartitionKey>> {
        Ok(None)
    }

    async fn list(&self, _at: Moment) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }

    async fn has(&self, _name: &str) -> Result<bool> {
        Ok(false)
    }
}
