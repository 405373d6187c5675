//! The registry under two versions of the program side by side: the newer has migrated it, the older goes on writing.

use std::sync::Arc;

use headworks_domain::SystemClock;
use headworks_lake::{At, Lake, Storage, StorageOptions};
use headworks_store::{Home, Migration, Store, Value, values};
use headworks_testkit::TempProject;

use crate::{
    catalog::BOTH,
    publish::{World, numbers},
};

/// What the first version of the program made of an empty database.
const V1: &[Migration] = &[Migration { version: 1, sql: include_str!("fixtures/registry_v1.sql"), postgres: None }];

/// Statements of the first version. Never change these; a version that is no longer supported takes its fixtures with it.
mod v1 {
    pub(super) const TABLE: &str =
        "insert into hw_table(table_id, name, kind, job, owner, retention_secs) values ($1, $2, $3, $4, $5, $6)
         on conflict (table_id) do update set name = excluded.name, kind = excluded.kind, job = excluded.job, owner = excluded.owner,
             retention_secs = excluded.retention_secs";
    pub(super) const PARTITION: &str =
        "insert into hw_partition(table_id, partition, version, row_count, bytes, files, published_at) values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (table_id, partition) do update set version = excluded.version, row_count = excluded.row_count,
             bytes = excluded.bytes, files = excluded.files, published_at = excluded.published_at";
    pub(super) const PUBLISH: &str =
        "insert into hw_publish(version, table_id, partition, action, row_count, bytes, files, published_at, job, run_id, attempt,
             job_version, as_of_now, inputs) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         on conflict (table_id, partition, version) do nothing";
    pub(super) const SEEN: &str = "update hw_lake set value = $1 where key = 'seen'";
}

/// Sends one statement of the old program and answers the rows that it touched.
async fn send(store: &Store, sql: &'static str, values: &[Value]) -> u64 {
    let values = values.to_vec();
    let sent: headworks_store::Result<u64> =
        store.write(move |tx| Box::pin(async move { tx.execute(sql, &values).await })).await;
    sent.unwrap_or_else(|error| panic!("{error}: {sql}"))
}

async fn old_program_publishes(store: &Store, table_id: i64, version: i64) {
    let none = || Value::Null;
    assert_eq!(send(store, v1::TABLE, &values![table_id, "t", "events", "a/job", "data", none()]).await, 1);
    let partition = values![table_id, "ds=2013-01-09", version, 3, 30, 1, 5];
    assert_eq!(send(store, v1::PARTITION, &partition).await, 1);
    let publish =
        values![version, table_id, "ds=2013-01-09", "publish", 3, 30, 1, 5, "a/job", "r-1", 7, "v1", false, none()];
    assert_eq!(send(store, v1::PUBLISH, &publish).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_program_goes_on_beside_the_newer() {
    for catalog in BOTH {
        let project = TempProject::new().unwrap();
        let (store, attach) = catalog.open(&project).await;
        store.migrate("lake_registry", Home::Platform, V1).await.unwrap();
        old_program_publishes(&store, 99, 1).await;
        let options = StorageOptions { path: project.join("lake").display().to_string(), ..Default::default() };
        let lake = Lake::open(store.clone(), Storage::open(&options).unwrap(), Arc::new(SystemClock)).await.unwrap();
        assert_eq!(lake.partitions(99).await.unwrap().len(), 1, "{catalog:?}");
        let world = World { project, lake, attach };
        world.put("t", "2013-01-01", &numbers([1])).await;
        let id = world.lake.expect_table("t", At::Now).await.unwrap().id;
        old_program_publishes(&store, id, 2).await;
        assert_eq!(send(&store, v1::SEEN, &values!["2"]).await, 1);
        assert_eq!(world.lake.partitions(id).await.unwrap().len(), 2, "{catalog:?}");
        let history = world.lake.history(id, None, 10).await.unwrap();
        assert_eq!((history.len(), history[0].job.as_deref()), (2, Some("a/job")), "{catalog:?}");
    }
}
