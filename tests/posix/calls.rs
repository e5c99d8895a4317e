//! System calls as values: who makes which call, what it returned, and what a directory looks like afterwards.
//!
//! A call is made on a thread of its own whose user, groups, umask and working directory are its own, so that no process
//! has to be started for it.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use libc::{c_int, c_long};

/// A user with groups; the first is the one of new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub name: &'static str,
    pub uid: u32,
    pub groups: &'static [u32],
}

pub const GROUP: u32 = 20_001;
pub const OTHER_GROUP: u32 = 20_002;
pub const STRANGE_GROUP: u32 = 20_003;
pub const ROOT: Who = Who {
    name: "root",
    uid: 0,
    groups: &[0],
};
pub const OWNER: Who = Who {
    name: "owner",
    uid: 10_001,
    groups: &[GROUP, OTHER_GROUP],
};
pub const MEMBER: Who = Who {
    name: "member",
    uid: 10_002,
    groups: &[OTHER_GROUP, GROUP],
};
pub const STRANGER: Who = Who {
    name: "stranger",
    uid: 10_003,
    groups: &[STRANGE_GROUP],
};

/// Makes this thread act for `who`. It must be the thread of [`on_own_thread`].
pub fn become_user(who: Who) {
    let set = |call: c_long, a: i64, b: i64, c: i64| {
        // SAFETY: the kernel's calls, which change this thread only; libc's would change all threads.
        assert_eq!(unsafe { libc::syscall(call, a, b, c) }, 0, "{who:?}");
    };
    // The way back to root first: it may set everything else.
    set(libc::SYS_setresuid, -1, 0, -1);
    let groups = who.groups;
    set(
        libc::SYS_setgroups,
        groups.len() as i64,
        groups.as_ptr() as i64,
        0,
    );
    set(libc::SYS_setresgid, -1, groups[0].into(), -1);
    set(libc::SYS_setresuid, -1, who.uid.into(), -1);
}

/// Runs `f` on a thread with a working directory, umask and user of its own.
pub fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: takes a flag, touches no memory.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0);
            set_umask(0);
            f()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn set_umask(mask: u32) {
    // SAFETY: cannot fail, touches no memory.
    unsafe { libc::umask(mask) };
}

/// A time for utimensat(2): seconds and nanoseconds.
pub type Stamp = (i64, i64);
pub const NOW: Stamp = (0, libc::UTIME_NOW);
pub const OMIT: Stamp = (0, libc::UTIME_OMIT);

/// A call. Paths are relative to the directory of its case. `F` names mean the file that [`Op::Hold`] opened.
#[derive(Clone, Debug)]
pub enum Op {
    Become(Who),
    Umask(u32),
    Open(String, i32, u32),
    /// Opens, and keeps the descriptor for the calls on it.
    Hold(String, i32, u32),
    Close,
    FWrite(&'static str),
    FRead,
    FTruncate(i64),
    FAllocate(i32, i64, i64),
    FChmod(u32),
    FChown(i64, i64),
    FUtimens(Stamp, Stamp),
    FStat,
    FSync,
    /// The names in the held directory, or what openat(2) in it says.
    FList,
    FMkdirAt(&'static str),
    /// Makes it the working directory.
    Enter(&'static str),
    Mkdir(String, u32),
    Mknod(String, u32, u64),
    Symlink(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, u32),
    Chmod(String, u32),
    Chown(String, i64, i64),
    Lchown(String, i64, i64),
    Truncate(String, i64),
    Utimens(String, Stamp, Stamp, bool),
    Stat(String),
    Lstat(String),
    Readlink(String),
    Access(String, i32),
}

/// What a call returned, or its error number.
pub type Outcome = Result<String, i32>;

fn c(path: &str) -> CString {
    CString::new(path).unwrap()
}

fn done(result: impl Into<c_long>) -> Outcome {
    match result.into() {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap()),
        _ => Ok(String::new()),
    }
}

fn stamps(a: Stamp, m: Stamp) -> [libc::timespec; 2] {
    [a, m].map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec })
}

fn id(n: i64) -> u32 {
    n as u32
}

fn shown(result: c_int, stat: &libc::stat) -> Outcome {
    done(result)?;
    let size = match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => 0,
        _ => stat.st_size,
    };
    Ok(format!(
        "{:o} {} {} {} {size}",
        stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid
    ))
}

fn is_fifo(fd: c_int) -> bool {
    // SAFETY: all zero is a valid stat, and it lives until the call returns.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
    }
}

/// Makes calls one after the other.
pub struct Caller {
    held: c_int,
}

impl Caller {
    pub fn new() -> Caller {
        Caller { held: -1 }
    }

