//! The parameters of a session: which there are, which values they take, what follows from them.

use std::{collections::HashMap, time::Duration};

use super::error::{PgError, state};

/// The parameters of one session; copied for `BEGIN`, to come back with `ROLLBACK`.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    values: HashMap<String, String>,
    /// The values as the session began with them, for `RESET`.
    first: HashMap<String, String>,
}

/// What a parameter takes.
enum Takes {
    /// Any text.
    Anything,
    /// Nothing new: clients set what they find.
    Itself,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// UTF-8 by any of its names.
    Utf8,
    Bool,
    Number,
    /// A time; a number without a unit counts milliseconds.
    Milliseconds,
    /// Coordinated universal time by any of its names.
    Utc,
}

/// What a session begins with.
const KNOWN: &[(&str, &str, Takes)] = &[
    ("application_name", "", Takes::Anything),
    ("backslash_quote", "safe_encoding", Takes::Anything),
    ("bytea_output", "hex", Takes::OneOf(&["hex"])),
    ("check_function_bodies", "on", Takes::Bool),
    ("client_encoding", "UTF8", Takes::Utf8),
    ("client_min_messages", "notice", Takes::Anything),
    ("datestyle", "ISO, MDY", Takes::OneOf(&["iso", "iso, mdy", "iso,mdy", "iso, dmy", "iso, ymd", "mdy"])),
    ("default_table_access_method", "heap", Takes::Itself),
    ("default_tablespace", "", Takes::Anything),
    ("default_transaction_deferrable", "off", Takes::Bool),
    ("default_transaction_isolation", "read committed", Takes::Anything),
    ("default_transaction_read_only", "on", Takes::Bool),
    ("escape_string_warning", "on", Takes::Bool),
    ("extra_float_digits", "1", Takes::Number),
    ("geqo", "on", Takes::Bool),
    ("headworks.queue", "", Takes::Anything),
    ("idle_in_transaction_session_timeout", "0", Takes::Milliseconds),
    ("in_hot_standby", "off", Takes::Itself),
    ("integer_datetimes", "on", Takes::Itself),
    ("intervalstyle", "postgres", Takes::OneOf(&["postgres"])),
    ("is_superuser", "off", Takes::Itself),
    ("jit", "off", Takes::Bool),
    ("lc_collate", "C.UTF-8", Takes::Itself),
    ("lc_messages", "C.UTF-8", Takes::Anything),
    ("lc_monetary", "C.UTF-8", Takes::Anything),
    ("lc_numeric", "C.UTF-8", Takes::Anything),
    ("lc_time", "C.UTF-8", Takes::Anything),
    ("lock_timeout", "0", Takes::Milliseconds),
    ("max_identifier_length", "63", Takes::Itself),
    ("max_index_keys", "32", Takes::Itself),
    ("row_security", "on", Takes::Bool),
    ("search_path", "\"$user\", public", Takes::Anything),
    ("server_encoding", "UTF8", Takes::Itself),
    ("server_version", "16.0", Takes::Itself),
    ("server_version_num", "160000", Takes::Itself),
    ("session_authorization", "", Takes::Itself),
    ("standard_conforming_strings", "on", Takes::OneOf(&["on", "true", "1"])),
    ("statement_timeout", "0", Takes::Milliseconds),
    ("synchronize_seqscans", "on", Takes::Bool),
    ("timezone", "UTC", Takes::Utc),
    ("transaction_deferrable", "off", Takes::Bool),
    ("transaction_isolation", "read committed", Takes::Anything),
    ("transaction_read_only", "on", Takes::Bool),
    ("work_mem", "4MB", Takes::Anything),
    ("xmloption", "content", Takes::Anything),
];

/// Those that a client is told of at the start and whenever they change, as PostgreSQL writes them.
pub(super) const REPORTED: [&str; 14] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "search_path",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
];

/// The most bytes of one value.
const VALUE_BYTES_MAX: usize = 1_024;
/// The most parameters beside the known ones: `myapp.user` and the like.
const OWN_MAX: usize = 100;

impl Settings {
    pub(super) fn new(user: &str) -> Self {
        let mut values: HashMap<String, String> =
            KNOWN.iter().map(|(name, value, _)| ((*name).to_owned(), (*value).to_owned())).collect();
        values.insert("session_authorization".to_owned(), user.to_owned());
        Self { first: values.clone(), values }
    }

    /// What is set now becomes what `RESET` goes back to.
    pub(super) fn begin(&mut self) {
        self.first = self.values.clone();
    }

    /// All of them by their lowercase names.
    pub(super) fn all(&self) -> &HashMap<String, String> {
        &self.values
    }

    /// The value of a parameter. Errors: there is none of that name.
    pub(super) fn get(&self, name: &str) -> Result<&str, PgError> {
        let name = name.to_lowercase();
        self.values.get(&name).map(String::as_str).ok_or_else(|| unknown(&name))
    }

    fn known(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Gives a parameter a value; `None` the one it began with. Errors: no such parameter, or not this value.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), PgError> {
        let name = name.to_lowercase();
        let Some(value) = value else {
            let first = self.first.get(&name).cloned();
            let Some(first) = first else {
                // Nobody sets one back that was never set.
                return self.values.remove(&name).map(|_| ()).ok_or_else(|| unknown(&name));
            };
            self.values.insert(name, first);
            return Ok(());
        };
        if value.len() > VALUE_BYTES_MAX {
            return Err(PgError::new(state::LIMIT, format!("the value of `{name}` is above {VALUE_BYTES_MAX} bytes")));
        }
        let Some((_, _, takes)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
            let own = self.values.len() - KNOWN.len();
            if !name.contains('.') || (own >= OWN_MAX && !self.values.contains_key(&name)) {
                return Err(unknown(&name));
            }
            self.values.insert(name, value.to_owned());
            return Ok(());
        };
        let value = accepted(takes, &name, value, self.known(&name))?;
        if name == "default_transaction_isolation" {
            // The next transaction begins with it.
            self.values.insert("transaction_isolation".to_owned(), value.clone());
        }
        self.values.insert(name, value);
        Ok(())
    }

