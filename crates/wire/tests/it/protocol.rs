use std::time::{Duration, Instant};

use headworks_wire::postgres::Options;
use tokio::io::AsyncWriteExt as _;

use crate::{
    raw::{
        Raw, bind, columns, describe, error_field, execute, kinds, message, parse, query, rows, shown, startup, status,
        sync, tag,
    },
    support::{ENDLESS, Server},
};

#[tokio::test]
async fn a_session_begins_with_what_clients_want_to_know() {
    let server = Server::start().await;
    let parameters = [("user", "ann"), ("database", "headworks"), ("application_name", "psql")];
    let (mut raw, said) = Raw::connect_as(server.address, &parameters).await;
    assert!(kinds(&said).starts_with("RRSS"), "{}", kinds(&said));
    assert!(kinds(&said).ends_with("SKZ"), "{}", kinds(&said));
    let has = |name: &str, value: &str| said.contains(&(b'S', format!("{name}\0{value}\0").into_bytes()));
    assert!(has("server_version", "16.0") && has("TimeZone", "UTC") && has("client_encoding", "UTF8"));
    assert!(has("application_name", "psql") && has("session_authorization", "ann"));
    assert_eq!(server.handle.connections(), 1);
    let answer =
        raw.ask("select version(), current_user, current_database(), current_schema(), pg_backend_pid()").await;
    let text = shown(&answer);
    assert!(text.starts_with("PostgreSQL 16.0 (Headworks "), "{text}");
    assert!(text.contains("|ann|headworks|public|"), "{text}");
    let names: Vec<String> = columns(&answer).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["version", "current_user", "current_database", "current_schema", "pg_backend_pid"]);
    raw.send(&message(b'X', b"")).await;
    assert_eq!(raw.next().await, None);
}

#[tokio::test]
async fn simple_queries_answer_each_of_their_statements() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut check = async |sql: &str, expected: &str, text: &str, end: &str| {
        let answer = raw.ask(sql).await;
        assert_eq!(kinds(&answer), expected, "{sql}: {:?}", error_field(&answer, b'M'));
        assert_eq!(shown(&answer), text, "{sql}");
        assert_eq!(tag(&answer), end, "{sql}");
    };
    check("select 1 as a, null as b", "TDCZ", "1|-", "SELECT 1").await;
    check("select n from numbers where n < 0", "TCZ", "", "SELECT 0").await;
    check("", "IZ", "", "").await;
    check("-- nothing\n;", "IZ", "", "").await;
    check("begin; select 1; commit;", "CTDCCZ", "1", "COMMIT").await;
    check("select 1; select 2", "TDCTDCZ", "1 2", "SELECT 1").await;
    check("select 1; select nonsense; select 2", "TDCEZ", "1", "SELECT 1").await;
    check("show server_version", "TDCZ", "16.0", "SHOW").await;
    check("set application_name = 'x'", "SCZ", "", "SET").await;
    check("show application_name", "TDCZ", "x", "SHOW").await;
    check("reset application_name", "SCZ", "", "RESET").await;
    check("set time zone 'UTC'", "CZ", "", "SET").await;
    check("discard all", "CZ", "", "DISCARD ALL").await;
    check("listen x", "CZ", "", "LISTEN").await;
    check("select current_setting('search_path')", "TDCZ", "\"$user\", public", "SELECT 1").await;
    check("select count(*) from public.numbers", "TDCZ", "10000", "SELECT 1").await;
    check("select count(*) from headworks.main.numbers", "TDCZ", "10000", "SELECT 1").await;
    check("select 3 = any(array[1,2,3]), 3 = any('{1,2}'::int[])", "TDCZ", "t|f", "SELECT 1").await;
}

#[tokio::test]
async fn columns_are_named_as_postgresql_names_them() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut check = async |select: &str, expected: &[&str]| {
        let answer = raw.ask(select).await;
        let names: Vec<String> = columns(&answer).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, expected, "{select}: {:?}", error_field(&answer, b'M'));
    };
    check("select 1, 'x', 1 + 2", &["?column?", "?column?", "?column?"]).await;
    check("select count(*), max(n), n::text from numbers group by n limit 1", &["count", "max", "n"]).await;
    check("select '1'::int, case when true then 1 end, true", &["int4", "case", "?column?"]).await;
    check("select *, 1 from numbers limit 1", &["ds", "n", "text", "?column?"]).await;
    check("select 2, t.*, upper(text) from numbers t limit 1", &["?column?", "ds", "n", "text", "upper"]).await;
    check("select 1 union all select 2", &["?column?"]).await;
    check(
        "select (select max(n) from numbers), n, n::text, n, null, null from numbers limit 1",
        &["max", "n", "n", "n", "?column?", "?column?"],
    )
    .await;
}

