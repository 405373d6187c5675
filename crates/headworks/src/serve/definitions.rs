//! What the database remembers of the jobs' files: the version that runs, its text, and what is wrong with the file now.

use std::{collections::BTreeMap, path::Path};

use headworks_domain::{JobName, Problem, Severity};
use headworks_flow::Project;
use headworks_meta::{Definition, Runs};

/// How each job's file stands, after the files were read for the first time.
///
/// A file with errors keeps the version that ran last before this process began.
pub(super) async fn at_start(
    runs: &Runs,
    project: &mut Project,
    problems: &[Problem],
) -> anyhow::Result<Vec<Definition>> {
    let broken = broken_files(problems);
    if !broken.is_empty() {
        for row in runs.jobs().await? {
            let file = broken.keys().find(|file| job_of(file).as_ref() == Some(&row.name));
            let (Some(file), Some(version)) = (file, &row.version) else { continue };
            if let Some(text) = runs.version_source(&row.name, version).await? {
                project.revive(file, text);
            }
        }
    }
    Ok(of(project, problems))
}

/// How each job's file stands.
pub(super) fn of(project: &Project, problems: &[Problem]) -> Vec<Definition> {
    let broken = broken_files(problems);
    let mut definitions: BTreeMap<JobName, Definition> = BTreeMap::new();
    for job in project.jobs.values() {
        let problem = broken.get(job.file.as_str()).cloned();
        let definition = Definition { job: job.name.clone(), version: Some(job.version.clone()), problem };
        definitions.insert(job.name.clone(), definition);
    }
    let used: Vec<&str> = project.jobs.values().map(|job| job.file.as_str()).collect();
    for (file, problem) in broken.iter().filter(|(file, _)| !used.contains(*file)) {
        if let Some(job) = job_of(file) {
            let definition = Definition { job: job.clone(), version: None, problem: Some(problem.clone()) };
            definitions.entry(job).or_insert(definition);
        }
    }
    definitions.into_values().collect()
}

/// The jobs without a version that could be used, each with the first error of its file.
pub(crate) fn problems_of_others(project: &Project, problems: &[Problem]) -> Vec<(JobName, String)> {
    let without = of(project, problems).into_iter().filter(|definition| definition.version.is_none());
    without.filter_map(|definition| Some((definition.job, definition.problem?))).collect()
}

/// Keeps them, with the text of versions that were not seen before.
pub(super) async fn keep(runs: &Runs, project: &Project, definitions: Vec<Definition>) -> anyhow::Result<()> {
    let mut versions = Vec::new();
    for definition in definitions.iter().filter(|d| d.problem.is_none()) {
        let (Some(version), Some(job)) = (&definition.version, project.jobs.get(&definition.job)) else { continue };
        versions.push((job.name.clone(), version.clone(), job.text().to_owned()));
    }
    runs.note_versions(versions).await?;
    Ok(runs.define(definitions).await?)
}

/// The files with errors, with the first of each.
fn broken_files(problems: &[Problem]) -> BTreeMap<&str, String> {
    let mut broken = BTreeMap::new();
    for problem in problems.iter().filter(|p| p.severity == Severity::Error) {
        broken.entry(problem.place.file.as_str()).or_insert_with(|| problem.to_string());
    }
    broken
}

/// The job that a file makes unless its header says another name.
fn job_of(file: &str) -> Option<JobName> {
    let path = Path::new(file.strip_prefix("jobs/")?).with_extension("");
    path.to_str()?.parse().ok()
}
