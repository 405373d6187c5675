//! Rows of a SQLite table as batches.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, PoisonError},
};

use arrow::datatypes::DataType;
use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::{
    AssertSqlSafe, Decode, Row, Sqlite, SqliteConnection, Transaction, TypeInfo, ValueRef,
    sqlite::{SqliteRow, SqliteValueRef},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    Inner,
    form::{self, Bound, TimeColumn},
    introspect::KnownTable,
};
use crate::{
    assemble::{Assembler, BatchSender},
    column::{Column, Misfit},
    error::{Error, Result, ValueError},
    names::{lake_names, quote},
    source::{
        BatchReader, By, ReadColumn, ReadRequest, Refused, ReportHandle, Snapshot, chosen_columns, unknown_column,
    },
    types,
};

/// A connection with a transaction that sees one moment: of this read alone, or shared by the reads of a snapshot.
pub(super) enum Held {
    Own(Transaction<'static, Sqlite>),
    Shared(OwnedMutexGuard<Transaction<'static, Sqlite>>),
}

impl Deref for Held {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        match self {
            Self::Own(tx) => tx,
            Self::Shared(tx) => tx,
        }
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        match self {
            Self::Own(tx) => tx,
            Self::Shared(tx) => tx,
        }
    }
}

struct SqliteSnapshot {
    inner: Arc<Inner>,
    tx: Arc<Mutex<Transaction<'static, Sqlite>>>,
}

pub(super) async fn snapshot(inner: Arc<Inner>) -> Result<Box<dyn Snapshot>> {
    let mut tx = inner.pool.begin().await.map_err(|e| inner.error("open it", &e))?;
    // The moment is that of the first read, not that of BEGIN.
    sqlx::query("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *tx)
        .await
        .map_err(|e| inner.error("read its schema", &e))?;
    Ok(Box::new(SqliteSnapshot { inner, tx: Arc::new(Mutex::new(tx)) }))
}

#[async_trait]
impl Snapshot for SqliteSnapshot {
    async fn read(&self, request: ReadRequest) -> Result<BatchReader> {
        let held = Held::Shared(self.tx.clone().lock_owned().await);
        start(self.inner.clone(), held, request).await
    }
}

/// Plans a read and starts the task that does it.
pub(super) async fn start(inner: Arc<Inner>, mut db: Held, request: ReadRequest) -> Result<BatchReader> {
    let table = inner.known_table(&mut db, &request.table).await?;
    let (columns, expressions) = plan_columns(&inner.name, &table, &request)?;
    let (sender, stream, report) = BatchSender::channel(&inner.name);
    let bounds = match &request.by {
        Some(by) => Some(bounds(&inner, &mut db, &table, by, &report).await?),
        None => None,
    };
    let sql = select(&table, &expressions, request.by.as_ref(), bounds.as_ref(), request.filter.as_deref());
    let assembler = Assembler::new(&inner.name, &columns, &inner.options)?;
    let schema = assembler.schema();
    let task = Task { inner, table, columns: columns.clone(), sql, bounds: bounds.flatten() };
    tokio::spawn(async move {
        let result = task.run(&mut db, assembler, &sender).await;
        drop(db);
        sender.end(result).await;
    });
    Ok(BatchReader { schema, columns, stream, report })
}

/// The chosen columns and the SQL that reads each.
fn plan_columns(connection: &str, table: &KnownTable, request: &ReadRequest) -> Result<(Vec<ReadColumn>, Vec<String>)> {
    let described = &table.described;
    let names: Vec<&str> = described.columns.iter().map(|c| c.name.as_str()).collect();
    let lake = lake_names(&names, request.names, &request.keys);
    let mut columns = Vec::new();
    let mut expressions = Vec::new();
    for place in chosen_columns(connection, described, request)? {
        let column = &described.columns[place];
        let sql = format!("{}.{}", quote(&described.name), quote(&column.name));
        let (mut data_type, mut json) = (column.data_type.clone(), column.json);
        let mut expression = sql.clone();
        if let Some(wanted) = request.types.get(&column.name) {
            let wanted = types::parse(wanted)?;
            if matches!(wanted.data_type, DataType::List(_)) {
                return Err(Error::Type {
                    connection: connection.to_owned(),
                    table: described.name.clone(),
                    column: column.name.clone(),
                    reason: "cannot be read as a list: SQLite has none".to_owned(),
                    hint: "read it as `json` or `varchar`".into(),
                });
            }
            if wanted.data_type == DataType::Binary {
                expression = format!("CAST({sql} AS BLOB)");
            }
            (data_type, json) = (wanted.data_type, wanted.json);
        }
        columns.push(ReadColumn {
            name: lake[place].clone(),
            source_name: column.name.clone(),
            source_type: column.source_type.clone(),
            data_type,
            json,
            comment: column.comment.clone(),
        });
        expressions.push(expression);
    }
    Ok((columns, expressions))
}

/// The bounds of the interval as the column stores its times; none when it stores none at all.
async fn bounds(
    inner: &Inner,
    db: &mut SqliteConnection,
    table: &KnownTable,
    by: &By,
    report: &ReportHandle,
) -> Result<Option<(Bound, Bound)>> {
    let described = &table.described;
    let Some(column) = described.columns.iter().find(|c| c.name == by.column) else {
        return Err(unknown_column(&inner.name, described, &by.column));
    };
    let refused = |(reason, hint): Refused| Error::By {
        connection: inner.name.clone(),
        table: described.name.clone(),
        column: by.column.clone(),
        reason,
        hint: hint.into(),
    };
    let key = (described.name.clone(), by.column.clone());
    let known = inner.forms.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    let of = TimeColumn {
        table: &described.name,
        column: &by.column,
        declared_time: matches!(column.data_type, DataType::Timestamp(..) | DataType::Date32),
        rowid: table.rowid,
    };
    let found = form::find(db, of, table.schema_version, known)
        .await
        .map_err(|e| inner.error(&format!("look at column `{}` of `{}`", by.column, described.name), &e))?
        .map_err(refused)?;
    let Some(found) = found else { return Ok(None) };
    if found.nulls > 0 {
        report.warn(&by.column, "is null: such rows are in no interval", found.nulls);
    }
    let bounds = found.form().bounds(by).map_err(refused)?;
    inner.forms.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found);
    Ok(Some(bounds))
}

fn select(
    table: &KnownTable,
    expressions: &[String],
    by: Option<&By>,
    bounds: Option<&Option<(Bound, Bound)>>,
    filter: Option<&str>,
) -> String {
    let name = quote(&table.described.name);
    let mut chosen = expressions.to_vec();
    // The row's id comes last, so that an error can name the row.
    chosen.push(table.rowid.map_or("NULL".to_owned(), |rowid| format!("{name}.{rowid}")));
    let mut conditions = Vec::new();
    match (by, bounds) {
        (Some(by), Some(Some(_))) => {
            let column = format!("{name}.{}", quote(&by.column));
            conditions.push(format!("{column} >= $1 AND {column} < $2"));
        }
        (_, Some(None)) => conditions.push("0".to_owned()),
        _ => {}
    }
    // The line's end keeps a comment at the end of the filter from swallowing the bracket.
    conditions.extend(filter.map(|f| format!("({f}\n)")));
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!("SELECT {} FROM {name}{condition}", chosen.join(", "))
}

struct Task {
    inner: Arc<Inner>,
    table: Arc<KnownTable>,
    columns: Vec<ReadColumn>,
    sql: String,
    bounds: Option<(Bound, Bound)>,
}

impl Task {
    async fn run(&self, db: &mut SqliteConnection, mut batch: Assembler, sender: &BatchSender) -> Result<()> {
        let name = &self.table.described.name;
        let failed = |e: sqlx::Error| self.inner.error(&format!("read table `{name}`"), &e);
        let mut query = sqlx::query(AssertSqlSafe(self.sql.clone()));
        if let Some((start, end)) = &self.bounds {
            for bound in [start, end] {
                query = match bound {
                    Bound::Secs(secs) => query.bind(*secs),
                    Bound::Text(text) => query.bind(text.clone()),
                };
            }
        }
        let mut rows = query.fetch(db);
        let mut number = 0_u64;
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            number += 1;
            decode(&row, &mut batch.columns)
                .map_err(|(place, misfit)| self.value_error(&row, number, place, misfit))?;
            batch.row_done();
            if batch.is_full()
                && let Some(full) = batch.take(&self.inner.name)?
                && sender.send(full).await.is_err()
            {
                return Ok(());
            }
        }
        if let Some(rest) = batch.take(&self.inner.name)? {
            // If nobody reads it any more, nothing is left to do anyway.
            let _ = sender.send(rest).await;
        }
        Ok(())
    }

