//! SCRAM-SHA-256 as PostgreSQL uses it (RFC 5802, 7677), the server's side.
//!
//! `pgwire` has one too. It wants the salted password, with which one can sign in, compares in varying time and answers
//! unknown users otherwise; this one wants PostgreSQL's verifier, which is of no use to who steals it.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    digest, hmac,
    rand::{SecureRandom, SystemRandom},
};

/// What is kept of a password: enough to check it, too little to sign in with.
///
/// Written as PostgreSQL does: `SCRAM-SHA-256$4096:<salt>$<stored key>:<server key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// How often the password is mixed with the salt.
    pub iterations: u32,
    /// What it is mixed with.
    pub salt: Vec<u8>,
    /// The hash of the key with which a client proves itself.
    pub stored_key: [u8; 32],
    /// The key with which the server proves itself.
    pub server_key: [u8; 32],
}

impl ScramVerifier {
    /// One that no password fits, the same for the same user and secret: unknown users look like known ones.
    pub fn mock(secret: &[u8], user: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = |part: &str| {
            let mut context = hmac::Context::with_key(&key);
            context.update(part.as_bytes());
            context.update(user.as_bytes());
            let mut bytes = [0; 32];
            bytes.copy_from_slice(context.sign().as_ref());
            bytes
        };
        Self {
            iterations: MOCK_ITERATIONS,
            salt: derived("salt ")[..16].to_vec(),
            stored_key: derived("stored "),
            server_key: derived("server "),
        }
    }
}

/// As many as PostgreSQL asks for by default, so that a mock does not stand out.
const MOCK_ITERATIONS: u32 = 4_096;

impl FromStr for ScramVerifier {
    type Err = NotAVerifier;

    fn from_str(text: &str) -> Result<Self, NotAVerifier> {
        let parts = || {
            let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
            let (salt, keys) = rest.split_once('$')?;
            let (stored, server) = keys.split_once(':')?;
            let key = |text: &str| <[u8; 32]>::try_from(STANDARD.decode(text).ok()?).ok();
            Some(Self {
                iterations: iterations.parse().ok().filter(|n| *n > 0)?,
                salt: STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?,
                stored_key: key(stored)?,
                server_key: key(server)?,
            })
        };
        parts().ok_or(NotAVerifier)
    }
}

/// A text that is no SCRAM verifier; which is not said, since it may be a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no SCRAM-SHA-256 verifier")]
pub struct NotAVerifier;

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramVerifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// The names of the mechanism, without and with channel binding.
pub(super) const PLAIN: &str = "SCRAM-SHA-256";
pub(super) const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Why a sign-in goes no further.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client breaks the protocol.
    Protocol(&'static str),
    /// The password is wrong, or there is no such user.
    Password,
}

/// A sign-in that waits for the client's proof.
pub(super) struct Exchange {
    verifier: ScramVerifier,
    /// What the client's `c=` must say.
    binding: Vec<u8>,
    nonce: String,
    /// `client-first-bare,server-first`.
    said: String,
}

/// The text that a client chose, at most so long.
const NONCE_BYTES_MAX: usize = 256;

impl Exchange {
    /// Takes the client's first message; gives the answer. `endpoint` is the hash of our certificate on an encrypted
    /// connection, `mechanism` what the client chose.
    pub(super) fn start(
        first: &str,
        mechanism: &str,
        endpoint: Option<&[u8]>,
        verifier: ScramVerifier,
    ) -> Result<(Self, String), Refusal> {
        let mut parts = first.splitn(3, ',');
        let (Some(flag), Some(authorization), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Refusal::Protocol("the first SASL message is too short"));
        };
        if !authorization.is_empty() {
            return Err(Refusal::Protocol("signing in as somebody else is not possible"));
        }
        let mut binding = format!("{flag},,").into_bytes();
        match (flag, mechanism, endpoint) {
            ("p=tls-server-end-point", PLUS, Some(hash)) => binding.extend_from_slice(hash),
            // It believes that we have no channel binding, though we said so: somebody in between took it out.
            ("y", _, Some(_)) => return Err(Refusal::Protocol("the client was told of no channel binding")),
            ("n" | "y", PLAIN, _) => {}
            _ => return Err(Refusal::Protocol("this channel binding is not supported")),
        }
        let mut attributes = bare.split(',');
        // The user's name is the one of the startup message.
        let user = attributes.next().is_some_and(|user| user.starts_with("n="));
        let nonce = attributes.next().and_then(|nonce| nonce.strip_prefix("r="));
        let (true, Some(nonce)) = (user, nonce) else {
            return Err(Refusal::Protocol("the first SASL message has no nonce"));
        };
        let is_nonce = |byte: u8| (0x21..=0x7e).contains(&byte);
        if nonce.is_empty() || nonce.len() > NONCE_BYTES_MAX || !nonce.bytes().all(is_nonce) {
            return Err(Refusal::Protocol("the client's nonce is not readable"));
        }
        let mut own = [0; 18];
        SystemRandom::new().fill(&mut own).map_err(|_| Refusal::Protocol("there is no randomness"))?;
        let nonce = format!("{nonce}{}", STANDARD.encode(own));
        let answer = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let said = format!("{bare},{answer}");
        Ok((Self { verifier, binding, nonce, said }, answer))
    }

    /// Takes the client's proof; gives ours when it is right.
    pub(super) fn finish(self, last: &str) -> Result<String, Refusal> {
        const BAD: Refusal = Refusal::Protocol("the last SASL message is not readable");
        let (without_proof, proof) = last.rsplit_once(",p=").ok_or(BAD)?;
        let proof = STANDARD.decode(proof).map_err(|_| BAD)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|text| STANDARD.decode(text.strip_prefix("c=")?).ok()).ok_or(BAD)?;
        let nonce = attributes.next().and_then(|text| text.strip_prefix("r=")).ok_or(BAD)?;
        if binding != self.binding {
            return Err(Refusal::Protocol("the channel binding is another connection's"));
        }
        if nonce != self.nonce || proof.len() != 32 {
            return Err(BAD);
        }
        let said = format!("{},{without_proof}", self.said);
        let stored = hmac::Key::new(hmac::HMAC_SHA256, &self.verifier.stored_key);
        let signature = hmac::sign(&stored, said.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let found = digest::digest(&digest::SHA256, &client_key);
        if !same(found.as_ref(), &self.verifier.stored_key) {
            return Err(Refusal::Password);
        }
        let server = hmac::Key::new(hmac::HMAC_SHA256, &self.verifier.server_key);
        Ok(format!("v={}", STANDARD.encode(hmac::sign(&server, said.as_bytes()))))
    }
}

