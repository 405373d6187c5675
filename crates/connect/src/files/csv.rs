//! CSV, in two passes: one finds the types, one reads.

use std::{io::Read, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    csv::{ReaderBuilder, reader::Format},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::{CsvOptions, FileFormat, FileInput, FileReader, corrupt};
use crate::{
    column::Column,
    error::{Error, Result},
    parse, types,
};

/// Opens a file and finds its columns' types. The first pass reads all of it, batch by batch.
pub(super) fn open(input: FileInput, name: String, rows_max: usize, options: &CsvOptions) -> Result<FileReader> {
    let options = &CsvOptions { delimiter: Some(delimiter(&input, options)?), ..options.clone() };
    let names = header(&input, &name, options)?;
    let texts: SchemaRef =
        Arc::new(Schema::new(names.iter().map(|n| Field::new(n, DataType::Utf8, true)).collect::<Vec<_>>()));
    let schema = if options.all_text { texts.clone() } else { infer(&input, &name, &texts, rows_max, options)? };
    let batches = Batches {
        reader: reader(&input, &texts, rows_max, options)?,
        name,
        schema: schema.clone(),
        options: options.clone(),
        row: 0,
        ended: false,
    };
    Ok(FileReader { schema, format: FileFormat::Csv, batches: Box::new(batches) })
}

type Bytes = Box<dyn Read + Send>;
type Rows = arrow::csv::Reader<Bytes>;

/// The bytes without the mark that some programs put before UTF-8.
fn bytes(input: &FileInput) -> Result<Bytes> {
    let failed = |source| Error::FileRead { file: input.name(), source };
    let mut raw = input.reader()?;
    let mut start = Vec::new();
    raw.by_ref().take(3).read_to_end(&mut start).map_err(failed)?;
    if start == b"\xef\xbb\xbf" {
        start.clear();
    }
    Ok(Box::new(std::io::Cursor::new(start).chain(raw)))
}

fn format(options: &CsvOptions) -> Format {
    Format::default().with_delimiter(options.delimiter.unwrap_or(b',')).with_quote(options.quote)
}

/// The most bytes of a first line that are looked at for its delimiter.
const FIRST_LINE_BYTES_MAX: u64 = 64 * 1024;

/// The delimiter that the options name, or the one that the first line has most of outside quotes.
fn delimiter(input: &FileInput, options: &CsvOptions) -> Result<u8> {
    if let Some(delimiter) = options.delimiter {
        return Ok(delimiter);
    }
    let mut start = Vec::new();
    let read = bytes(input)?.take(FIRST_LINE_BYTES_MAX).read_to_end(&mut start);
    read.map_err(|source| Error::FileRead { file: input.name(), source })?;
    // Later ones win only by more.
    let mut counts = [(b',', 0), (b'\t', 0), (b';', 0), (b'|', 0)];
    let mut is_quoted = false;
    for byte in start {
        match byte {
            b'\n' if !is_quoted => break,
            quote if quote == options.quote => is_quoted = !is_quoted,
            other if !is_quoted => counts.iter_mut().filter(|(d, _)| *d == other).for_each(|(_, n)| *n += 1),
            _ => {}
        }
    }
    let mut best = counts[0];
    for other in counts {
        if other.1 > best.1 {
            best = other;
        }
    }
    Ok(best.0)
}

fn reader(input: &FileInput, schema: &SchemaRef, rows_max: usize, options: &CsvOptions) -> Result<Rows> {
    let bytes = bytes(input)?;
    ReaderBuilder::new(schema.clone())
        .with_format(format(options).with_header(options.header))
        .with_batch_size(rows_max)
        .build(bytes)
        .map_err(|e| corrupt(&input.name(), "CSV")(e.to_string()))
}

/// The columns' names, each once.
fn header(input: &FileInput, name: &str, options: &CsvOptions) -> Result<Vec<String>> {
    let found = format(options).with_header(options.header).infer_schema(bytes(input)?, Some(1));
    let (schema, _) = found.map_err(|e| corrupt(name, "CSV")(e.to_string()))?;
    if schema.fields().is_empty() {
        return Err(corrupt(name, "CSV")("it has no columns".to_owned()));
    }
    let mut names: Vec<String> = Vec::new();
    for field in schema.fields() {
        let base = if field.name().trim().is_empty() { "_" } else { field.name().as_str() };
        let mut unique = base.to_owned();
        let mut number = 2;
        while names.iter().any(|n| n.eq_ignore_ascii_case(&unique)) {
            unique = format!("{base}_{number}");
            number += 1;
        }
        names.push(unique);
    }
    Ok(names)
}

/// The types that a column may still have, given the values so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidates {
    any: bool,
    boolean: bool,
    integer: bool,
    float: bool,
    date: bool,
    timestamp: bool,
    timestamptz: bool,
}

