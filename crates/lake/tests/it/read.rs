//! The lake's law, one way: what DuckDB writes we read the same.

mod extremes;
mod world;

use std::{collections::HashMap, fs::File, path::Path, sync::Arc, time::Instant};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{common::stats::Precision, physical_plan::statistics::StatisticsArgs, prelude::SessionContext};
use headworks_domain::{ErrorKind, Fault};
use headworks_lake::{At, FIELD_ID};
use headworks_store::values;

use self::world::{World, on_both, same};
use crate::catalog::Catalog;

on_both!(
    every_type_in_files,
    every_type_in_the_catalog,
    every_snapshot_after_deletes_and_updates,
    every_snapshot_after_inlined_changes,
    reshaped_columns,
    reshaped_structs,
    merged_and_rewritten_files,
    partitions_are_pruned_and_exact,
    odd_partition_values,
    files_taken_in_from_elsewhere,
    nan_is_above_all_numbers,
    rows_that_move_into_files_are_seen_once,
    random_histories,
);

const EVERY_TYPE: &[&str] = &[
    "create table e(k int, bo boolean, i8 tinyint, i16 smallint, i32 int, i64 bigint, u8 utinyint, u16 usmallint, u32 uinteger,
       u64 ubigint, h hugeint, f float, d double, d4 decimal(4,1), d18 decimal(18,4), d38 decimal(38,10), s varchar, b blob,
       da date, ti time, ts timestamp, tss timestamp_s, tsms timestamp_ms, tsns timestamp_ns, tz timestamptz, u uuid, j json,
       li int[], ls varchar[], lu uuid[], st struct(a int, \"b c\" varchar), m map(varchar, int),
       nest struct(x int[], y map(int, struct(z varchar)))[])",
    "insert into e values
       (1, true, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1.1, 1.1, 12.3, 1.5, 1.5, 'it''s', 'a\\x00\\xFFb'::blob, '2013-01-01', '10:00:00.5',
        '2013-01-01 10:11:12.123456', '2013-01-01 10:11:12', '2013-01-01 10:11:12.123', '2013-01-01 10:11:12.123456789',
        '2013-01-01 10:11:12.5+00', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{\"a\": 1}', [1, null, 2],
        ['a', 'b,c', 'it''s', '\"q\"', null, 'NULL', '', '[x]', 'a\\b', 'x\\,y', ' lead', 'ü'],
        ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', null],
        {'a': 1, 'b c': 'x, y: {z}'}, map{'k': 1, 'a=b': 2}, [{'x': [1, 2], 'y': map{1: {'z': 'q''q'}}}]),
       (2, false, -128, -32768, -2147483648, -9223372036854775808, 255, 65535, 4294967295, 18446744073709551615,
        1000000, -1e30, 1e300, -999.9, -12345678901234.5678, 1234567890123456789012345678.0123456789,
        '', ''::blob, '0001-01-01', '00:00:00', '1970-01-01 00:00:00', '1969-12-31 23:59:59', '1969-12-31 23:59:59.999',
        '1969-12-31 23:59:59.999999999', '1969-12-31 23:59:59.999999+00', '00000000-0000-0000-0000-000000000000', 'null',
        [], [], [], {'a': null, 'b c': null}, map{}, []),
       (3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
        null, null, null, null, null, null, null, null, null, null, null, null),
       (4, null, 127, 32767, 2147483647, 9223372036854775807, 0, 0, 0, 0, -5, 'inf', '-inf', 0, 0, 0, 'Ünï ☃ \n x', '\\x80'::blob,
        '9999-12-31', '23:59:59.999999', '9999-12-31 23:59:59.999999', '2262-01-01', '2262-01-01', '2262-01-01',
        '9999-12-31 23:59:59+00', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '[1,\"x\"]', [7], ['x'], null, null, null, null),
       (5, null, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'nan', 'nan', 0.1, 0.0001, 0.0000000001, 'NULL', '\\x27'::blob, null, '24:00:00', null,
        null, null, null, null, null, '\"s\"', null, null, null, null, null, [null, {'x': null, 'y': null}]),
       (6, null, 0, 0, 0, 0, 0, 0, 0, 0, 0, -0.0, -0.0, 0.1, 0.0001, 0.0000000001, repeat('z', 500), null, '12345-01-01', '12:00:00',
        '0045-03-15 (BC) 01:02:03', '2000-01-01', '2000-01-01', '2000-01-01', '2000-01-01 00:00:00+00', null, null, null, null, null, null, null, null)",
];

const EVERY_CONDITION: &[&str] = &[
    "bo",
    "i8 > 5",
    "i16 = -32768",
    "i32 in (3, 2147483647)",
    "i64 < 0",
    "u8 = 255",
    "u64 > 9223372036854775807",
    "h >= 9",
    "f > 1",
    "d > 100",
    "d <> d",
    "not d < 5",
    "d4 < -1",
    "d18 = 1.5",
    "d38 > 1",
    "s = 'it''s'",
    "s > 'a'",
    "s like '%n%'",
    "b = 'a'::blob or b is null",
    "da > date '2013-01-01'",
    "ts < timestamp '1980-01-01 00:00:00'",
    "tsns >= timestamp '2013-01-01 00:00:00'",
    "tz = timestamptz '2013-01-01 10:11:12.5+00'",
    "u = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "u > 'b'",
    "st is null",
    "j = 'null'",
];

async fn every_type(catalog: Catalog, inlined: u32) {
    let mut world = World::new(catalog, inlined).await;
    world.run(EVERY_TYPE);
    world.check("e").await;
    for condition in EVERY_CONDITION {
        // The two dialects write a blob differently, and only DuckDB compares UUIDs with a half one.
        let theirs = condition.replace("u > 'b'", "u::varchar > 'b'").replace("j = 'null'", "j::varchar = 'null'");
        let ours = condition.replace("'a'::blob", "arrow_cast('a', 'Binary')");
        let ours = world.ours("e", At::Now, &format!("select * from t where {ours}")).await;
        let theirs = world.theirs(&format!("select * from lake.e where {theirs}"));
        same(&ours, &theirs, condition);
    }
    let ours = world.ours("e", At::Now, "select count(*), count(bo), sum(i32), max(s), min(d18), max(h) from t").await;
    let theirs = world.theirs("select count(*), count(bo), sum(i32), max(s), min(d18), max(h) from lake.e");
    same(&ours, &theirs, "aggregates");
}

async fn every_type_in_files(catalog: Catalog) {
    every_type(catalog, 0).await;
}

async fn every_type_in_the_catalog(catalog: Catalog) {
    every_type(catalog, 100).await;
}

async fn every_snapshot_after_deletes_and_updates(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    world.run(&["create table u(k int, s varchar)"]);
    let first = world.newest().await;
    world.run(&[
        "insert into u select x, 'v' || x from range(100) r(x)",
        "insert into u select x, 'v' || x from range(100, 200) r(x)",
        "delete from u where k in (3, 4, 5)",
        "delete from u where k = 7 or k >= 195",
        "update u set s = 'new' where k % 50 = 0",
        "delete from u where k = 99",
        "insert into u values (1000, null)",
        "delete from u where k < 100",
    ]);
    world.check_versions("u", first).await;
    for condition in ["k = 150", "s = 'new'", "k > 180", "s is null"] {
        world.check_where("u", condition).await;
    }
    let ours = world.ours("u", At::Now, "select count(*) from t").await;
    let theirs = world.theirs("select count(*) from lake.u");
    same(&ours, &theirs, "count");
}

async fn every_snapshot_after_inlined_changes(catalog: Catalog) {
    let mut world = World::new(catalog, 10).await;
    world.run(&["create table u(k int, s varchar)"]);
    let first = world.newest().await;
    world.run(&[
        "insert into u select x, 'v' || x from range(100) r(x)",
        "insert into u values (1000, 'inlined'), (1001, null)",
        "delete from u where k = 5",
        "delete from u where k in (6, 1000)",
        "update u set s = 'new' where k in (8, 1001)",
        "insert into u values (1002, 'x')",
    ]);
    world.check_versions("u", first).await;
    world.run(&["call ducklake_flush_inlined_data('lake')"]);
    world.check_versions("u", first).await;
    world.run(&["insert into u values (1003, 'x'), (1004, 'y')", "delete from u where k in (10, 1003, 1002)"]);
    world.run(&["call ducklake_flush_inlined_data('lake')", "insert into u values (1005, 'z')"]);
    world.check_versions("u", first).await;
    world.check_where("u", "s = 'v12' or k > 1000").await;
}

async fn reshaped_columns(catalog: Catalog) {
    for inlined in [0, 10] {
        let mut world = World::new(catalog, inlined).await;
        world.run(&["create table r(k int, a varchar, b smallint, c float, d int default 3)"]);
        let first = world.newest().await;
        world.run(&[
            "insert into r select x, 'a' || x, x, x / 4, x from range(20) r(x)",
            "insert into r values (100, 'inlined', 1, 1.5, 1)",
            "alter table r rename column a to a2",
            "insert into r select x, 'a' || x, x, x / 4, x from range(20, 40) r(x)",
            "insert into r values (101, 'inlined', 2, 2.5, 2)",
            "alter table r alter column b type bigint",
            "alter table r alter column c type double",
            "insert into r select x, 'a' || x, 5000000000 + x, x / 3, x from range(40, 60) r(x)",
            "alter table r add column a varchar default 'fresh'",
            "alter table r add column n timestamp default '2013-01-01 00:00:00.5'",
            "alter table r add column bl blob default 'x\\x00'",
            "alter table r add column nothing date",
            "insert into r select x, 'a' || x, x, x / 3, x, 'own', null, null, '2013-01-01' from range(60, 80) r(x)",
            "insert into r values (103, 'inlined', 2, 2.5, 2, 'own', null, null, null)",
            "alter table r drop column d",
            "alter table r rename column b to d",
            "delete from r where k in (3, 23, 43, 63, 100)",
            "update r set a2 = 'changed' where k in (4, 24, 44, 64, 101)",
        ]);
        world.check_versions("r", first).await;
        for condition in [
            "a = 'fresh'",
            "a2 = 'a7'",
            "a2 = 'a7' and a = 'fresh'",
            "d > 5000000000",
            "d = 7",
            "c > 10",
            "n is null",
            "nothing is null",
            "a2 > 'a5' and k < 30",
        ] {
            world.check_where("r", condition).await;
        }
        world.run(&[
            "call ducklake_rewrite_data_files('lake', 'r', delete_threshold => 0)",
            "call ducklake_merge_adjacent_files('lake')",
        ]);
        world.check_versions("r", first).await;
        world.check_where("r", "a2 = 'a7' and a = 'fresh'").await;
    }
}

async fn reshaped_structs(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    world.run(&["create table n(k int, s struct(a int, b varchar), l struct(x int)[], m map(varchar, struct(p int)))"]);
    let first = world.newest().await;
    world.run(&[
        "insert into n values (1, {'a': 1, 'b': 'x'}, [{'x': 1}, null], map{'q': {'p': 1}}), (2, null, null, null)",
        "alter table n add column s.c int",
        "insert into n values (3, {'a': 1, 'b': 'x', 'c': 3}, [], map{})",
        "alter table n rename column s.a to a2",
        "alter table n drop column s.b",
        "insert into n values (4, {'a2': 1, 'c': 3}, [{'x': 7}], map{'z': null})",
        "alter table n alter s type struct(a2 int, c bigint)",
        "insert into n values (5, {'a2': 1, 'c': 5000000000}, null, null)",
    ]);
    world.check_versions("n", first).await;
    let ours = world.ours("n", At::Now, "select k, s['a2'], s['c'] from t where s['c'] > 3 or s['a2'] = 1").await;
    let theirs = world.theirs("select k, s['a2'], s['c'] from lake.n where s['c'] > 3 or s['a2'] = 1");
    same(&ours, &theirs, "fields");
}

async fn merged_and_rewritten_files(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    world.run(&["create table g(k int, s varchar)"]);
    let first = world.newest().await;
    world.run(&[
        "insert into g select x, 'v' || x from range(10) r(x)",
        "insert into g select x, 'v' || x from range(10, 20) r(x)",
        "insert into g select x, 'v' || x from range(20, 30) r(x)",
        "call ducklake_merge_adjacent_files('lake')",
        "delete from g where k in (1, 11, 21)",
        "delete from g where k in (2, 12, 22)",
    ]);
    world.check_versions("g", first).await;
    let ours = world.ours("g", At::Version(first + 2), "select count(*) from t where s > 'v15'").await;
    let theirs = world.theirs(&format!("select count(*) from lake.g at (version => {}) where s > 'v15'", first + 2));
    same(&ours, &theirs, "a filter on a merged file");
    world.run(&[
        "call ducklake_rewrite_data_files('lake', 'g', delete_threshold => 0)",
        "insert into g values (99, 'z')",
    ]);
    world.check_versions("g", first).await;
}

async fn partitions_are_pruned_and_exact(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    world.run(&[
        "create table p(v int, ds date, hour int, s varchar)",
        "insert into p select x, date '2012-12-31', 0, 'before' from range(5) r(x)",
        "alter table p set partitioned by (ds, hour)",
        "insert into p select x, date '2013-01-01' + (x % 10)::int, x % 24, 's' || x from range(480) r(x)",
        "insert into p values (1, null, null, 'none'), (2, '12345-01-01', 1, 'far'), (3, 'infinity', 1, 'never')",
    ]);
    for condition in [
        "ds = date '2013-01-03'",
        "ds = '2013-01-03'",
        "ds > date '2013-01-08'",
        "ds >= date '2012-12-31' and ds < date '2013-01-02'",
        "ds between date '2013-01-02' and date '2013-01-03' and hour = 5",
        "hour = 5",
        "hour in (1, 2)",
        "ds in (date '2013-01-01', date '2013-01-09')",
        "ds is null",
        "ds is not null and hour > 21",
        "not (ds = date '2013-01-01' or hour < 23)",
        "ds = date '2013-01-01' or v = 2",
        "extract(day from ds) = 5 and s > 's2'",
        "ds = date '2012-12-31'",
        "ds = date '1999-01-01'",
        "v = 77",
        "s = 's77' and ds < date '2013-01-05'",
    ] {
        world.check_where("p", condition).await;
    }
    world.run(&["delete from p where ds = '2012-12-31' or ds is null or ds > '2014-01-01'"]);
    let (_, plan) = world.plan("p", "select max(ds), min(ds), count(*) from t").await;
    assert!(!plan.contains("DataSourceExec"), "statistics answer it:\n{plan}");
    let (_, plan) = world.plan("p", "select count(*) from t where ds = date '2013-01-03' and hour in (2, 12)").await;
    assert!(!plan.contains("DataSourceExec"), "statistics answer it:\n{plan}");
    let (_, plan) = world.plan("p", "select v from t where ds = date '2013-01-03'").await;
    assert!(
        !plan.contains("FilterExec") && plan.contains("ds=2013-01-03") && !plan.contains("ds=2013-01-04"),
        "{plan}"
    );
    assert!(!plan.contains("UnionExec"), "one plain scan:\n{plan}");
    // Joins tell from the bounds of a column how many keys there may be; texts say nothing about that.
    let (plan, _) = world.plan("p", "select v, s from t").await;
    let known = plan.statistics_from_inputs(&[], &StatisticsArgs::new()).unwrap();
    let is_known = |at: usize| matches!(known.column_statistics[at].max_value, Precision::Inexact(_));
    assert!(is_known(0) && !is_known(1), "{known}");
    for sql in [
        "select max(ds), min(ds), count(*), max(hour), count(ds) from {}",
        "select ds, count(*), sum(v) from {} group by ds",
    ] {
        let ours = world.ours("p", At::Now, &sql.replace("{}", "t")).await;
        let theirs = world.theirs(&sql.replace("{}", "lake.p"));
        same(&ours, &theirs, sql);
    }
    world.run(&["alter table p rename column ds to day", "insert into p values (7, '2013-01-03', 2, 'x')"]);
    world.check_where("p", "day = date '2013-01-03'").await;
}

async fn odd_partition_values(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    world.run(&[
        "create table \"Ünï tab%20le\"(v int, e varchar, b boolean, d double, ts timestamp, bl blob)",
        "alter table \"Ünï tab%20le\" set partitioned by (e, b, d, ts, bl)",
        "insert into \"Ünï tab%20le\" select x, ['a/b c%', 'Ünï', '', null, 'x=y', '..', 'a''b', '%2F'][x % 8 + 1], x % 2 = 0, x / 4,
           timestamp '2013-01-01 10:00:00.5' + to_days((x % 3)::int), 'a\\x00'::blob from range(24) r(x)",
    ]);
    world.check("Ünï tab%20le").await;
    for condition in [
        "e = 'a/b c%'",
        "e = ''",
        "e is null",
        "e in ('..', '%2F')",
        "b",
        "d > 2.5",
        "ts = timestamp '2013-01-02 10:00:00.5'",
        "e > 'b'",
    ] {
        world.check_where("Ünï tab%20le", condition).await;
    }
    world.run(&[
        "create table y(ds date, n int)",
        "alter table y set partitioned by (year(ds), bucket(4, n))",
        "insert into y select date '2013-01-01' + (x * 40)::int, x from range(60) r(x)",
    ]);
    world.check_where("y", "ds = date '2013-02-10' or n = 7").await;
}

async fn files_taken_in_from_elsewhere(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    let outside = world.project.join("outside");
    let at = |name: &str| outside.join(name).display().to_string();
    std::fs::create_dir_all(&outside).unwrap();
    let copies = [
        format!(
            "copy (select x::int as k, 'n' || x as name, {{'p': x::int}} as s from range(5) r(x)) to '{}'",
            at("a b%20.parquet")
        ),
        format!(
            "copy (select x::int as k, 'n' || x as name, 'v ' || x % 2 as part from range(5) r(x)) to '{}' (format parquet, partition_by (part))",
            at("hive")
        ),
    ];
    world.run(&copies.each_ref().map(String::as_str));
    let adds = [
        "create table f(k int, name varchar, s struct(p int), extra int default 4)".to_owned(),
        format!("call ducklake_add_data_files('lake', 'f', '{}', allow_missing => true)", at("a b%20.parquet")),
        "insert into f values (100, 'own', {'p': 1}, 2)".to_owned(),
        "alter table f rename column name to name2".to_owned(),
        "alter table f add column name varchar".to_owned(),
        "create table hv(k int, name varchar, part varchar)".to_owned(),
        format!("call ducklake_add_data_files('lake', 'hv', '{}/*/*.parquet', hive_partitioning => true)", at("hive")),
    ];
    world.run(&adds.each_ref().map(String::as_str));
    world.check("f").await;
    world.check_where("f", "name2 = 'n3'").await;
    world.check_where("f", "name is null and extra = 4").await;
    world.check("hv").await;
    world.check_where("hv", "part = 'v 1' and k > 1").await;
}

async fn nan_is_above_all_numbers(catalog: Catalog) {
    let mut world = World::new(catalog, 0).await;
    world.run(&["create table q(k int, d double, f float)", "insert into q select x, x, x from range(40) r(x)"]);
    let (_, plan) = world.plan("q", "select * from t where d > 100").await;
    assert!(plan.contains("d_max"), "a filter prunes by statistics as long as there is no NaN:\n{plan}");
    world.run(&["insert into q values (100, 1, 1), (101, 'nan', 'nan'), (102, null, null)"]);
    for _ in 0..20 {
        world.run(&["insert into q select x, x, x from range(40) r(x)"]);
    }
    for condition in ["d > 100", "f > 100", "d >= 39", "d < 1", "not d > 3", "d = 'nan'::double"] {
        let ours = condition.replace("'nan'::double", "arrow_cast('nan', 'Float64')");
        let ours = world.ours("q", At::Now, &format!("select * from t where {ours}")).await;
        let theirs = world.theirs(&format!("select * from lake.q where {condition}"));
        same(&ours, &theirs, condition);
    }
    // DuckDB writes no bounds beside NaN. Our own writer does, and leaves NaN out of them.
    world.run(&["create table o as select 1::double as d union all select 'nan'::double"]);
    let file = world.project.files("lake ü%20/data/main/o").unwrap().remove(0);
    let file = world.project.join("lake ü%20/data/main/o").join(Path::new(&file).file_name().unwrap());
    let field = Field::new("d", DataType::Float64, true).with_metadata([(FIELD_ID.to_owned(), "1".to_owned())].into());
    let schema = Arc::new(Schema::new(vec![field]));
    let values: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![values]).unwrap();
    std::fs::rename(world.parquet(&schema, &[batch]), &file).unwrap();
    let size = std::fs::metadata(&file).unwrap().len();
    let resize = "update ducklake_data_file set file_size_bytes = $1, footer_size = null
        where table_id = (select table_id from ducklake_table where table_name = 'o')";
    let resized = world.lake.store().write(move |tx| Box::pin(async move { tx.execute(resize, &values![size]).await }));
    resized.await.unwrap();
    assert_eq!(world.ours("o", At::Now, "select * from t where d > 100").await, [[Some("nan".to_owned())]]);
}

