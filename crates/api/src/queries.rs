//! Queries: submitted, looked at, stopped.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::JsonRejection},
    http::{HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use chrono::{DateTime, Utc};
use futures::{Stream, stream};
use headworks_domain::ErrorKind;
use headworks_engine::{Kept, QueryId, QueryOptions, QueryState, QueueState, ScalarValue, Signed, Stage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Api,
    auth::By,
    problem::Problem,
    results::{self, Column, PAGE_ROWS},
};

/// How long a request may wait for a result, in milliseconds.
pub(crate) const WAIT_MS_MAX: u64 = 60_000;
/// How long it waits when it does not say.
const WAIT_MS: u64 = 1_000;

/// A statement to run.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Submit {
    /// One SELECT, or another statement that reads.
    sql: String,
    /// Values of `$1`, `$2` and so on: null, true, 7, 1.5 or a text.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    parameters: Vec<Value>,
    /// The queue, instead of the one that the client and its role lead to.
    queue: Option<String>,
    /// How long to wait for the result before the answer only tells where it will be, at most 60,000.
    #[serde(default = "wait_ms")]
    wait_ms: u64,
    /// A name for this request of the client's own: the same again gives the query that was started first.
    request_id: Option<String>,
    /// How long the query may take, when that is less than its queue allows.
    timeout_ms: Option<u64>,
    /// Rows that are wanted; the rest is cut off.
    rows_max: Option<u64>,
    /// False to read the tables whatever the cache has.
    #[serde(default = "yes")]
    use_cache: bool,
}

fn wait_ms() -> u64 {
    WAIT_MS
}

fn yes() -> bool {
    true
}

/// A query and how it stands.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueryBody {
    /// Its id.
    #[schema(value_type = String)]
    id: String,
    /// `waiting`, `planning`, `running`, `done`, `failed` or `cancelled`.
    state: &'static str,
    sql: String,
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    application: Option<String>,
    queue: String,
    /// How many queries of its queue start before it, itself counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<usize>,
    started_at: DateTime<Utc>,
    waited_ms: u64,
    took_ms: u64,
    /// Rows so far.
    rows: u64,
    bytes: u64,
    scanned_rows: u64,
    /// 0 also when grants hide a part of what is read.
    scanned_bytes: u64,
    memory_bytes: u64,
    spilled_bytes: u64,
    is_cached: bool,
    /// True when there were more rows than `rows_max`.
    is_truncated: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
    /// The columns, once it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<Vec<Column>>,
    /// The first rows, once it is done: an array for each, with a value for each column.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Vec<Object>>>)]
    data: Option<Box<RawValue>>,
    /// Where the next rows are, when there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Where the result is, once the query is done.
    results: String,
    /// Where its progress is told as it happens.
    events: String,
}

impl QueryBody {
    pub(crate) fn of(state: &QueryState) -> Self {
        let id = state.id.to_string();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            state: state.stage.as_str(),
            sql: state.sql.to_string(),
            user: state.user.clone(),
            application: state.application.clone(),
            queue: state.queue.clone(),
            place: state.place,
            started_at: state.started_at,
            waited_ms: millis(state.waited),
            took_ms: millis(state.took),
            rows: state.rows,
            bytes: state.bytes,
            scanned_rows: state.scanned_rows,
            scanned_bytes: if state.is_guarded { 0 } else { state.scanned_bytes },
            memory_bytes: state.memory_bytes,
            spilled_bytes: state.spilled_bytes,
            is_cached: state.is_cached,
            is_truncated: state.is_truncated,
            error: None,
            columns: None,
            data: None,
            next: None,
            results: format!("/api/v1/queries/{id}/results"),
            events: format!("/api/v1/queries/{id}/events"),
            id,
        }
    }

    fn of_kept(kept: &Kept) -> Self {
        let error = kept.error().map(|error| Problem::of(&error));
        let state = kept.state();
        // The last rows are out before the result is whole.
        let stage = if state.stage == Stage::Done && !kept.is_over() { Stage::Running } else { state.stage };
        Self {
            error,
            columns: kept.schema().map(|schema| results::columns(&schema)),
            ..Self::of(&QueryState { stage, ..state })
        }
    }
}

