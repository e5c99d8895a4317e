//! What open files of one machine and those of the others have to do with each other, when locks say whose turn it is:
//! what was written is published when a lock is given up, though the file stays open, and what others published is taken
//! over when a lock is got.

use std::fs::{File, Metadata};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

use super::copies;
use super::open::{Acknowledged, Body, Mode, OpenInode, Standing, Transition, overlay};
use super::patience::enter;
use super::{Result, Vfs, VfsError};
use crate::backend::BackendError;
use crate::content::disk;
use crate::ingest::StoreError;
use crate::tree::{self, Commitment, Inode, TreeError};
use crate::types::{Generation, Ino};

/// How long a write that is under way may keep an unlock from showing what was written before it, and a lock from what others
/// wrote.
const WRITES_END: Duration = Duration::from_secs(5);
/// How often a version is put after one that another machine closed in between.
const ATTEMPTS: u32 = 8;

impl Vfs {
    /// Lets the other machines read what was written here until now.
    pub(super) async fn publish(&self, open: &Arc<OpenInode>) -> Result<()> {
        let mut transition = enter(open).await?;
        let Some(file) = open.spool_file() else {
            return Ok(());
        };
        if open.gone().is_some() {
            return Ok(());
        }
        self.look_for_losses(open, &mut transition)?;
        let untouched = is_untouched(open, &transition, &file.metadata()?);
        if untouched && !transition.announced && !self.is_awaited(open)? {
            return Ok(());
        }
        let shown = match transition.mode {
            Mode::Passthrough(_) => {
                let written = open.take_written();
                let mut shown = self
                    .publish_copy(open, &file, &mut transition, untouched)
                    .await;
                if let Err(VfsError::Backend(BackendError::Unavailable(_))) = shown
                    && file.metadata()?.len() <= copies::MOST_BYTES
                {
                    // The others hear of it all the same, or do when the log is back, and fetch it from here.
                    shown = self
                        .acknowledge_state(
                            open,
                            &file,
                            &mut transition,
                            Commitment::Committed,
                            written,
                        )
                        .await;
                }
                if shown.is_err() && written {
                    open.note_written();
                }
                shown
            }
            Mode::Undecided | Mode::Cached => {
                self.publish_itself(open, file, &mut transition).await
            }
        };
        match shown {
            // Its last name went meanwhile.
            Err(VfsError::Tree(TreeError::NotFound)) if open.gone().is_some() => Ok(()),
            shown => shown,
        }
    }

    /// Before the namespace is told of the spool file: what was written under a lock that was lost since is not to take the
    /// place of what others wrote.
    pub(super) fn look_for_losses(
        &self,
        open: &OpenInode,
        transition: &mut Transition,
    ) -> Result<()> {
        let unshown = open.take_unshown();
        match transition.standing {
            Standing::Void => return Err(VfsError::Overtaken(open.ino.0)),
            Standing::Sound if unshown || self.locks.has_lost(open.ino) => {
                transition.standing = Standing::Doubtful;
            }
            Standing::Sound | Standing::Doubtful => {}
        }
        Ok(())
    }

    /// Others wrote since the lock was lost.
    pub(super) fn give_way(&self, open: &OpenInode, transition: &mut Transition) -> Result<()> {
        tracing::warn!(
            "inode {}: what was written under a lock that was lost gives way to what another machine wrote",
            open.ino
        );
        self.disown(open, transition)?;
        Err(VfsError::LockLost(open.ino.0))
    }

    /// Lets the other machines have what they know to be here, before somebody here waits for them.
    pub(super) async fn publish_awaited(&self, open: &Arc<OpenInode>) -> Result<()> {
        match open.spool_file().is_some() && self.is_awaited(open)? {
            true => self.publish(open).await,
            false => Ok(()),
        }
    }

