//! Tables of the lake as DataFusion reads them.
//!
//! A scan is a plain Parquet scan over the files that the catalog lists at one snapshot, less those whose partition or statistics
//! rule the filters out. Identity partition values stand beside the files, so that filters on them are exact and `max(ds)` opens
//! none. What other programs did to a table comes on top: deletes as row selections, older shapes through field ids, files taken
//! in from elsewhere, files merged out of several snapshots, rows kept in the catalog.

mod bounds;
mod columns;
mod deletes;
mod extremes;
mod files;
mod inlined;
mod keys;
mod mapping;
mod reader;
mod reshape;
mod scan;
mod select;
mod staged;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex},
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{ScalarValue, Statistics},
    datasource::memory::MemorySourceConfig,
    error::{DataFusionError, Result as QueryResult},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};
use headworks_store::{Dialect, Store, values};

use self::{
    deletes::Deleted, files::DataFile, inlined::Inlined, keys::Narrow, reader::Checked, scan::Scan, select::Selection,
};
use crate::{
    At, Error, Lake, Result,
    storage::Storage,
    table::{Column, Table},
    types,
};

/// One table at one snapshot.
///
/// Schema: the table's columns in their order; texts and blobs as views. Errors while planning and running are
/// [`Error`] inside DataFusion's, found by [`error_in`]: `Corrupt` for a file that is missing or damaged, naming it; `Unsupported` for
/// what we do not read.
#[derive(Clone)]
pub struct LakeTable {
    store: Store,
    storage: Storage,
    table: Arc<Table>,
    snapshot: i64,
    schema: SchemaRef,
    columns: Arc<[Column]>,
    past: Past,
    /// The files of a result that is not published; the catalog's otherwise.
    staged: Option<Vec<DataFile>>,
    /// What is known of a staged result as a whole.
    statistics: Option<Statistics>,
    /// The reader wants no more than the least and the greatest value of each column.
    only_extremes: bool,
    selections: Arc<Mutex<Selections>>,
}

/// What was selected by some filters, newest last.
type Selections = Vec<(Vec<Expr>, Arc<Selection>)>;

/// A statement scans a table seldom more than once or twice.
const SELECTIONS_MAX: usize = 4;

impl Lake {
    /// A table as queries read it; the session must know the storage: [`Storage::register`].
    ///
    /// Errors: `NoTable`, `NoVersion`, and `Unsupported` for a table that has a column of a type we do not read.
    pub async fn provider(&self, name: &str, at: At) -> Result<Arc<LakeTable>> {
        let version = self.version(at).await?;
        let mut table = self.expect_table(name, at).await?;
        // The newest table may be newer than the version that was read before it, and may not have existed at it.
        if at == At::Now && self.version(at).await? != version {
            table = self.expect_table(name, At::Version(version)).await?;
        }
        Ok(Arc::new(LakeTable::open(self.store().clone(), self.storage().clone(), table, version).await?))
    }
}

/// What happened to a table that a plain scan would not show.
#[derive(Debug, Clone, Default)]
struct Past {
    /// A column was renamed, dropped, added, widened or given a default.
    reshaped: bool,
    /// Columns that may hold NaN.
    nan: Arc<[i64]>,
    /// Columns of days that all have ten characters as text, so that their texts sort as they do: no year beyond 9999, none
    /// before Christ, no `infinity`.
    days: Arc<[i64]>,
    /// The least and the greatest value of columns, by their ids: as the catalog has them, for estimates only.
    bounds: HashMap<i64, (ScalarValue, ScalarValue)>,
    /// Tables of the catalog that may hold rows.
    inlined: Vec<Inlined>,
    /// Whether the catalog may hold deletes.
    deletes: bool,
}

/// What a scan reads.
struct Contents {
    files: Vec<DataFile>,
    deleted: Deleted,
    rows: Vec<RecordBatch>,
}

/// Another program that moves rows from the catalog into files while we look makes us look again, at most this often.
const LOOKS_MAX: usize = 20;

impl LakeTable {
    /// Makes a provider of a table as it was at a snapshot. The session must know the storage: [`Storage::register`].
    pub async fn open(store: Store, storage: Storage, table: Arc<Table>, snapshot: i64) -> Result<Self> {
        let past = Past::of(&store, &table).await?;
        let schema = Arc::new(Schema::new(table.columns.iter().map(types::read_field).collect::<Vec<_>>()));
        let columns = table.columns.clone().into();
        Ok(Self {
            store,
            storage,
            table,
            snapshot,
            schema,
            columns,
            past,
            staged: None,
            statistics: None,
            only_extremes: false,
            selections: Arc::default(),
        })
    }

