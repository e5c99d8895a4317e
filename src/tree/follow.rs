//! Following the log: how a replica hears of entries, and how it applies those of others.
//!
//! What a node appends it has applied already, so that its own entries must not make it ask the log for more: [`Position`]
//! keeps apart what was heard of and what is known anyway. Whoever appends where another node was first learns that from
//! the append itself.

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{debug, error};

use super::apply::Effect;
use super::logged::Logged;
use super::op::TreeError;
use super::writer::decode;
use super::{Origin, Result, unavailable};
use crate::backend::{BackendError, LogEntry};
use crate::types::Seq;

/// Log entries read at a time.
pub(super) const READ: usize = 256;
/// How long catching up waits for a log that does not answer. One with many entries is waited for as long as they come.
const LOG_DEADLINE: Duration = Duration::from_secs(15);
/// How often the log is looked at though nothing was heard of it.
const LOOK: Duration = Duration::from_secs(1);
/// How often an absent log is asked whether it is back.
const PROBE: Duration = Duration::from_millis(500);

/// Where a replica is in the log.
pub(super) struct Position {
    /// The last entry that is applied. Also sent when the log was looked at and had no more.
    applied: watch::Sender<u64>,
    /// The entry that this node is appending, or the last one that it has appended.
    claimed: AtomicU64,
    /// The last entry that somebody spoke of.
    heard: AtomicU64,
}

impl Position {
    pub(super) fn new(applied: Seq) -> Position {
        Position {
            applied: watch::Sender::new(applied.0),
            claimed: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        }
    }

    pub(super) fn applied(&self) -> Seq {
        Seq(*self.applied.borrow())
    }

    /// Everything up to `seq` is applied.
    pub(super) fn reached(&self, seq: Seq) {
        self.applied.send_replace(seq.0);
    }

    /// This node is about to append entry `seq`.
    pub(super) fn claim(&self, seq: Seq) {
        self.claimed.store(seq.0, Ordering::Release);
    }

    /// It did not come to that, so the entry is another node's, or none.
    pub(super) fn disclaim(&self) {
        self.claimed.store(0, Ordering::Release);
    }

    fn hear(&self, seq: Seq) {
        self.heard.fetch_max(seq.0, Ordering::AcqRel);
    }

    /// The last entry of which nobody needs to tell this node.
    fn known(&self) -> Seq {
        let claimed = Seq(self.claimed.load(Ordering::Acquire));
        claimed.max(self.applied())
    }
}

impl Logged {
    /// Returns when everything that the log holds now is applied here.
    pub(super) async fn catch_up(&self) -> Result<()> {
        let head = self.log.head().await.map_err(unavailable)?;
        let mut applied = self.position.applied.subscribe();
        self.position.hear(head);
        // What is being appended is applied by itself.
        if head > self.position.known() {
            self.nudge();
        }
        let mut at = *applied.borrow();
        while at < head.0 {
            let moved = applied.wait_for(|applied| *applied > at);
            at = match tokio::time::timeout(LOG_DEADLINE, moved).await {
                Ok(Ok(now)) => *now,
                _ => {
                    return Err(TreeError::Unavailable(format!(
                        "log entry {head} was not applied in time"
                    )));
                }
            };
        }
        Ok(())
    }

    /// Applies what other nodes appended.
    pub(super) fn follow(&self, runtime: &Handle) -> Result<()> {
        loop {
            let from = self.position.applied().next();
            let entries = match runtime.block_on(self.log.read(from, READ)) {
                Ok(entries) => entries,
                Err(BackendError::NotFound) => return self.rebase(runtime),
                Err(e) => return Err(unavailable(e)),
            };
            if entries.is_empty() {
                self.behind.store(false, Ordering::Release);
                self.position.reached(Seq(from.0 - 1));
                return Ok(());
            }
            let maybe_more = entries.len() >= READ;
            for entry in entries {
                self.apply_entry(&entry)?;
            }
            // Asking again is for a log of which more was heard, or that was not read to its end yet.
            let heard = Seq(self.position.heard.load(Ordering::Acquire));
            let at_head = !maybe_more && heard <= self.position.applied();
            if at_head && !self.behind.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }

    fn apply_entry(&self, entry: &LogEntry) -> Result<()> {
        match self.commit_entry(entry) {
            Ok(effects) => {
                // Before the position is published: who has caught up with the log finds the kernel's caches told.
                self.tell(Origin::Remote, &effects);
                self.position.reached(entry.seq);
                Ok(())
            }
            Err(e) => {
                self.abandon();
                Err(e)
            }
        }
    }

    /// Applies the entry that this node just appended, after its own transaction failed.
    pub(super) fn apply_own(&self, entry: &LogEntry, deadline: Instant) -> Result<()> {
        loop {
            match self.commit_entry(entry) {
                Ok(_) => return Ok(()),
                Err(e) => {
                    self.abandon();
                    if Instant::now() >= deadline || self.is_closed() {
                        return Err(e);
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    fn commit_entry(&self, entry: &LogEntry) -> Result<Vec<Effect>> {
        let ops = decode(&entry.payload)?;
        let mut writer = self.writer.lock();
        writer.begin()?;
        let applied = match writer.apply(&ops, || Ok(())) {
            Ok(applied) => applied,
            // The disk, not the ops.
            Err(e @ TreeError::NoSpace) => return Err(e),
            Err(e) if writer.was_rolled_back() => return Err(e),
            Err(e) => {
                // It was accepted against this very state elsewhere, so this replica differs: going on would make it
                // differ more.
                error!(
                    "log entry {} by {} does not apply here ({e}): this replica has diverged",
                    entry.seq, entry.node
                );
                return Err(TreeError::Database(format!(
                    "log entry {} does not apply: {e}",
                    entry.seq
                )));
            }
        };
        writer.set("meta", "applied", entry.seq.0)?;
        writer.commit()?;
        Ok(applied.effects)
    }
}

/// Wakes the leader when other nodes append, until the tree is closed.
pub(super) async fn watch(logged: Weak<Logged>) {
    let mut looked = Instant::now();
    while let Some(this) = logged.upgrade() {
        if this.is_closed() {
            return;
        }
        if this.forked() {
            let back = this.log.head().await.is_ok();
            this.back.store(back, Ordering::Release);
            if back {
                this.nudge();
            }
            drop(this);
            tokio::time::sleep(PROBE).await;
            continue;
        }
        let position = &this.position;
        let mut applied = position.applied.subscribe();
        let known = position.known();
        match this.log.changed(known).await {
            Ok(head) => {
                position.hear(head);
                let now = position.known();
                if head <= now && now > known && looked.elapsed() < LOOK {
                    // It was this node itself.
                    continue;
                }
            }
            Err(e) => {
                debug!("following the namespace log: {e}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        looked = Instant::now();
        applied.mark_unchanged();
        this.nudge();
        // Until the leader has looked, the log would only say the same again.
        let _ = tokio::time::timeout(Duration::from_millis(200), applied.changed()).await;
    }
}
