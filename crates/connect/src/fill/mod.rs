//! A table in a database, made and filled from Arrow batches.
//!
//! It is all or nothing: table, rows and indexes come in one transaction. It is meant for demos, tests and tables that this
//! program owns; it does not merge into a table that somebody else writes.

mod postgres;
mod sqlite;
mod values;

use arrow::datatypes::{DataType, SchemaRef};
use futures::StreamExt;

use crate::{
    error::{Error, Result},
    source::{BatchStream, ConnectionSpec},
};

/// The table to make.
#[derive(Debug, Clone)]
pub struct FillRequest {
    /// Its name; in PostgreSQL also `schema.table`, where the schema must exist.
    pub table: String,
    /// Its columns: those of every batch. A field that may not be null becomes NOT NULL.
    pub schema: SchemaRef,
    /// The columns of its primary key; none when empty.
    pub primary_key: Vec<String>,
    /// The columns of each further index.
    pub indexes: Vec<Vec<String>>,
    /// What becomes of a table of that name.
    pub existing: Existing,
}

/// What becomes of a table that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// It is an error.
    #[default]
    Refuse,
    /// It is dropped, with all its rows.
    Drop,
}

/// Makes a table, fills it and answers how many rows it got. A SQLite file is made when there is none.
///
/// Types: SQLite declares what [`open`](crate::open) reads back as the same type; decimals of more than 15 digits become TEXT
/// there, since SQLite would round them; it also keeps no NaN, which is an error, and no negative zero. Lists are for PostgreSQL
/// only.
///
/// Errors: those of the stream; `Fill` when the table is there already, a type has no place in the database or a batch has
/// another schema; `Database`.
pub async fn fill(name: &str, spec: &ConnectionSpec, request: &FillRequest, batches: BatchStream) -> Result<u64> {
    for column in request.primary_key.iter().chain(request.indexes.iter().flatten()) {
        if request.schema.column_with_name(column).is_none() {
            return Err(refused(name, request, format!("its key or index names `{column}`, which is no column")));
        }
    }
    let (schema, error) = (request.schema.clone(), (name.to_owned(), request.clone()));
    let batches = batches
        .map(move |batch| {
            let batch = batch?;
            let same = batch.schema_ref().fields().len() == schema.fields().len()
                && batch.schema_ref().fields().iter().zip(schema.fields()).all(|(a, b)| a.data_type() == b.data_type());
            if same { Ok(batch) } else { Err(refused(&error.0, &error.1, "a batch has other columns".to_owned())) }
        })
        .boxed();
    match spec {
        ConnectionSpec::Sqlite { path } => sqlite::fill(name, path, request, batches).await,
        ConnectionSpec::Postgres { url } => postgres::fill(name, url, request, batches).await,
    }
}

fn refused(connection: &str, request: &FillRequest, reason: String) -> Error {
    Error::Fill { connection: connection.to_owned(), table: request.table.clone(), reason }
}

fn no_place(connection: &str, request: &FillRequest, column: &str, data_type: &DataType) -> Error {
    refused(
        connection,
        request,
        format!("column `{column}` has the type {data_type}, which the database has no place for"),
    )
}
