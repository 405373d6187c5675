//! The files of a table at a snapshot, out of the catalog.

use headworks_store::{Dialect, Store, Value, values};
use object_store::path::Path;

use super::keys::Narrow;
use crate::{Error, Result, storage::Storage, table::Table};

/// A data file, and the delete file that goes with it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DataFile {
    pub id: i64,
    pub place: Place,
    pub rows: i64,
    pub size: u64,
    /// The size of the Parquet footer, so that one request reads it.
    pub footer: Option<usize>,
    /// The texts of the partition's values, in the order of the keys; empty when the file has none.
    pub keys: Vec<Option<String>>,
    pub mapping_id: Option<i64>,
    /// The newest snapshot of any row, in files merged out of several snapshots: rows then name their own.
    pub partial_max: Option<i64>,
    pub deletes: Option<DeleteFile>,
}

/// A file that lists rows of a data file as deleted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DeleteFile {
    pub place: Place,
    pub size: u64,
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the lake's data path.
    Lake(Path),
    /// Anywhere on this machine: a file that DuckDB took into the lake where it was.
    Machine(Path),
}

impl Place {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Lake(path) | Self::Machine(path) => path,
        }
    }

    fn find(storage: &Storage, table: &Table, path: &str, relative: bool) -> Result<Self> {
        let unsupported =
            || Error::Unsupported { what: format!("file `{path}` of table `{}` is outside the lake", table.name) };
        let parse = |path: &str| {
            Path::parse(path)
                .map_err(|e| Error::Corrupt { what: format!("`{path}` of table `{}` is no path: {e}", table.name) })
        };
        if relative {
            return Ok(Self::Lake(parse(&format!("{}{path}", table.path))?));
        }
        if let Some(below) = path.strip_prefix(storage.data_path()) {
            return Ok(Self::Lake(parse(below)?));
        }
        // Path names of this machine only: another bucket would need its own keys.
        if path.starts_with('/') && storage.local().is_some() {
            Ok(Self::Machine(parse(path)?))
        } else {
            Err(unsupported())
        }
    }
}

/// Lists a table's files at a snapshot in one statement, so that no commit of another program can fall in between.
///
/// `narrow` keeps only files whose partition may match; files without values of the table's present partition keys stay.
pub(super) async fn list(
    store: &Store,
    storage: &Storage,
    table: &Table,
    snapshot: i64,
    narrow: Option<&Narrow>,
) -> Result<Vec<DataFile>> {
    let keys = table.partition.as_ref().map_or(0, |p| p.columns.len());
    let (sql, values) = statement(store.dialect(), table, snapshot, keys, narrow);
    let rows = store.rows(&sql, &values).await?;
    let text = rows.first().map_or(Ok(None), |row| row.opt_text(0))?.unwrap_or_default();
    let mut packed = Packed { rest: &text };
    let mut files = Vec::new();
    while !packed.rest.is_empty() {
        let file = packed.file(storage, table, keys);
        files.push(file.map_err(|error| {
            error.unwrap_or_else(|| Error::Corrupt {
                what: format!("the catalog's list of the files of table `{}` cannot be read", table.name),
            })
        })?);
    }
    Ok(files)
}

/// All files as one text: the drivers' cost is by the row and the value, and there may be ten thousands of files.
///
/// Each file is numbers that end in `|`, -1 for null, and then texts after their length, `4:path`, or `-` for null.
struct Packed<'a> {
    rest: &'a str,
}

/// The numbers in SQL, of a data file `f` and its delete file `d`.
const NUMBERS: &str = "f.data_file_id || '|' || case when f.path_is_relative then 1 else 0 end || '|' || coalesce(f.record_count, -1)
    || '|' || coalesce(f.file_size_bytes, -1) || '|' || coalesce(f.footer_size, -1) || '|' || coalesce(f.partition_id, -1)
    || '|' || coalesce(f.mapping_id, -1) || '|' || case when f.encryption_key is null then 0 else 1 end
    || '|' || coalesce(f.partial_max, -1) || '|' || case when d.path_is_relative then 1 else 0 end
    || '|' || case when d.format = 'parquet' then 1 else 0 end || '|' || coalesce(d.file_size_bytes, -1) || '|'";

