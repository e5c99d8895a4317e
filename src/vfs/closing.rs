//! Closing and syncing files.
//!
//! flush tells the namespace size and pending mark, since close(2) can still fail there; the last writer's release seals.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::sync::MutexGuard;
use tracing::warn;

use super::open::{Acknowledged, Body, Handle, Mode, OpenInode, Standing, Transition, overlay};
use super::patience::enter;
use super::sharing::is_untouched;
use super::transfer::blocking;
use super::{Result, Vfs, VfsError};
use crate::content::ReadFile;
use crate::tree::{Commitment, Op, Origin, TreeError};
use crate::types::{Generation, Ino};
use crate::windows;

impl Vfs {
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
        let handle = self.sound_handle(fh)?;
        let open = &handle.open;
        // Also what others wrote and closed, which may still be in the spool.
        let Some(file) = self.readable(open).await? else {
            return Ok(self.tree.sync()?);
        };
        self.sync_bytes(open.ino, file, data_only).await?;
        let mut transition = enter(open).await?;
        self.name_durably(open, &mut transition).await
    }

    /// Makes the bytes of a file survive power loss, but not what the namespace says of it.
    pub(super) async fn sync_bytes(&self, ino: Ino, file: ReadFile, data_only: bool) -> Result<()> {
        let spool = self.spool.clone();
        Ok(blocking(move || spool.sync(ino, &file, data_only)).await?)
    }

    /// Makes all that the namespace must know of the spool file survive power loss, but not what was written to it since
    /// its last sync.
    pub(super) async fn name_durably(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut MutexGuard<'_, Transition>,
    ) -> Result<()> {
        self.acknowledge(open, transition, Commitment::Durable)
            .await?;
        windows::SYNC_KNOWN.pass()?;
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
        let told = self
            .acknowledge_file(open, &file, transition, commitment)
            .await;
        if told.is_err() {
            drop(file);
            self.lay_aside_if_void(open, transition)?;
        }
        told
    }

    /// What the kernel does not hold as a backing file need not stay when it is no version any more.
    pub(super) fn lay_aside_if_void(
        &self,
        open: &OpenInode,
        transition: &mut Transition,
    ) -> Result<()> {
        match (transition.standing, &transition.mode) {
            (Standing::Void, Mode::Undecided | Mode::Cached) => self.lay_aside(open, transition),
            _ => Ok(()),
        }
    }

    pub(super) async fn acknowledge_file(
        &self,
        open: &Arc<OpenInode>,
        file: &File,
        transition: &mut MutexGuard<'_, Transition>,
        commitment: Commitment,
    ) -> Result<()> {
        if open.gone().is_some() {
            return Ok(());
        }
        self.look_for_losses(open, transition)?;
        let written = open.take_written();
        let told = self
            .acknowledge_state(open, file, transition, commitment, written)
            .await;
        if told.is_err() && written {
            open.note_written();
        }
        told
    }

    pub(super) async fn acknowledge_state(
        &self,
        open: &Arc<OpenInode>,
        file: &File,
        transition: &mut MutexGuard<'_, Transition>,
        commitment: Commitment,
        written: bool,
    ) -> Result<()> {
        for _ in 0..8 {
            let meta = file.metadata()?;
            let now = Acknowledged::of(transition.generation, &meta);
            let told = transition.announced || commitment == Commitment::Committed;
            if (told && !written && transition.acknowledged == Some(now)) || open.gone().is_some() {
                return Ok(());
            }
            let mut inode = match self.tree.read(|q| q.inode(open.ino)) {
                Ok(inode) => inode,
                Err(TreeError::NotFound) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            if transition.lent == transition.generation {
                let next = transition.generation.next();
                self.set_generation(open, transition, next)?;
                // Not of this one: it can be another node's by now, and must not pass for ours then.
                transition.announced = false;
                continue;
            }
            overlay(&mut inode, &meta);
            let op = Op::Pending {
                ino: open.ino,
                generation: now.generation,
                node: self.node.clone(),
                size: now.size,
                mtime: now.mtime,
                ctime: inode.ctime,
            };
            windows::CLOSE.pass()?;
            match self.tree.submit(Origin::Kernel, commitment, vec![op]).await {
                Ok(_) => {
                    windows::CLOSE_KNOWN.passed();
                    transition.acknowledged = Some(now);
                    transition.announced = true;
                    transition.standing = Standing::Sound;
                    return Ok(());
                }
                Err(TreeError::NotFound) => return Ok(()),
                // Another node wrote meanwhile, and nobody here did: the daemon itself touched the file.
                Err(TreeError::Superseded) if !written && is_untouched(open, transition, &meta) => {
                    return Ok(());
                }
                Err(TreeError::Superseded) if transition.standing == Standing::Doubtful => {
                    return self.give_way(open, transition);
                }
                // The last close wins, so go past its generation.
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
    pub(super) async fn seal(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut MutexGuard<'_, Transition>,
    ) -> Result<()> {
        if open.spool_file().is_none() {
            return Ok(());
        }
        // Through a mapping it can have been written after the last flush.
        let acknowledged = self
            .acknowledge(open, transition, Commitment::Committed)
            .await;
        if open.gone().is_some() {
            return Ok(());
        }
        if transition.standing == Standing::Void {
            self.lay_aside(open, transition)?;
        }
        let Some(file) = open.spool_file() else {
            return acknowledged;
        };
        let unchanged = self.is_unchanged(open, transition) && acknowledged.is_ok();
        // Before the file is out of sight: whoever looks now is told what a failed close could not tell.
        self.spool.seal(open.ino);
        // Readers go on with a file that cannot write, so that a worker can tell when nobody else can either.
        *open.body.write() = match self.reopen(open.ino, transition.generation, &file) {
            Ok(reader) => Body::Sealed(self.spool.as_closed(open.ino, reader)),
            Err(e) => {
                warn!("inode {}: its spool file cannot be opened: {e}", open.ino);
                Body::Unloaded
            }
        };
        drop(file);
        self.hand_over(open, transition, unchanged).await?;
        acknowledged
    }

    /// Opened for writing, never written: what is stored is still right.
    pub(super) fn is_unchanged(&self, open: &OpenInode, transition: &Transition) -> bool {
        let inode = self.tree.read(|q| q.inode(open.ino));
        inode.is_ok_and(|inode| inode.generation < transition.generation)
    }

    pub(super) async fn hand_over(
        &self,
        open: &OpenInode,
        transition: &mut Transition,
        unchanged: bool,
    ) -> Result<()> {
        transition.acknowledged = None;
        if let Some(generation) = self.spool.seal(open.ino) {
            let told = match unchanged {
                true => self.announce_unchanged(open.ino, generation).await,
                false => Ok(()),
            };
            // Where the namespace could not be told, a worker does so.
            self.ingest.enqueue(open.ino, generation);
            told?;
        }
        Ok(())
    }

    fn reopen(&self, ino: Ino, generation: Generation, file: &File) -> io::Result<File> {
        let path = self.spool.path(ino, generation);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                warn!(
                    "{} was removed while it was written, and is put back",
                    path.display()
                );
                self.spool.put_back(ino, generation, file)?;
                File::open(&path)
            }
            opened => opened,
        }
    }

    /// Seals a spool file that was made or changed for somebody who is no writer.
    pub(super) async fn seal_unwritten(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut MutexGuard<'_, Transition>,
    ) -> Result<()> {
        match transition.writers {
            0 => self.seal(open, transition).await,
            _ => Ok(()),
        }
    }

    /// A taken-back spool file that was not changed after all still has to be stored under its new generation.
    async fn announce_unchanged(&self, ino: Ino, generation: Generation) -> Result<()> {
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
        Ok(())
    }

    /// The last close(2) of a handle. Cleans up; its errors reach the log only.
    pub async fn release(&self, fh: u64) -> Result<()> {
        let Some(handle) = self.opens.remove_handle(fh) else {
            return Err(VfsError::BadHandle);
        };
        let result = self.release_handle(&handle).await;
        self.give_up_locks_of(&handle, fh).await;
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
