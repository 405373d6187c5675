use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, MapArray},
    compute::cast,
    datatypes::{DataType, FieldRef, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimestampNanosecondType},
};
use datafusion::{
    common::{ScalarValue, resources_err},
    error::{DataFusionError, Result},
    logical_expr::{
        ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
        simplify::{ExprSimplifyResult, SimplifyContext},
    },
};

use super::ValueLimits;
use crate::error::FIXED_LIMIT;

/// Gives at most how many bytes a function's value of one row has; null counts as nothing.
pub(super) type Grows = fn(&[Arg], usize) -> usize;

/// Functions whose values may be much larger than what they are made from.
pub(super) const GROWING: &[(&str, Grows)] = &[
    ("repeat", |a, row| size(a, 0, row).saturating_mul(count(a, 1, row))),
    ("lpad", padded),
    ("rpad", padded),
    ("replace", |a, row| {
        let (text, from, to) = (size(a, 0, row), size(a, 1, row), size(a, 2, row));
        (text / from.max(1) + 1).saturating_mul(to).saturating_add(text)
    }),
    ("regexp_replace", |a, row| {
        // Each place between two letters may match; what groups caught adds up to the text for each time they are named.
        let (text, to) = (size(a, 0, row), size(a, 2, row));
        (text + 1).saturating_mul(to).saturating_add(text.saturating_mul(1 + to / 2))
    }),
    ("regexp_like", small),
    ("regexp_count", small),
    ("regexp_instr", small),
    ("regexp_match", |a, row| size(a, 0, row).saturating_mul(2)),
    // A match of nothing is an item of four bytes, and there is one more than letters.
    ("regexp_extract_all", |a, row| size(a, 0, row).saturating_add(1).saturating_mul(5)),
    ("regexp_split_to_array", |a, row| size(a, 0, row).saturating_add(1).saturating_mul(5)),
    ("json_array_elements", items_of_text),
    ("json_array_elements_text", items_of_text),
    ("json_object_keys", items_of_text),
    ("quote_ident", |a, row| size(a, 0, row).saturating_mul(2)),
    ("quote_literal", |a, row| size(a, 0, row).saturating_mul(2)),
    ("quote_nullable", |a, row| size(a, 0, row).saturating_mul(2)),
    // The longest for its pattern is `%+`, a time with its date and zone.
    ("to_char", |a, row| size(a, 1, row).saturating_mul(18)),
    ("date_format", |a, row| size(a, 1, row).saturating_mul(18)),
    ("map_of_counts", |a, row| size(a, 0, row).saturating_add(items(a, 0, row).saturating_mul(12))),
    ("concat", sum),
    ("concat_ws", |a, row| sum(a, row).saturating_add(size(a, 0, row).saturating_mul(a.len()))),
    ("||", sum),
    ("overlay", sum),
    ("encode", |a, row| size(a, 0, row).saturating_mul(2)),
    ("translate", |a, row| size(a, 0, row).saturating_mul(4)),
    // It makes a number, by a step for each two letters: no more of them than a value may have bytes. Nothing stops it.
    ("levenshtein", |a, row| size(a, 0, row).saturating_mul(size(a, 1, row))),
    ("string_to_array", items_of_text),
    ("array_repeat", |a, row| (size(a, 0, row) + 8).saturating_mul(count(a, 1, row))),
    ("array_resize", |a, row| (size(a, 2, row) + 8).saturating_mul(count(a, 1, row)).saturating_add(size(a, 0, row))),
    ("array_to_string", |a, row| {
        let separators = size(a, 1, row).saturating_add(size(a, 2, row)).saturating_add(24);
        items(a, 0, row).saturating_mul(separators).saturating_add(size(a, 0, row))
    }),
    ("array_concat", sum),
    ("array_append", sum),
    ("array_prepend", sum),
    ("make_array", sum),
    ("struct", sum),
    ("named_struct", sum),
    ("map", sum),
    ("range", stepped),
    ("generate_series", stepped),
];

/// Patterns that a batch may have: each is compiled, which takes milliseconds and up to megabytes.
const PATTERNS_MAX: usize = 100;

/// Bytes of a pattern: compiling `(?i)\pL` takes a millisecond for each `\pL`, and cannot be stopped.
const PATTERN_BYTES_MAX: usize = 1 << 10;

fn small(_: &[Arg], _: usize) -> usize {
    0
}

fn sum(args: &[Arg], row: usize) -> usize {
    (0..args.len()).fold(0, |sum, index| sum.saturating_add(size(args, index, row)))
}

