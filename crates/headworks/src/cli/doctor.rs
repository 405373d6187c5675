use std::{process::ExitCode, time::Instant};

use anyhow::Context;
use headworks_domain::{EnvironmentName, ErrorKind, Fault, Severity};
use headworks_flow::exec::{RunFilter, RunRow, RunStore};
use headworks_lake::Storage;
use headworks_meta::Role;
use headworks_store::{Dialect, Store};
use object_store::{ObjectStoreExt, PutMode, path::Path};
use serde::Serialize;
use serde_json::json;

use crate::{
    app::App,
    fail::{self, DONE, FAILED, Failure},
    output::{Style, ago, bytes, count, counted, styled},
    upkeep,
};

/// Check that everything the project needs is in order
///
/// Each line says ok, warn or fail, and what to do. Exit code 1 when one fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say that the project has a new name: its database remembers the old one
    #[arg(long)]
    renamed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    Warn,
    Fail,
}

/// What one look found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    message: String,
    /// The next step; there unless the state is ok.
    hint: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, state: State::Ok, message: message.into(), hint: None }
    }

    fn warn(check: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, state: State::Warn, message: message.into(), hint: Some(hint.into()) }
    }

    fn fail(check: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check, state: State::Fail, message: message.into(), hint: Some(hint.into()) }
    }

    fn of(check: &'static str, error: &anyhow::Error) -> Self {
        let hint = fail::fault(error).and_then(Fault::hint);
        Self { check, state: State::Fail, message: fail::message(error), hint }
    }
}

/// Disks with less than that left are a warning.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Clocks that are apart by more are a warning.
const CLOCK_MS_MAX: i64 = 2_000;
/// How many of the newest versions' files are looked for.
const FILES_LOOKED_AT: usize = 200;
/// A commit that takes longer is a warning: each run waits for one.
const COMMIT_MS_MAX: u128 = 200;

pub(crate) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    if args.renamed {
        app.rename_project().await?;
    }
    let mut findings = vec![project(app)];
    match app.store().await {
        Ok(store) => {
            findings.push(database(store).await);
            findings.push(commit(store).await);
            findings.push(clock(app, store).await);
            findings.extend(runs(app).await);
            findings.push(processes(app).await);
        }
        Err(error) => findings.push(Finding::of("metadata database", &error)),
    }
    findings.push(lake(app).await);
    findings.extend(production(app).await);
    findings.push(files(app).await);
    findings.push(removable(app).await);
    findings.push(backup(app).await);
    findings.push(logs(app));
    findings.extend(disk(app));
    let failed = findings.iter().any(|f| f.state == State::Fail);
    if app.out.json {
        app.out.document(&json!({"ok": !failed, "findings": findings}))?;
    } else {
        for finding in &findings {
            show(app, finding)?;
        }
    }
    Ok(ExitCode::from(if failed { FAILED } else { DONE }))
}

fn show(app: &App, finding: &Finding) -> anyhow::Result<()> {
    let (word, style) = match finding.state {
        State::Ok => ("ok  ", Style::Green),
        State::Warn => ("warn", Style::Yellow),
        State::Fail => ("fail", Style::Red),
    };
    let color = app.out.stdout_color;
    app.out.line(format_args!("{} {}: {}", styled(color, style, word), finding.check, finding.message))?;
    if let Some(hint) = &finding.hint {
        app.out.line(format_args!("     {} {hint}", styled(color, Style::Cyan, "hint:")))?;
    }
    Ok(())
}

fn project(app: &App) -> Finding {
    match app.loaded() {
        Err(error) => Finding::of("project", &error),
        Ok((project, problems)) => {
            let errors = problems.iter().filter(|p| p.severity == Severity::Error).count();
            let what = format!("{}, {}", project.root.display(), counted(project.jobs.len() as u64, "job"));
            if errors > 0 {
                Finding::fail(
                    "project",
                    format!("{what}, {errors} errors in its files"),
                    "headworks validate shows them",
                )
            } else if problems.is_empty() {
                Finding::ok("project", what)
            } else {
                let warnings = problems.len();
                Finding::warn("project", format!("{what}, {warnings} warnings"), "headworks validate shows them")
            }
        }
    }
}

