//! Settings that come from outside `headworks.toml`: the environment, read once, and `--set`.

use std::collections::BTreeMap;

use headworks_flow::{ENVIRONMENT_VARIABLE, Overrides};

use crate::fail::Failure;

/// The process's environment as it was at the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

/// The variable that turns colours off, whatever its value (no-color.org).
const NO_COLOR: &str = "NO_COLOR";
/// The terminal's kind; `dumb` draws nothing.
const TERM: &str = "TERM";
/// What is logged to stderr, as `tracing` filters are written.
const HEADWORKS_LOG: &str = "HEADWORKS_LOG";
/// What settings in the environment begin with: `HEADWORKS__METADATA__URL` is `metadata.url`.
const PREFIX: &str = "HEADWORKS__";

impl Environment {
    /// Reads the environment of this process. Values that are not UTF-8 can't be settings and are left out.
    pub(crate) fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
    }

    /// The value of one variable.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// True when the user wants no colours.
    pub(crate) fn no_color(&self) -> bool {
        self.get(NO_COLOR).is_some_and(|v| !v.is_empty())
    }

    /// True when the terminal can't draw.
    pub(crate) fn dumb_terminal(&self) -> bool {
        self.get(TERM) == Some("dumb")
    }

    /// The wanted log filter.
    pub(crate) fn log_filter(&self) -> Option<&str> {
        self.get(HEADWORKS_LOG).filter(|v| !v.is_empty())
    }

    /// The settings from outside the file: the environment's, then those of `--set`.
    ///
    /// Errors: a usage error when a flag is not `KEY=VALUE`.
    pub(crate) fn overrides(&self, flags: &[String]) -> Result<Overrides, Failure> {
        let is_setting = |(name, value): &(&String, &String)| {
            name.starts_with(PREFIX) || (*name == ENVIRONMENT_VARIABLE && !value.is_empty())
        };
        let env = self.0.iter().filter(is_setting).map(|(k, v)| (k.clone(), v.clone())).collect();
        let flags = flags.iter().map(|flag| key_and_value(flag)).collect::<Result<_, _>>()?;
        Ok(Overrides { env, flags })
    }
}

fn key_and_value(flag: &str) -> Result<(String, String), Failure> {
    match flag.split_once('=') {
        Some((key, value)) if key.split('.').all(|part| !part.is_empty()) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(
            format!("`--set {flag}` is not a setting"),
            "write it as --set engine.memory=2GiB; headworks config show lists the keys",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_flags_are_settings() {
        let environment = Environment(
            [
                ("HEADWORKS__METADATA__URL", "sqlite:x.db"),
                ("HEADWORKS_ENV", "staging"),
                ("HEADWORKS_LOG", "debug"),
                ("HOME", "/"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        );
        let overrides = environment.overrides(&["a.b=c=d".to_owned()]).unwrap();
        assert_eq!(overrides.env.keys().collect::<Vec<_>>(), ["HEADWORKS_ENV", "HEADWORKS__METADATA__URL"]);
        assert_eq!(overrides.flags, [("a.b".to_owned(), "c=d".to_owned())]);
        for bad in ["", "x", "=1", "a.=1", ".a=1"] {
            assert!(environment.overrides(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