    pub fn call(&mut self, op: &Op) -> Outcome {
        // SAFETY: all zero is a valid stat.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        let fd = self.held;
        // SAFETY: plain system calls with strings and structures that live until they return.
        unsafe {
            match op {
                Op::Become(who) => {
                    become_user(*who);
                    Ok(String::new())
                }
                Op::Umask(mask) => {
                    set_umask(*mask);
                    Ok(String::new())
                }
                Op::Open(path, flags, mode) => {
                    let fd = libc::open(c(path).as_ptr(), *flags, *mode);
                    done(fd)?;
                    done(libc::close(fd))
                }
                Op::Hold(path, flags, mode) => {
                    let _ = self.close();
                    self.held = libc::open(c(path).as_ptr(), *flags, *mode);
                    done(self.held)
                }
                Op::Close => self.close(),
                // Which moves its times on ext4 and nothing on a mount.
                Op::FWrite(_) if is_fifo(fd) => Ok("not into a fifo".into()),
                Op::FWrite(text) => done(libc::write(fd, text.as_ptr().cast(), text.len()) as i64),
                Op::FRead => {
                    let mut bytes = [0u8; 256];
                    let n = libc::pread(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0);
                    done(n as i64)?;
                    Ok(String::from_utf8_lossy(&bytes[..n as usize]).into_owned())
                }
                Op::FTruncate(size) => done(libc::ftruncate(fd, *size)),
                Op::FAllocate(mode, at, len) => done(libc::fallocate(fd, *mode, *at, *len)),
                Op::FChmod(mode) => done(libc::fchmod(fd, *mode)),
                Op::FChown(uid, gid) => done(libc::fchown(fd, id(*uid), id(*gid))),
                Op::FUtimens(a, m) => done(libc::futimens(fd, stamps(*a, *m).as_ptr())),
                Op::FStat => shown(libc::fstat(fd, &mut stat), &stat),
                Op::FSync => done(libc::fsync(fd)),
                Op::FList => {
                    let listed = fs::read_dir(format!("/proc/thread-self/fd/{fd}"));
                    let listed = listed.map_err(|e| e.raw_os_error().unwrap())?;
                    let mut names: Vec<String> = listed
                        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
                        .collect();
                    names.sort();
                    Ok(names.join(" "))
                }
                Op::FMkdirAt(name) => done(libc::mkdirat(fd, c(name).as_ptr(), 0o755)),
                Op::Enter(path) => done(libc::chdir(c(path).as_ptr())),
                Op::Mkdir(path, mode) => done(libc::mkdir(c(path).as_ptr(), *mode)),
                Op::Mknod(path, mode, rdev) => done(libc::mknod(c(path).as_ptr(), *mode, *rdev)),
                Op::Symlink(target, path) => {
                    done(libc::symlink(c(target).as_ptr(), c(path).as_ptr()))
                }
                Op::Link(from, to) => done(libc::link(c(from).as_ptr(), c(to).as_ptr())),
                Op::Unlink(path) => done(libc::unlink(c(path).as_ptr())),
                Op::Rmdir(path) => done(libc::rmdir(c(path).as_ptr())),
                Op::Rename(from, to, flags) => done(libc::renameat2(
                    libc::AT_FDCWD,
                    c(from).as_ptr(),
                    libc::AT_FDCWD,
                    c(to).as_ptr(),
                    *flags,
                )),
                Op::Chmod(path, mode) => done(libc::chmod(c(path).as_ptr(), *mode)),
                Op::Chown(path, uid, gid) => {
                    done(libc::chown(c(path).as_ptr(), id(*uid), id(*gid)))
                }
                Op::Lchown(path, uid, gid) => {
                    done(libc::lchown(c(path).as_ptr(), id(*uid), id(*gid)))
                }
                Op::Truncate(path, size) => done(libc::truncate(c(path).as_ptr(), *size)),
                Op::Utimens(path, a, m, follow) => done(libc::utimensat(
                    libc::AT_FDCWD,
                    c(path).as_ptr(),
                    stamps(*a, *m).as_ptr(),
                    if *follow {
                        0
                    } else {
                        libc::AT_SYMLINK_NOFOLLOW
                    },
                )),
                Op::Stat(path) => shown(libc::stat(c(path).as_ptr(), &mut stat), &stat),
                Op::Lstat(path) => shown(libc::lstat(c(path).as_ptr(), &mut stat), &stat),
                Op::Readlink(path) => {
                    let mut bytes = [0u8; 5000];
                    let n = libc::readlink(c(path).as_ptr(), bytes.as_mut_ptr().cast(), 5000);
                    done(n as i64)?;
                    Ok(String::from_utf8_lossy(&bytes[..n as usize]).into_owned())
                }
                // With the effective user: the real one of this thread is root.
                Op::Access(path, mode) => done(libc::faccessat(
                    libc::AT_FDCWD,
                    c(path).as_ptr(),
                    *mode,
                    libc::AT_EACCESS,
                )),
            }
        }
    }

