use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{
        ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
        TimestampNanosecondArray,
    },
    compute::concat_batches,
    datatypes::{Int32Type, Schema},
};
use headworks_connect::{
    Error,
    files::{FileFormat, FileInput, FileOptions, fetch, find, find_object, open},
};
use headworks_domain::{ErrorKind, Fault};
use object_store::{ObjectStoreExt, memory::InMemory};
use orc_rust::ArrowWriterBuilder;
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;

use crate::{column, shown};

fn sample() -> RecordBatch {
    let rows = 5000;
    RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter((0..rows).map(|i| (i % 7 != 0).then_some(i)))) as ArrayRef),
        ("name", Arc::new(StringArray::from_iter((0..rows).map(|i| (i % 5 != 0).then(|| format!("row {i}")))))),
        ("at", Arc::new(TimestampMicrosecondArray::from_iter_values((0..rows).map(|i| i * 1_000_003)))),
    ])
    .unwrap()
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn write_orc(path: &Path, batch: &RecordBatch) {
    let mut writer = ArrowWriterBuilder::new(File::create(path).unwrap(), batch.schema()).try_build().unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

fn write_csv(path: &Path, batch: &RecordBatch) {
    arrow::csv::WriterBuilder::new().with_header(true).build(File::create(path).unwrap()).write(batch).unwrap();
}

fn read(input: FileInput) -> Result<RecordBatch, Error> {
    let reader = open(input, &FileOptions::default())?;
    let schema = reader.schema.clone();
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(&schema, &batches).unwrap())
}

fn path(path: &Path) -> FileInput {
    FileInput::Path(path.into())
}

#[test]
fn formats_give_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let batch = sample();
    for (name, write) in [
        ("t.parquet", write_parquet as fn(&Path, &RecordBatch)),
        ("t.orc", write_orc),
        ("t.csv", write_csv),
        // The first bytes tell.
        ("part-0000", write_parquet),
        ("part-0001", write_orc),
    ] {
        let file = dir.path().join(name);
        write(&file, &batch);
        let got = read(path(&file)).unwrap();
        assert_eq!(got.columns(), batch.columns(), "{name}");
        let bytes = FileInput::Bytes { name: name.into(), bytes: std::fs::read(&file).unwrap().into() };
        assert_eq!(read(bytes).unwrap().columns(), batch.columns(), "{name}");
    }
}

#[test]
fn other_types_become_those_of_the_lake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.parquet");
    let names: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
    let at = TimestampNanosecondArray::from(vec![1_000, 2_000, 3_000]);
    write_parquet(
        &file,
        &RecordBatch::try_from_iter([("n", Arc::new(names) as ArrayRef), ("at", Arc::new(at))]).unwrap(),
    );
    let got = read(path(&file)).unwrap();
    assert_eq!(column(&got, "n"), ["a", "b", "a"]);
    assert_eq!(column(&got, "at")[2], "1970-01-01T00:00:00.000003");
    let fine = TimestampNanosecondArray::from(vec![1_001]);
    write_parquet(&file, &RecordBatch::try_from_iter([("at", Arc::new(fine) as ArrayRef)]).unwrap());
    let error = read(path(&file)).unwrap_err();
    assert!(error.to_string().contains("column `at`: it has a time finer than microseconds"), "{error}");
    let empty = RecordBatch::new_empty(Arc::new(Schema::empty()));
    write_parquet(&file, &empty);
    assert_eq!(read(path(&file)).unwrap().num_columns(), 0);
}

#[test]
fn damaged_files_are_corrupt_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let batch = sample();
    for (name, write) in [("t.parquet", write_parquet as fn(&Path, &RecordBatch)), ("t.orc", write_orc)] {
        let whole = dir.path().join(name);
        write(&whole, &batch);
        let bytes = std::fs::read(&whole).unwrap();
        for cut in [0, 1, 3, 4, 10, bytes.len() / 2, bytes.len() - 1] {
            let file = dir.path().join(format!("cut.{name}"));
            std::fs::write(&file, &bytes[..cut]).unwrap();
            let error = read(path(&file)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name} cut to {cut}: {error}");
            assert!(shown(&error).contains(&format!("cut.{name}")), "{error}");
        }
        let file = dir.path().join(format!("other.{name}"));
        std::fs::write(&file, "id,name\n1,x\n".repeat(100)).unwrap();
        assert_eq!(read(path(&file)).unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
    }
    for (name, text) in [("empty.csv", ""), ("ragged.csv", "a,b\n1,2\n3\n"), ("latin.csv", "a\n\u{0}x")] {
        let file = dir.path().join(name);
        let bytes = if name == "latin.csv" { b"a\n\xe9t\xe9\n".to_vec() } else { text.as_bytes().to_vec() };
        std::fs::write(&file, bytes).unwrap();
        let error = read(path(&file)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
    }
}

#[test]
fn files_that_are_none_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read(path(&dir.path().join("none.parquet"))).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(read(path(dir.path())).unwrap_err().kind(), ErrorKind::Invalid);
    let file = dir.path().join("notes");
    std::fs::write(&file, "hello").unwrap();
    assert_eq!(read(path(&file)).unwrap_err().code(), "FILE_UNSUPPORTED");
    let forced = FileOptions { format: Some(FileFormat::Csv), ..FileOptions::default() };
    assert_eq!(open(path(&file), &forced).unwrap().schema.field(0).name(), "hello");
}

