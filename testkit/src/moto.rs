use std::ffi::OsString;

use anyhow::{Context as _, Result, bail};

use crate::{
    http::{Reply, request},
    server::Server,
    tools::venv_program,
};

/// An S3 server in memory on a free loopback port: moto, which answers conditional requests as S3 does (tried with 16
/// writers racing for one key: exactly one won). Its content goes with it.
#[derive(Debug)]
pub struct Moto {
    // Held for its drop.
    _server: Server,
    port: u16,
}

impl Moto {
    /// The access key's id. Any is accepted.
    pub const ACCESS_KEY_ID: &str = "test";
    /// The access key's secret. Any is accepted.
    pub const SECRET_ACCESS_KEY: &str = "test";
    /// The region.
    pub const REGION: &str = "us-east-1";

    /// Starts a server. About two seconds, which are Python's imports.
    pub fn start() -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("headworks-moto-").tempdir().context("make a temporary folder")?.keep();
        let mut argv: Vec<OsString> = vec![venv_program("moto_server")?.into()];
        argv.extend(["-H", "127.0.0.1", "-p", "0"].map(OsString::from));
        let server = Server::start(&dir, "KILL", &argv)?;
        let port = server
            .wait_ready(|| {
                let log = server.log();
                let rest = log.split_once("Running on http://127.0.0.1:")?.1;
                rest.split_once(|c: char| !c.is_ascii_digit())?.0.parse().ok()
            })
            .context("start moto")?;
        Ok(Self { _server: server, port })
    }

    /// The endpoint's URL, for plain HTTP with the bucket in the path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a bucket.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        self.done(request(self.port, "PUT", &format!("/{bucket}"), b"")?).map(drop)
    }

    /// Puts an object, as one that a crash left behind.
    pub fn put(&self, bucket: &str, key: &str, content: &[u8]) -> Result<()> {
        self.done(request(self.port, "PUT", &format!("/{bucket}/{}", encode(key)), content)?).map(drop)
    }

    /// An object's bytes.
    pub fn get(&self, bucket: &str, key: &str) -> Result<Vec<u8>> {
        self.done(request(self.port, "GET", &format!("/{bucket}/{}", encode(key)), b"")?)
    }

    /// Deletes an object, as somebody who should not have.
    pub fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        self.done(request(self.port, "DELETE", &format!("/{bucket}/{}", encode(key)), b"")?).map(drop)
    }

    /// All keys of a bucket that begin with a prefix, sorted; at most 1,000, which is S3's page.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Result<Vec<String>> {
        let path = format!("/{bucket}?list-type=2&prefix={}", encode(prefix));
        let list = String::from_utf8(self.done(request(self.port, "GET", &path, b"")?)?)?;
        if list.contains("<IsTruncated>true") {
            bail!("bucket `{bucket}` has more keys than one page holds");
        }
        let keys = list.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        Ok(keys.map(|(key, _)| key.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")).collect())
    }

    fn done(&self, reply: Reply) -> Result<Vec<u8>> {
        if !(200..300).contains(&reply.status) {
            bail!("moto answered {}: {}", reply.status, String::from_utf8_lossy(&reply.body));
        }
        Ok(reply.body)
    }
}

/// Percent-encodes a key; `/` stays.
fn encode(key: &str) -> String {
    let mut encoded = String::new();
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_objects() {
        let moto = Moto::start().unwrap();
        assert!(moto.get("lake", "x").unwrap_err().to_string().contains("404"));
        moto.create_bucket("lake").unwrap();
        moto.put("lake", "t/ds=2013-01-01/Ünï & co.parquet", b"bytes").unwrap();
        assert_eq!(moto.keys("lake", "t/ds=").unwrap(), ["t/ds=2013-01-01/Ünï & co.parquet"]);
        assert_eq!(moto.get("lake", "t/ds=2013-01-01/Ünï & co.parquet").unwrap(), b"bytes");
        moto.delete("lake", "t/ds=2013-01-01/Ünï & co.parquet").unwrap();
        assert!(moto.keys("lake", "").unwrap().is_empty());
    }
}
