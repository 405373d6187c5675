//! Which pieces of work share a transaction.

use headworks_domain::Fault as _;
use headworks_store::{Error, Store};
use tokio::sync::oneshot;

use crate::world::{BOTH, World};

/// Writes that are queued while another is at work; the first of them may keep the others out.
async fn commits_of(store: &Store, alone: bool) -> u64 {
    let before = store.commits();
    let (go, gone) = oneshot::channel::<()>();
    let first = store.write(move |_| {
        Box::pin(async move {
            let _ = gone.await;
            Ok::<_, Error>(())
        })
    });
    let second = store.write(move |tx| {
        Box::pin(async move {
            if alone {
                tx.end_group();
            }
            Ok::<_, Error>(())
        })
    });
    let third = store.write(|_| Box::pin(async { Ok::<_, Error>(()) }));
    let release = async move { go.send(()).unwrap() };
    let (first, second, third, ()) = tokio::join!(first, second, third, release);
    for done in [first, second, third] {
        done.unwrap_or_else(|error| panic!("{}: {error}", error.code()));
    }
    store.commits() - before
}

#[tokio::test]
async fn work_that_must_be_last_is() {
    for dialect in BOTH {
        let world = World::new(dialect).await;
        assert_eq!(commits_of(&world.store, false).await, 1, "{dialect:?}");
        assert_eq!(commits_of(&world.store, true).await, 2, "{dialect:?}");
        assert_eq!(commits_of(&world.store, false).await, 1, "{dialect:?}: the next ones share again");
    }
}