/// A session of PostgreSQL has functions of its own, and those that all have are no others there.
#[tokio::test]
async fn functions_that_write_sql_are_those_of_every_session() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut check = async |sql: &str, expected: &str| assert_eq!(shown(&raw.ask(sql).await), expected, "{sql}");
    check("select format('%1$s|%-5s','a','b')", "a|b    ").await;
    check("select format('%I.%I = %L', 'public', 'Select', 'it''s')", "public.\"Select\" = 'it''s'").await;
    check("select format('%I', 'select'), quote_ident('select'), quote_ident('a b')", "\"select\"|\"select\"|\"a b\"")
        .await;
    check("select array_in('{a,NULL,\"b c\"}'), cardinality(array_in('{}'))", "{a,NULL,\"b c\"}|0").await;
}

#[tokio::test]
async fn functions_of_postgresql_make_no_large_values_either() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    for sql in [
        "select length(format('%1000000000s', 'x'))",
        "select cardinality(array_in('{' || repeat('a,', 7900000) || 'a}'))",
        "select cardinality(array_in('{' || repeat('a,', 30000000) || 'a}'))",
    ] {
        let said = raw.ask(sql).await;
        assert_eq!(error_field(&said, b'C').as_deref(), Some("54000"), "{sql}: {}", shown(&said));
    }
    assert_eq!(shown(&raw.ask("select cardinality(array_in('{' || repeat('a,', 1000) || 'a}'))").await), "1001");
}

#[tokio::test]
async fn transactions_have_the_states_of_postgresql() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut check = async |sql: &str, state: char, expected: &str| {
        let answer = raw.ask(sql).await;
        let told = error_field(&answer, b'C').unwrap_or_else(|| tag(&answer));
        assert_eq!((told.as_str(), status(&answer)), (expected, state), "{sql}");
    };
    check("select 1", 'I', "SELECT 1").await;
    check("savepoint a", 'I', "25P01").await;
    check("begin transaction isolation level serializable read only", 'T', "BEGIN").await;
    check("set statement_timeout = '7s'", 'T', "SET").await;
    check("savepoint a", 'T', "SAVEPOINT").await;
    check("select nonsense", 'E', "42703").await;
    check("select 1", 'E', "25P02").await;
    check("rollback to a", 'T', "ROLLBACK").await;
    check("select 1", 'T', "SELECT 1").await;
    check("release a", 'T', "RELEASE").await;
    check("release a", 'E', "3B001").await;
    check("commit", 'I', "ROLLBACK").await;
    check("begin", 'T', "BEGIN").await;
    check("insert into numbers values (1)", 'E', "25006").await;
    check("rollback", 'I', "ROLLBACK").await;
    check("drop table numbers", 'I', "25006").await;
    check("copy numbers from stdin", 'I', "25006").await;
    check("commit", 'I', "COMMIT").await;
    assert_eq!(shown(&raw.ask("show statement_timeout").await), "0", "it was rolled back");
}

#[tokio::test]
async fn errors_say_where_and_what_next() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut check = async |sql: &str, state: &str, position: Option<&str>| {
        let answer = raw.ask(sql).await;
        let message = error_field(&answer, b'M');
        assert_eq!(error_field(&answer, b'C').as_deref(), Some(state), "{sql}: {message:?}");
        assert_eq!(error_field(&answer, b'P').as_deref(), position, "{sql}: {message:?}");
    };
    check("select * from number", "42P01", Some("15")).await;
    check("begin; select 'ü' from number", "42P01", Some("24")).await;
    check("rollback; selec 1", "42601", Some("11")).await;
    check("select text + 1 from numbers", "42000", Some("8")).await;
    check("select 1/0", "22012", None).await;
    check("select nosuch(1)", "42883", Some("8")).await;
    check("set TimeZone = 'Europe/Berlin'", "22023", None).await;
    check("set nonsense = 1", "42704", None).await;
    check("show nonsense", "42704", None).await;
    check("set headworks.queue = 'nosuch'; select count(*) from numbers", "42704", None).await;
    let answer = raw.ask("reset headworks.queue; select * from number").await;
    assert!(error_field(&answer, b'H').unwrap().contains("did you mean `numbers`"));
}

