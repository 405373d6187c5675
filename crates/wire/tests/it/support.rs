use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array,
        Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray, Time64MicrosecondArray,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Int64Type},
};
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use datafusion::catalog::{MemTable, TableProvider};
use headworks_domain::{Fault, PartitionKey};
use headworks_engine::{
    At, Caller, Catalog, Credentials, Engine, EngineOptions, Found, Listed, Moment, Newest, QueueOptions, Result,
    SignIn, SignInError, Signed,
};
use headworks_wire::postgres::{Accounts, Handle, Options, ScramVerifier, Service};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

/// Tables in memory, one view, and how often the list was asked for.
pub(crate) struct Tables {
    tables: Vec<(&'static str, Arc<dyn TableProvider>)>,
    pub(crate) lists: AtomicU32,
}

const VIEW: &str = "select id, word from things where flag";

#[async_trait]
impl Catalog for Tables {
    async fn fix(&self, at: At, latest_of: &[&str]) -> Result<(Moment, Newest)> {
        let newest = latest_of.iter().map(|name| ((*name).to_owned(), None)).collect();
        Ok((Moment { at: At::Version(7), below: At::Version(7), is_named: at != At::Now }, newest))
    }

    async fn find(&self, name: &str, _at: Moment) -> Result<Option<Found>> {
        if name == "flagged" {
            return Ok(Some(Found::View { sql: VIEW.to_owned(), columns: Vec::new() }));
        }
        Ok(self.tables.iter().find(|(n, _)| *n == name).map(|(_, table)| Found::Table(Arc::clone(table))))
    }

    async fn latest(&self, _name: &str, _at: Moment) -> Result<Option<PartitionKey>> {
        Ok(None)
    }

    async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.tables.iter().any(|(n, _)| *n == name))
    }

    async fn list(&self, _at: Moment) -> Result<Vec<Listed>> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        let table = |(name, table): &(&str, Arc<dyn TableProvider>)| Listed {
            name: (*name).to_owned(),
            schema: Some(table.schema()),
            has_latest: table.schema().field_with_name("ds").is_ok(),
            definition: None,
        };
        let mut listed: Vec<Listed> = self.tables.iter().map(table).collect();
        let definition = Some(VIEW.to_owned());
        listed.push(Listed { name: "flagged".to_owned(), schema: None, has_latest: false, definition });
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    async fn stamp(&self, _names: &[String], _since: Option<Moment>) -> Result<Option<String>> {
        Ok(Some("1".to_owned()))
    }
}

fn table(columns: Vec<(&str, ArrayRef)>) -> Arc<dyn TableProvider> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
    let batch = batch.unwrap();
    Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap())
}

/// `things`: each type twice, a value and null. `numbers`: 0 to 9,999 with `ds`. `flagged`: a view.
fn tables() -> Tables {
    let inner = Field::new("a", DataType::Int64, true);
    let things = table(vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2]))),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("small", Arc::new(Int16Array::from(vec![Some(-7), None]))),
        ("whole", Arc::new(Int32Array::from(vec![Some(70_000), None]))),
        ("ratio", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
        ("real", Arc::new(Float32Array::from(vec![Some(1.5), None]))),
        (
            "price",
            Arc::new(Decimal128Array::from(vec![Some(-1_234_567), None]).with_precision_and_scale(12, 2).unwrap()),
        ),
        ("word", Arc::new(StringArray::from(vec![Some("grün, \"x\"\t\\"), None]))),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
        ("day", Arc::new(Date32Array::from(vec![Some(17_582), None]))),
        ("at_time", Arc::new(Time64MicrosecondArray::from(vec![Some(45_296_000_001), None]))),
        ("moment", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_519_129_296_500_000), None]))),
        (
            "moment_utc",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_519_129_296_500_000), None]).with_timezone("UTC")),
        ),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None, Some(3)]), None])),
        ),
        (
            "nested",
            Arc::new(StructArray::new(
                vec![inner].into(),
                vec![Arc::new(Int64Array::from(vec![Some(5), None]))],
                Some(vec![true, false].into()),
            )),
        ),
    ]);
    let numbers = table(vec![
        ("ds", Arc::new(Date32Array::from(vec![17_582; 10_000]))),
        ("n", Arc::new(Int64Array::from_iter_values(0..10_000))),
        ("text", Arc::new(StringArray::from_iter_values((0..10_000).map(|n| format!("number {n}"))))),
    ]);
    Tables { tables: vec![("things", things), ("numbers", numbers)], lists: AtomicU32::new(0) }
}

