use std::sync::Arc;

use headworks_domain::{Access, Columns, Grant, TablePattern};
use headworks_engine::{Caller, SignInError, Signed};
use headworks_wire::postgres::{Options, Tls};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};

use crate::{
    raw::{Raw, bind, describe, error_field, execute, kinds, message, parse, query, rows, shown, startup, sync},
    support::{Server, signed},
};

#[tokio::test]
async fn wrong_passwords_and_unknown_users_are_answered_alike() {
    let server = Server::start().await;
    let attempt = async |user: &str, password: &str| {
        let mut raw = Raw::open(server.address).await;
        raw.send(&startup(&[("user", user), ("database", "headworks")])).await;
        let said = raw.sign_in(password, None).await;
        let message = error_field(&said, b'M').unwrap_or_default();
        (kinds(&said), error_field(&said, b'C'), message.replace(user, "<user>"))
    };
    let wrong = attempt("ann", "wrong").await;
    assert_eq!((wrong.0.as_str(), wrong.1.as_deref()), ("E", Some("28P01")));
    assert_eq!(attempt("nobody", "wrong").await, wrong);
    assert_eq!(attempt("ann", "").await, wrong);
    assert!(attempt("ann", "pencil").await.0.ends_with('Z'));
    assert_eq!(attempt("blocked", "pencil").await.1.as_deref(), Some("28000"));
    assert_eq!(*server.people.failed.lock().unwrap(), ["ann", "nobody", "ann"]);
}

#[tokio::test]
async fn what_is_no_sign_in_is_refused() {
    let server = Server::start().await;
    let check = async |parameters: &[(&str, &str)], state: &str| {
        let mut raw = Raw::open(server.address).await;
        raw.send(&startup(parameters)).await;
        let said = if state == "28000" { raw.until_ready().await } else { raw.sign_in("pencil", None).await };
        assert_eq!(error_field(&said, b'C').as_deref(), Some(state), "{parameters:?}");
    };
    check(&[("database", "headworks")], "28000").await;
    check(&[("user", "ann"), ("database", "other")], "3D000").await;
    check(&[("user", "ann"), ("replication", "true")], "0A000").await;
    check(&[("user", "ann"), ("options", "-c TimeZone=Asia/Tokyo")], "22023").await;
    check(&[("user", "ann"), ("options", "-c nonsense=1")], "42704").await;
    // Cleartext, a query, or nothing instead of SCRAM.
    for bytes in [message(b'p', b"pencil\0"), message(b'Q', b"select 1\0"), message(b'p', b"PLAIN\0\xff\xff\xff\xff")] {
        let mut raw = Raw::open(server.address).await;
        raw.send(&startup(&[("user", "ann")])).await;
        raw.next().await;
        raw.send(&bytes).await;
        assert_eq!(error_field(&raw.until_ready().await, b'C').as_deref(), Some("08P01"));
        assert_eq!(raw.next().await, None);
    }
}

#[tokio::test]
async fn newer_protocols_are_negotiated_down() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address).await;
    let mut bytes = startup(&[("user", "ann"), ("_pq_.new", "1")]);
    bytes[7] = 2;
    raw.send(&bytes).await;
    assert_eq!(raw.next().await.unwrap(), (b'v', b"\0\0\0\0\0\0\0\x01_pq_.new\0".to_vec()));
    assert!(kinds(&raw.sign_in("pencil", None).await).ends_with('Z'));
}

/// `ann` when nothing is granted.
fn without_grants() -> Caller {
    let nothing = Access::granted(&"ann".parse().unwrap(), Vec::new());
    Caller { access: Arc::new(nothing), ..Caller::trusted("ann") }
}

#[tokio::test]
async fn a_cursor_ends_with_the_rights_that_it_was_begun_with() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    raw.ask("begin; declare c cursor for select n from numbers").await;
    assert_eq!(rows(&raw.ask("fetch 2 from c").await).len(), 2);
    *server.people.now.lock().unwrap() = Some(signed(without_grants(), true));
    let said = raw.ask("fetch 2 from c").await;
    assert_eq!((rows(&said).len(), error_field(&said, b'C').as_deref()), (0, Some("34000")));
}

