//! What clients send, cut out of bytes that nobody has vouched for.
//!
//! `pgwire` has decoders of its own. They take a message's parts from whatever follows in the buffer, panic when it is too
//! short, and let a stranger announce a gigabyte; so only its encoders are used here.

use bytes::{Buf, Bytes, BytesMut};

/// A message from a client that is signed in, or signs in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frontend {
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind(Bind),
    Describe(Target),
    Execute {
        portal: String,
        rows_max: u32,
    },
    Close(Target),
    Flush,
    Sync,
    Terminate,
    /// An answer in the sign-in.
    Password(Bytes),
    /// Parts of a COPY that we do not take part in.
    Copy,
    /// A well-cut frame with a body that is not what its type says.
    Malformed(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) portal: String,
    pub(super) statement: String,
    pub(super) parameter_formats: Vec<i16>,
    pub(super) parameters: Vec<Option<Bytes>>,
    pub(super) result_formats: Vec<i16>,
}

/// What is to be described or closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Statement(String),
    Portal(String),
}

/// What comes first on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Tls,
    Gss,
    Cancel { pid: i32, secret: Bytes },
    Startup { minor: u16, parameters: Vec<(String, String)> },
}

/// Bytes after which nothing that follows can be trusted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a message has a length of {0} bytes")]
    Length(i64),
    #[error("there is no message of type {0}")]
    Type(u8),
    #[error("a message of {bytes} bytes is above the limit of {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("the client speaks version {0}.{1} of the protocol, not 3.0")]
    Version(u16, u16),
    #[error("the first message is not one of the protocol")]
    Opening,
}

/// The most bytes of messages without a text or values in them, as PostgreSQL has it.
const SMALL_BYTES_MAX: usize = 10_000;

/// Bytes that are still missing of the first message; 0 when it is whole.
fn missing(buffer: &[u8], head: usize, length: usize) -> usize {
    (head + length).saturating_sub(buffer.len())
}

