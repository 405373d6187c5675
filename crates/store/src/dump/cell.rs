//! Values as a dump spells them.

use serde::{Serialize, Serializer, ser::SerializeMap, ser::SerializeSeq};
use serde_json::Value as Json;

use super::hex;
use crate::{Value, value::time_text};

/// A row on its way into a file.
pub(super) struct Cells<'v>(pub(super) &'v [Value]);

struct Cell<'v>(&'v Value);

impl Serialize for Cells<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut row = to.serialize_seq(Some(self.0.len()))?;
        for value in self.0 {
            row.serialize_element(&Cell(value))?;
        }
        row.end()
    }
}

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => to.serialize_unit(),
            Value::Bool(v) => to.serialize_bool(*v),
            Value::Int(v) => to.serialize_i64(*v),
            Value::Text(v) => to.serialize_str(v),
            Value::Uuid(v) => to.collect_str(v),
            Value::Time(v) => to.serialize_str(&time_text(*v)),
            // As text: JSON has no infinities, and its readers round.
            Value::Real(v) => one(to, "real", &v.to_string()),
            Value::Bytes(v) => one(to, "hex", &hex(v)),
        }
    }
}

fn one<S: Serializer>(to: S, key: &str, text: &str) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(1))?;
    map.serialize_entry(key, text)?;
    map.end()
}

/// Reads a value back; `None` when it is none that [`Cells`] writes.
pub(super) fn value(json: Json) -> Option<Value> {
    Some(match json {
        Json::Null => Value::Null,
        Json::Bool(v) => Value::Bool(v),
        Json::Number(v) => Value::Int(v.as_i64()?),
        Json::String(v) => Value::Text(v),
        Json::Object(map) => match map.iter().next()? {
            (key, Json::String(text)) if key == "real" => Value::Real(text.parse().ok()?),
            (key, Json::String(text)) if key == "hex" => Value::Bytes(bytes(text)?),
            _ => return None,
        },
        Json::Array(_) => return None,
    })
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_went() {
        let values = [
            Value::Null,
            Value::Bool(true),
            Value::Int(i64::MIN),
            Value::Int(i64::MAX),
            Value::Real(0.1),
            Value::Real(-0.0),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(f64::MIN_POSITIVE),
            Value::Text("a \"quoted\" Ünï\n\u{0}".to_owned()),
            Value::Bytes(vec![0, 15, 255]),
            Value::Bytes(Vec::new()),
        ];
        let text = serde_json::to_string(&Cells(&values)).unwrap();
        assert!(!text.contains('\n'), "a row is a line: {text}");
        let back: Vec<Json> = serde_json::from_str(&text).unwrap();
        let back: Vec<Value> = back.into_iter().map(|json| value(json).unwrap()).collect();
        assert_eq!(back, values);
    }

    #[test]
    fn what_was_never_written_is_no_value() {
        for text in ["[]", "1.5", "{}", "{\"hex\":\"0\"}", "{\"hex\":\"zz\"}", "{\"real\":\"x\"}", "{\"what\":\"1\"}"] {
            assert_eq!(value(serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }
}
