use std::sync::Arc;

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

    /// Fixes a moment to the version of that moment, so that all tables of a statement are read at one version.
    async fn fix(&self, at: At) -> Result<At>;

    /// Finds a table or view by its exact name.
    async fn find(&self, name: &str, at: At) -> Result<Option<Found>>;

    /// Finds the newest published partition of a table, also when it has no rows; none when nothing is published.
    async fn latest(&self, name: &str, at: At) -> Result<Option<PartitionKey>>;

    /// Lists all tables and views, sorted by name.
    async fn list(&self, at: At) -> Result<Vec<Listed>>;
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
    async fn fix(&self, at: At) -> Result<At> {
        Ok(at)
    }

    async fn find(&self, _name: &str, _at: At) -> Result<Option<Found>> {
        Ok(None)
    }

    async fn latest(&self, _name: &str, _at: At) -> Result<Option<PartitionKey>> {
        Ok(None)
    }

    async fn list(&self, _at: At) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }
}
