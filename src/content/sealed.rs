//! Sealed content by hash: the store itself in embedded mode, else a cache of GridFS bounded by bytes, where the least
//! recently used goes first.
//!
//! A file is here whole or not at all: it comes by hard link from the spool, or by a fetch that is hashed as it streams
//! and renamed when it is right. Bytes that do not hash to their name never reach a reader, neither those of a fetch nor
//! those of the disk ([`super::verified`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncReadExt;
use tracing::{error, warn};

use super::flight::{Flight, Flights};
use super::incoming::Incoming;
use super::lost::Lost;
use super::shelf::{Counters, Shelf};
use super::sums::{Digest, Sums};
use super::verified::VerifiedFile;
use crate::backend::{BackendError, BlobStore};
use crate::config::DataDir;
use crate::types::{BlobId, ContentHash};
use crate::windows;

/// A result of the content directory.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// The content directory, and the store behind it.
pub struct Sealed {
    shelf: Arc<Shelf>,
    tmp: PathBuf,
    blobs: Arc<dyn BlobStore>,
    fetching: Flights<ContentHash, Arc<VerifiedFile>>,
    lost: Lost,
    next_tmp: AtomicU64,
}

impl Sealed {
    /// The content directory of `data`. With a `limit` its index is rebuilt from what is on disk.
    pub fn open_dir(
        data: &DataDir,
        blobs: Arc<dyn BlobStore>,
        limit: Option<u64>,
    ) -> io::Result<Sealed> {
        Ok(Sealed {
            shelf: Shelf::open_dir(data, limit)?,
            tmp: data.tmp(),
            blobs,
            fetching: Flights::default(),
            lost: Lost::default(),
            next_tmp: AtomicU64::new(0),
        })
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.shelf.counters
    }

    /// Where `hash` lies when it is here.
    pub fn path(&self, hash: &ContentHash) -> PathBuf {
        self.shelf.path(hash)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.shelf.dir()
    }

    /// A name for a temporary file on the same disk.
    pub fn tmp_path(&self) -> PathBuf {
        let n = self.next_tmp.fetch_add(1, Ordering::Relaxed);
        self.tmp.join(format!("{}-{n}", std::process::id()))
    }

    /// Opens `hash` if it is on this disk.
    pub fn open_local(&self, hash: &ContentHash) -> io::Result<Option<Arc<VerifiedFile>>> {
        self.shelf.get(hash)
    }

    /// Opens `hash`, fetching the object `blob` when it is not here, however long that takes.
    pub async fn open(
        self: &Arc<Self>,
        hash: &ContentHash,
        blob: &BlobId,
    ) -> Result<Arc<VerifiedFile>> {
        match self.open_local(hash)? {
            Some(file) => Ok(file),
            None => self.fetch(hash, blob).ended().await,
        }
    }

    /// Fetches the object `blob`, which is the content `hash`. However many ask, one fetch runs.
    pub fn fetch(self: &Arc<Self>, hash: &ContentHash, blob: &BlobId) -> Flight<Arc<VerifiedFile>> {
        self.counters().misses.fetch_add(1, Ordering::Relaxed);
        let (this, hash, blob) = (self.clone(), *hash, blob.clone());
        self.fetching.join(hash, |moved| async move {
            match this.open_local(&hash)? {
                Some(file) => Ok(file),
                None => this.fetch_checked(&hash, &blob, &*moved).await,
            }
        })
    }

    async fn fetch_checked(
        &self,
        hash: &ContentHash,
        blob: &BlobId,
        moved: &(dyn Fn() + Send + Sync),
    ) -> Result<Arc<VerifiedFile>> {
        for attempt in 1..=2 {
            match self.fetch_once(hash, blob, moved).await {
                Ok(file) => {
                    self.counters().fetches.fetch_add(1, Ordering::Relaxed);
                    self.lost.forget(hash);
                    return Ok(file);
                }
                Err(BackendError::Corrupt(why)) if attempt == 1 => {
                    self.counters().mismatches.fetch_add(1, Ordering::Relaxed);
                    warn!("fetch of {hash}: {why}; fetching once more");
                }
                Err(e) => {
                    error!("fetch of {hash}: {e}");
                    self.note_lost(hash, blob, &e).await;
                    return Err(e);
                }
            }
        }
        Err(BackendError::Corrupt(format!(
            "{hash} is damaged in the store"
        )))
    }