async fn rows_that_move_into_files_are_seen_once(catalog: Catalog) {
    let mut world = World::new(catalog, 10).await;
    world.run(&["create table w(k int)"]);
    let World { project: _project, lake, mut duck, .. } = world;
    let writer = tokio::task::spawn_blocking(move || {
        for i in 0..16 {
            duck.run(&format!("insert into w values ({i}), ({i}), ({i})")).unwrap();
            duck.run(&format!("delete from w where k = {}", i - 3)).unwrap();
            if i % 2 == 1 {
                duck.run("call ducklake_flush_inlined_data('lake')").unwrap();
            }
        }
        duck
    });
    let mut seen = Vec::new();
    while !writer.is_finished() {
        let context = SessionContext::new();
        lake.storage().register(&context.runtime_env());
        let provider = lake.provider("w", At::Now).await.unwrap();
        let version = provider.snapshot();
        context.register_table("t", provider).unwrap();
        seen.push((version, context.sql("select k from t").await.unwrap().count().await.unwrap()));
    }
    let mut duck = writer.await.unwrap();
    seen.dedup();
    assert!(seen.len() > 3, "{seen:?}");
    for (version, count) in seen {
        let theirs = duck.value(&format!("select count(*) from lake.w at (version => {version})")).unwrap();
        assert_eq!(theirs, serde_json::json!(count), "at {version}");
    }
}

