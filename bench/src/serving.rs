//! Many queries at once, over HTTP: equal ones, different ones, dashboards beside heavy work; answers from the cache.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::{Int64Array, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use async_trait::async_trait;
use axum::{Router, routing::get};
use datafusion::{
    catalog::streaming::StreamingTable,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{stream::RecordBatchStreamAdapter, streaming::PartitionStream},
};
use headworks_api::{Api, serve};
use headworks_domain::PartitionKey;
use headworks_engine::{
    At, Caller, Catalog, Credentials, Engine, EngineOptions, Found, KeptOptions, KeptQueries, Listed, Moment, Newest,
    QueueOptions, SignIn, SignInError, Signed,
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    measure::{ms, percentile},
    served::{Client, Served},
    tpch,
};

const AT_ONCE: u32 = 100;
const SLOTS: usize = 32;
const PAUSE: Duration = Duration::from_secs(3);
/// Clients that ask for cached answers, each on a connection of its own.
const CACHED_CLIENTS: u32 = 16;
const CACHED_FOR: Duration = Duration::from_secs(10);

pub(crate) fn run(scratch: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(waiting(scratch))?;
    let project = runtime.block_on(tpch::made(1))?;
    let served = Served::start(
        &project,
        &[
            "engine.memory=4GiB",
            "queues.default.slots=32",
            "queues.default.memory_percent=40",
            "queues.heavy.slots=5",
            "queues.heavy.memory_percent=40",
            "queues.heavy.priority=low",
        ],
    )?;
    runtime.block_on(async {
        equal(&served).await?;
        different(&served).await?;
        dashboards(&served).await
    })
}

pub(crate) fn run_cached() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let project = runtime.block_on(tpch::made(1))?;
    let served = Served::start(&project, &[])?;
    runtime.block_on(cached(&served))
}

/// Asks all at once and looks at `/healthz` all the while.
async fn all_at_once(client: &Client, texts: Vec<String>) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let over = Arc::new(AtomicBool::new(false));
    let looker = {
        let (client, over) = (client.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            let mut looks = Vec::new();
            while !over.load(Ordering::Relaxed) {
                looks.push(client.health().await?);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok(looks)
        })
    };
    let mut asked = JoinSet::new();
    for text in texts {
        let client = client.clone();
        asked.spawn(async move { client.ask(&text, None, true).await });
    }
    let took = asked.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    over.store(true, Ordering::Relaxed);
    Ok((took, looker.await??))
}

fn told(what: &str, took: &mut [Duration], looks: &mut [Duration], more: &str) {
    println!(
        "{what}: p50 {}, p95 {}, last {}; /healthz p50 {}, p99 {}, max {}{more}",
        ms(percentile(took, 0.5)),
        ms(percentile(took, 0.95)),
        ms(percentile(took, 1.0)),
        ms(percentile(looks, 0.5)),
        ms(percentile(looks, 0.99)),
        ms(percentile(looks, 1.0)),
    );
}

/// A text that keeps the processor busy for some seconds when it runs alone.
fn heavy(rounds: u32, k: u32) -> String {
    format!(
        "select sum(l_extendedprice * (1 - l_discount) * g.value) + {k} as total from generate_series(1, {rounds}) g cross join lineitem"
    )
}

async fn equal(served: &Served) -> anyhow::Result<()> {
    let client = served.client();
    let mut rounds = 2;
    let (mut alone, mut alone_cpu);
    loop {
        let cpu = served.cpu();
        alone = client.ask(&heavy(rounds, 0), None, false).await?;
        alone_cpu = served.cpu() - cpu;
        if alone >= PAUSE {
            break;
        }
        rounds = rounds * 3 / 2;
    }
    let cpu = served.cpu();
    let (mut took, mut looks) = all_at_once(&client, vec![heavy(rounds, 1); AT_ONCE as usize]).await?;
    let more = format!(
        "; alone {} and {} CPU, all {} CPU (goal: one execution)",
        ms(alone),
        ms(alone_cpu),
        ms(served.cpu() - cpu)
    );
    told("100 equal queries of 3 s", &mut took, &mut looks, &more);
    Ok(())
}

async fn different(served: &Served) -> anyhow::Result<()> {
    let client = served.client();
    let cpu = served.cpu();
    let (mut took, mut looks) = all_at_once(&client, (0..AT_ONCE).map(|k| heavy(2, 2 + k)).collect()).await?;
    let more = format!("; {} CPU (goal: /healthz p99 50 ms)", ms(served.cpu() - cpu));
    told("100 different queries that calculate", &mut took, &mut looks, &more);
    Ok(())
}

