//! Stores a file as it is now, while the kernel has it as a backing file and programs go on writing to it.

use std::fs::File;
use std::time::Duration;

use super::Ingest;
use super::present::Way;
use super::worker::{Source, StoreError};
use crate::backend::BackendError;
use crate::content::disk;
use crate::content::sums::Digest;
use crate::tree::op::StoredBy;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{BlobId, Generation, Ino, Time};

/// How often it is tried again when an object was removed, or a lock lost, in between.
const ATTEMPTS: u32 = 6;
/// The pause before it is tried again, at first.
const AGAIN: Duration = Duration::from_millis(20);

/// A version of an inode, and its times.
#[derive(Clone, Copy)]
struct Version {
    ino: Ino,
    generation: Generation,
    mtime: Time,
    ctime: Time,
}

impl Ingest {
    /// Stores a copy of the inode's spool file, and makes this generation refer to it. The caller sees to it that nobody
    /// writes meanwhile, and that the spool file is of a later generation from then on. False, and the namespace says what
    /// it said, when another node had this generation first.
    pub async fn store_snapshot(
        &self,
        ino: Ino,
        generation: Generation,
        (mtime, ctime): (Time, Time),
    ) -> Result<bool, StoreError> {
        let (path, tmp) = (self.spool.path(ino, generation), self.sealed.tmp_path());
        let copied = tokio::task::spawn_blocking(move || -> Result<_, StoreError> {
            let source = Source::copy_of(&path, tmp)?;
            let digest = disk::hash(&File::open(source.path())?, || true)?;
            Ok((source, digest.ok_or(StoreError::Stale)?))
        });
        let (source, digest) = copied.await.map_err(std::io::Error::other)??;
        let version = Version {
            ino,
            generation,
            mtime,
            ctime,
        };
        let mut failures = 0;
        loop {
            match self.store_copy(&source, &digest, version).await {
                Err(StoreError::Tree(TreeError::Superseded)) => return Ok(false),
                Err(StoreError::Tree(TreeError::Reaped) | StoreError::LockLost)
                    if failures < ATTEMPTS =>
                {
                    tokio::time::sleep(AGAIN * 2u32.pow(failures)).await;
                    failures += 1;
                }
                stored => return stored.map(|()| true),
            }
        }
    }

    async fn store_copy(
        &self,
        source: &Source,
        digest: &Digest,
        version: Version,
    ) -> Result<(), StoreError> {
        let started_at = Time::now();
        let (hash, size) = (&digest.hash, digest.size);
        let (blob, lock) = match self.way(hash).await? {
            Way::Duplicate(blob, lock) => (blob, lock),
            Way::Store(lock) => {
                let gate = || lock.is_valid();
                let put = self.backends.blobs.put(hash, size, source.path(), &gate);
                let blob = match put.await {
                    Err(BackendError::Cancelled) => return Err(StoreError::LockLost),
                    put => put?.blob().clone(),
                };
                (blob, Some(lock))
            }
        };
        if lock.as_ref().is_some_and(|lock| !lock.is_valid()) {
            return Err(StoreError::LockLost);
        }
        self.sealed.adopt(hash, source.path(), &digest.sums)?;
        let committed = self.commit_copy(digest, &blob, version, started_at).await;
        if let Err(StoreError::Tree(TreeError::Reaped)) = committed {
            self.give_up_object(hash, &blob).await?;
        }
        committed
    }

    async fn commit_copy(
        &self,
        digest: &Digest,
        blob: &BlobId,
        version: Version,
        started_at: Time,
    ) -> Result<(), StoreError> {
        let Version {
            ino,
            generation,
            mtime,
            ctime,
        } = version;
        let pending = Op::Pending {
            ino,
            generation,
            node: self.node.clone(),
            size: digest.size,
            mtime,
            ctime,
        };
        let commit = Op::Commit {
            ino,
            generation,
            hash: digest.hash,
            size: digest.size,
            blob: blob.clone(),
            by: StoredBy {
                node: self.node.clone(),
                worker: "snapshot".into(),
                uploaded_at: started_at,
                started_at,
            },
            now: Time::now(),
        };
        // To the kernel nothing is new.
        self.tree
            .submit(Origin::Kernel, Commitment::Committed, vec![pending, commit])
            .await?;
        Ok(())
    }
}
