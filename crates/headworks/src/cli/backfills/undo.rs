//! Takes back what a stored backfill published.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    process::ExitCode,
};

use futures::future::try_join_all;
use headworks_domain::{JobName, PartitionKey, RunId, TableName};
use headworks_flow::{
    State,
    exec::{RunFilter, RunStore},
};
use headworks_lake::{Action, At, PartitionVersion};
use headworks_meta::{Answer, PieceRow};
use serde_json::{Value, json};

use super::expect;
use crate::{
    app::App,
    fail::{Carried, DONE, FAILED, Failure, message},
    output::{Align, Table, counted},
};

/// Take back what a backfill published, where nothing newer was published since
///
/// Each of its partitions becomes again what it was before the backfill, as a new version; one that was not there before is
/// dropped. Partitions that others have published since stay as they are. The runs are marked as cancelled, so that a later
/// backfill repeats them.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  headworks backfills undo 3              lists what would change
  headworks backfills undo 3 --yes")]
pub(crate) struct Args {
    /// Its number, as backfills list shows it
    #[arg(value_name = "ID")]
    id: i64,
    /// Do it; without this it only lists what would change
    #[arg(short, long)]
    yes: bool,
}

/// So many runs are marked at once, in one commit.
const MARKS_AT_ONCE: usize = 100;

/// What happens to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It becomes what it was in this version.
    Restore(i64),
    /// It was not there before.
    Drop,
    /// Somebody has published it since.
    Keep(i64),
}

impl Step {
    fn words(self) -> String {
        match self {
            Self::Restore(version) => format!("becomes version {version} again"),
            Self::Drop => "is dropped: it was not there before".to_owned(),
            Self::Keep(version) => format!("stays: version {version} is newer than the backfill"),
        }
    }
}

pub(super) async fn run(app: &App, args: Args) -> anyhow::Result<ExitCode> {
    let runs = app.run_store().await?;
    let row = expect(runs, args.id).await?;
    let pieces = runs.pieces(row.id, false).await?;
    let is_live = |piece: &PieceRow| matches!(piece.answer, Answer::Run { over: false, .. });
    if !row.state.is_over() || pieces.iter().any(is_live) {
        return Err(Failure::usage(
            format!("backfill {} is not over", row.id),
            format!("stop it first, headworks backfills cancel {} --yes, and wait for its live runs", row.id),
        )
        .into());
    }
    let plan = plan(app, &pieces).await?;
    let mut failures: Vec<(String, String)> = Vec::new();
    if args.yes {
        let lake = app.lake().await?;
        for (table, key, step) in &plan {
            let done = match step {
                Step::Restore(version) => lake.restore(table.as_str(), key, *version).await.map(drop),
                Step::Drop => lake.drop_partitions(table.as_str(), vec![key.clone()]).await.map(drop),
                Step::Keep(_) => Ok(()),
            };
            if let Err(error) = done {
                failures.push((format!("{table} {key}"), message(&error.into())));
            }
        }
        if failures.is_empty() {
            mark(app, &pieces, row.id).await?;
            runs.note_undone(row.id).await?;
        }
    }
    tell(app, row.id, &plan, &failures, args.yes)?;
    Ok(ExitCode::from(if failures.is_empty() { DONE } else { FAILED }))
}

/// What is to happen to each partition that the backfill published.
async fn plan(app: &App, pieces: &[PieceRow]) -> anyhow::Result<Vec<(TableName, PartitionKey, Step)>> {
    let lake = app.lake().await?;
    lake.catch_up().await?;
    let own: HashSet<&str> = pieces.iter().filter_map(run_of).map(RunId::as_str).collect();
    let jobs: BTreeSet<&JobName> = pieces.iter().filter(|p| run_of(p).is_some()).map(|p| &p.request.job).collect();
    let mut tables: BTreeSet<TableName> = BTreeSet::new();
    for job in jobs {
        // Its runs know the table even when the job's file is gone.
        let filter = RunFilter { job: Some(job.clone()), limit: 1, ..RunFilter::default() };
        let newest = app.run_store().await?.list(&filter).await.map_err(Carried::from)?;
        tables.extend(newest.into_iter().filter_map(|run| run.table));
    }
    let mut plan = Vec::new();
    for name in tables {
        let Some(table) = lake.table(name.as_str(), At::Now).await? else { continue };
        let mut versions: BTreeMap<PartitionKey, Vec<PartitionVersion>> = BTreeMap::new();
        for version in lake.history(table.id, None, i32::MAX as usize).await? {
            versions.entry(version.info.key.clone()).or_default().push(version);
        }
        for (key, versions) in versions {
            plan.extend(step(&versions, &own).map(|step| (name.clone(), key, step)));
        }
    }
    Ok(plan)
}

/// What is to happen to a partition with these versions, newest first; nothing when the backfill did not touch it.
fn step(versions: &[PartitionVersion], own: &HashSet<&str>) -> Option<Step> {
    let is = |version: &PartitionVersion, action: Action| version.action == action.as_str();
    // What was restored names the run that had made it.
    let is_own = |version: &PartitionVersion| {
        (is(version, Action::Publish) || is(version, Action::Restore))
            && version.run_id.as_deref().is_some_and(|run| own.contains(run))
    };
    if !versions.iter().any(is_own) {
        return None;
    }
    let mut at = 0;
    let newest = versions.first()?;
    if !is_own(newest) {
        // A drop or a restore after it is an undo already, by hand or by us.
        let is_undone = is(newest, Action::Drop) || is(newest, Action::Restore);
        return (!is_undone).then_some(Step::Keep(newest.info.version));
    }
    while let Some(version) = versions.get(at).filter(|version| is_own(version)) {
        let of_it = |other: &PartitionVersion| is(other, Action::Publish) && other.run_id == version.run_id;
        at = match is(version, Action::Restore) {
            // The version that it brought back, and not what was undone by that.
            true => versions.iter().skip(at + 1).position(of_it).map_or(versions.len(), |n| at + 1 + n),
            false => at + 1,
        };
    }
    Some(match versions.get(at).filter(|version| !is(version, Action::Drop)) {
        Some(before) => Step::Restore(before.info.version),
        None => Step::Drop,
    })
}