/// Submit a query
///
/// Waits at most `wait_ms`. 200 with the first rows when the query is done by then, 202 with its id when it is not.
#[utoipa::path(
    post, path = "/queries", tag = "queries", request_body = Submit,
    responses(
        (status = 200, description = "it is done", body = QueryBody),
        (status = 202, description = "it waits or runs", body = QueryBody),
        (status = 400, description = "the request or the statement is not right", body = Problem),
        (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 422, description = "a limit was reached", body = Problem),
        (status = 503, description = "too many queries wait", body = Problem),
    )
)]
pub(crate) async fn submit(
    State(api): State<Api>,
    By(signed): By,
    request: Result<Json<Submit>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(request) = request.map_err(|error| {
        let detail = error.body_text();
        Problem { status: error.status().as_u16(), ..Problem::new(ErrorKind::Invalid, "API_BODY", detail) }
    })?;
    may_query(&signed)?;
    let parameters = request.parameters.iter().map(parameter).collect::<Result<_, _>>()?;
    let options = QueryOptions {
        caller: signed.caller,
        queue: request.queue,
        timeout: request.timeout_ms.map(Duration::from_millis),
        rows_max: request.rows_max,
        is_cached: request.use_cache,
        parameters,
        ..QueryOptions::default()
    };
    let kept = api.queries.submit(&request.sql, options, request.request_id).map_err(|error| Problem::of(&error))?;
    let is_over = kept.over_within(Duration::from_millis(request.wait_ms.min(WAIT_MS_MAX))).await;
    let mut body = QueryBody::of_kept(&kept);
    let status = match (is_over, &body.error) {
        (_, Some(error)) => {
            // What a statement names and is not there is a mistake in the request, which itself arrived where it should.
            let status = error.status();
            if status == StatusCode::NOT_FOUND { StatusCode::BAD_REQUEST } else { status }
        }
        (true, None) => StatusCode::OK,
        (false, None) => StatusCode::ACCEPTED,
    };
    if status == StatusCode::OK {
        let page = results::page(&kept, 0, PAGE_ROWS).await?;
        (body.data, body.next) = (Some(page.data), page.next);
    }
    let mut response = (status, Json(body)).into_response();
    let place = HeaderValue::from_str(&format!("/api/v1/queries/{}", kept.id()));
    response.headers_mut().extend(place.ok().map(|place| (header::LOCATION, place)));
    Ok(response)
}

pub(crate) fn may_query(signed: &Signed) -> Result<(), Problem> {
    if signed.may_query {
        return Ok(());
    }
    Err(Problem::new(ErrorKind::Denied, "API_DENIED", format!("`{}` may not ask queries", signed.caller.user))
        .hint("an admin can give another role, or a token with the scope `query`"))
}

fn parameter(value: &Value) -> Result<ScalarValue, Problem> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), ..) => ScalarValue::Int64(Some(value)),
            (_, Some(value), _) => ScalarValue::UInt64(Some(value)),
            (_, _, value) => ScalarValue::Float64(value),
        },
        Value::String(text) => ScalarValue::Utf8(Some(text.clone())),
        Value::Array(_) | Value::Object(_) => {
            return Err(Problem::new(ErrorKind::Invalid, "API_PARAMETER", "a parameter is an array or an object")
                .hint("send null, true, false, a number or a text"));
        }
    })
}

/// Finds a query that the caller may see.
pub(crate) fn find(api: &Api, signed: &Signed, id: &str) -> Result<Arc<Kept>, Problem> {
    let kept = id.parse::<QueryId>().ok().and_then(|id| api.queries.get(id));
    // Somebody else's looks like none.
    kept.filter(|kept| signed.may_manage || kept.user() == signed.caller.user).ok_or_else(|| {
        Problem::new(ErrorKind::NotFound, "QUERY_UNKNOWN", format!("there is no query `{id}`"))
            .hint("results are kept for `server.results_keep` after the end of their query: submit it again")
    })
}

