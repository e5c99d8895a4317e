//! Answers that many requests share.

use std::time::Duration;

use fuser::{Errno, Generation, ReplyEmpty, ReplyEntry, ReplyXattr};
use tracing::{debug, warn};

use super::convert::file_attr;
use super::errno::{errno, is_failure};
use crate::tree::TreeError;
use crate::vfs::{Attr, Result, VfsError};

/// How long the kernel may use names and attributes without asking. Long, since it is told of every change that it did
/// not make itself.
pub(super) const TTL: Duration = Duration::from_secs(60);

/// How long the kernel may use these attributes, in a mount where it may use others for `most`.
pub(super) fn attr_ttl(most: Duration, attr: &Attr) -> Duration {
    if attr.volatile { Duration::ZERO } else { most }
}

pub(super) fn failed(what: &str, e: &VfsError) -> Errno {
    if is_failure(e) {
        warn!("{what}: {e}");
    } else {
        debug!("{what}: {e}");
    }
    errno(e)
}

/// The same for operations on an inode. That it is not there means that the kernel's name for it is outdated, as after
/// another node put a file in its place; by this number the kernel looks the name up again.
pub(super) fn failed_inode(what: &str, e: &VfsError) -> Errno {
    match e {
        VfsError::Tree(TreeError::NotFound) => Errno::ESTALE,
        e => failed(what, e),
    }
}

pub(super) fn reply_entry(reply: ReplyEntry, names: Duration, what: &str, result: Result<Attr>) {
    match result {
        Ok(attr) => reply.entry_with_ttls(
            &attr_ttl(names, &attr),
            &names,
            &file_attr(&attr),
            Generation(0),
        ),
        Err(e) => reply.error(failed(what, &e)),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, what: &str, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(failed(what, &e)),
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, what: &str, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(failed_inode(what, &e)),
    }
}
