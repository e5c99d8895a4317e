//! Directories of the target, held open.
//!
//! Others may rename and replace what lies in a directory of theirs while the import is at work below it. A directory that
//! is held stays the one that was opened, and no link is followed on the way to the next one, so nothing is ever made, and
//! nobody is given anything, outside of the target.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open, openat};

const HELD: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// A directory, or whatever else was opened.
pub(super) struct Dir {
    fd: OwnedFd,
    /// Leads to it wherever it is now, if it is followed.
    path: PathBuf,
}

impl Dir {
    fn new(fd: OwnedFd) -> Dir {
        // Not all calls have a form that takes a descriptor of this kind.
        let path = Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string());
        Dir { fd, path }
    }

    /// Opens the directory at `path`, also through links.
    pub(super) fn open(path: &Path) -> io::Result<Dir> {
        let flags = HELD | OFlags::DIRECTORY;
        Ok(Dir::new(open(path, flags, Mode::empty())?))
    }

    /// Opens the directory `name` in it. A link to one is none.
    pub(super) fn sub(&self, name: &OsStr) -> io::Result<Dir> {
        self.opened(name, OFlags::DIRECTORY)
    }

    /// Opens `name` in it, whatever that is; a link itself, not what it leads to.
    pub(super) fn entry(&self, name: &OsStr) -> io::Result<Dir> {
        self.opened(name, OFlags::empty())
    }

    fn opened(&self, name: &OsStr, more: OFlags) -> io::Result<Dir> {
        let flags = HELD | OFlags::NOFOLLOW | more;
        Ok(Dir::new(openat(&self.fd, name, flags, Mode::empty())?))
    }

    /// The directory and the name that `path`, which begins here, leads to.
    pub(super) fn reach<'a>(&self, path: &'a Path) -> io::Result<(Dir, &'a OsStr)> {
        let mut dir = self.entry(OsStr::new("."))?;
        for name in path.parent().into_iter().flatten() {
            dir = dir.sub(name)?;
        }
        Ok((dir, path.file_name().unwrap_or_default()))
    }

    /// A path to `name` in it, for calls that do not follow a link there. It lasts as long as this.
    pub(super) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A path to it, for calls that follow links. It lasts as long as this.
    pub(super) fn itself(&self) -> &Path {
        &self.path
    }
}