/// A query
#[utoipa::path(
    get, path = "/queries/{id}", tag = "queries", params(("id" = String, Path, description = "the query's id")),
    responses((status = 200, body = QueryBody), (status = 401, body = Problem), (status = 404, body = Problem))
)]
pub(crate) async fn show(
    State(api): State<Api>,
    By(signed): By,
    Path(id): Path<String>,
) -> Result<Json<QueryBody>, Problem> {
    Ok(Json(QueryBody::of_kept(find(&api, &signed, &id)?.as_ref())))
}

/// Stop a query and forget its result
#[utoipa::path(
    delete, path = "/queries/{id}", tag = "queries", params(("id" = String, Path, description = "the query's id")),
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem))
)]
pub(crate) async fn forget(
    State(api): State<Api>,
    By(signed): By,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    // Those who manage may also stop what came over another protocol.
    if signed.may_manage
        && let Ok(id) = id.parse()
        && api.queries.get(id).is_none()
        && api.engine.cancel(id)
    {
        return Ok(StatusCode::NO_CONTENT);
    }
    let kept = find(&api, &signed, &id)?;
    api.queries.forget(kept.id());
    Ok(StatusCode::NO_CONTENT)
}

/// Which queries.
#[derive(Deserialize, IntoParams)]
pub(crate) struct Which {
    /// True for everybody's that wait or run now, over whatever protocol; for those who manage.
    #[serde(default)]
    all: bool,
}

/// Queries, the newest last
#[utoipa::path(
    get, path = "/queries", tag = "queries", params(Which),
    responses((status = 200, body = Vec<QueryBody>), (status = 401, body = Problem), (status = 403, body = Problem))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    By(signed): By,
    Query(which): Query<Which>,
) -> Result<Json<Vec<QueryBody>>, Problem> {
    if !which.all {
        let kept = api.queries.all();
        let own = kept.iter().filter(|kept| kept.user() == signed.caller.user);
        return Ok(Json(own.map(|kept| QueryBody::of_kept(kept)).collect()));
    }
    if !signed.may_manage {
        return Err(Problem::new(ErrorKind::Denied, "API_DENIED", "others' queries are not shown to you"));
    }
    Ok(Json(api.engine.queries().iter().map(QueryBody::of).collect()))
}

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Progress as it happens
///
/// Server-sent events: `progress` about four times a second, `end` once, each with the query as `GET /queries/{id}` gives it.
#[utoipa::path(
    get, path = "/queries/{id}/events", tag = "queries", params(("id" = String, Path, description = "the query's id")),
    responses(
        (status = 200, content_type = "text/event-stream", body = QueryBody),
        (status = 401, body = Problem), (status = 404, body = Problem),
    )
)]
pub(crate) async fn events(
    State(api): State<Api>,
    By(signed): By,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let kept = find(&api, &signed, &id)?;
    let events = stream::unfold((kept, 0_u32, false), |(kept, told, is_over)| async move {
        if is_over {
            return None;
        }
        let wait = if told == 0 { Duration::ZERO } else { TELL_EVERY };
        let is_over = kept.over_within(wait).await;
        let event = Event::default().event(if is_over { "end" } else { "progress" });
        // Nothing in it cannot be JSON.
        let event = event.json_data(QueryBody::of_kept(&kept)).unwrap_or_default();
        Some((Ok(event), (kept, told.saturating_add(1), is_over)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// A queue and how it stands.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueBody {
    name: String,
    slots: usize,
    running: usize,
    waiting: usize,
    memory_bytes: usize,
    memory_used_bytes: usize,
}

/// The queues of this server
#[utoipa::path(get, path = "/queues", tag = "queries", responses((status = 200, body = Vec<QueueBody>), (status = 401, body = Problem)))]
pub(crate) async fn queues(State(api): State<Api>, _by: By) -> Json<Vec<QueueBody>> {
    let body = |queue: QueueState| QueueBody {
        name: queue.name,
        slots: queue.slots,
        running: queue.running,
        waiting: queue.waiting,
        memory_bytes: queue.memory_bytes,
        memory_used_bytes: queue.memory_used_bytes,
    };
    Json(api.engine.queues().into_iter().map(body).collect())
}