    /// The same table for a reader to whom only the least and the greatest value of each column that it asks for matter: a scan
    /// may leave out rows that are neither, and finds the days in the catalog's index. `None` when that is nothing new.
    pub fn for_extremes(&self) -> Option<Self> {
        let is_new = !self.only_extremes && self.staged.is_none();
        is_new.then(|| Self { only_extremes: true, ..self.clone() })
    }

    /// The bytes of the files that a scan of these columns with these filters reads at most: none for rows out of the catalog.
    ///
    /// What it finds out a scan with the same filters does not ask again.
    pub async fn bytes(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
    ) -> QueryResult<u64> {
        if self.only_extremes && extremes::may_tell(self, projection, filters) {
            return Ok(0);
        }
        Ok(self.select(state, filters).await?.bytes())
    }

    /// What a scan with these filters reads. The catalog's answer at a snapshot is for ever the same: it is kept.
    async fn select(&self, state: &dyn Session, filters: &[Expr]) -> QueryResult<Arc<Selection>> {
        let kept = || self.selections.lock().expect("nothing panics while it holds this lock");
        if let Some((_, selection)) = kept().iter().find(|(of, _)| of == filters) {
            return Ok(Arc::clone(selection));
        }
        let selection = Arc::new(Selection::find(self, state, filters).await?);
        let mut kept = kept();
        if kept.len() == SELECTIONS_MAX {
            kept.remove(0);
        }
        kept.push((filters.to_vec(), Arc::clone(&selection)));
        Ok(selection)
    }

    /// The table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The snapshot.
    pub fn snapshot(&self) -> i64 {
        self.snapshot
    }

    /// Columns whose value a file's partition gives for all its rows.
    fn key_columns(&self) -> HashSet<&str> {
        self.table.partition_columns().into_iter().filter(|name| self.schema.field_with_name(name).is_ok()).collect()
    }

    /// Reads the catalog so that nothing is missing or doubled: rows kept in the catalog may become files at any moment.
    async fn contents(&self, narrow: Option<&Narrow>) -> Result<Contents> {
        let is_watched = !self.past.inlined.is_empty() || self.past.deletes;
        let mut looks = 0;
        loop {
            let before = if is_watched { self.newest().await? } else { 0 };
            let contents = self.look(narrow).await;
            if !is_watched || !self.flushed_since(before).await? {
                return contents;
            }
            looks += 1;
            if looks == LOOKS_MAX {
                let what = format!(
                    "rows of table `{}` moved from the catalog into files during each of {looks} looks",
                    self.table.name
                );
                return Err(Error::Unsupported { what });
            }
        }
    }

    async fn look(&self, narrow: Option<&Narrow>) -> Result<Contents> {
        if let Some(files) = &self.staged {
            return Ok(Contents { files: files.clone(), deleted: Deleted::new(), rows: Vec::new() });
        }
        let files = files::list(&self.store, &self.storage, &self.table, self.snapshot, narrow).await?;
        let mut deleted = Deleted::new();
        if self.past.deletes {
            deletes::add_inlined(&self.store, self.table.id, self.snapshot, &mut deleted).await?;
        }
        let mut rows = Vec::new();
        for from in &self.past.inlined {
            rows.extend(inlined::read(&self.store, &self.table, from, &self.schema, self.snapshot).await?);
        }
        Ok(Contents { files, deleted, rows })
    }

    async fn newest(&self) -> Result<i64> {
        let row = self.store.row("select max(snapshot_id) from ducklake_snapshot", &[]).await?;
        Ok(row.map_or(Ok(None), |row| row.opt_i64(0))?.unwrap_or(0))
    }