    pub(super) fn is_awaited(&self, open: &OpenInode) -> Result<bool> {
        match self.tree.read(|q| q.inode(open.ino)) {
            Ok(inode) => {
                Ok(matches!(inode.body, tree::Body::Pending { node, .. } if node == self.node))
            }
            Err(TreeError::NotFound) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The spool file goes to the workers. Writers take it back at their next write.
    async fn publish_itself(
        &self,
        open: &Arc<OpenInode>,
        file: Arc<File>,
        transition: &mut MutexGuard<'_, Transition>,
    ) -> Result<()> {
        let path = self.spool.path(open.ino, transition.generation);
        let reader = File::open(path).map_err(|e| not_read(open.ino, e))?;
        *open.body.write() = Body::Sealed(self.spool.as_closed(open.ino, reader));
        // From here on nobody gets at the file without this transition; those who have it just now are in a write(2).
        let told = match alone_with(&file).await {
            true => {
                self.acknowledge_file(open, &file, transition, Commitment::Committed)
                    .await
            }
            false => Err(VfsError::Unsettled(open.ino.0)),
        };
        if told.is_err() || open.gone().is_some() {
            *open.body.write() = Body::Spool(file);
            self.lay_aside_if_void(open, transition)?;
            return told;
        }
        let unchanged = self.is_unchanged(open, transition);
        drop(file);
        self.hand_over(open, transition, unchanged).await
    }

    /// The kernel writes to the spool file by itself and goes on doing so: a copy is stored.
    async fn publish_copy(
        &self,
        open: &Arc<OpenInode>,
        file: &File,
        transition: &mut Transition,
        untouched: bool,
    ) -> Result<()> {
        let meta = file.metadata()?;
        let now = Acknowledged::of(transition.generation, &meta);
        let mut inode = self.tree.read(|q| q.inode(open.ino))?;
        overlay(&mut inode, &meta);
        let times = (now.mtime, inode.ctime);
        if transition.lent == transition.generation && !untouched {
            let next = transition.generation.next();
            self.set_generation(open, transition, next)?;
            transition.announced = false;
        }
        for _ in 0..ATTEMPTS {
            let stored = self
                .ingest
                .store_snapshot(open.ino, transition.generation, times)
                .await
                .map_err(|e| not_stored(open.ino, e))?;
            if stored {
                // What is written from now on is a later version. After power loss what was stored counts, until this one is
                // synced itself.
                self.spool.unmark(open.ino)?;
                let next = transition.generation.next();
                self.set_generation(open, transition, next)?;
                // The new name has moved its change time, which is no change of it.
                let after = Acknowledged::of(next, &file.metadata()?);
                let same = (after.size, after.mtime) == (now.size, now.mtime);
                transition.acknowledged = same.then_some(after);
                transition.announced = false;
                transition.standing = Standing::Sound;
                return Ok(());
            }
            // Another node wrote meanwhile, and nobody here did.
            if untouched {
                return Ok(());
            }
            if transition.standing == Standing::Doubtful {
                return self.give_way(open, transition);
            }
            // The last one wins, so go past its generation.
            let theirs = self.tree.read(|q| q.inode(open.ino))?.generation;
            let next = transition.generation.max(theirs).next();
            self.set_generation(open, transition, next)?;
        }
        Err(TreeError::Superseded.into())
    }

    pub(super) fn set_generation(
        &self,
        open: &OpenInode,
        transition: &mut Transition,
        generation: Generation,
    ) -> Result<()> {
        self.spool.advance(open.ino, generation)?;
        transition.generation = generation;
        Ok(())
    }

    /// Goes on from what another machine published since, unless something was written here; `lost`: even then, since that
    /// was written under a lock that was lost. Returns whether the kernel may have old pages or an old size.
    ///
    /// The spool file is given up, so that nobody sees a mix. Where the kernel has it as a backing file it is filled anew.
    pub(super) async fn take_over(&self, open: &Arc<OpenInode>, lost: bool) -> Result<bool> {
        let mut transition = enter(open).await?;
        if open.gone().is_some() {
            return Ok(false);
        }
        let inode = self.tree.read(|q| q.inode(open.ino))?;
        match open.spool_file() {
            // Read anew, from where the namespace says.
            None => self.opens.reload(open.ino),
            Some(file) => {
                let lost = open.take_unshown() || lost;
                if lost && transition.standing == Standing::Sound {
                    transition.standing = Standing::Doubtful;
                }
                let newer = match transition.announced {
                    true => inode.generation > transition.generation,
                    false => inode.generation >= transition.generation,
                };
                if newer || transition.standing == Standing::Void {
                    self.replace(open, &mut transition, &inode, file).await?;
                }
            }
        }
        let generation = self.generation_now(open, &transition, &inode);
        Ok(!self.opens.same_pages(open.ino, generation))
    }

    async fn replace(
        &self,
        open: &Arc<OpenInode>,
        transition: &mut Transition,
        inode: &Inode,
        file: Arc<File>,
    ) -> Result<()> {
        let whatever = transition.standing != Standing::Sound;
        let backing = matches!(transition.mode, Mode::Passthrough(_));
        if backing {
            // It can take long to come, and somebody may write meanwhile.
            self.stored(inode).await?;
        }
        if !whatever && !is_untouched(open, transition, &file.metadata()?) {
            return Ok(());
        }
        if backing {
            self.opens.forget_pages(open.ino);
            return self.refill(open, transition, inode, file).await;
        }
        *open.body.write() = Body::Unloaded;
        // Whoever is in a write(2) just now has written.
        let alone = whatever || alone_with(&file).await;
        if alone && (whatever || is_untouched(open, transition, &file.metadata()?)) {
            return self.lay_aside(open, transition);
        }
        *open.body.write() = Body::Spool(file);
        match alone {
            true => Ok(()),
            false => Err(VfsError::Unsettled(open.ino.0)),
        }
    }
}

/// Where somebody has removed the spool file by hand, the close puts it back.
fn not_read(ino: Ino, e: io::Error) -> VfsError {
    match e.kind() {
        io::ErrorKind::NotFound => VfsError::Lost(ino.0),
        _ => e.into(),
    }
}

fn not_stored(ino: Ino, e: StoreError) -> VfsError {
    match e {
        StoreError::Backend(e) => e.into(),
        StoreError::Tree(e) => e.into(),
        StoreError::Io(e) => not_read(ino, e),
        StoreError::Missing(_) | StoreError::Damaged(_) => VfsError::Lost(ino.0),
        StoreError::Stale | StoreError::LockLost | StoreError::StillMapped => {
            VfsError::Unsettled(ino.0)
        }
    }
}

/// Whether nothing was written since the namespace was told, or since it was filled. The change time tells of what the
/// daemon does to the file, too.
pub(super) fn is_untouched(open: &OpenInode, transition: &Transition, meta: &Metadata) -> bool {
    !open.is_written()
        && match transition.acknowledged {
            Some(known) => (known.size, known.mtime) == (meta.len(), disk::mtime(meta)),
            None => meta.len() == 0,
        }
}

async fn alone_with(file: &Arc<File>) -> bool {
    let deadline = Instant::now() + WRITES_END;
    while Arc::strong_count(file) > 1 {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}
