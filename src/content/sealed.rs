//! Sealed content by hash, in `content/<2 digits>/<hash>`: the store itself in embedded mode, else a cache of GridFS bounded
//! by bytes, where the least recently used goes first.
//!
//! A file is here whole or not at all: it comes by hard link from the spool, or by a fetch that is hashed as it streams
//! and renamed when it is right. Bytes that do not hash to their name never reach a reader.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::{error, warn};

use crate::backend::{BackendError, BlobStore};
use crate::config::DataDir;
use crate::types::{BlobId, ContentHash};

/// A result of the content directory.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

struct Index {
    lru: LruCache<ContentHash, u64>,
    bytes: u64,
}

/// Counters for the status page.
#[derive(Debug, Default)]
pub struct Counters {
    /// Opens answered from the directory.
    pub hits: AtomicU64,
    /// Contents fetched from the store.
    pub fetches: AtomicU64,
    /// Fetches whose bytes were wrong.
    pub mismatches: AtomicU64,
    /// Contents dropped to stay within the bound.
    pub evictions: AtomicU64,
}

/// The content directory.
pub struct Sealed {
    dir: PathBuf,
    tmp: PathBuf,
    blobs: Arc<dyn BlobStore>,
    /// `None` in embedded mode: the directory is the store, and nothing is evicted.
    limit: Option<u64>,
    index: Mutex<Index>,
    open: Mutex<HashMap<ContentHash, Weak<File>>>,
    fetching: Mutex<HashMap<ContentHash, Arc<tokio::sync::Mutex<()>>>>,
    next_tmp: AtomicU64,
    /// What happened so far.
    pub counters: Counters,
}

impl Sealed {
    /// The content directory of `data`. With a `limit` its index is rebuilt from what is on disk.
    pub fn open_dir(
        data: &DataDir,
        blobs: Arc<dyn BlobStore>,
        limit: Option<u64>,
    ) -> io::Result<Sealed> {
        let this = Sealed {
            dir: data.content(),
            tmp: data.tmp(),
            blobs,
            limit,
            index: Mutex::new(Index {
                lru: LruCache::unbounded(),
                bytes: 0,
            }),
            open: Mutex::default(),
            fetching: Mutex::default(),
            next_tmp: AtomicU64::new(0),
            counters: Counters::default(),
        };
        if limit.is_some() {
            this.rebuild()?;
        }
        Ok(this)
    }

    /// Lists what is there, the least recently read first as far as the disk knows.
    fn rebuild(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for shard in std::fs::read_dir(&self.dir)? {
            let shard = shard?;
            if !shard.file_type()?.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(shard.path())? {
                let entry = entry?;
                let name = entry.file_name();
                if let Some(hash) = name.to_str().and_then(|n| n.parse::<ContentHash>().ok()) {
                    let meta = entry.metadata()?;
                    found.push((meta.atime(), hash, meta.len()));
                }
            }
        }
        found.sort();
        let mut index = self.index.lock();
        for (_, hash, size) in found {
            index.lru.put(hash, size);
            index.bytes += size;
        }
        Ok(())
    }

    /// Where `hash` lies when it is here.
    pub fn path(&self, hash: &ContentHash) -> PathBuf {
        DataDir::content_path(&self.dir, hash)
    }

    /// A name for a temporary file on the same disk.
    pub fn tmp_path(&self) -> PathBuf {
        let n = self.next_tmp.fetch_add(1, Ordering::Relaxed);
        self.tmp.join(format!("{}-{n}", std::process::id()))
    }

