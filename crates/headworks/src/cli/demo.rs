use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use headworks_connect::{
    ConnectionSpec,
    files::{self, FileInput, FileOptions},
    fill::{Existing, FillRequest, fill},
};
use headworks_domain::{Ds, ErrorKind, Grain, JobName, Secret};
use headworks_flow::{
    Job, Project,
    exec::{Reprocess, Request},
    url_without_password,
};
use serde_json::json;

use super::backfill;
use crate::{
    app::App,
    execute::{self, Wanted},
    fail::{DONE, FAILED, Failure},
    output::{bytes, count, duration},
};

/// Build the example project on real flights and run a year of it
///
/// Makes a project folder with a "production database" of all flights that left New York in 2013, imports and computes every
/// day of the year, and leaves a lake to query. The same command again goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks demo
  headworks demo --dir /tmp/flights --from 2013-01-01 --to 2013-01-31
  headworks demo --postgres postgres://me@localhost/shop      production in PostgreSQL")]
pub(crate) struct Args {
    /// The folder to make
    #[arg(long, value_name = "DIR", default_value = "headworks-demo")]
    dir: PathBuf,
    /// Put the production tables into this PostgreSQL database and import from there
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// End after the summary (there are no pages to serve yet, so it always does)
    #[arg(long)]
    no_serve: bool,
    /// The first day
    #[arg(long, value_name = "DAY", default_value = "2013-01-01")]
    from: Ds,
    /// The last day, included
    #[arg(long, value_name = "DAY", default_value = "2013-12-31")]
    to: Ds,
}

macro_rules! example {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/flights/", $file)))),*]
    };
}

/// The example project as it stands in the repository.
const PROJECT: &[(&str, &str)] = example![
    "README.md",
    "headworks.toml",
    "jobs/flights/flights_flat.sql",
    "jobs/flights/route_delays_7d.sql",
    "jobs/hourly/departures_daily.sql",
    "jobs/hourly/departures_hourly.sql",
    "jobs/metrics/carrier_daily.sql",
    "jobs/metrics/company_metrics.sql",
    "jobs/production/airlines.yml",
    "jobs/production/airports.yml",
    "jobs/production/flights.yml",
    "jobs/production/planes.yml",
    "jobs/production/weather.yml",
];

/// A table of the production database.
struct Production {
    table: &'static str,
    parquet: &'static [u8],
    primary_key: &'static [&'static str],
    indexes: &'static [&'static str],
}

macro_rules! production {
    ($table:literal, [$($key:literal),*], [$($index:literal),*]) => {
        Production {
            table: $table,
            parquet: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/flights/data/", $table, ".parquet")),
            primary_key: &[$($key),*],
            indexes: &[$($index),*],
        }
    };
}

const PRODUCTION: &[Production] = &[
    production!("airlines", ["carrier"], []),
    production!("airports", ["faa"], []),
    production!("planes", ["tailnum"], []),
    production!("weather", [], ["time_hour"]),
    production!("flights", [], ["time_hour"]),
];

/// The file that says that the production database is whole: a stopped demo fills it anew.
const FILLED: &str = ".headworks/production.filled";

/// Where the demo's connection leads.
const SQLITE_CONNECTION: &str = "type = \"sqlite\"                        # for PostgreSQL: type = \"postgres\", url = \"postgres://reader@host/db\"
path = \"production.db\"                 # and password_env = \"PRODUCTION_PASSWORD\" for the secret
";

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    if args.from > args.to {
        let message = format!("the days from {} to {} hold nothing", args.from, args.to);
        return Err(Failure::usage(message, "put the earlier day into --from").into());
    }
    // Accepted for the day when there are pages to serve; until then the demo always ends here.
    let _ = args.no_serve;
    let started = app.clock.now();
    let dir = app.from_here(&args.dir);
    make_project(&dir, args.postgres.as_deref())?;
    let demo = app.in_folder(&args.dir);
    fill_production(&demo, &dir, args.postgres.as_deref()).await?;
    let filled = app.clock.now();

    let project = demo.project()?.clone();
    let mut requests = backfill::requests(project.jobs.values(), args.from, args.to);
    leave_out_unready(&project, &mut requests);
    let wanted = Wanted {
        requests,
        reprocess: Reprocess::Failed,
        params: serde_json::Map::new(),
        as_of_now: true,
        wait: None,
        tasks_max: None,
    };
    let summary = execute::carry_out(&demo, wanted).await?;
    execute::tell(&demo, &summary, filled)?;
    if !summary.is_success() {
        return Ok(ExitCode::from(FAILED));
    }
    tell(&demo, &args.dir, started).await?;
    Ok(ExitCode::from(DONE))
}

