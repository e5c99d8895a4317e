//! The directory in a mount that everything is brought into, by the calls that any program would use.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::dir::Dir;
use crate::content::disk;
use crate::tree::Inode;
use crate::tree::op::check_name;
use crate::types::{ContentHash, Time};
use crate::vfs::standing::{Standing, attribute};
use crate::vfs::xattrs::SHA256;
use crate::windows;

/// On a directory that does not have all its entries and attributes yet.
const UNFINISHED: &str = "user.oncefs-import";
/// The longest pause between two looks at a file that is not stored yet.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// An entry that is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// By this import; else it was there.
    pub(super) made: bool,
    /// Its inode number in the target.
    pub(super) ino: u64,
}

impl Placed {
    fn there(meta: &fs::Metadata) -> Placed {
        Placed {
            made: false,
            ino: meta.ino(),
        }
    }
}

pub(super) struct Target {
    into: Dir,
    /// Where entries are before they get their name. Nobody else can reach into it.
    staging: Dir,
    staging_name: OsString,
}

impl Target {
    pub(super) fn new(into: &Path, node: &str) -> io::Result<Target> {
        let into = Dir::open(into)?;
        let staging_name = OsString::from(format!(".oncefs-import-{node}"));
        // The name of the node is what a file in the source says.
        check_name(staging_name.as_bytes()).map_err(io::Error::other)?;
        let place = into.at(&staging_name);
        // What a killed import left.
        match fs::remove_dir_all(&place) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(place)?;
        let staging = into.sub(&staging_name)?;
        let meta = fs::metadata(staging.itself())?;
        if meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            // Whoever may write to the target was quicker.
            return Err(io::Error::other(
                "somebody changed the target's staging directory",
            ));
        }
        Ok(Target {
            into,
            staging,
            staging_name,
        })
    }

    pub(super) fn finish(&self) -> io::Result<()> {
        fs::remove_dir(self.into.at(&self.staging_name))
    }

    /// The directory that everything is brought into.
    pub(super) fn root(&self) -> io::Result<Dir> {
        self.into.sub(OsStr::new("."))
    }

    /// The file `name` with this content, if there is one. Something else there is an error.
    pub(super) fn has(
        &self,
        dir: &Dir,
        name: &OsStr,
        size: u64,
        hash: &ContentHash,
    ) -> io::Result<Option<Placed>> {
        let place = dir.at(name);
        let Some(meta) = there(&place)? else {
            return Ok(None);
        };
        if !meta.is_file() || meta.len() != size {
            return Err(taken());
        }
        let same = match attribute(&place, SHA256) {
            Ok(known) => known == hash.to_string(),
            // Not hashed yet.
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {
                let mut options = File::options();
                // It may be something else by now.
                let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
                let file = options.read(true).custom_flags(flags).open(&place)?;
                disk::hash(&file, || true)?.is_some_and(|d| d.hash == *hash)
            }
            Err(e) => return Err(e),
        };
        match same {
            true => Ok(Some(Placed::there(&meta))),
            false => Err(taken()),
        }
    }

    /// Makes a regular file with these bytes.
    pub(super) fn file(
        &self,
        dir: &Dir,
        name: &OsStr,
        inode: &Inode,
        content: Option<&File>,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> io::Result<Placed> {
        if let Some(meta) = there(&dir.at(name))? {
            // With content it was looked at before.
            return match content.is_none() && meta.is_file() && meta.len() == 0 {
                true => Ok(Placed::there(&meta)),
                false => Err(taken()),
            };
        }
        let staged = self.staged(inode)?;
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let made = options.open(&staged).and_then(|file| match content {
            Some(content) => disk::copy(content, &file),
            None => Ok(()),
        });
        let made = made
            .and_then(|()| attributes(&staged, inode, xattrs))
            .and_then(|()| self.name(&staged, dir, name));
        if made.is_err() {
            // It takes room.
            let _ = fs::remove_file(&staged);
        }
        made
    }

    /// Makes a symbolic link to `link`, or a fifo, socket or device node.
    pub(super) fn special(
        &self,
        dir: &Dir,
        name: &OsStr,
        inode: &Inode,
        link: Option<&[u8]>,
    ) -> io::Result<Placed> {
        let place = dir.at(name);
        if let Some(meta) = there(&place)? {
            let same = match link {
                Some(link) => {
                    meta.is_symlink() && fs::read_link(&place)?.as_os_str().as_bytes() == link
                }
                None => {
                    let kind = meta.mode() & libc::S_IFMT;
                    let device =
                        meta.file_type().is_block_device() || meta.file_type().is_char_device();
                    kind == inode.kind() && (!device || meta.rdev() == u64::from(inode.rdev))
                }
            };
            return match same {
                true => Ok(Placed::there(&meta)),
                false => Err(taken()),
            };
        }
        let staged = self.staged(inode)?;
        match link {
            Some(link) => std::os::unix::fs::symlink(OsStr::from_bytes(link), &staged)?,
            None => rustix::fs::mknodat(
                CWD,
                &staged,
                FileType::from_raw_mode(inode.kind()),
                Mode::from_raw_mode(0o600),
                inode.rdev.into(),
            )?,
        }
        attributes(&staged, inode, &[])?;
        self.name(&staged, dir, name)
    }

    /// Gives what was placed at `first` one more name.
    pub(super) fn link(
        &self,
        (first, placed): (&Path, Placed),
        dir: &Dir,
        name: &OsStr,
    ) -> io::Result<Placed> {
        let place = dir.at(name);
        if let Some(meta) = there(&place)? {
            return match meta.ino() == placed.ino {
                true => Ok(Placed::there(&meta)),
                false => Err(taken()),
            };
        }
        let (beside, first_name) = self.into.reach(first)?;
        let file = beside.entry(first_name)?;
        if fs::metadata(file.itself())?.ino() != placed.ino {
            return Err(io::Error::other(format!(
                "its other name, {}, has something else by now",
                first.display()
            )));
        }
        let found = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, file.itself(), CWD, place, found)?;
        Ok(Placed {
            made: true,
            ..placed
        })
    }

    /// Makes a directory, or finds it. True: it is this import's, and gets its attributes at the end.
    pub(super) fn directory(
        &self,
        parent: &Dir,
        name: &OsStr,
        inode: &Inode,
    ) -> io::Result<(Dir, bool)> {
        match parent.sub(name) {
            Ok(dir) => {
                let owner = fs::metadata(dir.itself())?.uid();
                let unfinished = attribute(&dir.at("."), UNFINISHED.as_bytes()).is_ok();
                // Anybody can say so of a directory of his own.
                let ours = unfinished && [geteuid().as_raw(), inode.uid].contains(&owner);
                return Ok((dir, ours));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Err(taken()),
            Err(e) => return Err(e),
        }
        let staged = self.staged(inode)?;
        DirBuilder::new().mode(0o700).create(&staged)?;
        rustix::fs::setxattr(&staged, UNFINISHED, b"", XattrFlags::empty())?;
        let dir = self.staging.sub(staged.file_name().unwrap_or_default())?;
        self.name(&staged, parent, name)?;
        Ok((dir, true))
    }

    /// Gives a directory its attributes, once it has all its entries.
    pub(super) fn finish_directory(
        &self,
        dir: &Dir,
        inode: &Inode,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> io::Result<()> {
        attributes(dir.itself(), inode, xattrs)?;
        Ok(rustix::fs::removexattr(dir.itself(), UNFINISHED)?)
    }

    /// Where the file at `path` stands.
    pub(super) fn standing(&self, path: &Path) -> io::Result<Standing> {
        let (dir, name) = self.into.reach(path)?;
        Standing::of(&dir.at(name))
    }

    /// Waits until the file is stored, which must be under this hash. Returns why it never will be, if that is so. Calls
    /// `delayed` with the reason when it has to be tried again.
    pub(super) fn stored(
        &self,
        path: &Path,
        hash: &ContentHash,
        delayed: impl FnOnce(&str),
    ) -> io::Result<Option<String>> {
        let mut pause = Duration::from_millis(2);
        let mut delayed = Some(delayed);
        loop {
            match self.standing(path)? {
                Standing::Stored => break,
                Standing::Lost(why) => return Ok(Some(why)),
                Standing::OnItsWay => {}
                Standing::Delayed(why) => {
                    if let Some(delayed) = delayed.take() {
                        delayed(&why);
                    }
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        let (dir, name) = self.into.reach(path)?;
        match attribute(&dir.at(name), SHA256)? == hash.to_string() {
            true => Ok(None),
            false => Err(io::Error::other(
                "it was changed, or damaged on its way: the target has other bytes",
            )),
        }
    }

    fn staged(&self, inode: &Inode) -> io::Result<PathBuf> {
        let staged = self.staging.at(inode.ino.to_string());
        match fs::remove_file(&staged) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(staged),
        }
    }

    /// Gives what is finished its name.
    fn name(&self, staged: &Path, dir: &Dir, name: &OsStr) -> io::Result<Placed> {
        windows::IMPORT_STAGED.passed();
        let ino = fs::symlink_metadata(staged)?.ino();
        let only = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(CWD, staged, CWD, dir.at(name), only) {
            Ok(()) => Ok(Placed { made: true, ino }),
            Err(Errno::EXIST) => Err(taken()),
            Err(e) => Err(e.into()),
        }
    }
}

fn taken() -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        "the target has something else of this name, which stays",
    )
}

fn there(place: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(place) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Owner, mode, extended attributes and times, in the order in which none undoes another. `place` leads to nothing that
/// others can replace: it is in the staging directory, or the path of a directory that is held.
fn attributes(place: &Path, inode: &Inode, xattrs: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
    let is_link = inode.kind() == libc::S_IFLNK;
    let itself = match is_link {
        true => AtFlags::SYMLINK_NOFOLLOW,
        false => AtFlags::empty(),
    };
    rustix::fs::chownat(CWD, place, Some(uid), Some(gid), itself)?;
    if !is_link {
        let mode = Mode::from_raw_mode(inode.mode & 0o7777);
        rustix::fs::chmodat(CWD, place, mode, AtFlags::empty())?;
    }
    for (name, value) in xattrs {
        rustix::fs::setxattr(place, &name[..], value, XattrFlags::empty())?;
    }
    let spec = |time: Time| {
        let (tv_sec, nanos) = time.parts();
        Timespec {
            tv_sec,
            tv_nsec: nanos.into(),
        }
    };
    let times = Timestamps {
        last_access: spec(inode.atime),
        last_modification: spec(inode.mtime),
    };
    Ok(rustix::fs::utimensat(CWD, place, &times, itself)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::tree::Body;
    use crate::types::{Generation, Ino};

    fn inode(ino: u64, mode: u32) -> Inode {
        Inode {
            ino: Ino(ino),
            mode,
            nlink: 2,
            uid: geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            size: 0,
            atime: Time(0),
            mtime: Time(0),
            ctime: Time(0),
            generation: Generation(0),
            body: Body::Empty,
            parent: None,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn regression_a_directory_that_is_replaced_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for made in ["target", "victim"] {
            fs::create_dir(at(made)).unwrap();
        }
        fs::set_permissions(at("victim"), fs::Permissions::from_mode(0o750)).unwrap();
        let target = Target::new(&at("target"), "node").unwrap();
        let root = target.root().unwrap();
        fs::create_dir(at("target/.oncefs-import-x")).unwrap();
        assert!(Target::new(&at("target"), "x/../../victim").is_err());
        assert!(at("victim").is_dir());
        let name = OsStr::new;
        let into = inode(1, libc::S_IFDIR | 0o1777);
        let (d, ours) = target.directory(&root, name("d"), &into).unwrap();
        assert!(ours);
        // Who owns the parent may do this at any time.
        fs::rename(at("target/d"), at("target/away")).unwrap();
        symlink(at("victim"), at("target/d")).unwrap();

        let file = inode(2, libc::S_IFREG | 0o4755);
        let placed = target.file(&d, name("f"), &file, None, &[]).unwrap();
        let fifo = inode(3, libc::S_IFIFO | 0o600);
        assert!(target.special(&d, name("p"), &fifo, None).unwrap().made);
        let link = inode(4, libc::S_IFLNK | 0o777);
        let link = target.special(&d, name("l"), &link, Some(b"../victim"));
        let sub = inode(5, libc::S_IFDIR | 0o755);
        assert!(target.directory(&d, name("s"), &sub).unwrap().1);
        target.finish_directory(&d, &into, &[]).unwrap();
        let names = || fs::read_dir(at("victim")).unwrap().count();
        assert_eq!((names(), mode(&at("victim"))), (0, 0o750));
        assert_eq!(mode(&at("target/away")), 0o1777);
        assert_eq!(mode(&at("target/away/f")), 0o4755);
        assert!(
            fs::symlink_metadata(at("target/away/l"))
                .unwrap()
                .is_symlink()
        );

        // Nor does looking it up again follow the link, or take what lies there for what was made.
        fs::write(at("victim/f"), b"").unwrap();
        assert!(target.directory(&root, name("d"), &into).is_err());
        assert!(target.standing(Path::new("d/f")).is_err());
        let first = |path| (Path::new(path), placed);
        assert!(target.link(first("d/f"), &root, name("g")).is_err());
        assert!(target.link(first("away/p"), &root, name("g")).is_err());
        target.link(first("away/f"), &root, name("g")).unwrap();
        assert_eq!(fs::metadata(at("target/g")).unwrap().ino(), placed.ino);
        let first = (Path::new("away/l"), link.unwrap());
        target.link(first, &root, name("h")).unwrap();
        assert!(fs::symlink_metadata(at("target/h")).unwrap().is_symlink());

        // Found again, it is only ever what this import began.
        assert!(!target.directory(&root, name("away"), &into).unwrap().1);
        target.finish().unwrap();
        assert!(!at("target/.oncefs-import-node").exists());
    }
}
