//! The checks of a job, run on its staged result before it is published.
//!
//! The result is a table named `this` among the options' tables. Everything that one pass can count is counted in one
//! query, unless writing the result has counted it already; examples are looked for only when a check fails.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Int64Type, SchemaRef},
};
use datafusion::common::{ColumnStatistics, stats::Precision};
use futures::StreamExt;

use crate::{Engine, Error, QueryOptions, Result, output::row_text};

/// One thing that must hold for a result.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The name it is reported under.
    pub name: String,
    /// What must hold.
    pub kind: CheckKind,
    /// True when a failure keeps the result from being published; else it is a warning.
    pub block: bool,
}

/// What must hold.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// The column has no nulls.
    NotNull {
        /// The column.
        column: String,
    },
    /// No two rows have the same values; rows with a null among them do not count.
    Unique {
        /// The columns.
        columns: Vec<String>,
    },
    /// The column holds these values only; nulls do not count.
    AcceptedValues {
        /// The column.
        column: String,
        /// Texts, numbers and booleans.
        values: Vec<serde_json::Value>,
    },
    /// Each value of the column stands in a column of another table; nulls do not count.
    Relationships {
        /// The column.
        column: String,
        /// The other table, perhaps `<name>_latest`.
        table: String,
        /// The other table's column.
        to: String,
    },
    /// The result has so many rows.
    RowCount {
        /// The fewest.
        min: Option<u64>,
        /// The most.
        max: Option<u64>,
    },
    /// A query that gives one boolean: true when all is well. A null is a failure.
    Sql(String),
}

/// How one check went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The check's name.
    pub name: String,
    /// Whether a failure blocks.
    pub block: bool,
    /// Whether it holds.
    pub passed: bool,
    /// Rows that break it; for `Unique` those too many. None where rows cannot be told.
    pub bad_rows: Option<u64>,
    /// One line for people: what was found.
    pub message: String,
    /// At most five rows or values that break it.
    pub examples: Vec<String>,
}

/// How all checks of a result went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Rows of the result.
    pub rows: u64,
    /// One outcome per check, in their order.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// True when no check that blocks has failed.
    pub fn is_publishable(&self) -> bool {
        self.outcomes.iter().all(|o| o.passed || !o.block)
    }
}

/// Examples shown per failed check.
const EXAMPLES_MAX: usize = 5;
/// Characters of one example.
const EXAMPLE_CHARS_MAX: usize = 200;

/// Runs checks on the table `this` of the options.
///
/// A failed check is an outcome; an error means that a check could not run, as for a column that does not exist: `Check`
/// with the check's name, or what stopped the query.
pub async fn run(engine: &Engine, checks: &[Check], options: &QueryOptions) -> Result<Report> {
    let counted = match count(engine, checks, options, true).await {
        // Counting distinct values cannot spill; grouping by them can.
        Err(Error::Exhausted { .. }) => count(engine, checks, options, false).await,
        other => other,
    };
    let (rows, counts) = match counted {
        Ok(counted) => counted,
        Err(error) => return Err(blame(engine, checks, options, error).await),
    };
    let mut outcomes = Vec::with_capacity(checks.len());
    for (check, count) in checks.iter().zip(counts) {
        let outcome = one(engine, check, rows, count, options).await;
        outcomes.push(outcome.map_err(|source| named(check, source))?);
    }
    Ok(Report { rows, outcomes })
}

fn named(check: &Check, source: Error) -> Error {
    Error::Check { name: check.name.clone(), source: Box::new(source) }
}

/// Counts rows and, per check, the bad rows where one pass over the result can tell.
async fn count(
    engine: &Engine,
    checks: &[Check],
    options: &QueryOptions,
    distinct: bool,
) -> Result<(u64, Vec<Option<u64>>)> {
    let known = Known::of(options);
    let nulls: Vec<Option<u64>> = checks.iter().map(|c| known.as_ref()?.nulls(&c.kind)).collect();
    let asked =
        checks.iter().zip(&nulls).map(|(c, nulls)| if nulls.is_some() { None } else { counting(&c.kind, distinct) });
    let expressions: Vec<Option<String>> = asked.collect();
    if let Some(known) = known
        && expressions.iter().all(Option::is_none)
    {
        return Ok((known.rows, nulls));
    }
    let mut sql = "select count(*)".to_owned();
    for expression in expressions.iter().flatten() {
        sql.push_str(", ");
        sql.push_str(expression);
    }
    sql.push_str(" from this");
    let batch = single(engine, &sql, options).await?;
    let mut columns = batch.columns().iter().map(|c| number(c));
    let rows = columns.next().flatten().unwrap_or(0);
    let counted = expressions.iter().map(|e| e.as_ref().and_then(|_| columns.next().flatten()));
    Ok((rows, counted.zip(nulls).map(|(counted, nulls)| counted.or(nulls)).collect()))
}

