//! The API over a real port, with an engine that has no tables.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use headworks_api::{Api, Tls, openapi, serve};
use headworks_engine::{
    Caller, Credentials, Engine, EngineOptions, KeptOptions, KeptQueries, NoTables, QueueOptions, SignIn, SignInError,
    Signed,
};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch};

/// `a` and `b` may ask, `viewer` may not, `root` manages; the token is the name.
struct Names;

#[async_trait]
impl SignIn for Names {
    async fn sign_in(&self, credentials: Credentials, from: IpAddr) -> Result<Signed, SignInError> {
        assert!(from.is_loopback());
        let name = match credentials {
            Credentials::Token(token) => token.expose().to_owned(),
            Credentials::Password { user, password } if password.expose() == "right" => user,
            Credentials::Password { .. } => return Err(SignInError::Wrong),
        };
        match name.as_str() {
            "a" | "b" | "viewer" | "root" => Ok(Signed {
                may_query: name != "viewer",
                may_manage: name == "root",
                session: None,
                caller: Caller { role: Some("analyst".to_owned()), ..Caller::trusted(name) },
            }),
            "slow" => Err(SignInError::Slowed(7)),
            "away" => Err(SignInError::Unavailable),
            _ => Err(SignInError::Wrong),
        }
    }

    async fn again(&self, _user: &str) -> Result<Signed, SignInError> {
        Err(SignInError::Wrong)
    }
}

struct Server {
    address: String,
    client: Client,
    _stop: watch::Sender<bool>,
    _dir: TempDir,
}

async fn server() -> Server {
    server_with(None, Client::new()).await
}

async fn server_with(tls: Option<Tls>, client: Client) -> Server {
    let dir = TempDir::new().unwrap();
    let mut options = EngineOptions::new(dir.path().join("spill"), 2);
    options.queues = vec![QueueOptions { slots: 2, rows_max: Some(300_000), ..QueueOptions::new("default") }];
    let engine = Engine::new(Arc::new(NoTables), options).unwrap();
    let queries = KeptQueries::new(engine.clone(), KeptOptions::new(dir.path().join("kept"))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://localhost:{}/api/v1", listener.local_addr().unwrap().port());
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(serve(listener, tls, Api::new(engine, queries, Arc::new(Names)).router(), stopped));
    Server { address, client, _stop: stop, _dir: dir }
}

impl Server {
    async fn ask(&self, who: &str, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self.client.request(method, format!("{}{path}", self.address)).bearer_auth(who);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            None => request,
        };
        request.send().await.unwrap()
    }

    async fn get(&self, who: &str, path: &str) -> (StatusCode, Value) {
        json_of(self.ask(who, Method::GET, path, None).await).await
    }

    async fn submit(&self, who: &str, body: Value) -> (StatusCode, Value) {
        json_of(self.ask(who, Method::POST, "/queries", Some(body)).await).await
    }

    async fn text(&self, path: &str) -> Vec<u8> {
        let response = self.ask("a", Method::GET, path, None).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.bytes().await.unwrap().to_vec()
    }
}

async fn json_of(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
}

/// Keeps a thread busy until it is stopped.
const ENDLESS: &str =
    "select count(*) from generate_series(1, 10000000) a, generate_series(1, 10000000) b where a.value <> b.value";

