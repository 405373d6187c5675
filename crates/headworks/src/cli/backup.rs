use std::{path::PathBuf, process::ExitCode};

use serde_json::json;

use crate::{
    app::App,
    backup::{self, Made},
    fail::{DONE, FAILED},
    output::{bytes, count, counted, shown},
};

/// Back the project up into a folder, while everything runs
///
/// Metadata (runs, tasks, the lake's catalog) and the project's files; with --data the tables' Parquet files too, each copied
/// once, whatever the count of backups. Restore with headworks restore, into SQLite or PostgreSQL.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks backup /mnt/backups/shop --data
  headworks backup /mnt/backups/shop --data --keep 14

Without --data the backup is of use while the data files live on: retention.backups says how long the files that it names are
kept after the lake has forgotten them.")]
pub(crate) struct Args {
    /// The folder that holds this project's backups; each backup gets a folder in it
    dest: PathBuf,
    /// Copy the tables' data files that are not there yet
    #[arg(long)]
    data: bool,
    /// Afterwards remove all but the newest N backups, and data files that only the others named
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
}

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let dest = app.from_here(&args.dest);
    let made = backup::make(app, &dest, args.data).await?;
    let pruned = args.keep.map(|keep| backup::prune(&dest, keep as usize, app.clock.now())).transpose()?;
    tell(app, &made, pruned)?;
    Ok(ExitCode::from(if made.missing.is_empty() { DONE } else { FAILED }))
}

fn tell(app: &App, made: &Made, pruned: Option<(u64, u64)>) -> anyhow::Result<()> {
    let manifest = &made.manifest;
    let rows: u64 = manifest.metadata.tables.values().sum();
    if app.out.json {
        let missing: Vec<&str> = made.missing.iter().map(|file| file.path.as_str()).collect();
        app.out.document(&json!({
            "backup": made.dir,
            "manifest": manifest,
            "rows": rows,
            "copied": {"files": made.copied.0, "bytes": made.copied.1},
            "missing": missing,
            "outside": made.outside,
            "removed": pruned.map(|(backups, files)| json!({"backups": backups, "files": files})),
        }))?;
    } else {
        app.out.line(made.dir.display())?;
    }
    app.note(format_args!(
        "backed up as of {} UTC, version {}: {} of metadata, {}",
        shown(manifest.created_at),
        manifest.lake_version,
        counted(rows, "row"),
        bytes(manifest.metadata.bytes)
    ));
    let files = &manifest.files;
    app.note(if files.copied {
        format!(
            "data: {}, {}; {} of them copied now, {}",
            counted(files.count, "file"),
            bytes(files.bytes),
            count(made.copied.0),
            bytes(made.copied.1)
        )
    } else {
        format!(
            "data: none; the {} that it names stay at {} (--data copies them)",
            counted(files.count, "file"),
            manifest.data_path
        )
    });
    if made.outside > 0 {
        let files = counted(made.outside as u64, "file");
        app.note(format_args!("warning: {files} of other programs lie outside the data path and are in no backup"));
    }
    if let Some((backups, files)) = pruned {
        app.note(format_args!("{} and {} removed", counted(backups, "older backup"), counted(files, "data file")));
    }
    if let Some(first) = made.missing.first() {
        let files = counted(made.missing.len() as u64, "data file");
        app.out.complain(format_args!(
            "error: {files} that the lake names are gone or cut off, as `{}` of table `{}`\n\
             hint: the rest is backed up; run their jobs again with headworks backfill --reprocess all, or restore an older backup",
            first.path, first.table
        ));
    }
    Ok(())
}