/// The parts of a text: one of one letter has an offset of four bytes besides.
pub(super) fn items_of_text(args: &[Arg], row: usize) -> usize {
    size(args, 0, row).saturating_mul(5)
}

fn padded(args: &[Arg], row: usize) -> usize {
    // A length counts letters, of up to four bytes.
    let widest = size(args, 2, row).clamp(1, 4);
    count(args, 1, row).saturating_mul(widest).saturating_add(size(args, 0, row))
}

/// Values from one number or time to another, eight bytes each.
fn stepped(args: &[Arg], row: usize) -> usize {
    let whole = |index: usize| args.get(index).and_then(|arg| arg.whole(row));
    let (from, to) = match args {
        [_] => (Some(0), whole(0)),
        _ => (whole(0), whole(1)),
    };
    let step = whole(2).unwrap_or(1);
    let (Some(from), Some(to)) = (from, to) else { return 0 };
    let steps = (to - from).unsigned_abs() / step.unsigned_abs().max(1);
    usize::try_from(steps.saturating_add(1).saturating_mul(8)).unwrap_or(usize::MAX)
}

fn size(args: &[Arg], index: usize, row: usize) -> usize {
    args.get(index).map_or(0, |arg| arg.size(row))
}

fn count(args: &[Arg], index: usize, row: usize) -> usize {
    let count = args.get(index).and_then(|arg| arg.whole(row)).unwrap_or(0);
    usize::try_from(count.max(0)).unwrap_or(usize::MAX)
}

fn items(args: &[Arg], index: usize, row: usize) -> usize {
    args.get(index).map_or(0, |arg| arg.items(row))
}

/// An argument: one value for all rows, or one for each.
pub(super) struct Arg {
    values: ArrayRef,
    is_scalar: bool,
    /// What a number, time or interval means, once for all rows.
    numbers: Option<Numbers>,
}

enum Numbers {
    Whole(Int64Array),
    /// Nanoseconds.
    Times(arrow::array::TimestampNanosecondArray),
    Intervals(arrow::array::IntervalMonthDayNanoArray),
}

impl Arg {
    fn new(value: &ColumnarValue) -> Result<Self> {
        let (values, is_scalar) = match value {
            ColumnarValue::Array(values) => (Arc::clone(values), false),
            ColumnarValue::Scalar(value) => (value.to_array_of_size(1)?, true),
        };
        let numbers = match values.data_type() {
            number if number.is_numeric() => {
                Some(Numbers::Whole(cast(&values, &DataType::Int64)?.as_primitive::<Int64Type>().clone()))
            }
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => {
                let nanoseconds = DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None);
                cast(&values, &nanoseconds)
                    .ok()
                    .map(|times| Numbers::Times(times.as_primitive::<TimestampNanosecondType>().clone()))
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => {
                Some(Numbers::Intervals(values.as_primitive::<IntervalMonthDayNanoType>().clone()))
            }
            _ => None,
        };
        Ok(Self { values, is_scalar, numbers })
    }

    fn row(&self, row: usize) -> usize {
        if self.is_scalar { 0 } else { row }
    }

    /// A number; a time or interval in nanoseconds, months at their shortest.
    fn whole(&self, row: usize) -> Option<i128> {
        let row = self.row(row);
        match self.numbers.as_ref()? {
            Numbers::Whole(numbers) => numbers.is_valid(row).then(|| numbers.value(row).into()),
            Numbers::Times(times) => times.is_valid(row).then(|| times.value(row).into()),
            Numbers::Intervals(intervals) => intervals.is_valid(row).then(|| {
                let interval = intervals.value(row);
                let days = i128::from(interval.months) * 28 + i128::from(interval.days);
                days * 86_400_000_000_000 + i128::from(interval.nanoseconds)
            }),
        }
    }

    fn size(&self, row: usize) -> usize {
        value_bytes(&self.values, self.row(row))
    }

    fn items(&self, row: usize) -> usize {
        let row = self.row(row);
        match self.values.data_type() {
            DataType::List(_) if self.values.is_valid(row) => self.values.as_list::<i32>().value(row).len(),
            DataType::LargeList(_) if self.values.is_valid(row) => self.values.as_list::<i64>().value(row).len(),
            DataType::FixedSizeList(_, length) => usize::try_from(*length).unwrap_or(0),
            _ => 0,
        }
    }
}

/// Bytes of one value, those of its parts counted.
fn value_bytes(values: &ArrayRef, row: usize) -> usize {
    if values.is_null(row) { 0 } else { span_bytes(values, row, 1) }
}

