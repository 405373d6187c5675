use std::{
    fs,
    io::{self, BufWriter, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use headworks_engine::{
    QueryOptions, QueryStream,
    output::{TableLayout, write_csv, write_json, write_json_lines, write_parquet, write_table},
};

use crate::{
    app::App,
    fail::{DONE, Failure},
    output::Out,
};

/// Query the lake
///
/// Reads tables, the newest partition of a table as `<table>_latest`, and older versions with `AT (VERSION => n)`.
/// On a terminal the answer is a table, otherwise CSV.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks sql 'SELECT carrier, count(*) FROM flights WHERE ds = DATE '\\''2013-01-01'\\'' GROUP BY carrier'
  headworks sql 'SELECT * FROM company_metrics_latest' --format json
  headworks sql -f report.sql -o report.parquet
  echo 'SELECT 1' | headworks sql")]
pub(crate) struct Args {
    /// The query; `-` or nothing reads it from stdin
    #[arg(conflicts_with = "file")]
    query: Option<String>,
    /// Read the query from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How the rows are written; without it a table on a terminal, CSV otherwise, or what the ending of -o says
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write the rows to a file, which appears when it is whole
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Show at most so many rows of a table
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_rows: usize,
}

/// How the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// An aligned table, for people
    Table,
    /// CSV with a heading line
    Csv,
    /// One array of objects
    Json,
    /// One object per line
    Jsonl,
    /// Parquet
    Parquet,
}

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let query = query_text(app, &args)?;
    let format = format(&args, app.out);
    if format == Format::Parquet && args.output.is_none() && app.out.stdout_tty {
        return Err(Failure::usage(
            "Parquet does not go to a terminal",
            "name a file with -o FILE, or redirect stdout",
        )
        .into());
    }
    let stream = app.engine().await?.query(&query, QueryOptions::default()).await?;
    match &args.output {
        None => write(stream, format, args.max_rows, &mut BufWriter::with_capacity(1 << 16, io::stdout())).await?,
        Some(path) => {
            let path = app.from_here(path);
            let part = Part::beside(&path)?;
            write(stream, format, args.max_rows, &mut BufWriter::with_capacity(1 << 16, part.file()?)).await?;
            part.keep(&path)?;
        }
    }
    Ok(ExitCode::from(DONE))
}

async fn write(
    stream: QueryStream,
    format: Format,
    rows_max: usize,
    to: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match format {
        Format::Table => drop(write_table(stream, to, TableLayout { rows_max, ..TableLayout::default() }).await?),
        Format::Csv => drop(write_csv(stream, to).await?),
        Format::Json => drop(write_json(stream, to).await?),
        Format::Jsonl => drop(write_json_lines(stream, to).await?),
        Format::Parquet => drop(write_parquet(stream, to).await?),
    }
    to.flush().map_err(headworks_engine::Error::Output)?;
    Ok(())
}

fn format(args: &Args, out: Out) -> Format {
    let by_terminal = if out.stdout_tty && args.output.is_none() { Format::Table } else { Format::Csv };
    let unnamed = if out.json { Format::Json } else { by_terminal };
    args.format.or_else(|| format_of_file(args.output.as_deref()?)).unwrap_or(unnamed)
}

/// The format that a file's ending names.
fn format_of_file(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_lowercase().as_str() {
        "csv" => Some(Format::Csv),
        "json" => Some(Format::Json),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        "parquet" => Some(Format::Parquet),
        "txt" => Some(Format::Table),
        _ => None,
    }
}

fn query_text(app: &App, args: &Args) -> anyhow::Result<String> {
    let text = match (&args.query, &args.file) {
        (Some(query), _) if query != "-" => query.clone(),
        (None, Some(file)) if file.as_os_str() != "-" => {
            let path = app.from_here(file);
            match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Failure::not_found(
                        format!("there is no file `{}`", file.display()),
                        "name a file that holds a query",
                    )
                    .into());
                }
                Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", file.display())),
            }
        }
        _ => {
            if io::stdin().is_terminal() && args.query.is_none() && args.file.is_none() {
                let hint = "give one: headworks sql 'SELECT 1', -f FILE, or through stdin";
                return Err(Failure::usage("there is no query", hint).into());
            }
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).context("cannot read the query from stdin")?;
            text
        }
    };
    if text.trim().is_empty() {
        return Err(Failure::usage("the query is empty", "give one: headworks sql 'SELECT 1'").into());
    }
    Ok(text)
}

/// A file on its way: written under another name beside its place, gone again unless kept.
struct Part {
    path: PathBuf,
}

impl Part {
    fn beside(path: &Path) -> anyhow::Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(
                Failure::usage(format!("`{}` is not a file's name", path.display()), "name a file with -o").into()
            );
        };
        let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        Ok(Self { path: path.with_file_name(name) })
    }

    fn file(&self) -> anyhow::Result<fs::File> {
        fs::File::create(&self.path).with_context(|| format!("cannot write `{}`", self.path.display()))
    }

    fn keep(self, path: &Path) -> anyhow::Result<()> {
        fs::rename(&self.path, path).with_context(|| format!("cannot write `{}`", path.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After `keep` there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}
