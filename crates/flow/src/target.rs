//! Where alerts go: the settings, what may be wrong with them, and the targets with their secrets filled in.

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr};

use headworks_domain::{ConnectionName, Problem, Secret, nearest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    alert::EventKind,
    connection::{filled_in, lookup, read_secret},
    document::Node,
    error::Error,
    schema::listed,
    source::Source,
    units::Span,
};

/// The name of a target: letters, digits, `_` and `-`, as connections have them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

/// Says that a text is not the name of a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a target name: it begins with a letter or `_` and has letters, digits, `_` and `-`")]
pub struct TargetNameError(String);

impl TargetName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TargetName {
    type Err = TargetNameError;

    fn from_str(s: &str) -> Result<Self, TargetNameError> {
        s.parse::<ConnectionName>().map(|_| Self(s.to_owned())).map_err(|_| TargetNameError(s.to_owned()))
    }
}

impl TryFrom<String> for TargetName {
    type Error = TargetNameError;

    fn try_from(s: String) -> Result<Self, TargetNameError> {
        s.parse()
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who is told when something goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsConfig {
    /// What is told.
    pub on: Vec<EventKind>,
    /// The targets of jobs that name none; all of them unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<TargetNameText>>")]
    pub to: Option<Vec<TargetName>>,
    /// Events within so long become one message.
    pub group_for: Span,
    /// Where messages go, by name.
    #[schemars(with = "BTreeMap<String, TargetConfig>", extend("propertyNames" = { "format": "target-name" }))]
    pub targets: BTreeMap<TargetName, TargetConfig>,
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self { on: EventKind::ALL.to_vec(), to: None, group_for: Span::from_secs(30), targets: BTreeMap::new() }
    }
}

/// A target's name as text, for the schema.
#[derive(Serialize, JsonSchema)]
#[schemars(inline)]
struct TargetNameText(#[schemars(extend("format" = "target-name"))] String);

/// Where messages go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum TargetConfig {
    /// An incoming webhook of Slack.
    Slack {
        /// The webhook's address, as `${env:SLACK_WEBHOOK}`; who knows it can write to the channel.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// The file that holds the address, relative to the project.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url_file: Option<String>,
        /// True: the address may be one of your own network, and plain HTTP.
        #[serde(default, skip_serializing_if = "is_false")]
        allow_private: bool,
    },
    /// A service that takes JSON by POST.
    Webhook {
        /// The address; `${env:NAME}` stands for a variable.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// The file that holds the address, relative to the project.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url_file: Option<String>,
        /// The environment variable that holds the token for `Authorization: Bearer`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_env: Option<String>,
        /// The file that holds the token, relative to the project.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_file: Option<String>,
        /// True: the address may be one of your own network, and plain HTTP.
        #[serde(default, skip_serializing_if = "is_false")]
        allow_private: bool,
    },
    /// A mail server, by SMTP.
    Email {
        /// The server's name.
        host: String,
        /// Its port; 587, with `tls` 465 and with `none` 25 unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// How the connection is made safe.
        #[serde(default)]
        security: MailSecurity,
        /// The name to log in with; none logs in with nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// The environment variable that holds the password.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password_env: Option<String>,
        /// The file that holds the password, relative to the project.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password_file: Option<String>,
        /// The sender; a name may stand before the address, as in `Headworks <headworks@example.com>`.
        from: String,
        /// The receivers.
        to: Vec<String>,
    },
}

/// How a connection to a mail server is made safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MailSecurity {
    /// It begins in the clear and must change to TLS before anything is said.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// No encryption; for a server on this machine or a network of your own.
    None,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Who is told about a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum JobAlerts {
    /// `none`.
    Nobody(Nobody),
    /// These targets.
    Targets(#[schemars(with = "Vec<TargetNameText>")] Vec<TargetName>),
}

/// The word for nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Nobody {
    /// Nobody is told.
    None,
}

/// A target with its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An incoming webhook of Slack.
    Slack {
        /// Its address.
        url: Secret,
        /// Whether it may lie in a private network, and be plain HTTP.
        allow_private: bool,
    },
    /// A service that takes JSON by POST.
    Webhook {
        /// Its address.
        url: Secret,
        /// For `Authorization: Bearer`.
        token: Option<Secret>,
        /// Whether it may lie in a private network, and be plain HTTP.
        allow_private: bool,
    },
    /// A mail server.
    Email(Mail),
}

/// A mail server, and who writes to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// The server's name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is made safe.
    pub security: MailSecurity,
    /// Name and password, for servers that want them.
    pub login: Option<(String, Secret)>,
    /// The sender.
    pub from: String,
    /// The receivers.
    pub to: Vec<String>,
}