/// Takes the first message of a connection from the buffer; else says how many bytes to wait for.
pub(super) fn opening(buffer: &mut BytesMut) -> Result<Result<Opening, usize>, Broken> {
    let Some(length) = buffer.first_chunk::<4>() else { return Ok(Err(4 - buffer.len())) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(8..=SMALL_BYTES_MAX).contains(&length) {
        return Err(Broken::Length(i64::try_from(length).unwrap_or(i64::MAX)));
    }
    let missing = missing(buffer, 0, length);
    if missing > 0 {
        return Ok(Err(missing));
    }
    let mut body = Body(buffer.split_to(length).freeze());
    body.0.advance(4);
    let (major, minor) = (body.u16().ok_or(Broken::Opening)?, body.u16().ok_or(Broken::Opening)?);
    Ok(Ok(match (major, minor) {
        (1234, 5679) => Opening::Tls,
        (1234, 5680) => Opening::Gss,
        (1234, 5678) => {
            let pid = body.i32().ok_or(Broken::Opening)?;
            Opening::Cancel { pid, secret: body.0 }
        }
        (3, minor) => {
            let mut parameters = Vec::new();
            loop {
                let name = body.text().ok_or(Broken::Opening)?;
                if name.is_empty() {
                    break;
                }
                parameters.push((name, body.text().ok_or(Broken::Opening)?));
            }
            Opening::Startup { minor, parameters }
        }
        (major, minor) => return Err(Broken::Version(major, minor)),
    }))
}

/// Takes one message from the buffer; else says how many bytes to wait for. `large_bytes_max` is for those with texts and
/// values; 0 lets none of them pass, as before the sign-in.
pub(super) fn message(buffer: &mut BytesMut, large_bytes_max: usize) -> Result<Result<Frontend, usize>, Broken> {
    let Some(head) = buffer.first_chunk::<5>() else { return Ok(Err(5 - buffer.len())) };
    let [kind, length @ ..] = *head;
    let limit = match kind {
        b'Q' | b'P' | b'B' | b'd' if large_bytes_max > 0 => large_bytes_max,
        b'p' | b'X' => SMALL_BYTES_MAX,
        b'D' | b'E' | b'C' | b'H' | b'S' | b'c' | b'f' if large_bytes_max > 0 => SMALL_BYTES_MAX,
        kind => return Err(Broken::Type(kind)),
    };
    let length = i32::from_be_bytes(length);
    let Some(bytes) = usize::try_from(length).ok().filter(|bytes| *bytes >= 4) else {
        return Err(Broken::Length(length.into()));
    };
    if bytes > limit {
        return Err(Broken::TooLong { bytes, limit });
    }
    let missing = missing(buffer, 1, bytes);
    if missing > 0 {
        return Ok(Err(missing));
    }
    let mut body = buffer.split_to(1 + bytes).freeze();
    body.advance(5);
    let mut body = Body(body);
    let (message, what) = match kind {
        b'Q' => (body.text().map(Frontend::Query), "Query"),
        b'P' => (parse(&mut body), "Parse"),
        b'B' => (bind(&mut body), "Bind"),
        b'D' => (target(&mut body).map(Frontend::Describe), "Describe"),
        b'C' => (target(&mut body).map(Frontend::Close), "Close"),
        b'E' => (execute(&mut body), "Execute"),
        b'H' => (Some(Frontend::Flush), "Flush"),
        b'S' => (Some(Frontend::Sync), "Sync"),
        b'X' => (Some(Frontend::Terminate), "Terminate"),
        b'p' => (Some(Frontend::Password(std::mem::take(&mut body.0))), "Password"),
        _ => {
            body.0.clear();
            (Some(Frontend::Copy), "Copy")
        }
    };
    let message = message.filter(|_| body.0.is_empty());
    Ok(Ok(message.unwrap_or(Frontend::Malformed(what))))
}

fn parse(body: &mut Body) -> Option<Frontend> {
    let (name, sql) = (body.text()?, body.text()?);
    let count = body.u16()?;
    let types = (0..count).map(|_| body.u32()).collect::<Option<Vec<u32>>>()?;
    Some(Frontend::Parse { name, sql, types })
}

fn bind(body: &mut Body) -> Option<Frontend> {
    let (portal, statement) = (body.text()?, body.text()?);
    let parameter_formats = body.formats()?;
    let count = body.u16()?;
    let parameters = (0..count).map(|_| body.value()).collect::<Option<Vec<_>>>()?;
    let result_formats = body.formats()?;
    Some(Frontend::Bind(Bind { portal, statement, parameter_formats, parameters, result_formats }))
}

fn target(body: &mut Body) -> Option<Target> {
    let kind = body.u8()?;
    let name = body.text()?;
    match kind {
        b'S' => Some(Target::Statement(name)),
        b'P' => Some(Target::Portal(name)),
        _ => None,
    }
}

fn execute(body: &mut Body) -> Option<Frontend> {
    let portal = body.text()?;
    // Below zero means no limit, as zero does.
    let rows_max = u32::try_from(body.i32()?).unwrap_or(0);
    Some(Frontend::Execute { portal, rows_max })
}

/// The rest of one message. Collecting into vectors takes no more than was sent: an `Option` in between tells no length.
pub(super) struct Body(pub(super) Bytes);

impl Body {
    pub(super) fn u8(&mut self) -> Option<u8> {
        (!self.0.is_empty()).then(|| self.0.get_u8())
    }

    fn u16(&mut self) -> Option<u16> {
        (self.0.len() >= 2).then(|| self.0.get_u16())
    }

    fn u32(&mut self) -> Option<u32> {
        (self.0.len() >= 4).then(|| self.0.get_u32())
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        (self.0.len() >= 4).then(|| self.0.get_i32())
    }

    /// A text up to its zero byte; none when that is missing or it is not UTF-8.
    pub(super) fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(text.into()).ok()
    }

    fn formats(&mut self) -> Option<Vec<i16>> {
        let count = self.u16()?;
        (0..count).map(|_| Some(self.u16()?.cast_signed()).filter(|format| (0..=1).contains(format))).collect()
    }

    /// A value behind its length; `Some(None)` is null.
    pub(super) fn value(&mut self) -> Option<Option<Bytes>> {
        match self.i32()? {
            -1 => Some(None),
            length => {
                let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len())?;
                Some(Some(self.0.split_to(length)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: u8, length: i32, body: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::from(&[kind][..]);
        buffer.extend_from_slice(&length.to_be_bytes());
        buffer.extend_from_slice(body);
        buffer
    }

    #[test]
    fn lengths_are_looked_at_before_anything_is_kept_for_them() {
        let check = |kind: u8, length: i32, limit: usize, expected: Broken| {
            assert_eq!(message(&mut bytes(kind, length, b""), limit), Err(expected), "{kind} {length}");
        };
        check(b'Q', i32::MAX, 1_000, Broken::TooLong { bytes: i32::MAX as usize, limit: 1_000 });
        check(b'Q', 8, 0, Broken::Type(b'Q'));
        check(b'Q', -1, 1_000, Broken::Length(-1));
        check(b'p', 3, 1_000, Broken::Length(3));
        check(b'p', 100_000, 1_000, Broken::TooLong { bytes: 100_000, limit: SMALL_BYTES_MAX });
        check(b'S', 100_000, 1_000_000, Broken::TooLong { bytes: 100_000, limit: SMALL_BYTES_MAX });
        check(b'!', 4, 1_000, Broken::Type(b'!'));
        assert_eq!(message(&mut bytes(b'Q', 100, b"x"), 1_000), Ok(Err(95)));
        for length in [0_u32, 7, 10_001, u32::MAX] {
            assert!(opening(&mut BytesMut::from(&length.to_be_bytes()[..])).is_err(), "{length}");
        }
    }

    #[test]
    fn bodies_that_end_too_early_or_too_late_are_malformed() {
        let check = |kind: u8, body: &[u8], expected: &'static str| {
            let length = i32::try_from(body.len()).unwrap() + 4;
            let mut buffer = bytes(kind, length, body);
            // What follows belongs to the next message.
            buffer.extend_from_slice(b"S\0\0\0\x04");
            assert_eq!(message(&mut buffer, 1_000), Ok(Ok(Frontend::Malformed(expected))), "{body:?}");
            assert_eq!(message(&mut buffer, 1_000), Ok(Ok(Frontend::Sync)));
        };
        check(b'Q', b"select 1", "Query");
        check(b'Q', b"select 1\0\0", "Query");
        check(b'Q', b"\xff\0", "Query");
        check(b'P', b"\0select 1\0", "Parse");
        check(b'P', b"\0select 1\0\0\x02\0\0\0\x17", "Parse");
        check(b'P', b"\0select 1\0\xff\xff", "Parse");
        check(b'B', b"\0\0\xff\xff", "Bind");
        check(b'B', b"\0\0\0\0\0\x01\0\0\0\x09x\0\0", "Bind");
        check(b'B', b"\0\0\0\x01\0\x02\0\0\0\0", "Bind");
        check(b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0", "Bind");
        check(b'D', b"X\0", "Describe");
        check(b'E', b"\0\0\0", "Execute");
        check(b'S', b"x", "Sync");
    }

    #[test]
    fn openings_are_told_apart() {
        let check = |body: &[u8], expected: Result<Opening, Broken>| {
            let mut buffer = BytesMut::from(&u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..]);
            buffer.extend_from_slice(body);
            assert_eq!(opening(&mut buffer).map(Result::unwrap), expected, "{body:?}");
        };
        check(b"\x04\xd2\x16\x2f", Ok(Opening::Tls));
        check(b"\x04\xd2\x16\x30", Ok(Opening::Gss));
        check(b"\x04\xd2\x16\x2e\0\0\0\x07abcd", Ok(Opening::Cancel { pid: 7, secret: Bytes::from_static(b"abcd") }));
        check(b"\x04\xd2\x16\x2e\0\0", Err(Broken::Opening));
        let parameters = vec![("user".to_owned(), "ann".to_owned())];
        check(b"\0\x03\0\0user\0ann\0\0", Ok(Opening::Startup { minor: 0, parameters }));
        check(b"\0\x03\0\0user\0ann", Err(Broken::Opening));
        check(b"\0\x02\0\0user\0ann\0\0", Err(Broken::Version(2, 0)));
    }
}
