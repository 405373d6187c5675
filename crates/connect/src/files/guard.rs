//! Readers of foreign bytes, kept from taking the process with them.

use std::{
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
};

use arrow::{array::RecordBatch, error::ArrowError};

use crate::error::{Error, Result};

/// Runs a reader on bytes that may be anything. The libraries check a lot, but some damage meets an `unwrap` of theirs.
pub(super) fn guarded<T, E: Display>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => Err(message(&*panic)),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the reader gave up: {}", text.unwrap_or("no reason given"))
}

/// An iterator of batches that ends at the first error or panic.
pub(super) struct Guarded<I, F> {
    inner: Option<I>,
    error: F,
}

impl<I, F> Guarded<I, F> {
    pub(super) fn new(inner: I, error: F) -> Self {
        Self { inner: Some(inner), error }
    }
}

impl<I, F> Iterator for Guarded<I, F>
where
    I: Iterator<Item = Result<RecordBatch, ArrowError>>,
    F: Fn(String) -> Error,
{
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let inner = self.inner.as_mut()?;
        let reason = match catch_unwind(AssertUnwindSafe(|| inner.next())) {
            Ok(Some(Ok(batch))) => return Some(Ok(batch)),
            Ok(None) => {
                self.inner = None;
                return None;
            }
            Ok(Some(Err(error))) => error.to_string(),
            Err(panic) => message(&*panic),
        };
        self.inner = None;
        Some(Err((self.error)(reason)))
    }
}
