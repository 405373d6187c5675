use tokio::sync::mpsc;

use crate::{Dialect, Error, Result, Row, Store, Value, connection::Connection, values};

/// One consistent look at the whole database, while other connections go on writing: what was committed before it began is
/// seen, and nothing else.
///
/// SQLite keeps its log from being cut short while one is open, PostgreSQL keeps old rows: close it soon.
pub struct Snapshot {
    pub(crate) connection: Connection,
    pub(crate) dialect: Dialect,
    pub(crate) schemas: [String; 2],
}

/// A table of ours as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// PostgreSQL: the schema that it stands in.
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
    /// Names and types, the latter as the database spells them.
    pub(crate) columns: Vec<(String, String)>,
}

impl Shape {
    /// The table's name for a statement.
    pub(crate) fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.name)),
            None => quoted(&self.name),
        }
    }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Store {
    /// Begins a consistent look at everything. Errors: as [`Store::open`].
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let mut connection = Connection::open(self.options()).await?;
        match self.dialect() {
            Dialect::Sqlite => {
                connection.execute("pragma query_only = on", &[]).await?;
                // A transaction sees the database as it is at its first read.
                connection.begin("begin").await?;
                connection.rows("select count(*) from sqlite_master", &[]).await?;
            }
            Dialect::Postgres => {
                connection.begin("begin isolation level repeatable read read only").await?;
                connection.rows("select 1::bigint", &[]).await?;
            }
        }
        let schemas = [self.options().schema.clone(), self.options().lake_schema()];
        Ok(Snapshot { connection, dialect: self.dialect(), schemas })
    }
}

impl Snapshot {
    /// Reads rows as they were when the look began.
    pub async fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>> {
        self.connection.rows(sql, values).await
    }

    /// Reads the first row, if there is one.
    pub async fn row(&mut self, sql: &str, values: &[Value]) -> Result<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// The names of the tables of ours, sorted.
    pub async fn tables(&mut self) -> Result<Vec<String>> {
        Ok(shapes(&mut self.connection, &self.schemas).await?.into_iter().map(|shape| shape.name).collect())
    }

    /// Reads every page of a SQLite file and compares indexes with their tables; PostgreSQL looks after itself.
    ///
    /// Errors: `Corrupt`.
    pub async fn check(&mut self) -> Result<()> {
        if self.dialect == Dialect::Postgres {
            return Ok(());
        }
        let said = self.rows("pragma integrity_check(3)", &[]).await?;
        let lines: Vec<String> = said.iter().map(|row| row.text(0)).collect::<Result<_>>()?;
        if lines == ["ok"] { Ok(()) } else { Err(Error::Corrupt { message: lines.join("; ") }) }
    }

    /// Ends the look.
    pub async fn close(self) {
        self.connection.close().await;
    }
}

/// The tables of ours, `hw_*` and `ducklake_*`, by name; what others keep in the same database is not ours to touch.
pub(crate) async fn shapes(connection: &mut Connection, schemas: &[String; 2]) -> Result<Vec<Shape>> {
    let rows = match connection {
        Connection::Sqlite(_) => {
            let sql = "select null, m.name, c.name, c.type from sqlite_master m join pragma_table_info(m.name) c
                where m.type = 'table' and (substr(m.name, 1, 3) = 'hw_' or substr(m.name, 1, 9) = 'ducklake_')
                order by m.name, c.cid";
            connection.rows(sql, &[]).await?
        }
        Connection::Postgres(_) | Connection::Pooled(..) => {
            let sql = "select n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)
                from pg_class c join pg_namespace n on n.oid = c.relnamespace
                join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                where n.nspname in ($1, $2) and c.relkind in ('r', 'p')
                  and (substr(c.relname::text, 1, 3) = 'hw_' or substr(c.relname::text, 1, 9) = 'ducklake_')
                order by c.relname::text, a.attnum";
            connection.rows(sql, &values![&schemas[0], &schemas[1]]).await?
        }
    };
    let mut shapes: Vec<Shape> = Vec::new();
    for row in rows {
        let (schema, name, column) = (row.opt_text(0)?, row.text(1)?, (row.text(2)?, row.text(3)?));
        match shapes.last_mut() {
            Some(last) if last.name == name && last.schema == schema => last.columns.push(column),
            _ => shapes.push(Shape { schema, name, columns: vec![column] }),
        }
    }
    Ok(shapes)
}

/// How many rows travel at once from the database to whoever wants them all.
const BATCH_ROWS: usize = 500;

/// Sends all rows of a statement on, in batches; stops early when nobody takes them any more.
pub(crate) async fn send_all(connection: &mut Connection, sql: &str, to: &mpsc::Sender<Vec<Row>>) -> Result<()> {
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    let mut rows = connection.stream(sql);
    while let Some(row) = rows.next().await? {
        batch.push(row);
        if batch.len() == BATCH_ROWS && to.send(std::mem::take(&mut batch)).await.is_err() {
            return Ok(());
        }
    }
    if !batch.is_empty() {
        // Whoever went away has its own error to tell.
        let _ = to.send(batch).await;
    }
    Ok(())
}
