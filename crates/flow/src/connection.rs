//! Connections and secrets: fills in paths, variables and passwords, at the last moment and only for who asks.

use std::path::{Path, PathBuf};

use headworks_domain::{ConnectionName, Secret, nearest};

use crate::{
    config::{Config, ConnectionConfig},
    error::Error,
    schema,
};

/// What a connection needs to be opened, secrets included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A PostgreSQL database.
    Postgres {
        /// The address with user and password.
        url: Secret,
    },
}

impl Config {
    /// Finds a connection by its name. Errors: `NoConnection` with the nearest name.
    pub fn connection(&self, name: &ConnectionName) -> Result<&ConnectionConfig, Error> {
        self.connections.get(name).ok_or_else(|| {
            let names = self.connections.keys().map(ConnectionName::as_str);
            let hint = match nearest(name.as_str(), names.clone()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if self.connections.is_empty() => format!("add a [connections.{name}] to headworks.toml"),
                None => format!("headworks.toml has {}", schema::listed(names)),
            };
            Error::NoConnection { name: name.to_string(), hint }
        })
    }

    /// The metadata database's address with its secrets; a SQLite path is made absolute.
    ///
    /// `env` looks variables up. Errors: `Secret` when one is not set.
    pub fn metadata_url(&self, root: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Secret, Error> {
        let url = filled_in("metadata.url", &self.metadata.url, env)?;
        Ok(Secret::new(match url.strip_prefix("sqlite:") {
            Some(path) => format!("sqlite:{}", root.join(path.trim_start_matches("//")).display()),
            None => url,
        }))
    }

    /// The lake's secret access key. Errors: `Secret` when its variable is not set.
    pub fn storage_secret(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Secret>, Error> {
        let key = self.storage.secret_access_key.as_deref();
        key.map(|key| filled_in("storage.secret_access_key", key, env).map(Secret::new)).transpose()
    }

    /// The lake's access key id. Errors: `Secret` when its variable is not set.
    pub fn storage_key_id(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, Error> {
        let key = self.storage.access_key_id.as_deref();
        key.map(|key| filled_in("storage.access_key_id", key, env)).transpose()
    }

    /// The lake's place: an absolute folder, or an S3 address as written.
    pub fn storage_location(&self, root: &Path) -> String {
        if self.storage.path.contains("://") {
            self.storage.path.clone()
        } else {
            root.join(&self.storage.path).display().to_string()
        }
    }
}

impl ConnectionConfig {
    /// Fills in paths and secrets.
    ///
    /// `env` looks variables up. Errors: `Secret` when a variable is not set or a password file cannot be read.
    pub fn resolve(
        &self,
        name: &ConnectionName,
        root: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Connection, Error> {
        let setting = |key: &str| format!("connections.{name}.{key}");
        match self {
            Self::Sqlite { path } => {
                Ok(Connection::Sqlite { path: root.join(filled_in(&setting("path"), path, env)?) })
            }
            Self::Postgres { url, password_env, password_file } => {
                let url = filled_in(&setting("url"), url, env)?;
                let password = match (password_env, password_file) {
                    (Some(variable), _) => Some(lookup(&setting("password_env"), variable, env)?),
                    (None, Some(file)) => Some(read_secret(&setting("password_file"), root, file)?),
                    (None, None) => None,
                };
                let url = match password {
                    Some(password) => with_password(&url, &password).ok_or_else(|| Error::Secret {
                        setting: setting("url"),
                        reason: "it has no `user@host` that a password could go with".to_owned(),
                    })?,
                    None => url,
                };
                Ok(Connection::Postgres { url: Secret::new(url) })
            }
        }
    }
}

/// Puts a password into an address, in place of the one that may be there.
fn with_password(url: &str, password: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (user, host) = rest[..end].rsplit_once('@')?;
    let user = user.split(':').next().unwrap_or(user);
    let mut encoded = String::new();
    for byte in password.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    Some(format!("{scheme}://{user}:{encoded}@{host}{}", &rest[end..]))
}

/// Reads a secret from a file, without the line's end.
pub(crate) fn read_secret(setting: &str, root: &Path, file: &str) -> Result<String, Error> {
    let text = std::fs::read_to_string(root.join(file)).map_err(|error| Error::Secret {
        setting: setting.to_owned(),
        reason: format!("`{file}` cannot be read: {error}"),
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Replaces every `${env:NAME}`.
pub(crate) fn filled_in(setting: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${env:") {
        let Some(length) = rest[start..].find('}') else { break };
        out.push_str(&rest[..start]);
        out.push_str(&lookup(setting, &rest[start + "${env:".len()..start + length], env)?);
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

pub(crate) fn lookup(setting: &str, variable: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Error> {
    env(variable).ok_or_else(|| Error::Secret {
        setting: setting.to_owned(),
        reason: format!("the environment variable `{variable}` is not set"),
    })
}
