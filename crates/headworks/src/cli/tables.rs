use std::{process::ExitCode, sync::Arc};

use headworks_domain::{Ds, EnvironmentName, PartitionKey};
use headworks_lake::{At, Column, Lake, PartitionInfo, PartitionVersion, Table as LakeTable, TableNote};
use headworks_store::Dialect;
use serde_json::{Value, json};

use super::adopt;
use crate::{
    app::App,
    fail::{DONE, Failure},
    output::{Align, Style, Table, bytes, count, counted, shown, styled},
};

/// List, show, restore and adopt tables
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(ListArgs),
    Show(ShowArgs),
    History(HistoryArgs),
    Restore(RestoreArgs),
    Adopt(adopt::Args),
}

/// List the tables of the lake
///
/// In an environment besides production it lists production's, too, as far as the environment has none of the same name.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {}

/// Show one table: columns, newest partitions, who makes it, how to read it
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks tables show company_metrics")]
pub(crate) struct ShowArgs {
    /// The table
    table: String,
    /// Show at most so many partitions, the newest ones
    #[arg(long, value_name = "N", default_value_t = 10)]
    partitions: usize,
}

/// List the published versions of a table's partitions, newest first
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks tables history company_metrics
  headworks tables history company_metrics --ds 2018-03-01")]
pub(crate) struct HistoryArgs {
    /// The table
    table: String,
    /// Versions of this day only
    #[arg(long, value_name = "DAY")]
    ds: Option<Ds>,
    /// List at most so many versions
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Publish an older version of a partition again
///
/// The older files are copied: the version that is replaced stays in the history like any other.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks tables history company_metrics --ds 2018-03-01
  headworks tables restore company_metrics --ds 2018-03-01 --version 41")]
pub(crate) struct RestoreArgs {
    /// The table
    table: String,
    /// The day
    #[arg(long, value_name = "DAY")]
    ds: Ds,
    /// The hour, for tables with hours, UTC
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..24))]
    hour: Option<u8>,
    /// The event type, for tables with event types
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,
    /// The version, as the history lists it
    #[arg(long, value_name = "N")]
    version: i64,
}

pub(crate) async fn run(app: &App, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(_) => list(app).await,
        Command::Show(args) => show(app, args).await,
        Command::History(args) => history(app, args).await,
        Command::Restore(args) => restore(app, args).await,
        Command::Adopt(args) => adopt::run(app, args).await,
    }
}

/// The lake, with what other programs did to it since we last looked.
async fn lake_now(app: &App) -> anyhow::Result<&Lake> {
    let lake = app.lake().await?;
    lake.catch_up().await?;
    Ok(lake)
}

/// The lake that a table is read from: the environment's own, or production's when only that has the table.
async fn lake_of<'a>(app: &'a App, table: &str) -> anyhow::Result<&'a Lake> {
    lake_now(app).await?;
    Ok(app.lakes().await?.reading(table).await?)
}

/// The environment that a lake is of, in an environment besides production.
fn environment_of<'a>(app: &'a App, lake: &Lake) -> anyhow::Result<&'a str> {
    Ok(if lake.is_read_only() { EnvironmentName::PRODUCTION } else { app.env_name()?.as_str() })
}

