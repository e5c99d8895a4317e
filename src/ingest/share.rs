//! Another file gets content that is stored already, and no byte is moved.

use super::Ingest;
use super::worker::StoreError;
use crate::tree::op::StoredBy;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{ContentHash, Generation, Ino, Time};

impl Ingest {
    /// Makes this generation of the file refer to the stored content `hash`. False, and nothing changed, when that is
    /// not there any more, or the file is not.
    pub async fn share(
        &self,
        ino: Ino,
        generation: Generation,
        hash: &ContentHash,
        size: u64,
        now: Time,
    ) -> Result<bool, StoreError> {
        // Under the lock of the hash nobody removes its bytes.
        let _lock = self.backends.locks.acquire(hash).await?;
        let Some(blob) = self.present(hash).await? else {
            return Ok(false);
        };
        let pending = Op::Pending {
            ino,
            generation,
            node: self.node.clone(),
            size,
            mtime: now,
            ctime: now,
        };
        let commit = Op::Commit {
            ino,
            generation,
            hash: *hash,
            size,
            blob,
            // Of use only for content that the tree does not know.
            by: StoredBy {
                node: self.node.clone(),
                worker: String::new(),
                uploaded_at: now,
                started_at: now,
            },
            now,
        };
        let ops = vec![pending, commit];
        match self
            .tree
            .submit(Origin::Kernel, Commitment::Committed, ops)
            .await
        {
            Ok(_) => Ok(true),
            Err(TreeError::Superseded | TreeError::Reaped | TreeError::NotFound) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