    /// Remembers that the object is not what it should be, and tells the others.
    async fn note_lost(&self, hash: &ContentHash, blob: &BlobId, e: &BackendError) {
        if self.usage().is_none() {
            // This directory is the store, and says it by itself.
            return;
        }
        match e {
            BackendError::NotFound => self.met(hash, blob, "is missing"),
            BackendError::Corrupt(_) => {
                self.met(hash, blob, "is damaged");
                if let Err(e) = self.blobs.condemn(blob).await {
                    warn!("that the stored object of {hash} is damaged is not noted there: {e}");
                }
            }
            BackendError::Cancelled
            | BackendError::Unavailable(_)
            | BackendError::Unusable(_)
            | BackendError::Io(_) => {}
        }
    }

    fn met(&self, hash: &ContentHash, blob: &BlobId, fault: &str) {
        if self.lost.note(hash, blob, fault) {
            self.counters().damaged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks the store what is wrong with the objects of these contents, as far as one sees without reading them.
    pub async fn faults(&self, contents: &[(ContentHash, BlobId)]) -> Result<Vec<Option<String>>> {
        let blobs: Vec<_> = contents.iter().map(|(_, blob)| blob.clone()).collect();
        let faults = self.blobs.faults(&blobs).await?;
        for ((hash, blob), fault) in contents.iter().zip(&faults) {
            match fault {
                Some(fault) => self.met(hash, blob, fault),
                None => self.lost.forget(hash),
            }
        }
        Ok(faults)
    }

    /// Which object of a content that is not on this disk either this node met missing or damaged, and what is wrong with
    /// it.
    pub fn fault_met(&self, hash: &ContentHash) -> io::Result<Option<(BlobId, String)>> {
        match self.lost.fault(hash) {
            Some((blob, fault)) if !self.path(hash).try_exists()? => {
                let text = format!("the stored object of content {hash} {fault}");
                Ok(Some((blob, text)))
            }
            _ => Ok(None),
        }
    }

    async fn fetch_once(
        &self,
        hash: &ContentHash,
        blob: &BlobId,
        moved: &(dyn Fn() + Send + Sync),
    ) -> Result<Arc<VerifiedFile>> {
        let mut reader = self.blobs.get(blob).await?;
        let mut incoming = Incoming::begin(self, moved).await?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = reader.read(&mut buffer).await.map_err(met_reading)?;
            if n == 0 {
                break;
            }
            incoming.write(&buffer[..n]).await?;
        }
        let got = incoming.finish().await?;
        if got.hash != *hash {
            let why = format!("the bytes hash to {}", got.hash);
            return Err(BackendError::Corrupt(why));
        }
        incoming.keep(&got)
    }

    /// Gives the temporary file `tmp`, whose bytes are these and are on disk, its place.
    pub(super) fn take_in(&self, tmp: &Path, got: &Digest) -> Result<Arc<VerifiedFile>> {
        let path = self.path(&got.hash);
        std::fs::create_dir_all(path.parent().unwrap_or(self.dir()))?;
        std::fs::rename(tmp, &path)?;
        windows::FETCH.passed();
        self.shelf.put(&got.hash, got.size, &got.sums);
        self.open_local(&got.hash)?.ok_or(BackendError::NotFound)
    }

    /// Makes the file at `source` this directory's copy of `hash`, by hard link; a file that is there already stays.
    pub fn adopt(&self, hash: &ContentHash, source: &Path, sums: &Sums) -> io::Result<()> {
        self.shelf.adopt(hash, source, sums)
    }

    /// Drops this disk's copy. In embedded mode that is the store's own deletion.
    pub fn forget(&self, hash: &ContentHash) {
        self.shelf.forget(hash);
    }

    /// What is wrong with a content of `size` bytes that this disk should have, as far as one sees without reading it.
    pub fn damage(&self, hash: &ContentHash, size: u64) -> io::Result<Option<String>> {
        self.shelf.damage(hash, size)
    }

    /// How many bytes the cache holds and may hold; `None` where the directory is the store.
    pub fn usage(&self) -> Option<(u64, u64)> {
        self.shelf.usage()
    }
}

/// What reading from the store met. Its own errors come through the reader whole.
fn met_reading(e: io::Error) -> BackendError {
    match e.downcast::<BackendError>() {
        Ok(e) => e,
        Err(e) => BackendError::Unavailable(e.to_string()),
    }
}
