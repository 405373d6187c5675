//! Mail, by SMTP. The server's name comes from the project's own settings and may lie in a private network, as relays do.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use headworks_flow::{Mail, MailSecurity, alert::Message};
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Tokio1Executor,
    message::{Mailbox, header},
    transport::smtp::{
        authentication::Credentials,
        client::{Tls, TlsParameters},
    },
};

use super::NotSent;

/// How long each answer of the server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends a message to all receivers; its id is part of the mail's own, so that mail programs know a second try for the same.
pub(super) async fn send(mail: &Mail, message: &Message, now: DateTime<Utc>) -> Result<(), NotSent> {
    let text = compose(mail, message, now)?;
    let tls = || {
        TlsParameters::new(mail.host.clone())
            .map_err(|error| NotSent::new(format!("TLS to `{}` cannot be set up: {error}", mail.host)))
    };
    let security = match mail.security {
        MailSecurity::Starttls => Tls::Required(tls()?),
        MailSecurity::Tls => Tls::Wrapper(tls()?),
        MailSecurity::None => Tls::None,
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&mail.host)
        .port(mail.port)
        .tls(security)
        .timeout(Some(ANSWER_TIMEOUT));
    if let Some((user, password)) = &mail.login {
        transport = transport.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
    }
    let sent = transport.build().send(text).await;
    sent.map(drop).map_err(|error| NotSent::new(format!("mail server `{}`: {}", mail.host, told(&error))))
}

fn compose(mail: &Mail, message: &Message, now: DateTime<Utc>) -> Result<lettre::Message, NotSent> {
    let mailbox = |text: &String| {
        text.parse::<Mailbox>().map_err(|error| NotSent::new(format!("`{text}` is no address for mail: {error}")))
    };
    let mut builder = lettre::Message::builder()
        .from(mailbox(&mail.from)?)
        .subject(message.subject())
        .date(SystemTime::from(now))
        .message_id(Some(format!("<{}@headworks.invalid>", message.id)))
        .header(header::ContentType::TEXT_PLAIN);
    for receiver in &mail.to {
        builder = builder.to(mailbox(receiver)?);
    }
    builder.body(message.text()).map_err(|error| NotSent::new(format!("the mail cannot be written: {error}")))
}

/// An error with its causes.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
