//! Operations on bytes: open, read, write, flush, fsync, truncate, release.
//!
//! The first writer of an inode gets it a spool file: an empty one for a new or truncated file, the present one taken
//! back when it was not stored yet, else a copy of the stored content, made at the first write and not before. flush
//! tells the namespace size and pending mark, since close(2) can still fail there; the last writer's release seals.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::MutexGuard;

use super::names::bytes;
use super::open::{Acknowledged, Backing, Body, Handle, Mode, OpenInode, Transition, overlay};
use super::{Attr, Caller, Result, Vfs, VfsError};
use crate::content::disk;
use crate::content::spool::TakeBack;
use crate::tree::{Commitment, Inode, Op, Origin, TreeError};
use crate::types::{Generation, Ino, Time};

/// What an opener wants to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Write, not only read.
    pub write: bool,
    /// Start from nothing (`O_TRUNC`).
    pub truncate: bool,
    /// Truncating clears the set-id bits: the caller may not keep them.
    pub clear_ids: bool,
}

/// An open file.
pub struct Opened {
    /// Its handle.
    pub fh: u64,
    /// The kernel may keep the pages it has of this inode.
    pub keep_cache: bool,
    /// The backing file that the kernel reads and writes by itself.
    pub backing: Option<Backing>,
}

/// Registers a spool file with the kernel as a backing file; the error says why it cannot be.
pub type RegisterBacking<'a> = &'a (dyn Fn(&File) -> io::Result<Backing> + Send + Sync);

