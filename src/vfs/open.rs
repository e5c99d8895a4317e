//! What is open now: per inode one [`OpenInode`] that all its handles share, and the handles themselves.
//!
//! The kernel's rule shapes this: while an inode is open, either all its handles go through the page cache and this
//! daemon ([`Mode::Cached`]), or all go straight to one backing file ([`Mode::Passthrough`]). The mode is chosen at the
//! first open and held until the last close. (Linux, `fs/fuse/iomode.c`.)

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::{Result, VfsError};
use crate::content::{ReadFile, Spool, disk};
use crate::tree::{Inode, Origin};
use crate::types::{Generation, Ino, Time};

/// How long an inode that another node removed can still be opened by its number: longer than the kernel takes from
/// looking a name up to opening what it found.
const LINGER: Duration = Duration::from_secs(10);

/// The kernel's registration of a backing file; dropping it takes it back.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// How the handles of an inode do their reading and writing.
#[derive(Clone)]
pub enum Mode {
    /// Not chosen yet.
    Undecided,
    /// Through the page cache and this daemon.
    Cached,
    /// Straight to the backing file.
    Passthrough(Backing),
}

/// Where reads of an open inode come from.
#[derive(Clone, Debug)]
pub enum Body {
    /// Not looked for yet.
    Unloaded,
    /// There are no bytes.
    Empty,
    /// A file that nobody writes.
    Sealed(ReadFile),
    /// The spool file that this node's writers write.
    Spool(Arc<File>),
}

/// What the namespace was last told of the spool file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Of this generation,
    pub generation: Generation,
    /// this length,
    pub size: u64,
    /// this modification time,
    pub mtime: Time,
    /// and this change time, which no program can set back.
    pub ctime: Time,
}

impl Acknowledged {
    /// As the spool file is now.
    pub fn of(generation: Generation, meta: &std::fs::Metadata) -> Acknowledged {
        Acknowledged {
            generation,
            size: meta.len(),
            mtime: disk::mtime(meta),
            ctime: disk::ctime(meta),
        }
    }
}

/// What the spool file is to the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The next version.
    Sound,
    /// The same, but some of it was written under a lock that was lost, or ended before others could be shown it: it gives
    /// way to what another machine wrote since.
    Doubtful,
    /// No version of this inode, be it half filled or overtaken. The kernel has it as a backing file, so it is still there;
    /// nobody is told of it.
    Void,
}

/// The part of an open inode that only one operation at a time may change. Held across awaits.
pub struct Transition {
    /// Chosen at the first open.
    pub mode: Mode,
    /// Handles that may write.
    pub writers: u32,
    /// The generation of the spool file, while there is one.
    pub generation: Generation,
    /// What the namespace need not be told.
    pub acknowledged: Option<Acknowledged>,
    /// Whether the namespace knows of this generation. Not while it is still the same as what was there before.
    pub announced: bool,
    /// The last generation of it that another machine was given while it was open. What others have of a generation never
    /// changes, so what is written from then on is of a later one.
    pub lent: Generation,
    /// Whether it may be told to the namespace at all.
    pub standing: Standing,
}

/// An inode that is open.
pub struct OpenInode {
    /// Which.
    pub ino: Ino,
    /// Serialises opening for writing, flushing, truncating and sealing.
    pub transition: tokio::sync::Mutex<Transition>,
    /// Taken for each read and write, so never across an await.
    pub body: RwLock<Body>,
    /// Something was written by way of this daemon since the spool file was filled, or told of. Set after each write: its
    /// length and times can be the same as before.
    written: AtomicBool,
    /// A lock ended before what was written under it could be shown to others.
    unshown: AtomicBool,
    gone: Mutex<Option<Inode>>,
}

impl OpenInode {
    fn new(ino: Ino, gone: Option<Inode>) -> OpenInode {
        OpenInode {
            ino,
            transition: tokio::sync::Mutex::new(Transition {
                mode: Mode::Undecided,
                writers: 0,
                generation: Generation(0),
                acknowledged: None,
                announced: false,
                lent: Generation(0),
                standing: Standing::Sound,
            }),
            body: RwLock::new(Body::Unloaded),
            written: AtomicBool::new(false),
            unshown: AtomicBool::new(false),
            gone: Mutex::new(gone),
        }
    }

