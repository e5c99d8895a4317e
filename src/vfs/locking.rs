//! The locks that programs take on files, where they are shared among machines (see [`crate::backend::FileLocks`]).
//!
//! What a caller may rely on: who gets a lock sees all that was closed, synced or unlocked before by those who had it. So
//! an unlock that cannot show others what was written is an error, and the lock is held still; where a close ends it all
//! the same, what was written gives way to what another machine writes next. Whoever waits can be interrupted. A lock that
//! was lost, since this machine could not be heard of for the lifetime of its lease, makes everything fail with `EIO` that is then done through a handle by which it was taken, until it is taken anew
//! or given up. What the kernel does by itself meanwhile, such as reading its own pages, is not seen here and does not
//! fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::interrupt::{interrupted, is_visible};
use super::open::Handle;
use super::{Result, Vfs, VfsError};
use crate::backend::file_locks::{Attempt, Conflict, Hold};
use crate::backend::ranges::{Family, Holder, Range, Ranges, TO_THE_END};
use crate::backend::{BackendError, FileLocks};
use crate::tree::TreeError;
use crate::types::Ino;

/// For how long a lock may go unanswered before the caller is told that there are none.
const UNANSWERED: Duration = Duration::from_secs(5);
/// How long somebody waits for a lock who cannot be seen, and so not be interrupted.
const UNSEEN: Duration = Duration::from_secs(30);
/// The pause between two attempts while the lock service is away.
const RETRY: Duration = Duration::from_millis(250);
/// A lock whose last close(2) has been answered goes a moment later, when the kernel says so: how long that is waited
/// for, and how long after a close(2) it is expected.
const CLOSING: Duration = Duration::from_secs(1);
const CLOSED_LATELY: Duration = Duration::from_secs(1);
/// How long a lock waits for one that seems to be of an open file description which had its number before. It can also be one
/// of the same process, of a descriptor that a child of it has closed.
const TAKEN_OVER: Duration = Duration::from_millis(250);

/// The locks of the handles that are open, as this node believes to hold them.
#[derive(Default)]
pub struct LockBook {
    entries: Mutex<HashMap<Ino, Vec<Entry>>>,
    /// How many entries there are: most handles hold no locks, and shall not pay for those that do.
    count: AtomicUsize,
    /// Fires when a lock is given up.
    given_up: tokio::sync::Notify,
}

/// What a holder has on one session.
struct Entry {
    holder: Holder,
    hold: Hold,
    ranges: Ranges,
    /// The handles by which it was taken.
    handles: Vec<u64>,
    /// The last close(2) of one of them.
    closed: Option<Instant>,
}

impl Entry {
    fn is_closing(&self) -> bool {
        self.closed.is_some_and(|t| t.elapsed() < CLOSED_LATELY)
    }
}

impl LockBook {
    fn change<T>(&self, ino: Ino, f: impl FnOnce(&mut Vec<Entry>) -> T) -> T {
        let mut entries = self.entries.lock();
        let of_inode = entries.entry(ino).or_default();
        let before = of_inode.len();
        let result = f(of_inode);
        let after = of_inode.len();
        if of_inode.is_empty() {
            entries.remove(&ino);
        }
        self.count.fetch_add(after, Ordering::Relaxed);
        self.count.fetch_sub(before, Ordering::Relaxed);
        result
    }

    fn note(&self, ino: Ino, fh: u64, range: Range, hold: Hold) {
        self.change(ino, |entries| {
            for entry in entries.iter_mut().filter(|e| e.holder == range.holder) {
                entry.ranges.clear(range.holder, range.start, range.end);
            }
            let known = entries
                .iter_mut()
                .find(|e| e.holder == range.holder && e.hold.session == hold.session);
            match known {
                Some(entry) => {
                    entry.ranges.set(range);
                    entry.closed = None;
                    if !entry.handles.contains(&fh) {
                        entry.handles.push(fh);
                    }
                }
                None => {
                    let mut ranges = Ranges::default();
                    ranges.set(range);
                    entries.push(Entry {
                        holder: range.holder,
                        hold,
                        ranges,
                        handles: vec![fh],
                        closed: None,
                    });
                }
            }
            entries.retain(|entry| !entry.ranges.is_empty());
        });
    }

