//! The seam to the locks that programs take on files: flock(2) and fcntl(2), across machines.
//!
//! Only a cluster has it. Alone on a machine the kernel keeps these locks itself and asks nobody.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use super::Result;
use super::ranges::{Holder, Range};
use crate::types::Ino;

/// What a held lock hangs on: this node's being known to be alive.
#[derive(Clone)]
pub struct Hold {
    /// Different for each time that this node was taken for dead, and so lost all its locks.
    pub session: i64,
    /// Until when the lock certainly is held; `None` once it is known to be lost.
    pub(crate) valid_until: Arc<dyn Fn() -> Option<Instant> + Send + Sync>,
}

impl Hold {
    /// Whether what hangs on it is certainly still held.
    pub fn is_valid(&self) -> bool {
        (self.valid_until)().is_some_and(|t| Instant::now() < t)
    }
}

/// A lock in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Which.
    pub range: Range,
    /// Its holder is on this node, so that its owner and its process id mean something here.
    pub here: bool,
}

/// How an attempt to take a lock ended.
pub enum Attempt {
    /// It is held.
    Held(Hold),
    /// Somebody else's lock was in the way, at this moment of the lock service's time.
    Busy(Conflict, i64),
}

/// Locks on byte ranges of inodes, among all nodes of a tree.
///
/// What a node holds is lost when the node is not heard of for the lifetime of its lease. Each node can tell by its own
/// clock, before anybody else can get the lock: see [`Hold`].
#[async_trait]
pub trait FileLocks: Send + Sync {
    /// Takes `wanted` if nothing is in its way, in place of what its holder had there. Atomic among all nodes.
    ///
    /// An flock that changes its kind gives up the old one first, also when the new one cannot be had (as Linux does). An
    /// error says that the lock was not taken; should etcd have it all the same, it is given up in the background.
    async fn attempt(&self, ino: Ino, wanted: Range) -> Result<Attempt>;

    /// A lock that is in the way of `wanted`.
    async fn conflict(&self, ino: Ino, wanted: Range) -> Result<Option<Conflict>>;

    /// Gives up what `holder` holds of the bytes from `start` up to and including `end`. From the call on it counts as
    /// given up. Returns when others can have it, or when the lock service does not answer; it is told later then.
    async fn give_up(&self, ino: Ino, holder: Holder, start: u64, end: u64);

    /// Returns when the locks of the inode may have changed after `since`, which an attempt named, or after a few seconds.
    async fn changed(&self, ino: Ino, since: i64);
}
