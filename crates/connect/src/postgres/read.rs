//! Reads of PostgreSQL tables: what is asked for, checked and planned.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection, Row, raw_sql};
use tokio::sync::Mutex;

use super::{
    Inner,
    introspect::{self, KnownTable, fingerprint_sql},
    parts::{self, Parts},
    plan::{self, PgType, Plan},
    pool::Lease,
    session::{BEGIN, Held, begin, finish},
    task::Task,
};
use crate::{
    assemble::{Assembler, BatchSender},
    error::{Error, Result},
    names::{lake_names, literal, quote},
    parse,
    source::{BatchReader, By, ReadColumn, ReadRequest, Refused, Snapshot, chosen_columns, unknown_column},
    types,
};

/// Describes a table and remembers it.
pub(super) async fn describe(inner: &Inner, db: &mut PgConnection, name: &str) -> Result<Arc<KnownTable>> {
    let known = introspect::table(&inner.name, db, name)
        .await
        .map_err(|e| inner.error(&format!("describe table `{name}`"), &e))??;
    let known = Arc::new(known);
    inner.tables.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), known.clone());
    Ok(known)
}

struct PgSnapshot {
    inner: Arc<Inner>,
    lease: Arc<Mutex<Option<Lease>>>,
}

pub(super) async fn snapshot(inner: Arc<Inner>) -> Result<Box<dyn Snapshot>> {
    let mut lease = begin(&inner).await?;
    // The moment is that of the first query, not that of BEGIN.
    raw_sql("SELECT 1").execute(lease.connection()).await.map_err(|e| inner.error("take a snapshot", &e))?;
    Ok(Box::new(PgSnapshot { inner, lease: Arc::new(Mutex::new(Some(lease))) }))
}

#[async_trait]
impl Snapshot for PgSnapshot {
    async fn read(&self, request: ReadRequest) -> Result<BatchReader> {
        let mut held = Held::Shared(self.lease.clone().lock_owned().await);
        let db = held.connection(&self.inner.name)?;
        let table = describe(&self.inner, db, &request.table).await;
        let table = match table {
            Ok(table) => check(&self.inner, db, &table, false).await.map(|checked| (table, checked)),
            Err(error) => Err(error),
        };
        match table {
            Ok((table, Checked::Same)) => start(&self.inner, held, table, request, None),
            Ok((table, Checked::Other)) => {
                held.broken();
                Err(Error::Changed { connection: self.inner.name.clone(), table: table.described.name.clone() })
            }
            // No query has failed, so that the transaction goes on.
            Err(error @ Error::UnknownTable { .. }) => Err(error),
            Err(error) => {
                held.broken();
                Err(error)
            }
        }
    }
}

/// Reads a table in a transaction of its own.
pub(super) async fn read(inner: Arc<Inner>, request: ReadRequest) -> Result<BatchReader> {
    let known = inner.tables.lock().unwrap_or_else(PoisonError::into_inner).get(&request.table).cloned();
    if let Some(table) = known {
        let mut db = begin(&inner).await?;
        // What was learnt may be outdated in any way: then it is learnt anew, and only that may fail.
        if matches!(check(&inner, db.connection(), &table, true).await, Ok(Checked::Same)) {
            return read_known(&inner, db, table, request).await;
        }
    }
    let mut db = begin(&inner).await?;
    let table = describe(&inner, db.connection(), &request.table).await?;
    finish(db).await;
    let mut db = begin(&inner).await?;
    match check(&inner, db.connection(), &table, true).await? {
        Checked::Same => read_known(&inner, db, table, request).await,
        Checked::Other => Err(Error::Changed { connection: inner.name.clone(), table: table.described.name.clone() }),
    }
}

/// Reads a table by one connection, or by several if it is big and all of it is wanted.
async fn read_known(
    inner: &Arc<Inner>,
    mut db: Lease,
    table: Arc<KnownTable>,
    request: ReadRequest,
) -> Result<BatchReader> {
    let parts = match request.by {
        // An index finds an interval's rows; stretches of pages would be read for nothing.
        Some(_) => None,
        None => parts::cut_up(&mut db, &table, inner.options.part_bytes, BEGIN, &inner.pool)
            .await
            .map_err(|e| inner.error(&format!("read table `{}`", table.described.name), &e))?,
    };
    start(inner, Held::Own(db), table, request, parts)
}

enum Checked {
    Same,
    Other,
}

/// Locks a table against changes of its definition, and looks whether it is still what is known of it.
///
/// `LOCK TABLE` is no query: the transaction's moment comes after the lock, so that no change slips in between.
async fn check(inner: &Inner, db: &mut PgConnection, table: &KnownTable, may_lock: bool) -> Result<Checked> {
    let quoted = &table.quoted;
    let lock = if table.lockable && may_lock {
        format!("LOCK TABLE {quoted} IN ACCESS SHARE MODE")
    } else {
        format!("SELECT NULL FROM {quoted} LIMIT 0")
    };
    let sql = format!("{lock}; {}", fingerprint_sql(quoted));
    let rows = raw_sql(AssertSqlSafe(sql))
        .fetch_all(db)
        .await
        .map_err(|e| inner.error(&format!("read table `{}`", table.described.name), &e))?;
    let found = rows.first().and_then(|row| row.try_get::<String, _>(0).ok());
    // The second part tells whether the snapshot sees the file that is there now.
    let rewritten = found.as_deref().and_then(|f| f.split(';').nth(1)) != Some("t");
    Ok(if found.as_ref() == Some(&table.fingerprint) && !rewritten { Checked::Same } else { Checked::Other })
}