    /// Whether a part of it was lost.
    fn forget(&self, ino: Ino, holder: Holder, start: u64, end: u64) -> bool {
        self.change(ino, |entries| {
            let mut lost = false;
            entries.retain_mut(|entry| {
                if entry.holder != holder {
                    return true;
                }
                let before = entry.ranges.clone();
                entry.ranges.clear(holder, start, end);
                lost |= entry.ranges != before && !entry.hold.is_valid();
                !entry.ranges.is_empty()
            });
            lost
        })
    }

    fn of(&self, ino: Ino, belongs: impl Fn(&Entry) -> bool) -> Vec<Holder> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let entries = self.entries.lock();
        let of_inode = entries.get(&ino).into_iter().flatten();
        let mut holders: Vec<Holder> = of_inode
            .filter(|e| belongs(e))
            .map(|entry| entry.holder)
            .collect();
        holders.dedup();
        holders
    }

    /// Whether any lock on it was lost.
    pub(super) fn has_lost(&self, ino: Ino) -> bool {
        !self.of(ino, |e| !e.hold.is_valid()).is_empty()
    }

    fn is_lost(&self, ino: Ino, fh: u64) -> bool {
        let lost = |e: &Entry| e.handles.contains(&fh) && !e.hold.is_valid();
        !self.of(ino, lost).is_empty()
    }

    fn note_closed(&self, ino: Ino, fh: u64) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(entries) = self.entries.lock().get_mut(&ino) {
            for entry in entries.iter_mut().filter(|e| e.handles.contains(&fh)) {
                entry.closed = Some(Instant::now());
            }
        }
    }

    /// Whether it has an exclusive lock on any byte, and may have written.
    fn is_exclusive(&self, ino: Ino, holder: Holder) -> bool {
        let may_write =
            |e: &Entry| e.holder == holder && e.ranges.any_exclusive() && e.hold.is_valid();
        !self.of(ino, may_write).is_empty()
    }

    /// Whether a holder is about to have nothing any more: its file was closed, or what it had is being given up.
    fn is_closing(&self, ino: Ino, holder: Holder) -> bool {
        let of_holder = |e: &Entry| e.holder == holder;
        self.of(ino, of_holder).is_empty()
            || !self.of(ino, |e| of_holder(e) && e.is_closing()).is_empty()
    }

    /// Whether the holder seems to be another one, of the same number, whose file was closed.
    fn is_taken_for_another(&self, ino: Ino, holder: Holder, fh: u64) -> bool {
        let other = |e: &Entry| e.holder == holder && e.is_closing() && !e.handles.contains(&fh);
        !self.of(ino, other).is_empty()
    }

    /// Nobody has the handle any more. The holders who have a lock by no other one.
    fn leave(&self, ino: Ino, fh: u64) -> Vec<Holder> {
        if let Some(entries) = self.entries.lock().get_mut(&ino) {
            for entry in entries.iter_mut().filter(|e| e.handles.len() > 1) {
                entry.handles.retain(|handle| *handle != fh);
            }
        }
        self.of(ino, |e| e.handles.contains(&fh))
    }
}

/// What a program asks of a lock.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    /// Whose, which bytes, and whether exclusive.
    pub range: Range,
    /// Wait for it.
    pub wait: bool,
    /// The thread that asks.
    pub thread: u32,
}

impl Vfs {
    /// Whether programs' locks are kept here; else the kernel keeps them.
    pub fn shares_locks(&self) -> bool {
        self.file_locks.is_some()
    }

    fn shared_locks(&self) -> Result<&Arc<dyn FileLocks>> {
        let locks = self.file_locks.as_ref();
        locks.ok_or(VfsError::NotSupported("locks are the kernel's here"))
    }

