use std::{collections::BTreeSet, fmt, str::FromStr};

use chrono::{DateTime, Utc};
use headworks_domain::{AccountRole, Columns, Days, Ds, Grant, Scope, TablePattern, UserName};
use headworks_store::{Row, Value};

use crate::{
    Error, Result,
    row::{opt_time, time},
};

/// A user, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// The name.
    pub name: UserName,
    /// The role.
    pub role: AccountRole,
    /// False when the user may not sign in, and neither may their tokens.
    pub is_enabled: bool,
    /// False when the user signs in with tokens only.
    pub has_password: bool,
    /// When the user was made.
    pub created_at: DateTime<Utc>,
}

/// A token, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id, which is no secret: `4f9k2m7q1x` of `hw_4f9k2m7q1x_...`.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// Whose it is.
    pub owner: UserName,
    /// What it is for.
    pub scopes: BTreeSet<Scope>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to some ten minutes.
    pub last_used_at: Option<DateTime<Utc>>,
}

impl TokenRow {
    /// The user name under which it signs in over PostgreSQL's protocol.
    pub fn login(&self) -> String {
        format!("{}{}", UserName::OF_TOKENS, self.id)
    }
}

/// A grant, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    /// Its number, never used again.
    pub id: i64,
    /// Who has it.
    pub to: Grantee,
    /// What it shows.
    pub grant: Grant,
    /// When it was given; `None` for those that every project begins with.
    pub created_at: Option<DateTime<Utc>>,
}

/// Who has a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grantee {
    /// One user.
    User(UserName),
    /// All users of a role.
    Role(AccountRole),
}

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => name.fmt(f),
            Self::Role(role) => write!(f, "role:{role}"),
        }
    }
}

impl FromStr for Grantee {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("role:") {
            Some(role) => role.parse().map(Self::Role).map_err(|error| error.to_string()),
            None => text.parse().map(Self::User).map_err(|error| error.to_string()),
        }
    }
}

pub(super) fn wrong(table: &'static str, reason: impl fmt::Display) -> Error {
    Error::Row { table, reason: reason.to_string() }
}

fn parsed<T: FromStr<Err: fmt::Display>>(table: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|error| wrong(table, error))
}

pub(super) const USER_COLUMNS: &str = "name, role, is_enabled, password, scram, created_at";

/// A row of `USER_COLUMNS`, with the password's hash and verifier.
pub(super) fn user(row: &Row) -> Result<(UserRow, Option<String>, Option<String>)> {
    const TABLE: &str = "hw_user";
    let password = row.opt_text(3)?;
    let user = UserRow {
        name: parsed(TABLE, &row.text(0)?)?,
        role: parsed(TABLE, &row.text(1)?)?,
        is_enabled: row.bool(2)?,
        has_password: password.is_some(),
        created_at: time(TABLE, row.i64(5)?)?,
    };
    Ok((user, password, row.opt_text(4)?))
}

pub(super) const TOKEN_COLUMNS: &str = "id, name, owner, hash, scram, scopes, created_at, expires_at, last_used_at";

/// A row of `TOKEN_COLUMNS`, with the token's hash and verifier.
pub(super) fn token(row: &Row) -> Result<(TokenRow, String, String)> {
    const TABLE: &str = "hw_token";
    let scopes = row.text(5)?;
    let token = TokenRow {
        id: row.text(0)?,
        name: row.text(1)?,
        owner: parsed(TABLE, &row.text(2)?)?,
        scopes: scopes.split(',').map(|scope| parsed(TABLE, scope)).collect::<Result<_>>()?,
        created_at: time(TABLE, row.i64(6)?)?,
        expires_at: opt_time(TABLE, row, 7)?,
        last_used_at: opt_time(TABLE, row, 8)?,
    };
    Ok((token, row.text(3)?, row.text(4)?))
}

pub(super) fn scopes_text(scopes: &BTreeSet<Scope>) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(",")
}

pub(super) const GRANT_COLUMNS: &str = "id, to_user, to_role, tables, columns_only, columns_except, first_ds, last_ds, event_types, row_filter, created_at";

/// A row of `GRANT_COLUMNS`.
pub(super) fn grant(row: &Row) -> Result<GrantRow> {
    const TABLE: &str = "hw_grant";
    let texts = |column| -> Result<Option<BTreeSet<String>>> {
        let text = row.opt_text(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| wrong(TABLE, error))).transpose()
    };
    let day = |column| -> Result<Option<Ds>> { row.opt_text(column)?.map(|text| parsed(TABLE, &text)).transpose() };
    let to = match (row.opt_text(1)?, row.opt_text(2)?) {
        (Some(user), None) => Grantee::User(parsed(TABLE, &user)?),
        (None, Some(role)) => Grantee::Role(parsed(TABLE, &role)?),
        _ => return Err(wrong(TABLE, "a grant is to a user or to a role")),
    };
    let columns = match (texts(4)?, texts(5)?) {
        (None, None) => Columns::All,
        (Some(only), None) => Columns::Only(only),
        (None, Some(except)) => Columns::Except(except),
        _ => return Err(wrong(TABLE, "a grant has columns, or all but some")),
    };
    let grant = Grant {
        tables: TablePattern::new(row.text(3)?),
        columns,
        days: Days { from: day(6)?, to: day(7)? },
        event_types: texts(8)?,
        rows: row.opt_text(9)?,
    };
    Ok(GrantRow { id: row.i64(0)?, to, grant, created_at: opt_time(TABLE, row, 10)? })
}

/// The values of `GRANT_COLUMNS`.
pub(super) fn grant_values(row: &GrantRow) -> Vec<Value> {
    let list = |texts: &BTreeSet<String>| serde_json::Value::from_iter(texts.iter().cloned()).to_string();
    let GrantRow { id, to, grant, created_at } = row;
    let (user, role) = match to {
        Grantee::User(user) => (Some(user.to_string()), None),
        Grantee::Role(role) => (None, Some(role.to_string())),
    };
    let (only, except) = match &grant.columns {
        Columns::All => (None, None),
        Columns::Only(columns) => (Some(list(columns)), None),
        Columns::Except(columns) => (None, Some(list(columns))),
    };
    vec![
        Value::from(*id),
        user.into(),
        role.into(),
        grant.tables.as_str().into(),
        only.into(),
        except.into(),
        grant.days.from.map(|day| day.to_string()).into(),
        grant.days.to.map(|day| day.to_string()).into(),
        grant.event_types.as_ref().map(list).into(),
        grant.rows.clone().into(),
        created_at.map(|at| at.timestamp_micros()).into(),
    ]
}