fn is_privileged(mode: u32) -> bool {
    mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

impl Vfs {
    /// Makes a regular file and opens it. `exclusive`: refuse when the name is taken, else open what it names.
    #[allow(clippy::too_many_arguments)]
    pub async fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        access: Access,
        exclusive: bool,
        register: RegisterBacking<'_>,
    ) -> Result<(Attr, Opened)> {
        let ino = self.tree.new_ino()?;
        let open = self.opens.join(ino);
        let created = self
            .create_open(&open, caller, parent, name, mode, access, register)
            .await;
        match created {
            Ok((attr, backing)) => {
                let fh = self.opens.add_handle(open, access.write);
                let opened = Opened {
                    fh,
                    keep_cache: false,
                    backing,
                };
                Ok((attr, opened))
            }
            Err(e) => {
                self.spool.discard(ino);
                self.opens.leave(ino);
                // Another machine was first; without O_EXCL that is an ordinary open.
                if !exclusive && matches!(e, VfsError::Tree(TreeError::Exists)) {
                    let attr = self.lookup(parent, name)?;
                    let opened = self.open(attr.inode.ino, access, register).await?;
                    return Ok((self.attr(attr.inode.ino)?, opened));
                }
                Err(e)
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn create_open(
        &self,
        open: &Arc<OpenInode>,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        access: Access,
        register: RegisterBacking<'_>,
    ) -> Result<(Attr, Option<Backing>)> {
        let mut transition = open.transition.lock().await;
        let generation = Generation(1);
        let mut now = Time::now();
        let mut spool = None;
        if access.write {
            let file = self.spool.create(open.ino, generation)?;
            // The spool file's time is the file's time, so that stat says the same before and after the close.
            now = disk::mtime(&file.metadata()?);
            spool = Some(file);
        }
        let op = Op::Create {
            parent,
            name: bytes(name),
            ino: open.ino,
            mode: libc::S_IFREG | (mode & 0o7777),
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            target: None,
            now,
        };
        let applied = self
            .tree
            .submit(Origin::Kernel, Commitment::Committed, vec![op])
            .await?;
        let inode = applied.inode.ok_or(TreeError::NotFound)?;
        let mut backing = None;
        if let Some(file) = spool {
            transition.generation = generation;
            transition.writers += 1;
            *open.body.write() = Body::Spool(file);
            backing = self.choose_mode(open, &mut transition, &inode, register);
        } else {
            transition.mode = Mode::Cached;
        }
        Ok((Attr::from(inode), backing))
    }

    /// Opens a file.
    pub async fn open(
        &self,
        ino: Ino,
        access: Access,
        register: RegisterBacking<'_>,
    ) -> Result<Opened> {
        let open = self.opens.join(ino);
        match self.open_joined(&open, access, register).await {
            Ok((keep_cache, backing)) => {
                let fh = self.opens.add_handle(open, access.write);
                Ok(Opened {
                    fh,
                    keep_cache,
                    backing,
                })
            }
            Err(e) => {
                self.opens.leave(ino);
                Err(e)
            }
        }
    }

    async fn open_joined(
        &self,
        open: &Arc<OpenInode>,
        access: Access,
        register: RegisterBacking<'_>,
    ) -> Result<(bool, Option<Backing>)> {
        let mut transition = open.transition.lock().await;
        let inode = self.attr(open.ino)?.inode;
        if !inode.is_file() {
            return Err(TreeError::Invalid.into());
        }
        if access.truncate && access.clear_ids && is_privileged(inode.mode) {
            self.clear_set_ids(open.ino).await?;
        }
        if access.truncate {
            self.truncate_locked(open, &mut transition, &inode, 0)
                .await?;
        } else if access.write {
            self.join_writers(open, &mut transition, &inode).await?;
        }
        if !access.write {
            self.hold_content(open, &inode)?;
        }
        let backing = self.choose_mode(open, &mut transition, &inode, register);
        if access.write {
            transition.writers += 1;
        } else if access.truncate && transition.writers == 0 {
            self.seal(open, &mut transition).await?;
        }
        let keep = backing.is_none()
            && !access.truncate
            && self
                .opens
                .same_pages(open.ino, self.generation_now(open, &transition, &inode));
        Ok((keep, backing))
    }

    fn generation_now(&self, open: &OpenInode, t: &Transition, inode: &Inode) -> Generation {
        match open.spool_file() {
            Some(_) => t.generation,
            None => inode.generation,
        }
    }

    /// Decides how the kernel reads and writes this inode, or follows what was decided at the first open.
    fn choose_mode(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        inode: &Inode,
        register: RegisterBacking<'_>,
    ) -> Option<Backing> {
        match &transition.mode {
            Mode::Passthrough(backing) => return Some(backing.clone()),
            Mode::Cached => return None,
            Mode::Undecided => {}
        }
        transition.mode = Mode::Cached;
        // Writes that the kernel does by itself would not clear the set-id bits.
        if !self.passthrough || is_privileged(inode.mode) {
            return None;
        }
        open.spool_file()?;
        // Registered read-only, the kernel reopens it as each opener asks. So only programs hold it open for writing,
        // and a worker can tell when the last of them, or of their mappings, is gone.
        let path = self.spool.path(open.ino, transition.generation);
        match File::open(path).and_then(|file| register(&file)) {
            Ok(backing) => {
                self.spool.set_backing(open.ino, true);
                transition.mode = Mode::Passthrough(backing.clone());
                Some(backing)
            }
            Err(e) => {
                tracing::debug!("no passthrough for inode {}: {e}", open.ino);
                None
            }
        }
    }

    /// Lets a new writer use the spool file that there is. Without one it waits for the first write.
    async fn join_writers(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        inode: &Inode,
    ) -> Result<()> {
        if open.spool_file().is_some() {
            return Ok(());
        }
        match self.take_back(open, inode).await? {
            TakeBack::Writing(generation, file) => {
                self.begin_writing(open, transition, generation, file, Some(inode))?;
            }
            // An empty file needs no copy, so it can have its spool file now, and the kernel the spool file.
            TakeBack::Nothing if inode.size == 0 && matches!(transition.mode, Mode::Undecided) => {
                let generation = inode.generation.next();
                let file = self.spool.create(open.ino, generation)?;
                self.begin_writing(open, transition, generation, file, Some(inode))?;
            }
            TakeBack::Outdated(generation, file) => {
                self.refill(inode, file.clone()).await?;
                self.begin_writing(open, transition, generation, file, Some(inode))?;
            }
            TakeBack::Nothing | TakeBack::Shared(_) | TakeBack::Busy => {}
        }
        // The kernel would let this writer write to a backing file that nobody stores.
        if matches!(transition.mode, Mode::Passthrough(_)) && open.spool_file().is_none() {
            return Err(VfsError::Lost(open.ino.0));
        }
        Ok(())
    }

    /// Calls `f` with the file that reads of this handle come from; `None` when there are no bytes.
    pub async fn reading<T>(
        &self,
        fh: u64,
        f: impl FnOnce(Option<&File>) -> io::Result<T>,
    ) -> Result<T> {
        let handle = self.opens.handle(fh)?;
        let file = self.readable(&handle.open).await?;
        Ok(f(file.as_deref())?)
    }

    /// Calls `f` with the file that writes of this handle go to.
    pub async fn writing<T>(&self, fh: u64, f: impl FnOnce(&File) -> io::Result<T>) -> Result<T> {
        let handle = self.opens.handle(fh)?;
        if !handle.write {
            return Err(VfsError::BadHandle);
        }
        if let Some(file) = handle.open.spool_file() {
            return Ok(f(&file)?);
        }
        let mut transition = handle.open.transition.lock().await;
        let file = self.writable(&handle.open, &mut transition).await?;
        // Still under the lock, so that nobody seals in between.
        Ok(f(&file)?)
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    pub async fn read(&self, fh: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.reading(fh, |file| match file {
            Some(file) => read_full(file, offset, buffer),
            None => Ok(0),
        })
        .await
    }

    /// Writes all of `data` at `offset`. `clear_ids`: the kernel asks to clear the set-id bits.
    pub async fn write(&self, fh: u64, offset: u64, data: &[u8], clear_ids: bool) -> Result<()> {
        self.writing(fh, |file| file.write_all_at(data, offset))
            .await?;
        if clear_ids {
            let ino = self.opens.handle(fh)?.open.ino;
            self.clear_set_ids(ino).await?;
        }
        Ok(())
    }

    /// Writes without waiting, when the spool file is at hand; `None` when [`Vfs::write`] must be used.
    pub fn write_now(&self, fh: u64, offset: u64, data: &[u8]) -> Option<Result<()>> {
        let handle = self.opens.handle(fh).ok().filter(|h| h.write)?;
        let file = handle.open.spool_file()?;
        Some(file.write_all_at(data, offset).map_err(Into::into))
    }

    /// Copies bytes between two open files of the mount.
    pub async fn copy_range(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        len: usize,
    ) -> Result<usize> {
        let source = self.opens.handle(from)?;
        let Some(source) = self.readable(&source.open).await? else {
            return Ok(0);
        };
        self.writing(to, |target| {
            let (mut at, mut to_at) = (from_offset, to_offset);
            Ok(rustix::fs::copy_file_range(
                &*source,
                Some(&mut at),
                target,
                Some(&mut to_at),
                len,
            )?)
        })
        .await
    }

    async fn clear_set_ids(&self, ino: Ino) -> Result<()> {
        let inode = self.attr(ino)?.inode;
        let mut mode = inode.mode & !libc::S_ISUID;
        if mode & libc::S_IXGRP != 0 {
            mode &= !libc::S_ISGID;
        }
        if mode != inode.mode {
            self.op(Op::SetAttr {
                ino,
                mode: Some(mode),
                uid: None,
                gid: None,
                atime: None,
                mtime: None,
                now: Time::now(),
            })
            .await?;
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
        if caller.uid != 0 && is_privileged(self.attr(ino)?.inode.mode) {
            self.clear_set_ids(ino).await?;
        }
        Ok(())
    }

    async fn truncate_joined(&self, open: &Arc<OpenInode>, size: u64) -> Result<()> {
        let inode = self.attr(open.ino)?.inode;
        if inode.is_dir() {
            return Err(TreeError::IsDirectory.into());
        }
        if !inode.is_file() {
            return Err(TreeError::Invalid.into());
        }
        let mut transition = open.transition.lock().await;
        self.truncate_locked(open, &mut transition, &inode, size)
            .await?;
        if transition.writers == 0 {
            self.seal(open, &mut transition).await?;
        }
        Ok(())
    }

    async fn truncate_locked(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        inode: &Inode,
        size: u64,
    ) -> Result<()> {
        let anew = size == 0
            && open.spool_file().is_none()
            && !matches!(transition.mode, Mode::Passthrough(_));
        if anew {
            // What was there need not be copied.
            let newest = self
                .spool
                .stage(open.ino)
                .map_or(inode.generation, |s| inode.generation.max(s.1));
            let file = self.spool.create(open.ino, newest.next())?;
            return self.begin_writing(open, transition, newest.next(), file, None);
        }
        let file = self.writable(open, transition).await?;
        // POSIX moves the times even when the length stays, and ftruncate on Linux does so.
        rustix::fs::ftruncate(&*file, size).map_err(io::Error::from)?;
        Ok(())
    }

    /// close(2): tells the namespace what was written. After this the bytes survive the daemon being killed.
    pub async fn flush(&self, fh: u64) -> Result<()> {
        let handle = self.opens.handle(fh)?;
        if !handle.write {
            return Ok(());
        }
        let mut transition = handle.open.transition.lock().await;
        self.acknowledge(&handle.open, &mut transition, Commitment::Committed)
            .await
    }

    /// fsync(2): the bytes and the namespace survive power loss of this machine.
    pub async fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        let handle = self.opens.handle(fh)?;
        let open = &handle.open;
        // Also what others wrote and closed, which may still be in the spool.
        let Some(file) = self.readable(open).await? else {
            return Ok(self.tree.sync()?);
        };
        blocking(move || {
            if data_only {
                file.sync_data()
            } else {
                file.sync_all()
            }
        })
        .await?;
        let mut transition = open.transition.lock().await;
        if !transition.entry_synced {
            let dir = self.spool.dir().to_owned();
            blocking(move || disk::sync_dir(&dir)).await?;
            transition.entry_synced = true;
        }
        self.acknowledge(open, &mut transition, Commitment::Durable)
            .await?;
        Ok(self.tree.sync()?)
    }

    /// Tells the namespace size, time and pending mark of the spool file, unless it knows them.
    async fn acknowledge(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut MutexGuard<'_, Transition>,
        commitment: Commitment,
    ) -> Result<()> {
        let Some(file) = open.spool_file() else {
            return Ok(());
        };
        for _ in 0..8 {
            let meta = file.metadata()?;
            let now = Acknowledged {
                generation: transition.generation,
                size: meta.len(),
                mtime: disk::mtime(&meta),
            };
            if transition.acknowledged == Some(now) || open.gone().is_some() {
                return Ok(());
            }
            let mut inode = match self.tree.read(|q| q.inode(open.ino)) {
                Ok(inode) => inode,
                Err(TreeError::NotFound) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            overlay(&mut inode, &meta);
            let op = Op::Pending {
                ino: open.ino,
                generation: now.generation,
                node: self.node.clone(),
                size: now.size,
                mtime: now.mtime,
                ctime: inode.ctime,
            };
            match self.tree.submit(Origin::Kernel, commitment, vec![op]).await {
                Ok(_) => {
                    transition.acknowledged = Some(now);
                    return Ok(());
                }
                Err(TreeError::NotFound) => return Ok(()),
                // Another node wrote meanwhile. The last close wins, so go past its generation.
                Err(TreeError::Superseded) => {
                    let next = self.tree.read(|q| q.inode(open.ino))?.generation.next();
                    self.spool.advance(open.ino, next)?;
                    transition.generation = next;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(TreeError::Superseded.into())
    }

    /// The last writer went: hands the spool file to the workers.
    async fn seal(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut MutexGuard<'_, Transition>,
    ) -> Result<()> {
        let Some(file) = open.spool_file() else {
            return Ok(());
        };
        // Through a mapping it can have been written after the last flush.
        let acknowledged = self
            .acknowledge(open, transition, Commitment::Committed)
            .await;
        if open.gone().is_some() {
            return Ok(());
        }
        let unchanged = match self.tree.read(|q| q.inode(open.ino)) {
            // Opened for writing, never written: what is stored is still right.
            Ok(inode) => inode.generation < transition.generation && acknowledged.is_ok(),
            Err(_) => false,
        };
        // Readers go on with a file that cannot write, so that a worker can tell when nobody else can either.
        let reader = File::open(self.spool.path(open.ino, transition.generation))?;
        *open.body.write() = Body::Sealed(Arc::new(reader));
        drop(file);
        if let Some(generation) = self.spool.seal(open.ino) {
            if unchanged {
                self.store_unchanged(open.ino, generation).await?;
            } else {
                self.ingest.enqueue(open.ino, generation);
            }
        }
        transition.acknowledged = None;
        acknowledged
    }

    /// A taken-back spool file that was not changed after all still has to be stored under its new generation.
    async fn store_unchanged(&self, ino: Ino, generation: Generation) -> Result<()> {
        let inode = self.tree.read(|q| q.inode(ino))?;
        let op = Op::Pending {
            ino,
            generation,
            node: self.node.clone(),
            size: inode.size,
            mtime: inode.mtime,
            ctime: inode.ctime,
        };
        self.tree
            .submit(Origin::Kernel, Commitment::Committed, vec![op])
            .await?;
        self.ingest.enqueue(ino, generation);
        Ok(())
    }

    /// The last close(2) of a handle. Cleans up; its errors reach the log only.
    pub async fn release(&self, fh: u64) -> Result<()> {
        let Some(handle) = self.opens.remove_handle(fh) else {
            return Err(VfsError::BadHandle);
        };
        let result = self.release_handle(&handle).await;
        self.opens.leave(handle.open.ino);
        result
    }

    async fn release_handle(&self, handle: &Handle) -> Result<()> {
        if !handle.write {
            return Ok(());
        }
        let mut transition = handle.open.transition.lock().await;
        transition.writers -= 1;
        if transition.writers > 0 {
            return Ok(());
        }
        self.seal(&handle.open, &mut transition).await
    }
}

/// Reads until `buffer` is full or the file ends.
pub fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
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