/// Bytes of some values that follow each other. Lists are looked at whole: one by one there may be millions.
fn span_bytes(values: &ArrayRef, start: usize, count: usize) -> usize {
    let end = start + count;
    let part = |offsets: &[i32]| (offsets[start] as usize, (offsets[end] - offsets[start]) as usize);
    let large = |offsets: &[i64]| (offsets[start] as usize, (offsets[end] - offsets[start]) as usize);
    let lists = |items: &ArrayRef, (start, count)| count_bytes(items, start, count);
    match values.data_type() {
        DataType::Utf8 => part(values.as_string::<i32>().value_offsets()).1,
        DataType::LargeUtf8 => large(values.as_string::<i64>().value_offsets()).1,
        DataType::Binary => part(values.as_binary::<i32>().value_offsets()).1,
        DataType::LargeBinary => large(values.as_binary::<i64>().value_offsets()).1,
        DataType::Utf8View => (start..end).map(|row| values.as_string_view().value(row).len()).sum(),
        DataType::BinaryView => (start..end).map(|row| values.as_binary_view().value(row).len()).sum(),
        DataType::List(_) => {
            let list = values.as_list::<i32>();
            lists(list.values(), part(list.value_offsets()))
        }
        DataType::LargeList(_) => {
            let list = values.as_list::<i64>();
            lists(list.values(), large(list.value_offsets()))
        }
        DataType::FixedSizeList(_, length) => {
            let length = usize::try_from(*length).unwrap_or(0);
            count_bytes(values.as_fixed_size_list().values(), start * length, count * length)
        }
        DataType::Struct(_) => values.as_struct().columns().iter().map(|column| span_bytes(column, start, count)).sum(),
        DataType::Map(..) => {
            let map: &MapArray = values.as_map();
            let (start, count) = part(map.value_offsets());
            count_bytes(map.keys(), start, count) + count_bytes(map.values(), start, count)
        }
        other => other.primitive_width().unwrap_or(1).saturating_mul(count),
    }
}

/// The same with an offset for each.
fn count_bytes(items: &ArrayRef, start: usize, count: usize) -> usize {
    let offsets = if items.data_type().is_primitive() { 0 } else { 4 * count };
    span_bytes(items, start, count).saturating_add(offsets)
}

/// Functions that look for the groups of a pattern, which takes a step for each letter of the text, each part of the pattern and
/// each group; to find a match alone takes one for each letter.
const READING_GROUPS: [&str; 4] = ["regexp_extract_all", "regexp_instr", "regexp_match", "regexp_replace"];

/// Steps in one text, less than a second: nothing stops them.
const GROUP_STEPS_MAX: usize = 4_000_000_000;

/// Errors: `ResourcesExhausted` when the groups of a pattern take too long to find in a text.
fn check_groups(function: &str, args: &[ColumnarValue], given: &[Arg], rows: usize) -> Result<()> {
    let (Some(pattern), Some(text)) = (args.get(1), given.first()) else { return Ok(()) };
    let patterns = cast(&pattern.to_array(if given[1].is_scalar { 1 } else { rows })?, &DataType::Utf8View)?;
    let patterns = patterns.as_string_view();
    let rows = if given[1].is_scalar && text.is_scalar { 1 } else { rows };
    for row in 0..rows {
        let pattern = patterns.value(given[1].row(row));
        let groups = pattern.bytes().filter(|letter| *letter == b'(').count();
        let bytes = text.size(row);
        if bytes.saturating_mul(pattern.len()).saturating_mul(groups) > GROUP_STEPS_MAX {
            let length = pattern.len();
            return resources_err!(
                "`{function}` would look for {groups} groups of a pattern of {length} bytes in a text of {bytes} bytes, \
                 {GROUP_STEPS_MAX} steps {FIXED_LIMIT}"
            );
        }
    }
    Ok(())
}

/// Errors: `ResourcesExhausted` for a regular expression that is too long.
pub(crate) fn check_pattern(pattern: &ScalarValue) -> Result<()> {
    let bytes = pattern.try_as_str().flatten().map_or(0, str::len);
    if bytes <= PATTERN_BYTES_MAX {
        return Ok(());
    }
    resources_err!("a pattern has {bytes} bytes, {PATTERN_BYTES_MAX} {FIXED_LIMIT}")
}

thread_local! {
    /// Hashes of the functions and patterns that the pieces of a batch had so far, while there are pieces.
    static PIECES: RefCell<Option<HashMap<String, HashSet<u64>>>> = const { RefCell::new(None) };
}

