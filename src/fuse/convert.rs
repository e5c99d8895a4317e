//! The kernel's values and ours, one into the other.

use std::time::UNIX_EPOCH;

use fuser::{
    BackingId, FileAttr, FileType, FopenFlags, INodeNo, OpenAccMode, OpenFlags, Request, TimeOrNow,
};

use crate::types::{Ino, Time};
use crate::vfs::open::Backing;
use crate::vfs::{Access, Attr, Caller, Opened};

pub(super) fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        thread: req.pid(),
    }
}

pub(super) fn ino(n: INodeNo) -> Ino {
    Ino(n.0)
}

pub(super) fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    let inode = &attr.inode;
    FileAttr {
        ino: INodeNo(inode.ino.0),
        size: inode.size,
        blocks: attr.blocks,
        atime: inode.atime.to_system(),
        mtime: inode.mtime.to_system(),
        ctime: inode.ctime.to_system(),
        crtime: inode.ctime.to_system(),
        kind: kind(inode.mode),
        perm: (inode.mode & 0o7777) as u16,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: 4096,
        flags: 0,
    }
}

pub(super) fn open_flags(opened: &Opened, access: Access, shares_locks: bool) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if opened.keep_cache && opened.backing.is_none() {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    // Closing what cannot have written tells nobody anything, unless it gives up locks.
    if !access.write && !shares_locks {
        flags |= FopenFlags::FOPEN_NOFLUSH;
    }
    flags
}

pub(super) fn backing_id(backing: &Option<Backing>) -> Option<&BackingId> {
    backing.as_ref().and_then(|b| b.downcast_ref())
}

pub(super) fn access(req: &Request, flags: OpenFlags) -> Access {
    Access {
        // O_SYNC has the bits of O_DSYNC.
        sync: flags.0 & libc::O_DSYNC != 0,
        clears_ids: (req.uid() != 0).then(|| caller(req)),
        write: flags.acc_mode() != OpenAccMode::O_RDONLY,
        truncate: flags.0 & libc::O_TRUNC != 0,
    }
}

pub(super) fn time(t: TimeOrNow) -> Time {
    match t {
        TimeOrNow::SpecificTime(t) => match UNIX_EPOCH.duration_since(t) {
            // fuser 0.18 counts the nanoseconds of a time before 1970 backwards; the kernel counts them forwards.
            Ok(before) if before.as_nanos() > 0 => {
                Time::from_parts(-(before.as_secs() as i64), before.subsec_nanos().into())
            }
            _ => Time::from(t),
        },
        TimeOrNow::Now => Time::now(),
    }
}
