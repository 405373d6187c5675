//! Services that take JSON by POST.

use headworks_domain::Secret;
use headworks_flow::alert::Message;

use super::{NotSent, egress};

/// Sends a message, with its id as `Idempotency-Key` too: a second try has the same one.
pub(super) async fn send(
    url: &Secret,
    token: Option<&Secret>,
    allow_private: bool,
    message: &Message,
) -> Result<(), NotSent> {
    let id = |request: reqwest::RequestBuilder| request.header("idempotency-key", &message.id);
    egress::post(url, token, allow_private, &message.json(), id).await
}
