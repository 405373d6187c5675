//! HTTP: the call of a task, whose answer is the output, and the look of a wait, which wants the status only.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use chrono::{DateTime, Utc};
use headworks_domain::ErrorKind;
use headworks_flow::{Failure, HttpTask, Status, exec::Segment};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, header, redirect::Policy};
use serde_json::{Value, json};

use crate::output::bytes;

/// The most bytes of an answer unless the task says otherwise.
const RESPONSE_BYTES_MAX: u64 = 1024 * 1024;
/// The most redirects of one call.
const REDIRECTS_MAX: usize = 5;
/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// A call of a task without a timeout ends after this.
const CALL_WITHIN: Duration = Duration::from_secs(600);
/// The most bytes of an answer that the log shows.
const SHOWN_BYTES: usize = 2 * 1024;

/// Makes calls; the connections are opened with the first one.
#[derive(Default)]
pub(super) struct Http(OnceLock<Result<Client, String>>);

impl Http {
    /// Makes the call. The output is `{status, body}`, the body as JSON where it is that.
    pub(super) async fn call(&self, segment: &Segment, task: &HttpTask) -> Result<Option<Value>, Failure> {
        let method = reqwest::Method::from_bytes(task.method.as_str().as_bytes()).unwrap_or(reqwest::Method::GET);
        let (request, shown) = self.request(method, &task.url, &task.headers)?;
        let request = match &task.body {
            None => request,
            Some(Value::String(text)) => request.body(text.clone()),
            Some(json) => {
                let typed = task.headers.keys().any(|name| name.eq_ignore_ascii_case("content-type"));
                let request = if typed { request } else { request.header(header::CONTENT_TYPE, "application/json") };
                request.body(json.to_string())
            }
        };
        segment.log.line(format!("{} {shown}", task.method.as_str()));
        let response = request.send().await.map_err(|error| call_failure(&shown, &error))?;
        let status = response.status();
        let asked = retry_after(&response, segment.clock.now());
        let json = is_json(&response);
        let max = task.response_max.map_or(RESPONSE_BYTES_MAX, |max| max.bytes());
        let body = body(response, max, &shown).await?;
        segment.log.line(format!("{status}, {}", bytes(body.len() as u64)));
        let text = String::from_utf8_lossy(&body).into_owned();
        if !text.is_empty() {
            let end = text.floor_char_boundary(SHOWN_BYTES);
            segment.log.line(&text[..end]);
        }
        if !is_expected(&task.expect, status) {
            return Err(status_failure(&shown, status, asked, &text));
        }
        let body = if json { serde_json::from_str(&text).unwrap_or(Value::String(text)) } else { Value::String(text) };
        let output = json!({"status": status.as_u16(), "body": body});
        let (size, most) = (output.to_string().len(), segment.output_bytes_max());
        if size > most {
            let (size, most) = (bytes(size as u64), bytes(most as u64));
            segment
                .log
                .line(format!("the answer of {size} is too large for an output of {most}: later tasks get its status"));
            return Ok(Some(json!({"status": status.as_u16()})));
        }
        Ok(Some(output))
    }

    /// Asks for an address and gives the status of the answer, the pause that it asks for, and the address without secrets.
    pub(super) async fn status(
        &self,
        url: &str,
        headers: &BTreeMap<String, String>,
        now: DateTime<Utc>,
    ) -> Result<(StatusCode, Option<Duration>, String), Failure> {
        let (request, shown) = self.request(reqwest::Method::GET, url, headers)?;
        let response = request.send().await.map_err(|error| call_failure(&shown, &error))?;
        Ok((response.status(), retry_after(&response, now), shown))
    }

    /// A request, and its address without secrets.
    fn request(
        &self,
        method: reqwest::Method,
        url: &str,
        headers: &BTreeMap<String, String>,
    ) -> Result<(RequestBuilder, String), Failure> {
        let client =
            self.0.get_or_init(|| client().map_err(|error| error.to_string())).as_ref().map_err(|error| {
                Failure::new(ErrorKind::Internal, "TASK_HTTP", format!("cannot make calls: {error}"))
            })?;
        let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(|| {
            Failure::new(ErrorKind::Invalid, "TASK_HTTP", format!("calls `{url}`, which is not an address"))
                .with_hint("it begins with `https://` or `http://`")
        })?;
        let shown = shown_url(&url);
        let mut request = client.request(method, url).timeout(CALL_WITHIN);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        Ok((request, shown))
    }
}

