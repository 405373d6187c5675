use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use headworks_domain::{AccountRole, Grant, Scope, Secret, UserName, nearest};
use headworks_store::{Tx, Value, values};

use super::{
    Accounts,
    password::{check, generated},
    rows::{self, GRANT_COLUMNS, GrantRow, Grantee, TokenRow, UserRow},
    scram::ScramVerifier,
    token,
};
use crate::{Error, Result};

/// The most users of a project, the most tokens, and the most grants to one user or role: each process keeps them all.
pub const USERS_MAX: usize = 10_000;
/// The most tokens of a project.
pub const TOKENS_MAX: usize = 10_000;
/// The most grants to one user or role.
pub const GRANTS_MAX: usize = 200;

/// Who has the first account of a project.
const FIRST: &str = "admin";

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Whose it is.
    pub owner: UserName,
    /// What its owner calls it.
    pub name: String,
    /// What it is for; at least one.
    pub scopes: BTreeSet<Scope>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What is kept of a password.
struct Kept {
    hash: String,
    scram: String,
}

impl Accounts {
    /// The users, by name.
    pub async fn users(&self) -> Result<Vec<UserRow>> {
        let mut users: Vec<UserRow> = self.book().await?.users().cloned().collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(users)
    }

    /// Makes a user; one without a password signs in with tokens only. Errors: `UserExists`, `WeakPassword`, `TooMany`.
    pub async fn create_user(&self, name: &UserName, role: AccountRole, password: Option<&Secret>) -> Result<()> {
        let kept = match password {
            Some(password) => Some(self.kept(name, password).await?),
            None => None,
        };
        let (user, now) = (name.clone(), self.inner.clock.now());
        self.change(move |tx, _| {
            Box::pin(async move {
                room(tx, "users", "select count(*) from hw_user", &[], USERS_MAX).await?;
                if insert(tx, &user, role, kept, now).await? { Ok(()) } else { Err(Error::UserExists { name: user }) }
            })
        })
        .await?;
        tracing::info!(user = %name, %role, "a user was made");
        Ok(())
    }

    /// Gives a user another password. Errors: `UnknownUser`, `WeakPassword`.
    pub async fn set_password(&self, name: &UserName, password: &Secret) -> Result<()> {
        self.known(name).await?;
        let Kept { hash, scram } = self.kept(name, password).await?;
        let values = values![name.as_str(), hash, scram].to_vec();
        self.update(name, "update hw_user set password = $2, scram = $3 where name = $1", values).await?;
        tracing::info!(user = %name, "a user has another password");
        Ok(())
    }

    /// Gives a user another role. Errors: `UnknownUser`, `LastAdmin`.
    pub async fn set_role(&self, name: &UserName, role: AccountRole) -> Result<()> {
        let values = values![name.as_str(), role.as_str()].to_vec();
        self.update(name, "update hw_user set role = $2 where name = $1", values).await?;
        tracing::info!(user = %name, %role, "a user has another role");
        Ok(())
    }

    /// Lets a user sign in, or not any more; neither may their tokens then. Errors: `UnknownUser`, `LastAdmin`.
    pub async fn set_enabled(&self, name: &UserName, is_enabled: bool) -> Result<()> {
        let values = values![name.as_str(), is_enabled].to_vec();
        self.update(name, "update hw_user set is_enabled = $2 where name = $1", values).await?;
        tracing::info!(user = %name, is_enabled, "a user may sign in, or not any more");
        Ok(())
    }

