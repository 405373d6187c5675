//! Texts with a shape of their own, named by `format` in the schema: each is checked where it stands.

use chrono_tz::{TZ_VARIANTS, Tz};
use headworks_domain::{ConnectionName, Ds, EnvironmentName, JobName, TableName, nearest};

use crate::{
    column::ColumnType,
    exec::DEFAULT_POOL,
    schedule::{Schedule, ScheduleError},
    spec::WaitRef,
    target::TargetName,
    units::{ByteSize, Span, TimeOfDay},
};

/// What is wrong with a text, and what to write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wrong {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Checks a text against a format; formats that are not ours pass.
pub(crate) fn check(format: &str, text: &str) -> Result<(), Wrong> {
    match format {
        "job-name" => plain(text.parse::<JobName>(), "use letters, digits, `_`, `-`, with `/` between parts"),
        "table-name" => plain(text.parse::<TableName>(), "use letters, digits and `_`"),
        "table" if text == "self" || text == "this" => Ok(()),
        "table" => plain(text.parse::<TableName>(), "name a table of the lake"),
        "connection-name" => plain(text.parse::<ConnectionName>(), "use letters, digits, `_`, `-`"),
        "environment-name" => plain(text.parse::<EnvironmentName>(), "use letters, digits, `_`, `-`"),
        "schema-name" => schema_name(text),
        "target-name" => plain(text.parse::<TargetName>(), ""),
        "pool-name" => pool_name(text),
        "queue-name" => queue_name(text),
        "zone" => zone_name(text).map_err(|message| Wrong { message, hint: "name it as `eu-west`".to_owned() }),
        "ds" => plain(text.parse::<Ds>(), ""),
        "span" => plain(text.parse::<Span>(), ""),
        "byte-size" => plain(text.parse::<ByteSize>(), ""),
        "time-of-day" => plain(text.parse::<TimeOfDay>(), ""),
        "wait" => text.parse::<WaitRef>().map(|_| ()).map_err(|message| Wrong {
            message,
            hint: "write a table, `table@-1` for the partition before, or `self@-1` for the job's own".to_owned(),
        }),
        "schedule" => Schedule::parse(text)
            .map(|_| ())
            .map_err(|error| Wrong { message: error.to_string(), hint: error.hint().to_owned() }),
        "column-type" => text
            .parse::<ColumnType>()
            .map(|_| ())
            .map_err(|error| Wrong { message: error.to_string(), hint: error.hint() }),
        "time-zone" => {
            zone(text).map(|_| ()).map_err(|error| Wrong { message: error.to_string(), hint: error.hint().to_owned() })
        }
        _ => Ok(()),
    }
}

/// How a text of a format is written.
pub(crate) fn example(format: &str) -> Option<&'static str> {
    Some(match format {
        "zone" => "`eu-west`",
        "ds" => "`2013-01-01`",
        "span" => "`45m`",
        "byte-size" => "`64MiB`",
        "time-of-day" => "`\"07:00\"`",
        "wait" => "`table` or `table@-1`",
        "schedule" => "`\"0 2 * * *\"` or `\"@daily\"`",
        "column-type" => "`bigint` or `varchar`",
        "time-zone" => "`America/New_York`",
        _ => return None,
    })
}

fn plain<T, E: std::error::Error>(parsed: Result<T, E>, hint: &str) -> Result<(), Wrong> {
    parsed.map(|_| ()).map_err(|error| Wrong { message: error.to_string(), hint: hint.to_owned() })
}

/// The most letters of a schema's name: PostgreSQL keeps 63, and `_lake` goes behind it.
const SCHEMA_BYTES_MAX: usize = 50;

fn schema_name(text: &str) -> Result<(), Wrong> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let begins = text.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if begins && text.len() <= SCHEMA_BYTES_MAX && text.bytes().all(is_plain) && !text.starts_with("pg_") {
        return Ok(());
    }
    Err(Wrong {
        message: format!("`{text}` is not the name of a schema"),
        hint: "use at most 50 of a-z, 0-9 and `_`, as `headworks_staging`".to_owned(),
    })
}

/// The most bytes of a zone's or a pool's name: both stand in rows, in labels of metrics and in what people read.
const NAME_BYTES_MAX: usize = 64;

fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(is_plain)
}

/// Checks the name of a zone in which processes stand. Errors: what is wrong with it.
pub fn zone_name(text: &str) -> Result<(), String> {
    if is_name(text) {
        return Ok(());
    }
    Err(format!("`{text}` is not the name of a zone: use at most 64 bytes of letters, digits, `_`, `-` and `.`"))
}

fn pool_name(text: &str) -> Result<(), Wrong> {
    if text == DEFAULT_POOL {
        let message = format!("`{DEFAULT_POOL}` cannot be the name of a pool: it stands for tasks that name none");
        return Err(Wrong { message, hint: "give the pool another name".to_owned() });
    }
    if is_name(text) {
        return Ok(());
    }
    let hint = "use at most 64 bytes of letters, digits, `_`, `-` and `.`, as `etl`".to_owned();
    Err(Wrong { message: format!("`{text}` is not the name of a pool"), hint })
}

fn queue_name(text: &str) -> Result<(), Wrong> {
    if is_name(text) {
        return Ok(());
    }
    let hint = "use at most 64 bytes of letters, digits, `_`, `-` and `.`, as `dashboards`".to_owned();
    Err(Wrong { message: format!("`{text}` is not the name of a queue"), hint })
}

/// Reads the name of a time zone, as `America/New_York`. Errors: the name that was meant, or how names are written.
pub fn zone(text: &str) -> Result<Tz, ScheduleError> {
    if let Ok(zone) = text.parse() {
        return Ok(zone);
    }
    let names = TZ_VARIANTS.iter().map(|zone| zone.name());
    // People know the city and not the part of the world, or write blanks for `_`.
    let spelled = text.replace(' ', "_");
    let city = |name: &&str| name.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(&spelled));
    let hint = match names.clone().find(city).or_else(|| nearest(&spelled, names)) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "write it as in the IANA list, as `UTC`, `America/New_York` or `Asia/Kolkata`".to_owned(),
    };
    Err(ScheduleError::new(format!("`{text}` is not a time zone"), hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_and_pools_have_plain_names_in_any_script() {
        let wrong = |format: &str, text: &str| super::check(format, text).err().map(|wrong| wrong.message);
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["eu", "eu-west.1", "Süd_2", "東京"] {
            assert_eq!((wrong("zone", name), wrong("pool-name", name)), (None, None));
        }
        for name in ["", "eu west", "a,b", "a\"b", "a\nb", &long] {
            assert!(wrong("zone", name).is_some() && wrong("pool-name", name).is_some(), "{name}");
        }
        assert_eq!(wrong("zone", "default"), None);
        let message = "`default` cannot be the name of a pool: it stands for tasks that name none";
        assert_eq!(wrong("pool-name", "default").as_deref(), Some(message));
    }
}
