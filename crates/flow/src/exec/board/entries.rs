//! The runs on a board, by numbers that are never used again.

use std::{
    collections::BTreeMap,
    ops::{Index, IndexMut},
};

use super::entry::Entry;

/// Entries by their numbers. Indexing is for numbers that the board itself holds; what comes from outside asks
/// [`Entries::has`] first, for its run may be over and removed.
#[derive(Default)]
pub(super) struct Entries {
    entries: BTreeMap<usize, Entry>,
    next: usize,
}

impl Entries {
    /// The number that the next entry gets.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.insert(self.next, entry);
        self.next += 1;
    }

    pub(super) fn has(&self, run: usize) -> bool {
        self.entries.contains_key(&run)
    }

    pub(super) fn remove(&mut self, run: usize) {
        self.entries.remove(&run);
    }

    pub(super) fn numbers(&self) -> Vec<usize> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}

impl Index<usize> for Entries {
    type Output = Entry;

    fn index(&self, run: usize) -> &Entry {
        self.entries.get(&run).expect("the board forgets a run's number when it removes the run")
    }
}

impl IndexMut<usize> for Entries {
    fn index_mut(&mut self, run: usize) -> &mut Entry {
        self.entries.get_mut(&run).expect("the board forgets a run's number when it removes the run")
    }
}
