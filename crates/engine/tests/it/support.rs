use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use arrow::{
    array::{ArrayRef, Date32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray},
    util::pretty::pretty_format_batches,
};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, TableProvider};
use headworks_domain::{Ds, PartitionKey};
use headworks_engine::{
    At, Catalog, Engine, EngineOptions, Error, Found, Listed, Moment, Newest, QueryOptions, Result,
};
use tempfile::TempDir;

/// A lake in memory: some tables per version, some views.
#[derive(Default)]
pub(crate) struct Tables {
    /// Version, name -> table.
    pub(crate) tables: BTreeMap<(i64, &'static str), Arc<dyn TableProvider>>,
    pub(crate) views: BTreeMap<&'static str, (&'static str, Vec<String>)>,
    pub(crate) newest: BTreeMap<&'static str, PartitionKey>,
    /// Everything that was asked for, for tests of what is not asked.
    pub(crate) asked: Mutex<Vec<String>>,
    /// What the tables are as new as; results are kept only with one.
    pub(crate) stamp: Option<String>,
}

pub(crate) const VERSION: i64 = 7;

#[async_trait]
impl Catalog for Tables {
    async fn fix(&self, at: At, latest_of: &[&str]) -> Result<(Moment, Newest)> {
        let version = match at {
            At::Now => At::Version(VERSION),
            At::Time(time) if time.timestamp() < 1_500_000_000 => At::Version(3),
            At::Time(_) => At::Version(VERSION),
            version => version,
        };
        let newest = latest_of.iter().map(|name| ((*name).to_owned(), self.newest.get(name).cloned())).collect();
        Ok((Moment { at: version, below: version, is_named: at != At::Now }, newest))
    }

    async fn find(&self, name: &str, at: Moment) -> Result<Option<Found>> {
        let At::Version(version) = at.at else { panic!("`{name}` was asked for at a moment that is not fixed") };
        self.asked.lock().unwrap().push(format!("{name}@{version}"));
        if let Some((sql, columns)) = self.views.get(name) {
            return Ok(Some(Found::View { sql: (*sql).to_owned(), columns: columns.clone() }));
        }
        let found = self.tables.iter().rev().find(|((v, n), _)| *v <= version && *n == name);
        Ok(found.map(|(_, table)| Found::Table(table.clone())))
    }

    async fn latest(&self, name: &str, _at: Moment) -> Result<Option<PartitionKey>> {
        Ok(self.newest.get(name).cloned())
    }

    async fn stamp(&self, _names: &[String], _since: Option<Moment>) -> Result<Option<String>> {
        Ok(self.stamp.clone())
    }

    async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.views.contains_key(name) || self.tables.keys().any(|(_, table)| *table == name))
    }

    async fn list(&self, _at: Moment) -> Result<Vec<Listed>> {
        let mut listed: Vec<Listed> = Vec::new();
        for ((_, name), table) in &self.tables {
            if listed.iter().all(|l| l.name != *name) {
                listed.push(Listed {
                    name: (*name).to_owned(),
                    schema: Some(table.schema()),
                    has_latest: table.schema().field_with_name("ds").is_ok(),
                    definition: None,
                });
            }
        }
        for (name, (sql, _)) in &self.views {
            listed.push(Listed {
                name: (*name).to_owned(),
                schema: None,
                has_latest: false,
                definition: Some((*sql).to_owned()),
            });
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }
}

pub(crate) fn table(columns: Vec<(&str, ArrayRef)>) -> Arc<dyn TableProvider> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap())
}

pub(crate) fn ints(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

pub(crate) fn texts<'a>(values: impl IntoIterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

pub(crate) fn days<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    let epoch = "1970-01-01".parse::<Ds>().unwrap().date();
    Arc::new(Date32Array::from_iter_values(values.into_iter().map(|d| {
        let days = (d.parse::<Ds>().unwrap().date() - epoch).num_days();
        i32::try_from(days).unwrap()
    })))
}

