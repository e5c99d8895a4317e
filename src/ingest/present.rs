//! Whether a content is stored already, so that a file with the same can be given up.

use tracing::warn;

use super::Ingest;
use super::worker::{HASH_INLINE_BYTES, StoreError};
use crate::content::is_damage;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{BlobId, ContentHash, Time};

impl Ingest {
    /// The object that holds the content already. A duplicate counts only against content that is really there.
    pub(super) async fn present(&self, hash: &ContentHash) -> Result<Option<BlobId>, StoreError> {
        let Some(content) = self.tree.read(|q| q.content(hash))? else {
            return Ok(None);
        };
        let whole = self.backends.blobs.is_whole(&content.blob).await?;
        Ok((whole && self.is_whole_here(hash).await?).then_some(content.blob))
    }

    /// Makes `blob`, which was stored just now, the object of a content whose object the store has lost or damaged. False
    /// when that is not so.
    pub(super) async fn takes_the_place(
        &self,
        hash: &ContentHash,
        blob: &BlobId,
    ) -> Result<bool, StoreError> {
        let Some(known) = self.tree.read(|q| q.content(hash))? else {
            return Ok(false);
        };
        let lost = known.blob;
        if lost == *blob || self.backends.blobs.is_whole(&lost).await? {
            return Ok(false);
        }
        let replace = Op::Replace {
            hash: *hash,
            lost,
            blob: blob.clone(),
            now: Time::now(),
        };
        match self
            .tree
            .submit(Origin::Node, Commitment::Committed, vec![replace])
            .await
        {
            Ok(_) => {
                warn!("the store had lost or damaged {hash}: it is stored anew");
                Ok(true)
            }
            Err(TreeError::Reaped) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether this disk's copy is right, or its damage does not matter because it is not the store's. The file that is
    /// given up for a duplicate may be the last whole one.
    async fn is_whole_here(&self, hash: &ContentHash) -> Result<bool, StoreError> {
        if !self.backends.content_dir_is_store {
            return Ok(true);
        }
        let Some(content) = self.sealed.open_local(hash)? else {
            return Ok(false);
        };
        let checked = match content.size() <= HASH_INLINE_BYTES {
            true => content.check(),
            false => tokio::task::spawn_blocking(move || content.check())
                .await
                .map_err(std::io::Error::other)?,
        };
        match checked {
            Ok(()) => Ok(true),
            Err(e) if is_damage(&e) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