    /// Makes the user `admin` with a password that nobody has chosen, when there is no user at all; that is shown once.
    pub async fn first_admin(&self) -> Result<Option<(UserName, Secret)>> {
        if self.book().await?.users().next().is_some() {
            return Ok(None);
        }
        let name: UserName = FIRST.parse().expect("it is a name");
        let password = generated(&self.inner.random)?;
        let (user, now, kept) = (name.clone(), self.inner.clock.now(), self.kept(&name, &password).await?);
        let is_made = self
            .change(move |tx, _| {
                Box::pin(async move {
                    // Two processes may start at once.
                    if count(tx, "select count(*) from hw_user", &[]).await? > 0 {
                        return Ok(false);
                    }
                    insert(tx, &user, AccountRole::Admin, Some(kept), now).await
                })
            })
            .await?;
        Ok(is_made.then_some((name, password)))
    }

    /// A password that nobody has chosen.
    pub fn generated_password(&self) -> Result<Secret> {
        generated(&self.inner.random)
    }

    /// The tokens, the newest first.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>> {
        let mut tokens: Vec<TokenRow> = self.book().await?.tokens().cloned().collect();
        tokens.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(tokens)
    }

    /// Makes a token; its text is told here and never again. Errors: `UnknownUser`, `TooMany`.
    pub async fn create_token(&self, new: NewToken) -> Result<(Secret, TokenRow)> {
        self.known(&new.owner).await?;
        let NewToken { owner, name, scopes, expires_at } = new;
        let (id, text) = token::new(&self.inner.random)?;
        let created_at = self.inner.clock.now();
        let row = TokenRow { id, name, owner, scopes, created_at, expires_at, last_used_at: None };
        let scram = ScramVerifier::of(&text, &self.inner.random)?.to_string();
        let values = values![
            &row.id,
            &row.name,
            row.owner.as_str(),
            token::hash(text.expose()),
            scram,
            rows::scopes_text(&row.scopes),
            row.created_at.timestamp_micros(),
            row.expires_at.map(|at| at.timestamp_micros()),
        ];
        self.change(move |tx, _| {
            Box::pin(async move {
                room(tx, "tokens", "select count(*) from hw_token", &[], TOKENS_MAX).await?;
                let sql = "insert into hw_token (id, name, owner, hash, scram, scopes, created_at, expires_at)
                           values ($1, $2, $3, $4, $5, $6, $7, $8)";
                Ok(tx.execute(sql, &values).await.map(drop)?)
            })
        })
        .await?;
        tracing::info!(token = row.id, user = %row.owner, "a token was made");
        Ok((text, row))
    }

    /// Ends a token, by its id or the user name under which it signs in. Errors: `UnknownToken`.
    pub async fn revoke_token(&self, id: &str) -> Result<()> {
        let bare = id.strip_prefix(UserName::OF_TOKENS).unwrap_or(id).to_owned();
        let values = values![&bare];
        let gone = self
            .change(move |tx, _| {
                Box::pin(async move { Ok(tx.execute("delete from hw_token where id = $1", &values).await?) })
            })
            .await?;
        if gone == 0 {
            return Err(Error::UnknownToken { id: bare });
        }
        tracing::info!(token = bare, "a token was revoked");
        Ok(())
    }

    /// The grants, the oldest first.
    pub async fn grants(&self) -> Result<Vec<GrantRow>> {
        Ok(self.book().await?.grants.clone())
    }

    /// Gives a grant to a user or a role. Errors: `UnknownUser`, `TooMany`.
    pub async fn grant(&self, to: Grantee, grant: Grant) -> Result<GrantRow> {
        if let Grantee::User(name) = &to {
            self.known(name).await?;
        }
        let created_at = Some(self.inner.clock.now());
        let row = self
            .change(move |tx, version| {
                Box::pin(async move {
                    let sql = "select count(*) from hw_grant where coalesce(to_user, 'role:' || to_role) = $1";
                    room(tx, "grants to one user or role", sql, &values![to.to_string()], GRANTS_MAX).await?;
                    let row = GrantRow { id: version, to, grant, created_at };
                    let sql = format!(
                        "insert into hw_grant ({GRANT_COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
                    );
                    tx.execute(&sql, &rows::grant_values(&row)).await?;
                    Ok(row)
                })
            })
            .await?;
        tracing::info!(grant = row.id, to = %row.to, tables = row.grant.tables.as_str(), "a grant was given");
        Ok(row)
    }

    /// Takes a grant back. Errors: `UnknownGrant`.
    pub async fn revoke_grant(&self, id: i64) -> Result<()> {
        let gone = self
            .change(move |tx, _| {
                Box::pin(async move { Ok(tx.execute("delete from hw_grant where id = $1", &values![id]).await?) })
            })
            .await?;
        if gone == 0 {
            return Err(Error::UnknownGrant { id });
        }
        tracing::info!(grant = id, "a grant was taken back");
        Ok(())
    }

    async fn kept(&self, name: &UserName, password: &Secret) -> Result<Kept> {
        check(name, password)?;
        let random = &self.inner.random;
        let hash = self.inner.hasher.hash(password, random).await?;
        Ok(Kept { hash, scram: ScramVerifier::of(password, random)?.to_string() })
    }

    async fn known(&self, name: &UserName) -> Result<()> {
        let book = self.book().await?;
        if book.user(name.as_str()).is_some() { Ok(()) } else { Err(unknown(name, book.users())) }
    }

    /// Changes a user, who may not be the last that can do this.
    async fn update(&self, name: &UserName, sql: &'static str, values: Vec<Value>) -> Result<()> {
        self.known(name).await?;
        let name = name.clone();
        self.change(move |tx, _| {
            Box::pin(async move {
                const ADMINS: &str = "select count(*) from hw_user where role = 'admin' and is_enabled";
                let admins = count(tx, ADMINS, &[]).await?;
                tx.execute(sql, &values).await?;
                if admins > 0 && count(tx, ADMINS, &[]).await? == 0 { Err(Error::LastAdmin { name }) } else { Ok(()) }
            })
        })
        .await
    }

    /// Changes something under a new version. The version first: its row is a lock, so that changes follow each other.
    async fn change<T, F>(&self, work: F) -> Result<T>
    where
        F: for<'t> FnOnce(&'t mut Tx, i64) -> BoxFuture<'t, Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let changed = self
            .inner
            .store
            .write(move |tx| {
                Box::pin(async move {
                    let sql = "update hw_account_state set version = version + 1 where id = 1 returning version";
                    let row = tx.row(sql, &[]).await?;
                    let row = row.ok_or_else(|| rows::wrong("hw_account_state", "its row is missing"))?;
                    let version = row.i64(0)?;
                    work(tx, version).await
                })
            })
            .await;
        self.inner.books.changed();
        changed
    }
}