    /// The last attributes, when the inode has no name any more.
    pub fn gone(&self) -> Option<Inode> {
        self.gone.lock().clone()
    }

    /// Changes the attributes of an inode that has no name any more. False when it has one.
    pub fn change_gone(&self, change: impl FnOnce(&mut Inode)) -> bool {
        match &mut *self.gone.lock() {
            Some(inode) => {
                change(inode);
                true
            }
            None => false,
        }
    }

    /// Notes a write that is done.
    pub fn note_written(&self) {
        self.written.store(true, Ordering::Release);
    }

    /// Whether a write was noted.
    pub fn is_written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// The same, and forgets it. Comes before a look at the file, so that no later write is forgotten.
    pub fn take_written(&self) -> bool {
        self.written.swap(false, Ordering::AcqRel)
    }

    /// Notes that a lock ended before what was written under it could be shown to others, who may have it by now.
    pub fn note_unshown(&self) {
        self.unshown.store(true, Ordering::Release);
    }

    /// Whether that was noted; forgets it.
    pub fn take_unshown(&self) -> bool {
        self.unshown.swap(false, Ordering::AcqRel)
    }

    /// The spool file that is written now.
    pub fn spool_file(&self) -> Option<Arc<File>> {
        match &*self.body.read() {
            Body::Spool(file) => Some(file.clone()),
            Body::Unloaded | Body::Empty | Body::Sealed(_) => None,
        }
    }

    /// What was read turned out to be damaged: the next read looks for it anew, unless somebody did already.
    pub fn let_go_of(&self, damaged: &ReadFile) {
        let mut body = self.body.write();
        if matches!(&*body, Body::Sealed(file) if file.is(damaged)) {
            *body = Body::Unloaded;
        }
    }
}

/// Gives `inode` the size and times of its spool file. The change time moves only when the content did, and then to when
/// that was: the spool file's own change time also tells of what this daemon does to it.
pub fn overlay(inode: &mut Inode, meta: &std::fs::Metadata) {
    let mtime = disk::mtime(meta);
    if meta.len() != inode.size || mtime != inode.mtime {
        inode.ctime = inode.ctime.max(mtime);
    }
    inode.size = meta.len();
    inode.mtime = mtime;
}

/// One open(2).
pub struct Handle {
    /// Of this inode.
    pub open: Arc<OpenInode>,
    /// May it write?
    pub write: bool,
}

struct Slot {
    open: Arc<OpenInode>,
    users: usize,
}

/// All that is open.
pub struct OpenTable {
    spool: Arc<Spool>,
    slots: Mutex<HashMap<Ino, Slot>>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    /// What was removed lately, until the kernel forgets it. It can be somebody's working directory, an open fifo or named
    /// by O_PATH, and of none of these anybody hears.
    departed: Mutex<LruCache<Ino, Departed>>,
    /// Which generation of an inode the kernel's page cache may hold.
    cached: Mutex<LruCache<Ino, Generation>>,
}

/// An inode that was removed.
struct Departed {
    inode: Inode,
    /// Another node did it: until then an open(2) can be on its way to it, and later one is told to look the name up again.
    until: Option<Instant>,
}

/// How many removed inodes are remembered.
const DEPARTED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Of how many inodes the kernel's pages are remembered.
const CACHED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((64 << 10) - 1);

impl OpenTable {
    /// Nothing is open.
    pub fn new(spool: Arc<Spool>) -> OpenTable {
        OpenTable {
            spool,
            slots: Mutex::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            departed: Mutex::new(LruCache::new(DEPARTED)),
            cached: Mutex::new(LruCache::new(CACHED)),
        }
    }