async fn list(app: &App) -> anyhow::Result<ExitCode> {
    let own = lake_now(app).await?;
    let mut headings = vec![
        ("table", Align::Left),
        ("kind", Align::Left),
        ("owner", Align::Left),
        ("job", Align::Left),
        ("partitions", Align::Right),
        ("newest", Align::Left),
        ("rows", Align::Right),
        ("bytes", Align::Right),
    ];
    let is_production = app.env_name()?.is_production();
    if !is_production {
        headings.push(("from", Align::Left));
    }
    let mut notes: Vec<(TableNote, &Lake)> = own.notes().await?.into_iter().map(|note| (note, own)).collect();
    if let Some(production) = app.production().await? {
        for note in production.notes().await? {
            if own.table(&note.name, At::Now).await?.is_none() {
                notes.push((note, production));
            }
        }
        notes.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    }
    let mut table = Table::new(headings);
    let mut documents: Vec<Value> = Vec::new();
    for (note, lake) in notes {
        let partitions = lake.partitions(note.table_id).await?;
        let newest = partitions.last().map(|p| p.key.to_string());
        let sums = Sums::of(&partitions);
        documents.push(json!({
            "table": note.name,
            "kind": note.kind,
            "owner": note.owner,
            "job": note.job,
            "partitions": partitions.len(),
            "newest": newest,
            "rows": sums.rows,
            "bytes": sums.bytes,
            "environment": environment_of(app, lake)?,
        }));
        let mut row = vec![
            note.name,
            note.kind,
            note.owner.unwrap_or_default(),
            note.job.unwrap_or_default(),
            count(partitions.len() as u64),
            newest.unwrap_or_default(),
            count(sums.rows),
            bytes(sums.bytes),
        ];
        if !is_production {
            row.push(environment_of(app, lake)?.to_owned());
        }
        table.row(row);
    }
    if app.out.json {
        app.out.document(&json!({"tables": documents}))?;
    } else if table.is_empty() {
        app.note("the lake has no tables yet: headworks run JOB makes one, headworks tables adopt takes files in");
    } else {
        app.out.table(&table)?;
    }
    Ok(ExitCode::from(DONE))
}

struct Sums {
    rows: i64,
    bytes: u64,
    files: i64,
}

impl Sums {
    fn of(partitions: &[PartitionInfo]) -> Self {
        Self {
            rows: partitions.iter().map(|p| p.rows).sum(),
            bytes: partitions.iter().map(|p| u64::try_from(p.bytes).unwrap_or(0)).sum(),
            files: partitions.iter().map(|p| p.files).sum(),
        }
    }
}

async fn show(app: &App, args: ShowArgs) -> anyhow::Result<ExitCode> {
    let lake = lake_of(app, &args.table).await?;
    let table = lake.expect_table(&args.table, At::Now).await?;
    let note = lake.notes().await?.into_iter().find(|n| n.table_id == table.id);
    let partitions = lake.partitions(table.id).await?;
    let shown = &partitions[partitions.len().saturating_sub(args.partitions)..];
    if app.out.json {
        let mut document = table_json(lake, &table, note.as_ref(), &partitions, shown);
        document["environment"] = json!(environment_of(app, lake)?);
        app.out.document(&document)?;
    } else {
        show_text(app, lake, &table, note.as_ref(), &partitions, shown)?;
    }
    Ok(ExitCode::from(DONE))
}

