//! What somebody may read of the lake.

use std::{collections::BTreeSet, fmt::Write};

use crate::{Ds, UserName};

/// The rows and columns that somebody may read; pure data, held by the SQL engine.
///
/// With several grants on a table a row is visible when any of them shows it, and a cell when a grant that shows its row has
/// its column; other cells of a visible row are null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    user: String,
    /// `None` for everything there is.
    grants: Option<Vec<Grant>>,
    fingerprint: String,
}

impl Access {
    /// Everything that there is, now and later.
    pub fn everything() -> Self {
        Self { user: String::new(), grants: None, fingerprint: "*".to_owned() }
    }

    /// What these grants show to a user; nothing when there are none.
    pub fn granted(user: &UserName, mut grants: Vec<Grant>) -> Self {
        grants.sort();
        grants.dedup();
        let user = user.to_string();
        let mut fingerprint = String::new();
        for grant in &grants {
            // Debug escapes what is inside, so that no text can look like the end of itself.
            let _ = write!(fingerprint, "{grant:?}");
        }
        if grants.iter().filter_map(|grant| grant.rows.as_deref()).any(names_user) {
            let _ = write!(fingerprint, "{user:?}");
        }
        Self { user, grants: Some(grants), fingerprint }
    }

    /// True when there is nothing that it hides.
    pub fn is_everything(&self) -> bool {
        self.grants.is_none()
    }

    /// The grants on a table or view; `None` when all of it may be read.
    pub fn on<'a>(&'a self, table: &'a str) -> Option<impl Iterator<Item = &'a Grant>> {
        Some(self.grants.as_ref()?.iter().filter(move |grant| grant.tables.matches(table)))
    }

    /// True when no grant shows anything of a table or view.
    pub fn hides(&self, table: &str) -> bool {
        self.on(table).is_some_and(|mut grants| grants.next().is_none())
    }

    /// Whom `current_user` names in filters.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// A text that differs whenever two differ in what may be read: part of the key of cached results.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// True when a filter may have `current_user` in it, in whatever spelling a parser takes for the keyword.
fn names_user(filter: &str) -> bool {
    filter.to_uppercase().contains("CURRENT_USER")
}

/// A part of the lake that somebody may read: rows that pass all of its conditions, and the columns that it has.
///
/// A condition that a table cannot be held against, as a range of `ds` on a table without that column, shows nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The tables and views.
    pub tables: TablePattern,
    /// The columns.
    pub columns: Columns,
    /// The partitions, by `ds`.
    pub days: Days,
    /// Values of the column `event_type`; any when `None`.
    pub event_types: Option<BTreeSet<String>>,
    /// An SQL condition over the table's columns, also those that are not shown.
    pub rows: Option<String>,
}

impl Grant {
    /// All of these tables.
    pub fn of(tables: TablePattern) -> Self {
        Self { tables, columns: Columns::All, days: Days::default(), event_types: None, rows: None }
    }
}

/// Names of tables and views: one name as it is stored, or several by `*`, which stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TablePattern(String);

impl TablePattern {
    /// Takes the text as it is: any name may have been given to a table by another program.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one name that it stands for; `None` with a `*`.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(self.0.as_str())
    }

    /// True when it stands for this name, upper and lower case told apart.
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut name) = name.strip_prefix(head) else { return false };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        // The first place of each part leaves the most for those behind it.
        for part in middle.split('*') {
            let Some(at) = name.find(part) else { return false };
            name = &name[at + part.len()..];
        }
        name.ends_with(tail)
    }
}

/// The columns of a grant, by their names as they are stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Columns {
    /// All, also those that come later.
    All,
    /// These.
    Only(BTreeSet<String>),
    /// All but these.
    Except(BTreeSet<String>),
}

impl Columns {
    /// True when it has this column.
    pub fn has(&self, column: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(columns) => columns.contains(column),
            Self::Except(columns) => !columns.contains(column),
        }
    }
}

/// Days from one to another, both included; open where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Days {
    /// The first.
    pub from: Option<Ds>,
    /// The last.
    pub to: Option<Ds>,
}

impl Days {
    /// True when it has this day.
    pub fn has(self, day: Ds) -> bool {
        self.from.is_none_or(|from| from <= day) && self.to.is_none_or(|to| day <= to)
    }

    /// True when it has every day, and rows without one.
    pub fn is_open(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, name, expected) in [
            ("events", "events", true),
            ("events", "Events", false),
            ("events", "events_2", false),
            ("*", "", true),
            ("*", "anything", true),
            ("events_*", "events_", true),
            ("events_*", "events_clicks", true),
            ("events_*", "events", false),
            ("*_daily", "orders_daily", true),
            ("*_daily", "_daily", true),
            ("*_daily", "daily", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b*", "abc", true),
            ("**", "x", true),
            ("ü*", "üa", true),
            ("*ä*", "aä", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(TablePattern::new(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn fingerprints_differ_when_access_does() {
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let plain = || Grant::of(TablePattern::new("t"));
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
        let day = |text: &str| Some(text.parse().unwrap());
        let mut all = vec![
            vec![],
            vec![plain()],
            vec![Grant::of(TablePattern::new("*"))],
            vec![plain(), Grant::of(TablePattern::new("u"))],
            vec![Grant { columns: Columns::Only(texts(&["a", "b"])), ..plain() }],
            vec![Grant { columns: Columns::Only(texts(&["a\", \"b"])), ..plain() }],
            vec![Grant { columns: Columns::Except(texts(&["a", "b"])), ..plain() }],
            vec![Grant { days: Days { from: day("2020-01-01"), to: None }, ..plain() }],
            vec![Grant { days: Days { from: None, to: day("2020-01-01") }, ..plain() }],
            vec![Grant { event_types: Some(texts(&["a"])), ..plain() }],
            vec![Grant { event_types: Some(texts(&[])), ..plain() }],
            vec![Grant { rows: Some("a".to_owned()), ..plain() }],
            vec![Grant { rows: Some("a = current_user".to_owned()), ..plain() }],
        ];
        let mut prints: Vec<String> =
            all.iter().map(|grants| Access::granted(&ann, grants.clone()).fingerprint().to_owned()).collect();
        prints.push(Access::everything().fingerprint().to_owned());
        prints.push(Access::granted(&bob, all.remove(12)).fingerprint().to_owned());
        let different: BTreeSet<&String> = prints.iter().collect();
        assert_eq!(different.len(), prints.len(), "{prints:#?}");
        let of = |user, grants: &[Grant]| Access::granted(user, grants.to_vec()).fingerprint().to_owned();
        let two = [plain(), Grant::of(TablePattern::new("u"))];
        assert_eq!(of(&ann, &two), of(&bob, &[two[1].clone(), two[0].clone(), two[0].clone()]), "shared with others");
        let long = Grant { rows: Some("a = CURRENT_U\u{17f}ER".to_owned()), ..plain() };
        assert_ne!(of(&ann, std::slice::from_ref(&long)), of(&bob, &[long]), "a keyword in another spelling");
    }

    #[test]
    fn nothing_is_granted_by_default() {
        let access = Access::granted(&"ann".parse().unwrap(), Vec::new());
        assert!(access.hides("t") && !access.is_everything());
        assert!(!Access::everything().hides("t"));
    }
}