/// Until it goes away, what this thread evaluates are pieces of one batch: their patterns count together.
pub(crate) struct Pieces {
    /// False inside others, which these are pieces of.
    is_outermost: bool,
}

impl Pieces {
    pub(crate) fn begin() -> Self {
        let is_outermost = PIECES.with_borrow(Option::is_none);
        if is_outermost {
            PIECES.set(Some(HashMap::new()));
        }
        Self { is_outermost }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if self.is_outermost {
            PIECES.set(None);
        }
    }
}

/// Which argument has the flags of a function's pattern.
fn flags_at(function: &str) -> usize {
    match function {
        "regexp_replace" | "regexp_count" => 3,
        "regexp_instr" => 4,
        _ => 2,
    }
}

/// Errors: `ResourcesExhausted` for a regular expression that is too long, or one in nearly every row. With other flags it
/// is another one.
fn check_patterns(function: &str, args: &[ColumnarValue], rows: usize) -> Result<()> {
    let Some(pattern) = args.get(1).filter(|_| function.starts_with("regexp_")) else { return Ok(()) };
    let flags = args.get(flags_at(function)).filter(|_| function != "regexp_extract_all");
    if let ColumnarValue::Scalar(pattern) = pattern {
        check_pattern(pattern)?;
        if !matches!(flags, Some(ColumnarValue::Array(_))) {
            return Ok(());
        }
    }
    let texts = |given: &ColumnarValue| Ok::<_, DataFusionError>(cast(&given.to_array(rows)?, &DataType::Utf8View)?);
    let (patterns, flags) = (texts(pattern)?, flags.map(texts).transpose()?);
    let (patterns, flags) = (patterns.as_string_view(), flags.as_ref().map(AsArray::as_string_view));
    let flags = |row: usize| flags.and_then(|flags| flags.is_valid(row).then(|| flags.value(row)));
    let each = patterns.iter().enumerate().filter_map(|(row, pattern)| Some((pattern?, flags(row))));
    let different: HashSet<(&str, Option<&str>)> = each.collect();
    if let Some((long, _)) = different.iter().find(|(pattern, _)| pattern.len() > PATTERN_BYTES_MAX) {
        return check_pattern(&ScalarValue::from(*long));
    }
    let count = PIECES.with_borrow_mut(|pieces| {
        let Some(pieces) = pieces else { return different.len() };
        let seen = pieces.entry(function.to_owned()).or_default();
        seen.extend(different.iter().map(|pair| BuildHasherDefault::<DefaultHasher>::default().hash_one(pair)));
        seen.len()
    });
    if count <= PATTERNS_MAX {
        return Ok(());
    }
    resources_err!("`{function}` has {count} patterns at once, {PATTERNS_MAX} {FIXED_LIMIT}")
}

/// A function that says no before it makes what is too large.
#[derive(Debug)]
pub(super) struct Bounded {
    inner: Arc<ScalarUDF>,
    grows: Grows,
    limits: ValueLimits,
}

impl Bounded {
    pub(super) fn udf(inner: Arc<ScalarUDF>, grows: Grows, limits: ValueLimits) -> ScalarUDF {
        ScalarUDF::from(Self { inner, grows, limits })
    }
}

// The function says by itself how its values grow.
impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner && self.limits == other.limits
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.inner, self.limits).hash(state);
    }
}

/// All but the call is the function's own. It is not simplified, as that would put the function in the place of this one;
/// but a match of a constant pattern, which needs no limit, is.
impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        match args.get(1) {
            Some(Expr::Literal(pattern, _)) if self.name() == "regexp_like" => {
                check_pattern(pattern)?;
                self.inner.simplify(args, context)
            }
            _ => Ok(ExprSimplifyResult::Original(args)),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        check_patterns(self.name(), &args.args, args.number_rows)?;
        let is_constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let given = args.args.iter().map(Arg::new).collect::<Result<Vec<_>>>()?;
        if READING_GROUPS.contains(&self.name()) {
            check_groups(self.name(), &args.args, &given, args.number_rows)?;
        }
        let mut batch = 0_usize;
        for row in 0..if is_constant { 1 } else { args.number_rows } {
            let bytes = (self.grows)(&given, row);
            self.limits.value(self.name(), bytes)?;
            batch = batch.saturating_add(bytes);
        }
        self.limits.batch(self.name(), batch)?;
        self.inner.invoke_with_args(args)
    }
}