    /// All parameters as the session began.
    pub(super) fn reset(&mut self) {
        self.values = self.first.clone();
    }

    /// The time that one statement may take.
    pub(super) fn statement_timeout(&self) -> Option<Duration> {
        let milliseconds = milliseconds(self.known("statement_timeout")).filter(|n| *n > 0)?;
        Some(Duration::from_millis(milliseconds))
    }

    /// The queue that was asked for by name.
    pub(super) fn queue(&self) -> Option<&str> {
        Some(self.known("headworks.queue")).filter(|queue| !queue.is_empty())
    }

    pub(super) fn application(&self) -> Option<&str> {
        Some(self.known("application_name")).filter(|name| !name.is_empty())
    }
}

fn unknown(name: &str) -> PgError {
    PgError::new(state::UNKNOWN_OBJECT, format!("there is no setting `{name}`"))
        .with_hint("`SHOW ALL` lists them; `headworks.queue` names the queue of a session's queries")
}

fn accepted(takes: &Takes, name: &str, value: &str, now: &str) -> Result<String, PgError> {
    let refused = |hint: &str| {
        let message = format!("`{name}` does not take the value `{value}`");
        Err(PgError::new(state::PARAMETER_VALUE, message).with_hint(hint))
    };
    let lower = value.trim().to_lowercase();
    match takes {
        Takes::Anything => Ok(value.to_owned()),
        Takes::Itself if value.eq_ignore_ascii_case(now) => Ok(now.to_owned()),
        Takes::Itself => refused("it cannot be changed"),
        Takes::OneOf(values) if values.contains(&lower.as_str()) => Ok(now.to_owned()),
        // PostgreSQL looks at letters and digits only: asyncpg sends `'utf-8'` with the quotes.
        Takes::Utf8 => match lower.replace(|c: char| !c.is_ascii_alphanumeric(), "").as_str() {
            "utf8" | "unicode" | "sqlascii" => Ok(now.to_owned()),
            _ => refused("it is always `UTF8`"),
        },
        Takes::OneOf(_) => refused(&format!("it is always `{now}`")),
        Takes::Bool => match lower.as_str() {
            "on" | "true" | "yes" | "1" => Ok("on".to_owned()),
            "off" | "false" | "no" | "0" => Ok("off".to_owned()),
            _ => refused("it is on or off"),
        },
        Takes::Number if lower.parse::<i64>().is_ok() => Ok(lower),
        Takes::Number => refused("it is a number"),
        Takes::Milliseconds => match milliseconds(&lower) {
            Some(milliseconds) => Ok(with_unit(milliseconds)),
            None => refused("write `30s`, `5min` or a number of milliseconds"),
        },
        Takes::Utc => match lower.as_str() {
            "utc" | "etc/utc" | "gmt" | "etc/gmt" | "z" | "zulu" | "universal" | "0" | "+00" | "+00:00" | "default"
            | "local" => Ok("UTC".to_owned()),
            _ => refused("times are given in UTC: convert them where they are shown, or with `AT TIME ZONE`"),
        },
    }
}

/// Reads `250`, `30s`, `5min`; units as PostgreSQL has them.
fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A time as PostgreSQL shows it: in the largest unit that it is a whole number of.
fn with_unit(milliseconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    match UNITS.iter().find(|(of, _)| milliseconds.is_multiple_of(*of)) {
        _ if milliseconds == 0 => "0".to_owned(),
        Some((of, unit)) => format!("{}{unit}", milliseconds / of),
        None => format!("{milliseconds}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_take_what_they_can_keep_to() {
        let check = |name: &str, value: &str, expected: Option<&str>| {
            let mut settings = Settings::new("ann");
            let set = settings.set(name, Some(value)).map(|()| settings.get(name).unwrap().to_owned());
            assert_eq!(set.ok().as_deref(), expected, "{name} = {value}");
        };
        check("application_name", "superset", Some("superset"));
        check("TimeZone", "Etc/UTC", Some("UTC"));
        check("TimeZone", "Europe/Berlin", None);
        check("client_encoding", "UTF-8", Some("UTF8"));
        check("client_encoding", "'utf-8'", Some("UTF8"));
        check("client_encoding", "LATIN1", None);
        check("statement_timeout", "30s", Some("30s"));
        check("statement_timeout", "60000", Some("1min"));
        check("statement_timeout", "90 min", Some("90min"));
        check("statement_timeout", "250", Some("250ms"));
        check("statement_timeout", "0", Some("0"));
        check("statement_timeout", "soon", None);
        check("datestyle", "ISO", Some("ISO, MDY"));
        check("datestyle", "German", None);
        check("standard_conforming_strings", "off", None);
        check("server_version", "17", None);
        check("headworks.queue", "dashboards", Some("dashboards"));
        check("myapp.user", "7", Some("7"));
        check("nonsense", "1", None);
        check("extra_float_digits", "3", Some("3"));
    }

    #[test]
    fn reset_goes_back_to_the_start_of_the_session() {
        let mut settings = Settings::new("ann");
        settings.set("application_name", Some("psql")).unwrap();
        settings.begin();
        settings.set("application_name", Some("other")).unwrap();
        settings.set("application_name", None).unwrap();
        assert_eq!(settings.application(), Some("psql"));
        settings.set("statement_timeout", Some("1h")).unwrap();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(3_600)));
        settings.reset();
        assert_eq!(settings.statement_timeout(), None);
    }
}
