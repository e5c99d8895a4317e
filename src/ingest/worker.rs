//! A worker: hash, lock, store, commit.
//!
//! Small files are taken many at a time, so that their syncs, uploads and namespace ops are shared; they still go through
//! the steps one by one, each under the lock of its own hash.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tracing::{debug, info};

use super::present::Way;
use super::{Ingest, Job};
use crate::backend::{BackendError, FileRecord, HashLock, Put};
use crate::content::spool::{Freeze, Progress};
use crate::content::sums::{Digest, Sums};
use crate::content::{damaged, disk, has_no_writer};
use crate::tree::op::StoredBy;
use crate::tree::{Body, Commitment, Inode, Op, Origin, Tree, TreeError};
use crate::types::{BlobId, ContentHash, Status, Time};
use crate::windows;

/// Every how many times the damaged file itself is read again.
const REREAD: u32 = 16;
/// Up to this size a file is hashed on the spot; a larger one where it may block.
pub(super) const HASH_INLINE_BYTES: u64 = 256 << 10;

/// Why a job did not end with its content stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file was taken back by a writer, or is gone: another job will come, or none is needed.
    #[error("stale")]
    Stale,
    #[error("the lock was lost meanwhile")]
    LockLost,
    /// A mapping outlives its close(2). What it writes belongs to the file, so the file is not finished yet.
    #[error("a program still has it mapped for writing")]
    StillMapped,
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("local disk: {0}")]
    Io(#[from] std::io::Error),
    /// A bit of it turned while it waited.
    #[error(
        "its bytes on this disk are not those that were closed: content {0} is damaged, and the next file with it heals it"
    )]
    Damaged(ContentHash),
    /// Only a person can have removed it.
    #[error("{} is missing, and the file's content with it, unless it is put back", .0.display())]
    Missing(PathBuf),
}

impl StoreError {
    /// Nothing is wrong with the file: the store or the log cannot be reached.
    pub(super) fn is_outage(&self) -> bool {
        matches!(
            self,
            StoreError::Backend(BackendError::Unavailable(_))
                | StoreError::Tree(TreeError::Unavailable(_))
        )
    }
}

