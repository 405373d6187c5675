//! The least and the greatest day out of the catalog's index are those among the rows.

use std::sync::Arc;

use datafusion::{
    physical_plan::displayable,
    prelude::{SessionConfig, SessionContext},
};
use headworks_lake::At;

use super::world::{World, on_both, same};
use crate::catalog::Catalog;

on_both!(extremes_of_partitions, extremes_among_rows_in_the_catalog);

const TEN_DAYS: &[&str] = &[
    "create table x(ds date, hour int, v int)",
    "alter table x set partitioned by (ds, hour)",
    "insert into x select date '2013-01-01' + (i // 48)::int, (i // 2) % 24, i from range(480) r(i)",
];

async fn extremes_of_partitions(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    world.run(TEN_DAYS);
    world.check_extremes("x", At::Now, true).await;
    let plain = world.newest().await;
    world.run(&["insert into x values (null, 3, 1)"]);
    world.check_extremes("x", At::Now, true).await;
    world.run(&["delete from x where ds = '2013-01-01'"]);
    world.check_extremes("x", At::Now, true).await;
    // What is left of the greatest day's files is in delete files.
    world.run(&["delete from x where ds = '2013-01-10' and hour > 2 and v % 2 = 0"]);
    world.check_extremes("x", At::Now, false).await;
    world.run(&["delete from x where ds = '2013-01-10'"]);
    world.check_extremes("x", At::Now, false).await;
    world.run(&["call ducklake_merge_adjacent_files('lake')", "call ducklake_rewrite_data_files('lake')"]);
    world.check_extremes("x", At::Now, false).await;
    world.check_extremes("x", At::Version(plain), false).await;
    // A year that does not sort as text, then files that are cut in another way.
    world.run(&["insert into x values ('12345-01-01', 3, 1)"]);
    world.check_extremes("x", At::Now, false).await;
    world.run(&[
        "delete from x where ds > '2013-12-31'",
        "alter table x set partitioned by (hour)",
        "insert into x values ('2014-01-01', 3, 1)",
    ]);
    world.check_extremes("x", At::Now, false).await;
}

async fn extremes_among_rows_in_the_catalog(catalog: Catalog) {
    let mut world = World::new(catalog, 100).await;
    world.run(TEN_DAYS);
    world.check_extremes("x", At::Now, false).await;
    world.run(&["insert into x values ('2014-01-01', 3, 1)", "delete from x where ds = '2013-01-01'"]);
    world.check_extremes("x", At::Now, false).await;
    world.run(&["call ducklake_flush_inlined_data('lake')"]);
    world.check_extremes("x", At::Now, false).await;
}

impl World {
    /// The least and the greatest `ds` under several conditions by the catalog's index, as DuckDB finds them among the rows.
    async fn check_extremes(&mut self, table: &str, at: At, is_quick: bool) {
        let theirs_at = match at {
            At::Version(version) => format!(" at (version => {version})"),
            _ => String::new(),
        };
        for condition in [
            "true",
            "ds < date '2013-01-07'",
            "ds > date '2013-01-02' and ds <= date '2013-01-09'",
            "ds between date '2013-01-03' and date '2013-01-03'",
            "hour = 3",
            "hour > 22 or ds = date '2013-01-05'",
            "ds > date '2099-01-01'",
            "ds is null",
        ] {
            let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
            self.lake.storage().register(&context.runtime_env());
            let provider = self.lake.provider(table, at).await.unwrap().for_extremes().unwrap();
            assert!(provider.for_extremes().is_none());
            context.register_table("t", Arc::new(provider)).unwrap();
            let sql = format!("select max(ds), min(ds) from t where {condition}");
            let frame = context.sql(&sql).await.unwrap();
            let plan = frame.clone().create_physical_plan().await.unwrap();
            let plan = displayable(plan.as_ref()).indent(true).to_string();
            assert!(!is_quick || !plan.contains(".parquet"), "{condition}: {plan}");
            let schema = Arc::clone(frame.schema().inner());
            let path = self.parquet(&schema, &frame.collect().await.unwrap());
            let ours = self.duck.texts(&format!("select * from read_parquet('{}')", path.display())).unwrap();
            let theirs =
                self.theirs(&format!("select max(ds), min(ds) from lake.\"{table}\"{theirs_at} where {condition}"));
            same(&ours, &theirs, &format!("{condition} of {table} at {at:?}"));
        }
    }
}