impl Candidates {
    const ALL: Self =
        Self { any: false, boolean: true, integer: true, float: true, date: true, timestamp: true, timestamptz: true };

    fn narrow(&mut self, text: &str) {
        self.any = true;
        self.boolean &= matches!(text, "true" | "false" | "True" | "False" | "TRUE" | "FALSE");
        self.integer &= is_integer(text) && text.parse::<i64>().is_ok();
        self.float &= is_float(text);
        // Most columns have lost these at their first value.
        if self.date || self.timestamp || self.timestamptz {
            let time = parse::timestamp(text);
            self.date &= text.len() == 10 && time.is_some();
            self.timestamp &= time.is_some_and(|t| t.offset_secs.is_none());
            self.timestamptz &= time.is_some_and(|t| t.offset_secs.is_some());
        }
    }

    fn chosen(self) -> DataType {
        match self {
            Self { any: false, .. } => DataType::Utf8,
            Self { boolean: true, .. } => DataType::Boolean,
            Self { integer: true, .. } => DataType::Int64,
            Self { float: true, .. } => DataType::Float64,
            Self { date: true, .. } => DataType::Date32,
            Self { timestamp: true, .. } => types::TIMESTAMP,
            Self { timestamptz: true, .. } => types::timestamptz(),
            _ => DataType::Utf8,
        }
    }
}

/// True for whole numbers as numbers are written: `007` and `+1` are codes.
fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    match digits.as_bytes() {
        [b'0'] => !text.starts_with('-'),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// True for numbers that a double gives back as they are: at most 17 digits, none of them a leading zero.
fn is_float(text: &str) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    let plain = digits == "0" || is_integer(digits);
    let significant = digits.len() + part.len();
    // A whole number beyond 15 digits would be rounded, unless it was written by a program that writes doubles.
    let exact = if part.is_empty() && mantissa == text {
        significant <= 15
    } else {
        significant <= 17 || part.len() <= 17 && digits == "0"
    };
    plain && exact && parse::float(text).is_some_and(f64::is_finite)
}

fn infer(input: &FileInput, name: &str, texts: &SchemaRef, rows_max: usize, options: &CsvOptions) -> Result<SchemaRef> {
    let mut candidates = vec![Candidates::ALL; texts.fields().len()];
    for batch in reader(input, texts, rows_max, options)? {
        let batch = batch.map_err(|e| corrupt(name, "CSV")(e.to_string()))?;
        for (array, candidates) in batch.columns().iter().zip(&mut candidates) {
            for text in array.as_string::<i32>().iter().flatten().filter(|t| !is_null(t, options)) {
                candidates.narrow(text);
            }
        }
    }
    let fields: Vec<_> =
        texts.fields().iter().zip(candidates).map(|(f, c)| Field::new(f.name(), c.chosen(), true)).collect();
    Ok(Arc::new(Schema::new(fields)))
}

fn is_null(text: &str, options: &CsvOptions) -> bool {
    options.nulls.iter().any(|n| n == text)
}

