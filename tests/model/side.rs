//! One of the two trees that get the same operations, and how it answers.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags};

use super::op::{Flags, MAP_BYTES, MAPS, Op, PATHS, SLOTS};
use crate::common::map::Map;

/// An open file.
pub struct Open {
    pub file: File,
    pub write: bool,
    /// The inode, as its own tree numbers it.
    pub ino: u64,
}

/// A mapping, and the inode that it maps.
pub struct Mapped {
    map: Map,
    pub ino: u64,
}

/// What stat(2) and its like say of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub mode: u32,
    pub nlink: u64,
    pub size: u64,
    pub ids: (u32, u32),
    pub attributes: BTreeMap<String, Vec<u8>>,
    pub bytes: Vec<u8>,
}

/// One tree.
pub struct Side {
    root: PathBuf,
    pub slots: [Option<Open>; SLOTS],
    pub maps: [Option<Mapped>; MAPS],
}

fn number(e: io::Error) -> i32 {
    e.raw_os_error().unwrap_or(-1)
}

impl Side {
    pub fn new(root: PathBuf) -> Side {
        fs::create_dir(&root).unwrap();
        Side {
            root,
            slots: Default::default(),
            maps: Default::default(),
        }
    }

    pub fn path(&self, n: usize) -> PathBuf {
        self.root.join(PATHS[n])
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn open(&mut self, slot: usize, path: usize, flags: Flags) -> io::Result<()> {
        let mut extra = 0;
        for (set, flag) in [
            (flags.append, libc::O_APPEND),
            (flags.truncate, libc::O_TRUNC),
            (flags.create, libc::O_CREAT),
            (flags.exclusive, libc::O_EXCL),
        ] {
            if set {
                extra |= flag;
            }
        }
        let file = OpenOptions::new()
            .read(flags.read)
            .write(flags.write)
            .custom_flags(extra)
            .mode(0o644)
            .open(self.path(path))?;
        let ino = file.metadata()?.ino();
        self.slots[slot] = Some(Open {
            file,
            write: flags.write,
            ino,
        });
        Ok(())
    }

    fn file(&self, slot: usize) -> io::Result<&File> {
        match &self.slots[slot] {
            Some(open) => Ok(&open.file),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// The length of what is mapped, which no access may pass.
    pub fn mapped_len(&self, map: usize) -> Option<u64> {
        let ino = self.maps[map].as_ref()?.ino;
        // A name or a descriptor leads to it, or nothing can have changed its length.
        let open = self.slots.iter().flatten().find(|o| o.ino == ino);
        let meta = match open {
            Some(open) => open.file.metadata().ok(),
            None => (0..PATHS.len())
                .filter_map(|p| fs::metadata(self.path(p)).ok())
                .find(|m| m.ino() == ino),
        };
        meta.map(|m| m.len())
    }

    /// Does one thing; the answer is what was read, or the error's number.
    pub fn apply(&mut self, op: &Op) -> Result<Vec<u8>, i32> {
        self.try_apply(op).map_err(number)
    }

    fn try_apply(&mut self, op: &Op) -> io::Result<Vec<u8>> {
        let nothing = Vec::new();
        match *op {
            Op::Open(slot, path, flags) => self.open(slot, path, flags)?,
            Op::Close(slot) => {
                self.file(slot)?;
                let open = self.slots[slot].take().unwrap();
                crate::common::files::close(open.file)?;
            }
            Op::Append(slot, len, fill) => self.file(slot)?.write_all(&vec![fill; len])?,
            Op::Write(slot, at, len, fill) => {
                self.file(slot)?.write_all_at(&vec![fill; len], at)?
            }
            Op::Read(slot, at, len) => {
                let mut bytes = vec![0; len];
                let mut done = 0;
                while done < len {
                    match self
                        .file(slot)?
                        .read_at(&mut bytes[done..], at + done as u64)?
                    {
                        0 => break,
                        n => done += n,
                    }
                }
                bytes.truncate(done);
                return Ok(bytes);
            }
            Op::Resize(slot, len) => self.file(slot)?.set_len(len)?,
            Op::Allocate(slot, mode, at, len) => {
                let mode = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
                rustix::fs::fallocate(self.file(slot)?, mode, at, len)?;
            }
            Op::Copy(from, at, to, to_at, len) => {
                let (from, to) = (self.file(from)?, self.file(to)?);
                copy(from, at, to, to_at, len)?;
            }
            Op::Sync(slot) => self.file(slot)?.sync_all()?,
            Op::Map(map, slot) => {
                let open = self.slots[slot].as_ref();
                let usable = open.filter(|o| o.write && readable(&o.file));
                let open = usable.ok_or(io::Error::from_raw_os_error(libc::EACCES))?;
                let write = libc::PROT_READ | libc::PROT_WRITE;
                self.maps[map] = Some(Mapped {
                    map: Map::new(&open.file, MAP_BYTES, write),
                    ino: open.ino,
                });
            }
            Op::MapWrite(map, at, len, fill) => {
                let mapped = self.maps[map].as_mut();
                let mapped = mapped.ok_or(io::Error::from_raw_os_error(libc::EBADF))?;
                mapped.map.bytes()[at..at + len].fill(fill);
            }
            Op::MapSync(map) => {
                let mapped = self.maps[map].as_mut();
                mapped
                    .ok_or(io::Error::from_raw_os_error(libc::EBADF))?
                    .map
                    .sync();
            }
            Op::Unmap(map) => self.maps[map] = None,
            Op::WriteFile(path, len, fill) => {
                crate::common::files::write_closed(&self.path(path), &vec![fill; len])?;
            }
            Op::CopyFile(from, to) => {
                let from = File::open(self.path(from))?;
                let to = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(self.path(to))?;
                copy(&from, 0, &to, 0, from.metadata()?.len() as usize)?;
                crate::common::files::close(to)?;
            }
            Op::ReadFile(path) => return fs::read(self.path(path)),
            Op::Truncate(path, len) => {
                let path = std::ffi::CString::new(self.path(path).to_str().unwrap())?;
                // SAFETY: a string that ends with NUL.
                if unsafe { libc::truncate(path.as_ptr(), len as i64) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Op::Rename(from, to, flags) => {
                let flags = RenameFlags::from_bits_retain(flags);
                rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), flags)?;
            }
            Op::Link(from, to) => fs::hard_link(self.path(from), self.path(to))?,
            Op::Symlink(to, path) => symlink(PATHS[to], self.path(path))?,
            Op::Unlink(path) => fs::remove_file(self.path(path))?,
            Op::MakeDir(path) => fs::create_dir(self.path(path))?,
            Op::RemoveDir(path) => fs::remove_dir(self.path(path))?,
            Op::Mode(path, mode) => {
                fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode))?;
            }
            Op::Times(path, secs) => {
                let stamp = Timespec {
                    tv_sec: secs,
                    tv_nsec: 123_456_789,
                };
                let times = Timestamps {
                    last_access: stamp,
                    last_modification: stamp,
                };
                rustix::fs::utimensat(CWD, self.path(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::SetAttribute(path, name, value) => {
                let name = format!("user.test{name}");
                let path = self.path(path);
                rustix::fs::lsetxattr(path, name, &[value; 9], XattrFlags::empty())?;
            }
            Op::RemoveAttribute(path, name) => {
                rustix::fs::lremovexattr(self.path(path), format!("user.test{name}"))?;
            }
            Op::Settle | Op::Compare | Op::Restart | Op::Kill => {}
        }
        Ok(nothing)
    }

    /// Everything there is, by its name.
    pub fn look(&self) -> io::Result<BTreeMap<PathBuf, Seen>> {
        let mut seen = BTreeMap::new();
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                let meta = fs::symlink_metadata(&path)?;
                let bytes = if meta.is_dir() {
                    dirs.push(path.clone());
                    Vec::new()
                } else if meta.is_symlink() {
                    fs::read_link(&path)?.to_str().unwrap().into()
                } else {
                    fs::read(&path)?
                };
                let mut attributes = BTreeMap::new();
                for name in (0..3).map(|n| format!("user.test{n}")) {
                    let mut value = [0; 16];
                    if let Ok(n) = rustix::fs::lgetxattr(&path, &name, &mut value[..]) {
                        attributes.insert(name, value[..n].to_vec());
                    }
                }
                let found = Seen {
                    mode: meta.mode(),
                    nlink: meta.nlink(),
                    // What a directory takes is each file system's own affair.
                    size: if meta.is_dir() { 0 } else { meta.len() },
                    ids: (meta.uid(), meta.gid()),
                    attributes,
                    bytes,
                };
                seen.insert(path.strip_prefix(&self.root).unwrap().to_owned(), found);
            }
        }
        Ok(seen)
    }
}

/// All that can be copied of `len` bytes, however many calls that takes.
fn copy(from: &File, mut at: u64, to: &File, mut to_at: u64, mut len: usize) -> io::Result<()> {
    while len > 0 {
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), len)? {
            0 => break,
            n => len -= n,
        }
    }
    Ok(())
}

fn readable(file: &File) -> bool {
    let flags = rustix::fs::fcntl_getfl(file).unwrap();
    flags & rustix::fs::OFlags::ACCMODE == rustix::fs::OFlags::RDWR
}

/// The bytes of an open file (none of a directory), also of one that is only open for writing or has no name any more.
pub fn bytes_of(file: &File) -> Vec<u8> {
    fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}
