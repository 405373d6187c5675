//! Macros: the one template environment, and the way from a rendered line back to the template's.

use std::sync::{Arc, LazyLock};

use chrono::NaiveDate;
use headworks_domain::{Ds, Problem};
use minijinja::{
    AutoEscape, Environment, ErrorKind as TemplateErrorKind, State, UndefinedBehavior, Value,
    value::{Object, ValueKind, from_args},
};

use crate::{job::SqlBody, source::Source};

/// The most instructions of one render: a loop over a year of days takes some thousands.
const FUEL: u64 = 1_000_000;

/// Where a rendered line comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LineOrigin {
    /// The file's line; 0 when not known.
    pub(crate) line: usize,
    /// So many characters at its start are the same in the file, before tables were replaced.
    pub(crate) same: usize,
    /// Columns to add from a rendered column on: what the replaced prefixes took away.
    pub(crate) shifts: Vec<(usize, isize)>,
    /// What to add to a column of the first line for the header before it.
    pub(crate) indent: usize,
}

/// The one environment of all templates: strict, bounded, without loaders, and nothing in it is random.
pub(crate) static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(true);
    environment.set_keep_trailing_newline(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_filter("tojson", |value: Value| {
        if value.kind() == ValueKind::Plain {
            return Err(minijinja::Error::new(TemplateErrorKind::InvalidOperation, "it has no JSON"));
        }
        serde_json::to_string(&value)
            .map_err(|error| minijinja::Error::new(TemplateErrorKind::BadSerialization, error.to_string()))
    });
    environment
});

/// `macros.ds_add` and `macros.ds_format`.
#[derive(Debug)]
pub(crate) struct DateMacros;