#[tokio::test]
async fn objects_are_fetched() {
    let store = InMemory::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.parquet");
    write_parquet(&file, &sample());
    store.put(&"a/t.parquet".into(), std::fs::read(&file).unwrap().into()).await.unwrap();
    assert_eq!(read(fetch(&store, &"a/t.parquet".into()).await.unwrap()).unwrap().num_rows(), 5000);
    assert_eq!(fetch(&store, &"none".into()).await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// The end of a file says where all else is and how long, and which type holds which; the library takes it on trust.
#[test]
fn an_orc_file_that_would_end_the_process_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.orc");
    write_orc(&file, &sample().slice(0, 50));
    let whole = std::fs::read(&file).unwrap();
    let reasons = ["beyond its end", "its types are no tree"];
    let mut seen = [0; 2];
    for at in 0..whole.len() {
        // Lengths are written in groups of seven bits: these make them as long as can be, and join what follows to them.
        for byte in [0, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let in_memory = FileInput::Bytes { name: "t.orc".into(), bytes: bytes.clone().into() };
            let Err(error) = read(in_memory) else { continue };
            if let Some(reason) = reasons.iter().position(|reason| error.to_string().contains(reason)) {
                seen[reason] += 1;
                std::fs::write(&file, &bytes).unwrap();
                assert_eq!(read(path(&file)).unwrap_err().kind(), ErrorKind::Corrupt);
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Whatever happened to a file on its way, it is read, or it is an error.
    #[test]
    fn flipped_bytes_never_panic(orc: bool, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        use std::sync::OnceLock;
        static WHOLE: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
        let whole = WHOLE.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (dir.path().join("a"), dir.path().join("b"));
            write_parquet(&a, &sample().slice(0, 50));
            write_orc(&b, &sample().slice(0, 50));
            [std::fs::read(a).unwrap(), std::fs::read(b).unwrap()]
        });
        let mut bytes = whole[usize::from(orc)].clone();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let name = if orc { "x.orc" } else { "x.parquet" };
        let format = if orc { FileFormat::Orc } else { FileFormat::Parquet };
        let options = FileOptions { format: Some(format), ..FileOptions::default() };
        if let Ok(reader) = open(FileInput::Bytes { name: name.into(), bytes: bytes.into() }, &options) {
            for _ in reader.take(20) {}
        }
    }
}

#[tokio::test]
async fn files_and_objects_are_found_by_the_same_patterns() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = InMemory::new();
    for name in ["in/2026-01-01/a.csv", "in/2026-01-01/.b.csv.part", "in/2026-01-02/deep/x.csv", "in/ünï.txt", "done"]
    {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
        bucket.put(&object_store::path::Path::parse(name).unwrap(), "".into()).await.unwrap();
    }
    for (pattern, expected) in [
        ("done", true),
        ("in/2026-01-01/a.csv", true),
        ("in/2026-01-01/b.csv", false),
        ("in/2026-01-01/*.csv", true),
        ("in/2026-01-01/*.part", false),
        ("in/2026-01-01/.*.part", true),
        ("in/*/a.csv", true),
        ("in/*/x.csv", false),
        ("in/*/*/x.???", true),
        ("*/*/a.csv", true),
        ("in/2026-01-*/*.csv", true),
        ("in/2026-02-*/*.csv", false),
        ("in/?n?.txt", true),
        ("nowhere/*", false),
        ("done/*", false),
        // A folder is no file.
        ("in/*-02", false),
    ] {
        let local = find(dir.path(), pattern).unwrap_or_else(|error| panic!("{pattern}: {}", shown(&error)));
        assert_eq!(local.is_some(), expected, "{pattern}");
        let absolute = find(Path::new("/nowhere"), &dir.path().join(pattern).display().to_string()).unwrap();
        assert_eq!(absolute.is_some(), expected, "{pattern}");
        let object = find_object(&bucket, "s3://b", pattern).await.unwrap();
        assert_eq!(object.is_some(), expected, "{pattern}");
    }
    let folder = find(dir.path(), "in").unwrap_err();
    assert_eq!((folder.kind(), folder.is_retryable()), (ErrorKind::Invalid, false), "{}", shown(&folder));
    let wrong = find_object(&bucket, "s3://b/a//b", "a//b").await.unwrap_err();
    assert!(!wrong.is_retryable(), "{}", shown(&wrong));
}
