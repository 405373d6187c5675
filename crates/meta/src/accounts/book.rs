use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use headworks_domain::{Access, Grant};
use headworks_store::Store;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    Account,
    rows::{self, GrantRow, Grantee, TokenRow, UserRow},
    scram::ScramVerifier,
    token,
};
use crate::Result;

/// How long a copy counts as the newest: less than the second within which a change has to count everywhere.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// All accounts as they were at one version.
pub(super) struct Book {
    version: i64,
    users: HashMap<String, User>,
    tokens: HashMap<String, Token>,
    pub(super) grants: Vec<GrantRow>,
}

pub(super) struct User {
    pub(super) row: UserRow,
    pub(super) password: Option<String>,
    pub(super) scram: Option<ScramVerifier>,
    pub(super) account: Account,
}

pub(super) struct Token {
    pub(super) row: TokenRow,
    pub(super) hash: String,
    pub(super) scram: ScramVerifier,
    pub(super) account: Account,
    is_enabled: bool,
}

impl Book {
    async fn load(store: &Store, version: i64) -> Result<Self> {
        let read = async |columns: &str, from: &str| store.rows(&format!("select {columns} from {from}"), &[]).await;
        let grants = read(rows::GRANT_COLUMNS, "hw_grant order by id").await?;
        let grants = grants.iter().map(rows::grant).collect::<Result<Vec<GrantRow>>>()?;
        let mut users = HashMap::new();
        for row in read(rows::USER_COLUMNS, "hw_user").await? {
            let (row, password, scram) = rows::user(&row)?;
            let scram = scram.map(|text| text.parse().map_err(|reason| rows::wrong("hw_user", reason))).transpose()?;
            let access = Arc::new(access(&row, &grants));
            let session = session(&row, scram.as_ref());
            let account = Account { name: row.name.clone(), role: row.role, access, scopes: None, session };
            users.insert(row.name.to_string(), User { row, password, scram, account });
        }
        let mut tokens = HashMap::new();
        for row in read(rows::TOKEN_COLUMNS, "hw_token").await? {
            let (row, hash, scram) = rows::token(&row)?;
            let scram = scram.parse().map_err(|reason| rows::wrong("hw_token", reason))?;
            let Some(owner) = users.get(row.owner.as_str()) else { continue };
            let account = Account { scopes: Some(row.scopes.clone()), ..owner.account.clone() };
            let token = Token { row, hash, scram, account, is_enabled: owner.row.is_enabled };
            tokens.insert(token.row.id.clone(), token);
        }
        Ok(Self { version, users, tokens, grants })
    }

    pub(super) fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    pub(super) fn users(&self) -> impl Iterator<Item = &UserRow> {
        self.users.values().map(|user| &user.row)
    }

    /// A token that may sign in at a moment.
    pub(super) fn token(&self, id: &str, now: DateTime<Utc>) -> Option<&Token> {
        let token = self.tokens.get(id)?;
        (token.is_enabled && token.row.expires_at.is_none_or(|end| now < end)).then_some(token)
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = &TokenRow> {
        self.tokens.values().map(|token| &token.row)
    }
}

/// What a session has between the user's name and the mark of the password; no name has it.
pub(super) const STAMP: char = ':';

fn session(user: &UserRow, scram: Option<&ScramVerifier>) -> String {
    let made = user.created_at.timestamp_micros();
    let mark = token::hash(&format!("{made} {}", scram.map(ToString::to_string).unwrap_or_default()));
    format!("{}{STAMP}{}", user.name, &mark[..16])
}

fn access(user: &UserRow, grants: &[GrantRow]) -> Access {
    if user.role.reads_everything() {
        return Access::everything();
    }
    let is_own = |row: &&GrantRow| match &row.to {
        Grantee::User(name) => *name == user.name,
        Grantee::Role(role) => *role == user.role,
    };
    let own: Vec<Grant> = grants.iter().filter(is_own).map(|row| row.grant.clone()).collect();
    Access::granted(&user.name, own)
}

/// The newest copy.
#[derive(Default)]
pub(super) struct Books {
    kept: Mutex<Option<Kept>>,
    /// Changes that this process has made.
    changes: AtomicU64,
    /// One asks the database for all that need to know.
    asking: AsyncMutex<()>,
}

struct Kept {
    book: Arc<Book>,
    looked_at: Instant,
    /// The changes of this process that are in it.
    changes: u64,
}

impl Books {
    pub(super) async fn newest(&self, store: &Store) -> Result<Arc<Book>> {
        if let Some(book) = self.fresh() {
            return Ok(book);
        }
        let _one = self.asking.lock().await;
        if let Some(book) = self.fresh() {
            return Ok(book);
        }
        // Before the look: what changes during it is looked for again.
        let (changes, looked_at) = (self.changes.load(Ordering::Acquire), Instant::now());
        let row = store.row("select version from hw_account_state where id = 1", &[]).await?;
        let version = row.map_or(Ok(0), |row| row.i64(0))?;
        let same = self.kept().as_ref().filter(|kept| kept.book.version == version).map(|kept| Arc::clone(&kept.book));
        let book = match same {
            Some(book) => book,
            None => Arc::new(Book::load(store, version).await?),
        };
        *self.kept() = Some(Kept { book: Arc::clone(&book), looked_at, changes });
        Ok(book)
    }

    /// Lets a change that this process has made count for whoever asks from now on.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn fresh(&self) -> Option<Arc<Book>> {
        let kept = self.kept();
        let kept = kept.as_ref()?;
        let is_fresh = kept.looked_at.elapsed() < LOOK_EVERY && kept.changes == self.changes.load(Ordering::Acquire);
        is_fresh.then(|| Arc::clone(&kept.book))
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
