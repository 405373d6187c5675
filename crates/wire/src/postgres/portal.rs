//! Statements that were prepared, and rows on their way to a client.

use std::{pin::Pin, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, FieldRef, SchemaRef},
};
use futures::Stream;
use headworks_engine::{Described, ScalarValue, pg_type};
use pgwire::messages::data::{FieldDescription, RowDescription};

use super::{
    error::{PgError, state},
    lexer::{Kind, Token},
    parameter,
    statement::Statement,
    value::{Column, Format},
};

/// A statement that a client has prepared.
pub(super) struct Prepared {
    /// None for an empty text.
    pub(super) statement: Option<Statement>,
    pub(super) text: Arc<str>,
    /// The types that the client has named; 0 where it leaves that to us.
    pub(super) oids: Vec<u32>,
    /// How many parameters it has.
    pub(super) parameters: usize,
    /// What the engine said of it, once it was asked.
    pub(super) described: Option<Described>,
    /// The columns that the client was told last.
    pub(super) told: Option<SchemaRef>,
}

impl Prepared {
    /// The types of the parameters that are known without asking the engine.
    pub(super) fn named_types(&self) -> Vec<Option<DataType>> {
        (0..self.parameters).map(|n| self.oids.get(n).and_then(|oid| parameter::arrow_type(*oid))).collect()
    }

    /// The types by whose forms all parameters are written; those that nobody knows are texts.
    pub(super) fn types(&self) -> Vec<DataType> {
        let named = |n: usize| self.oids.get(n).and_then(|oid| parameter::written_type(*oid));
        let described = |n: usize| self.described.as_ref().and_then(|d| d.parameters.get(n).cloned().flatten());
        (0..self.parameters).map(|n| named(n).or_else(|| described(n)).unwrap_or(DataType::Utf8)).collect()
    }

    /// The object ids of these types, as the client hears of them.
    pub(super) fn type_oids(&self) -> Vec<u32> {
        let types = self.types().into_iter().enumerate();
        types
            .map(|(n, data_type)| match self.oids.get(n) {
                Some(oid) if *oid != 0 => *oid,
                _ => pg_type(&Field::new("", data_type, true)).oid,
            })
            .collect()
    }
}

/// The highest number behind a `$`.
pub(super) fn count_parameters(tokens: &[Token]) -> Result<usize, PgError> {
    let mut highest = 0;
    for pair in tokens.windows(2) {
        if pair[0].is_sign('$')
            && pair[0].end == pair[1].start
            && let Kind::Number(number) = &pair[1].kind
        {
            // Two bytes count the parameters of a message.
            let number: u16 =
                number.parse().map_err(|_| PgError::new(state::SYNTAX, format!("there is no parameter ${number}")))?;
            highest = highest.max(usize::from(number));
        }
    }
    Ok(highest)
}

/// A statement with its parameters, and how far it has come.
pub(super) struct Portal {
    pub(super) statement: Option<Statement>,
    pub(super) text: Arc<str>,
    pub(super) parameters: Vec<ScalarValue>,
    /// The forms of the result's columns: none for all in text, one for all, or one for each.
    pub(super) formats: Vec<i16>,
    pub(super) rows: Option<Rows>,
    /// The columns that the client expects, if it was told any.
    pub(super) told: Option<SchemaRef>,
    /// True once its end was told.
    pub(super) is_over: bool,
    /// True for a cursor that outlives its transaction.
    pub(super) is_kept: bool,
}

/// Rows of a statement that runs.
pub(super) struct Rows {
    pub(super) schema: SchemaRef,
    pub(super) stream: Pin<Box<dyn Stream<Item = headworks_engine::Result<RecordBatch>> + Send>>,
    /// What is left of the batch that came last.
    pub(super) batch: Option<Batch>,
    /// Rows that were given over all.
    pub(super) given: u64,
}

/// A batch, column by column.
pub(super) struct Batch {
    pub(super) columns: Vec<Column>,
    pub(super) rows: usize,
    pub(super) next: usize,
}

impl Batch {
    pub(super) fn of(batch: &RecordBatch) -> Result<Self, PgError> {
        let columns: Result<Vec<Column>, _> = batch.columns().iter().map(Column::of).collect();
        let columns = columns.map_err(|error| PgError::new("22003", error.to_string()))?;
        Ok(Self { columns, rows: batch.num_rows(), next: 0 })
    }
}

/// One form for each column. Errors: the client names another number of them.
pub(super) fn formats(codes: &[i16], columns: usize) -> Result<Vec<Format>, PgError> {
    match codes {
        [] => Ok(vec![Format::Text; columns]),
        [one] => Ok(vec![Format::of(*one); columns]),
        all if all.len() == columns => Ok(all.iter().map(|code| Format::of(*code)).collect()),
        all => {
            let message = format!("the client wants {} columns in their forms, and there are {columns}", all.len());
            Err(PgError::new(state::PROTOCOL, message))
        }
    }
}

/// True when a client reads rows of both in the same way. A number's digits are no matter: a value that is bound may have fewer.
pub(super) fn is_alike(told: &SchemaRef, now: &SchemaRef) -> bool {
    let pair = |(told, now): (&FieldRef, &FieldRef)| told.name() == now.name() && pg_type(told).oid == pg_type(now).oid;
    told.fields().len() == now.fields().len() && told.fields().iter().zip(now.fields()).all(pair)
}

/// What a client hears of the columns.
pub(super) fn row_description(schema: &SchemaRef, formats: &[Format]) -> RowDescription {
    let fields = schema.fields().iter().zip(formats).map(|(field, format)| {
        let pg = pg_type(field);
        FieldDescription::new(field.name().replace('\0', ""), 0, 0, pg.oid, pg.size, pg.modifier, *format as i16)
    });
    RowDescription::new(fields.collect())
}
