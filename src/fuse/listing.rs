//! Reading directories. A position is the cookie of the entry before it, so it stays right whatever comes and goes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::adapter::Adapter;
use super::convert::{file_attr, kind};
use super::reply::{attr_ttl, failed};
use crate::types::Ino;
use crate::vfs::Result;
use crate::vfs::names::Listed;

/// Entries looked up per readdir request.
const READDIR_BATCH: usize = 256;
/// Positions 1 and 2 of a directory are `.` and `..`; entry positions follow.
const DOTS: u64 = 2;

enum Entry<'a> {
    Dot(Ino, u64, &'a str),
    Listed(&'a Listed),
}

impl Adapter {
    pub(super) fn list(&self, dir: Ino, offset: u64, mut reply: ReplyDirectory) {
        let filled = self.each_entry(dir, offset, |entry| match entry {
            Entry::Dot(of, position, name) => {
                reply.add(INodeNo(of.0), position, FileType::Directory, name)
            }
            Entry::Listed(listed) => reply.add(
                INodeNo(listed.dentry.ino.0),
                listed.dentry.cookie + DOTS,
                kind(listed.dentry.mode),
                OsStr::from_bytes(&listed.dentry.name),
            ),
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(failed("readdir", &e)),
        }
    }

    pub(super) fn list_plus(&self, dir: Ino, offset: u64, mut reply: ReplyDirectoryPlus) {
        let filled = self.each_entry(dir, offset, |entry| match entry {
            Entry::Dot(of, position, name) => match self.vfs.attr(of) {
                Ok(attr) => reply.add(
                    INodeNo(of.0),
                    position,
                    name,
                    &self.ttl(),
                    &file_attr(&attr),
                    Generation(0),
                ),
                // The directory was removed while it was read.
                Err(_) => false,
            },
            Entry::Listed(listed) => reply.add(
                INodeNo(listed.dentry.ino.0),
                listed.dentry.cookie + DOTS,
                OsStr::from_bytes(&listed.dentry.name),
                &attr_ttl(self.ttl(), &listed.attr),
                &file_attr(&listed.attr),
                Generation(0),
            ),
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(failed("readdirplus", &e)),
        }
    }

    /// Gives `add` the entries after `offset` until it says that its buffer is full.
    fn each_entry(
        &self,
        dir: Ino,
        offset: u64,
        mut add: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<()> {
        if offset < 1 && add(Entry::Dot(dir, 1, ".")) {
            return Ok(());
        }
        // A directory that was removed while it is open has no entries any more, and no parent.
        let parent = self.vfs.parent_of(dir).unwrap_or(dir);
        if offset < DOTS && add(Entry::Dot(parent, DOTS, "..")) {
            return Ok(());
        }
        let mut after = offset.saturating_sub(DOTS);
        loop {
            let listed = self.vfs.list(dir, after, READDIR_BATCH)?;
            for entry in &listed {
                if add(Entry::Listed(entry)) {
                    return Ok(());
                }
                after = entry.dentry.cookie;
            }
            if listed.len() < READDIR_BATCH {
                return Ok(());
            }
        }
    }
}
