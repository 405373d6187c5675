use std::{
    fmt,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::tools::python_path;

const SESSION: &str = include_str!("duckdb_session.py");

/// A DuckDB session in a process of its own, with the extensions for DuckLake, SQLite and PostgreSQL and none fetched.
///
/// Its zone is UTC. Several sessions may be open and take turns on one lake.
#[derive(Debug)]
pub struct DuckDb {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    version: String,
}

/// Why DuckDB refused a statement, or that its process is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuckError {
    /// DuckDB's class, as `TransactionException`, `CatalogException`, `IOException`; `Gone` when the process ended.
    pub class: String,
    /// Its words.
    pub message: String,
}

impl fmt::Display for DuckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}

impl std::error::Error for DuckError {}

/// What a query gave.
#[derive(Debug, Clone, PartialEq)]
pub struct DuckRows {
    /// The columns' names.
    pub columns: Vec<String>,
    /// Their types in DuckDB's words, as `DECIMAL(10,2)`.
    pub types: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Value>>,
}

/// What a query took.
#[derive(Debug, Clone, Copy)]
pub struct DuckRun {
    /// Its rows.
    pub rows: usize,
    /// Until the last row was there.
    pub wall: Duration,
    /// Of all threads of the process.
    pub cpu: Duration,
}

impl DuckDb {
    /// Starts a session on an in-memory database. Half a second.
    pub fn start() -> Result<Self> {
        Self::open(Command::new(python_path()?).args(["-u", "-c", SESSION]))
    }

    /// The same with the DuckDB that another Python has, without extensions: it reads files and attaches no lake.
    pub fn plain(python: &Path) -> Result<Self> {
        Self::open(Command::new(python).args(["-u", "-c", SESSION, "plain"]))
    }

    fn open(command: &mut Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start Python")?;
        let input = process.stdin.take();
        let mut output = BufReader::new(process.stdout.take().context("take the output")?);
        let mut greeting = String::new();
        output.read_line(&mut greeting).context("read DuckDB's greeting")?;
        if greeting.is_empty() {
            let mut said = String::new();
            process.stderr.take().context("take the errors")?.read_to_string(&mut said).ok();
            process.wait().ok();
            bail!("the DuckDB session did not start: {}\nhint: run `make setup`", said.trim_end());
        }
        let greeting: Value = serde_json::from_str(&greeting).context("read DuckDB's greeting")?;
        let version = greeting["ready"].as_str().unwrap_or_default().to_owned();
        // Nobody reads the errors from here on; with the pipe closed a late warning can't block the session.
        drop(process.stderr.take());
        Ok(Self { process, input, output, version })
    }

    /// DuckDB's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Attaches a lake.
    pub fn attach(&mut self, lake: &Attach) -> Result<(), DuckError> {
        self.run(&lake.sql())
    }

    /// Runs one or more statements.
    pub fn run(&mut self, sql: &str) -> Result<(), DuckError> {
        self.table(sql).map(drop)
    }

    /// Runs a query and returns its rows.
    ///
    /// Booleans, numbers of up to 64 bits, floats and text come as such, lists and structs as arrays and objects; decimals,
    /// hugeints, dates, times (ISO 8601, with a zone in UTC), uuids and NaN as text, bytes as hex. Times are cut to
    /// microseconds. For comparing all types exactly take [`texts`](Self::texts).
    pub fn query(&mut self, sql: &str) -> Result<Vec<Vec<Value>>, DuckError> {
        self.table(sql).map(|table| table.rows)
    }

    /// Runs a query and returns its first row's first value; null if there is none.
    pub fn value(&mut self, sql: &str) -> Result<Value, DuckError> {
        Ok(self.query(sql)?.into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or(Value::Null))
    }

    /// Runs a query and returns every value as the text that DuckDB's cast to varchar gives; `None` for null.
    pub fn texts(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, DuckError> {
        let rows = self.query(&format!("select columns(*)::varchar from ({sql})"))?;
        Ok(rows.into_iter().map(|row| row.into_iter().map(|v| v.as_str().map(str::to_owned)).collect()).collect())
    }

    /// Runs a query and returns names, types and rows.
    pub fn table(&mut self, sql: &str) -> Result<DuckRows, DuckError> {
        let reply = self
            .ask(&json!({ "sql": sql }))
            .map_err(|error| DuckError { class: "Gone".into(), message: format!("{error:#}") })?;
        let texts = |field: &str| {
            let list = reply[field].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if let Some(class) = reply["error"].as_str() {
            let message = reply["message"].as_str().unwrap_or_default();
            return Err(DuckError { class: class.to_owned(), message: message.to_owned() });
        }
        let (columns, types) = (texts("columns"), texts("types"));
        let rows = match reply["rows"].clone() {
            Value::Array(rows) => rows,
            _ => Vec::new(),
        };
        let rows = rows.into_iter().map(|row| if let Value::Array(row) = row { row } else { Vec::new() }).collect();
        Ok(DuckRows { columns, types, rows })
    }

    /// Runs a query, counts its rows as they come and tells what that took.
    pub fn measure(&mut self, sql: &str) -> Result<DuckRun> {
        let reply = self.ask(&json!({ "sql": sql, "measured": true }))?;
        if let Some(class) = reply["error"].as_str() {
            bail!("{class}: {}", reply["message"].as_str().unwrap_or_default());
        }
        let seconds = |field: &str| Duration::from_secs_f64(reply[field].as_f64().unwrap_or_default().max(0.0));
        let rows = reply["count"].as_u64().and_then(|rows| usize::try_from(rows).ok()).context("no count of rows")?;
        Ok(DuckRun { rows, wall: seconds("wall"), cpu: seconds("cpu") })
    }

    /// Kills the session's process in whatever it does, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().context("kill DuckDB")
    }

    fn ask(&mut self, question: &Value) -> Result<Value> {
        let input = self.input.as_mut().context("the session is closed")?;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        input.write_all(&line).context("write to DuckDB")?;
        let mut reply = String::new();
        self.output.read_line(&mut reply).context("read from DuckDB")?;
        if reply.is_empty() {
            bail!("the DuckDB process ended");
        }
        Ok(serde_json::from_str(&reply)?)
    }
}

impl Drop for DuckDb {
    fn drop(&mut self) {
        // It ends by itself when its input closes, with its catalog connections in good order.
        drop(self.input.take());
        self.process.wait().ok();
    }
}

/// How a lake is attached.
#[derive(Debug, Clone)]
pub struct Attach {
    catalog: String,
    name: String,
    options: Vec<String>,
}

impl Attach {
    /// A lake whose catalog is a SQLite file.
    pub fn sqlite(path: impl AsRef<Path>) -> Self {
        Self::catalog(format!("sqlite:{}", path.as_ref().display()))
    }