/// Plans a read and starts the task that does it.
fn start(
    inner: &Arc<Inner>,
    held: Held,
    table: Arc<KnownTable>,
    request: ReadRequest,
    parts: Option<Parts>,
) -> Result<BatchReader> {
    match plan(inner, &table, &request) {
        Ok((task, assembler)) => {
            let (sender, stream, report) = BatchSender::channel(&inner.name);
            let (schema, columns) = (assembler.schema(), task.columns.clone());
            tokio::spawn(Arc::new(task).run(held, assembler, sender, parts));
            Ok(BatchReader { schema, columns, stream, report })
        }
        Err(error) => {
            // Nothing went wrong with the connection.
            tokio::spawn(held.done());
            Err(error)
        }
    }
}

fn plan(inner: &Arc<Inner>, table: &Arc<KnownTable>, request: &ReadRequest) -> Result<(Task, Assembler)> {
    let described = &table.described;
    let names: Vec<&str> = described.columns.iter().map(|c| c.name.as_str()).collect();
    let lake = lake_names(&names, request.names, &request.keys);
    let mut columns = Vec::new();
    let mut plans = Vec::new();
    for place in chosen_columns(&inner.name, described, request)? {
        let column = &described.columns[place];
        let plan = plan_column(&inner.name, table, place, request)?;
        columns.push(ReadColumn {
            name: lake[place].clone(),
            source_name: column.name.clone(),
            source_type: column.source_type.clone(),
            data_type: plan.data_type.clone(),
            json: plan.json,
            comment: column.comment.clone(),
        });
        plans.push(plan);
    }
    let mut conditions = Vec::new();
    if let Some(by) = &request.by {
        conditions.push(range(&inner.name, table, by)?);
    }
    // The line's end keeps a comment at the end of the filter from swallowing the bracket.
    conditions.extend(request.filter.iter().map(|f| format!("({f}\n)")));
    let chosen = plans.iter().map(|p| p.sql.as_str()).collect::<Vec<_>>().join(", ");
    let assembler = Assembler::new(&inner.name, &columns, &inner.options)?;
    let key = described
        .primary_key
        .iter()
        .map(|name| columns.iter().position(|c| c.source_name == *name))
        .collect::<Option<Vec<_>>>()
        .unwrap_or_default();
    let wires = plans.into_iter().map(|p| p.wire).collect();
    let table_name = described.name.clone();
    Ok((
        Task {
            inner: inner.clone(),
            table: table_name,
            columns,
            wires,
            key,
            quoted: table.quoted.clone(),
            chosen,
            conditions,
            specials: request.specials,
        },
        assembler,
    ))
}

fn plan_column(connection: &str, table: &KnownTable, place: usize, request: &ReadRequest) -> Result<Plan> {
    let column = &table.described.columns[place];
    let sql = format!("{}.{}", quote(&table.described.name), quote(&column.name));
    let pg: &PgType = &table.types[place];
    let Some(wanted) = request.types.get(&column.name) else { return Ok(plan::natural(pg, &sql)) };
    plan::wanted(pg, &sql, &types::parse(wanted)?).ok_or_else(|| Error::Type {
        connection: connection.to_owned(),
        table: table.described.name.clone(),
        column: column.name.clone(),
        reason: format!("is {} and cannot be read as {wanted} without loss", column.source_type),
        hint: "read it as its own type or as `varchar`, and convert it in SQL".into(),
    })
}

/// The condition that a row lies in the interval, in the column's own type, so that an index serves it.
fn range(connection: &str, table: &KnownTable, by: &By) -> Result<String> {
    let described = &table.described;
    let Some(place) = described.columns.iter().position(|c| c.name == by.column) else {
        return Err(unknown_column(connection, described, &by.column));
    };
    let refused = |(reason, hint): Refused| Error::By {
        connection: connection.to_owned(),
        table: described.name.clone(),
        column: by.column.clone(),
        reason,
        hint: hint.into(),
    };
    let (start, end) = (by.interval.start(), by.interval.end());
    let written = |time: chrono::NaiveDateTime, zone: &str| {
        let text = parse::timestamp_text(time.and_utc().timestamp_micros(), ' ').unwrap_or_default();
        literal(&format!("{text}{zone}"))
    };
    let (cast, start, end) = match table.types[place].oid {
        plan::TIMESTAMPTZ => ("timestamptz", written(start.naive_utc(), "+00"), written(end.naive_utc(), "+00")),
        plan::TIMESTAMP_OID => {
            let clock = |t: chrono::DateTime<chrono::Utc>| written(t.with_timezone(&by.zone).naive_local(), "");
            ("timestamp", clock(start), clock(end))
        }
        plan::DATE => {
            let (first, last) = by.days().map_err(refused)?;
            ("date", literal(&first.to_string()), literal(&last.to_string()))
        }
        _ => {
            let source_type = &described.columns[place].source_type;
            let hint = "name a column of type timestamptz, timestamp or date, or import a view that has one";
            return Err(refused((format!("it is {source_type}"), hint.to_owned())));
        }
    };
    let column = format!("{}.{}", quote(&described.name), quote(&by.column));
    Ok(format!("{column} >= {start}::{cast} AND {column} < {end}::{cast}"))
}
