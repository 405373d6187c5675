//! Waits on the outside world: for files and objects, for what a connection's SQL says, for an HTTP answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use headworks_domain::{ConnectionName, Fault, Problem, TaskName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    connection::filled_in,
    document::shortened,
    job::Job,
    machine::Failure,
    plan::{OutsideOn, WaitOn},
    project::Project,
    task::{Status, Unfilled, fill, keys_of_every_type},
    units::Span,
};

/// The pause between two looks unless the wait says otherwise.
const EVERY: Span = Span::from_secs(60);

/// The shortest pause between two looks: each is a call to somebody else's system.
const EVERY_MIN: Span = Span::from_secs(1);

/// One entry of `wait:` that looks at the outside world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = keys_of_every_type)]
pub struct OutsideWait {
    /// The least pause between two looks, 1s or more; 1m unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// What is asked.
    #[serde(flatten)]
    pub question: Question,
}

/// What a wait asks the outside world; it is met by a yes. Every text may hold macros.
///
/// Questions that are equal are asked once for all who wait for them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Question {
    /// Is there such a file or object?
    File {
        /// A path from the project's folder, an absolute one, or `s3://bucket/key`; `*` and `?` stand for letters of one part.
        file: String,
    },
    /// Is the first column of the first row true, or at least neither null, zero nor empty?
    Sql {
        /// One query, in the connection's own dialect.
        sql: String,
        /// The connection of `headworks.toml` to ask.
        #[schemars(with = "String", extend("format" = "connection-name"))]
        connection: ConnectionName,
    },
    /// Does a GET of the address answer with the right status?
    Http {
        /// The address, `http://` or `https://`.
        http: String,
        /// Headers; `${env:NAME}` stands for an environment variable.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
        /// The statuses that are a yes; 200 to 299 unless given.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        expect: Vec<Status>,
    },
}

impl Question {
    /// A short word for its kind, as `file`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Sql { .. } => "sql",
            Self::Http { .. } => "http",
        }
    }

    /// Who answers: this machine's files, a bucket, a connection, a server. One of these that hangs must not hold up the others.
    pub fn place(&self) -> String {
        match self {
            Self::File { file } => match file.strip_prefix("s3://") {
                Some(object) => format!("s3://{}", object.split('/').next().unwrap_or_default()),
                None => "files".to_owned(),
            },
            Self::Sql { connection, .. } => format!("connection {connection}"),
            Self::Http { http, .. } => {
                let end = http.find("://").map_or(0, |n| n + 3);
                let rest = &http[end..];
                let host = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
                format!("{}{}", &http[..end], host.rsplit('@').next().unwrap_or(host))
            }
        }
    }

    /// The headers of a call with the variables in them.
    ///
    /// The result may hold secrets. Errors: a variable is not set.
    pub fn headers(
        &self,
        variables: &dyn Fn(&str) -> Option<String>,
    ) -> Result<BTreeMap<String, String>, crate::Error> {
        let Self::Http { headers, .. } = self else { return Ok(BTreeMap::new()) };
        let fill = |(name, text): (&String, &String)| {
            Ok((name.clone(), filled_in(&format!("headers.{name}"), text, variables)?))
        };
        headers.iter().map(fill).collect()
    }
}

/// As a sentence has it: "file `in/a.csv`", "SQL on `shop`: `select ...`", "`https://api.example/ready`". Shows no secret.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file } if file.starts_with("s3://") => write!(f, "object `{file}`"),
            Self::File { file } => write!(f, "file `{file}`"),
            Self::Sql { sql, connection } => write!(f, "SQL on `{connection}`: `{}`", shortened(sql.trim())),
            Self::Http { http, .. } => {
                // User, password and query may be secrets.
                let bare = &http[..http.find(['?', '#']).unwrap_or(http.len())];
                let rest = bare.find("://").map_or(bare, |n| &bare[n + 3..]);
                let path = rest.find('/').map_or("", |n| &rest[n..]);
                let more = if http.contains('?') { "?..." } else { "" };
                write!(f, "`{}{path}{more}`", self.place())
            }
        }
    }
}

impl OutsideWait {
    /// The least pause between two looks.
    pub fn pause(&self) -> Duration {
        self.every.unwrap_or(EVERY).duration()
    }