#[tokio::test]
async fn portals_give_rows_in_parts() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let sql = "select n from numbers where n >= $1 order by n limit 5";
    let mut bytes = parse("s", sql, &[]);
    bytes.extend(describe('S', "s"));
    bytes.extend(bind("p", "s", &[Some("10")], 0));
    bytes.extend(describe('P', "p"));
    for _ in 0..4 {
        bytes.extend(execute("p", 2));
    }
    bytes.extend(sync());
    raw.send(&bytes).await;
    let answer = raw.until_ready().await;
    assert_eq!(kinds(&answer), "1tT2TDDsDDsDCCZ");
    assert_eq!(shown(&answer), "10 11 12 13 14");
    assert_eq!(answer[1].1, [0, 1, 0, 0, 0, 20], "$1 is a bigint");
    // The portal went with the transaction, the statement did not.
    raw.send(&[execute("p", 0), sync()].concat()).await;
    let answer = raw.until_ready().await;
    assert_eq!((kinds(&answer).as_str(), error_field(&answer, b'C').as_deref()), ("EZ", Some("34000")));
    raw.send(&[bind("", "s", &[Some("3")], 1), execute("", 1), sync()].concat()).await;
    let answer = raw.until_ready().await;
    assert_eq!(kinds(&answer), "2DsZ");
    assert_eq!(rows(&answer), [[Some(3_i64.to_be_bytes().to_vec())]]);
    server.is_quiet().await;
}

#[tokio::test]
async fn after_an_error_everything_is_skipped_up_to_sync() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let pipeline = |sql: &str| [parse("", sql, &[]), bind("", "", &[], 0), execute("", 0)].concat();
    let all =
        [pipeline("select 1"), pipeline("select nonsense"), pipeline("select 2"), sync(), pipeline("select 3"), sync()];
    raw.send(&all.concat()).await;
    let answer = raw.until_ready().await;
    assert_eq!((kinds(&answer).as_str(), shown(&answer).as_str()), ("12DC12EZ", "1"));
    assert_eq!(shown(&raw.until_ready().await), "3");
    let mut check = async |bytes: Vec<u8>, expected: &str| {
        raw.send(&[bytes, sync()].concat()).await;
        let answer = raw.until_ready().await;
        let told = error_field(&answer, b'C').unwrap_or_else(|| kinds(&answer));
        assert_eq!(told, expected);
    };
    check(parse("", "", &[]), "1Z").await;
    check([parse("", "", &[]), bind("", "", &[], 0), describe('P', ""), execute("", 0)].concat(), "12nIZ").await;
    check([parse("", "begin", &[]), describe('S', "")].concat(), "1tnZ").await;
    check(parse("", "select 1; select 2", &[]), "42601").await;
    check(bind("", "nosuch", &[], 0), "26000").await;
    check([parse("x", "select $1::int", &[]), bind("", "x", &[Some("abc")], 0)].concat(), "22P02").await;
    check(bind("", "x", &[], 0), "08P01").await;
    check(parse("x", "select 1", &[]), "42P05").await;
    check([message(b'C', b"Sx\0"), parse("x", "select 1", &[])].concat(), "31Z").await;
    check(message(b'B', b"\0\0"), "08P01").await;
    check([parse("", "select $1", &[]), describe('S', "")].concat(), "1tTZ").await;
    check([parse("", "select length($1)", &[]), describe('S', "")].concat(), "1tTZ").await;
    check(
        [parse("", "show search_path", &[]), bind("", "", &[], 0), describe('P', ""), execute("", 0)].concat(),
        "12TDCZ",
    )
    .await;
}

#[tokio::test]
async fn cursors_are_declared_fetched_and_closed() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut check = async |sql: &str, expected: &str, text: &str| {
        let answer = raw.ask(sql).await;
        let told = error_field(&answer, b'C').unwrap_or_else(|| tag(&answer));
        assert_eq!((told.as_str(), shown(&answer).as_str()), (expected, text), "{sql}");
    };
    check("declare c cursor for select 1", "25P01", "").await;
    check("begin", "BEGIN", "").await;
    check("declare \"c\" no scroll cursor for select n from numbers order by n", "DECLARE CURSOR", "").await;
    check("fetch 2 from c", "FETCH 2", "0 1").await;
    check("move forward 3 in c", "MOVE 3", "").await;
    check("fetch next from c", "FETCH 1", "5").await;
    check("move all from c", "MOVE 9994", "").await;
    check("fetch all c", "FETCH 0", "").await;
    check("close c", "CLOSE CURSOR", "").await;
    check("fetch c", "34000", "").await;
    check("rollback", "ROLLBACK", "").await;
    check("declare d cursor with hold for select n from numbers order by n", "DECLARE CURSOR", "").await;
    check("fetch 1 from d", "FETCH 1", "0").await;
    check("close all", "CLOSE CURSOR", "").await;
    server.is_quiet().await;
}

