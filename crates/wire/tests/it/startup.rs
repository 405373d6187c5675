//! What tools ask when they start, taken from servers' logs: none of it may fail.

use std::time::Duration;

use crate::{
    raw::{Raw, bind, describe, error_field, execute, parse, rows, shown, sync},
    support::Server,
};

/// Statements parted by lines of `---`.
fn statements(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n---\n").map(str::trim).filter(|statement| !statement.is_empty())
}

async fn replay(text: &str) {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut failed = Vec::new();
    for sql in statements(text) {
        let answer = raw.ask(sql).await;
        if let Some(message) = error_field(&answer, b'M') {
            failed.push(format!("{sql}\n=> {message}"));
        }
        // The same through the extended protocol, as most tools send it.
        if !sql.contains('$') && !sql.contains(';') {
            let all = [parse("", sql, &[]), bind("", "", &[], 0), describe('P', ""), execute("", 0), sync()];
            raw.send(&all.concat()).await;
            let again = raw.until_ready().await;
            assert_eq!(error_field(&again, b'M'), error_field(&answer, b'M'), "{sql}");
            assert_eq!(rows(&again).len(), rows(&answer).len(), "{sql}");
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n\n"));
}

#[tokio::test]
async fn superset() {
    replay(include_str!("startup/superset.sql")).await;
}

#[tokio::test]
async fn metabase() {
    replay(include_str!("startup/metabase.sql")).await;
}

#[tokio::test]
async fn dbeaver() {
    replay(include_str!("startup/dbeaver.sql")).await;
}

#[tokio::test]
async fn grafana() {
    replay(include_str!("startup/grafana.sql")).await;
}

#[tokio::test]
async fn pgjdbc() {
    replay(include_str!("startup/pgjdbc.sql")).await;
}

#[tokio::test]
async fn object_ids_stay_what_they_are() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let sql = "select c.oid, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
               where n.nspname = 'public' order by 2";
    let first = shown(&raw.ask(sql).await);
    assert_eq!(shown(&Raw::connect(server.address).await.ask(sql).await), first);
    let oid = shown(&raw.ask("select 'things'::regclass").await);
    assert!(first.contains(&format!("{oid}|things")), "{oid} {first}");
    let columns = format!(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = {oid} and attname = 'price'"
    );
    assert_eq!(shown(&raw.ask(&columns).await), "price|numeric(12,2)");
}

#[tokio::test]
async fn the_list_of_tables_is_asked_for_once() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    for _ in 0..5 {
        raw.ask("select count(*) from pg_attribute").await;
        raw.ask("select count(*) from information_schema.columns").await;
    }
    assert_eq!(server.tables.lists.load(std::sync::atomic::Ordering::Relaxed), 1);
}

/// The server has a thread of its own here, of which the kernel tells the time that it has run.
#[tokio::test]
async fn a_connect_costs_little() {
    const CONNECTS: u32 = 300;
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start().await;
            let path = std::fs::read_link("/proc/thread-self").unwrap();
            tell.send((server.address, std::path::Path::new("/proc").join(path).join("schedstat"))).unwrap();
            let _ = stopped.await;
        });
    });
    let (address, schedstat) = told.recv().unwrap();
    let cpu = || {
        let told = std::fs::read_to_string(&schedstat).unwrap();
        Duration::from_nanos(told.split(' ').next().unwrap().parse().unwrap())
    };
    for _ in 0..20 {
        Raw::connect(address).await;
    }
    let before = cpu();
    for _ in 0..CONNECTS {
        Raw::connect(address).await;
    }
    let each = (cpu() - before) / CONNECTS;
    println!("a connect costs {each:?} of the server's CPU");
    stop.send(()).unwrap();
    thread.join().unwrap();
    assert!(each < Duration::from_millis(2), "{each:?}");
}
