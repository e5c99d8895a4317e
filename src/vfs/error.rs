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
    #[error("the content is still at node {0} and was not stored in time")]
    StillElsewhere(String),
    /// Content that this node should have is not on its disk.
    #[error("the content of inode {0} is missing from this machine's disk")]
    Lost(u64),
}
