//! Where the bytes of an open inode are: the spool file that writers write, or what readers read.
//!
//! Writers get the present spool file back when it was not stored yet, else a copy of the stored content. Readers get the
//! spool file of this node, else the sealed file on this disk, else what comes from elsewhere ([`super::remote`]).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::open::{Acknowledged, Body, OpenInode, Standing, Transition};
use super::patience::enter;
use super::transfer::blocking;
use super::{Result, Vfs, VfsError};
use crate::content::spool::{Stage, TakeBack};
use crate::content::{ReadFile, disk, is_damage};
use crate::tree::{self, Inode};
use crate::types::{Generation, Time};

/// A file that was closed less long ago is written to again without being read first.
const FRESH: Duration = Duration::from_secs(60);

impl Vfs {
    /// The inode as it is now, or was when it lost its last name.
    fn present(&self, open: &OpenInode) -> Result<Inode> {
        match open.gone() {
            Some(inode) => Ok(inode),
            None => Ok(self.tree.read(|q| q.inode(open.ino))?),
        }
    }

    /// Asks for the present spool file, and waits while a worker publishes it. `emptied`: nothing of it is to stay.
    pub(super) async fn take_back(
        &self,
        open: &Arc<OpenInode>,
        inode: &Inode,
        emptied: bool,
    ) -> Result<TakeBack> {
        loop {
            let changed = self.spool.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // What is written now would make damage pass for content.
            let long_ago = Time(Time::now().0.saturating_sub(FRESH.as_nanos() as i64));
            match self.spool.waited(open.ino, self.known(inode), long_ago) {
                Ok(Some(_)) if emptied => {}
                Ok(Some(closed)) => {
                    let checked = blocking(move || closed.check_range(0, u64::MAX)).await;
                    // What is stored takes the place of a copy that is only kept.
                    if !matches!(self.spool.stage(open.ino), Some((Stage::Kept, _))) {
                        checked?;
                    }
                }
                Ok(None) => {}
                Err(_) if self.spool.is_missing(open.ino) => {
                    return Err(VfsError::Lost(open.ino.0));
                }
                Err(e) => return Err(e.into()),
            }
            match self.spool.take_back(open.ino, self.known(inode)) {
                Ok(TakeBack::Busy) => changed.await,
                Ok(other) => return Ok(other),
                Err(_) if self.spool.is_missing(open.ino) => {
                    return Err(VfsError::Lost(open.ino.0));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Fills a file that the kernel holds as a backing file, and so cannot be given another for, with the content that
    /// another node closed meanwhile. Until all of it is there it is no version of the inode.
    pub(super) async fn refill(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        inode: &Inode,
        file: Arc<File>,
    ) -> Result<()> {
        let source = self.stored(inode).await?;
        self.disown(open, transition)?;
        let target = file.clone();
        blocking(move || {
            rustix::fs::ftruncate(&*target, 0)?;
            match source {
                Some(source) => source.copy_to(&target),
                None => Ok(()),
            }
        })
        .await?;
        let generation = inode.generation.next();
        self.set_generation(open, transition, generation)?;
        self.begin_writing(open, transition, generation, file, Some(inode))
    }

    /// The same for one that nobody here writes yet. After an error it is as outdated as before.
    pub(super) async fn refill_outdated(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        inode: &Inode,
        file: Arc<File>,
    ) -> Result<()> {
        let filled = self.refill(open, transition, inode, file).await;
        if filled.is_err() {
            self.lay_aside(open, transition)?;
        }
        filled
    }

    /// The spool file is no version of the inode any more, and recovery shall not take it for one.
    pub(super) fn disown(&self, open: &OpenInode, transition: &mut Transition) -> Result<()> {
        transition.standing = Standing::Void;
        self.spool.unmark(open.ino)?;
        Ok(self.spool.disown(open.ino)?)
    }

    /// Gives up the spool file. What is read and written from now on is what the namespace has.
    pub(super) fn lay_aside(&self, open: &OpenInode, transition: &mut Transition) -> Result<()> {
        *open.body.write() = Body::Unloaded;
        self.opens.forget_pages(open.ino);
        transition.acknowledged = None;
        transition.announced = false;
        transition.standing = Standing::Sound;
        open.take_written();
        if let Some(generation) = self.spool.seal(open.ino) {
            self.spool.lose_soon(open.ino, generation);
            self.spool.give_up(open.ino, generation)?;
        }
        Ok(())
    }

    /// Opens stored content that is on this disk, so that it stays readable after its last name went.
    pub(super) fn hold_content(&self, open: &Arc<OpenInode>, inode: &Inode) -> Result<()> {
        if let tree::Body::Stored { hash, .. } = &inode.body
            && matches!(&*open.body.read(), Body::Unloaded)
            && self.spool.stage(open.ino).is_none()
            && let Some(file) = self.sealed.open_local(hash)?
        {
            *open.body.write() = Body::Sealed(ReadFile::Content(file));
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
        open.take_written();
        open.take_unshown();
        if let Some(inode) = keep_mtime_of {
            disk::set_mtime(&file, inode.mtime)?;
            transition.acknowledged = Some(Acknowledged::of(generation, &file.metadata()?));
        } else {
            transition.acknowledged = None;
        }
        transition.generation = generation;
        transition.announced = false;
        transition.standing = Standing::Sound;
        *open.body.write() = Body::Spool(file);
        Ok(())
    }

    /// The file that writes go to: the spool file, copied from the stored content if there is none yet. `emptied`: all of it is
    /// about to be cut off.
    pub(super) async fn writable(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        emptied: bool,
    ) -> Result<Arc<File>> {
        if let Some(file) = open.spool_file() {
            return Ok(file);
        }
        let inode = self.present(open)?;
        let taken = self.take_back(open, &inode, emptied).await?;
        match taken {
            TakeBack::Writing(generation, file) => {
                self.begin_writing(open, transition, generation, file.clone(), Some(&inode))?;
                return Ok(file);
            }
            TakeBack::Outdated(file) => {
                self.refill_outdated(open, transition, &inode, file.clone())
                    .await?;
                return Ok(file);
            }
            TakeBack::Nothing | TakeBack::Shared(_) | TakeBack::Busy => {}
        }
        let newest = self
            .spool
            .stage(open.ino)
            .map_or(inode.generation, |s| inode.generation.max(s.1));
        let generation = newest.next();
        let mut again = true;
        let file = loop {
            let source = self.load(open, &inode).await?;
            let (spool, ino, from) = (self.spool.clone(), open.ino, source.clone());
            let made = blocking(move || match from {
                Some(from) => spool.create_from(ino, generation, &from),
                None => spool.create(ino, generation),
            })
            .await;
            match (made, source) {
                (Err(e), Some(source)) if is_damage(&e) && again => {
                    again = false;
                    open.let_go_of(&source);
                }
                (made, _) => break made?,
            }
        };
        self.begin_writing(open, transition, generation, file.clone(), Some(&inode))?;
        Ok(file)
    }

    /// The file that reads come from; `None` when there are no bytes.
    pub(super) async fn readable(&self, open: &Arc<OpenInode>) -> Result<Option<ReadFile>> {
        match &*open.body.read() {
            Body::Spool(file) => return Ok(Some(ReadFile::Plain(file.clone()))),
            Body::Sealed(file) => return Ok(Some(file.clone())),
            Body::Empty => return Ok(None),
            Body::Unloaded => {}
        }
        // What comes from elsewhere is waited for without the lock, so that nobody has to wait along. It is held, so that it
        // stays on this disk until it is looked for.
        let mut _held;
        loop {
            let inode = self.present(open)?;
            if self.is_here(&inode) {
                break;
            }
            _held = match self.stored(&inode).await {
                // As below, it is here by now, or lost.
                Err(VfsError::Lost(_)) => break,
                came => came?,
            };
        }
        let _transition = enter(open).await?;
        self.load(open, &self.present(open)?).await
    }

    /// Calls `f` with the file that reads come from; `None` when there are no bytes. Where that is damaged, once more with
    /// what the store sends, or what was stored anew meanwhile.
    pub(super) async fn with_content<T>(
        &self,
        open: &Arc<OpenInode>,
        mut f: impl FnMut(&ReadFile) -> io::Result<T>,
    ) -> Result<Option<T>> {
        let Some(file) = self.readable(open).await? else {
            return Ok(None);
        };
        let prepared = match file.is_prepared() {
            true => Ok(()),
            false => {
                let file = file.clone();
                blocking(move || file.prepare()).await
            }
        };
        match prepared.and_then(|()| f(&file)) {
            Err(e) if is_damage(&e) => open.let_go_of(&file),
            result => return Ok(Some(result?)),
        }
        match self.readable(open).await? {
            Some(file) => Ok(Some(f(&file)?)),
            None => Ok(None),
        }
    }

    /// Finds the bytes of an inode that nobody here writes. The caller holds its transition.
    pub(super) async fn load(
        &self,
        open: &Arc<OpenInode>,
        inode: &Inode,
    ) -> Result<Option<ReadFile>> {
        match &*open.body.read() {
            Body::Spool(file) => return Ok(Some(ReadFile::Plain(file.clone()))),
            Body::Sealed(file) => return Ok(Some(file.clone())),
            Body::Empty => return Ok(None),
            Body::Unloaded => {}
        }
        let mut inode = inode.clone();
        let mut looks = 0;
        let found = loop {
            match self.spool.open_sealed(open.ino, self.known(&inode)) {
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
}
