//! Buckets of an S3 service besides the lake's own, opened when a wait first needs them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use headworks_domain::ErrorKind;
use headworks_flow::{Failure, Project, StorageConfig};
use object_store::{ObjectStore, RetryConfig, aws::AmazonS3Builder};

use crate::settings::Environment;

/// How long the client itself tries on: who asks has pauses of its own.
const RETRY_WITHIN: Duration = Duration::from_secs(10);

/// A bucket, with the settings that it was opened with.
type Opened = (StorageConfig, Arc<dyn ObjectStore>);

/// Opened buckets by name. One whose settings changed is opened anew.
pub(crate) struct Buckets {
    environment: Environment,
    opened: Mutex<HashMap<String, Opened>>,
}

impl Buckets {
    /// Secrets come from `environment`.
    pub(crate) fn new(environment: Environment) -> Self {
        Self { environment, opened: Mutex::default() }
    }

    /// A bucket, by the service and the keys that `[storage]` names; without these by the environment's usual ones.
    pub(crate) fn bucket(&self, project: &Project, name: &str) -> Result<Arc<dyn ObjectStore>, Failure> {
        let config = &project.config.storage;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bucket)) = opened.get(name).filter(|(known, _)| known == config) {
            return Ok(Arc::clone(bucket));
        }
        let variable = |variable: &str| self.environment.get(variable).map(str::to_owned);
        let mut s3 = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_allow_http(config.allow_http)
            .with_retry(RetryConfig { max_retries: 1, retry_timeout: RETRY_WITHIN, ..RetryConfig::default() });
        if let Some(endpoint) = &config.endpoint {
            s3 = s3.with_endpoint(endpoint);
        }
        if let Some(region) = &config.region {
            s3 = s3.with_region(region);
        }
        let id = project.config.storage_key_id(&variable).map_err(|e| Failure::of(&e))?;
        let key = project.config.storage_secret(&variable).map_err(|e| Failure::of(&e))?;
        if let (Some(id), Some(key)) = (id, key) {
            s3 = s3.with_access_key_id(id).with_secret_access_key(key.expose());
        }
        let bucket: Arc<dyn ObjectStore> = Arc::new(s3.build().map_err(|error| {
            Failure::new(ErrorKind::Invalid, "LOOK_BUCKET", format!("bucket `{name}` cannot be opened: {error}"))
                .with_hint("give [storage] of headworks.toml its region, endpoint and keys")
        })?);
        opened.insert(name.to_owned(), (config.clone(), Arc::clone(&bucket)));
        Ok(bucket)
    }
}
