//! Whether a content is stored already, so that a file with the same can be given up.

use std::path::Path;

use tracing::warn;

use super::Ingest;
use super::worker::{HASH_INLINE_BYTES, StoreError};
use crate::backend::{BackendError, HashLock};
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
        let whole = self.backends.blobs.is_whole(&content.blob).await?;
        Ok((whole && self.is_whole_here(hash).await?).then_some(content.blob))
    }

    /// Stores a content that the namespace knows from `source`, which holds its bytes and which nobody writes to any more,
    /// unless it is really there. Whether it had to be stored. `lost`: this node knows that it is not there.
    pub async fn restore(
        &self,
        hash: &ContentHash,
        size: u64,
        source: &Path,
        lost: bool,
    ) -> Result<bool, BackendError> {
        self.restored(hash, size, source, lost)
            .await
            .map_err(|e| match e {
                StoreError::Backend(e) => e,
                StoreError::Io(e) => e.into(),
                e => BackendError::Unavailable(e.to_string()),
            })
    }

    async fn restored(
        &self,
        hash: &ContentHash,
        size: u64,
        source: &Path,
        lost: bool,
    ) -> Result<bool, StoreError> {
        // Mostly it is there, and costs no lock.
        match self.present(hash).await {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(false),
            // As far as this node knows it is there.
            Err(e) if e.is_outage() && !lost => return Ok(false),
            Err(e) => return Err(e),
        }
        let lock = self.backends.locks.acquire(hash).await?;
        let known = self.tree.read(|q| q.content(hash))?;
        if known.is_none() || self.present(hash).await?.is_some() {
            return Ok(false);
        }
        let gate = || lock.is_valid();
        let put = self.backends.blobs.put(hash, size, source, &gate).await?;
        let blob = put.blob();
        let known = self.tree.read(|q| q.content(hash))?;
        if known.is_none_or(|known| known.blob != *blob) {
            self.give_up_object(hash, blob).await?;
        }
        Ok(true)
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
