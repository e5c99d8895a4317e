//! Moving bytes through open files: read, write, truncate.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::names::AttrChange;
use super::open::{Mode, OpenInode, Transition};
use super::patience::enter;
use super::{Caller, Result, Vfs, VfsError};
use crate::tree::{Inode, TreeError};
use crate::types::Ino;
use crate::windows;

impl Vfs {
    /// Calls `f` with the file that reads of this handle come from; `None` when there are no bytes.
    pub async fn reading<T>(
        &self,
        fh: u64,
        f: impl FnOnce(Option<&File>) -> io::Result<T>,
    ) -> Result<T> {
        let handle = self.sound_handle(fh)?;
        let file = self.readable(&handle.open).await?;
        Ok(f(file.as_deref())?)
    }

    /// Calls `f` with the file that writes of this handle go to.
    pub async fn writing<T>(&self, fh: u64, f: impl FnOnce(&File) -> io::Result<T>) -> Result<T> {
        let handle = self.sound_handle(fh)?;
        if !handle.write {
            return Err(VfsError::BadHandle);
        }
        let written = |result: io::Result<T>| {
            handle.open.note_written();
            Ok(result?)
        };
        if let Some(file) = handle.open.spool_file() {
            return written(f(&file));
        }
        let mut transition = enter(&handle.open).await?;
        let file = self.writable(&handle.open, &mut transition, false).await?;
        // Still under the lock, so that nobody seals in between.
        written(f(&file))
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    pub async fn read(&self, fh: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let open = &self.sound_handle(fh)?.open;
        self.with_content(open, |file| file.read_full(offset, buffer))
            .await
            .map(Option::unwrap_or_default)
    }

    /// Writes all of `data` at `offset`. `clears_ids`: a caller who may not keep the set-id bits.
    pub async fn write(
        &self,
        fh: u64,
        offset: u64,
        data: &[u8],
        clears_ids: Option<Caller>,
    ) -> Result<()> {
        self.writing(fh, |file| file.write_all_at(data, offset))
            .await?;
        if let Some(caller) = clears_ids {
            let ino = self.opens.handle(fh)?.open.ino;
            self.clear_set_ids(caller, ino).await?;
        }
        Ok(())
    }

    /// Writes without waiting, when the spool file is at hand; `None` when [`Vfs::write`] must be used.
    pub fn write_now(&self, fh: u64, offset: u64, data: &[u8]) -> Option<Result<()>> {
        let handle = self.sound_handle(fh).ok().filter(|h| h.write)?;
        let file = handle.open.spool_file()?;
        let written = file.write_all_at(data, offset);
        handle.open.note_written();
        Some(written.map_err(Into::into))
    }

    pub(super) async fn clear_set_ids(&self, caller: Caller, ino: Ino) -> Result<()> {
        let inode = self.attr(ino)?.inode;
        let mode = caller.mode_without_ids(&inode);
        if mode != inode.mode {
            let change = AttrChange {
                mode: Some(mode),
                ..AttrChange::default()
            };
            self.change_attributes(ino, change).await?;
        }
        Ok(())
    }

    /// Sets the length of a file, open or not.
    pub async fn truncate(&self, caller: Caller, ino: Ino, size: u64) -> Result<()> {
        let open = self.opens.join(ino);
        let result = self.truncate_joined(&open, size).await;
        self.opens.leave(ino);
        result?;
        // Linux clears the set-id bits unless the caller may keep them; only root certainly may.
        match caller.uid {
            0 => Ok(()),
            _ => self.clear_set_ids(caller, ino).await,
        }
    }

    async fn truncate_joined(&self, open: &Arc<OpenInode>, size: u64) -> Result<()> {
        let inode = self.attr(open.ino)?.inode;
        if inode.is_dir() {
            return Err(TreeError::IsDirectory.into());
        }
        if !inode.is_file() {
            return Err(TreeError::Invalid.into());
        }
        let mut transition = enter(open).await?;
        let done = self
            .truncate_locked(open, &mut transition, &inode, size)
            .await;
        // Also after an error: nobody else would.
        let sealed = self.seal_unwritten(open, &mut transition).await;
        done.and(sealed)
    }

    pub(super) async fn truncate_locked(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        inode: &Inode,
        size: u64,
    ) -> Result<()> {
        let anew = size == 0
            && open.spool_file().is_none()
            && !matches!(transition.mode, Mode::Passthrough(_))
            // A mapping that outlived its descriptor stays one of this file.
            && self.spool.still_mapped(open.ino).is_none();
        if anew {
            // What was there need not be copied.
            let newest = self
                .spool
                .stage(open.ino)
                .map_or(inode.generation, |s| inode.generation.max(s.1));
            let file = self.spool.create(open.ino, newest.next())?;
            self.begin_writing(open, transition, newest.next(), file, None)?;
            if inode.size > 0 {
                open.note_written();
            }
            return Ok(());
        }
        let file = self.writable(open, transition, size == 0).await?;
        // POSIX moves the times even when the length stays, and ftruncate on Linux does so.
        rustix::fs::ftruncate(&*file, size).map_err(io::Error::from)?;
        open.note_written();
        windows::TRUNCATE.pass()?;
        Ok(())
    }
}

/// Runs `f` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(e) => Err(io::Error::other(e)),
    }
}