    /// Joins the users of `ino`. Each call needs one [`OpenTable::leave`].
    pub fn join(&self, ino: Ino) -> Arc<OpenInode> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(ino).or_insert_with(|| Slot {
            open: Arc::new(OpenInode::new(ino, self.departed_but_openable(ino))),
            users: 0,
        });
        slot.users += 1;
        slot.open.clone()
    }

    /// Leaves the users of `ino`. With the last one the mode ends and what was kept for it goes.
    pub fn leave(&self, ino: Ino) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.get_mut(&ino) else {
            return;
        };
        slot.users -= 1;
        if slot.users > 0 {
            return;
        }
        let gone = slot.open.gone().is_some();
        slots.remove(&ino);
        // Still under the table's lock: a new opener comes after this.
        if gone {
            self.spool.discard(ino);
        } else {
            self.spool.set_backing(ino, false);
        }
    }

    /// The inode's open state, if it is open.
    pub fn get(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        self.slots.lock().get(&ino).map(|s| s.open.clone())
    }

    /// Keeps the last attributes of an inode that lost its last name. False when it is not open.
    pub fn mark_gone(&self, inode: &Inode) -> bool {
        let slots = self.slots.lock();
        let Some(slot) = slots.get(&inode.ino) else {
            return false;
        };
        *slot.open.gone.lock() = Some(inode.clone());
        true
    }

    /// Keeps the last attributes of an inode that has no name any more.
    pub fn note_departed(&self, inode: &Inode, origin: Origin) {
        let until = (inode.is_file() && origin == Origin::Remote).then(|| Instant::now() + LINGER);
        let inode = inode.clone();
        let mut departed = self.departed.lock();
        departed.put(inode.ino, Departed { inode, until });
    }

    /// The last attributes of an inode that was removed lately.
    pub fn departed(&self, ino: Ino) -> Option<Inode> {
        let mut departed = self.departed.lock();
        let Departed { inode, until } = departed.get(&ino)?;
        until
            .is_none_or(|until| Instant::now() < until)
            .then(|| inode.clone())
    }

    /// The same where an open(2) may still come for it. Not for a file that was removed here: its bytes may be gone, and
    /// the kernel looks the name up again.
    fn departed_but_openable(&self, ino: Ino) -> Option<Inode> {
        let openable = |d: &Departed| !d.inode.is_file() || d.until.is_some();
        let may_open = self.departed.lock().peek(&ino).is_some_and(openable);
        may_open.then(|| self.departed(ino)).flatten()
    }

    /// Changes the attributes of an inode that was removed lately and that nobody here has open. False when there is none.
    pub fn change_departed(&self, ino: Ino, change: impl FnOnce(&mut Inode)) -> bool {
        match self.departed.lock().get_mut(&ino) {
            Some(departed) => {
                change(&mut departed.inode);
                true
            }
            None => false,
        }
    }

    /// The kernel knows no such inode any more.
    pub fn forget(&self, ino: Ino) {
        self.departed.lock().pop(&ino);
    }

    /// Another node changed the content: the next read looks for it anew.
    pub fn reload(&self, ino: Ino) {
        if let Some(open) = self.get(ino) {
            let mut body = open.body.write();
            if matches!(*body, Body::Sealed(_) | Body::Empty) {
                *body = Body::Unloaded;
            }
        }
    }

    /// Registers a handle and names it.
    pub fn add_handle(&self, open: Arc<OpenInode>, write: bool) -> u64 {
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles
            .write()
            .insert(fh, Arc::new(Handle { open, write }));
        fh
    }

    /// The handle `fh`.
    pub fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        self.handles
            .read()
            .get(&fh)
            .cloned()
            .ok_or(VfsError::BadHandle)
    }

    /// Whether somebody here may write to the inode. Looks at every handle.
    pub fn is_open_for_writing(&self, ino: Ino) -> bool {
        let handles = self.handles.read();
        handles.values().any(|h| h.write && h.open.ino == ino)
    }

    /// Takes the handle `fh` out.
    pub fn remove_handle(&self, fh: u64) -> Option<Arc<Handle>> {
        self.handles.write().remove(&fh)
    }

    /// Whether the kernel's cached pages of this inode, if any, are those of `generation`; from now on they are.
    pub fn same_pages(&self, ino: Ino, generation: Generation) -> bool {
        self.cached.lock().put(ino, generation) == Some(generation)
    }

    /// What the kernel's cached pages of this inode are is not known any more.
    pub fn forget_pages(&self, ino: Ino) {
        self.cached.lock().pop(&ino);
    }

    /// How many inodes and handles are open.
    pub fn counts(&self) -> (usize, usize) {
        (self.slots.lock().len(), self.handles.read().len())
    }
}
