//! Tells the kernel what changed behind its back: by other nodes, or by the sidecar.
//!
//! From threads of their own, never inside a callback: invalidating an inode's pages waits for them, which can wait for
//! requests that a callback is serving, such as a read of content that another node still has. So pages have a thread
//! apart from names and attributes, which never wait. What is not told yet is kept as sets, so it is bounded by what is
//! distinct.
//!
//! The kernel drops what it is told of an inode or a name that it does not know. But it may have asked, and the answer, from
//! before the change, be on its way: that one it would believe for as long as the answer says. So everything is told
//! again, after each of [`AGAIN`]. But for names of directories: being told of a name the kernel takes it away from whoever
//! works in there, and its getcwd(2) fails. So it is not told of one that was looked up since the change, and not told again
//! but of one whose answer was of before it.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tracing::debug;

use crate::tree::{Effect, Origin};
use crate::types::Ino;
use crate::vfs::{Result, VfsError};

/// How long somebody who got a lock waits for the kernel to be told.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long after a change the kernel is told once more: an answer is under way for microseconds, on a busy machine for
/// longer.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(200),
    Duration::from_secs(2),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Change {
    Entry(Ino, Vec<u8>),
    Attributes(Ino),
    Content(Ino),
}

/// What is to be told again: for each of [`AGAIN`] in the order in which it is due.
#[derive(Default)]
struct Echoes([VecDeque<(Instant, Change)>; AGAIN.len()]);

impl Echoes {
    fn add(&mut self, round: usize, change: &Change) {
        let Some(pause) = AGAIN.get(round) else {
            return;
        };
        let change = match change {
            // Pages are read after an answer, and by then it is known which they are.
            Change::Content(ino) => Change::Attributes(*ino),
            other => other.clone(),
        };
        self.0[round].push_back((Instant::now() + *pause, change));
    }

    fn due(&self) -> Option<Instant> {
        self.0.iter().filter_map(|q| Some(q.front()?.0)).min()
    }

    /// Takes what is due out, each with the round after it.
    fn take_due(&mut self) -> Vec<(usize, Change)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (round, queue) in self.0.iter_mut().enumerate() {
            let n = queue.partition_point(|(at, _)| *at <= now);
            due.extend(queue.drain(..n).map(|(_, change)| (round + 1, change)));
        }
        due
    }
}

#[derive(Default)]
struct Pending {
    /// There is a kernel to be told.
    mounted: bool,
    changes: HashSet<Change>,
    pages: HashSet<Ino>,
    /// Pages that the kernel is being told of now.
    telling_pages: HashSet<Ino>,
    /// How many times something was noted of names and attributes, and up to which of these the kernel knows.
    noted: u64,
    told: u64,
    closed: bool,
}

/// What the kernel was last told that a name stands for, of the names that it asked for lately.
struct Answered(Mutex<LruCache<(Ino, Vec<u8>), Ino>>);

/// Of how many names that is known.
const ANSWERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((4 << 10) - 1);

impl Default for Answered {
    fn default() -> Self {
        Answered(Mutex::new(LruCache::new(ANSWERED)))
    }
}

/// Where changes wait for the threads that tell the kernel.
#[derive(Clone, Default)]
pub struct Invalidations(Arc<Shared>);

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    answered: Answered,
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
        if !pending.mounted {
            return;
        }
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

    /// From now on there is a mount. What was noted before was dropped, be it of a million names of a tree that was joined:
    /// the kernel knows nothing yet. Telling it all the same can make it drop the answer to its first look at the root,
    /// and then the root belongs to nobody who could use it.
    pub fn begin(&self) {
        self.0.pending.lock().mounted = true;
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

    /// Notes that the kernel is about to be answered that a name stands for this inode.
    pub fn note_answer(&self, parent: Ino, name: Vec<u8>, ino: Ino) {
        self.0.answered.0.lock().put((parent, name), ino);
    }

    /// Whether the kernel was last answered that the name stands for this; `None` where that is not known.
    fn is_answered(&self, parent: Ino, name: &[u8], ino: Ino) -> Option<bool> {
        let mut answered = self.0.answered.0.lock();
        let last = answered.get(&(parent, name.to_vec()))?;
        Some(*last == ino)
    }

    /// Tells the kernel of names and attributes until [`Invalidations::close`]. `directory` says which directory a name
    /// stands for now, if it is one's.
    pub fn run(&self, notifier: &Notifier, directory: impl Fn(Ino, &[u8]) -> Option<Ino>) {
        let known = |change: &Change| match change {
            Change::Entry(parent, name) => {
                let ino = directory(*parent, name)?;
                Some(self.is_answered(*parent, name, ino))
            }
            Change::Attributes(_) | Change::Content(_) => None,
        };
        let mut echoes = Echoes::default();
        loop {
            let (changes, noted) = {
                let mut pending = self.0.pending.lock();
                loop {
                    if pending.closed {
                        return;
                    }
                    let due = echoes.due();
                    if !pending.changes.is_empty() || due.is_some_and(|due| due <= Instant::now()) {
                        break;
                    }
                    match due {
                        Some(due) => drop(self.0.wake.wait_until(&mut pending, due)),
                        None => self.0.wake.wait(&mut pending),
                    }
                }
                (std::mem::take(&mut pending.changes), pending.noted)
            };
            // Tests hold it up.
            fail::fail_point!("tell");
            for change in changes {
                if known(&change) != Some(Some(true)) {
                    self.tell_of(notifier, &change);
                }
                echoes.add(0, &change);
            }
            self.0.tell(|pending| pending.told = noted);
            for (round, change) in echoes.take_due() {
                if matches!(known(&change), None | Some(Some(false))) {
                    self.tell_of(notifier, &change);
                }
                echoes.add(round, &change);
            }
        }
    }

    fn tell_of(&self, notifier: &Notifier, change: &Change) {
        let told = match change {
            Change::Entry(parent, name) => {
                notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_tree_that_is_joined_is_not_noted_name_by_name() {
        let told = Invalidations::default();
        let effect = [Effect::Attributes(Ino(5))];
        told.note(Origin::Remote, &effect);
        assert!(told.0.pending.lock().changes.is_empty());
        told.begin();
        told.note(Origin::Kernel, &effect);
        assert!(told.0.pending.lock().changes.is_empty());
        told.note(Origin::Remote, &effect);
        assert_eq!(told.0.pending.lock().changes.len(), 1);
    }
}
