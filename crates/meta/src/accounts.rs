//! Who may sign in, and what they may read.
//!
//! Users have a role and a password, tokens stand for their owner, grants say what users and roles read. All of it is small and
//! read at each request, so each process keeps a copy and asks the database at most every half second whether it is the newest;
//! its own changes count at once.
//!
//! A password is kept twice: as an argon2id hash, against which pages check it, and as a SCRAM-SHA-256 verifier for clients of
//! PostgreSQL. A token is kept as its SHA-256, and as a verifier too: over PostgreSQL's protocol the user name of a token is its
//! id, `token_4f9k2m7q1x`, and the password is its whole text. Who is not there looks like who is: an unknown user has a
//! salt that stays the same, no password fits, and wrong passwords cost the same time.

mod book;
mod brake;
mod changes;
mod password;
mod rows;
mod scram;
mod token;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{Access, AccountRole, Clock, Right, Scope, Secret, UserName};
use headworks_store::{Component, Home, Migration, Store, values};
use ring::{hmac, rand::SystemRandom};

use self::{
    book::{Book, Books},
    brake::Brake,
    password::Hasher,
};
pub use self::{
    changes::{GRANTS_MAX, NewToken, TOKENS_MAX, USERS_MAX},
    password::{PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN},
    rows::{GrantRow, Grantee, TokenRow, UserRow},
    scram::ScramVerifier,
};
use crate::{Error, Result};

pub(crate) const TABLES: Component = Component { name: "accounts", home: Home::Platform, migrations: MIGRATIONS };

/// All steps; only ever add to the end.
const MIGRATIONS: &[Migration] = &[Migration { version: 1, sql: V1, postgres: None }];

const V1: &str = "
-- One row. version counts changes of what follows; secret is a key for the salts of users that there are not.
create table hw_account_state (id BIGINT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, secret TEXT);
insert into hw_account_state (id, version) values (1, 2);

-- password is an argon2id hash in PHC form, scram a verifier as PostgreSQL writes it.
create table hw_user (
    name TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    is_enabled BOOLEAN NOT NULL,
    password TEXT,
    scram TEXT,
    created_at BIGINT NOT NULL
);

-- hash is the SHA-256 of the whole token in hexadecimal digits; scopes are words divided by commas.
create table hw_token (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    hash TEXT NOT NULL,
    scram TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT
);

-- Either to a user or to a role. Columns and event types are JSON arrays; what is null does not restrict. The id is the
-- version with which the grant came.
create table hw_grant (
    id BIGINT NOT NULL PRIMARY KEY,
    to_user TEXT,
    to_role TEXT,
    tables TEXT NOT NULL,
    columns_only TEXT,
    columns_except TEXT,
    first_ds TEXT,
    last_ds TEXT,
    event_types TEXT,
    row_filter TEXT,
    created_at BIGINT
);
-- A small team reads everything until somebody says otherwise.
insert into hw_grant (id, to_role, tables) values (1, 'analyst', '*'), (2, 'viewer', '*');
";

/// The accounts of a project; clones share what they remember.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Arc<dyn Clock>,
    random: SystemRandom,
    mock_key: hmac::Key,
    books: Books,
    brake: Brake,
    hasher: Hasher,
    /// When tokens were last said to be used, by their ids.
    used: Mutex<HashMap<String, DateTime<Utc>>>,
}

/// Somebody who has signed in.
#[derive(Debug, Clone)]
pub struct Account {
    /// The user; of a token its owner.
    pub name: UserName,
    /// The user's role.
    pub role: AccountRole,
    /// What may be read.
    pub access: Arc<Access>,
    /// What the token is for; `None` for who signed in with a password.
    pub scopes: Option<BTreeSet<Scope>>,
    /// By what [`Accounts::account`] finds the user again, and no other of the same name, as long as the password is the same.
    pub session: String,
}

impl Account {
    /// True when the account has the right, and its token too.
    pub fn may(&self, right: Right) -> bool {
        self.role.may(right) && self.scopes.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| scope.may(right)))
    }
}

/// How exactly it is known when a token was last used: each use may be a write otherwise.
const USED_EVERY: TimeDelta = TimeDelta::minutes(10);

