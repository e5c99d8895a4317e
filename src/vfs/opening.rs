//! Opening files, and how the kernel then reads and writes them.
//!
//! The first writer of an inode gets it a spool file: an empty one for a new or truncated file, the present one taken
//! back when it was not stored yet, else a copy of the stored content, made at the first write and not before.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::sync::MutexGuard;

use super::caller::sets_ids;
use super::names::bytes;
use super::open::{Backing, Body, Mode, OpenInode, Standing, Transition};
use super::patience::enter;
use super::{Attr, Caller, Result, Vfs, VfsError};
use crate::content::ReadFile;
use crate::content::disk;
use crate::content::spool::{Stage, TakeBack};
use crate::tree::{Commitment, Inode, Op, Origin, TreeError};
use crate::types::{Generation, Ino, Time};
use crate::windows;

/// What an opener wants to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Write, not only read.
    pub write: bool,
    /// Every write must survive power loss once it returns (`O_SYNC`, `O_DSYNC`).
    pub sync: bool,
    /// Start from nothing (`O_TRUNC`).
    pub truncate: bool,
    /// Truncating clears the set-id bits: this caller may not keep them.
    pub clears_ids: Option<Caller>,
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
        windows::CREATE_NAME.passed();
        let inode = applied.inode.ok_or(TreeError::NotFound)?;
        let mut backing = None;
        if let Some(file) = spool {
            transition.generation = generation;
            transition.writers += 1;
            *open.body.write() = Body::Spool(file);
            backing = self.choose_mode(open, &mut transition, &inode, register);
            if access.sync
                && backing.is_some()
                && let Some(file) = open.spool_file()
            {
                self.sync_bytes(open.ino, ReadFile::Plain(file), false)
                    .await?;
                self.name_durably(open, &mut transition).await?;
            }
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
        let mut transition = match enter(&open).await {
            Ok(transition) => transition,
            Err(e) => {
                self.opens.leave(ino);
                return Err(e);
            }
        };
        let opened = self
            .open_joined(&open, &mut transition, access, register)
            .await;
        match opened {
            Ok((keep_cache, backing)) => {
                drop(transition);
                let fh = self.opens.add_handle(open, access.write);
                Ok(Opened {
                    fh,
                    keep_cache,
                    backing,
                })
            }
            Err(e) => {
                if let Err(e) = self.seal_unwritten(&open, &mut transition).await {
                    tracing::warn!("inode {ino}: {e}");
                }
                drop(transition);
                self.opens.leave(ino);
                Err(e)
            }
        }
    }

    async fn open_joined(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut MutexGuard<'_, Transition>,
        access: Access,
        register: RegisterBacking<'_>,
    ) -> Result<(bool, Option<Backing>)> {
        let inode = self.attr(open.ino)?.inode;
        if !inode.is_file() {
            return Err(TreeError::Invalid.into());
        }
        if let Some(caller) = access.clears_ids.filter(|_| access.truncate) {
            self.clear_set_ids(caller, open.ino).await?;
        }
        if transition.standing == Standing::Void
            && let Some(file) = open.spool_file()
        {
            self.refill(open, transition, &inode, file).await?;
        }
        if access.truncate {
            self.truncate_locked(open, transition, &inode, 0).await?;
        } else if access.write {
            self.join_writers(open, transition, &inode).await?;
        }
        if !access.write {
            self.hold_content(open, &inode)?;
        }
        if !access.truncate {
            self.call_for(&inode);
        }
        let backing = self.choose_mode(open, transition, &inode, register);
        // The kernel syncs the backing file with each write, and nobody tells the namespace. So it is told beforehand.
        if access.write
            && access.sync
            && backing.is_some()
            && let Some(file) = open.spool_file()
        {
            self.sync_bytes(open.ino, ReadFile::Plain(file), false)
                .await?;
            self.name_durably(open, transition).await?;
        }
        if access.write {
            transition.writers += 1;
        } else if access.truncate {
            self.seal_unwritten(open, transition).await?;
        }
        let keep = backing.is_none()
            && !access.truncate
            && self
                .opens
                .same_pages(open.ino, self.generation_now(open, transition, &inode));
        Ok((keep, backing))
    }

    pub(super) fn generation_now(
        &self,
        open: &OpenInode,
        t: &Transition,
        inode: &Inode,
    ) -> Generation {
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
        if !self.passthrough || sets_ids(inode.mode) {
            return None;
        }
        let generation = match open.spool_file() {
            Some(_) => transition.generation,
            // Only through the same backing file do readers see what the mapping writes.
            None => self.spool.still_mapped(open.ino)?,
        };
        // Registered read-only, the kernel reopens it as each opener asks. So only programs hold it open for writing,
        // and a worker can tell when the last of them, or of their mappings, is gone.
        let path = self.spool.path(open.ino, generation);
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
        // Others wait for what is on its way into the store. A writer who waits in turn, for a lock of theirs, must not
        // keep it from them.
        let on_its_way =
            matches!(self.spool.stage(open.ino), Some((stage, _)) if stage != Stage::Writing);
        if self.shares_locks()
            && on_its_way
            && !matches!(transition.mode, Mode::Passthrough(_))
            && self.spool.still_mapped(open.ino).is_none()
        {
            return Ok(());
        }
        match self.take_back(open, inode, false).await? {
            TakeBack::Writing(generation, file) => {
                self.begin_writing(open, transition, generation, file, Some(inode))?;
            }
            // An empty file needs no copy, so it can have its spool file now, and the kernel the spool file.
            TakeBack::Nothing if inode.size == 0 && matches!(transition.mode, Mode::Undecided) => {
                let generation = inode.generation.next();
                let file = self.spool.create(open.ino, generation)?;
                self.begin_writing(open, transition, generation, file, Some(inode))?;
            }
            TakeBack::Outdated(file) => {
                self.refill_outdated(open, transition, inode, file).await?;
            }
            TakeBack::Nothing | TakeBack::Shared(_) | TakeBack::Busy => {}
        }
        // The kernel would let this writer write to a backing file that nobody stores.
        if matches!(transition.mode, Mode::Passthrough(_)) && open.spool_file().is_none() {
            return Err(VfsError::Lost(open.ino.0));
        }
        Ok(())
    }
}
