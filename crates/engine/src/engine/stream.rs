//! The rows of one query on their way to whoever reads them.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    error::DataFusionError, execution::SendableRecordBatchStream, physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{Stream, TryStreamExt};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::AbortHandle,
};

use crate::{
    QueryId, QueryState, Result,
    live::Live,
    stored::{Rows, Stored},
};

/// The batches of one query, as they are made elsewhere or were before.
pub struct QueryStream {
    pub(super) live: Arc<Live>,
    pub(super) schema: SchemaRef,
    pub(super) batches: Batches,
}

pub(super) enum Batches {
    /// From a query that runs; batches beyond those that are kept have a permit, so that it does not run ahead.
    Made { batches: mpsc::Receiver<Made>, driver: AbortHandle },
    /// From the cache, or from a result that was kept on request.
    Kept(Rows),
}

pub(super) struct Made {
    pub(super) batch: Result<RecordBatch>,
    pub(super) _ahead: Option<OwnedSemaphorePermit>,
}

impl QueryStream {
    /// The query's id.
    pub fn id(&self) -> QueryId {
        self.live.id()
    }

    /// How the query stands, also after its end.
    pub fn state(&self) -> QueryState {
        self.live.state()
    }

    /// Rows of a result that is kept. Reading blocks while they come from a file.
    pub(crate) fn of_stored(live: Arc<Live>, stored: Arc<Stored>, skip: u64, left: u64) -> Self {
        Self { live, schema: stored.schema(), batches: Batches::Kept(Rows::new(stored, skip, left)) }
    }

    /// The whole result, when it is there already and nobody took any of it.
    pub(crate) fn stored(&self) -> Option<Arc<Stored>> {
        match &self.batches {
            Batches::Kept(rows) => rows.whole(),
            Batches::Made { .. } => None,
        }
    }

    /// The columns of all batches.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The same as DataFusion's type; errors travel inside it and come out whole through [`Error::from`].
    pub fn into_sendable(self) -> SendableRecordBatchStream {
        let schema = self.schema();
        Box::pin(RecordBatchStreamAdapter::new(schema, self.map_err(|e| DataFusionError::External(Box::new(e)))))
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.batches {
            Batches::Made { batches, .. } => batches.poll_recv(ctx).map(|made| Some(made?.batch)),
            Batches::Kept(rows) => Poll::Ready(rows.next()),
        }
    }
}

impl Drop for QueryStream {
    fn drop(&mut self) {
        if let Batches::Made { driver, .. } = &self.batches {
            driver.abort();
        }
    }
}

impl fmt::Debug for QueryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryStream").field("schema", &self.schema).finish_non_exhaustive()
    }
}