impl Ingest {
    /// The inode of the job, if it still waits for this very generation.
    async fn wanted(&self, job: Job) -> Result<Inode, StoreError> {
        if !self.spool.is_sealed(job.ino, job.generation) {
            return Err(StoreError::Stale);
        }
        match self.tree.read(|q| q.inode(job.ino)) {
            Ok(inode) if inode.generation == job.generation => Ok(inode),
            Ok(inode) if inode.generation < job.generation => self.announce(job, inode).await,
            // Another node closed it later.
            Ok(inode) => {
                // This node did, and the power took that: recovery goes on with what there is.
                if !is_pending_here(&inode, &self.node) {
                    self.spool.lose(job.ino, job.generation);
                }
                Err(StoreError::Stale)
            }
            // Whoever has it open still reads it; the last close removes it. Or a merge is about to make it known, and
            // queues it then.
            Err(TreeError::NotFound) => {
                self.spool.set_waiting(job.ino, job.generation, false);
                Err(StoreError::Stale)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Submits the pending mark that close(2) could not, because the disk was full or the log away.
    async fn announce(&self, job: Job, inode: Inode) -> Result<Inode, StoreError> {
        let meta = std::fs::metadata(self.spool.path(job.ino, job.generation))?;
        let mtime = disk::mtime(&meta);
        let op = Op::Pending {
            ino: job.ino,
            generation: job.generation,
            node: self.node.clone(),
            size: meta.len(),
            mtime,
            ctime: inode.ctime.max(mtime),
        };
        // As if from elsewhere: the kernel was told that the close failed, and may remember what was before.
        let applied = self
            .tree
            .submit(Origin::Remote, Commitment::Committed, vec![op])
            .await?;
        applied.inode.ok_or(StoreError::Stale)
    }

    /// A mapping that was written to after the close has moved the file's time.
    async fn written_late(&self, job: Job, inode: Inode) -> Result<Inode, StoreError> {
        if self.spool.may_be_mapped(job.ino) {
            let meta = std::fs::metadata(self.spool.path(job.ino, job.generation))?;
            if disk::mtime(&meta) > inode.mtime {
                return self.announce(job, inode).await;
            }
        }
        Ok(inode)
    }

    pub(super) async fn store(&self, worker: &str, job: Job) -> Result<(), StoreError> {
        let inode = self.wanted(job).await?;
        // No sums: of what is damaged here others may have brought the content.
        let (hash, size, sums) = match self.hash_or_damage(job).await {
            Err(StoreError::Damaged(hash)) => (hash, inode.size, None),
            hashed => hashed.map(|d| (d.hash, d.size, Some(d.sums)))?,
        };
        if sums.is_none() && self.present(&hash).await?.is_none() {
            return Err(StoreError::Damaged(hash));
        }
        windows::HASH.pass()?;
        let inode = self.written_late(job, inode).await?;
        let mut progress = Progress {
            hash: Some(hash),
            status: Status::Queued,
            error: None,
        };
        self.spool
            .set_progress(job.ino, job.generation, progress.clone());
        let uploaded_at = self.spool.sealed_at(job.ino).unwrap_or_else(Time::now);
        let mut record = FileRecord {
            hash,
            filename: self.filename(&inode),
            size,
            status: Status::Queued,
            worker: None,
            node: self.node.clone(),
            uploaded_at,
            started_at: None,
            done_at: None,
            fence: 0,
            error: None,
        };
        if self.tree.read(|q| q.content(&hash))?.is_none() {
            self.note(&record).await;
        }
        let way = self.way(&hash).await?;
        windows::LOCK.pass()?;
        let started_at = Time::now();
        progress.status = Status::Processing;
        self.spool.set_progress(job.ino, job.generation, progress);
        record.status = Status::Processing;
        record.worker = Some(worker.to_owned());
        record.started_at = Some(started_at);

        let source = Source::of(self, job)?;
        let (blob, lock, duplicate) = match way {
            Way::Duplicate(blob, lock) => {
                self.freeze(job)?;
                (blob, lock, true)
            }
            Way::Store(_) if sums.is_none() => return Err(StoreError::Damaged(hash)),
            Way::Store(lock) => {
                record.fence = lock.fence;
                self.note(&record).await;
                let blob = self.put(job, &hash, size, &source, &lock).await?;
                (blob, Some(lock), false)
            }
        };
        let published = blob.clone();
        // From here on the file is frozen: every way out thaws or finishes it.
        let commit = Op::Commit {
            ino: job.ino,
            generation: job.generation,
            hash,
            size,
            blob,
            by: StoredBy {
                node: self.node.clone(),
                worker: worker.to_owned(),
                uploaded_at,
                started_at,
            },
            now: Time::now(),
        };
        let committed = self
            .commit(&hash, &source, sums.as_ref(), lock.as_ref(), commit)
            .await;
        if let Err(e) = committed
            && !self.is_done(job, &hash, &e)
        {
            self.spool.thaw(job.ino, job.generation);
            // Also when it is tried again: by then the file may have other content.
            self.unpublish(&hash, &published).await;
            return match e {
                StoreError::Tree(TreeError::Superseded) => {
                    info!("inode {}: superseded before it was committed", job.ino);
                    self.spool.lose(job.ino, job.generation);
                    Err(StoreError::Stale)
                }
                StoreError::Tree(TreeError::NotFound) => Err(StoreError::Stale),
                StoreError::Tree(TreeError::Reaped) => {
                    self.give_up_object(&hash, &published).await?;
                    Err(e)
                }
                e => Err(e),
            };
        }
        // The spool file goes next, and it may be the content's own, so nobody removes that before.
        // Until now it was what power loss would have left.
        let noted = async {
            if !duplicate {
                record.status = Status::Done;
                record.done_at = Some(Time::now());
                self.note(&record).await;
            }
        };
        // The record as well: as long as the spool file is there the next start sees to that.
        let (durable, ()) = tokio::join!(self.durable.reached(&self.tree, Tree::sync), noted);
        if let Err(e) = durable {
            self.spool.thaw(job.ino, job.generation);
            return Err(e.into());
        }
        windows::COMMIT_DURABLE.passed();
        self.spool.finish(job.ino, job.generation);
        if duplicate {
            self.counters.duplicates.fetch_add(1, Ordering::Relaxed);
        } else {
            self.counters.stored.fetch_add(1, Ordering::Relaxed);
            self.counters.bytes.fetch_add(size, Ordering::Relaxed);
        }
        drop(lock);
        for (ino, generation) in self.spool.damaged_with(&hash) {
            self.enqueue(ino, generation);
        }
        debug!("{worker}: inode {} is {hash}, {size} bytes", job.ino);
        Ok(())
    }

    /// Whether the commit was refused because it has happened before, in an attempt that failed after it.
    fn is_done(&self, job: Job, hash: &ContentHash, e: &StoreError) -> bool {
        if !matches!(e, StoreError::Tree(TreeError::Superseded)) {
            return false;
        }
        let inode = self.tree.read(|q| q.inode(job.ino));
        inode.is_ok_and(|inode| {
            inode.generation == job.generation
                && matches!(&inode.body, Body::Stored { hash: there, .. } if there == hash)
        })
    }

    /// Hashes what is not known to be damaged, and that now and then.
    async fn hash_or_damage(&self, job: Job) -> Result<Digest, StoreError> {
        match self.spool.damaged(job.ino) {
            Some(hash) if !job.failures.is_multiple_of(REREAD) => Err(StoreError::Damaged(hash)),
            _ => self.hash(job).await,
        }
    }

    pub(super) async fn hash(&self, job: Job) -> Result<Digest, StoreError> {
        let path = self.spool.path(job.ino, job.generation);
        let file = File::open(&path)?;
        if self.spool.may_be_mapped(job.ino) && !has_no_writer(&file) {
            return Err(StoreError::StillMapped);
        }
        let hashed = if file.metadata()?.len() <= HASH_INLINE_BYTES {
            disk::hash(&file, || true)?
        } else {
            let spool = self.spool.clone();
            let still = move || spool.is_sealed(job.ino, job.generation);
            tokio::task::spawn_blocking(move || disk::hash(&file, still))
                .await
                .map_err(std::io::Error::other)??
        };
        let hashed = hashed.ok_or(StoreError::Stale)?;
        // A writer that took it back may have written while it was read.
        if !self.spool.is_sealed(job.ino, job.generation) {
            return Err(StoreError::Stale);
        }
        match self
            .spool
            .set_digest(job.ino, job.generation, hashed.clone())
        {
            Ok(true) => Ok(hashed),
            Ok(false) => Err(StoreError::Stale),
            Err(e) => Err(match damaged(&e) {
                Some(hash) => StoreError::Damaged(hash),
                None => e.into(),
            }),
        }
    }

    fn filename(&self, inode: &Inode) -> String {
        let names = self.tree.read(|q| q.names_of(inode.ino, 1));
        names
            .ok()
            .and_then(|mut n| n.pop())
            .map(|n| String::from_utf8_lossy(&n.1).into_owned())
            .unwrap_or_default()
    }

    fn freeze(&self, job: Job) -> Result<Freeze, StoreError> {
        self.spool
            .freeze(job.ino, job.generation)
            .ok_or(StoreError::Stale)
    }

    async fn put(
        &self,
        job: Job,
        hash: &ContentHash,
        size: u64,
        source: &Source,
        lock: &HashLock,
    ) -> Result<BlobId, StoreError> {
        let frozen = Mutex::new(false);
        let gate = || {
            if !lock.is_valid() {
                return false;
            }
            let as_expected = match self.spool.freeze(job.ino, job.generation) {
                None => false,
                Some(Freeze::Share) => true,
                Some(Freeze::Copy) => source.is_copy(),
            };
            *frozen.lock() = true;
            as_expected
        };
        let put = self
            .backends
            .blobs
            .put(hash, size, source.path(), &gate)
            .await;
        let put = match put {
            // Found to be stored before the gate was asked.
            Ok(put) if !*frozen.lock() => self.freeze(job).map(|_| put),
            Ok(put) => Ok(put),
            Err(e) => Err(match e {
                BackendError::Cancelled if !lock.is_valid() => StoreError::LockLost,
                BackendError::Cancelled => StoreError::Stale,
                e => e.into(),
            }),
        };
        match put {
            Ok(Put::Stored(blob) | Put::Duplicate(blob)) => Ok(blob),
            Err(e) => {
                self.spool.thaw(job.ino, job.generation);
                // It may have failed after the content had its name.
                let blob = BlobId(hash.to_string());
                self.unpublish(hash, &blob).await;
                Err(e)
            }
        }
    }

    async fn commit(
        &self,
        hash: &ContentHash,
        source: &Source,
        sums: Option<&Sums>,
        lock: Option<&HashLock>,
        commit: Op,
    ) -> Result<(), StoreError> {
        if lock.is_some_and(|lock| !lock.is_valid()) {
            return Err(StoreError::LockLost);
        }
        windows::ADOPT.pass()?;
        if let Some(sums) = sums {
            self.sealed.adopt(hash, source.path(), sums)?;
        }
        self.tree
            .submit(Origin::Node, Commitment::Committed, vec![commit])
            .await?;
        windows::COMMIT.pass()?;
        Ok(())
    }

    /// Removes content that was published and that the namespace does not know after all. Only where this node alone decides, under the
    /// lock that it still holds: elsewhere another node may be about to refer to it.
    async fn unpublish(&self, hash: &ContentHash, blob: &BlobId) {
        if !self.backends.content_dir_is_store {
            return;
        }
        match self.tree.read(|q| q.content(hash)) {
            Ok(None) => {
                if let Err(e) = self.backends.blobs.delete(blob).await {
                    debug!("removing unused {hash}: {e}");
                }
                self.sealed.forget(hash);
            }
            Ok(Some(_)) => {}
            Err(e) => debug!("{hash}: {e}"),
        }
    }
}

/// The file that becomes content: the spool file, or a copy of it while the kernel still uses that as a backing file.
pub(super) enum Source {
    Spool(PathBuf),
    Copy(PathBuf),
}

impl Source {
    fn of(ingest: &Ingest, job: Job) -> Result<Source, StoreError> {
        let path = ingest.spool.path(job.ino, job.generation);
        if !ingest.spool.is_backing(job.ino) {
            return Ok(Source::Spool(path));
        }
        Source::copy_of(&path, ingest.sealed.tmp_path())
    }

    /// A copy of the file at `path`, made at `tmp`.
    pub(super) fn copy_of(path: &Path, tmp: PathBuf) -> Result<Source, StoreError> {
        let source = Source::Copy(tmp.clone());
        let from = File::open(path)?;
        let to = File::create_new(&tmp)?;
        disk::copy(&from, &to)?;
        Ok(source)
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Source::Spool(path) | Source::Copy(path) => path,
        }
    }

    fn is_copy(&self) -> bool {
        matches!(self, Source::Copy(_))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Source::Copy(path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether this inode's content waits at this node.
pub(super) fn is_pending_here(inode: &Inode, node: &crate::types::NodeId) -> bool {
    matches!(&inode.body, Body::Pending { node: n, .. } if n == node)
}
