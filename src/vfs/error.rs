//! Why a file operation failed. The kernel's numbers for it are in [`crate::fuse`], the web's in [`crate::sidecar`].

use crate::backend::BackendError;
use crate::tree::TreeError;

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// The namespace refused.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The local disk refused.
    #[error("local disk: {0}")]
    Io(#[from] std::io::Error),
    /// The store or the lock service refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The handle is not open, or not open for this.
    #[error("bad file handle")]
    BadHandle,
    /// Not something this filesystem does.
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// The caller's buffer is too small for the attribute.
    #[error("result does not fit the buffer")]
    Range,
    /// Content that another node has not stored yet did not come in time.
    #[error("the content is still at node {0}, which did not send it or store it in time")]
    StillElsewhere(String),
    /// Nothing came from the store for a while.
    #[error("the store sends nothing")]
    Stalled,
    /// What is written just now keeps others from being shown what was written before.
    #[error("a write to inode {0} that is under way does not end")]
    Unsettled(u64),
    /// Content that this node should have is not on its disk.
    #[error("the content of inode {0} is missing from this machine's disk")]
    Lost(u64),
    /// Another's lock is in the way, and the caller does not wait.
    #[error("locked by another")]
    Locked,
    /// A lock that the caller relies on was lost.
    #[error("a lock on inode {0} was lost: this machine could not be heard of for too long")]
    LockLost(u64),
    /// What was written here is no version of the file any more.
    #[error(
        "what was written here to inode {0} is given up: it could not be filled with what another machine wrote"
    )]
    Overtaken(u64),
    /// No lock can be had now.
    #[error("no lock: {0}")]
    NoLocks(String),
    /// A signal came before the call was done.
    #[error("interrupted")]
    Interrupted,
}