fn client() -> reqwest::Result<Client> {
    let policy = Policy::custom(|attempt| {
        // Headers and bodies may hold secrets, which are for this place only.
        let place =
            |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
        if attempt.previous().last().map(place) != Some(place(attempt.url())) {
            let to = shown_url(attempt.url());
            attempt.error(format!("it leads to `{to}`, at another place"))
        } else if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error(format!("it leads on more than {REDIRECTS_MAX} times"))
        } else {
            attempt.follow()
        }
    });
    Client::builder()
        .redirect(policy)
        .referer(false)
        .connect_timeout(CONNECT_WITHIN)
        .user_agent(concat!("headworks/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// An address without what may be a secret: password and query.
fn shown_url(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = shown.set_username("").and_then(|()| shown.set_password(None));
    shown.set_query(url.query().map(|_| "..."));
    shown.set_fragment(None);
    shown.to_string()
}

fn is_json(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind == "application/json" || kind.ends_with("+json")
    })
}

async fn body(mut response: Response, max: u64, shown: &str) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| call_failure(shown, &error))? {
        if (body.len() + piece.len()) as u64 > max {
            let message = format!("got an answer of more than {} from {shown}", bytes(max));
            return Err(Failure::new(ErrorKind::Exhausted, "TASK_HTTP", message)
                .with_hint("ask for less, or raise its `response_max`"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

pub(super) fn is_expected(expect: &[Status], status: StatusCode) -> bool {
    if expect.is_empty() { status.is_success() } else { expect.iter().any(|expected| expected.0 == status.as_u16()) }
}

/// The failure of a call that got no whole answer.
fn call_failure(shown: &str, error: &reqwest::Error) -> Failure {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = cause.to_string();
        source = cause.source();
    }
    // What is wrong with the request or where it leads will be so next time.
    let permanent = error.is_builder() || error.is_redirect();
    let kind = if permanent { ErrorKind::Invalid } else { ErrorKind::Unavailable };
    Failure::new(kind, "TASK_HTTP", format!("could not call {shown}: {reason}"))
}

pub(super) fn status_failure(shown: &str, status: StatusCode, asked: Option<Duration>, body: &str) -> Failure {
    let passing = matches!(status.as_u16(), 408 | 425 | 429 | 500..=599);
    let kind = if passing { ErrorKind::Unavailable } else { ErrorKind::Invalid };
    let mut failure = Failure::new(kind, "TASK_HTTP", format!("got status {status} from {shown}"));
    failure.retry_after = asked.filter(|_| passing);
    let first: String = body.lines().next().unwrap_or_default().chars().take(200).collect();
    if first.is_empty() { failure } else { failure.with_hint(format!("the answer begins with: {first}")) }
}

/// The pause that the server asks for, in seconds or as a date.
fn retry_after(response: &Response, now: DateTime<Utc>) -> Option<Duration> {
    pause_of(response.headers().get(header::RETRY_AFTER)?.to_str().ok()?, now)
}

fn pause_of(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(secs) = text.trim().parse() {
        return Some(Duration::from_secs(secs));
    }
    let date = DateTime::parse_from_rfc2822(text.trim()).ok()?;
    Some((date.to_utc() - now).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(pause_of("120", now), Some(Duration::from_secs(120)));
        assert_eq!(pause_of("Thu, 01 Jan 2026 00:01:00 GMT", now), Some(Duration::from_secs(60)));
        assert_eq!(pause_of("Wed, 31 Dec 2025 00:00:00 GMT", now), Some(Duration::ZERO), "it is over");
        assert_eq!(pause_of("soon", now), None);
    }

    #[test]
    fn addresses_are_shown_without_secrets() {
        let url = Url::parse("https://me:pw@api.example/x?token=secret#y").unwrap();
        assert_eq!(shown_url(&url), "https://api.example/x?...");
    }

    #[test]
    fn some_statuses_pass() {
        for (status, retryable) in
            [(400, false), (401, false), (404, false), (408, true), (429, true), (500, true), (503, true)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = status_failure("x", status, Some(Duration::from_secs(5)), "");
            assert_eq!((failure.retryable, failure.retry_after.is_some()), (retryable, retryable), "{status}");
        }
    }
}
