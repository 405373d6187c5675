//! Deleted rows: delete files beside the data files, and deletes that are kept in the catalog.

use std::{collections::HashMap, sync::Arc};

use arrow::{array::AsArray, datatypes::Int64Type};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use headworks_store::{Store, values};
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::{
    arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector},
    errors::{ParquetError, Result as ParquetResult},
};

use super::{
    files::{DataFile, DeleteFile},
    reader::Checked,
};
use crate::{Error, Result};

/// The column in which merged files keep each row's own snapshot.
pub(super) const ROW_SNAPSHOT: &str = "_ducklake_internal_snapshot_id";

/// Delete files read at once.
const READS_MAX: usize = 8;

/// Positions of deleted rows by data file, sorted, each once.
pub(super) type Deleted = HashMap<i64, Vec<u64>>;

/// The catalog's table that keeps deletes of a table, when there is one.
pub(super) fn inlined_table(table: i64) -> String {
    format!("ducklake_inlined_delete_{table}")
}

/// Adds the deletes kept in the catalog that are valid at a snapshot.
pub(super) async fn add_inlined(store: &Store, table: i64, snapshot: i64, deleted: &mut Deleted) -> Result<()> {
    let sql = format!("select file_id, row_id from {} where begin_snapshot <= $1", inlined_table(table));
    for row in store.rows(&sql, &values![snapshot]).await? {
        deleted.entry(row.i64(0)?).or_default().push(position(row.i64(1)?)?);
    }
    Ok(())
}

/// Adds the deletes of the files' delete files that are valid at a snapshot.
pub(super) async fn add_files(
    checked: &Checked,
    files: impl Iterator<Item = &DataFile>,
    snapshot: i64,
    deleted: &mut Deleted,
) -> Result<()> {
    let reads = files.filter_map(|file| Some(read(checked, file.id, file.deletes.as_ref()?, snapshot)));
    // Collected first: a stream of closures over borrowed files would not be `Send`.
    let reads: Vec<_> = reads.collect();
    let mut reads = futures::stream::iter(reads).buffer_unordered(READS_MAX);
    while let Some((id, positions)) = reads.try_next().await? {
        deleted.entry(id).or_default().extend(positions);
    }
    Ok(())
}

async fn read(checked: &Checked, id: i64, file: &DeleteFile, snapshot: i64) -> Result<(i64, Vec<u64>)> {
    let store: Arc<dyn ObjectStore> = checked.store(&file.place);
    let path = file.place.path();
    let bytes = async { store.get(path).await?.bytes().await };
    let positions = match bytes.await {
        Ok(bytes) => positions(bytes, snapshot),
        Err(error) => Err(ParquetError::External(Box::new(error))),
    };
    match positions {
        Ok(positions) => Ok((id, positions.into_iter().map(position).collect::<Result<_>>()?)),
        Err(error) => Err(checked.diagnose(&store, path, file.size, error).await),
    }
}

fn positions(file: Bytes, snapshot: i64) -> ParquetResult<Vec<i64>> {
    let mut positions = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
        let batch = batch?;
        let column = |name| batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<Int64Type>());
        let pos = column("pos").ok_or_else(|| ParquetError::General("there is no column `pos`".to_owned()))?;
        // A file that was written for several commits says for each row when it was deleted.
        let since = column(ROW_SNAPSHOT);
        for i in 0..batch.num_rows() {
            if since.is_none_or(|since| since.value(i) <= snapshot) {
                positions.push(pos.value(i));
            }
        }
    }
    Ok(positions)
}

fn position(row: i64) -> Result<u64> {
    u64::try_from(row).map_err(|_| Error::Corrupt { what: format!("a deleted row has the position {row}") })
}

/// Sorts the positions and drops doubles: a row may be listed both in a file and in the catalog.
pub(super) fn settle(deleted: &mut Deleted) {
    for positions in deleted.values_mut() {
        positions.sort_unstable();
        positions.dedup();
    }
}

/// The rows of a file that are left, as runs over its whole length.
pub(super) fn selection(positions: &[u64], rows: u64) -> RowSelection {
    let mut runs: Vec<RowSelector> = Vec::new();
    let mut next = 0;
    let mut push = |count: u64, skip: bool| {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match runs.last_mut() {
            Some(run) if run.skip == skip => run.row_count += count,
            _ if count > 0 => runs.push(RowSelector { row_count: count, skip }),
            _ => {}
        }
    };
    for position in positions.iter().copied().filter(|p| *p < rows) {
        push(position - next, false);
        push(1, true);
        next = position + 1;
    }
    push(rows - next, false);
    RowSelection::from(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_deleted_is_selected() {
        let check = |positions: &[u64], rows: u64, expected: &[(bool, usize)]| {
            let runs: Vec<RowSelector> = selection(positions, rows).into();
            let runs: Vec<_> = runs.iter().map(|r| (r.skip, r.row_count)).collect();
            assert_eq!(runs, expected, "{positions:?} of {rows}");
        };
        check(&[], 5, &[(false, 5)]);
        check(&[0], 5, &[(true, 1), (false, 4)]);
        check(&[1, 2, 4], 5, &[(false, 1), (true, 2), (false, 1), (true, 1)]);
        check(&[0, 1, 2], 3, &[(true, 3)]);
        check(&[7], 3, &[(false, 3)]);
    }
}