/// Leaves out the days that end with hours after the last one asked for: a day in New York ends five hours into UTC's next.
fn leave_out_unready(project: &Project, requests: &mut Vec<Request>) {
    let is_hourly = |job: &Job| job.grain == Grain::Hour;
    let hours_of = |name: &JobName| project.jobs.get(name).is_some_and(|job| is_hourly(job));
    let Some(last) = requests.iter().filter(|r| hours_of(&r.job)).map(|r| r.interval.end()).max() else { return };
    requests.retain(|r| {
        let Some(job) = project.jobs.get(&r.job) else { return true };
        let reads_hours = project.upstream(job).iter().any(hours_of);
        !reads_hours || r.interval.end() <= last
    });
}

/// Writes the example's files where they are not there yet. What somebody has changed stays.
fn make_project(dir: &Path, postgres: Option<&str>) -> anyhow::Result<()> {
    if dir.exists() && !dir.join("headworks.toml").exists() && dir.read_dir().is_ok_and(|mut d| d.next().is_some()) {
        return Err(Failure::new(
            ErrorKind::Invalid,
            "DEMO_FOLDER",
            format!("`{}` is there and is no demo", dir.display()),
        )
        .hint("name another folder with --dir")
        .into());
    }
    for (file, text) in PROJECT {
        let path = dir.join(file);
        if path.exists() {
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the folder `{}`", parent.display()))?;
        }
        let text = match (postgres, *file) {
            (Some(url), "headworks.toml") => {
                text.replace(SQLITE_CONNECTION, &format!("type = \"postgres\"\nurl = {}\n", json!(url)))
            }
            _ => (*text).to_owned(),
        };
        std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// Fills the production database once.
async fn fill_production(app: &App, dir: &Path, postgres: Option<&str>) -> anyhow::Result<()> {
    let filled = dir.join(FILLED);
    if filled.exists() {
        return Ok(());
    }
    let path = dir.join("production.db");
    let spec = match postgres {
        Some(url) => ConnectionSpec::Postgres { url: Secret::new(url) },
        None => ConnectionSpec::Sqlite { path: path.clone() },
    };
    let place = postgres.map_or_else(|| path.display().to_string(), url_without_password);
    app.note(format_args!("filling the production database {place}"));
    for table in PRODUCTION {
        let input = FileInput::Bytes { name: format!("{}.parquet", table.table), bytes: table.parquet.into() };
        let reader = files::open(input, &FileOptions::default())?;
        let schema: SchemaRef = reader.schema.clone();
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let request = FillRequest {
            table: table.table.to_owned(),
            schema,
            primary_key: owned(table.primary_key),
            indexes: table.indexes.iter().map(|i| vec![(*i).to_owned()]).collect(),
            existing: Existing::Drop,
        };
        let rows = fill("production", &spec, &request, futures::stream::iter(reader).boxed()).await?;
        app.note(format_args!("  {:<9} {:>9} rows", table.table, count(rows)));
    }
    if let Some(parent) = filled.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&filled, "").with_context(|| format!("cannot write `{}`", filled.display()))
}

/// What there is now and what to try next.
async fn tell(app: &App, dir: &Path, started: chrono::DateTime<chrono::Utc>) -> anyhow::Result<()> {
    let lake = app.lake().await?;
    let (mut tables, mut partitions, mut rows, mut size) = (0_u64, 0_u64, 0_u64, 0_u64);
    for note in lake.notes().await? {
        let all = lake.partitions(note.table_id).await?;
        tables += 1;
        partitions += all.len() as u64;
        rows += all.iter().map(|p| u64::try_from(p.rows).unwrap_or(0)).sum::<u64>();
        size += all.iter().map(|p| u64::try_from(p.bytes).unwrap_or(0)).sum::<u64>();
    }
    let took = app.clock.now() - started;
    if app.out.json {
        return Ok(());
    }
    let shown = dir.display();
    app.note(format_args!(
        "
{tables} tables, {} partitions, {} rows, {} of Parquet, {} in all

  project   {shown}  (its jobs are in {shown}/jobs)
  lake      {shown}/lake
  metadata  {shown}/.headworks/metadata.db

try next
  headworks -C {shown} tables list
  headworks -C {shown} sql 'select carrier_name, flights_total, late_total from company_metrics_latest order by 2 desc'
  headworks -C {shown} jobs show company_metrics
  headworks -C {shown} tables show flights_flat        (how DuckDB reads the same lake)
  headworks -C {shown} run carrier_daily --ds 2013-07-04 --reprocess",
        count(partitions),
        count(rows),
        bytes(size),
        duration(took),
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_example_is_embedded() {
        fn walk(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
            for entry in folder.read_dir().unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(root, &path, found);
                } else {
                    found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/flights");
        let mut found = BTreeSet::new();
        walk(&root, &root, &mut found);
        found.retain(|f| !f.starts_with("data/"));
        let embedded: BTreeSet<String> = PROJECT.iter().map(|(f, _)| (*f).to_owned()).collect();
        assert_eq!(found, embedded);
    }

    #[test]
    fn the_connection_of_the_example_can_be_replaced() {
        let config = PROJECT.iter().find(|(f, _)| *f == "headworks.toml").unwrap().1;
        assert!(config.contains(SQLITE_CONNECTION));
    }
}
