//! Encryption: the certificate, and its hash for channel binding.

use std::{io, sync::Arc};

use ring::digest;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring as provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// A certificate with its key, ready to be shown to clients.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    /// What `tls-server-end-point` binds to; `None` for signatures without one hash, as Ed25519.
    endpoint: Option<Arc<[u8]>>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text cannot be read.
    #[error("the {what} cannot be read as PEM: {source}")]
    Pem {
        /// `certificate` or `private key`.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// There is no certificate in it.
    #[error("there is no certificate in the PEM text")]
    Empty,
    /// They do not fit, or have a form that is not supported.
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// The protocol's name in the handshake.
const ALPN: &[u8] = b"postgresql";

impl Tls {
    /// Reads a certificate, with those that vouch for it behind it, and its private key.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| TlsError::Pem { what: "certificate", source })?;
        let endpoint = endpoint(chain.first().ok_or(TlsError::Empty)?).map(Arc::from);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: "private key", source })?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), endpoint })
    }

    pub(super) fn endpoint(&self) -> Option<&[u8]> {
        self.endpoint.as_deref()
    }

    /// Encrypts a connection. Errors: the handshake fails; a client that began without asking did not say what it speaks.
    pub(super) async fn accept<S>(&self, stream: S, is_direct: bool) -> io::Result<tokio_rustls::server::TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let stream = self.acceptor.accept(stream).await?;
        if is_direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a direct TLS connection without ALPN"));
        }
        Ok(stream)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The certificate's hash by the algorithm of its signature, SHA-256 in place of older ones (RFC 5929).
fn endpoint(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    const SHA256: [&[u8]; 4] = [
        // sha256WithRSAEncryption, ecdsa-with-SHA256, and SHA-1 with each.
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11],
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2],
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5],
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1],
    ];
    const SHA384: [&[u8]; 2] =
        [&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12], &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3]];
    const SHA512: [&[u8]; 2] =
        [&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13], &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4]];
    let oid = signature_oid(certificate)?;
    let algorithm = if SHA256.contains(&oid) {
        &digest::SHA256
    } else if SHA384.contains(&oid) {
        &digest::SHA384
    } else if SHA512.contains(&oid) {
        &digest::SHA512
    } else {
        return None;
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { algorithm OID, ... }, ... }`
fn signature_oid(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = part(certificate, 0x30)?;
    let (_, rest) = part(certificate, 0x30)?;
    let (algorithm, _) = part(rest, 0x30)?;
    Some(part(algorithm, 0x06)?.0)
}

/// The content of a DER value with that tag, and what follows it.
fn part(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, length, rest @ ..] = bytes else { return None };
    if *found != tag {
        return None;
    }
    let (length, rest) = if *length < 0x80 {
        (usize::from(*length), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
    };
    rest.split_at_checked(length)
}