    fn close(&mut self) -> Outcome {
        let fd = std::mem::replace(&mut self.held, -1);
        match fd {
            -1 => Ok(String::new()),
            // SAFETY: the descriptor is ours and is not used again.
            fd => done(unsafe { libc::close(fd) }),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

/// Goes into `dir`, for the calling thread only.
pub fn enter(dir: &Path) {
    let dir = CString::new(dir.as_os_str().as_bytes()).unwrap();
    // SAFETY: the string lives until the call returns.
    done(unsafe { libc::chdir(dir.as_ptr()) }).unwrap();
}

/// What stat(2) says of a file, as far as two filesystems can agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub mode: u32,
    pub nlink: u64,
    pub owner: (u32, u32),
    pub size: u64,
    pub rdev: u64,
    pub atime: Stamp,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub target: Option<Vec<u8>>,
    pub bytes: Option<Vec<u8>>,
}

/// Everything at and below the working directory, as root sees it.
pub type Snapshot = BTreeMap<Vec<u8>, Facts>;

/// Looks at everything at and below the working directory.
pub fn look() -> Snapshot {
    become_user(ROOT);
    let mut found = Snapshot::new();
    walk(Path::new("."), &mut found);
    found
}

/// Where all times are before the calls of a case.
pub const PAST: [Stamp; 2] = [(1_000_000_000, 1), (1_000_000_001, 2)];

/// Sets the times of everything there to [`PAST`], then looks.
pub fn prepare() -> Snapshot {
    for name in look().keys() {
        let path = CString::new(&name[..]).unwrap();
        // SAFETY: both arguments live until the call returns.
        done(unsafe {
            libc::utimensat(
                libc::AT_FDCWD,
                path.as_ptr(),
                stamps(PAST[0], PAST[1]).as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
            )
        })
        .unwrap();
    }
    look()
}

fn walk(path: &Path, found: &mut Snapshot) {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let below = path.join(entry.file_name());
            walk(&below, found);
            let mode = found[below.as_os_str().as_bytes()].mode;
            assert_eq!(mode & libc::S_IFMT, type_of(&entry), "{below:?}");
        }
    }
    let special = kind.is_block_device() || kind.is_char_device();
    let facts = Facts {
        mode: meta.mode(),
        nlink: meta.nlink(),
        owner: (meta.uid(), meta.gid()),
        size: if kind.is_dir() { 0 } else { meta.size() },
        rdev: if special { meta.rdev() } else { 0 },
        atime: (meta.atime(), meta.atime_nsec()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        ctime: (meta.ctime(), meta.ctime_nsec()),
        target: kind
            .is_symlink()
            .then(|| fs::read_link(path).unwrap().into_os_string().into_vec()),
        bytes: (kind.is_file() && (1..4096).contains(&meta.size()))
            .then(|| fs::read(path).unwrap()),
    };
    found.insert(path.as_os_str().as_bytes().to_vec(), facts);
}

/// The kind of file that readdir(3) named.
fn type_of(entry: &fs::DirEntry) -> u32 {
    let kind = entry.file_type().unwrap();
    match kind {
        k if k.is_dir() => libc::S_IFDIR,
        k if k.is_symlink() => libc::S_IFLNK,
        k if k.is_fifo() => libc::S_IFIFO,
        k if k.is_socket() => libc::S_IFSOCK,
        k if k.is_block_device() => libc::S_IFBLK,
        k if k.is_char_device() => libc::S_IFCHR,
        _ => libc::S_IFREG,
    }
}

/// A snapshot with times in words, so that those of two filesystems can be compared: `kept` since the snapshot `before`,
/// `now`, or the time itself.
pub fn worded(after: &Snapshot, before: &Snapshot, started: Stamp) -> BTreeMap<String, String> {
    after
        .iter()
        .map(|(name, f)| {
            let word = |t: Stamp, past: Stamp| match t {
                t if t == past => "kept".into(),
                t if t >= started && t.0 < started.0 + 3600 => "now".into(),
                t => format!("{t:?}"),
            };
            // Of whatever name: it may have another one now, and two that were made at once can share it.
            let ctime = match before.values().any(|was| was.ctime == f.ctime) {
                true => "kept",
                false => "changed",
            };
            let text = format!(
                "{:o} links={} owner={:?} size={} rdev={:x} atime={} mtime={} ctime={ctime} {:?} {:?}",
                f.mode,
                f.nlink,
                f.owner,
                f.size,
                f.rdev,
                word(f.atime, PAST[0]),
                word(f.mtime, PAST[1]),
                f.target.as_deref().map(OsStr::from_bytes),
                f.bytes.as_deref().map(OsStr::from_bytes),
            );
            (String::from_utf8_lossy(name).into_owned(), text)
        })
        .collect()
}

fn clock(id: libc::clockid_t) -> Stamp {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure lives until the call returns.
    done(unsafe { libc::clock_gettime(id, &mut now) }).unwrap();
    (now.tv_sec, now.tv_nsec)
}

/// Waits until the next change gets a later time than everything before, and returns a time between the two.
/// Filesystems take their times from a clock that goes in steps and behind the real one.
pub fn wait_for_later_times() -> Stamp {
    let from = clock(libc::CLOCK_REALTIME);
    loop {
        let now = clock(libc::CLOCK_REALTIME_COARSE);
        if now > from {
            return now;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}