    async fn flushed_since(&self, snapshot: i64) -> Result<bool> {
        let sql = "select changes_made from ducklake_snapshot_changes where snapshot_id > $1";
        let flush = format!("inline_flush:{}", self.table.id);
        for row in self.store.rows(sql, &values![snapshot]).await? {
            if row.opt_text(0)?.is_some_and(|changes| changes.split(',').any(|c| c == flush)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Past {
    /// Reads it in one statement: every query asks for every table of its own.
    async fn of(store: &Store, table: &Table) -> Result<Self> {
        let is_there = match store.dialect() {
            Dialect::Sqlite => "exists(select 1 from sqlite_master where type = 'table' and name = $2)",
            Dialect::Postgres => "to_regclass($2) is not null",
        };
        let sql = format!(
            "select 1, column_id, '', case when contains_nan then 1 when not contains_nan then 0 else -1 end,
                 case when length(min_value) = 10 and length(max_value) = 10 then 1 else 0 end, min_value, max_value
             from ducklake_table_column_stats where table_id = $1
             union all select 2, schema_version, table_name, 0, 0, null, null from ducklake_inlined_data_tables where table_id = $1
             union all select 3, 0, '', 0, 0, null, null where exists(select 1 from ducklake_column where table_id = $1
                 and (end_snapshot is not null or begin_snapshot <> (select min(begin_snapshot) from ducklake_table where table_id = $1)))
             union all select 4, 0, '', 0, 0, null, null where {is_there}"
        );
        let mut past = Self::default();
        let mut nan: Vec<i64> = table.columns.iter().filter(|c| c.data_type.is_floating()).map(|c| c.id).collect();
        let mut days = Vec::new();
        for row in store.rows(&sql, &values![table.id, deletes::inlined_table(table.id)]).await? {
            let id = row.i64(1)?;
            match row.i64(0)? {
                1 => {
                    if row.i64(3)? == 0 {
                        nan.retain(|column| *column != id);
                    }
                    if row.i64(4)? == 1 {
                        days.push(id);
                    }
                    if let Some(column) = table.columns.iter().find(|column| column.id == id)
                        && (column.data_type.is_integer() || column.data_type.is_temporal())
                    {
                        let value = |text: Option<String>| text.and_then(|t| types::statistic(&t, &column.data_type));
                        if let (Some(min), Some(max)) = (value(row.opt_text(5)?), value(row.opt_text(6)?)) {
                            past.bounds.insert(id, (min, max));
                        }
                    }
                }
                2 => past.inlined.push(Inlined { name: row.text(2)?, schema_version: id }),
                3 => past.reshaped = true,
                _ => past.deletes = true,
            }
        }
        let is_day = |id: i64| table.columns.iter().any(|c| c.id == id && c.data_type == DataType::Date32);
        days.retain(|id| is_day(*id));
        Ok(Self { nan: nan.into(), days: days.into(), ..past })
    }
}

#[async_trait]
impl TableProvider for LakeTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn statistics(&self) -> Option<Statistics> {
        self.statistics.clone()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> QueryResult<Vec<TableProviderFilterPushDown>> {
        let keys = self.key_columns();
        let support = |filter: &&Expr| match filter {
            // Its answer is not known before the query runs.
            filter if keys::has_subquery(filter) => TableProviderFilterPushDown::Unsupported,
            filter if keys::is_on(filter, &keys) => TableProviderFilterPushDown::Exact,
            _ => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
        if self.only_extremes
            && let Some(rows) = extremes::find(self, state, projection, filters).await?
        {
            return Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], Arc::clone(&self.schema), projection.cloned())?);
        }
        let selection = self.select(state, filters).await?;
        let keys = self.key_columns();
        let exact: Vec<&Expr> = filters.iter().filter(|filter| keys::is_on(filter, &keys)).collect();
        let scan = Scan {
            lake: self,
            state,
            checked: Checked::new(&self.storage),
            selection: &selection,
            projection: projection.map_or_else(|| (0..self.columns.len()).collect(), Clone::clone),
            exact: &exact,
            limit,
        };
        let mut plans = selection.groups.iter().map(|group| scan.plan(group)).collect::<QueryResult<Vec<_>>>()?;
        for batch in &selection.rows {
            plans.push(MemorySourceConfig::try_new_exec(
                &[vec![batch.clone()]],
                Arc::clone(&self.schema),
                projection.cloned(),
            )?);
        }
        Ok(match plans.len() {
            0 => {
                let schema = projection
                    .map_or_else(|| Ok(Arc::clone(&self.schema)), |p| self.schema.project(p).map(Arc::new))?;
                Arc::new(EmptyExec::new(schema))
            }
            1 => plans.remove(0),
            _ => UnionExec::try_new(plans)?,
        })
    }
}

impl fmt::Debug for LakeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LakeTable")
            .field("table", &self.table.name)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

/// The lake's own error inside a query's, however deep it lies: why a file could not be read, for one.
pub fn error_in(error: &DataFusionError) -> Option<&Error> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<Error>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

fn external(error: Error) -> DataFusionError {
    match error {
        Error::Query(error) => error,
        error => DataFusionError::External(Box::new(error)),
    }
}
