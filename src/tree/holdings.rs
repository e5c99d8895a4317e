//! What a merge needs from the one who holds the bytes of this node's files.

use std::io;

use crate::types::{Generation, Ino};

/// The bytes that this node holds of files that are not stored yet.
pub trait Holdings: Send + Sync {
    /// Keeps the bytes held of `from` for `to` as well, as its first generation. When this returns they survive power
    /// loss. True when they are those of a closed version, which will not change; false when a program is writing them.
    /// [`io::ErrorKind::NotFound`]: nothing is held of `from`.
    fn keep_aside(&self, from: Ino, to: Ino) -> io::Result<bool>;

    /// These versions, and older ones of the same files, are about to lose against those of other nodes: nobody is to
    /// take them up any more.
    fn lose_soon(&self, versions: &[(Ino, Generation)]);

    /// The merge that named them was not committed.
    fn lose_not(&self, versions: &[(Ino, Generation)]);

    /// They have lost and are kept aside: what is held of them goes, for good when this returns. What a program is still
    /// writing stays.
    fn give_up(&self, versions: &[(Ino, Generation)]) -> io::Result<()>;

    /// Whether this version, or a later one, is held and was not given up.
    fn has(&self, ino: Ino, generation: Generation) -> bool;

    /// Drops what was kept aside for an inode that never came to be.
    fn drop_aside(&self, ino: Ino);
}
