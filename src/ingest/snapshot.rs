//! Stores a file as it is now, while the kernel has it as a backing file and programs go on writing to it.

use std::fs::File;

use super::Ingest;
use super::worker::{Source, StoreError};
use crate::content::disk;
use crate::tree::op::StoredBy;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{Generation, Ino, Time};

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
        let (hash, size) = (digest.hash, digest.size);
        let started_at = Time::now();
        let lock = self.backends.locks.acquire(&hash).await?;
        let blob = match self.present(&hash).await? {
            Some(blob) => blob,
            None => {
                let gate = || lock.is_valid();
                let put = self
                    .backends
                    .blobs
                    .put(&hash, size, source.path(), &gate)
                    .await?;
                put.blob().clone()
            }
        };
        self.sealed.adopt(&hash, source.path(), &digest.sums)?;
        let pending = Op::Pending {
            ino,
            generation,
            node: self.node.clone(),
            size,
            mtime,
            ctime,
        };
        let commit = Op::Commit {
            ino,
            generation,
            hash,
            size,
            blob,
            by: StoredBy {
                node: self.node.clone(),
                worker: "snapshot".into(),
                uploaded_at: started_at,
                started_at,
            },
            now: Time::now(),
        };
        let ops = vec![pending, commit];
        // To the kernel nothing is new.
        match self
            .tree
            .submit(Origin::Kernel, Commitment::Committed, ops)
            .await
        {
            Ok(_) => Ok(true),
            Err(TreeError::Superseded) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
