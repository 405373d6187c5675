use std::sync::Arc;

use arrow::{array::StringArray, datatypes::DataType};
use datafusion::{error::Result, logical_expr::ScalarUDF};
use url::Url;

use super::own::{Own, Texts, text_type, wrong_count};

/// A function over one URL; the part is chosen when the function is made, and `Own` wants plain functions.
macro_rules! part_of {
    ($name:expr, $part:expr) => {
        Own::udf($name, &[], one_text, |args, rows, _| {
            let urls = Texts::of(&args[0])?;
            let of: fn(&Url) -> Option<String> = $part;
            let part = |row| Url::parse(urls.get(row)?).ok().as_ref().and_then(of);
            Ok(Arc::new((0..rows).map(part).collect::<StringArray>()))
        })
    };
}

/// Presto's functions over URLs; null for what is none.
pub(super) fn udfs() -> Vec<ScalarUDF> {
    vec![
        part_of!("url_extract_protocol", |url| Some(url.scheme().to_owned())),
        part_of!("url_extract_host", |url| url.host_str().map(str::to_owned)),
        part_of!("url_extract_port", |url| url.port().map(|port| port.to_string())),
        part_of!("url_extract_path", |url| Some(url.path().to_owned())),
        part_of!("url_extract_query", |url| url.query().map(str::to_owned)),
        part_of!("url_extract_fragment", |url| url.fragment().map(str::to_owned)),
        Own::udf("url_extract_parameter", &[], two_texts, |args, rows, _| {
            let (urls, names) = (Texts::of(&args[0])?, Texts::of(&args[1])?);
            let value = |row| {
                let (url, name) = (Url::parse(urls.get(row)?).ok()?, names.get(row)?);
                url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
            };
            Ok(Arc::new((0..rows).map(value).collect::<StringArray>()))
        }),
    ]
}

fn one_text(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [url] = given else { return wrong_count(name, "a URL") };
    Ok((vec![text_type(name, url)?], DataType::Utf8))
}

fn two_texts(name: &str, given: &[DataType]) -> Result<(Vec<DataType>, DataType)> {
    let [url, parameter] = given else { return wrong_count(name, "a URL and the name of a parameter") };
    Ok((vec![text_type(name, url)?, text_type(name, parameter)?], DataType::Utf8))
}