impl Object for DateMacros {
    fn call_method(
        self: &Arc<Self>,
        _state: &State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, minijinja::Error> {
        let fail = |message: String| minijinja::Error::new(TemplateErrorKind::InvalidOperation, message);
        match method {
            "ds_add" => {
                let (ds, days): (&str, i64) = from_args(args)?;
                let ds: Ds = ds.parse().map_err(|error| fail(format!("{error}")))?;
                Ok(Value::from(ds.plus_days(days).to_string()))
            }
            "ds_format" => {
                let (ds, from, to): (&str, &str, &str) = from_args(args)?;
                let date = NaiveDate::parse_from_str(ds, from)
                    .map_err(|_| fail(format!("`{ds}` does not read as `{from}`")))?;
                let mut shown = String::new();
                std::fmt::Write::write_fmt(&mut shown, format_args!("{}", date.format(to)))
                    .map_err(|_| fail(format!("`{to}` is not a format of dates")))?;
                Ok(Value::from(shown))
            }
            other => {
                let near = headworks_domain::nearest(other, ["ds_add", "ds_format"]).unwrap_or("ds_add");
                Err(minijinja::Error::new(
                    TemplateErrorKind::UnknownMethod,
                    format!("`macros` has no `{other}`; did you mean `macros.{near}`?"),
                ))
            }
        }
    }
}

/// Marks the start of a line in a template, so that the rendered text tells where it came from: a character of Unicode's
/// private use, the line's number, and the same character again.
const MARK: char = '\u{F8F0}';

/// Fills the macros in. Gives the text without marks, and each line's origin.
pub(crate) fn expand(body: &SqlBody, macros: &Value) -> Result<(String, Vec<LineOrigin>), minijinja::Error> {
    let template = marked(body);
    let rendered = match &template {
        Some(template) => ENVIRONMENT.render_str(template, macros),
        None => ENVIRONMENT.render_str(&body.text, macros),
    };
    let rendered = match rendered {
        Ok(rendered) => rendered,
        // Once more without marks: the error's place should count the file's own characters.
        Err(error) => return Err(ENVIRONMENT.render_str(&body.text, macros).err().unwrap_or(error)),
    };
    let source: Vec<&str> = body.text.split('\n').collect();
    let mut lines = Vec::new();
    let mut text = String::with_capacity(rendered.len());
    let mut line = body.first_line;
    for (n, part) in rendered.split('\n').enumerate() {
        if n > 0 {
            text.push('\n');
            line += 1;
        }
        let (clean, first) = without_marks(part);
        line = first.unwrap_or(line);
        lines.push(origin(body, &source, line, &clean));
        text.push_str(&clean);
    }
    // Without marks lines can be told only when none came or went.
    if template.is_none() && lines.len() != source.len() {
        lines.iter_mut().for_each(|origin| *origin = LineOrigin::default());
    }
    Ok((text, lines))
}

fn origin(body: &SqlBody, source: &[&str], line: usize, text: &str) -> LineOrigin {
    let index = line.saturating_sub(body.first_line);
    let Some(original) = source.get(index) else { return LineOrigin::default() };
    let same = text.chars().zip(original.chars()).take_while(|(a, b)| a == b).count();
    let indent = if index == 0 { body.first_column - 1 } else { 0 };
    LineOrigin { line, same, shifts: Vec::new(), indent }
}

/// Puts a mark before the first visible character of every line that is not inside a tag; none when marks could change
/// what the template does.
fn marked(body: &SqlBody) -> Option<String> {
    let text = &body.text;
    if !["{{", "{%", "{#"].iter().any(|open| text.contains(open)) {
        return None;
    }
    // These blocks keep their text as a value, which the template may measure or compare.
    let keeps = ["set", "macro", "call", "filter"].iter().any(|word| {
        text.match_indices("{%").any(|(n, _)| text[n + 2..].trim_start_matches(['-', '+', ' ']).starts_with(word))
    });
    if keeps { None } else { mark_lines(body) }
}

fn mark_lines(body: &SqlBody) -> Option<String> {
    if body.text.contains(MARK) {
        return None;
    }
    let mut out = String::with_capacity(body.text.len() + 16 * 64);
    let mut rest = body.text.as_str();
    let mut line = body.first_line;
    let mut fresh = true;
    while let Some(c) = rest.chars().next() {
        let close = if rest.starts_with("{{") {
            "}}"
        } else if rest.starts_with("{%") {
            "%}"
        } else if rest.starts_with("{#") {
            "#}"
        } else {
            ""
        };
        if !close.is_empty() {
            let end = rest.find(close)? + close.len();
            let (tag, tail) = rest.split_at(end);
            let lines = tag.matches('\n').count();
            line += lines;
            fresh |= lines > 0;
            out.push_str(tag);
            rest = tail;
            continue;
        }
        if c == '\n' {
            line += 1;
            fresh = true;
        } else if fresh && !c.is_whitespace() {
            out.push(MARK);
            out.push_str(&line.to_string());
            out.push(MARK);
            fresh = false;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

/// A line without its marks, and the first one's number.
fn without_marks(text: &str) -> (String, Option<usize>) {
    if !text.contains(MARK) {
        return (text.to_owned(), None);
    }
    let mut clean = String::with_capacity(text.len());
    let mut first = None;
    for (n, part) in text.split(MARK).enumerate() {
        // Every second part stands between two marks.
        if n % 2 == 1 {
            first = first.or(part.parse().ok());
        } else {
            clean.push_str(part);
        }
    }
    (clean, first)
}

/// A template's error at its place of the file.
pub(crate) fn template_problem(source: &Source, body: &SqlBody, error: &minijinja::Error) -> Problem {
    let (message, hint) = template_message(&body.text, error);
    let indent = |line: usize| if line == 1 { body.first_column - 1 } else { 0 };
    let at = match (error.range(), error.line()) {
        (Some(range), _) if range.start < body.text.len() => {
            let (line, column) = Source::new("", body.text.as_str()).at_byte(range.start);
            (line + body.first_line - 1, column + indent(line))
        }
        (_, Some(line)) => (line + body.first_line - 1, 0),
        _ => (body.first_line, 0),
    };
    source.error(at, message, hint)
}

/// What templates may name, as documented.
const MACRO_NAMES: [&str; 16] = [
    "ds",
    "ds_nodash",
    "ts",
    "ts_nodash",
    "ts_hour",
    "data_interval_start",
    "data_interval_end",
    "prev_ds",
    "next_ds",
    "run_id",
    "table",
    "env",
    "params",
    "var",
    "macros.ds_add",
    "macros.ds_format",
];

pub(crate) fn template_message(template: &str, error: &minijinja::Error) -> (String, String) {
    let all = format!("the macros are {}", MACRO_NAMES.join(", "));
    match error.kind() {
        TemplateErrorKind::UndefinedError => match error.range().and_then(|range| whole_name(template, range)) {
            Some(name) => undefined(name.trim(), all),
            None => ("a macro names something that is not there".to_owned(), all),
        },
        TemplateErrorKind::OutOfFuel => {
            ("the macros take too long".to_owned(), format!("a template may run {FUEL} steps: shorten its loops"))
        }
        kind => {
            let reason = error.detail().map_or_else(|| kind.to_string(), str::to_owned);
            (format!("the macros cannot be filled in: {reason}"), all)
        }
    }
}

/// The name that an error is about: of `a.b.c` with no `a.b` the error's own range begins with the last dots.
fn whole_name(template: &str, range: std::ops::Range<usize>) -> Option<&str> {
    let name = template.get(range.clone())?;
    if !name.starts_with(['.', '[']) {
        return Some(name);
    }
    let before =
        template[..range.start].trim_end_matches(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '[' | ']'));
    template.get(before.len()..range.end)
}

fn undefined(name: &str, all: String) -> (String, String) {
    let hint = if let Some(param) = name.strip_prefix("params.") {
        format!("give the header `params: {{{param}: ...}}`")
    } else if let Some(var) = name.strip_prefix("var.") {
        format!("add `{var} = \"...\"` to [vars] in headworks.toml")
    } else if name.starts_with("outputs.") {
        "a task before it gives it by writing JSON to $HEADWORKS_OUTPUT".to_owned()
    } else if name == "item" || name.starts_with("item.") {
        "only tasks with `each:` have an item".to_owned()
    } else if MACRO_NAMES.contains(&name) {
        "a view is computed whenever it is read, so it has no interval".to_owned()
    } else {
        headworks_domain::nearest(name, MACRO_NAMES).map_or(all, |near| format!("did you mean `{near}`?"))
    };
    (format!("`{name}` is not there"), hint)
}
