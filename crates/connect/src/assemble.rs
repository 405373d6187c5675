//! Rows into batches.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Field, Schema, SchemaRef},
};
use tokio::sync::mpsc;

use crate::{
    column::Column,
    error::{Error, Result},
    source::{BatchStream, ReadColumn, ReportHandle, SourceOptions},
};

/// Builds batches of the columns of one read.
pub(crate) struct Assembler {
    pub(crate) columns: Vec<Column>,
    schema: SchemaRef,
    rows: usize,
    rows_max: usize,
    bytes_max: usize,
}

impl Assembler {
    pub(crate) fn new(connection: &str, columns: &[ReadColumn], options: &SourceOptions) -> Result<Self> {
        let fields = columns.iter().map(|c| Field::new(&c.name, c.data_type.clone(), true)).collect::<Vec<_>>();
        let built = columns
            .iter()
            .map(|c| {
                Column::new(&c.data_type).ok_or_else(|| Error::Internal {
                    connection: connection.to_owned(),
                    reason: format!("no column of type {} can be built", c.data_type),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            columns: built,
            schema: Arc::new(Schema::new(fields)),
            rows: 0,
            rows_max: options.batch_rows_max.max(1),
            bytes_max: options.batch_bytes_max.max(1),
        })
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Says that every column got its value of one more row.
    pub(crate) fn row_done(&mut self) {
        self.rows += 1;
    }

    /// True when the batch should go out.
    pub(crate) fn is_full(&self) -> bool {
        // Summing up on each row would cost more than the values themselves.
        self.rows >= self.rows_max
            || (self.rows.is_multiple_of(64) && self.columns.iter().map(|c| c.bytes).sum::<usize>() >= self.bytes_max)
            || self.columns.iter().any(|c| c.bytes >= self.bytes_max)
    }

    /// Gives the batch, if it has any rows, and starts the next.
    pub(crate) fn take(&mut self, connection: &str) -> Result<Option<RecordBatch>> {
        let rows = std::mem::take(&mut self.rows);
        if rows == 0 {
            return Ok(None);
        }
        let internal = |e: arrow::error::ArrowError| Error::Internal {
            connection: connection.to_owned(),
            reason: format!("a batch does not fit together: {e}"),
        };
        let arrays = self.columns.iter_mut().map(Column::finish).collect::<Result<Vec<_>, _>>().map_err(internal)?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options).map(Some).map_err(internal)
    }
}

/// The reading side's end of a stream of batches.
///
/// Dropping it without `done` or `fail` is itself an error on the other side: a reader that died must not look like one that
/// came to the end.
pub(crate) struct BatchSender {
    sender: mpsc::Sender<Message>,
    report: ReportHandle,
}

enum Message {
    Batch(RecordBatch),
    Failed(Box<Error>),
    Done,
}

/// Says that nobody reads any more.
#[derive(Debug)]
pub(crate) struct Gone;

impl BatchSender {
    /// Makes a stream that holds one batch at most.
    pub(crate) fn channel(connection: &str) -> (Self, BatchStream, ReportHandle) {
        let (sender, receiver) = mpsc::channel(1);
        let report = ReportHandle::default();
        let connection = connection.to_owned();
        let stream = futures::stream::unfold(Some((receiver, connection)), |state| async move {
            let (mut receiver, connection) = state?;
            match receiver.recv().await {
                Some(Message::Batch(batch)) => Some((Ok(batch), Some((receiver, connection)))),
                Some(Message::Failed(error)) => Some((Err(*error), None)),
                Some(Message::Done) => None,
                None => {
                    let reason = "the reading task stopped before its end".to_owned();
                    Some((Err(Error::Internal { connection, reason }), None))
                }
            }
        });
        (Self { sender, report: report.clone() }, Box::pin(stream), report)
    }

    /// Sends a batch, waiting until there is room for it.
    pub(crate) async fn send(&self, batch: RecordBatch) -> Result<(), Gone> {
        self.report.count_rows(batch.num_rows());
        self.sender.send(Message::Batch(batch)).await.map_err(|_| Gone)
    }

    /// Ends the stream.
    pub(crate) async fn end(&self, result: Result<()>) {
        let message = match result {
            Ok(()) => Message::Done,
            Err(error) => Message::Failed(Box::new(error)),
        };
        // When nobody reads any more, nobody wants to know.
        let _ = self.sender.send(message).await;
    }

    pub(crate) fn report(&self) -> &ReportHandle {
        &self.report
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn a_reader_that_died_is_not_one_that_ended() {
        let (sender, stream, _) = BatchSender::channel("c");
        sender.end(Ok(())).await;
        assert!(stream.try_collect::<Vec<_>>().await.unwrap().is_empty());
        let (sender, stream, _) = BatchSender::channel("c");
        drop(sender);
        assert!(matches!(stream.try_collect::<Vec<_>>().await, Err(Error::Internal { .. })));
    }
}
