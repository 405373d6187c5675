//! Views: SQL that the catalog keeps and nobody stores.

use headworks_domain::TableName;
use headworks_store::{Row, Tx, values};
use uuid::Uuid;

use crate::{
    At, Error, Lake, Result,
    publish::{Head, against_foreign_writers},
};

/// A view, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its name.
    pub name: String,
    /// Its query, whose tables are the lake's own.
    pub sql: String,
    /// Names that replace those of the query's columns; none when those stay.
    pub columns: Vec<String>,
}

/// What DuckDB writes before the names of the lake's own tables, since it knows the lake by another name in each session.
const OWN_CATALOG: &str = "{DUCKLAKE_CATALOG}.";

impl Lake {
    /// The views, by name.
    pub async fn views(&self, at: At) -> Result<Vec<View>> {
        let version = self.version(at).await?;
        let sql = "select view_name, sql, column_aliases from ducklake_view
                   where begin_snapshot <= $1 and (end_snapshot is null or end_snapshot > $1) order by 1";
        let rows = self.store().rows(sql, &values![version]).await?;
        let view = |row: &Row| {
            let columns = names(&row.opt_text(2)?.unwrap_or_default());
            Ok(View { name: row.text(0)?, sql: row.text(1)?.replace(OWN_CATALOG, ""), columns })
        };
        rows.iter().map(view).collect()
    }

    /// Makes or replaces a view, inside the caller's transaction, and answers the lake's version. A view that says the same
    /// already is left alone.
    ///
    /// Errors: `Schema` when a table has the name; after any the caller's piece of work must fail too.
    pub async fn publish_view(&self, tx: &mut Tx, name: &TableName, sql: &str, comment: Option<&str>) -> Result<i64> {
        let now = self.now();
        against_foreign_writers!(tx, once(tx, name.as_str(), sql, comment, now))
    }
}

async fn once(
    tx: &mut Tx,
    name: &str,
    sql: &str,
    comment: Option<&str>,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<i64> {
    let mut head = Head::caught_up(tx, now).await?;
    let table =
        tx.row("select 1 from ducklake_table where table_name = $1 and end_snapshot is null", &values![name]).await?;
    if table.is_some() {
        return Err(Error::Schema {
            table: name.to_owned(),
            reason: "a table has that name, the job makes a view".to_owned(),
        });
    }
    let before = tx
        .row("select view_id, sql from ducklake_view where view_name = $1 and end_snapshot is null", &values![name])
        .await?;
    let mut changes = Vec::new();
    if let Some(before) = before {
        if before.text(1)? == sql {
            return Ok(head.snapshot);
        }
        let id = before.i64(0)?;
        tx.execute(
            "update ducklake_view set end_snapshot = $1 where view_id = $2 and end_snapshot is null",
            &values![head.snapshot + 1, id],
        )
        .await?;
        changes.push(format!("dropped_view:{id}"));
    }
    head.snapshot += 1;
    head.schema_version += 1;
    let id = head.next_catalog_id;
    head.next_catalog_id += 1;
    tx.execute(
        "insert into ducklake_view(view_id, view_uuid, begin_snapshot, schema_id, view_name, dialect, sql, column_aliases)
         values ($1, $2, $3, 0, $4, 'duckdb', $5, '')",
        &values![id, Uuid::now_v7(), head.snapshot, name, sql],
    )
    .await?;
    if let Some(comment) = comment {
        tx.execute(
            "insert into ducklake_tag(object_id, begin_snapshot, key, value) values ($1, $2, 'comment', $3)",
            &values![id, head.snapshot, comment],
        )
        .await?;
    }
    changes.push(format!("created_view:\"main\".\"{name}\""));
    head.write(tx, now, &changes, Some(&format!("view {name}")), None).await?;
    Ok(head.snapshot)
}

/// Reads `("a","b c")` or `a, b`, the names that DuckDB gave a view's columns.
fn names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut is_quoted = false;
    let mut chars = text.trim().trim_start_matches('(').trim_end_matches(')').chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                name.push('"');
                chars.next();
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => names.push(std::mem::take(&mut name)),
            c if c.is_whitespace() && !is_quoted => {}
            c => name.push(c),
        }
    }
    if !name.is_empty() {
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_names_of_views_are_read() {
        for (text, expected) in [
            ("", vec![]),
            ("()", vec![]),
            ("(\"a\",\"b c\")", vec!["a", "b c"]),
            ("a, b", vec!["a", "b"]),
            ("(\"a,\"\"b\")", vec!["a,\"b"]),
        ] {
            assert_eq!(names(text), expected, "{text}");
        }
    }
}
