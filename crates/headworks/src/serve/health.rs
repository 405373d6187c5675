//! `/healthz`, `/readyz` and `/metrics`.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use headworks_domain::{Clock, ErrorKind, Fault};
use headworks_engine::Engine;
use headworks_flow::exec::{Counts, RunProgress};
use headworks_meta::{PoolRow, Runs};
use headworks_store::Store;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::{net::TcpListener, time::timeout};

use crate::fail::Failure;

/// How long the metadata database may take to answer before the process calls itself not ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPool {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByQueue {
    queue: String,
}

/// What is known of the queues, and of the cache in front of them.
#[derive(Default)]
struct Queries {
    slots: Family<ByQueue, Gauge>,
    running: Family<ByQueue, Gauge>,
    waiting: Family<ByQueue, Gauge>,
    memory: Family<ByQueue, Gauge>,
    entered: Family<ByQueue, Gauge>,
    refused: Family<ByQueue, Gauge>,
    hits: Gauge,
    misses: Gauge,
    cached: Gauge,
}

impl Queries {
    fn register(&self, registry: &mut Registry) {
        registry.register("sql_queue_slots", "Queries that may run at once", self.slots.clone());
        registry.register("sql_queue_running", "Queries that run", self.running.clone());
        registry.register("sql_queue_waiting", "Queries that wait for a slot", self.waiting.clone());
        registry.register("sql_queue_memory_bytes", "Memory that queries hold", self.memory.clone());
        registry.register("sql_queue_entered", "Queries that got a slot since the start", self.entered.clone());
        registry.register("sql_queue_refused", "Queries refused since too many waited", self.refused.clone());
        registry.register("sql_cache_hits", "Queries answered from the cache since the start", self.hits.clone());
        registry.register("sql_cache_misses", "Queries that were not in the cache", self.misses.clone());
        registry.register("sql_cache_memory_bytes", "Memory of cached results", self.cached.clone());
    }

    fn count(&self, engine: &Engine) {
        fn set(gauge: &Gauge, value: impl TryInto<i64>) {
            gauge.set(value.try_into().unwrap_or(i64::MAX));
        }
        for state in engine.queues() {
            let by = ByQueue { queue: state.name };
            set(&self.slots.get_or_create(&by), state.slots);
            set(&self.running.get_or_create(&by), state.running);
            set(&self.waiting.get_or_create(&by), state.waiting);
            set(&self.memory.get_or_create(&by), state.memory_used_bytes);
            set(&self.entered.get_or_create(&by), state.entered);
            set(&self.refused.get_or_create(&by), state.refused);
        }
        let cache = engine.cache();
        set(&self.hits, cache.hits);
        set(&self.misses, cache.misses);
        set(&self.cached, cache.memory_bytes);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByHolder {
    pool: String,
    process: String,
}

/// What is known of this process's health, with its metrics.
pub(super) struct Health {
    store: Store,
    runs: Arc<Runs>,
    registry: Registry,
    ended: Family<ByState, Counter>,
    live: Family<ByState, Gauge>,
    rows: Gauge,
    seconds: Histogram,
    commits: Gauge,
    pools: Family<ByPool, Gauge>,
    taken: Family<ByHolder, Gauge>,
    queries: Queries,
    /// Of a process that serves queries.
    engine: OnceLock<Engine>,
}

impl Health {
    pub(super) fn new(clock: Arc<dyn Clock>, store: Store, runs: Arc<Runs>) -> Self {
        let mut registry = Registry::with_prefix("headworks");
        let (ended, live) = (Family::<ByState, Counter>::default(), Family::<ByState, Gauge>::default());
        let (rows, commits, started) = (Gauge::default(), Gauge::default(), Gauge::<i64>::default());
        let (pools, taken) = (Family::<ByPool, Gauge>::default(), Family::<ByHolder, Gauge>::default());
        let seconds = Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]);
        registry.register("flow_runs_ended", "Run states reached since the start", ended.clone());
        registry.register("flow_runs_live", "Runs that this process has, by how they stand", live.clone());
        registry.register("flow_rows_published", "Rows published since the start", rows.clone());
        registry.register("flow_attempt_seconds", "How long attempts took", seconds.clone());
        registry.register("store_commits", "Durable commits of this process since the start", commits.clone());
        registry.register("process_start_time_seconds", "When this process started, since 1970", started.clone());
        registry.register("flow_pool_slots", "Slots of named pools, which all processes share", pools.clone());
        let help = "Slots of named pools that tasks of a process have, of whichever process";
        registry.register("flow_pool_slots_taken", help, taken.clone());
        started.set(clock.now().timestamp());
        let (queries, engine) = (Queries::default(), OnceLock::new());
        queries.register(&mut registry);
        Self { store, runs, registry, ended, live, rows, seconds, commits, pools, taken, queries, engine }
    }

    /// Shows the queues of this engine among the metrics.
    pub(super) fn watch(&self, engine: Engine) {
        let _ = self.engine.set(engine);
    }

    /// A run's state changed.
    pub(super) fn run(&self, run: &RunProgress, counts: &Counts) {
        let state = |state| ByState { state };
        for (name, count) in [("waiting", counts.waiting), ("running", counts.running), ("retry", counts.retry)] {
            self.live.get_or_create(&state(name)).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.rows.set(i64::try_from(counts.rows).unwrap_or(i64::MAX));
        if run.state != headworks_flow::State::Running {
            self.ended.get_or_create(&state(run.state.as_str())).inc();
        }
        if let Some(took) = run.took {
            self.seconds.observe(took.as_secs_f64());
        }
    }

    async fn is_ready(&self) -> Result<(), String> {
        match timeout(READY_WITHIN, self.store.row("select 1", &[])).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("the metadata database does not answer ({})", error.code())),
            Err(_) => Err(format!("the metadata database did not answer within {} s", READY_WITHIN.as_secs())),
        }
    }

    /// Counts the slots of pools anew. Those of a database that does not answer stay as they were.
    async fn count_pools(&self) {
        let Ok(Ok(pools)) = timeout(READY_WITHIN, self.runs.pools()).await else { return };
        self.pools.clear();
        self.taken.clear();
        for PoolRow { name, slots, holders } in pools {
            self.pools.get_or_create(&ByPool { pool: name.clone() }).set(i64::try_from(slots).unwrap_or(i64::MAX));
            for holder in holders {
                let by = ByHolder { pool: name.clone(), process: holder.process };
                self.taken.get_or_create(&by).inc_by(i64::try_from(holder.slots.min(slots)).unwrap_or(i64::MAX));
            }
        }
    }

    async fn metrics(&self) -> String {
        self.count_pools().await;
        if let Some(engine) = self.engine.get() {
            self.queries.count(engine);
        }
        self.commits.set(i64::try_from(self.store.commits()).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Opens the port. Errors: it is taken, or the address is none.
pub(super) async fn bind(listen: &str, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        Failure::new(ErrorKind::Unavailable, "SERVE_LISTEN", format!("cannot listen on `{listen}`: {error}"))
            .hint(format!("name another address in {setting}; port 0 takes any free one"))
            .into()
    })
}

/// The routes of health checks and metrics, which need no sign-in.
pub(super) fn routes(health: Arc<Health>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    match health.is_ready().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics().await)
}
