use std::sync::{Arc, OnceLock};

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array,
        Int32Array, Int64Array, ListArray, RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Int32Type, Schema, TimeUnit},
};
use futures::{StreamExt, stream};
use headworks_connect::{
    ConnectionSpec, Error, ReadRequest,
    fill::{Existing, FillRequest, fill},
    open,
};
use headworks_domain::Secret;
use headworks_testkit::TempPostgres;
use proptest::prelude::*;

use crate::{read, request};

fn fill_request(schema: &Arc<Schema>) -> FillRequest {
    FillRequest {
        table: "some table".into(),
        schema: schema.clone(),
        primary_key: vec!["id".into()],
        indexes: vec![vec!["order".into(), "id".into()]],
        existing: Existing::Refuse,
    }
}

fn sample(rows: usize) -> RecordBatch {
    let n = 0..rows as i64;
    let some = |i: i64| i % 5 != 4;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(n.clone()))),
        ("order", Arc::new(Int32Array::from_iter(n.clone().map(|i| some(i).then_some(i as i32 - 7))))),
        ("small", Arc::new(Int16Array::from_iter(n.clone().map(|i| some(i).then_some((i % 30_000) as i16))))),
        ("ok", Arc::new(BooleanArray::from_iter(n.clone().map(|i| some(i).then_some(i % 2 == 0))))),
        ("f", Arc::new(Float64Array::from_iter(n.clone().map(|i| some(i).then_some(i as f64 / 7.0))))),
        ("f4", Arc::new(Float32Array::from_iter(n.clone().map(|i| some(i).then_some(i as f32 / 7.0))))),
        ("t", Arc::new(StringArray::from_iter(n.clone().map(|i| some(i).then(|| format!("Ünï \"{i}\"\n\t\\N")))))),
        ("b", Arc::new(BinaryArray::from_iter(n.clone().map(|i| some(i).then(|| i.to_be_bytes()))))),
        ("d", Arc::new(Date32Array::from_iter(n.clone().map(|i| some(i).then_some(i as i32 - 1000))))),
        (
            "ts",
            Arc::new(TimestampMicrosecondArray::from_iter(n.clone().map(|i| some(i).then_some(i * 1_234_567_891 - 5)))),
        ),
        (
            "tz",
            Arc::new(
                TimestampMicrosecondArray::from_iter(n.clone().map(|i| some(i).then_some(i * -1_234_567_891)))
                    .with_timezone("UTC"),
            ),
        ),
        (
            "c",
            Arc::new(Time64MicrosecondArray::from_iter(
                n.clone().map(|i| some(i).then_some(i * 7919 % 86_400_000_000)),
            )),
        ),
        (
            "m",
            Arc::new(
                Decimal128Array::from_iter(n.map(|i| some(i).then_some(i128::from(i) * 31 - 100)))
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
        ),
    ];
    let fields: Vec<_> = columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), *n != "id")).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, a)| a).collect()).unwrap()
}

async fn round_trip(spec: &ConnectionSpec, batch: &RecordBatch) -> RecordBatch {
    let wanted = FillRequest { existing: Existing::Drop, ..fill_request(&batch.schema()) };
    let batches = stream::iter([
        Ok(batch.slice(0, batch.num_rows() / 2)),
        Ok(batch.slice(batch.num_rows() / 2, batch.num_rows() - batch.num_rows() / 2)),
    ]);
    assert_eq!(fill("target", spec, &wanted, batches.boxed()).await.unwrap(), batch.num_rows() as u64);
    read(&*open("target", spec).unwrap(), request("some table")).await.unwrap().0
}

fn check_same(got: &RecordBatch, batch: &RecordBatch) {
    for (n, field) in batch.schema().fields().iter().enumerate() {
        let got = arrow::compute::cast(got.column(n), field.data_type()).unwrap();
        assert_eq!(&got, batch.column(n), "{}", field.name());
    }
}

