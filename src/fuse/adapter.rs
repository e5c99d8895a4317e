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
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use tracing::{debug, warn};

use super::errno::{errno, is_failure};
use crate::tree::TreeError;
use crate::tree::op::{RenameMode, XattrMode};
use crate::types::{Ino, Time};
use crate::vfs::names::{AttrChange, Listed, NewNode};
use crate::vfs::open::Backing;
use crate::vfs::{Access, Attr, Caller, Opened, Result, Vfs, VfsError};

/// How long the kernel may use names and attributes without asking. Long, since it is told of every change that it did
/// not make itself.
const TTL: Duration = Duration::from_secs(60);
/// Largest read and write request.
const REQUEST_BYTES: u32 = 1 << 20;
/// What one copy_file_range copies at the most: it runs on the kernel's thread.
const COPY_BYTES: u64 = 8 << 20;
/// Requests that the kernel may have under way in the background, such as readahead.
const BACKGROUND: u16 = 64;
/// Entries looked up per readdir request.
const READDIR_BATCH: usize = 256;
/// Positions 1 and 2 of a directory are `.` and `..`; entry positions follow.
const DOTS: u64 = 2;

pub(super) struct Adapter {
    pub vfs: Arc<Vfs>,
    pub runtime: tokio::runtime::Handle,
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
}

fn failed(what: &str, e: &VfsError) -> Errno {
    if is_failure(e) {
        warn!("{what}: {e}");
    } else {
        debug!("{what}: {e}");
    }
    errno(e)
}

/// The same for operations on an inode. That it is not there means that the kernel's name for it is outdated, as after
/// another node put a file in its place; by this number the kernel looks the name up again.
fn failed_inode(what: &str, e: &VfsError) -> Errno {
    match e {
        VfsError::Tree(TreeError::NotFound) => Errno::ESTALE,
        e => failed(what, e),
    }
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

fn ino(n: INodeNo) -> Ino {
    Ino(n.0)
}

fn kind(mode: u32) -> FileType {
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

fn file_attr(attr: &Attr) -> FileAttr {
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

fn reply_entry(reply: ReplyEntry, what: &str, result: Result<Attr>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &file_attr(&attr), Generation(0)),
        Err(e) => reply.error(failed(what, &e)),
    }
}

fn reply_empty(reply: ReplyEmpty, what: &str, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(failed(what, &e)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, what: &str, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(failed_inode(what, &e)),
    }
}

fn open_flags(opened: &Opened, access: Access) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if opened.keep_cache && opened.backing.is_none() {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    // Closing what cannot have written tells nobody anything.
    if !access.write {
        flags |= FopenFlags::FOPEN_NOFLUSH;
    }
    flags
}

fn backing_id(backing: &Option<Backing>) -> Option<&BackingId> {
    backing.as_ref().and_then(|b| b.downcast_ref())
}

fn access(req: &Request, flags: OpenFlags) -> Access {
    Access {
        clear_ids: req.uid() != 0,
        write: flags.acc_mode() != OpenAccMode::O_RDONLY,
        truncate: flags.0 & libc::O_TRUNC != 0,
    }
}

fn time(t: TimeOrNow) -> Time {
    match t {
        TimeOrNow::SpecificTime(t) => Time::from(t),
        TimeOrNow::Now => Time::now(),
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
        reply_entry(
            reply,
            "lookup",
            self.vfs.lookup(ino(parent), name.as_bytes()),
        );
    }

    fn getattr(&self, _req: &Request, n: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.vfs.attr(ino(n)) {
            Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
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
        self.run(async move {
            match vfs.setattr(caller, ino(n), change).await {
                Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
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
        self.run(async move {
            let result = vfs.link(ino(n), ino(newparent), &name).await;
            reply_entry(reply, "link", result);
        });
    }

    fn open(&self, req: &Request, n: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (vfs, access) = (self.vfs.clone(), access(req, flags));
        self.run(async move {
            let register = |file: &File| Ok(Arc::new(reply.open_backing(file)?) as Backing);
            let opened = vfs.open(ino(n), access, &register).await;
            match opened {
                Ok(opened) => {
                    let flags = open_flags(&opened, access);
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
        self.run(async move {
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
                    let flags = open_flags(&opened, access);
                    let fh = FileHandle(opened.fh);
                    match backing_id(&opened.backing) {
                        Some(id) => {
                            reply.created_passthrough(&TTL, &attr, Generation(0), fh, flags, id)
                        }
                        None => reply.created(&TTL, &attr, Generation(0), fh, flags),
                    }
                }
                Err(e) => reply.error(failed("create", &e)),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let vfs = self.vfs.clone();
        self.run(async move {
            let mut buffer = vec![0; size.min(REQUEST_BYTES) as usize];
            match vfs.read(fh.0, offset, &mut buffer).await {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(failed_inode("read", &e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let clear_ids = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let size = data.len() as u32;
        // With the spool file at hand nothing has to wait, so nothing has to be copied.
        if !clear_ids && let Some(result) = self.vfs.write_now(fh.0, offset, data) {
            return match result {
                Ok(()) => reply.written(size),
                Err(e) => reply.error(failed("write", &e)),
            };
        }
        let (vfs, data) = (self.vfs.clone(), data.to_vec());
        self.run(async move {
            match vfs.write(fh.0, offset, &data, clear_ids).await {
                Ok(()) => reply.written(size),
                Err(e) => reply.error(failed("write", &e)),
            }
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let vfs = self.vfs.clone();
        self.run(async move { reply_empty(reply, "flush", vfs.flush(fh.0).await) });
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

    fn fsync(
        &self,
        _req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = self.vfs.clone();
        self.run(async move { reply_empty(reply, "fsync", vfs.fsync(fh.0, data_only).await) });
    }

    fn readdir(
        &self,
        _req: &Request,
        n: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let filled = self.each_entry(ino(n), offset, |entry| match entry {
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

    fn readdirplus(
        &self,
        _req: &Request,
        n: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let filled = self.each_entry(ino(n), offset, |entry| match entry {
            Entry::Dot(of, position, name) => match self.vfs.attr(of) {
                Ok(attr) => reply.add(
                    INodeNo(of.0),
                    position,
                    name,
                    &TTL,
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
                &TTL,
                &file_attr(&listed.attr),
                Generation(0),
            ),
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(failed("readdirplus", &e)),
        }
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
        _req: &Request,
        _n: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
        let vfs = self.vfs.clone();
        self.run(async move {
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
        _req: &Request,
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
        self.run(async move {
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
        _req: &Request,
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
        // The caller comes back for the rest.
        let len = len.min(COPY_BYTES) as usize;
        self.run(async move {
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

enum Entry<'a> {
    Dot(Ino, u64, &'a str),
    Listed(&'a Listed),
}

impl Adapter {
    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, new: NewNode, reply: ReplyEntry) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), name.as_bytes().to_vec());
        self.run(async move {
            let result = vfs.make(caller, ino(parent), &name, new).await;
            reply_entry(reply, "make", result);
        });
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
