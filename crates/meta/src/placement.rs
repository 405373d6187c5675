//! Where runs may be carried out, and what processes take, as rows have it.

use std::collections::BTreeSet;

use headworks_flow::exec::{Placement, Takes};
use headworks_store::Row;

use crate::{Error, Result, Role, Runs, row::owner};

/// A process that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessRow {
    /// As `host:pid`.
    pub name: String,
    /// What it is to the project.
    pub role: Role,
    /// What it takes.
    pub takes: Takes,
}

impl Runs {
    /// The processes that are alive, oldest first; this one too, once it owns runs or has a role.
    pub async fn processes(&self) -> Result<Vec<ProcessRow>> {
        let judge = self.judge(self.now().await?);
        let sql = "select host, boot_id, pid, pid_start, lease_until, role, zone, pools from hw_process order by started_at, id";
        let mut alive = Vec::new();
        for row in self.store.rows(sql, &[]).await? {
            let Some((process, lease)) = owner(&row, 0)? else { continue };
            if judge.lives(&process, lease) {
                let name = format!("{}:{}", process.host, process.pid);
                alive.push(ProcessRow { name, role: Role::read(&row.text(5)?), takes: takes(&row, 6)? });
            }
        }
        Ok(alive)
    }
}

/// The zone as rows have it.
pub(crate) fn zone_text(zone: Option<&String>) -> &str {
    zone.map_or("", String::as_str)
}

/// Pools as rows have them.
pub(crate) fn pools_text(pools: &BTreeSet<String>) -> String {
    if pools.is_empty() { String::new() } else { serde_json::json!(pools).to_string() }
}

/// Reads `zone, pools` of a run.
pub(crate) fn placement(row: &Row, first: usize) -> Result<Placement> {
    Ok(Placement { zone: zone(row, first)?, pools: pools(&row.text(first + 1)?, "hw_run")? })
}

/// Reads `zone, pools` of a process.
pub(crate) fn takes(row: &Row, first: usize) -> Result<Takes> {
    let pools = row.opt_text(first + 1)?.map(|text| pools(&text, "hw_process")).transpose()?;
    Ok(Takes { zone: zone(row, first)?, pools, ..Takes::default() })
}

fn zone(row: &Row, column: usize) -> Result<Option<String>> {
    Ok(Some(row.text(column)?).filter(|zone| !zone.is_empty()))
}

fn pools(text: &str, table: &'static str) -> Result<BTreeSet<String>> {
    if text.is_empty() {
        return Ok(BTreeSet::new());
    }
    serde_json::from_str(text).map_err(|error| Error::Row { table, reason: format!("`{text}` are no pools: {error}") })
}
