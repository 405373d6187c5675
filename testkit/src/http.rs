//! The few HTTP requests that fixtures need, against servers on loopback.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// A reply: status and body.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Asks a server on loopback for a page: its status and body.
pub fn http_get(port: u16, path: &str) -> Result<(u16, String)> {
    let reply = request(port, "GET", path, &[])?;
    Ok((reply.status, String::from_utf8_lossy(&reply.body).into_owned()))
}

/// Sends one request and reads the whole reply. The path stands as it goes over the wire, percent-encoded where needed.
pub(crate) fn request(port: u16, method: &str, path: &str, body: &[u8]) -> Result<Reply> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // HTTP/1.0: the reply comes in one piece and ends with the connection. The signature is not looked at, but without one
    // the caller is a stranger who may read nothing.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {}\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=test/20130101/us-east-1/s3/aws4_request, SignedHeaders=host, \
         Signature=none\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).context("read the reply")?;
    let end = reply.windows(4).position(|w| w == b"\r\n\r\n").context("the reply has no end of headers")?;
    let status_line = String::from_utf8_lossy(&reply[..end]);
    let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok()).context("the reply has no status")?;
    Ok(Reply { status, body: reply.split_off(end + 4) })
}
