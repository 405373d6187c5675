use std::{fmt, str::FromStr};

/// What an account is to the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AccountRole {
    /// Looks after accounts, and all the rest.
    Admin,
    /// Writes and runs jobs.
    Author,
    /// Asks in SQL, and makes dashboards.
    Analyst,
    /// Looks at dashboards.
    Viewer,
}

/// Something that not every account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// Look at dashboards.
    ReadDashboards,
    /// Make and change them.
    EditDashboards,
    /// Run SQL of one's own.
    Query,
    /// See jobs, their runs and logs.
    ReadJobs,
    /// Start, cancel, pause and mark runs and backfills.
    RunJobs,
    /// Make and change accounts, tokens and grants.
    ManageAccounts,
}

/// A word that stands for none of the few that there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is no {what}: write {known}")]
pub struct WordError {
    what: &'static str,
    word: String,
    known: String,
}

macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident => $word:literal),*) => {
        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl FromStr for $type {
            type Err = WordError;

            fn from_str(word: &str) -> Result<Self, WordError> {
                let unknown = || {
                    let known: Vec<&str> = Self::ALL.iter().map(|one| one.as_str()).collect();
                    WordError { what: $what, word: word.to_owned(), known: known.join(", ") }
                };
                Self::ALL.iter().copied().find(|one| one.as_str() == word).ok_or_else(unknown)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(AccountRole, "role", Admin => "admin", Author => "author", Analyst => "analyst", Viewer => "viewer");

impl AccountRole {
    /// True when accounts of this role have the right.
    pub fn may(self, right: Right) -> bool {
        match right {
            Right::ReadDashboards => true,
            Right::EditDashboards | Right::Query | Right::ReadJobs => self != Self::Viewer,
            Right::RunJobs => matches!(self, Self::Admin | Self::Author),
            Right::ManageAccounts => self == Self::Admin,
        }
    }

    /// True when its accounts read all of the lake; others read what they are granted.
    pub fn reads_everything(self) -> bool {
        // Who writes jobs can have any table written into another.
        matches!(self, Self::Admin | Self::Author)
    }
}

/// What a token is for: it has those rights of its owner that one of its scopes has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Read the lake and dashboards.
    Query,
    /// See and steer jobs.
    Jobs,
    /// Whatever the owner may.
    Admin,
}

words!(Scope, "scope", Query => "query", Jobs => "jobs", Admin => "admin");

impl Scope {
    /// True when it has the right.
    pub fn may(self, right: Right) -> bool {
        match self {
            Self::Query => matches!(right, Right::Query | Right::ReadDashboards),
            Self::Jobs => matches!(right, Right::ReadJobs | Right::RunJobs),
            Self::Admin => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_grow_from_role_to_role() {
        let rights = [
            Right::ReadDashboards,
            Right::EditDashboards,
            Right::Query,
            Right::ReadJobs,
            Right::RunJobs,
            Right::ManageAccounts,
        ];
        let count = |role: AccountRole| rights.into_iter().filter(|right| role.may(*right)).count();
        assert_eq!(AccountRole::ALL.iter().map(|role| count(*role)).collect::<Vec<_>>(), [6, 5, 4, 1]);
        for role in AccountRole::ALL {
            assert_eq!(role.as_str().parse(), Ok(*role));
        }
        assert_eq!(
            "root".parse::<AccountRole>().unwrap_err().to_string(),
            "`root` is no role: write admin, author, analyst, viewer"
        );
    }
}
