//! Where the bytes of an open inode are: the spool file that writers write, or what readers read.
//!
//! Writers get the present spool file back when it was not stored yet, else a copy of the stored content. Readers get the
//! spool file of this node, else the sealed file on this disk, else what the store sends; content that another node still
//! has is waited for.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::files::blocking;
use super::open::{Acknowledged, Body, OpenInode, Transition};
use super::{REMOTE_CONTENT_DEADLINE, Result, Vfs, VfsError};
use crate::content::disk;
use crate::content::spool::TakeBack;
use crate::tree::{self, Inode};
use crate::types::Generation;

impl Vfs {
    /// Asks for the present spool file, and waits while a worker publishes it.
    pub(super) async fn take_back(&self, open: &Arc<OpenInode>, inode: &Inode) -> Result<TakeBack> {
        loop {
            let changed = self.spool.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.spool.take_back(open.ino, inode.generation)? {
                TakeBack::Busy => changed.await,
                other => return Ok(other),
            }
        }
    }

    /// Fills a backing file that the kernel holds with the content that another node closed meanwhile.
    pub(super) async fn refill(&self, inode: &Inode, file: Arc<File>) -> Result<()> {
        let source = self.stored(inode).await?;
        blocking(move || {
            rustix::fs::ftruncate(&*file, 0)?;
            match source {
                Some(source) => disk::copy(&source, &file),
                None => Ok(()),
            }
        })
        .await?;
        Ok(())
    }

    /// Opens stored content that is on this disk, so that it stays readable after its last name went.
    pub(super) fn hold_content(&self, open: &Arc<OpenInode>, inode: &Inode) -> Result<()> {
        if let tree::Body::Stored { hash, .. } = &inode.body
            && matches!(&*open.body.read(), Body::Unloaded)
            && self.spool.stage(open.ino).is_none()
            && let Some(file) = self.sealed.open_local(hash)?
        {
            *open.body.write() = Body::Sealed(file);
        }
        Ok(())
    }

    pub(super) fn begin_writing(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        generation: Generation,
        file: Arc<File>,
        keep_mtime_of: Option<&Inode>,
    ) -> Result<()> {
        if let Some(inode) = keep_mtime_of {
            disk::set_mtime(&file, inode.mtime)?;
            transition.acknowledged = Some(Acknowledged {
                generation,
                size: inode.size,
                mtime: inode.mtime,
            });
        } else {
            transition.acknowledged = None;
        }
        transition.generation = generation;
        transition.entry_synced = false;
        *open.body.write() = Body::Spool(file);
        Ok(())
    }

    /// The file that writes go to: the spool file, copied from the stored content if there is none yet.
    pub(super) async fn writable(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
    ) -> Result<Arc<File>> {
        if let Some(file) = open.spool_file() {
            return Ok(file);
        }
        let inode = match open.gone() {
            Some(inode) => inode,
            None => self.tree.read(|q| q.inode(open.ino))?,
        };
        let taken = self.take_back(open, &inode).await?;
        if let TakeBack::Outdated(_, file) = &taken {
            self.refill(&inode, file.clone()).await?;
        }
        if let TakeBack::Writing(generation, file) | TakeBack::Outdated(generation, file) = taken {
            self.begin_writing(open, transition, generation, file.clone(), Some(&inode))?;
            return Ok(file);
        }
        let source = self.load(open, &inode).await?;
        let newest = self
            .spool
            .stage(open.ino)
            .map_or(inode.generation, |s| inode.generation.max(s.1));
        let generation = newest.next();
        let (spool, ino) = (self.spool.clone(), open.ino);
        let file = blocking(move || match source {
            Some(source) => spool.create_from(ino, generation, &source),
            None => spool.create(ino, generation),
        })
        .await?;
        self.begin_writing(open, transition, generation, file.clone(), Some(&inode))?;
        Ok(file)
    }

    /// The file that reads come from; `None` when there are no bytes.
    pub(super) async fn readable(&self, open: &Arc<OpenInode>) -> Result<Option<Arc<File>>> {
        match &*open.body.read() {
            Body::Spool(file) | Body::Sealed(file) => return Ok(Some(file.clone())),
            Body::Empty => return Ok(None),
            Body::Unloaded => {}
        }
        let _transition = open.transition.lock().await;
        let inode = match open.gone() {
            Some(inode) => inode,
            None => self.tree.read(|q| q.inode(open.ino))?,
        };
        self.load(open, &inode).await
    }

    /// Finds the bytes of an inode that nobody here writes. The caller holds its transition.
    pub(super) async fn load(
        &self,
        open: &Arc<OpenInode>,
        inode: &Inode,
    ) -> Result<Option<Arc<File>>> {
        match &*open.body.read() {
            Body::Spool(file) | Body::Sealed(file) => return Ok(Some(file.clone())),
            Body::Empty => return Ok(None),
            Body::Unloaded => {}
        }
        let mut inode = inode.clone();
        let mut looks = 0;
        let found = loop {
            match self.spool.open_sealed(open.ino, inode.generation) {
                Ok(Some(file)) => break Some(file),
                Ok(None) => {}
                // A worker finished with it between two looks: it is content now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
            match self.stored(&inode).await {
                // What was pending here a moment ago may be content by now.
                Err(VfsError::Lost(_)) if looks < 3 && open.gone().is_none() => {
                    looks += 1;
                    inode = self.tree.read(|q| q.inode(open.ino))?;
                }
                found => break found?,
            }
        };
        *open.body.write() = match &found {
            Some(file) => Body::Sealed(file.clone()),
            None => Body::Empty,
        };
        Ok(found)
    }

    /// Opens stored content, waiting for it when another node still has it.
    pub(super) async fn stored(&self, inode: &Inode) -> Result<Option<Arc<File>>> {
        let mut inode = inode.clone();
        let deadline = tokio::time::Instant::now() + REMOTE_CONTENT_DEADLINE;
        loop {
            let changed = self.remote_change.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match &inode.body {
                tree::Body::Empty => return Ok(None),
                tree::Body::Stored { hash, .. } => {
                    if let Some(file) = self.sealed.open_local(hash)? {
                        return Ok(Some(file));
                    }
                    let content = self
                        .tree
                        .read(|q| q.content(hash))?
                        .ok_or(VfsError::Lost(inode.ino.0))?;
                    return Ok(Some(self.sealed.open(hash, &content.blob).await?));
                }
                tree::Body::Pending { node, .. } if *node == self.node => {
                    return Err(VfsError::Lost(inode.ino.0));
                }
                tree::Body::Pending { node, .. } => {
                    if tokio::time::timeout_at(deadline, changed).await.is_err() {
                        return Err(VfsError::StillElsewhere(node.to_string()));
                    }
                }
            }
            inode = self.tree.read(|q| q.inode(inode.ino))?;
        }
    }
}
