//! Whether a content is stored already, so that a file with the same can be given up.

use tracing::warn;

use super::Ingest;
use super::worker::{HASH_INLINE_BYTES, StoreError};
use crate::backend::HashLock;
use crate::content::is_damage;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{BlobId, ContentHash, Time};

/// How a file gets its content.
pub(super) enum Way {
    /// It is stored already, as this object. The lock of its hash where the commit needs one.
    Duplicate(BlobId, Option<HashLock>),
    /// It is to be stored, under the lock of its hash.
    Store(HashLock),
}

impl Ingest {
    /// Finds out whether the content is stored already. Under the lock of its hash, unless objects have ids that are never
    /// used again: then the namespace itself refuses a commit of one that was removed meanwhile, and many files with one
    /// content need not be committed one after the other.
    pub(super) async fn way(&self, hash: &ContentHash) -> Result<Way, StoreError> {
        if !self.backends.content_dir_is_store
            && let Some(blob) = self.present(hash).await?
        {
            return Ok(Way::Duplicate(blob, None));
        }
        let lock = self.backends.locks.acquire(hash).await?;
        Ok(match self.present(hash).await? {
            Some(blob) => Way::Duplicate(blob, Some(lock)),
            None => Way::Store(lock),
        })
    }

    /// The object that holds the content already. A duplicate counts only against content that is really there.
    pub(super) async fn present(&self, hash: &ContentHash) -> Result<Option<BlobId>, StoreError> {
        let Some(content) = self.tree.read(|q| q.content(hash))? else {
            return Ok(None);
        };
        let exists = self.backends.blobs.exists(&content.blob).await?;
        Ok((exists && self.is_whole_here(hash).await?).then_some(content.blob))
    }

    /// Removes `blob`, which no commit can name any more, unless it can take the place of one that the store has lost.
    /// Whoever was to remove it may have died; while it has the content's name, nobody else can.
    pub(super) async fn give_up_object(
        &self,
        hash: &ContentHash,
        blob: &BlobId,
    ) -> Result<(), StoreError> {
        if !self.takes_the_place(hash, blob).await? {
            self.remove_stray(blob).await?;
        }
        Ok(())
    }

    /// Makes `blob`, which was stored just now, the object of a content whose object the store has lost. False when that
    /// is not so.
    async fn takes_the_place(&self, hash: &ContentHash, blob: &BlobId) -> Result<bool, StoreError> {
        let Some(known) = self.tree.read(|q| q.content(hash))? else {
            return Ok(false);
        };
        let lost = known.blob;
        if lost == *blob || self.backends.blobs.exists(&lost).await? {
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
                warn!("the store had lost {hash}: it is stored anew");
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