    /// The question with its macros filled in. `${env:NAME}` stays as it is: plans hold no secrets.
    fn planned(&self, macros: &minijinja::Value) -> Result<Question, Unfilled> {
        let question = fill(&self.question, macros, None)?;
        if let (Question::Http { headers: written, .. }, Question::Http { headers, .. }) = (&self.question, &question) {
            for (name, text) in headers {
                if let Some(variable) = variable_of(text, written.get(name).map_or("", String::as_str)) {
                    return Err(Unfilled {
                        path: vec!["headers".to_owned(), name.clone()],
                        message: format!("a macro brings `{variable}` along"),
                        hint: "only the job file itself may name variables: write it there".to_owned(),
                    });
                }
            }
        }
        Ok(question)
    }
}

/// A variable's place that is in the text and not in what the file says.
fn variable_of<'t>(text: &'t str, written: &str) -> Option<&'t str> {
    let starts = text.match_indices("${env:").map(|(start, _)| start);
    let mut places = starts.filter_map(|start| Some(&text[start..=start + text[start..].find('}')?]));
    places.find(|place| !written.contains(place))
}

/// What a run must ask the outside world, in the order of the header. Errors: macros that cannot be filled in.
pub(crate) fn resolve(job: &Job, waits: &[WaitOn], macros: &minijinja::Value) -> Result<Vec<OutsideOn>, Vec<Problem>> {
    let mut taken: BTreeSet<String> = waits.iter().map(|wait| wait.task.to_string()).collect();
    let (mut resolved, mut problems) = (Vec::new(), Vec::new());
    for (n, wait) in job.outside_waits() {
        match wait.planned(macros) {
            Ok(question) => {
                let task = task_name(&question, &mut taken);
                resolved.push(OutsideOn { task, question: Arc::new(question), every: wait.pause() });
            }
            Err(unfilled) => problems.push(unfilled_problem(job, n, unfilled)),
        }
    }
    if problems.is_empty() { Ok(resolved) } else { Err(problems) }
}

/// `wait_file`, and `wait_file_2` for the second one.
fn task_name(question: &Question, taken: &mut BTreeSet<String>) -> TaskName {
    let mut name = format!("wait_{}", question.kind());
    let mut n = 1;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("wait_{}_{n}", question.kind());
    }
    name.parse().expect("a word and a number are a task's name")
}

fn unfilled_problem(job: &Job, n: usize, unfilled: Unfilled) -> Problem {
    let n = n.to_string();
    let path: Vec<&str> = ["wait", &n].into_iter().chain(unfilled.path.iter().map(String::as_str)).collect();
    job.header_problem(&path, unfilled.message, Some(unfilled.hint))
}

/// Everything that is wrong with a job's waits on the outside world. `macros` are those of a sample run.
pub(crate) fn problems(job: &Job, project: &Project, macros: &minijinja::Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (n, wait) in job.outside_waits() {
        let place = n.to_string();
        let mut fail = |key: &str, message: String, hint: &str| {
            problems.push(job.header_problem(&["wait", &place, key], message, Some(hint.to_owned())));
        };
        if job.is_view() {
            let message = format!("a view cannot wait for {}: it is computed when it is read", wait.question);
            fail(wait.question.kind(), message, "let the jobs behind the tables that it reads wait");
            continue;
        }
        if wait.pause() < EVERY_MIN.duration() {
            let message = format!("`every: {}` is too often", wait.every.unwrap_or_default());
            fail("every", message, &format!("write `every: {EVERY_MIN}` or more: each look is a call"));
        }
        let question = match wait.planned(macros) {
            Ok(question) => question,
            Err(unfilled) => {
                problems.push(unfilled_problem(job, n, unfilled));
                continue;
            }
        };
        match &question {
            Question::File { file } => {
                if let Some((message, hint)) = file_problem(file) {
                    fail("file", message, hint);
                }
            }
            Question::Sql { sql, connection } => {
                if sql.trim().is_empty() {
                    fail(
                        "sql",
                        "the SQL of the wait is empty".to_owned(),
                        "write one query, as `select count(*) from t`",
                    );
                }
                if let Err(error) = project.config.connection(connection) {
                    fail("connection", error.to_string(), &error.hint().unwrap_or_default());
                }
            }
            Question::Http { http, .. } => {
                if !["http://", "https://"].iter().any(|start| http.starts_with(start)) {
                    fail("http", format!("`{http}` is not an address"), "begin it with `https://` or `http://`");
                }
            }
        }
    }
    problems
}