impl AlertsConfig {
    /// The targets that are told about a job.
    pub fn targets_of(&self, alerts: Option<&JobAlerts>) -> Vec<TargetName> {
        let known = |names: &[TargetName]| names.iter().filter(|n| self.targets.contains_key(*n)).cloned().collect();
        match (alerts, &self.to) {
            (Some(JobAlerts::Nobody(_)), _) => Vec::new(),
            (Some(JobAlerts::Targets(names)), _) | (None, Some(names)) => known(names),
            (None, None) => self.targets.keys().cloned().collect(),
        }
    }

    /// Finds a target by its name. Errors: `NoTarget` with the nearest name.
    pub fn target(&self, name: &TargetName) -> Result<&TargetConfig, Error> {
        self.targets.get(name).ok_or_else(|| {
            let names = || self.targets.keys().map(TargetName::as_str);
            let hint = match nearest(name.as_str(), names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if self.targets.is_empty() => format!("add an [alerts.targets.{name}] to headworks.toml"),
                None => format!("headworks.toml has {}", listed(names())),
            };
            Error::NoTarget { name: name.to_string(), hint }
        })
    }
}

impl TargetConfig {
    /// A word for its kind, as `slack`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Slack { .. } => "slack",
            Self::Webhook { .. } => "webhook",
            Self::Email { .. } => "email",
        }
    }

    /// Fills in addresses, tokens and passwords. `env` looks variables up.
    ///
    /// Errors: `Secret` when a variable is not set, a file cannot be read, or an address is none.
    pub fn resolve(
        &self,
        name: &TargetName,
        root: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Target, Error> {
        let setting = |key: &str| format!("alerts.targets.{name}.{key}");
        let secret = |stem: &str, variable: &Option<String>, file: &Option<String>| match (variable, file) {
            (Some(variable), _) => lookup(&setting(&format!("{stem}_env")), variable, env).map(Some),
            (None, Some(file)) => read_secret(&setting(&format!("{stem}_file")), root, file).map(Some),
            (None, None) => Ok(None),
        };
        let address = |url: &Option<String>, file: &Option<String>, allow_private: bool| {
            let (key, text) = match (url, file) {
                (Some(url), _) => ("url", filled_in(&setting("url"), url, env)?),
                (None, Some(file)) => ("url_file", read_secret(&setting("url_file"), root, file)?.trim().to_owned()),
                (None, None) => ("url", String::new()),
            };
            match url_fault(&text, allow_private) {
                None => Ok(Secret::new(text)),
                Some(reason) => Err(Error::Secret { setting: setting(key), reason: reason.to_owned() }),
            }
        };
        Ok(match self {
            Self::Slack { url, url_file, allow_private } => {
                Target::Slack { url: address(url, url_file, *allow_private)?, allow_private: *allow_private }
            }
            Self::Webhook { url, url_file, token_env, token_file, allow_private } => Target::Webhook {
                url: address(url, url_file, *allow_private)?,
                token: secret("token", token_env, token_file)?.map(Secret::new),
                allow_private: *allow_private,
            },
            Self::Email { host, port, security, user, password_env, password_file, from, to } => {
                let password = secret("password", password_env, password_file)?.unwrap_or_default();
                let usual = match security {
                    MailSecurity::Starttls => 587,
                    MailSecurity::Tls => 465,
                    MailSecurity::None => 25,
                };
                Target::Email(Mail {
                    host: host.clone(),
                    port: port.unwrap_or(usual),
                    security: *security,
                    login: user.as_ref().map(|user| (user.clone(), Secret::new(password))),
                    from: from.clone(),
                    to: to.clone(),
                })
            }
        })
    }
}

/// What is wrong with an address; the text itself may be a secret and is not repeated.
fn url_fault(url: &str, allow_private: bool) -> Option<&'static str> {
    let host = |rest: &str| rest.split(['/', '?', '#']).next().is_some_and(|host| !host.is_empty());
    match url.split_once("://") {
        Some(("https", rest)) if host(rest) => None,
        Some(("http", rest)) if host(rest) && allow_private => None,
        Some(("http", _)) => {
            Some("it is plain HTTP: take https://, or set `allow_private = true` in a network of your own")
        }
        _ => Some("it is not an address that begins with https://"),
    }
}