/// Compares in a time that does not tell where two texts differ.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0_u8, |sum, (a, b)| sum | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client of RFC 7677 says, with a server nonce that is not ours to choose here.
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";

    fn verifier(password: &str) -> (ScramVerifier, [u8; 32]) {
        let salt = STANDARD.decode(SALT).unwrap();
        let mut salted = [0; 32];
        let rounds = std::num::NonZeroU32::new(4_096).unwrap();
        ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(hmac::HMAC_SHA256, &salted);
        let client = hmac::sign(&salted, b"Client Key");
        let stored = STANDARD.encode(digest::digest(&digest::SHA256, client.as_ref()));
        let server = STANDARD.encode(hmac::sign(&salted, b"Server Key"));
        let mut key = [0; 32];
        key.copy_from_slice(client.as_ref());
        (format!("SCRAM-SHA-256$4096:{SALT}${stored}:{server}").parse().unwrap(), key)
    }

    fn answer(exchange: &Exchange, key: &[u8; 32], binding: &[u8], nonce: &str) -> String {
        let without = format!("c={},r={nonce}", STANDARD.encode(binding));
        let said = format!("{},{without}", exchange.said);
        let stored = hmac::Key::new(hmac::HMAC_SHA256, digest::digest(&digest::SHA256, key).as_ref());
        let proof: Vec<u8> =
            hmac::sign(&stored, said.as_bytes()).as_ref().iter().zip(key).map(|(a, b)| a ^ b).collect();
        format!("{without},p={}", STANDARD.encode(proof))
    }

    #[test]
    fn the_right_password_signs_in_and_others_do_not() {
        let start = || Exchange::start("n,,n=,r=rOprNGfwEbeRWgbNEkqO", PLAIN, None, verifier("pencil").0).unwrap();
        for (password, expected) in [("pencil", true), ("pencils", false), ("", false)] {
            let (exchange, first) = start();
            assert!(first.starts_with("r=rOprNGfwEbeRWgbNEkqO"), "{first}");
            assert!(first.ends_with(&format!(",s={SALT},i=4096")), "{first}");
            let nonce = exchange.nonce.clone();
            let last = answer(&exchange, &verifier(password).1, b"n,,", &nonce);
            assert_eq!(exchange.finish(&last).is_ok(), expected, "{password}");
        }
        let key = verifier("pencil").1;
        let (exchange, _) = start();
        let last = answer(&exchange, &key, b"n,,", "rOprNGfwEbeRWgbNEkqO");
        assert!(exchange.finish(&last).is_err(), "a nonce without our part");
        let (exchange, _) = start();
        let nonce = exchange.nonce.clone();
        let last = answer(&exchange, &key, b"y,,", &nonce);
        assert!(exchange.finish(&last).is_err(), "another binding");
    }

    #[test]
    fn channels_are_bound_where_they_can_be() {
        let (endpoint, plus) = (Some(&b"hash"[..]), "p=tls-server-end-point,,n=,r=abc");
        let check = |first: &str, mechanism: &str, endpoint: Option<&[u8]>, expected: bool| {
            let started = Exchange::start(first, mechanism, endpoint, verifier("pencil").0);
            assert_eq!(started.is_ok(), expected, "{first} {mechanism} {endpoint:?}");
        };
        check(plus, PLUS, endpoint, true);
        check(plus, PLUS, None, false);
        check(plus, PLAIN, endpoint, false);
        check("n,,n=,r=abc", PLAIN, endpoint, true);
        check("n,,n=,r=abc", PLUS, endpoint, false);
        check("y,,n=,r=abc", PLAIN, endpoint, false);
        check("y,,n=,r=abc", PLAIN, None, true);
        check("n,a=root,n=,r=abc", PLAIN, None, false);
        check("n,,m=x,r=abc", PLAIN, None, false);
        check("n,,n=,r=", PLAIN, None, false);
        check("n", PLAIN, None, false);
        let (exchange, _) = Exchange::start(plus, PLUS, endpoint, verifier("pencil").0).unwrap();
        let nonce = exchange.nonce.clone();
        let last = answer(&exchange, &verifier("pencil").1, b"p=tls-server-end-point,,other", &nonce);
        assert!(exchange.finish(&last).is_err());
    }

    #[test]
    fn unknown_users_get_the_same_salt_each_time() {
        let mock = |secret: &[u8], user: &str| ScramVerifier::mock(secret, user);
        assert_eq!(mock(b"s", "ann"), mock(b"s", "ann"));
        assert_ne!(mock(b"s", "ann").salt, mock(b"s", "bob").salt);
        assert_ne!(mock(b"s", "ann").salt, mock(b"t", "ann").salt);
        assert!("SCRAM-SHA-256$4096:x".parse::<ScramVerifier>().is_err());
        assert!("md5abc".parse::<ScramVerifier>().is_err());
    }
}
