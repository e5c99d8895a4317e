//! The public records of contents. They inform; nothing depends on them.

use tracing::debug;

use super::Ingest;
use super::worker::StoreError;
use crate::backend::FileRecord;
use crate::types::{ContentHash, Status};

impl Ingest {
    /// Writes the public record. It informs; nothing depends on it, so a failure only goes to the log.
    pub(super) async fn note(&self, record: &FileRecord) {
        if let Err(e) = self.backends.records.advance(record).await {
            debug!("record of {}: {e}", record.hash);
        }
    }

    /// Says in the records what a daemon that ended had no time to say.
    pub(super) async fn settle_records(&self) {
        let unsettled = std::mem::take(&mut *self.unsettled.lock());
        for hash in unsettled {
            if let Err(e) = self.settle_record(&hash).await {
                debug!("record of {hash}: {e}");
                self.unsettled.lock().push(hash);
            }
        }
    }

    async fn settle_record(&self, hash: &ContentHash) -> Result<(), StoreError> {
        let Some(content) = self.tree.read(|q| q.content(hash))? else {
            return Ok(());
        };
        if let Some(mut record) = self.backends.records.get(hash).await?
            && record.status != Status::Done
        {
            record.status = Status::Done;
            record.node = content.node;
            record.worker = Some(content.worker);
            record.started_at = Some(content.started_at);
            record.done_at = Some(content.done_at);
            self.backends.records.advance(&record).await?;
        }
        Ok(())
    }
}
