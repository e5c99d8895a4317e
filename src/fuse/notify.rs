//! Tells the kernel what changed behind its back: by other nodes, or by the sidecar.
//!
//! From threads of their own, never inside a callback: invalidating an inode's pages waits for them, which can wait for
//! requests that a callback is serving, such as a read of content that another node still has. So pages have a thread
//! apart from names and attributes, which never wait. What is not told yet is kept as sets, so it is bounded by what is
//! distinct.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};
use tracing::debug;

use crate::tree::{Effect, Origin};
use crate::types::Ino;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Change {
    Entry(Ino, Vec<u8>),
    Attributes(Ino),
    Content(Ino),
}

#[derive(Default)]
struct Pending {
    changes: HashSet<Change>,
    pages: HashSet<Ino>,
    closed: bool,
}

/// Where changes wait for the thread that tells the kernel.
#[derive(Clone, Default)]
pub struct Invalidations(Arc<(Mutex<Pending>, Condvar)>);

impl Invalidations {
    /// Notes what the kernel must be told. Never waits.
    pub fn note(&self, origin: Origin, effects: &[Effect]) {
        if origin == Origin::Kernel {
            return;
        }
        let (pending, wake) = &*self.0;
        let mut pending = pending.lock();
        for effect in effects {
            let change = match effect {
                Effect::Entry { parent, name } => Change::Entry(*parent, name.clone()),
                Effect::Attributes(ino) => Change::Attributes(*ino),
                Effect::Gone(inode) => Change::Attributes(inode.ino),
                Effect::Content(ino) if origin == Origin::Remote => Change::Content(*ino),
                // This node's own commit: the bytes are those that the kernel has.
                Effect::Content(_) | Effect::Reaped { .. } => continue,
            };
            pending.changes.insert(change);
        }
        if !pending.changes.is_empty() {
            wake.notify_all();
        }
    }

    /// Drops what was noted before there was a mount: the kernel knows nothing yet. Telling it all the same can make it
    /// drop the answer to its first look at the root, and then the root belongs to nobody who could use it.
    pub fn clear(&self) {
        let mut pending = self.0.0.lock();
        pending.changes.clear();
        pending.pages.clear();
    }

    /// Tells the kernel of names and attributes until [`Invalidations::close`].
    pub fn run(&self, notifier: &Notifier) {
        let (pending, wake) = &*self.0;
        loop {
            let changes = {
                let mut pending = pending.lock();
                while pending.changes.is_empty() && !pending.closed {
                    wake.wait(&mut pending);
                }
                if pending.closed {
                    return;
                }
                std::mem::take(&mut pending.changes)
            };
            for change in changes {
                let told = match &change {
                    Change::Entry(parent, name) => {
                        notifier.inval_entry(INodeNo(parent.0), &OsString::from_vec(name.clone()))
                    }
                    // A negative offset leaves the pages alone.
                    Change::Attributes(ino) => notifier.inval_inode(INodeNo(ino.0), -1, 0),
                    Change::Content(ino) => {
                        pending.lock().pages.insert(*ino);
                        wake.notify_all();
                        notifier.inval_inode(INodeNo(ino.0), -1, 0)
                    }
                };
                if let Err(e) = told {
                    debug!("invalidating {change:?}: {e}");
                }
            }
        }
    }

    /// Tells the kernel of pages until [`Invalidations::close`].
    pub fn run_pages(&self, notifier: &Notifier) {
        let (pending, wake) = &*self.0;
        loop {
            let pages = {
                let mut pending = pending.lock();
                while pending.pages.is_empty() && !pending.closed {
                    wake.wait(&mut pending);
                }
                if pending.closed {
                    return;
                }
                std::mem::take(&mut pending.pages)
            };
            for ino in pages {
                if let Err(e) = notifier.inval_inode(INodeNo(ino.0), 0, 0) {
                    debug!("invalidating the pages of inode {ino}: {e}");
                }
            }
        }
    }

    /// Ends [`Invalidations::run`] and [`Invalidations::run_pages`].
    pub fn close(&self) {
        self.0.0.lock().closed = true;
        self.0.1.notify_all();
    }
}
