//! From the first byte to `ReadyForQuery`: encryption, the startup message, the password.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use headworks_domain::{ErrorKind, Fault};
use headworks_engine::{Caller, Signed};
use pgwire::messages::{response::SslResponse, startup::Authentication};
use tokio::net::TcpStream;

use super::{
    Shared,
    accounts::{self, Accounts},
    error::{PgError, state},
    frame::{Frontend, Opening},
    link::{End, Link},
    scram::{self, Exchange, Refusal},
    settings::Settings,
    tls::Tls,
};

/// What a connection turns out to be.
pub(super) enum Opened {
    Session(Box<SignedIn>),
    Cancel { pid: i32, secret: Bytes },
}

/// A client that has signed in.
pub(super) struct SignedIn {
    pub(super) link: Link,
    /// By what the accounts find it again.
    pub(super) account: String,
    /// The name that it signed in with: a user's, or a token's.
    pub(super) login: String,
    pub(super) caller: Caller,
    pub(super) settings: Settings,
}

/// The first byte of a TLS handshake.
const HANDSHAKE: u8 = 0x16;

/// Greets a client. Errors come with the link to say them on, when there is one.
pub(super) async fn open(shared: &Shared, tcp: TcpStream, from: SocketAddr) -> Result<Opened, (Option<Link>, End)> {
    let write_max = shared.options.write_timeout;
    let gone = |end: End| (None, end);
    let mut first = [0];
    let is_direct = tcp.peek(&mut first).await.map_err(|error| gone(error.into()))? == 1 && first[0] == HANDSHAKE;
    if is_direct {
        let tls = shared.options.tls.as_ref().ok_or_else(|| gone(End::Gone))?;
        let stream = tls.accept(tcp, true).await.map_err(|error| gone(error.into()))?;
        return start(shared, Link::new(stream, write_max), Some(tls), from).await;
    }
    let mut link = Link::new(tcp, write_max);
    // Each may be asked for once, in either order.
    for _ in 0..2 {
        match link.opening().await {
            Ok(Opening::Tls) => match &shared.options.tls {
                None => link.put(&SslResponse::Refuse).map_err(gone)?,
                Some(tls) => {
                    link.put(&SslResponse::Accept).map_err(gone)?;
                    link.flush().await.map_err(gone)?;
                    let stream = link.into_stream().map_err(gone)?;
                    let stream = tls.accept(stream, false).await.map_err(|error| gone(error.into()))?;
                    return start(shared, Link::new(stream, write_max), Some(tls), from).await;
                }
            },
            Ok(Opening::Gss) => link.put(&SslResponse::Refuse).map_err(gone)?,
            Ok(other) => return started(shared, link, other, None, from).await,
            Err(end) => return Err((Some(link), end)),
        }
        link.flush().await.map_err(gone)?;
    }
    start(shared, link, None, from).await
}

async fn start(
    shared: &Shared,
    mut link: Link,
    tls: Option<&Tls>,
    from: SocketAddr,
) -> Result<Opened, (Option<Link>, End)> {
    match link.opening().await {
        Ok(opening) => started(shared, link, opening, tls, from).await,
        Err(end) => Err((Some(link), end)),
    }
}

async fn started(
    shared: &Shared,
    mut link: Link,
    opening: Opening,
    tls: Option<&Tls>,
    from: SocketAddr,
) -> Result<Opened, (Option<Link>, End)> {
    let signed_in = match opening {
        Opening::Cancel { pid, secret } => return Ok(Opened::Cancel { pid, secret }),
        Opening::Tls | Opening::Gss => {
            Err(End::Said(PgError::new(state::PROTOCOL, "the connection is set up already")))
        }
        Opening::Startup { minor, parameters } => sign_in(shared, &mut link, minor, parameters, tls, from).await,
    };
    match signed_in {
        Ok((account, login, caller, settings)) => {
            Ok(Opened::Session(Box::new(SignedIn { link, account, login, caller, settings })))
        }
        Err(end) => Err((Some(link), end)),
    }
}

async fn sign_in(
    shared: &Shared,
    link: &mut Link,
    minor: u16,
    parameters: Vec<(String, String)>,
    tls: Option<&Tls>,
    from: SocketAddr,
) -> Result<(String, String, Caller, Settings), End> {
    let refused = |state, message: &str, hint: &str| Err(End::Said(PgError::new(state, message).with_hint(hint)));
    let named = |name: &str| parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let Some(user) = named("user").filter(|user| !user.is_empty()) else {
        return refused(state::AUTHORIZATION, "there is no user in the startup message", "name one: `user=...`");
    };
    if tls.is_none() && shared.options.tls.is_some() && shared.options.tls_required {
        return refused(state::AUTHORIZATION, "this server takes encrypted connections only", "use `sslmode=require`");
    }
    let unknown: Vec<&str> =
        parameters.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("_pq_.")).collect();
    if minor > 0 || !unknown.is_empty() {
        link.put_raw(b'v', &negotiation(&unknown));
    }
    let Signed { caller, session, .. } = password(shared, link, user, tls, from.ip()).await?;
    let account = session.unwrap_or_else(|| user.to_owned());
    if named("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return refused(state::NOT_SUPPORTED, "there is no replication here", "connect without `replication`");
    }
    // Clients that name no database ask for one that is named like the user.
    let database = named("database").unwrap_or(user);
    if database != DATABASE && database != user {
        let message = format!("database `{database}` does not exist");
        return refused(state::NO_DATABASE, &message, "the one database is named `headworks`");
    }
    let mut settings = Settings::new(&caller.user);
    for (name, value) in command_line(named("options").unwrap_or_default()) {
        settings.set(&name, Some(&value)).map_err(End::Said)?;
    }
    for (name, value) in &parameters {
        if matches!(name.as_str(), "user" | "database" | "options" | "replication") || name.starts_with("_pq_.") {
            continue;
        }
        let set = settings.set(name, Some(value));
        // Drivers of Java send the zone of their own machine, whether somebody asked for it or not. They are told the session's
        // right after, and every time that has a zone goes with it.
        if !name.eq_ignore_ascii_case("timezone") {
            set.map_err(End::Said)?;
        }
    }
    settings.begin();
    Ok((account, user.to_owned(), caller, settings))
}