fn unknown<'a>(name: &UserName, users: impl Iterator<Item = &'a UserRow>) -> Error {
    let near = nearest(name.as_str(), users.map(|user| user.name.as_str())).map(str::to_owned);
    Error::UnknownUser { name: name.clone(), near }
}

/// Inserts a user; false when there is one of that name.
async fn insert(
    tx: &mut Tx,
    name: &UserName,
    role: AccountRole,
    kept: Option<Kept>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let (hash, scram) = kept.map_or((None, None), |kept| (Some(kept.hash), Some(kept.scram)));
    let sql =
        "insert into hw_user (name, role, is_enabled, password, scram, created_at) values ($1, $2, $3, $4, $5, $6)
               on conflict do nothing";
    let values = values![name.as_str(), role.as_str(), true, hash, scram, now.timestamp_micros()];
    Ok(tx.execute(sql, &values).await? == 1)
}

async fn count(tx: &mut Tx, sql: &str, values: &[Value]) -> Result<usize> {
    let count = tx.row(sql, values).await?.map_or(Ok(0), |row| row.i64(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

async fn room(tx: &mut Tx, what: &'static str, sql: &str, values: &[Value], limit: usize) -> Result<()> {
    if count(tx, sql, values).await? < limit { Ok(()) } else { Err(Error::TooMany { what, limit }) }
}