#[tokio::test]
async fn copies_have_one_message_a_row() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    let mut check = async |sql: &str, expected: &[&[u8]]| {
        let answer = raw.ask(sql).await;
        assert_eq!(error_field(&answer, b'M'), None, "{sql}");
        let data: Vec<&[u8]> = answer.iter().filter(|(kind, _)| *kind == b'd').map(|(_, body)| &body[..]).collect();
        assert_eq!(data, expected, "{sql}");
        assert!(kinds(&answer).starts_with('H') && kinds(&answer).ends_with("cCZ"), "{}", kinds(&answer));
    };
    check("copy (select n, text from numbers where n < 2 order by n) to stdout", &[b"0\tnumber 0\n", b"1\tnumber 1\n"])
        .await;
    check("copy (select word, null from things where id = 1) to stdout", &[b"gr\xc3\xbcn, \"x\"\\t\\\\\t\\N\n"]).await;
    let csv = "copy (select id, word from things order by id) to stdout with (format csv, header, null '-')";
    check(csv, &[b"id,word\n", b"1,\"gr\xc3\xbcn, \"\"x\"\"\t\\\"\n", b"2,-\n"]).await;
    let head = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
    let row = [&head[..], b"\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x05"].concat();
    check("copy (select n from numbers where n = 5) to stdout (format binary)", &[&row, b"\xff\xff"]).await;
    check("copy (select n from numbers where n < 0) to stdout binary", &[&[&head[..], b"\xff\xff"].concat()]).await;
    let answer = raw.ask("copy numbers(n) to stdout").await;
    assert_eq!(tag(&answer), "COPY 10000");
}