    /// Takes a lock. Returns whether the kernel may have old pages of the file, or an old size. When what others wrote cannot
    /// be had, the lock is not taken.
    pub async fn lock(&self, fh: u64, request: LockRequest) -> Result<bool> {
        let handle = self.opens.handle(fh)?;
        let (ino, range) = (handle.open.ino, request.range);
        // Before the new lock takes the place of a lost one.
        let mut lost = self.locks.has_lost(ino);
        // The others cannot wait for this machine while it waits for them.
        let mut shown = self.publish_awaited(&handle.open).await;
        if shown.is_ok() && !range.exclusive && self.locks.is_exclusive(ino, range.holder) {
            shown = self.publish(&handle.open).await;
        }
        match shown {
            // What that cost was told when the lock was lost. This one is for what comes now.
            Err(VfsError::LockLost(_) | VfsError::Overtaken(_)) => {}
            shown => shown?,
        }
        let hold = self.take(ino, fh, &request).await?;
        lost |= self.locks.has_lost(ino);
        self.locks.note(ino, fh, range, hold);
        let seen = self.see_what_others_did(&handle, lost).await;
        if seen.is_err() {
            self.let_go(ino, range.holder, range.start, range.end)
                .await?;
        }
        seen
    }

    async fn take(&self, ino: Ino, fh: u64, request: &LockRequest) -> Result<Hold> {
        let locks = self.shared_locks()?;
        let signal = interrupted(request.thread);
        tokio::pin!(signal);
        let begun = Instant::now();
        let mut unanswered: Option<Instant> = None;
        loop {
            let given_up = self.locks.given_up.notified();
            tokio::pin!(given_up);
            given_up.as_mut().enable();
            // The number of an open file description goes to the next one at once. What the last one has goes in a moment.
            if self
                .locks
                .is_taken_for_another(ino, request.range.holder, fh)
                && begun.elapsed() < TAKEN_OVER
            {
                let _ = tokio::time::timeout(CLOSING / 20, given_up).await;
                continue;
            }
            let pause = match locks.attempt(ino, request.range).await {
                Ok(Attempt::Held(hold)) => return Ok(hold),
                Ok(Attempt::Busy(conflict, since)) => {
                    unanswered = None;
                    if !request.wait {
                        let soon = conflict.here
                            && self.locks.is_closing(ino, conflict.range.holder)
                            && begun.elapsed() < CLOSING;
                        if !soon {
                            return Err(VfsError::Locked);
                        }
                        let _ = tokio::time::timeout(CLOSING / 20, given_up).await;
                        continue;
                    }
                    futures_util::future::Either::Left(locks.changed(ino, since))
                }
                Err(BackendError::Unavailable(why)) => {
                    let since = *unanswered.get_or_insert_with(Instant::now);
                    if since.elapsed() > UNANSWERED {
                        return Err(VfsError::NoLocks(why));
                    }
                    futures_util::future::Either::Right(tokio::time::sleep(RETRY))
                }
                Err(e) => return Err(VfsError::NoLocks(e.to_string())),
            };
            tokio::select! {
                () = pause => {}
                () = &mut signal => return Err(VfsError::Interrupted),
            }
            if begun.elapsed() > UNSEEN && !is_visible(request.thread) {
                return Err(VfsError::NoLocks("who waits for it cannot be seen".into()));
            }
        }
    }

    /// A lock that is in the way of `wanted`.
    pub async fn locked_by(&self, fh: u64, wanted: Range) -> Result<Option<Conflict>> {
        let ino = self.opens.handle(fh)?.open.ino;
        let found = self.shared_locks()?.conflict(ino, wanted).await;
        found.map_err(|e| VfsError::NoLocks(e.to_string()))
    }

    /// Gives up what `holder` has of these bytes. `LockLost` when it was lost before. After any other error it is still held.
    pub async fn unlock(&self, fh: u64, holder: Holder, start: u64, end: u64) -> Result<()> {
        let handle = self.opens.handle(fh)?;
        match self.show_what_was_done(&handle, holder).await {
            shown @ (Ok(()) | Err(VfsError::LockLost(_) | VfsError::Overtaken(_))) => {
                self.give_up(&handle, holder, start, end, shown).await
            }
            // Nobody else is to have the lock before they can see what was written under it.
            Err(e) => Err(e),
        }
    }

    /// The same where the kernel will not ask again.
    async fn end(&self, handle: &Handle, holder: Holder) -> Result<()> {
        let shown = self.show_at_the_end(handle, holder).await;
        self.give_up(handle, holder, 0, TO_THE_END, shown).await
    }