/// An address as far as it may be shown: Slack's, and many others', are secret as a whole.
pub(crate) fn shown_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "[secret]".to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}/***")
}

/// What types cannot say about alerts.
pub(crate) fn problems(config: &AlertsConfig, source: &Source, tree: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (n, name) in config.to.iter().flatten().enumerate() {
        if let Err(error) = config.target(name) {
            let hint = headworks_domain::Fault::hint(&error).unwrap_or_default();
            problems.push(source.error(tree.at(&["alerts", "to", &n.to_string()]), error.to_string(), hint));
        }
    }
    for (name, target) in &config.targets {
        let mut fail = |key: &str, message: String, hint: &str| {
            let at = tree.at(&["alerts", "targets", name.as_str(), key]);
            problems.push(source.error(at, format!("target `{name}` {message}"), hint));
        };
        let mut pair = |one: &str, other: &str, both: bool| {
            if both {
                fail(other, format!("has both `{one}` and `{other}`"), "keep one of them");
            }
        };
        match target {
            TargetConfig::Slack { url, url_file, allow_private }
            | TargetConfig::Webhook { url, url_file, allow_private, .. } => {
                pair("url", "url_file", url.is_some() && url_file.is_some());
                if let TargetConfig::Webhook { token_env, token_file, .. } = target {
                    pair("token_env", "token_file", token_env.is_some() && token_file.is_some());
                }
                match url {
                    None if url_file.is_none() => {
                        fail("url", "has no address".to_owned(), "give it `url`, as `${env:NAME}`, or `url_file`");
                    }
                    Some(text) if !text.starts_with("${env:") => {
                        if let Some(reason) = url_fault(text, *allow_private) {
                            fail("url", format!("has an address that cannot be used: {reason}"), "");
                        }
                    }
                    _ => {}
                }
            }
            TargetConfig::Email { security, user, password_env, password_file, from, to, .. } => {
                pair("password_env", "password_file", password_env.is_some() && password_file.is_some());
                let has_password = password_env.is_some() || password_file.is_some();
                if user.is_some() != has_password {
                    let hint = "give both `user` and `password_env` or `password_file`, or none";
                    fail("user", "has half of a login".to_owned(), hint);
                }
                if *security == MailSecurity::None && has_password {
                    let hint = "write `security = \"starttls\"` or `\"tls\"`, or leave the login out";
                    fail("security", "would send its password in the clear".to_owned(), hint);
                }
                if to.is_empty() {
                    fail("to", "has no receivers".to_owned(), "list addresses, as `to = [\"data@example.com\"]`");
                }
                for address in to.iter().chain([from]).filter(|address| !is_mailbox(address)) {
                    let hint = "write `data@example.com` or `Data team <data@example.com>`";
                    fail("to", format!("names `{address}`, which is no address for mail"), hint);
                }
            }
        }
    }
    problems
}

/// True for `x@host` and `Name <x@host>`; the sender reads it strictly once more.
fn is_mailbox(text: &str) -> bool {
    let address = match text.rsplit_once('<') {
        Some((_, rest)) => rest.strip_suffix('>').unwrap_or_default(),
        None => text,
    };
    let is_part = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control());
    address.split_once('@').is_some_and(|(user, host)| is_part(user) && is_part(host) && !host.contains('@'))
}

#[cfg(test)]
mod tests {
    use crate::settings::{Overrides, load_config};

    use super::*;

    const GOOD: &str = r#"
        [alerts]
        on = ["failure", "deadline"]
        to = ["team"]
        group_for = "10s"
        [alerts.targets.team]
        type = "slack"
        url = "${env:SLACK}"
        [alerts.targets.pager]
        type = "webhook"
        url = "https://pager.example.com/v1?key=s3cret"
        token_env = "TOKEN"
        [alerts.targets.mail]
        type = "email"
        host = "smtp.example.com"
        user = "me"
        password_env = "PW"
        from = "Headworks <headworks@example.com>"
        to = ["data@example.com"]
    "#;

    fn config(text: &str) -> AlertsConfig {
        let loaded = load_config(text, &Overrides::default());
        assert_eq!(loaded.problems, vec![]);
        loaded.config.alerts
    }

    fn name(text: &str) -> TargetName {
        text.parse().unwrap()
    }

    #[test]
    fn targets_are_read_and_filled_in() {
        let config = config(GOOD);
        assert_eq!(config.on, [EventKind::Failure, EventKind::Deadline]);
        let env = |variable: &str| match variable {
            "SLACK" => Some("https://hooks.slack.com/services/T0/B0/x".to_owned()),
            "TOKEN" | "PW" => Some("t0ken".to_owned()),
            _ => None,
        };
        let resolve = |target: &str| config.targets[&name(target)].resolve(&name(target), Path::new("/p"), &env);
        let Target::Slack { url, allow_private: false } = resolve("team").unwrap() else { panic!("it is Slack") };
        assert_eq!(url.expose(), "https://hooks.slack.com/services/T0/B0/x");
        let Target::Webhook { token, .. } = resolve("pager").unwrap() else { panic!("it is a webhook") };
        assert_eq!(token.unwrap().expose(), "t0ken");
        let Target::Email(mail) = resolve("mail").unwrap() else { panic!("it is a mail server") };
        assert_eq!((mail.port, mail.login.unwrap().1.expose()), (587, "t0ken"));
        let unset = config.targets[&name("team")].resolve(&name("team"), Path::new("/p"), &|_| None).unwrap_err();
        assert_eq!(
            unset.to_string(),
            "`alerts.targets.team.url` cannot be had: the environment variable `SLACK` is not set"
        );
        let plain = |_: &str| Some("http://10.0.0.1/x".to_owned());
        let refused = config.targets[&name("team")].resolve(&name("team"), Path::new("/p"), &plain).unwrap_err();
        assert!(!refused.to_string().contains("10.0.0.1") && refused.to_string().contains("plain HTTP"), "{refused}");
    }

    #[test]
    fn addresses_are_not_shown() {
        let loaded = load_config(GOOD, &Overrides::default());
        let shown = |path: &str| loaded.settings.iter().find(|s| s.path == path).unwrap().value.clone();
        assert_eq!(shown("alerts.targets.pager.url"), "https://pager.example.com/***");
        assert_eq!(shown("alerts.targets.team.url"), "${env:SLACK}");
        assert_eq!(shown_url("https://me:pw@host:1/x"), "https://host:1/***");
        assert_eq!(shown_url("nonsense"), "[secret]");
    }

    #[test]
    fn jobs_choose_their_targets() {
        let mut config = config(GOOD);
        let told = |config: &AlertsConfig, alerts: Option<&str>| {
            let alerts: Option<JobAlerts> = alerts.map(|text| serde_json::from_str(text).unwrap());
            config.targets_of(alerts.as_ref()).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(&config, None), "team");
        assert_eq!(told(&config, Some("\"none\"")), "");
        assert_eq!(told(&config, Some("[\"mail\", \"pager\", \"gone\"]")), "mail pager");
        config.to = None;
        assert_eq!(told(&config, None), "mail pager team");
    }

    #[test]
    fn problems_are_told_at_once() {
        let text = "[alerts]\non = [\"failures\"]\nto = [\"a b\"]\n[alerts.targets.x]\ntype = \"pigeon\"\n[alerts.targets.y]\n\
                    type = \"email\"\nhost = \"h\"\nfrm = \"a@b\"\nto = []\n";
        check(
            text,
            &[
                "2:7 `alerts.on[0]` cannot be `failures` (did you mean `failure`?)",
                "3:7 `a b` is not a target name: it begins with a letter or `_` and has letters, digits, `_` and `-` ()",
                "5:8 `alerts.targets.x.type` cannot be the text `pigeon` (write one of `slack`, `webhook`, `email`)",
                "9:1 unknown key `frm` in `alerts.targets.y` (did you mean `from`?)",
                "6:1 `alerts.targets.y` lacks the key `from` (The sender)",
            ],
        );
        let text = "[alerts]\nto = [\"tem\"]\n[alerts.targets.team]\ntype = \"slack\"\nurl = \"http://x\"\nurl_file = \"f\"\n\
                    [alerts.targets.none]\ntype = \"webhook\"\n[alerts.targets.mail]\ntype = \"email\"\nhost = \"h\"\nsecurity = \"none\"\n\
                    password_env = \"P\"\nfrom = \"me\"\nto = []\n";
        check(
            text,
            &[
                "2:7 there is no target `tem` for alerts (did you mean `team`?)",
                "9:17 target `mail` has half of a login (give both `user` and `password_env` or `password_file`, or none)",
                "12:1 target `mail` would send its password in the clear (write `security = \"starttls\"` or `\"tls\"`, or leave the login out)",
                "15:1 target `mail` has no receivers (list addresses, as `to = [\"data@example.com\"]`)",
                "15:1 target `mail` names `me`, which is no address for mail (write `data@example.com` or `Data team <data@example.com>`)",
                "7:17 target `none` has no address (give it `url`, as `${env:NAME}`, or `url_file`)",
                "6:1 target `team` has both `url` and `url_file` (keep one of them)",
                "5:1 target `team` has an address that cannot be used: it is plain HTTP: take https://, or set `allow_private = true` in a network of your own ()",
            ],
        );
    }

    fn check(text: &str, expected: &[&str]) {
        let shown: Vec<String> = load_config(text, &Overrides::default())
            .problems
            .iter()
            .map(|p| format!("{}:{} {} ({})", p.place.line, p.place.column, p.message, p.hint.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn mailboxes_have_a_name_and_a_host() {
        for good in ["a@b", "Data team <data@example.com>", "x.y+z@localhost"] {
            assert!(is_mailbox(good), "{good}");
        }
        for bad in ["", "a", "a@", "@b", "a b@c", "A <a@b", "a@b@c", "a@b\nBcc: x@y"] {
            assert!(!is_mailbox(bad), "{bad:?}");
        }
    }
}