#[tokio::test]
async fn a_quick_query_is_answered_at_once() {
    let server = server().await;
    let body = json!({"sql": "select $1 + 1 as n, $2 as t, null as x, 1.5::decimal(5,2) as d, 'a\"b' as q",
                      "parameters": [41, "ü"], "wait_ms": 20000});
    let (status, answer) = server.submit("a", body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!((&answer["state"], &answer["rows"], &answer["user"]), (&json!("done"), &json!(1), &json!("a")));
    assert_eq!(answer["data"], json!([[42, "ü", null, 1.50, "a\"b"]]));
    assert_eq!(answer["columns"][0], json!({"name": "n", "type": "bigint"}));
    assert_eq!(answer.get("next"), None);
    let id = answer["id"].as_str().unwrap();
    let (status, shown) = server.get("a", &format!("/queries/{id}")).await;
    assert_eq!((status, &shown["columns"]), (StatusCode::OK, &answer["columns"]));
    let (_, listed) = server.get("a", "/queries").await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn results_are_read_page_by_page_and_in_every_format() {
    let server = server().await;
    let body = json!({"sql": "select value as n, 'x' || value as t from generate_series(1, 250000)", "wait_ms": 60000});
    let (_, answer) = server.submit("a", body).await;
    let id = answer["id"].as_str().unwrap();
    assert_eq!((answer["data"].as_array().unwrap().len(), &answer["rows"]), (1_000, &json!(250_000)));
    let next = answer["next"].as_str().unwrap().strip_prefix("/api/v1").unwrap();
    let (_, page) = server.get("a", next).await;
    assert_eq!(page["data"][0], json!([1_001, "x1001"]));
    let (_, last) = server.get("a", &format!("/queries/{id}/results?offset=249999&limit=10")).await;
    assert_eq!((&last["data"], &last["next"]), (&json!([[250_000, "x250000"]]), &Value::Null));
    let (_, none) = server.get("a", &format!("/queries/{id}/results?offset=250000")).await;
    assert_eq!(none["data"], json!([]));

    let csv = String::from_utf8(server.text(&format!("/queries/{id}/results?format=csv")).await).unwrap();
    assert_eq!((csv.lines().count(), csv.lines().nth(250_000)), (250_001, Some("250000,x250000")));
    let path = format!("/queries/{id}/results?format=jsonl&offset=5&limit=2");
    assert_eq!(server.text(&path).await, b"{\"n\":6,\"t\":\"x6\"}\n{\"n\":7,\"t\":\"x7\"}\n");
    let parquet = server.text(&format!("/queries/{id}/results?format=parquet")).await;
    assert_eq!((&parquet[..4], &parquet[parquet.len() - 4..]), (&b"PAR1"[..], &b"PAR1"[..]));
    let arrow = server.text(&format!("/queries/{id}/results?format=arrow")).await;
    let reader = arrow_rows(&arrow);
    assert_eq!(reader, 250_000);
    let (status, problem) = server.get("a", &format!("/queries/{id}/results?format=xlsx")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &json!("API_QUERY_STRING")));
}

fn arrow_rows(bytes: &[u8]) -> usize {
    let reader = arrow::ipc::reader::StreamReader::try_new(bytes, None).unwrap();
    reader.map(|batch| batch.unwrap().num_rows()).sum()
}

#[tokio::test]
async fn a_long_query_is_followed_and_stopped() {
    let server = server().await;
    let (status, answer) = server.submit("a", json!({"sql": ENDLESS, "wait_ms": 0})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let id = answer["id"].as_str().unwrap().to_owned();
    let path = format!("/queries/{id}");
    let (status, problem) = server.get("a", &format!("{path}/results")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("QUERY_NOT_DONE")));
    // Nobody else sees it but those who manage.
    assert_eq!(server.get("b", &path).await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.get("b", "/queries?all=true").await.0, StatusCode::FORBIDDEN);
    let (_, all) = server.get("root", "/queries?all=true").await;
    assert_eq!(all[0]["id"], json!(id));
    let (_, queues) = server.get("b", "/queues").await;
    assert_eq!((&queues[0]["name"], &queues[0]["running"]), (&json!("default"), &json!(1)));

    let mut events = server.ask("a", Method::GET, &format!("{path}/events"), None).await;
    let first = String::from_utf8(events.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(first.starts_with("event: progress\ndata: {"), "{first}");
    let stopped = server.ask("a", Method::DELETE, &path, None).await;
    assert_eq!(stopped.status(), StatusCode::NO_CONTENT);
    let mut rest = String::new();
    while let Some(chunk) = tokio::time::timeout(Duration::from_secs(10), events.chunk()).await.unwrap().unwrap() {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(rest.contains("event: end\n") && rest.contains("\"state\":\"cancelled\""), "{rest}");
    assert_eq!(server.get("a", &path).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_request_may_be_sent_twice() {
    let server = server().await;
    let body = json!({"sql": "select random() as r", "request_id": "one", "wait_ms": 20000});
    let (_, first) = server.submit("a", body.clone()).await;
    let (_, again) = server.submit("a", body.clone()).await;
    assert_eq!((&first["id"], &first["data"]), (&again["id"], &again["data"]));
    assert_ne!(server.submit("b", body).await.1["id"], first["id"]);
    let (status, problem) = server.submit("a", json!({"sql": "select 2", "request_id": "one"})).await;
    assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &json!("SQL_REQUEST_REUSED")));
}

#[tokio::test]
async fn mistakes_have_a_code_a_place_and_a_hint() {
    let server = server().await;
    let check = async |body: Value, status: u16, code: &str| {
        let (found, problem) = server.submit("a", body.clone()).await;
        let problem = if problem["error"].is_object() { problem["error"].clone() } else { problem };
        assert_eq!((found.as_u16(), &problem["code"]), (status, &json!(code)), "{body}: {problem}");
        problem
    };
    let syntax = check(json!({"sql": "select\n 1 +", "wait_ms": 20000}), 400, "SQL_SYNTAX").await;
    assert_eq!((&syntax["line"], &syntax["column"]), (&json!(2), &json!(5)));
    let unknown = check(json!({"sql": "select * from nothing", "wait_ms": 20000}), 400, "SQL_UNKNOWN_TABLE").await;
    assert!(unknown["hint"].as_str().unwrap().contains("tables list"));
    check(json!({"sql": "drop table t", "wait_ms": 20000}), 403, "SQL_REFUSED").await;
    check(json!({"sql": "select * from generate_series(1, 300001)", "wait_ms": 20000}), 422, "SQL_TOO_MANY_ROWS").await;
    check(json!({"sql": "select 1", "queue": "none"}), 404, "SQL_UNKNOWN_QUEUE").await;
    check(json!({"sql": "select $1", "parameters": [[1]]}), 400, "API_PARAMETER").await;
    check(json!({"sql": "select 1", "wait": 1}), 422, "API_BODY").await;
    check(json!({"sql": "x".repeat(5 << 20)}), 413, "API_BODY").await;
    let (status, problem) = server.submit("viewer", json!({"sql": "select 1"})).await;
    assert_eq!((status, &problem["code"]), (StatusCode::FORBIDDEN, &json!("API_DENIED")));
    assert_eq!(server.get("a", "/queries/not-an-id").await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.get("a", "/nothing").await.1["code"], json!("API_NO_ROUTE"));
}

#[tokio::test]
async fn nobody_asks_without_signing_in() {
    let server = server().await;
    for path in ["/me", "/queues", "/queries", "/queries/x", "/queries/x/results", "/queries/x/events"] {
        let (status, problem) = server.get("stranger", path).await;
        assert_eq!((status, &problem["code"]), (StatusCode::UNAUTHORIZED, &json!("AUTH_REQUIRED")), "{path}");
    }
    assert_eq!(server.submit("stranger", json!({"sql": "select 1"})).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(server.get("away", "/me").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.get("slow", "/me").await.0, StatusCode::TOO_MANY_REQUESTS);
    let anonymous = server.client.get(format!("{}/me", server.address)).send().await.unwrap();
    assert!(anonymous.headers().contains_key("www-authenticate"));
    let me = server.client.get(format!("{}/me", server.address)).basic_auth("a", Some("right")).send().await.unwrap();
    let (status, me) = json_of(me).await;
    assert_eq!(
        (status, me),
        (StatusCode::OK, json!({"user": "a", "role": "analyst", "may_query": true, "may_manage": false}))
    );
}

#[test]
fn the_description_is_written_down() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/openapi.json");
    let text = format!("{}\n", serde_json::to_string_pretty(&openapi()).unwrap());
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/reference/openapi.json is behind: UPDATE_OPENAPI=1 cargo nextest run -p headworks-api"
    );
}

#[tokio::test]
async fn https_with_a_certificate_of_ones_own() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let tls = Tls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    let trusting = reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap();
    let client = Client::builder().add_root_certificate(trusting).build().unwrap();
    let server = server_with(Some(tls), client).await;
    let (status, body) = server.submit("a", json!({"sql": "select 1 as one", "wait_ms": 10_000})).await;
    assert_eq!((status, &body["data"]), (StatusCode::OK, &json!([[1]])), "{body}");
    // Who does not know the certificate goes away, and so does who speaks in the clear.
    assert!(Client::new().get(&server.address).send().await.is_err());
    assert!(Client::new().get(server.address.replace("https", "http")).send().await.is_err());
    assert_eq!(server.get("a", "/me").await.0, StatusCode::OK);
}

#[test]
fn a_certificate_that_does_not_fit_is_told() {
    let [one, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap());
    let said = |certificate: &str, key: &str| Tls::from_pem(certificate.as_bytes(), key.as_bytes()).err().unwrap().0;
    let (pem, key) = (one.cert.pem(), other.signing_key.serialize_pem());
    assert!(said(&pem, &key).starts_with("the certificate: "), "{}", said(&pem, &key));
    assert!(said(&pem, "no key").starts_with("the private key: "));
    assert!(!said("", &key).is_empty());
}
