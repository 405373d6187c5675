//! The lake as the engine's catalog: the one file that knows both.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::TableProvider,
    common::tree_node::TreeNodeRecursion,
    datasource::{provider_as_source, source_as_provider},
    execution::{SessionState, runtime_env::RuntimeEnv},
    logical_expr::{LogicalPlan, TableSource, expr_rewriter::unnormalize_cols},
};
use headworks_domain::PartitionKey;
use headworks_lake::{Lake, LakeTable};

use crate::{At, Catalog, Error, Found, Listed, Moment, Newest, Result, access::Guarded};

#[async_trait]
impl Catalog for Lake {
    fn register(&self, runtime: &RuntimeEnv) {
        self.storage().register(runtime);
    }

    async fn fix(&self, at: At, latest_of: &[&str]) -> Result<(Moment, Newest)> {
        // The newest partitions first: a publish between the two looks then adds rows to none of them.
        let mut newest = Newest::new();
        for name in latest_of {
            newest.insert((*name).to_owned(), self.latest_partition(name, at).await?);
        }
        let version = At::Version(self.version(at).await?);
        Ok((Moment { at: version, below: version, is_named: at != At::Now }, newest))
    }

    async fn find(&self, name: &str, at: Moment) -> Result<Option<Found>> {
        let version = match at.at {
            At::Version(version) => version,
            at => self.version(at).await?,
        };
        if let Some(table) = self.table(name, At::Version(version)).await? {
            let table = LakeTable::open(self.store().clone(), self.storage().clone(), table, version).await?;
            return Ok(Some(Found::Table(Arc::new(table))));
        }
        let view = self.views(At::Version(version)).await?.into_iter().find(|view| view.name == name);
        Ok(view.map(|view| Found::View { sql: view.sql, columns: view.columns }))
    }

    async fn latest(&self, name: &str, at: Moment) -> Result<Option<PartitionKey>> {
        Ok(self.latest_partition(name, at.at).await?)
    }

    async fn has(&self, name: &str) -> Result<bool> {
        if self.table(name, At::Now).await?.is_some() {
            return Ok(true);
        }
        let version = self.version(At::Now).await?;
        Ok(self.views(At::Version(version)).await?.iter().any(|view| view.name == name))
    }

    async fn stamp(&self, names: &[String], since: Option<Moment>) -> Result<Option<String>> {
        let since = match since.map(|moment| moment.at) {
            Some(At::Version(version)) => Some(version),
            Some(_) => return Ok(None),
            None => None,
        };
        Ok(Lake::stamp(self, names, since).await?)
    }

    async fn list(&self, at: Moment) -> Result<Vec<Listed>> {
        let version = self.version(at.at).await?;
        let mut listed: Vec<Listed> = Vec::new();
        for name in self.table_names(At::Version(version)).await? {
            let Some(table) = self.table(&name, At::Version(version)).await? else { continue };
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

/// A table of the lake of which a query needs the least and the greatest values only; `None` for all other sources.
pub(crate) fn for_extremes(source: &Arc<dyn TableSource>) -> Option<Arc<dyn TableSource>> {
    let provider = source_as_provider(source).ok()?;
    let table = provider.downcast_ref::<LakeTable>()?.for_extremes()?;
    Some(provider_as_source(Arc::new(table)))
}

/// Bytes of the lake's files that a plan reads. Tables in memory are small.
///
/// It asks the catalog for the files, and the scans that are planned next find its answers there.
pub(crate) async fn bytes(plan: &LogicalPlan, state: &SessionState) -> Result<u64> {
    let mut scans = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            scans.push(scan.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut sum = 0;
    for scan in scans {
        let Ok(provider) = source_as_provider(&scan.source) else { continue };
        // As DataFusion hands them to the scan.
        let filters = unnormalize_cols(scan.filters);
        if let Some(table) = provider.downcast_ref::<LakeTable>() {
            sum += table.bytes(state, scan.projection.as_ref(), &filters).await?;
        } else if let Some(guarded) = provider.downcast_ref::<Guarded>() {
            let behind = guarded.optimized(state, scan.projection.as_ref(), &filters, scan.fetch)?;
            sum += Box::pin(bytes(&behind, state)).await?;
        }
    }
    Ok(sum)
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
