use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use unicode_normalization::is_nfkc;

/// Says why a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a {what} name: {reason}")]
pub struct NameError {
    what: &'static str,
    name: String,
    reason: &'static str,
}

/// The most bytes that one part of a name may have: names become file names, and 255 is what file systems give.
const PART_BYTES_MAX: usize = 128;

fn check_part(what: &'static str, whole: &str, part: &str, extra: &str) -> Result<(), NameError> {
    let fail = |reason| Err(NameError { what, name: whole.to_owned(), reason });
    if part.is_empty() {
        return fail("it is empty");
    }
    if part.len() > PART_BYTES_MAX {
        return fail("it is longer than 128 bytes");
    }
    let first = part.chars().next().unwrap_or('-');
    if !(first.is_alphabetic() || first == '_') {
        return fail("it must begin with a letter or `_`");
    }
    if !part.chars().all(|c| c.is_alphanumeric() || c == '_' || extra.contains(c)) {
        return fail("it may have letters, digits and `_` only");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(s: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(s)?;
                Ok(Self(s.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// A table of the lake: letters (of any script), digits and `_`; never ending in `_latest`, which names the view.
    TableName,
    "table",
    |s| {
        check_part("table", s, s, "")?;
        if s.ends_with("_latest") {
            return Err(NameError {
                what: "table",
                name: s.to_owned(),
                reason: "names ending in `_latest` belong to the views of the newest partition",
            });
        }
        Ok(())
    }
);

impl TableName {
    /// The name of the view that shows the newest published partition.
    pub fn latest(&self) -> String {
        format!("{}_latest", self.0)
    }
}

name!(
    /// A job: its file's path below `jobs/` without the ending, parts joined by `/`, as `metrics/company_metrics`.
    JobName,
    "job",
    |s| s.split('/').try_for_each(|part| check_part("job", s, part, "-"))
);

name!(
    /// A step of a job, as `stage` or `publish`.
    TaskName,
    "task",
    |s| check_part("task", s, s, "-.")
);

name!(
    /// A named outside system.
    ConnectionName,
    "connection",
    |s| check_part("connection", s, s, "-")
);

name!(
    /// A place to run a project in: `production`, or one that `headworks.toml` has under `[environments.NAME]`.
    EnvironmentName,
    "environment",
    |s| check_part("environment", s, s, "-")
);

impl EnvironmentName {
    /// The environment that every project has.
    pub const PRODUCTION: &str = "production";

    /// True for the environment that every project has.
    pub fn is_production(&self) -> bool {
        self.0 == Self::PRODUCTION
    }
}

impl Default for EnvironmentName {
    fn default() -> Self {
        Self(Self::PRODUCTION.to_owned())
    }
}

name!(
    /// A person or program with an account: lowercase letters (of any script), digits, `_`, `-`, `.`, `@`, as `ann@shop.example`.
    UserName,
    "user",
    |s| {
        check_part("user", s, s, "-.@")?;
        let reason = if s.len() > USER_BYTES_MAX {
            "it is longer than 63 bytes"
        } else if s.to_lowercase() != s {
            "it may have lowercase letters only"
        } else if !is_nfkc(s) {
            "a letter of it has a simpler form: type it anew"
        } else if s.starts_with(UserName::OF_TOKENS) {
            "names that begin with `token_` are those of tokens"
        } else {
            return Ok(());
        };
        Err(NameError { what: "user", name: s.to_owned(), reason })
    }
);

/// The longest name that PostgreSQL's clients take.
const USER_BYTES_MAX: usize = 63;

impl UserName {
    /// How the names begin under which tokens sign in over PostgreSQL's protocol.
    pub const OF_TOKENS: &str = "token_";
}

name!(
    /// A run's id: letters, digits, `_`, `-`; made by the platform and unique for ever.
    RunId,
    "run",
    |s| {
        if s.is_empty() || s.len() > 64 || !s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(NameError { what: "run", name: s.to_owned(), reason: "it must be 1 to 64 of a-z, 0-9, `-`, `_`" });
        }
        Ok(())
    }
);

/// Finds the candidate that a mistyped `word` most likely meant, if any is near enough.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|c| (distance(&word.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(d, _)| *d <= most)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Counts the insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["deliveries", "_x1", "Ünï"] {
            assert!(good.parse::<TableName>().is_ok(), "{good}");
        }
        for bad in ["", "1st", "a b", "a/b", "..", "x_latest", "a\0b", "a\"b"] {
            assert!(bad.parse::<TableName>().is_err(), "{bad}");
        }
        for good in ["ann", "ann@shop.example", "björn", "日本", "_etl-2"] {
            assert!(good.parse::<UserName>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "Ann", "BJÖRN", "2x", "a b", "token_ab", "a\0", "bjo\u{308}rn", "ﬁ", "a:b", "a'b", &long] {
            assert!(bad.parse::<UserName>().is_err(), "{bad}");
        }
        assert!("metrics/company-metrics".parse::<JobName>().is_ok());
        for bad in ["../x", "/x", "a//b", "a/", "a b"] {
            assert!(bad.parse::<JobName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn near_misses_are_found() {
        let keys = ["schedule", "columns", "owner"];
        assert_eq!(nearest("shcedule", keys), Some("schedule"));
        assert_eq!(nearest("colums", keys), Some("columns"));
        assert_eq!(nearest("zzz", keys), None);
    }
}
