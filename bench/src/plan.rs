//! Planning on a table of 10,000 partitions with two files each.

use std::{path::Path, sync::Arc, time::Instant};

use arrow::{
    array::{Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use headworks_domain::Ds;
use headworks_engine::{Engine, EngineOptions, QueryOptions};
use headworks_lake::Lake;
use headworks_store::{Error as StoreError, values};

use crate::{
    lake,
    measure::{self, ms, percentile},
};

const PARTITIONS: i64 = 10_000;
const LOOKS: usize = 15;

pub(crate) fn run(scratch: &Path) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(plans(&scratch.join("plan")))
}

async fn plans(folder: &Path) -> anyhow::Result<()> {
    let lake = lake::open(&folder.join("metadata.db"), &folder.join("lake")).await?;
    let last = fill(&lake).await?;
    let engine = Engine::new(Arc::new(lake.clone()), EngineOptions::new(folder.join("spill"), 2))?;
    for (what, sql, goal) in [
        ("ds = one day", format!("explain select sum(n) from wide where ds = '{last}'"), "10 ms"),
        ("ds in a week", format!("explain select sum(n) from wide where ds > '{}'", last.plus_days(-7)), "10 ms"),
        ("max(ds)", "explain select max(ds) from wide".to_owned(), "10 ms"),
        ("wide_latest", "explain select sum(n) from wide_latest".to_owned(), "10 ms"),
        ("all 20,000 files", "explain select sum(n) from wide".to_owned(), "150 ms"),
    ] {
        let mut times = Vec::new();
        let cpu = measure::own_cpu();
        for _ in 0..LOOKS {
            let begun = Instant::now();
            engine.rows(&sql, QueryOptions::default()).await?;
            times.push(begun.elapsed());
        }
        let cpu = (measure::own_cpu() - cpu) / u32::try_from(LOOKS)?;
        let (p50, p95) = (percentile(&mut times, 0.5), percentile(&mut times, 0.95));
        println!("{what:<18} p50 {:>10}  p95 {:>10}  CPU {:>10}  (goal {goal})", ms(p50), ms(p95), ms(cpu));
    }
    engine.shut_down(std::time::Duration::from_secs(1)).await;
    Ok(())
}

/// Publishes one partition, then writes the catalog rows of the others: planning looks at nothing else.
async fn fill(lake: &Lake) -> anyhow::Result<Ds> {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(0..10))])?;
    let first: Ds = "1990-01-01".parse()?;
    let published = lake::publish(lake, "wide", first, 1, lake::one(batch)).await?;
    let table = published.table_id;
    lake.store()
        .write(move |tx| {
            Box::pin(async move {
                for day in 1..PARTITIONS {
                    let ds = first.plus_days(day).to_string();
                    for file in [2 * day, 2 * day + 1] {
                        tx.execute(
                            "insert into ducklake_data_file select $1, table_id, begin_snapshot, end_snapshot, file_order,
                                 $2, path_is_relative, file_format, record_count, file_size_bytes, footer_size, row_id_start, partition_id,
                                 encryption_key, mapping_id, partial_max from ducklake_data_file where data_file_id = 0",
                            &values![file, format!("ds={ds}/{file}.parquet")],
                        )
                        .await?;
                        tx.execute("insert into ducklake_file_partition_value values ($1, $2, 0, $3)", &values![file, table, &ds]).await?;
                        tx.execute(
                            "insert into ducklake_file_column_stats select $1, table_id, column_id, column_size_bytes, value_count, null_count,
                                 case when column_id = 1 then $2 else min_value end, case when column_id = 1 then $2 else max_value end,
                                 contains_nan, extra_stats from ducklake_file_column_stats where data_file_id = 0",
                            &values![file, &ds],
                        )
                        .await?;
                    }
                    tx.execute(
                        "insert into hw_partition select table_id, $1, version, row_count, bytes, files, published_at from hw_partition
                         where table_id = $2 and partition = 'ds=1990-01-01'",
                        &values![format!("ds={ds}"), table],
                    )
                    .await?;
                }
                Ok::<_, StoreError>(())
            })
        })
        .await?;
    Ok(first.plus_days(PARTITIONS - 1))
}
