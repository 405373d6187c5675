//! Reading a dump into an empty database, of the same kind or the other.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use futures::future::BoxFuture;
use serde_json::Value as Json;
use tokio::sync::mpsc;

use super::{BATCHES_MAX, FORMAT, cell, is_plain};
use crate::{
    Component, Dialect, Error, Result, Store, Tx, Value,
    migrate::{apply, prepare},
    snapshot::{Shape, quoted, shapes},
    value::parse_time,
};

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Each table with the count of its rows.
    pub tables: BTreeMap<String, u64>,
    /// The version of each component's tables: that of the dump. Opening the components brings them to the newest.
    pub components: BTreeMap<String, i64>,
    /// True when the dump is of the other kind of database.
    pub is_translated: bool,
}

/// What the first line says.
struct Head {
    database: String,
    components: BTreeMap<String, i64>,
}

enum Piece {
    Table { name: String, columns: Vec<(String, String)> },
    Rows(Vec<Vec<Value>>),
}

impl Store {
    /// Loads a dump into this database, in one transaction: wholly or not at all. `then` runs in that transaction, at its end.
    ///
    /// Tables are made by the components' own migrations, as they were when the dump was written, and rows are put in; so it
    /// does not matter which kind of database wrote it. With `replace` the tables of ours that are there go first.
    ///
    /// Errors: `NotEmpty` without `replace`, `Newer` when a later version of Headworks wrote it, `Dump` for a file that is none
    /// or was cut off, `Foreign` for rows in tables that only the other kind of database can hold.
    pub async fn load<E, F>(&self, path: &Path, components: &[Component], replace: bool, then: F) -> Result<Loaded, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<(), E>> + Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (to, pieces) = mpsc::channel(BATCHES_MAX);
        let (head, reading) = read(path.to_path_buf(), to).await?;
        let steps = steps(&head, components)?;
        let schemas = [self.options().schema.clone(), self.options().lake_schema()];
        let loaded = self
            .write(move |tx| {
                Box::pin(async move {
                    let loaded = load(tx, &schemas, &head, &steps, pieces, replace).await?;
                    then(tx).await?;
                    Ok::<_, E>(loaded)
                })
            })
            .await;
        // The reader ends when nobody takes its rows any more.
        let _ = reading.await;
        loaded
    }
}

/// The components of the dump with their versions. Errors: `Newer`.
fn steps(head: &Head, components: &[Component]) -> Result<Vec<(Component, i64)>> {
    let step = |(name, found): (&String, &i64)| {
        let component = components.iter().find(|c| c.name == name);
        let known = component.and_then(|c| c.migrations.last()).map_or(0, |m| m.version);
        match component {
            Some(component) if *found <= known => Ok((*component, *found)),
            _ => Err(Error::Newer { component: name.clone(), found: *found, known }),
        }
    };
    head.components.iter().map(step).collect()
}

async fn load(
    tx: &mut Tx,
    schemas: &[String; 2],
    head: &Head,
    steps: &[(Component, i64)],
    mut pieces: mpsc::Receiver<Result<Piece>>,
    replace: bool,
) -> Result<Loaded> {
    let there = shapes(tx.connection(), schemas).await?;
    if !there.is_empty() && !replace {
        return Err(Error::NotEmpty { tables: there.len() });
    }
    for shape in &there {
        tx.execute(&format!("drop table {}", shape.quoted()), &[]).await?;
    }
    prepare(tx, schemas).await?;
    for (component, version) in steps {
        for migration in component.migrations.iter().filter(|m| m.version <= *version) {
            apply(tx, schemas, component.name, component.home, migration).await?;
        }
    }
    let is_translated = head.database != name_of(tx.dialect());
    let made = shapes(tx.connection(), schemas).await?;
    let mut tables: BTreeMap<String, u64> = BTreeMap::new();
    let mut target: Option<Target> = None;
    while let Some(piece) = pieces.recv().await {
        match piece? {
            Piece::Table { name, columns } => {
                tables.insert(name.clone(), 0);
                target = Some(Target::of(tx, &made, schemas, name, columns, is_translated).await?);
            }
            Piece::Rows(rows) => {
                let Some(target) = &target else { continue };
                if let Some(count) = tables.get_mut(&target.name) {
                    *count += rows.len() as u64;
                }
                target.insert(tx, rows).await?;
            }
        }
    }
    Ok(Loaded { tables, components: head.components.clone(), is_translated })
}

