//! One job file: finds the header, reads it, and makes a job of it.

use std::sync::{Arc, LazyLock};

use chrono_tz::Tz;
use headworks_domain::{Grain, JobName, Problem, TableName};
use serde_json::Value;

use crate::{
    document::{Node, parse_yaml},
    job::{Job, JobBody, SqlBody, version},
    schedule::Schedule,
    schema,
    source::{At, Source},
    spec::JobSpec,
};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(JobSpec).to_value());

/// The JSON Schema of a job's header, for editors.
pub fn job_schema() -> Value {
    SCHEMA.clone()
}

/// A file that was read, as far as it could be.
pub(crate) struct JobFile {
    /// The job, if the header can be used at all; problems of its meaning come later.
    pub(crate) job: Option<Job>,
    /// The table that the file claims, even when it is broken: others that refer to it are not to blame.
    pub(crate) table: Option<TableName>,
    pub(crate) problems: Vec<Problem>,
}

/// A SQL file cut in two.
#[derive(Debug, PartialEq)]
pub(crate) struct FrontMatter<'a> {
    pub(crate) header: &'a str,
    /// Where the header's YAML begins.
    pub(crate) header_at: At,
    pub(crate) body: &'a str,
    /// Where the body begins.
    pub(crate) body_at: At,
}

/// Why a SQL file has no header, and where that shows.
#[derive(Debug, PartialEq)]
pub(crate) enum NoHeader {
    /// There is none.
    Missing,
    /// Something stands before it: the place of the header.
    NotFirst(At),
    /// It is never closed: the place where it begins.
    Open(At),
}

const HEADER_HINT: &str =
    "begin the file with a comment `/* job` that holds the header, as `/* job` `owner: data` `*/`";

/// Finds the header of a SQL file. Any text is safe.
pub(crate) fn front_matter(text: &str) -> Result<FrontMatter<'_>, NoHeader> {
    let place = |byte: usize| Source::new("", text).at_byte(byte);
    let blank = text.len() - text.trim_start().len();
    let Some(inside) = header_start(&text[blank..]) else {
        let later = text.match_indices("/*").find(|(n, _)| header_start(&text[*n..]).is_some());
        return Err(later.map_or(NoHeader::Missing, |(n, _)| NoHeader::NotFirst(place(n))));
    };
    let start = blank + inside;
    let Some(length) = text[start..].find("*/") else { return Err(NoHeader::Open(place(blank))) };
    let end = start + length + 2;
    Ok(FrontMatter {
        header: &text[start..start + length],
        header_at: place(start),
        body: &text[end..],
        body_at: place(end),
    })
}

/// The length of `/* job` at the start of a text.
fn header_start(text: &str) -> Option<usize> {
    let comment = text.strip_prefix("/*")?;
    let word = comment.trim_start_matches([' ', '\t', '\r', '\n']).strip_prefix("job")?;
    let ends = word.starts_with(char::is_whitespace) || word.starts_with("*/") || word.is_empty();
    ends.then(|| text.len() - word.len())
}

