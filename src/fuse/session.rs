//! Mounting, unmounting, and what a killed daemon leaves mounted.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tracing::{debug, warn};

use super::adapter::Adapter;
use super::notify::Invalidations;
use super::table::{self, SUBTYPE};
use crate::config::MountConfig;
use crate::vfs::Vfs;
use crate::vfs::xattrs::DATA_DIR;

/// What the kernel reads ahead in one file, in KiB; its own default of 128 costs a sequential reader half its speed.
const READ_AHEAD_KIB: u32 = 1024;
/// How long programs that use the mount may keep a node that was told to end.
const BUSY_DEADLINE: Duration = Duration::from_secs(3);

/// A running mount.
pub struct Mounted {
    unmounter: SessionUnmounter,
    thread: JoinHandle<io::Result<()>>,
    invalidations: Invalidations,
}

/// Mounts `vfs` and serves it from threads of its own. `on_end` is called once the mount is gone, however that came.
pub fn mount(
    vfs: Arc<Vfs>,
    mountpoint: &Path,
    options: &MountConfig,
    invalidations: Invalidations,
    on_end: impl FnOnce() + Send + 'static,
) -> io::Result<Mounted> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.fsname.clone().unwrap_or_else(|| "oncefs".into())),
        // Not `MountOption::Subtype`, which fuser leaves out when it mounts without fusermount3.
        MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
        MountOption::DefaultPermissions,
        if options.read_only {
            MountOption::RO
        } else {
            MountOption::RW
        },
    ];
    let known = |o: &str| options.options.iter().any(|x| x == o);
    config.mount_options.push(if known("dev") {
        MountOption::Dev
    } else {
        MountOption::NoDev
    });
    config.mount_options.push(if known("suid") {
        MountOption::Suid
    } else {
        MountOption::NoSuid
    });
    for (name, option) in [
        ("noexec", MountOption::NoExec),
        ("noatime", MountOption::NoAtime),
        ("sync", MountOption::Sync),
        ("dirsync", MountOption::DirSync),
    ] {
        if known(name) {
            config.mount_options.push(option);
        }
    }
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    // The kernel wakes its readers in turn, so each further one makes a lone caller's requests slower: a create took
    // twice as long with eight threads as with two. Whatever may take long goes on in the runtime's threads anyway.
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
    config.n_threads = Some((cores / 2).clamp(2, 8));
    let adapter = Adapter {
        vfs: vfs.clone(),
        runtime: tokio::runtime::Handle::current(),
        strict: options.strict,
        invalidations: invalidations.clone(),
    };
    invalidations.begin();
    let mut session = Session::new(adapter, mountpoint, &config)?;
    let unmounter = session.unmount_callable();
    let (notifier, changes) = (session.notifier(), invalidations.clone());
    std::thread::Builder::new()
        .name("fuse-notify-pages".into())
        .spawn(move || changes.run_pages(&notifier))?;
    let (notifier, changes) = (session.notifier(), invalidations.clone());
    std::thread::Builder::new()
        .name("fuse-notify".into())
        .spawn(move || changes.run(&notifier, |dir, name| vfs.directory_at(dir, name)))?;
    let thread = std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            let result = match session.run() {
                // The mount went while a request was on its way out: an end like any other.
                Err(e) if e.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error()) => Ok(()),
                result => result,
            };
            on_end();
            result
        })?;
    set_read_ahead(mountpoint);
    Ok(Mounted {
        unmounter,
        thread,
        invalidations,
    })
}

impl Mounted {
    /// Unmounts. When the mount is busy it is detached, and programs have [`BUSY_DEADLINE`] to close their files; what
    /// is still open then stays in the spool as it was written, and is taken up by the next start.
    pub fn unmount(mut self, mountpoint: &Path) -> io::Result<()> {
        if !self.thread.is_finished()
            && let Err(e) = self.unmounter.unmount()
        {
            warn!(
                "{} is busy ({e}): detached, and ended in {BUSY_DEADLINE:?} at the latest",
                mountpoint.display()
            );
            detach(mountpoint)?;
            let deadline = Instant::now() + BUSY_DEADLINE;
            while !self.thread.is_finished() {
                if Instant::now() > deadline {
                    warn!("programs still had files open");
                    self.invalidations.close();
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.invalidations.close();
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the FUSE thread panicked")),
        }
    }
}

/// Only root may, and only root needs it for its speed: without it everything works the same.
fn set_read_ahead(mountpoint: &Path) {
    let set = || -> io::Result<()> {
        // Not from stat(2): a daemon that is killed while it asks its own mount waits for itself for ever.
        let device = table::find(mountpoint)?
            .ok_or(io::ErrorKind::NotFound)?
            .device;
        fs::write(
            format!("/sys/class/bdi/{device}/read_ahead_kb"),
            READ_AHEAD_KIB.to_string(),
        )
    };
    if let Err(e) = set() {
        debug!("read-ahead stays at the kernel's default: {e}");
    }
}

/// Takes away what a killed daemon left mounted at `mountpoint`. True when there was something.
pub fn clear_stale(mountpoint: &Path) -> io::Result<bool> {
    if table::find(mountpoint)?.is_none() {
        return Ok(false);
    }
    // Not stat(2): the kernel may still answer that from its cache.
    match rustix::fs::lgetxattr(mountpoint, DATA_DIR, &mut [0u8; 0][..]) {
        Err(Errno::NOTCONN | Errno::CONNABORTED) => {
            detach(mountpoint)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Whether process `pid` was killed and has not ended all the same. The kernel can keep it: a thread that tells of another
/// node's change waits, beyond any signal, for a directory that is locked by a program whose request the daemon would
/// have to answer. As long as that thread lives the connection is open, and the program waits as well.
pub fn is_dying(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
    matches!(state, Some(b'Z' | b'X'))
}

/// Ends the connection of a daemon that cannot do so any more. Whoever waits for an answer gets an error.
pub fn abort(mountpoint: &Path) -> io::Result<()> {
    // By its place first: its number is another mount's as soon as it is free.
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let Some(listed) = table::find(mountpoint)? else {
        return Ok(());
    };
    let connection = listed.device.rsplit(':').next().unwrap_or_default();
    // Belongs to who mounted it; but this directory is not mounted everywhere.
    let control = Path::new("/sys/fs/fuse/connections")
        .join(connection)
        .join("abort");
    std::fs::write(control, "1")
}

/// Unmounts as the user who asks: directly as root, through fusermount3 else. Busy is an error.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    unmount_with(mountpoint, UnmountFlags::empty(), "-u")
}

fn detach(mountpoint: &Path) -> io::Result<()> {
    unmount_with(mountpoint, UnmountFlags::DETACH, "-uz")
}

fn unmount_with(mountpoint: &Path, flags: UnmountFlags, option: &str) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint.as_os_str().as_bytes(), flags) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let output = Command::new("fusermount3")
        .arg(option)
        .arg("--")
        .arg(mountpoint)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(text))
}
