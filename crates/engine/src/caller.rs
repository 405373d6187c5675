use std::sync::Arc;

use headworks_domain::Access;

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
