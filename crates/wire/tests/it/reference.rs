//! The same statements to PostgreSQL itself: names, types and forms of the answers are to be its own.

use headworks_testkit::TempPostgres;

use crate::{
    raw::{Raw, bind, columns, describe, error_field, execute, parse, rows, startup, sync},
    support::Server,
};

const STATEMENTS: &[&str] = &[
    "select true, false, null::boolean",
    "select 7::smallint, (-7)::int, 70000::bigint, (-9223372036854775807)::bigint, null::int",
    "select 1.5::real, 0.1::real, 1000000::real, 123456789::real, 'NaN'::real",
    "select 0.1::float8, 1e15::float8, 100000000000000::float8, 1e-5::float8, 1.25e300::float8, 0::float8",
    "select 'Infinity'::float8, '-Infinity'::float8, 'NaN'::float8, (-0.5)::float8, 12345.678::float8",
    "select 123.45::numeric(10,2), (-0.001)::numeric(10,3), 0::numeric(5,2), 10000::numeric(20,0), 0.00012::numeric(8,5)",
    "select '12345678901234567890.123456789'::numeric(38,9), 99990000::numeric(12,4)",
    "select 'word'::text, ''::text, 'ü \"quoted\" \\'::text, null::text",
    "select date '2018-02-20', date '1969-12-31', date '0001-01-01', date '9999-12-31'",
    "select time '12:34:56.789', time '00:00:00', time '23:59:59.999999'",
    "select timestamp '2018-02-20 12:34:56.5', timestamp '1970-01-01 00:00:00', timestamp '1901-02-03 04:05:06.000007'",
    "select timestamp '2018-02-20 12:34:56.5' at time zone 'UTC'",
    "select interval '1 year 2 months 3 days 4 hours 5 minutes 6.5 seconds', interval '-1 month', interval '0 days'",
    "select interval '-2 days 3 hours', interval '-90 minutes', interval '1 day'",
    "select array[1, 2, null]::bigint[], array[]::bigint[], array[1.5, -2]::float8[], array[true, false]::boolean[]",
    "select array['a', 'b c', '', 'NULL', null, '\"', '{x}', 'c,d', '\\']::text[]",
    "select 1::int as \"A b\", 2::int as x, 'x'::text as \"?\"",
    "select count(*), max(x), min(x), lower(y) from (values (1::int, 'A'::text), (2::int, 'A'::text)) t(x, y) group by y",
    "select 'a'::text || 'b'::text, not true, 1::int + 2::int, 1::int = 2::int, case when true then 1::int end",
    "select coalesce(null::int, 1::int), nullif(1::int, 2::int), 'x'::text is null, x, x::text from (values (1::int)) t(x)",
    "select t.x, t.x::bigint, t.x::text, x::smallint from (values (1::int)) t(x)",
    "select (select 5::int), true and false, 'abc'::text like 'a%'",
    "values (1::int, 'x'::text)",
    "select current_setting('server_encoding'), current_setting('DateStyle')",
    "show standard_conforming_strings",
    "select true = 'true', 'f' = false, 'yes' <> true, 't' = (1 < 2)",
    "select true = any('{true,f}'::boolean[]), 3 = any('{1,2}'::int[]), 'b c' = any('{a,\"b c\"}'::text[])",
    "select 'a' = any('{a,b}'::name[]), 1259 = any('{1259}'::oid[]), 2 <> all('{1,3}'::bigint[])",
    "select '{1,NULL,3}'::int[], '{}'::bigint[], '{t,f}'::bool[], '{\"x,y\",NULL,\"NULL\",\"\"}'::text[], '{1.5}'::float8[]",
    "select '{2018-02-20}'::date[], cast('{1,2}' as smallint[])",
    "select 'pg_class'::regclass::text, 1259::regclass::text, 4294967::regclass::text",
    "select oid::regclass::text from pg_class where relname in ('pg_class', 'pg_type') order by 1",
    "select 'pg_catalog'::regnamespace::text, 'int4'::regtype::text, 23::regtype::text",
    "select 'C0FFEE00-1234-5678-9abc-DEF012345678'::uuid::text",
    "select 'a'::name::text, 'pg_catalog.pg_class'::regclass::oid = 1259::oid, 'pg_type'::regclass::oid",
    "select 1::int, 1::int::text, 1::bigint, 2::int = any('{1,2}'), 'a' = any(('{a,b}')), (1 + 1)::int::bigint, upper('a')::text, (select 1)::text",
    "select time '12:34:56' = '12:34:56'::time, case when true then 'x' end::text, null::text::bigint",
    "show transaction isolation level",
];