/// What is known of `this` without reading it.
struct Known {
    rows: u64,
    schema: SchemaRef,
    columns: Vec<ColumnStatistics>,
}

impl Known {
    fn of(options: &QueryOptions) -> Option<Self> {
        let this = options.tables.get("this")?;
        let statistics = this.statistics()?;
        let rows = exact(&statistics.num_rows)?;
        Some(Self { rows, schema: this.schema(), columns: statistics.column_statistics })
    }

    /// The nulls that a check forbids.
    fn nulls(&self, kind: &CheckKind) -> Option<u64> {
        let CheckKind::NotNull { column } = kind else { return None };
        exact(&self.columns.get(self.schema.index_of(column).ok()?)?.null_count)
    }
}

fn exact(count: &Precision<usize>) -> Option<u64> {
    match count {
        Precision::Exact(count) => u64::try_from(*count).ok(),
        _ => None,
    }
}

/// Finds the check whose expression made the common query fail.
async fn blame(engine: &Engine, checks: &[Check], options: &QueryOptions, error: Error) -> Error {
    if !matches!(error, Error::Plan { .. } | Error::Data { .. } | Error::Syntax { .. }) {
        return error;
    }
    for check in checks {
        if let Err(source) = count(engine, std::slice::from_ref(check), options, true).await {
            return named(check, source);
        }
    }
    error
}

/// An aggregate over `this` that counts the rows that break a check, where one can.
fn counting(kind: &CheckKind, distinct: bool) -> Option<String> {
    match kind {
        CheckKind::NotNull { .. } | CheckKind::AcceptedValues { .. } => {
            bad(kind).map(|bad| format!("count(*) filter (where {bad})"))
        }
        CheckKind::Unique { columns } if distinct && columns.len() == 1 => {
            let column = quoted(&columns[0]);
            Some(format!("count({column}) - count(distinct {column})"))
        }
        _ => None,
    }
}

/// The condition of a bad row, where a row alone can be bad.
fn bad(kind: &CheckKind) -> Option<String> {
    match kind {
        CheckKind::NotNull { column } => Some(format!("{} is null", quoted(column))),
        CheckKind::AcceptedValues { column, values } => {
            let column = quoted(column);
            let values: Vec<String> = values.iter().filter(|v| !v.is_null()).map(literal).collect();
            Some(match values.is_empty() {
                true => format!("{column} is not null"),
                false => format!("{column} is not null and {column} not in ({})", values.join(", ")),
            })
        }
        CheckKind::Relationships { column, table, to } => {
            let (column, table, to) = (quoted(column), quoted(table), quoted(to));
            Some(format!(
                "this.{column} is not null and not exists (select 1 from {table} as other where other.{to} = this.{column})"
            ))
        }
        _ => None,
    }
}

/// Finishes one check with what the common pass has counted.
async fn one(engine: &Engine, check: &Check, rows: u64, count: Option<u64>, options: &QueryOptions) -> Result<Outcome> {
    let outcome = |passed, bad_rows, message, examples| Outcome {
        name: check.name.clone(),
        block: check.block,
        passed,
        bad_rows,
        message,
        examples,
    };
    let (bad_rows, what, examples_sql) = match &check.kind {
        CheckKind::RowCount { min, max } => {
            let passed = min.is_none_or(|m| rows >= m) && max.is_none_or(|m| rows <= m);
            let wanted = match (min, max) {
                (Some(min), Some(max)) => format!("{min} to {max}"),
                (Some(min), None) => format!("at least {min}"),
                (None, Some(max)) => format!("at most {max}"),
                (None, None) => "any number".to_owned(),
            };
            return Ok(outcome(passed, None, format!("{rows} rows, {wanted} wanted"), Vec::new()));
        }
        CheckKind::Sql(sql) => {
            let (passed, message) = verdict(engine, sql, options).await?;
            return Ok(outcome(passed, None, message, Vec::new()));
        }
        CheckKind::NotNull { column } => {
            let bad = bad(&check.kind).unwrap_or_default();
            let sql = format!("select * from this where {bad} limit {EXAMPLES_MAX}");
            (count.unwrap_or(0), format!("`{column}` is null"), sql)
        }
        CheckKind::AcceptedValues { column, .. } => {
            let bad = bad(&check.kind).unwrap_or_default();
            (count.unwrap_or(0), format!("`{column}` has other values"), grouped(&quoted(column), &bad, ""))
        }
        CheckKind::Relationships { column, table, to } => {
            let bad = bad(&check.kind).unwrap_or_default();
            let batch = single(engine, &format!("select count(*) from this where {bad}"), options).await?;
            let bad_rows = batch.columns().first().and_then(|c| number(c)).unwrap_or(0);
            (bad_rows, format!("`{column}` is not in `{table}.{to}`"), grouped(&quoted(column), &bad, ""))
        }
        CheckKind::Unique { columns } => {
            let list = columns.iter().map(|c| quoted(c)).collect::<Vec<_>>().join(", ");
            let filled = columns.iter().map(|c| format!("{} is not null", quoted(c))).collect::<Vec<_>>().join(" and ");
            let bad_rows = match count {
                Some(count) => count,
                None => {
                    let sql = format!(
                        "select coalesce(sum(n) - count(*), 0) from \
                         (select count(*) as n from this where {filled} group by {list} having count(*) > 1) as d"
                    );
                    single(engine, &sql, options).await?.columns().first().and_then(|c| number(c)).unwrap_or(0)
                }
            };
            let what = format!("`{}` repeats", columns.join("`, `"));
            (bad_rows, what, grouped(&list, &filled, " having count(*) > 1"))
        }
    };
    if bad_rows == 0 {
        return Ok(outcome(true, Some(0), "holds".to_owned(), Vec::new()));
    }
    let examples = examples(engine, &examples_sql, options).await?;
    let noun = if bad_rows == 1 { "row" } else { "rows" };
    Ok(outcome(false, Some(bad_rows), format!("{what} in {bad_rows} {noun} of {rows}"), examples))
}

