//! Runs `tests/slt/*.slt`: `query` or `query error TEXT`, the SQL, `----`, the rows with their values separated by one space.

use std::{fs, path::Path};

use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::support::{Bench, bench};

#[tokio::test]
async fn sql_behaves_as_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/slt");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let bench = bench();
    let mut failures = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for record in text.split("\n\n") {
            if let Err(failure) = run(&bench, record).await {
                failures.push(format!("{}: {failure}", file.file_name().unwrap().display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

async fn run(bench: &Bench, record: &str) -> Result<(), String> {
    let mut lines = record.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    let Some(head) = lines.next() else { return Ok(()) };
    let body: Vec<&str> = lines.collect();
    let (sql, expected) = match body.iter().position(|l| *l == "----") {
        Some(at) => (body[..at].join("\n"), body[at + 1..].join("\n")),
        None => (body.join("\n"), String::new()),
    };
    let found = match bench.rows(&sql).await {
        Err(error) => Err(error.to_string()),
        Ok(batches) => {
            let options = FormatOptions::new().with_null("NULL").with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.f"));
            let mut rows = Vec::new();
            for batch in &batches {
                let columns: Vec<_> =
                    batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
                for row in 0..batch.num_rows() {
                    let values: Vec<String> = columns
                        .iter()
                        .map(|c| c.value(row).to_string())
                        .map(|v| if v.is_empty() { "(empty)".to_owned() } else { v })
                        .collect();
                    rows.push(values.join(" "));
                }
            }
            Ok(rows.join("\n"))
        }
    };
    match (head.strip_prefix("query error "), found) {
        (None, Ok(found)) if head == "query" && found == expected => Ok(()),
        (None, Ok(found)) => Err(format!("{head}\n{sql}\ngives\n{found}\ninstead of\n{expected}")),
        (None, Err(error)) => Err(format!("{sql}\nfails: {error}")),
        (Some(part), Err(error)) if error.contains(part) => Ok(()),
        (Some(part), found) => Err(format!("{sql}\ngives {found:?} instead of an error with `{part}`")),
    }
}