/// `ann` with the password `pencil`; counts who failed.
#[derive(Default)]
pub(crate) struct People {
    pub(crate) failed: Mutex<Vec<String>>,
    /// Who `ann` is by now; herself with all rights unless a test says otherwise.
    pub(crate) now: Mutex<Option<Result<Signed, SignInError>>>,
    /// Of whom [`SignIn::again`] was asked.
    pub(crate) asked: Mutex<Vec<String>>,
    verifier: Option<ScramVerifier>,
}

pub(crate) fn signed(caller: Caller, may_query: bool) -> Result<Signed, SignInError> {
    Ok(Signed { session: Some(caller.user.clone()), caller, may_query, may_manage: false })
}

#[async_trait]
impl SignIn for People {
    async fn sign_in(&self, _credentials: Credentials, _from: IpAddr) -> Result<Signed, SignInError> {
        Err(SignInError::Wrong)
    }

    async fn again(&self, session: &str) -> Result<Signed, SignInError> {
        self.asked.lock().unwrap().push(session.to_owned());
        let now = self.now.lock().unwrap().clone();
        now.unwrap_or_else(|| signed(Caller::trusted(session), session != "blocked"))
    }
}

pub(crate) fn verifier(password: &str) -> ScramVerifier {
    let (salt, rounds) = ([7; 16], std::num::NonZeroU32::new(4_096).unwrap());
    let mut salted = [0; 32];
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &salted);
    let client = ring::hmac::sign(&key, b"Client Key");
    let stored = STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, client.as_ref()));
    let server = STANDARD.encode(ring::hmac::sign(&key, b"Server Key"));
    format!("SCRAM-SHA-256$4096:{}${stored}:{server}", STANDARD.encode(salt)).parse().unwrap()
}

#[async_trait]
impl Accounts for People {
    async fn verifier(&self, user: &str, _from: IpAddr) -> Result<ScramVerifier, Box<dyn Fault>> {
        match (&self.verifier, user) {
            (Some(verifier), "ann" | "headworks" | "blocked") => Ok(verifier.clone()),
            _ => Ok(ScramVerifier::mock(b"secret", user)),
        }
    }

    async fn succeeded(&self, _user: &str, _from: IpAddr) {}

    async fn failed(&self, user: &str, _from: IpAddr) {
        self.failed.lock().unwrap().push(user.to_owned());
    }
}

/// A server on a free port, stopped when dropped.
pub(crate) struct Server {
    pub(crate) engine: Engine,
    pub(crate) tables: Arc<Tables>,
    pub(crate) people: Arc<People>,
    pub(crate) handle: Handle,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    run: Option<JoinHandle<std::io::Result<()>>>,
    _spill: TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub(crate) async fn start_with(options: Options) -> Self {
        let spill = tempfile::tempdir().unwrap();
        let engine_options = EngineOptions {
            queues: vec![
                QueueOptions { slots: 8, ..QueueOptions::new("default") },
                QueueOptions { slots: 1, applications: vec!["narrow*".to_owned()], ..QueueOptions::new("narrow") },
            ],
            ..EngineOptions::new(spill.path(), 2)
        };
        let tables = Arc::new(tables());
        let engine = Engine::new(Arc::<Tables>::clone(&tables), engine_options).unwrap();
        let people = Arc::new(People { verifier: Some(verifier("pencil")), ..People::default() });
        let service = Service::new(engine.clone(), Arc::<People>::clone(&people), options);
        let handle = service.handle();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = tokio::spawn(service.run(listener, async {
            let _ = stopped.await;
        }));
        Self { engine, tables, people, handle, address, stop: Some(stop), run: Some(run), _spill: spill }
    }

    pub(crate) fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// Stops it in good order.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        self.run.take().unwrap().await.unwrap().unwrap();
    }

    /// Waits until no query runs.
    pub(crate) async fn is_quiet(&self) {
        for _ in 0..500 {
            if self.engine.queries().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("queries still run: {:?}", self.engine.queries());
    }

    /// Waits until a query runs.
    pub(crate) async fn is_busy(&self) {
        for _ in 0..500 {
            if !self.engine.queries().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no query runs");
    }
}

/// A query that goes on until it is stopped.
pub(crate) const ENDLESS: &str = "select count(*) from generate_series(1, 1000000000000) a";
