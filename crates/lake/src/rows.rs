use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    error::DataFusionError, execution::SendableRecordBatchStream, physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{Stream, TryStreamExt};

/// Rows on their way into the lake: batches of one schema.
pub type Rows = SendableRecordBatchStream;

/// Makes rows of any stream of batches. An error of ours, such as [`crate::Error::Source`], comes out of `stage` as itself.
pub fn rows<S, E>(schema: SchemaRef, batches: S) -> Rows
where
    S: Stream<Item = Result<RecordBatch, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    Box::pin(RecordBatchStreamAdapter::new(schema, batches.map_err(|e| DataFusionError::External(e.into()))))
}
