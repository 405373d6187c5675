use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier, password_hash::SaltString};
use headworks_domain::{Secret, UserName};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::token;
use crate::{Error, Result};

/// The fewest characters of a password.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// The most bytes of a password: hashing a longer text would cost whoever asks nothing, and us time.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// Passwords that are hashed at once: each takes 19 MiB.
const AT_ONCE: usize = 2;
/// Those that may wait for it, some two seconds.
const WAITING_MAX: usize = 128;

/// What a password is checked against when there is nobody to have it: the time is the same, and nothing fits.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGlzIGhlcmU$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Makes a password of 100 bits that can be read out, as `4k7d-x92m-...`.
pub(super) fn generated(random: &SystemRandom) -> Result<Secret> {
    let digits = token::digits(random, 20)?;
    let groups: Vec<&str> = (0..5).map(|group| &digits[group * 4..group * 4 + 4]).collect();
    Ok(Secret::new(groups.join("-")))
}

/// Refuses passwords that are guessed too easily. Errors: `WeakPassword`.
pub(super) fn check(user: &UserName, password: &Secret) -> Result<()> {
    let text = password.expose();
    let reason = if text.chars().count() < PASSWORD_CHARS_MIN {
        format!("it has fewer than {PASSWORD_CHARS_MIN} characters")
    } else if text.len() > PASSWORD_BYTES_MAX {
        format!("it is longer than {PASSWORD_BYTES_MAX} bytes")
    } else if text.to_lowercase().contains(user.as_str()) && text.chars().count() < 2 * user.as_str().chars().count() {
        "it is little more than the user's name".to_owned()
    } else if text.chars().any(char::is_control) {
        "it has characters that no keyboard has".to_owned()
    } else if text.chars().collect::<std::collections::BTreeSet<_>>().len() < 5 {
        "it has too few different characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::WeakPassword { reason })
}

/// Hashes passwords away from the threads that serve, a few at a time.
pub(super) struct Hasher {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)), waiting: AtomicUsize::new(0) }
    }
}

impl Hasher {
    /// Hashes a password into PHC form.
    pub(super) async fn hash(&self, password: &Secret, random: &SystemRandom) -> Result<String> {
        let mut salt = [0; 16];
        random.fill(&mut salt).map_err(|_| Error::NoRandomness)?;
        let password = password.clone();
        let turn = self.turn().await?;
        blocking(turn, move || {
            let salt = SaltString::encode_b64(&salt).map_err(wrong)?;
            Ok(Argon2::default().hash_password(prepared(&password).as_bytes(), &salt).map_err(wrong)?.to_string())
        })
        .await
    }

    /// Checks a password against a hash, or against nobody's; `before` is asked when its turn has come.
    pub(super) async fn verify(
        &self,
        password: &Secret,
        hash: Option<String>,
        before: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        if password.expose().len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        let password = password.clone();
        let turn = self.turn().await?;
        before()?;
        blocking(turn, move || {
            let hash = PasswordHash::new(hash.as_deref().unwrap_or(NOBODY)).map_err(wrong)?;
            Ok(Argon2::default().verify_password(prepared(&password).as_bytes(), &hash).is_ok())
        })
        .await
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        let _waiting = Waiting::enter(&self.waiting)?;
        // Nobody closes it.
        Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Error::Crowded)
    }
}

/// One of those who wait, as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Result<Self> {
        let own = Self(count);
        if count.fetch_add(1, Ordering::AcqRel) < WAITING_MAX { Ok(own) } else { Err(Error::Crowded) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The same for all ways to type a letter, as SCRAM has it.
fn prepared(password: &Secret) -> std::borrow::Cow<'_, str> {
    stringprep::saslprep(password.expose()).unwrap_or(password.expose().into())
}

/// Runs to its end with its turn, also when whoever asked has gone.
async fn blocking<T: Send + 'static>(
    turn: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let run = move || {
        let done = work();
        drop(turn);
        done
    };
    tokio::task::spawn_blocking(run).await.map_err(|_| Error::Crowded)?
}

/// No password in it.
fn wrong(error: argon2::password_hash::Error) -> Error {
    Error::Row { table: "hw_user", reason: format!("a password's hash cannot be read: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passwords_fit_their_hashes_only() {
        let (hasher, random) = (Hasher::default(), SystemRandom::new());
        let password = Secret::new("correct horse bjo\u{308}rn");
        let hash = hasher.hash(&password, &random).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        let fits =
            async |text: &str, hash: Option<String>| hasher.verify(&Secret::new(text), hash, || Ok(())).await.unwrap();
        assert!(fits(password.expose(), Some(hash.clone())).await);
        assert!(fits("correct horse bj\u{f6}rn", Some(hash.clone())).await, "typed another way");
        assert!(!fits("correct horse", Some(hash)).await);
        assert!(!fits(password.expose(), None).await);
        assert!(!fits("", None).await);
    }

    #[tokio::test]
    async fn a_flood_is_turned_away() {
        let hasher = Hasher::default();
        let turns = (hasher.turn().await.unwrap(), hasher.turn().await.unwrap());
        let mut flood: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(hasher.turn())).collect();
        for one in &mut flood {
            assert!(futures::poll!(one).is_pending());
        }
        assert!(matches!(hasher.turn().await, Err(Error::Crowded)));
        // Who waits comes first, so all of them have to go.
        drop((flood, turns));
        assert!(hasher.turn().await.is_ok());
    }

    #[test]
    fn weak_passwords_are_refused() {
        let user = "administrator".parse().unwrap();
        let check = |text: &str| check(&user, &Secret::new(text)).is_ok();
        assert!(
            check("correct horse") && check("日本語のとても長い秘密の言葉") && check("administrator of many boats")
        );
        for weak in
            ["", "short", "elevenchars", "administrator1", "Administrator", "aaaaaaaaaaaaaaaa", "tabs\tand\nlines ok"]
        {
            assert!(!check(weak), "{weak}");
        }
        assert!(!check(&"long ones".repeat(200)));
        let generated = generated(&SystemRandom::new()).unwrap();
        assert!(generated.expose().len() == 24 && check(generated.expose()));
    }
}
