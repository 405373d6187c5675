//! The project as it is now: a process that keeps running reads its files again when they change.

use std::sync::{Arc, PoisonError, RwLock};

use headworks_flow::Project;

/// The newest state of a project; clones share it.
#[derive(Clone)]
pub(crate) struct LiveProject(Arc<RwLock<Arc<Project>>>);

impl LiveProject {
    pub(crate) fn new(project: Arc<Project>) -> Self {
        Self(Arc::new(RwLock::new(project)))
    }

    /// The project as it was read last.
    pub(crate) fn current(&self) -> Arc<Project> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts what was read anew in its place; runs keep what they were planned with.
    pub(crate) fn replace(&self, project: Arc<Project>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = project;
    }
}
