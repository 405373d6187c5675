//! Files that others wrote and DuckLake took in as they were: their columns are found by name, some in the path.

use std::{collections::HashMap, sync::Arc};

use headworks_store::Store;

use super::files::DataFile;
use crate::Result;

/// How the columns of such files are called.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    /// The names of columns and their parts inside the files, by column id.
    pub names: Arc<HashMap<i64, String>>,
    /// Columns that stand in the path instead, as `name=value`.
    pub in_path: Vec<(i64, String)>,
}

/// Loads the mappings that some files need.
pub(super) async fn load(store: &Store, files: &[DataFile]) -> Result<HashMap<i64, Mapping>> {
    let mut ids: Vec<i64> = files.iter().filter_map(|file| file.mapping_id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let list = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "select mapping_id, target_field_id, source_name, is_partition from ducklake_name_mapping where mapping_id in ({list})"
    );
    let mut names: HashMap<i64, HashMap<i64, String>> = HashMap::new();
    let mut in_path: HashMap<i64, Vec<_>> = HashMap::new();
    for row in store.rows(&sql, &[]).await? {
        let (mapping, column, name) = (row.i64(0)?, row.i64(1)?, row.text(2)?);
        if row.opt_bool(3)?.unwrap_or(false) {
            in_path.entry(mapping).or_default().push((column, name));
        } else {
            names.entry(mapping).or_default().insert(column, name);
        }
    }
    let mapping = |id: i64| Mapping {
        names: Arc::new(names.remove(&id).unwrap_or_default()),
        in_path: in_path.remove(&id).unwrap_or_default(),
    };
    Ok(ids.iter().copied().zip(ids.iter().copied().map(mapping)).collect())
}

/// The value of a column that stands in a path; `None` when it does not, inner `None` for null.
pub(super) fn value_in_path(path: &str, name: &str) -> Option<Option<String>> {
    let value = path.split('/').find_map(|part| {
        let (key, value) = part.split_once('=')?;
        (decoded(key) == name).then_some(value)
    })?;
    Some((value != "__HIVE_DEFAULT_PARTITION__").then(|| decoded(value)))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = match hex {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                &tail[2..]
            }
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_paths() {
        let check = |path: &str, name: &str, expected: Option<Option<&str>>| {
            assert_eq!(value_in_path(path, name), expected.map(|v| v.map(str::to_owned)), "{path}");
        };
        check("a/p=1/x.parquet", "p", Some(Some("1")));
        check("a/p=a%2Fb%20c/q=2/x.parquet", "p", Some(Some("a/b c")));
        check("a/p=__HIVE_DEFAULT_PARTITION__/x.parquet", "p", Some(None));
        check("a/pp=1/x.parquet", "p", None);
        check("p=%", "p", Some(Some("%")));
    }
}