    /// A lake whose catalog is a PostgreSQL database, by its URL.
    pub fn postgres(url: &str) -> Self {
        Self::catalog(format!("postgres:{url}"))
    }

    fn catalog(catalog: String) -> Self {
        Self { catalog, name: "lake".to_owned(), options: Vec::new() }
    }

    /// The name it is attached as; `lake` if not said.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Where the files are. Needed for a new lake; an old one knows it.
    #[must_use]
    pub fn data_path(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        self.option(&format!("data_path '{}'", quoted(&format!("{}/", path.display()))))
    }

    /// Up to how many inserted rows stay in the catalog instead of a file; 0 for none. DuckDB's default is 10.
    #[must_use]
    pub fn inlined_rows_max(self, rows: u32) -> Self {
        self.option(&format!("data_inlining_row_limit {rows}"))
    }

    /// The schema of the PostgreSQL database that holds the catalog's tables.
    #[must_use]
    pub fn metadata_schema(self, schema: &str) -> Self {
        self.option(&format!("metadata_schema '{}'", quoted(schema)))
    }

    /// The lake as it was at a snapshot, read-only.
    #[must_use]
    pub fn at_version(self, snapshot: i64) -> Self {
        self.option(&format!("snapshot_version {snapshot}"))
    }

    /// Any other option of `ATTACH`, as `read_only`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    fn sql(&self) -> String {
        let options = if self.options.is_empty() { String::new() } else { format!(" ({})", self.options.join(", ")) };
        format!("attach 'ducklake:{}' as \"{}\"{options}", quoted(&self.catalog), self.name)
    }
}

fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TempPostgres, TempProject};

    #[test]
    fn values_come_as_json_and_errors_with_their_class() {
        let mut duck = DuckDb::start().unwrap();
        assert_eq!(duck.version(), "1.5.5");
        let table = duck
            .table(
                "select 1 as i, 1.50::decimal(10,2) as d, 170141183460469231731687303715884105727 as h, 'a\\xff'::blob as b,
                 timestamptz '2013-01-01 05:00:00+05' as z, timestamp '2013-01-01 00:00:00.5' as t, date '2013-01-01' as ds,
                 [1, null] as l, {'a': true} as s, 'nan'::double as n, null as \"null\"",
            )
            .unwrap();
        assert_eq!(table.columns, ["i", "d", "h", "b", "z", "t", "ds", "l", "s", "n", "null"]);
        assert_eq!(table.types[1], "DECIMAL(10,2)");
        let expected = json!([
            1, "1.50", "170141183460469231731687303715884105727", "61ff", "2013-01-01T00:00:00+00:00",
            "2013-01-01T00:00:00.500000", "2013-01-01", [1, null], {"a": true}, "nan", null
        ]);
        assert_eq!(Value::from(table.rows[0].clone()), expected);
        assert_eq!(duck.texts("select 1.50 as a, null as b").unwrap(), [[Some("1.50".to_owned()), None]]);

        let error = duck.run("select * from nowhere").unwrap_err();
        assert_eq!(error.class, "CatalogException");
        assert_eq!(duck.value("select 1").unwrap(), json!(1), "an error ends the statement, not the session");
    }

    fn a_lake_is_shared_by_two_sessions(lake: &Attach, data: PathBuf) {
        let mut writer = DuckDb::start().unwrap();
        let mut reader = DuckDb::start().unwrap();
        writer.attach(&lake.clone().data_path(data)).unwrap();
        writer.run("create table lake.t as select 1 as a").unwrap();
        reader.attach(lake).unwrap();
        writer.run("begin; insert into lake.t values (2)").unwrap();
        assert_eq!(reader.value("select count(*) from lake.t").unwrap(), json!(1));
        writer.run("commit").unwrap();
        assert_eq!(reader.query("select a from lake.t order by a").unwrap(), [[json!(1)], [json!(2)]]);
    }

    #[test]
    fn a_lake_on_sqlite_is_shared_by_two_sessions() {
        let project = TempProject::new().unwrap();
        a_lake_is_shared_by_two_sessions(&Attach::sqlite(project.join("metadata.db")), project.join("lake"));
    }

    #[test]
    fn a_lake_on_postgres_is_shared_by_two_sessions() {
        let project = TempProject::new().unwrap();
        let url = TempPostgres::shared().unwrap().create_database().unwrap();
        let lake = Attach::postgres(&url).metadata_schema("catalog").inlined_rows_max(0);
        a_lake_is_shared_by_two_sessions(&lake, project.join("lake"));
    }
}
