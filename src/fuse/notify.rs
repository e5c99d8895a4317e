//! Tells the kernel what changed behind its back: by other nodes, or by the sidecar.
//!
//! From a thread of its own, never inside a callback: invalidating an inode waits for its pages, which can wait for
//! requests that a callback is serving. What is not told yet is kept as a set, so it is bounded by what is distinct.

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
            wake.notify_one();
        }
    }

    /// Drops what was noted before there was a mount: the kernel knows nothing yet. Telling it all the same can make it
    /// drop the answer to its first look at the root, and then the root belongs to nobody who could use it.
    pub fn clear(&self) {
        self.0.0.lock().changes.clear();
    }

    /// Tells the kernel until [`Invalidations::close`].
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
                    Change::Content(ino) => notifier.inval_inode(INodeNo(ino.0), 0, 0),
                };
                if let Err(e) = told {
                    debug!("invalidating {change:?}: {e}");
                }
            }
        }
    }

    /// Ends [`Invalidations::run`].
    pub fn close(&self) {
        self.0.0.lock().closed = true;
        self.0.1.notify_all();
    }
}
