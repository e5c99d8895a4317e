//! One method per kernel request.

use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use tracing::debug;

use super::convert::{access, backing_id, caller, file_attr, ino, open_flags, time};
use super::lock_flags::is_flock;
use super::notify::Invalidations;
use super::reply::{TTL, attr_ttl, failed, failed_inode, reply_empty, reply_entry, reply_xattr};
use crate::backend::file_locks::Conflict;
use crate::backend::ranges::{Family, Holder, Range};
use crate::tree::op::{RenameMode, XattrMode};
use crate::vfs::locking::LockRequest;
use crate::vfs::names::{AttrChange, NewNode};
use crate::vfs::open::Backing;
use crate::vfs::patience::asked_by;
use crate::vfs::{Result, Vfs};
use crate::windows;

/// Largest read and write request.
const REQUEST_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have under way in the background, such as readahead.
const BACKGROUND: u16 = 64;

#[derive(Clone)]
pub(super) struct Adapter {
    pub vfs: Arc<Vfs>,
    pub runtime: tokio::runtime::Handle,
    /// Names and listings are those of the log's head at the time of the call.
    pub strict: bool,
    /// What the kernel has to be told before somebody who got a lock goes on.
    pub invalidations: Invalidations,
}

impl Adapter {
    /// Polls once here; what has to wait goes on as a task.
    fn run(&self, future: impl Future<Output = ()> + Send + 'static) {
        let _context = self.runtime.enter();
        let mut future = Box::pin(future);
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(()) => {}
            Poll::Pending => drop(self.runtime.spawn(future)),
        }
    }

    /// The same for a request that may wait for another machine: a signal for its thread ends that.
    fn run_for(&self, req: &Request, future: impl Future<Output = ()> + Send + 'static) {
        self.run(asked_by(req.pid(), future));
    }

    /// Runs `f`, after the log's head if this mount is strict. `f` is told when that cannot be asked.
    fn at_head(&self, f: impl FnOnce(Result<()>) + Send + 'static) {
        if !self.strict {
            return f(Ok(()));
        }
        let vfs = self.vfs.clone();
        self.run(async move { f(vfs.catch_up().await) });
    }

    /// How long the kernel may use names and attributes without asking.
    pub(super) fn ttl(&self) -> Duration {
        if self.strict { Duration::ZERO } else { TTL }
    }

    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, new: NewNode, reply: ReplyEntry) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), name.as_bytes().to_vec());
        let ttl = self.ttl();
        self.run(async move {
            let result = vfs.make(caller, ino(parent), &name, new).await;
            reply_entry(reply, ttl, "make", result);
        });
    }
}