struct Batches {
    reader: Rows,
    name: String,
    schema: SchemaRef,
    options: CsvOptions,
    row: u64,
    ended: bool,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let batch = self.reader.next()?;
        let converted = batch.map_err(|e| e.to_string()).and_then(|batch| self.convert(&batch));
        self.ended = converted.is_err();
        Some(converted.map_err(corrupt(&self.name, "CSV")))
    }
}

impl Batches {
    fn convert(&mut self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (array, field) in batch.columns().iter().zip(self.schema.fields()) {
            let texts = array.as_string::<i32>();
            let mut column = Column::new(field.data_type()).ok_or("a type that no CSV has")?;
            for n in 0..texts.len() {
                // An empty text is null to the reader below, and to us only if the options say so.
                let text = if texts.is_null(n) { "" } else { texts.value(n) };
                if is_null(text, &self.options) {
                    column.null();
                } else {
                    column.text(text).map_err(|misfit| {
                        format!("column `{}` has {} in row {}", field.name(), misfit.reason, self.row + n as u64 + 1)
                    })?;
                }
            }
            columns.push(column.finish().map_err(|e| e.to_string())?);
        }
        self.row += batch.num_rows() as u64;
        RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, options: &CsvOptions, expected: &[(&str, &str)]) {
        let input = FileInput::Bytes { name: "t.csv".into(), bytes: text.to_owned().into() };
        let reader = open(input, "t.csv".into(), 2, options).unwrap();
        let got: Vec<_> =
            reader.schema.fields().iter().map(|f| (f.name().clone(), types::name(f.data_type()))).collect();
        let got: Vec<_> = got.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        assert_eq!(got, expected);
        for batch in reader {
            batch.unwrap();
        }
    }

    #[test]
    fn the_whole_file_decides_the_types() {
        let plain = CsvOptions::default();
        check("a,b\n1,x\n2,y\n3.5,z\n", &plain, &[("a", "double"), ("b", "varchar")]);
        check("zip,n\n00501,1\n10001,\n", &plain, &[("zip", "varchar"), ("n", "bigint")]);
        check(
            "d,t,z\n2013-01-01,2013-01-01 05:00,2013-01-01T05:00:00Z\n",
            &plain,
            &[("d", "date"), ("t", "timestamp"), ("z", "timestamptz")],
        );
        check(
            "\u{feff}a,a,\ntrue,99999999999999999999,\n",
            &plain,
            &[("a", "boolean"), ("a_2", "varchar"), ("_", "varchar")],
        );
        check("a\nNA\n1\n", &CsvOptions { nulls: vec!["NA".into()], ..plain.clone() }, &[("a", "bigint")]);
        check(
            "1;2\n",
            &CsvOptions { delimiter: Some(b';'), header: false, ..plain.clone() },
            &[("column_1", "bigint"), ("column_2", "bigint")],
        );
        check("a\tb\n1\t\"x,y,z\"\n", &plain, &[("a", "bigint"), ("b", "varchar")]);
        check("\"a,b,c\";d\n1,5;2\n", &plain, &[("a,b,c", "varchar"), ("d", "bigint")]);
        check("a;b\n", &CsvOptions { delimiter: Some(b','), ..plain.clone() }, &[("a;b", "varchar")]);
        check("a\n1\n", &CsvOptions { all_text: true, ..plain.clone() }, &[("a", "varchar")]);
        check("a,b\n", &plain, &[("a", "varchar"), ("b", "varchar")]);
    }

    #[test]
    fn numbers_that_would_change_are_text() {
        for (text, integer, float) in [
            ("0", true, true),
            ("-12", true, true),
            ("007", false, false),
            ("+1", false, false),
            ("-0", false, true),
            ("0.1", false, true),
            ("0.30000000000000004", false, true),
            ("1e5", false, true),
            ("1234567890123456", true, false),
            ("3.14159265358979323846", false, false),
            ("inf", false, false),
            ("NaN", false, false),
            ("1e999", false, false),
            ("", false, false),
            (".5", false, false),
        ] {
            assert_eq!((is_integer(text), is_float(text)), (integer, float), "{text}");
        }
    }
}
