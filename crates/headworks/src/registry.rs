//! The lakes' registries of partitions, as the executor asks them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use async_trait::async_trait;
use headworks_domain::{Fault, PartitionKey, TableName};
use headworks_flow::exec::{BoxFault, Partition, Partitions};
use headworks_lake::{At, Lake};
use tokio::sync::watch;

use crate::lakes::Lakes;

/// Answers waits from the lake that each table is read from.
pub(crate) struct Registry {
    lakes: Lakes,
    positions: Mutex<Positions>,
}

impl Registry {
    /// Asks these lakes.
    pub(crate) fn new(lakes: Lakes) -> Self {
        Self { lakes, positions: Mutex::default() }
    }

    /// The position of a pair of versions: of one lake alone, its version.
    fn position(&self, versions: Versions) -> i64 {
        match self.lakes.production() {
            None => versions.0,
            Some(_) => self.positions.lock().expect("nothing panics while it holds this lock").of(versions),
        }
    }

    fn versions_at(&self, position: i64) -> Versions {
        match self.lakes.production() {
            None => (position, 0),
            Some(_) => self.positions.lock().expect("nothing panics while it holds this lock").versions(position),
        }
    }

    async fn versions(&self) -> headworks_lake::Result<Versions> {
        let production = match self.lakes.production() {
            Some(production) => production.version(At::Now).await?,
            None => 0,
        };
        Ok((self.lakes.own().version(At::Now).await?, production))
    }

    /// Lists what a lake published after a version, as far as its tables are read from there.
    async fn news(&self, lake: &Lake, since: i64) -> headworks_lake::Result<(Vec<Partition>, i64)> {
        let (published, newest) = lake.published_since(since).await?;
        let mut news = Vec::with_capacity(published.len());
        let mut is_read: BTreeMap<String, bool> = BTreeMap::new();
        for (name, key) in published {
            // A table that other programs named in a way that no job can wait for is nobody's wait.
            let Ok(table) = name.parse::<TableName>() else { continue };
            let is_read = match is_read.get(&name) {
                Some(is_read) => *is_read,
                None => {
                    let from_here = self.lakes.reading(&name).await?.id() == lake.id();
                    *is_read.entry(name).or_insert(from_here)
                }
            };
            if is_read {
                news.push(Partition::new(table, key));
            }
        }
        Ok((news, newest))
    }
}

/// A version of the own lake and one of production's.
type Versions = (i64, i64);

/// The most positions that are remembered; who comes back with an older one is told everything once more.
const POSITIONS_MAX: usize = 1_024;

/// Numbers pairs of versions in the order in which they were seen: a position of the executor is one number.
#[derive(Default)]
struct Positions {
    /// The number of the oldest pair that is remembered.
    first: i64,
    seen: VecDeque<Versions>,
}

impl Positions {
    fn of(&mut self, versions: Versions) -> i64 {
        if self.seen.back() != Some(&versions) {
            self.seen.push_back(versions);
            if self.seen.len() > POSITIONS_MAX {
                self.seen.pop_front();
                self.first += 1;
            }
        }
        self.first + i64::try_from(self.seen.len()).unwrap_or(i64::MAX) - 1
    }

    fn versions(&self, position: i64) -> Versions {
        let at = usize::try_from(position - self.first).ok();
        at.and_then(|at| self.seen.get(at)).copied().unwrap_or_default()
    }
}

fn boxed(error: impl Fault) -> BoxFault {
    Box::new(error)
}

#[async_trait]
impl Partitions for Registry {
    async fn published(&self, wanted: &[Partition]) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.lakes.own().catch_up().await.map_err(boxed)?;
        // The position first: what is published between the two looks is then told once more, and never missed.
        let position = self.position(self.versions().await.map_err(boxed)?);
        let mut by_table: BTreeMap<&TableName, Vec<PartitionKey>> = BTreeMap::new();
        for partition in wanted {
            by_table.entry(&partition.table).or_default().push(partition.key.clone());
        }
        let mut published = Vec::new();
        for (table, keys) in by_table {
            let lake = self.lakes.reading(table.as_str()).await.map_err(boxed)?;
            let versions = lake.published(table.as_str(), &keys).await.map_err(boxed)?;
            published.extend(versions.into_keys().map(|key| Partition::new(table.clone(), key)));
        }
        Ok((published, position))
    }

    async fn published_since(&self, position: i64) -> Result<(Vec<Partition>, i64), BoxFault> {
        self.lakes.own().catch_up().await.map_err(boxed)?;
        let (own, production) = self.versions_at(position);
        let (mut published, own) = self.news(self.lakes.own(), own).await.map_err(boxed)?;
        let production = match self.lakes.production() {
            Some(lake) => {
                let (more, newest) = self.news(lake, production).await.map_err(boxed)?;
                published.extend(more);
                newest
            }
            None => 0,
        };
        Ok((published, self.position((own, production))))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let (tell, told) = watch::channel(0);
        for lake in [Some(self.lakes.own()), self.lakes.production()].into_iter().flatten() {
            let (tell, mut changes) = (tell.clone(), lake.store().changes());
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = changes.changed() => tell.send_modify(|n| *n += 1),
                        () = tell.closed() => return,
                    }
                }
            });
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_only_go_up() {
        let mut positions = Positions::default();
        assert_eq!(positions.versions(0), (0, 0), "who has no position is told everything");
        let first = positions.of((5, 100));
        assert_eq!(positions.of((5, 100)), first);
        let second = positions.of((5, 101));
        assert!(second > first);
        assert_eq!((positions.versions(first), positions.versions(second)), ((5, 100), (5, 101)));
        for version in 0..2_000 {
            positions.of((version, 101));
        }
        assert!(positions.of((2_000, 101)) > second);
        assert_eq!(positions.versions(first), (0, 0), "forgotten: told once more from the start");
        assert!(positions.seen.len() <= POSITIONS_MAX);
    }
}
