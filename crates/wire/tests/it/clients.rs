//! Real clients, each with a script of its own that compares values and types.

use std::{path::PathBuf, process::Command};

use headworks_testkit::{jdbc_driver, python_path};

use crate::support::Server;

/// Runs a script in the tests' Python; its arguments are the port and what else it needs.
async fn python(script: &'static str, more: &[PathBuf]) {
    let server = Server::start().await;
    let (port, more) = (server.port(), more.to_vec());
    let done = tokio::task::spawn_blocking(move || {
        Command::new(python_path().unwrap()).args(["-c", script, &port]).args(more).output().unwrap()
    });
    let done = done.await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    server.is_quiet().await;
}

#[tokio::test]
async fn psycopg_3() {
    python(include_str!("clients/psycopg3.py"), &[]).await;
}

#[tokio::test]
async fn psycopg_2() {
    python(include_str!("clients/psycopg2.py"), &[]).await;
}

#[tokio::test]
async fn asyncpg() {
    python(include_str!("clients/asyncpg.py"), &[]).await;
}

#[tokio::test]
async fn pg8000() {
    python(include_str!("clients/pg8000.py"), &[]).await;
}

#[tokio::test]
async fn sqlalchemy_and_pandas() {
    python(include_str!("clients/sqlalchemy.py"), &[]).await;
}

#[tokio::test]
async fn adbc() {
    python(include_str!("clients/adbc.py"), &[]).await;
}

#[tokio::test]
async fn pgjdbc() {
    python(include_str!("clients/pgjdbc.py"), &[jdbc_driver().unwrap().to_owned()]).await;
}

#[tokio::test]
async fn psql() {
    let server = Server::start().await;
    let url = format!("postgres://ann:pencil@127.0.0.1:{}/headworks", server.port());
    let run = async |args: &[&str]| {
        let mut command = Command::new("psql");
        command.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &url]).args(args);
        let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let (said, told) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{args:?}: {told}");
        format!("{said}{told}")
    };
    let check = async |command: &str, expected: &[&str]| {
        let said = run(&["-c", command]).await;
        for part in expected {
            assert!(said.contains(part), "{command} does not say `{part}`:\n{said}");
        }
    };
    check("\\d", &["public | flagged", "| view", "public | numbers", "| table", "public | things", "numbers_latest"])
        .await;
    check("\\dt", &["public | numbers | table | headworks", "(2 rows)"]).await;
    check("\\dt *.*", &["numbers"]).await;
    check("\\dv", &["flagged", "(2 rows)"]).await;
    check(
        "\\d things",
        &[
            "Table \"public.things\"",
            "price      | numeric(12,2)",
            "moment_utc | timestamp with time zone",
            "list       | bigint[]",
        ],
    )
    .await;
    check("\\d+ things", &["Table \"public.things\"", "numeric(12,2)"]).await;
    check("\\d flagged", &["View \"public.flagged\"", "word   | text"]).await;
    check("\\dn", &["public", "headworks"]).await;
    check("\\l", &["headworks", "UTF8"]).await;
    check("\\du", &["ann", "headworks"]).await;
    check("\\df", &["List of functions"]).await;
    check("\\dT", &["List of data types"]).await;
    check("\\di", &[]).await;
    check("\\conninfo", &["connected to database \"headworks\" as user \"ann\""]).await;
    check("\\copy (select n from numbers where n < 2 order by n) to stdout csv header", &["n\n0\n1\n"]).await;
    check("explain select 1", &["QUERY PLAN"]).await;
    let said = run(&["-A", "-t", "-v", "FETCH_COUNT=100", "-c", "select n from numbers order by n"]).await;
    assert_eq!(said.lines().count(), 10_000);
}