#[tokio::test]
async fn a_cancel_stops_the_statement_and_nothing_else() {
    let server = Server::start().await;
    let (mut raw, said) = Raw::connect_as(server.address, &[("user", "ann")]).await;
    let key = said.iter().find(|(kind, _)| *kind == b'K').unwrap().1.clone();
    let cancel = async |key: &[u8]| {
        let mut other = Raw::open(server.address).await;
        let length = u32::try_from(8 + key.len()).unwrap().to_be_bytes();
        other.send(&[&length[..], &[4, 0xd2, 0x16, 0x2e], key].concat()).await;
        assert_eq!(other.next().await, None);
    };
    // One that comes while nothing runs is for nothing.
    cancel(&key).await;
    assert_eq!(shown(&raw.ask("select 1").await), "1");
    raw.send(&query(ENDLESS)).await;
    server.is_busy().await;
    let mut wrong = key.clone();
    wrong[7] ^= 1;
    cancel(&wrong).await;
    cancel(&key[..4]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(server.engine.queries().len(), 1);
    let asked = Instant::now();
    cancel(&key).await;
    let answer = raw.until_ready().await;
    assert_eq!(error_field(&answer, b'C').as_deref(), Some("57014"));
    server.is_quiet().await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(shown(&raw.ask("select 1").await), "1");
}

#[tokio::test]
async fn a_statement_ends_with_its_time_or_its_client() {
    let server = Server::start().await;
    let mut raw = Raw::connect(server.address).await;
    raw.ask("set statement_timeout = '300ms'").await;
    let asked = Instant::now();
    let answer = raw.ask(ENDLESS).await;
    assert_eq!(error_field(&answer, b'C').as_deref(), Some("57014"));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    raw.ask("reset statement_timeout").await;
    raw.send(&query(ENDLESS)).await;
    server.is_busy().await;
    let gone = Instant::now();
    drop(raw);
    server.is_quiet().await;
    assert!(gone.elapsed() < Duration::from_secs(1), "{:?}", gone.elapsed());
}

#[tokio::test]
async fn who_does_not_read_holds_the_query_back() {
    let options = Options { write_timeout: Duration::from_secs(2), ..Options::default() };
    let server = Server::start_with(options).await;
    let mut raw = Raw::connect(server.address).await;
    raw.send(&query("select a, repeat('x', 1000) from generate_series(1, 100000000) t(a)")).await;
    server.is_busy().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let before = server.engine.queries()[0].rows;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let states = server.engine.queries();
    assert_eq!(states[0].rows, before, "it goes on though nobody reads");
    assert!(before < 200_000, "{before} rows were made for a client that reads none");
    // It is not waited for without end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.is_quiet().await;
    drop(raw);
}

#[tokio::test]
async fn clients_hear_that_the_server_stops() {
    let mut server = Server::start().await;
    let mut idle = Raw::connect(server.address).await;
    let mut busy = Raw::connect(server.address).await;
    let open = Raw::open(server.address).await;
    busy.send(&query(ENDLESS)).await;
    server.is_busy().await;
    let asked = Instant::now();
    server.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    for raw in [&mut idle, &mut busy] {
        let said = raw.until_ready().await;
        assert_eq!(error_field(&said, b'C').as_deref(), Some("57P01"));
    }
    drop(open);
    server.is_quiet().await;
}

#[tokio::test]
async fn connections_and_texts_and_portals_have_bounds() {
    let options = Options {
        connections_max: 3,
        connections_per_user_max: 2,
        portals_max: 2,
        statements_max: 2,
        idle_timeout: Some(Duration::from_millis(300)),
        sign_in_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let server = Server::start_with(options).await;
    let mut raw = Raw::connect(server.address).await;
    let two = Raw::connect(server.address).await;
    let (_, said) = Raw::connect_as(server.address, &[("user", "ann")]).await;
    assert_eq!(error_field(&said, b'C').as_deref(), Some("53300"));
    drop(two);
    let text = format!("select '{}'", "x".repeat(300_000));
    let answer = raw.ask(&text).await;
    assert_eq!(error_field(&answer, b'C').as_deref(), Some("54001"));
    let statements = [parse("a", "select 1", &[]), parse("b", "select 1", &[]), parse("c", "select 1", &[]), sync()];
    raw.send(&statements.concat()).await;
    assert_eq!(error_field(&raw.until_ready().await, b'C').as_deref(), Some("54000"));
    let portals = [bind("a", "a", &[], 0), bind("b", "a", &[], 0), bind("c", "a", &[], 0), sync()];
    raw.send(&portals.concat()).await;
    assert_eq!(error_field(&raw.until_ready().await, b'C').as_deref(), Some("54000"));
    let said = raw.until_ready().await;
    assert_eq!(error_field(&said, b'C').as_deref(), Some("57P05"));
    let mut silent = Raw::open(server.address).await;
    silent.send(&startup(&[("user", "ann")])).await;
    silent.next().await;
    assert_eq!(silent.next().await, None);
    silent.stream.shutdown().await.ok();
}

#[tokio::test]
async fn announced_lengths_are_refused_at_once() {
    let server = Server::start().await;
    for (kind, length, state) in [
        (b'Q', 0x3fff_ffff_u32, "54000"),
        (b'B', 0x7fff_ffff, "54000"),
        (b'Q', 0xffff_ffff, "08P01"),
        (b'!', 4, "08P01"),
    ] {
        let mut raw = Raw::connect(server.address).await;
        raw.send(&[&[kind][..], &length.to_be_bytes()].concat()).await;
        assert_eq!(error_field(&raw.until_ready().await, b'C').as_deref(), Some(state));
        assert_eq!(raw.next().await, None);
    }
}

#[tokio::test]
async fn questions_about_the_catalog_do_not_wait_behind_queries() {
    let server = Server::start().await;
    let narrow = [("user", "ann"), ("application_name", "narrow-tool")];
    let (mut busy, _) = Raw::connect_as(server.address, &narrow).await;
    busy.send(&query(ENDLESS)).await;
    server.is_busy().await;
    let (mut raw, _) = Raw::connect_as(server.address, &narrow).await;
    let asked = Instant::now();
    for sql in ["select 1", "select version()", "select relname from pg_class where relkind = 'r'"] {
        assert_eq!(error_field(&raw.ask(sql).await, b'M'), None, "{sql}");
    }
    assert!(asked.elapsed() < Duration::from_secs(2));
    raw.send(&query("select count(*) from numbers")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.engine.queries().len(), 2, "a query of the same queue waits");
    drop(busy);
    assert_eq!(shown(&raw.until_ready().await), "10000");
    raw.ask("set headworks.queue = 'default'").await;
    assert_eq!(shown(&raw.ask("select count(*) from numbers").await), "10000");
}
