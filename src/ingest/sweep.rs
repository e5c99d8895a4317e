//! Removes content that the namespace never heard of: a worker was killed between publishing it and the op that names it,
//! and its file went before it was stored again.
//!
//! Only where the content directory is the store. Under the lock of the hash, which a worker holds from before it
//! publishes until the namespace knows.

use std::path::Path;

use tracing::{info, warn};

use super::Ingest;
use crate::tree::{Query, TreeError};
use crate::types::ContentHash;
use crate::windows;

impl Ingest {
    /// Looks through the whole content directory; returns how many contents went.
    pub async fn sweep(&self) -> Result<usize, TreeError> {
        let mut removed = 0;
        if !self.backends.content_dir_is_store {
            return Ok(0);
        }
        for first in 0..=u8::MAX {
            if *self.stop.borrow() {
                break;
            }
            for hash in self.unknown(first).await? {
                removed += usize::from(self.remove_unknown(&hash).await?);
            }
        }
        if removed > 0 {
            info!("removed {removed} contents that no file ever had");
        }
        Ok(removed)
    }

    /// Contents on disk whose hash begins with `first` and that the namespace does not know.
    async fn unknown(&self, first: u8) -> Result<Vec<ContentHash>, TreeError> {
        let mut start = [0; 32];
        start[0] = first;
        let path = self.sealed.path(&ContentHash(start));
        let listed = tokio::task::spawn_blocking(move || list(&path)).await;
        let listed = listed
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|e| TreeError::Database(format!("content directory: {e}")))?;
        let mut unknown = Vec::new();
        for some in listed.chunks(512) {
            unknown.extend(self.tree.scan(|q| {
                let mut unknown = Vec::new();
                for hash in some {
                    if !is_known(q, hash)? {
                        unknown.push(*hash);
                    }
                }
                Ok(unknown)
            })?);
        }
        Ok(unknown)
    }

    async fn remove_unknown(&self, hash: &ContentHash) -> Result<bool, TreeError> {
        let lock = self.backends.locks.acquire(hash).await;
        let _lock = lock.map_err(|e| TreeError::Unavailable(e.to_string()))?;
        if self.tree.read(|q| is_known(q, hash))? {
            return Ok(false);
        }
        windows::SWEEP.passed();
        if let Err(e) = std::fs::remove_file(self.sealed.path(hash)) {
            warn!("removing {hash}: {e}");
            return Ok(false);
        }
        self.sealed.forget(hash);
        Ok(true)
    }
}

/// Also what files refer to without an entry of its own: such a database is damaged, and the bytes mend it.
fn is_known(q: Query<'_>, hash: &ContentHash) -> Result<bool, TreeError> {
    Ok(q.content(hash)?.is_some() || q.is_referenced(hash)?)
}

/// The hashes in the directory that `path` lies in.
fn list(path: &Path) -> std::io::Result<Vec<ContentHash>> {
    let mut hashes = Vec::new();
    for entry in std::fs::read_dir(path.parent().unwrap_or(path))? {
        if let Some(hash) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
            hashes.push(hash);
        }
    }
    Ok(hashes)
}