fn run_of(piece: &PieceRow) -> Option<&RunId> {
    match &piece.answer {
        Answer::Run { run_id, state: Some(_), .. } => Some(run_id),
        _ => None,
    }
}

/// Marks the runs whose results are gone, so that nobody takes them for done.
async fn mark(app: &App, pieces: &[PieceRow], backfill: i64) -> anyhow::Result<()> {
    let succeeded = pieces.iter().filter_map(|piece| match &piece.answer {
        Answer::Run { run_id, state: Some(State::Success), .. } => Some(run_id.clone()),
        _ => None,
    });
    let runs: Vec<RunId> = succeeded.collect();
    let reason = format!("backfill {backfill} was undone");
    let store = app.run_store().await?;
    for some in runs.chunks(MARKS_AT_ONCE) {
        try_join_all(some.iter().map(|run| store.mark(run, State::Cancelled, reason.clone()))).await?;
    }
    Ok(())
}

fn tell(
    app: &App,
    id: i64,
    plan: &[(TableName, PartitionKey, Step)],
    failures: &[(String, String)],
    done: bool,
) -> anyhow::Result<()> {
    let changed = plan.iter().filter(|(.., step)| !matches!(step, Step::Keep(_))).count() - failures.len();
    if app.out.json {
        let partitions: Vec<Value> = plan
            .iter()
            .map(|(table, key, step)| {
                let (what, version) = match step {
                    Step::Restore(version) => ("restore", Some(version)),
                    Step::Drop => ("drop", None),
                    Step::Keep(version) => ("keep", Some(version)),
                };
                json!({"table": table, "partition": key, "what": what, "version": version})
            })
            .collect();
        let failures: Vec<Value> =
            failures.iter().map(|(partition, error)| json!({"partition": partition, "error": error})).collect();
        return app.out.document(&json!({
            "backfill": id, "partitions": partitions, "failures": failures, "done": done && failures.is_empty(),
        }));
    }
    if plan.is_empty() {
        app.note(format_args!("backfill {id} has published nothing that could be taken back"));
        return Ok(());
    }
    if !done {
        let mut table = Table::new([("table", Align::Left), ("partition", Align::Left), ("what", Align::Left)]);
        for (name, key, step) in plan {
            table.row([name.to_string(), key.to_string(), step.words()]);
        }
        app.out.table(&table)?;
        app.note(format_args!("{} would change; --yes does it", counted(changed as u64, "partition")));
        return Ok(());
    }
    for (partition, error) in failures {
        app.out.complain(format_args!("{partition}: {error}"));
    }
    app.out
        .note(format_args!("{} taken back; headworks tables history shows them", counted(changed as u64, "partition")));
    if !failures.is_empty() {
        app.note(format_args!("{} could not be; the same command tries again", failures.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use headworks_domain::Ds;
    use headworks_lake::PartitionInfo;

    use super::*;

    /// As `7 publish r1`: version 7, published by run r1.
    fn version(text: &str) -> PartitionVersion {
        let words: Vec<&str> = text.split(' ').collect();
        let info = PartitionInfo {
            key: PartitionKey::day(Ds::default()),
            version: words[0].parse().unwrap(),
            rows: 0,
            bytes: 0,
            files: 0,
            published_at: DateTime::UNIX_EPOCH,
        };
        PartitionVersion {
            info,
            action: words[1].to_owned(),
            job: None,
            run_id: words.get(2).map(|run| (*run).to_owned()),
            attempt: None,
            job_version: None,
            as_of_now: false,
        }
    }

    #[test]
    fn a_partition_becomes_what_it_was_before_the_backfill() {
        let own = HashSet::from(["mine", "again"]);
        let check = |versions: &[&str], expected: Option<Step>| {
            let parsed: Vec<PartitionVersion> = versions.iter().map(|text| version(text)).collect();
            assert_eq!(step(&parsed, &own), expected, "{versions:?}");
        };
        check(&["5 publish other"], None);
        check(&["5 publish mine"], Some(Step::Drop));
        check(&["5 publish mine", "3 publish other", "2 publish older"], Some(Step::Restore(3)));
        check(&["6 publish again", "5 publish mine", "3 publish other"], Some(Step::Restore(3)));
        check(&["5 publish mine", "4 drop", "3 publish other"], Some(Step::Drop));
        check(&["7 publish later", "5 publish mine", "3 publish other"], Some(Step::Keep(7)));
        check(&["7 foreign", "5 publish mine"], Some(Step::Keep(7)));
        // A later backfill was undone before: what it had replaced is there again.
        check(&["7 restore mine", "6 publish later", "5 publish mine", "3 publish other"], Some(Step::Restore(3)));
        check(&["7 restore mine", "6 publish later", "5 publish mine"], Some(Step::Drop));
        check(&["9 publish again", "7 publish later", "5 publish mine", "3 publish other"], Some(Step::Restore(7)));
        // Undone before, by hand or by a try that did not end.
        check(&["7 restore other", "5 publish mine", "3 publish other"], None);
        check(&["7 drop", "5 publish mine"], None);
    }
}
