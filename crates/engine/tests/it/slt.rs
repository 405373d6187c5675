//! Runs `tests/slt/*.slt`: `query` or `query error TEXT`, the SQL, `----`, the rows with their values separated by one space.
//!
//! `grant USER TABLE` gives a user a table, with lines `only a, b`, `except a, b`, `from DS`, `to DS`, `rows CONDITION` under it
//! a part of one; `query as USER` asks as that user.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use headworks_domain::{Access, Columns, Grant, TablePattern};
use headworks_engine::{Caller, QueryOptions};

use crate::support::{Bench, bench};

/// The grants of a file's users.
type Users = HashMap<String, Vec<Grant>>;

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
        let mut users = Users::new();
        for record in text.split("\n\n") {
            if let Err(failure) = run(&bench, &mut users, record).await {
                failures.push(format!("{}: {failure}", file.file_name().unwrap().display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

async fn run(bench: &Bench, users: &mut Users, record: &str) -> Result<(), String> {
    let mut lines = record.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    let Some(head) = lines.next() else { return Ok(()) };
    let body: Vec<&str> = lines.collect();
    if let Some((user, table)) = head.strip_prefix("grant ").and_then(|rest| rest.split_once(' ')) {
        users.entry(user.to_owned()).or_default().push(grant(table, &body)?);
        return Ok(());
    }
    let (head, options) = match head.strip_prefix("query as ") {
        None => (head.to_owned(), QueryOptions::default()),
        Some(rest) => {
            let (user, rest) =
                rest.split_once(' ').map_or((rest, String::new()), |(user, rest)| (user, format!(" {rest}")));
            let grants = users.get(user).cloned().unwrap_or_default();
            let access = Arc::new(Access::granted(&user.parse().unwrap(), grants));
            (
                format!("query{rest}"),
                QueryOptions { caller: Caller { access, ..Caller::trusted(user) }, ..QueryOptions::default() },
            )
        }
    };
    let (sql, expected) = match body.iter().position(|l| *l == "----") {
        Some(at) => (body[..at].join("\n"), body[at + 1..].join("\n")),
        None => (body.join("\n"), String::new()),
    };
    let found = match bench.engine.rows(&sql, options).await {
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

fn grant(table: &str, lines: &[&str]) -> Result<Grant, String> {
    let mut grant = Grant::of(TablePattern::new(table));
    for line in lines {
        let (key, value) = line.split_once(' ').ok_or_else(|| format!("`{line}` says nothing"))?;
        let names = || value.split(", ").map(str::to_owned).collect();
        match key {
            "only" => grant.columns = Columns::Only(names()),
            "except" => grant.columns = Columns::Except(names()),
            "from" => grant.days.from = Some(value.parse().unwrap()),
            "to" => grant.days.to = Some(value.parse().unwrap()),
            "rows" => grant.rows = Some(value.to_owned()),
            other => return Err(format!("`{other}` is no part of a grant")),
        }
    }
    Ok(grant)
}
