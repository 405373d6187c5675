//! What somebody may read of the lake.

/// The rows and columns that somebody may read; pure data, held by the SQL engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    is_everything: bool,
}

impl Access {
    /// Everything that there is, now and later.
    pub fn everything() -> Self {
        Self { is_everything: true }
    }

    /// A text that differs whenever two differ in what may be read: part of the key of cached results.
    pub fn fingerprint(&self) -> String {
        if self.is_everything { "*".to_owned() } else { String::new() }
    }
}
