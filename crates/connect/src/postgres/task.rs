//! The task that copies rows from the server into batches.

use std::sync::Arc;

use futures::TryStreamExt;
use sqlx::PgConnection;
use tokio::{sync::Mutex, task::JoinSet};

use super::{
    Inner,
    copy::{Broken, CopyReader, Row},
    decode::{self, Refused},
    parts::{Part, Parts},
    plan::Wire,
    session::{Held, finish},
};
use crate::{
    assemble::{Assembler, BatchSender},
    error::{Error, Result, ValueError},
    source::{ReadColumn, Specials},
};

/// One read: what is asked of the server, and what becomes of the answer.
pub(super) struct Task {
    pub(super) inner: Arc<Inner>,
    pub(super) table: String,
    pub(super) columns: Vec<ReadColumn>,
    pub(super) wires: Vec<Wire>,
    /// The places of the primary key's columns, if all of them are read.
    pub(super) key: Vec<usize>,
    /// `"schema"."table"`
    pub(super) quoted: String,
    /// The expressions of the columns.
    pub(super) chosen: String,
    pub(super) conditions: Vec<String>,
    pub(super) specials: Specials,
}

/// How a read ended.
enum Ended {
    Whole,
    Abandoned,
}

impl Task {
    /// Reads all of it and ends the stream.
    pub(super) async fn run(
        self: Arc<Self>,
        mut held: Held,
        batch: Assembler,
        sender: BatchSender,
        parts: Option<Parts>,
    ) {
        let sender = Arc::new(sender);
        let (parts, others) = parts.map_or_else(Default::default, |p| (p.parts, p.others));
        let queries: Vec<String> = match parts.as_slice() {
            [] => vec![self.query(None)],
            parts => parts.iter().map(|part| self.query(Some(part))).collect(),
        };
        let queries = Arc::new(Mutex::new(queries));
        // A task that is dropped with this set closes its connection.
        let mut helpers = JoinSet::new();
        for mut lease in others {
            let Ok(batch) = Assembler::new(&self.inner.name, &self.columns, &self.inner.options) else { break };
            let (task, queries, sender) = (self.clone(), queries.clone(), sender.clone());
            helpers.spawn(async move {
                let ended = task.copy_all(lease.connection(), &queries, batch, &sender).await;
                if matches!(ended, Ok(Ended::Whole)) {
                    finish(lease).await;
                }
                ended
            });
        }
        let mut result = match held.connection(&self.inner.name) {
            Ok(db) => self.copy_all(db, &queries, batch, &sender).await,
            Err(error) => Err(error),
        };
        // The first connection's moment, and its lock, last until all are done.
        while matches!(result, Ok(Ended::Whole))
            && let Some(helper) = helpers.join_next().await
        {
            result = helper.unwrap_or_else(|e| {
                Err(Error::Internal { connection: self.inner.name.clone(), reason: format!("a reader failed: {e}") })
            });
        }
        match result {
            Ok(Ended::Whole) => {
                held.done().await;
                sender.end(Ok(())).await;
            }
            Ok(Ended::Abandoned) => held.broken(),
            Err(error) => {
                held.broken();
                sender.end(Err(error)).await;
            }
        }
    }

    fn query(&self, part: Option<&Part>) -> String {
        let mut conditions = self.conditions.clone();
        conditions.extend(part.map(Part::condition));
        let condition =
            if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        format!("COPY (SELECT {} FROM {}{condition}) TO STDOUT (FORMAT binary)", self.chosen, self.quoted)
    }

    /// Takes one query after the other until none is left.
    async fn copy_all(
        &self,
        db: &mut PgConnection,
        queries: &Mutex<Vec<String>>,
        mut batch: Assembler,
        sender: &BatchSender,
    ) -> Result<Ended> {
        loop {
            let next = queries.lock().await.pop();
            let Some(query) = next else { return Ok(Ended::Whole) };
            if let Ended::Abandoned = self.copy(db, &query, &mut batch, sender).await? {
                return Ok(Ended::Abandoned);
            }
        }
    }

    async fn copy(
        &self,
        db: &mut PgConnection,
        query: &str,
        batch: &mut Assembler,
        sender: &BatchSender,
    ) -> Result<Ended> {
        let failed = |e: sqlx::Error| self.inner.error(&format!("read table `{}`", self.table), &e);
        let mut nulled = vec![0_u64; self.wires.len()];
        let mut number = 0_u64;
        let mut reader = CopyReader::new(self.wires.len());
        let mut chunks = db.copy_out_raw(query).await.map_err(failed)?;
        while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
            reader
                .feed::<RowError>(&chunk, |row| {
                    number += 1;
                    self.row(&row, batch, &mut nulled).map_err(|(place, refused)| match refused {
                        Refused::Broken => RowError::Stream(Broken(format!(
                            "a field of column `{}` is not of its type",
                            self.columns[place].source_name
                        ))),
                        Refused::Misfit(misfit) => RowError::Value(Box::new(ValueError {
                            connection: self.inner.name.clone(),
                            table: self.table.clone(),
                            column: self.columns[place].source_name.clone(),
                            reason: misfit.reason,
                            row: self.row_name(&row, number),
                            instead: misfit.instead.to_owned(),
                        })),
                    })?;
                    batch.row_done();
                    Ok(())
                })
                .map_err(|e| self.row_error(e))?;
            if batch.is_full()
                && let Some(full) = batch.take(&self.inner.name)?
                && sender.send(full).await.is_err()
            {
                return Ok(Ended::Abandoned);
            }
        }
        reader.finish().map_err(|broken| self.row_error(RowError::Stream(broken)))?;
        for (column, count) in self.columns.iter().zip(nulled).filter(|(_, count)| *count > 0) {
            sender.report().warn(&column.source_name, "is NaN or infinity, which became null", count);
        }
        if let Some(rest) = batch.take(&self.inner.name)? {
            // The transaction is at its end either way.
            let _ = sender.send(rest).await;
        }
        Ok(Ended::Whole)
    }

    fn row(&self, row: &Row<'_>, batch: &mut Assembler, nulled: &mut [u64]) -> Result<(), (usize, Refused)> {
        for (place, (column, wire)) in batch.columns.iter_mut().zip(&self.wires).enumerate() {
            match row.field(place) {
                None => column.null(),
                Some(bytes) => {
                    nulled[place] += decode::field(wire, bytes, column, self.specials).map_err(|e| (place, e))?;
                }
            }
        }
        Ok(())
    }

    /// Names a row by its key, or by its place if the key is not read.
    fn row_name(&self, row: &Row<'_>, number: u64) -> String {
        if self.key.is_empty() {
            return format!("number {number} of those read");
        }
        let part = |place: &usize| {
            let value = row.field(*place).map_or("null".to_owned(), |bytes| decode::text(&self.wires[*place], bytes));
            format!("{} = `{value}`", self.columns[*place].source_name)
        };
        format!("with {}", self.key.iter().map(part).collect::<Vec<_>>().join(", "))
    }

    fn row_error(&self, error: RowError) -> Error {
        match error {
            RowError::Value(error) => Error::Value(error),
            RowError::Stream(Broken(reason)) => {
                Error::Malformed { connection: self.inner.name.clone(), table: self.table.clone(), reason }
            }
        }
    }
}

enum RowError {
    Value(Box<ValueError>),
    Stream(Broken),
}

impl From<Broken> for RowError {
    fn from(broken: Broken) -> Self {
        Self::Stream(broken)
    }
}
