//! Names on their way from a source into the lake, and identifiers in SQL.

use std::collections::HashSet;

use unicode_normalization::UnicodeNormalization;

/// How the lake names a source's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// As the source does, in Unicode's composed form (NFC).
    #[default]
    Keep,
    /// Lower case, every letter outside of `a-z0-9_` as `_`, and `_` before a leading digit.
    Safe,
}

/// Gives each of a table's columns its name in the lake, in order.
///
/// A column called as one of `keys`, the columns that the lake adds to cut its table, gets `src_` in front.
///
/// No two results are the same, whatever their case: DuckDB and SQL do not tell `Order` from `order`. The later of two gets
/// `_2`, so that a column added to the source never renames an older one.
pub fn lake_names<S: AsRef<str>>(columns: &[S], names: Names, keys: &[impl AsRef<str>]) -> Vec<String> {
    let mut taken = HashSet::new();
    columns
        .iter()
        .map(|column| {
            let mut name = match names {
                Names::Keep => column.as_ref().nfc().collect::<String>(),
                Names::Safe => safe(column.as_ref()),
            };
            if name.trim().is_empty() {
                name = "_".to_owned();
            }
            if keys.iter().any(|key| key.as_ref().eq_ignore_ascii_case(&name)) {
                name = format!("src_{}", name.to_lowercase());
            }
            let base = name.clone();
            let mut number = 2;
            while !taken.insert(name.to_lowercase()) {
                name = format!("{base}_{number}");
                number += 1;
            }
            name
        })
        .collect()
}

fn safe(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.nfc().flat_map(char::to_lowercase) {
        out.push(if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' { c } else { '_' });
    }
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

/// Quotes an identifier for SQL, in SQLite and PostgreSQL alike.
pub(crate) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Quotes a text for SQL. PostgreSQL must have `standard_conforming_strings` on, as it is by default.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Splits `schema.table` at its first point outside of double quotes, and takes the quotes off.
pub(crate) fn split_schema(name: &str) -> Option<(String, String)> {
    let mut quoted = false;
    let at = name.char_indices().find(|(_, c)| {
        if *c == '"' {
            quoted = !quoted;
        }
        *c == '.' && !quoted
    })?;
    Some((unquote(&name[..at.0]), unquote(&name[at.0 + 1..])))
}

/// Takes the double quotes off an identifier that has them.
pub(crate) fn unquote(name: &str) -> String {
    match name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inside) => inside.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(columns: &[&str], names: Names, expected: &[&str]) {
        assert_eq!(lake_names(columns, names, &["ds", "hour"]), expected, "{columns:?}");
    }

    #[test]
    fn names_are_kept_unless_they_collide() {
        check(&["order", "Ünï", "with space", "a.b", ""], Names::Keep, &["order", "Ünï", "with space", "a.b", "_"]);
        check(&["u\u{308}"], Names::Keep, &["ü"]);
        check(&["ds", "DS", "hour", "src_ds"], Names::Keep, &["src_ds", "src_ds_2", "src_hour", "src_ds_3"]);
        check(&["Order", "order", "ORDER", "order_2"], Names::Keep, &["Order", "order_2", "ORDER_3", "order_2_2"]);
        check(
            &["Order", "1st", "col-dash", "ümlaut", "a b", "a_b"],
            Names::Safe,
            &["order", "_1st", "col_dash", "_mlaut", "a_b", "a_b_2"],
        );
    }

    #[test]
    fn qualified_names_are_split() {
        assert_eq!(split_schema("public.t"), Some(("public".into(), "t".into())));
        assert_eq!(split_schema("\"a.b\".\"c\"\"d\""), Some(("a.b".into(), "c\"d".into())));
        assert_eq!(split_schema("t"), None);
        assert_eq!(unquote("\"Ünï\""), "Ünï");
    }

    proptest! {
        #[test]
        fn an_added_column_renames_nobody(columns in prop::collection::vec("[dDsS_hour2aAü ]{0,4}", 0..8), safe: bool) {
            let names = if safe { Names::Safe } else { Names::Keep };
            let all = lake_names(&columns, names, &["ds"]);
            let distinct: HashSet<String> = all.iter().map(|n| n.to_lowercase()).collect();
            prop_assert_eq!(distinct.len(), all.len());
            for n in 0..columns.len() {
                prop_assert_eq!(&lake_names(&columns[..n], names, &["ds"]), &all[..n]);
            }
        }
    }
}