/// What is wrong with a file's path or an object's address, and what to write.
fn file_problem(file: &str) -> Option<(String, &'static str)> {
    if file.trim().is_empty() {
        return Some(("the wait's file has no name".to_owned(), "write its path, as `in/{{ ds }}/*.csv`"));
    }
    let Some((scheme, rest)) = file.split_once("://") else {
        let is_folder = file.ends_with('/');
        return is_folder.then(|| (format!("`{file}` is a folder"), "wait for a file in it, as `in/{{ ds }}/*`"));
    };
    if scheme != "s3" {
        return Some((format!("`{file}` cannot be waited for"), "write a path, or an address as `s3://bucket/key`"));
    }
    let key = rest.split_once('/').map_or("", |(_, key)| key);
    let is_whole = !key.is_empty() && !key.ends_with('/') && !rest.starts_with('/');
    (!is_whole).then(|| (format!("`{file}` names no object"), "write bucket and key, as `s3://bucket/in/*.csv`"))
}

/// What a look at the outside world found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// True when who asked need not wait any longer.
    pub is_yes: bool,
    /// What was found, for a person, as "there is no such file".
    pub said: String,
}

impl Answer {
    /// What was waited for is there.
    pub fn yes(said: impl Into<String>) -> Self {
        Self { is_yes: true, said: said.into() }
    }

    /// It is not there yet.
    pub fn not_yet(said: impl Into<String>) -> Self {
        Self { is_yes: false, said: said.into() }
    }
}

impl Question {
    /// The failure of a wait that will never be met, by that of the look.
    pub(crate) fn refused(&self, failure: &Failure) -> Failure {
        Failure { message: format!("the wait for {self} failed: {}", failure.message), ..failure.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(url: &str) -> Question {
        Question::Http { http: url.to_owned(), headers: BTreeMap::new(), expect: Vec::new() }
    }

    #[test]
    fn questions_are_shown_without_secrets() {
        for (question, shown, place) in [
            (Question::File { file: "in/ü.csv".to_owned() }, "file `in/ü.csv`", "files"),
            (Question::File { file: "s3://b/in/*.csv".to_owned() }, "object `s3://b/in/*.csv`", "s3://b"),
            (
                http("https://me:pw@api.example:81/x/y?token=t0p#z"),
                "`https://api.example:81/x/y?...`",
                "https://api.example:81",
            ),
            (http("http://api.example?day=1"), "`http://api.example?...`", "http://api.example"),
            (
                Question::Sql { sql: " select 1\nfrom t".to_owned(), connection: "shop".parse().unwrap() },
                "SQL on `shop`: `select 1...`",
                "connection shop",
            ),
        ] {
            assert_eq!((question.to_string().as_str(), question.place().as_str()), (shown, place));
        }
    }

    #[test]
    fn only_the_file_names_variables() {
        let macros = minijinja::Value::from_iter([("x", "${env:OTHER}"), ("ds", "2026-01-01")]);
        let planned = |text: &str| {
            let headers = [("a".to_owned(), text.to_owned())].into();
            let question = Question::Http { http: "https://x/{{ ds }}".to_owned(), headers, expect: Vec::new() };
            let wait = OutsideWait { every: None, question };
            wait.planned(&macros).map_err(|unfilled| unfilled.message)
        };
        let filled = planned("Bearer ${env:TOKEN}").unwrap();
        assert_eq!(filled.headers(&|name| (name == "TOKEN").then(|| "t0p".to_owned())).unwrap()["a"], "Bearer t0p");
        assert!(filled.headers(&|_| None).unwrap_err().to_string().contains("`TOKEN` is not set"));
        assert_eq!(planned("${env:TOKEN} {{ x }}"), Err("a macro brings `${env:OTHER}` along".to_owned()));
        assert_eq!(planned("{{ y }}"), Err("`y` is not there".to_owned()));
    }
}
