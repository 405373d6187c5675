use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, ListArray, MapArray, StructArray, new_empty_array},
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, Fields},
};
use datafusion::common::ScalarValue;

use super::scalar;

/// A value read from text, before it is put into a column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// A value that is not nested.
    Scalar(ScalarValue),
    /// A list's elements.
    List(Vec<Option<Node>>),
    /// A struct's fields in the type's order.
    Struct(Vec<Option<Node>>),
    /// A map's entries.
    Map(Vec<(Node, Option<Node>)>),
}

/// Reads a value of any type from DuckDB's text of it, `[{'a': 1, 'b': 'it\'s'}, NULL]`. `None` when it is not of the type.
pub(crate) fn node(text: &str, data_type: &DataType) -> Option<Node> {
    if !data_type.is_nested() {
        return scalar(text, data_type).map(Node::Scalar);
    }
    let mut parser = Parser { text, at: 0 };
    let node = parser.value(data_type)?;
    parser.space();
    (parser.at == text.len()).then_some(node).flatten()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    /// Outer `None`: not of the type. Inner `None`: null.
    fn value(&mut self, data_type: &DataType) -> Option<Option<Node>> {
        self.space();
        if data_type.is_nested() && self.text[self.at..].starts_with("NULL") {
            self.at += "NULL".len();
            return Some(None);
        }
        Some(Some(match data_type {
            DataType::List(element) => Node::List(self.all('[', ']', |p| p.value(element.data_type()))?),
            DataType::Struct(fields) => Node::Struct(self.object(fields)?),
            DataType::Map(entries, _) => {
                let DataType::Struct(kv) = entries.data_type() else { return None };
                Node::Map(self.all('{', '}', |p| {
                    let key = p.value(kv[0].data_type())??;
                    p.expect('=')?;
                    Some((key, p.value(kv[1].data_type())?))
                })?)
            }
            leaf => match self.token()? {
                (text, false) if text == "NULL" => return Some(None),
                (text, _) => Node::Scalar(scalar(&text, leaf)?),
            },
        }))
    }

    fn object(&mut self, fields: &Fields) -> Option<Vec<Option<Node>>> {
        let mut values = vec![None; fields.len()];
        self.all('{', '}', |p| {
            let (name, _) = p.token()?;
            p.expect(':')?;
            let at = fields.iter().position(|f| *f.name() == name)?;
            values[at] = p.value(fields[at].data_type())?;
            Some(())
        })?;
        Some(values)
    }

    fn all<T>(&mut self, open: char, close: char, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        self.expect(open)?;
        let mut found = Vec::new();
        loop {
            self.space();
            if self.peek()? == close {
                self.at += close.len_utf8();
                return Some(found);
            }
            if !found.is_empty() {
                self.expect(',')?;
            }
            found.push(one(self)?);
        }
    }

    /// One word, and whether it stood in quotes. DuckDB quotes every text that holds a bracket, comma, colon or quote, so an
    /// unquoted word that opens a bracket is JSON: it goes on to the bracket's end.
    fn token(&mut self) -> Option<(String, bool)> {
        self.space();
        let mut word = String::new();
        let rest = &self.text[self.at..];
        let mut chars = rest.char_indices();
        if rest.starts_with('\'') {
            chars.next();
            while let Some((i, c)) = chars.next() {
                match c {
                    '\'' => {
                        self.at += i + 1;
                        return Some((word, true));
                    }
                    '\\' => word.push(chars.next()?.1),
                    c => word.push(c),
                }
            }
            return None;
        }
        let (mut depth, mut quoted) = (0_usize, false);
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' if quoted => {
                    word.push(c);
                    word.push(chars.next()?.1);
                    continue;
                }
                '"' => quoted = !quoted,
                '[' | '{' if !quoted => depth += 1,
                ']' | '}' | ',' | '=' | ':' if !quoted && depth == 0 => {
                    self.at += i;
                    return Some((word.trim_end().to_owned(), false));
                }
                ']' | '}' if !quoted => depth -= 1,
                _ => {}
            }
            word.push(c);
        }
        self.at = self.text.len();
        Some((word.trim_end().to_owned(), false))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches(' ').len();
    }

    fn expect(&mut self, wanted: char) -> Option<()> {
        self.space();
        (self.peek()? == wanted).then(|| self.at += wanted.len_utf8())
    }
}

