use std::net::IpAddr;

use async_trait::async_trait;
use headworks_domain::Fault;
use headworks_engine::Caller;

use super::ScramVerifier;

/// Who may sign in. The binary implements it over its accounts.
#[async_trait]
pub trait Accounts: Send + Sync + 'static {
    /// What a user's password is checked with; for an unknown or blocked one [`ScramVerifier::mock`]. Whoever has failed often
    /// waits here.
    async fn verifier(&self, user: &str, from: IpAddr) -> Result<ScramVerifier, Box<dyn Fault>>;

    /// The user has shown the password. Errors: the account may not sign in after all.
    async fn signed_in(&self, user: &str, from: IpAddr) -> Result<Caller, Box<dyn Fault>>;

    /// The password was wrong, or there is no such user.
    async fn failed(&self, user: &str, from: IpAddr);
}
