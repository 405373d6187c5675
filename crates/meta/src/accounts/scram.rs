use std::{fmt, num::NonZeroU32, str::FromStr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use headworks_domain::Secret;
use ring::{
    digest, hmac, pbkdf2,
    rand::{SecureRandom, SystemRandom},
};

use crate::{Error, Result};

/// PostgreSQL's own number; clients refuse fewer.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not zero");
const SALT_BYTES: usize = 16;
const SCHEME: &str = "SCRAM-SHA-256";

/// What a server keeps of a password to let clients prove that they know it: RFC 5802, RFC 7677.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// What the password is mixed with.
    pub salt: Vec<u8>,
    /// How often it is mixed.
    pub iterations: u32,
    /// The hash of the key with which a client proves itself.
    pub stored_key: [u8; 32],
    /// The key with which the server proves itself.
    pub server_key: [u8; 32],
}

impl ScramVerifier {
    /// Makes the verifier of a password. Costs about a millisecond.
    pub(super) fn of(password: &Secret, random: &SystemRandom) -> Result<Self> {
        let mut salt = vec![0; SALT_BYTES];
        random.fill(&mut salt).map_err(|_| Error::NoRandomness)?;
        Ok(Self::salted(password, salt))
    }

    fn salted(password: &Secret, salt: Vec<u8>) -> Self {
        // A password that SASLprep does not allow is taken as it is, as PostgreSQL and its clients do.
        let prepared = stringprep::saslprep(password.expose()).unwrap_or(password.expose().into());
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, prepared.as_bytes(), &mut salted);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
        let client_key = hmac::sign(&key, b"Client Key");
        let stored_key = bytes(digest::digest(&digest::SHA256, client_key.as_ref()).as_ref());
        Self {
            salt,
            iterations: ITERATIONS.get(),
            stored_key,
            server_key: bytes(hmac::sign(&key, b"Server Key").as_ref()),
        }
    }

    /// The verifier of somebody who is not there: always the same for a name, told apart from a real one by nobody, and
    /// nothing fits it, since its stored key is the hash of nothing that anybody knows.
    pub(super) fn mock(key: &hmac::Key, login: &str) -> Self {
        let part = |of: &str| -> [u8; 32] { bytes(hmac::sign(key, format!("{of} {login}").as_bytes()).as_ref()) };
        Self {
            salt: part("salt")[..SALT_BYTES].to_vec(),
            iterations: ITERATIONS.get(),
            stored_key: part("stored key"),
            server_key: part("server key"),
        }
    }
}

fn bytes(of: &[u8]) -> [u8; 32] {
    of.try_into().expect("SHA-256 gives 32 bytes")
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramVerifier").finish_non_exhaustive()
    }
}

impl fmt::Display for ScramVerifier {
    /// As PostgreSQL writes it in `pg_authid`: `SCRAM-SHA-256$4096:SALT$STORED_KEY:SERVER_KEY`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] =
            [&self.salt[..], &self.stored_key, &self.server_key].map(|part| BASE64_STANDARD.encode(part));
        write!(f, "{SCHEME}${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl FromStr for ScramVerifier {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let parts = || {
            let (scheme, rest) = text.split_once('$')?;
            let (mixed, keys) = rest.split_once('$')?;
            let (iterations, salt) = mixed.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let key = |text: &str| BASE64_STANDARD.decode(text).ok()?.try_into().ok();
            (scheme == SCHEME).then_some(())?;
            Some(Self {
                salt: BASE64_STANDARD.decode(salt).ok()?,
                iterations: iterations.parse().ok()?,
                stored_key: key(stored)?,
                server_key: key(server)?,
            })
        };
        parts().ok_or("it is no SCRAM-SHA-256 verifier")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server checks of a client's proof.
    fn proves(password: &str, verifier: &ScramVerifier) -> bool {
        ScramVerifier::salted(&Secret::new(password), verifier.salt.clone()).stored_key == verifier.stored_key
    }

    #[test]
    fn verifiers_are_those_of_the_standard() {
        // The example of RFC 7677: its proof is the client key, masked with a signature under the stored key.
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = ScramVerifier::salted(&Secret::new("pencil"), salt);
        let exchange = b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &verifier.stored_key), exchange);
        let proof = BASE64_STANDARD.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let client_key: Vec<u8> = proof.iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        assert_eq!(digest::digest(&digest::SHA256, &client_key).as_ref(), verifier.stored_key);
        let server = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &verifier.server_key), exchange);
        assert_eq!(BASE64_STANDARD.encode(server), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn texts_round_trip() {
        let random = SystemRandom::new();
        let verifier = ScramVerifier::of(&Secret::new("a\u{aa}\u{ad}b"), &random).unwrap();
        let text = verifier.to_string();
        assert!(text.starts_with("SCRAM-SHA-256$4096:"), "{text}");
        assert_eq!(text.parse(), Ok(verifier.clone()));
        assert!(proves("aab", &verifier), "prepared as clients prepare it");
        assert!(!proves("aaB", &verifier));
        for bad in ["", "SCRAM-SHA-256", "SCRAM-SHA-1$4096:YQ==$YQ==:YQ==", "SCRAM-SHA-256$x:YQ==$YQ==:YQ=="] {
            assert!(bad.parse::<ScramVerifier>().is_err(), "{bad}");
        }
        assert_eq!(format!("{verifier:?}"), "ScramVerifier { .. }");
    }

    #[test]
    fn who_is_not_there_looks_like_who_is() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"of one database");
        let mock = ScramVerifier::mock(&key, "nobody");
        assert_eq!(mock, ScramVerifier::mock(&key, "nobody"));
        assert_ne!(mock.salt, ScramVerifier::mock(&key, "somebody").salt);
        let other = hmac::Key::new(hmac::HMAC_SHA256, b"of another");
        assert_ne!(mock.salt, ScramVerifier::mock(&other, "nobody").salt);
        let real = ScramVerifier::of(&Secret::new("x"), &SystemRandom::new()).unwrap();
        assert_eq!((mock.salt.len(), mock.iterations), (real.salt.len(), real.iterations));
        assert!(!proves("", &mock));
    }
}