/// Small numbers from a seed; a failing seed is in the message.
struct Seed(u64);

impl Seed {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

async fn random_histories(catalog: Catalog) {
    for seed in 0..3 {
        random_history(catalog, seed).await;
    }
}

#[allow(clippy::print_stdout, reason = "shown when the check fails")]
async fn random_history(catalog: Catalog, seed: u64) {
    let mut world = World::new(catalog, 5).await;
    let mut dice = Seed(seed);
    let mut columns: Vec<(String, &str)> =
        vec![("p".to_owned(), "int"), ("a".to_owned(), "int"), ("b".to_owned(), "varchar")];
    world.run(&["create table h(k int, p int, a int, b varchar)"]);
    let first = world.newest().await;
    let mut history = Vec::new();
    let (mut next, mut names) = (0, 0);
    for _ in 0..30 {
        let any = usize::try_from(dice.below(columns.len() as u64)).unwrap();
        let (modulus, rest) = (2 + dice.below(9), dice.below(11));
        let value = |(_, kind): &(String, &str), by: u64| match *kind {
            "varchar" => format!("'s' || (k % 17 + {by})"),
            "double" => format!("(k + {by}) / 3"),
            _ => format!("(k + {by}) % 5"),
        };
        let sql = match dice.below(16) {
            0..5 => {
                let count = if dice.below(2) == 0 { 1 + dice.below(4) } else { 20 + dice.below(40) };
                let values: Vec<String> = columns.iter().map(|c| value(c, 0)).collect();
                next += count;
                format!("insert into h select k, {} from range({}, {next}) r(k)", values.join(", "), next - count)
            }
            5..8 => format!("delete from h where k % {modulus} = {rest}"),
            8..10 => format!(
                "update h set \"{}\" = {} where k % {modulus} = {rest}",
                columns[any].0,
                value(&columns[any], rest)
            ),
            10 => {
                names += 1;
                let kind = ["int", "varchar", "double"][usize::try_from(dice.below(3)).unwrap()];
                // Names of dropped and renamed columns come back.
                let name = ["a", "b", "c", "d"]
                    .into_iter()
                    .find(|n| columns.iter().all(|c| c.0 != *n))
                    .map_or(format!("n{names}"), str::to_owned);
                let default = if dice.below(2) == 0 { String::new() } else { format!(" default {rest}") };
                columns.push((name.clone(), kind));
                format!("alter table h add column \"{name}\" {kind}{default}")
            }
            11 if columns[any].0 != "p" => {
                names += 1;
                let old = std::mem::replace(&mut columns[any].0, format!("r{names}"));
                format!("alter table h rename column \"{old}\" to \"{}\"", columns[any].0)
            }
            12 if columns.len() > 2 && columns[any].0 != "p" => {
                format!("alter table h drop column \"{}\"", columns.remove(any).0)
            }
            13 => ["alter table h set partitioned by (p)", "alter table h reset partitioned by"][usize::from(rest > 7)]
                .to_owned(),
            14 => "call ducklake_flush_inlined_data('lake')".to_owned(),
            _ => [
                "call ducklake_merge_adjacent_files('lake')",
                "call ducklake_rewrite_data_files('lake', 'h', delete_threshold => 0)",
            ][usize::from(rest > 5)]
            .to_owned(),
        };
        match world.duck.run(&sql) {
            Ok(()) => history.push(sql),
            // DuckDB 1.5.5 cannot tidy up every table that it made; then it leaves it as it is.
            Err(_) if sql.starts_with("call") => {}
            Err(e) => panic!("seed {seed}: {sql}: {e}\n{history:#?}"),
        }
    }
    // Shown when the check fails.
    println!("{catalog:?} {seed}: {history:#?}");
    world.check_versions("h", first).await;
    for condition in ["p = 3", "p in (1, 2) and k > 30", "k = 7", "p > 2 or k < 9"] {
        world.check_where("h", condition).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_named() {
    let mut world = World::new(Catalog::Sqlite, 0).await;
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 5] = [
        ("missing", |path| std::fs::remove_file(path).unwrap()),
        ("truncated", |path| File::options().write(true).open(path).unwrap().set_len(300).unwrap()),
        ("emptied", |path| File::create(path).map(drop).unwrap()),
        ("grown", |path| std::fs::write(path, [vec![0; 100], std::fs::read(path).unwrap()].concat()).unwrap()),
        ("scrambled", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let end = bytes.len();
            bytes[end - 200..end - 8].fill(0xA5);
            std::fs::write(path, bytes).unwrap();
        }),
    ];
    for (name, act) in damage {
        world.run(&[&format!("create table {name} as select x as k, 'v' || x as s from range(1000) r(x)")]);
        let files = world.project.files(format!("lake ü%20/data/main/{name}")).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        act(&world.project.join(format!("lake ü%20/data/main/{name}")).join(Path::new(&files[0]).file_name().unwrap()));
        let failure = world.failure(name, "select sum(k) from t").await;
        assert!(
            failure.starts_with("Corrupt: ") && failure.contains(&format!("main/{name}/ducklake-")),
            "{name}: {failure}"
        );
    }
    // A delete file likewise.
    world.run(&["create table d as select x as k from range(100) r(x)", "delete from d where k = 5"]);
    let files = world.project.files("lake ü%20/data/main/d").unwrap();
    let deletes = files.iter().find(|f| f.contains("delete")).unwrap();
    std::fs::remove_file(world.project.join("lake ü%20/data/main/d").join(Path::new(deletes).file_name().unwrap()))
        .unwrap();
    let failure = world.failure("d", "select sum(k) from t").await;
    assert!(failure.starts_with("Corrupt: ") && failure.contains("-delete.parquet` is missing"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_do_not_read_is_refused() {
    let mut world = World::new(Catalog::Sqlite, 0).await;
    world.run(&[
        "create table i(k int, v interval)",
        "insert into i values (1, interval 1 day)",
        "create table o(k int)",
    ]);
    let failure = world.failure("i", "select k from t").await;
    assert_eq!(failure, "Invalid: column `v` of table `i` has type `interval`, which headworks cannot use");
    let newest = world.newest().await;
    for at in [newest + 1, -1] {
        let error = world.lake.provider("o", At::Version(at)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    let error = world.lake.provider("oo", At::Now).await.unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("did you mean `o`? headworks tables list shows them all"));
    world.run(&[
        "insert into o values (1)",
        "insert into o values (2)",
        "call ducklake_expire_snapshots('lake', versions => [1])",
    ]);
    let error = world.lake.provider("o", At::Version(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// Numbers for the record, not a limit: the plan of a scan over 10,000 partitions of two files each.
#[tokio::test(flavor = "multi_thread")]
async fn plans_over_twenty_thousand_files() {
    let mut world = World::new(Catalog::Sqlite, 0).await;
    world.run(&[
        "create table p(ds date, hour int, a int, b varchar, c double, d timestamp)",
        "alter table p set partitioned by (ds)",
        "insert into p values ('1999-01-01', 1, 1, 'x', 1.5, '2013-01-01 00:00:00')",
    ]);
    let row = world
        .lake
        .store()
        .row("select table_id, partition_id, end_snapshot from ducklake_data_file", &[])
        .await
        .unwrap()
        .unwrap();
    let (table, partition) = (row.i64(0).unwrap(), row.i64(1).unwrap());
    let snapshot = world.newest().await;
    world
        .lake
        .store()
        .write(move |tx| {
            Box::pin(async move {
                tx.execute(
                    "insert into ducklake_data_file(data_file_id, table_id, begin_snapshot, path, path_is_relative, file_format, record_count, file_size_bytes, footer_size, row_id_start, partition_id)
                     with recursive n(i) as (select 0 union all select i + 1 from n where i < 19999)
                     select 1000 + i, $1, $3, 'ds=' || date('1990-01-01', '+' || (i / 2) || ' days') || '/' || i || '-0197a2f0-7c1e-7b63-9d6f-1f8d7f9ca4b4.parquet', 1, 'parquet', 100, 5000, 1000, i * 100, $2 from n",
                    &values![table, partition, snapshot],
                )
                .await?;
                tx.execute(
                    "insert into ducklake_file_partition_value
                     with recursive n(i) as (select 0 union all select i + 1 from n where i < 19999)
                     select 1000 + i, $1, 0, date('1990-01-01', '+' || (i / 2) || ' days') from n",
                    &values![table],
                )
                .await?;
                tx.execute(
                    "insert into ducklake_file_column_stats
                     with recursive n(i) as (select 0 union all select i + 1 from n where i < 19999)
                     select 1000 + i, $1, c.id, 100, 100, 0, i, i + 10, null, null from n, (select 2 as id union all select 3 union all select 4) c",
                    &values![table],
                )
                .await?;
                Ok::<_, headworks_store::Error>(())
            })
        })
        .await
        .unwrap();
    let mut took: HashMap<&str, f64> = HashMap::new();
    let queries = [
        "select * from t where ds = date '2013-01-01'",
        "select * from t where ds between date '2013-01-01' and date '2013-01-07'",
        "select * from t where ds in (date '2013-01-01', date '2013-02-01')",
        "select max(ds) from t",
        "select * from t",
        "select * from t where a = 7",
    ];
    for round in 0..5 {
        for sql in queries {
            let context = world.session("p", At::Now).await.unwrap();
            let begin = Instant::now();
            let provider = world.lake.provider("p", At::Now).await.unwrap();
            context.deregister_table("t").unwrap();
            context.register_table("t", provider).unwrap();
            context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            let millis = begin.elapsed().as_secs_f64() * 1e3;
            let best = took.entry(sql).or_insert(f64::MAX);
            *best = if round == 0 { f64::MAX.min(millis) } else { best.min(millis) };
        }
    }
    for sql in queries {
        println!("{:8.1} ms  {sql}", took[sql]);
    }
    let (_, plan) = world.plan("p", queries[0]).await;
    assert_eq!(plan.matches(".parquet").count(), 2, "{plan}");
    let (_, plan) = world.plan("p", queries[3]).await;
    assert!(!plan.contains("DataSourceExec"), "{plan}");
    let (_, plan) = world.plan("p", queries[5]).await;
    assert!(plan.matches(".parquet").count() <= 12, "{plan}");
}