async fn database(store: &Store) -> Finding {
    let (name, sql) = match store.dialect() {
        Dialect::Sqlite => ("SQLite", "select sqlite_version()"),
        Dialect::Postgres => ("PostgreSQL", "select current_setting('server_version')"),
    };
    match store.row(sql, &[]).await.and_then(|row| row.map_or(Ok(String::new()), |row| row.text(0))) {
        Ok(version) => Finding::ok("metadata database", format!("{name} {version} at {}", store.options().shown())),
        Err(error) => Finding::of("metadata database", &error.into()),
    }
}

/// Times one durable commit that changes nothing.
async fn commit(store: &Store) -> Finding {
    let begun = Instant::now();
    let written: headworks_store::Result<()> = store
        .write(|tx| {
            Box::pin(async move {
                tx.execute("create table if not exists hw_doctor (n BIGINT)", &[]).await?;
                tx.execute("insert into hw_doctor values (1)", &[]).await?;
                tx.execute("drop table hw_doctor", &[]).await.map(drop)
            })
        })
        .await;
    let took = begun.elapsed().as_millis();
    match written {
        Err(error) => Finding::of("durable commit", &error.into()),
        Ok(()) if took > COMMIT_MS_MAX => Finding::warn(
            "durable commit",
            format!("it took {took} ms"),
            "every publish waits for one: a disk with faster fsync, or PostgreSQL on another machine, helps",
        ),
        Ok(()) => Finding::ok("durable commit", format!("{took} ms")),
    }
}

async fn clock(app: &App, store: &Store) -> Finding {
    if store.dialect() == Dialect::Sqlite {
        return Finding::ok("clock", "the database has this machine's");
    }
    let sql = "select cast(extract(epoch from clock_timestamp()) * 1000 as bigint)";
    match store.row(sql, &[]).await.and_then(|row| row.map_or(Ok(0), |row| row.i64(0))) {
        Err(error) => Finding::of("clock", &error.into()),
        Ok(theirs) => {
            let apart = (app.clock.now().timestamp_millis() - theirs).abs();
            if apart > CLOCK_MS_MAX {
                let hint = "set both clocks by NTP: schedules follow this machine's, leases the database's";
                Finding::warn("clock", format!("this machine and the database are {apart} ms apart"), hint)
            } else {
                Finding::ok("clock", format!("{apart} ms from the database's"))
            }
        }
    }
}

async fn runs(app: &App) -> Vec<Finding> {
    let list = async {
        let filter = RunFilter { live: true, limit: 100_000, ..RunFilter::default() };
        app.run_store().await?.list(&filter).await.map_err(|e| anyhow::Error::new(fail::Carried::from(e)))
    };
    let live: Vec<RunRow> = match list.await {
        Ok(live) => live,
        Err(error) => return vec![Finding::of("runs", &error)],
    };
    let abandoned: Vec<&RunRow> = live.iter().filter(|run| run.is_abandoned()).collect();
    let at_work = live.len() - abandoned.len();
    vec![match abandoned.first() {
        None => Finding::ok("runs", format!("{} at work, none left behind by a dead process", count(at_work as u64))),
        Some(first) => Finding::warn(
            "runs",
            format!(
                "{} left behind by processes that are gone, as {} of {}",
                count(abandoned.len() as u64),
                first.id,
                first.owner
            ),
            "headworks up takes them over; so does the command that started them, given again",
        ),
    }]
}

