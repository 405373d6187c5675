//! Two lakes as one: names that the first lacks are found in the second.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::execution::runtime_env::RuntimeEnv;
use headworks_domain::PartitionKey;

use crate::{At, Catalog, Found, Listed, Moment, Newest, Result};

/// A lake over another: each name is the upper one's when it has it, with all its partitions and versions, else the lower one's.
pub struct Layered {
    upper: Arc<dyn Catalog>,
    lower: Arc<dyn Catalog>,
}

impl Layered {
    /// Lays one over the other. Their files must have URLs that differ.
    pub fn new(upper: Arc<dyn Catalog>, lower: Arc<dyn Catalog>) -> Self {
        Self { upper, lower }
    }

    /// Whether each name is found in the upper lake now.
    async fn owners(&self, names: &[&str]) -> Result<Vec<bool>> {
        let mut owners = Vec::with_capacity(names.len());
        for name in names {
            owners.push(self.upper.has(name).await?);
        }
        Ok(owners)
    }
}

/// A table that comes into the upper lake while a moment is fixed makes us look again, at most this often: tables come once.
const LOOKS_MAX: usize = 20;

#[async_trait]
impl Catalog for Layered {
    fn register(&self, runtime: &RuntimeEnv) {
        self.upper.register(runtime);
        self.lower.register(runtime);
    }

    async fn fix(&self, at: At, latest_of: &[&str]) -> Result<(Moment, Newest)> {
        let mut looks = 1;
        loop {
            // A newest partition and the version to read it at must be of one lake.
            let owners = self.owners(latest_of).await?;
            let part = |of_upper: bool| -> Vec<&str> {
                latest_of.iter().zip(&owners).filter(|(_, own)| **own == of_upper).map(|(name, _)| *name).collect()
            };
            let moment = if at == At::Now {
                let (upper, mut newest) = self.upper.fix(at, &part(true)).await?;
                let (lower, of_lower) = self.lower.fix(at, &part(false)).await?;
                newest.extend(of_lower);
                (Moment { at: upper.at, below: lower.at, is_named: false }, newest)
            } else {
                // A version counts in the lake that has the table, and the other need not have it.
                let mut newest = Newest::new();
                for (name, of_upper) in latest_of.iter().zip(&owners) {
                    let lake = if *of_upper { &self.upper } else { &self.lower };
                    newest.insert((*name).to_owned(), lake.latest(name, at.into()).await?);
                }
                (at.into(), newest)
            };
            if looks == LOOKS_MAX || self.owners(latest_of).await? == owners {
                return Ok(moment);
            }
            looks += 1;
        }
    }

    async fn find(&self, name: &str, at: Moment) -> Result<Option<Found>> {
        if at.is_named {
            return if self.upper.has(name).await? {
                self.upper.find(name, at).await
            } else {
                self.lower.find(name, at.below()).await
            };
        }
        match self.upper.find(name, at).await? {
            Some(found) => Ok(Some(found)),
            None => self.lower.find(name, at.below()).await,
        }
    }

    async fn latest(&self, name: &str, at: Moment) -> Result<Option<PartitionKey>> {
        let is_upper =
            if at.is_named { self.upper.has(name).await? } else { self.upper.find(name, at).await?.is_some() };
        if is_upper { self.upper.latest(name, at).await } else { self.lower.latest(name, at.below()).await }
    }

    async fn list(&self, at: Moment) -> Result<Vec<Listed>> {
        // What there was at a moment that one of them does not know is no reason to list nothing.
        let (at, below) = if at.is_named { (At::Now.into(), At::Now.into()) } else { (at, at.below()) };
        let mut listed = self.upper.list(at).await?;
        let lower = self.lower.list(below).await?;
        let more: Vec<Listed> = lower.into_iter().filter(|l| listed.iter().all(|own| own.name != l.name)).collect();
        listed.extend(more);
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.upper.has(name).await? || self.lower.has(name).await?)
    }

    async fn stamp(&self, names: &[String], since: Option<Moment>) -> Result<Option<String>> {
        let upper = self.upper.stamp(names, since).await?;
        let lower = self.lower.stamp(names, since.map(Moment::below)).await?;
        Ok(upper.zip(lower).map(|(upper, lower)| format!("{upper} over {lower}")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    /// A lake with one table, once it was asked often enough.
    struct Late {
        asked: AtomicI64,
        there_after: i64,
        day: &'static str,
    }

    impl Late {
        fn new(there_after: i64, day: &'static str) -> Arc<Self> {
            Arc::new(Self { asked: AtomicI64::new(0), there_after, day })
        }

        fn key(&self) -> Option<PartitionKey> {
            Some(PartitionKey::day(self.day.parse().unwrap()))
        }
    }

    #[async_trait]
    impl Catalog for Late {
        async fn fix(&self, _at: At, latest_of: &[&str]) -> Result<(Moment, Newest)> {
            let version = At::Version(self.asked.load(Ordering::Relaxed));
            let newest = latest_of.iter().map(|name| ((*name).to_owned(), self.key())).collect();
            Ok((Moment { at: version, below: version, is_named: false }, newest))
        }

        async fn find(&self, _name: &str, _at: Moment) -> Result<Option<Found>> {
            Ok(None)
        }

        async fn latest(&self, _name: &str, _at: Moment) -> Result<Option<PartitionKey>> {
            Ok(self.key())
        }

        async fn list(&self, _at: Moment) -> Result<Vec<Listed>> {
            Ok(Vec::new())
        }

        async fn has(&self, _name: &str) -> Result<bool> {
            Ok(self.asked.fetch_add(1, Ordering::Relaxed) >= self.there_after)
        }
    }

    #[tokio::test]
    async fn a_table_that_comes_while_a_moment_is_fixed_is_not_read_half_here_and_half_there() {
        for (there_after, expected) in [(0, "2013-02-02"), (1, "2013-02-02"), (2, "2013-01-01")] {
            let (upper, lower) = (Late::new(there_after, "2013-02-02"), Late::new(0, "2013-01-01"));
            let both = Layered::new(upper.clone(), lower);
            for at in [At::Now, At::Version(3)] {
                upper.asked.store(0, Ordering::Relaxed);
                let (_, newest) = both.fix(at, &["t"]).await.unwrap();
                assert_eq!(newest["t"].as_ref().unwrap().ds.to_string(), expected, "{there_after} {at:?}");
            }
        }
    }
}