/// What an admin does counts for those who are signed in already.
#[tokio::test]
async fn an_open_connection_obeys_what_has_become_of_its_account() {
    let server = Server::start().await;
    let is_now = |now: Result<Signed, SignInError>| *server.people.now.lock().unwrap() = Some(now);
    let poor = without_grants();
    let extended = [parse("", "select 7 as n", &[]), bind("", "", &[], 0), execute("", 0), sync()].concat();

    let mut raw = Raw::connect(server.address).await;
    let named = [parse("s", "select n from numbers where n = 3", &[]), describe('S', "s"), sync()].concat();
    raw.send(&named).await;
    assert_eq!(error_field(&raw.until_ready().await, b'C'), None);
    let run = [bind("", "s", &[], 0), execute("", 0), sync()].concat();
    raw.send(&run).await;
    assert_eq!(shown(&raw.until_ready().await), "3");

    // Rights that are taken away, then given again.
    is_now(signed(poor.clone(), true));
    for bytes in [[describe('S', "s"), sync()].concat(), run.clone(), query("select n from numbers")] {
        raw.send(&bytes).await;
        assert_eq!(error_field(&raw.until_ready().await, b'C').as_deref(), Some("42P01"));
    }
    is_now(signed(Caller::trusted("ann"), true));
    raw.send(&run).await;
    assert_eq!(shown(&raw.until_ready().await), "3");

    // While nobody can tell, nothing is answered; the connection stays.
    is_now(Err(SignInError::Unavailable));
    assert_eq!(error_field(&raw.ask("select 1").await, b'C').as_deref(), Some("57P03"));
    raw.send(&extended).await;
    assert_eq!(error_field(&raw.until_ready().await, b'C').as_deref(), Some("57P03"));
    is_now(signed(Caller::trusted("ann"), true));
    assert_eq!(shown(&raw.ask("select 1").await), "1");

    // An account that is gone, or has another role, hears why and nothing more.
    for gone in [Err(SignInError::Wrong), signed(poor, false)] {
        for bytes in [query("select 1"), query("show timezone"), extended.clone()] {
            is_now(signed(Caller::trusted("ann"), true));
            let mut raw = Raw::connect(server.address).await;
            is_now(gone.clone());
            raw.send(&bytes).await;
            let said = raw.until_ready().await;
            let last = said.last().cloned().unwrap();
            assert_eq!(error_field(&[last], b'C').as_deref(), Some("28000"), "{said:?}");
            assert!(rows(&said).is_empty(), "{said:?}");
            assert_eq!(raw.next().await, None);
        }
    }
}

/// A driver reads rows by the columns that it was told, so it must not get others.
#[tokio::test]
async fn a_statement_ends_when_its_columns_are_not_those_it_was_described_with() {
    let server = Server::start().await;
    let granted = |except: &[&str]| {
        let columns = Columns::Except(except.iter().map(|&name| name.to_owned()).collect());
        let grant = Grant { columns, ..Grant::of(TablePattern::new("numbers")) };
        let access = Arc::new(Access::granted(&"ann".parse().unwrap(), vec![grant]));
        *server.people.now.lock().unwrap() = Some(signed(Caller { access, ..Caller::trusted("ann") }, true));
    };
    let sql = "select * from numbers where n = $1";
    let mut raw = Raw::connect(server.address).await;
    raw.send(&[parse("s", sql, &[20]), describe('S', "s"), sync()].concat()).await;
    assert_eq!(error_field(&raw.until_ready().await, b'C'), None);
    let run = [bind("", "s", &[Some("3")], 0), execute("", 0), sync()].concat();
    let mut answer = async |bytes: &[u8]| {
        raw.send(bytes).await;
        let said = raw.until_ready().await;
        (shown(&said), error_field(&said, b'C'), error_field(&said, b'M'))
    };
    assert_eq!(answer(&run).await, ("2018-02-20|3|number 3".to_owned(), None, None));

    granted(&["ds"]);
    let changed = Some("cached plan must not change result type".to_owned());
    assert_eq!(answer(&run).await, (String::new(), Some("0A000".to_owned()), changed));
    // Whoever asks again for the columns, of the portal or the statement, hears of them and has the rows.
    let described = [bind("", "s", &[Some("3")], 0), describe('P', ""), execute("", 0), sync()].concat();
    assert_eq!(answer(&described).await, ("3|number 3".to_owned(), None, None));
    assert_eq!(answer(&[describe('S', "s"), sync()].concat()).await.1, None);
    assert_eq!(answer(&run).await, ("3|number 3".to_owned(), None, None));
    // Who was told nothing expects nothing.
    granted(&["text"]);
    assert_eq!(answer(&[parse("t", sql, &[20]), sync()].concat()).await.1, None);
    granted(&["ds", "text"]);
    let run = [bind("", "t", &[Some("3")], 0), execute("", 0), sync()].concat();
    assert_eq!(answer(&run).await, ("3".to_owned(), None, None));
}