#[allow(clippy::too_many_arguments)]
impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            // Without it the kernel asks for security.capability before every write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                debug!("this kernel does not offer {missing:?}");
            }
        }
        if self.vfs.shares_locks() {
            for flag in [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS] {
                config.add_capabilities(flag).map_err(|_| {
                    io::Error::other(
                        "this kernel keeps all locks to itself, so machines cannot share them",
                    )
                })?;
            }
        }
        if self.vfs.offers_passthrough()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        {
            let _ = config.set_max_stack_depth(1);
        }
        let _ = config.set_max_write(REQUEST_BYTES);
        if let Err(most) = config.set_max_readahead(REQUEST_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (this, name) = (self.clone(), name.as_bytes().to_vec());
        self.at_head(move |head| {
            let found = head.and_then(|()| this.vfs.lookup(ino(parent), &name));
            windows::LOOKUP.passed();
            if let Ok(attr) = &found {
                this.invalidations
                    .note_answer(ino(parent), name, attr.inode.ino);
            }
            reply_entry(reply, this.ttl(), "lookup", found);
        });
    }

    fn forget(&self, _req: &Request, n: INodeNo, _nlookup: u64) {
        self.vfs.forget(ino(n));
    }

    fn getattr(&self, _req: &Request, n: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.vfs.attr(ino(n)) {
            Ok(attr) => reply.attr(&attr_ttl(self.ttl(), &attr), &file_attr(&attr)),
            Err(e) => reply.error(failed_inode("getattr", &e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        n: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let change = AttrChange {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(time),
            mtime: mtime.map(time),
        };
        let ttl = self.ttl();
        self.run_for(req, async move {
            match vfs.setattr(caller, ino(n), change).await {
                Ok(attr) => reply.attr(&attr_ttl(ttl, &attr), &file_attr(&attr)),
                Err(e) => reply.error(failed_inode("setattr", &e)),
            }
        });
    }

    fn readlink(&self, _req: &Request, n: INodeNo, reply: ReplyData) {
        match self.vfs.readlink(ino(n)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(failed_inode("readlink", &e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let new = NewNode {
            mode,
            rdev,
            target: None,
        };
        self.make(req, parent, name, new, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let new = NewNode {
            mode: libc::S_IFDIR | (mode & 0o7777),
            ..NewNode::default()
        };
        self.make(req, parent, name, new, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let new = NewNode {
            mode: libc::S_IFLNK | 0o777,
            rdev: 0,
            target: Some(target.as_os_str().as_bytes().to_vec()),
        };
        self.make(req, parent, name, new, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
        self.run(async move {
            reply_empty(reply, "unlink", vfs.unlink(ino(parent), &name).await);
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
        self.run(async move {
            reply_empty(reply, "rmdir", vfs.rmdir(ino(parent), &name).await);
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let vfs = self.vfs.clone();
        let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        self.run(async move {
            let from = (ino(parent), &name[..]);
            let to = (ino(newparent), &newname[..]);
            reply_empty(reply, "rename", vfs.rename(from, to, mode).await);
        });
    }

    fn link(
        &self,
        _req: &Request,
        n: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (vfs, name) = (self.vfs.clone(), newname.as_bytes().to_vec());
        let ttl = self.ttl();
        self.run(async move {
            let result = vfs.link(ino(n), ino(newparent), &name).await;
            reply_entry(reply, ttl, "link", result);
        });
    }

    fn open(&self, req: &Request, n: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (vfs, access) = (self.vfs.clone(), access(req, flags));
        let strict = self.strict;
        self.run_for(req, async move {
            if strict && let Err(e) = vfs.catch_up().await {
                return reply.error(failed_inode("open", &e));
            }
            let register = |file: &File| Ok(Arc::new(reply.open_backing(file)?) as Backing);
            let opened = vfs.open(ino(n), access, &register).await;
            match opened {
                Ok(opened) => {
                    let flags = open_flags(&opened, access, vfs.shares_locks());
                    let fh = FileHandle(opened.fh);
                    match backing_id(&opened.backing) {
                        Some(id) => reply.opened_passthrough(fh, flags, id),
                        None => reply.opened(fh, flags),
                    }
                }
                Err(e) => reply.error(failed_inode("open", &e)),
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), name.as_bytes().to_vec());
        let access = access(req, OpenFlags(flags));
        let ttl = self.ttl();
        self.run_for(req, async move {
            let register = |file: &File| Ok(Arc::new(reply.open_backing(file)?) as Backing);
            let created = vfs
                .create(
                    caller,
                    ino(parent),
                    &name,
                    mode,
                    access,
                    flags & libc::O_EXCL != 0,
                    &register,
                )
                .await;
            match created {
                Ok((attr, opened)) => {
                    let attr = file_attr(&attr);
                    let flags = open_flags(&opened, access, vfs.shares_locks());
                    let fh = FileHandle(opened.fh);
                    match backing_id(&opened.backing) {
                        Some(id) => {
                            reply.created_passthrough(&ttl, &attr, Generation(0), fh, flags, id)
                        }
                        None => reply.created(&ttl, &attr, Generation(0), fh, flags),
                    }
                }
                Err(e) => reply.error(failed("create", &e)),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let vfs = self.vfs.clone();
        self.run_for(req, async move {
            let mut buffer = vec![0; size.min(REQUEST_BYTES) as usize];
            match vfs.read(fh.0, offset, &mut buffer).await {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(failed_inode("read", &e)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let clears_ids = write_flags
            .contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
            .then(|| caller(req));
        let size = data.len() as u32;
        // With the spool file at hand nothing has to wait, so nothing has to be copied.
        if clears_ids.is_none()
            && let Some(result) = self.vfs.write_now(fh.0, offset, data)
        {
            return match result {
                Ok(()) => reply.written(size),
                Err(e) => reply.error(failed("write", &e)),
            };
        }
        let (vfs, data) = (self.vfs.clone(), data.to_vec());
        self.run_for(req, async move {
            match vfs.write(fh.0, offset, &data, clears_ids).await {
                Ok(()) => reply.written(size),
                Err(e) => reply.error(failed("write", &e)),
            }
        });
    }

    fn flush(
        &self,
        _req: &Request,
        n: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let (vfs, told) = (self.vfs.clone(), self.invalidations.clone());
        self.run(async move {
            let closed = vfs.close(fh.0, owner.0).await;
            told.note_loss(ino(n), &closed);
            reply_empty(reply, "flush", closed)
        });
    }

    fn release(
        &self,
        _req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = self.vfs.clone();
        self.run(async move { reply_empty(reply, "release", vfs.release(fh.0).await) });
    }

    fn fsync(&self, req: &Request, n: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let (vfs, told) = (self.vfs.clone(), self.invalidations.clone());
        self.run_for(req, async move {
            let synced = vfs.fsync(fh.0, data_only).await;
            told.note_loss(ino(n), &synced);
            reply_empty(reply, "fsync", synced)
        });
    }

    fn getlk(
        &self,
        _req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let wanted = Range {
            holder: Holder {
                family: Family::Posix,
                owner: owner.0,
            },
            exclusive: kind == libc::F_WRLCK,
            start,
            end,
            pid,
        };
        let vfs = self.vfs.clone();
        self.run(async move {
            match vfs.locked_by(fh.0, wanted).await {
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                Ok(Some(Conflict { range, here })) => {
                    let kind = match range.exclusive {
                        true => libc::F_WRLCK,
                        false => libc::F_RDLCK,
                    };
                    // The number of a process of another machine would name some other process of this one.
                    let pid = if here { range.pid } else { 0 };
                    reply.locked(range.start, range.end, kind, pid);
                }
                Err(e) => reply.error(failed("getlk", &e)),
            }
        });
    }

    fn setlk(
        &self,
        req: &Request,
        n: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let family = match is_flock(req, fh.0, owner.0) {
            Some(true) => Family::Flock,
            Some(false) => Family::Posix,
            None => return reply.error(Errno::ENOLCK),
        };
        let holder = Holder {
            family,
            // A flock(2) belongs to one open(2), whose owner the kernel calls by a number that it gives to the next one
            // before the last close of this one is known here.
            owner: match family {
                Family::Flock => fh.0,
                Family::Posix => owner.0,
            },
        };
        let range = Range {
            holder,
            exclusive: kind == libc::F_WRLCK,
            start,
            end,
            pid,
        };
        let request = LockRequest {
            range,
            wait,
            thread: req.pid(),
        };
        let (vfs, told) = (self.vfs.clone(), self.invalidations.clone());
        self.run_for(req, async move {
            let n = ino(n);
            if kind == libc::F_UNLCK {
                let result = vfs.unlock(fh.0, holder, start, end).await;
                told.note_loss(n, &result);
                return reply_empty(reply, "unlock", result);
            }
            let result = vfs.lock(fh.0, request).await;
            if let Ok(stale) = result {
                if stale {
                    told.note_content(n);
                }
                told.told(n).await;
            }
            reply_empty(reply, "lock", result.map(drop));
        });
    }

    fn opendir(&self, _req: &Request, n: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.vfs.open_dir(ino(n));
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn releasedir(
        &self,
        _req: &Request,
        n: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.vfs.release_dir(ino(n));
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        n: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let this = self.clone();
        self.at_head(move |head| match head {
            Ok(()) => this.list(ino(n), offset, reply),
            Err(e) => reply.error(failed("readdir", &e)),
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        n: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let this = self.clone();
        self.at_head(move |head| match head {
            Ok(()) => this.list_plus(ino(n), offset, reply),
            Err(e) => reply.error(failed("readdirplus", &e)),
        });
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _n: INodeNo,
        _fh: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, "fsyncdir", self.vfs.sync_names());
    }

    fn statfs(&self, _req: &Request, _n: INodeNo, reply: ReplyStatfs) {
        match self.vfs.statfs() {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_frsize as u32,
                crate::tree::op::NAME_MAX as u32,
                s.f_frsize as u32,
            ),
            Err(e) => reply.error(failed("statfs", &e)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        n: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Set,
        };
        let vfs = self.vfs.clone();
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.run(async move {
            let result = vfs.set_xattr(ino(n), &name, &value, mode).await;
            reply_empty(reply, "setxattr", result);
        });
    }

    fn getxattr(&self, _req: &Request, n: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let result = self.vfs.get_xattr(ino(n), name.as_bytes());
        reply_xattr(reply, size, "getxattr", result);
    }

    fn listxattr(&self, _req: &Request, n: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, "listxattr", self.vfs.list_xattrs(ino(n)));
    }

    fn removexattr(&self, _req: &Request, n: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.as_bytes().to_vec());
        self.run(async move {
            reply_empty(reply, "removexattr", vfs.remove_xattr(ino(n), &name).await);
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
        let vfs = self.vfs.clone();
        self.run_for(req, async move {
            let result = vfs
                .writing(fh.0, |file| {
                    Ok(rustix::fs::fallocate(file, flags, offset, length)?)
                })
                .await;
            reply_empty(reply, "fallocate", result);
        });
    }

    fn lseek(
        &self,
        req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let whence = match whence {
            libc::SEEK_DATA => rustix::fs::SeekFrom::Data(offset),
            libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        let vfs = self.vfs.clone();
        self.run_for(req, async move {
            let result = vfs
                .reading(fh.0, |file| match file {
                    Some(file) => Ok(rustix::fs::seek(file, whence)?),
                    None => Err(io::Error::from(rustix::io::Errno::NXIO)),
                })
                .await;
            match result {
                Ok(at) => reply.offset(at as i64),
                Err(e) => reply.error(failed("lseek", &e)),
            }
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _n: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // No inode flags, no reflinks, no terminal: programs ask for these and go on without.
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _from: INodeNo,
        fh_from: FileHandle,
        offset_from: u64,
        _to: INodeNo,
        fh_to: FileHandle,
        offset_to: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let vfs = self.vfs.clone();
        self.run_for(req, async move {
            let copied = vfs
                .copy_range((fh_from.0, offset_from), (fh_to.0, offset_to), len)
                .await;
            match copied {
                Ok(n) => reply.written(n as u32),
                Err(e) => reply.error(failed("copy_file_range", &e)),
            }
        });
    }
}