    async fn show_at_the_end(&self, handle: &Handle, holder: Holder) -> Result<()> {
        let shown = self.show_what_was_done(handle, holder).await;
        if shown.is_err() {
            handle.open.note_unshown();
        }
        shown
    }

    async fn give_up(
        &self,
        handle: &Handle,
        holder: Holder,
        start: u64,
        end: u64,
        shown: Result<()>,
    ) -> Result<()> {
        let ino = handle.open.ino;
        match self.let_go(ino, holder, start, end).await? {
            true => Err(VfsError::LockLost(ino.0)),
            false => shown,
        }
    }

    /// Whether a part of it was lost.
    async fn let_go(&self, ino: Ino, holder: Holder, start: u64, end: u64) -> Result<bool> {
        let locks = self.shared_locks()?;
        let lost = self.locks.forget(ino, holder, start, end);
        locks.give_up(ino, holder, start, end).await;
        self.locks.given_up.notify_waiters();
        Ok(lost)
    }

    /// close(2) of a descriptor by the process `owner`, which gives up its POSIX locks on the file after what was written
    /// has been made known.
    pub async fn close(&self, fh: u64, owner: u64) -> Result<()> {
        let flushed = self.flush(fh).await;
        let handle = self.opens.handle(fh)?;
        let ino = handle.open.ino;
        let posix = Holder {
            family: Family::Posix,
            owner,
        };
        let lost = self.not_lost(ino, fh);
        self.locks.note_closed(ino, fh);
        let mut given_up = Ok(());
        for holder in self.locks.of(ino, |e| e.holder == posix) {
            given_up = self.end(&handle, holder).await;
        }
        flushed.and(lost).and(given_up)
    }

    /// Gives up what was locked by a handle that nobody has any more.
    pub(super) async fn give_up_locks_of(&self, handle: &Handle, fh: u64) {
        let ino = handle.open.ino;
        for holder in self.locks.leave(ino, fh) {
            // Tests make it take longer.
            fail::fail_point!("unlock");
            let shown = self.show_at_the_end(handle, holder).await;
            // Meanwhile its number can have become another's, who has the lock now.
            if !self.locks.leave(ino, fh).contains(&holder) {
                continue;
            }
            let ended = self.give_up(handle, holder, 0, TO_THE_END, shown).await;
            if let Err(e) = ended {
                // Nobody is left who could be told.
                tracing::warn!("inode {ino}: the last close of a handle that had a lock: {e}");
            }
        }
    }

    /// The handle `fh`, unless it relies on a lock that was lost.
    pub(super) fn sound_handle(&self, fh: u64) -> Result<Arc<Handle>> {
        let handle = self.opens.handle(fh)?;
        self.not_lost(handle.open.ino, fh)?;
        Ok(handle)
    }

    fn not_lost(&self, ino: Ino, fh: u64) -> Result<()> {
        match self.locks.is_lost(ino, fh) {
            true => Err(VfsError::LockLost(ino.0)),
            false => Ok(()),
        }
    }

    /// Before a lock is given up: the others can read what was written under it, though it is open still, here or in another
    /// process of this machine. By whatever handle it was written: POSIX locks go with any of them.
    async fn show_what_was_done(&self, handle: &Handle, holder: Holder) -> Result<()> {
        let ino = handle.open.ino;
        match self.publish(&handle.open).await {
            Err(e @ (VfsError::LockLost(_) | VfsError::Overtaken(_) | VfsError::Interrupted)) => {
                Err(e)
            }
            // Whoever wrote did so under no lock of this holder.
            Err(e) if !self.locks.is_exclusive(ino, holder) => {
                tracing::warn!("inode {ino}: what was written is not shown to others yet: {e}");
                Ok(())
            }
            shown => shown,
        }
    }

    /// After a lock was taken: this machine knows all that was done before. While MongoDB is away nobody can know, and work
    /// goes on with what is known, as it does without locks.
    async fn see_what_others_did(&self, handle: &Handle, lost: bool) -> Result<bool> {
        let ino = handle.open.ino;
        match self.catch_up().await {
            Err(VfsError::Tree(TreeError::Unavailable(why))) => {
                tracing::warn!("inode {ino}: locked without what others wrote last: {why}");
            }
            caught_up => caught_up?,
        }
        self.take_over(&handle.open, lost).await
    }
}
