//! The content directory itself: `content/<2 digits>/<hash>` with the sums beside, what of it is open, how much it may
//! hold, and where damaged content goes.
//!
//! Damaged content leaves its place at once, so that nothing takes it for stored: where the directory is the store it goes
//! to `quarantine/<hash>.<time>` and the next identical write stores the content anew; where it is a cache it is removed
//! and the next reader fetches it again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;
use tracing::{debug, error, warn};

use super::sums::Sums;
use super::verified::VerifiedFile;
use crate::config::DataDir;
use crate::types::{ContentHash, Time};
use crate::windows;

struct Index {
    lru: LruCache<ContentHash, u64>,
    bytes: u64,
}

/// Counters for the status page.
#[derive(Debug, Default)]
pub struct Counters {
    /// Opens answered from the directory.
    pub hits: AtomicU64,
    /// Opens that had to ask the store.
    pub misses: AtomicU64,
    /// Contents fetched from the store.
    pub fetches: AtomicU64,
    /// Contents fetched from the node that had closed them, before they were stored.
    pub peer_fetches: AtomicU64,
    /// Fetches whose bytes were wrong.
    pub mismatches: AtomicU64,
    /// Contents dropped to stay within the bound.
    pub evictions: AtomicU64,
    /// Contents that were found damaged on this disk, with those that lay in quarantine at the start; and those of which this
    /// node found the store to have no whole object.
    pub damaged: AtomicU64,
}

/// The content directory.
pub struct Shelf {
    dir: PathBuf,
    quarantine: PathBuf,
    /// `None` in embedded mode: the directory is the store, and nothing is evicted.
    limit: Option<u64>,
    index: Mutex<Index>,
    open: Mutex<HashMap<ContentHash, Weak<VerifiedFile>>>,
    pub(super) counters: Counters,
}

impl Shelf {
    /// The content directory of `data`. With a `limit` its index is rebuilt from what is on disk.
    pub(super) fn open_dir(data: &DataDir, limit: Option<u64>) -> io::Result<Arc<Shelf>> {
        let this = Shelf {
            dir: data.content(),
            quarantine: data.quarantine(),
            limit,
            index: Mutex::new(Index {
                lru: LruCache::unbounded(),
                bytes: 0,
            }),
            open: Mutex::default(),
            counters: Counters {
                damaged: AtomicU64::new(quarantined(&data.quarantine())?.len() as u64),
                ..Counters::default()
            },
        };
        if limit.is_some() {
            this.rebuild()?;
        }
        Ok(Arc::new(this))
    }

