//! Looks at what runs wait for outside of the lake: files, objects, what a connection's SQL says, HTTP answers.

use std::{path::PathBuf, sync::Arc};

use headworks_connect::{FirstValue, files};
use headworks_domain::{Clock, ConnectionName, ErrorKind};
use headworks_flow::{Answer, Failure, Question, Status, exec::LOOK_WITHIN};

use super::http::{Http, is_expected, status_failure};
use crate::{app::App, buckets::Buckets, connections::Connections, live::LiveProject, settings::Environment};

/// The most letters of a value that an answer shows.
const SHOWN_MAX: usize = 60;

/// Answers questions, one look at a time.
pub(crate) struct Looker {
    root: PathBuf,
    project: LiveProject,
    pub(super) connections: Connections,
    pub(super) http: Http,
    buckets: Buckets,
    environment: Environment,
    clock: Arc<dyn Clock>,
}

impl Looker {
    /// Opens nothing yet.
    pub(crate) fn new(app: &App, project: LiveProject) -> anyhow::Result<Self> {
        Ok(Self {
            root: app.root()?.to_path_buf(),
            project,
            connections: app.connections()?,
            http: Http::default(),
            buckets: Buckets::new(app.environment().clone()),
            environment: app.environment().clone(),
            clock: app.clock.clone(),
        })
    }

    /// Looks once. Errors: retryable ones may pass; with any other the question will never get an answer.
    pub(crate) async fn look(&self, question: &Question) -> Result<Answer, Failure> {
        match question {
            Question::File { file } => self.file(file).await,
            Question::Sql { sql, connection } => self.sql(connection, sql).await,
            Question::Http { http, expect, .. } => self.http(question, http, expect).await,
        }
    }

    async fn file(&self, file: &str) -> Result<Answer, Failure> {
        let Some((bucket, key)) = file.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) else {
            let (folder, pattern) = (self.root.clone(), file.to_owned());
            let found = tokio::task::spawn_blocking(move || files::find(&folder, &pattern)).await;
            let found = found.map_err(|error| Failure::new(ErrorKind::Internal, "LOOK_FILE", error.to_string()))?;
            return Ok(match found.map_err(|error| Failure::of(&error))? {
                Some(path) => Answer::yes(format!("`{}` is there", path.display())),
                None => Answer::not_yet("there is no such file"),
            });
        };
        let store = self.buckets.bucket(&self.project.current(), bucket)?;
        match files::find_object(store.as_ref(), file, key).await {
            Ok(Some(key)) => Ok(Answer::yes(format!("`s3://{bucket}/{key}` is there"))),
            Ok(None) => Ok(Answer::not_yet("there is no such object")),
            Err(error) => {
                let failure = Failure::of(&error);
                let is_denied = failure.kind == ErrorKind::Denied;
                let hint = "let the keys of [storage] read and list the bucket: S3 hides from others what is not there";
                Err(if is_denied { failure.with_hint(hint) } else { failure })
            }
        }
    }

    async fn sql(&self, connection: &ConnectionName, sql: &str) -> Result<Answer, Failure> {
        let source = self.connections.source(&self.project.current(), connection)?;
        let value = source.first_value(sql, LOOK_WITHIN).await.map_err(|error| {
            let failure = Failure::of(&error);
            let is_wrong = failure.kind == ErrorKind::Invalid;
            if is_wrong {
                failure.with_hint("mend `sql` of the wait; headworks render JOB shows it filled in")
            } else {
                failure
            }
        })?;
        let said = match &value {
            FirstValue::NoRow => "the query gave no row".to_owned(),
            FirstValue::Null => "the query gave null".to_owned(),
            FirstValue::Value { text, .. } => {
                let shown: String = text.chars().take(SHOWN_MAX).collect();
                format!("the query gave `{shown}{}`", if shown.len() < text.len() { "..." } else { "" })
            }
        };
        Ok(if value.is_true() { Answer::yes(said) } else { Answer::not_yet(said) })
    }

    async fn http(&self, question: &Question, url: &str, expect: &[Status]) -> Result<Answer, Failure> {
        let headers = question.headers(&|name| self.environment.get(name).map(str::to_owned));
        let headers = headers.map_err(|error| Failure::of(&error))?;
        let (status, asked, shown) = self.http.status(url, &headers, self.clock.now()).await?;
        let said = format!("got status {status}");
        match status.as_u16() {
            _ if is_expected(expect, status) => Ok(Answer::yes(said)),
            404 | ..400 => Ok(Answer::not_yet(said)),
            // Whether it passes or not, as for a task's call.
            _ => Err(status_failure(&shown, status, asked, "")),
        }
    }
}