fn name_of(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Sqlite => "sqlite",
        Dialect::Postgres => "postgres",
    }
}

/// The most values of one statement. SQLite looks each one's name up in a list, PostgreSQL takes 65,535.
const SQLITE_VALUES_MAX: usize = 400;
const POSTGRES_VALUES_MAX: usize = 4_000;

/// A table that rows go into.
struct Target {
    name: String,
    into: Into,
    /// The dump's columns, with the types that they have here.
    columns: Vec<(String, String)>,
}

#[derive(PartialEq)]
enum Into {
    /// The table, as statements name it.
    Table(String),
    /// The ledger of migrations is written already.
    Ledger,
    /// The other kind of database made it, in a form of its own; it is left out, and has to be empty.
    Nowhere,
}

impl Target {
    async fn of(
        tx: &mut Tx,
        made: &[Shape],
        schemas: &[String; 2],
        name: String,
        columns: Vec<(String, String)>,
        is_translated: bool,
    ) -> Result<Self> {
        if name == "hw_migration" {
            return Ok(Self { name, into: Into::Ledger, columns });
        }
        if let Some(shape) = made.iter().find(|shape| shape.name == name) {
            tx.execute(&format!("delete from {}", shape.quoted()), &[]).await?;
            let here = |column: &String| shape.columns.iter().find(|(name, _)| name == column).map(|(_, kind)| kind);
            let columns = columns
                .into_iter()
                .map(|(column, kind)| match here(&column) {
                    Some(kind) => (column, kind.clone()),
                    None => (column, kind),
                })
                .collect();
            return Ok(Self { name, into: Into::Table(shape.quoted()), columns });
        }
        if is_translated {
            return Ok(Self { name, into: Into::Nowhere, columns });
        }
        // Rows that DuckDB keeps in the catalog stand in tables that it makes as it goes.
        let schema = (tx.dialect() == Dialect::Postgres).then(|| schemas[1].clone());
        let shape = Shape { schema, name, columns };
        let list: Vec<String> = shape.columns.iter().map(|(name, kind)| format!("{} {kind}", quoted(name))).collect();
        tx.execute(&format!("create table {}({})", shape.quoted(), list.join(", ")), &[]).await?;
        Ok(Self { into: Into::Table(shape.quoted()), name: shape.name, columns: shape.columns })
    }

    async fn insert(&self, tx: &mut Tx, rows: Vec<Vec<Value>>) -> Result<()> {
        let table = match &self.into {
            Into::Table(table) => table,
            Into::Ledger => return Ok(()),
            Into::Nowhere => return Err(Error::Foreign { table: self.name.clone() }),
        };
        let width = self.columns.len();
        let dialect = tx.dialect();
        let values_max = match dialect {
            Dialect::Sqlite => SQLITE_VALUES_MAX,
            Dialect::Postgres => POSTGRES_VALUES_MAX,
        };
        let names: Vec<String> = self.columns.iter().map(|(name, _)| quoted(name)).collect();
        for some in rows.chunks((values_max / width.max(1)).max(1)) {
            let mut bound = Vec::with_capacity(some.len() * width);
            let mut places = Vec::with_capacity(some.len());
            for row in some {
                if row.len() != width {
                    let reason = format!("a row of `{}` has {} values, not {width}", self.name, row.len());
                    return Err(Error::Dump { reason });
                }
                let mut list = Vec::with_capacity(width);
                for (value, (_, kind)) in row.iter().zip(&self.columns) {
                    bound.push(fitted(value.clone(), kind, dialect));
                    list.push(place(bound.len(), kind, dialect));
                }
                places.push(format!("({})", list.join(", ")));
            }
            let sql = format!("insert into {table} ({}) values {}", names.join(", "), places.join(", "));
            tx.execute(&sql, &bound).await?;
        }
        Ok(())
    }
}

fn place(number: usize, kind: &str, dialect: Dialect) -> String {
    if dialect == Dialect::Sqlite || is_plain(kind) { format!("${number}") } else { format!("${number}::text::{kind}") }
}

/// The value as a column of that type takes it.
fn fitted(value: Value, kind: &str, dialect: Dialect) -> Value {
    match (dialect, kind, value) {
        (Dialect::Sqlite, _, value) => value,
        (_, "boolean", Value::Int(v)) => Value::Bool(v != 0),
        (_, "bigint" | "integer" | "smallint", Value::Bool(v)) => Value::Int(i64::from(v)),
        #[allow(clippy::cast_precision_loss, reason = "SQLite keeps a whole number in a column of reals as one")]
        (_, "double precision" | "real", Value::Int(v)) => Value::Real(v as f64),
        (_, "uuid", Value::Text(text)) => text.parse().map_or(Value::Text(text), Value::Uuid),
        (_, "timestamp with time zone", Value::Text(text)) => parse_time(&text).map_or(Value::Text(text), Value::Time),
        (_, _, value) => value,
    }
}