/// Who keeps the project running, and what each takes.
async fn processes(app: &App) -> Finding {
    let list = async { anyhow::Ok(app.run_store().await?.processes().await?) };
    let alive = match list.await {
        Ok(alive) => alive,
        Err(error) => return Finding::of("processes", &error),
    };
    let told = alive.iter().filter_map(|process| {
        let role = match process.role {
            Role::Command => return None,
            Role::Scheduler => "up",
            Role::Planner => "scheduler",
            Role::Worker => "worker",
            Role::Server => "server",
        };
        let takes = Some(process.takes.to_string()).filter(|takes| !takes.is_empty());
        Some(format!("{} {role}{}", process.name, takes.map(|takes| format!(" in {takes}")).unwrap_or_default()))
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() {
        return Finding::ok("processes", "none keeps the project running now");
    }
    Finding::ok("processes", told.join("; "))
}

async fn lake(app: &App) -> Finding {
    let look = async {
        let lake = app.lake().await?;
        lake.catch_up().await?;
        check_storage(lake.storage()).await?;
        let tables = lake.notes().await?.len();
        let version = lake.version(headworks_lake::At::Now).await?;
        anyhow::Ok(format!(
            "{} at {}, version {version}, writable",
            counted(tables as u64, "table"),
            lake.storage().data_path()
        ))
    };
    match look.await {
        Ok(message) => Finding::ok("lake", message),
        Err(error) => Finding::of("lake", &error),
    }
}

/// In another environment: production's lake, whose tables it reads.
async fn production(app: &App) -> Option<Finding> {
    if app.env_name().is_ok_and(EnvironmentName::is_production) {
        return None;
    }
    let look = async {
        let Some(lake) = app.production().await? else { return anyhow::Ok("there is none yet".to_owned()) };
        let tables = counted(lake.notes().await?.len() as u64, "table");
        Ok(format!("{tables} at {}, for reading only", lake.storage().data_path()))
    };
    Some(match look.await {
        Ok(message) => Finding::ok("production's lake", message),
        Err(error) => Finding::of("production's lake", &error),
    })
}

/// Writes, reads and removes a file, and sees that a second writer of the same name is refused.
async fn check_storage(storage: &Storage) -> anyhow::Result<()> {
    let (files, path) = (storage.root(), Path::from(format!("doctor-{}.tmp", uuid::Uuid::new_v4())));
    let put = || files.put_opts(&path, "headworks doctor".into(), PutMode::Create.into());
    put().await.context("a file can't be written")?;
    let again = put().await;
    let read = files.get(&path).await;
    files.delete(&path).await.context("a file can't be removed")?;
    read.context("a file that was written can't be read")?;
    match again {
        Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Ok(_) => Err(Failure::new(
            ErrorKind::Invalid,
            "STORAGE_OVERWRITES",
            format!("`{}` overwrites a file that it was told to make only if absent", storage.data_path()),
        )
        .hint("use a service that honours If-None-Match, as S3 and MinIO do")
        .into()),
        Err(other) => Err(anyhow::Error::new(other).context("the storage does not know put-if-absent")),
    }
}

/// Looks whether files that the catalog names are there: all of a small lake, an even sample of a large one.
async fn files(app: &App) -> Finding {
    let look = async {
        let mut snapshot = app.store().await?.snapshot().await?;
        let contents = headworks_lake::contents(&mut snapshot).await?;
        snapshot.close().await;
        let current: Vec<_> = contents.files.iter().filter(|file| file.is_current).collect();
        let every = current.len().div_ceil(FILES_LOOKED_AT).max(1);
        let sample: Vec<_> = current.into_iter().step_by(every).collect();
        let storage = app.lake().await?.storage();
        let mut bad = Vec::new();
        for file in &sample {
            match storage.files().head(&Path::parse(&file.path)?).await {
                Ok(meta) if meta.size == file.bytes => {}
                Ok(_) | Err(object_store::Error::NotFound { .. }) => bad.push((file.path.clone(), file.table.clone())),
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::Ok((sample.len(), bad))
    };
    match look.await {
        Err(error) => Finding::of("files", &error),
        Ok((looked, bad)) => match bad.first() {
            None => Finding::ok("files", format!("{} looked for, all there", counted(looked as u64, "file"))),
            Some((path, table)) => Finding::fail(
                "files",
                format!("{} of {looked} files are gone or cut off, as `{path}` of table `{table}`", bad.len()),
                "run their jobs again with headworks backfill --reprocess all, or take the files out of a backup's folder `data`",
            ),
        },
    }
}

/// Says how old the last backup is.
async fn backup(app: &App) -> Finding {
    const MAKE: &str = "headworks backup DIR --data makes one; run it every day";
    let look = async {
        let lake = app.lake().await?;
        anyhow::Ok((lake.version(headworks_lake::At::Now).await?, lake.last_backup().await?))
    };
    let kept = match app.config() {
        Ok(config) => config.retention.backups.duration(),
        Err(error) => return Finding::of("backup", &error),
    };
    match look.await {
        Err(error) => Finding::of("backup", &error),
        Ok((0, None)) => Finding::ok("backup", "nothing is published yet"),
        Ok((_, None)) => Finding::warn("backup", "there never was one", MAKE),
        Ok((version, Some(note))) => {
            let now = app.clock.now();
            let behind = version - note.version;
            let message =
                format!("the last was made {}, {behind} versions before this, in {}", ago(note.at, now), note.place);
            if (now - note.at).to_std().is_ok_and(|age| age > kept) {
                Finding::warn("backup", message, format!("files that it names may be gone (retention.backups); {MAKE}"))
            } else {
                Finding::ok("backup", message)
            }
        }
    }
}

/// Says what the logs take.
fn logs(app: &App) -> Finding {
    let look = || anyhow::Ok((upkeep::logs_bytes(&app.logs_dir()?)?, app.config()?.retention.log_bytes_max.bytes()));
    match look() {
        Err(error) => Finding::of("logs", &error),
        Ok((size, max)) if size > max => Finding::warn(
            "logs",
            format!("{}, more than retention.log_bytes_max of {}", bytes(size), bytes(max)),
            "headworks gc removes the oldest",
        ),
        Ok((size, max)) => Finding::ok("logs", format!("{} of at most {}", bytes(size), bytes(max))),
    }
}

async fn removable(app: &App) -> Finding {
    let look = async {
        let keep = upkeep::keep(app).await?;
        anyhow::Ok(app.lake().await?.removals(&keep).await?)
    };
    match look.await {
        Err(error) => Finding::of("clean-up", &error),
        Ok(removals) if removals.is_empty() => Finding::ok("clean-up", "nothing to remove"),
        Ok(removals) => {
            let orphans = removals.iter().filter(|r| r.what == "orphan").count();
            let size = bytes(removals.iter().map(|r| r.bytes).sum());
            let message = format!("{} things can go, {} of them orphan files, {size}", removals.len(), orphans);
            Finding::warn("clean-up", message, "headworks gc --dry-run lists them, headworks gc removes them")
        }
    }
}

/// The space left where the project is, and where a local lake is when that is another disk.
fn disk(app: &App) -> Vec<Finding> {
    let Ok(root) = app.root() else { return Vec::new() };
    let mut places = vec![root.to_path_buf()];
    places.extend(app.storage().ok().and_then(|s| s.local().map(std::path::Path::to_path_buf)));
    let mut findings: Vec<Finding> = Vec::new();
    for place in places {
        let finding = match rustix::fs::statvfs(&place) {
            Err(error) => {
                Finding::warn("disk", format!("{}: {error}", place.display()), "see whether the disk is mounted")
            }
            Ok(stat) => {
                let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                let total = stat.f_blocks.saturating_mul(stat.f_frsize);
                let message = format!("{} free of {} at {}", bytes(free), bytes(total), place.display());
                if free < FREE_BYTES_MIN {
                    Finding::warn("disk", message, "make room; headworks gc --dry-run shows what can go")
                } else {
                    Finding::ok("disk", message)
                }
            }
        };
        let same = |f: &Finding| f.message.split(" at ").next() == finding.message.split(" at ").next();
        if !findings.iter().any(same) {
            findings.push(finding);
        }
    }
    findings
}