/// Reads a file. `path_name` is its path below `jobs/` without the ending.
pub(crate) fn read(file: String, text: String, path_name: &str, project_zone: Tz) -> JobFile {
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let source = Arc::new(Source::new(file, text));
    let is_sql = source.file.ends_with(".sql");
    let mut out = JobFile { job: None, table: None, problems: Vec::new() };
    let (header, header_at, body) = if is_sql {
        match front_matter(&source.text) {
            Ok(front) => {
                let body =
                    SqlBody { text: front.body.to_owned(), first_line: front.body_at.0, first_column: front.body_at.1 };
                (front.header, front.header_at, Some(body))
            }
            Err(reason) => {
                out.problems.push(match reason {
                    NoHeader::Missing => source.error((1, 1), "the file has no job header", HEADER_HINT),
                    NoHeader::NotFirst(at) => {
                        source.error(at, "the job header is not the first thing in the file", "move it to the top")
                    }
                    NoHeader::Open(at) => source.error(at, "the job header is never closed", "end it with `*/`"),
                });
                return out;
            }
        }
    } else {
        (source.text.as_str(), (1, 1), None)
    };
    let node = match parse_yaml(header, header_at) {
        Ok(node) => node,
        Err(malformed) => {
            let (at, message, hint) = match is_sql.then(|| cut_by_star(&source, header, header_at)).flatten() {
                Some((at, hint)) => (at, "`*/` ends the header in the middle of a text".to_owned(), hint),
                None => (malformed.at, format!("this is not YAML: {}", malformed.message), ""),
            };
            out.problems.push(source.error(at, message, hint));
            return out;
        }
    };
    let findings = schema::check(&SCHEMA, &node);
    let broken = !findings.is_empty();
    out.problems.extend(findings.into_iter().map(|f| source.error(f.at, f.message, f.hint)));
    out.table = claimed_table(&node, path_name);
    if broken {
        return out;
    }
    let spec: JobSpec = match serde_json::from_value(node.to_json()) {
        Ok(spec) => spec,
        Err(error) => {
            out.problems.push(source.error((0, 0), format!("the header cannot be read: {error}"), ""));
            return out;
        }
    };
    match make_job(&source, node, spec, body, path_name, project_zone) {
        Ok(job) => out.job = Some(job),
        Err(problems) => out.problems.extend(problems),
    }
    out
}

/// The table that a file claims, however broken it is.
fn claimed_table(node: &Node, path_name: &str) -> Option<TableName> {
    if node.get("tasks").is_some() {
        return None;
    }
    let text = |key: &str| node.get(key).and_then(|n| n.to_json().as_str().map(str::to_owned));
    let name = text("name").unwrap_or_else(|| path_name.to_owned());
    let table = text("table").or_else(|| name.rsplit('/').next().map(str::to_owned));
    table.and_then(|t| t.parse().ok())
}

fn make_job(
    source: &Arc<Source>,
    node: Node,
    spec: JobSpec,
    body: Option<SqlBody>,
    path_name: &str,
    project_zone: Tz,
) -> Result<Job, Vec<Problem>> {
    let mut problems = Vec::new();
    let name: Option<JobName> = match &spec.name {
        Some(name) => Some(name.clone()),
        None => path_name
            .parse()
            .map_err(|error| {
                let hint = "rename the file, or give the header a `name:`";
                problems.push(source.error((0, 0), format!("{error}"), hint));
            })
            .ok(),
    };
    let body = job_body(source, &node, &spec, body).map_err(|problem| problems.push(problem)).ok();
    let has_table = !matches!(body, Some(JobBody::Tasks));
    let table: Option<TableName> = match (&spec.table, &name) {
        _ if !has_table => None,
        (Some(table), _) => Some(table.clone()),
        (None, Some(name)) => {
            let last = name.as_str().rsplit('/').next().unwrap_or_default();
            last.parse()
                .map_err(|error| {
                    let at = spec.name.as_ref().map_or((0, 0), |_| node.at(&["name"]));
                    problems.push(source.error(at, format!("{error}"), "give the header a `table:`"));
                })
                .ok()
        }
        (None, None) => None,
    };
    let schedule = spec.schedule.as_deref().and_then(|text| Schedule::parse(text).ok());
    let zone: Tz = spec.timezone.as_deref().and_then(|zone| zone.parse().ok()).unwrap_or(project_zone);
    let grain = spec.grain.or_else(|| schedule.as_ref().map(Schedule::grain)).unwrap_or(Grain::Day);
    match (name, body, problems.is_empty()) {
        (Some(name), Some(body), true) => {
            let sql = match &body {
                JobBody::Sql(body) => body.text.as_str(),
                JobBody::Import(_) | JobBody::Tasks => "",
            };
            Ok(Job {
                version: version(&name, table.as_ref().map_or("", TableName::as_str), grain, zone, &spec, sql),
                name,
                file: source.file.clone(),
                table,
                body,
                grain,
                zone,
                schedule,
                waits: spec.wait.iter().filter_map(|wait| wait.wait_ref().ok().flatten()).collect(),
                spec,
                reads_latest: Vec::new(),
                reads_plain: Vec::new(),
                source: Arc::clone(source),
                header: Arc::new(node),
            })
        }
        _ => Err(problems),
    }
}

