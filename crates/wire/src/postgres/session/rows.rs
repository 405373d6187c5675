//! Carries statements out, whichever protocol they came by, and sends their rows.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use bytes::BytesMut;
use futures::StreamExt;
use headworks_engine::{Caller, PgSession, QueryOptions, ScalarValue};
use pgwire::messages::{
    copy::{CopyDone, CopyOutResponse},
    extendedquery::PortalSuspended,
    response::CommandComplete,
};

use super::{Fail, Session, flush, guarded, of_engine, portal_of};
use crate::postgres::{
    copy::{BINARY_HEAD, BINARY_TAIL, CopyFormat, CopyOptions},
    error::{PgError, state},
    link::End,
    portal::{self, Batch, Portal, Rows},
    statement::{Query, Statement},
    value::Format,
};

impl Session<'_> {
    /// Gives a portal its rows, if it is to have some.
    pub(super) async fn start(&mut self, portal: &mut Portal) -> Result<(), Fail> {
        if portal.rows.is_some() || portal.is_over {
            return Ok(());
        }
        let rows = match &portal.statement {
            Some(Statement::Query(query) | Statement::Copy { query, .. }) => {
                Some(self.query(query, &portal.text, portal.parameters.clone()).await?)
            }
            Some(Statement::Show(name)) => {
                let value = self.settings.get(name)?;
                Some(texts(show_schema(name), vec![vec![value.to_owned()]])?)
            }
            Some(Statement::ShowAll) => {
                let mut all: Vec<(&String, &String)> = self.settings.all().iter().collect();
                all.sort();
                let (names, values): (Vec<String>, Vec<String>) =
                    all.into_iter().map(|(name, value)| (name.clone(), value.clone())).unzip();
                let nothing = vec![String::new(); names.len()];
                Some(texts(show_all_schema(), vec![names, values, nothing])?)
            }
            _ => None,
        };
        portal.rows = rows;
        Ok(())
    }

    pub(super) fn options(&self, parameters: Vec<ScalarValue>) -> QueryOptions {
        let application = self.settings.application().map(str::to_owned);
        let cursors: Vec<String> = self.portals.keys().filter(|name| !name.is_empty()).cloned().collect();
        let known = match cursors.is_empty() {
            true => Arc::clone(&self.known),
            false => Arc::new(PgSession { cursors, ..self.known.as_ref().clone() }),
        };
        QueryOptions {
            caller: Caller { application, ..self.caller.clone() },
            queue: self.settings.queue().map(str::to_owned),
            timeout: self.settings.statement_timeout(),
            limits: self.shared.options.limits,
            postgres: Some(known),
            parameters,
            ..QueryOptions::default()
        }
    }

    pub(super) async fn query(
        &mut self,
        query: &Query,
        text: &str,
        parameters: Vec<ScalarValue>,
    ) -> Result<Rows, Fail> {
        let asked = self.shared.engine.query(&query.sql, self.options(parameters));
        let stream = guarded(&mut self.link, &mut self.signals, asked).await?;
        let stream = stream.map_err(|error| of_engine(&error, text, query))?;
        Ok(Rows { schema: stream.schema(), stream: Box::pin(stream), batch: None, given: 0 })
    }

    /// Carries a started portal out, at most so many rows of it; 0 for all.
    pub(super) async fn finish(&mut self, portal: &mut Portal, rows_max: u64) -> Result<(), Fail> {
        let Some(statement) = portal.statement.clone() else { return Ok(()) };
        match &statement {
            Statement::Copy { options, .. } => {
                let Some(rows) = &mut portal.rows else { return Ok(()) };
                let given = self.copy(rows, options).await?;
                portal.is_over = true;
                portal.rows = None;
                self.complete(&format!("COPY {given}"))?;
            }
            Statement::Fetch { cursor, rows, is_move } => {
                let given = self.fetch(cursor, *rows, *is_move).await?;
                self.complete(&format!("{} {given}", statement.tag()))?;
            }
            Statement::Declare { name, is_binary, is_kept, query } => {
                let cursor = Portal {
                    parameters: portal.parameters.clone(),
                    formats: vec![i16::from(*is_binary)],
                    is_kept: *is_kept,
                    ..portal_of(Some(Statement::Query(query.clone())), &portal.text)
                };
                self.declare(name, cursor).await?;
                self.complete(statement.tag())?;
            }
            _ => match &mut portal.rows {
                Some(rows) => {
                    let formats = portal::formats(&portal.formats, rows.schema.fields().len())?;
                    let before = rows.given;
                    if self.send(rows, &formats, rows_max).await? {
                        // Of a portal that was fetched in parts, the last part is told.
                        let given = rows.given - before;
                        (portal.is_over, portal.rows) = (true, None);
                        let tag = statement.tag();
                        self.complete(&if tag == "SELECT" { format!("SELECT {given}") } else { tag.to_owned() })?;
                    } else {
                        self.link.put(&PortalSuspended::new())?;
                    }
                }
                None if portal.is_over => self.complete(&format!("{} 0", statement.tag()))?,
                None => {
                    let tag = self.apply(statement)?;
                    portal.is_over = true;
                    self.complete(tag)?;
                }
            },
        }
        Ok(())
    }

    pub(super) fn complete(&mut self, tag: &str) -> Result<(), End> {
        self.link.put(&CommandComplete::new(tag.to_owned()))
    }

    /// Sends rows as the client takes them, at most so many; true when there are no more.
    pub(super) async fn send(&mut self, rows: &mut Rows, formats: &[Format], rows_max: u64) -> Result<bool, Fail> {
        let mut left = if rows_max == 0 { u64::MAX } else { rows_max };
        loop {
            let Some(batch) = self.next_batch(rows).await? else { return Ok(true) };
            let columns = i16::try_from(batch.columns.len()).unwrap_or(i16::MAX);
            let before = batch.next;
            while batch.next < batch.rows && left > 0 {
                let out = &mut self.link.output;
                let start = out.len();
                out.extend_from_slice(&[b'D', 0, 0, 0, 0]);
                out.extend_from_slice(&columns.to_be_bytes());
                for (column, format) in batch.columns.iter().zip(formats) {
                    column.put(batch.next, *format, out);
                }
                end_message(out, start);
                batch.next += 1;
                left -= 1;
                if self.link.is_full() {
                    flush(&mut self.link, &mut self.signals).await?;
                }
            }
            let given = batch.next - before;
            rows.given += given as u64;
            if left == 0 {
                return Ok(false);
            }
        }
    }

    /// The batch with rows that were not given yet; none at the end.
    pub(super) async fn next_batch<'r>(&mut self, rows: &'r mut Rows) -> Result<Option<&'r mut Batch>, Fail> {
        while rows.batch.as_ref().is_none_or(|batch| batch.next == batch.rows) {
            rows.batch = None;
            match guarded(&mut self.link, &mut self.signals, rows.stream.next()).await? {
                None => return Ok(None),
                Some(Ok(batch)) => rows.batch = Some(Batch::of(&batch)?),
                Some(Err(error)) => return Err(PgError::of(&error, "", 0).into()),
            }
        }
        Ok(rows.batch.as_mut())
    }

    /// Sends all rows in a copy's format; gives their number.
    pub(super) async fn copy(&mut self, rows: &mut Rows, options: &CopyOptions) -> Result<u64, Fail> {
        let columns = rows.schema.fields().len();
        let count = i16::try_from(columns).unwrap_or(i16::MAX);
        let format = options.values() as i16;
        let formats = vec![format; columns];
        self.link.put(&CopyOutResponse::new(i8::from(options.format == CopyFormat::Binary), count, formats))?;
        // What comes before the first row goes with it: clients take each message for a row.
        let mut head: &[u8] = if options.format == CopyFormat::Binary { BINARY_HEAD } else { b"" };
        let mut scratch = BytesMut::new();
        if options.has_header {
            let out = &mut self.link.output;
            let start = begin_copy(out, b"");
            options.header(rows.schema.fields().iter().map(|field| field.name().as_str()), out);
            end_message(out, start);
        }
        while let Some(batch) = self.next_batch(rows).await? {
            while batch.next < batch.rows {
                let out = &mut self.link.output;
                let start = begin_copy(out, std::mem::take(&mut head));
                options.row(&batch.columns, batch.next, out, &mut scratch);
                end_message(out, start);
                batch.next += 1;
                if self.link.is_full() {
                    flush(&mut self.link, &mut self.signals).await?;
                }
            }
            let given = batch.rows as u64;
            rows.given += given;
        }
        if options.format == CopyFormat::Binary {
            let out = &mut self.link.output;
            let start = begin_copy(out, head);
            out.extend_from_slice(BINARY_TAIL);
            end_message(out, start);
        }
        self.link.put(&CopyDone::new())?;
        Ok(rows.given)
    }
}

/// Begins a message of a copy; gives where.
fn begin_copy(out: &mut BytesMut, head: &[u8]) -> usize {
    let start = out.len();
    out.extend_from_slice(&[b'd', 0, 0, 0, 0]);
    out.extend_from_slice(head);
    start
}

/// Fills in the length of a message that began there.
fn end_message(out: &mut BytesMut, start: usize) {
    let length = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

/// Rows of texts, column by column.
fn texts(schema: SchemaRef, columns: Vec<Vec<String>>) -> Result<Rows, PgError> {
    let arrays = columns.into_iter().map(|column| Arc::new(StringArray::from(column)) as _).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)
        .map_err(|error| PgError::new(state::INTERNAL, error.to_string()))?;
    let stream = Box::pin(futures::stream::iter([Ok(batch)]));
    Ok(Rows { schema, stream, batch: None, given: 0 })
}

fn text_columns(names: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect::<Vec<_>>()))
}

pub(super) fn show_schema(name: &str) -> SchemaRef {
    text_columns(&[name])
}

pub(super) fn show_all_schema() -> SchemaRef {
    text_columns(&["name", "setting", "description"])
}
