//! The connections of a project, opened when a job first needs them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use headworks_connect::{ConnectionSpec, Source};
use headworks_domain::ConnectionName;
use headworks_flow::{Connection, ConnectionConfig, Failure, Project};

use crate::settings::Environment;

/// A source, with the settings that it was opened with.
type Opened = (ConnectionConfig, Arc<dyn Source>);

/// Opened sources by name. One whose settings changed is opened anew.
pub(crate) struct Connections {
    root: PathBuf,
    environment: Environment,
    opened: Mutex<HashMap<ConnectionName, Opened>>,
}

impl Connections {
    /// `root` is the project's folder; secrets come from `environment`.
    pub(crate) fn new(root: PathBuf, environment: Environment) -> Self {
        Self { root, environment, opened: Mutex::default() }
    }

    /// The source that a connection stands for. A connection that cannot be opened fails the jobs that use it, and no others.
    pub(crate) fn source(&self, project: &Project, name: &ConnectionName) -> Result<Arc<dyn Source>, Failure> {
        let config = project.config.connection(name).map_err(|e| Failure::of(&e))?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, source)) = opened.get(name).filter(|(known, _)| known == config) {
            return Ok(Arc::clone(source));
        }
        let variable = |variable: &str| self.environment.get(variable).map(str::to_owned);
        let spec = match config.resolve(name, &self.root, &variable).map_err(|e| Failure::of(&e))? {
            Connection::Sqlite { path } => ConnectionSpec::Sqlite { path },
            Connection::Postgres { url } => ConnectionSpec::Postgres { url },
        };
        let source = headworks_connect::open(name.as_str(), &spec).map_err(|e| Failure::of(&e))?;
        opened.insert(name.clone(), (config.clone(), Arc::clone(&source)));
        Ok(source)
    }
}
