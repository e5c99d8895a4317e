//! What is open now: per inode one [`OpenInode`] that all its handles share, and the handles themselves.
//!
//! The kernel's rule shapes this: while an inode is open, either all its handles go through the page cache and this
//! daemon ([`Mode::Cached`]), or all go straight to one backing file ([`Mode::Passthrough`]). The mode is chosen at the
//! first open and held until the last close. (Linux, `fs/fuse/iomode.c`.)

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::{Attr, Result, VfsError};
use crate::content::{Spool, disk};
use crate::tree::Inode;
use crate::types::{Generation, Ino, Time};

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
    Sealed(Arc<File>),
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
    /// and this modification time.
    pub mtime: Time,
}

/// The part of an open inode that only one operation at a time may change. Held across awaits.
pub struct Transition {
    /// Chosen at the first open.
    pub mode: Mode,
    /// Handles that may write.
    pub writers: u32,
    /// The generation of the spool file, while there is one.
    pub generation: Generation,
    /// What the namespace knows.
    pub acknowledged: Option<Acknowledged>,
    /// Whether the spool directory's entry was synced.
    pub entry_synced: bool,
}

/// An inode that is open.
pub struct OpenInode {
    /// Which.
    pub ino: Ino,
    /// Serialises opening for writing, flushing, truncating and sealing.
    pub transition: tokio::sync::Mutex<Transition>,
    /// Taken for each read and write, so never across an await.
    pub body: RwLock<Body>,
    gone: Mutex<Option<Inode>>,
}

impl OpenInode {
    fn new(ino: Ino) -> OpenInode {
        OpenInode {
            ino,
            transition: tokio::sync::Mutex::new(Transition {
                mode: Mode::Undecided,
                writers: 0,
                generation: Generation(0),
                acknowledged: None,
                entry_synced: false,
            }),
            body: RwLock::new(Body::Unloaded),
            gone: Mutex::new(None),
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

    /// The spool file that is written now.
    pub fn spool_file(&self) -> Option<Arc<File>> {
        match &*self.body.read() {
            Body::Spool(file) => Some(file.clone()),
            Body::Unloaded | Body::Empty | Body::Sealed(_) => None,
        }
    }

    /// `inode` with the size and times of what is being written.
    pub fn overlay(&self, mut inode: Inode) -> Result<Attr> {
        let Some(file) = self.spool_file() else {
            return Ok(Attr::from(inode));
        };
        let meta = file.metadata()?;
        overlay(&mut inode, &meta);
        Ok(Attr {
            inode,
            blocks: meta.blocks(),
        })
    }
}

/// Gives `inode` the size and times of its spool file. The change time moves only when the content did.
pub fn overlay(inode: &mut Inode, meta: &std::fs::Metadata) {
    let mtime = disk::mtime(meta);
    if meta.len() != inode.size || mtime != inode.mtime {
        inode.ctime = inode.ctime.max(disk::ctime(meta));
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
    /// Which generation of an inode the kernel's page cache may hold.
    cached: Mutex<LruCache<Ino, Generation>>,
}

impl OpenTable {
    /// Nothing is open.
    pub fn new(spool: Arc<Spool>) -> OpenTable {
        let remembered =
            std::num::NonZeroUsize::new(64 << 10).unwrap_or(std::num::NonZeroUsize::MIN);
        OpenTable {
            spool,
            slots: Mutex::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            cached: Mutex::new(LruCache::new(remembered)),
        }
    }

    /// Joins the users of `ino`. Each call needs one [`OpenTable::leave`].
    pub fn join(&self, ino: Ino) -> Arc<OpenInode> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(ino).or_insert_with(|| Slot {
            open: Arc::new(OpenInode::new(ino)),
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

    /// Takes the handle `fh` out.
    pub fn remove_handle(&self, fh: u64) -> Option<Arc<Handle>> {
        self.handles.write().remove(&fh)
    }

    /// Whether the kernel's cached pages of this inode, if any, are those of `generation`; from now on they are.
    pub fn same_pages(&self, ino: Ino, generation: Generation) -> bool {
        self.cached.lock().put(ino, generation) == Some(generation)
    }

    /// How many inodes and handles are open.
    pub fn counts(&self) -> (usize, usize) {
        (self.slots.lock().len(), self.handles.read().len())
    }
}