impl Packed<'_> {
    /// The next file. An error of `None` means that the text is not as it should be.
    fn file(&mut self, storage: &Storage, table: &Table, keys: usize) -> Result<DataFile, Option<Error>> {
        let id = self.number()?;
        let is_relative = self.number()? == 1;
        let (rows, size) = (self.number()?, self.unsigned()?.ok_or(None)?);
        let footer = self.unsigned()?.and_then(|size| usize::try_from(size).ok());
        let (partition_id, mapping_id) = (self.known()?, self.known()?);
        let is_encrypted = self.number()? == 1;
        let partial_max = self.known()?;
        let (is_delete_relative, is_delete_parquet) = (self.number()? == 1, self.number()? == 1);
        let delete_size = self.unsigned()?.unwrap_or(0);
        let place = Place::find(storage, table, self.text()?.ok_or(None)?, is_relative)?;
        if is_encrypted {
            return Err(Some(Error::Unsupported { what: format!("file `{}` is encrypted", place.path()) }));
        }
        let deletes = match self.text()? {
            None => None,
            Some(path) if is_delete_parquet => {
                Some(DeleteFile { place: Place::find(storage, table, path, is_delete_relative)?, size: delete_size })
            }
            Some(_) => {
                let what = format!("file `{}` has its deletes in another format than Parquet", place.path());
                return Err(Some(Error::Unsupported { what }));
            }
        };
        let mut texts = Vec::with_capacity(keys);
        for _ in 0..keys {
            texts.push(self.text()?.map(str::to_owned));
        }
        if partition_id.is_none() || partition_id != table.partition.as_ref().map(|p| p.id) {
            texts.clear();
        }
        Ok(DataFile { id, place, rows, size, footer, keys: texts, mapping_id, partial_max, deletes })
    }

    fn number(&mut self) -> Result<i64, Option<Error>> {
        let (number, rest) = self.rest.split_once('|').ok_or(None)?;
        self.rest = rest;
        number.parse().map_err(|_| None)
    }

    fn known(&mut self) -> Result<Option<i64>, Option<Error>> {
        Ok(Some(self.number()?).filter(|n| *n >= 0))
    }

    fn unsigned(&mut self) -> Result<Option<u64>, Option<Error>> {
        Ok(u64::try_from(self.number()?).ok())
    }
}

impl<'a> Packed<'a> {
    fn text(&mut self) -> Result<Option<&'a str>, Option<Error>> {
        if let Some(rest) = self.rest.strip_prefix('-') {
            self.rest = rest;
            return Ok(None);
        }
        let (length, rest) = self.rest.split_once(':').ok_or(None)?;
        let length: usize = length.parse().map_err(|_| None)?;
        // The databases count characters, not bytes.
        let bytes = match rest.get(..length) {
            Some(ascii) if ascii.is_ascii() => length,
            _ => rest.char_indices().nth(length).map_or(rest.len(), |(at, _)| at),
        };
        let (text, rest) = rest.split_at(bytes);
        self.rest = rest;
        Ok(Some(text))
    }
}

/// The condition that a row is valid at the snapshot, which is `$2`.
pub(super) fn live(table: &str) -> String {
    format!("{table}.begin_snapshot <= $2 and ({table}.end_snapshot is null or {table}.end_snapshot > $2)")
}

/// Parameters: `$1` the table, `$2` the snapshot, `$3` the partition's id, further ones those of `narrow`.
fn statement(
    dialect: Dialect,
    table: &Table,
    snapshot: i64,
    keys: usize,
    narrow: Option<&Narrow>,
) -> (String, Vec<Value>) {
    let mut values = values![table.id, snapshot].to_vec();
    let text = |column: &str| format!(" || coalesce(length({column}) || ':' || {column}, '-')");
    let mut select = format!("select {NUMBERS}{}{}", text("f.path"), text("d.path"));
    let mut joins = String::new();
    for i in 0..keys {
        select += &text(&format!("p{i}.partition_value"));
        joins += &format!(
            " left join ducklake_file_partition_value p{i} on p{i}.data_file_id = f.data_file_id and p{i}.partition_key_index = {i}"
        );
    }
    select += " as file";
    joins += &format!(" left join ducklake_delete_file d on d.data_file_id = f.data_file_id and {}", live("d"));
    // Branches instead of `or`: each is one range of an index on (table_id, end_snapshot, partition_id).
    let ends = ["f.end_snapshot is null", "f.end_snapshot > $2"];
    let all = format!("{select} from ducklake_data_file f{joins} where f.table_id = $1 and f.begin_snapshot <= $2");
    let files = match (narrow, &table.partition) {
        (Some(narrow), Some(partition)) => {
            values.push(Value::from(partition.id));
            let wanted = narrow.condition("n.partition_value", &mut values);
            let mut files = format!(
                "{select} from ducklake_file_partition_value n join ducklake_data_file f on f.data_file_id = n.data_file_id{joins}
                 where n.table_id = $1 and n.partition_key_index = {} and {wanted} and f.table_id = $1 and f.partition_id = $3 and {}",
                narrow.key,
                live("f"),
            );
            for end in ends {
                for other in ["f.partition_id is null", "f.partition_id < $3", "f.partition_id > $3"] {
                    files += &format!(" union all {all} and {end} and {other}");
                }
            }
            files
        }
        _ => ends.map(|end| format!("{all} and {end}")).join(" union all "),
    };
    let concat = match dialect {
        Dialect::Sqlite => "group_concat",
        Dialect::Postgres => "string_agg",
    };
    (format!("select {concat}(file, '') from ({files}) as files"), values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_out_as_they_went_in() {
        let mut packed = Packed { rest: "12|-1|4:a:|b-0:5:ü☃x-y3:é|9" };
        assert_eq!((packed.number().ok(), packed.known().ok()), (Some(12), Some(None)));
        let texts: Vec<_> = (0..5).map(|_| packed.text().ok().flatten()).collect();
        assert_eq!(texts, [Some("a:|b"), None, Some(""), Some("ü☃x-y"), Some("é|9")]);
        assert!(packed.rest.is_empty());
        for wrong in ["", "x:y", "12", "|"] {
            assert!(Packed { rest: wrong }.text().is_err() && Packed { rest: wrong }.number().is_err(), "{wrong}");
        }
    }
}
