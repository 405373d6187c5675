//! Big tables, cut into stretches of pages that several connections read at once, all at one moment.

use sqlx::{AssertSqlSafe, Row, raw_sql};

use super::{
    introspect::KnownTable,
    pool::{Lease, Pool},
};
use crate::names::literal;

/// How many connections read one table at most.
const READERS_MAX: usize = 4;

/// A stretch of a table's pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    first: u64,
    /// The page after its last; the last stretch has no end, since a table grows while it is looked at.
    end: Option<u64>,
}

impl Part {
    /// The condition that a row lies in it, which PostgreSQL (from 14 on) answers by reading these pages only.
    pub(super) fn condition(&self) -> String {
        let first = format!("ctid >= '({},0)'::tid", self.first);
        match self.end {
            Some(end) => format!("{first} AND ctid < '({end},0)'::tid"),
            None => first,
        }
    }
}

/// Cuts so many pages into parts of about `part_bytes`, of a table that takes `bytes` with all that is stored beside its pages.
fn cut(pages: u64, bytes: u64, part_bytes: u64) -> Vec<Part> {
    let count = bytes.div_ceil(part_bytes.max(1)).min(pages).max(1);
    (0..count)
        .map(|n| Part { first: pages * n / count, end: (n + 1 < count).then(|| pages * (n + 1) / count) })
        .collect()
}

/// The parts of a table and the connections besides the first that read them.
pub(super) struct Parts {
    pub(super) parts: Vec<Part>,
    pub(super) others: Vec<Lease>,
}

/// Cuts a table if it is worth it, and gives free connections the first one's moment. None when one connection should do.
///
/// It takes only what is free: readers that wait for each other's connections would wait for ever.
pub(super) async fn cut_up(
    first: &mut Lease,
    table: &KnownTable,
    part_bytes: u64,
    begin: &str,
    pool: &Pool,
) -> Result<Option<Parts>, sqlx::Error> {
    if !table.splittable {
        return Ok(None);
    }
    let sql = format!(
        "SELECT s.bytes::text, s.pages::text, CASE WHEN s.bytes > {part_bytes} THEN pg_export_snapshot() END \
         FROM (SELECT pg_table_size(t) AS bytes, pg_relation_size(t) / current_setting('block_size')::int8 AS pages \
         FROM (SELECT {}::regclass AS t) r) s",
        literal(&table.quoted)
    );
    let row = raw_sql(AssertSqlSafe(sql)).fetch_one(first.connection()).await?;
    let number = |n: usize| row.try_get::<String, _>(n).map(|text| text.parse::<u64>().unwrap_or(0));
    let (bytes, pages, snapshot) = (number(0)?, number(1)?, row.try_get::<Option<String>, _>(2)?);
    let Some(snapshot) = snapshot else { return Ok(None) };
    let parts = cut(pages, bytes, part_bytes);
    let mut others = Vec::new();
    while others.len() + 1 < parts.len().min(READERS_MAX) {
        let Some(mut lease) = pool.try_acquire().await else { break };
        let same_moment = format!("{begin} SET TRANSACTION SNAPSHOT {};", literal(&snapshot));
        raw_sql(AssertSqlSafe(same_moment)).execute(lease.connection()).await?;
        others.push(lease);
    }
    Ok(Some(Parts { parts, others }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_stretches_of_pages() {
        let texts: Vec<String> = cut(10, 1000, 400).iter().map(Part::condition).collect();
        assert_eq!(
            texts,
            [
                "ctid >= '(0,0)'::tid AND ctid < '(3,0)'::tid",
                "ctid >= '(3,0)'::tid AND ctid < '(6,0)'::tid",
                "ctid >= '(6,0)'::tid"
            ]
        );
    }

    proptest! {
        #[test]
        fn no_page_is_missing_or_doubled(pages in 0_u64..10_000, bytes in 0_u64..1_000_000, part in 0_u64..10_000) {
            let parts = cut(pages, bytes, part);
            prop_assert_eq!(parts[0].first, 0);
            prop_assert_eq!(parts[parts.len() - 1].end, None);
            for pair in parts.windows(2) {
                prop_assert_eq!(pair[0].end, Some(pair[1].first));
                prop_assert!(pair[0].first < pair[1].first);
            }
        }
    }
}
