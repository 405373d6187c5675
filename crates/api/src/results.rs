//! Results of queries: a page as JSON, or all of it in one of several formats.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use headworks_domain::ErrorKind;
use headworks_engine::{Kept, QueryStream, Stage, output, sql_type_name};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{runtime::Handle, sync::mpsc};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Api,
    auth::By,
    problem::Problem,
    queries::{WAIT_MS_MAX, find},
};

/// Rows of a page that does not say how many it wants.
pub(crate) const PAGE_ROWS: u64 = 1_000;
/// The most rows of a page.
const PAGE_ROWS_MAX: u64 = 100_000;

/// A column of a result.
#[derive(Serialize, ToSchema)]
pub(crate) struct Column {
    name: String,
    /// Its SQL type, as `bigint`.
    #[serde(rename = "type")]
    kind: String,
}

/// Some rows of a result.
#[derive(Serialize, ToSchema)]
pub(crate) struct Page {
    columns: Vec<Column>,
    /// An array for each row, with a value for each column.
    #[schema(value_type = Vec<Vec<Object>>)]
    pub(crate) data: Box<RawValue>,
    /// Rows of the whole result.
    rows: u64,
    /// Where the next rows are, when there are more.
    pub(crate) next: Option<String>,
}

/// How a result is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// One page as JSON, with columns and rows apart.
    #[default]
    Json,
    /// One object a line.
    Jsonl,
    /// CSV with a heading line.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

/// Which rows, and how.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// `json` (a page), `jsonl`, `csv`, `arrow` or `parquet`.
    #[serde(default)]
    #[param(inline)]
    format: Format,
    /// The first row, from 0.
    #[serde(default)]
    offset: u64,
    /// The most rows: of `json` 1,000 unless given and at most 100,000, else all.
    limit: Option<u64>,
    /// How long to wait for the query's end, at most 60,000.
    #[serde(default)]
    wait_ms: u64,
}

pub(crate) fn columns(schema: &headworks_engine::SchemaRef) -> Vec<Column> {
    let column = |field: &Arc<headworks_engine::Field>| Column {
        name: field.name().clone(),
        kind: sql_type_name(field.data_type()),
    };
    schema.fields().iter().map(column).collect()
}

/// The result of a query
#[utoipa::path(
    get, path = "/queries/{id}/results", tag = "queries",
    params(("id" = String, Path, description = "the query's id"), Which),
    responses(
        (status = 200, description = "a page, or the result in the format asked for", body = Page),
        (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "the query is not done", body = Problem),
    )
)]
pub(crate) async fn read(
    State(api): State<Api>,
    By(signed): By,
    Path(id): Path<String>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(which) =
        which.map_err(|error| Problem::new(ErrorKind::Invalid, "API_QUERY_STRING", error.body_text()))?;
    let kept = find(&api, &signed, &id)?;
    kept.over_within(Duration::from_millis(which.wait_ms.min(WAIT_MS_MAX))).await;
    if let Some(error) = kept.error() {
        let problem = Problem::of(&error);
        // The query is there: what it names is not.
        let status = if problem.status() == StatusCode::NOT_FOUND { StatusCode::BAD_REQUEST } else { problem.status() };
        return Err(Problem { status: status.as_u16(), ..problem });
    }
    let (content, ending) = match which.format {
        Format::Json => {
            let limit = which.limit.unwrap_or(PAGE_ROWS).min(PAGE_ROWS_MAX);
            return Ok(Json(page(&kept, which.offset, limit).await?).into_response());
        }
        Format::Jsonl => ("application/x-ndjson", "jsonl"),
        Format::Csv => ("text/csv; charset=utf-8", "csv"),
        Format::Arrow => ("application/vnd.apache.arrow.stream", "arrow"),
        Format::Parquet => ("application/vnd.apache.parquet", "parquet"),
    };
    let rows = kept.stream(which.offset, which.limit.unwrap_or(u64::MAX)).ok_or_else(|| not_done(&kept))?;
    let file = HeaderValue::from_str(&format!("attachment; filename=\"{id}.{ending}\""));
    let mut response = written(rows, which.format).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    headers.extend(file.ok().map(|file| (header::CONTENT_DISPOSITION, file)));
    Ok(response)
}

fn not_done(kept: &Kept) -> Problem {
    let stage = kept.state().stage;
    let detail = match stage {
        Stage::Cancelled => "the query was stopped and has no result".to_owned(),
        other => format!("the query is not done: it is {}", other.as_str()),
    };
    Problem::new(ErrorKind::Conflict, "QUERY_NOT_DONE", detail)
        .hint("ask again with wait_ms=60000, or follow its events")
}

pub(crate) async fn page(kept: &Arc<Kept>, offset: u64, limit: u64) -> Result<Page, Problem> {
    let (Some(schema), Some(rows)) = (kept.schema(), kept.rows()) else { return Err(not_done(kept)) };
    let from = Arc::clone(kept);
    let read = move || {
        let batches = from.page(offset, limit)?.unwrap_or_default();
        let read: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        headworks_engine::Result::Ok((output::json_rows(&batches)?, read))
    };
    let internal = |detail: String| Problem::new(ErrorKind::Internal, "SQL_INTERNAL", detail);
    let read = match kept.is_small() {
        true => read(),
        // It may come from a file.
        false => tokio::task::spawn_blocking(read).await.map_err(|error| internal(error.to_string()))?,
    };
    let (text, read) = read.map_err(|error| Problem::of(&error))?;
    let data = RawValue::from_string(text).map_err(|error| internal(error.to_string()))?;
    let after = offset.saturating_add(read);
    let next = (after < rows && read > 0)
        .then(|| format!("/api/v1/queries/{}/results?offset={after}&limit={limit}", kept.id()));
    Ok(Page { columns: columns(&schema), data, rows, next })
}

/// Pieces of a result that wait for the client.
const PIECES_AHEAD: usize = 8;
/// The size of a piece.
const PIECE_BYTES: usize = 64 << 10;

/// A body that is written as the client takes it.
fn written(rows: QueryStream, format: Format) -> Body {
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces { sender: sender.clone(), buffer: Vec::with_capacity(PIECE_BYTES) };
        let done = handle.block_on(async {
            match format {
                Format::Csv => output::write_csv(rows, &mut out).await,
                Format::Arrow => output::write_arrow(rows, &mut out).await,
                Format::Parquet => output::write_parquet(rows, &mut out).await,
                Format::Json | Format::Jsonl => output::write_json_lines(rows, &mut out).await,
            }
        });
        if let Err(error) = done {
            // A body that breaks off is how HTTP tells of it now.
            let _ = sender.blocking_send(Err(io::Error::other(error)));
        }
    });
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }))
}

/// Hands on what is written in pieces.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES)));
        // On a thread that may block, within a future that has nothing else to do; it must not count against tokio's budget of
        // a poll, which would never be filled up again in here.
        let sent = tokio::task::unconstrained(self.sender.send(Ok(piece)));
        futures::executor::block_on(sent).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}