/// The name of the one database.
const DATABASE: &str = "headworks";

/// We speak 3.0 and know no extensions.
fn negotiation(unknown: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    body.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(0).to_be_bytes());
    for name in unknown {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
    }
    body
}

/// `-c name=value` and `--name=value`, as libpq's `options` has them.
fn command_line(text: &str) -> Vec<(String, String)> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            ' ' if word.is_empty() => {}
            ' ' => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    let mut words = words.into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next().unwrap_or_default(),
            word => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or_default().to_owned(),
        };
        if let Some((name, value)) = setting.split_once('=') {
            settings.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    settings
}

async fn password(
    shared: &Shared,
    link: &mut Link,
    user: &str,
    tls: Option<&Tls>,
    from: std::net::IpAddr,
) -> Result<Signed, End> {
    let accounts: &Arc<dyn Accounts> = &shared.accounts;
    let endpoint = tls.and_then(Tls::endpoint);
    let mut mechanisms = vec![scram::PLAIN.to_owned()];
    if endpoint.is_some() {
        mechanisms.insert(0, scram::PLUS.to_owned());
    }
    link.put(&Authentication::SASL(mechanisms))?;
    link.flush().await?;
    let (mechanism, first) = initial_response(sasl(link).await?).ok_or_else(unreadable)?;
    let verifier = accounts.verifier(user, from).await.map_err(of_fault)?;
    let exchange = Exchange::start(&first, &mechanism, endpoint, verifier);
    let (exchange, answer) = exchange.map_err(|refusal| of_refusal(refusal, user))?;
    link.put(&Authentication::SASLContinue(answer.into_bytes().into()))?;
    link.flush().await?;
    let last = String::from_utf8(sasl(link).await?.into()).map_err(|_| unreadable())?;
    match exchange.finish(&last) {
        Ok(proof) => {
            accounts.succeeded(user, from).await;
            let signed = accounts::signed(accounts.as_ref(), user, user).await.map_err(End::Said)?;
            link.put(&Authentication::SASLFinal(proof.into_bytes().into()))?;
            link.put(&Authentication::Ok)?;
            Ok(signed)
        }
        Err(refusal) => {
            if refusal == Refusal::Password {
                accounts.failed(user, from).await;
            }
            Err(of_refusal(refusal, user))
        }
    }
}

async fn sasl(link: &mut Link) -> Result<Bytes, End> {
    match link.message(0).await? {
        Frontend::Password(body) => Ok(body),
        Frontend::Terminate => Err(End::Gone),
        _ => Err(unreadable()),
    }
}

/// The mechanism's name, a length, and the first message.
fn initial_response(body: Bytes) -> Option<(String, String)> {
    let mut body = super::frame::Body(body);
    let mechanism = body.text()?;
    let first = body.value()??;
    body.0.is_empty().then_some((mechanism, String::from_utf8(first.into()).ok()?))
}

fn unreadable() -> End {
    End::Said(PgError::new(state::PROTOCOL, "the answer in the sign-in is not readable"))
}

fn of_refusal(refusal: Refusal, user: &str) -> End {
    End::Said(match refusal {
        Refusal::Protocol(what) => PgError::new(state::PROTOCOL, what),
        Refusal::Password => {
            PgError::new(state::PASSWORD, format!("password authentication failed for user \"{user}\""))
        }
    })
}

fn of_fault(fault: Box<dyn Fault>) -> End {
    let state = if fault.kind() == ErrorKind::Denied { state::AUTHORIZATION } else { state::INTERNAL };
    End::Said(PgError { hint: fault.hint(), code: Some(fault.code()), ..PgError::new(state, fault.to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_a_command_line() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let expected: Vec<(String, String)> =
                expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(command_line(text), expected, "{text}");
        };
        check("", &[]);
        check("-c statement_timeout=5s", &[("statement_timeout", "5s")]);
        check("-cstatement_timeout=5s --search-path=a\\ b", &[("statement_timeout", "5s"), ("search_path", "a b")]);
        check("-c", &[]);
    }
}
