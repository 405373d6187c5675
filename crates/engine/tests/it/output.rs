use arrow::array::RecordBatch;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use headworks_engine::{
    QueryOptions,
    output::{Shown, TableLayout, write_csv, write_json, write_json_lines, write_parquet, write_table},
};

use crate::support::bench;

const VALUES: &str = "select 1 as n, 'a' as t, 1.5 as f, true as b, date '2013-01-01' as d, \
    timestamp '2013-01-01 05:00:00' as ts, timestamp '2013-01-01 05:00:00.25' as tf, [1, 2] as l, \
    named_struct('x', 1, 'y', 'q\"q') as s, arrow_cast('ab', 'Binary') as bin, 'line\n\u{1b}[1m, \"x\"' as odd, '' as e, \
    cast(12.5 as decimal(10, 2)) as dec, '東京' as w \
    union all select null, null, null, null, null, null, null, null, null, null, null, null, null, null order by n nulls last";

async fn text(sql: &str, format: &str) -> String {
    let bench = bench();
    let stream = bench.engine.query(sql, QueryOptions::default()).await.unwrap();
    let mut out = Vec::new();
    let rows = match format {
        "csv" => write_csv(stream, &mut out).await.unwrap(),
        "json" => write_json(stream, &mut out).await.unwrap(),
        "lines" => write_json_lines(stream, &mut out).await.unwrap(),
        _ => write_table(stream, &mut out, TableLayout::default()).await.unwrap().rows,
    };
    assert!(rows <= 4);
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn csv_can_be_read_back() {
    assert_eq!(
        text(VALUES, "csv").await,
        "n,t,f,b,d,ts,tf,l,s,bin,odd,e,dec,w\n\
         1,a,1.5,true,2013-01-01,2013-01-01 05:00:00,2013-01-01 05:00:00.250,\"[1,2]\",\
         \"{\"\"x\"\":1,\"\"y\"\":\"\"q\\\"\"q\"\"}\",6162,\"line\n\u{1b}[1m, \"\"x\"\"\",\"\",12.50,東京\n\
         ,,,,,,,,,,,,,\n"
    );
    assert_eq!(text("select 1 as a where false", "csv").await, "a\n");
}

#[tokio::test]
async fn json_is_an_array_or_lines() {
    let lines = text(VALUES, "lines").await;
    let rows: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["s"], serde_json::json!({"x": 1, "y": "q\"q"}));
    assert_eq!(rows[0]["ts"], "2013-01-01T05:00:00");
    assert_eq!(rows[0]["dec"], serde_json::json!(12.5));
    assert_eq!(rows[1]["l"], serde_json::Value::Null);
    assert!(rows[1].as_object().unwrap().contains_key("n"));
    let array: Vec<serde_json::Value> = serde_json::from_str(&text(VALUES, "json").await).unwrap();
    assert_eq!(array, rows);
    assert_eq!(text("select 1 as a where false", "json").await.trim(), "[]");
    assert_eq!(text("select 1 as a where false", "lines").await, "");
}

#[tokio::test]
async fn tables_are_aligned() {
    assert_eq!(
        text("select carrier, sum(delay) as delay, count(*) as n from flights group by 1 order by 1", "table").await,
        [
            " carrier │ delay │ n",
            "─────────┼───────┼───",
            " AA      │  NULL │ 1",
            " DL      │ 12.25 │ 1",
            " UA      │  -1.5 │ 2",
            " NULL    │   0.0 │ 1",
            "(4 rows)\n",
        ]
        .join("\n")
    );
    assert_eq!(text("select 1 as a where false", "table").await, " a\n───\n(0 rows)\n");
    let odd = text("select 'line\n\u{1b}[1m' as \"two words\"", "table").await;
    assert!(odd.contains(" line\\n\\u{1b}[1m\n(1 row)"), "{odd}");
}

#[tokio::test]
async fn long_results_are_cut_and_counted() {
    let bench = bench();
    let stream = bench
        .engine
        .query("select value, repeat('x', 100) as x from generate_series(1, 123456)", QueryOptions::default())
        .await
        .unwrap();
    let mut out = Vec::new();
    let shown = write_table(stream, &mut out, TableLayout { rows_max: 3, cell_chars_max: 5 }).await.unwrap();
    assert_eq!(shown, Shown { shown: 3, rows: 123_456 });
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with("│ xxxx…\n(123,456 rows, 3 shown)\n"), "{text}");
}

#[tokio::test]
async fn parquet_round_trips() {
    let bench = bench();
    let rows = bench.rows("select * from flights order by carrier").await.unwrap();
    let stream = bench.engine.query("select * from flights order by carrier", QueryOptions::default()).await.unwrap();
    let path = bench.dir.path().join("flights.parquet");
    let mut file = std::fs::File::create(&path).unwrap();
    assert_eq!(write_parquet(stream, &mut file).await.unwrap(), 5);
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path).unwrap()).unwrap().build().unwrap();
    let read: Vec<RecordBatch> = reader.collect::<Result<_, _>>().unwrap();
    assert_eq!(read, rows);
}

#[tokio::test]
async fn closed_outputs_are_errors() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let bench = bench();
    for format in 0..4 {
        let stream = bench.engine.query("select * from flights", QueryOptions::default()).await.unwrap();
        let error = match format {
            0 => write_csv(stream, &mut Closed).await.unwrap_err(),
            1 => write_json(stream, &mut Closed).await.unwrap_err(),
            2 => write_parquet(stream, &mut Closed).await.unwrap_err(),
            _ => write_table(stream, &mut Closed, TableLayout::default()).await.unwrap_err(),
        };
        assert!(matches!(error, headworks_engine::Error::Output(_)), "{error}");
    }
}