    /// Opens `hash` if it is on this disk.
    pub fn open_local(&self, hash: &ContentHash) -> io::Result<Option<Arc<File>>> {
        if let Some(file) = self.open.lock().get(hash).and_then(Weak::upgrade) {
            return Ok(Some(file));
        }
        let file = match File::open(self.path(hash)) {
            Ok(file) => Arc::new(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if self.limit.is_some() {
            self.index.lock().lru.promote(hash);
        }
        let mut open = self.open.lock();
        if open.len() >= 4096 {
            open.retain(|_, f| f.strong_count() > 0);
        }
        open.insert(*hash, Arc::downgrade(&file));
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        Ok(Some(file))
    }

    /// Opens `hash`, fetching the object `blob` when it is not here. However many ask, one fetches.
    pub async fn open(&self, hash: &ContentHash, blob: &BlobId) -> Result<Arc<File>> {
        if let Some(file) = self.open_local(hash)? {
            return Ok(file);
        }
        let turn = self.fetching.lock().entry(*hash).or_default().clone();
        let _turn = turn.lock().await;
        let result = match self.open_local(hash)? {
            Some(file) => Ok(file),
            None => self.fetch(hash, blob).await,
        };
        let mut fetching = self.fetching.lock();
        if fetching
            .get(hash)
            .is_some_and(|t| Arc::strong_count(t) <= 2)
        {
            fetching.remove(hash);
        }
        result
    }

    async fn fetch(&self, hash: &ContentHash, blob: &BlobId) -> Result<Arc<File>> {
        for attempt in 1..=2 {
            let tmp = self.tmp_path();
            let fetched = self.fetch_into(&tmp, hash, blob).await;
            match fetched {
                Ok(size) => {
                    self.counters.fetches.fetch_add(1, Ordering::Relaxed);
                    let path = self.path(hash);
                    std::fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
                    std::fs::rename(&tmp, &path)?;
                    self.note(hash, size);
                    return self.open_local(hash)?.ok_or(BackendError::NotFound);
                }
                Err(e) => {
                    let _ = std::fs::remove_file(&tmp);
                    match e {
                        BackendError::Corrupt(why) if attempt == 1 => {
                            self.counters.mismatches.fetch_add(1, Ordering::Relaxed);
                            warn!("fetch of {hash}: {why}; fetching once more");
                        }
                        e => {
                            error!("fetch of {hash}: {e}");
                            return Err(e);
                        }
                    }
                }
            }
        }
        Err(BackendError::Corrupt(format!(
            "{hash} is damaged in the store"
        )))
    }

    async fn fetch_into(&self, tmp: &Path, hash: &ContentHash, blob: &BlobId) -> Result<u64> {
        let mut reader = self.blobs.get(blob).await?;
        let mut file = tokio::fs::File::create(tmp).await?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            let n = reader
                .read(&mut buffer)
                .await
                .map_err(|e| BackendError::Unavailable(e.to_string()))?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            file.write_all(&buffer[..n]).await?;
            size += n as u64;
        }
        file.flush().await?;
        file.sync_data().await?;
        let got = ContentHash(hasher.finalize().into());
        if got != *hash {
            return Err(BackendError::Corrupt(format!("the bytes hash to {got}")));
        }
        Ok(size)
    }

    /// Makes the file at `source` this directory's copy of `hash`, by hard link; a file that is there already stays.
    pub fn adopt(&self, hash: &ContentHash, source: &Path) -> io::Result<()> {
        let path = self.path(hash);
        if !path.try_exists()? {
            std::fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
            match std::fs::hard_link(source, &path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        let size = std::fs::metadata(&path)?.len();
        self.note(hash, size);
        Ok(())
    }

    /// Drops this disk's copy. In embedded mode that is the store's own deletion.
    pub fn forget(&self, hash: &ContentHash) {
        let _ = std::fs::remove_file(self.path(hash));
        let mut index = self.index.lock();
        if let Some(size) = index.lru.pop(hash) {
            index.bytes -= size;
        }
        self.open.lock().remove(hash);
    }

    fn note(&self, hash: &ContentHash, size: u64) {
        let Some(limit) = self.limit else { return };
        let mut index = self.index.lock();
        if index.lru.put(*hash, size).is_none() {
            index.bytes += size;
        }
        // Files that are open stay; one round over the index is enough.
        for _ in 0..index.lru.len() {
            if index.bytes <= limit {
                break;
            }
            let Some((old, size)) = index.lru.pop_lru() else {
                break;
            };
            let in_use = self
                .open
                .lock()
                .get(&old)
                .is_some_and(|f| f.strong_count() > 0);
            if in_use || old == *hash {
                index.lru.put(old, size);
                continue;
            }
            index.bytes -= size;
            let _ = std::fs::remove_file(self.path(&old));
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many bytes the cache holds and may hold; `None` where the directory is the store.
    pub fn usage(&self) -> Option<(u64, u64)> {
        self.limit.map(|limit| (self.index.lock().bytes, limit))
    }
}
