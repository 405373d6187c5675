use std::{path::PathBuf, process::ExitCode};

use headworks_store::Store;
use serde_json::json;

use crate::{
    app::App,
    backup::{self, Restored, Source, There},
    fail::DONE,
    output::{bytes, count, counted, shown},
};

/// Bring a backup back, into an empty project or database
///
/// Where to is what the settings say: the backup does not mind whether it came from SQLite or PostgreSQL. Runs that were at work
/// when it was made are taken up by whoever starts them again.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  headworks restore /mnt/backups/shop --dry-run
  headworks restore /mnt/backups/shop --to shop-again
  headworks restore /mnt/backups/shop --set metadata.url=postgres://me@host/shop     # grow from SQLite to PostgreSQL")]
pub(crate) struct Args {
    /// A backup, or a folder of backups: then the newest
    source: PathBuf,
    /// Restore into this folder; one that is new or empty gets the project's files from the backup
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Look the backup and the target through, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace a database that is not empty: what it holds is lost
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let source = Source::open(&app.from_here(&args.source))?;
    source.verify()?;
    let target = args.to.as_ref().map(|dir| app.in_folder(dir));
    let target = target.as_ref().unwrap_or(app);
    let result = carry_out(app, target, &source, &args).await;
    target.close().await;
    result
}

async fn carry_out(app: &App, target: &App, source: &Source, args: &Args) -> anyhow::Result<ExitCode> {
    if args.dry_run {
        return look(app, target, source, args).await;
    }
    if let Some(dir) = &args.to {
        backup::prepare_folder(source, &app.from_here(dir))?;
    }
    let restored = backup::restore(target, source, args.force).await?;
    tell(app, target, source, &restored)?;
    Ok(ExitCode::from(DONE))
}

/// Says what would happen, and makes nothing: not even an empty database.
async fn look(app: &App, target: &App, source: &Source, args: &Args) -> anyhow::Result<ExitCode> {
    let is_new = args.to.as_ref().is_some_and(|dir| !app.from_here(dir).join(headworks_flow::CONFIG_FILE).is_file());
    let mut there = There::default();
    let mut database = "the database that the backup's headworks.toml names".to_owned();
    if !is_new {
        let options = target.store_options(target.config()?)?;
        database = options.shown();
        if options.file().is_none_or(|file| file.exists()) {
            let store = Store::open(&options.read_only()).await?;
            there = backup::what_is_there(&store).await?;
            store.close().await;
        }
    }
    let lacking = source.lacking()?;
    let manifest = &source.manifest;
    if app.out.json {
        app.out.document(&json!({
            "dry_run": true,
            "backup": source.dir,
            "manifest": manifest,
            "lacking": lacking.iter().map(|file| &file.path).collect::<Vec<_>>(),
            "target": {"database": database, "runs": there.runs, "lake_version": there.lake_version},
        }))?;
    } else {
        app.out.line(format_args!("backup {}", source.dir.display()))?;
        app.out.line(format_args!(
            "made {} UTC on {}, by headworks {}",
            shown(manifest.created_at),
            manifest.database,
            manifest.headworks
        ))?;
        let rows: u64 = manifest.metadata.tables.values().sum();
        app.out.line(format_args!(
            "metadata {}, {}, the lake at version {}",
            counted(rows, "row"),
            bytes(manifest.metadata.bytes),
            manifest.lake_version
        ))?;
        let files = format!("{}, {}", counted(manifest.files.count, "file"), bytes(manifest.files.bytes));
        app.out.line(if manifest.files.copied {
            format!("data {files}, {} of them lacking", count(lacking.len() as u64))
        } else {
            format!("data none in it; it names {files} at {}", manifest.data_path)
        })?;
        app.out.line(format_args!("target {database}"))?;
    }
    if there != There::default() && !args.force {
        return Err(backup::not_empty(&database, there).into());
    }
    app.note("nothing was restored (--dry-run)");
    Ok(ExitCode::from(DONE))
}

/// The most missing files told one by one.
const TOLD_MAX: usize = 10;

fn tell(app: &App, target: &App, source: &Source, restored: &Restored) -> anyhow::Result<()> {
    let manifest = &source.manifest;
    let current = restored.missing.iter().filter(|file| file.is_current).count() as u64;
    if app.out.json {
        let missing: Vec<_> = restored
            .missing
            .iter()
            .map(|file| json!({"path": file.path, "table": file.table, "current": file.is_current}))
            .collect();
        app.out.document(&json!({
            "backup": source.dir,
            "project": target.root()?,
            "lake_version": manifest.lake_version,
            "rows": restored.rows,
            "copied": {"files": restored.copied.0, "bytes": restored.copied.1},
            "missing": missing,
            "left_behind": restored.left_behind,
            "translated": restored.is_translated,
            "take_over_needed": !restored.is_own,
        }))?;
    } else {
        app.out.line(target.root()?.display())?;
    }
    app.note(format_args!(
        "restored as of {} UTC, version {}: {} of metadata{}, {} copied, {}",
        shown(manifest.created_at),
        manifest.lake_version,
        counted(restored.rows, "row"),
        if restored.is_translated { " from another kind of database" } else { "" },
        counted(restored.copied.0, "data file"),
        bytes(restored.copied.1)
    ));
    if restored.left_behind > 0 {
        let runs = counted(restored.left_behind, "run");
        app.note(format_args!("{runs} at work then count as abandoned: headworks runs list shows them, the commands that started them go on with them"));
    }
    if !restored.missing.is_empty() {
        app.note(format_args!(
            "warning: {} that the lake names are not there, {} of them of the newest versions:",
            counted(restored.missing.len() as u64, "data file"),
            count(current)
        ));
        let newest_first = restored.missing.iter().filter(|f| f.is_current);
        for file in newest_first.chain(restored.missing.iter().filter(|f| !f.is_current)).take(TOLD_MAX) {
            app.note(format_args!("  {} (table {})", file.path, file.table));
        }
        app.note("hint: put the files back there, or run the jobs of these tables again");
    }
    if !restored.is_own {
        app.note(
            "clean-up waits: when this database is the one to go on with, and no other uses these files, say headworks gc --take-over",
        );
    }
    Ok(())
}
