//! Who asks: an API token, or a user's name and password.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use headworks_domain::ErrorKind;
use headworks_engine::{Caller, Credentials, SignInError, Signed};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Api, problem::Problem, server::Peer};

/// The caller of a request; requests without one are refused.
pub(crate) struct By(pub(crate) Signed);

impl FromRequestParts<Api> for By {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Response> {
        let from = parts.extensions.get::<ConnectInfo<Peer>>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.0.ip());
        let shown = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(credentials) = shown.and_then(Credentials::of_header) else {
            return Err(unknown("nobody has signed in"));
        };
        let signed = api.accounts.sign_in(credentials, from).await.map_err(|error| match error {
            SignInError::Wrong => unknown("the token, or the name and password, are not right"),
            SignInError::Slowed(seconds) => {
                let detail = format!("too many have failed to sign in by this name: try again in {seconds} s");
                let problem = Problem::new(ErrorKind::Unavailable, "AUTH_SLOWED", detail);
                Problem { status: StatusCode::TOO_MANY_REQUESTS.as_u16(), ..problem }.into_response()
            }
            SignInError::Unavailable => {
                Problem::new(ErrorKind::Unavailable, "AUTH_UNAVAILABLE", "the accounts cannot be read now")
                    .into_response()
            }
        })?;
        let application = parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let caller = Caller { application: application.map(str::to_owned), ..signed.caller };
        Ok(Self(Signed { caller, ..signed }))
    }
}

fn unknown(detail: &str) -> Response {
    let problem = Problem {
        status: StatusCode::UNAUTHORIZED.as_u16(),
        ..Problem::new(ErrorKind::Denied, "AUTH_REQUIRED", detail)
    };
    let hint = "send `Authorization: Bearer <token>`; headworks tokens create makes one";
    let mut response = problem.hint(hint).into_response();
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer, Basic charset=\"UTF-8\""));
    response
}

/// Who is signed in.
#[derive(Serialize, ToSchema)]
pub(crate) struct Me {
    user: String,
    role: Option<String>,
    may_query: bool,
    may_manage: bool,
}

/// Who am I
#[utoipa::path(get, path = "/me", tag = "accounts", responses((status = 200, body = Me), (status = 401, body = Problem)))]
pub(crate) async fn me(By(signed): By) -> Json<Me> {
    let Signed { caller, may_query, may_manage, .. } = signed;
    Json(Me { user: caller.user, role: caller.role, may_query, may_manage })
}
