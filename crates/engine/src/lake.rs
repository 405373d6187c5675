//! The lake as the engine's catalog: the one file that knows both.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{catalog::TableProvider, execution::runtime_env::RuntimeEnv};
use headworks_domain::PartitionKey;
use headworks_lake::{Lake, LakeTable, Table};

use crate::{At, Catalog, Error, Found, Listed, Result};

#[async_trait]
impl Catalog for Lake {
    fn register(&self, runtime: &RuntimeEnv) {
        self.storage().register(runtime);
    }

    async fn fix(&self, at: At) -> Result<At> {
        Ok(At::Version(self.version(at).await?))
    }

    async fn find(&self, name: &str, at: At) -> Result<Option<Found>> {
        let version = self.version(at).await?;
        if let Some(table) = table_at(self, name, version).await? {
            let table = LakeTable::open(self.store().clone(), self.storage().clone(), table, version).await?;
            return Ok(Some(Found::Table(Arc::new(table))));
        }
        let view = self.views(At::Version(version)).await?.into_iter().find(|view| view.name == name);
        Ok(view.map(|view| Found::View { sql: view.sql, columns: view.columns }))
    }

    async fn latest(&self, name: &str, at: At) -> Result<Option<PartitionKey>> {
        Ok(self.latest_partition(name, at).await?)
    }

    async fn list(&self, at: At) -> Result<Vec<Listed>> {
        let version = self.version(at).await?;
        let mut listed: Vec<Listed> = Vec::new();
        for name in self.table_names(At::Version(version)).await? {
            let Some(table) = table_at(self, &name, version).await? else { continue };
            let schema = LakeTable::open(self.store().clone(), self.storage().clone(), table, version).await;
            // One table that we cannot read does not hide the others.
            let schema = schema.ok().map(|table| table.schema());
            let has_latest = schema.as_ref().is_some_and(|s| s.field_with_name("ds").is_ok());
            listed.push(Listed { name, schema, has_latest, definition: None });
        }
        for view in self.views(At::Version(version)).await? {
            // The view that shows DuckDB the newest partition; the engine has its own.
            let is_latest = |l: &Listed| l.has_latest && view.name.strip_suffix("_latest") == Some(l.name.as_str());
            if !listed.iter().any(is_latest) {
                listed.push(Listed { name: view.name, schema: None, has_latest: false, definition: Some(view.sql) });
            }
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }
}

/// A table at a version, from the lake's cache when that version is still the newest.
async fn table_at(lake: &Lake, name: &str, version: i64) -> Result<Option<Arc<Table>>> {
    // Versions only grow: when this one is the newest after the look, it was so during it.
    let newest = lake.table(name, At::Now).await?;
    if lake.version(At::Now).await? == version {
        Ok(newest)
    } else {
        Ok(lake.table(name, At::Version(version)).await?)
    }
}

impl From<headworks_lake::Error> for Error {
    fn from(error: headworks_lake::Error) -> Self {
        match error {
            headworks_lake::Error::Query(error) => Self::from_datafusion(error),
            other => Self::Catalog(Box::new(other)),
        }
    }
}

/// Gives an error that came through DataFusion back its kind, when it is one of the lake's.
pub(crate) fn external(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    match error.downcast::<headworks_lake::Error>() {
        Ok(own) => Error::from(*own),
        Err(other) => Error::Internal { message: other.to_string() },
    }
}
