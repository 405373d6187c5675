//! Views: SQL that the catalog keeps and nobody stores.

use headworks_domain::TableName;
use headworks_store::{Tx, values};
use uuid::Uuid;

use crate::{
    Error, Lake, Result,
    publish::{Head, against_foreign_writers},
};

impl Lake {
    /// Makes or replaces a view, inside the caller's transaction, and answers the lake's version. A view that says the same
    /// already is left alone.
    ///
    /// Errors: `Schema` when a table has the name.
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
    let mut head = Head::read(tx).await?;
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
