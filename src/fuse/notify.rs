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
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tracing::debug;

use crate::tree::{Effect, Origin};
use crate::types::Ino;
use crate::vfs::{Result, VfsError};

/// How long somebody who got a lock waits for the kernel to be told.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// Pages that the kernel is being told of now.
    telling_pages: HashSet<Ino>,
    /// How many times something was noted of names and attributes, and up to which of these the kernel knows.
    noted: u64,
    told: u64,
    closed: bool,
}

/// Where changes wait for the threads that tell the kernel.
#[derive(Clone, Default)]
pub struct Invalidations(Arc<Shared>);

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    /// Wakes the threads.
    wake: Condvar,
    /// Fires when the kernel was told of something.
    told: Notify,
}

impl Shared {
    fn tell(&self, done: impl FnOnce(&mut Pending)) {
        done(&mut self.pending.lock());
        self.told.notify_waiters();
    }
}

impl Invalidations {
    /// Notes what the kernel must be told. Never waits.
    pub fn note(&self, origin: Origin, effects: &[Effect]) {
        if origin == Origin::Kernel {
            return;
        }
        let mut pending = self.0.pending.lock();
        let before = pending.changes.len();
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
        // What is there already is told once, which comes after this.
        if pending.changes.len() > before {
            pending.noted += 1;
            self.0.wake.notify_all();
        }
    }

    /// Notes that the pages and the size of an inode may be old.
    pub fn note_content(&self, ino: Ino) {
        self.note(Origin::Remote, &[Effect::Content(ino)]);
    }

    /// The same after an operation that gave up what was written.
    pub fn note_loss<T>(&self, ino: Ino, result: &Result<T>) {
        if let Err(VfsError::LockLost(_) | VfsError::Overtaken(_)) = result {
            self.note_content(ino);
        }
    }

    /// Drops what was noted before there was a mount: the kernel knows nothing yet. Telling it all the same can make it
    /// drop the answer to its first look at the root, and then the root belongs to nobody who could use it.
    pub fn clear(&self) {
        self.0.tell(|pending| {
            pending.changes.clear();
            pending.pages.clear();
            pending.told = pending.noted;
        });
    }

    /// Returns when the kernel knows all that was noted before of names and attributes, and of the pages of `ino`; after
    /// [`PATIENCE`] at the latest, since pages can have to wait for others.
    pub async fn told(&self, ino: Ino) {
        let noted = self.0.pending.lock().noted;
        let is_told = || {
            let p = self.0.pending.lock();
            let pages = p.pages.contains(&ino) || p.telling_pages.contains(&ino);
            p.closed || (p.told >= noted && !pages)
        };
        let told = async {
            loop {
                let news = self.0.told.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if is_told() {
                    return;
                }
                news.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, told).await;
    }

    /// Tells the kernel of names and attributes until [`Invalidations::close`].
    pub fn run(&self, notifier: &Notifier) {
        loop {
            let (changes, noted) = {
                let mut pending = self.0.pending.lock();
                while pending.changes.is_empty() && !pending.closed {
                    self.0.wake.wait(&mut pending);
                }
                if pending.closed {
                    return;
                }
                (std::mem::take(&mut pending.changes), pending.noted)
            };
            for change in changes {
                let told = match &change {
                    Change::Entry(parent, name) => {
                        notifier.inval_entry(INodeNo(parent.0), &OsString::from_vec(name.clone()))
                    }
                    // A negative offset leaves the pages alone.
                    Change::Attributes(ino) => notifier.inval_inode(INodeNo(ino.0), -1, 0),
                    Change::Content(ino) => {
                        self.0.pending.lock().pages.insert(*ino);
                        self.0.wake.notify_all();
                        notifier.inval_inode(INodeNo(ino.0), -1, 0)
                    }
                };
                if let Err(e) = told {
                    debug!("invalidating {change:?}: {e}");
                }
            }
            self.0.tell(|pending| pending.told = noted);
        }
    }

    /// Tells the kernel of pages until [`Invalidations::close`].
    pub fn run_pages(&self, notifier: &Notifier) {
        loop {
            let pages = {
                let mut pending = self.0.pending.lock();
                while pending.pages.is_empty() && !pending.closed {
                    self.0.wake.wait(&mut pending);
                }
                if pending.closed {
                    return;
                }
                pending.telling_pages = pending.pages.clone();
                std::mem::take(&mut pending.pages)
            };
            for ino in pages {
                if let Err(e) = notifier.inval_inode(INodeNo(ino.0), 0, 0) {
                    debug!("invalidating the pages of inode {ino}: {e}");
                }
                self.0.tell(|pending| {
                    pending.telling_pages.remove(&ino);
                });
            }
        }
    }

    /// Ends [`Invalidations::run`] and [`Invalidations::run_pages`].
    pub fn close(&self) {
        self.0.tell(|pending| pending.closed = true);
        self.0.wake.notify_all();
    }
}
