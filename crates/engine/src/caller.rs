use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use headworks_domain::{Access, Secret};

/// Who asks, and from where. Every protocol makes one from its own sign-in.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The name of the account; of a job's query, the job's.
    pub user: String,
    /// The account's role, by which queries find their queue; `None` outside of accounts, as on the command line.
    pub role: Option<String>,
    /// What may be read.
    pub access: Arc<Access>,
    /// What the client calls itself: `application_name` of PostgreSQL, the User-Agent of HTTP.
    pub application: Option<String>,
}

impl Caller {
    /// Somebody who owns the project's folder, or the project itself: may read everything.
    pub fn trusted(user: impl Into<String>) -> Self {
        Self { user: user.into(), role: None, access: Arc::new(Access::everything()), application: None }
    }
}

impl Default for Caller {
    /// The owner of the project.
    fn default() -> Self {
        Self::trusted("headworks")
    }
}

/// Turns what a client shows into a caller. The program implements it over its accounts.
#[async_trait]
pub trait SignIn: Send + Sync + 'static {
    /// Errors: `Wrong` for all that does not fit, whatever of it; it may take a while then.
    async fn sign_in(&self, credentials: Credentials, from: IpAddr) -> Result<Signed, SignInError>;

    /// The account behind a [`Signed::session`], or behind the user name of a client of PostgreSQL, as it is now. Costs
    /// microseconds: who keeps a connection is asked about at each statement. Errors: `Wrong` when it may not any more.
    async fn again(&self, session: &str) -> Result<Signed, SignInError>;
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
    /// Who it is.
    pub caller: Caller,
    /// May ask queries.
    pub may_query: bool,
    /// May see and stop everybody's queries.
    pub may_manage: bool,
    /// By what [`SignIn::again`] finds the account, as long as its password is the same; `None` when each request must show the credentials, as with a
    /// token, which has fewer rights than its owner and an end of its own.
    pub session: Option<String>,
}

/// Why nobody was signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignInError {
    /// The credentials fit nobody.
    Wrong,
    /// Too many have failed by this name from this address: the next may try in so many seconds.
    Slowed(u64),
    /// The accounts cannot be read now.
    Unavailable,
}

/// Padding is asked for by the standard and left out by some clients.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Credentials {
    /// Reads the value of an `Authorization` header: `Bearer <token>` or `Basic <name:password>`.
    pub fn of_header(value: &str) -> Option<Self> {
        let (scheme, rest) = value.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Token(Secret::new(rest.trim())));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(BASE64.decode(rest.trim()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Self::Password { user: user.to_owned(), password: Secret::new(password) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_with_and_without_padding() {
        let check = |value: &str, expected: Option<(&str, &str)>| {
            let found = Credentials::of_header(value).map(|credentials| match credentials {
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
