//! A lake that DuckDB and we have open, and how their answers are compared.

use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use arrow::{
    array::RecordBatch,
    compute::cast,
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use datafusion::{
    physical_plan::{ExecutionPlan, displayable},
    prelude::{SessionConfig, SessionContext},
};
use headworks_domain::{Fault, SystemClock};
use headworks_lake::{At, Error, Lake, Storage, StorageOptions, error_in};
use headworks_testkit::{DuckDb, TempProject};
use parquet::arrow::ArrowWriter;

use crate::catalog::Catalog;

pub(super) type Texts = Vec<Vec<Option<String>>>;

/// A lake that DuckDB and we have open.
pub(super) struct World {
    pub(super) project: TempProject,
    pub(super) lake: Lake,
    pub(super) duck: DuckDb,
    files: AtomicU32,
}

impl World {
    /// `inlined`: up to how many rows of an insert DuckDB keeps in the catalog.
    pub(super) async fn new(catalog: Catalog, inlined: u32) -> Self {
        let project = TempProject::new().unwrap();
        let (store, attach) = catalog.open(&project).await;
        let storage = Storage::open(&StorageOptions {
            path: project.join("lake ü%20").display().to_string(),
            ..Default::default()
        })
        .unwrap();
        let lake = Lake::open(store, storage, Arc::new(SystemClock)).await.unwrap();
        let mut duck = DuckDb::start().unwrap();
        duck.attach(&attach.inlined_rows_max(inlined)).unwrap();
        duck.run("use lake").unwrap();
        Self { project, lake, duck, files: AtomicU32::new(0) }
    }

    pub(super) fn run(&mut self, statements: &[&str]) {
        for sql in statements {
            self.duck.run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }

    pub(super) async fn newest(&self) -> i64 {
        self.lake.version(At::Now).await.unwrap()
    }

    /// A session that sees one table under its own name, and as `t`.
    pub(super) async fn session(&self, table: &str, at: At) -> Result<SessionContext, Error> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        self.lake.storage().register(&context.runtime_env());
        let provider = self.lake.provider(table, at).await?;
        context.register_table("t", provider).unwrap();
        Ok(context)
    }

    /// Our rows, as DuckDB would write their values.
    pub(super) async fn ours(&mut self, table: &str, at: At, sql: &str) -> Texts {
        let context = self.session(table, at).await.unwrap_or_else(|e| panic!("{sql} at {at:?}: {e}"));
        let frame = context.sql(sql).await.unwrap_or_else(|e| panic!("{sql} at {at:?}: {e}"));
        let schema = Arc::clone(frame.schema().inner());
        let batches = frame.collect().await.unwrap_or_else(|e| panic!("{sql} at {at:?}: {e}"));
        let path = self.parquet(&schema, &batches);
        let mut rows = self.duck.texts(&format!("select * from read_parquet('{}')", path.display())).unwrap();
        rows.sort();
        rows
    }

    /// Hands rows to DuckDB. Parquet knows no seconds, so those go as microseconds, which DuckDB writes alike.
    pub(super) fn parquet(&self, schema: &Schema, batches: &[RecordBatch]) -> PathBuf {
        let path = self.project.join(format!("ours-{}.parquet", self.files.fetch_add(1, Ordering::Relaxed)));
        let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
        let fields = schema.fields().iter().map(|field| match field.data_type() {
            DataType::Timestamp(TimeUnit::Second, None) => {
                Arc::new(field.as_ref().clone().with_data_type(micros.clone()))
            }
            _ => Arc::clone(field),
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<Arc<Field>>>()));
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), Arc::clone(&schema), None).unwrap();
        for batch in batches {
            let columns = batch.columns().iter().zip(schema.fields()).map(|(c, f)| cast(c, f.data_type()).unwrap());
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap()).unwrap();
        }
        writer.close().unwrap();
        path
    }

    pub(super) fn theirs(&mut self, sql: &str) -> Texts {
        let mut rows = self.duck.texts(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.sort();
        rows
    }

    /// All columns of a table, now, read by both.
    pub(super) async fn check(&mut self, table: &str) {
        let ours = self.ours(table, At::Now, "select * from t").await;
        let theirs = self.theirs(&format!("select * from lake.\"{table}\""));
        same(&ours, &theirs, table);
    }

    /// A condition on a table, now, read by both.
    pub(super) async fn check_where(&mut self, table: &str, condition: &str) {
        let ours = self.ours(table, At::Now, &format!("select * from t where {condition}")).await;
        let theirs = self.theirs(&format!("select * from lake.\"{table}\" where {condition}"));
        same(&ours, &theirs, condition);
    }

    /// All columns of a table at every snapshot since `first`, read by both.
    pub(super) async fn check_versions(&mut self, table: &str, first: i64) {
        for version in first..=self.newest().await {
            let ours = self.ours(table, At::Version(version), "select * from t").await;
            let theirs = self.theirs(&format!("select * from lake.\"{table}\" at (version => {version})"));
            same(&ours, &theirs, &format!("{table} at {version}"));
        }
    }

    pub(super) async fn plan(&self, table: &str, sql: &str) -> (Arc<dyn ExecutionPlan>, String) {
        let context = self.session(table, At::Now).await.unwrap();
        let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let text = displayable(plan.as_ref()).indent(true).to_string();
        (plan, text)
    }

    pub(super) async fn failure(&self, table: &str, sql: &str) -> String {
        let context = match self.session(table, At::Now).await {
            Ok(context) => context,
            Err(error) => return format!("{:?}: {error}", error.kind()),
        };
        let error = match context.sql(sql).await {
            Ok(frame) => frame.collect().await.unwrap_err(),
            Err(error) => error,
        };
        let fault = error_in(&error).unwrap_or_else(|| panic!("no error of the lake: {error:?}"));
        format!("{:?}: {fault}", fault.kind())
    }
}

pub(super) fn same(ours: &Texts, theirs: &Texts, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: rows");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs, "{what}");
    }
}

/// Runs each test on SQLite and on PostgreSQL.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(crate::catalog::Catalog::Sqlite).await; })* }
        mod postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(crate::catalog::Catalog::Postgres).await; })* }
    };
}
pub(super) use on_both;