type Reading = tokio::task::JoinHandle<()>;

/// Reads the first line, and goes on with the others on a thread of its own.
async fn read(path: PathBuf, to: mpsc::Sender<Result<Piece>>) -> Result<(Head, Reading)> {
    let opened = tokio::task::spawn_blocking(move || {
        let failed = |source| Error::File { doing: "read", path: path.display().to_string(), source };
        let mut lines = BufReader::with_capacity(1 << 20, File::open(&path).map_err(failed)?);
        let mut first = String::new();
        lines.read_line(&mut first).map_err(failed)?;
        Ok::<_, Error>((head(&first)?, lines))
    });
    let (head, lines) = opened.await.map_err(|_| Error::Panicked)??;
    let reading = tokio::task::spawn_blocking(move || {
        if let Err(error) = read_all(lines, &to) {
            let _ = to.blocking_send(Err(error));
        }
    });
    Ok((head, reading))
}

fn head(line: &str) -> Result<Head> {
    let wrong = |reason: &str| Error::Dump { reason: reason.to_owned() };
    let json: Json = serde_json::from_str(line).map_err(|_| wrong("its first line is not that of a dump"))?;
    if json["headworks"] != "metadata" {
        return Err(wrong("its first line is not that of a dump"));
    }
    let format = json["format"].as_i64().unwrap_or(0);
    if format > FORMAT {
        return Err(Error::Newer { component: "backup".to_owned(), found: format, known: FORMAT });
    }
    let components = json["components"].as_object().ok_or_else(|| wrong("it does not say which tables it has"))?;
    let components = components.iter().map(|(name, v)| Some((name.clone(), v.as_i64()?))).collect::<Option<_>>();
    Ok(Head {
        database: json["database"].as_str().unwrap_or_default().to_owned(),
        components: components.ok_or_else(|| wrong("a component's version is no number"))?,
    })
}

/// How many rows travel at once.
const BATCH_ROWS: usize = 500;

fn read_all(lines: impl BufRead, to: &mpsc::Sender<Result<Piece>>) -> Result<()> {
    let mut batch: Vec<Vec<Value>> = Vec::new();
    let (mut tables, mut rows) = (0_u64, 0_u64);
    // Nobody takes the pieces any more: whoever went away has its own error.
    let gone = || Error::Closed;
    for (number, line) in lines.lines().enumerate() {
        let wrong = |what: &str| Error::Dump { reason: format!("line {}: {what}", number + 2) };
        let line = line.map_err(|e| wrong(&e.to_string()))?;
        let json: Json = serde_json::from_str(&line).map_err(|e| wrong(&e.to_string()))?;
        let Json::Object(map) = json else {
            let Json::Array(cells) = json else { return Err(wrong("it is neither a row nor a table")) };
            let row: Option<Vec<Value>> = cells.into_iter().map(cell::value).collect();
            batch.push(row.ok_or_else(|| wrong("it holds what no database gives"))?);
            rows += 1;
            if batch.len() == BATCH_ROWS {
                to.blocking_send(Ok(Piece::Rows(std::mem::take(&mut batch)))).map_err(|_| gone())?;
            }
            continue;
        };
        if !batch.is_empty() {
            to.blocking_send(Ok(Piece::Rows(std::mem::take(&mut batch)))).map_err(|_| gone())?;
        }
        if let Some(name) = map.get("table").and_then(Json::as_str) {
            let columns = map.get("columns").cloned().unwrap_or_default();
            let columns = serde_json::from_value(columns).map_err(|_| wrong("its columns cannot be read"))?;
            tables += 1;
            to.blocking_send(Ok(Piece::Table { name: name.to_owned(), columns })).map_err(|_| gone())?;
        } else {
            let count = |key| map.get(key).and_then(Json::as_u64);
            if (count("tables"), count("rows")) == (Some(tables), Some(rows)) {
                return Ok(());
            }
            return Err(wrong("the counts of tables and rows do not agree with what stands above"));
        }
    }
    Err(Error::Dump { reason: "it was cut off: its last line is missing".to_owned() })
}