fn show_text(
    app: &App,
    lake: &Lake,
    table: &LakeTable,
    note: Option<&TableNote>,
    all: &[PartitionInfo],
    newest: &[PartitionInfo],
) -> anyhow::Result<()> {
    let out = app.out;
    let line = |name: &str, value: &str| {
        out.line(format_args!("{} {value}", styled(out.stdout_color, Style::Bold, &format!("{name:11}"))))
    };
    line("table", &table.name)?;
    if !app.env_name()?.is_production() {
        line("from", environment_of(app, lake)?)?;
    }
    if let Some(comment) = &table.comment {
        line("description", comment)?;
    }
    if let Some(note) = note {
        line("kind", &note.kind)?;
        line("owner", note.owner.as_deref().unwrap_or("nobody"))?;
        line("made by", note.job.as_deref().map(|j| format!("job {j}")).as_deref().unwrap_or("no job"))?;
    }
    line("files", &format!("{}{}", lake.storage().data_path(), table.path))?;
    let sums = Sums::of(all);
    let size = format!(
        "{} by {}, {}, {} in {}",
        counted(all.len() as u64, "partition"),
        table.partition_columns().join(", "),
        counted(u64::try_from(sums.rows).unwrap_or(0), "row"),
        bytes(sums.bytes),
        counted(u64::try_from(sums.files).unwrap_or(0), "file")
    );
    line("size", &size)?;
    out.line("")?;
    let mut columns = Table::new([("column", Align::Left), ("type", Align::Left), ("description", Align::Left)]);
    for column in &table.columns {
        let words = type_words(column) + if column.nullable { "" } else { " not null" };
        columns.row([column.name.clone(), words, column.comment.clone().unwrap_or_default()]);
    }
    out.table(&columns)?;
    if !newest.is_empty() {
        out.line("")?;
        let mut rows = Table::new([
            ("partition", Align::Left),
            ("version", Align::Right),
            ("rows", Align::Right),
            ("bytes", Align::Right),
            ("published (UTC)", Align::Left),
        ]);
        for partition in newest {
            rows.row([
                partition.key.to_string(),
                partition.version.to_string(),
                count(partition.rows),
                bytes(u64::try_from(partition.bytes).unwrap_or(0)),
                shown(partition.published_at),
            ]);
        }
        out.table(&rows)?;
    }
    out.line("")?;
    line("here", &format!("headworks sql 'SELECT * FROM {}_latest LIMIT 10'", table.name))?;
    for (i, text) in duckdb(lake, &table.name).iter().enumerate() {
        line(if i == 0 { "in DuckDB" } else { "" }, text)?;
    }
    Ok(())
}

/// The statements that read a table with DuckDB and nothing of ours.
fn duckdb(lake: &Lake, table: &str) -> Vec<String> {
    let options = lake.store().options();
    let quoted = |text: &str| text.replace('\'', "''");
    let attach = match lake.store().dialect() {
        Dialect::Sqlite => {
            let file = lake.store().file().map(|f| f.display().to_string()).unwrap_or_default();
            format!("ATTACH 'ducklake:sqlite:{}' AS lake (READ_ONLY);", quoted(&file))
        }
        Dialect::Postgres => format!(
            "ATTACH 'ducklake:postgres:{}' AS lake (METADATA_SCHEMA '{}', READ_ONLY);",
            quoted(&options.shown()),
            quoted(&options.lake_schema())
        ),
    };
    vec![attach, format!("SELECT * FROM lake.\"{}\" LIMIT 10;", table.replace('"', "\"\""))]
}

fn table_json(
    lake: &Lake,
    table: &LakeTable,
    note: Option<&TableNote>,
    all: &[PartitionInfo],
    newest: &[PartitionInfo],
) -> Value {
    let sums = Sums::of(all);
    let columns: Vec<Value> = table
        .columns
        .iter()
        .map(|c| json!({"column": c.name, "type": type_words(c), "nullable": c.nullable, "description": c.comment}))
        .collect();
    json!({
        "table": table.name,
        "description": table.comment,
        "kind": note.map(|n| &n.kind),
        "owner": note.and_then(|n| n.owner.as_ref()),
        "job": note.and_then(|n| n.job.as_ref()),
        "files_at": format!("{}{}", lake.storage().data_path(), table.path),
        "partition_by": table.partition_columns(),
        "columns": columns,
        "partition_count": all.len(),
        "rows": sums.rows,
        "bytes": sums.bytes,
        "files": sums.files,
        "partitions": newest.iter().map(partition_json).collect::<Vec<_>>(),
        "duckdb": duckdb(lake, &table.name),
    })
}

fn partition_json(partition: &PartitionInfo) -> Value {
    json!({
        "partition": partition.key,
        "version": partition.version,
        "rows": partition.rows,
        "bytes": partition.bytes,
        "files": partition.files,
        "published_at": partition.published_at,
    })
}

