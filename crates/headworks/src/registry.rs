//! The lake's registry of partitions, as the executor asks it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use headworks_domain::{Fault, PartitionKey, TableName};
use headworks_flow::exec::{BoxFault, Partition, Partitions};
use headworks_lake::{At, Lake};
use tokio::sync::watch;

/// Answers waits from the lake. A position is a version of the lake.
pub(crate) struct Registry {
    lake: Lake,
}

impl Registry {
    /// Asks this lake.
    pub(crate) fn new(lake: Lake) -> Self {
        Self { lake }
    }
}

fn boxed(error: impl Fault) -> BoxFault {
    Box::new(error)
}

#[async_trait]
impl Partitions for Registry {
    async fn published(&self, wanted: &[Partition]) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.lake.catch_up().await.map_err(boxed)?;
        // The position first: what is published between the two looks is then told once more, and never missed.
        let position = self.lake.version(At::Now).await.map_err(boxed)?;
        let mut by_table: BTreeMap<&TableName, Vec<PartitionKey>> = BTreeMap::new();
        for partition in wanted {
            by_table.entry(&partition.table).or_default().push(partition.key.clone());
        }
        let mut published = Vec::new();
        for (table, keys) in by_table {
            let versions = self.lake.published(table.as_str(), &keys).await.map_err(boxed)?;
            published.extend(versions.into_keys().map(|key| Partition::new(table.clone(), key)));
        }
        Ok((published, position))
    }

    async fn published_since(&self, position: i64) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.lake.catch_up().await.map_err(boxed)?;
        let (published, position) = self.lake.published_since(position).await.map_err(boxed)?;
        // A table that other programs named in a way that no job can wait for is nobody's wait.
        let known = published.into_iter().filter_map(|(table, key)| Some(Partition::new(table.parse().ok()?, key)));
        Ok((known.collect(), position))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let (tell, told) = watch::channel(0);
        let mut changes = self.lake.store().changes();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = changes.changed() => tell.send_modify(|n| *n += 1),
                    () = tell.closed() => return,
                }
            }
        });
        told
    }
}
