//! The record of queries, on both databases.

use chrono::{TimeDelta, TimeZone, Utc};
use headworks_meta::{Asked, AskedFilter, AskedLog};

use crate::{on_both, world::World};

on_both!(queries_are_written_once_and_listed_newest_first);

fn asked(n: i64) -> Asked {
    Asked {
        id: format!("q{n:04}"),
        user: if n % 2 == 0 { "even".to_owned() } else { "ödd".to_owned() },
        application: (n % 3 == 0).then(|| "psql".to_owned()),
        queue: "default".to_owned(),
        sql: format!("select {n}\0{}", "x".repeat(if n == 1 { 20_000 } else { 0 })),
        state: if n % 10 == 0 { "failed".to_owned() } else { "done".to_owned() },
        error: (n % 10 == 0).then(|| "SQL_DATA".to_owned()),
        started_at: Utc.timestamp_opt(1_700_000_000 + n, 0).unwrap(),
        waited_ms: 0,
        took_ms: n,
        rows: n,
        scanned_bytes: 0,
        is_cached: n % 2 == 0,
    }
}

async fn queries_are_written_once_and_listed_newest_first(world: World) {
    let log = AskedLog::open(world.store.clone()).await.unwrap();
    let all: Vec<Asked> = (0..1_200).map(asked).collect();
    log.write(all.clone()).await.unwrap();
    log.write(all[..10].to_vec()).await.unwrap();
    let list = async |filter: AskedFilter| log.list(&filter).await.unwrap();
    let limit = 10_000;
    assert_eq!(list(AskedFilter { limit, ..AskedFilter::default() }).await.len(), 1_200);
    let newest = list(AskedFilter { limit: 2, ..AskedFilter::default() }).await;
    assert_eq!(newest.iter().map(|q| q.id.as_str()).collect::<Vec<_>>(), ["q1199", "q1198"]);
    assert_eq!((newest[0].user.as_str(), newest[0].is_cached, newest[1].is_cached), ("ödd", false, true));
    let failed = AskedFilter { state: Some("failed".to_owned()), limit, ..AskedFilter::default() };
    assert_eq!(list(failed).await.len(), 120);
    let slow = AskedFilter { user: Some("even".to_owned()), took_ms_min: 1_190, limit, ..AskedFilter::default() };
    assert_eq!(list(slow).await.len(), 5);
    assert_eq!(log.forget_before(asked(1_000).started_at + TimeDelta::zero()).await.unwrap(), 1_000);
    let left = list(AskedFilter { limit, ..AskedFilter::default() }).await;
    assert_eq!((left.len(), left.last().unwrap().sql.as_str()), (200, "select 1000\u{fffd}"));
    assert_eq!(left.last().unwrap().error.as_deref(), Some("SQL_DATA"));
}
