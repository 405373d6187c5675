//! Errors as people and programs read them over HTTP: `application/problem+json` (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use headworks_domain::{ErrorKind, Fault};
use serde::Serialize;
use utoipa::ToSchema;

/// What went wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// The HTTP status.
    pub(crate) status: u16,
    /// A stable short name, as `SQL_SYNTAX`.
    pub(crate) code: &'static str,
    /// What was being done, to what, and what stood in the way.
    pub(crate) detail: String,
    /// The next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// The line of the statement, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<usize>,
    /// The column in that line, in characters from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) column: Option<usize>,
    /// True when the same request may succeed later.
    pub(crate) is_retryable: bool,
}

impl Problem {
    pub(crate) fn new(kind: ErrorKind, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status: status(kind).as_u16(),
            code,
            detail: detail.into(),
            hint: None,
            line: None,
            column: None,
            is_retryable: kind == ErrorKind::Unavailable,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error of a query.
    pub(crate) fn of(error: &headworks_engine::Error) -> Self {
        let position = error.position();
        Self {
            hint: error.hint(),
            line: position.map(|position| position.line),
            column: position.map(|position| position.column),
            is_retryable: error.is_retryable(),
            ..Self::new(error.kind(), error.code(), error.to_string())
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// The status that a kind of error has.
pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Cancelled => StatusCode::CONFLICT,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Exhausted => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// When a client should ask again, in seconds.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, is_retryable) = (self.status(), self.is_retryable);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if is_retryable {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECS);
        }
        response
    }
}

pub(crate) async fn no_route() -> Problem {
    Problem::new(ErrorKind::NotFound, "API_NO_ROUTE", "there is nothing at this address")
        .hint("GET /api/v1/openapi.json lists what there is")
}
