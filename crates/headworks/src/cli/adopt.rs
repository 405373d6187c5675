use std::{
    io::{BufRead, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use headworks_domain::{ErrorKind, TableName};
use headworks_engine::sql_type_name;
use headworks_lake::{Action, At, Lake, PublishInfo, Published, StageRequest, TableSpec};
use serde_json::{Value, json};

use crate::{
    adopted::{self, Found, Options},
    app::App,
    fail::{DONE, Failure},
    output::{Align, Table, bytes, count, counted},
};

/// Take in Parquet, ORC or CSV files that others left
///
/// Shows first what it found: the files, the columns, the rows of each partition. Folders like `ds=2018-02-20/` name
/// partitions; otherwise the days of the column of `--partition-by` do. The files themselves stay as they are.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks tables adopt old/deliveries --table deliveries
  headworks tables adopt export.csv --table prices --partition-by day --yes")]
pub(crate) struct Args {
    /// A file, or a folder with files
    path: PathBuf,
    /// The table to make, or to add to
    #[arg(long)]
    table: TableName,
    /// The column whose days become the partitions
    #[arg(long, value_name = "COLUMN", default_value = "ds")]
    partition_by: String,
    /// Do it, without asking
    #[arg(short, long)]
    yes: bool,
}

/// The most partitions that are shown one by one.
const PARTITIONS_SHOWN: usize = 10;

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let options =
        Options { path: app.from_here(&args.path), shown: args.path.clone(), partition_by: args.partition_by };
    let lake = app.lake().await?;
    check_table(app, lake, &args.table).await?;
    let found = adopted::look(options).await?;
    let keys: Vec<_> = found.partitions.keys().cloned().collect();
    let replaced = lake.published(args.table.as_str(), &keys).await?.len();
    if !app.out.json {
        show(app, &args.table, &found, replaced)?;
    }
    let yes = args.yes || (!app.out.json && asked(app)?);
    if !yes {
        if app.out.json {
            app.out.document(&document(&args.table, &found, replaced, None))?;
        } else {
            app.note("nothing was taken in: --yes does it");
        }
        return Ok(ExitCode::from(DONE));
    }
    let published = take(lake, &args.table, &found).await?;
    if app.out.json {
        app.out.document(&document(&args.table, &found, replaced, Some(&published)))?;
    } else {
        app.note(format_args!(
            "{} taken into {}, version {}",
            counted(found.rows(), "row"),
            args.table,
            published.version
        ));
    }
    Ok(ExitCode::from(DONE))
}

/// Refuses a table that a job writes: its next run would replace what is taken in.
async fn check_table(app: &App, lake: &Lake, table: &TableName) -> anyhow::Result<()> {
    let note = lake.notes().await?.into_iter().find(|n| n.name == table.as_str()).and_then(|n| n.job);
    let job = app.loaded()?.0.maker(table.as_str()).map(|job| job.name.to_string()).or(note);
    match job {
        Some(job) => Err(Failure::new(
            ErrorKind::Invalid,
            "ADOPT_TABLE_OF_JOB",
            format!("table `{table}` is made by job `{job}`"),
        )
        .hint("take the files into a table of another name")
        .into()),
        None => Ok(()),
    }
}

fn asked(app: &App) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() || !app.out.stderr_tty {
        return Ok(false);
    }
    app.out.complain("take them in? [y/N]");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

async fn take(lake: &Lake, table: &TableName, found: &Found) -> anyhow::Result<Published> {
    let spec = TableSpec {
        name: table.clone(),
        kind: "adopted".to_owned(),
        columns: Vec::new(),
        partition_by: found.partition_columns().into_iter().map(str::to_owned).collect(),
        comment: lake.table(table.as_str(), At::Now).await?.and_then(|t| t.comment.clone()),
        owner: None,
        job: None,
        retention_secs: None,
    };
    // No run owns these files, so no fence stands in their names.
    let request = StageRequest { spec, keys: found.partitions.keys().cloned().collect(), attempt: 0 };
    let staged = lake.stage(request, found.rows_stream()).await?;
    let info = PublishInfo {
        job: "adopt".to_owned(),
        run_id: format!("adopt-{}", uuid::Uuid::now_v7()),
        attempt: 0,
        job_version: String::new(),
        inputs: Vec::new(),
        as_of_now: false,
        action: Action::Adopt,
    };
    let lake_there = lake.clone();
    Ok(lake.store().write(move |tx| Box::pin(async move { lake_there.publish(tx, &staged, &info).await })).await?)
}

fn show(app: &App, table: &TableName, found: &Found, replaced: usize) -> anyhow::Result<()> {
    let out = app.out;
    let files = counted(found.files.len() as u64, "file");
    out.line(format_args!("{files}, {}, {} for table {table}", bytes(found.bytes()), counted(found.rows(), "row")))?;
    for file in found.files.iter().take(PARTITIONS_SHOWN) {
        out.line(format_args!("  {} ({}, {})", file.shown, file.format, bytes(file.bytes)))?;
    }
    if found.files.len() > PARTITIONS_SHOWN {
        out.line(format_args!("  and {} more", found.files.len() - PARTITIONS_SHOWN))?;
    }
    out.line("")?;
    let mut columns = Table::new([("column", Align::Left), ("type", Align::Left)]);
    for field in found.schema.fields() {
        columns.row([field.name().clone(), sql_type_name(field.data_type())]);
    }
    out.table(&columns)?;
    out.line("")?;
    let mut partitions = Table::new([("partition", Align::Left), ("rows", Align::Right)]);
    for (key, rows) in found.partitions.iter().take(PARTITIONS_SHOWN) {
        partitions.row([key.to_string(), count(*rows)]);
    }
    out.table(&partitions)?;
    if found.partitions.len() > PARTITIONS_SHOWN {
        let last = found.partitions.keys().next_back().map(ToString::to_string).unwrap_or_default();
        out.line(format_args!("and {} more, up to {last}", count((found.partitions.len() - PARTITIONS_SHOWN) as u64)))?;
    }
    if replaced > 0 {
        out.line(format_args!("replaces {} published already", counted(replaced as u64, "partition")))?;
    }
    Ok(())
}

fn document(table: &TableName, found: &Found, replaced: usize, published: Option<&Published>) -> Value {
    let files: Vec<Value> =
        found.files.iter().map(|f| json!({"file": f.shown, "format": f.format, "bytes": f.bytes})).collect();
    let columns: Vec<Value> = found
        .schema
        .fields()
        .iter()
        .map(|f| json!({"column": f.name(), "type": sql_type_name(f.data_type())}))
        .collect();
    let partitions: Vec<Value> =
        found.partitions.iter().map(|(key, rows)| json!({"partition": key, "rows": rows})).collect();
    json!({
        "table": table,
        "files": files,
        "columns": columns,
        "partitions": partitions,
        "rows": found.rows(),
        "replaces": replaced,
        "adopted": published.is_some(),
        "version": published.map(|p| p.version),
    })
}
