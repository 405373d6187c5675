use std::net::IpAddr;

use async_trait::async_trait;
use headworks_domain::Fault;
use headworks_engine::{SignIn, SignInError, Signed};

use super::{
    ScramVerifier,
    error::{PgError, state},
};

/// Who may sign in, and who still may: [`SignIn::again`] is asked at the sign-in by the client's user name, and before each
/// statement by what it said then. The binary implements it over its accounts.
#[async_trait]
pub trait Accounts: SignIn {
    /// What a user's password is checked with; for an unknown or blocked one [`ScramVerifier::mock`]. Whoever has failed often
    /// waits here.
    async fn verifier(&self, user: &str, from: IpAddr) -> Result<ScramVerifier, Box<dyn Fault>>;

    /// The user has shown the password.
    async fn succeeded(&self, user: &str, from: IpAddr);

    /// The password was wrong, or there is no such user.
    async fn failed(&self, user: &str, from: IpAddr);
}

/// Who a client is by now; `login` is the name that it signed in with. Errors: [`state::AUTHORIZATION`] when it may not ask any more, another while nobody can tell.
pub(super) async fn signed(accounts: &dyn Accounts, account: &str, login: &str) -> Result<Signed, PgError> {
    let denied = |message: String, hint: &str| {
        let error = PgError::new(state::AUTHORIZATION, message).with_hint(hint);
        Err(PgError { code: Some("ACCOUNT_DENIED"), ..error })
    };
    match accounts.again(account).await {
        Ok(signed) if signed.may_query => Ok(signed),
        Ok(signed) => denied(
            format!("`{}` may not ask queries", signed.caller.user),
            "an admin can give another role, or a token with the scope `query`",
        ),
        Err(SignInError::Wrong) => denied(
            format!("`{login}` may not sign in any more"),
            "sign in again if the password is another; an admin can enable the account, or give another token",
        ),
        Err(SignInError::Slowed(_) | SignInError::Unavailable) => {
            Err(PgError::new(state::NOT_NOW, "the accounts cannot be read now").with_hint("try again"))
        }
    }
}