#[tokio::test]
async fn sqlite_gives_back_what_it_was_filled_with() {
    let dir = tempfile::tempdir().unwrap();
    let spec = ConnectionSpec::Sqlite { path: dir.path().join("t.db") };
    let batch = sample(1000);
    check_same(&round_trip(&spec, &batch).await, &batch);
    let table = open("target", &spec).unwrap().table("some table").await.unwrap();
    assert_eq!(table.primary_key, ["id"]);
    assert_eq!(table.columns[1].data_type, DataType::Int64);
    assert_eq!(table.columns[10].data_type, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
    // It does not write over what is there, unless it is told to.
    let mut again = fill_request(&batch.schema());
    let error = fill("target", &spec, &again, stream::iter([]).boxed()).await.unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    again.existing = Existing::Drop;
    assert_eq!(fill("target", &spec, &again, stream::iter([Ok(sample(3))]).boxed()).await.unwrap(), 3);
}

#[tokio::test]
async fn postgres_gives_back_what_it_was_filled_with() {
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    let spec = ConnectionSpec::Postgres { url: Secret::new(&url) };
    let batch = sample(1000);
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>((0..1000).map(|i| match i % 3 {
        0 => None,
        1 => Some(vec![]),
        _ => Some(vec![Some(i), None]),
    })));
    let mut fields = batch.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("l", lists.data_type().clone(), true)));
    let columns = [batch.columns(), &[lists]].concat();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let got = round_trip(&spec, &batch).await;
    for (n, column) in batch.columns().iter().enumerate() {
        assert_eq!(got.column(n), column, "{}", batch.schema().field(n));
    }
    let mut again = fill_request(&batch.schema());
    let error = fill("target", &spec, &again, stream::iter([]).boxed()).await.unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    again.existing = Existing::Drop;
    assert_eq!(fill("target", &spec, &again, stream::iter([]).boxed()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stream_that_fails_leaves_no_table() {
    let dir = tempfile::tempdir().unwrap();
    let url = TempPostgres::shared().unwrap().create_database().unwrap();
    let batch = sample(10);
    for spec in
        [ConnectionSpec::Sqlite { path: dir.path().join("t.db") }, ConnectionSpec::Postgres { url: Secret::new(&url) }]
    {
        let broken = || Error::FileMissing { file: "x".into() };
        let batches = stream::iter([Ok(batch.clone()), Err(broken())]);
        let error = fill("target", &spec, &fill_request(&batch.schema()), batches.boxed()).await.unwrap_err();
        assert!(matches!(error, Error::FileMissing { .. }), "{error}");
        assert!(open("target", &spec).unwrap().tables().await.unwrap().is_empty());
        // Nor do rows that break the key.
        let twice = stream::iter([Ok(batch.clone()), Ok(batch.clone())]);
        assert!(fill("target", &spec, &fill_request(&batch.schema()), twice.boxed()).await.is_err());
        assert!(open("target", &spec).unwrap().tables().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_filled_table_can_be_piped_on() {
    let dir = tempfile::tempdir().unwrap();
    let spec = |name: &str| ConnectionSpec::Sqlite { path: dir.path().join(name) };
    let batch = sample(100);
    round_trip(&spec("a.db"), &batch).await;
    let reader = open("a", &spec("a.db")).unwrap().read(ReadRequest { ..request("some table") }).await.unwrap();
    let mut wanted = fill_request(&reader.schema);
    wanted.existing = Existing::Drop;
    assert_eq!(fill("b", &spec("b.db"), &wanted, reader.stream).await.unwrap(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn values_survive_both_databases(
        ints in prop::collection::vec(prop::option::of(any::<i64>()), 1..20), small in any::<i32>(),
        texts in prop::collection::vec("[^\0]{0,12}", 1..20), decimal in -99_999_999_999_999_i128..99_999_999_999_999,
        // Years 1 to 9999.
        micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000, days in -719_162_i32..2_932_896,
        float in any::<f64>().prop_filter("SQLite has no NaN and one zero", |f| !f.is_nan() && *f != 0.0),
    ) {
        let rows = ints.len().min(texts.len());
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
            ("order", Arc::new(Int64Array::from_iter(ints.into_iter().take(rows)))),
            ("s", Arc::new(Int32Array::from(vec![small; rows]))),
            ("t", Arc::new(StringArray::from_iter_values(texts.iter().take(rows)))),
            ("m", Arc::new(Decimal128Array::from(vec![decimal; rows]).with_precision_and_scale(14, 5).unwrap())),
            ("ts", Arc::new(TimestampMicrosecondArray::from(vec![micros; rows]))),
            ("tz", Arc::new(TimestampMicrosecondArray::from(vec![micros; rows]).with_timezone("UTC"))),
            ("d", Arc::new(Date32Array::from(vec![days; rows]))),
            ("f", Arc::new(Float64Array::from(vec![float; rows]))),
        ];
        let fields: Vec<_> = columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, a)| a).collect()).unwrap();
        static URL: OnceLock<String> = OnceLock::new();
        let url = URL.get_or_init(|| TempPostgres::shared().unwrap().create_database().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let spec = ConnectionSpec::Sqlite { path: dir.path().join("t.db") };
            check_same(&round_trip(&spec, &batch).await, &batch);
            let spec = ConnectionSpec::Postgres { url: Secret::new(url) };
            check_same(&round_trip(&spec, &batch).await, &batch);
        });
    }
}
