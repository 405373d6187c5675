//! Slack, by an incoming webhook (docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).

use headworks_domain::Secret;
use headworks_flow::alert::Message;

use super::{NotSent, egress};

/// Sends a message. Slack has no key against doubles: the alert's id stands at the message's foot.
pub(super) async fn send(url: &Secret, allow_private: bool, message: &Message) -> Result<(), NotSent> {
    egress::post(url, None, allow_private, &message.slack(), |request| request).await
}