/// The name stays, and is not enough.
#[tokio::test]
async fn a_connection_is_asked_about_by_what_the_accounts_said_of_it() {
    let server = Server::start().await;
    let known = Signed { session: Some("ann, as she was".to_owned()), ..signed(Caller::trusted("ann"), true).unwrap() };
    *server.people.now.lock().unwrap() = Some(Ok(known));
    let mut raw = Raw::connect(server.address).await;
    assert_eq!(shown(&raw.ask("select 1").await), "1");
    assert_eq!(*server.people.asked.lock().unwrap(), ["ann", "ann, as she was"]);
}

/// pgjdbc sends the zone of its machine with every start.
#[tokio::test]
async fn a_clients_own_zone_is_answered_with_the_sessions() {
    let server = Server::start().await;
    let mut raw = Raw::open(server.address).await;
    raw.send(&startup(&[("user", "ann"), ("TimeZone", "Asia/Tokyo")])).await;
    let said = raw.sign_in("pencil", None).await;
    assert!(said.contains(&(b'S', b"TimeZone\0UTC\0".to_vec())), "{said:?}");
    assert_eq!(shown(&raw.ask("show timezone").await), "UTC");
    assert_eq!(error_field(&raw.ask("set timezone to 'Asia/Tokyo'").await, b'C').as_deref(), Some("22023"));
}

struct Certificate {
    tls: Tls,
    connector: TlsConnector,
    endpoint: Vec<u8>,
}

fn certificate(alpn: bool) -> Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let der = made.cert.der().clone();
    let tls = Tls::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der.clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    if alpn {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    let endpoint = ring::digest::digest(&ring::digest::SHA256, &der).as_ref().to_vec();
    Certificate { tls, connector: TlsConnector::from(Arc::new(config)), endpoint }
}

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];

#[tokio::test]
async fn connections_are_encrypted_and_bound_to_the_certificate() {
    use tokio::io::AsyncReadExt as _;
    for is_direct in [false, true] {
        let certificate = certificate(is_direct);
        let options = Options { tls: Some(certificate.tls), tls_required: true, ..Options::default() };
        let server = Server::start_with(options).await;
        let mut tcp = Raw::open(server.address).await;
        if !is_direct {
            tcp.send(&SSL_REQUEST).await;
            assert_eq!(tcp.stream.read_u8().await.unwrap(), b'S');
        }
        let name = ServerName::try_from("localhost").unwrap();
        let stream = certificate.connector.connect(name, tcp.stream).await.unwrap();
        let mut raw = Raw { stream };
        raw.send(&startup(&[("user", "ann")])).await;
        let said = raw.sign_in("pencil", Some(&certificate.endpoint)).await;
        assert!(kinds(&said).ends_with('Z'), "{said:?}");
        assert_eq!(shown(&raw.ask("select 1").await), "1");

        let mut plain = Raw::open(server.address).await;
        plain.send(&startup(&[("user", "ann")])).await;
        assert_eq!(error_field(&plain.until_ready().await, b'C').as_deref(), Some("28000"));

        // Bytes in plain text behind the request would be taken for encrypted ones.
        let mut smuggler = Raw::open(server.address).await;
        smuggler.send(&[&SSL_REQUEST[..], &startup(&[("user", "ann")])].concat()).await;
        assert_eq!(smuggler.stream.read_u8().await.unwrap(), b'S');
        assert_eq!(smuggler.next().await, None);
    }
}

#[tokio::test]
async fn without_a_certificate_connections_go_on_in_plain_text() {
    use tokio::io::AsyncReadExt as _;
    let server = Server::start().await;
    let mut raw = Raw::open(server.address).await;
    for request in [[0, 0, 0, 8, 4, 0xd2, 0x16, 0x30], SSL_REQUEST] {
        raw.send(&request).await;
        assert_eq!(raw.stream.read_u8().await.unwrap(), b'N');
    }
    raw.send(&startup(&[("user", "ann")])).await;
    assert!(kinds(&raw.sign_in("pencil", None).await).ends_with('Z'));
}
