//! Backups: what they are on disk, how they are made while everything runs, and how they become a project again.
//!
//! ```text
//! DEST/20261126T050837Z/manifest.json    written last: a folder without it is no backup
//!                       metadata.jsonl   the metadata database in its portable form
//!                       files.jsonl      every data file that the catalog names, with its size and SHA-256
//!                       project/         headworks.toml and jobs/, so that the backup stands alone
//! DEST/data/main/...                     the data files, shared by all backups: they never change
//! ```

mod make;
mod manifest;
mod restore;

use headworks_store::Component;

pub(crate) use make::{Made, make, prune};
pub(crate) use manifest::Source;
pub(crate) use restore::{Restored, There, not_empty, prepare_folder, restore, what_is_there};

/// Every part of the program that has tables of its own: who adds one adds it here, or backups are refused.
pub(crate) fn components() -> Vec<Component> {
    let mut all = headworks_meta::TABLES.to_vec();
    all.extend(headworks_lake::TABLES);
    all
}
