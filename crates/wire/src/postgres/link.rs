//! A client's connection: bytes in, bytes out, neither more than a bound.

use std::{io, pin::Pin, time::Duration};

use bytes::{BufMut, BytesMut};
use pgwire::messages::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    error::{PgError, state},
    frame::{self, Broken, Frontend, Opening},
};

/// What a connection is made of, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

pub(super) struct Link {
    stream: Pin<Box<dyn Stream>>,
    input: BytesMut,
    pub(super) output: BytesMut,
    /// How long a client may leave what we send untouched.
    write_max: Duration,
}

/// Bytes that are read at once; a message that announces more gets room as it comes.
const READ_BYTES: usize = 16 << 10;
/// Bytes of a client that sends on while its query runs; beyond, the network holds it back.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes that are written at once.
const WRITE_BYTES: usize = 64 << 10;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client is gone, or said goodbye.
    Gone,
    /// It hears the reason before.
    Said(PgError),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        let state = if matches!(broken, Broken::TooLong { .. }) { state::LIMIT } else { state::PROTOCOL };
        Self::Said(PgError::new(state, broken.to_string()))
    }
}

impl Link {
    pub(super) fn new(stream: impl Stream + 'static, write_max: Duration) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { stream: Box::pin(stream), input, output, write_max }
    }

    /// The stream itself, when nothing was read from it that is not used up.
    pub(super) fn into_stream(self) -> Result<Pin<Box<dyn Stream>>, End> {
        if self.input.is_empty() {
            Ok(self.stream)
        } else {
            // Sent before the encryption that was agreed on: somebody in between may have put it there (CVE-2021-23214).
            Err(End::Said(PgError::new(state::PROTOCOL, "the client sent data before the encryption began")))
        }
    }

    /// The first message of a connection.
    pub(super) async fn opening(&mut self) -> Result<Opening, End> {
        loop {
            match frame::opening(&mut self.input)? {
                Ok(opening) => return Ok(opening),
                Err(missing) => self.read(missing).await?,
            }
        }
    }

    /// The next message; see [`frame::message`].
    pub(super) async fn message(&mut self, large_bytes_max: usize) -> Result<Frontend, End> {
        loop {
            match frame::message(&mut self.input, large_bytes_max)? {
                Ok(message) => return Ok(message),
                Err(missing) => self.read(missing).await?,
            }
        }
    }

    async fn read(&mut self, missing: usize) -> Result<(), End> {
        self.input.reserve(missing.min(READ_BYTES));
        if self.stream.read_buf(&mut self.input).await? == 0 { Err(End::Gone) } else { Ok(()) }
    }

    /// Resolves once the client has hung up; keeps what it sends meanwhile.
    pub(super) async fn hung_up(&mut self) -> End {
        while self.input.len() < AHEAD_BYTES_MAX {
            if let Err(end) = self.read(1).await {
                return end;
            }
        }
        std::future::pending().await
    }

    /// Puts a message behind the others that wait to be sent.
    pub(super) fn put(&mut self, message: &impl Message) -> Result<(), End> {
        let internal = |error: pgwire::error::PgWireError| End::Said(PgError::new(state::INTERNAL, error.to_string()));
        message.encode(&mut self.output).map_err(internal)
    }

    /// Puts a message that is its type and its body.
    pub(super) fn put_raw(&mut self, kind: u8, body: &[u8]) {
        self.output.put_u8(kind);
        self.output.put_i32(i32::try_from(body.len() + 4).unwrap_or(i32::MAX));
        self.output.put_slice(body);
    }

    /// True when enough waits to be sent.
    pub(super) fn is_full(&self) -> bool {
        self.output.len() >= WRITE_BYTES
    }

    /// Sends what waits. Errors: the client is gone, or does not read.
    pub(super) async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        let write = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(self.write_max, write).await.map_err(|_| End::Gone)??;
        self.output.clear();
        if self.output.capacity() > 4 * WRITE_BYTES {
            // A row of many megabytes does not keep its room.
            self.output = BytesMut::new();
        }
        Ok(())
    }

    /// Says why, and hangs up.
    pub(super) async fn close(mut self, end: End) {
        if let End::Said(error) = end {
            // What was not sent yet belongs to something that will not be finished.
            if self.put(&error.response("FATAL")).is_ok() && self.flush().await.is_err() {
                return;
            }
        }
        let bye = self.stream.shutdown();
        let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
    }
}
