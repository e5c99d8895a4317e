//! The embedded side: everything on one machine, nothing to set up.
//!
//! Content is kept as files in the content directory, one per hash, made by a hard link of the caller's file: no byte is
//! copied. The link is the moment of publication, since only one link of a name can succeed. Locks and records live in
//! memory and end with the process; the tree knows what has been stored.

use std::fs::{self, File, Permissions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lru::LruCache;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::group_sync::GroupSync;
use super::local_locks::LocalLocks;
use super::{
    BackendError, Backends, BlobReader, BlobStore, FileRecord, Gate, Health, Load, Member,
    Membership, Page, Put, Records, Result, forward,
};
use crate::config::{Config, DataDir};
use crate::types::{BlobId, ContentHash, Status};
use crate::windows;

/// How many unfinished records are kept; beyond that the one not touched for longest is forgotten. Records only inform.
const RECORDS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// The mode of sealed content: nobody writes to it.
const SEALED: u32 = 0o400;
/// What a publication leaves of the mode of its source, whose owner may keep a note of its own in the third bit.
const KEPT: u32 = 0o500;

/// Opens the embedded side in the data directory of `config`.
pub fn open(config: &Config) -> Result<Backends> {
    let data = DataDir::new(&config.data_dir);
    Ok(Backends {
        mode: "embedded",
        tree: "embedded".into(),
        content_dir_is_store: true,
        blobs: Arc::new(LocalBlobs::open(data.content(), data.tmp())?),
        log: None,
        locks: Arc::new(LocalLocks::default()),
        file_locks: None,
        records: Arc::new(LocalRecords::default()),
        membership: Arc::new(Alone::default()),
        peers: None,
    })
}

/// Content as files in a directory of this machine.
///
/// It does not hash again what it is given: the caller has just done so on the same disk, and the file that is linked
/// *is* the caller's file. The caller must not write to `source` once its gate has said yes, since the sealed content
/// is the same inode.
pub struct LocalBlobs {
    dir: PathBuf,
    tmp: PathBuf,
    sync: GroupSync,
}

impl LocalBlobs {
    /// Keeps content below `dir`; unfinished copies go to `tmp`, on the same file system and emptied at start by its
    /// owner. Makes all directories that content can lie in, so that a put never has to make a directory durable.
    pub fn open(dir: PathBuf, tmp: PathBuf) -> Result<LocalBlobs> {
        fs::create_dir_all(&tmp)?;
        for first in 0..=u8::MAX {
            fs::create_dir_all(dir.join(hex::encode([first])))?;
        }
        File::open(&dir)?.sync_all()?;
        Ok(LocalBlobs {
            dir,
            tmp,
            sync: GroupSync::default(),
        })
    }

    fn path(&self, hash: &ContentHash) -> PathBuf {
        DataDir::content_path(&self.dir, hash)
    }
}

/// Whether this text is a blob id of ours. Checked before it becomes a path.
fn parse(blob: &BlobId) -> Result<ContentHash> {
    blob.0.parse().map_err(|_| BackendError::NotFound)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Gives `source` the further name `target`. `false`: the name is taken by another file.
fn link(source: &Path, target: &Path, tmp: &Path) -> io::Result<bool> {
    match fs::hard_link(source, target) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // Our own link: an earlier put got this far and was cut off before it could answer.
            let (a, b) = (fs::metadata(source)?, fs::metadata(target)?);
            Ok(a.ino() == b.ino() && a.dev() == b.dev())
        }
        Err(e) if no_hard_links(&e) => copy(source, target, tmp),
        Err(e) => Err(e),
    }
}

/// EPERM: the file system has no hard links, or the kernel protects files of others from being linked.
fn no_hard_links(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EPERM | libc::EOPNOTSUPP | libc::EMLINK | libc::EXDEV)
    )
}

/// The same by copying, where there are no hard links.
fn copy(source: &Path, target: &Path, tmp: &Path) -> io::Result<bool> {
    let unfinished = tmp.join(format!("put-{:032x}", rand::random::<u128>()));
    let result = (|| {
        fs::copy(source, &unfinished)?;
        let file = File::open(&unfinished)?;
        file.set_permissions(Permissions::from_mode(SEALED))?;
        file.sync_all()?;
        match renameat_with(CWD, &unfinished, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(e) => Err(e.into()),
        }
    })();
    if !matches!(result, Ok(true)) {
        let _ = fs::remove_file(&unfinished);
    }
    result
}

#[async_trait]
impl BlobStore for LocalBlobs {
    async fn put(
        &self,
        hash: &ContentHash,
        _size: u64,
        source: &Path,
        gate: Gate<'_>,
    ) -> Result<Put> {
        let path = self.path(hash);
        let parent = path.parent().unwrap_or(&self.dir).to_path_buf();
        let source = source.to_path_buf();
        let (source, file, parent) = blocking(move || {
            let file = File::open(&source)?;
            let mode = file.metadata()?.mode() & KEPT | SEALED;
            file.set_permissions(Permissions::from_mode(mode))?;
            Ok((source, file, File::open(parent)?))
        })
        .await?;
        // Data first, then the name: a name that survives a power loss never points to missing bytes.
        self.sync.sync(file).await?;
        windows::STORE_SYNC.pass()?;
        if !gate() {
            return Err(BackendError::Cancelled);
        }
        let tmp = self.tmp.clone();
        let published = blocking(move || link(&source, &path, &tmp)).await?;
        windows::STORE_LINK.pass()?;
        // Also for a duplicate: the winner may not have come this far yet, and our caller builds on it now.
        self.sync.sync(parent).await?;
        windows::STORE_NAME.pass()?;
        let id = BlobId(hash.to_string());
        Ok(if published {
            Put::Stored(id)
        } else {
            Put::Duplicate(id)
        })
    }

