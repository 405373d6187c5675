use std::{
    fs,
    io::{self, BufWriter, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use headworks_domain::{Fault, Place, Problem, Severity, UserName};
use headworks_engine::{
    Caller, Error, Position, QueryOptions, QueryStream,
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
    /// Read what this user may read, to see how grants work out
    #[arg(long = "as", value_name = "USER")]
    user: Option<UserName>,
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
    let format = format(&args, app.out)?;
    if format == Format::Parquet && args.output.is_none() && app.out.stdout_tty {
        return Err(Failure::usage(
            "Parquet does not go to a terminal",
            "name a file with -o FILE, or redirect stdout",
        )
        .into());
    }
    let mut options = QueryOptions::default();
    if let Some(user) = &args.user {
        options.caller = caller(app, user).await?;
    }
    let asked = app.engine().await?.query(&query, options).await;
    let stream = asked.map_err(|error| at_its_place(app.out, &args, &query, error))?;
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

/// A user as the engine knows them.
async fn caller(app: &App, user: &UserName) -> anyhow::Result<Caller> {
    let account = app.accounts().await?.account(user.as_str()).await.map_err(|error| match error {
        headworks_meta::Error::SignIn => {
            let hint = "headworks users list shows all users";
            anyhow::Error::from(Failure::not_found(format!("no user `{user}` may sign in"), hint))
        }
        other => other.into(),
    })?;
    let role = Some(account.role.to_string());
    Ok(Caller { user: account.name.to_string(), role, access: account.access, application: None })
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

/// The longest line of a query that is shown with an error.
const LINE_CHARS_MAX: usize = 200;

/// An error with the line of the query where it is.
fn at_its_place(out: Out, args: &Args, query: &str, error: Error) -> anyhow::Error {
    let Some(Position { line, column }) = error.position() else { return error.into() };
    let text = query.lines().nth(line - 1).filter(|text| text.chars().count() <= LINE_CHARS_MAX).unwrap_or_default();
    let file = args.file.as_ref().filter(|f| f.as_os_str() != "-").map(|f| f.display().to_string());
    let problem = Problem {
        severity: Severity::Error,
        place: Place { file: file.unwrap_or_else(|| "query".to_owned()), line, column },
        text: text.to_owned(),
        message: error.to_string(),
        hint: None,
    };
    let shown = problem.to_string();
    let message = if out.json { error.to_string() } else { shown.trim_start_matches("error: ").to_owned() };
    let mut failure = Failure::new(error.kind(), error.code(), message);
    if let Some(hint) = error.hint() {
        failure = failure.hint(hint);
    }
    if out.json { failure.problems(vec![problem]).into() } else { failure.into() }
}

fn format(args: &Args, out: Out) -> Result<Format, Failure> {
    let by_terminal = if out.stdout_tty && args.output.is_none() { Format::Table } else { Format::Csv };
    let unnamed = if out.json { Format::Json } else { by_terminal };
    match (args.format, args.output.as_deref()) {
        (Some(format), _) => Ok(format),
        (None, Some(file)) => Ok(format_of_file(file)?.unwrap_or(unnamed)),
        (None, None) => Ok(unnamed),
    }
}

/// The format that a file's ending names; none without one. Errors: an ending of something else, as `.xlsx`.
fn format_of_file(path: &Path) -> Result<Option<Format>, Failure> {
    let Some(ending) = path.extension().map(|e| e.to_string_lossy().to_lowercase()) else { return Ok(None) };
    match ending.as_str() {
        "csv" => Ok(Some(Format::Csv)),
        "json" => Ok(Some(Format::Json)),
        "jsonl" | "ndjson" => Ok(Some(Format::Jsonl)),
        "parquet" => Ok(Some(Format::Parquet)),
        "txt" => Ok(Some(Format::Table)),
        _ => Err(Failure::usage(
            format!("`.{ending}` is no format that rows are written in"),
            "end the file with .csv, .json, .jsonl, .parquet or .txt, or name its format with --format",
        )),
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
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
            return Err(Failure::not_found(
                format!("there is no folder `{}` to write into", folder.display()),
                "make it first, or name another place with -o",
            )
            .into());
        }
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