/// A column's type in the words of SQL.
pub(crate) fn type_words(column: &Column) -> String {
    let child = |n: usize| column.children.get(n).map(type_words).unwrap_or_default();
    match column.ducklake_type.as_str() {
        "int8" => "tinyint".to_owned(),
        "int16" => "smallint".to_owned(),
        "int32" => "integer".to_owned(),
        "int64" => "bigint".to_owned(),
        "uint8" => "utinyint".to_owned(),
        "uint16" => "usmallint".to_owned(),
        "uint32" => "uinteger".to_owned(),
        "uint64" => "ubigint".to_owned(),
        "float32" => "real".to_owned(),
        "float64" => "double".to_owned(),
        "list" => format!("{}[]", child(0)),
        "map" => format!("map({}, {})", child(0), child(1)),
        "struct" => {
            let fields: Vec<String> = column.children.iter().map(|c| format!("{} {}", c.name, type_words(c))).collect();
            format!("struct({})", fields.join(", "))
        }
        other => other.to_owned(),
    }
}

async fn history(app: &App, args: HistoryArgs) -> anyhow::Result<ExitCode> {
    let lake = lake_of(app, &args.table).await?;
    let table = lake.expect_table(&args.table, At::Now).await?;
    let versions = match args.ds {
        None => lake.history(table.id, None, args.limit).await?,
        // A day of a table with hours has many partitions.
        Some(ds) => {
            let all = lake.history(table.id, None, i32::MAX as usize).await?;
            all.into_iter().filter(|v| v.info.key.ds == ds).take(args.limit).collect()
        }
    };
    if app.out.json {
        let versions: Vec<Value> = versions.iter().map(version_json).collect();
        app.out.document(&json!({"table": table.name, "versions": versions}))?;
        return Ok(ExitCode::from(DONE));
    }
    let mut rows = Table::new([
        ("version", Align::Right),
        ("partition", Align::Left),
        ("published (UTC)", Align::Left),
        ("what", Align::Left),
        ("rows", Align::Right),
        ("bytes", Align::Right),
        ("run", Align::Left),
        ("job version", Align::Left),
    ]);
    for version in &versions {
        rows.row([
            version.info.version.to_string(),
            version.info.key.to_string(),
            shown(version.info.published_at),
            version.action.clone() + if version.as_of_now { ", as of then" } else { "" },
            count(version.info.rows),
            bytes(u64::try_from(version.info.bytes).unwrap_or(0)),
            version.run_id.clone().unwrap_or_default(),
            version.job_version.clone().unwrap_or_default(),
        ]);
    }
    if rows.is_empty() {
        app.note("no such versions");
    } else {
        app.out.table(&rows)?;
        if versions.len() == args.limit {
            app.note(format_args!("the newest {}; more with --limit", args.limit));
        }
    }
    Ok(ExitCode::from(DONE))
}

fn version_json(version: &PartitionVersion) -> Value {
    let mut document = partition_json(&version.info);
    document["action"] = json!(version.action);
    document["as_of_now"] = json!(version.as_of_now);
    document["job"] = json!(version.job);
    document["run_id"] = json!(version.run_id);
    document["job_version"] = json!(version.job_version);
    document
}

async fn restore(app: &App, args: RestoreArgs) -> anyhow::Result<ExitCode> {
    let lake = lake_now(app).await?;
    let table: Arc<LakeTable> = lake.expect_table(&args.table, At::Now).await?;
    let key = PartitionKey { ds: args.ds, hour: args.hour, event_type: args.event_type };
    if key.columns() != table.partition_columns() {
        let columns = table.partition_columns().join(", ");
        let hint = "name each: --ds, --hour, --event-type";
        return Err(Failure::usage(format!("table `{}` has partitions by {columns}", table.name), hint).into());
    }
    let version = lake.restore(&table.name, &key, args.version).await?;
    if app.out.json {
        app.out
            .document(&json!({"table": table.name, "partition": key, "restored": args.version, "version": version}))?;
    } else {
        app.out
            .note(format_args!("{} {key} is again as in version {}, as version {version}", table.name, args.version));
    }
    Ok(ExitCode::from(DONE))
}