/// The most frequent bad values with their number of rows.
fn grouped(columns: &str, bad: &str, having: &str) -> String {
    format!(
        "select {columns}, count(*) as \"\u{1}rows\" from this where {bad} group by {columns}{having} \
         order by count(*) desc, {columns} limit {EXAMPLES_MAX}"
    )
}

async fn examples(engine: &Engine, sql: &str, options: &QueryOptions) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for batch in engine.rows(sql, options.clone()).await? {
        let width = batch.num_columns();
        let counts = batch.column_by_name("\u{1}rows").and_then(|c| c.as_primitive_opt::<Int64Type>().cloned());
        for row in 0..batch.num_rows() {
            texts.push(match &counts {
                Some(counts) => {
                    let text = row_text(&batch, row, width - 1, EXAMPLE_CHARS_MAX);
                    let n = counts.value(row);
                    format!("{text} ({n} {})", if n == 1 { "row" } else { "rows" })
                }
                None => row_text(&batch, row, width, EXAMPLE_CHARS_MAX),
            });
        }
    }
    Ok(texts)
}

/// Runs a check's own query, which must give one boolean.
async fn verdict(engine: &Engine, sql: &str, options: &QueryOptions) -> Result<(bool, String)> {
    let shape = |what: String| Error::Plan {
        message: format!("it gives {what} where one boolean is needed"),
        position: None,
        hint: Some("write it as `select count(*) > 0 from this`".to_owned()),
    };
    let mut stream = engine.query(sql, options.clone()).await?;
    let schema = stream.schema();
    if schema.fields().len() != 1 {
        return Err(shape(format!("{} columns", schema.fields().len())));
    }
    if !matches!(schema.field(0).data_type(), DataType::Boolean | DataType::Null) {
        return Err(shape(format!("a {}", crate::sql_type_name(schema.field(0).data_type()))));
    }
    let mut found: Option<Option<bool>> = None;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if found.is_some() || batch.num_rows() > 1 {
            return Err(shape("more than one row".to_owned()));
        }
        if batch.num_rows() == 1 {
            found = Some(batch.column(0).as_boolean_opt().filter(|c| c.is_valid(0)).map(|c| c.value(0)));
        }
    }
    match found {
        None => Err(shape("no row".to_owned())),
        Some(Some(true)) => Ok((true, "holds".to_owned())),
        Some(Some(false)) => Ok((false, "is false".to_owned())),
        Some(None) => Ok((false, "is null".to_owned())),
    }
}

async fn single(engine: &Engine, sql: &str, options: &QueryOptions) -> Result<RecordBatch> {
    let batches = engine.rows(sql, options.clone()).await?;
    batches
        .into_iter()
        .find(|b| b.num_rows() == 1)
        .ok_or_else(|| Error::Internal { message: format!("no row from `{sql}`") })
}

fn number(column: &dyn Array) -> Option<u64> {
    let column = arrow::compute::cast(column, &DataType::Int64).ok()?;
    let column = column.as_primitive_opt::<Int64Type>()?;
    (!column.is_empty() && column.is_valid(0)).then(|| u64::try_from(column.value(0)).unwrap_or(0))
}

/// A name in double quotes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value of a job's header as an SQL literal.
fn literal(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "null".to_owned(),
        serde_json::Value::Bool(b) => b.to_string(),
        serde_json::Value::Number(n) => n.to_string(),
        serde_json::Value::String(s) => format!("'{}'", s.replace('\'', "''")),
        other => format!("'{}'", other.to_string().replace('\'', "''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted() {
        let kind = CheckKind::AcceptedValues {
            column: "a\"b".to_owned(),
            values: vec!["it's".into(), 3.into(), true.into(), serde_json::Value::Null],
        };
        assert_eq!(bad(&kind).unwrap(), "\"a\"\"b\" is not null and \"a\"\"b\" not in ('it''s', 3, true)");
    }
}