    async fn get(&self, blob: &BlobId) -> Result<BlobReader> {
        let path = self.path(&parse(blob)?);
        match tokio::fs::File::open(path).await {
            Ok(file) => Ok(Box::new(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(BackendError::NotFound),
            Err(e) => Err(e.into()),
        }
    }

    async fn faults(&self, blobs: &[BlobId]) -> Result<Vec<Option<String>>> {
        let fault = |blob| {
            let there = match parse(blob) {
                Ok(hash) => self.path(&hash).try_exists()?,
                Err(_) => false,
            };
            Ok((!there).then(|| "is missing".to_owned()))
        };
        blobs.iter().map(fault).collect()
    }

    async fn condemn(&self, _: &BlobId) -> Result<()> {
        Ok(())
    }

    /// Not made durable: content that comes back after a power loss is content without a name, removed again later.
    async fn delete(&self, blob: &BlobId) -> Result<()> {
        let Ok(hash) = parse(blob) else { return Ok(()) };
        match tokio::fs::remove_file(self.path(&hash)).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// A put leaves nothing in the store when it dies; unfinished copies are in the directory that is emptied at start.
    async fn unfinished(&self, _grace: Duration) -> Result<Vec<BlobId>> {
        Ok(Vec::new())
    }

    async fn published(
        &self,
        _after: Option<&BlobId>,
        _grace: Duration,
        _limit: usize,
    ) -> Result<Page> {
        Ok(Page::default())
    }
}

/// Records of contents that are on their way, in memory.
struct LocalRecords {
    kept: Mutex<LruCache<ContentHash, FileRecord>>,
}

impl Default for LocalRecords {
    fn default() -> Self {
        LocalRecords {
            kept: Mutex::new(LruCache::new(RECORDS)),
        }
    }
}

#[async_trait]
impl Records for LocalRecords {
    async fn advance(&self, record: &FileRecord) -> Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = record.clone();
        if let Some(old) = kept.get(&record.hash) {
            if !forward::may_replace(old, record) {
                return Ok(());
            }
            next.filename = old.filename.clone();
            next.uploaded_at = old.uploaded_at;
            next.fence = next.fence.max(old.fence);
        }
        if next.status >= Status::Done {
            kept.pop(&record.hash);
        } else {
            kept.put(record.hash, next);
        }
        Ok(())
    }

    async fn get(&self, hash: &ContentHash) -> Result<Option<FileRecord>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kept.peek(hash).cloned())
    }

    async fn remove(&self, hash: &ContentHash) -> Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.pop(hash);
        Ok(())
    }
}

/// A membership of one.
#[derive(Default)]
struct Alone {
    me: Mutex<Option<Member>>,
}

#[async_trait]
impl Membership for Alone {
    async fn join(&self, me: Member) -> Result<()> {
        *self.me.lock().unwrap_or_else(PoisonError::into_inner) = Some(me);
        Ok(())
    }

    fn report(&self, _: Load) {}

    async fn members(&self) -> Vec<Member> {
        let me = self.me.lock().unwrap_or_else(PoisonError::into_inner);
        me.iter().cloned().collect()
    }

    async fn health(&self) -> Health {
        Health::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, LocalBlobs, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = LocalBlobs::open(dir.path().join("content"), dir.path().join("tmp")).unwrap();
        let source = dir.path().join("source");
        fs::write(&source, b"hello").unwrap();
        (dir, blobs, source)
    }

    #[tokio::test]
    async fn a_put_links_and_one_cut_off_after_the_link_is_still_stored() {
        let (_dir, blobs, source) = fixture();
        let hash = ContentHash([3; 32]);
        for _ in 0..2 {
            let put = blobs.put(&hash, 5, &source, &|| true).await.unwrap();
            assert!(matches!(put, Put::Stored(_)));
        }
        let sealed = fs::metadata(blobs.path(&hash)).unwrap();
        assert_eq!(sealed.ino(), fs::metadata(&source).unwrap().ino());
        assert_eq!(sealed.mode() & 0o777, SEALED);
    }

    #[test]
    fn without_hard_links_a_copy_does_and_never_replaces() {
        let (dir, blobs, source) = fixture();
        let target = blobs.path(&ContentHash([3; 32]));
        assert!(copy(&source, &target, &blobs.tmp).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"hello");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, SEALED);
        let other = dir.path().join("other");
        fs::write(&other, b"other").unwrap();
        assert!(!copy(&other, &target, &blobs.tmp).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"hello");
        assert_eq!(fs::read_dir(&blobs.tmp).unwrap().count(), 0);
    }
}
