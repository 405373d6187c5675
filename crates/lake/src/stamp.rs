//! Whether a table has changed: the last commit that touched it, held in memory and brought up to date commit by commit.

use std::collections::HashMap;

use headworks_store::{Store, values};

use crate::Result;

/// What is known of commits up to one version.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// The version that is known.
    seen: i64,
    /// The schema version then; another one means other tables, columns or views.
    schema_version: i64,
    /// The ids of tables by name, at that schema version.
    ids: HashMap<String, i64>,
    /// Of each table, the last commit known that touched it.
    tables: HashMap<i64, i64>,
    /// The last commit of which it is not known what it touched.
    all: i64,
}

impl Touched {
    /// Takes in the commits that it does not know yet. Costs one row when there are none.
    pub(crate) async fn catch_up(&mut self, store: &Store) -> Result<()> {
        let head = "select snapshot_id, schema_version from ducklake_snapshot order by snapshot_id desc limit 1";
        let Some(head) = store.row(head, &[]).await? else { return Ok(()) };
        let (newest, schema_version) = (head.i64(0)?, head.i64(1)?);
        if newest == self.seen {
            return Ok(());
        }
        if self.seen == 0 || newest < self.seen {
            // The start; or a catalog that was restored.
            *self = Self { all: newest, ..Self::default() };
        } else {
            let made = "select snapshot_id, changes_made from ducklake_snapshot_changes
                        where snapshot_id > $1 and snapshot_id <= $2 order by snapshot_id";
            let rows = store.rows(made, &values![self.seen, newest]).await?;
            if i64::try_from(rows.len()).ok() != Some(newest - self.seen) {
                self.all = newest;
            }
            for row in rows {
                self.take(row.i64(0)?, &row.opt_text(1)?.unwrap_or_default());
            }
        }
        if schema_version != self.schema_version || self.all > self.seen {
            let names = "select table_name, table_id from ducklake_table where begin_snapshot <= $1
                         and (end_snapshot is null or end_snapshot > $1)";
            let rows = store.rows(names, &values![newest]).await?;
            self.ids = rows.iter().map(|row| Ok((row.text(0)?, row.i64(1)?))).collect::<Result<_>>()?;
            self.schema_version = schema_version;
        }
        self.seen = newest;
        Ok(())
    }

    /// Notes what one commit says of itself, as `inserted_into_table:5,deleted_from_table:5`.
    fn take(&mut self, snapshot: i64, changes: &str) {
        let mut touched = Vec::new();
        for change in changes.split(',') {
            let (what, table) = change.split_once(':').unwrap_or((change, ""));
            let of_one_table = matches!(
                what,
                "inserted_into_table"
                    | "deleted_from_table"
                    | "inlined_insert"
                    | "inlined_delete"
                    | "inline_flush"
                    | "merge_adjacent"
                    | "compacted_table"
                    | "rewrite_delete"
                    | "altered_table"
            );
            match table.parse() {
                Ok(id) if of_one_table => touched.push(id),
                _ => {
                    self.all = snapshot;
                    return;
                }
            }
        }
        self.tables.extend(touched.into_iter().map(|id| (id, snapshot)));
    }

    /// A text that is another one whenever one of the tables may be; `None` when one has changed after `since`.
    pub(crate) fn stamp(&self, names: &[String], since: Option<i64>) -> Option<String> {
        let since = since.unwrap_or(i64::MAX);
        let mut stamp = format!("{}.{}", self.schema_version, self.all);
        let mut last = self.all;
        for name in names {
            // A name that is no table is a view or nothing, which only another schema version changes.
            let Some(id) = self.ids.get(name) else { continue };
            let touched = self.tables.get(id).copied().unwrap_or(0);
            last = last.max(touched);
            stamp.push_str(&format!(" {id}.{touched}"));
        }
        (last <= since).then_some(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_touch_what_they_say_or_everything() {
        let names = ["a".to_owned(), "view".to_owned()];
        let check = |changes: &str, is_same: bool| {
            let mut touched =
                Touched { seen: 5, ids: [("a".to_owned(), 1), ("b".to_owned(), 2)].into(), ..Touched::default() };
            let before = touched.stamp(&names, None);
            touched.take(6, changes);
            assert_eq!(touched.stamp(&names, None) == before, is_same, "{changes}");
            assert_eq!(touched.stamp(&names, Some(5)).is_some(), is_same, "{changes}");
            assert!(touched.stamp(&names, Some(6)).is_some());
        };
        check("inserted_into_table:2,deleted_from_table:2", true);
        check("inserted_into_table:2,deleted_from_table:1", false);
        check("altered_table:1", false);
        check("", false);
        check("created_table:\"main\".\"inserted_into_table:2\"", false);
        check("dropped_table:2", false);
        check("something_new:2", false);
    }
}