async fn postgres() -> Raw {
    let port = tokio::task::spawn_blocking(|| TempPostgres::shared().unwrap().port()).await.unwrap();
    let mut raw = Raw::open(([127, 0, 0, 1], port).into()).await;
    raw.send(&startup(&[("user", "headworks"), ("database", "postgres"), ("TimeZone", "UTC")])).await;
    raw.until_ready().await;
    raw
}

#[tokio::test]
async fn answers_have_the_names_types_and_forms_of_postgresql() {
    let server = Server::start().await;
    let (mut ours, mut theirs) = (Raw::connect(server.address).await, postgres().await);
    let mut different = Vec::new();
    for sql in STATEMENTS {
        for format in [0, 1] {
            let all =
                [parse("", sql, &[]), bind("", "", &[], format), describe('P', ""), execute("", 0), sync()].concat();
            ours.send(&all).await;
            theirs.send(&all).await;
            let (ours, theirs) = (ours.until_ready().await, theirs.until_ready().await);
            assert_eq!(error_field(&theirs, b'M'), None, "{sql}");
            assert_eq!(error_field(&ours, b'M'), None, "{sql}");
            if columns(&ours) != columns(&theirs) {
                different.push(format!("{sql}\nours:   {:?}\ntheirs: {:?}", columns(&ours), columns(&theirs)));
            }
            if rows(&ours) != rows(&theirs) {
                let shown = |rows: Vec<Vec<Option<Vec<u8>>>>| {
                    let text = |value: Vec<u8>| {
                        if format == 0 { String::from_utf8(value).unwrap() } else { format!("{value:02x?}") }
                    };
                    rows.into_iter()
                        .map(|row| row.into_iter().map(|value| value.map(text)).collect::<Vec<_>>())
                        .collect::<Vec<_>>()
                };
                different.push(format!("{sql}\nours:   {:?}\ntheirs: {:?}", shown(rows(&ours)), shown(rows(&theirs))));
            }
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

#[tokio::test]
async fn copies_have_the_bytes_of_postgresql() {
    let server = Server::start().await;
    let (mut ours, mut theirs) = (Raw::connect(server.address).await, postgres().await);
    let query = "select * from (values (1::bigint, 'a,b \"c\"'::text, 1.50::numeric(6,2), true, date '2018-02-20', \
                 array['x y', null]::text[]), (null, E'tab\\t\\\\ \\n', null, false, null, null), \
                 (3, '', 0.00::numeric(6,2), null, date '1999-01-01', array[]::text[])) t(a, b, c, d, e, f) order by a";
    for options in [
        "",
        "(format csv)",
        "(format csv, header, delimiter ';', null 'NULL', quote '''')",
        "(format csv, force_quote *)",
        "with csv header",
        "(delimiter '|', null '-')",
        "(format binary)",
    ] {
        let sql = format!("copy ({query}) to stdout {options}");
        let (ours, theirs) = (ours.ask(&sql).await, theirs.ask(&sql).await);
        assert_eq!(error_field(&theirs, b'M'), None, "{sql}");
        let kept = |messages: &[crate::raw::Message]| -> Vec<crate::raw::Message> {
            messages.iter().filter(|(kind, _)| b"HdcCE".contains(kind)).cloned().collect()
        };
        assert_eq!(kept(&ours), kept(&theirs), "{options}");
    }
}
