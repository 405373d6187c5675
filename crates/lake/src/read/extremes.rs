//! The least and the greatest day of a table's partitions, out of an index of the catalog.
//!
//! `select max(ds)` needs one file's partition value. Listing all files for it takes as long as there are files.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, new_null_array},
    datatypes::{DataType, FieldRef},
};
use datafusion::{catalog::Session, common::ScalarValue, error::Result as QueryResult, logical_expr::Expr};
use headworks_store::values;

use super::{LakeTable, external, files::live, keys, keys::Narrow};
use crate::{Result, table::Partition};

/// How many files are looked at for one that the filters want: few at first, for they are hardly ever needed.
const LOOKS: [usize; 2] = [32, 2_000];

/// A partition key whose values stand beside the files.
struct Key {
    /// The key's place among the partition's keys.
    index: usize,
    /// The column's place in the table.
    at: usize,
}

/// Finds rows of the table among which are those with the least and the greatest value of every column asked for; columns that
/// are neither asked for nor keys are null in them. `None` when the catalog's index alone does not tell.
pub(super) async fn find(
    lake: &LakeTable,
    state: &dyn Session,
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
) -> QueryResult<Option<RecordBatch>> {
    let Some((partition, keys)) = askable(lake, projection, filters) else { return Ok(None) };
    if has_others(lake, partition).await.map_err(external)? {
        return Ok(None);
    }
    let search = Search { lake, state, partition, keys: &keys, filters };
    let mut found = Vec::new();
    for key in keys.iter().filter(|key| projection.is_some_and(|wanted| wanted.contains(&key.at))) {
        for order in ["asc", "desc"] {
            match search.first(key, order).await? {
                Looked::Found(values) => found.push(values),
                Looked::Nothing => {}
                Looked::Unsure => return Ok(None),
            }
        }
    }
    search.rows(found).map(Some)
}

/// True when the index is worth asking for these columns under these filters.
pub(super) fn may_tell(lake: &LakeTable, projection: Option<&Vec<usize>>, filters: &[Expr]) -> bool {
    askable(lake, projection, filters).is_some()
}

/// The partition keys by which the index can be asked; `None` when what is wanted is not all among them.
fn askable<'l>(
    lake: &'l LakeTable,
    projection: Option<&Vec<usize>>,
    filters: &[Expr],
) -> Option<(&'l Partition, Vec<Key>)> {
    let (partition, projection) = (lake.table.partition.as_ref()?, projection?);
    let keys: Vec<Key> = (0..)
        .zip(&partition.columns)
        .filter(|(_, column)| column.transform == "identity")
        .filter_map(|(index, column)| {
            Some(Key { index, at: lake.columns.iter().position(|c| c.id == column.column_id)? })
        })
        .collect();
    let names: HashSet<&str> = keys.iter().map(|key| lake.schema.field(key.at).name().as_str()).collect();
    let is_sorted = |at: usize| lake.past.days.contains(&lake.columns[at].id) && keys.iter().any(|key| key.at == at);
    let tells = lake.past.inlined.is_empty()
        && !lake.past.deletes
        && !projection.is_empty()
        && projection.iter().all(|at| is_sorted(*at))
        && filters.iter().all(|filter| keys::is_on(filter, &names) && !keys::has_subquery(filter));
    tells.then_some((partition, keys))
}

/// True when the table has files that were cut in another way, or not at all.
async fn has_others(lake: &LakeTable, partition: &Partition) -> Result<bool> {
    let mut branches = Vec::new();
    for end in ["end_snapshot is null", "end_snapshot > $2"] {
        for other in ["partition_id is null", "partition_id < $3", "partition_id > $3"] {
            branches.push(format!(
                "exists(select 1 from ducklake_data_file where table_id = $1 and begin_snapshot <= $2 and {end} and {other})"
            ));
        }
    }
    let sql = format!("select case when {} then 1 else 0 end", branches.join(" or "));
    let row = lake.store.row(&sql, &values![lake.table.id, lake.snapshot, partition.id]).await?;
    Ok(row.map_or(Ok(true), |row| row.bool(0))?)
}

struct Search<'a> {
    lake: &'a LakeTable,
    state: &'a dyn Session,
    partition: &'a Partition,
    keys: &'a [Key],
    filters: &'a [Expr],
}

enum Looked {
    /// The values of all keys of a file that has rows.
    Found(Vec<ScalarValue>),
    Nothing,
    Unsure,
}