impl Accounts {
    /// Opens the accounts, making their tables when there are none yet.
    pub async fn open(store: Store, clock: Arc<dyn Clock>) -> Result<Self> {
        store.migrate(TABLES.name, TABLES.home, TABLES.migrations).await?;
        let random = SystemRandom::new();
        let mock_key = hmac::Key::new(hmac::HMAC_SHA256, secret(&store, &random).await?.as_bytes());
        let inner = Inner {
            store,
            clock,
            random,
            mock_key,
            books: Books::default(),
            brake: Brake::default(),
            hasher: Hasher::default(),
            used: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Signs in with a password.
    ///
    /// Costs some 30 ms of a processor and 19 MiB for right and wrong passwords alike; two at most are checked at once. Errors:
    /// `SignIn`, the same for a wrong password and a user that is not there or disabled; `Slowed` after several of them by one
    /// name from one address; `Crowded`.
    pub async fn authenticate_password(&self, user: &str, password: &Secret, from: IpAddr) -> Result<Account> {
        let inner = &self.inner;
        self.may_try(user, from)?;
        let book = self.book().await?;
        let found = book.user(user).filter(|user| user.row.is_enabled);
        let hash = found.and_then(|user| user.password.clone());
        // Others may have failed by the same name while this one waited for its turn.
        let again = || self.may_try(user, from);
        let fits = inner.hasher.verify(password, hash, again).await?;
        match found {
            Some(user) if fits => {
                inner.brake.forget(user.row.name.as_str(), from);
                Ok(user.account.clone())
            }
            _ => {
                self.failed(user, from);
                Err(Error::SignIn)
            }
        }
    }

    /// Signs in with a token. Costs microseconds. Errors: `SignIn`.
    pub async fn authenticate_token(&self, text: &str) -> Result<Account> {
        let id = token::id(text).ok_or(Error::SignIn)?;
        let book = self.book().await?;
        let found = book.token(id, self.inner.clock.now()).filter(|token| token::fits(&token.hash, text));
        let token = found.ok_or(Error::SignIn)?;
        self.uses(token);
        Ok(token.account.clone())
    }

    /// What a client of PostgreSQL has to prove to know: of a user's password, or of a token by the user name `token_...`.
    ///
    /// Who is not there, is disabled or has no password gets a verifier that nothing fits, the same each time. Before it ask
    /// [`may_try`](Self::may_try); after the exchange say [`failed`](Self::failed), or take [`account`](Self::account).
    pub async fn scram_verifier(&self, login: &str) -> Result<ScramVerifier> {
        let mock = ScramVerifier::mock(&self.inner.mock_key, login);
        let book = self.book().await?;
        let found = match login.strip_prefix(UserName::OF_TOKENS) {
            Some(id) => book.token(id, self.inner.clock.now()).map(|token| &token.scram),
            None => book.user(login).filter(|user| user.row.is_enabled).and_then(|user| user.scram.as_ref()),
        };
        Ok(found.cloned().unwrap_or(mock))
    }

    /// The account behind a user name, an [`Account::session`] or a token's `token_...`, for those who have proved already that
    /// it is theirs.
    ///
    /// Costs microseconds: who keeps a connection asks for each query, so that what was revoked ends. Errors: `SignIn` when it
    /// may not sign in any more.
    pub async fn account(&self, login: &str) -> Result<Account> {
        let book = self.book().await?;
        match login.strip_prefix(UserName::OF_TOKENS) {
            Some(id) => {
                let token = book.token(id, self.inner.clock.now()).ok_or(Error::SignIn)?;
                self.uses(token);
                Ok(token.account.clone())
            }
            None => {
                let name = login.split_once(book::STAMP).map_or(login, |(name, _)| name);
                let user = book.user(name).filter(|user| user.row.is_enabled).ok_or(Error::SignIn)?;
                let is_same = name == login || user.account.session == login;
                if is_same { Ok(user.account.clone()) } else { Err(Error::SignIn) }
            }
        }
    }

    /// Asks whether somebody may try to sign in by a name. Errors: `Slowed`.
    pub fn may_try(&self, login: &str, from: IpAddr) -> Result<()> {
        let wait = self.inner.brake.wait(login, from, self.inner.clock.now());
        wait.map_or(Ok(()), |wait| Err(Error::Slowed { seconds: wait.as_secs().max(1) }))
    }

    /// Remembers that a sign-in failed, so that the next by the same name from the same address have to wait.
    pub fn failed(&self, login: &str, from: IpAddr) {
        let failures = self.inner.brake.failed(login, from, self.inner.clock.now());
        tracing::info!(login, %from, failures, "somebody could not sign in");
    }

    /// Remembers that a sign-in succeeded.
    pub fn succeeded(&self, login: &str, from: IpAddr) {
        self.inner.brake.forget(login, from);
    }

    async fn book(&self) -> Result<Arc<Book>> {
        self.inner.books.newest(&self.inner.store).await
    }

    /// Writes down that a token is used, when that was not done lately.
    fn uses(&self, token: &book::Token) {
        let now = self.inner.clock.now();
        let id = &token.row.id;
        {
            let mut used = self.inner.used.lock().unwrap_or_else(PoisonError::into_inner);
            let last = used.get(id).copied().max(token.row.last_used_at);
            if last.is_some_and(|last| now - last < USED_EVERY) {
                return;
            }
            used.retain(|_, last| now - *last < USED_EVERY);
            used.insert(id.clone(), now);
        }
        let (store, id) = (self.inner.store.clone(), id.clone());
        let sql = "update hw_token set last_used_at = $2 where id = $1";
        tokio::spawn(async move {
            let values = values![&id, now.timestamp_micros()];
            let written = store.write(move |tx| Box::pin(async move { tx.execute(sql, &values).await })).await;
            if let Err(error) = written {
                tracing::warn!(%error, token = id, "when a token was used could not be written down");
            }
        });
    }
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}

/// The database's own secret, made by whoever opens its accounts first.
async fn secret(store: &Store, random: &SystemRandom) -> Result<String> {
    const READ: &str = "select secret from hw_account_state where id = 1 and secret is not null";
    if let Some(row) = store.row(READ, &[]).await? {
        return Ok(row.text(0)?);
    }
    let made = token::digits(random, 64)?;
    store
        .write(|tx| {
            Box::pin(async move {
                let sql = "update hw_account_state set secret = $1 where id = 1 and secret is null";
                tx.execute(sql, &values![made]).await?;
                let row = tx.row(READ, &[]).await?;
                row.map_or_else(|| Err(rows::wrong("hw_account_state", "its row is missing")), |row| Ok(row.text(0)?))
            })
        })
        .await
}
