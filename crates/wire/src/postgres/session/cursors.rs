//! Cursors of SQL: DECLARE, FETCH and MOVE.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::{Fail, Session, Transaction, no_portal};
use crate::postgres::{
    error::{PgError, state},
    portal::{self, Portal},
    value::Format,
};

impl Session<'_> {
    pub(super) async fn declare(&mut self, name: &str, mut cursor: Portal) -> Result<(), Fail> {
        if !cursor.is_kept && matches!(self.transaction, Transaction::None) {
            return Err(PgError::new(state::NO_TRANSACTION, "DECLARE CURSOR can only be used in transaction blocks")
                .with_hint("begin one, or declare the cursor WITH HOLD")
                .into());
        }
        if self.portals.contains_key(name) {
            return Err(PgError::new(state::DUPLICATE_CURSOR, format!("cursor `{name}` exists already")).into());
        }
        self.has_room_for_portal()?;
        self.start(&mut cursor).await?;
        self.portals.insert(name.to_owned(), cursor);
        Ok(())
    }

    pub(super) fn cursor_columns(&self, name: &str) -> Result<(SchemaRef, Vec<Format>), PgError> {
        let none = || PgError::new(state::NO_CURSOR, format!("cursor `{name}` does not exist"));
        let cursor = self.portals.get(name).ok_or_else(none)?;
        let rows = cursor.rows.as_ref().ok_or_else(none)?;
        let formats = portal::formats(&cursor.formats, rows.schema.fields().len())?;
        Ok((Arc::clone(&rows.schema), formats))
    }

    /// Sends the next rows of a cursor, or passes over them; gives their number.
    pub(super) async fn fetch(&mut self, name: &str, rows_max: Option<u64>, is_move: bool) -> Result<u64, Fail> {
        let (_, formats) = self.cursor_columns(name)?;
        let mut cursor = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        let Some(rows) = &mut cursor.rows else { return Err(no_portal(name).into()) };
        let before = rows.given;
        match (rows_max, is_move) {
            (Some(0), _) => {}
            (wanted, false) => _ = self.send(rows, &formats, wanted.unwrap_or(0)).await?,
            (wanted, true) => {
                let mut left = wanted.unwrap_or(u64::MAX);
                while left > 0 {
                    let Some(batch) = self.next_batch(rows).await? else { break };
                    let step = (batch.rows - batch.next).min(usize::try_from(left).unwrap_or(usize::MAX));
                    batch.next += step;
                    left -= step as u64;
                    rows.given += step as u64;
                }
            }
        }
        let given = rows.given - before;
        self.portals.insert(name.to_owned(), cursor);
        Ok(given)
    }
}