impl Search<'_> {
    /// Finds the first file in the order of one key that has rows and matches the filters.
    async fn first(&self, key: &Key, order: &str) -> QueryResult<Looked> {
        for looks in LOOKS {
            let files = self.files(key, order, looks).await.map_err(external)?;
            let mut rows: Vec<Vec<ScalarValue>> = Vec::with_capacity(files.len());
            for file in &files {
                let values = self
                    .keys
                    .iter()
                    .zip(&file.keys)
                    .map(|(key, text)| keys::value(text.as_deref(), self.lake.schema.field(key.at).data_type()));
                let Some(values) = values.collect::<Option<Vec<_>>>() else { return Ok(Looked::Unsure) };
                rows.push(values);
            }
            let kept = self.matching(&rows)?;
            if let Some(at) = kept.iter().position(|kept| *kept) {
                // Rows of such a file may be deleted, or newer than the snapshot: it alone does not tell.
                return Ok(if files[at].is_whole { Looked::Found(rows.swap_remove(at)) } else { Looked::Unsure });
            }
            if files.len() < looks {
                return Ok(Looked::Nothing);
            }
        }
        Ok(Looked::Unsure)
    }

    async fn files(&self, key: &Key, order: &str, most: usize) -> Result<Vec<File>> {
        let mut values = values![self.lake.table.id, self.lake.snapshot, self.partition.id].to_vec();
        let mut select = String::new();
        let mut joins = String::new();
        for Key { index, .. } in self.keys {
            select += &format!(", p{index}.partition_value");
            joins += &format!(
                " left join ducklake_file_partition_value p{index} on p{index}.data_file_id = f.data_file_id and p{index}.partition_key_index = {index}"
            );
        }
        let narrow = Narrow::find(&self.lake.table, &self.lake.schema, &self.lake.past.days, self.filters);
        let wanted = match narrow.filter(|narrow| narrow.key == key.index) {
            Some(narrow) => format!(" and {}", narrow.condition("n.partition_value", &mut values)),
            None => String::new(),
        };
        // `cross join` keeps SQLite from starting with the files.
        let sql = format!(
            "select case when d.data_file_id is null and (f.partial_max is null or f.partial_max <= $2) then 1 else 0 end{select}
             from ducklake_file_partition_value n cross join ducklake_data_file f{joins}
             left join ducklake_delete_file d on d.data_file_id = f.data_file_id and {}
             where n.table_id = $1 and n.partition_key_index = {} and n.partition_value is not null{wanted}
               and f.data_file_id = n.data_file_id and f.table_id = $1 and f.partition_id = $3 and f.record_count > 0 and {}
             order by n.partition_value {order} limit {most}",
            live("d"),
            key.index,
            live("f"),
        );
        let rows = self.lake.store.rows(&sql, &values).await?;
        rows.iter()
            .map(|row| {
                let keys = (1..=self.keys.len()).map(|at| row.opt_text(at)).collect::<Result<_, _>>()?;
                Ok(File { is_whole: row.bool(0)?, keys })
            })
            .collect()
    }

    /// Says for each file whether all the filters hold.
    fn matching(&self, rows: &[Vec<ScalarValue>]) -> QueryResult<Vec<bool>> {
        if self.filters.is_empty() || rows.is_empty() {
            return Ok(vec![true; rows.len()]);
        }
        let fields: Vec<FieldRef> =
            self.keys.iter().map(|key| Arc::clone(&self.lake.schema.fields()[key.at])).collect();
        let column = |i: usize| ScalarValue::iter_to_array(rows.iter().map(|values| values[i].clone()));
        let columns = (0..fields.len()).map(column).collect::<QueryResult<Vec<ArrayRef>>>()?;
        let filters: Vec<&Expr> = self.filters.iter().collect();
        let kept = keys::matching(self.state, &filters, &fields, columns, rows.len())?;
        Ok(kept.values().iter().collect())
    }

    /// Makes rows of the table out of values of its keys.
    fn rows(&self, found: Vec<Vec<ScalarValue>>) -> QueryResult<RecordBatch> {
        let column = |at: usize, data_type: &DataType| match self.keys.iter().position(|key| key.at == at) {
            Some(i) if !found.is_empty() => ScalarValue::iter_to_array(found.iter().map(|values| values[i].clone())),
            _ => Ok(new_null_array(data_type, found.len())),
        };
        let fields = self.lake.schema.fields().iter().enumerate();
        let columns = fields.map(|(at, field)| column(at, field.data_type())).collect::<QueryResult<_>>()?;
        Ok(RecordBatch::try_new(Arc::clone(&self.lake.schema), columns)?)
    }
}

/// A file with rows, as the index names it.
struct File {
    /// All its rows are there at the snapshot.
    is_whole: bool,
    /// The texts of its keys.
    keys: Vec<Option<String>>,
}
