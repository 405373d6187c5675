//! The portable form of the metadata database: one text file that either database writes and either reads.
//!
//! JSON lines. The first says what the file is, `{"headworks": "metadata", "format": 1, "database": "sqlite", "components":
//! {"meta": 1}}`. Then for each table its name and columns, `{"table": "hw_run", "columns": [["id", "TEXT"], ...]}`, and its
//! rows as arrays. The last counts: `{"tables": 12, "rows": 3456}`; a file without it was cut off. Numbers and texts stand as
//! they are, times as DuckLake writes them on SQLite, UUIDs as text; `{"real": "0.1"}` and `{"hex": "00ff"}` are the rest.
//!
//! The next version of the form: raise [`FORMAT`], and go on reading the old one.

mod cell;
mod load;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::{
    Dialect, Error, Result, Row, Snapshot,
    snapshot::{Shape, quoted, send_all, shapes},
};
use cell::Cells;
pub use load::Loaded;

/// The form's version.
const FORMAT: i64 = 1;

/// How many batches of rows may wait for the disk.
const BATCHES_MAX: usize = 8;

/// What a dump holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dumped {
    /// Each table with the count of its rows.
    pub tables: BTreeMap<String, u64>,
    /// The version that each component's tables had.
    pub components: BTreeMap<String, i64>,
    /// The file's size.
    pub bytes: u64,
    /// The file's SHA-256, in hexadecimal digits.
    pub sha256: String,
}

enum Piece {
    Table(Shape),
    Rows(Vec<Row>),
}

impl Snapshot {
    /// Writes all tables of ours to a new file in the portable form, durably. Memory: a few thousand rows, whatever the size.
    ///
    /// Errors: `File` when the file is there already or the disk fails, and what the database says.
    pub async fn dump(&mut self, path: &Path) -> Result<Dumped> {
        let shapes = shapes(&mut self.connection, &self.schemas).await?;
        let mut components = BTreeMap::new();
        if shapes.iter().any(|shape| shape.name == "hw_migration") {
            let sql = "select component, max(version) from hw_migration group by component";
            for row in self.rows(sql, &[]).await? {
                components.insert(row.text(0)?, row.i64(1)?);
            }
        }
        let database = match self.dialect {
            Dialect::Sqlite => "sqlite",
            Dialect::Postgres => "postgres",
        };
        let head = json!({"headworks": "metadata", "format": FORMAT, "database": database, "components": components});
        let (to, pieces) = mpsc::channel(1);
        let (file, dialect) = (path.to_path_buf(), self.dialect);
        let writing = tokio::task::spawn_blocking(move || write(&file, &head, pieces));
        let read = read(self, shapes, dialect, to).await;
        // A disk that fails ends the reading too: its error says why.
        let (tables, bytes, sha256) = writing.await.map_err(|_| Error::Panicked)??;
        read?;
        Ok(Dumped { tables, components, bytes, sha256 })
    }
}

async fn read(snapshot: &mut Snapshot, shapes: Vec<Shape>, dialect: Dialect, to: mpsc::Sender<Piece>) -> Result<()> {
    for shape in shapes {
        let columns: Vec<String> = shape.columns.iter().map(|(name, kind)| selected(name, kind, dialect)).collect();
        let sql = format!("select {} from {}", columns.join(", "), shape.quoted());
        if to.send(Piece::Table(shape)).await.is_err() {
            return Ok(());
        }
        let (rows_to, mut rows) = mpsc::channel(BATCHES_MAX);
        let forward = async {
            while let Some(batch) = rows.recv().await {
                if to.send(Piece::Rows(batch)).await.is_err() {
                    break;
                }
            }
            rows.close();
        };
        let send = async {
            let sent = send_all(&mut snapshot.connection, &sql, &rows_to).await;
            drop(rows_to);
            sent
        };
        let (sent, ()) = tokio::join!(send, forward);
        sent?;
    }
    Ok(())
}

/// A column as it is read: types that a row cannot carry come as text.
fn selected(name: &str, kind: &str, dialect: Dialect) -> String {
    match dialect {
        Dialect::Sqlite => quoted(name),
        Dialect::Postgres if is_plain(kind) => quoted(name),
        Dialect::Postgres => format!("{}::text", quoted(name)),
    }
}

/// True for the PostgreSQL types that a [`crate::Value`] has a form for.
fn is_plain(kind: &str) -> bool {
    matches!(
        kind,
        "boolean"
            | "bigint"
            | "integer"
            | "smallint"
            | "double precision"
            | "real"
            | "bytea"
            | "uuid"
            | "timestamp with time zone"
            | "text"
            | "character varying"
    )
}

/// Counts and hashes what goes through.
struct Hashed<W> {
    inner: W,
    bytes: u64,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

type Written = (BTreeMap<String, u64>, u64, String);

fn write(path: &PathBuf, head: &serde_json::Value, pieces: mpsc::Receiver<Piece>) -> Result<Written> {
    let failed = |source| Error::File { doing: "write", path: path.display().to_string(), source };
    let file = File::options().write(true).create_new(true).open(path).map_err(failed)?;
    let out = Hashed { inner: file, bytes: 0, hash: Sha256::new() };
    write_all(BufWriter::with_capacity(1 << 20, out), head, pieces).map_err(failed)
}

fn write_all(
    mut out: BufWriter<Hashed<File>>,
    head: &serde_json::Value,
    mut pieces: mpsc::Receiver<Piece>,
) -> std::io::Result<Written> {
    writeln!(out, "{head}")?;
    let mut tables: BTreeMap<String, u64> = BTreeMap::new();
    let mut table = String::new();
    let mut line = Vec::new();
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Table(shape) => {
                writeln!(out, "{}", json!({"table": shape.name, "columns": shape.columns}))?;
                table = shape.name;
                tables.insert(table.clone(), 0);
            }
            Piece::Rows(rows) => {
                if let Some(count) = tables.get_mut(&table) {
                    *count += rows.len() as u64;
                }
                for row in rows {
                    line.clear();
                    serde_json::to_writer(&mut line, &Cells(&row.0))?;
                    line.push(b'\n');
                    out.write_all(&line)?;
                }
            }
        }
    }
    writeln!(out, "{}", json!({"tables": tables.len(), "rows": tables.values().sum::<u64>()}))?;
    let out = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    out.inner.sync_all()?;
    let digest = out.hash.finalize();
    Ok((tables, out.bytes, hex(&digest)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
