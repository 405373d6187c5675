//! Regular expressions that give arrays.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, ListBuilder, StringBuilder},
    datatypes::{DataType, Int64Type},
};
use datafusion::{common::exec_err, error::Result, logical_expr::ScalarUDF};
use regex::{Regex, RegexBuilder};

use super::own::{Own, Texts, text_type, wrong_count};

/// Presto's and PostgreSQL's functions that DataFusion does not have.
pub(super) fn udfs() -> Vec<ScalarUDF> {
    vec![
        Own::udf("regexp_extract_all", &[], extract_types, |a, n, _| extract_all(a, n)),
        Own::udf("regexp_split_to_array", &["regexp_split"], split_types, |a, n, _| split(a, n)),
    ]
}

fn extract_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let (text, pattern) = match given {
        [text, pattern] | [text, pattern, _] => (text, pattern),
        _ => return wrong_count(name, "a text, a pattern and the number of a group"),
    };
    let types = [text_type(name, text)?, text_type(name, pattern)?, DataType::Int64];
    Ok((types[..given.len()].to_vec(), DataType::new_list(DataType::Utf8, true)))
}

fn split_types(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    if !(2..=3).contains(&given.len()) {
        return wrong_count(name, "a text, a pattern and flags");
    }
    let types = given.iter().map(|given| text_type(name, given)).collect::<Result<_>>()?;
    Ok((types, DataType::new_list(DataType::Utf8, true)))
}

/// What the flags of a pattern ask for, whichever way they are written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Flags {
    is_any_case: bool,
    has_lines: bool,
    /// `.` is any letter, `\n` too.
    is_dot_all: bool,
    has_comments: bool,
}

impl Flags {
    fn read(flags: &str) -> Result<Self> {
        let mut read = Self::default();
        for flag in flags.chars() {
            match flag {
                'i' => read.is_any_case = true,
                'c' => read.is_any_case = false,
                's' => read.is_dot_all = true,
                'm' | 'n' => read.has_lines = true,
                'x' => read.has_comments = true,
                other => return exec_err!("`{other}` is no flag of a pattern; there are i, c, s, m, n and x"),
            }
        }
        Ok(read)
    }
}

/// The patterns of a batch that are compiled already: few, as the guard counts them before (`guard::hold`).
#[derive(Default)]
struct Patterns {
    compiled: Vec<(String, Flags, Regex)>,
    last: usize,
}

impl Patterns {
    fn get(&mut self, pattern: &str, flags: &str) -> Result<&Regex> {
        let flags = Flags::read(flags)?;
        let is_it = |(text, with, _): &(String, Flags, Regex)| *with == flags && text == pattern;
        if !self.compiled.get(self.last).is_some_and(is_it) {
            self.last = match self.compiled.iter().position(is_it) {
                Some(found) => found,
                None => {
                    self.compiled.push((pattern.to_owned(), flags, compile(pattern, flags)?));
                    self.compiled.len() - 1
                }
            };
        }
        Ok(&self.compiled[self.last].2)
    }
}

fn compile(pattern: &str, flags: Flags) -> Result<Regex> {
    let compiled = RegexBuilder::new(pattern)
        .case_insensitive(flags.is_any_case)
        .multi_line(flags.has_lines)
        .dot_matches_new_line(flags.is_dot_all)
        .ignore_whitespace(flags.has_comments)
        .build();
    compiled.or_else(|error| exec_err!("`{pattern}` is no regular expression: {error}"))
}

fn extract_all(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let (texts, patterns) = (Texts::of(&args[0])?, Texts::of(&args[1])?);
    let mut compiled = Patterns::default();
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in 0..rows {
        let group = match args.get(2) {
            None => Some(0),
            Some(groups) => groups.is_valid(row).then(|| groups.as_primitive::<Int64Type>().value(row)),
        };
        let (Some(text), Some(pattern), Some(group)) = (texts.get(row), patterns.get(row), group) else {
            lists.append_null();
            continue;
        };
        let regex = compiled.get(pattern, "")?;
        let Some(group) = usize::try_from(group).ok().filter(|group| *group < regex.captures_len()) else {
            return exec_err!("the pattern `{pattern}` has no group {group}");
        };
        if group == 0 {
            for found in regex.find_iter(text) {
                lists.values().append_value(found.as_str());
            }
        } else {
            for found in regex.captures_iter(text) {
                lists.values().append_option(found.get(group).map(|part| part.as_str()));
            }
        }
        lists.append(true);
    }
    Ok(Arc::new(lists.finish()))
}

fn split(args: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
    let (texts, patterns) = (Texts::of(&args[0])?, Texts::of(&args[1])?);
    let flags = args.get(2).map(Texts::of).transpose()?;
    let mut compiled = Patterns::default();
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in 0..rows {
        let flags = flags.as_ref().map_or(Some(""), |flags| flags.get(row));
        let (Some(text), Some(pattern), Some(flags)) = (texts.get(row), patterns.get(row), flags) else {
            lists.append_null();
            continue;
        };
        let mut start = 0;
        for found in compiled.get(pattern, flags)?.find_iter(text) {
            // Nothing at an end, and nothing right behind another match, separates nothing.
            if found.is_empty() && (found.start() == start || found.end() == text.len()) {
                continue;
            }
            lists.values().append_value(&text[start..found.start()]);
            start = found.end();
        }
        lists.values().append_value(&text[start..]);
        lists.append(true);
    }
    Ok(Arc::new(lists.finish()))
}
