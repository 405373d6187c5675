//! The two databases that a lake's catalog may live in.

use headworks_store::{Store, StoreOptions};
use headworks_testkit::{Attach, TempPostgres, TempProject};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Catalog {
    Sqlite,
    Postgres,
}

pub(crate) const BOTH: [Catalog; 2] = [Catalog::Sqlite, Catalog::Postgres];

impl Catalog {
    /// A database that has nothing in it, with what DuckDB needs to attach it.
    pub(crate) async fn open(self, project: &TempProject) -> (Store, Attach) {
        let (url, attach) = match self {
            Self::Sqlite => {
                let path = project.join("metadata.db");
                (format!("sqlite:{}", path.display()), Attach::sqlite(path))
            }
            Self::Postgres => {
                let url = TempPostgres::shared().unwrap().create_database().unwrap();
                (url.clone(), Attach::postgres(&url).metadata_schema("headworks_lake"))
            }
        };
        (Store::open(&StoreOptions::new(url)).await.unwrap(), attach)
    }
}
