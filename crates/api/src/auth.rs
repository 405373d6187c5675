//! Who asks: an API token, or a user's name and password.

use std::net::IpAddr;

use async_trait::async_trait;
use axum::{
    Json,
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use headworks_domain::{ErrorKind, Secret};
use headworks_engine::Caller;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Api, problem::Problem, server::Peer};

/// Turns credentials into a caller. The program implements it over its accounts.
#[async_trait]
pub trait SignIn: Send + Sync + 'static {
    /// Errors: `Wrong` for all that does not fit, whatever of it; it may take a while then.
    async fn sign_in(&self, credentials: Credentials, from: IpAddr) -> Result<Signed, SignInError>;
}

/// What a client shows.
#[derive(Debug)]
pub enum Credentials {
    /// An API token.
    Token(Secret),
    /// A user's name and password, or a token as the password.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
}

/// Somebody who has signed in.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Who it is, for the engine.
    pub caller: Caller,
    /// May ask queries.
    pub may_query: bool,
    /// May see and stop everybody's queries.
    pub may_manage: bool,
}

/// Why nobody was signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignInError {
    /// The credentials fit nobody.
    Wrong,
    /// The accounts cannot be read now.
    Unavailable,
}

/// Padding is asked for by the standard and left out by some clients.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads `Authorization: Bearer` or `Basic`.
pub(crate) fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credentials::Token(Secret::new(rest.trim())));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials::Password { user: user.to_owned(), password: Secret::new(password) })
}

/// The caller of a request; requests without one are refused.
pub(crate) struct By(pub(crate) Signed);

impl FromRequestParts<Api> for By {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Response> {
        let from = parts.extensions.get::<ConnectInfo<Peer>>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.0.ip());
        let Some(credentials) = credentials(&parts.headers) else { return Err(unknown("nobody has signed in")) };
        let signed = api.accounts.sign_in(credentials, from).await.map_err(|error| match error {
            SignInError::Wrong => unknown("the token, or the name and password, are not right"),
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
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer, Basic charset=\"UTF-8\""));
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
    let Signed { caller, may_query, may_manage } = signed;
    Json(Me { user: caller.user, role: caller.role, may_query, may_manage })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_with_and_without_padding() {
        let check = |value: &str, expected: Option<(&str, &str)>| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
            let found = credentials(&headers).map(|credentials| match credentials {
                Credentials::Token(token) => (String::new(), token.expose().to_owned()),
                Credentials::Password { user, password } => (user, password.expose().to_owned()),
            });
            assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())), "{value}");
        };
        check("Bearer hw_x", Some(("", "hw_x")));
        check("bearer  hw_x ", Some(("", "hw_x")));
        check("Basic YTpiOmM=", Some(("a", "b:c")));
        check("Basic YTpiOmM", Some(("a", "b:c")));
        check("Basic YQ==", None);
        check("Basic ???", None);
        check("Digest x", None);
        check("hw_x", None);
    }
}
