//! A client that sends what it is told, byte for byte.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, hmac, pbkdf2};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// One message of the server: its type and its body.
pub(crate) type Message = (u8, Vec<u8>);

pub(crate) struct Raw<S = TcpStream> {
    pub(crate) stream: S,
}

/// A message of a client.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let mut bytes = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

pub(crate) fn parse(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut body = format!("{name}\0{sql}\0").into_bytes();
    body.extend_from_slice(&u16::try_from(types.len()).unwrap().to_be_bytes());
    body.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
    message(b'P', &body)
}

/// Values in text, results in one format.
pub(crate) fn bind(portal: &str, statement: &str, values: &[Option<&str>], format: u16) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0\0\0").into_bytes();
    body.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        match value {
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
                body.extend_from_slice(value.as_bytes());
            }
        }
    }
    body.extend_from_slice(&[0, 1]);
    body.extend_from_slice(&format.to_be_bytes());
    message(b'B', &body)
}

pub(crate) fn execute(portal: &str, rows: u32) -> Vec<u8> {
    let mut body = format!("{portal}\0").into_bytes();
    body.extend_from_slice(&rows.to_be_bytes());
    message(b'E', &body)
}

pub(crate) fn describe(kind: char, name: &str) -> Vec<u8> {
    message(b'D', format!("{kind}{name}\0").as_bytes())
}

pub(crate) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

impl Raw {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap() }
    }

    /// Signs in as ann; gives what the server says then.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::connect_as(address, &[("user", "ann"), ("database", "headworks")]).await.0
    }

    pub(crate) async fn connect_as(address: SocketAddr, parameters: &[(&str, &str)]) -> (Self, Vec<Message>) {
        let mut raw = Self::open(address).await;
        raw.send(&startup(parameters)).await;
        let said = raw.sign_in("pencil", None).await;
        (raw, said)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next message; none when the server has hung up.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        let read = async {
            let kind = self.stream.read_u8().await.ok()?;
            let length = self.stream.read_u32().await.ok()?;
            let mut body = vec![0; usize::try_from(length).unwrap() - 4];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((kind, body))
        };
        tokio::time::timeout(Duration::from_secs(30), read).await.expect("the server says nothing for 30 s")
    }

    /// All messages up to `ReadyForQuery`, or the end of the connection.
    pub(crate) async fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            let is_ready = message.0 == b'Z';
            messages.push(message);
            if is_ready {
                break;
            }
        }
        messages
    }

    pub(crate) async fn ask(&mut self, sql: &str) -> Vec<Message> {
        self.send(&query(sql)).await;
        self.until_ready().await
    }

    /// Answers the password exchange, bound to a certificate's hash when there is one.
    pub(crate) async fn sign_in(&mut self, password: &str, endpoint: Option<&[u8]>) -> Vec<Message> {
        let Some((b'R', offered)) = self.next().await else { panic!("no authentication request") };
        let offered = String::from_utf8_lossy(&offered[4..]).into_owned();
        let (mechanism, flag) = match endpoint {
            Some(_) => ("SCRAM-SHA-256-PLUS", "p=tls-server-end-point"),
            None => ("SCRAM-SHA-256", "n"),
        };
        assert!(offered.split('\0').any(|name| name == mechanism), "{offered}");
        let bare = "n=,r=clientnonce";
        let first = format!("{flag},,{bare}");
        let mut body = format!("{mechanism}\0").into_bytes();
        body.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
        body.extend_from_slice(first.as_bytes());
        self.send(&message(b'p', &body)).await;
        let Some((kind, answer)) = self.next().await else { return Vec::new() };
        if kind != b'R' {
            return vec![(kind, answer)];
        }
        let server_first = String::from_utf8(answer[4..].to_vec()).unwrap();
        let part = |name: &str| server_first.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
        let salt = STANDARD.decode(part("s=")).unwrap();
        let rounds = NonZeroU32::new(part("i=").parse().unwrap()).unwrap();
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
        let mut binding = format!("{flag},,").into_bytes();
        binding.extend_from_slice(endpoint.unwrap_or_default());
        let without = format!("c={},r={}", STANDARD.encode(binding), part("r="));
        let said = format!("{bare},{server_first},{without}");
        let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
        let client = sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, client.as_ref());
        let signature = sign(stored.as_ref(), said.as_bytes());
        let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        self.send(&message(b'p', format!("{without},p={}", STANDARD.encode(proof)).as_bytes())).await;
        let messages = self.until_ready().await;
        if let Some((b'R', last)) = messages.first() {
            let server = sign(sign(&salted, b"Server Key").as_ref(), said.as_bytes());
            assert_eq!(String::from_utf8_lossy(&last[4..]), format!("v={}", STANDARD.encode(server)));
        }
        messages
    }
}

/// The types of messages, as one word.
pub(crate) fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|(kind, _)| char::from(*kind)).collect()
}

/// A field of the first error.
pub(crate) fn error_field(messages: &[Message], field: u8) -> Option<String> {
    let (_, body) = messages.iter().find(|(kind, _)| *kind == b'E')?;
    let mut fields = body.split(|byte| *byte == 0);
    fields.find_map(|text| text.strip_prefix(&[field]).map(|text| String::from_utf8_lossy(text).into_owned()))
}

/// The values of all rows; null as `None`.
pub(crate) fn rows(messages: &[Message]) -> Vec<Vec<Option<Vec<u8>>>> {
    let row = |body: &[u8]| {
        let mut rest = &body[2..];
        let mut row = Vec::new();
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            match usize::try_from(i32::from_be_bytes(*length)) {
                Err(_) => {
                    row.push(None);
                    rest = behind;
                }
                Ok(length) => {
                    row.push(Some(behind[..length].to_vec()));
                    rest = &behind[length..];
                }
            }
        }
        row
    };
    messages.iter().filter(|(kind, _)| *kind == b'D').map(|(_, body)| row(body)).collect()
}

/// The same as text, with `-` for null, cells parted by `|`, rows by spaces.
pub(crate) fn shown(messages: &[Message]) -> String {
    let cell =
        |cell: &Option<Vec<u8>>| cell.as_ref().map_or("-".into(), |text| String::from_utf8_lossy(text).into_owned());
    let rows: Vec<String> =
        rows(messages).iter().map(|row| row.iter().map(cell).collect::<Vec<_>>().join("|")).collect();
    rows.join(" ")
}

/// Name, type and form of each column.
pub(crate) fn columns(messages: &[Message]) -> Vec<(String, u32, i32, u16)> {
    let Some((_, body)) = messages.iter().find(|(kind, _)| *kind == b'T') else { return Vec::new() };
    let mut rest = &body[2..];
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).unwrap();
        let name = String::from_utf8(rest[..end].to_vec()).unwrap();
        let fields = &rest[end + 1..end + 19];
        let oid = u32::from_be_bytes(fields[6..10].try_into().unwrap());
        let modifier = i32::from_be_bytes(fields[12..16].try_into().unwrap());
        let format = u16::from_be_bytes(fields[16..18].try_into().unwrap());
        columns.push((name, oid, modifier, format));
        rest = &rest[end + 19..];
    }
    columns
}

pub(crate) fn tag(messages: &[Message]) -> String {
    let found = messages.iter().rev().find(|(kind, _)| *kind == b'C');
    found.map(|(_, body)| String::from_utf8_lossy(&body[..body.len() - 1]).into_owned()).unwrap_or_default()
}

/// The letter of the transaction's state.
pub(crate) fn status(messages: &[Message]) -> char {
    messages.iter().rev().find(|(kind, _)| *kind == b'Z').map_or('-', |(_, body)| char::from(body[0]))
}