/// Ten queries of dashboards, again and again, alone and while five heavy joins run in a queue of their own.
async fn dashboards(served: &Served) -> anyhow::Result<()> {
    let client = served.client();
    let mut quiet = dashboard(&client).await?;
    let mut joins = JoinSet::new();
    for k in 0..5 {
        let client = client.clone();
        let sql = format!(
            "select count(*) + {k} from lineitem a join lineitem b on a.l_suppkey = b.l_suppkey and a.l_quantity < b.l_quantity"
        );
        joins.spawn(async move { client.ask(&sql, Some("heavy"), false).await });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut busy = dashboard(&client).await?;
    let over = joins.len() - std::iter::from_fn(|| joins.try_join_next()).count();
    joins.abort_all();
    let (before, beside) = (percentile(&mut quiet, 0.95), percentile(&mut busy, 0.95));
    println!(
        "ten dashboard queries: p50 {}, p95 {}; beside {over} heavy joins p50 {}, p95 {}: {:.2} x (goal 3)",
        ms(percentile(&mut quiet, 0.5)),
        ms(before),
        ms(percentile(&mut busy, 0.5)),
        ms(beside),
        beside.as_secs_f64() / before.as_secs_f64().max(1e-9)
    );
    Ok(())
}

async fn dashboard(client: &Client) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..5 {
        let mut charts = JoinSet::new();
        for chart in 0..10 {
            let client = client.clone();
            let sql = format!(
                "select o_orderpriority, count(*), sum(o_totalprice) from orders
                 where o_orderdate >= date '199{}-01-01' and o_orderdate < date '199{}-01-01' group by 1 order by 1 limit {}",
                2 + chart % 5,
                3 + chart % 5,
                5 + chart
            );
            charts.spawn(async move { client.ask(&sql, None, false).await });
        }
        took.extend(charts.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?);
    }
    Ok(took)
}

async fn cached(served: &Served) -> anyhow::Result<()> {
    let client = served.client();
    let sql = "select o_orderpriority, count(*) as n from orders group by 1 order by 1";
    client.ask(sql, None, true).await?;
    let (cpu, begun) = (served.cpu(), Instant::now());
    let mut clients = JoinSet::new();
    for _ in 0..CACHED_CLIENTS {
        // Connections are not shared between clients.
        let client = served.client();
        clients.spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < CACHED_FOR {
                took.push(client.ask(sql, None, true).await?);
            }
            anyhow::Ok(took)
        });
    }
    let mut took: Vec<Duration> =
        clients.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect();
    let (wall, cpu) = (begun.elapsed(), served.cpu() - cpu);
    let count = u32::try_from(took.len())?;
    println!(
        "cached answers: {:.0} a second, {} CPU of the server each, p50 {}, p99 {} (goal 5,000 a second, 0.2 ms)",
        f64::from(count) / wall.as_secs_f64(),
        ms(cpu / count),
        ms(percentile(&mut took, 0.5)),
        ms(percentile(&mut took, 0.99)),
    );
    Ok(())
}

/// 100 different texts that each wait for 3 s and calculate nothing: in this process, over the same API.
async fn waiting(scratch: &Path) -> anyhow::Result<()> {
    let mut options = EngineOptions::new(scratch.join("spill"), 2);
    options.queues = vec![QueueOptions { slots: SLOTS, ..QueueOptions::new("default") }];
    let engine = Engine::new(Arc::new(OneTable), options)?;
    let kept = KeptQueries::new(engine.clone(), KeptOptions::new(scratch.join("kept")))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let (stop, stopped) = watch::channel(false);
    let routes = Api::new(engine.clone(), kept, Arc::new(Anybody)).router();
    let routes = routes.merge(Router::new().route("/healthz", get(|| async { "ok" })));
    let server = tokio::spawn(serve(listener, None, routes, stopped));
    let client = Client::new(address, "any".to_owned());
    let texts = (0..AT_ONCE).map(|k| format!("select n + {k} as n from pause")).collect();
    let (mut took, mut looks) = all_at_once(&client, texts).await?;
    told(
        "100 different queries that wait for 3 s, 32 slots",
        &mut took,
        &mut looks,
        " (goal: p95 9.5 s, /healthz p99 50 ms)",
    );
    drop(stop);
    server.abort();
    engine.shut_down(Duration::from_secs(1)).await;
    Ok(())
}

/// A catalog of one table, `pause`: its one row comes after three seconds.
struct OneTable;

#[async_trait]
impl Catalog for OneTable {
    async fn fix(&self, _at: At, _latest_of: &[&str]) -> headworks_engine::Result<(Moment, Newest)> {
        Ok((At::Version(1).into(), Newest::new()))
    }

    async fn find(&self, name: &str, _at: Moment) -> headworks_engine::Result<Option<Found>> {
        if name != "pause" {
            return Ok(None);
        }
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let table = StreamingTable::try_new(Arc::clone(&schema), vec![Arc::new(Pause { schema })])?;
        Ok(Some(Found::Table(Arc::new(table))))
    }

    async fn latest(&self, _name: &str, _at: Moment) -> headworks_engine::Result<Option<PartitionKey>> {
        Ok(None)
    }

    async fn list(&self, _at: Moment) -> headworks_engine::Result<Vec<Listed>> {
        Ok(Vec::new())
    }

    async fn has(&self, name: &str) -> headworks_engine::Result<bool> {
        Ok(name == "pause")
    }
}

#[derive(Debug)]
struct Pause {
    schema: SchemaRef,
}

impl PartitionStream for Pause {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let row = futures::stream::once(async move {
            tokio::time::sleep(PAUSE).await;
            Ok(RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![1]))])?)
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), row))
    }
}

/// Lets everybody in.
struct Anybody;

#[async_trait]
impl SignIn for Anybody {
    async fn sign_in(&self, _credentials: Credentials, _from: IpAddr) -> Result<Signed, SignInError> {
        Ok(Signed { caller: Caller::default(), session: None, may_query: true, may_manage: false })
    }

    async fn again(&self, _session: &str) -> Result<Signed, SignInError> {
        Err(SignInError::Wrong)
    }
}