/// `flights` (two days; one row more at version 5 than before), `hourly` (ds, hour), `empty` (published without rows),
/// `"Ünï"` (awkward names), `airlines` (no ds), the view `delays`.
pub(crate) fn lake() -> Tables {
    let mut lake = Tables::default();
    let flights = |n: usize| {
        let take = |values: [&'static str; 5]| days(values.into_iter().take(n));
        table(vec![
            ("ds", take(["2013-01-01", "2013-01-01", "2013-01-02", "2013-01-02", "2013-01-02"])),
            ("carrier", texts([Some("UA"), Some("AA"), Some("UA"), None, Some("DL")].into_iter().take(n))),
            (
                "delay",
                Arc::new(Float64Array::from_iter(
                    [Some(1.5), None, Some(-3.0), Some(0.0), Some(12.25)].into_iter().take(n),
                )) as ArrayRef,
            ),
        ])
    };
    lake.tables.insert((1, "flights"), flights(4));
    lake.tables.insert((5, "flights"), flights(5));
    lake.newest.insert("flights", PartitionKey::day("2013-01-02".parse().unwrap()));
    lake.tables.insert(
        (1, "hourly"),
        table(vec![
            ("ds", days(["2013-01-01", "2013-01-02", "2013-01-02"])),
            ("hour", Arc::new(Int32Array::from(vec![23, 4, 5])) as ArrayRef),
            ("n", ints([1, 2, 3])),
        ]),
    );
    lake.newest.insert("hourly", PartitionKey::hour("2013-01-02".parse().unwrap(), 5));
    lake.tables.insert((1, "empty"), table(vec![("ds", days(["2013-01-01"])), ("n", ints([1]))]));
    lake.newest.insert("empty", PartitionKey::day("2013-01-02".parse().unwrap()));
    lake.tables.insert((1, "unpublished"), table(vec![("ds", days(["2013-01-01"])), ("n", ints([1]))]));
    lake.tables.insert((1, "Ünï"), table(vec![("order", ints([1])), ("two words", ints([2])), ("Big", ints([3]))]));
    lake.tables.insert(
        (1, "airlines"),
        table(vec![("carrier", texts([Some("UA"), Some("AA")])), ("name", texts([Some("United"), Some("American")]))]),
    );
    lake.views.insert(
        "delays",
        ("SELECT ds, max(delay) FROM somewhere.main.flights GROUP BY ds", vec!["day".to_owned(), "most".to_owned()]),
    );
    lake.views.insert("broken", ("SELECT list_zip(a) OVER WINDOW FROM x", Vec::new()));
    lake.views.insert("circle", ("SELECT * FROM circle", Vec::new()));
    lake
}

pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) lake: Arc<Tables>,
    pub(crate) dir: TempDir,
}

pub(crate) fn bench() -> Bench {
    bench_with(lake(), |_| {})
}

pub(crate) fn bench_with(lake: Tables, change: impl FnOnce(&mut EngineOptions)) -> Bench {
    let dir = TempDir::new().unwrap();
    let mut options = EngineOptions::new(dir.path().join("spill"), 2);
    change(&mut options);
    let lake = Arc::new(lake);
    let engine = Engine::new(lake.clone(), options).unwrap();
    Bench { engine, lake, dir }
}

impl Bench {
    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.engine.rows(sql, QueryOptions::default()).await
    }

    /// The result as a table of text without borders of its own.
    pub(crate) async fn shown(&self, sql: &str) -> String {
        match self.rows(sql).await {
            Ok(batches) => pretty_format_batches(&batches).unwrap().to_string(),
            Err(error) => format!("error: {error}"),
        }
    }

    pub(crate) async fn fails(&self, sql: &str) -> Error {
        match self.rows(sql).await {
            Ok(batches) => panic!("{sql} gives\n{}", pretty_format_batches(&batches).unwrap()),
            Err(error) => error,
        }
    }

    /// The one value of a result with one row and one column.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let batches = self.rows(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, 1, "{sql}");
        arrow::util::display::array_value_to_string(batches[0].column(0), 0).unwrap()
    }
}