/// Puts values into a column of a type. `None` when one is of another type.
pub(crate) fn array(values: Vec<Option<Node>>, data_type: &DataType) -> Option<ArrayRef> {
    if values.is_empty() {
        return Some(new_empty_array(data_type));
    }
    let nulls = NullBuffer::from_iter(values.iter().map(Option::is_some));
    Some(match data_type {
        DataType::List(element) => {
            let (mut lengths, mut elements) = (Vec::with_capacity(values.len()), Vec::new());
            for value in values {
                let list = match value {
                    Some(Node::List(list)) => list,
                    None => Vec::new(),
                    Some(_) => return None,
                };
                lengths.push(list.len());
                elements.extend(list);
            }
            let elements = array(elements, element.data_type())?;
            let offsets = OffsetBuffer::from_lengths(lengths);
            Arc::new(ListArray::try_new(Arc::clone(element), offsets, elements, Some(nulls)).ok()?)
        }
        DataType::Struct(fields) => {
            let mut parts = vec![Vec::with_capacity(values.len()); fields.len()];
            for value in values {
                let object = match value {
                    Some(Node::Struct(object)) => object,
                    None => vec![None; fields.len()],
                    Some(_) => return None,
                };
                for (part, value) in parts.iter_mut().zip(object) {
                    part.push(value);
                }
            }
            let arrays = parts.into_iter().zip(fields).map(|(part, f)| array(part, f.data_type()));
            Arc::new(StructArray::try_new(fields.clone(), arrays.collect::<Option<_>>()?, Some(nulls)).ok()?)
        }
        DataType::Map(entries, sorted) => {
            let (mut lengths, mut pairs) = (Vec::with_capacity(values.len()), Vec::new());
            for value in values {
                let map = match value {
                    Some(Node::Map(map)) => map,
                    None => Vec::new(),
                    Some(_) => return None,
                };
                lengths.push(map.len());
                pairs.extend(map.into_iter().map(|(key, value)| Some(Node::Struct(vec![Some(key), value]))));
            }
            let pairs = array(pairs, entries.data_type())?;
            let pairs = pairs.as_any().downcast_ref::<StructArray>()?.clone();
            let (fields, columns, _) = pairs.into_parts();
            let pairs = StructArray::try_new_with_length(fields, columns, None, lengths.iter().sum()).ok()?;
            let offsets = OffsetBuffer::from_lengths(lengths);
            Arc::new(MapArray::try_new(Arc::clone(entries), offsets, pairs, Some(nulls), *sorted).ok()?)
        }
        leaf => {
            let null = ScalarValue::try_from(leaf).ok()?;
            let scalars = values.into_iter().map(|value| match value {
                Some(Node::Scalar(value)) => Some(value),
                None => Some(null.clone()),
                Some(_) => None,
            });
            ScalarValue::iter_to_array(scalars.collect::<Option<Vec<_>>>()?).ok()?
        }
    })
}

#[cfg(test)]
mod tests {
    use arrow::{datatypes::Field, util::display::array_value_to_string};

    use super::*;

    fn list(of: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("element", of, true)))
    }

    fn object(fields: &[(&str, DataType)]) -> DataType {
        DataType::Struct(fields.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect())
    }

    fn map(key: DataType, value: DataType) -> DataType {
        let kv = Fields::from(vec![Field::new("key", key, false), Field::new("value", value, true)]);
        DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(kv), false)), false)
    }

    fn check(text: &str, data_type: &DataType, expected: &str) {
        let node = node(text, data_type).unwrap_or_else(|| panic!("{text} as {data_type}"));
        let array = array(vec![None, Some(node)], data_type).unwrap_or_else(|| panic!("{text} as {data_type}"));
        assert!(array.is_null(0));
        assert_eq!(array_value_to_string(&array, 1).unwrap(), expected, "{text}");
    }

    /// Texts as DuckDB 1.5.5 wrote them.
    #[test]
    fn nested_texts_are_read() {
        check("[1, NULL, 2]", &list(DataType::Int32), "[1, , 2]");
        check("[]", &list(DataType::Int32), "[]");
        check(
            r#"[a, 'b,c', 'it\'s', '"q"', NULL, 'NULL', '', '[x]', a\b, ' lead', x;y, ü]"#,
            &list(DataType::Utf8),
            r#"[a, b,c, it's, "q", , NULL, , [x], a\b,  lead, x;y, ü]"#,
        );
        check(r"[\x00ab, a\x27b]", &list(DataType::Binary), "[006162, 612762]");
        check(r#"[{"a": 1, "b": "}]'"}, NULL, [1,2]]"#, &list(DataType::Utf8), r#"[{"a": 1, "b": "}]'"}, , [1,2]]"#);
        check("[[['x,y']], NULL]", &list(list(list(DataType::Utf8))), "[[[x,y]], ]");
        check(
            "{'a': 1, 'b c': 'x, y: {z}'}",
            &object(&[("a", DataType::Int32), ("b c", DataType::Utf8)]),
            "{a: 1, b c: x, y: {z}}",
        );
        check("{k=1, 'a=b'=2}", &map(DataType::Utf8, DataType::Int32), "{k: 1, a=b: 2}");
        check("{}", &map(DataType::Utf8, DataType::Int32), "{}");
        check(
            r"[{'x': [1, 2], 'y': {1={'z': 'q\'q'}}}, {'x': NULL, 'y': NULL}, NULL]",
            &list(object(&[
                ("x", list(DataType::Int32)),
                ("y", map(DataType::Int32, object(&[("z", DataType::Utf8)]))),
            ])),
            "[{x: [1, 2], y: {1: {z: q'q}}}, {x: , y: }, ]",
        );
        let ts = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
        check("['2020-01-01 00:00:00', NULL]", &list(ts), "[2020-01-01T00:00:00, ]");
    }

    #[test]
    fn other_texts_are_refused() {
        for (text, data_type) in [
            ("[1", list(DataType::Int32)),
            ("[1] x", list(DataType::Int32)),
            ("[x]", list(DataType::Int32)),
            ("{'b': 1}", object(&[("a", DataType::Int32)])),
            ("{NULL=1}", map(DataType::Utf8, DataType::Int32)),
            ("['a]", list(DataType::Utf8)),
            ("", list(DataType::Utf8)),
        ] {
            assert_eq!(node(text, &data_type), None, "{text}");
        }
    }
}