/// What the job does: exactly one of its SQL, `import:` and `tasks:`.
fn job_body(source: &Source, node: &Node, spec: &JobSpec, sql: Option<SqlBody>) -> Result<JobBody, Problem> {
    let tasks = !spec.tasks.is_empty();
    match (sql, &spec.import) {
        (Some(_), Some(_)) => Err(source.error(
            node.at(&["import"]),
            "a SQL file computes its result and imports nothing",
            "move the import to a file of its own, `NAME.yml`",
        )),
        (Some(_), None) if tasks => Err(source.error(
            node.at(&["tasks"]),
            "a SQL file computes its result and has no tasks",
            "move the tasks to a file of their own, `NAME.yml`",
        )),
        (None, Some(_)) if tasks => Err(source.error(
            node.at(&["tasks"]),
            "the job has both `import:` and `tasks:`",
            "move one of them to a file of its own",
        )),
        (Some(body), None) => Ok(JobBody::Sql(body)),
        (None, Some(import)) => Ok(JobBody::Import(import.clone())),
        (None, None) if tasks => Ok(JobBody::Tasks),
        (None, None) => Err(source.error(
            (1, 1),
            "the job does nothing: it has no `import:` and no `tasks:`",
            "give it one of them; jobs with SQL are files ending in `.sql`",
        )),
    }
}

/// The place of a `*/` that ended the comment where the author meant a cron step, as in `"*/15 * * * *"`, or any folder, as in
/// `"in/*/a.csv"`; and what to write.
fn cut_by_star(source: &Source, header: &str, header_at: At) -> Option<(At, &'static str)> {
    let last = header.lines().last()?;
    let quoted = last.matches('"').count() % 2 == 1 || last.matches('\'').count() % 2 == 1;
    let open = quoted || last.trim_end().ends_with(':');
    let line = header_at.0 + header.lines().count().saturating_sub(1);
    let shown = source.line(line);
    let star = shown.find("*/")?;
    let step = shown[star + 2..].starts_with(|c: char| c.is_ascii_digit());
    let hint = match (open && step, quoted) {
        (true, _) => "write `every 15 minutes` for `*/15 * * * *`, or `0-59/15 * * * *`",
        (false, true) => "in the header of a SQL file write `*\\/` for it, in double quotes, as `\"in/*\\/a.csv\"`",
        (false, false) => return None,
    };
    Some(((line, shown[..star].chars().count() + 1), hint))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_are_found() {
        let front = front_matter("\n\n/* job\nowner: me\n*/\nSELECT 1").unwrap();
        assert_eq!((front.header, front.header_at), ("\nowner: me\n", (3, 7)));
        assert_eq!((front.body, front.body_at), ("\nSELECT 1", (5, 3)));
        assert_eq!(front_matter("/*job*/").unwrap().body, "");
        assert_eq!(front_matter("/*\n job owner: me */ x").unwrap().header, " owner: me ");
        assert_eq!(front_matter("SELECT 1"), Err(NoHeader::Missing));
        assert_eq!(front_matter(""), Err(NoHeader::Missing));
        assert_eq!(front_matter("/* jobs */ SELECT 1"), Err(NoHeader::Missing));
        assert_eq!(front_matter("-- x\n/* job\n*/"), Err(NoHeader::NotFirst((2, 1))));
        assert_eq!(front_matter("/* job\nowner: me"), Err(NoHeader::Open((1, 1))));
    }

    proptest! {
        #[test]
        fn any_text_is_safe(text in "(/\\*|\\*/| job|\\n|:|\"|'|\\[|\\{|&|x|- |é|\u{feff}|\\||SELECT 1){0,30}") {
            let _ = read("jobs/x.sql".to_owned(), text.clone(), "x", Tz::UTC);
            let _ = read("jobs/x.yml".to_owned(), text, "x", Tz::UTC);
        }

        #[test]
        fn the_parts_make_the_whole(header in "[^*]{0,40}", body in ".{0,40}") {
            let text = format!("/* job\n{header}*/{body}");
            let front = front_matter(&text).unwrap();
            prop_assert_eq!(front.header, format!("\n{header}"));
            prop_assert_eq!(front.body, body);
        }
    }
}
