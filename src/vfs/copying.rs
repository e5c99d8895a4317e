//! Copying between open files of the mount (copy_file_range).
//!
//! A whole file into an empty one moves no byte when the source's content is stored: the target gets to refer to the
//! same content. Not so where the kernel has the target as a passthrough backing file, since then it reads and writes
//! that file and nothing else. What cannot be shared is copied by the disk, which shares blocks if it can.

use std::sync::Arc;

use super::open::{Body, Mode, OpenInode};
use super::patience::enter;
use super::{Result, Vfs};
use crate::content::disk;
use crate::content::spool::Stage;
use crate::tree;
use crate::types::{ContentHash, Time};

/// What one call moves at the most: it runs on the kernel's thread, and the caller comes back for the rest.
const COPY_BYTES: u64 = 8 << 20;

impl Vfs {
    /// Copies up to `len` bytes from one open file to another. Returns how many; 0 at the end of the source.
    pub async fn copy_range(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        len: u64,
    ) -> Result<u64> {
        let (source, target) = (self.sound_handle(from)?, self.sound_handle(to)?);
        if from_offset == 0
            && to_offset == 0
            && target.write
            && let Some(size) = self.share(&source.open, &target.open, len).await?
        {
            return Ok(size);
        }
        let len = len.min(COPY_BYTES);
        let checked = self
            .with_content(&source.open, |file| {
                file.check_range(from_offset, len)?;
                Ok(file.clone())
            })
            .await?;
        let Some(file) = checked else { return Ok(0) };
        self.writing(to, |target| {
            disk::copy_part((&file, from_offset), (target, to_offset), len)
        })
        .await
    }

    /// Makes an empty file refer to the stored content of another, if that is what copying `len` bytes comes to.
    /// Returns its size.
    async fn share(
        &self,
        source: &Arc<OpenInode>,
        target: &Arc<OpenInode>,
        len: u64,
    ) -> Result<Option<u64>> {
        // The kernel counts the bytes of one call in 32 bits.
        let Some((hash, size)) = self.stored_whole(source)? else {
            return Ok(None);
        };
        if size == 0 || size > len || size > u32::MAX.into() || source.ino == target.ino {
            return Ok(None);
        }
        // Nobody writes to the target meanwhile: the kernel holds it for this call.
        let mut transition = enter(target).await?;
        if !matches!(transition.mode, Mode::Cached) || target.gone().is_some() {
            return Ok(None);
        }
        let generation = match target.spool_file() {
            Some(file) if file.metadata()?.len() == 0 => transition.generation,
            _ => return Ok(None),
        };
        let shared = self
            .ingest
            .share(target.ino, generation, &hash, size, Time::now())
            .await;
        match shared {
            Ok(true) => {
                *target.body.write() = Body::Unloaded;
                transition.acknowledged = None;
                self.spool.discard(target.ino);
                Ok(Some(size))
            }
            Ok(false) => Ok(None),
            Err(e) => {
                tracing::debug!("inode {}: {e}; its bytes are copied", target.ino);
                Ok(None)
            }
        }
    }

    /// The content of a file that is stored as it is now.
    fn stored_whole(&self, open: &OpenInode) -> Result<Option<(ContentHash, u64)>> {
        let on_its_way =
            matches!(self.spool.stage(open.ino), Some((stage, _)) if stage != Stage::Kept);
        if on_its_way || open.spool_file().is_some() || open.gone().is_some() {
            return Ok(None);
        }
        let inode = self.tree.read(|q| q.inode(open.ino))?;
        Ok(match inode.body {
            tree::Body::Stored { hash, .. } => Some((hash, inode.size)),
            tree::Body::Empty | tree::Body::Pending { .. } => None,
        })
    }
}
