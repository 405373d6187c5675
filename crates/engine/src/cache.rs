//! Results of queries that were asked before, on data that has not changed since.
//!
//! An entry is good while the catalog gives its tables the same *stamp* as before it was made, so it is never stale: there is
//! nothing to invalidate and no time to live. Whoever asks what somebody else is just asking waits for that answer.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use hashlink::LinkedHashMap;
use tokio::sync::watch;

use crate::{
    CacheOptions, CacheState, Catalog, Result, stored,
    stored::{Rows, Stored},
};

/// Texts of which it is known that their results are not kept; more are forgotten.
const NOT_KEPT_MAX: usize = 4_096;

pub(crate) struct Cache {
    options: CacheOptions,
    folder: PathBuf,
    shelves: Mutex<Shelves>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Default)]
struct Shelves {
    memory: Shelf,
    disk: Shelf,
    flights: HashMap<Arc<str>, watch::Receiver<()>>,
    not_kept: LinkedHashMap<Arc<str>, ()>,
}

/// Entries, the one that was not used for longest first.
#[derive(Default)]
struct Shelf {
    entries: LinkedHashMap<Arc<str>, Entry>,
    bytes: u64,
}

#[derive(Clone)]
struct Entry {
    /// The tables that it was read from.
    tables: Arc<[String]>,
    /// What the catalog said of them before.
    stamp: String,
    stored: Arc<Stored>,
}

/// What the cache says to a query.
pub(crate) enum Looked {
    /// Here it is.
    Hit(Arc<Stored>),
    /// Somebody is at it: look again when this is over.
    Flying(watch::Receiver<()>),
    /// Make it, others wait for it.
    Lead(Flight),
    /// Make it for yourself; whether it is kept shows afterwards.
    Alone,
}

/// A query that others wait for, until this is dropped.
pub(crate) struct Flight {
    cache: Arc<Cache>,
    key: Arc<str>,
    _over: watch::Sender<()>,
}

impl Cache {
    /// `folder` is for entries that do not fit into memory.
    pub(crate) fn new(options: CacheOptions, folder: PathBuf) -> Arc<Self> {
        let (hits, misses) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { options, folder, shelves: Mutex::default(), hits, misses })
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when nothing is kept at all.
    pub(crate) fn is_off(&self) -> bool {
        self.options.memory_bytes == 0
    }

    /// The largest result that is kept, in bytes.
    pub(crate) fn entry_bytes_max(&self) -> usize {
        self.options.entry_bytes_max
    }

    /// Looks for a result. Errors: those of the catalog, asked whether it is good still.
    pub(crate) async fn look(self: &Arc<Self>, key: &Arc<str>, catalog: &dyn Catalog) -> Result<Looked> {
        let found = self.shelves().find(key);
        if let Some(entry) = found {
            if catalog.stamp(&entry.tables, None).await?.as_ref() == Some(&entry.stamp) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Looked::Hit(self.in_memory(key, entry).await?));
            }
            self.shelves().remove(key, &entry);
        }
        let mut shelves = self.shelves();
        if let Some(flight) = shelves.flights.get(key) {
            return Ok(Looked::Flying(flight.clone()));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        if shelves.not_kept.contains_key(key) {
            return Ok(Looked::Alone);
        }
        let (over, flight) = watch::channel(());
        shelves.flights.insert(Arc::clone(key), flight);
        Ok(Looked::Lead(Flight { cache: Arc::clone(self), key: Arc::clone(key), _over: over }))
    }

    /// Keeps a result that was made after `stamp` was taken.
    pub(crate) fn keep(
        self: &Arc<Self>,
        key: &Arc<str>,
        tables: Arc<[String]>,
        stamp: String,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) {
        let stored = Arc::new(Stored::in_memory(schema, batches));
        let evicted = self.shelves().put(Arc::clone(key), Entry { tables, stamp, stored }, self.options.memory_bytes);
        if self.options.disk_bytes == 0 || evicted.is_empty() {
            return;
        }
        let cache = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            for (key, entry) in evicted {
                cache.to_disk(key, entry);
            }
        });
    }

    /// Remembers that a text's results are not kept, so that nobody waits for one.
    pub(crate) fn does_not_keep(&self, key: &Arc<str>) {
        let mut shelves = self.shelves();
        shelves.not_kept.insert(Arc::clone(key), ());
        if shelves.not_kept.len() > NOT_KEPT_MAX {
            shelves.not_kept.pop_front();
        }
    }

    fn to_disk(&self, key: Arc<str>, entry: Entry) {
        match stored::to_file(&entry.stored, &self.folder) {
            Ok(stored) => {
                let entry = Entry { stored: Arc::new(stored), ..entry };
                let limit = self.options.disk_bytes;
                let gone = self.shelves().disk.put(key, entry, limit);
                // Their files go outside of the lock.
                drop(gone);
            }
            Err(error) => tracing::warn!(%error, "a cached result could not be written to disk and is forgotten"),
        }
    }

    async fn in_memory(self: &Arc<Self>, key: &Arc<str>, entry: Entry) -> Result<Arc<Stored>> {
        if !entry.stored.is_on_disk() {
            return Ok(entry.stored);
        }
        let from = Arc::clone(&entry.stored);
        let read = move || Rows::new(from, 0, u64::MAX).collect::<Result<Vec<RecordBatch>>>();
        let batches = tokio::task::spawn_blocking(read).await.map_err(crate::engine::not_joined)??;
        let schema = entry.stored.schema();
        let stored = Arc::new(Stored::in_memory(Arc::clone(&schema), batches.clone()));
        self.keep(key, entry.tables, entry.stamp, schema, batches);
        Ok(stored)
    }

    pub(crate) fn state(&self) -> CacheState {
        let shelves = self.shelves();
        CacheState {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            entries: shelves.memory.entries.len() + shelves.disk.entries.len(),
            memory_bytes: shelves.memory.bytes,
            disk_bytes: shelves.disk.bytes,
        }
    }
}

impl Shelves {
    fn find(&mut self, key: &Arc<str>) -> Option<Entry> {
        for shelf in [&mut self.memory, &mut self.disk] {
            if let Some(entry) = shelf.entries.to_back(key) {
                return Some(entry.clone());
            }
        }
        None
    }

    /// Removes an entry, unless there is another by now.
    fn remove(&mut self, key: &Arc<str>, entry: &Entry) {
        for shelf in [&mut self.memory, &mut self.disk] {
            if shelf.entries.get(key).is_some_and(|there| Arc::ptr_eq(&there.stored, &entry.stored)) {
                shelf.take(key);
            }
        }
    }

    fn put(&mut self, key: Arc<str>, entry: Entry, memory_max: u64) -> Vec<(Arc<str>, Entry)> {
        self.not_kept.remove(&key);
        self.disk.take(&key);
        self.memory.put(key, entry, memory_max)
    }
}

impl Shelf {
    fn take(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.stored.bytes();
        }
    }

    /// Puts an entry in and gives back what has no room any more.
    fn put(&mut self, key: Arc<str>, entry: Entry, bytes_max: u64) -> Vec<(Arc<str>, Entry)> {
        self.take(&key);
        self.bytes += entry.stored.bytes();
        self.entries.insert(key, entry);
        let mut gone = Vec::new();
        while self.bytes > bytes_max {
            let Some((key, entry)) = self.entries.pop_front() else { break };
            self.bytes -= entry.stored.bytes();
            gone.push((key, entry));
        }
        gone
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cache.shelves().flights.remove(&self.key);
    }
}
