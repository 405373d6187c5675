//! Looks whether files are there, by path or by pattern, without reading them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::{Error, Result};

/// The most names that one look goes through.
const NAMES_MAX: usize = 100_000;

/// Finds a file by a path from `folder` on, or an absolute one. In its parts `*` stands for any letters and `?` for one; neither
/// stands for a dot at the beginning, as in a shell. Of several the first that comes.
///
/// Cost: a pattern reads the folders that it may lie in. Blocking work: keep it off a runtime's threads. Errors: `FileRead`, when
/// a folder is there and cannot be read or the path names a folder; `FileUnsupported` after a hundred thousand names.
pub fn find(folder: &Path, pattern: &str) -> Result<Option<PathBuf>> {
    let mut names_left = NAMES_MAX;
    let start = if pattern.starts_with('/') { PathBuf::from("/") } else { folder.to_path_buf() };
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    find_below(start, &parts, pattern, &mut names_left)
}

fn find_below(at: PathBuf, parts: &[&str], pattern: &str, names_left: &mut usize) -> Result<Option<PathBuf>> {
    let plain = parts.iter().take_while(|part| !is_pattern(part)).count();
    let at = parts[..plain].iter().fold(at, |at, part| at.join(part));
    let Some((name, below)) = parts[plain..].split_first() else {
        return match fs::metadata(&at) {
            Ok(found) if !found.is_dir() => Ok(Some(at)),
            // A pattern may fit folders too, which nobody means.
            Ok(_) if is_pattern(pattern) => Ok(None),
            Ok(_) => Err(unreadable(&at, io::ErrorKind::IsADirectory.into())),
            Err(error) => absent(&at, error),
        };
    };
    let entries = match fs::read_dir(&at) {
        Ok(entries) => entries,
        Err(error) => return absent(&at, error),
    };
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(&at, error))?;
        *names_left = names_left.checked_sub(1).ok_or_else(|| too_many(pattern))?;
        // A name that is not Unicode fits no pattern.
        if entry.file_name().to_str().is_some_and(|found| fits(name, found))
            && let Some(found) = find_below(entry.path(), below, pattern, names_left)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What is not there may come; what must not be seen is told.
fn absent(at: &Path, error: io::Error) -> Result<Option<PathBuf>> {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
        _ => Err(unreadable(at, error)),
    }
}

fn unreadable(at: &Path, source: io::Error) -> Error {
    Error::FileRead { file: at.display().to_string(), source }
}

fn too_many(pattern: &str) -> Error {
    Error::FileUnsupported {
        file: pattern.to_owned(),
        reason: format!("more than {NAMES_MAX} names would have to be looked through"),
        hint: "name more of its folders before the first `*`".to_owned(),
    }
}

/// Finds an object of a bucket by its key, or by a pattern as [`find`] has them. `name` is what errors call it.
///
/// Cost: one request; of a pattern, one per thousand objects below its plain beginning. Errors: `FileRead`, `FileUnsupported`.
pub async fn find_object(store: &dyn ObjectStore, name: &str, pattern: &str) -> Result<Option<String>> {
    let failed = |error: object_store::Error| {
        let kind = match &error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                io::ErrorKind::PermissionDenied
            }
            _ => io::ErrorKind::Other,
        };
        Error::FileRead { file: name.to_owned(), source: io::Error::new(kind, error.to_string()) }
    };
    let path = |text: &str| {
        object_store::path::Path::parse(text).map_err(|error| Error::FileUnsupported {
            file: name.to_owned(),
            reason: error.to_string(),
            hint: "write its key as `in/2026/a.csv`, without empty parts".to_owned(),
        })
    };
    if !is_pattern(pattern) {
        return match store.head(&path(pattern)?).await {
            Ok(found) => Ok(Some(found.location.to_string())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        };
    }
    let parts: Vec<&str> = pattern.split('/').collect();
    let plain = parts.iter().take_while(|part| !is_pattern(part)).count();
    let prefix = path(&parts[..plain].join("/"))?;
    let mut objects = store.list(Some(&prefix));
    let mut names_left = NAMES_MAX;
    loop {
        let object = match objects.try_next().await {
            Ok(Some(object)) => object,
            Ok(None) | Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        names_left = names_left.checked_sub(1).ok_or_else(|| too_many(name))?;
        let found = object.location.as_ref();
        if found.split('/').count() == parts.len()
            && parts.iter().zip(found.split('/')).all(|(part, it)| fits(part, it))
        {
            return Ok(Some(found.to_owned()));
        }
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// True when a name fits one part of a pattern.
fn fits(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last `*`, and what it stands for so far: when the rest does not fit, it takes one letter more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_patterns() {
        for (pattern, name, expected) in [
            ("*.csv", "a.csv", true),
            ("*.csv", ".csv", false),
            ("*", ".hidden", false),
            (".*", ".hidden", true),
            ("*.csv", "a.csv.part", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbY", false),
            ("??-*", "äö-", true),
            ("?", "", false),
            ("**", "x", true),
            ("a[1].csv", "a[1].csv", true),
            ("plain", "plain", true),
            ("plain", "plains", false),
            ("*a*a*a*a*a*b", &"a".repeat(2_000), false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
