//! The one table from what went wrong to the kernel's number for it. Matched exhaustively: a new error forces a decision.

use fuser::Errno;

use crate::backend::BackendError;
use crate::tree::TreeError;
use crate::vfs::VfsError;

/// The number for an error.
pub fn errno(e: &VfsError) -> Errno {
    match e {
        VfsError::Tree(e) => tree(e),
        VfsError::Io(e) => io(e),
        VfsError::Backend(e) => backend(e),
        VfsError::BadHandle => Errno::EBADF,
        VfsError::NotSupported(_) => Errno::EOPNOTSUPP,
        VfsError::Range => Errno::ERANGE,
        VfsError::StillElsewhere(_) => Errno::EIO,
        VfsError::Stalled => Errno::EIO,
        VfsError::Unsettled(_) => Errno::EIO,
        VfsError::Lost(_) => Errno::EIO,
        VfsError::Locked => Errno::EAGAIN,
        VfsError::LockLost(_) => Errno::EIO,
        VfsError::Overtaken(_) => Errno::EIO,
        VfsError::NoLocks(_) => Errno::ENOLCK,
        VfsError::Interrupted => Errno::EINTR,
    }
}

/// Whether the error is a failure of ours rather than an answer, and belongs in the log.
pub fn is_failure(e: &VfsError) -> bool {
    matches!(errno(e), Errno::EIO)
}

fn tree(e: &TreeError) -> Errno {
    match e {
        TreeError::NotFound => Errno::ENOENT,
        TreeError::Exists => Errno::EEXIST,
        TreeError::NotDirectory => Errno::ENOTDIR,
        TreeError::IsDirectory => Errno::EISDIR,
        TreeError::NotEmpty => Errno::ENOTEMPTY,
        TreeError::NameTooLong => Errno::ENAMETOOLONG,
        TreeError::Invalid => Errno::EINVAL,
        TreeError::NotPermitted => Errno::EPERM,
        TreeError::TooManyLinks => Errno::EMLINK,
        TreeError::NoAttribute => Errno::ENODATA,
        TreeError::NoSpace => Errno::ENOSPC,
        TreeError::Superseded => Errno::ESTALE,
        TreeError::Reaped => Errno::EIO,
        TreeError::InUse => Errno::EBUSY,
        TreeError::Unavailable(_) => Errno::EIO,
        TreeError::Database(_) => Errno::EIO,
    }
}

fn io(e: &std::io::Error) -> Errno {
    match e.raw_os_error() {
        Some(number) => Errno::from_i32(number),
        None => Errno::EIO,
    }
}

fn backend(e: &BackendError) -> Errno {
    match e {
        BackendError::NotFound => Errno::EIO,
        BackendError::Cancelled => Errno::EIO,
        BackendError::Corrupt(_) => Errno::EIO,
        BackendError::Unavailable(_) => Errno::EIO,
        BackendError::Unusable(_) => Errno::EIO,
        BackendError::Io(e) => io(e),
    }
}