    /// Lists what is there, the least recently read first as far as the disk knows.
    fn rebuild(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for listed in list(&self.dir)? {
            if let Some(hash) = listed.hash {
                let meta = fs::metadata(&listed.path)?;
                found.push((meta.atime(), hash, meta.len()));
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

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, hash: &ContentHash) -> PathBuf {
        DataDir::content_path(&self.dir, hash)
    }

    /// Opens `hash` if it is here.
    pub(super) fn get(
        self: &Arc<Self>,
        hash: &ContentHash,
    ) -> io::Result<Option<Arc<VerifiedFile>>> {
        if let Some(file) = self.open.lock().get(hash).and_then(Weak::upgrade) {
            return Ok(Some(file));
        }
        let file = match File::open(self.path(hash)) {
            Ok(file) => Arc::new(VerifiedFile::new(*hash, file, self.clone())?),
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

    /// What is wrong with a content that should be here, as far as one sees without reading it. A cache need not hold any.
    pub(super) fn damage(&self, hash: &ContentHash, size: u64) -> io::Result<Option<String>> {
        if self.limit.is_some() {
            return Ok(None);
        }
        let len = match fs::metadata(self.path(hash)) {
            Ok(meta) => Some(meta.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let what = match len {
            Some(len) if len == size => return Ok(None),
            Some(len) => format!("damaged: it has {len} bytes instead of {size}"),
            None if quarantined(&self.quarantine)?.contains(hash) => {
                "damaged, and in quarantine".into()
            }
            None => "missing from this machine's disk".into(),
        };
        Ok(Some(format!("content {hash} is {what}")))
    }

    /// Takes a file that was opened, and proved damaged, out of its place.
    pub(super) fn quarantine(&self, file: &VerifiedFile) {
        let hash = *file.hash();
        let path = self.path(&hash);
        let mut open = self.open.lock();
        let place = fs::metadata(&path);
        let still_there = match (&place, file.file().metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        if !still_there {
            // Removed, or put right, since it was opened.
            return;
        }
        if open
            .get(&hash)
            .is_some_and(|known| std::ptr::eq(known.as_ptr(), file))
        {
            open.remove(&hash);
        }
        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        let _ = fs::remove_file(Sums::path(&path));
        if self.limit.is_some() {
            warn!("the cached copy of content {hash} is damaged; it is fetched again when needed");
            let _ = fs::remove_file(&path);
            // The index is locked before what is open, never after.
            drop(open);
            self.drop_entry(&hash);
        } else {
            match move_to_quarantine(&path, &self.quarantine, &hash) {
                Ok(to) => error!(
                    "content {hash} is damaged and now at {}; the next file with this content heals it",
                    to.display()
                ),
                // It is not served all the same: every read of it is checked.
                Err(e) => error!("content {hash} is damaged and cannot be moved away: {e}"),
            }
        }
    }

    /// Keeps the sums of a file that was hashed whole, while it is still in its place.
    pub(super) fn keep_sums(&self, file: &VerifiedFile, sums: &Sums) {
        let path = self.path(file.hash());
        if Sums::load(&path, file.size()).as_ref() == Some(sums) || !path.exists() {
            return;
        }
        if let Err(e) = sums.store(&path) {
            debug!("sums of {}: {e}", file.hash());
        }
    }

    /// Makes the file at `source` this directory's copy of `hash`, by hard link; a file that is there already stays.
    pub(super) fn adopt(&self, hash: &ContentHash, source: &Path, sums: &Sums) -> io::Result<()> {
        let path = self.path(hash);
        if !path.try_exists()? {
            fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
            match fs::hard_link(source, &path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        let size = fs::metadata(&path)?.len();
        self.put(hash, size, sums);
        Ok(())
    }

    /// Takes note of a content that is in its place now.
    pub(super) fn put(&self, hash: &ContentHash, size: u64, sums: &Sums) {
        let path = self.path(hash);
        if !Sums::path(&path).exists()
            && let Err(e) = sums.store(&path)
        {
            debug!("sums of {hash}: {e}");
        }
        self.note(hash, size);
    }

    /// Removes the copy on this disk.
    pub(super) fn forget(&self, hash: &ContentHash) {
        let path = self.path(hash);
        let _ = fs::remove_file(&path);
        let _ = fs::remove_file(Sums::path(&path));
        self.drop_entry(hash);
        self.open.lock().remove(hash);
    }

    fn drop_entry(&self, hash: &ContentHash) {
        let mut index = self.index.lock();
        if let Some(size) = index.lru.pop(hash) {
            index.bytes -= size;
        }
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
            let path = self.path(&old);
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(Sums::path(&path));
            windows::EVICT.passed();
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn usage(&self) -> Option<(u64, u64)> {
        self.limit.map(|limit| (self.index.lock().bytes, limit))
    }
}

/// Moves the content file `path` below the directory `quarantine`; returns where it is then.
pub fn move_to_quarantine(
    path: &Path,
    quarantine: &Path,
    hash: &ContentHash,
) -> io::Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(quarantine)?;
    let to = quarantine.join(format!("{hash}.{}", Time::now().0));
    fs::rename(path, &to)?;
    Ok(to)
}

/// The contents of which a damaged copy lies in the directory `quarantine`, one for each copy.
fn quarantined(quarantine: &Path) -> io::Result<Vec<ContentHash>> {
    let entries = match fs::read_dir(quarantine) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut hashes = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let hash = name.to_str().and_then(|n| n.split_once('.'));
        hashes.extend(hash.and_then(|(hash, _)| hash.parse::<ContentHash>().ok()));
    }
    Ok(hashes)
}

/// One file in the content directory.
pub struct Listed {
    /// Where it is.
    pub path: PathBuf,
    /// The content that it is, if its name is one.
    pub hash: Option<ContentHash>,
    /// The content whose sums it is, if its name says so.
    pub sums_of: Option<ContentHash>,
}

/// All files of the content directory `dir`.
pub fn list(dir: &Path) -> io::Result<Vec<Listed>> {
    let mut files = Vec::new();
    for shard in fs::read_dir(dir)? {
        let shard = shard?;
        if !shard.file_type()?.is_dir() {
            continue;
        }
        for entry in fs::read_dir(shard.path())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let hash = name.parse().ok();
            let sums_of = name.strip_suffix(".sums").and_then(|n| n.parse().ok());
            files.push(Listed {
                hash,
                sums_of,
                path,
            });
        }
    }
    Ok(files)
}