    fn value_error(&self, row: &SqliteRow, number: u64, place: usize, misfit: Misfit) -> Error {
        let rowid: Option<i64> = row.try_get(self.columns.len()).unwrap_or(None);
        Error::Value(Box::new(ValueError {
            connection: self.inner.name.clone(),
            table: self.table.described.name.clone(),
            column: self.columns[place].source_name.clone(),
            reason: misfit.reason,
            row: match rowid {
                Some(rowid) => format!("with rowid {rowid}"),
                None => format!("number {number} of those read"),
            },
            instead: misfit.instead.to_owned(),
        }))
    }
}

fn decode(row: &SqliteRow, columns: &mut [Column]) -> Result<(), (usize, Misfit)> {
    for (place, column) in columns.iter_mut().enumerate() {
        let Ok(value) = row.try_get_raw(place) else {
            return Err((place, column.misfit("nothing", "varchar")));
        };
        decode_value(value, column).map_err(|misfit| (place, misfit))?;
    }
    Ok(())
}

fn decode_value(value: SqliteValueRef<'_>, column: &mut Column) -> Result<(), Misfit> {
    if value.is_null() {
        column.null();
        return Ok(());
    }
    // The driver tells a value's storage class by its name only: INTEGER, REAL, TEXT or BLOB.
    let class = value.type_info().name().as_bytes().first().copied();
    match class {
        Some(b'I') => match <i64 as Decode<Sqlite>>::decode(value) {
            Ok(number) => column.integer(number),
            Err(e) => Err(column.misfit(e, "varchar")),
        },
        Some(b'R') => match <f64 as Decode<Sqlite>>::decode(value) {
            Ok(number) => column.real(number),
            Err(e) => Err(column.misfit(e, "varchar")),
        },
        Some(b'T') => match <&str as Decode<Sqlite>>::decode(value) {
            Ok(text) => column.text(text),
            Err(e) => Err(column.misfit(format!("text that is not UTF-8: {e}"), "blob")),
        },
        _ => match <&[u8] as Decode<Sqlite>>::decode(value) {
            Ok(bytes) => column.blob(bytes),
            Err(e) => Err(column.misfit(e, "blob")),
        },
    }
}
