//! Requests to addresses out of the settings: looked up once, never into private networks unless allowed, never redirected.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use headworks_domain::Secret;
use reqwest::{Client, RequestBuilder, StatusCode, Url, redirect::Policy};

use super::NotSent;

/// How long a whole request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// The most characters of an answer that a message repeats.
const ANSWER_CHARS_SHOWN: usize = 200;
/// A server that says when to come back is believed up to so long.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Sends JSON by POST, with `token` as bearer. `dress` adds headers. Errors name the host at most: the rest of the address may be
/// a secret, and an answer that repeats it or the token is not shown.
pub(super) async fn post(
    url: &Secret,
    token: Option<&Secret>,
    allow_private: bool,
    body: &serde_json::Value,
    dress: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<(), NotSent> {
    let address = Url::parse(url.expose()).map_err(|error| NotSent::new(format!("the address is none: {error}")))?;
    let host = address.host_str().unwrap_or_default().to_owned();
    let hidden: Vec<String> = [address.path(), address.query().unwrap_or_default(), token.map_or("", Secret::expose)]
        .into_iter()
        .filter(|part| part.len() > 1)
        .map(str::to_owned)
        .collect();
    let addresses = look_up(&address, allow_private).await?;
    let client = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .resolve_to_addrs(&host, &addresses)
        .user_agent(concat!("headworks/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| NotSent::new(format!("no request can be made: {}", told(error))))?;
    let mut request = client.post(address).header("content-type", "application/json").body(body.to_string());
    if let Some(token) = token {
        request = request.bearer_auth(token.expose());
    }
    let mut answer = dress(request).send().await.map_err(|error| NotSent::new(format!("`{host}`: {}", told(error))))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    if status.is_redirection() {
        return Err(NotSent::new(format!("`{host}` answered {status}, and redirects are not followed")));
    }
    let retry_after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let mut said = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        said.extend_from_slice(&chunk);
        if said.len() >= ANSWER_BYTES_MAX {
            break;
        }
    }
    let mut reason = format!("`{host}` answered {status}");
    // Looked for in the whole answer: one that is cut short could hold the half of a secret.
    let said = String::from_utf8_lossy(&said);
    let is_safe = hidden.iter().all(|part| !said.contains(part.as_str()));
    let said: String = said.chars().filter(|c| !c.is_control()).take(ANSWER_CHARS_SHOWN).collect();
    if !said.is_empty() && is_safe {
        reason = format!("{reason}: {said}");
    }
    let limited = status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE;
    let retry_after = retry_after.filter(|_| limited).map(|secs| Duration::from_secs(secs).min(RETRY_AFTER_MAX));
    Err(NotSent { reason, retry_after })
}

/// An error with its causes, without the address.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Finds where a host is; those of its addresses that lie in private networks are left out unless allowed.
async fn look_up(url: &Url, allow_private: bool) -> Result<Vec<SocketAddr>, NotSent> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(443);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => tokio::net::lookup_host((host, port))
            .await
            .map_err(|error| NotSent::new(format!("`{host}` is not known: {error}")))?
            .collect(),
    };
    let allowed: Vec<SocketAddr> = found.into_iter().filter(|at| allow_private || is_public(at.ip())).collect();
    if allowed.is_empty() {
        let reason = format!("`{host}` lies in a private network: set `allow_private = true` if that is meant");
        return Err(NotSent::new(reason));
    }
    Ok(allowed)
}

/// True for addresses of the public internet: no loopback, no private or shared network, no link, nothing reserved.
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let special = (a, b, c) == (192, 0, 0) || (a == 198 && (18..20).contains(&b)) || a == 0 || a >= 240;
    !(ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || ip.is_unspecified()
        || shared
        || special)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    // Addresses that carry one of version 4: mapped, NAT64, 6to4.
    let carried = match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    };
    if let Some(ip) = carried {
        return is_public_v4(ip);
    }
    // Global unicast is 2000::/3; documentation and the like lie in 2001:0::/23 and 2001:db8::/32.
    let documentation = segments[0] == 0x2001 && (segments[1] == 0xdb8 || segments[1] < 0x200);
    segments[0] & 0xe000 == 0x2000 && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_are_told_from_the_internet() {
        for public in ["1.1.1.1", "34.117.59.81", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "192.0.2.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    #[tokio::test]
    async fn addresses_in_disguise_are_refused() {
        // Url reads all of these as 127.0.0.1 or its like.
        for url in [
            "https://127.0.0.1/x",
            "https://2130706433/x",
            "https://0x7f.1/x",
            "https://0177.0.0.1/x",
            "https://127.1/x",
            "https://[::1]/x",
            "https://[::ffff:7f00:1]/x",
            "https://localhost/x",
            "https://169.254.169.254/latest/meta-data",
        ] {
            let refused = post(&Secret::new(url), None, false, &serde_json::Value::Null, |r| r).await.unwrap_err();
            assert!(refused.reason.contains("private network"), "{url}: {}", refused.reason);
        }
    }
}
